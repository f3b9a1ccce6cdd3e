"""tests/e2e/test_saga_choreography.py -- services that react to each other's events, and an engine that watches them: it
traces what happened, sees what is missing, doubled, out of order or going in circles, and has undone exactly what was
done.
"""
import json
import re
import uuid

import pytest
from confluent_kafka import Producer
from outbox import header, read_topic
from saga import EVENTS, INBOX, saga_module  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(200)

# Nothing of it ends by itself while a test looks at it.
TRIP = """
name = "trip"; version = 1; style = "choreography"; deadline = "10m"; correlate = "header.correlation-id"; emit_undo = true;
start: { topic = "@name@.events"; type = "Wanted"; data = ( "who = payload.who" ); };
steps = (
  { name = "CAR"; kind = "compensatable"; on = "Wanted"; emits = "CarBooked"; fails = "NoCar"; undone = "CarGivenBack";
    emits_topic = "@name@.events"; do: { timeout = "5m"; };
    undo: { command = "GiveBackCar"; topic = "@name@.undo"; send = ( "who = data.who", "car = data.car" ); timeout = "2m"; };
    keep = ( "car = reply.car" ); },
  { name = "ROOM"; kind = "compensatable"; on = "CarBooked"; emits = "RoomBooked"; fails = "NoRoom"; undone = "RoomGivenBack";
    emits_topic = "@name@.events"; do: { timeout = "5m"; };
    undo: { command = "GiveBackRoom"; topic = "@name@.undo"; send = ( "who = data.who" ); timeout = "2m"; }; },
  { name = "FLIGHT"; kind = "pivot"; on = "RoomBooked"; emits = "FlightBooked"; fails = "NoFlight";
    emits_topic = "@name@.more"; do: { timeout = "5m"; }; } );
invariants = ( "CAR.applied == FLIGHT.applied" );
"""


def other(text, name, word):
    """The same flow, with events of its own."""
    text = re.sub(r'^name = "\w+"', f'name = "{name}"', text.strip())
    return re.sub(r'"(?:Tour)?(Wanted|No\w+|\w+Booked|\w+GivenBack)"', rf'"{word}\1"', text)


# Of which something is over in time: a step, and the whole.
HASTY = other(TRIP, "hasty", "Hasty").replace("5m", "6s")
SHORT = other(TRIP, "short", "Short").replace("10m", "4s")

# Nobody undoes by himself, and the engine not at once: a person decides, or nobody for three seconds. Every step has an undo.
TOUR = """
name = "tour"; version = 1; style = "choreography"; deadline = "10m"; correlate = "header.correlation-id"; undo_after = "3s";
start: { topic = "@name@.events"; type = "TourWanted"; data = ( "who = payload.who" ); };
steps = (
  { name = "CAR"; kind = "compensatable"; on = "TourWanted"; emits = "TourCarBooked"; fails = "TourNoCar";
    emits_topic = "@name@.events"; do: { timeout = "5m"; };
    undo: { command = "GiveBackCar"; topic = "@name@.undo"; send = ( "who = data.who" ); timeout = "2m"; }; },
  { name = "ROOM"; kind = "compensatable"; on = "TourCarBooked"; emits = "TourRoomBooked"; fails = "TourNoRoom";
    emits_topic = "@name@.events"; do: { timeout = "3s"; };
    undo: { command = "GiveBackRoom"; topic = "@name@.undo"; send = ( "who = data.who" ); timeout = "2m"; }; } );
invariants = ( "CAR.applied == ROOM.applied" );
"""

# A person has time to look.
CALM = other(TOUR, "calm", "Calm").replace("3s", "5m")

# One that a member of the payload makes.
VISIT = """
name = "visit"; version = 1; style = "choreography"; deadline = "30s"; correlate = "payload.visit"; emit_undo = true;
start: { topic = "@name@.events"; type = "VisitWanted"; };
steps = ( { name = "ROOM"; kind = "retriable"; on = "VisitWanted"; emits = "VisitMade"; emits_topic = "@name@.events"; } );
"""


class Trips:
    def __init__(self, s):
        self.s = s
        self.out = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0, "linger.ms": 0})

    def tell(self, trip, *types, **payload):
        """Events of one trip, in order."""
        for type in types:
            topic = f"{self.s.name}." + ("more" if "Flight" in type else "events")
            h = [("id", str(uuid.uuid4()).encode()), ("type", type.encode())]
            if trip:
                h.append(("correlation-id", trip.encode()))
            self.out.produce(topic, json.dumps({"who": "kim", "car": "c1", **payload}), trip, headers=h)
        assert self.out.flush(10) == 0

    def undos(self, trip):
        """Commands so far, in order: (type, payload, command id)."""
        return [(header(r, "type").decode(), json.loads(r.value), header(r, "saga-command-id").decode())
                for r in read_topic(self.s.kafka, f"{self.s.name}.undo") if header(r, "saga-id").decode() == trip]

    def obeyed(self, trip, command, step, outcome="done"):
        """Waits for the undo and answers it."""
        wait_until(lambda: [u for u in self.undos(trip) if u[0] == command], 45, command)
        id = self.undos(trip)[-1][2]
        h = {"id": str(uuid.uuid4()), "type": "SagaReply", "saga-id": trip, "saga-step": step, "saga-op": "undo",
             "saga-command-id": id, "saga-outcome": outcome}
        self.out.produce(INBOX, b"{}", trip, headers=[(k, v.encode()) for k, v in h.items()])
        assert self.out.flush(10) == 0

    def noted(self, trip, what):
        return wait_until(lambda: self.s.log(trip, what), 45, f"{what} to be noted")

    def steps(self, trip, car, room, flight):
        want = {"CAR": car, "ROOM": room, "FLIGHT": flight}
        wait_until(lambda: self.s.steps(trip) == want, 45, f"{want}, not {self.s.steps(trip)}")


@pytest.fixture
def trips(saga_module):  # noqa: F811
    s = saga_module(definitions={"trip.cfg": TRIP, "hasty.cfg": HASTY, "short.cfg": SHORT, "tour.cfg": TOUR, "calm.cfg": CALM, "visit.cfg": VISIT},
                    services={}, post=False, topics=["@.events", "@.more"], config={"database": {"timeout": "30s"}})
    if not s.engine.consumer.running():
        s.kafka.create_topic(f"{s.name}.undo", 1)
        s.start()
    return Trips(s)


def test_straight(trips):
    """All services do their part: the trace is complete, and the engine has said nothing to anybody."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "Wanted", "CarBooked", "RoomBooked")
    t.steps(id, "DONE", "DONE", "DOING")
    t.tell(id, "FlightBooked")
    t.s.wait_state(id, "COMPLETED")
    assert [r[1] for r in t.s.log(id, "done")] == ["CAR", "ROOM", "FLIGHT"] and not t.undos(id)
    assert t.s.db.query("SELECT data ->> 'who', data ->> 'car' FROM saga.instance WHERE id = %s", (id,)) == [("kim", "c1")]
    wait_until(lambda: [header(r, "type") for r in read_topic(t.s.kafka, EVENTS) if header(r, "saga-id").decode() == id]
               == [b"SagaStarted", *[b"SagaStepCompleted"] * 3, b"SagaCompleted"], 20, "its events")


def test_failure_undoes_what_was_done(trips):
    """The pivot fails: room and car are given back, in reverse, each with what is known of it."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "Wanted", "CarBooked", "RoomBooked")
    t.steps(id, "DONE", "DONE", "DOING")
    t.tell(id, "NoFlight")
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")
    assert [(u[0], u[1]) for u in t.undos(id)] == [("GiveBackRoom", {"who": "kim"}), ("GiveBackCar", {"who": "kim", "car": "c1"})]
    t.steps(id, "UNDONE", "UNDONE", "REFUSED")


def test_first_fails(trips):
    """Nothing was done: nothing is undone."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "Wanted", "NoCar")
    t.s.wait_state(id, "COMPENSATED")
    assert not t.undos(id)


def test_missing(trips):
    """A service is silent: its step counts as failed, may have happened, and is undone with what was before it."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "HastyWanted", "HastyCarBooked")
    assert t.noted(id, "missing")[0][1] == "ROOM"
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")
    t.tell(id, "HastyRoomBooked")
    t.noted(id, "late")
    assert t.s.state(id) == "COMPENSATED"


def test_what_is_awaited_lies_on_another_topic(trips):
    """Story: a sale was revoked whose last event lay unread on its topic, while the topic of the one before was read to its
    end. A step is not missing as long as a record older than its time waits on any topic of ours."""
    t, blocked, id = trips, str(uuid.uuid4()), str(uuid.uuid4())
    t.tell(blocked, "Wanted")
    wait_until(lambda: t.s.state(blocked), 20, "the other one")
    t.tell(id, "HastyWanted", "HastyCarBooked")
    t.steps(id, "DONE", "DOING", "WAITING")
    c = t.s.db.connect()
    with c.cursor() as cur:
        cur.execute("BEGIN")
        cur.execute("SELECT 1 FROM saga.instance_0 WHERE id = %s FOR UPDATE", (blocked,))
        t.tell(blocked, "FlightBooked")
        wait_until(lambda: t.s.log(id, "missing") or t.s.db.one("SELECT due_at < now() - interval '1 s' FROM saga.instance_0 WHERE id = %s", (id,)),
                   45, "its time to be over")
        assert not t.s.log(id, "missing")
        cur.execute("ROLLBACK")
    c.close()
    assert t.noted(id, "missing")[0][1] == "ROOM", "in the end it is"
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")


def test_deadline(trips):
    """The whole takes too long, although no single step does."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "ShortWanted", "ShortCarBooked", "ShortRoomBooked")
    t.noted(id, "deadline")
    if t.s.state(id) == "RUNNING":  # the pivot has no undo: nobody may say that it did not happen
        t.tell(id, "ShortNoFlight")
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")


def test_undone_by_the_service_itself(trips):
    """The service says that it has undone its step: the engine does not wait for an answer."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "Wanted", "CarBooked", "NoRoom")
    wait_until(lambda: t.undos(id), 20, "the undo")
    t.tell(id, "CarGivenBack")
    t.s.wait_state(id, "COMPENSATED")
    t.steps(id, "UNDONE", "REFUSED", "WAITING")


def test_twice_and_in_circles(trips):
    """An event comes again: at once it is a duplicate, after what follows from it a circle."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "Wanted", "Wanted", "CarBooked", "CarBooked")
    wait_until(lambda: len(t.s.log(id, "duplicate")) == 2, 20, "two duplicates")
    t.tell(id, "RoomBooked", "CarBooked")
    assert t.noted(id, "cycle")[0][1] == "CAR"
    t.tell(id, "FlightBooked")
    t.s.wait_state(id, "COMPLETED")


def test_out_of_order(trips):
    """Events overtake each other, and the start: the trace is the same, the disorder is noted."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "FlightBooked")
    wait_until(lambda: t.s.state(id), 20, "the first event")
    t.tell(id, "RoomBooked", "CarBooked", "Wanted")
    t.s.wait_state(id, "COMPLETED")
    assert len(t.noted(id, "unexpected")) >= 2
    t.steps(id, "DONE", "DONE", "DONE")


def test_strangers(trips):
    """The same events without a correlation, and others with one, are none of ours."""
    t, id = trips, str(uuid.uuid4())
    before = t.s.db.one("SELECT count(*) FROM saga.instance")
    t.tell(None, "Wanted", "CarBooked")
    t.tell(id, "Painted")
    wait_until(t.s.engine.stands, 20, "all to be read")
    assert t.s.db.one("SELECT count(*) FROM saga.instance") == before
    assert t.s.db.one("SELECT count(*) FROM inbox.dead_letter") == 0, "a start without what correlates it is another flow's"


def test_what_correlates(trips):
    """Story: events whose correlation was null were all one saga, and so were those that differed after 199 bytes. The first
    are another flow's, the second are dead letters."""
    t, letters = trips, lambda: trips.s.db.one("SELECT count(*) FROM inbox.dead_letter")
    before = letters()
    t.tell(None, "VisitWanted", visit=None)
    t.tell(None, "VisitMade", visit=None)
    for end in "ab":
        t.tell(None, "VisitMade", visit="x" * 300 + end)
    t.tell(None, "VisitWanted", "VisitMade", visit="y" * 199)
    t.tell(None, "VisitWanted", "VisitMade", visit=17)
    wait_until(lambda: letters() == before + 2, 20, "two dead letters")
    wait_until(lambda: t.s.db.query("SELECT correlation, state FROM saga.instance WHERE name = 'visit' ORDER BY 1")
               == [("17", "COMPLETED"), ("y" * 199, "COMPLETED")], 20, "two sagas")


def test_two_lanes_make_it(trips):
    """Story: two events of one saga came by two lanes at once, both made the instance, and the second was a dead letter:
    a broken constraint is no accident of timing elsewhere. Here it is, and the event is handled again."""
    t, id = trips, str(uuid.uuid4())
    letters = t.s.db.one("SELECT count(*) FROM inbox.dead_letter")
    conn = t.s.db.connect(autocommit=False)
    with conn.cursor() as cur:
        cur.execute("INSERT INTO saga.instance_0 (id, name, version, state, granted, started_at, since_at, part, correlation)"
                    " VALUES (%s, 'trip', 1, 'RUNNING', false, now(), now(), '-', %s)", (id, id))
        t.tell(id, "Wanted")
        wait_until(lambda: t.s.db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                                      " AND wait_event_type = 'Lock' AND query LIKE '%%saga.save%%'"), 20, "the engine to wait")
    conn.commit()
    conn.close()
    wait_until(lambda: t.s.steps(id).get("CAR") == "DOING", 20, "the start to be handled")
    assert t.s.db.one("SELECT count(*) FROM inbox.dead_letter") == letters


# ---------------------------------------------------------------- an undo that is held

def test_held_is_shown(trips, cli):
    """What waits for a person and for how long is seen; the events are not called replies."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "CalmWanted", "CalmCarBooked")
    wait_until(lambda: t.s.steps(id).get("ROOM") == "DOING", 45, "ROOM to be waited for")
    show = lambda: cli("saga", "show", id, "--conninfo", t.s.db.conninfo, check=True).stdout  # noqa: E731
    assert "event due in" in show()
    t.tell(id, "CalmNoRoom")
    t.s.wait_state(id, "STUCK")
    text = show()
    assert "all undone in" in text and f"postrider saga undo {id} --yes" in text, text


def test_held_and_nobody_acts(trips):
    """A step fails: nothing is sent while somebody may act. Nobody does: all that is done, or may be since, is undone."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "TourWanted", "TourCarBooked", "TourNoRoom")
    t.noted(id, "stuck")
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")
    stuck, turned = [t.s.db.one("SELECT at FROM saga.log WHERE saga_id = %s AND what = %s", (id, w)) for w in ("stuck", "turned")]
    assert (turned - stuck).total_seconds() >= 3.0, (stuck, turned)
    assert t.s.db.one("SELECT min(at) FROM saga.log WHERE saga_id = %s AND what = 'sent' AND op = 'undo'", (id,)) >= turned
    assert t.noted(id, "turned")[0][3] == "ROOM: TourNoRoom, and nobody acted"


def test_held_and_missing(trips):
    """The same when an event never comes."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "TourWanted", "TourCarBooked")
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")
    assert [r[1] for r in t.s.log(id, "stuck")] == ["ROOM"]


def test_held_and_its_service_tries_again(trips):
    """What failed succeeds at the second try: the saga goes on, and nothing was sent."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "TourWanted", "TourCarBooked", "TourNoRoom", "TourRoomBooked")
    t.s.wait_state(id, "COMPLETED")
    assert [r[3] for r in t.s.log(id, "state")] == ["RUNNING -> STUCK", "STUCK -> RUNNING", "RUNNING -> COMPLETED"]
    assert not t.undos(id)
    assert t.s.db.one("SELECT why FROM saga.instance WHERE id = %s", (id,)) is None


@pytest.mark.parametrize("events", [("CalmCarBooked",), ("CalmCarBooked", "CalmRoomBooked")], ids=["running", "completed"])
def test_undo_as_the_last_resort(trips, cli, events):
    """Story: an administrator takes all of it back, whether it is under way or long over: `postrider saga undo` sends the
    undo of all that is done, in reverse, although no step has failed."""
    t, id = trips, str(uuid.uuid4())
    t.tell(id, "CalmWanted", *events)
    t.s.wait_state(id, "COMPLETED" if len(events) == 2 else "RUNNING")
    r = cli("saga", "undo", id, "--yes", "--by", "admin", "--conninfo", t.s.db.conninfo)
    assert r.returncode == 0, r.stderr
    t.obeyed(id, "GiveBackRoom", "ROOM")
    t.obeyed(id, "GiveBackCar", "CAR")
    t.s.wait_state(id, "COMPENSATED")
    assert [u[0] for u in t.undos(id)] == ["GiveBackRoom", "GiveBackCar"]
    assert t.s.db.query("SELECT by FROM saga.log WHERE saga_id = %s AND what = 'order'", (id,)) == [("admin",)]
