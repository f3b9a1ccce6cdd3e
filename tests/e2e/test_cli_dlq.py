"""tests/e2e/test_cli_dlq.py -- `postrider dlq`: what the operator sees of dead letters, and does with them.

The tables are filled by the functions that lanes call. Where a lane must act, `lane` plays it:
it takes what is due of inbox.parked and ends it as the real one does. That the real one does
so is tested with the consumer.
"""
import contextlib
import json
import os
import re
import struct
import subprocess
import threading
import time
import uuid

import psycopg2
import pytest

import servers
from inbox import ROW, inbox  # noqa: F401
from test_cli import Terminal, path
from wait import wait_until

CLAIM = "SELECT count(*) FROM inbox.claim(%s, ARRAY[%s], ARRAY[0], 2)"
BURY = """SELECT inbox.bury(%(group)s, %(topic)s, 0, %(offset)s, 7, %(key)s, convert_to(%(key)s, 'UTF8'), %(id)s, %(id)s::uuid,
    %(type)s, %(headers)s::jsonb, %(payload)s, '2026-01-31T09:00:00Z', 99, %(cls)s, %(code)s, %(reason)s, 5,
    %(parked)s, %(dead_letter)s)"""
TAKEN = 'duplicate key value violates unique constraint "seat_pkey", Key (id)=({}) already exists.'


def claim(db, group="seat", topic="orders"):
    db.query(CLAIM, (group, topic))


def bury(db, n=1, **kw):
    """n dead letters of a group; their entries."""
    args = {"group": "seat", "topic": "orders", "key": "42", "type": "SeatHeld", "cls": "sqlstate", "code": "23505",
            "reason": TAKEN.format(1), "payload": b'{"n": 1}', "parked": None, "dead_letter": None, **kw}
    args["headers"] = json.dumps(args.get("headers") or {"id": "x", "type": args["type"]})
    if not db.one('SELECT count(*) FROM inbox.consumer WHERE "group" = %s', (args["group"],)):
        claim(db, args["group"], args["topic"])
    made = []
    with contextlib.closing(db.connect()) as c, c.cursor() as cur:
        for i in range(n):
            cur.execute(BURY, {"offset": 100 + i, "id": str(uuid.uuid4()), **args})
            made.append(cur.fetchone()[0])
    return made


def end_well(cur, row):
    cur.execute("SELECT inbox.unpark(%s), inbox.retried(%s)", (row["entry"], row["dead_letter"]))


def end_badly(cur, row):
    cur.execute(BURY, {**row, "offset": row["message_offset"], "headers": json.dumps(row["headers"]), "cls": "http",
                       "code": "503", "reason": "still not", "parked": row["entry"]})


@contextlib.contextmanager
def lane(db, act=end_well, group="seat", topic="orders"):
    """Takes what is due, as a lane of the group does. Gives the list of what it took: (time, dead letter)."""
    stop, failed, took = threading.Event(), [], []

    def run():
        c = psycopg2.connect(db.conninfo)
        try:
            with c.cursor() as cur:
                while not stop.wait(0.01):
                    cur.execute("SELECT * FROM inbox.parked_due(%s, ARRAY[%s], ARRAY[0], ARRAY[0], ARRAY[1], 100)",
                                (group, topic))
                    names = [d.name for d in cur.description]
                    for values in cur.fetchall():
                        row = dict(zip(names, values))
                        act(cur, row)
                        took.append((time.monotonic(), row["dead_letter"]))
                    c.commit()
        except Exception as e:  # shown by the test
            failed.append(e)
        finally:
            c.close()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join(10)
    assert not failed, failed


@pytest.fixture
def dlq(cli, db):
    """dlq("list", "--all") on the test's database."""
    def run(verb, *args, **kw):
        return cli("dlq", verb, *args, "--conninfo", db.conninfo, **kw)
    return run


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def states(db):
    return dict(db.query("SELECT entry, state FROM inbox.dead_letter ORDER BY entry"))


# ---------------------------------------------------------------- list

def test_empty(dlq):
    done = dlq("list", check=True)
    assert (done.stdout, done.stderr) == ("", "no dead letters\n")
    assert "no dead letters like that" in dlq("list", "-g", "seat", "--all", check=True).stderr
    assert dlq("list", "--json", check=True).stdout == ""


def test_list_groups_by_cause(db, dlq):
    """Three seats taken twice are one cause, whatever the seat; another constraint, code or group is another one."""
    a = bury(db, 1, reason=TAKEN.format(1)) + bury(db, 1, reason=TAKEN.format(981)) + bury(db, 1, reason=TAKEN.format("x y"))
    b = bury(db, 2, reason=TAKEN.format(1).replace("seat_pkey", "hold_pkey"))
    bury(db, 1, cls="http", code="503", reason="HTTP 503 from http://10.0.0.1:8080/x after 312 ms")
    bury(db, 1, cls="http", code="503", reason="HTTP 503 from http://10.0.0.2:8080/x after 1.5 ms")
    bury(db, 1, group="mail", topic="mails")
    got = lines(dlq("list", "--json", check=True))
    assert [(x["group"], x["class"], x["code"], x["count"]) for x in got] == [
        ("seat", "sqlstate", "23505", 3), ("seat", "sqlstate", "23505", 2), ("seat", "http", "503", 2),
        ("mail", "sqlstate", "23505", 1)]
    first = got[0]
    assert first["reason"] == 'duplicate key value violates unique constraint "seat_pkey", Key (id)=(…) already exists.'
    assert (first["oldest_entry"], first["example_entry"]) == (str(a[0]), str(a[2]))
    assert first["example_reason"] == TAKEN.format("x y") and first["topics"] == ["orders"]
    assert first["oldest"] < first["newest"] and re.fullmatch(r"[0-9a-f]{8}", first["cause"])
    assert first["cause"] == got[3]["cause"] and len({x["cause"] for x in got}) == 3
    text = dlq("list", check=True)
    assert text.stdout.split("\n")[0].split() == ["CAUSE", "COUNT", "GROUP", "FAILURE", "OLDEST", "NEWEST", "EXAMPLE", "REASON"]
    assert "sqlstate:23505" in text.stdout and "8 dead letters" in text.stderr
    of_b = lines(dlq("list", "--all", "--json", "--cause", got[1]["cause"], check=True))
    assert [x["entry"] for x in of_b] == b


SHAPES = [
    ("no seat 42 in row 7", "no seat <n> in row <n>"),
    ("order 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e is closed", "order <id> is closed"),
    ('invalid input syntax for type integer: "abc"', 'invalid input syntax for type integer: "…"'),
    ('null value in column "email" of relation "customer"', 'null value in column "email" of relation "customer"'),
    ("hash deadbeef01 differs", "hash <hex> differs"),
    ("can't find 'Jim O''Neil'", "can't find '…''…'"),
    ("at 2026-01-31T09:00:00.123Z, 10.0.0.1:9092", "at <n>Z, <n>"),
    ("", ""),
    ("x" * 299 + "é" + "y" * 50, "x" * 299 + "é"),
    ("\x1b[31m\u202e", "\x1b[<n>m\u202e"),
]


def test_what_is_left_of_a_reason(db, dlq):
    for i, (reason, _) in enumerate(SHAPES):
        bury(db, 1, reason=reason, code=str(i))
    got = {int(x["code"]): x["reason"] or "" for x in lines(dlq("list", "--json", check=True))}
    assert got == {i: shape for i, (_, shape) in enumerate(SHAPES)}
    assert not set("\x1b\u202e") & set(dlq("list", check=True).stdout)


def test_list_filters(db, dlq):
    a, = bury(db, 1)
    b, = bury(db, 1, type="SeatSold", topic="sales", key=None)
    c, = bury(db, 1, cls="http", code="503", group="mail")
    db.query("UPDATE inbox.dead_letter SET buried_at = '2026-02-01T00:00:00Z' WHERE entry = %s", (a,))

    def entries(*args):
        return [x["entry"] for x in lines(dlq("list", "--all", "--json", *args, check=True))]
    assert entries() == [a, b, c]
    assert entries("-g", "mail") == [c]
    assert entries("-t", "sales") == [b]
    assert entries("-T", "SeatHeld") == [a, c]
    assert entries("--class", "sqlstate") == [a, b]
    assert entries("--code", "23505") == [a, b] and entries("--code", "23*") == [a, b] and entries("--code", "5*") == [c]
    assert entries("--until", "2026-02-01T00:00:01Z") == [a] and entries("--since", "-1h") == [b, c]
    assert entries("--since", "2026-02-01T00:00:00Z", "--until", "-1h") == [a]
    few = dlq("list", "--all", "--json", "--limit", "2", check=True)
    assert len(lines(few)) == 2 and "there are more" in few.stderr
    one = lines(dlq("list", "--all", "--json", "-g", "mail", check=True))[0]
    assert {k: one[k] for k in ("topic", "partition", "offset", "key", "type", "attempts", "state", "note")} == {
        "topic": "orders", "partition": 0, "offset": 100, "key": "42", "type": "SeatHeld", "attempts": 5, "state": "dead",
        "note": None}
    db.query("SELECT inbox.dlq_drop(ARRAY[%s::bigint], 'why')", (a,))
    assert entries() == [b, c] and entries("--state", "dropped") == [a] and entries("--state", "any") == [a, b, c]
    assert str(b) in dlq("list", "--all", check=True).stdout


def test_more_than_a_page(db, dlq):
    bury(db, 1)
    db.query("INSERT INTO inbox.dead_letter (\"group\", topic, partition, message_offset, lane_hash, key, class, code, reason) "
             "SELECT 'seat', 'orders', 0, n, 1, 'k', 'timeout', '', 'no answer within ' || n || ' ms' "
             "FROM generate_series(1, 4321) AS n")
    got = lines(dlq("list", "--json", check=True))
    assert [(x["class"], x["count"]) for x in got] == [("timeout", 4321), ("sqlstate", 1)]
    assert got[0]["code"] is None or got[0]["code"] == ""
    assert len(lines(dlq("list", "--all", "--json", "--limit", "5000", "--cause", got[0]["cause"], check=True))) == 4321


BAD = [
    (["list", "--state", "gone"], "one of: dead retrying"),
    (["list", "--since", "yesterday"], "is not a time"),
    (["list", "--since", "+10m"], "is not a time"),
    (["show"], "operand is missing"),
    (["show", "x"], "not the number of a dead letter"),
    (["show", "-1"], "unknown option"),
    (["show", "99999999999999999999"], "not the number"),
    (["edit", "0"], "not the number"),
    (["retry"], "which dead letters"),
    (["retry", "1", "--all"], "not both"),
    (["retry", "1", "-g", "seat"], "not both"),
    (["retry", "1", "1"], "named twice"),
    (["retry", "1", "--rate", "0"], "not between"),
    (["retry", "1", "--progress", "xml"], "one of: json"),
    (["retry", "--canary", "--wait", "0s"], "must not be 0s"),
    (["drop"], "which dead letters"),
    (["drop", "-g", "seat", "--yes"], "which dead letters"),
    (["note", "1"], "operand is missing"),
    (["show", "17", "--from-topic", "t"], "is not partition:offset"),
    (["list", "--from-topic", "t"], "which Kafka"),
]


@pytest.mark.parametrize("args,said", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_command_line_is_usage(cli, args, said):
    done = cli("dlq", *args, env={"POSTRIDER_CONNINFO": "host=127.0.0.1 port=1 dbname=nobody"})
    assert done.returncode == 2, done
    assert done.stdout == "" and said in done.stderr and "usage: postrider dlq" in done.stderr


# ---------------------------------------------------------------- show

def test_show(db, dlq):
    entry, = bury(db, 1, payload=b'{"price":12.3456789012345678901,"tags":[],"who":{"n":"J\xc3\xbcrg \\u001b[31m"}}',
                  headers={"type": "SeatHeld", "region": "eu\x1b[31m"})
    text = dlq("show", entry, check=True).stdout
    assert f"dead letter {entry}  dead" in text and "sqlstate:23505, 5 attempts, cause " in text
    assert '    {\n      "price": 12.3456789012345678901,\n      "tags": [],\n      "who": {\n' in text
    assert "region: eu\\x1b[31m" in text and "\x1b" not in text
    got = json.loads(dlq("show", entry, "--json", check=True).stdout)
    assert got["payload"]["who"] == {"n": "Jürg \x1b[31m"} and got["headers"]["region"] == "eu\x1b[31m"
    assert (got["entry"], got["group"], got["topic"], got["offset"], got["time"]) == (
        entry, "seat", "orders", 100, "2026-01-31T09:00:00.000000Z")
    assert got["history"] == [] and got["edited_from"] is None
    assert dlq("show", entry, "--raw", check=True).stdout.startswith('{"price":12.3456')
    done = dlq("show", entry + 1)
    assert done.returncode == 4 and "hint" in done.stderr


def test_show_bytes_and_tombstones(db, dlq):
    raw, empty, none = (bury(db, 1, payload=p)[0] for p in (b"\x00\xff\x1b[31mhello", b"", None))
    assert "00000000  00 ff 1b 5b 33 31 6d 68  65 6c 6c 6f " in dlq("show", raw, check=True).stdout
    assert json.loads(dlq("show", raw, "--json", check=True).stdout)["payload_base64"] == "AP8bWzMxbWhlbGxv"
    done = subprocess.run([path(), "dlq", "show", str(raw), "--raw", "--conninfo", db.conninfo], capture_output=True,
                          env=servers._clean_env())
    assert done.stdout == b"\x00\xff\x1b[31mhello"
    assert "(empty)" in dlq("show", empty, check=True).stdout
    assert "tombstone" in dlq("show", none, check=True).stdout
    assert json.loads(dlq("show", none, "--json", check=True).stdout)["payload"] is None


# ---------------------------------------------------------------- edit

def test_edit_payload_from_a_pipe(db, dlq):
    entry, = bury(db, 1, payload=b'{"a": 1, "b": 2, "c": 3}')
    old = json.loads(dlq("show", entry, "--json").stdout)
    done = dlq("edit", entry, "--payload", "-", input='{"a": 1, "b": 20, "c": 3}', check=True)
    assert '-   "b": 2,\n+   "b": 20,\n' in done.stdout and '    "a": 1,\n' in done.stdout
    made = int(re.search(r"dead letter (\d+) was made of", done.stdout)[1])
    assert states(db) == {entry: "dropped", made: "dead"}
    new = json.loads(dlq("show", made, "--json").stdout)
    assert new["payload"] == {"a": 1, "b": 20, "c": 3} and new["edited_from"] == entry
    assert new["id"] != old["id"] and new["id"] == new["headers"]["id"] == new["message_id"]
    assert new["key"] == "42" and new["type"] == "SeatHeld"
    old = json.loads(dlq("show", entry, "--json").stdout)
    assert old["edited_to"] == made and old["payload"] == {"a": 1, "b": 2, "c": 3}
    for x in (old, new):
        assert [(h["what"], h["by"]) for h in x["history"]] == [("edit", "postgres")]
    text = dlq("show", entry).stdout
    assert f"to dead letter {made}" in text and "history" in text
    done = dlq("edit", entry, "--key", "43")
    assert done.returncode == 5 and f"see dead letter {made}" in done.stderr


def test_edit_headers_and_key(db, dlq):
    entry, = bury(db, 1, headers={"type": "SeatHeld", "region": "us", "junk": "x"})
    done = dlq("edit", entry, "--header", "region=eu", "-H", "new=a=b", "--no-header", "junk", "--key", "43", "--json",
               check=True)
    got = json.loads(done.stdout)
    assert got["entry"] == entry and got["changed"] is True
    new = json.loads(dlq("show", got["made"], "--json").stdout)
    assert new["headers"] == {"type": "SeatHeld", "region": "eu", "new": "a=b", "id": got["id"]} and new["key"] == "43"
    assert new["payload"] == {"n": 1}
    assert db.one("SELECT key_bytes = '43'::bytea FROM inbox.dead_letter WHERE entry = %s", (got["made"],))
    assert "cannot be chosen" in dlq("edit", got["made"], "--header", "id=7").stderr
    assert dlq("edit", got["made"], "--no-header", "junk").returncode == 2


def test_edit_takes_payload_and_key_away(db, dlq):
    """A handler that cannot do with a payload may do with a tombstone; --payload of nothing is an empty one."""
    a, b = bury(db, 2)
    done = dlq("edit", str(a), "--tombstone", "--dry-run", check=True)
    assert '-   "n": 1' in done.stdout and "tombstone" in done.stdout and len(states(db)) == 2
    got = json.loads(dlq("edit", str(a), "--tombstone", "--json", check=True).stdout)
    assert got["changed"] and got["id"]
    shown = json.loads(dlq("show", str(got["made"]), "--json", check=True).stdout)
    assert (shown["payload"], shown["key"], shown["edited_from"]) == (None, "42", a)
    done = dlq("edit", str(got["made"]), "--tombstone", "--key", "42", check=True)
    assert "nothing is different" in done.stderr
    done = dlq("edit", str(b), "--no-key", "--header", "by=me", check=True)
    assert "- key: 42" in done.stdout and "+ no key" in done.stdout
    key, key_bytes, payload = db.query("SELECT key, key_bytes, payload FROM inbox.dead_letter WHERE edited_from = %s", (b,))[0]
    assert (key, key_bytes, bytes(payload)) == (None, None, b'{"n": 1}')
    entry, = bury(db, 1)
    for args in (["--tombstone", "--payload", "-"], ["--no-key", "--key", "x"]):
        done = dlq("edit", str(entry), *args)
        assert done.returncode == 2 and "not both" in done.stderr
    empty = json.loads(dlq("edit", str(entry), "--payload", "/dev/null", "--bytes", "--json", check=True).stdout)
    assert bytes(db.one("SELECT payload FROM inbox.dead_letter WHERE entry = %s", (empty["made"],))) == b""


def test_edit_refuses(db, dlq, tmp_path):
    entry, = bury(db, 1)
    done = dlq("edit", entry)
    assert done.returncode == 2 and "what shall be changed" in done.stderr
    done = dlq("edit", entry, "--payload", "-", input='{"n": 1')
    assert done.returncode == 5 and "was JSON" in done.stderr
    assert dlq("edit", entry, "--payload", tmp_path / "gone").returncode == 1
    done = dlq("edit", entry, "--payload", "-", "--dry-run", input='{"n": 2}', check=True)
    assert "+   \"n\": 2" in done.stdout and "nothing was done" in done.stderr
    done = dlq("edit", entry, "--payload", "-", input='{"n": 1}', check=True)
    assert "nothing is different" in done.stderr
    assert states(db) == {entry: "dead"} and db.one("SELECT count(*) FROM inbox.dead_letter_log") == 0
    dlq("edit", entry, "--payload", "-", "--bytes", input="plain", check=True)
    assert db.one("SELECT payload FROM inbox.dead_letter WHERE edited_from = %s", (entry,)).tobytes() == b"plain"
    assert dlq("edit", 4711, "--key", "1").returncode == 4


def edit_in_terminal(db, entry, script, answer, tmp_path, *args):
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\n{script}\n")
    editor.chmod(0o755)
    t = Terminal("dlq", "edit", str(entry), "--conninfo", db.conninfo, *args,
                 env={"EDITOR": str(editor), "TMPDIR": str(tmp_path)})
    if answer:
        wait_until(lambda: "[y/N]" in t.read(0.01) or t.proc.poll() is not None, 60, "the question")
        assert "[y/N]" in t.text, t.text
        t.type(answer)
    return t.end(), t.text


def test_edit_in_an_editor(db, dlq, tmp_path):
    """The editor sees it indented; the digits nobody touched stay, and one line becomes one line again."""
    entry, = bury(db, 1, payload=b'{"n":1,"big":12345678901234567890.10}')
    rc, text = edit_in_terminal(db, entry, 'cp "$1" "$TMPDIR/seen"; sed -i "s/\\"n\\": 1/\\"n\\": 2/" "$1"', b"y\n", tmp_path)
    assert rc == 0, text
    assert (tmp_path / "seen").read_text() == '{\n  "n": 1,\n  "big": 12345678901234567890.10\n}'
    assert '-   "n": 1,' in text.replace("\x1b[31m", "").replace("\x1b[32m", "")
    assert db.one("SELECT payload FROM inbox.dead_letter WHERE edited_from = %s", (entry,)).tobytes() == \
        b'{"n":2,"big":12345678901234567890.10}'
    assert sorted(os.listdir(tmp_path)) == ["editor", "seen"]


@pytest.mark.parametrize("script,answer,rc,said", [
    ('sed -i "s/1/2/" "$1"', b"n\n", 0, "nothing was done"),
    ("true", None, 0, "nothing is different"),
    ('printf "\\n" >> "$1"', None, 0, "nothing is different"),
    ("exit 3", None, 1, "failed: nothing was done"),
    ('echo "{" > "$1"', None, 5, "was JSON"),
])
def test_edit_in_an_editor_and_no(db, dlq, tmp_path, script, answer, rc, said):
    entry, = bury(db, 1)
    got, text = edit_in_terminal(db, entry, script, answer, tmp_path)
    assert got == rc and said in text, text
    assert states(db) == {entry: "dead"} and os.listdir(tmp_path) == ["editor"]


# ---------------------------------------------------------------- retry

def test_retry_one(db, dlq):
    entry, other = bury(db, 2)
    with lane(db):
        done = dlq("retry", entry, "--json", check=True)
    assert json.loads(done.stdout) == {"chosen": 1, "retried": 1, "failed": 0, "dropped": 0, "waiting": 0, "left": 0,
                                       "canary": None, "failures": []}
    assert states(db) == {entry: "retried", other: "dead"}
    done = dlq("retry", entry, other)
    assert done.returncode == 5 and f"dead letter {entry} is retried" in done.stderr
    assert states(db)[other] == "dead"
    assert dlq("retry", 4711).returncode == 4


def test_retry_that_fails_again(db, dlq):
    entry, = bury(db, 1)
    with lane(db, end_badly):
        done = dlq("retry", entry)
    again, = set(states(db)) - {entry}
    assert done.returncode == 1
    assert f"{entry} failed again, now dead letter {again}: http:503: still not" in done.stdout
    assert states(db) == {entry: "retried", again: "dead"}
    assert [h["what"] for h in json.loads(dlq("show", entry, "--json").stdout)["history"]] == ["retry", "failed again"]
    with lane(db, end_badly):
        got = json.loads(dlq("retry", again, "--json").stdout)
    assert got["failures"] == [{"entry": again, "dead_letter": again + 1, "failure": "http:503", "reason": "still not"}]


def test_retry_all_of_a_filter(db, dlq):
    a, b = bury(db, 30), bury(db, 5, cls="http", code="503")
    plan = dlq("retry", "--all", "--class", "sqlstate", "--dry-run", "--json", check=True)
    assert [x["count"] for x in lines(plan)] == [30] and "would retry 30 dead letters at 100 per second" in plan.stderr
    assert set(states(db).values()) == {"dead"}
    with lane(db):
        done = dlq("retry", "--all", "--class", "sqlstate", "--rate", "1000", check=True)
    assert done.stdout == "retried 30 dead letters\n"
    assert states(db) == {**dict.fromkeys(a, "retried"), **dict.fromkeys(b, "dead")}
    with lane(db):
        cause = lines(dlq("list", "--json"))[0]["cause"]
        assert json.loads(dlq("retry", "--all", "--cause", cause, "--json", check=True).stdout)["retried"] == 5
    assert json.loads(dlq("retry", "--all", "--json", check=True).stdout)["chosen"] == 0


def test_retry_keeps_to_its_rate(db, dlq):
    """By when each is given back; when the lane gets round to it says nothing of the rate."""
    bury(db, 21)
    due = []

    def note(cur, row):
        due.append(row["due_at"])
        end_well(cur, row)
    with lane(db, note):
        dlq("retry", "--all", "--rate", "20", check=True)
    assert len(due) == 21 and (max(due) - min(due)).total_seconds() > 0.8


def test_retry_all_does_not_chase_its_own_failures(db, dlq):
    """What fails again is a new dead letter of the same filter: a run that took it too would never end."""
    bury(db, 25)
    with lane(db, end_badly) as took:
        done = dlq("retry", "--all", "--rate", "1000", "--json")
    got = json.loads(done.stdout)
    assert (done.returncode, got["failed"], len(got["failures"]), len(took)) == (1, 25, 20, 25)


def test_canary(db, dlq):
    entries = bury(db, 12)
    with lane(db) as took:
        done = dlq("retry", "--canary", "-g", "seat", "--rate", "1000", "--json", check=True)
    got = json.loads(done.stdout)
    assert (got["canary"], got["retried"]) == ("retried", 12)
    assert took[0][1] == entries[0]


def test_canary_is_alone_until_it_has_ended(db, dlq):
    entries = bury(db, 5)
    running = subprocess.Popen([path(), "dlq", "retry", "--canary", "--json", "--conninfo", db.conninfo],
                               stdout=subprocess.PIPE, text=True, env=servers._clean_env())
    wait_until(lambda: states(db)[entries[0]] == "retrying", 30)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.7)
    assert list(states(db).values()).count("dead") == 4
    with lane(db):
        out = running.communicate(timeout=60)[0]
    assert (running.returncode, json.loads(out)["retried"]) == (0, 5)


def test_canary_that_dies_saves_the_others(db, dlq):
    entries = bury(db, 12)
    with lane(db, end_badly):
        done = dlq("retry", "--canary", "--json")
    got = json.loads(done.stdout)
    assert done.returncode == 1 and "11 dead letters not touched" in done.stderr
    assert (got["canary"], got["failed"], got["left"]) == ("failed", 1, 11)
    assert [states(db)[e] for e in entries] == ["retried"] + ["dead"] * 11
    done = dlq("retry", "--canary", "--wait", "200ms", "--json")
    got = json.loads(done.stdout)
    assert (done.returncode, got["canary"], got["waiting"], got["left"]) == (69, "waiting", 1, 11)


def test_nobody_acts(db, dlq):
    bury(db, 3)
    done = dlq("retry", "--all", "--wait", "200ms", "--json")
    got = json.loads(done.stdout)
    assert done.returncode == 69 and "given back and not ended" in done.stderr
    assert got["waiting"] + got["left"] == 3 and got["waiting"] >= 1
    # The group comes back: what was given back goes on by itself, the same command does the rest.
    with lane(db):
        dlq("retry", "--all", check=True)
        wait_until(lambda: set(states(db).values()) == {"retried"}, 60)


def test_give_back_and_leave(db, dlq):
    bury(db, 3)
    done = dlq("retry", "--all", "--wait", "0s", "--rate", "1", check=True)
    assert done.stdout == "gave back 3 dead letters\n"
    assert set(states(db).values()) == {"retrying"}
    assert db.one("SELECT max(due_at) - min(due_at) FROM inbox.parked").total_seconds() == pytest.approx(2, abs=0.1)


def test_interrupted_and_resumed(db, dlq):
    bury(db, 200)
    with lane(db):
        running = subprocess.Popen([path(), "dlq", "retry", "--all", "--rate", "10", "--json", "--conninfo", db.conninfo],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=servers._clean_env())
        wait_until(lambda: list(states(db).values()).count("retried") > 10, 60)
        running.terminate()
        out, err = running.communicate(timeout=60)
        got = json.loads(out)
        assert running.returncode in (1, 69) and got["left"] > 0 and "goes on with them" in err
        left = list(states(db).values()).count("dead")
        assert left == got["left"]
        more = json.loads(dlq("retry", "--all", "--rate", "10000", "--json", check=True).stdout)
        assert more["chosen"] == left
        # What the first one gave back may be due in a moment yet: nobody waits for it.
        wait_until(lambda: set(states(db).values()) == {"retried"}, 60, "what was given back to be done")
    assert db.one("SELECT count(*) FROM inbox.dead_letter_log WHERE what = 'retry'") == 200


def test_progress_as_json_lines(db, dlq):
    bury(db, 50)

    def half(cur, row):
        (end_badly if row["dead_letter"] % 2 else end_well)(cur, row)
    with lane(db, half):
        got = lines(dlq("retry", "--all", "--rate", "40", "--progress=json", "--json"))
    *progress, end = got
    assert len(progress) >= 2 and {p["progress"] for p in progress} == {"retry"} and {p["total"] for p in progress} == {50}
    assert [p["done"] for p in progress] == sorted(p["done"] for p in progress)
    assert (progress[-1]["done"], progress[-1]["failed"]) == (50, 25) and set(progress[-1]) == {
        "progress", "total", "done", "failed", "seconds", "per_second", "eta_seconds"}
    assert (end["retried"], end["failed"]) == (25, 25)


def test_progress_bar_on_a_terminal(db):
    bury(db, 20)
    with lane(db):
        t = Terminal("dlq", "retry", "--all", "--rate", "20", "--conninfo", db.conninfo, columns=100)
        assert t.end() == 0
    assert "█" in t.text and re.search(r"\d+ %  \d+/20", t.text)
    assert t.text.rstrip().endswith("retried 20 dead letters")


# ---------------------------------------------------------------- drop, note

def test_drop_needs_yes(db, dlq):
    a, b, c = bury(db, 3)
    done = dlq("drop", a)
    assert done.returncode == 5 and "drop 1 dead letter for good" in done.stderr and done.stdout == ""
    assert "would drop 3 dead letters" in dlq("drop", "--all", "--dry-run", check=True).stderr
    assert set(states(db).values()) == {"dead"}
    dlq("drop", a, "--note", "a test", "--yes", check=True)
    assert states(db) == {a: "dropped", b: "dead", c: "dead"}
    shown = json.loads(dlq("show", a, "--json").stdout)
    assert shown["note"] == "a test" and shown["history"][0]["what"] == "drop"
    assert dlq("drop", a, "--yes").returncode == 5
    got = json.loads(dlq("drop", "--all", "-g", "seat", "--yes", "--json", check=True).stdout)
    assert got == {"dropped": 2} and set(states(db).values()) == {"dropped"}
    assert json.loads(dlq("drop", "--all", "--yes", "--json", check=True).stdout) == {"dropped": 0}


def test_drop_many(db, dlq):
    bury(db, 1, cls="http", code="503")
    db.query("INSERT INTO inbox.dead_letter (\"group\", topic, partition, message_offset, lane_hash, class, code, reason) "
             "SELECT 'seat', 'orders', 0, n, 1, 'timeout', '', 'late' FROM generate_series(1, 2500) AS n")
    assert dlq("drop", "--all", "--class", "timeout", "--yes", check=True).stdout == "dropped 2,500 dead letters\n"
    assert db.query("SELECT class FROM inbox.dead_letter WHERE state = 'dead'") == [("http",)]


def test_note(db, dlq):
    entry, = bury(db, 1)
    dlq("note", entry, "ask Kim\x1b[31m", check=True)
    assert "ask Kim\\x1b[31m" in dlq("show", entry).stdout
    assert "ask Kim" in dlq("list", "--all", "--json").stdout
    dlq("note", entry, "", check=True)
    assert json.loads(dlq("show", entry, "--json").stdout)["note"] is None
    assert dlq("note", 4711, "x").returncode == 4
    assert [h["what"] for h in json.loads(dlq("show", entry, "--json").stdout)["history"]] == ["note", "note"]


def test_an_operator_may_do_all_of_it(cli, db):
    entry, other, third = bury(db, 3)
    role = "r_" + uuid.uuid4().hex[:12]
    db.query(f"CREATE ROLE {role} LOGIN IN ROLE inbox_operator")
    who = db.pg.conninfo(db.name, user=role)
    try:
        cli("dlq", "list", "--conninfo", who, check=True)
        cli("dlq", "show", entry, "--conninfo", who, check=True)
        cli("dlq", "note", entry, "x", "--conninfo", who, check=True)
        cli("dlq", "edit", entry, "--key", "1", "--conninfo", who, check=True)
        cli("dlq", "drop", other, "--yes", "--conninfo", who, check=True)
        cli("dlq", "retry", third, "--wait", "0s", "--conninfo", who, check=True)
        assert set(db.query("SELECT by FROM inbox.dead_letter_log")) == {(role,)}
        cli("show", "consumers", "--conninfo", who, check=True)
        cli("pause", "-g", "seat", "--conninfo", who, check=True)
    finally:
        db.query(f"DROP ROLE {role}")


# ---------------------------------------------------------------- other people's dead-letter topics

SPRING = "org.springframework.kafka.listener.ListenerExecutionFailedException"


def spring(topic, partition, offset, cause, message, group="billing"):
    return [("kafka_dlt-original-topic", topic), ("kafka_dlt-original-partition", struct.pack(">i", partition)),
            ("kafka_dlt-original-offset", struct.pack(">q", offset)), ("kafka_dlt-original-consumer-group", group),
            ("kafka_dlt-exception-fqcn", SPRING), ("kafka_dlt-exception-cause-fqcn", cause),
            ("kafka_dlt-exception-message", message), ("kafka_dlt-exception-stacktrace", "at ...")]


def connect(topic, offset, exception, message):
    return [("__connect.errors.topic", topic), ("__connect.errors.partition", "3"), ("__connect.errors.offset", str(offset)),
            ("__connect.errors.connector.name", "s3-sink"), ("__connect.errors.task.id", "0"),
            ("__connect.errors.exception.class.name", exception), ("__connect.errors.exception.message", message)]


def produce(kafka, topic, records):
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": kafka.bootstrap})
    for partition, key, headers in records:
        p.produce(topic, b"v", key, partition, headers=headers)
    assert p.flush(30) == 0


def test_topic_of_spring_and_connect(cli, kafka, topic):
    kafka.create_topic(topic, 2)
    produce(kafka, topic, [
        (0, "a", spring("orders", 7, 1234567890123, "java.lang.IllegalStateException", "no seat 42")),
        (1, "b", spring("orders", 1, 12, "java.lang.IllegalStateException", "no seat 43\x1b[31m")),
        (1, None, connect("orders", 99, "org.apache.kafka.connect.errors.DataException", "bad field at 7")),
        # Two hops: the last header of a name counts.
        (0, "c", spring("first", 0, 1, "a.B", "no") + spring("orders", 0, 5, "java.lang.IllegalStateException", "no seat 1")),
        (0, "d", [("id", "x")]),
        (0, "e", None),
    ])
    front = ["dlq", "list", "--from-topic", topic, "--brokers", kafka.bootstrap]
    got = lines(cli(*front, "--json", check=True))
    assert [(x["group"], x["class"], x["code"], x["reason"], x["count"]) for x in got if x["count"] != 1] == [
        ("billing", "spring", "java.lang.IllegalStateException", "no seat <n>", 2),
        (None, "unknown", None, "no header of Spring or Connect says why", 2)]
    of_connect, = [x for x in got if x["class"] == "connect"]
    assert (of_connect["group"], of_connect["code"], of_connect["reason"], of_connect["example_entry"]) == (
        "s3-sink", "org.apache.kafka.connect.errors.DataException", "bad field at <n>", "1:1")
    one = lines(cli(*front, "--all", "--json", "--class", "spring", "--code", "java.lang.*", check=True))
    assert {(x["entry"], x["topic"], x["partition"], x["offset"], x["key"]) for x in one} == {
        ("0:0", "orders", 7, 1234567890123, "a"), ("1:0", "orders", 1, 12, "b"), ("0:1", "orders", 0, 5, "c")}
    text = cli(*front, "--all", check=True).stdout
    assert "orders:7:1234567890123" in text and "\x1b" not in text
    assert "orders:3:99" in text
    few = cli(*front, "--all", "--limit", "2", "--json", check=True)
    assert len(lines(few)) == 2 and "there are more" in few.stderr
    assert "no dead letters like that" in cli(*front, "-g", "nobody", check=True).stderr
    assert cli("dlq", "list", "--from-topic", topic + ".gone", "--brokers", kafka.bootstrap).returncode == 4


def test_one_record_of_a_topic(cli, kafka, topic):
    """Named as the list names it; what is in a header is shown, whatever bytes it has."""
    kafka.create_topic(topic, 2)
    produce(kafka, topic, [(1, "a", spring("orders", 7, 4, "a.B", "no")),
                           (1, "b", spring("orders", 7, 5, "java.lang.IllegalStateException", "no seat\x1b[31m")),
                           (1, "c", None)])
    front = ["dlq", "show", "--from-topic", topic, "--brokers", kafka.bootstrap]
    got = json.loads(cli(*front, "1:1", "--json", check=True).stdout)
    assert (got["entry"], got["topic"], got["partition"], got["offset"], got["key"], got["class"], got["group"]) == (
        "1:1", "orders", 7, 5, "b", "spring", "billing")
    headers = {h["name"]: h.get("value", h.get("value_hex")) for h in got["headers"]}
    assert len(headers) == 8 and headers["kafka_dlt-original-partition"] == "00000007"
    assert headers["kafka_dlt-exception-message"] == "no seat\x1b[31m" and got["payload_base64"] == "dg=="
    text = cli(*front, "1:1", check=True).stdout
    assert "record 1:1" in text and "kafka_dlt-exception-stacktrace: at ..." in text and "\x1b" not in text
    assert "orders, partition 7, offset 5, key b" in text
    assert cli(*front, "1:2", "--raw", check=True).stdout == "v"
    for gone in ("1:3", "0:0", "7:0"):
        done = cli(*front, gone)
        assert done.returncode == 4 and f"has no record {gone}" in done.stderr
    for bad in ("1", "1:", "1:x", ":1", "1:1:1", "99999999999999999999:1"):
        assert cli(*front, bad).returncode == 2, bad


def test_topic_and_table_name_a_cause_alike(cli, db, kafka, topic):
    kafka.create_topic(topic)
    assert "no dead letters" in cli("dlq", "list", "--from-topic", topic, "--brokers", kafka.bootstrap, check=True).stderr
    produce(kafka, topic, [(0, "a", spring("orders", 0, 1, "C", "no seat 42"))])
    bury(db, 1, cls="spring", code="C", reason="no seat 43", group="billing")
    there, = lines(cli("dlq", "list", "--from-topic", topic, "--brokers", kafka.bootstrap, "--json", check=True))
    here, = lines(cli("dlq", "list", "--conninfo", db.conninfo, "--json", check=True))
    same = ("cause", "group", "class", "code", "reason", "count", "topics")
    assert [there[k] for k in same] == [here[k] for k in same] and set(there) == set(here)


def test_topic_that_cannot_be_reached_is_69(cli):
    assert cli("dlq", "list", "--from-topic", "t", "--brokers", "127.0.0.1:1", "--timeout", "1s").returncode == 69


# ---------------------------------------------------------------- with the real consumer

def test_the_whole_way_with_a_consumer(cli, inbox, kafka):  # noqa: F811
    """Events fail, are seen as one cause in the table and in the dead-letter topic, one is mended and the others go
    through after the cure: each effect once. A replay of everything then has no effect."""
    i = inbox()
    i.send(60, keys=6)
    for key in ("k1", "k2", "k3"):
        i.poison(key, "P0001", seq=2)
    bad = [i.keys[k][1] for k in ("k1", "k2", "k3")]
    letters = i.topic + ".dead"
    kafka.create_topic(letters)
    i.consumer(ROW, {"dead_letter": {"topic": letters}}).start()
    i.wait_dead(3)
    i.check(without=bad)

    def do(*args, **kw):
        return cli(*args, "--conninfo", i.db.conninfo, **kw)
    cause, = lines(do("dlq", "list", "-g", i.group, "--json", check=True))
    assert (cause["count"], cause["class"], cause["code"]) == (3, "sqlstate", "P0001")

    def in_topic():
        return lines(cli("dlq", "list", "--from-topic", letters, "--brokers", kafka.bootstrap, "--json", check=True))
    there, = wait_until(lambda: [x for x in in_topic() if x["count"] == 3], 60, "the topic to have them")
    assert [there[k] for k in ("cause", "group", "class", "code", "reason")] == [
        cause[k] for k in ("cause", "group", "class", "code", "reason")]
    # Not cured yet: the canary dies, and the others are spared.
    got = json.loads(do("dlq", "retry", "--canary", "--cause", cause["cause"], "--json").stdout)
    assert (got["canary"], got["failed"], got["left"]) == ("failed", 1, 2)
    i.cure()
    got = json.loads(do("dlq", "retry", "--canary", "-g", i.group, "--json", check=True).stdout)
    assert (got["canary"], got["retried"], got["failed"]) == ("retried", 3, 0)
    i.wait_count(60)
    assert sorted(r[0] for r in i.rows()) == sorted(i.sent)
    i.stands()
    end = lines(do("replay", "start", "-g", i.group, "-t", i.topic, "--all", "--watch", "--json", "--brokers",
                   kafka.bootstrap, check=True))[-1]
    assert (end["state"], end["handled"], end["duplicates"]) == ("done", 0, 60)
    assert i.count() == 60
    shown, = lines(do("show", "consumers", "-g", i.group, "--brokers", kafka.bootstrap, "--json", check=True))
    assert (shown["lag"], shown["dead_letters"], shown["parked_events"]) == (0, 0, 0)
