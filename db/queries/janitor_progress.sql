-- For people and for the view outbox.lag; the position itself lives in Kafka. $1 seq.
UPDATE outbox.relay SET published_seq = $1::bigint, published_at = clock_timestamp()
WHERE published_seq IS DISTINCT FROM $1::bigint
