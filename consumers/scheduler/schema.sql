-- Schema scheduler: timers. Run whole when its text has changed: all of it may be run again. Written by consumers of
-- kind scheduler only. States: ARMED -> FIRED | CANCELLED; CANCELLED also of one that was never armed, so that a
-- ScheduleAt which comes after its CancelTimer finds it; FAILED: it could not be armed. Lock order: saga.barrier, then
-- timers ascending by id.
CREATE SCHEMA IF NOT EXISTS scheduler;

CREATE TABLE IF NOT EXISTS scheduler.timer (
	timer_id    uuid PRIMARY KEY,
	state       text NOT NULL CHECK (state IN ('ARMED', 'FIRED', 'CANCELLED', 'FAILED')),
	kind        text,
	at          timestamptz,
	subject     jsonb NOT NULL DEFAULT '{}',
	correlation text,
	flow        jsonb NOT NULL DEFAULT '{}',
	trace       text,
	reason      text,
	made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	ended_at    timestamptz,
	CHECK ((state = 'ARMED') = (ended_at IS NULL)),
	CHECK (state NOT IN ('ARMED', 'FIRED') OR (kind IS NOT NULL AND at IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS timer_due ON scheduler.timer (at, timer_id) WHERE state = 'ARMED';
CREATE INDEX IF NOT EXISTS timer_ended ON scheduler.timer (ended_at) WHERE state <> 'ARMED';

CREATE OR REPLACE FUNCTION scheduler.rfc3339(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE OR REPLACE FUNCTION scheduler.refuse(problem text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'scheduler: ' || problem;
END
$$;

-- A JSON string that is a uuid; anything else is refused by its member's name.
CREATE OR REPLACE FUNCTION scheduler.uuid_of(given jsonb, member text) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF jsonb_typeof(given) IS DISTINCT FROM 'string'
		OR (given #>> '{}') !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
		PERFORM scheduler.refuse(format('%s is %s, not a uuid', member, coalesce(left(given::text, 60), 'missing')));
	END IF;
	RETURN (given #>> '{}')::uuid;
END
$$;

-- What tells a choreography's tracer whose event it is: copied from the command to the timer's events.
CREATE OR REPLACE FUNCTION scheduler.flow(payload jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN jsonb_typeof(payload) = 'object' AND payload ?| ARRAY['hold_id', 'choreography_id', 'hybrid_id'] THEN
		jsonb_strip_nulls(jsonb_build_object('hold_id', payload -> 'hold_id', 'choreography_id', payload -> 'choreography_id',
			'hybrid_id', payload -> 'hybrid_id')) ELSE '{}' END
$$;

-- NULL: it has none that is well-formed; a producer's mistake is no reason to fail.
CREATE OR REPLACE FUNCTION scheduler.trace_of(headers jsonb) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT h.trace FROM (SELECT headers ->> 'traceparent' AS trace) AS h
	WHERE h.trace COLLATE "C" ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' AND h.trace !~ '^ff|^..-0{32}|-0{16}-'
$$;

-- What a command asks for, 'arm' or 'cancel', and of which timers. Raises 22xxx when it can never be done. The undo of
-- whatever armed a timer cancels it.
CREATE OR REPLACE FUNCTION scheduler.read(m inbox.message, OUT wants text, OUT ids uuid[], OUT kind text, OUT at timestamptz,
	OUT subject jsonb) LANGUAGE plpgsql STABLE AS $$
DECLARE
	p jsonb := m.payload;
	undo boolean := coalesce(m.headers ->> 'saga-op' = 'undo', false);
	given text;
	lists integer;
BEGIN
	IF m.type IS DISTINCT FROM 'ScheduleAt' AND m.type IS DISTINCT FROM 'CancelTimer' AND NOT undo THEN
		PERFORM scheduler.refuse(format('there is no command %s', coalesce(left(m.type, 60), 'without a type')));
	ELSIF jsonb_typeof(p) IS DISTINCT FROM 'object' THEN
		PERFORM scheduler.refuse('the payload is no JSON object');
	END IF;
	wants := CASE WHEN m.type = 'ScheduleAt' AND NOT undo THEN 'arm' ELSE 'cancel' END;
	subject := coalesce(nullif(p -> 'subject', 'null'), '{}');
	IF wants = 'cancel' THEN
		SELECT count(*) INTO lists FROM unnest(ARRAY['timer_id', 'timer_ids', 'reservation_ids']) AS n WHERE p ? n;
		ids := '{}';
		IF p ? 'timer_id' THEN
			ids := ARRAY[scheduler.uuid_of(p -> 'timer_id', 'timer_id')];
		ELSIF lists > 0 THEN
			given := CASE WHEN p ? 'timer_ids' THEN 'timer_ids' ELSE 'reservation_ids' END;
			IF jsonb_typeof(p -> given) IS DISTINCT FROM 'array' OR jsonb_array_length(p -> given) > 1000 THEN
				PERFORM scheduler.refuse(given || ' is no list of at most 1000 uuids');
			END IF;
			SELECT coalesce(array_agg(DISTINCT scheduler.uuid_of(e, given || '[]')), '{}') INTO ids FROM jsonb_array_elements(p -> given) AS e;
		ELSIF NOT undo THEN
			PERFORM scheduler.refuse('timer_id, timer_ids or reservation_ids is missing');
		END IF;
		RETURN;
	END IF;
	ids := ARRAY[scheduler.uuid_of(p -> 'timer_id', 'timer_id')];
	kind := p ->> 'kind';
	given := p ->> 'at';
	IF jsonb_typeof(p -> 'kind') IS DISTINCT FROM 'string' OR length(kind) NOT BETWEEN 1 AND 100 THEN
		PERFORM scheduler.refuse('kind is missing, or no text of 1 to 100 characters');
	ELSIF jsonb_typeof(subject) <> 'object' OR octet_length(subject::text) > 65536 THEN
		PERFORM scheduler.refuse('subject is no JSON object of at most 64 kB');
	ELSIF jsonb_typeof(p -> 'at') IS DISTINCT FROM 'string'
		OR given !~ '^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$' THEN
		PERFORM scheduler.refuse(format('at is %s, not a time such as 2030-01-31T12:00:00Z', coalesce(left((p -> 'at')::text, 60), 'missing')));
	END IF;
	at := given::timestamptz;
END
$$;

-- The commands of a batch. Of the timers, one statement for the first command of each in the batch, one for the second,
-- and so on: nearly always one.
CREATE OR REPLACE FUNCTION scheduler.on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
	m inbox.message;
	r record;
	place integer := 0;
	-- of each message
	wants text[];
	part_of_saga inbox.message[] := '{}';
	saga_place integer[] := '{}';	-- in messages
	passed boolean[];	-- the barrier
	effects jsonb[] := '{}';
	-- of each timer of each message
	of_message integer[] := '{}';
	ids uuid[] := '{}';
	kinds text[] := '{}';
	ats timestamptz[] := '{}';
	subjects jsonb[] := '{}';
	causes uuid[] := '{}';
	correlations text[] := '{}';
	traces text[] := '{}';
	flows jsonb[] := '{}';
	turns integer[];
	most integer;
	states text[] := '{}';	-- after it, and whose
	stated integer[] := '{}';
	more_states text[];
	more_stated integer[];
	id uuid;
BEGIN
	FOREACH m IN ARRAY messages LOOP
		place := place + 1;
		r := scheduler.read(m);
		wants[place] := r.wants;
		FOREACH id IN ARRAY r.ids LOOP
			of_message := array_append(of_message, place);
			ids := array_append(ids, id);
			kinds := array_append(kinds, r.kind);
			ats := array_append(ats, r.at);
			subjects := array_append(subjects, r.subject);
			causes := array_append(causes, m.id);
			correlations := array_append(correlations, coalesce(m.headers ->> 'correlation-id', CASE r.wants WHEN 'arm' THEN id::text ELSE '' END));
			traces := array_append(traces, scheduler.trace_of(m.headers));
			flows := array_append(flows, scheduler.flow(m.payload));
		END LOOP;
		passed[place] := true;
		IF m.headers ? 'saga-id' THEN
			part_of_saga := array_append(part_of_saga, m);
			saga_place := array_append(saga_place, place);
			effects := array_append(effects, jsonb_build_object('timer_ids', to_jsonb(r.ids)));
		END IF;
	END LOOP;

	-- What was done before is answered there, and not done again. But an undo cancels even when its do did not come by the barrier: as a
	-- command without a saga, from a choreography.
	IF saga_place <> '{}' THEN
		FOR r IN SELECT b.ord, b.go FROM saga.barriers(part_of_saga, effects) AS b LOOP
			IF NOT r.go THEN
				passed[saga_place[r.ord]] := NULL;
			END IF;
		END LOOP;
		FOR r IN SELECT p.n, p.ord FROM unnest(saga_place) WITH ORDINALITY AS p (n, ord) LOOP
			IF passed[r.n] IS NULL THEN
				passed[r.n] := part_of_saga[r.ord].headers ->> 'saga-op' = 'undo';
				saga_place[r.ord] := 0;	-- has its answer
			END IF;
		END LOOP;
	END IF;

	SELECT array_agg(t.turn ORDER BY t.n), max(t.turn) INTO turns, most FROM (
		SELECT u.n, (row_number() OVER (PARTITION BY u.id ORDER BY u.n))::integer AS turn
		FROM unnest(ids) WITH ORDINALITY AS u (id, n)) AS t;
	FOR round IN 1 .. coalesce(most, 0) LOOP
		WITH asked AS MATERIALIZED (
			SELECT u.id, u.message, u.kind, u.at, u.subject, u.correlation, u.trace, u.flow, u.cause,
				wants[u.message] AS wants
			FROM unnest(ids, of_message, kinds, ats, subjects, correlations, traces, flows, causes, turns)
				AS u (id, message, kind, at, subject, correlation, trace, flow, cause, turn)
			WHERE u.turn = round AND passed[u.message]
		), settled AS (
			INSERT INTO scheduler.timer AS t (timer_id, state, kind, at, subject, correlation, trace, flow, ended_at, reason)
			SELECT a.id, CASE a.wants WHEN 'arm' THEN 'ARMED' ELSE 'CANCELLED' END, a.kind, a.at, a.subject, nullif(a.correlation, ''), a.trace, a.flow,
				CASE a.wants WHEN 'cancel' THEN clock_timestamp() END, CASE a.wants WHEN 'cancel' THEN 'cancelled before it was armed' END
			FROM asked AS a ORDER BY a.id
			ON CONFLICT (timer_id) DO UPDATE SET
				state = CASE WHEN t.state IN ('ARMED', 'FAILED') THEN EXCLUDED.state ELSE t.state END,
				ended_at = CASE WHEN t.state IN ('ARMED', 'FAILED') THEN EXCLUDED.ended_at ELSE t.ended_at END,
				reason = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN NULL ELSE t.reason END,
				kind = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN EXCLUDED.kind ELSE t.kind END,
				at = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN EXCLUDED.at ELSE t.at END,
				subject = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN EXCLUDED.subject ELSE t.subject END,
				correlation = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN EXCLUDED.correlation ELSE t.correlation END,
				trace = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' THEN EXCLUDED.trace ELSE t.trace END,
				flow = CASE WHEN t.state = 'FAILED' AND EXCLUDED.state = 'ARMED' OR t.flow = '{}' THEN EXCLUDED.flow ELSE t.flow END
			RETURNING t.timer_id, t.state, t.kind, t.at, t.subject, t.correlation, t.reason, t.flow
		), published AS (
			INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers, tracingspancontext)
			SELECT 'timer', s.timer_id::text, CASE WHEN a.wants = 'arm' AND s.state <> 'CANCELLED' THEN 'TimerArmed' ELSE 'TimerCancelled' END,
				jsonb_build_object('timer_id', s.timer_id, 'kind', s.kind, 'subject', s.subject, 'at', scheduler.rfc3339(s.at)) || s.flow
				|| CASE WHEN s.state = 'FIRED' THEN jsonb_build_object('reason', 'it has fired')
					WHEN s.reason IS NOT NULL THEN jsonb_build_object('reason', s.reason) ELSE '{}' END,
				jsonb_strip_nulls(jsonb_build_object('causation-id', a.cause,
					'correlation-id', coalesce(nullif(a.correlation, ''), s.correlation, s.timer_id::text))), a.trace
			FROM settled AS s JOIN asked AS a ON a.id = s.timer_id ORDER BY a.message, a.id
		)
		SELECT array_agg(s.state), array_agg(a.message) INTO more_states, more_stated
		FROM settled AS s JOIN asked AS a ON a.id = s.timer_id;
		states := states || more_states;
		stated := stated || more_stated;
	END LOOP;

	-- Answers of those that the barrier let through.
	SELECT array_agg(p.n::integer) AS ord, array_agg(CASE WHEN s.refused THEN 'refused' ELSE 'done' END) AS outcomes,
		array_agg(jsonb_build_object('timers', coalesce(s.timers, 0), 'fired', coalesce(s.fired, 0))) AS replies,
		array_agg(CASE WHEN s.refused THEN 'it was cancelled before' END) AS whys
	INTO r FROM unnest(saga_place) WITH ORDINALITY AS p (message, n)
	LEFT JOIN (
		SELECT u.message, count(*) AS timers, count(*) FILTER (WHERE u.state = 'FIRED') AS fired,
			bool_or(u.state = 'CANCELLED') AND wants[u.message] = 'arm' AS refused
		FROM unnest(states, stated) AS u (state, message) GROUP BY u.message
	) AS s ON s.message = p.message
	WHERE p.message > 0;
	IF r.ord IS NOT NULL THEN
		PERFORM saga.replies(part_of_saga, r.ord, r.outcomes, r.replies, r.whys);
	END IF;
END
$$;

-- A command that could not be handled and goes to the dead letters, in the same transaction: its timer is FAILED, unless there is one
-- already. A saga hears of it: refused when it can never be done, failed otherwise.
CREATE OR REPLACE FUNCTION scheduler.undo_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	m inbox.message;
	why text;
	never boolean;
	id text;
	place text;
BEGIN
	FOREACH m IN ARRAY messages LOOP
		BEGIN
			PERFORM scheduler.read(m);
			why := 'it could not be handled';
			never := false;
		EXCEPTION WHEN data_exception THEN
			why := SQLERRM;
			never := true;
		END;
		IF m.headers ? 'saga-id' THEN
			BEGIN
				IF saga.barrier(m) THEN
					IF never THEN
						PERFORM saga.refuse(m, why);
					ELSE
						PERFORM saga.fail(m, why);
					END IF;
				END IF;
			EXCEPTION WHEN data_exception THEN
				NULL;	-- its headers are no saga's
			END;
		END IF;
		id := CASE WHEN jsonb_typeof(m.payload) = 'object' THEN m.payload ->> 'timer_id' END;
		CONTINUE WHEN m.type IS DISTINCT FROM 'ScheduleAt' OR id IS NULL
			OR id !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
		INSERT INTO scheduler.timer (timer_id, state, correlation, ended_at, reason)
		VALUES (id::uuid, 'FAILED', m.headers ->> 'correlation-id', clock_timestamp(), why) ON CONFLICT DO NOTHING;
		CONTINUE WHEN NOT FOUND;
		INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers)
		VALUES ('timer', id::uuid::text, 'TimerFailed', jsonb_build_object('timer_id', id::uuid, 'kind', m.payload -> 'kind',
			'subject', CASE WHEN jsonb_typeof(m.payload -> 'subject') = 'object' THEN m.payload -> 'subject' ELSE '{}' END,
			'at', m.payload -> 'at', 'reason', why) || scheduler.flow(m.payload),
			jsonb_strip_nulls(jsonb_build_object('causation-id', m.id, 'correlation-id', coalesce(m.headers ->> 'correlation-id', id))));
	END LOOP;
END
$$;

-- Fires what is due, the earliest first, at most most of them behind (after_at, after_id): whoever fires a long backlog need not step
-- over what it has fired, which the index still names as long as anybody looks at an older snapshot. What another one has in hand is left
-- to it.
CREATE OR REPLACE FUNCTION scheduler.fire(most integer, after_at timestamptz, after_id uuid,
	OUT fired bigint, OUT last_at timestamptz, OUT last_id uuid) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	by_now timestamptz := clock_timestamp();
	rows tid[];
BEGIN
	SELECT array_agg(d.ctid), max(d.at), (array_agg(d.timer_id ORDER BY d.at DESC, d.timer_id DESC))[1], count(*)
	INTO rows, last_at, last_id, fired FROM (
		SELECT t.ctid, t.at, t.timer_id FROM scheduler.timer AS t
		WHERE t.state = 'ARMED' AND t.at <= by_now AND (t.at, t.timer_id) > (after_at, after_id)
		ORDER BY t.at, t.timer_id LIMIT most FOR UPDATE SKIP LOCKED) AS d;
	IF fired = 0 THEN
		RETURN;
	END IF;
	WITH done AS (
		UPDATE scheduler.timer AS t SET state = 'FIRED', ended_at = by_now WHERE t.ctid = ANY (rows)
		RETURNING t.timer_id, t.kind, t.subject, t.at, t.correlation, t.trace, t.flow
	)
	INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers, tracingspancontext)
	SELECT 'timer', d.timer_id::text, 'TimerFired',
		jsonb_build_object('timer_id', d.timer_id, 'kind', d.kind, 'subject', d.subject, 'at', scheduler.rfc3339(d.at)) || d.flow,
		jsonb_build_object('correlation-id', coalesce(d.correlation, d.timer_id::text)), d.trace
	FROM done AS d ORDER BY d.at, d.timer_id;
END
$$;

-- Microseconds until the next one is due, negative: it is overdue by so many; NULL: none is armed.
CREATE OR REPLACE FUNCTION scheduler.next_due() RETURNS bigint LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
	RETURN (SELECT least(1e15, extract(epoch FROM t.at - clock_timestamp()) * 1000000)::bigint FROM scheduler.timer AS t
		WHERE t.state = 'ARMED' ORDER BY t.at, t.timer_id LIMIT 1);
END
$$;

-- Forgets timers that ended before, at most most; how many.
CREATE OR REPLACE FUNCTION scheduler.forget(keep interval, most integer) RETURNS bigint LANGUAGE sql
SET enable_seqscan = off AS $$
	WITH gone AS (
		DELETE FROM scheduler.timer WHERE timer_id IN (
			SELECT t.timer_id FROM scheduler.timer AS t WHERE t.state <> 'ARMED' AND t.ended_at < clock_timestamp() - keep
			ORDER BY t.ended_at LIMIT most FOR UPDATE SKIP LOCKED)
		RETURNING 1)
	SELECT count(*) FROM gone
$$;
