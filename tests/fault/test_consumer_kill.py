"""tests/fault/test_consumer_kill.py -- the consumer is killed at every place between two durable effects.

For each FAULT(name) in consumers/ there is a test of that name: the consumer dies there by SIGKILL at its first
passage and again in the middle of the load, is started again, and the handlers' own table says what came of it.
"""
import collections
import random
import signal

import pytest
import servers
from inbox import ROW, SET, c_handler, exec_effects, exec_handler, inbox  # noqa: F401
from outbox import header, read_topic
from wait import wait_until

pytestmark = pytest.mark.timeout(240)

LATER = 7  # a passage in the middle of things


def dies(consumer, point, timeout=60):
    """Starts the consumer so that it dies at the point; proves that it did."""
    consumer.start(fault=point)
    assert consumer.wait(timeout) == -signal.SIGKILL, consumer.log_text()[-3000:]


def killed_under_load(i, consumer, point):
    i.send(600)
    for passage in (1, LATER):
        dies(consumer, f"{point}:{passage}")
    consumer.start()
    i.send(200)
    i.check()


# ---------------------------------------------------------------- effects inside

@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_before_transaction(inbox, handler):  # noqa: F811
    """Story: a batch is put together and nothing of it was sent. It comes again, whole."""
    i = inbox()
    killed_under_load(i, i.consumer(handler), "before_transaction")


@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_committed_before_memory(inbox, handler):  # noqa: F811
    """Story: effects, ids and positions are committed and the consumer dies before it knows. The next one must
    believe the database, not Kafka, which was not told."""
    i = inbox()
    killed_under_load(i, i.consumer(handler), "committed_before_memory")


def test_committed_before_memory_is_where_it_says(inbox):  # noqa: F811
    """One batch is committed when the consumer is dead, and comes no more."""
    i = inbox(partitions=1)
    i.send(10, keys=1)
    c = i.consumer(config={"lanes": 1})
    dies(c, "committed_before_memory")
    assert 0 < i.count() <= 10
    done = i.count()
    assert i.one("SELECT next_offset FROM inbox.position WHERE \"group\" = %s", (i.group,)) == done
    c.start()
    i.check()
    c.wait_ready()
    assert c.metric("postrider_inbox_duplicates_total") == 0, "its effects are not even tried again"


def test_offset_mode(inbox):  # noqa: F811
    """The same without ids: the position alone must do."""
    i = inbox()
    i.send(600)
    c = i.consumer(config={"dedupe": "offset"})
    for point in ("before_transaction:3", "committed_before_memory:2", "committed_before_memory:5"):
        dies(c, point)
    c.start()
    i.check()
    assert i.one("SELECT count(*) FROM inbox.seen") == 0


def test_random_moments(inbox):  # noqa: F811
    """Ten SIGKILLs at moments that nobody chose."""
    i = inbox()
    c = i.consumer()
    rnd = random.Random(4)
    with i.stream(rate=400):  # a busy machine takes a minute for the ten, and what has come meanwhile is to be done behind them
        for _ in range(10):
            c.start()
            i.flows(rnd.randrange(1, 60))
            c.kill()
    c.start()
    i.check()


def test_handled_before_commit(inbox):  # noqa: F811
    """Story: a C handler has done its work on the lane's connection and nothing is committed: all of it ends
    with the connection."""
    i = inbox()
    killed_under_load(i, i.consumer(c_handler()), "handled_before_commit")


# ---------------------------------------------------------------- effects outside

def outside(i, directory, deaths, batch):
    """Each effect at least once; again only what was under way at a death; in order per key but for that."""
    i.stands()
    effects = exec_effects(directory)
    times = collections.Counter(e[0] for e in effects)
    assert set(times) == set(i.sent), f"{len(set(i.sent) - set(times))} lost"
    again = sum(times.values()) - len(times)
    assert again <= deaths * batch, f"{again} effects are there again after {deaths} deaths"
    last = {}
    for _, key, seq in effects:
        assert seq <= last.get(key, 0) + 1, f"{key}: {seq} after {last.get(key, 0)}"
        last[key] = max(seq, last.get(key, 0))
    return again


def test_handled_before_recorded(inbox):  # noqa: F811
    """Story: a subprocess has had its effects and nothing knows. They happen again, with the same message id, and
    nothing else does."""
    i = inbox()
    directory = servers.new_dir("effects")
    c = i.consumer(exec_handler(directory))
    i.send(300)
    for passage in (1, LATER):
        dies(c, f"handled_before_recorded:{passage}")
    c.start()
    i.send(100)
    assert outside(i, directory, deaths=2, batch=2 * 20) > 0, "the point is where it says"
    assert i.one("SELECT count(*) FROM inbox.seen") == 400


def test_committed_before_memory_outside(inbox):  # noqa: F811
    """The point behind the record: nothing happens again but what was with the other lane."""
    i = inbox()
    directory = servers.new_dir("effects")
    c = i.consumer(exec_handler(directory), {"lanes": 1})
    i.send(300)
    for passage in (1, 3):
        dies(c, f"committed_before_memory:{passage}")
    c.start()
    assert outside(i, directory, deaths=2, batch=20) == 0


# ---------------------------------------------------------------- dead letters

def test_dead_letter_published_before_row(inbox, kafka):  # noqa: F811
    """Story: a dead letter is on its topic and the row does not say so. It may come there twice, in the table it
    is there once, and nothing is applied."""
    i = inbox()
    dlt = kafka.create_topic(i.topic + ".dlt")
    i.poison("bad", "P0001")
    bad = [i.event("bad") for _ in range(3)]
    i.send(100)
    c = i.consumer(config={"dead_letter": {"topic": dlt}})
    dies(c, "dead_letter_published_before_row")
    c.start()
    wait_until(lambda: i.one("SELECT count(*) FROM inbox.dead_letter WHERE published_at IS NOT NULL") == 3, 60,
               "all to be published")
    i.check(without=bad)
    ids = collections.Counter(header(r, "id").decode() for r in read_topic(kafka, dlt, 3))
    assert set(ids) == set(bad) and max(ids.values()) == 2, ids
    assert sorted(r[0] for r in i.dead()) == sorted(bad)
