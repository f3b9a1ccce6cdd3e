-- The first events of a key, in order.
SELECT seq FROM outbox.parked WHERE topic = $1 AND left(key, 100) = left($2, 100) AND key = $2 ORDER BY seq LIMIT $3::int
