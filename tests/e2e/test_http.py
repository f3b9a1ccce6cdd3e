"""tests/e2e/test_http.py -- what the relay says over HTTP: health, metrics, status, the page; and to whom."""
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

import servers
from outbox import Outbox
from wait import wait_until

STABLE = {
    "postrider_build_info": "gauge", "postrider_up": "gauge", "postrider_state": "gauge",
    "postrider_lag_seconds": "gauge", "postrider_pending_events": "gauge", "postrider_published_total": "counter",
    "postrider_published_bytes_total": "counter", "postrider_insert_to_ack_seconds": "histogram",
    "postrider_parked_events": "gauge", "postrider_parked_keys": "gauge", "postrider_producer_restarts_total": "counter",
    "postrider_pg_reconnects_total": "counter", "postrider_batch_events": "histogram",
}
SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@pytest.fixture(scope="module")
def post(pg_server, kafka):
    with Outbox(pg_server, kafka, "http") as o:
        yield o.start()


def fetch(port, path, method="GET", headers=None, host=None, body=None):
    """(status, headers, text)"""
    req = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, data=body, headers=headers or {})
    if host:
        req.add_header("Host", host)
    try:
        with urllib.request.urlopen(req, timeout=30) as r:
            return r.status, r.headers, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read().decode()


def samples(text):
    """[(name, {label: value}, number)]"""
    out = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            m = SAMPLE.match(line)
            assert m, line
            out.append((m.group(1), dict(LABEL.findall(m.group(2) or "")), float(m.group(3))))
    return out


def test_metrics(post):
    """All names that never change are there, with the right type; every sample carries the outbox; nothing
    that grows with the data is in a label; promtool has nothing to say."""
    kind, topic = post.kind()
    key = "very-secret-key"
    ids = [post.publish(kind, key, '{"n": "very-secret-payload"}') for _ in range(3)]
    post.read(topic, 3)
    wait_until(lambda: post.relay.metric(f'postrider_published_total{{outbox="{post.name}",topic="{topic}"}}') == 3, 60,
               "the count")
    drained = {"postrider_lag_seconds": 0, "postrider_pending_events": 0, "postrider_up": 1}

    def calm():
        """The page once nothing is on its way and nobody is silent for a moment."""
        page = fetch(post.relay.port, "/metrics")
        value = {n: v for n, _, v in samples(page[2])}
        return page if drained.items() <= value.items() and re.search('(?m)^postrider_state.*state="ok".* 1$', page[2]) else None
    status, headers, text = wait_until(calm, 60, "all to be well")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    types = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    assert {n: types.get(n) for n in STABLE} == STABLE
    assert set(re.findall(r"(?m)^# HELP (\S+) \S", text)) == set(types)
    found = samples(text)
    assert found and all(labels.get("outbox") == post.name for _, labels, _ in found)
    names = {n for n, _, _ in found}
    bases = {re.sub(r"_(bucket|sum|count)$", "", n) for n in names}
    # Only what has not happened yet may have no sample.
    assert {n for n in STABLE if n not in bases} <= {"postrider_producer_restarts_total"}
    assert set().union(*(labels for _, labels, _ in found)) <= {
        "outbox", "topic", "state", "what", "reason", "le", "version", "librdkafka", "libpq"}
    assert key not in text and "secret" not in text and not any(i in text for i in ids)
    states = {labels["state"]: v for n, labels, v in found if n == "postrider_state"}
    assert sum(states.values()) == 1 and states["ok"] == 1
    published = {labels["topic"]: v for n, labels, v in found if n == "postrider_published_bytes_total"}
    assert published[topic] == 3 * len('{"n": "very-secret-payload"}')
    assert shutil.which("promtool"), "run make setup"
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_openmetrics(post):
    kind, topic = post.kind()
    post.publish(kind, "k")
    wait_until(lambda: post.relay.metric(f'postrider_published_total{{outbox="{post.name}",topic="{topic}"}}') == 1, 60, "the count")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, headers, text = fetch(post.relay.port, "/metrics", headers={"Accept": accept})
    assert status == 200 and headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n") and text.count("# EOF") == 1
    assert "# TYPE postrider_published counter\n" in text and "postrider_published_total{" in text
    plain = fetch(post.relay.port, "/metrics")[2]
    assert {n for n, _, _ in samples(plain)} == {n for n, _, _ in samples(text)}


def test_counters_never_decrease(post):
    kind, topic = post.kind()

    def counters():
        text = fetch(post.relay.port, "/metrics")[2]
        types = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
        return {(n, tuple(sorted(labels.items()))): v for n, labels, v in samples(text)
                if types.get(n) == "counter" or n.endswith(("_bucket", "_count", "_sum"))}
    last = counters()
    for i in range(15):
        post.many(kind, [f"k{n}" for n in range(20)])
        if i == 7:  # a backend dies: the relay connects anew
            post.pg.kill_backend(f"application_name LIKE 'postrider-relay {post.name} %'")
        now = counters()
        assert all(now.get(k, -1) >= v for k, v in last.items())
        last = now
    post.read(topic, 300)
    wait_until(lambda: post.relay.metric("postrider_pg_reconnects_total") >= 1, 60, "the reconnect")
    assert all(counters().get(k, -1) >= v for k, v in last.items())
    post.wait_state("ok")


def test_health_and_ready(post):
    status, headers, text = fetch(post.relay.port, "/healthz")
    assert (status, json.loads(text)) == (200, {"status": "ok"}) and headers["Content-Type"].startswith("application/json")
    seen = []

    def well():
        """The test before killed sessions: whose turn comes late says so late."""
        status, _, text = fetch(post.relay.port, "/readyz")
        seen[:] = [status, json.loads(text)]
        answer = seen[1]
        return (status == 200 and answer["ready"] is True and answer["state"] == "ok" and answer["lag_seconds"] == 0
                and all(v == "ok" for v in answer["checks"].values() if isinstance(v, str))
                and (answer["checks"]["streaming"], answer["checks"]["paused"]) == (True, False))
    try:
        wait_until(well, 60, "all to be well")
    except AssertionError as e:
        raise AssertionError(f"{e}: {seen}") from None
    assert {"postgres", "kafka", "refused", "janitor", "ranges", "reload"} <= set(seen[1]["checks"])


def test_status_json(post):
    kind, topic = post.kind()
    post.publish(kind, "k")
    post.read(topic, 1)
    wait_until(lambda: post.relay.status()["position"]["seq"] == post.one("SELECT max(seq) FROM outbox.event"), 60,
               "the position")
    s = post.relay.status()
    assert {k: type(v) for k, v in s.items() if k in (
        "name", "version", "state", "sentence", "hint", "checks", "leader", "delivery", "published_total", "waiting",
        "problems", "postgres", "kafka", "position", "rates")} == {
        "name": str, "version": str, "state": str, "sentence": str, "hint": str, "checks": dict, "leader": bool,
        "delivery": str, "published_total": int, "waiting": list, "problems": list, "postgres": dict, "kafka": dict,
        "position": dict, "rates": dict}
    assert s["name"] == post.name and s["leader"] is True and s["postgres"]["connected"] and s["kafka"]["connected"]
    assert s["postgres"]["system_id"] == post.one("SELECT system_identifier::text FROM pg_control_system()")
    assert re.fullmatch(r"\d+:\d+:[\d,]*", s["position"]["snapshot"])
    for number in ("lag_seconds", "pending_events", "in_flight_events", "parked_events", "parked_keys",
                   "partitions_ahead", "uptime_seconds"):
        assert s[number] >= 0
    wait_until(lambda: post.relay.status()["partitions_ahead"] >= 16, 60, "the ranges to be counted")


def test_page(post):
    """The page is whole without its script, tells state and lag, and leads to the rest."""
    status, headers, text = fetch(post.relay.port, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert f"<h1 id=\"state\">Outbox {post.name}: " in text and "Lag" in text and len(text) < 100_000
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy, policy
    for link in re.findall(r'href="(/[^"]*)"', text):
        assert fetch(post.relay.port, link)[0] == 200


def test_what_is_not_there(post):
    """Errors are application/problem+json with a stable type."""
    port = post.relay.port
    for path, method, want in (("/nothing", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 405),
                               ("/readyz", "DELETE", 405), ("/", "PUT", 405), ("/%00", "GET", 404),
                               ("/../../etc/passwd", "GET", 404), ("/%2e%2e/", "GET", 404)):
        status, headers, text = fetch(port, path, method)
        assert status in (want, 400), (path, method, status)
        problem = json.loads(text)
        assert headers["Content-Type"].startswith("application/problem+json")
        assert problem["status"] == status and problem["type"].startswith("/problems/") and problem["title"]
        if status == 405:
            assert "GET" in headers["Allow"]
    # Somebody's web page resolved its name to loopback: not for its eyes.
    status, headers, text = fetch(port, "/status.json", host="evil.example")
    assert status == 400 and headers["Content-Type"].startswith("application/problem+json")
    assert fetch(port, "/readyz", "HEAD")[0] == 200
    assert fetch(port, "/status.json?x=1")[0] == 200


def test_not_ready_before_the_source_has_begun(pg_server, kafka):
    """Kafka has given the position; Postgres has not yet taken it: nothing flows, so nothing is green. The row that names the
    outbox's relay is held up by a lock."""
    with Outbox(pg_server, kafka, "begins") as o, o.db.connect(autocommit=False) as other:
        other.cursor().execute("LOCK TABLE outbox.relay IN SHARE MODE")
        o.relay.start()
        wait_until(lambda: o.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
                                 "wait_event_type = 'Lock' AND query LIKE %s", ("%INSERT INTO outbox.relay%",)), 60, "the start to wait")
        status, answer = o.readyz()
        assert (status, answer["state"], answer["checks"]["streaming"]) == (503, "starting", False)
        other.rollback()
        o.relay.wait_ready()
        assert o.one("SELECT name FROM outbox.relay") == o.name


def test_token(pg_server, kafka, tmp_path):
    """Off loopback a token is needed, or the relay does not start. With one, health and readiness stay open
    to a load balancer; numbers and names do not."""
    secret = tmp_path / "token"
    secret.write_text("s3cret-token\n")
    secret.chmod(0o600)
    bare = servers.Relay("dbname=x", "127.0.0.1:1", name="bare")
    bare.rewrite({"http": {"listen": f"*:{bare.port}"}})
    bare.start()
    assert bare.wait(60) == 78
    assert "http.token" in bare.log_text()
    with Outbox(pg_server, kafka, "token") as o:
        o.relay.rewrite({"http": {"listen": f"*:{o.relay.port}", "token": f"file:{secret}"}})
        o.relay.start()
        wait_until(lambda: fetch(o.relay.port, "/healthz")[0] == 200, 60, "health", ignore=(OSError,))
        wait_until(lambda: fetch(o.relay.port, "/readyz")[0] == 200, 60, "ready")
        for path in ("/metrics", "/status.json", "/"):
            status, headers, text = fetch(o.relay.port, path)
            assert status == 401 and headers["Content-Type"].startswith("application/problem+json"), path
            assert "Bearer" in headers["WWW-Authenticate"] and "s3cret" not in text
            assert fetch(o.relay.port, path, headers={"Authorization": "Bearer wrong"})[0] == 401
            assert fetch(o.relay.port, path, headers={"Authorization": "Bearer s3cret-token"})[0] == 200
        assert "s3cret" not in o.relay.log_text()
        # The CLI takes the token from the same file.
        assert o.run("status", "--json", "--url", f"http://127.0.0.1:{o.relay.port}").returncode == 0
