"""tests/fault/test_schedules.py -- the schedules that lose, repeat or reorder rows in other relays.

Each is driven step by step by sessions of their own; what is committed in outbox.event is
the truth that the topic is compared with. Those that a sabotaged relay fails are in
tests/support/schedules.py, for test_sabotage.py plays them too.
"""
import os
import random
import re
import subprocess

import psycopg2
import psycopg2.errors
import pytest

import checker
import schedules
import servers
from schedules import MODES, quiet_pg, stage  # noqa: F401 (fixtures)
from wait import stays, wait_until


def passed(result):
    assert result.ok, result.report()


# ---------------------------------------------------------------- rows that come late

@pytest.mark.parametrize("delivery", MODES)
def test_late_commit_with_an_early_seq(stage, delivery):  # noqa: F811
    """A draws seq 1 and thinks. B draws seq 2, commits and is published. A relay that remembers
    "published through 2" never sees A's row when A commits at last."""
    passed(schedules.late_commit(stage(delivery)))


@pytest.mark.asan
def test_late_commit_after_many_others(stage):  # noqa: F811
    """The late rows lie far below the bound, between rows that are long published: exactly they are
    found, in the order of their seqs, and the relay's restart in between forgets nobody."""
    st = stage().start()
    late = [st.session() for _ in range(5)]
    for i in range(40):
        if i % 8 == 0:
            late[i // 8].publish(f"late-{i // 8}", 3)
        st.publish(f"prompt-{i}", 5)
    st.marker()
    late[3].commit()
    late[1].commit()
    st.wait_keys("late-3", "late-1")
    st.restart()
    for i in (4, 0):
        late[i].commit()
    late[2].rollback()
    st.finish()
    assert st.keys().count("late-0") == 3 and "late-2" not in st.keys()


def test_open_writer_above_xmax(stage):  # noqa: F811
    """The snapshot's xmax is the latest *completed* xid + 1: a writer with the newest xid of all lies at
    or above it and is not listed as running, and yet its seq may be below the relay's bound. A relay
    that asks only the listed ones whether they have ended loses its row."""
    passed(schedules.played(schedules.newest_writer, stage))


def test_commit_between_bound_and_snapshot(stage):  # noqa: F811
    """A transaction is begun and committed between the relay's reads of the bound and of the snapshot. Read
    in the other order, its seq is below the bound, it is not in the snapshot, and nobody of then can be
    its owner: it is lost."""
    passed(schedules.commit_between_reads(stage()))


def test_open_across_a_turn_of_reads(stage):  # noqa: F811
    """The same gap, with writers that are in every stage of their life when the turn reads: one commits in
    it, one begins in it, one draws its second seq in it, one rolls back in it."""
    st = stage().start(hold="bounds")
    ends, goes_on, gives_up = (st.session().publish(k) for k in ("ends", "goes-on", "gives-up"))
    with st.held():
        begins = st.session().publish("begins")
        ends.commit()
        goes_on.publish("goes-on")
        gives_up.rollback()
    st.turn()
    with st.held():
        goes_on.commit()
        begins.publish("begins").commit()
    st.finish()
    assert sorted(st.keys()) == ["begins", "begins", "ends", "goes-on", "goes-on"]


def test_prepared_transaction_committed_late(stage):  # noqa: F811
    """A prepared transaction has no session and may outlive the relay: still its rows are late, not lost."""
    st = stage().start()
    s = st.session().publish("prepared", 3)
    s.run(f"PREPARE TRANSACTION '{st.name}'")
    s.commit()
    st.publish("meanwhile")
    st.wait_keys("meanwhile")
    st.restart()
    st.marker()
    assert "prepared" not in st.keys()
    st.ask(f"COMMIT PREPARED '{st.name}'")
    st.finish()
    assert st.keys().count("prepared") == 3


def test_five_hundred_open_transactions(stage):  # noqa: F811
    """500 transactions with xids are open at once, each with an early seq, and end in any order, some by
    rollback, across a restart whose position lists them all."""
    st = stage().start()
    s = st.session()
    for i in range(500):
        s.publish(f"open-{i}")
        s.run(f"PREPARE TRANSACTION '{st.name}-{i}'")
        s.commit()
    st.publish("meanwhile")
    st.wait_keys("meanwhile")
    order = random.Random(7).sample(range(500), 500)
    for n, i in enumerate(order):
        st.ask(f"{'ROLLBACK' if i % 10 == 0 else 'COMMIT'} PREPARED '{st.name}-{i}'")
        if n == 250:
            st.marker()
            assert 200 < len(st.keys()) < 260
            st.restart()
    st.finish()
    assert len(st.keys()) == 451


# ---------------------------------------------------------------- the sequence

def test_unused_sequence(stage):  # noqa: F811
    """SELECT last_value says 1 of a sequence that nobody has used: a relay started on an empty outbox would
    take seq 1 for seen."""
    st = stage().start()
    st.turn()
    first = st.session().publish("first")
    st.turn()
    first.commit()
    st.finish()
    assert st.keys() == ["first"]


DRAW = "DO $$ BEGIN FOR i IN 1 .. 1000000000 LOOP PERFORM nextval('outbox.event_seq'); END LOOP; END $$"
COMPARE = """DO $$ DECLARE l bigint; v bigint; BEGIN FOR i IN 1 .. 200000 LOOP
	l := (%s);
	v := nextval('outbox.event_seq');
	ASSERT l < v, format('the bound %%s was read before %%s was drawn', l, v);
END LOOP; END $$"""


def test_bound_is_never_ahead_of_nextval(stage):  # noqa: F811
    """nextval logs 32 values ahead: for a moment the sequence's row itself says so, and SELECT last_value
    sees a bound above seqs that are still to be drawn (here some 3 times in 100,000 reads). The relay's
    own statement, run against sessions that draw as fast as they can, is never ahead of a value drawn
    after it."""
    st = stage()
    with open(os.path.join(servers.ROOT, "db/queries/turn_bound.sql"), encoding="utf-8") as f:
        bound = f.read()
    workers = [subprocess.Popen([os.path.join(st.db.pg.bindir, "psql"), "-Xqc", DRAW, st.db.conninfo],
                                stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        wait_until(lambda: st.ask(bound)[0][0] > 1000, 60, "somebody to draw")
        st.ask(COMPARE % bound)
    finally:
        st.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s", (DRAW,))
        for w in workers:
            w.wait(60)


def test_first_values_of_the_sequence(stage):  # noqa: F811
    """The first nextval of all logs 33 values at once. The relay looks while transactions hold the first
    seqs open, one by one, and ends up with all of them and with a bound that is no higher than they."""
    st = stage().start()
    writers = []
    for i in range(40):
        writers.append(st.session().publish(f"w{i}"))
        if i % 8 == 0:
            st.turn()
    random.Random(3).shuffle(writers)
    for i, w in enumerate(writers):
        w.commit()
        if i == 20:
            st.turn()
    st.marker()
    st.turn()
    drawn = st.ask("SELECT last_value FROM outbox.event_seq")[0][0]
    position = st.position()
    assert int(position["from"]["l"]) <= drawn == int(position["top"])
    st.finish()
    assert len(st.keys()) == 40


def test_seq_drawn_before_the_xid(stage):  # noqa: F811
    """INSERT (seq, ...) VALUES (DEFAULT, ...), ... by the owner evaluates seq's default before xid's. If it
    drew a seq without having an xid, the statement would stand here with a seq below the bound and an xid
    above N once it goes on. The default of seq takes the xid first."""
    st = stage().start()
    st.publish("before")
    gate = st.session()
    gate.run("SELECT pg_advisory_lock(42)")
    sql = (f"INSERT INTO outbox.event (seq, aggregatetype, aggregateid, type, payload) VALUES "
           f"(DEFAULT, '{st.kind}', 'odd-1', 'T', (SELECT to_jsonb(pg_advisory_lock_shared(42) IS NULL))), "
           f"(DEFAULT, '{st.kind}', 'odd-2', 'T', NULL)")
    writer = subprocess.Popen([os.path.join(st.db.pg.bindir, "psql"), "-Xqc", sql, st.db.conninfo])
    try:
        wait_until(lambda: st.ask("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"), 60,
                   "the writer to stand between its seq and its row")
        assert st.ask("SELECT last_value FROM outbox.event_seq") == [(2,)], "the seq is not drawn yet: the schedule is void"
        st.publish("meanwhile")
        st.wait_keys("meanwhile")
        st.turn()
    finally:
        gate.run("SELECT pg_advisory_unlock(42)")
        gate.commit()
        assert writer.wait(60) == 0
    st.finish()
    assert set(st.keys()) == {"before", "meanwhile", "odd-1", "odd-2"}


# ---------------------------------------------------------------- transaction ids from elsewhere

def insert_foreign(st, xid, *keys):
    """Rows as a restore brings them, in one transaction."""
    st.ask("SET session_replication_role = replica; INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type) SELECT %s::text::xid8, %s, k, 'Old' "
           "FROM unnest(%s) AS k", (str(xid), st.kind, list(keys)))
    st.ask("RESET session_replication_role")


def test_xid_of_the_future(stage):  # noqa: F811
    """After pg_restore, rows carry the old server's xids, which this server has not assigned yet. They are
    visible and yet in no snapshot: a relay would publish them at every turn, or never and say nothing.
    They are named, never published, and hold nobody up."""
    st = stage().start()
    st.publish("before")
    st.wait_keys("before")
    insert_foreign(st, 10 ** 12, "future-1", "future-2", "future-3")
    seq = st.ask("SELECT min(seq) FROM outbox.event WHERE aggregateid LIKE 'future%'")[0][0]
    for again in (False, True):
        if again:
            st.restart()
        st.publish("after", 2)
        st.marker()
        wait_until(lambda: st.relay.metric("postrider_foreign_xid_events") == 3, 60, "the rows to be counted")
        _, body = st.relay.get("/readyz")
        assert "3 events" in body and f"seq {seq} " in body and "adopt" in body, body
    stays(lambda: st.relay.metric("postrider_foreign_xid_events") == 3, 0.3, "the count, turn after turn")
    st.finish()
    assert st.keys() == ["before"] + ["after"] * 4


def is_counted(st, n, what="the rows to be counted"):
    wait_until(lambda: st.relay.metric("postrider_foreign_xid_events") == n, 60, what, ignore=(OSError,))
    stays(lambda: st.relay.metric("postrider_foreign_xid_events") == n, 0.3, "the count")


def test_xid_of_the_future_beside_what_is_held_back(stage):  # noqa: F811
    """An event that waits for its topic makes the lag grow for days. A relay that begins anew meanwhile looks for the foreign
    rows below its position all the same, and the first one counts each once: met by the reader, or below it."""
    st = stage().start()
    insert_foreign(st, 10 ** 12, "future")
    st.ask("SELECT outbox.publish('nowhere', 'k', 'T', '{}')")
    st.marker()
    wait_until(lambda: st.relay.metric("postrider_waiting_events") == 1, 60, "the event to wait")
    wait_until(lambda: st.relay.metric("postrider_lag_seconds") > 1, 60, "the lag to grow")
    is_counted(st, 1)
    st.restart()
    is_counted(st, 1, "the row to be counted again")


def test_xid_of_the_future_at_the_position(stage):  # noqa: F811
    """The last row below the position is as foreign as any: neither side of the bound leaves it out."""
    st = stage().start()
    st.ask("SET session_replication_role = replica; INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type) "
           "VALUES (pg_current_xact_id(), %s, 'last', 'New'), ('1000000000000', %s, 'future', 'Old')", (st.kind, st.kind))
    st.ask("RESET session_replication_role")
    st.wait_keys("last")
    is_counted(st, 1)
    assert st.relay.terminate() == 0
    st.start()
    is_counted(st, 1, "the row to be counted again")


def test_xid_of_the_future_when_the_look_is_broken_off(stage):  # noqa: F811
    """A look that failed is taken again: a range that was not looked through is not a clean one."""
    st = stage().start()
    insert_foreign(st, 10 ** 12, "future")
    st.marker()
    is_counted(st, 1)
    assert st.relay.terminate() == 0
    looks = "SELECT pid, query_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"
    pattern = ("%transaction id this server has not assigned%",)
    with open(st.gate, "w", encoding="ascii"):
        st.start(hold="foreign_look")
    wait_until(lambda: os.path.exists(st.gate + ".held"), 60, "the look to stand at its hold point")
    locker = st.session()
    locker.run("LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE")
    os.unlink(st.gate)
    look = wait_until(lambda: st.ask(looks, pattern), 60, "the look to wait for the lock")
    assert st.ask("SELECT pg_cancel_backend(%s)", (look[0][0],)) == [(True,)]
    wait_until(lambda: st.ask(looks, pattern) != look, 60, "the look to be broken off")
    locker.rollback()
    is_counted(st, 1)


@pytest.mark.asan
def test_xid_of_the_future_before_the_first_start(stage):  # noqa: F811
    """The usual way after a restore: the rows are there before the relay is."""
    st = stage()
    st.publish("before")
    insert_foreign(st, 10 ** 12, *(f"future-{i}" for i in range(2500)))
    st.publish("after")
    st.start()
    st.marker()
    wait_until(lambda: st.relay.metric("postrider_foreign_xid_events") == 2500, 60, "the rows to be counted")
    st.finish()
    assert st.keys() == ["before", "after"]


def test_xid_of_the_past(stage):  # noqa: F811
    """The other half of a restore: xids that this server has long passed. Every snapshot of ours claims to
    have seen these rows; they are published once, also across restarts."""
    st = stage().start()
    st.publish("before", 3)
    st.marker()
    st.calm()
    insert_foreign(st, 3, "past-1", "past-2")
    st.wait_keys("past-1", "past-2")
    st.restart()
    st.calm()
    insert_foreign(st, 4, "past-3")
    st.marker()
    st.restart()
    st.finish()
    assert [k for k in st.keys() if k != "before"] == ["past-1", "past-2", "past-3"]


def test_xid_of_the_past_in_an_open_transaction(stage):  # noqa: F811
    """The table's owner writes a row with an xid that has long passed, in a transaction that stays open over
    some turns of the relay. Every snapshot claims to have seen the row before it is there: it was neither
    published nor named. So it is refused, and a row without the column comes as it should."""
    st = stage().start()
    st.publish("before")
    st.wait_keys("before")
    owner = st.session()
    for xid in (3, 10 ** 12):
        with pytest.raises(psycopg2.errors.CheckViolation) as e:
            owner.run("INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type) "
                      f"VALUES ('{xid}', '{st.kind}', 'odd', 'Old')")
        assert str(xid) in e.value.diag.message_primary and e.value.diag.column_name == "xid"
        assert "session_replication_role" in e.value.diag.message_hint and "adopt" in e.value.diag.message_hint
        owner.run("ROLLBACK")
    owner.publish("late")
    st.publish("meanwhile")
    st.wait_keys("meanwhile")
    owner.commit()
    st.wait_keys("late")
    st.finish()
    assert sorted(st.keys()) == ["before", "late", "meanwhile"]


# ---------------------------------------------------------------- xmin, savepoints

def test_xmin_held_by_others(stage, quiet_pg):  # noqa: F811
    """Transactions that have nothing to do with the outbox stay open: one in our database, one in another,
    one prepared, one that only reads. A relay that publishes what is below the oldest of them stands
    still; this one does not notice."""
    other = quiet_pg.createdb(f"unrelated-{os.getpid()}")
    conns = [other.connect(autocommit=False)]
    try:
        st = stage()
        conns += [st.db.connect(autocommit=False) for _ in range(2)]
        for c in conns[:2]:
            c.cursor().execute("CREATE TABLE unrelated (i int)")
        conns[2].set_session(isolation_level="REPEATABLE READ")
        conns[2].cursor().execute("SELECT count(*) FROM outbox.event")
        st.start()
        for i in range(10):
            st.publish(f"flows-{i}")
            st.wait_keys(f"flows-{i}")
        assert all(c.status == 2 for c in conns), "the open transactions were not open"
        st.restart()
        st.finish()
    finally:
        for c in conns:
            c.close()
        other.drop()


@pytest.mark.asan
def test_savepoints_and_subtransactions(stage):  # noqa: F811
    """Rows of rolled-back savepoints never existed; rows of released ones belong to the whole transaction,
    whose xid they carry, and come when it commits: also where it has more subtransactions (64) than a
    snapshot remembers of one session."""
    st = stage().start()
    few, many = st.session(), st.session()
    few.publish("few-1").run("SAVEPOINT a")
    few.publish("gone-1").run("ROLLBACK TO a")
    few.publish("few-2").run("RELEASE a")
    few.publish("few-3")
    many.run(f"""DO $$ BEGIN FOR i IN 1 .. 200 LOOP
        BEGIN
            PERFORM outbox.publish('{st.kind}', CASE i % 2 WHEN 0 THEN 'many' ELSE 'gone-2' END, 'T', to_jsonb(i));
            IF i % 2 = 1 THEN RAISE 'undone'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END; END LOOP; END $$""")
    assert st.ask("SELECT count(DISTINCT xid) FROM outbox.event") == [(0,)]
    st.publish("meanwhile")
    st.wait_keys("meanwhile")
    assert st.keys() == ["meanwhile"]
    many.commit()
    st.wait_keys("many")
    st.turn()
    few.commit()
    st.finish()
    assert st.keys() == ["meanwhile"] + ["many"] * 100 + ["few-1", "few-2", "few-3"]


# ---------------------------------------------------------------- order

@pytest.mark.parametrize("running", [True, False], ids=["running", "started after it"])
def test_three_transactions(stage, running):  # noqa: F811
    """T2 takes its xid early; T3, unrelated, takes one and stays open; T1 writes aggregate 7 and commits; then
    T2 writes 7 and commits. By the xmin horizon T2's event goes first, for T1's xid is not below T3's; by
    xid it goes first in any case. Whoever held the row's lock first must come first."""
    st = stage()
    passed(schedules.three_transactions(st, running))
    records = checker.read_records(st.kafka.bootstrap, [st.topic])
    types = [dict(r.headers)["type"] for r in records if r.key == b"7"]
    assert types == [b"First", b"Second"]


# ---------------------------------------------------------------- many

def test_transaction_of_100000_rows(stage):  # noqa: F811
    """One transaction with more rows than fit into a batch, a Kafka transaction or the relay's memory, while
    others come and go: each row once, in order, and memory stays where it was."""
    st = stage().start()
    big = st.session()
    big.run("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT %s, 'k' || i %% 1000, 'T', "
            "jsonb_build_object('i', i, 'pad', repeat('x', 150)) FROM generate_series(1, 100000) AS i", (st.kind,))
    for i in range(5):
        st.publish(f"meanwhile-{i}")
    st.marker()
    big.commit()
    st.finish()
    assert st.relay.peak_rss_kb() < 64 * 1024


PGBENCH = """\\set k random(1, 300)
\\set late random(1, 100)
BEGIN;
UPDATE counters SET n = n + 1 WHERE k = :k;
SELECT outbox.publish('%(kind)s', :k::text, 'Changed', '{"pad": "%(pad)s"}');
\\if :late = 1
\\sleep 20 ms
\\endif
\\if :late = 2
ROLLBACK;
\\else
COMMIT;
\\endif
"""


@pytest.mark.timeout(400)
def test_20000_short_transactions(stage):  # noqa: F811
    """16 connections commit as fast as they can, some late, some not at all, on aggregates they lock; the
    relay follows, and is killed on the way."""
    st = stage().start()
    st.ask("CREATE TABLE counters (k int PRIMARY KEY, n int NOT NULL) WITH (fillfactor = 30)")
    st.ask("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 300) AS i")
    script = os.path.join(st.relay.dir, "script.sql")
    with open(script, "w", encoding="utf-8") as f:
        f.write(PGBENCH % {"kind": st.kind, "pad": "x" * 100})
    bench = subprocess.Popen([os.path.join(st.db.pg.bindir, "pgbench"), "-n", "-c", "16", "-j", "2", "-t", "1250", "-M",
                              "prepared", "-f", script, st.db.conninfo], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, env={**os.environ, "PGOPTIONS": "-c synchronous_commit=off"})
    try:
        wait_until(lambda: len(st.keys()) > 5000, 120, "a quarter of the work")
        st.restart()
        out, _ = bench.communicate(timeout=200)
        assert bench.returncode == 0, out
    finally:
        bench.kill()
    st.finish()
    assert 19500 < len(st.keys()) < 20000


# ---------------------------------------------------------------- crashes

def test_sequence_goes_back(stage, own_pg):  # noqa: F811
    """Asynchronous commits, then a crash: rows are gone that others have seen, and the sequence goes back, so
    the next rows get their seqs. The relay stood between its bound and its snapshot when it happened. It
    publishes the survivors, each once, and takes nothing for seen because of its number."""
    st = stage(pg=own_pg(config={"autovacuum": "off"})).start(hold="bounds")
    st.publish("before", 3)
    st.wait_keys("before")
    st.calm()
    with st.held():
        with schedules.crash_unflushed(st.db.pg):
            st.publish_async("doomed", 60)
            st.publish_async("doomed too", 3)
            highest = st.ask("SELECT max(seq) FROM outbox.event")[0][0]
        st.db.pg.start()
    st.publish("survivor", 40)
    assert st.ask("SELECT min(seq) FROM outbox.event WHERE aggregateid = 'survivor'")[0][0] < highest, \
        "the sequence did not go back: the schedule is void"
    st.finish()
    assert st.keys() == ["before"] * 3 + ["survivor"] * 40


def test_asynchronous_writers_and_a_crash(stage, own_pg):  # noqa: F811
    """Writers with synchronous_commit = off under load, and an immediate stop of the server: what the topic
    has is what the server still has. Nothing is invented, although commits were lost."""
    pg = own_pg(config={"autovacuum": "off", "wal_writer_delay": "10s"})
    st = stage(pg=pg).start()
    script = os.path.join(st.relay.dir, "script.sql")
    with open(script, "w", encoding="utf-8") as f:
        f.write(f"SELECT outbox.publish('{st.kind}', 'k' || :client_id, 'T', '1');\n")
    for _ in range(2):
        bench = subprocess.Popen([os.path.join(pg.bindir, "pgbench"), "-n", "-c", "4", "-T", "60", "-f", script,
                                  st.db.conninfo], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 env={**os.environ, "PGOPTIONS": "-c synchronous_commit=off"})
        try:
            before = len(st.keys())
            wait_until(lambda: len(st.keys()) > before + 1000, 60, "a thousand events")
            pg.stop("immediate")
        finally:
            bench.kill()
            bench.wait()
        pg.start()
    st.finish()


@pytest.mark.parametrize("delivery, fault", [
    ("exactly_once", "position_before_commit:3"), ("exactly_once", "committed_before_accounting:3"),
    ("at_least_once", "produced_before_acknowledged:3"), ("at_least_once", "acknowledged_before_position:3")])
def test_killed_in_a_turn_with_open_transactions(stage, delivery, fault):  # noqa: F811
    """The relay dies in the middle of a turn while writers are open whose seqs lie before, among and after the
    rows it was at. Half of them commit while it is down, half when it is back."""
    st = stage(delivery, config={"limits": {"batch_events": 50}}).start(fault=fault)
    st.wait_streaming()
    writers = []
    bulk = st.session()
    for i in range(20):
        writers.append(st.session().publish(f"w{i}", 3))
        bulk.publish(f"bulk-{i}", 20)
    bulk.commit()
    st.wait_crash()
    for w in writers[::2]:
        w.commit()
    st.start()
    st.marker()
    for w in writers[1::2]:
        w.publish("again").commit()
    st.finish()


@pytest.mark.parametrize("delivery, point", [("exactly_once", "position_before_commit"),
                                             ("exactly_once", "committed_before_accounting"),
                                             ("at_least_once", "acknowledged_before_position")])
@pytest.mark.parametrize("passage", [3, 12, 30], ids=["late rows", "new rows", "new rows again"])
def test_position_inside_a_batch(stage, delivery, point, passage):  # noqa: F811
    """A difference of 5,000 rows, of which 400 lie below the last bound, goes in pieces of 100; the relay dies in
    the middle. The next one goes on inside the same difference: once it began at the new rows again."""
    st = stage(delivery, config={"limits": {"batch_events": 100}}).start(hold="bounds", fault=f"{point}:{passage}")
    st.wait_streaming()
    late = st.session().publish("late", 400)
    st.publish("before")
    st.wait_keys("before")
    with st.held():
        st.session().publish("new", 4600).commit()
        late.commit()
    st.wait_crash()
    st.start()
    r = st.finish()
    assert r.dup <= 1000, r.report()


def test_restart_after_long_idle(stage):  # noqa: F811
    """The relay was down, or had nothing to do, while the server assigned ten thousands of xids to others:
    neither its bounds nor its patience suffer."""
    burn = ("SET synchronous_commit = off; DO $$ BEGIN FOR i IN 1 .. 20000 LOOP "
            "PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
    st = stage().start()
    sleeper = st.session().publish("sleeper")
    st.publish("before")
    st.wait_keys("before")
    st.db.psql(burn)
    st.publish("after idling")
    st.wait_keys("after idling")
    st.crash()
    st.db.psql(burn)
    st.publish("while down", 100)
    sleeper.commit()
    st.db.psql(burn)
    st.start()
    st.finish()
    assert set(st.keys()) == {"before", "after idling", "while down", "sleeper"}


# ---------------------------------------------------------------- plans

def plans(st, queries):
    """EXPLAIN of each query as the relay's session would run it."""
    with open(os.path.join(servers.ROOT, "db/queries/relay_session.sql"), encoding="utf-8") as f:
        session = f.read()
    s = st.session()
    s.run(session)
    return [(q, "\n".join(r[0] for r in s.run("EXPLAIN (COSTS OFF) " + q.replace("%", "%%")))) for q in queries]


@pytest.mark.parametrize("layout", ["fresh", "20 ranges", "20 ranges, analyzed"])
def test_chunks_are_never_sorted(stage, layout):  # noqa: F811
    """A plan that sorts reads the whole backlog before the first row leaves. Whatever the statistics say,
    every statement that the relay was seen to run streams from the index on seq."""
    st = stage(config={"limits": {"batch_events": 1000}, "retention": {"partition_events": 1000, "ahead": 20}})
    if layout != "fresh":
        for leaf, in st.ask("SELECT leaf FROM outbox.partitions"):
            st.ask(f"DROP TABLE outbox.{leaf}")
        st.ask("SELECT outbox.make_partitions(1000, 22)")
    st.ask(f"ALTER DATABASE \"{st.db.name}\" SET log_min_duration_statement = 0")
    late = st.session().publish("late", 10)
    st.publish("first", 10)
    if layout != "fresh":
        st.publish("many", 20000)
        assert st.ask("SELECT count(DISTINCT tableoid) FROM outbox.event")[0][0] >= 20
    if "analyzed" in layout:
        st.ask("ANALYZE outbox.event")
    st.start()
    st.marker()
    late.commit()
    st.wait_keys("late")
    st.publish("last")
    st.finish()
    with open(st.db.pg.log, encoding="utf-8", errors="replace") as f:
        log = f.read()
    mine = [line for line in log.splitlines() if f"postrider-relay {st.name[:20]}" in line]
    queries = set(re.findall(r"COPY \((SELECT seq, .*? LIMIT \d+)\) TO STDOUT", "\n".join(mine)))
    assert any("xid = ANY" in q for q in queries) and any("pg_visible_in_snapshot" in q for q in queries), mine[-5:]
    for q, plan in plans(st, sorted(queries)):
        nodes = [line.strip().removeprefix("->").strip() for line in plan.splitlines()]
        assert not any(re.match(r"(Incremental )?Sort\b(?! Key)|Seq Scan|Bitmap|Gather", n) for n in nodes), f"{q}\n{plan}"
        assert any("Index Scan" in n for n in nodes), f"{q}\n{plan}"
