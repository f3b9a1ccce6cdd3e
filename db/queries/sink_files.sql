SELECT path, coalesce(temp, ''), (extract(epoch FROM hour) * 1000000)::bigint, records, bytes, encode(sha256, 'hex'),
	first_offset, last_offset, coalesce((extract(epoch FROM min_time) * 1000000)::bigint, -1),
	coalesce((extract(epoch FROM max_time) * 1000000)::bigint, -1), late::int
FROM sink.file WHERE group_name = $1 AND topic = $2 AND partition = $3 AND cut_first = $4 ORDER BY path
