"""tests/fault/scene.py -- one outbox under load, its topics, and the verdict of the checker.

What every fault test needs: `scene(delivery)` gives a database with the schema, a topic
and a position topic of its own; .relay() a relay on them, .load() writers, .check() the
independent verdict. Refuses to ask the relay whether it did well.
"""
import itertools
import os
import re

import checker
import pytest
import servers
from confluent_kafka import KafkaException
from load import Load, setup
from wait import wait_until

_count = itertools.count(1)
# Small batches: more steps per event, and a small window of duplicates in at_least_once.
BATCH = 200


class Scene:
    """pg and kafka: where; conninfo and brokers: how the relay gets there (perhaps through a proxy)."""

    def __init__(self, pg, kafka, delivery, make_relay, test, partitions=3, topic_config=None, create=True):
        word = re.sub(r"[^a-z0-9]+", "-", test.lower()).strip("-")[:30]
        self.pg, self.kafka, self.delivery, self.make_relay = pg, kafka, delivery, make_relay
        self.name = f"{word}-{os.getpid()}-{next(_count)}"
        self.kind = self.name
        self.topic = f"outbox.event.{self.kind}"
        self.topics = [self.topic]
        self.db = pg.createdb(self.name, schema=True)
        self.conninfo, self.brokers = self.db.conninfo, kafka.bootstrap
        servers.Cli().run("init", "--conninfo", self.db.conninfo, "--brokers", kafka.bootstrap, "--name", self.name,
                          check=True)
        self.partitions = partitions
        if create:
            kafka.create_topic(self.topic, partitions, topic_config)
        self.loads, self.relays = [], []

    def relay(self, config=None, **more):
        tree = {"limits": {"batch_events": BATCH}, "kafka": {"timeout": "5s"}}
        servers._merge(tree, config or {})
        r = self.make_relay(self.conninfo, self.brokers, name=self.name, delivery=self.delivery, config=tree, **more)
        self.relays.append(r)
        return r

    def load(self, **more):
        """Writers at about 1,000 events a second until .stop(); starts them."""
        args = dict(aggregates=40, kinds=(self.kind,), clients=3, keys=2, events=2, rate=350, hold=(0.03, 0.03))
        load = Load(self.db.conninfo, **{**args, **more})
        self.loads.append(load)
        return load.start()

    def stop_load(self):
        for load in self.loads:
            load.stop()
        self.loads.clear()

    def one(self, agg, size=100, kind=None, style="publish"):
        """One event, committed, with its truth. Returns its seq."""
        setup(self.db.conninfo)
        return self.db.one("SELECT truth.txn(%s, ARRAY[%s], 1, %s, 0, %s, false), "
                           "pg_sequence_last_value('outbox.event_seq')", (kind or self.kind, agg, style, size))

    def published(self, relay):
        return relay.metric("postrider_published_total")

    def flows(self, relay, more=1, timeout=45):
        """Until the relay has published `more` events from now on (a fresh process counts from 0)."""
        before = self.count(relay)
        wait_until(lambda: (self.count(relay) or 0) >= (before or 0) + more, timeout, f"{more} more events",
                   interval=0.02)

    def count(self, relay):
        try:
            return self.published(relay)
        except OSError:
            return None

    def parked(self):
        return self.db.one("SELECT count(*) FROM outbox.parked")

    def waiting(self):
        return self.db.one("SELECT count(*) FROM outbox.waiting")

    def check(self, deaths=0, settle=25, **more):
        """Ends the load and asserts the guarantee. deaths: of relays and of producers, each of which may
        repeat a window of events in at_least_once; None: not counted. Returns the checker's result."""
        self.stop_load()
        # A broker that was just woken may still lose and win its partitions.
        r = wait_until(lambda: checker.check(self.db.conninfo, self.kafka.bootstrap, self.topics, mode=self.delivery,
                                             settle=settle, open_txn_timeout=20, **more),
                       20, "the topics to be readable", ignore=(KafkaException,))
        assert r.ok, r.report()
        assert r.journal > 0 and r.records >= r.journal, r.report()
        if self.delivery == "at_least_once" and deaths is not None:
            assert r.dup <= deaths * 2 * BATCH, r.report()
        return r

    def drained(self, relay, timeout=30):
        """Until the relay itself says that nothing is owed (after .check() has said so)."""
        seen = []

        def nothing():
            m = relay.metrics()
            seen[:] = [relay.get("/readyz"), *(m.get(f"postrider_{x}") for x in (
                "lag_seconds", "pending_events", "parked_events", "waiting_events", "in_flight_events"))]
            return seen[0][0] == 200 and seen[1] == seen[2] == 0
        try:
            wait_until(nothing, timeout, "lag and pending to be 0", ignore=(OSError,))
        except AssertionError as e:
            raise AssertionError(f"{e}; readyz, lag, pending, parked, waiting, in flight: {seen}") from None

    def no_lag(self, standby):
        """Until a relay that stands by sees no lag either."""
        try:
            wait_until(lambda: standby.metric("postrider_lag_seconds", 9) == 0, 30, "the standby's lag to be 0")
        except AssertionError as e:
            row = self.db.query("SELECT published_seq, (SELECT max(seq) FROM outbox.event) FROM outbox.relay")
            raise AssertionError(f"{e}; published and last seq {row}; {standby.get('/status.json')}") from None

    def close(self):
        for load in self.loads:
            load.stop()
        for r in self.relays:
            r.kill()
        self.db.drop()


@pytest.fixture
def scene(request, relay):
    """scene(pg, kafka, delivery, ...) makes a Scene; its database goes after the test."""
    made = []

    def make(pg, kafka, delivery, **more):
        made.append(Scene(pg, kafka, delivery, relay, request.node.originalname, **more))
        return made[-1]
    yield make
    for s in made:
        s.close()


both = pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
exactly_once = pytest.mark.parametrize("delivery", ["exactly_once"])
at_least_once = pytest.mark.parametrize("delivery", ["at_least_once"])
