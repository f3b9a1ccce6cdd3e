-- Drops one of them if nothing in it is owed. $1 leaf, $2 snapshot, $3 low, $4 keep (us).
SELECT outbox.drop_partition($1, $2::pg_snapshot, $3::bigint, $4::bigint * interval '1 microsecond')
