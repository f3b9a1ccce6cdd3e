"""tests/e2e/test_record.py -- the Kafka record, byte by byte, for every kind of row.

One relay for all tests; each has topics of its own.
"""
import json
import random
import re
import time

import pytest

from checker import murmur2_partition
from outbox import Outbox, header, unique
from wait import stays, wait_until

OURS = ["id", "type", "content-type", "outbox-seq", "outbox-created-at"]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def post(pg_server, kafka):
    with Outbox(pg_server, kafka, "record") as o:
        yield o.start()


def own(record):
    return [(k, v) for k, v in record.headers if k not in (*OURS, "traceparent")]


# ---------------------------------------------------------------- value

JSON = [
    '{}', '[]', 'null', 'true', '""', '0', '"text"', '{"a": {"b": [1, {"c": null}]}}',
    '{"big": 123456789012345678901234567890.1234567890123456789000, "e": 1e300, "neg": -9223372036854775809}',
    '{"u": "h\\u00e9\\u6f22\\ud83d\\ude00", "esc": "\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u007f/"}',
    '{"\\u00fc\\u0000x": 1}'.replace("\\u0000", ""), '[' * 400 + ']' * 400,
    json.dumps({"pad": "".join(random.Random(1).choices("abc \u00e9\u6f22", k=200000))}),
]
BYTES = [b"", b"\0", b"\0\0a\0", bytes(range(256)), b"not { json", b"\xff\xfe\x00",
         random.Random(2).randbytes(700000)]


def test_values(post):
    """Every payload leaves exactly as Postgres shows it: jsonb as its text, bytea untouched, empty is not
    NULL, and NULL is a tombstone. JSON's null is four bytes, not a tombstone."""
    kind, topic = post.kind()
    for i, text in enumerate(JSON):
        post.publish(kind, f"json {i}", text)
    for i, data in enumerate(BYTES):
        post.sql("SELECT outbox.publish_bytes(%s, %s, 'T', %s)", (kind, f"bytes {i}", data))
    post.publish(kind, "tombstone", None)
    post.sql("SELECT outbox.publish_bytes(%s, 'tombstone 2', 'T', NULL)", (kind,))
    rows = post.sql("SELECT aggregateid, payload::text, payload_bytes, id::text, seq, to_char(created_at AT TIME ZONE "
                    "'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM outbox.event WHERE aggregatetype = %s "
                    "ORDER BY seq", (kind,))
    records = post.read(topic, len(rows))
    assert len(records) == len(rows) == len(JSON) + len(BYTES) + 2
    for r, (key, text, data, event_id, seq, created) in zip(records, rows):
        want = text.encode() if text is not None else bytes(data) if data is not None else None
        assert r.value == want and r.key == key.encode()
        assert [k for k, _ in r.headers] == OURS
        assert header(r, "id").decode() == event_id
        assert header(r, "type") == b"T"
        assert header(r, "content-type") == (b"application/octet-stream" if data is not None else b"application/json")
        assert header(r, "outbox-seq").decode() == str(seq)
        assert header(r, "outbox-created-at").decode() == created
    by = {r.key: r.value for r in records}
    assert by[b"bytes 0"] == b"" and by[b"tombstone"] is None and by[b"tombstone 2"] is None
    assert by[b"json 2"] == b"null"


# ---------------------------------------------------------------- headers

def test_own_headers(post):
    """Strings as they are, every other JSON value as its JSON text, null too: a reader that wants the
    string "null" can tell it from null no more than 1 from "1", but it never meets a header without a
    value, which many clients cannot take. They come after ours."""
    kind, topic = post.kind()
    headers = {"s": "plain", "empty": "", "u": "h\u00e9\u6f22\U0001f600", "q": "a\"\\\n\t\u0001b", "n": 1.50,
               "big": 12345678901234567890, "t": True, "f": False, "none": None, "list": [1, "a", None],
               "obj": {"k": {"x": []}}, "Content-Language": "de", "x y:z": "odd name", "\u00fc": "\u00fc"}
    post.publish(kind, "k", headers=json.dumps(headers))
    (r,) = post.read(topic, 1)
    want = dict(post.sql("SELECT key, CASE jsonb_typeof(value) WHEN 'string' THEN value #>> '{}' ELSE value::text END "
                         "FROM outbox.event, jsonb_each(headers) WHERE aggregatetype = %s", (kind,)))
    assert [k for k, _ in r.headers[:5]] == OURS
    assert {k: v and v.decode() for k, v in own(r)} | {"empty": ""} == want
    assert header(r, "empty") == b"" and header(r, "none") == b"null" and header(r, "n") in (b"1.5", b"1.50")
    assert len(own(r)) == len(headers)


def test_a_thousand_headers(post):
    kind, topic = post.kind()
    headers = {f"h{i:04}": "v" * 40 for i in range(1000)}
    post.publish(kind, "k", headers=json.dumps(headers))
    post.publish(kind, "k", headers=json.dumps({"one": "x" * 65000}))
    many, one = post.read(topic, 2)
    assert dict(own(many)) == {k: v.encode() for k, v in headers.items()}
    assert own(one) == [("one", b"x" * 65000)]


TRACES = [
    (TRACE, TRACE),
    ("#Tue Jan 02 10:00:00 UTC 2024\ntraceparent=" + TRACE + "\ntracestate=a=b\n", TRACE),
    ("tracestate=a\\=b\r\ntraceparent=" + TRACE + "\r\n", TRACE),
    ("traceparent=" + TRACE, TRACE),
    # a newer version may have more behind; it is passed on without
    ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("", None), ("x", None), (TRACE[:-1], None), (TRACE + "0", None), (TRACE + "-more", None),
    (TRACE.upper(), None), (TRACE.replace("b", "g"), None), (TRACE.replace("-", "_"), None),
    ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", None),
    ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", None),
    ("ff" + TRACE[2:], None), ("xtraceparent=" + TRACE, None), ("#traceparent=" + TRACE, None),
    ("traceparent=" + TRACE[:40] + "\n", None), ("\u00e9" * 60, None), ("tracestate=traceparent=" + TRACE, None),
    (TRACE[:2] + "-" + "\x01" * 32 + TRACE[35:], None),
]


def test_traceparent(post):
    """tracingspancontext holds a W3C traceparent or Debezium's serialised java.util.Properties. What is
    malformed is dropped: a tracer that gets a bad one starts no trace at all, or breaks."""
    kind, topic = post.kind()
    for i, (given, _) in enumerate(TRACES):
        post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, tracingspancontext) VALUES (%s, %s, 'T', "
                 "%s)", (kind, str(i), given))
    with post.db.connect(autocommit=False) as c, c.cursor() as cur:
        cur.execute("SET LOCAL outbox.traceparent = '" + TRACE + "'")
        cur.execute("SELECT outbox.publish(%s, 'local', 'T', '{}')", (kind,))
        c.commit()
    c.close()
    got = {r.key.decode(): header(r, "traceparent") for r in post.read(topic, len(TRACES) + 1)}
    assert got.pop("local") == TRACE.encode()
    assert {TRACES[int(k)][0]: v for k, v in got.items()} == {t: w and w.encode() for t, w in TRACES}


# ---------------------------------------------------------------- where to

def test_topic_override_and_partition(post):
    kind, topic = post.kind(3)
    _, other = post.kind(4)
    post.publish(kind, "k", topic=other)
    for p in (2, 0, 1, 2):
        post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, partition) VALUES (%s, 'k', %s, %s)",
                 (kind, str(p), p))
    post.publish(kind, "k", type="by key")
    assert [r.value for r in post.read(other, 1)] == [b"{}"]
    records = post.read(topic, 5)
    given = [r for r in records if header(r, "type") != b"by key"]
    assert sorted((r.partition, header(r, "type")) for r in given) == [(0, b"0"), (1, b"1"), (2, b"2"), (2, b"2")]
    (free,) = [r for r in records if header(r, "type") == b"by key"]
    assert free.partition == murmur2_partition(b"k", 3)


def test_murmur2(post):
    """Java producers on the same topic must agree where a key lives."""
    kind, topic = post.kind(7)
    rnd = random.Random(3)
    keys = [str(i) for i in range(500)] + ["k" * n for n in range(1, 40)]
    keys += ["".join(rnd.choices("aZ0 \u00e9\u6f22\U0001f600\n\"\\'", k=rnd.randint(1, 30))) for _ in range(500)]
    post.many(kind, keys)
    records = post.read(topic, len(keys))
    assert len(records) == len(keys)
    assert all(r.partition == murmur2_partition(r.key, 7) for r in records)
    assert {r.partition for r in records} == set(range(7))


def test_keys_of_any_size(post):
    kind, topic = post.kind(2)
    keys = ["".join(random.Random(n).choices("abcdefghijklmnop\u00e9", k=n)) for n in (1, 1000, 10000)]
    keys.append(random.Random(4).randbytes(32768).hex())
    post.many(kind, keys)
    assert sorted(r.key.decode() for r in post.read(topic, len(keys))) == sorted(keys)


# ---------------------------------------------------------------- when

def test_timestamps(post):
    """The record's timestamp is the time of publishing, whatever created_at says: a row of 1970 must not be
    deleted by the topic's retention at once, one of the year 294276 not be refused by the broker."""
    kind, topic = post.kind()
    given = ["1970-01-01T00:00:00Z", "1969-12-31T23:59:59.5Z", "0001-01-01T00:00:00Z", "2001-02-03T04:05:06.789012Z",
             "2999-12-31T23:59:59.999999Z", "12345-06-07T08:09:10Z", "294276-12-31T23:59:59Z",
             "infinity", "-infinity"]
    before = time.time() * 1000
    for i, at in enumerate(given):
        post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, created_at) VALUES (%s, %s, 'T', %s)",
                 (kind, str(i), at))
    post.publish(kind, "now")
    records = post.read(topic, len(given) + 1)
    assert len(records) == len(given) + 1
    from confluent_kafka import TIMESTAMP_CREATE_TIME
    for r in records:
        assert r.time_type == TIMESTAMP_CREATE_TIME
        assert before - 1000 <= r.time <= time.time() * 1000 + 1000
    stamps = [header(r, "outbox-created-at").decode() for r in records]
    assert stamps[0] == "1970-01-01T00:00:00.000000Z"
    assert stamps[1] == "1969-12-31T23:59:59.500000Z"
    assert stamps[3] == "2001-02-03T04:05:06.789012Z"
    assert stamps[4] == "2999-12-31T23:59:59.999999Z"
    assert stamps[5] == "12345-06-07T08:09:10.000000Z"
    assert all(re.fullmatch(r"-?\d{1,6}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", s) for s in stamps)
    # What has no number of microseconds keeps its side of time.
    assert int(stamps[6].split("-")[0]) > 100000 and int(stamps[7].split("-")[0]) > 100000
    assert int(stamps[8].lstrip("-").split("-")[0]) <= 1970
    wait_until(lambda: post.relay.metric("postrider_lag_seconds") == 0, 60, "no lag")
    post.wait_state("ok")


# ---------------------------------------------------------------- later, and many

def test_publish_at_and_cancel(post):
    """Due events come, in the order in which they fall due, with the time they fell due; cancelled ones and
    those at infinity never; those of the past at once."""
    kind, topic = post.kind()
    at = post.one("SELECT clock_timestamp()::text")  # so that the order is ours, however long each call takes
    post.sql("SELECT outbox.publish_at(%s::timestamptz + interval '5s', %s, 'k', 'second', '{}')", (at, kind))
    post.sql("SELECT outbox.publish_bytes_at(%s::timestamptz + interval '1s', %s, 'k', 'first', '\\x00ff')", (at, kind))
    gone = post.one("SELECT outbox.publish_at(%s::timestamptz + interval '4s', %s, 'k', 'gone', '{}')::text", (at, kind))
    held = post.one("SELECT outbox.publish_at('infinity', %s, 'k', 'held', '{}')::text", (kind,))
    post.sql("SELECT outbox.publish_at('-infinity', %s, 'k', 'past', '{\"p\": 1}', headers => '{\"h\": 1}')", (kind,))
    assert post.one("SELECT outbox.cancel(%s)", (gone,)) is True
    records = post.read(topic, 3)
    assert [header(r, "type") for r in records] == [b"past", b"first", b"second"]
    assert [r.value for r in records] == [b'{"p": 1}', b"\0\xff", b"{}"]
    assert own(records[0]) == [("h", b"1")]
    assert post.one("SELECT outbox.cancel(%s)", (header(records[1], "id").decode(),)) is False
    assert post.sql("SELECT id::text FROM outbox.scheduled WHERE aggregatetype = %s", (kind,)) == [(held,)]
    for r, due in zip(records[1:], ("1s", "5s")):
        assert header(r, "outbox-created-at").decode() == post.one(
            "SELECT to_char((%s::timestamptz + %s::interval) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')", (at, due))
    stays(lambda: len(post.read(topic)) == 3, 0.3, "nothing more comes")


def test_publish_many(post):
    """The order of the array is the order on the topic; the fields are those of publish()."""
    kind, topic = post.kind()
    events = [{"aggregatetype": kind, "aggregateid": "k", "type": str(i), "payload": {"n": i}} for i in range(700)]
    events[5] |= {"headers": {"h": "v"}, "tracingspancontext": TRACE, "id": "018f0000-0000-7000-8000-000000000001"}
    events[6] = {**events[6], "payload": None}
    events[7] = {k: v for k, v in events[7].items() if k != "payload"} | {"payload_base64": "AAEC"}
    assert post.one("SELECT outbox.publish_many(%s)", (json.dumps(events),)) == 700
    records = post.read(topic, 700)
    assert [header(r, "type").decode() for r in records] == [str(i) for i in range(700)]
    assert header(records[5], "id") == b"018f0000-0000-7000-8000-000000000001"
    assert header(records[5], "traceparent") == TRACE.encode() and own(records[5]) == [("h", b"v")]
    assert records[6].value is None and records[7].value == b"\0\1\2" and records[8].value == b'{"n": 8}'


def test_a_route_of_ones_own(pg_server, kafka):
    """route.topic with the aggregatetype in the middle, and a constant one; at_least_once makes the same
    record."""
    word = unique("r")
    with Outbox(pg_server, kafka, "route", delivery="at_least_once",
                config={"route": {"topic": word + ".${aggregatetype}.events"}}) as o:
        topic = kafka.create_topic(f"{word}.order.events")
        o.start()
        event_id = o.publish("order", "k", '{"n": 1.10}', headers='{"none": null, "s": "x"}')
        (r,) = o.read(topic, 1)
        assert (r.key, r.value, header(r, "id").decode()) == (b"k", b'{"n": 1.10}', event_id)
        assert own(r) == [("s", b"x"), ("none", b"null")]
        assert [k for k, _ in r.headers[:5]] == OURS
