"""tests/e2e/test_service_order.py -- postrider-order over real HTTP and Postgres: orders, the beginning of their payment in
both styles, and what its consumer's function makes of commands and events in every order they may come in. Whole flows
over all services are in test_flows.py."""
import itertools
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import servers
from fill import fill
from inbox import inbox  # noqa: F401
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
FAST = {"password": {"passes": 1, "memory": "8kB"}}
ITEMS = [{"sku": "tea", "quantity": 2, "unit_price": 300}, {"sku": "차 \"; DROP SCHEMA \"order\" CASCADE; --", "quantity": 1, "unit_price": 50}]


class People:
    """The user service, for tokens."""

    def __init__(self, db):
        self.service = Service("user", db.conninfo, config=FAST).start().wait_ready()
        self.api = Api(self.service.port)
        self.jwks = f"http://127.0.0.1:{self.service.port}/.well-known/jwks.json"

    def make(self, name):
        body = {"email": f"{name}@example.org", "password": "secret-1", "name": name}
        id = self.api.post("/users", body).json["user_id"]
        return id, self.api.post("/login", body).json["access_token"]


@pytest.fixture(scope="module")
def people(pg_server):
    db = pg_server.createdb(f"order_users_{os.getpid()}")
    p = People(db)
    p.ann, p.ann_token = p.make("ann")
    p.bob, p.bob_token = p.make("bob")
    yield p
    p.service.kill()
    db.drop()


class Orders:
    def __init__(self, db, people, **config):
        self.db, self.people = db, people
        self.service = Service("order", db.conninfo, config={"jwt": {"jwks": people.jwks}, **config}).start().wait_ready()
        self.api = Api(self.service.port)

    def make(self, items=None, token=None, **kw):
        answer = self.api.post("/orders", {"items": items or ITEMS}, token=token or self.people.ann_token, **kw)
        assert answer.status == 201, answer
        assert answer.headers["Location"] == f"/orders/{answer.json['order_id']}"
        return answer.json["order_id"]

    def get(self, order, token=None):
        return self.api.get(f"/orders/{order}", token=token or self.people.ann_token)

    def pay(self, order, mode="saga", token=None, **kw):
        return self.api.call("POST", f"/orders/{order}/pay?mode={mode}", token=token or self.people.ann_token, **kw)

    def paying(self, order, mode="saga"):
        answer = self.pay(order, mode)
        assert answer.status == 202, answer
        return answer.json["saga_id"]

    def row(self, order):
        return self.db.query('SELECT state, saga_id::text, payment_id::text FROM "order".orders WHERE order_id = %s', (order,))[0]

    def events(self, *types):
        return self.db.query("SELECT type, payload, headers FROM outbox.event WHERE type = ANY (%s) ORDER BY seq", (list(types),))

    def count(self):
        return self.db.query('SELECT (SELECT count(*) FROM "order".orders), (SELECT count(*) FROM "order".order_item),'
                             " (SELECT count(*) FROM outbox.event), (SELECT count(*) FROM saga.copy),"
                             " (SELECT sum(version)::int FROM \"order\".orders)")[0]

    # ---- what its consumer does

    def handle(self, *messages):
        """One batch, as a postrider-consumer calls it."""
        self.db.query('SELECT "order".on_messages(ARRAY(SELECT jsonb_populate_record(NULL::inbox.message, m)'
                      " FROM jsonb_array_elements(%s) WITH ORDINALITY AS x (m, n) ORDER BY n))", (json.dumps(messages),))

    def answers(self, saga, step):
        return [(h["saga-op"], h["saga-outcome"]) for (h,) in self.db.query(
            "SELECT headers FROM outbox.event WHERE type = 'SagaReply' AND headers ->> 'saga-id' = %s"
            " AND headers ->> 'saga-step' = %s ORDER BY seq", (saga, step))]


def message(topic, type, payload, **headers):
    return {"id": str(uuid.uuid4()), "topic": topic, "partition": 0, "message_offset": 1, "key": "k", "type": type,
            "payload": payload, "headers": {k.replace("_", "-"): v for k, v in headers.items()}}


def command(type, saga, step, op="do", **payload):
    return message("outbox.command.order", type, payload, saga_id=saga, saga_name="order", saga_step=step, saga_op=op,
                   saga_command_id=str(uuid.uuid5(uuid.UUID(saga), step + op)), saga_reply_to="outbox.saga.inbox",
                   correlation_id=saga)


def start(order, saga):
    return command("StartOrderPayment", saga, "ORDER", order_id=order)


def complete(order, saga, payment):
    return command("CompleteOrder", saga, "COMPLETE", order_id=order, payment_id=payment)


def revert(order, saga, step="ORDER"):
    return command("RevertOrder", saga, step, "undo", order_id=order)


def cancelled(order, payment, saga, state="CREATED"):
    return message("outbox.event.payment", "PaymentCancelled", {"payment_id": payment, "order_id": order, "order_state": state},
                   correlation_id=saga)


def ended(order, saga, type="SagaCompensated", name="order", user=None, seq=9):
    return message("outbox.event.saga", type, {
        "saga_id": saga, "name": name, "version": 1, "state": type.removeprefix("Saga").upper(), "data": {"order_id": order, "user_id": user},
        "steps": [{"step": "ORDER", "state": "UNDONE"}]}, outbox_seq=str(seq))


def told(type, order, saga, topic="order", **payload):
    """An event of the choreography."""
    return message(f"outbox.event.{topic}", type, {"order_id": order, "order_choreography_id": saga, **payload})


@pytest.fixture(scope="module")
def shared(pg_server, people):
    db = pg_server.createdb(f"order_{os.getpid()}")
    o = Orders(db, people)
    yield o
    o.service.kill()
    db.drop()


@pytest.fixture
def orders(empty_db, people):
    made = []

    def make(**config):
        made.append(Orders(empty_db, people, **config))
        return made[-1]
    yield make
    for o in made:
        o.service.kill()


# ---- HTTP

@pytest.mark.asan
def test_an_order(orders, people):
    o = orders()
    id = o.make()
    shown = o.get(id)
    assert shown.status == 200 and shown.json["items"] == ITEMS
    assert {k: shown.json[k] for k in ("user_id", "state", "amount", "payment_id", "saga_id")} == {
        "user_id": people.ann, "state": "CREATED", "amount": 650, "payment_id": None, "saga_id": None}
    assert o.get(id, people.bob_token).problem == "not-yours"
    assert o.get(str(uuid.uuid4())).status == 404
    assert o.api.get("/orders/17", token=people.ann_token).status == 404
    assert o.api.get(f"/orders/{id}").status == 401
    [(type, payload, _)] = o.events("OrderCreated")
    assert payload == {"order_id": id, "user_id": people.ann, "amount": 650, "state": "CREATED", "version": 1}


def test_the_list_has_pages(orders, people):
    o = orders()
    made = [o.make() for _ in range(5)][::-1]
    o.make(token=people.bob_token)
    seen, after = [], ""
    while True:
        page = o.api.get(f"/orders?user={people.ann}&limit=2{after}", token=people.ann_token).json
        seen += [x["order_id"] for x in page["orders"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == made
    assert len(o.api.get("/orders", token=people.bob_token).json["orders"]) == 1
    assert o.api.get(f"/orders?user={people.ann}", token=people.bob_token).problem == "not-yours"
    for bad in ("limit=0", "limit=101", "limit=x", "user=7", "after='", "limit=99999999999999999999"):
        assert o.api.get(f"/orders?{bad}", token=people.ann_token).status == 422, bad


BAD = [
    (b"", 400, []), (b"{", 400, []), (b"[]", 400, []), (b'{"items":[{"sku":"\xff","quantity":1,"unit_price":1}]}', 422, ["items[0].sku"]),
    ({}, 422, ["items"]), ({"items": []}, 422, ["items"]), ({"items": {}}, 422, ["items"]), ({"items": [7]}, 422, ["items[0]"]),
    ({"items": ITEMS * 51}, 422, ["items"]),
    *(({"items": [{**ITEMS[0], k: v}]}, 422, [f"items[0].{k}"]) for k, v in (
        ("sku", ""), ("sku", 7), ("sku", "x" * 65), ("quantity", 0), ("quantity", -1), ("quantity", 1.5), ("quantity", "2"), ("quantity", 1001),
        ("quantity", 10 ** 30), ("unit_price", -1), ("unit_price", 10 ** 9 + 1), ("unit_price", None), ("unit_price", 0.1), ("unit_price", True))),
]


@pytest.mark.asan
@pytest.mark.parametrize("body,status,members", BAD, ids=range(len(BAD)))
def test_bad_bodies(shared, body, status, members):
    before = shared.count()
    answer = shared.api.post("/orders", body, token=shared.people.ann_token, key="bad")
    assert (answer.status, answer.members) == (status, members), answer
    assert shared.count() == before


def test_the_dearest_order(shared):
    """Sums stay exact."""
    id = shared.make([{"sku": "x", "quantity": 1000, "unit_price": 10 ** 9}] * 100)
    assert shared.get(id).json["amount"] == 10 ** 14


@pytest.mark.parametrize("mode", ["saga", "choreography"])
@pytest.mark.asan
def test_pay(orders, people, mode):
    """Claimed once, asked for once, known at once; a second payment waits for the end of the first."""
    o = orders()
    id = o.make()
    assert o.pay(id, mode, people.bob_token).problem == "not-yours"
    assert o.pay(id, "cash").status == 422
    assert o.pay(str(uuid.uuid4()), mode).status == 404
    first = o.pay(id, mode, key="k")
    saga = first.json["saga_id"]
    assert first.headers["Location"] == f"/sagas/{saga}"
    assert o.pay(id, mode, key="k").json == first.json
    assert o.pay(id, mode).problem == "payment-in-progress"
    known = o.api.get(f"/sagas/{saga}", token=people.ann_token).json
    assert (known["state"], known["order_id"], known["steps"]) == ("STARTING", id, [])
    assert o.api.get(f"/sagas/{saga}", token=people.bob_token).problem == "not-yours"
    assert o.api.get(f"/sagas/{uuid.uuid4()}", token=people.ann_token).status == 404
    [(_, payload, headers)] = o.events("SagaStart", "OrderPaymentRequested")
    assert (payload["order_id"], payload["user_id"], payload["amount"]) == (id, people.ann, 650)
    assert (headers["saga-id"] if mode == "saga" else payload["order_choreography_id"]) == saga
    with ThreadPoolExecutor(4) as pool:
        other = o.make()
        got = sorted(a.status for a in pool.map(lambda _: o.pay(other, mode), range(4)))
    assert got == [202, 409, 409, 409] and len(o.events("SagaStart", "OrderPaymentRequested")) == 2


def test_methods(shared):
    """A path that is there by another method is 405 and says by which; one that only looks like it is 404."""
    id = shared.make()
    for method, path, allow in (("GET", f"/orders/{id}/pay", "POST"), ("POST", f"/orders/{id}", "GET, HEAD"), ("DELETE", "/orders", "POST, GET, HEAD"),
                                ("PUT", f"/sagas/{id}", "GET, HEAD")):
        answer = shared.api.call(method, path, token=shared.people.ann_token, check=False)
        assert (answer.status, answer.headers.get("Allow")) == (405, allow), (method, path, answer)
    for path in ("/order", "/orders/", f"/orders/{id}/", f"/orders/{id}/payments", f"/orders/{id}/pay/x", "/sagas", "/sagas/"):
        assert shared.api.call("GET", path, token=shared.people.ann_token, check=False).status == 404, path


def test_a_locked_user_orders_nothing(orders, people):
    """As far as it is known here; an older event that comes late does not unlock him."""
    o = orders()
    lock, create = (message("outbox.event.user", t, {"user_id": people.bob, "state": s}, outbox_seq=n)
                    for t, s, n in (("UserUpdated", "LOCKED", "7"), ("UserCreated", "ACTIVE", "3")))
    o.handle(lock, create)
    assert o.api.post("/orders", {"items": ITEMS}, token=people.bob_token).problem == "locked"
    assert o.make()
    o.handle(message("outbox.event.user", "UserUpdated", {"user_id": people.bob, "state": "ACTIVE"}, outbox_seq="8"))
    assert o.make(token=people.bob_token)


def test_foreign_users_keys(orders):
    """Tokens that were not signed by the user service."""
    o = orders()
    before = o.count()
    for bad in ("x", o.people.ann_token[:-2], o.people.ann_token + "A"):
        assert o.api.post("/orders", {"items": ITEMS}, token=bad).status == 401
    assert o.count() == before


# ---- the steps, commanded

def test_paid_by_commands(shared):
    id = shared.make()
    saga, payment = shared.paying(id), str(uuid.uuid4())
    assert shared.row(id) == ("CREATED", saga, None)
    shared.handle(start(id, saga))
    assert shared.get(id).json["state"] == "PAYING" and shared.pay(id).problem == "wrong-state"
    shared.handle(complete(id, saga, payment))
    assert shared.row(id) == ("PAID", saga, payment)
    assert shared.get(id).json["payment_id"] == payment
    shared.handle(start(id, saga), complete(id, saga, payment))
    assert shared.answers(saga, "ORDER") == shared.answers(saga, "COMPLETE") == [("do", "done"), ("do", "done")]
    assert [(t, p["state"]) for t, p, _ in shared.events("OrderPaymentStarted", "OrderPaid") if p["order_id"] == id] == [
        ("OrderPaymentStarted", "PAYING"), ("OrderPaid", "PAID")]
    # an operator who wants all of it undone
    shared.handle(revert(id, saga, "COMPLETE"))
    assert shared.row(id) == ("PAYING", saga, payment)
    shared.handle(cancelled(id, payment, saga), revert(id, saga))
    assert shared.row(id) == ("CREATED", None, None)
    assert shared.paying(id) != saga


def test_refusals(shared):
    id, other = shared.make(), str(uuid.uuid4())
    saga = shared.paying(id)
    cases = [(start(str(uuid.uuid4()), other), "ORDER"), (start("7", str(uuid.uuid4())), "ORDER"), (start(None, str(uuid.uuid4())), "ORDER"),
             (start(id, str(uuid.uuid4())), "ORDER"), (complete(id, str(uuid.uuid4()), other), "COMPLETE"),
             (complete(id, saga, other), "COMPLETE"), (command("BurnOrder", str(uuid.uuid4()), "X", order_id=id), "X"),
             (command(None, str(uuid.uuid4()), "X", order_id=id), "X")]
    for m, step in cases:
        shared.handle(m)
        assert shared.answers(m["headers"]["saga-id"], step) == [("do", "refused")], m
    assert shared.row(id) == ("CREATED", saga, None)
    shared.handle(start(id, saga))
    for bad in (None, "7", {}):
        m = complete(id, saga, bad)
        m["headers"]["saga-step"] = f"again {bad}"
        shared.handle(m)
    assert shared.row(id)[0] == "PAYING"


def test_every_order_of_a_failure(shared):
    """Done, undone, cancelled and told to be over, in each order in which four topics may bring it: the order ends free for
    another payment, whose start none of the late ones disturbs."""
    for places in itertools.permutations(range(4)):
        id = shared.make()
        saga, payment = shared.paying(id), str(uuid.uuid4())
        all_of_it = [start(id, saga), revert(id, saga), cancelled(id, payment, saga), ended(id, saga)]
        for i in places:
            shared.handle(all_of_it[i])
        state, has, _ = shared.row(id)
        assert (state, has) == ("CREATED", None), places
        again, paid = shared.paying(id), str(uuid.uuid4())
        shared.handle(start(id, again))
        for late in all_of_it:
            late["id"] = str(uuid.uuid4())
            shared.handle(late)
        shared.handle(complete(id, again, paid))
        assert shared.row(id) == ("PAID", again, paid), places


def test_a_cancelled_payment(shared):
    """The user's own cancel of a paid order: it is CANCELLED, or may be paid again, as the event says. Others' events do nothing."""
    for wanted in ("CANCELLED", "CREATED"):
        id = shared.make()
        saga, payment = shared.paying(id), str(uuid.uuid4())
        shared.handle(start(id, saga), complete(id, saga, payment))
        for odd in ("PAID", "PAYING", "", None, 7):
            shared.handle(cancelled(id, payment, str(uuid.uuid4()), odd))
        shared.handle(cancelled(id, str(uuid.uuid4()), saga, wanted), cancelled("x", payment, saga), cancelled(None, payment, saga))
        assert shared.row(id) == ("PAID", saga, payment)
        shared.handle(cancelled(id, payment, str(uuid.uuid4()), wanted))
        assert shared.row(id)[:2] == (wanted, None)
        assert shared.pay(id).status == (409 if wanted == "CANCELLED" else 202)


def test_what_is_not_ours(shared):
    before = shared.count()
    shared.handle(ended(str(uuid.uuid4()), str(uuid.uuid4()), name="pay"), message("outbox.event.payment", "PaymentCompleted", {"order_id": "x"}),
                  message("outbox.event.payment", "PointsDeducted", None), message("outbox.event.order", "OrderCreated", {"order_id": 1}),
                  message("outbox.event.saga", "SagaCompleted", None), message("outbox.event.payment", None, [1]))
    assert shared.count() == before
    shared.handle()


def test_aborted_by_an_operator(shared):
    """What had begun stays for him to settle; a claim that came to nothing is free."""
    id, begun = shared.make(), shared.make()
    saga, other = shared.paying(id), shared.paying(begun)
    shared.handle(start(begun, other), ended(id, saga, "SagaAborted"), ended(begun, other, "SagaAborted"))
    assert shared.row(id) == ("CREATED", None, None) and shared.row(begun) == ("PAYING", other, None)


def test_the_copy_of_a_saga(shared):
    id = shared.make()
    saga = shared.paying(id)
    shared.handle(ended(id, saga, "SagaCompleted", user=shared.people.ann, seq=5), ended(id, saga, "SagaStarted", user=shared.people.ann, seq=4))
    assert shared.api.get(f"/sagas/{saga}", token=shared.people.ann_token).json["state"] == "COMPLETED"


# ---- the steps, where nobody commands

def test_paid_by_choreography(shared):
    id = shared.make()
    saga = shared.paying(id, "choreography")
    asked, done = told("OrderPaymentRequested", id, saga), told("PaymentCompleted", id, saga, "payment", payment_id=saga)
    shared.handle(asked)
    assert shared.row(id)[0] == "PAYING"
    shared.handle(done, asked, done)
    assert shared.row(id) == ("PAID", saga, saga)
    told_of = [(t, p["state"], p["order_choreography_id"]) for t, p, h in shared.events(
        "OrderPaymentStarted", "OrderPaid", "OrderPaymentRefused", "OrderCompletionRefused") if p["order_id"] == id]
    assert told_of == [("OrderPaymentStarted", "PAYING", saga), ("OrderPaid", "PAID", saga)]
    assert not shared.answers(saga, "ORDER") and not shared.answers(saga, "COMPLETE")


def test_choreography_undone(shared):
    """An undo that comes before its do, after it, and a payment that was completed when all was undone already."""
    id = shared.make()
    saga = shared.paying(id, "choreography")
    asked, done = told("OrderPaymentRequested", id, saga), told("PaymentCompleted", id, saga, "payment", payment_id=saga)
    shared.handle(revert(id, saga), ended(id, saga, name="order-choreography"), asked)
    assert shared.row(id) == ("CREATED", None, None) and shared.answers(saga, "ORDER")[0] == ("undo", "done")
    saga = shared.paying(id, "choreography")
    asked, done = told("OrderPaymentRequested", id, saga), told("PaymentCompleted", id, saga, "payment", payment_id=saga)
    shared.handle(asked, revert(id, saga), done)
    assert shared.row(id) == ("CREATED", None, None)
    assert [p["reason"] for t, p, h in shared.events("OrderCompletionRefused") if p["order_choreography_id"] == saga] == [
        "the order is not being paid by this"]


def test_a_cancel_during_a_choreography(shared):
    """The user cancels the payment while the choreography is undone: RevertOrder frees the order, and PaymentCancelled, in
    either order, leaves it CANCELLED. Only of its last payment, and not when another one has begun."""
    for n in range(2):
        id = shared.make()
        saga = shared.paying(id, "choreography")
        shared.handle(told("OrderPaymentRequested", id, saga))
        undo, cancel = revert(id, saga), cancelled(id, saga, str(uuid.uuid4()), "CANCELLED")
        shared.handle(*(undo, cancel) if n else (cancel, undo))
        assert shared.row(id) == ("CANCELLED", None, saga), n
        assert shared.pay(id).status == 409
    id = shared.make()
    first = shared.paying(id, "choreography")
    shared.handle(told("OrderPaymentRequested", id, first), revert(id, first))
    shared.handle(cancelled(id, str(uuid.uuid4()), first, "CANCELLED"), cancelled(id, first, first, "CREATED"))
    assert shared.row(id) == ("CREATED", None, None)
    second = shared.paying(id, "choreography")
    shared.handle(cancelled(id, first, str(uuid.uuid4()), "CANCELLED"))
    assert shared.row(id) == ("CREATED", second, None)
    shared.handle(told("OrderPaymentRequested", id, second), revert(id, second), cancelled(id, first, str(uuid.uuid4()), "CANCELLED"))
    assert shared.row(id) == ("CREATED", None, None)


def test_choreography_refused(shared):
    id = shared.make()
    saga = shared.paying(id)
    other = str(uuid.uuid4())
    shared.handle(told("OrderPaymentRequested", id, other))
    assert [(p["reason"], p["payment_id"]) for t, p, h in shared.events("OrderPaymentRefused") if p["order_choreography_id"] == other] == [
        ("another payment of this order has begun", other)]
    assert shared.row(id) == ("CREATED", saga, None)


# ---- races

def test_completion_against_cancel(shared):
    """The two at the same instant, many times: PAID by the payment, or free again; never PAID by a payment that is cancelled."""
    for n in range(8):
        id = shared.make()
        saga, payment = shared.paying(id), str(uuid.uuid4())
        shared.handle(start(id, saga))
        both = [complete(id, saga, payment), cancelled(id, payment, saga)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(shared.handle, both if n % 2 else both[::-1]))
        done = ("do", "done") in shared.answers(saga, "COMPLETE")
        paid = [p for t, p, _ in shared.events("OrderPaid") if p["order_id"] == id]
        assert shared.row(id) == ("CREATED", None, None) and bool(paid) == done


def test_lanes_do_not_deadlock(shared):
    """Two batches of the same orders, in opposite directions, at once."""
    ids = [shared.make() for _ in range(20)]
    sagas = {id: shared.paying(id) for id in ids}
    shared.handle(*(start(id, sagas[id]) for id in ids))
    with ThreadPoolExecutor(4) as pool:
        for f in [pool.submit(shared.handle, *batch) for batch in (
                [cancelled(id, str(uuid.uuid4()), sagas[id]) for id in ids], [ended(id, sagas[id]) for id in ids[::-1]],
                [revert(id, sagas[id]) for id in ids[::-1]])]:
            f.result()
    assert {shared.row(id)[0] for id in ids} == {"CREATED"}


# ---- through Kafka, the programs and their files

def test_through_kafka(inbox, people):  # noqa: F811
    """The same by a consumer, with the function's name as etc/services/order-consumer.cfg has it."""
    i = inbox(partitions=1)
    o = Orders(i.db, people)
    try:
        id = o.make()
        saga = o.paying(id)
        i.consumer({"kind": "sql", "function": "order.on_messages"}).start()
        m = start(id, saga)
        i.put(id.encode(), json.dumps(m["payload"]), [(k, v.encode()) for k, v in {
            "id": m["id"], "type": m["type"], **m["headers"]}.items()])
        i.flush()
        wait_until(lambda: o.row(id)[0] == "PAYING", 60, "the order to be paying")
        assert o.answers(saga, "ORDER") == [("do", "done")]
    finally:
        o.service.kill()


def test_config():
    order = servers.Cli("postrider-order")
    sample = os.path.join(servers.ROOT, "etc", "services", "order.cfg")
    assert order("-c", sample, "--check").returncode == 0
    with open(sample, encoding="utf-8") as f:
        assert order("--print-sample").stdout == f.read()


def test_plans(shared):
    """Every query of a request's path finds its rows by an index, among a million orders."""
    fill(shared.db, ['"order".orders'], """
        INSERT INTO "order".orders (order_id, user_id, amount)
        SELECT ('00000000-0000-7000-8001-' || lpad(n::text, 12, '0'))::uuid,
            ('00000000-0000-7000-8000-' || lpad((n / 20)::text, 12, '0'))::uuid, n FROM generate_series(1, 1000000) AS n""")
    ask = "SELECT * FROM \"order\".orders WHERE user_id = '00000000-0000-7000-8000-000000000007' AND order_id < 'ffffffff-ffff-ffff-ffff-ffffffffffff' ORDER BY order_id DESC LIMIT 50"
    for sql, index in ((ask, "orders_of_user"), ("SELECT * FROM \"order\".orders WHERE order_id = '00000000-0000-7000-8000-000000000007'", "orders_pkey")):
        [(plan,)] = shared.db.query("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql)
        text = json.dumps(plan)
        pages = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        assert index in text and "Seq Scan" not in text and pages < 100, plan
