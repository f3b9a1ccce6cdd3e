"""tests/e2e/test_holdings.py -- parked keys inside waiting ranges, and ranges beside each other: what is held back
twice over leaves once, and in order.
"""
import ctypes
import json
import random

import pytest

from outbox import Outbox, by_key, unique
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(600)

# Compressed, a record may pass where its size says no; the tests are about sizes.
PLAIN = {"kafka": {"properties": ["compression.codec=none"], "timeout": "5s"}}
MODES = ("exactly_once", "at_least_once")


@pytest.fixture
def outbox(pg_server, kafka):
    """outbox(delivery=..., limits=...) makes one; closed at the end."""
    made = []

    def make(delivery="exactly_once", limits=None, **kafka_more):
        config = {"kafka": {**PLAIN["kafka"], **kafka_more}, "limits": limits or {}}
        made.append(Outbox(pg_server, kafka, "hold", delivery=delivery, config=config))
        return made[-1]
    yield make
    for o in made:
        o.close()


def noise(n, seed=0):
    """n bytes of JSON that do not compress."""
    return json.dumps(random.Random(seed).randbytes(n // 2 + 1).hex()[:n - 2])


def waiting(o):
    """Events and ranges that wait."""
    return o.sql("SELECT coalesce(sum(events), 0)::int, count(*)::int FROM outbox.waiting")[0]


def nothing_held(o, timeout=150):
    wait_until(lambda: not o.parked() and waiting(o)[1] == 0, timeout, "nothing to be held back")


def ask(o, what, key):
    """An operator's answer for every event of a key."""
    assert o.one("SELECT outbox.parked_request_key(topic, key, %s) FROM outbox.parked WHERE key = %s LIMIT 1",
                 (what, key)) > 0


def pause(o):
    """Straight away, for much may be on its way out."""
    o.sql("SELECT outbox.pause('test')")
    o.wait_state("paused")


def nothing_under_way(o, topic):
    """Of a relay that is paused: no transaction is open on the topic, and none begins."""
    def ends():
        return [o.kafka.end_offsets(topic, how) for how in ("read_committed", "read_uncommitted")]

    def quiet():
        committed, all_ = ends()
        return committed == all_ and stays(lambda: ends() == [committed, all_], 1)
    wait_until(quiet, 60, "nothing to be under way", ignore=(AssertionError,))


def parked_inside_a_range(o):
    """A is parked, its topic goes away, B waits before and behind one more of A."""
    kind, topic = o.kind(1, {"max.message.bytes": "2000"})
    o.publish(kind, "A", noise(3000), type="1")
    o.publish(kind, "B", type="1")
    assert by_key(o.read(topic, 1)) == {"B": ["1"]}
    o.wait_parked(1)
    o.kafka.delete_topic(topic)
    o.publish(kind, "B", type="2")
    wait_until(lambda: waiting(o) == (1, 1), 60, "B to wait")
    o.publish(kind, "A", type="2")
    o.wait_parked(2)
    o.publish(kind, "B", type="3")
    wait_until(lambda: waiting(o) == (2, 1), 60, "B to wait")
    return topic


# ---------------------------------------------------------------- parked rows inside a range

def test_parked_inside_a_range(outbox):
    """A range is a range: between B's rows lies one of the parked key A. When the topic is there again and the
    operator has let A go, A's row left with its key, and once more with the range."""
    o = outbox().start()
    topic = parked_inside_a_range(o)
    ask(o, "retry", "A")
    o.kafka.create_topic(topic, 1, {"max.message.bytes": "100000"})
    nothing_held(o)
    records = o.read(topic, 4)
    assert by_key(records) == {"A": ["1", "2"], "B": ["2", "3"]}
    o.wait_state("ok")
    assert (o.relay.metric("postrider_parked_events"), o.relay.metric("postrider_parked_keys")) == (0, 0)


def test_skipped_inside_a_range(outbox):
    """The operator skips A for ever while its topic is away. The range around A's row must not bring it back."""
    o = outbox().start()
    topic = parked_inside_a_range(o)
    ask(o, "skip", "A")
    wait_until(lambda: not o.parked(), 60, "A to be skipped")
    o.kafka.create_topic(topic, 1)
    nothing_held(o)
    assert by_key(o.read(topic, 2)) == {"B": ["2", "3"]}


def test_retry_during_a_release(outbox):
    """A@1 is refused while its range is released, and parked; A@3, new, is parked behind it. The operator
    retries before the release has reached A@2: it is older than A@3, so the key must not go yet."""
    o = outbox(limits={"batch_bytes": "64kB", "batch_events": 50}).start()
    kind = unique("order")
    topic = "outbox.event." + kind
    o.publish(kind, "A", noise(3000), type="1")
    o.many(kind, [f"f{i % 7}" for i in range(3000)], payload=noise(900))
    o.publish(kind, "A", type="2")
    wait_until(lambda: waiting(o)[0] == 3002, 60, "all to wait")
    o.kafka.create_topic(topic, 1, {"max.message.bytes": "2000"})
    o.wait_parked(1)
    pause(o)
    assert waiting(o)[1] > 0, "the release was over before the pause"
    o.kafka.set_topic_config(topic, {"max.message.bytes": "100000"})
    o.publish(kind, "A", type="3")
    ask(o, "retry", "A")
    o.run("resume", check=True)
    nothing_held(o)
    records = by_key(o.read(topic, 3003))
    assert records.pop("A") == ["1", "2", "3"]
    assert sum(map(len, records.values())) == 3000


# ---------------------------------------------------------------- ranges

def test_late_row_below_a_range(outbox):
    """A backlog is half out when its topic is deleted: the rest waits. Then a transaction commits whose row lies
    in the first half. A range widened down to it would hold the rows that were published, and publish them
    again."""
    o = outbox(limits={"batch_events": 50, "poll_max": "10ms"})
    kind, topic = o.kind()
    late = o.db.connect(autocommit=False)
    insert = ("INSERT INTO outbox.event (aggregatetype, aggregateid, type) "
              "SELECT %s, 'k' || i %% 5, i::text FROM generate_series(%s, %s) AS i")
    o.sql(insert, (kind, 1, 10))
    with late.cursor() as cur:
        cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type) VALUES (%s, 'late', 'late')", (kind,))
    o.sql(insert, (kind, 11, 6000))
    o.start()
    wait_until(lambda: o.relay.metric("postrider_published_total") > 100, 60, "the first half", interval_max=0.01)
    pause(o)
    nothing_under_way(o, topic)
    out = {r.key + r.headers[0][1]: r for r in o.read(topic)}
    n = len(o.read(topic))
    assert n < 6000 and len(out) == n, "all was out before the pause"
    o.kafka.delete_topic(topic)
    o.run("resume", check=True)
    wait_until(lambda: waiting(o)[0] == 6000 - n, 150, "the second half to wait")
    late.commit()
    late.close()
    wait_until(lambda: waiting(o)[0] == 6001 - n, 60, "the late row to wait")
    o.kafka.create_topic(topic, 1)
    nothing_held(o)
    want = {f"k{k}": [str(i) for i in range(n + 1, 6001) if i % 5 == k] for k in range(5)}
    assert by_key(o.read(topic, 6001 - n)) == {**want, "late": ["late"]}


def test_old_xid_of_a_missing_topic(outbox):
    """Restored rows carry xids that every snapshot claims to have seen: no range would show them. When their topic
    is missing they are held back one by one, with what comes behind them of their key."""
    o = outbox().start()
    kind = unique("old")
    topic = "outbox.event." + kind
    other, flowing = o.kind()

    def restore(first):
        o.sql("SET session_replication_role = replica")
        o.sql("INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type) SELECT '3', %s, 'k' || i %% 2, i::text "
              "FROM generate_series(%s, %s) AS i", (kind, first, first + 3))
        o.sql("RESET session_replication_role")
    o.publish(other, "f", type="1")
    o.read(flowing, 1)  # there is a position
    restore(1)
    wait_until(lambda: len(o.parked()) + waiting(o)[0] == 4, 60, "the restored rows to be held back")
    o.many(kind, ["k0", "k1", "new"], 5)
    o.stop()
    o.relay.start()
    restore(8)
    wait_until(lambda: len(o.parked()) + waiting(o)[0] == 11, 60, "all to be held back")
    o.publish(other, "f", type="2")
    assert by_key(o.read(flowing, 2)) == {"f": ["1", "2"]}
    o.kafka.create_topic(topic, 1)
    nothing_held(o)
    assert by_key(o.read(topic, 11)) == {"k1": ["1", "3", "6", "9", "11"], "k0": ["2", "4", "5", "8", "10"], "new": ["7"]}
    o.stop()
    o.start()
    o.publish(kind, "new", type="12")
    assert by_key(o.read(topic, 12))["new"] == ["7", "12"]
    assert len(o.read(topic)) == 12
    o.wait_state("ok")


@pytest.mark.parametrize("delivery", MODES)
def test_waiting_where_a_turn_ends_on_a_full_piece(outbox, delivery):
    """The relay reads in pieces; when the last one of a turn is just full, the word that the turn is over comes with no
    event. It counts all the same: what waits is released, though nothing is published any more."""
    o = outbox(delivery, limits={"batch_events": 200})
    kind = unique("full")
    o.relay.start()
    waits = 0
    for n in (1, 100, 200):  # a piece is half a batch
        o.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload)"
              " SELECT %s, 'a', n::text, '{}' FROM generate_series(1, %s) AS n", (kind, n))
        waits += n
        wait_until(lambda: waiting(o)[0] == waits, 60, "them to wait")
    o.kafka.create_topic("outbox.event." + kind, 1)
    nothing_held(o)
    assert len(o.read("outbox.event." + kind)) == waits


def test_what_waits_is_bounded(outbox):
    """Rows that are held back cost memory as well until their position is written: eight thousand of 40 kB at once
    would be 320 MB. (Bounded, 75 to 85 MB were seen.)"""
    o = outbox(limits={"batch_bytes": "4MB"})
    kind = unique("big")
    o.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload_bytes) "
          "SELECT %s, 'k' || i %% 3, i::text, decode(repeat(md5(i::text), 1250), 'hex') "
          "FROM generate_series(1, 8000) AS i", (kind,))
    o.relay.start()
    peak = [0]

    def held():
        peak[0] = max(peak[0], o.relay.rss_kb())
        return waiting(o)[0] == 8000
    wait_until(held, 120, "all to wait", interval_max=0.005)
    assert peak[0] < 120 << 10, f"{peak[0]} kB"


# ---------------------------------------------------------------- who is to blame

@pytest.mark.parametrize("delivery", MODES)
def test_refused_position_parks_nobody(outbox, delivery):
    """Somebody lowers max.message.bytes of the position topic. The broker refuses the position, not the events:
    none may be parked for it, and /readyz names the topic."""
    o = outbox(delivery).start()
    kind, topic = o.kind()
    o.publish(kind, "a", type="1")
    o.read(topic, 1)
    positions = "postrider.positions." + o.name
    o.kafka.set_topic_config(positions, {"cleanup.policy": "compact", "max.message.bytes": "150"})
    o.many(kind, ["a", "b", "c"], 2)
    seen = []

    def named():
        answer = o.readyz()[1]
        seen.append(answer)
        return answer["state"] == "error" and "position record" in answer["sentence"] and positions in answer["hint"]
    wait_until(named, 60, "the position to be named", interval_max=0.01)
    stays(lambda: o.parked() == [], 1, "nobody parked")
    o.kafka.set_topic_config(positions, {"cleanup.policy": "compact"})
    records = {k: list(dict.fromkeys(v)) for k, v in by_key(o.read(topic, 4)).items()}
    assert records == {"a": ["1", "2"], "b": ["3"], "c": ["4"]}
    assert delivery == "at_least_once" or len(o.read(topic)) == 4
    o.wait_state("ok")


@pytest.fixture(scope="module")
def strict_kafka():
    """A broker that knows rights: deny(topic) leaves everybody only reading, allow(topic) gives writing back."""
    import servers
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    k = servers.Kafka(quick=True, config={
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true", "super.users": "User:admin"}).start().warm()

    def allow(topic, *operations):
        # python3-confluent-kafka 1.7 knows no rights; librdkafka does.
        rd, text = ctypes.CDLL("librdkafka.so.1"), ctypes.create_string_buffer(200)
        for name in ("conf_new", "new", "AclBinding_new", "queue_new", "queue_poll", "event_CreateAcls_result",
                     "CreateAcls_result_acls", "acl_result_error"):
            getattr(rd, "rd_kafka_" + name).restype = ctypes.c_void_p
        conf = ctypes.c_void_p(rd.rd_kafka_conf_new())
        rd.rd_kafka_conf_set(conf, b"bootstrap.servers", k.bootstrap.encode(), text, 200)
        rk = ctypes.c_void_p(rd.rd_kafka_new(0, conf, text, 200))
        rules = [rd.rd_kafka_AclBinding_new(2, topic.encode(), 3, b"User:*", b"*", operation, 3, text, 200)
                 for operation in operations]
        queue = ctypes.c_void_p(rd.rd_kafka_queue_new(rk))
        rd.rd_kafka_CreateAcls(rk, (ctypes.c_void_p * len(rules))(*rules), ctypes.c_size_t(len(rules)), None, queue)
        event = ctypes.c_void_p(rd.rd_kafka_queue_poll(queue, 20000))
        assert event and rd.rd_kafka_event_error(event) == 0
        rd.rd_kafka_event_destroy(event)
        rd.rd_kafka_queue_destroy(queue)
        rd.rd_kafka_destroy(rk)
    # Once there is a rule for a topic, all that no rule allows is denied.
    k.deny = lambda topic: allow(topic, 3, 8)  # may be read and described
    k.allow = lambda topic: allow(topic, 4)  # and written to
    yield k
    k.kill()


@pytest.mark.parametrize("delivery", MODES)
def test_topic_without_rights(pg_server, strict_kafka, delivery):
    """The relay may see a topic and not write to it. In a transaction no record is reported for that: the topic is
    found out, its events wait, none is parked, the others flow. What the relay can see says nothing new, so it
    asks ever less often: a session for each question, four a second, would be a storm."""
    with Outbox(pg_server, strict_kafka, "rights", delivery=delivery, config=PLAIN) as o:
        closed, topic = o.kind()
        other, flowing = o.kind()
        strict_kafka.deny(topic)
        o.start()
        for i in range(5):
            o.many(closed, ["a", "b"], 2 * i)
            o.publish(other, "f", type=str(i))
        wait_until(lambda: waiting(o)[0] == 10, 60, "the events to wait")
        assert list(dict.fromkeys(by_key(o.read(flowing, 5))["f"])) == [str(i) for i in range(5)]
        assert o.parked() == []
        # 250 ms, 500 ms, 1 s, 2 s, 4 s, 5 s: not 250 ms for ever.
        wait_until(lambda: o.relay.log_text().count("topic is there now") >= 4, 60, "some questions")
        asked = o.relay.log_text().count("topic is there now")
        stays(lambda: o.relay.log_text().count("topic is there now") <= asked + 3, 3, "few questions")
        assert o.parked() == []
        # Each try is no new range: there would be one for every few events that came between two of them.
        o.many(closed, ["a", "b"], 10)
        wait_until(lambda: waiting(o)[0] == 12, 60, "two more to wait")
        assert waiting(o) == (12, 1)
        strict_kafka.allow(topic)
        records = {k: list(dict.fromkeys(v)) for k, v in by_key(o.read(topic, 12)).items()}
        assert records == {"a": ["0", "2", "4", "6", "8", "10"], "b": ["1", "3", "5", "7", "9", "11"]}
        assert delivery == "at_least_once" or len(o.read(topic)) == 12
        nothing_held(o)
