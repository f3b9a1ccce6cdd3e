"""tests/fault/test_service_reservation_kill.py -- the reservation service, its consumer and its relay, shipped files, real Kafka:
killed in the middle of everything, each request is done once, each seat has one holder, each event is told once."""
import http.client
import itertools
import json
import random
import threading
import uuid

import pytest
from outbox import read_topic
from service import Api
from sql import run, session
from stack import Stack, shipped
from together import Together
from tokens import QUEUE, USER, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(600)
MINE = ("reservation", "reservation-consumer", "reservation-relay")
_number = itertools.count(1)


class World:
    """Three programs, and what other services would have told them."""

    def __init__(self):
        self.users, self.queue = Issuer(*USER), Issuer(*QUEUE)
        self.stack = Stack(options={"reservation": [f"jwt.jwks={self.users.url}", f"queue.jwks={self.queue.url}"]},
                           without=set(shipped()) - set(MINE)).start()
        self.db = self.stack.db("reservation")

    def close(self):
        self.stack.close()
        self.users.close()
        self.queue.close()

    def tell(self, type, payload):
        self.db.query("SELECT reservation.on_messages(ARRAY(SELECT m FROM jsonb_populate_recordset(NULL::inbox.message, %s) AS m))",
                      (json.dumps([{"id": str(uuid.uuid4()), "topic": "t", "type": type, "payload": payload,
                                    "headers": {"outbox-seq": str(next(_number))}}]),))

    def concert(self, n):
        base = next(_number) * 10000
        seats = [str(base + 10 + i) for i in range(n)]
        self.tell("ScheduleOpened", {"concert_id": str(base), "schedule_id": str(base + 1), "seats": [
            {"seat_id": s, "label": f"A-{s}", "price": 10} for s in seats]})
        return str(base), str(base + 1), seats

    def person(self, concert):
        user, token = str(uuid.uuid4()), str(uuid.uuid4())
        self.tell("UserCreated", {"user_id": user, "state": "ACTIVE"})
        self.tell("TokenActivated", {"token_id": token, "user_id": user, "concert_id": concert, "active_at": "2026-01-01T00:00:00Z"})
        return self.users.token(user), self.queue.token(user, jti=token, concert_id=concert)

    def ask(self, person, schedule, seats, key, path="/reservations"):
        """Until it is answered, as a client does who has a key."""
        def once():
            try:
                answer = Api(self.stack["reservation"].port).post(path, {
                    "schedule_id": schedule, "seat_ids": seats, "queue_token": person[1]}, token=person[0], key=key, timeout=10)
            except (http.client.HTTPException, OSError):
                return None
            return answer if answer.status in (202, 422) or answer.status == 409 and answer.problem != "request-in-progress" else None
        return wait_until(once, 120, "an answer")

    def settled(self):
        return not self.db.one("SELECT count(*) FROM reservation.reservation WHERE status = 'REQUESTED' AND claim_no IS NULL")


@pytest.fixture(scope="module")
def world():
    w = World()
    yield w
    w.close()


def test_a_moment_before_the_answer(world):
    """If we die at service_answered, the seats are asked for (or booked) and nobody was told: the same request again gets the
    same answer, and nothing is done twice."""
    concert, schedule, seats = world.concert(2)
    for path, seat in (("/reservations", seats[0]), ("/bookings", seats[1])):
        person = world.person(concert)
        world.stack.kill("reservation")
        world.stack["reservation"].start(fault="service_answered").wait_ready()
        body = {"schedule_id": schedule, "seat_ids": [seat], "queue_token": person[1]}
        with pytest.raises((http.client.HTTPException, OSError)):
            Api(world.stack["reservation"].port).post(path, body, token=person[0], key="k")
        made = world.db.query("SELECT reservation_id::text FROM reservation.reservation WHERE seat_id = %s", (seat,))
        world.stack["reservation"].wait()
        world.stack["reservation"].start().wait_ready()
        again = world.ask(person, schedule, [seat], "k", path)
        assert again.status == 202 and [(i,) for i in again.json["reservation_ids"]] == made
        assert world.db.one("SELECT count(*) FROM reservation.reservation WHERE seat_id = %s", (seat,)) == 1
    assert world.db.one("SELECT count(*) FROM outbox.event WHERE type = 'SagaStart'") == 1


def together(world, n, lanes=2):
    """n people whose requests come together, each for a seat, with a key; behind as many as workers handle batches."""
    concert, schedule, seats = world.concert(n + lanes)
    people = [world.person(concert) for _ in seats]
    bodies = [{"schedule_id": schedule, "seat_ids": [s], "queue_token": p[1]} for s, p in zip(seats, people)]
    first = [("/reservations", b, p[0]) for b, p in zip(bodies[n:], people[n:])]
    return concert, schedule, seats[:n], people[:n], bodies[:n], first


def all_once(world, asked):
    """Asked again with their keys, each gets one reservation, told of once."""
    concert, schedule, seats, people, _, _ = asked
    answers = [world.ask(p, schedule, [s], f"{concert}-{s}") for p, s in zip(people, seats)]
    assert {a.status for a in answers} == {202}
    made = dict(world.db.query("SELECT seat_id::text, array_agg(reservation_id::text) FROM reservation.reservation"
                               " WHERE seat_id::text = ANY (%s) GROUP BY 1", (seats,)))
    assert made == {s: a.json["reservation_ids"] for s, a in zip(seats, answers)}
    assert world.db.one("SELECT count(*) FROM outbox.event WHERE type = 'ReservationRequested' AND aggregateid = ANY (%s)",
                        ([i for ids in made.values() for i in ids],)) == len(seats)


def test_a_moment_before_the_answers(world):
    """If we die at service_many_answered, five requests that came together are done, by one transaction, and nobody was told: each
    asked again with its key gets its own reservation, and nothing is done twice."""
    asked = concert, schedule, seats, people, bodies, first = together(world, 5)
    world.stack.kill("reservation")
    service = world.stack["reservation"].start(fault="service_many_answered").wait_ready()
    with Together(service.port, world.db.conninfo, "reservation.seat", first) as t:
        for p, b, s in zip(people, bodies, seats):
            t.send("/reservations", b, p[0], f"{concert}-{s}")
        answers = t.go()
    assert answers == [None] * 5
    service.wait()
    assert world.db.query("SELECT count(*), count(DISTINCT h.xmin::text) FROM reservation.reservation AS r JOIN reservation.reservation_history"
                          " AS h USING (reservation_id) WHERE h.version = 1 AND seat_id::text = ANY (%s)", (seats,)) == [(5, 1)]
    world.stack["reservation"].start().wait_ready()
    all_once(world, asked)


@pytest.mark.parametrize("committed", [0, 5])
def test_killed_in_the_middle_of_many(world, committed):
    """kill -9 while one transaction works for five: all of it is there, or nothing; asked again, each is done once."""
    asked = concert, schedule, seats, people, bodies, first = together(world, 5)
    elsewhere = world.person(world.concert(1)[0])  # is refused, and so needs no more than a look at the seats
    first = [(path, {**b, "queue_token": elsewhere[1]}, elsewhere[0]) for path, b, _ in first]
    service = world.stack["reservation"]
    with session(world.db) as held, Together(service.port, world.db.conninfo, "reservation.seat", first) as t:
        run(held, "LOCK TABLE reservation.reservation_history IN SHARE ROW EXCLUSIVE MODE")
        for p, b, s in zip(people, bodies, seats):
            t.send("/reservations", b, p[0], f"{concert}-{s}")
        t.queued()
        t.release()
        t.first_answered()
        at_work = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'reservation.reservation_history'::regclass"
        wait_until(lambda: world.db.query(at_work), 60, "the transaction to be in its middle")
        world.stack.kill("reservation")
        if not committed:
            world.db.query(f"SELECT pg_terminate_backend(pid) FROM ({at_work}) AS w")
        held.rollback()
        assert t.answers() == [None] * 5 and [a.status for a in t.first_answers] == [403] * 2
    done = "SELECT count(*) FROM reservation.reservation WHERE seat_id::text = ANY (%s)"
    wait_until(lambda: not world.db.query(at_work) and world.db.one(done, (seats,)) == committed, 60, "what was done to be seen")
    service.start().wait_ready()
    all_once(world, asked)


def test_killed_again_and_again(world):
    """Service, consumer and relay are killed -9 in turn while 12 people ask for one to three of 20 seats each, many times,
    with keys: in the end each request that was accepted is HELD or REJECTED, whole; no seat twice; every history is whole;
    every event is in Kafka once; and who lost a seat has lost it to somebody."""
    concert, schedule, seats = world.concert(20)
    people = [world.person(concert) for _ in range(12)]
    accepted, answered, lock = {}, [], threading.Lock()

    def live(n):
        rng = random.Random(n)
        for i in range(8):
            wish = rng.sample(seats, rng.randint(1, 3))
            answer = world.ask(people[n], schedule, wish, f"{n}-{i}")
            with lock:
                answered.append(answer.status)
                if answer.status == 202:
                    accepted[n, i] = (wish, answer.json["reservation_ids"])
    threads = [threading.Thread(target=live, args=(n,)) for n in range(len(people))]
    for t in threads:
        t.start()
    for n, name in enumerate(("reservation-consumer", "reservation", "reservation-relay", "reservation-consumer", "reservation")):
        wait_until(lambda: len(answered) >= 17 * n + 5, 120, "more answers", interval=0.001)
        world.stack.kill(name)
        world.stack.restart(name)
    for t in threads:
        t.join()
    wait_until(world.settled, 60, "all requests to be decided")
    rows = dict(world.db.query("SELECT reservation_id::text, status FROM reservation.reservation WHERE concert_id = %s", (concert,)))
    asked = [i for _, ids in accepted.values() for i in ids]
    assert sorted(asked) == sorted(rows), "what was accepted is what is there"
    held = set()
    for wish, ids in accepted.values():
        got = {rows[i] for i in ids}
        assert got in ({"HELD"}, {"REJECTED"}), "all or none"
        if got == {"HELD"}:
            assert not held & set(wish), "one seat, one holder"
            held |= set(wish)
    assert all(held & set(wish) for wish, ids in accepted.values() if rows[ids[0]] == "REJECTED")
    assert not world.db.query("""SELECT FROM reservation.reservation AS r JOIN reservation.reservation_history AS h USING (reservation_id)
        GROUP BY r.reservation_id HAVING count(*) <> max(r.version)""")
    events = "SELECT id::text FROM outbox.event WHERE topic IS NULL"
    before = {i for i, in world.db.query(events)}
    records = read_topic(world.stack.kafka, "outbox.event.reservation", len(before))
    ids = [dict(r.headers)["id"].decode() for r in records]
    assert len(ids) == len(set(ids)), "an event is there twice"
    assert before <= set(ids) <= {i for i, in world.db.query(events)}  # a hold of an earlier test may end meanwhile
    told = [(dict(r.headers)["type"], json.loads(r.value)["reservation_id"], json.loads(r.value)["version"]) for r in records]
    assert len(told) == len(set(told))
    assert {i for t, i, _ in told if t == b"ReservationHeld"} >= {i for i in rows if rows[i] == "HELD"}


def test_poison(world):
    """A request that cannot be handled for good (its seat's row has gone bad) is REJECTED and told of; the others go on."""
    concert, schedule, seats = world.concert(2)
    person = world.person(concert)
    world.db.psql(f"""CREATE FUNCTION public.bad() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.seat_id = {seats[0]} AND NEW.status = 'HELD' THEN RAISE EXCEPTION 'bad' USING ERRCODE = '22012'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER bad BEFORE UPDATE ON reservation.reservation FOR EACH ROW EXECUTE FUNCTION public.bad()""")
    try:
        ids = [world.ask(person, schedule, [s], f"p{s}").json["reservation_ids"][0] for s in seats]
        state = "SELECT status FROM reservation.reservation WHERE reservation_id = %s"
        wait_until(lambda: [world.db.one(state, (i,)) for i in ids] == ["REJECTED", "HELD"], 60, "both to be decided")
        assert world.db.one("SELECT payload ->> 'code' FROM outbox.event WHERE type = 'ReservationRequestedFailed'") == "22012"
        assert world.db.one("SELECT count(*) FROM inbox.dead_letter") == 1
    finally:
        world.db.psql("DROP TRIGGER bad ON reservation.reservation; DROP FUNCTION public.bad()")
