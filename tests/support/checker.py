#!/usr/bin/python3
"""tests/support/checker.py -- was every committed event published, once, unharmed, in order?

The truth is truth.journal, written by the business transactions themselves (load.py);
the history is the topics, read here from their beginning to their end. Shares no code
with the relay and asks it nothing.

What it finds:
  LOST             committed, not on the topic
  PHANTOM          on the topic, not committed (rolled back, or gone in a crash)
  CORRUPT          value, key, header or topic differ from what was committed
  DUP              more than once (exactly_once: a violation; at_least_once: counted)
  ORDER            an event of an aggregate appears first after a later one of it did
  PARTITION_MOVED  an aggregate in two partitions, or not in the one murmur2 gives
  OPEN_TXN         a transaction never ended: read_committed readers stand still
  TORN             (on request) events of one database transaction in two Kafka transactions

In at_least_once the log may rewind (1 2 3, 2 3 4) but never step ahead (1 3 2): a
duplicate is not an ORDER break, a late first appearance is. Gaps that never close are LOST.
Call it when the load has stopped; it waits up to `settle` seconds for what is missing.
"""
import argparse
import collections
import contextlib
import gc
import hashlib
import json
import re
import sys
import time

KINDS = ("LOST", "PHANTOM", "CORRUPT", "DUP", "ORDER", "PARTITION_MOVED", "OPEN_TXN", "TORN")
REQUIRED_HEADERS = ("id", "type", "content-type", "outbox-seq", "outbox-created-at")
OWN_HEADERS = frozenset(REQUIRED_HEADERS + ("traceparent",))
EXCERPTS = 10

# event_id, topic, agg, aggseq, txn_tag, type, payload_md5, headers as an object of strings
JOURNAL = """
SELECT event_id, topic, agg, aggseq, txn_tag, type, payload_md5, CASE WHEN headers <> '{}' THEN
	(SELECT jsonb_object_agg(h.key, CASE jsonb_typeof(h.value) WHEN 'string' THEN h.value #>> '{}'
		ELSE h.value::text END) FROM jsonb_each(headers) AS h) END
FROM truth.journal
"""

# For tests with one writer at a time and no journal: the outbox itself, in order of seq.
OUTBOX = """
SELECT id, coalesce(topic, 'outbox.event.' || aggregatetype), aggregateid,
	row_number() OVER (PARTITION BY coalesce(topic, 'outbox.event.' || aggregatetype), aggregateid ORDER BY seq),
	0, type, coalesce(md5(payload::text), md5(payload_bytes))::uuid, CASE WHEN headers <> '{}' THEN
	(SELECT jsonb_object_agg(h.key, CASE jsonb_typeof(h.value) WHEN 'string' THEN h.value #>> '{}'
		ELSE h.value::text END) FROM jsonb_each(headers) AS h) END
FROM outbox.event
"""


class Result:
    """Counts per kind, the first excerpts of each, and what was looked at."""

    def __init__(self, mode):
        self.mode = mode
        self.counts = dict.fromkeys(KINDS, 0)
        self.excerpts = {k: [] for k in KINDS}
        self.journal = self.records = self.aggregates = self.partitions = self.rewinds = 0
        self.seconds = 0.0
        self.tolerated = set() if mode == "exactly_once" else {"DUP"}

    def found(self, kind, text):
        self.counts[kind] += 1
        if len(self.excerpts[kind]) < EXCERPTS:
            self.excerpts[kind].append(text)

    @property
    def violations(self):
        return {k: n for k, n in self.counts.items() if n and k not in self.tolerated}

    @property
    def ok(self):
        return not self.violations

    @property
    def exit_code(self):
        return 0 if self.ok else 1

    def __getattr__(self, name):
        """result.lost, result.dup, ...: the counts by lower-case name."""
        kind = name.upper()
        if kind in KINDS:
            return self.counts[kind]
        raise AttributeError(name)

    def report(self):
        lines = [f"checked {self.records} records in {self.partitions} partitions against {self.journal} committed "
                 f"events of {self.aggregates} aggregates ({self.mode}, {self.seconds:.1f} s)"]
        for k in KINDS:
            if self.counts[k] or k not in ("OPEN_TXN", "TORN"):
                lines.append(f"  {k:16}{self.counts[k]:>9}{'  (allowed)' if k in self.tolerated else ''}")
                lines += [f"      {x}" for x in self.excerpts[k] if k not in self.tolerated]
                if self.counts[k] > EXCERPTS and k not in self.tolerated:
                    lines.append(f"      ... and {self.counts[k] - EXCERPTS} more")
        lines.append("ok" if self.ok else "VIOLATED: " + ", ".join(f"{k} {n}" for k, n in self.violations.items()))
        return "\n".join(lines)

    __repr__ = report

    def as_dict(self):
        return {"ok": self.ok, "mode": self.mode, "counts": self.counts, "excerpts": self.excerpts,
                "journal": self.journal, "records": self.records, "aggregates": self.aggregates,
                "partitions": self.partitions, "rewinds": self.rewinds, "seconds": round(self.seconds, 3)}


Record = collections.namedtuple("Record", "topic partition offset key headers value")


def murmur2_partition(key, partitions):
    """The partition Kafka's Java client (and murmur2_random) gives to a key."""
    m, h, n = 0x5BD1E995, 0x9747B28C ^ len(key), len(key) & ~3
    for i in range(0, n, 4):
        k = int.from_bytes(key[i:i + 4], "little") * m & 0xFFFFFFFF
        k = (k ^ k >> 24) * m & 0xFFFFFFFF
        h = (h * m & 0xFFFFFFFF) ^ k
    if key[n:]:
        h = (h ^ int.from_bytes(key[n:], "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


_ESCAPE = re.compile(rb"\\(.)", re.S)
_ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def _uncopy(field):
    """A field of COPY's text format as bytes; None for NULL."""
    if field == b"\\N":
        return None
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda m: _ESCAPES.get(m.group(1), m.group(1)), field)


class _Lines:
    """File that psycopg2's COPY writes to: keeps each line under its first field."""

    def __init__(self):
        self.rows = {}
        self.rest = b""
        self.twice = []

    def write(self, data):
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            self.add(line)

    def add(self, line):
        event_id = line[:36]
        if event_id in self.rows:
            self.twice.append(event_id)
        self.rows[event_id] = line


def read_journal(conninfo, sql=JOURNAL):
    """{event id: COPY line}: the lines stay as they came, ten million fit in memory."""
    import psycopg2
    lines = _Lines()
    conn = psycopg2.connect(conninfo, connect_timeout=10)
    try:
        with conn.cursor() as cur:
            cur.copy_expert(f"COPY ({sql}) TO STDOUT", lines)
    finally:
        conn.close()
    if lines.twice:
        raise ValueError(f"the journal itself has an id twice: {lines.twice[0].decode()}")
    return lines.rows


class Checker:
    """Takes the truth, then records in log order per partition, then says what is wrong.

    partitions: {topic: number} to check murmur2, {} to leave that out. allow_missing: ids (text)
    that need not be there (parked or skipped on purpose); when they are there they are
    checked like the rest."""

    def __init__(self, rows, mode="exactly_once", partitions=None, torn=False, allow_missing=(), extra_headers=()):
        if mode not in ("exactly_once", "at_least_once"):
            raise ValueError(f"mode is {mode!r}: exactly_once or at_least_once")
        self.rows, self.result, self.torn = rows, Result(mode), torn
        self.partitions = partitions or {}
        self.allow_missing = {i.encode() for i in allow_missing}
        self.may_have = OWN_HEADERS | set(extra_headers)
        self.result.journal = len(rows)
        self.seen = {}          # event id -> where first
        self.highest = {}       # (topic, agg) -> [aggseq, partition, where]
        self.segment = {}       # (tag, topic, partition) -> Kafka transaction
        self.last_offset = {}   # (topic, partition) -> [offset, transaction number]
        self.wanted = len(rows) - sum(1 for i in self.allow_missing if i in rows)
        self.missing = self.wanted

    def record(self, topic, partition, offset, key, headers, value):
        r = self.result
        r.records += 1
        where = (topic, partition, offset)
        txn = self._kafka_transaction(topic, partition, offset) if self.torn else 0
        names = [h[0] for h in headers] if headers else []
        given = dict(headers) if headers else {}
        event_id = given.get("id")
        if event_id is None:
            r.found("CORRUPT", f"{_at(where)}: no header \"id\"")
            return
        line = self.rows.get(event_id)
        if line is None:
            r.found("PHANTOM", f"{_at(where)}: event {_text(event_id)} key {_text(key)} is not committed")
            return
        _, want_topic, agg, aggseq, tag, kind, md5, own = line.split(b"\t")
        if b"\\" in line:
            want_topic, agg, kind, md5, own = map(_uncopy, (want_topic, agg, kind, md5, own))
        aggseq = int(aggseq)
        wrong = self._difference(topic, key, value, given, names, want_topic, agg, kind, md5, own)
        if wrong:
            r.found("CORRUPT", f"{_at(where)}: event {_text(event_id)} of {_text(agg)} #{aggseq}: {wrong}")
        first = self.seen.get(event_id)
        again = first is not None
        if again:
            r.found("DUP", f"{_at(where)}: event {_text(event_id)} of {_text(agg)} #{aggseq}, "
                    f"first at {_at(first)}")
        else:
            self.seen[event_id] = where
            if event_id not in self.allow_missing:
                self.missing -= 1
        self._order(where, agg, aggseq, again)
        if self.torn and tag != b"0":
            if self.segment.setdefault((tag, topic, partition), txn) != txn:
                r.found("TORN", f"{_at(where)}: transaction {_text(tag)} goes on in another Kafka transaction")

    def _order(self, where, agg, aggseq, again):
        r = self.result
        last = self.highest.get((where[0], agg))
        if last is None:
            self.highest[(where[0], agg)] = [aggseq, where[1], where]
            n = self.partitions.get(where[0])
            if n and murmur2_partition(agg, n) != where[1]:
                r.found("PARTITION_MOVED", f"{_at(where)}: aggregate {_text(agg)} belongs to partition "
                        f"{murmur2_partition(agg, n)}")
            return
        if last[1] != where[1]:
            r.found("PARTITION_MOVED", f"{_at(where)}: aggregate {_text(agg)} was at {_at(last[2])}")
            last[1] = where[1]
        if not aggseq:  # in no order with the others, says the journal
            return
        if aggseq > last[0]:
            last[0], last[2] = aggseq, where
        elif again:
            r.rewinds += 1
        else:
            r.found("ORDER", f"{_at(where)}: {_text(agg)} #{aggseq} comes after #{last[0]} at {_at(last[2])}")

    def _difference(self, topic, key, value, given, names, want_topic, agg, kind, md5, own):
        """What differs from the committed event, or None."""
        if key != agg:
            return f"key is {_text(key)}"
        if md5 is None or md5 == b"\\N":
            if value is not None:
                return f"a tombstone has the value {_text(value)}"
        elif value is None:
            return "the value is null"
        elif hashlib.md5(value).hexdigest() != md5.replace(b"-", b"").decode():
            return f"the value differs: {_text(value)}"
        if topic.encode() != want_topic:
            return f"belongs to topic {_text(want_topic)}"
        if given.get("type") != kind:
            return f"header type is {_text(given.get('type'))}, not {_text(kind)}"
        own = json.loads(own) if own not in (None, b"\\N") else {}
        return self._header_difference(given, names, own)

    def _header_difference(self, given, names, own):
        if len(given) != len(names):
            return f"a header comes twice: {names}"
        for name in REQUIRED_HEADERS:
            if not given.get(name):
                return f"header {name} is missing"
        if not given["outbox-seq"].isdigit():
            return f"header outbox-seq is {_text(given['outbox-seq'])}"
        for name, want in own.items():
            if given.get(name) != want.encode():
                return f"header {name} is {_text(given.get(name))}, not {want!r}"
        if len(given) > len(own) + len(REQUIRED_HEADERS):
            for name in names:
                if name not in own and name not in self.may_have:
                    return f"header {name} was never given"
        return None

    def _kafka_transaction(self, topic, partition, offset):
        """Number of the Kafka transaction within its partition: a control record takes an offset."""
        last = self.last_offset.setdefault((topic, partition), [offset - 1, 0])
        if offset != last[0] + 1:
            last[1] += 1
        last[0] = offset
        return last[1]

    def finish(self):
        r = self.result
        for event_id, line in self.rows.items() if self.missing else ():
            if event_id not in self.seen and event_id not in self.allow_missing:
                _, topic, agg, aggseq, tag, *_ = line.split(b"\t")
                r.found("LOST", f"event {_text(event_id)} of {_text(agg)} #{int(aggseq)} (topic {_text(topic)}, "
                        f"transaction {_text(tag)})")
        r.aggregates = len(self.highest)
        return r


def _at(where):
    return f"{where[0]}[{where[1]}]@{where[2]}"


def _text(b):
    if b is None:
        return "(none)"
    s = b[:60].decode("utf-8", "backslashreplace")
    return s + ("..." if len(b) > 60 else "")


class LogReader:
    """Reads every partition of the topics from its beginning, again and again to its end."""

    def __init__(self, brokers, topics, isolation="read_committed", timeout=30):
        from confluent_kafka import Consumer, TopicPartition
        common = {"bootstrap.servers": brokers, "group.id": f"checker-{time.time_ns()}", "enable.auto.commit": False,
                  "log_level": 2, "socket.timeout.ms": 10000, "reconnect.backoff.max.ms": 500}
        self.c = Consumer({**common, "isolation.level": isolation, "enable.partition.eof": True, "check.crcs": True,
                           "auto.offset.reset": "error", "fetch.wait.max.ms": 20, "queued.min.messages": 200000,
                           "queued.max.messages.kbytes": 131072, "fetch.message.max.bytes": 8 << 20})
        # The high watermark counts open transactions in; a read_committed one would not.
        self.ends = Consumer({**common, "isolation.level": "read_uncommitted"})
        self.TopicPartition, self.timeout = TopicPartition, timeout
        self.topics, self.position = {}, {}
        self.pattern = topics
        self.refresh()

    def refresh(self):
        """Looks for topics and partitions that are new since the last call."""
        found = {}
        for name, t in self.c.list_topics(timeout=self.timeout).topics.items():
            if not name.startswith("__") and t.error is None and matches(self.pattern, name):
                found[name] = len(t.partitions)
        for name, n in found.items():
            for p in range(n):
                if (name, p) not in self.position:
                    low, _ = self.ends.get_watermark_offsets(self.TopicPartition(name, p), self.timeout)
                    self.position[name, p] = low
        if found != self.topics:
            self.topics = found
            self.c.assign([self.TopicPartition(t, p, o) for (t, p), o in self.position.items()])

    def high_watermarks(self):
        return {(t, p): self.ends.get_watermark_offsets(self.TopicPartition(t, p), self.timeout)[1]
                for t, p in self.position}

    def read_to_end(self, take, open_txn_timeout=90):
        """Calls take(topic, partition, offset, key, headers, value) for all up to the high watermarks
        of now. Returns the partitions that an open transaction keeps from their end."""
        from confluent_kafka import KafkaError
        ends = self.high_watermarks()
        behind = {tp for tp, end in ends.items() if self.position[tp] < end}
        deadline = time.monotonic() + open_txn_timeout
        while behind:
            messages = self.c.consume(10000, 0.1)
            for m in messages:
                tp = (m.topic(), m.partition())
                offset = m.offset()
                if m.error() is None:
                    take(tp[0], tp[1], offset, m.key(), m.headers(), m.value())
                    offset += 1
                elif m.error().code() != KafkaError._PARTITION_EOF:
                    if m.error().retriable() or m.error().code() in (KafkaError._TRANSPORT,
                                                                     KafkaError._ALL_BROKERS_DOWN):
                        continue
                    raise RuntimeError(f"reading {tp[0]}[{tp[1]}]: {m.error()}")
                self.position[tp] = offset
                if tp in behind and offset >= ends[tp]:
                    behind.discard(tp)
                deadline = max(deadline, time.monotonic() + 5) if m.error() is None else deadline
            if time.monotonic() > deadline:
                return behind
        return behind

    def close(self):
        self.c.close()
        self.ends.close()


@contextlib.contextmanager
def _no_gc():
    """Millions of small objects and no cycles: the collector would only walk them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def matches(topics, name):
    """topics: one name, a list of names, or a pattern that starts with ^."""
    if isinstance(topics, (list, tuple, set)):
        return any(matches(t, name) for t in topics)
    return re.search(topics, name) is not None if topics.startswith("^") else topics == name


def check(conninfo, brokers, topics, mode="exactly_once", isolation="read_committed", settle=30, torn=False,
          check_partition=True, journal_sql=JOURNAL, allow_missing=(), extra_headers=(), open_txn_timeout=90):
    """Checks what is on `topics` (a name, a list, or "^pattern") against the journal; see the top.

    settle: seconds to wait for events that are missing at first (the relay may still be
    at work). Returns a Result; never raises for a violation."""
    with _no_gc():
        return _check(conninfo, brokers, topics, mode, isolation, settle, torn, check_partition, journal_sql,
                      allow_missing, extra_headers, open_txn_timeout)


def _check(conninfo, brokers, topics, mode, isolation, settle, torn, check_partition, journal_sql, allow_missing,
           extra_headers, open_txn_timeout):
    start = time.monotonic()
    rows = read_journal(conninfo, journal_sql)
    reader = LogReader(brokers, topics, isolation)
    try:
        c = Checker(rows, mode, None, torn, allow_missing, extra_headers)
        deadline = time.monotonic() + settle
        while True:
            reader.refresh()
            c.partitions = reader.topics if check_partition else {}
            stuck = reader.read_to_end(c.record, open_txn_timeout)
            for t, p in sorted(stuck):
                c.result.found("OPEN_TXN", f"{t}[{p}]: still at {reader.position[t, p]} after {open_txn_timeout} s")
            if stuck or not c.missing or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        if not stuck:
            reader.read_to_end(c.record, open_txn_timeout)  # what came meanwhile: late duplicates
        c.result.partitions = len(reader.position)
    finally:
        reader.close()
    c.finish()
    c.result.seconds = time.monotonic() - start
    return c.result


def read_records(brokers, topics, isolation="read_committed"):
    """All records of the topics as a list of Record, in offset order per partition."""
    out = []
    reader = LogReader(brokers, topics, isolation)
    try:
        reader.read_to_end(lambda *r: out.append(Record(*r)))
    finally:
        reader.close()
    return out


def main():
    p = argparse.ArgumentParser(description="Checks topics against the journal of committed events.")
    p.add_argument("--conninfo", required=True)
    p.add_argument("--brokers", required=True)
    p.add_argument("--topic", required=True, action="append", help="a name, or a pattern that starts with ^")
    p.add_argument("--mode", choices=("exactly_once", "at_least_once"), default="exactly_once")
    p.add_argument("--isolation", choices=("read_committed", "read_uncommitted"), default="read_committed")
    p.add_argument("--truth", choices=("journal", "outbox"), default="journal",
                   help="journal: truth.journal; outbox: outbox.event in order of seq (one writer at a time)")
    p.add_argument("--settle", type=float, default=30, help="seconds to wait for what is missing")
    p.add_argument("--torn", action="store_true", help="also look for split transactions")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    import psycopg2
    from confluent_kafka import KafkaException
    try:
        r = check(a.conninfo, a.brokers, a.topic, a.mode, a.isolation, a.settle, a.torn,
                  journal_sql=JOURNAL if a.truth == "journal" else OUTBOX)
    except (psycopg2.Error, KafkaException, RuntimeError, ValueError) as e:
        print(f"checker: {e}", file=sys.stderr)
        return 69
    print(json.dumps(r.as_dict(), indent=2) if a.json else r.report())
    return r.exit_code


if __name__ == "__main__":
    sys.exit(main())
