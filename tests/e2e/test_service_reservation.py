"""tests/e2e/test_service_reservation.py -- postrider-reservation over real HTTP and Postgres. What its consumer does is
called as the consumer calls it, reservation.on_messages(...), so that every order of messages can be had. Each answer is
checked against openapi.json, each event against events.json."""
import itertools
import json
import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import events
import psycopg2
import pytest
import servers
from fill import fill
from service import Api, Service
from sql import Call, run, session, wait_blocked
from tokens import QUEUE, USER, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(200)
LIVE = ("REQUESTED", "HELD", "PAID", "CONFIRMED")
_number = itertools.count(1)


def new():
    return str(uuid.uuid4())


class Kept:
    """A database, asked over one connection that is kept."""

    def __init__(self, db):
        self.db, self.conninfo, self.connect = db, db.conninfo, db.connect
        self.conn = db.connect()

    def query(self, sql, args=None):
        return run(self.conn, sql, args)

    def one(self, sql, args=None):
        return self.query(sql, args)[0][0]


class Box:
    """The service, its database, and its consumer by hand."""

    def __init__(self, db, users, queue, **config):
        self.users, self.queue = users, queue
        self.db = Kept(db)
        self.service = self.another(**config)
        self.api = Api(self.service.port)
        self.delivered = db.one("SELECT coalesce(max(seq), 0) FROM outbox.event")

    def another(self, **config):
        """One more service on the same database."""
        return Service("reservation", self.db.conninfo, config={
            "jwt": {"jwks": self.users.url}, "queue": {"jwks": self.queue.url}, **config}).start().wait_ready()

    # -- messages

    def message(self, type, payload, topic=None, key=None, id=None, headers=None, seq=None):
        return {"id": id or new(), "topic": topic or "outbox.event.test", "partition": 0, "message_offset": next(_number),
                "key": key or new(), "type": type, "payload": payload,
                "headers": {"outbox-seq": str(seq or next(_number) + 10**12), **(headers or {})}, "time": "2026-01-02T03:04:05Z"}

    def command(self, type, payload, saga=None, op="do", step="RESERVATION", **kw):
        saga = saga or new()
        headers = {"saga-id": saga, "saga-name": "pay", "saga-step": step, "saga-op": op, "correlation-id": saga,
                   "saga-command-id": str(uuid.uuid5(uuid.UUID(saga), step + op)), "saga-reply-to": "outbox.saga.inbox"}
        return self.message(type, payload, "outbox.command.reservation", saga, headers=headers, **kw)

    def tell(self, *messages, on=None):
        sql = "SELECT reservation.on_messages(ARRAY(SELECT m FROM jsonb_populate_recordset(NULL::inbox.message, %s) AS m))"
        if on is None:
            return self.db.query(sql, (json.dumps(messages),))
        with on.cursor() as c:
            c.execute(sql, (json.dumps(messages),))

    def published(self, where="true", *args):
        """[(type, key, payload, headers, topic)] since deliver() was called last."""
        return self.db.query("SELECT type, aggregateid, payload, headers, topic FROM outbox.event WHERE seq > %s AND "
                             + where + " ORDER BY seq", (self.delivered, *args))

    def requested(self):
        """The events ReservationRequested since then, as messages."""
        rows = self.db.query("SELECT type, payload, aggregateid, id::text, headers, seq FROM outbox.event"
                             " WHERE seq > %s ORDER BY seq", (self.delivered,))
        self.delivered = rows[-1][5] if rows else self.delivered
        return [self.message(r[0], r[1], "outbox.event.reservation", r[2], r[3], r[4], r[5]) for r in rows
                if r[0] == "ReservationRequested"]

    def deliver(self):
        self.tell(*self.requested())

    def replies(self, saga, op="do"):
        return [h["saga-outcome"] for (h,) in self.db.query(
            "SELECT headers FROM outbox.event WHERE type = 'SagaReply' AND headers ->> 'saga-id' = %s"
            " AND headers ->> 'saga-op' = %s ORDER BY seq", (saga, op))]

    # -- a world

    def concert(self, seats=4, price=1000):
        """A concert with a schedule: (concert_id, schedule_id, [seat_id]), as strings."""
        n = next(_number) * 1000
        concert, schedule, ids = str(n), str(n + 1), [str(n + 2 + i) for i in range(seats)]
        self.tell(self.message("ScheduleOpened", {"concert_id": concert, "schedule_id": schedule, "starts_at": "2030-01-01T00:00:00Z",
                                                  "seats": [{"seat_id": s, "label": f"A-{i + 1}", "price": price}
                                                            for i, s in enumerate(ids)]}))
        return concert, schedule, ids

    def person(self, concert=None, state="ACTIVE"):
        return Person(self, concert, state)

    def state(self, id):
        return self.db.one("SELECT status FROM reservation.reservation WHERE reservation_id = %s", (id,))

    def row(self, id, *columns):
        return self.db.query(f"SELECT {', '.join(columns)} FROM reservation.reservation WHERE reservation_id = %s", (id,))[0]

    def check(self):
        """What holds at every moment: each seat has one at most, histories are whole, events are as declared."""
        assert not self.db.query("SELECT seat_id FROM reservation.reservation WHERE claim_no IS NOT NULL AND status = ANY (%s)"
                                 " GROUP BY 1 HAVING count(*) > 1", (list(LIVE),))
        assert not self.db.query("""SELECT r.reservation_id FROM reservation.reservation AS r
            LEFT JOIN reservation.reservation_history AS h USING (reservation_id)
            GROUP BY r.reservation_id HAVING count(*) <> max(r.version) OR max(h.version) <> max(r.version)
                OR (array_agg(h.status ORDER BY h.version DESC))[1] <> max(r.status)""")
        known = events.Events()
        for type, key, payload, topic in self.db.query("SELECT type, aggregateid, payload, topic FROM outbox.event"):
            if topic is None:
                assert not known.problems("outbox.event.reservation", type, key, payload)


class Person:
    def __init__(self, box, concert, state):
        self.box, self.id, self.token_id, self.concert = box, new(), new(), concert
        self.token = box.users.token(self.id)
        self.queue_token = box.queue.token(self.id, jti=self.token_id, concert_id=concert)
        box.tell(box.message("UserCreated", {"user_id": self.id, "email": "a@b.c", "name": "A", "state": state}))
        if concert:
            self.at_queue("TokenIssued")
            self.at_queue("TokenActivated")

    def at_queue(self, type, **more):
        self.box.tell(self.box.message(type, {"token_id": self.token_id, "user_id": self.id, "concert_id": self.concert,
                                              "active_at": "2026-01-01T00:00:00Z", "expire_at": "2030-01-01T00:00:00Z", **more}))

    def ask(self, schedule, seats, path="/reservations", key=None, **more):
        return self.box.api.post(path, {"schedule_id": schedule, "seat_ids": seats, "queue_token": self.queue_token, **more},
                                 token=self.token, key=key)

    def hold(self, schedule, seats):
        """HELD reservations of these seats."""
        answer = self.ask(schedule, seats)
        assert answer.status == 202, answer
        self.box.deliver()
        assert [self.box.state(i) for i in answer.json["reservation_ids"]] == ["HELD"] * len(seats)
        return answer.json["reservation_ids"]

    def get(self, path, **kw):
        return self.box.api.get(path, token=self.token, **kw)

    def cancel(self, id):
        return self.box.api.call("DELETE", f"/reservations/{id}", token=self.token)


@pytest.fixture(scope="module")
def issuers():
    with Issuer(*USER) as users, Issuer(*QUEUE) as queue:
        yield users, queue


@pytest.fixture(scope="module")
def box(pg_server, issuers):
    db = pg_server.createdb(f"reservation_{os.getpid()}")
    b = Box(db, *issuers, http={"workers": 12, "patience": "500ms"})
    yield b
    b.service.kill()
    db.drop()


@pytest.fixture(autouse=True)
def checked(request):
    yield
    if "box" in request.fixturenames and not request.node.get_closest_marker("unchecked"):
        request.getfixturevalue("box").check()


def test_from_request_to_confirmed(box):
    """F1 and F2, the happy way: REQUESTED at once, HELD by the consumer, PAID by the saga's command, CONFIRMED at its end;
    each transition is published, has a timer where it needs one, and stands in the history from the queue token on."""
    concert, schedule, seats = box.concert(price=1500)
    ann = box.person(concert)
    answer = ann.ask(schedule, [seats[0]])
    id = answer.json["reservation_ids"][0]
    assert answer.status == 202 and answer.headers["Location"] == f"/reservations/{id}"
    shown = ann.get(f"/reservations/{id}").json
    assert {k: shown[k] for k in ("state", "seat_id", "price", "expires_at", "label")} == {
        "state": "REQUESTED", "seat_id": seats[0], "price": 1500, "expires_at": None, "label": "A-1"}
    box.deliver()
    shown = ann.get(f"/reservations/{id}").json
    left = box.db.one("SELECT %s::timestamptz - now()", (shown["expires_at"],))
    assert shown["state"] == "HELD" and 200 < left.total_seconds() <= 300
    told = box.published()
    assert [(t[0], t[1], t[4]) for t in told] == [("ReservationUpdated", id, None), ("ReservationHeld", id, None),
                                                 ("ScheduleAt", id, "outbox.command.scheduler")]
    assert told[2][2] == {"timer_id": id, "kind": "hold", "at": shown["expires_at"], "subject": {"reservation_id": id}, "hold_id": id}
    assert told[1][2]["claim_no"] == 1 and told[1][2]["hold_id"] == id and told[0][3]["causation-id"]

    payment = new()
    what = {"payment_id": payment, "user_id": ann.id, "reservation_ids": [id]}
    box.tell(box.command("ConfirmReservation", what, payment))
    assert ann.get(f"/reservations/{id}").json["state"] == "PAID" and box.replies(payment) == ["done"]
    assert ann.cancel(id).problem == "paid"
    box.tell(box.message("TimerFired", {"timer_id": id, "kind": "hold", "subject": {"reservation_id": id}}))
    assert box.state(id) == "PAID"
    box.tell(box.message("SagaCompleted", {"saga_id": payment, "name": "pay", "state": "COMPLETED", "data": what, "steps": []}))
    assert ann.get(f"/reservations/{id}").json["state"] == "CONFIRMED"
    assert ann.get(f"/reservations?user={ann.id}").json["reservations"][0]["reservation_id"] == id

    history = ann.get(f"/reservations/{id}/history").json["history"]
    assert [(h["of"], h["state"], h["cause"]) for h in history] == [
        ("token", "WAITING", "TokenIssued"), ("token", "ACTIVE", "TokenActivated"), ("reservation", "REQUESTED", "POST /reservations"),
        ("reservation", "HELD", "ReservationRequested"), ("reservation", "PAID", "ConfirmReservation"),
        ("reservation", "CONFIRMED", "SagaCompleted")]
    told = {i for (i,) in box.db.query("SELECT id::text FROM outbox.event WHERE type IN ('ReservationUpdated', 'ReservationRequested')")}
    assert {h["event_id"] for h in history if h["of"] == "reservation"} <= told
    assert [h["version"] for h in history[2:]] == [1, 2, 3, 4]


def test_the_timer_is_let_go(box):
    """Whatever ends a hold before its time cancels its timer."""
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    ids = ann.hold(schedule, seats[:2])
    ann.cancel(ids[0])
    assert [(t[0], t[1]) for t in box.published("topic = 'outbox.command.scheduler'")][2:] == [("CancelTimer", ids[0])]
    payment = new()
    box.tell(box.command("ConfirmReservation", {"payment_id": payment, "reservation_ids": [ids[1]]}, payment))
    assert len(box.published("type = 'CancelTimer'")) == 1
    box.tell(box.message("SagaCompleted", {"data": {"payment_id": payment, "reservation_ids": [ids[1]]}}))
    assert [t[1] for t in box.published("type = 'CancelTimer'")] == ids
    box.tell(box.command("RevertReservation", {"payment_id": payment, "reservation_ids": [ids[1]], "to": "PRIOR"}, payment, "undo"))
    again = box.published("type = 'ScheduleAt'")[-1]
    assert box.state(ids[1]) == "HELD" and again[1] != ids[1] and again[2]["subject"] == {"reservation_id": ids[1]}


# ---- who may ask

def test_queue_tokens(box):
    concert, schedule, seats = box.concert()
    ann, bob = box.person(concert), box.person(concert)
    other, _, _ = box.concert()
    before = box.db.one("SELECT count(*) FROM reservation.reservation")
    for name, bad in box.queue.forged(ann.id, jti=ann.token_id, concert_id=concert).items():
        answer = ann.ask(schedule, seats[:1], queue_token=bad)
        assert answer.status == (422 if bad == "" else 401), (name, answer)
    assert ann.ask(schedule, seats[:1], queue_token=ann.token).problem == "queue-token"
    assert ann.ask(schedule, seats[:1], queue_token=box.queue.token(ann.id, jti="x", concert_id=concert)).problem == "queue-token"
    assert ann.ask(schedule, seats[:1], queue_token=box.queue.token(ann.id, jti=new(), concert_id="1 OR 1")).problem == "queue-token"
    assert ann.ask(schedule, seats[:1], queue_token=bob.queue_token).problem == "not-yours"
    elsewhere = box.person(other)
    assert elsewhere.ask(schedule, seats[:1]).problem == "other-concert"
    for name, bad in box.users.forged(ann.id).items():
        assert box.api.post("/reservations", {"schedule_id": schedule, "seat_ids": seats[:1], "queue_token": ann.queue_token},
                            token=bad).status == 401, name
    assert box.db.one("SELECT count(*) FROM reservation.reservation") == before


def test_whose_turn_it_is(box):
    """Not yet: 409 and when; activated while the request waits: 202; used, expired, locked: refused."""
    concert, schedule, seats = box.concert()
    ann = box.person()
    ann.concert, ann.queue_token = concert, box.queue.token(ann.id, jti=ann.token_id, concert_id=concert)
    assert ann.ask(schedule, seats[:1]).problem == "not-your-turn"
    ann.at_queue("TokenIssued", active_at="2030-01-01T00:00:00Z")
    answer = ann.ask(schedule, seats[:1])
    assert answer.problem == "not-your-turn" and answer.headers["Retry-After"] == "3600"
    ann.at_queue("TokenIssued")
    patient = box.another(http={"patience": "25s"})
    try:
        api, body = Api(patient.port), {"schedule_id": schedule, "seat_ids": seats[:1], "queue_token": ann.queue_token}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(api.post, "/reservations", body, token=ann.token)
            ann.at_queue("TokenActivated")
            assert asked.result().status == 202
    finally:
        patient.kill()
    ann.at_queue("QueueCompleted")
    assert ann.ask(schedule, seats[1:2]).problem == "token-used"
    ann.at_queue("QueueRestored")
    assert ann.ask(schedule, seats[1:2]).status == 202
    ann.at_queue("QueueExpired")
    assert ann.ask(schedule, seats[1:2]).problem == "queue-token"
    box.deliver()
    bob = box.person(concert)
    box.tell(box.message("UserUpdated", {"user_id": bob.id, "state": "LOCKED"}))
    assert bob.ask(schedule, seats[1:2]).problem == "locked"
    box.tell(box.message("UserCreated", {"user_id": bob.id, "state": "ACTIVE"}, seq=1))  # an older one, late
    assert bob.ask(schedule, seats[1:2]).problem == "locked"


def test_a_token_that_ended_meanwhile(box):
    """The queue's word comes between the request and the claim: REJECTED."""
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    id = ann.ask(schedule, seats[:1]).json["reservation_ids"][0]
    ann.at_queue("QueueExpired")
    box.deliver()
    assert (box.state(id), box.row(id, "reason")) == ("REJECTED", ("token-over",))


def test_bad_input(box):
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    good = {"schedule_id": schedule, "seat_ids": seats[:1], "queue_token": ann.queue_token}
    before = box.db.query("SELECT (SELECT count(*) FROM reservation.reservation), (SELECT count(*) FROM outbox.event)")
    for path in ("/reservations", "/bookings"):
        for bad in ({"seat_ids": []}, {"seat_ids": "x"}, {"seat_ids": [1]}, {"seat_ids": [seats[0], seats[0]]}, {"schedule_id": 7},
                    {"seat_ids": [str(2**63)]}, {"seat_ids": ["1'; DROP TABLE reservation.seat; --"]}, {"schedule_id": "-1"},
                    {"seat_ids": [str(i) for i in range(1, 12)]}, {"queue_token": None}, {"queue_token": 5}, {"schedule_id": None}):
            assert box.api.post(path, {**good, **bad}, token=ann.token).status == 422, bad
        assert box.api.post(path, b"{", token=ann.token).status == 400
        assert box.api.post(path, b"\xff\xfe", token=ann.token).status == 400
        assert box.api.post(path, {**good, "seat_ids": ["99999999"]}, token=ann.token).problem == "no-such-seat"
        assert box.api.post(path, {**good, "schedule_id": concert}, token=ann.token).problem == "no-such-seat"
    assert ann.get("/reservations/" + new()).status == 404 and ann.get("/reservations/x").status == 404
    assert ann.get("/reservations/" + new() + "/history").status == 404 and ann.get("/sagas/" + new()).status == 404
    assert ann.cancel(new()).status == 404
    assert ann.get("/reservations?limit=0").status == 422 and ann.get("/reservations?user=x").status == 422
    assert box.db.query("SELECT (SELECT count(*) FROM reservation.reservation), (SELECT count(*) FROM outbox.event)") == before


def test_others_see_nothing(box):
    concert, schedule, seats = box.concert()
    ann, bob = box.person(concert), box.person(concert)
    id = ann.hold(schedule, seats[:1])[0]
    for answer in (bob.get(f"/reservations/{id}"), bob.get(f"/reservations/{id}/history"), bob.cancel(id),
                   bob.get(f"/reservations?user={ann.id}")):
        assert answer.problem == "not-yours"
    assert bob.get("/reservations").json == {"reservations": []} and box.state(id) == "HELD"


def test_pages_and_keys(box):
    concert, schedule, seats = box.concert(5)
    ann = box.person(concert)
    ids = [ann.ask(schedule, [s], key=f"k{s}").json["reservation_ids"][0] for s in seats]
    assert ann.ask(schedule, [seats[0]], key=f"k{seats[0]}").json["reservation_ids"] == [ids[0]]
    assert ann.ask(schedule, [seats[1]], key=f"k{seats[0]}").problem == "idempotency-key-reused"
    page = ann.get("/reservations?limit=3").json["reservations"]
    assert [r["reservation_id"] for r in page] == ids[:1:-1]
    page = ann.get(f"/reservations?limit=3&after={ids[2]}").json["reservations"]
    assert [r["reservation_id"] for r in page] == [ids[1], ids[0]]
    box.deliver()


def trace_of(n):
    return f"00-{n:032x}-{n:016x}-01"


def test_each_request_has_its_own_trace(box):
    """Requests that are answered by one transaction publish with the traceparent of theirs, whoever among them is refused."""
    concert, schedule, seats = box.concert(12)
    people = [box.person(concert) for _ in range(12)]
    asked = {}

    def ask(i):
        headers = {} if i % 3 == 2 else {"traceparent": trace_of(i + 1)}
        schedule_of = "1" if i % 4 == 1 else schedule  # there is none: refused
        answer = box.api.post("/reservations", {"schedule_id": schedule_of, "seat_ids": [seats[i]], "queue_token": people[i].queue_token},
                              token=people[i].token, headers=headers)
        asked[answer.json["reservation_ids"][0] if answer.status == 202 else f"refused {i}"] = headers.get("traceparent")

    with box.db.connect(autocommit=False) as one, ThreadPoolExecutor(12) as pool:
        with one.cursor() as c:  # until some wait the others gather behind them
            c.execute("LOCK TABLE reservation.reservation IN EXCLUSIVE MODE")
            done = [pool.submit(ask, i) for i in range(12)]
            wait_until(lambda: box.db.one("SELECT count(*) FROM pg_locks WHERE NOT granted"), 30, "requests to wait")
        one.rollback()
        for d in done:
            d.result()
    one.close()
    rows = dict(box.db.query("SELECT aggregateid, tracingspancontext FROM outbox.event WHERE type = 'ReservationRequested'"
                             " AND aggregateid = ANY (%s)", (list(asked),)))
    assert len(rows) == 9 and rows == {k: v for k, v in asked.items() if not k.startswith("refused")}
    # Together for certain: the second one is refused.
    with box.db.connect(autocommit=False) as one, one.cursor() as c:
        c.execute("SELECT set_config('service.traces', %s, true)", ("{" + ",".join([trace_of(91), trace_of(92), "NULL", trace_of(94)]) + "}",))
        c.execute("SELECT n, answer ->> 'reservation_id', code FROM reservation.request_many(%s::uuid[], %s::uuid[], %s, %s, %s) ORDER BY n",
                  ([p.id for p in people[:4]], [p.token_id for p in people[:4]], [int(concert)] * 4,
                   [int(schedule), 1, int(schedule), int(schedule)], ["{%s}" % s for s in seats[:4]]))
        got = c.fetchall()
        assert [g[0] for g in got if not g[2]] == [1, 3, 4] and [g[0] for g in got if g[2]] == [2]
        c.execute("SELECT aggregateid, tracingspancontext FROM outbox.event WHERE aggregateid = ANY (%s)", ([g[1] for g in got],))
        assert dict(c.fetchall()) == {g[1]: t for g, t in zip([g for g in got if not g[2]], (trace_of(91), None, trace_of(94)))}
        one.rollback()
    one.close()
    box.deliver()


# ---- who gets the seat

def test_a_taken_seat(box):
    """Known as taken by then: 409 at the POST. Not known yet: REJECTED, also when both are in one batch. Given back, it can
    be had again, by a higher claim."""
    concert, schedule, seats = box.concert()
    ann, bob, eve = (box.person(concert) for _ in range(3))
    a, b = (p.ask(schedule, seats[:1]).json["reservation_ids"][0] for p in (ann, bob))
    first, second = box.requested()
    box.tell(second)
    box.tell(first, second)
    assert (box.state(a), box.state(b), *box.row(a, "reason")) == ("REJECTED", "HELD", "seat-taken")
    assert eve.ask(schedule, seats[:1]).problem == "seat-taken"
    assert bob.cancel(b).json["state"] == "CANCELLED" and bob.cancel(b).status == 200
    ids = [p.ask(schedule, seats[:1]).json["reservation_ids"][0] for p in (eve, ann)]
    box.deliver()
    assert [box.state(i) for i in ids] == ["HELD", "REJECTED"] and box.row(ids[0], "claim_no") == (2,)
    assert ann.cancel(ids[1]).problem == "over"


def test_cancelled_before_it_was_held(box):
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    ids = ann.ask(schedule, seats[:2]).json["reservation_ids"]
    assert ann.cancel(ids[0]).json["state"] == "CANCELLED"
    # What waits for the claim (saga reserve) is told that none will come; of the other nothing is said yet.
    told = {(t, k): p.get("hold_id") for t, k, p, *_ in box.published("type IN ('ReservationCancelled', 'ReservationRejected') AND aggregateid = ANY (%s)", ids)}
    assert told == {("ReservationCancelled", ids[0]): None, ("ReservationRejected", ids[0]): ids[0]}
    box.deliver()
    assert [box.state(i) for i in ids] == ["CANCELLED", "HELD"]
    ann.cancel(ids[1])
    assert box.db.one("SELECT count(*) FROM outbox.event WHERE type = 'ReservationRejected' AND aggregateid = %s", (ids[1],)) == 0


def greedy(wishes):
    """Who gets all that he wants, in order."""
    taken, won = set(), []
    for w in wishes:
        won.append(not taken & set(w))
        taken |= set(w) if won[-1] else set()
    return won


def test_several_seats_all_or_none(box):
    """In one batch: whoever asked first has all that he asked for, and who loses one seat takes none from others."""
    rng = random.Random(7)
    for n in range(15):
        concert, schedule, seats = box.concert(8)
        wishes = [[0, 1], [1, 2], [2, 3]] if n == 0 else [rng.sample(range(8), rng.randint(1, 4)) for _ in range(rng.randint(2, 12))]
        ann = box.person(concert)
        asked = [ann.ask(schedule, [seats[i] for i in w]).json["reservation_ids"] for w in wishes]
        messages = box.requested()
        cut = rng.randint(0, len(messages))
        box.tell(*messages[:cut])
        box.tell(*messages[cut:], *messages[:3])
        got = [[box.state(i) for i in ids] for ids in asked]
        assert [set(g) for g in got] == [{"HELD"} if w else {"REJECTED"} for w in greedy(wishes)], (wishes, cut)


def test_claims_side_by_side(box):
    """Four consumers at the same time, all want the same few seats: no seat twice, nobody half, nobody left REQUESTED, and
    nobody deadlocks."""
    rng = random.Random(1)
    concert, schedule, seats = box.concert(6)
    people = [box.person(concert) for _ in range(4)]
    asked = [people[n % 4].ask(schedule, rng.sample(seats, rng.randint(1, 3))).json["reservation_ids"] for n in range(40)]
    messages = box.requested()
    ways = [messages[i::4] for i in range(4)]
    gate = threading.Barrier(4)

    def consume(mine):
        with session(box.db) as c:
            gate.wait()
            for i in range(0, len(mine), 5):
                box.tell(*mine[i:i + 5], on=c)
                c.commit()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(consume, ways))
    got = [{box.state(i) for i in ids} for ids in asked]
    assert all(len(g) == 1 for g in got) and set.union(*got) == {"HELD", "REJECTED"}


# ---- payments

def told_twice(messages):
    """Each once more, as itself and under another id."""
    return [m for x in messages for m in (x, x, {**x, "id": new()})]


@pytest.mark.parametrize("target", ["CANCELLED", "PRIOR"])
@pytest.mark.parametrize("twice", [False, True])
def test_every_order_of_pay_undo_and_expiry(box, target, twice):
    """ConfirmReservation, its undo and the timer in every order: the row decides, the answers say what became of it, and in
    the end nothing is left that somebody holds or has paid for."""
    concert, schedule, seats = box.concert(1)
    for order in itertools.permutations(("pay", "undo", "timer")):
        ann, payment = box.person(concert), new()
        id = ann.hold(schedule, seats)[0]
        what = {"payment_id": payment, "user_id": ann.id, "reservation_ids": [id]}
        messages = {"pay": box.command("ConfirmReservation", what, payment),
                    "undo": box.command("RevertReservation", {**what, "to": target}, payment, "undo"),
                    "timer": box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": id}})}
        for word in order:
            for m in told_twice([messages[word]]) if twice else [messages[word]]:
                box.tell(m)
        at = order.index
        paid = at("pay") < min(at("undo"), at("timer"))
        left = "CANCELLED" if paid and target == "CANCELLED" else "EXPIRED"
        assert box.state(id) == left, order
        assert set(box.replies(payment)) == {"done" if paid else "refused"}, order
        assert set(box.replies(payment, "undo")) == {"done"}
        states = [s for (s,) in box.db.query("SELECT status FROM reservation.reservation_history WHERE reservation_id = %s"
                                             " ORDER BY version", (id,))]
        assert states.count("PAID") == paid, order


@pytest.mark.parametrize("twice", [False, True])
def test_every_order_of_a_hybrid_payment(box, twice):
    """PaymentCompleted, SeatReserved of both seats, and the timers, in every order: CONFIRMED when paid before its time,
    all or none; the payment hears which."""
    concert, schedule, seats = box.concert(2)
    for order in itertools.permutations(("pay", "seat 0", "seat 1", "timer 0")):
        ann, payment = box.person(concert), new()
        ids = ann.hold(schedule, seats)
        what = {"payment_id": payment, "user_id": ann.id, "reservation_ids": ids, "token_id": ann.token_id, "amount": 2000,
                "mode": "hybrid", "hybrid_id": payment}
        messages = {"pay": box.message("PaymentCompleted", what), "timer 0": box.message(
            "TimerFired", {"kind": "hold", "subject": {"reservation_id": ids[0]}}), **{
            f"seat {i}": box.message("SeatReserved", {"reservation_id": ids[i], "seat_id": seats[i], "payment_id": payment,
                                                      "claim_no": box.row(ids[i], "claim_no")[0]}) for i in (0, 1)}}
        for m in (messages[w] for w in order):
            box.tell(*(told_twice([m]) if twice else [m]))
        paid = order.index("pay") < order.index("timer 0")
        assert [box.state(i) for i in ids] == (["CONFIRMED"] * 2 if paid else ["EXPIRED", "HELD"]), order
        said = box.published("type LIKE 'Reservations%%'")
        assert [s[0] for s in said] == ["ReservationsCompleted" if paid else "ReservationsRejected"]
        assert said[0][1] == payment and said[0][2]["hybrid_id"] == payment
        box.tell(box.command("RevertReservation", {**what, "to": "CANCELLED"}, payment, "undo"), *[
            box.message("ExpireReservation", {"reservation_ids": ids}, "outbox.command.reservation")])
        assert not set(map(box.state, ids)) & set(LIVE)
        box.requested()


def test_choreography(box):
    """F3: PAID by the payment's event, CONFIRMED by the token's end; undone, HELD again while its time lasts, with a new
    timer, and payable again."""
    concert, schedule, seats = box.concert()
    ann, payment = box.person(concert), new()
    ids = ann.hold(schedule, seats[:2])
    what = {"payment_id": payment, "user_id": ann.id, "reservation_ids": ids, "token_id": ann.token_id, "amount": 2000,
            "mode": "choreography", "choreography_id": payment}
    box.tell(box.message("PaymentCompleted", what, headers={"correlation-id": payment}))
    said = box.published("type = 'ReservationsCompleted'")
    assert len(said) == 1 and said[0][2]["choreography_id"] == payment and said[0][3]["correlation-id"] == payment
    assert "hybrid_id" not in said[0][2]
    box.tell(box.command("RevertReservation", {"reservation_ids": ids, "payment_id": payment, "to": "PRIOR"}, payment, "undo"))
    assert [box.row(i, "status", "payment_id") for i in ids] == [("HELD", None)] * 2
    assert [t[0] for t in box.published("type = 'ReservationReverted'")] == ["ReservationReverted"] * 2
    second = new()
    box.tell(box.message("PaymentCompleted", {**what, "payment_id": second, "choreography_id": second}))
    assert [box.row(i, "status", "payment_id")[0] for i in ids] == ["PAID"] * 2
    box.tell(box.message("QueueExpired", {"token_id": ann.token_id, "user_id": ann.id, "concert_id": concert, "payment_id": payment}))
    assert {box.state(i) for i in ids} == {"PAID"}, "the end of a payment that was undone"
    box.tell(box.message("QueueExpired", {"token_id": ann.token_id, "user_id": ann.id, "concert_id": concert, "payment_id": second}))
    assert {box.state(i) for i in ids} == {"CONFIRMED"}


def test_an_undo_before_the_payment(box):
    """The tracer's undo is faster than PaymentCompleted: the late payment gets nothing."""
    concert, schedule, seats = box.concert()
    ann, payment = box.person(concert), new()
    ids = ann.hold(schedule, seats[:1])
    what = {"payment_id": payment, "user_id": ann.id, "reservation_ids": ids, "token_id": None, "amount": 1,
            "mode": "choreography", "choreography_id": payment}
    box.tell(box.command("RevertReservation", {**what, "to": "PRIOR"}, payment, "undo"))
    box.tell(box.message("PaymentCompleted", what))
    assert box.state(ids[0]) == "HELD" and not box.published("type LIKE 'Reservations%%'")


def test_all_or_none_is_paid(box):
    """One expired, another's, unknown or paid by another: none is paid, and the answer says why."""
    concert, schedule, seats = box.concert(6)
    ann, bob = box.person(concert), box.person(concert)
    a, b, c = ann.hold(schedule, seats[:3])
    other = bob.hold(schedule, seats[3:4])[0]
    box.tell(box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": c}}))
    payment = new()
    box.tell(box.command("ConfirmReservation", {"payment_id": payment, "user_id": ann.id, "reservation_ids": [b]}, payment))
    for bad in (c, other, new(), b):
        saga = new()
        box.tell(box.command("ConfirmReservation", {"payment_id": saga, "user_id": ann.id, "reservation_ids": [a, bad]}, saga))
        assert box.replies(saga) == ["refused"] and box.state(a) == "HELD", bad
    for nonsense in ([], None, "x", [a, "x"], {}):
        saga = new()
        box.tell(box.command("ConfirmReservation", {"payment_id": saga, "reservation_ids": nonsense}, saga))
        assert box.replies(saga) == ["refused"]
    saga = new()
    box.tell(box.command("MakeCoffee", {}, saga))
    assert box.replies(saga) == ["refused"]
    box.tell(box.message("SomethingElse", {"x": 1}))
    with pytest.raises(psycopg2.Error, match="knows no command"):
        box.tell(box.message("MakeCoffee", {}, "outbox.command.reservation"))


def test_pay_against_expiry_at_the_same_instant(box):
    """Whoever has the row first wins; the other sees it. Both ways round, by locks and not by luck."""
    for first in ("pay", "timer"):
        concert, schedule, seats = box.concert(1)
        ann, payment = box.person(concert), new()
        id = ann.hold(schedule, seats)[0]
        messages = {"pay": box.command("ConfirmReservation", {"payment_id": payment, "user_id": ann.id, "reservation_ids": [id]}, payment),
                    "timer": box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": id}})}
        with session(box.db) as one, session(box.db) as two:
            box.tell(messages[first], on=one)
            late = Call(lambda: box.tell(messages["timer" if first == "pay" else "pay"], on=two))
            wait_blocked(box.db, two)
            one.commit()
            late.result()
            two.commit()
        assert (box.state(id), box.replies(payment)) == (("PAID", ["done"]) if first == "pay" else ("EXPIRED", ["refused"]))


def test_cancel_during_payment(box):
    """The user gives back what is just being paid: whichever has the row first; never both."""
    for first in ("pay", "cancel"):
        concert, schedule, seats = box.concert(1)
        ann, payment = box.person(concert), new()
        id = ann.hold(schedule, seats)[0]
        pay = box.command("ConfirmReservation", {"payment_id": payment, "user_id": ann.id, "reservation_ids": [id]}, payment)
        if first == "pay":
            with session(box.db) as c, ThreadPoolExecutor(1) as pool:
                box.tell(pay, on=c)
                answer = pool.submit(ann.cancel, id)
                wait_until(lambda: box.db.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                                              " AND datname = current_database()") > 0, 30, "the request to wait for the row")
                c.commit()
                assert answer.result().problem == "paid"
            assert (box.state(id), box.replies(payment)) == ("PAID", ["done"])
        else:
            assert ann.cancel(id).status == 200
            box.tell(pay)
            assert (box.state(id), box.replies(payment)) == ("CANCELLED", ["refused"])


def test_many_at_once(box):
    """Payments, undos, timers and cancels of the same reservations from many threads, some in two at a time: no deadlock is
    left to anybody, and each reservation is what its last answer says."""
    concert, schedule, seats = box.concert(6)
    ann = box.person(concert)
    ids = ann.hold(schedule, seats)
    rng = random.Random(3)
    sagas = [new() for _ in range(12)]
    work = []
    for saga in sagas:
        pair = sorted(rng.sample(ids, 2), key=lambda _: rng.random())
        work.append(box.command("ConfirmReservation", {"payment_id": saga, "user_id": ann.id, "reservation_ids": pair}, saga))
        if rng.random() < 0.5:
            work.append(box.command("RevertReservation", {"payment_id": saga, "reservation_ids": pair, "to": "PRIOR"}, saga, "undo"))
    work += [box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": i}}) for i in ids[:2]]
    rng.shuffle(work)

    def consume(mine):
        with session(box.db) as c:
            for m in mine:
                box.tell(m, on=c)
                c.commit()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(consume, [work[i::4] for i in range(4)]))
    for id in ids:
        status, payment = box.row(id, "status", "payment_id::text")
        if status == "PAID":
            assert box.replies(payment) == ["done"] and not box.replies(payment, "undo")
    for saga in sagas:
        undone = box.replies(saga, "undo")
        assert len(box.replies(saga)) == 1 and undone in ([], ["done"])
        assert not undone or not box.db.query("SELECT FROM reservation.reservation WHERE payment_id = %s AND status = 'PAID'", (saga,))


# ---- what else may happen to a hold

def test_the_seats_owner_refuses(box):
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    id = ann.hold(schedule, seats[:1])[0]
    refusal = {"reservation_id": id, "seat_id": seats[0], "claim_no": 2, "reason": "the price differs"}
    box.tell(box.message("SeatRefused", refusal))
    assert box.state(id) == "HELD", "of another claim"
    box.tell(box.message("SeatRefused", {**refusal, "claim_no": 1, "payment_id": new()}))
    assert box.state(id) == "HELD", "the payment's undo will come"
    box.tell(box.message("SeatRefused", {**refusal, "claim_no": 1}))
    assert box.row(id, "status", "reason") == ("REJECTED", "the price differs")
    assert box.published("type = 'ReservationRejected'")[0][2]["prior_status"] == "HELD"


def test_cancelled_by_the_saga_of_the_hold(box):
    """The timer could not be armed: saga reserve undoes the hold, whose do was an event and has no barrier. Asked twice it
    answers twice; before the claim it keeps the seat from being held."""
    concert, schedule, seats = box.concert(2)
    ann = box.person(concert)
    id = ann.hold(schedule, seats[:1])[0]
    undo = box.command("CancelReservation", {"reservation_id": id, "reason": "timer-failed"}, id, "undo")
    box.tell(undo)
    box.tell({**undo, "id": new()})
    assert box.row(id, "status", "reason") == ("CANCELLED", "timer-failed") and box.replies(id, "undo") == ["done", "done"]
    late = ann.ask(schedule, seats[1:]).json["reservation_ids"][0]
    box.tell(box.command("CancelReservation", {"reservation_id": late}, late, "undo"))
    box.deliver()
    assert box.state(late) == "CANCELLED" and box.replies(late, "undo") == ["done"]
    assert not box.replies(id) and not box.replies(late)


def test_requested_by_command(box):
    """RequestReservation / CancelReservation as a step: done with the seats, undone without them; a taken one is refused."""
    concert, schedule, seats = box.concert(2)
    ann, saga, second = box.person(concert), new(), new()
    what = {"user_id": ann.id, "schedule_id": schedule, "seat_ids": seats}
    box.tell(box.command("RequestReservation", what, saga))
    assert box.replies(saga) == ["done"] and len(ann.get("/reservations").json["reservations"]) == 2
    box.deliver()
    box.tell(box.command("RequestReservation", what, second), box.command("RequestReservation", {"seat_ids": 5}, second, step="X"))
    assert box.replies(second) == ["refused", "refused"]
    box.tell(box.command("CancelReservation", {}, saga, "undo"))
    assert {r["state"] for r in ann.get("/reservations").json["reservations"]} == {"CANCELLED"}


# ---- bookings

def booking(box, n=2):
    concert, schedule, seats = box.concert(3)
    ann = box.person(concert)
    box.requested()
    answer = ann.ask(schedule, seats[:n], "/bookings")
    assert answer.status == 202 and answer.headers["Location"] == f"/sagas/{answer.json['saga_id']}", answer
    return ann, schedule, seats, answer.json["saga_id"], answer.json["reservation_ids"]


def test_a_booking(box):
    """F2b: the seats are claimed at the POST, and the saga has all that its steps need."""
    ann, schedule, seats, saga, ids = booking(box)
    start = box.published("type = 'SagaStart'")[0]
    assert start[3]["saga-name"] == "book" and start[3]["saga-id"] == saga
    assert {k: start[2][k] for k in ("payment_id", "user_id", "amount", "schedule_id")} == {
        "payment_id": saga, "user_id": ann.id, "amount": 2000, "schedule_id": schedule}
    assert [(s["seat_id"], s["claim_no"], s["reservation_id"]) for s in start[2]["seats"]] == [
        (s, 1, i) for s, i in zip(seats, ids)]
    assert [t[0] for t in box.published("type = 'ScheduleAt'")] == ["ScheduleAt"] * 2
    assert not box.published("type = 'ReservationRequested'")
    assert ann.get(f"/sagas/{saga}").json == {"saga_id": saga, "name": "book", "state": "STARTING", "why": None, "steps": []}
    bob = box.person(ann.concert)
    assert bob.ask(schedule, seats[1:], "/bookings").problem == "seat-taken" and bob.ask(schedule, seats[:1]).problem == "seat-taken"
    assert bob.get(f"/sagas/{saga}").problem == "not-yours"
    data = start[2]
    box.tell(box.command("ConfirmReservation", {"payment_id": saga, "user_id": ann.id, "reservation_ids": ids}, saga))
    assert {box.state(i) for i in ids} == {"PAID"}
    told = {"saga_id": saga, "name": "book", "version": 1, "state": "RUNNING", "data": data, "steps": [{"step": "SEAT", "state": "DONE"}]}
    box.tell(box.message("SagaStepCompleted", {**told, "step": "QUEUE"}))
    assert {box.state(i) for i in ids} == {"PAID"}
    box.tell(box.message("SagaStepCompleted", {**told, "step": "CONCERT"}))
    assert {box.state(i) for i in ids} == {"CONFIRMED"}, "the pivot is done, push may be away"
    box.tell(box.message("SagaCompleted", {**told, "state": "COMPLETED"}))
    assert ann.get(f"/sagas/{saga}").json["steps"] == [{"step": "SEAT", "state": "DONE"}]


@pytest.mark.parametrize("type", ["SagaFailed", "SagaCompensated", "SagaAborted"])
def test_a_booking_that_is_refused(box, type):
    """Its payment is refused: RESERVATION never began, so no command gives the seats back; the saga's own event does, at
    once. A ConfirmReservation that is late finds nothing."""
    ann, schedule, seats, saga, ids = booking(box)
    told = box.message(type, {"saga_id": saga, "name": "book", "state": "COMPENSATING", "why": "no money",
                              "data": {"payment_id": saga, "user_id": ann.id, "reservation_ids": ids}, "steps": []})
    box.tell(box.message(type, {**told["payload"], "saga_id": new()}))
    assert {box.state(i) for i in ids} == {"REQUESTED"}, "another booking's"
    box.tell(told, told)
    assert [box.row(i, "status", "reason") for i in ids] == [("REJECTED", "no money")] * 2
    box.tell(box.command("ConfirmReservation", {"payment_id": saga, "user_id": ann.id, "reservation_ids": ids}, saga))
    assert box.replies(saga) == ["refused"]
    again = ann.ask(schedule, seats[:2], "/bookings")
    assert again.status == 202 and box.row(again.json["reservation_ids"][0], "claim_no") == (2,)


def test_every_order_of_a_bookings_end(box):
    """The saga's failure, its undo of the reservation, a confirmation under way, and the deadline, in every order: no seat
    stays taken."""
    for order in itertools.permutations(("pay", "undo", "failed", "timer")):
        ann, schedule, seats, saga, ids = booking(box, 1)
        what = {"payment_id": saga, "user_id": ann.id, "reservation_ids": ids}
        messages = {"pay": box.command("ConfirmReservation", what, saga),
                    "undo": box.command("RevertReservation", {**what, "to": "CANCELLED"}, saga, "undo"),
                    "failed": box.message("SagaFailed", {"saga_id": saga, "name": "book", "state": "COMPENSATING", "data": what}),
                    "timer": box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": ids[0]}})}
        for word in order:
            box.tell(messages[word])
        assert box.state(ids[0]) in ("CANCELLED", "REJECTED", "EXPIRED"), order
        assert ann.ask(schedule, seats[:1], "/bookings").status == 202


def test_two_book_one_seat(box):
    """At the same instant: one has it, the other 409."""
    concert, schedule, seats = box.concert(1)
    people = [box.person(concert) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda p: p.ask(schedule, seats, "/bookings").status, people))
    assert sorted(got) == [202] + [409] * 5


# ---- the rest

def test_what_cannot_be_handled_for_good(box):
    """The request is REJECTED, all of it, in the transaction that makes it a dead letter; others change nothing."""
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    ids = ann.ask(schedule, seats[:2]).json["reservation_ids"]
    failed = "SELECT reservation.on_failed(m) FROM jsonb_populate_record(NULL::inbox.message, %s) AS m"
    for m in box.requested():
        box.db.query(failed, (json.dumps(m),))
    assert [box.row(i, "status", "reason") for i in ids] == [("REJECTED", "failed")] * 2
    assert [t[0] for t in box.published("type LIKE 'ReservationR%%'")] == ["ReservationRejected"] * 2
    box.requested()
    box.db.query(failed, (json.dumps(box.message("TimerFired", {"kind": 7})),))
    box.db.query(failed, (json.dumps(box.message("ReservationRequested", None)),))
    assert not box.published()


def plans(conn, sql, args=None):
    """The plans of every statement that the call runs, those inside functions too."""
    conn.notices.clear()
    run(conn, sql, args)
    return "\n".join(n for n in conn.notices if "plan:" in n)


@pytest.mark.timeout(400)
def test_every_query_uses_an_index(pg_server, box):
    """A million reservations of 200,000 users: what a request and a message run looks nothing up by reading a table."""
    db = pg_server.createdb(f"million_{os.getpid()}")
    service = Service("reservation", db.conninfo, config={"database": {"timeout": "60s"}}).start().wait_ready()
    service.kill()
    fill(db, [f"reservation.{t}" for t in ("reservation", "reservation_history", "seat", "user_copy", "token_copy", "token_history")], """
        CREATE FUNCTION pg_temp.u(kind text, i bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
            $$ SELECT (kind || '0000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid $$;
        INSERT INTO reservation.seat SELECT i, 1, 1 + i / 1000, 'S', 100, 1 FROM generate_series(1, 300000) AS i;
        INSERT INTO reservation.user_copy SELECT pg_temp.u('a', i), 'ACTIVE', 1 FROM generate_series(1, 50000) AS i;
        INSERT INTO reservation.token_copy SELECT pg_temp.u('b', i), pg_temp.u('a', i), 1, 'ACTIVE', now(), 1, now() FROM generate_series(1, 50000) AS i;
        INSERT INTO reservation.token_history SELECT pg_temp.u('b', i), pg_temp.u('c', i), 'TokenIssued', 'WAITING', 1, now() FROM generate_series(1, 50000) AS i;
        INSERT INTO reservation.reservation (reservation_id, user_id, concert_id, schedule_id, seat_id, label, price, token_id, status, claim_no, payment_id)
        SELECT pg_temp.u('d', i), pg_temp.u('a', 1 + i % 50000), 1, 1, CASE WHEN i <= 290000 THEN i ELSE i % 290000 END, 'S', 100,
            pg_temp.u('b', 1 + i % 50000), CASE WHEN i <= 290000 THEN 'PAID' ELSE 'CANCELLED' END, 1, CASE WHEN i <= 290000 THEN pg_temp.u('e', i) END
        FROM generate_series(1, 1000000) AS i;
        INSERT INTO reservation.reservation_history SELECT pg_temp.u('d', i), 1, NULL, 'REQUESTED', NULL, 'x', NULL, pg_temp.u('c', i), NULL, now()
        FROM generate_series(1, 100000) AS i""")
    conn = db.connect()
    run(conn, "LOAD 'auto_explain'")
    run(conn, "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET auto_explain.log_level = notice")
    user, token, id, paid = (f"{x[0]}0000000-0000-7000-8000-00000000000{x[1]}" for x in ("a8", "b8", "d7", "e7"))

    def tell(*messages):
        return plans(conn, "SELECT reservation.on_messages(ARRAY(SELECT m FROM jsonb_populate_recordset(NULL::inbox.message, %s) AS m))",
                     (json.dumps(messages),))
    what = {"payment_id": paid, "user_id": user, "reservation_ids": [id]}
    seen = [plans(conn, *q) for q in (
        ("SELECT reservation.request(%s, %s, 1, 291, '{290001,290002}')", (user, token)),
        ("SELECT reservation.book(%s, %s, 1, 291, '{290003,290004}')", (user, token)),
        ("SELECT reservation.list(%s, %s, 10, NULL)", (user, user)), ("SELECT reservation.list(%s, NULL, NULL, %s)", (user, id)),
        ("SELECT reservation.show(%s, %s)", (user, id)), ("SELECT reservation.history(%s, %s)", (user, id)),
        ("SELECT reservation.cancel(%s, (SELECT min(reservation_id::text)::uuid FROM outbox.event AS e,"
         " LATERAL (SELECT e.aggregateid AS reservation_id) AS x WHERE e.type = 'ReservationRequested'))", (user,)))]
    requests = [box.message("ReservationRequested", p, id=i) for i, p in run(
        conn, "SELECT id::text, payload FROM outbox.event WHERE type = 'ReservationRequested'")]
    seen += [tell(*requests), tell(box.command("ConfirmReservation", what)), tell(box.message("QueueExpired", {"token_id": token, "payment_id": paid})),
             tell(box.message("SeatReserved", {"payment_id": paid, "reservation_id": id, "claim_no": 1})),
             tell(box.command("RevertReservation", {**what, "to": "CANCELLED"}, op="do")),
             tell(box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": id}})),
             tell(box.message("SagaFailed", {"saga_id": new(), "name": "book", "state": "COMPENSATING", "data": what}))]
    assert all("reservation" in s for s in seen) and "reservation_claim" in seen[0] and "reservation_user" in seen[2]
    for text in seen:
        for table in ("reservation", "reservation_history", "seat", "token_copy", "user_copy", "token_history"):
            assert f"Seq Scan on {table} " not in text, text
    service.kill()
    db.drop()


def test_copies_by_version(box):
    """Events of one token in every order, in one batch and one by one: the newest counts."""
    types = ["TokenIssued", "TokenActivated", "QueueCompleted", "QueueRestored"]
    for order in itertools.permutations(range(4)):
        for batch in (True, False):
            token = new()
            messages = [box.message(types[i], {"token_id": token, "user_id": new(), "concert_id": "5"}, seq=100 + i) for i in order]
            for m in [messages] if batch else [[m] for m in messages]:
                box.tell(*m)
            assert box.db.one("SELECT state FROM reservation.token_copy WHERE token_id = %s", (token,)) == "ACTIVE", order


def test_odd_tokens(box):
    """A token that is given back while it waits is WAITING, and not ACTIVE; QueueExpired of a payment may name no token."""
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    ann.at_queue("QueueCompleted")
    ann.at_queue("QueueRestored", state="WAITING", active_at="2035-01-01T00:00:00Z")
    assert ann.ask(schedule, seats[:1]).problem == "not-your-turn"
    ann.at_queue("QueueRestored", state="ACTIVE")
    (held,) = ann.hold(schedule, seats[:1])
    pid = new()
    box.tell(box.command("ConfirmReservation", {"payment_id": pid, "user_id": ann.id, "reservation_ids": [held]}, pid))
    box.tell(box.message("QueueExpired", {"token_id": None, "user_id": ann.id, "concert_id": concert, "payment_id": pid}))
    assert box.state(held) == "CONFIRMED"
    box.check()


def test_what_is_forgotten(box):
    """Tokens that ended a week ago, and what became of them unless a reservation's history tells it; sagas that nobody answered."""
    concert, schedule, seats = box.concert()
    ann, bob, eve = (box.person(concert) for _ in range(3))
    ann.hold(schedule, seats[:1])
    for p in (ann, bob):
        p.at_queue("QueueExpired")
    tokens = [ann.token_id, bob.token_id, eve.token_id]

    def kept(table):
        return [t for t in tokens if box.db.one(f"SELECT count(*) FROM reservation.{table} WHERE token_id = %s", (t,))]
    box.db.query("SELECT reservation.forget()")
    assert kept("token_copy") == tokens == kept("token_history")
    box.db.query("UPDATE reservation.token_copy SET at = now() - interval '8 days' WHERE token_id = ANY (%s::uuid[])", (tokens,))
    saga = new()
    box.db.query("SELECT saga.expect(%s, 'book')", (saga,))
    box.db.query("UPDATE saga.copy SET at = now() - interval '8 days' WHERE saga_id = %s", (saga,))
    box.db.query("SELECT reservation.forget()")
    assert kept("token_copy") == [eve.token_id] and kept("token_history") == [ann.token_id, eve.token_id]
    assert box.db.one("SELECT count(*) FROM saga.copy WHERE saga_id = %s", (saga,)) == 0


def test_batches_side_by_side(box):
    """Two batches that concern the same reservations in opposite order: one waits for the other, none is the victim of a deadlock."""
    concert, schedule, seats = box.concert()
    ann = box.person(concert)
    a, b = sorted(ann.hold(schedule, seats[:2]))
    with box.db.connect() as one, box.db.connect() as two, ThreadPoolExecutor(1) as pool:
        one.autocommit = two.autocommit = False
        with one.cursor() as c:     # the first of its batch is done, the second not yet: a trigger stops it there
            c.execute("SELECT pg_advisory_xact_lock(4711)")
        box.db.query("CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS"
                     " $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$;"
                     "CREATE TRIGGER stop BEFORE UPDATE ON reservation.reservation FOR EACH ROW EXECUTE FUNCTION public.stop()")
        try:
            slow = pool.submit(lambda: box.tell(*[box.message("TimerFired", {"kind": "hold", "subject": {"reservation_id": i}}) for i in (a, b)], on=two))
            wait_until(lambda: box.db.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted") == 1, 20, "the first")
            locked = box.db.query("SELECT reservation_id::text FROM (SELECT reservation_id FROM reservation.reservation WHERE reservation_id = ANY (%s::uuid[])"
                                  " FOR UPDATE SKIP LOCKED) AS free", ([a, b],))
            one.commit()
            slow.result(60)
            two.commit()
        finally:
            one.rollback()
            box.db.query("DROP TRIGGER stop ON reservation.reservation; DROP FUNCTION public.stop()")
    assert locked == [] and box.state(a) == box.state(b) == "EXPIRED"


def test_one_statement_changes_a_status():
    """Nobody but reservation.change(): a new way would forget the history, or the events."""
    for name in ("schema", "consumer"):
        with open(os.path.join(servers.ROOT, "producers", "reservation", name + ".sql"), encoding="utf-8") as f:
            text = f.read()
        updates = [part.split("WHERE")[0] for part in text.split("UPDATE reservation.reservation AS")[1:]]
        assert sum("status =" in u for u in updates) == (name == "schema")


def test_config(cli):
    program = servers.Cli("postrider-reservation")
    folder = os.path.join(servers.ROOT, "etc", "services")
    sample = os.path.join(folder, "reservation.cfg")
    assert program("-c", sample, "--check").returncode == 0
    with open(sample, encoding="utf-8") as f:
        assert program("--print-sample").stdout == f.read()
    assert program("-c", sample, "-o", "hold.for=0s", "--check").returncode == 78
    for other in ("consumer", "relay"):
        assert servers.Cli(f"postrider-{other}")("-c", os.path.join(folder, f"reservation-{other}.cfg"), "--check").returncode == 0
