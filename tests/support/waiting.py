"""tests/support/waiting.py -- a waiting room for tests: postrider-queue on a database and a Redis of its own, users with
tokens, and what its consumer does. Refuses nothing: who uses it asserts.
"""
import contextlib
import json
import threading
import uuid

from service import Api, Service
from tokens import USER, Issuer
from wait import WaitTimeout, wait_until

CONCERT = "17"


def message(topic, type, payload, time="2026-01-01T00:00:00Z", id=None, **headers):
    return {"id": id or str(uuid.uuid4()), "topic": topic, "partition": 0, "message_offset": 1, "key": "k", "type": type,
            "payload": payload, "time": time, "headers": {k.replace("_", "-"): v for k, v in headers.items()}}


def command(type, saga, op="do", **payload):
    return message("outbox.command.queue", type, payload, saga_id=saga, saga_name="pay", saga_step="QUEUE", saga_op=op,
                   saga_command_id=str(uuid.uuid5(uuid.UUID(saga), type + op)), saga_reply_to="outbox.saga.inbox",
                   correlation_id=saga)


def deducted(payment, token, **payload):
    return message("outbox.event.payment", "PointsDeducted",
                   {"payment_id": payment, "token_id": token, "choreography_id": payment, "reservation_ids": [], **payload},
                   correlation_id=payment)


class Room:
    """Room(db, redis).service(...) starts a process of it; the first one is asked by default."""

    def __init__(self, db, redis, variant=None):
        self.db, self.redis, self.variant, self.users, self.services = db, redis, variant, Issuer(*USER), []

    def service(self, wait=True, start=None, **config):
        redis = {"address": self.redis.address, "timeout": "5s"}  # a busy machine is no Redis that is away
        given = {"jwt": {"jwks": self.users.url}, "redis": redis,
                 "status": {"rate": 10000, "burst": 10000}, **config}
        if isinstance(config.get("status"), dict):
            given["status"] = {"rate": 10000, "burst": 10000, **config["status"]}
        if isinstance(config.get("redis"), dict):
            given["redis"] = {**redis, **config["redis"]}
        s = Service("queue", self.db.conninfo, config=given, variant=self.variant).start(**(start or {}))
        s.api = Api(s.port)
        self.services.append(s)
        if wait:
            s.wait_ready()
            self.concert()
        return s

    def concert(self, concert=CONCERT):
        self.db.query("INSERT INTO queue.concert_copy VALUES (%s, 'x') ON CONFLICT DO NOTHING", (concert,))

    @property
    def api(self):
        return self.services[0].api

    def close(self):
        for s in self.services:
            s.kill()
        self.users.close()

    # ---- users

    def ask(self, user=None, concert=CONCERT, api=None, **kw):
        return (api or self.api).post("/queue/tokens", {"concert_id": concert}, token=self.users.token(user or uuid.uuid4()), **kw)

    def enter(self, user=None, concert=CONCERT, api=None, timeout=60):
        """The answer's members; asks again while it is told to."""
        last = []

        def told():
            last[:] = [self.ask(user, concert, api)]
            return last[0].status != 503 and last[0]
        try:
            answer = wait_until(told, timeout, "a place in the queue")
        except WaitTimeout as e:
            raise AssertionError(f"{e}; {last}") from None
        assert answer.status in (200, 201), answer
        return answer.json

    def status(self, token, api=None):
        answer = (api or self.api).get("/queue/status", token=token)
        assert answer.status == 200, answer
        return answer.json

    def state(self, token, api=None):
        return self.status(token, api)["state"]

    def until(self, token, state, timeout=60, api=None):
        return wait_until(lambda: (s := self.status(token, api))["state"] == state and s, timeout, f"the token to be {state}")

    def crowd(self, n, concert=CONCERT, threads=8, apis=None):
        """n users at once; their answers, in the order of their positions' numbers."""
        got, lock, apis = [], threading.Lock(), apis or [self.api]

        def come(i):
            for _ in range(i, n, threads):
                one = self.enter(concert=concert, api=apis[i % len(apis)])
                with lock:
                    got.append(one)
        ts = [threading.Thread(target=come, args=(i,)) for i in range(threads)]
        for t in ts:
            t.start()
        for t in ts:
            t.join()
        return got

    # ---- its tables

    def row(self, token_id, what="state"):
        return self.db.one(f"SELECT {what} FROM queue.queue_token WHERE token_id = %s", (token_id,))

    def rows(self, what="number, state", where="true"):
        return self.db.query(f"SELECT {what} FROM queue.queue_token WHERE {where} ORDER BY concert_id, number")

    def events(self, *types):
        return [p for (p,) in self.db.query("SELECT payload FROM outbox.event WHERE type = ANY (%s) ORDER BY seq", (list(types),))]

    def activated(self):
        """Token ids of TokenActivated, in their order."""
        return [e["token_id"] for e in self.events("TokenActivated")]

    def numbers(self, ids):
        known = {i: n for i, n in self.db.query("SELECT token_id::text, number FROM queue.queue_token")}
        return [known[i] for i in ids]

    # ---- its consumer

    def handle(self, *messages):
        for m in messages:
            self.db.query("SELECT inbox.carry(x), queue.on_message(x) FROM jsonb_populate_record(NULL::inbox.message, %s) AS x",
                          (json.dumps(m),))

    def answers(self, saga):
        return [(h["saga-op"], h["saga-outcome"]) for (h,) in self.db.query(
            "SELECT headers FROM outbox.event WHERE type = 'SagaReply' AND headers ->> 'saga-id' = %s ORDER BY seq", (saga,))]


@contextlib.contextmanager
def room(pg_server, redis, name):
    redis.flush()
    db = pg_server.createdb(name)
    r = Room(db, redis)
    try:
        yield r
    finally:
        r.close()
        db.drop()
