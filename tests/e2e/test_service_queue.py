"""tests/e2e/test_service_queue.py -- postrider-queue over real HTTP, Redis and Postgres: places, turns, the status, what its
consumer makes of commands and events, and every kind of bad token. Servers that go away are in
tests/fault/test_queue_faults.py."""
import datetime
import hashlib
import itertools
import json
import os
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import confluent_kafka
import pytest
import servers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from service import Api
from tokens import QUEUE, Issuer
from wait import wait_until
from waiting import CONCERT, command, deducted, message, room

pytestmark = pytest.mark.timeout(240)
SLOW = {"users": 1000, "every": "1d"}  # periods are days of UTC: after the first one's users nobody's turn comes in a test


@pytest.fixture(scope="module")
def shared(pg_server, redis):
    """A queue that lets everybody in at once."""
    with room(pg_server, redis, f"queue_{os.getpid()}") as r:
        r.service(admission={"users": 100000, "every": "10ms"}, http={"patience": "4s"})
        yield r


@pytest.fixture
def rooms(pg_server, own_redis, request):
    made = []

    def make(**kw):
        cm = room(pg_server, own_redis(**kw), f"queue_{os.getpid()}_{uuid.uuid4().hex[:8]}")
        made.append(cm)
        return cm.__enter__()
    yield make
    for cm in made:
        cm.__exit__(None, None, None)


def at(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


# ---- places

def test_a_place_a_turn_and_its_facts(shared):
    """From the first request to the turn: 201 with a token, TokenIssued, then AVAILABLE and TokenActivated, each once."""
    ann = str(uuid.uuid4())
    answer = shared.ask(ann)
    assert answer.status == 201, answer
    got = answer.json
    assert got["concert_id"] == CONCERT and got["position"] >= 1 and got["state"] == "WAITING"
    status = shared.until(got["token"], "AVAILABLE")
    assert status["position"] == 0 and status["eta_seconds"] == 0 and status["token_id"] == got["token_id"]
    assert at(status["expire_at"]) - at(got["active_at"]) >= datetime.timedelta(minutes=10)
    assert shared.api.post("/queue/status", {"token": got["token"]}).json == status
    issued, = [e for e in shared.events("TokenIssued") if e["user_id"] == ann]
    assert issued == {"token_id": got["token_id"], "user_id": ann, "concert_id": CONCERT, "position": got["position"],
                      "active_at": got["active_at"], "expire_at": got["expire_at"]}
    active, = [e for e in shared.events("TokenActivated") if e["user_id"] == ann]
    assert active["expire_at"] == status["expire_at"] and at(active["active_at"]) >= at(got["active_at"])
    seen = wait_until(lambda: [e for e in shared.events("QueueStatusChecked") if e["user_id"] == ann and e["status"] == "AVAILABLE"],
                      30, "the facts")
    assert set(seen[0]) == {"token_id", "user_id", "concert_id", "status", "position", "at"} and seen[0]["position"] == 0


def test_who_has_a_place_keeps_it(shared):
    """Asked again, at once or from two windows at the same time, a user has one token; another concert has another."""
    ann = str(uuid.uuid4())
    shared.concert("18")
    first = shared.ask(ann)
    again = shared.ask(ann)
    assert (first.status, again.status) == (201, 200)
    assert again.json["token"] == first.json["token"]
    other = shared.ask(ann, "18")
    assert other.status == 201 and other.json["token_id"] != first.json["token_id"]
    bob = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shared.ask(bob), range(16)))
    assert {a.status for a in answers} == {200, 201} and [a.status for a in answers].count(201) == 1
    assert len({a.json["token"] for a in answers}) == 1
    assert len([e for e in shared.events("TokenIssued") if e["user_id"] == bob]) == 1


def test_an_idempotency_key_gives_the_same_answer(shared):
    ann = str(uuid.uuid4())
    first, again = shared.ask(ann, key="k-1"), shared.ask(ann, key="k-1")
    assert (first.status, first.json) == (again.status, again.json) == (201, first.json)
    assert shared.ask(ann, "18", key="k-1").problem == "idempotency-key-reused"


def test_a_repetition_draws_no_number(shared):
    """A key was remembered, its token ended: each repetition drew a number, which was nobody's and took a place of the
    plan, so that one user could push everybody's turn into the future. A bad key and one of another request likewise."""
    ann = str(uuid.uuid4())
    shared.concert("19")
    first = shared.ask(ann, "19", key="k-2")
    shared.until(first.json["token"], "AVAILABLE")
    shared.handle(command("CompleteToken", str(uuid.uuid4()), token_id=first.json["token_id"]))

    def drawn():
        return int(shared.redis.call("GET", "queue:19:number"))
    before = drawn()
    for _ in range(3):
        again = shared.ask(ann, "19", key="k-2")
        assert (again.status, again.json["token_id"]) == (201, first.json["token_id"])
    assert shared.ask(ann, "19", key="k" * 300).status == 400
    assert drawn() == before
    assert shared.ask(ann, "19", key="k-3").status == 201 and drawn() == before + 1


def test_a_concert_that_nobody_has_heard_of(shared):
    """404, but an event that comes within http.patience is waited for."""
    assert shared.ask(concert="4711").problem == "no-such-concert"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(shared.ask, None, "4712")
        shared.handle(message("outbox.event.concert", "ConcertCreated", {"concert_id": "4712", "title": "x", "status": "AVAILABLE"}))
        assert answer.result().status == 201


def test_a_locked_user(shared):
    """UserUpdated locks him out; an older event that comes later does not let him in again."""
    ann = str(uuid.uuid4())
    shared.handle(message("outbox.event.user", "UserCreated", {"user_id": ann, "state": "ACTIVE"}, time="2026-01-01T00:00:00Z"),
                  message("outbox.event.user", "UserUpdated", {"user_id": ann, "state": "LOCKED"}, time="2026-01-01T00:00:02Z"),
                  message("outbox.event.user", "UserUpdated", {"user_id": ann, "state": "ACTIVE"}, time="2026-01-01T00:00:01Z"))
    assert shared.ask(ann).problem == "locked"
    shared.handle(message("outbox.event.user", "UserUpdated", {"user_id": ann, "state": "ACTIVE"}, time="2026-01-01T00:00:03Z"))
    assert shared.ask(ann).status == 201


# ---- turns

def test_turns_come_as_planned(rooms):
    """2 users every 300 ms: nobody before the time in the token, no more at a time, in the order of the numbers, no
    gap; positions and the time to wait go down to it."""
    r = rooms()
    r.service(admission={"users": 2, "every": "300ms"})
    got = [r.enter() for _ in range(8)]
    assert all(g["position"] >= 1 for g in got)
    last = got[-1]
    seen, began = [], time.monotonic()
    while not seen or seen[-1]["state"] != "AVAILABLE":
        seen.append(r.status(last["token"]))
        assert time.monotonic() - began < 60
    assert [s["position"] for s in seen] == sorted((s["position"] for s in seen), reverse=True)
    assert {s["state"] for s in seen} <= {"WAITING", "AVAILABLE"}
    wait_until(lambda: len(r.activated()) == 8, 30, "all turns")
    assert r.activated() == [g["token_id"] for g in got]
    for planned, real, number in r.rows("active_at, activated_at, number"):
        assert real >= planned, number
    periods = [int(a.timestamp() * 1000) // 300 for (a,) in r.rows("active_at")]
    assert all(periods.count(p) <= 2 for p in periods)


def test_a_backlog_is_let_in_no_faster(rooms):
    """40 whose time came while the queue was down: still 2 every 200 ms, by three processes together."""
    r = rooms()
    r.service(admission={"users": 2, "every": "1d"}).terminate()
    r.services.clear()
    r.db.psql("""
        INSERT INTO queue.queue_token (concert_id, number, user_id, active_at, expire_at, good_until, kid)
        SELECT 17, n, gen_random_uuid(), now() - interval '1 minute', now() + interval '1 hour', now() + interval '1 hour', 'k'
        FROM generate_series(1, 40) AS n; INSERT INTO queue.queue_counter VALUES (17) ON CONFLICT DO NOTHING""")
    r.redis.flush()
    began = time.monotonic()
    for _ in range(3):
        r.service(wait=False, admission={"users": 2, "every": "200ms"})

    def let_in():
        n = len(r.activated())
        assert n <= 2 * (int((time.monotonic() - began) / 0.2) + 2)
        return n == 40
    wait_until(let_in, 60, "all turns")
    assert r.numbers(r.activated()) == list(range(1, 41))


def test_concerts_do_not_wait_for_each_other(rooms):
    r = rooms()
    r.service(admission={"users": 1, "every": "1d"})
    r.concert("18")
    r.until(r.enter()["token"], "AVAILABLE")
    waits = r.enter()
    r.until(r.enter(concert="18")["token"], "AVAILABLE")
    assert r.status(waits["token"])["position"] == 1 and r.status(waits["token"])["eta_seconds"] > 0


def test_three_processes_are_one_queue(rooms):
    """Users come by three processes, each admits: every number once, every turn once, the order kept, and each process
    tells of all tokens."""
    r = rooms()
    plan = {"users": 7, "every": "50ms"}
    apis = [r.service(admission=plan).api for _ in range(3)]
    got = r.crowd(120, apis=apis)
    assert len({g["token_id"] for g in got}) == 120
    wait_until(lambda: len(r.activated()) == 120, 60, "all turns")
    assert sorted(r.numbers(r.activated())) == sorted(n for (n,) in r.rows("number"))
    assert len(set(r.activated())) == 120
    for g, api in zip(got, itertools.cycle(apis)):
        r.until(g["token"], "AVAILABLE", api=api)
    for planned, real, number in r.rows("active_at, activated_at, number"):
        assert real >= planned, number


def test_positions_count_who_waits(rooms):
    """A place is the number of those who wait before, and one: whoever leaves moves all behind him up."""
    r = rooms()
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    got = [r.enter() for _ in range(6)]
    wait_until(lambda: [r.status(g["token"])["position"] for g in got] == [1, 2, 3, 4, 5, 6], 30, "their places")
    r.handle(command("ExpireToken", str(uuid.uuid4()), token_id=got[2]["token_id"]))
    r.until(got[2]["token"], "EXPIRED")
    assert [r.status(g["token"])["position"] for g in got] == [1, 2, 0, 3, 4, 5]
    assert int(r.redis.call("ZCARD", f"queue:{CONCERT}:waiting")) == 5


def test_time_ends_a_token(rooms):
    """ACTIVE ends active_for after the turn, with QueueExpired; then the user may queue up anew. Who waited and never
    had his turn ends, too."""
    r = rooms()
    r.service(admission={"users": 1, "every": "1d", "active_for": "700ms", "late": "300ms"})
    ann = str(uuid.uuid4())
    one = r.enter(ann)
    # By the fact: a machine that is busy for 700 ms never shows AVAILABLE.
    wait_until(lambda: r.activated() == [one["token_id"]], 30, "its turn")
    other = r.enter()
    r.db.query("UPDATE queue.queue_token SET expire_at = now() WHERE token_id = %s", (other["token_id"],))  # its time has passed
    r.until(one["token"], "EXPIRED")
    r.until(other["token"], "EXPIRED")
    wait_until(lambda: len(r.events("QueueExpired")) == 2, 30, "QueueExpired")
    assert {e["token_id"] for e in r.events("QueueExpired")} == {one["token_id"], other["token_id"]}
    assert [s for _, s in r.rows()] == ["EXPIRED", "EXPIRED"]
    new = r.enter(ann)
    assert new["token_id"] != one["token_id"]


def test_a_user_whose_time_is_over_gets_a_new_token_before_the_sweep(shared):
    ann = str(uuid.uuid4())
    one = shared.enter(ann)
    shared.until(one["token"], "AVAILABLE")
    shared.db.query("UPDATE queue.queue_token SET expire_at = now() WHERE token_id = %s", (one["token_id"],))
    again = shared.ask(ann)
    assert again.status == 201 and again.json["token_id"] != one["token_id"]
    assert shared.row(one["token_id"]) == "EXPIRED"
    assert len([e for e in shared.events("QueueExpired") if e["token_id"] == one["token_id"]]) == 1


def test_old_tokens_are_forgotten_and_their_numbers_are_not(rooms):
    r = rooms()
    r.service(token={"keep": "1s"})
    one = r.enter()
    r.until(one["token"], "AVAILABLE")
    r.db.query("UPDATE queue.queue_token SET state = 'EXPIRED', ended_at = now() - interval '1 day', good_until = now() - interval '1 day'")
    # What the keeper is just forgetting itself is stepped over.
    wait_until(lambda: r.db.query("SELECT queue.forget('1 second')") and r.rows() == [], 30, "them to be forgotten")
    assert r.db.one("SELECT number FROM queue.queue_counter") == 1
    r.redis.flush()
    r.enter()
    assert r.rows("number") == [(2,)]


# ---- bad tokens, bad input

def our_token(r, **claims):
    """Signed with the queue's own key."""
    kid, private = r.db.query("SELECT kid, private_key FROM service.jwt_key")[0]
    q = object.__new__(Issuer)
    q.issuer, q.audience = QUEUE
    q.key, q.kid = Ed25519PrivateKey.from_private_bytes(bytes(private)), kid
    return q, q.token(uuid.uuid4(), **claims)


@pytest.mark.asan
def test_forged_tokens(shared):
    """Of the status: none, another key, a user's token, an expired one, and one with our key but nothing of ours in it:
    401, and no fact is published."""
    got = shared.enter()
    shared.until(got["token"], "AVAILABLE")
    q, _ = our_token(shared)
    said = {"jti": got["token_id"], "concert_id": CONCERT, "number": 1}
    bad = q.forged(uuid.uuid4(), **said)
    bad["a user's token"] = shared.users.token(uuid.uuid4())
    bad["of the user service"] = shared.users.token(uuid.uuid4(), iss=QUEUE[0], aud=QUEUE[1], **said)
    bad["without a number"] = q.token(uuid.uuid4(), jti=got["token_id"], concert_id=CONCERT)
    bad["without an id"] = q.token(uuid.uuid4(), jti="x", concert_id=CONCERT, number=1)
    bad["too long"] = "a" * 3000
    head, _, sig = got["token"].split(".")
    for name, token in bad.items():
        answer = shared.api.get("/queue/status", token=token)
        assert answer.problem == "unauthorized", (name, answer)
        if token:
            assert shared.api.post("/queue/status", {"token": token}).problem == "unauthorized", name
    assert shared.api.get("/queue/status").status == 401
    for name, token in shared.users.forged(uuid.uuid4()).items():
        assert shared.api.post("/queue/tokens", {"concert_id": CONCERT}, token=token).problem == "unauthorized", name
    assert shared.api.post("/queue/tokens", {"concert_id": CONCERT}, token=got["token"]).problem == "unauthorized"
    assert shared.api.post("/queue/tokens", {"concert_id": CONCERT}).status == 401


@pytest.mark.asan
def test_bad_input(shared):
    user = shared.users.token(uuid.uuid4())
    before = len(shared.rows())
    for body, status in [(b"", 400), (b"{", 400), (b"[]", 400), (b'{"concert_id": "17"', 400), (b'{"concert_id": "\xff"}', 422),
                         ({}, 422), ({"concert_id": 17}, 422), ({"concert_id": "x"}, 422), ({"concert_id": "-1"}, 422),
                         ({"concert_id": "9" * 30}, 422), ({"concert_id": "17'; DROP TABLE queue.queue_token; --"}, 422),
                         ({"concert_id": None}, 422), ({"concert_id": ["17"]}, 422), ({"concert_id": "17", "x": "y" * 70000}, 413)]:
        assert shared.api.post("/queue/tokens", body, token=user).status == status, body
    for body, status in [(b"", 400), (b"null", 400), ({}, 422), ({"token": 1}, 422), ({"token": ""}, 422), ({"token": "a" * 9000}, 422)]:
        assert shared.api.post("/queue/status", body).status == status, body
    assert shared.api.post("/queue/tokens", b"concert_id=17", token=user, headers={"Content-Type": "text/plain"}).status == 415
    assert len(shared.rows()) == before


def test_keys_are_published_and_are_not_the_users(shared):
    jwks = shared.api.get("/.well-known/jwks.json")
    assert jwks.status == 200 and "max-age" in jwks.headers["Cache-Control"] and '"d"' not in jwks.text
    assert not {k["x"] for k in jwks.json["keys"]} & {shared.users.jwk()["x"]}


def test_a_status_that_is_asked_for_too_often(rooms):
    """429 with Retry-After for that token only; after a while it is answered again."""
    r = rooms()
    r.service(status={"rate": 1, "burst": 3})
    one, other = r.enter(), r.enter()
    answers = [r.api.get("/queue/status", token=one["token"]) for _ in range(10)]
    assert [a.status for a in answers[:3]] == [200] * 3
    late = [a for a in answers if a.status != 200]
    assert late and all(a.problem == "too-many-requests" and int(a.headers["Retry-After"]) >= 1 for a in late)
    assert r.api.get("/queue/status", token=other["token"]).status == 200
    wait_until(lambda: r.api.get("/queue/status", token=one["token"]).status == 200, 30, "its turn to ask")
    assert r.services[0].metric("postrider_queue_limited_total") >= len(late)


def test_a_user_who_asks_for_tokens_too_often(rooms):
    """429 with Retry-After for that user only."""
    r = rooms()
    r.service(status={"rate": 1, "burst": 3})
    ann = str(uuid.uuid4())
    answers = [r.ask(ann) for _ in range(10)]
    late = [a for a in answers if a.status == 429]
    assert late and all(a.problem == "too-many-requests" and int(a.headers["Retry-After"]) >= 1 for a in late)
    assert r.ask().status == 201
    assert r.services[0].metric("postrider_queue_limited_total") >= len(late)


# ---- the consumer

@pytest.fixture
def active(shared):
    """A token whose turn it is: (token_id, token, user_id)."""
    user = str(uuid.uuid4())
    got = shared.enter(user)
    shared.until(got["token"], "AVAILABLE")
    return got["token_id"], got["token"], user


def of(shared, token_id, *types):
    return [e for e in shared.events(*types) if e.get("token_id") == token_id]


def test_a_payment_completes_the_token_and_its_undo_gives_it_back(shared, active):
    """CompleteToken -> COMPLETED, QueueCompleted with the payment; ReactivateToken -> ACTIVE, QueueRestored. The status
    follows. Each command twice does it once."""
    token_id, token, user = active
    saga = str(uuid.uuid4())
    do = command("CompleteToken", saga, token_id=token_id, user_id=user, payment_id=saga)
    undo = command("ReactivateToken", saga, "undo", token_id=token_id, user_id=user, payment_id=saga)
    shared.handle(do, do)
    shared.until(token, "COMPLETED")
    assert of(shared, token_id, "QueueCompleted") == [
        {"token_id": token_id, "user_id": user, "concert_id": CONCERT, "payment_id": saga}]
    shared.handle(undo, undo)
    shared.until(token, "AVAILABLE")
    assert [e["state"] for e in of(shared, token_id, "QueueRestored")] == ["ACTIVE"]
    assert shared.answers(saga) == [("do", "done"), ("do", "done"), ("undo", "done"), ("undo", "done")]
    assert shared.row(token_id, "ended_at") is None


def test_refusals_of_commands(shared, active):
    token_id, _, _ = active

    def outcome(type, **payload):
        saga = str(uuid.uuid4())
        shared.handle(command(type, saga, **payload))
        return shared.answers(saga)
    refused = [("do", "refused")]
    assert outcome("CompleteToken", token_id=str(uuid.uuid4())) == refused
    assert outcome("CompleteToken", token_id="'; DROP SCHEMA queue CASCADE; --") == refused
    assert outcome("CompleteToken") == refused
    assert outcome("CompleteToken", token_id=token_id, user_id=str(uuid.uuid4())) == refused
    assert outcome("DanceToken", token_id=token_id) == refused
    assert shared.row(token_id) == "ACTIVE"
    assert outcome("CompleteToken", token_id=token_id) == [("do", "done")]
    assert outcome("CompleteToken", token_id=token_id) == refused  # by another payment
    assert outcome("ExpireToken", token_id=token_id) == refused
    assert shared.row(token_id) == "COMPLETED"


def test_a_token_that_waits_cannot_pay(rooms):
    r = rooms()
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    waits, saga = r.enter(), str(uuid.uuid4())
    r.handle(command("CompleteToken", saga, token_id=waits["token_id"]))
    assert r.answers(saga) == [("do", "refused")] and r.state(waits["token"]) == "WAITING"


def test_an_undo_restores_only_what_is_still_ours(shared, active):
    """Between do and undo somebody else has decided (an operator expired the token; the user has another one): it stays."""
    token_id, token, user = active
    saga = str(uuid.uuid4())
    shared.handle(command("CompleteToken", saga, token_id=token_id))
    newer = shared.enter(user)
    assert newer["token_id"] != token_id
    shared.handle(command("ReactivateToken", saga, "undo", token_id=token_id))
    assert shared.row(token_id) == "COMPLETED" and shared.answers(saga)[-1] == ("undo", "done")
    assert shared.row(newer["token_id"]) in ("WAITING", "ACTIVE")
    saga = str(uuid.uuid4())
    shared.until(newer["token"], "AVAILABLE")
    shared.handle(command("CompleteToken", saga, token_id=newer["token_id"]))
    shared.db.query("UPDATE queue.queue_token SET version = version + 1 WHERE token_id = %s", (newer["token_id"],))
    shared.handle(command("ReactivateToken", saga, "undo", token_id=newer["token_id"]))
    assert shared.row(newer["token_id"]) == "COMPLETED"


def test_expire_and_restore_of_one_that_waits(rooms):
    """ExpireToken takes him out of the line, RestoreToken puts him back at his old place, and his turn comes."""
    r = rooms()
    r.service(admission={"users": 1, "every": "1s"})
    r.until(r.enter()["token"], "AVAILABLE")
    got, saga = r.enter(), str(uuid.uuid4())
    r.handle(command("ExpireToken", saga, token_id=got["token_id"]))
    r.until(got["token"], "EXPIRED")
    assert r.redis.call("ZCARD", f"queue:{CONCERT}:waiting") == 0
    r.handle(command("RestoreToken", saga, "undo", token_id=got["token_id"]))
    r.until(got["token"], "AVAILABLE")
    assert r.activated().count(got["token_id"]) == 1


def test_points_deducted_of_a_choreography_ends_the_token(shared, active):
    """QueueExpired with the payment and what it carries on; the same message again does nothing; an undo restores."""
    token_id, token, user = active
    payment = str(uuid.uuid4())
    m = deducted(payment, token_id, user_id=user, reservation_ids=[str(uuid.uuid4())])
    shared.handle(m, m)
    shared.until(token, "EXPIRED")
    assert of(shared, token_id, "QueueExpired") == [{"token_id": token_id, "user_id": user, "concert_id": CONCERT, "payment_id": payment,
                                                     "choreography_id": payment, "reservation_ids": m["payload"]["reservation_ids"]}]
    shared.handle(command("RestoreToken", payment, "undo", token_id=token_id))
    shared.until(token, "AVAILABLE")


def test_a_token_serves_one_payment(shared):
    """Two payments by choreography began with one token: the first one to end it has it, and the second must fail, too when
    it commands. What time has ended fails nobody; what an undo has restored serves another one."""
    user = str(uuid.uuid4())
    got = shared.enter(user)
    token = got["token_id"]
    shared.until(got["token"], "AVAILABLE")
    one, other, third, fourth = (str(uuid.uuid4()) for _ in range(4))
    first = deducted(one, token, user_id=user)
    shared.handle(first, deducted(other, token, user_id=user))
    assert [e["payment_id"] for e in of(shared, token, "QueueExpired")] == [one]
    failed, = of(shared, token, "QueueExpiryFailed")
    assert failed["payment_id"] == failed["choreography_id"] == other and one in failed["reason"]
    shared.handle(command("ExpireToken", third, token_id=token, payment_id=third))
    assert shared.answers(third) == [("do", "refused")]
    shared.handle(command("RestoreToken", other, "undo", token_id=token))
    assert shared.row(token) == "EXPIRED"
    shared.handle(command("RestoreToken", one, "undo", token_id=token), deducted(fourth, token, user_id=user))
    assert [e["payment_id"] for e in of(shared, token, "QueueExpired")] == [one, fourth]
    late = shared.enter(user)
    shared.until(late["token"], "AVAILABLE")
    shared.db.query("SELECT queue.expire(ARRAY[%s]::uuid[])", (late["token_id"],))
    shared.handle(deducted(str(uuid.uuid4()), late["token_id"], user_id=user))
    assert of(shared, late["token_id"], "QueueExpiryFailed") == []


def test_points_deducted_that_cannot_end_a_token(shared, active):
    token_id, _, user = active
    shared.handle(command("CompleteToken", str(uuid.uuid4()), token_id=token_id))
    payment, stranger, nobody = (str(uuid.uuid4()) for _ in range(3))
    shared.handle(deducted(payment, token_id, user_id=user), deducted(str(uuid.uuid4()), stranger))
    failed, = of(shared, token_id, "QueueExpiryFailed")
    assert failed["payment_id"] == failed["choreography_id"] == payment and "COMPLETED" in failed["reason"]
    assert of(shared, stranger, "QueueExpiryFailed")[0]["reason"] == "there is no such token"
    before = len(shared.events("QueueExpired", "QueueExpiryFailed"))
    hybrid = deducted(str(uuid.uuid4()), token_id, hybrid_id=str(uuid.uuid4()))
    del hybrid["payload"]["choreography_id"]
    shared.handle(hybrid, message("outbox.event.payment", "PaymentCompleted", {"payment_id": nobody}))
    assert len(shared.events("QueueExpired", "QueueExpiryFailed")) == before
    shared.handle(deducted(nobody, None, user_id=user))  # at the box office
    assert shared.events("QueueExpired")[-1] == {"token_id": None, "user_id": user, "concert_id": None, "payment_id": nobody,
                                                 "choreography_id": nobody, "reservation_ids": []}


def test_messages_in_every_order(shared):
    """A payment completes a token, its undo, the end of its time, and another payment: in each order the row is in a
    state that one of them left, the last version is what the status says, and no do is undone that was not done."""
    for order in itertools.permutations(range(4)):
        user = str(uuid.uuid4())
        got = shared.enter(user)
        shared.until(got["token"], "AVAILABLE")
        one, other = str(uuid.uuid4()), str(uuid.uuid4())
        steps = [lambda: shared.handle(command("CompleteToken", one, token_id=got["token_id"])),
                 lambda: shared.handle(command("ReactivateToken", one, "undo", token_id=got["token_id"])),
                 lambda: shared.db.query("SELECT queue.expire(ARRAY[%s]::uuid[])", (got["token_id"],)),
                 lambda: shared.handle(command("CompleteToken", other, token_id=got["token_id"]))]
        state, undone = "ACTIVE", False
        by = None
        for i in order:
            steps[i]()
            if i == 0 and state == "ACTIVE" and not undone:
                state, by = "COMPLETED", one
            elif i == 1:
                undone = True
                if by == one:
                    state, by = "ACTIVE", None
            elif i == 2 and state == "ACTIVE":
                state = "EXPIRED"
            elif i == 3 and state == "ACTIVE":
                state, by = "COMPLETED", other
        assert shared.row(got["token_id"]) == state, order
        shared.until(got["token"], {"ACTIVE": "AVAILABLE"}.get(state, state))


def test_payment_and_end_of_time_at_the_same_moment(shared):
    """The row's lock decides: either the payment had it (COMPLETED, one QueueCompleted, no QueueExpired) or time did
    (EXPIRED, the command refused)."""
    tokens = [shared.enter() for _ in range(20)]
    for t in tokens:
        shared.until(t["token"], "AVAILABLE")
    sagas = {t["token_id"]: str(uuid.uuid4()) for t in tokens}

    def pay(t):
        shared.handle(command("CompleteToken", sagas[t["token_id"]], token_id=t["token_id"]))

    def end(t):
        shared.db.query("UPDATE queue.queue_token SET expire_at = now() WHERE token_id = %s AND state = 'ACTIVE'", (t["token_id"],))
        shared.db.query("SELECT queue.expire_due(10)")
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(f, t) for t in tokens for f in random.sample([pay, end], 2)]
        for j in jobs:
            j.result()
    for t in tokens:
        # What the keeper is just ending itself was stepped over.
        wait_until(lambda t=t: shared.row(t["token_id"]) != "ACTIVE", 30, "the token to end")
        state, answer = shared.row(t["token_id"]), shared.answers(sagas[t["token_id"]])
        events = [len(of(shared, t["token_id"], e)) for e in ("QueueCompleted", "QueueExpired")]
        assert (state, answer, events) in [("COMPLETED", [("do", "done")], [1, 0]), ("EXPIRED", [("do", "refused")], [0, 1])]
        shared.until(t["token"], state)


def test_by_its_real_consumer(shared, kafka):
    """postrider-consumer as etc/services/queue-consumer.cfg has it: a concert becomes known, a command is done once."""
    topics = ["outbox.command.queue", "outbox.event.payment", "outbox.event.user", "outbox.event.concert"]
    for t in set(topics) - set(kafka.topics()):
        kafka.create_topic(t, 1)
    with open(os.path.join(servers.ROOT, "etc", "services", "queue-consumer.cfg"), encoding="utf-8") as f:
        text = f.read()
    assert all(f'"{t}"' in text for t in topics) and 'function = "queue.on_message"' in text
    c = servers.Consumer(shared.db.conninfo, kafka.bootstrap, "queue", topics, {"kind": "sql", "function": "queue.on_message"}).start()
    try:
        concert, saga, user = str(random.randrange(10 ** 6, 10 ** 9)), str(uuid.uuid4()), str(uuid.uuid4())
        p = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})

        def send(m, key):
            p.produce(m["topic"], json.dumps(m["payload"]).encode(), key.encode(),
                      headers=[(k, v.encode()) for k, v in {**m["headers"], "id": m["id"], "type": m["type"]}.items()])
            assert p.flush(20) == 0
        send(message("outbox.event.concert", "ConcertCreated", {"concert_id": concert, "title": "x", "status": "AVAILABLE"}), concert)
        got = wait_until(lambda: (a := shared.ask(user, concert)).status == 201 and a.json, 30, "the concert to be known")
        shared.until(got["token"], "AVAILABLE")
        m = command("CompleteToken", saga, token_id=got["token_id"], user_id=user)
        send(m, saga)
        send(m, saga)
        shared.until(got["token"], "COMPLETED")
        wait_until(lambda: c.metric("postrider_inbox_duplicates_total") >= 1, 20, "the duplicate")
        assert shared.answers(saga) == [("do", "done")]
    finally:
        c.kill()


# ---- speed and bounds

def test_every_query_uses_an_index(empty_db, redis, pg_server):
    """On 100,000 tokens of 3 concerts: what requests and the keeper ask reads no table from end to end."""
    with room(pg_server, redis, f"queue_x_{os.getpid()}") as r:
        r.service(admission=SLOW).terminate()
        r.db.psql("""
            INSERT INTO queue.queue_token (concert_id, number, user_id, state, active_at, expire_at, good_until, kid, activated_at, ended_at)
            SELECT n % 3 + 1, n, gen_random_uuid(), CASE WHEN n % 50 = 0 THEN 'WAITING' WHEN n % 49 = 0 THEN 'ACTIVE' ELSE 'EXPIRED' END,
                now(), now() + interval '1 hour', now() + interval '1 hour', 'k', now(), CASE WHEN n % 50 > 0 AND n % 49 > 0 THEN now() END
            FROM generate_series(1, 100000) AS n;
            INSERT INTO queue.queue_counter SELECT n, 0 FROM generate_series(1, 3) AS n;
            ANALYZE queue.queue_token""")
        some, = r.db.query("SELECT token_id, user_id FROM queue.queue_token WHERE number = 50")
        for sql in (
                f"SELECT FROM queue.queue_token AS t WHERE t.user_id = '{some[1]}' AND t.concert_id = 1 AND t.state IN ('WAITING', 'ACTIVE')",
                f"SELECT FROM queue.queue_token AS t WHERE t.token_id = '{some[0]}' FOR UPDATE",
                "SELECT FROM queue.queue_token AS t WHERE t.concert_id = 1 AND t.number = ANY ('{3,6,9}') AND t.state = 'WAITING' ORDER BY t.number",
                "SELECT t.token_id FROM queue.queue_token AS t WHERE t.state IN ('WAITING', 'ACTIVE') AND t.expire_at <= now()"
                " ORDER BY t.expire_at LIMIT 1000 FOR UPDATE SKIP LOCKED",
                "SELECT t.token_id FROM queue.queue_token AS t WHERE t.ended_at < now() - interval '7 days' AND t.good_until < now()"
                " ORDER BY t.ended_at LIMIT 5000 FOR UPDATE SKIP LOCKED",
                "SELECT t.concert_id, t.number FROM queue.queue_token AS t WHERE t.state = 'WAITING' AND (t.concert_id, t.number) > (1, 7)"
                " ORDER BY t.concert_id, t.number LIMIT 5000"):
            plan = json.dumps(r.db.one(f"EXPLAIN (FORMAT JSON) {sql}"))
            assert "Seq Scan" not in plan and "Index" in plan, (sql, plan)
        assert len(r.db.query("SELECT * FROM queue.counters(1000, 1000000)")) == 3


def test_a_turn_of_a_thousand_is_short_for_redis(rooms):
    """10,000 who wait, let in 1,000 at a time: in their order, and at most 5 ms of Redis' time for each (its slow log
    measures; of the ten longest the third shortest, since a busy machine stops Redis, too)."""
    r = rooms(config={"slowlog-max-len": 10000})
    r.service(admission={"users": 1000, "every": "1d"}).terminate()
    r.services.clear()
    r.db.psql("""
        INSERT INTO queue.queue_token (concert_id, number, user_id, active_at, expire_at, good_until, kid)
        SELECT 17, n, gen_random_uuid(), now() - interval '1 minute', now() + interval '1 hour', now() + interval '1 hour', 'k'
        FROM generate_series(1, 10000) AS n; INSERT INTO queue.queue_counter VALUES (17) ON CONFLICT DO NOTHING""")
    r.redis.flush()
    r.redis.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
    r.service(admission={"users": 1000, "every": "50ms"})
    wait_until(lambda: len(r.activated()) == 10000, 60, "all turns")
    assert r.numbers(r.activated()) == list(range(1, 10001))
    with open(os.path.join(servers.ROOT, "producers", "queue", "admit.lua"), "rb") as f:
        sha = hashlib.sha1(f.read()).hexdigest()
    took = sorted(e[2] for e in r.redis.call("SLOWLOG", "GET", "-1") if e[3][:2] == ["EVALSHA", sha])
    assert len(took) >= 10 and took[-8] <= 5000, took[-10:]


def test_options_that_cannot_be(rooms):
    cli = servers.Cli("postrider-queue")
    file = servers.write_config(os.path.join(servers.new_dir("cfg"), "q.cfg"), {"database": {"conninfo": "dbname=x"}})
    assert cli("--check", "-c", file).returncode == 0
    for bad in ("redis.address=nowhere", "admission.users=0", "jwt.ahead=31d", "jwt.rotate=1h"):
        done = cli("--check", "-c", file, "-o", bad)
        assert done.returncode == 78 and bad.split("=")[0].split(".")[1] in done.stderr, bad


def test_the_documented_operations_are_all(shared):
    assert set(Api(shared.services[0].port).document()["paths"]) == {"/queue/tokens", "/queue/status", "/.well-known/jwks.json"}
