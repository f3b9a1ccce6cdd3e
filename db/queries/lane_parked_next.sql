-- What waits of one key, in order: at most $5 messages; past the first no more than $6 bytes of payload.
SELECT entry, topic, partition, message_offset, lane_hash, key_bytes, id, message_id, headers, payload,
	(EXTRACT(epoch FROM "time") * 1000000)::bigint AS time_us, blocking, attempts, class, code, reason, request, dead_letter,
	begun, batch
FROM (
	SELECT d.*, row_number() OVER one AS n, sum(coalesce(octet_length(d.payload), 0)) OVER one AS bytes
	FROM inbox.parked_next($1, $2, $3, $4, $5) AS d
	WINDOW one AS (ORDER BY d.message_offset)
) AS e WHERE n = 1 OR bytes <= $6::bigint ORDER BY message_offset
