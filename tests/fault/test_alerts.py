"""tests/fault/test_alerts.py -- each alert's trouble is caused for real, and a real Prometheus fires it: the shipped rules, in which
tests/support/rules.py has made a second of each minute.

All troubles are begun together and then waited for, so that the file takes as long as the slowest. The broker is stopped last.
"""
import contextlib
import json
import os
import signal
import threading
import urllib.error
import urllib.request

import pytest
import rules
import servers
from confluent_kafka import Producer
from inbox import Inbox, ROW, c_handler
from outbox import Outbox
from prometheus import Prometheus
from proxy import Proxy
from saga import INBOX
from service import Service
from sink import Sink
from wait import wait_until

pytestmark = [pytest.mark.timeout(1000), pytest.mark.slow]
FIRED = set()
CANARY = "outbox.event.canary"

DEFINITION = """
name = "@name@"; version = 1; style = "orchestration"; deadline = "10m";
steps = ( { name = "HOLD"; kind = "compensatable";
    do: { command = "Hold"; topic = "@topic@"; timeout = "200ms"; retry: { attempts = 1; backoff = "20ms"; backoff_max = "50ms"; }; };
    undo: { command = "Free"; timeout = "@timeout@"; retry: { attempts = @undos@; backoff = "20ms"; backoff_max = "50ms"; }; }; },
  { name = "SELL"; kind = "pivot";
    do: { command = "Sell"; topic = "@topic@"; timeout = "200ms"; retry: { attempts = 1; backoff = "20ms"; backoff_max = "50ms"; }; }; } );
"""


class World:
    """What runs, and the Prometheus that watches it."""

    def __init__(self, pg, kafka, stack):
        self.pg, self.kafka, self.stack = pg, kafka, stack
        self.prometheus = Prometheus().start()
        stack.callback(self.prometheus.kill)

    def outbox(self, word, **relay):
        o = self.stack.enter_context(Outbox(self.pg, self.kafka, word, **relay))
        self.prometheus.watch(o.relay)
        o.relay.start()
        return o

    def inbox(self, word, partitions=1):
        i = Inbox(self.pg, self.kafka, partitions, word)
        self.stack.callback(i.close)
        return i

    def watched(self, daemon):
        self.stack.callback(daemon.kill)
        self.prometheus.watch(daemon)
        return daemon.start()

    def fires(self, name, **labels):
        return self.whole(self.prometheus.fires(name, **labels), name, **labels)

    def whole(self, alert, name, **labels):
        """It has fired, and its words are whole."""
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        assert "<no value>" not in json.dumps(alert["annotations"]), alert["annotations"]
        for who in (v for k, v in labels.items() if k in ("outbox", "group", "service")):
            assert who in alert["annotations"]["summary"] or name == "PostriderAlertsUnacknowledged", alert["annotations"]
        FIRED.add(name)
        return alert


@pytest.fixture(scope="module")
def broker():
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    k = servers.Kafka(quick=True).start().warm()
    yield k
    k.kill()


@pytest.fixture(scope="module")
def world(pg_server, broker):
    with contextlib.ExitStack() as stack:
        yield World(pg_server, broker, stack)


@pytest.fixture(scope="module")
def held(world):
    """An outbox with whatever can be held back."""
    o = world.outbox("held", config={"kafka": {"properties": ["compression.codec=none"]}})
    o.relay.wait_ready()
    kind, _ = o.kind(config={"max.message.bytes": "20000"})
    o.publish(kind, "large", json.dumps(os.urandom(15000).hex()))
    o.publish("nowhere", "k")
    o.wait_parked(1)
    o.db.query("SET session_replication_role = replica; INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type, payload) "
               "VALUES ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000)::text::xid8, %s, 'k', 'T', '{}')", (kind,))
    with open(o.relay.file, "a", encoding="utf-8") as f:
        f.write("nothing_of_ours = 1;\n")
    o.relay.hup()
    o.db.query("ALTER TABLE outbox.scheduled RENAME TO scheduled_away")
    return o


@pytest.fixture(scope="module")
def paused(world):
    o = world.outbox("paused")
    o.relay.wait_ready()
    o.run("pause", check=True)
    return o


@pytest.fixture(scope="module")
def canary(world, paused):
    """One whose relay does not publish it."""
    if CANARY not in world.kafka.topics():
        world.kafka.create_topic(CANARY, 1)
    world.watched(servers.Consumer(paused.db.conninfo, world.kafka.bootstrap, paused.name, [CANARY], {"kind": "canary"},
                                   {"canary": {"every": "1s", "late": "1s"}}))
    return paused.name


@pytest.fixture(scope="module")
def push(world):
    """Alerts that reach nobody, and nobody acknowledges."""
    i = world.inbox("push")
    c = world.watched(i.consumer({"kind": "push"}, {
        "dedupe": "offset", "alerts": {"url": f"http://127.0.0.1:{servers.free_port()}/", "timeout": "2s"},
        "push": {"listen": f"127.0.0.1:{servers.free_port()}", "jwks": f"http://127.0.0.1:{servers.free_port()}/jwks"}}))
    wait_until(lambda: i.one("SELECT to_regproc('push.alert') IS NOT NULL"), 30, "the schema")
    i.db.query("SELECT push.alert('k', 'cause', 'postrider dlq list', '{}')")
    c.port = int(i.consumers[-1].config["http"]["listen"].split(":")[1])
    return i


@pytest.fixture(scope="module")
def failing(world):
    """A group with a dead letter and a parked key."""
    i = world.inbox("failing")
    i.poison("k1", "22012")
    i.send(4, keys=2)
    i.put("k", "{}", [("id", "no uuid")])
    i.flush()
    world.watched(i.consumer(ROW, {"errors": [
        {"match": "sqlstate:22012", "policy": "park", "attempts": 0, "backoff": "300ms", "backoff_max": "300ms"}]}))
    return i


@pytest.fixture(scope="module")
def down(world):
    """A group whose handler's service is not there."""
    i = world.inbox("down")
    i.send(4)
    i.flush()
    world.watched(i.consumer({"kind": "http", "url": f"http://127.0.0.1:{servers.free_port()}/"}))
    return i


@pytest.fixture(scope="module")
def blocked(world):
    """A group that waits for a lock while more comes."""
    i = world.inbox("blocked")
    conn = i.db.connect(autocommit=False)
    world.stack.callback(conn.close)
    conn.cursor().execute("LOCK TABLE app.effect IN ACCESS EXCLUSIVE MODE")
    i.send(20)
    i.flush()
    world.watched(i.consumer(ROW))
    return i


@pytest.fixture(scope="module")
def hung(world):
    """A group whose C handler does not come back."""
    i = world.inbox("hung")
    gate = os.path.join(servers.new_dir("gate"), "gate")
    with open(gate, "w", encoding="ascii"):
        world.stack.callback(os.unlink, gate)
    i.poison("k0", "wait")
    i.send(1)
    world.watched(i.consumer(c_handler(gate, timeout="1s")))
    return i


@pytest.fixture(scope="module")
def sinks(world):
    """One that sees a payload for the first time, and one whose directory takes nothing."""
    well, full = Sink(world.inbox("well", 0), 1), Sink(world.inbox("full", 0), 1)
    for s in (well, full):
        world.watched(s.consumer())
    os.chmod(full.directory, 0o777)
    full.i.event("k")
    full.i.flush()
    return well, full


@pytest.fixture(scope="module")
def engine(world):
    """Sagas to whose commands nobody answers: one waits for a person, one is undone for ever."""
    o = world.outbox("engine")
    o.group = o.name
    if INBOX not in world.kafka.topics():
        world.kafka.create_topic(INBOX, 1)
    directory = servers.new_dir("definitions")
    for name, undos, timeout in (("given-up", 1, "200ms"), ("undone", 1000, "2s")):
        text = DEFINITION
        for k, v in {"name": name, "undos": str(undos), "timeout": timeout, "topic": "nobody.reads"}.items():
            text = text.replace(f"@{k}@", v)
        with open(f"{directory}/{name}.cfg", "w", encoding="utf-8") as f:
            f.write(text)
    world.watched(servers.Consumer(o.db.conninfo, world.kafka.bootstrap, o.group, [INBOX], {
        "kind": "saga", "definitions": [f"{directory}/*.cfg"]}, {"dedupe": "offset"})).wait_ready()
    o.relay.wait_ready()
    for name in ("given-up", "undone"):
        o.db.query("SELECT saga.start(%s, '{}')", (name,))
    return o


@pytest.fixture(scope="module")
def begun(held, paused, canary, push, failing, down, blocked, hung, engine):
    """All that needs time has begun."""


def test_absent(world):
    """Before anything is watched."""
    if not world.prometheus.watched:
        world.fires("PostriderAbsent")


def test_held_back(world, begun, held):
    for name in ("PostriderParked", "PostriderTopicMissing", "PostriderForeignEvents", "PostriderReloadRefused"):
        world.fires(name, outbox=held.name)
    world.fires("PostriderHousekeeping", outbox=held.name, what="janitor")


def test_groups(world, begun, failing, down, blocked, hung):
    world.fires("PostriderDeadLetters", group=failing.group)
    world.fires("PostriderMessagesParked", group=failing.group)
    world.fires("PostriderHandlerDown", group=down.group)
    world.fires("PostriderHandlerHangs", group=hung.group)
    world.fires("PostriderConsumerStuck", group=blocked.group)
    world.fires("PostriderConsumerLagGrowing", group=blocked.group)


def test_canary(world, begun, canary):
    world.fires("PostriderCanaryMissing", group=canary)


def test_sagas(world, begun, engine):
    world.fires("PostriderSagaStuck", group=engine.group)
    world.fires("PostriderUndoingStopped", group=engine.group, saga="undone")
    engine.db.query("ALTER SCHEMA saga RENAME TO saga_away")
    world.fires("PostriderPartStopped", group=engine.group, what="saga_clock")


def test_sinks(world, begun, sinks):
    well, full = sinks
    wait_until(lambda: world.prometheus.query(f'postrider_sink_drift_total{{group="{well.i.group}"}}'), 60, "a first look")
    well.i.send(1100)  # of fewer it is not known what is usual
    well.check()
    wait_until(lambda: well.i.one("SELECT max(seen) FROM sink.catalogue WHERE path = 'payload'") >= 1000, 60, "the catalogue to know so many")
    well.i.event("k", {"seq": 0, "a path that was never there": 1})
    well.i.flush()
    world.fires("PostriderSinkDrift", group=well.i.group)
    # A file where the sink wants a directory: it takes nothing, whoever asks.
    for name in os.listdir(full.directory):
        os.rename(f"{full.directory}/{name}", f"{full.directory}.{name}.away")
    os.rmdir(full.directory)
    with open(full.directory, "w", encoding="ascii"):
        pass
    full.i.event("k")
    full.i.flush()
    world.fires("PostriderSinkStopped", group=full.i.group)


def test_storm(world, begun):
    """A member that comes and goes: each time the other one is given its partitions anew."""
    i = world.inbox("storm", 2)
    world.watched(i.consumer(ROW)).wait_ready()
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            c = i.member(ROW).start()
            with contextlib.suppress(AssertionError):
                wait_until(lambda: over.is_set() or "partition" in c.log_text(), 30, "it to join", interval_max=0.02)
            c.kill() if over.is_set() else c.terminate()
    guests = [threading.Thread(target=come_and_go) for _ in range(2)]
    for g in guests:
        g.start()
    try:
        world.fires("PostriderRebalanceStorm", group=i.group)
    finally:
        over.set()
        for g in guests:
            g.join()


def test_producer(world, begun):
    """Another producer takes the transactional id, again and again."""
    o = world.outbox("fenced")
    o.relay.wait_ready()
    kind, topic = o.kind()
    for n in range(1, 21):  # a series that was not there before begins with its second sample
        o.publish(kind, "k")
        o.read(topic, 2 * n - 1)  # its producer has begun
        before = o.relay.metric("postrider_producer_restarts_total")
        Producer({"bootstrap.servers": world.kafka.bootstrap, "transactional.id": f"postrider.{o.name}", "log_level": 2}).init_transactions(60)
        o.publish(kind, "k")
        wait_until(lambda: o.relay.metric("postrider_producer_restarts_total") > before, 60, "a new producer")
        fired = world.prometheus.firing("PostriderProducerRestarts", outbox=o.name, reason="fenced")
        if fired:
            break
    world.whole((fired or [world.prometheus.fires("PostriderProducerRestarts", outbox=o.name, reason="fenced")])[0],
                "PostriderProducerRestarts", outbox=o.name, reason="fenced")


def test_postgres(world, begun):
    """A slow way to Postgres looks like clocks that differ; no way at all does not."""
    with Proxy("postgres", world.pg.port) as p, Outbox(world.pg, world.kafka, "away") as o:
        relay = servers.Relay(p.conninfo(o.db.name), world.kafka.bootstrap, name=o.name)
        world.watched(relay).wait_ready()
        p.latency(250)
        world.fires("PostriderClockSkew", outbox=o.name)
        p.latency(0)
        p.refuse()
        p.reset_all()
        world.fires("PostriderServerAway", outbox=o.name, what="postgres")
        relay.kill()


def test_service(world, begun):
    """Its database is away, and then the service is."""
    db = world.pg.createdb(f"svc_{os.getpid()}")
    world.stack.callback(db.drop)
    with Proxy("postgres", world.pg.port) as p:
        s = world.watched(Service("user", p.conninfo(db.name), {"password": {"passes": 1, "memory": "8kB"}})).wait_ready()
        p.refuse()
        p.reset_all()

        def ask():
            request = urllib.request.Request(f"http://127.0.0.1:{s.port}/login", b'{"email": "ann@example.org", "password": "secret-1"}',
                                             {"Content-Type": "application/json"})
            with contextlib.suppress(urllib.error.HTTPError, OSError):
                urllib.request.urlopen(request, timeout=5).read()
            return world.prometheus.firing("PostriderServiceErrors", service="user")
        # Nobody asks any more, and it ends: what fired is what counts.
        world.whole(wait_until(ask, 90, "PostriderServiceErrors")[0], "PostriderServiceErrors", service="user")
        s.kill()
        world.fires("PostriderServiceDown", service="user")


def test_processes(world, begun):
    """The standby goes, then the relay; and the only member of a group."""
    o = world.outbox("gone")
    o.relay.wait_ready()
    standby = servers.Relay(o.db.conninfo, world.kafka.bootstrap, name=o.name)
    world.watched(standby)
    wait_until(lambda: world.prometheus.query(f'postrider_state{{outbox="{o.name}",state="standby"}} == 1'), 60, "the standby to be seen")
    standby.kill()
    i = world.inbox("left")
    c = world.watched(i.consumer(ROW)).wait_ready()
    wait_until(lambda: world.prometheus.query(f'postrider_up{{group="{i.group}"}}'), 60, "the member to be seen")
    c.kill()
    world.fires("PostriderProcessDown", instance=f"127.0.0.1:{standby.port}")
    world.fires("PostriderStandbyMissing", outbox=o.name)
    world.fires("PostriderConsumerDown", group=i.group)
    o.relay.kill()
    world.fires("PostriderRelayDown", outbox=o.name)


def test_what_takes_an_hour(world, begun, paused, push):
    world.fires("PostriderAlertsUnsent", group=push.group)
    world.fires("PostriderPausedLong", outbox=paused.name)
    world.fires("PostriderAlertsUnacknowledged", group=push.group)


def test_kafka(world, begun):
    """The broker stands still, and comes back: what was late is counted then."""
    o = world.outbox("stood")
    o.relay.wait_ready()
    kind, topic = o.kind()
    o.publish(kind, "k")
    o.read(topic, 1)
    wait_until(lambda: world.prometheus.query(f'postrider_insert_to_ack_seconds_count{{outbox="{o.name}"}} > 0'), 60, "a first look")
    world.kafka.signal(signal.SIGSTOP)
    try:
        for _ in range(40):
            o.publish(kind, "k")
        world.fires("PostriderError", outbox=o.name)
        world.fires("PostriderRelayStuck", outbox=o.name)
        world.fires("PostriderLagGrowing", outbox=o.name)
    finally:
        world.kafka.signal(signal.SIGCONT)
    world.fires("PostriderSloBurn", outbox=o.name)
    world.fires("PostriderSloBurnSlow", outbox=o.name)
    world.prometheus.ends("PostriderRelayStuck", outbox=o.name)


def test_each_was_caused():
    """Whoever adds an alert adds its trouble here. Only of the file as a whole."""
    if len(FIRED) > 20:
        assert set(rules.alerts()) - FIRED == set()
