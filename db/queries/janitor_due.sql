-- The oldest scheduled event that is due and has not moved (us).
SELECT (extract(epoch FROM min(greatest(at, 'epoch'))) * 1000000)::bigint FROM outbox.scheduled WHERE at <= clock_timestamp()
