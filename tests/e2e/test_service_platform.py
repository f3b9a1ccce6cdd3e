"""tests/e2e/test_service_platform.py -- postrider-platform over real HTTP and Postgres: every fact once, whatever comes twice,
in pieces, packed, or wrong; and a consumer that brings it all events, also while it is slow, down or failing."""
import ctypes
import gzip
import itertools
import json
import os
import statistics
import time
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import servers
from data_platform import JSON, LINES, Platform
from inbox import inbox  # noqa: F401
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
_n = itertools.count(1)


def event(**more):
    n = next(_n)
    return {"id": str(uuid.uuid4()), "topic": "outbox.event.order", "type": "OrderPaid", "key": f"k{n}", "time": f"2026-01-02T03:04:05.{n:06}Z",
            "partition": 0, "offset": n, "headers": {"type": "OrderPaid"}, "payload": {"n": n, "text": "차"}, **more}


@pytest.fixture(scope="module")
def shared(pg_server):
    db = pg_server.createdb(f"platform_{os.getpid()}")
    p = Platform(db, events={"unpacked_bytes": "1MB"})
    yield p
    p.service.kill()
    db.drop()


@pytest.fixture
def platform(empty_db):
    made = []

    def make(**config):
        made.append(Platform(empty_db, **config))
        return made[-1]
    yield make
    for p in made:
        p.service.kill()


def zstd(data):
    lib = ctypes.CDLL("libzstd.so.1")
    lib.ZSTD_compressBound.restype = lib.ZSTD_compress.restype = ctypes.c_size_t
    out = ctypes.create_string_buffer(lib.ZSTD_compressBound(ctypes.c_size_t(len(data))))
    n = lib.ZSTD_compress(out, ctypes.c_size_t(len(out)), data, ctypes.c_size_t(len(data)), 3)
    return out.raw[:n]


@pytest.mark.asan
def test_shapes(platform):
    """One, a list, lines, packed: the same facts."""
    p = platform()
    many = [event() for _ in range(6)]
    lines = b"\n".join(json.dumps(e).encode() for e in many[2:4]) + b"\n\n  \n"
    assert p.taken(many[0]) == (1, 0, 0)
    assert p.taken(many[:3]) == (2, 1, 0)
    assert p.taken(lines, LINES) == (1, 1, 0)
    assert p.taken(gzip.compress(json.dumps(many[:5]).encode()), Content_Encoding="gzip") == (1, 4, 0)
    halves = gzip.compress(b"[") + gzip.compress(json.dumps(many[5]).encode()) + gzip.compress(b"]")
    assert p.taken(halves, Content_Encoding="gzip") == (1, 0, 0)
    assert p.taken(zstd(json.dumps(many).encode()), Content_Encoding="zstd") == (0, 6, 0)
    assert p.taken([]) == (0, 0, 0)
    assert p.counts() == (6, 12, 0)
    facts = p.facts()["facts"]
    assert [{k: f[k] for k in many[0] if k != "time"} for f in facts] == [{k: e[k] for k in e if k != "time"} for e in many]
    assert [f["time"] for f in facts] == [e["time"] for e in many]
    [count] = p.api.get("/counts").json["counts"]
    assert count == {"topic": "outbox.event.order", "type": "OrderPaid", "stored": 6, "duplicates": 12, "conflicts": 0}


def test_twice_and_different(shared):
    """The same id with the same content is a duplicate whatever else differs; with other content it is a conflict, and the
    first stays."""
    before = shared.counts()
    e = event()
    assert shared.taken([e, {**e, "offset": 9, "attempt": 2, "time": None}]) == (1, 1, 0)
    for other in ({"payload": {"n": -1}}, {"type": "X"}, {"topic": "x"}, {"key": None}, {"payload": None}):
        assert shared.taken([{**e, **other}]) == (0, 0, 1), other
        assert shared.send({**e, **other}).problem == "other-content"
    new = event()
    assert shared.send([new, {**new, "key": "other"}, e]).json == {"stored": 1, "duplicates": 1, "conflicts": 1, "conflicting": [new["id"]]}
    assert tuple(b - a for a, b in zip(before, shared.counts())) == (2, 2, 11)
    kept = shared.db.query("SELECT payload, key FROM platform.fact WHERE event_id = %s", (e["id"],))
    assert kept == [(e["payload"], e["key"])]


def test_bytes_and_nothing(shared):
    """A payload that is no JSON, a tombstone, an event without a type; an id that is in the header only."""
    raw = event(payload_base64="gIE=")
    del raw["payload"]
    bare = {"id": "bare-" + str(uuid.uuid4())}
    assert shared.taken([raw, event(payload=None), bare]) == (3, 0, 0)
    e = event()
    id = e.pop("id")
    assert shared.taken(e, webhook_id=id) == (1, 0, 0)
    assert shared.taken(e, webhook_id=id, key=id) == (0, 1, 0)
    assert shared.db.query("SELECT payload_base64, payload FROM platform.fact WHERE event_id = %s", (raw["id"],)) == [("gIE=", None)]


def test_idempotency_key(shared):
    """Of a batch: the same answer for the same bytes, also when it was stored meanwhile otherwise; other bytes are refused. Of an event
    by its id: a new attempt differs, and is the same event."""
    a, b = [event()], [event()]
    assert shared.taken(a, key="batch-1") == shared.taken(a, key="batch-1") == (1, 0, 0)
    assert shared.send(b, key="batch-1").problem == "idempotency-key-reused"
    assert shared.send(a, key="x" * 256).status == shared.send(a, Idempotency_Key="").status == 400
    e = event()
    assert shared.taken({**e, "attempt": 1}, key=e["id"]) == (1, 0, 0)
    assert shared.taken({**e, "attempt": 2}, key=e["id"]) == (0, 1, 0)
    c = [event()]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda _: shared.send(c, key="batch-2"), range(6)))
    assert {g.status for g in got} <= {200, 409} and all(g.json["stored"] == 1 for g in got if g.status == 200)


BAD = [
    (b"", JSON, 400), (b"{", JSON, 400), (b"7", JSON, 400), (b'"x"', JSON, 400), (b"[1,]", JSON, 400), (b"null", JSON, 400),
    (b'[{"id":"\xff"}]', JSON, 400), (b'[{"id":"\\u0000"}]', JSON, 400), (b'[{"id":"\\ud800"}]', JSON, 400),
    (b"[" * 600 + b"]" * 600, JSON, 400), (b'{"id":"a"}\n{', LINES, 400), (b"\n \n", LINES, 400), (b"", LINES, 400),
    (b'{"id":"a"}', "text/plain", 415), (b'{"id":"a"}', "application/jsonx", 415), (b'{"id":"a"}', "", 415),
]


@pytest.mark.asan
@pytest.mark.parametrize("body,media,status", BAD, ids=range(len(BAD)))
def test_bad_bodies(shared, body, media, status):
    before = shared.counts()
    assert shared.send(body, media).status == status
    assert shared.counts() == before


WRONG = [("", 7), ("", None), ("", []), *(("id", v) for v in (7, "", "x" * 201, None)), ("type", 7), ("type", "x" * 201), ("topic", []),
         ("topic", "x" * 250), ("key", 7), ("time", "yesterday"), ("time", 7), ("time", "2026-01-02"), ("payload_base64", 7), ("headers", []),
         ("partition", "x"), ("partition", -1), ("partition", 10 ** 12), ("offset", 1.5), ("offset", 10 ** 30)]


@pytest.mark.parametrize("member,value", WRONG, ids=range(len(WRONG)))
def test_wrong_events(shared, member, value):
    """The batch is refused whole, and the wrong one is named."""
    before = shared.counts()
    bad = {**event(), member: value} if member else value
    answer = shared.send([event(), bad, event()])
    assert answer.status == 422 and answer.members == [f"[1].{member}" if member else "[1]"], answer
    if isinstance(bad, dict):
        assert shared.send(bad).members == [member]
    assert shared.counts() == before


def test_impossible_times(shared):
    before = shared.counts()
    for bad in ("2026-02-30T00:00:00Z", "2026-13-01T00:00:00Z", "9999999-01-01T00:00:00Z", "2026-01-01T99:00:00Z"):
        assert shared.send([event(time=bad)]).status == 422, bad
    assert shared.counts() == before


@pytest.mark.asan
def test_packed_wrongly(shared):
    """Broken, cut short, not what it says, and a bomb: refused, with little memory."""
    body = json.dumps([event()]).encode()
    packed = gzip.compress(body)
    before = shared.counts()
    for data, encoding, status in (
            (body, "gzip", 400), (packed[:-9], "gzip", 400), (packed[:20], "gzip", 400), (packed + b"x", "gzip", 400), (packed, "br", 415),
            (packed, "gzip, gzip", 415), (packed, "zstd", 400), (zstd(body)[:-3], "zstd", 400), (b"", "gzip", 400), (zlib.compress(body), "gzip", 400),
            (gzip.compress(b"[" + b" " * (64 << 20) + b"]"), "gzip", 413), (zstd(b" " * (64 << 20)), "zstd", 413)):
        assert shared.send(data, Content_Encoding=encoding).status == status, (encoding, data[:20])
    assert shared.counts() == before
    if os.environ.get("VARIANT", "test") != "asan":
        assert shared.service.peak_rss_kb() < 150_000


def test_switches(shared):
    """Slow, failing now and then, before or after storing, refusing one: for all instances, until switched back."""
    try:
        assert shared.switch(slow_ms=300)["slow_ms"] == 300
        began = time.monotonic()
        shared.taken([event()])
        assert time.monotonic() - began >= 0.3
        shared.switch(fail_status=503, retry_after=7)
        e = event()
        answer = shared.send([e])
        assert (answer.status, answer.headers["Retry-After"], answer.problem) == (503, "7", "switched-to-fail")
        shared.switch(fail_status=500, fail_stored=True)
        assert shared.send([e]).status == 500
        shared.switch(fail_status=429, fail_every=3)
        assert sorted(shared.send([event()]).status for _ in range(9)) == [200] * 6 + [429] * 3
        shared.switch()
        assert shared.taken([e]) == (0, 1, 0)
        bad = event()
        shared.switch(refuse_id=bad["id"])
        before = shared.counts()
        assert shared.send([event(), event(), bad]).members == ["[2].id"]
        assert shared.send(bad).members == ["id"] and shared.counts() == before
        other = Platform(shared.db)
        try:
            assert other.send(bad).members == ["id"]
        finally:
            other.service.kill()
    finally:
        shared.switch()
    assert shared.api.get("/switches").json["refuse_id"] is None
    for wrong in ({"slow_ms": -1}, {"slow_ms": 10 ** 9}, {"fail_status": 200}, {"fail_status": "x"}, {"fail_every": 0}, {"refuse_id": 7}):
        assert shared.api.post("/switches", wrong).status == 422, wrong
    assert shared.api.get("/switches").json["slow_ms"] == 0


def test_pages_and_filters(platform):
    p = platform()
    many = [event(type=t) for t in ("A", "B") * 5]
    p.taken(many)
    seen, after = [], ""
    while after is not None:
        page = p.facts(f"?limit=3{after and '&after=' + after}")
        seen += [f["id"] for f in page["facts"]]
        after = page["next"]
    assert seen == [e["id"] for e in many]
    assert [f["id"] for f in p.facts("?type=B")["facts"]] == [e["id"] for e in many[1::2]]
    assert [f["id"] for f in p.facts(f"?type=A&from={many[2]['time']}&to={many[6]['time']}")["facts"]] == [many[2]["id"], many[4]["id"]]
    assert p.facts("?type='%20OR%20true")["facts"] == []
    for bad in ("limit=0", "limit=1001", "from=yesterday", "from=infinity", "to=2026-02-30T00:00:00Z", "to=", "after=nobody", "type="):
        assert p.api.get(f"/facts?{bad}").status == 422, bad


def test_batches_beside_each_other(platform):
    """Eight senders with the same events in different orders and batches: each fact once, all others counted, no deadlock."""
    p = platform()
    many = [event(type=f"T{n % 5}") for n in range(300)]

    def send(n):
        mine = many[::-1] if n % 2 else many
        return [p.taken(mine[i:i + 50 + n]) for i in range(0, 300, 50 + n)]
    with ThreadPoolExecutor(8) as pool:
        got = [t for batch in pool.map(send, range(8)) for t in batch]
    assert tuple(sum(t) for t in zip(*got)) == p.counts() == (300, 2100, 0)
    assert p.db.one("SELECT count(*) FROM platform.fact") == 300


def test_speed(platform):
    """Batches of 500: 5,000 facts a second with room to spare when the machine is free. How busy it is, what comes one by one tells: a
    batch takes no longer than a tenth as many of those."""
    p = platform()
    batch, alone = [], []
    for _ in range(6):
        many, few = json.dumps([event() for _ in range(500)]).encode(), [json.dumps(event()).encode() for _ in range(50)]
        began = time.monotonic()
        assert p.taken(many) == (500, 0, 0)
        batch.append(time.monotonic() - began)
        began = time.monotonic()
        assert all(p.taken(one) == (1, 0, 0) for one in few)
        alone.append(time.monotonic() - began)
    assert statistics.median(batch) < statistics.median(alone), (batch, alone)


def test_plans(platform):
    """Pages of facts come from an index, among a million of them."""
    p = platform()
    p.db.psql("""INSERT INTO platform.fact (event_id, topic, type, at) SELECT lpad(n::text, 9, '0'), 't', 'T' || n % 50,
        timestamptz '2026-01-01' + n * interval '1 ms' FROM generate_series(1, 1000000) AS n; ANALYZE platform.fact""")
    before = p.db.one("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'fact'")
    for query in ("", "?type=T7", "?type=T7&after=000500007", "?from=2026-01-01T00:15:00Z&limit=1000", "?type=none",
                  "?type=T7&from=2026-01-01T00:16:00Z&to=2026-01-01T00:16:30Z"):
        p.facts(query)
    p.service.terminate()
    wait_until(lambda: not p.db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                                    " AND backend_type = 'client backend'"), 60, "its sessions to have told what they did")
    assert p.db.query("SELECT seq_scan, idx_scan >= 6, idx_tup_fetch < 20000 FROM pg_stat_user_tables WHERE relname = 'fact'") == [(before, True, True)]


def test_by_a_consumer(inbox):  # noqa: F811
    """As etc/services/platform-consumer.cfg has it: posts each record; while the platform fails and is down nothing is lost, and what
    was stored before a lost answer is there once."""
    i = inbox(partitions=2)
    p = Platform(i.db)
    try:
        p.switch(fail_status=500, fail_every=5, fail_stored=True)
        url = f"http://127.0.0.1:{p.service.port}/events"
        i.consumer({"kind": "http", "url": url, "concurrency": 16},
                   config={"errors": [{"match": "*", "policy": "breaker", "backoff": "100ms"}]}).start()
        ids = []
        for n in range(200):
            ids.append(str(uuid.uuid4()))
            i.put(f"k{n % 7}".encode(), json.dumps({"n": n}).encode(), [("id", ids[-1].encode()), ("type", b"Thing")])
        i.flush()
        wait_until(lambda: p.counts()[0] > 50, 60, "some")
        port = p.service.port
        p.service.kill9()
        p.service = Service("platform", i.db.conninfo, port=port).start().wait_ready()
        p.api = Api(port)
        wait_until(lambda: p.counts()[0] == 200, 90, "all")
        p.switch()
        assert p.db.query("SELECT count(*), count(DISTINCT event_id) FROM platform.fact WHERE event_id = ANY (%s)", (ids,)) == [(200, 200)]
        assert p.counts()[2] == 0
    finally:
        p.service.kill()


def test_config():
    program = servers.Cli("postrider-platform")
    sample = os.path.join(servers.ROOT, "etc", "services", "platform.cfg")
    assert program("-c", sample, "--check").returncode == 0
    with open(sample, encoding="utf-8") as f:
        assert program("--print-sample").stdout == f.read()
