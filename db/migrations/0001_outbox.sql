-- 0001_outbox -- the outbox: events, the SQL API, scheduled events, what is held back, roles, janitor.
-- Creates only; takes no lock that a running application could feel. PostgreSQL 13 and newer.
-- Every name is qualified: it runs under any search_path. The tables' story is in db/README.md.

CREATE SCHEMA IF NOT EXISTS outbox;
REVOKE ALL ON SCHEMA outbox FROM PUBLIC;

CREATE TABLE outbox.schema_version (
	number integer PRIMARY KEY,
	name text NOT NULL,
	applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	sha256 text -- of the migration's text; NULL: whoever applied it kept none
);

-- Roles belong to the cluster: another database may be creating them at this very moment.
DO $$
DECLARE
	wanted text;
BEGIN
	FOREACH wanted IN ARRAY ARRAY['outbox_writer', 'outbox_relay', 'outbox_operator'] LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
			BEGIN
				EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
			EXCEPTION WHEN duplicate_object OR unique_violation THEN
				NULL;
			END;
		END IF;
	END LOOP;
END
$$;

-- ---------------------------------------------------------------- identity

-- UUID version 7 (RFC 9562): 48 bits of milliseconds, the version in the high half of byte 6, what the
-- clock's last bits say in its low half, the rest from a random UUID, whose variant bits stand. In PL/pgSQL
-- because its plan is cached: a one-row INSERT does not parse the body anew, as an inlined SQL function or
-- an expression in the DEFAULT would (what else was tried: db/README.md).
CREATE FUNCTION outbox.uuid7() RETURNS uuid LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $$
BEGIN
	RETURN encode(overlay(uuid_send(gen_random_uuid()) PLACING substring(
		int8send((date_part('epoch', clock_timestamp()) * 256000)::bigint & -241 | 112) FROM 2)
		FROM 1 FOR 7), 'hex')::uuid;
END
$$;

-- CACHE 1: with a cache, two sessions draw from two blocks and seq order is no longer lock order.
CREATE SEQUENCE outbox.event_seq AS bigint CACHE 1;

-- ---------------------------------------------------------------- bad input

-- Why name cannot be (part of) a Kafka topic of at most max_bytes bytes; NULL when it can.
CREATE FUNCTION outbox.topic_problem(name text, max_bytes integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT CASE
		WHEN name = '' THEN 'is empty'
		WHEN octet_length(name) > max_bytes THEN
			format('has %s bytes, %s is the most', octet_length(name), max_bytes)
		WHEN name COLLATE "C" !~ '^[A-Za-z0-9._-]+$' THEN 'has a character outside A-Z a-z 0-9 . _ -'
		WHEN name IN ('.', '..') THEN 'is a name that Kafka refuses'
		WHEN name LIKE '\_\_%' THEN 'starts with "__", which Kafka keeps for itself'
	END
$$;

-- Which header name is in the way; NULL when none is.
CREATE FUNCTION outbox.bad_header(headers jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT k FROM jsonb_object_keys(headers) AS k
	WHERE octet_length(k) NOT BETWEEN 1 AND 256
	   OR lower(k COLLATE "C") IN
		('id', 'type', 'content-type', 'outbox-seq', 'outbox-created-at', 'traceparent')
	ORDER BY k LIMIT 1
$$;

-- Names the first problem of an event. Never returns: called only when outbox.accept() found one.
CREATE FUNCTION outbox.refuse(aggregatetype text, aggregateid text, type text, payload jsonb,
	payload_bytes bytea, headers jsonb, topic text, partition integer, tracingspancontext text)
RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
	culprit text;
	problem text;
	advice text;
BEGIN
	IF aggregatetype IS NULL OR outbox.topic_problem(aggregatetype, 236) IS NOT NULL THEN
		culprit := 'aggregatetype';
		problem := coalesce(format('aggregatetype %s ', outbox.shown(aggregatetype))
			|| outbox.topic_problem(aggregatetype, 236), 'aggregatetype is missing');
		advice := 'It becomes part of the topic name (outbox.event.<aggregatetype>): use at most 236 of '
			'A-Z a-z 0-9 . _ - and do not begin with "__".';
	ELSIF aggregateid IS NULL OR octet_length(aggregateid) NOT BETWEEN 1 AND 65536 THEN
		culprit := 'aggregateid';
		problem := CASE WHEN aggregateid IS NULL THEN 'aggregateid is missing'
			WHEN aggregateid = '' THEN 'aggregateid is empty'
			ELSE format('aggregateid has %s bytes, 65536 is the most', octet_length(aggregateid)) END;
		advice := 'It is the Kafka key: events of one aggregate stay in order because they share it. '
			'Give the id of the thing the event is about.';
	ELSIF type IS NULL OR octet_length(type) NOT BETWEEN 1 AND 1024
		OR type COLLATE "C" ~ '[\x01-\x1f\x7f]' THEN
		culprit := 'type';
		problem := CASE WHEN type IS NULL THEN 'type is missing'
			WHEN type = '' THEN 'type is empty'
			WHEN octet_length(type) > 1024 THEN
				format('type has %s bytes, 1024 is the most', octet_length(type))
			ELSE format('type %s has a control character', outbox.shown(type)) END;
		advice := 'It becomes the record header "type": name what happened, as in OrderCreated.';
	ELSIF outbox.topic_problem(topic, 249) IS NOT NULL THEN
		culprit := 'topic';
		problem := format('topic %s %s', outbox.shown(topic), outbox.topic_problem(topic, 249));
		advice := 'A Kafka topic has 1 to 249 of A-Z a-z 0-9 . _ - and is not "." or "..". '
			'Leave topic NULL to use the relay''s route.';
	ELSIF payload IS NOT NULL AND payload_bytes IS NOT NULL THEN
		culprit := 'payload_bytes';
		problem := 'both payload and payload_bytes are given';
		advice := 'Give payload for JSON, payload_bytes for anything else, neither for a tombstone.';
	ELSIF pg_column_size(payload) > 67108864 OR octet_length(payload_bytes) > 67108864 THEN
		culprit := CASE WHEN payload IS NULL THEN 'payload_bytes' ELSE 'payload' END;
		problem := format('the payload has %s bytes, 67108864 is the most',
			coalesce(octet_length(payload_bytes), pg_column_size(payload)));
		advice := 'Kafka takes 1 MB per record unless configured otherwise: store the data elsewhere and '
			'publish where it is.';
	ELSIF jsonb_typeof(headers) <> 'object' THEN
		culprit := 'headers';
		problem := format('headers is a JSON %s, not an object', jsonb_typeof(headers));
		advice := 'Write headers as {"name": "value"}; leave the column out for none.';
	ELSIF outbox.bad_header(headers) IS NOT NULL THEN
		culprit := 'headers';
		problem := outbox.bad_header(headers);
		IF problem = '' THEN
			problem := 'headers has an empty name';
			advice := 'Give every header a name of 1 to 256 bytes.';
		ELSIF octet_length(problem) > 256 THEN
			problem := format('the header name %s has %s bytes, 256 is the most',
				outbox.shown(problem), octet_length(problem));
			advice := 'Give every header a name of 1 to 256 bytes.';
		ELSE
			advice := CASE lower(problem COLLATE "C")
				WHEN 'traceparent' THEN 'Put it into the column tracingspancontext, or call '
					'SET LOCAL outbox.traceparent = ''00-...'' before outbox.publish().'
				WHEN 'id' THEN 'The relay writes it from the column id: set that.'
				WHEN 'type' THEN 'The relay writes it from the column type: set that.'
				ELSE 'The relay writes it by itself: choose another name.' END;
			problem := format('the header name %s is reserved', outbox.shown(problem));
		END IF;
	ELSIF octet_length(headers::text) > 65536 THEN
		culprit := 'headers';
		problem := format('headers has %s bytes, 65536 is the most', octet_length(headers::text));
		advice := 'Headers are for routing and tracing: move data into the payload.';
	ELSIF partition < 0 THEN
		culprit := 'partition';
		problem := format('partition is %s', partition);
		advice := 'Leave it NULL to let the key decide, which keeps the order of an aggregate.';
	ELSIF octet_length(tracingspancontext) > 8192 THEN
		culprit := 'tracingspancontext';
		problem := format('tracingspancontext has %s bytes, 8192 is the most',
			octet_length(tracingspancontext));
		advice := 'Give a W3C traceparent, 00-<trace id>-<span id>-<flags>.';
	ELSE
		problem := 'the event is refused';
		advice := 'outbox.accept() refused what outbox.refuse() cannot name: please report it.';
	END IF;
	RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = 'outbox: ' || problem, HINT = advice,
		SCHEMA = 'outbox', TABLE = 'event', COLUMN = coalesce(culprit, ''), CONSTRAINT = 'accepted';
END
$$;

-- A value as an error may show it: cut, control characters taken out.
CREATE FUNCTION outbox.shown(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT '"' || regexp_replace(left(value, 64), '[\x01-\x1f\x7f]', '?', 'g')
		|| CASE WHEN length(value) > 64 THEN '...' ELSE '' END || '"'
$$;

-- True, or an error that says what is wrong and what to do.
CREATE FUNCTION outbox.accept(aggregatetype text, aggregateid text, type text, payload jsonb,
	payload_bytes bytea, headers jsonb, topic text, partition integer, tracingspancontext text)
RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
	-- The first character decides about ".", ".." and "__"; no lookahead, it is slow.
	IF aggregatetype COLLATE "C" ~
		'^([A-Za-z0-9-][A-Za-z0-9._-]*|_([A-Za-z0-9.-][A-Za-z0-9._-]*)?|\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\.\.[A-Za-z0-9._-]+)$'
		AND octet_length(aggregatetype) <= 236
		AND octet_length(aggregateid) BETWEEN 1 AND 65536
		AND type COLLATE "C" ~ '^[^\x01-\x1f\x7f]+$'
		AND octet_length(type) <= 1024
		AND (headers = '{}' OR headers IS NULL
			-- The expression may see a name where there is none, never the other way round.
			OR jsonb_typeof(headers) = 'object' AND octet_length(headers::text) <= 256
				AND headers::text COLLATE "C" !~*
					'"(id|type|content-type|outbox-seq|outbox-created-at|traceparent)?":'
			OR jsonb_typeof(headers) = 'object' AND octet_length(headers::text) <= 65536
				AND outbox.bad_header(headers) IS NULL)
		AND (payload IS NULL OR pg_column_size(payload) <= 67108864)
		AND (payload_bytes IS NULL OR payload IS NULL AND octet_length(payload_bytes) <= 67108864)
		AND (topic IS NULL OR octet_length(topic) <= 249 AND topic COLLATE "C" ~
		'^([A-Za-z0-9-][A-Za-z0-9._-]*|_([A-Za-z0-9.-][A-Za-z0-9._-]*)?|\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\.\.[A-Za-z0-9._-]+)$')
		AND (partition IS NULL OR partition >= 0)
		AND (tracingspancontext IS NULL OR octet_length(tracingspancontext) <= 8192)
	THEN
		RETURN true;
	END IF;
	RETURN outbox.refuse(aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic, partition,
		tracingspancontext);
END
$$;

-- The same for each row of outbox.event, as a trigger and not as a CHECK, for speed: Postgres parses a
-- CHECK's stored tree anew in every statement, a trigger's plan is cached (figures in db/README.md).
-- The usual event takes the first branch, which has few function calls, because each of them is set up
-- anew in every transaction. STABLE: no snapshot is taken for it.
CREATE FUNCTION outbox.accept_event() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF NEW.xid = pg_current_xact_id() AND NEW.headers = '{}' AND NEW.payload_bytes IS NULL AND NEW.topic IS NULL
		AND NEW.partition IS NULL AND NEW.tracingspancontext IS NULL
		AND NEW.aggregatetype COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$'
		AND NEW.type COLLATE "C" ~ '^[!-~]+$'
		AND octet_length(NEW.aggregatetype || NEW.aggregateid || NEW.type) <= 236 AND NEW.aggregateid <> ''
		AND pg_column_size(NEW.payload) <= 67108864
	THEN
		RETURN NEW;
	END IF;
	-- The same for what sagas and handlers send: to a topic of its own, with headers that we know; outbox.accept() would
	-- search their text, which takes longer than all the rest.
	IF NEW.xid = pg_current_xact_id() AND NEW.payload_bytes IS NULL AND NEW.partition IS NULL
		AND jsonb_typeof(NEW.headers) = 'object'
		AND NEW.headers - '{correlation-id,causation-id,saga-id,saga-name,saga-step,saga-op,saga-command-id,saga-reply-to,saga-outcome,saga-why}'::text[] = '{}'
		AND octet_length(NEW.headers::text) <= 65536
		AND NEW.aggregatetype COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$'
		AND NEW.type COLLATE "C" ~ '^[!-~]+$'
		AND octet_length(NEW.aggregatetype || NEW.aggregateid || NEW.type) <= 236 AND NEW.aggregateid <> ''
		AND (NEW.topic IS NULL OR octet_length(NEW.topic) <= 249 AND NEW.topic COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$')
		AND pg_column_size(NEW.payload) <= 67108864
		AND (NEW.tracingspancontext IS NULL OR octet_length(NEW.tracingspancontext) <= 8192)
	THEN
		RETURN NEW;
	END IF;
	-- With an older xid the row would be visible in snapshots that were taken before it was committed: while
	-- this transaction is open the relay would step over it.
	IF NEW.xid <> pg_current_xact_id() THEN
		RAISE EXCEPTION USING ERRCODE = 'check_violation',
			MESSAGE = format('outbox: xid %s is not the id of this transaction', NEW.xid),
			HINT = 'Leave the column out. To restore events as they were: SET session_replication_role = replica, '
				'and afterwards `postrider position adopt`.',
			SCHEMA = 'outbox', TABLE = 'event', COLUMN = 'xid', CONSTRAINT = 'accepted';
	END IF;
	IF outbox.accept(NEW.aggregatetype, NEW.aggregateid, NEW.type, NEW.payload, NEW.payload_bytes, NEW.headers,
			NEW.topic, NEW.partition, NEW.tracingspancontext)
	THEN
		RETURN NEW;
	END IF;
	RAISE EXCEPTION 'outbox: outbox.accept() neither took nor refused the event';
END
$$;

-- ---------------------------------------------------------------- events

-- The CASE forces the transaction's xid to be assigned before the seq is drawn, whatever the order
-- of the columns: the relay's bound on running transactions stands on it.
CREATE TABLE outbox.event (
	xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
	seq bigint NOT NULL DEFAULT CASE WHEN pg_current_xact_id() > '0'::xid8 THEN nextval('outbox.event_seq') END,
	id uuid NOT NULL DEFAULT outbox.uuid7(),
	aggregatetype text NOT NULL,
	aggregateid text NOT NULL,
	type text NOT NULL,
	payload jsonb,
	payload_bytes bytea,
	headers jsonb DEFAULT '{}',
	topic text,
	partition integer,
	aggregateversion bigint,
	tracingspancontext text,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
CREATE TRIGGER accepted BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION outbox.accept_event();
ALTER SEQUENCE outbox.event_seq OWNED BY outbox.event.seq;

COMMENT ON TABLE outbox.event IS 'events to publish; append-only; insert here inside your transaction';
COMMENT ON COLUMN outbox.event.aggregateid IS 'the Kafka key: order is kept per key';
COMMENT ON COLUMN outbox.event.payload IS 'the record''s value, as JSON; both payloads NULL: a tombstone';
COMMENT ON COLUMN outbox.event.topic IS 'NULL: the relay''s route, outbox.event.<aggregatetype> by default';

CREATE FUNCTION outbox.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
		MESSAGE = format('outbox.event is append-only: %s refused', TG_OP),
		HINT = CASE TG_OP
			WHEN 'UPDATE' THEN 'An event may have left already. Publish another event that corrects it.'
			WHEN 'DELETE' THEN 'The relay reads this table, not the log: insert-then-delete, as done for '
				'Debezium, would lose the event. Just insert; what is published is dropped by partition.'
			ELSE 'The relay drops whole partitions once they are published and older than retention.keep.'
			END;
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.event
	FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change();

-- Events of the future. entry = order of insertion; at = infinity: held until moved by hand.
CREATE TABLE outbox.scheduled (
	entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at timestamptz NOT NULL,
	id uuid NOT NULL DEFAULT outbox.uuid7(),
	aggregatetype text NOT NULL,
	aggregateid text NOT NULL,
	type text NOT NULL,
	payload jsonb,
	payload_bytes bytea,
	headers jsonb DEFAULT '{}',
	topic text,
	partition integer,
	aggregateversion bigint,
	tracingspancontext text,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT accepted CHECK (outbox.accept(aggregatetype, aggregateid, type, payload, payload_bytes,
		headers, topic, partition, tracingspancontext))
);
CREATE INDEX scheduled_at ON outbox.scheduled (at, entry);
CREATE INDEX scheduled_id ON outbox.scheduled (id);
COMMENT ON TABLE outbox.scheduled IS 'events to publish later; moved into outbox.event when due';

-- ---------------------------------------------------------------- what the relay keeps

-- One row, written by the relay at its first start: that it exists says that Kafka holds a position.
-- published_seq is for people and for the view lag; the position itself lives in Kafka.
CREATE TABLE outbox.relay (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	name text,
	system_id text,
	timeline integer,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	published_seq bigint NOT NULL DEFAULT 0,
	published_at timestamptz,
	paused_at timestamptz,
	paused_by text,
	request bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
COMMENT ON COLUMN outbox.relay.request IS 'raised by the operator''s functions: the relay looks at requests';

-- Events held back, by key; the event itself stays in outbox.event.
CREATE TABLE outbox.parked (
	seq bigint PRIMARY KEY,
	id uuid NOT NULL,
	topic text NOT NULL,
	key text NOT NULL,
	type text,
	reason text,
	code text,
	head boolean NOT NULL DEFAULT false,
	attempts integer NOT NULL DEFAULT 0,
	created_at timestamptz,
	parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	request text CHECK (request IN ('retry', 'skip')),
	requested_at timestamptz,
	requested_by text
);
-- A key may have 64 kB, an index entry 2,700 bytes.
CREATE INDEX parked_key ON outbox.parked (topic, left(key, 100), seq);
COMMENT ON COLUMN outbox.parked.head IS 'true: this event failed; false: it waits behind one of its key that did';

CREATE TABLE outbox.skipped (
	seq bigint PRIMARY KEY,
	id uuid NOT NULL,
	topic text NOT NULL,
	key text NOT NULL,
	type text,
	reason text,
	code text,
	skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	skipped_by text
);
COMMENT ON TABLE outbox.skipped IS 'events that an operator decided never to publish';

-- Rows of a topic that does not exist yet: those with from_seq <= seq <= to_seq that to_snapshot
-- sees and from_snapshot does not. Ranges, not copies.
CREATE TABLE outbox.waiting (
	entry bigserial PRIMARY KEY,
	topic text NOT NULL,
	from_snapshot pg_snapshot,
	to_snapshot pg_snapshot NOT NULL,
	from_seq bigint NOT NULL,
	to_seq bigint NOT NULL,
	events bigint NOT NULL,
	oldest timestamptz,
	reason text,
	code text,
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	frozen boolean NOT NULL DEFAULT false
);
CREATE INDEX waiting_topic ON outbox.waiting (topic, entry);

-- ---------------------------------------------------------------- publish

-- The traceparent of this transaction (SET LOCAL outbox.traceparent), NULL when there is none.
CREATE FUNCTION outbox.traceparent() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
	given text := current_setting('outbox.traceparent', true);
BEGIN
	IF given IS NULL OR given = '' THEN
		RETURN NULL;
	END IF;
	IF given COLLATE "C" !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'
		OR given ~ '^ff|^..-0{32}|-0{16}-' THEN
		RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('outbox: outbox.traceparent %s is not a W3C traceparent', outbox.shown(given)),
			HINT = 'Write version-traceid-spanid-flags in lower-case hex, as in '
				'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01, or set it to ''''.';
	END IF;
	RETURN given;
END
$$;

-- What an event takes over from the message that its transaction handles (SET LOCAL outbox.causation_id and
-- outbox.correlation_id, as inbox.carry does): headers causation-id and correlation-id, unless given.
CREATE FUNCTION outbox.carried(headers jsonb) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	cause text := current_setting('outbox.causation_id', true);
BEGIN
	IF cause IS NULL OR cause = '' THEN
		RETURN coalesce(headers, '{}');
	END IF;
	RETURN jsonb_build_object('causation-id', cause, 'correlation-id',
		coalesce(nullif(current_setting('outbox.correlation_id', true), ''), cause)) || coalesce(headers, '{}');
END
$$;

CREATE FUNCTION outbox.publish(aggregatetype text, aggregateid text, type text, payload jsonb,
	headers jsonb DEFAULT '{}', topic text DEFAULT NULL, id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	chosen uuid := coalesce(id, outbox.uuid7());
BEGIN
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	VALUES (chosen, aggregatetype, aggregateid, type, payload, outbox.carried(headers), topic, outbox.traceparent());
	RETURN chosen;
END
$$;

CREATE FUNCTION outbox.publish_bytes(aggregatetype text, aggregateid text, type text, payload bytea,
	headers jsonb DEFAULT '{}', topic text DEFAULT NULL, id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	chosen uuid := coalesce(id, outbox.uuid7());
BEGIN
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload_bytes, headers, topic, tracingspancontext)
	VALUES (chosen, aggregatetype, aggregateid, type, payload, outbox.carried(headers), topic, outbox.traceparent());
	RETURN chosen;
END
$$;

-- at may lie in the past (published at once) or be infinity (held). The id is what cancel() takes.
CREATE FUNCTION outbox.publish_at(at timestamptz, aggregatetype text, aggregateid text, type text, payload jsonb,
	headers jsonb DEFAULT '{}', topic text DEFAULT NULL, id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	chosen uuid := coalesce(id, outbox.uuid7());
BEGIN
	IF at IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'outbox: at is NULL',
			HINT = 'Give a time, ''infinity'' to hold the event, or call outbox.publish() for now.';
	END IF;
	INSERT INTO outbox.scheduled (at, id, aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	VALUES (at, chosen, aggregatetype, aggregateid, type, payload, outbox.carried(headers), topic, outbox.traceparent());
	RETURN chosen;
END
$$;

CREATE FUNCTION outbox.publish_bytes_at(at timestamptz, aggregatetype text, aggregateid text, type text, payload bytea,
	headers jsonb DEFAULT '{}', topic text DEFAULT NULL, id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	chosen uuid := coalesce(id, outbox.uuid7());
BEGIN
	IF at IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'outbox: at is NULL',
			HINT = 'Give a time, ''infinity'' to hold the event, or call outbox.publish_bytes() for now.';
	END IF;
	INSERT INTO outbox.scheduled (at, id, aggregatetype, aggregateid, type, payload_bytes, headers, topic, tracingspancontext)
	VALUES (at, chosen, aggregatetype, aggregateid, type, payload, outbox.carried(headers), topic, outbox.traceparent());
	RETURN chosen;
END
$$;

-- False when there is no such scheduled event, or it has moved already.
CREATE FUNCTION outbox.cancel(id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM outbox.scheduled AS s WHERE s.id = cancel.id;
	RETURN FOUND;
END
$$;

-- Element number i (from 1) of publish_many: returns when it is sound, raises naming it otherwise.
CREATE FUNCTION outbox.refuse_element(i bigint, event jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	problem text;
	advice text := 'Each event is an object of: aggregatetype, aggregateid, type, payload or payload_base64, '
		'headers, topic, partition, aggregateversion, tracingspancontext, id.';
	name text;
	value jsonb;
	state text;
BEGIN
	IF jsonb_typeof(event) <> 'object' THEN
		problem := format('is a JSON %s, not an object', jsonb_typeof(event));
	ELSE
		FOR name, value IN SELECT k, v FROM jsonb_each(event) AS e (k, v) ORDER BY k LOOP
			problem := CASE
				WHEN name NOT IN ('aggregatetype', 'aggregateid', 'type', 'payload', 'payload_base64', 'headers',
					'topic', 'partition', 'aggregateversion', 'tracingspancontext', 'id')
					THEN format('has the unknown field %s', outbox.shown(name))
				WHEN name IN ('payload', 'headers') OR jsonb_typeof(value) = 'null' THEN NULL
				WHEN name IN ('partition', 'aggregateversion') THEN
					CASE WHEN jsonb_typeof(value) <> 'number' THEN format('%s is not a number', name) END
				WHEN name = 'aggregateid' AND jsonb_typeof(value) = 'number' THEN NULL
				WHEN jsonb_typeof(value) <> 'string' THEN format('%s is not a string', name)
				END;
			EXIT WHEN problem IS NOT NULL;
		END LOOP;
		IF problem IS NULL AND event ? 'payload_base64' AND event -> 'payload' <> 'null' THEN
			problem := 'has both payload and payload_base64';
		END IF;
	END IF;
	IF problem IS NULL THEN
		BEGIN
			PERFORM (event ->> 'id')::uuid, (event ->> 'partition')::integer,
				(event ->> 'aggregateversion')::bigint;
			PERFORM outbox.accept(event ->> 'aggregatetype', event ->> 'aggregateid', event ->> 'type',
				nullif(event -> 'payload', 'null'), decode(event ->> 'payload_base64', 'base64'),
				nullif(event -> 'headers', 'null'), event ->> 'topic', (event ->> 'partition')::integer,
				event ->> 'tracingspancontext');
		EXCEPTION WHEN data_exception OR check_violation THEN
			GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
			problem := regexp_replace(problem, '^outbox: ', '');
			IF state = '23514' THEN
				GET STACKED DIAGNOSTICS advice = PG_EXCEPTION_HINT;
			END IF;
		END;
	END IF;
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = coalesce(state, '22023'),
			MESSAGE = format('outbox: event %s of the array: %s', i, problem), HINT = advice;
	END IF;
END
$$;

-- An array of objects with the fields of an event; returns how many. All or none; the order of the
-- array is the order of seq. One statement: the checks run once per row, set up once in all.
CREATE FUNCTION outbox.publish_many(events jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	published bigint;
	i bigint;
	event jsonb;
BEGIN
	IF events IS NULL OR jsonb_typeof(events) <> 'array' THEN
		RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('outbox: events is %s, not a JSON array',
				coalesce('a JSON ' || jsonb_typeof(events), 'NULL')),
			HINT = 'Give [{"aggregatetype": ..., "aggregateid": ..., "type": ..., "payload": ...}, ...].';
	END IF;
	BEGIN
		-- What the SELECT below would take silently, and the INSERT would not refuse.
		IF EXISTS (
			SELECT FROM jsonb_array_elements(events) AS e
			WHERE jsonb_typeof(e) <> 'object'
			   OR e - ARRAY['aggregatetype', 'aggregateid', 'type', 'payload', 'payload_base64', 'headers',
				'topic', 'partition', 'aggregateversion', 'tracingspancontext', 'id'] <> '{}'
			   OR jsonb_typeof(e -> 'aggregatetype') NOT IN ('string', 'null')
			   OR jsonb_typeof(e -> 'aggregateid') NOT IN ('string', 'number', 'null')
			   OR jsonb_typeof(e -> 'type') NOT IN ('string', 'null')
			   OR jsonb_typeof(e -> 'payload_base64') NOT IN ('string', 'null')
			   OR jsonb_typeof(e -> 'topic') NOT IN ('string', 'null')
			   OR jsonb_typeof(e -> 'partition') NOT IN ('number', 'null')
			   OR jsonb_typeof(e -> 'aggregateversion') NOT IN ('number', 'null')
			   OR jsonb_typeof(e -> 'tracingspancontext') NOT IN ('string', 'null')
			   OR jsonb_typeof(e -> 'id') NOT IN ('string', 'null')
		) THEN
			RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'outbox: an event is malformed';
		END IF;
		INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic,
			partition, aggregateversion, tracingspancontext)
		SELECT coalesce((e ->> 'id')::uuid, outbox.uuid7()), e ->> 'aggregatetype', e ->> 'aggregateid',
			e ->> 'type', nullif(e -> 'payload', 'null'), decode(e ->> 'payload_base64', 'base64'),
			base || coalesce(nullif(e -> 'headers', 'null'), '{}'), e ->> 'topic', (e ->> 'partition')::integer,
			(e ->> 'aggregateversion')::bigint, coalesce(e ->> 'tracingspancontext', traced)
		FROM jsonb_array_elements(events) WITH ORDINALITY AS a (e, n), outbox.traceparent() AS traced,
			outbox.carried('{}') AS base
		ORDER BY n;
		GET DIAGNOSTICS published = ROW_COUNT;
	EXCEPTION WHEN data_exception OR check_violation OR not_null_violation THEN
		-- Something in there is wrong: find out which element, and say so.
		FOR event, i IN SELECT e, n FROM jsonb_array_elements(events) WITH ORDINALITY AS a (e, n) ORDER BY n LOOP
			PERFORM outbox.refuse_element(i, event);
		END LOOP;
		RAISE;
	END;
	RETURN published;
END
$$;

-- ---------------------------------------------------------------- the relay's functions

-- Moves up to most due events into outbox.event, in the order of (at, entry). One mover at a time: two
-- could commit in the wrong order, so the second returns 0 at once. An event that somebody is
-- cancelling is stepped over, and so are the later ones of its aggregate.
CREATE FUNCTION outbox.move_due(most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	moved bigint;
BEGIN
	IF NOT EXISTS (SELECT FROM outbox.scheduled AS s WHERE s.at <= clock_timestamp())
		OR NOT pg_try_advisory_xact_lock(7309475598860182629) THEN
		RETURN 0;
	END IF;
	WITH due AS MATERIALIZED (
		SELECT s.entry, s.at, s.aggregatetype, s.aggregateid FROM outbox.scheduled AS s
		WHERE s.at <= statement_timestamp() ORDER BY s.at, s.entry LIMIT most
	), free AS MATERIALIZED (
		SELECT s.entry FROM outbox.scheduled AS s
		WHERE s.entry = ANY (ARRAY(SELECT d.entry FROM due AS d)) FOR UPDATE SKIP LOCKED
	), held AS MATERIALIZED (
		SELECT * FROM due AS d WHERE d.entry NOT IN (SELECT f.entry FROM free AS f)
	), gone AS (
		DELETE FROM outbox.scheduled AS s USING free AS f
		WHERE s.entry = f.entry AND NOT EXISTS (
			SELECT FROM held AS h
			WHERE h.aggregatetype = s.aggregatetype AND h.aggregateid = s.aggregateid
			  AND (h.at, h.entry) < (s.at, s.entry))
		RETURNING s.*
	)
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic,
		partition, aggregateversion, tracingspancontext, created_at)
	-- Its event time is when it fell due: the lag then shows how late the move was.
	SELECT g.id, g.aggregatetype, g.aggregateid, g.type, g.payload, g.payload_bytes, g.headers, g.topic,
		g.partition, g.aggregateversion, g.tracingspancontext, greatest(g.at, g.created_at)
	FROM gone AS g ORDER BY g.at, g.entry;
	GET DIAGNOSTICS moved = ROW_COUNT;
	RETURN moved;
END
$$;

CREATE VIEW outbox.partitions AS
SELECT c.relname::text AS leaf, b.bounds[1]::bigint AS from_seq, b.bounds[2]::bigint AS to_seq,
	CASE WHEN pg_relation_size(c.oid) = 0 THEN 0 WHEN c.reltuples > 0 THEN c.reltuples::bigint END AS rows,
	pg_total_relation_size(c.oid) AS bytes
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid),
	'^FOR VALUES FROM \(''?(-?\d+)''?\) TO \(''?(-?\d+)''?\)$') AS b (bounds)
WHERE i.inhparent = 'outbox.event'::regclass AND b.bounds IS NOT NULL; -- NULL: being attached or dropped right now
COMMENT ON VIEW outbox.partitions IS
	'the ranges of outbox.event: from_seq <= seq < to_seq; rows is the last vacuum''s estimate, NULL before it';

-- Makes ranges until ahead empty ones lie beyond the one in use; returns how many it made. CREATE
-- TABLE ... PARTITION OF would lock out readers and writers (ACCESS EXCLUSIVE on the parent); LIKE +
-- ATTACH does not: SHARE UPDATE EXCLUSIVE, and the new table is empty, so there is nothing to scan.
-- 0 when another call is at it; error 55P03 when a lock was not to be had in 50 ms: call again.
CREATE FUNCTION outbox.make_partitions(partition_events bigint DEFAULT 5000000, ahead integer DEFAULT 16)
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
	next_seq bigint;
	top bigint;
	spare integer;
	made integer := 0;
	leaf text;
BEGIN
	IF partition_events IS NULL OR partition_events < 1 OR ahead IS NULL OR ahead NOT BETWEEN 1 AND 10000 THEN
		RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('outbox: %s ranges of %s events make no sense', ahead, partition_events),
			HINT = 'Give at least 1 event per range and 1 to 10000 ranges.';
	END IF;
	IF NOT pg_try_advisory_xact_lock(7309475598860182630) THEN
		RETURN 0;
	END IF;
	next_seq := coalesce(pg_sequence_last_value('outbox.event_seq'), 0) + 1;
	SELECT greatest(max(p.to_seq), next_seq), count(*) FILTER (WHERE p.from_seq > next_seq)
	INTO top, spare FROM outbox.partitions AS p;
	-- The range in use itself, when there is none.
	IF NOT EXISTS (SELECT FROM outbox.partitions AS p WHERE p.to_seq > next_seq) THEN
		spare := -1;
	END IF;
	WHILE spare < ahead LOOP
		leaf := format('event_%s', top);
		WHILE EXISTS (SELECT FROM pg_class AS c
			WHERE c.relname = leaf AND c.relnamespace = 'outbox'::regnamespace) LOOP
			leaf := leaf || '_';
		END LOOP;
		EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.event INCLUDING ALL)', leaf);
		EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.%I '
			'FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change()', leaf);
		EXECUTE format('ALTER TABLE outbox.event ATTACH PARTITION outbox.%I FOR VALUES FROM (%s) TO (%s)',
			leaf, top, top + partition_events);
		top := top + partition_events;
		spare := spare + 1;
		made := made + 1;
	END LOOP;
	RETURN made;
END
$$;

-- Drops one range, if nothing in it is owed to anybody: every seq in it is decided (to_seq <= low + 1),
-- every row is visible in covered (the committed position's snapshot), none is parked or waiting, and
-- the newest is older than keep. False when it must stay, or is gone. Error 55P03 when the locks were
-- not to be had in 50 ms: call again later. Runs in its own transaction, READ COMMITTED. The scan
-- reads the whole range under a lock that only stops writers of this range; the parent is locked
-- only for the drop itself, and not even tried while a transaction that outlasts the lock_timeout
-- holds it: writers would queue behind us in vain.
CREATE FUNCTION outbox.drop_partition(leaf text, covered pg_snapshot, low bigint, keep interval)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
	part record;
	found_row boolean;
	newest timestamptz;
	holder integer;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
			MESSAGE = 'outbox: drop_partition needs READ COMMITTED',
			HINT = 'Under one old snapshot it could not see what it must not drop.';
	END IF;
	IF covered IS NULL OR low IS NULL OR keep IS NULL THEN
		RETURN false;
	END IF;
	SELECT p.leaf AS name, p.from_seq, p.to_seq INTO part FROM outbox.partitions AS p
	WHERE p.leaf = regexp_replace(drop_partition.leaf, '^outbox\.', '');
	IF part.name IS NULL OR part.to_seq > low + 1 OR outbox.range_is_owed(part.from_seq, part.to_seq) THEN
		RETURN false;
	END IF;
	EXECUTE format('SELECT e.created_at FROM outbox.%I AS e ORDER BY e.seq DESC LIMIT 1', part.name) INTO newest;
	IF newest > clock_timestamp() - keep THEN
		RETURN false;
	END IF;
	SELECT l.pid INTO holder FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
	WHERE l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
	  AND l.relation IN ('outbox.event'::regclass, format('outbox.%I', part.name)::regclass)
	  AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
	  AND (l.pid IS NULL OR a.xact_start < clock_timestamp() - interval '50 ms')
	LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
			MESSAGE = format('outbox: %s is in use by %s', part.name,
				coalesce('process ' || holder, 'a prepared transaction')),
			HINT = 'It is dropped once that transaction has ended.';
	END IF;
	EXECUTE format('LOCK TABLE outbox.%I IN SHARE MODE', part.name);
	EXECUTE format('SELECT EXISTS (SELECT FROM outbox.%I AS e WHERE NOT pg_visible_in_snapshot(e.xid, $1))', part.name)
	INTO found_row USING covered;
	IF found_row THEN
		RETURN false;
	END IF;
	LOCK TABLE ONLY outbox.event IN ACCESS EXCLUSIVE MODE;
	EXECUTE format('LOCK TABLE outbox.%I IN ACCESS EXCLUSIVE MODE NOWAIT', part.name);
	IF outbox.range_is_owed(part.from_seq, part.to_seq) THEN
		RETURN false;
	END IF;
	EXECUTE format('DROP TABLE outbox.%I', part.name);
	RETURN true;
END
$$;

-- Whether a row with from_seq <= seq < to_seq is parked, or waits for its topic.
CREATE FUNCTION outbox.range_is_owed(from_seq bigint, to_seq bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
	SELECT EXISTS (SELECT FROM outbox.parked AS p WHERE p.seq >= range_is_owed.from_seq AND p.seq < range_is_owed.to_seq)
	    OR EXISTS (SELECT FROM outbox.waiting AS w
			WHERE w.from_seq < range_is_owed.to_seq AND w.to_seq >= range_is_owed.from_seq)
$$;

-- ---------------------------------------------------------------- the operator's view and levers

-- One row. A rollback leaves a gap and a late commit may lie below published_seq, so pending_events
-- is an estimate (never 0 while a row above published_seq is visible); the relay's metrics are exact.
CREATE VIEW outbox.lag AS
WITH pending AS (
	SELECT greatest(1, pg_sequence_last_value('outbox.event_seq')
			- coalesce((SELECT r.published_seq FROM outbox.relay AS r), 0)) AS events,
		e.created_at AS oldest
	FROM outbox.event AS e
	WHERE e.seq > coalesce((SELECT r.published_seq FROM outbox.relay AS r), 0)
	ORDER BY e.seq LIMIT 1
), due AS (
	SELECT count(*) AS events, min(s.at) AS oldest FROM outbox.scheduled AS s WHERE s.at <= clock_timestamp()
), parked AS (
	SELECT count(*) AS events, count(DISTINCT (p.topic, p.key)) AS keys, min(p.created_at) AS oldest
	FROM outbox.parked AS p
), waiting AS (
	SELECT coalesce(sum(w.events), 0)::bigint AS events, min(w.oldest) AS oldest FROM outbox.waiting AS w
)
SELECT greatest(0, extract(epoch FROM clock_timestamp() - greatest('epoch', least( -- infinity has no age
		pending.oldest, due.oldest, parked.oldest, waiting.oldest, clock_timestamp()))))::double precision AS lag_seconds,
	coalesce(pending.events, 0) AS pending_events,
	pending.oldest AS pending_oldest,
	due.events AS due_events,
	due.oldest AS due_oldest,
	parked.events AS parked_events,
	parked.keys AS parked_keys,
	parked.oldest AS parked_oldest,
	waiting.events AS waiting_events,
	waiting.oldest AS waiting_oldest,
	EXISTS (SELECT FROM outbox.relay AS r WHERE r.paused_at IS NOT NULL) AS paused
FROM due CROSS JOIN parked CROSS JOIN waiting LEFT JOIN pending ON true;

-- False when it was so already.
CREATE FUNCTION outbox.pause(by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM outbox.relay) THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'outbox: no relay has run on this outbox yet',
			HINT = 'There is nothing to pause or resume before a relay''s first start.';
	END IF;
	UPDATE outbox.relay AS r SET paused_at = clock_timestamp(), paused_by = by, request = r.request + 1
	WHERE r.paused_at IS NULL;
	RETURN FOUND;
END
$$;

CREATE FUNCTION outbox.resume(by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM outbox.relay) THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'outbox: no relay has run on this outbox yet',
			HINT = 'There is nothing to pause or resume before a relay''s first start.';
	END IF;
	UPDATE outbox.relay AS r SET paused_at = NULL, paused_by = by, request = r.request + 1
	WHERE r.paused_at IS NOT NULL;
	RETURN FOUND;
END
$$;

-- Asks the relay to retry or skip one parked event; it acts at its next turn. False: it is not parked.
CREATE FUNCTION outbox.parked_request(seq bigint, what text, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE outbox.parked AS p SET request = what, requested_at = clock_timestamp(), requested_by = by
	WHERE p.seq = parked_request.seq;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	UPDATE outbox.relay AS r SET request = r.request + 1;
	RETURN true;
END
$$;

-- The same for every parked event of a key; returns how many.
CREATE FUNCTION outbox.parked_request_key(topic text, key text, what text, by text DEFAULT session_user)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	asked bigint;
BEGIN
	UPDATE outbox.parked AS p SET request = what, requested_at = clock_timestamp(), requested_by = by
	WHERE p.topic = parked_request_key.topic AND left(p.key, 100) = left(parked_request_key.key, 100)
	  AND p.key = parked_request_key.key;
	GET DIAGNOSTICS asked = ROW_COUNT;
	IF asked > 0 THEN
		UPDATE outbox.relay AS r SET request = r.request + 1;
	END IF;
	RETURN asked;
END
$$;

-- ---------------------------------------------------------------- who may do what

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
GRANT USAGE ON SCHEMA outbox TO outbox_writer, outbox_relay, outbox_operator;
GRANT SELECT ON outbox.schema_version TO outbox_writer, outbox_relay, outbox_operator;

-- What the defaults and the trigger of a plain INSERT call, as the inserting user.
GRANT EXECUTE ON FUNCTION
	outbox.uuid7(),
	outbox.accept(text, text, text, jsonb, bytea, jsonb, text, integer, text),
	outbox.refuse(text, text, text, jsonb, bytea, jsonb, text, integer, text),
	outbox.topic_problem(text, integer), outbox.bad_header(jsonb), outbox.shown(text)
TO outbox_writer;
GRANT INSERT (id, aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic, partition,
	aggregateversion, tracingspancontext, created_at) ON outbox.event TO outbox_writer;
GRANT SELECT (id, seq) ON outbox.event TO outbox_writer;
GRANT USAGE ON SEQUENCE outbox.event_seq TO outbox_writer;
GRANT EXECUTE ON FUNCTION
	outbox.publish(text, text, text, jsonb, jsonb, text, uuid),
	outbox.publish_bytes(text, text, text, bytea, jsonb, text, uuid),
	outbox.publish_many(jsonb),
	outbox.publish_at(timestamptz, text, text, text, jsonb, jsonb, text, uuid),
	outbox.publish_bytes_at(timestamptz, text, text, text, bytea, jsonb, text, uuid),
	outbox.cancel(uuid)
TO outbox_writer, outbox_operator;

GRANT SELECT ON outbox.event, outbox.scheduled, outbox.lag, outbox.partitions TO outbox_relay;
GRANT SELECT ON SEQUENCE outbox.event_seq TO outbox_relay, outbox_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.relay, outbox.parked, outbox.skipped, outbox.waiting
	TO outbox_relay;
GRANT USAGE ON SEQUENCE outbox.waiting_entry_seq TO outbox_relay;
GRANT EXECUTE ON FUNCTION
	outbox.move_due(integer),
	outbox.make_partitions(bigint, integer),
	outbox.drop_partition(text, pg_snapshot, bigint, interval)
TO outbox_relay;

GRANT SELECT ON outbox.event, outbox.scheduled, outbox.relay, outbox.parked, outbox.skipped, outbox.waiting,
	outbox.lag, outbox.partitions TO outbox_operator;
GRANT UPDATE (request, requested_at, requested_by) ON outbox.parked TO outbox_operator;
GRANT UPDATE (paused_at, paused_by, request) ON outbox.relay TO outbox_operator;
GRANT EXECUTE ON FUNCTION
	outbox.pause(text), outbox.resume(text),
	outbox.parked_request(bigint, text, text), outbox.parked_request_key(text, text, text, text)
TO outbox_operator;

-- The first ranges: 5 million events each, 16 beyond the one in use.
SELECT outbox.make_partitions();
