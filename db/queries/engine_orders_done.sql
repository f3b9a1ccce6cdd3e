-- Orders are done
SELECT saga.orders_done($1, $2, $3)
