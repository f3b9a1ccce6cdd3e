"""tests/support/concert.py -- a concert database to try out: opens concerts, hands messages to the consumer's function,
reads seats and events back. The messages go straight to concert.on_message(s), as the consumer calls it.

Refuses to decide what is right: that is for the tests.
"""
import json
import os
import uuid

import servers


def schema(db):
    """What the service installs at its start, for tests without a service."""
    for path in ("db/service/schema.sql", "producers/concert/schema.sql"):
        with open(os.path.join(servers.ROOT, path), encoding="utf-8") as f:
            db.psql(f.read())


def reservation_of(claim, seat=0):
    return str(uuid.UUID(int=0x0190aaaa_0000_7000_8000_000000000000 + (int(seat) << 12) + int(claim)))


def message(type, payload, topic="outbox.event.reservation", headers=None, id=None):
    return (str(id or uuid.uuid4()), topic, 0, 1, "k", type, json.dumps(payload), None, json.dumps(headers or {}))


class Seats:
    """One concert with one schedule, and what is said of its seats."""

    def __init__(self, db, seats=4, price=100, title="Spring", conn=None):
        self.db, self.price, self.conn = db, price, conn
        made = db.one("SELECT concert.open(%s, %s)", (title, json.dumps(
            [{"starts_at": "2027-05-01T20:00:00Z", "rows": 1, "seats_per_row": seats, "price": price}])))
        self.concert, self.schedule = made["concert_id"], made["schedules"][0]["schedule_id"]
        self.ids = [str(s) for s, in db.query("SELECT seat_id FROM concert.seat WHERE schedule_id = %s ORDER BY 1", (self.schedule,))]

    def query(self, sql, args=None, conn=None):
        """As db.query, by this connection, by that of the whole, or by one of its own."""
        conn = conn or self.conn
        if conn is None:
            return self.db.query(sql, args)
        with conn.cursor() as c:
            c.execute(sql, args)
            return c.fetchall() if c.description else []

    def one(self, sql, args=None):
        return self.query(sql, args)[0][0]

    # ---- messages

    def send(self, *messages, conn=None):
        """All of them as one batch."""
        row = "ROW(%s,%s,%s,%s,%s,%s,%s::jsonb,%s::bytea,%s::jsonb,now())::inbox.message"
        self.query(f"SELECT concert.on_messages(ARRAY[{','.join([row] * len(messages))}])", [v for m in messages for v in m], conn)

    def updated(self, status, claim=1, version=1, seat=None, **more):
        """A ReservationUpdated."""
        seat = seat or self.ids[0]
        return message("ReservationUpdated", {
            "reservation_id": reservation_of(claim or 0, seat), "concert_id": self.concert, "schedule_id": self.schedule,
            "seat_id": seat, "price": self.price, "claim_no": claim, "status": status, "version": version, **more})

    def named(self, *seats, claim=1, **more):
        return [{"seat_id": s, "claim_no": claim, "reservation_id": reservation_of(claim, s), "schedule_id": self.schedule, **more}
                for s in seats or self.ids[:1]]

    def command(self, type, seats=None, saga=None, step="CONCERT", op=None, command=None, **more):
        """One of a saga. An undo's type says that it is one."""
        op = op or ("undo" if type in ("ReleaseSeat", "UnreserveSeat", "RestoreConcertStatus") else "do")
        payload = {"concert_id": self.concert, **({"seats": seats} if seats is not None else {}), **more}
        saga = saga or str(uuid.uuid4())
        return message(type, payload, "outbox.command.concert", {
            "saga-id": saga, "saga-step": step, "saga-op": op, "saga-name": "pay", "correlation-id": saga,
            "saga-command-id": command or str(uuid.uuid5(uuid.NAMESPACE_OID, f"{saga}{step}{op}"))})

    def paid(self, payment, seats, **more):
        """PaymentCompleted of a hybrid payment."""
        return message("PaymentCompleted", {"payment_id": payment, "mode": "hybrid", "concert_id": self.concert,
                                            "seats": seats, **more}, "outbox.event.payment", {"correlation-id": payment})

    # ---- what has become of it

    def states(self):
        return [s for s, in self.query("SELECT state FROM concert.seat WHERE schedule_id = %s ORDER BY seat_id", (self.schedule,))]

    def status(self):
        return self.one("SELECT status FROM concert.concert WHERE concert_id = %s", (self.concert,))

    def events(self, *types):
        """(type, payload) of this concert's events since the last call of forget()."""
        return [(t, p) for t, p in self.query(
            "SELECT type, payload FROM outbox.event WHERE aggregatetype = 'concert' AND aggregateid = %s"
            " AND seq > %s ORDER BY seq", (self.concert, self.since)) if not types or t in types]

    since = 0

    def forget(self):
        self.since = self.one("SELECT coalesce(max(seq), 0) FROM outbox.event")
        return self

    def answers(self):
        """(step, op, outcome, why) to sagas since forget()."""
        return self.query("SELECT headers ->> 'saga-step', headers ->> 'saga-op', headers ->> 'saga-outcome', headers ->> 'saga-why'"
                             " FROM outbox.event WHERE type = 'SagaReply' AND seq > %s ORDER BY seq", (self.since,))

    def ignored(self):
        return [w for w, in self.query("SELECT i.why FROM concert.ignored AS i JOIN concert.seat AS s USING (seat_id)"
                                          " WHERE s.concert_id = %s ORDER BY entry", (self.concert,))]
