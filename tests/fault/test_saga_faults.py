"""tests/fault/test_saga_faults.py -- what befalls sagas: replies that come wrong, services that are down, undos that keep
failing, one seat that all want, locks in each other's way, definitions that change, and engines that were away.

The matrix of faults, S1 to S5. What is left at the end is asked of the services, not of the engine.
"""
import collections
import json
import os
import uuid

import psycopg2
import pytest
import servers
from confluent_kafka import Producer
from outbox import header, read_topic
from saga import BUY, EVENTS, INBOX, MONEY, buy, sagas  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)

TIMERS = 100000 if os.environ.get("POSTRIDER_SAGAS") else 20000


def send(s, saga, step, op="do", outcome="done", command=None, data=b"{}", type="SagaReply", **more):
    """A reply that no service of ours sent."""
    h = {"id": str(uuid.uuid4()), "type": type, "saga-id": saga, "saga-step": step, "saga-op": op,
         "saga-command-id": command or str(uuid.uuid4()), "saga-outcome": outcome, **more}
    p = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0})
    p.produce(INBOX, data, saga, headers=[(k, v.encode()) for k, v in h.items() if v is not None])
    assert p.flush(10) == 0


def command_of(s, id, step, op="do"):
    return wait_until(lambda: s.db.query("SELECT command_id::text FROM saga.log WHERE saga_id = %s AND step = %s AND op = %s"
                                         " AND command_id IS NOT NULL LIMIT 1", (id, step, op)), 45, f"the command of {step}")[0][0]


def close(s, part, *steps):
    s.part[part].db.query("DELETE FROM app.closed")
    for step in steps:
        s.part[part].db.query("INSERT INTO app.closed VALUES (%s)", (step,))


# ---------------------------------------------------------------- S2: replies

def test_replies_that_nobody_waits_for(sagas):  # noqa: F811
    """Story: replies for a saga nobody knows, for a step there is not, with another's command id, for a step that has not
    begun, and after the end: each is noted and moves nothing."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s")}).start()
    stranger = str(uuid.uuid4())
    send(s, stranger, "HOLD")
    wait_until(lambda: s.log(stranger, "unknown"), 45, "the stranger's reply to be noted")
    assert s.state(stranger) is None
    s.part["money"].consumer.terminate()
    id, = s.begin(1)
    command = command_of(s, id, "PAYMENT")
    send(s, id, "PAYMENT", command=str(uuid.uuid4()))
    send(s, id, "PAYMENT", "undo", command=command)
    send(s, id, "NOSUCH", command=command)
    send(s, id, "TICKET")
    send(s, id, "HOLD", outcome="refused", command=command_of(s, id, "HOLD"))
    wait_until(lambda: len(s.log(id, "unknown")) >= 4 and len(s.log(id, "duplicate")) == 1, 45, "the replies to be noted")
    assert s.steps(id)["PAYMENT"] == "DOING" and s.steps(id)["TICKET"] == "WAITING" and s.state(id) == "RUNNING"
    s.part["money"].consumer.start()
    s.wait_state(id, "COMPLETED")
    state, log = s.state(id), len(s.log(id))
    send(s, id, "PAYMENT", command=command)
    send(s, id, "TICKET", outcome="refused", command=command)
    wait_until(lambda: len(s.log(id)) == log + 2, 45, "replies after the end to be noted")
    assert s.state(id) == state
    s.check()


def test_broken_records(sagas):  # noqa: F811
    """Story: records that are no reply and no start come by the inbox. They become dead letters; the others go on."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s")}).start()
    send(s, "no-uuid", "HOLD")
    send(s, str(uuid.uuid4()), "HOLD", outcome="maybe")
    send(s, str(uuid.uuid4()), "HOLD", op="redo")
    send(s, str(uuid.uuid4()), "HOLD", command="x")
    send(s, str(uuid.uuid4()), "HOLD", **{"saga-step": None})
    send(s, str(uuid.uuid4()), "HOLD", type="SagaStart", **{"saga-outcome": None, "saga-name": "nothing"})
    id, = s.begin(1)
    s.wait_state(id, "COMPLETED")
    wait_until(lambda: s.db.one("SELECT count(*) FROM inbox.dead_letter") == 6, 45, "six dead letters")
    assert s.engine.consumer.running()


def test_late_after_compensation(sagas):  # noqa: F811
    """Story: the answer to a do comes when its undo is done. The saga stays COMPENSATED and the answer is in the log."""
    payment = BUY.partition('"PAYMENT"')[2].partition('"TICKET"')[0]
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", text=BUY.replace(payment, payment.replace("@timeout@", "400ms")))}).start()
    id, = s.begin([{"post": {"PAYMENT": "lost"}}])
    s.wait_state(id, "COMPENSATED")
    send(s, id, "PAYMENT", command=command_of(s, id, "PAYMENT"))
    wait_until(lambda: s.log(id, "late"), 45, "the late reply to be noted")
    s.check()
    assert s.state(id) == "COMPENSATED"


# ---------------------------------------------------------------- S3: services that are down

def test_service_down_past_the_deadline(sagas):  # noqa: F811
    """Story: the payment service is down for longer than the saga may last. What is held is let go at once; when the
    service comes back it finds do and undo, and does neither."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", undos=200)}).start()
    s.part["money"].consumer.terminate()
    id, = s.begin(1)
    command_of(s, id, "PAYMENT")
    # Not before the seat is held, however long that takes.
    s.db.query("UPDATE saga.instance_0 SET deadline_at = now() + interval '1 s', due_at = now() + interval '1 s' WHERE id = %s", (id,))
    wait_until(lambda: s.state(id) == "COMPENSATING", 45, "the deadline")
    assert s.log(id, "deadline")
    assert s.steps(id)["PAYMENT"] == "UNDOING" and s.steps(id)["HOLD"] == "DONE", "in reverse: the payment first"
    s.part["money"].consumer.start()
    s.wait_state(id, "COMPENSATED")
    s.check()


def test_undo_that_keeps_failing(sagas):  # noqa: F811
    """Story: the undo of a payment fails until its tries are used up. A person sees it everywhere and has every way on;
    what he orders is in the log with his name."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", undos=2)}).start()
    close(s, "money", "undo PAYMENT")
    script = {"script": {"TICKET": "refuse"}}
    a, b, c, d = s.begin([script] * 4)
    for id in (a, b, c, d):
        s.wait_state(id, "STUCK")
    # seen
    assert s.db.one("SELECT count(*) FROM saga.stuck WHERE step = 'PAYMENT' AND op = 'undo' AND why LIKE '%%the script says fail%%'") == 4
    wait_until(lambda: s.engine.consumer.metric("postrider_saga_stuck") == 4, 30, "the metric")
    wait_until(lambda: "4 sagas are stuck" in s.engine.consumer.get("/readyz")[1], 30, "readiness to tell")

    def told():
        return [r for r in read_topic(s.kafka, EVENTS) if header(r, "type") == b"SagaStuck"]
    events = wait_until(lambda: len(e := told()) >= 4 and e, 30, "the events")
    assert sorted(header(r, "saga-id").decode() for r in events) == sorted((a, b, c, d))
    event = json.loads(events[0].value)
    assert event["step"] == "PAYMENT" and event["state"] == "STUCK" and event["data"]["amount"] == 30, event
    # a restart changes nothing of it
    s.engine.consumer.terminate()
    s.engine.consumer.start()
    wait_until(lambda: s.engine.consumer.metric("postrider_saga_stuck") == 4, 60, "the metric after a restart", ignore=(OSError,))
    assert s.order(a, "undo")[0] == "refused", "it is being undone already"
    # edit-data, then retry, when the service is well
    assert s.order(a, "edit-data", detail={"amount": 30, "seat": f"seat-{a}", "script": {}, "note": "by hand"}, by="kim") == ("done", None)
    close(s, "money")
    assert s.order(a, "retry", by="kim") == ("done", None)
    s.wait_state(a, "COMPENSATED")
    assert s.db.query("SELECT by, detail ~ 'data replaced', detail ~ 'retry' FROM saga.log WHERE saga_id = %s AND what = 'order' ORDER BY seq",
                      (a,)) == [("kim", True, False), ("kim", False, True)]
    # skip: the person has given the money back by hand
    assert s.order(b, "skip", "PAYMENT", by="lee") == ("done", None)
    s.wait_state(b, "COMPENSATED")
    assert s.steps(b) == {"HOLD": "UNDONE", "PAYMENT": "UNDONE", "TICKET": "REFUSED", "NOTE": "WAITING"}
    s.part["money"].db.query("SELECT app.apply(%s, 'PAYMENT', 'undo', '{\"amount\": 30}')", (b,))
    # abort: it ends as it is
    assert s.order(c, "abort", by="lee") == ("done", None)
    assert s.state(c) == "ABORTED" and s.steps(c)["HOLD"] == "DONE"
    # stuck again is stuck again
    close(s, "money", "undo PAYMENT")
    assert s.order(d, "retry", by="lee") == ("done", None)
    wait_until(lambda: len(s.log(d, "stuck")) == 2, 45, "to be stuck again")
    close(s, "money")
    assert s.order(d, "retry", "PAYMENT", by="lee") == ("done", None)
    s.wait_state(d, "COMPENSATED")
    wait_until(lambda: s.engine.consumer.metric("postrider_saga_stuck") == 0, 30, "the metric to go back")
    wait_until(lambda: s.engine.consumer.get("/readyz")[0] == 200, 30, "readiness")
    wait_until(s.engine.stands, 45, "its events to be out")
    types = collections.Counter(header(r, "type") for r in read_topic(s.kafka, EVENTS))
    assert types[b"SagaStuck"] == 5 and types[b"SagaResumed"] == 4 and types[b"SagaAborted"] == 1, types
    s.check([a, b, d])


def test_stuck_past_the_pivot(sagas):  # noqa: F811
    """Story: what must succeed does not. It is not undone by itself; a person may retry, skip, or undo it all."""
    text = buy(timeout="60s").replace("attempts = 200", "attempts = 2")
    s = sagas(definitions={"buy.cfg": text}).start()
    close(s, "seats", "NOTE")
    a, b, c = s.begin(3)
    for id in (a, b, c):
        s.wait_state(id, "STUCK")
    assert s.order(a, "undo")[0] == "refused", "NOTE may have happened and has no undo"
    assert s.order(a, "skip", "HOLD")[0] == "refused", "only what is stuck may be skipped"
    assert s.order(a, "skip", "NOSUCH")[0] == "refused"
    assert s.order(a, "skip") == ("done", None)
    assert s.state(a) == "COMPLETED"
    close(s, "seats")
    assert s.order(b, "retry") == ("done", None)
    s.wait_state(b, "COMPLETED")
    s.quiet()
    found = s.wrong([b])
    assert not found, found
    assert s.order(c, "retry", "NOTE") == ("done", None)
    s.wait_state(c, "COMPLETED")
    with pytest.raises(psycopg2.Error):
        s.order(c, "retry")


# ---------------------------------------------------------------- S4: one seat, and locks

def test_a_thousand_and_one_seat(sagas):  # noqa: F811
    """Story: 1,000 buyers and one seat. One has it, 999 have their money."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", deadline="10m")}).start()
    ids = []
    for _ in range(10):
        ids += s.begin(100, seat="A1")
    s.wait_over(ids, 180)
    s.check(timeout=80)
    assert collections.Counter(s.states(set(ids)).values()) == {"COMPLETED": 1, "COMPENSATED": 999}
    assert s.part["seats"].db.query("SELECT name, sold FROM app.seat WHERE holder IS NOT NULL") == [("A1", True)]
    assert s.part["money"].db.one("SELECT balance FROM app.account") == 1000000 - 30


LOCKING = """
name = "@kind@"; version = 1; style = "orchestration"; locks = ( @locks@ ); lock_conflict = "@conflict@";
steps = (
  { name = "PAYMENT"; kind = "compensatable";
    do: { command = "Pay"; topic = "@name@.money"; send = ( "amount = data.amount", "script = data.script" ); timeout = "2m"; };
    undo: { command = "PayBack"; send = ( "amount = data.amount", "script = data.script" ); timeout = "2m"; }; } );
"""


def locking(kind, locks, conflict="wait"):
    text = LOCKING.replace("@kind@", kind).replace("@locks@", ", ".join(f'"{x}"' for x in locks))
    return text.replace("@conflict@", conflict)


def test_locks_in_each_others_way(sagas):  # noqa: F811
    """Story: ten kinds of sagas over five locks, two or three each, in every order. All get their turn, and none is at work
    beside another that has one of its locks."""
    kinds = {f"k{n}": [f"L{(n * a + b) % 5}:${{data.place}}" for a, b in ((1, 0), (3, 1), (2, 4))[:2 + n % 2]] for n in range(10)}
    kinds = {k: list(dict.fromkeys(v)) for k, v in kinds.items()}
    s = sagas(definitions={f"{k}.cfg": locking(k, v) for k, v in kinds.items()}, services={"money": MONEY}).start()
    ids = {}
    log = os.path.getsize(s.pg.log)  # what others did before is not ours
    for n in range(20):
        for k in kinds:
            script = {"PAYMENT": "refuse"} if n % 5 == 4 else {}
            ids[s.begin([{"script": script}], name=k, place=n % 2)[0]] = k
    s.wait_over(ids, 180)
    assert collections.Counter(s.states().values()) == {"COMPLETED": 160, "COMPENSATED": 40}
    work = collections.defaultdict(list)  # lock: the intervals in which it was needed
    for id, began, ended, place in s.db.query(
            "SELECT i.id::text, min(l.seq) FILTER (WHERE l.what = 'sent'), max(l.seq) FILTER (WHERE l.what = 'state'), i.data ->> 'place'"
            " FROM saga.instance AS i JOIN saga.log AS l ON l.saga_id = i.id GROUP BY i.id, i.data ->> 'place'"):
        for lock in kinds[ids[id]]:
            work[lock.replace("${data.place}", place)].append((began, ended, id))
    for lock, spans in work.items():
        spans.sort()
        for (_, end, one), (begin, _, other) in zip(spans, spans[1:]):
            assert end <= begin, f"{one} and {other} had {lock} at the same time"
    assert s.db.one("SELECT (SELECT count(*) FROM saga.lock) + (SELECT count(*) FROM saga.lock_queue) + (SELECT count(*) FROM saga.wake)") == 0
    with open(s.pg.log, "rb") as f:
        f.seek(log)
        assert b"deadlock" not in f.read()


def test_lock_refused(sagas):  # noqa: F811
    """Story: a second payment of an order comes while the first is under way: it ends with nothing done, and says why."""
    s = sagas(definitions={"one.cfg": locking("one", ["order:${data.order}"], "refuse")}, services={"money": MONEY}).start()
    close(s, "money", "PAYMENT")
    a, = s.begin(1, name="one", order=7)
    command_of(s, a, "PAYMENT")
    b, = s.begin(1, name="one", order=7)
    s.wait_state(b, "COMPENSATED")
    assert "order:7" in s.db.one("SELECT why FROM saga.instance WHERE id = %s", (b,))
    assert s.db.query("SELECT count(*) FROM saga.log WHERE saga_id = %s AND what = 'sent'", (b,)) == [(0,)]
    close(s, "money")
    s.wait_over([a])
    c, = s.begin(1, name="one", order=7)
    s.wait_over([c])
    assert s.state(c) == "COMPLETED"


# ---------------------------------------------------------------- starts

def test_starts(sagas):  # noqa: F811
    """Story: an id is started twice; a start's transaction is rolled back."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s")}).start()
    a, = s.begin(1)
    s.db.query("SELECT saga.start('buy', '{\"amount\": 77, \"seat\": \"x\"}', %s)", (a,))
    conn = s.db.connect(autocommit=False)
    with conn.cursor() as cur:
        cur.execute("SELECT saga.start('buy', '{\"amount\": 30, \"seat\": \"y\"}')::text")
        b = cur.fetchone()[0]
    conn.rollback()
    conn.close()
    s.wait_state(a, "COMPLETED")
    s.db.query("SELECT saga.start('buy', '{\"amount\": 77, \"seat\": \"x\"}', %s)", (a,))
    wait_until(lambda: len(s.log(a, "duplicate")) == 2, 45, "two more starts to be noted")
    s.check()
    assert s.state(b) is None and not s.log(b)


STARTED_BY = """
start: { topic = "@name@.orders"; type = "Ordered"; data = ( "seat = payload.place", "amount = payload.price", "script = payload.script" ); };
"""


def test_start_by_event(sagas):  # noqa: F811
    """An event of a service starts a saga; the same event again does not."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", head=STARTED_BY)}, topics=["@.orders"], post=False).start()
    event = str(uuid.uuid4())
    p = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0})
    for type in ("Ordered", "Ordered", "Other"):
        p.produce(f"{s.name}.orders", json.dumps({"place": "B2", "price": 30}), "o1", headers=[("id", event.encode()), ("type", type.encode())])
    assert p.flush(10) == 0
    s.wait_state(event, "COMPLETED")
    wait_until(lambda: s.log(event, "duplicate"), 45, "the second event to be noted")
    s.check()
    assert len(s.states()) == 1


# ---------------------------------------------------------------- S5: time

def test_back_after_an_outage(sagas):  # noqa: F811
    """Story: the engine was away for longer than every try may last, and the answers lie in its topic. They are handled
    before any timer fires: no step counts as overdue, and nothing is sent again."""
    s = sagas(definitions={"buy.cfg": buy(timeout="4s")}).start()
    s.part["seats"].consumer.terminate()
    ids = s.begin(300)
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.log WHERE what = 'sent'") == 300, 45, "the first commands")
    s.engine.relay.wait_ready()
    s.engine.consumer.kill()
    before = s.db.one("SELECT count(*) FROM saga.log WHERE what = 'timeout' AND step = 'HOLD' AND op = 'do'")
    s.part["seats"].consumer.start()
    wait_until(lambda: s.part["seats"].db.one("SELECT count(*) FROM app.did WHERE step = 'HOLD'") == 300, 60, "the answers")
    wait_until(s.part["seats"].stands, 45, "the answers to be out")
    wait_until(lambda: s.post.is_idle() and s.post.seen >= 300, 45, "the post")
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.timer WHERE due_at < now()") == 300, 45, "all to be overdue")
    s.engine.consumer.start()
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.log WHERE what = 'done' AND step = 'HOLD'") == 300, 60, "the answers to be handled")
    assert s.db.one("SELECT count(*) FROM saga.log WHERE what = 'timeout' AND step = 'HOLD' AND op = 'do'") == before
    s.wait_over(ids, 90)
    s.check()


def test_frozen_engine(sagas):  # noqa: F811
    """Story: the engine's host stood still. It wakes up with timers that are long due, and does not know yet that the answers
    lie in the topic: they are handled first all the same."""
    s = sagas(definitions={"buy.cfg": buy(timeout="5s")}).start()
    s.part["seats"].consumer.terminate()
    ids = s.begin(100)
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.log WHERE what = 'sent'") == 100, 45, "the first commands")
    wait_until(lambda: s.engine.stands(), 45, "the engine to have nothing to do")
    s.engine.consumer.sigstop()
    s.part["seats"].consumer.start()
    wait_until(s.part["seats"].stands, 45, "the answers to be out")
    wait_until(lambda: s.post.is_idle() and s.post.seen >= 100, 45, "the post")
    before = s.db.one("SELECT count(*) FROM saga.log WHERE what = 'timeout' AND step = 'HOLD' AND op = 'do'")
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.timer WHERE due_at < now()") == 100, 45, "all to be overdue")
    s.engine.consumer.sigcont()
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.log WHERE what = 'done' AND step = 'HOLD'") == 100, 60, "the answers to be handled")
    assert s.db.one("SELECT count(*) FROM saga.log WHERE what = 'timeout' AND step = 'HOLD' AND op = 'do'") == before
    s.wait_over(ids, 90)
    s.check()


def test_clock_jumps(sagas):  # noqa: F811
    """Story: the clock of the engine's host jumps by hours, forth and back, while tries wait for their time. The database's
    clock counts: nothing fires early, twice, or late."""
    s = sagas(definitions={"buy.cfg": buy(timeout="1s")})
    clock = f"{s.dir}/clock"
    s.engine.consumer.env["POSTRIDER_CLOCK"] = clock

    def jump(seconds):
        with open(clock + ".new", "w", encoding="ascii") as f:
            f.write(str(seconds))
        os.rename(clock + ".new", clock)
    jump(0)
    s.start()
    id, = s.begin([{"script": {"HOLD": "silent"}}])
    for n, seconds in enumerate((7200, -7200, 100000, -3600)):
        wait_until(lambda n=n: len(s.log(id, "sent") + s.log(id, "sent_again")) > n, 45, "the next try")
        jump(seconds)
    s.wait_state(id, "COMPENSATED")
    tries = s.db.query("SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY seq))::float, what FROM saga.log"
                       " WHERE saga_id = %s AND step = 'HOLD' AND op = 'do' AND what <> 'turned' ORDER BY seq", (id,))
    waited = [t for t, what in tries if what == "timeout"]
    assert len(waited) == 4 and all(1.0 <= t < 600 for t in waited), tries  # the jumps are of hours
    s.check()


def test_a_hundred_thousand_due_timers(sagas):  # noqa: F811
    """Story: a hundred thousand sagas (a fifth of them in make check) wait for an answer that never came while the engine was down. At its start
    each timer fires once, in bounded transactions, and new sagas go on meanwhile."""
    N = TIMERS
    text = buy(timeout="1h", deadline="10h").replace('attempts = 4', 'attempts = 1')
    s = sagas(definitions={"buy.cfg": text}, services={}, post=False).start()
    wait_until(lambda: s.db.query("SELECT 1 FROM saga.definition"), 45, "the definition")
    s.engine.consumer.terminate()
    s.engine.relay.terminate()
    steps = [{"step": "HOLD", "state": "DOING", "since": 1, "tries": 1, "due": 1700000000000000}] + [
        {"step": x, "state": "WAITING"} for x in ("PAYMENT", "TICKET", "NOTE")]
    s.db.query("INSERT INTO saga.instance_0 (id, name, version, state, data, steps, started_at, since_at, due_at, part)"
               " SELECT outbox.uuid7(), 'buy', 1, 'RUNNING', '{\"seat\": \"z\"}', %s, now(), now(), now() - interval '1 h' + g * interval '1 ms',"
               f" '{INBOX}-' || g %% 2 FROM generate_series(1, {N}) AS g", (json.dumps(steps),))
    s.db.query("INSERT INTO saga.count VALUES ('buy', 'RUNNING', 9, %s)", (N,))
    s.db.query("ANALYZE saga.instance_0")
    s.engine.consumer.start()
    wait_until(lambda: s.db.one("SELECT count(*) FROM saga.instance_0 WHERE state = 'COMPENSATING'") == N, 240, "all timers to fire",
               interval=0.3, interval_max=0.5)
    assert s.db.query("SELECT what, op, count(*), count(DISTINCT saga_id) FROM saga.log WHERE what IN ('timeout', 'sent', 'sent_again') GROUP BY 1, 2 ORDER BY 1") == [
        ("sent", "undo", N, N), ("timeout", "do", N, N)]
    assert s.db.one("SELECT count(*) FROM outbox.event WHERE type = 'Free'") == N
    assert dict(s.db.query("SELECT state, n FROM saga.counts()")) == {"RUNNING": 0, "COMPENSATING": N}


# ---------------------------------------------------------------- definitions

def test_definition_changes_under_way(sagas):  # noqa: F811
    """Story: a new version is rolled out while sagas are under way. They stay on theirs, new ones take the new one, and
    `migrate` moves those that can be moved."""
    one = buy(timeout="60s")
    two = one.replace("version = 1", "version = 2").replace('name = "NOTE"', 'name = "TELL"')
    s = sagas(definitions={"buy.cfg": one}).start()
    s.part["money"].consumer.terminate()
    a, b = s.begin(2)
    for id in (a, b):
        command_of(s, id, "PAYMENT")
    # the same version with another text is refused at the start
    s.engine.consumer.terminate()
    s.define("buy.cfg", one + "\n# changed\n")
    s.engine.consumer.start()
    assert s.engine.consumer.wait(60) == 78 and "differs from what the database has" in s.engine.consumer.log_text()
    s.define("buy.cfg", two)
    s.engine.consumer.start().wait_ready()
    c, = s.begin(1)
    wait_until(lambda: s.state(c), 45, "the new one")
    assert s.db.query("SELECT version FROM saga.instance WHERE id IN (%s, %s, %s) ORDER BY id", (a, b, c)) == [(1,), (1,), (2,)]
    outcome, reason = s.order(a, "migrate", detail={"version": 9})
    assert outcome == "refused" and "no such version" in reason
    assert s.order(b, "migrate", detail={"version": 2}, by="kim") == ("done", None)
    s.part["money"].consumer.start()
    for id, last in ((a, "NOTE"), (b, "TELL"), (c, "TELL")):
        s.wait_state(id, "COMPLETED")
        assert s.steps(id)[last] == "DONE"
    assert "1 -> 2" in s.db.one("SELECT detail FROM saga.log WHERE saga_id = %s AND what = 'order'", (b,))


# ---------------------------------------------------------------- a service's copy

def test_copies(sagas):  # noqa: F811
    """Story: the service that asked for a saga answers where it stands from its own database."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s")})
    copy = servers.Consumer(
        s.part["money"].db.conninfo, s.kafka.bootstrap, f"{s.name}-copy", [EVENTS], {"kind": "sql", "function": "saga.on_event"})
    s.members.append(copy)
    s.start()
    copy.start()
    db = s.part["money"].db
    ids = s.begin([{}, {"script": {"PAYMENT": "refuse"}}])
    db.query("SELECT saga.expect(%s, 'buy', '{}')", (ids[0],))
    s.wait_over(ids)
    wait_until(lambda: dict(db.query("SELECT saga_id::text, state FROM saga.copy")) == s.states(), 45, "the copies to follow")
    for id in ids:
        steps, data, why = db.query("SELECT steps, data, why FROM saga.copy WHERE saga_id = %s", (id,))[0]
        assert {x["step"]: x["state"] for x in steps} == s.steps(id) and data["amount"] == 30
        assert (why is None) == (id == ids[0])
