-- Keys held back: how many, the oldest (us; created_at is the caller's and may be infinity), whether the
-- event that failed is still there, and where it begins.
SELECT topic, key, count(*), (extract(epoch FROM least(greatest(min(created_at), 'epoch'), '9999-12-31')) * 1000000)::bigint,
	bool_or(head), min(seq)
FROM outbox.parked GROUP BY topic, key
