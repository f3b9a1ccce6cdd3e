-- Room: as far as SQL tells. The disk itself it does not.
SELECT 'ok', format('the database holds %s, the outbox %s of it, WAL up to %s', pg_size_pretty(pg_database_size(current_database())),
		pg_size_pretty(coalesce((SELECT sum(p.bytes) FROM outbox.partitions AS p), 0)), current_setting('max_wal_size')), NULL
UNION ALL
SELECT 'warn', format('%s of %s connections are taken', n.taken, n.most), 'ALTER SYSTEM SET max_connections = ...; and restart, or use fewer'
FROM (SELECT count(*) AS taken, current_setting('max_connections')::integer AS most FROM pg_stat_activity AS a
	WHERE a.backend_type = 'client backend') AS n
WHERE n.taken > n.most * 0.9
