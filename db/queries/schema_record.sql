-- Records one migration, in the transaction that applied it.
INSERT INTO outbox.schema_version (number, name, sha256) VALUES ($1::integer, $2, $3)
