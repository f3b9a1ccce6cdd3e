-- The first events of some keys, key by key, each in order: arrays of topic and key; most events.
SELECT k.n, p.seq
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (topic, key, n)
CROSS JOIN LATERAL (
	SELECT seq FROM outbox.parked
	WHERE topic = k.topic AND left(key, 100) = left(k.key, 100) AND key = k.key ORDER BY seq LIMIT $3::int
) AS p
ORDER BY k.n, p.seq LIMIT $3::int
