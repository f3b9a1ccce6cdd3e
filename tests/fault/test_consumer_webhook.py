"""tests/fault/test_consumer_webhook.py -- H1: a receiver that does to an http handler what receivers do. Time and bytes
are bounded, nothing is followed, and whoever is well gets each event once, in order."""
import collections
import contextlib
import gzip
import json
import re
import socket
import struct
import threading

import pytest
from inbox import inbox  # noqa: F401

pytestmark = pytest.mark.timeout(240)


class Hostile:
    """A server that answers by the key of the event: its first word is what it does."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.heard = collections.defaultdict(list)  # key: seqs, in order
        self.elsewhere = 0
        self.asked = collections.Counter()
        self.bomb = gzip.compress(b"\0" * (64 << 20))
        self.end = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def close(self):
        self.end.set()
        self.socket.close()

    def serve(self, connection):
        with contextlib.suppress(OSError, ValueError), connection:
            f = connection.makefile("rb")
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = f.readline()
                    if not line:
                        return
                    head += line
                body = f.read(int(re.search(rb"content-length: (\d+)", head.lower()).group(1)))
                if head.startswith(b"POST /elsewhere"):
                    self.elsewhere += 1
                event = json.loads(body)
                self.asked[event["key"]] += 1
                if not self.answer(connection, event["key"].split("-")[0], event):
                    return

    def answer(self, c, how, event):
        """Whether the connection goes on."""
        def say(status, headers="", body=b""):
            c.sendall(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            return True
        if how == "good":
            self.heard[event["key"]].append(event["payload"]["seq"])
            return say("200 OK")
        if how in ("500", "410"):
            return say(f"{how} No", "", b"no " * 10)
        if how == "429":
            return say("429 Slow down", "Retry-After: 1\r\n")
        if how == "302":
            return say("302 Found", f"Location: http://127.0.0.1:{self.port}/elsewhere\r\n")
        if how == "bomb":
            return say("400 Bad", "Content-Encoding: gzip\r\n", self.bomb)
        if how == "endless":
            c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not self.end.is_set():
                c.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        if how == "drip":
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self.end.wait(0.05):
                c.sendall(b"x")
        if how == "reset":
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "noise":
            c.sendall(b"\x15\x03\x01\x00\x02\x02\x46 not HTTP at all\r\n\r\n")
        return False


@pytest.fixture
def hostile():
    h = Hostile()
    yield h
    h.close()


def test_h1_hostile_receiver(inbox, hostile):  # noqa: F811
    """5xx, 429 with Retry-After, a redirect, a slow body, one without an end, a reset, 410, a gzip bomb, noise: each of
    these keys ends where the rules say, within time and bytes, and the good keys do not notice."""
    i = inbox()
    kinds = ("500", "410", "429", "302", "bomb", "endless", "drip", "reset", "noise")
    bad = {i.event(kind + "-1"): kind for kind in kinds}
    for n in range(200):
        i.event(f"good-{n % 10}")
    i.flush()
    c = i.consumer({"kind": "http", "url": f"http://127.0.0.1:{hostile.port}/events", "timeout": "4s"}, {
        "errors": [{"match": "*", "policy": "park", "attempts": 2, "backoff": "100ms", "backoff_max": "200ms"}]}).start()
    c.wait_ready(90)
    dead = {bad[r[0]]: r[1:3] for r in i.wait_dead(len(kinds) - 1, 90)}
    i.stands()
    assert {k: [x for x in v] for k, v in hostile.heard.items()} == {f"good-{k}": list(range(1, 21)) for k in range(10)}
    assert {k: dead[k] for k in ("500", "410", "429", "302", "bomb")} == {
        "500": ("http", "500"), "410": ("http", "410"), "429": ("http", "429"), "302": ("http", "302"),
        "bomb": ("http", "400")}
    assert dead["drip"][0] == "timeout" and dead["reset"][0] == dead["noise"][0] == "http"
    assert "endless" not in dead and hostile.asked["endless-1"] == 1, "it said 200; the rest is not read"
    assert hostile.elsewhere == 0, "no redirect is followed"
    assert {hostile.asked[k + "-1"] for k in ("410", "302", "bomb")} == {2}, "as often as the rule says"
    assert c.peak_rss_kb() < 100 << 10
    assert i.parked() == []


def test_h1_receiver_without_a_certificate(inbox, hostile):  # noqa: F811
    """TLS where there is none: the breaker, not a grave for every event."""
    i = inbox()
    i.send(20)
    c = i.consumer({"kind": "http", "url": f"https://127.0.0.1:{hostile.port}/events", "timeout": "4s"}).start()
    answer = i.wait_state(c, "error")
    assert "no answer" in json.dumps(answer) and answer["checks"]["breaker_open"] is True
    assert i.dead() == [] and i.parked() == [] and not hostile.asked
