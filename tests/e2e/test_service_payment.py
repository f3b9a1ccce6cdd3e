"""tests/e2e/test_service_payment.py -- postrider-payment over real HTTP and Postgres: balances, payments in each way, what its
consumers' functions make of commands and events in any order, receipts, and a gateway that misbehaves. After each
test every balance is the sum of its ledger."""
import itertools
import json
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
import servers
from fill import fill
from gateway import Outside
from payments import Payments
from tokens import QUEUE, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(300)
ROWS = int(os.environ.get("POSTRIDER_ROWS", 1000000))  # of the test of indexes


@pytest.fixture(scope="module")
def shared(pg_server):
    """One service for the tests that need no options of their own."""
    db = pg_server.createdb(f"payment_{os.getpid()}")
    p = Payments(db)
    yield p
    p.balanced()
    p.close()
    db.drop()


@pytest.fixture
def payments(empty_db):
    made = []

    def make(**kw):
        made.append(Payments(empty_db, **kw))
        return made[-1]
    yield make
    for p in made:
        p.balanced()
        p.close()


@pytest.fixture
def outside():
    with Outside() as o:
        yield o


# ---------------------------------------------------------------- money

@pytest.mark.asan
@pytest.mark.tsan
def test_charge(shared):
    p = shared
    ann = p.person()
    assert p.balance(ann) == 0
    assert p.charge(ann, 500, key="k").json == {"balance": 500}
    assert p.charge(ann, 500, key="k").json == {"balance": 500}
    assert p.charge(ann, 501, key="k").problem == "idempotency-key-reused"
    assert p.charge(ann, 200).json == {"balance": 700}
    page = p.api.get(f"/balances/{ann}/history?limit=1", token=p.token(ann)).json["entries"]
    assert [(e["entry"], e["what"], e["amount"], e["balance"], e["payment_id"]) for e in page] == [(2, "CHARGE", 200, 700, None)]
    rest = p.api.get(f"/balances/{ann}/history?after=2", token=p.token(ann)).json["entries"]
    assert [(e["entry"], e["amount"]) for e in rest] == [(1, 500)]
    event, _ = p.db.query("SELECT payload, headers FROM outbox.event WHERE aggregateid = %s ORDER BY seq DESC LIMIT 1", (ann,))[0]
    assert (event["user_id"], event["amount"], event["balance"]) == (ann, 200, 700)


BAD = [b"", b"{", b"[]", b"null", b'{"amount": 1e}', b'{"amount":1,"amount":2}', b'{"amount":"5"}', b'{"amount":0}',
       b'{"amount":-5}', b'{"amount":1.5}', b'{"amount":1000000000001}', b'{"amount":9223372036854775808}',
       b'{"amount":1e300}', b'{"amount":1e999}', b'{"amount":null}', b'{"amount":true}', b'{"amount":[5]}', b'{}',
       b'{"amount":"5; DROP SCHEMA payment CASCADE; --"}', b'{"amount":"\xff"}']


@pytest.mark.asan
@pytest.mark.parametrize("body", BAD, ids=[repr(b[-30:]) for b in BAD])
def test_bad_charges(shared, body):
    ann = shared.person()
    answer = shared.api.post(f"/balances/{ann}/charge", body, token=shared.token(ann), key="bad")
    assert answer.status in (400, 422), answer
    assert shared.ledger(ann) == [] and shared.balance(ann) == 0


def test_others_balances(shared):
    p = shared
    ann, bob = p.person(10), p.person()
    for path in (f"/balances/{ann}", f"/balances/{ann}/history"):
        assert p.api.get(path, token=p.token(bob)).problem == "not-yours"
        assert p.api.get(path).status == 401
        for what, bad in p.users.forged(ann).items():
            assert p.api.get(path, token=bad or "x").status == 401, what
    assert p.api.post(f"/balances/{ann}/charge", {"amount": 1}, token=p.token(bob)).problem == "not-yours"
    assert p.api.get("/balances/no-uuid", token=p.token(ann)).status == 404
    assert p.balance(ann) == 10


def test_a_full_balance(shared):
    p = shared
    ann = p.person()
    p.db.query("SELECT payment.move(%s, 999999999999999, 'CHARGE', outbox.uuid7())", (ann,))
    assert p.charge(ann, 1).status == 200
    assert p.charge(ann, 1).problem == "balance-too-large"


def test_a_locked_user(shared):
    p = shared
    ann = p.person(5)
    p.send("UserUpdated", {"user_id": ann, "state": "LOCKED"}, "outbox.event.user", {"outbox-seq": "1000002"})
    p.send("UserCreated", {"user_id": ann, "state": "ACTIVE"}, "outbox.event.user", {"outbox-seq": "1000001"})
    assert p.charge(ann, 5).problem == "locked"
    assert p.ask(ann, [p.reservation(ann)]).problem == "locked"
    p.send("UserUpdated", {"user_id": ann, "state": "ACTIVE"}, "outbox.event.user", {"outbox-seq": "1000003"})
    assert p.charge(ann, 5).json == {"balance": 10}


def test_the_ledger_is_kept(shared):
    """Nobody changes what stands there, no row stands there that does not carry on, no balance without its row."""
    p = shared
    ann = p.person(100)
    for wrong in ("UPDATE payment.balance_ledger SET amount = 1", "DELETE FROM payment.balance_ledger", "TRUNCATE payment.balance_ledger",
                  f"UPDATE payment.balance SET balance = balance + 1 WHERE user_id = '{ann}'",
                  f"UPDATE payment.balance SET balance = balance + 1, version = version + 1 WHERE user_id = '{ann}'",
                  f"UPDATE payment.balance SET balance = -1 WHERE user_id = '{ann}'",
                  f"INSERT INTO payment.balance_ledger VALUES ('{ann}', 2, 5, 104, 'CHARGE', outbox.uuid7())",
                  f"INSERT INTO payment.balance_ledger VALUES ('{ann}', 3, 5, 105, 'CHARGE', outbox.uuid7())",
                  f"INSERT INTO payment.balance_ledger VALUES ('{ann}', 2, 5, 105, 'DEDUCT', outbox.uuid7())"):
        with pytest.raises(psycopg2.Error) as e:
            p.db.query(wrong)
        assert e.value.pgcode[:2] == "23", wrong
    assert p.balance(ann) == 100


# ---------------------------------------------------------------- what may be paid

def test_what_cannot_be_paid(shared):
    p = shared
    ann, bob = p.person(10000), p.person()
    held = p.reservation(ann)
    for why, ids, status in (
            ("not-held", [str(uuid.uuid4())], 409),
            ("not-held", [held, str(uuid.uuid4())], 409),
            ("not-held", [p.reservation(ann, status="REQUESTED")], 409),
            ("already-paid", [p.reservation(ann, status="PAID")], 409),
            ("already-paid", [held, p.reservation(ann, status="CONFIRMED")], 409),
            ("hold-over", [p.reservation(ann, status="EXPIRED")], 409),
            ("hold-over", [held, p.reservation(ann, status="CANCELLED")], 409),
            ("hold-expired", [held, p.reservation(ann, expires_at=p.later(-1))], 409),
            ("not-yours", [p.reservation(bob)], 403),
            ("mixed-reservations", [held, p.reservation(bob)], 422),
            ("mixed-reservations", [held, p.reservation(ann, concert_id="8")], 422),
            ("other-concert", [p.reservation(ann, concert_id="8")], 403)):
        answer = p.ask(ann, ids)
        assert (answer.status, answer.problem) == (status, why), (why, answer)
    assert p.api.get("/payments", token=p.token(ann)).json == {"payments": []}
    assert p.db.one("SELECT count(*) FROM outbox.event WHERE payload ->> 'user_id' = %s AND type <> 'PointsCharged'", (ann,)) == 0


@pytest.mark.parametrize("body", [
    {}, {"reservation_ids": []}, {"reservation_ids": ["x"]}, {"reservation_ids": "x"}, {"reservation_ids": [7]},
    {"reservation_ids": [str(uuid.UUID(int=7))] * 2}, {"reservation_ids": [str(uuid.UUID(int=n)) for n in range(21)]},
    {"reservation_ids": [{"$ne": ""}]}, {"reservation_ids": [str(uuid.UUID(int=7))], "token": None},
    {"reservation_ids": [str(uuid.UUID(int=7))], "token": 7}, {"reservation_ids": [str(uuid.UUID(int=7))], "token": "x" * 3000}],
    ids=lambda b: str(b)[:40])
def test_bad_payments(shared, body):
    ann = shared.person()
    token = {"token": shared.queue_token(ann)} if "token" not in body else {}
    assert shared.api.post("/payments", {**body, **token}, token=shared.token(ann)).status == 422


def test_queue_tokens(shared):
    """Forged in every way, another user's, of a turn that is over; the mode is one of three."""
    p = shared
    ann, bob = p.person(5000), p.person()
    held = p.reservation(ann)
    for what, bad in p.queue.forged(ann, concert_id="7").items():
        assert p.ask(ann, [held], token=bad or "x").status == 401, what
    with Issuer(*QUEUE) as stranger:
        assert p.ask(ann, [held], token=stranger.token(ann, concert_id="7")).status == 401
    assert p.ask(ann, [held], token=p.token(ann)).status == 401, "the user's token is none of the queue's"
    assert p.ask(ann, [held], token=p.queue.token(ann)).status == 401, "of no concert"
    assert p.ask(ann, [held], token=p.queue_token(bob)).problem == "not-yours"
    assert p.api.post("/payments", {"reservation_ids": [held], "token": p.queue_token(ann)}, token=p.queue_token(ann)).status == 401
    turn = str(uuid.uuid4())
    p.send("QueueCompleted", {"token_id": turn}, "outbox.event.queue", {"outbox-seq": "1000005"})
    p.send("TokenActivated", {"token_id": turn}, "outbox.event.queue", {"outbox-seq": "1000004"})
    assert p.ask(ann, [held], token=p.queue_token(ann, jti=turn)).problem == "turn-over"
    assert p.ask(ann, [held], mode="credit").status == 422
    p.send("QueueRestored", {"token_id": turn, "state": "ACTIVE"}, "outbox.event.queue", {"outbox-seq": "1000006"})
    p.pay(ann, [held], token=p.queue_token(ann, jti=turn))


def test_a_token_that_waits(shared):
    """The queue refuses to complete it: it is not taken, in no mode, and nothing begins."""
    p = shared
    ann = p.person(5000)
    held, turn = p.reservation(ann), str(uuid.uuid4())
    token = p.queue_token(ann, jti=turn)
    told = [("TokenIssued", None), ("TokenActivated", None), ("QueueRestored", "WAITING")]
    for n, (type, state) in enumerate([(None, None)] + told):
        if type:
            p.send(type, {"token_id": turn, **({"state": state} if state else {})}, "outbox.event.queue", {"outbox-seq": str(2000000 + n)})
        if type != "TokenActivated":
            for mode in ("saga", "choreography", "hybrid"):
                assert p.ask(ann, [held], mode, token=token).problem == "not-your-turn", (type, mode)
    assert p.api.get("/payments", token=p.token(ann)).json == {"payments": []} and p.balance(ann) == 5000
    p.send("QueueRestored", {"token_id": turn, "state": "ACTIVE"}, "outbox.event.queue", {"outbox-seq": "2000009"})
    p.pay(ann, [held], token=token)


def test_no_token_is_ended(shared):
    """A sale at the box office ends none: QueueExpired says null, and that is no error."""
    shared.send("QueueExpired", {"token_id": None, "payment_id": str(uuid.uuid4())}, "outbox.event.queue")
    assert shared.db.one("SELECT count(*) FROM payment.token_copy WHERE token_id IS NULL") == 0


def test_a_copy_that_comes_late(payments):
    """A client quicker than the event that tells of its hold waits a moment instead of being refused."""
    p = payments(http={"patience": "25s"})
    ann = p.person(5000)
    held = str(uuid.uuid4())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(p.ask, ann, [held])
        p.reservation(ann, reservation_id=held, status="REQUESTED", version=1)
        p.reservation(ann, reservation_id=held, version=2)
        assert asked.result().status == 202


def test_copies_never_go_back(shared):
    p = shared
    ann = p.person()
    for order in itertools.permutations([(1, "REQUESTED"), (2, "HELD"), (3, "EXPIRED")]):
        r = str(uuid.uuid4())
        for version, status in order:
            p.reservation(ann, reservation_id=r, version=version, status=status)
        assert p.db.query("SELECT status, version FROM payment.reservation_copy WHERE reservation_id = %s", (r,)) == [("EXPIRED", 3)]


def test_sagas_of_others(shared):
    """They come by the same topic; no copy is kept of what nobody asks for here, and an order's payment fails with its saga all the same."""
    p = shared
    ann = p.person(1000)
    ids = {name: str(uuid.uuid4()) for name in ("order", "reserve", "order-choreography", "cancel-order", "book")}
    for name, id in ids.items():
        p.send("SagaStarted", {"saga_id": id, "name": name, "version": 1, "state": "RUNNING", "data": {"user_id": ann}, "steps": []}, "outbox.event.saga")
    assert {n for (n,) in p.db.query("SELECT name FROM saga.copy WHERE data ->> 'user_id' = %s", (ann,))} == {"cancel-order", "book"}


# ---------------------------------------------------------------- mode saga

def test_pay_by_saga(shared):
    p = shared
    ann = p.person(5000)
    held = [p.reservation(ann), p.reservation(ann, price=500)]
    pid = p.pay(ann, held, key="pay")
    assert p.pay(ann, held, key="pay") == pid
    seen = p.payment(pid, ann)
    assert (seen["state"], seen["amount"], sorted(seen["reservation_ids"]), seen["mode"]) == ("PENDING", 1500, sorted(held), "saga")
    (topic, data), = p.db.query("SELECT topic, payload FROM outbox.event WHERE type = 'SagaStart' AND aggregateid = %s", (pid,))
    assert topic == "outbox.saga.inbox" and data["payment_id"] == pid and data["amount"] == 1500 and data["concert_id"] == "7"
    assert {s["reservation_id"] for s in data["seats"]} == set(held) and set(data["seats"][0]) == {
        "seat_id", "claim_no", "reservation_id", "schedule_id", "price"}
    assert sorted(s["price"] for s in data["seats"]) == [500, 1000], "the owner holds them against its own"
    assert p.api.get(f"/sagas/{pid}", token=p.token(ann)).json["state"] == "STARTING"
    assert p.api.get(f"/sagas/{pid}", token=p.token(p.person())).problem == "not-yours"
    assert p.execute(pid, ann) == ["done"]
    assert p.execute(pid, ann) == ["done", "done"]
    seen = p.payment(pid, ann)
    assert seen["state"] == "COMPLETED" and seen["completed_at"] and p.balance(ann) == 3500
    assert p.told(pid) == ["PaymentInitiated", "PointsDeducted", "PaymentCompleted"]
    done, headers = p.event(pid, "PaymentCompleted")
    assert done["token_id"] and done["mode"] == "saga" and "choreography_id" not in done and "hybrid_id" not in done
    p.send("SagaCompleted", {"saga_id": pid, "name": "pay", "version": 1, "state": "COMPLETED", "data": data, "steps": [
        {"step": "PAYMENT", "state": "DONE"}]}, "outbox.event.saga")
    assert p.api.get(f"/sagas/{pid}", token=p.token(ann)).json["steps"] == [{"step": "PAYMENT", "state": "DONE"}]
    for path, found in (("/payments", True), (f"/payments?user={ann}", True), (f"/payments?reservation={held[1]}", True),
                        (f"/payments?reservation={uuid.uuid4()}", False), (f"/payments?after={pid}", False)):
        assert [x["payment_id"] for x in p.api.get(path, token=p.token(ann)).json["payments"]] == ([pid] if found else []), path
    bob = p.person()
    assert p.api.get(f"/payments?user={ann}", token=p.token(bob)).problem == "not-yours"
    assert p.api.get(f"/payments?reservation={held[0]}", token=p.token(bob)).json == {"payments": []}
    assert p.api.get(f"/payments/{pid}", token=p.token(bob)).problem == "not-yours"
    assert p.api.get(f"/payments/{uuid.uuid4()}", token=p.token(ann)).status == 404
    assert p.ask(ann, held[:1]).problem == "being-paid"


def test_not_enough_points(shared):
    p = shared
    ann = p.person(999)
    held = p.reservation(ann)
    pid = p.pay(ann, [held])
    assert p.execute(pid, ann) == ["refused: not enough points"]
    assert (p.state(pid), p.reason(pid), p.balance(ann)) == ("FAILED", "not enough points", 999)
    assert p.told(pid) == ["PaymentInitiated", "PointsRefused", "PaymentFailed"]
    assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 999
    p.charge(ann, 1)
    again = p.pay(ann, [held])
    assert p.execute(again, ann) == ["done"] and p.balance(ann) == 0


def test_undo_of_a_payment(shared):
    p = shared
    ann = p.person(1000)
    held = p.reservation(ann)
    pid = p.pay(ann, [held])
    p.execute(pid, ann)
    assert p.undo(pid, ann) == ["done"]
    seen = p.payment(pid, ann)
    assert seen["state"] == "CANCELLED" and seen["refunded_at"] and p.balance(ann) == 1000
    assert p.undo(pid, ann) == ["done", "done"] and p.balance(ann) == 1000
    assert p.execute(pid, ann)[-1] == "refused: undone"
    cancelled, _ = p.event(pid, "PaymentCancelled")
    assert cancelled["refunded_at"] and cancelled["was_paid"] and cancelled["reservation_ids"] == [held] and "order_id" not in cancelled
    p.pay(ann, [held])


@pytest.mark.parametrize("mode", ["saga", "hybrid"])
def test_every_order_of_do_and_undo(shared, mode):
    """Do and undo, each twice, in every order they may come in: at the end the money is where it was when there was an undo."""
    p = shared
    for order in sorted(set(itertools.permutations(["do", "do", "undo", "undo"]))):
        ann = p.person(1000)
        pid = p.pay(ann, [p.reservation(ann)], mode)
        for op in order:
            p.execute(pid, ann) if op == "do" else p.undo(pid, ann)
        assert p.balance(ann) == 1000 and p.state(pid) in ("FAILED", "CANCELLED"), order
        assert [w for w, _ in p.ledger(ann)].count("RESTORE") <= 1


def test_a_saga_that_never_asked(shared):
    """Its lock was refused, or an operator has aborted it: the payment fails, and its reservations can be paid again."""
    p = shared
    ann = p.person(1000)
    held = p.reservation(ann)
    for state in ("COMPENSATED", "ABORTED"):
        pid = p.pay(ann, [held])
        p.send("SagaCompensated", {"saga_id": pid, "name": "pay", "version": 1, "state": state, "data": {"user_id": ann}, "steps": [],
                                   "why": "its lock is taken"}, "outbox.event.saga")
        assert (p.state(pid), p.reason(pid)) == ("FAILED", "its lock is taken")
    done = p.pay(ann, [held])
    p.execute(done, ann)
    p.send("SagaAborted", {"saga_id": done, "name": "pay", "version": 1, "state": "ABORTED", "data": {}, "steps": []}, "outbox.event.saga")
    assert p.state(done) == "COMPLETED"


def test_commands_that_make_no_sense(shared):
    p = shared
    ann, bob = p.person(1000), p.person(1000)
    pid = p.pay(ann, [p.reservation(ann)])
    assert "another user's" in p.execute(pid, bob)[0]
    for type, payload in (("ExecutePayment", {}), ("ExecutePayment", {"user_id": "x", "amount": 5}),
                          ("ExecutePayment", {"user_id": ann, "amount": "5"}), ("ExecutePayment", {"user_id": ann, "amount": -5}),
                          ("ExecutePayment", {"user_id": ann, "amount": 1e30}), ("ExecutePayment", {"user_id": ann}),
                          ("ExecutePayment", {"user_id": ann, "amount": 5, "reservation_ids": ["x"]}),
                          ("DeductPoints", {"user_id": ann, "amount": 1.5}), ("DeductPoints", {"amount": 5}),
                          ("DeductPoints", {"user_id": ann, "amount": 5000}), ("DropBalances", {"user_id": ann})):
        outcomes = p.command(type, payload, str(uuid.uuid4()))
        assert len(outcomes) == 1 and outcomes[0].startswith("refused: "), (type, payload, outcomes)
    assert p.command("RestorePoints", {"user_id": ann, "amount": 500}, str(uuid.uuid4()), op="do") == ["done"]
    assert (p.balance(ann), p.balance(bob)) == (1000, 1000)


# ---------------------------------------------------------------- bookings and orders

def test_a_booking(shared):
    """No request here: the saga's command makes the payment, which has the saga's id."""
    p = shared
    ann = p.person(3000)
    saga, held = str(uuid.uuid4()), str(uuid.uuid4())
    payload = {"payment_id": saga, "user_id": ann, "amount": 2000, "reservation_ids": [held], "concert_id": "7", "token_id": str(uuid.uuid4()),
               "seats": [{"seat_id": "1", "claim_no": 1, "reservation_id": held, "schedule_id": "70"}]}
    assert p.command("ExecutePayment", payload, saga) == ["done"]
    assert p.balance(ann) == 1000 and p.payment(saga, ann)["reservation_ids"] == [held]
    other = str(uuid.uuid4())
    assert p.command("ExecutePayment", {**payload, "payment_id": other, "amount": 1}, other) == [
        "refused: a reservation is being paid by another payment"]
    assert p.undo(saga, ann) == ["done"] and p.balance(ann) == 3000


def test_an_order(shared):
    """Points and payment are steps of their own; the undo of the payment leaves the points to theirs, and money returns once."""
    p = shared
    for order in itertools.permutations(["points", "payment", "points"]):
        ann = p.person(1000)
        saga, oid = str(uuid.uuid4()), str(uuid.uuid4())
        points, payment = {"user_id": ann, "amount": 300}, {"user_id": ann, "amount": 300, "order_id": oid, "deducted": True}
        assert p.command("DeductPoints", points, saga, "POINTS") == ["done"] and p.balance(ann) == 700
        assert p.command("ExecutePayment", payment, saga) == ["done"] and p.balance(ann) == 700
        assert p.event(saga, "PaymentCompleted")[0]["order_id"] == oid and p.payment(saga, ann)["mode"] == "order"
        for what in order:
            if what == "points":
                p.command("RestorePoints", points, saga, "POINTS", "undo")
            else:
                p.command("CancelPayment", {"payment_id": saga, "order_id": oid, "order_state": "CREATED", "refund": False}, saga, op="undo")
        assert p.balance(ann) == 1000 and p.state(saga) == "CANCELLED"
        assert p.ledger(ann) == [("CHARGE", 1000), ("DEDUCT", -300), ("RESTORE", 300)]
        assert p.event(saga, "PaymentCancelled")[0]["order_state"] == "CREATED"


# ---------------------------------------------------------------- choreography

def test_choreography(shared):
    p = shared
    ann = p.person(1500)
    held = p.reservation(ann)
    pid = p.pay(ann, [held], "choreography")
    initiated, headers = p.event(pid, "PaymentInitiated")
    assert headers["correlation-id"] == pid and initiated["choreography_id"] == pid and p.balance(ann) == 1500
    for _ in range(2):
        p.send("PaymentInitiated", initiated, "outbox.event.payment", headers)
    completed = {"payment_id": pid, "user_id": ann, "reservation_ids": [held], "token_id": initiated["token_id"], "amount": 1000,
                 "choreography_id": pid}
    for _ in range(2):
        p.send("ReservationsCompleted", completed, "outbox.event.reservation")
    assert p.told(pid) == ["PaymentInitiated", "PaymentCompleted", "PointsDeducted"] and p.balance(ann) == 500
    points, headers = p.event(pid, "PointsDeducted")
    assert headers["correlation-id"] == pid
    assert points["choreography_id"] == pid and points["token_id"] == initiated["token_id"] and points["reservation_ids"] == [held]
    # The engine undoes: points first, then the payment.
    assert p.command("RestorePoints", {"payment_id": pid, "user_id": ann}, pid, "POINTS", "undo") == ["done"]
    assert p.undo(pid, ann) == ["done"]
    assert p.state(pid) == "CANCELLED" and p.balance(ann) == 1500


def test_choreography_without_points(shared):
    p = shared
    ann = p.person(999)
    held = p.reservation(ann)
    pid = p.pay(ann, [held], "choreography")
    p.send("PaymentInitiated", p.event(pid, "PaymentInitiated")[0], "outbox.event.payment")
    p.send("ReservationsCompleted", {"payment_id": pid}, "outbox.event.reservation")
    assert p.told(pid)[-1] == "PointsRefused" and p.balance(ann) == 999
    assert p.undo(pid, ann) == ["done"] and p.state(pid) == "CANCELLED" and p.ledger(ann) == [("CHARGE", 999)]
    assert p.event(pid, "PaymentCancelled")[0]["was_paid"] is False


def test_choreography_undone_before_it_was_done(shared):
    """Each undo before its do: the do does nothing then."""
    p = shared
    ann = p.person(1000)
    pid = p.pay(ann, [p.reservation(ann)], "choreography")
    p.undo(pid, ann)
    assert p.state(pid) == "FAILED"
    p.send("PaymentInitiated", p.event(pid, "PaymentInitiated")[0], "outbox.event.payment")
    assert p.state(pid) == "FAILED"
    other = p.pay(ann, [p.reservation(ann)], "choreography")
    p.send("PaymentInitiated", p.event(other, "PaymentInitiated")[0], "outbox.event.payment")
    p.command("RestorePoints", {"payment_id": other, "user_id": ann}, other, "POINTS", "undo")
    p.send("ReservationsCompleted", {"payment_id": other}, "outbox.event.reservation")
    assert p.balance(ann) == 1000 and "PointsDeducted" not in p.told(other)


def test_choreography_whose_hold_is_over(shared):
    p = shared
    ann = p.person(1000)
    held = p.reservation(ann)
    pid = p.pay(ann, [held], "choreography")
    p.reservation(ann, reservation_id=held, status="EXPIRED", version=3)
    p.send("PaymentInitiated", p.event(pid, "PaymentInitiated")[0], "outbox.event.payment")
    assert p.told(pid) == ["PaymentInitiated", "PaymentFailed"]
    assert "choreography_id" in p.event(pid, "PaymentFailed")[0]


def test_events_of_other_flows_are_stepped_over(shared):
    p = shared
    ann = p.person(2000)
    pid = p.pay(ann, [p.reservation(ann)])
    p.send("PaymentInitiated", p.event(pid, "PaymentInitiated")[0], "outbox.event.payment")
    hybrid = p.pay(ann, [p.reservation(ann)], "hybrid")
    for id in (pid, hybrid):
        p.send("ReservationsCompleted", {"payment_id": id, "hybrid_id": id}, "outbox.event.reservation")
    p.send("SomethingElse", {}, "outbox.event.queue")
    assert p.state(pid) == "PENDING" and p.balance(ann) == 1000


# ---------------------------------------------------------------- hybrid

def test_hybrid(shared):
    p = shared
    ann = p.person(1500)
    held = p.reservation(ann)
    answer = p.ask(ann, [held], "hybrid", key="h")
    assert answer.status == 200 and answer.json["state"] == "PROCESSING"
    assert p.ask(ann, [held], "hybrid", key="h").json == answer.json
    pid = answer.json["payment_id"]
    assert p.state(pid) == "COMPLETED" and p.balance(ann) == 500
    done, headers = p.event(pid, "PaymentCompleted")
    assert done["mode"] == "hybrid" and done["hybrid_id"] == pid and headers["correlation-id"] == pid
    poor = p.reservation(ann)
    for _ in range(2):
        refused = p.ask(ann, [poor], "hybrid", key="poor")
        assert (refused.status, refused.problem) == (409, "not-enough-points") and "Location" not in refused.headers
    failed, = [x for x in p.api.get("/payments", token=p.token(ann)).json["payments"] if x["payment_id"] != pid]
    assert (failed["state"], failed["reason"]) == ("FAILED", "not enough points") and p.balance(ann) == 500
    assert p.told(failed["payment_id"]) == ["PaymentInitiated", "PointsRefused", "PaymentFailed"], "what is refused is a fact too"
    assert p.undo(failed["payment_id"], ann) == ["done"]
    assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 1500
    p.pay(ann, [poor], "hybrid")


# ---------------------------------------------------------------- cancelling

def test_cancel(shared):
    """A finished payment is given back by a saga; one that is under way, failed or cancelled is not."""
    p = shared
    ann, bob = p.person(1000), p.person()
    held = p.reservation(ann)
    pid = p.pay(ann, [held])

    def cancel(user=ann, **kw):
        return p.api.call("POST", f"/payments/{pid}/cancel", token=p.token(user), **kw)
    assert cancel(bob).problem == "not-yours"
    assert cancel().problem == "in-progress"
    p.execute(pid, ann)
    assert cancel().problem == "in-progress", "its reservation is not CONFIRMED"
    p.reservation(ann, reservation_id=held, status="CONFIRMED", version=4, payment_id=pid)
    asked = cancel(key="c")
    assert asked.status == 202 and asked.headers["Location"] == f"/sagas/{asked.json['saga_id']}"
    saga = asked.json["saga_id"]
    assert saga != pid and cancel().json["saga_id"] == saga
    (data,), = p.db.query("SELECT payload FROM outbox.event WHERE type = 'SagaStart' AND aggregateid = %s", (saga,))
    assert data["payment_id"] == pid and data["reservation_ids"] == [held] and len(data["seats"]) == 1
    assert p.api.get(f"/sagas/{saga}", token=p.token(ann)).json["name"] == "cancel"
    assert p.command("CancelPayment", {"payment_id": pid, "user_id": ann}, saga) == ["done"]
    assert p.command("CancelPayment", {"payment_id": pid, "user_id": ann}, saga) == ["done", "done"]
    assert p.payment(pid, ann)["state"] == "CANCELLED" and p.balance(ann) == 1000
    assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 1000, "an operator's undo beside it"
    assert cancel().problem == "over"


def test_cancel_of_an_order(shared):
    p = shared
    ann = p.person(1000)
    saga, oid = str(uuid.uuid4()), str(uuid.uuid4())
    p.command("DeductPoints", {"user_id": ann, "amount": 300}, saga, "POINTS")
    p.command("ExecutePayment", {"user_id": ann, "amount": 300, "order_id": oid, "deducted": True}, saga)
    asked = p.api.call("POST", f"/payments/{saga}/cancel", token=p.token(ann)).json
    (name, data), = p.db.query("SELECT headers ->> 'saga-name', payload FROM outbox.event WHERE type = 'SagaStart' AND aggregateid = %s",
                               (asked["saga_id"],))
    assert name == "cancel-order" and data["order_id"] == oid
    p.command("CancelPayment", {"payment_id": saga, "order_id": oid, "order_state": "CANCELLED"}, asked["saga_id"])
    assert p.balance(ann) == 1000 and p.event(saga, "PaymentCancelled")[0]["order_state"] == "CANCELLED"


# ---------------------------------------------------------------- races

def together(n, work):
    with ThreadPoolExecutor(n) as pool:
        return [f.result() for f in [pool.submit(work, i) for i in range(n)]]


@pytest.mark.tsan
def test_one_user_pays_twice_at_once(shared):
    """Points for one of them: the balance's row decides, whichever way they come."""
    p = shared
    for mode in ("hybrid", "saga"):
        ann = p.person(1500)
        held = [p.reservation(ann), p.reservation(ann)]
        if mode == "hybrid":
            got = sorted(a.status for a in together(2, lambda i: p.ask(ann, [held[i]], "hybrid")))
            assert got == [200, 409]
        else:
            pids = [p.pay(ann, [r]) for r in held]
            got = sorted(o for outcomes in together(2, lambda i: p.execute(pids[i], ann)) for o in outcomes)
            assert got == ["done", "refused: not enough points"]
        assert p.balance(ann) == 500


def test_batches_that_share_users(shared):
    """Two lanes with commands for the same users, each in an order of its own: no deadlock."""
    p = shared
    people = [p.person(1000) for _ in range(10)]

    def deduct(user):
        saga = str(uuid.uuid4())
        return p.message("DeductPoints", {"user_id": user, "amount": 10}, "outbox.command.payment", {
            "saga-id": saga, "saga-step": "POINTS", "saga-op": "do", "saga-command-id": saga, "saga-reply-to": "outbox.saga.inbox"})
    for _ in range(10):
        together(2, lambda i: p.batch([deduct(u) for u in (people[::-1] if i else people)]))
    assert [p.balance(u) for u in people] == [800] * 10


@pytest.mark.tsan
def test_one_reservation_is_paid_twice_at_once(shared):
    p = shared
    ann = p.person(5000)
    held = [p.reservation(ann) for _ in range(3)]
    got = together(6, lambda i: p.ask(ann, held if i % 2 else held[::-1], "hybrid"))
    assert sorted(a.status for a in got) == [200] + [409] * 5
    assert {a.problem for a in got if a.status == 409} == {"being-paid"} and p.balance(ann) == 2000


def test_charge_and_pay_together(shared):
    p = shared
    ann = p.person(4000)
    held = [p.reservation(ann) for _ in range(4)]
    got = together(12, lambda i: p.charge(ann, 10) if i % 3 else p.ask(ann, [held[i // 3]], "hybrid"))
    assert [a.status for a in got] == [200] * 12
    assert p.balance(ann) == 80


def test_cancel_while_it_is_paid(shared):
    """Undo, do, the user's own cancelling and a saga's end at the same instant: money is where it was, once."""
    p = shared
    for _ in range(5):
        ann = p.person(1000)
        pid = p.pay(ann, [p.reservation(ann)])
        together(4, lambda i: [p.execute, p.undo, lambda a, b: p.command("CancelPayment", {"payment_id": a}, str(uuid.uuid4())),
                               lambda a, b: p.api.call("POST", f"/payments/{a}/cancel", token=p.token(b))][i](pid, ann))
        assert p.balance(ann) == 1000 and p.state(pid) in ("FAILED", "CANCELLED")
        assert p.ledger(ann) in ([("CHARGE", 1000)], [("CHARGE", 1000), ("DEDUCT", -1000), ("RESTORE", 1000)])


# ---------------------------------------------------------------- receipts

def test_receipts_numbered_here(shared):
    p = shared
    ann = p.person(2000)
    pid = p.pay(ann, [p.reservation(ann)], "hybrid")
    assert p.api.get(f"/payments/{pid}/receipt", token=p.token(ann)).status == 404
    p.receipts()
    p.receipts()
    seen = p.api.get(f"/payments/{pid}/receipt", token=p.token(ann)).json
    assert seen["state"] == "ISSUED" and seen["receipt_no"] and seen["amount"] == 1000
    assert p.api.get(f"/payments/{pid}/receipt", token=p.token(p.person())).problem == "not-yours"
    p.undo(pid, ann)
    p.receipts()
    assert p.api.get(f"/payments/{pid}/receipt", token=p.token(ann)).json["state"] == "VOIDED"
    assert p.told(pid).count("ReceiptIssued") == 1 and p.told(pid).count("ReceiptVoided") == 1


@pytest.mark.asan
def test_receipts_of_the_tax_server(payments, outside):
    p = payments(tax=outside)
    outside.plan = {"issue": ["error", "busy", "garbage", "lost"], "void": ["error", "silent"]}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)], "hybrid")

    def state():
        return p.db.one("SELECT state FROM payment.cash_receipt WHERE payment_id = %s", (pid,))
    p.receipts()
    wait_until(lambda: state() == "ISSUED", 60, "the receipt")
    assert outside.issued == {pid: "T-1"} and outside.count("issue") >= 5
    p.undo(pid, ann)
    p.receipts()
    wait_until(lambda: state() == "VOIDED", 60, "the receipt to be void")
    assert outside.voided == {"T-1"} and p.state(pid) == "CANCELLED"
    outside.plan = {"issue": ["refuse"]}
    other = p.pay(ann, [p.reservation(ann)], "hybrid")
    p.receipts()
    wait_until(lambda: p.db.one("SELECT state FROM payment.cash_receipt WHERE payment_id = %s", (other,)) == "REFUSED", 60)
    assert p.state(other) == "COMPLETED", "a receipt that fails does not touch the payment"


def test_a_receipt_that_is_void_before_it_is_issued(payments, outside):
    """The tax server stands still, the payment is cancelled: first issued, then void, in this order; or never issued."""
    p = payments(tax=outside)
    outside.plan = {"issue": ["silent"]}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)], "hybrid")
    p.receipts()
    wait_until(lambda: outside.count("issue") >= 1, 60)  # asked again when it is given up
    p.undo(pid, ann)
    p.receipts()
    outside.release()
    wait_until(lambda: p.told(pid)[-2:] == ["ReceiptIssued", "ReceiptVoided"], 60)
    p.service.terminate()
    never = p.db.one("SELECT outbox.uuid7()::text")
    for type in ("PaymentCompleted", "PaymentCancelled"):
        p.send(type, {"payment_id": never, "user_id": ann, "amount": 5}, "outbox.event.payment", function="payment.on_receipts")
    assert p.db.query("SELECT state FROM payment.cash_receipt WHERE payment_id = %s", (never,)) == [("NONE",)]


@pytest.mark.parametrize("told", ["here", "by the tax server"])
def test_no_receipt_overtakes_its_payment(payments, outside, told):
    """Seen in the demo on a busy machine: a choreography's points were being deducted, the event was written and not committed; the
    receipt of the same payment, by another group or by a worker, held no lock of the payment's, committed first and stood before it on
    the topic, although its seq was higher. Who publishes about a payment waits for the balance's lock."""
    p = payments(tax=outside if told != "here" else None)
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)], "choreography")
    p.pass_on("PaymentInitiated")
    assert p.state(pid) == "COMPLETED"
    outside.plan = {"issue": ["error"] * 100000}
    if told != "here":
        p.receipts()
    deducting = p.db.connect(autocommit=False)
    done = json.dumps(p.message("ReservationsCompleted", {"payment_id": pid, "choreography_id": pid}, "outbox.event.reservation"))
    with deducting.cursor() as cur:
        cur.execute("SELECT payment.on_messages(ARRAY[jsonb_populate_record(NULL::inbox.message, %s)])", (done,))
    teller = threading.Thread(target=p.receipts)
    if told == "here":
        teller.start()
    else:
        outside.plan["issue"].clear()
    blocked = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE NOT l.granted AND a.datname = current_database()"
    wait_until(lambda: p.db.one(blocked) or "ReceiptIssued" in p.told(pid), 30, "the receipt to be told, or to wait")
    assert "ReceiptIssued" not in p.told(pid), "a receipt is told before the points, whose event was written first"
    deducting.commit()
    deducting.close()
    wait_until(lambda: p.told(pid)[-2:] == ["PointsDeducted", "ReceiptIssued"], 30, "the receipt after the points")
    if told == "here":
        teller.join()


# ---------------------------------------------------------------- the gateway

@pytest.mark.asan
@pytest.mark.tsan
def test_the_gateway_approves(payments, outside):
    """The command is answered when the gateway has answered; asked again meanwhile it is not asked twice there."""
    p = payments(outside=outside)
    outside.plan = {"approve": ["error"] * 1000}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)])
    assert p.execute(pid, ann) == [] and p.balance(ann) == 2000 and p.execute(pid, ann) == []
    outside.plan["approve"][:] = ["error", "lost", "twice"]
    wait_until(lambda: p.replies(pid) == ["done"], 60, "the answer")
    assert p.state(pid) == "COMPLETED" and outside.charged() == {pid: 1000} and outside.count("approve") >= 3
    assert p.execute(pid, ann) == ["done", "done"]
    assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 3000
    wait_until(lambda: outside.charged() == {}, 60, "the charge to be cancelled")
    wait_until(lambda: 'requests_total{service="payment",kind="cancel",outcome="ok"} 1' in p.service.get("/metrics")[1], 60)
    wait_until(lambda: p.db.one("SELECT count(*) FROM payment.gateway_request WHERE state = 'PENDING'") == 0, 60)


@pytest.mark.parametrize("mode", ["saga", "hybrid", "choreography"])
def test_the_gateway_refuses(payments, outside, mode):
    p = payments(outside=outside)
    outside.plan = {"approve": ["refuse"]}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)], mode)
    if mode == "saga":
        p.execute(pid, ann)
    elif mode == "choreography":
        p.send("PaymentInitiated", p.event(pid, "PaymentInitiated")[0], "outbox.event.payment")
    wait_until(lambda: p.state(pid) == "FAILED", 60, "the refusal")
    assert p.reason(pid) == "the gateway refuses: the card is stolen" and p.balance(ann) == 3000 and outside.charged() == {}
    assert p.told(pid)[-1] == "PaymentFailed"
    if mode == "saga":
        assert p.replies(pid) == ["refused: the gateway refuses: the card is stolen"]
        assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 3000


def test_the_gateway_is_given_up_and_answers_late(payments, outside):
    """Nothing but silence until our time is over: the payment has failed, the points are back. Then the approval does arrive at the
    gateway, after our cancelling: it must not stand."""
    p = payments(outside=outside, gateway={"timeout": "300ms", "give_up": "600ms", "late": "30s"})
    outside.plan = {"approve": ["late"] * 50}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)])
    p.execute(pid, ann)
    wait_until(lambda: p.state(pid) == "FAILED", 60, "it to be given up")
    assert p.balance(ann) == 3000 and p.replies(pid)[0].startswith("refused: the gateway does not answer")
    wait_until(lambda: outside.count("cancel") >= 1, 60, "a cancelling too early")
    assert outside.approved == {}
    outside.release()
    wait_until(lambda: pid in outside.approved and outside.charged() == {}, 60, "the late approval to be cancelled")
    wait_until(lambda: p.db.one("SELECT state FROM payment.gateway_request WHERE kind = 'cancel'") == "DONE", 60)


@pytest.mark.parametrize("word", ["refuse", "error"])
def test_a_gateway_that_does_not_cancel(payments, outside, word):
    """Its charge stands though the payment is taken back: told once, when its time is over. One that refuses is asked no more, until an
    operator does; one that gives no answer is."""
    p = payments(outside=outside, gateway={"late": "300ms"})
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)])
    p.execute(pid, ann)
    wait_until(lambda: p.replies(pid) == ["done"], 60)
    outside.plan = {"cancel": [word] * 1000}

    def row():
        return p.db.query("SELECT state, attempts, give_up_at IS NULL FROM payment.gateway_request WHERE kind = 'cancel'")[0]
    p.undo(pid, ann)
    wait_until(lambda: "GatewayCancelFailed" in p.told(pid), 60, "it to be told")
    told, _ = p.event(pid, "GatewayCancelFailed")
    assert told["reason"] == {"refuse": "the card is stolen", "error": "status 500"}[word]
    if word == "refuse":
        assert row()[0] == "REFUSED" and p.balance(ann) == 3000
        outside.answers.clear()
    else:
        tried = row()[1]
        wait_until(lambda: row()[1] > tried + 2, 60, "it to be asked on")
    assert p.told(pid).count("GatewayCancelFailed") == 1
    outside.plan = {}
    assert p.db.one("SELECT payment.cancel_again(%s)", (pid,))
    wait_until(lambda: row()[0] == "DONE" and outside.charged() == {}, 60, "the charge to be cancelled")
    assert not p.db.one("SELECT payment.cancel_again(%s)", (pid,))


def test_undo_while_the_gateway_is_asked(payments, outside):
    """The undo does not wait for the gateway: what it says after that is cancelled."""
    p = payments(outside=outside, gateway={"timeout": "30s"})
    outside.plan = {"approve": ["late"]}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)])
    p.execute(pid, ann)
    wait_until(lambda: outside.late == 1, 60, "the request")
    assert p.undo(pid, ann) == ["done"] and p.balance(ann) == 3000 and p.state(pid) == "FAILED"
    outside.release()
    wait_until(lambda: pid in outside.approved and outside.charged() == {}, 60, "the approval to be cancelled")
    assert p.replies(pid) == [] and p.state(pid) == "FAILED" and p.balance(ann) == 3000


def test_an_operator_asks_again_while_the_gateway_is_asked(payments, outside):
    """The same step under a new command id: points are taken once, the gateway is asked once, the newer command is answered."""
    p = payments(outside=outside, gateway={"timeout": "30s"})
    outside.plan = {"approve": ["late"]}
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)])
    p.execute(pid, ann)
    wait_until(lambda: outside.late == 1, 60, "the request")
    p.command("ExecutePayment", {"payment_id": pid, "user_id": ann, "amount": 1000}, pid, generation=1)
    outside.release()
    wait_until(lambda: p.replies(pid) == ["done"], 60, "the answer")
    (command,), = p.db.query("SELECT headers ->> 'saga-command-id' FROM outbox.event WHERE type = 'SagaReply'")
    assert command.endswith("1") and p.balance(ann) == 2000 and outside.charged() == {pid: 1000}


def test_a_slow_gateway_holds_nobody_up(payments, outside):
    """Its workers wait; requests and commands of others do not."""
    p = payments(outside=outside, gateway={"timeout": "30s", "workers": 1})
    outside.plan = {"approve": ["silent"]}
    ann = p.person(3000)
    p.pay(ann, [p.reservation(ann)], "hybrid")
    wait_until(lambda: outside.count("approve") == 1, 60)
    assert p.charge(ann, 5).status == 200
    other = p.pay(ann, [p.reservation(ann)])
    assert p.execute(other, ann) == [] and p.undo(other, ann) == ["done"]
    outside.release()


def test_a_silent_tax_server_fails_no_payment(payments, outside):
    """Receipts wait for it, each for the whole deadline of a request; approvals go on, by workers of their own."""
    p = payments(outside=outside, tax=outside, gateway={"timeout": "30s", "workers": 1})
    outside.plan = {"issue": ["silent"] * 10}
    ann = p.person(3000)
    p.pay(ann, [p.reservation(ann)], "hybrid")
    wait_until(lambda: "PaymentCompleted" in [t for (t,) in p.db.query("SELECT type FROM outbox.event")], 60)
    p.receipts()
    wait_until(lambda: outside.count("issue") == 1, 60)
    pid = p.pay(ann, [p.reservation(ann)])
    p.execute(pid, ann)
    wait_until(lambda: p.replies(pid) == ["done"], 20, "the approval")


def test_what_is_over_is_forgotten(payments, outside):
    """Requests that are done, with the approval of what is cancelled, and old tokens. The approval of a payment that stands stays: it may
    be cancelled yet, and the gateway has to hear of it then."""
    with Outside() as tax:
        p = payments(outside=outside, tax=tax)
        ann = p.person(5000)
        stands, back = (p.pay(ann, [p.reservation(ann)], "hybrid") for _ in range(2))
        wait_until(lambda: {p.state(stands), p.state(back)} == {"COMPLETED"}, 60)
        p.receipts()
        wait_until(lambda: p.db.one("SELECT count(*) FROM payment.cash_receipt WHERE state = 'ISSUED'") == 2, 60, "the receipts")
    p.undo(back, ann)
    rows = "SELECT payment_id::text, kind, state FROM payment.gateway_request ORDER BY 1, 2"
    wait_until(lambda: [s for _, _, s in p.db.query(rows)] == ["DONE"] * 5, 60, "the requests to be done")
    p.db.query("SELECT payment.forget('1h')")
    assert len(p.db.query(rows)) == 5 and p.db.one("SELECT count(*) FROM payment.token_copy") == 1
    p.db.query("SELECT payment.forget('0')")
    assert p.db.query(rows) == [(stands, "approve", "DONE")] and p.db.one("SELECT count(*) FROM payment.token_copy") == 0
    assert p.undo(stands, ann) == ["done"]
    wait_until(lambda: outside.charged() == {}, 60, "the charge to be cancelled")


# ---------------------------------------------------------------- the whole program

@pytest.mark.timeout(400)
def test_every_query_uses_an_index(payments):
    """1 M payments and entries of the ledger: no request reads a table through."""
    p = payments()
    ann = p.person(1000)
    p.service.terminate()  # it would read tables that have no index yet
    # Ids in order, so that filling is quick: u, p, r, g and c of user, payment, reservation, request and cause.
    tables = [f"payment.{t}" for t in ("balance", "balance_ledger", "payment", "payment_reservation", "reservation_copy", "gateway_request")]
    fill(p.db, tables, f"""
        CREATE FUNCTION pg_temp.id(kind text, i int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
            $$ SELECT ('00000000-0000-7000-800' || kind || '-' || lpad(to_hex(i), 12, '0'))::uuid $$;
        INSERT INTO payment.balance SELECT pg_temp.id('1', i), 100, 10 FROM generate_series(1, {ROWS // 10}) AS i;
        INSERT INTO payment.balance_ledger SELECT pg_temp.id('1', i / 10), i % 10 + 1, 10, 10 * (i % 10 + 1), 'CHARGE', pg_temp.id('5', i), now()
            FROM generate_series(10, {ROWS + 9}) AS i;
        INSERT INTO payment.payment (payment_id, user_id, mode, state, amount, created_at)
            SELECT pg_temp.id('2', i), pg_temp.id('1', i / 10), 'saga', 'COMPLETED', 5, now() FROM generate_series(10, {ROWS + 9}) AS i;
        INSERT INTO payment.payment_reservation SELECT pg_temp.id('3', i), pg_temp.id('2', i) FROM generate_series(10, {ROWS // 5 + 9}) AS i;
        INSERT INTO payment.reservation_copy (reservation_id, user_id, concert_id, schedule_id, seat_id, status, version)
            SELECT pg_temp.id('3', i), pg_temp.id('1', i / 10), 1, 1, i, 'HELD', 1 FROM generate_series(10, {ROWS // 5 + 9}) AS i;
        INSERT INTO payment.gateway_request (id, payment_id, kind, state, due_at, created_at)
            SELECT pg_temp.id('4', i), pg_temp.id('2', i), 'approve', 'DONE', now(), now() FROM generate_series(10, {ROWS // 5 + 9}) AS i;""")
    p.db.query("SELECT pg_stat_reset()")
    p.begin()
    bob = "00000000-0000-7000-8001-00000000004d"
    held = p.reservation(ann)
    pid = p.pay(ann, [held], "hybrid")
    p.receipts()
    for user, path in ((bob, f"/balances/{bob}"), (bob, f"/balances/{bob}/history"), (bob, f"/payments?user={bob}"),
                       (ann, f"/payments?reservation={held}"), (ann, f"/payments/{pid}"), (ann, f"/payments/{pid}/receipt")):
        assert p.api.get(path, token=p.token(user)).status == 200
    assert len(p.api.get(f"/payments?user={bob}", token=p.token(bob)).json["payments"]) == 10
    p.charge(bob, 5)
    p.api.call("POST", f"/payments/{pid}/cancel", token=p.token(ann))
    p.undo(pid, ann)
    p.receipts()
    p.db.query("SELECT * FROM payment.claim_work('gateway', '1s')")
    p.db.query("SELECT * FROM payment.work_waiting()")
    p.service.terminate()

    def read():
        return {t: n for t, n in p.db.query("SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'payment'") if n > 100}
    wait_until(lambda: p.db.one("SELECT idx_scan FROM pg_stat_user_tables WHERE schemaname = 'payment' AND relname = 'balance'") > 0, 20)
    assert read() == {}


def test_config():
    payment = servers.Cli("postrider-payment")
    sample = os.path.join(servers.ROOT, "etc", "services", "payment.cfg")
    assert payment("-c", sample, "--check").returncode == 0
    with open(sample, encoding="utf-8") as f:
        assert payment("--print-sample").stdout == f.read()
    for option, word in (("gateway.url=gateway:80", "gateway.url"), ("tax.url=ftp://x", "tax.url"),
                         ("gateway.backoff_max=1ms", "gateway.backoff_max"), ("gateway.workers=0", "gateway.workers")):
        wrong = payment("-c", sample, "-o", option, "--check")
        assert wrong.returncode == 78 and word in wrong.stderr, option
    for name in ("payment-consumer", "payment-receipt"):
        path = os.path.join(servers.ROOT, "etc", "services", f"{name}.cfg")
        assert servers.Cli("postrider-consumer")("-c", path, "--check").returncode == 0
    path = os.path.join(servers.ROOT, "etc", "services", "payment-relay.cfg")
    assert servers.Cli("postrider-relay")("-c", path, "--check").returncode == 0


def test_events_are_as_documented(shared):
    """What this file's tests have published, held against events.json."""
    import events
    known = events.Events()
    wrong = [w for topic, type, key, payload in shared.db.query(
        "SELECT 'outbox.event.' || aggregatetype, type, aggregateid, payload FROM outbox.event WHERE topic IS NULL")
        for w in known.problems(topic, type, key, payload)]
    assert wrong == []
