-- Dead letters not yet on the topic, from entry $2 on: at most $3 of them, and past the first no more than $4 bytes.
SELECT entry, topic, partition, message_offset, key_bytes, headers, payload, coalesce(id, ''), coalesce(class, ''),
	coalesce(code, ''), coalesce(reason, ''), attempts, coalesce((extract(epoch FROM "time") * 1000)::bigint, -1)
FROM (
	SELECT d.*, sum(coalesce(octet_length(d.payload), 0)) OVER (ORDER BY d.entry) AS bytes,
		row_number() OVER (ORDER BY d.entry) AS n
	FROM (SELECT * FROM inbox.dead_letter WHERE "group" = $1 AND published_at IS NULL AND state = 'dead'
		AND entry > $2::bigint ORDER BY entry LIMIT $3::bigint) AS d
) AS e WHERE n = 1 OR bytes <= $4::bigint ORDER BY entry
