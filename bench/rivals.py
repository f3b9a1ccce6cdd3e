"""bench/rivals.py -- Debezium's outbox event router on Kafka Connect, tuned, on the same
rows, the same servers and in the same run as the relay. Refuses to run it badly: batch
and queue are large, the poll interval is 10 ms (500 by default, which costs it 300 ms of
latency), plug-ins are found the fast way, the heap is the small one that costs it no
speed. Its backlog waits in the WAL behind its slot, as it would in production."""
import contextlib
import os
import subprocess
import time

import lab as L
import measures as M
from lab import Failed, median, wait_until

VERSION = "3.7.0.Final"
HEAP = "512m"
HERE = os.path.dirname(os.path.abspath(__file__))


def jars(rival="debezium", name=f"debezium-{VERSION}"):
    """What bench/<rival>/pom.xml names, from Maven Central, outside the checkout."""
    path = os.path.join(L.servers.cache_dir(), name)
    if not os.path.exists(path):
        half = f"{path}.{os.getpid()}"
        done = subprocess.run(["mvn", "-q", "-B", "-ntp", "-f", os.path.join(HERE, rival, "pom.xml"),
                               "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={half}"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise Failed(f"the jars of bench/{rival}/pom.xml cannot be had: {done.stdout[-500:]}")
        os.rename(half, path)
    return path


def properties(path, **entries):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(f"{k.replace('__', '.')}={v}\n" for k, v in entries.items())
    return path


class Connect(L.servers.Server):
    """Kafka Connect in standalone mode with one connector."""

    def __init__(self, lab, name, jars, connector, heap=HEAP, **worker):
        self.name, self.jars, self.heap = name, jars, heap
        self.dir = L.servers.new_dir(name)
        self.log = os.path.join(self.dir, "connect.log")
        with open(os.path.join(self.dir, "log4j2.properties"), "w", encoding="utf-8") as f:
            f.write("status=error\nappender.c.type=Console\nappender.c.name=c\nappender.c.layout.type=PatternLayout\n"
                    "appender.c.layout.pattern=%d %p %m (%c{1})%n\nrootLogger.level=warn\n"
                    "rootLogger.appenderRef.c.ref=c\n")
        self.worker = properties(
            os.path.join(self.dir, "worker.properties"), bootstrap__servers=lab.kafka.bootstrap,
            key__converter="org.apache.kafka.connect.storage.StringConverter",
            value__converter="org.apache.kafka.connect.storage.StringConverter",
            offset__storage__file__filename=os.path.join(self.dir, "offsets"), offset__flush__interval__ms=1000,
            plugin__discovery="service_load", listeners=f"http://127.0.0.1:{L.servers.free_port()}", **worker)
        self.connector = properties(os.path.join(self.dir, "connector.properties"), **connector)

    def start(self):
        self.proc = L.servers.spawn(
            ["java", f"-Xmx{self.heap}", "-XX:+UseSerialGC", "-Xshare:auto",
             f"-Dlog4j2.configurationFile={self.dir}/log4j2.properties", "-cp", f"{self.jars}/*",
             "org.apache.kafka.connect.cli.ConnectStandalone", self.worker, self.connector], log=self.log, cwd=self.dir)
        self._remember()
        return self

    def peak_rss_kb(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return next(int(x.split()[1]) for x in f if x.startswith("VmHWM"))

    def terminate(self):
        self.signal(15)
        self.wait(60)
        self._forget()


class Debezium(Connect):
    """One outbox connector on db, topics <prefix>.<aggregatetype>."""

    def __init__(self, lab, db, prefix, linger_ms):
        self.db = db
        super().__init__(lab, "debezium", jars(), dict(
            name="outbox", tasks__max=1,
            connector__class="io.debezium.connector.postgresql.PostgresConnector", database__hostname=lab.pg.host,
            database__port=lab.pg.port, database__user="postgres", database__password="none",
            database__dbname=db.name, topic__prefix="dbz", plugin__name="pgoutput", slot__name=slot(db),
            publication__name="dbz", publication__autocreate__mode="disabled", table__include__list="outbox.event",
            snapshot__mode="no_data", max__batch__size=8192, max__queue__size=32768, poll__interval__ms=10,
            tombstones__on__delete="false", statistics__metrics__enabled="false", transforms="outbox",
            transforms__outbox__type="io.debezium.transforms.outbox.EventRouter",
            transforms__outbox__route__topic__replacement=prefix + ".${routedByValue}",
            transforms__outbox__table__fields__additional__placement="type:header"),
            producer__linger__ms=linger_ms, producer__batch__size=262144, producer__buffer__memory=67108864)

    def wait_streaming(self):
        """Until one event of its own has come through and its offset is stored."""
        def active():
            if not self.running():
                raise Failed(f"Debezium ended:\n{L.servers.tail(self.log, 5)}")
            return self.db.query("SELECT active FROM pg_replication_slots WHERE slot_name = %s AND active",
                                 (slot(self.db),))
        wait_until(active, 90, "Debezium's slot")
        return self


def slot(db):
    return "dbz_" + db.name


@contextlib.contextmanager
def debezium(lab, linger_ms):
    """A connector that streams from an empty outbox; yields (db, connector, topic)."""
    db = lab.empty()
    db.query("CREATE PUBLICATION dbz FOR TABLE outbox.event WITH (publish_via_partition_root = true)")
    with lab.topic() as (prefix, topic):
        c = Debezium(lab, db, prefix, linger_ms)
        try:
            c.start().wait_streaming()
            one_event(db)
            wait_until(lambda: arrived(lab, topic) == 1, 60, "Debezium's first event")
            yield db, c, topic
        finally:
            c.kill()
            wait_until(lambda: not db.query("SELECT FROM pg_replication_slots WHERE slot_name = %s AND active",
                                            (slot(db),)), 30, "the slot to be let go")
            db.query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                     (slot(db),))
    db.drop()


def one_event(db):
    db.query("SELECT outbox.publish('bench', 'warm', 'Warm', '{}')")


def arrived(lab, topic):
    return sum(lab.kafka.end_offsets(topic).values())


class Ends:
    """How many records a topic without transactions holds; one connection for all questions."""

    def __init__(self, lab, topic):
        from confluent_kafka import Consumer, TopicPartition
        self.c = Consumer({"bootstrap.servers": lab.kafka.bootstrap, "group.id": "bench", "log_level": 0})
        self.parts = [TopicPartition(topic, p) for p in self.c.list_topics(topic, 10).topics[topic].partitions]

    def sum(self):
        return sum(self.c.get_watermark_offsets(p, 10)[1] for p in self.parts)

    def close(self):
        self.c.close()


def drain(lab, rows):
    """Stops the connector, lets rows pile up behind its slot, starts it again."""
    with debezium(lab, 5) as (db, c, topic):
        c.terminate()
        before = arrived(lab, topic)
        db.psql(L.LOAD.format(first=1, last=rows, keys=L.KEYS, topics=1, pad=max(0, L.PAYLOAD - L.PAD_LESS))
                + "; CHECKPOINT")
        ends = Ends(lab, topic)
        samples = [(0.0, 0.0)]
        t0 = time.monotonic()
        c.start()
        try:
            while samples[-1][1] < rows:
                time.sleep(0.2 if 0 < samples[-1][1] < rows * 0.8 else 0.02)
                if time.monotonic() - t0 > 300 or not c.running():
                    raise Failed(f"Debezium sent {samples[-1][1]} of {rows}:\n{L.servers.tail(c.log, 5)}")
                samples.append((time.monotonic() - t0, ends.sum() - before))
        finally:
            ends.close()
        return dict(L.drained(samples, rows), peak_rss_kb=c.peak_rss_kb(),
                    cpu_us_per_event=L.cpu_ticks(c.pid) * 1e6 / rows)


def latency(lab, opt, rate):
    with debezium(lab, 0) as (db, c, topic):
        # The JVM compiles what it runs often: a warm-up of its own.
        lab.latency(db, topic, rate, 8, publish=True)
        return dict(lab.latency(db, topic, rate, opt.seconds, publish=True), peak_rss_kb=c.peak_rss_kb())


def rivals(lab, opt):
    """Debezium on the same rows, the same servers and in the same run."""
    rows = lab.rows(opt.rows)
    ours = {m: [] for m in M.MODES}
    theirs = []
    for _ in range(max(1, opt.rounds - 1)):
        theirs.append(drain(lab, opt.rows))
        for mode in M.MODES:
            with lab.copy(rows) as db:
                ours[mode].append(lab.drain(db, mode, opt.rows))
    name = f"Debezium {VERSION.replace('.Final', '')}"
    for mode, runs in ours.items():
        def line(what, unit, key, must, runs=runs, mode=mode, scale=1.0, detail=None):
            return M.Result("rivals", f"{mode}, {what}", unit, median(M.pick(runs, key)) * scale, name,
                            median(M.pick(theirs, key)) * scale, must, detail)
        yield line("drain, 10-90 %", "ev/s", "steady_events_per_second", ("ratio", ">=", 4.0),
                   detail={"relay": runs, "debezium": theirs})
        yield line("drain, start to end", "ev/s", "events_per_second", ("ratio", ">=", 4.0))
        yield line("start to first event", "s", "first_seen", ("ratio", "<=", 0.2))
        yield line("peak RSS", "MB", "peak_rss_kb", ("ratio", "<=", 0.1), scale=1 / 1024)
        yield line("CPU", "us/ev", "cpu_us_per_event", None)
    for rate in (1000, 5000):
        base = latency(lab, opt, rate)
        for mode in M.MODES:
            with lab.running(mode) as (db, _, topic):
                seen = lab.latency(db, topic, rate, opt.seconds, publish=True)
            for q in ("p50", "p99"):
                yield M.Result("rivals", f"{mode}, latency at {rate:,}/s, {q}", "ms", seen["latency_ms"][q], name,
                               base["latency_ms"][q], ("ratio", "<=", 1.0), {"relay": seen, "debezium": base})
