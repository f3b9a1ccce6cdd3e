-- Sagas as they stand, for saga_core to say what an order would do. $1 ids; alive or over, those that are not there are left out.
SELECT DISTINCT ON (i.id) i.id, i.name, i.version, i.state, i.turned, i.granted, i.data, i.steps, i.failed_step, i.why,
	(EXTRACT(epoch FROM i.started_at) * 1000000)::bigint, (EXTRACT(epoch FROM i.deadline_at) * 1000000)::bigint,
	(EXTRACT(epoch FROM i.since_at) * 1000000)::bigint, (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint,
	d.text
FROM saga.instance AS i LEFT JOIN saga.definition AS d ON d.name = i.name AND d.version = i.version
WHERE i.id = ANY ($1::uuid[]) ORDER BY i.id, i.slot
