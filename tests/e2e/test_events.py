"""tests/e2e/test_events.py -- every record of a whole run against the declared events: its type is known on its topic,
its key is the member that it should be, no member is missing and none is undeclared; docs/reference/events.md is current.
"""
import json
import os
import random
import subprocess
import sys

import audit
import pytest
import servers
from checker import LogReader
from demo_crowd import Caller, Crowd, Guest
from events import Events
from stack import TOPICS, stack  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(600)
STACK = {"options": {"queue": ["admission.every=100ms"], "reservation": ["hold.for=30s"]}}
EVENT_TOPICS = [t for t in TOPICS if t.startswith("outbox.event.")]
WAYS = ("saga", "choreography", "hybrid", "book", "poor", "poor", "poor", "dreamer", "regretful", "refunded", "shopper",
        "shopper by choreography")


def test_the_document_is_current():
    done = subprocess.run([sys.executable, "-B", os.path.join(servers.ROOT, "tests", "support", "events.py"), "check"],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_what_is_wrong_is_found():
    """The checker itself: an unknown type, a missing member, one that nobody declared, a wrong type, a wrong key."""
    e = Events()
    good = {"user_id": "01a20041-e0b2-7b49-9424-f82b6e8b3940", "state": "LOCKED"}
    assert e.problems("outbox.event.user", "UserUpdated", good["user_id"], good) == []
    assert e.problems("outbox.event.user", "UserEaten", good["user_id"], good)
    assert e.problems("outbox.event.user", "UserUpdated", "somebody", good)
    for bad in ({"user_id": good["user_id"]}, {**good, "more": 1}, {**good, "state": 7}, {**good, "user_id": "x"}, []):
        assert e.problems("outbox.event.user", "UserUpdated", good["user_id"], bad), bad


def test_every_record_of_a_run(stack):  # noqa: F811
    """Guests of every kind come; then an operator's doings; then all topics are read."""
    places = []
    for title in ("one", "two"):
        concert, (schedule,) = stack.open_concert(title, 30, 1000)
        places.append((concert, schedule))
    crowd = Crowd({n: stack[n].port for n in ("user", "concert", "queue", "reservation", "payment", "order")}, places, patience=200)
    caller, rnd = Caller(crowd.ports, crowd.patience), random.Random(6)
    for way in WAYS:
        Guest(crowd, caller, rnd, way).live()
    caller.close()
    some = stack.person(points=5)
    stack.db("user").query('SELECT "user".set_state(%s, \'LOCKED\')', (some.id,))
    wait_until(lambda: not stack.db("reservation").query("SELECT 1 FROM reservation.reservation WHERE status = 'HELD'"), 120,
               "the holds to end")
    audit.check(stack)
    events, wrong, seen = Events(), {}, set()
    assert events.wrong == []

    def take(topic, _partition, offset, key, headers, value):
        kind = dict(headers)["type"].decode()
        seen.add(kind)
        for w in events.problems(topic, kind, key.decode(), json.loads(value)):
            wrong.setdefault(w.split(" is ")[0], f"{w} (offset {offset})")
    reader = LogReader(stack.kafka.bootstrap, EVENT_TOPICS)
    reader.read_to_end(take)
    reader.close()
    assert not wrong, "\n".join(wrong.values())
    assert seen >= {"UserCreated", "ConcertCreated", "ScheduleOpened", "SeatHeld", "SeatReserved", "SeatReleased", "ConcertStatusUpdated",
                    "TokenIssued", "TokenActivated", "QueueCompleted", "QueueExpired", "ReservationRequested", "ReservationUpdated",
                    "ReservationHeld", "ReservationCancelled", "ReservationExpired", "PaymentInitiated", "PaymentCompleted",
                    "PaymentCancelled", "PointsCharged", "PointsDeducted", "OrderCreated", "OrderPaid", "NotificationSent",
                    "TimerArmed", "TimerFired", "TimerCancelled", "SagaStarted", "SagaCompleted", "SagaCompensated"}, seen
