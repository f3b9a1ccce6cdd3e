-- Schema user: accounts, passwords (hashes only) and attempts to log in. Run whole when its text has changed: all
-- of it may be run again. Written by postrider-user and, for sagas, by its consumer. Lock order: user_account,
-- credential, login_attempt.
CREATE SCHEMA IF NOT EXISTS "user";

CREATE TABLE IF NOT EXISTS "user".user_account (
	user_id    uuid PRIMARY KEY DEFAULT outbox.uuid7(),
	email      text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
	name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
	state      text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'LOCKED')),
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS user_account_email ON "user".user_account (lower(email));

CREATE TABLE IF NOT EXISTS "user".credential (
	user_id       uuid PRIMARY KEY REFERENCES "user".user_account,
	password_hash text NOT NULL,
	changed_at    timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON "user".credential FROM PUBLIC;

-- By email, whether there is such a user or not: what is counted must not tell. A window begins with its first try.
CREATE TABLE IF NOT EXISTS "user".login_attempt (
	email       text PRIMARY KEY,
	attempts    integer NOT NULL,
	window_ends timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS login_attempt_ends ON "user".login_attempt (window_ends);

-- POST /users
CREATE OR REPLACE FUNCTION "user".create(new_email text, new_hash text, new_name text) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	created "user".user_account;
BEGIN
	INSERT INTO "user".user_account AS u (email, name) VALUES (new_email, new_name)
	ON CONFLICT (lower(email)) DO NOTHING RETURNING u.* INTO created;
	IF NOT FOUND THEN
		PERFORM service.refuse(409, 'email-taken', 'there is a user with this email');
	END IF;
	INSERT INTO "user".credential (user_id, password_hash) VALUES (created.user_id, new_hash);
	PERFORM outbox.publish('user', created.user_id::text, 'UserCreated', jsonb_build_object(
		'user_id', created.user_id, 'email', created.email, 'name', created.name, 'state', created.state,
		'created_at', service.rfc3339(created.created_at)));
	RETURN jsonb_build_object('user_id', created.user_id);
END
$$;

-- GET /users/{id}
CREATE OR REPLACE FUNCTION "user".show(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF caller <> wanted THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s account');
	END IF;
	RETURN (SELECT jsonb_build_object('user_id', u.user_id, 'email', u.email, 'name', u.name, 'state', u.state,
		'created_at', service.rfc3339(u.created_at)) FROM "user".user_account AS u WHERE u.user_id = wanted);
END
$$;

-- Before a password is looked at: counts the try, in a transaction of its own, so that many at once are counted too.
-- No row for an unknown email: the caller takes as long over it.
CREATE OR REPLACE FUNCTION "user".login_begin(given text, most integer, span interval)
RETURNS TABLE (user_id uuid, password_hash text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	a "user".login_attempt;
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);	-- a count that a crash loses harms nobody
	INSERT INTO "user".login_attempt AS l (email, attempts, window_ends)
	VALUES (lower(given), 1, clock_timestamp() + span)
	ON CONFLICT (email) DO UPDATE SET
		attempts = CASE WHEN l.window_ends <= clock_timestamp() THEN 1 ELSE l.attempts + 1 END,
		window_ends = CASE WHEN l.window_ends <= clock_timestamp() THEN clock_timestamp() + span ELSE l.window_ends END
	RETURNING l.* INTO a;
	IF a.attempts > most THEN
		PERFORM service.refuse(429, 'too-many-attempts', 'too many attempts to log in as this user',
			greatest(1, ceil(extract(epoch FROM a.window_ends - clock_timestamp())))::integer);
	END IF;
	RETURN QUERY SELECT c.user_id, c.password_hash FROM "user".user_account AS u
		JOIN "user".credential AS c ON c.user_id = u.user_id WHERE lower(u.email) = lower(given);
END
$$;

-- POST /login, once the password was right: the claims, for the service to sign.
CREATE OR REPLACE FUNCTION "user".login(who uuid, kid text, life interval) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	u "user".user_account;
	began bigint := floor(extract(epoch FROM now()));
	ends bigint := began + ceil(extract(epoch FROM life));
BEGIN
	SELECT * INTO u FROM "user".user_account AS a WHERE a.user_id = who;
	IF u.state <> 'ACTIVE' THEN
		PERFORM service.refuse(403, 'locked', 'this account is locked');
	END IF;
	DELETE FROM "user".login_attempt AS l WHERE l.email = lower(u.email);
	RETURN jsonb_build_object('kid', kid, 'expires_at', service.rfc3339(to_timestamp(ends)), 'claims', jsonb_build_object(
		'iss', 'postrider-user', 'aud', 'postrider', 'sub', who, 'iat', began, 'nbf', began, 'exp', ends,
		'jti', outbox.uuid7()));
END
$$;

-- Forgets windows that have ended, a bounded number at a time.
CREATE OR REPLACE FUNCTION "user".forget_attempts() RETURNS void LANGUAGE sql AS $$
	DELETE FROM "user".login_attempt WHERE email IN (
		SELECT l.email FROM "user".login_attempt AS l WHERE l.window_ends < now()
		ORDER BY l.window_ends LIMIT 5000 FOR UPDATE SKIP LOCKED)
$$;

-- For an operator: SELECT "user".set_state('...', 'LOCKED'). Tokens that were issued stay good until they expire.
CREATE OR REPLACE FUNCTION "user".set_state(who uuid, wanted text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	UPDATE "user".user_account SET state = wanted WHERE user_id = who AND state <> wanted;
	IF NOT FOUND THEN
		RETURN NULL;
	END IF;
	PERFORM outbox.publish('user', who::text, 'UserUpdated', jsonb_build_object('user_id', who, 'state', wanted));
	RETURN true;
END
$$;

-- Why this user may not do it; NULL: he is there and ACTIVE. His row is held until the end of the transaction.
CREATE OR REPLACE FUNCTION "user".objection(who text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	has text;
BEGIN
	IF who ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
		SELECT u.state INTO has FROM "user".user_account AS u WHERE u.user_id = who::uuid FOR SHARE;
	END IF;
	RETURN CASE WHEN has IS NULL THEN 'there is no such user' WHEN has <> 'ACTIVE' THEN format('the user is %s', has) END;
END
$$;

-- Step USER of sagas, a command: whether the user is there and ACTIVE. It changes nothing, so its undo has nothing to
-- put back; the barrier remembers it, for a do that comes late.
CREATE OR REPLACE FUNCTION "user".on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	who text := m.payload ->> 'user_id';
	why text;
BEGIN
	IF NOT saga.barrier(m) THEN
		RETURN;
	END IF;
	IF m.headers ->> 'saga-op' = 'undo' THEN
		PERFORM saga.done(m);
		RETURN;
	END IF;
	why := CASE WHEN m.type IS DISTINCT FROM 'CheckUser'
		THEN format('the user service knows no command %s', coalesce(left(m.type, 60), 'without a type'))
		ELSE "user".objection(who) END;
	IF why IS NOT NULL THEN
		PERFORM saga.refuse(m, why);
	ELSE
		PERFORM saga.done(m, jsonb_build_object('user_id', who, 'state', 'ACTIVE'));
	END IF;
END
$$;

-- The same step where nobody commands (etc/sagas/order-choreography.cfg): the order's payment has begun. The engine
-- traces the answer by the id, and may ask to undo it, so it goes through the barrier too. The answer's key is the payment:
-- several of one user may be asked for at a time.
CREATE OR REPLACE FUNCTION "user".on_order_payment(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payment uuid := (m.payload ->> 'order_choreography_id')::uuid;
	who text := m.payload ->> 'user_id';
	why text;
BEGIN
	IF NOT saga.barrier(payment, 'USER', 'do', m.id) THEN
		RETURN;
	END IF;
	why := "user".objection(who);
	PERFORM outbox.publish('user', payment::text, CASE WHEN why IS NULL THEN 'UserChecked' ELSE 'UserRefused' END,
		jsonb_strip_nulls(jsonb_build_object('user_id', m.payload -> 'user_id', 'order_id', m.payload -> 'order_id',
			'amount', m.payload -> 'amount', 'payment_id', payment, 'order_choreography_id', payment, 'reason', why)));
END
$$;

-- For a postrider-consumer on outbox.command.user and outbox.event.order.
CREATE OR REPLACE FUNCTION "user".on_message(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF m.type = 'OrderPaymentStarted' THEN
		IF m.payload ? 'order_choreography_id' THEN
			PERFORM "user".on_order_payment(m);
		END IF;
	ELSIF m.topic NOT LIKE 'outbox.event.%' THEN
		PERFORM "user".on_command(m);
	END IF;
END
$$;
