"""tests/e2e/test_saga_list.py -- `postrider saga list` where many sagas are alive: no statement looks through
more than a stretch of them, whatever is asked for, and all that is meant is found.

Story: with a million sagas alive, those at a step that few are at were looked for in one statement. It read all of them, a
table of 1.6 GB, and ended in a time-out at two million.
"""
import json
import re

import pytest
import servers

N = 55_000  # more than one stretch (cli/saga_find.c)


def steps(**state):
    return json.dumps([{"step": s, "state": state.get(s, "WAITING")} for s in ("HOLD", "PAY", "SELL")])


@pytest.fixture(scope="module")
def crowd(pg_server):
    db = pg_server.createdb("crowd", schema=True)
    servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", "127.0.0.1:1", "--name", "crowd")

    def put(n, state, text, name="buy"):
        db.query("INSERT INTO saga.instance_0 (id, name, version, state, steps, started_at, since_at, part)"
                 " SELECT outbox.uuid7(), %s, 1, %s, %s, now(), now(), 'outbox.saga.inbox-0' FROM generate_series(1, %s)",
                 (name, state, text, n))
    put(3, "RUNNING", steps(HOLD="DONE", PAY="DOING"))
    put(2, "STUCK", steps(HOLD="DONE", PAY="UNDONE", SELL="STUCK"))
    put(1, "RUNNING", steps(HOLD="DOING"), name="rare")
    put(N, "RUNNING", steps(HOLD="DOING"))
    put(1, "COMPENSATING", steps(HOLD="DONE", PAY="UNDOING"))
    db.query("ANALYZE saga.instance")
    yield db
    db.drop()


def plan(db, name, *params):
    """As the CLI's session has it (begin_scan of cli/saga_find.c)."""
    with open(f"{servers.ROOT}/db/queries/{name}.sql", encoding="utf-8") as f:
        text = f.read()
    for i in range(len(params), 0, -1):
        text = text.replace(f"${i}", "NULL" if params[i - 1] is None else f"'{params[i - 1]}'")
    conn = db.connect()
    with conn.cursor() as cur:
        cur.execute(f"SET enable_sort = {'on' if params[0] else 'off'}")
        cur.execute("EXPLAIN (COSTS OFF) " + text)
        rows = cur.fetchall()
    conn.close()
    return "\n".join(r[0] for r in rows)


def listed(cli, db, *args):
    done = cli("saga", "list", "--conninfo", db.conninfo, "--json", *args, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_are_found(cli, crowd):
    """Those of a stretch before it, and of it; pages that end in the middle of one."""
    assert [s["state"] for s in listed(cli, crowd, "--step", "PAY")] == ["COMPENSATING", *["RUNNING"] * 3]
    assert [s["state"] for s in listed(cli, crowd, "--step", "SELL")] == ["STUCK"] * 2
    assert [s["name"] for s in listed(cli, crowd, "--name", "rare")] == ["rare"]
    assert len(listed(cli, crowd, "--state", "STUCK", "--state", "COMPENSATING")) == 3
    assert len({s["id"] for s in listed(cli, crowd, "--name", "buy", "--limit", N + 100)}) == N + 6
    few = cli("saga", "list", "--conninfo", crowd.conninfo, "--step", "PAY", "--limit", 2, check=True)
    assert few.stdout.count(" buy ") == 2 and "there are more" in few.stderr
    assert "there are more" not in cli("saga", "list", "--conninfo", crowd.conninfo, "--step", "PAY", "--limit", 4, check=True).stderr
    assert listed(cli, crowd, "--step", "NONE") == [] and listed(cli, crowd, "--all", "--state", "COMPLETED") == []


def test_no_statement_reads_them_all(crowd):
    """The plans: a stretch's end comes out of an index alone; what is looked through is that stretch; states that few are in
    have an index; ended ones are not touched where only live ones can be."""
    end = crowd.one("SELECT id FROM saga.instance_0 ORDER BY id LIMIT 1")
    p = plan(crowd, "saga_stretch", None, "t", None, 50000)
    assert "Index Only Scan Backward using instance_0_pkey" in p and "Sort" not in p, p
    p = plan(crowd, "saga_stretch", "{STUCK}", "t", None, 50000)
    assert "instance_0_state" in p and "instance_0_pkey" not in p, p
    p = plan(crowd, "saga_list", None, None, "PAY", None, None, 100, end, "t")
    assert re.search(r"Index Cond: \(\(?id >= ", p), p
    for state, step in (("{STUCK}", None), ("{STUCK}", "SELL")):
        p = plan(crowd, "saga_list", state, None, step, None, None, 100, None, "t")
        first = p.split("SubPlan")[0]
        assert "instance_0_state" in first and "instance_1" not in first, p
    p = plan(crowd, "saga_list", None, None, None, None, None, 100, None, "t").split("SubPlan")[0]
    assert "Index Scan Backward using instance_0_pkey" in p and "instance_1" not in p, p
