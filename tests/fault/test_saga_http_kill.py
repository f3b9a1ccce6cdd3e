"""tests/fault/test_saga_http_kill.py -- sagas started by HTTP while the engine is killed: who did not hear asks again with the
same Idempotency-Key, and there is exactly one saga for each key, whatever he heard.
"""
import http.client
import threading
import urllib.error
import uuid

import pytest
from saga import buy, dies, saga_module  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
NOT_HEARD = (urllib.error.URLError, http.client.HTTPException, OSError)


@pytest.fixture
def engine(saga_module):  # noqa: F811
    """Commands go to topics that nobody reads."""
    s = saga_module(definitions={"buy.cfg": buy(timeout="1h")}, services={}, post=False, topics=["@.seats", "@.money"])
    if not s.engine.consumer.running():
        s.start()
    yield s
    s.engine.consumer.kill()
    s.engine.consumer.start()
    s.ready()


def post(s, key):
    return s.http("POST", "/sagas/buy", {"amount": 30, "seat": "h1", "script": {}}, {"Idempotency-Key": key})


def told(s, key):
    """Its answer; just after a start the database is not asked yet."""
    return wait_until(lambda: (a := post(s, key))[0] != 503 and a, 60, "an answer")


def exactly_one(s, ids):
    wait_until(lambda: len(s.states(set(ids))) == len(ids), 60, "the sagas to be there")
    wait_until(s.engine.stands, 60, "all to be handled")
    rows = s.db.query("SELECT aggregateid, count(*) FROM outbox.event WHERE type = 'SagaStart' GROUP BY 1")
    assert sorted(r[0] for r in rows) == sorted(ids) and {r[1] for r in rows} == {1}
    assert s.db.one("SELECT count(*) FROM saga.instance") == len(ids)
    assert s.db.query("SELECT saga_id::text, count(*) FROM saga.log WHERE what = 'started' GROUP BY 1 HAVING count(*) <> 1") == []


def test_saga_start_before_answer(engine):
    """Story: the start was committed, and the engine died before it said so. The second request finds the first's saga."""
    key = str(uuid.uuid4())
    member = engine.engine.consumer
    member.kill()
    member.start(fault="saga_start_before_answer")
    member.wait_ready()
    with pytest.raises(NOT_HEARD):
        told(engine, key)
    assert member.wait(60) == -9, member.log_text()[-2000:]
    member.start().wait_ready()
    status, body = told(engine, key)
    assert status == 202 and told(engine, key) == (status, body)
    exactly_one(engine, [body["saga_id"], *known(engine, body["saga_id"])])


def known(s, *but):
    return [r[0] for r in s.db.query("SELECT aggregateid FROM outbox.event WHERE type = 'SagaStart'") if r[0] not in but]


def test_killed_while_many_ask(engine):
    """Eight clients, ten keys each, every key asked for until it is answered and then once more; SIGKILL four times."""
    before = known(engine)
    heard, wrong = {}, []

    def client(n):
        for i in range(10):
            key, answers = f"client {n}, request {i}", []
            while len(answers) < 2:
                try:
                    status, body = post(engine, key)
                    if status == 503:
                        left.wait(0.05)
                        continue  # the database is not asked yet, just after a start
                    answers.append((status, body.get("saga_id")))
                except NOT_HEARD:
                    left.wait(0.05)
            if answers[0] != answers[1] or answers[0][0] != 202:
                wrong.append((key, answers))
            heard[key] = answers[0][1]
    left = threading.Event()
    clients = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(8)]
    for c in clients:
        c.start()
    for n in range(1, 5):
        wait_until(lambda: len(heard) >= 15 * n, 60, f"{15 * n} answers")
        engine.engine.consumer.kill()
        engine.engine.consumer.start()
    for c in clients:
        c.join(100)
    assert not wrong and len(heard) == 80 and len(set(heard.values())) == 80, (wrong[:3], len(heard))
    exactly_one(engine, [*before, *heard.values()])
