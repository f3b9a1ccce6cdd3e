-- The migrations that this database has seen, and of what text. By way of jsonb: columns that came later may be missing.
SELECT v.number, v.name, pg_catalog.to_jsonb(v) ->> 'sha256' AS sha256,
	pg_catalog.to_char(v.applied_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS applied_at,
	pg_catalog.to_jsonb(v) ->> 'oldest' AS oldest
FROM outbox.schema_version AS v ORDER BY v.number
