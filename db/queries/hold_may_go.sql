-- Whether a key may go: nothing of it is left, or its first event or one that had failed was asked for. After
-- a crash events that are parked behind the failed one may come before it.
SELECT coalesce((array_agg(request ORDER BY seq))[1] = 'retry' OR bool_or(head AND request = 'retry'), count(*) = 0)
FROM outbox.parked WHERE topic = $1 AND left(key, 100) = left($2, 100) AND key = $2
