SELECT t.concert_id, t.number, CASE t.state WHEN 'WAITING' THEN 'W' WHEN 'ACTIVE' THEN 'A' WHEN 'COMPLETED' THEN 'C' ELSE 'E' END,
	t.version, (extract(epoch FROM t.expire_at) * 1000000)::bigint, (extract(epoch FROM t.good_until) * 1000000)::bigint
FROM queue.queue_token AS t WHERE (t.concert_id, t.number) > ($1::bigint, $2::bigint)
ORDER BY t.concert_id, t.number LIMIT $3::integer
