-- The steps of one saga, in order.
SELECT s.step, s.state, s.op, s.tries, s.generation, s.waits, s.due_at, s.since_at, s.why
FROM saga.step AS s WHERE s.saga_id = $1::uuid ORDER BY s.place
