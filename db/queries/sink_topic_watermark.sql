-- How far the topic's manifests say, and whether the hour has files that the ledger has not any more.
SELECT (SELECT (extract(epoch FROM w.watermark) * 1000000)::bigint FROM sink.watermark AS w
		WHERE w.group_name = $1 AND w.topic = $2 AND w.partition = -1),
	EXISTS (SELECT FROM sink.pruned AS p
		WHERE p.group_name = $1 AND p.topic = $2 AND p.hour = 'epoch'::timestamptz + $3::bigint * interval '1 microsecond')
