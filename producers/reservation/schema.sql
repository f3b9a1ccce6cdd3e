-- Schema reservation: who has which seat. Run whole when its text has changed: all of it may be run again. Written by
-- postrider-reservation and by its consumer.
--
-- Only reservation.change() changes the status of a reservation: it writes the history and publishes, in one statement.
-- A live claim of a seat is a row of the unique index reservation_claim; each draws the seat's next claim_no.
-- Lock order: seats by seat_id, then reservations by reservation_id; nothing is changed before all is locked.
CREATE SCHEMA IF NOT EXISTS reservation;

CREATE TABLE IF NOT EXISTS reservation.setting (
	one      boolean PRIMARY KEY DEFAULT true CHECK (one),
	hold_for interval NOT NULL DEFAULT '5 minutes'
);
INSERT INTO reservation.setting DEFAULT VALUES ON CONFLICT DO NOTHING;

-- ---------------------------------------------------------------- copies of what others own

-- seq: outbox-seq of the event that a row is from. It rises with the owner's commits of one key, so an older event
-- never overwrites a newer one, in whatever order they come.
CREATE TABLE IF NOT EXISTS reservation.user_copy (
	user_id uuid PRIMARY KEY,
	state   text NOT NULL,
	seq     bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS reservation.token_copy (
	token_id   uuid PRIMARY KEY,
	user_id    uuid,
	concert_id bigint,
	state      text NOT NULL CHECK (state IN ('WAITING', 'ACTIVE', 'COMPLETED', 'EXPIRED')),
	active_at  timestamptz,
	seq        bigint NOT NULL
);
ALTER TABLE reservation.token_copy ADD COLUMN IF NOT EXISTS at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN reservation.token_copy.at IS 'when we heard of it last';
CREATE INDEX IF NOT EXISTS token_copy_over ON reservation.token_copy (at) WHERE state IN ('COMPLETED', 'EXPIRED');

-- What became of a token, for the history of its reservations.
CREATE TABLE IF NOT EXISTS reservation.token_history (
	token_id uuid,
	event_id uuid,
	what     text NOT NULL,
	state    text NOT NULL,
	seq      bigint NOT NULL,
	at       timestamptz NOT NULL,
	PRIMARY KEY (token_id, event_id)
);

-- Seats never change, but for claim_no, which is ours: of the last claim.
CREATE TABLE IF NOT EXISTS reservation.seat (
	seat_id     bigint PRIMARY KEY,
	concert_id  bigint NOT NULL,
	schedule_id bigint NOT NULL,
	label       text NOT NULL,
	price       bigint NOT NULL CHECK (price >= 0),
	claim_no    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- ---------------------------------------------------------------- reservations

CREATE TABLE IF NOT EXISTS reservation.reservation (
	reservation_id uuid PRIMARY KEY DEFAULT outbox.uuid7(),
	user_id        uuid NOT NULL,
	concert_id     bigint NOT NULL,
	schedule_id    bigint NOT NULL,
	seat_id        bigint NOT NULL,
	label          text NOT NULL,
	price          bigint NOT NULL,
	token_id       uuid,
	status         text NOT NULL
		CHECK (status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED', 'REJECTED', 'CANCELLED', 'EXPIRED')),
	prior_status   text,
	reason         text,
	claim_no       bigint, -- NULL: it has not claimed the seat yet
	expires_at     timestamptz,
	timer_id       uuid, -- that ends it then
	payment_id     uuid,
	mode           text, -- of that payment
	seat_payment   uuid, -- for which the seat's owner has said RESERVED
	saga_id        uuid, -- of a booking
	version        integer NOT NULL DEFAULT 1,
	created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	CHECK (claim_no IS NOT NULL OR status IN ('REQUESTED', 'REJECTED', 'CANCELLED'))
);
CREATE UNIQUE INDEX IF NOT EXISTS reservation_claim ON reservation.reservation (seat_id)
	WHERE claim_no IS NOT NULL AND status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED');
CREATE INDEX IF NOT EXISTS reservation_user ON reservation.reservation (user_id, reservation_id);
CREATE INDEX IF NOT EXISTS reservation_payment ON reservation.reservation (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS reservation_token ON reservation.reservation (token_id) WHERE token_id IS NOT NULL;

-- Every transition. event_id: of the event that told it; cause_id: of the message that it follows from.
CREATE TABLE IF NOT EXISTS reservation.reservation_history (
	reservation_id uuid,
	version        integer,
	prior_status   text,
	status         text NOT NULL,
	reason         text,
	cause          text NOT NULL,
	cause_id       uuid,
	event_id       uuid NOT NULL,
	payment_id     uuid,
	at             timestamptz NOT NULL,
	PRIMARY KEY (reservation_id, version)
);

-- ---------------------------------------------------------------- the one that changes a status

-- What events say of a reservation.
CREATE OR REPLACE FUNCTION reservation.fact(r reservation.reservation, cause text) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('reservation_id', r.reservation_id, 'user_id', r.user_id, 'concert_id', r.concert_id::text,
		'schedule_id', r.schedule_id::text, 'seat_id', r.seat_id::text, 'label', r.label, 'price', r.price,
		'claim_no', r.claim_no, 'token_id', r.token_id, 'status', r.status, 'prior_status', r.prior_status, 'reason', r.reason,
		'expires_at', service.rfc3339(r.expires_at), 'payment_id', r.payment_id, 'version', r.version, 'cause', cause,
		'at', service.rfc3339(r.updated_at))
		|| CASE WHEN r.saga_id IS NULL THEN '{}' ELSE jsonb_build_object('saga_id', r.saga_id) END
$$;

-- By this member the events of one hold find each other (etc/sagas/reserve.cfg): other services copy it to theirs.
CREATE OR REPLACE FUNCTION reservation.hold(r reservation.reservation) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('hold_id', r.reservation_id)
$$;

CREATE OR REPLACE FUNCTION reservation.may_change(old text, new text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE old
		WHEN 'REQUESTED' THEN new IN ('HELD', 'PAID', 'REJECTED', 'CANCELLED', 'EXPIRED')
		WHEN 'HELD' THEN new IN ('PAID', 'REJECTED', 'CANCELLED', 'EXPIRED')
		WHEN 'PAID' THEN new IN ('CONFIRMED', 'HELD', 'CANCELLED', 'EXPIRED')
		WHEN 'CONFIRMED' THEN new IN ('HELD', 'CANCELLED', 'EXPIRED')
		ELSE false
	END
$$;

-- The arrays go with ids; the caller has locked these reservations and looked at them. named: the event beside
-- ReservationUpdated; NULL: as the new status says. headers, traces: of the events; NULL: as the transaction has them.
-- What is HELD has a timer, what ends before its time lets it go.
CREATE OR REPLACE FUNCTION reservation.change(ids uuid[], statuses text[], reasons text[], cause text, cause_ids uuid[],
	claims bigint[] DEFAULT NULL, payment uuid DEFAULT NULL, payment_mode text DEFAULT NULL, named text DEFAULT NULL,
	headers jsonb[] DEFAULT NULL, traces text[] DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	carried jsonb := outbox.carried('{}');
	traced text := outbox.traceparent();
	n integer;
BEGIN
	WITH wanted AS MATERIALIZED (
		SELECT * FROM unnest(ids, statuses, reasons, cause_ids, claims, headers, traces) WITH ORDINALITY
			AS u (id, status, reason, cause_id, claim_no, headers, trace, n)
	), changed AS (
		UPDATE reservation.reservation AS r SET prior_status = r.status, status = w.status, reason = w.reason,
			claim_no = coalesce(w.claim_no, r.claim_no),
			expires_at = CASE WHEN w.status = 'HELD' AND r.expires_at IS NULL THEN now() + s.hold_for ELSE r.expires_at END,
			timer_id = CASE WHEN w.status <> 'HELD' THEN r.timer_id WHEN r.timer_id IS NULL THEN r.reservation_id
				ELSE outbox.uuid7() END,
			payment_id = CASE w.status WHEN 'PAID' THEN payment WHEN 'HELD' THEN NULL ELSE r.payment_id END,
			mode = CASE w.status WHEN 'PAID' THEN payment_mode WHEN 'HELD' THEN NULL ELSE r.mode END,
			version = r.version + 1, updated_at = clock_timestamp()
		FROM wanted AS w, reservation.setting AS s
		WHERE r.reservation_id = w.id AND reservation.may_change(r.status, w.status)
		RETURNING r, w.n, w.cause_id, coalesce(w.headers, carried) AS headers, coalesce(w.trace, traced) AS trace,
			outbox.uuid7() AS event_id, reservation.fact(r, cause) AS fact
	), noted AS (
		INSERT INTO reservation.reservation_history
			(reservation_id, version, prior_status, status, reason, cause, cause_id, event_id, payment_id, at)
		SELECT (c.r).reservation_id, (c.r).version, (c.r).prior_status, (c.r).status, (c.r).reason, cause, c.cause_id, c.event_id,
			(c.r).payment_id, (c.r).updated_at FROM changed AS c
	), told AS (
		INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, headers, topic, tracingspancontext)
		SELECT e.id, 'reservation', e.key::text, e.type, e.payload, c.headers, e.topic, c.trace
		FROM changed AS c, LATERAL (
			SELECT 1 AS k, c.event_id AS id, (c.r).reservation_id AS key, 'ReservationUpdated' AS type, c.fact AS payload, NULL AS topic
			UNION ALL
			SELECT 2, outbox.uuid7(), (c.r).reservation_id, n.type, c.fact || CASE WHEN (c.r).saga_id IS NULL
				AND (c.r).prior_status = 'REQUESTED' AND (c.r).status IN ('HELD', 'REJECTED') THEN reservation.hold(c.r) ELSE '{}' END, NULL
			FROM (SELECT coalesce(named, CASE (c.r).status WHEN 'HELD' THEN 'ReservationHeld' WHEN 'REJECTED' THEN 'ReservationRejected'
				WHEN 'CANCELLED' THEN 'ReservationCancelled' WHEN 'EXPIRED' THEN 'ReservationExpired' END) AS type) AS n
			WHERE n.type IS NOT NULL
			UNION ALL
			SELECT 3, outbox.uuid7(), (c.r).timer_id, 'ScheduleAt', reservation.alarm(c.r), 'outbox.command.scheduler'
			WHERE (c.r).status = 'HELD'
			UNION ALL
			SELECT 4, outbox.uuid7(), (c.r).timer_id, 'CancelTimer', jsonb_build_object('timer_id', (c.r).timer_id), 'outbox.command.scheduler'
			WHERE (c.r).status NOT IN ('HELD', 'PAID') AND (c.r).prior_status <> 'CONFIRMED' AND (c.r).expires_at > now()
			-- Cancelled before it was claimed: whoever waits for the claim (saga reserve) is told that none will come.
			UNION ALL
			SELECT 5, outbox.uuid7(), (c.r).reservation_id, 'ReservationRejected', c.fact || reservation.hold(c.r), NULL
			WHERE (c.r).status = 'CANCELLED' AND (c.r).claim_no IS NULL AND (c.r).saga_id IS NULL
		) AS e
		ORDER BY c.n, e.k
	)
	SELECT count(*) INTO n FROM changed;
	IF n <> cardinality(ids) THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('reservation: %s of %s may not become %s', cardinality(ids) - n, cardinality(ids), statuses);
	END IF;
END
$$;

-- The same for all of ids.
CREATE OR REPLACE FUNCTION reservation.change_all(ids uuid[], status text, reason text, cause text, cause_id uuid,
	payment uuid DEFAULT NULL, payment_mode text DEFAULT NULL, named text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF ids <> '{}' THEN
		PERFORM reservation.change(ids, array_fill(status, ARRAY[cardinality(ids)]), array_fill(reason, ARRAY[cardinality(ids)]),
			cause, array_fill(cause_id, ARRAY[cardinality(ids)]), NULL, payment, payment_mode, named);
	END IF;
END
$$;

-- Command ScheduleAt of what is to end by itself.
CREATE OR REPLACE FUNCTION reservation.alarm(r reservation.reservation) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('timer_id', r.timer_id, 'kind', 'hold', 'at', service.rfc3339(r.expires_at),
		'subject', jsonb_build_object('reservation_id', r.reservation_id))
		|| CASE WHEN r.timer_id = r.reservation_id AND r.saga_id IS NULL THEN reservation.hold(r) ELSE '{}' END
$$;

-- ---------------------------------------------------------------- asking for seats

-- Why they may not, as service.refuse and service.await say it. there: how many of their seats the schedule has; taken: one that
-- somebody has.
CREATE OR REPLACE FUNCTION reservation.why_not(wanted integer, there bigint, token_concert bigint, concert bigint, who text,
	token_state text, active_at timestamptz, taken text, OUT code text, OUT detail text, OUT hint text) LANGUAGE plpgsql STABLE AS $$
BEGIN
	SELECT v.code, v.detail, v.hint INTO code, detail, hint FROM (VALUES
		(there <> wanted, 'PA422', 'this schedule has no such seat', 'no-such-seat'),
		(token_concert <> concert, 'PT403', 'the queue token is for another concert', 'other-concert'),
		(who <> 'ACTIVE', 'PT403', 'this account is locked', 'locked'),
		(token_state = 'COMPLETED', 'PT409', 'the queue token is used up', 'token-used'),
		(token_state = 'EXPIRED', 'PT401', 'the queue token has expired', 'queue-token'),
		(token_state = 'WAITING' AND active_at > clock_timestamp() + interval '1 second', 'PT409', 'it is not your turn yet',
			'not-your-turn ' || least(3600, ceil(extract(epoch FROM active_at - clock_timestamp())))::integer),
		(token_state IS DISTINCT FROM 'ACTIVE', 'PA409', 'it is not your turn yet', 'not-your-turn 1'),
		(who IS NULL, 'PA409', 'the account is not known here yet', 'unknown-user 1'),
		(true, 'PT409', format('seat %s is taken', taken), 'seat-taken')) AS v (is_so, code, detail, hint)
	WHERE v.is_so LIMIT 1;
END
$$;

-- Whether these users may ask for these seats ('{17,18}') now: a row for each, n from 1; code NULL: he may. Reads copies only: what
-- a copy may still come to say is awaited. Locks nothing. One query, since thousands ask at the same time.
CREATE OR REPLACE FUNCTION reservation.admit(callers uuid[], tokens uuid[], token_concerts bigint[], schedules bigint[], seats text[])
RETURNS TABLE (n integer, concert bigint, code text, detail text, hint text) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY SELECT a.n::integer, a.concert, w.code, w.detail, w.hint
	FROM (
		SELECT a.n, a.token_concert, cardinality(a.seats) AS wanted, s.there, s.concert, s.taken, u.state AS who, t.state AS token_state, t.active_at
		FROM (SELECT u.caller, u.token, u.token_concert, u.schedule, u.seats::bigint[] AS seats, u.n
			FROM unnest(callers, tokens, token_concerts, schedules, seats) WITH ORDINALITY
				AS u (caller, token, token_concert, schedule, seats, n) OFFSET 0) AS a
		LEFT JOIN reservation.user_copy AS u ON u.user_id = a.caller
		LEFT JOIN reservation.token_copy AS t ON t.token_id = a.token
		CROSS JOIN LATERAL (SELECT count(*) AS there, min(s.concert_id) AS concert,
				min(s.label) FILTER (WHERE EXISTS (SELECT FROM reservation.reservation AS r WHERE r.seat_id = s.seat_id
					AND r.claim_no IS NOT NULL AND r.status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED'))) AS taken
			FROM reservation.seat AS s WHERE s.seat_id = ANY (a.seats) AND s.schedule_id = a.schedule) AS s
	) AS a
	-- OFFSET 0: as a condition of the join it would be asked of everybody, and thrown away.
	LEFT JOIN LATERAL (
		SELECT y.* FROM reservation.why_not(a.wanted, a.there, a.token_concert, a.concert, a.who, a.token_state, a.active_at, a.taken) AS y
		WHERE (a.there = a.wanted AND a.concert = a.token_concert AND a.who = 'ACTIVE' AND a.token_state = 'ACTIVE' AND a.taken IS NULL) IS NOT TRUE
		OFFSET 0
	) AS w ON true
	ORDER BY a.n;
END
$$;

-- The same for one, who is refused; the concert.
CREATE OR REPLACE FUNCTION reservation.admit_one(caller uuid, token uuid, token_concert bigint, schedule bigint, seats bigint[])
RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
	a record;
BEGIN
	SELECT * INTO a FROM reservation.admit(ARRAY[caller], ARRAY[token], ARRAY[token_concert], ARRAY[schedule], ARRAY[seats::text]);
	PERFORM service.fail(a.code, a.detail, a.hint);
	RETURN a.concert;
END
$$;

-- Rows in state REQUESTED that have claimed nothing: ReservationRequested asks our consumer to do it. seats: of each request its
-- list, '{17,18}'; gives the ids of each. The events stand in the order of the requests, and carry the trace of theirs.
CREATE OR REPLACE FUNCTION reservation.make_many(callers uuid[], tokens uuid[], seats text[], cause text, cause_id uuid)
RETURNS TABLE (n integer, ids uuid[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	carried jsonb := outbox.carried('{}');
	traced text := outbox.traceparent();
	traces text[] := service.traces();
	places integer[]; -- of all seats: whose request, which seat, what id it has
	wanted bigint[];
	made_ids uuid[];
BEGIN
	SELECT array_agg(u.n ORDER BY u.n, s.k), array_agg(s.seat_id ORDER BY u.n, s.k), array_agg(outbox.uuid7())
	INTO places, wanted, made_ids
	FROM unnest(seats) WITH ORDINALITY AS u (seats, n), unnest(u.seats::bigint[]) WITH ORDINALITY AS s (seat_id, k);
	WITH made AS (
		INSERT INTO reservation.reservation AS r
			(reservation_id, user_id, concert_id, schedule_id, seat_id, label, price, token_id, status)
		SELECT u.id, callers[u.place], s.concert_id, s.schedule_id, s.seat_id, s.label, s.price, tokens[u.place], 'REQUESTED'
		FROM unnest(made_ids, wanted, places) AS u (id, seat_id, place) JOIN reservation.seat AS s ON s.seat_id = u.seat_id
		RETURNING r, r.reservation_id AS id, r.created_at AS at, outbox.uuid7() AS event_id
	), noted AS (
		INSERT INTO reservation.reservation_history (reservation_id, version, status, cause, cause_id, event_id, at)
		SELECT m.id, 1, 'REQUESTED', cause, cause_id, m.event_id, m.at FROM made AS m
	)
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, headers, tracingspancontext)
	SELECT m.event_id, 'reservation', m.id::text, 'ReservationRequested', reservation.fact(m.r, cause) || jsonb_build_object(
			'hold_id', m.id, 'reservation_ids', made_ids[array_position(places, places[m.k]) :
				array_position(places, places[m.k]) + cardinality(array_positions(places, places[m.k])) - 1]), carried,
		coalesce(traces[places[m.k]], traced)
	FROM (SELECT *, array_position(made_ids, m.id) AS k FROM made AS m) AS m ORDER BY m.k;
	RETURN QUERY SELECT u.place, array_agg(u.id ORDER BY u.k) FROM unnest(places, made_ids) WITH ORDINALITY AS u (place, id, k)
		GROUP BY u.place;
END
$$;

-- The same for one.
CREATE OR REPLACE FUNCTION reservation.make(caller uuid, token uuid, seats bigint[], cause text, cause_id uuid)
RETURNS uuid[] LANGUAGE sql AS $$
	SELECT m.ids FROM reservation.make_many(ARRAY[caller], ARRAY[token], ARRAY[seats::text], cause, cause_id) AS m
$$;

-- Rows in state REQUESTED that hold their seats from now on, for a booking: the caller has taken them.
CREATE OR REPLACE FUNCTION reservation.make_claimed(caller uuid, token uuid, seats bigint[], cause text, saga uuid)
RETURNS uuid[] LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	ids uuid[];
BEGIN
	SELECT array_agg(outbox.uuid7()) INTO ids FROM unnest(seats);
	WITH made AS (
		INSERT INTO reservation.reservation AS r
			(reservation_id, user_id, concert_id, schedule_id, seat_id, label, price, token_id, status, saga_id, claim_no, expires_at, timer_id)
		SELECT u.id, caller, s.concert_id, s.schedule_id, s.seat_id, s.label, s.price, token, 'REQUESTED', saga, s.claim_no,
			now() + t.hold_for, u.id
		FROM reservation.setting AS t, unnest(ids, seats) AS u (id, seat_id) JOIN reservation.seat AS s ON s.seat_id = u.seat_id
		RETURNING r, outbox.uuid7() AS event_id
	), noted AS (
		INSERT INTO reservation.reservation_history (reservation_id, version, status, cause, event_id, at)
		SELECT (m.r).reservation_id, 1, 'REQUESTED', cause, m.event_id, (m.r).created_at FROM made AS m
	)
	INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, topic)
	SELECT e.id, 'reservation', (m.r).reservation_id::text, e.type, e.payload, e.topic
	FROM made AS m, LATERAL (VALUES
		(1, m.event_id, 'ReservationUpdated', reservation.fact(m.r, cause), NULL),
		(2, outbox.uuid7(), 'ScheduleAt', reservation.alarm(m.r), 'outbox.command.scheduler')
	) AS e (k, id, type, payload, topic) ORDER BY e.k;
	RETURN ids;
END
$$;

-- POST /reservations, of many users at once: who may not ask is told so and nothing is made for him, who may gets his ids. The
-- seats are text[], a list of each request.
CREATE OR REPLACE FUNCTION reservation.request_many(callers uuid[], tokens uuid[], token_concerts bigint[], schedules bigint[], seats text[])
RETURNS TABLE (n integer, answer jsonb, code text, detail text, hint text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	a record;
	good integer[] := '{}';
BEGIN
	FOR a IN SELECT * FROM reservation.admit(callers, tokens, token_concerts, schedules, seats) LOOP
		IF a.code IS NULL THEN
			good := good || a.n;
		ELSE
			n := a.n;
			code := a.code;
			detail := a.detail;
			hint := a.hint;
			RETURN NEXT;
		END IF;
	END LOOP;
	IF cardinality(good) < cardinality(callers) THEN
		callers := ARRAY(SELECT callers[u.g] FROM unnest(good) WITH ORDINALITY AS u (g, n) ORDER BY u.n);
		tokens := ARRAY(SELECT tokens[u.g] FROM unnest(good) WITH ORDINALITY AS u (g, n) ORDER BY u.n);
		seats := ARRAY(SELECT seats[u.g] FROM unnest(good) WITH ORDINALITY AS u (g, n) ORDER BY u.n);
		PERFORM set_config('service.traces', ARRAY(SELECT t.traces[u.g] FROM unnest(good) WITH ORDINALITY AS u (g, n)
			ORDER BY u.n)::text, true) FROM service.traces() AS t (traces) WHERE t.traces IS NOT NULL;
	END IF;
	RETURN QUERY SELECT good[m.n], jsonb_build_object('reservation_ids', m.ids, 'reservation_id', m.ids[1]), NULL, NULL, NULL
	FROM reservation.make_many(callers, tokens, seats, 'POST /reservations', NULL) AS m WHERE good <> '{}';
END
$$;

-- The same for one, who is refused.
CREATE OR REPLACE FUNCTION reservation.request(caller uuid, token uuid, token_concert bigint, schedule bigint, seats bigint[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	SELECT * INTO r FROM reservation.request_many(ARRAY[caller], ARRAY[token], ARRAY[token_concert], ARRAY[schedule], ARRAY[seats::text]);
	PERFORM service.fail(r.code, r.detail, r.hint);
	RETURN r.answer;
END
$$;

-- Locks the seats and raises their claim_no; a seat that somebody has: its label, and nothing is changed.
CREATE OR REPLACE FUNCTION reservation.take(seats bigint[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	taken text;
BEGIN
	PERFORM FROM reservation.seat AS s WHERE s.seat_id = ANY (seats) ORDER BY s.seat_id FOR UPDATE;
	SELECT s.label INTO taken FROM reservation.reservation AS r JOIN reservation.seat AS s ON s.seat_id = r.seat_id
	WHERE r.seat_id = ANY (seats) AND r.claim_no IS NOT NULL AND r.status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED') LIMIT 1;
	IF NOT FOUND THEN
		UPDATE reservation.seat AS s SET claim_no = s.claim_no + 1 WHERE s.seat_id = ANY (seats);
	END IF;
	RETURN taken;
END
$$;

-- POST /bookings: the seats are claimed at once, and saga book does the rest. Its id is the payment's.
CREATE OR REPLACE FUNCTION reservation.book(caller uuid, token uuid, token_concert bigint, schedule bigint, seats bigint[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	concert bigint := reservation.admit_one(caller, token, token_concert, schedule, seats);
	saga uuid := outbox.uuid7();
	taken text := reservation.take(seats);
	ids uuid[];
	data jsonb;
BEGIN
	IF taken IS NOT NULL THEN
		PERFORM service.refuse(409, 'seat-taken', format('seat %s is taken', taken));
	END IF;
	ids := reservation.make_claimed(caller, token, seats, 'POST /bookings', saga);
	SELECT jsonb_build_object('payment_id', saga, 'user_id', caller, 'concert_id', concert::text, 'schedule_id', schedule::text,
		'token_id', token, 'reservation_ids', to_jsonb(ids), 'amount', sum(r.price), 'seats', jsonb_agg(jsonb_build_object(
			'seat_id', r.seat_id::text, 'claim_no', r.claim_no, 'reservation_id', r.reservation_id,
			'schedule_id', r.schedule_id::text, 'price', r.price) ORDER BY r.seat_id))
	INTO data FROM reservation.reservation AS r WHERE r.reservation_id = ANY (ids);
	PERFORM saga.expect(saga.start('book', data, saga), 'book', data);
	RETURN jsonb_build_object('saga_id', saga, 'reservation_ids', to_jsonb(ids));
END
$$;

-- ---------------------------------------------------------------- reading

CREATE OR REPLACE FUNCTION reservation.view(r reservation.reservation) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('reservation_id', r.reservation_id, 'state', r.status, 'reason', r.reason,
		'concert_id', r.concert_id::text, 'schedule_id', r.schedule_id::text, 'seat_id', r.seat_id::text, 'label', r.label,
		'price', r.price, 'expires_at', service.rfc3339(r.expires_at), 'payment_id', r.payment_id, 'saga_id', r.saga_id,
		'version', r.version, 'created_at', service.rfc3339(r.created_at), 'updated_at', service.rfc3339(r.updated_at))
$$;

CREATE OR REPLACE FUNCTION reservation.mine(caller uuid, r reservation.reservation) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF r.user_id <> caller THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s reservation');
	END IF;
END
$$;

-- GET /reservations/{id}
CREATE OR REPLACE FUNCTION reservation.show(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	r reservation.reservation;
BEGIN
	SELECT * INTO r FROM reservation.reservation AS x WHERE x.reservation_id = wanted;
	PERFORM reservation.mine(caller, r);
	RETURN CASE WHEN r.reservation_id IS NOT NULL THEN reservation.view(r) END;
END
$$;

-- GET /reservations?user=&limit=&after=: the newest first; after: the last one of the page before.
CREATE OR REPLACE FUNCTION reservation.list(caller uuid, wanted uuid, most integer, after uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF wanted <> caller THEN
		PERFORM service.refuse(403, 'not-yours', 'these are another user''s reservations');
	END IF;
	RETURN jsonb_build_object('reservations', coalesce((
		SELECT jsonb_agg(reservation.view(p.r) ORDER BY (p.r).reservation_id DESC) FROM (
			SELECT r FROM reservation.reservation AS r
			WHERE r.user_id = caller AND r.reservation_id < coalesce(after, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
			ORDER BY r.reservation_id DESC LIMIT coalesce(most, 50)) AS p), '[]'));
END
$$;

-- GET /reservations/{id}/history: from the queue token to the end.
CREATE OR REPLACE FUNCTION reservation.history(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	r reservation.reservation;
BEGIN
	SELECT * INTO r FROM reservation.reservation AS x WHERE x.reservation_id = wanted;
	PERFORM reservation.mine(caller, r);
	IF r.reservation_id IS NULL THEN
		RETURN NULL;
	END IF;
	RETURN (SELECT jsonb_build_object('reservation_id', wanted, 'history', jsonb_agg(jsonb_build_object('of', e.of,
			'version', e.version, 'prior_state', e.prior_status, 'state', e.status, 'reason', e.reason, 'cause', e.cause,
			'cause_id', e.cause_id, 'event_id', e.event_id, 'payment_id', e.payment_id, 'at', service.rfc3339(e.at))
			ORDER BY e.at, e.n))
		FROM (
			SELECT 'reservation' AS of, h.version, h.prior_status, h.status, h.reason, h.cause, h.cause_id, h.event_id, h.payment_id, h.at, h.version AS n
			FROM reservation.reservation_history AS h WHERE h.reservation_id = wanted
			UNION ALL
			SELECT 'token', NULL, NULL, t.state, NULL, t.what, NULL, t.event_id, NULL, t.at, t.seq
			FROM reservation.token_history AS t WHERE t.token_id = r.token_id
		) AS e);
END
$$;

-- DELETE /reservations/{id}: no-op on what is paid. A booking that is not paid yet is cancelled too: its saga is refused then.
CREATE OR REPLACE FUNCTION reservation.cancel(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	r reservation.reservation;
BEGIN
	SELECT * INTO r FROM reservation.reservation AS x WHERE x.reservation_id = wanted FOR UPDATE;
	PERFORM reservation.mine(caller, r);
	IF r.status IN ('PAID', 'CONFIRMED') THEN
		PERFORM service.refuse(409, 'paid', 'the reservation is paid: cancel its payment');
	ELSIF r.status IN ('EXPIRED', 'REJECTED') THEN
		PERFORM service.refuse(409, 'over', format('the reservation is %s', r.status));
	ELSIF r.status IN ('REQUESTED', 'HELD') THEN
		PERFORM reservation.change_all(ARRAY[wanted], 'CANCELLED', 'cancelled-by-user', 'DELETE /reservations', NULL);
	END IF;
	RETURN reservation.show(caller, wanted);
END
$$;

-- GET /sagas/{id}
CREATE OR REPLACE FUNCTION reservation.saga(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	c saga.copy;
BEGIN
	SELECT * INTO c FROM saga.copy AS x WHERE x.saga_id = wanted;
	IF c.data ->> 'user_id' IS DISTINCT FROM caller::text AND c.saga_id IS NOT NULL THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s saga');
	END IF;
	RETURN CASE WHEN c.saga_id IS NOT NULL THEN jsonb_build_object('saga_id', c.saga_id, 'name', c.name, 'state', c.state,
		'why', c.why, 'steps', coalesce(c.steps, '[]')) END;
END
$$;

CREATE OR REPLACE FUNCTION reservation.configure(hold interval) RETURNS void LANGUAGE sql AS $$
	UPDATE reservation.setting SET hold_for = hold WHERE hold_for <> hold
$$;

-- Forgets copies of sagas and of tokens that ended, and what became of a token that no reservation is of; a bounded number at
-- a time.
CREATE OR REPLACE FUNCTION reservation.forget() RETURNS void LANGUAGE sql SET enable_seqscan = off AS $$
	WITH gone AS (
		DELETE FROM reservation.token_copy WHERE token_id IN (
			SELECT t.token_id FROM reservation.token_copy AS t
			WHERE t.state IN ('COMPLETED', 'EXPIRED') AND t.at < clock_timestamp() - interval '7 days'
			ORDER BY t.at LIMIT 10000 FOR UPDATE SKIP LOCKED)
		RETURNING token_id
	)
	DELETE FROM reservation.token_history AS h USING gone AS g
	WHERE h.token_id = g.token_id AND NOT EXISTS (SELECT FROM reservation.reservation AS r WHERE r.token_id = g.token_id);
	SELECT saga.forget_copies('7 days', 10000)
$$;
