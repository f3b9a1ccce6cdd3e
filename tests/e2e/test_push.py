"""tests/e2e/test_push.py -- handler kind push: which events users are told of, the list and the stream over real HTTP, several
members, and alerts of what failed through a webhook."""
import http.client
import itertools
import json
import os
import re
import socket
import time
import uuid

import pytest
import servers
from alert_hook import Hook
from inbox import inbox  # noqa: F401
from service import Api
from tokens import USER, Issuer
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)
KIND = {"kind": "push"}
MESSAGE = "ROW(%s::uuid, %s, 0, 0, %s, %s, %s::jsonb, NULL, %s::jsonb, now())::inbox.message"
SENT = "SELECT what, subject, state FROM push.notification ORDER BY notification_id"


def schema(db):
    with open(os.path.join(servers.ROOT, "consumers/push/schema.sql"), encoding="utf-8") as f:
        db.psql(f.read())
    return db


@pytest.fixture
def told(db):
    """A database with the schema, for cases that are about SQL alone."""
    return schema(db)


@pytest.fixture(scope="module")
def users():
    with Issuer(*USER) as issuer:
        yield issuer


@pytest.fixture
def hook():
    h = Hook().start()
    yield h
    h.stop()


def call(db, *events, function="on_messages"):
    """Hands messages (topic, type, payload[, headers]), one batch, to the function."""
    args = []
    for topic, kind, payload, *more in events:
        args += [str(uuid.uuid4()), topic, "k", kind, json.dumps(payload), json.dumps(more[0] if more else {})]
    db.query(f"SELECT push.{function}(ARRAY[{', '.join([MESSAGE] * len(events))}])", args)


def test_what_is_forgotten(told):
    """What is old goes, also what was never sent: retracted before, or failed. What is pending stays."""
    u = str(uuid.uuid4())
    told.query("INSERT INTO push.notification (user_id, what, subject, text, cause, state, sent_at, made_at) SELECT %s, 'held', s.state || s.n, '', 'x', s.state,"
               " CASE WHEN s.state = 'SENT' THEN now() - s.n * interval '1 day' END, now() - s.n * interval '1 day'"
               " FROM (SELECT * FROM unnest(ARRAY['PENDING', 'SENT', 'FAILED', 'RETRACTED']) AS a (state), generate_series(0, 9, 3) AS b (n)) AS s", (u,))
    assert told.one("SELECT push.forget('4 days', 5)") == 5 and told.one("SELECT push.forget('4 days', 5)") == 1
    assert told.query("SELECT state, count(*) FROM push.notification GROUP BY 1 ORDER BY 1") == [("FAILED", 2), ("PENDING", 4), ("RETRACTED", 2), ("SENT", 2)]


def reservation(kind, user, id=None, status=None, **more):
    return ("outbox.event.reservation", kind, {"reservation_id": id or str(uuid.uuid4()), "user_id": user, "label": "A-1", "status": status or kind[11:].upper(),
                                               "expires_at": "2030-01-01T12:34:56.000000Z", "reason": "it is taken", "payment_id": None, **more})


def payment(kind, user, id, **more):
    return ("outbox.event.payment", kind, {"payment_id": id, "user_id": user, "reservation_ids": [], "mode": "saga", **more})


def command(kind, headers=None, **payload):
    return ("outbox.command.push", kind, payload, headers or {})


# ---------------------------------------------------------------- which event becomes what

def test_the_table(told):
    """Every event of the table makes its notification, once; others none."""
    u, r, p, o = (str(uuid.uuid4()) for _ in range(4))
    story = [reservation("ReservationRequested", u, r), reservation("ReservationHeld", u, r), reservation("ReservationUpdated", u, r, "HELD"),
             reservation("ReservationUpdated", u, r, "CONFIRMED", payment_id=p), payment("PaymentInitiated", u, p), payment("PaymentCompleted", u, p),
             reservation("ReservationRejected", u, o), reservation("ReservationExpired", u, str(uuid.UUID(int=7))),
             payment("PaymentFailed", u, str(uuid.UUID(int=8)), reason="not enough points"), payment("PaymentCancelled", u, str(uuid.UUID(int=9))),
             ("outbox.event.order", "OrderPaid", {"order_id": str(uuid.UUID(int=10)), "user_id": u, "amount": 1, "state": "PAID"}),
             ("outbox.event.queue", "TokenActivated", {"token_id": r, "user_id": u}), ("outbox.event.queue", "QueueExpired", {"token_id": r, "user_id": u}),
             ("outbox.event.user", "UserCreated", {"user_id": u})]
    expected = [("held", r), ("paid", p), ("rejected", o), ("refresh", o), ("expired", str(uuid.UUID(int=7))),
                ("payment-failed", str(uuid.UUID(int=8))), ("undone", str(uuid.UUID(int=9))), ("paid", str(uuid.UUID(int=10)))]
    call(told, *story)
    call(told, *story)
    for event in story:
        call(told, event)
    assert [s[:2] for s in told.query(SENT)] == expected
    texts = dict(told.query("SELECT what || subject, text FROM push.notification"))
    assert texts["held" + r] == "Seat A-1 is held for you. Pay before 12:34 UTC."
    assert texts["payment-failed" + str(uuid.UUID(int=8))] == "The payment failed: not enough points. You have lost no money."
    assert told.one("SELECT count(*) FROM push.admin_alert") == 0


def test_a_choreographed_payment_is_told(told):
    """QueueExpired of a payment: PaymentNotified in the same transaction, with the tracer's member; also when the user was told before."""
    u, p, r = (str(uuid.uuid4()) for _ in range(3))
    expired = ("outbox.event.queue", "QueueExpired", {"token_id": r, "user_id": u, "concert_id": "7", "payment_id": p, "reservation_ids": [r], "choreography_id": p},
               {"correlation-id": p})
    call(told, reservation("ReservationUpdated", u, r, "CONFIRMED", payment_id=p), expired)
    assert told.query("SELECT type, aggregateid, payload, headers ->> 'correlation-id' FROM outbox.event") == [
        ("PaymentNotified", p, {"payment_id": p, "user_id": u, "reservation_ids": [r], "choreography_id": p}, p)]
    assert [s[:2] for s in told.query(SENT)] == [("paid", p)]


def test_nobody_says_that_money_is_back_that_was_not_taken(told):
    u, taken, refused, unknown = (str(uuid.uuid4()) for _ in range(4))
    call(told, payment("PaymentCancelled", u, taken, was_paid=True), payment("PaymentCancelled", u, refused, was_paid=False), payment("PaymentCancelled", u, unknown))
    assert told.query("SELECT subject, text LIKE '%%your money is back%%' FROM push.notification ORDER BY notification_id") == [
        (taken, True), (refused, False), (unknown, True)]


def send(db):
    return db.one("SELECT push.send(500)")


@pytest.mark.parametrize("order", list(itertools.permutations(["paid", "sent", "cancelled"])), ids="-".join)
def test_correction_in_any_order(told, order):
    """A payment that was told as paid and then undone: whatever comes first, at the end paid is retracted and the correction is there."""
    u, p, r = (str(uuid.uuid4()) for _ in range(3))
    for what in order:
        if what == "sent":
            send(told)
        else:
            call(told, reservation("ReservationUpdated", u, r, "CONFIRMED", payment_id=p) if what == "paid" else payment("PaymentCancelled", u, p))
    send(told)
    assert {(w, s) for w, _, s in told.query(SENT)} == {("paid", "RETRACTED"), ("undone", "SENT")}
    seen = order.index("paid") < order.index("sent") < order.index("cancelled")
    events = [e[0] for e in told.query("SELECT type FROM outbox.event ORDER BY seq")]
    # In order per notification, whose row the transaction has locked; of two of one user nobody can say which commits first.
    assert told.one("SELECT count(*) FROM outbox.event WHERE aggregateid <> payload ->> 'notification_id'") == 0
    assert events == (["NotificationSent", "NotificationRetracted", "NotificationSent"] if seen else ["NotificationSent"])


@pytest.mark.parametrize("late", [False, True], ids=["in order", "hold last"])
@pytest.mark.parametrize("end", ["ReservationExpired", "ReservationRejected", "PushCorrection"])
def test_a_hold_that_was_over_before_it_was_told(told, end, late):
    """Push was away for longer than the hold lasted, and has both events in one batch: the choreography of the hold waited for
    NotificationSent for ever, and its time-out would have had everything undone. It is sent, and is retracted in the same breath."""
    u, r = str(uuid.uuid4()), str(uuid.uuid4())
    over = command("PushCorrection", user_id=u, reservation_ids=[r], payment_id=str(uuid.uuid4())) if end == "PushCorrection" else \
        reservation(end, u, r, hold_id=r)
    both = [reservation("ReservationHeld", u, r, hold_id=r), over]
    call(told, *(both[::-1] if late else both))
    sent = send(told)
    assert sent == told.one("SELECT count(*) FROM push.notification WHERE sent_at IS NOT NULL") > 0, "what is counted is notifications"
    assert send(told) == 0
    if late and end == "PushCorrection":
        assert told.one("SELECT state FROM push.notification WHERE what = 'held'") == "SENT"  # of another subject: nothing of it was retracted
        return
    events = told.query("SELECT type, payload ->> 'what', payload ->> 'hold_id' FROM outbox.event ORDER BY seq")
    assert [e for e in events if e[1] == "held"] == [("NotificationSent", "held", r), ("NotificationRetracted", "held", r)]
    assert ("held", r, "RETRACTED") in told.query(SENT) and told.one("SELECT count(*) FROM push.notification WHERE state = 'PENDING'") == 0


def saga_headers(saga, op, command=None, step="PUSH"):
    return {"saga-id": saga, "saga-step": step, "saga-op": op, "saga-command-id": command or str(uuid.uuid4()), "saga-name": "book",
            "saga-reply-to": "outbox.saga.inbox", "correlation-id": saga}


def test_commands(told):
    """PushUser and PushCorrection, plain and as steps of a saga: told once, taken back once, each answered."""
    u, p, r1, r2 = (str(uuid.uuid4()) for _ in range(4))
    call(told, command("PushUser", user_id=u, what="paid", reservation_ids=[r1, r2], payment_id=p))
    call(told, command("PushUser", user_id=u, what="held", reservation_ids=[r1]))
    assert told.query("SELECT what, subject, subject_ids::text[] FROM push.notification ORDER BY 1") == [("held", r1, [r1]), ("paid", p, [p, r1, r2])]
    do, undo = saga_headers(p, "do"), saga_headers(p, "undo")
    for _ in range(2):
        call(told, command("PushUser", do, user_id=u, what="paid", payment_id=p, reservation_ids=[r1]))
    for _ in range(2):
        call(told, command("PushCorrection", undo, user_id=u, payment_id=p, reservation_ids=[r1]))
    assert told.query(SENT) == [("paid", p, "RETRACTED"), ("held", r1, "RETRACTED"), ("undone", p, "PENDING")]
    replies = told.query("SELECT headers ->> 'saga-op', headers ->> 'saga-outcome' FROM outbox.event WHERE type = 'SagaReply' ORDER BY seq")
    assert replies == [("do", "done")] * 2 + [("undo", "done")] * 2


def test_undo_of_what_came_by_an_event(told):
    """In a choreography the user was told by an event, and the undo comes as a saga's command whose do nobody sent: it corrects, and answers."""
    u, r = str(uuid.uuid4()), str(uuid.uuid4())
    call(told, reservation("ReservationHeld", u, r))
    call(told, command("PushCorrection", saga_headers(r, "undo"), user_id=u, what="undone", reservation_ids=r))
    assert told.query(SENT) == [("held", r, "RETRACTED"), ("undone", r, "PENDING")]
    assert told.one("SELECT headers ->> 'saga-outcome' FROM outbox.event WHERE type = 'SagaReply'") == "done"


@pytest.mark.parametrize("order", list(itertools.permutations(["held", "cancelled", "corrected"])), ids="-".join)
def test_a_hold_without_a_timer(told, order):
    """The timer of a hold cannot be armed: CancelReservation -> CANCELLED 'timer-failed', and the saga's PushCorrection of "held". Whatever
    comes first, the user is told once that the seat is not his, and a client that saw "held" sees it."""
    u, r = str(uuid.uuid4()), str(uuid.uuid4())
    for what in order:
        call(told, {"held": reservation("ReservationHeld", u, r), "cancelled": reservation("ReservationCancelled", u, r, reason="timer-failed"),
                    "corrected": command("PushCorrection", saga_headers(r, "undo"), user_id=u, what="held", reservation_id=r)}[what])
        send(told)
    assert sorted(told.query(SENT)) == [("held", r, "RETRACTED"), ("undone", r, "SENT")]
    call(told, reservation("ReservationCancelled", u, str(uuid.uuid4()), reason="cancelled-by-user"))
    assert told.one("SELECT count(*) FROM push.notification") == 2


BAD = [("PushUser", {}), ("PushUser", {"user_id": "x", "what": "paid", "payment_id": "p"}), ("Explode", {"user_id": str(uuid.uuid4())}),
       ("PushUser", {"user_id": str(uuid.uuid4()), "what": "'; DROP SCHEMA push; --", "payment_id": "p"}),
       ("PushUser", {"user_id": str(uuid.uuid4()), "what": "paid"}), ("PushUser", [1]), ("PushUser", 7),
       ("PushUser", {"user_id": str(uuid.uuid4()), "what": "paid", "payment_id": "p" * 300})]


@pytest.mark.parametrize("kind,payload", BAD, ids=range(len(BAD)))
def test_bad_commands(told, kind, payload):
    with pytest.raises(Exception, match="push: "):
        call(told, ("outbox.command.push", kind, payload))
    call(told, ("outbox.command.push", kind, payload), function="undo_messages")
    assert told.one("SELECT count(*) FROM push.notification WHERE state <> 'FAILED'") == 0


def test_odd_events_do_no_harm(told):
    """Events of the right type with members missing or of a strange kind are stepped over; nothing is told of them."""
    for payload in ([], 7, None, {"user_id": 5}, {"user_id": str(uuid.uuid4())}, {"user_id": str(uuid.uuid4()), "reservation_id": None},
                    {"user_id": str(uuid.uuid4()), "reservation_id": {"a": [1]}, "label": "\u0001" * 9, "reason": "x" * 9000}):
        call(told, ("outbox.event.reservation", "ReservationHeld", payload), ("outbox.event.payment", "PaymentFailed", payload))
    assert told.one("SELECT count(*) FROM push.notification WHERE octet_length(text) > 2000") == 0


# ---------------------------------------------------------------- the API

class Member:
    def __init__(self, i, users, hook=None, config=None, consumer=None):
        self.port = servers.free_port()
        tree = {"dedupe": "offset", "push": {"listen": f"127.0.0.1:{self.port}", "jwks": users.url, "heartbeat": "500ms"},
                "alerts": {"repeat_after": "1h", "timeout": "20s", **({"url": hook.url} if hook else {})}}
        make = consumer or i.member
        self.process = make(KIND, servers._merge(tree, config or {})).start()
        self.api = Api(self.port)
        wait_until(lambda: self.answers(), 60, "the API to answer")

    def metric(self, name):
        return float(re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", self.api.raw("GET", "/metrics").text, re.M)[1])

    def answers(self):
        if not self.process.running():
            raise AssertionError(self.process.log_text()[-3000:])
        try:
            return self.api.raw("GET", "/healthz").status == 200
        except OSError:
            return False


class Stream:
    """One open stream: messages() has what came so far."""

    def __init__(self, port, token, last=None, path="/notifications/stream"):
        self.sock = socket.create_connection(("127.0.0.1", port), 30)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        self.sock.sendall((head + (f"Last-Event-ID: {last}\r\n" if last is not None else "") + "\r\n").encode())
        self.sock.settimeout(0.01)
        self.bytes = b""
        self.at, self.text, self.told = None, b"", []
        self.closed = False
        wait_until(lambda: b"\r\n\r\n" in self.read(), 30, "the head")
        self.status = int(self.bytes.split()[1])
        if self.status == 200:
            wait_until(lambda: b"retry:" in self.read(), 30, "the first bytes")

    def read(self):
        try:
            got = self.sock.recv(1 << 16)
            self.closed = self.closed or got == b""
            self.bytes += got
        except TimeoutError:
            pass
        except OSError:
            self.closed = True
        return self.bytes

    def messages(self):
        """All that came, chunk by chunk."""
        self.read()
        if self.at is None:
            self.at = self.bytes.index(b"\r\n\r\n") + 4
        while (end := self.bytes.find(b"\r\n", self.at)) > 0:
            size = int(self.bytes[self.at:end], 16)
            if len(self.bytes) < end + 2 + size + 2 or size == 0:
                break
            self.text += self.bytes[end + 2:end + 2 + size]
            self.at = end + 2 + size + 2
        *whole, self.text = self.text.split(b"\n\n")
        for event in whole:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if not line.startswith(b":"))
            if b"data" in fields:
                self.told.append((fields[b"id"].decode(), json.loads(fields[b"data"])))
        return self.told

    def ids(self):
        return [i for i, _ in self.messages()]

    def beats(self):
        self.read()
        return self.bytes.count(b":\n\n")

    def close(self):
        self.sock.close()


def put(i, kind, payload, topic=None, key="k"):
    i.put(key, json.dumps(payload), [("id", str(uuid.uuid4())), ("type", kind)], topic=topic)


def tell(i, user, n=1):
    """n events about the user, through Kafka."""
    for _ in range(n):
        put(i, "ReservationHeld", reservation("ReservationHeld", user)[2], key=user)
    i.flush()


def test_list_and_stream(inbox, users):  # noqa: F811
    """What came before is in the list; the stream goes on behind it, and a client that comes again with its last id misses nothing and
    sees nothing twice."""
    i = inbox()
    m = Member(i, users)
    ann, bob = str(uuid.uuid4()), str(uuid.uuid4())
    token = users.token(ann)
    tell(i, ann, 3)
    tell(i, bob, 2)
    wait_until(lambda: len(m.api.get("/notifications", token=token).json["notifications"]) == 3, 60, "the list")
    listed = m.api.get("/notifications", token=token).json
    assert {n["what"] for n in listed["notifications"]} == {"held"} and listed["next"] is None
    live = Stream(m.port, token, path=f"/notifications/stream?last_event_id={listed['last_event_id']}")
    tell(i, ann, 2)
    wait_until(lambda: len(live.messages()) == 2, 60, "two more")
    assert live.ids() == sorted(live.ids(), key=int) and int(live.ids()[0]) > int(listed["last_event_id"])
    last = live.ids()[0]
    live.close()
    tell(i, ann, 2)
    again = Stream(m.port, token, last=last)
    wait_until(lambda: len(again.messages()) == 3, 60, "what was missed")
    all_of_it = Stream(m.port, token, last=0)
    wait_until(lambda: len(all_of_it.messages()) == 7, 60, "all of it")
    assert all_of_it.ids()[-3:] == again.ids()
    wait_until(lambda: again.beats() >= 2, 60, "a heartbeat")
    assert len(Stream(m.port, users.token(bob), last=0).messages()) <= 2
    pages, before = [], ""
    while True:
        page = m.api.get(f"/notifications?limit=3{before}", token=token).json
        pages += [n["event_id"] for n in page["notifications"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert pages == sorted(set(all_of_it.ids()), key=int, reverse=True)
    assert i.one("SELECT count(*) FROM outbox.event WHERE type = 'NotificationSent' AND payload ->> 'user_id' = %s", (ann,)) == 7


def test_a_long_absence(inbox, users):  # noqa: F811
    """Who missed more than goes out at once gets the first of it and the end of the stream, comes again, and misses nothing."""
    i = inbox()
    m = Member(i, users)
    ann = str(uuid.uuid4())
    i.db.query("INSERT INTO push.notification (user_id, what, subject, text, cause) SELECT %s, 'held', n::text, repeat('x', 500), 'x'"
               " FROM generate_series(1, 1200) AS n", (ann,))
    wait_until(lambda: i.one("SELECT count(*) FROM push.notification WHERE state = 'SENT'") == 1200, 60, "them to be sent")
    got, last = [], 0
    while len(got) < 1200:
        s = Stream(m.port, users.token(ann), last=last)
        wait_until(lambda: s.messages() and (s.closed or len(got) + len(s.told) == 1200), 60, "its part")
        got += s.ids()
        last = got[-1]
        s.close()
    assert got == sorted(set(got), key=int)


def test_members(inbox, users):  # noqa: F811
    """Three members: whoever handles an event, it reaches clients at all of them, in one order."""
    i = inbox(partitions=6)
    members = [Member(i, users) for _ in range(3)]
    people = [str(uuid.uuid4()) for _ in range(12)]
    streams = [(u, Stream(m.port, users.token(u))) for u in people for m in members]
    for _ in range(10):
        for u in people:
            tell(i, u)
    wait_until(lambda: all(len(s.messages()) == 10 for _, s in streams), 90, "all to be told")
    for u in people:
        orders = {tuple(s.ids()) for w, s in streams if w == u}
        assert len(orders) == 1 and list(orders)[0] == tuple(sorted(list(orders)[0], key=int))
    assert members[0].process.terminate(60) == 0
    others = [(u, s) for n, (u, s) in enumerate(streams) if n % 3]
    for u in people:
        tell(i, u)
    wait_until(lambda: all(len(s.messages()) == 11 for _, s in others), 90, "the others to go on")
    assert i.db.query("SELECT count(*), count(DISTINCT place) FROM push.notification WHERE state = 'SENT'") == [(132, 132)]


def test_who_asks(inbox, users):  # noqa: F811
    """No token, a forged one, an expired one: 401, and nothing of anybody. Bad values: 422."""
    i = inbox()
    m = Member(i, users)
    ann = str(uuid.uuid4())
    for why, token in users.forged(ann).items():
        for path in ("/notifications", "/notifications/stream"):
            answer = m.api.get(path, token=token)
            assert answer.status == 401, (why, answer)
    good = users.token(ann)
    for query in ("limit=0", "limit=201", "limit=x", "limit=-1", "limit=1e3", "before=x", "before=0", "before=99999999999999999999",
                  "limit=1;DROP%20SCHEMA%20push", "before='"):
        assert m.api.get(f"/notifications?{query}", token=good).status == 422, query
    for last in ("x", "-1", "1 OR 1=1", "99999999999999999999"):
        assert m.api.get("/notifications/stream", token=good, headers={"Last-Event-ID": last}).status == 422, last
    assert m.api.raw("POST", "/notifications", b"{}", {"Authorization": f"Bearer {good}"}).status == 405
    assert m.api.raw("GET", "/nothing").status == 404
    assert m.api.raw("GET", "/notifications", headers={"Authorization": f"Bearer {good}", "Host": "evil.example"}).status == 400
    odd = users.token("x'; DROP SCHEMA push; --")
    assert m.api.get("/notifications", token=odd).status == 401
    assert "postrider_notification_streams" in m.api.raw("GET", "/metrics").text


def test_bounds(inbox, users):  # noqa: F811
    """Streams of one user beyond per_user: the oldest ends. Of all beyond streams: 503. Who has gone makes room. A token's end is the stream's."""
    i = inbox()
    m = Member(i, users, config={"push": {"streams": 4, "per_user": 2}})
    ann = str(uuid.uuid4())
    mine = [Stream(m.port, users.token(ann)) for _ in range(3)]
    wait_until(lambda: mine[0].read() and mine[0].closed, 30, "the oldest to end")
    assert [s.closed for s in mine] == [True, False, False]
    others = [Stream(m.port, users.token(uuid.uuid4())) for _ in range(2)]
    refused = Stream(m.port, users.token(uuid.uuid4()))
    assert refused.status == 503 and b"Retry-After" in refused.bytes
    others[0].close()
    wait_until(lambda: Stream(m.port, users.token(uuid.uuid4())).status == 200, 30, "room")
    short = Stream(m.port, users.token(ann, life=6))
    assert short.status == 200
    wait_until(lambda: short.read() and short.closed, 30, "the token's end")


def test_a_client_that_does_not_read(inbox, users):  # noqa: F811
    """It is dropped at its bound; the others hear everything, and the process does not grow."""
    i = inbox()
    m = Member(i, users)
    ann = str(uuid.uuid4())
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", m.port))
    slow.sendall(f"GET /notifications/stream HTTP/1.1\r\nHost: 127.0.0.1:{m.port}\r\nAuthorization: Bearer {users.token(ann)}\r\n\r\n".encode())
    good = Stream(m.port, users.token(ann))
    wait_until(lambda: m.metric("postrider_notification_streams") == 2, 30, "both to be heard")
    before = m.process.rss_kb()
    n = 0
    while m.metric("postrider_notification_streams") == 2:
        assert n < 20000, "both are still there"
        i.db.query("INSERT INTO push.notification (user_id, what, subject, text, cause) SELECT %s, 'held', n::text, repeat('x', 2000), 'x'"
                   " FROM generate_series(%s, %s) AS n; SELECT pg_notify('push', '')", (ann, n + 1, n + 80))
        n += 80
        wait_until(lambda: len(good.messages()) >= n, 60, "the one that reads to hear all")
    assert not good.closed and len(good.messages()) == n and m.process.rss_kb() - before < 40000
    slow.close()


def test_from_a_browser(inbox, users):  # noqa: F811
    """The page's origin may ask, preflight included; another origin gets no permission."""
    i = inbox()
    m = Member(i, users, config={"push": {"origins": ["http://127.0.0.1:8082"]}})
    ask = {"Origin": "http://127.0.0.1:8082", "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,last-event-id"}
    asked = m.api.raw("OPTIONS", "/notifications/stream", headers=ask)
    assert asked.status == 204 and "Last-Event-ID" in asked.headers["Access-Control-Allow-Headers"]
    s = http.client.HTTPConnection("127.0.0.1", m.port, timeout=30)
    s.request("GET", "/notifications/stream", headers={"Origin": "http://127.0.0.1:8082", "Authorization": f"Bearer {users.token(uuid.uuid4())}"})
    r = s.getresponse()
    assert r.status == 200 and r.headers["Access-Control-Allow-Origin"] == "http://127.0.0.1:8082"
    assert r.headers["Content-Type"] == "text/event-stream" and r.headers["Cache-Control"] == "no-store"
    s.close()
    assert "Access-Control-Allow-Origin" not in m.api.raw("GET", "/notifications", headers={"Origin": "http://evil.example"}).headers


def test_stops_with_streams_open(inbox, users):  # noqa: F811
    """SIGTERM with clients connected: their streams end, and the process within its time."""
    i = inbox()
    m = Member(i, users)
    streams = [Stream(m.port, users.token(uuid.uuid4())) for _ in range(20)]
    assert m.process.terminate(30) == 0
    wait_until(lambda: all(s.read() and s.closed for s in streams), 30, "the streams to end")


def test_the_database_is_away(own_pg, kafka, inbox, users):  # noqa: F811
    """503 while Postgres is away, streams stay open; then what was missed comes, once."""
    pg = own_pg()
    i = inbox(pg=pg)
    m = Member(i, users)
    ann = str(uuid.uuid4())
    s = Stream(m.port, users.token(ann))
    tell(i, ann)
    wait_until(lambda: len(s.messages()) == 1, 60, "the first")
    pg.kill()
    wait_until(lambda: m.api.get("/notifications", token=users.token(ann)).status == 503, 60, "503")
    tell(i, ann)
    pg.start()
    wait_until(lambda: len(s.messages()) == 2, 60, "the second")
    assert not s.closed and len(set(s.ids())) == 2


def test_start_is_refused(inbox, users):  # noqa: F811
    """A template that is no JSON or names what there is not, a listen address that is none: exit 78 at the start, said by --check."""
    i = inbox()
    path = os.path.join(servers.new_dir("push"), "bad.json")
    for text, why in (('{"a": "{{nothing}}"}', "none of the names"), ('{"a": {{cause}}}', "no JSON"), ("", "no JSON")):
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        c = i.member(KIND, {"alerts": {"template": path}})
        done = servers.Cli("postrider-consumer").run("-c", c.file, "--check")
        assert done.returncode == 78 and "alerts.template" in done.stderr and why in done.stderr
    c = i.member(KIND, {"push": {"listen": "nowhere", "jwks": users.url}}).start()
    assert c.wait(60) == 78 and "push.listen" in c.log_text() or "nowhere" in c.log_text()


# ---------------------------------------------------------------- alerts

def dead_letter(group="reservation", topic="outbox.event.payment", kind="PaymentCompleted", why="no such table"):
    return {"kafka_dlt-original-topic": topic, "kafka_dlt-original-consumer-group": group, "kafka_dlt-exception-fqcn": "sqlstate:42P01",
            "kafka_dlt-exception-message": why, "__connect.errors.partition": "0", "__connect.errors.offset": "17"}


def failed(group="reservation", topic="outbox.event.payment", kind="PaymentCompleted"):
    return ("outbox.event." + group, kind + "Failed", {"group": group, "key": "k", "id": "x", "topic": topic, "partition": 0, "offset": 17,
                                                        "attempts": 5, "class": "sqlstate", "code": "42P01", "cause": "no such table"})


def stuck_saga(id, **more):
    return ("outbox.event.saga", "SagaStuck", {"saga_id": id, "name": "pay", "version": 1, "style": "orchestration", "turned": False, "state": "STUCK",
                                               "step": "CONCERT", "why": "it's down", "data": {}, "steps": [], **more})


def alerts(db):
    return db.query("SELECT cause, command, times, state FROM push.admin_alert ORDER BY alert_id")


def test_a_charge_that_is_not_cancelled(told):
    """The money is with the gateway, and the gateway does not give it back: somebody has to know, and how to have it asked again."""
    paid = str(uuid.uuid4())
    event = {"payment_id": paid, "user_id": str(uuid.uuid4()), "amount": 5, "reason": "it's shut", "at": "2027-01-01T00:00:00Z"}
    call(told, ("outbox.event.payment", "GatewayCancelFailed", event))
    assert alerts(told) == [(f"the gateway does not cancel its charge of 5 for payment {paid}: it's shut",
                             f"psql -d payment -c \"SELECT payment.cancel_again('{paid}')\"", 1, "PENDING")]


def test_causes(told):
    """A dead letter and the <type>Failed that goes with it are one cause with one command; another type, group or a stuck saga are others.
    Domain events that end in Failed are none."""
    told.query("INSERT INTO push.setting VALUES ('configs', '/etc/my services')")
    call(told, ("outbox.dead-letter", "PaymentCompleted", {"payment_id": "x"}, dead_letter()), failed())
    call(told, failed(), failed(kind="PaymentCancelled"))
    stuck = str(uuid.uuid4())
    call(told, stuck_saga(stuck))
    call(told, stuck_saga(stuck))
    call(told, payment("PaymentFailed", str(uuid.uuid4()), "p"), ("outbox.event.saga", "SagaFailed", {"saga_id": stuck, "name": "pay"}),
         ("outbox.event.timer", "TimerFailed", {"timer_id": stuck}), ("outbox.event.queue", "QueueExpiryFailed", {"token_id": "t"}))
    own = ("outbox.event.reservation", "ConfirmReservationFailed", {"message_id": "m", "topic": "outbox.command.reservation", "type": "ConfirmReservation", "key": "k"})
    call(told, own)
    got = alerts(told)
    assert [(a[1], a[2]) for a in got] == [
        ("postrider dlq retry -c '/etc/my services/reservation-consumer.cfg' --topic outbox.event.payment --type PaymentCompleted --all", 3),
        ("postrider dlq retry -c '/etc/my services/reservation-consumer.cfg' --topic outbox.event.payment --type PaymentCancelled --all", 1),
        (f"postrider saga retry -c '/etc/my services/engine-consumer.cfg' {stuck} --yes", 2),
        ("postrider dlq retry -c '/etc/my services/reservation-consumer.cfg' --topic outbox.command.reservation --type ConfirmReservation --all", 1)]
    assert got[2][0] == "saga pay is stuck at step CONCERT: it's down"
    assert [e[0] for e in told.query("SELECT type FROM outbox.event")] == ["AdminAlerted"] * 4


def test_a_stuck_choreography(told):
    """retry of a step that its service does by itself sends nothing: the command is undo. An undo that is stuck is sent again by retry."""
    a, b = str(uuid.uuid4()), str(uuid.uuid4())
    call(told, stuck_saga(a, name="pay-hybrid", style="choreography"), stuck_saga(b, name="pay-hybrid", step="PAYMENT", style="choreography", turned=True))
    assert {c.split()[2]: c.split()[-2] for _, c, _, _ in alerts(told)} == {"undo": a, "retry": b}


def test_every_stuck_saga_is_named(told):
    """Forty sagas stuck for one cause are one alert that names each of them, the first twenty by id, and the command that lists all."""
    ids = [str(uuid.uuid4()) for _ in range(40)]
    call(told, stuck_saga(ids[0]))
    call(told, stuck_saga(ids[0]))
    assert told.query("SELECT times, detail -> 'saga_ids' FROM push.admin_alert") == [(2, [ids[0]])]
    assert alerts(told)[0][1].startswith("postrider saga retry ")
    call(told, *(stuck_saga(id) for id in ids))
    (got,) = told.query("SELECT times, detail -> 'saga_ids', command FROM push.admin_alert")
    assert got[:2] == (42, ids[:20])
    assert got[2] == "postrider saga list -c /usr/local/share/postrider/services/engine-consumer.cfg --state STUCK"


def test_a_window(told):
    """The same cause within the window is counted; after it, or after it was resolved, it is a new alert."""
    told.query("INSERT INTO push.setting VALUES ('window', '1 hour')")
    call(told, failed())
    call(told, failed())
    told.query("UPDATE push.admin_alert SET last_at = now() - interval '61 minutes'")
    call(told, failed())
    assert [a[2] for a in alerts(told)] == [2, 1]
    told.query("SELECT push.alert_act(max(alert_id), 'resolve', 'ann', NULL) FROM push.admin_alert")
    call(told, failed())
    assert [a[2] for a in alerts(told)] == [2, 1, 1]


def test_the_webhook(inbox, users, hook):  # noqa: F811
    """An alert is posted once with cause and command, also when it comes again; refused ones are tried again; it is repeated until
    somebody acknowledges it."""
    i = inbox()
    hook.fails = 2
    m = Member(i, users, hook, {"alerts": {"repeat_after": "3s", "headers": ["X-Team: seat"]}})
    for _ in range(3):
        put(i, "PaymentCompletedFailed", failed()[2])
    i.flush()
    wait_until(lambda: hook.taken, 60, "the alert")
    first = hook.taken[0]
    assert [t["status"] for t in hook.tries[:3]] == [500, 500, 200]
    assert first["headers"]["X-Team"] == "seat" and first["headers"]["Idempotency-Key"].endswith("-0")
    text = json.dumps(first["body"])
    assert "postrider dlq retry -c" in text and "no such table" in text
    assert first["body"]["properties"]["Name"]["title"][0]["text"]["content"].startswith("PaymentCompleted of outbox.event.payment")
    wait_until(lambda: len(hook.taken) == 2, 60, "it to be repeated")
    assert hook.taken[1]["body"]["properties"]["Reminder"]["number"] == 1 and hook.taken[1]["headers"]["Idempotency-Key"].endswith("-1")
    assert i.db.query("SELECT push.alert_act(alert_id, 'ack', 'ann', 'on it') FROM push.admin_alert") == [(True,)]
    n = len(hook.taken)
    stays(lambda: len(hook.taken) <= n + 1, 4)
    assert i.db.query("SELECT what, count(*) FROM push.alert_log WHERE what <> 'sent' AND what <> 'try' GROUP BY 1 ORDER BY 1") == [("ack", 1), ("failed", 2)]
    assert m.metric("postrider_alerts_failed_total") == 2


def test_the_rate(inbox, users, hook):  # noqa: F811
    """Many causes at once: at most so many requests in a minute, of all members together; the others wait and are listed."""
    i = inbox()
    for _ in range(2):
        Member(i, users, hook, {"alerts": {"rate": 3}})
    for n in range(12):
        put(i, f"Event{n}Failed", failed(kind=f"Event{n}")[2], key=f"k{n}", topic=i.topic)
    i.flush()
    wait_until(lambda: i.one("SELECT count(*) FROM push.admin_alert") >= 1, 60, "alerts")
    wait_until(lambda: len(hook.taken) == 3 or i.one("SELECT count(*) FROM push.admin_alert") < 3, 60, "three of them")
    stays(lambda: len(hook.tries) <= 3, 1.5)


def test_a_webhook_that_hangs(inbox, users, hook):  # noqa: F811
    """It holds up no notification, and the end of the process neither; the member says that alerts reach nobody."""
    i = inbox()
    hook.gate.clear()
    m = Member(i, users, hook, {"alerts": {"timeout": "1s"}}, consumer=i.consumer)
    put(i, "PaymentCompletedFailed", failed()[2])
    i.flush()
    wait_until(lambda: i.one("SELECT count(*) FROM push.alert_log WHERE what = 'try'") >= 1, 60, "the try")
    ann = str(uuid.uuid4())
    s = Stream(m.port, users.token(ann))
    tell(i, ann)
    wait_until(lambda: len(s.messages()) == 1, 60, "the notification")
    wait_until(lambda: "alerts do not reach anybody" in json.loads(m.process.get("/readyz")[1]).get("sentence", ""), 60, "it to say so")
    assert m.process.terminate(30) == 0
    assert i.one("SELECT last_error FROM push.admin_alert").startswith("the webhook did not answer")
