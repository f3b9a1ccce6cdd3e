-- Schemas that were made before sums were kept have no place for them. Looked at first: to add a column that is there
-- would wait for whoever reads the table, a dump for instance.
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'outbox.schema_version'::pg_catalog.regclass
		AND attname = 'sha256' AND NOT attisdropped) THEN
		ALTER TABLE outbox.schema_version ADD COLUMN sha256 text;
	END IF;
END $$
