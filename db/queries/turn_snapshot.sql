-- Third of a turn: the snapshot.
SELECT pg_catalog.pg_current_snapshot()
