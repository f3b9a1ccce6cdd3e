"""tests/e2e/test_trace.py -- `postrider trace`: one event from its row to the topic, to each group that reads it, to its saga."""
import json
import uuid

import pytest

from inbox import Inbox
from outbox import Outbox, header, unique
from wait import wait_until

SECRET = "do-not-show-4711"


@pytest.fixture
def outbox(pg_server, kafka):
    with Outbox(pg_server, kafka, "tr") as o:
        yield o


def uuid_of(record):
    return header(record, "id").decode()


def trace(o, *args):
    done = o.run("trace", *args, "--json", check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_from_the_row_to_the_group(outbox, pg_server, kafka):
    """Three events of one key, each with its place; then a group handles them, and gives one up."""
    outbox.start()
    kind, topic = outbox.kind(partitions=3)
    ids = [outbox.publish(kind, "42", payload=json.dumps({"secret": SECRET, "n": n})) for n in range(3)]
    records = wait_until(lambda: (lambda r: r if len(r) == 3 else None)(outbox.read(topic, 3)), 60, "the records")
    by_id = {uuid_of(r): r for r in records}
    box = Inbox(pg_server, kafka, partitions=0, word="trin")
    try:
        found = trace(outbox, ids[1], "--also", box.conninfo)
        assert len(found) == 1
        e, record = found[0], by_id[ids[1]]
        assert (e["id"], e["key"], e["topic"], e["held"], e["unknown"]) == (ids[1], "42", topic, None, None)
        assert (e["published"]["partition"], e["published"]["offset"]) == (record.partition, record.offset)
        assert (e["groups"], e["sagas"]) == ([], [])
        c = box.consumer(topics=[topic])
        c.start().wait_ready()
        box.wait_count(3)
        (g,) = trace(outbox, ids[1], "--also", box.conninfo)[0]["groups"]
        assert (g["group"], g["state"], g["database"]) == (box.group, "handled", box.name)
        # What a group gave up on.
        box.db.query("INSERT INTO inbox.dead_letter (\"group\", topic, partition, message_offset, lane_hash, message_id, class, code, reason, "
                     "attempts) VALUES (%s, %s, %s, %s, 0, %s, 'sqlstate', '23505', 'already there', 3)",
                     (box.group, topic, by_id[ids[2]].partition, by_id[ids[2]].offset, ids[2]))
        all_three = trace(outbox, "--key", "42", "--also", box.conninfo)
        assert [x["id"] for x in all_three] == ids  # the oldest first
        assert [x["groups"][0]["state"] for x in all_three] == ["handled", "handled", "dead_letter"]
        assert all_three[2]["groups"][0]["reason"] == "already there"
        done = outbox.run("trace", ids[2], "--also", box.conninfo, check=True)
        assert "postrider dlq show" in done.stdout and "  published " in done.stdout
        assert SECRET not in done.stdout + json.dumps(all_three)
    finally:
        box.close()


def test_what_the_outbox_holds_back(outbox):
    outbox.start()
    kind, _ = outbox.kind(config={"max.message.bytes": "2000"})
    big = outbox.publish(kind, "1", payload=json.dumps({"x": "y" * 5000}))
    behind = outbox.publish(kind, "1")
    outbox.wait_parked(2)
    assert (trace(outbox, big)[0]["held"], trace(outbox, behind)[0]["held"]) == ("parked", "behind")
    later = outbox.one("SELECT outbox.publish_at(clock_timestamp() + interval '1 h', %s, '1', 'T', '{}')::text", (kind,))
    e = trace(outbox, later)[0]
    assert (e["held"], e["published"], e["seq"]) == ("scheduled", None, None)
    nowhere = outbox.publish(unique("trno"), "1")
    wait_until(lambda: outbox.sql("SELECT 1 FROM outbox.waiting"), 60, "the missing topic to be noticed")
    assert trace(outbox, nowhere)[0]["held"] == "waiting"


def test_saga(outbox):
    """By the id of the saga, and from the event that starts it: its header names the saga."""
    saga = outbox.one("SELECT saga.start('pay', '{}')::text")
    event = outbox.one("SELECT id::text FROM outbox.event")
    outbox.sql("INSERT INTO saga.instance (id, name, version, state, started_at, since_at, part) "
               "VALUES (%s, 'pay', 1, 'RUNNING', now(), now(), 't-0')", (saga,))
    for wanted in (saga, event):
        (s,) = trace(outbox, wanted)[0]["sagas"]
        assert (s["id"], s["who"], s["name"], s["version"], s["state"]) == (saga, "engine", "pay", 1, "RUNNING")
    assert f"{saga} pay:1" in outbox.run("trace", event, check=True, env={"COLUMNS": "200"}).stdout


def test_unknown_and_wrong(outbox):
    done = outbox.run("trace", str(uuid.uuid4()))
    assert done.returncode == 4 and "nothing is known of it" in done.stderr
    assert outbox.run("trace", "--key", "nobody").returncode == 4
    assert outbox.run("trace").returncode == 2
    assert outbox.run("trace", "17").returncode == 2
    assert outbox.run("trace", str(uuid.uuid4()), "--key", "1").returncode == 2


def test_rights(outbox):
    """A login that may not look is told what to grant; it is not told that there is no such event."""
    kind, _ = outbox.kind()
    id_ = outbox.publish(kind, "1")
    login = unique("trlogin")
    outbox.sql(f"CREATE ROLE {login} LOGIN IN ROLE outbox_writer")
    try:
        done = outbox.run("trace", id_, "--conninfo", outbox.db.conninfo.replace("user=postgres", f"user={login}"))
        assert done.returncode == 4
        assert "permission denied" in done.stderr and f"TO {login}" in done.stderr and "as far as could be looked" in done.stderr
    finally:
        outbox.sql(f"DROP ROLE {login}")
