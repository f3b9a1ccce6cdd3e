SELECT DISTINCT (extract(epoch FROM f.hour) * 1000000)::bigint AS hour FROM sink.file AS f
WHERE f.group_name = $1 AND f.topic = $2 AND f.hour >= 'epoch'::timestamptz + $3::bigint * interval '1 microsecond'
	AND f.hour < 'epoch'::timestamptz + $4::bigint * interval '1 microsecond'
ORDER BY 1 LIMIT $5::int
