"""tests/support/inbox.py -- one inbox from end to end: its database, its topic, what was produced, and what
consumers made of it.

The handlers' table app.effect has no unique constraint: an event that is applied twice stands there twice. Input
is produced straight to Kafka; the truth (which ids, in which order per key) is kept here. Refuses to ask a
consumer whether it did well.
"""
import collections
import contextlib
import copy
import functools
import itertools
import json
import os
import subprocess
import threading
import uuid

import psycopg2
import pytest
import servers
from wait import WaitTimeout, wait_all, wait_until

_count = itertools.count(1)

# app.poison tells the handlers which events to fail of, and how; seq -1 is each event of the key.
SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app.effect (n bigserial, id uuid, key text, seq int, topic text, partition int, message_offset bigint,
	payload jsonb, type text, by text DEFAULT current_setting('application_name'), at timestamptz DEFAULT clock_timestamp());
CREATE TABLE app.poison (key text, seq int DEFAULT -1, how text);
CREATE SEQUENCE app.tries;
CREATE FUNCTION app.misbehave(how text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF how IS NULL THEN
		RETURN;
	END IF;
	PERFORM nextval('app.tries');
	IF how = 'kill' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
	ELSIF how = 'hang' THEN
		PERFORM pg_sleep(600);
	ELSIF how = 'wait' THEN
		PERFORM pg_advisory_xact_lock(4711);
	ELSIF how LIKE 'sleep %' THEN
		PERFORM pg_sleep(substr(how, 7)::float8);
	ELSIF how LIKE 'once %' THEN
		IF currval('app.tries') = 1 THEN
			RAISE EXCEPTION 'bad luck' USING ERRCODE = substr(how, 6);
		END IF;
	ELSIF how LIKE 'maybe %' THEN
		IF random() < 0.3 THEN
			RAISE EXCEPTION 'out of luck' USING ERRCODE = substr(how, 7);
		END IF;
	ELSE
		RAISE EXCEPTION 'poison' USING ERRCODE = how;
	END IF;
END $$;
CREATE FUNCTION app.on_event(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM app.misbehave(p.how) FROM app.poison AS p
	WHERE p.key = m.key AND p.seq IN (-1, (m.payload ->> 'seq')::int);
	INSERT INTO app.effect (id, key, seq, topic, partition, message_offset, payload, type)
	VALUES (m.id, m.key, (m.payload ->> 'seq')::int, m.topic, m.partition, m.message_offset, m.payload, m.type);
END $$;
CREATE FUNCTION app.on_events(ms inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM app.misbehave(p.how) FROM app.poison AS p JOIN unnest(ms) AS m
		ON p.key = m.key AND p.seq IN (-1, (m.payload ->> 'seq')::int);
	INSERT INTO app.effect (id, key, seq, topic, partition, message_offset, payload, type)
	SELECT m.id, m.key, (m.payload ->> 'seq')::int, m.topic, m.partition, m.message_offset, m.payload, m.type
	FROM unnest(ms) WITH ORDINALITY AS m ORDER BY m.ordinality;
END $$;
"""
ROW = {"kind": "sql", "function": "app.on_event"}
SET = {"kind": "sql", "function": "app.on_events"}


@functools.lru_cache(None)
def _library():
    path = os.path.join(servers.new_dir("handler"), "effect_handler.so")
    flags = subprocess.run(["pkg-config", "--cflags", "libpq"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-g", f"-I{servers.ROOT}", *flags, "-o", path,
                    os.path.join(servers.ROOT, "tests/fault/effect_handler.c"), "-lpq"], check=True)
    return path


def c_handler(gate="", **more):
    """The C handler; how = wait stands still while the file gate is there."""
    return {"kind": "c", "library": _library(), "options": gate or "none", **more}


def exec_handler(directory, **more):
    """The exec handler; its effects are lines of directory/effects."""
    return {"kind": "exec", "command": [os.path.join(servers.ROOT, "tests/fault/effect_handler.py"), directory], **more}


def exec_effects(directory):
    """[(id, key, seq)] in the order in which they happened."""
    with open(os.path.join(directory, "effects"), encoding="ascii") as f:
        return [(i, k, int(n)) for i, k, n in (line.split() for line in f)]


class Inbox:
    """pg and kafka: where; conninfo and brokers: how consumers get there (perhaps through a proxy)."""

    def __init__(self, pg, kafka, partitions=3, word="c"):
        self.name = f"{word}{os.getpid()}x{next(_count)}"
        self.group = self.name
        self.pg, self.kafka = pg, kafka
        self.db = pg.createdb(self.name, schema=True)
        self.conninfo, self.brokers = self.db.conninfo, kafka.bootstrap
        self.db.psql(SCHEMA)
        self.partitions = partitions
        self.topic = kafka.create_topic("in." + self.name, partitions) if partitions else None
        self.consumers = []
        self.keys = collections.defaultdict(list)  # key: its ids, in order
        self.sent = {}  # id: (key, seq)
        self.lock = threading.Lock()
        self.undelivered = []
        self._producer = None

    # -- consumers

    def consumer(self, handler=None, config=None, **more):
        """One more member, not yet started; small batches, so that there are many of them."""
        tree = {"limits": {"batch_events": 20}, "database": {"timeout": "3s"},
                "kafka": {"timeout": "5s"}}
        args = dict(group=self.group, topics=[self.topic], handler=copy.deepcopy(handler or ROW))
        c = servers.Consumer(self.conninfo, self.brokers, **{**args, **more},
                             config=servers._merge(tree, copy.deepcopy(config or {})))
        self.consumers.append(c)
        return c

    def member(self, handler=None, config=None, **more):
        """A member without a name: when it leaves, its partitions wander at once. It has no known HTTP port."""
        return self.consumer(handler, servers._merge({"http": {"listen": "127.0.0.1:0"}}, config or {}), **more)

    def poison(self, key, how, seq=-1):
        self.db.query("INSERT INTO app.poison VALUES (%s, %s, %s)", (key, seq, how))

    def cure(self):
        self.db.query("DELETE FROM app.poison")

    # -- input

    @property
    def producer(self):
        if self._producer is None:
            from confluent_kafka import Producer
            # One at a time: when a new topic's first batch is refused for a moment, the broker takes the second for the
            # first, and the client then takes the first for delivered (KAFKA-15591): the truth must be on the topic.
            self._producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "enable.idempotence": True, "max.in.flight": 1,
                                       "linger.ms": 2, "log_level": 0, "message.max.bytes": 20 << 20,
                                       "queue.buffering.max.messages": 1000000, "message.timeout.ms": 0, "reconnect.backoff.max.ms": 200})
        return self._producer

    def put(self, key, value, headers=(), topic=None, **more):
        """Any record; not part of the truth."""
        self.producer.produce(topic or self.topic, value, key, headers=list(headers), on_delivery=self._delivered, **more)

    def _delivered(self, err, _):
        if err:
            self.undelivered.append(str(err))

    def event(self, key, payload=None, id=None, **more):
        """One well-formed event, next of its key; returns its id."""
        with self.lock:
            id = id or str(uuid.uuid4())
            self.keys[key].append(id)
            seq = len(self.keys[key])
            self.sent[id] = (key, seq)
            self.put(key, json.dumps({"seq": seq, **(payload or {})}), [("id", id), ("type", "Moved")], **more)
        return id

    def send(self, n, keys=20, prefix="k"):
        """n events, round about the keys, on the topic when this returns; returns their ids."""
        ids = [self.event(f"{prefix}{i % keys}") for i in range(n)]
        self.flush()
        return ids

    def flush(self, timeout=60):
        assert self.producer.flush(timeout) == 0 and not self.undelivered, \
            f"the input is not on the topic: {self.undelivered[:3]}"

    @contextlib.contextmanager
    def stream(self, rate=1000, keys=20):
        """Events at that rate while the block runs."""
        end = threading.Event()

        def run():
            for i in itertools.count():
                for j in range(rate // 100):
                    self.event(f"k{(i * (rate // 100) + j) % keys}")
                self.producer.poll(0)
                if end.wait(0.01):
                    return
        t = threading.Thread(target=run, daemon=True)
        t.start()
        try:
            yield
        finally:
            end.set()
            t.join()
            self.flush()

    # -- what came of it

    def one(self, sql, args=None):
        return self.db.one(sql, args)

    def count(self, where="true"):
        return self.db.one(f"SELECT count(*) FROM app.effect WHERE {where}")

    def wait_count(self, n, timeout=60, where="true"):
        """Until so many effects are there; a database that is just starting counts as none."""
        try:
            wait_all(lambda: self.count(where), n, timeout, f"{n} effects", ignore=(psycopg2.OperationalError,))
        except WaitTimeout as e:
            raise AssertionError(f"{e}\n{self.standing()}\n{self.logs()}") from None

    def standing(self):
        """What tells late from lost: positions and ends, what is held back, and the ids that are remembered."""
        asked = {"positions": "SELECT topic, partition, lane, next_offset, epoch FROM inbox.position ORDER BY 1, 2, 3",
                 "parked, dead, seen": "SELECT (SELECT count(*) FROM inbox.parked), (SELECT count(*) FROM inbox.dead_letter),"
                                       " (SELECT count(*) FROM inbox.seen)",
                 "sessions": "SELECT application_name, state, wait_event, now() - state_change, left(query, 60)"
                             " FROM pg_stat_activity WHERE application_name LIKE 'postrider-consumer%'"}
        return "; ".join(f"{what}: {self.db.query(sql)}" for what, sql in asked.items()) + \
            f"; ends: {self.kafka.end_offsets(self.topic)}"

    def flows(self, more=100, timeout=60):
        """Until so many more effects are there."""
        self.wait_count(wait_until(lambda: self.count() + more, timeout, "the database",
                                   ignore=(psycopg2.OperationalError,)), timeout)

    def stands(self, timeout=60):
        """Until the positions say that all of the topic is done: after that nothing may come any more."""
        ends = {p: n for p, n in self.kafka.end_offsets(self.topic).items() if n > 0}

        def done():
            rows = dict(self.db.query("SELECT partition, min(next_offset) FROM inbox.position WHERE \"group\" = %s"
                                      " AND topic = %s GROUP BY partition", (self.group, self.topic)))
            last[:] = [rows]
            return all(rows.get(p, -1) >= n for p, n in ends.items())
        last = []
        try:
            wait_until(done, timeout, "the positions to reach the end", interval=0.02)
        except WaitTimeout:
            raise AssertionError(f"positions {last} have not reached {ends} after {timeout} s\n{self.logs()}") from None

    def logs(self):
        return "\n".join(f"--- {c.name} on port {c.port}\n{servers.tail(c.log, 12)}" for c in self.consumers)

    def rows(self):
        return self.db.query("SELECT id::text, key, seq, n FROM app.effect ORDER BY n")

    def wrong(self, without=(), at_most_missing=0):
        """What is wrong with the effects, as a list of texts; without: ids that must have none."""
        without, found = set(without), []
        rows = self.rows()
        times = collections.Counter(r[0] for r in rows)
        twice = [i for i, k in times.items() if k > 1]
        missing = [i for i in self.sent if i not in without and i not in times]
        strange = [i for i in times if i not in self.sent or i in without]
        if twice:
            found.append(f"{len(twice)} events were applied twice, the first {self.sent.get(twice[0])}")
        if len(missing) > at_most_missing:
            found.append(f"{len(missing)} of {len(self.sent)} events are lost, the first {self.sent[missing[0]]}")
        if strange:
            found.append(f"{len(strange)} effects should not be there, the first {self.sent.get(strange[0])}")
        by_key = collections.defaultdict(list)
        for _, key, seq, _ in rows:
            by_key[key].append(seq)
        for key, seqs in by_key.items():
            back = [(a, b) for a, b in zip(seqs, seqs[1:]) if b < a]
            if back:
                found.append(f"{key}: {back[0][1]} was applied after {back[0][0]}")
        return found

    def check(self, without=(), timeout=60, more=False):
        """All that was sent is applied, once each, in order per key; and nothing is under way any more. more: more is
        to come, so that need not be waited for now."""
        self.flush()
        self.wait_count(len(self.sent) - len(set(without)), timeout)
        if not more:
            self.stands(timeout)
        found = self.wrong(without)
        assert not found, "; ".join(found) + "\n" + self.logs()

    def parked(self, columns="key, attempts, class, code"):
        return self.db.query(f"SELECT {columns} FROM inbox.parked WHERE \"group\" = %s ORDER BY message_offset",
                             (self.group,))

    def wait_parked(self, n, timeout=60):
        try:
            wait_until(lambda: len(self.parked()) == n, timeout, f"{n} parked messages")
        except WaitTimeout as e:
            raise AssertionError(f"{e}; parked: {self.parked()}\n{self.logs()}") from None

    def dead(self, columns="id, class, code, reason, attempts, state"):
        return self.db.query(f"SELECT {columns} FROM inbox.dead_letter WHERE \"group\" = %s ORDER BY entry",
                             (self.group,))

    def wait_dead(self, n, timeout=60):
        try:
            wait_until(lambda: len(self.dead()) >= n, timeout, f"{n} dead letters")
        except WaitTimeout as e:
            raise AssertionError(f"{e}; dead: {self.dead()}\n{self.logs()}") from None
        return self.dead()

    def state(self, consumer):
        status, body = consumer.get("/readyz")
        answer = json.loads(body)
        assert (status == 200) == answer["ready"], answer
        return answer["state"]

    def wait_state(self, consumer, state, timeout=60):
        """Until /readyz names the state; returns its answer."""
        last = []

        def there():
            last[:] = [json.loads(consumer.get("/readyz")[1])]
            return last[0]["state"] == state
        try:
            wait_until(there, timeout, f"state {state}", ignore=(OSError,))
        except WaitTimeout:
            raise AssertionError(f"state {state} did not come in {timeout} s: {last}\n{self.logs()}") from None
        return last[0]

    def close(self):
        for c in self.consumers:
            c.kill()
        if self.pg.running():  # a test's own server may be gone before us
            self.db.drop()


@pytest.fixture
def inbox(pg_server, kafka):
    """inbox(...) makes an Inbox on the shared servers, or on pg= and kafka= of the test's own."""
    made = []

    def make(pg=None, kafka_=None, **more):
        made.append(Inbox(pg or pg_server, kafka_ or kafka, **more))
        return made[-1]
    yield make
    for i in made:
        i.close()
