-- How far all partitions of a topic are together, and how far its manifests say. -1: not known.
SELECT CASE WHEN bool_and(w.at IS NOT NULL) THEN (extract(epoch FROM min(w.at)) * 1000000)::bigint ELSE -1 END,
	coalesce((SELECT (extract(epoch FROM t.watermark) * 1000000)::bigint FROM sink.watermark AS t
		WHERE t.group_name = $1 AND t.topic = $2 AND t.partition = -1), -1)
FROM generate_series(0, $3::int - 1) AS p (n) CROSS JOIN LATERAL (SELECT greatest(
	(SELECT c.watermark FROM sink.cut AS c WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = p.n
		AND c.state = 'published' AND c.watermark IS NOT NULL ORDER BY c.first_offset DESC LIMIT 1),
	(SELECT m.watermark FROM sink.watermark AS m WHERE m.group_name = $1 AND m.topic = $2 AND m.partition = p.n)) AS at) AS w
