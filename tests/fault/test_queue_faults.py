"""tests/fault/test_queue_faults.py -- postrider-queue when it dies between Redis and Postgres, when Redis is away, flushed,
or comes back with an old snapshot, and when Postgres is away: no place is lost, no turn comes twice."""
import http.client
import os
import shutil
import threading
import uuid

import pytest
from wait import stays, wait_until
from waiting import CONCERT, Room, command

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def place(pg_server, own_redis):
    """A queue with a Redis of its own: place(persist=...)."""
    made = []

    def make(pg=None, **kw):
        db = (pg or pg_server).createdb(f"queue_f_{os.getpid()}_{uuid.uuid4().hex[:8]}")
        made.append((Room(db, own_redis(**kw)), db))
        return made[-1][0]
    yield make
    for r, db in made:
        r.close()
        if db.pg.running():
            db.drop()


def dies(r, service, **kw):
    """A request in the middle of which the service dies."""
    with pytest.raises((http.client.HTTPException, OSError)):
        r.ask(api=service.api, **kw)
    assert service.wait() != 0
    service.kill()


def settled(r, n):
    """All n have their turn, each once."""
    wait_until(lambda: len(r.activated()) >= n, 90, f"{n} turns")
    assert len(set(r.activated())) == len(r.activated()) == n
    assert sorted(r.numbers(r.activated())) == sorted(x for (x,) in r.rows("number"))


# ---- killed between the two

def test_killed_between_the_number_and_the_row(place):
    """If we die at queue_numbered, a number is nobody's. The user asks again and has one place; who comes behind him is
    not held up by the gap."""
    r = place()
    first = r.service(start={"fault": "queue_numbered"}, admission={"users": 1, "every": "100ms"})
    user = str(uuid.uuid4())
    dies(r, first, user=user)
    again = r.service(admission={"users": 1, "every": "100ms"})
    assert r.rows() == []
    got = [r.enter(user, api=again.api), r.enter(api=again.api)]
    assert [n for (n,) in r.rows("number")] == [2, 3] and got[0]["position"] == 2
    settled(r, 2)


def test_killed_behind_the_row(place):
    """If we die at service_answered, the row is committed and neither Redis nor the user knows of it: another process
    brings it to Redis, the same request gives the same token, and its turn comes."""
    r = place()
    first = r.service(start={"fault": "service_answered"}, admission={"users": 1, "every": "100ms"})
    user = str(uuid.uuid4())
    dies(r, first, user=user, key="k-1")
    assert len(r.rows()) == 1
    again = r.service(admission={"users": 1, "every": "100ms"})
    answer = r.ask(user, api=again.api, key="k-1")
    assert answer.status == 201 and len(r.events("TokenIssued")) == 1
    r.until(answer.json["token"], "AVAILABLE", api=again.api)
    settled(r, 1)


@pytest.mark.parametrize("point", ["queue_applied", "queue_admitted", "queue_activated"])
def test_killed_while_it_keeps_the_queue(place, point):
    """If we die at queue_applied (Redis knows, todo still says so), queue_admitted (Redis let them in, Postgres does not
    know) or queue_activated (Postgres knows, nobody was told): the next process, or the one beside it, brings it to
    its end. Each turn once; the status says so."""
    r = place()
    plan = {"users": 5, "every": "50ms"}
    first = r.service(wait=False, start={"fault": point}, admission=plan)
    wait_until(lambda: not first.running() or _installed(r), 60, "its schema")
    if first.running():
        r.concert()
    crowd = threading.Thread(target=lambda: [_try(r, first) for _ in range(20)])
    crowd.start()
    assert first.wait() != 0
    crowd.join()
    first.kill()
    again = r.service(admission=plan)
    more = [r.enter(api=again.api) for _ in range(3)]
    n = len(r.rows())
    settled(r, n)
    for g in more:
        r.until(g["token"], "AVAILABLE", api=again.api)
    wait_until(lambda: r.redis.call("ZCARD", "queue:batches") == 0, 30, "no batch that is owed")
    wait_until(lambda: r.db.one("SELECT count(*) FROM queue.todo") == 0, 30, "nothing to do")


def _installed(r):
    return r.db.one("SELECT to_regclass('queue.concert_copy') IS NOT NULL")


def _try(r, service):
    try:
        wait_until(lambda: r.ask(api=service.api).status != 503 or not service.running(), 10)
    except (http.client.HTTPException, OSError):
        pass


def test_killed_in_the_middle_of_a_rebuild(place):
    """If we die at queue_rebuilding, Redis is half built and has no mark: the next process builds it anew, and who waited
    waits at his place."""
    r = place()
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    got = [r.enter() for _ in range(5)]
    r.services[0].kill()
    r.redis.flush()
    half = r.service(wait=False, start={"fault": "queue_rebuilding"}, admission={"users": 1, "every": "1d"})
    assert half.wait() != 0
    half.kill()
    assert r.redis.call("GET", "queue:epoch") is None
    again = r.service(admission={"users": 1, "every": "1d"})
    wait_until(lambda: [r.status(g["token"], again.api)["position"] for g in got] == [1, 2, 3, 4, 5], 30, "their places")
    assert len(r.activated()) == 1 and r.redis.call("ZCARD", f"queue:{CONCERT}:waiting") == 5
    assert r.enter(api=again.api)["position"] == 6 and r.rows("max(number)", "true GROUP BY concert_id, number")[-1] == (7,)


def test_killed_at_any_moment_with_three_processes(place):
    """kill -9 of one of three processes while users come, five times: every number is drawn once, every turn comes once,
    and nobody who was told a place has lost it."""
    r = place()
    plan = {"users": 50, "every": "50ms"}  # more than come, however long five starts take
    procs = [r.service(admission=plan) for _ in range(3)]
    told, ending = [], threading.Event()

    def come(i):
        while not ending.is_set():
            try:
                answer = r.ask(api=procs[i % 3].api)
                if answer.status == 201:
                    told.append(answer.json["token_id"])
            except (http.client.HTTPException, OSError):
                pass
    crowd = [threading.Thread(target=come, args=(i,)) for i in range(6)]
    for t in crowd:
        t.start()
    for n in range(5):
        before = len(told)
        wait_until(lambda: len(told) > before + 10, 60, "some to come")
        procs[n % 3].kill9()
        procs[n % 3] = r.service(admission=plan)
    ending.set()
    for t in crowd:
        t.join()
    settled(r, len(r.rows()))
    assert set(told) <= set(r.activated())


# ---- Redis

def test_redis_is_flushed_while_requests_go_on(place):
    """FLUSHALL, three times, while users come by two processes: the status is answered all the time and never goes back, no
    number is given twice, nobody is let in twice or forgotten."""
    r = place()
    plan = {"users": 3, "every": "50ms"}
    procs = [r.service(admission=plan) for _ in range(2)]
    first = r.enter()
    ending, bad, stats = threading.Event(), [], []

    def come(i):
        while not ending.is_set():
            answer = r.ask(api=procs[i % 2].api)
            stats.append(answer.status)
            if answer.status not in (201, 503) or answer.status == 503 and not answer.headers.get("Retry-After"):
                bad.append(answer)

    def look():
        seen = []
        while not ending.is_set():
            answer = r.api.get("/queue/status", token=first["token"])
            seen.append(answer.status == 200 and answer.json["state"])
        if "AVAILABLE" in seen and "WAITING" in seen[seen.index("AVAILABLE"):] or not all(seen):
            bad.append(seen)
    threads = [threading.Thread(target=come, args=(i,)) for i in range(4)] + [threading.Thread(target=look)]
    for t in threads:
        t.start()
    for _ in range(3):
        n = stats.count(201)
        wait_until(lambda: stats.count(201) > n + 20, 60, "some to come")
        r.redis.flush()
    n = stats.count(201)
    wait_until(lambda: stats.count(201) > n + 20, 60, "some to come")
    ending.set()
    for t in threads:
        t.join()
    assert bad == []
    settled(r, len(r.rows()))
    assert len(r.rows()) >= stats.count(201)
    planned = [a for (a,) in r.rows("active_at")]
    assert planned == sorted(planned)


def test_redis_comes_back_empty(place):
    """kill -9 of Redis, and a new empty one on its address: the places are the same."""
    r = place()
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    got = [r.enter() for _ in range(4)]
    r.redis.kill()
    r.redis.start()
    assert r.enter()["position"] == 5
    wait_until(lambda: [r.status(g["token"])["position"] for g in got] == [1, 2, 3, 4], 30, "their places")
    assert len(r.activated()) == 1  # the period that ran is not filled a second time


def test_redis_is_back_before_anybody_asks(place):
    """Story: a new Redis was filled before anybody had used a session with the old one again. Those sessions were taken for good
    ones, of a Redis that is not ours, and nobody got a place any more, or was told of his turn."""
    r = place()
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    got = r.enter()
    r.redis.kill()
    r.redis.start()
    wait_until(lambda: r.redis.call("GET", "queue:epoch"), 30, "the new Redis to be filled")
    new = r.enter()
    assert new["position"] == 2
    wait_until(lambda: [r.status(g["token"])["position"] for g in (got, new)] == [1, 2], 20, "the view to follow")


def test_redis_comes_back_with_an_old_snapshot(place, tmp_path):
    """What Redis had on its disk is of an hour ago: it is not believed, though it has our mark. No number is given twice."""
    r = place(persist=True)
    r.service(admission={"users": 1, "every": "1d"})
    r.until(r.enter()["token"], "AVAILABLE")
    r.enter()
    r.redis.stop()
    old = tmp_path / "old"
    shutil.copytree(os.path.join(r.redis.dir, "appendonlydir"), old)
    r.redis.start()
    got = [r.enter() for _ in range(3)]
    r.redis.kill()
    shutil.rmtree(os.path.join(r.redis.dir, "appendonlydir"))
    shutil.copytree(old, os.path.join(r.redis.dir, "appendonlydir"))
    r.services[0].sigstop()  # else it is put right before we have seen it
    r.redis.start()
    assert r.redis.call("GET", f"queue:{CONCERT}:number") == "2"
    r.services[0].sigcont()
    assert r.enter()["position"] == 5
    assert [n for (n,) in r.rows("number")] == [1, 2, 3, 4, 5, 6]
    wait_until(lambda: [r.status(g["token"])["position"] for g in got] == [2, 3, 4], 30, "their places")


def test_without_redis(place):
    """Redis stopped: who has a place is told it (from Postgres), who wants a new one gets 503 with Retry-After; the status is
    answered as it was last known for a while, then 503; sagas go on, time goes on. When Redis is back all of it is known."""
    r = place()
    s = r.service(admission={"users": 3, "every": "1d"}, status={"stale": "8s"})
    users = [str(uuid.uuid4()) for _ in range(4)]
    got = [r.enter(u) for u in users]
    for g in got[:3]:
        r.until(g["token"], "AVAILABLE")
    r.redis.stop()
    refused = r.ask()
    assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
    again = r.ask(users[3])
    assert again.status == 200 and again.json["token"] == got[3]["token"]
    assert r.status(got[0]["token"])["state"] == "AVAILABLE"
    saga = str(uuid.uuid4())
    r.handle(command("CompleteToken", saga, token_id=got[0]["token_id"]))
    assert r.answers(saga) == [("do", "done")]
    r.db.query("UPDATE queue.queue_token SET expire_at = now() WHERE token_id = %s", (got[1]["token_id"],))
    wait_until(lambda: r.row(got[1]["token_id"]) == "EXPIRED", 30, "the end of its time")
    late = wait_until(lambda: (a := r.api.get("/queue/status", token=got[3]["token"])).status == 503 and a, 30, "a status too old to tell")
    assert int(late.headers["Retry-After"]) >= 1
    wait_until(lambda: s.get("/readyz")[0] == 503, 30, "readyz to say so")
    assert "redis" in s.get("/readyz")[1] and s.get("/healthz")[0] == 200
    r.redis.start()
    wait_until(lambda: r.api.get("/queue/status", token=got[3]["token"]).status == 200, 30, "the status")
    r.until(got[0]["token"], "COMPLETED")
    r.until(got[1]["token"], "EXPIRED")
    assert [r.state(g["token"]) for g in got[2:]] == ["AVAILABLE", "WAITING"]
    assert r.enter()["position"] == 2
    wait_until(lambda: s.get("/readyz")[0] == 200, 30, "readyz to say so")


def test_a_redis_that_does_not_answer(place):
    """Frozen, not gone: a request waits no longer than redis.timeout, the status waits for nobody."""
    r = place()
    r.service(admission={"users": 1, "every": "1d"}, redis={"timeout": "200ms"}, status={"stale": "1m"})
    got = r.enter()
    r.until(got["token"], "AVAILABLE")
    r.redis.sigstop()
    assert r.ask(timeout=20).status == 503
    assert stays(lambda: r.api.get("/queue/status", token=got["token"], timeout=20).status == 200, 0.5)
    r.redis.sigcont()
    r.enter()


# ---- Postgres

def test_without_postgres(place, own_pg):
    """Postgres stopped: the status is answered, at full speed, facts are dropped and counted once their buffer is full, a
    new place is a 503. When Postgres is back, turns and facts go on."""
    pg = own_pg()
    r = place(pg=pg)
    s = r.service(admission={"users": 1, "every": "200ms"}, facts={"buffer": 100})
    got = [r.enter() for _ in range(3)]
    for g in got:
        r.until(g["token"], "AVAILABLE")
    wait_until(lambda: s.metric("postrider_queue_facts_published_total") > 0, 30, "facts")
    dropped = s.metric("postrider_queue_facts_dropped_total")
    pg.stop("immediate")
    for _ in range(400):
        assert r.state(got[0]["token"]) == "AVAILABLE"
    assert s.metric("postrider_queue_facts_dropped_total") >= dropped + 200
    refused = r.ask()
    assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
    pg.start()
    r.until(r.enter()["token"], "AVAILABLE")
    published = s.metric("postrider_queue_facts_published_total")
    wait_until(lambda: r.state(got[0]["token"]) and s.metric("postrider_queue_facts_published_total") > published, 30, "facts")
    settled(r, 4)
