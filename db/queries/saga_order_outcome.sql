-- What became of orders, and where their sagas stand now. $1 entries; outcome NULL: not done yet.
SELECT o.entry, o.outcome, o.reason, i.state, i.at_step
FROM saga."order" AS o LEFT JOIN LATERAL (
	SELECT x.state, (SELECT pg_catalog.string_agg(s.step || ' ' || s.state, ', ' ORDER BY s.place) FROM saga.step AS s
		WHERE s.saga_id = x.id AND s.state IN ('DOING', 'UNDOING', 'STUCK')) AS at_step
	FROM saga.instance AS x WHERE x.id = o.saga_id ORDER BY x.slot LIMIT 1) AS i ON true
WHERE o.entry = ANY ($1::bigint[])
