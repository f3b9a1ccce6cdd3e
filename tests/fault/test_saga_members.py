"""tests/fault/test_saga_members.py -- what the engine's timers wait for: what lies unread with another member, and what
cannot be read yet; and what they do not: partitions that are no more.
"""
import json
import uuid

import pytest
from confluent_kafka import Producer
from saga import sagas  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)

TRIP = """
name = "trip"; version = 1; style = "choreography"; deadline = "10m"; correlate = "header.correlation-id"; emit_undo = true;
start: { topic = "@name@.events"; type = "Wanted"; };
steps = (
  { name = "CAR"; kind = "compensatable"; on = "Wanted"; emits = "CarBooked"; emits_topic = "@name@.events";
    undo: { command = "GiveBackCar"; topic = "@name@.undo"; }; do: { timeout = "3m"; }; },
  { name = "FLIGHT"; kind = "pivot"; on = "CarBooked"; emits = "FlightBooked"; emits_topic = "@name@.more"; do: { timeout = "1500ms"; }; } );
invariants = ( "CAR.applied == FLIGHT.applied" );
"""


class Post:
    def __init__(self, s, trip):
        self.s, self.trip = s, trip
        self.out = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0, "linger.ms": 0})

    def tell(self, type, topic="events", **more):
        h = {"id": str(uuid.uuid4()), "type": type, "correlation-id": self.trip}
        self.out.produce(f"{self.s.name}.{topic}", json.dumps({}), self.trip, headers=[(k, v.encode()) for k, v in h.items()], **more)
        assert self.out.flush(60) == 0


def test_what_is_awaited_lies_with_another_member(sagas):  # noqa: F811
    """Story: two members share the topics, and the one that has the partition with the last event stands still. The other
    one, whose saga it is, has read all of its own: the step is not missing before that partition is handled too."""
    s = sagas(definitions={"trip.cfg": TRIP}, services={}, post=False, topics=["@.events", "@.more"],
              config={"kafka": {"properties": ["session.timeout.ms=120000"]}})  # who stands still keeps what it has
    more = f"{s.name}.more"
    s.kafka.create_topic(f"{s.name}.undo", 1)
    s.kafka.add_partitions(more, 2)
    s.start()
    members = [s.engine.consumer, s.engine.member().start().wait_ready()]

    def owner(topic, partition):
        return next((m for m in members for p in m.status()["partitions"] if (p["topic"], p["partition"]) == (topic, partition)), None)
    wait_until(lambda: {owner(more, 0), owner(more, 1)} == set(members), 60, "each to have one")
    far = 1 if owner(more, 0) is owner(f"{s.name}.events", 0) else 0
    id, frozen = str(uuid.uuid4()), owner(more, far)
    post = Post(s, id)
    post.tell("Wanted")
    wait_until(lambda: s.steps(id).get("CAR") == "DOING", 60, "the saga")
    frozen.sigstop()
    try:
        post.tell("FlightBooked", "more", partition=far)
        post.tell("CarBooked")
        wait_until(lambda: s.steps(id)["FLIGHT"] == "DOING", 60, "its last step")
        wait_until(lambda: s.log(id, "missing") or s.db.one("SELECT due_at < now() - interval '1 s' FROM saga.instance_0 WHERE id = %s", (id,)),
                   60, "its time to be over")
        assert not s.log(id, "missing")
    finally:
        frozen.sigcont()
    s.wait_state(id, "COMPLETED", 60)
    assert not s.log(id, "missing")


def test_partitions_come_and_go(sagas):  # noqa: F811
    """Story: a topic was made anew with fewer partitions, and the position of one that is no more was awaited for ever; a
    partition was added, and who got it knew of it minutes later: no step of a choreography was missing meanwhile."""
    s = sagas(definitions={"trip.cfg": TRIP}, services={}, post=False, topics=["@.events", "@.more"])
    more = f"{s.name}.more"
    s.kafka.create_topic(f"{s.name}.undo", 1)
    s.start()
    s.db.query("INSERT INTO inbox.position (\"group\", topic, partition, lane, lane_count, next_offset, epoch) VALUES"
               " (%s, %s, 99, 0, 1, 7, 1), (%s, %s, 0, 0, 1, 7, 1)", (s.engine.group, more, s.engine.group, f"{s.name}.gone"))

    def missing():
        post = Post(s, str(uuid.uuid4()))
        post.tell("Wanted")
        post.tell("CarBooked")
        wait_until(lambda: s.log(post.trip, "missing"), 90, "the step to be missing")
    missing()
    s.kafka.add_partitions(more, 2)
    wait_until(lambda: sum(p["topic"] == more for p in s.engine.consumer.status()["partitions"]) == 2, 60, "the new partition to be ours")
    missing()


def looks(s):
    """How often the clocks of the engine have asked what is due, and when."""
    return s.db.query("SELECT calls, extract(epoch FROM clock_timestamp())::float8 FROM pg_stat_user_functions WHERE schemaname = 'saga' AND funcname = 'due'")[0]


def test_behind_an_open_transaction(sagas):  # noqa: F811
    """Story: a relay died inside a transaction, and what another one had committed behind it could not be read until Kafka
    gave it up: a step was said to be missing whose event lay in the log. And while it waits, the clock asks five times a
    second, not fifty."""
    s = sagas(definitions={"trip.cfg": TRIP}, services={}, post=False, topics=["@.events", "@.more"])
    more = f"{s.name}.more"
    s.kafka.create_topic(f"{s.name}.undo", 1)
    s.db.query(f"ALTER DATABASE \"{s.db.name}\" SET track_functions = 'all'")
    s.start()
    dead = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0, "transactional.id": s.name})
    dead.init_transactions(20)
    dead.begin_transaction()
    dead.produce(more, b"{}", b"another")
    assert dead.flush(20) == 0
    post = Post(s, str(uuid.uuid4()))
    post.tell("Wanted")
    post.tell("FlightBooked", "more")
    post.tell("CarBooked")

    def late(seconds):
        wait_until(lambda: s.log(post.trip, "missing") or s.db.one("SELECT due_at < now() - %s * interval '1 s' FROM saga.instance_0 WHERE id = %s",
                                                                    (seconds, post.trip)), 60, "its time to be over")
        assert not s.log(post.trip, "missing")
    wait_until(lambda: s.steps(post.trip).get("FLIGHT") == "DOING", 60, "its last step")
    late(1)
    before = looks(s)
    late(5)
    after = looks(s)
    assert 0 < (after[0] - before[0]) / (after[1] - before[1]) < 12, (before, after)
    dead.abort_transaction(20)
    s.wait_state(post.trip, "COMPLETED", 60)
    assert not s.log(post.trip, "missing")
