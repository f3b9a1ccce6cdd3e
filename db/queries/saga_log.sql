-- What happened to one saga after $2 (a seq; 0: from the start), at most $3 rows.
SELECT l.seq, l.at, l.what, l.step, l.op, l.command_id, l.detail, l.by
FROM saga.log AS l WHERE l.saga_id = $1::uuid AND l.seq > $2::bigint ORDER BY l.seq LIMIT $3::bigint
