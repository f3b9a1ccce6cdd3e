"""tests/e2e/test_sink_table.py -- the sink's rows in a table of Postgres, in the consumer's database and in another one: each record
once by append, the last of each key by upsert, each key's history by scd2; whatever is in the records.
"""
import itertools
import json
import random
import time
import uuid

import pytest
from inbox import inbox  # noqa: F401
from sink import withheld
from sink_table import table  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
MODES = ["append", "upsert", "scd2"]


@pytest.fixture(params=["here", "away"])
def where(request, pg_server):
    """The table's database: None: the consumer's."""
    n = itertools.count()
    return lambda: None if request.param == "here" else pg_server.createdb(f"rows_{request.node.name[:20].lower().replace('[', '_')}_{id(n)}_{next(n)}")


@pytest.mark.asan
@pytest.mark.parametrize("mode", MODES)
def test_modes(table, where, mode):  # noqa: F811
    t = table(mode, db=where())
    t.consumer()
    for _ in range(3):
        t.send(400, every=5)
    t.check()
    assert t.i.db.one("SELECT count(DISTINCT partition) FROM sink.cut WHERE state = 'published' AND target = 'table'") == 3


@pytest.mark.parametrize("mode", MODES)
def test_again_from_zero(table, where, mode):  # noqa: F811
    """Every position is set back and all of it is read again, by cuts of another size: nothing is there twice, nothing changes."""
    t = table(mode, db=where())
    c = t.consumer()
    t.send(500, every=6)
    t.check()
    before = set(map(str, t.db.query(f"SELECT * FROM {t.name}")))
    c.terminate()
    t.again_from_zero()
    t.consumer(max_records=17)
    t.put(b"one more", {"n": 0})
    t.i.flush()
    t.check()
    assert len(set(map(str, t.db.query(f"SELECT * FROM {t.name}"))) ^ before) == 1


def test_any_record_has_its_row(table, where):  # noqa: F811
    """No JSON, NULs and numbers that jsonb does not take, no text in key, headers and type, no id, 10 MB: each has its row, and none
    stops the others."""
    t = table("append", partitions=1, db=where())
    t.i.kafka.set_topic_config(t.i.topic, {"max.message.bytes": str(16 << 20)})
    given = [(b"k", None), (b"k", b""), (b"k", b"not json"), (b"k\0", b'"\\u0000"'), (b"\xff", b"\xff\0"), (None, b"1e999999"),
             (b"k", b'{"big": 12345678901234567890123, "x": 1.50}'), (b"k", json.dumps("x" * (10 << 20)).encode())]
    for key, value in given:
        t.i.put(key, value, [("type", b"T\xff"), ("raw", b"\xff"), ("none", None)])
    t.i.flush()
    t.consumer()
    t.stands()
    rows = t.db.query(f"SELECT key, left(payload::text, 60), payload_base64, id, type, headers FROM {t.name} ORDER BY \"offset\"")
    assert [r[:4] for r in rows] == [
        ("k", None, None, None), ("k", None, "", None), ("k", None, "bm90IGpzb24=", None), ("base64:awA=", None, "Ilx1MDAwMCI=", None),
        ("base64:/w==", None, "/wA=", None), (None, None, "MWU5OTk5OTk=", None),
        ("k", '{"x": 1.50, "big": 12345678901234567890123}', None, None), ("k", '"' + "x" * 59, None, None)]
    assert {r[4] for r in rows} == {"T?"} and rows[0][5] == {"type": {"base64": "VP8="}, "raw": {"base64": "/w=="}, "none": None}


def test_a_table_of_theirs(table):  # noqa: F811
    """Other types, a column and a trigger of their own, a CHECK that one record breaks: that one is a dead letter with Postgres' words."""
    t = table("append", partitions=1, name="Shop.Paid events")
    t.db.psql("""CREATE SCHEMA "Shop"; CREATE TABLE "Shop"."Paid events" (n bigserial, topic varchar(100), partition smallint, "offset" bigint,
        payload jsonb CHECK ((payload ->> 'n')::int <> 137), seen timestamptz DEFAULT now(), UNIQUE (topic, partition, "offset"))""")
    t.send(300)
    t.consumer()
    t.stands()
    assert t.db.query('SELECT count(*), count(DISTINCT "offset"), count(seen) FROM "Shop"."Paid events"') == [(299, 299, 299)]
    dead = t.i.dead("message_offset, class, code, reason")
    assert [d[:3] for d in dead] == [(137, "sqlstate", "23514")] and "Paid events_payload_check" in dead[0][3]
    cuts = t.i.db.query("SELECT first_offset, next_offset, state FROM sink.cut ORDER BY 1")
    assert (137, 138, "refused") in cuts and sum(c[1] - c[0] for c in cuts) == 300


@pytest.mark.parametrize("mode", ["upsert", "scd2"])
def test_records_without_a_key(table, mode):  # noqa: F811
    """Which row would they be? Dead letters, and the rest goes in."""
    t = table(mode, partitions=1)
    t.send(10)
    for _ in range(2):
        t.put(None, {"n": 1})
    t.send(60)
    t.put(None, {"n": 2})
    t.i.flush()
    t.consumer()
    t.check(without=[(0, 10), (0, 11), (0, 72)])
    assert t.i.dead("message_offset, class, code") == [(n, "decode", "key") for n in (10, 11, 72)]


@pytest.mark.parametrize("mode", ["upsert", "scd2"])
def test_what_rules_cannot_read_ends_nothing(table, mode):  # noqa: F811
    """A payload that was cut in the middle was taken for a tombstone once a rule was about payloads: the customer's row was deleted."""
    t = table(mode, partitions=1)
    c = t.consumer(handler={"fields": [{"path": "payload.email", "action": "drop"}]})
    t.put(b"customer-1", {"name": "Ann", "email": "a@b.de"})
    for bad in (b'{"name": "Ann", "email": ', b'"ann@b.de"', b""):
        t.put(b"customer-1", bad)
    t.put(b"customer-2", {"name": "Jo"})
    t.i.flush()
    t.stands()
    assert t.db.query(f"SELECT key, payload FROM {t.name} ORDER BY 1") == [("customer-1", {"name": "Ann"}), ("customer-2", {"name": "Jo"})]
    assert t.i.dead("message_offset, class, code") == [(n, "decode", "json") for n in (1, 2, 3)]
    assert withheld(c, "payload") >= 3


@pytest.mark.parametrize("place", [', PRIMARY KEY (topic, partition, "offset")', ""])
def test_what_a_table_holds_unique_is_told(table, place):  # noqa: F811
    """ids are unique in a table of theirs: the second record of one id left no row, and no dead letter either. Rows that are there
    already, when all is read again, are no such thing, with an index on places or without."""
    t = table("append", partitions=1)
    t.db.psql(f"""CREATE SCHEMA platform; CREATE TABLE platform.event (id text UNIQUE, type text, topic text COLLATE "C",
        partition integer, "offset" bigint, key text, payload jsonb{place})""")
    one = str(uuid.uuid4())
    t.i.put(b"a", b'{"n": 1}', [("id", one), ("type", "Changed")])
    t.i.put(b"b", b'{"n": 2}', [("id", one), ("type", "Changed")])
    t.put(b"c", {"n": 3})
    t.i.flush()
    c = t.consumer()
    t.stands()
    rows = f'SELECT "offset", payload FROM {t.name} ORDER BY 1'
    assert t.db.query(rows) == [(0, {"n": 1}), (2, {"n": 3})]
    assert t.i.dead("message_offset, class, code") == [(1, "sqlstate", "23505")]
    assert c.terminate() == 0
    t.again_from_zero()
    t.put(b"d", {"n": 4})
    t.i.flush()
    t.consumer()
    t.stands()
    assert t.db.query(rows) == [(0, {"n": 1}), (2, {"n": 3}), (3, {"n": 4})]
    assert {d[0] for d in t.i.dead("message_offset")} == {1}


def test_kept_tombstones(table, where):  # noqa: F811
    """A key is in two partitions, for some were added: its tombstone is read first, and an older record brought its row back."""
    t = table("upsert", partitions=2, db=where())
    t.consumer(tombstones="keep")
    now = int(time.time() * 1000)
    for partition, payload, ago in ((1, None, 0), (0, {"name": "old"}, 60000)):
        t.put(b"customer-1", payload, partition=partition, timestamp=now - ago)
        t.put(f"other-{partition}".encode(), {"n": 1}, partition=partition, timestamp=now)
        t.i.flush()
        t.stands()
    assert t.db.query(f"SELECT key, payload, extract(epoch FROM deleted_at)::float8 FROM {t.name} ORDER BY 1") == [
        ("customer-1", None, now / 1000), ("other-0", {"n": 1}, None), ("other-1", {"n": 1}, None)]


@pytest.mark.parametrize("mode, told", [("upsert", True), ("append", False)])
def test_an_added_partition_is_told(table, mode, told):  # noqa: F811
    """Where a row is what its key came to be, and keys may be in two partitions now."""
    t = table(mode, partitions=1)
    c = t.consumer()
    t.send(10)
    t.check()
    assert c.terminate() == 0 and "a partition was added" not in c.log_text()
    t.i.db.query("UPDATE sink.cut SET recorded_at = recorded_at - interval '1 hour'")
    t.i.kafka.add_partitions(t.i.topic, 2)
    t.i.producer.list_topics(t.i.topic, 10)  # it looks again
    c = t.consumer()
    t.put(b"k", {"n": 1}, partition=1)
    t.i.flush()
    t.stands()
    lines = [line for line in c.log_text().splitlines() if "a partition was added" in line]
    assert len(lines) == told and all(" partition=1 " in line for line in lines), c.log_text()


@pytest.mark.parametrize("mode", ["upsert", "scd2"])
def test_two_topics_with_the_same_keys(table, mode):  # noqa: F811
    """By default a key is one of its topic; both topics' lanes write side by side."""
    t = table(mode)
    t.topics.append(t.i.kafka.create_topic(t.i.name + "b", 3))
    t.consumer()
    for n in range(600):
        t.put(f"k{n % 10}".encode(), {"n": n} if n % 7 else None, topic=t.topics[n // 10 % 2])
    t.i.flush()
    t.check()
    assert {r[0] for r in t.db.query(f"SELECT DISTINCT topic FROM {t.name}")} == set(t.topics)


def test_a_key_of_two_topics(table):  # noqa: F811
    """key = "key": two lanes begin and end the history of the same keys at the same time; at each moment one row at most holds."""
    t = table("scd2", key=["key"])
    t.topics.append(t.i.kafka.create_topic(t.i.name + "b", 3))
    t.consumer()
    rng = random.Random(7)
    for n in range(1500):
        t.put(f"k{rng.randrange(5)}".encode(), {"n": n} if rng.random() < .9 else None, topic=t.topics[n % 2])
        if n % 100 == 99:
            t.i.flush()
    t.i.flush()
    t.stands()
    assert t.db.query(f"SELECT key FROM {t.name} WHERE current GROUP BY key HAVING count(*) > 1") == []
    assert t.db.query(f"SELECT key FROM {t.name} WHERE valid_to < valid_from OR current <> (valid_to IS NULL)") == []
    assert t.db.query(f"SELECT a.key FROM {t.name} AS a JOIN {t.name} AS b ON a.key = b.key AND (a.topic, a.\"offset\", a.partition) <>"
                      " (b.topic, b.\"offset\", b.partition) AND a.valid_from <= b.valid_from AND b.valid_from < a.valid_to"
                      " AND b.valid_to > b.valid_from AND a.valid_from < b.valid_from") == []
    sent = sum(1 for r in t.records() if r.value is not None)
    assert t.db.one(f"SELECT count(*) FROM {t.name}") == sent and not t.i.dead()


def test_times_that_go_back(table):  # noqa: F811
    """Records that say they are older than the ones before them."""
    t = table("scd2", partitions=1)
    rng, now = random.Random(3), int(time.time() * 1000)
    for n in range(400):
        t.put(f"k{rng.randrange(6)}".encode(), {"n": n} if rng.random() < .8 else None, timestamp=now - rng.randrange(10000))
    t.i.flush()
    t.consumer()
    t.check()


def test_the_table_goes_and_comes_back(table, where):  # noqa: F811
    """Somebody drops the table under us: red, nothing is lost, and once it is there again (with another column) it goes on."""
    t = table("append", db=where())
    c = t.consumer()
    t.send(100)
    t.check()
    t.db.psql(f"ALTER TABLE {t.name} RENAME TO gone")
    t.send(100)
    t.i.wait_state(c, "error")
    wait_until(lambda: "there is no table" in c.status()["sentence"], 60, "what is wrong to be said")
    t.db.psql("ALTER TABLE platform.gone RENAME TO event; ALTER TABLE platform.event ADD more int, DROP hour")
    t.check()
    t.i.wait_state(c, "ok")
    assert not t.i.dead()


def test_lanes_write_side_by_side(table):  # noqa: F811
    """Partitions are spread over the lanes, each with a session of its own."""
    t = table("append", partitions=4)
    t.db.psql("""CREATE SCHEMA platform; CREATE TABLE platform.event (id text, type text, topic text COLLATE "C", partition int, "offset" bigint,
        key text, payload jsonb, payload_base64 text, by text DEFAULT current_setting('application_name'))""")
    t.consumer(config={"lanes": 2})
    t.send(400)
    t.check()
    by = t.db.query(f"SELECT by, array_agg(DISTINCT partition) FROM {t.name} GROUP BY by")
    assert len(by) == 2 and sorted(sum((p for _, p in by), [])) == [0, 1, 2, 3]


def test_by_age_and_at_a_stop(table):  # noqa: F811
    """Few records go in after max_age; what is open when the consumer is stopped goes in at once."""
    t = table("append", partitions=1)
    c = t.consumer(max_age="200ms")
    t.send(3)
    t.check()
    assert c.terminate() == 0
    c = t.consumer(max_age="1h")
    t.send(3)
    wait_until(lambda: c.metric("postrider_batch_events_sum") == 3 and c.metric("postrider_sink_lag_seconds") > 0, 60, "all of them in an open cut",
               ignore=(OSError,))
    assert c.terminate() == 0
    t.check(timeout=1)


@pytest.mark.parametrize("more, words", [
    ({"table": "a.b.c"}, "is not the name of a table"),
    ({"mode": "upsert", "key": ["payload"]}, "cannot hold"),
    ({"create": False}, "there is no table"),
    ({"table": "app.effect", "mode": "append"}, "no column"),
    ({"mode": "scd2", "tombstones": "keep"}, 'is for handler.table.mode = "upsert"'),
    ({"conninfo": "host=127.0.0.1 port=1 dbname=x user=y", "mode": "append"}, ""),
])
def test_a_bad_config_is_named(inbox, more, words):  # noqa: F811
    c = inbox(partitions=1).consumer({"kind": "sink", "table": {"table": "x.y", "mode": "append", **more}}).start()
    if words:
        assert c.wait(60) == 78 and words in c.log_text(), c.log_text()
    else:  # it may come
        wait_until(lambda: "handler.table.conninfo" in c.log_text(), 60, "the address to be named")
        assert c.running()
