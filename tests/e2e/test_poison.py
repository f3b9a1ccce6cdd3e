"""tests/e2e/test_poison.py -- events that cannot go, and topics that are not there: who waits, who does not, and
how the operator lets them go. In both delivery modes, with one relay for each.
"""
import contextlib
import json
import random

import pytest

from outbox import Outbox, by_key, header, unique
from wait import stays, wait_until

MODES = ("exactly_once", "at_least_once")
# Compressed, a record may pass where its size says no; the tests are about sizes.
PLAIN = {"kafka": {"properties": ["compression.codec=none"], "timeout": "5s"}}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module", params=MODES)
def post(request, pg_server, kafka):
    with Outbox(pg_server, kafka, "poison", delivery=request.param, config=PLAIN) as o:
        yield o.start()


@pytest.fixture(autouse=True)
def nothing_left(request):
    """A test that leaves something held back would spoil the next one's counts."""
    yield
    if "post" in request.fixturenames:
        post = request.getfixturevalue("post")
        if not post.relay.running():
            post.relay.start()
        post.sql("UPDATE outbox.parked SET request = 'skip'")
        post.sql("UPDATE outbox.relay SET request = request + 1")
        wait_until(lambda: not post.parked(), 60, "the parked events to go")


def noise(n, seed=0):
    """n bytes of JSON that do not compress."""
    return json.dumps(random.Random(seed).randbytes(n // 2 + 1).hex()[:n - 2])


def seqs(o, kind, key):
    return [s for s, in o.sql("SELECT seq FROM outbox.event WHERE aggregatetype = %s AND aggregateid = %s "
                              "ORDER BY seq", (kind, key))]


def first_seen(records):
    """{key: types in the order of their first appearance}: what at_least_once promises."""
    return {k: list(dict.fromkeys(v)) for k, v in by_key(records).items()}


def read_keys(o, topic, n):
    """{key: types}; exactly_once: no record twice."""
    records = o.read(topic, n)
    if o.relay.config["delivery"] == "exactly_once":
        assert len(records) == n
        return by_key(records)
    return first_seen(records)


def outcome(done):
    """What `parked retry|skip|release --json` said: {key: (outcome, events left)}"""
    return {o["key"]: (o["outcome"], o["events"]) for o in map(json.loads, done.stdout.splitlines())}


# ---------------------------------------------------------------- too large

def test_larger_than_the_topic_allows(post):
    """The topic's max.message.bytes is asked for before the first event, so a larger one never reaches the
    broker: it is parked, its key waits behind it in order, all others flow. /readyz says what to do,
    until an operator raises the limit and retries."""
    kind, topic = post.kind(2, {"max.message.bytes": "20000"})
    post.publish(kind, "a", type="1")
    post.publish(kind, "b", type="1")
    post.publish(kind, "a", noise(30000), type="2")
    post.many(kind, ["a", "b", "a", "b"], 3)  # a: 3, 5; b: 4, 6
    assert read_keys(post, topic, 4) == {"a": ["1"], "b": ["1", "4", "6"]}
    post.wait_parked(3)
    rows = post.parked("seq, topic, key, type, head, attempts, request, code")
    want = seqs(post, kind, "a")[1:]
    assert [r[0] for r in rows] == want
    assert [r[1:3] for r in rows] == [(topic, "a")] * 3
    assert [r[3:7] for r in rows] == [("2", True, 1, None), ("3", False, 0, None), ("5", False, 0, None)]
    assert rows[0][7] == "MSG_SIZE_TOO_LARGE"
    assert "larger" in post.parked("reason")[0][0] and "earlier" in post.parked("reason")[1][0]
    post.wait_held(parked_events=3, parked_keys=1)
    answer = post.wait_state("warn")
    assert "3 events of 1 key are parked" in answer["sentence"] and answer["hint"] == "postrider parked list"
    assert post.relay.metric("postrider_lag_seconds") > 0
    listed = json.loads(post.run("parked", "list", "--json", check=True).stdout)
    assert (listed["key"], listed["events"], listed["first_seq"]) == ("a", 3, want[0])

    # Still too large: it stays, and one more attempt is counted; what is behind it does not pass it.
    done = post.run("parked", "retry", "--wait", "50s", "-t", topic, "-k", "a", "--json")
    assert done.returncode == 1 and outcome(done) == {"a": ("still_parked", 3)}
    assert post.parked("head, attempts, request") == [(True, 2, None), (False, 0, None), (False, 0, None)]
    assert read_keys(post, topic, 4) == {"a": ["1"], "b": ["1", "4", "6"]}

    # The limit is raised: retry lets the key go, in order, and it flows on.
    post.kafka.set_topic_config(topic, {"max.message.bytes": "100000"})
    done = post.run("parked", "retry", "--wait", "50s", "-t", topic, "-k", "a", "--json", check=True)
    assert outcome(done) == {"a": ("released", 0)}
    post.many(kind, ["a"], 7)
    assert read_keys(post, topic, 8)["a"] == ["1", "2", "3", "5", "7"]
    # The new limit also counts for events that come from now on.
    post.publish(kind, "c", noise(50000, 1), type="1")
    assert read_keys(post, topic, 9)["c"] == ["1"]
    post.wait_state("ok")
    post.wait_held(parked_events=0, parked_keys=0)


def test_refused_by_the_broker(post):
    """The record's real size is known only to the broker: near the limit an event passes our estimate and is
    refused there, together with whatever shares its batch or its transaction. It must be found by
    halving, and be the only one that is parked."""
    kind, topic = post.kind(2, {"max.message.bytes": "5000"})
    keys = [f"k{i}" for i in range(8)]
    n = 400
    fits = 5000 - 256 - len("k3") - len("1133") - len("{}")  # by our estimate; traceparent makes it too much
    with post.db.connect(autocommit=False) as c, c.cursor() as cur:
        for i in range(n):
            big = i in (133, 301)
            cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, tracingspancontext) "
                        "VALUES (%s, %s, %s, %s, %s)",
                        (kind, "k3" if big else keys[i % 8], str(1000 + i) if big else str(i),
                         noise(fits, i) if big else '{}', TRACE if big else None))
        c.commit()
    c.close()
    behind = [i for i in range(n) if i % 8 == 3 and i > 133 and i not in (133, 301)]
    post.wait_parked(len(behind) + 2)
    want = {k: [str(i) for i in range(n) if keys[i % 8] == k and i not in (133, 301) and (k != "k3" or i < 133)]
            for k in keys}
    assert read_keys(post, topic, sum(map(len, want.values()))) == want
    heads = post.parked("key, type, head")
    assert heads[0] == ("k3", "1133", True) and {h[:1] + h[2:] for h in heads[1:]} == {("k3", False)}
    # The metric knows every one of them. Story: what had gone of a batch was counted when its last event went, and
    # a session that failed in between (here, each time the refused event came by) left the first part uncounted.
    counted = f'postrider_published_total{{outbox="{post.name}",topic="{topic}"}}'
    gone = sum(map(len, want.values()))
    wait_until(lambda: post.relay.metric(counted) >= gone, 60, f"{gone} events to be counted")
    if post.relay.config["delivery"] == "exactly_once":
        assert post.relay.metric(counted) == gone
    post.wait_state("warn")
    post.wait_held(parked_keys=1)

    # Skip the first: what is behind it goes on, up to the second one, which is refused as well.
    first = post.parked("id::text")[0][0]
    done = post.run("parked", "skip", "--id", first, "--yes", "--json", "--wait", "50s")
    left = [i for i in behind if i > 301]
    assert outcome(done) == {"k3": ("skipped", len(left) + 1)}
    rows = post.parked("type, head, attempts")
    assert rows[0] == ("1301", True, 1) and len(rows) == len(left) + 1
    want["k3"] += [str(i) for i in behind if i < 301]
    assert read_keys(post, topic, sum(map(len, want.values()))) == want
    # The audit says who gave it up, and why.
    (audit,) = post.sql("SELECT id::text, topic, key, type, skipped_by, reason, code FROM outbox.skipped "
                        "WHERE topic = %s", (topic,))
    assert audit[:5] == (first, topic, "k3", "1133", "postgres") and audit[5]
    # A larger limit, and the rest goes.
    post.kafka.set_topic_config(topic, {"max.message.bytes": "6000"})
    assert outcome(post.run("parked", "release", "--wait", "50s", "-t", topic, "--json", check=True)) == {"k3": ("released", 0)}
    want["k3"] += ["1301"] + [str(i) for i in left]
    assert read_keys(post, topic, sum(map(len, want.values()))) == want
    post.wait_state("ok")


def test_limit_lowered_while_running(post):
    """The relay asked for the limit, then an operator lowers it: the first refusal must make the relay ask
    again, and nothing else may suffer."""
    kind, topic = post.kind(1)
    post.publish(kind, "a", noise(9000), type="0")
    assert len(post.read(topic, 1)) == 1
    post.kafka.set_topic_config(topic, {"max.message.bytes": "4000"})
    with post.db.connect(autocommit=False) as c, c.cursor() as cur:
        for i in range(200):
            cur.execute("SELECT outbox.publish(%s, %s, %s, %s)",
                        (kind, f"k{i % 10}", str(i), noise(8000, i) if i in (55, 56) else "{}"))
        c.commit()
    c.close()
    want = {f"k{k}": [str(i) for i in range(200) if i % 10 == k and (k not in (5, 6) or i < 50 + k)]
            for k in range(10)}
    n = sum(map(len, want.values()))
    records = {k: v for k, v in read_keys(post, topic, n + 1).items() if k != "a"}
    assert records == want
    post.wait_parked(200 - n)
    assert post.parked("key, type")[:2] == [("k5", "55"), ("k6", "56")]
    assert [r[0] for r in post.parked("head")].count(True) == 2


# ---------------------------------------------------------------- wrong places

def test_partition_out_of_range(post):
    """A partition that the topic does not have: the key waits; with more partitions, retry lets it go."""
    kind, topic = post.kind(2)

    def insert(key, type, partition):
        post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, partition) VALUES (%s, %s, %s, %s)",
                 (kind, key, type, partition))
    insert("a", "1", 0)
    insert("a", "2", 5)
    insert("a", "3", 0)
    insert("b", "1", 1)
    insert("c", "1", 2147483647)
    assert read_keys(post, topic, 2) == {"a": ["1"], "b": ["1"]}
    post.wait_parked(3)
    assert {r[0] for r in post.parked("code")} == {"_UNKNOWN_PARTITION", ""}
    # Refused again: this key stays, the topic is not to blame, and the others flow.
    done = post.run("parked", "retry", "--wait", "50s", "-k", "a", "-t", topic, "--json")
    assert outcome(done) == {"a": ("still_parked", 2)}
    insert("b", "2", 1)
    assert read_keys(post, topic, 3)["b"] == ["1", "2"]
    assert post.relay.status()["waiting"] == []
    assert post.parked("key, attempts, head") == [("a", 2, True), ("a", 0, False), ("c", 1, True)]
    post.kafka.add_partitions(topic, 6)
    assert outcome(post.run("parked", "retry", "--wait", "50s", "-k", "a", "-t", topic, "--json", check=True)) == {"a": ("released", 0)}
    insert("d", "1", 4)  # and new events see the new partitions at once
    records = post.read(topic, 6)
    assert {(r.key, header(r, "type")): r.partition for r in records}[b"a", b"2"] == 5
    assert [r.partition for r in records if r.key == b"d"] == [4]


def test_not_a_topic_name(pg_server, kafka):
    """A route can make a name that Kafka refuses out of an aggregatetype that the outbox accepts."""
    word = unique("long-route-")  # with 236 more it is too long, whatever the number
    with Outbox(pg_server, kafka, "badname", config={"route": {"topic": word + ".${aggregatetype}"}}) as o:
        good = kafka.create_topic(word + ".order")
        o.start()
        long = "x" * 236
        for i in range(3):
            o.publish(long, "k", type=str(i))
            o.publish("order", "k", type=str(i))
        assert by_key(o.read(good, 3)) == {"k": ["0", "1", "2"]}
        o.wait_parked(3)
        assert o.parked("topic, code, head")[0] == (f"{word}.{long}", "TOPIC_EXCEPTION", True)
        assert o.relay.status()["waiting"] == []
        # The operator names it as the list does.
        listed = json.loads(o.run("parked", "list", "-t", f"{word}.{long}", "--json", check=True).stdout)
        assert (listed["topic"], listed["events"]) == (f"{word}.{long}", 3)
        done = o.run("parked", "retry", "--wait", "50s", "-t", f"{word}.{long}", "-k", "k", "--json")
        assert outcome(done) == {"k": ("still_parked", 3)} and o.parked("attempts")[0] == (2,)
        done = o.run("parked", "skip", "--wait", "50s", "-k", "k", "--yes", "--json")
        assert outcome(done) == {"k": ("skipped", 2)}
        assert o.parked("type, head, attempts") == [("1", True, 1), ("2", False, 0)]


def test_a_long_key_is_parked(post):
    """A key may have 64 kB. An index on it would refuse more than 2,700 bytes, and with that the relay would
    stand still: every attempt to park the event fails, and nothing else goes."""
    kind, topic = post.kind(1, {"max.message.bytes": "2000"})
    long = random.Random(5).randbytes(32000).hex()
    twin = long[:-1] + "z"
    post.many(kind, [long, "a", twin, "a"])
    assert read_keys(post, topic, 2) == {"a": ["2", "4"]}
    post.wait_parked(2)
    post.kafka.set_topic_config(topic, {"max.message.bytes": "200000"})
    post.run("parked", "retry", "--wait", "50s", "-t", topic, "-k", long, check=True)
    assert read_keys(post, topic, 3)[long] == ["1"]
    assert [r[0] for r in post.parked("key")] == [twin]


# ---------------------------------------------------------------- topics that are not there

def waiting(o):
    return o.sql("SELECT topic, sum(events)::int, count(*)::int FROM outbox.waiting GROUP BY topic ORDER BY topic")


def test_topic_that_comes_later(post):
    """The rows of a missing topic wait as ranges, not as copies; the rest flows. When the topic is made they
    go out in order, before and among what is committed meanwhile."""
    kind, topic = unique("later"), None
    other, flowing = post.kind(1)
    keys = [f"k{i}" for i in range(7)]
    sent = 0
    for i in range(100):
        post.many(kind, [keys[n % 7] for n in range(100)], i * 100)
        post.publish(other, "f", type=str(i))
        sent += 100
    assert read_keys(post, flowing, 100) == {"f": [str(i) for i in range(100)]}
    topic = "outbox.event." + kind
    wait_until(lambda: [w[:2] for w in waiting(post)] == [(topic, sent)], 60, "10,000 events to wait")
    assert waiting(post)[0][2] <= 10
    assert post.parked() == []
    post.wait_held(waiting_events=sent)
    answer = post.wait_state("warn")
    assert "10000 events wait" in answer["sentence"] and "create the topics" in answer["hint"]
    (listed,) = post.relay.status()["waiting"]
    assert (listed["topic"], listed["events"]) == (topic, sent) and listed["reason"] == "the topic does not exist"
    m = post.relay.metrics()
    assert m["postrider_waiting_events"] == sent and m["postrider_pending_events"] >= sent
    assert m["postrider_lag_seconds"] > 0

    post.kafka.create_topic(topic, 3)
    for _ in range(40):  # the writer does not wait for the relay
        post.many(kind, [keys[n % 7] for n in range(50)], sent)
        sent += 50
    wait_until(lambda: not waiting(post), 60, "the waiting to go")
    post.many(kind, [keys[n % 7] for n in range(50)], sent)
    sent += 50
    got = read_keys(post, topic, sent)
    # i-th call begins its keys anew with k0
    want = {k: [] for k in keys}
    for start in [*range(0, 10000, 100), *range(10000, sent, 50)]:
        for n in range(100 if start < 10000 else 50):
            want[keys[n % 7]].append(str(start + n))
    assert got == want
    post.wait_state("ok")
    post.wait_held(waiting_events=0)


def test_poison_among_the_waiting(post):
    """Among the rows that wait for a topic is one that the topic, once made, refuses. Only its key may be
    held back: it must neither stop the release nor, with it, the whole relay."""
    kind = unique("waitbad")
    topic = "outbox.event." + kind
    other, flowing = post.kind(1)
    post.many(kind, ["a", "b", "c"] * 20)  # 1..60
    post.publish(kind, "b", noise(8000), type="61")
    post.many(kind, ["a", "b", "c"] * 20, 62)
    # Two that only the broker refuses.
    fits = 5000 - 256 - len("c") - len("200") - len("{}")
    post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, tracingspancontext) "
             "VALUES (%s, 'c', '200', %s, %s)", (kind, noise(fits), TRACE))
    post.many(kind, ["a", "b", "c"], 201)
    wait_until(lambda: [w[:2] for w in waiting(post)] == [(topic, 125)], 60, "the events to wait")
    post.kafka.create_topic(topic, 1, {"max.message.bytes": "5000"})
    post.wait_parked(1 + 20 + 1 + 2)
    post.publish(other, "f")
    assert len(post.read(flowing, 1)) == 1
    want = {"a": [*range(1, 61, 3), *range(62, 122, 3), 201], "b": range(2, 61, 3),
            "c": [*range(3, 61, 3), *range(64, 122, 3)]}
    assert read_keys(post, topic, sum(map(len, want.values()))) == {k: [str(i) for i in v] for k, v in want.items()}
    assert [r for r in post.parked("key, type, head") if r[2]] == [("b", "61", True), ("c", "200", True)]
    wait_until(lambda: not waiting(post), 60, "nothing to wait")
    post.kafka.set_topic_config(topic, {"max.message.bytes": "10000"})
    done = post.run("parked", "release", "-t", topic, "--json", "--wait", "50s", check=True)
    assert outcome(done) == {"b": ("released", 0), "c": ("released", 0)}
    assert read_keys(post, topic, 125)["b"] == [str(i) for i in [*range(2, 61, 3), 61, *range(63, 122, 3), 202]]


def test_large_rows_wait(post):
    """What is released is bounded by bytes, not only by rows: a thousand rows of 200 kB at once would be
    200 MB in memory."""
    kind = unique("waitbig")
    post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload_bytes) "
             "SELECT %s, 'k' || i %% 3, i::text, decode(repeat(md5(i::text), 6000), 'hex') "
             "FROM generate_series(1, 600) AS i", (kind,))
    wait_until(lambda: [w[1] for w in waiting(post)] == [600], 60, "the events to wait")
    before = post.relay.rss_kb()
    post.kafka.create_topic("outbox.event." + kind, 1)
    peak = [0]

    def out():
        peak[0] = max(peak[0], post.relay.rss_kb())
        return not waiting(post)
    wait_until(out, 90, "all to be out", interval_max=0.01)
    got = read_keys(post, "outbox.event." + kind, 600)
    assert got == {f"k{k}": [str(i) for i in range(1, 601) if i % 3 == k] for k in range(3)}
    assert peak[0] - before < 50 << 10, f"{before} kB before, {peak[0]} kB at most"


def test_many_missing_topics(post):
    """Forty topics are missing, each found out on its own; what flows, flows on. They are made in another
    order than they were missed."""
    kinds = [unique("many") for _ in range(40)]
    other, flowing = post.kind(1)
    for i in range(3):
        for kind in kinds:
            post.many(kind, ["a", "b"], i * 2)
        post.publish(other, "f", type=str(i))
    assert read_keys(post, flowing, 3) == {"f": ["0", "1", "2"]}
    wait_until(lambda: sum(w[1] for w in waiting(post)) == 240, 60, "all to wait")
    wait_until(lambda: len(post.relay.status()["waiting"]) == 40, 60, "the relay to name them all")
    from confluent_kafka.admin import NewTopic
    for f in post.kafka.admin.create_topics([NewTopic("outbox.event." + k, 1, 1) for k in reversed(kinds)]).values():
        f.result(60)
    wait_until(lambda: not waiting(post), 60, "all to be out")
    for kind in kinds[:3] + kinds[-3:]:
        assert read_keys(post, "outbox.event." + kind, 6) == {"a": ["0", "2", "4"], "b": ["1", "3", "5"]}
    post.wait_state("ok")


def test_topic_deleted_while_running(post):
    """An operator deletes a topic in use: its later events wait, the rest flows; made anew, they go."""
    kind, topic = post.kind(1)
    other, flowing = post.kind(1)
    post.publish(kind, "a", type="1")
    post.read(topic, 1)
    post.kafka.delete_topic(topic)
    for i in range(2, 5):
        post.publish(kind, "a", type=str(i))
    post.publish(other, "f")
    assert len(post.read(flowing, 1)) >= 1
    wait_until(lambda: [w[:2] for w in waiting(post)] == [(topic, 3)], 60, "the events to wait")
    post.kafka.create_topic(topic, 1)
    assert read_keys(post, topic, 3) == {"a": ["2", "3", "4"]}
    wait_until(lambda: not waiting(post), 60, "nothing to wait")


def test_names_that_collide(post):
    """Kafka refuses a_b beside a.b, for its metrics would mix them: the events of the second wait."""
    word = unique("n")
    post.kafka.create_topic(f"outbox.event.{word}.x")
    post.publish(word + "_x", "k", type="2")
    post.publish(word + ".x", "k", type="1")
    assert read_keys(post, f"outbox.event.{word}.x", 1) == {"k": ["1"]}
    wait_until(lambda: [w[0] for w in waiting(post)] == [f"outbox.event.{word}_x"], 60, "the other to wait")
    from confluent_kafka import KafkaException
    with pytest.raises(KafkaException):
        post.kafka.create_topic(f"outbox.event.{word}_x")
    post.kafka.delete_topic(f"outbox.event.{word}.x")
    post.kafka.create_topic(f"outbox.event.{word}_x")
    assert read_keys(post, f"outbox.event.{word}_x", 1) == {"k": ["2"]}
    wait_until(lambda: not waiting(post), 60, "nothing to wait")


# ---------------------------------------------------------------- the operator, and restarts

def test_restart_while_held(post):
    """What is held back is in Postgres: after a restart the key still waits, counts are right, new events of
    the key queue up behind, and a request made while the relay was away is obeyed."""
    kind, topic = post.kind(2, {"max.message.bytes": "2000"})
    gone = unique("away")
    post.publish(kind, "a", noise(3000), type="1")
    post.many(kind, ["a", "b"], 2)
    post.many(gone, ["w"], 1)
    post.wait_parked(2)
    wait_until(lambda: waiting(post), 60, "one to wait")
    post.stop()
    post.many(kind, ["a", "b"], 4)
    post.many(gone, ["w"], 2)
    post.relay.start()
    post.wait_parked(3)
    assert post.parked("key, type, head") == [("a", "1", True), ("a", "2", False), ("a", "4", False)]
    assert read_keys(post, topic, 2) == {"b": ["3", "5"]}
    post.wait_held(parked_events=3, parked_keys=1, waiting_events=2)
    post.stop()
    done = post.run("parked", "skip", "-t", topic, "-k", "a", "--yes", "--wait", "0s", "--json")
    assert done.returncode == 0, done.stderr
    post.kafka.create_topic("outbox.event." + gone)
    post.relay.start()
    assert read_keys(post, topic, 4) == {"a": ["2", "4"], "b": ["3", "5"]}
    assert read_keys(post, "outbox.event." + gone, 2) == {"w": ["1", "2"]}
    post.wait_state("ok")
    post.wait_held(parked_events=0)


def test_parked_once_counted_once(pg_server, kafka):
    """The relay dies between parking an event and the position that steps over it. Read again, it is parked
    again, which changes nothing: not in the table, and not in the count either."""
    with Outbox(pg_server, kafka, "count", config=PLAIN) as o:
        kind, topic = o.kind(1, {"max.message.bytes": "2000"})
        o.relay.start(fault="held_back_before_position")
        o.publish(kind, "a", noise(3000), type="1")
        o.many(kind, ["a", "b"], 2)
        o.relay.wait(60)
        assert len(o.parked()) >= 1
        o.relay.start()
        assert by_key(o.read(topic, 1)) == {"b": ["3"]}
        o.wait_parked(2)
        o.wait_held(parked_keys=1, parked_events=2)
        o.run("parked", "skip", "--wait", "50s", "-t", topic, "-k", "a", "--yes", check=True)
        assert by_key(o.read(topic, 2))["a"] == ["2"]
        o.wait_state("ok")
        o.wait_held(parked_events=0)


def test_more_keys_than_one_look(pg_server, kafka):
    """`parked release` of hundreds of keys: the relay looks at so many requests at a time, and must look
    again."""
    with Outbox(pg_server, kafka, "lots", delivery="at_least_once", config=PLAIN) as o:
        kind, topic = o.kind(1, {"max.message.bytes": "1000"})
        o.start()
        o.many(kind, [f"k{i}" for i in range(260)], payload=noise(1500))
        o.wait_parked(260)
        o.wait_held(parked_keys=260)
        o.kafka.set_topic_config(topic, {"max.message.bytes": "100000"})
        o.run("parked", "release", "-t", topic, "--wait", "50s", check=True)
        assert len(first_seen(o.read(topic, 260))) == 260
        o.wait_state("ok")


def test_release_of_many_keys(post):
    """An operator retries four hundred keys at once. One shipment takes the events of many keys, in order within
    each; the few that are still too large stay, whether we know it beforehand or only the broker does, with one
    more attempt, and the others' way is not theirs."""
    kind, topic = post.kind(3, {"max.message.bytes": "1000"})
    n, large, surprise = 400, {"k7", "k200", "k399"}, {"k100"}
    fits = 5000 - 256 - len("k100") - len("1") - len("{}")  # by our estimate; the traceparent makes it too much
    with post.db.connect(autocommit=False) as c, c.cursor() as cur:
        for i in range(n):
            key = f"k{i}"
            size = 9000 if key in large else fits if key in surprise else 1500
            cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, tracingspancontext) "
                        "VALUES (%s, %s, '1', %s, %s)", (kind, key, noise(size, i), TRACE if key in surprise else None))
        c.commit()
    c.close()
    for i in (2, 3):
        post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) "
                 "SELECT %s, 'k' || k, %s, '{}' FROM generate_series(0, %s) AS k", (kind, str(i), n - 1))
    post.wait_parked(3 * n)
    post.kafka.set_topic_config(topic, {"max.message.bytes": "5000"})
    post.sql("UPDATE outbox.parked SET request = 'retry'")
    post.sql("UPDATE outbox.relay SET request = request + 1")
    stay = large | surprise
    want = {f"k{i}": ["1", "2", "3"] for i in range(n) if f"k{i}" not in stay}
    post.wait_parked(3 * len(stay))
    assert read_keys(post, topic, 3 * len(want)) == want
    wait_until(lambda: sorted(post.parked("key, type, head, attempts, request")) == sorted(
        (k, t, t == "1", int(t == "1") * 2, None) for k in stay for t in "123"), 60, "the refusals to be noted")
    post.publish(kind, "k1", type="4")
    want["k1"].append("4")
    assert read_keys(post, topic, 3 * len(want) + 1) == want
    post.wait_held(parked_events=3 * len(stay), parked_keys=len(stay))
    post.kafka.set_topic_config(topic, {"max.message.bytes": "100000"})
    post.run("parked", "release", "--wait", "50s", "-t", topic, check=True)
    want.update({k: ["1", "2", "3"] for k in stay})
    assert read_keys(post, topic, 3 * n + 1) == want
    post.wait_state("ok")


def test_requests_of_a_topic_that_is_gone(pg_server, kafka):
    """The relay looks at so many requests at a time. Hundreds of keys are asked for whose topic was deleted: they
    cannot go and their requests stand. A key of another topic, behind them all, must not wait for that."""
    with Outbox(pg_server, kafka, "gone", config=PLAIN) as o:
        first, gone = o.kind(1, {"max.message.bytes": "1000"}, word="aa")
        last, topic = o.kind(1, {"max.message.bytes": "1000"}, word="zz")
        o.start()
        o.many(first, [f"k{i}" for i in range(450)], payload=noise(1500))
        o.publish(last, "z", noise(1500), type="1")
        o.wait_parked(451)
        o.kafka.delete_topic(gone)
        o.publish(first, "w")  # found out
        wait_until(lambda: waiting(o), 60, "the topic to be missed")
        o.kafka.set_topic_config(topic, {"max.message.bytes": "100000"})
        o.sql("UPDATE outbox.parked SET request = 'retry'")
        o.sql("UPDATE outbox.relay SET request = request + 1")
        assert by_key(o.read(topic, 1)) == {"z": ["1"]}
        o.wait_parked(450)
        o.kafka.create_topic(gone, 1, {"max.message.bytes": "100000"})
        o.wait_parked(0)
        assert len(by_key(o.read(gone, 451))) == 451
        o.wait_state("ok")


def test_batches_grow_again(pg_server, kafka):
    """The smallest limit of a topic sets the size of all batches. It was raised, and the relay learned of it when
    it let the parked events go: from then on batches are large again."""
    with Outbox(pg_server, kafka, "grow", config=PLAIN) as o:
        kind, topic = o.kind(1, {"max.message.bytes": "2000"})
        o.start()

        def resized():
            return sum(v for k, v in o.relay.metrics().items()
                       if k.startswith("postrider_producer_restarts_total{") and 'reason="batch_size"' in k)
        o.publish(kind, "a", type="1")
        o.publish(kind, "b", noise(5000), type="1")
        o.wait_parked(1)
        assert resized() == 1
        o.kafka.set_topic_config(topic, {"max.message.bytes": "1048588"})
        o.run("parked", "retry", "--wait", "50s", "-t", topic, "-k", "b", check=True)
        wait_until(lambda: resized() == 2, 60, "a producer with larger batches")
        o.publish(kind, "a", type="2")
        assert by_key(o.read(topic, 3)) == {"a": ["1", "2"], "b": ["1"]}
        assert resized() == 2
        o.wait_state("ok")


def test_route_without_a_variable(pg_server, kafka):
    """route.topic may be one topic for all events: also while it is not there, and when it comes."""
    topic = unique("all")
    with Outbox(pg_server, kafka, "fixed", config={"route": {"topic": topic}}) as o:
        o.start()
        for i in range(3):
            o.publish("order", "k", type=str(2 * i))
            o.publish("payment", "k", type=str(2 * i + 1))
        wait_until(lambda: [w[:2] for w in waiting(o)] == [(topic, 6)], 60, "the events to wait")
        o.kafka.create_topic(topic, 2)
        want = [str(i) for i in range(6)]
        assert by_key(o.read(topic, 6)) == {"k": want}
        wait_until(lambda: not waiting(o), 60, "nothing to wait")
        o.publish("refund", "k", type="6")
        assert by_key(o.read(topic, 7)) == {"k": want + ["6"]}
        o.wait_state("ok")


@pytest.mark.timeout(400)
def test_many_new_topics_at_once(pg_server, kafka):
    """One transaction writes to six hundred topics that nobody has asked about. Each question takes a moment, and a
    Kafka transaction is open meanwhile: one that took them all would last for seconds. It ends when a quarter
    of kafka.timeout is over, and what stands between the others leaves."""
    with Outbox(pg_server, kafka, "news", config={"kafka": {"timeout": "3s"}}) as o:
        kind, topic = o.kind()
        o.start()
        o.publish(kind, "k", type="0")
        o.read(topic, 1)

        def shipments():
            return next(v for k, v in o.relay.metrics().items() if k.startswith("postrider_batch_events_count"))
        before = shipments()
        word = unique("new")
        o.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT CASE i %% 2 WHEN 0 THEN %s "
              "ELSE %s || i END, 'k', i::text, '{}' FROM generate_series(1, 1200) AS i", (kind, word))
        assert by_key(o.read(topic, 601, 150)) == {"k": [str(i) for i in range(0, 1201, 2)]}
        wait_until(lambda: len(waiting(o)) == 600, 90, "the others to wait")
        wait_until(lambda: shipments() - before >= 2, 60, "more than one shipment")
        assert [v for k, v in o.relay.metrics().items() if k.startswith("postrider_producer_restarts_total{")] == []


def test_own_connection_breaks(pg_server, kafka):
    """The connection of the publisher, which notes what is held back, breaks and cannot be had again. Kafka is
    well: who reads /readyz must not look for the fault there."""
    with Outbox(pg_server, kafka, "breaks", config={**PLAIN, "source": {"timeout": "1s"}}) as o:
        kind, topic = o.kind(1, {"max.message.bytes": "1000"})
        o.start()
        holder = ("SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'",
                  (f"%{o.name} hold",))
        with post_lock(o) as locked:
            o.publish(kind, "a", noise(1500), type="1")
            (pid,), = wait_until(lambda: o.sql(*holder), 60, "the publisher to wait for the table")
            o.sql("SELECT pg_terminate_backend(%s)", (pid,))
            seen = []

            def named():
                seen.append(o.readyz()[1]["checks"])
                return seen[-1]["postgres"] != "ok"
            wait_until(named, 60, "Postgres to be named", interval_max=0.01)
            stays(lambda: o.readyz()[1]["checks"]["kafka"] == "ok", 2, "Kafka not to be blamed")
            assert {c["kafka"] for c in seen} == {"ok"}
            locked.rollback()
        o.wait_parked(1)
        o.publish(kind, "b", type="1")
        assert by_key(o.read(topic, 1)) == {"b": ["1"]}
        o.wait_state("warn")


@contextlib.contextmanager
def post_lock(o):
    """Nobody writes outbox.parked meanwhile."""
    c = o.db.connect(autocommit=False)
    try:
        c.cursor().execute("LOCK TABLE outbox.parked IN EXCLUSIVE MODE")
        yield c
    finally:
        c.close()


@contextlib.contextmanager
def broken(o, event):
    """outbox.parked refuses UPDATEs (or INSERTs) until the end, as it would with a full disk."""
    o.sql("CREATE OR REPLACE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS "
          "$$BEGIN RAISE disk_full; END$$")
    o.sql(f"CREATE TRIGGER full_disk BEFORE {event} ON outbox.parked FOR EACH STATEMENT EXECUTE FUNCTION public.full()")
    try:
        yield
    finally:
        o.sql("DROP TRIGGER full_disk ON outbox.parked")


def test_database_refuses_to_hold(post):
    """The disk of Postgres is full just when an event must be parked: nothing steps over it. When there is
    room again the relay goes on by itself, with the same connection or another."""
    kind, topic = post.kind(1, {"max.message.bytes": "1000"})
    with broken(post, "INSERT"):
        post.publish(kind, "a", noise(1500))
        post.publish(kind, "b")
        wait_until(lambda: (a := post.readyz()[1])["state"] == "error" and "disk_full" in a["sentence"], 60, "it to say so")
        if post.relay.config["delivery"] == "exactly_once":
            assert post.read(topic) == []
    assert read_keys(post, topic, 1) == {"b": ["T"]}
    post.wait_parked(1)
    post.wait_state("warn")


def test_skip_in_two_halves(post):
    """The relay deletes what is skipped, then lets go what is behind it. If the second fails, the key must
    not wait for ever behind an event that is no longer there."""
    kind, topic = post.kind(1, {"max.message.bytes": "1000"})
    post.publish(kind, "a", noise(1500), type="1")
    post.many(kind, ["a"] * 3, 2)
    post.wait_parked(4)
    post.sql("UPDATE outbox.parked SET request = 'skip' WHERE head")
    with broken(post, "UPDATE"):
        post.sql("UPDATE outbox.relay SET request = request + 1")
        wait_until(lambda: len(post.parked()) == 3 or post.readyz()[1]["state"] == "error", 60, "the first half")
        if post.relay.config["delivery"] == "exactly_once":
            stays(lambda: len(post.read(topic)) in (0, 3), 0.3, "all or nothing")
    assert read_keys(post, topic, 3) == {"a": ["2", "3", "4"]}
    wait_until(lambda: not post.parked(), 60, "nothing to be parked")
    post.wait_state("ok")


@pytest.mark.parametrize("at", ["infinity", "-infinity", "294276-12-31T23:59:59Z", "0001-01-01T00:00:00Z BC"])
def test_held_since_the_end_of_time(pg_server, kafka, at):
    """created_at is the caller's and may be anything. When the events are held back, a start computes their
    age: it must not stumble over one that has none."""
    with Outbox(pg_server, kafka, "time", config=PLAIN) as o:
        kind, topic = o.kind(1, {"max.message.bytes": "1000"})
        gone = unique("gone")
        o.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, created_at) VALUES "
              "(%s, 'a', '1', %s, %s), (%s, 'w', '1', '{}', %s)", (kind, noise(1500), at, gone, at))
        assert o.one("SELECT lag_seconds >= 0 FROM outbox.lag")
        o.relay.start()
        o.wait_parked(1)
        wait_until(lambda: waiting(o), 60, "one to wait")
        assert o.one("SELECT lag_seconds >= 0 FROM outbox.lag")
        o.stop()
        o.relay.start()
        o.publish(kind, "b")
        assert by_key(o.read(topic, 1)) == {"b": ["T"]}
        o.wait_state("warn")
        o.run("parked", "show", "-k", "a", "--json", check=True)
        o.run("parked", "skip", "--wait", "50s", "-t", topic, "-k", "a", "--yes", check=True)
        o.kafka.create_topic("outbox.event." + gone)
        assert by_key(o.read("outbox.event." + gone, 1)) == {"w": ["1"]}
        o.wait_state("ok")


# ---------------------------------------------------------------- other brokers

@pytest.mark.parametrize("delivery", MODES)
def test_broker_that_creates_topics(pg_server, auto_kafka, delivery):
    """With auto.create.topics.enable our question makes the topic: its events wait for that moment only."""
    with Outbox(pg_server, auto_kafka, "auto", delivery=delivery) as o:
        o.start()
        kind = unique("made")
        for i in range(5):
            o.publish(kind, "k", type=str(i))
        wait_until(lambda: "outbox.event." + kind in o.kafka.topics(), 60, "the topic")
        assert read_keys(o, "outbox.event." + kind, 5) == {"k": ["0", "1", "2", "3", "4"]}
        o.wait_state("ok")


@pytest.fixture(scope="module")
def auto_kafka():
    import servers
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    k = servers.Kafka(quick=True, auto_create=True).start().warm()
    yield k
    k.kill()


def test_pending_with_one_parked(post):
    """Sequences have gaps. With a key parked the lag is never 0, and the numbers of a transaction that was rolled back
    counted as events not yet published for ever: an alert that tells free events from parked ones went off."""
    kind, topic = post.kind(config={"max.message.bytes": "20000"})
    post.publish(kind, "large", noise(30000))
    post.wait_parked(1)

    def only():
        return post.relay.metric("postrider_pending_events") == 1 == post.relay.metric("postrider_parked_events")
    wait_until(only, 60, "only the parked event to be pending")
    post.conn.autocommit = False
    try:
        post.many(kind, ["gone"] * 5)
        post.conn.rollback()
    finally:
        post.conn.autocommit = True
    # While Postgres is silent for a moment more may be pending; what is counted for ever does not come back to one.
    stays(lambda: wait_until(only, 60, "only the parked event to be pending"), 1.5)
