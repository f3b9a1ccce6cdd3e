-- One dead letter, whole. $1: entry.
SELECT d.entry, d."group", d.topic, d.partition, d.message_offset,
	coalesce(d.key, 'base64:' || translate(encode(d.key_bytes, 'base64'), E'\n', '')), d.id, d.message_id, d.type,
	d.class, d.code, d.reason, d.attempts, d.state, d.edited_from, d.edited_to, d.note,
	to_char(d.time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	to_char(d.first_failed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	to_char(d.buried_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	to_char(d.published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
	d.headers, d.payload, d.key_bytes
FROM inbox.dead_letter AS d WHERE d.entry = $1::bigint
