"""tests/support/sink_table.py -- a sink's table beside what its topics hold: which rows must be there, by each mode's word. Refuses
to ask the consumer: what the topic holds is read with a client of its own.
"""
import base64
import json
import uuid

import pytest
from outbox import header, read_topic
from wait import WaitTimeout, wait_until

COLUMNS = "partition, \"offset\", id, type, topic, key, \"time\", hour, headers, payload, payload_base64"


class Table:
    """An inbox whose topic becomes rows of name; db: where the table is (None: the consumer's)."""

    def __init__(self, i, mode, name="platform.event", db=None, key=()):
        self.i, self.mode, self.name, self.key = i, mode, name, tuple(key)
        self.db = db or i.db
        self.own = db is not None
        self.topics = [i.topic]

    def consumer(self, config=None, start=True, handler=None, **more):
        table = {"table": self.name, "mode": self.mode, "max_records": 50, "max_age": "50ms",
                 **({"key": list(self.key)} if self.key else {}), **({"conninfo": self.db.conninfo} if self.own else {}), **more}
        c = self.i.consumer({"kind": "sink", "table": table, **(handler or {})}, config={"lanes": 2, **(config or {})}, topics=self.topics)
        return c.start() if start else c

    def put(self, key, payload, **more):
        value = payload if payload is None or isinstance(payload, bytes) else json.dumps(payload).encode()
        id = str(uuid.uuid4())
        self.i.put(key, value, [("id", id.encode()), ("type", b"Changed")], **more)
        return id

    def send(self, n, keys=13, every=0):
        """n changes of so many keys; each every-th one ends its key (a tombstone)."""
        for k in range(n):
            self.put(f"k{k * 7 % keys}".encode(), None if every and k % every == every - 1 else {"n": k})
        self.i.flush()

    def stands(self, timeout=60):
        for topic in self.topics:
            ends = {p: n for p, n in self.i.kafka.end_offsets(topic).items() if n > 0}
            last = []

            def done(topic=topic, ends=ends, last=last):
                rows = dict(self.i.db.query("SELECT partition, next_offset FROM inbox.position WHERE \"group\" = %s AND topic = %s",
                                            (self.i.group, topic)))
                last[:] = [rows]
                return all(rows.get(p, -1) >= n for p, n in ends.items())
            try:
                wait_until(done, timeout, "the positions to reach the end")
            except WaitTimeout as e:
                raise AssertionError(f"{e}: {last}, {ends}\n{self.i.logs()}") from None

    def records(self):
        return [r for topic in self.topics for r in read_topic(self.i.kafka, topic)]

    def again_from_zero(self):
        """As an operator who has every position begin anew."""
        self.i.db.query("UPDATE inbox.position SET next_offset = 0, epoch = epoch + 1")

    # ---- what must be there

    def check(self, without=(), timeout=60):
        """Once all of the topics is done: exactly the rows that the mode makes of it; without: (partition, offset) that are not in."""
        self.stands(timeout)
        records = [r for r in self.records() if (r.partition, r.offset) not in set(without)]
        {"append": self._append, "upsert": self._upsert, "scd2": self._scd2}[self.mode](records)

    def _append(self, records):
        rows = self.db.query(f"SELECT topic, partition, \"offset\", id, key, payload, payload_base64 FROM {self.name} ORDER BY 1, 2, 3")
        assert rows == sorted(((r.topic, r.partition, r.offset, header(r, "id").decode(), text(r.key), *payload(r.value))
                               for r in records), key=lambda r: r[:3]), self.i.logs()

    def identity(self, record):
        return tuple({"topic": record.topic, "key": text(record.key)}[c] for c in self.key or ("topic", "key"))

    def _upsert(self, records):
        """Of keys that stay in their partition."""
        last = {}
        for r in records:
            last[self.identity(r)] = r
        rows = self.db.query(f"SELECT topic, key, \"offset\", payload, payload_base64 FROM {self.name}")
        assert sorted(rows) == sorted((r.topic, text(r.key), r.offset, *payload(r.value)) for r in last.values() if r.value is not None)

    def _scd2(self, records):
        """Of keys that stay in their partition: rows hold from when to when; times of one key never go back."""
        want, held, since = [], {}, {}  # held: identity -> number of the row that holds
        for r in records:
            k = self.identity(r)
            at = max(r.time / 1000, since.get(k, 0))
            if k in held:
                want[held.pop(k)][4:] = at, False
                since[k] = at
            if r.value is not None:
                held[k] = len(want)
                want.append([r.topic, text(r.key), r.offset, at, None, True])
                since[k] = at
        rows = self.db.query(f"SELECT topic, key, \"offset\", extract(epoch FROM valid_from)::float8,"
                             f" extract(epoch FROM valid_to)::float8, current FROM {self.name}")
        got = sorted((*r[:3], round(r[3], 3), r[4] and round(r[4], 3), r[5]) for r in rows)
        want = sorted((*w[:3], round(w[3], 3), w[4] and round(w[4], 3), w[5]) for w in want)
        wrong = [(g, w) for g, w in zip(got, want) if g != w]
        assert len(got) == len(want) and not wrong, f"{len(got)} rows, {len(want)} expected; the first wrong ones: {wrong[:3]}"


def text(key):
    if key is None:
        return None
    try:
        s = key.decode()
        assert "\0" not in s
        return s
    except (UnicodeDecodeError, AssertionError):
        return "base64:" + base64.b64encode(key).decode()


def payload(value):
    """(payload, payload_base64) of a row."""
    if value is None:
        return None, None
    try:
        return json.loads(value), None
    except ValueError:
        return None, base64.b64encode(value).decode()


@pytest.fixture
def table(inbox):
    """table(mode, ...): on a fresh inbox."""
    made = []

    def make(mode, i=None, partitions=3, **more):
        made.append(Table(i or inbox(partitions=partitions), mode, **more))
        return made[-1]
    yield make
    for t in made:
        for c in t.i.consumers:
            c.kill()
        if t.own:
            t.db.drop()
