-- One that is over, whole and locked; columns as those of engine_load
SELECT 1, 2, name, version, state, turned, granted, false, data, steps, failed_step, why,
	(extract(epoch FROM started_at) * 1000000)::bigint, (extract(epoch FROM deadline_at) * 1000000)::bigint,
	(extract(epoch FROM since_at) * 1000000)::bigint, NULL, part, correlation
FROM saga.ended($1::uuid)
