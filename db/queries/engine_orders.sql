-- Orders that wait
SELECT entry, saga_id, what, step, detail, by FROM saga.orders_waiting($1, $2)
