-- Which keys may go, of arrays of topic and key: nothing of it is left, or its first event or one that had failed
-- was asked for. After a crash events that are parked behind the failed one may come before it.
SELECT k.n
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (topic, key, n)
LEFT JOIN outbox.parked AS p ON p.topic = k.topic AND left(p.key, 100) = left(k.key, 100) AND p.key = k.key
GROUP BY k.n
HAVING coalesce((array_agg(p.request ORDER BY p.seq))[1] = 'retry' OR bool_or(p.head AND p.request = 'retry'),
	count(p.seq) = 0)
