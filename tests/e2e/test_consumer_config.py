"""tests/e2e/test_consumer_config.py -- the consumer's configuration as a user meets it: what --check says, what a
reload takes, what is refused at the start, and that `postrider explain-error` tells what really happens."""
import json
import os
import re
import socket

import pytest
import servers
from inbox import ROW, inbox  # noqa: F401
from wait import wait_until

SAMPLE = os.path.join(servers.ROOT, "etc", "consumer.cfg")
BASE = """group = "seat";
database: { conninfo = "dbname=seat"; };
kafka: { brokers = "127.0.0.1:1"; topics = [ "t" ]; };
handler: { kind = "sql"; function = "seat.on_event"; };
"""


@pytest.fixture(scope="module")
def program():
    return servers.Cli("postrider-consumer")


@pytest.fixture
def check(program, tmp_path):
    """check(text, *options, env=) -> CompletedProcess of --check on that file."""
    def run(text, *options, mode="--check", env=None):
        file = tmp_path / "consumer.cfg"
        file.write_text(text)
        file.chmod(0o600)
        return program.run("-c", file, mode, *options, env=env)
    return run


def test_sample(program):
    done = program.run("-c", SAMPLE, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration ok\n", "")
    assert program.run("--print-sample").stdout == open(SAMPLE, encoding="utf-8").read()


@pytest.mark.parametrize("more, says", [
    ("errors = ( { match = \"sqlstat:23*\"; policy = \"park\"; } );",
     r"consumer\.cfg:5: errors\[0\]\.match: .*did you mean \"sqlstate:"),
    ("errors = ( { match = \"http:5xx\"; policy = \"retrry\"; } );", r"consumer\.cfg:5: errors\[0\]\.policy: "),
    ("limit: { batch_events = 10; };", r"consumer\.cfg:5: limit.*did you mean \"limits\""),
    ("limits: { batch_bytes = \"32MB\"; };", r"consumer\.cfg:5: limits\.batch_bytes: .*limits\.buffer_bytes"),
    ("inbox: { keep = \"1d\"; };", r"consumer\.cfg:5: inbox\.keep: .*inbox\.horizon"),
    ("dead_letter: { topic = \"t\"; };", r"consumer\.cfg:5: dead_letter\.topic: .*handled again"),
    ("http: { listen = \"0.0.0.0:9471\"; };", r"consumer\.cfg:5: http\.listen: .*http\.token"),
    ("http: { token = \"env:NO_SUCH_TOKEN\"; };", r"consumer\.cfg:5: http\.token: .*NO_SUCH_TOKEN is not set"),
])
def test_check_refuses(check, more, says):
    """Each with the line, the key, and what was meant."""
    done = check(BASE + more)
    assert done.returncode == 78 and re.search(says, done.stderr), done.stderr


@pytest.mark.parametrize("name", ["group.id", "group.instance.id", "isolation.level", "enable.auto.commit",
                                  "enable.auto.offset.store", "auto.offset.reset", "enable.partition.eof",
                                  "partition.assignment.strategy", "plugin.library.paths"])
def test_properties_of_the_guarantee(check, name):
    done = check(BASE, "-o", f"kafka.properties={name}=x")
    assert done.returncode == 78 and f'"{name}" may not be set' in done.stderr


def test_a_kind_that_is_not_there(check):
    done = check(BASE, "-o", "handler.kind=queue")
    assert done.returncode == 78 and "is not one of" in done.stderr


def test_definitions_of_sagas_are_checked(check, tmp_path):
    """Also by --check: a definition that would stop the engine is named by file and line."""
    base = BASE.replace('kind = "sql"; function = "seat.on_event";', 'kind = "saga"; definitions = [ "%s" ];')
    tmp_path = tmp_path / "sagas"
    tmp_path.mkdir()
    done = check(base % (tmp_path / "no*.cfg"))
    assert done.returncode == 78 and "no file matches" in done.stderr
    good = 'name = "pay"; version = 1; steps = ( { name = "A"; kind = "retriable"; do: { command = "Do"; topic = "t"; }; } );'
    (tmp_path / "a.cfg").write_text(good)
    done = check(base % (tmp_path / "*.cfg"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "b.cfg").write_text(good)
    done = check(base % (tmp_path / "*.cfg"))
    assert done.returncode == 78 and "b.cfg: saga pay version 1 is defined in another file too" in done.stderr
    (tmp_path / "b.cfg").write_text(good.replace("retriable", "compensatable"))
    done = check(base % (tmp_path / "*.cfg"))
    assert done.returncode == 78 and "b.cfg:1: " in done.stderr and "undo" in done.stderr


def test_secrets_are_not_shown(check):
    text = BASE.replace('kind = "sql"; function = "seat.on_event";',
                        'kind = "http"; url = "http://127.0.0.1:1/e"; secret = "env:SIGN"; '
                        'headers = ( "Authorization: env:AUTH" );')
    env = {"SIGN": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "AUTH": "Bearer s3cret"}
    done = check(text, mode="--print-config", env=env)
    assert done.returncode == 0 and "http://127.0.0.1:1/e" in done.stdout
    assert "MfKQ9r8" not in done.stdout + done.stderr and "s3cret" not in done.stdout + done.stderr
    assert check(text, env={"SIGN": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}).returncode == 78


# ---------------------------------------------------------------- explain-error

RULES = [{"match": "sqlstate:22012", "policy": "park", "backoff": "1h", "backoff_max": "2h"},
         {"match": "sqlstate:23514", "policy": "ignore"},
         {"match": "sqlstate:23*", "policy": "retry", "attempts": 2, "backoff": "1ms"}]


def explain(c, code):
    done = servers.Cli().run("explain-error", code, "-c", c.file, "--json", check=True)
    return json.loads(done.stdout)


def test_explain_error_tells_what_happens(inbox):  # noqa: F811
    """Story: somebody reads a SQLSTATE in the log and asks what becomes of such messages. What is said must be what
    the running consumer does."""
    i = inbox(partitions=1)
    c = i.consumer(ROW, {"errors": RULES})
    codes = {"22012": "park", "23514": "ignore", "23505": "retry", "P0001": "dead_letter", "22P02": "dead_letter"}
    assert {code: explain(c, code)["policy"] for code in codes} == codes
    for code in codes:
        i.poison(code, code)
        i.event(code)
    i.event("good")
    i.flush()
    c.start()
    i.wait_dead(3)
    i.wait_parked(1)
    i.wait_count(1)
    i.stands()
    assert [(k, code) for k, _, _, code in i.parked()] == [("22012", "22012")]
    assert sorted((k, n) for k, n in i.dead("key, attempts")) == [("22P02", 1), ("23505", 2), ("P0001", 1)]
    wait_until(lambda: c.status()["handled"]["ignored"] == 1, 20, "the ignored one to be counted")  # behind its commit
    assert [r[1] for r in i.rows()] == ["good"]
    assert explain(c, "23505")["attempts"] == 2
    rule = explain(c, "22012")["rule"]
    assert (rule["match"], rule["file"], rule["index"]) == ("sqlstate:22012", c.file, 0)


def test_explain_error_in_words():
    cli = servers.Cli()
    done = cli.run("explain-error", "40p01")
    assert done.returncode == 0 and done.stdout.startswith("sqlstate:40P01: retry\nrule      built in: \"sqlstate:40*\"\n")
    assert cli.run("explain-error", "503").stdout.startswith("http:503: breaker\n")
    assert "\ndelay     1 h first, doubling up to 24 h\n" in cli.run("explain-error", "crash").stdout
    for wrong in ("http:5xx", "sqlstate:*", "reply", "nonsense", "exit:1000", "timeout:1"):
        done = cli.run("explain-error", wrong)
        assert done.returncode == 2 and f'"{wrong}": ' in done.stderr
    assert cli.run("explain-error", "503", "-c", "/nonexistent.cfg").returncode == 78
    assert cli.run("explain-error").returncode == 2


# ---------------------------------------------------------------- start and reload

def test_reload_takes_numbers_only(inbox):  # noqa: F811
    """SIGHUP takes all of a file or nothing: a frozen option in it leaves the numbers alone too, and the state says
    so until the file is right again."""
    i = inbox(partitions=1)
    c = i.consumer().start().wait_ready()
    c.rewrite({"limits": {"batch_events": 7}, "log": {"level": "debug"}})
    c.hup()
    wait_until(lambda: "configuration reloaded" in c.log_text(), 60, "the reload")
    c.rewrite({"limits": {"batch_events": 8}, "dedupe": "offset"})
    c.hup()
    answer = i.wait_state(c, "warn")
    assert "dedupe" in answer["sentence"] and "cannot change while running" in answer["checks"]["reload"]
    c.rewrite({"errors": [{"match": "sqlstat:1", "policy": "park"}]})
    c.hup()
    wait_until(lambda: "errors[0].match" in json.loads(c.get("/readyz")[1])["checks"]["reload"], 60, "the new reason")
    c.rewrite({"dedupe": "inbox", "errors": []})
    c.hup()
    i.wait_state(c, "ok")
    i.send(20)
    i.check()


def test_port_in_use(inbox):  # noqa: F811
    i = inbox(partitions=1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        c = i.consumer(config={"http": {"listen": f"127.0.0.1:{s.getsockname()[1]}"}}).start()
        assert c.wait(60) not in (0, None) and "cannot serve HTTP" in c.log_text()


def test_database_without_schema(pg_server, kafka):
    """Nothing is handled, and the way out is named."""
    name = f"bare{os.getpid()}"
    db = pg_server.createdb(name)
    try:
        c = servers.Consumer(db.conninfo, kafka.bootstrap, "bare", ["nothing"], ROW).start()
        assert c.wait(60) == 78
        assert "postrider init" in c.log_text()
    finally:
        db.drop()


def test_forgotten_ids_are_refused(inbox):  # noqa: F811
    """Story (C7): ids were kept for a day, and somebody raises keep and horizon to a week, to replay a week. What
    was handled before yesterday would be applied twice."""
    i = inbox(partitions=1)
    c = i.consumer().start().wait_ready()
    assert c.terminate() == 0
    i.db.query("UPDATE inbox.slot SET slot = 2, opened_at = now() - interval '1 day'")
    i.db.query("UPDATE inbox.consumer SET made_at = now() - interval '30 days'")
    c.start()
    assert c.wait(60) == 78
    assert "inbox.horizon" in c.log_text() and "applied twice" in c.log_text()
    # A shorter horizon is as good as it says; and a group that is younger than the ids has forgotten none.
    c.override = ["inbox.horizon=12h"]
    c.start().wait_ready()
    assert c.terminate() == 0
    c.override = []
    i.db.query("UPDATE inbox.consumer SET made_at = now() - interval '1 hour'")
    c.start().wait_ready()
