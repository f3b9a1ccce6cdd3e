-- Schema payment: tables. What moves money stands in money.sql, what becomes of a payment in payment.sql, the work at
-- the gateway and the tax server in work.sql, what HTTP asks in requests.sql, what messages do in messages.sql. All of
-- it may be run again. Lock order: balance (of a batch all of them, by user), saga.barrier, payment, gateway_request.
CREATE SCHEMA IF NOT EXISTS payment;

-- What the service's options are, for the functions that consumers call: the same in all instances. One row.
CREATE TABLE IF NOT EXISTS payment.setting (
	one     boolean PRIMARY KEY DEFAULT true CHECK (one),
	gateway boolean NOT NULL DEFAULT false,
	tax     boolean NOT NULL DEFAULT false,
	give_up interval NOT NULL DEFAULT '20s',
	late    interval NOT NULL DEFAULT '2min'
);
INSERT INTO payment.setting DEFAULT VALUES ON CONFLICT DO NOTHING;

-- ---------------------------------------------------------------- money

CREATE TABLE IF NOT EXISTS payment.balance (
	user_id uuid PRIMARY KEY,
	balance bigint NOT NULL DEFAULT 0 CHECK (balance BETWEEN 0 AND 9000000000000000),
	version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- Each change of a balance, the version-th of its user; nothing is ever changed or deleted here. cause: of a DEDUCT and its
-- RESTORE the payment; of each cause one of a kind, so that money is taken once and returns once.
CREATE TABLE IF NOT EXISTS payment.balance_ledger (
	user_id uuid NOT NULL,
	version bigint NOT NULL CHECK (version > 0),
	amount  bigint NOT NULL CHECK (amount <> 0),
	balance bigint NOT NULL CHECK (balance >= 0),
	what    text NOT NULL CHECK (what IN ('CHARGE', 'DEDUCT', 'RESTORE')),
	cause   uuid NOT NULL,
	at      timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (user_id, version),
	CHECK ((amount < 0) = (what = 'DEDUCT'))
);
CREATE UNIQUE INDEX IF NOT EXISTS balance_ledger_cause ON payment.balance_ledger (cause, what);

-- ---------------------------------------------------------------- payments

CREATE TABLE IF NOT EXISTS payment.payment (
	payment_id      uuid PRIMARY KEY,
	user_id         uuid NOT NULL,
	mode            text NOT NULL CHECK (mode IN ('saga', 'choreography', 'hybrid', 'order')),
	state           text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'COMPLETED', 'FAILED', 'CANCELLED')),
	amount          bigint NOT NULL CHECK (amount BETWEEN 0 AND 1000000000000000),
	reason          text,
	concert_id      bigint,
	token_id        uuid,
	order_id        uuid,
	reservation_ids uuid[] NOT NULL DEFAULT '{}',
	seats           jsonb NOT NULL DEFAULT '[]',
	traced          boolean NOT NULL DEFAULT false,
	cancel_saga     uuid,
	created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
	completed_at    timestamptz,
	refunded_at     timestamptz
) WITH (fillfactor = 70);
COMMENT ON COLUMN payment.payment.payment_id IS 'also the id of its saga, and the cause of what it takes';
COMMENT ON COLUMN payment.payment.cancel_saga IS 'the user wants it cancelled: the saga that does it';
COMMENT ON COLUMN payment.payment.traced IS 'of an order that is paid by choreography: its events are traced by order_choreography_id';
CREATE INDEX IF NOT EXISTS payment_user ON payment.payment (user_id, payment_id DESC);

-- live: PENDING or COMPLETED. A reservation has one such payment.
CREATE TABLE IF NOT EXISTS payment.payment_reservation (
	reservation_id uuid NOT NULL,
	payment_id     uuid NOT NULL REFERENCES payment.payment,
	live           boolean NOT NULL DEFAULT true,
	PRIMARY KEY (reservation_id, payment_id)
);
CREATE UNIQUE INDEX IF NOT EXISTS payment_reservation_live ON payment.payment_reservation (reservation_id) WHERE live;
CREATE INDEX IF NOT EXISTS payment_reservation_payment ON payment.payment_reservation (payment_id);

-- NONE: cancelled before one was issued.
CREATE TABLE IF NOT EXISTS payment.cash_receipt (
	payment_id uuid PRIMARY KEY,
	user_id    uuid NOT NULL,
	amount     bigint NOT NULL,
	state      text NOT NULL CHECK (state IN ('REQUESTED', 'ISSUED', 'VOIDED', 'REFUSED', 'NONE')),
	receipt_no text,
	reason     text,
	issued_at  timestamptz,
	voided_at  timestamptz
);
CREATE SEQUENCE IF NOT EXISTS payment.receipt_no;

-- What is to be asked outside: approve and cancel at the gateway, issue and void at the tax server. due_at is also the end of
-- the lease of who is at it. command: the saga's command that waits for the outcome.
CREATE TABLE IF NOT EXISTS payment.gateway_request (
	id         uuid PRIMARY KEY DEFAULT outbox.uuid7(),
	payment_id uuid NOT NULL,
	kind       text NOT NULL CHECK (kind IN ('approve', 'cancel', 'issue', 'void')),
	state      text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'DONE', 'REFUSED', 'DROPPED')),
	attempts   integer NOT NULL DEFAULT 0,
	due_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	give_up_at timestamptz,
	command    jsonb,
	answer     text,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	done_at    timestamptz,
	UNIQUE (payment_id, kind)
);
DROP INDEX IF EXISTS payment.gateway_request_due;
CREATE INDEX IF NOT EXISTS gateway_request_whom ON payment.gateway_request
	((CASE WHEN kind IN ('approve', 'cancel') THEN 'gateway' ELSE 'tax' END), due_at) WHERE state = 'PENDING';
-- What may be forgotten: not the approval of a payment that stands, nor a charge that the gateway does not cancel.
CREATE INDEX IF NOT EXISTS gateway_request_over ON payment.gateway_request (done_at)
	WHERE state <> 'PENDING' AND (kind, state) <> ('approve', 'DONE') AND (kind, state) <> ('cancel', 'REFUSED');

-- ---------------------------------------------------------------- copies of what others own

CREATE TABLE IF NOT EXISTS payment.user_copy (
	user_id  uuid PRIMARY KEY,
	state    text NOT NULL,
	sequence bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS payment.token_copy (
	token_id uuid PRIMARY KEY,
	state    text NOT NULL,
	sequence bigint NOT NULL
);
ALTER TABLE payment.token_copy ADD COLUMN IF NOT EXISTS at timestamptz NOT NULL DEFAULT clock_timestamp();
CREATE INDEX IF NOT EXISTS token_copy_at ON payment.token_copy (at);
COMMENT ON COLUMN payment.token_copy.sequence IS 'outbox-seq of the newest event that it was made of';
CREATE TABLE IF NOT EXISTS payment.reservation_copy (
	reservation_id uuid PRIMARY KEY,
	user_id        uuid NOT NULL,
	concert_id     bigint NOT NULL,
	schedule_id    bigint NOT NULL,
	seat_id        bigint NOT NULL,
	claim_no       bigint,
	price          bigint,
	token_id       uuid,
	payment_id     uuid,
	status         text NOT NULL,
	expires_at     timestamptz,
	version        bigint NOT NULL
) WITH (fillfactor = 70);
