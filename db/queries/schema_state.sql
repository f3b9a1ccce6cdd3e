-- What stands in this database under the names outbox, inbox and saga. One row, whoever asks.
-- foreign_inbox, foreign_saga: something is in there, and not what our migrations make.
SELECT n.oid IS NOT NULL AS present,
	n.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = n.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid)) AS occupied,
	v.oid IS NOT NULL AS ours,
	v.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
		AND pg_catalog.has_table_privilege(v.oid, 'SELECT') AS readable,
	i.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = i.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = i.oid))
		AND (v.oid IS NULL OR (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c WHERE c.relnamespace = i.oid
			AND (c.relname, c.relkind) IN (('position', 'r'), ('slot', 'r'), ('seen', 'p'))) < 3) AS foreign_inbox,
	g.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = g.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = g.oid))
		AND (v.oid IS NULL OR (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c WHERE c.relnamespace = g.oid
			AND (c.relname, c.relkind) IN (('instance', 'p'), ('slot', 'r'), ('barrier', 'p'))) < 3) AS foreign_saga
FROM (VALUES (1)) AS one (row)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'outbox'
LEFT JOIN pg_catalog.pg_namespace AS i ON i.nspname = 'inbox'
LEFT JOIN pg_catalog.pg_namespace AS g ON g.nspname = 'saga'
LEFT JOIN pg_catalog.pg_class AS v ON v.relnamespace = n.oid AND v.relname = 'schema_version' AND v.relkind = 'r'
	AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a
		WHERE a.attrelid = v.oid AND a.attname IN ('number', 'name', 'applied_at') AND NOT a.attisdropped) = 3
