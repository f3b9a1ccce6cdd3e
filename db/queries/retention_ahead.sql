-- How many empty ranges lie beyond the one in use.
SELECT count(*) FROM outbox.partitions
WHERE from_seq > coalesce(pg_catalog.pg_sequence_last_value('outbox.event_seq'), 0)
