SELECT r.job, p.topic, p.partition, p.next_offset, p.to_offset,
	(SELECT CASE WHEN s.slot = 1 THEN NULL ELSE (EXTRACT(epoch FROM s.opened_at) * 1000000)::bigint END
	 FROM inbox.slot AS s ORDER BY s.slot LIMIT 1)
FROM inbox.replay AS r JOIN inbox.replay_part AS p ON p.job = r.job
WHERE r."group" = $1 AND r.state = 'running' AND p.next_offset < p.to_offset
ORDER BY r.job, p.topic, p.partition
