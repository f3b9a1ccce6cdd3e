-- Schema queue: who waits for which concert. Redis decides the order and the turn (the counter, the sorted set, the
-- script that admits); these rows decide what a token is, and are what Redis is built from again. Run whole when its
-- text has changed: all of it may be run again. Written by postrider-queue and by its consumer.
--
-- Every change of a token raises its version. What Redis and the processes that answer status checks are to know of a
-- change is a row of queue.todo, written with it; the keeper of some process passes it on and deletes it. Versions
-- decide there, too, so that passing on twice, or in another order, is harmless.
-- Lock order: queue_token by number, todo.
CREATE SCHEMA IF NOT EXISTS queue;

CREATE TABLE IF NOT EXISTS queue.queue_token (
	token_id     uuid PRIMARY KEY DEFAULT outbox.uuid7(),
	concert_id   bigint NOT NULL,
	number       bigint NOT NULL CHECK (number > 0),
	user_id      uuid NOT NULL,
	state        text NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'ACTIVE', 'COMPLETED', 'EXPIRED')),
	version      integer NOT NULL DEFAULT 1,
	active_at    timestamptz NOT NULL,	-- planned: nobody is admitted before
	expire_at    timestamptz NOT NULL,	-- WAITING: good_until; from the admission on: active_for behind it
	good_until   timestamptz NOT NULL,	-- exp of the JWT: no state outlives it
	kid          text NOT NULL,
	issued_at    timestamptz NOT NULL DEFAULT now(),
	activated_at timestamptz,
	ended_at     timestamptz,
	ended_by     uuid	-- the payment that ended it; NULL: time, or an operator
);
ALTER TABLE queue.queue_token ADD COLUMN IF NOT EXISTS ended_by uuid;
-- Two requests that got one number (a Redis that forgot, and counts again) meet here: the second draws another.
CREATE UNIQUE INDEX IF NOT EXISTS queue_token_number ON queue.queue_token (concert_id, number);
CREATE UNIQUE INDEX IF NOT EXISTS queue_token_live ON queue.queue_token (user_id, concert_id)
	WHERE state IN ('WAITING', 'ACTIVE');
CREATE INDEX IF NOT EXISTS queue_token_waiting ON queue.queue_token (concert_id, number) WHERE state = 'WAITING';
CREATE INDEX IF NOT EXISTS queue_token_expires ON queue.queue_token (expire_at) WHERE state IN ('WAITING', 'ACTIVE');
CREATE INDEX IF NOT EXISTS queue_token_activated ON queue.queue_token (concert_id, activated_at) WHERE activated_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS queue_token_ended ON queue.queue_token (ended_at) WHERE ended_at IS NOT NULL;

-- Per concert the greatest number that was given and whose row is forgotten: no number is given twice.
CREATE TABLE IF NOT EXISTS queue.queue_counter (
	concert_id bigint PRIMARY KEY,
	number     bigint NOT NULL DEFAULT 0
);

-- What Redis does not know yet.
CREATE TABLE IF NOT EXISTS queue.todo (
	entry    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	token_id uuid NOT NULL
);

-- Which Redis is ours: the mark that its last rebuild left there, which names that server's process. Another mark, or
-- none, or another process: it was flushed, replaced or restarted.
CREATE TABLE IF NOT EXISTS queue.epoch (
	one   boolean PRIMARY KEY DEFAULT true CHECK (one),
	mark  text NOT NULL,
	since timestamptz NOT NULL DEFAULT now()
);

-- Copies, fed by events.
CREATE TABLE IF NOT EXISTS queue.concert_copy (
	concert_id bigint PRIMARY KEY,
	title      text NOT NULL
);
CREATE TABLE IF NOT EXISTS queue.user_copy (
	user_id  uuid PRIMARY KEY,
	state    text NOT NULL,
	heard_at timestamptz NOT NULL
);

-- A token as its events tell it.
CREATE OR REPLACE FUNCTION queue.told(t queue.queue_token) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('token_id', t.token_id, 'user_id', t.user_id, 'concert_id', t.concert_id::text)
$$;

-- What the service's C needs for the answer: the claims, for it to sign; the rest of the answer but the position.
CREATE OR REPLACE FUNCTION queue.answer(t queue.queue_token, fresh boolean) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('kid', t.kid, 'fresh', fresh, 'number', t.number, 'concert', t.concert_id::text,
		'version', t.version, 'active_us', (extract(epoch FROM t.active_at) * 1000000)::bigint,
		'state', CASE t.state WHEN 'ACTIVE' THEN 'AVAILABLE' ELSE t.state END,
		'token_id', t.token_id, 'active_at', service.rfc3339(t.active_at), 'expire_at', service.rfc3339(t.expire_at),
		'claims', jsonb_build_object('iss', 'postrider-queue', 'aud', 'postrider-queue', 'sub', t.user_id, 'jti', t.token_id,
			'concert_id', t.concert_id::text, 'number', t.number, 'active_at', service.rfc3339(t.active_at),
			'active_us', (extract(epoch FROM t.active_at) * 1000000)::bigint, 'iat', floor(extract(epoch FROM t.issued_at))::bigint, 'exp', ceil(extract(epoch FROM t.good_until))::bigint))
$$;

-- POST /queue/tokens, before a number is drawn: who may not have one is refused, and who has one keeps it (true).
CREATE OR REPLACE FUNCTION queue.has_token(caller uuid, concert bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM queue.concert_copy AS c WHERE c.concert_id = concert) THEN
		PERFORM service.await(404, 'no-such-concert', 'there is no such concert');
	END IF;
	IF EXISTS (SELECT FROM queue.user_copy AS u WHERE u.user_id = caller AND u.state <> 'ACTIVE') THEN
		PERFORM service.refuse(403, 'locked', 'this account is locked');
	END IF;
	RETURN EXISTS (SELECT FROM queue.queue_token AS t WHERE t.user_id = caller AND t.concert_id = concert
		AND t.state IN ('WAITING', 'ACTIVE') AND t.expire_at > now());
END
$$;

-- POST /queue/tokens: the row and its event. given: the number that Redis gave, place: how many it admits before it;
-- NULL: he is said to have a token. When it turns out otherwise (it ended meanwhile; the number is taken), he asks again.
CREATE OR REPLACE FUNCTION queue.issue(caller uuid, concert bigint, given bigint, place bigint, planned timestamptz,
	late interval, active_for interval, kid text) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	t queue.queue_token;
	until timestamptz := date_trunc('second', issue.planned + late + issue.active_for) + interval '1 second';
BEGIN
	IF given IS NOT NULL THEN
		-- Whoever has run out and was not swept up yet must not keep a new one out.
		PERFORM queue.expire(ARRAY(SELECT o.token_id FROM queue.queue_token AS o WHERE o.user_id = caller
			AND o.concert_id = concert AND o.state IN ('WAITING', 'ACTIVE') AND o.expire_at <= now() FOR UPDATE));
		INSERT INTO queue.queue_token AS n (concert_id, number, user_id, active_at, expire_at, good_until, kid)
		VALUES (concert, given, caller, issue.planned, until, until, issue.kid)
		ON CONFLICT DO NOTHING RETURNING n.* INTO t;
		IF FOUND THEN
			INSERT INTO queue.queue_counter AS c (concert_id) VALUES (concert) ON CONFLICT DO NOTHING;
			INSERT INTO queue.todo (token_id) VALUES (t.token_id);
			PERFORM outbox.publish('queue', t.token_id::text, 'TokenIssued', queue.told(t) || jsonb_build_object(
				'position', place, 'active_at', service.rfc3339(t.active_at), 'expire_at', service.rfc3339(t.expire_at)));
			RETURN queue.answer(t, true) || jsonb_build_object('position', place);
		END IF;
	END IF;
	SELECT o.* INTO t FROM queue.queue_token AS o WHERE o.user_id = caller AND o.concert_id = concert
		AND o.state IN ('WAITING', 'ACTIVE');
	IF NOT FOUND THEN
		PERFORM service.refuse(503, 'again', 'the number was given before; ask again', 1);
	END IF;
	RETURN queue.answer(t, false);
END
$$;

-- Ends these tokens, whatever they were; events and todo with it. Their rows are locked.
CREATE OR REPLACE FUNCTION queue.expire(ids uuid[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	IF ids = '{}' OR ids IS NULL THEN
		RETURN 0;
	END IF;
	WITH gone AS (
		UPDATE queue.queue_token AS t SET state = 'EXPIRED', version = t.version + 1, ended_at = now()
		WHERE t.token_id = ANY (ids) AND t.state IN ('WAITING', 'ACTIVE') RETURNING t.*
	), noted AS (
		INSERT INTO queue.todo (token_id) SELECT g.token_id FROM gone AS g ORDER BY g.number
	)
	SELECT outbox.publish_many(jsonb_agg(jsonb_build_object('aggregatetype', 'queue', 'aggregateid', g.token_id,
		'type', 'QueueExpired', 'payload', queue.told(g)) ORDER BY g.number)) INTO n
	FROM gone AS g HAVING count(*) > 0;
	RETURN coalesce(n, 0);
END
$$;

-- The keeper: tokens whose time is over, a bounded number; how many. Several keepers take different ones.
CREATE OR REPLACE FUNCTION queue.expire_due(most integer) RETURNS bigint LANGUAGE sql AS $$
	SELECT queue.expire(ARRAY(SELECT t.token_id FROM queue.queue_token AS t
		WHERE t.state IN ('WAITING', 'ACTIVE') AND t.expire_at <= now()
		ORDER BY t.expire_at LIMIT most FOR UPDATE SKIP LOCKED))
$$;

-- The keeper: numbers that Redis admitted. Those that still wait become ACTIVE, with their events, once, whoever asks
-- how often. Gives what all of them are now: a number admitted that has ended meanwhile, or by a keeper that died.
CREATE OR REPLACE FUNCTION queue.activate(concert bigint, numbers bigint[], active_for interval)
RETURNS TABLE (number bigint, state text, version integer, expire_us bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	published bigint;
BEGIN
	WITH due AS MATERIALIZED (
		SELECT t.token_id FROM queue.queue_token AS t
		WHERE t.concert_id = concert AND t.number = ANY (numbers) AND t.state = 'WAITING' AND t.expire_at > now()
		ORDER BY t.number FOR UPDATE
	), changed AS (
		UPDATE queue.queue_token AS t SET state = 'ACTIVE', version = t.version + 1, activated_at = now(),
			expire_at = least(now() + active_for, t.good_until)
		FROM due WHERE t.token_id = due.token_id RETURNING t.*
	)
	SELECT outbox.publish_many(jsonb_agg(jsonb_build_object('aggregatetype', 'queue', 'aggregateid', c.token_id,
		'type', 'TokenActivated', 'payload', jsonb_build_object('token_id', c.token_id, 'user_id', c.user_id,
			'concert_id', c.concert_id::text, 'active_at', service.rfc3339(c.activated_at),
			'expire_at', service.rfc3339(c.expire_at))) ORDER BY c.number)) INTO published
	FROM changed AS c HAVING count(*) > 0;
	RETURN QUERY SELECT t.number, t.state, t.version, (extract(epoch FROM t.expire_at) * 1000000)::bigint
		FROM queue.queue_token AS t WHERE t.concert_id = concert AND t.number = ANY (numbers) ORDER BY t.number;
END
$$;

-- Forgets what ended long ago, a bounded number at a time.
CREATE OR REPLACE FUNCTION queue.forget(keep interval) RETURNS bigint LANGUAGE sql AS $$
	WITH gone AS (
		DELETE FROM queue.queue_token WHERE token_id IN (
			SELECT t.token_id FROM queue.queue_token AS t WHERE t.ended_at < now() - keep AND t.good_until < now()
			ORDER BY t.ended_at LIMIT 5000 FOR UPDATE SKIP LOCKED)
		RETURNING concert_id, number
	), greatest_of AS (
		SELECT g.concert_id, max(g.number) AS number FROM gone AS g GROUP BY 1
	), kept AS (
		INSERT INTO queue.queue_counter AS c (concert_id, number) SELECT x.concert_id, x.number FROM greatest_of AS x
		ORDER BY 1
		ON CONFLICT (concert_id) DO UPDATE SET number = greatest(c.number, excluded.number)
	)
	SELECT count(*) FROM gone
$$;

-- ---------------------------------------------------------------- the consumer

-- The token's row, locked; NULL: there is none.
CREATE OR REPLACE FUNCTION queue.locked(id uuid) RETURNS queue.queue_token LANGUAGE sql AS $$
	SELECT t.* FROM queue.queue_token AS t WHERE t.token_id = id FOR UPDATE
$$;

-- The only one to change a locked token's state outside of expire and activate: with its event. more: further members.
CREATE OR REPLACE FUNCTION queue.change(t queue.queue_token, wanted text, event text, more jsonb) RETURNS queue.queue_token
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
	UPDATE queue.queue_token AS q SET state = wanted, version = q.version + 1,
		ended_at = CASE WHEN wanted IN ('COMPLETED', 'EXPIRED') THEN now() END,
		ended_by = CASE WHEN wanted IN ('COMPLETED', 'EXPIRED') THEN service.uuid_of(more ->> 'payment_id') END
	WHERE q.token_id = t.token_id RETURNING q.* INTO t;
	INSERT INTO queue.todo (token_id) VALUES (t.token_id);
	PERFORM outbox.publish('queue', t.token_id::text, event, queue.told(t) || more);
	RETURN t;
END
$$;

-- Members of the message that events about it repeat.
CREATE OR REPLACE FUNCTION queue.carried(m inbox.message) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT jsonb_strip_nulls(jsonb_build_object('payment_id', m.payload -> 'payment_id', 'reservation_ids', m.payload -> 'reservation_ids',
		'choreography_id', m.payload -> 'choreography_id', 'hybrid_id', m.payload -> 'hybrid_id'))
$$;

-- CompleteToken and ExpireToken. The row's lock decides between a payment and the end of the token's time.
CREATE OR REPLACE FUNCTION queue.end_token(m inbox.message, wanted text, event text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	t queue.queue_token;
	before queue.queue_token;
BEGIN
	t := queue.locked(service.uuid_of(coalesce(m.payload ->> 'token_id', m.payload ->> 'token')));
	IF t.token_id IS NULL THEN
		PERFORM saga.refuse(m, 'there is no such token');
	ELSIF t.user_id::text IS DISTINCT FROM lower(coalesce(m.payload ->> 'user_id', t.user_id::text)) THEN
		PERFORM saga.refuse(m, 'the token is another user''s');
	ELSIF t.state = 'ACTIVE' OR wanted = 'EXPIRED' AND t.state = 'WAITING' THEN
		before := t;
		t := queue.change(t, wanted, event, queue.carried(m));
		PERFORM saga.set_effect(m, jsonb_build_object('token_id', t.token_id, 'state', before.state, 'version', t.version));
		PERFORM saga.done(m, jsonb_build_object('token_id', t.token_id, 'state', t.state));
	ELSIF t.ended_by <> service.uuid_of(m.payload ->> 'payment_id') THEN
		PERFORM saga.refuse(m, format('the token is %s by payment %s', t.state, t.ended_by));
	ELSIF wanted = 'EXPIRED' AND t.state = 'EXPIRED' THEN
		PERFORM saga.done(m, jsonb_build_object('token_id', t.token_id, 'state', t.state));	-- its time was over before: so it stays
	ELSE
		PERFORM saga.refuse(m, format('the token is %s', t.state));
	END IF;
END
$$;

-- ReactivateToken and RestoreToken: what was before, unless somebody has decided since, or the user has another token of
-- that concert by now. Its time went on meanwhile: a token whose time is over is swept up again.
CREATE OR REPLACE FUNCTION queue.restore_token(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	e jsonb := saga.effect(m);
	t queue.queue_token := queue.locked((e ->> 'token_id')::uuid);
	restored boolean := false;
BEGIN
	IF t.token_id IS NOT NULL AND t.version = (e ->> 'version')::integer THEN
		BEGIN
			t := queue.change(t, e ->> 'state', 'QueueRestored', queue.carried(m) || jsonb_build_object('state', e -> 'state'));
			restored := true;
		EXCEPTION WHEN unique_violation THEN
			NULL;	-- queue_token_live: he has another one
		END;
	END IF;
	PERFORM saga.done(m, jsonb_build_object('restored', restored));
END
$$;

CREATE OR REPLACE FUNCTION queue.on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT saga.barrier(m) THEN
		RETURN;
	END IF;
	CASE m.type
	WHEN 'CompleteToken' THEN
		PERFORM queue.end_token(m, 'COMPLETED', 'QueueCompleted');
	WHEN 'ExpireToken' THEN
		PERFORM queue.end_token(m, 'EXPIRED', 'QueueExpired');
	WHEN 'ReactivateToken', 'RestoreToken' THEN
		PERFORM queue.restore_token(m);
	ELSE
		PERFORM saga.refuse(m, format('the queue knows no command %s', left(m.type, 60)));
	END CASE;
END
$$;

-- Step QUEUE of etc/sagas/pay-choreography.cfg: the payment is through, the token has served. It passes the barrier like
-- a command, so that an undo (RestoreToken) knows what to restore. No answer: the event is it.
CREATE OR REPLACE FUNCTION queue.on_points_deducted(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	payment uuid := service.uuid_of(m.payload ->> 'payment_id');
	token text := m.payload ->> 'token_id';
	t queue.queue_token;
	was text;
	why text;
BEGIN
	IF NOT m.payload ? 'choreography_id' OR payment IS NULL OR NOT saga.barrier(payment, 'QUEUE', 'do', m.id) THEN
		RETURN;
	END IF;
	IF token IS NULL THEN	-- sold at the box office: there is none to end
		PERFORM outbox.publish('queue', payment::text, 'QueueExpired', jsonb_build_object('token_id', NULL,
			'user_id', m.payload -> 'user_id', 'concert_id', m.payload -> 'concert_id') || queue.carried(m));
		RETURN;
	END IF;
	t := queue.locked(service.uuid_of(token));
	was := t.state;
	IF t.token_id IS NULL THEN
		why := 'there is no such token';
	ELSIF t.user_id::text IS DISTINCT FROM lower(coalesce(m.payload ->> 'user_id', t.user_id::text)) THEN
		why := 'the token is another user''s';
	ELSIF was IN ('WAITING', 'ACTIVE') THEN
		t := queue.change(t, 'EXPIRED', 'QueueExpired', queue.carried(m));
		PERFORM saga.set_effect(payment, 'QUEUE', jsonb_build_object('token_id', t.token_id, 'state', was, 'version', t.version));
	ELSIF t.ended_by <> payment THEN	-- one token serves one payment
		why := format('the token is %s by payment %s', was, t.ended_by);
	ELSIF was = 'EXPIRED' THEN
		PERFORM outbox.publish('queue', t.token_id::text, 'QueueExpired', queue.told(t) || queue.carried(m));
	ELSE
		why := format('the token is %s', was);
	END IF;
	IF why IS NOT NULL THEN
		PERFORM outbox.publish('queue', token, 'QueueExpiryFailed', jsonb_build_object('token_id', token, 'reason', why) || queue.carried(m));
	END IF;
END
$$;

-- A user's state, as of the newest message about it: topics and retries may bring them in another order.
CREATE OR REPLACE FUNCTION queue.on_user(m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO queue.user_copy AS u (user_id, state, heard_at)
	SELECT service.uuid_of(m.payload ->> 'user_id'), m.payload ->> 'state', m.time
	WHERE service.uuid_of(m.payload ->> 'user_id') IS NOT NULL AND m.payload ->> 'state' IS NOT NULL
	ON CONFLICT (user_id) DO UPDATE SET state = excluded.state, heard_at = excluded.heard_at WHERE u.heard_at <= excluded.heard_at
$$;

CREATE OR REPLACE FUNCTION queue.on_concert(m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO queue.concert_copy AS c (concert_id, title)
	SELECT (m.payload ->> 'concert_id')::bigint, coalesce(m.payload ->> 'title', '')
	ON CONFLICT (concert_id) DO NOTHING
$$;

-- For a postrider-consumer (etc/services/queue-consumer.cfg): commands of sagas, and the events that the queue lives on.
CREATE OR REPLACE FUNCTION queue.on_message(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF m.topic = 'outbox.command.queue' THEN
		PERFORM queue.on_command(m);
	ELSIF m.type = 'PointsDeducted' THEN
		PERFORM queue.on_points_deducted(m);
	ELSIF m.type IN ('UserCreated', 'UserUpdated') THEN
		PERFORM queue.on_user(m);
	ELSIF m.type = 'ConcertCreated' THEN
		PERFORM queue.on_concert(m);
	END IF;
END
$$;

-- ---------------------------------------------------------------- building Redis again

-- Of each concert what its keys hold: the greatest number given; the slot (us) of the last one and how many it has; the
-- period that runs and how many it let in; the greatest number that waits no more.
CREATE OR REPLACE FUNCTION queue.counters(users bigint, every_us bigint)
RETURNS TABLE (concert_id bigint, number bigint, slot bigint, taken bigint, period bigint, admitted bigint, last bigint)
LANGUAGE sql STABLE AS $$
	SELECT c.concert_id, greatest(c.number, n.number), s.slot, s.taken, p.period, a.admitted,
		coalesce(w.first - 1, greatest(c.number, n.number))
	FROM queue.queue_counter AS c
	CROSS JOIN LATERAL (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint / every_us * every_us AS period) AS p
	LEFT JOIN LATERAL (SELECT t.number, (extract(epoch FROM t.active_at) * 1000000)::bigint / every_us * every_us AS slot
		FROM queue.queue_token AS t WHERE t.concert_id = c.concert_id ORDER BY t.number DESC LIMIT 1) AS n ON true
	CROSS JOIN LATERAL (SELECT coalesce(n.slot, 0) AS slot, count(*) AS taken FROM queue.queue_token AS t
		WHERE t.concert_id = c.concert_id AND t.number > n.number - users
		AND t.active_at >= 'epoch'::timestamptz + n.slot * interval '1 microsecond') AS s
	CROSS JOIN LATERAL (SELECT count(*) AS admitted FROM queue.queue_token AS t WHERE t.concert_id = c.concert_id
		AND t.activated_at >= 'epoch'::timestamptz + p.period * interval '1 microsecond') AS a
	LEFT JOIN LATERAL (SELECT t.number AS first FROM queue.queue_token AS t WHERE t.concert_id = c.concert_id
		AND t.state = 'WAITING' ORDER BY t.number LIMIT 1) AS w ON true
$$;
