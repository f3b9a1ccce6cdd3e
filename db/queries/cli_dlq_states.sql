-- What became of dead letters that are tried again. $1: their entries, $2: only dead letters behind this entry can have
-- come of it. A state and, when the other try failed too, the dead letter it ended as.
SELECT d.entry, d.state, n.entry, n.class, n.code, n.reason
FROM inbox.dead_letter AS d
LEFT JOIN inbox.dead_letter AS n ON n.retry_of = d.entry AND n.entry > $2::bigint
WHERE d.entry = ANY ($1::bigint[]) ORDER BY d.entry
