"""tests/fault/test_kill.py -- the relay is killed at every place between two durable effects.

For each FAULT(name) in relay/ there is a test of that name, in each delivery mode in which
the place exists: the relay dies there by SIGKILL at its first passage and again in the
middle of the load, is started again, and the independent checker says what came of it.
"""
import signal

import checker
import pytest
from scene import at_least_once, both, exactly_once, scene  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)

LATER = 7  # a passage in the middle of things


def dies(relay, point, timeout=60):
    """Starts the relay so that it dies at the point; proves that it did."""
    relay.start(fault=point)
    assert relay.wait(timeout) == -signal.SIGKILL, relay.log_text()[-3000:]


def killed_under_load(s, point):
    """Twice killed at the point under load, then well: the verdict."""
    relay = s.relay()
    s.load()
    for passage in (1, LATER):
        dies(relay, f"{point}:{passage}")
    relay.start()
    s.flows(relay, 100)
    result = s.check(deaths=2)
    s.drained(relay)
    return result


# ---------------------------------------------------------------- one shipment

@exactly_once
def test_events_before_position(scene, pg_server, kafka, delivery):
    """Story: events produced, position not yet. A relay that committed what it found open would publish
    the events again from the old position; a successor must abort it."""
    killed_under_load(scene(pg_server, kafka, delivery), "events_before_position")


@exactly_once
def test_position_before_commit(scene, pg_server, kafka, delivery):
    """Story: events and position are in a transaction that nobody ended. Read uncommitted, the position
    is a lie."""
    killed_under_load(scene(pg_server, kafka, delivery), "position_before_commit")


@exactly_once
def test_committed_before_accounting(scene, pg_server, kafka, delivery):
    """Story: the transaction is committed and the relay dies before it knows. The successor must learn
    from the position that nothing of it is owed."""
    killed_under_load(scene(pg_server, kafka, delivery), "committed_before_accounting")


@exactly_once
def test_committed_before_accounting_behind_a_late_commit(scene, pg_server, kafka, delivery):
    """Story: a turn begins with the rows of a transaction that committed late, and goes on with the new
    rows. A relay that died among the new ones found itself, by its position, before the late ones: it
    stepped over these, went back to where the new rows begin and published them twice."""
    s = scene(pg_server, kafka, delivery)
    s.one("first")
    slow = s.db.connect(autocommit=False)
    with slow.cursor() as cur:
        cur.execute("SELECT truth.txn(%s, ARRAY['late'], 3, 'publish', 0, 50, false)", (s.kind,))
    s.one("second")
    relay = s.relay({"limits": {"batch_events": 20}}).start()
    wait_until(lambda: s.published(relay) == 2, 60, "both to be published", ignore=(OSError,))
    s.drained(relay)
    relay.kill()
    slow.commit()
    slow.close()
    for i in range(10):
        s.db.query("SELECT truth.txn(%s, ARRAY[%s], 10, 'bulk', 0, 50, false)", (s.kind, f"new{i}"))
    dies(relay, "committed_before_accounting:2")
    relay.start()
    s.check()


@at_least_once
def test_produced_before_acknowledged(scene, pg_server, kafka, delivery):
    """Story: events are on their way, some arrive, nobody hears of it."""
    killed_under_load(scene(pg_server, kafka, delivery), "produced_before_acknowledged")


@at_least_once
def test_acknowledged_before_position(scene, pg_server, kafka, delivery):
    """Story: acknowledged, but the position does not say so: they must come twice, not never."""
    killed_under_load(scene(pg_server, kafka, delivery), "acknowledged_before_position")


@at_least_once
def test_acknowledged_before_position_repeats_exactly_what_it_must(scene, pg_server, kafka, delivery):
    """The point is where it says: one event, acknowledged and not in the position, is there twice."""
    s = scene(pg_server, kafka, delivery)
    s.one("a1")
    relay = s.relay()
    dies(relay, "acknowledged_before_position")
    assert len(checker.read_records(kafka.bootstrap, s.topic)) == 1, "it was acknowledged"
    relay.start()
    wait_until(lambda: len(checker.read_records(kafka.bootstrap, s.topic)) == 2, 60, "the event to come again")
    s.check(deaths=1)
    s.drained(relay)


@both
def test_first_position_before_row(scene, pg_server, kafka, delivery):
    """Story: Kafka has the first position, the database does not know. Recorded the other way round, the
    next start would refuse for no reason: 'holds no position, though one was written before'."""
    s = scene(pg_server, kafka, delivery)
    s.load()
    relay = s.relay()
    dies(relay, "first_position_before_row")
    assert s.db.query("SELECT name FROM outbox.relay") == []
    relay.start()
    s.flows(relay, 50)
    assert s.db.one("SELECT name FROM outbox.relay") == s.name
    s.check(deaths=1)


# ---------------------------------------------------------------- what is held back

def poison(s, agg):
    """An event larger than its topic takes."""
    s.one(agg, size=6000)


def small_topic(scene, pg, kafka, delivery):
    return scene(pg, kafka, delivery, topic_config={"max.message.bytes": "3000"})


def enlarge(s):
    s.kafka.set_topic_config(s.topic, {"max.message.bytes": "1000000"})


def retry_all(s):
    for topic, key in s.db.query("SELECT DISTINCT topic, key FROM outbox.parked"):
        s.db.query("SELECT outbox.parked_request_key(%s, %s, 'retry')", (topic, key))


@both
def test_held_back_before_position(scene, pg_server, kafka, delivery):
    """Story: a refused event is parked in Postgres, and the position has not stepped over it: it is read
    again and parked again. Once, and its key stays behind it."""
    s = small_topic(scene, pg_server, kafka, delivery)
    s.load(aggregates=5)
    relay = s.relay()
    for agg, passage in (("a1", 1), ("a2", 3)):
        poison(s, agg)
        dies(relay, f"held_back_before_position:{passage}")
    relay.start()
    wait_until(lambda: s.db.one("SELECT count(*) FROM outbox.parked WHERE head") == 2, 60, "both heads to be parked")
    s.flows(relay, 50)
    s.stop_load()
    enlarge(s)
    retry_all(s)
    s.check(deaths=2)
    wait_until(lambda: s.parked() == 0, 60, "nothing to be parked")
    s.drained(relay)


@both
def test_held_back_before_position_and_asked_for(scene, pg_server, kafka, delivery):
    """Story: parked, and the relay died before the position stepped over it; meanwhile the operator made
    room and asked for a retry. The relay released the key first and then read the same events again: its
    earlier ones came late, the released ones twice."""
    s = small_topic(scene, pg_server, kafka, delivery)
    many = "SELECT truth.txn(%s, ARRAY['a1', 'a2'], 20, 'bulk', 0, 50, false)"
    s.one("a1")
    s.db.query(many, (s.kind,))
    poison(s, "a1")
    s.db.query(many, (s.kind,))
    relay = s.relay()
    dies(relay, "held_back_before_position:1")
    assert s.parked() == 21
    enlarge(s)
    retry_all(s)
    relay.start()
    s.check(deaths=1)
    wait_until(lambda: s.parked() == 0, 60, "nothing to be parked")
    s.drained(relay)


@both
def test_held_back_before_position_and_no_longer_refused(scene, pg_server, kafka, delivery):
    """Story: parked, and the relay died before the position stepped over it; meanwhile there is room, and nobody
    asked for anything. The same events are read again and go at once: what was parked is forgotten, not
    published a second time when an operator looks at it."""
    s = small_topic(scene, pg_server, kafka, delivery)
    many = "SELECT truth.txn(%s, ARRAY['a1', 'a2'], 20, 'bulk', 0, 50, false)"
    s.one("a1")
    poison(s, "a1")
    s.db.query(many, (s.kind,))
    relay = s.relay()
    dies(relay, "held_back_before_position:1")
    assert s.parked() == 21
    enlarge(s)
    relay.start()
    wait_until(lambda: (s.count(relay) or 0) >= 42, 60, "all of it to be published")
    assert s.parked() == 0
    retry_all(s)
    s.check(deaths=1)
    s.drained(relay)


@both
def test_held_back_before_position_of_a_missing_topic(scene, pg_server, kafka, delivery):
    """Story: rows of a topic that is not there yet are a range in Postgres, and the position has not
    stepped over them: the same rows again may not be a second range, or they go out twice."""
    s = scene(pg_server, kafka, delivery, create=False)
    s.load()
    relay = s.relay()
    for passage in (1, 3):
        dies(relay, f"held_back_before_position:{passage}")
    relay.start()
    wait_until(lambda: relay.metric("postrider_waiting_events") > 100, 60, "events to wait", ignore=(OSError,))
    kafka.create_topic(s.topic, s.partitions)
    s.flows(relay, 100)
    s.check(deaths=2)
    wait_until(lambda: s.waiting() == 0, 60, "nothing to wait")
    s.drained(relay)


def release_dies(s, point, passages=(1, 2)):
    """Killed at the first slice that is released, and at a later one of those that follow."""
    relay = s.relays[-1]
    for passage in passages:
        dies(relay, f"{point}:{passage}")
    relay.start()
    s.flows(relay, 50)
    s.check(deaths=4)
    s.drained(relay)


def parked_then_released(s, point):
    s.load(aggregates=5)
    relay = s.relay().start()
    poison(s, "a1")
    # Parked, and the position has stepped over them: what it has not would only be read again.
    wait_until(lambda: s.db.one("SELECT count(*) FROM outbox.parked WHERE seq <= %s",
                                (relay.status()["position"]["seq"],)) > 40, 60, "events to queue up behind the poison",
               ignore=(OSError,))
    relay.kill()
    enlarge(s)
    retry_all(s)
    release_dies(s, point)
    wait_until(lambda: s.parked() == 0, 60, "what is out to be forgotten")


def waiting_then_released(s, point):
    s.load()
    relay = s.relay().start()
    wait_until(lambda: relay.metric("postrider_waiting_events") > 200, 60, "events to wait", ignore=(OSError,))
    relay.kill()
    s.kafka.create_topic(s.topic, s.partitions)
    release_dies(s, point)
    wait_until(lambda: s.waiting() == 0, 60, "what is out to be forgotten")


@exactly_once
def test_released_before_forgotten(scene, pg_server, kafka, delivery):
    """Story: parked events are published, and the rows that say "parked" are still there. The position
    names them; a start that did not look would publish them twice."""
    parked_then_released(small_topic(scene, pg_server, kafka, delivery), "released_before_forgotten")


@exactly_once
def test_released_before_forgotten_of_a_missing_topic(scene, pg_server, kafka, delivery):
    """The same for a range that waited for its topic, and is half out."""
    waiting_then_released(scene(pg_server, kafka, delivery, create=False), "released_before_forgotten")


def many_parked_then_released(s, point):
    s.one("a1")
    s.load(aggregates=5)
    relay = s.relay().start()
    keys = [f"many{i}" for i in range(60)]
    for size in (6000, 50):
        s.db.query("SELECT truth.txn(%s, %s, 2, 'bulk', 0, %s, false)", (s.kind, keys, size))
    wait_until(lambda: s.db.one("SELECT count(*) FROM outbox.parked WHERE seq <= %s",
                                (relay.status()["position"]["seq"],)) == 240, 60, "sixty keys to be parked",
               ignore=(OSError,))
    relay.kill()
    enlarge(s)
    retry_all(s)
    release_dies(s, point, (1, 4))  # slices of 1, 4, 16, 64 events
    wait_until(lambda: s.parked() == 0, 60, "what is out to be forgotten")


@exactly_once
def test_released_before_forgotten_of_many_keys(scene, pg_server, kafka, delivery):
    """Story: events of many keys are released by one transaction, some keys whole and one in part. The position
    names each of them."""
    many_parked_then_released(small_topic(scene, pg_server, kafka, delivery), "released_before_forgotten")


@at_least_once
def test_released_before_forgotten_alo_of_many_keys(scene, pg_server, kafka, delivery):
    """Without transactions the slice goes out again, each of its keys in order."""
    many_parked_then_released(small_topic(scene, pg_server, kafka, delivery), "released_before_forgotten_alo")


@at_least_once
def test_released_before_forgotten_alo(scene, pg_server, kafka, delivery):
    """Story: without transactions the released slice goes out again, whole and in order."""
    parked_then_released(small_topic(scene, pg_server, kafka, delivery), "released_before_forgotten_alo")


@at_least_once
def test_released_before_forgotten_alo_of_a_missing_topic(scene, pg_server, kafka, delivery):
    """The same for a range that waited for its topic."""
    waiting_then_released(scene(pg_server, kafka, delivery, create=False), "released_before_forgotten_alo")


# ---------------------------------------------------------------- behind

@both
def test_range_dropped(scene, pg_server, kafka, delivery):
    """Story: the janitor drops a range and dies. Nothing that is owed may have been in it, and the next
    start must not look for what is gone."""
    s = scene(pg_server, kafka, delivery)
    s.db.psql("DO $$ DECLARE l text; BEGIN FOR l IN SELECT leaf FROM outbox.partitions LOOP "
              "EXECUTE format('DROP TABLE outbox.%I', l); END LOOP; END $$; SELECT outbox.make_partitions(1000, 8)")
    first = s.db.one("SELECT leaf FROM outbox.partitions ORDER BY from_seq LIMIT 1")
    relay = s.relay({"retention": {"keep": "0s", "partition_events": 1000, "ahead": 8, "every": "100ms"}})
    s.load(rate=600)
    for passage in (1, 2):
        dies(relay, f"range_dropped:{passage}")
    assert s.db.query("SELECT 1 FROM outbox.partitions WHERE leaf = %s", (first,)) == [], "a range is gone"
    relay.start()
    s.flows(relay, 500)
    s.check(deaths=2)
    s.drained(relay)
