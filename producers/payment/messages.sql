-- What messages do: commands of sagas, the events that a choreography is made of, and those that copies are made of. Two
-- groups of postrider-consumer call on_messages and on_receipts.

-- What a command or an event says, or NULL: nobody's mistake may make a message that cannot be handled.
CREATE OR REPLACE FUNCTION payment.as_uuids(said jsonb) RETURNS uuid[] LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN jsonb_typeof(said) = 'array' THEN
		(SELECT coalesce(array_agg(service.uuid_of(e)), '{}') FROM jsonb_array_elements_text(said) AS e) END
$$;
CREATE OR REPLACE FUNCTION payment.as_amount(said jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN jsonb_typeof(said) = 'number' AND said #>> '{}' ~ '^[0-9]{1,15}$' THEN (said #>> '{}')::bigint END
$$;
CREATE OR REPLACE FUNCTION payment.as_id(said text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN said ~ '^[0-9]{1,18}$' THEN said::bigint END
$$;

CREATE OR REPLACE FUNCTION payment.reply(p payment.payment) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('payment_id', p.payment_id, 'state', p.state, 'amount', p.amount,
		'paid_at', service.rfc3339(p.completed_at))
$$;

-- ---------------------------------------------------------------- commands

-- The payment that ExecutePayment is about, locked: there since POST /payments, or made here (booking, order). why: it cannot be.
CREATE OR REPLACE FUNCTION payment.wanted(m inbox.message, pid uuid, OUT p payment.payment, OUT why text) LANGUAGE plpgsql AS $$
DECLARE
	who uuid := service.uuid_of(m.payload ->> 'user_id');
	n payment.payment;
BEGIN
	p := payment.lock(pid);
	IF p.payment_id IS NOT NULL THEN
		why := CASE WHEN who IS DISTINCT FROM p.user_id THEN 'the payment is another user''s'
			WHEN p.state IN ('FAILED', 'CANCELLED') THEN format('the payment is %s', p.state) END;
		RETURN;
	END IF;
	n.payment_id := pid;
	n.user_id := who;
	n.order_id := service.uuid_of(m.payload ->> 'order_id');
	n.mode := CASE WHEN n.order_id IS NULL THEN 'saga' ELSE 'order' END;
	n.traced := m.payload ? 'order_choreography_id';
	n.amount := payment.as_amount(m.payload -> 'amount');
	n.concert_id := payment.as_id(m.payload ->> 'concert_id');
	n.token_id := service.uuid_of(m.payload ->> 'token_id');
	n.reservation_ids := coalesce(payment.as_uuids(m.payload -> 'reservation_ids'), '{}');
	n.seats := CASE WHEN jsonb_typeof(m.payload -> 'seats') = 'array' THEN m.payload -> 'seats' ELSE '[]' END;
	IF who IS NULL OR n.amount IS NULL OR array_position(n.reservation_ids, NULL) IS NOT NULL THEN
		why := 'the command has no valid user_id, amount or reservation_ids';
		RETURN;
	END IF;
	IF EXISTS (SELECT FROM payment.payment_reservation AS r WHERE r.reservation_id = ANY (n.reservation_ids) AND r.live)
			OR NOT payment.create(n) THEN
		why := 'a reservation is being paid by another payment';
	END IF;
	p := payment.lock(pid);
	IF why IS NOT NULL AND p.payment_id IS NOT NULL THEN
		PERFORM payment.fail(p, why);
	ELSIF why IS NULL THEN
		PERFORM payment.tell(p, 'PaymentInitiated');
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION payment.do_execute(m inbox.message, pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	w record;
	e record;
	p payment.payment;
BEGIN
	w := payment.wanted(m, pid);
	p := w.p;
	IF w.why IS NOT NULL THEN
		PERFORM saga.refuse(m, w.why);
		RETURN;
	ELSIF p.state = 'PENDING' THEN
		e := payment.execute(p, coalesce(m.payload -> 'deducted' = 'true', false), jsonb_build_object('saga_id', m.headers -> 'saga-id',
			'step', m.headers -> 'saga-step', 'command_id', m.headers -> 'saga-command-id', 'reply_to', m.headers -> 'saga-reply-to'));
		IF e.outcome = 'later' THEN
			RETURN; -- settle_work answers
		ELSIF e.outcome = 'refused' THEN
			PERFORM saga.refuse(m, e.why);
			RETURN;
		END IF;
		p := payment.lock(pid);
	END IF;
	PERFORM saga.done(m, payment.reply(p));
END
$$;

-- order_id and order_state are for the order service, which finds them in the event.
CREATE OR REPLACE FUNCTION payment.do_cancel(m inbox.message, pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	p payment.payment := payment.cancel(pid, coalesce(m.payload -> 'refund' <> 'false', true),
		coalesce(left(m.payload ->> 'reason', 200), CASE m.headers ->> 'saga-op' WHEN 'undo' THEN 'undone' ELSE 'cancelled by the user' END),
		jsonb_strip_nulls(jsonb_build_object('order_id', service.uuid_of(m.payload ->> 'order_id'), 'order_state', m.payload ->> 'order_state')));
BEGIN
	PERFORM saga.done(m, CASE WHEN p.payment_id IS NULL THEN '{}' ELSE jsonb_strip_nulls(jsonb_build_object('payment_id', pid,
		'state', p.state, 'refunded_at', service.rfc3339(p.refunded_at))) END);
END
$$;

CREATE OR REPLACE FUNCTION payment.do_deduct(m inbox.message, pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	who uuid := service.uuid_of(m.payload ->> 'user_id');
	amount bigint := payment.as_amount(m.payload -> 'amount');
	d record;
BEGIN
	IF who IS NULL OR amount IS NULL THEN
		PERFORM saga.refuse(m, 'the command has no valid user_id or amount');
		RETURN;
	END IF;
	d := payment.deduct(pid, who, amount, '{}');
	IF d.went THEN
		PERFORM saga.done(m, jsonb_build_object('payment_id', pid, 'balance', d.has));
	ELSE
		PERFORM saga.refuse(m, 'not enough points');
	END IF;
END
$$;

-- A step of a saga, known by its command, whichever op it comes as: cancelling is the undo of a payment, and what a user's own
-- saga does.
CREATE OR REPLACE FUNCTION payment.on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	pid uuid := coalesce(service.uuid_of(m.payload ->> 'payment_id'), service.uuid_of(m.headers ->> 'saga-id'));
	undo boolean := m.headers ->> 'saga-op' = 'undo';
BEGIN
	IF NOT saga.barrier(m) THEN
		-- An undo before its do: the do is refused when it comes, so what waits for it has failed.
		IF undo AND m.type = 'CancelPayment' AND EXISTS (SELECT FROM payment.payment AS p WHERE p.payment_id = pid AND p.state = 'PENDING') THEN
			PERFORM payment.cancel(pid, true, 'undone');
		END IF;
		RETURN;
	END IF;
	CASE
	WHEN m.type = 'ExecutePayment' AND NOT undo THEN
		PERFORM payment.do_execute(m, pid);
	WHEN m.type = 'DeductPoints' AND NOT undo THEN
		PERFORM payment.do_deduct(m, pid);
	WHEN m.type = 'CancelPayment' THEN
		PERFORM payment.do_cancel(m, pid);
	WHEN m.type = 'RestorePoints' THEN
		PERFORM saga.done(m, jsonb_build_object('restored', payment.restore(pid,
			coalesce((SELECT payment.about(p) FROM payment.payment AS p WHERE p.payment_id = pid), '{}'))));
	WHEN undo THEN
		PERFORM saga.fail(m, format('the payment service knows no undo %s', left(m.type, 60)));
	ELSE
		PERFORM saga.refuse(m, format('the payment service knows no command %s', left(m.type, 60)));
	END CASE;
END
$$;

-- ---------------------------------------------------------------- choreography

-- Step PAYMENT, on PaymentInitiated. Points are taken by a step of their own. The barrier has no answer to give: nobody commands;
-- it is for the undo, which the engine commands.
CREATE OR REPLACE FUNCTION payment.begin_choreography(pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	p payment.payment;
BEGIN
	IF NOT saga.barrier(pid, 'PAYMENT', 'do', pid) THEN
		RETURN;
	END IF;
	p := payment.lock(pid);
	IF p.state IS DISTINCT FROM 'PENDING' THEN
		RETURN;
	END IF;
	PERFORM FROM unnest(p.reservation_ids) AS i JOIN payment.reservation_copy AS r ON r.reservation_id = i
	WHERE r.status <> 'HELD' OR r.expires_at <= clock_timestamp();
	IF FOUND THEN
		PERFORM payment.fail(p, 'a reservation is not held any more');
	ELSE
		PERFORM payment.execute(p, true, NULL);
	END IF;
END
$$;

-- Step POINTS, on ReservationsCompleted.
CREATE OR REPLACE FUNCTION payment.continue_choreography(pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	p payment.payment;
BEGIN
	IF NOT saga.barrier(pid, 'POINTS', 'do', pid) THEN
		RETURN;
	END IF;
	p := payment.lock(pid);
	IF p.state = 'COMPLETED' THEN
		PERFORM payment.deduct(pid, p.user_id, p.amount, payment.about(p));
	ELSIF p.payment_id IS NOT NULL THEN
		PERFORM payment.tell_points('PointsRefused', pid, p.user_id, p.amount,
			coalesce((SELECT b.balance FROM payment.balance AS b WHERE b.user_id = p.user_id), 0),
			payment.about(p) || jsonb_build_object('reason', format('the payment is %s', p.state)));
	END IF;
END
$$;

-- An order's, by choreography (etc/sagas/order-choreography.cfg). Step POINTS, on the user service's UserChecked.
CREATE OR REPLACE FUNCTION payment.begin_order(m inbox.message, pid uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF saga.barrier(pid, 'POINTS', 'do', pid) THEN
		PERFORM payment.deduct(pid, (m.payload ->> 'user_id')::uuid, (m.payload ->> 'amount')::bigint, jsonb_build_object(
			'mode', 'order', 'order_id', m.payload -> 'order_id', 'order_choreography_id', pid));
	END IF;
END
$$;

-- Step PAYMENT, on its own PointsDeducted.
CREATE OR REPLACE FUNCTION payment.continue_order(m inbox.message, pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	w record;
BEGIN
	IF NOT saga.barrier(pid, 'PAYMENT', 'do', pid) THEN
		RETURN;
	END IF;
	w := payment.wanted(m, pid);
	IF w.why IS NULL AND (w.p).state = 'PENDING' THEN
		PERFORM payment.execute(w.p, true, NULL);
	END IF;
END
$$;

-- ---------------------------------------------------------------- what others tell

CREATE OR REPLACE FUNCTION payment.learn_reservation(e jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO payment.reservation_copy AS c (reservation_id, user_id, concert_id, schedule_id, seat_id, claim_no, price, token_id,
		payment_id, status, expires_at, version)
	VALUES ((e ->> 'reservation_id')::uuid, (e ->> 'user_id')::uuid, (e ->> 'concert_id')::bigint, (e ->> 'schedule_id')::bigint,
		(e ->> 'seat_id')::bigint, (e ->> 'claim_no')::bigint, (e ->> 'price')::bigint, (e ->> 'token_id')::uuid,
		(e ->> 'payment_id')::uuid, e ->> 'status', (e ->> 'expires_at')::timestamptz, (e ->> 'version')::bigint)
	ON CONFLICT (reservation_id) DO UPDATE SET claim_no = EXCLUDED.claim_no, price = EXCLUDED.price, token_id = EXCLUDED.token_id,
		payment_id = EXCLUDED.payment_id, status = EXCLUDED.status, expires_at = EXCLUDED.expires_at, version = EXCLUDED.version
	WHERE EXCLUDED.version > c.version
$$;

CREATE OR REPLACE FUNCTION payment.learn_user(e jsonb, place bigint) RETURNS void LANGUAGE sql AS $$
	INSERT INTO payment.user_copy AS c (user_id, state, sequence) VALUES ((e ->> 'user_id')::uuid, e ->> 'state', place)
	ON CONFLICT (user_id) DO UPDATE SET state = EXCLUDED.state, sequence = EXCLUDED.sequence WHERE EXCLUDED.sequence > c.sequence
$$;

CREATE OR REPLACE FUNCTION payment.learn_token(e jsonb, is_now text, place bigint) RETURNS void LANGUAGE sql AS $$
	INSERT INTO payment.token_copy AS c (token_id, state, sequence, at) SELECT i.id, is_now, place, clock_timestamp()
	FROM (SELECT (e ->> 'token_id')::uuid) AS i (id) WHERE i.id IS NOT NULL -- a sale at the box office ends none
	ON CONFLICT (token_id) DO UPDATE SET state = EXCLUDED.state, sequence = EXCLUDED.sequence, at = EXCLUDED.at WHERE EXCLUDED.sequence > c.sequence
$$;

-- A saga that has ended otherwise than well leaves no payment PENDING (its step may never have been asked), and a user's cancelling
-- that came to nothing may be asked for again.
CREATE OR REPLACE FUNCTION payment.learn_saga(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	id uuid := (m.payload ->> 'saga_id')::uuid;
	pid uuid := service.uuid_of(m.payload -> 'data' ->> 'payment_id');
BEGIN
	IF m.payload ->> 'name' IN ('pay', 'pay-choreography', 'pay-hybrid', 'book', 'cancel', 'cancel-order') THEN
		PERFORM saga.on_event(m); -- of no other GET /sagas/{id} tells
	END IF;
	IF coalesce(m.payload ->> 'state', '') NOT IN ('COMPENSATED', 'ABORTED') THEN
		RETURN;
	ELSIF EXISTS (SELECT FROM payment.payment AS p WHERE p.payment_id = id AND p.state = 'PENDING') THEN
		PERFORM payment.cancel(id, true, coalesce(m.payload ->> 'why', 'undone'));
	ELSIF pid IS NOT NULL THEN
		UPDATE payment.payment AS p SET cancel_saga = NULL WHERE p.payment_id = pid AND p.cancel_saga = id AND p.state = 'COMPLETED';
	END IF;
END
$$;

-- The users whose money or payments this message may change.
CREATE OR REPLACE FUNCTION payment.subject(m inbox.message) RETURNS uuid LANGUAGE sql STABLE AS $$
	SELECT CASE WHEN m.topic LIKE 'outbox.command.%' OR m.type IN ('PaymentInitiated', 'ReservationsCompleted', 'UserChecked', 'PointsDeducted')
			OR m.topic = 'outbox.event.saga' AND m.payload ->> 'state' IN ('COMPENSATED', 'ABORTED') THEN
		coalesce((SELECT p.user_id FROM payment.payment AS p
				WHERE p.payment_id = coalesce(service.uuid_of(m.payload ->> 'payment_id'), service.uuid_of(m.payload -> 'data' ->> 'payment_id'),
					service.uuid_of(m.headers ->> 'saga-id'), service.uuid_of(m.payload ->> 'saga_id'))),
			service.uuid_of(m.payload ->> 'user_id')) END
$$;

-- Of group payment. The balances of the whole batch are locked first, in order: of two batches that share users one waits for the other,
-- whatever the order of their messages.
CREATE OR REPLACE FUNCTION payment.on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	m inbox.message;
BEGIN
	PERFORM payment.lock_balances(ARRAY(SELECT payment.subject(u) FROM unnest(messages) AS u));
	FOREACH m IN ARRAY messages LOOP
		PERFORM inbox.carry(m);
		PERFORM payment.on_one(m);
	END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION payment.on_one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	place bigint := coalesce((m.headers ->> 'outbox-seq')::bigint, 0);
	chosen boolean := m.payload ->> 'mode' = 'choreography' OR m.payload ? 'choreography_id';
BEGIN
	CASE
	WHEN m.topic LIKE 'outbox.command.%' THEN
		PERFORM payment.on_command(m);
	WHEN m.topic = 'outbox.event.saga' THEN
		PERFORM payment.learn_saga(m);
	WHEN m.type = 'ReservationUpdated' THEN
		PERFORM payment.learn_reservation(m.payload);
	WHEN m.type = 'PaymentInitiated' AND chosen THEN
		PERFORM payment.begin_choreography((m.payload ->> 'payment_id')::uuid);
	WHEN m.type = 'ReservationsCompleted' AND EXISTS (SELECT FROM payment.payment AS p
			WHERE p.payment_id = (m.payload ->> 'payment_id')::uuid AND p.mode = 'choreography') THEN
		PERFORM payment.continue_choreography((m.payload ->> 'payment_id')::uuid);
	WHEN m.type = 'UserChecked' THEN
		PERFORM payment.begin_order(m, (m.payload ->> 'order_choreography_id')::uuid);
	WHEN m.type = 'PointsDeducted' AND m.payload ? 'order_choreography_id' THEN
		PERFORM payment.continue_order(m, (m.payload ->> 'order_choreography_id')::uuid);
	WHEN m.type IN ('UserCreated', 'UserUpdated') THEN
		PERFORM payment.learn_user(m.payload, place);
	WHEN m.type IN ('TokenIssued', 'TokenActivated', 'QueueCompleted', 'QueueRestored', 'QueueExpired') THEN
		PERFORM payment.learn_token(m.payload, CASE m.type WHEN 'TokenIssued' THEN 'WAITING' WHEN 'QueueCompleted' THEN 'COMPLETED'
			WHEN 'QueueExpired' THEN 'EXPIRED' WHEN 'QueueRestored' THEN coalesce(m.payload ->> 'state', 'ACTIVE') ELSE 'ACTIVE' END, place);
	ELSE
		NULL; -- none of ours
	END CASE;
END
$$;

-- Of group receipt: a receipt for each payment that is made, void when it is cancelled. Neither touches the payment, but its events
-- are the payment's too: whoever tells one holds the balance's lock, else a receipt's could overtake one that was written before it.
CREATE OR REPLACE FUNCTION payment.on_receipts(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	m inbox.message;
BEGIN
	PERFORM payment.lock_balances(ARRAY(SELECT service.uuid_of(u.payload ->> 'user_id') FROM unnest(messages) AS u));
	FOREACH m IN ARRAY messages LOOP
		PERFORM inbox.carry(m);
		PERFORM payment.on_receipt(m);
	END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION payment.on_receipt(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	pid uuid := service.uuid_of(m.payload ->> 'payment_id');
	tax boolean := (SELECT s.tax FROM payment.setting AS s);
	c payment.cash_receipt;
	cancelled boolean := m.type = 'PaymentCancelled';
BEGIN
	IF m.type NOT IN ('PaymentCompleted', 'PaymentCancelled') THEN
		RETURN;
	END IF;
	INSERT INTO payment.cash_receipt AS x (payment_id, user_id, amount, state)
	VALUES (pid, (m.payload ->> 'user_id')::uuid, (m.payload ->> 'amount')::bigint, CASE WHEN cancelled THEN 'NONE' ELSE 'REQUESTED' END)
	ON CONFLICT DO NOTHING RETURNING x.* INTO c;
	IF c.state = 'REQUESTED' AND tax THEN
		INSERT INTO payment.gateway_request (payment_id, kind) VALUES (pid, 'issue');
	ELSIF c.state = 'REQUESTED' THEN
		PERFORM payment.receipt_issued(pid, 'R' || lpad(nextval('payment.receipt_no')::text, 10, '0'));
	ELSIF cancelled AND c.payment_id IS NULL THEN
		PERFORM payment.void_receipt(pid, tax);
	END IF;
END
$$;

-- One whose issue was never asked for is not issued at all.
CREATE OR REPLACE FUNCTION payment.void_receipt(pid uuid, tax boolean) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	UPDATE payment.gateway_request AS r SET state = 'DROPPED', done_at = clock_timestamp()
	WHERE r.payment_id = pid AND r.kind = 'issue' AND r.state = 'PENDING' AND r.attempts = 0;
	IF FOUND THEN
		UPDATE payment.cash_receipt AS c SET state = 'NONE' WHERE c.payment_id = pid;
	ELSIF tax THEN
		INSERT INTO payment.gateway_request (payment_id, kind) VALUES (pid, 'void') ON CONFLICT DO NOTHING;
	ELSE
		PERFORM payment.receipt_voided(pid);
	END IF;
END
$$;
