"""tests/e2e/test_sink_s3.py -- handler kind sink with s3, against an object store that checks signatures: objects in parts, their
names, formats, what a configuration is refused for."""
import json
import os
import uuid

import pytest
import s3
import servers
from inbox import inbox  # noqa: F401
from s3_sink import S3Sink
from sink import NAME, final_files, manifests
from wait import wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def store():
    if not s3.jars():
        pytest.skip("no object store: run make setup with Maven Central within reach")
    st = s3.Store().start()
    yield st
    st.stop()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_objects(inbox, store, compression):  # noqa: F811
    """What is on the topic is in the bucket, each record once, under the names that files have."""
    s = S3Sink(inbox(partitions=0), store, prefix="raw/day & night/", compression=compression)
    s.i.send(1200)
    s.i.put("k0", b"\xff\xfe", [("id", str(uuid.uuid4()))])
    s.i.put("k0", None, [("id", str(uuid.uuid4()))])
    c = s.consumer().start()
    s.check()
    wait_until(lambda: c.metric("postrider_sink_records_total") == 1202, 30, "the records to be counted")
    assert all(NAME.match(f) for f in final_files(s.directory))
    assert not s.uploads(), "nothing is left under way"
    wait_until(lambda: s.fetch() or manifests(s.directory), 60, "a manifest")
    wait_until(lambda: s.fetch() or sum(m["records"] for m in manifests(s.directory).values()) == 1202, 60, "manifests of all of it")
    assert {f["path"] for m in manifests(s.directory).values() for f in m["files"]} == set(final_files(s.directory))
    path, sha = s.i.db.query("SELECT path, encode(sha256, 'hex') FROM sink.file ORDER BY path")[0]
    import hashlib
    with open(os.path.join(s.directory, path), "rb") as f:
        assert hashlib.sha256(f.read()).hexdigest() == sha


def test_a_prefix_of_another_group(inbox, store):  # noqa: F811
    """Two groups below one prefix put their objects over each other's: the second one ends at its start. Another prefix is free."""
    s = S3Sink(inbox(partitions=0), store, prefix="raw/")
    s.i.send(5)
    s.consumer().start()
    s.check()
    other = s.consumer(group=s.i.group + "-2").start()
    assert other.wait(60) == 78, servers.tail(other.log)
    said = servers.tail(other.log)
    assert f"{s.bucket}/raw/ is what group {s.i.group} writes to" in said and "another handler.s3.prefix" in said
    s.consumer(group=s.i.group + "-2", files={"prefix": "raw2/"}).start()
    wait_until(lambda: "raw2/_manifest/owner" in store.objects(s.bucket), 60, "the next owner")


def test_another_prefix(inbox, store):  # noqa: F811
    """A group that has published goes on where it did. That somebody has removed the manifests is no other place."""
    s = S3Sink(inbox(partitions=0), store, prefix="raw/")
    s.i.send(5)
    c = s.consumer().start()
    s.check()
    c.stop()
    moved = s.consumer(files={"prefix": "raw2/"}).start()
    assert moved.wait(60) == 78, servers.tail(moved.log)
    assert f"nothing of it is in {s.bucket}/raw2/" in servers.tail(moved.log) and not store.objects(s.bucket, "raw2")
    os.unlink(os.path.join(store.data, s.bucket, "raw/_manifest/owner"))
    s.consumer().start()
    wait_until(lambda: "raw/_manifest/owner" in store.objects(s.bucket), 60, "the mark again")


def test_parts(inbox, store):  # noqa: F811
    """An object of three parts, uploaded through a buffer of one."""
    between = s3.Between(store)
    s = S3Sink(inbox(partitions=0), store, 1, endpoint=between.endpoint, max_age="1h", max_records=1300, part_bytes="5MB",
               timeout="1m")  # a part that is not answered in time is sent again
    for n in range(1300):
        s.i.put(f"k{n}", json.dumps({"x": f"{n:05}" * 2000}), [("id", str(uuid.uuid4())), ("type", "L")])
    s.member().start()
    s.check(60)
    assert between.count(r"partNumber=[123]&") == 3 and between.count("partNumber=4&") == 0
    assert len(final_files(s.directory)) == 1
    between.close()


def test_formats_in_a_bucket(inbox, store):  # noqa: F811
    """Avro goes the same way as lines; what it holds is looked at in test_sink_formats.py."""
    s = S3Sink(inbox(partitions=0), store, 1, format="avro", compression="zstd")
    s.i.send(300)
    s.member().start()
    s.published()
    s.fetch()
    files = final_files(s.directory)
    assert files and all(f.endswith(".avro") for f in files)
    assert sum(r for r, in s.i.db.query("SELECT records FROM sink.file")) == 300
    for f in files:
        with open(os.path.join(s.directory, f), "rb") as data:
            assert data.read(4) == b"Obj\1"


def test_what_others_left_is_aborted(inbox, store):  # noqa: F811
    """An upload below the partition's names that nobody knows of is aborted by the partition's owner; of other partitions and
    topics it is not."""
    s = S3Sink(inbox(partitions=0), store, 2)
    mine = f"{s.i.topic}/dt=2026-01-01/hour=00/1-7-9.ndjson"
    others = [f"{s.i.topic}/dt=2026-01-01/hour=00/12-7-9.ndjson", f"{s.i.topic}.other/dt=2026-01-01/hour=00/1-7-9.ndjson"]
    for key in [mine, *others]:
        store.begin(s.bucket, key)
    s.member().start()
    wait_until(lambda: mine not in [k for k, _ in s.uploads()], 60, "the leftover to be aborted")
    s.i.send(100)
    s.check()
    assert sorted(k for k, _ in s.uploads()) == sorted(others)


REFUSED = [
    ({"bucket": "not-there"}, ["NoSuchBucket", "make the bucket"]),
    ({"secret_key": "wrong"}, ["SignatureDoesNotMatch", "secret key is not the one"]),
    ({"access_key": "NOBODY"}, ["InvalidAccessKeyId", "does not know access key NOBODY"]),
    ({"endpoint": "http://127.0.0.1:1/bucket"}, ["is no object store's address", "without bucket or path"]),
    ({"max_bytes": "1TB"}, ["more than 10000 parts"]),
]


@pytest.mark.parametrize("options,words", REFUSED, ids=[w[0][0:18] for _, w in REFUSED])
def test_refused(inbox, store, options, words):  # noqa: F811
    """A bucket, a key, an address that is wrong ends the start with 78 and says what and what to do."""
    s = S3Sink(inbox(partitions=0), store, 1, **options)
    c = s.member().start()
    assert c.wait(60) == 78, servers.tail(c.log)
    log = servers.tail(c.log, 50)
    assert all(w in log for w in words), log


@pytest.mark.parametrize("what,words", [
    ((301, "PermanentRedirect"), ["PermanentRedirect"]),
    ((400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"), ["region is eu-central-1, not us-east-1"]),
])
def test_another_region(inbox, store, what, words):  # noqa: F811
    """A store that says that the bucket is elsewhere: the region it names is in the message."""
    between = s3.Between(store)
    between.rule("list-type", what, 100)
    s = S3Sink(inbox(partitions=0), store, 1, endpoint=between.endpoint)
    c = s.member().start()
    assert c.wait(60) == 78, servers.tail(c.log)
    assert all(w in servers.tail(c.log, 50) for w in words)
    between.close()


def test_keys_of_the_environment(inbox, store):  # noqa: F811
    """Without keys in the file those of the environment are taken, and without any the start is refused."""
    s = S3Sink(inbox(partitions=0), store, 1)
    del s.options["access_key"], s.options["secret_key"]
    c = s.member().start()
    assert c.wait(60) == 78 and "AWS_ACCESS_KEY_ID" in servers.tail(c.log, 50)
    s.i.send(50)
    s.member().start(env={"AWS_ACCESS_KEY_ID": s3.ACCESS, "AWS_SECRET_ACCESS_KEY": s3.SECRET})
    s.check()


def test_a_store_that_may_not_be_listed(inbox, store):  # noqa: F811
    """Keys that may only write are enough."""
    between = s3.Between(store)
    between.rule(r"^GET ", (403, "AccessDenied"), 1000)
    s = S3Sink(inbox(partitions=0), store, 1, endpoint=between.endpoint)
    s.i.send(50)
    s.member().start()
    s.check()
    between.close()
