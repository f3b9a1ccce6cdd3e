"""tests/support/saga.py -- the saga engine at work, its services, a post office between them, and the audit.

`sagas(...)` gives an engine with a database and a relay, and services that take part, each with a database, a relay and
a consumer of its own: one takes money (a set-based handler), one gives seats (a handler by row). What they do is
written into each saga's data as a script, so that one set of processes plays any number of cases at once. Replies go
by the post office, which delivers them once, twice, late, in another order, or never. Refuses to ask the engine
whether money and seats balance: the services' own tables tell.
"""
import collections
import heapq
import itertools
import json
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.request
import uuid

import pytest
import servers
from confluent_kafka import Consumer, Producer, TopicPartition
from wait import WaitTimeout, wait_until

_count = itertools.count(1)
INBOX, EVENTS = "outbox.saga.inbox", "outbox.event.saga"
FINAL = ("COMPLETED", "COMPENSATED", "ABORTED")
PRICE = 30

# What a script says of a step ("PAYMENT": ..., "undo PAYMENT": ...): done, refuse, fail (or fail:2, the first two
# times), silent (or silent:2: the command is as good as lost), deaf (passes the barrier whatever it says). Without a
# word it is done.
SERVICE = """
CREATE SCHEMA app;
CREATE TABLE app.heard (saga uuid, step text, op text, n int, PRIMARY KEY (saga, step, op));
CREATE TABLE app.did (n bigserial, saga uuid, step text, op text, outcome text);
CREATE TABLE app.closed (step text);
CREATE FUNCTION app.plays(m inbox.message) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	what text := CASE m.headers ->> 'saga-op' WHEN 'do' THEN '' ELSE 'undo ' END || (m.headers ->> 'saga-step');
	word text := coalesce(m.payload -> 'script' ->> what, 'done');
	times int;
BEGIN
	INSERT INTO app.heard AS h VALUES ((m.headers ->> 'saga-id')::uuid, m.headers ->> 'saga-step', m.headers ->> 'saga-op', 1)
	ON CONFLICT ON CONSTRAINT heard_pkey DO UPDATE SET n = h.n + 1 RETURNING h.n INTO times;
	IF EXISTS (SELECT FROM app.closed AS c WHERE c.step = what) THEN
		RETURN 'fail';
	END IF;
	RETURN CASE WHEN word LIKE '%:%' AND times > split_part(word, ':', 2)::int THEN 'done' ELSE split_part(word, ':', 1) END;
END $$;
CREATE FUNCTION app.posted(m inbox.message) RETURNS inbox.message LANGUAGE plpgsql AS $$
BEGIN
	m.headers := m.headers || '{"saga-reply-to": "@post@"}';
	RETURN m;
END $$;
CREATE FUNCTION app.act(m inbox.message, word text, OUT outcome text, OUT why text) LANGUAGE plpgsql AS $$
BEGIN
	outcome := CASE word WHEN 'refuse' THEN 'refused' WHEN 'fail' THEN 'failed' ELSE 'done' END;
	IF outcome = 'done' THEN
		why := app.apply((m.headers ->> 'saga-id')::uuid, m.headers ->> 'saga-step', m.headers ->> 'saga-op', m.payload);
		outcome := CASE WHEN why IS NULL THEN 'done' ELSE 'refused' END;
	ELSE
		why := 'the script says ' || word;
	END IF;
	INSERT INTO app.did (saga, step, op, outcome)
	VALUES ((m.headers ->> 'saga-id')::uuid, m.headers ->> 'saga-step', m.headers ->> 'saga-op', act.outcome);
END $$;
CREATE FUNCTION app.by_row(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	word text := app.plays(m);
	a record;
BEGIN
	m := app.posted(m);
	IF word = 'silent' OR NOT saga.barrier(m) AND word <> 'deaf' THEN
		RETURN;
	END IF;
	a := app.act(m, word);
	IF a.outcome = 'refused' THEN
		PERFORM saga.refuse(m, a.why);
	ELSIF a.outcome = 'failed' THEN
		PERFORM saga.fail(m, a.why);
	ELSE
		PERFORM saga.done(m, jsonb_build_object('paper', m.headers ->> 'saga-step'));
	END IF;
END $$;
CREATE FUNCTION app.by_set(ms inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	words text[];
	gone record;
	a record;
	ords int[] := '{}';
	outcomes text[] := '{}';
	whys text[] := '{}';
BEGIN
	-- Each alone, in order: a word depends on how often the command came.
	SELECT array_agg(app.posted(u.m::inbox.message) ORDER BY u.n), array_agg(u.word ORDER BY u.n) INTO ms, words
	FROM (SELECT ms[i] AS m, app.plays(ms[i]) AS word, i AS n FROM generate_subscripts(ms, 1) AS i) AS u WHERE u.word <> 'silent';
	IF ms IS NULL THEN
		RETURN;
	END IF;
	FOR gone IN SELECT * FROM saga.barriers(ms) ORDER BY ord LOOP
		CONTINUE WHEN NOT gone.go AND words[gone.ord] <> 'deaf';
		a := app.act(ms[gone.ord], words[gone.ord]);
		ords := ords || gone.ord;
		outcomes := outcomes || a.outcome;
		whys := array_append(whys, a.why);
	END LOOP;
	IF cardinality(ords) > 0 THEN
		PERFORM saga.replies(ms, ords, outcomes, NULL, whys);
	END IF;
END $$;
"""

# The ledger has no unique constraint: what is taken twice stands there twice.
MONEY = """
CREATE TABLE app.ledger (n bigserial, saga uuid, step text, op text, amount bigint);
CREATE TABLE app.account (id text PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO app.account VALUES ('till', 1000000);
CREATE FUNCTION app.apply(id uuid, step text, op text, p jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	x bigint := CASE op WHEN 'do' THEN -1 ELSE 1 END * (p ->> 'amount')::bigint;
BEGIN
	INSERT INTO app.ledger (saga, step, op, amount) VALUES (id, step, op, x);
	UPDATE app.account AS a SET balance = a.balance + x WHERE a.id = 'till';
	RETURN NULL;
END $$;
"""

SEATS = """
CREATE TABLE app.seat (name text PRIMARY KEY, holder uuid, sold boolean NOT NULL DEFAULT false);
CREATE TABLE app.note (n bigserial, saga uuid);
CREATE FUNCTION app.apply(id uuid, step text, op text, p jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	was app.seat;
BEGIN
	IF step IN ('NOTE', 'TELL') THEN
		INSERT INTO app.note (saga) VALUES (id);
		RETURN NULL;
	END IF;
	INSERT INTO app.seat (name) VALUES (p ->> 'seat') ON CONFLICT DO NOTHING;
	SELECT s.* INTO was FROM app.seat AS s WHERE s.name = p ->> 'seat' FOR UPDATE;
	IF op = 'do' AND step = 'HOLD' THEN
		IF was.holder IS NOT NULL THEN
			RETURN 'the seat is taken';
		END IF;
		UPDATE app.seat AS s SET holder = id WHERE s.name = was.name;
	ELSIF op = 'undo' AND step = 'HOLD' THEN
		IF was.holder IS DISTINCT FROM id OR was.sold THEN
			RAISE EXCEPTION 'seat % of % cannot be freed by %', was.name, was.holder, id;
		END IF;
		UPDATE app.seat AS s SET holder = NULL WHERE s.name = was.name;
	ELSE
		IF was.holder IS DISTINCT FROM id THEN
			RETURN 'the seat is not held';
		END IF;
		UPDATE app.seat AS s SET sold = op = 'do' WHERE s.name = was.name;
	END IF;
	RETURN NULL;
END $$;
"""

# HOLD a seat, take the money (PAYMENT), sell the seat (TICKET, the pivot), tell (NOTE).
BUY = """
name = "buy"; version = 1; style = "orchestration"; deadline = "@deadline@"; @head@
steps = (
  { name = "HOLD"; kind = "compensatable";
    do: { command = "Hold"; topic = "@name@.seats"; key = "data.seat"; send = ( "seat = data.seat", "script = data.script" );
          timeout = "@timeout@"; retry: { attempts = 4; backoff = "20ms"; backoff_max = "50ms"; }; };
    undo: { command = "Free"; send = ( "seat = data.seat", "script = data.script" ); timeout = "@timeout@";
            retry: { attempts = @undos@; backoff = "20ms"; backoff_max = "100ms"; }; };
    keep = ( "held = reply.paper" ); },
  { name = "PAYMENT"; kind = "compensatable";
    do: { command = "Pay"; topic = "@name@.money"; send = ( "amount = data.amount", "script = data.script" );
          timeout = "@timeout@"; retry: { attempts = 4; backoff = "20ms"; backoff_max = "50ms"; }; };
    undo: { command = "PayBack"; send = ( "amount = data.amount", "script = data.script" ); timeout = "@timeout@";
            retry: { attempts = @undos@; backoff = "20ms"; backoff_max = "100ms"; }; }; },
  { name = "TICKET"; kind = "pivot";
    do: { command = "Sell"; topic = "@name@.seats"; key = "data.seat"; send = ( "seat = data.seat", "script = data.script" );
          timeout = "@timeout@"; retry: { attempts = 4; backoff = "20ms"; backoff_max = "50ms"; }; };
    undo: { command = "Unsell"; send = ( "seat = data.seat", "script = data.script" ); timeout = "@timeout@";
            retry: { attempts = @undos@; backoff = "20ms"; backoff_max = "100ms"; }; }; },
  { name = "NOTE"; kind = "retriable";
    do: { command = "Note"; topic = "@name@.seats"; send = ( "script = data.script" );
          timeout = "@timeout@"; retry: { attempts = 200; backoff = "20ms"; backoff_max = "100ms"; }; }; }
);
invariants = ( "PAYMENT.applied == TICKET.applied" );
"""


def buy(head="", deadline="2m", timeout="300ms", undos=200, text=BUY):
    """The definition; @name@ stands for the scene's name until it is written."""
    for k, v in {"head": head, "deadline": deadline, "timeout": timeout, "undos": str(undos)}.items():
        text = text.replace(f"@{k}@", v)
    return text


class PostOffice(threading.Thread):
    """Carries replies to the engine's inbox; how, says orders[saga id, step, op]."""

    def __init__(self, kafka, source):
        super().__init__(daemon=True)
        self.kafka, self.source = kafka, source
        self.orders = {}
        self.lost = collections.Counter()
        self.seen = 0
        self.rnd = random.Random(5)
        self.late = []  # (when, n, key, value, headers)
        self.done = threading.Event()
        self.wakes = itertools.count()

    def run(self):
        c = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": f"post-{self.source}", "log_level": 0,
                      "enable.auto.commit": False, "isolation.level": "read_committed"})
        self.out = Producer({"bootstrap.servers": self.kafka.bootstrap, "linger.ms": 0, "log_level": 0,
                             "reconnect.backoff.max.ms": 200})
        c.assign([TopicPartition(self.source, p, 0) for p in range(self.kafka.topics()[self.source])])
        while not self.done.is_set():
            m = c.poll(0.01)
            if m is not None and not m.error():
                self.take(m)
                self.seen += 1
            while self.late and self.late[0][0] <= time.monotonic():
                self.put(*heapq.heappop(self.late)[2:])
            self.out.poll(0)
        c.close()

    def take(self, m):
        h = dict(m.headers())
        case = (h["saga-id"].decode(), h["saga-step"].decode(), h["saga-op"].decode())
        how, _, n = self.orders.get(case, "once").partition(":")
        letter = (m.key(), m.value(), m.headers())
        if how == "lost":
            self.lost[case] += 1
            if not n or self.lost[case] <= int(n):
                return
        if how == "late":
            self.hold(1.1, *letter)
        elif how == "reordered":
            self.hold(self.rnd.uniform(0, 0.2), *letter)
        else:
            self.put(*letter)
        if how == "twice":
            self.put(*letter)
        if how == "reordered":
            self.hold(self.rnd.uniform(0, 0.4), *letter)

    def hold(self, seconds, *letter):
        heapq.heappush(self.late, (time.monotonic() + seconds, next(self.wakes), *letter))

    def put(self, key, value, headers):
        self.out.produce(INBOX, value, key, headers=[(k, v) for k, v in headers if k != "id"]
                         + [("id", str(uuid.uuid4()).encode())])

    def is_idle(self):
        return not self.late and len(self.out) == 0

    def stop(self):
        self.done.set()
        self.join()


class Part:
    """A database with its relay, and one consumer on it."""

    def __init__(self, scene, word, topics, handler, delivery, config=None, override=()):
        self.scene, self.word = scene, word
        name = f"{scene.name}-{word}"
        self.db = scene.pg.createdb(name, schema=True)
        servers.Cli().run("init", "--conninfo", self.db.conninfo, "--brokers", scene.kafka.bootstrap, "--name", name,
                          check=True)
        self.relay = servers.Relay(self.db.conninfo, scene.kafka.bootstrap, name, delivery,
                                   {"kafka": {"timeout": "5s"}})
        self.topics, self.handler = topics, handler
        self.group, self.config, self.override = name, config or {}, list(override)
        self.consumer = self.member()

    def member(self, config=None, override=(), **more):
        """One more of its consumers, not started."""
        tree = servers._merge({"database": {"timeout": "3s"}, "kafka": {"timeout": "5s"}}, json.loads(json.dumps(self.config)))
        c = servers.Consumer(self.db.conninfo, self.scene.kafka.bootstrap, self.group, self.topics, self.handler,
                             servers._merge(tree, config or {}), self.override + list(override), **more)
        self.scene.members.append(c)
        return c

    def stands(self, topics=None):
        """All that its relay owes is published and all of its topics is handled."""
        if self.db.one("SELECT coalesce(pg_sequence_last_value('outbox.event_seq'), 0) >"
                       " (SELECT coalesce(max(published_seq), 0) FROM outbox.relay)"):
            return False
        rows = self.db.query("SELECT topic, partition, min(next_offset) FROM inbox.position WHERE \"group\" = %s"
                             " GROUP BY topic, partition", (self.group,))
        at = {(t, p): n for t, p, n in rows}
        return all(at.get((t, p), -1) >= n for t in self.topics for p, n in self.scene.kafka.end_offsets(t).items() if n)


class Scene:
    """definitions: {file name: text}; services: {"money": SQL, ...} of those that take part; topics: further ones of the
    engine; in both @ stands for the scene's name."""

    def __init__(self, pg, kafka, definitions=None, services=None, delivery="exactly_once", partitions=2, config=None,
                 topics=(), post=True):
        self.pg, self.kafka, self.members = pg, kafka, []
        self.name = f"s{os.getpid()}x{next(_count)}"
        for t in (INBOX, EVENTS):
            if t in kafka.topics():
                kafka.delete_topic(t)
            wait_until(lambda: kafka.create_topic(t, partitions), 20, f"topic {t}", ignore=(Exception,))
        self.dir = servers.new_dir("sagas")
        for file, text in (definitions or {"buy.cfg": buy()}).items():
            self.define(file, text)
        self.post = None
        if post:
            kafka.create_topic(f"{self.name}.post", 1)
            self.post = PostOffice(kafka, f"{self.name}.post")
            self.post.start()
        services = {"money": MONEY, "seats": SEATS} if services is None else services
        topics = [kafka.create_topic(t.replace("@", self.name), 1) for t in topics]
        self.part = {}
        for word, sql in services.items():
            kafka.create_topic(f"{self.name}.{word}", partitions)
            p = Part(self, word, [f"{self.name}.{word}"], {"kind": "sql", "function": "app.by_row"}
                     if word != "money" else {"kind": "sql", "function": "app.by_set"}, delivery)
            p.db.psql(SERVICE.replace("@post@", f"{self.name}.post" if post else INBOX) + sql)
            self.part[word] = p
        self.engine = Part(self, "engine", [INBOX, *topics], {"kind": "saga", "definitions": [f"{self.dir}/*.cfg"]}, delivery,
                           config, ["dedupe=offset"])
        self.db = self.engine.db

    def define(self, file, text):
        with open(os.path.join(self.dir, file), "w", encoding="utf-8") as f:
            f.write(text.replace("@name@", self.name))

    def start(self):
        for p in self.parts:
            p.relay.start()
            p.consumer.start()
        return self.ready()

    def ready(self):
        for p in self.parts:
            p.relay.wait_ready()
            p.consumer.wait_ready()
        return self

    @property
    def parts(self):
        return [*self.part.values(), self.engine]

    # -- sagas

    def begin(self, cases=1, name="buy", **data):
        """Starts sagas in one transaction: a number of them, or a list of {"script": {...}, "post": {"PAYMENT": "twice",
        "undo HOLD": "late"}}. Returns their ids, in order."""
        cases = [{} for _ in range(cases)] if isinstance(cases, int) else cases
        conn = self.db.connect(autocommit=False)
        ids = []
        with conn.cursor() as cur:
            for n, case in enumerate(cases):
                cur.execute("SELECT outbox.uuid7()::text")
                id = cur.fetchone()[0]
                more = {k: v for k, v in case.items() if k != "post"}
                body = {"amount": PRICE, "seat": f"seat-{id}", "script": {}, **data, **more}
                for step, how in case.get("post", {}).items():
                    op = "undo" if step.startswith("undo ") else "do"
                    self.post.orders[id, step.replace("undo ", ""), op] = how
                cur.execute("SELECT saga.start(%s, %s, %s)", (name, json.dumps(body), id))
                ids.append(id)
        conn.commit()
        conn.close()
        return ids

    def state(self, id):
        rows = self.db.query("SELECT state FROM saga.instance WHERE id = %s ORDER BY slot LIMIT 1", (id,))
        return rows[0][0] if rows else None

    def states(self, ids=None):
        rows = self.db.query("SELECT id::text, state FROM saga.instance")
        return {i: s for i, s in rows if ids is None or i in ids}

    def wait_state(self, id, state, timeout=60):
        try:
            wait_until(lambda: self.state(id) == state, timeout, f"saga {id} to be {state}", interval=0.01)
        except WaitTimeout as e:
            raise AssertionError(f"{e}\n{self.story(id)}") from None

    def wait_over(self, ids, timeout=90, but=()):
        """Until all have ended; but: states that will do as well."""
        ids = set(ids)

        def over():
            states = self.states(ids)
            left[:] = [(i, s) for i, s in states.items() if s not in FINAL and s not in but]
            missing[:] = ids - states.keys()
            return not left and not missing
        left, missing = [], []
        try:
            wait_until(over, timeout, f"{len(ids)} sagas to end", interval=0.02)
        except WaitTimeout:
            first = left[0][0] if left else missing[0]
            raise AssertionError(f"{len(left)} sagas have not ended and {len(missing)} are not there\n"
                                 + self.story(first)) from None

    def alive(self, ids):
        return [i for i, s in self.states(set(ids)).items() if s not in FINAL]

    def moved(self):
        """Grows with all that happens to any saga."""
        return self.db.one("SELECT coalesce(max(seq), 0) FROM saga.log")

    def log(self, id, what=None):
        rows = self.db.query("SELECT what, step, op, detail FROM saga.log WHERE saga_id = %s ORDER BY seq", (id,))
        return [r for r in rows if what is None or r[0] == what]

    def steps(self, id):
        return dict(self.db.query("SELECT step, state FROM saga.step WHERE saga_id = %s", (id,)))

    def story(self, id):
        text = [f"saga {id}: {self.db.query('SELECT state, why, steps, data FROM saga.instance WHERE id = %s', (id,))}"]
        log = self.db.query("SELECT at::time::text, what, step, op, detail FROM saga.log WHERE saga_id = %s ORDER BY seq", (id,))
        text += [str(r) for r in (log if len(log) < 60 else [*log[:25], f"... {len(log) - 50} more ...", *log[-25:]])]
        for word, p in self.part.items():
            text += [f"{word}: {r}" for r in p.db.query("SELECT step, op, outcome FROM app.did WHERE saga = %s ORDER BY n", (id,))]
            text += [f"{word} heard: {r}" for r in p.db.query("SELECT step, op, n FROM app.heard WHERE saga = %s", (id,))]
        for c in [p.consumer for p in self.parts] + [p.relay for p in self.parts]:
            text.append(f"--- {c.name} {'runs' if c.running() else 'does not run'}\n{servers.tail(c.log, 6)}")
        return "\n".join(text)

    def order(self, id, what, step=None, detail=None, by="test", timeout=40):
        """An operator's order, and what became of it: (outcome, reason)."""
        entry = self.db.one("SELECT saga.order_new(%s, %s, %s, %s, %s)",
                            (id, what, step, json.dumps(detail) if detail is not None else None, by))
        return wait_until(lambda: self.db.query("SELECT outcome, reason FROM saga.\"order\" WHERE entry = %s"
                                                " AND done_at IS NOT NULL", (entry,)), timeout, f"order {what}")[0]

    def http(self, method, path, body=None, headers=None):
        """(status, parsed body) of the engine's HTTP."""
        r = urllib.request.Request(f"http://127.0.0.1:{self.engine.consumer.port}{path}", method=method,
                                   data=None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
                                   headers={"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(r, timeout=10) as a:
                return a.status, json.loads(a.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    # -- the end

    def quiet(self, timeout=60):
        """Until nothing is under way any more: outboxes, topics, letters."""
        def nothing():
            return all(p.stands() for p in self.parts) and (not self.post or self.post.is_idle())

        def twice():
            before = self.post.seen if self.post else 0
            return nothing() and nothing() and before == (self.post.seen if self.post else 0)
        wait_until(twice, timeout, "all to be handled", interval=0.05, interval_max=0.2)

    def wrong(self, ids=None):
        """The audit: what does not balance, as a list of texts. All sagas of `buy` are over or in STUCK."""
        found = []
        states = self.states(ids)
        noted = {r[0] for r in self.db.query("SELECT id::text FROM saga.instance WHERE name = 'buy'")}
        taken = dict(self.part["money"].db.query("SELECT saga::text, sum(amount)::bigint FROM app.ledger GROUP BY 1"))
        moves = self.part["money"].db.query("SELECT saga::text, op, count(*) FROM app.ledger GROUP BY 1, 2")
        held = collections.defaultdict(list)
        for seat, holder, sold in self.part["seats"].db.query("SELECT name, holder::text, sold FROM app.seat WHERE holder IS NOT NULL OR sold"):
            held[holder].append((seat, sold))
        notes = collections.Counter(r[0] for r in self.part["seats"].db.query("SELECT saga::text FROM app.note"))
        for id, state in states.items():
            money, seats = -taken.get(id, 0), held.get(id, [])
            if state == "COMPLETED" and (money != PRICE or [s for _, s in seats] != [True] or notes[id] != (id in noted)):
                found.append(f"{id} is COMPLETED with {money} of money, seats {seats}, {notes[id]} notes")
            if state == "COMPENSATED" and (money or seats or notes[id]):
                found.append(f"{id} is COMPENSATED with {money} of money, seats {seats}, {notes[id]} notes")
        found += [f"{id}: {op} of the money {n} times" for id, op, n in moves if n > 1]
        strangers = [i for i in (*taken, *held) if i not in states and (taken.get(i) or held.get(i))]
        if ids is None and strangers:
            found.append(f"money or seats of sagas nobody knows: {strangers[:3]}")
        total = self.part["money"].db.one("SELECT balance - 1000000 - (SELECT coalesce(sum(amount), 0) FROM app.ledger) FROM app.account")
        if total:
            found.append(f"the account differs from its ledger by {total}")
        return found

    def check(self, ids=None, timeout=60):
        """Waits for quiet, then the audit must find nothing."""
        self.quiet(timeout)
        found = self.wrong(ids)
        first = [x.split()[0].rstrip(":") for x in found if x[8] == "-"]
        assert not found, "\n".join(found[:5] + [self.story(i) for i in first[:1]])

    def close(self):
        if self.post and self.post.is_alive():
            self.post.stop()
        for c in self.members:
            c.kill()
        for p in self.parts:
            p.relay.kill()
        for p in self.parts:
            p.db.drop()


def dies(daemon, fault, timeout=30):
    """Starts it so that it dies at the point; proves that it did."""
    daemon.start(fault=fault)
    assert daemon.wait(timeout) == -signal.SIGKILL, daemon.log_text()[-3000:]


@pytest.fixture
def sagas(pg_server, kafka):
    """sagas(...) makes a Scene on the session's servers, not started; its databases go after the test."""
    made = []

    def make(**more):
        for s in made:
            s.close()
        made[:] = [Scene(pg_server, kafka, **more)]
        return made[-1]
    yield make
    for s in made:
        s.close()


@pytest.fixture(scope="module")
def saga_module(pg_server, kafka):
    """The same for all tests of a file: made by the first, whose arguments count."""
    made = []

    def make(**more):
        if not made:
            made.append(Scene(pg_server, kafka, **more))
        return made[0]
    yield make
    for s in made:
        s.close()
