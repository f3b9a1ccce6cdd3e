WITH mine AS (
	DELETE FROM queue.todo WHERE entry IN (SELECT d.entry FROM queue.todo AS d ORDER BY d.entry LIMIT $1::integer
		FOR UPDATE SKIP LOCKED)
	RETURNING token_id)
SELECT t.concert_id, t.number, CASE t.state WHEN 'WAITING' THEN 'W' WHEN 'ACTIVE' THEN 'A' WHEN 'COMPLETED' THEN 'C' ELSE 'E' END,
	t.version, (extract(epoch FROM t.expire_at) * 1000000)::bigint, (extract(epoch FROM t.active_at) * 1000000)::bigint
FROM queue.queue_token AS t JOIN mine ON mine.token_id = t.token_id ORDER BY t.concert_id, t.number
