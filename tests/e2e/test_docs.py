"""tests/e2e/test_docs.py -- what the documentation says can be typed: the tutorial and the how-tos are run from top to bottom on real
servers; of all other pages each command of ours exists with its options, each SQL parses, each configuration is taken by
--check, each link and each test that is named is there. What cannot be run is on a list, which does not grow unseen."""
import collections
import functools
import os
import re
import shutil
import subprocess
import sys

import pages
import pytest
import servers
import shell
import tls
from wait import wait_until

pytestmark = pytest.mark.timeout(400)

# Pages that are typed from top to bottom (how, below); on those that are only checked, commands have names, servers or troubles in them
# that a reader has and a test has not. A page of neither kind is an error.
TYPED = {"docs/tutorial.md", "README.md", "docs/how-to/run-a-saga.md", "docs/how-to/data-platform.md"}
CHECKED = ("docs/runbooks/", "docs/reference/", "docs/how-to/install.md")
# Fences marked `sh norun: why`, by page. Adding one is a decision: a reader's command that nobody has typed.
NORUN = {"README.md": 3, "docs/how-to/install.md": 4, "docs/how-to/run-a-saga.md": 1, "docs/tutorial.md": 1}
SHELL = {"sh", "console"}
WORDS = {"", "sh", "console", "sql", "cfg", "json", "c", "text", "mermaid"}


def everything(word):
    return [f for p in pages.all_pages() for f in pages.fences(p) if f.word in word]


# ---------------------------------------------------------------- the judge can fail

PAGE = """# A page
## Some `code` (here)
[a](#some-code-here) [b](#nowhere)
```sh
echo one
cat <<END
two "
END
false   # exit status 1
```
```text
two ...
```
"""


def test_the_parser():
    first, second = pages.fences("x.md", PAGE)
    assert pages.commands(first.text) == ["echo one", 'cat <<END\ntwo "\nEND', "false   # exit status 1"] and second.word == "text"
    assert pages.slug("Some `code` (here)") == "some-code-here"
    assert pages.missing_line("a  b\n... 2 ...\n", "x\na b\nx 2 y\n") is None
    assert pages.missing_line("a b\n", "a b c\n") == "a b" and pages.missing_line("b\na\n", "a\nb\n") == "a"
    assert "no --nothing" in pages.wrong_command("postrider status --nothing") and "there is no" in pages.wrong_command("postrider nothing")
    assert "no --nothing" in pages.wrong_command("postrider-relay -c x --nothing # y") and pages.wrong_command("postrider dlq list -c x | head") is None
    assert pages.not_shell("if true; then") and not pages.not_shell("a <<X\n(\nX")
    assert pages.broken_link("README.md", "docs/nothing.md") and pages.broken_link("README.md", "#nowhere")
    assert pages.broken_link("README.md", "LICENSE") is None


def test_the_typist_refuses(tmp_path):
    """A command that fails, one that prints something else, one that succeeds where the page promises that it does not."""
    typist = pages.Typist(dict(os.environ), str(tmp_path), patience=0)
    try:
        assert typist.command("x=1\nfalse  # exit status 1") == "" and typist.command('echo "a $x b"', "a ... b\n") == "a 1 b\n"
        for command, expected, said in (("false", "", "exit status 1, the page says 0"), ("echo b", "a\n", "no line 'a'"),
                                        ("true # exit status 3", "", "exit status 0, the page says 3")):
            with pytest.raises(AssertionError, match=said):
                typist.command(command, expected)
    finally:
        typist.end()


# ---------------------------------------------------------------- pages that are run

def ports():
    """Programs of a page listen where nobody else does."""
    return [(f"127.0.0.1:{p}", f"127.0.0.1:{servers.free_port()}") for p in range(9470, 9480)]


@pytest.fixture(scope="module")
def own():
    """Servers of this file alone: what the pages make has everybody's names."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    pg, kafka = servers.Postgres().start(), servers.Kafka({"broker.session.timeout.ms": "18000"}, quick=True).start().warm()
    yield pg, kafka
    kafka.kill()
    pg.stop("immediate")


@pytest.fixture
def typist(own, tmp_path):
    """typist(replace) is a shell like that of `make shell`, in an empty directory; Kafka is where a page says that it is. What a page made
    is gone before the next one, which may use the same names."""
    pg, kafka = own
    made = []

    def begin(replace=()):
        work = tmp_path / "work"
        work.mkdir()
        made.append(pages.Typist(shell.surroundings(pg, kafka.bootstrap, str(tmp_path)), str(work),
                                 [*replace, ("127.0.0.1:9092", kafka.bootstrap), *ports()]))
        return made[-1]
    yield begin
    for t in made:
        t.end()
    for (name,) in pg.query("SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"):
        pg.dropdb(name)
    for name in kafka.topics():
        kafka.delete_topic(name)


@pytest.mark.slow
def test_tutorial(tmp_path):
    """In the shell that `make shell` opens."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    env = dict(os.environ, SHELL="/bin/bash", POSTRIDER_VARIANT=servers.VARIANT)
    t = pages.Typist(env, str(tmp_path), ports(), argv=(sys.executable, "-B", shell.__file__))
    try:
        assert t.page(pages.fences("docs/tutorial.md")) > 60
    finally:
        t.end()


def test_readme(typist):
    t = typist([("host=127.0.0.1", "")])
    t.command("createdb orders")
    assert t.page(pages.fences("README.md")) == 6
    t.command("postrider tail -c relay.cfg", "... outbox.event.order ... key 42  OrderPaid ...\n")


def test_run_a_saga(typist):
    """As it stands there; then a saga by its SQL. Nobody takes part, so it is on its way."""
    t = typist([(f'{key} = "saga";', f'{key} = "saga"; http: {{ listen = "127.0.0.1:{servers.free_port()}"; }};') for key in ("group", "name")])
    t.command("mkdir sagas")
    assert t.page(pages.fences("docs/how-to/run-a-saga.md")) == 8
    for f in pages.fences("docs/how-to/run-a-saga.md"):
        if f.word == "sql":
            t.command("psql -q saga <<'END'\n" + f.text + "END")
    t.command("postrider saga list -c saga.cfg", "... pay ... RUNNING ... PAYMENT ...\n")


@pytest.mark.slow
def test_data_platform(typist, tmp_path):
    """A sink at work, its manifest, its sums, what it learned."""
    lake = tmp_path / "lake"
    t = typist([('directory = "/var/lib/postrider/lake"', f'directory = "{lake}"; max_age = "200ms"'), ("/var/lib/postrider/lake", str(lake)),
                ("host=127.0.0.1 dbname=app user=postrider", "dbname=app"),
                ('group = "lake";', f'group = "lake"; http: {{ listen = "127.0.0.1:{servers.free_port()}"; }};')])
    t.write("relay.cfg", 'name = "shop"; source: { conninfo = "dbname=shop"; }; kafka: { brokers = "127.0.0.1:9092"; };'
            'http: { listen = "127.0.0.1:9470"; };')
    for command in ("createdb app", "createdb shop", "postrider init -c relay.cfg", "postrider-relay -c relay.cfg",
                    "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --create --topic outbox.event.order",
                    "postrider publish -c relay.cfg -a order -k 1 -T OrderPaid --data '{\"email\": \"a@example.org\"}'"):
        t.command(command)
    some = pages.fences("docs/how-to/data-platform.md")
    first = next(i for i, f in enumerate(some) if "jq " in f.text)
    assert t.page(some[:first]) == 3
    topic = lake / "_manifest" / "outbox.event.order"
    manifest = wait_until(lambda: [*topic.glob("dt=*/hour=*.json")], 40, "a manifest")[0]
    day, hour = manifest.parent.name[3:], manifest.stem[5:]
    t.replace += [("2026-11-22T03:00Z", f"{day}T{hour}:00Z"), ("2026-11-22", day), ("hour=03", f"hour={hour}"), (" -c table.cfg", "")]
    assert t.page(some[first:]) == 9


# ---------------------------------------------------------------- SQL

# What stands around the SQL of a page: tables that it calls its own.
AROUND = {
    "README.md": "CREATE TABLE orders (order_id int, state text); CREATE SCHEMA seat; CREATE TABLE seat.seat (seat_id bigint, held_by text);"
                 "CREATE TABLE account (user_id text, balance int);",
    "docs/how-to/take-part-in-a-saga.md":
        "CREATE SCHEMA pay; CREATE TABLE pay.account (user_id text, balance bigint); CREATE SCHEMA reservation;"
        "CREATE TABLE reservation.reservation (id text, state text); CREATE TABLE concert (id int, status text, version bigint);"
        "CREATE TABLE orders (order_id int);",
    "docs/how-to/write-a-handler.md": "CREATE SCHEMA seat; CREATE TABLE seat.seat (seat_id bigint, reservation_id uuid);"
                                      "CREATE TABLE seat.refusal (reservation_id uuid, seat_id bigint, reason text);",
    "docs/how-to/write-a-service.md": "CREATE SCHEMA orders; CREATE TABLE orders.orders (order_id serial, user_id uuid, sku text, quantity int);",
}
PIECES = {"docs/how-to/timers-and-push.md"}  # of a function that has these variables
FRAGMENT = "CREATE FUNCTION fragment(message inbox.message, m inbox.message, e jsonb, id uuid) RETURNS void LANGUAGE plpgsql AS $fragment$ BEGIN\n%s\nRETURN; END $fragment$;"


def run_sql(db, page, text):
    """The fence in a transaction that is rolled back; of a piece of PL/pgSQL, or with a reader's variables in it, the syntax and the
    functions that it calls."""
    for name in set(re.findall(r"\b(?:outbox|inbox|saga)\.[a-z_]+(?=\()", text)):
        assert db.one("SELECT count(*) FROM pg_proc WHERE pronamespace::regnamespace || '.' || proname = %s", (name,)), f"no function {name}"
    text = re.sub(r"(?m)^(BEGIN|COMMIT);.*$", "", text)
    piece = page in PIECES or re.search(r"(?m)^(IF|PERFORM)\b", text) or re.search(r"(?<!:):[a-z_]+\b|\bINTO e;", text)
    if piece:
        text = FRAGMENT % re.sub(r"(?<!:):([a-z_]+)\b", "NULL", re.sub(r"(?m)^\s*SELECT (?=saga\.|outbox\.)", "PERFORM ", text))
    db.psql("BEGIN;" + AROUND.get(page, "") + text + "\n;ROLLBACK;")


def test_sql(db):
    db.psql("CREATE SCHEMA IF NOT EXISTS service; CREATE FUNCTION service.rfc3339(timestamptz) RETURNS text LANGUAGE sql AS 'SELECT $1::text'")
    for fence in everything({"sql"}):
        try:
            run_sql(db, fence.page, fence.text)
        except RuntimeError as e:
            raise AssertionError(f"{fence.page}:{fence.line}: {e}") from None
    for wrong in ("SELEC 1;", "SELECT outbox.publishh('a');", "IF NOT FOUND; END IF;"):
        with pytest.raises((RuntimeError, AssertionError)):
            run_sql(db, "README.md", wrong)


# ---------------------------------------------------------------- configurations

BASES = {
    "whole relay": ("postrider-relay", "", ""),
    "whole consumer": ("postrider-consumer", "", ""),
    "relay": ("postrider-relay", "", 'name = "x"; source: { conninfo = "dbname=x"; }; kafka: { brokers = "127.0.0.1:1"; };'),
    "consumer": ("postrider-consumer", "", 'group = "x"; database: { conninfo = "dbname=x"; }; kafka: { brokers = "127.0.0.1:1"; topics = ( "x" ); };'
                                           'handler: { kind = "sql"; function = "x.x"; };'),
    "push": ("postrider-consumer", "", 'group = "x"; database: { conninfo = "dbname=x"; }; kafka: { brokers = "127.0.0.1:1"; topics = ( "x" ); };'
                                       'handler: { kind = "push"; };'),
    "inside a sink": ("postrider-consumer", 'handler: { kind = "sink"; files: { directory = "/x"; }; %s };',
                      'group = "x"; database: { conninfo = "dbname=x"; }; kafka: { brokers = "127.0.0.1:1"; topics = ( "x" ); };'),
}


def members(text):
    """{top-level key: its text} of a libconfig text."""
    text, out, depth, start = re.sub(r"(?m)#.*$", "", text), {}, 0, 0
    for i, c in enumerate(text):
        depth += (c in "{(") - (c in "})")
        if c == ";" and not depth:
            one, start = text[start:i + 1].strip(), i + 1
            out[re.match(r"\w+", one)[0]] = one
    return out


# What a configuration names and a reader has: made of these, where it stands.
SECRET = "whsec_" + "A" * 43 + "="


@functools.lru_cache(None)
def certificates():
    authority = tls.Authority()
    return authority.crt, *authority.issue("any")


def furnished(text, here):
    """The text with its absolute paths below `here`, and something of their kind there."""
    text = text.replace('"sagas/', f'"{here}/sagas/')
    for path in set(re.findall(r"/(?:usr/lib|etc/postrider|run/credentials)/[\w./-]+", text)):
        copy = here / path[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".so"):
            flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libpq"], capture_output=True, text=True, check=True).stdout.split()
            subprocess.run(["cc", "-shared", "-fPIC", f"-I{servers.ROOT}/consumers", "-o", copy,
                            os.path.join(servers.ROOT, "docs/examples/handlers/seat.c"), *flags], check=True)
        elif path.endswith(".json"):
            shutil.copy(os.path.join(servers.ROOT, "etc", copy.name), copy)
        elif path.endswith((".crt", ".key")):
            ca, crt, key = certificates()
            shutil.copy(key if path.endswith(".key") else ca if "ca" in copy.stem else crt, copy)
        else:
            copy.write_text("#!/bin/sh\n")
            copy.chmod(0o700)
        text = text.replace(path, str(copy))
    return text


def refusals(text, here):
    """{kind of program: why it refuses the text}; {}: one of them takes it."""
    said, path = {}, here / "x.cfg"
    for kind, (program, around, base) in BASES.items():
        merged = members(base) | members(around % text if around else text)
        path.write_text("\n".join(merged.values()) + "\n")
        path.chmod(0o600)
        done = servers.Cli(program).run("-c", path, "--check", env=dict.fromkeys(re.findall(r"env:(\w+)", text), SECRET))
        if done.returncode == 0:
            return {}
        said[kind] = done.stderr.strip()
    return said


def test_configurations(tmp_path):
    """Each cfg fence, whole or a part, is taken by --check of a program of ours. Unknown keys are errors there."""
    for fence in everything({"cfg"}):
        if "steps = (" in fence.text:
            (tmp_path / "sagas").mkdir(exist_ok=True)
            (tmp_path / "sagas" / "one.cfg").write_text(fence.text)
            servers.Cli().run("saga", "simulate", tmp_path / "sagas" / "one.cfg", check=True)
        else:
            assert refusals(furnished(fence.text, tmp_path), tmp_path) == {}, f"{fence.page}:{fence.line}"
    for wrong in ('namee = "x";', 'limits: { nothing = "1"; };', 'handler: { kind = "sqll"; };'):
        assert set(refusals(wrong, tmp_path)) == set(BASES)


# ---------------------------------------------------------------- all pages

def test_fences():
    """A fence is one of the kinds that something here looks at, a command is typed or checked, and what is neither is counted."""
    assert {f.word for p in pages.all_pages() for f in pages.fences(p)} <= WORDS
    shells = everything(SHELL)
    assert all(f.norun for f in shells if f.norun is not None), "norun without a reason"
    left = collections.Counter(f.page for f in shells if f.norun is not None)
    assert left == NORUN, "a command that nobody types: mark it only for a reason, and count it"
    for fence in shells:
        assert fence.page in TYPED or fence.page.startswith(CHECKED), f"{fence.page}: neither typed nor checked"
    if pages.not_shell("\n".join(f.text for f in shells)):
        assert [(f.page, f.line, pages.not_shell(f.text)) for f in shells if pages.not_shell(f.text)] == []


def test_commands_exist():
    """Each command of ours, in fences of any kind and in the text between them, with its options."""
    all_of_them = [(p, line) for p in pages.all_pages() for line in pages.our_commands(pages.read(p))]
    assert [(p, w) for p, w in ((p, pages.wrong_command(line)) for p, line in all_of_them) if w] == [] and len(all_of_them) > 300


def test_targets_of_make_exist():
    with open(os.path.join(servers.ROOT, "Makefile"), encoding="utf-8") as f:
        known = set(re.findall(r"(?m)^([a-z0-9-]+):", f.read()))
    for page in pages.all_pages():
        typed = re.findall(r"`[^`\n]*`", pages.read(page)) + [f.text for f in pages.fences(page) if f.word in SHELL]
        for line in re.findall(r"(?m)(?:`|^)((?:\w+=\S+ )*make(?: [^`\n#]*)?)", "\n".join(typed)):
            assert {w for w in line.split() if re.fullmatch(r"[a-z][a-z0-9-]*", w)} - {"make"} <= known, f"{page}: {line}"


def test_links_lead_somewhere():
    links = [(p, t) for p in pages.all_pages() for t in re.findall(r"\]\(<?([^)\s>]+)>?\)", re.sub(r"`[^`\n]*`", "", pages.prose(p)))]
    assert [w for w in (pages.broken_link(p, t) for p, t in links) if w] == [] and len(links) > 100


def test_tests_that_are_named_exist():
    files, names = pages.tests()
    for page in pages.all_pages():
        for name in re.findall(r"(?<![\w/.*-])(?:[\w./]*/)?(test_\w+\.py|test_\w+\b)(?![*.]\w|\*)", pages.read(page)):
            assert name in files or name in names or f"{name}.py" in files, f"{page}: {name}"


def test_every_page_is_in_the_index():
    index = pages.read("docs/README.md")
    for page in pages.all_pages():
        if re.match(r"docs/(?!runbooks/|decisions/|README)", page):
            assert f"]({page[len('docs/'):]})" in index, f"docs/README.md does not name {page}"
