SELECT status, slug, detail, member, retry_after, slow_ms, answer
FROM platform.ingest($1::jsonb, $2::boolean, pg_catalog.decode($3, 'hex'), pg_catalog.decode($4, 'hex'))
