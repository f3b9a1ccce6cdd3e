-- Ranges that are decided as of the committed position. $1 low.
SELECT leaf FROM outbox.partitions WHERE to_seq <= $1::bigint + 1 ORDER BY from_seq LIMIT 100
