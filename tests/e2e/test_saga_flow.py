"""tests/e2e/test_saga_flow.py -- sagas from their start to their end, and back, on a real engine, real services and their
audit: starts, replies that come wrong, orders of an operator, HTTP, copies."""
import json
import re
import uuid

import psycopg2
import pytest
from saga import PRICE, buy, saga_module  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def flow(saga_module):  # noqa: F811
    """One engine for all of this file; tries are patient."""
    s = saga_module(definitions={"buy.cfg": buy(timeout="5s", undos=3)})
    if not s.engine.consumer.running():
        s.start()
    yield s
    for p in s.part.values():
        p.db.query("DELETE FROM app.closed")


# ---------------------------------------------------------------- straight

@pytest.mark.tsan
def test_a_purchase(flow):
    """Completed, refused in the middle, refused at the pivot."""
    ids = flow.begin([{}, {"script": {"PAYMENT": "refuse"}}, {"script": {"TICKET": "refuse"}}])
    flow.wait_over(ids)
    assert [flow.state(i) for i in ids] == ["COMPLETED", "COMPENSATED", "COMPENSATED"]
    assert flow.steps(ids[0]) == dict.fromkeys(("HOLD", "PAYMENT", "TICKET", "NOTE"), "DONE")
    assert flow.steps(ids[1]) == {"HOLD": "UNDONE", "PAYMENT": "REFUSED", "TICKET": "WAITING", "NOTE": "WAITING"}
    assert flow.steps(ids[2]) == {"HOLD": "UNDONE", "PAYMENT": "UNDONE", "TICKET": "REFUSED", "NOTE": "WAITING"}
    undone = [r[1] for r in flow.log(ids[2], "undone")]
    assert undone == ["PAYMENT", "HOLD"], "in reverse"
    assert flow.log(ids[0], "done")[0][1] == "HOLD"
    assert flow.db.one("SELECT data ->> 'held' FROM saga.instance WHERE id = %s", (ids[0],)) == "HOLD", "kept of a reply"
    flow.check()


def test_a_start_hands_its_trace_on(flow):
    """Story: a saga's commands began traces of their own, though its start had one: the engine sent them without."""
    trace, id = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", str(uuid.uuid4())
    body = json.dumps({"amount": PRICE, "seat": f"seat-{id}", "script": {}})
    with flow.db.connect(autocommit=False) as conn, conn.cursor() as cur:
        cur.execute("SELECT set_config('outbox.traceparent', %s, true), saga.start('buy', %s, %s)", (trace, body, id))
    conn.close()
    other, = flow.begin(1)
    flow.wait_over([id, other])
    sent = "SELECT type, tracingspancontext FROM outbox.event WHERE headers ->> 'saga-id' = %s AND topic <> 'outbox.saga.inbox' ORDER BY seq LIMIT 2"
    assert [t for _, t in flow.db.query(sent, (id,))] == [trace, trace]
    assert {t for _, t in flow.db.query(sent, (other,))} == {None}


def test_a_refusal_whose_cause_goes_away(flow):
    """Story: what must succeed was refused once, the cause was mended, and each further try got the old refusal from the
    barrier, for the same command is answered the same. Each try after a refusal is another command."""
    ids = flow.begin([{"script": {"NOTE": "refuse:2"}}, {"script": {"TICKET": "refuse", "undo PAYMENT": "refuse:2"}}])
    flow.wait_over(ids)
    assert [flow.state(i) for i in ids] == ["COMPLETED", "COMPENSATED"]
    assert [r[1] for r in flow.log(ids[0], "refused")] == ["NOTE"] * 2
    sent = flow.db.query("SELECT DISTINCT command_id FROM saga.log WHERE saga_id = %s AND step = 'NOTE' AND what LIKE 'sent%%'", (ids[0],))
    assert len(sent) == 3
    flow.check()


# ---------------------------------------------------------------- an operator undoes it all

def test_undo_of_a_completed_one(flow):
    """Story: the sale stood, and an administrator takes it back. All steps that have an undo are undone, in reverse."""
    id, = flow.begin(1)
    flow.wait_state(id, "COMPLETED")
    before = flow.db.query("SELECT started_at, data::text FROM saga.instance WHERE id = %s", (id,))
    outcome, reason = flow.order(id, "undo", by="admin")
    assert outcome == "refused" and "NOTE" in reason, "a step without undo keeps it as it is"
    assert flow.state(id) == "COMPLETED"
    assert flow.db.query("SELECT started_at, data::text FROM saga.instance WHERE id = %s", (id,)) == before
    flow.check()


NO_NOTE = re.sub(r',\n  \{ name = "NOTE".*?\}; \}\n', "\n", buy(timeout="5s", undos=3), flags=re.S).replace('"buy"', '"sale"')


@pytest.mark.asan
def test_undo_when_every_step_has_one(flow):
    """The row goes back among those that are alive, with its steps and its data, is undone, and leaves again."""
    flow.define("sale.cfg", NO_NOTE)
    assert flow.engine.consumer.terminate() == 0
    flow.engine.consumer.start().wait_ready()
    id, = flow.begin(1, name="sale")
    flow.wait_state(id, "COMPLETED")
    assert flow.order(id, "undo", by="admin") == ("done", None)
    flow.wait_state(id, "COMPENSATED")
    assert flow.steps(id) == {"HOLD": "UNDONE", "PAYMENT": "UNDONE", "TICKET": "UNDONE"}
    assert [r[1] for r in flow.log(id, "undone")] == ["TICKET", "PAYMENT", "HOLD"]
    assert flow.db.query("SELECT by FROM saga.log WHERE saga_id = %s AND what = 'order'", (id,)) == [("admin",)]
    assert flow.db.one("SELECT count(*) FROM saga.instance WHERE id = %s", (id,)) == 1
    assert flow.db.query("SELECT what, count(*) FROM saga.log WHERE saga_id = %s AND what = 'started' GROUP BY 1", (id,)) == [
        ("started", 1)]
    assert flow.db.one("SELECT data ->> 'held' FROM saga.instance WHERE id = %s", (id,)) == "HOLD"
    assert flow.db.query("SELECT n FROM saga.counts() WHERE name = 'sale' AND state = 'COMPLETED'") == [(0,)]
    with pytest.raises(psycopg2.Error, match="is COMPENSATED"):
        flow.order(id, "undo")
    flow.check()


def test_many_orders(flow, cli):
    """Story: orders for 3,000 stuck sagas took six seconds: after each hundred the engine rested, as if that were all. They
    are done in lots as large as the CLI gives them."""
    n = 3000
    steps = json.dumps([{"step": s, "state": "DONE"} for s in ("HOLD", "PAYMENT", "TICKET")] + [{"step": "NOTE", "state": "STUCK"}])
    flow.db.query("INSERT INTO saga.instance_0 (id, name, version, state, data, steps, started_at, since_at, part)"
                  " SELECT outbox.uuid7(), 'buy', 1, 'STUCK', '{\"crowd\": 1}', %s, now(), now(), 'outbox.saga.inbox-0'"
                  " FROM generate_series(1, %s)", (steps, n))
    flow.db.query("INSERT INTO saga.count VALUES ('buy', 'STUCK', 9999, %s)", (n,))
    r = cli("saga", "abort", "--name", "buy", "--state", "STUCK", "--yes", "--wait", "90s", "--conninfo", flow.db.conninfo, timeout=120)
    assert r.returncode == 0 and f"{n} done, 0 refused" in r.stderr, r.stderr
    lots = flow.db.one("SELECT count(DISTINCT xmin::text) FROM saga.\"order\" WHERE what = 'abort' AND outcome = 'done'")
    assert lots < n / 250, lots
    flow.db.query("DELETE FROM saga.instance WHERE data::text LIKE '%%crowd%%'")


# ---------------------------------------------------------------- what is seen

def test_a_gauge_goes_back_to_zero(flow):
    """Story: the last saga that ran has ended, and the gauge still says 1."""
    flow.part["seats"].db.query("INSERT INTO app.closed VALUES ('NOTE')")
    id, = flow.begin(1)
    name = f'postrider_saga_instances{{group="{flow.engine.group}",saga="buy",state="RUNNING"}}'
    wait_until(lambda: flow.engine.consumer.metric(name) == 1, 60, "one to run")
    flow.part["seats"].db.query("DELETE FROM app.closed")
    flow.wait_state(id, "COMPLETED")
    wait_until(lambda: flow.engine.consumer.metric(name, None) == 0, 60, "none to run")


@pytest.mark.tsan
def test_the_view_tells_the_op(flow):
    """Story: a step that is being undone was shown without its op, and an undo's generation never."""
    flow.part["money"].db.query("INSERT INTO app.closed VALUES ('undo PAYMENT')")
    id, = flow.begin([{"script": {"TICKET": "refuse"}}])
    flow.wait_state(id, "STUCK")
    assert flow.db.query("SELECT op, generation, tries FROM saga.step WHERE saga_id = %s AND step = 'PAYMENT'", (id,)) == [
        ("undo", 0, 3)]
    assert flow.db.query("SELECT step, op FROM saga.stuck WHERE saga_id = %s", (id,)) == [("PAYMENT", "undo")]
    assert flow.order(id, "retry") == ("done", None)
    wait_until(lambda: flow.db.query("SELECT op, generation FROM saga.step WHERE saga_id = %s AND step = 'PAYMENT'", (id,))
               == [("undo", 1)], 60, "the undo's generation")
    assert flow.db.query("SELECT op, generation FROM saga.step WHERE saga_id = %s AND step = 'TICKET'", (id,)) == [(None, 0)]
    flow.part["money"].db.query("DELETE FROM app.closed")
    wait_until(lambda: flow.state(id) in ("COMPENSATED", "STUCK"), 60, "an end")
    if flow.state(id) == "STUCK":
        assert flow.order(id, "retry") == ("done", None)
    flow.wait_state(id, "COMPENSATED")
    flow.check()


# ---------------------------------------------------------------- HTTP

@pytest.mark.tsan
def test_http_start(flow):
    """202 with where to look, the saga runs; what is malformed is said."""
    status, body = flow.http("POST", "/sagas/buy", {"amount": 30, "seat": "h1", "script": {}})
    assert status == 202 and body["state"] == "RUNNING", body
    flow.wait_state(body["saga_id"], "COMPLETED")
    status, seen = flow.http("GET", f"/sagas/{body['saga_id']}")
    assert status == 200 and seen["state"] == "COMPLETED" and [s["state"] for s in seen["steps"]] == ["DONE"] * 4, seen
    assert flow.http("POST", "/sagas/nothing", {})[0] == 404
    assert flow.http("POST", "/sagas/buy", b"[1]")[0] == 400
    assert flow.http("POST", "/sagas/buy", b'{"a":')[0] == 400
    assert flow.http("GET", f"/sagas/{uuid.uuid4()}")[0] == 404
    flow.check()


@pytest.mark.asan
@pytest.mark.tsan
def test_http_idempotency_key(flow):
    """Story: a client that did not hear the answer asks again with its key, and must not buy twice; one that uses the key
    for something else must hear so, and not the other saga's id."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = {"amount": 30, "seat": "h2", "script": {}}
    status, body = flow.http("POST", "/sagas/buy", first, key)
    assert status == 202
    assert flow.http("POST", "/sagas/buy", first, key) == (202, body)
    assert flow.http("POST", "/sagas/buy", b'{"seat":"h2",  "script": {}, "amount": 30}', key) == (202, body), "the same JSON"
    status, problem = flow.http("POST", "/sagas/buy", {**first, "seat": "h3"}, key)
    assert status == 422 and "Idempotency-Key" in problem["title"], problem
    flow.wait_state(body["saga_id"], "COMPLETED")
    assert flow.http("POST", "/sagas/buy", first, key) == (202, body), "also when it is over"
    flow.check()
    assert len(flow.log(body["saga_id"], "started")) == 1
    assert flow.db.one("SELECT count(*) FROM outbox.event WHERE type = 'SagaStart' AND aggregateid = %s", (body["saga_id"],)) == 1
