-- Asks the engine, all or none. $1 ids, $2 what, $3 step, $4 detail, $5 by whom; gives the entries to wait for, in the order of the ids.
SELECT saga.order_new(u.id, $2, $3, $4::jsonb, $5) FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, n) ORDER BY u.n
