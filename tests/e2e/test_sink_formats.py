"""tests/e2e/test_sink_formats.py -- what a sink wrote as Avro and as Parquet, read with the readers that data teams have
(fastavro, pyarrow), and compared with the topic record by record."""
import base64
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid

import pytest
import servers
from inbox import inbox  # noqa: F401
from sink import NAME, Sink, expected, final_files, is_json, read_all
from wait import wait_until

pytestmark = pytest.mark.timeout(240)

STRANGE = [
    b'{"big":18446744073709551616,"e":1e400}', b'"text"', b"null", '{"\u00fc":"\u2028 \u2603"}'.encode(), b"", b"not json",
    b"\xff\xfe\x00", b'{"half":"\\ud800"}', None,
]


def _version(path, pattern):
    with open(os.path.join(servers.ROOT, path), encoding="utf-8") as f:
        return re.search(pattern, f.read()).group(1)


def duckdb():
    """Where make setup put the library; a test without it is skipped."""
    version = _version("etc/duckdb/pom.xml", r"<artifactId>duckdb_jdbc</artifactId>\s*<version>(.*?)</version>")
    path = os.path.join(servers.cache_dir(), f"duckdb-{version}", "libduckdb.so")
    if not os.path.exists(path):
        pytest.skip("DuckDB's library is not there: run make setup with Maven Central within reach")
    return path


@pytest.fixture(scope="module")
def readers():
    version = _version("etc/readers/requirements.txt", r"(?m)^pyarrow==(\S+)")
    path = os.path.join(servers.cache_dir(), f"readers-{version}")
    if not os.path.exists(os.path.join(path, "pyarrow")):
        pytest.skip("pyarrow and fastavro are not there: run make setup with a package index within reach")
    sys.path.insert(0, path)
    yield
    sys.path.remove(path)


def rows_of(path):
    """Its records as dicts, headers as a dict, time in microseconds."""
    if path.endswith(".avro"):
        import fastavro
        with open(path, "rb") as f:
            return [{**r, "time": r["time"] and round(r["time"].timestamp() * 1e6)} for r in fastavro.reader(f)]
    import pyarrow.parquet
    rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    return [{**r, "headers": dict(r["headers"]), "time": r["time"] and round(r["time"].timestamp() * 1e6)} for r in rows]


def wanted(m):
    """The record's columns."""
    line, value = expected(m), m.value()
    headers = {k: "base64:" + v["base64"] if isinstance(v, dict) else v for k, v in line["headers"].items()}
    json_text = value is not None and is_json(value)
    return {**{k: line[k] for k in ("id", "type", "topic", "partition", "offset", "key")}, "headers": headers,
            "time": m.timestamp()[1] * 1000, "payload": value.decode() if json_text else None,
            "payload_base64": None if value is None or json_text else base64.b64encode(value).decode()}


def check(s, timeout=90):
    """All of the topic is there once, as it is; returns the files."""
    s.published(timeout)
    truth = read_all(s.i.kafka, s.i.topic)
    files, seen = final_files(s.directory), {}
    for path in files:
        name = NAME.match(path)
        rows = rows_of(os.path.join(s.directory, path))
        assert rows and (rows[0]["offset"], rows[-1]["offset"]) == (int(name["first"]), int(name["last"]))
        for row in rows:
            place = row["partition"], row["offset"]
            assert place not in seen, f"{place} is in {seen.get(place)} and in {path}"
            seen[place] = path
            want = wanted(truth[place])
            row["type"] = row["type"].replace("\ufffd", "")
            want["type"] = want["type"].replace("\ufffd", "")
            assert row == want
    assert set(seen) == set(truth)
    return files


def conf(format, compression):
    return {"format": format, "compression": compression, **({"parquet_library": duckdb()} if format == "parquet" else {})}


def put_strange(s):
    for n, payload in enumerate(STRANGE):
        s.i.put(f"k{n}", payload, [("id", str(uuid.uuid4())), ("type", "Odd")])
    s.i.put(None, b"{}", [("type", b"\xff"), ("none", None), ("bytes", b"\x00\xff"), ("twice", b"1"), ("twice", b"2"),
                          ("long", b"v" * 5000)])
    s.i.put(b"\xff\x00key", b"{}", [])
    s.i.put("many", b"{}", [(f"h{n}", str(n)) for n in range(60)])


@pytest.mark.parametrize("format,compression", [("avro", "none"), ("avro", "gzip"), ("avro", "zstd"),
                                                ("parquet", "none"), ("parquet", "gzip"), ("parquet", "zstd")])
def test_rows(inbox, readers, format, compression):  # noqa: F811
    """Whatever a record holds, the readers get it back."""
    s = Sink(inbox(partitions=0), 2, **conf(format, compression), row_group=100)
    put_strange(s)
    s.i.send(900)
    s.i.flush()
    s.member().start()
    files = check(s)
    assert all(f.endswith("." + format) for f in files)


@pytest.mark.parametrize("format", ["avro", "parquet"])
def test_the_same_bytes(inbox, readers, format):  # noqa: F811
    """Two groups that copy the same topic with the same cuts write the same files: nothing of a clock or of chance is in
    them, so that a file that was lost can be made again and be that file."""
    s = Sink(inbox(partitions=0), 1, **conf(format, "zstd"), max_records=500, max_age="1h", row_group=200)
    put_strange(s)
    s.i.send(1000)
    s.i.flush()
    names = []
    for group in ("a", "b"):
        directory = servers.new_dir("sink")
        os.chmod(directory, 0o777)
        c = s.i.member(s.handler(directory=directory), {"group": s.i.group + group}).start()
        wait_until(lambda d=directory: sum(int(NAME.match(f)["last"]) - int(NAME.match(f)["first"]) + 1 for f in final_files(d)) >= 1000,
                   90, "two cuts")
        c.terminate()
        sums = {}
        for f in final_files(directory):
            with open(os.path.join(directory, f), "rb") as data:
                sums[f] = hashlib.sha256(data.read()).hexdigest()
        names.append(sums)
    assert len(names[0]) >= 2 and names[0] == names[1]


def test_cut_by_bytes(inbox, readers):  # noqa: F811
    """What Parquet holds back until the end of a file counts towards max_bytes as it comes."""
    s = Sink(inbox(partitions=0), 1, **conf("parquet", "zstd"), max_bytes="100kB", max_age="2s")
    for n in range(1000):
        s.i.put(f"k{n}", json.dumps({"x": "y" * 400}), [("id", str(uuid.uuid4()))])
    s.i.flush()
    s.member().start()
    assert len(check(s)) >= 4


@pytest.mark.parametrize("format", ["avro", "parquet"])
def test_large_records(inbox, readers, format):  # noqa: F811
    """Records of 10 MB between small ones."""
    s = Sink(inbox(partitions=0), 1, **conf(format, "zstd"), max_age="1s")
    for n in range(3):
        s.i.put(f"k{n}", b"{}", [("id", str(uuid.uuid4()))])
        s.i.put(f"k{n}", json.dumps({"x": base64.b64encode(os.urandom(7 << 20)).decode()}), [("id", str(uuid.uuid4()))])
    s.i.flush()
    s.consumer().start()
    check(s, 120)


def test_parquet_without_the_library(inbox):  # noqa: F811
    """A configuration that needs what is not there ends the start with what to do, and not the first cut."""
    s = Sink(inbox(partitions=0), 1, format="parquet", parquet_library="/nowhere/libduckdb.so")
    c = s.member().start()
    assert c.wait(60) == 78
    log = servers.tail(c.log, 50)
    assert "/nowhere/libduckdb.so" in log and "make setup" in log
