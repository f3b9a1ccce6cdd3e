"""tests/fault/test_consumer_assignment.py -- how a group shares out its partitions, with a librdkafka newer than
Debian's (make setup fetches it): what moves is claimed by its new owner, what stays is not touched."""
import collections
import json
import random
import re
import threading

import pytest
import servers
from inbox import SET, inbox  # noqa: F401
from topics import topics  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def newer():
    """Environment of a consumer that runs on the newer librdkafka."""
    path = servers.newer_librdkafka()
    if not path:
        pytest.skip("no newer librdkafka: run make setup with PyPI within reach")
    return {"LD_LIBRARY_PATH": path}


def epochs(i):
    return dict(i.db.query('SELECT partition, max(epoch) FROM inbox.position WHERE "group" = %s GROUP BY 1', (i.group,)))


def up(c):
    """Starts a member without a name, which takes any port: it tells which."""
    known = len(re.findall("http_port=", c.log_text())) if c.proc else 0
    c.start()
    c.port = int(wait_until(lambda: re.findall(r"http_port=(\d+)", c.log_text())[known:], 60, "it to tell its port")[0])
    return c


def owned(c):
    return {p["partition"] for p in c.status()["partitions"]}


def settled(members, n):
    """Until the members have n partitions each, claimed."""
    wait_until(lambda: all(len(owned(c)) == n for c in members), 60, f"{n} partitions each", ignore=(OSError,))


@pytest.mark.parametrize("how, is_said", [("auto", "cooperative-sticky"), ("consumer", "consumer")])
def test_what_stays_is_not_touched(inbox, newer, how, is_said):  # noqa: F811
    """Story: a third member came and went, and each time the other two stopped reading, threw away what they had read
    and claimed all of their partitions anew."""
    i = inbox(partitions=6)
    session = {"properties": ["session.timeout.ms=8000"]} if how == "auto" else {}
    config = {"kafka": {"assignment": how, **session}}
    a, b = (up(i.member(SET, config, env=newer)) for _ in range(2))
    with i.stream(rate=500, keys=60):
        settled((a, b), 3)
        assert f"assignment={is_said}" in a.log_text()
        i.flows(100)
        had, before = owned(a) | owned(b), epochs(i)
        c = up(i.member(SET, config, env=newer))
        settled((a, b, c), 2)
        i.flows(200)
        stayed = had - owned(c)
        assert len(stayed) == 4 and {p: epochs(i)[p] for p in stayed} == {p: before[p] for p in stayed}
        assert c.terminate() == 0
        settled((a, b), 3)
        i.flows(200)
        assert {p: epochs(i)[p] for p in stayed} == {p: before[p] for p in stayed}
        up(c)
        settled((a, b, c), 2)
        stayed, before = owned(a) | owned(b), epochs(i)
        c.kill9()
        settled((a, b), 3)
        i.flows(200)
        assert {p: epochs(i)[p] for p in stayed} == {p: before[p] for p in stayed}
    i.check()


def test_a_name_that_was_not_given_back(own_kafka, inbox, newer):  # noqa: F811
    """Story: under KIP-848 a name belongs to who died with it until the end of its session. Its successor was shut out
    for good, and ended. Now it says so, waits, and goes on. The session is longer than a start may take."""
    i = inbox(kafka_=own_kafka(config={"group.consumer.session.timeout.ms": "15000"}), partitions=2)
    c = i.consumer(SET, {"member": "one", "kafka": {"assignment": "consumer"}}, env=newer).start()
    i.send(100)
    i.check()
    c.kill9()
    c.start()
    i.send(100)
    wait_until(lambda: "UNRELEASED_INSTANCE_ID" in c.log_text(), 40, "it to be refused")
    assert i.state(c) not in ("ok", "stopping")
    i.check()
    i.wait_state(c, "ok")


def test_members_that_share_out_in_another_way(inbox, newer):  # noqa: F811
    """Story: half of a group was moved to a newer librdkafka. Kafka does not let them in beside the old ones: the old
    ones go on, the new ones say what is wrong, and are in as soon as the last old one has gone."""
    i = inbox(partitions=2)
    a = i.member(SET).start()
    i.send(50)
    i.check(more=True)
    b = up(i.member(SET, env=newer))
    wait_until(lambda: "Inconsistent group protocol" in b.log_text(), 60, "it to be refused")
    assert not json.loads(b.get("/readyz")[1])["ready"]
    assert "kafka.assignment must be the same" in b.log_text()
    i.send(50)
    i.check(more=True)
    stays(b.running, 1)
    assert a.terminate() == 0
    i.send(50)
    i.check()
    i.wait_state(b, "ok")


@pytest.mark.parametrize("how", ["cooperative-sticky", "consumer"])
def test_check_refuses_what_the_library_has_not(inbox, how):  # noqa: F811
    """Of Debian's own librdkafka; on a newer one there is nothing to refuse."""
    i = inbox(partitions=0)
    c = i.consumer(SET, {"kafka": {"assignment": how}}, topics=["t"])
    done = servers.Cli("postrider-consumer").run("-c", c.file, "--check")
    if done.returncode == 0:
        pytest.skip("this librdkafka has it")
    assert done.returncode == 78 and "kafka.assignment: " in done.stderr and "needs librdkafka 2." in done.stderr
    assert 'leave it at "auto"' in done.stderr


def test_check_on_a_newer_library(inbox, newer):  # noqa: F811
    i = inbox(partitions=0)
    c = i.consumer(SET, {"kafka": {"assignment": "consumer"}}, topics=["t"])
    check = servers.Cli("postrider-consumer")
    assert check.run("-c", c.file, "--check", env=newer).returncode == 0
    done = check.run("-c", c.file, "--check", "-o", "kafka.properties=session.timeout.ms=6000", env=newer)
    assert done.returncode == 78 and "the broker's to set" in done.stderr and "consumer.session.timeout.ms" in done.stderr


# ---------------------------------------------------------------- without a database

def kept(c):
    return {(p["topic"], p["partition"], p["epoch"]) for p in c.status()["partitions"]}


def fenced(c, level):
    """{(topic, partition, epoch)} of what it says it lost under way."""
    found = re.findall(rf"level={level} msg=\"fenced: .* topic=(\S+) partition=(\d+) epoch=(\d+)", c.log_text())
    return {(topic, int(partition), int(epoch)) for topic, partition, epoch in found}


@pytest.mark.parametrize("how", [pytest.param("auto", marks=pytest.mark.tsan), "consumer"])
def test_generations_without_fences(topics, newer, how):  # noqa: F811
    """Story: members came and went, and each time the others threw away what they had under way of the partitions that
    they kept: it was handled again."""
    t = topics(partitions=6)
    rnd = random.Random(5)
    stop, good, bad = threading.Event(), [], []
    t.poison("bad", "fail 99 never")
    config = {"kafka": {"assignment": how}}

    def stream():
        n = 0
        while not stop.wait(0.01):
            n += 1
            good.extend(t.event(f"k{rnd.randrange(60)}") for _ in range(3))
            if n % 10 == 0:
                bad.append(t.event("bad"))
            t.producer.poll(0)
    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    first = up(t.member(config, env=newer))
    try:
        t.wait_done([t.event("begin")])
        for _ in range(4):
            other = up(t.member(config, env=newer))
            wait_until(lambda o=other: "partitions assigned" in o.log_text(), 60)
            seen = len(t.done())
            wait_until(lambda s=seen: len(t.done()) > s + 200, 60, "work to go on")
            wait_until(lambda: len(kept(first)) == 9, 60, "the partitions to be shared")
            assert not kept(first) & fenced(first, "info")
            assert other.terminate() == 0
            seen = len(t.done())
            wait_until(lambda s=seen: len(t.done()) > s + 200, 60, "work to go on")
    finally:
        stop.set()
        thread.join()
    t.flush()
    t.wait_done(good, 60)
    t.wait_dead(len(bad), 60)
    t.wait_stands(60)
    for n in (1, 2):
        assert t.times_in(t.retry(n)) == collections.Counter(bad)
    assert t.times_in(t.dead) == collections.Counter(bad)
    assert not fenced(first, "warn"), "nobody had taken anything from it"
    again = len(t.effects()) - len(t.done())
    assert again <= 8 * 2 * 20, f"{again} effects are there again: more than a batch of each of its two lanes for each rebalance"
