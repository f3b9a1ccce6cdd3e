"""tests/e2e/test_cli_saga.py -- `postrider saga` and `postrider show sagas` as an operator uses them, with a relay, an engine
and a participant that does what the saga's data tells it to: "ok", "refuse" or "fail".
"""
import contextlib
import json
import os
import re
import uuid

import pytest

import servers
from test_cli import Terminal
from test_cli_width import cells
from wait import wait_until

ORDERS = ["retry", "skip", "undo", "abort", "edit-data", "migrate"]
TOPICS = ["outbox.saga.inbox", "outbox.command.trip", "outbox.event.saga"]
STEP = """{ name = "%(name)s"; kind = "%(kind)s";
  do: { command = "Do%(name)s"; topic = "outbox.command.trip"; send = ( "how = data.%(how)s" ); timeout = "20s";
        retry: { attempts = 2; backoff = "10ms"; backoff_max = "20ms"; }; };%(undo)s sla = "1ms"; }"""
UNDO = """ undo: { command = "Undo%(name)s"; send = ( "how = data.%(how)s_undo" );
        retry: { attempts = 2; backoff = "10ms"; backoff_max = "20ms"; }; };"""
PARTICIPANT = """
CREATE SCHEMA app;
CREATE FUNCTION app.on_command(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE how text := coalesce(m.payload->>'how', 'ok');
BEGIN
  IF how = 'silent' OR NOT saga.barrier(m) THEN RETURN; END IF;
  IF how = 'refuse' THEN PERFORM saga.refuse(m, 'sold out'); RETURN; END IF;
  IF how = 'fail' THEN PERFORM saga.fail(m, 'the printer is on fire'); RETURN; END IF;
  PERFORM saga.done(m, '{}');
END $$;
"""


def step(name, kind, undo=False):
    args = {"name": name, "kind": kind, "how": name.lower()}
    return STEP % {**args, "undo": UNDO % args if undo else ""}


def definition(version=1, steps=None, name="trip"):
    steps = steps or [step("HOTEL", "compensatable", True), step("FLIGHT", "pivot"), step("MAIL", "retriable")]
    return f'name = "{name}"; version = {version}; steps = ( {", ".join(steps)} );\n'


class World:
    """A relay, an engine and a participant on one database."""

    def __init__(self, db, kafka, directory):
        self.db, self.kafka = db, kafka
        for t in TOPICS:
            kafka.create_topic(t, 1)
        self.cli = servers.Cli()
        self.cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", "saga", check=True)
        db.psql(PARTICIPANT)
        # All of "day" can be undone, also when it is over.
        texts = {"trip": definition(), "day": definition(1, [step("HOTEL", "compensatable", True), step("FLIGHT", "pivot", True)], "day")}
        for name, text in texts.items():
            with open(os.path.join(directory, name + ".cfg"), "w", encoding="utf-8") as f:
                f.write(text)
        self.relay = servers.Relay(db.conninfo, kafka.bootstrap, "saga").start()
        self.part = servers.Consumer(db.conninfo, kafka.bootstrap, "part", ["outbox.command.trip"],
                                     {"kind": "sql", "function": "app.on_command"}).start()
        self.engine = servers.Consumer(db.conninfo, kafka.bootstrap, "engine", ["outbox.saga.inbox"],
                                       {"kind": "saga", "definitions": [os.path.join(directory, "*.cfg")]}, override=["dedupe=offset"]).start()
        for d in (self.relay, self.part, self.engine):
            d.wait_ready(60)
        wait_until(lambda: db.one("SELECT count(DISTINCT name) FROM saga.definition") == 2, 60, "the definitions to be known")

    def __call__(self, verb, *args, **kw):
        front = verb.split() if verb.startswith("show ") else ["saga", verb]
        if verb in ORDERS and "--wait" not in args:
            args += ("--wait", "30s")
        return self.cli(*front, *args, "--conninfo", self.db.conninfo, **{"timeout": 120, **kw})

    def lines(self, verb, *args, **kw):
        return [json.loads(line) for line in self(verb, *args, "--json", **kw).stdout.splitlines()]

    def begin(self, **data):
        """Starts one and waits until it has ended or is stuck; its id and state."""
        done = self("start", "trip", "--data", json.dumps(data), "--wait", "90s", "--json")
        got = json.loads(done.stdout)
        return got["id"], got["state"]

    def stuck(self, **data):
        saga, state = self.begin(**{"mail": "fail", **data})
        assert state == "STUCK"
        return saga

    def state(self, saga):
        return (self.db.query("SELECT state FROM saga.instance WHERE id = %s", (saga,)) or [[None]])[0][0]

    def end(self, saga, state):
        wait_until(lambda: self.state(saga) == state, 60, state)

    @contextlib.contextmanager
    def without(self, daemon):
        """It stands still meanwhile."""
        daemon.sigstop()
        try:
            yield
        finally:
            daemon.sigcont()

    def stop(self):
        for d in (self.engine, self.part, self.relay):
            d.kill()


@pytest.fixture(scope="module")
def world(pg_server, tmp_path_factory):
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    # A broker of its own: all engines read one topic, so another file's sagas would begin here, too.
    kafka = servers.Kafka(quick=True).start().warm()
    db = pg_server.createdb(f"cli_saga_{os.getpid()}")
    w = World(db, kafka, str(tmp_path_factory.mktemp("saga")))
    yield w
    w.stop()
    kafka.kill()
    db.drop()


@pytest.fixture(autouse=True)
def clean(world):
    """No saga is alive that another test has left."""
    yield
    for saga, in world.db.query("SELECT id FROM saga.instance WHERE slot = 0"):
        world("abort", saga, "--yes")


# ---------------------------------------------------------------- start

def test_start_and_wait(world):
    done = world("start", "trip", "--wait", "90s", check=True)
    saga = done.stdout.strip()
    assert uuid.UUID(saga).version == 7 and done.stderr == "COMPLETED\n"
    got, = world.lines("start", "trip", "--data", '{"flight": "refuse"}', "--wait", "90s")
    assert (got["name"], got["state"], got["why"]) == ("trip", "COMPENSATED", "FLIGHT was refused: sold out")
    done = world("start", "trip", "--data", '{"mail": "fail"}', "--wait", "90s")
    assert done.returncode == 3 and "STUCK" in done.stderr and "the printer is on fire" in done.stderr


def test_start_without_waiting_and_with_an_id(world, tmp_path):
    chosen = "0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e"
    file = tmp_path / "data.json"
    file.write_text('{"hotel": "ok", "n": 12345678901234567890.10}\n')
    done = world("start", "trip", "--data", f"@{file}", "--id", chosen, check=True)
    assert (done.stdout, done.stderr) == (chosen + "\n", "")
    world.end(chosen, "COMPLETED")
    assert "12345678901234567890.10" in world("show", chosen, check=True).stdout
    done = world("start", "trip", "--data", "@-", input='{"flight": "refuse"}', check=True)
    world.end(done.stdout.strip(), "COMPENSATED")


@pytest.mark.parametrize("data", ["{", "[1]", "", "@/no/such/file", '{"a": "\\u0000"}', "1"])
def test_start_with_what_is_no_object(world, data):
    done = world("start", "trip", f"--data={data}")
    assert done.returncode in (1, 2) and done.stdout == "" and done.stderr, data


def test_start_of_what_is_not_defined(world):
    done = world("start", "tripp")
    assert done.returncode == 4 and 'there is no saga "tripp"' in done.stderr and "it has: day, trip" in done.stderr
    # A service's database has no definitions: there it is the engine's to say.
    empty = world.db.one("SELECT count(*) FROM saga.instance")
    assert world("start", "trip", "--id", "x").returncode == 2
    assert world.db.one("SELECT count(*) FROM saga.instance") == empty


# ---------------------------------------------------------------- list, show sagas

def test_list(world):
    a, b = world.stuck(), world.stuck(mail="fail", note="b")
    got = world.lines("list", check=True)
    assert [x["id"] for x in got] == [b, a]
    first = got[0]
    assert (first["name"], first["version"], first["state"], first["steps"]) == ("trip", 1, "STUCK", ["MAIL"])
    assert first["why"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["since"])
    assert first["finished_at"] is None and first["waits_for_lock"] is False and first["age_seconds"] >= 0
    ids = lambda *args: [x["id"] for x in world.lines("list", *args, check=True)]
    assert ids("--state", "STUCK", "--name", "trip", "--step", "MAIL") == [b, a]
    assert ids("--step", "M.I*(") == [] and ids("--step", "MAI") == [] and ids("--step", "HOTEL") == [] and ids("--name", "other") == [] and ids("--older", "1h") == []
    assert ids("--limit", "1") == [b] and ids("--state", "RUNNING") == []
    assert {"COMPLETED", "STUCK"} & {x["state"] for x in world.lines("list", "--all", "--limit", "1000", check=True)}
    done = world("list", "--limit", "1", check=True)
    assert done.stdout.split("\n")[0].split() == ["ID", "NAME", "VERSION", "STATE", "STEP", "FOR", "WHY"]
    assert b in done.stdout and "the printer is on fire" in done.stdout and "there are more" in done.stderr
    assert "no sagas like that" in world("list", "--name", "other", check=True).stderr
    assert world("list", "--state", "STICKY").returncode == 2


def test_show_sagas(world):
    saga = world.stuck()
    got = {x["name"]: x for x in world.lines("show sagas", check=True)}["trip"]
    assert got["style"] == "orchestration" and got["states"]["STUCK"] == 1 and got["states"]["RUNNING"] == 0
    assert [(s["id"], s["step"], s["op"], s["why"]) for s in got["stuck"]] == [(saga, "MAIL", "do", "do of MAIL: the printer is on fire")]
    assert [(s["id"], s["step"], s["sla_seconds"]) for s in got["late"]] == [(saga, "MAIL", 0.001)]
    assert [(v["version"], v["alive"]) for v in got["versions"]][0] == (1, 1)
    done = world("show sagas", check=True)
    assert done.stdout.split("\n")[0].split() == ["NAME", "RUNNING", "COMPENSATING", "STUCK", "COMPLETED", "COMPENSATED",
                                                  "ABORTED", "VERSION"]
    assert "stuck: wait for a person" in done.stdout and saga in done.stdout and "postrider saga show ID" in done.stderr


def test_what_is_late_is_not_waited_for(db, cli):
    """Story: with a million sagas at rest `postrider show sagas` ended in a time-out, and told nothing of the stuck ones."""
    db.query("INSERT INTO saga.definition (name, version, style, text, hash) VALUES ('pay', 1, 'orchestration', 'x', 'x')")
    columns = ", ".join(f"NULL::{t} AS {n}" for n, t in db.query(
        "SELECT attname, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'saga.late'::regclass ORDER BY attnum"))
    columns = columns.replace("NULL::text AS name", 'NULL::text COLLATE "C" AS name')
    db.query(f"CREATE OR REPLACE VIEW saga.late AS SELECT {columns} FROM pg_sleep(60)")
    done = cli("show", "sagas", "--conninfo", db.conninfo, check=True)
    assert re.search(r"^pay +0 ", done.stdout, re.M) and "late steps are not known" in done.stderr
    assert json.loads(cli("show", "sagas", "--conninfo", db.conninfo, "--json", check=True).stdout)["late"] is None


# ---------------------------------------------------------------- show

def test_show_tells_the_whole_story(world):
    saga = world.stuck(trip_id=17)
    got, = world.lines("show", saga, check=True)
    assert (got["id"], got["name"], got["state"], got["turned"]) == (saga, "trip", "STUCK", False)
    assert got["data"]["trip_id"] == 17 and got["left"] == ["MAIL"] and got["orders"] == []
    assert [(s["step"], s["state"]) for s in got["steps"]] == [("HOTEL", "DONE"), ("FLIGHT", "DONE"), ("MAIL", "STUCK")]
    assert got["steps"][2]["op"] == "do" and got["steps"][2]["tries"] == 2
    story = [(e["what"], e["step"]) for e in got["timeline"]]
    assert [x for x in story if x[0] != "state"] == [
        ("started", None), ("sent", "HOTEL"), ("done", "HOTEL"), ("sent", "FLIGHT"), ("done", "FLIGHT"), ("sent", "MAIL"),
        ("failed", "MAIL"), ("sent_again", "MAIL"), ("failed", "MAIL"), ("stuck", "MAIL")]
    assert [e["at"] for e in got["timeline"]] == sorted(e["at"] for e in got["timeline"])
    done = world("show", saga, check=True)
    assert done.stdout.startswith(f"trip {saga}  STUCK\n") and done.stderr == ""
    assert re.search(r"^  why +.*the printer is on fire", done.stdout, re.M) and re.search(r"^  left +MAIL$", done.stdout, re.M)
    # The ways on are those that the engine would take: FLIGHT has no undo.
    assert re.findall(r"postrider saga (\w+.*)", done.stdout) == [f"retry {saga}", f"skip {saga} --step MAIL --yes"]
    assert re.search(r"^MAIL +STUCK do +2 of 2 ", done.stdout, re.M)


def test_show_what_is_due(world):
    saga = world("start", "trip", "--data", '{"flight": "silent"}', check=True).stdout.strip()
    wait_until(lambda: world.db.query("SELECT step FROM saga.step WHERE saga_id = %s AND state = 'DOING'", (saga,)) == [("FLIGHT",)], 60)
    got, = world.lines("show", saga, check=True)
    flight = got["steps"][1]
    assert flight["due"] == "reply_overdue" and flight["due_at"] > got["since"] and got["left"] == ["FLIGHT", "MAIL"]
    done = world("show", saga, check=True)
    assert re.search(r"^FLIGHT +DOING +1 of 2 +.* ago +reply due in \d", done.stdout, re.M), done.stdout


def test_what_is_not_there(world):
    nobody = str(uuid.uuid4())
    for verb in ("show", "retry", "undo", "abort", "edit-data"):
        args = ["--data", "{}"] if verb == "edit-data" else []
        done = world(verb, nobody, *args)
        assert done.returncode == 4 and f"there is no saga {nobody}" in done.stderr, (verb, done.stderr)
        assert world(verb, "17", *args).returncode == 2
    assert world("retry", "--name", "other").returncode == 4


# ---------------------------------------------------------------- orders

def test_mend_the_data_and_retry(world):
    """Story: the mail step got an address that no server takes; the operator mends the data, and the step goes."""
    saga = world.stuck()
    with world.without(world.part):  # else it may be stuck again before its state is looked at
        done = world("retry", saga, check=True)
    assert re.match(rf"trip {saga}  retry done: it is RUNNING, MAIL DOING\n", done.stdout)
    world.end(saga, "STUCK")
    new = json.dumps({"mail": "ok", "hotel": "ok"})
    done = world("edit-data", saga, "--data", new)
    assert done.returncode == 5 and "this would replace the data" in done.stderr
    assert '-   "mail": "fail"' in done.stdout and '+   "mail": "ok"' in done.stdout
    done = world("edit-data", saga, "--data", new, "--dry-run", check=True)
    assert '+   "mail": "ok"' in done.stdout and world.db.one('SELECT count(*) FROM saga."order" WHERE what = %s AND saga_id = %s',
                                                            ("edit-data", saga)) == 0
    done = world("edit-data", saga, "--data", new, "--yes", "--by", "kim", check=True)
    assert "edit-data done: it is STUCK, MAIL STUCK" in done.stdout
    assert "nothing is different" in world("edit-data", saga, "--data", new, "--yes", check=True).stderr
    got, = world.lines("retry", saga, "--by", "kim", check=True)
    assert (got["id"], got["order"], got["outcome"], got["reason"], got["step"]) == (saga, "retry", "done", None, None)
    world.end(saga, "COMPLETED")
    shown, = world.lines("show", saga, check=True)
    assert [(o["order"], o["by"], o["outcome"]) for o in shown["orders"]][1:] == [("edit-data", "kim", "done"), ("retry", "kim", "done")]
    assert [o["by"] for o in shown["orders"]][0] not in (None, "", "kim")
    # What followed from an order in the same moment is its giver's, too.
    assert [e["what"] for e in shown["timeline"] if e["by"] == "kim"] == ["ordered", "order", "ordered", "order", "sent", "state"]
    assert re.search(r"order +MAIL do +retry, by kim", world("show", saga, check=True).stdout)


def test_edit_in_the_editor(world, tmp_path):
    saga = world.stuck()
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/fail/ok/" "$1"\n')
    editor.chmod(0o755)
    t = Terminal("saga", "edit-data", saga, "--wait", "30s", "--conninfo", world.db.conninfo, env={"EDITOR": str(editor), "VISUAL": ""})
    wait_until(lambda: "replace the data by this?" in t.read(), 30, "the question")
    t.type(b"n\n")
    assert t.end() == 5 and "nothing was done" in t.text
    t = Terminal("saga", "edit-data", saga, "--wait", "30s", "--conninfo", world.db.conninfo, env={"EDITOR": str(editor), "VISUAL": ""})
    wait_until(lambda: "replace the data by this?" in t.read(), 30, "the question")
    t.type(b"y\n")
    assert t.end() == 0 and '+   "mail": "ok"' in t.text
    assert world.db.one("SELECT data->>'mail' FROM saga.instance WHERE id = %s", (saga,)) == "ok"
    editor.write_text('#!/bin/sh\necho "[" > "$1"\n')
    t = Terminal("saga", "edit-data", saga, "--wait", "30s", "--conninfo", world.db.conninfo, env={"EDITOR": str(editor), "VISUAL": ""})
    assert t.end() == 5 and "not one JSON object" in t.text
    # In a pipe there is nobody to ask.
    assert world("edit-data", saga).returncode == 2


def test_skip(world):
    saga = world.stuck()
    done = world("skip", saga, "--step", "MAIL")
    assert done.returncode == 5 and f"skip step MAIL of trip {saga}" in done.stderr and world.state(saga) == "STUCK"
    done = world("skip", saga, "--step", "MAIL", "--dry-run", check=True)
    assert "would skip" in done.stdout and "RUNNING -> COMPLETED" in done.stdout and world.state(saga) == "STUCK"
    done = world("skip", saga, "--step", "HOTEL", "--yes")
    assert done.returncode == 5 and "step HOTEL is DONE" in done.stdout and world.state(saga) == "STUCK"
    done = world("skip", saga, "--step", "NONE", "--yes")
    assert done.returncode == 5 and 'has no step "NONE"' in done.stdout
    assert "skip done: it is COMPLETED" in world("skip", saga, "--step", "MAIL", "--yes", check=True).stdout
    # The refusals are in the story, too.
    text = world("show", saga, check=True).stdout
    assert "order_refused" in text and "step HOTEL is DONE" in text
    assert world("skip", saga, "--yes").returncode == 2


def test_skip_of_an_undo(world):
    saga = world.stuck(mail="ok", flight="refuse", hotel_undo="fail")
    got, = world.lines("show", saga, check=True)
    assert got["turned"] and got["left"] == ["HOTEL"] and got["steps"][0]["op"] == "undo"
    assert re.search(r"^  left +undo HOTEL$", world("show", saga).stdout, re.M)
    assert "COMPENSATED" in world("skip", saga, "--step", "HOTEL", "--yes", check=True).stdout


def test_undo_and_abort(world):
    saga = world.stuck()
    done = world("undo", saga, "--dry-run")
    assert done.returncode == 5 and "would be refused: step FLIGHT is DONE and has no undo" in done.stdout
    done = world("undo", saga, "--yes")
    assert done.returncode == 5 and "undo refused: step FLIGHT is DONE and has no undo" in done.stdout
    slow = world("start", "trip", "--data", '{"hotel": "silent"}', check=True).stdout.strip()
    wait_until(lambda: world.state(slow) == "RUNNING", 60)
    assert "COMPENSATING" in world("undo", slow, "--dry-run", check=True).stdout
    done = world("undo", slow, "--yes", check=True)
    assert "undo done: it is" in done.stdout
    world.end(slow, "COMPENSATED")
    done = world("abort", saga)
    assert done.returncode == 5 and "nothing is undone" in done.stderr
    assert "abort done: it is ABORTED" in world("abort", saga, "--yes", check=True).stdout
    done = world("retry", saga)
    assert done.returncode == 5 and "ABORTED" in done.stdout + done.stderr
    assert world("abort", saga, "--yes").returncode == 5


def test_undo_of_one_that_is_over(world):
    """Story: a customer's booking is to be taken back a day later, when the saga has long been COMPLETED."""
    saga = world("start", "day", "--wait", "90s", check=True).stdout.strip()
    done = world("undo", saga, "--dry-run", check=True)
    assert "COMPLETED -> COMPENSATING" in done.stdout and world.state(saga) == "COMPLETED"
    assert world("undo", saga).returncode == 5
    assert "undo done: it is " in world("undo", saga, "--yes", "--by", "kim", check=True).stdout
    world.end(saga, "COMPENSATED")
    assert [s["state"] for s in world.lines("show", saga)[0]["steps"]] == ["UNDONE", "UNDONE"]
    assert world("undo", saga, "--yes").returncode == 5
    # Nor is there anything else that could be ordered for one that is over.
    other = world("start", "day", "--wait", "90s", check=True).stdout.strip()
    for verb in (["retry"], ["abort", "--yes"], ["skip", "--step", "HOTEL", "--yes"]):
        done = world(verb[0], other, *verb[1:])
        assert done.returncode == 5 and f"{other} is COMPLETED" in done.stdout.replace("\n", " "), done


def test_an_operator_needs_no_other_right(world):
    saga, role = world.stuck(), f"kim_{os.getpid()}"
    world.db.query(f"CREATE ROLE {role} LOGIN IN ROLE saga_operator")
    try:
        run = lambda *args: world.cli(*args, "--conninfo", world.db.pg.conninfo(world.db.name, user=role), check=True)
        assert saga in run("saga", "list").stdout and saga in run("show", "sagas").stdout
        assert "the printer is on fire" in run("saga", "show", saga).stdout
        assert "would skip" in run("saga", "skip", saga, "--step", "MAIL", "--dry-run").stdout
        assert "skip done" in run("saga", "skip", saga, "--step", "MAIL", "--yes").stdout
        world.end(run("saga", "start", "trip").stdout.strip(), "COMPLETED")
        assert world.db.one('SELECT by FROM saga."order" WHERE saga_id = %s', (saga,)).endswith(role)
    finally:
        world.db.query(f"DROP ROLE {role}")


def test_status_of_the_engine(world):
    saga = world.stuck()
    url = f"http://127.0.0.1:{world.engine.port}"
    got = wait_until(lambda: (lambda o: o["sagas"].get("STUCK") == 1 and not o["healthy"] and o)(
        json.loads(world.cli("status", "--url", url, "--json").stdout)), 60, "the engine to count it")
    assert got["handler"] == "saga" and got["sagas"].get("RUNNING", 0) == 0
    done = world.cli("status", "--url", url)
    assert done.returncode == 3 and re.search(r"^  sagas +1 stuck$", done.stdout, re.M)
    assert "1 saga is stuck: a person must decide" in done.stdout
    world("skip", saga, "--step", "MAIL", "--yes", check=True)
    wait_until(lambda: re.search(r"^  sagas +none$", world.cli("status", "--url", url).stdout, re.M), 60, "none to be left")
    # Who is no engine has none to tell of.
    other = json.loads(world.cli("status", "--url", f"http://127.0.0.1:{world.part.port}", "--json").stdout)
    assert other["sagas"] is None


def test_many_at_once(world):
    """Story: a mail server was away for an hour; two hundred sagas are stuck, one of them at another step."""
    ids = [world.db.one("SELECT saga.start('trip', '{\"mail\": \"fail\"}')") for _ in range(20)]
    wait_until(lambda: world.db.one("SELECT count(*) FROM saga.instance WHERE slot = 0 AND state = 'STUCK'") == 20, 60)
    other = world.stuck(mail="ok", flight="refuse", hotel_undo="fail")
    assert world("retry").returncode == 2
    done = world("retry", "--name", "trip", "--step", "MAIL", "--dry-run", check=True)
    assert done.stdout.count("would retry") == 20 and other not in done.stdout and "would retry 20 sagas" in done.stderr
    assert world("abort", "--name", "trip", "--yes").returncode == 2, "all that are alive, without a word"
    done = world("skip", "--name", "trip", "--step", "MAIL")
    assert done.returncode == 5 and "skip step MAIL of 20 sagas" in done.stderr
    done = world("skip", "--state", "STUCK", "--step", "MAIL", "--yes", "--progress", "json", check=True)
    assert json.loads(done.stdout.splitlines()[-1])["done"] == 20 and "20 done, 0 refused" in done.stderr
    assert [world.state(i) for i in ids] == ["COMPLETED"] * 20 and world.state(other) == "STUCK"
    # Some may, some may not.
    mail = world.stuck()
    got = {x["id"]: x for x in world.lines("undo", "--state", "STUCK", "--yes")}
    assert got[mail]["outcome"] == "refused" and "FLIGHT" in got[mail]["reason"] and got[other]["outcome"] == "refused"
    done = world("retry", mail, other, mail, check=True)
    assert "2 done, 0 refused" in done.stderr


def test_without_an_engine(world):
    """The order stays, and who gave it is told that it was not done."""
    saga = world.stuck()
    with world.without(world.engine):
        done = world("skip", saga, "--step", "MAIL", "--yes", "--wait", "300ms")
        assert done.returncode == 69 and "no engine has answered; the order stays" in done.stderr
        assert "skip asked for" in done.stdout
        shown = world("show", saga, check=True)
        assert "has not been answered yet" in shown.stderr and re.search(r"ordered +MAIL +skip, by", shown.stdout)
        got, = world.lines("abort", saga, "--yes", "--wait", "0s", check=True)
        assert got["outcome"] == "waiting" and got["state"] is None
    world.end(saga, "COMPLETED")
    wait_until(lambda: world.db.one('SELECT count(*) FROM saga."order" WHERE saga_id = %s AND done_at IS NULL', (saga,)) == 0, 60)
    assert [o["outcome"] for o in world.lines("show", saga)[0]["orders"]] == ["done", "refused"]


# ---------------------------------------------------------------- migrate

def register(world, version, steps):
    text = definition(version, steps)
    world.db.query("INSERT INTO saga.definition (name, version, style, text, hash) VALUES ('trip', %s, 'orchestration', %s, 'x') "
                   "ON CONFLICT DO NOTHING", (version, text))


def test_migrate(world):
    saga, early = world.stuck(), world.stuck(mail="ok", flight="refuse", hotel_undo="fail")
    done = world("migrate", saga, "--to", "7", "--yes")
    assert done.returncode == 4 and "saga trip has no version 7" in done.stderr
    # 7 has one step more at the end; 8 one between what was done, and what was not.
    old = [step("HOTEL", "compensatable", True), step("FLIGHT", "pivot"), step("MAIL", "retriable")]
    register(world, 7, old + [step("PUSH", "retriable")])
    register(world, 8, [step("CAR", "compensatable", True)] + old)
    got = {x["id"]: x for x in world.lines("migrate", "--name", "trip", "--from", "1", "--to", "8", "--dry-run")}
    assert "step CAR of version 8 comes before one that has begun" in got[saga]["reason"] and len(got) == 2
    done = world("migrate", "--name", "trip", "--from", "1", "--to", "8", "--yes")
    assert done.returncode == 5 and done.stdout.count("comes before one that has begun") == 2 and "0 done, 2 refused" in done.stderr
    done = world("migrate", "--name", "trip", "--from", "1", "--to", "7", "--dry-run", check=True)
    assert "version 1 -> 7" in done.stdout
    assert world("migrate", "--name", "trip", "--from", "1", "--to", "7").returncode == 5
    assert "2 done, 0 refused" in world("migrate", "--name", "trip", "--from", "1", "--to", "7", "--yes", check=True).stderr
    assert world.lines("show", saga)[0]["version"] == 7
    assert [s["step"] for s in world.lines("show", saga)[0]["steps"]] == ["HOTEL", "FLIGHT", "MAIL", "PUSH"]
    assert world("migrate", "--name", "trip", "--from", "1", "--to", "7", "--yes").returncode == 4
    assert world("migrate", "--to", "7").returncode == 2 and world("migrate", saga).returncode == 2
    world("skip", saga, "--step", "MAIL", "--yes", check=True)
    world.end(saga, "COMPLETED")
    assert world.state(early) == "STUCK"


# ---------------------------------------------------------------- any width

@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_on_a_terminal(world, columns):
    saga = world.stuck(note="a" * 150)
    for args in (["saga", "list"], ["saga", "show", saga], ["show", "sagas"], ["saga", "retry", saga, "--dry-run"]):
        t = Terminal(*args, "--conninfo", world.db.conninfo, columns=columns, env={"NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
        assert t.end() == 0, t.text
        for line in t.text.splitlines():
            # A payload's own lines are as long as they are.
            assert cells(line) <= columns or "a" * 40 in line, t.text
            assert line == line.rstrip(), t.text
        # An id is never cut.
        assert saga in t.text and ("the printer is on fire" in re.sub(r"\s+", " ", t.text) or "retry" in args), t.text
