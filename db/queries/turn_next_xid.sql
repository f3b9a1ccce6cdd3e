-- Second of a turn: the next xid to be assigned, as (its low 32 bits - 3, a recent xid8 to widen them by).
-- A running writer may lie above the snapshot's xmax (the latest completed xid + 1), never above this.
SELECT pg_catalog.age('3'::xid), pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
