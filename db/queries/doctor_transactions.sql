-- What keeps the oldest snapshot: nothing is vacuumed behind it, and no range of the outbox dropped. What other logins do is
-- hidden from one without pg_read_all_stats. $1: older than this.
SELECT 'warn', format('transaction of process %s (%s, user %s) has been open for %s', a.pid, coalesce(nullif(a.application_name, ''), 'no name'),
		a.usename, date_trunc('second', clock_timestamp() - a.xact_start)),
	format('SELECT pg_terminate_backend(%s);', a.pid)
FROM pg_stat_activity AS a
WHERE a.xact_start < clock_timestamp() - $1::interval AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
UNION ALL
SELECT 'warn', format('prepared transaction %L of %s has been open for %s', p.gid, p.owner, date_trunc('second', clock_timestamp() - p.prepared)),
	format('in database %s: ROLLBACK PREPARED %L; or COMMIT PREPARED %L;', p.database, p.gid, p.gid)
FROM pg_prepared_xacts AS p WHERE p.prepared < clock_timestamp() - $1::interval
UNION ALL
SELECT 'warn', format('replication slot %L is not in use and keeps WAL', s.slot_name),
	format('start its reader, or: SELECT pg_drop_replication_slot(%L);', s.slot_name)
FROM pg_replication_slots AS s WHERE NOT s.active
UNION ALL
SELECT 'warn', format('database %s is %s transactions old: at 2 billion it takes no more writes', d.datname, age(d.datfrozenxid)),
	'vacuumdb --all --freeze'
FROM pg_database AS d WHERE age(d.datfrozenxid) > 1500000000
