"""tests/support/demo_story.py -- what happens in the demonstration: a crowd that buys tickets, people to whom certain
things happen, and what breaks meanwhile. Each scene is a generator that yields once per frame.

What is broken here is mended here. No service's HTTP is ever taken away but the data platform's, which nobody waits for:
whoever plays with the box office meanwhile is answered. Refuses to go on from a scene that did not come to its end.
"""
import contextlib
import json
import threading
import urllib.request
import uuid

from demo_crowd import Crowd
from gateway import Outside
from stack import SINK, Person
from wait import wait_until

HTTP = ("user", "concert", "queue", "reservation", "payment", "order")
SLEEPERS = 5
HOLD = 8  # seconds that theirs lasts
FAILS = ("PAYMENT", "RESERVATION", "QUEUE", "CONCERT")


class Later(threading.Thread):
    """Something that takes a while, done by a thread that nobody has to wait for. Starts no process: that would end with it."""

    def __init__(self, work, *args):
        super().__init__(daemon=True)
        self.work, self.value, self.error = (work, args), None, None
        self.start()

    def run(self):
        try:
            self.value = self.work[0](*self.work[1])
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def done(self):
        return not self.is_alive()

    def result(self):
        self.join()
        if self.error:
            raise self.error
        return self.value


class Gateway(Outside):
    """The payment gateway outside. stolen: payments whose card it refuses; down: answers 503 to all."""

    def __init__(self):
        self.stolen, self.down = set(), False
        super().__init__()

    def serve(self, http_, kind, key, body):
        if self.down:
            self.say(http_, 503, {"reason": "we are down"}, {"Retry-After": "1"})
        else:
            super().serve(http_, kind, key, body)

    def act(self, kind, body, word):
        return super().act(kind, body, "refuse" if kind == "approve" and body["payment_id"] in self.stolen else word)


class Actor(Person):
    """Asks again, under the same key, while a service has too much to do."""

    def call(self, service, method, path, body=None, **kw):
        if method == "POST":
            kw["key"] = kw.get("key") or str(uuid.uuid4())
        last = []

        def served():
            last[:] = [super(Actor, self).call(service, method, path, body, **kw)]
            return last[0].status not in (429, 503)
        wait_until(served, 60, f"{service} to serve", interval=0.2, interval_max=0.5)
        return last[0]


class Actors:
    """The people to whom certain things happen; they come with the crowd, and are ready when their scene is."""

    def __init__(self, stack, gateway, pays, sleeps):
        """pays, sleeps: (concert, schedule) where these do."""
        self.stack, self.gateway, self.sleeps = stack, gateway, sleeps
        last = self._last(pays[1], 5)
        self.payers = [Later(self._payer, *pays, seats) for seats in (last[:1], last[1:2], last[2:4], last[4:])]
        self.sleepers = [Later(self._admitted, sleeps[0]) for _ in range(SLEEPERS)]
        self.payments = {}  # of those that are to fail: {step: payment}
        self.rivals = []

    def _last(self, schedule, n):
        """The last seats of the hall: the first ones are what others take."""
        return [r[0] for r in self.stack.db("concert").query(
            "SELECT seat_id::text FROM concert.seat WHERE schedule_id = %s ORDER BY seat_id DESC LIMIT %s", (schedule, n))]

    def _payer(self, concert, schedule, seats):
        """Somebody with money who holds seats, each by a reservation of its own: [(who, seat, reservation)]."""
        who = self._admitted(concert, 100000)
        return [(who, s, who.hold(schedule, [s])[0]) for s in seats]

    def _admitted(self, concert, points=0):
        who = Actor(self.stack)
        if points:
            who.charge(points)
        return who.admitted(concert)

    def sleep(self):
        """Hold a seat each for a short while, and will not pay: their reservations."""
        db = self.stack.db("reservation")
        people = [f.result() for f in self.sleepers]
        before = db.one("SELECT hold_for::text FROM reservation.setting")
        db.query("UPDATE reservation.setting SET hold_for = %s", (f"{HOLD} seconds",))
        try:
            held = [Later(p.hold, self.sleeps[1], [s]) for p, s in zip(people, self._last(self.sleeps[1], SLEEPERS))]
            return [i for h in held for i in h.result()]
        finally:
            db.query("UPDATE reservation.setting SET hold_for = %s", (before,))

    def pay_in_vain(self):
        """While the engine is away: four payments begin, and to each something happens that one step will not take."""
        thief, regretful, greedy, unlucky = [f.result() for f in self.payers]
        self.payments["PAYMENT"] = self._pay(*thief[0])
        self.gateway.stolen.add(self.payments["PAYMENT"])
        self.payments["RESERVATION"] = self._pay(*regretful[0])
        who, _, reservation = regretful[0]
        assert who.call("reservation", "DELETE", f"/reservations/{reservation}").status == 200
        self.rivals = [self._pay(*g) for g in greedy]  # one of them will stand
        self.payments["CONCERT"] = self._pay(*unlucky[0])
        self.dear = unlucky[0][1]
        self.price(1)

    def price(self, more):
        self.stack.db("concert").query("UPDATE concert.seat SET price = price + %s WHERE seat_id = %s", (more, self.dear))

    @staticmethod
    def _pay(who, _, reservation):
        return who.pay([reservation])["payment_id"]

    def outcome(self):
        """{step: (state of the saga, the step that failed)} of the payments that are to fail."""
        rows = {i: (state, step) for i, state, step in self.stack.db("engine").query(
            "SELECT id::text, state, failed_step FROM saga.instance WHERE id = ANY (%s::uuid[])", ([*self.payments.values(), *self.rivals],))}
        rivals = [rows.get(r, ("", None)) for r in self.rivals]
        failed = [r for r in rivals if r[0] != "COMPLETED"]
        return {**{step: rows.get(p, ("", None)) for step, p in self.payments.items()},
                "QUEUE": failed[0] if len(failed) == 1 else (f"two: {rivals}", None)}


class Story:
    """demo: whom it is told to (step, seconds, until, aside, told, is_well, cli)."""

    def __init__(self, demo, stack, gateway, places):
        self.demo, self.stack, self.gateway, self.places = demo, stack, gateway, places
        self.crowd = self.actors = None

    def open(self):
        """The crowd comes: first a rush, then as many as the services can well serve."""
        self.crowd = self.new_crowd(8, self.places[2:])
        self.crowd.start()
        self.actors = Actors(self.stack, self.gateway, *self.places[:2])

    def new_crowd(self, comes, places):
        return Crowd({n: self.stack[n].port for n in HTTP}, places, comes, at_once=14, patience=60)

    def scenes(self, only=()):
        every = (self.doors, self.kill_a_relay, self.poison, self.sleep, self.engine, self.wake, self.gateway_down, self.kill_the_sink,
                 self.platform_down, self.take_back)
        return [s for s in every if not only or s.__name__ in only]

    # -- the scenes

    def doors(self):
        d = self.demo
        d.step("Doors open. Guests make an account, queue up, get their turn, hold seats and pay: led by a saga, from hand to hand, "
               "money first, or all in one booking; others order posters.")
        yield from d.until(lambda: d.numbers.sold > 3, 180, "the first seats to be sold")
        self.crowd.comes = 1.6
        yield from d.seconds(4)

    def kill_a_relay(self):
        d, p = self.demo, self.stack["payment-relay"]
        d.step(f"kill -9 {p.pid}: the relay of the payments dies in the middle of its work. Money is taken all the same; the events wait in "
               "Postgres.")
        p.kill9()
        yield from d.until(d.told("payment-relay", "dead"), 15, "its death to be seen")
        yield from d.seconds(2)
        p.start()
        d.step("The relay is started again: it " + "fences its dead self, " * (not self.stack.mock)
               + "reads its position from Kafka and goes on from there.")
        yield from d.until(d.is_well("payment-relay"), 180, "the relay to catch up")

    def sleep(self):
        d, actors = self.demo, self.actors
        yield from d.until(lambda: all(f.done() for f in actors.payers + actors.sleepers), 180, "everybody to have a turn")
        d.step(f"Five guests hold a seat each and fall asleep. Theirs are held for {HOLD} seconds, else it is five minutes.")
        self.slept = yield from d.aside(actors.sleep, 180, "five holds")

    def wake(self):
        d = self.demo
        sql = "SELECT count(*) FROM reservation.reservation WHERE status = 'EXPIRED' AND reservation_id = ANY (%s::uuid[])"
        yield from d.until(lambda: self.stack.db("reservation").one(sql, (self.slept,)) == SLEEPERS, 180, "the holds to expire")
        d.step("The scheduler's timers have ended the five holds of those who slept; their seats are free again.")
        yield from d.seconds(1)

    def poison(self):
        """An event that the data platform will not take: a dead letter there, and no one else's trouble."""
        d, platform = self.demo, self.stack.db("platform")
        dead = "SELECT count(*) FROM inbox.dead_letter WHERE state = 'dead'"
        d.step("Poison: the data platform refuses one event for good. It becomes a dead letter there; everybody else has handled it.")
        with contextlib.closing(self.stack.db("user").connect(autocommit=False)) as c, c.cursor() as cur:
            cur.execute("SELECT user_id::text FROM \"user\".user_account LIMIT 1")
            who = cur.fetchone()[0]
            cur.execute("SELECT outbox.publish('user', %s, 'UserUpdated', jsonb_build_object('user_id', %s, 'state', 'ACTIVE'))::text", (who, who))
            poisonous = cur.fetchone()[0]
            self._refuse(poisonous)  # before anybody can have seen it
            c.commit()
        yield from d.until(lambda: platform.one(dead) == 1, 180, "the dead letter")
        sql = "SELECT command FROM push.admin_alert WHERE state <> 'RESOLVED' ORDER BY alert_id DESC LIMIT 1"
        yield from d.until(lambda: self.stack.db("push").query(sql), 180, "an alert of it")
        d.step("An alert tells the people on duty what to do: the platform learns that event, and postrider dlq retry gives the dead letter "
               "back.")
        yield from d.seconds(1.5)
        self._refuse("")
        yield from d.cli("dlq", "retry", "--all", "-c", self.stack["platform-consumer"].file)
        yield from d.until(lambda: platform.one(dead) == 0, 180, "the dead letter to be handled")

    def _refuse(self, event):
        r = urllib.request.Request(self.stack.url("platform") + "/switches", json.dumps({"refuse_id": event}).encode(),
                                   {"Content-Type": "application/json"})
        urllib.request.urlopen(r, timeout=10).close()

    def engine(self):
        """Four payments, of which each fails at another step."""
        d, p, actors = self.demo, self.stack["engine-consumer"], self.actors
        yield from d.until(lambda: all(f.done() for f in actors.payers), 180, "four guests to hold their seats")
        d.step(f"kill -9 {p.pid}: the saga engine dies. Four guests pay meanwhile: one with a stolen card, one gives the seat back, one has "
               "used up the token, and one seat has become dearer.")
        p.kill9()
        yield from d.aside(actors.pay_in_vain, 180, "four payments")
        yield from d.seconds(1)
        p.start()
        d.step("The engine is started again, knows where each saga stands, and goes on. Of the four each fails at another step; what was done "
               "is undone, last first.")
        yield from d.until(lambda: all(s == "COMPENSATED" for s, _ in actors.outcome().values()), 180,
                           lambda: f"four payments to be undone; they are {actors.outcome()} of {actors.payments}")
        at = {want: got for want, (_, got) in actors.outcome().items()}
        assert at == {s: s for s in FAILS}, f"the payments failed at other steps than meant: {at}"
        actors.price(-1)
        d.step("Undone: one that failed at PAYMENT, one at RESERVATION, one at QUEUE, one at CONCERT. The money is back, the seats are free.")
        yield from d.seconds(1.5)

    def gateway_down(self):
        d = self.demo
        d.step("The payment gateway outside is down: it answers 503. Who pays now waits with his seat held; nothing is taken twice, and nothing "
               "is undone too early.")
        self.gateway.down = True
        yield from d.until(lambda: d.numbers.pending > 1, 180, "payments to wait")
        yield from d.seconds(2.5)
        self.gateway.down = False
        d.step("The gateway is back, and has approved what waited.")
        asked = self.stack.db("payment").one("SELECT count(*) FROM payment.gateway_request WHERE state = 'PENDING'")
        yield from d.until(lambda: d.numbers.pending < max(2, asked), 180, "what waited to be approved")

    def kill_the_sink(self):
        """In the middle of a file."""
        d, p = self.demo, self.stack[SINK]
        d.step(f"kill -9 {p.pid}: the sink that writes every event to the data platform's files dies in the middle of one.")
        p.kill9()
        yield from d.until(d.told(SINK, "dead"), 15, "its death to be seen")
        yield from d.seconds(2)
        p.start()
        d.step("The sink is started again: what was half written had no name yet and goes; each record will be in one file, once.")
        yield from d.until(d.is_well(SINK), 180, "the sink to go on")

    def platform_down(self):
        d, p = self.demo, self.stack["platform"]
        d.step(f"kill -9 {p.pid}: the data platform is gone. Its consumer's breaker opens and nothing is lost; nobody who buys a ticket waits "
               "for it.")
        sold = d.numbers.sold
        p.kill9()
        yield from d.seconds(3)
        yield from d.until(lambda: d.numbers.sold > sold, 180, "a seat to be sold meanwhile")
        p.start()
        d.step("The platform is back: a probe gets through, the breaker closes, and every fact arrives, once.")
        yield from d.until(d.is_well("platform-consumer"), 180, "the platform's consumer to go on")

    def take_back(self):
        """An operator takes back a sale that is done."""
        d, db = self.demo, self.stack.db("engine")
        rows = db.query("SELECT id::text FROM saga.instance WHERE name = 'pay' AND state = 'COMPLETED' ORDER BY id DESC LIMIT 1")
        assert rows, "no sale was led by a saga"
        d.step(f"postrider saga undo {rows[0][0]}: the promoter takes back a sale. Seat, token, reservation and money go back, last first.")
        yield from d.cli("saga", "undo", rows[0][0], "--yes", "-c", self.stack["engine-consumer"].file)
        sql = "SELECT state FROM saga.instance WHERE id = %s ORDER BY slot LIMIT 1"
        yield from d.until(lambda: db.one(sql, (rows[0][0],)) == "COMPENSATED", 180, "the sale to be undone")

    # -- the end

    def mend(self):
        """After a scene that did not come to its end: all runs again."""
        self.gateway.down = False
        for p in self.stack.process.values():
            if not p.running():
                p.start()

    def close(self):
        if self.crowd:
            self.crowd.stopping.set()
            self.crowd.closing.set()

    def go_home(self):
        d = self.demo
        self.close()
        yield from d.until(self.crowd.gone, 180, "the crowd to go home")
