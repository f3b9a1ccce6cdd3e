-- Sagas that wait for a person, the longest first.
SELECT s.saga_id, s.name, s.version, s.step, s.op, s.why, s.tries, s.since_at,
	(EXTRACT(epoch FROM s.age) * 1000000)::bigint AS age_us
FROM saga.stuck AS s ORDER BY s.since_at LIMIT $1::bigint
