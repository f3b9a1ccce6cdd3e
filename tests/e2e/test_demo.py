"""tests/e2e/test_demo.py -- `make demo` ends with an audit that balances, draws within the screen, and leaves nothing
behind however it ends. Runs the script itself, with shorter scenes, and some tests with a few of them.
"""
import collections
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
import uuid

import psycopg2
import pytest
import servers
from sink import final_files, read_all, wrong_with_file
from wait import wait_until

SCRIPT = os.path.join(servers.ROOT, "tests", "support", "demo.py")
COUNT = re.compile(r"count: committed rows (\d+) (=|<>) records (\d+), (\d+) lost, (\d+) duplicated, (\d+) invented, order (\w+)")
FILES = re.compile(r"reconcile: (\d+) records on (\d+) topics, (\d+) in (\d+) files, (\d+) missing, (\d+) twice")
SERVICES = ("USER", "CONCERT", "QUEUE", "RESERVATION", "PAYMENT", "ORDER", "PUSH", "PLATFORM")
pytestmark = [pytest.mark.skipif(not servers.kafka_jars(), reason="no Kafka jars: run make setup"), pytest.mark.systems,
              pytest.mark.timeout(600)]


class Demo:
    """A running demo.py in a directory of its own; output collects what it writes."""

    def __init__(self, pace=0.2, once=False, columns=None, rows=None, scenes="", **env):
        self.dir = servers.new_dir("demo")
        env = {**os.environ, "DEMO_DIR": self.dir, "DEMO_PACE": str(pace), "DEMO_SCENES": scenes, "ONCE": "1" if once else "",
               "TERM": "xterm", "POSTRIDER_VARIANT": servers.VARIANT, **env}
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

    def wait_for(self, text, timeout=300):
        def there():
            assert text in self.output or self.proc.poll() is None, self.output
            return text in self.output
        wait_until(there, timeout, f"the demo to say {text!r}")

    def end(self, timeout=500):
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
        wait_until(lambda: not self.processes(), 60, "the demo's servers to be gone")
        assert set(os.listdir(self.dir)) <= {"lock"}

    def env(self):
        """build/demo/env as a shell reads it."""
        done = subprocess.run(["sh", "-c", 'set -a; . "$1"; env -0', "sh", os.path.join(self.dir, "env")], capture_output=True, text=True,
                              check=True, env={"PATH": os.environ["PATH"]})
        return dict(v.split("=", 1) for v in done.stdout.split("\0") if v.startswith("POSTRIDER_"))


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


def assert_perfect(text):
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text))  # lines are as long as the screen is wide
    rows, same, records, lost, dup, invented, order = COUNT.findall(text)[-1]
    assert (same, lost, dup, invented, order) == ("=", "0", "0", "0", "kept")
    assert int(rows) == int(records) > 0
    there, topics, held, files, missing, twice = map(int, FILES.findall(text)[-1])
    assert (there, held, missing, twice) == (int(rows), int(rows), 0, 0) and topics == 10 and files > 0
    assert re.search(r"audit: 16 questions, all balances", text) and "WRONG" not in text


def test_once_in_a_pipe(demo):
    """The whole story: each way of paying, a payment that fails at each step, holds that expire, what breaks is mended."""
    d = demo(once=True, pace=0.4)
    assert d.end() == 0, d.output
    assert_perfect(d.output)
    assert "\x1b" not in d.output
    lines = d.output.splitlines()
    assert "ready" in lines
    for said in ("the relay of the payments dies", "The relay is started again", "Five guests hold a seat each", "Poison", "postrider dlq retry",
                 "the saga engine dies", "The engine is started again", "one that failed at PAYMENT, one at RESERVATION, one at QUEUE, one at CONCERT",
                 "ended the five holds", "The payment gateway outside is down", "The gateway is back", "the sink that writes every event", "The sink is started again", "the data platform is gone",
                 "The platform is back", "postrider saga undo", "The box office closes"):
        assert any(said in x for x in lines), d.output
    # Never green while something is dead.
    gone = d.output[d.output.index("the relay of the payments dies"):d.output.index("The relay is started again")]
    assert "payment-relay dead" in gone
    ways = re.findall(r"paid: saga (\d+)   by events (\d+)   money first (\d+)   booking (\d+)   orders (\d+)   undone (\d+)", d.output)[-1]
    assert all(int(n) > 0 for n in ways[:1] + ways[5:]) and sum(int(n) > 0 for n in ways) >= 5, ways
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
    d = demo(once=True, pace=0.1, columns=80, rows=24, scenes="doors,poison")
    assert d.end() == 0, d.output[-3000:]
    assert_perfect(d.output)
    assert re.search(r"\x1b\[[0-9;]*m", d.output)
    assert_pictures(d.output, 80, 24)
    d.assert_nothing_left()


def test_larger_without_colour_on_the_mock_broker(demo):
    """Where Kafka's jars cannot be had: said on the screen, at_least_once, nothing lost. Interrupted in the middle of a scene."""
    d = demo(pace=0.1, columns=140, rows=45, NO_COLOR="1", DEMO_BROKER="mock", scenes="doors,kill_a_relay,gateway_down")
    d.wait_for("the relay of the payments dies")
    d.interrupt()
    assert d.end(200) == 130
    assert "at_least_once" in d.output and not re.search(r"\x1b\[[0-9;]*m", d.output)
    assert_pictures(d.output, 140, 45)
    d.assert_nothing_left()


def test_interrupted_at_the_start(demo):
    d = demo(pace=0.1)
    d.wait_for("servers     starting")
    d.interrupt()
    assert d.end(200) == 130
    d.assert_nothing_left()


def http(url, method, path, body=None, token=None, want=(200, 201, 202)):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as r:
        assert r.status in want
        return json.load(r)


def buy(env):
    """A ticket, by what build/demo/env says and nothing else: the reservation, once it is CONFIRMED."""
    at = {s: env[f"POSTRIDER_{s}_URL"] for s in SERVICES}
    who = {"email": f"{uuid.uuid4().hex}@example.org", "password": "a-good-password"}
    user = http(at["USER"], "POST", "/users", {**who, "name": "visitor"})["user_id"]
    token = http(at["USER"], "POST", "/login", who)["access_token"]

    def soon(*args, **kw):
        return wait_until(lambda: http(*args, **kw), 60, str(args), ignore=(urllib.error.HTTPError,), interval_max=0.5)
    soon(at["PAYMENT"], "POST", f"/balances/{user}/charge", {"amount": 100000}, token)
    concerts = http(at["CONCERT"], "GET", "/concerts")["concerts"]
    assert len([c for c in concerts if c["status"] == "AVAILABLE"]) >= 3
    concert = concerts[0]["concert_id"]
    schedule = http(at["CONCERT"], "GET", f"/concerts/{concert}/schedules")["schedules"][0]["schedule_id"]
    place = soon(at["QUEUE"], "POST", "/queue/tokens", {"concert_id": concert}, token)["token"]
    wait_until(lambda: http(at["QUEUE"], "GET", "/queue/status", token=place)["state"] == "AVAILABLE", 60, "a turn", interval_max=0.3)
    seat = http(at["CONCERT"], "GET", f"/schedules/{schedule}/seats?state=available")["seats"][0]["seat_id"]
    held = soon(at["RESERVATION"], "POST", "/reservations", {"schedule_id": schedule, "seat_ids": [seat], "queue_token": place}, token)
    id = held["reservation_ids"][0]

    def state():
        return http(at["RESERVATION"], "GET", f"/reservations/{id}", token=token)["state"]
    wait_until(lambda: state() == "HELD", 60, "the hold")
    soon(at["PAYMENT"], "POST", "/payments?mode=saga", {"reservation_ids": [id], "token": place}, token)
    wait_until(lambda: state() == "CONFIRMED", 60, "the ticket")
    return id


class Brokers:
    """What somebody else's Kafka has."""

    def __init__(self, bootstrap):
        from confluent_kafka import Consumer
        self.bootstrap = bootstrap
        self.reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "looks-on", "log_level": 0, "isolation.level": "read_committed"})

    def end_offsets(self, topic):
        from confluent_kafka import TopicPartition
        there = self.reader.list_topics(topic, 30).topics[topic].partitions
        return {p: self.reader.get_watermark_offsets(TopicPartition(topic, p), 30)[1] for p in there}

    def records(self):
        """{topic: {(partition, offset): message}} of all events there are."""
        names = [t for t in self.reader.list_topics(timeout=30).topics if t.startswith("outbox.event.")]
        return {t: read_all(self, t) for t in names}


def assert_files(directory, brokers):
    """All events that are on the topics now are in the sink's files soon, each once, as they are; people buy meanwhile."""
    kafka = Brokers(brokers)
    want = {(t, *place) for t, there in kafka.records().items() for place in there}
    found, seen, read = [], collections.Counter(), set()

    def all_there():
        truth, new = None, set(final_files(directory)) - read
        for path in sorted(new):
            truth = truth or kafka.records()
            found.extend(wrong_with_file(directory, path, truth[path.split("/")[0]], seen))
        read.update(new)
        return want <= set(seen)
    wait_until(all_there, 120, "all events in files", interval_max=1)
    assert want and not found, found[:5]
    assert not [place for place, n in seen.items() if n > 1]


def test_killed_then_played_with(demo):
    """kill -9 leaves no server; the data of the killed one goes with the next start. Then somebody plays: buys a ticket by
    what the file env says, the lines to paste work, and Ctrl-C counts once more."""
    d = demo(pace=0, scenes="doors")
    d.wait_for("ready\n")
    d.proc.kill()
    d.proc.wait()
    wait_until(lambda: not d.processes(), 120, "the servers to die with the demo")
    again = demo(pace=0, scenes="doors", DEMO_DIR=d.dir)
    again.dir = d.dir
    again.wait_for("stays up for playing")
    again.wait_for("tests/support/audit.py")
    env = again.env()
    assert {f"POSTRIDER_{s}_{w}" for s in SERVICES for w in ("URL", "CONNINFO")} | {"POSTRIDER_BROKERS", "POSTRIDER_REDIS", "POSTRIDER_PLATFORM_DIR"} <= set(env)
    buy(env)
    assert_files(env["POSTRIDER_PLATFORM_DIR"], env["POSTRIDER_BROKERS"])
    for s in SERVICES:
        with contextlib.closing(psycopg2.connect(env[f"POSTRIDER_{s}_CONNINFO"], connect_timeout=60)) as c, c.cursor() as cur:
            cur.execute("SELECT count(*) FROM outbox.event")
            assert cur.fetchone()[0] >= 0
    etc = os.path.join(d.dir, "etc")
    for args in (("saga", "list", "-c", f"{etc}/engine-consumer.cfg"), ("show", "consumers", "-c", f"{etc}/payment-consumer.cfg"),
                 ("alerts", "list", "-c", f"{etc}/push-consumer.cfg"), ("status", "--url", env["POSTRIDER_RELAY_URL"]), ("reconcile", "-c", f"{etc}/platform-sink.cfg")):
        done = servers.Cli().run(*args)
        assert done.returncode == 0, done.stdout + done.stderr
    with urllib.request.urlopen(env["POSTRIDER_CONCERT_URL"] + "/", timeout=60) as r:
        assert "<html" in r.read().decode().lower()
    before = int(COUNT.findall(again.output)[-1][0])
    again.interrupt()
    assert again.end(300) == 0, again.output
    assert_perfect(again.output)
    assert int(COUNT.findall(again.output)[-1][0]) > before
    again.assert_nothing_left()
