"""tests/e2e/test_saga_sql.py -- schema saga as the engine, participants, starters and operators call it: the barrier in
every order of its calls, instances, timers, locks, orders, rotation, roles, installing.

Needs Postgres only. Refuses to look into the engine: what it does with these functions is tested elsewhere.
"""
import collections
import contextlib
import itertools
import json
import os
import random
import re
import shlex
import subprocess
import uuid

import pytest

import servers
from sql import ask, Call, login, refused, session, wait_blocked
from wait import wait_until

INBOX = "outbox.saga.inbox"


def new_id():
    return str(uuid.uuid4())


# ---------------------------------------------------------------- taking part

class Step:
    """A participant's step of one saga: its calls, and what they published."""

    def __init__(self, db, saga=None, step="PAYMENT", seen=None):
        self.db, self.saga, self.step = db, saga or db.one("SELECT outbox.uuid7()"), step
        self.seen = db.one("SELECT count(*) FROM outbox.event") if seen is None else seen

    def call(self, function, *more, on=None):
        return ask(on or self.db, f"SELECT saga.{function}(%s{', %s' * (1 + len(more))})", (self.saga, self.step, *more))[0][0]

    def barrier(self, op, command, effect=None, on=None):
        return self.call("barrier", op, command, effect, on=on)

    def replies(self):
        """What was published since the last look: (op, command, outcome, why, data)."""
        rows = self.db.query("SELECT headers, payload, topic, aggregateid, type, aggregatetype FROM outbox.event ORDER BY seq OFFSET %s",
                             (self.seen,))
        self.seen += len(rows)
        for h, _, topic, key, kind, at in rows:
            assert (topic, key, kind, at) == (INBOX, self.saga, "SagaReply", "saga")
            assert (h["saga-id"], h["saga-step"]) == (self.saga, self.step)
        return [(h["saga-op"], h["saga-command-id"], h["saga-outcome"], h.get("saga-why"), p) for h, p, *_ in rows]


class Model:
    """What the barrier should say, in the plainest words: the state of one step, and one call of it."""

    def __init__(self):
        self.do, self.undo = None, None  # (command, outcome)

    def command(self, op, command, outcome):
        """The call, which ends with outcome when it may be done: (go, published outcome, why)."""
        if op == "do":
            if self.undo:
                return False, "refused", "undone"
            if self.do and (self.do[1] == "done" or self.do[1] == "refused" and self.do[0] == command):
                return False, self.do[1], "no" if self.do[1] == "refused" else None
            self.do = (command, outcome)
            return True, outcome, None if outcome == "done" else "no"
        if self.undo and self.undo[1] == "done":
            return False, "done", None
        if not self.do or self.do[1] != "done":
            self.undo = (command, "done")
            return False, "done", None
        self.undo = (command, "done" if outcome == "done" else "failed")
        return True, outcome, None if outcome == "done" else "no"


CALLS = [(op, command, outcome) for op in ("do", "undo") for command in (0, 1) for outcome in ("done", "refused", "failed")]


@pytest.mark.parametrize("how", ["one", "set", "message"])
def test_barrier_truth_table(db, how):
    """Every order of two calls, and many of three: do and undo, the same command again and an operator's new one, each with
    every outcome. The plain functions, those that take the message, and the set-based ones say the same."""
    commands = [new_id(), new_id()]
    cases = list(itertools.product(CALLS, repeat=3))
    cases = list(itertools.product([c for c in CALLS if c[1] == 0], CALLS)) + random.Random(3).sample(cases, 150)
    with session(db) as c:
        for case in cases:
            step, model = Step(db, new_id(), seen=0), Model()
            seen = ask(c, "SELECT count(*) FROM outbox.event")[0][0]
            for op, n, outcome in case:
                go, said, why = model.command(op, commands[n], outcome)
                assert do_step(c, how, step, op, commands[n], outcome) == go, (case, op, n, outcome)
                got = ask(c, "SELECT headers, payload FROM outbox.event ORDER BY seq OFFSET %s", (seen,))
                seen += len(got)
                assert [(h["saga-op"], h["saga-command-id"], h["saga-outcome"], h.get("saga-why")) for h, _ in got] == \
                    [(op, commands[n], said, why)], (case, op, n, outcome)
                if said == "done" and (go or op == "do"):
                    assert got[0][1] == {"op": op}, (case, "the reply that was stored")
        c.rollback()


def message(saga, step, op, command, **more):
    headers = {"saga-id": saga, "saga-step": step, "saga-op": op, "saga-command-id": command, "saga-reply-to": INBOX, **more}
    return (new_id(), "outbox.command.payment", 0, 1, saga, "ExecutePayment", '{"amount": 30}', None, json.dumps(headers), None)


def array(c, messages):
    """The SQL of an array of inbox.message."""
    with c.cursor() as cur:
        return "ARRAY[%s]::inbox.message[]" % ", ".join(cur.mogrify(
            "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)::inbox.message", m).decode() for m in messages)


def do_step(c, how, step, op, command, outcome):
    reply, why = json.dumps({"op": op}), None if outcome == "done" else "no"
    ms = array(c, [message(step.saga, step.step, op, command)])
    m = f"({ms})[1]"
    if how == "set":
        go = ask(c, f"SELECT go FROM saga.barriers({ms})")[0][0]
        if go:
            ask(c, f"SELECT saga.replies({ms}, '{{1}}', ARRAY[%s], ARRAY[%s]::jsonb[], ARRAY[%s]::text[])", (outcome, reply, why))
    elif how == "message":
        go = ask(c, f"SELECT saga.barrier({m})")[0][0]
        if go:
            ask(c, f"SELECT saga.{ {'done': 'done', 'refused': 'refuse', 'failed': 'fail'}[outcome]}({m}"
                   + {"done": ", %(reply)s)", "refused": ", %(why)s, %(reply)s)", "failed": ", %(why)s)"}[outcome],
                {"reply": reply, "why": why})
    else:
        go = step.barrier(op, command, on=c)
        if go and outcome == "done":
            step.call("done", op, command, reply, on=c)
        elif go and outcome == "refused":
            step.call("refuse", op, command, why, reply, on=c)
        elif go:
            step.call("fail", op, command, why, on=c)
    return go


@pytest.mark.parametrize("how", ["one", "set", "message"])
@pytest.mark.parametrize("outcome", ["refused", "failed", "done"])
def test_an_older_command_is_not_taken_anew(db, how, outcome):
    """The engine's command ids end with their generation. An operator's retry is answered "refused", the saga turns around;
    then the first command comes once more, out of a dead letter topic: it must not be done as if it were the newer one."""
    step, base = Step(db), new_id()[:32]
    older, newer = base + "0000", base + "0001"
    with session(db) as c:
        assert do_step(c, how, step, "do", older, "failed") and do_step(c, how, step, "do", newer, outcome)
        assert not do_step(c, how, step, "do", older, "done")
        seen = ask(c, "SELECT headers ->> 'saga-command-id', headers ->> 'saga-outcome' FROM outbox.event ORDER BY seq DESC LIMIT 1")
        assert seen == [(older, outcome)]
        c.rollback()


def test_what_is_under_way_is_not_done_twice(db):
    """A participant that answers later commits the barrier without an answer: the same command again gets none,
    an operator's new one is taken anew, and an undo goes."""
    step, first, second = Step(db), new_id(), new_id()
    assert step.barrier("do", first) and not step.barrier("do", first)
    assert step.replies() == []
    assert step.barrier("do", second)
    step.call("done", "do", second, "{}")
    assert step.barrier("undo", first) and not step.barrier("undo", first) and step.barrier("undo", second)
    assert [r[:3] for r in step.replies()] == [("do", second, "done")]


@pytest.mark.parametrize("first, second, go, says", [
    ("do", "do", False, ["done", "done"]),
    ("do", "undo", True, ["done", "done"]),
    ("undo", "do", False, ["done", "refused"]),
    ("undo", "undo", False, ["done", "done"]),
])
@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("how", ["one", "set"])
def test_two_at_once_wait_for_each_other(db, first, second, go, says, commits, how):
    """Two sessions with the same step: the second waits, and sees what the first left, or that it left nothing."""
    step, command = Step(db), new_id()

    def call(c, op):
        went = do_step(c, how, step, op, command, "done")
        c.commit()
        return went
    with session(db) as a, session(db) as b:
        assert do_step(a, how, step, first, command, "done") == (first == "do")
        late = Call(lambda: call(b, second))
        wait_blocked(db, b)
        a.commit() if commits else a.rollback()
        assert late.result() == (go if commits else second == "do")
    assert [r[2] for r in step.replies()] == (says if commits else ["done"])


def test_bad_commands_are_named(db):
    s, c = new_id(), new_id()
    for args, says in [((None, "A", "do", c), "saga's id"), ((s, "", "do", c), "step"), ((s, None, "do", c), "step"),
                       ((s, "A" * 257, "do", c), "257 bytes"), ((s, "A", "redo", c), '"redo" is neither'),
                       ((s, "A", None, c), "op is missing"), ((s, "A", "do", None), "command's id")]:
        code, text, hint = refused(db.query, "SELECT saga.barrier(%s, %s, %s, %s)", args)
        assert code == "22023" and says in text and "saga-command-id" in hint
    with session(db) as conn:
        ms = array(conn, [message(s, "A", "do", c), message("no-uuid", "A", "do", c)])
        code, text, _ = refused(ask, conn, f"SELECT * FROM saga.barriers({ms})")
        assert code == "22023" and 'saga-id is "no-uuid"' in text
        conn.rollback()
        for bad in ("SELECT saga.done(%s, 'A', 'do', %s)", "SELECT saga.fail(%s, 'A', 'undo', %s, 'x')"):
            code, text, hint = refused(ask, conn, bad, (s, c))
            assert code == "55000" and "has not passed the barrier" in text and "saga.barrier()" in hint
            conn.rollback()
        ms = array(conn, [message(s, "A", "do", c)])
        assert refused(ask, conn, f"SELECT saga.replies({ms}, '{{1}}', '{{done}}')")[0] == "55000"
        conn.rollback()
        assert refused(ask, conn, f"SELECT saga.replies({ms}, '{{2}}', '{{done}}')")[0] == "22023"
        conn.rollback()
        ask(conn, "SELECT saga.barrier(%s, 'A', 'do', %s)", (s, c))
        assert "a JSON array, not an object" in refused(ask, conn, "SELECT saga.done(%s, 'A', 'do', %s, '[]')", (s, c))[1]
        conn.rollback()
        conn.set_session(isolation_level="REPEATABLE READ")
        assert refused(ask, conn, "SELECT saga.barrier(%s, 'A', 'do', %s)", (s, c))[0] == "25001"


def test_a_batch_of_everything(db):
    """New dos, undos of done ones, duplicates inside the batch and of before, an undo before its do: one call."""
    ids = [db.one("SELECT outbox.uuid7()") for _ in range(5)]
    c1, c2 = new_id(), new_id()
    with session(db) as conn:
        for saga in ids[:2]:
            assert Step(db, saga).barrier("do", c1, json.dumps({"was": saga}), on=conn)
            Step(db, saga).call("done", "do", c1, '{"r": 1}', on=conn)
        batch = [(ids[0], "do"), (ids[1], "undo"), (ids[2], "do"), (ids[2], "do"), (ids[3], "undo"), (ids[3], "do"), (ids[4], "do")]
        ms = array(conn, [message(s, "PAYMENT", op, c1 if op == "do" else c2) for s, op in batch])
        before = ask(conn, "SELECT count(*) FROM outbox.event")[0][0]
        got = {o: (go, effect) for o, go, effect in ask(conn, f"SELECT * FROM saga.barriers({ms}, %s::jsonb[])",
                                                        ([json.dumps({"n": n}) for n in range(7)],))}
        assert got == {1: (False, None), 2: (True, {"was": ids[1]}), 3: (True, {"n": 2}), 4: (False, None), 5: (False, None),
                       6: (False, None), 7: (True, {"n": 6})}
        assert ask(conn, f"SELECT saga.replies({ms}, '{{2,3,7}}', '{{done,refused,done}}', "
                         "ARRAY['{}', NULL, '{\"x\": 1}']::jsonb[], ARRAY[NULL, 'no', NULL])") == [(3,)]
        said = [(h["saga-id"], h["saga-op"], h["saga-outcome"], h.get("saga-why"), p) for h, p in ask(
            conn, "SELECT headers, payload FROM outbox.event ORDER BY seq OFFSET %s", (before,))]
        assert sorted(said, key=str) == sorted([
            (ids[0], "do", "done", None, {"r": 1}), (ids[3], "undo", "done", None, {}), (ids[3], "do", "refused", "undone", {}),
            (ids[1], "undo", "done", None, {}), (ids[2], "do", "refused", "no", {}), (ids[4], "do", "done", None, {"x": 1})], key=str)
        rows = ask(conn, "SELECT id FROM outbox.event ORDER BY seq OFFSET %s", (before,))
        assert len({r[0] for r in rows}) == len(rows) and all(r[0][14] == "7" for r in rows)


def test_a_do_and_its_undo_in_one_batch(db):
    """Both would be let through, and meet in one UPDATE of the participant's handler, which would apply one of them only."""
    saga, other = new_id(), new_id()
    with session(db) as conn:
        ms = array(conn, [message(saga, "A", "do", new_id()), message(other, "A", "do", new_id()), message(saga, "A", "undo", new_id())])
        code, text, hint = refused(ask, conn, f"SELECT * FROM saga.barriers({ms})")
        assert code == "PRB01" and "in one batch" in text and "two batches" in hint
        conn.rollback()
        ms = array(conn, [message(saga, "A", "do", new_id()), message(saga, "B", "undo", new_id())])
        assert ask(conn, f"SELECT ord, go FROM saga.barriers({ms}) ORDER BY ord") == [(1, True), (2, False)]


@pytest.mark.parametrize("op", ["do", "undo"])
def test_two_tries_of_one_step_in_a_batch(db, op):
    """Story: a refused undo was tried again under a new command id while tries under the old one still lay in the topic; a batch
    met both, and the money came back twice. Of one batch one passes; the other is sent again, and hears what became of it."""
    saga, first, second = new_id(), new_id(), new_id()
    with session(db) as conn:
        if op == "undo":
            ms = array(conn, [message(saga, "PAYMENT", "do", new_id())])
            ask(conn, f"SELECT * FROM saga.barriers({ms})"), ask(conn, f"SELECT saga.replies({ms}, '{{1}}', '{{done}}')")
            conn.commit()
        ms = array(conn, [message(saga, "PAYMENT", op, c) for c in (first, first, second)])
        assert ask(conn, f"SELECT ord, go FROM saga.barriers({ms}) ORDER BY ord") == [(1, True), (2, False), (3, False)]
        ask(conn, f"SELECT saga.replies({ms}, '{{1}}', '{{failed}}')")
        conn.commit()
        ms = array(conn, [message(saga, "PAYMENT", op, second)])
        assert ask(conn, f"SELECT ord, go FROM saga.barriers({ms})") == [(1, True)]


def test_replies_carry_the_trace(db):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with session(db) as conn:
        for given, kept in [(trace, trace), ("nonsense", None)]:
            ms = array(conn, [message(new_id(), "A", "do", new_id(), traceparent=given)])
            ask(conn, f"SELECT * FROM saga.barriers({ms})"), ask(conn, f"SELECT saga.replies({ms}, '{{1}}', '{{done}}')")
            assert ask(conn, "SELECT tracingspancontext FROM outbox.event ORDER BY seq DESC LIMIT 1") == [(kept,)]
        ms = array(conn, [message(new_id(), "A", "do", new_id(), traceparent=trace)])
        ask(conn, f"SELECT inbox.carry(({ms})[1]), saga.barrier(({ms})[1]), saga.done(({ms})[1])")
        t, h = ask(conn, "SELECT tracingspancontext, headers FROM outbox.event ORDER BY seq DESC LIMIT 1")[0]
        assert t == trace and "causation-id" in h


# ---------------------------------------------------------------- effects

PAYMENT = """
CREATE SCHEMA pay;
CREATE TABLE pay.account (id text PRIMARY KEY, balance bigint NOT NULL, version bigint NOT NULL DEFAULT 1, status text);
INSERT INTO pay.account VALUES ('a', 100, 1, 'AVAILABLE');
CREATE FUNCTION pay.execute(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT saga.barrier(m, jsonb_build_object('taken', m.payload -> 'amount')) THEN
		RETURN;
	END IF;
	IF m.headers ->> 'saga-op' = 'do' THEN
		UPDATE pay.account SET balance = balance - (m.payload ->> 'amount')::bigint
		WHERE id = 'a' AND balance >= (m.payload ->> 'amount')::bigint;
		IF NOT FOUND THEN
			PERFORM saga.refuse(m, 'not enough money');
			RETURN;
		END IF;
	ELSE
		UPDATE pay.account SET balance = balance + (saga.effect(m) ->> 'taken')::bigint WHERE id = 'a';
	END IF;
	PERFORM saga.done(m);
END $$;
CREATE FUNCTION pay.close(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	e jsonb;
BEGIN
	IF NOT saga.barrier(m) THEN
		RETURN;
	END IF;
	IF m.headers ->> 'saga-op' = 'do' THEN
		UPDATE pay.account AS a SET status = 'CLOSED', version = a.version + 1 FROM pay.account AS before
		WHERE a.id = 'a' AND before.id = a.id
		RETURNING jsonb_build_object('status', before.status, 'version', a.version) INTO e;
		PERFORM saga.set_effect(m, e);
	ELSE
		e := saga.effect(m);
		UPDATE pay.account SET status = e ->> 'status', version = version + 1
		WHERE id = 'a' AND version = (e ->> 'version')::bigint;
	END IF;
	PERFORM saga.done(m);
END $$;
"""


def test_undo_inverts_the_effect_and_not_what_others_did(db):
    """Balance 100, do -30, somebody adds 50, undo: 150, where putting the old 100 back would lose the 50. A duplicate of
    each changes nothing."""
    db.psql(PAYMENT)
    with contextlib.closing(db.connect()) as c:
        saga, do, undo = new_id(), new_id(), new_id()
        for _ in range(2):
            ask(c, f"SELECT pay.execute(m) FROM unnest({array(c, [message(saga, 'PAYMENT', 'do', do)])}) AS m")
        assert db.one("SELECT balance FROM pay.account") == 70
        db.query("UPDATE pay.account SET balance = balance + 50")
        for _ in range(2):
            ask(c, f"SELECT pay.execute(m) FROM unnest({array(c, [message(saga, 'PAYMENT', 'undo', undo)])}) AS m")
        assert db.one("SELECT balance FROM pay.account") == 150
        ask(c, f"SELECT pay.execute(m) FROM unnest({array(c, [message(saga, 'PAYMENT', 'do', do)])}) AS m")
        assert db.one("SELECT balance FROM pay.account") == 150, "a late do"
    outcomes = db.query("SELECT headers ->> 'saga-op', headers ->> 'saga-outcome' FROM outbox.event ORDER BY seq")
    assert outcomes == [("do", "done")] * 2 + [("undo", "done")] * 2 + [("do", "refused")]


def test_what_was_refused_has_no_effect_to_undo(db):
    db.psql(PAYMENT)
    db.query("UPDATE pay.account SET balance = 10")
    with contextlib.closing(db.connect()) as c:
        saga = new_id()
        for op in ("do", "undo"):
            ask(c, f"SELECT pay.execute(m) FROM unnest({array(c, [message(saga, 'PAYMENT', op, new_id())])}) AS m")
    assert db.one("SELECT balance FROM pay.account") == 10


@pytest.mark.parametrize("meanwhile, ends", [(None, "AVAILABLE"), ("SOLD_OUT", "SOLD_OUT")])
def test_a_prior_value_is_restored_only_where_the_row_is_still_ours(db, meanwhile, ends):
    db.psql(PAYMENT)
    with contextlib.closing(db.connect()) as c:
        saga = new_id()
        ask(c, f"SELECT pay.close(m) FROM unnest({array(c, [message(saga, 'CLOSE', 'do', new_id())])}) AS m")
        assert db.one("SELECT status FROM pay.account") == "CLOSED"
        if meanwhile:
            db.query("UPDATE pay.account SET status = %s, version = version + 1", (meanwhile,))
        ask(c, f"SELECT pay.close(m) FROM unnest({array(c, [message(saga, 'CLOSE', 'undo', new_id())])}) AS m")
    assert db.one("SELECT status FROM pay.account") == ends


def test_the_handlers_of_the_documentation(db):
    """The two functions of docs/how-to/take-part-in-a-saga.md, as they stand there."""
    with open(os.path.join(servers.ROOT, "docs/how-to/take-part-in-a-saga.md"), encoding="utf-8") as f:
        blocks = [b.split("```")[0] for b in f.read().split("```sql\n")[1:]]
    functions = [b for b in blocks if b.startswith("CREATE FUNCTION")]
    assert len(functions) == 2
    db.psql("CREATE SCHEMA pay; CREATE TABLE pay.account (user_id text PRIMARY KEY, balance bigint);"
            "INSERT INTO pay.account VALUES ('u', 40); CREATE SCHEMA reservation;"
            "CREATE TABLE reservation.reservation (id text PRIMARY KEY, state text);"
            "INSERT INTO reservation.reservation VALUES ('1', 'HELD'), ('2', 'EXPIRED'), ('3', 'PAID');" + "".join(functions))
    a, b, payload = new_id(), new_id(), lambda m, p: (*m[:6], json.dumps(p), *m[7:])
    with contextlib.closing(db.connect()) as c:
        for saga, op, balance in [(a, "do", 10), (b, "do", 10), (a, "undo", 40), (b, "undo", 40)]:
            m = payload(message(saga, "PAYMENT", op, new_id()), {"user_id": "u", "amount": 30})
            for _ in range(2):
                ask(c, f"SELECT pay.on_command(m) FROM unnest({array(c, [m])}) AS m")
                assert db.one("SELECT balance FROM pay.account") == balance
        batch = [payload(message(new_id(), "RESERVATION", "do", new_id()), {"reservation_id": i}) for i in "123"]
        for _ in range(2):
            ask(c, f"SELECT reservation.on_commands({array(c, batch)})")
        assert db.query("SELECT state FROM reservation.reservation ORDER BY id") == [("PAID",), ("EXPIRED",), ("PAID",)]
    said = db.query("SELECT headers ->> 'saga-step', headers ->> 'saga-op', headers ->> 'saga-outcome', count(*) FROM outbox.event "
                    "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3")
    assert said == [("PAYMENT", "do", "done", 2), ("PAYMENT", "do", "refused", 2), ("PAYMENT", "undo", "done", 4),
                    ("RESERVATION", "do", "done", 2), ("RESERVATION", "do", "refused", 4)]


# ---------------------------------------------------------------- start

def test_start_is_in_the_callers_transaction(db):
    with session(db) as c:
        ask(c, "SELECT saga.start('pay', '{\"amount\": 1}')")
        c.rollback()
        assert db.one("SELECT count(*) FROM outbox.event") == 0
        mine = new_id()
        made = ask(c, "SELECT saga.start('pay', '{\"amount\": 1}'), saga.start('pay', '{}', %s)", (mine,))[0]
        c.commit()
    rows = db.query("SELECT type, topic, aggregateid, headers, payload FROM outbox.event ORDER BY seq")
    assert made[1] == mine
    assert rows == [("SagaStart", INBOX, s, {"saga-id": s, "saga-name": "pay"}, p) for s, p in zip(made, [{"amount": 1}, {}])]
    assert "no name of a saga" in refused(db.query, "SELECT saga.start('pay it')")[1]
    assert "not an object" in refused(db.query, "SELECT saga.start('pay', '[]')")[1]


@pytest.mark.parametrize("change, why", [
    ("topic = 'no/topic'", "topic"), ("headers = jsonb_build_object('saga-why', repeat('x', 65536))", "headers"),
    ("headers = '{\"saga-id\": \"1\", \"ID\": \"2\"}'", '"ID" is reserved'), ("headers = '{\"saga-id\": 1e70000}'", "headers"),
    ("type = E'a\\nb'", "type"), ("aggregateid = ''", "aggregateid"), ("partition = -1", "partition"),
    ("tracingspancontext = repeat('x', 9000)", "tracingspancontext"),
])
def test_our_headers_are_no_way_around_the_checks_of_the_outbox(db, change, why):
    """outbox.event takes rows with our own headers by a shorter way: it refuses the same."""
    column, value = change.split(" = ", 1)
    row = {"aggregatetype": "'saga'", "aggregateid": "'k'", "type": "'T'", "headers": "'{\"saga-id\": \"1\"}'", "topic": "'t'", column: value}
    insert = "INSERT INTO outbox.event ({}) VALUES ({})"
    code, text, _ = refused(db.query, insert.format(", ".join(row), ", ".join(row.values())))
    assert code == "23514" and why in text
    row.pop(column) if column in ("partition", "tracingspancontext") else row.update({column: {"aggregateid": "'k'", "type": "'T'"}.get(column, "NULL")})
    db.query(insert.format(", ".join(row), ", ".join(row.values())))


# ---------------------------------------------------------------- the engine's calls

Row = collections.namedtuple("Row", "id fresh was state due part granted data name")
Row.__new__.__defaults__ = (True, None, "RUNNING", None, "t-0", True, "{}", "pay")
STEPS = json.dumps([{"step": "PAYMENT", "state": "DOING", "tries": 2, "generation": 1,
                     "due": 1700000000000000, "since": 1690000000000000, "why": ""},
                    {"step": "SEAT", "state": "WAITING", "tries": 0, "generation": 1,
                     "why": "no"}])
T0 = "2026-01-01 00:00:00+00"


def save(on, *rows, locks=(), writer=0):
    """locks: (id, lock). Returns the new ones that got all theirs."""
    n = len(rows)
    column = lambda name: [getattr(r, name) for r in rows]
    return ask(on, "SELECT saga.save(%s, %s::uuid[], %s, %s, %s, %s::text[], %s, %s, %s, %s::json[], %s::json[], %s::text[], %s::text[], "
                   "%s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[], %s::uuid[], %s::text[])::text[]",
               (writer, column("id"), column("fresh"), column("name"), [1] * n, column("was"), column("state"), [False] * n,
                column("granted"), column("data"), [STEPS] * n, [None] * n, [None] * n, [T0] * n, [None] * n, [T0] * n,
                column("due"), column("part"), [None] * n, [i for i, _ in locks], [lock for _, lock in locks]))[0][0]


def start(db, n=1, **kw):
    made = [db.one("SELECT outbox.uuid7()") for _ in range(n)]
    save(db, *(Row(i, **kw) for i in made))
    return made


def end(on, *made, state="COMPLETED"):
    return save(on, *(Row(i, False, "RUNNING", state, data=None) for i in made))


def load(on, ids, skip=False, columns="ord, found, state"):
    return sorted(ask(on, f"SELECT {columns} FROM saga.load(%s::uuid[], %s)", (ids, skip)), key=str)


def counts(db):
    return {(n, s): k for n, s, k in db.query("SELECT * FROM saga.counts()") if k}


def due(on, parts=("t-0",), befores=None, most=100):
    return ask(on, "SELECT saga_id, woken FROM saga.due(%s, %s::timestamptz[], %s)", (list(parts), befores or [None] * len(parts), most))


def test_an_instance_from_start_to_end(db):
    a, b, c = start(db, 3, data='{"amount": 12345678901234567890.10, "b": 1, "a": 2}')
    assert load(db, [b, new_id(), a]) == [(1, 1, "RUNNING"), (3, 1, "RUNNING")]
    assert db.one("SELECT data::text FROM saga.instance WHERE id = %s", (a,)) == '{"amount": 12345678901234567890.10, "b": 1, "a": 2}'
    save(db, Row(a, False, "RUNNING", "COMPENSATING", data=None), Row(b, False, "RUNNING", "STUCK", data='{"x": 1}'), writer=1)
    assert db.query("SELECT data ->> 'a', data ->> 'x' FROM saga.instance WHERE slot = 0 ORDER BY id") == [("2", None), (None, "1"), ("2", None)]
    assert counts(db) == {("pay", "RUNNING"): 1, ("pay", "COMPENSATING"): 1, ("pay", "STUCK"): 1}
    assert db.query("SELECT saga_id, step FROM saga.stuck") == [(b, None)]
    save(db, Row(a, False, "COMPENSATING", "COMPENSATED", data=None), Row(c, False, "RUNNING", "COMPLETED", data=None), writer=2)
    assert load(db, [a, b, c], columns="ord, found, state, finished_at IS NULL, data IS NULL") == [
        (1, 2, "COMPENSATED", False, True), (2, 1, "STUCK", True, False), (3, 2, "COMPLETED", False, True)]
    assert db.query("SELECT slot, data ->> 'a' FROM saga.instance WHERE id = %s", (a,)) == [(1, "2")]
    assert counts(db) == {("pay", "COMPENSATED"): 1, ("pay", "COMPLETED"): 1, ("pay", "STUCK"): 1}
    over = new_id()
    save(db, Row(over, True, None, "COMPENSATED"))
    assert load(db, [over]) == [(1, 2, "COMPENSATED")]
    assert refused(save, db, Row(a, False, "RUNNING", "RUNNING"))[0] == "PRF01"
    assert refused(save, db, Row(b, True))[0] == "23505"
    assert db.query("SELECT step, state, op, tries, due_at IS NULL, extract(epoch FROM since_at)::bigint, why FROM saga.step WHERE saga_id = %s "
                    "ORDER BY place", (b,)) == [("PAYMENT", "DOING", "do", 2, False, 1690000000, None),
                                                ("SEAT", "WAITING", None, 0, True, None, "no")]


def test_load_waits_for_who_has_it_or_leaves_it_out(db):
    """Who waits for an instance that the other one ends gets told that it is over, and no error."""
    a, b = start(db, 2)
    with session(db) as one, session(db) as two:
        load(one, [b])
        assert load(two, [a, b], skip=True) == [(1, 1, "RUNNING")]
        two.rollback()
        late = Call(lambda: load(two, [b, a]))
        wait_blocked(db, two)
        end(one, b)
        one.commit()
        assert late.result() == [(1, 2, "COMPLETED"), (2, 1, "RUNNING")]


def test_instances_are_locked_in_the_order_of_their_ids(db):
    """Two sessions with the same instances in another order wait, and never deadlock."""
    ids = start(db, 40)
    done = []

    def worker(mine):
        with contextlib.closing(db.connect(autocommit=False)) as c:
            for _ in range(20):
                load(c, mine)
                save(c, *(Row(i, False, "RUNNING", "RUNNING", data=None) for i in mine))
                c.commit()
        done.append(1)
    calls = [Call(lambda m=m: worker(m)) for m in (ids, ids[::-1], ids[::2] + ids[1::2])]
    for call in calls:
        call.result()
    assert len(done) == 3 and counts(db) == {("pay", "RUNNING"): 40}


def test_timers_are_moved_lazily_and_fire_exactly(db):
    a, b = start(db, 1, due="2030-01-01")[0], start(db, 1, due="2020-01-01", part="t-1")[0]
    at = lambda i: db.one("SELECT (due_at AT TIME ZONE 'UTC')::date::text FROM saga.timer WHERE saga_id = %s", (i,))
    go = lambda i, when, part: save(db, Row(i, False, "RUNNING", "RUNNING", when, part, data=None))
    go(a, "2031-01-01", "t-0")
    assert at(a) == "2030-01-01", "later: it stays until it fires"
    go(a, None, "t-0")
    assert at(a) == "2030-01-01"
    go(a, "2029-01-01", "t-0")
    assert at(a) == "2029-01-01", "earlier: at once"
    assert due(db, ["t-0", "t-1", "t-2"]) == [(b, False)]
    assert due(db, ["t-0"]) == [] and due(db, ["t-1"], ["2019-12-31"]) == [] and due(db, ["t-1"], ["2020-01-02"]) == [(b, False)]
    assert db.one("SELECT saga.next_due('{t-0,t-1}')") == db.one("SELECT timestamptz '2020-01-01'")
    go(b, "2032-01-01", "t-1")
    assert at(b) == "2032-01-01", "it has fired: the real one"
    assert due(db, ["t-1"]) == []
    go(b, "2020-01-01", "t-1"), end(db, b)
    assert due(db, ["t-1"]) == [] and db.query("SELECT saga_id FROM saga.timer") == [(a,)]


def test_the_earliest_timers_come_first_of_all_parts(db):
    made = [start(db, 1, due=f"2020-01-{d:02}", part=f"t-{d % 3}")[0] for d in range(1, 13)]
    assert [i for i, _ in due(db, ["t-0", "t-1", "t-2"], most=5)] == made[:5]
    assert [i for i, _ in due(db, ["t-1"], most=5)] == made[::3]


def test_steps_of_an_instance_touch_no_index(db):
    """A transition that changes no state and no timer is an update within its page."""
    ids = start(db, 100, due="2030-01-01")
    for n in range(4):
        save(db, *(Row(i, False, "RUNNING", "RUNNING", "2030-01-01", data=json.dumps({"n": n})) for i in ids))
    wait_until(lambda: db.one("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relid = 'saga.instance_0'::regclass") == 400, 20,
               "the statistics to be there")
    assert db.one("SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'saga.instance_0'::regclass") == 400


def test_a_million_at_rest_do_not_change_the_plans(db):
    """Functions that were planned while the tables were empty do with many rows: each look-up by its index."""
    with contextlib.closing(db.connect()) as c:
        first = new_id()
        save(c, Row(first)), load(c, [first]), due(c), ask(c, "SELECT saga.next_due('{t-0}')")
        ask(c, "INSERT INTO saga.instance (id, name, version, state, started_at, since_at, due_at, part) "
               "SELECT outbox.uuid7(), 'pay', 1, 'RUNNING', now(), now(), timestamptz '2040-01-01' + n * interval '1 s', 't-' || n % 4 "
               "FROM generate_series(1, 100000) AS n")
        read = lambda: db.one("SELECT pg_stat_get_tuples_returned('saga.instance_0'::regclass)")
        ask(c, "SELECT pg_stat_force_next_flush()") if c.server_version >= 150000 else None
        before = read()
        for _ in range(10):
            load(c, [first]), save(c, Row(first, False, "RUNNING", "RUNNING", data=None)), due(c), ask(c, "SELECT saga.next_due('{t-0}')")
            load(c, [new_id()])
        ask(c, "SELECT pg_stat_force_next_flush()") if c.server_version >= 150000 else None
        ask(c, "SELECT 1")
        assert read() - before < 1000, "a scan of the table would be 100,000"


def test_log_and_events(db):
    a = start(db)[0]
    db.query("SELECT saga.note(%s::uuid[], %s::timestamptz[], %s, %s::text[], %s::text[], %s::uuid[], %s::text[], %s::text[])",
             ([a, a], [T0, T0], ["sent", "done"], ["PAYMENT"] * 2, ["do"] * 2, [new_id(), None], [None, "x"], [None, "kim"]))
    assert db.query("SELECT what, step, op, detail, by FROM saga.log WHERE saga_id = %s ORDER BY seq", (a,)) == [
        ("sent", "PAYMENT", "do", None, None), ("done", "PAYMENT", "do", "x", "kim")]
    mine = new_id()
    n = db.one("SELECT saga.publish(%s::uuid[], %s, %s, %s::text[], %s::jsonb[], %s::jsonb[], %s::text[])",
               ([mine, None, None], [a, "key", a], ["SagaStarted", "ExecutePayment", "SagaCompleted"], [None, "outbox.command.payment", None],
                ['{"n": 1}', "{}", None], [None, '{"saga-op": "do"}', None], [None] * 3))
    rows = db.query("SELECT id, aggregatetype, aggregateid, type, topic, payload, headers FROM outbox.event ORDER BY seq")
    assert n == 3 and [r[1:] for r in rows] == [
        ("saga", a, "SagaStarted", None, {"n": 1}, {}), ("saga", "key", "ExecutePayment", "outbox.command.payment", {}, {"saga-op": "do"}),
        ("saga", a, "SagaCompleted", None, None, {})]
    assert rows[0][0] == mine and rows[1][0] < rows[2][0] and all(uuid.UUID(r[0]).version == 7 for r in rows[1:])
    assert db.one("SELECT saga.publish(NULL, '{k}', '{T}', NULL, NULL, NULL, NULL)") == 1


# ---------------------------------------------------------------- semantic locks

def locked(db, *wants, name="seat"):
    """A new saga that wants these locks: (id, whether it got them at once)."""
    made = db.one("SELECT outbox.uuid7()") if hasattr(db, "one") else new_id()
    return made, save(db, Row(made, granted=False), locks=[(made, w) for w in wants]) == [made]


def woken(db, part="t-0"):
    return [i for i, w in due(db, [part]) if w]


def test_locks_are_granted_in_order(db):
    (a, ga), (b, gb), (c, gc), (d, gd) = locked(db, "s1"), locked(db, "s1"), locked(db, "s2"), locked(db, "s1")
    assert (ga, gb, gc, gd) == (True, False, True, False)
    assert load(db, [a, b, c, d], columns="ord, granted, lock_free") == [(1, False, True), (2, False, False), (3, False, True), (4, False, False)]
    end(db, c)
    assert woken(db) == [] and db.query("SELECT lock, members FROM saga.lock_queue") == [("s1", 3)]
    end(db, a)
    assert woken(db) == [b]
    save(db, Row(b, False, "RUNNING", "RUNNING", data=None))
    assert woken(db) == [], "it was begun"
    end(db, d, state="ABORTED"), end(db, b)
    assert woken(db) == [] and db.one("SELECT count(*) FROM saga.lock") == db.one("SELECT count(*) FROM saga.lock_queue") == 0


def test_several_locks_are_one(db):
    """A saga has all its locks or waits in all queues: two that want the same in another order do not wait for each other for ever."""
    a, _ = locked(db, "x")
    b, gb = locked(db, "x", "y")
    c, gc = locked(db, "y", "x", "y")
    assert not gb and not gc
    end(db, a)
    assert woken(db) == [b]
    end(db, b)
    assert woken(db) == [c]


def test_two_who_free_both_locks_of_a_third_wake_it(db):
    """Each of two transactions takes away one of the two sagas that a third waits for, and neither sees the other's."""
    (a, _), (b, _), (w, _) = locked(db, "x"), locked(db, "y"), locked(db, "x", "y")
    with session(db) as one, session(db) as two:
        end(one, a)
        late = Call(lambda: (end(two, b), two.commit()))
        wait_blocked(db, two)
        one.commit()
        late.result()
    assert woken(db) == [w]


def test_hundreds_on_one_seat(db):
    """Every saga gets the lock once, one at a time, whoever writes beside it."""
    first, got = locked(db, "seat")
    ids = [new_id() for _ in range(300)]
    failed = []

    def come(mine):
        with contextlib.closing(db.connect()) as c:
            for i in mine:
                if save(c, Row(i, granted=False), locks=[(i, "seat")]):
                    failed.append(i)
    for call in [Call(lambda m=ids[n::3]: come(m)) for n in range(3)]:
        call.result()
    assert got and not failed
    served, holder = [], first
    with contextlib.closing(db.connect()) as c:
        while True:
            end(c, holder)
            next_up = woken(c)
            if not next_up:
                break
            assert len(next_up) == 1
            holder = next_up[0]
            save(c, Row(holder, False, "RUNNING", "RUNNING", data=None))
            served.append(holder)
    assert sorted(served) == sorted(ids)


# ---------------------------------------------------------------- orders and the service's copy

def test_orders(db):
    a = start(db, part="t-7")[0]
    entry = db.one("SELECT saga.order_new(%s, 'retry', 'PAYMENT', NULL, 'kim')", (a,))
    waiting = lambda part: db.query("SELECT entry, saga_id, what, step, by FROM saga.orders_waiting(%s)", ([part],))
    assert waiting("t-7") == [(entry, a, "retry", "PAYMENT", "kim")] and waiting("t-0") == []
    assert db.one("SELECT saga.orders_done(%s, '{refused}', '{\"it is not stuck\"}')", ([entry],)) == 1
    assert db.one("SELECT saga.orders_done(%s, '{done}', '{NULL}')", ([entry],)) == 0
    assert waiting("t-7") == [] and db.query('SELECT outcome, reason, done_at IS NULL FROM saga."order"') == [("refused", "it is not stuck", False)]
    assert "there is no saga" in refused(db.query, "SELECT saga.order_new(%s, 'retry')", (new_id(),))[1]
    assert "there is no order" in refused(db.query, "SELECT saga.order_new(%s, 'explode')", (a,))[1]
    end(db, a)
    assert refused(db.query, "SELECT saga.order_new(%s, 'retry')", (a,))[0] == "55000"


def test_definitions_are_kept_by_version(db):
    register = lambda version, text: db.one("SELECT saga.register('pay', %s, 'orchestration', %s, sha256(convert_to(%s, 'UTF8')), %s)",
                                            (version, text, text, '[{"step": "PAYMENT", "sla": 10000000}]'))
    assert [register(1, "a"), register(1, "a"), register(1, "b"), register(2, "b")] == ["new", "same", "other", "new"]
    assert db.query("SELECT version, text FROM saga.definition ORDER BY 1") == [(1, "a"), (2, "b")]
    a = start(db)[0]
    assert db.query("SELECT saga_id, step, sla::text FROM saga.late") == [(a, "PAYMENT", "00:00:10")]


def event(saga, seq, state, at=T0):
    payload = {"saga_id": saga, "name": "pay", "version": 1, "state": state, "data": {"n": seq}, "steps": [{"step": "A", "state": "DONE"}]}
    return (new_id(), "outbox.event.saga", 0, seq, saga, "SagaStarted", json.dumps(payload), None, json.dumps({"outbox-seq": str(seq)}), at)


def test_a_services_copy_never_goes_back(db):
    a, b = new_id(), new_id()
    assert db.one("SELECT saga.expect(%s, 'pay', '{\"n\": 0}')", (a,)) == a
    assert db.query("SELECT state, data FROM saga.copy") == [("STARTING", {"n": 0})]
    with contextlib.closing(db.connect()) as c:
        ask(c, f"SELECT saga.on_events({array(c, [event(a, 5, 'RUNNING'), event(a, 9, 'COMPLETED'), event(b, 7, 'RUNNING'), event(a, 6, 'RUNNING')])})")
        ask(c, f"SELECT saga.on_event(({array(c, [event(a, 8, 'RUNNING')])})[1])")
        ask(c, f"SELECT saga.on_event(({array(c, [event(b, 8, 'STUCK')])})[1])")
    ask(db, "SELECT saga.expect(%s, 'pay')", (a,))
    rows = db.query("SELECT saga_id, state, sequence, data, steps FROM saga.copy ORDER BY sequence")
    assert rows == [(b, "STUCK", 8, {"n": 8}, [{"step": "A", "state": "DONE"}]), (a, "COMPLETED", 9, {"n": 9}, [{"step": "A", "state": "DONE"}])]
    assert db.one("SELECT saga.forget_copies('1 day')") == 1 and db.query("SELECT saga_id FROM saga.copy") == [(b,)]


# ---------------------------------------------------------------- what the CLI asks

def named(on, name, *args):
    """A file of db/queries, with its parameters."""
    with open(os.path.join(servers.ROOT, "db/queries", name + ".sql"), encoding="utf-8") as f:
        sql = f.read()
    return ask(on, re.sub(r"\$(\d)", lambda m: f"%(p{m.group(1)})s", sql.replace("%", "%%")), {f"p{n}": a for n, a in enumerate(args, 1)})


def test_what_the_cli_asks(db):
    a, b, c = start(db, 3)
    save(db, Row(b, False, "RUNNING", "STUCK", data=None)), end(db, c)
    db.query("SELECT saga.note(%s::uuid[], %s::timestamptz[], '{started,sent}', '{NULL,PAYMENT}', '{NULL,do}', '{NULL,NULL}', '{NULL,NULL}', '{NULL,NULL}')",
             ([a, a], [T0, T0]))
    db.query("SELECT saga.register('pay', 1, 'orchestration', 'the text', 'x', '[{\"step\": \"PAYMENT\", \"sla\": 1}]')")
    listed = lambda *args: [(r[0], r[3]) for r in named(db, "saga_list", *args, None, args[0] is None)]
    assert listed(None, None, None, None, None, 9) == [(b, "STUCK"), (a, "RUNNING")]
    assert listed(["STUCK", "COMPLETED"], None, None, None, None, 9) == [(c, "COMPLETED"), (b, "STUCK")]
    assert listed(None, "other", None, None, None, 9) == [] and listed(None, None, "SEAT", None, None, 9) == []
    assert listed(None, "pay", "PAYMENT", 1000, b, 9) == [(a, "RUNNING")] and listed(None, None, None, 10 ** 17, None, 9) == []
    assert named(db, "saga_list", None, None, None, None, None, 1, None, False)[0][11] == "PAYMENT"
    assert [named(db, "saga_show", i)[0][3] for i in (a, b, c)] == ["RUNNING", "STUCK", "COMPLETED"] and named(db, "saga_show", new_id()) == []
    assert named(db, "saga_show", a)[0][18] == "the text"
    assert [r[0] for r in named(db, "saga_steps", c)] == ["PAYMENT", "SEAT"]
    log = named(db, "saga_log", a, 0, 9)
    assert [r[2] for r in log] == ["started", "sent"] and [r[2] for r in named(db, "saga_log", a, log[0][0], 9)] == ["sent"]
    assert [r[0] for r in named(db, "saga_stuck", 9)] == [b] and sorted(r[0] for r in named(db, "saga_late", 9)) == [a, b]
    assert {r[:2] for r in named(db, "saga_counts")} == {("pay", s) for s in ("RUNNING", "STUCK", "COMPLETED")}
    assert [(*r[:3], r[5]) for r in named(db, "saga_definitions")] == [("pay", 1, "orchestration", 2)]
    entry = named(db, "saga_order", [b], "retry", None, None, "kim")[0][0]
    assert named(db, "saga_order_outcome", [entry]) == [(entry, None, None, "STUCK", "PAYMENT DOING")]
    assert [(*r[:4], r[7][0]["step"]) for r in named(db, "saga_instances", [c, b])] == [(b, "pay", 1, "STUCK", "PAYMENT"), (c, "pay", 1, "COMPLETED", "PAYMENT")]
    assert named(db, "saga_orders", b)[0][:2] == (entry, "retry")
    assert named(db, "saga_start", "pay", "{}", None)[0][0]


# ---------------------------------------------------------------- rotation

def age(db, by="1 day"):
    db.query(f"UPDATE saga.slot SET opened_at = opened_at - interval '{by}', closed_at = closed_at - interval '{by}'")


def rotate(db, keep="1 hour", who="engine"):
    n = 0
    while db.one("SELECT saga.rotate(%s, %s)", (keep, who)):
        n += 1
    return n


def slots(db):
    return db.query("SELECT slot, closed_at IS NULL FROM saga.slot ORDER BY slot")


def test_rotation_drops_what_is_over_and_never_what_is_alive(db):
    alive, over = start(db, 2)
    note = lambda i: db.query("SELECT saga.note(%s::uuid[], %s::timestamptz[], '{x}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}')", ([i], [T0]))
    note(alive), note(over)
    end(db, over)
    assert rotate(db) == 0
    age(db)
    assert rotate(db) == 1 and slots(db) == [(1, False), (2, True)]
    note(alive)
    assert load(db, [over, alive]) == [(1, 2, "COMPLETED"), (2, 1, "RUNNING")], "closed, and still looked up"
    age(db)
    assert rotate(db) == 2 and slots(db) == [(2, False), (3, True)]
    assert load(db, [over, alive]) == [(2, 1, "RUNNING")]
    assert db.query("SELECT saga_id, slot, count(*) FROM saga.log GROUP BY 1, 2 ORDER BY 2") == [(alive, 2, 1), (alive, 3, 1)]
    for _ in range(3):
        age(db), rotate(db)
    assert db.query("SELECT saga_id, count(*) FROM saga.log GROUP BY 1") == [(alive, 2)], "the log of what is alive moves on"
    assert load(db, [alive]) == [(1, 1, "RUNNING")]
    end(db, alive)
    assert load(db, [alive]) == [(1, 2, "COMPLETED")]


def test_the_longest_keep_holds(db):
    assert rotate(db, "30 days", "engine") == 0 and rotate(db, "1 hour", "payment") == 0
    age(db)
    assert rotate(db, "1 hour", "payment") == 0
    age(db, "20 days")
    assert rotate(db, "1 hour", "payment") == 1
    assert refused(db.query, "SELECT saga.rotate('-1 s')")[0] == "22023"


@pytest.mark.parametrize("how", ["one", "set"])
def test_the_barrier_holds_across_rotations(db, how):
    """What was recorded in a slot that is closed by now: duplicates, refusals and undos find it there."""
    steps = [Step(db) for _ in range(4)]
    command, again = new_id(), new_id()
    with contextlib.closing(db.connect()) as c:
        for s, (op, outcome) in zip(steps, [("do", "done"), ("do", "refused"), ("undo", "done"), ("do", "done")]):
            do_step(c, how, s, op, command, outcome)
        age(db)
        assert rotate(db) == 1
        saw = []
        for s, (op, cmd) in zip(steps, [("do", command), ("do", command), ("do", again), ("undo", again)]):
            s.seen = db.one("SELECT count(*) FROM outbox.event")
            saw.append((do_step(c, how, s, op, cmd, "done"), [r[2:4] for r in s.replies()]))
        assert saw == [(False, [("done", None)]), (False, [("refused", "no")]), (False, [("refused", "undone")]), (True, [("done", None)])]
        fresh = Step(db)
        assert do_step(c, how, fresh, "do", command, "done") and not do_step(c, how, fresh, "do", command, "done")
    assert db.query("SELECT slot, count(*) FROM saga.barrier GROUP BY 1 ORDER BY 1") == [(1, 4), (2, 1)]


def test_a_rotation_waits_for_who_records(db):
    """Two who bring the same command, one before and one after a rotation: the rotation comes after the first."""
    step, command = Step(db), new_id()
    age(db)
    with session(db) as one:
        assert do_step(one, "set", step, "do", command, "done")
        assert refused(db.query, "SELECT saga.rotate('47 hours 59 minutes')")[0] == "55P03"
        one.commit()
    assert rotate(db, "47 hours 59 minutes") == 1
    with contextlib.closing(db.connect()) as c:
        assert not do_step(c, "set", step, "do", command, "done")


def test_an_undo_of_what_was_dropped_is_not_answered_with_done(db):
    """The do was recorded, and dropped before the undo came: that nothing is known here is no reason to say that there was
    nothing to undo. A person must look."""
    old = Step(db, saga="01900000-0000-7000-8000-000000000001")
    assert old.barrier("do", new_id())
    for _ in range(2):
        age(db), rotate(db)
    old.seen = db.one("SELECT count(*) FROM outbox.event")
    assert not old.barrier("undo", new_id())
    assert [r[2] for r in old.replies()] == ["failed"]
    young = Step(db, saga="7fff0000-0000-7000-8000-000000000001")
    assert not young.barrier("undo", new_id()) and [r[2] for r in young.replies()] == ["done"]


# ---------------------------------------------------------------- roles, install

def test_a_participant_can_take_part_and_nothing_else(db):
    a = start(db)[0]
    with login(db, "saga_participant") as c:
        step = Step(db)
        assert do_step(c, "one", step, "do", new_id(), "done") and do_step(c, "message", step, "undo", new_id(), "done")
        assert do_step(c, "set", Step(db), "do", new_id(), "refused")
        ask(c, "SELECT saga.start('pay'), saga.effect(%s, 'PAYMENT'), saga.rotate('7 days'), saga.expect(%s, 'pay')", (step.saga, step.saga))
        ask(c, "SELECT saga.set_effect(%s, 'PAYMENT', '{}')", (step.saga,)), ask(c, "SELECT * FROM saga.barrier"), ask(c, "SELECT * FROM saga.copy")
        for sql in ("SELECT * FROM saga.instance", "SELECT * FROM saga.instance_0", "UPDATE saga.barrier SET do_outcome = 'done'",
                    "SELECT * FROM saga.log", "INSERT INTO saga.lock (saga_id, lock, part) VALUES (outbox.uuid7(), 'x', 't')",
                    "DELETE FROM saga.barrier_1", "SELECT * FROM saga.load('{}')", "SELECT * FROM saga.due('{}', '{}')",
                    'SELECT * FROM saga."order"', f"SELECT saga.order_new('{a}', 'abort')", "SELECT saga.register('p', 1, 'orchestration', 'x', '')",
                    f"SELECT * FROM saga.pass('{a}', 'A', 'do', '{a}', NULL, 'any.topic', '{{}}', NULL)", "SELECT saga.publish('{}','{}','{}','{}','{}','{}','{}')",
                    f"SELECT saga.answer('{a}', 'A', 'do', '{a}', 'done', NULL, '{{}}', 'any.topic', '{{}}', NULL)"):
            assert refused(ask, c, sql)[0] == "42501", sql


def test_the_engines_and_the_operators_rights(db):
    a = start(db)[0]
    with login(db, "saga_engine") as c:
        load(c, [a]), save(c, Row(a, False, "RUNNING", "RUNNING", data=None)), due(c), end(c, *start(db)), ask(c, "SELECT * FROM saga.counts()")
        locked(c, "x")
        ask(c, "SELECT saga.note('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'), saga.publish('{}', '{}', '{}', '{}', '{}', '{}', '{}'), "
               "saga.rotate('7 days'), saga.next_due('{}'), saga.orders_done('{}', '{}', '{}')")
        ask(c, "SELECT * FROM saga.orders_waiting('{}')"), ask(c, "SELECT saga.register('p', 1, 'orchestration', 'x', '')")
        for sql in ("DELETE FROM saga.instance", "UPDATE saga.log SET what = ''", f"SELECT saga.barrier('{a}', 'A', 'do', '{a}')",
                    f"SELECT saga.order_new('{a}', 'abort')"):
            assert refused(ask, c, sql)[0] == "42501", sql
    with login(db, "saga_operator") as c:
        ask(c, "SELECT saga.order_new(%s, 'abort')", (a,))
        for view in ("instance", "step", "stuck", "late", "timer", "log", '"order"', "definition", "copy", "barrier", "counts()"):
            ask(c, f"SELECT * FROM saga.{view}")
        for sql in (f"UPDATE saga.instance SET state = 'ABORTED'", f"SELECT * FROM saga.load('{{{a}}}')", 'UPDATE saga."order" SET outcome = NULL'):
            assert refused(ask, c, sql)[0] == "42501", sql
    with login(db) as c:
        assert refused(ask, c, "SELECT saga.start('pay')")[0] == "42501"
    with login(db, "outbox_writer") as c:
        ask(c, "SELECT saga.start('pay')")
        assert refused(ask, c, f"SELECT saga.barrier('{a}', 'A', 'do', '{a}')")[0] == "42501"


def test_init_again_changes_nothing(db, cli):
    look = ("SELECT string_agg(c.oid::text || c.relname, ',' ORDER BY c.oid) FROM pg_class AS c WHERE c.relnamespace = 'saga'::regnamespace")
    a = start(db)[0]
    age(db), rotate(db)
    before = db.one(look)
    cli("init", "--conninfo", db.conninfo, check=True)
    assert db.one(look) == before and load(db, [a]) == [(1, 1, "RUNNING")]
    assert (3, "0003_saga") in db.query("SELECT number, name FROM outbox.schema_version")


def test_an_installation_without_sagas_gets_them(empty_db, cli):
    """A database of the version before, in use: what is in there stays."""
    sql = cli("init", "--print", check=True).stdout
    empty_db.psql("BEGIN;\n" + sql[:sql.index("\nDO $postrider_3$")] + "\nCOMMIT;")
    assert empty_db.one("SELECT to_regnamespace('saga') IS NULL")
    empty_db.query("SELECT outbox.publish('order', '1', 'T', '{}')")
    done = json.loads(cli("init", "--conninfo", empty_db.conninfo, "--json", check=True).stdout)
    assert done["migrations"] == done["schema_version"] - 2
    assert empty_db.one("SELECT count(*) FROM outbox.event") == 1
    assert load(empty_db, start(empty_db)) == [(1, 1, "RUNNING")]


def test_a_foreign_schema_saga_is_left_alone(empty_db, cli):
    """Other frameworks have a schema of that name: nothing is installed then, not even half of it."""
    empty_db.psql("CREATE SCHEMA saga; CREATE TABLE saga.instance (id int)")
    done = cli("init", "--conninfo", empty_db.conninfo)
    assert done.returncode == 78 and '"saga" is not ours' in done.stderr and "RENAME" in done.stderr, done.stderr
    assert empty_db.one("SELECT to_regclass('outbox.schema_version') IS NULL")
    empty_db.psql("DROP SCHEMA saga CASCADE; CREATE SCHEMA saga")
    cli("init", "--conninfo", empty_db.conninfo, check=True)


def test_dump_and_restore(db, pg_server):
    """What pg_dump writes is loadable as it is, and goes on where it was."""
    alive, over = start(db, 2)
    end(db, over), age(db), rotate(db)
    step, command = Step(db), new_id()
    assert step.barrier("do", command)
    dump = subprocess.run([os.path.join(pg_server.bindir, "pg_dump"), "-d", db.conninfo], capture_output=True, text=True, check=True).stdout
    copy = pg_server.createdb(f"{db.name[:50]}_copy")
    try:
        copy.psql(dump)
        assert load(copy, [over, alive]) == [(1, 2, "COMPLETED"), (2, 1, "RUNNING")]
        assert not Step(copy, step.saga).barrier("do", command)
        start(copy), age(copy)
        assert rotate(copy) >= 1
    finally:
        copy.drop()


# ---------------------------------------------------------------- the C face

DRIVER = r'''
#include "producers/saga.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #what, err.text); \
			exit(1); \
		} \
	} while (0)

static void run(PGconn *conn, const char *sql)
{
	PGresult *res = PQexec(conn, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK) {
		fprintf(stderr, "%s: %s", sql, PQerrorMessage(conn));
		exit(9);
	}
	PQclear(res);
}

int main(int argc, char **argv)
{
	PGconn *conn = PQconnectdb(argv[argc - 1]);
	struct outbox_str none = { NULL, 0 };
	struct outbox_error err = { 0 };
	char id[OUTBOX_ID_SIZE], command[] = "01939f4e-7c1f-7000-8000-00000000000a";
	struct saga_command cmd = { .step = outbox_str("PAYMENT"), .op = outbox_str("do"), .command_id = outbox_str(command) };
	const char *effect = "";
	PGresult *res = NULL;
	int go = -1;

	CHECK(saga_start(conn, outbox_str("pay"), none, none, id, &err) == -1 && strstr(err.text, "no transaction"));
	run(conn, "BEGIN");
	CHECK(saga_start(conn, outbox_str("pay"), outbox_str("{\"amount\": 30}"), none, id, &err) == 0 && strlen(id) == 36);
	run(conn, "COMMIT");
	cmd.saga_id = outbox_str(id);
	run(conn, "BEGIN");
	CHECK(saga_barrier(conn, &cmd, outbox_str("{\"taken\": 30}"), &go, &err) == 0 && go == 1);
	CHECK(saga_fail(conn, &cmd, outbox_str("the bank sleeps"), &err) == 0);
	run(conn, "COMMIT");
	run(conn, "BEGIN");
	CHECK(saga_barrier(conn, &cmd, none, &go, &err) == 0 && go == 1);
	CHECK(saga_effect(conn, &cmd, &res, &effect, &err) == 0 && !effect);
	PQclear(res);
	CHECK(saga_set_effect(conn, &cmd, outbox_str("{\"taken\": 29}"), &err) == 0);
	CHECK(saga_done(conn, &cmd, outbox_str("{\"payment_id\": 7}"), &err) == 0);
	run(conn, "COMMIT");
	run(conn, "BEGIN");
	CHECK(saga_barrier(conn, &cmd, none, &go, &err) == 0 && go == 0);
	run(conn, "COMMIT");
	cmd.op = outbox_str("undo");
	run(conn, "BEGIN");
	CHECK(saga_barrier(conn, &cmd, none, &go, &err) == 0 && go == 1);
	CHECK(saga_effect(conn, &cmd, &res, &effect, &err) == 0 && effect && strcmp(effect, "{\"taken\": 29}") == 0);
	PQclear(res);
	CHECK(saga_refuse(conn, &cmd, outbox_str("not now"), none, &err) == 0);
	run(conn, "COMMIT");
	cmd.step = outbox_bytes("SE\0AT", 5);
	run(conn, "BEGIN");
	CHECK(saga_barrier(conn, &cmd, none, &go, &err) == -1 && strstr(err.text, "NUL"));
	cmd.step = outbox_str("SEAT");
	CHECK(saga_done(conn, &cmd, none, &err) == -1 && !err.retry && strcmp(err.sqlstate, "55000") == 0 && *err.hint);
	CHECK(saga_barrier(conn, &cmd, none, &go, &err) == -1 && strstr(err.hint, "ROLLBACK"));
	run(conn, "ROLLBACK");
	PQfinish(conn);
	return 0;
}
'''


@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")],
                         ids=["plain", "sanitized"])
def test_c_face(db, tmp_path, flags):
    """As another project would: the four files, libpq, and warnings that other people switch on."""
    (tmp_path / "driver.c").write_text(DRIVER)
    libpq = shlex.split(subprocess.run(["pkg-config", "--cflags", "--libs", "libpq"], capture_output=True, text=True,
                                       check=True).stdout)
    program = str(tmp_path / "driver")
    subprocess.run([os.environ.get("CC", "gcc"), "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, "-I", servers.ROOT,
                    str(tmp_path / "driver.c"), *(os.path.join(servers.ROOT, "producers", f) for f in ("saga.c", "outbox.c")),
                    "-o", program, *libpq], check=True)
    done = subprocess.run([program, db.conninfo], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"})
    assert done.returncode == 0, done.stderr
    assert db.query("SELECT type, headers ->> 'saga-op', headers ->> 'saga-outcome', headers ->> 'saga-why', payload "
                    "FROM outbox.event ORDER BY seq") == [
        ("SagaStart", None, None, None, {"amount": 30}), ("SagaReply", "do", "failed", "the bank sleeps", {}),
        ("SagaReply", "do", "done", None, {"payment_id": 7}), ("SagaReply", "do", "done", None, {"payment_id": 7}),
        ("SagaReply", "undo", "refused", "not now", {})]
