"""tests/fault/test_service_concert_cache.py -- the concert service's cache when something breaks: Redis gone, frozen, emptied,
full or back with what it had; whoever tells of changes gone or frozen; an answer that is late; no instance there. Each
read is answered, and none gives what Postgres no longer said when its change was known.
"""
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import servers
from concert import Seats
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
LISTENER = "application_name = 'postrider-concert cache' AND datname = '{}'"


class Shop:
    def __init__(self, db, redis, n=1, timeout="100ms"):
        self.db, self.redis = db, redis
        self.config = {"redis": {"address": redis.address, "timeout": timeout}, "cache": {"prefix": db.name, "life": "10m"}}
        self.services = []
        for _ in range(n):
            self.add()
        self.in_use()
        self.seats = Seats(db)
        self.path = f"/schedules/{self.seats.schedule}/seats"
        self.price = 100

    def add(self, **start):
        s = Service("concert", self.db.conninfo, config=self.config).start(**start).wait_ready()
        self.services.append(s)
        return s

    def in_use(self, on=1):
        wait_until(lambda: all(s.metric("postrider_cache_in_use") == on for s in self.services), 20, f"in use: {on}")
        return self

    def read(self, service=None):
        answer = Api((service or self.services[0]).port).raw("GET", self.path)
        assert answer.status == 200, answer
        return {s["price"] for s in answer.json["seats"]}

    def metric(self, name, service=None):
        return (service or self.services[0]).metric(f"postrider_cache_{name}")

    def change(self):
        """Commits something that the answer shows."""
        self.price += 1
        self.db.query("UPDATE concert.seat SET price = %s WHERE schedule_id = %s", (self.price, self.seats.schedule))
        return {self.price}

    def hits(self):
        return self.metric('reads_total{service="concert",result="hit"}')

    def is_hit(self):
        before = self.hits()
        return self.read() == {self.price} and self.hits() == before + 1 and self.redis.call("HLEN", self.key()) == 3

    def cached(self):
        """The answer comes to be Redis's. What was told of the last change may still be on its way and take it out once more."""
        wait_until(self.is_hit, 20, "the answer in Redis")

    def key(self):
        return f"{self.db.name}:s:{self.seats.schedule}"


@pytest.fixture
def shop(empty_db, own_redis):
    made = []

    def make(n=1, timeout="100ms", **redis):
        made.append(Shop(empty_db, own_redis(**redis), n, timeout))
        return made[-1]
    yield make
    for s in made:
        if s.redis.running():
            s.redis.sigcont()
        for service in s.services:
            service.kill()


@pytest.mark.asan
def test_redis_is_frozen(shop):
    """A call that gets no answer switches the cache off: one request waits a moment, the others not at all. What changed
    meanwhile is not read from Redis when it is back."""
    s = shop()
    s.cached()
    s.redis.sigstop()
    began = time.monotonic()
    assert s.read() == {100}
    first = time.monotonic() - began
    s.in_use(0)
    fails = s.metric("failures_total")
    new = s.change()
    with ThreadPoolExecutor(4) as pool:
        assert all(r == new for r in pool.map(lambda _: s.read(), range(40)))
    assert first < 15 and s.metric("failures_total") <= fails + 8, "it must not be asked again by every request"
    s.redis.sigcont()
    s.in_use()
    assert s.read() == new
    s.cached()


def test_redis_comes_back_with_what_it_had(shop):
    """Killed, and started again from its disk: the old answers are in it, and void."""
    s = shop(persist=True)
    s.cached()
    s.redis.kill()
    new = s.change()
    assert s.read() == new
    s.in_use(0)
    s.redis.start()
    assert s.redis.call("HLEN", s.key()) == 3
    s.in_use()
    assert s.read() == new
    s.cached()


def test_redis_is_emptied(shop):
    s = shop(n=2, timeout="10s")  # a busy machine's Redis is no failed one
    for _ in range(5):
        s.cached()
        s.redis.flush()
        assert s.read() == s.read(s.services[1]) == {s.price}
        new = s.change()
        wait_until(lambda: s.read() == s.read(s.services[1]) == new, 20)
    assert s.metric("failures_total") == 0


def test_redis_is_full(shop):
    """It refuses to write: every answer is Postgres's, and the service does not think that Redis is away."""
    s = shop(timeout="10s")
    s.redis.call("CONFIG", "SET", "maxmemory", "1")
    for _ in range(3):
        assert s.read() == {100}
    assert s.metric("failures_total") >= 3 and s.metric("in_use") == 1
    s.redis.call("CONFIG", "SET", "maxmemory", "0")
    s.cached()


def test_an_answer_that_is_late(shop, tmp_path):
    """It was asked for before a change, and would be kept after the change was taken out of the cache: it is not."""
    s = shop()
    hold = str(tmp_path / "hold")
    slow = s.add(hold=f"concert_cache_put:{hold}")
    s.in_use()
    open(hold, "w", encoding="ascii").close()
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(s.read, slow)
        wait_until(lambda: os.path.exists(hold + ".held"), 20, "the answer between Postgres and Redis")
        new = s.change()
        wait_until(lambda: all(s.metric("dropped_total", i) >= 1 for i in s.services), 20, "the change to be taken out")
        assert s.read() == new
        os.unlink(hold)
        assert old.result() == {100}
    wait_until(lambda: s.metric('writes_total{service="concert",result="late"}', slow) == 1, 20, "it to be refused")
    assert s.read() == s.read(slow) == new


def test_who_tells_of_changes_is_cut_off(shop, pg_server):
    """The connection on which Postgres tells is ended, again and again, around changes: what was not told is not trusted."""
    s = shop()
    for _ in range(5):
        s.cached()
        pg_server.kill_backend(LISTENER.format(s.db.name))
        new = s.change()
        wait_until(lambda: s.read() == new, 20)
        s.in_use()
        assert s.read() == new


def test_who_tells_of_changes_is_frozen(shop, pg_server):
    """It says nothing, but its connection stands: the cache is not used for longer than it takes to find out."""
    s = shop()
    s.cached()
    frozen = pg_server.stop_backend(LISTENER.format(s.db.name))
    try:
        before = s.metric("epochs_total")
        new = s.change()
        wait_until(lambda: s.metric("epochs_total") > before, 20, "the silence to be noticed")
        assert s.read() == new
        s.cached()
    finally:
        pg_server.cont_backend(frozen)


def test_redis_is_back_before_the_change_is_told(shop, pg_server):
    """Redis freezes with an answer in it, the answer changes, whoever tells of it is frozen too, and Redis thaws: it answered, so the
    cache was used again, and gave what it had. Seen once in some fifty runs of test_under_all_of_it."""
    s = shop()
    for _ in range(4):
        s.cached()
        s.redis.sigstop()
        frozen = []
        try:
            s.read()  # finds out
            s.in_use(0)
            frozen = pg_server.stop_backend(LISTENER.format(s.db.name))
            new = s.change()
            s.redis.sigcont()
            s.in_use()
            assert s.read() == new
        finally:
            s.redis.sigcont()
            pg_server.cont_backend(frozen)


def test_nobody_is_there(shop):
    """All instances are killed, something changes, one starts: it does not know what it missed, and reads nothing old."""
    s = shop(n=2)
    s.cached()
    for service in s.services:
        service.kill9()
    new = s.change()
    assert s.redis.call("HLEN", s.key()) == 3
    s.services = []
    s.add()
    s.in_use()
    assert s.read() == new


def test_instances_beside_each_other(shop):
    """Three instances, readers at each of them without a pause, changes: once all have taken a change out, every answer
    of any of them has it, whatever was under way."""
    s = shop(n=3)
    done = threading.Event()
    seen = []

    def hammer(service):
        while not done.is_set():
            seen.append(max(s.read(service)))
    with ThreadPoolExecutor(6) as pool:
        hammering = [pool.submit(hammer, i) for i in s.services * 2]
        try:
            for _ in range(30):
                known = lambda: [s.metric("dropped_total", i) + s.metric("epochs_total", i) for i in s.services]  # noqa: E731
                before = known()
                new = s.change()
                wait_until(lambda: all(k > b for k, b in zip(known(), before)), 20)
                assert [s.read(i) for i in s.services * 2] == [new] * 6
        finally:
            done.set()
        for h in hammering:
            h.result()
    assert len(seen) > 100 and set(seen) <= set(range(100, s.price + 1))
    assert sum(s.metric('reads_total{service="concert",result="hit"}', i) for i in s.services) > 0


def test_postgres_restarts(own_pg, own_redis):
    """With it away reads say 503 and when to come again; back, the cache is used again, and nothing in it is old."""
    pg = own_pg()
    s = Shop(pg.createdb("concert"), own_redis())
    try:
        s.cached()
        pg.stop("immediate")
        s.in_use(0)
        answer = wait_until(lambda: (a := Api(s.services[0].port).raw("GET", s.path)).status == 503 and a, 20)
        assert answer.problem == "unavailable" and int(answer.headers["Retry-After"]) >= 1
        pg.start()
        new = s.change()
        s.in_use()
        wait_until(lambda: Api(s.services[0].port).raw("GET", s.path).status == 200, 20)
        assert s.read() == new
        s.cached()
    finally:
        for service in s.services:
            service.kill()


@pytest.mark.tsan
def test_under_all_of_it(shop, pg_server):
    """Reads go on while Redis freezes and thaws and the listener is cut; each is answered, and after it all nothing is old."""
    s = shop()
    done = threading.Event()

    def hammer():
        n = 0
        while not done.is_set():
            s.read()
            n += 1
        return n
    with ThreadPoolExecutor(4) as pool:
        hammering = [pool.submit(hammer) for _ in range(3)]
        try:
            for turn in range(4):
                s.redis.sigstop()
                s.in_use(0)
                s.change()
                if turn % 2:
                    pg_server.kill_backend(LISTENER.format(s.db.name))
                s.redis.sigcont()
                s.in_use()
                assert s.read() == {s.price}
        finally:
            done.set()
        assert sum(h.result() for h in hammering) > 0
    s.cached()
