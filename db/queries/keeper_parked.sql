-- Per partition, record time (microseconds) of the oldest message held back.
SELECT topic, partition, (extract(epoch FROM min(coalesce("time", parked_at))) * 1000000)::bigint
FROM inbox.parked WHERE "group" = $1 AND blocking GROUP BY topic, partition
