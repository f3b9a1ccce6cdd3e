"""tests/e2e/test_sink_ledger.py -- what the database holds of a sink against what topics and files have by then: topics made anew,
positions set by hand, ranges whose records are gone, groups that were of another kind. Nothing is lost, nothing is there twice, and
what cannot be known is said."""
import datetime
import json
import os
import signal
import time
import uuid

import psycopg2
import pytest
import servers
from confluent_kafka import KafkaException
from data_platform import away  # noqa: F401
from inbox import inbox  # noqa: F401
from sink import Sink, content, final_files, manifests, temp_files
from test_consumer_group import delete_records
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
HOUR = 3600 * 1000
DAYS_400 = 400 * 24 * HOUR
FULL = "1m"  # max_age where cuts end by their records: not before, however long these are on their way


@pytest.fixture
def sink(inbox):  # noqa: F811
    def make(**files):
        return Sink(inbox(partitions=0), 1, **{"max_records": 10, **files})
    return make


def put(s, n, type="Moved", flush=True, at=None):
    """n records, their time at (ms) or now; their ids."""
    ids = [str(uuid.uuid4()) for _ in range(n)]
    for i in ids:
        s.i.put("k", json.dumps({"x": i}), [("id", i), ("type", type)], **({"timestamp": at} if at else {}))
    if flush:
        s.i.flush()
    return ids


def one(s, config=None, files=()):
    """The one member, under its name: Kafka gives it its partitions at once."""
    return s.consumer({"member": "one", **(config or {})}, files)


def copied(s):
    """(offset, id) of each line of each file, as they come."""
    docs = [json.loads(line) for f in final_files(s.directory) for line in content(os.path.join(s.directory, f)).splitlines()]
    return sorted((d["offset"], d["id"]) for d in docs)


def set_back(s, offset):
    s.i.db.query("UPDATE inbox.position SET next_offset = %s", (offset,))


def says(c, words, timeout=60):
    """Until it is red for that; the answer."""
    last = []

    def red():
        last[:] = [c.status()]
        return last[0]["state"] == "error" and words in str(last[0])
    try:
        wait_until(red, timeout, words, ignore=(OSError,))
    except Exception as e:
        raise AssertionError(f"{e}: {last}") from None
    return last[0]


def test_a_group_that_had_lanes(sink):
    """It was of kind sql with four lanes, which stand apart: each of them would have gone on with the same partition, and most of it
    was in no file or in two. It is refused, and nothing moves."""
    s = sink()
    put(s, 100)
    s.i.db.query("SELECT count(*) FROM inbox.claim(%s, ARRAY[%s], ARRAY[0], 4)", (s.i.group, s.i.topic))
    s.i.db.query("UPDATE inbox.position SET next_offset = lane")
    c = one(s, {"lanes": 2}).start()
    said = says(c, "4 lanes that stand apart")
    assert "another name" in said["hint"], said
    assert [r[0] for r in s.i.db.query("SELECT next_offset FROM inbox.position ORDER BY lane")] == [0, 1, 2, 3]
    assert final_files(s.directory) == []


def made_anew(i):
    i.kafka.delete_topic(i.topic)

    def made():
        i.kafka.create_topic(i.topic, 1, config={"retention.ms": "-1"})
        return True
    wait_until(made, 20, "the topic to be made anew", ignore=(KafkaException,))


def test_a_topic_made_anew(sink):
    """A topic is made anew, and the operator goes back to zero, as he is told: each range of the old one was found published, its
    file there with the right sum, and none of the new records was copied while everything was green. What was published comes by
    again and is not the same: red, nothing is overwritten, the position stays. Files moved aside, the ranges forgotten: all of it."""
    s = sink(max_age=FULL)
    old = put(s, 50)
    c = one(s).start()
    s.check()
    c.terminate()
    before = {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)}
    made_anew(s.i)
    new = put(s, 40)
    c = one(s).start()
    assert "sink.forget" in says(c, "past its end")["hint"]
    c.terminate()
    set_back(s, 0)
    c = one(s).start()
    said = says(c, "published before with other records")
    assert "offsets 0 to 9" in said["sentence"] and "sink.forget" in said["hint"], said
    assert {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)} == before
    assert [i for _, i in copied(s)] == old and s.i.one("SELECT next_offset FROM inbox.position") == 0
    os.rename(os.path.join(s.directory, s.i.topic), os.path.join(servers.new_dir("aside"), s.i.topic))
    with s.i.db.connect() as db, db.cursor() as cur:
        cur.execute("SET ROLE inbox_consumer")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cur.execute("SELECT sink.forget('group', 'topic')")
        db.rollback()
        cur.execute("SET ROLE inbox_operator")
        cur.execute("SELECT sink.forget(%s, %s)", (s.i.group, s.i.topic))
        assert cur.fetchone() == (5,)
    s.check()
    assert [i for _, i in copied(s)] == new
    c.wait_ready()


def test_a_topic_made_anew_and_an_api(away):  # noqa: F811
    """The same, posted: the old ranges' keys are never used for other lines; there the way out is another group."""
    a = away(partitions=1)
    c = a.consumer({"member": "one"}, max_records=10)
    a.send(50)
    a.once()
    c.terminate()
    rows = a.platform.counts()
    made_anew(a.i)
    a.send(40)
    set_back(a, 0)
    c = a.consumer({"member": "one"}, max_records=10)
    assert "another name" in says(c, "published before with other records")["hint"]
    assert a.platform.counts() == rows and a.i.one("SELECT next_offset FROM inbox.position") == 0
    with pytest.raises(psycopg2.Error, match="Idempotency-Key"):
        a.i.db.query("SELECT sink.forget(%s, %s)", (a.i.group, a.i.topic))


def test_from_zero_again_to_an_api(away):  # noqa: F811
    """The same records under the same keys, by a member with other limits: the API has them, and takes none twice."""
    a = away(partitions=1)
    c = a.consumer({"member": "one"}, max_records=10)
    a.send(50)
    a.once()
    c.terminate()
    rows = a.i.db.query("SELECT first_offset, next_offset, records, state FROM sink.cut ORDER BY 1")
    set_back(a, 0)
    a.consumer({"member": "one"}, max_records=17)
    a.once()
    assert a.i.db.query("SELECT first_offset, next_offset, records, state FROM sink.cut ORDER BY 1") == rows


def test_from_zero_when_the_head_is_gone(sink):
    """The position is set back below what the topic still has: ranges that are gone from it and whose files are there are done with;
    what the topic has is compared."""
    s = sink(max_age=FULL)
    put(s, 50)
    c = one(s).start()
    s.check()
    c.terminate()
    before = copied(s)
    delete_records(s.i.kafka.bootstrap, s.i.topic, 0, 30)
    set_back(s, 0)
    one(s).start()
    s.published()
    assert copied(s) == before and not s.wrong_cuts()


@pytest.mark.parametrize("gone", [False, True])
def test_from_zero_when_compressed_bytes_are_others(sink, gone):
    """Read again with another level, the same records give other bytes. The files that are there stay; when one is gone it is made of
    the bytes of now, and the database has their sums."""
    hour = 3600 * 1000
    s = sink(compression="zstd", level=1, max_records=200, max_age=FULL)
    for n in range(200):
        s.i.put("k", json.dumps({"n": n, "x": str(uuid.uuid4()) * 20}), [("id", str(uuid.uuid4())), ("type", "Moved")],
                timestamp=(n % 4 + 1) * hour)
    s.i.flush()
    c = one(s).start()
    s.check()
    c.terminate()
    before = copied(s)
    stamps = {f: os.stat(os.path.join(s.directory, f)).st_mtime_ns for f in final_files(s.directory)}
    assert len(stamps) == 4
    if gone:
        os.unlink(os.path.join(s.directory, sorted(stamps)[3]))
    set_back(s, 0)
    c = one(s, files={"level": 12}).start()
    s.check()
    assert copied(s) == before
    same = {f: os.stat(os.path.join(s.directory, f)).st_mtime_ns for f in final_files(s.directory)} == stamps
    assert same != gone
    c.wait_ready()


def test_from_zero_when_rules_are_others(sink):
    """What was published would be something else by the rules of now: that is said, compressed or not, and nothing is overwritten."""
    s = sink(compression="gzip", max_age=FULL)
    put(s, 10)
    c = one(s).start()
    s.check()
    c.terminate()
    before = copied(s)
    set_back(s, 0)
    handler = {**s.handler(), "fields": [{"path": "payload.x", "action": "redact"}]}
    c = s.i.consumer(handler, {"member": "one"}).start()
    assert "next_offset 10 leaves what is there" in says(c, "published before with other records")["hint"]
    assert copied(s) == before


@pytest.mark.parametrize("moved", [False, True])
def test_ranges_whose_records_are_gone(sink, moved):
    """Ranges that the database holds have no record any more (here by a narrower filter; retention and compaction do the same), and
    two owners die on the way: the first of them took the record behind them, which then was there twice."""
    s = sink(max_age=FULL)
    put(s, 20, "A", flush=False)
    new = put(s, 10, "B")
    c = one(s).start(**({"fault": "sink_recorded_before_publish"} if moved else {}))
    if moved:
        assert c.wait(60) == -signal.SIGKILL
        for f in temp_files(s.directory):
            os.unlink(f)
    else:
        s.check()
        c.terminate()
        os.rename(os.path.join(s.directory, s.i.topic), os.path.join(servers.new_dir("aside"), s.i.topic))
        set_back(s, 0)
    only = {"filter": {"types": ["B"]}, "member": "one"}
    assert one(s, only).start(fault="sink_position_before_memory").wait(60) == -signal.SIGKILL
    one(s, only).start()
    s.published()
    assert copied(s) == list(zip(range(20, 30), new))
    assert not s.wrong_cuts()


def test_a_hole_in_front_of_a_range(sink):
    """What is not wanted moved the position between two cuts, so the second one begins behind the first one's end: read again from
    zero, its first record went into a cut of its own that overlaps it."""
    s = sink(max_age=FULL)
    only = {"filter": {"types": ["A"]}}
    c = one(s, only).start()
    put(s, 10, "A")
    s.published()
    put(s, 5, "B")
    s.published()
    put(s, 10, "A")
    s.published()
    c.terminate()
    before, cuts = copied(s), s.cuts()
    assert cuts[1][1] == 15
    set_back(s, 0)
    one(s, only, {"max_records": 7}).start()
    s.published()
    assert copied(s) == before and s.cuts() == cuts


def test_position_in_the_middle_of_a_cut(sink):
    """A position set by time or by hand stands in the middle of a range that was published as a whole: its rest was there twice. It is
    said where the range begins and ends, and nothing is done."""
    s = sink(max_age=FULL)
    put(s, 50)
    c = one(s).start()
    s.check()
    c.terminate()
    before, cuts = copied(s), s.cuts()
    set_back(s, 25)
    c = one(s).start()
    said = says(c, "in the middle of")
    assert "20" in said["hint"] and "30" in said["hint"], said
    assert s.i.one("SELECT next_offset FROM inbox.position") == 25
    set_back(s, 30)
    s.check()
    assert copied(s) == before and s.cuts() == cuts
    c.wait_ready()


def test_more_ranges_than_one_question_tells(away):  # noqa: F811
    """The database holds more ranges than are read at once, and publishing takes its time: the one behind the last of a page was cut
    anew, under a key of its own."""
    a = away(partitions=1)
    c = a.consumer({"member": "one"}, max_records=1)
    a.send(110)
    a.once(timeout=60)
    c.terminate()
    cuts = a.i.db.query("SELECT first_offset, next_offset, state FROM sink.cut ORDER BY 1")
    assert len(cuts) == 110
    a.platform.switch(slow_ms=120)
    set_back(a, 0)
    a.consumer({"member": "one"}, max_records=30)
    a.i.stands(60)
    assert a.i.db.query("SELECT first_offset, next_offset, state FROM sink.cut ORDER BY 1") == cuts
    assert a.platform.counts() == (110, 0, 0)


def from_the_future(s):
    """Its topic takes them, as those of older brokers do."""
    s.i.kafka.set_topic_config(s.i.topic, {"message.timestamp.after.max.ms": str(2 ** 63 - 1)})
    return int(time.time() * 1000)


def test_a_record_from_the_future_ends_no_hour(sink):
    """One record of next year: the running hour was said to be complete at once, and more came into it. It is copied, counted and told,
    and says nothing about which hours are over; read again from zero, the same files come of it."""
    s = sink(late="side", late_after="1h", compression="gzip")
    now = from_the_future(s)
    put(s, 3, at=now)
    put(s, 1, at=now + DAYS_400)
    put(s, 3, at=now)
    c = one(s).start()
    s.check()
    put(s, 3, at=now)
    s.check()
    hour = datetime.datetime.fromtimestamp(now / 1000, datetime.timezone.utc)
    said = {k: m["complete"] for k, m in manifests(s.directory).items()}
    assert len(said) == 2 and not said[s.i.topic, hour.strftime("%Y-%m-%d"), hour.strftime("%H")], said
    assert not [f for f in final_files(s.directory) if "/late/" in f]
    assert c.metric("postrider_sink_future_total") == 1 and c.metric("postrider_sink_late_total") == 0
    assert "ahead of the clock" in c.log_text()
    assert s.i.one("SELECT max(watermark) < now() + interval '1 day' FROM sink.cut")
    c.terminate()
    before, cuts = copied(s), s.cuts()
    set_back(s, 0)
    one(s).start()
    s.check()
    assert copied(s) == before and s.cuts() == cuts


def test_a_record_from_the_future_makes_none_late(sink):
    """The same with late = "reject": everything behind it was a dead letter."""
    s = sink(late="reject", late_after="7d")
    now = from_the_future(s)
    put(s, 1, at=now + DAYS_400)
    one(s).start()
    s.check()
    put(s, 30, at=now)
    s.check()
    assert s.i.dead("class, code") == []


@pytest.mark.parametrize("ceiling", ["as recorded", None])
def test_a_range_is_read_again_under_its_ceiling(sink, ceiling):
    """The owner dies with a record from the future in its recorded range, and its files are gone: what was late in it for whoever read
    it first is late for the next one, and that is decided by what was recorded, not by the clock of now (without it: all behind)."""
    s = sink(late="side", late_after="1s", max_records=11, max_age=FULL)
    now = from_the_future(s)
    put(s, 5, at=now - 3 * HOUR)
    put(s, 1, at=now + DAYS_400)
    put(s, 5, at=now - 3 * HOUR)
    assert one(s).start(fault="sink_recorded_before_publish").wait(60) == -signal.SIGKILL
    for f in temp_files(s.directory):
        os.unlink(f)
    files = "SELECT path, sha256, late FROM sink.file ORDER BY 1"
    before = s.i.db.query(files)
    assert len(before) == 2 and s.i.one("SELECT ceiling BETWEEN now() AND now() + interval '6 min' FROM sink.cut")
    if not ceiling:
        s.i.db.query("UPDATE sink.cut SET ceiling = NULL")
    one(s).start()
    s.check()
    assert (s.i.db.query(files) == before) == bool(ceiling)
    assert s.i.one("SELECT count(*) FROM sink.file WHERE late") == (0 if ceiling else 1)


def test_late_ones_are_buried_with_their_cut(sink):
    """late = "reject": each late record sealed the open cut before it, a file and two transactions each. They wait with it now, and are
    dead letters in the transaction that publishes it; from zero again none of them is one twice, nor in a file."""
    s = sink(late="reject", max_records=67, max_age=FULL)
    late = s.put_late_and_good(300)
    c = one(s).start()
    s.check(without={(0, o) for o in late})
    assert s.buried() == late and c.metric("postrider_sink_late_total") == len(late)
    assert len(s.cuts()) <= 5 and sum(cut[4] for cut in s.cuts()) == 300 - len(late), s.cuts()
    c.terminate()
    before, cuts = copied(s), s.cuts()
    set_back(s, 0)
    one(s, files={"late": "keep", "max_records": 17}).start()
    s.published()
    assert copied(s) == before and s.cuts() == cuts and s.buried() == late


def test_only_late_ones(sink):
    """More of them than one transaction takes, and nothing else."""
    s = sink(late="reject", max_records=400, max_age="2s")
    put(s, 1)
    c = one(s).start()
    s.check()
    put(s, 150, at=int(time.time() * 1000) - 24 * HOUR)
    s.published()
    assert s.buried() == list(range(1, 151)) and len(s.cuts()) <= 4, s.cuts()
    assert s.i.one("SELECT count(*) FROM sink.file") == 1
    c.wait_ready()


def test_the_clock_reaches_what_was_the_future(sink):
    """A record just beyond the ceiling, and a little later one of the same time, which is none of the future any more: the cut ends
    between them, so that each is read again as it was read."""
    s = sink(late="side", max_age="10m", max_records=100)
    from_the_future(s)
    put(s, 1)
    c = one(s).start()
    wait_until(lambda: c.metric("postrider_sink_lag_seconds"), 60, "an open cut", ignore=(OSError,))
    at = int(time.time() * 1000) + 310 * 1000
    put(s, 2, at=at)
    wait_until(lambda: c.metric("postrider_sink_future_total") == 2, 20, "both of the future", ignore=(OSError,))
    wait_until(lambda: time.time() * 1000 > at - 300 * 1000 + 200, 12, "the clock")
    put(s, 1, at=at)
    wait_until(lambda: [cut[1:3] for cut in s.cuts()] == [(0, 3)], 60, "the cut that ends before it")
    wait_until(lambda: [v for k, v in c.metrics().items() if 'reason="clock"' in k] == [1], 60, "that it is published")
    c.terminate()
    mark, ceiling = s.i.db.query("SELECT extract(epoch FROM watermark) * 1000, extract(epoch FROM ceiling) * 1000 FROM sink.cut"
                                 " ORDER BY first_offset DESC LIMIT 1")[0]
    assert mark == at <= ceiling
    s.check()


def ranges(i):
    return i.db.query("SELECT first_offset, next_offset, records, folded_at IS NOT NULL FROM sink.cut ORDER BY partition, 1")


def test_the_ledger_of_an_api_is_bounded(away, cli):  # noqa: F811
    """A row was kept for each batch, for good: 86,400 a day and partition. Past handler.http.keep the ranges that touch are one, never
    the newest; reconcile finds all of it, and nothing is sent again: its keys are not known any more, and that is said."""
    a = away(partitions=1)
    c = a.consumer({"member": "one"}, max_records=5, max_age=FULL, keep="1s")
    a.send(50)
    wait_until(lambda: [r[2:] for r in ranges(a.i)] == [(45, True), (5, False)], 60, "the ranges to be folded", ignore=(psycopg2.Error,))
    a.send(10)
    a.once()
    wait_until(lambda: ranges(a.i) == [(0, 55, 55, True), (55, 60, 5, False)], 60, "the next ones")
    done = cli("reconcile", "-c", c.file, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["sources"][0]["records"] == 60, done.stdout + done.stderr
    c.terminate()
    set_back(a, 0)
    c = a.consumer({"member": "one"}, max_records=5, keep="1s")
    said = says(c, "handler.http.keep")
    assert "offsets 0 to 54" in said["sentence"] and "next_offset" in said["hint"] and "to 55" in said["hint"], said
    assert a.platform.counts() == (60, 0, 0) and a.i.one("SELECT next_offset FROM inbox.position") == 0
    c.terminate()
    set_back(a, 30)
    c = a.consumer({"member": "one"}, max_records=5, keep="1s")
    assert "offsets 0 to 54" in says(c, "handler.http.keep")["sentence"]
    c.terminate()
    set_back(a, 55)
    c = a.consumer({"member": "one"}, max_records=5, keep="1s")
    a.send(3)
    a.arrives(63)
    a.i.stands(60)
    assert a.platform.counts() == (63, 0, 0), "the newest one went under the key that it had"


def test_the_ledger_of_files_is_bounded(sink, cli):
    """Past handler.files.keep the ledger forgets files of hours that are complete, never a partition's newest. Their manifests stay as
    they are, also when a late one comes; what cannot be compared is said; nothing is published again."""
    hour, noon = 3600 * 1000, 1772366400000  # 2026-03-01T12:00Z

    def at(n, h):
        for _ in range(n):
            s.i.put("k", "{}", [("id", str(uuid.uuid4())), ("type", "Moved")], timestamp=noon + h * hour)
    s = sink(max_records=10, max_age="3s", keep="1s")
    for h in range(3):
        at(20, h)
    s.i.flush()
    c = one(s).start()
    s.published()
    wait_until(lambda: [r[2:] for r in ranges(s.i)] == [(50, True), (10, False)], 60, "the ranges to be folded")
    assert s.i.db.query("SELECT files, records FROM sink.pruned ORDER BY hour") == [(2, 20), (2, 20), (1, 10)]
    at(1, 0)
    s.published()
    s.check()  # manifests too: they have all files
    told = cli("reconcile", "-c", c.file, "--json")
    answer = json.loads(told.stdout)
    assert told.returncode == 0 and answer["sources"][0]["untold"] in (50, 60), told.stdout + told.stderr
    told = cli("reconcile", "-c", c.file, "--json", "--hour", "2026-03-01T13:00Z")
    kinds = [(d["difference"], d["path"]) for d in json.loads(told.stdout)["differences"]]
    assert told.returncode == 3 and kinds == [("ledger_gone", None), ("ledger_gone", "2026-03-01T13:00:00.000000Z")], told.stdout
    c.terminate()
    before = {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)}
    set_back(s, 0)
    c = one(s).start()
    said = says(c, "handler.files.keep")
    assert "sink.forget" in said["hint"] and {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)} == before
    c.terminate()
    os.rename(os.path.join(s.directory, s.i.topic), os.path.join(servers.new_dir("aside"), s.i.topic))
    os.rename(os.path.join(s.directory, "_manifest", s.i.topic), os.path.join(servers.new_dir("aside"), "m"))
    s.i.db.query("SELECT sink.forget(%s, %s)", (s.i.group, s.i.topic))
    one(s, files={"keep": "1h"}).start()
    s.check()
