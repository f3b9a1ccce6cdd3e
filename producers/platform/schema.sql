-- Schema platform: facts, each once, and what came beside them. Run whole when its text has changed: all of it may be run
-- again. Written by postrider-platform only. Lock order: service.idempotency, fact by id, tally by topic and type.
CREATE SCHEMA IF NOT EXISTS platform;

-- Whatever sends an event twice, it is one fact.
CREATE TABLE IF NOT EXISTS platform.fact (
	event_id       text COLLATE "C" PRIMARY KEY,
	topic          text COLLATE "C" NOT NULL,
	type           text COLLATE "C" NOT NULL,
	key            text,
	payload        jsonb,
	payload_base64 text,
	headers        jsonb,
	partition      integer,
	message_offset bigint,
	at             timestamptz NOT NULL,
	received_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS fact_at ON platform.fact (at, event_id);
CREATE INDEX IF NOT EXISTS fact_type ON platform.fact (type, at, event_id);
COMMENT ON COLUMN platform.fact.payload_base64 IS 'the bytes of a payload that is no JSON';

-- A row for each of so many sessions, so that those that store side by side do not wait for each other.
CREATE TABLE IF NOT EXISTS platform.tally (
	topic      text COLLATE "C" NOT NULL,
	type       text COLLATE "C" NOT NULL,
	place      integer NOT NULL,
	stored     bigint NOT NULL DEFAULT 0,
	duplicates bigint NOT NULL DEFAULT 0,
	conflicts  bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (topic, type, place)
) WITH (fillfactor = 50);

-- How it is to misbehave; for all instances of the service.
CREATE TABLE IF NOT EXISTS platform.switches (
	one         boolean PRIMARY KEY DEFAULT true CHECK (one),
	slow_ms     integer NOT NULL DEFAULT 0 CHECK (slow_ms BETWEEN 0 AND 60000),
	fail_status integer NOT NULL DEFAULT 0 CHECK (fail_status = 0 OR fail_status BETWEEN 400 AND 599),
	fail_every  integer NOT NULL DEFAULT 1 CHECK (fail_every >= 1),
	fail_stored boolean NOT NULL DEFAULT false,
	retry_after integer NOT NULL DEFAULT 0 CHECK (retry_after BETWEEN 0 AND 3600),
	refuse_id   text
);
INSERT INTO platform.switches DEFAULT VALUES ON CONFLICT DO NOTHING;
CREATE SEQUENCE IF NOT EXISTS platform.requests;

-- GET /switches
CREATE OR REPLACE FUNCTION platform.show_switches() RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT to_jsonb(s) - 'one' FROM platform.switches AS s
$$;

-- POST /switches: what is not given stays as it is; refuse_id "" refuses nothing.
CREATE OR REPLACE FUNCTION platform.set_switches(slow integer, status integer, every integer, stored boolean, after integer,
	refused text) RETURNS jsonb LANGUAGE sql AS $$
	UPDATE platform.switches AS s SET slow_ms = coalesce(slow, s.slow_ms), fail_status = coalesce(status, s.fail_status),
		fail_every = coalesce(every, s.fail_every), fail_stored = coalesce(stored, s.fail_stored),
		retry_after = coalesce(after, s.retry_after), refuse_id = nullif(coalesce(refused, s.refuse_id), '');
	SELECT platform.show_switches();
$$;

-- What is wrong with the first event that is not in order, as "member detail"; NULL: nothing.
CREATE OR REPLACE FUNCTION platform.objection(events jsonb, OUT member text, OUT detail text) LANGUAGE sql STABLE AS $$
	SELECT CASE WHEN x.name = '' THEN format('[%s]', x.n - 1) ELSE format('[%s].%s', x.n - 1, x.name) END, x.detail
	FROM (SELECT e.n, w.name, w.detail
		FROM jsonb_array_elements(events) WITH ORDINALITY AS e (event, n)
		CROSS JOIN LATERAL (VALUES
			('', 'must be an object', jsonb_typeof(e.event) = 'object'),
			('id', 'must be a string of 1 to 200 characters', jsonb_typeof(e.event -> 'id') = 'string'
				AND length(e.event ->> 'id') BETWEEN 1 AND 200),
			('type', 'must be a string of at most 200 characters', coalesce(jsonb_typeof(e.event -> 'type') IN ('string', 'null'), true)
				AND coalesce(length(e.event ->> 'type') <= 200, true)),
			('topic', 'must be a string of at most 249 characters', coalesce(jsonb_typeof(e.event -> 'topic') IN ('string', 'null'), true)
				AND coalesce(length(e.event ->> 'topic') <= 249, true)),
			('key', 'must be a string', coalesce(jsonb_typeof(e.event -> 'key') IN ('string', 'null'), true)),
			('time', 'must be a time as RFC 3339 has it', coalesce(e.event ->> 'time' ~
				'^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$', true)),
			('payload_base64', 'must be a string', coalesce(jsonb_typeof(e.event -> 'payload_base64') IN ('string', 'null'), true)),
			('headers', 'must be an object', coalesce(jsonb_typeof(e.event -> 'headers') IN ('object', 'null'), true)),
			('partition', 'must be a whole number', coalesce(e.event ->> 'partition' ~ '^\d{1,9}$', true)),
			('offset', 'must be a whole number', coalesce(e.event ->> 'offset' ~ '^\d{1,18}$', true))
		) AS w (name, detail, good)
		WHERE NOT coalesce(w.good, false)
		ORDER BY e.n LIMIT 1) AS x
$$;

-- Stores what is new, and tells what was not: an id that is there with the same content, or with another.
CREATE OR REPLACE FUNCTION platform.store(events jsonb, OUT stored bigint, OUT duplicates bigint, OUT conflicts bigint,
	OUT conflicting jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	mine integer := pg_backend_pid() % 16;
	fresh text[];
BEGIN
	WITH given AS MATERIALIZED (
		SELECT e.n, e.event ->> 'id' AS id, coalesce(e.event ->> 'topic', '') AS topic, coalesce(e.event ->> 'type', '') AS type,
			e.event
		FROM jsonb_array_elements(events) WITH ORDINALITY AS e (event, n)
	), made AS (
		INSERT INTO platform.fact AS f (event_id, topic, type, key, payload, payload_base64, headers, partition, message_offset, at)
		SELECT DISTINCT ON (g.id) g.id, g.topic, g.type, g.event ->> 'key', g.event -> 'payload', g.event ->> 'payload_base64',
			nullif(g.event -> 'headers', 'null'), (g.event ->> 'partition')::integer, (g.event ->> 'offset')::bigint,
			coalesce((g.event ->> 'time')::timestamptz, clock_timestamp())
		FROM given AS g ORDER BY g.id, g.n
		ON CONFLICT (event_id) DO NOTHING
		RETURNING f.event_id AS id, f.topic, f.type
	), counted AS (
		INSERT INTO platform.tally AS t (topic, type, place, stored)
		SELECT m.topic, m.type, mine, count(*) FROM made AS m GROUP BY m.topic, m.type ORDER BY m.topic, m.type
		ON CONFLICT (topic, type, place) DO UPDATE SET stored = t.stored + EXCLUDED.stored
	)
	SELECT array_agg(m.id), count(*) INTO fresh, stored FROM made AS m;
	duplicates := 0;
	conflicts := 0;
	conflicting := '[]';
	IF stored = jsonb_array_length(events) THEN
		RETURN;
	END IF;
	-- Another statement sees what was there, and what others have committed meanwhile. Of a new id all but the first are to be looked at.
	WITH again AS MATERIALIZED (
		SELECT g.id, f.topic, f.type, g.same AS same
		FROM (SELECT e.event ->> 'id' AS id, e.event, row_number() OVER (PARTITION BY e.event ->> 'id' ORDER BY e.n) AS nth
			FROM jsonb_array_elements(events) WITH ORDINALITY AS e (event, n)) AS e
		JOIN platform.fact AS f ON f.event_id = e.id
		CROSS JOIN LATERAL (SELECT e.id, (f.topic, f.type, f.key, f.payload, f.payload_base64) IS NOT DISTINCT FROM
			(coalesce(e.event ->> 'topic', ''), coalesce(e.event ->> 'type', ''), e.event ->> 'key', e.event -> 'payload',
			e.event ->> 'payload_base64')) AS g (id, same)
		WHERE NOT (e.nth = 1 AND e.id = ANY (coalesce(fresh, '{}')))
	), counted AS (
		INSERT INTO platform.tally AS t (topic, type, place, duplicates, conflicts)
		SELECT a.topic, a.type, mine, count(*) FILTER (WHERE a.same), count(*) FILTER (WHERE NOT a.same)
		FROM again AS a GROUP BY a.topic, a.type ORDER BY a.topic, a.type
		ON CONFLICT (topic, type, place) DO UPDATE SET duplicates = t.duplicates + EXCLUDED.duplicates,
			conflicts = t.conflicts + EXCLUDED.conflicts
	)
	SELECT count(*) FILTER (WHERE a.same), count(*) FILTER (WHERE NOT a.same),
		coalesce((SELECT jsonb_agg(b.id) FROM (SELECT DISTINCT a.id FROM again AS a WHERE NOT a.same ORDER BY 1 LIMIT 100) AS b), '[]')
	INTO duplicates, conflicts, conflicting FROM again AS a;
END
$$;

-- POST /events. events: a list; single: it came alone, as a consumer's handler of kind http posts it. batch_key, batch_sum: of
-- an Idempotency-Key that is no event's id, and of the request's bytes. member: what the status is about.
CREATE OR REPLACE FUNCTION platform.ingest(events jsonb, single boolean, batch_key bytea, batch_sum bytea, OUT status integer,
	OUT slug text, OUT detail text, OUT member text, OUT retry_after integer, OUT slow_ms integer, OUT answer jsonb)
LANGUAGE plpgsql AS $$
DECLARE
	s platform.switches;
	done record;
	fails boolean := false;
BEGIN
	SELECT * INTO s FROM platform.switches;
	slow_ms := s.slow_ms;
	retry_after := 0;
	IF s.fail_status > 0 THEN
		fails := nextval('platform.requests') % s.fail_every = 0;
	END IF;
	IF fails AND NOT s.fail_stored THEN
		SELECT s.fail_status, 'switched-to-fail', 'the platform was told to fail', s.retry_after INTO status, slug, detail, retry_after;
		RETURN;
	END IF;
	SELECT o.member, o.detail INTO member, detail FROM platform.objection(events) AS o;
	IF member IS NULL AND s.refuse_id IS NOT NULL THEN
		SELECT format('[%s].id', e.n - 1), 'this event was told to be refused' INTO member, detail
		FROM jsonb_array_elements(events) WITH ORDINALITY AS e (event, n) WHERE e.event ->> 'id' = s.refuse_id LIMIT 1;
	END IF;
	IF member IS NOT NULL THEN
		status := 422;
		slug := 'invalid-value';
		member := CASE WHEN single THEN ltrim(substr(member, 4), '.') ELSE member END;
		RETURN;
	END IF;
	status := 200;
	IF batch_key IS NOT NULL THEN
		answer := service.claim(batch_key, batch_sum) -> 'answer';
	END IF;
	IF answer IS NULL THEN
		done := platform.store(events);
		answer := to_jsonb(done);
		IF batch_key IS NOT NULL THEN
			PERFORM service.settle(batch_key, batch_sum, answer);
		END IF;
		IF single AND done.conflicts > 0 THEN
			SELECT 409, 'other-content', 'this id was stored with other content' INTO status, slug, detail;
		END IF;
	END IF;
	IF fails THEN
		SELECT s.fail_status, 'switched-to-fail', 'the platform was told to fail', s.retry_after INTO status, slug, detail, retry_after;
	END IF;
END
$$;

-- A time of a query; words that only Postgres knows (yesterday, infinity) are none.
CREATE OR REPLACE FUNCTION platform.time_of(name text, given text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF given !~ '^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$' THEN
		PERFORM service.refuse(422, 'invalid-value', name || ' must be a time as RFC 3339 has it');
	END IF;
	RETURN given::timestamptz;
END
$$;

-- GET /facts: in the order of their times; after: the last one of the page before.
CREATE OR REPLACE FUNCTION platform.facts(of_type text, given_from text, given_to text, most integer, after text)
RETURNS jsonb LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
DECLARE
	since timestamptz := platform.time_of('from', given_from);
	until timestamptz := platform.time_of('to', given_to);
	page jsonb;
	n integer;
	last_one text;
	last_at timestamptz;
BEGIN
	IF after IS NOT NULL THEN
		SELECT f.at INTO last_at FROM platform.fact AS f WHERE f.event_id = after;
		IF NOT FOUND THEN
			PERFORM service.refuse(422, 'invalid-value', 'after is no fact''s id');
		END IF;
	END IF;
	SELECT coalesce(jsonb_agg(jsonb_build_object('id', p.event_id, 'topic', p.topic, 'type', p.type, 'key', p.key, 'payload', p.payload,
			'payload_base64', p.payload_base64, 'headers', p.headers, 'partition', p.partition, 'offset', p.message_offset,
			'time', service.rfc3339(p.at), 'received_at', service.rfc3339(p.received_at)) ORDER BY p.at, p.event_id), '[]'),
		count(*), (array_agg(p.event_id ORDER BY p.at DESC, p.event_id DESC))[1]
	INTO page, n, last_one
	FROM (SELECT * FROM platform.fact AS f
		WHERE (of_type IS NULL OR f.type = of_type) AND f.at >= coalesce(since, '-infinity') AND f.at < coalesce(until, 'infinity')
		  AND (f.at, f.event_id) > (coalesce(last_at, '-infinity'), coalesce(after, ''))
		ORDER BY f.at, f.event_id LIMIT most) AS p;
	RETURN jsonb_build_object('facts', page, 'next', CASE WHEN n = most THEN last_one END);
END
$$;

-- GET /counts
CREATE OR REPLACE FUNCTION platform.counts() RETURNS jsonb LANGUAGE sql STABLE AS $$
	WITH c AS (SELECT t.topic, t.type, sum(t.stored) AS stored, sum(t.duplicates) AS duplicates, sum(t.conflicts) AS conflicts
		FROM platform.tally AS t GROUP BY t.topic, t.type)
	SELECT jsonb_build_object('counts', coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.topic, c.type), '[]'),
		'stored', coalesce(sum(c.stored), 0), 'duplicates', coalesce(sum(c.duplicates), 0),
		'conflicts', coalesce(sum(c.conflicts), 0)) FROM c
$$;
