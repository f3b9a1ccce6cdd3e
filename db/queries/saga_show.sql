-- One saga, alive or over. No row: there is none, or it has left.
SELECT i.id, i.name, i.version, i.state, i.turned, i.granted, i.data, i.failed_step, i.why, i.started_at, i.deadline_at, i.since_at,
	i.updated_at, i.finished_at, i.due_at, i.part, i.correlation, d.style, d.text AS definition,
	(SELECT pg_catalog.array_agg(l.lock ORDER BY l.lock) FROM saga.lock AS l WHERE l.saga_id = i.id) AS locks,
	pg_catalog.clock_timestamp() AS now
FROM saga.instance AS i LEFT JOIN saga.definition AS d ON d.name = i.name AND d.version = i.version
WHERE i.id = $1::uuid ORDER BY i.slot LIMIT 1
