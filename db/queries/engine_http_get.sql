-- GET /sagas/{id}
SELECT pg_catalog.json_build_object('saga_id', i.id, 'name', i.name, 'version', i.version, 'state', i.state, 'why', i.why,
	'started_at', i.started_at, 'finished_at', i.finished_at, 'data', i.data,
	'steps', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object('step', s.step, 'state', s.state) ORDER BY s.place)
		FROM saga.step AS s WHERE s.saga_id = i.id))
FROM saga.instance AS i WHERE i.id = $1::uuid ORDER BY i.slot LIMIT 1
