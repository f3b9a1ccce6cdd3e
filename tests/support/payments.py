"""tests/support/payments.py -- postrider-payment alone: its HTTP, and the messages that its consumer's functions get, put in
by SQL in whatever order a test wants. Refuses to end well when a balance is not the sum of its ledger.
"""
import itertools
import json
import threading
import uuid
from datetime import datetime, timedelta, timezone

from service import Api, Service
from tokens import QUEUE, USER, Issuer

_n = itertools.count(1)
FAST = {"timeout": "1s", "backoff": "20ms", "backoff_max": "100ms", "give_up": "30s", "late": "1s"}


class Sessions:
    """A database by one session of each thread: query and one, as of servers.Database."""

    def __init__(self, db):
        self.db, self.of, self.all = db, threading.local(), []

    def __getattr__(self, name):
        return getattr(self.db, name)

    def query(self, sql, args=None):
        if getattr(self.of, "conn", None) is None or self.of.conn.closed:
            self.of.conn = self.db.connect()
            self.of.conn.autocommit = True
            self.all.append(self.of.conn)
        with self.of.conn.cursor() as cur:
            cur.execute(sql, args)
            return cur.fetchall() if cur.description else []

    def one(self, sql, args=None):
        return self.query(sql, args)[0][0]

    def close(self):
        for c in self.all:
            c.close()


class Payments:
    def __init__(self, db, outside=None, tax=None, service=None, **config):
        self.db = Sessions(db)
        self.users, self.queue = Issuer(*USER), Issuer(*QUEUE)
        merged = {"jwt": {"jwks": self.users.url}, "queue": {"jwks": self.queue.url}, "http": {"patience": "50ms"}, **config}
        if outside:
            merged["gateway"] = {**FAST, "url": outside.url, **config.get("gateway", {})}
        if tax:
            merged["gateway"] = {**FAST, **merged.get("gateway", {})}
            merged["tax"] = {"url": tax.url}
        self.config = merged
        self.services, self.turns = [], {}
        if service is not False:
            self.begin()

    def begin(self, ready=True, **fault):
        self.service = Service("payment", self.db.conninfo, config=self.config).start(**fault)
        self.services.append(self.service)
        if ready:
            self.service.wait_ready()
        self.api = Api(self.service.port)
        return self.service

    def close(self):
        for s in self.services:
            s.kill()
        self.db.close()
        self.users.close()
        self.queue.close()

    def balanced(self):
        assert self.db.query("SELECT * FROM payment.unbalanced()") == []
        assert self.db.one("SELECT count(*) FROM payment.balance WHERE balance < 0") == 0

    # ---- people

    def person(self, points=0):
        user = str(uuid.uuid4())
        if points:
            assert self.charge(user, points).status == 200
        return user

    def token(self, user):
        return self.users.token(user)

    def charge(self, user, amount, **kw):
        return self.api.post(f"/balances/{user}/charge", {"amount": amount}, token=self.token(user), **kw)

    def balance(self, user):
        return self.api.get(f"/balances/{user}", token=self.token(user)).json["balance"]

    # ---- messages

    def send(self, type, payload, topic, headers=None, function="payment.on_messages", key=None):
        message = self.message(type, payload, topic, headers, key)
        self.db.query(f"SELECT {function}(ARRAY[jsonb_populate_record(NULL::inbox.message, %s)])", (json.dumps(message),))

    @staticmethod
    def message(type, payload, topic, headers=None, key=None):
        return {"id": str(uuid.uuid4()), "topic": topic, "partition": 0, "message_offset": 1, "key": key or "k", "type": type,
                "payload": payload, "headers": {"outbox-seq": str(next(_n)), **(headers or {})}}

    def batch(self, messages):
        """All of them in one transaction, as a lane has them."""
        self.db.query("SELECT payment.on_messages(ARRAY(SELECT jsonb_populate_record(NULL::inbox.message, m)"
                      " FROM jsonb_array_elements(%s) WITH ORDINALITY AS e (m, n) ORDER BY n))", (json.dumps(messages),))

    def command(self, type, payload, saga, step="PAYMENT", op="do", generation=0):
        """Its outcomes so far, with reasons."""
        command = str(uuid.uuid5(uuid.UUID(saga), step + op))[:-8] + f"{generation:08x}"
        self.send(type, payload, "outbox.command.payment", {
            "saga-id": saga, "saga-name": "pay", "saga-step": step, "saga-op": op, "saga-command-id": command,
            "saga-reply-to": "outbox.saga.inbox", "correlation-id": saga})
        return self.replies(saga, step, op)

    def replies(self, saga, step="PAYMENT", op="do"):
        return [h["saga-outcome"] + (": " + h["saga-why"] if "saga-why" in h else "") for (h,) in self.db.query(
            "SELECT headers FROM outbox.event WHERE type = 'SagaReply' AND headers ->> 'saga-id' = %s"
            " AND headers ->> 'saga-step' = %s AND headers ->> 'saga-op' = %s ORDER BY seq", (saga, step, op))]

    def reservation(self, user, **more):
        """Tells of one, HELD unless said otherwise; its id."""
        n = next(_n)
        r = {"reservation_id": str(uuid.uuid4()), "user_id": user, "concert_id": "7", "schedule_id": "70", "seat_id": str(n),
             "label": f"A-{n}", "price": 1000, "claim_no": 1, "token_id": str(uuid.uuid4()), "status": "HELD",
             "prior_status": "REQUESTED", "reason": None, "expires_at": self.later(300), "payment_id": None, "version": 2,
             "cause": "test", "at": self.later(0), **more}
        self.send("ReservationUpdated", r, "outbox.event.reservation")
        return r["reservation_id"]

    @staticmethod
    def later(seconds):
        return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()

    def pass_on(self, *types, function="payment.on_messages"):
        """What was published of these types comes back by Kafka, as it were."""
        for type, key, payload, headers in self.db.query(
                "SELECT type, aggregateid, payload, headers FROM outbox.event WHERE type = ANY (%s) ORDER BY seq", (list(types),)):
            self.send(type, payload, "outbox.event.payment", headers, function, key)

    def receipts(self):
        self.pass_on("PaymentCompleted", "PaymentCancelled", "PaymentFailed", function="payment.on_receipts")

    # ---- payments

    def queue_token(self, user, concert="7", **kw):
        """ACTIVE; the same each time it is asked for, as a client has it. kw: another, of which nothing is told."""
        if kw:
            return self.queue.token(user, concert_id=concert, **kw)
        if (user, concert) not in self.turns:
            turn = str(uuid.uuid4())
            token = self.queue.token(user, concert_id=concert, jti=turn)
            self.send("TokenActivated", {"token_id": turn}, "outbox.event.queue")
            self.turns.setdefault((user, concert), token)
        return self.turns[user, concert]

    def ask(self, user, reservations, mode="saga", token=None, **kw):
        return self.api.post(f"/payments?mode={mode}", {"reservation_ids": reservations, "token": token or self.queue_token(user)},
                             token=self.token(user), **kw)

    def pay(self, user, reservations, mode="saga", **kw):
        answer = self.ask(user, reservations, mode, **kw)
        assert answer.status == (200 if mode == "hybrid" else 202), answer
        if mode != "hybrid":
            assert answer.headers["Location"] == f"/payments/{answer.json['payment_id']}"
        return answer.json["payment_id"]

    def execute(self, pid, user, **more):
        return self.command("ExecutePayment", {"payment_id": pid, "user_id": user, "amount": 1000, **more}, pid)

    def undo(self, pid, user, **more):
        return self.command("CancelPayment", {"payment_id": pid, "user_id": user, **more}, pid, op="undo")

    def payment(self, pid, user):
        return self.api.get(f"/payments/{pid}", token=self.token(user)).json

    def state(self, pid):
        return self.db.one("SELECT state FROM payment.payment WHERE payment_id = %s", (pid,))

    def reason(self, pid):
        return self.db.one("SELECT reason FROM payment.payment WHERE payment_id = %s", (pid,))

    def told(self, pid):
        """Types of the events about this payment, in order."""
        return [t for (t,) in self.db.query("SELECT type FROM outbox.event WHERE aggregatetype = 'payment' AND aggregateid = %s"
                                            " ORDER BY seq", (pid,))]

    def event(self, pid, type):
        rows = self.db.query("SELECT payload, headers FROM outbox.event WHERE aggregateid = %s AND type = %s", (pid, type))
        assert len(rows) == 1, (type, rows)
        return rows[0]

    def ledger(self, user):
        return [(w, a) for w, a in self.db.query("SELECT what, amount FROM payment.balance_ledger WHERE user_id = %s ORDER BY version",
                                                 (user,))]
