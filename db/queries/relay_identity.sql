-- Which database this is, and what it says about its relay.
SELECT s.system_identifier::text,
	('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int::text,
	(SELECT r.name FROM outbox.relay AS r),
	current_setting('wal_block_size'), pg_catalog.pg_size_bytes(current_setting('wal_segment_size'))::text,
	current_setting('server_version'),
	coalesce((SELECT r.paused_at IS NOT NULL FROM outbox.relay AS r), false)
FROM pg_catalog.pg_control_system() AS s
