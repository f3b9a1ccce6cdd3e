"""tests/fault/test_http_abuse.py -- clients that send anything at all to the admin port, while events flow: the relay publishes on,
answers whoever asks properly, and holds no more memory and sockets than before."""
import contextlib
import errno
import itertools
import os
import random
import socket
import threading

import pytest
from scene import scene  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(400)
HOST = b"Host: 127.0.0.1\r\n"
REQUESTS, CLIENTS, SLOW = 3000, 8, 40
ROOM_KB = 48 << 10  # 64 places of a head, a body and an answer, and what the events' own flow needs


def noise(r):
    return r.randbytes(r.randrange(1, 300))


# Each makes the bytes of one request of its kind. Those behind HALF are no whole request: nobody answers them before their time is over.
KINDS = [
    lambda r: b"GET /status.json HTTP/1.1\r\n\r\n",
    lambda r: b"GET /status.json HTTP/9.9\r\n" + HOST + b"\r\n",
    lambda r: b"GET\r\n\r\n",
    lambda r: b"G" * r.randrange(1, 70000) + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    lambda r: b"GET /" + b"a" * r.randrange(1, 70000) + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    lambda r: b"GET /%00%ff%zz/../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    lambda r: b"GET / HTTP/1.1\r\n" + HOST + b"X-Long: " + b"x" * r.randrange(1, 70000) + b"\r\n\r\n",
    lambda r: b"GET / HTTP/1.1\r\n" + HOST + b"X-Y: z\r\n" * r.randrange(3000) + b"\r\n",
    lambda r: b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    lambda r: b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\n",
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\nx",
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 30\r\n\r\nxyz",
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    lambda r: b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200000,
    lambda r: b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" * 2 + noise(r),
    lambda r: b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
]
HALF = len(KINDS)
KINDS += [
    noise,
    lambda r: b"\x16\x03\x01" + noise(r),
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + noise(r),
    lambda r: b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
    lambda r: b"\r\n" * r.randrange(1, 1000),
    lambda r: b"",
]


def ask(port, text, wait):
    """Sends it; wait: until the other side says something. It may hang up at any time."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as s:
        try:
            s.sendall(text)
            if wait:
                s.recv(65536)
        except OSError as e:
            if isinstance(e, TimeoutError) or e.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET):
                raise


class Slow:
    """Clients in the middle of a request, for ever; one that is shown out comes again."""

    def __init__(self, port, n):
        self.port, self.n, self.over = port, n, threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.begun = self.shown_out = 0

    def _run(self):
        conns = {}
        while not self.over.wait(0.05):
            for i in range(self.n):
                try:
                    if i not in conns:
                        conns[i] = socket.create_connection(("127.0.0.1", self.port), 1)
                        conns[i].sendall(b"GET /status.json HTTP/1.1\r\n" + HOST + b"X-Slow: ")
                        self.begun += 1
                    conns[i].sendall(b"x")
                except OSError:
                    with contextlib.suppress(KeyError):
                        conns.pop(i).close()
                        self.shown_out += 1
        for s in conns.values():
            s.close()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def fds(relay):
    return len(os.listdir(f"/proc/{relay.pid}/fd"))


def answers(relay):
    """It may be behind on a busy machine; it says so, or that it is not."""
    assert wait_until(lambda: relay.get("/readyz", 60), 60, "an answer", ignore=(OSError,))[0] in (200, 503)


def hammer(port, seed):
    """REQUESTS of all kinds, by CLIENTS side by side; returns what went wrong with a client."""
    wrong, turn = [], itertools.count()

    def client(number):
        r = random.Random(seed + number)
        try:
            while (i := next(turn)) < REQUESTS:
                ask(port, KINDS[i % len(KINDS)](r), i % len(KINDS) < HALF)
        except OSError as e:
            wrong.append(repr(e))
    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for t in threads:
        t.start()
    return threads, wrong


def test_anything_at_all(scene, pg_server, kafka):  # noqa: F811
    s = scene(pg_server, kafka, "exactly_once")
    relay = s.relay().start().wait_ready()
    s.load(rate=100)
    s.flows(relay, 500)
    rss, before = relay.rss_kb(), fds(relay)
    seed = random.randrange(1 << 30)
    with Slow(relay.port, SLOW) as slow:
        threads, wrong = hammer(relay.port, seed)
        most = 0
        while any(t.is_alive() for t in threads):
            most = max(most, fds(relay))
            answers(relay)
            threads[-1].join(0.2)
        for t in threads:
            t.join()
        assert not wrong, (seed, wrong)
        wait_until(lambda: slow.shown_out >= SLOW, 60, "the slow ones to be shown out")
    s.flows(relay, 100)
    with Slow(relay.port, 200) as slow:
        wait_until(lambda: slow.begun >= 200, 60, "more slow ones than there are places")
        answers(relay)
        s.flows(relay, 100)
        most = max(most, fds(relay))
    assert relay.running() and most <= before + 64 + 8, (seed, before, most)
    assert relay.peak_rss_kb() <= rss + ROOM_KB, (seed, rss, relay.peak_rss_kb())
    wait_until(lambda: fds(relay) <= before + 2, 60, "their sockets to be closed")
    s.check()
    s.drained(relay)
    assert relay.terminate() == 0
