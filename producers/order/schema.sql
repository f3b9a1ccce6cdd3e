-- Schema order: orders, their items and their payments' beginnings and ends. Run whole when its text has changed: all of
-- it may be run again. Written by postrider-order and by its consumer. Lock order: saga.barrier, orders, user_copy.
--
-- A payment of an order is a saga, and its id is a claim: orders.saga_id says who may change the state while the order
-- is not settled. Whoever comes late, with another saga's id, finds that the order is not his and changes nothing.
CREATE SCHEMA IF NOT EXISTS "order";

CREATE TABLE IF NOT EXISTS "order".orders (
	order_id   uuid PRIMARY KEY DEFAULT outbox.uuid7(),
	user_id    uuid NOT NULL,
	state      text NOT NULL DEFAULT 'CREATED' CHECK (state IN ('CREATED', 'PAYING', 'PAID', 'CANCELLED')),
	amount     bigint NOT NULL CHECK (amount BETWEEN 0 AND 9007199254740991),
	saga_id    uuid,
	payment_id uuid,
	version    bigint NOT NULL DEFAULT 1,
	created_at timestamptz NOT NULL DEFAULT now(),
	updated_at timestamptz NOT NULL DEFAULT now(),
	CHECK (state NOT IN ('PAYING', 'PAID') OR saga_id IS NOT NULL)
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS orders_of_user ON "order".orders (user_id, order_id DESC);
ALTER TABLE "order".orders ADD COLUMN IF NOT EXISTS last_payment uuid;
COMMENT ON COLUMN "order".orders.last_payment IS 'that was taken back and left it CREATED (its saga, where its id is not known)';
COMMENT ON COLUMN "order".orders.saga_id IS 'of the payment that has begun, or has paid it';

CREATE TABLE IF NOT EXISTS "order".order_item (
	order_id   uuid NOT NULL REFERENCES "order".orders,
	place      integer NOT NULL,
	sku        text NOT NULL,
	quantity   integer NOT NULL CHECK (quantity > 0),
	unit_price bigint NOT NULL CHECK (unit_price >= 0),
	PRIMARY KEY (order_id, place)
);

-- What is known of users, from their events; sequence: outbox-seq of the newest one. A user who is not here is not known to
-- be locked: his own service is asked when he pays.
CREATE TABLE IF NOT EXISTS "order".user_copy (
	user_id  uuid PRIMARY KEY,
	state    text NOT NULL,
	sequence bigint NOT NULL
);

-- ---------------------------------------------------------------- what changes an order, and says so

CREATE OR REPLACE FUNCTION "order".told(o "order".orders, type text, more jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
	SELECT outbox.publish('order', o.order_id::text, type, jsonb_strip_nulls(jsonb_build_object('order_id', o.order_id,
		'user_id', o.user_id, 'amount', o.amount, 'state', o.state, 'payment_id', o.payment_id, 'version', o.version) || more));
$$;

-- The one place that changes a state. The row is locked by the caller. NULL: somebody else's version.
CREATE OR REPLACE FUNCTION "order".change(was "order".orders, to_state text, to_saga uuid, to_payment uuid)
RETURNS "order".orders LANGUAGE sql AS $$
	UPDATE "order".orders AS o SET state = to_state, saga_id = to_saga, payment_id = to_payment, version = o.version + 1,
		updated_at = clock_timestamp(),
		last_payment = CASE WHEN to_state = 'CREATED' AND to_saga IS NULL THEN coalesce(was.payment_id, was.saga_id)
			ELSE o.last_payment END
	WHERE o.order_id = was.order_id AND o.version = was.version
	RETURNING o.*
$$;

-- The order of a message's member order_id, locked. All NULL: there is none of that id.
CREATE OR REPLACE FUNCTION "order".locked(id text) RETURNS "order".orders LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders;
BEGIN
	IF id ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
		SELECT * INTO o FROM "order".orders AS x WHERE x.order_id = id::uuid FOR UPDATE;
	END IF;
	RETURN o;
END
$$;

-- What every event of a payment by choreography says: the saga's id, by which the engine traces it, is the payment's.
CREATE OR REPLACE FUNCTION "order".traced(chosen uuid) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT jsonb_build_object('payment_id', chosen, 'order_choreography_id', chosen)
$$;

-- ---------------------------------------------------------------- HTTP

CREATE OR REPLACE FUNCTION "order".shown(o "order".orders) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object('order_id', o.order_id, 'user_id', o.user_id, 'state', o.state, 'amount', o.amount,
		'payment_id', o.payment_id, 'saga_id', o.saga_id, 'created_at', service.rfc3339(o.created_at),
		'updated_at', service.rfc3339(o.updated_at))
$$;

-- POST /orders
CREATE OR REPLACE FUNCTION "order".create(caller uuid, items jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	made "order".orders;
BEGIN
	IF EXISTS (SELECT FROM "order".user_copy AS u WHERE u.user_id = caller AND u.state <> 'ACTIVE') THEN
		PERFORM service.refuse(403, 'locked', 'this account is locked');
	END IF;
	INSERT INTO "order".orders AS o (user_id, amount)
	SELECT caller, sum(i.quantity * i.unit_price) FROM jsonb_to_recordset(items) AS i (quantity bigint, unit_price bigint)
	RETURNING o.* INTO made;
	INSERT INTO "order".order_item (order_id, place, sku, quantity, unit_price)
	SELECT made.order_id, i.place, i.item ->> 'sku', (i.item ->> 'quantity')::integer, (i.item ->> 'unit_price')::bigint
	FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, place);
	PERFORM "order".told(made, 'OrderCreated');
	RETURN jsonb_build_object('order_id', made.order_id, 'state', made.state, 'amount', made.amount);
END
$$;

-- The caller's order. NULL: there is none.
CREATE OR REPLACE FUNCTION "order".own(caller uuid, wanted uuid, for_update boolean DEFAULT false) RETURNS "order".orders
LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders;
BEGIN
	IF for_update THEN
		SELECT * INTO o FROM "order".orders AS x WHERE x.order_id = wanted FOR UPDATE;
	ELSE
		SELECT * INTO o FROM "order".orders AS x WHERE x.order_id = wanted;
	END IF;
	IF o.user_id <> caller THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s order');
	END IF;
	RETURN o;
END
$$;

-- GET /orders/{id}
CREATE OR REPLACE FUNCTION "order".show(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders := "order".own(caller, wanted);
BEGIN
	IF o.order_id IS NULL THEN
		RETURN NULL;
	END IF;
	RETURN "order".shown(o) || jsonb_build_object('items', (SELECT jsonb_agg(jsonb_build_object('sku', i.sku,
		'quantity', i.quantity, 'unit_price', i.unit_price) ORDER BY i.place)
		FROM "order".order_item AS i WHERE i.order_id = wanted));
END
$$;

-- GET /orders: one's own, the newest first; after: the last one of the page before.
CREATE OR REPLACE FUNCTION "order".list(caller uuid, whose uuid, most integer, after uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
	page jsonb;
	n integer;
	last_one uuid;
BEGIN
	IF whose <> caller THEN
		PERFORM service.refuse(403, 'not-yours', 'these are another user''s orders');
	END IF;
	SELECT coalesce(jsonb_agg("order".shown(o) ORDER BY o.order_id DESC), '[]'), count(*), min(o.order_id::text)::uuid
	INTO page, n, last_one
	FROM (SELECT * FROM "order".orders AS x
		WHERE x.user_id = caller AND x.order_id < coalesce(after, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
		ORDER BY x.order_id DESC LIMIT most) AS o;
	RETURN jsonb_build_object('orders', page, 'next', CASE WHEN n = most THEN last_one END);
END
$$;

-- POST /orders/{id}/pay: claims the order for a payment of its own and asks for it. The payment itself moves the state.
CREATE OR REPLACE FUNCTION "order".pay(caller uuid, wanted uuid, mode text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders := "order".own(caller, wanted, true);
	chosen uuid := outbox.uuid7();
	style text := CASE mode WHEN 'choreography' THEN 'order-choreography' ELSE 'order' END;
	given jsonb;
BEGIN
	IF o.order_id IS NULL THEN
		RETURN NULL;
	ELSIF o.state <> 'CREATED' THEN
		PERFORM service.refuse(409, 'wrong-state', format('the order is %s', o.state));
	ELSIF o.saga_id IS NOT NULL THEN
		PERFORM service.refuse(409, 'payment-in-progress', 'a payment of this order has begun');
	END IF;
	o := "order".change(o, o.state, chosen, NULL);
	given := jsonb_build_object('order_id', o.order_id, 'user_id', o.user_id, 'amount', o.amount);
	IF mode = 'choreography' THEN
		PERFORM "order".told(o, 'OrderPaymentRequested', "order".traced(chosen));
	ELSE
		PERFORM saga.start('order', given, chosen);
	END IF;
	PERFORM saga.expect(chosen, style, given);
	RETURN jsonb_build_object('order_id', o.order_id, 'saga_id', chosen, 'state', o.state);
END
$$;

-- GET /sagas/{id}: what this service has heard of a payment that it began.
CREATE OR REPLACE FUNCTION "order".show_saga(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
	c saga.copy;
BEGIN
	SELECT * INTO c FROM saga.copy AS x WHERE x.saga_id = wanted;
	IF NOT FOUND THEN
		RETURN NULL;
	ELSIF c.data ->> 'user_id' IS DISTINCT FROM caller::text THEN
		PERFORM service.refuse(403, 'not-yours', 'this is another user''s');
	END IF;
	RETURN jsonb_strip_nulls(jsonb_build_object('saga_id', c.saga_id, 'name', c.name, 'state', c.state, 'why', nullif(c.why, ''),
		'steps', c.steps, 'order_id', c.data -> 'order_id'));
END
$$;

-- ---------------------------------------------------------------- the parts of a payment

-- CREATED -> PAYING. NULL: done; else why not. more: what the event says beside.
CREATE OR REPLACE FUNCTION "order".begin_payment(o "order".orders, chosen uuid, more jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	IF o.order_id IS NULL THEN
		RETURN 'there is no such order';
	ELSIF o.state <> 'CREATED' THEN
		RETURN format('the order is %s', o.state);
	ELSIF o.saga_id <> chosen THEN
		RETURN 'another payment of this order has begun';
	END IF;
	PERFORM "order".told("order".change(o, 'PAYING', chosen, NULL), 'OrderPaymentStarted', more);
	RETURN NULL;
END
$$;

-- PAYING -> PAID. NULL: done; else why not.
CREATE OR REPLACE FUNCTION "order".complete(o "order".orders, chosen uuid, payment uuid, more jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	IF o.order_id IS NULL THEN
		RETURN 'there is no such order';
	ELSIF o.saga_id IS DISTINCT FROM chosen THEN
		RETURN 'the order is not being paid by this';
	ELSIF o.state <> 'PAYING' THEN
		RETURN format('the order is %s', o.state);
	ELSIF payment IS NULL THEN
		RETURN 'the payment is not named';
	END IF;
	PERFORM "order".told("order".change(o, 'PAID', chosen, payment), 'OrderPaid', more);
	RETURN NULL;
END
$$;

-- Back to what was before this step of this payment, if the order is still its own: COMPLETE is undone to PAYING, ORDER to
-- CREATED and free for another payment. The event of the cancelled payment may have done it before; then nothing is left.
CREATE OR REPLACE FUNCTION "order".revert(o "order".orders, chosen uuid, step text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF o.order_id IS NULL OR o.saga_id IS DISTINCT FROM chosen THEN
		RETURN;
	ELSIF step = 'COMPLETE' AND o.state = 'PAID' THEN
		PERFORM "order".told("order".change(o, 'PAYING', chosen, o.payment_id), 'OrderReverted');
	ELSIF step <> 'COMPLETE' AND o.state IN ('CREATED', 'PAYING') THEN
		PERFORM "order".told("order".change(o, 'CREATED', NULL, NULL), 'OrderReverted',
			jsonb_build_object('payment_id', o.payment_id));
	END IF;
END
$$;

-- Commands of sagas.
CREATE OR REPLACE FUNCTION "order".on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	chosen uuid := saga.header_uuid(m.headers, 'saga-id');
	o "order".orders;
	why text;
BEGIN
	IF NOT saga.barrier(m) THEN
		RETURN;
	END IF;
	o := "order".locked(m.payload ->> 'order_id');
	IF m.headers ->> 'saga-op' = 'undo' THEN
		PERFORM "order".revert(o, chosen, m.headers ->> 'saga-step');
		PERFORM saga.done(m);
		RETURN;
	END IF;
	why := CASE m.type
		WHEN 'StartOrderPayment' THEN "order".begin_payment(o, chosen)
		WHEN 'CompleteOrder' THEN "order".complete(o, chosen, service.uuid_of(m.payload ->> 'payment_id'))
		ELSE format('the order service knows no command %s', coalesce(left(m.type, 60), 'without a type')) END;
	IF why IS NULL THEN
		PERFORM saga.done(m, jsonb_build_object('order_id', o.order_id,
			'state', CASE m.type WHEN 'CompleteOrder' THEN 'PAID' ELSE 'PAYING' END));
	ELSE
		PERFORM saga.refuse(m, why);
	END IF;
END
$$;

-- The same two steps where nobody commands (etc/sagas/order-choreography.cfg). The engine traces the events by their id
-- and may ask to undo, so each goes through the barrier too; there is no one to answer.
CREATE OR REPLACE FUNCTION "order".on_choreography(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	chosen uuid := (m.payload ->> 'order_choreography_id')::uuid;
	started boolean := m.type = 'OrderPaymentRequested';
	o "order".orders;
	why text;
BEGIN
	IF NOT saga.barrier(chosen, CASE WHEN started THEN 'ORDER' ELSE 'COMPLETE' END, 'do', m.id) THEN
		RETURN;
	END IF;
	o := "order".locked(m.payload ->> 'order_id');
	why := CASE WHEN started THEN "order".begin_payment(o, chosen, "order".traced(chosen))
		ELSE "order".complete(o, chosen, service.uuid_of(m.payload ->> 'payment_id'), "order".traced(chosen)) END;
	IF why IS NOT NULL AND o.order_id IS NOT NULL THEN
		PERFORM "order".told(o, CASE WHEN started THEN 'OrderPaymentRefused' ELSE 'OrderCompletionRefused' END,
			"order".traced(chosen) || jsonb_build_object('reason', why));
	END IF;
END
$$;

-- The event of a cancelled payment carries the state that its order is to have. It counts only for the payment that the
-- order has: an older one that comes late finds another. Or for the one it had last: an undo of its saga may have freed
-- the order before the user's cancel is told, and what he has cancelled stays so.
CREATE OR REPLACE FUNCTION "order".on_cancelled(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders := "order".locked(m.payload ->> 'order_id');
	payment uuid := service.uuid_of(m.payload ->> 'payment_id');
	wanted text := m.payload ->> 'order_state';
BEGIN
	IF o.order_id IS NULL OR coalesce(wanted, '') NOT IN ('CREATED', 'CANCELLED') THEN
		RETURN;
	ELSIF o.state IN ('PAYING', 'PAID') AND (o.payment_id = payment OR (o.payment_id IS NULL
			AND o.saga_id IN (payment, service.uuid_of(m.headers ->> 'correlation-id'))))
		OR o.state = 'CREATED' AND o.saga_id IS NULL AND wanted = 'CANCELLED' AND o.last_payment = payment THEN
		PERFORM "order".told("order".change(o, wanted, NULL, CASE wanted WHEN 'CANCELLED' THEN payment END), 'OrderReverted',
			jsonb_build_object('payment_id', payment));
	END IF;
END
$$;

-- A payment is over: its order is free for another one, also when its first step was never asked. What an operator aborted
-- stays as it is, for him to say.
CREATE OR REPLACE FUNCTION "order".on_ended(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	o "order".orders := "order".locked(m.payload -> 'data' ->> 'order_id');
BEGIN
	IF m.type = 'SagaCompensated' OR o.state = 'CREATED' THEN
		PERFORM "order".revert(o, service.uuid_of(m.payload ->> 'saga_id'), 'ORDER');
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION "order".on_user(m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO "order".user_copy AS u (user_id, state, sequence)
	VALUES ((m.payload ->> 'user_id')::uuid, m.payload ->> 'state', coalesce((m.headers ->> 'outbox-seq')::bigint, 0))
	ON CONFLICT (user_id) DO UPDATE SET state = EXCLUDED.state, sequence = EXCLUDED.sequence
	WHERE EXCLUDED.sequence > u.sequence
$$;

-- One message, of a topic that the consumer reads. Unknown commands are refused, unknown events are none of ours.
CREATE OR REPLACE FUNCTION "order".on_message(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF m.topic NOT LIKE 'outbox.event.%' THEN
		PERFORM "order".on_command(m);
	ELSIF m.type IN ('OrderPaymentRequested', 'PaymentCompleted') THEN
		IF m.payload ? 'order_choreography_id' THEN
			PERFORM "order".on_choreography(m);
		END IF;
	ELSIF m.type = 'PaymentCancelled' THEN
		PERFORM "order".on_cancelled(m);
	ELSIF m.type IN ('UserCreated', 'UserUpdated') THEN
		PERFORM "order".on_user(m);
	ELSIF m.topic = 'outbox.event.saga' AND m.payload ->> 'name' IN ('order', 'order-choreography') THEN
		PERFORM saga.on_event(m);
		IF m.type IN ('SagaCompensated', 'SagaAborted') THEN
			PERFORM "order".on_ended(m);
		END IF;
	END IF;
END
$$;

-- Whose order a message is about: what two lanes may both want to lock.
CREATE OR REPLACE FUNCTION "order".subject(m inbox.message) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT coalesce(m.payload ->> 'order_id', m.payload -> 'data' ->> 'order_id', '')
$$;

-- A batch, for a postrider-consumer: by order, so that two lanes cannot deadlock, and those of one in their order. Most of what comes is
-- none of ours (all users' payments, all sagas).
CREATE OR REPLACE FUNCTION "order".on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	i integer;
BEGIN
	FOR i IN
		SELECT n FROM (SELECT n, messages[n] AS m FROM generate_subscripts(messages, 1) AS n) AS s
		WHERE (m).topic NOT LIKE 'outbox.event.%' OR (m).type IN ('UserCreated', 'UserUpdated', 'PaymentCancelled')
		   OR (m).type IN ('OrderPaymentRequested', 'PaymentCompleted') AND (m).payload ? 'order_choreography_id'
		   OR (m).topic = 'outbox.event.saga' AND (m).payload ->> 'name' IN ('order', 'order-choreography')
		ORDER BY "order".subject(m), (m).payload ->> 'user_id', n
	LOOP
		PERFORM inbox.carry(messages[i]);
		PERFORM "order".on_message(messages[i]);
	END LOOP;
END
$$;
