-- 0002_inbox -- the inbox: where consumers stand, which messages they have seen, what they hold back, roles.
-- Creates only; takes no lock that a running application could feel. PostgreSQL 13 and newer.
-- Every name is qualified: it runs under any search_path. The tables' story is in db/README.md.
-- Texts that stand in a key are COLLATE "C": one order for all who lock rows, whatever libc says.

CREATE SCHEMA IF NOT EXISTS inbox;
REVOKE ALL ON SCHEMA inbox FROM PUBLIC;

-- Roles belong to the cluster: another database may be creating them at this very moment.
DO $$
DECLARE
	wanted text;
BEGIN
	FOREACH wanted IN ARRAY ARRAY['inbox_consumer', 'inbox_operator'] LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
			BEGIN
				EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
			EXCEPTION WHEN duplicate_object OR unique_violation THEN
				NULL;
			END;
		END IF;
	END LOOP;
END
$$;

-- ---------------------------------------------------------------- what a SQL handler gets

CREATE TYPE inbox.message AS (
	id uuid,
	topic text,
	partition integer,
	message_offset bigint,
	key text,
	type text,
	payload jsonb,
	payload_bytes bytea,
	headers jsonb,
	"time" timestamptz
);
COMMENT ON TYPE inbox.message IS
	'one record; payload when it is JSON, payload_bytes when not, neither: a tombstone';

-- Before a message is handled: what is published from here on, in this transaction, carries on its trace and names it
-- as its cause. The runtime calls it for row functions; a set-based one may, once per message.
CREATE FUNCTION inbox.carry(message inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	trace text := message.headers ->> 'traceparent';
BEGIN
	IF trace COLLATE "C" !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' OR trace ~ '^ff|^..-0{32}|-0{16}-' THEN
		trace := NULL; -- a producer's mistake is no reason to fail
	END IF;
	PERFORM set_config('outbox.traceparent', coalesce(trace, ''), true),
		set_config('outbox.causation_id', coalesce(message.id::text, ''), true),
		set_config('outbox.correlation_id', coalesce(message.headers ->> 'correlation-id', message.id::text, ''), true);
END
$$;

-- ---------------------------------------------------------------- where consumers stand

CREATE TABLE inbox.position (
	"group" text COLLATE "C" NOT NULL,
	topic text COLLATE "C" NOT NULL,
	partition integer NOT NULL,
	lane integer NOT NULL,
	lane_count integer NOT NULL,
	next_offset bigint NOT NULL,
	epoch bigint NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY ("group", topic, partition, lane)
) WITH (fillfactor = 20);
COMMENT ON COLUMN inbox.position.next_offset IS
	'every record of this lane below it is done: handled, parked, buried or filtered; -1: nothing yet';
COMMENT ON COLUMN inbox.position.epoch IS
	'raised by each claim: whoever still has a lower one cannot commit any more';

-- Written before the handler runs, in a transaction of its own: what a crash leaves is in here.
CREATE TABLE inbox.attempt (
	"group" text COLLATE "C" NOT NULL,
	topic text COLLATE "C" NOT NULL,
	partition integer NOT NULL,
	lane integer NOT NULL,
	message_offset bigint NOT NULL,
	batch integer NOT NULL,
	attempts integer NOT NULL,
	ended integer NOT NULL DEFAULT 0,
	epoch bigint NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY ("group", topic, partition, lane)
) WITH (fillfactor = 20);
COMMENT ON COLUMN inbox.attempt.message_offset IS 'of the first message of the batch';
COMMENT ON COLUMN inbox.attempt.ended IS 'so many of the attempts failed and said so; the others took the process along';

-- What the operator wants of a group. The row is made by the group's first claim.
CREATE TABLE inbox.consumer (
	"group" text COLLATE "C" PRIMARY KEY,
	paused_at timestamptz,
	paused_by text,
	request bigint NOT NULL DEFAULT 0,
	lanes integer CHECK (lanes BETWEEN 1 AND 1024),
	keep interval,
	made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN inbox.consumer.made_at IS 'the group had handled nothing before: older ids are none of its';
COMMENT ON COLUMN inbox.consumer.request IS 'raised by the operator''s functions: consumers look at parked rows again';
COMMENT ON COLUMN inbox.consumer.lanes IS 'wanted instead of the config''s; NULL: the config''s';
COMMENT ON COLUMN inbox.consumer.keep IS 'how long this group needs its message ids: the longest of all groups holds';

-- ---------------------------------------------------------------- which messages were seen

-- The ids of all groups, in slots: one is open and takes new ids, the closed ones are only looked up, and
-- dropped as a whole. Unique per leaf: a unique index cannot span them, so inbox.remember looks.
CREATE TABLE inbox.seen (
	"group" text COLLATE "C" NOT NULL,
	message_id uuid NOT NULL,
	payload_hash bigint,
	slot integer NOT NULL
) PARTITION BY LIST (slot);
COMMENT ON TABLE inbox.seen IS 'message ids of the last inbox.keep; written by inbox.remember and inbox.sort_out only';

CREATE TABLE inbox.slot (
	slot integer PRIMARY KEY,
	opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	closed_at timestamptz,
	last_id uuid
);
CREATE UNIQUE INDEX slot_open ON inbox.slot ((closed_at IS NULL)) WHERE closed_at IS NULL;
COMMENT ON COLUMN inbox.slot.last_id IS
	'the greatest id in a closed slot: a batch of greater ones (version 7, so nearly all) need not be looked up there';

CREATE TABLE inbox.seen_1 PARTITION OF inbox.seen FOR VALUES IN (1);
CREATE UNIQUE INDEX seen_1_id ON inbox.seen_1 (message_id, "group");
INSERT INTO inbox.slot (slot) VALUES (1);

-- ---------------------------------------------------------------- what is held back

-- Blocking: a key that failed and what came behind it, in order; the head has a due_at, those behind it
-- none. Not blocking: dead letters on another try, in no order.
CREATE TABLE inbox.parked (
	entry bigserial PRIMARY KEY,
	"group" text COLLATE "C" NOT NULL,
	topic text COLLATE "C" NOT NULL,
	partition integer NOT NULL,
	message_offset bigint NOT NULL,
	lane_hash integer NOT NULL,
	key text,
	key_bytes bytea,
	id text,
	message_id uuid,
	type text,
	headers jsonb,
	payload bytea,
	"time" timestamptz,
	payload_hash bigint,
	blocking boolean NOT NULL DEFAULT true,
	class text,
	code text,
	reason text,
	attempts integer NOT NULL DEFAULT 0,
	due_at timestamptz,
	parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	failed_at timestamptz,
	request text CHECK (request IN ('retry', 'skip')),
	requested_at timestamptz,
	requested_by text,
	dead_letter bigint,
	begun integer NOT NULL DEFAULT 0,
	batch integer NOT NULL DEFAULT 0,
	CHECK (blocking OR due_at IS NOT NULL)
);
CREATE UNIQUE INDEX parked_place ON inbox.parked ("group", topic, partition, message_offset) WHERE blocking;
CREATE INDEX parked_due ON inbox.parked ("group", topic, partition, due_at) WHERE due_at IS NOT NULL;
-- A key may have megabytes, an index entry 2,700 bytes.
CREATE INDEX parked_key ON inbox.parked
	("group", topic, partition, substring(key_bytes FROM 1 FOR 100), message_offset) WHERE blocking;
COMMENT ON COLUMN inbox.parked.lane_hash IS 'it belongs to lane (lane_hash & 2147483647) % lane_count';
COMMENT ON COLUMN inbox.parked.due_at IS 'when it is tried next; NULL: it waits behind another of its key';
COMMENT ON COLUMN inbox.parked.failed_at IS 'when a try that was counted before failed and said so; NULL: none since it is here';
COMMENT ON COLUMN inbox.parked.dead_letter IS 'the dead letter it is another try of';
COMMENT ON COLUMN inbox.parked.begun IS 'so many tries were begun and have not ended: they took the process along, or it is under way';
COMMENT ON COLUMN inbox.parked.batch IS 'messages of these tries: it and those behind it';

CREATE TABLE inbox.dead_letter (
	entry bigserial PRIMARY KEY,
	"group" text COLLATE "C" NOT NULL,
	topic text COLLATE "C" NOT NULL,
	partition integer NOT NULL,
	message_offset bigint NOT NULL,
	lane_hash integer NOT NULL,
	key text,
	key_bytes bytea,
	id text,
	message_id uuid,
	type text,
	headers jsonb,
	payload bytea,
	"time" timestamptz,
	payload_hash bigint,
	class text,
	code text,
	reason text,
	attempts integer NOT NULL DEFAULT 0,
	first_failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	buried_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	state text NOT NULL DEFAULT 'dead' CHECK (state IN ('dead', 'retrying', 'retried', 'dropped')),
	retry_of bigint,
	edited_from bigint,
	edited_to bigint,
	published_at timestamptz,
	note text
);
CREATE INDEX dead_letter_state ON inbox.dead_letter ("group", state, entry);
CREATE INDEX dead_letter_unpublished ON inbox.dead_letter ("group", entry) WHERE published_at IS NULL AND state = 'dead';
CREATE INDEX dead_letter_retry_of ON inbox.dead_letter (retry_of) WHERE retry_of IS NOT NULL;
COMMENT ON COLUMN inbox.dead_letter.state IS
	'dead: waits for a decision; retrying: a copy is in inbox.parked; retried: that copy ended; dropped: given up';
COMMENT ON COLUMN inbox.dead_letter.retry_of IS 'the dead letter whose other try failed again and became this one';
COMMENT ON COLUMN inbox.dead_letter.published_at IS 'when it went to the dead-letter topic';

CREATE TABLE inbox.dead_letter_log (
	act bigserial PRIMARY KEY,
	entry bigint NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	by text,
	what text NOT NULL,
	detail jsonb
);
CREATE INDEX dead_letter_log_entry ON inbox.dead_letter_log (entry, act);
COMMENT ON TABLE inbox.dead_letter_log IS 'what became of dead letters and who wanted it; never changed';

-- ---------------------------------------------------------------- replay

CREATE TABLE inbox.replay (
	job bigserial PRIMARY KEY,
	"group" text COLLATE "C" NOT NULL,
	state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'done', 'cancelled', 'failed')),
	made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	made_by text,
	changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	changed_by text,
	note text
);
CREATE INDEX replay_live ON inbox.replay ("group", job) WHERE state IN ('running', 'paused');

CREATE TABLE inbox.replay_part (
	job bigint NOT NULL REFERENCES inbox.replay,
	topic text COLLATE "C" NOT NULL,
	partition integer NOT NULL,
	from_offset bigint NOT NULL CHECK (from_offset >= 0),
	to_offset bigint NOT NULL,
	next_offset bigint NOT NULL,
	handled bigint NOT NULL DEFAULT 0,
	duplicates bigint NOT NULL DEFAULT 0,
	begun integer NOT NULL DEFAULT 0,
	PRIMARY KEY (job, topic, partition),
	CHECK (to_offset >= from_offset)
) WITH (fillfactor = 50);
COMMENT ON TABLE inbox.replay_part IS 'from_offset <= offset < to_offset is read again; everything below next_offset was';
COMMENT ON COLUMN inbox.replay_part.begun IS
	'so often was it begun from next_offset on, and has not got on: it took the process along, or is under way';

-- ---------------------------------------------------------------- errors

CREATE FUNCTION inbox.refuse_arguments(problem text, advice text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'inbox: ' || problem, HINT = advice;
END
$$;

-- Under an older snapshot neither the open slot nor what others have inserted could be seen.
CREATE FUNCTION inbox.refuse_isolation() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
		MESSAGE = format('inbox: the transaction is %s, not READ COMMITTED', upper(current_setting('transaction_isolation'))),
		HINT = 'Under one old snapshot it could not see which messages others have handled meanwhile.';
END
$$;

-- ---------------------------------------------------------------- taking over and moving on

-- Takes partitions over: whoever had them before cannot commit any more. One row per lane; ord is the place in
-- the arrays, from 1. No attempt known: offset -1, batch 0, attempts 0. Waits for transactions of
-- the old owner that have advanced already, and then returns what they committed.
-- Lane 0 is the mutex of its partition and never deleted; rows are locked in the order of the primary key.
CREATE FUNCTION inbox.claim("group" text, topics text[], partitions integer[], lanes integer)
RETURNS TABLE (ord integer, lane integer, lane_count integer, next_offset bigint, epoch bigint,
	attempt_offset bigint, attempt_batch integer, attempts integer, ended integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	part record;
	stand record;
	stored integer;
	wanted integer;
BEGIN
	IF claim."group" IS NULL OR claim."group" = '' OR lanes IS NULL OR lanes NOT BETWEEN 1 AND 1024
		OR cardinality(topics) IS DISTINCT FROM cardinality(partitions) OR topics IS NULL THEN
		PERFORM inbox.refuse_arguments(format('claim of %s topics and %s partitions with %s lanes by group %s',
			coalesce(cardinality(topics)::text, 'NULL'), coalesce(cardinality(partitions)::text, 'NULL'),
			coalesce(lanes::text, 'NULL'), coalesce(quote_literal(claim."group"), 'NULL')),
			'Give a group, 1 to 1024 lanes, and as many topics as partitions.');
	END IF;
	IF EXISTS (SELECT FROM unnest(topics, partitions) AS u (t, p) GROUP BY t, p HAVING count(*) > 1) THEN
		PERFORM inbox.refuse_arguments('a partition is claimed twice in one call', 'Name each partition once.');
	END IF;
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		PERFORM inbox.refuse_isolation();
	END IF;
	INSERT INTO inbox.consumer ("group") VALUES (claim."group") ON CONFLICT DO NOTHING;
	FOR part IN SELECT t, p FROM unnest(topics, partitions) AS u (t, p) ORDER BY t COLLATE "C", p LOOP
		INSERT INTO inbox.position ("group", topic, partition, lane, lane_count, next_offset, epoch)
		VALUES (claim."group", part.t, part.p, 0, claim.lanes, -1, 0) ON CONFLICT DO NOTHING;
		SELECT o.lane_count INTO stored FROM inbox.position AS o
		WHERE o."group" = claim."group" AND o.topic = part.t AND o.partition = part.p AND o.lane = 0 FOR UPDATE;
		PERFORM FROM inbox.position AS o
		WHERE o."group" = claim."group" AND o.topic = part.t AND o.partition = part.p ORDER BY o.lane FOR UPDATE;
		SELECT min(o.next_offset) AS low, max(o.next_offset) AS high, max(o.epoch) AS epoch INTO stand
		FROM inbox.position AS o
		WHERE o."group" = claim."group" AND o.topic = part.t AND o.partition = part.p;
		wanted := stored;
		IF stored <> claim.lanes AND stand.low = stand.high THEN
			wanted := claim.lanes;
			DELETE FROM inbox.position AS o
			WHERE o."group" = claim."group" AND o.topic = part.t AND o.partition = part.p AND o.lane >= wanted;
			DELETE FROM inbox.attempt AS a
			WHERE a."group" = claim."group" AND a.topic = part.t AND a.partition = part.p;
		END IF;
		INSERT INTO inbox.position ("group", topic, partition, lane, lane_count, next_offset, epoch)
		SELECT claim."group", part.t, part.p, n, wanted, stand.low, 0 FROM generate_series(1, wanted - 1) AS n
		ON CONFLICT DO NOTHING;
		UPDATE inbox.position AS o SET lane_count = wanted, epoch = stand.epoch + 1, updated_at = clock_timestamp()
		WHERE o."group" = claim."group" AND o.topic = part.t AND o.partition = part.p;
	END LOOP;
	RETURN QUERY
	SELECT u.n::integer, o.lane, o.lane_count, o.next_offset, o.epoch,
		coalesce(a.message_offset, -1), coalesce(a.batch, 0), coalesce(a.attempts, 0), coalesce(a.ended, 0)
	FROM unnest(topics, partitions) WITH ORDINALITY AS u (t, p, n)
	JOIN inbox.position AS o ON o."group" = claim."group" AND o.topic = u.t AND o.partition = u.p
	LEFT JOIN inbox.attempt AS a ON a."group" = o."group" AND a.topic = o.topic AND a.partition = o.partition
		AND a.lane = o.lane
	ORDER BY u.n, o.lane;
END
$$;

-- Counts a try, before it is made. In a transaction of its own: it makes that one's commit asynchronous,
-- because a try that a crash of the database forgets costs one more try, and a flush costs milliseconds.
CREATE FUNCTION inbox.attempt("group" text, topics text[], partitions integer[], lanes integer[], offsets bigint[],
	batches integer[], epochs bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);
	INSERT INTO inbox.attempt AS a ("group", topic, partition, lane, message_offset, batch, attempts, epoch)
	SELECT attempt."group", u.t, u.p, u.l, u.o, u.b, 1, u.e
	FROM unnest(topics, partitions, lanes, offsets, batches, epochs) AS u (t, p, l, o, b, e)
	ORDER BY u.t COLLATE "C", u.p, u.l
	ON CONFLICT ("group", topic, partition, lane) DO UPDATE SET
		attempts = CASE WHEN a.message_offset = EXCLUDED.message_offset AND a.batch = EXCLUDED.batch
			THEN a.attempts + 1 ELSE 1 END,
		ended = CASE WHEN a.message_offset = EXCLUDED.message_offset AND a.batch = EXCLUDED.batch THEN a.ended ELSE 0 END,
		message_offset = EXCLUDED.message_offset, batch = EXCLUDED.batch, epoch = EXCLUDED.epoch, at = EXCLUDED.at
	WHERE a.epoch <= EXCLUDED.epoch;
END
$$;

-- The last try of a message that was alone has ended without a commit, and there will be another one. counts: it
-- is the message that failed; else the try is as if it had not been.
CREATE FUNCTION inbox.attempt_ended("group" text, topic text, partition integer, lane integer, message_offset bigint,
	epoch bigint, counts boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);
	UPDATE inbox.attempt AS a SET attempts = a.attempts - (NOT counts)::integer, ended = a.ended + counts::integer
	WHERE a."group" = attempt_ended."group" AND a.topic = attempt_ended.topic AND a.partition = attempt_ended.partition
	  AND a.lane = attempt_ended.lane AND a.message_offset = attempt_ended.message_offset
	  AND a.epoch = attempt_ended.epoch AND a.batch = 1 AND a.attempts > a.ended;
END
$$;

-- Says which lane is not ours, and raises PRF01. Only called when one is not.
CREATE FUNCTION inbox.fence("group" text, topic text, partition integer, lane integer, epoch bigint, expected bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	now record;
BEGIN
	SELECT o.epoch, o.next_offset INTO now FROM inbox.position AS o
	WHERE o."group" = fence."group" AND o.topic = fence.topic AND o.partition = fence.partition AND o.lane = fence.lane;
	RAISE EXCEPTION USING ERRCODE = 'PRF01',
		MESSAGE = format('inbox: group %s does not own %s [%s] lane %s any more', fence."group", fence.topic,
			fence.partition, fence.lane),
		DETAIL = format('Ours: epoch %s at offset %s. Stored: %s.', coalesce(fence.epoch::text, 'NULL'),
			coalesce(expected::text, 'NULL'),
			coalesce(format('epoch %s at offset %s', now.epoch, now.next_offset), 'nothing'));
END
$$;

-- Moves lanes on, all of them or error PRF01: the effects of whoever lost a partition never commit.
-- next = expected only proves that they are still ours.
CREATE FUNCTION inbox.advance("group" text, topics text[], partitions integer[], lanes integer[], epochs bigint[],
	expected bigint[], next bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	part record;
BEGIN
	-- One by one: an UPDATE ... FROM locks in the order that its plan likes.
	FOR part IN SELECT t, p, l, e, x, n FROM unnest(topics, partitions, lanes, epochs, expected, next) AS u (t, p, l, e, x, n)
		ORDER BY t COLLATE "C", p, l LOOP
		IF part.n < part.x THEN
			PERFORM inbox.refuse_arguments(format('%s [%s] lane %s would go back from %s to %s', part.t, part.p,
				part.l, part.x, part.n), 'Positions only grow.');
		END IF;
		UPDATE inbox.position AS o SET next_offset = part.n, updated_at = clock_timestamp()
		WHERE o."group" = advance."group" AND o.topic = part.t AND o.partition = part.p AND o.lane = part.l
		  AND o.epoch = part.e AND o.next_offset = part.x;
		IF NOT FOUND THEN
			PERFORM inbox.fence(advance."group", part.t, part.p, part.l, part.e, part.x);
		END IF;
	END LOOP;
END
$$;

-- ---------------------------------------------------------------- ids

-- Inserts ids into the open slot; error PRD01 when one was seen already, or stands twice in ids.
--
-- Why a rotation beside it loses nothing: everybody who inserts holds this lock shared to the end of his
-- transaction, inbox.rotate holds it alone. So when a slot is closed, nothing in it is uncommitted, nothing is
-- added later, and whoever writes into the next slot sees all of it: two transactions with one id either meet in
-- the unique index of the same open slot, or one of them has ended before the other looks. The slots are
-- read after the lock is there, each statement here under its own snapshot.
-- Sorted: two of us with the same ids in another order would deadlock. A plain INSERT, because ON CONFLICT
-- DO NOTHING costs twice as much (figures in db/README.md). The plans: no enable_seqscan, because a plan made while
-- the slots were small must do when they are large; no jit, because the price of what is disabled would set it off.
CREATE FUNCTION inbox.remember("group" text, ids uuid[], hashes bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	open_slot integer;
	older integer[];
	again boolean;
BEGIN
	IF cardinality(ids) IS DISTINCT FROM cardinality(hashes) THEN
		PERFORM inbox.refuse_arguments('as many hashes as ids, please', 'A hash may be NULL.');
	END IF;
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		PERFORM inbox.refuse_isolation();
	END IF;
	PERFORM pg_advisory_xact_lock_shared(7309475598860182631);
	SELECT max(s.slot) FILTER (WHERE s.closed_at IS NULL),
		array_agg(s.slot) FILTER (WHERE s.last_id >= (SELECT u FROM unnest(ids) AS u ORDER BY u LIMIT 1))
	INTO open_slot, older FROM inbox.slot AS s;
	BEGIN
		INSERT INTO inbox.seen ("group", message_id, payload_hash, slot)
		SELECT remember."group", u.id, u.hash, open_slot
		FROM (SELECT unnest(ids) AS id, unnest(hashes) AS hash) AS u ORDER BY u.id;
		again := older IS NOT NULL AND EXISTS (
			SELECT FROM inbox.seen AS s
			WHERE s.slot = ANY (older) AND s.message_id = ANY (ids) AND s."group" = remember."group");
	EXCEPTION WHEN unique_violation THEN
		again := true;
	END;
	IF again THEN
		RAISE EXCEPTION USING ERRCODE = 'PRD01',
			MESSAGE = format('inbox: group %s has seen one of these %s messages before', remember."group",
				cardinality(ids)),
			HINT = 'inbox.sort_out says which.';
	END IF;
END
$$;

-- One number per id, in order: 0 new, and remembered from now on; 1 seen; 2 seen with another payload.
CREATE FUNCTION inbox.sort_out("group" text, ids uuid[], hashes bigint[]) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
	open_slot integer;
	added uuid[];
BEGIN
	IF cardinality(ids) IS DISTINCT FROM cardinality(hashes) THEN
		PERFORM inbox.refuse_arguments('as many hashes as ids, please', 'A hash may be NULL.');
	END IF;
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		PERFORM inbox.refuse_isolation();
	END IF;
	PERFORM pg_advisory_xact_lock_shared(7309475598860182631); -- as in inbox.remember
	SELECT s.slot INTO open_slot FROM inbox.slot AS s WHERE s.closed_at IS NULL;
	WITH first AS MATERIALIZED (
		SELECT DISTINCT ON (u.id) u.id, u.hash
		FROM unnest(ids, hashes) WITH ORDINALITY AS u (id, hash, n) ORDER BY u.id, u.n
	), new AS (
		INSERT INTO inbox.seen ("group", message_id, payload_hash, slot)
		SELECT sort_out."group", f.id, f.hash, open_slot FROM first AS f
		WHERE NOT EXISTS (
			SELECT FROM inbox.seen AS s
			WHERE s.slot <> open_slot AND s.message_id = f.id AND s."group" = sort_out."group")
		ORDER BY f.id
		ON CONFLICT DO NOTHING RETURNING message_id
	)
	SELECT array_agg(new.message_id) INTO added FROM new;
	RETURN QUERY
	SELECT CASE WHEN u.again = 1 AND u.id = ANY (added) THEN 0
		WHEN u.hash IS DISTINCT FROM (
			SELECT s.payload_hash FROM inbox.seen AS s
			WHERE s.message_id = u.id AND s."group" = sort_out."group" LIMIT 1) THEN 2
		ELSE 1 END
	FROM (SELECT w.id, w.hash, w.n, row_number() OVER (PARTITION BY w.id ORDER BY w.n) AS again
		FROM unnest(ids, hashes) WITH ORDINALITY AS w (id, hash, n)) AS u
	ORDER BY u.n;
END
$$;

-- The same answer without remembering anything.
CREATE FUNCTION inbox.look("group" text, ids uuid[], hashes bigint[]) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
	IF cardinality(ids) IS DISTINCT FROM cardinality(hashes) THEN
		PERFORM inbox.refuse_arguments('as many hashes as ids, please', 'A hash may be NULL.');
	END IF;
	RETURN QUERY
	SELECT CASE
		WHEN k.slot IS NULL AND u.again = 1 THEN 0
		WHEN u.hash IS DISTINCT FROM CASE WHEN k.slot IS NULL THEN u.first ELSE k.payload_hash END THEN 2
		ELSE 1 END
	FROM (SELECT w.id, w.hash, w.n, row_number() OVER (PARTITION BY w.id ORDER BY w.n) AS again,
			first_value(w.hash) OVER (PARTITION BY w.id ORDER BY w.n) AS first
		FROM unnest(ids, hashes) WITH ORDINALITY AS w (id, hash, n)) AS u
	LEFT JOIN LATERAL (
		SELECT s.slot, s.payload_hash FROM inbox.seen AS s
		WHERE s.message_id = u.id AND s."group" = look."group" LIMIT 1) AS k ON true
	ORDER BY u.n;
END
$$;

-- Notes how long a group needs its ids, and returns since when they are all there: -infinity when
-- none was ever dropped. A consumer whose horizon lies before that, and which is older, must not start.
CREATE FUNCTION inbox.keep("group" text, keep interval) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	IF keep.keep IS NULL OR keep.keep < interval '0' OR coalesce(keep."group", '') = '' THEN
		PERFORM inbox.refuse_arguments('a group and how long it needs its ids, please', 'Give an interval such as 7 days.');
	END IF;
	INSERT INTO inbox.consumer AS c ("group", keep) VALUES (keep."group", keep.keep)
	ON CONFLICT ("group") DO UPDATE SET keep = EXCLUDED.keep WHERE c.keep IS DISTINCT FROM EXCLUDED.keep;
	RETURN (SELECT CASE WHEN s.slot = 1 THEN '-infinity' ELSE s.opened_at END FROM inbox.slot AS s ORDER BY s.slot LIMIT 1);
END
$$;

-- Opens a new slot when the open one is older than half of keep, and drops those that were closed longer than
-- keep ago: an id lives for keep at least. Of several groups' keep the longest holds. Returns how
-- many slots it opened and dropped; 0 when nothing was due, or another call is at it. Error 55P03 when the running
-- transactions did not end in time: call again. The longer it is overdue the longer it waits, at most 30 s, since
-- all who want to remember queue behind it. A drop waits 50 ms.
CREATE FUNCTION inbox.rotate(keep interval) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
#variable_conflict use_column
DECLARE
	longest interval;
	full_slot integer;
	old record;
	overdue double precision;
	last uuid;
	done integer := 0;
BEGIN
	IF rotate.keep IS NULL OR rotate.keep < interval '0' THEN
		PERFORM inbox.refuse_arguments('ids cannot be kept for ' || coalesce(rotate.keep::text, 'NULL'),
			'Give an interval such as 7 days.');
	END IF;
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		PERFORM inbox.refuse_isolation();
	END IF;
	SELECT greatest(rotate.keep, max(c.keep)) INTO longest FROM inbox.consumer AS c;
	IF NOT EXISTS (SELECT FROM inbox.slot AS s WHERE s.closed_at IS NULL AND s.opened_at < clock_timestamp() - longest / 2
		OR s.closed_at < clock_timestamp() - longest) OR NOT pg_try_advisory_xact_lock(7309475598860182632) THEN
		RETURN 0;
	END IF;
	SELECT extract(epoch FROM max(clock_timestamp() - longest / 2 - s.opened_at)) INTO overdue
	FROM inbox.slot AS s WHERE s.closed_at IS NULL;
	PERFORM set_config('lock_timeout', least(30000, greatest(50, overdue))::integer || 'ms', true);
	PERFORM pg_advisory_xact_lock(7309475598860182631);
	PERFORM set_config('lock_timeout', '50ms', true); -- nobody remembers until we are done
	SELECT s.slot INTO full_slot FROM inbox.slot AS s
	WHERE s.closed_at IS NULL AND s.opened_at < clock_timestamp() - longest / 2;
	IF FOUND THEN
		EXECUTE format('SELECT message_id FROM inbox.%I ORDER BY message_id DESC LIMIT 1', 'seen_' || full_slot) INTO last;
		UPDATE inbox.slot AS s SET closed_at = clock_timestamp(), last_id = last WHERE s.slot = full_slot;
		INSERT INTO inbox.slot (slot) VALUES (full_slot + 1);
		EXECUTE format('CREATE TABLE inbox.%I (LIKE inbox.seen)', 'seen_' || full_slot + 1);
		EXECUTE format('CREATE UNIQUE INDEX %I ON inbox.%I (message_id, "group")', 'seen_' || full_slot + 1 || '_id',
			'seen_' || full_slot + 1);
		EXECUTE format('ALTER TABLE inbox.seen ATTACH PARTITION inbox.%I FOR VALUES IN (%s)', 'seen_' || full_slot + 1,
			full_slot + 1);
		done := 1;
	END IF;
	FOR old IN SELECT s.slot FROM inbox.slot AS s WHERE s.closed_at < clock_timestamp() - longest ORDER BY s.slot LOOP
		BEGIN
			EXECUTE format('DROP TABLE inbox.%I', 'seen_' || old.slot);
			DELETE FROM inbox.slot AS s WHERE s.slot = old.slot;
			done := done + 1;
		EXCEPTION WHEN lock_not_available THEN -- somebody reads inbox.seen: next time
			EXIT;
		END;
	END LOOP;
	RETURN done;
END
$$;

-- ---------------------------------------------------------------- holding back

-- Raises PRF01: what a lane wanted to finish is gone; somebody else did.
CREATE FUNCTION inbox.gone(what text, entry bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'PRF01', MESSAGE = format('inbox: %s %s is not there any more', what, entry),
		DETAIL = 'Another member or an operator was faster.';
END
$$;

-- Holds a message back; delay NULL: behind another of its key. Returns its entry; the one there already when it
-- is held back already. Without any before it that it could wait behind, it is due at once.
CREATE FUNCTION inbox.park("group" text, topic text, partition integer, message_offset bigint, lane_hash integer,
	key text, key_bytes bytea, id text, message_id uuid, type text, headers jsonb, payload bytea, "time" timestamptz,
	payload_hash bigint, class text, code text, reason text, attempts integer, delay interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	made bigint;
	due timestamptz := clock_timestamp() + delay;
BEGIN
	IF delay IS NULL AND NOT EXISTS (
		SELECT FROM inbox.parked AS p
		WHERE p."group" = park."group" AND p.topic = park.topic AND p.partition = park.partition AND p.blocking
		  AND substring(p.key_bytes FROM 1 FOR 100) = substring(park.key_bytes FROM 1 FOR 100)
		  AND p.key_bytes = park.key_bytes AND p.message_offset < park.message_offset) THEN
		due := clock_timestamp();
	END IF;
	INSERT INTO inbox.parked ("group", topic, partition, message_offset, lane_hash, key, key_bytes, id, message_id, type,
		headers, payload, "time", payload_hash, class, code, reason, attempts, due_at)
	VALUES (park."group", park.topic, park.partition, park.message_offset, park.lane_hash, park.key, park.key_bytes,
		park.id, park.message_id, park.type, park.headers, park.payload, park."time", park.payload_hash, park.class,
		park.code, park.reason, coalesce(park.attempts, 0), due)
	ON CONFLICT DO NOTHING RETURNING entry INTO made;
	IF made IS NULL THEN
		SELECT p.entry INTO made FROM inbox.parked AS p
		WHERE p."group" = park."group" AND p.topic = park.topic AND p.partition = park.partition
		  AND p.message_offset = park.message_offset AND p.blocking;
	END IF;
	RETURN made;
END
$$;

-- Takes messages of one key out, from its head on; error PRF01 when one is gone. The next of the key becomes due:
-- its entry is returned, NULL when there is none.
CREATE FUNCTION inbox.unpark(entries bigint[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	gone record;
	follower bigint;
	deleted bigint;
BEGIN
	SELECT p."group", p.topic, p.partition, p.key_bytes, p.blocking INTO gone FROM inbox.parked AS p
	WHERE p.entry = entries[1];
	DELETE FROM inbox.parked AS p WHERE p.entry = ANY (entries);
	GET DIAGNOSTICS deleted = ROW_COUNT;
	IF deleted IS DISTINCT FROM cardinality(entries) THEN
		PERFORM inbox.gone('parked message', entries[1]);
	END IF;
	IF gone.blocking AND gone.key_bytes IS NOT NULL THEN
		SELECT p.entry INTO follower FROM inbox.parked AS p
		WHERE p."group" = gone."group" AND p.topic = gone.topic AND p.partition = gone.partition AND p.blocking
		  AND substring(p.key_bytes FROM 1 FOR 100) = substring(gone.key_bytes FROM 1 FOR 100)
		  AND p.key_bytes = gone.key_bytes
		ORDER BY p.message_offset LIMIT 1;
		UPDATE inbox.parked AS p SET due_at = clock_timestamp() WHERE p.entry = follower AND p.due_at IS NULL;
	END IF;
	RETURN follower;
END
$$;

CREATE FUNCTION inbox.unpark(entry bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN inbox.unpark(ARRAY[entry]);
END
$$;

-- Counts a try of a parked message and of the batch - 1 behind it, before it is made; in a transaction of its own, whose
-- commit it makes asynchronous (as inbox.attempt). Due again after delay, unless something comes of it. Error PRF01
-- when it is gone. Who asked to skip it meanwhile is not forgotten.
CREATE FUNCTION inbox.parked_begun(entry bigint, batch integer, delay interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);
	UPDATE inbox.parked AS p SET attempts = p.attempts + (parked_begun.batch = 1)::integer,
		begun = CASE WHEN p.batch = parked_begun.batch THEN p.begun + 1 ELSE 1 END, batch = parked_begun.batch,
		due_at = clock_timestamp() + CASE WHEN p.request = 'skip' THEN interval '0' ELSE coalesce(delay, interval '0') END,
		request = CASE WHEN p.request = 'skip' THEN p.request END,
		requested_at = CASE WHEN p.request = 'skip' THEN p.requested_at END,
		requested_by = CASE WHEN p.request = 'skip' THEN p.requested_by END
	WHERE p.entry = parked_begun.entry;
	IF NOT FOUND THEN
		PERFORM inbox.gone('parked message', parked_begun.entry);
	END IF;
END
$$;

-- The last try was cut short, by a stop or a failure of another message of its batch: as if it had not been begun, and
-- due now. Nothing happens when it is gone.
CREATE FUNCTION inbox.parked_unbegun(entry bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);
	UPDATE inbox.parked AS p SET attempts = p.attempts - (p.batch = 1)::integer, begun = p.begun - 1,
		due_at = clock_timestamp()
	WHERE p.entry = parked_unbegun.entry AND p.begun > 0;
END
$$;

-- A parked message failed again. Error PRF01 when it is gone. Who asked to skip it meanwhile is not forgotten.
CREATE FUNCTION inbox.parked_failed(entry bigint, class text, code text, reason text, attempts integer, delay interval)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE inbox.parked AS p SET class = parked_failed.class, code = parked_failed.code, reason = parked_failed.reason,
		attempts = parked_failed.attempts, begun = 0,
		failed_at = CASE WHEN p.attempts = parked_failed.attempts THEN clock_timestamp() ELSE p.failed_at END,
		due_at = clock_timestamp() + CASE WHEN p.request = 'skip' THEN interval '0' ELSE coalesce(delay, interval '0') END,
		request = CASE WHEN p.request = 'skip' THEN p.request END,
		requested_at = CASE WHEN p.request = 'skip' THEN p.requested_at END,
		requested_by = CASE WHEN p.request = 'skip' THEN p.requested_by END
	WHERE p.entry = parked_failed.entry;
	IF NOT FOUND THEN
		PERFORM inbox.gone('parked message', parked_failed.entry);
	END IF;
END
$$;

-- What is due of these lanes, the longest due first. Look at request before trying: skip means inbox.skip.
CREATE FUNCTION inbox.parked_due("group" text, topics text[], partitions integer[], lanes integer[],
	lane_counts integer[], most integer) RETURNS SETOF inbox.parked
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT p.* FROM inbox.parked AS p WHERE p.entry = ANY (ARRAY(
		SELECT d.entry FROM unnest(topics, partitions, lanes, lane_counts) AS u (t, p, l, n)
		CROSS JOIN LATERAL (
			SELECT q.entry, q.due_at FROM inbox.parked AS q
			WHERE q."group" = parked_due."group" AND q.topic = u.t AND q.partition = u.p
			  AND q.due_at <= clock_timestamp() AND (q.lane_hash & 2147483647) % u.n = u.l
			ORDER BY q.due_at LIMIT most) AS d
		ORDER BY d.due_at, d.entry LIMIT most))
	ORDER BY p.due_at, p.entry;
END
$$;

-- The blocking rows of one key, in order; at most most of them. A message without a key has none behind it.
CREATE FUNCTION inbox.parked_next("group" text, topic text, partition integer, key_bytes bytea, most integer DEFAULT 1000)
RETURNS SETOF inbox.parked LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT p.* FROM inbox.parked AS p
	WHERE p."group" = parked_next."group" AND p.topic = parked_next.topic AND p.partition = parked_next.partition
	  AND p.blocking AND substring(p.key_bytes FROM 1 FOR 100) = substring(parked_next.key_bytes FROM 1 FOR 100)
	  AND p.key_bytes = parked_next.key_bytes
	ORDER BY p.message_offset LIMIT most;
END
$$;

-- The keys that these lanes hold back: for their memory. Messages without a key hold nothing back. Found by their
-- heads, since a hundred thousand may wait behind one.
CREATE FUNCTION inbox.parked_keys("group" text, topics text[], partitions integer[], lanes integer[],
	lane_counts integer[])
RETURNS TABLE (topic text, partition integer, key_bytes bytea, parked_at timestamptz, due_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT p.topic::text, p.partition, p.key_bytes, p.parked_at, p.due_at
	FROM unnest(topics, partitions, lanes, lane_counts) AS u (t, p, l, n)
	JOIN inbox.parked AS p ON p."group" = parked_keys."group" AND p.topic = u.t AND p.partition = u.p
	WHERE p.blocking AND p.due_at IS NOT NULL AND p.key_bytes IS NOT NULL
	  AND (p.lane_hash & 2147483647) % u.n = u.l;
END
$$;

-- Gives a message up for now. parked: the entry it leaves (the next of its key becomes due); dead_letter: the
-- one that it was another try of, which ends with a link to the new entry. Error PRF01 when parked is gone.
CREATE FUNCTION inbox.bury("group" text, topic text, partition integer, message_offset bigint, lane_hash integer,
	key text, key_bytes bytea, id text, message_id uuid, type text, headers jsonb, payload bytea, "time" timestamptz,
	payload_hash bigint, class text, code text, reason text, attempts integer, parked bigint, dead_letter bigint)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	made bigint;
	failed timestamptz;
	before timestamptz;
BEGIN
	IF bury.parked IS NOT NULL THEN
		SELECT p.parked_at INTO failed FROM inbox.parked AS p WHERE p.entry = bury.parked;
		PERFORM inbox.unpark(bury.parked);
	END IF;
	IF bury.dead_letter IS NOT NULL THEN
		UPDATE inbox.dead_letter AS d SET state = 'retried' WHERE d.entry = bury.dead_letter AND d.state = 'retrying'
		RETURNING d.first_failed_at INTO before;
		IF NOT FOUND THEN
			PERFORM inbox.gone('retried dead letter', bury.dead_letter);
		END IF;
	END IF;
	INSERT INTO inbox.dead_letter ("group", topic, partition, message_offset, lane_hash, key, key_bytes, id, message_id,
		type, headers, payload, "time", payload_hash, class, code, reason, attempts, first_failed_at, retry_of)
	VALUES (bury."group", bury.topic, bury.partition, bury.message_offset, bury.lane_hash, bury.key, bury.key_bytes,
		bury.id, bury.message_id, bury.type, bury.headers, bury.payload, bury."time", bury.payload_hash, bury.class,
		bury.code, bury.reason, coalesce(bury.attempts, 0), coalesce(before, failed, clock_timestamp()), bury.dead_letter)
	RETURNING entry INTO made;
	IF bury.dead_letter IS NOT NULL THEN
		INSERT INTO inbox.dead_letter_log (entry, what, detail) VALUES (bury.dead_letter, 'failed again',
			jsonb_build_object('before', jsonb_build_object('state', 'retrying'),
				'after', jsonb_build_object('state', 'retried', 'dead_letter', made)));
	END IF;
	RETURN made;
END
$$;

-- Another try of a dead letter went well. Error PRF01 when it was not being retried.
CREATE FUNCTION inbox.retried(dead_letter bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE inbox.dead_letter AS d SET state = 'retried' WHERE d.entry = retried.dead_letter AND d.state = 'retrying';
	IF NOT FOUND THEN
		PERFORM inbox.gone('retried dead letter', retried.dead_letter);
	END IF;
	INSERT INTO inbox.dead_letter_log (entry, what, detail) VALUES (retried.dead_letter, 'retried',
		'{"before": {"state": "retrying"}, "after": {"state": "retried"}}');
END
$$;

-- Does what the operator asked for (request = skip): the parked message becomes a dropped dead letter,
-- whose entry is returned; the next of its key is due. Error PRF01 when it is gone or nobody asked.
CREATE FUNCTION inbox.skip(parked bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	held inbox.parked;
	made bigint;
BEGIN
	SELECT p.* INTO held FROM inbox.parked AS p WHERE p.entry = skip.parked AND p.request = 'skip' FOR UPDATE;
	IF NOT FOUND THEN
		PERFORM inbox.gone('parked message to skip,', skip.parked);
	END IF;
	PERFORM inbox.unpark(skip.parked);
	made := held.dead_letter;
	IF made IS NOT NULL THEN
		UPDATE inbox.dead_letter AS d SET state = 'dropped' WHERE d.entry = made;
	ELSE
		INSERT INTO inbox.dead_letter ("group", topic, partition, message_offset, lane_hash, key, key_bytes, id,
			message_id, type, headers, payload, "time", payload_hash, class, code, reason, attempts, first_failed_at, state)
		VALUES (held."group", held.topic, held.partition, held.message_offset, held.lane_hash, held.key, held.key_bytes, held.id,
			held.message_id, held.type, held.headers, held.payload, held."time", held.payload_hash, held.class, held.code,
			held.reason, held.attempts, held.parked_at, 'dropped')
		RETURNING entry INTO made;
	END IF;
	INSERT INTO inbox.dead_letter_log (entry, by, what, detail) VALUES (made, held.requested_by, 'skip',
		jsonb_build_object('before', jsonb_build_object('parked', skip.parked, 'attempts', held.attempts),
			'after', jsonb_build_object('state', 'dropped')));
	RETURN made;
END
$$;

-- These went to the dead-letter topic. Returns how many were new.
CREATE FUNCTION inbox.dlq_published(entries bigint[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	UPDATE inbox.dead_letter AS d SET published_at = clock_timestamp()
	WHERE d.entry = ANY (entries) AND d.published_at IS NULL;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
$$;

-- ---------------------------------------------------------------- for people and metrics

-- One row, also for a group that never ran. remembered_since: as inbox.keep.
CREATE FUNCTION inbox.stats("group" text)
RETURNS TABLE (paused_at timestamptz, paused_by text, request bigint, lanes integer, partitions bigint,
	parked_events bigint, parked_keys bigint, parked_oldest timestamptz, retrying bigint, dead_letters bigint,
	dead_oldest timestamptz, replays bigint, remembered_since timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT c.paused_at, c.paused_by, coalesce(c.request, 0), c.lanes,
		(SELECT count(*) FROM inbox.position AS o WHERE o."group" = stats."group" AND o.lane = 0),
		p.events, p.keys, p.oldest, p.retrying, d.events, d.oldest,
		(SELECT count(*) FROM inbox.replay AS r WHERE r."group" = stats."group" AND r.state = 'running'),
		(SELECT CASE WHEN s.slot = 1 THEN '-infinity' ELSE s.opened_at END FROM inbox.slot AS s ORDER BY s.slot LIMIT 1)
	FROM (SELECT (SELECT count(*) FROM inbox.parked AS r WHERE r."group" = stats."group" AND r.blocking) AS events,
			count(*) FILTER (WHERE q.blocking) AS keys, min(q.parked_at) FILTER (WHERE q.blocking) AS oldest,
			count(*) FILTER (WHERE NOT q.blocking) AS retrying
		-- Heads and retries: each key has one head, which is its oldest.
		FROM inbox.parked AS q WHERE q."group" = stats."group" AND q.due_at IS NOT NULL) AS p
	CROSS JOIN (SELECT count(*) AS events, min(e.buried_at) AS oldest FROM inbox.dead_letter AS e
		WHERE e."group" = stats."group" AND e.state = 'dead') AS d
	LEFT JOIN inbox.consumer AS c ON c."group" = stats."group";
END
$$;

CREATE VIEW inbox.overview AS
SELECT c."group"::text AS "group", s.partitions, s.paused_at IS NOT NULL AS paused, s.parked_events, s.parked_keys,
	s.parked_oldest, s.retrying, s.dead_letters, s.dead_oldest, s.replays,
	(SELECT max(o.updated_at) FROM inbox.position AS o WHERE o."group" = c."group") AS moved_at
FROM inbox.consumer AS c CROSS JOIN LATERAL inbox.stats(c."group") AS s;
COMMENT ON VIEW inbox.overview IS 'one row per consumer group; the lag is Kafka''s to tell: see postrider status';

-- ---------------------------------------------------------------- the operator's levers

-- Makes the members of a group look at what is held back now.
CREATE FUNCTION inbox.request("group" text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE inbox.consumer AS c SET request = c.request + 1 WHERE c."group" = request."group";
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('inbox: no consumer of group %s has run on this inbox yet', coalesce(quote_literal(request."group"), 'NULL')),
			HINT = 'SELECT "group" FROM inbox.consumer shows those that have.';
	END IF;
END
$$;

-- False when it was so already.
CREATE FUNCTION inbox.pause("group" text, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	changed boolean;
BEGIN
	UPDATE inbox.consumer AS c SET paused_at = clock_timestamp(), paused_by = by
	WHERE c."group" = pause."group" AND c.paused_at IS NULL;
	changed := FOUND;
	PERFORM inbox.request(pause."group");
	RETURN changed;
END
$$;

CREATE FUNCTION inbox.resume("group" text, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	changed boolean;
BEGIN
	UPDATE inbox.consumer AS c SET paused_at = NULL, paused_by = by
	WHERE c."group" = resume."group" AND c.paused_at IS NOT NULL;
	changed := FOUND;
	PERFORM inbox.request(resume."group");
	RETURN changed;
END
$$;

-- How many lanes a partition shall have, once it is drained; NULL: as configured.
CREATE FUNCTION inbox.set_lanes("group" text, lanes integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE inbox.consumer AS c SET lanes = set_lanes.lanes WHERE c."group" = set_lanes."group";
	PERFORM inbox.request(set_lanes."group");
END
$$;

-- Asks the group to retry now, or to skip, the first held-back message of a key (NULL: of each message without
-- a key). Returns how many were asked.
CREATE FUNCTION inbox.parked_request("group" text, topic text, partition integer, key text, what text,
	by text DEFAULT session_user) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	asked bigint;
BEGIN
	IF what IS NULL OR what NOT IN ('retry', 'skip') THEN
		PERFORM inbox.refuse_arguments(format('a parked message cannot be asked to %s', coalesce(quote_literal(what), 'NULL')),
			'Say retry or skip.');
	END IF;
	UPDATE inbox.parked AS p SET request = what, requested_at = clock_timestamp(), requested_by = by,
		due_at = least(p.due_at, clock_timestamp())
	WHERE p."group" = parked_request."group" AND p.topic = parked_request.topic
	  AND p.partition = parked_request.partition AND p.due_at IS NOT NULL AND p.key IS NOT DISTINCT FROM parked_request.key;
	GET DIAGNOSTICS asked = ROW_COUNT;
	IF asked > 0 THEN
		PERFORM inbox.request(parked_request."group");
	END IF;
	RETURN asked;
END
$$;

-- The same for just these entries, of any group: what an operator has looked at, and not what stands in its place by
-- now. Those that are gone, or wait behind another, are left out. Returns how many were asked.
CREATE FUNCTION inbox.parked_request(entries bigint[], what text, by text DEFAULT session_user) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	IF entries IS NULL OR what IS NULL OR what NOT IN ('retry', 'skip') THEN
		PERFORM inbox.refuse_arguments(format('parked messages cannot be asked to %s', coalesce(quote_literal(what), 'NULL')),
			'Give entries of inbox.parked, and say retry or skip.');
	END IF;
	WITH taken AS MATERIALIZED (
		SELECT p.entry, p."group" FROM inbox.parked AS p WHERE p.entry = ANY (entries) AND p.due_at IS NOT NULL
		ORDER BY p.entry FOR UPDATE
	), asked AS (
		UPDATE inbox.parked AS p SET request = what, requested_at = clock_timestamp(),
			requested_by = parked_request.by, due_at = least(p.due_at, clock_timestamp())
		FROM taken AS t WHERE p.entry = t.entry
	), woken AS (
		UPDATE inbox.consumer AS c SET request = c.request + 1 WHERE c."group" IN (SELECT t."group" FROM taken AS t)
	)
	SELECT count(*) INTO n FROM taken;
	RETURN n;
END
$$;

-- Tries dead letters again: copies go to inbox.parked, due one after the other at rate per second (NULL: all at
-- once), in the order of entries. Only those that are dead; returns how many.
CREATE FUNCTION inbox.dlq_retry(entries bigint[], rate numeric DEFAULT NULL, by text DEFAULT session_user)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	IF rate <= 0 OR entries IS NULL THEN
		PERFORM inbox.refuse_arguments(format('cannot retry %s at %s per second',
			coalesce(cardinality(entries)::text, 'NULL'), coalesce(rate::text, 'any rate')),
			'Give entries of inbox.dead_letter and a rate above 0; NULL is at once.');
	END IF;
	WITH taken AS MATERIALIZED (
		SELECT d.* FROM inbox.dead_letter AS d WHERE d.entry = ANY (entries) AND d.state = 'dead'
		ORDER BY d.entry FOR UPDATE
	), copies AS (
		INSERT INTO inbox.parked ("group", topic, partition, message_offset, lane_hash, key, key_bytes, id, message_id,
			type, headers, payload, "time", payload_hash, blocking, class, code, reason, due_at, dead_letter)
		SELECT t."group", t.topic, t.partition, t.message_offset, t.lane_hash, t.key, t.key_bytes, t.id, t.message_id,
			t.type, t.headers, t.payload, t."time", t.payload_hash, false, t.class, t.code, t.reason,
			clock_timestamp() + coalesce((row_number() OVER (ORDER BY array_position(entries, t.entry)) - 1) / rate, 0)
				* interval '1 second', t.entry
		FROM taken AS t
	), marked AS (
		UPDATE inbox.dead_letter AS d SET state = 'retrying' FROM taken AS t WHERE d.entry = t.entry
	), logged AS (
		INSERT INTO inbox.dead_letter_log (entry, by, what, detail)
		SELECT t.entry, dlq_retry.by, 'retry', jsonb_build_object('before', jsonb_build_object('state', 'dead'),
			'after', jsonb_build_object('state', 'retrying'), 'rate', rate)
		FROM taken AS t
	), woken AS (
		UPDATE inbox.consumer AS c SET request = c.request + 1 WHERE c."group" IN (SELECT t."group" FROM taken AS t)
	)
	SELECT count(*) INTO n FROM taken;
	RETURN n;
END
$$;

-- Gives dead letters up for good. Only those that are dead; returns how many.
CREATE FUNCTION inbox.dlq_drop(entries bigint[], note text, by text DEFAULT session_user) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	n bigint;
BEGIN
	WITH taken AS MATERIALIZED (
		SELECT d.entry, d.note FROM inbox.dead_letter AS d WHERE d.entry = ANY (entries) AND d.state = 'dead'
		ORDER BY d.entry FOR UPDATE
	), marked AS (
		UPDATE inbox.dead_letter AS d SET state = 'dropped', note = coalesce(dlq_drop.note, d.note)
		FROM taken AS t WHERE d.entry = t.entry
	), logged AS (
		INSERT INTO inbox.dead_letter_log (entry, by, what, detail)
		SELECT t.entry, dlq_drop.by, 'drop', jsonb_build_object(
			'before', jsonb_build_object('state', 'dead', 'note', t.note),
			'after', jsonb_build_object('state', 'dropped', 'note', coalesce(dlq_drop.note, t.note)))
		FROM taken AS t
	)
	SELECT count(*) INTO n FROM taken;
	RETURN n;
END
$$;

CREATE FUNCTION inbox.refuse_entry(entry bigint, state text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
		MESSAGE = CASE WHEN state IS NULL THEN format('inbox: there is no dead letter %s', coalesce(entry::text, 'NULL'))
			ELSE format('inbox: dead letter %s is %s', entry, state) END,
		HINT = 'Only a dead letter in state dead can be edited.';
END
$$;

-- A new dead letter in the place of one, with what is not NULL exchanged, and an id of its own: it is another
-- message. clear names what shall be NULL: 'payload' (a tombstone), 'key'. The old one is dropped; links both
-- ways. Returns the new entry, which is then to be retried.
-- It stays in the lane of the old one, also under another key: retried dead letters have no order anyway.
CREATE FUNCTION inbox.dlq_edit(entry bigint, payload bytea, headers jsonb, key text, by text DEFAULT session_user,
	clear text[] DEFAULT '{}') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	old inbox.dead_letter;
	new inbox.dead_letter;
	chosen uuid := outbox.uuid7();
BEGIN
	IF jsonb_typeof(dlq_edit.headers) <> 'object' THEN
		PERFORM inbox.refuse_arguments(format('headers is a JSON %s, not an object', jsonb_typeof(dlq_edit.headers)),
			'Write headers as {"name": "value"}; NULL keeps those that are there.');
	END IF;
	IF clear IS NULL OR NOT clear <@ '{payload,key}' OR dlq_edit.payload IS NOT NULL AND 'payload' = ANY (clear)
		OR dlq_edit.key IS NOT NULL AND 'key' = ANY (clear) THEN
		PERFORM inbox.refuse_arguments(format('%s cannot be cleared', coalesce(clear::text, 'NULL')),
			'Only payload and key can be, and not together with a new one.');
	END IF;
	SELECT d.* INTO old FROM inbox.dead_letter AS d WHERE d.entry = dlq_edit.entry FOR UPDATE;
	IF NOT FOUND OR old.state <> 'dead' THEN
		PERFORM inbox.refuse_entry(dlq_edit.entry, old.state);
	END IF;
	new := old;
	new.headers := coalesce(dlq_edit.headers, old.headers);
	IF dlq_edit.key IS NOT NULL OR 'key' = ANY (clear) THEN
		new.key := dlq_edit.key;
		new.key_bytes := convert_to(dlq_edit.key, 'UTF8');
	END IF;
	IF dlq_edit.payload IS NOT NULL OR 'payload' = ANY (clear) THEN
		new.payload := dlq_edit.payload;
		new.payload_hash := NULL;
	END IF;
	INSERT INTO inbox.dead_letter ("group", topic, partition, message_offset, lane_hash, key, key_bytes, id, message_id,
		type, headers, payload, "time", payload_hash, class, code, reason, attempts, first_failed_at, edited_from, note)
	VALUES (old."group", old.topic, old.partition, old.message_offset, old.lane_hash, new.key, new.key_bytes,
		chosen::text, chosen, coalesce(dlq_edit.headers ->> 'type', old.type),
		new.headers || jsonb_build_object('id', chosen), new.payload, old."time", new.payload_hash, old.class, old.code,
		old.reason, old.attempts, old.first_failed_at, old.entry, old.note)
	RETURNING entry INTO new.entry;
	UPDATE inbox.dead_letter AS d SET state = 'dropped', edited_to = new.entry WHERE d.entry = old.entry;
	INSERT INTO inbox.dead_letter_log (entry, by, what, detail)
	SELECT e, dlq_edit.by, 'edit', jsonb_build_object('from', old.entry, 'to', new.entry,
		'before', jsonb_build_object('id', old.id, 'key', old.key, 'headers', old.headers,
			'payload_bytes', octet_length(old.payload)),
		'after', jsonb_build_object('id', chosen, 'key', new.key, 'headers', new.headers,
			'payload_bytes', octet_length(new.payload)))
	FROM unnest(ARRAY[old.entry, new.entry]) AS e;
	RETURN new.entry;
END
$$;

-- False when there is no such dead letter.
CREATE FUNCTION inbox.dlq_note(entry bigint, note text, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	old text;
BEGIN
	SELECT d.note INTO old FROM inbox.dead_letter AS d WHERE d.entry = dlq_note.entry FOR UPDATE;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	UPDATE inbox.dead_letter AS d SET note = dlq_note.note WHERE d.entry = dlq_note.entry;
	INSERT INTO inbox.dead_letter_log (entry, by, what, detail) VALUES (dlq_note.entry, dlq_note.by, 'note',
		jsonb_build_object('before', jsonb_build_object('note', old), 'after', jsonb_build_object('note', dlq_note.note)));
	RETURN true;
END
$$;

-- ---------------------------------------------------------------- replay

-- Reads ranges again: from_offsets <= offset < to_offsets of each partition. Returns the job.
CREATE FUNCTION inbox.replay_new("group" text, topics text[], partitions integer[], from_offsets bigint[],
	to_offsets bigint[], note text DEFAULT NULL, by text DEFAULT session_user) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	made bigint;
BEGIN
	IF topics IS NULL OR cardinality(topics) = 0 OR cardinality(partitions) IS DISTINCT FROM cardinality(topics)
		OR cardinality(from_offsets) IS DISTINCT FROM cardinality(topics)
		OR cardinality(to_offsets) IS DISTINCT FROM cardinality(topics)
		OR EXISTS (SELECT FROM unnest(topics, partitions, from_offsets, to_offsets) AS u (t, p, f, n)
			WHERE t IS NULL OR p IS NULL OR f IS NULL OR n IS NULL OR f < 0 OR n < f)
		OR EXISTS (SELECT FROM unnest(topics, partitions) AS u (t, p) GROUP BY t, p HAVING count(*) > 1) THEN
		PERFORM inbox.refuse_arguments('the ranges to replay make no sense',
			'Give one or more partitions, each once, with 0 <= from <= to.');
	END IF;
	PERFORM inbox.request(replay_new."group");
	INSERT INTO inbox.replay ("group", made_by, changed_by, note)
	VALUES (replay_new."group", by, by, replay_new.note) RETURNING job INTO made;
	INSERT INTO inbox.replay_part (job, topic, partition, from_offset, to_offset, next_offset)
	SELECT made, t, p, f, n, f FROM unnest(topics, partitions, from_offsets, to_offsets) AS u (t, p, f, n);
	UPDATE inbox.replay AS r SET state = 'done' WHERE r.job = made
	  AND NOT EXISTS (SELECT FROM inbox.replay_part AS p WHERE p.job = made AND p.next_offset < p.to_offset);
	RETURN made;
END
$$;

CREATE FUNCTION inbox.replay_change(job bigint, from_states text[], state text, by text) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	whose text;
BEGIN
	UPDATE inbox.replay AS r SET state = replay_change.state, changed_at = clock_timestamp(), changed_by = by
	WHERE r.job = replay_change.job AND r.state = ANY (from_states) RETURNING r."group" INTO whose;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	UPDATE inbox.consumer AS c SET request = c.request + 1 WHERE c."group" = whose;
	RETURN true;
END
$$;

-- False when the job is not there, or not in a state that allows it.
CREATE FUNCTION inbox.replay_pause(job bigint, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN inbox.replay_change(job, '{running}', 'paused', by);
END
$$;

CREATE FUNCTION inbox.replay_resume(job bigint, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE inbox.replay_part AS p SET begun = 0 WHERE p.job = replay_resume.job;
	RETURN inbox.replay_change(job, '{paused,failed}', 'running', by);
END
$$;

CREATE FUNCTION inbox.replay_cancel(job bigint, by text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN inbox.replay_change(job, '{running,paused,failed}', 'cancelled', by);
END
$$;

-- Counts how often a part was begun from where it stands (1), or cut short by a stop or by losing the partition
-- (-1). In a transaction of its own, whose commit it makes asynchronous. Returns how often it is now; 0 when there is no
-- such part.
CREATE FUNCTION inbox.replay_begun(job bigint, topic text, partition integer, times integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	now integer;
BEGIN
	PERFORM set_config('synchronous_commit', 'off', true);
	UPDATE inbox.replay_part AS p SET begun = greatest(0, p.begun + replay_begun.times)
	WHERE p.job = replay_begun.job AND p.topic = replay_begun.topic AND p.partition = replay_begun.partition
	RETURNING p.begun INTO now;
	RETURN coalesce(now, 0);
END
$$;

-- The member that reads a part moves it on and adds to its counts; the last part's end makes the job done.
-- Returns the job's state: go on while it is running. A next below the one stored moves nothing.
CREATE FUNCTION inbox.replay_progress(job bigint, topic text, partition integer, next bigint, handled bigint,
	duplicates bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	now text;
BEGIN
	SELECT r.state INTO now FROM inbox.replay AS r WHERE r.job = replay_progress.job FOR UPDATE;
	UPDATE inbox.replay_part AS p SET next_offset = greatest(p.next_offset, least(next, p.to_offset)),
		handled = p.handled + replay_progress.handled, duplicates = p.duplicates + replay_progress.duplicates,
		begun = CASE WHEN next > p.next_offset THEN 0 ELSE p.begun END
	WHERE p.job = replay_progress.job AND p.topic = replay_progress.topic AND p.partition = replay_progress.partition;
	IF NOT FOUND THEN
		PERFORM inbox.refuse_arguments(format('replay %s has no part %s [%s]', coalesce(replay_progress.job::text, 'NULL'),
			coalesce(replay_progress.topic, 'NULL'), coalesce(replay_progress.partition::text, 'NULL')),
			'Its parts are in inbox.replay_part.');
	END IF;
	IF now IN ('running', 'paused') AND NOT EXISTS (
		SELECT FROM inbox.replay_part AS p WHERE p.job = replay_progress.job AND p.next_offset < p.to_offset) THEN
		UPDATE inbox.replay AS r SET state = 'done', changed_at = clock_timestamp() WHERE r.job = replay_progress.job;
		now := 'done';
	END IF;
	RETURN now;
END
$$;

-- The range cannot be read (its records are gone): note says why. False when it was not running.
CREATE FUNCTION inbox.replay_failed(job bigint, note text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE inbox.replay AS r SET state = 'failed', note = replay_failed.note, changed_at = clock_timestamp()
	WHERE r.job = replay_failed.job AND r.state = 'running';
	RETURN FOUND;
END
$$;

-- ---------------------------------------------------------------- who may do what

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA inbox FROM PUBLIC;
GRANT USAGE ON SCHEMA inbox, outbox TO inbox_consumer, inbox_operator;
GRANT SELECT ON outbox.schema_version TO inbox_consumer, inbox_operator;
GRANT SELECT ON inbox.position, inbox.attempt, inbox.consumer, inbox.seen, inbox.slot, inbox.parked, inbox.dead_letter,
	inbox.dead_letter_log, inbox.replay, inbox.replay_part, inbox.overview TO inbox_consumer, inbox_operator;

GRANT EXECUTE ON FUNCTION
	inbox.carry(inbox.message),
	inbox.claim(text, text[], integer[], integer),
	inbox.attempt(text, text[], integer[], integer[], bigint[], integer[], bigint[]),
	inbox.attempt_ended(text, text, integer, integer, bigint, bigint, boolean),
	inbox.advance(text, text[], integer[], integer[], bigint[], bigint[], bigint[]),
	inbox.remember(text, uuid[], bigint[]), inbox.sort_out(text, uuid[], bigint[]), inbox.look(text, uuid[], bigint[]),
	inbox.keep(text, interval), inbox.rotate(interval),
	inbox.park(text, text, integer, bigint, integer, text, bytea, text, uuid, text, jsonb, bytea, timestamptz, bigint,
		text, text, text, integer, interval),
	inbox.unpark(bigint), inbox.unpark(bigint[]), inbox.parked_failed(bigint, text, text, text, integer, interval),
	inbox.parked_begun(bigint, integer, interval), inbox.parked_unbegun(bigint),
	inbox.parked_due(text, text[], integer[], integer[], integer[], integer),
	inbox.parked_next(text, text, integer, bytea, integer),
	inbox.parked_keys(text, text[], integer[], integer[], integer[]),
	inbox.bury(text, text, integer, bigint, integer, text, bytea, text, uuid, text, jsonb, bytea, timestamptz, bigint,
		text, text, text, integer, bigint, bigint),
	inbox.retried(bigint), inbox.skip(bigint), inbox.dlq_published(bigint[]),
	inbox.replay_progress(bigint, text, integer, bigint, bigint, bigint), inbox.replay_failed(bigint, text),
	inbox.replay_begun(bigint, text, integer, integer)
TO inbox_consumer;
GRANT EXECUTE ON FUNCTION inbox.stats(text) TO inbox_consumer, inbox_operator;
GRANT EXECUTE ON FUNCTION
	inbox.request(text), inbox.pause(text, text), inbox.resume(text, text), inbox.set_lanes(text, integer),
	inbox.parked_request(text, text, integer, text, text, text), inbox.parked_request(bigint[], text, text),
	inbox.dlq_retry(bigint[], numeric, text), inbox.dlq_drop(bigint[], text, text),
	inbox.dlq_edit(bigint, bytea, jsonb, text, text, text[]), inbox.dlq_note(bigint, text, text),
	inbox.replay_new(text, text[], integer[], bigint[], bigint[], text, text),
	inbox.replay_pause(bigint, text), inbox.replay_resume(bigint, text), inbox.replay_cancel(bigint, text)
TO inbox_operator;
