-- Schema sink: which ranges of offsets were cut out of topics, into which files, and what payloads look like. Run whole
-- when its text has changed: all of it may be run again. Written by consumers of kind sink only, read by everybody who
-- wants to know what is complete. A cut is recorded before anybody can see it, and published in the transaction that
-- moves the position in inbox.position: consumers/sink/cut.c is the only writer of its state.
CREATE SCHEMA IF NOT EXISTS sink;

CREATE TABLE IF NOT EXISTS sink.cut (
	group_name   text NOT NULL,
	topic        text NOT NULL,
	partition    integer NOT NULL,
	first_offset bigint NOT NULL,
	next_offset  bigint NOT NULL,
	target       text NOT NULL CHECK (target IN ('files', 's3', 'http', 'table')),
	state        text NOT NULL CHECK (state IN ('recorded', 'published', 'refused')),
	epoch        bigint NOT NULL,
	records      bigint NOT NULL,
	bytes        bigint NOT NULL,
	min_time     timestamptz, -- of its records
	max_time     timestamptz,
	watermark    timestamptz, -- the youngest record of the partition up to its end that is not above the ceiling
	ceiling      timestamptz, -- what is above it was the future, which ends no hour
	letters      bigint[], -- offsets in it that are dead letters once it is published: late ones
	code         text, -- refused: what it was refused with
	answer       text, -- what the other side said
	recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
	published_at timestamptz, -- first or again
	PRIMARY KEY (group_name, topic, partition, first_offset),
	CHECK (first_offset < next_offset)
);

-- The first builds of 0.1.0 had neither.
ALTER TABLE sink.cut ADD COLUMN IF NOT EXISTS ceiling timestamptz, ADD COLUMN IF NOT EXISTS letters bigint[];

CREATE TABLE IF NOT EXISTS sink.file (
	group_name   text NOT NULL,
	topic        text NOT NULL,
	partition    integer NOT NULL,
	cut_first    bigint NOT NULL,
	path         text NOT NULL, -- below the directory or prefix
	temp         text, -- where it is until it is published
	hour         timestamptz NOT NULL,
	records      bigint NOT NULL,
	bytes        bigint NOT NULL,
	sha256       bytea NOT NULL,
	first_offset bigint NOT NULL,
	last_offset  bigint NOT NULL,
	min_time     timestamptz,
	max_time     timestamptz,
	late         boolean NOT NULL,
	PRIMARY KEY (group_name, path),
	FOREIGN KEY (group_name, topic, partition, cut_first)
		REFERENCES sink.cut (group_name, topic, partition, first_offset) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS file_cut ON sink.file (group_name, topic, partition, cut_first);
CREATE INDEX IF NOT EXISTS file_hour ON sink.file (group_name, topic, hour);
-- Whether its hour's manifest has it. What was there before this column is taken for listed.
ALTER TABLE sink.file ADD COLUMN IF NOT EXISTS listed boolean NOT NULL DEFAULT true;
ALTER TABLE sink.file ALTER COLUMN listed SET DEFAULT false;
CREATE INDEX IF NOT EXISTS file_unlisted ON sink.file (group_name) WHERE NOT listed;

-- The ledger is bounded (handler.*.keep): published ranges that touch become one, and how each of them was cut, and into
-- which files, is not known any more. NULL: it is.
ALTER TABLE sink.cut ADD COLUMN IF NOT EXISTS folded_at timestamptz;

-- What the ledger had of an hour and has not any more: its files stay, and so does its manifest.
CREATE TABLE IF NOT EXISTS sink.pruned (
	group_name text NOT NULL,
	topic      text NOT NULL,
	hour       timestamptz NOT NULL,
	files      bigint NOT NULL,
	records    bigint NOT NULL,
	bytes      bigint NOT NULL,
	PRIMARY KEY (group_name, topic, hour)
);

-- All that a partition had by then is published, also when that was nothing; partition -1: of the whole topic, as its
-- manifests say it.
CREATE TABLE IF NOT EXISTS sink.watermark (
	group_name text NOT NULL,
	topic      text NOT NULL,
	partition  integer NOT NULL,
	watermark  timestamptz NOT NULL,
	PRIMARY KEY (group_name, topic, partition)
);

CREATE TABLE IF NOT EXISTS sink.catalogue (
	topic      text NOT NULL,
	type       text NOT NULL,
	path       text NOT NULL,
	kinds      text[] NOT NULL,
	seen       bigint NOT NULL,
	first_seen timestamptz NOT NULL,
	last_seen  timestamptz NOT NULL,
	sample     text,
	pii        text,
	PRIMARY KEY (topic, type, path)
);
COMMENT ON TABLE sink.catalogue IS 'what payloads look like: postrider catalogue';

-- What came to be different in a type that was known: a place that is new, or holds another kind of value.
CREATE TABLE IF NOT EXISTS sink.drift (
	topic    text NOT NULL,
	type     text NOT NULL,
	path     text NOT NULL,
	kind     text NOT NULL,
	what     text NOT NULL CHECK (what IN ('path', 'kind')),
	seen_at  timestamptz NOT NULL, -- time of the first record that had it
	found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (topic, type, path, kind)
);

-- Facts about payloads, {t: topic, y: type, p: path, k: [kinds], n: times seen, f, l: first and last in microseconds, s: sample,
-- i: what of a person, c: an object became a map}, by topic, type and path. Returns what is drift: a type of which 1,000
-- payloads were seen has something new. Rows are locked in the order of the key.
CREATE OR REPLACE FUNCTION sink.learn(facts jsonb) RETURNS TABLE (topic text, type text, path text, kind text, what text)
LANGUAGE sql AS $$
	DELETE FROM sink.catalogue AS c USING jsonb_to_recordset(facts) AS f (t text, y text, p text, c boolean)
	WHERE f.c AND c.topic = f.t AND c.type = f.y AND NOT starts_with(c.path, f.p || '.*')
		AND (starts_with(c.path, f.p || '.') OR starts_with(c.path, f.p || '["'));
	WITH given AS MATERIALIZED (
		SELECT f.t, f.y, f.p, f.k, f.n, to_timestamp(f.f / 1e6) AS since, to_timestamp(f.l / 1e6) AS until, f.s, f.i
		FROM jsonb_to_recordset(facts) AS f (t text, y text, p text, k text[], n bigint, f bigint, l bigint, s text, i text)
		ORDER BY f.t COLLATE "C", f.y COLLATE "C", f.p COLLATE "C"
	), fresh AS MATERIALIZED (
		SELECT g.t, g.y, g.p, k.kind, g.until, CASE WHEN c.path IS NULL THEN 'path' ELSE 'kind' END AS what
		FROM given AS g CROSS JOIN unnest(g.k) AS k (kind)
		LEFT JOIN sink.catalogue AS c ON c.topic = g.t AND c.type = g.y AND c.path = g.p
		WHERE (c.path IS NULL OR k.kind <> ALL (c.kinds)) AND EXISTS (SELECT FROM sink.catalogue AS root
			WHERE root.topic = g.t AND root.type = g.y AND root.path = 'payload' AND root.seen >= 1000)
	), kept AS (
		INSERT INTO sink.catalogue AS c (topic, type, path, kinds, seen, first_seen, last_seen, sample, pii)
		SELECT g.t, g.y, g.p, g.k, g.n, g.since, g.until, g.s, g.i FROM given AS g
		ON CONFLICT ON CONSTRAINT catalogue_pkey DO UPDATE SET
			kinds = ARRAY(SELECT u.k FROM unnest(c.kinds || EXCLUDED.kinds) AS u (k) GROUP BY u.k ORDER BY u.k),
			seen = c.seen + EXCLUDED.seen, first_seen = least(c.first_seen, EXCLUDED.first_seen),
			last_seen = greatest(c.last_seen, EXCLUDED.last_seen), sample = coalesce(EXCLUDED.sample, c.sample),
			pii = coalesce(EXCLUDED.pii, c.pii)
	)
	INSERT INTO sink.drift AS d (topic, type, path, kind, what, seen_at)
	SELECT f.t, f.y, f.p, f.kind, f.what, f.until FROM fresh AS f
	ON CONFLICT ON CONSTRAINT drift_pkey DO NOTHING
	RETURNING d.topic, d.type, d.path, d.kind, d.what
$$;

-- A topic was made anew: what was published of the old one says nothing about the new one's offsets. Not while the group
-- publishes of it: it is paused, or stands and says why. Files and rows that are there are moved aside before; how far a
-- table of another database is stands there, in its own sink_rows.position. Returns how many ranges there were.
CREATE OR REPLACE FUNCTION sink.forget("group" text, topic text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	IF EXISTS (SELECT FROM sink.cut AS c WHERE c.group_name = forget."group" AND c.topic = forget.topic AND c.target = 'http') THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('sink: to the API an Idempotency-Key of group %s means the old records of %s', forget."group", forget.topic),
			HINT = 'Give the sink a group of its own: another name.';
	END IF;
	DELETE FROM sink.cut AS c WHERE c.group_name = forget."group" AND c.topic = forget.topic;
	GET DIAGNOSTICS n = ROW_COUNT;
	DELETE FROM sink.pruned AS p WHERE p.group_name = forget."group" AND p.topic = forget.topic;
	IF to_regclass('sink_rows.position') IS NOT NULL THEN
		DELETE FROM sink_rows.position AS p WHERE p."group" = forget."group" AND p.topic = forget.topic;
	END IF;
	RETURN n;
END
$$;
REVOKE ALL ON FUNCTION sink.forget(text, text) FROM PUBLIC;

-- Whoever gives orders to consumers has to know which groups are sinks.
DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inbox_operator') THEN
		GRANT USAGE ON SCHEMA sink TO inbox_operator;
		GRANT SELECT ON sink.cut, sink.file TO inbox_operator;
		GRANT EXECUTE ON FUNCTION sink.forget(text, text) TO inbox_operator;
	END IF;
END
$$;
