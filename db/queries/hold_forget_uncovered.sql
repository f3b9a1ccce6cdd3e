-- Parked events that the committed position has not stepped over, for the relay died between the two: they
-- are read again, and are parked again or not. $1 from_snapshot, $2 to_snapshot, $3 seq inside of it, $4 top,
-- $5 low: what is not above it is covered.
DELETE FROM outbox.parked AS p USING outbox.event AS e
WHERE p.seq > $5::bigint AND e.seq = p.seq AND (p.seq > $4::bigint OR NOT (
	coalesce(pg_catalog.pg_visible_in_snapshot(e.xid, $1::pg_snapshot), false)
	OR p.seq <= $3::bigint AND coalesce(pg_catalog.pg_visible_in_snapshot(e.xid, $2::pg_snapshot), false)))
