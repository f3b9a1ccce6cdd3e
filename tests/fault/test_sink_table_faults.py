"""tests/fault/test_sink_table_faults.py -- the sink's rows in a table, while it, its session, or a database dies.

For each FAULT(name) in consumers/sink/table.c there is a test of that name. Afterwards the table has exactly what the topic says, by
the mode's word: no row missing, none twice.
"""
import itertools
import signal

import pytest
from inbox import inbox  # noqa: F401
from sink_table import Table, table  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
MODES = ["append", "upsert", "scd2"]
_n = itertools.count(1)


def dies(consumer, point, timeout=60):
    """Starts the consumer so that it dies at the point; proves that it did."""
    consumer.start(fault=point)
    assert consumer.wait(timeout) == -signal.SIGKILL, consumer.log_text()[-3000:]


@pytest.fixture
def rows_db(pg_server):
    """Makes another database for the table."""
    return lambda: pg_server.createdb(f"rows_{id(pg_server)}_{next(_n)}")


def killed_under_load(t, point, passages=(1, 2, 5)):
    c = t.consumer(start=False)
    t.send(300, every=5)
    for passage in passages:
        dies(c, f"{point}:{passage}")
        t.send(100, every=5)
    c.start()
    t.send(50)
    t.check()


@pytest.mark.parametrize("mode", MODES)
def test_sink_copied_before_commit(table, mode):  # noqa: F811
    """Story: rows, cut and position are one transaction, and the consumer dies before its end: nothing of it has happened."""
    killed_under_load(table(mode), "sink_copied_before_commit")


@pytest.mark.parametrize("mode", MODES)
def test_sink_rows_before_commit(table, rows_db, mode):  # noqa: F811
    """Story: the table is in another database: the cut is recorded in ours, its rows are written there and not committed."""
    killed_under_load(table(mode, db=rows_db()), "sink_rows_before_commit")


@pytest.mark.parametrize("mode", MODES)
def test_sink_rows_committed_before_position(table, rows_db, mode):  # noqa: F811
    """Story: the rows are committed there, and our database does not know. The next owner brings in the recorded cut, and finds beside
    the rows that it is in."""
    killed_under_load(table(mode, db=rows_db()), "sink_rows_committed_before_position")


def test_sink_rows_committed_before_position_by_another_member(table, rows_db):  # noqa: F811
    """Story: the same, and the next owner has larger cuts in mind."""
    t = table("append", db=rows_db())
    t.send(400)
    dies(t.consumer(start=False), "sink_rows_committed_before_position:3")
    t.consumer(max_records=1000, config={"http": {"listen": "127.0.0.1:0"}})
    t.check()


@pytest.mark.parametrize("away", [False, True], ids=["here", "away"])
def test_a_refused_row_and_a_death_beside_it(table, rows_db, away):  # noqa: F811
    """A CHECK of theirs refuses one row of a cut: halves, and a kill between them, until that one is a dead letter."""
    t = table("append", partitions=1, db=rows_db() if away else None)
    t.db.psql("""CREATE SCHEMA platform; CREATE TABLE platform.event (id text, type text, topic text COLLATE "C", partition int, "offset" bigint,
        key text, payload jsonb CHECK (payload ->> 'n' <> '77'), payload_base64 text, UNIQUE (topic, partition, "offset"))""")
    t.send(200)
    c = t.consumer(start=False, max_records=100)
    for passage in (1, 2, 3):
        dies(c, f"{'sink_split_before_commit' if away else 'sink_copied_before_commit'}:{passage}")
    c.start()
    t.check(without=[(0, 77)])
    assert t.i.dead("message_offset, class, code") == [(77, "sqlstate", "23514")]


@pytest.mark.parametrize("away", [False, True], ids=["here", "away"])
@pytest.mark.parametrize("mode", MODES)
def test_sessions_are_killed_under_load(table, rows_db, mode, away):  # noqa: F811
    t = table(mode, db=rows_db() if away else None)
    t.consumer()
    for _ in range(4):
        t.send(300, every=4)
        t.i.pg.kill_backend("application_name LIKE 'postrider-consumer%'")
    t.check(timeout=90)
    assert not t.i.dead()


def test_kill_9_at_any_time(table, rows_db):  # noqa: F811
    t = table("append", db=rows_db())
    c = t.consumer()
    for _ in range(5):
        before = t.db.one("SELECT count(*) FROM pg_class WHERE relname = 'event'") and t.db.one(f"SELECT count(*) FROM {t.name}") or 0
        t.send(400)
        wait_until(lambda before=before: t.db.one("SELECT to_regclass('platform.event') IS NOT NULL")
                   and t.db.one(f"SELECT count(*) FROM {t.name}") > before, 60, "more rows")
        c.kill9()
        c.start()
    t.check(timeout=90)


@pytest.mark.parametrize("mode", ["append", "scd2"])
def test_partitions_wander_under_load(table, mode):  # noqa: F811
    t = table(mode, partitions=4)
    nameless = {"http": {"listen": "127.0.0.1:0"}}
    t.consumer(config=nameless)
    for n in range(3):
        other = t.consumer(config=nameless, max_records=20 + n)
        t.send(400, every=6)
        wait_until(lambda other=other: "partitions assigned" in other.log_text(), 60, "a rebalance")
        t.send(200, every=6)
        (other.kill9 if n % 2 else other.terminate)()
    t.check(timeout=90)


def test_the_tables_database_is_away(inbox, own_pg):  # noqa: F811
    """The table's server dies under load: red, nothing is lost, nothing is twice, and it goes on by itself."""
    pg = own_pg()
    t = Table(inbox(), "append", db=pg.createdb("rows"))
    c = t.consumer()
    t.send(300)
    wait_until(lambda: t.db.one("SELECT to_regclass('platform.event') IS NOT NULL"), 60, "the table")
    pg.stop("immediate")
    t.send(200)
    t.i.wait_state(c, "error", 60)
    pg.start()
    t.send(100)
    t.check(timeout=90)
    t.i.wait_state(c, "ok", 60)
