"""tests/e2e/test_example_seat.py -- docs/examples/handlers/seat.sql does what the how-to says of it."""
import json
import os
import uuid

import pytest
import servers
from inbox import inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
EXAMPLE = os.path.join(servers.ROOT, "docs", "examples", "handlers", "seat.sql")


def put(i, key, kind, **payload):
    i.put(key.encode(), json.dumps(payload), [("id", str(uuid.uuid4())), ("type", kind.encode())])
    i.flush()


@pytest.fixture
def seats(inbox):  # noqa: F811
    i = inbox(partitions=1)
    with open(EXAMPLE, encoding="utf-8") as f:
        i.db.psql(f.read())
    i.db.psql("INSERT INTO seat.seat (seat_id) VALUES (7), (8)")
    return i


def test_a_message_at_a_time(seats):
    """Held, refused as taken, released; an unknown seat is a dead letter, and its undo finds nothing to take back."""
    ann, bob = str(uuid.uuid4()), str(uuid.uuid4())
    seats.consumer({"kind": "sql", "function": "seat.on_event", "undo_function": "seat.undo_event"}).start()
    put(seats, "7", "SeatRequested", seat_id=7, reservation_id=ann)
    put(seats, "7", "SeatRequested", seat_id=7, reservation_id=bob)
    put(seats, "8", "SeatRequested", seat_id=8, reservation_id=bob)
    put(seats, "8", "SeatReleased", seat_id=8, reservation_id=bob)
    put(seats, "9", "SeatRequested", seat_id=9, reservation_id=str(uuid.uuid4()))
    put(seats, "no", "SeatRequested", seat_id="no", reservation_id="no")
    dead = "SELECT code FROM inbox.dead_letter ORDER BY code"
    wait_until(lambda: seats.db.query(dead) == [("22P02",), ("23503",)], 60, "both dead letters")
    wait_until(lambda: seats.db.query("SELECT seat_id, reservation_id::text, changes FROM seat.seat ORDER BY 1")
               == [(7, ann, 1), (8, None, 2)], 60, "the seats")
    wait_until(lambda: seats.db.query("SELECT reservation_id::text, seat_id, reason FROM seat.refusal") == [(bob, 7, "taken")],
               60, "the refusal")  # a key's lane may be behind the other's


def test_a_batch_at_a_time(seats):
    for n in range(60):
        put(seats, str(n % 3), "SeatSold", show_id=n % 3)
    seats.consumer({"kind": "sql", "function": "seat.on_events"}).start()
    wait_until(lambda: seats.db.query("SELECT show_id, seats FROM seat.sold ORDER BY 1") == [(0, 20), (1, 20), (2, 20)],
               60, "each sale once")
