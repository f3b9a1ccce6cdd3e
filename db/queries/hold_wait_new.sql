-- A new range: topic, from_snapshot, to_snapshot, from_seq, to_seq, events, oldest (us), reason, code.
INSERT INTO outbox.waiting (topic, from_snapshot, to_snapshot, from_seq, to_seq, events, oldest, reason, code)
VALUES ($1, $2::pg_snapshot, $3::pg_snapshot, $4::bigint, $5::bigint, $6::bigint,
	to_timestamp($7::bigint / 1000000.0), $8, $9)
RETURNING entry
