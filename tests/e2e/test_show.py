"""tests/e2e/test_show.py -- `postrider show lag, topics, jobs, config`: the numbers are those of the servers."""
import json

import pytest

from inbox import Inbox
from outbox import Outbox, unique
from wait import wait_until


@pytest.fixture
def outbox(pg_server, kafka):
    word = unique("show")
    with Outbox(pg_server, kafka, "sh", config={"route": {"topic": word + ".${aggregatetype}"}}) as o:
        o.word = word
        yield o


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lag_of_the_outbox(outbox, kafka):
    kafka.create_topic(outbox.word + ".k", 1)
    for n in range(3):
        outbox.publish("k", str(n))
    (row,) = lines(outbox.run("show", "lag", "--json"))
    assert (row["what"], row["behind"], row["held_back"]) == ("outbox", 3, 0) and row["lag_seconds"] > 0
    outbox.start()
    wait_until(lambda: lines(outbox.run("show", "lag", "--json"))[0]["behind"] == 0, 60, "all to be published")
    assert outbox.name in outbox.run("show", "lag", check=True).stdout


def test_lag_of_a_group(pg_server, kafka, cli):
    box = Inbox(pg_server, kafka, word="shin")
    try:
        c = box.consumer()
        c.start().wait_ready()
        box.send(30)
        box.flush()
        box.wait_count(30)
        wait_until(lambda: lines(cli("show", "lag", "--json", "-c", c.file))[0]["behind"] == 0, 60, "nothing behind")
        assert c.terminate() == 0
        box.send(5)
        box.flush()
        (row,) = lines(cli("show", "lag", "--json", "-c", c.file))
        assert (row["what"], row["name"], row["behind"], row["lag_seconds"]) == ("group", box.group, 5, None)
        assert lines(cli("show", "jobs", "--json", "-c", c.file)) == []
    finally:
        box.close()


def test_topics(outbox, kafka):
    kafka.create_topic(outbox.word + ".b", 3, {"cleanup.policy": "compact"})
    kafka.create_topic(outbox.word + ".a", 1, {"max.message.bytes": "2000"})
    a, b = lines(outbox.run("show", "topics", "--json"))
    assert a == {"topic": outbox.word + ".a", "partitions": 1, "offsets": 0, "max_message_bytes": 2000, "cleanup_policy": "delete"}
    assert (b["partitions"], b["cleanup_policy"]) == (3, "compact")
    assert outbox.word + ".a" in outbox.run("show", "topics", check=True).stdout


def test_config(outbox, cli):
    done = outbox.run("show", "config", "-o", "http.token=not-to-be-seen-17", "-o", "limits.batch_events=17", check=True)
    assert "17" in [w.strip(";") for line in done.stdout.splitlines() if "batch_events" in line for w in line.split()]
    assert "not-to-be-seen" not in done.stdout + done.stderr
    assert cli("show", "config").returncode == 2
