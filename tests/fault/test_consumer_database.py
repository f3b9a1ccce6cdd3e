"""tests/fault/test_consumer_database.py -- a database that is busy, away, frozen or killed under the consumer, and lanes
that stand in each other's way. Nothing is lost, nothing comes twice, and nothing is buried for what it cannot help."""
import contextlib
import json
import os
import signal

import psycopg2
import pytest
from inbox import ROW, SET, c_handler, inbox  # noqa: F401
from proxy import Proxy
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)

both = pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])


# ---------------------------------------------------------------- lanes against each other

def accounts(i, n=4):
    """Two rows of n for each event, locked in an order of its own: lanes deadlock."""
    i.db.psql(f"""
CREATE TABLE app.account (n int PRIMARY KEY, changes int DEFAULT 0);
INSERT INTO app.account SELECT generate_series(0, {n - 1});
CREATE FUNCTION app.both(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a int := (hashtext(m.id::text) & 65535) % {n};
BEGIN
	UPDATE app.account SET changes = changes + 1 WHERE n = a;
	PERFORM pg_sleep(0.001);
	UPDATE app.account SET changes = changes + 1 WHERE n = (a + 1) % {n};
	PERFORM app.on_event(m);
END $$;
ALTER DATABASE "{i.name}" SET deadlock_timeout = '20ms';
""")


def test_deadlocks_between_lanes(inbox):  # noqa: F811
    """Whoever loses goes again; neither is buried, and both sums are right."""
    i = inbox(partitions=4)
    accounts(i)
    i.send(400, keys=40)
    before = i.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    c = i.consumer({"kind": "sql", "function": "app.both"}, {"lanes": 4, "limits": {"batch_events": 10}}).start()
    i.check()
    assert i.one("SELECT sum(changes) FROM app.account") == 800
    assert i.dead() == [] and i.parked() == []
    c.terminate()  # counts reach pg_stat_database at the end of a session
    wait_until(lambda: i.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") > before, 60,
               "there to have been deadlocks")


@both
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_serialization_errors(inbox, handler, code):  # noqa: F811
    """A third of all tries fails so: by the built-in rule they go again at once."""
    i = inbox()
    for n in range(10):
        i.poison(f"k{n}", f"maybe {code}")
    i.send(200, keys=10)
    i.consumer(handler).start()
    i.check()
    assert i.dead() == [] and i.parked() == []


def test_lock_that_somebody_holds(inbox):  # noqa: F811
    """An ALTER TABLE stands in the way for a while: the statement runs into its deadline, is tried again and buried for
    nothing."""
    i = inbox()
    i.send(50)
    with contextlib.closing(i.db.connect(autocommit=False)) as conn, conn.cursor() as cur:
        cur.execute("LOCK TABLE app.effect IN ACCESS EXCLUSIVE MODE")
        c = i.consumer(config={"handler": {"timeout": "1s"}, "database": {"timeout": "1s"}, "errors": [
            {"match": "timeout", "policy": "retry", "attempts": 1000, "backoff": "10ms", "backoff_max": "20ms"}]}).start()
        wait_until(lambda: c.metric("postrider_consumer_retries_total") > 2, 60, "tries", ignore=(OSError,))
        conn.rollback()
    i.check()
    assert i.dead() == [] and i.parked() == []


# ---------------------------------------------------------------- sessions

@both
def test_terminated_sessions(inbox, handler):  # noqa: F811
    """All sessions of the consumer end, again and again: none of the events is called a poison for it."""
    i = inbox()
    c = i.consumer(handler).start()
    with i.stream(rate=1000):
        for _ in range(8):
            i.flows(60)
            i.pg.kill_backend(f"datname = '{i.name}' AND application_name LIKE 'postrider-consumer%'")
    i.check()
    assert i.dead() == [] and i.parked() == []
    assert c.running()


def test_lost_commit_reply(inbox, pg_server):  # noqa: F811
    """Story: the database commits and the answer is lost. Whether it did is looked up and not guessed: the batch comes
    again, is known, and is stepped over."""
    i = inbox(partitions=2)
    with Proxy("postgres", pg_server.port) as p:
        i.conninfo = p.conninfo(i.name)
        c = i.consumer(config={"database": {"timeout": "1s"}}).start()
        i.send(100)
        i.check(more=True)
        for n, nth in enumerate((1, 2, 5), 1):
            # 'D' or 'C' of the reply to inbox.advance: the transaction has committed when ReadyForQuery is sent.
            p.rule("down", "pg:Z", nth, "drop+cut")
            i.send(60)
            p.wait_fired(n, 60)
            i.check()
        assert p.stats()["fired"] == 3
    assert i.dead() == [] and i.parked() == []
    assert c.running()


def test_half_of_a_large_batch(inbox, pg_server):  # noqa: F811
    """Story: a machine is gone, or stands still, in the middle of sending a batch that is larger than the socket's
    buffers. Its backend has taken the batch's ids and waits for the rest: no statement runs that could time out, and it
    is not idle. Whoever comes after it does not wait for ever."""
    i = inbox(partitions=1)
    with Proxy("postgres", pg_server.port) as p:
        i.conninfo = p.conninfo(i.name)
        c = i.consumer(dict(SET, timeout="4s"), {"lanes": 1, "database": {"timeout": "4s"}}).start().wait_ready()
        i.send(1)
        i.check(more=True)
        p.rule("up", "bytes", 1_500_000, "hole")
        for n in range(20):
            i.event(f"k{n}", {"pad": "x" * 200_000})
        i.check()
        assert p.stats()["fired"] == 1
    assert i.dead() == [] and i.parked() == []
    assert c.running()


def test_what_a_claim_stands_at_is_not_hidden(inbox):  # noqa: F811
    """Story: a partition could not be claimed, for its rows were locked. Each batch of the other one that got through
    said that all was well again with Postgres."""
    i = inbox(partitions=2)
    c = i.consumer(SET, {"database": {"timeout": "1s"}}).start().wait_ready()
    with i.stream(rate=200), contextlib.closing(psycopg2.connect(i.db.conninfo)) as other, other.cursor() as cur:
        i.flows(200)
        where = 'WHERE "group" = %s AND partition = 1'
        i.db.query(f"UPDATE inbox.position SET epoch = epoch + 1 {where}", (i.group,))  # another member, it seems
        cur.execute(f"SELECT FROM inbox.position {where} FOR UPDATE", (i.group,))
        wait_until(lambda: "cannot claim" in c.status()["checks"]["postgres"], 60, "the claim to fail")
        seen = i.count()
        stays(lambda: c.status()["checks"]["postgres"] != "ok", 2)
        wait_until(lambda: i.count() > seen, 60, "the other partition to go on")
        stays(lambda: c.status()["checks"]["postgres"] != "ok", 0.5)
        other.rollback()
        wait_until(lambda: c.status()["checks"]["postgres"] == "ok", 60, "it to be well again")
    i.check()
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- servers

@pytest.fixture
def frail(inbox, own_pg):  # noqa: F811
    """An inbox whose Postgres the test may break."""
    return lambda **more: inbox(pg=own_pg(config={"max_wal_size": "256MB"}), **more)


def test_database_stopped_for_a_while(frail):
    """Story: Postgres is stopped, then killed, under load. The consumer stays in its group, says so, and goes on by
    itself; nothing is lost or twice."""
    i = frail()
    c = i.consumer().start()
    with i.stream(rate=800):
        for mode in ("immediate", "fast"):
            i.flows(100)
            i.pg.stop(mode)
            i.wait_state(c, "error")
            i.pg.start()
        i.flows(100)
        for pid in i.pg.backends("application_name LIKE '%lane 0%'"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the postmaster then ends all of them, and recovers
        i.flows(100)
    i.check()
    i.wait_state(c, "ok")
    assert i.dead() == [] and i.parked() == []
    assert c.log_text().count("partitions assigned") == 1, "it never left the group"


def test_database_frozen_for_a_while(frail):
    """Story: all of Postgres stands still (SIGSTOP) longer than every deadline of ours. No answer is waited for for
    ever; when it moves again the batch that was under way has been applied once."""
    i = frail()
    c = i.consumer(config={"database": {"timeout": "2s"}, "handler": {"timeout": "2s"}}).start()
    with i.stream(rate=800):
        i.flows(100)
        pids = i.pg.stop_backend("application_name LIKE 'postrider-consumer%lane%'")
        wait_until(lambda: c.log_text().count("msg=postgres") > 0, 60, "it to be noticed")
        i.pg.cont_backend(pids)
        i.flows(100)
        pids = i.pg.stop_backend("true")
        i.pg.sigstop()
        try:
            i.wait_state(c, "error")
        finally:
            i.pg.sigcont()
            i.pg.cont_backend(pids)
        i.flows(100)
    i.check()
    i.wait_state(c, "ok")
    assert i.dead() == [] and i.parked() == []


def test_start_without_a_database(frail):
    """It waits for it, in whatever order the machines come up."""
    i = frail()
    i.pg.stop()
    c = i.consumer().start()
    wait_until(lambda: json.loads(c.get("/readyz")[1])["state"] in ("starting", "error"), 60, "it to say so",
               ignore=(OSError,))
    stays(c.running, 1)
    i.pg.start()
    i.send(50)
    i.check()


def test_crash_of_postgres_loses_no_position(frail):
    """Story: attempts are committed without waiting for the disk, effects and positions are not. After a crash of the
    whole server each event is still there once."""
    i = frail()
    c = i.consumer(c_handler()).start()
    with i.stream(rate=800):
        for _ in range(3):
            i.flows(80)
            i.pg.stop("immediate")
            i.pg.start()
    i.check()
    assert c.running() and i.dead() == [] and i.parked() == []
