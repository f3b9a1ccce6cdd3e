-- Work outside: rows that the service's workers do, one HTTP request each, never inside a transaction. A worker claims a row
-- for the time of a lease, asks, and tells the outcome in a transaction of its own; dies it between, the row is due again
-- when the lease ends, and the request comes again under the same Idempotency-Key.

DROP FUNCTION IF EXISTS payment.claim_work(boolean, boolean, interval);

-- One row that is due there (whom: gateway or tax), as the worker's until the lease ends; no row: there is nothing. A receipt is voided after the end of
-- its issue, an approval cancelled after the end of the try that may be under way.
CREATE OR REPLACE FUNCTION payment.claim_work(whom text, lease interval)
RETURNS TABLE (id uuid, kind text, attempts integer, payment_id uuid, user_id uuid, amount bigint, receipt_no text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	WITH due AS (
		SELECT r.id FROM payment.gateway_request AS r
		WHERE r.state = 'PENDING' AND r.due_at <= clock_timestamp()
			AND CASE WHEN r.kind IN ('approve', 'cancel') THEN 'gateway' ELSE 'tax' END = whom
			AND (r.kind <> 'void' OR NOT EXISTS (SELECT FROM payment.gateway_request AS i
				WHERE i.payment_id = r.payment_id AND i.kind = 'issue' AND i.state = 'PENDING'))
		ORDER BY r.due_at LIMIT 1 FOR UPDATE SKIP LOCKED
	), mine AS (
		UPDATE payment.gateway_request AS r SET attempts = r.attempts + 1, due_at = clock_timestamp() + lease
		FROM due WHERE r.id = due.id RETURNING r.*
	)
	SELECT m.id, m.kind, m.attempts, m.payment_id, p.user_id, p.amount, c.receipt_no
	FROM mine AS m JOIN payment.payment AS p ON p.payment_id = m.payment_id
		LEFT JOIN payment.cash_receipt AS c ON c.payment_id = m.payment_id;
END
$$;

-- Of a payment that is not to be: what was asked of the gateway, and may be answered yet, is cancelled there; not before the try that
-- may be under way has ended. To be cancelled until the gateway says so.
CREATE OR REPLACE FUNCTION payment.take_back(pid uuid) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	a payment.gateway_request;
BEGIN
	SELECT r.* INTO a FROM payment.gateway_request AS r WHERE r.payment_id = pid AND r.kind = 'approve' FOR UPDATE;
	IF NOT FOUND OR a.state NOT IN ('PENDING', 'DONE') THEN
		RETURN;
	END IF;
	IF a.state = 'PENDING' THEN
		UPDATE payment.gateway_request AS r SET state = 'DROPPED', done_at = clock_timestamp() WHERE r.id = a.id;
		IF a.attempts = 0 THEN
			RETURN; -- never sent
		END IF;
	END IF;
	INSERT INTO payment.gateway_request (payment_id, kind, due_at, give_up_at)
	SELECT pid, 'cancel', greatest(clock_timestamp(), CASE a.state WHEN 'PENDING' THEN a.due_at END), clock_timestamp() + s.late
	FROM payment.setting AS s ON CONFLICT DO NOTHING;
END
$$;

-- Not yet: again after a pause, twice as long each time, with jitter. Only by who holds the lease.
CREATE OR REPLACE FUNCTION payment.put_off(r payment.gateway_request, tried integer, pause interval) RETURNS void LANGUAGE sql AS $$
	UPDATE payment.gateway_request AS x SET due_at = clock_timestamp() + pause, answer = r.answer
	WHERE x.id = r.id AND x.attempts = tried AND x.state = 'PENDING'
$$;

CREATE OR REPLACE FUNCTION payment.end_work(r payment.gateway_request, how text) RETURNS void LANGUAGE sql AS $$
	UPDATE payment.gateway_request AS x SET state = how, answer = r.answer, done_at = clock_timestamp() WHERE x.id = r.id
$$;

-- The saga's command has waited for the gateway.
CREATE OR REPLACE FUNCTION payment.answer_command(command jsonb, p payment.payment) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	id uuid := (command ->> 'saga_id')::uuid;
	cid uuid := (command ->> 'command_id')::uuid;
BEGIN
	IF command IS NULL THEN
		RETURN;
	ELSIF p.state = 'COMPLETED' THEN
		PERFORM saga.done(id, command ->> 'step', 'do', cid, payment.reply(p), command ->> 'reply_to');
	ELSE
		PERFORM saga.refuse(id, command ->> 'step', 'do', cid, p.reason, '{}', command ->> 'reply_to');
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION payment.settle_approve(r payment.gateway_request, tried integer, outcome text, said text, pause interval)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	p payment.payment := payment.lock(r.payment_id);
BEGIN
	SELECT x.* INTO STRICT r FROM payment.gateway_request AS x WHERE x.id = r.id FOR UPDATE;
	r.answer := said;
	IF r.state = 'DROPPED' AND outcome <> 'refused' THEN
		-- We had given it up, and here it is: what may have been cancelled too early is cancelled again.
		UPDATE payment.gateway_request AS x SET state = 'PENDING', due_at = clock_timestamp() + CASE outcome WHEN 'ok' THEN interval '0' ELSE pause END,
			give_up_at = clock_timestamp() + s.late
		FROM payment.setting AS s WHERE x.payment_id = r.payment_id AND x.kind = 'cancel';
	ELSIF r.state <> 'PENDING' THEN
		RETURN; -- answered twice
	ELSIF outcome = 'ok' THEN
		PERFORM payment.end_work(r, 'DONE');
		PERFORM payment.answer_command(r.command, payment.complete(p));
	ELSIF outcome = 'refused' THEN
		PERFORM payment.end_work(r, 'REFUSED');
		PERFORM payment.answer_command(r.command, payment.fail(p, 'the gateway refuses: ' || said));
	ELSIF clock_timestamp() + pause > r.give_up_at AND r.attempts = tried THEN
		-- fail() drops the request and has it cancelled: an approval that comes after this is taken back.
		UPDATE payment.gateway_request AS x SET answer = said, due_at = clock_timestamp() WHERE x.id = r.id;
		PERFORM payment.answer_command(r.command, payment.fail(p, 'the gateway does not answer: ' || said));
	ELSE
		PERFORM payment.put_off(r, tried, pause);
	END IF;
END
$$;

-- A charge that stands although it is to be cancelled: told once, for somebody to look into it.
CREATE OR REPLACE FUNCTION payment.tell_charge_stands(r payment.gateway_request) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	UPDATE payment.gateway_request AS x SET give_up_at = NULL WHERE x.id = r.id;
	PERFORM outbox.publish('payment', p.payment_id::text, 'GatewayCancelFailed', jsonb_build_object('payment_id', p.payment_id,
		'user_id', p.user_id, 'amount', p.amount, 'reason', coalesce(r.answer, ''), 'at', service.rfc3339(clock_timestamp())))
	FROM payment.payment AS p WHERE p.payment_id = r.payment_id;
END
$$;

-- For an operator, once the gateway is in order again: it is asked anew to cancel this payment's charge. Whether there was anything to ask.
CREATE OR REPLACE FUNCTION payment.cancel_again(pid uuid) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	UPDATE payment.gateway_request AS x SET state = 'PENDING', due_at = clock_timestamp(), give_up_at = clock_timestamp() + s.late, done_at = NULL
	FROM payment.setting AS s WHERE x.payment_id = pid AND x.kind = 'cancel' AND x.state IN ('PENDING', 'REFUSED');
	RETURN FOUND;
END
$$;

-- A gateway that knows of nothing to cancel is asked again for as long as an approval may still arrive there. One that refuses is
-- not asked any more after that time, one that does not answer is; of both an event tells.
CREATE OR REPLACE FUNCTION payment.settle_cancel(r payment.gateway_request, tried integer, outcome text, said text, pause interval)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	late boolean;
BEGIN
	SELECT x.* INTO STRICT r FROM payment.gateway_request AS x WHERE x.id = r.id FOR UPDATE;
	r.answer := said;
	late := clock_timestamp() > r.give_up_at;
	IF r.state <> 'PENDING' OR r.attempts <> tried THEN
		RETURN; -- not ours any more
	ELSIF outcome = 'ok' OR outcome = 'none' AND coalesce(late, true) THEN
		PERFORM payment.end_work(r, 'DONE');
	ELSIF outcome = 'refused' AND coalesce(late, true) THEN
		PERFORM payment.end_work(r, 'REFUSED');
	ELSE
		PERFORM payment.put_off(r, tried, pause);
	END IF;
	IF late AND outcome IN ('refused', 'again') THEN
		PERFORM payment.tell_charge_stands(r);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION payment.tell_receipt(c payment.cash_receipt, kind text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('payment', c.payment_id::text, kind, jsonb_build_object('payment_id', c.payment_id, 'user_id', c.user_id,
		'receipt_no', c.receipt_no, 'amount', c.amount, 'at', service.rfc3339(clock_timestamp())));
END
$$;

CREATE OR REPLACE FUNCTION payment.receipt_issued(pid uuid, no text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c payment.cash_receipt;
BEGIN
	UPDATE payment.cash_receipt AS x SET state = 'ISSUED', receipt_no = no, issued_at = clock_timestamp()
	WHERE x.payment_id = pid AND x.state = 'REQUESTED' RETURNING x.* INTO c;
	IF FOUND THEN
		PERFORM payment.tell_receipt(c, 'ReceiptIssued');
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION payment.receipt_voided(pid uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c payment.cash_receipt;
BEGIN
	UPDATE payment.cash_receipt AS x SET state = 'VOIDED', voided_at = clock_timestamp()
	WHERE x.payment_id = pid AND x.state = 'ISSUED' RETURNING x.* INTO c;
	IF FOUND THEN
		PERFORM payment.tell_receipt(c, 'ReceiptVoided');
	END IF;
END
$$;

-- Of issue: said is the receipt's number.
CREATE OR REPLACE FUNCTION payment.settle_receipt(r payment.gateway_request, tried integer, outcome text, said text, pause interval)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SELECT x.* INTO STRICT r FROM payment.gateway_request AS x WHERE x.id = r.id FOR UPDATE;
	r.answer := said;
	IF r.state <> 'PENDING' THEN
		RETURN;
	ELSIF outcome = 'again' THEN
		PERFORM payment.put_off(r, tried, pause);
	ELSIF r.kind = 'issue' AND outcome = 'ok' THEN
		PERFORM payment.end_work(r, 'DONE');
		PERFORM payment.receipt_issued(r.payment_id, said);
	ELSIF r.kind = 'issue' THEN
		PERFORM payment.end_work(r, 'REFUSED');
		UPDATE payment.cash_receipt AS c SET state = 'REFUSED', reason = left(said, 500)
		WHERE c.payment_id = r.payment_id AND c.state = 'REQUESTED';
	ELSIF outcome = 'ok' OR outcome = 'none' THEN
		PERFORM payment.end_work(r, 'DONE');
		PERFORM payment.receipt_voided(r.payment_id);
	ELSE
		PERFORM payment.put_off(r, tried, pause);
	END IF;
END
$$;

-- What the try of a claimed row came to: ok, refused, none (nothing known of it there), again (no answer, or a bad one). said:
-- the approval, the receipt's number, the reason.
CREATE OR REPLACE FUNCTION payment.settle_work(work uuid, tried integer, outcome text, said text, pause interval) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	r payment.gateway_request;
BEGIN
	SELECT x.* INTO STRICT r FROM payment.gateway_request AS x WHERE x.id = work;
	said := left(coalesce(said, ''), 500);
	PERFORM payment.lock_balances(ARRAY(SELECT p.user_id FROM payment.payment AS p WHERE p.payment_id = r.payment_id)); -- as for commands
	IF r.command IS NOT NULL THEN -- the barrier's lock comes first, as for commands
		PERFORM FROM saga.barrier AS b WHERE b.saga_id = (r.command ->> 'saga_id')::uuid AND b.step = r.command ->> 'step' FOR UPDATE;
	END IF;
	CASE r.kind
	WHEN 'approve' THEN
		PERFORM payment.settle_approve(r, tried, CASE outcome WHEN 'none' THEN 'again' ELSE outcome END, said, pause);
	WHEN 'cancel' THEN
		PERFORM payment.settle_cancel(r, tried, outcome, said, pause);
	ELSE
		PERFORM payment.settle_receipt(r, tried, outcome, said, pause);
	END CASE;
END
$$;

-- Forgets what was asked and is over, and tokens of which nothing was heard, before keep; a bounded number at a time. With a cancelling
-- goes the approval that it cancelled.
CREATE OR REPLACE FUNCTION payment.forget(keep interval) RETURNS void LANGUAGE sql AS $$
	WITH gone AS (
		DELETE FROM payment.gateway_request AS r WHERE r.id IN (
			SELECT x.id FROM payment.gateway_request AS x
			WHERE x.state <> 'PENDING' AND (x.kind, x.state) <> ('approve', 'DONE') AND (x.kind, x.state) <> ('cancel', 'REFUSED')
				AND x.done_at < clock_timestamp() - keep
			ORDER BY x.done_at LIMIT 10000 FOR UPDATE SKIP LOCKED)
		RETURNING r.payment_id, r.kind
	)
	DELETE FROM payment.gateway_request AS r USING gone AS g
	WHERE g.kind = 'cancel' AND r.payment_id = g.payment_id AND r.kind = 'approve' AND r.state = 'DONE';
	DELETE FROM payment.token_copy AS t WHERE t.token_id IN (SELECT x.token_id FROM payment.token_copy AS x
		WHERE x.at < clock_timestamp() - keep ORDER BY x.at LIMIT 10000 FOR UPDATE SKIP LOCKED);
$$;

-- For metrics: what waits, and since when.
CREATE OR REPLACE FUNCTION payment.work_waiting() RETURNS TABLE (kind text, waiting bigint, oldest double precision) LANGUAGE sql STABLE AS $$
	SELECT k, count(r.id), coalesce(extract(epoch FROM clock_timestamp() - min(r.created_at)), 0)::float8
	FROM unnest(ARRAY['approve', 'cancel', 'issue', 'void']) AS k
		LEFT JOIN payment.gateway_request AS r ON r.state = 'PENDING' AND r.kind = k
	GROUP BY k
$$;

-- At the start, and when they have changed.
CREATE OR REPLACE FUNCTION payment.set_up(gateway boolean, tax boolean, give_up interval, late interval) RETURNS void LANGUAGE sql AS $$
	UPDATE payment.setting AS s SET gateway = set_up.gateway, tax = set_up.tax, give_up = set_up.give_up, late = set_up.late
	WHERE (s.gateway, s.tax, s.give_up, s.late) IS DISTINCT FROM (set_up.gateway, set_up.tax, set_up.give_up, set_up.late)
$$;
