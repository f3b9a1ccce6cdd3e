-- What is behind a released or skipped head follows it without being asked for.
UPDATE outbox.parked SET request = 'retry' WHERE topic = $1 AND left(key, 100) = left($2, 100) AND key = $2 AND request IS NULL
