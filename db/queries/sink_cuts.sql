SELECT first_offset, next_offset, state, coalesce(code, ''), coalesce(answer, ''), records, bytes,
	coalesce((extract(epoch FROM min_time) * 1000000)::bigint, -1), coalesce((extract(epoch FROM max_time) * 1000000)::bigint, -1),
	coalesce((extract(epoch FROM watermark) * 1000000)::bigint, -1), (extract(epoch FROM ceiling) * 1000000)::bigint,
	coalesce(letters::text, ''), (published_at IS NOT NULL)::int, (folded_at IS NOT NULL)::int
FROM sink.cut WHERE group_name = $1 AND topic = $2 AND partition = $3 AND target = $5 AND next_offset > $4
	AND (first_offset >= $4 OR state <> 'refused')
	AND first_offset >= coalesce((SELECT max(c.first_offset) FROM sink.cut AS c
		WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3 AND c.first_offset < $4), 0)
ORDER BY first_offset LIMIT 100
