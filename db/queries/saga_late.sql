-- Steps that are longer in their state than their sla, the latest first.
SELECT s.saga_id, s.name, s.step, s.state, s.since_at, (EXTRACT(epoch FROM s.age) * 1000000)::bigint AS age_us,
	(EXTRACT(epoch FROM s.sla) * 1000000)::bigint AS sla_us
FROM saga.late AS s ORDER BY s.age - s.sla DESC LIMIT $1::bigint
