-- Ranges waiting for their topic, oldest first.
SELECT entry, topic, from_snapshot, to_snapshot, from_seq, to_seq, events,
	(extract(epoch FROM oldest) * 1000000)::bigint, frozen, coalesce(reason, ''), coalesce(code, '')
FROM outbox.waiting ORDER BY entry
