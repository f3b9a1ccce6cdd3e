"""tests/support/schedules.py -- one outbox, one relay, and sessions driven step by step.

A Stage knows when the relay has looked (turn), holds it between two reads of a turn
(hold), and compares what is on the topic with what is committed (finish). The
schedules at the end are played twice: by the honest relay in test_schedules.py, by the
sabotaged ones in test_sabotage.py. Never sleeps: waits for what can be seen.
"""
import contextlib
import itertools
import json
import os
import re
import signal

import pytest

import checker
import servers
from wait import WaitTimeout, stays, wait_until

# outbox.event itself is the truth: what is there is committed. Rows whose xid the server has not
# assigned yet are never published, and looked for by those tests that make them.
TRUTH = checker.OUTBOX + "WHERE xid < (SELECT pg_snapshot_xmax(pg_current_snapshot()))\n"
PUBLISH = "SELECT count(outbox.publish(%s, %s, %s, jsonb_build_object('n', i))) FROM generate_series(1, %s) AS i"
_count = itertools.count(1)
SESSIONS = """SELECT application_name, state, query_start, wait_event, left(query, 100) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'postrider%'"""
MODES = ("exactly_once", "at_least_once")


class Void(Exception):
    """The server was not as the schedule needs it, by no fault of anybody."""


class Session:
    """A writer: one connection, a transaction at a time, begun by its first statement."""

    def __init__(self, stage):
        self.stage = stage
        self.conn = stage.db.connect(autocommit=False)

    def run(self, sql, args=None):
        with self.conn.cursor() as cur:
            cur.execute(sql, args)
            return cur.fetchall() if cur.description else None

    def xid(self):
        """Takes a transaction id now, as any first write would."""
        return int(self.run("SELECT pg_current_xact_id()::text")[0][0])

    def publish(self, key, n=1, kind="Changed"):
        """n events of the key in this transaction."""
        self.run(PUBLISH, (self.stage.kind, key, kind, n))
        return self

    def commit(self):
        self.conn.commit()

    def rollback(self):
        self.conn.rollback()

    def close(self):
        self.conn.close()


class Stage:
    """db is made ready for a relay of its own name; the relay is not started."""

    def __init__(self, db, kafka, make_relay, name, delivery="exactly_once", config=None):
        self.db, self.kafka, self.name, self.delivery = db, kafka, name, delivery
        self.kind = name
        self.topic = f"outbox.event.{self.kind}"
        kafka.create_topic(self.topic, 1)
        servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", name, check=True)
        self.relay = make_relay(db.conninfo, kafka.bootstrap, name=name, delivery=delivery, config=config)
        self.gate = os.path.join(self.relay.dir, "hold")
        self.eye = self.eye_of = None
        self.sessions, self.markers, self.tail, self.seen, self.sabotaged = [], 0, None, [], False

    def close(self):
        if self.tail:
            self.tail.close()
        for s in self.sessions:
            with contextlib.suppress(Exception):
                s.close()
        self.relay.kill()
        if self.eye:
            self.eye.close()

    # ------------------------------------------------------------ the relay

    def start(self, hold=None, **more):
        """Starts the relay and waits until it streams; more: fault=, sabotage=."""
        self.sabotaged = "sabotage" in more
        env = {"POSTRIDER_HOLD": f"{hold}:{self.gate}"} if hold else {}
        self.relay.start(env=env, **more)
        if "fault" not in more:
            self.wait_streaming()
        return self

    def streaming(self):
        if not self.relay.running():
            raise self.relay._died()
        try:
            return self.relay.status()["checks"]["streaming"]
        except OSError:
            return False

    def wait_streaming(self, timeout=60):
        wait_until(self.streaming, timeout, "the relay to stream")

    def crash(self):
        self.relay.kill()

    def restart(self, **more):
        self.crash()
        return self.start(**more)

    def wait_crash(self, timeout=60):
        """Until a FAULT point has killed it."""
        wait_until(lambda: not self.relay.running(), timeout, "the relay to die at its fault point")
        assert self.relay.kill() == -9, "the relay ended by itself"

    def _look(self):
        """When the relay's latest look at the snapshot began, as the server's clock had it."""
        rows = self.ask("SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND "
                        "application_name LIKE 'postrider-relay%' AND query ~ '^-- (Third|Last) of a turn'")
        return rows[0][0] if rows else None

    def turn(self, timeout=60):
        """Until a turn that began after now has taken its snapshot. A turn looks once (nothing happened) or
        three times, so the fourth look from now on is of such a turn or of a later one."""
        at = self.ask("SELECT clock_timestamp()")[0][0]
        for _ in range(4):
            since = at

            def next_look():
                look = self._look()
                return look if look and look > since else None
            try:
                at = wait_until(next_look, timeout, "the relay to take a turn", interval=0.001, interval_max=0.005)
            except WaitTimeout as e:
                raise WaitTimeout(f"{e}; its sessions: {self.ask(SESSIONS)}; it says: {self.relay.status()}") from None

    def calm(self, timeout=60):
        """Until the janitor has told Postgres what is published: from here on until the next event the
        relay's own sessions take no transaction id."""
        def told():
            return self.ask("SELECT r.published_seq >= coalesce((SELECT max(seq) FROM outbox.event), 0) "
                            "FROM outbox.relay AS r") == [(True,)]
        wait_until(told, timeout, "the relay's report")

    @contextlib.contextmanager
    def held(self):
        """The relay stands still at its HOLD point while the body runs."""
        with open(self.gate, "w", encoding="ascii"):
            pass
        try:
            self.ask("SELECT pg_current_xact_id()")  # an idle relay looks no further than the snapshot
            wait_until(lambda: os.path.exists(self.gate + ".held"), 60, "the relay to reach its hold point")
            yield
        finally:
            os.unlink(self.gate)

    # ------------------------------------------------------------ writers

    def session(self):
        self.sessions.append(Session(self))
        return self.sessions[-1]

    def ask(self, sql, args=None):
        """One statement in a transaction of its own, on a connection kept for that."""
        if self.eye is None or self.eye_of != self.db.pg.pid:
            self.eye, self.eye_of = self.db.connect(), self.db.pg.pid  # the server may have been restarted
        with self.eye.cursor() as cur:
            cur.execute(sql, args)
            return cur.fetchall() if cur.description else []

    def publish(self, key, n=1):
        """n events of the key in a transaction of their own."""
        self.ask(PUBLISH, (self.kind, key, "Changed", n))

    def publish_async(self, key, n=1):
        """The same, committed asynchronously."""
        self.ask("SET synchronous_commit = off")
        self.publish(key, n)
        self.ask("RESET synchronous_commit")

    # ------------------------------------------------------------ the topic

    def keys(self):
        """Keys on the topic so far, in order; markers left out."""
        if self.tail is None:
            from confluent_kafka import Consumer, TopicPartition
            self.tail = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "stage",
                                  "isolation.level": "read_committed", "enable.auto.commit": False, "log_level": 0,
                                  "fetch.wait.max.ms": 10})
            self.tail.assign([TopicPartition(self.topic, 0, 0)])
        for m in self.tail.consume(10000, 0.02):
            if m.error() is None:
                self.seen.append(m.key().decode())
        return [k for k in self.seen if not k.startswith("marker-")]

    def wait_keys(self, *want, timeout=60):
        """Until each of these keys is on the topic."""
        wait_until(lambda: set(want) <= set(self.keys()), timeout, f"{want} on {self.topic}", interval=0.001)

    def marker(self, timeout=90):
        """Until an event committed now is on the topic. What was committed before it has been seen too.
        A sabotaged relay may lose the marker itself: then another follows."""
        for patience in [1] * 20 if self.sabotaged else [timeout]:
            self.markers += 1
            name = f"marker-{self.markers}"
            self.publish(name)
            try:
                wait_until(lambda: (self.keys(), name in self.seen)[1], patience, name, interval=0.001)
                return
            except WaitTimeout:
                if not self.sabotaged:
                    raise
        raise AssertionError("the sabotaged relay publishes nothing at all")

    def forget_topic(self):
        """The topic goes, and what was seen of it; a consumer of a topic that is gone may never close."""
        self.tail.close()
        self.tail, self.seen = None, []

    def position(self):
        """The newest position record, as the topic has it."""
        records = checker.read_records(self.kafka.bootstrap, [f"postrider.positions.{self.name}"])
        return json.loads(records[-1].value)

    # ------------------------------------------------------------ the verdict

    def check(self, settle=0, truth=TRUTH, **more):
        return checker.check(self.db.conninfo, self.kafka.bootstrap, [self.topic], mode=self.delivery, settle=settle,
                             journal_sql=truth, **more)

    def verdict(self, **more):
        """After a marker and one more turn nothing committed is on its way any more."""
        self.marker()
        self.turn()
        return self.check(**more)

    def finish(self, **more):
        r = self.verdict(**more)
        assert r.ok, r.report()
        return r


# ---------------------------------------------------------------- fixtures of the modules that import them

@pytest.fixture(scope="session")
def quiet_pg():
    """A server on which nobody takes a transaction id behind a schedule's back, with room for many
    prepared transactions."""
    pg = servers.Postgres(config={"autovacuum": "off", "max_prepared_transactions": 600,
                                  "max_connections": 300}).start()
    yield pg
    pg.stop("immediate")


@pytest.fixture
def stage(request, quiet_pg, kafka, relay):
    """stage(delivery=..., config=..., pg=...): a Stage in a database of its own."""
    made = []

    def make(delivery="exactly_once", config=None, pg=None):
        word = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:32].strip("-")
        name = f"{word}-{os.getpid()}-{next(_count)}"
        db = (pg or quiet_pg).createdb(name, schema=True)
        made.append(Stage(db, kafka, relay, name, delivery, config))
        return made[-1]
    yield make
    for s in made:
        s.close()
        if s.db.pg.running():
            s.db.drop()


# ---------------------------------------------------------------- schedules played honestly and sabotaged

def late_commit(st, **how):
    """An event drawn early is committed after a later one was published."""
    st.start(**how)
    early = st.session().publish("early")
    st.publish("overtaker")
    st.wait_keys("overtaker")
    st.turn()
    early.commit()
    return st.verdict()


def newest_writer(st, **how):
    """The only open writer has the newest xid of all, so the snapshot does not list it: it lies at or
    above xmax. Its seq is known to the bound, for the relay looks when an older transaction ends."""
    st.start(**how)
    st.publish("before")
    st.wait_keys("before")
    st.calm()
    older, writer = st.session(), st.session()
    older.xid()
    writer.publish("newest")
    older.commit()
    st.turn()
    xmax = int(st.ask("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])
    if writer.xid() < xmax:  # its own word for it: whoever plays it plays it again
        raise Void("somebody else took a transaction id")
    writer.commit()
    return st.verdict()


def commit_between_reads(st, **how):
    """A whole transaction happens between the second and the third read of a turn's bounds."""
    st.start(hold="bounds", **how)
    st.marker()
    with st.held():
        st.publish("between")
    return st.verdict()


def three_transactions(st, running=False, **how):
    """Of aggregate 7 T1's event is first and T2's second, though T2's xid is the smaller; T3, which has
    nothing to do with it, lies between them and stays open."""
    if running:
        st.start(**how)
    t2, t3 = st.session(), st.session()
    assert t2.xid() < t3.xid()
    t1 = st.session().publish("7", kind="First")
    assert t3.xid() < t1.xid()
    t1.commit()
    t2.publish("7", kind="Second").commit()
    if not running:
        st.start(**how)
    st.turn()
    st.wait_keys("7")
    t3.rollback()
    return st.verdict()


def death_after_commit(st, **how):
    """The relay dies right after Kafka has committed its transaction."""
    st.start(fault="committed_before_accounting", **how)
    st.publish("a", 3)
    st.wait_crash()
    st.start(**how)
    return st.verdict()


def undelivered(st, **how):
    """The topic is gone for a while, the position's topic is not: nothing may be counted as published.
    Returns the verdict; the event that went with the topic is not missed."""
    st.start(**how)
    st.publish("gone")
    st.wait_keys("gone")
    st.calm()
    gone = st.ask("SELECT id::text FROM outbox.event")[0][0]
    before = st.position()
    st.forget_topic()
    st.kafka.delete_topic(st.topic)
    st.publish("owed")

    def tried():
        return st.relay.status()["in_flight_events"] > 0 or st.ask("SELECT 1 FROM outbox.waiting")

    def claimed():
        return st.position()["top"] != before["top"]
    wait_until(claimed if how.get("sabotage") else tried, 30, "the relay to try")
    st.crash()
    st.kafka.create_topic(st.topic, 1)
    st.start(**how)
    return st.verdict(allow_missing=[gone])


def ghost(st, **how):
    """The server crashes when an event of an asynchronous commit is on the topic. Nobody else flushes
    the log meanwhile: the WAL writer stands still, and the relay's report waits for a lock."""
    pg = st.db.pg
    st.start(**how)
    st.publish("before")
    st.wait_keys("before")
    st.calm()
    st.session().run("SELECT FROM outbox.relay FOR UPDATE")
    with crash_unflushed(pg):
        st.publish_async("ghost")
        st.wait_keys("ghost")
        st.crash()
    pg.start()
    return st.check()


@contextlib.contextmanager
def crash_unflushed(pg):
    """In the body the WAL writer stands still; after it the server has crashed without another flush."""
    writer = pg.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")[0][0]
    os.kill(writer, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(writer, signal.SIGQUIT)  # ends it before it does anything, once it goes on
        pg.signal(signal.SIGQUIT)
        os.kill(writer, signal.SIGCONT)
        pg.wait(60)


def pinned_position(st, **how):
    """Somebody's open transaction on the position topic: the newest position lies beyond the last stable
    offset when the relay starts."""
    from confluent_kafka import Producer
    st.start(**how)
    st.marker()
    foreign = Producer({"bootstrap.servers": st.kafka.bootstrap, "transactional.id": f"foreign.{st.name}",
                        "transaction.timeout.ms": 600000, "log_level": 0})
    foreign.init_transactions(60)
    foreign.begin_transaction()
    foreign.produce(f"postrider.positions.{st.name}", key=b"foreign", value=b"not yours")
    foreign.flush(30)
    st.publish("pinned")
    st.wait_keys("pinned")
    st.crash()
    st.relay.start(**how)
    if how.get("sabotage"):
        st.wait_streaming()
    else:
        stays(lambda: not st.streaming(), 0.5, "the relay waiting for the end of its position topic")
    foreign.abort_transaction(30)
    st.wait_streaming()
    return st.verdict()


def played(play, stage, *where, **how):
    """Its result; on a stage of its own again when the schedule was void, a few times."""
    for _ in range(4):
        try:
            return play(stage(*where), **how)
        except Void:
            pass
    return play(stage(*where), **how)
