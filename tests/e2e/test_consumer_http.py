"""tests/e2e/test_consumer_http.py -- the whole consumer with an http handler, against receivers that
refuse, are away, are late, or die between an effect and its record.

What a receiver saw is written down in the receiver, never asked of the consumer.
"""
import base64
import collections
import hashlib
import hmac
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import servers
from inbox import inbox  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(400)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECOND = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
EXAMPLE = os.path.join(servers.ROOT, "docs", "examples", "handlers", "webhook_receiver.py")

Request = collections.namedtuple("Request", "id headers body event")


class Receiver:
    """An HTTP server in this process. judge(event) -> status, or (status, headers), or (status, headers, body)."""

    def __init__(self, judge=lambda event: 204, port=0):
        self.judge, self.seen, self.lock = judge, [], threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = json.loads(body)
                with receiver.lock:
                    receiver.seen.append(Request(self.headers["webhook-id"], dict(self.headers), body, event))
                verdict = receiver.judge(event)
                status, headers, text = (verdict if isinstance(verdict, tuple) else (verdict,)) + ({}, b"")[
                    len(verdict) - 1 if isinstance(verdict, tuple) else 0:]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a consumer that was killed hangs up
        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/events"

    def ids(self, op="do"):
        with self.lock:
            return [r.event["id"] for r in self.seen if r.event["op"] == op]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    """receiver(judge, port=...) starts one."""
    made = []

    def make(*args, **more):
        made.append(Receiver(*args, **more))
        return made[-1]
    yield make
    for r in made:
        r.close()


def http(url, **more):
    return {"kind": "http", "url": url, **more}


def seqs_by_key(requests):
    out = collections.defaultdict(list)
    for r in requests:
        out[r.event["key"]].append(r.event["payload"]["seq"])
    return out


def in_order(requests):
    """Per key the numbers never go back; a repetition is allowed."""
    return all(a <= b for seqs in seqs_by_key(requests).values() for a, b in zip(seqs, seqs[1:]))


@pytest.mark.asan
@pytest.mark.tsan
def test_each_event_is_posted_once_and_in_order(inbox, receiver):  # noqa: F811
    """The ordinary case: many keys at once, each key strictly in order, each event one signed request."""
    box, got = inbox(), receiver()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    ids = box.send(300)
    box.put("traced", b'{"seq": 1}', [("id", "6f0d0b6e-31e4-4f62-9c2d-0e60a1f7a4f1"), ("traceparent", trace)])
    box.flush()
    c = box.consumer(http(got.url, secret="env:WEBHOOK_SECRET", headers=["X-Team: seat", "Authorization: env:TOKEN"]),
                     env={"WEBHOOK_SECRET": f"{SECRET} {SECOND}", "TOKEN": "Bearer s3cret"}).start().wait_ready()
    box.stands()
    assert sorted(got.ids()) == sorted(ids + ["6f0d0b6e-31e4-4f62-9c2d-0e60a1f7a4f1"])
    assert in_order(got.seen)
    for r in got.seen:
        assert r.id == r.headers["Idempotency-Key"] == r.event["id"]
        assert r.event["op"] == "do" and r.event["topic"] == box.topic
        assert r.headers["X-Team"] == "seat" and r.headers["Authorization"] == "Bearer s3cret"
        assert r.headers["Content-Type"] == "application/json"
        signed = f"{r.id}.{r.headers['webhook-timestamp']}.".encode() + r.body
        want = ["v1," + base64.b64encode(hmac.new(base64.b64decode(s[6:]), signed, hashlib.sha256).digest()).decode()
                for s in (SECRET, SECOND)]
        assert r.headers["webhook-signature"] == " ".join(want)
    assert [r.headers["traceparent"] for r in got.seen if r.event["key"] == "traced"] == [trace]
    assert not any("traceparent" in r.headers for r in got.seen if r.event["key"] != "traced")
    wait_until(lambda: c.metric('postrider_consumer_handled_total') == 301, 30, "301 handled events")
    assert not box.dead() and not box.parked()
    assert c.terminate() == 0


def test_a_duplicate_is_not_posted_again(inbox, receiver):  # noqa: F811
    """The same id twice on the topic: the receiver hears of it once."""
    box, got = inbox(), receiver()
    first = box.event("k1")
    box.event("k1")
    box.flush()
    c = box.consumer(http(got.url)).start().wait_ready()
    box.stands()
    box.put("k1", json.dumps({"seq": 1}), [("id", first), ("type", "Moved")])
    box.event("k1")
    box.flush()
    box.stands()
    assert [r.event["payload"]["seq"] for r in got.seen] == [1, 2, 3]
    wait_until(lambda: c.metric("postrider_inbox_duplicates_total") == 1, 30, "the duplicate to be counted")


class Example:
    """docs/examples/handlers/webhook_receiver.py, which may be killed and started again."""

    def __init__(self, dir):
        self.dir, self.port, self.proc = str(dir), servers.free_port(), None

    def start(self):
        log = os.path.join(self.dir, "receiver.log")
        open(log, "w").close()
        self.proc = servers.spawn([sys.executable, "-B", EXAMPLE, "--port", str(self.port), "--database",
                                   os.path.join(self.dir, "seats.db")], log=log,
                                  env=dict(os.environ, WEBHOOK_SECRET=SECRET))
        wait_until(lambda: "listening on" in open(log).read(), 60, "the example")
        return self

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/events"

    def seats(self):
        with urllib.request.urlopen(self.url.replace("/events", "/seats"), timeout=30) as r:
            return {s["seat"]: (s["user"], s["times"]) for s in json.load(r)}


@pytest.fixture
def example(tmp_path):
    e = Example(tmp_path).start()
    yield e
    e.kill()


def test_a_kill_between_effect_and_record(inbox, example):  # noqa: F811
    """The consumer dies after the receiver's answer, before its own transaction: the requests come again, with
    the same ids, and a receiver that remembers ids (docs/examples) applies each event once."""
    box = inbox(partitions=1)
    for i in range(60):
        box.event(f"k{i % 7}", {"seat": f"S{i}", "user": "ann"})
    box.flush()
    c = box.consumer(http(example.url, secret="env:WEBHOOK_SECRET", undo=True), env={"WEBHOOK_SECRET": SECRET})
    c.start(fault="handled_before_recorded:2")
    assert c.wait() == -signal.SIGKILL
    c.start().wait_ready()
    box.stands()
    assert example.seats() == {f"S{i}": ("ann", 1) for i in range(60)}
    assert not box.dead() and c.terminate() == 0


def test_partitions_wander_under_load(inbox, receiver):  # noqa: F811
    """Members come and go while a slow receiver works: requests may come twice, but the first time that an event
    comes, all before it of its key have come."""
    box = inbox(partitions=4)
    never = threading.Event()
    got = receiver(lambda event: never.wait(0.02) or 204)
    box.send(1200, keys=40)
    first = box.member(http(got.url)).start()
    wait_until(lambda: len(got.seen) > 100, 60, "the first hundred requests")
    second = box.member(http(got.url)).start()
    wait_until(lambda: len(got.seen) > 400, 60, "more requests")
    assert first.terminate() == 0
    box.stands(90)
    assert second.running() and not box.dead() and not box.parked()
    assert len(set(got.ids())) == 1200
    for key, ids in box.keys.items():
        assert list(dict.fromkeys(r.id for r in got.seen if r.event["key"] == key)) == ids, key


def test_both_sides_die_under_load(inbox, example):  # noqa: F811
    """Events arrive all the time; the receiver and both members of the group are killed again and again. In the
    end each event was applied once, and the last of each key is the last that was sent."""
    box = inbox()
    handler = http(example.url, secret="env:WEBHOOK_SECRET", timeout="3s")
    members = [box.consumer(handler, env={"WEBHOOK_SECRET": SECRET}).start() for _ in range(2)]
    end, most = threading.Event(), [2000]  # what is sent before it is handled must be handled in the end, on any machine

    def applied():
        n = sum(times for _, times in example.seats().values())
        most[0] = n + 2000
        return n

    def load():
        for i in range(100000):
            while i >= most[0] and not end.wait(0.05):
                pass
            key = f"k{i % 40}"
            box.event(key, {"seat": key, "user": str(len(box.keys[key]) + 1)})
            box.producer.poll(0)
            if end.wait(0.003):
                return
    t = threading.Thread(target=load, daemon=True)
    t.start()
    try:
        for n in range(4):
            before = applied()
            wait_until(lambda: applied() > before + 50, 60, "effects to come")  # noqa: B023
            members[n % 2].kill9()
            example.kill()
            example.start()
            members[n % 2].start()
    finally:
        end.set()
        t.join()
    box.flush()
    box.stands(120)
    assert example.seats() == {key: (str(len(ids)), len(ids)) for key, ids in box.keys.items()}
    assert not box.dead() and not box.parked()


@pytest.mark.asan
def test_a_receiver_that_is_away(inbox, receiver):  # noqa: F811
    """Nobody listens: not one event may be buried for it. The breaker opens, /readyz says so, the group is
    kept; when the receiver is back, everything goes on by itself, in order."""
    box = inbox()
    port = servers.free_port()
    c = box.consumer(http(f"http://127.0.0.1:{port}/events")).start()
    ids = box.send(120)
    answer = box.wait_state(c, "error")
    assert "127.0.0.1" in json.dumps(answer), answer
    stays(lambda: not box.dead() and not box.parked(), 0.5, "nothing is held back")
    got = receiver(port=port)
    box.stands(60)
    c.wait_ready()
    assert sorted(got.ids()) == sorted(ids) and in_order(got.seen)
    assert not box.dead()


def test_a_receiver_that_is_overloaded(inbox, receiver):  # noqa: F811
    """503 with Retry-After: asked again when it said, not before."""
    times = []

    def judge(event):
        times.append(time.monotonic())
        return (503, {"Retry-After": "2"}) if len(times) == 1 else 204
    box, got = inbox(partitions=1), receiver(judge)
    box.consumer(http(got.url)).start().wait_ready()
    box.event("k")
    box.flush()
    box.stands()
    assert len(got.seen) == 2 and times[1] - times[0] >= 1.9
    assert not box.dead()


def test_a_refused_event_becomes_a_dead_letter(inbox, receiver):  # noqa: F811
    """422 is about this event: it is buried with the receiver's own words, the others of its key go on."""
    box = inbox()
    got = receiver(lambda e: (422, {}, b"seat \x00A1\n is taken \xff") if e["payload"]["seq"] == 2 and e["key"] == "k3"
                   else 200)
    box.send(80, keys=8)
    c = box.consumer(http(got.url)).start().wait_ready()
    box.stands()
    refused = [i for i, at in box.sent.items() if at == ("k3", 2)][0]
    ((id, cls, code, reason, attempts, state),) = box.dead()
    assert (id, cls, code, attempts, state) == (refused, "http", "422", 1, "dead")
    assert reason.endswith("answers 422: seat  A1  is taken ?"), reason
    assert seqs_by_key(got.seen)["k3"] == list(range(1, 11)) and in_order(got.seen)
    wait_until(lambda: [v for k, v in c.metrics().items() if "handled_total{" in k and 'outcome="dead_letter"' in k] == [1], 30,
               "the dead letter to be counted")


@pytest.mark.tsan
def test_a_parked_key_waits_in_order(inbox, receiver):  # noqa: F811
    """A rule parks 409: the key waits with all behind it, the others do not; then it goes on in order."""
    open_again = threading.Event()
    box = inbox()
    got = receiver(lambda e: 409 if e["key"] == "k3" and e["payload"]["seq"] >= 2 and not open_again.is_set() else 200)
    box.send(80, keys=8)
    c = box.consumer(http(got.url), {"errors": [
        {"match": "http:409", "policy": "park", "attempts": 0, "backoff": "100ms", "backoff_max": "300ms"}]}).start()
    box.stands()
    box.wait_parked(9)
    done = seqs_by_key(r for r in got.seen if r.event["key"] != "k3")
    assert len(done) == 7 and all(seqs == list(range(1, 11)) for seqs in done.values())
    assert set(seqs_by_key(got.seen)["k3"]) == {1, 2}
    open_again.set()
    box.wait_parked(0)
    k3 = seqs_by_key(got.seen)["k3"]
    assert k3 == sorted(k3) and set(k3) == set(range(1, 11)) and k3.count(3) == 1
    assert not box.dead()
    c.wait_ready()


@pytest.mark.asan
def test_a_stop_does_not_wait_for_a_receiver_that_hangs(inbox, receiver):  # noqa: F811
    """SIGTERM with a request under way that nobody answers: it is waited for as long as shutdown.drain says and no longer,
    and that try does not count, though the rule would bury the event for one timeout."""
    hang = threading.Event()

    def judge(event):
        if not hang.is_set():
            hang.wait(60)
        return 200
    box, got = inbox(partitions=1), receiver(judge)
    conf = {"errors": [{"match": "timeout", "policy": "dead_letter"}], "shutdown": {"drain": "2s"}}
    c = box.consumer(http(got.url, timeout="60s"), conf).start().wait_ready()
    id = box.event("k")
    box.flush()
    wait_until(got.ids, 45, "the request")
    since = time.monotonic()
    assert c.terminate() == 0
    assert time.monotonic() - since < 30  # the receiver hangs for 60
    assert not box.dead() and not box.parked()
    hang.set()
    c.start().wait_ready()
    box.stands()
    assert got.ids() == [id, id] and not box.dead()


def test_a_late_answer_is_a_timeout(inbox, receiver):  # noqa: F811
    """A receiver that does not answer one event: class timeout, by its rule, and others are not buried with it."""
    box = inbox(partitions=1)
    hang = threading.Event()
    got = receiver(lambda e: hang.wait(60) and 200 if e["key"] == "slow" else 200)
    box.event("slow")
    ids = [box.event(f"k{i}") for i in range(50)]
    box.flush()
    box.consumer(http(got.url, timeout="5s"), {"errors": [  # what a busy machine keeps for the others
        {"match": "timeout", "policy": "retry", "attempts": 2, "backoff": "50ms"}]}).start().wait_ready()
    box.stands()
    hang.set()
    ((_, cls, code, reason, attempts, _),) = box.dead()
    assert (cls, code, attempts) == ("timeout", "", 2) and "did not answer within 5000 ms" in reason
    assert set(ids) <= set(got.ids())


def test_undo_is_asked_for(inbox, receiver):  # noqa: F811
    """With handler.undo an event that is given up is undone first: op = undo, under an id of its own."""
    box = inbox(partitions=1)
    got = receiver(lambda e: 422 if e["op"] == "do" and e["payload"]["seq"] == 2 else 200)
    box.send(3, keys=1)
    box.consumer(http(got.url, undo=True)).start().wait_ready()
    box.stands()
    asked = [(r.event["op"], r.event["payload"]["seq"], r.id == r.event["id"]) for r in got.seen]
    undone = ("undo", 2, False)
    assert asked.count(undone) == 1 and asked.index(undone) > asked.index(("do", 2, True))
    assert [r.id for r in got.seen if r.event["op"] == "undo"] == [got.ids("undo")[0] + "-undo"]
    assert len(box.dead()) == 1


def test_a_stop_during_an_undo(inbox, receiver):  # noqa: F811
    """SIGTERM while an undo is under way: that undo did not fail, so the event is not parked as one that could
    not be undone. The next run asks again, and buries it."""
    box = inbox(partitions=1)
    hang = threading.Event()

    def judge(event):
        if event["op"] == "undo" and not hang.is_set():
            hang.wait(60)
        return 422 if event["op"] == "do" and event["payload"]["seq"] == 2 else 200
    got = receiver(judge)
    c = box.consumer(http(got.url, undo=True, timeout="60s")).start().wait_ready()
    ids = box.send(3, keys=1)
    wait_until(lambda: got.ids("undo"), 45, "the undo")
    assert c.terminate() == 0
    assert not box.parked() and not box.dead()
    hang.set()
    c.start().wait_ready()
    box.stands()
    assert [d[0] for d in box.dead()] == [ids[1]] and not box.parked()
    assert got.ids("undo") == [ids[1]] * 2


@pytest.mark.parametrize("handler, words", [
    ({"url": "ftp://127.0.0.1/"}, "handler.url"),
    ({"url": "http://me:s3cret@127.0.0.1/"}, "handler.url"),
    ({"headers": ["Content-Length: 1"]}, "Content-Length"),
    ({"headers": ["s3cret"]}, "handler.headers"),
    ({"secret": "env:WEBHOOK_SECRET"}, "handler.secret"),
], ids=["scheme", "credentials", "reserved-header", "no-header", "secret"])
def test_a_bad_config_is_named_and_ends_the_consumer(inbox, handler, words):  # noqa: F811
    """Exit status 78, the option's name, and nothing of the secret; --check says the same."""
    box = inbox(partitions=1)
    env = {"WEBHOOK_SECRET": "whsec_s3cret"}
    c = box.consumer(http(**{"url": "http://127.0.0.1:1/events", **handler}), env=env)
    checked = servers.Cli("postrider-consumer").run("-c", c.file, "--check", env=env)
    assert checked.returncode == 78 and words in checked.stderr and "s3cret" not in checked.stderr
    c.start()
    assert c.wait() == 78, c.log_text()
    assert words in c.log_text() and "s3cret" not in c.log_text()
