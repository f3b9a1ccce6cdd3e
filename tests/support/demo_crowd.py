"""tests/support/demo_crowd.py -- the demonstration's crowd: guests who queue, hold seats and pay, each in a way of his own,
over HTTP as the page does it; and people who order things. Knows no database and no topic.

Refuses to be impatient: a service that does not answer is asked again, a guest who was not served goes home in the end.
"""
import collections
import http.client
import json
import random
import socket
import threading
import time
import uuid

# What guests come for, and how often.
WAYS = (("saga", 22), ("choreography", 18), ("hybrid", 18), ("book", 14), ("poor", 9), ("dreamer", 6), ("regretful", 5), ("refunded", 4),
        ("shopper", 4), ("shopper by choreography", 4))
PATIENCE = 25  # seconds

# What may be otherwise in a moment, once an event has come round: asked again for a few seconds.
NOT_YET = ("not-held", "turn-over", "in-progress", "no-such-concert", "no-such-seat", "not-your-turn", "unknown-user", "no-such-reservation")


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status} {body.get('detail') or body.get('title') or ''}")
        self.status, self.slug = status, str(body.get("type", "")).rpartition("/")[2]


class GaveUp(Exception):
    """He waited long enough."""


class Caller:
    """Connections of one thread, one to each service, kept."""

    def __init__(self, ports, patience=PATIENCE):
        self.ports, self.open, self.patience = ports, {}, patience

    def call(self, service, method, path, body=None, token=None):
        """The answer's JSON. No answer, or "not now": again, under the same key."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        data, end = None if body is None else json.dumps(body), time.monotonic() + self.patience
        while True:
            status, after, answer = self._once(service, method, path, data, headers)
            if status is not None and status < 300:
                return answer
            if status is not None and status not in (429, 503) and (str(answer.get("type", "")).rpartition("/")[2] not in NOT_YET
                                                                    or time.monotonic() > end - self.patience + self.patience / 5):
                raise Refused(status, answer)
            if time.monotonic() + after > end:
                raise GaveUp(f"{service} does not serve")
            time.sleep(after)

    def _once(self, service, method, path, data, headers):
        c = self.open.get(service)
        try:
            if c is None:
                c = self.open[service] = http.client.HTTPConnection("127.0.0.1", self.ports[service], timeout=10)
                c.connect()
                c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            c.request(method, path, data, headers)
            r = c.getresponse()
            text = r.read()
            return r.status, float(r.headers.get("Retry-After") or 0.3), json.loads(text) if text else {}
        except (OSError, http.client.HTTPException, ValueError):
            self.close(service)
            return None, 0.3, {}

    def close(self, service=None):
        for s in [service] if service else list(self.open):
            c = self.open.pop(s, None)
            if c:
                c.close()


class Crowd:
    """places: [(concert_id, schedule_id)]; comes: guests a second; at_once: how many are there at the same time;
    patience: how many seconds each waits for an answer that is good, and for what he asked for."""

    def __init__(self, ports, places, comes=6.0, at_once=14, seed=None, patience=PATIENCE):
        self.ports, self.places, self.comes, self.patience = ports, places, comes, patience
        self.rnd = random.Random(seed)
        self.lock = threading.Lock()
        self.count = collections.Counter()  # what became of the guests
        self.last_refusals = collections.deque(maxlen=20)
        self.stopping = threading.Event()
        self.closing = threading.Event()  # who still queues goes home
        self.here = 0
        self._due = 0.0
        self._threads = [threading.Thread(target=self._live, args=(i,), daemon=True) for i in range(at_once)]

    def start(self):
        for t in self._threads:
            t.start()

    def stop(self, timeout=None):
        """Nobody comes any more; who is here finishes."""
        self.stopping.set()
        end = time.monotonic() + (timeout or self.patience + 5)
        for t in self._threads:
            if t.ident:
                t.join(max(0, end - time.monotonic()))

    def gone(self):
        return not any(t.is_alive() for t in self._threads)

    def _note(self, what):
        with self.lock:
            self.count[what] += 1

    def _live(self, i):
        caller, rnd = Caller(self.ports, self.patience), random.Random(self.rnd.random() + i)
        while not self.stopping.is_set():
            with self.lock:
                now = time.monotonic()
                self._due = max(self._due, now - 1) + 1 / self.comes
                wait = self._due - now
            if self.stopping.wait(max(0, wait)):
                break
            self._guest(caller, rnd)
        caller.close()

    def _guest(self, caller, rnd):
        way = rnd.choices([w for w, _ in WAYS], [n for _, n in WAYS])[0]
        with self.lock:
            self.here += 1
            self.count["guests"] += 1
        try:
            Guest(self, caller, rnd, way).live()
        except Refused as e:
            self._note("refused")
            self.last_refusals.append(f"{way}: {e}")
        except GaveUp as e:
            self._note("gave up")
            self.last_refusals.append(f"{way}: {e}")
        finally:
            with self.lock:
                self.here -= 1


class Guest:
    def __init__(self, crowd, caller, rnd, way):
        self.crowd, self.rnd, self.way = crowd, rnd, way
        self.call, self.token = caller.call, None

    def mine(self, service, method, path, body=None):
        return self.call(service, method, path, body, self.token)

    def until(self, look, good, pause=0.15):
        end = time.monotonic() + self.crowd.patience
        while True:
            seen = look()
            if good(seen):
                return seen
            if time.monotonic() > end:
                raise GaveUp(f"{self.way}: it is still {seen.get('state')}")
            time.sleep(pause)

    def live(self):
        self.come_in()
        if self.way.startswith("shopper"):
            self.shop()
            return
        where = self.rnd.choice(self.crowd.places)
        if not self.queue_up(where[0]):
            self.crowd._note("went home from the queue")
            return
        seats = self.choose(where[1])
        if not seats:
            self.crowd._note("found no seat")
        elif self.way == "book":
            self.book(where[1], seats)
        else:
            self.hold(where[1], seats)

    def come_in(self):
        email, password = f"{uuid.uuid4().hex[:12]}@example.org", "a-good-password"
        self.id = self.call("user", "POST", "/users", {"email": email, "password": password, "name": f"guest {email[:5]}"})["user_id"]
        self.token = self.call("user", "POST", "/login", {"email": email, "password": password})["access_token"]
        if self.way != "poor":
            self.mine("payment", "POST", f"/balances/{self.id}/charge", {"amount": 100000})

    def queue_up(self, concert_id):
        self.place = self.mine("queue", "POST", "/queue/tokens", {"concert_id": concert_id})["token"]
        return self.until(lambda: self.call("queue", "GET", "/queue/status", token=self.place),
                          lambda a: a["state"] == "AVAILABLE" or self.crowd.closing.is_set(), 0.3)["state"] == "AVAILABLE"

    def choose(self, schedule_id):
        free = self.call("concert", "GET", f"/schedules/{schedule_id}/seats?state=available")["seats"]
        return [s["seat_id"] for s in self.rnd.sample(free, min(len(free), self.rnd.choice((1, 1, 2))))]

    def hold(self, schedule_id, seats):
        ids = self.mine("reservation", "POST", "/reservations", {"schedule_id": schedule_id, "seat_ids": seats,
                                                                 "queue_token": self.place})["reservation_ids"]
        states = [self.until(lambda i=i: self.mine("reservation", "GET", f"/reservations/{i}"), lambda r: r["state"] != "REQUESTED")["state"]
                  for i in ids]
        held = [i for i, s in zip(ids, states) if s == "HELD"]
        if len(held) < len(ids):
            self.crowd._note("was too late for a seat")
        if self.way == "dreamer" or not held:
            return
        if self.way == "regretful":
            for i in held:
                self.mine("reservation", "DELETE", f"/reservations/{i}")
            self.crowd._note("gave a seat back")
            return
        self.pay(held)

    def pay(self, ids):
        mode = self.way if self.way in ("saga", "choreography", "hybrid") else self.rnd.choice(("saga", "choreography"))
        p = self.mine("payment", "POST", f"/payments?mode={mode}", {"reservation_ids": ids, "token": self.place})
        self.until(lambda: self.mine("reservation", "GET", f"/reservations/{ids[0]}"), lambda r: r["state"] not in ("HELD", "PAID")
                   or self.failed(p["payment_id"]))
        state = self.mine("payment", "GET", f"/payments/{p['payment_id']}")["state"]
        self.crowd._note("paid" if state == "COMPLETED" else "did not pay")
        if self.way == "refunded" and state == "COMPLETED":
            self.mine("payment", "POST", f"/payments/{p['payment_id']}/cancel", {})
            self.until(lambda: self.mine("payment", "GET", f"/payments/{p['payment_id']}"), lambda r: r["state"] == "CANCELLED")
            self.crowd._note("got the money back")

    def failed(self, payment_id):
        return self.mine("payment", "GET", f"/payments/{payment_id}")["state"] in ("FAILED", "CANCELLED")

    def book(self, schedule_id, seats):
        got = self.mine("reservation", "POST", "/bookings", {"schedule_id": schedule_id, "seat_ids": seats, "queue_token": self.place})
        end = self.until(lambda: self.mine("reservation", "GET", f"/reservations/{got['reservation_ids'][0]}"),
                         lambda r: r["state"] in ("CONFIRMED", "CANCELLED", "REJECTED", "EXPIRED"))
        self.crowd._note("paid" if end["state"] == "CONFIRMED" else "did not pay")

    def shop(self):
        items = [{"sku": self.rnd.choice(("poster", "shirt", "record")), "quantity": self.rnd.randint(1, 3), "unit_price": 1500}]
        order = self.mine("order", "POST", "/orders", {"items": items})["order_id"]
        mode = "choreography" if "choreography" in self.way else "saga"
        self.mine("order", "POST", f"/orders/{order}/pay?mode={mode}")
        end = self.until(lambda: self.mine("order", "GET", f"/orders/{order}"), lambda o: o["state"] in ("PAID", "CANCELLED"))
        self.crowd._note("ordered" if end["state"] == "PAID" else "did not order")
