-- Rows of one range whose transaction id this server has not assigned: restored, replicated or written by
-- hand. $1 from_seq, $2 to_seq.
SELECT count(*), min(seq) FROM outbox.event
WHERE seq >= $1::bigint AND seq < $2::bigint
	AND xid >= (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()))
