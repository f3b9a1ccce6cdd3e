"""bench/flash.py -- a flash sale of the example: 20,000 users queue up for 500 seats, all services, Kafka, Postgres and Redis at
work. All ask for a seat when their turn has come; who holds one gets the money for it and pays; the seats of those who have
none are asked for again. It ends when every seat is sold. Refuses to end well unless tests/support/audit.py finds that all
balances: each seat sold once, no money without a seat. USERS and SEATS in the environment make it smaller."""
import json
import os
import random
import time

import audit
import lab as L
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measures import Result
from stack import Stack
from tokens import USER, b64

USERS = int(os.environ.get("USERS") or 20000)
SEATS = int(os.environ.get("SEATS") or 500)
PRICE = 1000
POOR = 10  # every tenth holder has no money, the first time
CONNECTIONS = 200
OPTIONS = {"queue": ["admission.users=2000", "admission.every=100ms", "admission.active_for=30m"], "reservation": ["hold.for=20m"]}


class Sale:
    def __init__(self, lab, stack):
        self.lab, self.stack, self.n, self.figures = lab, stack, 0, {}
        self.keys = {}

    def ask(self, service, lines, good, connections=CONNECTIONS, rate=0):
        """[(status, answer)] of requests (method, path, token, body), in their order; their status is one of good."""
        self.n += 1
        path = os.path.join(L.servers.test_dir(), f"flash-{self.n}")
        with open(path, "w", encoding="ascii") as f:
            for method, where, token, body in lines:
                f.write(f"{method}\t{where}\t{token}\t{json.dumps(body) if body is not None else ''}\n")
        r = self.lab.run_json([L.program("ask"), str(self.stack[service].port), str(connections), str(rate), path, path + ".answers"], 300)
        got = [None] * len(lines)
        with open(path + ".answers", encoding="utf-8") as f:
            for line in f:
                i, status, body = line.rstrip("\n").split("\t", 2)
                got[int(i)] = (int(status), json.loads(body) if body.startswith("{") else {})
        wrong = [g for g in got if g is None or g[0] not in good]
        if wrong:
            raise L.Failed(f"{service} {lines[0][1]}: {len(wrong)} answers, {wrong[0]}")
        return got, r

    def token(self, user):
        """What the user service would give him at his login."""
        if not self.keys:
            kid, private = self.stack.db("user").query("SELECT kid, private_key FROM service.jwt_key WHERE use_from <= now() ORDER BY use_from DESC")[0]
            self.keys = {"kid": kid, "key": Ed25519PrivateKey.from_private_bytes(bytes(private))}
        now = int(time.time())
        text = b64({"alg": "EdDSA", "typ": "JWT", "kid": self.keys["kid"]}) + "." + b64(
            {"iss": USER[0], "aud": USER[1], "sub": user, "iat": now - 1, "exp": now + 7200})
        return f"{text}.{b64(self.keys['key'].sign(text.encode()))}"

    def come(self):
        """Users with accounts and a place in the queue."""
        lines = [("POST", "/users", "", {"email": f"u{i}@example.org", "password": "a-good-password", "name": "U"}) for i in range(USERS)]
        seconds, self.users = 0, []
        for at in range(0, USERS, 2000):
            made, r = self.ask("user", lines[at:at + 2000], (201,), connections=4)  # hashes: two at a time, http.heavy
            self.users += [a["user_id"] for _, a in made]
            seconds += r["seconds"]
        self.figures["accounts_per_second"] = USERS / seconds
        self.tokens = [self.token(u) for u in self.users]
        self.concert, [self.schedule] = self.stack.open_concert("The only one", SEATS, PRICE)
        self.seats = [str(s) for (s,) in self.stack.db("reservation").query("SELECT seat_id FROM reservation.seat WHERE schedule_id = %s",
                                                                           (self.schedule,))]
        L.wait_until(lambda: self.stack.db("reservation").one("SELECT count(*) FROM reservation.user_copy") >= USERS, 300, "users to be known")
        placed, r = self.ask("queue", [("POST", "/queue/tokens", t, {"concert_id": self.concert}) for t in self.tokens], (201,))
        self.figures["places_per_second"] = USERS / r["seconds"]
        self.places = [a["token"] for _, a in placed]
        L.wait_until(lambda: self.stack.db("reservation").one("SELECT count(*) FROM reservation.token_copy WHERE state = 'ACTIVE'") >= USERS,
                     300, "all turns", interval=0.2)

    def want(self, who, seats):
        """Each of who asks for one of the seats; how many were accepted."""
        rng = random.Random(len(who))
        lines = [("POST", "/reservations", self.tokens[u], {"schedule_id": self.schedule, "seat_ids": [rng.choice(seats)], "queue_token": self.places[u]})
                 for u in who]
        got, r = self.ask("reservation", lines, (202, 409))
        L.wait_until(lambda: not self.stack.db("reservation").one("SELECT count(*) FROM reservation.reservation WHERE status = 'REQUESTED'"),
                     300, "all to be decided", interval=0.1)
        return sum(s == 202 for s, _ in got), r

    def say(self, text):
        self.lab.say(f"  flash: {text}")

    def held(self):
        return [(self.users.index(u), str(i)) for u, i in self.stack.db("reservation").query(
            "SELECT user_id::text, reservation_id::text FROM reservation.reservation WHERE status = 'HELD' ORDER BY reservation_id")]

    def charge(self, holders):
        """Each of holders, [(user, reservation)], gets the money for it."""
        self.ask("payment", [("POST", f"/balances/{self.users[u]}/charge", self.tokens[u], {"amount": PRICE}) for u, _ in holders], (200, 201))

    def try_to_pay(self, holders, rate=0):
        """Each asks to pay for his own: ids of the payments, all of which have ended, and the figures of the requests."""
        asked, r = self.ask("payment", [("POST", "/payments?mode=saga", self.tokens[u], {"reservation_ids": [i], "token": self.places[u]})
                                        for u, i in holders], (202,), rate=rate)
        db, ids = self.stack.db("payment"), [a["payment_id"] for _, a in asked]
        L.wait_until(lambda: not db.one("SELECT count(*) FROM payment.payment WHERE payment_id::text = ANY (%s) AND state = 'PENDING'", (ids,)),
                     300, "the payments to end", interval=0.1)
        return ids, r

    def pay(self, holders, first):
        """Those with money pay; the others, every tenth the first time, try, and let go."""
        self.say(f"{len(holders)} hold a seat")
        rich = [h for i, h in enumerate(holders) if i % POOR or not first]
        poor = [h for i, h in enumerate(holders) if not i % POOR and first]
        self.stack.settle(300, but=("live_sagas",))  # what is held has come round to those who take the money
        if rich:
            self.charge(rich)
        ids, _ = self.try_to_pay(rich + poor)
        self.say(f"{len(ids)} payments have ended")
        self.stack.settle(300)

    def sold(self):
        return self.stack.db("reservation").one("SELECT count(*) FROM reservation.reservation WHERE status = 'CONFIRMED'")

    def left(self):
        return [s for s in self.seats if s not in {str(x) for (x,) in self.stack.db("reservation").query(
            "SELECT seat_id FROM reservation.reservation WHERE status = 'CONFIRMED'")}]


def flash(lab, opt):
    """20,000 users, 500 seats: until every seat is sold, and all balances."""
    # A broker of its own: another measure's events would be facts to tell.
    with Stack(options=OPTIONS, without=("platform-sink",), variant="plain", servers_config={"shared_buffers": "256MB"}) as stack:
        sale = Sale(lab, stack)
        sale.come()
        sale.say(f"{USERS} users have their turn")
        began, rounds, left = time.monotonic(), 0, sale.seats
        accepted, r = sale.want(range(USERS), left)
        held = time.monotonic() - began
        while left:
            rounds += 1
            sale.pay(sale.held(), rounds == 1)
            left = sale.left()
            if left:
                sale.want(random.Random(rounds).sample(range(USERS), min(USERS, 10 * len(left))), left)
        took = time.monotonic() - began
        a = audit.of_stack(stack)
        if not a.ok:
            raise L.Failed(a.verdict() + "\n" + a.table())
        sold = sale.sold()
        if sold != SEATS:
            raise L.Failed(f"{sold} of {SEATS} seats are sold")
        money = stack.db("payment").one("SELECT coalesce(sum(amount), 0) FROM payment.payment WHERE state = 'COMPLETED'")
        if money != SEATS * PRICE:
            raise L.Failed(f"{money} was paid for {SEATS} seats of {PRICE}")
        refused = stack.db("payment").one("SELECT count(*) FROM payment.payment WHERE state <> 'COMPLETED'")
        detail = dict(sale.figures, rounds=rounds, accepted=accepted, ask=r, audit=a.verdict())
    yield Result("flash", f"seats sold once each to {USERS:,} users", "seats", sold, "seats", SEATS, ("ratio", ">=", 1.0), detail)
    yield Result("flash", "money taken", "points", float(money), "seats sold x price", SEATS * PRICE, ("ratio", "<=", 1.0))
    yield Result("flash", "requests for a seat answered", "1/s", USERS / r["seconds"], "of these accepted (202)", accepted / r["seconds"])
    yield Result("flash", "all requests asked and decided", "s", held, "until all is sold, settled", took)
    yield Result("flash", "payments refused, their seats sold to others", "", refused, "payments", refused + SEATS)


MEASURES = {"flash": flash}
