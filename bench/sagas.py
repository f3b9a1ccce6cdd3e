"""bench/sagas.py -- what `make bench` measures of sagas: four steps, each a participant's own transaction with
barrier and one-row update, through outbox and Kafka, with everything on this machine. Refuses to print a rate
when an account does not show each step of each saga exactly once."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import lab as L
import measures as M
from lab import Failed, median, wait_until
from measures import Result, in_turns, pick

HERE = os.path.dirname(os.path.abspath(__file__))
SERVICES = ("payment", "reservation", "queue", "concert")
ACCOUNTS = 10000
IN_FLIGHT = 10000
RAMP = 6.0  # seconds in which these are started
WANTED = 2000.0  # sagas a second
PARTITIONS = 2  # of each topic: as many as there are lanes

STEP = """
  {{ name = "{NAME}"; kind = "{kind}";
    do: {{ command = "{NAME}_DO"; topic = "bench.command.{name}"; key = "data.account";
           send = ( "account = data.account", "amount = data.amount" ); timeout = "60s"; }};
    undo: {{ command = "{NAME}_UNDO"; send = ( "account = data.account", "amount = data.amount" ); }};
    keep = ( "{name}_at = reply.at" ); }}"""

ACCOUNT = """
CREATE SCHEMA bench;
CREATE TABLE bench.account (service text, key text, n bigint NOT NULL DEFAULT 0, amount bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (service, key)) WITH (fillfactor = 50);
INSERT INTO bench.account SELECT s, 'key-' || i FROM unnest('{{{services}}}'::text[]) AS s, generate_series(0, {accounts} - 1) AS i;
VACUUM ANALYZE bench.account;
"""

HANDLER = ACCOUNT + """
CREATE FUNCTION bench.on_commands(messages inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    places integer[];
BEGIN
    SELECT array_agg(b.ord) INTO places FROM saga.barriers(messages) AS b WHERE b.go;
    IF places IS NULL THEN
        RETURN;
    END IF;
    UPDATE bench.account AS a SET n = a.n + s.n, amount = a.amount + s.amount
    FROM (SELECT m.headers ->> 'saga-step' AS service, m.key, count(*) AS n, sum((m.payload ->> 'amount')::bigint) AS amount
          FROM unnest(messages) WITH ORDINALITY AS m (id, topic, partition, message_offset, key, type, payload, payload_bytes,
              headers, "time", n) WHERE m.n IN (SELECT unnest(places)) GROUP BY 1, 2) AS s
    WHERE a.service = s.service AND a.key = s.key;
    PERFORM saga.replies(messages, places, array_fill('done'::text, ARRAY[cardinality(places)]),
        array_fill(jsonb_build_object('at', clock_timestamp()), ARRAY[cardinality(places)]));
END
$$;
"""

START = """SELECT count(saga.start('bench', jsonb_build_object('account', 'key-' || floor(random() * %s)::int, 'amount', 7)))
FROM generate_series(1, %s)"""
ENDED = "SELECT coalesce(sum(n), 0)::bigint FROM saga.counts() WHERE state IN ('COMPLETED', 'COMPENSATED', 'ABORTED')"


# ---------------------------------------------------------------- everything that a saga needs

def definition(steps=SERVICES):
    text = 'name = "bench"; version = 1; style = "orchestration"; deadline = "10m";\nsteps = ('
    text += ",".join(STEP.format(NAME=s.upper(), name=s, kind="compensatable" if s != steps[-1] else "pivot")
                     for s in steps)
    path = os.path.join(L.servers.new_dir("saga"), "bench.cfg")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text + "\n);\n")
    return path


class World:
    """An engine, its participants, their databases (1: one for all; 4: the engine's and each service's own),
    a relay each. Topics are new, and gone afterwards."""

    def __init__(self, lab, delivery="exactly_once", databases=1, lanes=2, partitions=PARTITIONS, relay=None, engine=None,
                 participant=None, participants=True):
        self.lab, self.delivery, self.lanes, self.partitions = lab, delivery, lanes, partitions
        self.relay_config, self.engine_config, self.participant_config = relay or {}, engine or {}, participant or {}
        self.with_participants = participants
        self.groups = [SERVICES] if databases == 1 else [(s,) for s in SERVICES]
        self.one_database = databases == 1
        self.topics, self.programs, self.dbs = [], {}, []

    def __enter__(self):
        try:
            return self._build()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for p in self.programs.values():
            p.stop()
        for t in self.topics:
            self.lab.kafka.delete_topic(t)
        for db in self.dbs:
            db.drop()

    def _topic(self, name):
        self.topics.append(self.lab.kafka.create_topic(name, self.partitions))
        return name

    def _database(self, sql=None):
        self.lab.number += 1
        db = self.lab.pg.createdb(f"saga{self.lab.number}")
        self.dbs.append(db)
        if sql:
            self.lab.init(db)
            db.psql(sql)
        return db

    def _relay(self, name, db):
        self.lab.number += 1
        relay = f"bench{self.lab.number}"
        self.lab.init(db, relay)
        self.programs[f"relay {name}".strip()] = L.servers.Relay(
            db.conninfo, self.lab.kafka.bootstrap, name=relay, delivery=self.delivery, variant="plain",
            config=self.relay_config)

    def _consumer(self, name, db, topics, handler, config):
        self.lab.number += 1
        self.programs[name] = L.servers.Consumer(
            db.conninfo, self.lab.kafka.bootstrap, f"{name.replace(' ', '-')}{self.lab.number}", topics, handler,
            variant="plain", config=dict({"lanes": self.lanes, "dedupe": "offset"}, **config))
        return self.programs[name]

    def _build(self):
        for p in ("postrider", "postrider-relay", "postrider-consumer"):
            L.program(p)
        inbox = self._topic("outbox.saga.inbox")
        self._topic("outbox.event.saga")
        services = {s: self._topic(f"bench.command.{s}") for s in SERVICES}
        for group in self.groups:
            db = self._database(HANDLER.format(services=",".join(s.upper() for s in group), accounts=ACCOUNTS))
            self._relay("" if self.one_database else group[0], db)
            if self.with_participants:
                self._consumer("participants" if self.one_database else group[0], db, [services[s] for s in group],
                               {"kind": "sql", "function": "bench.on_commands"}, self.participant_config)
        self.services = list(self.dbs)
        self.db = self.dbs[0] if self.one_database else self._database()
        if not self.one_database:
            self.lab.init(self.db)
            self._relay("engine", self.db)
        self.engine = self._consumer("engine", self.db, [inbox], {"kind": "saga", "definitions": [definition()]},
                                     self.engine_config)
        for p in self.programs.values():
            p.start()
        for p in self.programs.values():
            p.wait_ready(60)
        return self

    def ended(self):
        return int(self.db.one(ENDED))

    def check(self, sagas):
        """Each step of each saga was done once, and nothing else."""
        states = dict(self.db.query("SELECT state, sum(n)::bigint FROM saga.counts() GROUP BY state HAVING sum(n) <> 0"))
        done = sum(int(db.one("SELECT sum(n) FROM bench.account")) for db in self.services)
        if states != {"COMPLETED": sagas} or done != sagas * len(SERVICES):
            raise Failed(f"of {sagas} sagas {states} are in the books, and {done} steps")


# ---------------------------------------------------------------- CPU of everybody

class Cpu:
    """CPU seconds by whom: our programs, the broker, Postgres' backends by what they do, and the bench."""

    def __init__(self, world):
        self.world = world
        self.seen, self.used = self._now(), {}

    def _backends(self):
        rows = self.world.lab.pg.query("SELECT pid, backend_type, application_name, datname FROM pg_stat_activity")
        out = {}
        for pid, kind, name, _ in rows:
            name = name or ""
            if kind != "client backend":
                who = "postgres: " + ("vacuum" if "autovacuum" in kind else kind)
            elif name.startswith("postrider-relay"):
                who = "postgres: relay " + name.split()[-1]
            elif name.startswith("postrider-consumer"):
                group = name.split()[1].rstrip("0123456789")
                role = "" if name.split()[2].startswith(("lane", "w")) or name.split()[2].isdigit() else \
                    " " + " ".join(name.split()[2:])
                who = f"postgres: {'engine' if group == 'engine' else 'participants'}{role.rstrip('0123456789 ')}"
            else:
                who = "postgres: " + (name or "starts")
            out[pid] = who
        return out

    def _now(self):
        seen = {p.pid: ("relay" if n.startswith("relay") else "engine" if n == "engine" else "participants",
                        L.cpu_seconds(p.pid)) for n, p in self.world.programs.items()}
        seen[self.world.lab.kafka.pid] = ("kafka", L.cpu_seconds(self.world.lab.kafka.pid))
        seen[os.getpid()] = ("bench", L.cpu_seconds(os.getpid()))
        for pid, who in self._backends().items():
            seen[pid] = (who, L.cpu_seconds(pid))
        return seen

    def look(self):
        """Adds to self.used what was used since the last look; of what has come since, all."""
        now = self._now()
        for pid, (who, seconds) in now.items():
            self.used[who] = self.used.get(who, 0.0) + max(0.0, seconds - self.seen.get(pid, (who, 0.0))[1])
        self.seen = now


# ---------------------------------------------------------------- a closed loop of starts

class Load(threading.Thread):
    """Keeps so many sagas in flight: starts as many as have ended."""

    def __init__(self, world, in_flight, starts_from):
        super().__init__(daemon=True)
        self.world, self.in_flight, self.starts_from = world, in_flight, starts_from
        self.started = self.ended = 0
        self.quit, self.over, self.done = threading.Event(), threading.Event(), threading.Event()
        self.failed = None
        self.samples = []  # (time, ended, in flight)

    def run(self):
        try:
            with contextlib.closing(self.starts_from.connect(application_name="starts")) as starts, \
                    contextlib.closing(self.world.db.connect(application_name="watch")) as watch:
                self._loop(starts.cursor(), watch.cursor())
        except Exception as e:  # pylint: disable=broad-except
            self.failed = e
            self.over.set()

    def _loop(self, starts, watch):
        begun = time.monotonic()
        while True:
            watch.execute(ENDED)
            self.ended = int(watch.fetchone()[0])
            self.samples.append((time.monotonic(), self.ended, self.started - self.ended))
            if self.quit.is_set() and self.ended >= self.started:
                self.over.set()
                self.done.wait()
                return
            # Not all at once: they would go on side by side, step by step, as no real ones do.
            room = self.in_flight * min(1.0, (time.monotonic() - begun) / RAMP) - (self.started - self.ended)
            missing = min(2000, int(room))
            if missing > 0 and not self.quit.is_set():
                starts.execute(START, (ACCOUNTS, missing))
                self.started += missing
            if missing < 500:
                self.quit.wait(0.1) if not self.quit.is_set() else time.sleep(0.1)

    def stop(self, timeout=120, linger=None):
        """Starts no more and waits until all have ended; linger is called then, while we are connected."""
        self.quit.set()
        self.over.wait(timeout)
        if linger:
            linger()
        self.done.set()
        self.join(10)
        if self.failed:
            raise Failed(f"the load: {self.failed}")
        if self.started > self.ended:
            raise Failed(f"{self.started - self.ended} of {self.started} sagas had not ended after {timeout} s")


def at(samples, t):
    """(ended, in flight) at that time."""
    return next(((e, f) for when, e, f in samples if when >= t), samples[-1][1:])


def sustained(lab, seconds, warm=RAMP + 6, in_flight=IN_FLIGHT, **world):
    """So many sagas in flight all the time; {"sagas_per_second": of the seconds after warm, "cpu": {who: us a saga of the
    whole run, first start to last end}, ...}."""
    with World(lab, **world) as w:
        cpu, load = Cpu(w), Load(w, in_flight, w.services[0])
        load.start()
        begin = time.monotonic()
        wait_until(lambda: load.failed or (load.ended > 0 and time.monotonic() - begin > warm), 120, "the first sagas to end")
        cpu.look()  # by now all are connected
        t0 = time.monotonic()
        while time.monotonic() - t0 < seconds and not load.failed:
            time.sleep(0.2)
        t1 = time.monotonic()
        memory = {n: p.peak_rss_kb() for n, p in w.programs.items()}
        load.stop(linger=cpu.look)
        w.check(load.started)
        (a, _), (b, _) = at(load.samples, t0), at(load.samples, t1)
        flying = [f for when, _, f in load.samples if t0 <= when <= t1]
    if b <= a:
        raise Failed(f"no saga ended in {seconds:g} s")
    return {"sagas": load.started, "sagas_per_second": (b - a) / (t1 - t0), "in_flight": median(flying),
            "cpu_us_per_saga": sum(cpu.used.values()) * 1e6 / load.started, "peak_rss_kb": max(memory.values()),
            "cpu": {k: v * 1e6 / load.started for k, v in sorted(cpu.used.items(), key=lambda x: -x[1])}}


def shares(lab, runs):
    """Where the time goes, of the median run."""
    r = sorted(runs, key=lambda r: r["sagas_per_second"])[len(runs) // 2]
    for who, us in r["cpu"].items():
        if us >= 1:
            lab.say(f"    {who:<44} {us:8.1f} us a saga {us / r['cpu_us_per_saga']:6.1%}")
    lab.say(f"    {'all':<44} {r['cpu_us_per_saga']:8.1f} us a saga")


# ---------------------------------------------------------------- speed

def saga(lab, opt):
    """Four-step sagas, 10,000 in flight all the time: how many end, and where the time goes."""
    def take(databases):
        lab.settle("sagas", lambda: sustained(lab, 20))
        return sustained(lab, opt.seconds, databases=databases)

    one, four = in_turns(opt.rounds, lambda: take(1), lambda: take(4))
    shares(lab, one)
    for what, runs in (("one database", one), ("a database per service", four)):
        rate = median(pick(runs, "sagas_per_second"))
        yield Result("saga", f"exactly_once, {IN_FLIGHT:,} in flight, {what}", "sagas/s", rate, "wanted", WANTED,
                     ("value", ">=", WANTED) if runs is one else None, {"runs": runs})
        yield Result("saga", f"{what}, CPU of all programs", "us/saga", median(pick(runs, "cpu_us_per_saga")),
                     "two cores at that rate", 2e6 / rate)


ALONE = """SELECT state, extract(epoch FROM finished_at - started_at) * 1000 FROM saga.instance
WHERE id = %s AND finished_at IS NOT NULL"""


def alone(lab, mode, sagas):
    """[(ms from its start's COMMIT to its end seen, ms from the engine's first command to its last reply)]"""
    out = []
    with World(lab, delivery=mode, partitions=1, lanes=1) as w, contextlib.closing(w.services[0].connect()) as c:
        cur = c.cursor()
        for _ in range(sagas + 5):
            cur.execute("SELECT saga.start('bench', '{\"account\": \"key-1\", \"amount\": 7}')")
            name, t0 = cur.fetchone()[0], time.monotonic()
            row = None
            while row is None and time.monotonic() - t0 < 30:
                time.sleep(0.002)
                cur.execute(ALONE, (name,))
                row = cur.fetchone()
            if row is None or row[0] != "COMPLETED":
                raise Failed(f"a saga alone was {row} after {time.monotonic() - t0:.1f} s")
            out.append(((time.monotonic() - t0) * 1000, float(row[1])))
        w.check(sagas + 5)
    return out[5:]


def hop(lab, mode):
    """ms that one event alone takes from COMMIT to a consumer."""
    with lab.running(mode) as (db, _, topic):
        return lab.latency(db, topic, 10, 8, publish=True)["latency_ms"]["p50"]


def saga_alone(lab, opt):
    """One saga at a time: four commands, four replies, all through outbox and Kafka."""
    for mode in M.MODES:
        floor = hop(lab, mode)
        seen = alone(lab, mode, 60)
        yield Result("saga", f"{mode}, one alone, 8 hops, p50", "ms", median([b for _, b in seen]), "8 events alone",
                     8 * floor, ("value", "<=", 220.0 if mode == "exactly_once" else 80.0), {"ms": seen})
        yield Result("saga", f"{mode}, one alone, COMMIT of its start to its end, p50", "ms",
                     median([a for a, _ in seen]), "9 events alone", 9 * floor)


# ---------------------------------------------------------------- at rest, and over

COLUMNS = ("name, version, state, turned, granted, data, steps, failed_step, why, started_at, deadline_at, since_at, "
           "updated_at, part, correlation")


def template(w):
    """A saga whose first command is out and never answered: what all others are copies of."""
    w.services[0].one(START % (1, 1))
    wait_until(lambda: w.db.query("SELECT 1 FROM saga.instance_0"), 30, "the first saga")


def copies(db, n):
    """n sagas that wait, their timers an hour away."""
    for first in range(0, n, 100000):
        db.psql(f"""INSERT INTO saga.instance_0 (id, slot, due_at, {COLUMNS})
            SELECT gen_random_uuid(), 0, clock_timestamp() + interval '1 hour', {COLUMNS} FROM
            (SELECT * FROM saga.instance_0 LIMIT 1) AS i, generate_series(1, {min(100000, n - first)})""")
    db.psql("UPDATE saga.instance_0 SET due_at = clock_timestamp() + interval '1 hour' "
            "WHERE due_at < clock_timestamp() + interval '30 minutes'")
    db.psql(f"UPDATE saga.count SET n = n + {n} WHERE state = 'RUNNING'")
    db.psql("VACUUM ANALYZE saga.instance_0; CHECKPOINT")


def cpu_of(w):
    """CPU seconds so far of the engine and of all of Postgres."""
    return L.cpu_seconds(w.engine.pid), L.tree_ticks(w.lab.pg.pid) / os.sysconf("SC_CLK_TCK")


def resting(lab, n, seconds):
    with World(lab, participants=False) as w:
        template(w)
        copies(w.db, n)
        time.sleep(3)  # what came with the filling
        before = cpu_of(w)
        time.sleep(seconds)
        engine, postgres = (b - a for a, b in zip(before, cpu_of(w)))
        alive = w.db.one("SELECT count(*) FROM saga.instance_0")
        rss = w.engine.rss_kb()
    if alive != n + 1:
        raise Failed(f"{alive} sagas are alive, not {n + 1}")
    return {"engine": engine * 1000 / seconds, "postgres": postgres * 1000 / seconds, "rss_kb": rss}


def saga_rest(lab, opt):
    """A million sagas that wait for an answer: what engine and Postgres do meanwhile."""
    n = opt.rows
    none, many = in_turns(max(1, opt.rounds // 2), lambda: resting(lab, 0, 30), lambda: resting(lab, n, 30))
    for who in ("engine", "postgres"):
        yield Result("saga", f"{n:,} at rest, CPU of {who}", "ms/s", median(pick(many, who)), "none at rest",
                     median(pick(none, who)), ("ratio", "<=", 1.25), {"none": none, "many": many})
    yield Result("saga", f"{n:,} at rest, RSS of the engine", "MB", median(pick(many, "rss_kb")) / 1024, "none at rest",
                 median(pick(none, "rss_kb")) / 1024, ("ratio", "<=", 1.1))


def over(lab, n):
    """A database in which n sagas are over, with four log rows and one barrier each."""
    db = lab.empty()
    db.psql(f"""INSERT INTO saga.instance (id, slot, name, version, state, data, steps, started_at, since_at, finished_at, part)
        SELECT outbox.uuid7(), 1, 'bench', 1, 'COMPLETED', '{{"account": "key-1", "amount": 7}}', repeat(' ', 600)::text::json,
            now(), now(), now(), 'outbox.saga.inbox-0' FROM generate_series(1, {n})""".replace(
                "repeat(' ', 600)::text::json", "('[' || repeat(' ', 600) || ']')::json"))
    db.psql("""INSERT INTO saga.log (saga_id, slot, at, what, step, op) SELECT i.id, 1, now(), 'done', s, 'do'
        FROM saga.instance AS i, unnest('{A,B,C,D}'::text[]) AS s""")
    db.psql("""INSERT INTO saga.barrier (slot, saga_id, step, do_command, do_outcome)
        SELECT 1, id, 'A', id, 'done' FROM saga.instance""")
    db.psql("VACUUM ANALYZE; CHECKPOINT")
    return db


def timed(db, sql):
    t0 = time.monotonic()
    db.query(sql)
    return time.monotonic() - t0


def saga_over(lab, opt):
    """A million sagas that are over leave."""
    n = opt.rows
    with lab.copy(over(lab, n)) as db:
        deleted = timed(db, "WITH a AS (DELETE FROM saga.instance), b AS (DELETE FROM saga.log) DELETE FROM saga.barrier")
    with lab.copy(over(lab, n)) as db:
        db.query("UPDATE saga.slot SET opened_at = opened_at - interval '2 hours'")
        opened = timed(db, "SELECT saga.rotate('1 hour')")
        db.query("UPDATE saga.slot SET closed_at = closed_at - interval '2 hours' WHERE closed_at IS NOT NULL")
        dropped = timed(db, "SELECT saga.rotate('1 hour')")
        left = db.one("SELECT (SELECT count(*) FROM saga.instance) + (SELECT count(*) FROM saga.log)")
    if left:
        raise Failed(f"{left} rows were left")
    yield Result("saga", f"{n:,} that are over leave", "s", opened + dropped, "DELETE, to be vacuumed yet", deleted,
                 ("ratio", "<=", 0.25), {"opened": opened, "dropped": dropped})


# ---------------------------------------------------------------- what others run instead

DTM = "v1.18.0"
DTM_SUM = "h1:a4L6dWz0VMT3bBGR/R6QyoHrIr+rO/XHMXoFRSDctCI="  # of its module, as in everybody's go.sum


def go(*args, cwd, timeout=1200):
    try:
        done = subprocess.run(["go", *args], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise Failed("DTM is written in Go, and there is no go here") from None
    if done.returncode:
        raise Failed(f"go {args[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def dtm_programs():
    """(dtm, its load, its SQL): built once from the Go module proxy, outside the checkout."""
    path = os.path.join(L.servers.cache_dir(), f"dtm-{DTM}")
    if not os.path.exists(os.path.join(path, "dtm")):
        half = L.servers.new_dir("dtm")
        module = json.loads(go("mod", "download", "-json", f"github.com/dtm-labs/dtm@{DTM}", cwd=half))
        if module["Sum"] != DTM_SUM:
            raise Failed(f"this is not DTM {DTM}: its sum is {module['Sum']}")
        shutil.copytree(module["Dir"], os.path.join(half, "src"), copy_function=shutil.copy)
        subprocess.run(["chmod", "-R", "u+w", half], check=True)
        go("build", "-o", os.path.join(half, "dtm"), ".", cwd=os.path.join(half, "src"))
        os.makedirs(path, exist_ok=True)
        shutil.copytree(os.path.join(half, "src"), os.path.join(path, "src"), dirs_exist_ok=True)
        shutil.copy(os.path.join(half, "dtm"), path)
    ours = os.path.join(path, "src", "postrider_bench")
    os.makedirs(ours, exist_ok=True)
    shutil.copy(os.path.join(HERE, "dtm", "main.go"), ours)
    go("build", "-o", os.path.join(path, "load"), "./postrider_bench", cwd=os.path.join(path, "src"))
    return os.path.join(path, "dtm"), os.path.join(path, "load"), os.path.join(path, "src", "sqls")


class Dtm(L.servers.Server):
    """DTM with its Postgres store; its participants' database is another one of the same server."""

    def __init__(self, lab):
        self.name = "dtm"
        self.lab = lab
        self.program, self.load, sql = lab.once("dtm", dtm_programs)
        self.dir = L.servers.new_dir("dtm")
        self.log = os.path.join(self.dir, "dtm.log")
        self.store, self.busy = (lab.pg.createdb(f"dtm{lab.number}{n}") for n in ("store", "busi"))
        lab.number += 1
        for db, name in ((self.store, "dtmsvr.storage"), (self.busy, "dtmcli.barrier")):
            with open(os.path.join(sql, f"{name}.postgres.sql"), encoding="utf-8") as f:
                db.psql(f.read())
        self.busy.psql(ACCOUNT.format(services=",".join(s.upper() for s in SERVICES), accounts=ACCOUNTS))
        self.port = L.servers.free_port()
        with open(os.path.join(self.dir, "conf.yml"), "w", encoding="utf-8") as f:
            f.write(f"Store:\n  Driver: postgres\n  Host: {lab.pg.host}\n  Port: {lab.pg.port}\n  User: postgres\n"
                    f"  Password: none\n  Db: {self.store.name}\n  MaxOpenConns: 100\n  MaxIdleConns: 100\n"
                    f"HttpPort: {self.port}\nGrpcPort: {L.servers.free_port()}\nJsonRpcPort: {L.servers.free_port()}\n"
                    "LogLevel: error\n")

    def start(self):
        self.proc = L.servers.spawn([self.program, "-c", os.path.join(self.dir, "conf.yml")], log=self.log, cwd=self.dir)
        self._remember()
        wait_until(self.answers, 30, "DTM to answer")
        return self

    def answers(self):
        if not self.running():
            raise Failed(f"DTM ended:\n{L.servers.tail(self.log, 5)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def sagas(self, in_flight, seconds):
        before = L.cpu_ticks(self.pid) + L.tree_ticks(self.lab.pg.pid) / os.sysconf("SC_CLK_TCK")
        r = self.lab.run_json([self.load, "--dtm", f"http://127.0.0.1:{self.port}/api/dtmsvr", "--conninfo", self.busy.conninfo,
                               "--in-flight", str(in_flight), "--seconds", str(seconds), "--accounts", str(ACCOUNTS)],
                              seconds + 120)
        used = L.cpu_ticks(self.pid) + L.tree_ticks(self.lab.pg.pid) / os.sysconf("SC_CLK_TCK") - before
        steps = int(self.busy.one("SELECT sum(n) FROM bench.account"))
        if r["failed"] or steps != r["ended"] * len(SERVICES):
            raise Failed(f"DTM: {r['ended']} sagas, {r['failed']} failed ({r['why']}), {steps} steps")
        return dict(r, cpu_us_per_saga=used * 1e6 / max(r["ended"], 1), in_flight=in_flight)

    def stop(self):
        self.kill()
        for db in (self.store, self.busy):
            db.drop()


def dtm_run(lab, in_flight, seconds):
    p = Dtm(lab)
    try:
        return p.start().sagas(in_flight, seconds)
    finally:
        p.stop()


def saga_rival(lab, opt):
    """DTM beside us: four HTTP steps with its barrier and the same one-row update, its Postgres store."""
    tried = {n: dtm_run(lab, n, 5) for n in (16, 64, 256)}
    best = max(tried, key=lambda n: tried[n]["sagas_per_second"])
    lab.settle("sagas", lambda: sustained(lab, 20))
    theirs, ours = in_turns(max(1, opt.rounds - 1), lambda: dtm_run(lab, best, opt.seconds),
                            lambda: sustained(lab, opt.seconds))
    name = f"DTM {DTM[1:]}, {best} at a time"
    yield Result("saga", "exactly_once", "sagas/s", median(pick(ours, "sagas_per_second")), name,
                 median(pick(theirs, "sagas_per_second")), ("ratio", ">=", 6.0),
                 {"ours": ours, "dtm": theirs, "tried": tried})
    yield Result("saga", "CPU, Postgres and Kafka included", "us/saga", median(pick(ours, "cpu_us_per_saga")),
                 "DTM, with Postgres, without its callers", median(pick(theirs, "cpu_us_per_saga")))
    one = dtm_run(lab, 1, 5)
    for mode in M.MODES:
        yield Result("saga", f"{mode}, one alone, p50", "ms", median([a for a, _ in alone(lab, mode, 40)]), "DTM, one alone",
                     one["p50_ms"])


MEASURES = {f.__name__: f for f in (saga, saga_alone, saga_rest, saga_over)}
RIVALS = {"saga_rival": saga_rival}
