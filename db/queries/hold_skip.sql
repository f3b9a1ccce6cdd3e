-- Gives up the events that an operator asked to skip, of arrays of topic and key; the audit stays.
WITH gone AS (
	DELETE FROM outbox.parked AS p USING unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (topic, key, n)
	WHERE p.topic = k.topic AND left(p.key, 100) = left(k.key, 100) AND p.key = k.key AND p.request = 'skip'
	RETURNING k.n, p.seq, p.id, p.topic, p.key, p.type, p.reason, p.code, p.requested_by, p.head
), audit AS (
	INSERT INTO outbox.skipped (seq, id, topic, key, type, reason, code, skipped_by)
	SELECT seq, id, topic, key, type, reason, code, requested_by FROM gone
	ON CONFLICT (seq) DO NOTHING
)
-- When the head goes, what is behind it may go on.
SELECT n, count(*), bool_or(head) FROM gone GROUP BY n
