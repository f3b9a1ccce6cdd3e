"""tests/e2e/test_retention.py -- ranges of outbox.event while the relay runs: made ahead, dropped behind, and never at
a writer's or an event's cost. (What the SQL functions do by themselves: test_partitions.py.)
"""
import contextlib
import threading
import time

import psycopg2
import pytest

from outbox import Outbox, by_key, unique
from wait import stays, wait_until

EVENTS = 1000  # the least that retention.partition_events takes
QUICK = {"retention": {"keep": "0s", "partition_events": str(EVENTS), "ahead": 6, "every": "100ms"}}
# What is timed is locks, not the disk.
NO_DISK = {"fsync": "off", "synchronous_commit": "off", "log_lock_waits": "on", "deadlock_timeout": "50ms"}


@pytest.fixture(scope="module")
def quick_pg():
    import servers
    pg = servers.Postgres(config=NO_DISK).start()
    yield pg
    pg.stop("immediate")


@pytest.fixture
def post(quick_pg, kafka):
    """A stopped relay on an outbox with small ranges: the first ones, of five million, are thrown away."""
    with Outbox(quick_pg, kafka, "keep", config=QUICK) as o:
        for leaf, in o.sql("SELECT leaf FROM outbox.partitions"):
            o.sql(f"DROP TABLE outbox.{leaf}")
        assert o.one("SELECT outbox.make_partitions(%s, 6)", (EVENTS,)) == 7
        yield o


def ranges(o):
    return [tuple(r) for r in o.sql("SELECT from_seq, to_seq FROM outbox.partitions ORDER BY from_seq")]


def fill(o, kind, n, keys=10):
    o.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT %s, 'k' || i %% %s, i::text, "
          "'{}' FROM generate_series(1, %s) AS i", (kind, keys, n))


def wait_dropped(o, kind, seq):
    """Until the first range begins at seq or later. The position moves with events only: one more now and
    then takes it past a moment in which somebody's transaction was open."""
    def gone():
        o.publish(kind, "k0")
        return ranges(o)[0][0] >= seq
    wait_until(gone, 60, f"the ranges before {seq} to go", interval=0.05, interval_max=0.3)


def last(o):
    return o.one("SELECT coalesce(pg_sequence_last_value('outbox.event_seq'), 0)")


class Writer(threading.Thread):
    """One row per transaction, some hundreds a second."""

    def __init__(self, o, kind):
        super().__init__()
        self.conn, self.kind = o.db.connect(), kind
        self.count, self.error, self.done = 0, None, threading.Event()

    def run(self):
        try:
            with self.conn.cursor() as cur:
                while not self.done.wait(0.002):
                    cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) "
                                "VALUES (%s, 'k', 'T', '{}')", (self.kind,))
                    self.count += 1
        except psycopg2.Error as e:
            self.error = e

    def __enter__(self):
        self.start()
        wait_until(lambda: self.count > 20 or self.error, 30, "the writer to write")
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join(30)
        self.conn.close()
        assert self.error is None, self.error


@contextlib.contextmanager
def reader(o):
    """A report that has read the outbox and keeps its transaction open."""
    with contextlib.closing(o.db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute("SELECT count(*) FROM outbox.event")
        cur.fetchall()
        yield c
        c.rollback()


def test_made_ahead_and_dropped_behind(post):
    """Ranges are made before the sequence needs them, and dropped when all in them is published and older than
    keep; the metric counts the empty ones."""
    kind, topic = post.kind(3)
    post.start()
    for n in range(1, 11):
        fill(post, kind, 700)
        wait_until(lambda: ranges(post)[-1][1] > last(post) + 6 * EVENTS, 45, "ranges ahead")
    assert len(post.read(topic, 7000)) == 7000
    wait_dropped(post, kind, 6001)
    assert ranges(post)[0][0] <= last(post)
    wait_until(lambda: post.relay.metric("postrider_partitions_ahead") >= 6, 45, "the metric")
    post.wait_state("ok")
    # keep is kept: reloaded to an hour, nothing goes any more.
    post.relay.rewrite({"retention": {"keep": "1h"}})
    post.relay.hup()
    wait_until(lambda: "configuration reloaded" in post.relay.log_text(), 45, "the reload")
    for _ in range(2):  # the round under way may have read the old keep: the second one from here has not
        fill(post, kind, EVENTS)
        wait_until(lambda: ranges(post)[-1][1] > last(post) + 6 * EVENTS, 45, "a round")
    kept = ranges(post)[0]
    sent = last(post)
    fill(post, kind, 3000)
    assert len(post.read(topic, sent + 3000)) == sent + 3000
    made = ranges(post)[-1]
    wait_until(lambda: ranges(post)[-1] >= made and ranges(post)[-1][1] > last(post) + 6 * EVENTS, 45, "a round")
    stays(lambda: ranges(post)[0] == kept, 0.5, "the old range")


def test_what_is_owed_is_never_dropped(post):
    """Parked, waiting and unpublished events keep their range, whatever its age; once they are out it goes."""
    (kind, topic), (aside, _) = post.kind(1), post.kind(1)
    later = unique("later")
    post.start()
    post.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, partition) VALUES (%s, 'p', 'parked', 9)",
             (kind,))
    fill(post, kind, 1500)
    post.publish(later, "w", type="waiting")  # in the second range
    fill(post, kind, 1500)
    post.wait_parked(1)
    wait_until(lambda: post.sql("SELECT topic FROM outbox.waiting"), 45, "one to wait")
    assert len(post.read(topic, 3000)) == 3000
    fill(post, kind, 100)
    assert len(post.read(topic, 3100)) == 3100

    def gone():
        post.publish(aside, "k0")  # as in wait_dropped
        return [r[0] for r in ranges(post)[:3]] == [1, 1001, 3001]
    wait_until(gone, 45, "the range without debts to go", interval=0.05, interval_max=0.3)
    stays(lambda: [r[0] for r in ranges(post)[:3]] == [1, 1001, 3001], 0.5, "the ranges with debts")
    # Unpublished: paused, nothing goes either.
    post.run("pause", check=True)
    post.wait_state("paused")
    fill(post, kind, 1500)
    post.run("parked", "skip", "-t", topic, "-k", "p", "--yes", "--wait", "0s", check=True)
    post.kafka.create_topic("outbox.event." + later)
    stays(lambda: [r[0] for r in ranges(post)[:3]] == [1, 1001, 3001], 0.5, "the ranges while paused")
    post.run("resume", check=True)
    assert by_key(post.read("outbox.event." + later, 1)) == {"w": ["waiting"]}
    assert len(post.read(topic, 4600)) == 4600
    wait_dropped(post, kind, 4001)


def test_relay_away_for_long(post):
    """The relay is down for days: writers go on into the ranges made ahead, through the last of them; back again
    it makes new ones, publishes all, and drops."""
    kind, topic = post.kind(1)
    post.start()
    post.publish(kind, "k0")
    post.read(topic, 1)
    post.stop()
    made = ranges(post)
    for _ in range(6):
        fill(post, kind, EVENTS)
    assert last(post) == 6001 and ranges(post) == made
    post.start()
    wait_until(lambda: ranges(post)[-1][1] > last(post) + 6 * EVENTS, 45, "ranges ahead")
    assert len(post.read(topic, 6001, 60)) == 6001
    wait_dropped(post, kind, 6001)


def test_warned_long_before_the_last(post):
    """Somebody holds a lock for hours that keeps the relay from making ranges. It must say so while there are
    still some, with what to do; and be well again by itself."""
    kind, topic = post.kind(1)
    post.start()
    wait_until(lambda: post.relay.metric("postrider_partitions_ahead") >= 6, 45, "the ranges")
    post.wait_state("ok")
    with contextlib.closing(post.db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute("LOCK TABLE outbox.event IN SHARE UPDATE EXCLUSIVE MODE")
        fill(post, kind, 3 * EVENTS + 100)
        answer = post.wait_state("warn")
        assert answer["checks"]["ranges"] != "ok" and "empty ranges" in answer["sentence"]
        assert f"outbox.make_partitions({EVENTS}" in answer["hint"]
        assert 0 < post.relay.metric("postrider_partitions_ahead") < 4
        fill(post, kind, 500)  # writers do not notice
        assert len(post.read(topic, 3600)) == 3600
        c.rollback()
    post.wait_state("ok")
    wait_until(lambda: post.relay.metric("postrider_partitions_ahead") >= 6, 45, "the metric")


def test_no_writer_waits(post):
    """A report reads the outbox for minutes, while ranges fall due to be made and dropped every 100 ms: no insert
    waits longer than 100 ms for the relay, on a machine that has time for both. Postgres' own log says who waited;
    the report stays until the writer has gone on: who waits for it waits for ever."""
    kind, topic = post.kind(1)
    post.start()
    with open(post.pg.log, encoding="utf-8", errors="replace") as f:
        f.seek(0, 2)
        with Writer(post, kind) as w:
            for _ in range(2):
                with reader(post):
                    first = ranges(post)[0][0]
                    fill(post, kind, 1200)
                    start = w.count
                    wait_until(lambda: w.count > start + 100 or w.error, 45, "the writer to go on")
                    wait_until(lambda: ranges(post)[-1][1] > last(post) + 5 * EVENTS, 45, "ranges ahead")
                    assert ranges(post)[0][0] == first
                # The reader has left: now they are dropped, under the writer's hands.
                wait_until(lambda: ranges(post)[0][0] > first, 45, "old ranges to go")
        # log_lock_waits names every wait that is longer than deadlock_timeout.
        waited = [x for x in f if "still waiting for" in x or "acquired" in x and "after" in x]
    mine = [x for x in waited if "postrider" not in x]
    late = [x for x in mine if float(x.split(" after ")[1].split(" ms")[0]) > 1500]  # whoever has the lock may not have the processor
    assert not late, late
    assert ranges(post)[0][0] > 1  # something was dropped


def test_retention_every(quick_pg, kafka):
    """retention.every under a second: the thread's own rhythm was a second, whatever the file said."""
    with Outbox(quick_pg, kafka, "every", config={"retention": {"every": "100ms"}}) as o:
        o.sql(f"ALTER DATABASE \"{o.db.name}\" SET track_functions = 'pl'")
        o.start()

        def calls():
            return o.one("SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = 'make_partitions'")
        wait_until(calls, 45, "the first round")
        seen = []

        def often():
            now, count = time.monotonic(), calls()
            seen.append((now, count))
            return any(count - n >= 20 and now - then < 10 for then, n in seen)
        wait_until(often, 150, "20 rounds in less than 10 s")
