"""tests/fault/test_payment_faults.py -- the payment service dies between the gateway and its database: money is taken once,
returns once, and what the gateway has done is known in the end. Each test names where it dies."""
import http.client

import pytest
from gateway import Outside
from payments import Payments
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
PATIENT = {"timeout": "5s", "give_up": "5m"}  # a gateway that a busy machine keeps from answering is not asked once more


@pytest.fixture
def outside():
    with Outside() as o:
        yield o


@pytest.fixture
def payments(empty_db):
    made = []

    def make(**kw):
        if "outside" in kw or "tax" in kw:
            kw["gateway"] = {**PATIENT, **kw.get("gateway", {})}
        made.append(Payments(empty_db, **kw))
        return made[-1]
    yield make
    for p in made:
        p.balanced()
        p.close()


def dead(p):
    assert p.service.wait() != 0


def shorten_lease(p):
    """What a dead worker had is free now, not when its lease ends."""
    p.db.query("UPDATE payment.gateway_request SET due_at = now() WHERE state = 'PENDING'")


def asked_for(p, mode="saga"):
    ann = p.person(3000)
    pid = p.pay(ann, [p.reservation(ann)], mode)
    if mode == "saga":
        p.execute(pid, ann)
    return ann, pid


@pytest.mark.parametrize("point,asked", [("gateway_claimed", 0), ("gateway_asked", 1)])
def test_dies_before_the_outcome_is_told(payments, outside, point, asked):
    """If we die at gateway_claimed nobody was asked; at gateway_asked the gateway has approved and we do not know. Either way the next
    one asks again under the same key when the lease ends, and the charge stands once."""
    p = payments(outside=outside, service=False)
    p.begin(fault=point)
    ann, pid = asked_for(p)
    dead(p)
    assert outside.count("approve") == asked and p.state(pid) == "PENDING" and p.replies(pid) == []
    p.begin()
    assert p.balance(ann) == 2000
    shorten_lease(p)
    wait_until(lambda: p.replies(pid) == ["done"], 60, "the answer")
    assert p.state(pid) == "COMPLETED" and outside.charged() == {pid: 1000} and p.balance(ann) == 2000


def test_the_lease_ends_by_itself(payments, outside):
    p = payments(outside=outside, service=False)
    p.begin(fault="gateway_asked")
    ann, pid = asked_for(p, "hybrid")
    dead(p)
    p.begin()
    wait_until(lambda: p.state(pid) == "COMPLETED", 90, "the second try")
    assert outside.count("approve") == 2 and outside.charged() == {pid: 1000}


def test_dies_when_all_is_told(payments, outside):
    """If we die at gateway_settled the outcome is committed with the saga's answer: nothing is asked or answered again."""
    p = payments(outside=outside, service=False)
    p.begin(fault="gateway_settled")
    ann, pid = asked_for(p)
    dead(p)
    assert p.state(pid) == "COMPLETED" and p.replies(pid) == ["done"]
    p.begin()
    assert p.undo(pid, ann) == ["done"]
    wait_until(lambda: outside.charged() == {}, 30, "the cancelling, by the next one")
    assert outside.count("approve") == 1 and p.balance(ann) == 3000


def test_undone_while_dead(payments, outside):
    """The gateway has approved, we died, and the saga takes the payment back before anybody asks again: the approval that
    nobody knows of is cancelled."""
    p = payments(outside=outside, service=False)
    p.begin(fault="gateway_asked")
    ann, pid = asked_for(p)
    dead(p)
    assert outside.charged() == {pid: 1000}
    assert p.undo(pid, ann) == ["done"] and p.state(pid) == "FAILED"
    p.begin()
    shorten_lease(p)
    wait_until(lambda: outside.charged() == {}, 30, "the approval to be cancelled")
    assert p.balance(ann) == 3000 and outside.count("approve") == 1


def test_cancelling_dies(payments, outside):
    """The same for the cancelling: asked again under its key until it is told."""
    p = payments(outside=outside)
    ann, pid = asked_for(p)
    wait_until(lambda: p.state(pid) == "COMPLETED", 60)
    p.service.terminate()
    p.undo(pid, ann)
    p.begin(ready=False, fault="gateway_asked")  # at once, perhaps
    dead(p)
    assert outside.charged() == {}
    p.begin()
    shorten_lease(p)
    wait_until(lambda: p.db.one("SELECT state FROM payment.gateway_request WHERE kind = 'cancel'") == "DONE", 30)
    assert outside.count("cancel") == 2


def test_a_receipt_is_issued_once(payments, outside):
    p = payments(tax=outside, service=False)
    p.begin(fault="gateway_asked")
    ann, pid = asked_for(p, "hybrid")
    p.receipts()
    dead(p)
    p.begin()
    shorten_lease(p)
    wait_until(lambda: "ReceiptIssued" in p.told(pid), 30)
    assert outside.issued == {pid: "T-1"} and p.told(pid).count("ReceiptIssued") == 1


@pytest.mark.parametrize("mode", ["saga", "choreography", "hybrid"])
def test_killed_between_the_commit_and_the_answer(payments, mode):
    """If we die at service_answered the payment is there and its payer knows nothing: the same request again gives him that one."""
    p = payments()
    ann = p.person(3000)
    held = p.reservation(ann)
    p.service.terminate()
    p.begin(fault="service_answered")
    with pytest.raises((http.client.HTTPException, OSError)):
        p.ask(ann, [held], mode, key="k")
    dead(p)
    made = p.db.one("SELECT payment_id::text FROM payment.payment")
    p.begin()
    assert p.pay(ann, [held], mode, key="k") == made
    assert p.ask(ann, [held], mode, key="other").problem == "being-paid"
    assert p.balance(ann) == (2000 if mode == "hybrid" else 3000)
    assert p.db.one("SELECT count(*) FROM outbox.event WHERE type = 'SagaStart'") == (mode == "saga")


def test_two_instances_share_the_work(payments, outside):
    """Two beside each other, one killed in the middle: each payment is approved once, none is forgotten."""
    p = payments(outside=outside, gateway={"timeout": "1s"})
    first = p.service
    p.begin()
    ann = p.person(30000)
    pids = [p.pay(ann, [p.reservation(ann)], "hybrid") for _ in range(15)]
    first.kill9()
    more = [p.pay(ann, [p.reservation(ann)], "hybrid") for _ in range(5)]

    def done():
        shorten_lease(p)
        return all(p.state(x) == "COMPLETED" for x in pids + more)
    wait_until(done, 90, "all of them")
    assert outside.charged() == {x: 1000 for x in pids + more} and p.balance(ann) == 10000


def test_postgres_away_while_the_gateway_answers(own_pg, outside):
    """The answer cannot be written: the service stays, says so, and asks again when the database is back."""
    pg = own_pg()
    db = pg.createdb("payment_away")
    outside.plan = {"approve": ["late"]}
    p = Payments(db, outside=outside, gateway={"timeout": "20s", "give_up": "1m"})
    try:
        ann, pid = asked_for(p, "hybrid")
        wait_until(lambda: outside.late == 1, 60, "the request")
        p.db.close()
        pg.stop("immediate")
        outside.release()
        wait_until(lambda: p.service.get("/readyz")[0] == 503, 60, "it to notice")
        pg.start()
        wait_until(lambda: p.service.get("/readyz")[0] == 200, 60, "it to be ready")
        shorten_lease(p)
        wait_until(lambda: p.state(pid) == "COMPLETED", 30, "the payment")
        assert outside.charged() == {pid: 1000} and p.balance(ann) == 2000
        p.balanced()
    finally:
        p.close()
