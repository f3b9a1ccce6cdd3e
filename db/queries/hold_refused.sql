-- The head of a key was refused again: it and everything behind it stay.
UPDATE outbox.parked SET request = NULL, head = head OR seq = $3::bigint,
	attempts = attempts + (seq = $3::bigint)::int,
	reason = CASE WHEN seq = $3::bigint THEN $4 ELSE reason END,
	code = CASE WHEN seq = $3::bigint THEN $5 ELSE code END
WHERE topic = $1 AND left(key, 100) = left($2, 100) AND key = $2
