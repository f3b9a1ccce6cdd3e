"""tests/e2e/test_cli_width.py -- every listing of the CLI on terminals of 60 to 200 columns, and in a pipe.

Story: `postrider dlq list --all` on 80 columns was nine columns of eight characters with dots at their ends; what it
failed of, the only thing one wants to know, read "duplica…".
"""
import re
import unicodedata

import pytest

import servers
from outbox import unique
from test_cli import Terminal
from test_cli import park as park_relay
from test_cli_dlq import TAKEN, bury
from test_cli_parked_group import behind, park
from test_cli_replay import stand

TOPIC = "outbox.event.reservation"
REASON = TAKEN.format("0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e")
LISTINGS = {
    "dlq causes": "dlq list", "dlq": "dlq list --all", "dlq one": "dlq list --all -g other", "parked": "parked list",
    "parked group": "parked list -g seat", "replays": "replay list", "replay": "replay show 1", "consumers": "show consumers",
}


@pytest.fixture(scope="module")
def filled(pg_server):
    """A database in which every listing has something to say, with long and with wide words."""
    db = pg_server.createdb(unique("width"))
    servers.Cli().run("init", "--conninfo", db.conninfo, check=True)
    stand(db, TOPIC, [10_000_000_123, 42, 9_876_543])
    for i in range(12):
        bury(db, 1, topic=TOPIC, key=f"0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d{i:02}", type="ReservationConfirmed", reason=REASON)
    bury(db, 3, topic=TOPIC, key="\u5ba2\u6237" * 20, cls="http", code="503", reason="x" * 150)
    bury(db, 1, group="other", topic="orders", key="1", reason="no")
    for key in ("0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e", "another"):
        park(db, 100, key, topic=TOPIC, reason=REASON, partition=1 if key == "another" else 0)
        behind(db, 101, key, topic=TOPIC, partition=1 if key == "another" else 0)
    park_relay(db, TOPIC, "0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e", 2)
    park_relay(db, TOPIC + ".of-last-year", "k", 1)
    for note in ("", "because the price of the ticket was computed without tax before release 4.2"):
        db.query("SELECT inbox.replay_new('seat', ARRAY[%s, %s], ARRAY[0, 1], ARRAY[9000000000, 10], ARRAY[10000000000, 42], %s)",
                 (TOPIC, TOPIC, note))
    yield db
    db.drop()


def cells(line):
    return sum(2 if unicodedata.east_asian_width(ch) in "WF" else 1 for ch in line)


def screen(db, verb, columns):
    t = Terminal(*LISTINGS[verb].split(), "--conninfo", db.conninfo, columns=columns, env={"NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
    assert t.end() in (0,), t.text
    return t.text


def words(text):
    """What is said, whatever the line it stands on; broken words in one."""
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("verb", LISTINGS)
def test_on_a_terminal(filled, verb, columns):
    text = screen(filled, verb, columns)
    for line in text.splitlines():
        assert cells(line) <= columns, text
        assert line == line.rstrip(), text
    if "dlq" in verb or verb == "parked group":
        # The reason is whole at any width.
        assert words(REASON if verb != "dlq one" else "no") in words(text) or "<id>" in text or "=(…)" in text, text
    if verb == "dlq":
        assert len(re.findall(r"^(?: *|entry )\d+ ", text, re.M)) == 16, text
        # What tells one from another is to be seen.
        assert "0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d07" in text, text
    if verb == "replays":
        assert "because the price" in text and re.search(r"^(job| ) *1 .*\b1,000,000,032 ", text, re.M), text
    if verb == "replay":
        assert "10000000000" in text and "9000000000" in text, text
    if verb == "consumers":
        assert "10000000123" in text and "9876543" in text, text


@pytest.mark.parametrize("verb", LISTINGS)
def test_in_a_pipe(filled, verb):
    """Each row on one line and whole, whatever COLUMNS says: for grep and awk."""
    done = servers.Cli().run(*LISTINGS[verb].split(), "--conninfo", filled.conninfo, env={"COLUMNS": "60"}, check=True)
    assert "…" not in done.stdout.replace("'…'", "").replace("=(…)", "").replace('"…"', ""), done.stdout
    if verb == "dlq":
        rows = done.stdout.splitlines()
        assert len(rows) == 17 and sum(REASON in r for r in rows) == 12 and all(TOPIC in r or "orders" in r for r in rows[1:])


def test_what_is_the_same_is_told_once_where_there_is_no_room(filled):
    text = Terminal("dlq", "list", "--all", "--class", "sqlstate", "-g", "seat", "--conninfo", filled.conninfo, columns=80,
                    env={"NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
    assert text.end() == 0
    first, second, third, *_ = text.text.splitlines()
    assert first.startswith(f"group seat  topic {TOPIC}  type ReservationConfirmed")
    assert second == "failure sqlstate:23505  state dead", text.text
    assert third.split() == ["ENTRY", "KEY", "BURIED", "(UTC)"], text.text
    assert "0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d07" in text.text
    # With room for all of it, nothing moves.
    assert screen(filled, "dlq one", 120).splitlines()[0].split()[:3] == ["ENTRY", "GROUP", "TOPIC"]
