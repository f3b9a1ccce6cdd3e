-- Money: the one function that changes a balance, and what refuses every other way.

CREATE OR REPLACE FUNCTION payment.keep_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = 'payment: the ledger is only appended to';
END
$$;
CREATE OR REPLACE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON payment.balance_ledger
	FOR EACH STATEMENT EXECUTE FUNCTION payment.keep_ledger();

-- Each row carries on from the one before it, so a user's last balance is the sum of his amounts.
CREATE OR REPLACE FUNCTION payment.check_ledger_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.balance <> NEW.amount + coalesce((SELECT l.balance FROM payment.balance_ledger AS l
			WHERE l.user_id = NEW.user_id AND l.version = NEW.version - 1), CASE NEW.version WHEN 1 THEN 0 END) IS NOT FALSE THEN
		RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = 'payment: the ledger''s row does not carry on';
	END IF;
	RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER ledger_carries_on AFTER INSERT ON payment.balance_ledger
	FOR EACH ROW EXECUTE FUNCTION payment.check_ledger_row();

CREATE OR REPLACE FUNCTION payment.check_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.version = 0 AND NEW.balance = 0 OR EXISTS (SELECT FROM payment.balance_ledger AS l
			WHERE l.user_id = NEW.user_id AND l.version = NEW.version AND l.balance = NEW.balance) THEN
		RETURN NULL;
	END IF;
	RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = 'payment: a balance is not what the ledger says';
END
$$;
CREATE OR REPLACE TRIGGER balance_is_ledger AFTER INSERT OR UPDATE ON payment.balance
	FOR EACH ROW EXECUTE FUNCTION payment.check_balance();

-- Locks the user's balance, and makes it where there is none.
CREATE OR REPLACE FUNCTION payment.lock_balance(who uuid) RETURNS payment.balance LANGUAGE plpgsql AS $$
DECLARE
	b payment.balance;
BEGIN
	SELECT x.* INTO b FROM payment.balance AS x WHERE x.user_id = who FOR UPDATE;
	IF NOT FOUND THEN
		INSERT INTO payment.balance (user_id) VALUES (who) ON CONFLICT DO NOTHING;
		SELECT x.* INTO STRICT b FROM payment.balance AS x WHERE x.user_id = who FOR UPDATE;
	END IF;
	RETURN b;
END
$$;

-- Of all these users, in order; NULLs are nobody.
CREATE OR REPLACE FUNCTION payment.lock_balances(who uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO payment.balance (user_id) SELECT DISTINCT u FROM unnest(who) AS u
	WHERE u IS NOT NULL AND NOT EXISTS (SELECT FROM payment.balance AS b WHERE b.user_id = u) ORDER BY u ON CONFLICT DO NOTHING;
	PERFORM FROM payment.balance AS b WHERE b.user_id = ANY (who) ORDER BY b.user_id FOR UPDATE;
END
$$;

-- The only writer of balances. The row's lock decides; went = false: there is not as much, or there would be too much, and
-- nothing has changed. What returns has room above the most that may be charged.
CREATE OR REPLACE FUNCTION payment.move(who uuid, change bigint, kind text, why uuid, OUT went boolean, OUT has bigint)
LANGUAGE plpgsql AS $$
DECLARE
	b payment.balance := payment.lock_balance(who);
BEGIN
	went := b.balance + change >= 0
		AND (change <= 0 OR b.balance + change <= CASE kind WHEN 'RESTORE' THEN 9000000000000000 ELSE 1000000000000000 END);
	has := b.balance + CASE WHEN went THEN change ELSE 0 END;
	IF went AND change <> 0 THEN
		INSERT INTO payment.balance_ledger (user_id, version, amount, balance, what, cause)
		VALUES (who, b.version + 1, change, has, kind, why);
		UPDATE payment.balance AS x SET balance = has, version = b.version + 1 WHERE x.user_id = who;
	END IF;
END
$$;

-- {payment_id?, user_id, amount, balance, ...}: what happened to a balance. The event's key is the payment's where there is one.
CREATE OR REPLACE FUNCTION payment.tell_points(kind text, pid uuid, who uuid, amount bigint, has bigint, more jsonb DEFAULT '{}')
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('payment', coalesce(pid, who)::text, kind, jsonb_strip_nulls(jsonb_build_object(
		'payment_id', pid, 'user_id', who, 'amount', amount, 'balance', has, 'at', service.rfc3339(clock_timestamp()))) || more,
		CASE WHEN more ? 'choreography_id' OR more ? 'hybrid_id' THEN jsonb_build_object('correlation-id', pid) ELSE '{}' END);
END
$$;

-- Takes a payment's points; false: there are not as many.
CREATE OR REPLACE FUNCTION payment.deduct(pid uuid, who uuid, amount bigint, more jsonb, OUT went boolean, OUT has bigint)
LANGUAGE plpgsql AS $$
BEGIN
	SELECT m.went, m.has INTO went, has FROM payment.move(who, -amount, 'DEDUCT', pid) AS m;
	PERFORM payment.tell_points(CASE WHEN went THEN 'PointsDeducted' ELSE 'PointsRefused' END, pid, who, amount, has,
		more || CASE WHEN went THEN jsonb '{}' ELSE '{"reason": "not enough points"}' END);
END
$$;

-- Gives back what this payment took, once: how much. By the same code that charging uses.
CREATE OR REPLACE FUNCTION payment.restore(pid uuid, more jsonb DEFAULT '{}') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	taken payment.balance_ledger;
	m record;
BEGIN
	SELECT l.* INTO taken FROM payment.balance_ledger AS l WHERE l.cause = pid AND l.what = 'DEDUCT';
	IF NOT FOUND THEN
		RETURN 0;
	END IF;
	PERFORM payment.lock_balance(taken.user_id); -- whoever restores it too waits here, and finds it done
	PERFORM FROM payment.balance_ledger AS l WHERE l.cause = pid AND l.what = 'RESTORE';
	IF FOUND THEN
		RETURN 0;
	END IF;
	m := payment.move(taken.user_id, -taken.amount, 'RESTORE', pid);
	IF NOT m.went THEN
		RAISE EXCEPTION USING ERRCODE = 'numeric_value_out_of_range', MESSAGE = 'payment: the balance would be too large';
	END IF;
	PERFORM payment.tell_points('PointsRestored', pid, taken.user_id, -taken.amount, m.has, more);
	RETURN -taken.amount;
END
$$;

-- For auditors: users whose balance is not the sum of their ledger; none, always.
CREATE OR REPLACE FUNCTION payment.unbalanced() RETURNS TABLE (user_id uuid, balance bigint, ledger numeric) LANGUAGE sql STABLE AS $$
	SELECT coalesce(b.user_id, l.user_id), b.balance, l.total
	FROM payment.balance AS b FULL JOIN (SELECT x.user_id, sum(x.amount) AS total FROM payment.balance_ledger AS x GROUP BY 1) AS l
		ON l.user_id = b.user_id
	WHERE coalesce(b.balance, -1) <> coalesce(l.total, 0)
$$;
