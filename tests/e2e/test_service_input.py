"""tests/e2e/test_service_input.py -- bad input to every service, from one table: no JSON, wrong types, huge numbers, SQL in
strings, bytes that are no UTF-8, tokens that are missing, forged, expired or of another kind, and ids of others. The right
status each time, and nothing has changed in any database.

All services are at work, and there is something of everything: a place in the queue, a reservation that is held, one that is
paid, an order that is paid, so that what is refused is refused for its own sake."""
import base64
import json
import uuid

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from stack import stack  # noqa: F401
from tokens import QUEUE, USER, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(600)
# Nothing may end by itself meanwhile, however long a busy machine takes.
STACK = {"without": ["platform", "platform-consumer", "platform-sink"],
         "options": {"reservation": ["hold.for=2h"], "queue": ["admission.active_for=2h"]}}

SQL = "x'; DROP SCHEMA service CASCADE; --"
HUGE = 10 ** 30
BAD = {  # of each kind of member; None: it is missing
    "uuid": [None, 7, True, [], {}, "", "x", SQL, "g" * 36, "0" * 500],
    "id": [None, 7, True, [], {}, "", "x", SQL, "-1", "1.5", "9" * 30],
    "uuids": [None, 7, "x", {}, [], [7], ["x"], [None], [SQL], [str(uuid.uuid4())] * 2],
    "ids": [None, 7, "x", {}, [], [7], ["x"], [None], [SQL], ["1", "1"], ["9" * 30]],
    "amount": [None, "5", True, [], {}, -1, 0, 1.5, HUGE, 1e300],
    "text": [None, 7, True, [], {}, "", "x" * 2000],
    "token": [None, 7, True, [], {}],
    "word": [None, 7, True, [], {}, ""],
    "items": [None, 7, "x", {}, [], [7], [{}], [{"sku": 7, "quantity": 1, "unit_price": 1}], [{"sku": "x", "quantity": HUGE, "unit_price": 1}],
              [{"sku": "x", "quantity": 1, "unit_price": -1}], [{"sku": "x", "quantity": "1", "unit_price": 1}]],
}
BODIES = [(b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'"x"', 400), (b"{} {}", 400), (b"\xff\xfe", 400), (b'{"x":1,"x":2}', 400),
          (b'{"x":' * 2000 + b"1" + b"}" * 2000, 400), (b"{" + b" " * 70_000 + b"}", 413)]
QUERIES = {"limit": ["0", "-1", "x", "1e3", "9" * 30, ""], "after": ["x", SQL], "user": ["x", "7", SQL, ""], "mode": ["x", "", SQL]}


class Use:
    """An endpoint as somebody would use it. body: {member: (kind, a good value)}; whose: "user", "queue" or nobody's token;
    mine: another one is refused; bad: kinds whose status is another than 422."""

    def __init__(self, service, method, path, body=None, whose="user", mine=False, query=()):
        self.service, self.method, self.path, self.body, self.whose, self.mine, self.query = service, method, path, body, whose, mine, query

    def __repr__(self):
        return f"{self.service} {self.method} {self.path}"


def uses(a):
    seats = {"schedule_id": ("id", a.schedule), "seat_ids": ("ids", [a.free]), "queue_token": ("token", a.queue_token)}
    return [
        Use("user", "POST", "/users", {"email": ("text", "x@y.z"), "password": ("text", "secret-1"), "name": ("text", "X")}, None),
        Use("user", "POST", "/login", {"email": ("text", a.email), "password": ("text", "wrong-1")}, None),
        Use("user", "POST", "/tokens/verify", {"token": ("word", "x")}, None),
        Use("user", "GET", f"/users/{a.id}", mine=True),
        Use("concert", "GET", "/concerts", whose=None, query=["limit"]),
        Use("concert", "GET", f"/concerts/{a.concert}", whose=None),
        Use("concert", "GET", f"/concerts/{a.concert}/schedules", whose=None),
        Use("concert", "GET", f"/schedules/{a.schedule}/seats", whose=None),
        Use("queue", "POST", "/queue/tokens", {"concert_id": ("id", a.concert)}),
        Use("queue", "GET", "/queue/status", whose="queue"),
        Use("queue", "POST", "/queue/status", {"token": ("token", a.queue_token)}, None),
        Use("reservation", "POST", "/reservations", seats),
        Use("reservation", "POST", "/bookings", seats),
        Use("reservation", "GET", "/reservations", query=["user", "limit", "after"]),
        Use("reservation", "GET", f"/reservations/{a.held}", mine=True),
        Use("reservation", "GET", f"/reservations/{a.held}/history", mine=True),
        Use("reservation", "DELETE", f"/reservations/{a.held}", mine=True),
        Use("reservation", "GET", f"/sagas/{a.booked}", mine=True),
        Use("payment", "POST", f"/balances/{a.id}/charge", {"amount": ("amount", 5)}, mine=True),
        Use("payment", "GET", f"/balances/{a.id}", mine=True),
        Use("payment", "GET", f"/balances/{a.id}/history", mine=True, query=["limit"]),
        Use("payment", "POST", "/payments", {"reservation_ids": ("uuids", [a.held]), "token": ("token", a.queue_token)}, mine=True, query=["mode"]),
        Use("payment", "GET", "/payments", query=["user", "limit"]),
        Use("payment", "GET", f"/payments/{a.paid}", mine=True),
        Use("payment", "GET", f"/payments/{a.paid}/receipt", mine=True),
        Use("payment", "POST", f"/payments/{a.paid}/cancel", mine=True),
        Use("payment", "GET", f"/sagas/{a.paid}", mine=True),
        Use("order", "POST", "/orders", {"items": ("items", [{"sku": "x", "quantity": 1, "unit_price": 1}])}),
        Use("order", "GET", "/orders", query=["user", "limit", "after"]),
        Use("order", "GET", f"/orders/{a.order_id}", mine=True),
        Use("order", "POST", f"/orders/{a.order_id}/pay", mine=True, query=["mode"]),
        Use("order", "GET", f"/sagas/{a.order_saga}", mine=True),
    ]


@pytest.fixture(scope="module")
def people(stack):  # noqa: F811
    """Ann, who has something of everything, and Bob, who has a place in the queue."""
    ann, bob = stack.person("ann", points=10_000), stack.person("bob", points=10_000)
    ann.concert, [ann.schedule] = stack.open_concert("input", seats=5)
    stack.settle(but=("live_sagas",))
    for p in (ann, bob):
        p.admitted(ann.concert)
    seats = [s["seat_id"] for s in ann.seats(ann.schedule)]
    [ann.held], [first] = ann.hold(ann.schedule, seats[:1]), ann.hold(ann.schedule, seats[1:2])
    stack.settle(but=("live_sagas",))
    ann.paid = ann.pay([first])["payment_id"]
    ann.wait_saga(ann.paid, "COMPLETED")
    ann.admitted(ann.concert)
    stack.settle(but=("live_sagas",))
    ann.booked = ann.book(ann.schedule, seats[3:4]).json["saga_id"]
    wait_until(lambda: {"step": "CONCERT", "state": "DONE"} in ann.saga(ann.booked, "reservation")["steps"], 150, "the booking")
    ann.admitted(ann.concert)
    ann.order_id = ann.order(500)
    ann.order_saga = ann.pay_order(ann.order_id).json["saga_id"]
    ann.wait_order(ann.order_id, "PAID")
    ann.free = seats[2]
    stack.settle(but=("live_sagas",))
    return ann, bob


def state(stack):  # noqa: F811
    """Everything that the services keep, but for what only counts attempts and facts."""
    found = {}
    for word in ("user", "concert", "queue", "reservation", "payment", "order"):
        db = stack.db(word)
        tables = [t for (t,) in db.query("SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = %s AND"
                                         " tablename NOT IN ('login_attempt', 'setting') ORDER BY 1", (word,))]
        tables += ["service.idempotency", "saga.copy"]
        found[word] = {t: db.one(f"SELECT md5(coalesce(string_agg(x::text, '|' ORDER BY x::text), '')) FROM {t} AS x") for t in tables}
        found[word]["events"] = db.one("SELECT count(*) FROM outbox.event WHERE type <> 'QueueStatusChecked'")
    return found


class Unchanged:
    def __init__(self, stack):  # noqa: F811
        self.stack = stack

    def __enter__(self):
        self.before = state(self.stack)

    def __exit__(self, kind, *_):
        if kind is None:
            after = state(self.stack)
            assert after == self.before, [(w, t) for w in after for t in after[w] if after[w][t] != self.before[w].get(t)]


def good(use):
    return {k: v for k, (_, v) in use.body.items()} if use.body else None


def ask(person, use, body=None, token=None, path=None, **kw):
    api = person.api(use.service)
    data = body if body is not None else good(use)
    if token is None:
        token = {"user": person.token, "queue": person.queue_token}.get(use.whose)
    return api.call(use.method, path or use.path, data, token=token or None, check=False, **kw)


def issuer(stack, word, kind):  # noqa: F811
    """Signs with the service's own key, which no client has: expired and mislabelled tokens are good otherwise."""
    kid, secret = stack.db(word).query("SELECT kid, encode(private_key, 'hex') FROM service.jwt_key ORDER BY use_from LIMIT 1")[0]
    i = Issuer(*kind)
    i.kid, i.key = kid, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    return i


def test_the_table_is_whole(stack, people):  # noqa: F811
    """Every operation that somebody's documents name stands in it."""
    ann, _ = people
    missing = []
    for service in ("user", "concert", "queue", "reservation", "payment", "order"):
        api = ann.api(service)
        seen = {id(api.operation(u.method, u.path)) for u in uses(ann) if u.service == service}
        missing += [(service, method, path) for path, item in api.document()["paths"].items() for method, op in item.items()
                    if id(op) not in seen and (op.get("security") or op.get("requestBody"))]
    assert not missing


def test_no_json(stack, people):  # noqa: F811
    ann, _ = people
    with Unchanged(stack):
        for use in [u for u in uses(ann) if u.body]:
            for body, status in BODIES:
                answer = ask(ann, use, body, key="bad")
                assert answer.status == status and answer.problem, (use, body[:30], answer)
            for media in ("text/plain", "", "application/jsonx"):
                assert ask(ann, use, headers={"Content-Type": media}).status == 415, (use, media)


def test_wrong_members(stack, people):  # noqa: F811
    """422 with the member's name, or 400 where it is no text at all."""
    ann, _ = people
    with Unchanged(stack):
        for use in [u for u in uses(ann) if u.body]:
            for member, (kind, _) in use.body.items():
                for bad in BAD[kind]:
                    body = {**good(use), member: bad}
                    if bad is None:
                        del body[member]
                    answer = ask(ann, use, body)
                    assert answer.status == 422 and answer.members[0].startswith(member), (use, member, bad, answer)
                for raw in (b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\\u0000"', b'"\\ud800"'):
                    text = json.dumps({**good(use), member: "@@"}).encode().replace(b'"@@"', raw)
                    assert ask(ann, use, text).status in (400, 422), (use, member, raw)


def test_wrong_paths_and_queries(stack, people):  # noqa: F811
    ann, _ = people
    with Unchanged(stack):
        for use in uses(ann):
            parts = use.path.split("/")
            at = next((i for i, p in enumerate(parts) if p and (p[0].isdigit() or p == ann.id)), None)
            for bad in ("x", "'%20OR%20'1'='1", "0", "-1", "9" * 40, str(uuid.uuid4())) if at else ():
                path = "/".join([*parts[:at], bad, *parts[at + 1:]])
                wanted = (403, 404) if len(bad) == 36 else (404,)
                assert ask(ann, use, path=path).status in wanted, (use, path)
            for bad in ("%00", "%ff", "%0a") if at else ():
                assert ask(ann, use, path="/".join([*parts[:at], bad, *parts[at + 1:]])).status == 400, (use, bad)
            for name in use.query:
                for bad in QUERIES[name]:
                    answer = ask(ann, use, path=f"{use.path}?{name}={bad.replace(' ', '%20')}")
                    assert answer.status == 422, (use, name, bad, answer)


def test_tokens(stack, people):  # noqa: F811
    """Missing, forged, expired, of another issuer or audience, the queue's as a user's and a user's as the queue's."""
    ann, _ = people
    by_user, by_queue = issuer(stack, "user", USER), issuer(stack, "queue", QUEUE)
    try:
        queue_claims = json.loads(base64.urlsafe_b64decode(ann.queue_token.split(".")[1] + "=="))
        extra = {k: v for k, v in queue_claims.items() if k in ("jti", "concert_id", "number", "active_at", "active_us")}
        forged = {"user": {**by_user.forged(ann.id), "the queue's": ann.queue_token},
                  "queue": {**by_queue.forged(ann.id, **extra), "the user's": ann.token}}
        with Unchanged(stack):
            for use in [u for u in uses(ann) if u.whose]:
                assert person_free(ann, use).status == 401, use
                for name, bad in forged[use.whose].items():
                    if bad:
                        answer = ask(ann, use, token=bad)
                        assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer"), (use, name, answer)
            for use in [u for u in uses(ann) if u.body and any(kind == "token" for kind, _ in u.body.values())]:
                member = next(m for m, (kind, _) in use.body.items() if kind == "token")
                for name, bad in forged["queue"].items():
                    answer = ask(ann, use, {**good(use), member: bad})
                    assert answer.status == 401 or (not bad and answer.status == 422), (use, name, answer)
    finally:
        by_user.close()
        by_queue.close()


def person_free(person, use):
    return person.api(use.service).call(use.method, use.path, good(use), check=False)


def test_ids_of_others(stack, people):  # noqa: F811
    """Bob asks for what is Ann's: 403, whatever he would do with it; and her place in the queue is not his."""
    ann, bob = people
    with Unchanged(stack):
        for use in [u for u in uses(ann) if u.mine]:
            answer = ask(ann, use, token=bob.token)
            assert answer.status == 403, (use, answer)
        for service in ("reservation", "payment", "order"):
            assert bob.get(service, f"/{service}s?user={ann.id}").status == 403
        for path in ("/reservations", "/bookings"):
            body = {"schedule_id": ann.schedule, "seat_ids": [ann.free], "queue_token": ann.queue_token}
            assert bob.call("reservation", "POST", path, body).status == 403
        other = {"reservation_ids": [ann.held], "token": bob.queue_token}
        assert bob.call("payment", "POST", "/payments", other).status in (403, 422)
