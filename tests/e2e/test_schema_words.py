"""tests/e2e/test_schema_words.py -- db/README.md names what the migrations of schemas outbox and inbox make: every
table, column, function and word of a state, each as `word`. And it names no table that is not there.

Story: a column was added to inbox.attempt, and who read the table found a number that no page explained.
"""
import os
import re

import pytest

import servers

COLUMNS = """SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'v', 'c') AND NOT c.relispartition AND a.attnum > 0
    AND NOT a.attisdropped ORDER BY 1, a.attnum"""
FUNCTIONS = "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = %s::regnamespace ORDER BY 1"
WORDS = """SELECT DISTINCT w[1] FROM pg_constraint, regexp_matches(pg_get_constraintdef(oid), '''([a-z_]+)''::text', 'g') AS w
    WHERE connamespace = %s::regnamespace AND contype = 'c' AND pg_get_constraintdef(oid) ~ 'ANY|=' ORDER BY 1"""


@pytest.fixture(scope="module")
def made(pg_server):
    db = pg_server.createdb(f"words{os.getpid()}")
    servers.Cli().run("init", "--conninfo", db.conninfo, check=True)
    yield db
    db.drop()


@pytest.fixture(scope="module")
def readme():
    """{schema: its part of the page}"""
    with open(os.path.join(servers.ROOT, "db", "README.md"), encoding="utf-8") as f:
        text = f.read()
    inbox = text.index("# Schema `inbox`")
    end = text.find("\n# ", inbox)
    return {"outbox": text[:inbox], "inbox": text[inbox:end if end > 0 else len(text)]}


@pytest.mark.parametrize("schema", ["outbox", "inbox"])
def test_everything_is_named(made, readme, schema):
    """A column stands in the line of the list of columns that begins with its table."""
    text, missing = readme[schema], []
    columns = dict(re.findall(r"^- `(\w+)`: (.*(?:\n  .*)*)", text, re.M))
    for table, column in made.query(COLUMNS, (schema,)):
        if f"`{column}`" not in columns.get(table, ""):
            missing.append(f"{table}.{column}")
    names = [n for n, in made.query(FUNCTIONS, (schema,))] + [w for w, in made.query(WORDS, (schema,)) if w]
    missing += [n for n in names if not re.search(rf"`(?:{schema}\.)?{n}`", text)]
    assert not missing, missing


@pytest.mark.parametrize("schema", ["outbox", "inbox"])
def test_nothing_is_named_that_is_gone(made, readme, schema):
    listed = {t: re.findall(r"`(\w+)`", line) for t, line in
              re.findall(r"^- `(\w+)`: (.*(?:\n  .*)*)", readme[schema], re.M)}
    there = {}
    for table, column in made.query(COLUMNS, (schema,)):
        there.setdefault(table, set()).add(column)
    words = {w for w, in made.query(WORDS, (schema,))} | {f for f, in made.query(FUNCTIONS, (schema,))} | set(there)
    gone = [f"{t}.{c}" for t, cs in listed.items() for c in cs if c not in there.get(t, set()) | words and c == c.lower()]
    assert not gone, gone
