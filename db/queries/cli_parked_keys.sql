-- What holds keys back in a group: the first message of each key (each message without a key is one), the longest
-- held first. $1: group, $2-$4: topic, partition, key, $5: only those without a key, $6-$7: class, code (a trailing *
-- matches any end), $8: most; NULL: any. Dead letters on another try hold nothing back: left out.
SELECT p.entry, p.topic, p.partition, p.message_offset, p.key, p.id, p.class, p.code, p.reason, p.attempts, p.request,
	CASE WHEN p.key_bytes IS NULL THEN 1 ELSE (
		SELECT count(*) FROM inbox.parked AS f
		WHERE f."group" = p."group" AND f.topic = p.topic AND f.partition = p.partition AND f.blocking
		  AND substring(f.key_bytes FROM 1 FOR 100) = substring(p.key_bytes FROM 1 FOR 100)
		  AND f.key_bytes = p.key_bytes) END,
	to_char(p.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	greatest(0, extract(epoch FROM p.due_at - clock_timestamp())),
	to_char(p.parked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	extract(epoch FROM clock_timestamp() - p.parked_at)::bigint, p.key_bytes
FROM inbox.parked AS p
WHERE p."group" = $1 AND p.blocking AND p.due_at IS NOT NULL AND ($2::text IS NULL OR p.topic = $2)
  AND ($3::integer IS NULL OR p.partition = $3) AND ($4::text IS NULL OR p.key = $4) AND (NOT $5::boolean OR p.key_bytes IS NULL)
  AND ($6::text IS NULL OR p.class = $6)
  AND ($7::text IS NULL OR p.code = $7 OR right($7, 1) = '*' AND starts_with(p.code, left($7, -1)))
ORDER BY p.parked_at, p.entry LIMIT $8::bigint
