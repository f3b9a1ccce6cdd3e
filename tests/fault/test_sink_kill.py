"""tests/fault/test_sink_kill.py -- a sink into files dies at each point, loses its partitions, its disk, its database and its broker;
whoever goes on, every record of the topic is in exactly one file with a final name, as it was."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid

import pytest
import servers
from confluent_kafka import Producer
from inbox import inbox  # noqa: F401
from sink import Sink, final_files, temp_files, wrong
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
POINTS = ["sink_mid_file", "sink_sealed_before_record", "sink_recorded_before_publish", "sink_mid_rename", "sink_published_before_position",
          "sink_position_before_memory"]
SOON = {"kafka": {"properties": ["session.timeout.ms=6000"]}}


@pytest.fixture
def sink(inbox):  # noqa: F811
    def make(partitions=3, inbox_args=None, **files):
        return Sink(inbox(partitions=0, **(inbox_args or {})), partitions, **files)
    return make


def put(s, n, size=400):
    for j in range(n):
        s.i.put(f"k{j % 17}", json.dumps({"seq": j, "x": "y" * size}), [("id", str(uuid.uuid4())), ("type", "Moved")])
    s.i.flush()


def cleaned(s):
    """What nobody needs is removed; a manifest that is just being written has such a name, too."""
    wait_until(lambda: not temp_files(s.directory), 30, "no file to be left half written")


@pytest.mark.parametrize("point", POINTS)
def test_dies_at(sink, point):
    """Killed there on the third passage; another with other limits goes on, and a third one after all is done finds nothing to do."""
    s = sink(compression="zstd" if "renam" in point else "none", max_records=150)
    put(s, 2000)
    c = s.consumer().start(fault=point + ":3")
    assert c.wait(60) == -signal.SIGKILL
    s.member(SOON, {"max_records": 110}).start()
    s.check(60)
    cleaned(s)


def test_dies_again_and_again(sink):
    """Twelve deaths in a row, each at the next point, while records come; then the rest."""
    s = sink(partitions=2, max_records=120, compression="gzip")
    for n in range(12):
        put(s, 300)
        c = s.consumer({"member": "one"}).start(fault=f"{POINTS[n % len(POINTS)]}:{1 + n // len(POINTS)}")
        assert c.wait(60) == -signal.SIGKILL
    s.consumer({"member": "one"}, {"max_records": 77}).start()
    s.check(60)
    cleaned(s)


@pytest.mark.parametrize("point", [p for p in POINTS if p != "sink_mid_file"] + ["sink_buried_before_commit"])
def test_dies_with_late_ones(sink, point):
    """Late records that are refused wait with their cut: whatever is durable by then, each is a dead letter, once."""
    s = sink(partitions=1, late="reject", max_records=50)
    late = s.put_late_and_good(200)
    c = s.consumer({"member": "one"}).start(fault=point + ":2")
    assert c.wait(60) == -signal.SIGKILL
    recorded = s.i.one("SELECT count(*) FROM sink.cut WHERE state = 'recorded'")
    assert recorded == (point not in ("sink_sealed_before_record", "sink_position_before_memory"))
    s.consumer({"member": "one"}).start()
    s.check(60, without={(0, o) for o in late})
    assert s.buried() == late
    cleaned(s)


def put_aborted(s):
    """Offsets of which nobody reads anything."""
    p = Producer({"bootstrap.servers": s.i.kafka.bootstrap, "transactional.id": s.i.name, "log_level": 0})
    p.init_transactions(30)
    p.begin_transaction()
    for _ in range(3):
        p.produce(s.i.topic, b"x", b"k", headers=[("id", b"x")])
    p.flush(30)
    p.abort_transaction(30)


def test_gaps_from_zero(sink):
    """A position moves over aborted offsets without a cut: read again from zero with other limits, the cuts behind them are
    where they were."""
    s = sink(partitions=1, max_records=20)
    c = s.consumer({"member": "one"}).start()
    for _ in range(4):
        put(s, 30)
        s.published()
        put_aborted(s)
        s.published()
    put(s, 30)
    s.check()
    c.terminate()
    s.i.db.query("UPDATE inbox.position SET next_offset = 0, epoch = epoch + 1")
    s.consumer({"member": "one"}, {"max_records": 1000}).start()
    s.published()
    s.check()


@pytest.mark.parametrize("point", ["sink_recorded_before_publish", "sink_published_before_position"])
def test_dies_behind_a_gap(sink, point):
    """The same of a cut that was recorded behind aborted offsets, and whose owner died."""
    s = sink(partitions=1, max_records=20, max_age="2s")  # what is before the gap is two cuts, also when the machine is busy
    put(s, 30)
    c = s.consumer({"member": "one"}).start(fault=point + ":3")
    s.published()
    put_aborted(s)
    put(s, 30)
    assert c.wait(60) == -signal.SIGKILL
    s.consumer({"member": "one"}, {"max_records": 1000}).start()
    s.check(60)


def test_dies_and_the_next_one_sees_another_directory(sink):
    """The cut is recorded, its files are on a disk that the next owner has not: it makes the same files anew. That the other disk
    is the place from now on somebody has said by the mark."""
    s = sink(partitions=1, max_records=100)
    put(s, 450)
    # Cut by number alone, however long the records take to be read.
    assert s.consumer(files={"max_age": "1h"}).start(fault="sink_recorded_before_publish:2").wait(60) == -signal.SIGKILL
    first = set(final_files(s.directory))
    assert len(first) == 1
    there = s.directory
    s.directory = servers.new_dir("sink")
    shutil.copytree(os.path.join(there, "_manifest"), os.path.join(s.directory, "_manifest"))
    s.member(SOON, {"directory": s.directory, "max_records": 31}).start()
    s.published(60)
    assert not first & set(final_files(s.directory))
    for f in final_files(s.directory):
        os.makedirs(os.path.dirname(os.path.join(there, f)), exist_ok=True)
        os.rename(os.path.join(s.directory, f), os.path.join(there, f))
    assert not wrong(there, s.i.kafka, [s.i.topic])
    assert (0, 100, 200) in [c[:3] for c in s.cuts()], "cut where it was recorded"


def test_rebalance_in_mid_file(sink):
    """Members come and go while files are half written."""
    s = sink(partitions=6, max_records=400, max_age="1s")
    put(s, 3000)
    one = s.member(SOON).start()
    wait_until(lambda: s.i.one("SELECT to_regclass('sink.cut')") and s.cuts(), 60, "the first cuts")
    two = s.member(SOON).start()
    put(s, 3000)
    wait_until(lambda: s.i.one("SELECT max(epoch) FROM inbox.position") > 1, 60, "the partitions to wander")
    put(s, 1000)
    one.kill9()
    put(s, 1000)
    three = s.member(SOON).start()
    put(s, 500)
    two.terminate()
    s.check(60)
    assert three.running()


def frozen_owner(s, **start):
    """One is stopped with a sealed cut; another of its name takes over and ends all; then the first one wakes up."""
    gate = os.path.join(servers.new_dir("hold"), "gate")
    with open(gate, "w", encoding="ascii"):
        pass
    put(s, 400)
    config = {"member": "one", "lanes": 1}
    a = s.consumer(config).start(hold=f"sink_sealed_before_record:{gate}", **start)
    wait_until(lambda: os.path.exists(gate + ".held"), 60, "the cut to be sealed")
    a.sigstop()
    lane = " FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%%lane 0'"
    before = set(s.i.db.query("SELECT pid, query_start" + lane))
    s.consumer(config, {"max_records": 70}).start()
    s.published(60)
    os.unlink(gate)
    a.signal(signal.SIGCONT)
    wait_until(lambda: not os.path.exists(gate + ".held") or not a.running(), 60, "the first one to go on")
    wait_until(lambda: not a.running() or not before & set(s.i.db.query("SELECT pid, query_start" + lane)), 60, "it to say its word")
    wait_until(lambda: not a.running() or s.i.one("SELECT count(*)" + lane + " AND state <> 'idle'") == 0, 60, "its word to be refused")
    with contextlib.suppress(RuntimeError):  # it may have been told that it is another's name
        a.terminate()
    return wrong(s.directory, s.i.kafka, [s.i.topic]) + s.wrong_cuts()


def killed_behind_the_position(s, **start):
    """Killed when one says that all is where it shall be."""
    put(s, 400)
    assert s.consumer().start(fault="sink_published_before_position", **start).wait(60) == -signal.SIGKILL
    s.member(SOON, {"max_records": 70}).start()
    s.published(60)
    return wrong(s.directory, s.i.kafka, [s.i.topic])


@pytest.mark.parametrize("flaw, play, finding", [
    ("sink_position_first", killed_behind_the_position, "missing"),
    ("sink_no_record", killed_behind_the_position, "twice"),
    ("no_epoch_fence", frozen_owner, "overlap"),
])
def test_flaws_are_found_out(sink, flaw, play, finding):
    """Position before publishing, no recorded cut, no fence: the same play finds nothing wrong with the honest one."""
    found = play(sink(partitions=1, max_records=100), sabotage=flaw)
    assert any(finding in f for f in found), found
    assert play(sink(partitions=1, max_records=100)) == []


@pytest.fixture
def small_disk():
    """A file system of 2 MB; skips where none may be mounted."""
    path = servers.new_dir("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_disk_full(sink, small_disk):
    """The disk is full: health says so, nothing half written gets a name, and it goes on when there is room."""
    s = sink(partitions=2)
    s.directory = small_disk
    ballast = os.path.join(small_disk, ".ballast")
    with open(ballast, "wb") as f:
        f.write(b"x" * (1800 << 10))
    put(s, 1000)
    c = s.consumer(files={"directory": small_disk, "max_age": "200ms"}).start()
    answer = s.i.wait_state(c, "error")
    assert "space" in json.dumps(answer), answer
    assert not [f for f in final_files(small_disk) if os.path.getsize(os.path.join(small_disk, f)) == 0]
    os.unlink(ballast)
    s.check(60)
    s.i.wait_state(c, "ok")


def test_read_only(sink, small_disk):
    """The directory may not be written to for a while: health says so, and it goes on by itself."""
    s = sink(partitions=2)
    s.directory = small_disk
    c = s.consumer(files={"directory": small_disk}).start().wait_ready()
    put(s, 50, 10)
    s.check()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    put(s, 50, 10)
    s.i.wait_state(c, "error")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    s.check(60)


@pytest.fixture(scope="module")
def bad_disk():
    """A library that makes calls fail; tests/fault/bad_disk.c."""
    path = os.path.join(servers.new_dir("bad_disk"), "bad_disk.so")
    subprocess.run(["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path,
                    os.path.join(servers.ROOT, "tests/fault/bad_disk.c")], check=True)
    return path


@pytest.mark.parametrize("call", ["write", "short", "fdatasync", "fsync", "rename"])
def test_bad_disk(sink, bad_disk, call):
    """EIO from each call that makes a file durable, and writes that write half: nothing half written gets a name, health says so, and
    once the disk is well all is there once. What fsync refused is not believed the second time: its file is made anew."""
    s = sink(partitions=2, max_records=70, compression="gzip")
    control = os.path.join(servers.new_dir("bad_disk"), "control")
    os.chmod(os.path.dirname(control), 0o777)
    c = s.consumer(env={"LD_PRELOAD": bad_disk, "BAD_DISK": control, "BAD_DISK_BELOW": s.directory}).start()
    put(s, 200)
    s.check()
    with open(control, "w", encoding="ascii") as f:
        f.write(call)
    put(s, 300)
    wait_until(lambda: os.path.getsize(control + ".hits") >= 5, 60, "the disk to fail", ignore=(OSError,))
    if call != "short":
        s.i.wait_state(c, "error")
        assert "EIO" in json.dumps(s.i.state(c)) or "Input/output error" in json.dumps(s.i.wait_state(c, "error"))
        os.unlink(control)
    s.check(60)
    s.i.wait_state(c, "ok")
    cleaned(s)


def test_database_away(sink, own_pg):
    """Sessions are cut, then the server is gone for a while: what is open stays, nothing is lost or twice."""
    pg = own_pg()
    s = sink(partitions=3, inbox_args={"pg": pg}, max_records=300)
    put(s, 1500)
    c = s.consumer().start()
    wait_until(lambda: s.i.one("SELECT to_regclass('sink.cut')") and s.cuts(), 60, "the first cuts")
    pg.kill_backend("application_name LIKE 'postrider-consumer%lane%'")
    put(s, 1500)
    pg.stop("immediate")
    put(s, 300)
    pg.start()
    s.check(60)
    assert c.running()


def test_broker_away(sink, own_kafka):
    """The broker dies and comes back."""
    k = own_kafka()
    s = sink(partitions=3, inbox_args={"kafka_": k}, max_records=300)
    put(s, 1500)
    c = s.consumer().start()
    wait_until(lambda: s.i.one("SELECT to_regclass('sink.cut')") and s.cuts(), 60, "the first cuts")
    k.kill()
    k.start()
    put(s, 1500)
    s.check(90)
    assert c.running()
