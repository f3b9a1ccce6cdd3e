-- One relay at a time per outbox, for comfort; safety is the transactional id. 0x504F5354 is "POST".
SELECT pg_catalog.pg_try_advisory_lock(1347375956, 1)
