"""tests/e2e/test_sink_files.py -- handler kind sink with files: the line, cuts, hours, late records, manifests, many files; what is on the
topic is in the files, each record once."""
import base64
import collections
import ctypes
import datetime
import json
import os
import shutil
import signal
import subprocess
import time
import uuid

import pytest
import servers
from confluent_kafka import Producer
from inbox import inbox  # noqa: F401
from sink import Sink, content, final_files, is_json, manifests, read_all, temp_files, wrong, wrong_with_file, wrong_with_manifests
from test_sink_formats import conf as format_conf
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
HOUR = 3600 * 1000
NOON = int(datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.timezone.utc).timestamp() * 1000)


@pytest.fixture
def sink(inbox):  # noqa: F811
    def make(partitions=3, **files):
        return Sink(inbox(partitions=0), partitions, **files)
    return make


def put(s, n, key="k", at=None, size=0, partition=None, **more):
    """n well-formed records, their time at (ms) or now."""
    for j in range(n):
        s.i.put(f"{key}{j % 7}", json.dumps({"seq": j, "x": "y" * size}), [("id", str(uuid.uuid4())), ("type", "Moved")],
                **({"timestamp": at} if at else {}), **({"partition": partition} if partition is not None else {}), **more)


def complete(s):
    """{(dt, hour): whether its manifest says that it is over}"""
    return {(dt, hour): m["complete"] for (_, dt, hour), m in sorted(manifests(s.directory).items())}


def collected(c, n):
    """Until the consumer has taken in so many records, published or not."""
    wait_until(lambda: c.metric("postrider_batch_events_sum") >= n, 60, f"{n} records to be taken in", ignore=(OSError,))


STRANGE = [
    b'{"big":9223372036854775807,"more":18446744073709551616,"pi":3.141592653589793238462643383279,"e":1e400,"z":-0.0,"t":1.10}',
    b'"text"', b"1", b"null", b"[]", b'{"a":{"b":[1,{"c":null}]}}', b'{"line":\n"end",\r\n"x":1}', '{"ü":"\u2028 ☃"}'.encode(),
    b"", b" ", b"not json", b'{"open":', b"\xff\xfe\x00", b'{"nul":"\\u0000"}', b'{"half":"\\ud800"}', b'{"a":1} {"b":2}', b"NaN", None,
]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_lines(sink, compression):
    """Whatever a record holds, its line is as the contract says: digits are kept, tombstones null, what is no JSON is base64."""
    s = sink(compression=compression)
    for n, payload in enumerate(STRANGE):
        s.i.put(f"k{n}", payload, [("id", str(uuid.uuid4())), ("type", "Odd")])
    s.i.put(None, b"{}", [("id", b"x"), ("type", b"\xff"), ("none", None), ("bytes", b"\x00\xff"), ("twice", b"1"), ("twice", b"2"),
                          ("quote\"", b'a"\\\n'), ("long", b"v" * 5000)])
    s.i.put(b"\xff\x00key", b"{}", [])
    s.i.put(b"", b"{}", [("id", "i" * 40)])
    s.i.put('k"\\\n', b"{}", [(f"h{n}", str(n)) for n in range(40)])
    s.member().start()
    s.published()
    files = final_files(s.directory)
    truth = read_all(s.i.kafka, s.i.topic)
    found = [w for f in files for w in wrong_with_file(s.directory, f, truth, collections.Counter())]
    found = [w for w in found if ": type is " not in w]  # bytes that are no text are replaced
    assert not found, found[:3]
    lines = [line for f in files for line in content(os.path.join(s.directory, f)).splitlines()]
    assert len(lines) == len(truth) == len(STRANGE) + 4
    for f in files:
        path = os.path.join(s.directory, f)
        if compression == "gzip":
            subprocess.run(["gzip", "-t", path], check=True)
        elif compression == "zstd":
            subprocess.run(["zstd", "-tq", path], check=True)
        plain = content(path)
        said = subprocess.run(["jq", "-c", "[.partition, .offset]"], input=plain, capture_output=True, check=True).stdout
        assert said.count(b"\n") == plain.count(b"\n"), "jq reads each line"
    by_id = [json.loads(line) for line in lines]
    assert sum("payload_base64" in d for d in by_id) == sum(1 for p in STRANGE if p is not None and not is_json(p))
    assert any(d.get("payload_base64") == "" for d in by_id), "the empty one is not null"


def test_large_records(sink):
    """Records of 10 MB between small ones."""
    s = sink(partitions=1, max_age="1s", compression="zstd")
    for n in range(3):
        put(s, 5)
        s.i.put(f"large{n}", json.dumps({"x": base64.b64encode(os.urandom(7 << 20)).decode()}), [("id", str(uuid.uuid4())), ("type", "L")])
    s.i.flush()
    c = s.consumer().start()
    s.check()
    wait_until(lambda: c.metric("postrider_sink_records_total") == 18, 30, "them to be counted")  # behind the position


@pytest.mark.parametrize("limit", [{"max_records": 100}, {"max_bytes": "20kB"}])
def test_cuts_by_size(sink, limit):
    """Files end where the limit says, whatever comes in one batch, and the rest when it is old enough."""
    s = sink(partitions=1, max_age="10s", **limit)  # none of the large ones is cut by age, however busy the machine is
    put(s, 1050, size=20, partition=0)
    s.i.flush()
    s.member().start()
    s.check()
    cuts = s.cuts()
    assert [c[3] for c in cuts] == ["published"] * len(cuts)
    if "max_records" in limit:
        assert [c[4] for c in cuts] == [100] * 10 + [50]
    else:
        sizes = [len(content(os.path.join(s.directory, f))) for f in final_files(s.directory)]
        assert len(sizes) > 5 and all(n < 21 << 10 for n in sizes) and sum(n > 19 << 10 for n in sizes) >= len(sizes) - 1


def test_cut_by_age_and_at_the_stop(sink):
    """What is idle is published once it is old enough; a stop publishes what is open."""
    s = sink(partitions=2, max_age="400ms")
    c = s.consumer().start().wait_ready()
    put(s, 20)
    s.check()
    wait_until(lambda: c.metric("postrider_sink_lag_seconds") == 0, 30, "no lag")
    c.terminate()
    c = s.consumer(files={"max_age": "1h"}).start().wait_ready()
    put(s, 30)
    s.i.flush()
    wait_until(lambda: c.metric("postrider_sink_lag_seconds") > 0.3, 30, "the lag to show")
    collected(c, 30)
    assert sum(x[4] for x in s.cuts()) == 20
    c.terminate()
    s.check()
    assert sum(x[4] for x in s.cuts()) == 50 and not temp_files(s.directory)


def test_hours(sink):
    """Records go into the hour of their own time, in UTC; manifests say which hours are over."""
    s = sink(partitions=2)
    for h in (0, 1, 2, 0):
        put(s, 40, at=NOON + h * HOUR + 59 * 60 * 1000 + 59999)
    s.i.flush()
    s.member().start()
    s.check()
    hours = {tuple(f.split("/")[1:3]) for f in final_files(s.directory)}
    assert hours == {("dt=2026-03-01", f"hour={h}") for h in (12, 13, 14)}
    at = int(time.time() * 1000) + HOUR
    put(s, 1, at=at)
    s.check()
    hours = [("2026-03-01", str(h)) for h in (12, 13, 14)] + [tuple(time.strftime("%Y-%m-%d %H", time.gmtime(at / 1000)).split())]
    wait_until(lambda: complete(s) == dict(zip(hours, [True, True, True, False])), 60, "the manifests to say what is over")
    m = manifests(s.directory)[s.i.topic, "2026-03-01", "12"]
    assert m["records"] == 80 and sum(f["records"] for f in m["files"]) == 80


def test_an_idle_partition(sink):
    """A partition whose end is reached is as far as the time it was asked: one that stood at noon kept all later hours incomplete, and one
    that never had a record was left out. What a transaction holds that is open is still to come, and its hour waits for it."""
    s = sink(partitions=4)
    put(s, 3, at=NOON, partition=0)
    for h in range(3):
        put(s, 3, at=NOON + h * HOUR, partition=1)
    s.i.flush()
    p = Producer({"bootstrap.servers": s.i.kafka.bootstrap, "transactional.id": s.i.name})
    p.init_transactions(30)
    p.begin_transaction()
    p.produce(s.i.topic, b"{}", b"k", partition=2, timestamp=NOON)
    p.flush(30)
    s.consumer().start()
    past = "SELECT array_agg(partition ORDER BY partition) FROM sink.watermark WHERE partition >= 0"
    wait_until(lambda: s.i.one("SELECT to_regclass('sink.watermark') IS NOT NULL") and s.i.one(past) == [0, 1, 3], 60,
               "all ends but that of the transaction")
    wait_until(lambda: list(complete(s).values()) == [False] * 3, 30, "manifests")
    p.commit_transaction(30)
    wait_until(lambda: list(complete(s).values()) == [True] * 3, 60, "all hours to be over")
    assert sum(m["records"] for m in manifests(s.directory).values()) == 13
    put(s, 1, at=NOON, partition=3)  # into an hour that is over
    wait_until(lambda: sum(m["records"] for m in manifests(s.directory).values()) == 14, 30, "the late one")
    assert set(complete(s).values()) == {True}
    s.check()


class Renames:
    """Counts what gets a name in a directory, from now on. That temporary files are made is told, too: the kernel makes one of two
    events that are alike."""
    IN_MOVED_TO, IN_CREATE, EVENT = 0x80, 0x100, 16

    def __init__(self, directory):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0 and libc.inotify_add_watch(self.fd, directory.encode(), self.IN_MOVED_TO | self.IN_CREATE) >= 0, ctypes.get_errno()

    def count(self):
        """Since the last call."""
        n = 0
        try:
            while data := os.read(self.fd, 1 << 20):
                while data:
                    n += int.from_bytes(data[4:8], "little") == self.IN_MOVED_TO
                    data = data[self.EVENT + int.from_bytes(data[12:16], "little"):]
        except BlockingIOError:
            return n
        return n


def test_manifests_are_not_written_by_each_cut(sink):
    """Each cut wrote each of its hours anew, with all files that were in it: 200 partitions that cut once a minute wrote some 24 GB for
    one hour. They are written once in a while, and when it stops; all the files are in them then."""
    s = sink(partitions=4, max_records=1)
    at = int(time.time() * 1000) + HOUR  # an hour that does not end meanwhile
    put(s, 1, at=at, partition=0)
    s.i.flush()
    c = s.consumer().start()
    s.check()
    base = os.path.join(s.directory, "_manifest", s.i.topic)
    renames, began = Renames(os.path.join(base, *os.listdir(base))), time.monotonic()
    for n in range(400):
        put(s, 1, at=at, partition=n % 4)
    s.check()
    written, took = renames.count(), time.monotonic() - began
    assert len(s.cuts()) == 401 and 1 <= written <= 2 + took, (written, took)
    wait_until(lambda: c.metric("postrider_sink_manifests_total") >= written + 1, 30, "the last one to be counted")
    for n in range(20):
        put(s, 1, at=at, partition=n % 4)
    s.published()
    assert c.terminate() == 0
    assert not wrong_with_manifests(s.directory) and [m["records"] for m in manifests(s.directory).values()] == [421]


def test_manifests_that_a_death_left_out(sink):
    """It dies with files in many hours that no manifest lists yet: whoever comes next finds all of them, not only the last one's.
    Behind the position of the last of 31 cuts, whose own manifest is still to be written."""
    s = sink(partitions=1, max_records=1)
    put(s, 1, at=NOON)
    s.i.flush()
    c = s.consumer({"member": "one"}).start(fault="sink_position_before_memory:31")
    s.check()
    for h in range(30):
        put(s, 1, at=NOON + h * HOUR)
    s.published()
    assert c.wait(60) == -signal.SIGKILL
    s.i.db.query("DELETE FROM sink.watermark")  # hours that are over are not what is asked here
    listed = sum(m["records"] for m in manifests(s.directory).values())
    s.consumer({"member": "one"}).start()
    s.check()
    assert listed < 31 == sum(m["records"] for m in manifests(s.directory).values())


def test_hours_that_a_death_left_out(sink):
    """Hours are over and their manifests do not say so: whoever comes next writes them, twenty in one transaction, all of them."""
    s = sink(partitions=1, max_age="100ms")
    for h in range(25):
        put(s, 1, at=NOON + h * HOUR)
    c = s.consumer().start()
    wait_until(lambda: len(complete(s)) == 25 and all(complete(s).values()), 60, "all hours to be over")
    c.stop()
    s.i.db.query("DELETE FROM sink.watermark WHERE partition = -1")
    shutil.rmtree(os.path.join(s.directory, "_manifest"))
    s.consumer().start()
    wait_until(lambda: len(complete(s)) == 25 and all(complete(s).values()), 60, "the manifests to be there again")
    s.check()


def test_a_directory_of_another_group(sink):
    """Two groups below one directory put their files over each other's: the second one ends at its start, and says what to do."""
    s = sink(partitions=1)
    put(s, 3)
    s.consumer().start()
    s.check()
    other = s.consumer(group=s.i.group + "-2").start()
    assert other.wait(60) == 78, servers.tail(other.log)
    said = servers.tail(other.log)
    assert f"{s.directory} is what group {s.i.group} writes to" in said and "give this group another handler.files.directory" in said
    os.unlink(os.path.join(s.directory, "_manifest/owner"))
    s.consumer(group=s.i.group + "-2").start()
    wait_until(lambda: os.path.exists(os.path.join(s.directory, "_manifest/owner")), 60, "the next owner")
    assert content(os.path.join(s.directory, "_manifest/owner")).decode() == s.i.group + "-2\n"
    wait_until(lambda: not temp_files(os.path.join(s.directory, "_manifest")), 20, "nothing to be left")


def test_another_directory_or_target(sink, tmp_path):
    """A group that has published writes where it wrote before: manifests would list what is in the other directory, and a disk that
    is not mounted looks like an empty one. Whoever has moved all of it says so."""
    s = sink(partitions=1)
    put(s, 5)
    c = s.consumer().start()
    s.check()
    c.stop()
    other = str(tmp_path / "other")
    os.mkdir(other)
    moved = s.consumer(files={"directory": other}).start()
    assert moved.wait(60) == 78, servers.tail(moved.log)
    said = servers.tail(moved.log)
    assert f"nothing of it is in {other}" in said and "is it mounted?" in said and not os.listdir(other)
    os.mkdir(os.path.join(other, "_manifest"))
    with open(os.path.join(other, "_manifest/owner"), "w", encoding="utf-8") as f:
        f.write(s.i.group)
    put(s, 5)
    moved = s.consumer(files={"directory": other}).start()
    s.published()  # the position comes behind the files
    assert final_files(other)
    moved.stop()
    table = s.i.consumer({"kind": "sink", "table": {"table": "elsewhere"}}).start()
    wait_until(lambda: "to target files, not table" in str(table.get("/status.json")), 60, "that it is said", ignore=(OSError,))
    assert table.get("/readyz")[0] == 503 and s.i.one("SELECT next_offset FROM inbox.position") == 10


@pytest.mark.parametrize("late", ["keep", "side", "reject"])
def test_late(sink, late):
    """A record whose hour is over: into its hour, beside, or a dead letter, and the others are not held up."""
    s = sink(partitions=1, late=late, late_after="10m")
    put(s, 10, at=NOON)
    put(s, 10, at=NOON + HOUR)
    put(s, 10, at=NOON + 30 * 60 * 1000)  # 12:30, and it is 13:00: the hour is over at 13:10
    s.i.flush()
    c = s.consumer().start()
    s.check()
    put(s, 1, at=NOON + HOUR + 10 * 60 * 1000)
    put(s, 5, at=NOON + 59 * 60 * 1000)
    put(s, 5, at=NOON + HOUR)
    without = {(0, o) for o in range(31, 36)} if late == "reject" else ()
    s.check(without=without)
    assert c.metric("postrider_sink_late_total") == 5
    aside = [f for f in final_files(s.directory) if "/late/" in f]
    assert bool(aside) == (late == "side")
    assert s.i.dead("class, code") == [("decode", "late")] * (5 if late == "reject" else 0)


@pytest.mark.parametrize("format", ["ndjson", "avro", "parquet"])
def test_many_hours_that_are_never_written_to(sink, format):
    """Regression: files with less than a chunk each were in no list of what can be written early, for none was open: 145 MB and more.
    And blocks of Avro were not counted: 178 MB."""
    s = sink(partitions=1, **format_conf(format, "zstd"), max_age="60s", max_records=7000, max_bytes="1GB")
    for n in range(7000):
        put(s, 1, key=f"h{n}-", at=NOON + n * 7 % 1000 * HOUR, size=16000)
    s.i.flush(60)
    c = s.consumer().start()
    wait_until(lambda: dict(s.i.db.query("SELECT partition, next_offset FROM inbox.position")) == {0: 7000}, 150, "all of it")
    assert servers.VARIANT == "asan" or c.peak_rss_kb() < 128 << 10
    assert len(final_files(s.directory)) == 1000


@pytest.mark.parametrize("compression, most_open", [("none", 50), ("zstd", 50), ("zstd", 500)])
def test_more_files_than_may_be_open(sink, compression, most_open):
    """600 hours at once, so many files open at most: every record is where it shall be, in 128 MB."""
    s = sink(partitions=2, compression=compression, open_files=most_open, max_age="3s", max_records=1000000)
    for n in range(3000):
        put(s, 1, key=f"h{n}-", at=NOON + n * 7 % 600 * HOUR, size=200)
    s.i.flush()
    c = s.consumer().start().wait_ready()
    most = []

    def over():
        most.append(c.metric("postrider_sink_open_files"))
        ends = s.i.kafka.end_offsets(s.i.topic)
        return dict(s.i.db.query("SELECT partition, next_offset FROM inbox.position")) == ends
    wait_until(over, 120, "all of it")
    s.check()
    assert max(most) <= most_open and len(final_files(s.directory)) >= 600
    assert servers.VARIANT == "asan" or c.peak_rss_kb() < 128 << 10


def test_many_topics(sink):
    """Twenty topics, one group: each has its directory."""
    s = sink()
    topics = [s.i.kafka.create_topic(f"many.{s.i.name}.{n}", 2) for n in range(20)]
    for t in topics:
        put(s, 20, topic=t)
    s.i.flush()
    s.member(topics=["^many\\." + s.i.name + "\\..*"]).start()
    wait_until(lambda: s.i.one("SELECT sum(next_offset) FROM inbox.position WHERE next_offset > 0") == 400, 90, "all of it")
    assert not wrong(s.directory, s.i.kafka, topics)


def test_filtered_and_empty(sink):
    """What the filter leaves out is in no file, and the position passes it; a topic of nothing else makes no file."""
    s = sink(partitions=1)
    put(s, 50)
    s.i.flush()
    s.member({"filter": {"types": ["Other"]}}).start()
    s.published()
    assert final_files(s.directory) == [] and s.cuts() == []


def test_from_zero_again(sink):
    """The position is set back to zero: the same files are there, and no other; one that is gone comes back as it was."""
    s = sink(partitions=1, max_records=50, compression="gzip")
    put(s, 500)
    s.i.flush()
    c = s.consumer().start()
    s.check()
    before = {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)}
    stamps = {f: os.stat(os.path.join(s.directory, f)).st_mtime_ns for f in before}
    c.terminate()
    gone = sorted(before)[3]
    os.unlink(os.path.join(s.directory, gone))
    s.i.db.query("UPDATE inbox.position SET next_offset = 0")
    s.member(files={"max_records": 70}).start()
    s.check()
    assert {f: content(os.path.join(s.directory, f)) for f in final_files(s.directory)} == before
    assert {f for f in before if os.stat(os.path.join(s.directory, f)).st_mtime_ns != stamps[f]} == {gone}


def test_refused_at_the_start(sink):
    """A directory that is not there ends the start with its name; --check does not ask for it."""
    s = sink(partitions=1)
    c = s.consumer(files={"directory": "/no/such/place"})
    c.start()
    assert c.wait(30) == 78
    assert "/no/such/place" in servers.tail(c.log, 20)


def test_ready_while_it_collects(sink):
    """Records of a day ago and of now wait in an open cut for longer than another consumer may be late: to collect is no lag, and
    /readyz does not turn red before the cut should have been published."""
    s = sink(partitions=1, max_age="33s")
    c = s.consumer().start().wait_ready()
    put(s, 5, at=int(time.time() * 1000) - 24 * HOUR)
    put(s, 5)
    s.i.flush()
    wait_until(lambda: c.metric("postrider_sink_lag_seconds") > 24 * 3600, 30, "records in an open cut")
    said = set()

    def published():
        said.add(c.status()["state"])
        return s.cuts()
    wait_until(published, 90, "the cut to be published")
    assert said == {"ok"} and s.cuts()[0][4] == 10


def test_lanes_change_while_a_cut_is_open(sink):
    """The number of lanes is changed while a cut collects that may do so for an hour: its partition was not read any more until then."""
    s = sink(partitions=1, max_age="1h", max_records=20)
    c = s.consumer({"lanes": 1}).start().wait_ready()
    put(s, 10)
    s.i.flush()
    collected(c, 10)
    c.rewrite({"lanes": 2})
    c.hup()
    wait_until(lambda: (c.status()["lanes"], c.status()["lanes_changing"]) == (2, 0), 60, "another number of lanes")
    put(s, 90)
    s.i.flush()
    wait_until(lambda: sum(x[4] for x in s.cuts()) == 90, 60, "what comes to be copied")
    assert [x[4] for x in s.cuts()] == [10, 20, 20, 20, 20] and not s.wrong_cuts()
