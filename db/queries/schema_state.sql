-- What stands in this database under the name outbox. One row, whoever asks.
SELECT n.oid IS NOT NULL AS present,
	n.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = n.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid)) AS occupied,
	v.oid IS NOT NULL AS ours,
	v.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
		AND pg_catalog.has_table_privilege(v.oid, 'SELECT') AS readable
FROM (VALUES (1)) AS one (row)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'outbox'
LEFT JOIN pg_catalog.pg_class AS v ON v.relnamespace = n.oid AND v.relname = 'schema_version' AND v.relkind = 'r'
	AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a
		WHERE a.attrelid = v.oid AND a.attname IN ('number', 'name', 'applied_at') AND NOT a.attisdropped) = 3
