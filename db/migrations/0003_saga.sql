-- 0003_saga -- sagas: what the engine keeps of each instance, what participants need to take part, roles.
-- Creates only; takes no lock that a running application could feel. PostgreSQL 13 and newer.
-- Every name is qualified: it runs under any search_path. The tables' story is in db/README.md.
-- Texts that stand in a key are COLLATE "C": one order for all who lock rows, whatever libc says.

CREATE SCHEMA IF NOT EXISTS saga;
REVOKE ALL ON SCHEMA saga FROM PUBLIC;

-- Roles belong to the cluster: another database may be creating them at this very moment.
DO $$
DECLARE
	wanted text;
BEGIN
	FOREACH wanted IN ARRAY ARRAY['saga_engine', 'saga_participant', 'saga_operator'] LOOP
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

-- ---------------------------------------------------------------- definitions and instances

-- Instances in flight stay on their version: its text is parsed from here.
CREATE TABLE saga.definition (
	name text COLLATE "C" NOT NULL,
	version integer NOT NULL CHECK (version >= 1),
	style text NOT NULL CHECK (style IN ('orchestration', 'choreography')),
	text text NOT NULL,
	hash bytea NOT NULL,
	steps jsonb NOT NULL DEFAULT '[]',
	registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (name, version)
);
COMMENT ON COLUMN saga.definition.steps IS '[{"step", "kind", "sla"}...] in order, sla in microseconds: what views need of the text';

-- Slot 0 holds what is alive. The open one of saga.slot takes what ends (instances), what is noted (log) and what
-- participants record (barrier); a closed one takes nothing new and is dropped as a whole.
CREATE TABLE saga.slot (
	slot integer PRIMARY KEY,
	opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	closed_at timestamptz,
	last_instance uuid,
	last_barrier uuid
);
CREATE UNIQUE INDEX slot_open ON saga.slot ((closed_at IS NULL)) WHERE closed_at IS NULL;
COMMENT ON COLUMN saga.slot.last_instance IS
	'the greatest id in a closed slot: a greater one (version 7, so nearly all) need not be looked up there';
INSERT INTO saga.slot (slot) VALUES (1);

-- Who rotates, and how long he needs what is over: the longest holds.
CREATE TABLE saga.keeper (
	who text COLLATE "C" PRIMARY KEY,
	keep interval NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- json, not jsonb: it is written at each transition and read by the engine, as text both times (db/README.md).
CREATE TABLE saga.instance (
	id uuid NOT NULL,
	slot integer NOT NULL DEFAULT 0,
	name text COLLATE "C" NOT NULL,
	version integer NOT NULL,
	state text COLLATE "C" NOT NULL,
	turned boolean NOT NULL DEFAULT false,
	granted boolean NOT NULL DEFAULT true,
	data json NOT NULL DEFAULT '{}',
	steps json NOT NULL DEFAULT '[]',
	failed_step text,
	why text,
	started_at timestamptz NOT NULL,
	deadline_at timestamptz,
	since_at timestamptz NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	finished_at timestamptz,
	due_at timestamptz,
	part text COLLATE "C" NOT NULL,
	correlation text,
	PRIMARY KEY (id, slot),
	CHECK ((slot = 0) = (finished_at IS NULL))
) PARTITION BY LIST (slot);
COMMENT ON COLUMN saga.instance.since_at IS 'of its state';
COMMENT ON COLUMN saga.instance.due_at IS
	'its timer; when it fires nothing may be due any more: it is set anew then, and at once only when something is due earlier';
COMMENT ON COLUMN saga.instance.part IS 'topic-partition that it comes by: who reads that fires its timers and does its orders';
COMMENT ON COLUMN saga.instance.granted IS 'its semantic locks are its own, or it has none';

-- A new version of a row finds room beside the old one, and no index has a column that each step changes: such
-- updates touch one page and no index. due_at is moved at few of them.
CREATE TABLE saga.instance_0 PARTITION OF saga.instance FOR VALUES IN (0)
	WITH (fillfactor = 40, toast_tuple_target = 4080, autovacuum_vacuum_scale_factor = 0.05,
		autovacuum_vacuum_cost_delay = 0);
CREATE INDEX instance_0_due ON saga.instance_0 (part, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX instance_0_state ON saga.instance_0 (state, id) WHERE state <> 'RUNNING';
CREATE TABLE saga.instance_1 PARTITION OF saga.instance FOR VALUES IN (1);

CREATE VIEW saga.timer AS
SELECT i.id AS saga_id, i.part, i.due_at FROM saga.instance AS i WHERE i.slot = 0 AND i.due_at IS NOT NULL;
COMMENT ON VIEW saga.timer IS 'when each instance is looked at again without a reply';

-- What happened to each instance, in order of seq.
CREATE SEQUENCE saga.log_seq AS bigint CACHE 1;
CREATE TABLE saga.log (
	saga_id uuid NOT NULL,
	slot integer NOT NULL,
	at timestamptz NOT NULL,
	seq bigint NOT NULL DEFAULT nextval('saga.log_seq'),
	what text NOT NULL,
	step text,
	op text,
	command_id uuid,
	detail text,
	by text
) PARTITION BY LIST (slot);
ALTER SEQUENCE saga.log_seq OWNED BY saga.log.seq;
CREATE INDEX log_saga ON saga.log (saga_id);
CREATE TABLE saga.log_1 PARTITION OF saga.log FOR VALUES IN (1);
COMMENT ON COLUMN saga.log.by IS 'the person who ordered it';

-- Sum over lanes: each writer has rows of his own, so that nobody waits. Of the end states: how many ended so, ever.
CREATE TABLE saga.count (
	name text COLLATE "C" NOT NULL,
	state text COLLATE "C" NOT NULL,
	lane integer NOT NULL,
	n bigint NOT NULL,
	PRIMARY KEY (name, state, lane)
) WITH (fillfactor = 20);

-- ---------------------------------------------------------------- semantic locks

-- One row per saga and lock: the first of a lock's queue has it. All of a saga's rows are made at once.
CREATE TABLE saga.lock (
	saga_id uuid NOT NULL,
	lock text COLLATE "C" NOT NULL,
	place bigint GENERATED ALWAYS AS IDENTITY,
	granted boolean NOT NULL DEFAULT false,
	part text COLLATE "C" NOT NULL,
	PRIMARY KEY (saga_id, lock)
);
CREATE UNIQUE INDEX lock_place ON saga.lock (lock, place);
COMMENT ON COLUMN saga.lock.granted IS 'the saga is the first in all its queues, and was told so';

-- Whoever changes a queue holds its row here until he commits: else two could both be first, or neither be woken.
CREATE TABLE saga.lock_queue (
	lock text COLLATE "C" PRIMARY KEY,
	members bigint NOT NULL
) WITH (fillfactor = 50);

-- Sagas that got their locks by another one's end, and are to be begun.
CREATE TABLE saga.wake (
	saga_id uuid NOT NULL,
	part text COLLATE "C" NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX wake_part ON saga.wake (part);

-- ---------------------------------------------------------------- what an operator wants

CREATE TABLE saga."order" (
	entry bigserial PRIMARY KEY,
	saga_id uuid NOT NULL,
	part text COLLATE "C" NOT NULL,
	what text NOT NULL CHECK (what IN ('retry', 'skip', 'undo', 'abort', 'edit-data', 'migrate')),
	step text,
	detail jsonb,
	by text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	done_at timestamptz,
	outcome text CHECK (outcome IN ('done', 'refused')),
	reason text
);
CREATE INDEX order_waiting ON saga."order" (part, entry) WHERE done_at IS NULL;
CREATE INDEX order_saga ON saga."order" (saga_id);
COMMENT ON TABLE saga."order" IS 'the engine does them; done or refused they stay, as the record of who wanted what';

-- ---------------------------------------------------------------- what participants record

-- One row per step of a saga: whether it was done and undone here, with the reply to give again. Neither deleted
-- nor moved; an outcome NULL: begun, and no answer yet.
CREATE TABLE saga.barrier (
	slot integer NOT NULL,
	saga_id uuid NOT NULL,
	step text COLLATE "C" NOT NULL,
	do_command uuid,
	do_outcome text CHECK (do_outcome IN ('done', 'refused', 'failed')),
	do_reply jsonb,
	do_why text,
	effect jsonb,
	undo_command uuid,
	undo_outcome text CHECK (undo_outcome IN ('done', 'failed')),
	undo_reply jsonb,
	null_undo boolean NOT NULL DEFAULT false,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (saga_id, step, slot)
) PARTITION BY LIST (slot);
COMMENT ON COLUMN saga.barrier.effect IS 'what the do changed, for the undo to invert';
COMMENT ON COLUMN saga.barrier.null_undo IS 'the undo came, and there was nothing to undo: a late do finds this';
CREATE TABLE saga.barrier_1 PARTITION OF saga.barrier FOR VALUES IN (1) WITH (fillfactor = 45);

-- Requests by HTTP that had an Idempotency-Key: the id that it makes, and what was asked.
CREATE TABLE saga.request (
	saga_id uuid NOT NULL,
	slot integer NOT NULL,
	hash bytea NOT NULL,
	PRIMARY KEY (saga_id, slot)
) PARTITION BY LIST (slot);
CREATE TABLE saga.request_1 PARTITION OF saga.request FOR VALUES IN (1);

-- A service's copy of sagas, from the engine's events.
CREATE TABLE saga.copy (
	saga_id uuid PRIMARY KEY,
	name text COLLATE "C" NOT NULL,
	version integer,
	state text COLLATE "C" NOT NULL,
	step text,
	why text,
	data jsonb NOT NULL DEFAULT '{}',
	steps jsonb NOT NULL DEFAULT '[]',
	at timestamptz NOT NULL,
	sequence bigint NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX copy_at ON saga.copy (at) WHERE state IN ('COMPLETED', 'COMPENSATED', 'ABORTED', 'STARTING'); -- of forget_copies
COMMENT ON COLUMN saga.copy.sequence IS 'outbox-seq of the newest event that it was made of; 0: none yet';
COMMENT ON COLUMN saga.copy.state IS 'the engine''s word; STARTING: it was asked for here (saga.expect), the engine has not answered yet';

-- ---------------------------------------------------------------- views

CREATE VIEW saga.step AS
SELECT i.id AS saga_id, i.name AS saga, s.ord::integer AS place, s.step, s.state,
	CASE WHEN s.state IN ('DOING', 'UNDOING', 'STUCK') THEN CASE WHEN s.undo THEN 'undo' ELSE 'do' END END AS op,
	coalesce(s.tries, 0) AS tries, coalesce(CASE WHEN s.undo THEN s.undo_generation ELSE s.generation END, 0) AS generation,
	coalesce(s.waits, false) AS waits, timestamptz 'epoch' + nullif(s.due, 0) * interval '1 microsecond' AS due_at,
	timestamptz 'epoch' + nullif(s.since, 0) * interval '1 microsecond' AS since_at, nullif(s.why, '') AS why
FROM saga.instance AS i CROSS JOIN LATERAL ROWS FROM (json_to_recordset(i.steps)
	AS (step text, state text, undo boolean, tries integer, generation integer, undo_generation integer, waits boolean,
		due bigint, since bigint, why text))
	WITH ORDINALITY AS s (step, state, undo, tries, generation, undo_generation, waits, due, since, why, ord);
COMMENT ON VIEW saga.step IS 'the steps of each instance; op of those that are under way or stuck, generation of the op that was last';

CREATE VIEW saga.stuck AS
SELECT i.id AS saga_id, i.name, i.version, s.step, s.op, coalesce(i.why, s.why) AS why, s.tries, i.since_at,
	clock_timestamp() - i.since_at AS age
FROM saga.instance AS i
LEFT JOIN LATERAL (SELECT * FROM saga.step AS s WHERE s.saga_id = i.id AND s.state = 'STUCK' ORDER BY s.place LIMIT 1) AS s ON true
WHERE i.slot = 0 AND i.state = 'STUCK';
COMMENT ON VIEW saga.stuck IS 'instances that wait for a person';

CREATE VIEW saga.late AS
SELECT s.saga_id, s.saga AS name, s.step, s.state, s.since_at, clock_timestamp() - s.since_at AS age,
	(d.value ->> 'sla')::bigint * interval '1 microsecond' AS sla
FROM saga.instance AS i
JOIN saga.definition AS f ON f.name = i.name AND f.version = i.version
CROSS JOIN LATERAL jsonb_array_elements(f.steps) AS d
JOIN saga.step AS s ON s.saga_id = i.id AND s.step = d.value ->> 'step'
WHERE i.slot = 0 AND (d.value ->> 'sla')::bigint > 0 AND s.state IN ('DOING', 'UNDOING', 'STUCK')
  AND s.since_at < clock_timestamp() - (d.value ->> 'sla')::bigint * interval '1 microsecond';
COMMENT ON VIEW saga.late IS 'steps that are longer in their state than their sla';

-- ---------------------------------------------------------------- errors

CREATE FUNCTION saga.refuse_arguments(problem text, advice text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'saga: ' || problem, HINT = advice;
END
$$;

-- Ids for one statement: front || to_hex(rest + n) for n = 1, 2, ... is a uuid of version 7, greater each time, as RFC 9562
-- has it for many at once. A random one for each row costs six times as much.
CREATE FUNCTION saga.id_base(OUT front text, OUT rest bigint) LANGUAGE plpgsql AS $$
DECLARE
	id text := outbox.uuid7()::text;
BEGIN
	front := left(id, 19);
	rest := ('x' || replace(right(id, 17), '-', ''))::bit(64)::bigint & 2305843009213693951 | (-9223372036854775807 - 1);
END
$$;

-- The open slot, held open until the end of the transaction. Why a rotation beside it loses nothing: everybody who
-- writes into a slot holds this lock shared, saga.rotate takes it alone. So a closed slot takes nothing new, and
-- who writes into the next one sees all of it. Needs each statement to have its own snapshot.
CREATE FUNCTION saga.open_slot() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
			MESSAGE = format('saga: the transaction is %s, not READ COMMITTED', upper(current_setting('transaction_isolation'))),
			HINT = 'Under one old snapshot it could not see what others have recorded meanwhile.';
	END IF;
	PERFORM pg_advisory_xact_lock_shared(7309475598860182633);
	RETURN (SELECT s.slot FROM saga.slot AS s WHERE s.closed_at IS NULL);
END
$$;

-- ---------------------------------------------------------------- start

-- Asks the engine to start a saga, in the caller's transaction: it does if and only if this commits. A second start
-- of one id is noted by the engine and does nothing. An id of your own should be version 7.
CREATE FUNCTION saga.start(name text, data jsonb DEFAULT '{}', id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	chosen uuid := coalesce(id, outbox.uuid7());
BEGIN
	IF name IS NULL OR name COLLATE "C" !~ '^[A-Za-z0-9_-]{1,64}$' THEN
		PERFORM saga.refuse_arguments(coalesce('the name ' || outbox.shown(name) || ' is no name of a saga', 'the name is missing'),
			'Use 1 to 64 of A-Z a-z 0-9 _ -, as the definition does.');
	END IF;
	IF jsonb_typeof(data) IS DISTINCT FROM 'object' THEN
		PERFORM saga.refuse_arguments(format('data is %s, not an object', coalesce('a JSON ' || jsonb_typeof(data), 'NULL')),
			'Give {"name": value, ...}; {} for none.');
	END IF;
	INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	VALUES ('saga', chosen::text, 'SagaStart', data,
		outbox.carried(jsonb_build_object('saga-name', name, 'saga-id', chosen)), 'outbox.saga.inbox', outbox.traceparent());
	RETURN chosen;
END
$$;

-- The same for one who may ask again with the same id because he did not hear: it is asked for once. NULL: that id
-- was used with other data.
CREATE FUNCTION saga.start_once(name text, data jsonb, id uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	open_slot integer := saga.open_slot();
	asked bytea := sha256(convert_to(start_once.data::text, 'UTF8'));
	before bytea;
BEGIN
	SELECT r.hash INTO before FROM saga.request AS r WHERE r.saga_id = start_once.id;
	IF before IS NULL THEN
		INSERT INTO saga.request AS r (saga_id, slot, hash) VALUES (start_once.id, open_slot, asked) ON CONFLICT DO NOTHING;
		IF FOUND THEN
			RETURN saga.start(start_once.name, start_once.data, start_once.id);
		END IF;
		SELECT r.hash INTO before FROM saga.request AS r WHERE r.saga_id = start_once.id; -- he who was faster
	END IF;
	RETURN CASE WHEN before = asked THEN start_once.id END;
END
$$;

-- ---------------------------------------------------------------- taking part: answers

-- Publishes a reply. base: further headers.
CREATE FUNCTION saga.answer(saga_id uuid, step text, op text, command_id uuid, outcome text, why text, reply jsonb,
	reply_to text, base jsonb, trace text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	VALUES ('saga', saga_id::text, 'SagaReply', coalesce(reply, '{}'),
		base || jsonb_build_object('saga-id', saga_id, 'saga-step', step, 'saga-op', op, 'saga-command-id', command_id,
			'saga-outcome', outcome) || CASE WHEN why <> '' THEN jsonb_build_object('saga-why', left(why, 1000)) ELSE '{}' END,
		coalesce(reply_to, 'outbox.saga.inbox'), trace);
END
$$;

CREATE FUNCTION saga.check_command(saga_id uuid, step text, op text, command_id uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF saga_id IS NOT NULL AND command_id IS NOT NULL AND op IN ('do', 'undo') AND octet_length(step) BETWEEN 1 AND 256 THEN
		RETURN;
	END IF;
	PERFORM saga.refuse_arguments(CASE
		WHEN saga_id IS NULL THEN 'the saga''s id is missing'
		WHEN command_id IS NULL THEN 'the command''s id is missing'
		WHEN step IS NULL OR step = '' THEN 'the step is missing'
		WHEN op IS NULL THEN 'the op is missing'
		WHEN op NOT IN ('do', 'undo') THEN 'the op ' || outbox.shown(op) || ' is neither do nor undo'
		ELSE format('the step has %s bytes, 256 is the most', octet_length(step)) END,
		'Pass on the command''s headers saga-id, saga-step, saga-op and saga-command-id.');
END
$$;

-- The header of a command as a uuid; an error that says which when it is none.
CREATE FUNCTION saga.header_uuid(headers jsonb, name text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN (headers ->> name)::uuid;
EXCEPTION WHEN invalid_text_representation THEN
	PERFORM saga.refuse_arguments(format('the header %s is %s', name, outbox.shown(headers ->> name)), 'It must be a uuid.');
END
$$;

-- The trace that a message carries; NULL: none, or a producer's mistake, which is no reason to fail.
CREATE FUNCTION saga.trace_of(headers jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	trace text := headers ->> 'traceparent';
BEGIN
	IF trace COLLATE "C" ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' AND trace !~ '^ff|^..-0{32}|-0{16}-' THEN
		RETURN trace;
	END IF;
	RETURN NULL;
END
$$;

-- ---------------------------------------------------------------- taking part: the barrier

-- One command at the barrier: whether it is to be done, and what the do recorded; when not, the answer that it gets,
-- if any, is published. Rows are locked to the end of the transaction: a second call of the same step waits. An
-- unknown step is inserted, so that two first calls meet in the unique index of the open slot.
CREATE FUNCTION saga.pass(saga_id uuid, step text, op text, command_id uuid, effect jsonb, reply_to text, base jsonb,
	trace text, OUT go boolean, OUT recorded jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	open_slot integer := saga.open_slot();
	older integer[];
	dropped_at timestamptz;
	b saga.barrier;
BEGIN
	go := false;
	SELECT array_agg(s.slot) FILTER (WHERE s.last_barrier >= pass.saga_id),
		CASE WHEN min(s.slot) > 1 THEN min(s.opened_at) + interval '1 minute' END
	INTO older, dropped_at FROM saga.slot AS s;
	IF older IS NOT NULL THEN
		SELECT x.* INTO b FROM saga.barrier AS x
		WHERE x.saga_id = pass.saga_id AND x.step = pass.step AND x.slot = ANY (older) FOR UPDATE;
	END IF;
	IF b.saga_id IS NULL THEN
		-- Older than all that is still recorded: the do may have been recorded, and dropped since. To answer that there
		-- was nothing to undo could lose money; a person must look. A version 7 id tells its time.
		IF op = 'undo' AND substr(pass.saga_id::text, 15, 1) = '7' AND pass.saga_id < encode(overlay('\x00000000000070008000000000000000'::bytea
			PLACING substring(int8send((extract(epoch FROM dropped_at) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 'hex')::uuid
			AND NOT EXISTS (SELECT FROM saga.barrier AS x
				WHERE x.saga_id = pass.saga_id AND x.step = pass.step AND x.slot = open_slot) THEN
			PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, 'failed',
				'forgotten: the saga is older than all that is recorded here', NULL, reply_to, base, trace);
			RETURN;
		END IF;
		INSERT INTO saga.barrier (slot, saga_id, step, do_command, effect, undo_command, undo_outcome, undo_reply, null_undo)
		SELECT open_slot, pass.saga_id, pass.step, n.do_command, n.effect, n.undo_command, n.undo_outcome, n.undo_reply, n.null_undo
		FROM (VALUES
			('do', command_id, pass.effect, NULL::uuid, NULL, NULL::jsonb, false),
			('undo', NULL, NULL, command_id, 'done', '{}', true)
		) AS n (op, do_command, effect, undo_command, undo_outcome, undo_reply, null_undo) WHERE n.op = pass.op
		ON CONFLICT DO NOTHING;
		IF FOUND THEN
			go := op = 'do';
			recorded := CASE WHEN go THEN pass.effect END;
			IF NOT go THEN
				PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, 'done', NULL, '{}', reply_to, base, trace);
			END IF;
			RETURN;
		END IF;
		SELECT x.* INTO STRICT b FROM saga.barrier AS x
		WHERE x.saga_id = pass.saga_id AND x.step = pass.step AND x.slot = open_slot FOR UPDATE;
	END IF;
	CASE
	WHEN op = 'do' AND b.undo_command IS NOT NULL THEN -- late
		PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, 'refused', 'undone', NULL, reply_to, base, trace);
	WHEN op = 'do' AND (b.do_outcome = 'done' OR b.do_outcome = 'refused' AND b.do_command = command_id) THEN -- again
		PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, b.do_outcome, b.do_why, b.do_reply, reply_to, base, trace);
	-- Under way here: its reply will come. Another command of the same batch meets it too, and is sent again.
	WHEN op = 'do' AND b.do_outcome IS NULL AND (b.do_command = command_id OR b.at >= transaction_timestamp()) THEN
		NULL;
	-- The engine's ids end with their generation, 4 bytes: an older one is no new one, it came late.
	WHEN op = 'do' AND left(command_id::text, 28) = left(b.do_command::text, 28) AND command_id < b.do_command THEN
		IF b.do_outcome IS NOT NULL THEN
			PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, b.do_outcome, b.do_why, b.do_reply, reply_to, base, trace);
		END IF;
	WHEN op = 'do' THEN -- failed, or wanted again after a refusal
		UPDATE saga.barrier AS x SET do_command = command_id, do_outcome = NULL, do_reply = NULL, do_why = NULL,
			effect = pass.effect, at = clock_timestamp()
		WHERE x.saga_id = b.saga_id AND x.step = b.step AND x.slot = b.slot;
		go := true;
		recorded := pass.effect;
	WHEN b.undo_outcome = 'done' THEN -- again
		PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, 'done', NULL, b.undo_reply, reply_to, base, trace);
	WHEN b.do_outcome IN ('refused', 'failed') THEN -- there is nothing to undo
		UPDATE saga.barrier AS x SET undo_command = command_id, undo_outcome = 'done', undo_reply = '{}', null_undo = true,
			at = clock_timestamp()
		WHERE x.saga_id = b.saga_id AND x.step = b.step AND x.slot = b.slot;
		PERFORM saga.answer(pass.saga_id, pass.step, op, command_id, 'done', NULL, '{}', reply_to, base, trace);
	WHEN b.undo_outcome IS NULL AND (b.undo_command = command_id OR b.undo_command IS NOT NULL AND b.at >= transaction_timestamp()) THEN
		NULL; -- it is under way here
	ELSE
		UPDATE saga.barrier AS x SET undo_command = command_id, undo_outcome = NULL, at = clock_timestamp()
		WHERE x.saga_id = b.saga_id AND x.step = b.step AND x.slot = b.slot;
		go := true;
		recorded := b.effect;
	END CASE;
END
$$;

-- Whether to do it. False: do nothing; what the engine is to hear was published, or will be by who does it already.
CREATE FUNCTION saga.barrier(saga_id uuid, step text, op text, command_id uuid, effect jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.check_command(saga_id, step, op, command_id);
	RETURN (SELECT p.go FROM saga.pass(saga_id, step, op, command_id, effect, NULL, outbox.carried('{}'), outbox.traceparent()) AS p);
END
$$;

CREATE FUNCTION saga.barrier(message inbox.message, effect jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	h jsonb := message.headers;
	id uuid := saga.header_uuid(h, 'saga-id');
	command uuid := saga.header_uuid(h, 'saga-command-id');
BEGIN
	PERFORM saga.check_command(id, h ->> 'saga-step', h ->> 'saga-op', command);
	RETURN (SELECT p.go FROM saga.pass(id, h ->> 'saga-step', h ->> 'saga-op', command, effect, h ->> 'saga-reply-to',
		outbox.carried('{}'), coalesce(outbox.traceparent(), saga.trace_of(h))) AS p);
END
$$;

-- What the do recorded; NULL when nothing.
CREATE FUNCTION saga.effect(saga_id uuid, step text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
	RETURN (SELECT b.effect FROM saga.barrier AS b WHERE b.saga_id = effect.saga_id AND b.step = effect.step LIMIT 1);
END
$$;

CREATE FUNCTION saga.effect(message inbox.message) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT saga.effect(saga.header_uuid(message.headers, 'saga-id'), message.headers ->> 'saga-step')
$$;

CREATE FUNCTION saga.refuse_unknown(saga_id uuid, step text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
		MESSAGE = format('saga: step %s of saga %s has not passed the barrier', coalesce(step, 'NULL'), coalesce(saga_id::text, 'NULL')),
		HINT = 'Call saga.barrier() first, in this transaction, and answer only when it returned true.';
END
$$;

-- After the barrier, when only the work shows what is to be inverted.
CREATE FUNCTION saga.set_effect(saga_id uuid, step text, effect jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
	UPDATE saga.barrier AS b SET effect = set_effect.effect
	WHERE b.saga_id = set_effect.saga_id AND b.step = set_effect.step AND b.do_command IS NOT NULL;
	IF NOT FOUND THEN
		PERFORM saga.refuse_unknown(set_effect.saga_id, set_effect.step);
	END IF;
END
$$;

CREATE FUNCTION saga.set_effect(message inbox.message, effect jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT saga.set_effect(saga.header_uuid(message.headers, 'saga-id'), message.headers ->> 'saga-step', effect)
$$;

-- Records outcomes, of one step each. A refused or failed undo may be tried again, a failed do also: nothing was
-- changed then, so there is no effect to undo either. Returns how many steps it found.
CREATE FUNCTION saga.record(ids uuid[], steps text[], ops text[], outcomes text[], replies jsonb[], whys text[])
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	n bigint := 0;
	m bigint;
BEGIN
	IF 'do' = ANY (ops) THEN
		UPDATE saga.barrier AS b SET do_outcome = u.outcome, do_why = u.why,
			do_reply = CASE WHEN u.outcome <> 'failed' THEN nullif(u.reply, '{}') END,
			effect = CASE WHEN u.outcome <> 'failed' THEN b.effect END
		FROM unnest(ids, steps, ops, outcomes, replies, whys) AS u (id, step, op, outcome, reply, why)
		WHERE u.op = 'do' AND b.saga_id = u.id AND b.step = u.step AND b.do_command IS NOT NULL;
		GET DIAGNOSTICS n = ROW_COUNT;
	END IF;
	IF 'undo' = ANY (ops) THEN
		UPDATE saga.barrier AS b SET undo_outcome = CASE u.outcome WHEN 'done' THEN 'done' ELSE 'failed' END,
			undo_reply = CASE u.outcome WHEN 'done' THEN u.reply END
		FROM unnest(ids, steps, ops, outcomes, replies) AS u (id, step, op, outcome, reply)
		WHERE u.op = 'undo' AND b.saga_id = u.id AND b.step = u.step AND b.undo_command IS NOT NULL;
		GET DIAGNOSTICS m = ROW_COUNT;
	END IF;
	RETURN n + coalesce(m, 0);
END
$$;

-- Records the outcome of what the barrier let through, and publishes it.
CREATE FUNCTION saga.reply(saga_id uuid, step text, op text, command_id uuid, outcome text, why text, reply jsonb,
	reply_to text, base jsonb, trace text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM saga.check_command(saga_id, step, op, command_id);
	IF jsonb_typeof(reply) IS DISTINCT FROM 'object' THEN
		PERFORM saga.refuse_arguments(format('the reply is %s, not an object', coalesce('a JSON ' || jsonb_typeof(reply), 'NULL')),
			'Give {"name": value, ...}; {} for none.');
	END IF;
	IF saga.record(ARRAY[saga_id], ARRAY[step], ARRAY[op], ARRAY[outcome], ARRAY[reply], ARRAY[why]) = 0 THEN
		PERFORM saga.refuse_unknown(saga_id, step);
	END IF;
	PERFORM saga.answer(saga_id, step, op, command_id, outcome, why, reply, reply_to, base, trace);
END
$$;

CREATE FUNCTION saga.done(saga_id uuid, step text, op text, command_id uuid, reply jsonb DEFAULT '{}', reply_to text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(saga_id, step, op, command_id, 'done', NULL, reply, reply_to, outbox.carried('{}'), outbox.traceparent());
END
$$;

-- For good: the do changed nothing and will not, however often it is asked. Of an undo the same as saga.fail.
CREATE FUNCTION saga.refuse(saga_id uuid, step text, op text, command_id uuid, why text, reply jsonb DEFAULT '{}',
	reply_to text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(saga_id, step, op, command_id, 'refused', why, reply, reply_to, outbox.carried('{}'), outbox.traceparent());
END
$$;

-- It changed nothing, and may succeed another time.
CREATE FUNCTION saga.fail(saga_id uuid, step text, op text, command_id uuid, why text, reply_to text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(saga_id, step, op, command_id, 'failed', why, '{}', reply_to, outbox.carried('{}'), outbox.traceparent());
END
$$;

CREATE FUNCTION saga.reply(message inbox.message, outcome text, why text, reply jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	h jsonb := message.headers;
BEGIN
	PERFORM saga.reply(saga.header_uuid(h, 'saga-id'), h ->> 'saga-step', h ->> 'saga-op',
		saga.header_uuid(h, 'saga-command-id'), outcome, why, reply, h ->> 'saga-reply-to', outbox.carried('{}'),
		coalesce(outbox.traceparent(), saga.trace_of(h)));
END
$$;

CREATE FUNCTION saga.done(message inbox.message, reply jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(message, 'done', NULL, reply);
END
$$;

CREATE FUNCTION saga.refuse(message inbox.message, why text, reply jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(message, 'refused', why, reply);
END
$$;

CREATE FUNCTION saga.fail(message inbox.message, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM saga.reply(message, 'failed', why, '{}');
END
$$;

-- ---------------------------------------------------------------- taking part: many at once

-- saga.barrier for a batch; ord is the place in messages, from 1. effects: of the dos, in the same order. The usual
-- ones, dos that nobody has seen and undos of what was done, are one statement each; what is left goes one by one.
CREATE FUNCTION saga.barriers(messages inbox.message[], effects jsonb[] DEFAULT NULL)
RETURNS TABLE (ord integer, go boolean, effect jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	open_slot integer := saga.open_slot();
	older integer[];
	ids uuid[];
	steps text[];
	ops text[];
	commands uuid[];
	dos integer;
	undos integer[];
	passed integer[]; -- places that are decided
	again record;
	h jsonb;
BEGIN
	IF effects IS NOT NULL AND cardinality(effects) <> cardinality(messages) THEN
		PERFORM saga.refuse_arguments('as many effects as messages, please', 'An effect may be NULL.');
	END IF;
	BEGIN
		SELECT array_agg((m.headers ->> 'saga-id')::uuid ORDER BY m.n), array_agg(m.headers ->> 'saga-step' ORDER BY m.n),
			array_agg(m.headers ->> 'saga-op' ORDER BY m.n), array_agg((m.headers ->> 'saga-command-id')::uuid ORDER BY m.n)
		INTO ids, steps, ops, commands
		FROM unnest(messages) WITH ORDINALITY
			AS m (id, topic, partition, message_offset, key, type, payload, payload_bytes, headers, "time", n);
	EXCEPTION WHEN invalid_text_representation THEN
		PERFORM saga.header_uuid(m.headers, 'saga-id'), saga.header_uuid(m.headers, 'saga-command-id') FROM unnest(messages) AS m;
		RAISE;
	END;
	SELECT count(*) FILTER (WHERE u.op = 'do' AND u.command IS NOT NULL AND octet_length(u.step) BETWEEN 1 AND 256),
		array_agg(u.n::integer) FILTER (WHERE u.op = 'undo')
	INTO dos, undos FROM unnest(ids, steps, ops, commands) WITH ORDINALITY AS u (id, step, op, command, n);
	IF dos <> coalesce(cardinality(ids), 0) THEN
		PERFORM saga.check_command(u.id, u.step, u.op, u.command) FROM unnest(ids, steps, ops, commands) AS u (id, step, op, command);
	END IF;
	-- They would meet in one UPDATE of the participant, which sees the first state only. The consumer halves the batch
	-- until they are apart.
	IF undos IS NOT NULL AND EXISTS (
		SELECT FROM unnest(ids, steps, ops) WITH ORDINALITY AS u (id, step, op, n) GROUP BY u.id, u.step
		HAVING min(u.n) FILTER (WHERE u.op = 'do') < max(u.n) FILTER (WHERE u.op = 'undo')) THEN
		RAISE EXCEPTION USING ERRCODE = 'PRB01', MESSAGE = 'saga: a do and the undo of the same step in one batch',
			HINT = 'A consumer handles them in two batches by itself. Other callers: call saga.barriers for each.';
	END IF;
	SELECT array_agg(s.slot) FILTER (WHERE s.last_barrier >= (SELECT min(i::text) FROM unnest(ids) AS i)::uuid)
	INTO older FROM saga.slot AS s;

	-- Sorted: two of us with the same steps in another order would deadlock. A plain INSERT first, because
	-- ON CONFLICT DO NOTHING costs twice as much (figures in db/README.md).
	IF undos IS NULL AND older IS NULL THEN
		BEGIN
			INSERT INTO saga.barrier (slot, saga_id, step, do_command, effect)
			SELECT open_slot, u.id, u.step, u.command, u.effect
			FROM unnest(ids, steps, commands, effects) AS u (id, step, command, effect) ORDER BY u.id, u.step;
			RETURN QUERY SELECT u.n::integer, true, u.effect
			FROM unnest(ids, effects) WITH ORDINALITY AS u (id, effect, n) WHERE u.n <= cardinality(ids);
			RETURN;
		EXCEPTION WHEN unique_violation THEN
			NULL;
		END;
	END IF;
	WITH new AS (
		INSERT INTO saga.barrier AS b (slot, saga_id, step, do_command, effect)
		SELECT open_slot, f.id, f.step, f.command, f.effect
		FROM (
			SELECT DISTINCT ON (u.id, u.step) u.* FROM unnest(ids, steps, ops, commands, effects) WITH ORDINALITY
				AS u (id, step, op, command, effect, n)
			ORDER BY u.id, u.step, u.n
		) AS f
		WHERE f.op = 'do' AND NOT EXISTS (
			SELECT FROM saga.barrier AS x WHERE x.slot = ANY (older) AND x.saga_id = f.id AND x.step = f.step)
		ORDER BY f.id, f.step
		ON CONFLICT DO NOTHING RETURNING b.saga_id, b.step
	)
	SELECT array_agg(d.n) INTO passed FROM (
		SELECT DISTINCT ON (u.id, u.step) u.id, u.step, u.n::integer AS n
		FROM unnest(ids, steps) WITH ORDINALITY AS u (id, step, n) ORDER BY u.id, u.step, u.n
	) AS d WHERE (d.id, d.step) IN (SELECT new.saga_id, new.step FROM new);
	RETURN QUERY SELECT u.n::integer, true, u.effect
	FROM unnest(ids, effects) WITH ORDINALITY AS u (id, effect, n) WHERE u.n = ANY (passed);

	FOR again IN
		SELECT u.*, u.n::integer AS place FROM unnest(ids, steps, ops, commands, effects) WITH ORDINALITY
			AS u (id, step, op, command, effect, n)
		WHERE u.n <= cardinality(ids) AND NOT u.n = ANY (coalesce(passed, '{}')) ORDER BY u.id, u.step, u.n
	LOOP
		h := messages[again.place].headers;
		ord := again.place;
		SELECT p.go, p.recorded INTO go, effect FROM saga.pass(again.id, again.step, again.op, again.command, again.effect,
			h ->> 'saga-reply-to', '{}', saga.trace_of(h)) AS p;
		RETURN NEXT;
	END LOOP;
END
$$;

-- saga.done, saga.refuse or saga.fail for many of a batch: ord are places in messages, the other arrays go with ord.
-- replies NULL: {} for all.
CREATE FUNCTION saga.replies(messages inbox.message[], ord integer[], outcomes text[], replies jsonb[] DEFAULT NULL,
	whys text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
	ids uuid[];
	steps text[];
	ops text[];
	commands text[];
	topics text[];
	traces text[];
	n bigint;
	base record := saga.id_base();
BEGIN
	IF cardinality(ord) IS DISTINCT FROM cardinality(outcomes) OR ord IS NULL
		OR replies IS NOT NULL AND cardinality(replies) <> cardinality(ord)
		OR whys IS NOT NULL AND cardinality(whys) <> cardinality(ord)
		OR NOT outcomes <@ '{done,refused,failed}' OR NULL = ANY (outcomes)
		OR EXISTS (SELECT FROM unnest(ord) AS o WHERE o IS NULL OR o NOT BETWEEN 1 AND cardinality(messages))
		OR EXISTS (SELECT FROM unnest(replies) AS r WHERE jsonb_typeof(r) <> 'object') THEN
		PERFORM saga.refuse_arguments('the replies make no sense', 'Give places of messages, from 1, and for each an '
			'outcome (done, refused, failed), an object or NULL, and a reason or NULL.');
	END IF;
	SELECT array_agg((m.headers ->> 'saga-id')::uuid ORDER BY o.i), array_agg(m.headers ->> 'saga-step' ORDER BY o.i),
		array_agg(m.headers ->> 'saga-op' ORDER BY o.i), array_agg(m.headers ->> 'saga-command-id' ORDER BY o.i),
		array_agg(coalesce(m.headers ->> 'saga-reply-to', 'outbox.saga.inbox') ORDER BY o.i),
		array_agg(CASE WHEN m.headers ? 'traceparent' THEN saga.trace_of(m.headers) END ORDER BY o.i)
	INTO ids, steps, ops, commands, topics, traces
	FROM unnest(ord) WITH ORDINALITY AS o (ord, i) JOIN unnest(messages) WITH ORDINALITY
		AS m (id, topic, partition, message_offset, key, type, payload, payload_bytes, headers, "time", n) ON m.n = o.ord;
	n := saga.record(ids, steps, ops, outcomes, replies, whys);
	IF n < cardinality(ord) AND n < (SELECT count(DISTINCT (u.id, u.step, u.op)) FROM unnest(ids, steps, ops) AS u (id, step, op)) THEN
		PERFORM saga.refuse_unknown(u.id, u.step) FROM unnest(ids, steps) AS u (id, step)
		WHERE NOT EXISTS (SELECT FROM saga.barrier AS b WHERE b.saga_id = u.id AND b.step = u.step);
	END IF;
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	SELECT (base.front || to_hex(base.rest + u.n))::uuid, 'saga', u.id::text, 'SagaReply', coalesce(u.reply, '{}'),
		jsonb_object(ARRAY['saga-id', u.id::text, 'saga-step', u.step, 'saga-op', u.op, 'saga-command-id', u.command,
			'saga-outcome', u.outcome] || CASE WHEN u.why <> '' THEN ARRAY['saga-why', left(u.why, 1000)] END),
		u.topic, u.trace
	FROM unnest(ids, steps, ops, commands, outcomes, replies, whys, topics, traces) WITH ORDINALITY
		AS u (id, step, op, command, outcome, reply, why, topic, trace, n)
	ORDER BY u.n;
	RETURN n;
END
$$;

-- ---------------------------------------------------------------- a service's copy

-- The service asked for it and can say so before the engine has answered. Returns the id: saga.expect(saga.start(...), ...).
CREATE FUNCTION saga.expect(id uuid, name text, data jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	INSERT INTO saga.copy (saga_id, name, state, data, at, sequence)
	VALUES (id, name, 'STARTING', coalesce(data, '{}'), clock_timestamp(), 0) ON CONFLICT DO NOTHING;
	RETURN id;
END
$$;

-- Handlers for topic outbox.event.saga: keep the newest event of each saga. An older one never overwrites a newer.
CREATE FUNCTION saga.on_events(messages inbox.message[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	INSERT INTO saga.copy AS c (saga_id, name, version, state, step, why, data, steps, at, sequence)
	SELECT DISTINCT ON (e.id) e.id, e.p ->> 'name', (e.p ->> 'version')::integer, e.p ->> 'state', e.p ->> 'step',
		e.p ->> 'why', coalesce(e.p -> 'data', '{}'), coalesce(e.p -> 'steps', '[]'), coalesce(e.at, clock_timestamp()), e.sequence
	FROM (SELECT (m.payload ->> 'saga_id')::uuid AS id, m.payload AS p, m."time" AS at,
			coalesce((m.headers ->> 'outbox-seq')::bigint, 0) AS sequence, m.n
		FROM unnest(messages) WITH ORDINALITY
			AS m (_, topic, partition, message_offset, key, type, payload, payload_bytes, headers, "time", n)) AS e
	ORDER BY e.id, e.sequence DESC, e.n DESC
	ON CONFLICT (saga_id) DO UPDATE SET name = EXCLUDED.name, version = EXCLUDED.version, state = EXCLUDED.state,
		step = EXCLUDED.step, why = EXCLUDED.why, data = EXCLUDED.data, steps = EXCLUDED.steps, at = EXCLUDED.at,
		sequence = EXCLUDED.sequence
	WHERE EXCLUDED.sequence > c.sequence;
END
$$;

CREATE FUNCTION saga.on_event(message inbox.message) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT saga.on_events(ARRAY[message])
$$;

-- ---------------------------------------------------------------- the engine

-- Notes a definition. 'new'; 'same': it is there; 'other': another text is there under this name and version.
CREATE FUNCTION saga.register(name text, version integer, style text, text text, hash bytea, steps jsonb DEFAULT '[]')
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	INSERT INTO saga.definition (name, version, style, text, hash, steps)
	VALUES (register.name, register.version, register.style, register.text, register.hash, register.steps)
	ON CONFLICT DO NOTHING;
	IF FOUND THEN
		RETURN 'new';
	END IF;
	RETURN (SELECT CASE WHEN d.hash = register.hash THEN 'same' ELSE 'other' END FROM saga.definition AS d
		WHERE d.name = register.name AND d.version = register.version);
END
$$;

-- Instances by id, each id once. found 1: alive, and locked until the end of the transaction, in the order of ids;
-- 2: it is over, only name, version, state, since_at and finished_at tell something. An unknown id has no row. skip: what another
-- transaction has locked has no row either, nor has what is over. ord is the place in ids, from 1; now the database's clock.
-- lock_free: not granted so far, but its locks are its own by now.
CREATE FUNCTION saga.load(ids uuid[], skip boolean DEFAULT false)
RETURNS TABLE (ord integer, found integer, name text, version integer, state text, turned boolean, granted boolean,
	lock_free boolean, data json, steps json, failed_step text, why text, started_at timestamptz, deadline_at timestamptz,
	since_at timestamptz, due_at timestamptz, part text, correlation text, finished_at timestamptz, now timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	n bigint;
	first uuid;
	older integer[];
BEGIN
	IF skip THEN
		RETURN QUERY
		SELECT u.n::integer, 1, i.name, i.version, i.state, i.turned, i.granted, NOT i.granted AND NOT EXISTS (
				SELECT FROM saga.lock AS l WHERE l.saga_id = i.id AND NOT l.granted),
			i.data, i.steps, i.failed_step, i.why, i.started_at, i.deadline_at, i.since_at, i.due_at, i.part, i.correlation,
			i.finished_at, clock_timestamp()
		FROM (SELECT w.id, w.n FROM unnest(ids) WITH ORDINALITY AS w (id, n) ORDER BY w.id) AS u
		JOIN saga.instance_0 AS i ON i.id = u.id ORDER BY i.id FOR UPDATE OF i SKIP LOCKED;
		RETURN;
	END IF;
	RETURN QUERY
	SELECT u.n::integer, 1, i.name, i.version, i.state, i.turned, i.granted, NOT i.granted AND NOT EXISTS (
			SELECT FROM saga.lock AS l WHERE l.saga_id = i.id AND NOT l.granted),
		i.data, i.steps, i.failed_step, i.why, i.started_at, i.deadline_at, i.since_at, i.due_at, i.part, i.correlation,
		i.finished_at, clock_timestamp()
	FROM (SELECT w.id, w.n FROM unnest(ids) WITH ORDINALITY AS w (id, n) ORDER BY w.id) AS u
	JOIN saga.instance_0 AS i ON i.id = u.id ORDER BY i.id FOR UPDATE OF i;
	GET DIAGNOSTICS n = ROW_COUNT;
	IF n >= cardinality(ids) THEN
		RETURN;
	END IF;
	-- A new snapshot: what ended while we waited for its lock is found here.
	SELECT u INTO first FROM unnest(ids) AS u ORDER BY u LIMIT 1;
	SELECT array_agg(s.slot) INTO older FROM saga.slot AS s WHERE s.closed_at IS NULL OR s.last_instance >= first;
	RETURN QUERY
	SELECT u.n::integer, 2, i.name, i.version, i.state, i.turned, i.granted, false, NULL::json, NULL::json, i.failed_step,
		i.why, i.started_at, i.deadline_at, i.since_at, NULL::timestamptz, i.part, i.correlation, i.finished_at, clock_timestamp()
	FROM unnest(ids) WITH ORDINALITY AS u (id, n) JOIN saga.instance AS i ON i.id = u.id AND i.slot = ANY (older);
END
$$;

-- One that is over, whole, locked until the end of the transaction: for an operator who wants it undone.
CREATE FUNCTION saga.ended(id uuid) RETURNS SETOF saga.instance
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM saga.open_slot();
	RETURN QUERY SELECT i.* FROM saga.instance AS i WHERE i.id = ended.id AND i.slot <> 0 FOR UPDATE OF i;
END
$$;

-- Puts one back among those that are alive, as it was; the engine then saves what becomes of it. Its semantic locks were
-- given back when it ended, and it does not ask for them again: what it undoes is its own.
CREATE FUNCTION saga.revive(id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM saga.open_slot();
	WITH gone AS (
		DELETE FROM saga.instance AS i WHERE i.id = revive.id AND i.slot <> 0 RETURNING i.*
	)
	INSERT INTO saga.instance_0 (id, slot, name, version, state, turned, granted, data, steps, failed_step, why, started_at,
		deadline_at, since_at, part, correlation)
	SELECT g.id, 0, g.name, g.version, g.state, g.turned, g.granted, g.data, g.steps, g.failed_step, g.why, g.started_at,
		g.deadline_at, g.since_at, g.part, g.correlation FROM gone AS g;
	RETURN FOUND;
END
$$;

-- Who is where in the queues of locks: ended ones leave, new ones come (lock_ids, locks: one element per saga and
-- lock, part is theirs). Whoever has become first in all his queues is granted them: the new ones
-- are returned, others go to saga.wake.
--
-- The rows of saga.lock_queue are taken in one sorted statement, and nothing of a queue is touched without its row.
-- A saga in several queues may become first in two of them by two transactions at once, neither of which sees the
-- other: its rows are locked, and looked at again by the second one when the first has ended.
CREATE FUNCTION saga.settle_locks(lock_ids uuid[], locks text[], lock_parts text[], ended uuid[]) RETURNS uuid[]
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
	touched text[];
	candidates uuid[];
	free uuid[];
BEGIN
	WITH queue AS (
		INSERT INTO saga.lock_queue AS q (lock, members)
		SELECT x.lock, sum(x.n) FROM (
			SELECT DISTINCT u.lock, u.id, 1 AS n FROM unnest(lock_ids, locks) AS u (id, lock)
			UNION ALL
			SELECT l.lock, l.saga_id, -1 FROM saga.lock AS l WHERE l.saga_id = ANY (ended)
		) AS x (lock, id, n) GROUP BY x.lock ORDER BY x.lock COLLATE "C"
		ON CONFLICT (lock) DO UPDATE SET members = q.members + EXCLUDED.members
		RETURNING q.lock
	)
	SELECT array_agg(queue.lock) INTO touched FROM queue;
	IF touched IS NULL THEN
		RETURN '{}';
	END IF;
	DELETE FROM saga.lock AS l WHERE l.saga_id = ANY (ended);
	INSERT INTO saga.lock (saga_id, lock, part)
	SELECT d.id, d.lock, d.part FROM (
		SELECT DISTINCT ON (u.id, u.lock) u.* FROM unnest(lock_ids, locks, lock_parts) WITH ORDINALITY AS u (id, lock, part, n)
		ORDER BY u.id, u.lock, u.n
	) AS d ORDER BY d.n;
	DELETE FROM saga.lock_queue AS q WHERE q.lock = ANY (touched) AND q.members = 0;
	SELECT array_agg(DISTINCT h.saga_id) INTO candidates FROM unnest(touched) AS t (lock) CROSS JOIN LATERAL (
		SELECT l.saga_id, l.granted FROM saga.lock AS l WHERE l.lock = t.lock ORDER BY l.place LIMIT 1) AS h
	WHERE NOT h.granted;
	IF candidates IS NULL THEN
		RETURN '{}';
	END IF;
	PERFORM FROM saga.lock AS l WHERE l.saga_id = ANY (candidates) ORDER BY l.saga_id, l.lock FOR UPDATE;
	SELECT array_agg(c) INTO free FROM unnest(candidates) AS c
	WHERE NOT EXISTS (SELECT FROM saga.lock AS l WHERE l.saga_id = c AND (l.granted OR EXISTS (
		SELECT FROM saga.lock AS e WHERE e.lock = l.lock AND e.place < l.place)));
	UPDATE saga.lock AS l SET granted = true WHERE l.saga_id = ANY (free);
	INSERT INTO saga.wake (saga_id, part)
	SELECT DISTINCT l.saga_id, l.part FROM saga.lock AS l WHERE l.saga_id = ANY (free) AND NOT l.saga_id = ANY (coalesce(lock_ids, '{}'));
	RETURN coalesce((SELECT array_agg(f) FROM unnest(free) AS f WHERE f = ANY (lock_ids)), '{}');
END
$$;

-- Writes instances back: new ones (fresh), those that go on, and those that end: their state says so. Each was loaded
-- in this transaction, or is new. data, steps, part NULL: as it was. was: the state before; NULL of a new one.
-- lock_ids, locks: of new ones that want semantic locks, saved as not granted; returns which of these have got theirs at
-- once, to be begun and saved again. writer: nobody else writes with this number at the same time, for speed only.
CREATE FUNCTION saga.save(writer integer, ids uuid[], fresh boolean[], names text[], versions integer[], was text[], states text[],
	turned boolean[], granted boolean[], data json[], steps json[], failed_steps text[], whys text[], started timestamptz[],
	deadlines timestamptz[], since timestamptz[], dues timestamptz[], parts text[], correlations text[],
	lock_ids uuid[] DEFAULT '{}', locks text[] DEFAULT '{}') RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	at timestamptz := clock_timestamp();
	open_slot integer;
	ended uuid[];
	n bigint := 0;
	m bigint;
	got uuid[] := '{}';
BEGIN
	IF true = ANY (fresh) THEN
		INSERT INTO saga.instance_0 (id, slot, name, version, state, turned, granted, data, steps, failed_step, why, started_at,
			deadline_at, since_at, updated_at, due_at, part, correlation)
		SELECT u.id, 0, u.name, u.version, u.state, u.turned, u.granted, coalesce(u.data, '{}'), coalesce(u.steps, '[]'),
			u.failed_step, u.why, u.started, u.deadline, u.since, at, u.due, u.part, u.correlation
		FROM unnest(ids, fresh, names, versions, states, turned, granted, data, steps, failed_steps, whys, started, deadlines,
				since, dues, parts, correlations)
			AS u (id, fresh, name, version, state, turned, granted, data, steps, failed_step, why, started, deadline,
				since, due, part, correlation)
		WHERE u.fresh AND u.state NOT IN ('COMPLETED', 'COMPENSATED', 'ABORTED');
		GET DIAGNOSTICS n = ROW_COUNT;
	END IF;
	IF false = ANY (fresh) THEN
		UPDATE saga.instance_0 AS i SET version = u.version, state = u.state, turned = u.turned, granted = u.granted,
			data = coalesce(u.data, i.data), steps = coalesce(u.steps, i.steps), failed_step = u.failed_step, why = u.why,
			deadline_at = u.deadline, since_at = u.since, updated_at = at, part = coalesce(u.part, i.part),
			-- Lazy: only set earlier, or anew when it has fired.
			due_at = CASE WHEN i.due_at IS NULL OR u.due < i.due_at OR i.due_at <= at THEN u.due ELSE i.due_at END
		FROM unnest(ids, fresh, versions, states, save.turned, save.granted, save.data, save.steps, failed_steps, whys, deadlines,
				since, dues, parts)
			AS u (id, fresh, version, state, turned, granted, data, steps, failed_step, why, deadline, since, due, part)
		WHERE i.id = u.id AND NOT u.fresh AND u.state NOT IN ('COMPLETED', 'COMPENSATED', 'ABORTED');
		GET DIAGNOSTICS m = ROW_COUNT;
		n := n + m;
	END IF;
	IF states && '{COMPLETED,COMPENSATED,ABORTED}' THEN
		open_slot := saga.open_slot();
		SELECT array_agg(u.id) INTO ended FROM unnest(ids, states) AS u (id, state)
		WHERE u.state IN ('COMPLETED', 'COMPENSATED', 'ABORTED');
		-- Not by UPDATE: who waits for the row would get an error when it moves, and finds it gone when it is deleted.
		WITH gone AS (
			DELETE FROM saga.instance_0 AS i
			USING unnest(ids, fresh, versions, states, save.turned, save.granted, save.data, save.steps, failed_steps, whys,
					deadlines, since, parts)
				AS u (id, fresh, version, state, turned, granted, data, steps, failed_step, why, deadline, since, part)
			WHERE i.id = u.id AND NOT u.fresh AND u.state IN ('COMPLETED', 'COMPENSATED', 'ABORTED')
			RETURNING i.id, i.name, u.version, u.state, u.turned, u.granted, coalesce(u.data, i.data) AS data,
				coalesce(u.steps, i.steps) AS steps, u.failed_step, u.why, i.started_at, u.deadline, u.since,
				coalesce(u.part, i.part) AS part, i.correlation
		), new AS ( -- and over at once
			SELECT u.* FROM unnest(ids, names, versions, states, turned, granted, data, steps, failed_steps, whys, started,
					deadlines, since, parts, correlations, fresh)
				AS u (id, name, version, state, turned, granted, data, steps, failed_step, why, started, deadline, since,
					part, correlation, fresh)
			WHERE u.fresh AND u.state IN ('COMPLETED', 'COMPENSATED', 'ABORTED')
		)
		INSERT INTO saga.instance (id, name, version, state, turned, granted, data, steps, failed_step, why, started_at,
			deadline_at, since_at, part, correlation, slot, updated_at, finished_at)
		SELECT g.*, open_slot, at, at FROM gone AS g
		UNION ALL
		SELECT f.id, f.name, f.version, f.state, f.turned, f.granted, coalesce(f.data, '{}'), coalesce(f.steps, '[]'),
			f.failed_step, f.why, f.started, f.deadline, f.since, f.part, f.correlation, open_slot, at, at FROM new AS f;
		GET DIAGNOSTICS m = ROW_COUNT;
		n := n + m;
	END IF;
	IF n <> coalesce(cardinality(ids), 0) THEN
		RAISE EXCEPTION USING ERRCODE = 'PRF01', MESSAGE = format('saga: %s of %s instances are not there any more',
			coalesce(cardinality(ids), 0) - n, coalesce(cardinality(ids), 0)),
			DETAIL = 'Another member has ended them, or they were not loaded in this transaction.';
	END IF;
	INSERT INTO saga.count AS c (name, state, lane, n)
	SELECT d.name, d.state, writer, sum(d.n) FROM (
		SELECT u.name, u.state, 1 FROM unnest(names, was, states) AS u (name, was, state) WHERE u.was IS DISTINCT FROM u.state
		UNION ALL
		SELECT u.name, u.was, -1 FROM unnest(names, was, states) AS u (name, was, state)
		WHERE u.was IS DISTINCT FROM u.state AND u.was IS NOT NULL
	) AS d (name, state, n) GROUP BY d.name, d.state HAVING sum(d.n) <> 0 ORDER BY d.name COLLATE "C", d.state COLLATE "C"
	ON CONFLICT (name, state, lane) DO UPDATE SET n = c.n + EXCLUDED.n;
	IF cardinality(lock_ids) > 0 OR EXISTS (SELECT FROM saga.lock AS l WHERE l.saga_id = ANY (ended)) THEN
		got := saga.settle_locks(lock_ids, locks, ARRAY(
			SELECT p.part FROM unnest(lock_ids) WITH ORDINALITY AS l (id, n)
			LEFT JOIN unnest(ids, parts) AS p (id, part) ON p.id = l.id ORDER BY l.n), ended);
	END IF;
	IF EXISTS (SELECT FROM saga.wake) THEN
		DELETE FROM saga.wake AS w WHERE w.saga_id = ANY (ids) AND EXISTS (
			SELECT FROM unnest(ids, granted, states) AS u (id, granted, state)
			WHERE u.id = w.saga_id AND (u.granted OR u.state IN ('COMPLETED', 'COMPENSATED', 'ABORTED')));
	END IF;
	RETURN got;
END
$$;

-- Notes what happened, in order.
CREATE FUNCTION saga.note(ids uuid[], ats timestamptz[], whats text[], steps text[], ops text[], commands uuid[], details text[],
	bys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	open_slot integer := saga.open_slot();
BEGIN
	INSERT INTO saga.log (saga_id, slot, at, what, step, op, command_id, detail, by)
	SELECT u.id, open_slot, u.at, u.what, u.step, u.op, u.command, u.detail, u.by
	FROM unnest(ids, ats, whats, steps, ops, commands, details, bys) AS u (id, at, what, step, op, command, detail, by);
END
$$;

-- Commands and events, in order: into the outbox of this database. keys: the record's. topics NULL: the relay's
-- route for aggregatetype saga. ids NULL: new ones; headers NULL: none.
CREATE FUNCTION saga.publish(ids uuid[], keys text[], types text[], topics text[], payloads jsonb[], headers jsonb[], traces text[])
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	published bigint;
	base record := saga.id_base();
BEGIN
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
	SELECT coalesce(u.id, (base.front || to_hex(base.rest + u.n))::uuid), 'saga', u.key, u.type, u.payload, coalesce(u.headers, '{}'), u.topic, u.trace
	FROM unnest(ids, keys, types, topics, payloads, headers, traces) WITH ORDINALITY
		AS u (id, key, type, topic, payload, headers, trace, n)
	ORDER BY u.n;
	GET DIAGNOSTICS published = ROW_COUNT;
	RETURN published;
END
$$;

-- Instances to look at without a reply, of these parts: those whose timer fires, up to befores (one per part; NULL: now),
-- the earliest first, and those that got their locks. At most most of each. Locks nothing: saga.load(ids, true) does.
CREATE FUNCTION saga.due(parts text[], befores timestamptz[], most integer DEFAULT 1000)
RETURNS TABLE (saga_id uuid, part text, due_at timestamptz, woken boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	at timestamptz := clock_timestamp();
BEGIN
	RETURN QUERY
	(SELECT d.id, p.part, d.due_at, false
	FROM unnest(parts, befores) AS p (part, before) CROSS JOIN LATERAL (
		SELECT i.id, i.due_at FROM saga.instance_0 AS i
		WHERE i.part = p.part AND i.due_at IS NOT NULL AND i.due_at <= least(p.before, at)
		ORDER BY i.due_at LIMIT most) AS d
	WHERE p.part IS NOT NULL ORDER BY d.due_at LIMIT most)
	UNION ALL
	(SELECT DISTINCT w.saga_id, w.part, w.at, true FROM saga.wake AS w WHERE w.part = ANY (parts) LIMIT most);
END
$$;

-- When the next timer of these parts fires; NULL: none does.
CREATE FUNCTION saga.next_due(parts text[]) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
	RETURN (SELECT min(d.due_at) FROM unnest(parts) AS p (part) CROSS JOIN LATERAL (
		SELECT i.due_at FROM saga.instance_0 AS i WHERE i.part = p.part AND i.due_at IS NOT NULL ORDER BY i.due_at LIMIT 1) AS d);
END
$$;

CREATE FUNCTION saga.orders_waiting(parts text[], most integer DEFAULT 100)
RETURNS TABLE (entry bigint, saga_id uuid, what text, step text, detail jsonb, by text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT o.entry, o.saga_id, o.what, o.step, o.detail, o.by, o.at FROM saga."order" AS o
	WHERE o.done_at IS NULL AND o.part = ANY (parts) ORDER BY o.entry LIMIT most
$$;

-- outcomes: done or refused; reasons why refused. Only those that wait; returns how many did.
CREATE FUNCTION saga.orders_done(entries bigint[], outcomes text[], reasons text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	UPDATE saga."order" AS o SET done_at = clock_timestamp(), outcome = u.outcome, reason = u.reason
	FROM unnest(entries, outcomes, reasons) AS u (entry, outcome, reason) WHERE o.entry = u.entry AND o.done_at IS NULL;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
$$;

-- Of the states that are no end: how many there are; of the ends: how many there ever were. Also 0, where there once
-- was one: a gauge would keep its last value.
CREATE FUNCTION saga.counts() RETURNS TABLE (name text, state text, n bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT c.name, c.state, sum(c.n)::bigint FROM saga.count AS c GROUP BY c.name, c.state ORDER BY 1, 2
$$;

-- ---------------------------------------------------------------- the operator

-- Asks the engine; returns the entry whose done_at, outcome and reason are to be awaited.
CREATE FUNCTION saga.order_new(saga_id uuid, what text, step text DEFAULT NULL, detail jsonb DEFAULT NULL,
	by text DEFAULT session_user) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	i record;
	made bigint;
BEGIN
	SELECT x.state, x.slot, x.part INTO i FROM saga.instance AS x WHERE x.id = order_new.saga_id ORDER BY x.slot LIMIT 1;
	IF NOT FOUND THEN
		PERFORM saga.refuse_arguments(format('there is no saga %s', coalesce(order_new.saga_id::text, 'NULL')),
			'Live and finished ones are in saga.instance; finished ones leave it some time after.');
	ELSIF order_new.what IS NULL OR order_new.what NOT IN ('retry', 'skip', 'undo', 'abort', 'edit-data', 'migrate') THEN
		PERFORM saga.refuse_arguments(format('there is no order %s', coalesce(outbox.shown(order_new.what), 'NULL')),
			'Orders are retry, skip, undo, abort, edit-data and migrate.');
	ELSIF i.slot <> 0 AND NOT (i.state = 'COMPLETED' AND order_new.what = 'undo') THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('saga: %s is %s', order_new.saga_id, i.state), HINT = CASE i.state WHEN 'COMPLETED'
				THEN 'It is over: it can only be undone.' ELSE 'It is over: nothing can be ordered any more.' END;
	END IF;
	INSERT INTO saga."order" (saga_id, part, what, step, detail, by)
	VALUES (order_new.saga_id, i.part, order_new.what, order_new.step, order_new.detail, coalesce(order_new.by, session_user))
	RETURNING entry INTO made;
	RETURN made;
END
$$;

-- ---------------------------------------------------------------- rotation

-- Drops what is over: does one thing, and returns 1: opens a new slot when the open one is older than half of keep, or
-- drops one that was closed longer than keep ago; the log of what is still alive moves on to the open one. 0: nothing was due, or another call is
-- at it. Of several who rotate the longest keep holds: it must be longer than any saga lasts, with all an
-- operator's time. Error 55P03 when the running transactions did not end in time: call again. The
-- longer it is overdue the longer it waits, at most 30 s, since all who write queue behind it. A drop waits 50 ms.
CREATE FUNCTION saga.rotate(keep interval, who text DEFAULT session_user) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
#variable_conflict use_column
DECLARE
	longest interval;
	open_slot integer;
	old integer;
	leaf text;
	overdue double precision;
	last_i uuid;
	last_b uuid;
BEGIN
	IF rotate.keep IS NULL OR rotate.keep < interval '0' THEN
		PERFORM saga.refuse_arguments('what is over cannot be kept for ' || coalesce(rotate.keep::text, 'NULL'),
			'Give an interval such as 7 days.');
	END IF;
	INSERT INTO saga.keeper AS k (who, keep) VALUES (rotate.who, rotate.keep)
	ON CONFLICT (who) DO UPDATE SET keep = EXCLUDED.keep, at = EXCLUDED.at WHERE k.keep <> EXCLUDED.keep;
	SELECT max(k.keep) INTO longest FROM saga.keeper AS k;
	SELECT s.slot INTO old FROM saga.slot AS s WHERE s.closed_at < clock_timestamp() - longest ORDER BY s.slot LIMIT 1;
	SELECT s.slot, extract(epoch FROM clock_timestamp() - longest / 2 - s.opened_at) INTO open_slot, overdue
	FROM saga.slot AS s WHERE s.closed_at IS NULL;
	IF old IS NULL AND overdue <= 0 OR NOT pg_try_advisory_xact_lock(7309475598860182634) THEN
		RETURN 0;
	END IF;
	IF overdue > 0 THEN
		PERFORM set_config('lock_timeout', least(30000, greatest(50, overdue))::integer || 'ms', true);
		PERFORM pg_advisory_xact_lock(7309475598860182633);
		PERFORM set_config('lock_timeout', '50ms', true); -- nobody writes until we are done
		EXECUTE format('SELECT id FROM saga.%I ORDER BY id DESC LIMIT 1', 'instance_' || open_slot) INTO last_i;
		EXECUTE format('SELECT saga_id FROM saga.%I ORDER BY saga_id DESC LIMIT 1', 'barrier_' || open_slot) INTO last_b;
		UPDATE saga.slot AS s SET closed_at = clock_timestamp(), last_instance = last_i, last_barrier = last_b WHERE s.slot = open_slot;
		INSERT INTO saga.slot (slot) VALUES (open_slot + 1);
		FOREACH leaf IN ARRAY ARRAY['instance', 'log', 'barrier', 'request'] LOOP
			EXECUTE format('CREATE TABLE saga.%I (LIKE saga.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', leaf || '_' || open_slot + 1, leaf);
			IF leaf = 'barrier' THEN
				EXECUTE format('ALTER TABLE saga.%I SET (fillfactor = 45)', leaf || '_' || open_slot + 1);
			END IF;
			EXECUTE format('ALTER TABLE saga.%I ATTACH PARTITION saga.%I FOR VALUES IN (%s)', leaf, leaf || '_' || open_slot + 1, open_slot + 1);
		END LOOP;
		RETURN 1;
	END IF;
	-- It has taken nothing new since it was closed, so what is copied is all there is.
	EXECUTE format('INSERT INTO saga.log (saga_id, slot, at, seq, what, step, op, command_id, detail, by) '
		'SELECT l.saga_id, $1, l.at, l.seq, l.what, l.step, l.op, l.command_id, l.detail, l.by FROM saga.%I AS l '
		'WHERE EXISTS (SELECT FROM saga.instance_0 AS i WHERE i.id = l.saga_id)', 'log_' || old) USING saga.open_slot();
	BEGIN
		FOREACH leaf IN ARRAY ARRAY['instance', 'log', 'barrier', 'request'] LOOP
			EXECUTE format('DROP TABLE saga.%I', leaf || '_' || old);
		END LOOP;
		DELETE FROM saga.slot AS s WHERE s.slot = old;
	EXCEPTION WHEN lock_not_available THEN -- somebody reads it: next time
		RAISE;
	END;
	RETURN 1;
END
$$;

-- Forgets copies of sagas that ended before, or were asked for and never answered, at most most; returns how many.
CREATE FUNCTION saga.forget_copies(keep interval, most integer DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n bigint;
BEGIN
	DELETE FROM saga.copy AS c WHERE c.saga_id IN (
		SELECT o.saga_id FROM saga.copy AS o WHERE o.state IN ('COMPLETED', 'COMPENSATED', 'ABORTED', 'STARTING')
		  AND o.at < clock_timestamp() - keep ORDER BY o.saga_id LIMIT most FOR UPDATE SKIP LOCKED);
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
$$;

-- ---------------------------------------------------------------- who may do what

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA saga FROM PUBLIC;
GRANT USAGE ON SCHEMA saga TO saga_engine, saga_participant, saga_operator, outbox_writer;
GRANT USAGE ON SCHEMA outbox, inbox TO saga_engine, saga_participant, saga_operator;
GRANT SELECT ON outbox.schema_version TO saga_engine, saga_participant, saga_operator;
GRANT SELECT ON saga.definition, saga.slot, saga.keeper, saga.instance, saga.timer, saga.log, saga.count, saga.lock,
	saga.lock_queue, saga.wake, saga."order", saga.barrier, saga.request, saga.copy, saga.step, saga.stuck, saga.late
TO saga_engine, saga_operator;
GRANT SELECT ON saga.barrier, saga.copy, saga.slot TO saga_participant;
GRANT EXECUTE ON FUNCTION saga.start(text, jsonb, uuid) TO saga_participant, saga_engine, saga_operator, outbox_writer;
GRANT EXECUTE ON FUNCTION
	saga.barrier(uuid, text, text, uuid, jsonb), saga.barrier(inbox.message, jsonb),
	saga.effect(uuid, text), saga.effect(inbox.message),
	saga.set_effect(uuid, text, jsonb), saga.set_effect(inbox.message, jsonb),
	saga.done(uuid, text, text, uuid, jsonb, text), saga.done(inbox.message, jsonb),
	saga.refuse(uuid, text, text, uuid, text, jsonb, text), saga.refuse(inbox.message, text, jsonb),
	saga.fail(uuid, text, text, uuid, text, text), saga.fail(inbox.message, text),
	saga.barriers(inbox.message[], jsonb[]), saga.replies(inbox.message[], integer[], text[], jsonb[], text[]),
	saga.expect(uuid, text, jsonb), saga.on_event(inbox.message), saga.on_events(inbox.message[]),
	saga.forget_copies(interval, integer)
TO saga_participant;
GRANT EXECUTE ON FUNCTION saga.rotate(interval, text) TO saga_engine, saga_participant;
GRANT EXECUTE ON FUNCTION
	saga.register(text, integer, text, text, bytea, jsonb), saga.load(uuid[], boolean),
	saga.save(integer, uuid[], boolean[], text[], integer[], text[], text[], boolean[], boolean[], json[], json[], text[], text[],
		timestamptz[], timestamptz[], timestamptz[], timestamptz[], text[], text[], uuid[], text[]),
	saga.note(uuid[], timestamptz[], text[], text[], text[], uuid[], text[], text[]),
	saga.publish(uuid[], text[], text[], text[], jsonb[], jsonb[], text[]),
	saga.ended(uuid), saga.revive(uuid), saga.start_once(text, jsonb, uuid),
	saga.due(text[], timestamptz[], integer), saga.next_due(text[]),
	saga.orders_waiting(text[], integer), saga.orders_done(bigint[], text[], text[])
TO saga_engine;
GRANT EXECUTE ON FUNCTION saga.counts() TO saga_engine, saga_operator;
GRANT EXECUTE ON FUNCTION saga.order_new(uuid, text, text, jsonb, text) TO saga_operator;
