SELECT (SELECT (extract(epoch FROM c.watermark) * 1000000)::bigint FROM sink.cut AS c
	WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3 AND c.first_offset < $4
		AND c.watermark IS NOT NULL ORDER BY c.first_offset DESC LIMIT 1),
	(SELECT c.target FROM sink.cut AS c WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3
		ORDER BY c.first_offset DESC LIMIT 1)
