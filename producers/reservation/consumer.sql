-- What the reservation service does with commands and events: reservation.on_messages for a postrider-consumer of group
-- reservation. It may get them in any order between topics and keys: rows and their locks decide.

-- ---------------------------------------------------------------- copies

CREATE OR REPLACE FUNCTION reservation.seq_of(headers jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN headers ->> 'outbox-seq' ~ '^[0-9]{1,18}$' THEN (headers ->> 'outbox-seq')::bigint ELSE 0 END
$$;

CREATE OR REPLACE FUNCTION reservation.copy_users(messages inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO reservation.user_copy AS c (user_id, state, seq)
	SELECT DISTINCT ON (e.id) e.id, e.state, e.seq
	FROM (SELECT (m.payload ->> 'user_id')::uuid AS id, m.payload ->> 'state' AS state, reservation.seq_of(m.headers) AS seq
		FROM unnest(messages) AS m WHERE m.type IN ('UserCreated', 'UserUpdated')) AS e
	ORDER BY e.id, e.seq DESC
	ON CONFLICT (user_id) DO UPDATE SET state = EXCLUDED.state, seq = EXCLUDED.seq WHERE EXCLUDED.seq >= c.seq
$$;

CREATE OR REPLACE FUNCTION reservation.copy_seats(messages inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO reservation.seat (seat_id, concert_id, schedule_id, label, price)
	SELECT s.seat_id, (m.payload ->> 'concert_id')::bigint, (m.payload ->> 'schedule_id')::bigint, s.label, s.price
	FROM unnest(messages) AS m, jsonb_to_recordset(m.payload -> 'seats') AS s (seat_id bigint, label text, price bigint)
	WHERE m.type = 'ScheduleOpened' ORDER BY s.seat_id
	ON CONFLICT DO NOTHING
$$;

CREATE OR REPLACE FUNCTION reservation.copy_tokens(messages inbox.message[]) RETURNS void LANGUAGE sql AS $$
	WITH e AS MATERIALIZED (
		SELECT m.id AS event_id, m.type, (m.payload ->> 'token_id')::uuid AS id, (m.payload ->> 'user_id')::uuid AS user_id,
			(m.payload ->> 'concert_id')::bigint AS concert_id, (m.payload ->> 'active_at')::timestamptz AS active_at,
			CASE m.type WHEN 'TokenIssued' THEN 'WAITING' WHEN 'TokenActivated' THEN 'ACTIVE'
				WHEN 'QueueRestored' THEN coalesce(m.payload ->> 'state', 'ACTIVE')
				WHEN 'QueueCompleted' THEN 'COMPLETED' ELSE 'EXPIRED' END AS state,
			reservation.seq_of(m.headers) AS seq, coalesce(m."time", clock_timestamp()) AS at
		FROM unnest(messages) AS m
		WHERE m.type IN ('TokenIssued', 'TokenActivated', 'QueueCompleted', 'QueueRestored', 'QueueExpired')
			AND m.payload ->> 'token_id' IS NOT NULL -- a payment's QueueExpired may have none
	), noted AS (
		INSERT INTO reservation.token_history (token_id, event_id, what, state, seq, at)
		SELECT e.id, e.event_id, e.type, e.state, e.seq, e.at FROM e ORDER BY e.id, e.event_id ON CONFLICT DO NOTHING
	)
	INSERT INTO reservation.token_copy AS c (token_id, user_id, concert_id, state, active_at, seq, at)
	SELECT DISTINCT ON (e.id) e.id, e.user_id, e.concert_id, e.state, e.active_at, e.seq, clock_timestamp() FROM e ORDER BY e.id, e.seq DESC
	ON CONFLICT (token_id) DO UPDATE SET state = EXCLUDED.state, seq = EXCLUDED.seq, at = EXCLUDED.at,
		active_at = coalesce(EXCLUDED.active_at, c.active_at)
	WHERE EXCLUDED.seq >= c.seq
$$;

-- ---------------------------------------------------------------- REQUESTED -> HELD or REJECTED

-- The reservations of one request hold their seats all or none; whoever asked first wins. Set-based: thousands ask at
-- the same time.
CREATE OR REPLACE FUNCTION reservation.claim(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	asked uuid[];
	places integer[];
	ids uuid[]; -- those still REQUESTED, with the place of their message and their seat
	places_of integer[];
	seats bigint[];
	taken bigint[];
	lost jsonb := '{}'; -- place: why
	won integer[] := '{}';
	more integer[];
BEGIN
	SELECT array_agg(a.id ORDER BY a.id), array_agg(a.place ORDER BY a.id) INTO asked, places
	FROM (
		SELECT i.id::uuid AS id, min(m.place)::integer AS place
		FROM unnest(messages) WITH ORDINALITY
			AS m (_, topic, partition, message_offset, key, type, payload, payload_bytes, headers, "time", place),
			jsonb_array_elements_text(m.payload -> 'reservation_ids') AS i (id)
		WHERE m.type = 'ReservationRequested' GROUP BY i.id
	) AS a;
	PERFORM FROM reservation.seat AS s
	WHERE s.seat_id IN (SELECT r.seat_id FROM reservation.reservation AS r WHERE r.reservation_id = ANY (asked))
	ORDER BY s.seat_id FOR NO KEY UPDATE;
	PERFORM FROM reservation.reservation AS r WHERE r.reservation_id = ANY (asked) ORDER BY r.reservation_id FOR NO KEY UPDATE;
	SELECT array_agg(r.reservation_id ORDER BY u.place, r.seat_id), array_agg(u.place ORDER BY u.place, r.seat_id),
		array_agg(r.seat_id ORDER BY u.place, r.seat_id)
	INTO ids, places_of, seats
	FROM unnest(asked, places) AS u (id, place) JOIN reservation.reservation AS r ON r.reservation_id = u.id
	WHERE r.status = 'REQUESTED' AND r.claim_no IS NULL;
	IF ids IS NULL THEN
		RETURN; -- again, or cancelled before
	END IF;

	SELECT coalesce(array_agg(r.seat_id), '{}') INTO taken FROM reservation.reservation AS r
	WHERE r.seat_id = ANY (seats) AND r.claim_no IS NOT NULL AND r.status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED');
	SELECT coalesce(jsonb_object_agg(x.place, x.why), '{}') INTO lost FROM (
		SELECT u.place, min(CASE WHEN t.state IN ('COMPLETED', 'EXPIRED') THEN 'token-over' WHEN c.state = 'LOCKED' THEN 'locked'
			WHEN u.seat_id = ANY (taken) THEN 'seat-taken' END) AS why
		FROM unnest(ids, places_of, seats) AS u (id, place, seat_id)
		JOIN reservation.reservation AS r ON r.reservation_id = u.id
		LEFT JOIN reservation.token_copy AS t ON t.token_id = r.token_id
		LEFT JOIN reservation.user_copy AS c ON c.user_id = r.user_id
		GROUP BY u.place) AS x WHERE x.why IS NOT NULL;
	-- The first of those who want a seat has it, if it has all that it wants; whoever wants one of these has lost.
	LOOP
		SELECT array_agg(o.place) INTO more FROM (
			SELECT w.place FROM (
				SELECT u.place, min(u.place) OVER (PARTITION BY u.seat_id) AS first
				FROM unnest(places_of, seats) AS u (place, seat_id)
				WHERE NOT lost ? u.place::text AND NOT u.place = ANY (won)) AS w
			GROUP BY w.place HAVING bool_and(w.first = w.place)) AS o;
		EXIT WHEN more IS NULL;
		won := won || more;
		SELECT lost || coalesce(jsonb_object_agg(x.place, 'seat-taken'), '{}') INTO lost FROM (
			SELECT DISTINCT u.place FROM unnest(places_of, seats) AS u (place, seat_id)
			WHERE NOT u.place = ANY (won) AND NOT lost ? u.place::text AND u.seat_id IN (
				SELECT v.seat_id FROM unnest(places_of, seats) AS v (place, seat_id) WHERE v.place = ANY (more))) AS x;
	END LOOP;
	UPDATE reservation.seat AS s SET claim_no = s.claim_no + 1
	FROM unnest(places_of, seats) AS u (place, seat_id) WHERE s.seat_id = u.seat_id AND u.place = ANY (won);

	PERFORM reservation.change(array_agg(u.id ORDER BY u.place, u.seat_id),
		array_agg(CASE WHEN l.why IS NULL THEN 'HELD' ELSE 'REJECTED' END ORDER BY u.place, u.seat_id),
		array_agg(l.why ORDER BY u.place, u.seat_id), 'ReservationRequested', array_agg(m.id ORDER BY u.place, u.seat_id),
		array_agg(CASE WHEN l.why IS NULL THEN s.claim_no END ORDER BY u.place, u.seat_id), NULL, NULL, NULL,
		array_agg(CASE WHEN m.id IS NOT NULL THEN jsonb_build_object('causation-id', m.id, 'correlation-id',
			coalesce(m.headers ->> 'correlation-id', m.id::text)) END ORDER BY u.place, u.seat_id),
		array_agg(CASE WHEN m.headers ? 'traceparent' THEN saga.trace_of(m.headers) END ORDER BY u.place, u.seat_id))
	FROM unnest(ids, places_of, seats) AS u (id, place, seat_id)
	JOIN reservation.seat AS s ON s.seat_id = u.seat_id
	JOIN unnest(messages) WITH ORDINALITY
		AS m (id, topic, partition, message_offset, key, type, payload, payload_bytes, headers, "time", n) ON m.n = u.place
	LEFT JOIN LATERAL (SELECT lost ->> u.place::text) AS l (why) ON true;
END
$$;

-- ---------------------------------------------------------------- what a message names

-- reservation_ids, or reservation_id, in order; NULL: neither is there, or is what it should be.
CREATE OR REPLACE FUNCTION reservation.ids_of(payload jsonb) RETURNS uuid[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	ids uuid[];
BEGIN
	IF jsonb_typeof(payload -> 'reservation_ids') = 'array' THEN
		SELECT array_agg(DISTINCT service.uuid_of(i)) INTO ids FROM jsonb_array_elements_text(payload -> 'reservation_ids') AS i;
	ELSE
		ids := ARRAY[service.uuid_of(payload ->> 'reservation_id')];
	END IF;
	RETURN CASE WHEN array_position(ids, NULL) IS NULL THEN ids END;
END
$$;

-- Those of them that are in one of these states, locked.
CREATE OR REPLACE FUNCTION reservation.lock_in(ids uuid[], states text[], payment uuid DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM reservation.reservation AS r WHERE r.reservation_id = ANY (ids) ORDER BY r.reservation_id FOR NO KEY UPDATE;
	RETURN (SELECT coalesce(array_agg(r.reservation_id ORDER BY r.reservation_id), '{}') FROM reservation.reservation AS r
		WHERE r.reservation_id = ANY (ids) AND r.status = ANY (states) AND (payment IS NULL OR r.payment_id = payment));
END
$$;

CREATE OR REPLACE FUNCTION reservation.of_payment(payment uuid) RETURNS uuid[] LANGUAGE sql STABLE AS $$
	SELECT coalesce(array_agg(r.reservation_id ORDER BY r.reservation_id), '{}')
	FROM reservation.reservation AS r WHERE r.payment_id = payment
$$;

-- ---------------------------------------------------------------- paid, confirmed, reverted

-- All of them become PAID by this payment, or none: 'done'; 'again': they were; else why not. HELD is HELD until a timer
-- says otherwise: the row decides between a payment and an expiry that come at the same instant.
CREATE OR REPLACE FUNCTION reservation.pay(ids uuid[], payment uuid, payer uuid, payment_mode text, cause text, cause_id uuid)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	bad record;
	paid bigint;
BEGIN
	IF ids IS NULL OR ids = '{}' OR payment IS NULL THEN
		RETURN 'reservation_ids and payment_id are needed';
	END IF;
	PERFORM reservation.lock_in(ids, '{}');
	SELECT count(*) INTO paid FROM reservation.reservation AS r
	WHERE r.reservation_id = ANY (ids) AND r.status IN ('PAID', 'CONFIRMED') AND r.payment_id = payment;
	IF paid = cardinality(ids) THEN
		RETURN 'again';
	END IF;
	SELECT u.id, r.status, r.user_id, r.label INTO bad FROM unnest(ids) AS u (id)
	LEFT JOIN reservation.reservation AS r ON r.reservation_id = u.id
	WHERE r.status IS NULL OR r.user_id <> coalesce(payer, r.user_id)
		OR NOT (r.status = 'HELD' OR r.status = 'REQUESTED' AND r.claim_no IS NOT NULL AND r.saga_id = payment)
	ORDER BY u.id LIMIT 1;
	IF FOUND THEN
		RETURN CASE WHEN bad.status IS NULL THEN format('there is no reservation %s', bad.id)
			WHEN bad.user_id <> coalesce(payer, bad.user_id) THEN format('reservation %s is another user''s', bad.id)
			ELSE format('reservation %s of seat %s is %s', bad.id, bad.label, bad.status) END;
	END IF;
	PERFORM reservation.change_all(ids, 'PAID', NULL, cause, cause_id, payment, payment_mode);
	RETURN 'done';
END
$$;

-- What this payment has made PAID; NULL: all of it.
CREATE OR REPLACE FUNCTION reservation.confirm(ids uuid[], payment uuid, cause text, cause_id uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM reservation.change_all(reservation.lock_in(coalesce(ids, reservation.of_payment(payment)), '{PAID}', payment),
		'CONFIRMED', NULL, cause, cause_id);
END
$$;

-- Hybrid: PAID here and RESERVED at the seats' owner, in whatever order; all of a payment's or none.
CREATE OR REPLACE FUNCTION reservation.confirm_hybrid(payment uuid, cause text, cause_id uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	ids uuid[] := reservation.of_payment(payment);
BEGIN
	PERFORM reservation.lock_in(ids, '{}');
	IF NOT EXISTS (SELECT FROM reservation.reservation AS r WHERE r.reservation_id = ANY (ids) AND r.payment_id = payment
			AND (r.mode IS DISTINCT FROM 'hybrid' OR r.status <> 'PAID' OR r.seat_payment IS DISTINCT FROM payment)) THEN
		PERFORM reservation.confirm(ids, payment, cause, cause_id);
	END IF;
END
$$;

-- What this payment has, is given up: CANCELLED; PRIOR: HELD again while its time lasts, else EXPIRED, and a booking, that
-- never was HELD, CANCELLED. What others have made of it since stays.
CREATE OR REPLACE FUNCTION reservation.revert(ids uuid[], payment uuid, target text, cause text, cause_id uuid) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
	mine uuid[] := reservation.lock_in(coalesce(ids, reservation.of_payment(payment)), '{PAID,CONFIRMED}', payment);
BEGIN
	IF mine <> '{}' THEN
		PERFORM reservation.change(array_agg(r.reservation_id ORDER BY r.reservation_id), array_agg(CASE
				WHEN target IS DISTINCT FROM 'PRIOR' OR r.saga_id IS NOT NULL THEN 'CANCELLED'
				WHEN r.expires_at > clock_timestamp() THEN 'HELD' ELSE 'EXPIRED' END ORDER BY r.reservation_id),
			array_agg('payment-undone'::text), cause, array_agg(cause_id),
			NULL, NULL, NULL, 'ReservationReverted')
		FROM reservation.reservation AS r WHERE r.reservation_id = ANY (mine);
	END IF;
	RETURN mine;
END
$$;

-- ---------------------------------------------------------------- commands

CREATE OR REPLACE FUNCTION reservation.is_step(m inbox.message) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
	SELECT m.headers ? 'saga-id'
$$;

-- Whether a command is to be done: one without a saga always is. In the choreography reserve the do was an event, which the
-- row remembers: its undo finds no barrier, and makes one, or it would be told that there was nothing to undo.
CREATE OR REPLACE FUNCTION reservation.enter(m inbox.message, by_event boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
	IF NOT reservation.is_step(m) THEN
		RETURN true;
	END IF;
	IF by_event AND m.headers ->> 'saga-op' = 'undo' AND saga.effect(m) IS NULL THEN
		PERFORM saga.barrier((m.headers ->> 'saga-id')::uuid, m.headers ->> 'saga-step', 'do', m.id, '{"by": "event"}');
	END IF;
	RETURN saga.barrier(m);
END
$$;

CREATE OR REPLACE FUNCTION reservation.answer(m inbox.message, why text, reply jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	IF why IS NOT NULL AND reservation.is_step(m) THEN
		PERFORM saga.refuse(m, why);
	ELSIF why IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('reservation: %s: %s', m.type, why);
	ELSIF reservation.is_step(m) THEN
		PERFORM saga.done(m, reply);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION reservation.confirm_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	said text;
	ids uuid[] := reservation.ids_of(m.payload);
BEGIN
	IF reservation.enter(m) THEN
		said := reservation.pay(ids, service.uuid_of(m.payload ->> 'payment_id'),
			service.uuid_of(m.payload ->> 'user_id'), 'saga', m.type, m.id);
		PERFORM reservation.answer(m, CASE WHEN said NOT IN ('done', 'again') THEN said END,
			jsonb_build_object('reservation_ids', to_jsonb(ids)));
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION reservation.revert_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payment uuid := service.uuid_of(coalesce(m.payload ->> 'payment_id', m.headers ->> 'saga-id'));
	ids uuid[];
BEGIN
	IF payment IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'reservation: RevertReservation without a payment_id';
	END IF;
	IF reservation.enter(m) THEN
		ids := reservation.revert(reservation.ids_of(m.payload), payment, m.payload ->> 'to', m.type, m.id);
		PERFORM reservation.answer(m, NULL, jsonb_build_object('reservation_ids', to_jsonb(ids)));
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION reservation.cancel_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	ids uuid[] := reservation.ids_of(m.payload);
BEGIN
	IF reservation.enter(m, true) THEN
		ids := coalesce(ids, reservation.ids_of(saga.effect(m)));
		PERFORM reservation.change_all(reservation.lock_in(ids, '{REQUESTED,HELD}'), 'CANCELLED',
			coalesce(left(m.payload ->> 'reason', 100), 'cancelled'), m.type, m.id);
		PERFORM reservation.answer(m, NULL);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION reservation.expire_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF reservation.enter(m) THEN
		PERFORM reservation.expire(reservation.ids_of(m.payload), m.type, m.id);
		PERFORM reservation.answer(m, NULL);
	END IF;
END
$$;

-- Seats for a user who did not queue up: claimed at once.
CREATE OR REPLACE FUNCTION reservation.request_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payer uuid := service.uuid_of(m.payload ->> 'user_id');
	seats bigint[];
	why text;
	ids uuid[];
	claims bigint[];
BEGIN
	IF NOT reservation.enter(m) THEN
		RETURN;
	END IF;
	IF jsonb_typeof(m.payload -> 'seat_ids') = 'array' THEN
		SELECT array_agg(s.seat_id ORDER BY s.seat_id) INTO seats FROM reservation.seat AS s
		WHERE s.seat_id::text IN (SELECT jsonb_array_elements_text(m.payload -> 'seat_ids'))
			AND s.schedule_id::text = m.payload ->> 'schedule_id';
	END IF;
	IF payer IS NULL OR seats IS NULL OR cardinality(seats) <> jsonb_array_length(m.payload -> 'seat_ids') THEN
		why := 'user_id and seat_ids of one schedule are needed';
	ELSE
		why := format('seat %s is taken', reservation.take(seats));
		why := CASE WHEN why <> 'seat  is taken' THEN why END;
	END IF;
	IF why IS NULL THEN
		ids := reservation.make(payer, service.uuid_of(m.payload ->> 'token_id'), seats, m.type, m.id);
		SELECT array_agg(s.claim_no ORDER BY array_position(ids, r.reservation_id)) INTO claims
		FROM reservation.reservation AS r JOIN reservation.seat AS s ON s.seat_id = r.seat_id WHERE r.reservation_id = ANY (ids);
		PERFORM reservation.change(ids, array_fill('HELD'::text, ARRAY[cardinality(ids)]), NULL, m.type,
			array_fill(m.id, ARRAY[cardinality(ids)]), claims);
		IF reservation.is_step(m) THEN
			PERFORM saga.set_effect(m, jsonb_build_object('reservation_ids', to_jsonb(ids)));
		END IF;
	END IF;
	PERFORM reservation.answer(m, why, jsonb_build_object('reservation_ids', to_jsonb(ids)));
END
$$;

-- ---------------------------------------------------------------- events

-- Not what is paid. What is PAID now and is given back later, must not be HELD again: its time is over, by whose clock ever.
CREATE OR REPLACE FUNCTION reservation.expire(ids uuid[], cause text, cause_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	claimed uuid[] := reservation.lock_in(ids, '{REQUESTED,HELD}');
BEGIN
	PERFORM reservation.change_all(ARRAY(SELECT r.reservation_id FROM reservation.reservation AS r
		WHERE r.reservation_id = ANY (claimed) AND r.claim_no IS NOT NULL ORDER BY r.reservation_id),
		'EXPIRED', 'hold-expired', cause, cause_id);
	UPDATE reservation.reservation AS r SET expires_at = least(r.expires_at, now())
	WHERE r.reservation_id = ANY (ids) AND r.status IN ('PAID', 'CONFIRMED') AND r.expires_at > now();
END
$$;

-- A payment that acts by itself, and not by commands: the answer is an event of its whole set. The barrier is for the undo:
-- one that came before wins.
CREATE OR REPLACE FUNCTION reservation.payment_completed(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payment uuid := service.uuid_of(m.payload ->> 'payment_id');
	pay_mode text := m.payload ->> 'mode';
	said text;
BEGIN
	IF pay_mode IS NULL OR pay_mode NOT IN ('choreography', 'hybrid')
		OR coalesce(m.payload -> 'reservation_ids', 'null') IN ('null', '[]') THEN
		RETURN;
	END IF;
	IF NOT saga.barrier(payment, 'RESERVATION', 'do', m.id) THEN
		RETURN;
	END IF;
	said := reservation.pay(reservation.ids_of(m.payload), payment, service.uuid_of(m.payload ->> 'user_id'), pay_mode,
		m.type, m.id);
	IF said <> 'again' THEN
		PERFORM outbox.publish('reservation', payment::text,
			CASE said WHEN 'done' THEN 'ReservationsCompleted' ELSE 'ReservationsRejected' END,
			jsonb_build_object('payment_id', payment, 'user_id', m.payload -> 'user_id', 'reservation_ids', m.payload -> 'reservation_ids',
				'token_id', m.payload -> 'token_id', 'amount', m.payload -> 'amount')
			|| CASE said WHEN 'done' THEN '{}' ELSE jsonb_build_object('reason', said) END
			|| jsonb_strip_nulls(jsonb_build_object('choreography_id', m.payload -> 'choreography_id',
				'hybrid_id', m.payload -> 'hybrid_id')));
	END IF;
	IF pay_mode = 'hybrid' THEN
		PERFORM reservation.confirm_hybrid(payment, m.type, m.id);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION reservation.seat_reserved(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payment uuid := service.uuid_of(m.payload ->> 'payment_id');
	id uuid := service.uuid_of(m.payload ->> 'reservation_id');
BEGIN
	IF payment IS NULL OR id IS NULL THEN
		RETURN;
	END IF;
	-- All of the payment's first: the last two seats of one, side by side, would each wait for the other.
	PERFORM reservation.lock_in(ARRAY[id] || reservation.of_payment(payment), '{}');
	UPDATE reservation.reservation AS r SET seat_payment = payment
	WHERE r.reservation_id = id AND r.claim_no::text = m.payload ->> 'claim_no' AND r.seat_payment IS DISTINCT FROM payment;
	PERFORM reservation.confirm_hybrid(payment, m.type, m.id);
END
$$;

-- The seat's owner does not accept a hold.
CREATE OR REPLACE FUNCTION reservation.seat_refused(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	held uuid[] := reservation.lock_in(reservation.ids_of(m.payload), '{HELD}');
BEGIN
	IF m.payload ->> 'payment_id' IS NULL AND held <> '{}' AND EXISTS (SELECT FROM reservation.reservation AS r
			WHERE r.reservation_id = ANY (held) AND r.claim_no::text = m.payload ->> 'claim_no') THEN
		PERFORM reservation.change_all(held, 'REJECTED', coalesce(left(m.payload ->> 'reason', 100), 'seat-refused'), m.type, m.id);
	END IF;
END
$$;

-- The end of a flow: what is PAID by it is CONFIRMED. A booking that turned round before it was paid lets its seats go at once.
CREATE OR REPLACE FUNCTION reservation.saga_told(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	data jsonb := m.payload -> 'data';
	payment uuid := service.uuid_of(data ->> 'payment_id');
BEGIN
	IF m.payload ->> 'name' = 'book' THEN
		PERFORM saga.on_event(m);
	END IF;
	-- A booking is sold once its seats are RESERVED: what comes behind that (timer, push) may be away for long.
	IF (m.type = 'SagaCompleted' OR m.type = 'SagaStepCompleted' AND m.payload ->> 'name' = 'book' AND m.payload ->> 'step' = 'CONCERT'
			AND m.payload ->> 'state' = 'RUNNING') AND payment IS NOT NULL AND jsonb_typeof(data -> 'reservation_ids') = 'array' THEN
		PERFORM reservation.confirm(reservation.ids_of(data), payment, m.type, m.id);
	ELSIF m.type IN ('SagaFailed', 'SagaCompensated', 'SagaAborted') AND m.payload ->> 'name' = 'book' THEN
		PERFORM reservation.change_all(reservation.lock_in(ARRAY(SELECT r.reservation_id FROM reservation.reservation AS r
				WHERE r.reservation_id = ANY (reservation.ids_of(data)) AND r.saga_id::text = m.payload ->> 'saga_id'), '{REQUESTED}'),
			'REJECTED', left(coalesce(m.payload ->> 'why', 'not paid'), 200), m.type, m.id);
	END IF;
END
$$;

-- ---------------------------------------------------------------- the handler

-- Events of others that are none of ours are stepped over; a command that we do not know is refused.
CREATE OR REPLACE FUNCTION reservation.on_one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CASE m.type
	WHEN 'ConfirmReservation' THEN PERFORM reservation.confirm_command(m);
	WHEN 'RevertReservation' THEN PERFORM reservation.revert_command(m);
	WHEN 'CancelReservation' THEN PERFORM reservation.cancel_command(m);
	WHEN 'ExpireReservation' THEN PERFORM reservation.expire_command(m);
	WHEN 'RequestReservation' THEN PERFORM reservation.request_command(m);
	WHEN 'PaymentCompleted' THEN PERFORM reservation.payment_completed(m);
	WHEN 'SeatReserved' THEN PERFORM reservation.seat_reserved(m);
	WHEN 'SeatRefused' THEN PERFORM reservation.seat_refused(m);
	WHEN 'TimerFired' THEN
		IF m.payload ->> 'kind' = 'hold' THEN
			PERFORM reservation.expire(reservation.ids_of(m.payload -> 'subject'), m.type, m.id);
		END IF;
	WHEN 'QueueExpired' THEN
		IF service.uuid_of(m.payload ->> 'payment_id') IS NOT NULL THEN
			PERFORM reservation.confirm(NULL, (m.payload ->> 'payment_id')::uuid, m.type, m.id);
		END IF;
	WHEN 'SagaStarted', 'SagaStepCompleted', 'SagaCompleted', 'SagaFailed', 'SagaCompensated', 'SagaStuck', 'SagaAborted', 'SagaResumed' THEN
		PERFORM reservation.saga_told(m);
	ELSE
		IF m.topic LIKE 'outbox.command.%' AND reservation.enter(m) THEN
			PERFORM reservation.answer(m, format('the reservation service knows no command %s', left(m.type, 60)));
		END IF;
	END CASE;
END
$$;

-- The payment that a message is about, and the reservations that it names.
CREATE OR REPLACE FUNCTION reservation.concerns(m inbox.message, OUT payment uuid, OUT ids uuid[]) LANGUAGE plpgsql STABLE AS $$
DECLARE
	p jsonb := CASE WHEN m.type LIKE 'Saga%' THEN m.payload -> 'data' WHEN m.type = 'TimerFired' THEN m.payload -> 'subject' ELSE m.payload END;
BEGIN
	payment := service.uuid_of(coalesce(p ->> 'payment_id', CASE m.type WHEN 'RevertReservation' THEN m.headers ->> 'saga-id' END));
	ids := reservation.ids_of(p);
	IF ids IS NULL AND m.type = 'CancelReservation' AND reservation.is_step(m) THEN
		ids := reservation.ids_of(saga.effect(m));
	END IF;
END
$$;

-- Locks all that a batch is going to change, in the one order that everybody keeps: messages come in any.
CREATE OR REPLACE FUNCTION reservation.lock_batch(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	m inbox.message;
	c record;
	ids uuid[] := '{}';
	payments uuid[] := '{}';
	asked uuid[] := '{}';
	wanted text[] := '{}';
BEGIN
	FOREACH m IN ARRAY messages LOOP
		CONTINUE WHEN m.type LIKE 'Token%' OR m.type LIKE 'User%' OR m.type = 'ScheduleOpened'
			OR m.type LIKE 'Saga%' AND m.type <> 'SagaCompleted' AND m.payload ->> 'name' IS DISTINCT FROM 'book'
			OR m.type = 'PaymentCompleted' AND m.payload ->> 'mode' IN ('saga', 'order');
		c := reservation.concerns(m);
		ids := ids || c.ids;
		payments := array_append(payments, c.payment);
		IF m.type = 'ReservationRequested' THEN
			asked := asked || c.ids;
		ELSIF m.type = 'RequestReservation' AND jsonb_typeof(m.payload -> 'seat_ids') = 'array' THEN
			wanted := wanted || ARRAY(SELECT jsonb_array_elements_text(m.payload -> 'seat_ids'));
		END IF;
	END LOOP;
	PERFORM FROM reservation.seat AS s WHERE s.seat_id IN (
			SELECT r.seat_id FROM reservation.reservation AS r WHERE r.reservation_id = ANY (asked)
			UNION SELECT w::bigint FROM unnest(wanted) AS w WHERE w ~ '^[0-9]{1,18}$')
		ORDER BY s.seat_id FOR NO KEY UPDATE;
	ids := ids || ARRAY(SELECT r.reservation_id FROM reservation.reservation AS r WHERE r.payment_id = ANY (payments));
	PERFORM FROM reservation.reservation AS r WHERE r.reservation_id = ANY (ids) ORDER BY r.reservation_id FOR NO KEY UPDATE;
END
$$;

CREATE OR REPLACE FUNCTION reservation.on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	m inbox.message;
	types text[] := ARRAY(SELECT DISTINCT u.type FROM unnest(messages) AS u);
	simple boolean := types <@ '{UserCreated,UserUpdated,ScheduleOpened,TokenIssued,TokenActivated,QueueCompleted,QueueRestored,ReservationRequested}';
BEGIN
	IF NOT simple THEN -- else claim() locks all there is
		PERFORM reservation.lock_batch(messages);
	END IF;
	IF types && '{UserCreated,UserUpdated}' THEN
		PERFORM reservation.copy_users(messages);
	END IF;
	IF types && '{ScheduleOpened}' THEN
		PERFORM reservation.copy_seats(messages);
	END IF;
	IF types && '{TokenIssued,TokenActivated,QueueCompleted,QueueRestored,QueueExpired}' THEN
		PERFORM reservation.copy_tokens(messages);
	END IF;
	IF types && '{ReservationRequested}' THEN
		PERFORM reservation.claim(messages);
	END IF;
	IF simple THEN
		RETURN;
	END IF;
	FOR m IN SELECT u.* FROM unnest(messages) AS u LOOP
		PERFORM inbox.carry(m);
		PERFORM reservation.on_one(m);
	END LOOP;
END
$$;

-- Before a message that could not be handled for good becomes a dead letter, in that transaction: a request is REJECTED, so
-- that nobody waits for it. The runtime tells the admin of all of them (<type>Failed).
CREATE OR REPLACE FUNCTION reservation.on_failed(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF m.type = 'ReservationRequested' THEN
		PERFORM reservation.change_all(reservation.lock_in(ARRAY(SELECT r.reservation_id FROM reservation.reservation AS r
			WHERE r.reservation_id = ANY (reservation.ids_of(m.payload)) AND r.claim_no IS NULL), '{REQUESTED}'),
			'REJECTED', 'failed', m.type, m.id);
	END IF;
END
$$;
