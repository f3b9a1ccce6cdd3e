-- The keys with a request, behind a topic and key (NULL: from the first on), at most so many.
SELECT DISTINCT topic, key FROM outbox.parked
WHERE request IS NOT NULL AND ($1::text IS NULL OR (topic, key) > ($1::text, $2::text))
ORDER BY topic, key LIMIT $3::int
