"""tests/e2e/test_service_concert.py -- postrider-concert over real HTTP, Postgres and Redis, and what its consumer's
function makes of seats: by every command and event, in every order, beside each other."""
import contextlib
import itertools
import json
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import events
import psycopg2
import pytest
import servers
from concert import Seats, message, reservation_of, schema
from fill import fill
from outbox import header, read_topic
from service import Api, Service
from sql import Call, session
from wait import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shared_db(pg_server):
    db = pg_server.createdb(f"concert_{os.getpid()}", schema=True)
    schema(db)
    yield db
    db.drop()


@pytest.fixture
def seats(shared_db):
    """Makes a concert; its messages go by one connection, as a consumer's do."""
    with contextlib.closing(shared_db.connect()) as conn:
        yield lambda *args, **kw: Seats(shared_db, *args, **{"conn": conn, **kw}).forget()


class Concerts:
    """Services beside each other on one database and one Redis."""

    def __init__(self, db, redis, n=1, **config):
        self.db = db
        config = {"redis": {"address": redis if isinstance(redis, str) else redis.address, "timeout": "5s"},
                  "cache": {"prefix": db.name}, **config}
        self.services = [Service("concert", db.conninfo, config=config).start() for _ in range(n)]
        for s in self.services:
            s.wait_ready()
        self.service, self.apis = self.services[0], [Api(s.port) for s in self.services]
        self.api = self.apis[0]

    def in_use(self, on=1):
        wait_until(lambda: all(s.metric("postrider_cache_in_use") == on for s in self.services), 45, f"the cache in use: {on}")
        return self

    def reads(self, result):
        return sum(s.metric(f'postrider_cache_reads_total{{service="concert",result="{result}"}}') for s in self.services)


@pytest.fixture
def concerts(empty_db, redis):
    made = []

    def make(**kw):
        made.append(Concerts(empty_db, kw.pop("redis", redis), **kw))
        return made[-1]
    yield make
    for c in made:
        for s in c.services:
            s.kill()


# ---------------------------------------------------------------- HTTP

def test_what_is_shown(concerts):
    """Concerts, schedules and seats, by pages; what is not there is 404."""
    c = concerts(redis="none")
    assert c.api.get("/concerts").json == {"concerts": [], "next": None}
    made = c.db.one("SELECT concert.open('봄 \"; DROP SCHEMA concert; --', %s)", (json.dumps([
        {"starts_at": "2027-05-01T20:00:00+09:00", "rows": 2, "seats_per_row": 3, "price": 5000},
        {"starts_at": "2027-05-02T11:00:00Z", "seats": [{"label": "Box", "price": 90}, {"label": "Pit", "price": "10"}]}]),))
    others = [Seats(c.db, title=f"c{i}") for i in range(4)]
    page = c.api.get("/concerts?limit=2").json
    assert [x["concert_id"] for x in page["concerts"]] == [made["concert_id"], others[0].concert]
    assert page["concerts"][0]["title"].startswith("봄") and page["concerts"][0]["status"] == "AVAILABLE"
    rest = c.api.get(f"/concerts?limit=200&after={page['next']}").json
    assert [x["concert_id"] for x in rest["concerts"]] == [o.concert for o in others[1:]] and rest["next"] is None
    assert c.api.get(f"/concerts?limit=3&after={page['next']}").json["next"] is None
    shown = c.api.get(f"/concerts/{made['concert_id']}").json
    assert shown["title"].startswith("봄") and shown["created_at"].endswith("Z")
    first, second = [s["schedule_id"] for s in made["schedules"]]
    listed = c.api.get(f"/concerts/{made['concert_id']}/schedules").json
    assert listed == {"next": None, "schedules": [
        {"schedule_id": first, "starts_at": "2027-05-01T11:00:00.000000Z", "free_seats": 6},
        {"schedule_id": second, "starts_at": "2027-05-02T11:00:00.000000Z", "free_seats": 2}]}
    assert c.api.get(f"/concerts/{made['concert_id']}/schedules?limit=1").json["next"] == first
    assert [s["label"] for s in c.api.get(f"/schedules/{first}/seats").json["seats"]] == ["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"]
    assert [(s["label"], s["price"], s["state"]) for s in c.api.get(f"/schedules/{second}/seats").json["seats"]] == [
        ("Box", 90, "AVAILABLE"), ("Pit", 10, "AVAILABLE")]
    s = others[0]
    s.send(s.updated("HELD", seat=s.ids[0]), s.updated("CONFIRMED", seat=s.ids[1]))
    by = {state: [x["seat_id"] for x in c.api.get(f"/schedules/{s.schedule}/seats?state={state}").json["seats"]]
          for state in ("available", "held", "reserved")}
    assert by == {"available": s.ids[2:], "held": s.ids[:1], "reserved": s.ids[1:2]}
    page = c.api.get(f"/schedules/{s.schedule}/seats?state=available&limit=1").json
    assert c.api.get(f"/schedules/{s.schedule}/seats?state=available&after={page['next']}").json["seats"][0]["seat_id"] == s.ids[3]
    assert c.api.get(f"/concerts/{s.concert}/schedules").json["schedules"][0]["free_seats"] == 2
    for path in ("/concerts/999", "/concerts/999/schedules", "/schedules/999/seats", "/concerts/0", "/concerts/x"):
        assert c.api.get(path).status == 404, path


def test_bad_questions(concerts):
    c = concerts(redis="none")
    s = Seats(c.db)
    seats = f"/schedules/{s.schedule}/seats"
    for query, members in (("limit=0", ["limit"]), ("limit=1001", ["limit"]), ("limit=x", ["limit"]), ("after=-1", ["after"]),
                           ("after=99999999999999999999", ["after"]), ("state=free", ["state"]), ("state=", ["state"]),
                           ("limit=1e999", ["limit"]), ("state='%20OR%201=1", ["state"])):
        answer = c.api.get(f"{seats}?{query}")
        assert (answer.status, answer.members) == (422, members), (query, answer)
    for path in ("/concerts/9223372036854775808", "/concerts/1%20OR%201=1", "/schedules/-1/seats"):
        assert c.api.get(path, check=False).status == 404, path
    assert c.api.get("/concerts/9223372036854775807").status == 404
    assert c.api.get(f"{seats}?after=9223372036854775807").json == {"seats": [], "next": None}
    assert c.api.get("/concerts/%ff", check=False).status in (400, 404)
    for method in ("POST", "DELETE", "PUT"):
        assert c.api.call(method, "/concerts", b"{}", check=False).status == 405


def test_popular(concerts):
    """Most seats reserved within the window; what was given back is not counted, nor what is older."""
    c = concerts(popular={"window": "2h", "life": "1s"})
    a, b, d = (Seats(c.db, title=t) for t in "abd")
    b.send(*[b.updated("CONFIRMED", seat=i) for i in b.ids[:3]])
    a.send(*[a.updated("CONFIRMED", seat=i) for i in a.ids[:2]])
    d.send(d.updated("CONFIRMED"), d.updated("CANCELLED", version=2))
    popular = lambda: [(x["concert_id"], x["reserved"]) for x in c.api.get("/concerts/popular").json["concerts"]]  # noqa: E731
    wait_until(lambda: popular() == [(b.concert, 3), (a.concert, 2)], 20)
    assert len(c.api.get("/concerts/popular?limit=1").json["concerts"]) == 1
    b.send(b.updated("EXPIRED", version=2, seat=b.ids[0]), b.updated("CANCELLED", version=2, seat=b.ids[1]))
    wait_until(lambda: popular() == [(a.concert, 2), (b.concert, 1)], 20, "its own life to end")
    c.db.query("UPDATE concert.sold SET hour = hour - interval '3 hours' WHERE concert_id = %s", (a.concert,))
    wait_until(lambda: popular() == [(b.concert, 1)], 20)
    assert c.db.one("SELECT count(*) FROM concert.sold WHERE seats < 0") == 0


def test_config():
    program = servers.Cli("postrider-concert")
    here = os.path.join(servers.ROOT, "etc", "services", "concert")
    assert program("-c", f"{here}.cfg", "--check").returncode == 0
    with open(f"{here}.cfg", encoding="utf-8") as f:
        assert program("--print-sample").stdout == f.read()
    assert servers.Cli("postrider-consumer")("-c", f"{here}-consumer.cfg", "--check").returncode == 0
    assert servers.Cli("postrider-relay")("-c", f"{here}-relay.cfg", "--check").returncode == 0
    for wrong in ("redis.address=", "cache.prefix=", "popular.window=1m", "redis.timeout=0"):
        assert program("-c", f"{here}.cfg", "-o", wrong, "--check").returncode == 78, wrong


# ---------------------------------------------------------------- the cache

def test_cached_until_it_changes(concerts):
    """The second answer is Redis's; a change is seen by every instance, by each kind of list that it shows in."""
    c = concerts(n=2).in_use()
    s = Seats(c.db)
    paths = ["/concerts", f"/concerts/{s.concert}", f"/concerts/{s.concert}/schedules", f"/schedules/{s.schedule}/seats",
             f"/schedules/{s.schedule}/seats?state=available"]
    look = lambda: [[a.get(p).text for p in paths] for a in c.apis]  # noqa: E731
    first = wait_until(lambda: (x := look())[0] == x[1] and '"concert_id"' in x[0][0] and x[0], 20)

    def all_from_redis():
        hits = c.reads("hit")
        assert look() == [first, first]
        return c.reads("hit") == hits + 10  # not while an instance has just not heard from Postgres for a second
    wait_until(all_from_redis, 30, "the second answers to be Redis's")
    s.send(s.updated("HELD"))
    held = wait_until(lambda: (x := look())[0] == x[1] and all("HELD" in t for t in x[0][3:4]) and x[0], 20)
    assert held[:2] == first[:2] and '"free_seats": 3' in held[2] and f'"seat_id": "{s.ids[0]}"' not in held[4]
    s.send(*[s.updated("CONFIRMED", version=2, seat=i) for i in s.ids])
    wait_until(lambda: all(x[0].count("SOLD_OUT") == x[1].count("SOLD_OUT") == 1 and '"free_seats": 0' in x[2] and '"seats": []' in x[4]
                           for x in look()), 30, "the concert to be sold out everywhere")


def test_pages_that_somebody_makes_up(concerts, redis):
    """They are answered, but do not fill Redis."""
    c = concerts().in_use()
    s = Seats(c.db)
    for after in range(1, 260):
        assert c.api.get(f"/schedules/{s.schedule}/seats?after={after}").status == 200
    assert redis.call("HLEN", f"{c.db.name}:s:{s.schedule}") <= 200
    assert 0 < redis.call("PTTL", f"{c.db.name}:s:{s.schedule}") <= 60000


# ---------------------------------------------------------------- a concert is opened

def test_open(seats):
    s = seats(2500)
    s.since = 0
    got = s.events()
    assert [t for t, _ in got] == ["ConcertCreated"] + 3 * ["ScheduleOpened"]
    assert [len(p["seats"]) for t, p in got[1:]] == [1000, 1000, 500]
    assert [x["seat_id"] for t, p in got[1:] for x in p["seats"]] == s.ids
    assert got[1][1]["seats"][0] == {"seat_id": s.ids[0], "label": "A-1", "price": 100}
    s.db.query("SELECT concert.open('rows', '[{\"starts_at\": \"2027-01-01\", \"rows\": 800, \"seats_per_row\": 1, \"price\": 0}]')")
    assert {r for r, in s.db.query("SELECT label FROM concert.seat WHERE price = 0 AND label IN ('A-1','Z-1','AA-1','ZZ-1','R703-1','AB-1')")} \
        == {"A-1", "Z-1", "AA-1", "ZZ-1", "R703-1", "AB-1"}


@pytest.mark.parametrize("title,schedules", [
    ("x", "[]"), ("x", "{}"), ("x", None), ("", '[{"starts_at": "2027-01-01", "rows": 1, "seats_per_row": 1, "price": 1}]'),
    ("x", '[{"starts_at": "2027-01-01"}]'), ("x", '[{"rows": 1, "seats_per_row": 1, "price": 1}]'),
    ("x", '[{"starts_at": "2027-01-01", "seats": []}]'), ("x", '[{"starts_at": "never", "rows": 1, "seats_per_row": 1, "price": 1}]'),
    ("x", '[{"starts_at": "2027-01-01", "rows": 1001, "seats_per_row": 1000, "price": 1}]'),
    ("x", '[{"starts_at": "2027-01-01", "rows": 1, "seats_per_row": 1, "price": -1}]'),
    ("x", '[{"starts_at": "2027-01-01", "seats": [{"label": "A", "price": 1}, {"label": "A", "price": 1}]}]'),
    ("x", '[{"starts_at": "2027-01-01", "seats": [{"price": 1}]}]'), ("x", '[7]'),
])
def test_open_refuses(shared_db, title, schedules):
    before = shared_db.query("SELECT (SELECT count(*) FROM concert.seat), (SELECT count(*) FROM outbox.event)")
    with pytest.raises(psycopg2.Error):
        shared_db.query("SELECT concert.open(%s, %s)", (title, schedules))
    assert shared_db.query("SELECT (SELECT count(*) FROM concert.seat), (SELECT count(*) FROM outbox.event)") == before


# ---------------------------------------------------------------- seats

def test_the_life_of_a_seat(seats):
    """F1 and F2: held, reserved, confirmed; each change is one event."""
    s = seats()
    s.send(s.updated("REQUESTED"))
    assert s.states()[0] == "AVAILABLE"
    s.send(s.updated("HELD"))
    s.send(s.updated("PAID", version=2))
    s.send(s.command("ReserveSeat", s.named()))
    s.send(s.updated("CONFIRMED", version=3))
    assert s.states()[0] == "RESERVED"
    assert [t for t, _ in s.events()] == ["SeatHeld", "SeatReserved", "ConcertStatusUpdated"]
    assert s.answers() == [("CONCERT", "do", "done", None)]
    assert s.events("SeatHeld")[0][1] == {"concert_id": s.concert, "schedule_id": s.schedule, "seat_id": s.ids[0],
                                          "claim_no": 1, "reservation_id": reservation_of(1, s.ids[0])}
    assert s.events("ConcertStatusUpdated")[0][1] == {"concert_id": s.concert, "status": "AVAILABLE", "free_seats": 3}


def test_a_refused_payment_gives_the_seat_back(seats):
    """F2b: the seat is held for a booking, and released when the money is not there."""
    s, saga = seats(), str(uuid.uuid4())
    s.send(s.command("HoldSeat", s.named(*s.ids[:2], price=100), saga=saga, step="SEAT", schedule_id=s.schedule))
    assert s.states() == ["HELD", "HELD", "AVAILABLE", "AVAILABLE"]
    reply = s.db.one("SELECT payload FROM outbox.event WHERE type = 'SagaReply' ORDER BY seq DESC LIMIT 1")
    assert reply == {"price": 200}
    s.send(s.command("ReleaseSeat", saga=saga, step="SEAT"))
    assert s.states() == ["AVAILABLE"] * 4
    s.send(s.command("HoldSeat", s.named(*s.ids[:2]), step="SEAT"))
    assert s.answers()[-1][2] == "refused" and "has ended" in s.answers()[-1][3]
    s.send(s.command("HoldSeat", s.named(*s.ids[:2], claim=2), step="SEAT"))
    assert s.answers()[-1][2] == "done"
    assert [(t, p["claim_no"]) for t, p in s.events()] == \
        [("SeatHeld", 1)] * 2 + [("SeatReleased", 1)] * 2 + [("SeatHeld", 2)] * 2


def test_an_undo_gives_back_what_its_do_took(seats):
    """RESERVED -> HELD; not where another payment has it, nor another claim, nor where the claim has ended."""
    s, saga, other = seats(), str(uuid.uuid4()), str(uuid.uuid4())
    s.send(*[s.updated("HELD", seat=i) for i in s.ids])
    s.send(s.command("ReserveSeat", s.named(*s.ids), saga=saga))
    assert s.status() == "SOLD_OUT"
    s.send(s.updated("CANCELLED", version=2, seat=s.ids[1]))
    s.send(s.updated("HELD", claim=2, seat=s.ids[2]), s.command("ReserveSeat", s.named(s.ids[2], claim=2), saga=other))
    s.send(s.command("UnreserveSeat", saga=saga))
    assert s.states() == ["HELD", "AVAILABLE", "RESERVED", "HELD"]
    assert s.status() == "AVAILABLE"
    assert s.answers()[-1][:3] == ("CONCERT", "undo", "done")
    s.send(s.updated("CANCELLED", version=2), s.updated("CANCELLED", version=2, seat=s.ids[3]))
    assert s.states() == ["AVAILABLE", "AVAILABLE", "RESERVED", "AVAILABLE"]


def test_duplicates(seats):
    """The same command, the same event again, and a do that comes after its undo: answered, nothing done."""
    s, saga = seats(), str(uuid.uuid4())
    do, undo = s.command("ReserveSeat", s.named(), saga=saga), s.command("UnreserveSeat", saga=saga)
    for m in (s.updated("HELD"), do):
        s.send(m, m)
        s.send(m)
    assert [t for t, _ in s.events()] == ["SeatHeld", "SeatReserved", "ConcertStatusUpdated"]
    s.send(undo, undo)
    s.send(do)
    assert s.states()[0] == "HELD"
    assert [a[1:3] for a in s.answers()] == [("do", "done")] * 3 + [("undo", "done")] * 2 + [("do", "refused")]
    late = str(uuid.uuid4())
    s.send(s.command("UnreserveSeat", saga=late), s.command("ReserveSeat", s.named(s.ids[1]), saga=late))
    assert s.states()[1] == "AVAILABLE" and s.answers()[-1][2] == "refused"


def refusals(s):
    good = s.named()[0]
    yield "no seats", None, "list"
    yield "empty", [], "list"
    yield "no list", {"seat_id": s.ids[0]}, "list"
    yield "too many", s.named() * 1001, "list"
    yield "no id", [{**good, "seat_id": None}], "missing or wrong"
    yield "a name for an id", [{**good, "seat_id": "A-1"}], "missing or wrong"
    yield "huge", [{**good, "seat_id": "9" * 30}], "missing or wrong"
    yield "no claim", [{k: v for k, v in good.items() if k != "claim_no"}], "missing or wrong"
    yield "claim 0", [{**good, "claim_no": 0}], "missing or wrong"
    yield "claim 1.5", [{**good, "claim_no": 1.5}], "missing or wrong"
    yield "no reservation", [{**good, "reservation_id": "'; DROP TABLE concert.seat"}], "missing or wrong"
    yield "not objects", [7, "x", None], "missing or wrong"
    yield "no such seat", [{**good, "seat_id": "999999999"}], "there is no seat"
    yield "another schedule", [{**good, "schedule_id": "999999"}], "not one of schedule"
    yield "another price", [{**good, "price": 99}], "costs 100, not 99"
    yield "stale", s.named(s.ids[1], claim=1), "is stale, 2 is the current"
    yield "ended", s.named(s.ids[2]), "has ended"
    yield "another's claim", [{**s.named(s.ids[3])[0], "reservation_id": str(uuid.uuid4())}], "is that of reservation"
    yield "one of several", s.named(s.ids[0]) + s.named(s.ids[2]), "has ended"


def test_refusals(seats):
    """Of HoldSeat and ReserveSeat: all seats or none, nothing changed, and the reason told. By the hybrid payment's
    event, the same as SeatRefused."""
    s = seats()
    s.send(s.updated("HELD", claim=2, seat=s.ids[1]), s.updated("HELD", seat=s.ids[3]),
           s.updated("HELD", seat=s.ids[2]), s.updated("EXPIRED", version=2, seat=s.ids[2]))
    before = s.states()
    for name, named, why in refusals(s):
        for type in ("HoldSeat", "ReserveSeat"):
            s.forget()
            s.send(s.command(type, named))
            [(_, _, outcome, reason)] = s.answers()
            assert outcome == "refused" and why in reason, (name, type, outcome, reason)
            assert s.events() == [] and s.states() == before, (name, type)
        payment = str(uuid.uuid4())
        s.forget().send(s.paid(payment, named))
        [(type, payload)] = s.events()
        assert type == "SeatRefused" and why in payload["reason"] and payload["payment_id"] == payload["hybrid_id"] == payment, (name, payload)
        assert s.answers() == [] and s.states() == before, name
        assert s.one("SELECT headers ->> 'correlation-id' FROM outbox.event ORDER BY seq DESC LIMIT 1") == payment
        s.forget().send(s.command("UnreserveSeat", saga=payment))
        assert s.answers()[0][2] == "done" and s.states() == before, name
    s.forget().send(s.command("ReserveSeat", s.named(), concert_id="999999"))
    assert "not one of concert" in s.answers()[0][3]
    for type in ("SellSeat", "reserveSeat", ""):
        s.forget().send(s.command(type, s.named()))
        assert s.answers()[0][2] == "refused" and "knows no command" in s.answers()[0][3]


def test_a_hold_that_the_owner_does_not_accept(seats):
    """The reservation service hears of it: SeatRefused with the claim and the reason."""
    s = seats()
    for wrong, why in (({"seat_id": "999999999"}, "there is no seat"), ({"price": 1}, "costs 100"),
                       ({"schedule_id": "999999"}, "schedule"), ({"concert_id": "999999"}, "concert")):
        s.forget().send(s.updated("HELD", **wrong))
        got = s.query("SELECT type, payload FROM outbox.event WHERE seq > %s", (s.since,))
        assert len(got) == 1 and got[0][0] == "SeatRefused" and why in got[0][1]["reason"], got
        assert got[0][1]["claim_no"] == 1 and got[0][1]["reservation_id"] == reservation_of(1, s.ids[0])
    s.send(s.updated("HELD", claim=2))
    s.forget().send(s.updated("HELD", claim=2, reservation_id=str(uuid.uuid4()), version=1))
    assert s.events()[0][0] == "SeatRefused"
    s.forget().send(s.updated("HELD", claim=1), s.updated("PAID", claim=1, version=2))
    assert s.events() == [] and len(s.ignored()) == 2 and "is stale" in s.ignored()[0]


def test_messages_that_are_not_for_us(seats):
    s = seats()
    before = s.db.one("SELECT count(*) FROM outbox.event")
    s.send(message("ReservationHeld", {"seat_id": s.ids[0], "claim_no": 1}),
           message("PaymentCompleted", {"mode": "saga", "payment_id": str(uuid.uuid4())}, "outbox.event.payment"),
           message("PaymentFailed", {}, "outbox.event.payment"), message("Whatever", None), message("Whatever", [1]),
           s.updated("HELD", claim=None), s.updated("REJECTED", claim=None), s.updated("CANCELLED", seat="999999999"))
    assert s.states() == ["AVAILABLE"] * 4 and s.db.one("SELECT count(*) FROM outbox.event") == before


@pytest.mark.parametrize("wrong", [
    {"seat_id": None}, {"seat_id": "x"}, {"seat_id": {"a": 1}}, {"claim_no": "one"}, {"claim_no": 0}, {"claim_no": -1}, {"claim_no": 1.5},
    {"reservation_id": "7"}, {"reservation_id": None}, {"status": None}, {"claim_no": 1e30},
], ids=repr)
def test_messages_that_are_broken(seats, wrong):
    """They raise, so that the consumer holds them back: nobody sends such."""
    s = seats()
    with pytest.raises(psycopg2.Error) as e:
        s.send(s.updated(**{"status": "HELD", **wrong}))
    assert e.value.pgcode == "22023" and s.states() == ["AVAILABLE"] * 4
    for m in (message("PaymentCompleted", {"mode": "hybrid", "seats": s.named()}, "outbox.event.payment"),
              message("ReserveSeat", {"seats": s.named()}, "outbox.command.concert"),
              message("ReserveSeat", {"seats": s.named()}, "outbox.command.concert", {"saga-id": "x", "saga-op": "do"})):
        with pytest.raises(psycopg2.Error) as e:
            s.send(m)
        assert e.value.pgcode == "22023"


def test_hybrid(seats):
    """F5: the payment's event reserves, told with payment_id; its undo gives back."""
    s, payment = seats(2), str(uuid.uuid4())
    s.send(*[s.updated("HELD", seat=i) for i in s.ids])
    paid = s.paid(payment, s.named(*s.ids))
    s.forget().send(paid)
    s.send(paid)
    assert [(t, p.get("payment_id")) for t, p in s.events()] == [("SeatReserved", payment)] * 2 + [("ConcertStatusUpdated", None)]
    assert s.status() == "SOLD_OUT" and {p["hybrid_id"] for _, p in s.events("SeatReserved")} == {payment}
    assert {h for h, in s.db.query("SELECT headers ->> 'correlation-id' FROM outbox.event WHERE type = 'SeatReserved' AND seq > %s",
                                   (s.since,))} == {payment}
    s.send(*[s.updated("CONFIRMED", version=3, seat=i) for i in s.ids])
    s.send(s.command("UnreserveSeat", saga=payment))
    assert s.states() == ["HELD", "HELD"] and s.status() == "AVAILABLE"
    late = str(uuid.uuid4())
    s.send(s.command("UnreserveSeat", saga=late))
    s.send(s.paid(late, s.named(*s.ids)))
    assert s.states() == ["HELD", "HELD"]


def test_a_later_hybrid_payment_gets_its_answer(seats):
    """A seat that is RESERVED already, since CONFIRMED came first or the undo of the payment before is late: the payment
    that now has it is told so, in any order, or it waits for SeatReserved until it is undone."""
    older, newer = (str(uuid.UUID(int=0x0190aaab_0000_7000_8000_000000000000 + n)) for n in (1, 2))

    def told(s, payment):
        return [t for t, p in s.events("SeatReserved") if p.get("payment_id") == payment]
    s = seats(2)
    s.send(s.updated("CONFIRMED", version=3))
    s.send(s.paid(newer, s.named()))
    assert told(s, newer) == ["SeatReserved"]
    for n in range(len("abc")):  # where the newer payment's event comes among the older one's event and undo
        s, older, newer = seats(2), *(str(uuid.UUID(int=0x0190aaac_0000_7000_8000_000000000000 + 2 * n + i)) for i in range(2))
        s.send(s.updated("HELD"))
        what = [s.paid(older, s.named()), s.command("UnreserveSeat", saga=older)]
        what.insert(n, s.paid(newer, s.named()))
        for m in what:
            s.send(m)
        assert s.states() == ["RESERVED", "AVAILABLE"] and told(s, newer) == ["SeatReserved"], n
        s.send(s.command("UnreserveSeat", saga=newer))
        assert s.states() == ["HELD", "AVAILABLE"], n


def test_a_sale_is_cancelled(seats):
    """UnreserveSeat as a step of its own: whoever reserved it; its undo reserves again, unless the seat is another's."""
    s, cancel = seats(3), str(uuid.uuid4())
    s.send(*[s.updated("CONFIRMED", seat=i) for i in s.ids])
    s.send(s.command("UnreserveSeat", s.named(*s.ids), saga=cancel, op="do"))
    assert s.states() == ["HELD"] * 3 and s.status() == "AVAILABLE"
    s.send(s.updated("HELD", claim=2, seat=s.ids[2]))
    s.send(s.command("ReserveSeat", saga=cancel, op="undo"))
    assert s.states() == ["RESERVED", "RESERVED", "HELD"]
    s.forget().send(s.command("UnreserveSeat", s.named(s.ids[2]), op="do"))
    assert s.answers()[0][2] == "done" and s.states()[2] == "HELD"
    s.forget().send(s.command("UnreserveSeat", [{"seat_id": "999999999", "claim_no": 1}], op="do"))
    assert s.answers()[0][2] == "refused"


def test_status_commands(seats):
    """UpdateConcertStatus and RestoreConcertStatus derive it; nobody can say it."""
    s, saga = seats(1), str(uuid.uuid4())
    s.send(s.command("UpdateConcertStatus", saga=saga, status="SOLD_OUT"))
    assert s.status() == "AVAILABLE" and s.events()[-1][1]["status"] == "AVAILABLE"
    s.send(s.updated("CONFIRMED"))
    assert s.status() == "SOLD_OUT"
    s.send(s.command("RestoreConcertStatus", saga=saga))
    assert s.status() == "SOLD_OUT" and s.answers()[-1][1:3] == ("undo", "done")
    s.forget().send(s.command("UpdateConcertStatus", concert_id="999999"))
    assert s.answers()[0][2:] == ("refused", "there is no such concert")


# ---------------------------------------------------------------- any order

def played(seats, what, sample=1):
    """All orders of what (each nth), each on a seat of its own, side by side in batches; every seat's end, and what was
    told of it."""
    orders = ["".join(o) for o in itertools.permutations(str(i) for i in range(len(what)))][::sample]
    s = seats(len(orders))
    sagas = [str(uuid.uuid4()) for _ in orders]
    for part in range(0, len(orders), 840):
        for turn in range(len(what)):
            s.send(*[what[int(o[turn])](s, i, g) for o, i, g in list(zip(orders, s.ids, sagas))[part:part + 840]])
    told = {i: [] for i in s.ids}
    for type, p in s.events("SeatHeld", "SeatReserved", "SeatReleased"):
        told[p["seat_id"]].append((type, p["claim_no"]))
    ends = s.db.query("SELECT seat_id::text, state, claim_no FROM concert.seat WHERE schedule_id = %s", (s.schedule,))
    assert s.one("SELECT coalesce(sum(seats), 0) FROM concert.sold WHERE concert_id = %s", (s.concert,)) == \
        sum(e[1] == "RESERVED" for e in ends)
    return s, {o: (state, claim, told[i]) for (i, state, claim), o in
               zip(sorted(ends, key=lambda e: int(e[0])), orders)}


def check_story(order, told):
    """No claim begins before the one before it has ended, nothing is told twice, and after its end nothing."""
    last, ended = None, 0
    for type, claim in told:
        assert (type, claim) != last and claim > ended, (order, told)
        assert last is None or last[0] == "SeatReleased" or last[1] == claim, (order, told)
        last, ended = (type, claim), claim if type == "SeatReleased" else ended


def updated(status, claim, version):
    return lambda s, seat, saga: s.updated(status, claim, version, seat)


def commands(claim):
    return [lambda s, seat, saga: s.command("HoldSeat", s.named(seat, claim=claim), saga=saga, step="SEAT"),
            lambda s, seat, saga: s.command("ReserveSeat", s.named(seat, claim=claim), saga=saga),
            lambda s, seat, saga: s.command("UnreserveSeat", s.named(seat, claim=claim), saga=saga)]


@pytest.mark.parametrize("claim", [1, 2])
def test_every_order(seats, claim):
    """HELD, CONFIRMED, CANCELLED of claim 1, HELD of claim 2, and the three commands, of the one claim or the other:
    in each of the 5040 orders the seat ends HELD by claim 2. POSTRIDER_ORDERS=1 plays them all, else each 7th or 29th."""
    what = [updated("HELD", 1, 1), updated("CONFIRMED", 1, 3), updated("CANCELLED", 1, 4), updated("HELD", 2, 1)]
    for order, (state, by, told) in played(seats, what + commands(claim), int(os.environ.get("POSTRIDER_ORDERS", 7 if claim == 1 else 29)))[1].items():
        assert (state, by) == ("HELD", 2) and told[-1][1] == 2, (order, state, by, told)
        check_story(order, told)


def test_every_order_of_one_claim(seats):
    """Without the second claim it ends AVAILABLE. What is told balances: what was taken is given back."""
    what = [updated("HELD", 1, 1), updated("CONFIRMED", 1, 3), updated("CANCELLED", 1, 4)]
    s, ends = played(seats, what + commands(1))
    for order, (state, by, told) in ends.items():
        assert (state, by) == ("AVAILABLE", 1) and (not told or told[-1] == ("SeatReleased", 1)), (order, state, told)
        check_story(order, told)
    assert s.status() == "AVAILABLE"


@pytest.mark.parametrize("last,state", [("HELD", "HELD"), ("CONFIRMED", "RESERVED"), ("EXPIRED", "AVAILABLE")])
def test_every_order_of_a_reservations_versions(seats, last, state):
    """F3 takes a payment back: PAID, CONFIRMED, then HELD again. The newest version counts, whenever it comes."""
    what = [updated("HELD", 1, 1), updated("PAID", 1, 2), updated("CONFIRMED", 1, 3), updated("HELD", 1, 4), updated(last, 1, 5)]
    for order, end in played(seats, what)[1].items():
        assert end[:2] == (state, 1), (order, end)
        check_story(order, end[2])


def test_one_batch_is_as_good_as_one_by_one(seats):
    """A batch of the consumer: do and undo of a step, two claims of a seat, in their order."""
    s, saga = seats(2), str(uuid.uuid4())
    s.send(s.updated("HELD"), s.updated("HELD", seat=s.ids[1]), s.command("ReserveSeat", s.named(*s.ids), saga=saga),
           s.command("UnreserveSeat", saga=saga), s.updated("CANCELLED", version=2), s.updated("HELD", claim=2))
    assert s.states() == ["HELD", "HELD"]
    assert [(t, p["claim_no"]) for t, p in s.events("SeatHeld", "SeatReserved", "SeatReleased") if p["seat_id"] == s.ids[0]] == [
        ("SeatHeld", 1), ("SeatReserved", 1), ("SeatHeld", 1), ("SeatReleased", 1), ("SeatHeld", 2)]
    assert [p["status"] for _, p in s.events("ConcertStatusUpdated")] == ["AVAILABLE"] * 2 and s.status() == "AVAILABLE"


# ---------------------------------------------------------------- beside each other

def derived(s):
    return "SOLD_OUT" if set(s.states()) == {"RESERVED"} else "AVAILABLE"


def test_sold_out_against_undo(seats):
    """The last seats are reserved while others are given back, each in a transaction of its own: whatever the order,
    the status is what the seats say, and the last ConcertStatusUpdated says the same."""
    for round in range(6):
        s = seats(8, conn=None)
        s.send(*[s.updated("HELD", seat=i) for i in s.ids])
        sagas = [str(uuid.uuid4()) for _ in s.ids]
        s.send(*[s.command("ReserveSeat", s.named(i), saga=g) for i, g in zip(s.ids[:4], sagas)])
        work = [s.command("ReserveSeat", s.named(i), saga=g) for i, g in zip(s.ids[4:], sagas[4:])]
        work += [s.command("UnreserveSeat", saga=g) for g in sagas[:round]]
        with ThreadPoolExecutor(len(work)) as pool:
            list(pool.map(s.send, work))
        assert s.status() == derived(s) == ("SOLD_OUT" if round == 0 else "AVAILABLE"), round
        assert s.events("ConcertStatusUpdated")[-1][1]["status"] == s.status()


@pytest.mark.parametrize("first,status", [("ReserveSeat", "SOLD_OUT"), ("UnreserveSeat", "AVAILABLE")])
def test_the_last_seat_waits_for_the_one_before(seats, first, status):
    """The last seat is reserved while another's transaction is still open: its status is derived after that one's end."""
    s, saga = seats(2, conn=None), str(uuid.uuid4())
    s.send(*[s.updated("HELD", seat=i) for i in s.ids])
    if first == "UnreserveSeat":
        s.send(s.command("ReserveSeat", s.named(s.ids[0]), saga=saga))
    with session(s.db) as open_yet:
        s.send(s.command(first, s.named(s.ids[0]), saga=saga), conn=open_yet)
        last = Call(lambda: s.send(s.command("ReserveSeat", s.named(s.ids[1]))))
        wait_until(lambda: s.db.one("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
                                    " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"), 20, "it to wait")
        open_yet.commit()
        last.result()
    assert s.status() == status == derived(s) == s.events("ConcertStatusUpdated")[-1][1]["status"]


def test_batches_that_meet(seats):
    """Batches of the same seats in opposite orders, of two concerts: none deadlocks."""
    a, b = seats(20), seats(20)
    first = [x.updated("HELD", seat=i) for x in (a, b) for i in x.ids]
    second = [x.updated("PAID", version=2, seat=i) for x in (b, a) for i in reversed(x.ids)]
    before = a.db.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")

    def play(batch):
        with contextlib.closing(a.db.connect()) as c:
            for _ in range(5):
                a.send(*batch, conn=c)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(play, [first, second, first[::-1], second[::-1]]))
    assert set(a.states()) | set(b.states()) == {"HELD"}
    assert a.db.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


# ---------------------------------------------------------------- all of it, and how fast it is found

def test_through_kafka(concerts, kafka, relay, cli):
    """The consumer with the shipped function, the relay, the service: a hold by Kafka is seen by HTTP, told by Kafka, and
    every record is as events.json says."""
    c = concerts().in_use()
    s = Seats(c.db)
    name = f"concert-{os.getpid()}"
    kafka.create_topic(f"{name}.in", 2)
    kafka.create_topic("outbox.event.concert", 2) if "outbox.event.concert" not in kafka.topics() else None
    cli("init", "--conninfo", c.db.conninfo, "--brokers", kafka.bootstrap, "--name", name)
    relay(c.db.conninfo, kafka.bootstrap, name=name).start().wait_ready()
    consumer = servers.Consumer(c.db.conninfo, kafka.bootstrap, "concert", [f"{name}.in"], {"kind": "sql", "function": "concert.on_messages"})
    consumer.start().wait_ready()
    try:
        from confluent_kafka import Producer
        p = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, "linger.ms": 0})
        for m in [s.updated("HELD", seat=i) for i in s.ids] + [s.command("ReserveSeat", s.named(*s.ids))]:
            h = {"id": m[0], "type": m[5], **json.loads(m[8])}
            p.produce(f"{name}.in", m[6], s.concert, headers=[(k, v.encode()) for k, v in h.items()])
        assert p.flush(10) == 0
        wait_until(lambda: {x["state"] for x in c.api.get(f"/schedules/{s.schedule}/seats").json["seats"]} == {"RESERVED"}, 60)
        wait_until(lambda: c.api.get(f"/concerts/{s.concert}").json["status"] == "SOLD_OUT", 45)
        ours = lambda: [x for x in read_topic(kafka, "outbox.event.concert")  # noqa: E731
                        if header(x, "id").decode() in sent]
        sent = {i for i, in c.db.query("SELECT id::text FROM outbox.event WHERE aggregatetype = 'concert'")}
        records = wait_until(lambda: len(x := ours()) == len(sent) and x, 45)
        declared = events.Events()
        problems = [e for x in records for e in declared.problems(
            "outbox.event.concert", header(x, "type").decode(), x.key.decode(), json.loads(x.value))]
        assert problems == [] and declared.wrong == []
        assert {header(x, "type") for x in records} == {b"ConcertCreated", b"ScheduleOpened", b"SeatHeld", b"SeatReserved",
                                                        b"ConcertStatusUpdated"}
    finally:
        consumer.kill()


MILLION = """
INSERT INTO concert.concert (title) SELECT 'c' || n FROM generate_series(1, 1000) AS n;
INSERT INTO concert.concert_schedule (concert_id, starts_at) SELECT n, now() FROM generate_series(1, 1000) AS n;
INSERT INTO concert.seat (schedule_id, concert_id, label, price, claim_no, released, confirmed, reserved_at)
SELECT 1 + n / 1000, 1 + n / 1000, 'A-' || n, 100, n % 3, n % 3 = 0, n % 3 = 2, CASE n % 3 WHEN 2 THEN now() END FROM generate_series(0, 999999) AS n;
INSERT INTO concert.sold (hour, concert_id, seats)
SELECT date_trunc('hour', now()) - n / 1000 * interval '1 hour', 1 + n % 1000, n % 7 FROM generate_series(0, 999999) AS n;
"""


def test_every_question_finds_an_index(pg_server):
    """With a million seats, and a million rows of sales: no plan, not of a function's inner statement either, reads a whole
    table."""
    db = pg_server.createdb(f"million_{os.getpid()}", schema=True)
    try:
        schema(db)
        fill(db, ["concert.concert", "concert.concert_schedule", "concert.seat", "concert.sold"], MILLION)
        one = {"concert_id": "501", "seats": [{"seat_id": "500002", "claim_no": 9, "reservation_id": reservation_of(9)}]}
        reserve, undo = (message(type, one, "outbox.command.concert", {
            "saga-id": reservation_of(7), "saga-step": "CONCERT", "saga-op": op, "saga-command-id": reservation_of(8)})
            for type, op in (("ReserveSeat", "do"), ("UnreserveSeat", "undo")))
        paid = message("PaymentCompleted", {"mode": "hybrid", "payment_id": reservation_of(6), **one}, "outbox.event.payment")
        say = "SELECT concert.on_message(ROW(%s,%s,%s,%s,%s,%s,%s::jsonb,%s::bytea,%s::jsonb,now())::inbox.message)"
        held = message("ReservationUpdated", {"seat_id": "500001", "claim_no": 9, "reservation_id": reservation_of(9), "status": "CONFIRMED",
                                              "version": 1, "price": 100})
        with contextlib.closing(db.connect()) as c, c.cursor() as cur:
            cur.execute("LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
                        " SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off; SET client_min_messages = log")
            for sql, args in (("SELECT concert.list(50, 500)", ()), ("SELECT concert.popular(10, '1 day')", ()),
                              ("SELECT concert.show(500)", ()), ("SELECT concert.schedules(500, 50, NULL)", ()),
                              ("SELECT concert.seats(500, NULL, 1000, NULL)", ()), ("SELECT concert.seats(500, 'AVAILABLE', 1000, 499500)", ()),
                              (say, held), (say, reserve), (say, undo), (say, paid)):
                c.notices.clear()
                for _ in range(6):    # the sixth is planned for any value
                    cur.execute(sql, args)
                plans = "\n".join(c.notices)
                assert "Query Text" in plans, plans
                whole = re.findall(r"Seq Scan on (?:seat|sold|concert_schedule)\b.*", plans)
                assert not whole, (sql, plans)
                rows = [int(r) for r in re.findall(r"Scan.*?actual rows=(\d+)", plans)]
                assert rows and max(rows) <= 30000, (sql, max(rows))
    finally:
        db.drop()
