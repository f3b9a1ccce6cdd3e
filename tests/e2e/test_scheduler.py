"""tests/e2e/test_scheduler.py -- handler kind scheduler: timers armed, fired, cancelled; by commands and by sagas, in every
order, on several members, and what becomes of commands that can never be done."""
import datetime
import itertools
import json
import os
import uuid

import psycopg2
import pytest
import servers
from inbox import Inbox, inbox  # noqa: F401
from outbox import header, read_topic
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)
KIND = {"kind": "scheduler"}
MESSAGE = "ROW(%s::uuid, %s, 0, 0, %s, %s, %s::jsonb, NULL, %s::jsonb, now())::inbox.message"
LATER = "2099-01-01T00:00:00Z"
EVENTS = "SELECT type, aggregateid, payload, headers, topic FROM outbox.event WHERE aggregatetype = 'timer' ORDER BY seq"


def at(seconds):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def schema(db):
    with open(os.path.join(servers.ROOT, "consumers/scheduler/schema.sql"), encoding="utf-8") as f:
        db.psql(f.read())
    return db


@pytest.fixture
def timers(db):
    """A database with the schema, for cases that are about SQL alone."""
    return schema(db)


def arm(timer, when=LATER, kind="hold", **more):
    return "ScheduleAt", {"timer_id": timer, "kind": kind, "at": when, "subject": {"reservation_id": timer}, **more}


def cancel(timer):
    return "CancelTimer", {"timer_id": timer}


def call(db, *commands, function="on_messages", headers=()):
    """Hands the commands, one batch, to the function; headers: of each."""
    args, rows = [], []
    for (kind, payload), h in itertools.zip_longest(commands, headers, fillvalue={}):
        rows.append(MESSAGE)
        args += [str(uuid.uuid4()), "outbox.command.scheduler", "k", kind, json.dumps(payload), json.dumps(h)]
    db.query(f"SELECT scheduler.{function}(ARRAY[{', '.join(rows)}])", args)


def fire(db, most=1000):
    return db.query("SELECT fired FROM scheduler.fire(%s, '-infinity', '00000000-0000-0000-0000-000000000000')", (most,))[0][0]


def state(db, timer):
    return db.query("SELECT state FROM scheduler.timer WHERE timer_id = %s", (timer,))[0][0]


def events(db, timer=None):
    return [e[0] for e in db.query(EVENTS) if timer in (None, e[1])]


def put(i, kind, payload, key="k", **headers):
    i.put(key, payload if isinstance(payload, bytes) else json.dumps(payload),
          [("id", str(uuid.uuid4())), ("type", kind), *((k.replace("_", "-"), v) for k, v in headers.items())])


# ---------------------------------------------------------------- through Kafka

def test_from_command_to_event(inbox, relay):  # noqa: F811
    """A timer is armed by a command, fires at its time and not before, and its events leave by the relay with the command's correlation."""
    i = inbox()
    c = i.consumer(KIND).start().wait_ready()
    servers.Cli().run("init", "--conninfo", i.conninfo, "--brokers", i.kafka.bootstrap, "--name", i.name, check=True)
    i.kafka.create_topic(f"{i.name}.timer", 1)
    relay(i.conninfo, i.kafka.bootstrap, i.name, config={"route": {"topic": i.name + ".${aggregatetype}"}}).start().wait_ready()
    soon, later = str(uuid.uuid4()), str(uuid.uuid4())
    put(i, *arm(soon, at(3)), key=soon, correlation_id="c-1")
    put(i, *arm(later), key=later)
    i.flush()
    wait_until(lambda: "TimerArmed" in events(i.db, soon) and "TimerArmed" in events(i.db, later), 60, "both to be armed")
    wait_until(lambda: state(i.db, soon) == "FIRED", 60, "the timer to fire")
    assert events(i.db, soon) == ["TimerArmed", "TimerFired"] and state(i.db, later) == "ARMED"
    late = i.one("SELECT ended_at - at FROM scheduler.timer WHERE timer_id = %s", (soon,))
    assert datetime.timedelta(0) <= late < datetime.timedelta(seconds=15)
    put(i, *cancel(later), key=later)
    i.flush()
    got = {(header(r, "type").decode(), r.key.decode()): r for r in read_topic(i.kafka, f"{i.name}.timer", 4)}
    assert set(got) == {("TimerArmed", soon), ("TimerFired", soon), ("TimerArmed", later), ("TimerCancelled", later)}
    fired = got["TimerFired", soon]
    assert json.loads(fired.value)["subject"] == {"reservation_id": soon} and json.loads(fired.value)["kind"] == "hold"
    assert header(fired, "correlation-id") == b"c-1" == header(got["TimerArmed", soon], "correlation-id")
    assert header(got["TimerArmed", later], "correlation-id").decode() == later
    wait_until(lambda: c.metric("postrider_timers_fired_total") == 1, 60, "it to be counted")


def test_bad_commands(inbox):  # noqa: F811
    """Commands that can never be done are tried again, then become dead letters with TimerFailed and ScheduleAtFailed; the others go on."""
    i = inbox()
    i.consumer(KIND, {"errors": [{"match": "sqlstate:22*", "policy": "retry", "attempts": 2, "backoff": "10ms"}]}).start().wait_ready()
    bad = [arm(str(uuid.uuid4()), when) for when in ("tomorrow", "2026-13-45T00:00:00Z", "2030-01-01T00:00:00", 5, None, "infinity")]
    bad += [arm(str(uuid.uuid4()), kind=kind) for kind in ("", None, "x" * 101, 7)]
    bad += [arm(str(uuid.uuid4()), subject=subject) for subject in ([], "x", 1)]
    with_id = len(bad)
    bad += [arm("'; DROP SCHEMA scheduler CASCADE; --"), ("ScheduleAt", {}), ("ScheduleAt", [1]), ("CancelTimer", {}),
            ("CancelTimer", {"timer_ids": "x"}), ("CancelTimer", {"reservation_ids": ["x"]}), ("Explode", {"timer_id": str(uuid.uuid4())})]
    for n, (kind, payload) in enumerate(bad):
        put(i, kind, payload, key=f"b{n}", correlation_id=f"c{n}")
    put(i, "ScheduleAt", b"\xff\x00not json", key="raw")
    good = str(uuid.uuid4())
    put(i, *arm(good), key=good)
    i.flush()
    i.wait_dead(len(bad) + 1)
    wait_until(lambda: i.db.query("SELECT 1 FROM scheduler.timer WHERE timer_id = %s AND state = 'ARMED'", (good,)), 60, "the good one")
    assert {d[4] for d in i.dead()} == {2}, "all were tried twice"
    assert i.one("SELECT count(*) FROM scheduler.timer WHERE state = 'FAILED' AND reason LIKE '%%'") == with_id
    failed = i.db.query("SELECT type, headers ->> 'correlation-id', aggregatetype, payload FROM outbox.event"
                        " WHERE type LIKE '%%Failed' ORDER BY seq")
    assert {t for t, *_ in failed} == {"TimerFailed", "ScheduleAtFailed", "CancelTimerFailed", "ExplodeFailed"}
    for n in range(with_id):
        mine = [f for f in failed if f[1] == f"c{n}"]
        assert {f[0] for f in mine} == {"TimerFailed", "ScheduleAtFailed"}, (bad[n], mine)
    told = next(f for f in failed if f[0] == "ScheduleAtFailed")
    assert told[3]["group"] == i.group and told[3]["code"].startswith("22")
    assert len([f for f in failed if f[0] == "TimerFailed"]) == with_id


def test_members_beside_each_other(inbox):  # noqa: F811
    """Three members, 20,000 timers due at once: each fires exactly once."""
    i = inbox()
    members = [i.member(KIND) for _ in range(3)]
    members[0].start()
    wait_until(lambda: i.one("SELECT to_regclass('scheduler.timer')"), 60, "the schema")
    i.db.query("INSERT INTO scheduler.timer (timer_id, state, kind, at) SELECT outbox.uuid7(), 'ARMED', 'x', now() + interval '1.5 s'"
               " FROM generate_series(1, 20000)")
    for m in members[1:]:
        m.start()
    wait_until(lambda: i.one("SELECT count(*) FROM scheduler.timer WHERE state = 'ARMED'") == 0, 90, "all to fire")
    assert i.db.query("SELECT count(*), count(DISTINCT aggregateid) FROM outbox.event WHERE type = 'TimerFired'") == [(20000, 20000)]


def test_paused_fires_nothing(inbox, cli):  # noqa: F811
    i = inbox()
    i.consumer(KIND).start().wait_ready()
    where = ("--conninfo", i.conninfo, "--group", i.group)
    cli.run("pause", *where, check=True)
    wait_until(lambda: i.state(i.consumers[0]) == "paused", 60, "the pause")
    i.db.query("INSERT INTO scheduler.timer (timer_id, state, kind, at) VALUES (outbox.uuid7(), 'ARMED', 'x', now())")
    stays(lambda: not events(i.db), 0.5)
    cli.run("resume", *where, check=True)
    wait_until(lambda: events(i.db) == ["TimerFired"], 60, "the timer to fire")


def test_a_foreign_schema_is_left_alone(inbox):  # noqa: F811
    i = inbox()
    i.db.psql("CREATE SCHEMA scheduler; CREATE TABLE scheduler.timer (mine int)")
    c = i.consumer(KIND).start()
    assert c.wait(60) == 78
    assert "not ours" in c.log_text()


def test_installed_by_its_owner(inbox):  # noqa: F811
    """handler.install = false changes nothing and says what to do; once it is there it is enough."""
    i = inbox()
    c = i.consumer({**KIND, "install": False}).start()
    assert c.wait(60) == 78 and "handler.install" in c.log_text()
    assert i.one("SELECT to_regnamespace('scheduler')") is None
    i.member(KIND).start()
    wait_until(lambda: i.one("SELECT to_regclass('scheduler.timer')"), 60, "the schema")
    c.start().wait_ready()


# ---------------------------------------------------------------- the statements

@pytest.mark.parametrize("order", list(itertools.permutations(["arm", "again", "cancel", "fire"])), ids="-".join)
def test_every_order(timers, order):
    """Arm, arm again, cancel and fire in each order, each a transaction: a timer fires only when it was armed before and not cancelled,
    never twice, and every command is answered."""
    t = str(uuid.uuid4())
    expected, armed = None, False
    for what in order:
        if what == "fire":
            fired = fire(timers)
            assert fired == (1 if expected == "ARMED" else 0)
            expected = "FIRED" if fired else expected
        elif what == "cancel":
            call(timers, cancel(t))
            expected = "CANCELLED" if expected in (None, "ARMED") else expected
        else:
            call(timers, arm(t, "2020-01-01T00:00:00Z"))
            expected = expected or "ARMED"
            armed = armed or expected == "ARMED"
        if expected:
            assert state(timers, t) == expected, what
    assert len(events(timers, t)) == 3 + events(timers, t).count("TimerFired")
    assert events(timers, t).count("TimerFired") == (expected == "FIRED")


@pytest.mark.parametrize("order", list(itertools.product(["arm", "cancel"], repeat=3)), ids="-".join)
def test_the_same_in_one_batch(timers, order):
    """In one batch the commands of a timer count in their order, as they would one after the other."""
    one, many = str(uuid.uuid4()), str(uuid.uuid4())
    made = {"arm": arm, "cancel": cancel}
    for what in order:
        call(timers, made[what](one))
    call(timers, *(made[what](many) for what in order), arm(str(uuid.uuid4())))
    assert state(timers, one) == state(timers, many)
    assert events(timers, one) == events(timers, many)


def test_arm_keeps_the_first_time(timers):
    t = str(uuid.uuid4())
    call(timers, arm(t, LATER))
    call(timers, arm(t, "2020-01-01T00:00:00Z", kind="other"))
    assert timers.query("SELECT scheduler.rfc3339(at), kind FROM scheduler.timer")[0] == ("2099-01-01T00:00:00.000000Z", "hold")
    assert fire(timers) == 0
    assert timers.query(EVENTS)[1][2]["at"] == "2099-01-01T00:00:00.000000Z", "answered with the time that holds"


def test_what_a_tracer_knows_it_by(timers):
    """hold_id and the like of the command are in all of the timer's events, and nothing else of it is."""
    t, h = str(uuid.uuid4()), str(uuid.uuid4())
    call(timers, arm(t, "2020-01-01T00:00:00Z", hold_id=h, secret="x"))
    fire(timers)
    call(timers, cancel(t))
    call(timers, arm(str(uuid.uuid4()), "nonsense", hold_id=h), function="undo_messages")
    told = timers.query(EVENTS)
    assert [e[0] for e in told] == ["TimerArmed", "TimerFired", "TimerCancelled", "TimerFailed"]
    assert all(e[2]["hold_id"] == h and "secret" not in e[2] for e in told)


def test_cancel_many(timers):
    a, b, c = (str(uuid.uuid4()) for _ in range(3))
    call(timers, arm(a), arm(b, "2020-01-01T00:00:00Z"))
    assert fire(timers) == 1
    call(timers, ("CancelTimer", {"reservation_ids": [c, b, a, a]}))
    assert [state(timers, t) for t in (a, b, c)] == ["CANCELLED", "FIRED", "CANCELLED"]
    reasons = {e[1]: e[2].get("reason") for e in timers.query(EVENTS) if e[0] == "TimerCancelled"}
    assert reasons == {a: None, b: "it has fired", c: "cancelled before it was armed"}
    call(timers, ("CancelTimer", {"timer_ids": []}))


def test_a_failed_one_may_be_armed_after_all(timers):
    """A dead letter that an operator has put right, and one that was cancelled meanwhile."""
    a, b = str(uuid.uuid4()), str(uuid.uuid4())
    for t in (a, b):
        call(timers, arm(t, "nonsense"), function="undo_messages")
        assert state(timers, t) == "FAILED"
    call(timers, cancel(b))
    call(timers, arm(a), arm(b))
    assert (state(timers, a), state(timers, b)) == ("ARMED", "CANCELLED")
    call(timers, arm(a, "nonsense"), function="undo_messages")
    assert state(timers, a) == "ARMED", "a bad command takes no timer down that another one armed"


def saga_headers(saga, op, command=None, step="TIMER"):
    return {"saga-id": saga, "saga-step": step, "saga-op": op, "saga-command-id": command or str(uuid.uuid4()), "saga-name": "reserve",
            "saga-reply-to": "outbox.saga.inbox", "correlation-id": saga}


def replies(db):
    return db.query("SELECT headers ->> 'saga-op', headers ->> 'saga-outcome', payload, headers ->> 'saga-why' FROM outbox.event"
                    " WHERE type = 'SagaReply' ORDER BY seq")


def test_as_steps_of_sagas(timers):
    """Do, the same again, undo, the same again, a late do: done once, undone once, each answered."""
    saga, t = str(uuid.uuid4()), str(uuid.uuid4())
    do, undo = saga_headers(saga, "do"), saga_headers(saga, "undo")
    for h, what in ((do, arm(t)), (do, arm(t)), (undo, cancel(t)), (undo, cancel(t)), (saga_headers(saga, "do"), arm(t))):
        call(timers, what, headers=[h])
    assert state(timers, t) == "CANCELLED"
    assert [(op, outcome) for op, outcome, *_ in replies(timers)] == [("do", "done")] * 2 + [("undo", "done")] * 2 + [("do", "refused")]
    assert events(timers, t)[:2] == ["TimerArmed", "TimerCancelled"]
    other, t2 = str(uuid.uuid4()), str(uuid.uuid4())
    call(timers, cancel(t2), headers=[saga_headers(other, "undo")])
    call(timers, arm(t2), headers=[saga_headers(other, "do")])
    assert state(timers, t2) == "CANCELLED" and replies(timers)[-1][1] == "refused"
    call(timers, *(arm(str(uuid.uuid4())) for _ in range(5)), headers=[saga_headers(str(uuid.uuid4()), "do") for _ in range(5)])
    assert [r[1] for r in replies(timers)[-5:]] == ["done"] * 5
    cancelled = str(uuid.uuid4())
    call(timers, cancel(cancelled))
    call(timers, arm(cancelled), headers=[saga_headers(str(uuid.uuid4()), "do")])
    assert replies(timers)[-1][1::2] == ("refused", "it was cancelled before")
    fired = str(uuid.uuid4())
    call(timers, arm(fired, "2020-01-01T00:00:00Z"))
    fire(timers)
    call(timers, cancel(fired), headers=[saga_headers(str(uuid.uuid4()), "do", step="AFTER")])
    assert replies(timers)[-1][1] == "done" and replies(timers)[-1][2] == {"timers": 1, "fired": 1}


def test_undo_of_what_came_without_a_saga(timers):
    """In a choreography the ScheduleAt is a plain command and its undo comes from the engine: the timer is cancelled, the engine answered."""
    saga, t = str(uuid.uuid4()), str(uuid.uuid4())
    call(timers, arm(t))
    call(timers, cancel(t), headers=[saga_headers(saga, "undo")])
    assert state(timers, t) == "CANCELLED" and [r[:2] for r in replies(timers)] == [("undo", "done")]


def test_a_saga_hears_of_what_cannot_be_done(timers):
    """Buried commands of a saga: refused when they can never be done; failed, and so tried again, when it was about something else."""
    saga = str(uuid.uuid4())
    call(timers, arm(str(uuid.uuid4()), "nonsense"), function="undo_messages", headers=[saga_headers(saga, "do")])
    assert [r[1] for r in replies(timers)] == ["refused"] and "nonsense" in replies(timers)[0][3]
    call(timers, arm(str(uuid.uuid4())), function="undo_messages", headers=[saga_headers(str(uuid.uuid4()), "do")])
    assert replies(timers)[1][1] == "failed"
    call(timers, arm(str(uuid.uuid4()), "nonsense"), function="undo_messages", headers=[{"saga-id": "no-uuid", "saga-op": "do"}])
    assert len(replies(timers)) == 2


def test_two_batches_that_name_the_same_timers(timers):
    """Opposite orders in two transactions: the second waits for the first, nobody deadlocks."""
    ids = sorted(str(uuid.uuid4()) for _ in range(20))
    a, b = timers.connect(autocommit=False), timers.connect(autocommit=False)

    class At:
        def __init__(self, c):
            self.c = c

        def query(self, sql, args=None):
            with self.c.cursor() as cur:
                cur.execute(sql, args)
    call(At(a), *(arm(t) for t in ids))
    with b.cursor() as cur:
        cur.execute("SET lock_timeout = '200ms'")
    b.commit()
    with pytest.raises(psycopg2.errors.LockNotAvailable):
        call(At(b), *(cancel(t) for t in reversed(ids)))
    b.rollback()
    a.commit()
    call(At(b), *(cancel(t) for t in reversed(ids)))
    b.commit()
    assert timers.query("SELECT state, count(*) FROM scheduler.timer GROUP BY 1") == [("CANCELLED", 20)]


def test_long_backlog(timers):
    """Firing 1,000 of many: rows come by the index, and those behind the last place are not looked at again even while an old snapshot
    keeps their index entries."""
    timers.query("INSERT INTO scheduler.timer (timer_id, state, kind, at) SELECT outbox.uuid7(), 'ARMED', 'x', now() - n * interval '1 ms'"
                 " FROM generate_series(1, 50000) AS n")
    timers.psql("ANALYZE scheduler.timer")
    old = timers.connect(autocommit=False)
    with old.cursor() as cur:
        cur.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    place, times = ("-infinity", "00000000-0000-0000-0000-000000000000"), 0
    while True:
        n, *place = timers.query("SELECT fired, last_at::text, last_id::text FROM scheduler.fire(1000, %s, %s)", tuple(place))[0]
        if n == 0:
            break
        times += 1
    assert times == 50
    plan = "\n".join(r[0] for r in timers.query(
        "EXPLAIN (ANALYZE, BUFFERS) SELECT timer_id FROM scheduler.timer AS t WHERE t.state = 'ARMED' AND t.at <= now()"
        " AND (t.at, t.timer_id) > (%s::timestamptz, %s::uuid) ORDER BY t.at, t.timer_id LIMIT 1000",
        timers.query("SELECT max(at)::text, max(timer_id::text) FROM scheduler.timer")[0]))
    assert "timer_due" in plan
    old.close()
    assert timers.query("SELECT count(*), count(DISTINCT aggregateid) FROM outbox.event WHERE type = 'TimerFired'") == [(50000, 50000)]


def test_forgets_what_is_long_over(inbox):  # noqa: F811
    i = inbox()
    i.consumer({**KIND, "keep": "1s"}).start().wait_ready()
    wait_until(lambda: i.one("SELECT to_regclass('scheduler.timer')"), 60, "the schema")
    i.db.query("INSERT INTO scheduler.timer (timer_id, state, kind, at, ended_at) SELECT outbox.uuid7(), 'FIRED', 'x', now(), now() - interval '2 s'"
               " FROM generate_series(1, 12000) UNION ALL SELECT outbox.uuid7(), 'ARMED', 'x', '2099-01-01', NULL")
    wait_until(lambda: i.db.query("SELECT state, count(*) FROM scheduler.timer GROUP BY 1") == [("ARMED", 1)], 60, "them to be forgotten")
