-- What is behind the released or skipped head of a key follows it without being asked for: arrays of topic, key.
UPDATE outbox.parked AS p SET request = 'retry' FROM unnest($1::text[], $2::text[]) AS k (topic, key)
WHERE p.topic = k.topic AND left(p.key, 100) = left(k.key, 100) AND p.key = k.key AND p.request IS NULL
