-- What became of parked messages that somebody asked for. $1: group, $2-$6: their entries, topics, partitions, offsets,
-- keys (arrays), $7: only dead letters behind this entry can have come of it, $8: when it was asked. Per message: its place in the arrays,
-- whether it is still there; request of it or else of the first of its key now, whether that failed (since), reason; how
-- many are left of the key, how many dead letters were made of it. A key is NULL when nothing waits behind the message.
WITH made AS MATERIALIZED (
	SELECT d.topic, d.partition, d.message_offset, d.key_bytes, d.retry_of FROM inbox.dead_letter AS d
	WHERE d.entry > $7::bigint AND d."group" = $1 AND d.state <> 'dropped' AND d.edited_from IS NULL
), by_key AS (
	SELECT m.topic, m.partition, m.key_bytes, count(*) AS n FROM made AS m WHERE m.retry_of IS NULL GROUP BY 1, 2, 3
), by_place AS (
	SELECT m.topic, m.partition, m.message_offset, count(*) AS n FROM made AS m GROUP BY 1, 2, 3
)
SELECT u.n - 1, own.entry IS NOT NULL, coalesce(own.request, head.request),
	CASE WHEN own.entry IS NULL THEN head.class <> '' ELSE own.failed_at > $8::timestamptz END,
	coalesce(own.reason, head.reason), CASE WHEN u.k IS NULL THEN (own.entry IS NOT NULL)::integer ELSE behind.n END,
	coalesce(k.n, s.n, 0)
FROM unnest($2::bigint[], $3::text[], $4::integer[], $5::bigint[], $6::bytea[]) WITH ORDINALITY AS u (e, t, p, o, k, n)
LEFT JOIN inbox.parked AS own ON own.entry = u.e
CROSS JOIN LATERAL (
	SELECT count(*) AS n FROM inbox.parked AS f
	WHERE f."group" = $1 AND f.topic = u.t AND f.partition = u.p AND f.blocking
	  AND substring(f.key_bytes FROM 1 FOR 100) = substring(u.k FROM 1 FOR 100) AND f.key_bytes = u.k) AS behind
LEFT JOIN LATERAL (
	SELECT h.request, h.class, h.reason FROM inbox.parked AS h
	WHERE own.entry IS NULL AND h."group" = $1 AND h.topic = u.t AND h.partition = u.p AND h.blocking
	  AND substring(h.key_bytes FROM 1 FOR 100) = substring(u.k FROM 1 FOR 100) AND h.key_bytes = u.k
	ORDER BY h.message_offset LIMIT 1) AS head ON true
LEFT JOIN by_key AS k ON k.topic = u.t AND k.partition = u.p AND k.key_bytes = u.k
LEFT JOIN by_place AS s ON u.k IS NULL AND s.topic = u.t AND s.partition = u.p AND s.message_offset = u.o
ORDER BY u.n
