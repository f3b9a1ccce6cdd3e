-- Records one migration, in the transaction that applied it.
INSERT INTO outbox.schema_version (number, name) VALUES ($1::integer, $2)
