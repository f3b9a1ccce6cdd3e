"""tests/fault/test_breaks.py -- servers die, freeze and lose replies under load; then all is healed.

Every test ends with the verdict of the independent checker. The lag must be honest while
something is broken, and 0 when it is well again.
"""
import random
import signal
import time

import pytest
import servers
from confluent_kafka import KafkaException
from proxy import (ADD_PARTITIONS_TO_TXN, END_TXN, FIND_COORDINATOR, INIT_PRODUCER_ID, METADATA, PRODUCE, Proxy)
from scene import both, exactly_once, scene  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(400)

SESSIONS = ("control", "data", "hold", "janitor")


@pytest.fixture(scope="module")
def frail_pg():
    """A Postgres that the tests of this file stop, kill and start again."""
    # The WAL writer is slow, so that what commits asynchronously is not durable for long.
    pg = servers.Postgres(config={"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}).start()
    yield pg
    pg.stop("immediate")


@pytest.fixture(scope="module")
def frail_kafka():
    """A broker that the tests of this file freeze, kill and start again; with a door for the proxy."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    k = servers.Kafka(quick=True, proxy_port=servers.free_port()).start().warm()
    yield k
    k.kill()


@pytest.fixture
def kafka_proxy(frail_kafka):
    with Proxy("kafka", upstream_port=frail_kafka.proxied_port, port=frail_kafka.proxy_port) as p:
        yield p


@pytest.fixture
def pg_proxy(pg_server):
    with Proxy("postgres", pg_server.port) as p:
        yield p


def ready(relay):
    """200, 503 or None when it does not answer; and the page."""
    try:
        return relay.get("/readyz")
    except OSError:
        return None, ""


def lag(relay):
    return relay.metric("postrider_lag_seconds", -1)


def running(s, **more):
    """A relay under load that has published something."""
    relay = s.relay(**more).start()
    s.load()
    s.flows(relay, 100)
    return relay


def back(s):
    """The broker is started again, and leads the partitions of the topic."""
    s.kafka.start()
    wait_until(lambda: len(s.kafka.end_offsets(s.topic)) == s.partitions, 60, "the topic to be there again",
               ignore=(KafkaException, KeyError))


def healed(s, relay, deaths=None):
    s.flows(relay, 50)
    result = s.check(deaths=deaths)
    s.drained(relay)
    return result


def grows(relay, by=1.0, timeout=60):
    """Until the lag has grown; it may not fall meanwhile, and the relay may not call itself ready."""
    seen = [lag(relay)]

    def more():
        seen.append(lag(relay))
        # Late commits are not looked for while nothing streams, so it may give way by as much as one was late: on a busy
        # machine that is seconds.
        assert seen[-1] >= seen[-2] - 3, f"the lag fell: {seen}"
        return seen[-1] - seen[0] >= by
    wait_until(more, timeout, "the lag to grow", interval=0.05)


def honest(relay, timeout=60):
    wait_until(lambda: ready(relay)[0] == 503, timeout, "the relay to say that not all is well")
    grows(relay)
    assert ready(relay)[0] == 503


# ---------------------------------------------------------------- Postgres

@both
def test_postgres_stops_at_once_and_comes_back(scene, frail_pg, kafka, delivery):
    """Story: immediate stop, as a power cut does it; nothing that was not durable may have left."""
    s = scene(frail_pg, kafka, delivery)
    relay = running(s)
    for _ in range(2):
        frail_pg.stop("immediate")
        wait_until(lambda: ready(relay)[0] == 503, 60, "the relay to say that Postgres is away")
        frail_pg.start()
        s.flows(relay, 100)
    load = s.loads[0]
    healed(s, relay, deaths=2)
    assert load.lost_by_postgres() == []


@both
def test_nothing_is_invented_for_writers_that_commit_asynchronously(scene, frail_pg, kafka, delivery):
    """Story: rows of synchronous_commit = off are visible before they are durable. A relay that trusted
    its eyes published them, the server stopped at once, and they had never been. Worse: the sequence went
    back, and the next real events got their numbers."""
    s = scene(frail_pg, kafka, delivery)
    relay = running(s)
    rnd = random.Random(7)
    for _ in range(5):
        s.stop_load()
        s.load(async_commit=1.0, clients=4, rate=None, hold=None, rollback=0, savepoint=0, variety=False)
        s.flows(relay, rnd.randrange(20, 400))
        frail_pg.stop("immediate")
        frail_pg.start()
    result = healed(s, relay, deaths=6)
    assert result.phantom == 0 and result.journal > 500


@both
def test_each_session_is_killed(scene, pg_server, kafka, delivery):
    """Story: an administrator, a pooler or a firewall ends one session, the others live on."""
    s = scene(pg_server, kafka, delivery)
    relay = running(s)
    for role in SESSIONS * 2:
        where = f"application_name = 'postrider-relay {s.name} {role}'"
        wait_until(lambda: pg_server.kill_backend(where), 30, f"session {role} to kill")  # noqa: B023
        s.flows(relay, 20)
    assert relay.metric("postrider_pg_reconnects_total") >= 2
    healed(s, relay, deaths=4)


@exactly_once
def test_a_backend_crashes_and_all_are_restarted(scene, frail_pg, kafka, delivery):
    """Story: one backend dies of a signal, and Postgres throws everybody out and recovers."""
    s = scene(frail_pg, kafka, delivery)
    relay = running(s)
    victims = frail_pg.kill_backend(f"application_name = 'postrider-relay {s.name} data'", signal.SIGKILL)
    assert victims
    wait_until(lambda: relay.metric("postrider_pg_reconnects_total") >= 1, 60, "the relay to be thrown out")
    wait_until(frail_pg.accepts, 60, "Postgres to have recovered")
    healed(s, relay)


@both
def test_a_frozen_session_is_given_up(scene, pg_server, kafka, delivery):
    """Story: a backend that does not answer: on a disk that hangs, behind a network that swallows. Own
    deadlines end the wait, and the relay goes on with another session."""
    s = scene(pg_server, kafka, delivery)
    relay = running(s, config={"source": {"timeout": "2s"}})

    def freeze(role):
        return wait_until(lambda: pg_server.stop_backend(f"application_name = 'postrider-relay {s.name} {role}'"), 30, f"session {role} to freeze")
    for role in ("data", "hold", "janitor"):
        pids = freeze(role)
        try:
            wait_until(lambda: len(pg_server.backends(  # noqa: B023
                f"application_name = 'postrider-relay {s.name} {role}'")) > len(pids) or role == "hold",  # noqa: B023
                60, f"another session {role}")
            s.flows(relay, 100)
        finally:
            pg_server.cont_backend(pids)
    # The lock lives in this one: while it is frozen, nobody may lead.
    pids = freeze("control")
    try:
        wait_until(lambda: lag(relay) > 1.5, 60, "the lag to grow")
    finally:
        pg_server.cont_backend(pids)
    healed(s, relay, deaths=4)


@both
def test_a_lock_on_what_is_held_back_only_delays(scene, pg_server, kafka, delivery):
    """Story: a statement of the transaction that parks was cancelled; the session stayed in the failed
    transaction, every further one was refused, and that was taken for a refusal of the events."""
    s = scene(pg_server, kafka, delivery, topic_config={"max.message.bytes": "3000"})
    relay = running(s, config={"source": {"timeout": "2s"}})
    locker = s.db.connect(autocommit=False)
    with locker.cursor() as cur:
        cur.execute("LOCK TABLE outbox.parked IN EXCLUSIVE MODE")
    s.one("a1", size=6000)
    wait_until(lambda: "statement timeout" in relay.log_text() or "did not answer in time" in relay.log_text(), 60,
               "the statement to be cancelled")
    locker.rollback()
    locker.close()
    wait_until(lambda: s.parked() > 0, 60, "the event to be parked")
    assert s.db.query("SELECT key FROM outbox.parked WHERE head") == [("a1",)]
    s.flows(relay, 50)
    s.stop_load()
    s.kafka.set_topic_config(s.topic, {"max.message.bytes": "1000000"})
    s.db.query("SELECT outbox.parked_request_key(%s, 'a1', 'retry')", (s.topic,))
    s.check(deaths=4)
    s.drained(relay)


@both
def test_released_under_load(scene, pg_server, kafka, delivery):
    """Story: the operator made room and asked for a retry; the relay still knew the old limit and refused.
    And in at_least_once a key was let go while an event of it was noted and not yet in outbox.parked: it
    was passed by its successors, and parked under a key that was free."""
    s = scene(pg_server, kafka, delivery, topic_config={"max.message.bytes": "3000"})
    relay = running(s)
    keys = [f"a{i}" for i in range(10)]
    for key in keys:
        s.one(key, size=6000)
    wait_until(lambda: s.db.one("SELECT count(*) FROM outbox.parked WHERE head") == len(keys), 60, "all heads")
    s.kafka.set_topic_config(s.topic, {"max.message.bytes": "1000000"})
    for key in keys:
        s.db.query("SELECT outbox.parked_request_key(%s, %s, 'retry')", (s.topic, key))
    wait_until(lambda: s.parked() == 0, 60, "all keys to be free again, under load")
    healed(s, relay, deaths=10)


# ---------------------------------------------------------------- Kafka

@both
def test_the_broker_is_killed(scene, pg_server, frail_kafka, delivery):
    """Story: kill -9 of the broker under load; librdkafka 2.0.2 may go fatal, a new producer is routine.
    Kafka was away for an hour, and the dashboard was green."""
    s = scene(pg_server, frail_kafka, delivery)
    relay = running(s)
    frail_kafka.kill()
    honest(relay)
    back(s)
    healed(s, relay, deaths=4)


@both
def test_the_broker_freezes(scene, pg_server, frail_kafka, delivery):
    """Story: SIGSTOP for longer than the broker's answer may take. What was in flight may or may not be
    on the topic; only the broker knows."""
    s = scene(pg_server, frail_kafka, delivery)
    relay = running(s, config={"kafka": {"timeout": "2s"}})
    frail_kafka.sigstop()
    frozen = time.monotonic()
    try:
        honest(relay)
        wait_until(lambda: time.monotonic() - frozen > 5, 10, "5 seconds to pass")
    finally:
        frail_kafka.sigcont()
    healed(s, relay, deaths=8)


# ---------------------------------------------------------------- replies that get lost

@both
def test_postgres_is_cut_at_each_message(scene, pg_server, pg_proxy, kafka, delivery):
    """Story: the connection ends behind the n-th message, for each n from the first of a new session on,
    to either side: what was not answered is asked again, what was half read is thrown away."""
    s = scene(pg_server, kafka, delivery)
    s.conninfo = pg_proxy.conninfo(s.db.name)
    relay = s.relay().start()
    s.load(rate=100)
    s.flows(relay, 50)
    for n in (*range(1, 12), 14, 18, 23, 30, 40):
        for direction in ("up", "down"):
            fired = pg_proxy.stats()["fired"]
            pg_proxy.rule(direction, "any", n, "cut" if n % 2 else "rst")
            pg_proxy.reset_all()
            pg_proxy.wait_fired(fired + 1)
    healed(s, relay)


@both
def test_the_reply_to_commit_is_lost(scene, pg_server, pg_proxy, kafka, delivery):
    """Story: the transaction that parks is committed and nobody heard it; the one that forgets what was
    released, likewise. Asked again, both must change nothing."""
    s = scene(pg_server, kafka, delivery, topic_config={"max.message.bytes": "3000"})
    s.conninfo = pg_proxy.conninfo(s.db.name)
    relay = running(s)
    pg_proxy.rule("down", "pg:C:COMMIT", 1, "drop+cut")
    s.one("a1", size=6000)
    pg_proxy.wait_fired()
    wait_until(lambda: s.parked() > 10, 60, "events to queue up behind it")
    s.kafka.set_topic_config(s.topic, {"max.message.bytes": "1000000"})
    s.stop_load()
    wait_until(lambda: relay.metric("postrider_in_flight_events", 9) == 0, 60, "the rest to be out", ignore=(OSError,))
    pg_proxy.rule("down", "pg:C:COMMIT", 2, "drop+cut")
    s.db.query("SELECT outbox.parked_request_key(%s, 'a1', 'retry')", (s.topic,))
    pg_proxy.wait_fired(2)
    s.check(deaths=2)
    wait_until(lambda: s.parked() == 0, 60, "nothing to be parked")
    s.drained(relay)


@both
def test_kafka_is_cut_at_each_message(scene, pg_server, frail_kafka, kafka_proxy, delivery):
    """Story: the connection ends behind the n-th message, for each n of new connections and of a new
    producer, to either side."""
    s = scene(pg_server, frail_kafka, delivery)
    s.brokers = frail_kafka.proxied_bootstrap
    relay = s.relay().start()
    s.load(rate=100)
    s.flows(relay, 50)
    for n in (1, 2, 3, 4, 6, 9, 14):
        for direction in ("up", "down"):
            fired = kafka_proxy.stats()["fired"]
            kafka_proxy.rule(direction, "any", n, "cut" if n % 2 else "rst")
            kafka_proxy.reset_all()
            kafka_proxy.wait_fired(fired + 1)
    for n in (1, 3, 5, 8, 12, 17):  # of a start
        relay.kill()
        fired = kafka_proxy.stats()["fired"]
        kafka_proxy.rule("up" if n in (3, 8) else "down", "any", n, "rst")
        relay.start()
        kafka_proxy.wait_fired(fired + 1)
    healed(s, relay)


@pytest.mark.parametrize("delivery, key", [
    ("exactly_once", PRODUCE), ("exactly_once", END_TXN), ("exactly_once", ADD_PARTITIONS_TO_TXN),
    ("exactly_once", INIT_PRODUCER_ID), ("exactly_once", FIND_COORDINATOR), ("at_least_once", PRODUCE),
    ("at_least_once", INIT_PRODUCER_ID), ("at_least_once", METADATA)],
    ids=lambda x: x if isinstance(x, str) else {PRODUCE: "produce", END_TXN: "end_txn", METADATA: "metadata",
                                                ADD_PARTITIONS_TO_TXN: "add_partitions",
                                                INIT_PRODUCER_ID: "init_producer_id",
                                                FIND_COORDINATOR: "find_coordinator"}[x])
def test_a_response_of_the_broker_is_lost(scene, pg_server, frail_kafka, kafka_proxy, delivery, key):
    """Story: the broker did it and the response never arrived. Sent again, the request of an idempotent
    producer is a duplicate that the broker knows; of a transaction nobody may guess the end."""
    s = scene(pg_server, frail_kafka, delivery)
    s.brokers = frail_kafka.proxied_bootstrap
    relay = s.relay()
    kafka_proxy.rule("down", f"kafka:{key}", 1, "drop+cut")
    relay.start()
    s.load()
    kafka_proxy.wait_fired()
    s.flows(relay, 50)
    if key in (PRODUCE, END_TXN, ADD_PARTITIONS_TO_TXN):
        for n, action in ((4, "drop+rst"), (9, "drop+cut")):
            fired = kafka_proxy.stats()["fired"]
            kafka_proxy.rule("down", f"kafka:{key}", n, action)
            kafka_proxy.wait_fired(fired + 1)
            s.flows(relay, 50)
    healed(s, relay, deaths=3)


# ---------------------------------------------------------------- the end, and another beginning

@both
def test_sigterm_under_load_leaves_nothing_half_done(scene, pg_server, kafka, delivery):
    """Story: each deploy is a SIGTERM. What was in flight is settled, so not even at_least_once repeats
    anything, and the exit status is 0."""
    s = scene(pg_server, kafka, delivery)
    relay = running(s, config={"shutdown": {"drain": "30s"}})
    for _ in range(3):
        assert relay.terminate(60) == 0
        relay.start()
        s.flows(relay, 50)
    result = healed(s, relay)
    assert result.dup == 0, result.report()


@pytest.mark.parametrize("delivery, how", [("exactly_once", "killed"), ("exactly_once", "frozen"),
                                           ("at_least_once", "frozen")])
def test_sigterm_with_kafka_away(scene, pg_server, frail_kafka, delivery, how):
    """Story: a relay that waited for Kafka at its end was killed by the service manager, every time."""
    s = scene(pg_server, frail_kafka, delivery)
    relay = running(s, config={"shutdown": {"drain": "1s"}})
    frail_kafka.sigstop() if how == "frozen" else frail_kafka.kill()
    try:
        assert relay.terminate(60) == 0  # a service manager waits for 90 s
    finally:
        frail_kafka.sigcont() if how == "frozen" else back(s)
    relay.start()
    healed(s, relay, deaths=2)


@both
def test_sighup_again_and_again(scene, pg_server, kafka, delivery):
    """Story: a reload with a broken file: all or nothing, the old configuration stays, and /readyz says so
    until a good file comes."""
    s = scene(pg_server, kafka, delivery)
    relay = running(s)
    with open(relay.file, encoding="utf-8") as f:
        good = f.read()
    broken = (good + "nonsense = 1;\n", good[:-20], "", good.replace("batch_events = 200", "batch_events = 0"))
    started = relay.pid
    for i in range(30):
        bad = i % 3 == 1
        with open(relay.file, "w", encoding="utf-8") as f:
            f.write(broken[i // 3 % len(broken)] if bad else good.replace("batch_events = 200",
                                                                          f"batch_events = {100 + i}"))
        relay.hup()
        if bad:
            wait_until(lambda: relay.status()["checks"]["reload"] != "ok", 30, "the reload to be refused")
            code, page = relay.get("/readyz")
            assert code == 503 and '"state":"warn"' in page and "relay.cfg" in page, page
        else:
            wait_until(lambda: relay.status()["checks"]["reload"] == "ok", 30, "the reload to be well again")
    assert relay.pid == started and relay.running()
    result = healed(s, relay, deaths=0)
    assert result.dup == 0


# ---------------------------------------------------------------- honest

@exactly_once
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_the_lag_is_honest_without_postgres(scene, frail_pg, kafka, delivery, how):
    """Story: a relay that cannot ask does not know that there is nothing to do."""
    s = scene(frail_pg, kafka, delivery)
    relay = s.relay({"source": {"timeout": "500ms"}}).start().wait_ready()
    s.one("a1")
    wait_until(lambda: s.published(relay) == 1, 60, "the first event")
    s.drained(relay)
    pids = []
    if how == "stopped":
        frail_pg.stop("fast")
    else:
        pids = frail_pg.stop_backend("application_name LIKE 'postrider-relay %'")
        frail_pg.sigstop()
    try:
        honest(relay)
    finally:
        if how == "stopped":
            frail_pg.start()
        else:
            frail_pg.sigcont()
            frail_pg.cont_backend(pids)
    s.check()
    s.drained(relay)


@exactly_once
def test_the_lag_is_honest_while_paused_and_parked(scene, pg_server, kafka, delivery):
    """Story: an operator paused the relay on Friday."""
    s = scene(pg_server, kafka, delivery, topic_config={"max.message.bytes": "3000"})
    relay = s.relay().start().wait_ready()
    s.one("a1")
    wait_until(lambda: s.published(relay) == 1, 60, "the first event")
    s.drained(relay)
    s.db.query("SELECT outbox.pause('friday')")
    wait_until(lambda: '"state":"paused"' in ready(relay)[1], 30, "the relay to be paused")
    s.one("a2")
    honest(relay)
    assert s.published(relay) == 1
    s.db.query("SELECT outbox.resume('monday')")
    s.drained(relay)
    s.one("a3", size=6000)
    honest(relay)
    wait_until(lambda: relay.metric("postrider_parked_events") == 1, 30, "the parked event to be counted")
    s.kafka.set_topic_config(s.topic, {"max.message.bytes": "1000000"})
    s.db.query("SELECT outbox.parked_request_key(%s, 'a3', 'retry')", (s.topic,))
    s.drained(relay)
    s.check()


@exactly_once
def test_a_relay_that_knows_nothing_yet_is_not_ready(scene, pg_server, pg_proxy, kafka, delivery):
    """Story: just started and without an answer from Postgres, the relay called itself a standby, which
    is ready: another relay, it said, holds the lock."""
    s = scene(pg_server, kafka, delivery)
    s.conninfo = pg_proxy.conninfo(s.db.name)
    pg_proxy.freeze()
    relay = s.relay({"source": {"timeout": "2s"}}).start()
    wait_until(lambda: ready(relay)[0], 30, "the relay to answer")
    stays(lambda: ready(relay)[0] == 503, 1, "not ready")
    assert '"state":"standby"' not in ready(relay)[1]
    pg_proxy.thaw()
    relay.wait_ready()
    s.one("a1")
    s.check()


@exactly_once
def test_a_late_row_does_not_hide_how_far_it_went(scene, pg_server, kafka, delivery):
    """Story: new rows and, in the next turn, a late one below them left in one transaction. Its position
    named the late one as the highest: a standby saw lag for ever, and a restart within the following turn
    would have taken the new rows for restored ones and published them again."""
    s = scene(pg_server, kafka, delivery)
    s.one("first")
    relay = s.relay().start().wait_ready()
    s.drained(relay)
    slow = s.db.connect(autocommit=False)
    with slow.cursor() as cur:
        cur.execute("SELECT truth.txn(%s, ARRAY['late'], 1, 'publish', 0, 50, false)", (s.kind,))
    s.db.query("SELECT outbox.pause('test')")
    wait_until(lambda: '"state":"paused"' in ready(relay)[1], 30, "the relay to be paused")
    s.one("new")
    wait_until(lambda: lag(relay) > 0, 60, "the new row to be read")
    slow.commit()
    slow.close()
    data = f"application_name = 'postrider-relay {s.name} data' AND state = 'idle' AND query LIKE '%%xid = ANY%%'"
    wait_until(lambda: pg_server.backends(data), 60, "the late row to be read")
    s.db.query("SELECT outbox.resume('test')")
    s.check()
    s.drained(relay)
    assert relay.status()["position"]["seq"] == s.db.one("SELECT max(seq) FROM outbox.event")


@both
def test_first_record_of_a_partition_goes_alone(scene, pg_server, frail_kafka, kafka_proxy, delivery):
    """Story: of six hundred events for a topic that was just made, the first was missing, exactly once and without
    a word, while batches were small. A broker that has not heard of a topic yet refuses the first batch for it,
    and takes the second that is on its way behind it, for it takes any first sequence number from a producer
    that it does not know on a partition (KAFKA-15591). So nothing follows a producer's first record of a
    partition until it is acknowledged, here late."""
    s = scene(pg_server, frail_kafka, delivery, partitions=1)
    s.brokers = kafka_proxy.bootstrap
    relay = s.relay({"kafka": {"timeout": "30s", "properties": ["batch.size=1000", "compression.codec=none"]}}).start()
    wait_until(lambda: relay.status()["state"] == "ok", 60, "the relay to publish", ignore=(OSError,))
    s.one("before", kind=s.name + "-other")  # waits, for its topic is missing; the session is under way
    wait_until(lambda: s.waiting() == 1, 60, "an event to wait")
    produced = f"up.{PRODUCE}"

    def requests():
        return kafka_proxy.stats().get(produced, 0)

    def quiet():
        n = requests()
        return relay.status()["position"]["seq"] >= 1 and stays(lambda: requests() == n, 0.3)
    wait_until(quiet, 60, "the position of what waits to be out", ignore=(AssertionError,))
    before = requests()
    kafka_proxy.rule("down", f"kafka:{PRODUCE}", 1, "hold:6000")
    s.db.query("SELECT truth.txn(%s, ARRAY['a'], 10, 'bulk', 0, 1500, false)", (s.kind,))
    wait_until(lambda: requests() > before, 60, "the first record", interval_max=0.01)
    stays(lambda: requests() == before + 1, 1, "nothing behind it")
    kafka_proxy.wait_fired()
    frail_kafka.create_topic(s.topics[0] + "-other", 1)
    s.topics.append(s.topics[0] + "-other")
    s.check(deaths=0)
    wait_until(lambda: s.waiting() == 0, 60, "nothing to wait")
