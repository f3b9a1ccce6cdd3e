"""tests/e2e/test_partitions.py -- ranges of outbox.event made ahead and dropped behind, while writers write
and readers read. The one promise to an application: no insert ever waits more than 100 ms for it. A busy
machine adds to that; what would be wrong waits as long as somebody reads, or until a lock timeout of a second.

Needs Postgres only.
"""
import contextlib
import threading
import time

import psycopg2
import pytest

from wait import wait_until

INSERT = "INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) VALUES ('order', '1', 'T', '{}')"
LIMIT = 0.4  # seconds that an insert may wait, with what a busy machine adds


class Writer:
    """Inserts one row per transaction as fast as it can and remembers the slowest."""

    def __init__(self, db, sql=INSERT):
        self.conn, self.sql = db.connect(), sql
        self.slowest, self.count, self.error = 0.0, 0, None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            with self.conn.cursor() as cur:
                while not self.stopping.is_set():
                    t0 = time.monotonic()
                    cur.execute(self.sql)
                    self.slowest = max(self.slowest, time.monotonic() - t0)
                    self.count += 1
        except psycopg2.Error as e:
            self.error = e

    def start(self):
        self.thread.start()
        wait_until(lambda: self.count > 20 or self.error, 30, "the writer to write")
        self.slowest = 0.0

    def stop(self):
        before = self.count
        wait_until(lambda: self.count > before + 50 or self.error, 30, "the writer to go on")
        self.stopping.set()
        self.thread.join(30)
        self.conn.close()
        assert self.error is None


class Watch:
    """A writer of the outbox, and one of another table that shares the machine's hiccups with it; and
    the server's own word on who waited for a lock (log_lock_waits after LIMIT)."""

    def __init__(self, db):
        self.db = db
        db.query("CREATE TABLE IF NOT EXISTS elsewhere (i int, t timestamptz DEFAULT clock_timestamp())")
        self.outbox, self.elsewhere = Writer(db), Writer(db, "INSERT INTO elsewhere VALUES (1)")
        self.from_here = 0

    def __enter__(self):
        with open(self.db.pg.log, encoding="utf-8", errors="replace") as f:
            self.from_here = len(f.read())
        self.outbox.start(), self.elsewhere.start()
        return self

    def __exit__(self, *_):
        self.outbox.stop(), self.elsewhere.stop()

    def lock_waits(self):
        with open(self.db.pg.log, encoding="utf-8", errors="replace") as f:
            return [line for line in f.read()[self.from_here:].splitlines() if "still waiting for" in line]

    def check(self):
        assert self.lock_waits() == []
        assert self.outbox.slowest < LIMIT + self.elsewhere.slowest, \
            f"an insert waited {self.outbox.slowest * 1000:.0f} ms, elsewhere {self.elsewhere.slowest * 1000:.0f} ms"


@pytest.fixture
def quick_db(own_pg):
    """A database of which the disk is no part: what is timed here is locks. fsync off keeps another
    test's writes out of the figures."""
    import servers
    pg = own_pg(config={"fsync": "off", "synchronous_commit": "off", "log_lock_waits": "on",
                        "deadlock_timeout": f"{int(LIMIT * 1000)}ms"})
    db = pg.createdb("parts")
    servers.Cli().run("init", "--conninfo", db.conninfo, check=True)
    return db


@contextlib.contextmanager
def reader(db, sql="SELECT count(*) FROM outbox.event"):
    """A transaction that has read the outbox and stays open, as a dump or a report would."""
    with contextlib.closing(db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute(sql)
        cur.fetchall()
        yield c
        c.rollback()


def leaves(db):
    return [tuple(r) for r in db.query("SELECT leaf, from_seq, to_seq FROM outbox.partitions ORDER BY from_seq")]


def make(db, events, ahead):
    """make_partitions as the janitor calls it: again when a lock was not to be had."""
    for _ in range(100):
        try:
            return db.one("SELECT outbox.make_partitions(%s, %s)", (events, ahead))
        except psycopg2.errors.LockNotAvailable:
            continue
    raise AssertionError("make_partitions never got its lock")


def drop(db, leaf, covered=None, low=2**62, keep="0"):
    covered = covered or db.one("SELECT pg_current_snapshot()::text")
    return db.one("SELECT outbox.drop_partition(%s, %s::pg_snapshot, %s, %s::interval)", (leaf, covered, low, keep))


def small(db, events=10, ahead=3):
    """Throws the first ranges away (nothing is in them) and makes small ones."""
    for leaf, _, _ in leaves(db):
        db.query(f"DROP TABLE outbox.{leaf}")
    return make(db, events, ahead)


def fill(db, n):
    db.query(f"{INSERT.split(' VALUES')[0]} SELECT 'order', i::text, 'T', '{{}}' FROM generate_series(1, {n}) AS i")


# ---------------------------------------------------------------- making

def test_first_ranges(db):
    found = leaves(db)
    assert len(found) == 17 and found[0] == ("event_1", 1, 5000001)
    assert all(a[2] == b[1] and b[2] - b[1] == 5000000 for a, b in zip(found, found[1:]))
    assert db.query("SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'outbox.event'::regclass") == [(0,)]


def test_ahead_counts_from_the_sequence(db):
    assert small(db, 10, 3) == 4
    assert make(db, 10, 3) == 0
    fill(db, 10)  # the first range is full: the next seq is in the second
    assert make(db, 10, 3) == 1
    fill(db, 1)
    assert make(db, 10, 3) == 0
    assert make(db, 100, 5) == 2
    assert leaves(db)[-1][1:] == (151, 251)


def test_sequence_past_every_range(db):
    """The janitor was dead for weeks, or a restore set the sequence: the message is Postgres' own, and
    the next call of make_partitions heals it."""
    small(db, 10, 1)
    db.query("SELECT setval('outbox.event_seq', 1000)")
    with pytest.raises(psycopg2.errors.CheckViolation) as e:
        db.query(INSERT)
    assert "no partition of relation" in str(e.value)
    assert make(db, 10, 2) == 3
    db.query(INSERT)


def test_a_leaf_is_like_the_first_one(db):
    small(db)
    fill(db, 25)
    triggers = [("accepted", "O"), ("append_only", "O")]
    for leaf, low, high in leaves(db):
        assert db.query("SELECT tgname, tgenabled FROM pg_trigger "
                        f"WHERE tgrelid = 'outbox.{leaf}'::regclass ORDER BY tgname") == triggers
        assert db.one(f"SELECT count(*) FROM pg_index WHERE indrelid = 'outbox.{leaf}'::regclass AND indisprimary") == 1
        with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState):
            db.query(f"DELETE FROM outbox.{leaf}")
        with pytest.raises(psycopg2.errors.CheckViolation):
            db.query(f"INSERT INTO outbox.{leaf} (seq, aggregatetype, aggregateid, type) VALUES ({high - 1}, 'a b', '1', 'T')")


def test_nonsense_is_refused(db):
    for args in ((0, 1), (1, 0), (1, 10001), (None, 1), (1, None)):
        with pytest.raises(psycopg2.errors.InvalidParameterValue):
            db.query("SELECT outbox.make_partitions(%s, %s)", args)


def test_two_makers_at_once(db):
    small(db, 10, 1)
    with contextlib.closing(db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute("SELECT outbox.make_partitions(10, 20)")
        assert cur.fetchone() == (19,)
        assert db.one("SELECT outbox.make_partitions(10, 20)") == 0
        c.commit()
    assert make(db, 10, 20) == 0
    found = leaves(db)
    assert len(found) == 21 and all(a[2] == b[1] for a, b in zip(found, found[1:]))


def test_a_name_that_is_taken(db):
    """Somebody detached a range by hand and kept the table."""
    small(db, 10, 1)
    db.query("ALTER TABLE outbox.event DETACH PARTITION outbox.event_11")
    assert make(db, 10, 1) == 1
    assert leaves(db)[-1] == ("event_11_", 11, 21)


def test_making_never_stops_writers_nor_readers(quick_db):
    """CREATE TABLE ... PARTITION OF takes ACCESS EXCLUSIVE on the parent: behind one open reader it made
    writers wait 4 s. LIKE + ATTACH needs SHARE UPDATE EXCLUSIVE, which neither of them minds."""
    with reader(quick_db), Watch(quick_db) as w:
        made = 0
        for ahead in range(20, 120, 5):
            made += make(quick_db, 5000000, ahead)
    assert made == 115 - 16
    w.check()


def test_locks_are_tried_for_half_of_what_an_insert_may_wait(db):
    """What the tests of waiting cannot tell on a busy machine."""
    for f in ("make_partitions", "drop_partition"):
        assert db.query("SELECT 'lock_timeout=50ms' = ANY (proconfig) FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace "
                        "AND proname = %s", (f,)) == [(True,)]


def test_the_watch_sees_a_stopped_writer(quick_db):
    """Proof that the two tests of waiting can fail: the statement we do not use, behind a reader."""
    with Watch(quick_db) as w:
        with reader(quick_db), contextlib.closing(quick_db.connect()) as c, c.cursor() as cur:
            cur.execute("SET lock_timeout = '1s'")
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                cur.execute("CREATE TABLE outbox.slow PARTITION OF outbox.event FOR VALUES FROM (900000001) TO (900000002)")
    assert any("RowExclusiveLock" in line for line in w.lock_waits())
    assert w.outbox.slowest > LIMIT


# ---------------------------------------------------------------- dropping

def test_drop_wants_everything_at_once(db):
    small(db, 10, 3)
    fill(db, 25)
    now = db.one("SELECT pg_current_snapshot()::text")
    assert drop(db, "event_1", low=9) is False, "seq 10 may still be owned by a running transaction"
    assert drop(db, "event_1", keep="1 day") is False, "its newest row is younger than keep"
    db.query("INSERT INTO outbox.parked (seq, id, topic, key) VALUES (10, gen_random_uuid(), 't', 'k')")
    assert drop(db, "event_1", low=10) is False, "a parked row is in it"
    db.query("UPDATE outbox.parked SET seq = 11")
    db.query("INSERT INTO outbox.waiting (topic, to_snapshot, from_seq, to_seq, events) VALUES ('t', '1:1:', 3, 30, 9)")
    assert drop(db, "event_1", low=10) is False, "rows in it wait for their topic"
    db.query("UPDATE outbox.waiting SET from_seq = 11")
    assert db.one("SELECT outbox.drop_partition('event_1', NULL, 10, '0')") is False
    assert db.one("SELECT outbox.drop_partition('event_1', %s, NULL, '0')", (now,)) is False
    assert db.one("SELECT outbox.drop_partition('event_1', %s, 10, NULL)", (now,)) is False
    assert drop(db, "event_1", now, low=10) is True
    assert drop(db, "event_1", now, low=10) is False, "it is gone already"
    assert drop(db, "outbox.event_11", now, low=20) is False
    db.query("DELETE FROM outbox.parked"), db.query("DELETE FROM outbox.waiting")
    assert drop(db, "outbox.event_11", now, low=20) is True
    assert [r[0] for r in db.query("SELECT seq FROM outbox.event ORDER BY seq")] == [21, 22, 23, 24, 25]
    assert db.query("SELECT relname FROM pg_class WHERE relname LIKE 'event\\_1%' AND relkind = 'r' "
                    "AND relnamespace = 'outbox'::regnamespace") == []
    assert drop(db, "relay") is False and drop(db, "event") is False, "not ranges"


def test_drop_refuses_rows_the_position_does_not_cover(db):
    """The position may lead retention, never the other way round: a row that the committed position's
    snapshot does not show is owed, however old it is and whatever low says."""
    small(db, 10, 3)
    fill(db, 9)
    covered = db.one("SELECT pg_current_snapshot()::text")
    fill(db, 1)
    assert drop(db, "event_1", covered, low=10) is False
    assert db.one("SELECT count(*) FROM outbox.event") == 10
    assert drop(db, "event_1", low=10) is True


def test_drop_refuses_rows_from_the_future(db):
    """After pg_restore a row may carry an xid that this cluster has not reached: nobody published it."""
    small(db, 10, 3)
    db.query("SET session_replication_role = replica; "
             "INSERT INTO outbox.event (seq, xid, aggregatetype, aggregateid, type) "
             "VALUES (nextval('outbox.event_seq'), '99999999999', 'order', '1', 'T')")
    assert drop(db, "event_1", low=10) is False


def test_an_empty_range_behind_is_dropped(db):
    small(db, 10, 3)
    db.query("SELECT setval('outbox.event_seq', 15)")
    assert drop(db, "event_1", low=15, keep="100 years") is True


def test_drop_waits_for_an_open_writer_of_the_range(db):
    """A transaction that inserted into the range and has not ended: its row is invisible to every
    snapshot. Normally low tells; here low lies."""
    small(db, 10, 3)
    with contextlib.closing(db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute(INSERT)
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            drop(db, "event_1", low=10)
        c.commit()
    assert db.one("SELECT count(*) FROM outbox.event") == 1


def test_drop_behind_a_prepared_transaction(db):
    small(db, 10, 3)
    fill(db, 10)
    with contextlib.closing(db.connect(autocommit=False)) as c, c.cursor() as cur:
        cur.execute(INSERT)
        cur.execute("PREPARE TRANSACTION 'p'")
    with pytest.raises(psycopg2.errors.LockNotAvailable) as e:
        drop(db, "event_1", low=10)
    assert "prepared transaction" in str(e.value)
    db.query("ROLLBACK PREPARED 'p'")
    assert drop(db, "event_1", low=10) is True


def test_drop_needs_read_committed(db):
    with contextlib.closing(db.connect(autocommit=False)) as c:
        c.set_session(isolation_level="REPEATABLE READ")
        with c.cursor() as cur, pytest.raises(psycopg2.errors.ActiveSqlTransaction):
            cur.execute("SELECT outbox.drop_partition('event_1', pg_current_snapshot(), 1, '0')")


@pytest.mark.parametrize("reads", ["SELECT count(*) FROM outbox.event", "SELECT count(*) FROM outbox.event_1"])
def test_dropping_never_stops_writers(quick_db, reads):
    """Behind an open reader the drop is refused, again and again, without a writer noticing; after it
    the drop succeeds within a few tries. The reader of one leaf and the reader of all count alike."""
    db = quick_db
    small(db, 100, 40)
    fill(db, 500)
    covered = db.one("SELECT pg_current_snapshot()::text")
    make(db, 10000000, 41)
    with Watch(db) as w:
        with reader(db, reads):
            # Old enough to be known as one that outlasts the lock timeout.
            wait_until(lambda: db.one("SELECT bool_or(clock_timestamp() - xact_start > interval '60 ms') FROM pg_stat_activity "
                                      "WHERE state = 'idle in transaction'"), 30, "the reader to age")
            for _ in range(20):
                with pytest.raises(psycopg2.errors.LockNotAvailable):
                    drop(db, "event_1", covered, low=500)
        dropped, tries = 0, 0
        for leaf in ("event_1", "event_101", "event_201", "event_301", "event_401"):
            for _ in range(50):
                tries += 1
                try:
                    dropped += drop(db, leaf, covered, low=500)
                    break
                except psycopg2.errors.LockNotAvailable:
                    continue
    assert dropped == 5, f"{tries} tries"
    w.check()


def test_dropping_behind_a_reader_too_young_to_be_known(quick_db):
    """Readers that come and go faster than one can look: the lock is tried for 50 ms, and that is all
    a writer pays."""
    db = quick_db
    small(db, 100, 40)
    fill(db, 100)
    covered = db.one("SELECT pg_current_snapshot()::text")
    make(db, 10000000, 41)
    outcome = []
    with Watch(db) as w:
        for _ in range(10):
            with reader(db):
                try:
                    outcome.append(drop(db, "event_1", covered, low=100))
                except psycopg2.errors.LockNotAvailable:
                    outcome.append(None)
    assert True not in outcome
    w.check()


def test_prepared_statements_survive(db):
    """Plans of the writers and the relay are made anew, not broken, by ranges that come and go."""
    small(db, 10, 3)
    with contextlib.closing(db.connect()) as c, c.cursor() as cur:
        cur.execute("PREPARE put AS " + INSERT)
        cur.execute("PREPARE look AS SELECT count(*) FROM outbox.event WHERE seq > $1")
        for i in range(12):
            cur.execute("EXECUTE put")
            cur.execute("EXECUTE look(0)")
        make(db, 10, 30)
        assert drop(db, "event_1", low=10) is True
        cur.execute("EXECUTE put")
        cur.execute("EXECUTE look(0)")
        assert cur.fetchone() == (3,)
