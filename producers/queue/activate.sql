SELECT a.number, CASE a.state WHEN 'WAITING' THEN 'W' WHEN 'ACTIVE' THEN 'A' WHEN 'COMPLETED' THEN 'C' ELSE 'E' END,
	a.version, a.expire_us
FROM queue.activate($1::bigint, $2::bigint[], $3::bigint * interval '1 microsecond') AS a
