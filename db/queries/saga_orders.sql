-- What was ordered for one saga, oldest first.
SELECT o.entry, o.what, o.step, o.detail, o.by, o.at, o.done_at, o.outcome, o.reason
FROM saga."order" AS o WHERE o.saga_id = $1::uuid ORDER BY o.entry
