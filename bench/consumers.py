"""bench/consumers.py -- what `make bench` measures of the consumer, in the manner of bench/measures.py: each
beside a named baseline of the same run, in turns. One topic full of events is written once and read anew by a
new group each time, into a copy of one database. Refuses to print a rate when an effect is missing or was
there twice."""
import contextlib
import os
import subprocess
import time

import lab as L
import measures as M
import rivals as R
from lab import Failed, median, wait_until
from measures import Result, in_turns, pick

HERE = os.path.dirname(os.path.abspath(__file__))
SESSION = 10.0  # seconds; the consumer's session.timeout.ms, which no config changes

SCHEMA = """
CREATE SCHEMA bench;
CREATE TABLE bench.account (key text PRIMARY KEY, n bigint NOT NULL DEFAULT 0, amount bigint NOT NULL DEFAULT 0)
    WITH (fillfactor = 50);
INSERT INTO bench.account SELECT 'key-' || i FROM generate_series(0, {keys} - 1) AS i;
CREATE TABLE bench.processed (id uuid PRIMARY KEY);
CREATE TABLE bench.beat (partition integer, message_offset bigint, at timestamptz);
CREATE FUNCTION bench.on_events(messages inbox.message[]) RETURNS void LANGUAGE sql AS $$
    UPDATE bench.account AS a SET n = a.n + s.n, amount = a.amount + s.amount
    FROM (SELECT m.key, count(*) AS n, sum((m.payload ->> 'amount')::bigint) AS amount
          FROM unnest(messages) AS m GROUP BY m.key) AS s
    WHERE a.key = s.key
$$;
CREATE FUNCTION bench.on_event(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE bench.account AS a SET n = a.n + 1, amount = a.amount + (m.payload ->> 'amount')::bigint
    WHERE a.key = m.key;
END
$$;
CREATE FUNCTION bench.nothing(messages inbox.message[]) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION bench.note(messages inbox.message[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO bench.beat SELECT m.partition, m.message_offset, clock_timestamp() FROM unnest(messages) AS m
$$;
VACUUM ANALYZE bench.account;
"""


# ---------------------------------------------------------------- what all measures stand on

def fill(lab, topic, n, **more):
    argv = [L.program("topic"), "fill", "--brokers", lab.kafka.bootstrap, "--topic", topic, "--messages", str(n),
            "--keys", str(L.KEYS)]
    for k, v in more.items():
        argv += ["--" + k.replace("_", "-"), str(v)]
    return argv


def events(lab, n):
    """A topic of n events, written once."""
    def make():
        lab.say(f"  writing {n:,} events, {L.KEYS:,} keys, {L.PARTITIONS} partitions")
        lab.number += 1
        topic = lab.kafka.create_topic(f"events{lab.number}", L.PARTITIONS)
        lab.run_json(fill(lab, topic, n), 600)
        return topic
    return lab.once(("topic", n), make)


def equip(lab, db):
    lab.init(db)
    db.psql(SCHEMA.format(keys=L.KEYS))
    return db


@contextlib.contextmanager
def accounts(lab):
    """A database of its own: inbox, and accounts that hold nothing."""
    with lab.copy(lab.once("accounts", lambda: equip(lab, lab.pg.createdb("accounts")))) as db:
        yield db


def member(lab, db, topic, handler, group=None, **config):
    """A consumer, not started. handler: its settings, or the name of a SQL function."""
    if isinstance(handler, str):
        handler = {"kind": "sql", "function": handler}
    L.program("postrider-consumer")
    lab.number += 1
    return L.servers.Consumer(db.conninfo, lab.kafka.bootstrap, group or f"bench{lab.number}", [topic],
                              handler, variant="plain", config=config)


def handled(c):
    """Events done with, whatever became of them: effects() says that."""
    try:
        return c.metric("postrider_consumer_handled_total")
    except OSError:
        if not c.running():
            raise Failed(f"the consumer ended:\n{L.servers.tail(c.log, 5)}") from None
        return 0.0


def watch(program, count, n, timeout=600):
    """Samples (seconds, count) from now until count() is n: seldom in the middle, where watching costs."""
    t0 = time.monotonic()
    samples = [(0.0, 0.0)]
    while samples[-1][1] < n:
        if time.monotonic() - t0 > timeout or not program.running():
            raise Failed(f"{samples[-1][1]:.0f} of {n} handled after {time.monotonic() - t0:.0f} s:\n"
                         f"{L.servers.tail(program.log, 5)}")
        time.sleep(0.2 if 0 < samples[-1][1] < n * 0.8 else 0.02)
        samples.append((time.monotonic() - t0, count()))
    return samples


def effects(db):
    return int(db.one("SELECT sum(n) FROM bench.account"))


def drain(lab, db, topic, n, handler, expect=None, **config):
    """A consumer of a new group reads the whole topic."""
    c = member(lab, db, topic, handler, **config)
    try:
        c.start()
        r = L.drained(watch(c, lambda: handled(c), n), n)
        r["cpu_us_per_event"] = L.cpu_ticks(c.pid) * 1e6 / n
        r["peak_rss_kb"] = c.peak_rss_kb()
        r["exit"] = c.terminate()
    finally:
        c.stop()
    if expect is not None and effects(db) != expect:
        raise Failed(f"{effects(db)} effects of {expect} events")
    return r


def ceiling(lab, n, function, *flags):
    with accounts(lab) as db:
        return lab.run_json([L.program("consumer-ceiling"), "--conninfo", db.conninfo, "--function", function,
                             "--messages", str(n), "--keys", str(L.KEYS), "--partitions", str(L.PARTITIONS), *flags],
                            600)


# ---------------------------------------------------------------- speed

def consume(lab, opt):
    """Dedupe, a one-row update and the position, by a set-based function, beside a bare loop that calls the same."""
    n, topic = opt.rows, events(lab, opt.rows)

    def ours():
        with accounts(lab) as db:
            return drain(lab, db, topic, n, "bench.on_events", expect=n)

    takes = {"bare": lambda: ceiling(lab, n, "bench.on_events"), "ours": ours,
             "kept": lambda: ceiling(lab, n, "bench.on_events", "--keep")}
    runs = {which: [] for which in takes}
    for i in range(opt.rounds):
        for which in list(takes) if i % 2 == 0 else reversed(list(takes)):
            runs[which].append(takes[which]())
    base, seen, kept = runs["bare"], runs["ours"], runs["kept"]
    detail = {"ceiling": base, "consumer": seen, "ceiling, memory kept": kept}
    yield Result("consume", f"set function, {n:,} events, 10-90 %", "ev/s",
                 median(pick(seen, "steady_events_per_second")), "bare loop", median(pick(base, "steady_events_per_second")),
                 ("ratio", ">=", 0.85), detail)
    yield Result("consume", "set function, 10-90 %", "ev/s", median(pick(seen, "steady_events_per_second")),
                 "bare loop, memory kept", median(pick(kept, "steady_events_per_second")))
    yield Result("consume", "set function, start to last event", "ev/s", median(pick(seen, "events_per_second")),
                 "bare loop", median(pick(base, "events_per_second")))
    yield Result("consume", "set function, CPU of the program", "us/ev", median(pick(seen, "cpu_us_per_event")),
                 "bare loop", median(pick(base, "cpu_us_per_event")))
    yield Result("consume", f"set function, peak RSS, {n:,} events", "MB", max(pick(seen, "peak_rss_kb")) / 1024,
                 "bare loop", max(pick(base, "peak_rss_kb")) / 1024, ("value", "<=", 96.0))


def consume_row(lab, opt):
    """The same by a function that is called once an event."""
    n = max(opt.rows // 4, 1000)
    topic = events(lab, n)

    def ours():
        with accounts(lab) as db:
            return drain(lab, db, topic, n, "bench.on_event", expect=n)

    base, seen = in_turns(opt.rounds, lambda: ceiling(lab, n, "bench.on_event", "--row"), ours)
    yield Result("consume", f"row function, {n:,} events, 10-90 %", "ev/s",
                 median(pick(seen, "steady_events_per_second")), "bare loop",
                 median(pick(base, "steady_events_per_second")), ("value", ">=", 25000.0),
                 {"ceiling": base, "consumer": seen})


def read_alone(lab, topic, n):
    lab.number += 1
    return lab.run_json([L.program("topic"), "read", "--brokers", lab.kafka.bootstrap, "--topic", topic, "--messages",
                         str(n), "--group", f"bare{lab.number}"], 300)


def noop():
    """A shared object whose handler does nothing."""
    path = os.path.join(L.servers.new_dir("noop"), "noop.so")
    include = subprocess.run(["pg_config", "--includedir"], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-I", L.ROOT, "-I", include, "-o", path,
                           os.path.join(HERE, "listeners", "noop.c")], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Failed(f"cc: {done.stderr.strip()[-300:]}")
    return path


def consume_noop(lab, opt):
    """A handler that does nothing, without dedupe, beside a bare librdkafka loop and beside a bare SQL loop."""
    n, topic = opt.rows, events(lab, opt.rows)
    handlers = {"C": {"kind": "c", "library": lab.once("noop", noop)}, "SQL": "bench.nothing"}
    seen, base = {"C": [], "SQL": []}, []
    for _ in range(opt.rounds):
        base.append(read_alone(lab, topic, n))
        for kind, handler in handlers.items():
            with accounts(lab) as db:
                seen[kind].append(drain(lab, db, topic, n, handler, dedupe="offset"))
    sql = [ceiling(lab, n, "bench.nothing", "--offset", "--keep") for _ in range(max(1, opt.rounds - 1))]
    for kind, runs in seen.items():
        rate = median(pick(runs, "steady_events_per_second"))
        yield Result("consume", f"no-op in {kind}, offset mode, {n:,} events, 10-90 %", "ev/s", rate,
                     "read and thrown away", median(pick(base, "steady_events_per_second")), ("value", ">=", 300000.0),
                     {"bare": base, "consumer": runs})
        if kind == "SQL":
            yield Result("consume", "no-op in SQL, offset mode, 10-90 %", "ev/s", rate, "bare loop, memory kept",
                         median(pick(sql, "steady_events_per_second")), None, {"sql": sql})
        yield Result("consume", f"no-op in {kind}, CPU of the program", "us/ev", median(pick(runs, "cpu_us_per_event")),
                     "read and thrown away", median(pick(base, "cpu_us_per_event")))


# ---------------------------------------------------------------- a dead database

def stop_postgres(pg):
    pg.stop("immediate")
    return pg.start


def freeze_postgres(pg):
    pids = pg.stop_backend("application_name LIKE 'postrider%'")
    pg.sigstop()

    def thaw():
        pg.sigcont()
        pg.cont_backend(pids)
    return thaw


def consume_dead(lab, opt):
    """All events wait and Postgres is dead: nothing may pile up; and all is handled once it is back."""
    n, topic = opt.rows, events(lab, opt.rows)
    for what, die in (("stopped", stop_postgres), ("frozen", freeze_postgres)):
        pg = L.servers.Postgres().start()
        c = member(lab, equip(lab, pg.createdb("dead")), topic, "bench.on_events")
        try:
            c.start()
            wait_until(lambda: handled(c) >= n / 100, 60, "the first events", interval=0.005)
            before, at = c.peak_rss_kb(), handled(c)
            revive = die(pg)
            time.sleep(opt.stall)
            dead = c.peak_rss_kb()
            left = n - handled(c)
            revive()
            wait_until(lambda: handled(c) >= n, 300, "the rest to be handled")
            if effects(L.servers.Database(pg, "dead")) != n:
                raise Failed(f"{effects(L.servers.Database(pg, 'dead'))} effects of {n} events")
        finally:
            c.stop()
            pg.stop("immediate")
        yield Result("memory", f"peak RSS, {left:,.0f} events wait, Postgres {what} for {opt.stall:g} s", "MB",
                     dead / 1024, "while it lived", before / 1024, ("value", "<=", 64.0),
                     {"before_kb": before, "dead_kb": dead, "handled_before": at, "waiting": left})


# ---------------------------------------------------------------- a member that dies

def partitions_of(c):
    return [p["partition"] for p in c.status()["partitions"]]


def silences(rows, parts, begin, end):
    """Longest time in which none of a partition's events was handled, of those that end between begin and end."""
    longest = 0.0
    for p in parts:
        at = [t for q, t in rows if q == p]
        longest = max([longest] + [b - a for a, b in zip(at, at[1:]) if begin <= b <= end])
    return longest


def rebalance(lab, opt):
    """Three members under load, one killed -9: who waits for how long."""
    rate = 1200
    n = int(rate * (SESSION + 20))
    lab.number += 1
    topic = lab.kafka.create_topic(f"beat{lab.number}", L.PARTITIONS)
    with accounts(lab) as db:
        members = [member(lab, db, topic, "bench.note", group="rebalance") for _ in range(3)]
        try:
            for c in members:
                c.start()
            for c in members:
                wait_until(lambda c=c: c.metric("postrider_consumer_assigned_partitions") == 2, 60, "two each",
                           ignore=(OSError,))
                c.wait_ready()
            load = subprocess.Popen(fill(lab, topic, n, rate=rate), stdout=subprocess.DEVNULL)
            try:
                count = "SELECT count(*) FROM bench.beat"
                wait_until(lambda: db.one(count) > rate * 7, 60, "seven seconds of load")
                lost = partitions_of(members[1])
                kept = [p for c in (members[0], members[2]) for p in partitions_of(c)]
                before = float(db.one("SELECT extract(epoch FROM clock_timestamp())"))
                members[1].kill9()
                killed = float(db.one("SELECT extract(epoch FROM clock_timestamp())"))
                wait_until(lambda: db.one(count) >= n, SESSION + 60, "all events", interval=0.5)
            finally:
                load.kill()
                load.wait()
            distinct = db.one("SELECT count(DISTINCT (partition, message_offset)) FROM bench.beat")
            rows = db.query("SELECT partition, extract(epoch FROM at)::float8 FROM bench.beat ORDER BY at, message_offset")
        finally:
            for c in members:
                c.stop()
    if sorted(lost + kept) != list(range(L.PARTITIONS)):
        raise Failed(f"partitions before the kill: {lost} and {kept}")
    end = rows[-1][1]
    taken = max(min(t for p, t in rows if p == q and t > killed) for q in lost) - before
    undisturbed = silences(rows, range(L.PARTITIONS), rows[0][1] + 2, before)
    others = silences(rows, kept, before, end)
    detail = {"session": SESSION, "taken_over": taken, "silence": others, "undisturbed": undisturbed,
              "lost": lost, "kept": kept, "events": n}
    yield Result("rebalance", "killed -9 to its partitions handled by others", "s", taken, "session timeout", SESSION,
                 ("value", "<=", SESSION + 1.0), detail)
    yield Result("rebalance", "longest silence of partitions not concerned", "s", others, "undisturbed", undisturbed,
                 ("value", "<=", 1.0))
    yield Result("rebalance", "lost + duplicated", "events", float(n - distinct + len(rows) - distinct), "sent", float(n),
                 ("value", "<=", 0.0))


# ---------------------------------------------------------------- what users run instead

class Listener(L.servers.Server):
    """Another program of a group: two processes of a Python loop, or a JVM with two threads."""

    def __init__(self, lab, db, topic, kind):
        self.name = kind
        self.dir = L.servers.new_dir("listener")
        self.log = os.path.join(self.dir, "listener.log")
        lab.number += 1
        self.group = group = f"rival{lab.number}"
        if kind == "python":
            self.argv = [["/usr/bin/python3", os.path.join(HERE, "listeners", "loop.py"), lab.kafka.bootstrap, group,
                          topic, db.conninfo]] * 2
        else:
            url = f"jdbc:postgresql://{lab.pg.host}:{lab.pg.port}/{db.name}?user=postgres&reWriteBatchedInserts=true"
            self.argv = [["java", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-cp",
                          f"{lab.once('listener', compiled)}:{jars()}/*", "Listener", kind, lab.kafka.bootstrap, group,
                          topic, url]]
        self.more = []

    def start(self):
        procs = [L.servers.spawn(argv, log=self.log, cwd=self.dir) for argv in self.argv]
        self.proc, self.more = procs[0], procs[1:]
        self._remember()
        return self

    def running(self):
        return super().running() and all(p.poll() is None for p in self.more)

    def stop(self):
        for p in self.more:
            p.kill()
            p.wait()
        self.kill()

    def numbers(self, n):
        return {"cpu_us_per_event": sum(L.cpu_ticks(p.pid) for p in [self.proc] + self.more) * 1e6 / n,
                "peak_rss_kb": sum(peak_rss_kb(p.pid) for p in [self.proc] + self.more)}


def peak_rss_kb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmHWM"))


def jars():
    return R.jars("listeners", "listeners-1")


def compiled():
    """The directory of Listener.class."""
    out = L.servers.new_dir("classes")
    try:
        done = subprocess.run(["javac", "-d", out, "-cp", f"{jars()}/*", os.path.join(HERE, "listeners", "Listener.java")],
                              capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise Failed("there is no javac: the Java listeners need a JDK") from None
    if done.returncode:
        raise Failed(f"javac: {done.stderr.strip()[-500:]}")
    return out


def listen(lab, topic, n, kind):
    """A rival reads the whole topic."""
    with accounts(lab) as db:
        p = Listener(lab, db, topic, kind)
        try:
            p.start()
            r = L.drained(watch(p, lambda: effects(db), n), n)
            r.update(p.numbers(n))
        finally:
            p.stop()
    return r


def twice(lab, n):
    """A topic in which each of n events stands two times."""
    lab.number += 1
    topic = lab.kafka.create_topic(f"twice{lab.number}", L.PARTITIONS)
    for _ in range(2):
        lab.run_json(fill(lab, topic, n, ids_us=1760000000000000), 300)
    return topic


class Committed:
    """How far a group is, by what it told Kafka; one connection for all questions."""

    def __init__(self, lab, group, topic):
        from confluent_kafka import Consumer, TopicPartition
        self.c = Consumer({"bootstrap.servers": lab.kafka.bootstrap, "group.id": group, "log_level": 0})
        self.parts = [TopicPartition(topic, p) for p in range(L.PARTITIONS)]

    def sum(self):
        return sum(max(0, p.offset) for p in self.c.committed(self.parts, 10))

    def close(self):
        self.c.close()


def extra_effects(lab, n, kind):
    """Effects beyond one per event, once a topic has been read in which each of n events stands two times."""
    topic = lab.once(("twice", n), lambda: twice(lab, n))
    with accounts(lab) as db:
        if kind == "ours":
            p = member(lab, db, topic, "bench.on_events")
        else:
            p = Listener(lab, db, topic, kind)
        told = Committed(lab, p.group, topic)
        try:
            p.start()
            watch(p, told.sum, 2 * n, 120)
        finally:
            p.stop()
            told.close()
        return effects(db) - n


NAMES = {"python": "Python, per record", "record": "Java, per record", "batch": "Java, per batch"}


def rivals_here(lab):
    try:
        lab.once("listener", compiled)
    except Failed as e:
        lab.say(f"  skipped, the Java listeners: {e}")
        return ["python"]
    return list(NAMES)


def consume_rivals(lab, opt):
    """What services write today: per-record loops and a batch listener, with the same work, two workers each."""
    n, few = opt.rows, max(opt.rows // 50, 2000)
    ours, theirs = [], {kind: [] for kind in rivals_here(lab)}
    for _ in range(max(1, opt.rounds - 1)):
        for kind, runs in theirs.items():
            size = n if kind == "batch" else few
            runs.append(listen(lab, events(lab, size), size, kind))
        with accounts(lab) as db:
            ours.append(drain(lab, db, events(lab, n), n, "bench.on_events", expect=n))
    rate = median(pick(ours, "steady_events_per_second"))
    for kind, runs in theirs.items():
        yield Result("rivals", "set function, 10-90 %", "ev/s", rate, NAMES[kind],
                     median(pick(runs, "steady_events_per_second")), ("ratio", ">=", 2.0 if kind == "batch" else 20.0),
                     {"consumer": ours, kind: runs})
        yield Result("rivals", "CPU of the program", "us/ev", median(pick(ours, "cpu_us_per_event")), NAMES[kind],
                     median(pick(runs, "cpu_us_per_event")))
        yield Result("rivals", "peak RSS", "MB", max(pick(ours, "peak_rss_kb")) / 1024, NAMES[kind],
                     max(pick(runs, "peak_rss_kb")) / 1024)
    extra = float(extra_effects(lab, few, "ours"))
    for kind in theirs:
        yield Result("rivals", f"effects too many, {few:,} events sent twice", "effects", extra, NAMES[kind],
                     float(extra_effects(lab, few, kind)), ("value", "<=", 0.0))


MEASURES = {f.__name__: f for f in (consume, consume_row, consume_noop, consume_dead, rebalance)}
RIVALS = {"consume_rivals": consume_rivals}
