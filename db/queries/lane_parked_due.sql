-- Due messages of these lanes, at most $6 of them; past the first no more than $7 bytes of payload, for they are all in
-- memory at once.
SELECT entry, topic, partition, message_offset, lane_hash, key_bytes, id, message_id, headers, payload,
	(EXTRACT(epoch FROM "time") * 1000000)::bigint AS time_us, blocking, attempts, class, code, reason, request, dead_letter,
	begun, batch
FROM (
	SELECT d.*, row_number() OVER due AS n, sum(coalesce(octet_length(d.payload), 0)) OVER due AS bytes
	FROM inbox.parked_due($1, $2, $3, $4, $5, $6) AS d
	WINDOW due AS (ORDER BY d.due_at, d.entry)
) AS e WHERE n = 1 OR bytes <= $7::bigint ORDER BY due_at, entry
