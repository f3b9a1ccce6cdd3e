-- One migrator at a time in this database; until the end of the transaction. "postride" in ASCII.
SELECT pg_catalog.pg_advisory_xact_lock(8101821198635721829)
