"""tests/fault/test_scheduler_faults.py -- members of the scheduler die at each point and are started again over a long backlog: each timer
fires exactly once."""
import datetime
import json
import os
import signal
import uuid

import pytest
from inbox import inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
KIND = {"kind": "scheduler"}
MANY = int(os.environ.get("POSTRIDER_TIMERS", 100000))


def make(i, n, due="now()"):
    i.db.query("INSERT INTO scheduler.timer (timer_id, state, kind, at) SELECT outbox.uuid7(), 'ARMED', 'x', " + due +
               " FROM generate_series(1, %s) AS n", (n,))
    i.db.psql("ANALYZE scheduler.timer")


def installed(i):
    i.consumer(KIND).start().wait_ready()
    wait_until(lambda: i.one("SELECT to_regclass('scheduler.timer')"), 60, "the schema")
    i.consumers[0].terminate()
    return i


def all_fired(i, n, timeout=100):
    wait_until(lambda: i.one("SELECT NOT EXISTS (SELECT FROM scheduler.timer WHERE state = 'ARMED')"), timeout, "all to fire", interval=0.05)
    assert i.db.query("SELECT count(*), count(DISTINCT aggregateid) FROM outbox.event WHERE type = 'TimerFired'") == [(n, n)]


@pytest.mark.parametrize("fault", ["scheduler_fired_before_commit", "scheduler_fired_after_commit"])
def test_dies_while_it_fires(inbox, fault):  # noqa: F811
    """Killed in front of the commit: none of the batch has fired. Behind it: all have. Another member does the rest."""
    i = installed(inbox())
    make(i, 3000)
    first = i.consumer(KIND).start(fault=fault)
    assert first.wait(60) == -signal.SIGKILL
    wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s", (f"%{i.group} clock",)) == 0, 60,
               "its session to end")
    fired = i.one("SELECT count(*) FROM outbox.event WHERE type = 'TimerFired'")
    assert fired == (0 if "before" in fault else 1000)
    i.member(KIND).start()
    all_fired(i, 3000)


def test_killed_again_and_again(inbox):  # noqa: F811
    """Two members, killed and started while 30,000 are due and commands come: each fires once, each command is answered once."""
    i = installed(inbox())
    make(i, 30000, "now() + n * interval '50 us'")
    ids = [str(uuid.uuid4()) for _ in range(300)]
    for id in ids:
        i.put(id, json.dumps({"timer_id": id, "kind": "x", "at": datetime.datetime.now(datetime.timezone.utc).isoformat()}),
              [("id", str(uuid.uuid4())), ("type", "ScheduleAt")])
    i.flush()
    members = [i.member(KIND).start() for _ in range(2)]
    for n in range(4):
        have = i.one("SELECT count(*) FROM outbox.event")
        wait_until(lambda: i.one("SELECT count(*) FROM outbox.event") > have or i.one("SELECT count(*) FROM outbox.event") >= 30600, 60, "some to fire")
        members[n % 2].kill9()
        members[n % 2].start()
    wait_until(lambda: i.one("SELECT count(*) FROM outbox.event WHERE type = 'TimerArmed'") == 300, 60, "the commands")
    all_fired(i, 30300)
    assert i.one("SELECT count(*) FROM outbox.event WHERE type = 'TimerArmed'") == 300


def test_started_over_a_backlog(inbox):  # noqa: F811
    """Down while 100,000 became due: they fire within seconds, each once, the earliest first, and commands are handled meanwhile."""
    i = installed(inbox())
    make(i, MANY, "now() - n * interval '1 ms'")
    id = str(uuid.uuid4())
    i.put(id, json.dumps({"timer_id": id, "kind": "x", "at": "2099-01-01T00:00:00Z"}), [("id", str(uuid.uuid4())), ("type", "ScheduleAt")])
    i.flush()
    i.consumers[0].start()
    wait_until(lambda: i.one("SELECT state FROM scheduler.timer WHERE timer_id = %s UNION ALL SELECT NULL", (id,)) == "ARMED", 60, "the command")
    wait_until(lambda: i.one("SELECT count(*) FROM scheduler.timer WHERE state = 'ARMED'") == 1, 150, "all to fire", interval=0.1)
    assert i.db.query("SELECT count(*), count(DISTINCT aggregateid) FROM outbox.event WHERE type = 'TimerFired'") == [(MANY, MANY)]
    took = i.one("SELECT extract(epoch FROM max(ended_at) - min(ended_at)) FROM scheduler.timer")
    print(f"{MANY} timers in {took:.1f} s, {MANY / float(took):.0f}/s")
    assert i.one("SELECT bool_and(ok) FROM (SELECT at >= lag(at) OVER (ORDER BY ended_at, at) IS NOT false AS ok FROM scheduler.timer"
                 " WHERE state = 'FIRED') AS x")


def test_postgres_away(own_pg, kafka, inbox):  # noqa: F811
    """The database is killed while timers fire and comes back: the rest fires, nothing twice, and the member is green again."""
    pg = own_pg()
    i = installed(inbox(pg=pg))
    make(i, 20000, "now() + n * interval '100 us'")
    c = i.consumers[0].start()
    wait_until(lambda: i.one("SELECT count(*) FROM outbox.event") > 0, 60, "some to fire")
    pg.kill()
    wait_until(lambda: c.get("/readyz")[0] == 503, 60, "it to say so", ignore=(OSError,))
    pg.start()
    wait_until(lambda: i.one("SELECT NOT EXISTS (SELECT FROM scheduler.timer WHERE state = 'ARMED')"), 90, "all to fire", ignore=(Exception,))
    assert i.db.query("SELECT count(*), count(DISTINCT aggregateid) FROM outbox.event WHERE type = 'TimerFired'") == [(20000, 20000)]
    i.wait_state(c, "ok")
