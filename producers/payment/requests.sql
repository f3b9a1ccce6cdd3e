-- What HTTP asks: each use case one function.

CREATE OR REPLACE FUNCTION payment.check_yours(caller uuid, who uuid, what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF caller <> who THEN
		PERFORM service.refuse(403, 'not-yours', format('this is another user''s %s', what));
	END IF;
END
$$;

-- The token proves that there is such a user; what is known of him here may only bar him.
CREATE OR REPLACE FUNCTION payment.check_active(who uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM payment.user_copy AS u WHERE u.user_id = who AND u.state <> 'ACTIVE';
	IF FOUND THEN
		PERFORM service.refuse(403, 'locked', 'this account is locked');
	END IF;
END
$$;

-- ---------------------------------------------------------------- balances

-- POST /balances/{user}/charge
CREATE OR REPLACE FUNCTION payment.charge(caller uuid, who uuid, amount bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	m record;
BEGIN
	PERFORM payment.check_yours(caller, who, 'balance');
	PERFORM payment.check_active(who);
	m := payment.move(who, amount, 'CHARGE', outbox.uuid7());
	IF NOT m.went THEN
		PERFORM service.refuse(409, 'balance-too-large', 'a balance is 1000000000000000 at most');
	END IF;
	PERFORM payment.tell_points('PointsCharged', NULL, who, amount, m.has);
	RETURN jsonb_build_object('balance', m.has);
END
$$;

-- GET /balances/{user}
CREATE OR REPLACE FUNCTION payment.balance_of(caller uuid, who uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	PERFORM payment.check_yours(caller, who, 'balance');
	RETURN jsonb_build_object('user_id', who, 'balance',
		coalesce((SELECT b.balance FROM payment.balance AS b WHERE b.user_id = who), 0));
END
$$;

-- GET /balances/{user}/history: newest first; after: the entry that the page before ended with.
CREATE OR REPLACE FUNCTION payment.history(caller uuid, who uuid, after bigint, most integer) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	PERFORM payment.check_yours(caller, who, 'balance');
	RETURN jsonb_build_object('entries', coalesce((
		SELECT jsonb_agg(jsonb_build_object('entry', l.version, 'what', l.what, 'amount', l.amount, 'balance', l.balance,
			'payment_id', CASE WHEN l.what <> 'CHARGE' THEN l.cause END, 'at', service.rfc3339(l.at)) ORDER BY l.version DESC)
		FROM (SELECT x.* FROM payment.balance_ledger AS x WHERE x.user_id = who AND x.version < coalesce(after, 9223372036854775807)
			ORDER BY x.version DESC LIMIT coalesce(most, 50)) AS l), '[]'));
END
$$;

-- ---------------------------------------------------------------- payments

CREATE OR REPLACE FUNCTION payment.view(p payment.payment) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('payment_id', p.payment_id, 'saga_id', p.payment_id, 'state', p.state, 'mode', p.mode,
		'amount', p.amount, 'reservation_ids', p.reservation_ids, 'concert_id', p.concert_id::text, 'order_id', p.order_id,
		'reason', p.reason, 'cancel_saga_id', p.cancel_saga, 'created_at', service.rfc3339(p.created_at),
		'completed_at', service.rfc3339(p.completed_at), 'refunded_at', service.rfc3339(p.refunded_at))
$$;

-- Whether these can be paid, as far as is known here; the owner is asked again by the flow. The rows as the payment needs them.
CREATE OR REPLACE FUNCTION payment.payable(caller uuid, ids uuid[], concert bigint, OUT amount bigint, OUT seats jsonb)
LANGUAGE plpgsql STABLE AS $$
DECLARE
	c record;
BEGIN
	SELECT count(*) AS n, count(DISTINCT r.user_id) AS users, count(DISTINCT r.concert_id) AS concerts, min(r.concert_id) AS concert,
		bool_or(r.user_id <> caller) AS foreign,
		bool_or(r.status IN ('PAID', 'CONFIRMED')) AS paid,
		bool_or(r.status IN ('EXPIRED', 'CANCELLED', 'REJECTED')) AS over,
		bool_or(r.status = 'HELD' AND r.expires_at <= clock_timestamp()) AS late,
		count(*) FILTER (WHERE r.status = 'HELD') AS held, sum(r.price)::bigint AS price,
		jsonb_agg(jsonb_build_object('seat_id', r.seat_id::text, 'claim_no', r.claim_no, 'reservation_id', r.reservation_id,
			'schedule_id', r.schedule_id::text, 'price', r.price) ORDER BY r.seat_id) AS seats
	INTO c FROM payment.reservation_copy AS r WHERE r.reservation_id = ANY (ids);
	IF c.users > 1 OR c.concerts > 1 THEN
		PERFORM service.refuse(422, 'mixed-reservations', 'a payment is for reservations of one user and one concert');
	ELSIF c.foreign THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s reservation');
	ELSIF c.concert <> concert THEN
		PERFORM service.refuse(403, 'other-concert', 'the token is for another concert');
	ELSIF c.paid THEN
		PERFORM service.refuse(409, 'already-paid', 'a reservation is paid already');
	ELSIF c.over THEN
		PERFORM service.refuse(409, 'hold-over', 'a reservation is not held any more');
	ELSIF c.late THEN
		PERFORM service.refuse(409, 'hold-expired', 'the time of a reservation is over');
	ELSIF c.held < cardinality(ids) THEN
		PERFORM service.await(409, 'not-held', 'there is a reservation that is not held');
	END IF;
	amount := c.price;
	seats := c.seats;
END
$$;

-- POST /payments. A payment's saga (an engine's, or what the engine watches) has the payment's id.
CREATE OR REPLACE FUNCTION payment.pay(caller uuid, ids uuid[], way text, token uuid, concert bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	p payment.payment;
	costs record;
	turn text;
	state text := 'PENDING';
	data jsonb;
BEGIN
	PERFORM payment.check_active(caller);
	costs := payment.payable(caller, ids, concert);
	SELECT t.state INTO turn FROM payment.token_copy AS t WHERE t.token_id = token;
	IF turn IN ('COMPLETED', 'EXPIRED') THEN
		PERFORM service.await(409, 'turn-over', 'the turn that the token is for is over');
	ELSIF turn IS DISTINCT FROM 'ACTIVE' THEN -- the queue would refuse to end it, when the points are taken
		PERFORM service.await(409, 'not-your-turn', 'it is not your turn yet');
	END IF;
	p.payment_id := outbox.uuid7();
	p.user_id := caller;
	p.mode := coalesce(way, 'saga');
	p.state := 'PENDING';
	p.amount := costs.amount;
	p.concert_id := concert;
	p.token_id := token;
	p.reservation_ids := ids;
	p.seats := costs.seats;
	IF p.mode = 'hybrid' THEN -- it takes the points here: the first lock, as for messages
		PERFORM payment.lock_balance(caller);
	END IF;
	IF NOT payment.create(p) THEN
		PERFORM service.refuse(409, 'being-paid', 'a reservation is being paid by another payment');
	END IF;
	PERFORM payment.tell(p, 'PaymentInitiated');
	data := jsonb_build_object('payment_id', p.payment_id, 'user_id', caller, 'reservation_ids', ids, 'token_id', token,
		'concert_id', concert::text, 'seats', p.seats, 'amount', p.amount);
	IF p.mode = 'saga' THEN
		PERFORM saga.start('pay', data, p.payment_id);
	ELSIF p.mode = 'hybrid' THEN
		PERFORM saga.barrier(p.payment_id, 'PAYMENT', 'do', p.payment_id);
		IF (payment.execute(p, false, NULL)).outcome = 'refused' THEN
			state := 'FAILED'; -- and told so: no exception undoes that. The service answers 409
		ELSE
			state := 'PROCESSING';
		END IF;
	END IF;
	PERFORM saga.expect(p.payment_id, CASE p.mode WHEN 'saga' THEN 'pay' ELSE 'pay-' || p.mode END, data);
	RETURN jsonb_build_object('payment_id', p.payment_id, 'saga_id', p.payment_id,
		'state', state);
END
$$;

-- GET /payments/{id}
CREATE OR REPLACE FUNCTION payment.show(caller uuid, pid uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	p payment.payment;
BEGIN
	SELECT x.* INTO p FROM payment.payment AS x WHERE x.payment_id = pid;
	PERFORM payment.check_yours(caller, p.user_id, 'payment');
	RETURN CASE WHEN p.payment_id IS NOT NULL THEN payment.view(p) END;
END
$$;

-- GET /payments?user= or ?reservation=: the caller's, newest first; after: the payment that the page before ended with.
CREATE OR REPLACE FUNCTION payment.list(caller uuid, who uuid, reservation uuid, after uuid, most integer) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	found jsonb;
BEGIN
	PERFORM payment.check_yours(caller, who, 'list of payments');
	IF reservation IS NULL THEN
		SELECT jsonb_agg(payment.view(p) ORDER BY p.payment_id DESC) INTO found FROM (
			SELECT x.* FROM payment.payment AS x WHERE x.user_id = caller AND (after IS NULL OR x.payment_id < after)
			ORDER BY x.payment_id DESC LIMIT coalesce(most, 50)) AS p;
	ELSE
		SELECT jsonb_agg(payment.view(p) ORDER BY p.payment_id DESC) INTO found FROM (
			SELECT x.* FROM payment.payment_reservation AS r JOIN payment.payment AS x ON x.payment_id = r.payment_id
			WHERE r.reservation_id = reservation AND x.user_id = caller AND (after IS NULL OR x.payment_id < after)
			ORDER BY r.payment_id DESC LIMIT coalesce(most, 50)) AS p;
	END IF;
	RETURN jsonb_build_object('payments', coalesce(found, '[]'));
END
$$;

-- POST /payments/{id}/cancel: gives everything back by a saga of the same operations as an undo. Asked again, the same saga.
CREATE OR REPLACE FUNCTION payment.ask_cancel(caller uuid, pid uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	p payment.payment := payment.lock(pid);
	data jsonb;
BEGIN
	IF p.payment_id IS NULL THEN
		RETURN NULL;
	END IF;
	PERFORM payment.check_yours(caller, p.user_id, 'payment');
	IF p.state IN ('FAILED', 'CANCELLED') THEN
		PERFORM service.refuse(409, 'over', format('the payment is %s', p.state));
	ELSIF p.state = 'PENDING' THEN
		PERFORM service.await(409, 'in-progress', 'the payment is not done yet');
	ELSIF p.cancel_saga IS NULL THEN
		-- While the flow is under way, what is to be taken back may not be there yet.
		IF EXISTS (SELECT FROM unnest(p.reservation_ids) AS i LEFT JOIN payment.reservation_copy AS r ON r.reservation_id = i
				WHERE r.status IS DISTINCT FROM 'CONFIRMED') THEN
			PERFORM service.await(409, 'in-progress', 'the reservations are not confirmed yet');
		END IF;
		p.cancel_saga := outbox.uuid7();
		UPDATE payment.payment AS x SET cancel_saga = p.cancel_saga WHERE x.payment_id = pid;
		data := jsonb_strip_nulls(jsonb_build_object('payment_id', pid, 'user_id', p.user_id, 'reservation_ids', p.reservation_ids,
			'concert_id', p.concert_id::text, 'seats', p.seats, 'token_id', p.token_id, 'order_id', p.order_id, 'amount', p.amount));
		PERFORM saga.start(CASE WHEN p.order_id IS NULL THEN 'cancel' ELSE 'cancel-order' END, data, p.cancel_saga);
		PERFORM saga.expect(p.cancel_saga, CASE WHEN p.order_id IS NULL THEN 'cancel' ELSE 'cancel-order' END, data);
	END IF;
	RETURN jsonb_build_object('payment_id', pid, 'saga_id', p.cancel_saga, 'state', p.state);
END
$$;

-- GET /payments/{id}/receipt
CREATE OR REPLACE FUNCTION payment.receipt(caller uuid, pid uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	c payment.cash_receipt;
BEGIN
	SELECT x.* INTO c FROM payment.cash_receipt AS x WHERE x.payment_id = pid;
	PERFORM payment.check_yours(caller, c.user_id, 'receipt');
	RETURN CASE WHEN c.payment_id IS NOT NULL THEN jsonb_build_object('payment_id', pid, 'state', c.state, 'receipt_no', c.receipt_no,
		'amount', c.amount, 'reason', c.reason, 'issued_at', service.rfc3339(c.issued_at), 'voided_at', service.rfc3339(c.voided_at)) END;
END
$$;

-- GET /sagas/{id}
CREATE OR REPLACE FUNCTION payment.saga(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	c saga.copy;
BEGIN
	SELECT x.* INTO c FROM saga.copy AS x WHERE x.saga_id = wanted;
	IF c.data ->> 'user_id' <> caller::text THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s saga');
	END IF;
	RETURN CASE WHEN c.saga_id IS NOT NULL AND c.data ? 'user_id' THEN jsonb_build_object('saga_id', c.saga_id, 'name', c.name,
		'state', c.state, 'step', c.step, 'why', c.why, 'steps', c.steps, 'at', service.rfc3339(c.at)) END;
END
$$;
