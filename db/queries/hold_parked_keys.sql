-- Keys held back, with how many and the oldest.
SELECT topic, key, count(*), (extract(epoch FROM min(created_at)) * 1000000)::bigint
FROM outbox.parked GROUP BY topic, key
