"""tests/support/outbox.py -- one outbox from end to end: its database, its relay, and what came out of Kafka.

For tests that look at single events, or at what an operator does. Refuses to judge
thousands of events: that is checker.py's work.
"""
import collections
import copy
import itertools
import json
import os

import servers
from wait import WaitTimeout, wait_until

Record = collections.namedtuple("Record", "topic partition offset key headers value time time_type")
_count = itertools.count(1)


def unique(word):
    """A name nobody else uses on this broker and server."""
    return f"{word}{os.getpid()}x{next(_count)}"


def header(record, name):
    """The header's value; None when it is not there, an error when it comes twice."""
    found = [v for k, v in record.headers if k == name]
    assert len(found) < 2, f"header {name} comes {len(found)} times"
    return found[0] if found else None


def read_topic(kafka, topic, n=0, timeout=45):
    """All records as a read_committed consumer sees them, by partition and offset, as soon as n different
    events are there. With a consumer of its own: in librdkafka 2.0 one that knew a topic which is deleted never
    closes."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition
    c = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "nobody", "enable.auto.commit": False,
                  "isolation.level": "read_committed", "enable.partition.eof": True, "log_level": 0,
                  "auto.offset.reset": "error", "fetch.wait.max.ms": 10, "fetch.message.max.bytes": 8 << 20,
                  "reconnect.backoff.max.ms": 200})
    records, ids, at_end = [], set(), set()
    partitions = list(c.list_topics(topic, 10).topics[topic].partitions)
    c.assign([TopicPartition(topic, p, 0) for p in partitions])

    def done():
        for m in c.consume(1000, 0.05):
            if m.error() is None:
                at_end.discard(m.partition())
                records.append(Record(m.topic(), m.partition(), m.offset(), m.key(), m.headers() or [], m.value(),
                                      m.timestamp()[1], m.timestamp()[0]))
                ids.add(header(records[-1], "id"))
            elif m.error().code() == KafkaError._PARTITION_EOF:
                at_end.add(m.partition())
        return len(ids) >= n and len(at_end) == len(partitions)
    try:
        wait_until(done, timeout, f"{n} records on {topic}", interval=0.001, interval_max=0.01)
    except WaitTimeout:
        raise AssertionError(f"{len(ids)} of {n} events on {topic} after {timeout} s: "
                             f"{str(by_key(records))[:2000]}") from None
    finally:
        c.unassign()
        c.close()
    return sorted(records, key=lambda r: (r.partition, r.offset))


class Outbox:
    """A database with schema outbox, a position topic and a relay (not yet started)."""

    def __init__(self, pg, kafka, word="o", **relay):
        self.name = unique(word)
        self.pg, self.kafka = pg, kafka
        self.db = pg.createdb(self.name, schema=True)
        self.cli = servers.Cli()
        self.cli.run("init", "--conninfo", self.db.conninfo, "--brokers", kafka.bootstrap, "--name", self.name,
                     check=True)
        self.conn = self.db.connect()
        self.relay = servers.Relay(self.db.conninfo, kafka.bootstrap, name=self.name, **copy.deepcopy(relay))

    def close(self):
        self.relay.kill()
        self.conn.close()
        self.db.drop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self, **kw):
        self.relay.start(**kw).wait_ready()
        return self

    def stop(self):
        assert self.relay.terminate() == 0
        return self

    def sql(self, text, args=None):
        with self.conn.cursor() as cur:
            cur.execute(text, args)
            return cur.fetchall() if cur.description else []

    def one(self, text, args=None):
        return self.sql(text, args)[0][0]

    def kind(self, partitions=1, config=None, word="k"):
        """An aggregatetype whose topic exists; returns (aggregatetype, topic)."""
        kind = unique(word)
        return kind, self.kafka.create_topic("outbox.event." + kind, partitions, config)

    def publish(self, kind, key, payload="{}", type="T", **more):
        """outbox.publish, as text; returns the id."""
        args = {"aggregatetype": kind, "aggregateid": key, "type": type, "payload": payload, **more}
        return self.one(f"SELECT outbox.publish({', '.join(f'{k} => %({k})s' for k in args)})::text", args)

    def many(self, kind, keys, start=1, payload="{}"):
        """One transaction; event i of the whole call has type str(start + i)."""
        self.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT %s, k, "
                 "(%s + n - 1)::text, %s::jsonb FROM unnest(%s::text[]) WITH ORDINALITY AS u (k, n) ORDER BY n",
                 (kind, start, payload, list(keys)))

    def read(self, topic, n=0, timeout=45):
        return read_topic(self.kafka, topic, n, timeout)

    def run(self, *args, **kw):
        """The operator's CLI on this relay's config."""
        return self.cli.run(*args, "-c", self.relay.file, **kw)

    def readyz(self):
        status, body = self.relay.get("/readyz")
        return status, json.loads(body)

    def wait_state(self, state, timeout=45):
        """Waits until /readyz names the state; returns its answer."""
        def there():
            status, answer = self.readyz()
            last[:] = [answer]
            assert (status == 200) == answer["ready"]
            return answer["state"] == state
        last = []
        try:
            wait_until(there, timeout, f"state {state}", ignore=(OSError,))
        except WaitTimeout:
            raise AssertionError(f"state {state} did not come in {timeout} s: {last}\n"
                                 f"{servers.tail(self.relay.log)}") from None
        return last[0]

    def parked(self, columns="seq"):
        return self.sql(f"SELECT {columns} FROM outbox.parked ORDER BY seq")

    def wait_parked(self, n, timeout=45):
        try:
            wait_until(lambda: len(self.parked()) == n, timeout, f"{n} parked events")
        except WaitTimeout as e:
            raise AssertionError(f"{e}; parked: {self.parked('left(key, 20), type, head, attempts, request')}") from None


def by_key(records):
    """{key: [types in log order]}"""
    out = collections.defaultdict(list)
    for r in records:
        out[r.key.decode()].append(header(r, "type").decode())
    return dict(out)
