-- Drops what steps of sagas did here, long ago. $1: microseconds to keep, $2: for which group
SELECT saga.rotate($1::bigint * interval '1 microsecond', 'consumer ' || $2::text)
