-- What becomes of a payment: PENDING -> COMPLETED or FAILED, COMPLETED -> CANCELLED. Each change is made under its row's
-- lock and told by an event of the same transaction; nobody else changes a state. `p payment.payment` is a row that the
-- caller has locked.

-- What correlates the events of a flow without an engine's commands: correlation-id alone cannot, every event has one.
CREATE OR REPLACE FUNCTION payment.flow(p payment.payment) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE p.mode WHEN 'choreography' THEN jsonb_build_object('choreography_id', p.payment_id)
		WHEN 'hybrid' THEN jsonb_build_object('hybrid_id', p.payment_id)
		ELSE CASE WHEN p.traced THEN jsonb_build_object('order_choreography_id', p.payment_id) ELSE '{}' END END
$$;

CREATE OR REPLACE FUNCTION payment.tell(p payment.payment, kind text, more jsonb DEFAULT '{}') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('payment', p.payment_id::text, kind, jsonb_strip_nulls(jsonb_build_object(
		'payment_id', p.payment_id, 'user_id', p.user_id, 'mode', p.mode, 'state', p.state, 'amount', p.amount,
		'reservation_ids', p.reservation_ids, 'seats', p.seats, 'concert_id', p.concert_id::text, 'token_id', p.token_id,
		'order_id', p.order_id, 'at', service.rfc3339(clock_timestamp())) || payment.flow(p) || more),
		CASE WHEN p.mode IN ('choreography', 'hybrid') THEN jsonb_build_object('correlation-id', p.payment_id) ELSE '{}' END);
END
$$;

-- What the events about its points say beside the amount. Who reacts to them (the queue) finds there what it needs, in a
-- choreography alone.
CREATE OR REPLACE FUNCTION payment.about(p payment.payment) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT jsonb_build_object('mode', p.mode) || payment.flow(p) || CASE WHEN p.mode = 'choreography' THEN jsonb_strip_nulls(
		jsonb_build_object('reservation_ids', p.reservation_ids, 'token_id', p.token_id, 'concert_id', p.concert_id::text)) ELSE '{}' END
$$;

-- Writes it as PENDING; false: one of its reservations is being paid already (then undo, or refuse).
CREATE OR REPLACE FUNCTION payment.create(p payment.payment) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	INSERT INTO payment.payment (payment_id, user_id, mode, amount, concert_id, token_id, order_id, reservation_ids, seats, traced)
	VALUES (p.payment_id, p.user_id, p.mode, p.amount, p.concert_id, p.token_id, p.order_id, coalesce(p.reservation_ids, '{}'),
		coalesce(p.seats, '[]'), coalesce(p.traced, false));
	INSERT INTO payment.payment_reservation (reservation_id, payment_id)
	SELECT r, p.payment_id FROM unnest(p.reservation_ids) AS r ORDER BY r
	ON CONFLICT (reservation_id) WHERE live DO NOTHING;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n = coalesce(cardinality(p.reservation_ids), 0);
END
$$;

CREATE OR REPLACE FUNCTION payment.lock(pid uuid) RETURNS payment.payment LANGUAGE sql AS $$
	SELECT p.* FROM payment.payment AS p WHERE p.payment_id = pid FOR UPDATE
$$;

CREATE OR REPLACE FUNCTION payment.let_go(pid uuid) RETURNS void LANGUAGE sql AS $$
	UPDATE payment.payment_reservation SET live = false WHERE payment_id = pid AND live
$$;

-- PENDING -> COMPLETED.
CREATE OR REPLACE FUNCTION payment.complete(p payment.payment) RETURNS payment.payment LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	UPDATE payment.payment AS x SET state = 'COMPLETED', completed_at = clock_timestamp()
	WHERE x.payment_id = p.payment_id RETURNING x.* INTO p;
	PERFORM payment.tell(p, 'PaymentCompleted', jsonb_build_object('completed_at', service.rfc3339(p.completed_at)));
	RETURN p;
END
$$;

-- PENDING -> FAILED; what it took returns, what was asked of the gateway is taken back.
CREATE OR REPLACE FUNCTION payment.fail(p payment.payment, why text) RETURNS payment.payment LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	PERFORM payment.take_back(p.payment_id);
	PERFORM payment.restore(p.payment_id, payment.about(p));
	UPDATE payment.payment AS x SET state = 'FAILED', reason = left(why, 500) WHERE x.payment_id = p.payment_id RETURNING x.* INTO p;
	PERFORM payment.let_go(p.payment_id);
	PERFORM payment.tell(p, 'PaymentFailed', jsonb_build_object('reason', p.reason));
	RETURN p;
END
$$;

-- PENDING: takes the points (unless deducted: that is another's step) and asks the gateway, where there is one. outcome
-- done: it is COMPLETED; refused (why): it is FAILED; later: the gateway's answer will tell, and answer the command.
CREATE OR REPLACE FUNCTION payment.execute(p payment.payment, deducted boolean, command jsonb, OUT outcome text, OUT why text)
LANGUAGE plpgsql AS $$
DECLARE
	s payment.setting;
BEGIN
	SELECT x.* INTO STRICT s FROM payment.setting AS x;
	UPDATE payment.gateway_request AS r SET command = execute.command
	WHERE r.payment_id = p.payment_id AND r.kind = 'approve' AND r.state = 'PENDING';
	IF FOUND THEN
		outcome := 'later'; -- under way: the newer command gets the answer
		RETURN;
	END IF;
	IF EXISTS (SELECT FROM payment.user_copy AS u WHERE u.user_id = p.user_id AND u.state <> 'ACTIVE') THEN
		why := 'the user is not ACTIVE';
	ELSIF NOT deducted AND NOT (payment.deduct(p.payment_id, p.user_id, p.amount, payment.about(p))).went THEN
		why := 'not enough points';
	END IF;
	IF why IS NOT NULL THEN
		outcome := 'refused';
		PERFORM payment.fail(p, why);
	ELSIF s.gateway AND p.amount > 0 THEN
		outcome := 'later';
		INSERT INTO payment.gateway_request (payment_id, kind, give_up_at, command)
		VALUES (p.payment_id, 'approve', clock_timestamp() + s.give_up, command);
	ELSE
		outcome := 'done';
		PERFORM payment.complete(p);
	END IF;
END
$$;

-- Takes a payment back, whatever has become of it; the second time there is nothing left to do. refund = false: its points
-- are another step's. more: what the event tells the order service.
CREATE OR REPLACE FUNCTION payment.cancel(pid uuid, refund boolean, why text, more jsonb DEFAULT '{}') RETURNS payment.payment
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	p payment.payment := payment.lock(pid);
BEGIN
	IF p.state = 'PENDING' THEN
		RETURN payment.fail(p, why);
	ELSIF p.state = 'COMPLETED' THEN
		PERFORM payment.take_back(pid);
		IF refund THEN
			PERFORM payment.restore(pid, payment.about(p));
		END IF;
		UPDATE payment.payment AS x SET state = 'CANCELLED', reason = left(why, 500), refunded_at = clock_timestamp()
		WHERE x.payment_id = pid RETURNING x.* INTO p;
		PERFORM payment.let_go(pid);
		PERFORM payment.tell(p, 'PaymentCancelled', jsonb_build_object('reason', p.reason,
			'refunded_at', service.rfc3339(p.refunded_at), 'was_paid', EXISTS (SELECT FROM payment.balance_ledger AS l
				WHERE l.cause = pid AND l.what = 'DEDUCT')) || more);
	END IF;
	RETURN p;
END
$$;
