"""tests/e2e/test_service_together.py -- requests for seats that the reservation service finds waiting at the same time are
answered by one transaction, and each as if it had been alone: who is refused takes nobody with him, whoever must wait holds
nobody up, a key that comes twice is done once, and what fails as a whole is done one by one."""
import os
import time

import pytest
from sql import run
from test_service_reservation import Box, new
from together import Sent, Together
from tokens import QUEUE, USER, Issuer
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
TABLE = "reservation.seat"
# Requests wait for the table, and for their turn, as long as a test takes to send all the others.
HTTP, DATABASE = {"workers": 4, "timeout": "60s"}, {"timeout": "60s"}


@pytest.fixture(scope="module")
def box(pg_server):
    """Four workers, so that one handles batches."""
    db = pg_server.createdb(f"together_{os.getpid()}")
    with Issuer(*USER) as users, Issuer(*QUEUE) as queue:
        b = Box(db, users, queue, http={**HTTP, "patience": "10s"}, database=DATABASE)
        b.since = time.monotonic()
        b.db.query("SET lock_timeout = '20s'")
        yield b
        b.check()
        b.service.kill()
    db.drop()


class Crowd(Together):
    """People who ask for seats of one schedule at the same time; the first of all is somebody else, alone."""

    def __init__(self, box, seats=8):
        self.box = box
        self.concert, self.schedule, self.seats = box.concert(seats + 1)
        self.last = self.seats.pop()
        super().__init__(box.service.port, box.db.conninfo, TABLE, [self.request(box.person(self.concert), [self.last])])

    def request(self, person, seats, **more):
        return "/reservations", {"schedule_id": self.schedule, "seat_ids": seats, "queue_token": person.queue_token, **more}, person.token

    def person(self):
        return self.box.person(self.concert)

    def ask(self, person, seats, key=None, **more):
        self.send(*self.request(person, seats, **more), key=key)

    def go(self):
        answers = super().go()
        assert [a.status for a in self.first_answers] == [202]
        for a in answers:
            self.box.api.check("POST", "/reservations", a)
        return answers

    def made(self):
        """{seat_id: how many reservations}, and how many transactions made them."""
        rows = self.box.db.query("SELECT seat_id::text, count(*) FROM reservation.reservation WHERE concert_id = %s AND seat_id <> %s"
                                 " GROUP BY 1", (self.concert, self.last))
        n = self.box.db.one("SELECT count(DISTINCT xmin::text) FROM reservation.reservation WHERE concert_id = %s AND seat_id <> %s",
                            (self.concert, self.last))
        return dict(rows), n


def test_one_transaction(box):
    """Eight ask, one of them for two seats: one transaction, each has his own answer, his events in order, his history."""
    with Crowd(box, 9) as c:
        people = [c.person() for _ in range(8)]
        for i, p in enumerate(people):
            c.ask(p, [c.seats[i]] if i else [c.seats[0], c.seats[8]])
        answers = c.go()
    assert [a.status for a in answers] == [202] * 8
    assert c.made() == ({s: 1 for s in c.seats}, 1)
    for p, a, i in zip(people, answers, range(8)):
        ids = a.json["reservation_ids"]
        assert a.headers["Location"] == f"/reservations/{ids[0]}"
        shown = [p.get(f"/reservations/{r}").json for r in ids]
        assert [s["seat_id"] for s in shown] == ([c.seats[i]] if i else [c.seats[0], c.seats[8]])
        told = box.db.query("SELECT payload FROM outbox.event WHERE aggregateid = ANY (%s) ORDER BY seq", (ids,))
        assert [(t[0]["reservation_id"], t[0]["reservation_ids"], t[0]["hold_id"]) for t in told] == [(r, ids, r) for r in ids]
    order = [k for (k,) in box.db.query("SELECT aggregateid FROM outbox.event WHERE type = 'ReservationRequested' AND aggregateid = ANY (%s)"
                                        " ORDER BY seq", ([r for a in answers for r in a.json["reservation_ids"]],))]
    assert order == [r for a in answers for r in a.json["reservation_ids"]]
    box.deliver()
    assert {box.state(r) for r in order} == {"HELD"}


def test_a_bad_one_among_good_ones(box):
    """Each kind of refusal, between those who are accepted: they get theirs, in one transaction, and nothing else is made."""
    with Crowd(box, 8) as c:
        good = [c.person() for _ in range(3)]
        used, elsewhere, locked, forged, early = (c.person() for _ in range(5))
        c.ask(good[0], [c.seats[0]])
        c.ask(elsewhere, [c.seats[1]], queue_token=box.queue.token(elsewhere.id, jti=elsewhere.token_id, concert_id="1"))
        c.ask(good[1], [c.seats[2]])
        c.ask(used, [c.seats[3]])
        c.ask(forged, [c.seats[3]], queue_token=box.queue.forged(forged.id)["another key"])
        c.ask(early, [c.seats[4]], queue_token=box.queue.token(early.id, jti=new(), concert_id=c.concert))
        c.ask(locked, ["1"])
        c.ask(good[2], [c.seats[5]], schedule_id=7)
        c.send("/reservations", b"{", good[2].token)
        c.send("/reservations", {}, None)
        c.ask(good[2], [c.seats[6]])
        used.at_queue("QueueCompleted")
        answers = c.go()
    assert [(a.status, a.json.get("type", "").removeprefix("/problems/")) for a in answers] == [
        (202, ""), (403, "other-concert"), (202, ""), (409, "token-used"), (401, "queue-token"), (409, "not-your-turn"), (422, "no-such-seat"),
        (422, "invalid-value"), (400, "malformed"), (401, "unauthorized"), (202, "")]
    assert answers[5].headers["Retry-After"] == "1"
    assert c.made() == ({c.seats[i]: 1 for i in (0, 2, 6)}, 1)


def test_a_seat_that_is_known_taken(box):
    """Held since: 409 with its label, the others 202."""
    with Crowd(box, 3) as c:
        holder = c.person()
        box.db.query("INSERT INTO reservation.reservation (user_id, concert_id, schedule_id, seat_id, label, price, status, claim_no)"
                     " VALUES (%s, %s, %s, %s, 'A-2', 1000, 'HELD', 1)", (holder.id, c.concert, c.schedule, c.seats[1]))
        for i in range(3):
            c.ask(c.person(), [c.seats[i]])
        answers = c.go()
    assert [a.status for a in answers] == [202, 409, 202]
    assert answers[1].problem == "seat-taken" and answers[1].json["detail"] == "seat A-2 is taken"
    box.db.query("DELETE FROM reservation.reservation WHERE user_id = %s", (holder.id,))


def test_whoever_waits_holds_up_nobody(box):
    """One whose turn has come, though we have not heard of it: the others are answered meanwhile, and he is, once we have."""
    with Crowd(box, 3) as c:
        late = box.person()
        late.concert, late.queue_token = c.concert, box.queue.token(late.id, jti=late.token_id, concert_id=c.concert)
        c.ask(late, [c.seats[0]])
        c.ask(c.person(), [c.seats[1]])
        c.ask(c.person(), [c.seats[2]])
        c.queued()
        c.release()
        answers = [s.answer().status for s in c.sent[1:]]
        assert answers == [202, 202] and c.made()[0] == {s: 1 for s in c.seats[1:]}
        late.at_queue("TokenIssued")
        late.at_queue("TokenActivated")
        assert c.sent[0].answer().status == 202
    assert c.made() == ({s: 1 for s in c.seats}, 2)


def test_whoever_waits_alone_holds_up_nobody(box):
    """Story: one whose turn we have not heard of asked when nobody else did; all who came after him waited as long as he."""
    concert, schedule, seats = box.concert(2)
    late = box.person()
    late.queue_token = box.queue.token(late.id, jti=late.token_id, concert_id=concert)

    def ask(person, seat):
        return Sent(box.service.port, "/reservations", {"schedule_id": schedule, "seat_ids": [seat], "queue_token": person.queue_token}, person.token)
    waiting = ask(late, seats[0])
    for _ in range(3):
        assert box.api.raw("GET", "/healthz").status == 200
    assert ask(box.person(concert), seats[1]).answer().status == 202
    late.concert = concert
    late.at_queue("TokenIssued")
    late.at_queue("TokenActivated")
    assert waiting.answer().status == 202, "he still waits"


def test_a_key_that_nobody_knows_holds_up_nobody(box):
    """Story: the user service accepted connections and said nothing, and tokens came that named a key of tomorrow: each waited
    for that key, one after the other, and all who were asked about together with them waited along."""
    wait_until(lambda: time.monotonic() - box.since > 6, 10, "keys to be asked for again")
    with Crowd(box, 3) as c:
        for _ in range(6):
            p = c.person()
            path, body, _ = c.request(p, [c.seats[0]])
            c.send(path, body, box.users.token(p.id, header={"kid": "tomorrow"}))
        c.ask(c.person(), [c.seats[1]])
        late = c.person()
        c.queued()
        with box.users.silent():
            c.release()
            assert c.sent[6].answer().status == 202
            assert Sent(c.port, *c.request(late, [c.seats[2]])).answer().status == 202
            assert not box.users.given_up.is_set(), "they waited as long as the forged ones"
            assert [s.answer().status for s in c.sent[:6]] == [401] * 6
    assert set(c.made()[0]) == set(c.seats[1:])


def test_two_for_one_seat(box):
    """Both are accepted, in one transaction; the consumer decides, and who asked first has it."""
    with Crowd(box, 1) as c:
        ann, bob = c.person(), c.person()
        c.ask(ann, c.seats)
        c.ask(bob, c.seats)
        answers = c.go()
    assert [a.status for a in answers] == [202, 202] and c.made() == ({c.seats[0]: 2}, 1)
    box.deliver()
    assert [box.state(a.json["reservation_id"]) for a in answers] == ["HELD", "REJECTED"]


def test_keys(box):
    """A key twice: one is done, the other gets the same answer. A key of before: its answer. A key for another content: 422.
    Another user's same key is another key. None of them holds up a request with a new key, or without one."""
    with Crowd(box, 8) as c:
        ann, bob, eve = c.person(), c.person(), c.person()
        old = new()
        c.ask(ann, [c.seats[0]], key="twice")
        c.ask(bob, [c.seats[1]], key="twice")
        c.ask(ann, [c.seats[0]], key="twice")
        c.ask(eve, [c.seats[2]])
        c.ask(eve, [c.seats[3]], key=old)
        c.ask(eve, [c.seats[3]], key="x" * 300)
        first = c.go()
    assert [a.status for a in first] == [202, 202, 202, 202, 202, 400]
    assert first[0].json == first[2].json != first[1].json
    assert c.made() == ({s: 1 for s in c.seats[:4]}, 1)
    with Together(box.service.port, box.db.conninfo, TABLE, [c.request(ann, [c.last])]) as t:
        for person, seat, key in ((eve, 3, old), (bob, 4, "new"), (ann, 5, "twice"), (bob, 6, None)):
            t.send(*c.request(person, [c.seats[seat]]), key=key)
        again = t.go()
    assert [a.status for a in again] == [202, 202, 422, 202]
    assert again[0].json == first[4].json and again[2].problem == "idempotency-key-reused"
    made, transactions = c.made()
    assert made == {c.seats[i]: 1 for i in (0, 1, 2, 3, 4, 6)} and transactions == 2
    assert box.db.one("SELECT count(*) FROM service.idempotency") == 4


def test_more_known_keys_than_an_error_names(pg_server):
    """Story: two hundred asked again with their keys, three others with them: the list of what was known was cut, the wrong one
    left the batch, and all went one by one."""
    db = pg_server.createdb(f"known_{os.getpid()}")
    with Issuer(*USER) as users, Issuer(*QUEUE) as queue:
        b = Box(db, users, queue, http=HTTP, database=DATABASE, batch={"most": 250})
        try:
            with Crowd(b, 203) as c:
                eve = c.person()
                for i in range(200):
                    c.ask(eve, [c.seats[i]], key=f"k{i}")
                first = c.go()
            with Together(b.service.port, b.db.conninfo, TABLE, [c.request(eve, [c.last])]) as t:
                for i, seat in enumerate(c.seats):
                    t.send(*c.request(eve, [seat]), key=f"k{i}")
                again = t.go()
            assert [a.json for a in again[:200]] == [a.json for a in first] and {a.status for a in again} == {202}
            assert c.made() == ({s: 1 for s in c.seats}, 2)
        finally:
            b.service.kill()
    db.drop()


BAD = """
CREATE SEQUENCE public.tries;
CREATE FUNCTION public.bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.seat_id = {seat} AND nextval('public.tries') <= {times} THEN RAISE EXCEPTION 'bad' USING ERRCODE = '{code}'; END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER bad BEFORE INSERT ON reservation.reservation FOR EACH ROW EXECUTE FUNCTION public.bad();
"""
GOOD = "DROP TRIGGER bad ON reservation.reservation; DROP FUNCTION public.bad(); DROP SEQUENCE public.tries"


@pytest.mark.parametrize("code, times, status, transactions", [("40001", 2, 202, 1), ("40P01", 1000, 503, 3), ("22012", 1000, 422, 3)])
def test_what_fails_as_a_whole(box, code, times, status, transactions):
    """A deadlock or a serialization failure: the batch is done again. One that never ends, or a row that cannot be stored: each
    is asked by itself, and only the bad one fails."""
    with Crowd(box, 4) as c:
        run(box.db.conn, BAD.format(seat=c.seats[1], times=times, code=code))
        try:
            for s in c.seats:
                c.ask(c.person(), [s])
            answers = c.go()
        finally:
            run(box.db.conn, GOOD)
    assert [a.status for a in answers] == [202, status, 202, 202]
    assert c.made() == ({s: 1 for i, s in enumerate(c.seats) if i != 1 or status == 202}, transactions)
    if status == 503:
        assert answers[1].problem == "busy" and "Retry-After" in answers[1].headers


def test_the_database_goes_away(box):
    """The session is cut while it works for several: 503 to each, nothing is made, and the next ones are answered."""
    with Crowd(box, 3) as c:
        for s in c.seats:
            c.ask(c.person(), [s])
        c.queued()
        # The one in front is cut first; then those behind it come together, and are cut as well.
        cut = []
        for _ in range(2):
            pid = wait_until(lambda: [p for p in c.blocked() if p not in cut], 20, "the next to wait for the table")[0]
            cut.append(pid)
            box.db.query("SELECT pg_terminate_backend(%s)", (pid,))
        answers = c.answers()
    assert [a.status for a in c.first_answers + answers] == [503] * 4
    assert all(a.problem == "unavailable" and a.headers["Retry-After"] == "1" for a in answers)
    assert c.made() == ({}, 0)
    wait_until(lambda: c.person().ask(c.schedule, [c.seats[0]]).status == 202, 20, "it works again")


def test_alone_by_configuration(pg_server):
    """batch.most = 1: each has its own transaction."""
    db = pg_server.createdb(f"alone_{os.getpid()}")
    with Issuer(*USER) as users, Issuer(*QUEUE) as queue:
        b = Box(db, users, queue, http=HTTP, database=DATABASE, batch={"most": 1})
        try:
            concert, schedule, seats = b.concert(4)
            people = [b.person(concert) for _ in range(4)]
            first = [("/reservations", {"schedule_id": schedule, "seat_ids": [s], "queue_token": p.queue_token}, p.token)
                     for s, p in zip(seats, people)]
            with Together(b.service.port, b.db.conninfo, TABLE, first) as t:  # each has a worker, where a batch would have one
                t.release()
                t.answers()
            assert [a.status for a in t.first_answers] == [202] * 4
            assert b.db.one("SELECT count(DISTINCT xmin::text) FROM reservation.reservation") == 4
        finally:
            b.service.kill()
    db.drop()
