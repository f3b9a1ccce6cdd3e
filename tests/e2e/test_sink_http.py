"""tests/e2e/test_sink_http.py -- the sink's batches at an API: postrider-platform with its switches, which keeps every fact once and
counts what came twice; and a web server of the test's own where it matters what exactly is asked.

Each record is there once, in the order of its partition, or it is a dead letter with the API's own words: GET /counts says so.
"""
import gzip
import itertools
import json
import subprocess
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_platform import away  # noqa: F401
from inbox import inbox  # noqa: F401
from service import Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)


# ---------------------------------------------------------------- a platform that is well

@pytest.mark.asan
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_each_record_once_and_in_order(away, compression):  # noqa: F811
    a = away()
    a.consumer(compression=compression)
    a.send(700)
    a.once()
    cuts = a.i.db.query("SELECT partition, first_offset, next_offset, state, records, target, answer FROM sink.cut ORDER BY 1, 2")
    assert {(c[3], c[5]) for c in cuts} == {("published", "http")} and sum(c[4] for c in cuts) == 700 and max(c[4] for c in cuts) <= 20
    assert '"stored": ' in cuts[0][6]  # the API's own words
    for (p, _, end, *_), (q, first, *_) in itertools.pairwise(cuts):
        assert p != q or first >= end


def test_any_record_is_taken(away):  # noqa: F811
    """A tombstone, no JSON, nothing, no text in key and headers, numbers of any size: what the contract's line says of each."""
    a = away(partitions=1)
    given = [(b"k", None), (b"k", b""), (b"k", b"not json"), (b"\xff", b"\xff\xfe"), (None, b'{"big": 12345678901234567890123, "x": 1.50}'), (b"k", b"[1,\n2]")]
    for key, value in given:
        a.ids.append(str(uuid.uuid4()))
        a.i.put(key, value, [("id", a.ids[-1].encode()), ("type", b"T"), ("raw", b"\xff"), ("none", None)])
    a.i.flush()
    a.consumer()
    a.once()
    facts = {f[0]: f[1:] for f in a.platform.db.query("SELECT event_id, key, payload::text, payload_base64, headers FROM platform.fact")}
    assert [facts[i][:3] for i in a.ids] == [
        ("k", "null", None), ("k", None, ""), ("k", None, "bm90IGpzb24="), ("base64:/w==", None, "//4="),
        (None, '{"x": 1.50, "big": 12345678901234567890123}', None), ("k", "[1, 2]", None)]
    assert facts[a.ids[0]][3] == {"id": a.ids[0], "type": "T", "raw": {"base64": "/w=="}, "none": None}


def test_batches_by_bytes_and_age(away):  # noqa: F811
    a = away(partitions=1)
    a.consumer(max_records=1000, max_bytes="4kB", max_age="300ms")
    a.send(100, payload={"x": "y" * 200})
    a.once()
    records = [r[0] for r in a.i.db.query("SELECT records FROM sink.cut ORDER BY first_offset")]
    assert len(records) >= 8 and max(records) < 20
    a.send(1)
    a.once()


# ---------------------------------------------------------------- what is refused

def test_the_one_that_is_refused(away):  # noqa: F811
    """The platform refuses one event of a batch: halves, down to that one, which becomes a dead letter with the platform's words."""
    a = away(partitions=1)
    ids = a.send(300)
    a.platform.switch(refuse_id=ids[137])
    a.consumer(max_records=100)
    a.once(without=[ids[137]])
    dead = a.i.dead("id, class, code, reason, message_offset, convert_from(payload, 'UTF8')")
    assert len(dead) == 1 and dead[0][:3] == (ids[137], "http", "422") and dead[0][4] == 137, dead
    assert "told to be refused" in dead[0][3] and json.loads(dead[0][5])["n"] == 137
    cuts = a.i.db.query("SELECT first_offset, next_offset, state FROM sink.cut ORDER BY 1")
    assert (137, 138, "refused") in cuts and all(s == "published" for f, _, s in cuts if f != 137)
    assert [c[0] for c in cuts[1:]] == [c[1] for c in cuts[:-1]] and cuts[-1][1] == 300


def test_nothing_is_given_back(away, cli):  # noqa: F811
    """A dead letter that was retried waited in inbox.parked, where no sink looks, and a replay counted duplicates: both are refused, with
    what to do instead; a job that comes by SQL ends as failed."""
    a = away(partitions=1)
    a.i.put(b"k", b"{}", [])
    c = a.consumer()
    a.i.wait_dead(1)
    a.send(3)
    a.once()
    entry = a.i.dead("entry")[0][0]
    for which in ([str(entry)], ["--all"], ["--canary", "--all"], ["--all", "--group", a.i.group, "--wait", "0s"], [str(entry), "--dry-run"]):
        done = cli("dlq", "retry", *which, "--conninfo", a.i.db.conninfo)
        assert done.returncode == 5 and f"group {a.i.group} is a sink" in done.stderr and "publish the event anew" in done.stderr, done
    for which in (["-c", c.file], ["--group", a.i.group, "--topic", a.i.topic, "--brokers", a.i.kafka.bootstrap, "--conninfo", a.i.db.conninfo]):
        done = cli("replay", "start", "--all", *which)
        assert done.returncode == 5 and "is a sink" in done.stderr and "next_offset in inbox.position" in done.stderr, done
    assert a.i.one("SELECT count(*) FROM inbox.parked") == 0 and a.i.one("SELECT count(*) FROM inbox.replay") == 0
    job = a.i.one("SELECT inbox.replay_new(%s, ARRAY[%s], '{0}', '{0}', '{4}')", (a.i.group, a.i.topic))
    wait_until(lambda: a.i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,)) == "failed", 45, "the job to end")
    assert "is a sink" in a.i.one("SELECT note FROM inbox.replay WHERE job = %s", (job,))
    a.once()


def test_records_without_an_id(away):  # noqa: F811
    """The platform takes nothing without an id: those are dead letters, the rest goes through."""
    a = away(partitions=1)
    a.send(30)
    a.i.put(b"k", b"{}", [])
    a.i.put(b"k", b"{}", [])
    a.send(30)
    a.consumer()
    a.once()
    assert [(d[1], d[2]) for d in a.i.dead()] == [("http", "422")] * 2


def test_too_large(away):  # noqa: F811
    """413 for what is larger than the platform's limit: smaller batches; one record that is too large by itself is a dead letter."""
    a = away(platform={"events": {"unpacked_bytes": "16kB"}}, partitions=1)
    a.send(60, payload={"x": "y" * 1000})
    huge = a.send(1, payload={"x": "y" * 20000})
    a.send(60, payload={"x": "y" * 1000})
    a.consumer(max_records=100)
    a.once(without=huge)
    assert [(d[0], d[2]) for d in a.i.dead()] == [(huge[0], "413")]


# ---------------------------------------------------------------- what is wrong with the platform

def asked(a):
    """Requests since the platform was told to fail."""
    return a.platform.db.one("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM platform.requests")


def test_retry_after(away):  # noqa: F811
    """429 with Retry-After: nothing is asked meanwhile, red is told, and then all of it goes, once."""
    a = away(partitions=2)
    a.platform.switch(fail_status=429, retry_after=3)
    a.send(200)
    began = time.monotonic()
    c = a.consumer()
    wait_until(lambda: asked(a) > 0, 45, "the first request")
    state = a.i.wait_state(c, "error")
    before, turns = asked(a), 1 + (time.monotonic() - began) // 3
    assert "429" in json.dumps(state)
    a.platform.switch()
    a.once()
    assert time.monotonic() - began > 2.5 and before <= 4 * turns  # two lanes, two partitions: each may have asked before it knew
    a.i.wait_state(c, "ok")
    assert not a.i.dead()


def test_500_after_it_was_stored(away):  # noqa: F811
    """Every third answer is 500 though the batch is stored: it goes again under its key, and is not counted twice."""
    a = away()
    a.platform.switch(fail_status=500, fail_every=3, fail_stored=True)
    a.consumer()
    a.send(600)
    a.once(timeout=90)
    assert not a.i.dead()


def test_slower_than_the_deadline(away):  # noqa: F811
    """The platform stores and answers after our time is up: the same batch again and again, until it is fast: once."""
    a = away(partitions=1)
    a.platform.switch(slow_ms=1500)
    c = a.consumer(timeout="300ms")
    a.send(50)
    a.i.wait_state(c, "error")
    a.arrives(20)
    a.platform.switch()
    a.once()
    a.i.wait_state(c, "ok")


def test_red_until_the_record_is_a_dead_letter(away):  # noqa: F811
    """The API is down for a while, and then refuses the record that waited: it becomes a dead letter, the position stands at the end,
    and red was what it stayed until the next record of that partition, whenever that came."""
    a = away(partitions=1)
    c = a.consumer().wait_ready()
    a.send(5)
    a.arrives(5)
    a.platform.switch(fail_status=503)
    bad = a.send(1)[0]
    a.i.wait_state(c, "error")
    a.platform.switch(refuse_id=bad)
    a.i.wait_dead(1, 30)
    a.i.wait_state(c, "ok")


def test_down_and_up_again(away):  # noqa: F811
    a = away()
    c = a.consumer()
    a.send(200)
    a.once()
    port = a.platform.service.port
    a.platform.service.kill9()
    a.send(200)
    state = a.i.wait_state(c, "error")
    assert f"127.0.0.1:{port}" in json.dumps(state)
    a.platform.service = Service("platform", a.platform.db.conninfo, port=port).start().wait_ready()
    a.once()
    a.i.wait_state(c, "ok")


def test_own_rules(away):  # noqa: F811
    """handler.errors says otherwise: 418 is about records, and is tried twice before it is a dead letter."""
    a = away(partitions=1)
    a.platform.switch(fail_status=418)
    a.consumer({"errors": [{"match": "http:418", "policy": "retry", "attempts": 2, "backoff": "10ms"}]})
    ids = a.send(3)
    assert sorted(d[0] for d in a.i.wait_dead(3, 30)) == sorted(ids)
    a.platform.switch()
    a.i.stands()
    assert a.stored() == 0


# ---------------------------------------------------------------- what exactly is asked

class Ear:
    """A web server that keeps what it is sent; answer(request): (status, headers, body)."""

    def __init__(self, answer=lambda request: (200, {}, b"fine")):
        ear, self.requests = self, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = (self.path, dict(self.headers), body)
                ear.requests.append(request)
                status, headers, text = answer(request)
                self.send_response(status)
                for k, v in headers.items():
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # the other side may go before it has read all
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/in"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def ear():
    made = []

    def make(*args):
        made.append(Ear(*args))
        return made[-1]
    yield make
    for e in made:
        e.close()


def unpacked(request):
    encoding, body = request[1].get("Content-Encoding"), request[2]
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "zstd":
        return subprocess.run(["zstd", "-dc"], input=body, stdout=subprocess.PIPE, check=True).stdout
    return body


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_is_sent(inbox, ear, compression):  # noqa: F811
    i, e = inbox(partitions=1), ear()
    i.consumer({"kind": "sink", "http": {"url": e.url, "max_records": 5, "compression": compression, "headers": ["X-Team: data"],
                                         "secret": "env:KEY"}}, config={"lanes": 1}, env={"KEY": "whsec_" + "QUJD" * 8}).start()
    ids = i.send(20)
    i.stands()
    assert len(e.requests) >= 4
    offset = 0
    for path, headers, _ in e.requests:
        rows = [json.loads(line) for line in unpacked((path, headers, _)).splitlines()]
        assert headers["Idempotency-Key"] == f"{i.group}/{i.topic}/0/{offset}-{offset + len(rows)}"
        assert [r["id"] for r in rows] == ids[offset:offset + len(rows)] and rows[0]["offset"] == offset
        assert set(rows[0]) == {"id", "type", "topic", "partition", "offset", "key", "time", "headers", "payload"}
        assert headers["Content-Type"] == "application/x-ndjson" and headers["X-Team"] == "data" and path == "/in"
        assert headers["webhook-signature"].startswith("v1,") and headers["webhook-id"] == headers["Idempotency-Key"]
        assert headers.get("Content-Encoding") == (None if compression == "none" else compression)
        offset += len(rows)
    assert offset == 20


def test_a_redirect_is_refused(inbox, ear):  # noqa: F811
    """Nobody else gets the records, and nothing is lost: they wait until the address is right."""
    i, other = inbox(partitions=1), ear()
    way = {"on": True}
    e = ear(lambda _: (307, {"Location": other.url}, b"") if way["on"] else (204, {}, b""))
    c = i.consumer({"kind": "sink", "http": {"url": e.url}}).start()
    i.send(10)
    assert "redirects are not followed" in json.dumps(i.wait_state(c, "error"))
    way["on"] = False
    i.stands()
    assert not other.requests and not i.dead()


def test_an_answer_is_read_so_far(inbox, ear):  # noqa: F811
    """An answer of 200 with a megabyte behind it: it is cut, and kept as the batch's answer in short."""
    i, e = inbox(partitions=1), ear(lambda _: (200, {}, b"x" * (1 << 20)))
    i.consumer({"kind": "sink", "http": {"url": e.url}}).start()
    i.send(10)
    i.stands()
    assert i.one("SELECT max(length(answer)) FROM sink.cut") <= 600 and i.one("SELECT min(answer) FROM sink.cut").startswith("xxx")


def test_a_long_name_makes_a_short_key(inbox, ear):  # noqa: F811
    i, e = inbox(partitions=1), ear()
    topic = i.kafka.create_topic("t" * 230, 1)
    i.consumer({"kind": "sink", "http": {"url": e.url}}, topics=[topic]).start()
    i.put(b"k", b"{}", topic=topic)
    i.flush()
    wait_until(lambda: e.requests, 45, "a request")
    key = e.requests[0][1]["Idempotency-Key"]
    assert key.startswith("sha256:") and len(key) == 71


def test_a_stop_in_the_middle_of_a_request(inbox, ear):  # noqa: F811
    """The API hangs while we stop: the consumer is gone within its drain time, and the next one sends the same batch."""
    hang = threading.Event()

    def answer(_):
        hang.wait(30)
        return 200, {}, b""
    i, e = inbox(partitions=1), ear(answer)
    config = {"shutdown": {"drain": "2s"}}
    c = i.consumer({"kind": "sink", "http": {"url": e.url, "timeout": "30s", "max_age": "10ms"}}, config=config).start()
    i.send(10)
    wait_until(lambda: e.requests, 45, "a request")
    began = time.monotonic()
    assert c.terminate() == 0 and time.monotonic() - began < 25  # the API hangs for 30
    hang.set()
    before = len(e.requests)
    i.consumer({"kind": "sink", "http": {"url": e.url}}).start()
    i.stands()
    keys = [r[1]["Idempotency-Key"] for r in e.requests]
    assert keys[before] == keys[0] and unpacked(e.requests[before]) == unpacked(e.requests[0])


@pytest.mark.parametrize("http, words", [
    ({"url": "ftp://127.0.0.1/x"}, "handler.http.url: must begin with http"),
    ({"url": "http://u:p@127.0.0.1/x"}, "handler.http.url: may not hold"),
    ({"url": "http://127.0.0.1/x", "headers": ["Idempotency-Key: x"]}, "is set by the consumer itself"),
    ({"url": "http://127.0.0.1/x", "secret": "env:HOME"}, "handler.http.secret"),
])
def test_a_bad_config_is_named(inbox, http, words):  # noqa: F811
    c = inbox(partitions=1).consumer({"kind": "sink", "http": http}).start()
    assert c.wait(60) == 78 and words in c.log_text(), c.log_text()
