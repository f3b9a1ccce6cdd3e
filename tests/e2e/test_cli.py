"""tests/e2e/test_cli.py -- the operator's CLI: its words, its refusals, its effects.

Where a verb needs a relay to answer, the test plays the relay: by a small HTTP server for
`status`, by changing the rows as the relay would for `parked`. That the real relay does
so is tested with the relay.
"""
import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
import uuid

import pytest

import servers
from wait import wait_until

VERBS = ["init", "doctor", "status", "top", "tail", "trace", "publish", "parked list", "parked show", "parked retry", "parked skip", "parked release",
         "pause", "resume", "position show", "position set", "position adopt", "show lag", "show topics", "show jobs", "show config", "show consumers", "show sagas", "lanes", "dlq list",
         "dlq show", "dlq edit", "dlq retry", "dlq drop", "dlq note", "replay start", "replay list", "replay show", "replay pause",
         "replay resume", "replay cancel", "explain-error", "saga start", "saga list", "saga show", "saga retry", "saga skip",
         "saga undo", "saga abort", "saga edit-data", "saga migrate", "saga graph", "saga simulate", "alerts list",
         "alerts show", "alerts ack", "alerts resolve", "bench", "demo", "completion", "help", "version"]
NOWHERE = "host=127.0.0.1 port=1 dbname=nobody"
UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def path():
    return servers.bin_path("postrider")


def raw(*args, **kw):
    """Bytes in, bytes out."""
    return subprocess.run([path(), *args], capture_output=True, timeout=60, env=servers._clean_env(), **kw)


class Terminal:
    """The CLI in a pseudo-terminal of a given width."""

    def __init__(self, *args, columns=80, lines=40, env=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        e = servers._clean_env(TERM="xterm")
        e.pop("COLUMNS", None)
        e.pop("NO_COLOR", None)
        e.update(env or {})
        self.proc = subprocess.Popen([path(), *args], stdin=slave, stdout=slave, stderr=slave, env=e,
                                     start_new_session=True,
                                     preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.text = ""

    def read(self, timeout=0.1):
        while select.select([self.master], [], [], timeout)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                return self.text
            if not data:
                break
            self.text += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return self.text

    def type(self, data):
        os.write(self.master, data)

    def end(self, timeout=60):
        wait_until(lambda: (self.read(0.01), self.proc.poll())[1] is not None, timeout, "the CLI to end")
        self.read()
        os.close(self.master)
        return self.proc.returncode


# ---------------------------------------------------------------- words

def test_overview_names_every_verb(cli):
    done = cli("help", check=True)
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", done.stdout, re.M), verb
    assert cli("--help").stdout == done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(cli, verb):
    done = cli(*verb.split(), "--help", check=True)
    assert done.stdout.startswith(f"postrider {verb}: ")
    assert f"usage: postrider {verb} " in done.stdout
    assert "--help" in done.stdout and "Examples\n" in done.stdout
    assert cli("help", *verb.split(), check=True).stdout == done.stdout
    # Help is data: it does not depend on anything else on the line being right.
    if verb != "completion":
        assert cli(*verb.split(), "-h").returncode == 0


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_keeps_to_the_width(cli, columns):
    for verb in VERBS:
        text = cli(*verb.split(), "--help", env={"COLUMNS": str(columns)}).stdout
        for line in text.split("\nExamples\n")[0].splitlines():
            assert len(line) <= columns, (verb, line)


def test_reference_page_and_man_page_are_those_of_the_program(cli):
    for option, file in (("--markdown", "docs/reference/cli.md"), ("--man", "docs/man/postrider.1")):
        with open(os.path.join(servers.ROOT, file), encoding="utf-8") as f:
            assert f.read() == cli("help", option, check=True).stdout, f"run: postrider help {option} > {file}"


def test_man_page_has_no_troff_warnings(cli):
    if not shutil.which("groff"):
        pytest.skip("no groff here")
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=cli("help", "--man").stdout, text=True,
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_version(cli):
    with open(os.path.join(servers.ROOT, "VERSION"), encoding="utf-8") as f:
        version = f.read().strip()
    assert f"postrider {version} " in cli("--version", check=True).stdout
    assert json.loads(cli("version", "--json").stdout)["version"] == version


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_every_verb_and_option(cli, shell):
    script = cli("completion", shell, check=True).stdout
    for word in ("parked", "adopt", "dry-run", "from-seq", "aggregatetype"):
        assert word in script
    if shutil.which(shell) and shell != "fish":
        done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words,expected", [
    (["par"], {"parked"}),
    (["parked", ""], {"list", "show", "retry", "skip", "release"}),
    (["parked", "skip", "--d"], {"--dry-run"}),
    (["completion", "z"], {"zsh"}),
    (["init", "--conninfo", "x"], set()),
    (["help", "pub"], {"publish"}),
])
def test_bash_completion_answers(cli, words, expected):
    script = cli("completion", "bash", check=True).stdout
    words = " ".join(f"'{w}'" for w in ["postrider", *words])
    script += f"\ncomplete -p postrider\nCOMP_WORDS=({words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}}-1))\n_postrider\n"
    done = subprocess.run(["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], text=True, capture_output=True)
    assert done.stderr == ""
    lines = done.stdout.split("\n")
    assert lines[0] == "complete -o filenames -F _postrider postrider"
    assert set(filter(None, lines[1:])) == expected


# ---------------------------------------------------------------- bad input: exit 2, nothing done

BAD = [
    ([], "which verb"),
    (["stauts"], 'did you mean "status"'),
    (["frobnicate"], "unknown verb"),
    (["parked"], "second word"),
    (["parked", "lsit"], 'did you mean "parked list"'),
    (["help", "frobnicate"], "unknown verb"),
    (["completion", "tcsh"], "bash, zsh, fish"),
    (["completion"], "operand is missing"),
    (["status", "now"], 'unexpected operand "now"'),
    (["status", "--frobnicate"], 'unknown option "--frobnicate"'),
    (["status", "-Z"], 'unknown option "-Z"'),
    (["status", "--jsno"], 'did you mean "--json"'),
    (["status", "--json=yes"], "takes no value"),
    (["status", "--json", "--json"], "given twice"),
    (["status", "--url", "localhost:9470"], "not an http"),
    (["status", "--url"], "needs a value"),
    (["status", "--url="], "not an http"),
    (["status", "--interval", "fast"], "fast"),
    (["status", "--interval", "0s"], "not between"),
    (["status", "--timeout", "-1s"], "-1s"),
    (["status", "-o", "name=x"], "give one"),
    (["parked", "list", "--limit", "-1"], "not between"),
    (["parked", "list", "--limit", "0"], "not between"),
    (["parked", "list", "--limit", "9e18"], "9e18"),
    (["parked", "list", "--limit", "99999999999999999999"], "99999999999999999999"),
    (["parked", "list", "--limit", ""], "--limit"),
    (["parked", "list", "--limit", "10x"], "10x"),
    (["parked", "list", "--conninfo", "--json"], "needs a value"),
    (["parked", "list", "--conninfo", "bogus"], "not a connection string"),
    (["parked", "list", "--conninfo", "nonsense=1"], "not a connection string"),
    (["dlq", "list", "--topic", "a/b"], "not a topic name"),
    (["dlq", "list", "--topic", ".."], "not a topic name"),
    (["parked", "list", "--topic", ""], "--topic: empty"),
    (["parked", "show"], "which events"),
    (["parked", "show", "--id", "not-a-uuid"], "not a UUID"),
    (["parked", "show", "--id", "0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3"], "not a UUID"),
    (["parked", "show", "--id", "{0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e}"], "not a UUID"),
    (["parked", "retry"], "which key"),
    (["parked", "skip", "--yes"], "which event"),
    (["parked", "skip", "--key", "k", "--id", str(uuid.UUID(int=1))], "which event"),
    (["parked", "release"], "which keys"),
    (["parked", "release", "--all", "--topic", "t"], "which keys"),
    (["position", "set", "--yes", "--brokers", "127.0.0.1:1", "--name", "x"], "which position"),
    (["position", "set", "--now", "--earliest", "--yes"], "which position"),
    (["position", "set", "--now", "--yes"], "which relay"),
    (["position", "adopt", "--from-seq", "0"], "not between"),
    (["position", "adopt", "--yes", "--brokers", "127.0.0.1:1", "--name", "../x"], "--name"),
    (["init", "--brokers", "127.0.0.1:1"], "needs --name"),
    (["init", "--brokers", "127.0.0.1:1", "--name", "Bad Name"], "--name"),
    (["bench", "--events", "0", "--yes"], "not between"),
    (["bench", "--payload", "1", "--yes"], "--payload"),
    (["publish", "-a", "a", "-k", "k", "-T", "t"], "give the payload once"),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "--null"], "give the payload once"),
    (["publish", "-a", "a", "-k", "k", "--data", "1"], "--type"),
    (["publish", "-a", "", "-k", "k", "-T", "t", "--data", "1"], "--aggregatetype: empty"),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "stray"], 'unexpected operand "stray"'),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "-H", "novalue"], "not name=value"),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "-H", "=v"], "not name=value"),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "-H", "n=1", "-H", "n=2"], "given twice"),
    (["publish", "-a", "a", "-k", "k", "-T", "t", "--null", "--bytes"], "--null"),
] + [(["publish", "-a", "a", "-k", "k", "-T", "t", "--data", "1", "--at", at], "is not a time") for at in (
    "yesterday", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "2026-13-01T00:00:00Z",
    "2026-01-01T25:00:00Z", "2026-01-01T00:00:00+99:00", "+soon", "-5m", "infinity")]


@pytest.mark.parametrize("args,said", BAD, ids=[" ".join(a) or "nothing" for a, _ in BAD])
def test_bad_command_line_is_usage(cli, args, said):
    """An address where nothing listens: whoever tried to connect would end with 69, not 2."""
    done = cli(*args, env={"POSTRIDER_CONNINFO": NOWHERE, "POSTRIDER_URL": "http://127.0.0.1:1"})
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert said in done.stderr and "usage: postrider" in done.stderr


def test_control_bytes_of_a_bad_word_do_not_reach_the_terminal(cli):
    done = cli("\x1b[31mred\x07")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "\\x1b[31mred\\x07" in done.stderr


def test_words_after_two_dashes_are_operands(cli):
    done = cli("status", "--", "--json")
    assert done.returncode == 2 and 'unexpected operand "--json"' in done.stderr


def test_password_on_the_command_line_works_and_warns(cli, db):
    done = cli("parked", "list", "--conninfo", db.conninfo + " password=secret", check=True)
    assert "warning: a password on the command line" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    uri = f"postgresql://postgres:secret@{db.pg.host}:{db.pg.port}/{db.name}"
    assert "warning" in cli("parked", "list", "--conninfo", uri, check=True).stderr


def test_a_bad_connection_string_is_not_repeated(cli):
    done = cli("parked", "list", "--conninfo", "password=secret bogus")
    assert done.returncode == 2 and "secret" not in done.stderr


def test_unreachable_database_is_69(cli):
    done = cli("parked", "list", "--conninfo", NOWHERE)
    assert done.returncode == 69 and done.stdout == ""


def test_where_the_database_comes_from(cli, db):
    """The option, then the file, then the environment, then libpq's own variables."""
    port = str(db.pg.port)
    assert cli("parked", "list", env={"POSTRIDER_CONNINFO": db.conninfo}).returncode == 0
    assert cli("parked", "list", env={"PGHOST": db.pg.host, "PGPORT": port, "PGDATABASE": db.name,
                                      "PGUSER": "postgres"}).returncode == 0
    assert cli("parked", "list", "--conninfo", db.conninfo, env={"POSTRIDER_CONNINFO": NOWHERE}).returncode == 0
    file = servers.write_config(os.path.join(servers.new_dir("cli"), "relay.cfg"), {
        "name": "orders", "source": {"conninfo": db.conninfo}, "kafka": {"brokers": "127.0.0.1:1"}})
    assert cli("parked", "list", "-c", file, env={"POSTRIDER_CONNINFO": NOWHERE}).returncode == 0
    assert cli("parked", "list", "-c", file, "-o", f"source.conninfo={NOWHERE}").returncode == 69
    assert cli("parked", "list", "-c", file, "--conninfo", NOWHERE).returncode == 69


def test_a_bad_config_file_is_78(cli):
    file = os.path.join(servers.new_dir("cli"), "relay.cfg")
    with open(file, "w", encoding="utf-8") as f:
        f.write('name = "orders";\nsuorce = 1;\n')
    done = cli("status", "-c", file)
    assert done.returncode == 78 and "relay.cfg:2" in done.stderr
    assert cli("status", "-c", file + ".gone").returncode == 78


# ---------------------------------------------------------------- init

def test_init_twice(cli, empty_db):
    first = cli("init", "--conninfo", empty_db.conninfo, check=True)
    assert "outbox, inbox and saga are installed" in first.stdout and "no position topic" in first.stderr
    partitions = empty_db.one("SELECT count(*) FROM outbox.partitions")
    assert partitions > 1
    again = json.loads(cli("init", "--conninfo", empty_db.conninfo, "--json", check=True).stdout)
    assert again == {"database": empty_db.name, "migrations": 0, "schema_version": again["schema_version"],
                     "partitions": partitions, "edited": [], "topic": None, "topic_created": False}


def test_init_says_what_was_applied_from_another_text(cli, empty_db):
    """Story: a migration was edited between two builds. `init` with the newer one found every number and name in place
    and said "up to date", and the first statement that needed the difference failed. It goes on (what differs may be a
    comment), but it says so."""
    done = cli("init", "--conninfo", empty_db.conninfo, check=True)
    sums = empty_db.query("SELECT number, sha256 FROM outbox.schema_version ORDER BY number")
    assert "note: " not in done.stderr and all(re.fullmatch("[0-9a-f]{64}", s) for _, s in sums)
    with open(os.path.join(servers.ROOT, "db", "migrations", "0001_outbox.sql"), "rb") as f:
        assert sums[0] == (1, hashlib.sha256(f.read()).hexdigest())

    empty_db.psql("UPDATE outbox.schema_version SET sha256 = repeat('ab', 32) WHERE number = 1;"
                  "UPDATE outbox.schema_version SET sha256 = NULL WHERE number = 2")
    done = cli("init", "--conninfo", empty_db.conninfo, check=True)
    assert "up to date" in done.stdout
    said = done.stderr
    assert f"note: 0001_outbox was applied at 2" in said and f"sha256 abababababab..., here {sums[0][1][:12]}" in said
    assert "note: 0002_inbox was applied" in said and "kept no sum" in said and "hint: " in said
    told = json.loads(cli("init", "--conninfo", empty_db.conninfo, "--json", check=True).stdout)["edited"]
    assert [(e["migration"], e["sha256"], e["this_program"]) for e in told] == [
        ("0001_outbox", "ab" * 32, sums[0][1]), ("0002_inbox", None, sums[1][1])]
    # What it says to do when the difference has been applied by hand is what ends the note.
    for statement in re.findall("^  (UPDATE .*;)$", said, re.M):
        empty_db.psql(statement)
    assert "note: " not in cli("init", "--conninfo", empty_db.conninfo, check=True).stderr


def test_init_of_a_schema_that_kept_no_sums(cli, empty_db):
    """Version 1 of before the column was there is upgraded like any other."""
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    empty_db.psql("DROP SCHEMA inbox, saga CASCADE; DELETE FROM outbox.schema_version WHERE number > 1;"
                  "ALTER TABLE outbox.schema_version DROP COLUMN sha256")
    done = cli("init", "--conninfo", empty_db.conninfo)
    assert done.returncode == 0 and "note: 0001_outbox" in done.stderr and "0002_inbox" not in done.stderr
    assert empty_db.one("SELECT bool_and((sha256 IS NOT NULL) = (number > 1)) FROM outbox.schema_version")


def test_init_by_several_at_once(empty_db):
    front = [path(), "init", "--json", "--conninfo", empty_db.conninfo]
    running = [subprocess.Popen(front, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=servers._clean_env()) for _ in range(4)]
    ended = [(*p.communicate(timeout=60), p.returncode) for p in running]
    assert [rc for _, _, rc in ended] == [0] * 4, ended
    # One transaction per migration: two inits may take turns.
    applied = [json.loads(out)["migrations"] for out, _, _ in ended]
    assert sum(applied) == empty_db.one("SELECT count(*) FROM outbox.schema_version")


def test_init_print_runs_in_psql(cli, empty_db):
    sql = cli("init", "--print", env={"POSTRIDER_CONNINFO": NOWHERE}, check=True).stdout
    bindir = empty_db.pg.bindir
    for _ in range(2):
        done = subprocess.run([os.path.join(bindir, "psql"), "-Xq1", "-v", "ON_ERROR_STOP=1", "-d", empty_db.conninfo],
                              input=sql, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(cli("init", "--conninfo", empty_db.conninfo, "--json", check=True).stdout)["migrations"] == 0
    assert cli("publish", "--conninfo", empty_db.conninfo, "-a", "a", "-k", "k", "-T", "t", "--null").returncode == 0


def test_init_without_the_right_is_77(cli, empty_db):
    role = "r_" + uuid.uuid4().hex[:12]
    empty_db.query(f"CREATE ROLE {role} LOGIN")
    try:
        done = cli("init", "--conninfo", empty_db.pg.conninfo(empty_db.name, user=role))
        assert done.returncode == 77, done.stderr
        assert empty_db.one("SELECT to_regnamespace('outbox') IS NULL")
    finally:
        empty_db.query(f"DROP ROLE {role}")


def test_init_leaves_a_foreign_schema_alone(cli, empty_db):
    empty_db.psql("CREATE SCHEMA outbox; CREATE TABLE outbox.mine (a int)")
    done = cli("init", "--conninfo", empty_db.conninfo)
    assert done.returncode == 78 and "not ours" in done.stderr and "hint: " in done.stderr


def test_verbs_name_init_when_there_is_no_schema(cli, empty_db):
    for verb in (["parked", "list"], ["pause"], ["publish", "-a", "a", "-k", "k", "-T", "t", "--null"]):
        done = cli(*verb, "--conninfo", empty_db.conninfo)
        assert done.returncode == 78 and "postrider init" in done.stderr


def test_init_makes_the_position_topic(cli, empty_db, kafka, outbox_name):
    args = ["init", "--conninfo", empty_db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, "--json"]
    first, again = (json.loads(cli(*args, check=True).stdout) for _ in range(2))
    assert first["topic"] == again["topic"] == f"postrider.positions.{outbox_name}"
    assert (first["topic_created"], again["topic_created"]) == (True, False)
    assert kafka.topics()[first["topic"]] == 1
    assert kafka.topic_config(first["topic"])["cleanup.policy"] == "compact"


# ---------------------------------------------------------------- publish

def event(db, event_id):
    row = db.query("SELECT aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic FROM outbox.event "
                   "WHERE id = %s", (event_id,))
    assert len(row) == 1
    return row[0]


def test_publish_json_from_everywhere(cli, db):
    front = ["publish", "--conninfo", db.conninfo, "-a", "order", "-k", "42", "-T", "OrderPaid"]
    file = os.path.join(servers.new_dir("cli"), "payload")
    with open(file, "w", encoding="utf-8") as f:
        f.write('{"from": "file", "text": "h\u00e9 \U0001f40e"}')
    cases = [(["--data", '{"from": "argv"}'], None), (["-"], '{"from": "stdin"}'), (["-f", "-"], '{"from": "dash"}'),
             (["-f", file], None)]
    for args, given in cases:
        done = cli(*front, *args, input=given, check=True)
        assert UUID.match(done.stdout.rstrip("\n")) and done.stderr == ""
        row = event(db, done.stdout.strip())
        assert row[:3] == ("order", "42", "OrderPaid") and row[4] is None and row[5] == {} and row[6] is None
        assert row[3]["from"] in ("argv", "stdin", "dash", "file")
    assert row[3]["text"] == "h\u00e9 \U0001f40e"


def test_publish_all_options(cli, db):
    chosen = str(uuid.uuid4())
    done = cli("publish", "--conninfo", db.conninfo, "-a", "order", "-k", "a key", "-T", "T", "-t", "my.topic", "-H",
               "source=shell", "--header=empty=", "-H", "eq=a=b", "--id", chosen.upper(), "--data=[1]", "--json", check=True)
    assert json.loads(done.stdout) == {"id": chosen, "scheduled_for": None}
    row = event(db, chosen)
    assert row[1] == "a key" and row[3] == [1] and row[6] == "my.topic"
    assert row[5] == {"source": "shell", "empty": "", "eq": "a=b"}


def test_publish_bytes_unchanged(cli, db):
    payload = bytes(range(256)) * 300
    done = raw("publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t", "--bytes", "-", input=payload)
    assert done.returncode == 0, done.stderr
    row = event(db, done.stdout.decode().strip())
    assert row[3] is None and bytes(row[4]) == payload
    empty = raw("publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t", "--bytes", "-", input=b"")
    assert bytes(event(db, empty.stdout.decode().strip())[4]) == b""


def test_publish_tombstone(cli, db):
    done = cli("publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t", "--null", check=True)
    assert event(db, done.stdout.strip())[3:5] == (None, None)


def test_publish_later(cli, db):
    front = ["publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t", "--json"]
    done = json.loads(cli(*front, "--data", "1", "--at", "2030-01-02T03:04:05.5+09:00", check=True).stdout)
    assert done["scheduled_for"] == "2030-01-01T18:04:05.500000Z"
    assert db.one("SELECT at = '2030-01-01T18:04:05.5Z' FROM outbox.scheduled WHERE id = %s", (done["id"],))
    done = raw(*front[:-1], "--bytes", "-", "--at", "+10m", input=b"\x00\xff")
    assert db.query("SELECT payload_bytes = '\\x00ff', at - now() BETWEEN interval '9 min' AND interval '10 min' "
                    "FROM outbox.scheduled WHERE id = %s", (done.stdout.decode().strip(),)) == [(True, True)]
    assert db.one("SELECT count(*) FROM outbox.event") == 0


def test_publish_what_is_refused_leaves_nothing(cli, db):
    front = ["publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t"]
    assert cli(*front, "--data", "{bad").returncode == 1
    done = cli("publish", "--conninfo", db.conninfo, "-a", "a b", "-k", "k", "-T", "t", "--data", "1")
    assert done.returncode == 1 and "hint: " in done.stderr
    done = cli(*front, "-H", "id=mine", "--data", "1")
    assert done.returncode == 1 and "reserved" in done.stderr
    nul = raw(*front, "-", input=b'{"a": "\x00"}')
    assert nul.returncode == 1 and b"NUL byte at offset 7" in nul.stderr
    assert db.one("SELECT count(*) FROM outbox.event") == 0


def test_publish_refuses_odd_files_without_hanging(cli, db):
    where = servers.new_dir("cli")
    fifo = os.path.join(where, "fifo")
    os.mkfifo(fifo)
    front = ["publish", "--conninfo", db.conninfo, "-a", "a", "-k", "k", "-T", "t", "-f"]
    for name, code in ((fifo, 1), (where, 1), ("/dev/zero", 1), (os.path.join(where, "gone"), 4)):
        done = cli(*front, name, timeout=30)
        assert done.returncode == code, (name, done)
    assert db.one("SELECT count(*) FROM outbox.event") == 0


def test_publish_as_a_writer_and_as_nobody(cli, db):
    role = "r_" + uuid.uuid4().hex[:12]
    db.query(f"CREATE ROLE {role} LOGIN")
    args = ["publish", "--conninfo", db.pg.conninfo(db.name, user=role), "-a", "a", "-k", "k", "-T", "t", "--null"]
    try:
        assert cli(*args).returncode == 77
        db.query(f"GRANT outbox_writer TO {role}")
        assert UUID.match(cli(*args, check=True).stdout.strip())
    finally:
        db.query(f"DROP OWNED BY {role}")
        db.query(f"DROP ROLE {role}")


# ---------------------------------------------------------------- parked

EVIL = "42\x1b[31m\x9b\u202e\n"


def park(db, topic, key, n, reason="the record has 1,200,000 bytes, the topic takes 1,048,588", age="3 hours"):
    """n events of one key, as the relay parks them; returns [(seq, id)]."""
    out = []
    for i in range(n):
        seq, event_id = db.query("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) "
                                 "VALUES ('order', %s, 'OrderPaid', '{\"n\": 1}') RETURNING seq, id", (key,))[0]
        db.query("INSERT INTO outbox.parked (seq, id, topic, key, type, reason, code, head, attempts, created_at, "
                 "parked_at) VALUES (%s, %s, %s, %s, 'OrderPaid', %s, 'MSG_SIZE_TOO_LARGE', %s, 3, now(), "
                 "now() - %s::interval)", (seq, event_id, topic, key, reason if i == 0 else None, i == 0, age))
        out.append((seq, event_id))
    db.query("INSERT INTO outbox.relay (name) VALUES ('orders') ON CONFLICT DO NOTHING")
    return out


@contextlib.contextmanager
def acting(db, act):
    """Plays the relay: calls act(cursor, seq, topic, key, request) for each request it finds."""
    stop = threading.Event()
    failed = []

    def run():
        c = db.connect()
        try:
            with c.cursor() as cur:
                while not stop.wait(0.01):
                    cur.execute("SELECT seq, topic, key, request FROM outbox.parked WHERE request IS NOT NULL")
                    for row in cur.fetchall():
                        act(cur, *row)
        except Exception as e:  # shown by the test
            failed.append(e)
        finally:
            c.close()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not failed, failed


def lets_go(cur, _seq, topic, key, _request):
    cur.execute("DELETE FROM outbox.parked WHERE topic = %s AND key = %s", (topic, key))


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_parked_list_empty(cli, db):
    done = cli("parked", "list", "--conninfo", db.conninfo, check=True)
    assert (done.stdout, done.stderr) == ("", "no key is held back\n")
    done = cli("parked", "list", "--conninfo", db.conninfo, "--json", check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_parked_list_groups_by_key(cli, db):
    a = park(db, "outbox.event.order", "42", 3)
    park(db, "outbox.event.order", EVIL, 1, age="1 min")
    got = lines(cli("parked", "list", "--conninfo", db.conninfo, "--json", check=True))
    assert [(x["key"], x["events"]) for x in got] == [("42", 3), (EVIL, 1)]
    assert got[0]["first_seq"] == a[0][0] and got[0]["first_id"] == a[0][1] and got[0]["attempts"] == 3
    assert got[0]["code"] == "MSG_SIZE_TOO_LARGE" and got[0]["reason"].startswith("the record has")
    assert 3 * 3600 <= got[0]["age_seconds"] < 3 * 3600 + 60 and got[0]["request"] is None
    text = cli("parked", "list", "--conninfo", db.conninfo, check=True).stdout
    assert text.splitlines()[0].split() == ["TOPIC", "KEY", "EVENTS", "HELD", "FOR", "REASON"]
    assert "42\\x1b[31m\\x9b\\u202e\\n" in text and not set("\x1b\x9b\u202e") & set(text)
    assert len(text.splitlines()) == 3
    few = cli("parked", "list", "--conninfo", db.conninfo, "--limit", "1", "--json", check=True)
    assert len(lines(few)) == 1 and "there are more" in few.stderr
    two = cli("parked", "list", "--conninfo", db.conninfo, "--limit", "2", "--json", check=True)
    assert len(lines(two)) == 2 and two.stderr == ""
    assert lines(cli("parked", "list", "--conninfo", db.conninfo, "-t", "other", "--json", check=True)) == []


def test_parked_show_keeps_payloads_to_itself(cli, db):
    events = park(db, "t", "42", 2)
    seq, big = db.query("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload_bytes) "
                        "VALUES ('order', '42', 'Raw', '\\x00ff') RETURNING seq, id")[0]
    db.query("INSERT INTO outbox.parked (seq, id, topic, key, type, head) VALUES (%s, %s, 't', '42', 'Raw', false)",
             (seq, big))
    front = ["parked", "show", "--conninfo", db.conninfo, "-k", "42"]
    for args in ([], ["--json"]):
        assert '"n"' not in cli(*front, *args, check=True).stdout
    got = lines(cli(*front, "--json", "--payload", check=True))
    assert [x["id"] for x in got] == [events[0][1], events[1][1], big]
    assert got[0]["payload"] == {"n": 1} and got[0]["payload_bytes"] == len('{"n": 1}')
    assert got[2]["payload_base64"] == "AP8=" and "payload" not in got[2]
    one = cli("parked", "show", "--conninfo", db.conninfo, "--id", events[1][1], "--payload", check=True).stdout
    assert '{"n": 1}' in one and "waits behind" in one and events[0][1] not in one
    assert cli("parked", "show", "--conninfo", db.conninfo, "-k", "43").returncode == 4


def test_parked_retry_asks_and_reports(cli, db):
    (first, _), (second, _) = park(db, "t", "42", 2)
    park(db, "t", "43", 1)
    before = db.one("SELECT request FROM outbox.relay")
    done = cli("parked", "retry", "--conninfo", db.conninfo, "-k", "42", "--wait", "0s", check=True)
    assert "requested" in done.stdout
    assert db.query("SELECT seq, request FROM outbox.parked WHERE request IS NOT NULL") == [(first, "retry")]
    assert db.one("SELECT request FROM outbox.relay") == before + 1
    # Nobody acts: it says so, and the request stays.
    done = cli("parked", "retry", "--conninfo", db.conninfo, "-k", "42", "--wait", "100ms")
    assert done.returncode == 69 and "has not acted" in done.stderr
    assert db.one("SELECT request FROM outbox.parked WHERE seq = %s", (first,)) == "retry"
    db.query("UPDATE outbox.parked SET request = NULL")
    with acting(db, lets_go):
        done = cli("parked", "retry", "--conninfo", db.conninfo, "-k", "42", "--json", check=True)
    assert [(x["outcome"], x["events"]) for x in lines(done)] == [("released", 0)]
    assert db.query("SELECT key FROM outbox.parked") == [("43",)] and second > first


def test_parked_retry_refused_again(cli, db):
    park(db, "t", "42", 2)

    def refuse(cur, seq, *_):
        cur.execute("UPDATE outbox.parked SET request = NULL, reason = 'still too large' WHERE seq = %s", (seq,))
    with acting(db, refuse):
        done = cli("parked", "retry", "--conninfo", db.conninfo, "-k", "42", "--json")
    assert done.returncode == 1
    assert [(x["outcome"], x["events"], x["reason"]) for x in lines(done)] == [("still_parked", 2, "still too large")]


def test_parked_retry_waits_while_the_relay_is_half_way(cli, db):
    """The head is gone, those behind it follow a moment later: not an outcome yet."""
    (first, _), (second, _) = park(db, "t", "42", 2)
    gone = []

    def slowly(cur, seq, *_):
        cur.execute("DELETE FROM outbox.parked WHERE seq = %s", (seq,))
        gone.append(time.monotonic())
    with acting(db, slowly):
        running = subprocess.Popen([path(), "parked", "retry", "--conninfo", db.conninfo, "-k", "42", "--wait", "60s", "--json"],
                                   stdout=subprocess.PIPE, text=True, env=servers._clean_env())
        wait_until(lambda: gone, 30)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.7)
        db.query("DELETE FROM outbox.parked WHERE seq = %s", (second,))
        out = running.communicate(timeout=60)[0]
    assert (running.returncode, json.loads(out)["outcome"]) == (0, "released")


def test_parked_skip_needs_yes(cli, db):
    (first, event_id), (_, later) = park(db, "t", "42", 2)
    front = ["parked", "skip", "--conninfo", db.conninfo]
    done = cli(*front, "--id", event_id)
    assert done.returncode == 5 and event_id in done.stderr and "--yes" in done.stderr and done.stdout == ""
    done = cli(*front, "--id", event_id, "--dry-run", check=True)
    assert f"would skip t key 42, event {event_id}" in done.stdout
    assert cli(*front, "--id", event_id, "--dry-run", "--yes", check=True).stdout == done.stdout
    assert db.query("SELECT seq FROM outbox.parked WHERE request IS NOT NULL") == []
    assert cli(*front, "--id", str(uuid.uuid4()), "--yes").returncode == 4
    done = cli(*front, "--id", later, "--yes")
    assert done.returncode == 5 and "only the first" in done.stderr

    def skip(cur, seq, topic, key, request):
        assert request == "skip" and seq == first
        cur.execute("INSERT INTO outbox.skipped (seq, id, topic, key) SELECT seq, id, topic, key FROM outbox.parked "
                    "WHERE seq = %s", (seq,))
        lets_go(cur, seq, topic, key, request)
    with acting(db, skip):
        done = cli(*front, "--id", event_id, "--yes", "--json", check=True)
    assert lines(done)[0]["outcome"] == "released"
    assert db.query("SELECT seq FROM outbox.skipped") == [(first,)]


def test_parked_release_many(cli, db):
    for i in range(50):
        park(db, "t1", f"k{i}", 1)
    park(db, "t2", "k0", 1)
    done = cli("parked", "retry", "--conninfo", db.conninfo, "-k", "k0")
    assert done.returncode == 2 and "2 topics" in done.stderr
    with acting(db, lets_go):
        done = cli("parked", "release", "--conninfo", db.conninfo, "-t", "t1", "--json", check=True)
        assert sorted(x["key"] for x in lines(done)) == sorted(f"k{i}" for i in range(50))
        assert {x["outcome"] for x in lines(done)} == {"released"}
        assert db.query("SELECT topic FROM outbox.parked") == [("t2",)]
        assert len(lines(cli("parked", "release", "--conninfo", db.conninfo, "--all", "--json", check=True))) == 1
    assert cli("parked", "release", "--conninfo", db.conninfo, "--all").returncode == 4


def test_an_operator_may_look_and_ask(cli, db):
    role = "r_" + uuid.uuid4().hex[:12]
    db.query(f"CREATE ROLE {role} LOGIN IN ROLE outbox_operator")
    me = ["--conninfo", db.pg.conninfo(db.name, user=role)]
    park(db, "t", "42", 1)
    try:
        assert len(lines(cli("parked", "list", "--json", *me, check=True))) == 1
        assert "payload" in lines(cli("parked", "show", "-k", "42", "--payload", "--json", *me, check=True))[0]
        cli("parked", "retry", "-k", "42", "--wait", "0s", *me, check=True)
        assert db.one("SELECT requested_by FROM outbox.parked") == role
        cli("pause", *me, check=True)
        cli("resume", *me, check=True)
    finally:
        db.query(f"DROP OWNED BY {role}")
        db.query(f"DROP ROLE {role}")


def test_pause_and_resume(cli, db):
    front = ["--conninfo", db.conninfo, "--json"]
    assert cli("pause", *front).returncode == 5  # no relay has run here
    db.query("INSERT INTO outbox.relay (name) VALUES ('orders')")
    done = json.loads(cli("pause", *front, check=True).stdout)
    assert done["paused"] and done["changed"] and done["since"].endswith("Z")
    assert db.one("SELECT paused_at IS NOT NULL FROM outbox.relay")
    assert json.loads(cli("pause", *front, check=True).stdout)["changed"] is False
    assert json.loads(cli("resume", *front, check=True).stdout) == {"paused": False, "since": None, "changed": True}
    assert db.one("SELECT paused_at IS NULL FROM outbox.relay")
    assert cli("resume", "--conninfo", db.conninfo, check=True).stdout == "was not paused\n"


# ---------------------------------------------------------------- status

OK = {"name": "orders", "version": "0.1.0", "state": "ok", "sentence": "everything committed is on Kafka", "hint": "",
      "leader": True, "delivery": "exactly_once", "lag_seconds": 0.0, "pending_events": 0, "published_total": 1204118,
      "parked_events": 0, "parked_keys": 0, "waiting": [], "problems": [],
      "postgres": {"connected": True, "system_id": "7710602021586260245", "timeline": 1}, "kafka": {"connected": True},
      "position": {"seq": "1204118", "snapshot": "1:1:"}, "uptime_seconds": 12.5, "rates": {"events_per_second": 812.4}}
WARN = dict(OK, state="warn", sentence="3 keys are held back", hint="postrider parked list", lag_seconds=754.2,
            parked_events=17, parked_keys=3,
            waiting=[{"topic": "refund", "events": 12, "reason": "the topic does not exist"}],
            problems=[{"code": "parked", "severity": "warn", "text": "3 keys are held back", "hint": "x"},
                      {"code": "waiting", "severity": "warn", "text": "12 events wait for refund", "hint": "create it"}])


@pytest.fixture
def fake():
    """fake(status, ready=200) answers as a relay would; fake.seen has the requests."""
    made = []

    def make(status, ready=200, checks=None, code=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                make.seen.append((self.path, self.headers.get("Authorization")))
                body, answer = json.dumps({"ready": ready == 200, "checks": checks or {}}), ready
                if self.path == "/status.json":
                    body, answer = status if isinstance(status, str) else json.dumps(status), code
                self.send_response(answer)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"
    make.seen = []
    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("state,ready,code", [
    ("ok", 200, 0), ("standby", 200, 0), ("standby", 503, 0), ("ok", 503, 3), ("warn", 200, 3), ("error", 503, 3),
    ("paused", 200, 3), ("starting", 503, 3), ("new-word", 200, 3)])
def test_status_exit_codes(cli, fake, state, ready, code):
    url = fake(dict(OK, state=state), ready, {"kafka": {"ok": ready == 200, "text": "no broker answers"}})
    done = cli("status", "--json", "--url", url)
    assert done.returncode == code
    got = json.loads(done.stdout)
    assert (got["healthy"], got["ready"], got["state"]) == (code == 0, ready == 200, state)
    text = cli("status", "--url", url)
    assert text.returncode == code
    if (state, ready) == ("ok", 503):
        assert "not ready  kafka: no broker answers" in text.stdout.splitlines()[0]


def test_status_reads_the_relay_s_own_form_of_checks(cli, fake):
    """Words, switches and numbers: only a word other than ok is a complaint."""
    url = fake(OK, 503, {"postgres": "ok", "kafka": "no broker answers", "streaming": False, "parked_keys": 0})
    assert "not ready  kafka: no broker answers\n" in cli("status", "--url", url).stdout


def test_status_screen_names_the_worst_first(cli, fake):
    done = cli("status", "--url", fake(WARN))
    first = done.stdout.splitlines()
    assert first[0] == "orders  warn  3 keys are held back" and first[1] == "  fix: postrider parked list"
    assert done.stdout.count("3 keys are held back") == 1 and "12 events wait for refund" in done.stdout
    for said in ("lag        12 min 34 s", "17 events behind 3 keys", "refund: 12 events, the topic does not exist",
                 "1,204,118 events", "812 events/s", "leader, exactly_once, version 0.1.0, up for 12.5 s"):
        assert said in done.stdout, said


def test_status_json_has_the_documented_fields(cli, fake):
    got = json.loads(cli("status", "--json", "--url", fake(WARN)).stdout)
    assert set(got) == {"source", "url", "healthy", "ready", "name", "version", "state", "sentence", "hint", "leader",
                        "delivery", "lag_seconds", "pending_events", "published_total", "events_per_second",
                        "parked_events", "parked_keys", "waiting", "problems", "postgres", "kafka", "position_seq",
                        "uptime_seconds"}
    help_text = " ".join(cli("status", "--help").stdout.split())
    assert all(name in help_text for name in got)
    got = json.loads(cli("status", "--json", "--url", fake({"state": "ok"})).stdout)
    assert got["lag_seconds"] is None and got["waiting"] is None and got["healthy"]


def test_status_shows_less_of_a_relay_that_says_less(cli, fake):
    done = cli("status", "--url", fake({"state": "ok", "waiting": "?", "problems": 7, "postgres": [], "rates": None}))
    assert done.returncode == 0 and "lag        unknown" in done.stdout


SEAT = {"group": "seat", "state": "warn", "sentence": "2 messages of 1 key are parked, the oldest for 6 s", "hint": None,
        "handler": "sql", "dedupe": "inbox", "lanes": 1, "assigned_partitions": 3, "lag_seconds": 6.5, "lag_events": 1200,
        "handled": {"handled": 0, "duplicate": 2, "filtered": 0, "ignored": 0, "parked": 3, "dead_letter": 1},
        "parked_events": 2, "parked_keys": 1, "dead_letters": 1, "retrying": 0, "replays": 0, "breaker": {"open": False},
        "version": "0.1.0", "problems": [], "postgres": {"connected": True}, "kafka": {"connected": True},
        "uptime_seconds": 7, "rates": {"events_per_second": 0.5}}


def test_status_of_a_consumer(cli, fake):
    """A consumer says its own words: it is nobody's leader, and has no outbox that could be pending."""
    done = cli("status", "--url", fake(SEAT))
    assert done.returncode == 3 and done.stdout.startswith("seat  warn  2 messages of 1 key")
    for said in ("lag        6.5 s, 1,200 records", "messages   0 handled, 2 known already, 3 parked, 1 dead since",
                 "reads      3 partitions, with 1 lane", "dead       1 dead letter\n", "handler sql, version 0.1.0"):
        assert said in done.stdout, done.stdout
    for wrong in ("relay", "leader", "pending", "published", "retrying", "replay"):
        assert wrong not in done.stdout, wrong
    got = json.loads(cli("status", "--json", "--url", fake(SEAT)).stdout)
    assert (got["source"], got["group"], got["healthy"], got["lag_events"]) == ("consumer", "seat", False, 1200)
    help_text = " ".join(cli("status", "--help").stdout.split())
    assert all(name in help_text for name in got) and "leader" not in got


def test_status_of_a_silent_consumer(cli, tmp_path):
    """Its database has an outbox too, but that one's backlog is not what was asked for."""
    conf = tmp_path / "consumer.cfg"
    conf.write_text('group = "seat"; database: { conninfo = "host=127.0.0.1"; }; kafka: { brokers = "127.0.0.1:1";'
                    'topics = [ "t" ]; }; handler: { kind = "sql"; function = "a.b"; };'
                    f'http: {{ listen = "127.0.0.1:{servers.free_port()}"; }};')
    done = cli("status", "-c", str(conf))
    assert done.returncode == 69 and done.stdout == "" and "the consumer does not answer" in done.stderr
    assert "hint: start it: postrider-consumer" in done.stderr and "show consumers" in done.stderr
    assert "its log names" in cli("status", "-c", str(conf), "-o", "http.listen=127.0.0.1:0").stderr


def test_status_data_cannot_drive_the_terminal(cli, fake):
    done = cli("status", "--url", fake(dict(WARN, name="\x1b]0;x\x07", sentence="\x1b[2J\u202e", hint="\x9b31m")))
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout) and "\\x1b[2J" in done.stdout


@pytest.mark.parametrize("body", ["", "no json", "[]", "{}", '{"state": 7}', '{"state": ""}', "null", "{" * 5000])
def test_status_of_something_else_is_69(cli, fake, body):
    done = cli("status", "--url", fake(body))
    assert done.returncode == 69 and "not as a relay or a consumer does" in done.stderr


def test_status_sends_the_token(cli, fake):
    url = fake(OK)
    cli("status", "--url", url, env={"POSTRIDER_TOKEN": "s3cret"}, check=True)
    assert {token for _, token in fake.seen} == {"Bearer s3cret"}
    done = cli("status", "--url", fake("", code=401))
    assert done.returncode == 69 and "POSTRIDER_TOKEN" in done.stderr


def test_status_of_a_silent_relay_is_what_the_database_says(cli, db):
    nobody = f"http://127.0.0.1:{servers.free_port()}"
    done = cli("status", "--url", nobody)
    assert done.returncode == 69 and done.stdout == "" and "nothing listens there" in done.stderr
    park(db, "t", "42", 2)
    done = cli("status", "--url", nobody, "--conninfo", db.conninfo)
    assert done.returncode == 69
    assert done.stdout.startswith(f"{db.name}  error  the relay does not answer") and "2 events behind 1 key" in done.stdout
    got = json.loads(cli("status", "--url", nobody, "--conninfo", db.conninfo, "--json").stdout)
    assert (got["source"], got["healthy"], got["parked_events"]) == ("database", False, 2) and got["lag_seconds"] > 0
    done = cli("status", "--url", nobody, "--conninfo", NOWHERE)
    assert done.returncode == 69 and done.stdout == ""


def test_a_database_that_is_not_there_is_78(cli, db):
    """Story: the first command of a new user, before createdb: it was 1, and said nothing of what to do."""
    done = cli("status", "--url", f"http://127.0.0.1:{servers.free_port()}", "--conninfo", f"{db.conninfo} dbname=not_made_yet")
    assert done.returncode == 69 and "hint: createdb makes one" in done.stderr
    done = cli("parked", "list", "--conninfo", f"{db.conninfo} dbname=not_made_yet")
    assert done.returncode == 78 and "does not exist" in done.stderr and "hint: createdb makes one" in done.stderr


def test_status_watch_in_a_pipe_ends_with_its_reader(fake):
    url = fake(OK)
    for args, lines_wanted in (["--json"], 3), ([], 30):
        p = subprocess.Popen([path(), "status", "-w", "--interval", "100ms", "--url", url, *args],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=servers._clean_env())
        for _ in range(lines_wanted):
            line = p.stdout.readline()
            assert line and "\x1b" not in line
            if args:
                assert json.loads(line)["healthy"]
        p.stdout.close()
        assert p.wait(30) == 0
        assert p.stderr.read() == ""
        p.stderr.close()


def test_status_watch_on_a_terminal(fake):
    t = Terminal("status", "-w", "--interval", "100ms", "--url", fake(WARN), columns=80)
    wait_until(lambda: t.read(0.05).count("Ctrl-C ends") >= 3, 60, "three screens")
    t.type(b"\x03")
    assert t.end() == 3
    assert t.text.startswith("\x1b[?1049h") and t.text.count("\x1b[?1049l") == 1
    last = t.text.split("\x1b[?1049l")[1]  # stays on the screen
    assert "3 keys are held back" in last and "Ctrl-C" not in last and "\x1b[?25h" in t.text


# ---------------------------------------------------------------- screens and pipes

def test_colours_only_on_a_terminal(cli, fake):
    url = fake(WARN)
    assert "\x1b" not in cli("status", "--url", url).stdout
    t = Terminal("status", "--url", url)
    assert t.end() == 3 and "\x1b[33mwarn\x1b[0m" in t.text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        t = Terminal("status", "--url", url, env=env)
        assert t.end() == 3 and "\x1b" not in t.text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_screens_fit_the_terminal(db, fake, columns):
    park(db, "outbox.event.a-rather-long-name-of-a-topic", "a-key-" * 10, 2)
    park(db, "outbox.event.order", "\u5ba2\u6237" * 20, 1)
    url = fake(dict(WARN, sentence="words " * 40, hint="do this " * 30))
    for args in (["parked", "list", "--conninfo", db.conninfo], ["status", "--url", url], ["help"],
                 ["parked", "show", "-k", "a-key-" * 10, "--conninfo", db.conninfo]):
        t = Terminal(*args, columns=columns, env={"NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
        t.end()
        for line in t.text.splitlines():
            wide = sum(2 if "\u4e00" <= ch <= "\u9fff" else 1 for ch in line)
            unbreakable = "a-key-a-key" in line or "outbox.event.a-rather" in line
            assert wide <= columns or (unbreakable and args[1] == "show"), (args, line)


def test_a_pipe_gets_whole_values(cli, db):
    park(db, "t", "k" * 300, 1, reason="r" * 500)
    done = cli("parked", "list", "--conninfo", db.conninfo, env={"COLUMNS": "40"}, check=True)
    assert "k" * 300 in done.stdout and "r" * 500 in done.stdout


def test_closed_stdout_ends_quietly():
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {path()} help --man | head -1"], capture_output=True,
                          text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_closed_stdout_does_not_hide_the_verb_s_code(fake):
    url = fake(WARN)
    done = subprocess.run(["bash", "-c", f"{path()} status --url {url} | true; exit ${{PIPESTATUS[0]}}"], timeout=30,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([path(), "help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 1 and "No space left" in done.stderr


def test_demo_elsewhere_says_how(cli):
    """Outside a checkout: a copy of the program."""
    where = servers.new_dir("cli")
    copy = shutil.copy(path(), os.path.join(where, "postrider"))
    done = subprocess.run([copy, "demo", "--once"], capture_output=True, text=True, cwd=where, timeout=30)
    assert done.returncode == 0 and "make demo ONCE=1" in done.stdout


# ---------------------------------------------------------------- position

@pytest.fixture
def placed(cli, db, kafka, outbox_name):
    """A database and a position topic; run(verb, ...) runs `postrider position verb`."""
    where = ["--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name]
    cli("init", *where, check=True)

    def run(*args, **kw):
        return cli("position", *args, *where, **kw)
    run.db, run.kafka, run.name, run.topic = db, kafka, outbox_name, f"postrider.positions.{outbox_name}"
    return run


def insert(db, n):
    db.query("INSERT INTO outbox.event (aggregatetype, aggregateid, type) SELECT 'a', 'k', 't' "
             "FROM generate_series(1, %s)", (n,))
    return db.one("SELECT max(seq) FROM outbox.event")


def test_position_adopt_and_show(placed):
    last = insert(placed.db, 10)
    assert placed("show").returncode == 4
    done = placed("adopt")
    assert done.returncode == 5 and f"through event {last}, as published" in done.stderr
    done = placed("adopt", "--dry-run", "--json", check=True)
    assert json.loads(done.stdout)["written"] is False
    assert placed.kafka.end_offsets(placed.topic) == {0: 0}
    assert placed.db.query("SELECT * FROM outbox.relay") == []
    got = json.loads(placed("adopt", "--yes", "--json", check=True).stdout)
    assert got["written"] and got["position"]["from"]["l"] == str(last) and "to" not in got["position"]
    shown = json.loads(placed("show", "--json", check=True).stdout)
    assert shown["found"] and shown["matches"] and shown["problem"] is None
    assert shown["position"] == got["position"] and shown["database"]["last_seq"] == last
    assert placed.db.query("SELECT name, system_id, published_seq FROM outbox.relay") == [
        (placed.name, shown["database"]["system_id"], last)]
    assert "matches this database" in placed("show", check=True).stdout


def test_position_adopt_takes_a_snapshot_that_misses_no_open_transaction(placed):
    """An event inserted but not committed when the operator adopts is published afterwards: its
    transaction must lie outside the snapshot, though its number is below the bound."""
    c = placed.db.connect(autocommit=False)
    with c.cursor() as cur:
        cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type) VALUES ('a', 'k', 't') "
                    "RETURNING xid::text::bigint, seq")
        xid, seq = cur.fetchone()
    insert(placed.db, 3)
    mark = json.loads(placed("adopt", "--yes", "--json", check=True).stdout)["position"]["from"]
    c.commit()
    c.close()
    assert int(mark["l"]) > seq and int(mark["n"]) > xid
    assert placed.db.one("SELECT pg_visible_in_snapshot(xid, %s) FROM outbox.event WHERE seq = %s",
                         (mark["snapshot"], seq)) is False


def test_position_adopt_from_a_number(placed):
    last = insert(placed.db, 10)
    done = placed("adopt", "--from-seq", str(last + 2), "--yes")
    assert done.returncode == 5 and f"the last is {last}" in done.stderr
    got = json.loads(placed("adopt", "--from-seq", str(last - 3), "--yes", "--json", check=True).stdout)["position"]
    assert "from" not in got and got["to"]["l"] == str(last) and got["seq"] == str(last - 4)


def test_position_set(placed):
    insert(placed.db, 5)
    assert placed("set", "--earliest").returncode == 5
    first = json.loads(placed("set", "--earliest", "--yes", "--json", check=True).stdout)["position"]
    assert "from" not in first and "to" not in first and first["seq"] == "0"
    now = json.loads(placed("set", "--now", "--yes", "--json", check=True).stdout)["position"]
    assert now["from"]["l"] == "5"
    given = json.dumps(first)
    assert json.loads(placed("set", given, "--yes", "--json", check=True).stdout)["position"] == first
    assert json.loads(placed("show", "--json", check=True).stdout)["position"] == first
    for bad in ("{}", "no json", '{"v": 99}', given.replace('"seq":"0"', '"seq":"x"').replace('"seq": "0"', '"seq": "x"')):
        assert placed("set", bad, "--yes").returncode == 2
    other = json.dumps(dict(first, system="1"))
    done = placed("set", other, "--yes")
    assert done.returncode == 5 and "of another database" in done.stderr
    assert json.loads(placed("show", "--json", check=True).stdout)["position"] == first


def test_position_of_another_database_does_not_match(placed):
    from confluent_kafka import Producer
    insert(placed.db, 2)
    good = json.loads(placed("adopt", "--yes", "--json", check=True).stdout)["position"]
    p = Producer({"bootstrap.servers": placed.kafka.bootstrap})
    for change, said in (({"system": "1"}, "another database"), ({"timeline": 7}, "timeline 7"),
                         ({"top": "999"}, "ahead of this database"),
                         ({"from": dict(good["from"], l="999")}, "ahead of this database"),
                         ({"lsn": str(2 ** 62)}, "ahead of this database"), ({"system": "\x1b[2J"}, "\\x1b[2J")):
        p.produce(placed.topic, json.dumps(dict(good, **change)), placed.name)
        assert p.flush(60) == 0
        done = placed("show")
        assert done.returncode == 3 and said in done.stdout and "adopt" in done.stderr and "\x1b" not in done.stdout
        assert json.loads(placed("show", "--json").stdout)["matches"] is False


def test_position_is_not_written_while_a_relay_holds_the_lock(placed):
    insert(placed.db, 2)
    c = placed.db.connect(application_name="'postrider-relay orders'")
    with c.cursor() as cur:
        cur.execute("SELECT pg_try_advisory_lock(1347375956, 1)")
    for args in (["adopt"], ["set", "--now"]):
        done = placed(*args, "--yes")
        assert done.returncode == 5 and "postrider-relay orders" in done.stderr
    assert placed.kafka.end_offsets(placed.topic) == {0: 0}
    assert placed("adopt", "--dry-run").returncode == 0  # looking is free
    c.close()
    wait_until(lambda: placed("adopt", "--yes").returncode == 0, 60, "the lock to go")


def test_position_write_fences_a_living_producer(placed):
    """A relay we cannot see, cut off from the database but not from Kafka, is inside a transaction: its
    records must never become visible after the operator moved the position."""
    from confluent_kafka import KafkaException, Producer
    topic = placed.kafka.create_topic("test." + placed.name)
    old = Producer({"bootstrap.servers": placed.kafka.bootstrap, "transactional.id": f"postrider.{placed.name}",
                    "log_level": 0})
    old.init_transactions(60)
    old.begin_transaction()
    old.produce(topic, "late")
    assert old.flush(60) == 0
    placed("adopt", "--yes", check=True)
    with pytest.raises(KafkaException):
        old.commit_transaction(60)
    assert json.loads(placed("show", "--json", check=True).stdout)["matches"]


def test_position_topic_missing(cli, db, kafka, outbox_name):
    done = cli("position", "show", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name)
    assert done.returncode == 78 and "does not exist" in done.stderr and "postrider init" in done.stderr


# ---------------------------------------------------------------- bench

def test_bench_needs_yes_and_writes_what_it_says(cli, db):
    front = ["bench", "--conninfo", db.conninfo, "--url", "http://127.0.0.1:1", "--events", "250", "--per-transaction",
             "100", "--payload", "200B", "--keys", "7"]
    done = cli(*front)
    assert done.returncode == 5 and db.one("SELECT count(*) FROM outbox.event") == 0
    got = json.loads(cli(*front, "--yes", "--json", check=True).stdout)
    assert (got["events"], got["transactions"], got["relay"]) == (250, 3, None) and got["commit_ms"]["p50"] > 0
    assert db.query("SELECT count(*), count(DISTINCT xid), count(DISTINCT aggregateid), max(octet_length(payload::text)) "
                    "<= 200 FROM outbox.event") == [(250, 3, 7, True)]


def test_bench_keeps_to_the_rate(cli, db):
    began = time.monotonic()
    cli("bench", "--conninfo", db.conninfo, "--url", "http://127.0.0.1:1", "--events", "20", "--rate", "20", "--yes",
        check=True)
    assert time.monotonic() - began > 0.9
