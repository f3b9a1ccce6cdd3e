-- Makes ranges ahead. $1 events per range, $2 ranges.
SELECT outbox.make_partitions($1::bigint, $2::int)
