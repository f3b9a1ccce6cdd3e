"""tests/e2e/test_flows.py -- flows F1 to F6 over all services, by real HTTP, Kafka, Postgres and Redis: each way that
works, each step's refusal and its undo, each part's outage. After every test nothing is under way and the audit balances.
"""
import contextlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import audit
import pytest
import servers
from stack import stack  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(400)
STACK = {"options": {"queue": ["admission.every=100ms", "redis.timeout=10s"]}}
MODES = ("saga", "choreography", "hybrid")
PRICE = 1000


@pytest.fixture(autouse=True)
def balanced(stack, request):  # noqa: F811
    """Whatever a test did: all programs run, nothing is under way, everything balances."""
    stack.expect = {}
    yield
    stack.restart(*[n for n, p in stack.process.items() if not p.running()])
    if not getattr(request.node, "failed", True):
        audit.check(stack, 120, stack.expect)


@pytest.fixture
def hall(stack):  # noqa: F811
    """A concert of its own with six seats."""
    return Hall(stack)


class Hall:
    def __init__(self, stack, seats=6, price=PRICE):  # noqa: F811
        self.stack = stack
        self.concert, (self.schedule,) = stack.open_concert(f"concert {uuid.uuid4().hex[:6]}", seats, price)
        self.seats = [r[0] for r in stack.db("concert").query(
            "SELECT seat_id::text FROM concert.seat WHERE schedule_id = %s ORDER BY seat_id", (self.schedule,))]

    def guest(self, points=10 * PRICE):
        return self.stack.person(points=points).admitted(self.concert)

    def holder(self, n=1, points=10 * PRICE, first=0):
        """A guest who holds n seats; and the reservations."""
        g = self.guest(points)
        return g, g.hold(self.schedule, self.seats[first:first + n])

    def state(self, i=0):
        return self.stack.db("concert").one("SELECT state FROM concert.seat WHERE seat_id = %s", (self.seats[i],))

    def becomes(self, state, i=0):
        wait_until(lambda: self.state(i) == state, 60, f"seat {i} to be {state}", interval=0.01)

    @property
    def status(self):
        return self.stack.db("concert").one("SELECT status FROM concert.concert WHERE concert_id = %s", (self.concert,))


@contextlib.contextmanager
def without(stack, *names):  # noqa: F811
    """These do not run meanwhile."""
    stack.stop(*names)
    try:
        yield
    finally:
        stack.restart(*names)


def ended(guest, paid, ids, state="CONFIRMED"):
    for i in ids:
        guest.wait_reservation(i, state)
    guest.wait_payment(paid["payment_id"], "COMPLETED" if state == "CONFIRMED" else "CANCELLED")


# ---------------------------------------------------------------- F1: queue and hold

def test_from_the_queue_to_a_hold(stack, hall):  # noqa: F811
    """202 and REQUESTED, then HELD with a deadline; the seat map, the message, the timer and the history say so too."""
    g = hall.guest()
    place = g.place().json
    assert place["state"] == "AVAILABLE" and place["position"] == 0, place
    answer = g.known(lambda: g.ask(hall.schedule, hall.seats[:2]))
    assert answer.status == 202 and answer.headers["Location"] == f"/reservations/{answer.json['reservation_ids'][0]}"
    for i in answer.json["reservation_ids"]:
        r = g.wait_reservation(i, "HELD")
        assert r["expires_at"] and r["price"] == PRICE
    hall.becomes("HELD", 0)
    hall.becomes("HELD", 1)
    assert len(g.told("held")) >= 1
    past = g.get("reservation", f"/reservations/{answer.json['reservation_ids'][0]}/history").json["history"]
    states = [h["state"] for h in past]
    assert states[-2:] == ["REQUESTED", "HELD"] and "ACTIVE" in states[:-2], past
    wait_until(lambda: stack.db("scheduler").one("SELECT count(*) FROM scheduler.timer WHERE state = 'ARMED' AND timer_id = ANY (%s::uuid[])",
                                                 (answer.json["reservation_ids"],)) == 2, 60, "two timers")


def test_not_in_the_queue_not_its_turn_anothers(stack, hall):  # noqa: F811
    g, other = hall.guest(), stack.person()
    other.queue_token = g.queue_token
    assert other.known(lambda: other.ask(hall.schedule, hall.seats[:1])).status == 403
    elsewhere = Hall(stack)
    assert g.known(lambda: g.ask(elsewhere.schedule, elsewhere.seats[:1])).status == 403
    g.queue_token = g.token
    assert g.ask(hall.schedule, hall.seats[:1]).status == 401


def test_two_guests_one_seat(stack, hall):  # noqa: F811
    """Both are told 202 at the same moment; one holds the seat, the other one is told that it is taken."""
    guests = [hall.guest(), hall.guest()]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda g: g.known(lambda: g.ask(hall.schedule, hall.seats[:1])), guests))
    assert {a.status for a in answers} <= {202, 409} and any(a.status == 202 for a in answers), answers
    ends = [g.wait_reservation(a.json["reservation_ids"][0], "HELD", "REJECTED")["state"] if a.status == 202 else "REJECTED"
            for g, a in zip(guests, answers)]
    assert sorted(ends) == ["HELD", "REJECTED"]
    loser, answer = next((g, a) for g, a, e in zip(guests, answers, ends) if e == "REJECTED")
    if answer.status == 202:
        assert loser.told("rejected", "refresh")


def test_given_back(hall):
    g, ids = hall.holder()
    hall.becomes("HELD")
    assert g.call("reservation", "DELETE", f"/reservations/{ids[0]}").status == 200
    hall.becomes("AVAILABLE")
    other, again = hall.holder()
    assert other.reservation(again[0])["state"] == "HELD"


@contextlib.contextmanager
def short_holds(stack, span):  # noqa: F811
    db = stack.db("reservation")
    db.query("UPDATE reservation.setting SET hold_for = %s", (span,))
    try:
        yield
    finally:
        db.query("UPDATE reservation.setting SET hold_for = '5 minutes'")


def test_time_is_over(stack, hall):  # noqa: F811
    """The timer ends the hold; the token is untouched: the guest tries again with it."""
    with short_holds(stack, "1 second"):
        g = hall.guest()
        ids = g.reserve(hall.schedule, hall.seats[:1])
        g.wait_reservation(ids[0], "HELD", "EXPIRED")  # a busy machine does not show HELD for a second
    g.wait_reservation(ids[0], "EXPIRED")
    hall.becomes("AVAILABLE")
    assert g.told("expired")
    stack.settle()  # the payment service has heard of it, too
    answer = g.ask_pay(ids)
    assert answer.status == 409, answer
    assert g.hold(hall.schedule, hall.seats[:1])


def test_the_scheduler_is_away(stack, hall):  # noqa: F811
    """Held seats stay held while no timer fires; on its return the overdue ones end at once."""
    with without(stack, "scheduler-consumer"), short_holds(stack, "500 milliseconds"):
        g, ids = hall.holder()
        hall.becomes("HELD")
    g.wait_reservation(ids[0], "EXPIRED")
    hall.becomes("AVAILABLE")


# ---------------------------------------------------------------- F2, F3, F5: pay

@pytest.mark.parametrize("mode", MODES)
def test_pay(hall, mode):
    """Two seats by one payment: money, reservations, token, seats, message, receipt; only the answer differs."""
    g, ids = hall.holder(2)
    paid = g.pay(ids, mode)
    assert paid["state"] in ("PENDING", "PROCESSING"), paid
    ended(g, paid, ids)
    assert g.balance() == 8 * PRICE and g.payment(paid["payment_id"])["amount"] == 2 * PRICE
    hall.becomes("RESERVED", 0)
    hall.becomes("RESERVED", 1)
    assert g.told("paid")
    if mode != "hybrid":
        assert g.wait_saga(paid["payment_id"], "COMPLETED")["steps"]
    assert g.call("reservation", "DELETE", f"/reservations/{ids[0]}").status == 409
    assert g.ask_pay(ids, mode).status == 409


@pytest.mark.parametrize("mode", MODES)
def test_same_key_pays_once(hall, mode):
    g, ids = hall.holder()
    hall.stack.settle()  # the payment service knows of the hold
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: g.ask_pay(ids, mode, key="once"), range(4)))
    made = {a.json["payment_id"] for a in answers if a.status < 300}
    assert len(made) == 1 and all(a.status in (200, 202, 409) for a in answers), answers
    ended(g, {"payment_id": made.pop()}, ids)
    assert g.balance() == 9 * PRICE


@pytest.mark.parametrize("mode", MODES)
def test_no_money(hall, mode):
    """Nothing was done that must be undone: the seat is still held, and is paid once there is money. The data platform has it too."""
    g, ids = hall.holder(points=0)
    answer = g.known(lambda: g.ask_pay(ids, mode))
    if mode == "hybrid":
        assert answer.status == 409, answer
    else:
        assert answer.status == 202, answer
        g.wait_payment(answer.json["payment_id"], "FAILED", "CANCELLED")
        g.wait_saga(answer.json["payment_id"], "COMPENSATED")
        assert g.told("payment-failed", "undone")
    assert g.wait_reservation(ids[0], "HELD")["state"] == "HELD"
    hall.stack.settle()
    assert hall.stack.db("platform").one("SELECT count(*) FROM platform.fact WHERE type IN ('PaymentFailed', 'PointsRefused')"
                                         " AND payload ->> 'user_id' = %s", (g.id,)), "what was refused is a fact too"
    g.charge(PRICE)
    ended(g, g.pay(ids, mode), ids)
    assert g.balance() == 0


@pytest.mark.parametrize("mode", ["saga", "choreography"])
def test_reservation_is_gone_meanwhile(stack, hall, mode):  # noqa: F811
    """Step RESERVATION refuses: the guest gave the seat back while his payment waited. The money comes back."""
    g, ids = hall.holder()
    with without(stack, "engine-consumer" if mode == "saga" else "reservation-consumer"):
        paid = g.pay(ids, mode)
        assert g.call("reservation", "DELETE", f"/reservations/{ids[0]}").status == 200
    g.wait_saga(paid["payment_id"], "COMPENSATED")
    g.wait_payment(paid["payment_id"], "CANCELLED", "FAILED")
    assert g.balance() == 10 * PRICE
    hall.becomes("AVAILABLE")


def test_token_is_used_up_meanwhile(stack, hall):  # noqa: F811
    """Step QUEUE refuses: two payments of one guest on one token. One stands; of the other everything is undone."""
    g = hall.guest()
    first, second = [g.hold(hall.schedule, [s]) for s in hall.seats[:2]]
    with without(stack, "engine-consumer"):
        paid = [g.known(lambda ids=ids: g.ask_pay(ids)) for ids in (first, second)]
    assert paid[0].status == 202, paid
    paid = [p.json["payment_id"] for p in paid if p.status == 202]
    states = [g.wait_saga(p, "COMPLETED", "COMPENSATED")["state"] for p in paid]
    assert states.count("COMPLETED") == 1, states
    assert g.balance() == 9 * PRICE


def test_seat_is_refused(stack, hall):  # noqa: F811
    """Step CONCERT, the pivot, refuses: the seat has another claim there. All three before it are undone, seat free, token good."""
    g, ids = hall.holder()
    hall.becomes("HELD")
    stack.settle()
    db = stack.db("concert")
    with without(stack, "engine-consumer"):
        paid = g.pay(ids)
        db.query("UPDATE concert.seat SET claim_no = claim_no + 1000 WHERE seat_id = %s", (hall.seats[0],))
    g.wait_saga(paid["payment_id"], "COMPENSATED")
    g.wait_payment(paid["payment_id"], "CANCELLED")
    g.wait_reservation(ids[0], "CANCELLED")
    assert g.balance() == 10 * PRICE
    steps = {s["step"]: s["state"] for s in g.saga(paid["payment_id"])["steps"]}
    assert steps["CONCERT"] == "REFUSED" and {steps[s] for s in ("PAYMENT", "RESERVATION", "QUEUE")} == {"UNDONE"}, steps
    wait_until(lambda: g.place().json["state"] == "AVAILABLE", 60, "the token to be good again")
    stack.settle()
    db.query("UPDATE concert.seat SET claim_no = claim_no - 1000, released = true WHERE seat_id = %s", (hall.seats[0],))
    assert g.told("undone")


@pytest.mark.parametrize("mode,part", [
    *[("saga", p) for p in ("payment-consumer", "reservation-consumer", "queue-consumer", "concert-consumer", "engine-consumer", "payment-relay")],
    *[("hybrid", p) for p in ("reservation-consumer", "concert-consumer", "payment-relay")]])
def test_pay_while_a_part_is_away(stack, hall, mode, part):  # noqa: F811
    """The request is answered all the same; what is missing is done when the part returns."""
    g, ids = hall.holder()
    stack.settle()
    with without(stack, part):
        paid = g.pay(ids, mode)
    ended(g, paid, ids)
    hall.becomes("RESERVED")


def test_choreography_step_by_step(stack, hall):  # noqa: F811
    """Each hand in turn is away, and nobody else does its part; in the end all is done once."""
    g, ids = hall.holder()
    parts = ["payment-consumer", "reservation-consumer", "queue-consumer", "push-consumer"]
    stack.settle()
    stack.stop(*parts)
    paid = g.pay(ids, "choreography")
    for p in parts:
        stack.restart(p)
    ended(g, paid, ids)
    assert g.wait_saga(paid["payment_id"], "COMPLETED")
    assert g.balance() == 9 * PRICE


def test_cancel_a_purchase(hall):
    """The user's cancel: seats free, money back, receipt void; the same operations as an undo."""
    g, ids = hall.holder(2)
    paid = g.pay(ids)
    ended(g, paid, ids)
    hall.stack.settle()
    answer = g.known(lambda: g.call("payment", "POST", f"/payments/{paid['payment_id']}/cancel", {}))
    assert answer.status == 202, answer
    p = g.wait_payment(paid["payment_id"], "CANCELLED")
    assert p["refunded_at"]
    for i in ids:
        g.wait_reservation(i, "CANCELLED")
    hall.becomes("AVAILABLE", 0)
    assert g.balance() == 10 * PRICE


@pytest.mark.parametrize("mode", ["saga", "hybrid"])
def test_operator_undoes_a_sale(stack, hall, mode):  # noqa: F811
    """postrider saga undo, long after: everything goes back, last first; of a hybrid sale to what was before, a hold."""
    g, ids = hall.holder()
    paid = g.pay(ids, mode)
    ended(g, paid, ids)
    stack.settle()
    db = stack.db("engine")
    wait_until(lambda: db.query("SELECT 1 FROM saga.instance WHERE id = %s AND state = 'COMPLETED'", (paid["payment_id"],)), 60,
               "the saga to be over")
    servers.Cli(variant=stack.variant).run("saga", "undo", paid["payment_id"], "--yes", "--wait", "60s", "-c", stack["engine-consumer"].file,
                                            check=True, timeout=120)
    g.wait_payment(paid["payment_id"], "CANCELLED")
    hall.becomes("AVAILABLE" if mode == "saga" else "HELD")
    assert g.balance() == 10 * PRICE


# ---------------------------------------------------------------- F2b: book

def test_book(hall):
    g = hall.guest()
    answer = g.known(lambda: g.book(hall.schedule, hall.seats[:2]))
    assert answer.status == 202, answer
    g.wait_saga(answer.json["saga_id"], "COMPLETED", service="reservation")
    for i in answer.json["reservation_ids"]:
        g.wait_reservation(i, "CONFIRMED")
    assert g.balance() == 8 * PRICE
    other = hall.guest()
    assert other.known(lambda: other.book(hall.schedule, hall.seats[:1])).status == 409


def test_book_without_money(hall):
    """A refused payment gives the seats back at once: the next guest has them."""
    g = hall.guest(points=0)
    answer = g.known(lambda: g.book(hall.schedule, hall.seats[:1]))
    assert answer.status == 202, answer
    g.wait_saga(answer.json["saga_id"], "COMPENSATED", service="reservation")
    g.wait_reservation(answer.json["reservation_ids"][0], "CANCELLED", "REJECTED")
    hall.becomes("AVAILABLE")
    other, ids = hall.holder()
    ended(other, other.pay(ids), ids)


# ---------------------------------------------------------------- SOLD_OUT

def test_sold_out_and_back(stack, hall):  # noqa: F811
    """With the last seat, by two guests side by side; and back when one of them cancels."""
    (a, mine), (b, yours) = hall.holder(3), hall.holder(3, first=3)
    with ThreadPoolExecutor(2) as pool:
        paid = list(pool.map(lambda x: x[0].pay(x[1], x[2]), ((a, mine, "saga"), (b, yours, "choreography"))))
    ended(a, paid[0], mine)
    ended(b, paid[1], yours)
    wait_until(lambda: hall.status == "SOLD_OUT", 60, "the concert to be sold out")
    wait_until(lambda: [c for c in a.get("concert", "/concerts").json["concerts"]
                        if c["concert_id"] == hall.concert and c["status"] == "SOLD_OUT"], 60, "the list to say so")
    stack.settle()
    assert a.call("payment", "POST", f"/payments/{paid[0]['payment_id']}/cancel", {}).status == 202
    wait_until(lambda: hall.status == "AVAILABLE", 60, "seats to be there again")


# ---------------------------------------------------------------- F4: orders

@pytest.mark.parametrize("mode", ["saga", "choreography"])
def test_order(stack, mode):  # noqa: F811
    g = stack.person(points=5000)
    order = g.order(1200, 800)
    answer = g.pay_order(order, mode)
    assert answer.status == 202, answer
    g.wait_order(order, "PAID")
    assert g.balance() == 3000
    assert g.pay_order(order, mode).status == 409


@pytest.mark.parametrize("mode", ["saga", "choreography"])
def test_order_without_money(stack, mode):  # noqa: F811
    g = stack.person(points=100)
    order = g.order(1200)
    assert g.pay_order(order, mode).status == 202
    g.wait_order(order, "PAYING", "CREATED", "CANCELLED")
    stack.settle()
    g.wait_order(order, "CREATED", "CANCELLED")
    assert g.balance() == 100
    g.charge(2000)
    if g.get("order", f"/orders/{order}").json["state"] == "CREATED":
        assert g.pay_order(order, mode).status == 202
        g.wait_order(order, "PAID")
        assert g.balance() == 900


@pytest.mark.parametrize("mode", ["saga", "choreography"])
def test_order_of_a_locked_user(stack, mode):  # noqa: F811
    """Step USER refuses at the owner, although the order's copy may not know yet."""
    g = stack.person(points=5000)
    order = g.order(1200)
    stack.settle()
    with without(stack, "user-relay"):
        stack.db("user").query('SELECT "user".set_state(%s, \'LOCKED\')', (g.id,))
        assert g.pay_order(order, mode).status == 202
    stack.settle()
    assert g.wait_order(order, "CREATED", "CANCELLED")
    assert g.balance() == 5000


@pytest.mark.parametrize("part", ["order-consumer", "user-consumer", "payment-consumer"])
def test_order_while_a_part_is_away(stack, part):  # noqa: F811
    g = stack.person(points=5000)
    order = g.order(1200)
    stack.settle()
    with without(stack, part):
        assert g.pay_order(order).status == 202
    g.wait_order(order, "PAID")


# ---------------------------------------------------------------- F6: the data platform

def test_nobody_waits_for_the_platform(stack, hall):  # noqa: F811
    """It is down: tickets are sold all the same. Back again, it has every fact, once; a replay adds none."""
    g, ids = hall.holder()
    with without(stack, "platform"):
        ended(g, g.pay(ids), ids)
    stack.settle()
    facts = stack.db("platform").one("SELECT count(*) FROM platform.fact")
    servers.Cli(variant=stack.variant).run("replay", "start", "--all", "--watch", "-t", "outbox.event.payment", "-c",
                                            stack["platform-consumer"].file, check=True, timeout=180)
    assert stack.db("platform").one("SELECT count(*) FROM platform.fact") == facts
    counts = stack.api("platform").raw("GET", "/counts").json
    assert "PaymentCompleted" in json.dumps(counts)
