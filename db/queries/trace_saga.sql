-- A saga as the engine, or a service's copy, or a participant of this database knows it. $1 its id.
SELECT 'engine' AS who, i.name, i.version, i.state, (SELECT string_agg(s.step || ' ' || s.state, ', ' ORDER BY s.place)
		FROM saga.step AS s WHERE s.saga_id = i.id) AS steps, i.why,
	to_char(i.since_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since
FROM (SELECT * FROM saga.instance AS a WHERE a.id = $1::uuid ORDER BY a.slot LIMIT 1) AS i
UNION ALL
SELECT 'participant', NULL, NULL, CASE WHEN b.undo_outcome IS NOT NULL THEN 'undo ' || b.undo_outcome ELSE coalesce('do ' || b.do_outcome, 'do begun') END,
	b.step, b.do_why, to_char(b.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
FROM saga.barrier AS b WHERE b.saga_id = $1::uuid
