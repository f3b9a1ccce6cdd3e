"""tests/fault/test_saga_walk.py -- sagas under every failure of theirs, with engine, services and relays killed at every
place between two durable effects. Money and seats balance every time.

One walk is a set of sagas, each with its own script (what the services say to each command) and its own post (what
becomes of each reply). `make check` takes a set in which each pair of these meets; POSTRIDER_SAGAS=n (make torture
SAGAS=n) takes n drawn from the whole product, at each point of death, at more passages, seeded.
"""
import itertools
import os
import random

import pytest
from saga import FINAL, buy, dies, saga_module  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(500)

SAGAS = int(os.environ.get("POSTRIDER_SAGAS", "0"))
SEED = int(os.environ.get("POSTRIDER_SEED", "1"))

DO = ("done", "refuse", "fail:1", "fail", "silent:1", "silent")
LAST = ("done", "fail:1", "silent:1", "refuse:2")  # retriable: it must be done in the end
UNDO = ("done", "fail:1", "fail:3", "refuse:2", "silent:1")
REPLY = ("once", "twice", "late", "reordered", "lost:1", "lost")
LASTING = ("once", "twice", "late", "reordered", "lost:1", "lost:3")  # of what must be answered in the end
FACTORS = {
    "HOLD": DO, "PAYMENT": DO, "TICKET": DO, "NOTE": LAST, "undo HOLD": UNDO, "undo PAYMENT": UNDO, "undo TICKET": UNDO,
    "post HOLD": REPLY, "post PAYMENT": REPLY, "post TICKET": REPLY, "post NOTE": LASTING, "post undo HOLD": LASTING,
    "post undo PAYMENT": LASTING, "post undo TICKET": LASTING,
}


def pairwise(factors, rnd):
    """Rows in which each two values of two factors meet: greedy, the best of some draws."""
    names = list(factors)
    left = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]}
    while left:
        first = rnd.choice(sorted(left))
        rows = [{**{n: rnd.choice(v) for n, v in factors.items()}, **dict(first)} for _ in range(30)]
        best = max(rows, key=lambda r: len(pairs(r) & left))
        left -= pairs(best)
        yield best


def pairs(row):
    return set(itertools.combinations(row.items(), 2))


def case(row):
    """What Scene.begin takes. A step whose failure would hide what comes after it is done as often as not."""
    return {"script": {k: v for k, v in row.items() if not k.startswith("post ")},
            "post": {k[5:]: v for k, v in row.items() if k.startswith("post ")}}


def reaching(row, rnd):
    """Most rows would end at the first step; this one gets to a later one."""
    upto = rnd.choice((0, 1, 2, 3, 3))
    return {**row, **{k: rnd.choice(("done", "fail:1", "silent:1")) for k in ("HOLD", "PAYMENT", "TICKET")[:upto]},
            **{"post " + k: rnd.choice(("once", "twice", "reordered", "lost:1")) for k in ("HOLD", "PAYMENT", "TICKET")[:upto]}}


def cases(number):
    rnd = random.Random(f"{SEED}:{number}")
    rows = ([{n: rnd.choice(v) for n, v in FACTORS.items()} for _ in range(SAGAS)] if SAGAS
            else list(pairwise(FACTORS, rnd)))
    return [case(reaching(r, rnd)) for r in rows] + [{}] * 5


@pytest.fixture
def walk(saga_module):  # noqa: F811
    s = saga_module(definitions={"buy.cfg": buy()})
    if not s.engine.consumer.running():
        s.start()
    yield s
    for p in s.parts:
        for daemon in (p.relay, p.consumer):
            daemon.kill()
            daemon.start()
    s.ready()


def over(s, ids):
    """All end, and balance; and of sagas that begin when all are well again some go the straight way."""
    s.wait_over(ids, 150)
    wait_until(lambda: completes(s), 90, "a saga to be completed")
    s.check()
    assert "COMPENSATED" in s.states(set(ids)).values()


def completes(s):
    last = s.begin(3)
    s.wait_over(last)
    return "COMPLETED" in s.states(set(last)).values()


def die(daemon, *points):
    for point in points:
        daemon.kill()
        dies(daemon, point)
    daemon.start()


def passages(*some):
    """In the long run each alone, and later ones too."""
    return [[f"{x}:{n}"] for x in some for n in (1, 2, 5, 9, 17)] if SAGAS else [[f"{x}:{n}" for x in some for n in (1, 4)]]


def test_nobody_dies(walk):
    """Each pair of failures meets in one saga. On a machine so busy that every step of a first walk runs into its timeout
    all of them go back: they walk again, until both ways were gone."""
    seen = []

    def walked():
        ids = walk.begin(cases(0))
        over(walk, ids)
        seen.extend(walk.states(set(ids)).values())
        return seen.count("COMPLETED") > 2 and seen.count("COMPENSATED") > 2

    wait_until(walked, 300, "both ways to be gone")


@pytest.mark.parametrize("points", passages("saga_walked_before_saved"), ids=" ".join)
def test_saga_walked_before_saved(walk, points):
    """Story: the engine has decided what follows and written nothing of it. The same messages come again, and it decides
    the same."""
    ids = walk.begin(cases(1))
    die(walk.engine.consumer, *points)
    over(walk, ids)


@pytest.mark.parametrize("points", passages("saga_clock_before_commit"), ids=" ".join)
def test_saga_clock_before_commit(walk, points):
    """Story: what was due has fired, and nothing of it is committed. All of it is still due."""
    ids = walk.begin(cases(2))
    die(walk.engine.consumer, *points)
    over(walk, ids)


@pytest.mark.parametrize("points", passages("before_transaction", "committed_before_memory"), ids=" ".join)
def test_engine_around_its_commit(walk, points):
    """Story: instances, commands, and the position are committed and the engine dies before it knows: nothing is decided
    twice."""
    ids = walk.begin(cases(3))
    die(walk.engine.consumer, *points)
    over(walk, ids)


@pytest.mark.parametrize("service", ["money", "seats"])
@pytest.mark.parametrize("points", passages("before_transaction", "committed_before_memory"), ids=" ".join)
def test_service_dies(walk, service, points):
    """Story: a service dies before its transaction, or after it and before it knows. Its effect, the barrier's row and
    the reply are one commit."""
    ids = walk.begin(cases(4))
    die(walk.part[service].consumer, *points)
    over(walk, ids)


@pytest.mark.parametrize("part", ["engine", "money"])
@pytest.mark.parametrize("points", passages("events_before_position", "committed_before_accounting"), ids=" ".join)
def test_relay_dies(walk, part, points):
    """Story: the relay that carries commands, or replies, dies half way: neither is lost."""
    p = walk.engine if part == "engine" else walk.part[part]
    ids = walk.begin(cases(5))
    die(p.relay, *points)
    over(walk, ids)


@pytest.mark.parametrize("points", [["saga_walked_before_saved"], ["committed_before_memory"]] if SAGAS
                         else [["saga_walked_before_saved", "committed_before_memory"]], ids=" ".join)
def test_every_transition(walk, points):
    """One saga at a time, that goes forth and back again: the engine dies at its first transition, of the next saga at the
    second, and so on until one is over before. In the short run the places take turns."""
    engine = walk.engine.consumer
    ids = []
    for n, point in zip(range(1, 30), itertools.cycle(points)):
        engine.kill()
        engine.start(fault=f"{point}:{n}")
        ids += walk.begin([{"script": {"TICKET": "refuse"}}])
        wait_until(lambda: not engine.running() or walk.state(ids[-1]) in FINAL, 60, "a death or an end")
        alive = engine.running()
        engine.kill()
        engine.start()
        if alive:
            break
        walk.wait_over(ids)
    assert n > 6, "start, three answers, and two undone"
    over(walk, ids)


def test_all_at_random(walk):
    """Whoever it is, whenever it is: SIGKILL."""
    rnd = random.Random(SEED)
    ids = walk.begin(cases(6))
    daemons = [d for p in walk.parts for d in (p.relay, p.consumer)]
    for _ in range(40 if SAGAS else 12):
        d = rnd.choice(daemons)
        before = walk.moved()
        wait_until(lambda: walk.moved() > before + rnd.randrange(1, 40) or not walk.alive(ids), 60, "sagas to move")
        d.kill()
        d.start()
    over(walk, ids)
