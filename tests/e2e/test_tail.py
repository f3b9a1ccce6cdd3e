"""tests/e2e/test_tail.py -- `postrider tail`: what is committed and nothing else, with age and key; payloads to those who may."""
import json
import subprocess
import threading

import confluent_kafka
import pytest

import servers
from outbox import Outbox, unique
from wait import wait_until

SECRET = "do-not-show-4711"


@pytest.fixture
def outbox(pg_server, kafka):
    """Its route is its own: the broker has the topics of other tests too."""
    word = unique("tail")
    with Outbox(pg_server, kafka, "tl", config={"route": {"topic": word + ".${aggregatetype}"}}) as o:
        o.a = kafka.create_topic(word + ".a", 3)
        o.b = kafka.create_topic(word + ".b", 1)
        yield o.start()


def tail(o, *args, **kw):
    done = o.run("tail", "--json", "--timeout", "60s", *args, check=True, **kw)
    return [json.loads(line) for line in done.stdout.splitlines()]


def wait_types(o, types, *args):
    return wait_until(lambda: (lambda r: r if {x["type"] for x in r} == types else None)(tail(o, *args)), 60, f"{types}")


def test_newest_of_all_topics(outbox):
    ids = [outbox.publish("ab"[n % 2], str(n), type=f"T{n}", payload=json.dumps({"x": SECRET})) for n in range(8)]
    rows = wait_types(outbox, {f"T{n}" for n in range(8)}, "--limit", "100")
    assert sorted(r["id"] for r in rows) == sorted(ids)
    assert [r["time_ms"] for r in rows] == sorted(r["time_ms"] for r in rows)
    assert all(0 <= r["age_seconds"] < 600 and r["key"] == r["type"][1:] and "payload" not in r for r in rows)
    assert {r["topic"] for r in rows} == {outbox.a, outbox.b}
    assert len(tail(outbox, "--limit", "3")) == 3
    assert {r["topic"] for r in tail(outbox, "--topic", outbox.b)} == {outbox.b}
    done = outbox.run("tail", check=True)
    assert SECRET not in done.stdout and f"{outbox.b} 0:" in done.stdout and " ago  " in done.stdout


def test_committed_only(outbox, kafka):
    p = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": outbox.name + "x"})
    p.init_transactions(60)
    p.begin_transaction()
    p.produce(outbox.b, b"x", key="aborted")
    p.flush(60)
    p.abort_transaction(60)
    outbox.publish("b", "1", type="T")
    assert [r["key"] for r in wait_types(outbox, {"T"})] == ["1"]


def test_a_slow_partition_beside_a_busy_one(kafka, cli):
    """A partition that is written to comes to its end many times before another, with much to read, does once: its newest record
    was missing, and nothing was said."""
    busy, slow = kafka.create_topic(unique("tlb"), 1), kafka.create_topic(unique("tls"), 1)
    p = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})
    for n in range(51):
        p.produce(slow, b"x" * 900000, key=str(n))  # each is an answer of the broker
    assert p.flush(60) == 0
    over = threading.Event()

    def write():
        while not over.is_set():
            p.produce(busy, b"x", key="busy", timestamp=1)  # old: it is not among the newest
            p.flush(20)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            done = cli("tail", "--json", "--brokers", kafka.bootstrap, "--topic", busy, "--topic", slow, "--limit", "20", "--timeout", "60s", check=True)
            assert [json.loads(line)["key"] for line in done.stdout.splitlines()] == [str(n) for n in range(31, 51)]
    finally:
        over.set()
        writer.join()


def test_follow(outbox):
    outbox.publish("a", "first", type="T0")
    wait_types(outbox, {"T0"})
    p = subprocess.Popen([servers.bin_path("postrider"), "tail", "--json", "-f", "-c", outbox.relay.file], stdout=subprocess.PIPE, text=True,
                         env=servers._clean_env())
    try:
        assert json.loads(p.stdout.readline())["key"] == "first"
        outbox.publish("b", "second", type="T1")
        row = json.loads(p.stdout.readline())
        assert (row["key"], row["topic"]) == ("second", outbox.b)
    finally:
        p.terminate()
        p.wait(60)


def test_payload_needs_the_right(outbox):
    outbox.publish("a", "1", type="T", payload=json.dumps({"x": SECRET}))
    wait_types(outbox, {"T"})
    assert tail(outbox, "--payload")[0]["payload"] == {"x": SECRET}
    assert SECRET in outbox.run("tail", "--payload", check=True).stdout
    login = unique("tllogin")
    outbox.sql(f"CREATE ROLE {login} LOGIN IN ROLE outbox_writer")
    try:
        mine = outbox.db.conninfo.replace("user=postgres", f"user={login}")
        done = outbox.run("tail", "--payload", "--conninfo", mine)
        assert done.returncode == 77 and SECRET not in done.stdout + done.stderr
        assert f"GRANT outbox_operator TO {login}" in done.stderr
        assert outbox.run("tail", "--conninfo", mine).returncode == 0
        outbox.sql(f"GRANT outbox_operator TO {login}")
        assert SECRET in outbox.run("tail", "--payload", "--conninfo", mine, check=True).stdout
    finally:
        outbox.sql(f"DROP ROLE {login}")


def test_wrong(outbox, cli, kafka):
    assert outbox.run("tail", "--topic", "no.such.topic.here").returncode == 4
    assert outbox.run("tail", "--group", "nobody").returncode == 4
    assert cli("tail", "--topic", "x").returncode == 2
    assert cli("tail", "--topic", outbox.b, "--payload", "--brokers", kafka.bootstrap).returncode == 2
    assert cli("tail", "--topic", "x", "--brokers", "127.0.0.1:1", "--timeout", "1s").returncode == 69
