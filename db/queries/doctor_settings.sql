-- Settings of the server that lose what was committed, as a new session gets them. Rows of all doctor_*: word, text, fix.
SELECT CASE WHEN s.reset_val = c.good THEN 'ok' ELSE c.word END,
	format(CASE WHEN s.reset_val = c.good THEN '%s = %s' ELSE '%s = %s: ' || c.why END, s.name, s.reset_val),
	CASE WHEN s.reset_val <> c.good THEN c.fix END
FROM (VALUES
	(1, 'fsync', 'on', 'fail', 'a crash of the machine may lose or spoil everything',
		'ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();'),
	(2, 'full_page_writes', 'on', 'fail', 'a crash of the machine may leave torn pages',
		'ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();'),
	(3, 'synchronous_commit', 'on', 'warn', 'unless it is remote_apply or remote_write, a crash may lose what services were told is done',
		'ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();'),
	(4, 'autovacuum', 'on', 'warn', 'tables of consumers and sagas grow without end',
		'ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();')) AS c (place, name, good, word, why, fix)
JOIN pg_settings AS s ON s.name = c.name
WHERE NOT (s.name = 'synchronous_commit' AND s.reset_val IN ('remote_apply', 'remote_write'))
UNION ALL
SELECT 'ok', format('wal_level = %s: any will do, the outbox is read as a table', current_setting('wal_level')), NULL
