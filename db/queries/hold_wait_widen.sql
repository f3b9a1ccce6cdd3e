-- A range grows: entry, to_snapshot, from_seq, to_seq, events, oldest (us), frozen.
UPDATE outbox.waiting SET to_snapshot = $2::pg_snapshot, from_seq = $3::bigint, to_seq = $4::bigint,
	events = $5::bigint, oldest = to_timestamp($6::bigint / 1000000.0), frozen = $7::boolean
WHERE entry = $1::bigint
