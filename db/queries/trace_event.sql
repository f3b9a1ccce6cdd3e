-- Events by id or by key, the newest of a key first; never the payload. There is no index on either: the whole outbox is read.
-- $1 id or NULL, $2 key or NULL, $3 the route's topic, $4 at most so many, $5 also the one before and the one behind the id's.
SELECT e.id, e.aggregateid AS key, e.type, e.aggregatetype, coalesce(e.topic, replace($3, '${aggregatetype}', e.aggregatetype)) AS topic,
	e.partition, e.seq, e.xid, to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at,
	(extract(epoch FROM e.created_at) * 1000000)::bigint AS created_us, e.headers ->> 'saga-id' AS saga, e.held, e.held_at, e.reason
FROM (
	SELECT v.id, v.aggregateid, v.type, v.aggregatetype, v.topic, v.partition, v.seq, v.xid::text, v.created_at, v.headers,
		CASE WHEN p.seq IS NOT NULL THEN CASE WHEN p.head THEN 'parked' ELSE 'behind' END WHEN k.seq IS NOT NULL THEN 'skipped'
			WHEN w.entry IS NOT NULL THEN 'waiting' END AS held,
		to_char(coalesce(p.parked_at, k.skipped_at, w.since) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS held_at,
		coalesce(p.reason, k.reason, w.reason) AS reason
	FROM outbox.event AS v LEFT JOIN outbox.parked AS p ON p.seq = v.seq LEFT JOIN outbox.skipped AS k ON k.seq = v.seq
	LEFT JOIN LATERAL (SELECT * FROM outbox.waiting AS x WHERE v.seq BETWEEN x.from_seq AND x.to_seq
		AND x.topic = coalesce(v.topic, replace($3, '${aggregatetype}', v.aggregatetype)) ORDER BY x.entry LIMIT 1) AS w ON true
	WHERE v.id = $1::uuid OR v.aggregateid = $2::text
		OR $5::boolean AND v.seq = ANY (ARRAY(SELECT n.seq FROM outbox.event AS t
			CROSS JOIN LATERAL ((SELECT b.seq FROM outbox.event AS b WHERE b.aggregateid = t.aggregateid
					AND b.aggregatetype = t.aggregatetype AND b.seq < t.seq ORDER BY b.seq DESC LIMIT 1)
				UNION ALL (SELECT a.seq FROM outbox.event AS a WHERE a.aggregateid = t.aggregateid
					AND a.aggregatetype = t.aggregatetype AND a.seq > t.seq ORDER BY a.seq LIMIT 1)) AS n
			WHERE t.id = $1::uuid))
	UNION ALL
	SELECT s.id, s.aggregateid, s.type, s.aggregatetype, s.topic, s.partition, NULL, NULL, s.created_at, s.headers, 'scheduled',
		to_char(s.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), NULL
	FROM outbox.scheduled AS s WHERE s.id = $1::uuid OR s.aggregateid = $2::text) AS e
ORDER BY e.seq DESC NULLS FIRST LIMIT $4::bigint
