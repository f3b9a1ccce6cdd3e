-- Last of a turn: what must be flushed before anything seen is published, the sequence again (unchanged:
-- the outbox is idle, however busy the server is), and the server's clock.
SELECT pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
	pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn,
	coalesce(pg_catalog.pg_sequence_last_value('outbox.event_seq'), 0),
	(extract(epoch FROM clock_timestamp()) * 1000000)::bigint
