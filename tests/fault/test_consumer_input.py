"""tests/fault/test_consumer_input.py -- what may stand on a topic: tombstones, records without a key, 10 MB, compressed
and transactional ones with aborted records between them, foreign ones without ids; and logs of which the beginning
is gone."""
import hashlib
import json
import random
import time
import uuid

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from inbox import ROW, SET, inbox  # noqa: F401
from outbox import header, read_topic
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.mark.asan
def test_tombstones_and_odd_payloads(inbox):  # noqa: F811
    """A null payload, an empty one, bytes, text that is no JSON, deep JSON, keys that are no text or not there: all
    reach the handler as they are."""
    i = inbox(partitions=1)
    odd = {}
    for name, value in (("null", None), ("empty", b""), ("bytes", b"\x00\xff\xfe"), ("text", b"hello"),
                        ("nul", b'{"a": "\\u0000"}'), ("deep", b"[" * 400 + b"]" * 400), ("number", b"1e400")):
        odd[name] = str(uuid.uuid4())
        i.put("k", value, [("id", odd[name]), ("type", name), ("h", b"\xff"), ("h", None)])
    for key in (None, b"", b"\xff\x00", b"k" * 5000):
        odd[str(key)[:9]] = id = str(uuid.uuid4())
        i.put(key, b'{"seq": 1}', [("id", id), ("type", "key")])
    i.flush()
    i.db.psql("CREATE TABLE app.raw (type text, key text, payload jsonb, bytes bytea, headers jsonb);"
              "CREATE FUNCTION app.raw(m inbox.message) RETURNS void LANGUAGE sql AS $$ INSERT INTO app.raw VALUES "
              "(m.type, m.key, m.payload, m.payload_bytes, m.headers) $$")
    i.consumer({"kind": "sql", "function": "app.raw"}).start()
    wait_until(lambda: i.one("SELECT count(*) FROM app.raw") == 11, 60, "all of them")
    i.stands()
    rows = {r[0]: r for r in i.db.query("SELECT type, payload::text, bytes, headers FROM app.raw WHERE type <> 'key'")}
    assert rows["null"][1:3] == (None, None), "a tombstone"
    assert rows["empty"][1] is None and bytes(rows["empty"][2]) == b""
    assert bytes(rows["bytes"][2]) == b"\x00\xff\xfe" and bytes(rows["text"][2]) == b"hello"
    assert bytes(rows["nul"][2]) == b'{"a": "\\u0000"}', "what jsonb refuses comes as bytes"
    keys = {r[0] for r in i.db.query("SELECT key FROM app.raw WHERE type = 'key'")}
    assert keys == {None, "", "base64:/wA=", "k" * 5000}
    assert i.dead() == []


@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_a_record_of_10_mb(inbox, handler):  # noqa: F811
    """Larger than every buffer of ours: it goes alone, and the small ones around it go as ever. Also when it is parked
    and comes back."""
    i = inbox(partitions=2)
    i.kafka.set_topic_config(i.topic, {"max.message.bytes": str(16 << 20)})
    filler = "x" * (10 << 20)
    i.send(40)
    big = i.event("k1", {"filler": filler})
    again = i.event("bad", {"filler": filler})
    i.send(40)
    i.poison("bad", "P0001")
    c = i.consumer(handler, {"limits": {"buffer_bytes": "512kB", "batch_bytes": "64kB", "prefetch_bytes": "256kB"},
                             "errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]})
    c.start()
    i.check(without=[again])
    i.cure()
    assert i.one("SELECT sum(inbox.parked_request(%s, %s, p, 'bad', 'retry')) FROM generate_series(0, 1) AS p",
                 (i.group, i.topic)) == 1
    i.check()
    sums = i.db.query("SELECT id::text, md5(payload ->> 'filler') FROM app.effect WHERE payload ? 'filler' ORDER BY n")
    assert sums == [(x, hashlib.md5(filler.encode()).hexdigest()) for x in (big, again)]


def test_compressed_and_transactional_input(inbox):  # noqa: F811
    """Story: four codecs, and transactions of which every second one is aborted. What was aborted is never handled, and
    the positions step over the markers to the very end."""
    i = inbox(partitions=2)
    c = i.consumer().start()
    aborted = 0
    for codec in ("gzip", "lz4", "zstd", "snappy"):
        p = Producer({"bootstrap.servers": i.kafka.bootstrap, "transactional.id": f"{i.name}{codec}", "log_level": 0,
                      "compression.type": codec, "linger.ms": 5})
        p.init_transactions(60)
        for n in range(6):
            p.begin_transaction()
            if n % 2:
                for k in range(30):
                    p.produce(i.topic, json.dumps({"seq": 1000, "aborted": True}), f"k{k % 5}",
                              headers=[("id", str(uuid.uuid4())), ("type", "Aborted")])
                p.flush(60)
                p.abort_transaction(60)
                aborted += 30
            else:
                i._producer = p
                i.send(50, keys=5)
                p.commit_transaction(60)
        i._producer = None
    i.check()
    assert i.count("type = 'Aborted'") == 0 and aborted == 360
    wait_until(lambda: c.metric("postrider_consumer_lag_events", 9) == 0, 30, "no lag behind the markers")


def test_open_transaction_holds_nothing_but_itself(inbox):  # noqa: F811
    """Records behind an open transaction wait for it; then all come, in order."""
    i = inbox(partitions=1)
    c = i.consumer().start()
    p = Producer({"bootstrap.servers": i.kafka.bootstrap, "transactional.id": i.name, "log_level": 0})
    p.init_transactions(60)
    i.send(20, keys=2)
    i.check(more=True)
    p.begin_transaction()
    mine, i._producer = i._producer, p
    i.send(20, keys=2)
    i._producer = mine
    i.send(20, keys=2)
    stays(lambda: i.count() == 20, 0.5, "what is not committed to be unseen")
    p.commit_transaction(60)
    i.check()
    assert c.running()


def test_ids_of_foreign_topics(inbox):  # noqa: F811
    """Records without ids of ours: the place is the id, or a field of the payload."""
    i = inbox(partitions=2)
    for n in range(40):
        i.put(f"k{n % 4}", json.dumps({"seq": n // 4 + 1, "order": {"number": n}}))
    for n in range(40):  # the producer sent all of it twice
        i.put(f"k{n % 4}", json.dumps({"seq": n // 4 + 1, "order": {"number": n}}))
    i.flush()
    i.consumer(config={"id": "json:order.number"}).start()
    i.wait_count(40)
    i.stands()
    assert i.count() == 40
    i.consumer(group=i.group + "b", config={"id": "offset"}).start()
    i.wait_count(40 + 80)
    assert i.one("SELECT count(DISTINCT id) FROM app.effect") == 120


def outcome(c, name):
    return sum(v for k, v in c.metrics().items() if k.startswith("postrider_consumer_handled_total{") and f'"{name}"' in k)


def test_filters_step_over_the_rest(inbox):  # noqa: F811
    i = inbox()
    for n in range(60):
        i.put(f"k{n % 4}", '{"seq": 1}', [("id", str(uuid.uuid4())), ("type", ("SeatHeld", "Other", "SeatFreed")[n % 3]),
                                           ("region", ("eu", "us")[n % 2])])
    i.flush()
    c = i.consumer(config={"filter": {"types": ["Seat*"], "headers": ["region=eu"]}}).start()
    i.wait_count(20)
    i.stands()
    assert i.count() == 20 and i.count("type LIKE 'Seat%%'") == 20
    wait_until(lambda: outcome(c, "filtered") == 40, 30, "40 to be filtered")


def lose_the_beginning(i, upto=50):
    """Deletes what is below the offset, as retention does."""
    i.kafka.set_topic_config(i.topic, {"retention.bytes": "1", "segment.bytes": "1048576", "segment.ms": "100",
                                       "file.delete.delay.ms": "100"})
    c = Consumer({"bootstrap.servers": i.kafka.bootstrap, "group.id": "none", "log_level": 0})
    try:
        def low():
            i.put("filler", "x", [("id", str(uuid.uuid4()))])
            i.producer.poll(0)
            return c.get_watermark_offsets(TopicPartition(i.topic, 0), 5)[0] >= upto
        wait_until(low, 90, "the beginning of the log to be deleted", interval=0.2)
    finally:
        c.close()


@pytest.mark.parametrize("on_gap", ["stop", "skip"])
def test_records_lost_before_they_were_read(inbox, on_gap):  # noqa: F811
    """Story: retention was faster than the consumer. A client with auto.offset.reset goes on somewhere and says
    nothing; ours stands and says which records are gone, or steps over them when the config says so, and counts."""
    i = inbox(partitions=1)
    i.send(20)
    c = i.consumer(config={"on_gap": on_gap}).start()
    i.check()
    c.terminate()
    lost = i.send(60)
    lose_the_beginning(i, 80)
    c.start()
    if on_gap == "stop":
        answer = i.wait_state(c, "error")
        assert "deleted before they were read" in json.dumps(answer)
        assert i.count() == 20
    else:
        wait_until(lambda: "stepped over" in c.log_text(), 60, "the gap to be stepped over")
        last = i.event("k0")
        i.flush()
        i.wait_count(1, where=f"id = '{last}'")
        assert i.count(f"id = '{lost[0]}'") == 0


# ---------------------------------------------------------------- C11: disorder

def test_a_key_moves_to_another_partition(inbox):  # noqa: F811
    """Story: somebody adds partitions, and the hash sends keys elsewhere from then on, while events of theirs wait where
    they were before. No order holds between two partitions, and nobody can say otherwise; each event is applied once all
    the same, in order within its partition, and what is parked of a key does not park it elsewhere."""
    i = inbox(partitions=2)
    i.poison("k1", "P0001", seq=3)
    i.send(120, keys=12)
    c = i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]})
    c.start()
    late = i.keys["k1"][2:]
    i.wait_parked(len(late))
    i.kafka.add_partitions(i.topic, 5)
    i._producer = None  # the next one knows the new ones
    i.send(240, keys=12)
    moved = set(i.keys["k1"][10:])
    i.wait_count(360 - len(late) - len(moved))
    wait_until(lambda: c.metric("postrider_consumer_assigned_partitions") == 5, 60, "it to have the new ones")
    home = {r[0] for r in i.db.query("SELECT DISTINCT partition FROM inbox.parked")}
    assert len(home) == 1

    def stand():
        return {r[0] for r in i.db.query("SELECT id::text FROM app.effect WHERE key = 'k1'")} & moved, {r[0] for r in i.parked("id")}
    there, parked = wait_until(lambda: (s := stand())[0] | s[1] >= moved and s, 60, "those elsewhere to go on, those at home to wait")
    assert not there & parked
    i.cure()
    i.db.query("SELECT inbox.parked_request(%s, %s, %s, 'k1', 'retry')", (i.group, i.topic, home.pop()))
    i.wait_count(360)
    i.stands()
    assert i.one("SELECT count(*) FROM (SELECT seq - lag(seq) OVER (PARTITION BY key, partition ORDER BY n) AS step"
                 " FROM app.effect) AS e WHERE step < 0") == 0
    assert i.one("SELECT count(DISTINCT id) FROM app.effect") == 360 == i.count()
    assert i.one("SELECT max(c) FROM (SELECT count(DISTINCT partition) AS c FROM app.effect GROUP BY key) AS k") == 2


def test_timestamps_that_run_backwards(inbox):  # noqa: F811
    """Story: producers' clocks differ by years. The log's order is the order; ages are never below zero, and a record
    that says it comes from the future, or from 1970, holds nobody up."""
    i = inbox(partitions=1)
    i.kafka.set_topic_config(i.topic, {"message.timestamp.after.max.ms": str((1 << 63) - 1)})
    c = i.consumer().start()
    now = int(time.time() * 1000)
    year = 365 * 86400 * 1000
    for n, t in enumerate([now, now - year, 1, now + 1000 * year // 2, now - 1, now + year, 5, now] * 5):
        i.event(f"k{n % 4}", timestamp=t)
    for n in range(40):
        i.event(f"k{n % 4}", timestamp=now - n * 3600 * 1000)
    i.check()
    assert i.one("SELECT count(*) FROM (SELECT message_offset - lag(message_offset) OVER (PARTITION BY key ORDER BY n) AS s"
                 " FROM app.effect) AS e WHERE s <= 0") == 0
    wait_until(lambda: c.metric("postrider_consumer_lag_seconds", 9) == 0, 30, "no lag in seconds")
    assert not [(k, v) for k, v in c.metrics().items() if "seconds" in k and v < 0]
    i.wait_state(c, "ok")


def test_the_same_ids_far_apart(inbox):  # noqa: F811
    """Story: an upstream that publishes at least once was set back to an old position: ids come again thousands of
    records later, in other partitions, behind a kill, in another order and several times in one batch."""
    i = inbox()
    c = i.consumer(SET, {"limits": {"batch_events": 200}}).start()
    ids = i.send(3000, keys=40)
    i.check(more=True)
    c.kill9()
    rnd = random.Random(8)
    for again in range(3):
        for n, id in enumerate(rnd.sample(ids, 400)):
            key, seq = i.sent[id]
            i.put(key, json.dumps({"seq": seq}), [("id", id), ("type", "Moved")], partition=(n + again) % 3)
        i.send(100, keys=40)
    c.start()
    i.check()
    wait_until(lambda: c.metric("postrider_inbox_duplicates_total") == 1200, 30, "all to be counted")  # behind the commit


def test_offsets_with_holes(inbox):  # noqa: F811
    """Story: compaction takes records out of a topic, and commits and aborts take offsets of their own. A consumer that
    expects every offset calls that a loss; ours knows a hole from a log whose beginning is gone."""
    i = inbox(partitions=1)
    i.send(40, keys=8)
    c = i.consumer().start()
    i.check()
    assert c.terminate() == 0
    p = Producer({"bootstrap.servers": i.kafka.bootstrap, "transactional.id": i.name, "log_level": 0})
    p.init_transactions(60)
    i._producer = p
    for n in range(12):
        p.begin_transaction()
        if n % 3 == 2:
            p.produce(i.topic, '{"seq": 1}', "aborted", headers=[("id", str(uuid.uuid4()))])
            p.flush(60)
            p.abort_transaction(60)
        else:
            i.send(40, keys=8)
            p.commit_transaction(60)
    i.kafka.set_topic_config(i.topic, {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": "100"})

    def compacted():
        p.begin_transaction()
        i.event("last")
        i.flush()
        p.commit_transaction(60)
        return len(read_topic(i.kafka, i.topic)) < 60
    wait_until(compacted, 90, "the log to be compacted", interval=0.3, interval_max=0.5)
    c.start()
    i.stands()
    records = read_topic(i.kafka, i.topic)
    assert records[-1].offset > 3 * len(records), "there are holes"
    applied = {r[0] for r in i.rows()}
    assert {header(r, "id").decode() for r in records} <= applied, "what is there is handled"
    assert i.wrong(at_most_missing=len(i.sent)) == []
    i.wait_state(c, "ok")
    assert "gap" not in c.log_text() and "deleted before" not in c.log_text()


# ---------------------------------------------------------------- another log

def test_topic_made_anew(inbox):  # noqa: F811
    """The position is behind the end: another log under the same name. It says so and touches nothing."""
    i = inbox(partitions=1)
    i.send(50)
    c = i.consumer().start()
    i.check()
    c.terminate()
    i.kafka.delete_topic(i.topic)
    i.kafka.create_topic(i.topic, 1)
    i.send(5)
    c.start()
    answer = i.wait_state(c, "error")
    assert "past its end" in json.dumps(answer)
    assert i.count() == 50
