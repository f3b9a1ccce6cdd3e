-- Schema push: what users were told, and what administrators are to see to. Run whole when its text has changed: all of it may be
-- run again. Written by consumers of kind push and by `postrider alerts`. Lock order: saga.barrier, notifications by (user, what,
-- subject), alerts by their cause's advisory lock, ascending.
CREATE SCHEMA IF NOT EXISTS push;

-- Which event becomes which notification: this one table. A rule takes events of type whose payload contains cond; subject is the first
-- of these members that is there: one notification of (user, what, subject), however often it is told. ids: members that subject_ids
-- are made of. retracts: what of the same subject is no longer true. {member} of text is the payload's.
CREATE TABLE IF NOT EXISTS push.rule (
	place    integer PRIMARY KEY,
	type     text NOT NULL,
	cond     jsonb NOT NULL,
	what     text NOT NULL CHECK (what IN ('held', 'refresh', 'rejected', 'expired', 'paid', 'payment-failed', 'undone')),
	subject  text[] NOT NULL,
	ids      text[] NOT NULL,
	retracts text[] NOT NULL,
	text     text NOT NULL
);
DELETE FROM push.rule;
INSERT INTO push.rule (place, type, cond, what, subject, ids, retracts, text) VALUES
	(1, 'ReservationHeld', '{}', 'held', '{reservation_id}', '{reservation_id}', '{}',
		'Seat {label} is held for you. Pay before {expires_at}.'),
	(2, 'ReservationRejected', '{"status": "REJECTED"}', 'rejected', '{reservation_id}', '{reservation_id}', '{held}',
		'You did not get seat {label}: {reason}.'),
	(3, 'ReservationRejected', '{"status": "REJECTED"}', 'refresh', '{reservation_id}', '{reservation_id}', '{}',
		'The free seats have changed: look again.'),
	(4, 'ReservationExpired', '{}', 'expired', '{reservation_id}', '{reservation_id}', '{held}',
		'The time to pay for seat {label} is over; the seat is free again.'),
	(5, 'ReservationUpdated', '{"status": "CONFIRMED"}', 'paid', '{payment_id,reservation_id}', '{payment_id,reservation_id}', '{}',
		'Paid: your seats are yours.'),
	(6, 'QueueExpired', '{}', 'paid', '{payment_id}', '{payment_id,reservation_ids}', '{}', 'Paid: your seats are yours.'),
	(7, 'OrderPaid', '{}', 'paid', '{payment_id,order_id}', '{payment_id,order_id}', '{}', 'Your order is paid.'),
	(8, 'PaymentFailed', '{}', 'payment-failed', '{payment_id}', '{payment_id,reservation_ids,order_id}', '{}',
		'The payment failed: {reason}. You have lost no money.'),
	(9, 'PaymentCancelled', '{"was_paid": false}', 'undone', '{payment_id}', '{payment_id,reservation_ids,order_id}', '{paid}',
		'Correction: the payment was undone. No money was taken.'),
	(10, 'PaymentCancelled', '{}', 'undone', '{payment_id}', '{payment_id,reservation_ids,order_id}', '{paid}',	-- not where 9 was
		'Correction: the payment was undone, and your money is back.'),
	(11, 'ReservationCancelled', '{"reason": "timer-failed"}', 'undone', '{reservation_id}', '{reservation_id}', '{held}',
		'Correction: seat {label} could not be held for you after all; it is free again.');

CREATE TABLE IF NOT EXISTS push.notification (
	notification_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	user_id      uuid NOT NULL,
	what         text NOT NULL CHECK (what IN ('held', 'refresh', 'rejected', 'expired', 'paid', 'payment-failed', 'undone')),
	subject      text NOT NULL,
	subject_ids  uuid[] NOT NULL DEFAULT '{}',
	text         text NOT NULL,
	state        text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'SENT', 'FAILED', 'RETRACTED')),
	place        bigint UNIQUE,
	cause        text NOT NULL,
	correlation  text,
	flow         jsonb NOT NULL DEFAULT '{}',
	made_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
	sent_at      timestamptz,
	retracted_at timestamptz,
	CONSTRAINT notification_told UNIQUE (user_id, what, subject)
);
COMMENT ON COLUMN push.notification.place IS
	'order in which they were sent: given one after the other, so that who has seen 7 has seen all below; NULL: not sent';
CREATE INDEX IF NOT EXISTS notification_user ON push.notification (user_id, place);
CREATE INDEX IF NOT EXISTS notification_pending ON push.notification (notification_id) WHERE state = 'PENDING';
DROP INDEX IF EXISTS push.notification_sent_at;
CREATE INDEX IF NOT EXISTS notification_settled ON push.notification (coalesce(sent_at, made_at)) WHERE state <> 'PENDING';
CREATE SEQUENCE IF NOT EXISTS push.place AS bigint CACHE 1;

CREATE TABLE IF NOT EXISTS push.admin_alert (
	alert_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	cause_key   text NOT NULL,
	cause       text NOT NULL,
	command     text NOT NULL,
	detail      jsonb NOT NULL DEFAULT '{}',
	state       text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'SENT', 'FAILED', 'ACKED', 'RESOLVED')),
	times       bigint NOT NULL DEFAULT 1,
	first_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
	last_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	next_at     timestamptz DEFAULT clock_timestamp(),
	tries       integer NOT NULL DEFAULT 0,
	sent        integer NOT NULL DEFAULT 0,
	sent_at     timestamptz,
	last_error  text
);
COMMENT ON COLUMN push.admin_alert.next_at IS 'when it is sent, tried again or repeated; NULL: no more';
COMMENT ON COLUMN push.admin_alert.tries IS 'failed ones since it was last sent';
CREATE INDEX IF NOT EXISTS admin_alert_open ON push.admin_alert (cause_key, last_at) WHERE state <> 'RESOLVED';
CREATE INDEX IF NOT EXISTS admin_alert_due ON push.admin_alert (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS admin_alert_last ON push.admin_alert (last_at);

-- Every try to send, and every act of a person: the record, and what the rate is counted by.
CREATE TABLE IF NOT EXISTS push.alert_log (
	entry    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	alert_id bigint NOT NULL REFERENCES push.admin_alert ON DELETE CASCADE,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	by       text NOT NULL,
	what     text NOT NULL CHECK (what IN ('try', 'sent', 'failed', 'ack', 'resolve')),
	note     text
);
CREATE INDEX IF NOT EXISTS alert_log_alert ON push.alert_log (alert_id, entry);
CREATE INDEX IF NOT EXISTS alert_log_try ON push.alert_log (at) WHERE what = 'try';

CREATE OR REPLACE FUNCTION push.rfc3339(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE OR REPLACE FUNCTION push.refuse(problem text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'push: ' || problem;
END
$$;

-- NULL when it is none.
CREATE OR REPLACE FUNCTION push.as_uuid(given text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN given ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN given::uuid END
$$;

-- The uuids of these members, single ones and lists, each once, in order.
CREATE OR REPLACE FUNCTION push.ids_of(payload jsonb, members text[]) RETURNS uuid[] LANGUAGE sql IMMUTABLE AS $$
	SELECT coalesce(array_agg(x.id ORDER BY x.n), '{}') FROM (
		SELECT push.as_uuid(e.value #>> '{}') AS id, min(m.n * 1000 + e.n) AS n
		FROM unnest(members) WITH ORDINALITY AS m (name, n),
			jsonb_array_elements(CASE jsonb_typeof(payload -> m.name) WHEN 'array' THEN payload -> m.name
				ELSE jsonb_build_array(payload -> m.name) END) WITH ORDINALITY AS e (value, n)
		WHERE e.n <= 1000 GROUP BY 1) AS x
	WHERE x.id IS NOT NULL
$$;

-- The text with {member} replaced: times in words, what is missing as nothing.
CREATE OR REPLACE FUNCTION push.fill(text text, payload jsonb) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
	member text;
	value text;
BEGIN
	FOR member IN SELECT DISTINCT r[1] FROM regexp_matches(text, '\{(\w+)\}', 'g') AS r LOOP
		value := left(payload ->> member, 200);
		IF value ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d' THEN
			value := substr(value, 12, 5) || ' UTC';
		END IF;
		text := replace(text, '{' || member || '}', coalesce(value, ''));
	END LOOP;
	RETURN regexp_replace(regexp_replace(text, '\s+([.:,;])', '\1', 'g'), ':\.', '.', 'g');
END
$$;

CREATE OR REPLACE FUNCTION push.flow(payload jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN jsonb_typeof(payload) = 'object' AND payload ?| ARRAY['hold_id', 'choreography_id', 'hybrid_id'] THEN
		jsonb_strip_nulls(jsonb_build_object('hold_id', payload -> 'hold_id', 'choreography_id', payload -> 'choreography_id',
			'hybrid_id', payload -> 'hybrid_id')) ELSE '{}' END
$$;

-- One notification; nothing when there is one already. What it retracts is marked, also what comes later: between topics there is no order.
-- A hold's is sent all the same, and is retracted then: its choreography waits for NotificationSent.
CREATE OR REPLACE FUNCTION push.notify(who uuid, what text, subject text, ids uuid[], text text, retracts text[], cause text,
	correlation text, flow jsonb) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
	undone boolean;
	r record;
BEGIN
	undone := what IN ('held', 'paid') AND EXISTS (SELECT FROM push.notification AS n WHERE n.user_id = who
		AND n.subject = notify.subject AND n.what = ANY (CASE notify.what WHEN 'paid' THEN '{undone}'::text[] ELSE '{undone,rejected,expired}' END));
	INSERT INTO push.notification (user_id, what, subject, subject_ids, text, cause, correlation, flow, state, retracted_at)
	VALUES (who, what, subject, ids, text, cause, correlation, flow, CASE WHEN undone AND flow ? 'hold_id' IS NOT TRUE THEN 'RETRACTED' ELSE 'PENDING' END,
		CASE WHEN undone THEN clock_timestamp() END)
	ON CONFLICT ON CONSTRAINT notification_told DO UPDATE SET state = 'PENDING', text = EXCLUDED.text, cause = EXCLUDED.cause
		WHERE push.notification.state = 'FAILED';
	PERFORM pg_notify('push', '');	-- the desks (desk.c) wait for it
	FOR r IN UPDATE push.notification AS n SET state = CASE WHEN n.state = 'PENDING' AND n.flow ? 'hold_id' THEN n.state ELSE 'RETRACTED' END,
			retracted_at = clock_timestamp()
		WHERE n.user_id = who AND n.what = ANY (retracts) AND n.subject = notify.subject AND n.state IN ('PENDING', 'SENT')
		RETURNING n.notification_id, n.what, n.subject_ids, n.place, n.retracted_at, n.flow LOOP
		CONTINUE WHEN r.place IS NULL;
		PERFORM outbox.publish('push', r.notification_id::text, 'NotificationRetracted', jsonb_build_object('notification_id', r.notification_id::text,
			'user_id', who, 'what', r.what, 'subject_ids', to_jsonb(r.subject_ids), 'at', push.rfc3339(r.retracted_at)) || r.flow,
			CASE WHEN correlation IS NULL THEN '{}' ELSE jsonb_build_object('correlation-id', correlation) END);
	END LOOP;
END
$$;

-- ---------------------------------------------------------------- alerts

-- Where the members' configuration files lie and how long the same cause is one alert: written by each consumer at its start.
CREATE TABLE IF NOT EXISTS push.setting (
	name  text PRIMARY KEY,
	value text NOT NULL
);

CREATE OR REPLACE FUNCTION push.setting(name text, otherwise text) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT coalesce((SELECT s.value FROM push.setting AS s WHERE s.name = setting.name), otherwise)
$$;

CREATE OR REPLACE FUNCTION push.quote(word text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN word ~ '^[A-Za-z0-9_./:@%+=,-]+$' THEN word ELSE '''' || replace(word, '''', '''\''''') || '''' END
$$;

CREATE OR REPLACE FUNCTION push.engine_file() RETURNS text LANGUAGE sql STABLE AS $$
	SELECT push.quote(push.setting('configs', '/usr/local/share/postrider/services') || '/engine-consumer.cfg')
$$;

-- Records a cause: a new alert, or one more time of the one there is, which then names one more saga, twenty of them at most.
CREATE OR REPLACE FUNCTION push.alert(cause_key text, cause text, command text, detail jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
	made push.admin_alert;
BEGIN
	PERFORM pg_advisory_xact_lock(('x' || left(md5('push.alert ' || cause_key), 16))::bit(64)::bigint);
	UPDATE push.admin_alert AS a SET times = a.times + 1, last_at = clock_timestamp(),
		command = CASE WHEN NOT (a.detail -> 'saga_ids') @> (detail -> 'saga_ids')
			THEN format('postrider saga list -c %s --state STUCK', push.engine_file()) ELSE a.command END,
		detail = CASE WHEN NOT (a.detail -> 'saga_ids') @> (detail -> 'saga_ids') AND jsonb_array_length(a.detail -> 'saga_ids') < 20
			THEN jsonb_set(a.detail, '{saga_ids}', (a.detail -> 'saga_ids') || (detail -> 'saga_ids')) ELSE a.detail END
	WHERE a.alert_id = (
		SELECT o.alert_id FROM push.admin_alert AS o WHERE o.cause_key = alert.cause_key AND o.state <> 'RESOLVED'
			AND o.last_at > clock_timestamp() - push.setting('window', '10 minutes')::interval
		ORDER BY o.last_at DESC LIMIT 1);
	IF FOUND THEN
		RETURN;
	END IF;
	INSERT INTO push.admin_alert AS a (cause_key, cause, command, detail)
	VALUES (cause_key, left(cause, 2000), left(command, 2000), detail) RETURNING a.* INTO made;
	PERFORM outbox.publish('push', made.alert_id::text, 'AdminAlerted', jsonb_build_object('alert_id', made.alert_id::text,
		'cause', made.cause, 'command', made.command, 'at', push.rfc3339(made.first_at)));
END
$$;

-- What a message alerts of, NULL key: of nothing. A dead letter and the <type>Failed that goes with it are one cause.
CREATE OR REPLACE FUNCTION push.cause_of(m inbox.message, OUT key text, OUT cause text, OUT command text, OUT detail jsonb)
LANGUAGE plpgsql STABLE AS $$
DECLARE
	p jsonb := CASE WHEN jsonb_typeof(m.payload) = 'object' THEN m.payload ELSE '{}' END;
	h jsonb := coalesce(m.headers, '{}');
	files text := push.setting('configs', '/usr/local/share/postrider/services');
	grp text;
	topic text;
	kind text;
	class text;
BEGIN
	IF h ? 'kafka_dlt-original-topic' THEN
		grp := coalesce(h ->> 'kafka_dlt-original-consumer-group', '');
		topic := h ->> 'kafka_dlt-original-topic';
		kind := coalesce(m.type, '');
		class := coalesce(h ->> 'kafka_dlt-exception-fqcn', '');
		cause := h ->> 'kafka_dlt-exception-message';
		detail := jsonb_build_object('group', grp, 'topic', topic, 'type', kind, 'class', class,
			'partition', h ->> '__connect.errors.partition', 'offset', h ->> '__connect.errors.offset', 'key', m.key);
	ELSIF m.type LIKE '_%Failed' AND p ? 'topic' AND p ? 'class' AND p ? 'offset' THEN
		grp := coalesce(p ->> 'group', regexp_replace(m.topic, '^outbox\.event\.', ''));
		topic := p ->> 'topic';
		kind := left(m.type, -6);
		class := concat_ws(':', p ->> 'class', nullif(p ->> 'code', ''));
		cause := p ->> 'cause';
		detail := jsonb_build_object('group', grp, 'topic', topic, 'type', kind, 'class', class, 'partition', p -> 'partition',
			'offset', p -> 'offset', 'key', p -> 'key');
	ELSIF m.type = 'GatewayCancelFailed' THEN
		key := concat_ws('/', 'gateway', p ->> 'payment_id');
		cause := format('the gateway does not cancel its charge of %s for payment %s: %s', p ->> 'amount', p ->> 'payment_id', p ->> 'reason');
		command := format('psql -d payment -c "SELECT payment.cancel_again(''%s'')"', (p ->> 'payment_id')::uuid);
		detail := p;
		RETURN;
	ELSIF m.type LIKE '_%Failed' AND p ? 'message_id' AND p ? 'topic' THEN	-- a service's own undo of a dead letter
		grp := regexp_replace(m.topic, '^outbox\.event\.', '');
		topic := p ->> 'topic';
		kind := coalesce(p ->> 'type', left(m.type, -6));
		class := '';
		cause := coalesce(p ->> 'reason', 'it could not be handled');
		detail := jsonb_build_object('group', grp, 'topic', topic, 'type', kind, 'key', p -> 'key');
	ELSIF m.type = 'SagaStuck' THEN
		key := concat_ws('/', 'saga', p ->> 'name', p ->> 'step', left(p ->> 'why', 200));
		cause := format('saga %s is stuck at step %s: %s', p ->> 'name', coalesce(p ->> 'step', '?'), coalesce(p ->> 'why', 'no answer'));
		-- A step that its service does by itself is not sent again by retry: it waits anew, and nothing is undone meanwhile.
		command := format('postrider saga %s -c %s %s --yes', CASE WHEN p @> '{"style": "choreography", "turned": false}' THEN 'undo' ELSE 'retry' END,
			push.engine_file(), push.quote(coalesce(p ->> 'saga_id', m.key)));
		detail := jsonb_strip_nulls(jsonb_build_object('saga_id', p -> 'saga_id', 'name', p -> 'name', 'step', p -> 'step', 'data', p -> 'data'))
			|| jsonb_build_object('saga_ids', jsonb_build_array(coalesce(p ->> 'saga_id', m.key)));
		RETURN;
	ELSE
		RETURN;
	END IF;
	key := concat_ws('/', 'dead', grp, topic, kind);
	cause := format('%s of %s could not be handled by group %s%s: %s', coalesce(nullif(kind, ''), 'a message'), topic, grp,
		CASE WHEN class = '' THEN '' ELSE ' (' || class || ')' END, coalesce(nullif(cause, ''), 'no reason given'));
	command := format('postrider dlq retry -c %s --topic %s%s --all', push.quote(files || '/' || grp || '-consumer.cfg'), push.quote(topic),
		CASE WHEN kind = '' THEN '' ELSE ' --type ' || push.quote(kind) END);
END
$$;

-- ---------------------------------------------------------------- messages

-- PushUser and PushCorrection: the user, what, and what it is about.
CREATE OR REPLACE FUNCTION push.on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	p jsonb := m.payload;
	h jsonb := coalesce(m.headers, '{}');
	undo boolean := coalesce(h ->> 'saga-op' = 'undo', false);
	who uuid;
	what text;
	ids uuid[];
	subject text;
	go boolean := true;
	known constant text[] := '{held,refresh,rejected,expired,paid,payment-failed,undone}';
	correcting boolean := m.type IS NOT DISTINCT FROM 'PushCorrection';
BEGIN
	IF m.type IS DISTINCT FROM 'PushUser' AND NOT correcting THEN
		PERFORM push.refuse(format('there is no command %s', coalesce(left(m.type, 60), 'without a type')));
	ELSIF jsonb_typeof(p) IS DISTINCT FROM 'object' THEN
		PERFORM push.refuse('the payload is no JSON object');
	END IF;
	who := push.as_uuid(p ->> 'user_id');
	what := coalesce(p ->> 'what', CASE WHEN correcting THEN 'undone' END);
	ids := push.ids_of(p, '{payment_id,order_id,reservation_id,reservation_ids,subject_ids}');
	subject := coalesce(p ->> 'payment_id', p ->> 'order_id', ids[1]::text);
	IF who IS NULL THEN
		PERFORM push.refuse(format('user_id is %s, not a uuid', coalesce(left((p -> 'user_id')::text, 60), 'missing')));
	ELSIF what IS NULL OR NOT what = ANY (known) THEN
		PERFORM push.refuse(format('what is %s, not one of %s', coalesce(left((p -> 'what')::text, 60), 'missing'), array_to_string(known, ', ')));
	ELSIF subject IS NULL OR length(subject) > 200 THEN
		PERFORM push.refuse('payment_id, order_id, reservation_id, reservation_ids or subject_ids is missing');
	END IF;
	-- The barrier answers what was done before. An undo whose do never came by it, an event's in a choreography, is done all the same: the
	-- correction is one of (user, what, subject).
	IF h ? 'saga-id' THEN
		go := saga.barrier(m, jsonb_build_object('user_id', who, 'subject', subject));
	END IF;
	IF NOT go AND NOT undo THEN
		RETURN;
	END IF;
	PERFORM push.notify(who, what, subject, ids, CASE what
			WHEN 'undone' THEN 'Correction: what we told you before was undone.'
			ELSE coalesce(left(p ->> 'text', 500), (SELECT push.fill(r.text, p) FROM push.rule AS r WHERE r.what = what ORDER BY r.place LIMIT 1)) END,
		CASE WHEN correcting OR undo THEN '{held,paid}'::text[] ELSE '{}' END, m.type, h ->> 'correlation-id', push.flow(p));
	IF correcting OR undo THEN	-- also what was told of its reservations one by one
		UPDATE push.notification AS n SET state = CASE WHEN n.state = 'PENDING' AND n.flow ? 'hold_id' THEN n.state ELSE 'RETRACTED' END,
			retracted_at = clock_timestamp()
		WHERE n.user_id = who AND n.what IN ('held', 'paid') AND n.subject = ANY (SELECT i::text FROM unnest(ids) AS i) AND n.state IN ('PENDING', 'SENT');
	END IF;
	IF h ? 'saga-id' AND go THEN
		PERFORM saga.done(m, jsonb_build_object('what', what));
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION push.on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	m inbox.message;
	r record;
	p jsonb;
	who uuid;
	about text;
	member text;
	alerts inbox.message[] := '{}';
BEGIN
	FOREACH m IN ARRAY messages LOOP
		p := CASE WHEN jsonb_typeof(m.payload) = 'object' THEN m.payload ELSE '{}' END;
		IF coalesce(m.headers, '{}') ? 'kafka_dlt-original-topic' THEN
			alerts := array_append(alerts, m);
			CONTINUE;
		ELSIF m.topic LIKE 'outbox.command.%' THEN
			PERFORM push.on_command(m);
			CONTINUE;
		ELSIF m.type LIKE '%Failed' OR m.type = 'SagaStuck' THEN
			alerts := array_append(alerts, m);
		END IF;
		who := push.as_uuid(p ->> 'user_id');
		CONTINUE WHEN who IS NULL;
		FOR r IN SELECT u.* FROM push.rule AS u WHERE u.type = m.type AND p @> u.cond ORDER BY u.place LOOP
			about := NULL;
			FOREACH member IN ARRAY r.subject LOOP
				about := coalesce(about, left(p ->> member, 200));
			END LOOP;
			CONTINUE WHEN about IS NULL;
			PERFORM push.notify(who, r.what, about, push.ids_of(p, r.ids), push.fill(r.text, p), r.retracts, m.type,
				m.headers ->> 'correlation-id', push.flow(p));
			-- The last step of a choreographed payment: it is told, in the transaction that makes sure of it.
			IF m.type = 'QueueExpired' THEN
				PERFORM outbox.publish('push', about, 'PaymentNotified', jsonb_build_object('payment_id', about, 'user_id', who,
					'reservation_ids', coalesce(p -> 'reservation_ids', '[]')) || push.flow(p),
					jsonb_build_object('causation-id', m.id, 'correlation-id', coalesce(m.headers ->> 'correlation-id', about)));
			END IF;
		END LOOP;
	END LOOP;
	FOR r IN SELECT c.* FROM unnest(alerts) AS a, push.cause_of(ROW(a.*)::inbox.message) AS c WHERE c.key IS NOT NULL ORDER BY c.key LOOP
		PERFORM push.alert(r.key, r.cause, r.command, r.detail);
	END LOOP;
END
$$;

-- A message that becomes a dead letter here: a command's notification is FAILED, its saga hears of it, and an administrator.
CREATE OR REPLACE FUNCTION push.undo_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	m inbox.message;
	who uuid;
	subject text;
BEGIN
	FOREACH m IN ARRAY messages LOOP
		CONTINUE WHEN m.topic NOT LIKE 'outbox.command.%' OR jsonb_typeof(m.payload) IS DISTINCT FROM 'object';
		who := push.as_uuid(m.payload ->> 'user_id');
		subject := left(coalesce(m.payload ->> 'payment_id', m.payload ->> 'order_id', m.payload -> 'reservation_ids' ->> 0), 200);
		IF who IS NOT NULL AND subject IS NOT NULL AND m.payload ->> 'what' IN ('held', 'refresh', 'rejected', 'expired', 'paid', 'payment-failed', 'undone') THEN
			INSERT INTO push.notification (user_id, what, subject, text, state, cause)
			VALUES (who, m.payload ->> 'what', subject, '', 'FAILED', coalesce(m.type, '')) ON CONFLICT DO NOTHING;
		END IF;
		IF m.headers ? 'saga-id' THEN
			BEGIN
				IF saga.barrier(m) THEN
					PERFORM saga.fail(m, 'it could not be handled');
				END IF;
			EXCEPTION WHEN data_exception THEN
				NULL;
			END;
		END IF;
	END LOOP;
END
$$;

-- ---------------------------------------------------------------- sending

-- Gives places to what is pending, one after the other among all members, in the order of commits: a stream that has seen one place has
-- seen all below. How many; -1: another member is at it.
CREATE OR REPLACE FUNCTION push.send(most integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	n integer;
BEGIN
	IF NOT EXISTS (SELECT FROM push.notification AS p WHERE p.state = 'PENDING') THEN
		RETURN 0;
	ELSIF NOT pg_try_advisory_xact_lock(8101821198635721831) THEN
		RETURN -1;
	END IF;
	WITH due AS MATERIALIZED (
		SELECT p.notification_id FROM push.notification AS p WHERE p.state = 'PENDING' ORDER BY p.notification_id LIMIT most FOR UPDATE SKIP LOCKED
	), numbered AS MATERIALIZED (
		SELECT d.notification_id, nextval('push.place') AS place FROM (SELECT * FROM due ORDER BY notification_id) AS d
	), sent AS (
		UPDATE push.notification AS p SET state = CASE WHEN p.retracted_at IS NULL THEN 'SENT' ELSE 'RETRACTED' END,
			sent_at = clock_timestamp(), place = d.place FROM numbered AS d
		WHERE p.notification_id = d.notification_id
		RETURNING p.notification_id, p.user_id, p.what, p.subject_ids, p.sent_at, p.retracted_at, p.correlation, p.flow, p.place
	), told AS (
		INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, headers)
		SELECT 'push', s.notification_id::text, e.type, jsonb_build_object('notification_id', s.notification_id::text, 'user_id', s.user_id,
			'what', s.what, 'subject_ids', to_jsonb(s.subject_ids), 'at', push.rfc3339(e.at)) || s.flow,
			CASE WHEN s.correlation IS NULL THEN '{}' ELSE jsonb_build_object('correlation-id', s.correlation) END
		FROM sent AS s CROSS JOIN LATERAL (VALUES (1, 'NotificationSent', s.sent_at), (2, 'NotificationRetracted', s.retracted_at)) AS e (n, type, at)
		WHERE e.at IS NOT NULL ORDER BY s.place, e.n
	)
	SELECT count(*) INTO n FROM sent;
	PERFORM pg_notify('push', '');
	RETURN n;
END
$$;

-- As a client sees it.
CREATE OR REPLACE FUNCTION push.shown(n push.notification) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('notification_id', n.notification_id::text, 'event_id', n.place::text, 'what', n.what, 'text', n.text,
		'subject_ids', to_jsonb(n.subject_ids), 'state', n.state, 'at', push.rfc3339(n.sent_at))
$$;

-- GET /notifications: the newest first, before a place; next: where the older ones begin.
CREATE OR REPLACE FUNCTION push.list(who uuid, before_place bigint, most integer) RETURNS jsonb LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	found push.notification[];
	more boolean;
BEGIN
	SELECT array_agg(n ORDER BY n.place DESC) INTO found FROM (
		SELECT * FROM push.notification AS x WHERE x.user_id = who AND x.place < before_place
		ORDER BY x.place DESC LIMIT most + 1) AS n;
	more := coalesce(cardinality(found), 0) > most;
	RETURN jsonb_build_object('notifications', coalesce((SELECT jsonb_agg(push.shown(f) ORDER BY f.place DESC)
			FROM unnest(found[1:most]) AS f), '[]'),
		'next', CASE WHEN more THEN found[most].place::text END,
		'last_event_id', (SELECT coalesce(max(x.place), 0)::text FROM push.notification AS x WHERE x.user_id = who));
END
$$;

-- Forgets notifications sent, failed or retracted, and alerts resolved, before that; at most most of each.
CREATE OR REPLACE FUNCTION push.forget(keep interval, most integer) RETURNS bigint LANGUAGE sql SET enable_seqscan = off AS $$
	WITH gone AS (
		DELETE FROM push.notification WHERE notification_id IN (
			SELECT n.notification_id FROM push.notification AS n WHERE n.state <> 'PENDING'
				AND coalesce(n.sent_at, n.made_at) < clock_timestamp() - keep
			ORDER BY coalesce(n.sent_at, n.made_at) LIMIT most FOR UPDATE SKIP LOCKED)
		RETURNING 1), settled AS (
		DELETE FROM push.admin_alert WHERE alert_id IN (
			SELECT a.alert_id FROM push.admin_alert AS a WHERE a.state = 'RESOLVED' AND a.last_at < clock_timestamp() - keep
			ORDER BY a.last_at LIMIT most FOR UPDATE SKIP LOCKED)
		RETURNING 1)
	SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM settled)
$$;

-- Alerts to send now, at most rate in a minute of all members together; each is this caller's for hold: should he die, it is sent again.
CREATE OR REPLACE FUNCTION push.alerts_due(rate integer, hold interval, most integer, who text)
RETURNS TABLE (alert_id bigint, cause text, command text, detail jsonb, times bigint, first_at text, last_at text, sent integer, tries integer)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
	room bigint;
BEGIN
	IF NOT EXISTS (SELECT FROM push.admin_alert AS a WHERE a.next_at <= clock_timestamp()) OR NOT pg_try_advisory_xact_lock(8101821198635721832) THEN
		RETURN;
	END IF;
	SELECT least(most, rate - count(*)) INTO room FROM push.alert_log AS l WHERE l.what = 'try' AND l.at > clock_timestamp() - interval '1 minute';
	IF room <= 0 THEN
		RETURN;
	END IF;
	RETURN QUERY
	WITH due AS (
		SELECT a.alert_id FROM push.admin_alert AS a WHERE a.next_at <= clock_timestamp() ORDER BY a.next_at LIMIT room FOR UPDATE SKIP LOCKED
	), held AS (
		UPDATE push.admin_alert AS a SET next_at = clock_timestamp() + hold FROM due WHERE a.alert_id = due.alert_id RETURNING a.*
	), noted AS (
		INSERT INTO push.alert_log (alert_id, by, what) SELECT h.alert_id, who, 'try' FROM held AS h
	)
	SELECT h.alert_id, h.cause, h.command, h.detail, h.times, push.rfc3339(h.first_at), push.rfc3339(h.last_at), h.sent, h.tries FROM held AS h ORDER BY h.first_at;
END
$$;

-- How it went. problem NULL: it was taken, and comes again after again unless somebody has acknowledged it meanwhile; else after again.
CREATE OR REPLACE FUNCTION push.alert_done(alert bigint, problem text, again interval, who text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE push.admin_alert AS a SET
		state = CASE WHEN a.state IN ('ACKED', 'RESOLVED') THEN a.state WHEN problem IS NULL THEN 'SENT' ELSE 'FAILED' END,
		next_at = CASE WHEN a.state IN ('ACKED', 'RESOLVED') THEN NULL ELSE clock_timestamp() + again END,
		tries = CASE WHEN problem IS NULL THEN 0 ELSE a.tries + 1 END, sent = a.sent + (problem IS NULL)::integer,
		sent_at = CASE WHEN problem IS NULL THEN clock_timestamp() ELSE a.sent_at END, last_error = left(problem, 500)
	WHERE a.alert_id = alert;
	INSERT INTO push.alert_log (alert_id, by, what, note) SELECT alert, who, CASE WHEN problem IS NULL THEN 'sent' ELSE 'failed' END, left(problem, 500)
	WHERE EXISTS (SELECT FROM push.admin_alert AS a WHERE a.alert_id = alert);
END
$$;

-- For a person: ack (it is being seen to: not repeated) or resolve. Whether anything has changed; NULL: there is no such alert.
CREATE OR REPLACE FUNCTION push.alert_act(alert bigint, what text, who text, note text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	was text;
	now_is text := CASE what WHEN 'ack' THEN 'ACKED' WHEN 'resolve' THEN 'RESOLVED' END;
BEGIN
	IF now_is IS NULL THEN
		PERFORM push.refuse('an alert can be acknowledged (ack) or resolved (resolve)');
	END IF;
	SELECT a.state INTO was FROM push.admin_alert AS a WHERE a.alert_id = alert FOR UPDATE;
	IF NOT FOUND THEN
		RETURN NULL;
	ELSIF was = 'RESOLVED' OR was = now_is THEN
		RETURN false;
	END IF;
	UPDATE push.admin_alert AS a SET state = now_is, next_at = NULL WHERE a.alert_id = alert;
	INSERT INTO push.alert_log (alert_id, by, what, note) VALUES (alert, who, alert_act.what, alert_act.note);
	RETURN true;
END
$$;
