"""tests/e2e/test_notify.py -- what the service manager hears on $NOTIFY_SOCKET: ready when the loops run, whoever else is
away; a sign of life only while every loop comes round; the end, and a reload. A Python socket stands in for systemd."""
import json
import os
import socket

import pytest
import servers
from inbox import SET, inbox  # noqa: F401
from outbox import Outbox
from service import Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
WATCHDOG_MS = 600


class Manager:
    """The socket that systemd would have: by path, or abstract."""

    def __init__(self, path):
        self.name, self.words = path, []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind("\0" + path[1:] if path[0] == "@" else path)

    def env(self, **more):
        return {"NOTIFY_SOCKET": self.name, "WATCHDOG_USEC": str(WATCHDOG_MS * 1000), **more}

    def read(self):
        """All that was said so far, a (name, value) each."""
        while True:
            try:
                text = self.socket.recv(4096).decode()
            except BlockingIOError:
                return self.words
            self.words += [tuple(line.split("=", 1)) for line in text.splitlines()]

    def names(self):
        return [name for name, _ in self.read()]

    def wait(self, name, timeout=60, n=1):
        wait_until(lambda: self.names().count(name) >= n, timeout, f"{n} times {name}, heard {self.words[-20:]}")

    def status(self):
        return next((value for name, value in reversed(self.read()) if name == "STATUS"), None)


@pytest.fixture
def manager(tmp_path):
    m = Manager(str(tmp_path / "notify"))
    yield m
    m.socket.close()


def begins_and_ends(m, d):
    """READY comes before any sign of life, signs keep coming, SIGHUP is told, and so is the end."""
    m.wait("READY")
    m.wait("WATCHDOG", n=3)
    assert m.names().index("READY") < m.names().index("WATCHDOG")
    d.hup()
    m.wait("READY", n=2)
    names = m.names()
    assert names.index("RELOADING") < len(names) - names[::-1].index("READY")
    assert dict(m.read())["MONOTONIC_USEC"].isdigit()
    assert d.terminate() == 0
    said = m.read()
    assert ("STOPPING", "1") in said and int(dict(said)["EXTEND_TIMEOUT_USEC"]) > 10_000_000
    assert "READY" not in [name for name, _ in said[said.index(("STOPPING", "1")):]]


def hangs(m, d, gate, thread, poke=lambda: None):
    """While the loop stands still no sign of life comes, /healthz names it, and both come back with the loop."""
    m.wait("WATCHDOG", n=2)
    open(gate, "w").close()
    poke()
    wait_until(lambda: os.path.exists(gate + ".held"), 20, "the loop to stand still")
    wait_until(lambda: d.get("/healthz")[0] == 503, 60, "/healthz to tell")
    body = json.loads(d.get("/healthz")[1])
    assert body["status"] == "hung" and body["thread"] == thread
    if thread != "main":  # who hangs says nothing
        wait_until(lambda: (m.status() or "").startswith("hung: the " + thread), 30, "STATUS to tell")
    before = m.names().count("WATCHDOG")
    told = body["seconds"]
    wait_until(lambda: json.loads(d.get("/healthz")[1])["seconds"] > told + 4 * WATCHDOG_MS / 1000, 20, "it to hang on")
    assert m.names().count("WATCHDOG") == before
    os.unlink(gate)
    wait_until(lambda: d.get("/healthz") == (200, '{"status":"ok"}\n'), 20, "the loop to come round")
    m.wait("WATCHDOG", n=before + 1)


def test_relay_is_ready_with_nobody_there(relay, manager):
    """Neither Postgres nor Kafka: a manager that waited for them would start nothing after a power cut. What is wrong is told."""
    nobody = servers.free_port()
    r = relay(f"host=127.0.0.1 port={nobody} user=postgres dbname=postgres", f"127.0.0.1:{nobody}").start(env=manager.env())
    wait_until(lambda: (manager.status() or "").startswith("error: "), 60, "STATUS to tell")
    begins_and_ends(manager, r)


def test_consumer_is_ready_with_nobody_there(manager):
    nobody = servers.free_port()
    c = servers.Consumer(f"host=127.0.0.1 port={nobody} user=postgres dbname=postgres", f"127.0.0.1:{nobody}", "g", ["t"],
                         {"kind": "sql", "function": "seat.f"}).start(env=manager.env())
    begins_and_ends(manager, c)


def test_service_is_ready_with_nobody_there(manager):
    nobody = servers.free_port()
    s = Service("order", f"host=127.0.0.1 port={nobody} user=postgres dbname=postgres").start(env=manager.env())
    wait_until(lambda: (manager.status() or "").startswith("postgres_away: "), 60, "STATUS to tell")
    begins_and_ends(manager, s)


def test_abstract_socket(relay):
    """Containers get one: "@" stands for the NUL that it begins with."""
    m = Manager(f"@postrider-test-{os.getpid()}")
    nobody = servers.free_port()
    r = relay(f"host=127.0.0.1 port={nobody} user=postgres dbname=postgres", f"127.0.0.1:{nobody}").start(env=m.env())
    begins_and_ends(m, r)
    m.socket.close()


def test_no_watchdog_of_another(relay, manager):
    """$WATCHDOG_PID names whom the time is meant for; of somebody else's we say nothing. And a wrong configuration is no start."""
    nobody = servers.free_port()
    conninfo = f"host=127.0.0.1 port={nobody} user=postgres dbname=postgres"
    r = relay(conninfo, f"127.0.0.1:{nobody}").start(env=manager.env(WATCHDOG_PID="1"))
    manager.wait("READY")
    wait_until(lambda: (manager.status() or "").startswith("error: "), 60, "STATUS to tell")
    assert "WATCHDOG" not in manager.names()
    r.kill()
    wrong = relay(conninfo, f"127.0.0.1:{nobody}", config={"limits": {"batch_event": 1}}).start(env=manager.env())
    assert wrong.wait(30) == 78 and manager.names().count("READY") == 1


def test_relay_hangs(pg_server, kafka, manager, tmp_path):
    """The reader stands still in the middle of a turn: nothing is read, HTTP and the main thread live."""
    gate = str(tmp_path / "gate")
    with Outbox(pg_server, kafka, "notify", config={"source": {"timeout": "1s"}},
                env=manager.env(POSTRIDER_HOLD=f"bounds:{gate}")) as o:
        kind, _ = o.kind()
        o.start()
        hangs(manager, o.relay, gate, "reader", lambda: o.publish(kind, "a"))


def test_consumer_hangs(inbox, manager, tmp_path):  # noqa: F811
    """The thread that polls the group stands still."""
    gate = str(tmp_path / "gate")
    i = inbox()
    c = i.consumer(SET, config={"kafka": {"timeout": "1s"}}, env=manager.env(POSTRIDER_HOLD=f"group_turn:{gate}")).start()
    i.wait_state(c, "ok")
    wait_until(lambda: (manager.status() or "").startswith("ok: "), 30, "STATUS to tell")
    hangs(manager, c, gate, "group")


def test_service_hangs(db, manager, tmp_path):
    """The main loop of a service stands still in its look at the database, while it answers requests."""
    gate = str(tmp_path / "gate")
    s = Service("order", db.conninfo, config={"database": {"conninfo": db.conninfo, "timeout": "1s"}}).start(
        env=manager.env(POSTRIDER_HOLD=f"service_look:{gate}"))
    s.wait_ready()
    hangs(manager, s, gate, "main")
