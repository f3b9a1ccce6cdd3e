-- The oldest row not covered by the committed position (us), looked up while nothing streams.
-- $1 snapshot, $2 seq below which all was decided.
SELECT (extract(epoch FROM least(greatest(created_at, 'epoch'), '9999-12-31')) * 1000000)::bigint FROM outbox.event
WHERE seq > $2::bigint AND NOT pg_catalog.pg_visible_in_snapshot(xid, $1::pg_snapshot)
ORDER BY seq LIMIT 1
