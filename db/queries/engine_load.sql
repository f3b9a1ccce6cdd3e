-- Instances by id, locked. $1 ids, $2 leave out what another transaction has locked
SELECT ord, found, name, version, state, turned, granted, lock_free, data, steps, failed_step, why,
	(extract(epoch FROM started_at) * 1000000)::bigint, (extract(epoch FROM deadline_at) * 1000000)::bigint,
	(extract(epoch FROM since_at) * 1000000)::bigint, (extract(epoch FROM due_at) * 1000000)::bigint, part, correlation,
	(extract(epoch FROM now) * 1000000)::bigint
FROM saga.load($1, $2)
