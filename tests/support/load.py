#!/usr/bin/python3
"""tests/support/load.py -- business transactions that write outbox events and the truth.

Every transaction locks its aggregates by counting them up, inserts events in one of
the styles an application may use, and writes the same events to truth.journal. The
journal is in the same transaction, so it holds exactly what committed, also where the
client could not learn the outcome of its COMMIT. The checker reads only the journal.
Refuses to know the relay: it shares no code with it.
"""
import argparse
import contextlib
import json
import random
import sys
import threading
import time

import psycopg2

SETUP = """
CREATE SCHEMA IF NOT EXISTS truth;
CREATE TABLE IF NOT EXISTS truth.agg (topic text, agg text, seq bigint NOT NULL, PRIMARY KEY (topic, agg))
	WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS truth.journal (event_id uuid NOT NULL, topic text NOT NULL, agg text NOT NULL,
	aggseq bigint NOT NULL, txn_tag bigint NOT NULL, type text NOT NULL, payload_md5 uuid, headers jsonb);
DO $$ BEGIN
	CREATE TYPE truth.ev AS (id uuid, agg text, aggseq bigint, type text, payload jsonb, bytes bytea, headers jsonb);
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

-- One event. With variety: now and then a tombstone, raw bytes, awkward JSON, own headers.
CREATE OR REPLACE FUNCTION truth.make(a text, s bigint, tag bigint, size int, variety boolean) RETURNS truth.ev
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	e truth.ev;
	flavour int := CASE WHEN variety THEN s % 16 ELSE 15 END;
BEGIN
	e.id := gen_random_uuid();
	e.agg := a;
	e.aggseq := s;
	e.type := CASE s % 3 WHEN 0 THEN 'Created' WHEN 1 THEN 'Changed' ELSE 'Closed' END;
	IF flavour = 0 THEN
		NULL;
	ELSIF flavour = 1 THEN
		e.bytes := decode('00ff0a', 'hex') || convert_to(repeat(md5(a || s), size / 32), 'UTF8');
	ELSIF flavour = 2 THEN
		e.bytes := '';
	ELSE
		e.payload := jsonb_build_object('agg', a, 'n', s, 'tag', tag,
			'pad', left(repeat(md5(a || s), 1 + size / 32), greatest(size - 50, 0)));
		IF flavour = 3 THEN
			e.payload := e.payload || jsonb '{"u": "h\\u00e9\\u6f22\\ud83d\\ude00 \\"\\\\\\n", "d": 1.10, "big": 12345678901234567890}';
		END IF;
	END IF;
	IF flavour IN (4, 0) THEN
		e.headers := jsonb_build_object('tenant', 'acme', 'price', 1.50, 'list', jsonb '[1, "a"]', 'none', NULL,
			'tab', E'a\\tb\\\\c');
	END IF;
	RETURN e;
END $$;

-- The body of a business transaction: per_agg events for each of aggs.
CREATE OR REPLACE FUNCTION truth.txn(kind text, aggs text[], per_agg int, style text, tag bigint, size int,
	variety boolean) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	t text := 'outbox.event.' || kind;
	last bigint;
	a text;
	e truth.ev;
	es truth.ev[] := '{}';
BEGIN
	FOREACH a IN ARRAY aggs LOOP
		INSERT INTO truth.agg AS g VALUES (t, a, per_agg)
			ON CONFLICT (topic, agg) DO UPDATE SET seq = g.seq + per_agg RETURNING g.seq INTO last;
		es := es || ARRAY(SELECT truth.make(a, s, tag, size, variety)
			FROM generate_series(last - per_agg + 1, last) AS s);
	END LOOP;
	IF style = 'bulk' THEN
		INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, payload_bytes, headers)
		SELECT u.id, kind, u.agg, u.type, u.payload, u.bytes, coalesce(u.headers, '{}')
		FROM unnest(es) WITH ORDINALITY AS u ORDER BY u.ordinality;
	ELSIF style = 'many' THEN
		PERFORM outbox.publish_many((SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('id', u.id,
			'aggregatetype', kind, 'aggregateid', u.agg, 'type', u.type,
			'payload_base64', encode(u.bytes, 'base64')))
			|| CASE WHEN u.payload IS NULL THEN '{}' ELSE jsonb_build_object('payload', u.payload) END
			|| CASE WHEN u.headers IS NULL THEN '{}' ELSE jsonb_build_object('headers', u.headers) END
			ORDER BY u.ordinality) FROM unnest(es) WITH ORDINALITY AS u));
	ELSE
		FOR i IN 1 .. cardinality(es) LOOP
			e := es[i];
			IF style = 'insert' THEN
				INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, payload_bytes, headers)
				VALUES (kind, e.agg, e.type, e.payload, e.bytes, coalesce(e.headers, '{}'))
				RETURNING id INTO e.id;
			ELSIF e.bytes IS NOT NULL THEN
				e.id := outbox.publish_bytes(kind, e.agg, e.type, e.bytes, coalesce(e.headers, '{}'));
			ELSE
				e.id := outbox.publish(kind, e.agg, e.type, e.payload, coalesce(e.headers, '{}'));
			END IF;
			es[i] := e;
		END LOOP;
	END IF;
	INSERT INTO truth.journal SELECT u.id, t, u.agg, u.aggseq, tag, u.type,
		coalesce(md5(u.payload::text), md5(u.bytes))::uuid, u.headers FROM unnest(es) AS u;
	RETURN cardinality(es);
END $$;
"""

# One transaction of n plain events over `keys` aggregates k0, k1, ...
BULK = """
INSERT INTO truth.agg AS g SELECT %(topic)s, 'k' || k, 0 FROM generate_series(0, %(keys)s - 1) AS k
	ON CONFLICT DO NOTHING;
SELECT count(*) FROM (SELECT FROM truth.agg WHERE topic = %(topic)s ORDER BY agg FOR UPDATE) AS locked;
WITH e AS MATERIALIZED (
	SELECT i, gen_random_uuid() AS id, g.agg, g.seq + 1 + i / %(keys)s AS aggseq,
		jsonb_build_object('agg', g.agg, 'n', g.seq + 1 + i / %(keys)s,
			'pad', left(repeat(md5(i::text), 1 + %(size)s / 32), greatest(%(size)s - 40, 0))) AS payload
	FROM generate_series(0, %(n)s - 1) AS i
	JOIN truth.agg AS g ON g.topic = %(topic)s AND g.agg = 'k' || i %% %(keys)s
	ORDER BY i
), j AS (
	INSERT INTO truth.journal
	SELECT id, %(topic)s, agg, aggseq, %(tag)s, 'Changed', md5(payload::text)::uuid, NULL FROM e WHERE %(journal)s
)
INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload)
SELECT id, %(kind)s, agg, 'Changed', payload FROM e ORDER BY i;
UPDATE truth.agg AS g SET seq = seq + %(n)s / %(keys)s
	+ CASE WHEN substr(agg, 2)::bigint < %(n)s %% %(keys)s THEN 1 ELSE 0 END
	WHERE topic = %(topic)s AND agg ~ '^k[0-9]+$' AND substr(agg, 2)::bigint < %(keys)s;
"""

STYLES = ("publish", "insert", "bulk", "many")


def connect(conninfo):
    c = psycopg2.connect(conninfo, connect_timeout=5, application_name="load")
    c.autocommit = True
    return c


def setup(conninfo):
    """Creates schema truth (idempotent). Needs schema outbox only when events are written."""
    with contextlib.closing(connect(conninfo)) as c, c.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(7411)")
        cur.execute(SETUP)


def bulk(conninfo, n, keys=10000, kind="order", size=168, chunk=100000, journal=True):
    """n plain events in transactions of `chunk` rows, by SQL alone. Returns the seconds."""
    setup(conninfo)
    start = time.monotonic()
    with contextlib.closing(connect(conninfo)) as c, c.cursor() as cur:
        done = 0
        while done < n:
            m = min(chunk, n - done)
            cur.execute("BEGIN; SET LOCAL work_mem = '256MB';" + BULK + "COMMIT", {
                "topic": f"outbox.event.{kind}", "kind": kind, "n": m, "keys": keys, "size": size,
                "tag": -(done // chunk) - 1, "journal": journal})
            done += m
        cur.execute("ANALYZE truth.agg")
    return time.monotonic() - start


class Load:
    """Client threads that run transactions until told to stop.

    conninfo      where; aggregates: how many per kind; kinds: aggregate types (= topics)
    clients       threads, each with its own connection
    keys, events  aggregates per transaction (at most), events per aggregate and transaction
    styles        any of STYLES, chosen at random
    rate          transactions per second over all clients (None: as fast as they go)
    transactions  stop after that many attempts (None: until stop())
    rollback      share of transactions rolled back; savepoint: share with a savepoint rolled
                  back before and one released after; async_commit: share with
                  synchronous_commit = off
    hold          (share, seconds): share that stays open that long before COMMIT
    """

    def __init__(self, conninfo, aggregates=100, kinds=("order",), clients=4, keys=2, events=1, styles=STYLES,
                 rate=None, transactions=None, rollback=0.1, savepoint=0.1, async_commit=0.0, hold=(0.05, 0.05),
                 size=168, variety=True, seed=None):
        self.conninfo, self.aggregates, self.kinds, self.clients = conninfo, aggregates, list(kinds), clients
        self.keys, self.events, self.styles, self.rate = keys, events, list(styles), rate
        self.transactions, self.rollback, self.savepoint = transactions, rollback, savepoint
        self.async_commit, self.hold, self.size, self.variety = async_commit, hold, size, variety
        self.seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        self.counts = dict.fromkeys(("attempted", "committed", "events", "rolled_back", "unknown", "failed"), 0)
        self.last_error = None
        self.acked = []  # tags whose synchronous COMMIT was answered
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = []
        self._next_at = None

    def start(self):
        setup(self.conninfo)
        self._next_at = time.monotonic()
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(self.clients)]
        for t in self._threads:
            t.start()
        return self

    def stop(self, timeout=30):
        """Ends the clients after their current transaction; returns the counts."""
        self._stop.set()
        return self.join(timeout)

    def join(self, timeout=600):
        deadline = time.monotonic() + timeout
        for t in self._threads:
            t.join(max(0, deadline - time.monotonic()))
            if t.is_alive():
                raise AssertionError(f"a load client hangs; counts {self.counts}, last error {self.last_error}")
        return self.counts

    def run(self, timeout=600):
        self.start()
        return self.join(timeout)

    @property
    def committed(self):
        return self.counts["committed"]

    def lost_by_postgres(self):
        """Tags whose synchronous commit was acknowledged and which the journal lacks: the
        database itself lost them, and no relay could know. Must be empty."""
        with contextlib.closing(connect(self.conninfo)) as c, c.cursor() as cur:
            cur.execute("SELECT DISTINCT txn_tag FROM truth.journal")
            have = {r[0] for r in cur}
        return [t for t in self.acked if t not in have]

    def _take(self):
        """Leave to begin one more transaction; sleeps to keep the rate. None: finished."""
        with self._lock:
            if self._stop.is_set() or self.transactions is not None and self.counts["attempted"] >= self.transactions:
                return None
            self.counts["attempted"] += 1
            n = self.counts["attempted"]
            at = self._next_at
            if self.rate:
                self._next_at = max(self._next_at, time.monotonic() - 0.1) + 1 / self.rate
        delay = at - time.monotonic()
        if self.rate and delay > 0:
            self._stop.wait(delay)
        return n

    def _count(self, what, n=1):
        with self._lock:
            self.counts[what] += n

    def _client(self, index):
        rnd = random.Random(self.seed * 1000 + index)
        conn = None
        while True:
            n = self._take()
            if n is None:
                break
            tag = (self.seed << 32) + n
            conn = self._one(conn, rnd, tag)
        if conn:
            conn.close()

    def _one(self, conn, rnd, tag):
        """One transaction; returns the connection, or None when it broke."""
        in_commit = False
        try:
            conn = conn or connect(self.conninfo)
            with conn.cursor() as cur:
                parts, ending, is_sync, hold, planned = self._plan(cur, rnd, tag)
                if hold:
                    cur.execute(";".join(parts))
                    self._stop.wait(hold)
                    parts = []
                in_commit = ending == "COMMIT"
                cur.execute(";".join(parts + [ending]))
                status = cur.statusmessage
            if ending == "ROLLBACK":
                self._count("rolled_back")
            elif status == "COMMIT":
                self._count("committed")
                self._count("events", planned)
                if is_sync:
                    self.acked.append(tag)
            else:
                self._count("failed")
            return conn
        except psycopg2.Error as e:
            self.last_error = str(e).strip()
            return self._broken(conn, in_commit)

    def _broken(self, conn, in_commit):
        if conn and not conn.closed:
            # An error from the server, the session lives: the transaction is over, not in doubt.
            with contextlib.suppress(psycopg2.Error), conn.cursor() as cur:
                cur.execute("ROLLBACK")
                self._count("failed")
                return conn
        self._count("unknown" if in_commit else "failed")
        if conn:
            conn.close()
        self._stop.wait(0.05)
        return None

    def _plan(self, cur, rnd, tag):
        kind = rnd.choice(self.kinds)
        # Sorted: two transactions take common locks in the same order.
        aggs = sorted({f"a{rnd.randrange(self.aggregates)}" for _ in range(rnd.randint(1, self.keys))})

        def body(which):
            return cur.mogrify("SELECT truth.txn(%s,%s,%s,%s,%s,%s,%s)", (
                kind, which, self.events, rnd.choice(self.styles), tag, self.size, self.variety)).decode()
        parts = ["BEGIN"]
        is_sync = rnd.random() >= self.async_commit
        if not is_sync:
            parts.append("SET LOCAL synchronous_commit = off")
        if rnd.random() < self.savepoint:
            parts += ["SAVEPOINT a", body(aggs), "ROLLBACK TO a", "SAVEPOINT b", body(aggs[:1]), "RELEASE b"]
            aggs_left = aggs[1:]
        else:
            aggs_left = aggs
        if aggs_left:
            parts.append(body(aggs_left))
        ending = "ROLLBACK" if rnd.random() < self.rollback else "COMMIT"
        hold = self.hold[1] if self.hold and rnd.random() < self.hold[0] else 0
        return parts, ending, is_sync, hold, len(aggs) * self.events


def main():
    p = argparse.ArgumentParser(description="Writes outbox events and their truth; prints counts as JSON.")
    p.add_argument("--conninfo", required=True)
    p.add_argument("--bulk", type=int, metavar="N", help="N plain events by SQL alone, then end")
    p.add_argument("--no-journal", action="store_true", help="with --bulk: without the truth")
    p.add_argument("--kinds", default="order", help="aggregate types, separated by commas")
    p.add_argument("--aggregates", type=int, default=100)
    p.add_argument("--clients", type=int, default=4)
    p.add_argument("--keys", type=int, default=2, help="most aggregates per transaction")
    p.add_argument("--events", type=int, default=1, help="events per aggregate and transaction")
    p.add_argument("--styles", default=",".join(STYLES))
    p.add_argument("--rate", type=float, help="transactions per second")
    p.add_argument("--transactions", type=int)
    p.add_argument("--seconds", type=float)
    p.add_argument("--rollback", type=float, default=0.1)
    p.add_argument("--savepoint", type=float, default=0.1)
    p.add_argument("--async-commit", type=float, default=0.0)
    p.add_argument("--hold", type=float, nargs=2, default=(0.05, 0.05), metavar=("SHARE", "SECONDS"))
    p.add_argument("--size", type=int, default=168)
    p.add_argument("--plain", action="store_true", help="no tombstones, bytes, odd JSON or own headers")
    p.add_argument("--seed", type=int)
    a = p.parse_args()
    if a.bulk:
        took = bulk(a.conninfo, a.bulk, a.aggregates, a.kinds, a.size, journal=not a.no_journal)
        print(json.dumps({"events": a.bulk, "seconds": round(took, 3)}))
        return 0
    if a.transactions is None and a.seconds is None:
        p.error("--transactions or --seconds is needed")
    load = Load(a.conninfo, a.aggregates, a.kinds.split(","), a.clients, a.keys, a.events, a.styles.split(","), a.rate,
                a.transactions, a.rollback, a.savepoint, a.async_commit, a.hold, a.size, not a.plain, a.seed)
    start = time.monotonic()
    load.start()
    if a.seconds is not None:
        load._stop.wait(a.seconds)
        load.stop()
    else:
        load.join()
    print(json.dumps(dict(load.counts, seconds=round(time.monotonic() - start, 3), seed=load.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
