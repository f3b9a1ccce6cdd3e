"""tests/fault/test_consumer_stop.py -- a stop while a handler outside is at work: what it answers within shutdown.drain
is committed, and does not happen again."""
import collections
import contextlib
import glob
import http.server
import json
import os
import signal
import threading

import psycopg2
import pytest
import servers
from inbox import exec_effects, exec_handler, inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)


class Slow(http.server.ThreadingHTTPServer):
    """Answers each POST once .go is set; .asked counts them by id, .waiting those without an answer."""
    daemon_threads = True

    def __init__(self):
        self.asked, self.waiting, self.go = collections.Counter(), 0, threading.Event()
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked[event["id"]] += 1
        self.server.waiting += 1
        self.server.go.wait(60)
        self.server.waiting -= 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def slow():
    s = Slow()
    yield s
    s.go.set()
    s.shutdown()
    s.server_close()


def test_requests_under_way_are_finished(inbox, slow):  # noqa: F811
    """Story: a deployment stops the consumer while the receiver takes its time. What is under way is answered a moment
    later, committed, and not sent again by the next start; what was not begun is not begun any more."""
    i = inbox(partitions=1)
    i.send(12, keys=12)
    c = i.consumer({"kind": "http", "url": f"http://127.0.0.1:{slow.server_port}/", "concurrency": 4},
                   {"lanes": 1, "shutdown": {"drain": "30s"}}).start()
    wait_until(lambda: slow.waiting == 4, 60, "four requests")
    c.signal(signal.SIGTERM)
    wait_until(lambda: "draining" in c.log_text(), 30, "the stop")
    c.signal(signal.SIGHUP)  # a rotation of logs comes in between
    slow.go.set()
    assert c.wait(60) == 0
    assert sum(slow.asked.values()) == 4
    c.start()
    i.stands()
    assert set(slow.asked) == set(i.sent) and set(slow.asked.values()) == {1}


def test_a_receiver_that_never_answers_does_not_hold_the_stop_up(inbox, slow):  # noqa: F811
    i = inbox(partitions=1)
    i.send(12, keys=12)
    c = i.consumer({"kind": "http", "url": f"http://127.0.0.1:{slow.server_port}/", "concurrency": 4},
                   {"lanes": 1, "shutdown": {"drain": "2s"}}).start()
    wait_until(lambda: slow.waiting == 4, 60, "four requests")
    assert c.terminate(20) == 0  # sooner than handler.timeout
    slow.go.set()
    c.start()
    i.stands()
    assert sorted(slow.asked.values()) == [1] * 8 + [2] * 4


def test_lines_under_way_are_answered(inbox):  # noqa: F811
    """The same with a subprocess: it has read its line, and takes its time."""
    i = inbox(partitions=1)
    directory = servers.new_dir("effects")
    for n in range(4):
        with open(f"{directory}/k{n}", "w", encoding="ascii") as f:
            f.write("gate")
    i.send(4, keys=4)
    c = i.consumer(exec_handler(directory, concurrency=2), {"lanes": 1, "shutdown": {"drain": "30s"}}).start()
    wait_until(lambda: glob.glob(f"{directory}/at.*"), 60, "a line to be read")
    c.signal(signal.SIGTERM)
    wait_until(lambda: "draining" in c.log_text(), 30, "the stop")
    with open(f"{directory}/gate", "w", encoding="ascii"):
        pass
    assert c.wait(60) == 0
    done = exec_effects(directory)
    assert 1 <= len(done) <= 3, done
    c.start()
    i.stands()
    assert collections.Counter(e[0] for e in exec_effects(directory)) == {x: 1 for x in i.sent}


def test_a_parked_event_under_way_is_finished(inbox, slow):  # noqa: F811
    """Story: the next try of a parked event is under way at the stop. It is answered, and the event is gone; one that
    is not answered in time has used no try up, however often that happens."""
    i = inbox(partitions=1)
    config = {"lanes": 1, "errors": [{"match": "http:connect", "policy": "park", "attempts": 0, "backoff": "10ms",
                                      "backoff_max": "20ms"}]}
    handler = {"kind": "http", "url": f"http://127.0.0.1:{servers.free_port()}/", "concurrency": 4}
    i.send(1, keys=1)
    c = i.consumer(handler, config).start()
    i.wait_parked(1)
    assert c.terminate() == 0
    attempts = i.parked("attempts")[0][0]
    handler["url"] = f"http://127.0.0.1:{slow.server_port}/"
    c = i.consumer(handler, {**config, "shutdown": {"drain": "1s"}}, port=c.port)
    for n in range(4):
        c.start()
        wait_until(lambda: sum(slow.asked.values()) == n + 1, 60, "the next try")
        assert c.terminate(20) == 0
        assert i.parked("attempts, class") == [(attempts, "http")]
    c = i.consumer(handler, config, port=c.port).start()
    wait_until(lambda: sum(slow.asked.values()) == 5, 60, "the next try")
    c.signal(signal.SIGTERM)
    slow.go.set()
    assert c.wait(60) == 0
    assert i.parked() == []


def cpu_seconds(c):
    with open(f"/proc/{c.proc.pid}/stat", encoding="ascii") as f:
        user, system = f.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def spent_draining(c):
    """Sends SIGTERM; seconds of a core from then to the end."""
    c.signal(signal.SIGTERM)
    wait_until(lambda: "draining" in c.log_text(), 30, "the stop")
    used = [cpu_seconds(c)]

    def ended():
        with contextlib.suppress(OSError):
            used.append(cpu_seconds(c))
        return not c.running()
    wait_until(ended, 60, "the end")
    return used[-1] - used[0]


def test_a_drain_does_not_spin(inbox, slow):  # noqa: F811
    """Story: while a stop waited for a request under way, the poll thread went round and round: a core burnt for all
    of shutdown.drain."""
    i = inbox(partitions=2)
    i.send(1, keys=1)
    c = i.consumer({"kind": "http", "url": f"http://127.0.0.1:{slow.server_port}/", "timeout": "30s"},
                   {"lanes": 1, "shutdown": {"drain": "4s"}}).start()
    wait_until(lambda: slow.waiting == 1, 60, "the request")
    assert spent_draining(c) < 0.3


def test_a_claim_that_waits_does_not_spin_at_a_stop(inbox, slow):  # noqa: F811
    """The same while partitions are claimed anew and the table is locked: nor does who tries to claim them."""
    i = inbox(partitions=2)
    i.send(1, keys=1)
    c = i.consumer({"kind": "http", "url": f"http://127.0.0.1:{slow.server_port}/", "timeout": "30s"},
                   {"lanes": 1, "shutdown": {"drain": "4s"}}).start()
    wait_until(lambda: slow.waiting == 1, 60, "the request")
    with contextlib.closing(psycopg2.connect(i.db.conninfo)) as other, other.cursor() as cur:
        cur.execute("LOCK TABLE inbox.position IN ACCESS EXCLUSIVE MODE")
        i.member({"kind": "http", "url": f"http://127.0.0.1:{slow.server_port}/"}).start()
        wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND"
                                 " wait_event_type = 'Lock'", (f"% {i.group} claim",)) == 2, 60, "both to wait")
        assert spent_draining(c) < 0.3
