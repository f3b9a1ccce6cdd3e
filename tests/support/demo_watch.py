"""tests/support/demo_watch.py -- the demonstration's watchers: threads that look at topics, tables and pages while the
screen is drawn. What is counted is counted with eyes of their own, in the databases and on the topics; of the programs
only their word on how they are is taken.
"""
import collections
import json
import threading
import time


class Watcher(threading.Thread):
    """A thread that looks again and again until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopping = threading.Event()

    def stop(self):
        self.stopping.set()
        if self.ident:
            self.join(5)


class Records(Watcher):
    """What a read_committed consumer finds on the events' topics."""

    def __init__(self, brokers, topics):
        super().__init__()
        self.brokers, self.topics = brokers, topics
        self.count = 0
        self.last = collections.deque(maxlen=60)
        self.ready = threading.Event()

    def run(self):
        from confluent_kafka import Consumer, TopicPartition
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": "demo-viewer", "isolation.level": "read_committed",
                      "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 50,
                      "reconnect.backoff.max.ms": 200, "log_level": 0})
        c.assign([TopicPartition(t, p, 0) for t, n in self.topics.items() for p in range(n)])
        while not self.stopping.is_set():
            if not self.ready.is_set() and self._ends_known(c):
                self.ready.set()
            for m in c.consume(1000, 0.1):
                if m.error() is None:
                    self._take(m)
        c.close()

    @staticmethod
    def _ends_known(c):
        from confluent_kafka import KafkaException
        try:
            return all(c.get_watermark_offsets(tp, 1) for tp in c.assignment())
        except KafkaException:
            return False

    def _take(self, m):
        headers = {k: v.decode("utf-8", "replace") for k, v in m.headers() or ()}
        self.count += 1
        kind = headers.get("type", "")
        if kind != "QueueStatusChecked":  # so many that nothing else would be seen
            self.last.append((time.time(), m.topic(), (m.key() or b"").decode("utf-8", "replace"), headers))


# {what: (database, SQL)}
NUMBERS = {
    "queue": ("queue", "SELECT count(*) FILTER (WHERE state = 'WAITING'), count(*) FILTER (WHERE state = 'ACTIVE') FROM queue.queue_token"),
    "seats": ("concert", "SELECT count(*) FILTER (WHERE state = 'HELD'), count(*) FILTER (WHERE state = 'RESERVED'), count(*) FROM concert.seat"),
    "expired": ("reservation", "SELECT count(*) FROM reservation.reservation WHERE status = 'EXPIRED'"),
    "payments": ("payment", "SELECT coalesce(sum(amount) FILTER (WHERE state = 'COMPLETED'), 0), count(*) FILTER (WHERE state = 'PENDING')"
                 " FROM payment.payment"),
    "facts": ("platform", "SELECT count(*) FROM platform.fact"),
    "sagas": ("engine", "SELECT name, state, coalesce(failed_step, ''), count(*) FROM saga.instance GROUP BY 1, 2, 3"),
}
EVENTS = "SELECT count(*) FROM outbox.event WHERE topic IS NULL OR topic LIKE 'outbox.event.%'"
# How a payment is made, in the words of the screen: the definitions of its saga.
WAYS = {"saga": ("pay",), "by events": ("pay-choreography",), "money first": ("pay-hybrid",), "booking": ("book",),
        "orders": ("order", "order-choreography")}


class Numbers(Watcher):
    """Counts of all databases, one connection each, once a second at most."""

    def __init__(self, databases):
        super().__init__()
        self.databases, self.connections = databases, {}
        self.of = {k: [] if k == "sagas" else [(0, 0, 0)] for k in NUMBERS}
        self.events = 0
        self.then = collections.deque([(time.monotonic(), 0)], maxlen=1000)  # how many events there were when

    def run(self):
        while not self.stopping.is_set():
            start = time.monotonic()
            self._look(start)
            # A count costs more as the tables grow: never more than a tenth of the time.
            self.stopping.wait(max(0.8, 10 * (time.monotonic() - start)))

    def _look(self, now):
        events = sum((self._rows(d, EVENTS) or [(0,)])[0][0] for d in self.databases if d != "platform")
        for what, (database, sql) in NUMBERS.items():
            rows = self._rows(database, sql)
            self.of[what] = self.of[what] if rows is None else rows
        self.events = max(self.events, events)
        self.then.append((now, self.events))

    def _rows(self, database, sql):
        """None: it cannot be told now."""
        import psycopg2
        try:
            if database not in self.connections:
                self.connections[database] = self.databases[database].connect()
            with self.connections[database].cursor() as cur:
                cur.execute(sql)
                return cur.fetchall()
        except psycopg2.Error:
            self.connections.pop(database, None)
            return None

    waiting = property(lambda self: self.of["queue"][0][0])
    active = property(lambda self: self.of["queue"][0][1])
    held = property(lambda self: self.of["seats"][0][0])
    sold = property(lambda self: self.of["seats"][0][1])
    seats = property(lambda self: self.of["seats"][0][2])
    expired = property(lambda self: self.of["expired"][0][0])
    money = property(lambda self: int(self.of["payments"][0][0]))
    pending = property(lambda self: self.of["payments"][0][1])
    facts = property(lambda self: self.of["facts"][0][0])

    def paid(self, way):
        """Sagas of that way that came to a good end."""
        return sum(n for name, state, _, n in self.of["sagas"] if state == "COMPLETED" and name in WAYS[way])

    def sagas(self, *states):
        return sum(n for _, state, _, n in self.of["sagas"] if state in states)

    def failed(self):
        """{step: how many payments failed there and were undone}."""
        out = collections.Counter()
        for name, state, step, n in self.of["sagas"]:
            if step and state in ("COMPENSATING", "COMPENSATED") and any(name in names for names in WAYS.values()):
                out[step] += n
        return out

    def facts_lag(self):
        """How long ago there were no more events than the platform has now, seconds."""
        return self.then[-1][0] - max((at for at, n in list(self.then) if n <= self.facts), default=self.then[0][0])


class Health(Watcher):
    """State and sentence of every program, as its own page tells them."""
    WORSE = ("ok", "starting", "standby", "stopping", "paused", "warn", "postgres_away", "error", "dead")

    def __init__(self, processes):
        super().__init__()
        self.processes, self.of = processes, {n: ("starting", "") for n in processes}
        self.looked = 0.0  # when the last round began that is over

    def run(self):
        while not self.stopping.is_set():
            began = time.monotonic()
            for name, p in list(self.processes.items()):
                if self.stopping.is_set():
                    break
                self.of[name] = self._ask(p)
            self.looked = began
            self.stopping.wait(0.7)

    @staticmethod
    def _ask(p):
        if not p.running():
            return "dead", "is not running"
        try:
            said = json.loads(p.get("/readyz", 1)[1])
            return said.get("state", "ok" if said.get("ready") else "starting"), said.get("sentence", "")
        except (OSError, ValueError, KeyError):
            return "starting", "is starting"

    def worst(self):
        """(name, state, sentence) of those that are not well, the worst first."""
        bad = [(n, s, t) for n, (s, t) in self.of.items() if s not in ("ok", "standby")]
        return sorted(bad, key=lambda x: -self.WORSE.index(x[1]) if x[1] in self.WORSE else 0)

    def well(self):
        return not self.worst()
