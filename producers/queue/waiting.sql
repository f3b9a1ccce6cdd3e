SELECT t.concert_id, t.number, (extract(epoch FROM t.active_at) * 1000000)::bigint FROM queue.queue_token AS t
WHERE t.state = 'WAITING' AND (t.concert_id, t.number) > ($1::bigint, $2::bigint)
ORDER BY t.concert_id, t.number LIMIT $3::integer
