-- A waiting range is out.
DELETE FROM outbox.waiting WHERE entry = $1::bigint
