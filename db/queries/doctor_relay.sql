-- Whose outbox this is and who holds it. $1: how the relay is told its file, $2: the relay's name, NULL unknown.
SELECT 'fail', format('this outbox belongs to the relay named "%s", not "%s": an outbox has one position', r.name, $2::text),
	format('set name = "%s" in the config file', r.name)
FROM outbox.relay AS r WHERE r.name <> $2::text
UNION ALL
SELECT CASE WHEN h.application_name LIKE 'postrider-relay ' || $2::text || ' %' OR $2::text IS NULL OR h.application_name IS NULL THEN 'ok' ELSE 'fail' END,
	format('the outbox is held by process %s%s%s', h.pid, coalesce(', "' || h.application_name || '"', ''), coalesce(' from ' || host(h.client_addr), '')),
	CASE WHEN NOT h.application_name LIKE 'postrider-relay ' || $2::text || ' %'
		THEN format('it is not the relay "%s": stop it, or SELECT pg_terminate_backend(%s);', $2::text, h.pid) END
FROM (SELECT l.pid, nullif(a.application_name, '') AS application_name, a.client_addr FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
	WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 1347375956 AND l.objid = 1 AND l.objsubid = 2
		AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())) AS h
UNION ALL
SELECT CASE WHEN g.lag_seconds > 30 THEN 'fail' ELSE 'warn' END,
	'no relay holds this outbox: nothing is published' || CASE WHEN g.pending_events > 0 THEN format(', %s event%s', g.pending_events,
		CASE g.pending_events WHEN 1 THEN ' waits' ELSE 's wait' END) ELSE '' END, 'postrider-relay ' || $1::text
FROM outbox.lag AS g
WHERE NOT EXISTS (SELECT FROM pg_locks AS l
	WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 1347375956 AND l.objid = 1 AND l.objsubid = 2
		AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()))
