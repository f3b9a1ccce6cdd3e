"""bench/sinks.py -- how fast a sink copies a topic into files and into a table, and in how much memory: beside bare loops that write
the same lines and rows, and (RIVALS=1) beside Kafka Connect's FileStreamSink and Debezium's JDBC sink. Refuses to print a rate when
a record is missing or there twice."""
import contextlib
import os
import re
import shutil
import subprocess

import consumers as C
import lab as L
import rivals as R
from lab import Failed, median
from measures import Result, in_turns, pick

RECORDS = 20000  # of a file; fewer of a small topic: the last ones of each partition wait for their age, and are not the measure
HOURS = 600      # of record times, when more files are wanted than may be open
OPEN_FILES = 500
CONNECT = "4.1.1"


def records_of(n):
    return max(500, min(RECORDS, n // (L.PARTITIONS * 8)))


def count_lines(directory, packed):
    argv = ["sh", "-c", f"find {directory} -name '[0-9]*.ndjson*' | xargs {'zstd -dcq' if packed else 'cat'} | wc -l"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def must_be(seen, n, whose):
    if seen != n:
        raise Failed(f"{whose} wrote {seen} of {n} records")


def bare(lab, topic, n):
    directory = L.servers.new_dir("bare")
    try:
        r = lab.run_json([L.program("sink-ceiling"), "--brokers", lab.kafka.bootstrap, "--topic", topic, "--messages", str(n),
                          "--directory", directory, "--records", str(records_of(n))], 600)
        must_be(count_lines(directory, False), n, "the bare loop")
        return r
    finally:
        shutil.rmtree(directory)


def handler(directory, **files):
    return {"kind": "sink", "catalogue": False, "files": {"directory": directory, "max_age": "5s", "manifest": False, **files}}


def ours(lab, topic, n, **files):
    """Lines are counted where they lie; of Parquet, what the sink says of its files."""
    directory = L.servers.new_dir("sink")
    try:
        with C.accounts(lab) as db:
            r = C.drain(lab, db, topic, n, handler(directory, max_records=records_of(n), **files))
            written = int(db.one("SELECT sum(records) FROM sink.file"))
        if files.get("format", "ndjson") == "ndjson":
            written = count_lines(directory, files.get("compression"))
        must_be(written, n, "the sink")
        return r
    finally:
        shutil.rmtree(directory)


def duckdb():
    """DuckDB's library, where `make setup` put it."""
    with open(os.path.join(L.ROOT, "etc/duckdb/pom.xml"), encoding="utf-8") as f:
        version = re.search(r"<artifactId>duckdb_jdbc</artifactId>\s*<version>(.*?)</version>", f.read()).group(1)
    path = os.path.join(L.servers.cache_dir(), f"duckdb-{version}", "libduckdb.so")
    if not os.path.exists(path):
        raise Failed("DuckDB's library is not there: run make setup")
    return path


def results(what, base, seen, must):
    """Rate, CPU and memory of the sink beside the bare loop."""
    detail = {"ceiling": base, "sink": seen}
    rate = "steady_events_per_second" if "steady_events_per_second" in base[0] else "rate"
    yield Result("sink", what, "rec/s", median(pick(seen, "steady_events_per_second")), "bare loop", median(pick(base, rate)), must,
                 detail)
    yield Result("sink", f"{what}: CPU of the program", "us/rec", median(pick(seen, "cpu_us_per_event")), "bare loop",
                 median(pick(base, "cpu_us_per_event")))
    yield Result("sink", f"{what}: peak RSS", "MB", max(pick(seen, "peak_rss_kb")) / 1024, "bare loop",
                 max(pick(base, "peak_rss_kb")) / 1024, ("value", "<=", 128))


def sink(lab, opt):
    """Consume, the whole contract line, cut, fdatasync, rename: a bare loop on one thread does it, and we with two lanes, positions in
    Postgres and a checksum of each file."""
    n, topic = opt.rows, C.events(lab, opt.rows)
    for what, files, must in (("ndjson", {}, ("ratio", ">=", 0.8)), ("ndjson, zstd", {"compression": "zstd"}, ("ratio", ">=", 0.6)),
                              ("parquet, zstd", {"format": "parquet", "compression": "zstd"}, ("value", ">=", 200000.0))):
        if files.get("format") == "parquet":
            files["parquet_library"] = duckdb()
        base, seen = in_turns(opt.rounds, lambda: bare(lab, topic, n), lambda: ours(lab, topic, n, **files))  # noqa: B023
        yield from results(f"files, {what}", base, seen, must)


# ---------------------------------------------------------------- tables

def bare_table(lab, topic, n):
    with C.accounts(lab) as db:
        r = lab.run_json([L.program("sink-table-ceiling"), "--conninfo", db.conninfo, "--brokers", lab.kafka.bootstrap, "--topic",
                          topic, "--messages", str(n), "--partitions", str(L.PARTITIONS)], 600)
        must_be(int(db.one("SELECT count(*) FROM ceiling_row")), n, "the bare loop")
    return r


def our_table(lab, topic, n):
    with C.accounts(lab) as db:
        r = C.drain(lab, db, topic, n, {"kind": "sink", "catalogue": False, "table": {"table": "bench.sunk"}})
        must_be(int(db.one("SELECT count(*) FROM bench.sunk")), n, "the sink")
    return r


def sink_table(lab, opt):
    """COPY of the same rows and the position in one transaction: bare loops in two threads do it, and we with two lanes."""
    n, topic = opt.rows, C.events(lab, opt.rows)
    base, seen = in_turns(opt.rounds, lambda: bare_table(lab, topic, n), lambda: our_table(lab, topic, n))
    yield from results("table, append", base, seen, ("ratio", ">=", 0.8))


# ---------------------------------------------------------------- many files

def spread_events(lab, n):
    """A topic of n events whose times lie in HOURS hours, in turns."""
    def make():
        lab.say(f"  writing {n:,} events of {HOURS} hours")
        lab.number += 1
        topic = lab.kafka.create_topic(f"hours{lab.number}", L.PARTITIONS, {"retention.ms": "-1"})
        lab.run_json(C.fill(lab, topic, n, hours=HOURS), 600)
        return topic
    return lab.once(("hours", n), make)


def spread(lab, topic, n, **files):
    """The whole topic with so many hours in work at a time; r["open_files"]: the most that were open."""
    directory = L.servers.new_dir("spread")
    most = [0]

    def published():
        with contextlib.suppress(OSError):  # not yet
            most[0] = max(most[0], c.metric("postrider_sink_open_files"))
        return int(db.one("SELECT coalesce(sum(next_offset), 0) FROM inbox.position"))
    try:
        with C.accounts(lab) as db:
            c = C.member(lab, db, topic, handler(directory, max_records=10000000, open_files=OPEN_FILES, **files))
            try:
                r = L.drained(C.watch(c.start(), published, n), n)
                r["peak_rss_kb"], r["open_files"] = c.peak_rss_kb(), most[0]
            finally:
                c.stop()
        must_be(count_lines(directory, files.get("compression")), n, "the sink")
        return r
    finally:
        shutil.rmtree(directory)


def sink_open_files(lab, opt):
    """Records of more hours than files may be open, in turns: memory is bounded by the buffers and not by the files."""
    n = min(opt.rows, 200000)
    topic = spread_events(lab, n)
    plain, packed = in_turns(1, lambda: spread(lab, topic, n), lambda: spread(lab, topic, n, compression="zstd"))
    if plain[0]["open_files"] < OPEN_FILES * 0.9:  # compressed they are small enough to wait in memory and in the spool
        raise Failed(f"only {plain[0]['open_files']:.0f} files were open at a time")
    for what, r in (("ndjson", plain[0]), ("ndjson, zstd", packed[0])):
        yield Result("sink", f"{what}, {HOURS} hours at once: peak RSS", "MB", r["peak_rss_kb"] / 1024, "files open", r["open_files"],
                     ("value", "<=", 128), r)


# ---------------------------------------------------------------- Kafka Connect

class Lines:
    """How many lines a growing file has; what was counted is not read again."""

    def __init__(self, path):
        self.path, self.at, self.n = path, 0, 0

    def count(self):
        if os.path.exists(self.path):
            with open(self.path, "rb") as f:
                f.seek(self.at)
                while block := f.read(1 << 20):
                    self.at += len(block)
                    self.n += block.count(b"\n")
        return self.n


def connect(lab, name, topic, n, count, **connector):
    """A sink connector reads the whole topic, in batches of 5,000."""
    c = R.Connect(lab, name, R.jars("connect", f"connect-{CONNECT}"), dict(connector, name=name, topics=topic), heap="1g",
                  consumer__max__poll__records=5000)
    try:
        r = L.drained(C.watch(c.start(), count, n), n)
        r["cpu_us_per_event"] = L.cpu_ticks(c.pid) * 1e6 / n
        r["peak_rss_kb"] = c.peak_rss_kb()
    finally:
        c.kill()
    return r


def connect_file(lab, topic, n):
    """The payload only, one file, no fsync."""
    directory = L.servers.new_dir("connect")
    try:
        lines = Lines(os.path.join(directory, "out"))
        r = connect(lab, "file", topic, n, lines.count, tasks__max=1, file=lines.path,
                    connector__class="org.apache.kafka.connect.file.FileStreamSinkConnector")
        must_be(lines.count(), n, "FileStreamSink")
        return r
    finally:
        shutil.rmtree(directory)


def connect_jdbc(lab, topic, n):
    """The payload as text and the record's place, which is the key: upserts, so that a batch may come twice."""
    with C.accounts(lab) as db:
        lab.say(f"  Debezium's JDBC sink: {n:,} records")
        db.psql("CREATE TABLE bench.jdbc (__connect_topic text, __connect_partition integer, __connect_offset bigint, payload text, "
                "PRIMARY KEY (__connect_topic, __connect_partition, __connect_offset))")

        # By the index: counting all rows again and again would cost more than the copy.
        def count():
            return int(db.one("SELECT coalesce(sum((SELECT max(__connect_offset) + 1 FROM bench.jdbc WHERE __connect_topic = %s "
                              "AND __connect_partition = p)), 0) FROM generate_series(0, %s) AS p", (topic, L.PARTITIONS - 1)))
        r = connect(lab, "jdbc", topic, n, count, tasks__max=2,
                    connector__class="io.debezium.connector.jdbc.JdbcSinkConnector",
                    connection__url=f"jdbc:postgresql://{lab.pg.host}:{lab.pg.port}/{db.name}?reWriteBatchedInserts=true",
                    connection__username="postgres", connection__password="none", insert__mode="upsert",
                    primary__key__mode="kafka", schema__evolution="none", collection__name__format="bench.jdbc",
                    batch__size=5000, transforms="line", transforms__line__field="payload",
                    transforms__line__type="org.apache.kafka.connect.transforms.HoistField$Value")
        must_be(int(db.one("SELECT count(*) FROM bench.jdbc")), n, "the JDBC sink")
    return r


def sink_rivals(lab, opt):
    """Kafka Connect's FileStreamSink and Debezium's JDBC sink on the same topics, in the same run."""
    n, few = opt.rows, max(opt.rows // 5, 2000)
    for what, size, theirs, mine, name, must in (
            ("files, ndjson", n, connect_file, ours, f"FileStreamSink {CONNECT}", 4.0),
            ("table, append", few, connect_jdbc, our_table, "Debezium's JDBC sink", 10.0)):
        topic = C.events(lab, size)
        base, seen = in_turns(max(1, opt.rounds - 1), lambda: theirs(lab, topic, size), lambda: mine(lab, topic, size))  # noqa: B023
        yield Result("rivals", what, "rec/s", median(pick(seen, "steady_events_per_second")), name,
                     median(pick(base, "steady_events_per_second")), ("ratio", ">=", must), {"sink": seen, "rival": base})
        yield Result("rivals", f"{what}: CPU of the program", "us/rec", median(pick(seen, "cpu_us_per_event")), name,
                     median(pick(base, "cpu_us_per_event")))
        yield Result("rivals", f"{what}: peak RSS", "MB", max(pick(seen, "peak_rss_kb")) / 1024, name,
                     max(pick(base, "peak_rss_kb")) / 1024)


MEASURES = {f.__name__: f for f in (sink, sink_table, sink_open_files)}
RIVALS = {"sink_rivals": sink_rivals}
