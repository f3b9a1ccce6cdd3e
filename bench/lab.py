"""bench/lab.py -- the bench's servers, rows and probes: one private Postgres, one private
Kafka, template databases full of rows, the ceiling programs and the relay run on copies
of the same rows. Refuses to judge: bench/measures.py does."""
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
import servers  # noqa: E402
from wait import wait_until  # noqa: E402

PARTITIONS = 6
KEYS = 10000
PAYLOAD = 168

LOAD = """
INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload)
SELECT 'bench' || CASE WHEN {topics} > 1 THEN (i % {topics})::text ELSE '' END, 'key-' || (i * 7919 % {keys}),
       'ReservationCreated', jsonb_build_object('state', 'PENDING', 'price', 120000, 'seat_id', i % 1000,
       'user_id', i % 50000, 'concert_id', i % 97, 'expires_at', '2030-01-01T00:00:00Z', 'reservation_id', i,
       'pad', repeat('x', {pad}))
FROM generate_series({first}::bigint, {last}::bigint) AS i
"""
PAD_LESS = 162  # the payload's text without its pad, about


class Failed(Exception):
    """A measure could not be taken; the others go on."""


def program(name):
    path = servers.bin_path(name, "plain")
    if not os.access(path, os.X_OK):
        raise Failed(f"{os.path.relpath(path, ROOT)} is not built")
    return path


def cpu_seconds(pid):
    """CPU of a process, all threads, in nanosecond steps where the kernel counts them."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
    return total / 1e9


def thread_cpu(pid):
    """The same, by thread: {"tid name": seconds}."""
    out = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as f:
                name = f.read().strip()
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
                out[f"{task} {name}"] = int(f.read().split()[0]) / 1e9
    return out


def cpu_ticks(pid):
    """CPU of a process from its birth, ended threads included, in steps of 10 ms."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        f = f.read().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")


def parse(text):
    return json.loads(text)


def tree_ticks(root):
    """CPU of a process and all below it, those already reaped by one of them included."""
    parents, ticks = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
                rest = f.read().rsplit(")", 1)[1].split()
            parents[int(pid)], ticks[int(pid)] = int(rest[1]), sum(map(int, rest[11:15]))
    ours = {root}
    while True:
        more = {p for p, parent in parents.items() if parent in ours} - ours
        if not more:
            return sum(ticks.get(p, 0) for p in ours)
        ours |= more


class Others:
    """The share of the machine that went to programs outside this bench, stolen time included."""

    def __init__(self):
        self.start = self._now()

    @staticmethod
    def _now():
        with open("/proc/stat", encoding="ascii") as f:
            v = list(map(int, f.readline().split()[1:9]))
        return sum(v), sum(v) - v[3] - v[4], tree_ticks(os.getpid())

    def share(self):
        total, busy, ours = (b - a for a, b in zip(self.start, self._now()))
        return max(0.0, (busy - ours) / total) if total else 0.0


def median(values):
    return statistics.median(values)


class Lab:
    def __init__(self, say=print, **config):
        self.say = say
        self.number = 0
        self.templates = {}
        self.pg = servers.Postgres(config=dict({
            "shared_buffers": "512MB", "max_wal_size": "16GB", "max_connections": "700",
            "shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "none"}, **config)).start()
        self.kafka = servers.Kafka(heap="1g").start()
        self.kafka.warm()

    def close(self):
        servers.stop_all()

    def once(self, key, make):
        """What make() gives, made at the first call for this key."""
        if key not in self.templates:
            self.templates[key] = make()
        return self.templates[key]

    def settle(self, key, warm):
        """Servers as they are after a day: the broker's code compiled, by warm() at the first call for this key, and WAL files
        there to be used again (a new one is written twice)."""
        def make():
            self.pg.query("ALTER SYSTEM SET min_wal_size = '4GB'")
            self.pg.query("SELECT pg_reload_conf()")
            self.say("  warming up")
            warm()
        self.once(key, make)
        self.pg.query("CHECKPOINT")

    # ------------------------------------------------------------ rows

    def init(self, db, name=None):
        args = ["init", "--conninfo", db.conninfo]
        if name:
            args += ["--brokers", self.kafka.bootstrap, "--name", name]
        program("postrider")
        servers.Cli(variant="plain").run(*args, check=True, timeout=120)

    def empty(self):
        """A new database with the outbox in it."""
        self.number += 1
        db = self.pg.createdb(f"empty{self.number}")
        self.init(db)
        return db

    def rows(self, n, payload=PAYLOAD, keys=KEYS, topics=1):
        """A template database holding n rows, made once."""
        key = (n, payload, keys, topics)
        if key not in self.templates:
            self.say(f"  loading {n:,} rows of {payload:,} bytes, {keys:,} keys, {topics:,} topics")
            db = self.pg.createdb(f"rows{len(self.templates)}")
            self.init(db)
            for first in range(1, n + 1, 1000000):
                last = min(first + 999999, n)
                db.psql("SET synchronous_commit = off;" + LOAD.format(
                    first=first, last=last, keys=keys, topics=topics, pad=max(0, payload - PAD_LESS)))
            db.psql("VACUUM ANALYZE outbox.event; CHECKPOINT;")
            self.templates[key] = db
        return self.templates[key]

    @contextlib.contextmanager
    def copy(self, template):
        """A private copy of a template: the same pages in the same order."""
        self.number += 1
        name = f"copy{self.number}"
        how = " STRATEGY file_copy" if self.server_version() >= 150000 else ""
        self.pg.query(f'CREATE DATABASE "{name}" TEMPLATE "{template.name}"{how}')
        db = servers.Database(self.pg, name)
        try:
            yield db
        finally:
            db.drop()

    def server_version(self):
        return int(self.pg.query("SHOW server_version_num")[0][0])

    @contextlib.contextmanager
    def topic(self, suffix="bench", partitions=PARTITIONS):
        """A new topic "run<n>.<suffix>"; yields (prefix, topic)."""
        self.number += 1
        prefix = f"run{self.number}"
        name = self.kafka.create_topic(f"{prefix}.{suffix}", partitions)
        try:
            yield prefix, name
        finally:
            self.kafka.delete_topic(name)

    # ------------------------------------------------------------ baseline

    def run_json(self, argv, timeout):
        t0 = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
        wall = time.monotonic() - t0
        if done.returncode:
            raise Failed(f"{os.path.basename(argv[0])}: {done.stderr.strip()[-300:]}")
        return dict(json.loads(done.stdout), wall=wall, notes=done.stderr.strip())

    def ceiling(self, mode, db, events, **more):
        argv = [program("ceiling"), mode, "--conninfo", db.conninfo, "--events", str(events)]
        for k, v in more.items():
            argv += ["--" + k.replace("_", "-"), str(v)]
        with contextlib.ExitStack() as stack:
            if mode != "copy":
                argv += ["--brokers", self.kafka.bootstrap, "--topic", stack.enter_context(self.topic())[1]]
            r = self.run_json(argv, 600)
        if "events" in r and r["events"] != events:
            raise Failed(f"the ceiling saw {r['events']} of {events} events")
        return r

    # ------------------------------------------------------------ relay

    def relay(self, db, delivery, prefix, **config):
        """A relay of its own name on db, its topics called <prefix>.<aggregatetype>; not started."""
        program("postrider-relay")
        self.number += 1
        name = f"bench{self.number}"
        self.init(db, name)
        return servers.Relay(db.conninfo, self.kafka.bootstrap, name=name, delivery=delivery, variant="plain",
                             config=dict({"route": {"topic": prefix + ".${aggregatetype}"}}, **config))

    def published(self, relay):
        try:
            return relay.metric("postrider_published_total")
        except OSError:
            if not relay.running():
                raise Failed(f"the relay ended:\n{servers.tail(relay.log, 5)}") from None
            return 0.0

    def watch(self, relay, events, t0, timeout=600, at=None):
        """Samples (seconds, published) until all events are published; seldom at first, so
        that watching costs nothing, often near the end. at: {published: action}, each done once."""
        samples = [(0.0, 0.0)]
        at = sorted((at or {}).items())
        while samples[-1][1] < events:
            if time.monotonic() - t0 > timeout:
                raise Failed(f"{samples[-1][1]:.0f} of {events} published in {timeout} s:\n{servers.tail(relay.log, 5)}")
            time.sleep(0.2 if 0 < samples[-1][1] < events * 0.8 else 0.02)
            n = self.published(relay)
            samples.append((time.monotonic() - t0, n))
            while at and n >= at[0][0]:
                at.pop(0)[1]()
        return samples

    def drain(self, db, delivery, events, at=None, suffix="bench", **config):
        """Starts a relay on a full outbox and waits until all is published."""
        with self.topic(suffix) as (prefix, topic):
            relay = self.relay(db, delivery, prefix, **config)
            t0 = time.monotonic()
            relay.start()
            try:
                samples = self.watch(relay, events, t0, at={n: (lambda f=f: f(relay)) for n, f in (at or {}).items()})
                r = drained(samples, events)
                r["cpu_us_per_event"] = cpu_ticks(relay.pid) * 1e6 / events
                r["peak_rss_kb"] = relay.peak_rss_kb()
                r["idle_rss_kb"] = relay.rss_kb()
                r["exit"] = relay.terminate()
            finally:
                relay.stop()
            on_topic = sum(self.kafka.end_offsets(topic).values())
            if suffix == "bench" and on_topic < events:
                raise Failed(f"the relay says {events} published, the topic ends at {on_topic}")
        return r

    @contextlib.contextmanager
    def running(self, delivery, counted=False, **config):
        """A relay at rest on an empty outbox; yields (db, relay, topic). counted: its statements
        are counted by pg_stat_statements."""
        db = self.empty()
        if counted:
            self.count_statements(db)
        with self.topic() as (prefix, topic):
            relay = self.relay(db, delivery, prefix, **config).start()
            try:
                relay.wait_ready()
                yield db, relay, topic
            finally:
                relay.stop()
        db.drop()

    def count_statements(self, db):
        self.pg.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        self.pg.query(f"ALTER DATABASE {db.name} SET pg_stat_statements.track = 'top'")

    def latency(self, db, topic, rate, seconds, wait=True, **more):
        argv = [program("latency"), "--conninfo", db.conninfo, "--brokers", self.kafka.bootstrap, "--topic", topic,
                "--rate", str(rate), "--seconds", str(seconds)]
        for k, v in dict({"aggregatetype": "bench", "connections": 8 if rate <= 2000 else 16}, **more).items():
            argv += ["--" + k] + ([] if v is True else [str(v)])
        if wait:
            return self.run_json(argv, seconds + 60)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def crossing(samples, n):
    """When the count passed n, by straight lines between samples."""
    for (t0, a), (t1, b) in zip(samples, samples[1:]):
        if b >= n:
            return t1 if b == a else t0 + (t1 - t0) * (n - a) / (b - a)
    return samples[-1][0]


def drained(samples, events):
    wall = samples[-1][0]
    low, high = crossing(samples, events * 0.1), crossing(samples, events * 0.9)
    first = next(t for t, n in samples if n > 0)
    return {"events": events, "wall": wall, "first_seen": first, "events_per_second": events / wall,
            "steady_events_per_second": events * 0.8 / (high - low) if high > low else 0.0}


__all__ = ["Lab", "Failed", "servers", "wait_until", "median", "cpu_seconds", "program", "KEYS", "PAYLOAD", "ROOT"]
