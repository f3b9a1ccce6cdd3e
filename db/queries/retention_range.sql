-- The next range in use from a seq on. $1 seq.
SELECT from_seq, to_seq FROM outbox.partitions
WHERE to_seq > $1::bigint AND from_seq <= coalesce(pg_catalog.pg_sequence_last_value('outbox.event_seq'), 0)
ORDER BY from_seq LIMIT 1
