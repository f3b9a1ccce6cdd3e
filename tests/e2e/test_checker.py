"""tests/e2e/test_checker.py -- the checker finds each kind of damage, and only damage.

Synthetic histories first, then a real Postgres and a real broker. A checker that cannot
fail would make every other test worthless.
"""
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid

import audit
import checker
import load
import psycopg2
import pytest
import servers
from confluent_kafka import Producer
from wait import wait_until

TOPIC = "outbox.event.order"
ids = [str(uuid.UUID(int=(1 << 64) + i)).encode() for i in range(100)]


class Story:
    """A truth and a log, both by hand. Event number i is #aggseq of an aggregate."""

    def __init__(self, **kw):
        self.rows, self.log, self.kw = {}, [], kw

    def commit(self, i, agg="a", seq=None, value=b"{}", kind="Created", headers=None, tag=7, topic=TOPIC):
        md5 = str(uuid.UUID(hashlib.md5(value).hexdigest())) if value is not None else "\\N"
        own = json.dumps(headers).replace("\\", "\\\\") if headers else "\\N"
        self.rows[ids[i]] = b"\t".join([ids[i], *(x.encode() for x in (
            topic, agg, str(i if seq is None else seq), str(tag), kind, md5, own))])
        return self

    def publish(self, i, key="a", value=b"{}", kind="Created", headers=(), partition=0, offset=None, topic=TOPIC,
                drop=(), event_id=None):
        std = [("id", event_id or ids[i]), ("type", kind.encode()), ("content-type", b"application/json"),
               ("outbox-seq", b"%d" % i), ("outbox-created-at", b"2026-01-01T00:00:00Z")]
        std = [h for h in std if h[0] not in drop] + [(k, v.encode()) for k, v in headers]
        self.log.append((topic, partition, len(self.log) if offset is None else offset,
                         key.encode() if key is not None else None, std, value))
        return self

    def verdict(self, mode="exactly_once", **kw):
        c = checker.Checker(self.rows, mode, **{**self.kw, **kw})
        for r in self.log:
            c.record(*r)
        return c.finish()


def story(committed, published, **kw):
    s = Story(**kw)
    for i in committed:
        s.commit(i)
    for i in published:
        s.publish(i)
    return s


def test_a_clean_history_is_clean():
    r = story([1, 2, 3], [1, 2, 3]).verdict()
    assert r.ok and r.exit_code == 0 and r.counts == dict.fromkeys(checker.KINDS, 0)
    assert (r.records, r.journal, r.aggregates) == (3, 3, 1)


@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
def test_an_empty_topic_has_lost_all(mode):
    r = story([1, 2], []).verdict(mode)
    assert r.violations == {"LOST": 2} and r.exit_code == 1
    assert ids[1].decode() in r.excerpts["LOST"][0] and "#1" in r.excerpts["LOST"][0]


@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_one_lost_event_at_either_end_or_in_the_middle(mode, lost):
    r = story([1, 2, 3], [i for i in (1, 2, 3) if i != lost]).verdict(mode)
    assert r.violations == {"LOST": 1}


@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
def test_rolled_back_event_on_the_topic_is_a_phantom(mode):
    r = story([1], [1, 2]).verdict(mode)
    assert r.violations == {"PHANTOM": 1}
    assert f"{TOPIC}[0]@1" in r.excerpts["PHANTOM"][0]


def test_duplicate_is_a_violation_only_in_exactly_once():
    s = story([1, 2, 3], [1, 2, 3, 2, 3])
    assert s.verdict().violations == {"DUP": 2}
    r = s.verdict("at_least_once")
    assert r.ok and r.dup == 2 and r.rewinds == 2


def test_late_first_appearance_breaks_the_order_in_both_modes():
    s = story([1, 2, 3], [1, 3, 2])
    for mode in ("exactly_once", "at_least_once"):
        r = s.verdict(mode)
        assert r.violations == {"ORDER": 1}
        assert "#2 comes after #3" in r.excerpts["ORDER"][0]


def test_a_duplicate_does_not_hide_a_break_of_order():
    r = story([1, 2, 3], [1, 3, 1, 2, 3]).verdict("at_least_once")
    assert r.violations == {"ORDER": 1} and r.dup == 2


def test_aggregates_are_ordered_each_by_itself():
    s = Story().commit(1, "a", 1).commit(2, "b", 1).commit(3, "a", 2).commit(4, "b", 2)
    for i, key in ((2, "b"), (4, "b"), (1, "a"), (3, "a")):
        s.publish(i, key)
    assert s.verdict().ok


def test_what_is_in_no_order_may_come_anywhere_but_must_come():
    """0: nobody held the aggregate's row when it was written (facts, in batches); the others keep theirs."""
    def written():
        return Story().commit(1, "a", 1).commit(2, "a", 0).commit(3, "a", 2)

    def published(*order):
        s = written()
        for i in order:
            s.publish(i, "a")
        return s.verdict().violations
    assert published(2, 1, 3) == published(1, 2, 3) == published(1, 3, 2) == {}
    assert published(3, 2, 1) == {"ORDER": 1} and published(1, 3) == {"LOST": 1}


@pytest.mark.parametrize("harm, says", [
    (dict(value=b"{ }"), "the value differs"),
    (dict(value=b""), "the value differs"),
    (dict(value=None), "the value is null"),
    (dict(key="b"), "key is b"),
    (dict(key=None), "key is (none)"),
    (dict(key="a "), "key is a "),
    (dict(kind="created"), "header type is created"),
    (dict(drop=("type",)), "header type is (none)"),
    (dict(drop=("content-type",)), "header content-type is missing"),
    (dict(drop=("outbox-seq",)), "header outbox-seq is missing"),
    (dict(drop=("outbox-created-at",)), "header outbox-created-at is missing"),
    (dict(headers=[("tenant", "acme")]), "header tenant was never given"),
    (dict(headers=[("type", "Created")]), "a header comes twice"),
    (dict(topic="outbox.event.orders"), "belongs to topic outbox.event.order"),
    (dict(drop=("outbox-seq",), headers=[("outbox-seq", "1x")]), "header outbox-seq is 1x"),
])
def test_each_changed_byte_is_corrupt(harm, says):
    r = Story().commit(1).publish(1, **harm).verdict()
    assert r.violations == {"CORRUPT": 1}
    assert says in r.excerpts["CORRUPT"][0]


def test_a_record_without_an_id_is_corrupt_and_its_event_lost():
    assert Story().commit(1).publish(1, drop=("id",)).verdict().violations == {"CORRUPT": 1, "LOST": 1}


def test_own_headers_must_arrive_as_they_were():
    s = Story().commit(1, headers={"tenant": "acme", "n": "1.50", "t": "a\tb\\c"})
    given = [("tenant", "acme"), ("n", "1.50"), ("t", "a\tb\\c")]
    assert s.publish(1, headers=given).verdict().ok
    s.log.clear()
    r = s.publish(1, headers=[("tenant", "acme"), ("n", "1.5"), given[2]]).verdict()
    assert r.violations == {"CORRUPT": 1} and "header n is 1.5" in r.excerpts["CORRUPT"][0]
    s.log.clear()
    assert s.publish(1, headers=given[1:]).verdict().violations == {"CORRUPT": 1}


def test_tombstones_and_empty_values_are_told_apart():
    assert Story().commit(1, value=None).publish(1, value=None).verdict().ok
    assert Story().commit(1, value=b"").publish(1, value=b"").verdict().ok
    assert Story().commit(1, value=None).publish(1, value=b"").verdict().corrupt == 1
    assert Story().commit(1, value=b"").publish(1, value=None).verdict().corrupt == 1


def test_an_aggregate_stays_in_its_partition():
    s = story([1, 2], [1])
    s.publish(2, partition=1)
    assert s.verdict().violations == {"PARTITION_MOVED": 1}


def test_murmur2_agrees_with_kafka():
    # Values of Kafka's own UtilsTest.testMurmur2, reduced to a partition of a large topic.
    n = 1 << 31
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
             b"a-little-bit-longer-string": -1486304829,
             b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, b"abc": 479470107}
    assert {k: checker.murmur2_partition(k, n) for k in known} == {k: v & 0x7FFFFFFF for k, v in known.items()}


def test_wrong_partitioner_is_found():
    right = checker.murmur2_partition(b"a", 6)
    for p in range(6):
        r = Story(partitions={TOPIC: 6}).commit(1).publish(1, partition=p).verdict()
        assert r.violations == ({} if p == right else {"PARTITION_MOVED": 1})


def test_parked_events_may_be_absent_but_not_wrong():
    s = story([1, 2, 3], [1, 3])
    assert s.verdict(allow_missing=[ids[2].decode()]).ok
    s.publish(2, value=b"x")
    assert s.verdict(allow_missing=[ids[2].decode()]).violations == {"CORRUPT": 1, "ORDER": 1}


def test_torn_transactions_are_found_on_request():
    s = Story()
    for i in (1, 2):
        s.commit(i, tag=7)
    s.publish(1, offset=0).publish(2, offset=2)  # a control record at offset 1
    assert s.verdict().ok
    assert s.verdict(torn=True).violations == {"TORN": 1}
    s.log.clear()
    s.publish(1, offset=0).publish(2, offset=1)
    assert s.verdict(torn=True).ok


def test_excerpts_are_bounded_and_the_report_names_the_rest():
    r = story(range(50), []).verdict()
    assert r.lost == 50 and len(r.excerpts["LOST"]) == 10
    assert "... and 40 more" in r.report() and r.report().endswith("VIOLATED: LOST 50")


def test_copy_fields_are_unescaped():
    assert checker._uncopy(b"\\N") is None
    assert checker._uncopy(b"a\\tb\\\\c\\n\\r") == b"a\tb\\c\n\r"


# ---------------------------------------------------------------- real servers

HEADERS = """(SELECT jsonb_object_agg(h.key, CASE jsonb_typeof(h.value) WHEN 'string' THEN h.value #>> '{}'
	ELSE h.value::text END) FROM jsonb_each(headers) AS h)"""


def publish(db, kafka, skip=lambda seq: False, twice=lambda seq: False, abort_first=False, order="seq"):
    """The simplest relay that is right when nothing fails; used to make right and wrong logs."""
    p = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": db.name, "log_level": 2,
                  "partitioner": "murmur2_random"})
    p.init_transactions(20)

    def send(rows):
        p.begin_transaction()
        for seq, event_id, kind, key, etype, payload, raw, at, own in rows:
            value = payload.encode() if payload is not None else bytes(raw) if raw is not None else None
            headers = [("id", event_id), ("type", etype), ("content-type", "application/json"),
                       ("outbox-seq", str(seq)), ("outbox-created-at", at)] + list((own or {}).items())
            p.produce(f"outbox.event.{kind}", value, key, headers=headers)
    rows = db.query("SELECT seq, id, aggregatetype, aggregateid, type, payload::text, payload_bytes, created_at::text, "
                    f"{HEADERS} FROM outbox.event ORDER BY {order}")
    if abort_first:
        send(rows)
        p.flush(20)
        p.abort_transaction(20)
    send([r for r in rows if not skip(r[0]) for _ in range(2 if twice(r[0]) else 1)])
    p.commit_transaction(20)


@pytest.fixture
def loaded(db, kafka, request):
    """(database, topic) after a mixed load: all styles, tombstones, bytes, own headers."""
    kind = f"c{uuid.uuid4().hex[:12]}"
    kafka.create_topic(f"outbox.event.{kind}", 3)
    run = load.Load(db.conninfo, kinds=[kind], aggregates=12, clients=3, keys=3, events=2, transactions=150,
                    rollback=0.2, savepoint=0.3, hold=(0.1, 0.01), seed=5)
    counts = run.run()
    assert counts["committed"] + counts["rolled_back"] == 150 and counts["failed"] == counts["unknown"] == 0
    assert run.lost_by_postgres() == []
    return db, f"outbox.event.{kind}"


def check(loaded, kafka, **kw):
    return checker.check(loaded[0].conninfo, kafka.bootstrap, loaded[1], **{"settle": 0, **kw})


def test_right_log_is_right_and_aborted_records_do_not_count(loaded, kafka):
    publish(loaded[0], kafka, abort_first=True)
    r = check(loaded, kafka, torn=True)
    assert r.ok, r
    assert r.records == r.journal == loaded[0].one("SELECT count(*) FROM outbox.event")
    assert check(loaded, kafka, isolation="read_uncommitted").dup == r.journal
    assert check(loaded, kafka, journal_sql=checker.OUTBOX).journal == r.journal


def test_the_load_writes_every_kind_of_event(loaded, kafka):
    row = loaded[0].query("""SELECT count(*) FILTER (WHERE payload IS NULL AND payload_bytes IS NULL),
        count(*) FILTER (WHERE payload_bytes <> ''), count(*) FILTER (WHERE payload_bytes = ''),
        count(*) FILTER (WHERE headers <> '{}'), count(*) FILTER (WHERE payload ? 'u') FROM outbox.event""")[0]
    assert all(n > 0 for n in row), row


def test_skipped_and_repeated_rows_are_found(loaded, kafka):
    rows = [r[0] for r in loaded[0].query("SELECT seq FROM outbox.event ORDER BY seq")]
    publish(loaded[0], kafka, skip=lambda s: s in rows[10:13], twice=lambda s: s == rows[20])
    r = check(loaded, kafka)
    assert r.violations == {"LOST": 3, "DUP": 1}, r


def test_wrong_order_is_found(loaded, kafka):
    publish(loaded[0], kafka, order="seq DESC")
    r = check(loaded, kafka)
    assert set(r.violations) == {"ORDER"} and r.order > 10, r


def test_rows_gone_after_publishing_are_phantoms(loaded, kafka):
    publish(loaded[0], kafka)
    gone = loaded[0].query("DELETE FROM truth.journal WHERE ctid IN (SELECT ctid FROM truth.journal LIMIT 4) RETURNING 1")
    assert check(loaded, kafka).violations == {"PHANTOM": len(gone)}


def test_settle_waits_for_a_slow_relay(loaded, kafka):
    t = threading.Timer(1.0, publish, (loaded[0], kafka))
    t.start()
    r = check(loaded, kafka, settle=90)
    t.join()
    assert r.ok, r


def test_open_transaction_is_named_not_called_loss_alone(loaded, kafka):
    publish(loaded[0], kafka)
    p = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "hanging", "log_level": 2})
    p.init_transactions(20)
    p.begin_transaction()
    p.produce(loaded[1], b"x", partition=0)
    assert p.flush(20) == 0
    r = check(loaded, kafka, open_txn_timeout=1)
    assert r.open_txn == 1, r
    p.abort_transaction(20)
    assert check(loaded, kafka).ok


def test_cli_exit_codes(loaded, kafka):
    def run(*more, brokers=kafka.bootstrap):
        return subprocess.run([sys.executable, "-B", os.path.join(servers.ROOT, "tests", "support", "checker.py"),
                               "--conninfo", loaded[0].conninfo, "--brokers", brokers, "--topic", loaded[1],
                               "--settle", "0", *more], capture_output=True, text=True)
    lost = run("--json")
    assert lost.returncode == 1 and json.loads(lost.stdout)["counts"]["LOST"] > 0
    publish(loaded[0], kafka)
    good = run()
    assert good.returncode == 0 and good.stdout.endswith("\nok\n"), good
    assert run("--mode", "sometimes").returncode == 2
    with psycopg2.connect(loaded[0].conninfo) as c, c.cursor() as cur:
        cur.execute("DROP TABLE truth.journal")
    assert run().returncode == 69


def test_load_survives_crashes_and_its_journal_knows_the_outcome(own_pg, kafka):
    """Story: a client whose COMMIT got no answer cannot say whether it committed. The
    journal is in the same transaction as the outbox row, so they can only agree."""
    pg = own_pg()
    db = pg.createdb("crashes")
    servers.Cli().run("init", "--conninfo", db.conninfo, check=True)
    run = load.Load(db.conninfo, clients=4, async_commit=0.3, aggregates=30, hold=None).start()
    for i in range(3):
        seen = run.committed
        wait_until(lambda seen=seen: run.committed > seen + 50, 60, "commits")
        if i == 1:
            pg.kill_backend("application_name = 'load'")
        else:
            pg.restart("immediate")
    seen = run.committed
    wait_until(lambda: run.committed > seen + 50, 60, "commits after the last crash")
    counts = run.stop()
    assert counts["unknown"] + counts["failed"] > 0, counts
    assert run.lost_by_postgres() == []
    assert db.one("""SELECT count(*) FROM truth.journal AS j FULL JOIN outbox.event AS e ON e.id = j.event_id
        WHERE e.id IS NULL OR j.event_id IS NULL""") == 0
    assert db.one("SELECT count(*) FROM truth.journal") > 0


def test_bulk_load_continues_the_aggregates(db):
    load.bulk(db.conninfo, 250, keys=100, chunk=100)
    load.bulk(db.conninfo, 50, keys=20)
    assert db.query("""SELECT count(*), count(DISTINCT (agg, aggseq)), count(DISTINCT event_id) FROM truth.journal
        """)[0] == (300, 300, 300)
    assert db.one("""SELECT count(*) FROM truth.agg AS a WHERE seq <>
        (SELECT max(aggseq) FROM truth.journal AS j WHERE j.topic = a.topic AND j.agg = a.agg)""") == 0


def test_load_keeps_its_rate(db):
    start = time.monotonic()  # before the first one may begin
    run = load.Load(db.conninfo, rate=100, clients=2, hold=None).start()
    wait_until(lambda: run.counts["attempted"] >= 100, 60)
    took = time.monotonic() - start
    run.stop()
    assert took > 0.8


# ---------------------------------------------------------------- the audit of the example systems

@pytest.mark.parametrize("overtaken", [False, True])
def test_commits_that_overtake_each_other(own_pg, overtaken):
    """Two transactions write about one aggregate, neither holds a lock of it. Records alone show it only when a relay looks between
    the commits: seen once in some fifty runs of the demo."""
    db = own_pg(config={"track_commit_timestamp": "on"}).createdb("shop", schema=True)
    first, second = (db.connect(autocommit=False) for _ in range(2))
    for conn, kind, key in ((first, "Paid", "1"), (second, "ReceiptIssued", "1" if overtaken else "2")):
        with conn.cursor() as cur:
            cur.execute("SELECT outbox.publish('payment', %s, %s, '{}')", (key, kind))
    for conn in (second, first):
        conn.commit()
        conn.close()
    a = audit.Audit({"shop": db.conninfo})
    a.commits()
    assert a.wrong == (["commits: shop: ReceiptIssued of 1 on outbox.event.payment was committed before the Paid that was written before it"]
                       if overtaken else [])
