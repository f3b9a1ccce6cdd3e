-- Rows whose transaction id this server has not assigned: restored, replicated or written by hand.
SELECT count(*), min(seq) FROM outbox.event
WHERE xid >= (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()))
