-- Messages that a group holds back, key by key in order, and dead letters on another try when an id is given. $1: group,
-- $2-$4: topic, partition, key, $5: only those without a key, $6: id, $7: offset, $8: with payloads, $9: most; NULL: any.
SELECT p.entry, p.topic, p.partition, p.message_offset, p.key, p.id, p.type, p.class, p.code, p.reason, p.attempts, p.request,
	to_char(p.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	to_char(p."time" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	to_char(p.parked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	CASE WHEN p.due_at IS NULL THEN (
		SELECT h.message_offset FROM inbox.parked AS h
		WHERE h."group" = p."group" AND h.topic = p.topic AND h.partition = p.partition AND h.blocking
		  AND substring(h.key_bytes FROM 1 FOR 100) = substring(p.key_bytes FROM 1 FOR 100)
		  AND h.key_bytes = p.key_bytes
		ORDER BY h.message_offset LIMIT 1) END,
	p.dead_letter, octet_length(p.payload), CASE WHEN $8::boolean THEN p.payload END, p.key_bytes
FROM inbox.parked AS p
WHERE p."group" = $1 AND (p.blocking OR $6::text IS NOT NULL) AND ($2::text IS NULL OR p.topic = $2)
  AND ($3::integer IS NULL OR p.partition = $3) AND ($4::text IS NULL OR p.key = $4) AND (NOT $5::boolean OR p.key_bytes IS NULL)
  AND ($6::text IS NULL OR p.message_id = $6::uuid) AND ($7::bigint IS NULL OR p.message_offset = $7)
ORDER BY p.topic, p.partition, p.key_bytes, p.message_offset, p.entry LIMIT $9::bigint
