-- Keys held back: how many, the oldest (us; created_at is the caller's and may be infinity), and whether
-- the event that failed is still there.
SELECT topic, key, count(*), (extract(epoch FROM least(greatest(min(created_at), 'epoch'), '9999-12-31')) * 1000000)::bigint,
	bool_or(head)
FROM outbox.parked GROUP BY topic, key
