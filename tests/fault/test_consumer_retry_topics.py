"""tests/fault/test_consumer_retry_topics.py -- a group without a database is killed, frozen and cut off at every place
between two durable effects: effects of the handler happen at least once, what happens inside Kafka exactly once.

For each FAULT(topics_...) in consumers/ there is a test of that name. The handler's own files say what it did,
read_committed readers what the topics hold.
"""
import collections
import random
import signal
import threading

import pytest
from topics import topics  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(300)

LATER = 9  # a passage in the middle of things


def dies(consumer, point, timeout=60):
    """Starts the consumer so that it dies at the point; proves that it did."""
    consumer.start(fault=point)
    assert consumer.wait(timeout) == -signal.SIGKILL, consumer.log_text()[-3000:]


def load(t, n=300):
    """Events of 20 keys; each of bad0 and bad1 fails for ever, those of late once."""
    t.poison("bad0", "fail 99 never")
    t.poison("bad1", "fail 99 never")
    t.poison("late", "fail 1 busy")
    good = t.send(n)
    bad = [t.event(f"bad{i % 2}") for i in range(6)]
    late = [t.event("late") for _ in range(5)]
    t.flush()
    return good, bad, late


def settled(t, good, bad, late, timeout=90):
    """All of it is where it belongs, once."""
    t.wait_done(good + late, timeout)
    t.wait_dead(len(bad), timeout)
    t.wait_stands(timeout)
    assert t.times_in(t.dead) == collections.Counter(bad), "dead letters are not there exactly once"
    first = t.times_in(t.retry(1))
    # A death may take along that a late one has failed: the next try of it goes well, in its own topic.
    assert first | collections.Counter(late) == collections.Counter(bad + late)
    assert t.times_in(t.retry(2)) == collections.Counter(bad)
    assert not t.done() & set(bad)
    t.check_order(but=("late",))


def killed_under_load(t, point, batch=20):
    everything = load(t)
    c = t.consumer()
    for passage in (1, LATER):
        dies(c, f"{point}:{passage}")
    c.start()
    settled(t, *everything)
    again = len(t.effects()) - len(t.done())
    assert again <= 2 * 2 * batch, f"{again} effects are there again after 2 deaths of 2 lanes"
    return again


def test_topics_handled_before_transaction(topics):  # noqa: F811
    """Story: the handler has done its work and nothing knows. It happens again, with the same id."""
    assert killed_under_load(topics(), "topics_handled_before_transaction") > 0


def test_topics_sent_before_commit(topics):  # noqa: F811
    """Story: retry records, dead letters and offsets are on the broker, and the transaction is open. Nobody ever sees
    them; the next start ends it, and they are sent anew."""
    killed_under_load(topics(), "topics_sent_before_commit")


def test_topics_committed_before_memory(topics):  # noqa: F811
    """Story: the transaction is committed and the consumer dies before it knows: nothing comes again."""
    t = topics()
    assert killed_under_load(t, "topics_committed_before_memory") <= 2 * 20, "what the other lane had under way"


def test_offsets_apart_are_seen(topics):  # noqa: F811
    """Sabotage: retry records are committed before the offsets behind them. A death in between leaves them twice, and
    the check of these tests says so."""
    t = topics(delays=("200ms",), partitions=1)
    t.poison("bad", "fail 99 never")
    t.event("bad")
    t.flush()
    c = t.consumer()
    c.start(fault="topics_sent_before_commit", sabotage="topics_offsets_apart")
    assert c.wait(60) == -signal.SIGKILL, c.log_text()[-3000:]
    c.start()
    t.wait_dead(2)
    assert list(t.times_in(t.retry(1)).values()) == [2]


def test_random_moments(topics):  # noqa: F811
    """Ten SIGKILLs at moments that nobody chose, under load. A ledger that knows ids has every transfer once, and the
    dead letters are those that had to be."""
    t = topics()
    everything = load(t, 600)
    c = t.consumer({"limits": {"crashes": 100}})  # the same record may be at hand at several of these deaths
    rnd = random.Random(7)
    for _ in range(8):
        seen = len(t.effects())
        c.start()
        wait_until(lambda s=seen: len(t.effects()) > s + rnd.randrange(1, 40) or len(t.done()) == 605, 60)
        c.kill()
    c.start()
    settled(t, *everything)
    balance = sum({e["id"]: e["seq"] for e in t.effects()}.values())
    assert balance == sum(seq for i, (_, seq) in t.sent.items() if i not in everything[1])


def test_a_record_that_kills_the_process(topics):  # noqa: F811
    """Story: a record takes the whole process along, each time. What stands beside the offset tells the next start who
    is suspected and how often it was tried: after limits.crashes it is handled as class crash, and the others, before
    and behind it, are handled."""
    t = topics(partitions=1, delays=())
    first = t.send(30)
    t.poison("killer", "kill")
    killer = t.event("killer")
    rest = t.send(30)
    c = t.consumer({"limits": {"crashes": 2, "batch_events": 10}}, park=False)
    deaths = 0
    while deaths < 8:
        c.start()
        wait_until(lambda: not c.running() or set(rest) <= t.done(), 60)
        if c.running():
            break
        deaths += 1
    t.wait_done(first + rest)
    assert t.times_in(t.dead) == {killer: 1}
    assert 2 <= deaths <= 4, f"it died {deaths} times of it"
    again = collections.Counter(e["id"] for e in t.effects())
    assert max(again.values()) <= deaths + 1


def test_restarts_are_no_crashes(topics):  # noqa: F811
    """Story: a message waits in place for a long time while the consumer is restarted again and again, as in a
    deployment. It is tried on, and never taken for a killer."""
    t = topics(partitions=1)
    t.poison("slow", "fail 99 wait")
    slow = t.event("slow")
    t.flush()
    c = t.consumer({"errors": [{"match": "reply:wait", "policy": "retry", "attempts": 1000, "backoff": "100ms"}],
                    "limits": {"crashes": 1}}, park=False)
    for _ in range(5):
        seen = len(t.tries())
        c.start()
        wait_until(lambda s=seen: len(t.tries()) > s, 60)
        assert c.terminate() == 0, c.log_text()[-2000:]
    t.cure("slow")
    c.start()
    t.wait_done([slow])
    assert not t.read(t.dead) and not t.read(t.retry(1))


# ---------------------------------------------------------------- zombies

@pytest.mark.parametrize("where", ["topics_commit", "topics_sent"])
def test_a_zombie_is_refused(topics, where, tmp_path):  # noqa: F811
    """Story: a member stands still with a decided batch, before or after it has sent it to the broker; its session
    ends, another takes over and handles everything. When the first one wakes, its transaction is refused: what failed
    is in the retry topics once."""
    t = topics(partitions=1)
    hold = tmp_path / "hold"
    hold.touch()
    t.poison("bad", "fail 99 never")
    bad = [t.event("bad") for _ in range(3)]
    t.flush()
    zombie = t.member({"kafka": {"properties": ["session.timeout.ms=6000"]}}).start(hold=f"{where}:{hold}")
    wait_until(lambda: (tmp_path / "hold.held").exists(), 60)
    zombie.signal(signal.SIGSTOP)
    other = t.member().start()
    good = t.send(20)
    t.wait_done(good, 60)
    t.wait_dead(3)
    t.wait_stands()
    hold.unlink()
    zombie.signal(signal.SIGCONT)
    more = t.send(20, prefix="m")
    t.wait_done(more)
    t.wait_stands()
    wait_until(lambda: "fenced" in zombie.log_text() or "not known" in zombie.log_text(), 60)
    assert zombie.running() and other.running()
    stays(lambda: t.times_in(t.retry(1)) == collections.Counter(bad), 1, "each failure once in the retry topic")
    assert t.times_in(t.dead) == collections.Counter(bad)


def test_rebalance_storm(topics):  # noqa: F811
    """Story: members come, go and are killed under load. Nothing is lost, and what failed is where it belongs once."""
    t = topics(partitions=4)
    rnd = random.Random(3)
    stop = threading.Event()
    t.poison("bad", "fail 99 never")
    bad, good, most = [], [], [2000]  # what is sent before it is handled must be handled in the end, on any machine

    def stream():
        n = 0
        while not stop.wait(0.02):
            if len(good) > most[0]:
                continue
            n += 1
            good.extend(t.event(f"k{rnd.randrange(40)}") for _ in range(5))
            if n % 10 == 0:
                bad.append(t.event("bad"))
            t.producer.poll(0)
    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    try:
        here = [t.member().start()]
        for turn in range(6):
            before = len(t.done())
            most[0] = before + 2000
            if len(here) < 3 and turn % 2 == 0:
                here.append(t.member().start())
            else:
                c = here.pop(0)
                c.signal(signal.SIGTERM)
            wait_until(lambda b=before: len(t.done()) > b + 100, 60, "work to go on")
    finally:
        stop.set()
        thread.join()
    t.flush()
    t.wait_done(good, 90)
    t.wait_dead(len(bad), 90)
    t.wait_stands(90)
    for n in (1, 2):
        assert t.times_in(t.retry(n)) == collections.Counter(bad)
    assert t.times_in(t.dead) == collections.Counter(bad)


# ---------------------------------------------------------------- the broker

def test_a_broker_restart(topics, own_kafka):  # noqa: F811
    """Story: the broker is killed under load and comes back. The consumer says so, goes on by itself, loses nothing,
    and leaves nothing twice in the topics."""
    kafka = own_kafka()
    t = topics(kafka_=kafka)
    everything = load(t, 400)
    c = t.consumer().start()
    wait_until(lambda: len(t.done()) > 50, 60)
    kafka.kill()
    t.wait_state(c, "error")
    kafka.start()
    settled(t, *everything)
    t.wait_state(c, "ok")


def test_a_cold_start_with_the_broker_away(topics, own_kafka):  # noqa: F811
    """The broker is not there when the consumer starts: it waits, red, and begins when it comes."""
    kafka = own_kafka()
    t = topics(kafka_=kafka)
    ids = t.send(20)
    kafka.stop()
    c = t.consumer().start()
    t.wait_state(c, "error")
    kafka.start()
    t.wait_done(ids, 60)
    t.wait_state(c, "ok")


def test_topics_that_are_deleted(topics):  # noqa: F811
    """Story: somebody cleaned up. Without its topic of dead letters the consumer stands, says which one is missing and
    what to do, and goes on once it is there; the handler is not asked again. A source that is made anew is read from
    its beginning: with the topic, Kafka has forgotten the group's offsets."""
    t = topics(partitions=1, delays=())
    c = t.consumer().start()
    t.wait_done(t.send(20))
    t.kafka.delete_topic(t.dead)
    t.poison("bad", "fail 99 never")
    bad = t.event("bad")
    good = t.send(20, prefix="g")
    answer = t.wait_state(c, "error")
    assert t.dead in answer["sentence"] and "create it again" in answer["hint"]
    t.kafka.create_topic(t.dead, 1)
    t.wait_done(good, 60)
    t.wait_dead(1)
    t.wait_state(c, "ok")
    assert len(t.tries(bad)) == 1
    t.wait_stands()
    t.kafka.delete_topic(t.topic)
    t.wait_state(c, "error")
    t.kafka.create_topic(t.topic, 1)
    t.wait_done(t.send(5, prefix="m"), 90)
    t.wait_state(c, "ok")
