"""tests/e2e/test_consumer_rights.py -- a right, a function or a table that the handler lacks: what is wrong is said with
the statement that mends it, and when it has been run, handling goes on by itself.

Story: a login without rights on the service's schema left the consumer with "permission denied for table effect" and
the hint "nothing is handled until one message gets through".
"""
import contextlib
import json
import re

import psycopg2
import pytest

import servers
from inbox import ROW, inbox  # noqa: F401
from wait import wait_until

QUICK = {"errors": [{"match": "sqlstate:42*", "policy": "breaker", "backoff": "20ms", "backoff_max": "100ms"}]}


@pytest.fixture
def login(pg_server):
    """login(inbox) -> the name of a role that may do what a consumer does, and nothing of the service's."""
    made = []

    def make(i):
        name = f"Seat-{i.name}"
        i.db.query(f'CREATE ROLE "{name}" LOGIN')
        i.db.query(f'GRANT inbox_consumer TO "{name}"')
        i.conninfo = re.sub(r" ?user=\S+", "", i.db.conninfo) + f" user='{name}'"
        made.append((i, name))
        return name
    yield make
    for i, name in made:
        for c in i.consumers:
            c.kill()
        i.db.query(f'DROP OWNED BY "{name}"')
        i.db.query(f'DROP ROLE "{name}"')


def statement(hint):
    """What to run of a hint; the name of a table, a sequence or a function comes without its schema."""
    return re.sub(r"(ON (?:SEQUENCE |FUNCTION )?)(\w+) TO ", r"\1app.\2 TO ",
                  hint.split(";")[0].replace(", with the schema before the name", "")) \
        if "with the schema" in hint else hint.split(";")[0]


def test_rights_at_the_start(inbox, login):  # noqa: F811
    """Schema and function are known exactly: so is the statement. The consumer waits for it."""
    i = inbox()
    name = login(i)
    i.db.query("REVOKE ALL ON FUNCTION app.on_event FROM PUBLIC")
    i.db.query(f'GRANT USAGE ON SEQUENCE app.effect_n_seq, app.tries TO "{name}"')
    i.db.query(f'GRANT ALL ON app.effect, app.poison TO "{name}"')
    c = i.consumer(ROW).start()
    for sentence, grant in (("permission denied for schema app", f'GRANT USAGE ON SCHEMA app TO "{name}"'),
                            (f'"{name}" may not call app.on_event(inbox.message)',
                             f'GRANT EXECUTE ON FUNCTION app.on_event(inbox.message) TO "{name}"')):
        wait_until(lambda: (sentence, grant) == tuple(json.loads(c.get("/readyz")[1]).get(k) for k in
                                                      ("sentence", "hint")), 60, f"{sentence} and {grant}", ignore=(OSError,))
        i.db.query(grant)
    i.send(20)
    i.check()


def test_rights_inside_the_handler(inbox, login):  # noqa: F811
    """Each statement that is said is run as it is (with the schema, where the server did not say it), until all goes."""
    i = inbox()
    name = login(i)
    i.db.query(f'GRANT USAGE ON SCHEMA app TO "{name}"')
    c = i.consumer(ROW, QUICK).start().wait_ready()
    i.send(20)
    seen = []

    def missed():
        a = json.loads(c.get("/readyz")[1])
        return a["state"] == "error" and a["hint"].startswith("GRANT ") and a["hint"] not in seen and a
    while i.count() < 20:
        answer = wait_until(lambda: i.count() == 20 or missed(), 60, "another right to be missed, or all to go")
        if answer is True:
            break
        hint = answer["hint"]
        assert "permission denied for " in answer["sentence"] and hint.endswith("until one message gets through")
        assert f'TO "{name}"' in hint, hint
        seen.append(hint)
        i.db.query(statement(hint))
        assert len(seen) < 6, seen
    assert len(seen) == 3, seen  # poison, effect, the sequence of effect
    i.check()


def test_a_function_that_is_missing(inbox):  # noqa: F811
    """Half a deployment: the handler calls what is not there yet."""
    i = inbox()
    i.db.psql("""CREATE OR REPLACE FUNCTION app.misbehave(how text) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN PERFORM app.not_there(how); END $$; INSERT INTO app.poison VALUES ('k1', -1, 'x')""")
    c = i.consumer(ROW, QUICK).start().wait_ready()
    i.send(20)
    answer = i.wait_state(c, "error")
    assert "app.not_there(text) does not exist" in answer["sentence"]
    assert answer["hint"].startswith("create the function, or correct its name")
    i.db.psql("CREATE FUNCTION app.not_there(how text) RETURNS void LANGUAGE sql AS ''")
    i.check()


def test_the_operator_without_a_right(pg_server, db):
    """The CLI names the login."""
    name = f"Op-{db.name}"
    db.query(f'CREATE ROLE "{name}" LOGIN')
    conninfo = re.sub(r" ?user=\S+", "", db.conninfo) + f" user='{name}'"
    try:
        done = servers.Cli().run("dlq", "list", "--conninfo", conninfo)
        assert done.returncode == 77 and f'"{name}"' in done.stderr.split("hint: ")[1], done.stderr
        db.query(f'GRANT outbox_writer TO "{name}"')
        done = servers.Cli().run("dlq", "list", "--conninfo", conninfo)
        assert done.returncode == 77, done.stderr
        grant = f'GRANT outbox_operator, inbox_operator TO "{name}"'
        assert done.stderr.endswith(f"hint: {grant}\n"), done.stderr
        with contextlib.closing(psycopg2.connect(db.conninfo)) as c, c, c.cursor() as cur:
            cur.execute(grant)
        assert servers.Cli().run("dlq", "list", "--conninfo", conninfo).returncode == 0
    finally:
        db.query(f'DROP ROLE "{name}"')
