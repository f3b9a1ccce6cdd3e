SELECT entry, topic, partition, message_offset, lane_hash, key_bytes, id, message_id, headers, payload,
	(EXTRACT(epoch FROM "time") * 1000000)::bigint AS time_us, blocking, attempts, class, code, reason, request, dead_letter
FROM inbox.parked_due($1, $2, $3, $4, $5, $6)
