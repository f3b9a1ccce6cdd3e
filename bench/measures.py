"""bench/measures.py -- what `make bench` measures. Every measure names its baseline and
takes both in turns (A B, B A, ...) in the same run on the same machine; medians are
compared. Refuses to print a number that has nothing beside it: where there is no other
program to compare with, the baseline is the same machine doing nothing, or the least
that Kafka itself allows."""
import contextlib
import os
import subprocess
import time

import lab as L
from lab import Failed, median, wait_until

MODES = ("exactly_once", "at_least_once")
CEILING = {"exactly_once": "transactional", "at_least_once": "idempotent"}


class Result:
    """One line of the table. must: (on, op, number): on is "ratio" or "value"."""

    def __init__(self, measure, what, unit, value, baseline, base, must=None, detail=None):
        self.measure, self.what, self.unit = measure, what, unit
        self.value, self.baseline, self.base = value, baseline, base
        self.must, self.detail = must, detail or {}

    @property
    def ratio(self):
        return self.value / self.base if self.base else None

    @property
    def reached(self):
        if not self.must:
            return None
        on, op, number = self.must
        seen = self.ratio if on == "ratio" else self.value
        if seen is None:
            return None
        return seen >= number if op == ">=" else seen <= number

    def json(self):
        return {"measure": self.measure, "what": self.what, "unit": self.unit, "value": self.value,
                "baseline": self.baseline, "baseline_value": self.base, "ratio": self.ratio,
                "must": " ".join(map(str, self.must)) if self.must else None, "reached": self.reached,
                "detail": self.detail}


def in_turns(rounds, a, b):
    """a, b, b, a, a, b, ...: neither always runs on the machine the other has warmed."""
    seen_a, seen_b = [], []
    for i in range(rounds):
        for which in ((a, b) if i % 2 == 0 else (b, a)):
            (seen_a if which is a else seen_b).append(which())
    return seen_a, seen_b


def pick(runs, key):
    return [r[key] for r in runs]


# ---------------------------------------------------------------- throughput and memory

def drain(lab, opt):
    """A backlog drained, against the raw ceiling on a copy of the same rows."""
    rows = lab.rows(opt.rows)
    for mode in MODES:
        def ceiling(mode=mode):
            with lab.copy(rows) as db:
                return lab.ceiling(CEILING[mode], db, opt.rows)

        def relay(mode=mode):
            with lab.copy(rows) as db:
                return lab.drain(db, mode, opt.rows)

        base, ours = in_turns(opt.rounds, ceiling, relay)
        name = f"{CEILING[mode]} ceiling"
        detail = {"ceiling": base, "relay": ours}
        yield Result("drain", f"{mode}, {opt.rows:,} rows, 10-90 %", "ev/s",
                     median(pick(ours, "steady_events_per_second")), name,
                     median(pick(base, "steady_events_per_second")), ("ratio", ">=", 0.90), detail)
        yield Result("drain", f"{mode}, start to last acknowledgement", "ev/s",
                     opt.rows / median(pick(ours, "wall")), name, opt.rows / median(pick(base, "wall")))
        yield Result("drain", f"{mode}, CPU of the program", "us/ev", median(pick(ours, "cpu_us_per_event")), name,
                     median(pick(base, "cpu_us_per_event")))
        yield Result("memory", f"{mode}, peak RSS, {opt.rows:,} rows", "MB",
                     max(pick(ours, "peak_rss_kb")) / 1024, name, max(pick(base, "peak_rss_kb")) / 1024,
                     ("value", "<=", 64.0))


def read(lab, opt):
    """What Postgres alone gives: the same COPY into nothing, to see who is the bottleneck."""
    rows = lab.rows(opt.rows)

    def copy():
        return lab.ceiling("copy", rows, opt.rows)

    def transactional():
        return lab.ceiling("transactional", rows, opt.rows)

    base, ours = in_turns(opt.rounds, copy, transactional)
    yield Result("ceilings", "transactional, 10,000 per transaction", "ev/s",
                 median(pick(ours, "events_per_second")), "COPY into nothing", median(pick(base, "events_per_second")),
                 detail={"copy": base, "transactional": ours})


def flat(lab, opt):
    """Ten times the backlog, the same memory; and the first record just as soon."""
    small, large = opt.rows, opt.rows * 10
    for mode in MODES:
        with lab.copy(lab.rows(small)) as db:
            base = lab.drain(db, mode, small)
        with lab.copy(lab.rows(large)) as db:
            ours = lab.drain(db, mode, large)
        detail = {"small": base, "large": ours}
        yield Result("memory", f"{mode}, peak RSS, {large:,} rows", "MB", ours["peak_rss_kb"] / 1024,
                     f"{small:,} rows", base["peak_rss_kb"] / 1024, ("value", "<=", 64.0), detail)
        yield Result("drain", f"{mode}, {large:,} rows, 10-90 %", "ev/s", ours["steady_events_per_second"],
                     f"{small:,} rows", base["steady_events_per_second"], ("ratio", ">=", 0.90))


def stalled(lab, opt):
    """Kafka frozen for a while in the middle of a drain: nothing may pile up in the relay."""
    rows = lab.rows(opt.rows)

    def freeze(relay):
        seen["before"] = relay.peak_rss_kb()
        lab.kafka.sigstop()
        try:
            time.sleep(opt.stall)
            seen["frozen"] = relay.peak_rss_kb()
        finally:
            lab.kafka.sigcont()

    for mode in MODES:
        seen = {}
        with lab.copy(rows) as db:
            r = lab.drain(db, mode, opt.rows, at={opt.rows // 5: freeze})
        yield Result("memory", f"{mode}, peak RSS, Kafka frozen for {opt.stall:g} s", "MB", r["peak_rss_kb"] / 1024,
                     "before the freeze", seen["before"] / 1024, ("value", "<=", 64.0), dict(r, **seen))


def first(lab, opt):
    """Start of the relay -> first record of the backlog in a consumer's hands."""
    n = opt.rows * (10 if opt.full else 1)
    for mode in MODES:
        def ours(mode=mode):
            with lab.copy(lab.rows(n)) as db:
                return first_record(lab, db, mode)

        def base(mode=mode):
            with lab.copy(lab.rows(min(10000, n))) as db:
                return first_record(lab, db, mode)

        small, large = in_turns(opt.rounds, base, ours)
        yield Result("first record", f"{mode}, of {n:,} rows", "s", median(large), "of 10,000 rows", median(small),
                     ("value", "<=", 2.0), {"small": small, "large": large})


@contextlib.contextmanager
def reader(lab, topic):
    """A read_committed consumer of the whole topic, assigned and awake."""
    from confluent_kafka import Consumer, TopicPartition
    c = Consumer({"bootstrap.servers": lab.kafka.bootstrap, "group.id": "bench", "isolation.level": "read_committed",
                  "enable.auto.commit": False, "fetch.wait.max.ms": 10, "log_level": 0})
    try:
        parts = c.list_topics(topic, 10).topics[topic].partitions
        c.assign([TopicPartition(topic, p, 0) for p in parts])
        c.poll(0.2)
        yield c
    finally:
        c.close()


def first_record(lab, db, mode):
    with lab.topic() as (prefix, topic), reader(lab, topic) as c:
        relay = lab.relay(db, mode, prefix)
        t0 = time.monotonic()
        relay.start()
        try:
            while time.monotonic() - t0 < 60:
                m = c.poll(0.05)
                if m is not None and not m.error():
                    return time.monotonic() - t0
                if not relay.running():
                    raise Failed(f"the relay ended:\n{L.servers.tail(relay.log, 5)}")
            raise Failed("no record in 60 s")
        finally:
            relay.stop()


# ---------------------------------------------------------------- latency

LATENCY_MUST = {"exactly_once": (25.0, 80.0), "at_least_once": (5.0, 20.0)}


def latency(lab, opt):
    """Commit -> read_committed consumer, beside the least that Kafka and librdkafka allow."""
    for rate in (1000, 5000):
        for mode in MODES:
            def floor(mode=mode, rate=rate):
                with lab.topic() as (_, topic):
                    argv = [L.program("latency"), "--brokers", lab.kafka.bootstrap, "--topic", topic, "--rate",
                            str(rate), "--seconds", str(opt.seconds / 2), "--warmup", "2", "--direct", CEILING[mode],
                            "--gap-ms", "3" if mode == "exactly_once" else "0"]
                    return lab.run_json(argv, opt.seconds + 60)

            def ours(mode=mode, rate=rate):
                with lab.running(mode) as (db, relay, topic):
                    before = L.cpu_seconds(relay.pid)
                    r = lab.latency(db, topic, rate, opt.seconds, publish=True)
                    r["relay_cpu_share"] = (L.cpu_seconds(relay.pid) - before) / r["wall"]
                    return r

            base, seen = in_turns(max(1, opt.rounds - 1), floor, ours)
            yield from latency_lines(mode, rate, base, seen)


def latency_lines(mode, rate, base, seen):
    detail = {"floor": base, "relay": seen}
    times = 1 if rate == 1000 else 2
    for q, must in zip(("p50", "p99"), LATENCY_MUST[mode]):
        yield Result("latency", f"{mode}, {rate:,}/s, {q}", "ms", median([r["latency_ms"][q] for r in seen]),
                     "straight to Kafka", median([r["latency_ms"][q] for r in base]), ("value", "<=", must * times),
                     detail if q == "p50" else None)
    yield Result("latency", f"{mode}, {rate:,}/s, lost + duplicated", "events",
                 float(sum(r["lost"] + r["dup"] + r["invented"] for r in seen)), "committed",
                 float(sum(r["committed"] for r in seen)), ("value", "<=", 0.0))


def restart(lab, opt):
    """kill -9 under load, started again at once: the longest silence a consumer hears."""
    for mode in MODES:
        with lab.running(mode) as (db, relay, topic):
            quiet = lab.latency(db, topic, 500, 4, warmup=1)
            probe = lab.latency(db, topic, 500, 8, warmup=1, wait=False, patience=60)
            wait_until(lambda: db.one("SELECT count(*) FROM outbox.event") > 2500 + 1500, 30, "load")
            relay.kill9()
            relay.start()
            out, err = probe.communicate(timeout=120)
            if probe.returncode:
                raise Failed(err)
            r = L.parse(out)
        yield Result("restart", f"{mode}, kill -9 to first new record", "ms", r["longest_gap_ms"],
                     "longest gap undisturbed", quiet["longest_gap_ms"],
                     ("value", "<=", 1000.0) if mode == "at_least_once" else None, {"killed": r, "quiet": quiet})
        yield Result("restart", f"{mode}, lost + invented", "events", float(r["lost"] + r["invented"]), "committed",
                     float(r["committed"]), ("value", "<=", 0.0))
        if mode == "exactly_once":
            yield Result("restart", "exactly_once, duplicated", "events", float(r["dup"]), "committed",
                         float(r["committed"]), ("value", "<=", 0.0))


# ---------------------------------------------------------------- idle

TURNS = """
SELECT coalesce(max(s.calls), 0)::bigint, coalesce(sum(s.total_exec_time), 0)::float8, count(*)
FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = %s
"""
DEAD = "SELECT coalesce(sum(n_tup_upd + n_tup_del + n_dead_tup), 0)::bigint FROM pg_stat_all_tables"


def quiet_window(lab, db, seconds, relay=None):
    """What happens in a window in which nobody publishes."""
    pids = relay_backends(lab, db)
    lab.pg.query("SELECT pg_stat_statements_reset()")
    wal = db.one("SELECT pg_current_wal_insert_lsn()")
    dead, cpu = db.one(DEAD), L.cpu_seconds(relay.pid) if relay else 0
    threads = L.thread_cpu(relay.pid) if relay else {}
    backend = sum(L.cpu_seconds(p) for p in pids)
    t0 = time.monotonic()
    time.sleep(seconds)
    window = time.monotonic() - t0
    r = {"seconds": window, "relay_cpu": (L.cpu_seconds(relay.pid) - cpu) if relay else 0.0,
         "backend_cpu": sum(L.cpu_seconds(p) for p in pids) - backend,
         "wal_bytes": int(db.one("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (wal,)))}
    r["thread_cpu"] = {k: v - threads.get(k, 0) for k, v in (L.thread_cpu(relay.pid) if relay else {}).items()}
    # Statistics are sent with a delay, at most once a second.
    time.sleep(1.5)
    r["dead"] = int(db.one(DEAD) - dead)
    r["turns"], r["exec_ms"], r["statements"] = lab.pg.query(TURNS, (db.name,))[0]
    return r


def setting(lab, name, value):
    lab.pg.query(f"ALTER SYSTEM SET {name} = {value}")
    lab.pg.query("SELECT pg_reload_conf()")
    wait_until(lambda: lab.pg.query(f"SHOW {name}")[0][0] == value, 10, f"{name} = {value}")


def relay_backends(lab, db):
    return lab.pg.backends(f"datname = '{db.name}' AND application_name LIKE 'postrider%'")


def idle(lab, opt):
    """An idle relay, polling every 10 ms at most: its share of a core, and what it does to Postgres."""
    for mode in MODES:
        # Autovacuum looks after the catalogs of databases made a moment ago: not the relay's doing.
        setting(lab, "autovacuum", "off")
        try:
            with lab.running(mode, counted=True, limits={"poll_max": "10ms"}) as (db, relay, _):
                # The start's own writing, and Postgres' answer to it (a checkpoint, one list of running
                # transactions within 15 s), are not idleness.
                lab.pg.query("CHECKPOINT")
                time.sleep(16)
                ours = quiet_window(lab, db, opt.idle, relay)
                relay.stop()
                base = quiet_window(lab, db, opt.idle)
        finally:
            setting(lab, "autovacuum", "on")
        detail = {"relay": ours, "no relay": base}
        if ours["turns"] < opt.idle * 20:
            raise Failed(f"only {ours['turns']} turns seen in {opt.idle} s")
        yield Result("idle", f"{mode}, CPU of the relay", "% core", 100 * ours["relay_cpu"] / ours["seconds"],
                     "one core", 100.0, ("value", "<=", 1.0), detail)
        yield Result("idle", f"{mode}, CPU of its backends per turn", "ms", 1000 * ours["backend_cpu"] / ours["turns"],
                     "poll_max", 10.0, ("value", "<=", 0.5))
        yield Result("idle", f"{mode}, turns", "1/s", ours["turns"] / ours["seconds"], "poll_max 10 ms", 100.0)
        yield Result("idle", f"{mode}, WAL written", "bytes", float(ours["wal_bytes"]), "no relay",
                     float(base["wal_bytes"]), ("value", "<=", float(base["wal_bytes"])))
        yield Result("idle", f"{mode}, dead tuples", "rows", float(ours["dead"]), "no relay", float(base["dead"]),
                     ("value", "<=", float(base["dead"])))


# ---------------------------------------------------------------- cost of an insert

PLAIN = """
CREATE SCHEMA IF NOT EXISTS plain;
CREATE TABLE plain.event (LIKE outbox.event INCLUDING INDEXES);
"""
COLUMNS = "aggregatetype, aggregateid, type, payload"
VALUES = ("'bench', 'key-' || :client_id, 'ReservationCreated', '{\"state\": \"PENDING\", \"price\": 120000, \"seat_id\": 7, "
          "\"user_id\": 4242, \"concert_id\": 42, \"expires_at\": \"2030-01-01T00:00:00Z\", "
          "\"reservation_id\": 555555, \"pad\": \"xxxxxxxx\"}'")
# The same bytes in every column of the row, at no cost but storing them.
PLAIN_MORE = ("xid, seq, id, headers, created_at",
              "'7'::xid8, :seq, '00000000-0000-7000-8000-000000000000'::uuid, '{}'::jsonb, '2030-01-01'::timestamptz")
SCRIPTS = {
    "outbox": f"INSERT INTO outbox.event ({COLUMNS}) VALUES ({VALUES});\n",
    "publish": f"SELECT outbox.publish({VALUES});\n",
    "plain": "\\set n :n + 1\n\\set seq :client_id * 100000000 + :n\n"
             f"INSERT INTO plain.event ({COLUMNS}, {PLAIN_MORE[0]}) VALUES ({VALUES}, {PLAIN_MORE[1]});\n",
}
BULK = {
    "outbox": "INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT 'bench', 'key-' || i % 10000, "
              "'T', '{\"state\": \"PENDING\"}' FROM generate_series(1, %d) AS i",
    "plain": "INSERT INTO plain.event (aggregatetype, aggregateid, type, payload, xid, seq, id, headers, created_at) SELECT "
             "'bench', 'key-' || i %% 10000, 'T', '{\"state\": \"PENDING\"}', '7'::xid8, -i, "
             "'00000000-0000-7000-8000-000000000000'::uuid, '{}'::jsonb, '2030-01-01'::timestamptz "
             "FROM generate_series(1, %d) AS i",
}


def pgbench(lab, db, which, seconds, clients):
    script = os.path.join(L.servers.new_dir("pgbench"), which + ".sql")
    with open(script, "w", encoding="ascii") as f:
        f.write(SCRIPTS[which])
    if which == "plain":
        db.query("TRUNCATE plain.event")
    before = lab.pg.query("SELECT xact_commit FROM pg_stat_database WHERE datname = %s", (db.name,))[0][0]
    done = subprocess.run([os.path.join(lab.pg.bindir, "pgbench"), "-n", "-M", opt_protocol(), "-c", str(clients), "-j",
                           "1", "-T", str(seconds), "-D", "n=0", "-f", script, "-h", lab.pg.host, "-p",
                           str(lab.pg.port), "-U", "postgres", db.name], capture_output=True, text=True,
                          timeout=seconds + 60)
    if done.returncode:
        raise Failed(f"pgbench: {done.stderr.strip()[-300:]}")
    tps = next(float(line.split("=")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("tps"))
    return {"tps": tps, "us": clients * 1e6 / tps, "before": before}


def opt_protocol():
    return os.environ.get("PROTOCOL", "prepared")


def insert(lab, opt):
    """A service's transaction of one row, against a table without our defaults and checks."""
    db = lab.empty()
    db.psql(PLAIN)
    for clients in (1, 8):
        runs = {"plain": [], "outbox": [], "publish": []}
        for i in range(opt.rounds * 2):
            for which in list(runs) if i % 2 == 0 else reversed(list(runs)):
                runs[which].append(pgbench(lab, db, which, opt.insert, clients))
        plain = median(pick(runs["plain"], "us"))
        for which, what in (("outbox", "INSERT"), ("publish", "outbox.publish")):
            yield Result("insert", f"one row by {what}, {clients} connections", "us/tx", median(pick(runs[which], "us")),
                         "plain table", plain, ("ratio", "<=", 1.15) if which == "outbox" else None, runs)

    def bulk(which):
        if which == "plain":
            db.query("TRUNCATE plain.event")
        t0 = time.monotonic()
        db.query(BULK[which] % opt.bulk if which == "plain" else BULK[which].replace("%d", str(opt.bulk)))
        return {"us": (time.monotonic() - t0) * 1e6 / opt.bulk}

    base, ours = in_turns(opt.rounds, lambda: bulk("plain"), lambda: bulk("outbox"))
    yield Result("insert", f"{opt.bulk:,} rows in one statement", "us/row", median(pick(ours, "us")), "plain table",
                 median(pick(base, "us")), None, {"plain": base, "outbox": ours})
    db.drop()


MEASURES = {f.__name__: f for f in (read, drain, stalled, first, latency, restart, idle, insert)}
FULL = {"flat": flat}
