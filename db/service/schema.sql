-- Schema service: what every example service has in its database. Run whole, when its text has changed, under
-- an advisory lock: all of it may be run again.
CREATE SCHEMA IF NOT EXISTS service;

-- Texts that were run, with their SHA-256.
CREATE TABLE IF NOT EXISTS service.installed (
	number     integer PRIMARY KEY,
	sha256     text NOT NULL,
	applied_at timestamptz NOT NULL DEFAULT now()
);

-- Answers to requests with an Idempotency-Key. key: SHA-256 of who, what and the key; fingerprint: of the content.
CREATE TABLE IF NOT EXISTS service.idempotency (
	key         bytea PRIMARY KEY CHECK (octet_length(key) = 32),
	fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
	answer      jsonb,
	created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS idempotency_created_at ON service.idempotency (created_at);

-- Ends the use case, and undoes all it did: the answer is application/problem+json with this status, the type
-- "/problems/<slug>" and the detail; retry_after: seconds, for 429 and 503.
CREATE OR REPLACE FUNCTION service.refuse(status integer, slug text, detail text, retry_after integer DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'PT' || status, MESSAGE = detail, HINT = concat_ws(' ', slug, retry_after);
END
$$;

-- The same for what this service may still come to know (an event that is on its way): all is undone, and the call is repeated
-- every 25 ms for up to http.patience before the answer is this one.
CREATE OR REPLACE FUNCTION service.await(status integer, slug text, detail text, retry_after integer DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'PA' || status, MESSAGE = detail, HINT = concat_ws(' ', slug, retry_after);
END
$$;

-- What a row of an endpoint's `many` says of one request, said for it alone: nothing when code is NULL.
CREATE OR REPLACE FUNCTION service.fail(code text, detail text, hint text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF code IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = code, MESSAGE = detail, HINT = coalesce(hint, '');
	END IF;
END
$$;

-- The traceparents of the requests that are answered together, by their number; NULL: none has one.
CREATE OR REPLACE FUNCTION service.traces() RETURNS text[] LANGUAGE sql STABLE AS $$
	SELECT nullif(current_setting('service.traces', true), '')::text[]
$$;

-- A time as our JSON has it.
CREATE OR REPLACE FUNCTION service.rfc3339(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

-- A text that may be a uuid; NULL: it is none. Nobody's mistake may make a message that cannot be handled.
CREATE OR REPLACE FUNCTION service.uuid_of(given text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN given ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN given::uuid END
$$;

-- The answer that was given to this key, {"answer": ...}; NULL: it is new, and this transaction may go on with it. The lock keeps
-- a second request with the key out until this one has ended.
CREATE OR REPLACE FUNCTION service.claim(key bytea, fingerprint bytea) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	known service.idempotency;
BEGIN
	IF NOT pg_try_advisory_xact_lock(('x' || encode(substr(claim.key, 1, 8), 'hex'))::bit(64)::bigint) THEN
		PERFORM service.refuse(409, 'request-in-progress', 'a request with this Idempotency-Key is being handled', 1);
	END IF;
	SELECT * INTO known FROM service.idempotency AS i WHERE i.key = claim.key;
	IF NOT FOUND THEN
		RETURN NULL;
	END IF;
	IF known.fingerprint <> claim.fingerprint THEN
		PERFORM service.refuse(422, 'idempotency-key-reused', 'this Idempotency-Key was used for another request');
	END IF;
	RETURN jsonb_build_object('answer', known.answer);
END
$$;

-- Claims the keys of many requests (NULL: it has none) for this transaction. Those that are not new, or come a second time, are named
-- by their places: error PK001 '3,17', a hundred of them at most. What becomes of them says claim().
CREATE OR REPLACE FUNCTION service.claim_all(keys bytea[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	busy bigint[];
	known bigint[];
BEGIN
	SELECT array_agg(k.n) INTO busy FROM (
		SELECT u.n, pg_try_advisory_xact_lock(('x' || encode(substr(u.key, 1, 8), 'hex'))::bit(64)::bigint) AS got,
			row_number() OVER (PARTITION BY u.key ORDER BY u.n) AS time
		FROM unnest(keys) WITH ORDINALITY AS u (key, n) WHERE u.key IS NOT NULL) AS k
	WHERE NOT k.got OR k.time > 1;
	-- Behind the locks: this statement sees what those committed who had them before.
	SELECT array_agg(u.n) INTO known
	FROM unnest(keys) WITH ORDINALITY AS u (key, n) JOIN service.idempotency AS i ON i.key = u.key;
	IF busy || known IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'PK001', MESSAGE = array_to_string((busy || known)[1:100], ',');
	END IF;
	RETURN true;
END
$$;

-- Remembers the answer, in the transaction of the effect; gives it back. NULL (not found) is not remembered.
CREATE OR REPLACE FUNCTION service.settle(key bytea, fingerprint bytea, answer jsonb) RETURNS jsonb LANGUAGE sql AS $$
	INSERT INTO service.idempotency AS i (key, fingerprint, answer)
	SELECT settle.key, settle.fingerprint, settle.answer WHERE settle.answer IS NOT NULL;
	SELECT settle.answer;
$$;

-- Forgets answers, a bounded number at a time; how many.
CREATE OR REPLACE FUNCTION service.forget(keep interval) RETURNS bigint LANGUAGE sql AS $$
	WITH gone AS (
		DELETE FROM service.idempotency WHERE key IN (
			SELECT i.key FROM service.idempotency AS i WHERE i.created_at < now() - keep
			ORDER BY i.created_at LIMIT 5000 FOR UPDATE SKIP LOCKED)
		RETURNING 1)
	SELECT count(*) FROM gone
$$;

-- Keys that tokens are signed with (Ed25519). Whoever can read them can make tokens.
CREATE TABLE IF NOT EXISTS service.jwt_key (
	kid         text PRIMARY KEY,
	private_key bytea NOT NULL CHECK (octet_length(private_key) = 32),
	created_at  timestamptz NOT NULL DEFAULT now(),
	use_from    timestamptz NOT NULL
);
REVOKE ALL ON service.jwt_key FROM PUBLIC;

-- Takes the offered key when it is time for a new one, forgets those whose last token has ended, and gives them all.
CREATE OR REPLACE FUNCTION service.keys(kid text, private_key bytea, rotate interval, ahead interval, life interval)
RETURNS TABLE (key_id text, secret text, signs boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	newest timestamptz;
	used timestamptz;
BEGIN
	PERFORM pg_advisory_xact_lock(8101821198635721830);
	SELECT max(k.use_from) INTO newest FROM service.jwt_key AS k;
	IF newest IS NULL OR newest + rotate - ahead <= clock_timestamp() THEN
		INSERT INTO service.jwt_key AS k (kid, private_key, use_from)
		VALUES (keys.kid, keys.private_key,
			CASE WHEN newest IS NULL THEN clock_timestamp() ELSE clock_timestamp() + ahead END);
	END IF;
	SELECT max(k.use_from) INTO used FROM service.jwt_key AS k WHERE k.use_from <= clock_timestamp();
	-- A key signed until the next one did, and a little longer where that was not seen yet.
	DELETE FROM service.jwt_key AS k WHERE EXISTS (SELECT FROM service.jwt_key AS n
		WHERE n.use_from > k.use_from AND clock_timestamp() > n.use_from + ahead + life);
	RETURN QUERY SELECT k.kid, encode(k.private_key, 'hex'), k.use_from = used
		FROM service.jwt_key AS k ORDER BY k.use_from DESC;
END
$$;
