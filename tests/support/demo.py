#!/usr/bin/python3
"""tests/support/demo.py -- `make demo`: the whole pipeline before your eyes, with failures.

Starts a private Postgres, Kafka, relay and consumer with all their data below build/demo; a small shop
commits reservations and payments; a second service with a database of its own holds a seat for each
reservation; the screen shows what was committed, what stands on the topics, and what was handled. Then
the relay is killed, the broker stopped, the consumer poisoned, starved and killed while you look
(demo_seat.py), and at the end everything is counted by the independent checker.

ONCE=1 ends by itself: exit status 0 when the count is perfect, 1 when it is not, 69 when a
server did not start. Otherwise it stays up for playing until Ctrl-C, which counts once more.
DEMO_BROKER=mock takes librdkafka's mock broker although the jars are there; DEMO_PACE=0.3
makes the scenes shorter and DEMO_DIR puts the data elsewhere, both for tests.
Refuses to touch anything but its directory, and to run twice in one.
"""
import collections
import contextlib
import ctypes
import fcntl
import glob
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import servers  # noqa: E402
from demo_mock import MockKafka  # noqa: E402
from demo_screen import Screen, clock, wrap  # noqa: E402
from demo_seat import Seat  # noqa: E402
from demo_shop import CALM_RATE, SHOP, TRUTH, Shop  # noqa: E402
from demo_watch import Health, Records, Rows  # noqa: E402

HERE = os.path.abspath(os.environ.get("DEMO_DIR") or os.path.join(servers.ROOT, "build", "demo"))
PACE = float(os.environ.get("DEMO_PACE") or 1)
ENV_FILE = os.path.join(HERE, "env")
SEAT_FILE = os.path.join(HERE, "seat.cfg")  # a link to the consumer's config, for the CLI
VARIANT = os.environ.get("POSTRIDER_VARIANT", "plain")
TOPICS = {"outbox.event.reservation": 6, "outbox.event.payment": 6}


class Stopped(BaseException):
    """Somebody wants us to end: Ctrl-C, a signal, a closed pipe."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Failed(Exception):
    """The demonstration itself could not go on; the text says where."""


def short(path):
    """A path of ours from the checkout, any other one in full."""
    return os.path.relpath(path, servers.ROOT) if path.startswith(servers.ROOT + os.sep) else path


# ---------------------------------------------------------------- the demonstration

class Demo:
    def __init__(self, once):
        self.once = once
        self.delivery = "exactly_once"
        self.broker_name = "Kafka"
        self.started = time.monotonic()
        self.steps = []
        self.foot = []
        self.show = True       # the part with the failures; afterwards it is for playing
        self.finished = False
        self.leave = False     # Ctrl-C while playing
        self.result = None
        self.committed_rate, self.record_rate, self.handled_rate, self.lag_series = (
            collections.deque(maxlen=400) for _ in range(4))
        self._sampled = (time.monotonic(), 0, 0, 0)
        self.pg = self.kafka = self.relay = self.shop = self.records = self.rows = self.health = None
        self.watchers = []
        self.seat, self.seats_count = Seat(self, SEAT_FILE), None
        self.screen = Screen(self)

    def elapsed(self):
        return time.monotonic() - self.started

    def lag(self):
        return self.shop.lag()

    # -- start

    def prepare(self):
        say = self.screen.say
        say("Postrider: rows of an outbox in Postgres, published to Kafka by a relay, applied by a\n"
            "consumer")
        if self._mock():
            self.delivery, self.broker_name = "at_least_once", "mock broker"
            say("  Kafka's jars are not here (make setup fetches them), so librdkafka's mock\n"
                "  broker stands in for it, and the relay runs at_least_once: a crash may\n"
                "  repeat events.")
        say(f"  servers     data in {short(servers.test_dir())}, gone at the end")
        self.pg = servers.Postgres(fresh=True, config={"unix_socket_directories": "", "shared_buffers": "64MB",
                                                       "max_wal_size": "1GB"}).start()
        self.db = self.pg.createdb("orders")
        say(f"  Postgres    {self.pg.query('SHOW server_version')[0][0].split()[0]}, port {self.pg.port}")
        self._start_broker()
        say(f"  {'mock broker' if self._mock() else 'Kafka':<12}"
            f"{'in a process of its own' if self._mock() else servers.KAFKA_VERSION}, {self.kafka.bootstrap}")
        self._init()
        quick = {"kafka": {"timeout": "1s"}} if self._mock() else {}
        self.relay = servers.Relay(self.db.conninfo, self.kafka.bootstrap, delivery=self.delivery, variant=VARIANT,
                                   config=quick)
        self.relay.start()
        self.seat.prepare(self.pg, self.kafka.bootstrap, VARIANT, quick)
        self.relay.wait_ready(60)
        say(f"  relay       http://127.0.0.1:{self.relay.port}")
        self.seat.consumer.wait_ready(60)
        say(f"  consumer    http://127.0.0.1:{self.seat.consumer.port}, group seat, database seat")
        self._write_env()

    def _mock(self):
        return os.environ.get("DEMO_BROKER") == "mock" or not servers.kafka_jars()

    def _start_broker(self):
        if self._mock():
            self.kafka = MockKafka(dict(TOPICS, **{"postrider.positions.orders": 1})).start()
            return
        self.kafka = servers.Kafka(quick=True).start().warm()
        for topic, n in TOPICS.items():
            self.kafka.create_topic(topic, n)

    def _init(self):
        argv = ["init", "--conninfo", self.db.conninfo]
        if not self._mock():
            argv += ["--brokers", self.kafka.bootstrap, "--name", "orders"]
        servers.Cli(variant=VARIANT).run(*argv, check=True)
        self.db.psql(SHOP)

    def _write_env(self):
        values = {"POSTRIDER_BROKERS": self.kafka.bootstrap, "POSTRIDER_ORDERS_CONNINFO": self.db.conninfo,
                  "POSTRIDER_RELAY_URL": f"http://127.0.0.1:{self.relay.port}",
                  "POSTRIDER_SEAT_CONNINFO": self.seat.db.conninfo,
                  "POSTRIDER_SEAT_URL": f"http://127.0.0.1:{self.seat.consumer.port}"}
        with open(ENV_FILE + ".new", "w", encoding="utf-8") as f:
            f.writelines(f"{k}={shlex.quote(v)}\n" for k, v in values.items())
        os.rename(ENV_FILE + ".new", ENV_FILE)

    def go_live(self):
        self.shop = Shop(self.db.conninfo)
        self.records = Records(self.kafka.bootstrap, TOPICS, self.shop)
        self.rows, self.health = Rows(self.db, "SELECT count(*) FROM outbox.event"), Health(self.relay, "relay")
        self.watchers = [self.records, self.rows, self.health, *self.seat.watch()]
        for w in self.watchers:
            w.start()
        if not self.records.ready.wait(60):
            raise Failed("the consumer did not find its topics within 60 s")
        self.screen.say("ready")
        self.started = time.monotonic()
        self.screen.open()
        self.shop.start()

    # -- what is shown; each part yields once per frame

    def step(self, text):
        self.steps.append((self.elapsed(), text))
        self.screen.step(*self.steps[-1])

    @staticmethod
    def seconds(n):
        end = time.monotonic() + n * PACE
        while time.monotonic() < end:
            yield

    @staticmethod
    def until(true, timeout, what):
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                raise Failed(f"waited {timeout} s for {what}")
            yield

    def flows(self):
        return self.health.state == "ok" and self.lag() < 0.5

    def story(self):
        self.step("A shop commits reservations and payments, each with its event in the same transaction; one in ten "
                  "rolls back.")
        yield from self.until(lambda: self.records.count > 0, 30, "the first record")
        yield from self.seconds(6)
        yield from self.kill_the_relay()
        yield from self.stop_the_broker()
        yield from self.seat.story()
        yield from self.count()

    def kill_the_relay(self):
        self.step(f"kill -9 {self.relay.pid}: the relay dies in the middle of its work. The shop does not notice; rows "
                  "wait in Postgres.")
        self.relay.kill9()
        yield from self.seconds(4)
        self.relay.start()
        self.step("The relay is started again: it " + ("fences its dead self, " if self.delivery == "exactly_once" else "")
                  + "reads its position from Kafka and goes on from there.")
        yield from self.until(self.flows, 60, "the relay to catch up after its death")
        yield from self.seconds(5)

    def stop_the_broker(self):
        if self._mock():
            self.step("The broker freezes: nothing can be published, the lag grows, the relay says why.")
            self.kafka.sigstop()
            yield from self.seconds(7)
            self.kafka.sigcont()
        else:
            self.step(f"kill -9 {self.kafka.pid}: the broker is gone. Nothing can be published, the lag grows, the relay "
                      "says why.")
            self.kafka.kill()
            yield from self.seconds(7)
            self.kafka.start(wait=False)
        self.step("The broker comes back: what had waited goes out, in order.")
        yield from self.until(self.flows, 90, "the relay to catch up after the broker's return")
        yield from self.seconds(4)

    def count(self):
        """Stops the shop, waits for the last record, and has the checker count."""
        self.step("The shop closes. When the last record has arrived, everything is counted from both ends.")
        self.shop.stop()
        if self.shop.error:
            raise Failed(f"the shop lost its database: {self.shop.error}")
        with contextlib.suppress(Failed):  # what is missing is for the checker to say
            yield from self.until(lambda: self.lag() == 0, 30, "the last record")
            yield from self.seat.settle()
        done = []
        checking = threading.Thread(target=self._check, args=(done,), daemon=True)
        checking.start()
        yield from self.until(lambda: done, 180, "the checker")
        if isinstance(done[0], Exception):
            raise Failed(f"the checker could not finish: {done[0]}")
        self.result, self.seats_count = done[0]
        self.step(self.verdict())
        self.step(self.seats_count.verdict())

    def _check(self, done):
        import checker
        try:
            result = checker.check(self.db.conninfo, self.kafka.bootstrap, list(TOPICS), self.delivery, settle=5,
                                   journal_sql=TRUTH)
            done.append((result, self.seat.count()))
        except Exception as e:  # pylint: disable=broad-except
            done.append(e)

    def verdict(self):
        """The count in one line, made to be read by people and by tests."""
        c = self.result.counts
        order = "kept" if not c["ORDER"] and not c["PARTITION_MOVED"] else "BROKEN"
        records = self.result.records
        return (f"count: committed rows {self.result.journal} {'=' if records == self.result.journal else '<>'} records "
                f"{records}, {c['LOST']} lost, {c['DUP']} duplicated, {c['PHANTOM']} invented, order {order}")

    # -- playing

    def play(self):
        self.foot = [
            ("2", "It stays up for playing, until Ctrl-C. Paste into another terminal:"),
            (None, f"psql -h 127.0.0.1 -p {self.pg.port} -U postgres orders -c 'SELECT reserve()'"),
            (None, f"psql -h 127.0.0.1 -p {self.pg.port} -U postgres seat -c 'TABLE seat.overview'"),
            (None, f"build/bin/postrider show consumers -c {short(SEAT_FILE)}"),
            (None, f"build/bin/postrider dlq list -c {short(SEAT_FILE)}"),
            (None, f"build/bin/postrider status --url http://127.0.0.1:{self.relay.port}"),
        ]
        if shutil.which("kcat"):
            self.foot.append((None, f"kcat -b {self.kafka.bootstrap} -C -t outbox.event.payment -o -5"))
        if not self.screen.live:
            for _, text in self.foot:
                self.screen.say(text)
        self.show = False
        counted = self.shop
        self.shop = Shop(self.db.conninfo)
        self.shop.rate, self.shop.rolled_back, self.shop.transactions = CALM_RATE, counted.rolled_back, counted.transactions
        self.records.shop = self.shop
        self.shop.start()
        while not self.leave:
            yield
        self.foot = []
        yield from self.count()

    # -- the loop

    def run(self, parts):
        for _ in parts:
            self._sample()
            self.screen.frame()
            time.sleep(0.1)
        self._sample()
        self.screen.frame()

    def _sample(self):
        now = time.monotonic()
        then, *before = self._sampled
        if now - then < 0.5:
            return
        counts = (self.rows.count, self.records.count, self.seat.handled)
        for series, n, m in zip((self.committed_rate, self.record_rate, self.handled_rate), counts, before):
            series.append(max(0, n - m) / (now - then))
        self.lag_series.append(self.lag())
        self._sampled = (now, *counts)

    def perfect(self):
        """What a visitor left held back while playing is not lost."""
        r, s = self.result, self.seats_count
        return r is not None and r.ok and (r.records == r.journal or self.delivery == "at_least_once") and \
            s.ok() and not (s.held and self.show)

    def closing(self):
        """What stays on the terminal when all is over."""
        say, c, r = self.screen.say, self.result.counts, self.result
        if self.screen.live:
            for at, text in self.steps[:-2]:
                lines = wrap(text, min(90, shutil.get_terminal_size().columns - 10))
                say(self.screen.paint("2", f"  {clock(at):>5}  {lines[0]}"))
                for more in lines[1:]:
                    say(self.screen.paint("2", f"         {more}"))
        say()
        order = c["ORDER"] + c["PARTITION_MOVED"]
        rows = [("committed rows", r.journal, f"{self.shop.rolled_back:,} rolled back: none of theirs may show"),
                ("records", r.records, "read back from the topics, read_committed"),
                ("lost", c["LOST"], "committed, not on the topics"),
                ("duplicated", c["DUP"], "more than once" + ("" if self.delivery == "exactly_once"
                                                             else ": allowed, the relay ran at_least_once")),
                ("invented", c["PHANTOM"], "on the topics, not committed"),
                ("damaged", c["CORRUPT"], "key, value or headers differ"),
                ("out of order", order, f"within each of {r.aggregates:,} keys")]
        for i, (name, n, what) in enumerate(rows + self.seats_count.table(self.seat.health.duplicates)):
            if i == len(rows):
                say()
            say(f"  {name:<15}{n:>9,}   " + self.screen.paint("2", what))
        say()
        for line in (self.verdict(), self.seats_count.verdict()):
            say("  " + self.screen.paint("1;32" if self.perfect() else "1;31", line))
        if not r.ok:
            say(r.report())

    def stop(self):
        for w in (self.shop, *self.watchers):
            if w:
                w.stop()


def die_with_parent():
    """When make is killed, nobody else would tell us."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise Stopped(143)


def open_directory():
    """build/demo, or, where user postgres may not enter the checkout (/root is closed), a temporary
    directory; the link build/demo/elsewhere remembers it."""
    link = os.path.join(HERE, "elsewhere")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    try:
        servers._check_reach(HERE)
        return HERE
    except RuntimeError:
        made = tempfile.mkdtemp(prefix="postrider-demo-")
        os.chmod(made, 0o755)
        os.symlink(made, link)
        return made


def take_directory():
    """Locks build/demo, removes what a killed predecessor left, and sets where servers keep their data."""
    os.makedirs(HERE, exist_ok=True)
    lock = open(os.path.join(HERE, "lock"), "a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"demo: another one runs in {short(HERE)}; end it first")
    for left in glob.glob(os.path.join(HERE, "run-*")) + [os.path.realpath(os.path.join(HERE, "elsewhere"))]:
        shutil.rmtree(left, ignore_errors=True)
    for path in (ENV_FILE, SEAT_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    os.environ["POSTRIDER_TEST_DIR"] = open_directory()
    servers.test_dir()
    return lock


def watch_signals(demo):
    def stop(sig, _):
        if sig == signal.SIGINT and not demo.show and not demo.leave:
            demo.leave = True  # playing: count once more, then end; a second one ends at once
            return
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)  # cleaning up is short; let it finish
        raise Stopped(128 + sig)
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN:  # nohup
            signal.signal(s, stop)


def act(demo):
    """The whole demonstration; returns the exit status."""
    demo.prepare()
    demo.go_live()
    demo.run(demo.story())
    demo.finished = True
    if not demo.once and demo.perfect():
        demo.run(demo.play())
    demo.screen.close()
    demo.closing()
    return 0 if demo.perfect() else 1


def clean_up(demo):
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    with contextlib.suppress(OSError, ValueError):
        demo.screen.close()
    demo.stop()
    servers.stop_all()
    elsewhere = os.path.join(HERE, "elsewhere")
    if os.path.islink(elsewhere):
        shutil.rmtree(os.path.realpath(elsewhere), ignore_errors=True)
    for path in (ENV_FILE, SEAT_FILE, elsewhere):
        with contextlib.suppress(OSError):
            os.unlink(path)


def main():
    demo = Demo(once=os.environ.get("ONCE", "") not in ("", "0"))
    rc = 70
    try:
        watch_signals(demo)
        die_with_parent()
        lock = take_directory()
        with lock:
            rc = act(demo)
    except Stopped as e:
        rc = e.code
        demo.screen.close()
        with contextlib.suppress(OSError):
            print(f"demo: stopped after {clock(demo.elapsed())}; nothing is left running", file=sys.stderr)
    except BrokenPipeError:
        rc = 141
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    except (Failed, AssertionError, RuntimeError) as e:
        rc = 69
        demo.screen.close()
        print(f"demo: {e}", file=sys.stderr)
        for server in (demo.seat.consumer, demo.relay, demo.kafka, demo.pg):
            if server and os.path.exists(server.log):
                print(f"\nlast words of {server.name}:\n{servers.tail(server.log, 8)}", file=sys.stderr)
    finally:
        clean_up(demo)
    return rc


if __name__ == "__main__":
    sys.exit(main())
