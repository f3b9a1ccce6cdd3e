"""tests/e2e/test_demo.py -- `make demo` ends with a perfect count, draws within the screen, and
leaves nothing behind however it ends. Runs the script itself, with shorter scenes."""
import contextlib
import fcntl
import glob
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import urllib.request

import psycopg2
import pytest
import servers
from wait import wait_until

SCRIPT = os.path.join(servers.ROOT, "tests", "support", "demo.py")
COUNT = re.compile(r"count: committed rows (\d+) (=|<>) records (\d+), (\d+) lost, (\d+) duplicated, (\d+) invented, "
                   r"order (\w+)")
SEATS = re.compile(r"seats: reservation events (\d+) (=|<>) effects (\d+)(?: \+ (\d+) held back)?, (\d+) lost, "
                   r"(\d+) applied twice, (\d+) invented, order (\w+)")
pytestmark = pytest.mark.skipif(not servers.kafka_jars(), reason="no Kafka jars: run make setup")


class Demo:
    """A running demo.py in a directory of its own; output collects what it writes."""

    def __init__(self, pace=0.2, once=False, columns=None, rows=None, **env):
        self.dir = servers.new_dir("demo")
        env = {**os.environ, "DEMO_DIR": self.dir, "DEMO_PACE": str(pace), "ONCE": "1" if once else "", "TERM": "xterm",
                   "POSTRIDER_VARIANT": servers.VARIANT, **env}
        env.pop("POSTRIDER_TEST_DIR", None)
        if columns:
            out, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        else:
            out, theirs = os.pipe()
        self.proc = subprocess.Popen([sys.executable, "-B", SCRIPT], stdin=theirs if columns else subprocess.DEVNULL,
                                     stdout=theirs, stderr=theirs, env=env, start_new_session=True)
        os.close(theirs)
        self.output = ""
        self.reader = threading.Thread(target=self._read, args=(out,), daemon=True)
        self.reader.start()

    def _read(self, fd):
        with contextlib.suppress(OSError), open(fd, "rb", buffering=0) as f:  # a pty ends with EIO
            while data := f.read(65536):
                self.output += data.decode("utf-8", "replace")

    def wait_for(self, text, timeout=90):
        def there():
            assert text in self.output or self.proc.poll() is None, self.output
            return text in self.output
        wait_until(there, timeout, f"the demo to say {text!r}")

    def end(self, timeout=150):
        rc = self.proc.wait(timeout)
        self.reader.join(10)
        return rc

    def interrupt(self):
        """What Ctrl-C does: SIGINT to the whole group."""
        os.killpg(self.proc.pid, signal.SIGINT)

    def processes(self):
        """Whatever has the demo's directory in its command line."""
        found = []
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            with contextlib.suppress(OSError), open(path, "rb") as f:
                if self.dir.encode() in f.read():
                    found.append(path)
        return found

    def assert_nothing_left(self):
        wait_until(lambda: not self.processes(), 20, "the demo's servers to be gone")
        assert set(os.listdir(self.dir)) <= {"lock"}


def query(conninfo, sql):
    with contextlib.closing(psycopg2.connect(conninfo, connect_timeout=5)) as c, c, c.cursor() as cur:
        cur.execute(sql)
        return cur.fetchall()


@pytest.fixture
def demo():
    made = []

    def make(*args, **kw):
        made.append(Demo(*args, **kw))
        return made[-1]
    yield make
    for d in made:
        if d.proc.poll() is None:
            d.proc.kill()
            d.proc.wait()


def assert_perfect(text, held=""):
    rows, same, records, lost, dup, invented, order = COUNT.findall(text)[-1]
    assert (same, lost, dup, invented, order) == ("=", "0", "0", "0", "kept")
    assert int(rows) == int(records) > 0
    assert_seats_perfect(text, held)


def assert_seats_perfect(text, held=""):
    events, same, effects, back, lost, twice, invented, order = SEATS.findall(text)[-1]
    assert (same, back, lost, twice, invented, order) == ("=", held, "0", "0", "0", "kept")
    assert int(events) == int(effects) + int(held or 0) > 0


def test_once_in_a_pipe(demo):
    d = demo(once=True, pace=0.4)
    assert d.end() == 0, d.output
    assert_perfect(d.output)
    assert "\x1b" not in d.output
    lines = d.output.splitlines()
    assert "ready" in lines
    for said in ("kill -9", "started again", "the broker is gone", "broker comes back", "Two poison events",
                 "The breaker opens", "the breaker closes", "the consumer dies", "postrider parked retry",
                 "postrider dlq retry", "postrider replay start", "0 lost"):
        assert any(said in x for x in lines), d.output
    # While the broker was gone the relay said so: never green while something is stuck.
    gone = d.output[d.output.index("the broker is gone"):d.output.index("everything is counted")]
    assert "relay error" in gone
    # The same of the consumer: one key parked, one dead letter while nothing was mended, the breaker, its death.
    poisoned = d.output[d.output.index("Two poison events"):d.output.index("postrider parked retry")]
    assert re.search(r"parked keys 1   dead letters 1   lag [\d.]+ s   consumer warn: 2 messages of 1 key", poisoned)
    assert "consumer error: relation \"seat.hold\" does not exist" in poisoned and "consumer dead" in poisoned
    # The replay went through the same handler, as duplicates only.
    assert re.search(r"applied twice +0   [1-9][\d,]* duplicates were suppressed", d.output)
    d.assert_nothing_left()


def assert_pictures(text, columns, rows):
    """Each frame fits the screen, and the screen is given back as it was."""
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    frames = text.split("\x1b[H")[1:]
    assert len(frames) > 20
    for frame in frames:
        picture = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", frame.split("\x1b[J")[0]).replace("\r", "").split("\n")
        assert len(picture) <= rows
        assert all(len(line) < columns for line in picture), picture


def test_once_on_a_terminal(demo):
    d = demo(once=True, pace=0.1, columns=80, rows=24)
    assert d.end() == 0, d.output[-3000:]
    assert_perfect(d.output)
    assert re.search(r"\x1b\[[0-9;]*m", d.output)
    assert_pictures(d.output, 80, 24)
    d.assert_nothing_left()


@pytest.mark.parametrize("columns, rows", [(100, 30), (140, 45)])
def test_larger_without_colour(demo, columns, rows):
    d = demo(pace=0.1, columns=columns, rows=rows, NO_COLOR="1", DEMO_BROKER="mock")
    d.wait_for("The breaker opens")
    d.interrupt()
    assert d.end(30) == 130
    assert not re.search(r"\x1b\[[0-9;]*m", d.output)
    assert_pictures(d.output, columns, rows)
    d.assert_nothing_left()


@pytest.mark.parametrize("when", ["  Postgres ", "everything flows"])
def test_interrupted_in_the_middle(demo, when):
    d = demo(pace=0.1)
    d.wait_for(when)
    d.interrupt()
    assert d.end(30) == 130
    d.assert_nothing_left()


def test_killed_then_played_with(demo):
    """kill -9 leaves no server; the data of the killed one goes with the next start. Then somebody plays:
    his own events count like the shop's, the lines to paste work, what he leaves held back is not lost, and Ctrl-C
    counts once more."""
    d = demo(pace=0)
    d.wait_for("ready\n")
    d.proc.kill()
    d.proc.wait()
    wait_until(lambda: not d.processes(), 20, "the servers to die with the demo")
    again = demo(pace=0, DEMO_DIR=d.dir)
    again.dir = d.dir
    again.wait_for("SELECT reserve()", 150)
    with open(os.path.join(d.dir, "env"), encoding="utf-8") as f:
        env = dict(line.split("=", 1) for line in f.read().splitlines())
    conninfo = env["POSTRIDER_ORDERS_CONNINFO"].strip("'")
    done = servers.Cli().run("publish", "--conninfo", conninfo, "-a", "reservation", "-k", "R-by-hand", "-T", "Played",
                             "--data", "{}")
    assert done.returncode == 0, done.stderr
    status = servers.Cli().run("status", "--url", env["POSTRIDER_RELAY_URL"])
    assert status.returncode == 0, status.stdout + status.stderr
    held = servers.Cli().run("show", "consumers", "-c", os.path.join(d.dir, "seat.cfg"), "--json", check=True)
    assert json.loads(held.stdout)["group"] == "seat" and '"dead_letters":0' in held.stdout.replace(" ", "")
    assert servers.Cli().run("dlq", "list", "-c", os.path.join(d.dir, "seat.cfg")).returncode == 0
    with urllib.request.urlopen(env["POSTRIDER_SEAT_URL"] + "/status.json", timeout=5) as r:
        assert json.loads(r.read())["state"] == "ok"
    query(conninfo, "SELECT reserve('somebody', 'cellar')")
    seat = env["POSTRIDER_SEAT_CONNINFO"].strip("'")
    wait_until(lambda: query(seat, "SELECT code FROM inbox.parked") == [("23503",)], 20, "the key to be parked")
    before = int(COUNT.findall(again.output)[-1][0])
    again.interrupt()
    assert again.end(60) == 0, again.output
    assert_perfect(again.output, held="1")
    assert int(COUNT.findall(again.output)[-1][0]) > before
    again.assert_nothing_left()


def test_mock_broker_stands_in(demo):
    """Where Kafka's jars cannot be had: said on the screen, at_least_once, nothing lost."""
    d = demo(once=True, pace=0.1, DEMO_BROKER="mock")
    assert d.end() == 0, d.output
    assert "mock" in d.output and "at_least_once" in d.output
    _, _, _, lost, _, invented, order = COUNT.findall(d.output)[-1]
    assert (lost, invented, order) == ("0", "0", "kept")
    assert_seats_perfect(d.output)
    d.assert_nothing_left()
