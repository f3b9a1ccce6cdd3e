"""tests/support/demo_watch.py -- the demonstration's watchers: threads that look at topics, tables and pages
while the screen is drawn. They look with eyes of their own: what is counted is not asked of relay or consumer,
only what these say about themselves (state, sentence, lag, duplicates) is.
"""
import collections
import threading
import time


class Watcher(threading.Thread):
    """A thread that looks again and again until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopping = threading.Event()

    def stop(self):
        self.stopping.set()
        self.join(5)


class Records(Watcher):
    """What a read_committed consumer finds on the topics. Knows nothing of the relay."""

    def __init__(self, brokers, topics, shop):
        super().__init__()
        self.brokers, self.topics, self.shop = brokers, topics, shop
        self.count = 0
        self.last = collections.deque(maxlen=60)
        self.ready = threading.Event()

    def run(self):
        from confluent_kafka import Consumer, TopicPartition
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": "demo-viewer", "isolation.level": "read_committed",
                      "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10,
                      "reconnect.backoff.max.ms": 200, "log_level": 0})
        c.assign([TopicPartition(t, p, 0) for t, n in self.topics.items() for p in range(n)])
        while not self.stopping.is_set():
            if not self.ready.is_set() and self._ends_known(c):
                self.ready.set()
            for m in c.consume(1000, 0.05):
                if m.error() is None:
                    self._take(m)
        c.close()

    @staticmethod
    def _ends_known(c):
        """The consumer talks to the broker that leads the partitions: what comes now is not late for its sake."""
        from confluent_kafka import KafkaException
        try:
            return all(c.get_watermark_offsets(tp, 1) for tp in c.assignment())
        except KafkaException:
            return False

    def _take(self, m):
        headers = {k: v.decode("utf-8", "replace") for k, v in m.headers() or ()}
        key = (m.key() or b"").decode("utf-8", "replace")
        self.count += 1
        self.shop.seen(key, headers.get("type", ""))
        self.last.append((time.time(), m.topic(), key, headers))


class Rows(Watcher):
    """One row of numbers from a database, again and again: row is what sql returned last."""

    def __init__(self, db, sql):
        super().__init__()
        self.db, self.sql, self.row = db, sql, None

    @property
    def count(self):
        return self.row[0] if self.row else 0

    def run(self):
        import psycopg2
        conn = None
        while not self.stopping.is_set():
            start = time.monotonic()
            try:
                conn = conn or self.db.connect()
                with conn.cursor() as cur:
                    cur.execute(self.sql)
                    self.row = cur.fetchone()
            except psycopg2.Error:
                conn = None
            # A count costs more as the table grows: never more than a twentieth of the time.
            self.stopping.wait(max(0.2, 20 * (time.monotonic() - start)))


class Health(Watcher):
    """State and sentence as the program's own /status.json tells them."""

    def __init__(self, program, word):
        super().__init__()
        self.program, self.word, self.state, self.sentence = program, word, "starting", ""
        self.status = {}

    def run(self):
        while not self.stopping.is_set():
            try:
                self.take(self.program.status())
            except (OSError, ValueError, KeyError):
                self.silent(self.program.running())
            self.stopping.wait(0.2)

    def take(self, status):
        self.state, self.sentence, self.status = status["state"], status["sentence"], status

    def silent(self, running):
        self.state = "starting" if running else "dead"
        self.sentence = f"the {self.word} is {'starting' if running else 'not running'}"


class ConsumerHealth(Health):
    """Its counters begin anew with each process: duplicates is the sum of all of them."""

    def __init__(self, program):
        super().__init__(program, "consumer")
        self._lag, self._heard = 0.0, time.monotonic()
        self._before = self._now = 0

    def take(self, status):
        now = status["handled"]["duplicate"]
        if now < self._now:
            self._before += self._now
        self._now = now
        if status["lag_seconds"] is not None:
            self._lag, self._heard = status["lag_seconds"], time.monotonic()
        super().take(status)

    @property
    def duplicates(self):
        return self._before + self._now

    def lag(self):
        """Seconds, by its own word; while it is silent, the last word and the time since."""
        silent = time.monotonic() - self._heard
        return self._lag + (silent if silent > 1 else 0)

    def breaker_open(self):
        return self.state != "dead" and bool(self.status.get("breaker", {}).get("open"))
