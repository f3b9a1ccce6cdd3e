"""tests/e2e/test_operator.py -- pause and resume, status, and a configuration that changes under the relay."""
import json

import pytest

import servers
from outbox import Outbox, by_key, header
from wait import stays, wait_until


@pytest.fixture(scope="module", params=("exactly_once", "at_least_once"))
def post(request, pg_server, kafka):
    with Outbox(pg_server, kafka, "operator", delivery=request.param,
                config={"limits": {"batch_events": 1000}}) as o:
        yield o.start()


@pytest.fixture(autouse=True)
def resumed(request):
    yield
    if "post" in request.fixturenames:
        request.getfixturevalue("post").run("resume")


def test_pause_and_resume(post):
    """A paused relay publishes nothing, says so, keeps counting how late it is, and remembers over a restart;
    resumed, it goes on where it was, in order."""
    kind, topic = post.kind()
    post.publish(kind, "k", type="1")
    assert len(post.read(topic, 1)) == 1
    paused = json.loads(post.run("pause", "--json", check=True).stdout)
    assert paused["paused"] and paused["changed"]
    assert not json.loads(post.run("pause", "--json", check=True).stdout)["changed"]
    answer = post.wait_state("paused")
    assert answer["hint"] == "postrider resume" and answer["checks"]["paused"] is True
    post.publish(kind, "k", type="2")
    post.sql("SELECT outbox.publish_at(clock_timestamp() - interval '1s', %s, 'k', 'due', '{}')", (kind,))
    wait_until(lambda: post.relay.metric("postrider_lag_seconds") > 1 and post.relay.metric("postrider_pending_events") >= 1,
               45, "the lag to grow")
    first = post.relay.metrics()
    assert first['postrider_state{outbox="%s",state="paused"}' % post.name] == 1
    wait_until(lambda: post.relay.metric("postrider_lag_seconds") >= first["postrider_lag_seconds"] + 0.5, 45,
               "the lag to go on growing")
    stays(lambda: len(post.read(topic)) == 1, 0.3, "nothing leaves")
    status = post.run("status", "--json")
    told = json.loads(status.stdout)
    assert status.returncode == 3 and told["state"] == "paused" and told["healthy"] is False
    assert told["lag_seconds"] > 0 and told["source"] == "relay"

    post.stop()
    down = json.loads(post.run("status", "--json").stdout)
    assert down["source"] == "database" and down["paused"] is True and down["lag_seconds"] > 0
    post.relay.start()
    post.wait_state("paused")
    stays(lambda: len(post.read(topic)) == 1, 0.3, "nothing leaves")
    assert json.loads(post.run("resume", "--json", check=True).stdout) == {"paused": False, "since": None, "changed": True}
    assert by_key(post.read(topic, 3)) == {"k": ["1", "2", "due"]}
    post.wait_state("ok")
    wait_until(lambda: post.relay.metric("postrider_lag_seconds") == 0, 45, "no lag")


def test_status(post):
    """Every field that `postrider status --json` names is there, and the numbers are the relay's."""
    kind, topic = post.kind()
    post.many(kind, ["a", "b"] * 5)
    post.read(topic, 10)
    wait_until(lambda: post.relay.status()["published_total"] >= 10, 30, "the events to be counted")
    post.wait_state("ok")
    done = post.run("status", "--json", check=True)
    told = json.loads(done.stdout)
    assert set(told) >= {"source", "url", "healthy", "ready", "name", "version", "state", "sentence", "hint", "leader",
                         "delivery", "lag_seconds", "pending_events", "published_total", "events_per_second",
                         "parked_events", "parked_keys", "waiting", "problems", "postgres", "kafka", "position_seq",
                         "uptime_seconds"}
    assert (told["name"], told["state"], told["healthy"], told["ready"]) == (post.name, "ok", True, True)
    assert told["delivery"] == post.relay.config["delivery"] and told["leader"] is True
    assert told["postgres"]["connected"] is True and told["kafka"] == {"connected": True}
    assert told["published_total"] >= 10 and (told["parked_keys"], told["waiting"], told["problems"]) == (0, [], [])
    wait_until(lambda: json.loads(post.run("status", "--json").stdout)["position_seq"] == post.one(
        "SELECT max(seq) FROM outbox.event"), 45, "the position")
    assert post.name in post.run("status", check=True).stdout
    # A parked event is not published.
    before = post.relay.status()["published_total"]
    post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, partition) VALUES (%s, 'p', 'T', 9)", (kind,))
    post.wait_parked(1)
    post.wait_state("warn")
    assert post.relay.status()["published_total"] == before
    post.run("parked", "skip", "-t", topic, "-k", "p", "--yes", check=True)
    post.wait_state("ok")
    assert post.relay.status()["published_total"] == before


def histogram(post, name):
    """{upper bound: observations up to it}"""
    out = {}
    for k, v in post.relay.metrics().items():
        if k.startswith(name + "_bucket{"):
            out[float(k.split('le="')[1].split('"')[0])] = v
    return out


def test_reload(post):
    """SIGHUP takes new limits and a new log level at once; a broken file, an unknown key or a value out of
    range changes nothing, is named in /readyz with file and line, and is forgotten with the next good one."""
    kind, topic = post.kind()
    config = post.relay.config
    post.relay.rewrite({"limits": {"batch_events": 10}, "log": {"level": "debug"}})
    post.relay.hup()
    wait_until(lambda: "configuration reloaded" in post.relay.log_text(), 45, "the reload")
    post.publish(kind, "first")  # the shipment under way may still be a large one
    post.read(topic, 1)
    before = histogram(post, "postrider_batch_events")
    post.many(kind, [f"k{i % 5}" for i in range(300)])
    assert len(post.read(topic, 301)) == 301

    def counted():
        after = histogram(post, "postrider_batch_events")
        return {le: after[le] - before[le] for le in after}
    wait_until(lambda: counted()[float("inf")] >= 30, 45, "30 batches to be counted")
    new = counted()
    assert new[10.0] == new[float("inf")], new

    with open(post.relay.file, encoding="utf-8") as f:
        good = f.read()
    for text, want in ((good + "limits: {\n", "limits: is set twice"), (good + "x = ;\n", "syntax"), (good.replace("batch_events", "batch_event"), "batch_event"),
                       (good.replace("batch_events = 10", "batch_events = 0"), "batch_events"), ("", "")):
        with open(post.relay.file, "w", encoding="utf-8") as f:
            f.write(text)
        post.relay.hup()
        try:
            answer = post.wait_state("warn")
        finally:
            with open(post.relay.file, "w", encoding="utf-8") as f:
                f.write(good)
        assert want in answer["checks"]["reload"] and answer["checks"]["reload"] != "ok", answer
        assert "relay.cfg" in answer["checks"]["reload"] or not text
        post.publish(kind, "still", type="T")
        post.relay.hup()
        post.wait_state("ok")
    assert len(post.read(topic, 306)) == 306
    # What needs a restart is not taken halfway.
    post.relay.rewrite({"limits": {"batch_events": 1000}, "log": {"level": "info"}, "name": post.name + "-other"})
    post.relay.hup()
    wait_until(lambda: post.relay.log_text().count("configuration reloaded") >= 7 or
               post.readyz()[1]["checks"]["reload"] != "ok", 45, "an answer")
    assert post.relay.status()["name"] == post.name
    post.relay.rewrite({"name": post.name})
    post.relay.hup()
    post.wait_state("ok")
    assert post.relay.running() and config["name"] == post.name


def test_second_signal_and_drain(post):
    """SIGTERM drains and exits 0: what was taken is published and the position says so."""
    kind, topic = post.kind()
    post.many(kind, [f"k{i % 50}" for i in range(3000)])
    assert post.relay.terminate() == 0
    post.relay.start().wait_ready()
    records = post.read(topic, 3000)
    ids = {header(r, "id") for r in records}
    assert len(ids) == 3000
    if post.relay.config["delivery"] == "exactly_once":
        assert len(records) == 3000


def test_broken_from_the_start(pg_server, kafka, tmp_path):
    """A relay started with a bad file says so in one line and exits 78 before it touches anything."""
    r = servers.Relay("dbname=x", "127.0.0.1:1", name="bad", config={"limits": {"batch_evnts": 3}})
    r.start()
    assert r.wait(60) == 78
    assert "batch_evnts" in r.log_text() and "batch_events" in r.log_text() and "relay.cfg:" in r.log_text()
