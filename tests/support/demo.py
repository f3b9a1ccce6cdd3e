#!/usr/bin/python3
"""tests/support/demo.py -- `make demo`: the box office before your eyes, with failures.

Starts a private Postgres, Kafka and Redis and every program of etc/services, with their data below build/demo, opens
some concerts, and lets a crowd in: guests queue up, get their turn, hold seats and pay in each of the ways; some have no
money, some let their time pass, some change their minds. Meanwhile things break (demo_story.py). In the end the audit
says whether all balances.

ONCE=1 ends by itself: exit status 0 when everything balances, 1 when it does not, 69 when a server did not start or a
scene did not come to its end. Otherwise it stays up for playing until Ctrl-C, with the box office in a browser, and
counts once more. DEMO_BROKER=mock takes librdkafka's mock broker although the jars are there; for tests, DEMO_PACE=0.3 makes
the scenes shorter, DEMO_SCENES="doors,poison" plays only these, and DEMO_DIR puts the data elsewhere.
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
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import audit  # noqa: E402
import servers  # noqa: E402
from demo_mock import MockKafka  # noqa: E402
from demo_screen import Screen, clock  # noqa: E402
from demo_story import Gateway, Later, Story  # noqa: E402
from demo_watch import Health, Numbers, Records  # noqa: E402
from gateway import Outside  # noqa: E402
from stack import SINK, TOPICS, Stack, relays  # noqa: E402

HERE = os.path.abspath(os.environ.get("DEMO_DIR") or os.path.join(servers.ROOT, "build", "demo"))
PACE = float(os.environ.get("DEMO_PACE") or 1)
SCENES = [s for s in os.environ.get("DEMO_SCENES", "").split(",") if s]
ENV_FILE = os.path.join(HERE, "env")
CONFIG_DIR = os.path.join(HERE, "etc")  # a link to the programs' files, for the CLI
PLATFORM_DIR = os.path.join(HERE, "platform")  # the sink's files
VARIANT = servers.VARIANT = os.environ.get("POSTRIDER_VARIANT", "plain")  # what `make` builds, and nothing else
# The crowd leaves the first two to those to whom something happens, and to whoever looks on; the third sells out.
CONCERTS = (("Open rehearsal", 60, 5000), ("Matinee", 60, 6000), ("Small club, one night", 12, 7000),
            ("The Post Riders, live", 320, 12000), ("Evening of the slow strings", 240, 9000))
# As shipped a hundred a second are let in, and nobody would be seen waiting.
ADMISSION = ["admission.users=1", "admission.every=1s"]


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
        self.delivery, self.broker_name = "exactly_once", "Kafka"
        self.started = time.monotonic()
        self.steps, self.foot, self.watchers = [], [], []
        self.show = True       # the part with the failures; afterwards it is for playing
        self.finished = False
        self.leave = False     # Ctrl-C while playing
        self.audit = None
        self.event_rate, self.fact_rate, self.sold_rate = (collections.deque(maxlen=400) for _ in range(3))
        self._sampled = (time.monotonic(), 0, 0, 0)
        self.stack = self.story = self.records = self.numbers = self.health = None
        self.screen = Screen(self)

    def elapsed(self):
        return time.monotonic() - self.started

    @property
    def crowd(self):
        return self.story.crowd if self.story else None

    @property
    def page(self):
        return f"{self.stack.url('concert')}/"

    # -- start

    def prepare(self):
        say, row = self.screen.say, self._row
        self.screen.fill("Postrider: a box office of small services that never call one another. Each commits its "
                         "events to an outbox; relays publish them, consumers apply them, sagas lead and undo.")
        kafka = None
        if os.environ.get("DEMO_BROKER") == "mock" or not servers.kafka_jars():
            self.delivery, self.broker_name = "at_least_once", "mock broker"
            say("  Kafka's jars are not here (make setup fetches them), so librdkafka's mock\n"
                "  broker stands in for it, and the relays run at_least_once: a crash may\n"
                "  repeat events.")
            kafka = MockKafka({**{t: 2 for t in TOPICS}, **{f"postrider.positions.{w}": 1 for w in relays()}}).start()
        row("servers", f"starting; their data is in {short(servers.test_dir())}, gone at the end")
        gateway, tax = Gateway(), Outside()
        options = {"queue": ADMISSION, "push-consumer": [f"alerts.configs={CONFIG_DIR}"],
                   "payment": [f"gateway.url={gateway.url}", f"tax.url={tax.url}"], SINK: ["handler.files.max_age=2s"]}
        os.mkdir(PLATFORM_DIR)
        self.stack = s = Stack(options=options, variant=VARIANT, servers_config={"unix_socket_directories": ""}, kafka=kafka,
                               platform_dir=PLATFORM_DIR)
        s.start(240)
        row("Postgres", f"{s.pg.query('SHOW server_version')[0][0].split()[0]}, port {s.pg.port}, {len(s.databases)} databases")
        row("mock broker" if s.mock else "Kafka", f"{'in a process of its own' if s.mock else servers.KAFKA_VERSION}, {s.kafka.bootstrap}")
        row("Redis", s.redis.address)
        kinds = collections.Counter(p.kind if p.kind in ("consumer", "relay") else "service" for p in s.process.values())
        row("programs", f"{kinds['service']} services, {kinds['consumer']} consumers, {kinds['relay']} relays; a payment gateway and a tax "
            "server outside")
        places = [self._open(*c) for c in CONCERTS]
        self.story = Story(self, s, gateway, places)
        row("concerts", f"{len(CONCERTS)}, with {sum(n for _, n, _ in CONCERTS)} seats")
        row("files", f"every event as NDJSON, in {short(PLATFORM_DIR)}")
        row("box office", self.page)
        os.symlink(s.dir, CONFIG_DIR)
        self._write_env()

    def _row(self, name, text):
        self.screen.fill(f"  {name:<12}{text}", 14)

    def _open(self, title, seats, price):
        concert, (schedule,) = self.stack.open_concert(title, seats, price)
        return concert, schedule

    def _write_env(self):
        """What others need to drive the services; those of one database are the owner's of that word."""
        s = self.stack
        values = s.env() | {"POSTRIDER_ORDERS_CONNINFO": s.databases["order"].conninfo, "POSTRIDER_SEAT_CONNINFO": s.databases["concert"].conninfo,
                   "POSTRIDER_RELAY_URL": f"http://127.0.0.1:{s['order-relay'].port}",
                   "POSTRIDER_SEAT_URL": f"http://127.0.0.1:{s['concert-consumer'].port}"}
        with open(ENV_FILE + ".new", "w", encoding="utf-8") as f:
            f.writelines(f"{k}={shlex.quote(v)}\n" for k, v in values.items())
        os.rename(ENV_FILE + ".new", ENV_FILE)

    def go_live(self):
        s = self.stack
        topics = {t: 2 for t in TOPICS if t.startswith("outbox.event.")}
        self.records, self.numbers, self.health = Records(s.kafka.bootstrap, topics), Numbers(s.databases), Health(s.process)
        self.watchers = [self.records, self.numbers, self.health]
        for w in self.watchers:
            w.start()
        if not self.records.ready.wait(60):
            raise Failed("the viewer did not find its topics within 60 s")
        self.screen.say("ready")
        self.started = time.monotonic()
        self.screen.open()
        self.story.open()

    # -- what a scene asks for; each part yields once per frame

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
                raise Failed(f"waited {timeout} s for {what() if callable(what) else what}")
            yield

    def aside(self, work, timeout, what):
        """The result of something that takes a while."""
        done = Later(work)
        yield from self.until(done.done, timeout, what)
        return done.result()

    def told(self, name, state):
        """The program says so itself."""
        return lambda: self.health.of[name][0] == state

    def is_well(self, *names):
        """All of these, by their own word, and of now."""
        since = time.monotonic()
        return lambda: self.health.looked > since and all(self.health.of[n][0] in ("ok", "standby") for n in names)

    def cli(self, *args):
        """Runs the CLI as an operator would; fails as the demonstration fails."""
        log = os.path.join(servers.new_dir("cli"), "out")
        proc = servers.spawn([servers.bin_path("postrider", VARIANT), *args], log=log, env=servers._clean_env())
        yield from self.until(lambda: proc.poll() is not None, 60, f"postrider {args[0]} {args[1]}")
        if proc.returncode:
            raise Failed(f"postrider {' '.join(args)}: exit {proc.returncode}\n{servers.tail(log)}")

    # -- the whole

    def whole_story(self):
        for scene in self.story.scenes(SCENES):
            try:
                yield from scene()
                yield from self.seconds(1)
            except (Failed, AssertionError, OSError) as e:
                if self.once:
                    raise Failed(f"{scene.__name__}: {e}") from None
                self.step(f"This scene did not come to its end: {str(e).splitlines()[0]}. Everything stays up all the same.")
                self.story.mend()
        try:
            yield from self.count()
        except Failed as e:
            if self.once:
                raise
            self.step(f"{str(e).splitlines()[0]}. Everything stays up all the same.")

    def count(self):
        """The crowd goes home; when nothing is under way any more, everything is counted."""
        self.step("The box office closes. When nothing is under way any more the audit counts: money, seats, reservations, tokens, orders, "
                  "facts, files, records.")
        yield from self.story.go_home()
        try:
            self.audit = yield from self.aside(self._check, 240, "the audit")
        except Exception as e:  # pylint: disable=broad-except
            self.audit = None
            raise Failed(f"the audit could not finish: {e}") from e
        for line in self.result():
            self.step(line)

    def result(self):
        return self.audit.count(), self.audit.found(), self.audit.verdict()

    def _check(self):
        self.stack.settle(120)
        return audit.of_stack(self.stack, brokers=self.stack.kafka.bootstrap)

    # -- playing

    def play(self):
        s = self.stack
        s.options.pop("queue")  # as shipped, from now on
        s.set("queue")
        self.foot = [
            ("2", "It stays up for playing, until Ctrl-C. The box office, in a browser:"),
            ("1", self.page),
            ("2", "Or paste into another terminal:"),
            (None, f"build/bin/postrider saga list -c {short(CONFIG_DIR)}/engine-consumer.cfg"),
            (None, f". {short(ENV_FILE)}; curl -s $POSTRIDER_CONCERT_URL/concerts"),
            (None, f"build/bin/postrider show consumers -c {short(CONFIG_DIR)}/payment-consumer.cfg"),
            (None, f"build/bin/postrider status --url http://127.0.0.1:{s['payment-relay'].port}"),
            (None, f"build/bin/postrider reconcile -c {short(CONFIG_DIR)}/{SINK}.cfg"),
            (None, f"ls {short(PLATFORM_DIR)}/*/*/*"),
            (None, "tests/support/audit.py"),
        ]
        if not self.screen.live:
            for _, text in self.foot:
                self.screen.say(text)
        self.show = False
        before = self.crowd.count
        self.story.crowd = self.story.new_crowd(0.4, self.story.places[2:])
        self.crowd.count = before
        self.crowd.start()
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
        if now - then < 1:
            return
        counts = (self.records.count, self.numbers.facts, self.numbers.sold)
        for series, n, m in zip((self.event_rate, self.fact_rate, self.sold_rate), counts, before):
            series.append(max(0, n - m) / (now - then))
        self._sampled = (now, *counts)

    def perfect(self):
        return self.audit is not None and self.audit.ok and all(p.running() for p in self.stack.process.values())

    def closing(self):
        """What stays on the terminal when all is over."""
        screen, c = self.screen, self.crowd.count
        if screen.live:
            for at, text in self.steps[:-len(self.result())]:
                screen.fill(f"  {clock(at):>5}  {text}", 9, "2")
        screen.say()
        others = ", ".join(f"{n} {what}" for what, n in c.most_common() if what != "guests")
        screen.fill(f"  {c['guests']} guests came: {others}", 2)
        screen.say()
        screen.say(self.audit.table(screen.width()))
        screen.say()
        for line in self.result():
            screen.fill("  " + line, 4, "1;32" if self.perfect() else "1;31")

    def stop(self):
        if self.story:
            self.story.close()
        for w in self.watchers:
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
    shutil.rmtree(PLATFORM_DIR, ignore_errors=True)
    for path in (ENV_FILE, CONFIG_DIR):
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
    demo.run(demo.whole_story())
    demo.finished = True
    if not demo.once:
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
    shutil.rmtree(PLATFORM_DIR, ignore_errors=True)
    for path in (ENV_FILE, CONFIG_DIR, elsewhere):
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
        if demo.stack:
            print(demo.stack.complaints(), file=sys.stderr)
    finally:
        clean_up(demo)
    return rc


if __name__ == "__main__":
    sys.exit(main())
