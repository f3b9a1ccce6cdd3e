-- The keys with a request.
SELECT DISTINCT topic, key FROM outbox.parked WHERE request IS NOT NULL ORDER BY topic, key LIMIT 1000
