"""tests/fault/test_service_order_kill.py -- the order service dies in the middle of a payment's beginning: what its client asks again
under the same Idempotency-Key has begun once, and its consumer's batch is done wholly or not at all."""
import http.client

import pytest
from service import Api, Service
from tokens import USER, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(120)
ANN = "01890000-0000-7000-8000-000000000001"
ITEMS = {"items": [{"sku": "tea", "quantity": 1, "unit_price": 300}]}


@pytest.mark.parametrize("mode", ["saga", "choreography"])
def test_killed_between_the_commit_and_the_answer(empty_db, mode):
    """If we die at service_answered, the payment is asked for and the client knows nothing: his second request gets its id, and
    there is one start."""
    with Issuer(*USER) as users:
        made, token = [], users.token(ANN)

        def service(**kw):
            made.append(Service("order", empty_db.conninfo, config={"jwt": {"jwks": users.url}}).start(**kw).wait_ready())
            return Api(made[-1].port)
        try:
            order = service().post("/orders", ITEMS, token=token).json["order_id"]
            made[-1].terminate()
            api, path = service(fault="service_answered"), f"/orders/{order}/pay?mode={mode}"
            with pytest.raises((http.client.HTTPException, OSError)):
                api.call("POST", path, token=token, key="k-1")
            assert made[-1].wait() != 0
            claimed = empty_db.one('SELECT saga_id::text FROM "order".orders')
            api = service()
            again = api.call("POST", path, token=token, key="k-1")
            assert (again.status, again.json["saga_id"]) == (202, claimed)
            assert api.call("POST", path, token=token, key="k-2").problem == "payment-in-progress"
            assert empty_db.one("SELECT count(*) FROM outbox.event WHERE type IN ('SagaStart', 'OrderPaymentRequested')") == 1
        finally:
            for s in made:
                s.kill()


def test_killed_at_any_moment(empty_db):
    """kill -9 while an order is being made, six times: with its key asked again each is there once."""
    with Issuer(*USER) as users:
        token = users.token(ANN)
        for n in range(6):
            s = Service("order", empty_db.conninfo, config={"jwt": {"jwks": users.url}}).start().wait_ready()
            try:
                Api(s.port).get("/orders", token=token)
                c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=10)
                c.request("POST", "/orders", b'{"items":[{"sku":"x","quantity":1,"unit_price":1}]}',
                          {"Content-Type": "application/json", "Authorization": f"Bearer {token}", "Idempotency-Key": f"k{n}"})
                wait_until(lambda: n % 2 or empty_db.one('SELECT count(*) FROM "order".orders') > n, 30, "the row")
                s.kill9()
                c.close()
                s = Service("order", empty_db.conninfo, config={"jwt": {"jwks": users.url}}).start().wait_ready()
                body = {"items": [{"sku": "x", "quantity": 1, "unit_price": 1}]}
                answers = []

                def again(port=s.port, n=n, got=answers):
                    got.append(Api(port).post("/orders", body, token=token, key=f"k{n}"))
                    return got[-1].status == 201
                wait_until(again, 30, "its answer")  # Postgres may still be at work for the one that was killed
                assert {a.problem for a in answers[:-1]} <= {"request-in-progress"}, answers
            finally:
                s.kill()
        assert empty_db.one('SELECT count(*) FROM "order".orders') == empty_db.one("SELECT count(*) FROM outbox.event") == 6
