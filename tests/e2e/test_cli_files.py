"""tests/e2e/test_cli_files.py -- config files as the operator's CLI and the daemons meet them: only what a verb needs
is looked up, and a file given to the wrong program is named as what it is."""
import json
import os
import re

import pytest

import servers

SECRETS = """
group = "seat";
database: { conninfo = "%(conninfo)s"; };
kafka: { brokers = "127.0.0.1:1"; topics = [ "t" ]; properties = ( "sasl.password=env:NO_SUCH_PASSWORD" ); };
handler: {
	kind = "http"; url = "http://127.0.0.1:1/e"; secret = "env:NO_SUCH_SECRET";
	headers = ( "Authorization: file:/no/such/file" );
};
http: { listen = "0.0.0.0:1"; token = "env:NO_SUCH_TOKEN"; };
"""
RELAY = """
name = "orders";
source: { conninfo = "dbname=orders"; };
kafka: { brokers = "127.0.0.1:1"; };
"""
CONSUMER = """
group = "seat";
database: { conninfo = "dbname=seat"; };
kafka: { brokers = "127.0.0.1:1"; topics = [ "t" ]; };
handler: { kind = "sql"; function = "seat.on_event"; };
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="consumer.cfg"):
        file = tmp_path / name
        file.write_text(text)
        file.chmod(0o600)
        return str(file)
    return write


@pytest.fixture(scope="module")
def cli():
    return servers.Cli()


# ---------------------------------------------------------------- secrets

@pytest.mark.parametrize("verb", ["dlq list", "parked list", "replay list", "show consumers --brokers=",
                                  "explain-error 23505"])
def test_secrets_that_a_verb_does_not_use(cli, db, write, verb):
    """Story: `postrider show consumers -c consumer.cfg` on an operator's machine failed, because the key that signs the
    handler's requests was in the environment of the consumer only."""
    file = write(SECRETS % {"conninfo": db.conninfo})
    # Nothing has run there: what is known of the database is all a verb could tell.
    args = [a for a in verb.split() if a != "--brokers="]
    if "consumers" in verb:
        args += ["-g", "other"]
    done = cli.run(*args, "-c", file)
    assert done.returncode in (0, 4), done.stderr
    assert "NO_SUCH" not in done.stderr and "/no/such" not in done.stderr, done.stderr


def test_the_password_of_the_database_is_needed_where_the_database_is(cli, db, write):
    file = write(SECRETS % {"conninfo": "env:SEAT_DATABASE"})
    done = cli.run("dlq", "list", "-c", file)
    assert done.returncode == 78 and "database.conninfo: environment variable SEAT_DATABASE is not set" in done.stderr
    assert re.search(r"consumer\.cfg:3: ", done.stderr)
    assert cli.run("dlq", "list", "-c", file, env={"SEAT_DATABASE": db.conninfo}).returncode == 0
    # What it names is checked as what stands in the file, and never shown.
    done = cli.run("dlq", "list", "-c", file, env={"SEAT_DATABASE": "password=x hunter2"})
    assert done.returncode == 78 and "database.conninfo" in done.stderr and "hunter2" not in done.stderr
    # The option wins: then the file's is not looked at.
    assert cli.run("dlq", "list", "-c", file, "--conninfo", db.conninfo).returncode == 0
    # And a verb that asks no database needs none.
    assert cli.run("explain-error", "23505", "-c", file).returncode == 0


def test_the_token_is_needed_to_ask_a_daemon(cli, db, write):
    file = write(SECRETS % {"conninfo": db.conninfo})
    done = cli.run("status", "-c", file)
    assert done.returncode == 78 and "http.token: environment variable NO_SUCH_TOKEN is not set" in done.stderr
    done = cli.run("status", "-c", file, env={"NO_SUCH_TOKEN": "t"})
    assert done.returncode == 69 and "does not answer" in done.stderr


def test_the_brokers_password_is_needed_to_ask_kafka(cli, db, write):
    file = write(SECRETS % {"conninfo": db.conninfo})
    done = cli.run("dlq", "list", "--from-topic", "orders.DLT", "-c", file)
    assert done.returncode == 78 and "NO_SUCH_PASSWORD is not set" in done.stderr
    relay = write(RELAY.replace('"127.0.0.1:1"', '"127.0.0.1:1"; properties = ( "sasl.password=env:NO_SUCH_PASSWORD" )'),
                  "relay.cfg")
    done = cli.run("position", "show", "-c", relay)
    assert done.returncode == 78 and "kafka.properties: environment variable NO_SUCH_PASSWORD is not set" in done.stderr
    assert cli.run("parked", "list", "-c", relay, "--conninfo", db.conninfo).returncode == 0


def test_the_daemon_needs_all_of_them(db, write):
    file = write(SECRETS % {"conninfo": db.conninfo})
    done = servers.Cli("postrider-consumer").run("-c", file, "--check")
    assert done.returncode == 78 and "is not set" in done.stderr


# ---------------------------------------------------------------- whose file

@pytest.mark.parametrize("program, text, name, says, use", [
    ("postrider-consumer", RELAY, "relay.cfg", "this is a relay's file: it has name, source", "postrider-relay"),
    ("postrider-relay", CONSUMER, "consumer.cfg", "this is a consumer's file: it has group, database, handler",
     "postrider-consumer"),
])
def test_a_file_for_another_program(write, program, text, name, says, use):
    """Story: a relay's file given to the consumer was refused for its first unknown key; with that one taken out, for
    the second, and so on."""
    file = write(text, name)
    for mode in (["--check"], ["--print-config"], []):
        done = servers.Cli(program).run("-c", file, *mode)
        assert done.returncode == 78 and done.stdout == ""
        assert done.stderr == f"{file}: {says}\nhint: {use} -c reads it\n"


def test_a_sample_of_the_one_is_no_file_of_the_other(cli):
    for program, sample, of in (("postrider-consumer", "relay.cfg", "a relay's file"),
                                ("postrider-relay", "consumer.cfg", "a consumer's file")):
        done = servers.Cli(program).run("-c", os.path.join(servers.ROOT, "etc", sample), "--check")
        assert done.returncode == 78 and of in done.stderr
    done = cli.run("explain-error", "23505", "-c", os.path.join(servers.ROOT, "etc", "relay.cfg"))
    assert done.returncode == 78 and "this is a relay's file" in done.stderr


@pytest.mark.parametrize("program, text, says", [
    # One stray key does not make it another program's file, nor do keys of both, nor one that neither knows.
    ("postrider-consumer", CONSUMER + "source: { };", r'consumer\.cfg:6: source: unknown key'),
    ("postrider-consumer", "sauce: { };", r'consumer\.cfg:1: sauce: unknown key, did you mean "source"|sauce: unknown key'),
    ("postrider-relay", RELAY + 'group = "g";', r"consumer\.cfg:5: group: unknown key"),
    ("postrider-relay", "", r"name: is required"),
])
def test_a_mistake_is_not_another_program(write, program, text, says):
    done = servers.Cli(program).run("-c", write(text), "--check")
    assert done.returncode == 78 and re.search(says, done.stderr), done.stderr
    assert "this is" not in done.stderr


def test_the_cli_tells_them_apart_by_their_keys(cli, db, write):
    """Also when the group is included, or the line is indented or commented."""
    text = CONSUMER.replace("dbname=seat", db.conninfo).replace('group = "seat";', '/* name = "x"; */   group="seat";')
    done = cli.run("dlq", "list", "--json", "-c", write(text))
    assert done.returncode == 0, done.stderr
    done = cli.run("replay", "list", "-c", write(RELAY.replace("dbname=orders", db.conninfo), "relay.cfg"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout or "{}") == {}


# ---------------------------------------------------------------- wrong words

@pytest.mark.parametrize("word, says, hint", [
    ("duplicate key value violates unique constraint", "names no failure", "as FAILURE of `postrider dlq list`"),
    ("ECONNREFUSED", "names no failure", "http:503"),
    ("42P01x", "names no failure", "sqlstate:23505"),
    ("", "names no failure", "sqlstate:23505"),
    ("sqlstat:23505", 'did you mean "sqlstate:', ""),
    ("Timeout", 'did you mean "timeout"?', ""),
    ("999", "an HTTP status is 100 to 599", ""),
    ("http:000", "an HTTP status is 100 to 599", ""),
    ("http:5xx", "name one failure, not a pattern", ""),
    ("*", "", ""),
    ("PRF01", "PRF01 is no failure of a message", "another member has taken the partition over"),
    ("sqlstate:PRD01", "PRD01 is no failure of a message", "handled before"),
])
def test_explain_error_of_what_is_no_failure(cli, word, says, hint):
    """Story: PRF01 in a log, which no rule is ever asked about, was explained as a dead letter."""
    done = cli.run("explain-error", word)
    assert done.returncode == 2 and done.stdout == "", done
    assert says in done.stderr and hint in done.stderr, done.stderr


def test_words_of_the_wrong_kind(cli, write):
    """Refused before anything is contacted: a class that is none found "no dead letters like that"."""
    for verb in ("dlq list", "parked list -g seat"):
        done = cli.run(*verb.split(), "--class", "sql", "--conninfo", "host=127.0.0.1 port=1")
        assert done.returncode == 2 and "one of: sqlstate http exit" in done.stderr, done.stderr
    done = cli.run("position", "show", "-c", write(CONSUMER))
    assert done.returncode == 2 and "consumer.cfg is a consumer's file" in done.stderr
