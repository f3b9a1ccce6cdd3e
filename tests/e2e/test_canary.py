"""tests/e2e/test_canary.py -- handler kind canary: an event through the whole pipe, and what is said when it does not come back."""
import contextlib
import uuid

import pytest
import servers
from outbox import Outbox
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
TOPIC = "outbox.event.canary"
BACK = "postrider_canary_seconds_count"


class Pipe:
    """One outbox and its relay; consumers of kind canary on the same database."""

    def __init__(self, pg, kafka, stack):
        if TOPIC not in kafka.topics():
            kafka.create_topic(TOPIC, 2)
        self.o = stack.enter_context(Outbox(pg, kafka, "canary"))
        self.stack, self.db, self.relay, self.group = stack, self.o.db, self.o.relay, self.o.name
        self.o.start()

    def consumer(self, every="100ms", late="1s", **more):
        c = servers.Consumer(self.db.conninfo, self.o.kafka.bootstrap, self.group, [TOPIC], {"kind": "canary"},
                             {"canary": {"every": every, "late": late}, **more})
        self.stack.callback(c.kill)
        return c.start()

    def written(self):
        return self.db.query("SELECT id::text, aggregateid, payload FROM outbox.event WHERE aggregatetype = 'canary' ORDER BY seq")


@pytest.fixture
def pipe(pg_server, kafka):
    with contextlib.ExitStack() as stack:
        yield Pipe(pg_server, kafka, stack)


def test_there_and_back(pipe):
    """Written, published, handled, measured; what is back is forgotten. All is well."""
    c = pipe.consumer(late="1h").wait_ready()
    wait_until(lambda: c.metric(BACK) >= 20, 60, "twenty that came back")
    m = c.metrics()
    assert m["postrider_canary_missing"] == 0 and m["postrider_canary_age_seconds"] >= 0
    assert 0 < m["postrider_canary_seconds_sum"] < 3600
    wait_until(lambda: c.status()["state"] == "ok", 30, "all to be well")
    assert c.status()["handler"] == "canary"
    assert len({key for _, key, _ in pipe.written()}) > 1
    assert all(p["group"] == pipe.group for _, _, p in pipe.written())
    wait_until(lambda: pipe.db.one("SELECT count(*) FROM canary.bird WHERE told") == 1, 30, "only the newest to be kept")


def test_missing(pipe):
    """The relay stands still: it is said, with the one to look for. It goes on, and all come back."""
    c = pipe.consumer(late="3s").wait_ready()
    wait_until(lambda: c.metric(BACK) >= 1, 60, "one that came back")
    pipe.o.run("pause", check=True)

    def missing():
        told = [p for p in c.status()["problems"] if p["what"] == "canary"]
        return told and min(c.metric("postrider_canary_missing"), c.metric("postrider_canary_age_seconds") - 3) > 0 and \
            (c.status()["state"], told[0])
    state, told = wait_until(missing, 60, "one to be missed")
    assert state == "warn" and "has not come back within 3 s" in told["text"]
    assert any(f"trace {i} " in told["hint"] for i, _, _ in pipe.written()), told
    pipe.o.run("resume", check=True)
    wait_until(lambda: c.metric("postrider_canary_missing") == 0 and c.status()["state"] == "ok", 60, "all to be well again")


def test_members(pipe):
    """Whoever is there, one writes at a time, and none is told twice."""
    members = [pipe.consumer(late="1h") for _ in range(2)]
    for c in members:
        c.wait_ready()
    wait_until(lambda: sum(c.metric(BACK) for c in members) >= 20, 60, "twenty that came back")
    pipe.o.run("pause", "--group", pipe.group, check=True)
    wait_until(lambda: all(c.status()["state"] == "paused" for c in members), 60, "the group to be paused")
    # NaN: of a group that stands still on purpose nothing is known.
    wait_until(lambda: all(c.metric("postrider_canary_age_seconds") != c.metric("postrider_canary_age_seconds") for c in members), 30, "nothing said")
    told = pipe.db.one("SELECT count(*) FROM canary.bird WHERE back_at IS NULL OR NOT told")
    assert sum(c.metric(BACK) for c in members) + told == len(pipe.written())
    near = pipe.db.one("SELECT count(*) FROM (SELECT (payload ->> 'written_at')::timestamptz - lag((payload ->> 'written_at')::timestamptz) "
                       "OVER (ORDER BY (payload ->> 'written_at')::timestamptz) AS gap FROM outbox.event WHERE aggregatetype = 'canary') AS g "
                       "WHERE gap < interval '100 ms'")
    assert near == 0


def test_of_others(pipe):
    """What is no bird of the group's is stepped over, whatever it holds."""
    c = pipe.consumer(late="1h").wait_ready()
    strange = [pipe.o.publish("canary", "k", '{"group": 1}'), pipe.o.publish("canary", "k", "[]", type="Other")]
    theirs = str(uuid.uuid4())
    pipe.db.query("INSERT INTO canary.bird (id, \"group\", written_at) VALUES (%s, 'another', now())", (theirs,))
    pipe.o.publish("canary", "k", "{}", id=theirs)
    wait_until(lambda: pipe.db.one("SELECT count(*) FROM inbox.seen WHERE message_id = ANY (%s::uuid[])", (strange + [theirs],)) == 3, 60, "them to be seen")
    assert pipe.db.one("SELECT back_at IS NULL FROM canary.bird WHERE id = %s", (theirs,))
    assert c.status()["dead_letters"] in (0, None) and c.metric("postrider_parked_events") == 0


def test_needs_a_database(kafka):
    c = servers.Consumer(None, kafka.bootstrap, "c", [TOPIC], {"kind": "canary"}, {"dedupe": "offset"})
    done = servers.Cli("postrider-consumer").run("--check", "-c", c.file)
    assert done.returncode == 78 and 'is required by handler.kind = "canary"' in done.stderr
