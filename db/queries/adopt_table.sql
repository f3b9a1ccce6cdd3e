-- The columns of the table $1, and what the SQL for it needs to know.
SELECT s.nspname, r.relname, r.relkind::text, a.attname, pg_catalog.format_type(a.atttypid, NULL),
	c.system_identifier || '/' || pg_catalog.current_database() || '/' || s.nspname || '.' || r.relname || '/' AS space,
	pg_catalog.has_table_privilege(r.relowner, 'outbox.event', 'INSERT') AS may_insert,
	pg_catalog.pg_get_userbyid(r.relowner) AS owner
FROM pg_catalog.pg_class AS r
JOIN pg_catalog.pg_namespace AS s ON s.oid = r.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN pg_catalog.pg_control_system() AS c
WHERE r.oid = pg_catalog.to_regclass($1)
ORDER BY a.attnum
