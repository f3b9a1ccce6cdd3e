-- The same without a position: the oldest row above what the relay last reported.
SELECT (extract(epoch FROM least(greatest(created_at, 'epoch'), '9999-12-31')) * 1000000)::bigint FROM outbox.event
WHERE seq > coalesce((SELECT published_seq FROM outbox.relay), 0)
ORDER BY seq LIMIT 1
