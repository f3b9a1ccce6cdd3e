-- Parks events: arrays of seq, topic, key, head, reason, code. Twice is once: a crash between this and
-- the position parks the same events again.
INSERT INTO outbox.parked (seq, id, topic, key, type, reason, code, head, attempts, created_at)
SELECT e.seq, e.id, p.topic, p.key, e.type, p.reason, p.code, p.head, p.head::int, e.created_at
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[])
	AS p (seq, topic, key, head, reason, code)
JOIN outbox.event AS e ON e.seq = p.seq
ON CONFLICT (seq) DO NOTHING
