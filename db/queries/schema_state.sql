-- What stands in this database under the names outbox and inbox. One row, whoever asks.
-- foreign_inbox: something is in inbox, and not what our migrations make there.
SELECT n.oid IS NOT NULL AS present,
	n.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = n.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid)) AS occupied,
	v.oid IS NOT NULL AS ours,
	v.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
		AND pg_catalog.has_table_privilege(v.oid, 'SELECT') AS readable,
	i.oid IS NOT NULL AND (EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.relnamespace = i.oid)
		OR EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = i.oid))
		AND (v.oid IS NULL OR (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c WHERE c.relnamespace = i.oid
			AND (c.relname, c.relkind) IN (('position', 'r'), ('slot', 'r'), ('seen', 'p'))) < 3) AS foreign_inbox
FROM (VALUES (1)) AS one (row)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'outbox'
LEFT JOIN pg_catalog.pg_namespace AS i ON i.nspname = 'inbox'
LEFT JOIN pg_catalog.pg_class AS v ON v.relnamespace = n.oid AND v.relname = 'schema_version' AND v.relkind = 'r'
	AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a
		WHERE a.attrelid = v.oid AND a.attname IN ('number', 'name', 'applied_at') AND NOT a.attisdropped) = 3
