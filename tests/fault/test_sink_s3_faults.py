"""tests/fault/test_sink_s3_faults.py -- an object store that answers 500, 403, slowly, by half or not at all, and a sink that dies at
each point between two effects: what is on the topic is in the bucket, each record once, and nothing is left under way."""
import json
import uuid

import pytest
import s3
import servers
from inbox import inbox  # noqa: F401
from s3_sink import S3Sink
from wait import wait_until

pytestmark = pytest.mark.timeout(400)
PART, COMPLETE, BEGIN = r"^PUT .*partNumber=", r"^POST .*\?uploadId=", r"^POST .*\?uploads="


@pytest.fixture(scope="module")
def store():
    if not s3.jars():
        pytest.skip("no object store: run make setup with Maven Central within reach")
    st = s3.Store().start()
    yield st
    st.stop()


@pytest.fixture
def between(store):
    b = s3.Between(store)
    yield b
    b.close()


def put(s, n, size=0, **more):
    for j in range(n):
        s.i.put(f"k{j % 7}", json.dumps({"seq": j, "x": f"{j:05}" * (size // 5)}), [("id", str(uuid.uuid4())), ("type", "Moved")], **more)
    s.i.flush()


def all_over(s, timeout=60):
    s.check(timeout)
    wait_until(lambda: not s.uploads(), 60, "nothing to be left under way")


FAULTS = {
    "begin-500": (BEGIN, (500, "InternalError"), 5), "begin-403": (BEGIN, (403, "AccessDenied"), 3),
    "begin-half": (BEGIN, "half", 2), "begin-lost": (BEGIN, "lost", 2),
    "part-500": (PART, (503, "SlowDown"), 5), "part-403": (PART, (403, "AccessDenied"), 3),
    "part-cut": (PART, "cut", 4), "part-lost": (PART, "lost", 2), "part-slow": (PART, ("slow", 2), 1),
    "part-gone": (PART, (404, "NoSuchUpload"), 1),
    "complete-500": (COMPLETE, (500, "InternalError"), 3), "complete-200-that-failed": (COMPLETE, (200, "InternalError"), 2),
    "complete-half": (COMPLETE, "half", 2), "complete-lost": (COMPLETE, "lost", 2), "complete-cut": (COMPLETE, "cut", 1),
    "complete-gone": (COMPLETE, (404, "NoSuchUpload"), 1), "complete-slow": (COMPLETE, ("slow", 2), 1),
    "complete-lost-then-gone": (COMPLETE, "lost-gone", 1),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_answers(inbox, store, between, fault):  # noqa: F811
    """Whatever the store answers, or does not, for a while: nothing is lost, nothing is there twice, and it goes on by itself."""
    pattern, what, times = FAULTS[fault]
    s = S3Sink(inbox(partitions=0), store, 1, endpoint=between.endpoint, timeout="1s")
    put(s, 100)
    if what == "lost-gone":  # it was completed, we never heard of it, and the store has forgotten the upload
        between.rule(pattern, "lost")
        between.rule(pattern, (404, "NoSuchUpload"))
    else:
        between.rule(pattern, what, times)
    s.member().start()
    all_over(s)
    assert all(left == 0 for _, left, _ in between.rules), "the fault was met"


def test_away_and_back(inbox, store, between):  # noqa: F811
    """While the store answers nothing but 503 the consumer says so, keeps its place, and catches up by itself."""
    s = S3Sink(inbox(partitions=0), store, 2, endpoint=between.endpoint, timeout="1s")
    c = s.consumer().start().wait_ready()
    between.rule("", (503, "SlowDown"), 10**6)
    put(s, 200)
    wait_until(lambda: "SlowDown" in servers.tail(c.log, 200), 60, "the trouble to be told")
    wait_until(lambda: c.metric("postrider_sink_lag_seconds") > 0, 60, "the lag to show")
    between.clear()
    all_over(s)


def test_the_bucket_is_gone_for_a_while(inbox, store):  # noqa: F811
    """A bucket that is removed beneath us is told by name; once it is there again it goes on."""
    import os
    s = S3Sink(inbox(partitions=0), store, 1)
    c = s.consumer().start().wait_ready()
    path = os.path.join(store.data, s.bucket)
    os.rename(path, path + ".away")
    put(s, 50)
    wait_until(lambda: "NoSuchBucket" in servers.tail(c.log, 200), 60, "the trouble to be told")
    os.rename(path + ".away", path)
    all_over(s)


# In an upload (three parts), before and after its record, between two objects, before the position moves.
POINTS = ["sink_mid_multipart:2", "sink_sealed_before_record", "sink_recorded_before_publish", "sink_mid_complete",
          "sink_published_before_position", "sink_position_before_memory"]


@pytest.mark.parametrize("point", POINTS)
def test_killed(inbox, store, between, point):  # noqa: F811
    """kill -9 there; whoever goes on completes what is recorded, aborts what is not, and each record is there once."""
    s = S3Sink(inbox(partitions=0), store, 1, endpoint=between.endpoint, max_records=1300, max_age="1m", timeout="10s")
    hour = 3600 * 1000  # the cuts are made by count and by these hours, not by ours
    put(s, 1300, 10000, timestamp=1767225600000 + 24 * hour)
    for j in range(1300):  # a second object in the next cut
        s.i.put("k", b"{}", [("id", str(uuid.uuid4()))], timestamp=1767225600000 + j % 2 * hour)
    s.i.flush()
    c = s.member().start(fault=point)
    c.wait(60)
    assert c.proc.returncode == -9, servers.tail(c.log)
    parts = between.count(PART)
    s.member().start()
    all_over(s, 90)
    if point in ("sink_recorded_before_publish", "sink_mid_complete"):
        assert between.count(PART) - parts < 3, "what was uploaded was completed, and not uploaded again"
