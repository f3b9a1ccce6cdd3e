-- Gives up the events of a key that an operator asked to skip; the audit stays.
WITH gone AS (
	DELETE FROM outbox.parked WHERE topic = $1 AND left(key, 100) = left($2, 100) AND key = $2 AND request = 'skip'
	RETURNING seq, id, topic, key, type, reason, code, requested_by, head
), audit AS (
	INSERT INTO outbox.skipped (seq, id, topic, key, type, reason, code, skipped_by)
	SELECT seq, id, topic, key, type, reason, code, requested_by FROM gone
	ON CONFLICT (seq) DO NOTHING
)
-- When the head goes, what is behind it may go on.
SELECT count(*), coalesce(bool_or(head), false) FROM gone
