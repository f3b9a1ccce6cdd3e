-- A waiting range is out up to a seq: entry, seq, events.
UPDATE outbox.waiting SET from_seq = $2::bigint + 1, events = greatest(events - $3::bigint, 1)
WHERE entry = $1::bigint AND from_seq <= $2::bigint
