-- The migrations that this database has seen.
SELECT number, name FROM outbox.schema_version ORDER BY number
