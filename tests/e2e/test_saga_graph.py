"""tests/e2e/test_saga_graph.py -- `postrider saga graph`: a definition by its file or by its name in the engine's database,
as a picture that other programs can read; and what a user is told when it is not there or not right.

The pictures themselves are compared with tests/golden by tests/unit/saga_graph_test.c.
"""
import xml.etree.ElementTree as ET

import pytest

import servers

PAY = f"{servers.ROOT}/etc/sagas/pay.cfg"
SVG = "{http://www.w3.org/2000/svg}"
SMALL = """name = "small"; version = %d;
steps = ( { name = "%s"; kind = "retriable"; do: { command = "C"; topic = "t"; }; } );
"""


def golden(name, fmt):
    with open(f"{servers.ROOT}/tests/golden/saga_graph/{name}.{fmt}", encoding="utf-8") as f:
        return f.read()


def register(db, version, step):
    db.query("INSERT INTO saga.definition (name, version, style, text, hash) VALUES ('small', %s, 'orchestration', %s, 'x')",
             (version, SMALL % (version, step)))


@pytest.mark.parametrize("fmt", ["mermaid", "dot", "svg"])
def test_a_file_is_drawn(cli, fmt):
    r = cli("saga", "graph", PAY, "--format", fmt)
    assert (r.returncode, r.stderr) == (0, "")
    assert r.stdout == golden("pay", fmt)


def test_mermaid_when_nothing_is_said(cli):
    assert cli("saga", "graph", PAY).stdout == golden("pay", "mermaid")


def test_svg_is_xml_that_shows_every_step_and_every_undo(cli):
    root = ET.fromstring(cli("saga", "graph", PAY, "--format", "svg").stdout)
    assert root.tag == SVG + "svg"
    names = [t.text for t in root.iter(SVG + "text") if t.get("class") == "name"]
    assert sorted(names) == sorted(["PAYMENT", "RESERVATION", "QUEUE"] * 2 + ["CONCERT"])


def test_a_wrong_file_is_refused_with_line_and_key(cli):
    r = cli("saga", "graph", f"{servers.ROOT}/tests/golden/saga_bad/send_root.cfg")
    assert r.returncode == 78 and r.stdout == ""
    assert 'send_root.cfg:5: steps[0].do.send: "dta.amount": here a path begins with' in r.stderr
    assert 'did you mean "data.amount"?' in r.stderr


@pytest.mark.parametrize("file", ["./none.cfg", "no/where.cfg", "/tmp", "none/"])
def test_a_file_that_is_none(cli, file):
    r = cli("saga", "graph", file)
    assert r.returncode == 78 and file in r.stderr


def test_an_unknown_format(cli):
    r = cli("saga", "graph", PAY, "--format", "png")
    assert r.returncode == 2 and "mermaid dot svg" in r.stderr


def test_by_name_the_newest_or_the_one_that_is_asked_for(cli, db):
    register(db, 1, "FIRST")
    register(db, 12, "TWELFTH")
    register(db, 2, "SECOND")
    newest = cli("saga", "graph", "small", "--conninfo", db.conninfo)
    assert newest.returncode == 0, newest.stderr
    assert "version 12" in newest.stdout and "TWELFTH" in newest.stdout
    older = cli("saga", "graph", "small:2", "--conninfo", db.conninfo)
    assert "version 2:" in older.stdout and "SECOND" in older.stdout


def test_a_name_that_nobody_registered(cli, db):
    for name in "small", "small:3":
        r = cli("saga", "graph", name, "--conninfo", db.conninfo)
        assert r.returncode == 4 and f'no definition "{name}" is registered' in r.stderr


def test_a_database_without_our_schemas(cli, empty_db):
    r = cli("saga", "graph", "small", "--conninfo", empty_db.conninfo)
    assert r.returncode != 0 and r.stdout == ""
    assert "postrider init" in r.stderr
