-- Drops what is over. $1: microseconds to keep
SELECT saga.rotate($1::bigint * interval '1 microsecond')
