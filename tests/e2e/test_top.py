"""tests/e2e/test_top.py -- `postrider top`: a screen that fits, follows the terminal's size and always gives the terminal back;
one plain listing in a pipe. The programs are played by a small HTTP server.
"""
import contextlib
import fcntl
import http.server
import json
import os
import re
import signal
import struct
import termios
import threading

import pytest

import servers
from test_cli import Terminal
from wait import wait_until

RELAY = {"name": "orders", "version": "1", "state": "ok", "sentence": "everything flows", "hint": "", "lag_seconds": 0.25,
         "pending_events": 1234, "parked_events": 7, "problems": [], "rates": {"events_per_second": 55.5}}
CONSUMER = {"group": "seat", "state": "warn", "sentence": "3 messages are parked \x1b[2Jevil", "hint": "postrider parked list -g seat",
            "lag_seconds": 12.0, "lag_events": 40, "parked_events": 3, "dead_letters": 2, "rates": {"events_per_second": 5},
            "partitions": [{"topic": "outbox.event.order", "partition": p, "lag_events": p, "lag_seconds": 0.5 if p else None, "lanes": 4}
                           for p in range(40)]}


class Program:
    """Says status; counts how often it was asked; gone: it hangs up."""

    def __init__(self, status, port=0):
        self.status, self.asked, self.published = status, 0, 0
        me = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/metrics":
                    me.published += 100
                    body = f'postrider_published_total{{topic="outbox.event.order",outbox="orders"}} {me.published}\n'
                else:
                    me.asked += 1
                    body = json.dumps(me.status)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def relay():
    with contextlib.closing(Program(dict(RELAY))) as p:
        yield p


@pytest.fixture
def consumer():
    with contextlib.closing(Program(dict(CONSUMER))) as p:
        yield p


class Screen(Terminal):
    """What stands on the screen now: the last whole frame, line by line."""

    def now(self):
        self.read(0.05)
        frame = self.text.rsplit("\x1b[H", 1)[-1]
        if "\x1b[J" not in frame:
            frame = self.text.rsplit("\x1b[H", 2)[-2]
        return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip("\r") for line in frame.split("\x1b[J")[0].split("\n")]

    def wait(self, what, timeout=45):
        try:
            wait_until(lambda: "\x1b[J" in self.read(0.05) and what in "\n".join(self.now()), timeout, what)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.now()}") from None
        return self.now()

    def resize(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.killpg(self.proc.pid, signal.SIGWINCH)

    def settings(self):
        return termios.tcgetattr(self.master)


def restored(screen, before):
    assert screen.settings() == before
    assert screen.text.count("\x1b[?1049h") == screen.text.count("\x1b[?1049l") > 0
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")


def start(*args, columns=80, lines=24):
    """The terminal's settings before top changes them are those of a new pseudo-terminal."""
    s = Screen("top", "--every", "200ms", *args, columns=columns, lines=lines)
    return s


@pytest.fixture
def before():
    import pty
    master, slave = pty.openpty()
    settings = termios.tcgetattr(master)
    os.close(master)
    os.close(slave)
    return settings


def test_screen_fits_and_q_restores(relay, consumer, before):
    s = start(relay.url, consumer.url)
    lines = s.wait("seat")
    s.wait("orders")
    lines = s.wait("55.5")
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines), lines
    assert re.search(r"> orders +relay +ok +250 ms +1,234 +55.5 +7 +-", "\n".join(lines))
    assert re.search(r"  seat +consumer +warn +12.0 s +40 +5.0 +3 +2", "\n".join(lines))
    assert "everything flows" in "\n".join(lines)
    lines = s.wait("outbox.event.order")  # its topic, from /metrics
    s.type(b"\x1b[B")
    lines = s.wait("fix: postrider parked list -g seat")
    assert len(lines) == 24  # 40 partitions do not fit
    assert re.search(r"  outbox.event.order +0 +0 +- +4$", "\n".join(lines), re.M) and "nan" not in "\n".join(lines)
    assert r"\x1b[2Jevil" in "\n".join(lines)
    s.resize(120, 40)
    wait_until(lambda: len(s.now()) == 40, 45, "the larger screen")
    s.resize(40, 10)
    wait_until(lambda: len(s.now()) == 10 and max(map(len, s.now())) <= 40, 45, "the smaller screen")
    s.type(b"q")
    assert wait_until(lambda: (s.read(0.01), s.proc.poll())[1] is not None, 45, "the end") and s.proc.returncode == 0
    s.read()
    restored(s, before)


@pytest.mark.parametrize("how, rc", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_restore(relay, before, how, rc):
    s = start(relay.url)
    s.wait("orders")
    assert s.settings() != before
    if how == signal.SIGINT:
        s.type(b"\x03")
    else:
        s.proc.send_signal(how)
    wait_until(lambda: (s.read(0.01), s.proc.poll())[1] is not None, 45, "the end")
    assert s.proc.returncode == rc
    s.read()
    restored(s, before)


def test_stopped_and_on_again(relay, before):
    """Ctrl-Z gives the shell its terminal; `fg` brings the screen back."""
    s = start(relay.url)
    s.wait("orders")
    s.type(b"\x1a")

    def stopped():
        s.read(0.01)
        with open(f"/proc/{s.proc.pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "T"
    wait_until(stopped, 45, "it to stop")
    s.read()
    restored(s, before)
    asked, drawn = relay.asked, len(s.text)
    s.proc.send_signal(signal.SIGCONT)
    wait_until(lambda: relay.asked > asked and "orders" in s.read(0.05)[drawn:], 45, "it to go on")
    assert s.settings() != before
    s.type(b"q")
    wait_until(lambda: (s.read(0.01), s.proc.poll())[1] is not None, 45, "the end")
    s.read()
    restored(s, before)


def test_pause_and_filter(relay, consumer):
    s = start(relay.url, consumer.url)
    s.wait("orders")
    s.type(b"p")
    s.wait("PAUSED")
    asked = relay.asked
    relay.status["sentence"] = "something new"
    s.type(b"/")
    s.wait("filter: _")
    s.type(b"xxy\x7f")
    s.wait("filter: xx_")
    s.type(b"\r")
    lines = s.wait("only xx")
    assert "seat" not in "\n".join(lines) and "> orders" in "\n".join(lines)  # the marked one stays
    assert relay.asked <= asked + 1
    s.type(b"/\x1b")
    s.wait("seat")
    s.type(b"p")
    s.wait("something new")
    s.type(b"q")
    assert s.end() == 0


def test_a_program_goes_away_and_comes_back(relay):
    gone = f"http://127.0.0.1:{servers.free_port()}"
    s = start(relay.url, gone)
    s.wait("away")
    assert "orders" in "\n".join(s.wait("orders"))
    s.type(b"j")
    lines = s.wait("does not answer: nothing listens there")
    assert re.search(rf"^> {gone[7:]} +- +away ", "\n".join(lines), re.M), lines
    with contextlib.closing(Program({**RELAY, "name": "again"}, int(gone.rsplit(":", 1)[1]))):
        s.wait("> again")
    s.type(b"q")
    assert s.end() == 0


def test_pipe(cli, relay, consumer):
    done = cli("top", relay.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert re.search(r"^orders +relay +ok +250 ms +1,234 +55.5 +7 +- +everything flows$", done.stdout, re.M)
    done = cli("top", relay.url, consumer.url)
    assert done.returncode == 3 and "\x1b" not in done.stdout and len(done.stdout.splitlines()) == 3
    gone = f"http://127.0.0.1:{servers.free_port()}"
    done = cli("top", "--json", relay.url, gone)
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 69
    assert (first["state"], first["status"]["name"], second["state"], second["status"]) == ("ok", "orders", "away", None)
    assert cli("top", "nonsense").returncode == 2


@pytest.mark.parametrize("said", [{"state": ""}, {"state": None}, {}, [], "x"])
def test_what_is_no_status(cli, said):
    """{"state": ""} made it crash."""
    with contextlib.closing(Program(said)) as other:
        done = cli("top", "--json", other.url)
        (line,) = map(json.loads, done.stdout.splitlines())
        assert done.returncode == 69 and line["state"] == "away" and "not as a relay" in line["problem"], done
