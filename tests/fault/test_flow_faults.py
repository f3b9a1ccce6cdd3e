"""tests/fault/test_flow_faults.py -- all services at work while programs die and servers stop; the races that must come
out right. Whatever happens, in the end nothing is under way and the audit balances.
"""
import itertools
import random
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import audit
import pytest
import servers
import sink_torture
from demo_crowd import Caller, Crowd, Refused
from gateway import Outside
from sink import temp_files, wrong, wrong_with_manifests
from stack import SINK, stack  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(600)
STACK = {"options": {"queue": ["admission.every=100ms"]}}
PRICE = 1000
HTTP = ("user", "concert", "queue", "reservation", "payment", "order")


@pytest.fixture(autouse=True)
def balanced(stack, request):  # noqa: F811
    yield
    stack.restart(*[n for n, p in stack.process.items() if not p.running()])
    if not getattr(request.node, "failed", True):
        audit.check(stack, 120)


class Hall:
    def __init__(self, stack, seats=8):  # noqa: F811
        self.stack = stack
        self.concert, (self.schedule,) = stack.open_concert(f"concert {uuid.uuid4().hex[:6]}", seats, PRICE)
        self.seats = [r[0] for r in stack.db("concert").query(
            "SELECT seat_id::text FROM concert.seat WHERE schedule_id = %s ORDER BY seat_id", (self.schedule,))]

    def guest(self, points=10 * PRICE):
        return self.stack.person(points=points).admitted(self.concert)

    def holder(self, *which, points=10 * PRICE):
        g = self.guest(points)
        return g, g.hold(self.schedule, [self.seats[i] for i in which or (0,)])

    def left(self):
        return self.stack.db("concert").one("SELECT count(*) FROM concert.seat WHERE schedule_id = %s AND state <> 'RESERVED'",
                                            (self.schedule,))


@pytest.fixture
def hall(stack):  # noqa: F811
    return Hall(stack)


def together(*calls):
    """All at the same moment; their results."""
    gate = threading.Barrier(len(calls))

    def one(call):
        gate.wait()
        return call()
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


# ---------------------------------------------------------------- deaths

def test_every_program_dies_once(stack):  # noqa: F811
    """kill -9 of each, one after the other, in the middle of what a crowd asks of them. Who asks again under the same key is
    served, once; nobody gives up."""
    places = [(c, s) for c, (s,) in (stack.open_concert(f"hall {i}", 60, PRICE) for i in range(2))]
    crowd = Crowd({n: stack[n].port for n in HTTP}, places, comes=5, at_once=8, seed=7, patience=90)
    crowd.start()
    names = list(stack.process)
    random.Random(11).shuffle(names)
    for name in names:
        before = crowd.count["guests"]
        wait_until(lambda: crowd.count["guests"] > before or crowd.here >= 8, 60, "guests to come")
        stack.kill(name)
        stack[name].start()
    for name in names:
        stack[name].wait_ready(120)
    crowd.stop(180)
    assert crowd.gone(), crowd.count
    assert crowd.count["gave up"] == 0 and crowd.count["paid"] > 0, (crowd.count, list(crowd.last_refusals))


def test_every_event_is_in_one_file(stack):  # noqa: F811
    """A crowd buys while the sink of the platform's files dies at each of its points, and Postgres and Kafka die once. In the end
    each record of each topic of events is in one file, as it is: reconcile says so, and so do the files."""
    places = [(c, s) for c, (s,) in (stack.open_concert(f"hall {i}", 60, PRICE) for i in range(2))]
    crowd = Crowd({n: stack[n].port for n in HTTP}, places, comes=5, at_once=8, seed=8, patience=90)
    crowd.start()
    p = stack[SINK]
    for point in sink_torture.Files.points:
        p.kill9()
        p.start(fault=f"{point}:3")
        assert p.wait(60) == -signal.SIGKILL, servers.tail(p.log)
        p.start()
        if point == "sink_recorded_before_publish":
            stack.pg.restart("immediate")
        if point == "sink_position_before_memory":
            stack.kafka.kill()
            stack.kafka.start()
    crowd.stop(180)
    assert crowd.gone() and crowd.count["paid"] > 0, crowd.count
    a = audit.check(stack, 180)
    found = a.reconciled["sources"][0]
    assert (found["missing"], found["twice"]) == (0, 0) and found["records"] == a.reconciled["records"] > 100
    assert not wrong(stack.platform_dir, stack.kafka, a.reconciled["topics"]) and not wrong_with_manifests(stack.platform_dir)
    assert not temp_files(stack.platform_dir)


@pytest.mark.parametrize("service", HTTP)
def test_the_others_answer(stack, hall, service):  # noqa: F811
    """Service, consumer and relay of one are stopped. Every other one does its work; what needs the missing one waits, and is
    done when it is back."""
    payer, ids = hall.holder(0)
    asker = hall.guest()
    stack.settle()
    stack.stop(f"{service}*")
    done = {}

    def others(name, call, good):
        if name != service:
            done[name] = call()
            assert done[name].status == good, (name, done[name])
    others("user", lambda: payer.call("user", "POST", "/login", {"email": payer.email, "password": payer.password}), 200)
    others("concert", lambda: payer.get("concert", f"/schedules/{hall.schedule}/seats"), 200)
    others("queue", asker.place, 200)
    others("reservation", lambda: asker.known(lambda: asker.ask(hall.schedule, hall.seats[1:2])), 202)
    others("payment", lambda: payer.known(lambda: payer.ask_pay(ids)), 202)
    others("order", lambda: payer.call("order", "POST", "/orders", {"items": [{"sku": "a", "quantity": 1, "unit_price": 5}]}), 201)
    if "order" in done:
        order = done["order"].json["order_id"]
        assert payer.pay_order(order).status == 202
    stack.restart(f"{service}*")
    if "reservation" in done:
        asker.wait_reservation(done["reservation"].json["reservation_ids"][0], "HELD")
    if "payment" in done:
        payer.wait_payment(done["payment"].json["payment_id"], "COMPLETED")
        payer.wait_reservation(ids[0], "CONFIRMED")
    if "order" in done:
        payer.wait_order(order, "PAID")


def test_without_redis(stack, hall):  # noqa: F811
    """Concerts are shown from Postgres; what is paid is paid; the queue goes on when Redis is back, empty as it is."""
    payer, ids = hall.holder(0, 1)
    new = stack.person()
    stack.redis.kill()
    try:
        assert len(payer.seats(hall.schedule, None)) == 8
        paid = payer.pay(ids)
        payer.wait_payment(paid["payment_id"], "COMPLETED")
        for i in ids:
            payer.wait_reservation(i, "CONFIRMED")
        answer = new.call("queue", "POST", "/queue/tokens", {"concert_id": hall.concert})
        assert answer.status == 503, answer
    finally:
        stack.redis.start()
    late = stack.person(points=PRICE)
    wait_until(lambda: late.call("queue", "POST", "/queue/tokens", {"concert_id": hall.concert}).status in (200, 201), 90, "the queue to serve")
    late.admitted(hall.concert)
    ids = late.hold(hall.schedule, hall.seats[2:3])
    late.wait_payment(late.pay(ids)["payment_id"], "COMPLETED")


def test_redis_forgets(stack, hall):  # noqa: F811
    """FLUSHALL while a crowd waits: everybody keeps his turn, in the order in which they came."""
    stack.set("queue", "admission.users=1", "admission.every=1s")
    try:
        guests = [stack.person() for _ in range(8)]
        for g in guests:
            g.line_up(hall.concert)
        stack.redis.flush()
        turns = {}

        def all_had_it():
            for g in guests:
                if g not in turns and g.place().json.get("state") == "AVAILABLE":
                    turns[g] = len(turns)
            return len(turns) == len(guests)
        wait_until(all_had_it, 90, "everybody's turn", interval=0.05)
        at = [r[0] for r in stack.db("queue").query("SELECT user_id::text FROM queue.queue_token WHERE concert_id = %s"
                                                    " ORDER BY activated_at, number", (hall.concert,))]
        assert at == [g.id for g in guests]
    finally:
        stack.set("queue")


# ---------------------------------------------------------------- races

def test_pay_against_expiry(stack, hall):  # noqa: F811
    """At the same instant: either it is paid and stays, or it is over and costs nothing."""
    db = stack.db("reservation")
    db.query("UPDATE reservation.setting SET hold_for = '4 seconds'")

    def holder(i):
        g = hall.guest()
        ids = g.reserve(hall.schedule, hall.seats[i:i + 1])
        g.wait_reservation(ids[0], "HELD", "EXPIRED")  # it may be over before anybody looks
        return g, ids
    try:
        holders = [holder(i) for i in range(6)]
    finally:
        db.query("UPDATE reservation.setting SET hold_for = '5 minutes'")
    ends = [db.one("SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM reservation.reservation WHERE reservation_id = %s", (ids[0],))
            for _, ids in holders]
    modes = itertools.cycle(("saga", "choreography", "hybrid"))
    start = time.monotonic()

    def pay(who, ids, end, mode, i):
        wait_until(lambda: time.monotonic() - start >= end - 0.05 + 0.02 * i, 60, "the instant", interval=0.001, interval_max=0.005)
        return who.ask_pay(ids, mode)
    answers = together(*[lambda a=(g, ids, e, next(modes), i): pay(*a) for i, ((g, ids), e) in enumerate(zip(holders, ends))])
    assert all(a.status in (200, 202, 409) for a in answers), answers
    stack.settle()
    for (g, ids), a in zip(holders, answers):
        state = g.reservation(ids[0])["state"]
        assert (state, g.balance()) in (("CONFIRMED", 9 * PRICE), ("EXPIRED", 10 * PRICE), ("CANCELLED", 10 * PRICE)), (state, a)


def test_many_guests_few_seats(stack, hall):  # noqa: F811
    """Each of two seats is asked for by six at the same moment, by holds and bookings: each goes to one."""
    guests = [hall.guest() for _ in range(6)]
    answers = together(*[lambda g=g, i=i: (g.book if i % 3 == 0 else g.ask)(hall.schedule, hall.seats[:2] if i % 2 else hall.seats[1::-1])
                         for i, g in enumerate(guests)])
    assert {a.status for a in answers} <= {202, 409}
    stack.settle()
    live = stack.db("reservation").query("SELECT seat_id::text, count(DISTINCT user_id) FROM reservation.reservation WHERE schedule_id = %s AND"
                                         " status IN ('HELD', 'CONFIRMED') GROUP BY seat_id", (hall.schedule,))
    assert sorted(live) == sorted((s, 1) for s in hall.seats[:2]), live


def test_two_payments_of_one_reservation(stack, hall):  # noqa: F811
    """By all three ways at once: one of them pays, once."""
    g, ids = hall.holder(0)
    answers = together(*[lambda m=m: g.ask_pay(ids, m) for m in ("saga", "choreography", "hybrid", "saga")])
    assert sum(a.status < 300 for a in answers) == 1 and {a.status for a in answers} <= {200, 202, 409}, answers
    g.wait_reservation(ids[0], "CONFIRMED")
    assert g.balance() == 9 * PRICE


def test_money_for_one_of_two(stack, hall):  # noqa: F811
    """Two payments of one user who can pay one of them."""
    g = hall.guest(PRICE)
    first, second = (g.hold(hall.schedule, [s]) for s in hall.seats[:2])
    together(lambda: g.ask_pay(first, "saga"), lambda: g.ask_pay(second, "hybrid"))
    stack.settle()
    assert sorted(g.reservation(i[0])["state"] == "CONFIRMED" for i in (first, second)) == [False, True]
    assert g.balance() == 0


def test_charge_and_pay_together(stack, hall):  # noqa: F811
    g, ids = hall.holder(0, 1)
    together(*[lambda: g.charge(7) for _ in range(6)], lambda: g.ask_pay(ids))
    g.wait_reservation(ids[0], "CONFIRMED")
    assert g.balance() == 8 * PRICE + 42
    past = g.get("payment", f"/balances/{g.id}/history").json
    assert len(next(iter(v for v in past.values() if isinstance(v, list)))) == 8, past


@pytest.mark.parametrize("mode", ["saga", "choreography", "hybrid"])
def test_cancel_during_the_payment(stack, hall, mode):  # noqa: F811
    """The reservation is given back, and the payment cancelled, while it is under way: all or nothing. A hybrid one whose
    reservation is gone waits for an operator, who takes all of it back."""
    g, ids = hall.holder(0)
    paid = g.pay(ids, mode)
    together(lambda: g.call("reservation", "DELETE", f"/reservations/{ids[0]}"),
             lambda: g.call("payment", "POST", f"/payments/{paid['payment_id']}/cancel", {}))
    if mode == "hybrid":
        state = g.wait_saga(paid["payment_id"], "COMPLETED", "COMPENSATED", "STUCK")["state"]
        if state == "STUCK":
            servers.Cli(variant=stack.variant).run("saga", "undo", paid["payment_id"], "--yes", "-c", stack["engine-consumer"].file, check=True)
    stack.settle()
    state = g.reservation(ids[0])["state"]
    assert (state == "CONFIRMED") == (g.balance() == 9 * PRICE), (state, g.balance())


def test_token_ends_mid_saga(stack, hall):  # noqa: F811
    """Its time is over between the request and step QUEUE: everything goes back, or it was in time; nothing between."""
    stack.set("queue", "admission.active_for=40s", "admission.every=100ms")
    try:
        g, ids = hall.holder(0)
        stack.stop("engine-consumer")
        answer = g.known(lambda: g.ask_pay(ids), 30)
        assert answer.status == 202, answer
        wait_until(lambda: g.place().json.get("state") != "AVAILABLE", 120, "the token's end")
        stack.restart("engine-consumer")
        saga = g.wait_saga(answer.json["payment_id"], "COMPENSATED", "COMPLETED")
        stack.settle()
        assert g.balance() == (9 if saga["state"] == "COMPLETED" else 10) * PRICE
    finally:
        stack.set("queue")


def test_sold_out_against_undo(stack):  # noqa: F811
    """The last seats are sold while others are given back: the concert is SOLD_OUT exactly when no seat is left."""
    hall = Hall(stack, 4)
    sold = [hall.holder(i) for i in range(2)]
    paid = [g.pay(ids) for g, ids in sold]
    for (g, ids), p in zip(sold, paid):
        g.wait_reservation(ids[0], "CONFIRMED")
    rest = [hall.holder(i) for i in (2, 3)]
    stack.settle()
    together(*[lambda x=x: x[0].ask_pay(x[1]) for x in rest],
             *[lambda g=g, p=p: g.call("payment", "POST", f"/payments/{p['payment_id']}/cancel", {}) for (g, _), p in zip(sold, paid)])
    stack.settle()
    assert hall.left() == 2


# ---------------------------------------------------------------- what is outside

def test_the_gateway_is_away(stack):  # noqa: F811
    """It answers with errors, and a payment waits; it is gone for good, and each way of paying is undone: no money kept, no
    seat held back, nothing approved that does not stand. Back again, the next one pays."""
    hall = Hall(stack, 6)
    with Outside() as outside:
        # Who answers has time for it; who does not is given up soon.
        patient = f"gateway.url={outside.url}", "gateway.give_up=60s", "gateway.timeout=5s", "gateway.backoff=50ms", "gateway.late=60s"
        stack.set("payment", *patient)
        try:
            outside.plan["approve"] = ["error"] * 3
            g, ids = hall.holder(0)
            g.pay(ids)
            g.wait_reservation(ids[0], "CONFIRMED")
            assert outside.count("approve") >= 4 and g.balance() == 9 * PRICE
            stack.settle()
            stack.set("payment", f"gateway.url={outside.url}", "gateway.give_up=3s", "gateway.timeout=1s", "gateway.backoff=50ms", "gateway.late=1s")
            outside.plan["approve"] = ["silent"] * 1000
            gone = [(*hall.holder(n), mode) for n, mode in ((1, "saga"), (2, "choreography"))]
            booker = hall.guest()
            asked = [g.pay(ids, mode)["payment_id"] for g, ids, mode in gone]
            booked = booker.known(lambda: booker.book(hall.schedule, [hall.seats[3]]))
            assert booked.status == 202, booked
            for (g, _, _), p in zip(gone, asked):
                g.wait_payment(p, "FAILED", "CANCELLED")
            booker.wait_saga(booked.json["saga_id"], "COMPENSATED", service="reservation")
            stack.settle()
            assert [g.balance() for g in [x[0] for x in gone] + [booker]] == [10 * PRICE] * 3
            assert hall.left() == 5 and len(outside.charged()) == 1
            stack.set("payment", *patient)
            outside.plan["approve"] = []
            g, ids = hall.holder(4)
            g.pay(ids)
            g.wait_reservation(ids[0], "CONFIRMED")
            stack.settle()
            assert len(outside.charged()) == 2
        finally:
            stack.set("payment")


# ---------------------------------------------------------------- a flash sale

class Buyer:
    """Wants one seat, tries others when it is taken, and ends when there is none."""

    def __init__(self, ports, n):
        self.caller, self.rnd, self.n = Caller(ports, patience=120), random.Random(n), n
        self.call = self.caller.call

    def buy(self, hall):
        try:
            return self._buy(hall)
        finally:
            self.caller.close()

    def _buy(self, hall):
        email = f"{uuid.uuid4().hex}@example.org"
        user = self.call("user", "POST", "/users", {"email": email, "password": "a-good-password", "name": f"buyer {self.n}"})["user_id"]
        token = self.call("user", "POST", "/login", {"email": email, "password": "a-good-password"})["access_token"]
        self.call("payment", "POST", f"/balances/{user}/charge", {"amount": PRICE}, token)
        place = self.call("queue", "POST", "/queue/tokens", {"concert_id": hall.concert}, token)["token"]
        wait_until(lambda: self.call("queue", "GET", "/queue/status", token=place)["state"] == "AVAILABLE", 120, "the turn", interval=0.1)
        while True:
            free = [s["seat_id"] for s in self.call("concert", "GET", f"/schedules/{hall.schedule}/seats?state=available")["seats"]]
            if not free:
                return "none"
            ids = self._hold(hall, self.rnd.choice(free), place, token)
            if ids:
                break
        self.call("payment", "POST", f"/payments?mode={('saga', 'choreography', 'hybrid')[self.n % 3]}", {"reservation_ids": ids, "token": place}, token)
        wait_until(lambda: self._state(ids[0], token) == "CONFIRMED", 120, "the ticket", interval=0.05)
        return "paid"

    def _hold(self, hall, seat, place, token):
        """The reservation that holds it; None: somebody else has it."""
        try:
            ids = self.call("reservation", "POST", "/reservations", {"schedule_id": hall.schedule, "seat_ids": [seat], "queue_token": place}, token)["reservation_ids"]
        except Refused as e:
            assert e.slug == "seat-taken", e
            return None
        wait_until(lambda: self._state(ids[0], token) in ("HELD", "REJECTED"), 120, "the hold", interval=0.02)
        return ids if self._state(ids[0], token) == "HELD" else None

    def _state(self, id, token):
        return self.call("reservation", "GET", f"/reservations/{id}", token=token)["state"]


def test_small_flash_sale(stack):  # noqa: F811
    """50 guests, 12 seats, three instances of the reservation service and three of the queue, one of each killed in the
    middle: every seat is sold once, and nobody who has no seat has paid."""
    for name in ("reservation", "queue"):
        while f"{name}.2" not in stack.process:
            stack.add(name)
    hall = Hall(stack, 12)
    ports = {n: [stack[n].port] for n in HTTP}
    for name in ("reservation", "queue"):
        ports[name] = [stack[f"{name}{i}"].port for i in ("", ".1", ".2")]
    done = {}

    def sale(n):
        done[n] = Buyer({s: p[n % len(p)] for s, p in ports.items()}, n).buy(hall)
    with ThreadPoolExecutor(16) as pool:
        made = [pool.submit(sale, n) for n in range(50)]
        wait_until(lambda: sum(v == "paid" for v in list(done.values())) >= 3, 120, "the sale to be on")
        for name in ("reservation.1", "queue.2"):
            stack.kill(name)
            stack[name].start()
        for f in made:
            f.result(200)
    stack.settle()
    assert hall.left() == 0 and sorted(done.values()) == ["none"] * 38 + ["paid"] * 12
    assert stack.db("payment").one("SELECT sum(amount) FROM payment.payment WHERE state = 'COMPLETED' AND concert_id = %s", (hall.concert,)) == 12 * PRICE
    assert stack.db("concert").one("SELECT status FROM concert.concert WHERE concert_id = %s", (hall.concert,)) == "SOLD_OUT"
