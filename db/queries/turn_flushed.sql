-- How far the WAL is on disk.
SELECT pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn
