"""tests/support/topics.py -- a group without a database from end to end: its topic, what was produced, what its
handler did (files that the handler writes itself), and what is in its retry and dead letter topics.

Refuses to ask a consumer whether it did well.
"""
import collections
import copy
import itertools
import json
import os
import uuid

import pytest
import servers
from outbox import header, read_topic
from wait import WaitTimeout, wait_all, wait_until

_count = itertools.count(1)


class Topics:
    """One source topic, one group, one handler directory."""

    def __init__(self, kafka, partitions=3, delays=("300ms", "600ms"), brokers=None, timeout="5s"):
        self.kafka, self.delays, self.timeout = kafka, list(delays), timeout
        self.group = f"t{os.getpid()}x{next(_count)}"
        self.topic = kafka.create_topic("src." + self.group, partitions)
        self.partitions = partitions
        self.brokers = brokers or kafka.bootstrap
        self.dir = servers.new_dir("effects")
        os.chmod(self.dir, 0o777)
        self.consumers, self.sent, self.keys = [], {}, collections.defaultdict(list)
        self._producer = None

    # -- topics

    def retry(self, n):
        return f"{self.topic}.retry.{self.group}.{n}"

    @property
    def dead(self):
        return f"{self.topic}.dlt.{self.group}"

    def read(self, topic, n=0):
        """Records of the topic, as read_committed readers see them; at least n different ids."""
        return read_topic(self.kafka, topic, n)

    def committed(self, topic=None):
        """{partition: offset} of the group."""
        from confluent_kafka import Consumer, TopicPartition
        topic = topic or self.topic
        c = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": self.group, "log_level": 0,
                      "isolation.level": "read_committed"})
        try:
            parts = [TopicPartition(topic, p) for p in range(self.partitions)]
            return {p.partition: p.offset for p in c.committed(parts, 30)}
        finally:
            c.close()

    # -- consumers

    @property
    def handler(self):
        return {"kind": "exec", "command": [os.path.join(servers.ROOT, "tests/support/topics_handler.py"), self.dir],
                "timeout": "10s"}

    def config(self, config=None, park=True):
        tree = {"dedupe": "offset", "kafka": {"timeout": self.timeout}, "limits": {"batch_events": 20},
                "retry": {"delays": self.delays}}
        if park:
            tree["errors"] = [{"match": "reply:*", "policy": "park"}]
        return servers._merge(tree, copy.deepcopy(config or {}))

    def consumer(self, config=None, handler=None, park=True, **more):
        c = servers.Consumer(None, self.brokers, self.group, [self.topic], handler or self.handler,
                             config=self.config(config, park), **more)
        self.consumers.append(c)
        return c

    def member(self, config=None, **more):
        """Without a name in the group."""
        return self.consumer(servers._merge({"http": {"listen": "127.0.0.1:0"}}, config or {}), **more)

    def poison(self, key, how):
        path = os.path.join(self.dir, key)
        with open(path + ".new", "w", encoding="ascii") as f:
            f.write(how)
        os.rename(path + ".new", path)

    def cure(self, key):
        os.unlink(os.path.join(self.dir, key))

    # -- input

    @property
    def producer(self):
        if self._producer is None:
            from confluent_kafka import Producer
            # One at a time, as in inbox.py.
            self._producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "enable.idempotence": True, "max.in.flight": 1,
                                       "linger.ms": 2, "log_level": 0, "reconnect.backoff.max.ms": 200})
        return self._producer

    def event(self, key, headers=(), **more):
        id = str(uuid.uuid4())
        self.keys[key].append(id)
        self.sent[id] = (key, len(self.keys[key]))
        self.producer.produce(self.topic, json.dumps({"seq": len(self.keys[key])}), key,
                              headers=[("id", id), ("type", "Moved"), *headers], **more)
        return id

    def send(self, n, keys=20, prefix="k"):
        ids = [self.event(f"{prefix}{i % keys}") for i in range(n)]
        self.flush()
        return ids

    def flush(self):
        assert self.producer.flush(60) == 0, "the input is not on the topic"

    # -- what came of it

    def _lines(self, name):
        try:
            with open(os.path.join(self.dir, name), encoding="ascii") as f:
                return [json.loads(line) for line in f.read().splitlines()]
        except FileNotFoundError:
            return []

    def tries(self, id=None):
        return [t for t in self._lines("tries") if id in (None, t["id"])]

    def effects(self, id=None, op="do"):
        return [t for t in self._lines("effects") if id in (None, t["id"]) and t["op"] == op]

    def done(self):
        return {t["id"] for t in self.effects()}

    def logs(self):
        return "\n".join(f"--- {c.name} on port {c.port}\n{servers.tail(c.log, 15)}" for c in self.consumers)

    def wait_done(self, ids, timeout=60):
        ids = set(ids)
        try:
            wait_all(lambda: len(ids & self.done()), len(ids), timeout, f"{len(ids)} effects", interval=0.02)
        except WaitTimeout as e:
            left = ids - self.done()
            raise AssertionError(f"{e}: {len(left)} are missing, as {self.sent.get(next(iter(left)))}\n"
                                 f"{self.logs()}") from None

    def ends(self):
        """{topic: {partition: last stable offset}} of all that the group reads."""
        return {t: {p: n for p, n in self.kafka.end_offsets(t).items() if n > 0}
                for t in [self.topic, *(self.retry(i + 1) for i in range(len(self.delays)))]}

    def wait_stands(self, timeout=60):
        """Until the group's offsets are at the end of all its topics."""
        last = []

        def there():
            last[:] = [{t: {p: (self.committed(t).get(p, -1), n) for p, n in ends.items()}
                        for t, ends in self.ends().items()}]
            return all(at >= n for ends in last[0].values() for at, n in ends.values())
        try:
            wait_until(there, timeout, "the offsets to reach the ends", interval=0.1)
        except WaitTimeout:
            raise AssertionError(f"offsets have not reached the ends after {timeout} s: {last}\n{self.logs()}") from None

    def wait_dead(self, n, timeout=60):
        def there():
            return len(self.read(self.dead)) >= n and self.read(self.dead)
        try:
            return wait_until(there, timeout, f"{n} dead letters", interval=0.1)
        except WaitTimeout as e:
            raise AssertionError(f"{e}\n{self.logs()}") from None

    def times_in(self, topic):
        """{id: how often it is in the topic}."""
        return collections.Counter(header(r, "id").decode() for r in self.read(topic))

    def check_order(self, but=()):
        """Per key the numbers never go back, repetitions apart."""
        last = {}
        for t in self.effects():
            if t["key"] in but:
                continue
            assert t["seq"] <= last.get(t["key"], 0) + 1, f"{t['key']}: {t['seq']} after {last.get(t['key'], 0)}"
            last[t["key"]] = max(t["seq"], last.get(t["key"], 0))

    def wait_state(self, consumer, state, timeout=60):
        last = []

        def there():
            last[:] = [json.loads(consumer.get("/readyz")[1])]
            return last[0]["state"] == state
        try:
            wait_until(there, timeout, f"state {state}", ignore=(OSError,))
        except WaitTimeout:
            raise AssertionError(f"state {state} did not come in {timeout} s: {last}\n{self.logs()}") from None
        return last[0]

    def close(self):
        for c in self.consumers:
            c.kill()


@pytest.fixture
def topics(kafka):
    """topics(...) makes a Topics on the shared broker, or on kafka_= of the test's own."""
    made = []

    def make(kafka_=None, **more):
        made.append(Topics(kafka_ or kafka, **more))
        return made[-1]
    yield make
    for t in made:
        t.close()
