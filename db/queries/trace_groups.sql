-- What the consumer groups of this database know of one message. $1 id, $2 topic, $3 partition, $4 offset: NULL where not known.
WITH dead AS (
	SELECT DISTINCT ON (d."group") d.* FROM inbox.dead_letter AS d
	WHERE d.message_id = $1::uuid OR (d.topic = $2::text AND d.partition = $3::integer AND d.message_offset = $4::bigint)
	ORDER BY d."group", d.entry DESC
), held AS (
	SELECT DISTINCT ON (p."group") p.* FROM inbox.parked AS p
	WHERE p.message_id = $1::uuid OR (p.topic = $2 AND p.partition = $3 AND p.message_offset = $4)
	ORDER BY p."group", p.entry DESC
), seen AS (
	SELECT DISTINCT s."group" FROM inbox.seen AS s WHERE s.message_id = $1::uuid
), place AS (
	SELECT o."group", min(o.next_offset) AS next FROM inbox.position AS o WHERE o.topic = $2 AND o.partition = $3 GROUP BY o."group"
), groups AS (
	SELECT d."group" FROM dead AS d UNION SELECT h."group" FROM held AS h UNION SELECT s."group" FROM seen AS s
	UNION SELECT p."group" FROM place AS p
)
SELECT g."group", CASE WHEN h.entry IS NOT NULL AND (h.attempts > 0 OR h.class IS NOT NULL) THEN 'parked' WHEN h.entry IS NOT NULL THEN 'behind'
		WHEN d.state = 'dead' THEN 'dead_letter' WHEN d.state = 'dropped' THEN 'dropped' WHEN s."group" IS NOT NULL OR d.state = 'retried' THEN 'handled'
		WHEN p.next > $4 THEN 'passed' ELSE 'to_do' END AS state,
	coalesce(h.attempts, d.attempts) AS attempts, coalesce(h.class, d.class) AS class, coalesce(h.code, d.code) AS code,
	coalesce(h.reason, d.reason) AS reason,
	to_char(coalesce(h.parked_at, d.buried_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at,
	CASE WHEN h.entry IS NULL THEN d.entry END AS dead_letter, coalesce(h.topic, d.topic) AS topic,
	coalesce(h.partition, d.partition) AS partition, coalesce(h.message_offset, d.message_offset) AS message_offset,
	coalesce(h.headers, d.headers) ->> 'saga-id' AS saga
FROM groups AS g LEFT JOIN dead AS d ON d."group" = g."group" LEFT JOIN held AS h ON h."group" = g."group"
LEFT JOIN seen AS s ON s."group" = g."group" LEFT JOIN place AS p ON p."group" = g."group"
ORDER BY g."group"
