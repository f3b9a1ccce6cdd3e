"""tests/e2e/test_cli_parked_group.py -- `postrider parked` of a consumer group: what it shows of inbox.parked, and
what it asks of the group.

The rows are made by the functions that lanes call, and `member` plays a lane where one must act. That the
real one does so is tested at the end. What the relay holds back is in test_cli.py.
"""
import contextlib
import json
import threading
import uuid

import pytest

from inbox import inbox  # noqa: F401
from test_cli import lines
from wait import wait_until

PARK = """SELECT inbox.park(%(group)s, %(topic)s, %(partition)s, %(offset)s, 7, %(key)s, convert_to(%(key)s, 'UTF8'), %(id)s,
    %(id)s::uuid, 'SeatHeld', '{"type": "SeatHeld"}', %(payload)s, '2026-01-31T09:00:00Z', 99, %(cls)s, %(code)s, %(reason)s,
    %(attempts)s, %(delay)s::interval)"""
FIRST = {"cls": "sqlstate", "code": "23505", "reason": "the seat is taken", "attempts": 4, "delay": "10 minutes"}
BEHIND = {"cls": "", "code": "", "reason": "behind an earlier message of its key", "attempts": 0, "delay": None}


def park(db, offset, key="42", **kw):
    """One message held back; (entry, id). Behind another of its key with **BEHIND."""
    if not db.one("SELECT count(*) FROM inbox.consumer WHERE \"group\" = %s", (kw.get("group", "seat"),)):
        db.query("SELECT count(*) FROM inbox.claim(%s, ARRAY['orders'], ARRAY[0], 2)", (kw.get("group", "seat"),))
    args = {"group": "seat", "topic": "orders", "partition": 0, "offset": offset, "key": key, "id": str(uuid.uuid4()),
            "payload": b'{"n": 1}', **FIRST, **kw}
    return db.one(PARK, args), args["id"]


def behind(db, offset, key="42", **kw):
    return park(db, offset, key, **{**BEHIND, **kw})


def ends_well(cur, row):
    cur.execute("SELECT inbox.unpark(%s)", (row["entry"],))


def fails(cur, row):
    """As a lane does it: counted first, in a transaction of its own; then what came of it."""
    for _ in range(2):
        cur.execute("SELECT inbox.parked_failed(%s, 'http', '503', 'still down', %s, '10 minutes')",
                    (row["entry"], row["attempts"] + 1))
        cur.connection.commit()


@contextlib.contextmanager
def member(db, act=ends_well, group="seat"):
    """Does what is due, as a member of the group; skips what it was asked to skip. Gives the offsets, in order."""
    stop, failed, did = threading.Event(), [], []

    def run():
        c = db.connect()
        c.autocommit = False
        try:
            with c.cursor() as cur:
                while not stop.wait(0.01):
                    cur.execute("SELECT * FROM inbox.parked_due(%s, ARRAY['orders', 'orders'], ARRAY[0, 1], ARRAY[0, 0],"
                                " ARRAY[1, 1], 100)", (group,))
                    names = [d.name for d in cur.description]
                    for values in cur.fetchall():
                        row = dict(zip(names, values))
                        if row["request"] == "skip":
                            cur.execute("SELECT inbox.skip(%s)", (row["entry"],))
                        else:
                            act(cur, row)
                        did.append(row["message_offset"])
                    c.commit()
        except Exception as e:  # shown by the test
            failed.append(e)
        finally:
            c.close()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield did
    finally:
        stop.set()
        thread.join(10)
    assert not failed, failed


@pytest.fixture
def parked(cli, db):
    """parked("list") of group seat on the test's database."""
    def run(verb, *args, group="seat", **kw):
        return cli("parked", verb, *(["--group", group] if group else []), *args, "--conninfo", db.conninfo, **kw)
    return run


# ---------------------------------------------------------------- list and show

def test_list_by_key(db, parked):
    (_, first), _ = park(db, 10), behind(db, 11)
    behind(db, 14)
    park(db, 12, partition=1)
    park(db, 13, None, cls="http", code="503"), park(db, 15, None)
    park(db, 9, group="other")
    got = lines(parked("list", "--json", check=True))
    assert [(x["partition"], x["key"], x["events"], x["first_offset"]) for x in got] == [
        (0, "42", 3, 10), (1, "42", 1, 12), (0, None, 1, 13), (0, None, 1, 15)]
    assert {k: got[0][k] for k in ("group", "topic", "class", "code", "reason", "attempts", "first_id", "request")} == {
        "group": "seat", "topic": "orders", "class": "sqlstate", "code": "23505", "reason": "the seat is taken",
        "attempts": 4, "first_id": first, "request": None}
    assert got[0]["next_try"] > got[0]["since"] and got[0]["age_seconds"] >= 0
    for args, offsets in ((["-t", "orders", "-p", "1"], [12]), (["--class", "http"], [13]), (["--code", "23*"], [10, 12, 15]),
                          (["-t", "else"], [])):
        assert [x["first_offset"] for x in lines(parked("list", "--json", *args, check=True))] == offsets, args
    few = parked("list", "--json", "--limit", "1", check=True)
    assert len(lines(few)) == 1 and "there are more" in few.stderr
    text = parked("list", check=True, env={"COLUMNS": "200"}).stdout.splitlines()
    assert text[0] == "consumer group seat" and len(text) == 6
    assert text[1].split() == "TOPIC PARTITION KEY EVENTS FAILURE TRIES NEXT TRY HELD FOR REASON".split()
    assert text[2].split()[:6] == ["orders", "0", "42", "3", "sqlstate:23505", "4"] and "in 9 min" in text[2]
    assert "(none)" in text[4]


def test_list_of_a_group_that_holds_nothing_back(db, parked):
    assert parked("list").returncode == 4 and "no consumer of group seat has run" in parked("list").stderr
    park(db, 10, group="other")
    assert "show consumers" in parked("list").stderr
    db.query("SELECT count(*) FROM inbox.claim('seat', ARRAY['orders'], ARRAY[0], 2)")
    done = parked("list", check=True)
    assert (done.stdout, done.stderr) == ("", "no key is held back by consumer group seat\n")
    for args in (["show", "-k", "42"], ["retry", "-k", "42"], ["skip", "--all", "--yes"], ["release", "--all"]):
        done = parked(*args)
        assert done.returncode == 4 and "nothing like that is held back by consumer group seat" in done.stderr


def test_dead_letters_on_another_try_hold_nothing_back(db, parked):
    """They are of `postrider dlq`; only their id finds them here."""
    _, name = park(db, 10)
    dead = db.one("SELECT inbox.bury(p.\"group\", p.topic, p.partition, p.message_offset, 7, p.key, p.key_bytes, p.id, p.message_id,"
                  " p.type, p.headers, p.payload, p.time, 99, 'http', '503', 'down', 3, p.entry, NULL) FROM inbox.parked AS p")
    assert db.one("SELECT inbox.dlq_retry(%s)", ([dead],)) == 1
    db.query("UPDATE inbox.parked SET due_at = now() + interval '1 hour'")
    assert parked("list", check=True).stdout == "" and parked("show", "-k", "42").returncode == 4
    shown, = lines(parked("show", "--id", name, "--json", check=True))
    assert (shown["dead_letter"], shown["behind"]) == (dead, None)
    with member(db, lambda cur, row: cur.execute("SELECT inbox.unpark(%s), inbox.retried(%s)", (row["entry"], dead))):
        done, = lines(parked("retry", "--id", name, "--json", check=True))
    assert (done["outcome"], done["events"], done["dead_letters"]) == ("released", 0, 0)
    assert db.one("SELECT state FROM inbox.dead_letter") == "retried"


def test_show_says_what_waits_behind_what(db, parked):
    park(db, 10), behind(db, 11, payload=b"\x00\xff"), behind(db, 12, payload=None)
    park(db, 20, "43")
    got = lines(parked("show", "-k", "42", "--json", "--payload", check=True))
    assert [(x["offset"], x["behind"], x["payload_bytes"]) for x in got] == [(10, None, 8), (11, 10, 2), (12, 10, None)]
    assert got[0]["payload"] == {"n": 1} and got[1]["payload_base64"] == "AP8=" and got[2]["payload"] is None
    assert all("payload" not in x for x in lines(parked("show", "-k", "42", "--json", check=True)))
    text = parked("show", "-k", "42", check=True).stdout
    assert text.startswith("consumer group seat\n") and text.count("behind the message at offset 10") == 2
    assert "sqlstate:23505, attempts: 4" in text and "none (a tombstone)" in text and '"n"' not in text
    assert '"n": 1' in parked("show", "--offset", "10", "--payload", check=True).stdout
    assert len(lines(parked("show", "-k", "42", "--limit", "2", "--json", check=True))) == 2


def test_heading_says_whose_it_is(db, parked):
    """One database may have both: the relay's list says so, and points to the groups."""
    seq, event_id = db.query("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) "
                             "VALUES ('order', '42', 'OrderPaid', '{}') RETURNING seq, id")[0]
    db.query("INSERT INTO outbox.parked (seq, id, topic, key, type, reason, head) VALUES (%s, %s, 't', '42', 'OrderPaid', "
             "'too large', true)", (seq, event_id))
    assert parked("list", group=None, check=True).stdout.startswith("TOPIC")
    park(db, 10)
    for args in (["list"], ["show", "-k", "42"]):
        done = parked(*args, group=None, check=True)
        assert done.stdout.startswith("the relay's outbox\n") and "--group seat" in done.stderr
        assert parked(*args, check=True).stdout.startswith("consumer group seat\n")
    done = parked("list", "--json", group=None, check=True)
    assert [x["first_seq"] for x in lines(done)] == [seq] and done.stderr == ""


def test_config_of_a_consumer_means_its_group(db, cli, tmp_path):
    park(db, 10)
    file = tmp_path / "consumer.cfg"
    file.write_text(f'group = "seat";\ndatabase: {{ conninfo = "{db.conninfo}"; }};\n'
                    'kafka: { brokers = "127.0.0.1:1"; topics = [ "orders" ]; };\nhandler: { kind = "sql"; function = "app.f"; };\n')
    got = lines(cli("parked", "list", "-c", str(file), "--json", check=True))
    assert [(x["group"], x["first_offset"]) for x in got] == [("seat", 10)]


BAD = [
    (["list", "-p", "1"], "--partition is for what a consumer group holds back"),
    (["list", "--class", "http"], "--class is for"),
    (["show", "-k", "a", "--no-key"], "--no-key is for"),
    (["retry", "--all"], "--all is for"),
    (["skip", "--offset", "4"], "--offset is for"),
    (["list", "-g", ""], "--group"),
    (["show", "-g", "seat"], "which messages"),
    (["retry", "-g", "seat"], "which messages"),
    (["skip", "-g", "seat", "-p", "1", "--yes"], "which messages"),
    (["skip", "-g", "seat", "-k", "a", "--no-key"], "exclude each other"),
    (["retry", "-g", "seat", "--all", "--id", str(uuid.UUID(int=1))], "exclude each other"),
    (["release", "-g", "seat"], "which keys"),
    (["release", "-g", "seat", "--all", "-t", "orders"], "which keys"),
]


@pytest.mark.parametrize("args,said", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_command_line_is_usage(cli, args, said):
    done = cli("parked", *args, env={"POSTRIDER_CONNINFO": "host=127.0.0.1 port=1 dbname=nobody"})
    assert done.returncode == 2, done
    assert done.stdout == "" and said in done.stderr and "usage: postrider parked" in done.stderr


# ---------------------------------------------------------------- retry

def test_retry_lets_a_key_go_in_order(db, parked):
    park(db, 10), behind(db, 11), behind(db, 12), park(db, 20, "43")
    with member(db) as did:
        done = parked("retry", "-k", "42", "--json", check=True)
        got, = lines(done)
        assert {k: got[k] for k in ("group", "partition", "key", "offset", "request", "outcome", "events", "reason",
                                    "dead_letters")} == {
            "group": "seat", "partition": 0, "key": "42", "offset": 10, "request": "retry", "outcome": "released",
            "events": 0, "reason": None, "dead_letters": 0}
    assert did == [10, 11, 12] and db.query("SELECT key FROM inbox.parked") == [("43",)]


def test_retry_that_fails_again(db, parked):
    park(db, 10), behind(db, 11)
    with member(db, fails):
        done = parked("retry", "-k", "42", "--json")
    got, = lines(done)
    assert done.returncode == 1
    assert (got["outcome"], got["events"], got["reason"]) == ("still_parked", 2, "still down")


def test_retry_waits_while_a_try_is_under_way(db, parked):
    """A try is counted before it is made, which ends the request: not an outcome yet. It was taken for one."""
    park(db, 10)
    begun, end = threading.Event(), threading.Event()

    def slowly(cur, row):
        cur.execute("SELECT inbox.parked_failed(%s, %s, %s, %s, 5, '10 minutes')",
                    (row["entry"], row["class"], row["code"], row["reason"]))
        cur.connection.commit()
        begun.set()
        assert end.wait(20)
        ends_well(cur, row)
    with member(db, slowly):
        got = []
        asking = threading.Thread(target=lambda: got.append(parked("retry", "-k", "42", "--json", "--wait", "20s")))
        asking.start()
        assert begun.wait(20)
        asking.join(0.7)
        assert not got, got
        end.set()
        asking.join(20)
    assert [(x["outcome"]) for x in lines(got[0])] == ["released"] and got[0].returncode == 0


def test_retry_that_ends_as_a_dead_letter(db, parked):
    """The key is free, but not because all went well: it says so, and exits 1."""
    park(db, 10), behind(db, 11)

    def bury(cur, row):
        if row["message_offset"] == 11:
            return ends_well(cur, row)
        cur.execute("SELECT inbox.bury(p.\"group\", p.topic, p.partition, p.message_offset, 7, p.key, p.key_bytes, p.id, p.message_id,"
                    " p.type, p.headers, p.payload, p.time, 99, 'http', '503', 'down', 3, p.entry, NULL)"
                    " FROM inbox.parked AS p WHERE p.entry = %s", (row["entry"],))
    with member(db, bury):
        done = parked("retry", "-k", "42", "--json")
    got, = lines(done)
    assert (done.returncode, got["outcome"], got["events"], got["dead_letters"]) == (1, "released", 0, 1)


def test_nobody_acts(db, parked):
    entry, _ = park(db, 10)
    other, _ = park(db, 20, "43")
    before = db.one("SELECT request FROM inbox.consumer")
    done = parked("retry", "-k", "42", "--wait", "0s", check=True)
    assert done.stdout.splitlines()[0] == "consumer group seat" and "retry asked for" in done.stdout
    assert db.query("SELECT entry, request, due_at <= now() FROM inbox.parked ORDER BY entry") == [
        (entry, "retry", True), (other, None, False)]
    assert db.one("SELECT request FROM inbox.consumer") == before + 1
    assert "retry asked for" in parked("list", check=True, env={"COLUMNS": "200"}).stdout
    done = parked("retry", "-k", "42", "--wait", "100ms")
    assert done.returncode == 69 and "has not done 1 request yet" in done.stderr


def test_which_key_must_be_said(db, parked):
    park(db, 10), park(db, 30, partition=1), park(db, 12, None), park(db, 13, None)
    _, name = behind(db, 11)
    done = parked("retry", "-k", "42")
    assert done.returncode == 2 and "held back in 2 partitions" in done.stderr and "--all" in done.stderr
    done = parked("retry", "--no-key")
    assert done.returncode == 2 and "2 messages without a key" in done.stderr
    for verb in ("retry", "skip"):
        done = parked(verb, "--id", name, "--yes") if verb == "skip" else parked(verb, "--id", name)
        assert done.returncode == 5 and "waits behind the one at offset 10" in done.stderr
    assert db.one("SELECT count(*) FROM inbox.parked WHERE request IS NOT NULL") == 0
    with member(db) as did:
        assert [x["offset"] for x in lines(parked("retry", "-k", "42", "-p", "1", "--json", check=True))] == [30]
        assert [x["offset"] for x in lines(parked("retry", "--offset", "13", "--json", check=True))] == [13]
        assert [x["offset"] for x in lines(parked("retry", "--no-key", "--json", check=True))] == [12]
    assert did == [30, 13, 12]


def test_all_that_match(db, parked):
    """1,500 keys and a hundred messages without one: more than one look at a time."""
    park(db, 0, "first")
    db.query("SELECT inbox.park('seat', 'orders', 0, 100 + n, 7, 'k' || n, convert_to('k' || n, 'UTF8'), NULL, gen_random_uuid(), "
             "'T', '{}', NULL, now(), 9, 'http', '503', 'down', 1, '1 hour') FROM generate_series(1, 1500) AS n")
    db.query("SELECT inbox.park('seat', 'orders', 0, 5000 + n, 7, NULL, NULL, NULL, gen_random_uuid(), "
             "'T', '{}', NULL, now(), 9, 'http', '500', 'down', 1, '1 hour') FROM generate_series(1, 100) AS n")
    plan = lines(parked("retry", "--all", "--class", "http", "--code", "50*", "--dry-run", "--json", check=True))
    assert len(plan) == 1600 and {x["outcome"] for x in plan} == {None}
    assert db.one("SELECT count(*) FROM inbox.parked WHERE request IS NOT NULL") == 0
    with member(db) as did:
        got = lines(parked("retry", "--all", "--class", "http", "--code", "503", "--json", "--wait", "100s", check=True))
        assert len(got) == 1500 and {x["outcome"] for x in got} == {"released"} and len(did) == 1500
        assert len(lines(parked("retry", "--all", "--no-key", "--json", "--wait", "50s", check=True))) == 100
        assert [x["key"] for x in lines(parked("release", "-t", "orders", "--json", check=True))] == ["first"]
    assert db.one("SELECT count(*) FROM inbox.parked") == 0


# ---------------------------------------------------------------- skip

def test_skip_needs_yes(db, parked):
    _, name = park(db, 10)
    behind(db, 11)
    done = parked("skip", "-k", "42")
    assert done.returncode == 5 and "--yes" in done.stderr and "offset 10 of orders [0], key 42" in done.stderr
    done = parked("skip", "--id", name, "--dry-run", check=True)
    assert "would skip orders [0] key 42 offset 10" in done.stdout
    assert parked("skip", "--all").returncode == 5
    assert db.one("SELECT count(*) FROM inbox.parked WHERE request IS NOT NULL") == 0
    with member(db) as did:
        got, = lines(parked("skip", "--id", name, "--yes", "--json", check=True))
        wait_until(lambda: len(did) == 2, 60)
    assert (got["request"], got["outcome"], got["dead_letters"]) == ("skip", "released", 0)
    assert db.query("SELECT id, state FROM inbox.dead_letter") == [(name, "dropped")]
    assert db.one("SELECT by FROM inbox.dead_letter_log WHERE what = 'skip'") == "postgres"


def test_skip_and_the_next_fails_too(db, parked):
    park(db, 10), behind(db, 11)
    with member(db, fails):
        done = parked("skip", "-k", "42", "--yes", "--json")
    got, = lines(done)
    assert (done.returncode, got["outcome"], got["events"], got["reason"]) == (1, "skipped", 1, "still down")


def test_only_what_was_looked_at_is_skipped(db):
    """Between the look and the request the first may get through: the one in its place was never agreed to be given up.
    A request by key would skip it."""
    entry, _ = park(db, 10)
    follower, _ = behind(db, 11)
    db.query("SELECT inbox.unpark(%s)", (entry,))
    assert db.one("SELECT inbox.parked_request(%s::bigint[], 'skip')", ([entry, 99],)) == 0
    assert db.query("SELECT entry, request FROM inbox.parked") == [(follower, None)]
    last, _ = behind(db, 12)
    assert db.one("SELECT inbox.parked_request(%s::bigint[], 'skip', 'ann')", ([follower, last],)) == 1
    assert db.query("SELECT entry, request, requested_by FROM inbox.parked ORDER BY entry") == [
        (follower, "skip", "ann"), (last, None, None)]


def test_an_operator_may_do_all_of_it(cli, db):
    role = "r_" + uuid.uuid4().hex[:12]
    db.query(f"CREATE ROLE {role} LOGIN IN ROLE inbox_operator")
    me = ["--group", "seat", "--conninfo", db.pg.conninfo(db.name, user=role)]
    park(db, 10)
    try:
        assert len(lines(cli("parked", "list", "--json", *me, check=True))) == 1
        assert "payload" in lines(cli("parked", "show", "-k", "42", "--payload", "--json", *me, check=True))[0]
        cli("parked", "retry", "-k", "42", "--wait", "0s", *me, check=True)
        assert db.one("SELECT requested_by FROM inbox.parked") == role
        db.query("UPDATE inbox.parked SET request = NULL, due_at = now() + interval '1 hour'")
        with member(db):
            cli("parked", "skip", "--all", "--yes", *me, check=True)
    finally:
        db.query(f"DROP OWNED BY {role}")
        db.query(f"DROP ROLE {role}")


# ---------------------------------------------------------------- with the real consumer

PARKS = {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}


def test_retry_with_a_consumer(cli, inbox):  # noqa: F811
    """A key fails and is held back with what follows; the cause is removed; `parked retry` lets it go, in order."""
    i = inbox()
    i.poison("k1", "P0001", seq=1)
    i.send(60, keys=6)
    i.consumer(config=PARKS).start()
    i.wait_count(50)
    i.wait_parked(10)
    front = ["--group", i.group, "--conninfo", i.db.conninfo, "--json"]
    key, = lines(cli("parked", "list", *front, check=True))
    assert (key["key"], key["events"], key["class"], key["code"]) == ("k1", 10, "sqlstate", "P0001")
    shown = lines(cli("parked", "show", "-k", "k1", *front, check=True))
    assert [x["id"] for x in shown] == i.keys["k1"] and [x["behind"] is None for x in shown] == [True] + 9 * [False]
    # Not cured yet.
    done = cli("parked", "retry", "-k", "k1", "--wait", "50s", *front)
    got, = lines(done)
    assert (done.returncode, got["outcome"], got["events"]) == (1, "still_parked", 10)
    i.cure()
    got, = lines(cli("parked", "retry", "-k", "k1", "--wait", "50s", *front, check=True))
    assert (got["outcome"], got["events"], got["dead_letters"]) == ("released", 0, 0)
    i.check()
    assert [seq for _, key, seq, _ in i.rows() if key == "k1"] == list(range(1, 11))


def test_skip_and_release_with_a_consumer(cli, inbox):  # noqa: F811
    """Messages that will never do are given up: what is behind them goes on, in order, and they leave a trace."""
    i = inbox()
    for key in ("k1", "k2", "k3"):
        i.poison(key, "P0001", seq=2)
    i.send(60, keys=6)
    i.consumer(config=PARKS).start()
    i.wait_parked(27)
    front = ["--group", i.group, "--conninfo", i.db.conninfo, "--json", "--wait", "50s"]
    got, = lines(cli("parked", "skip", "-k", "k2", "--yes", *front, check=True))
    assert (got["outcome"], got["id"]) == ("released", i.keys["k2"][1])
    i.wait_parked(18)
    db = i.db
    assert [tuple(r) for r in i.dead("id, state")] == [(i.keys["k2"][1], "dropped")]
    db.query("DELETE FROM app.poison WHERE key = 'k1'")
    done = cli("parked", "release", "--all", *front)
    assert done.returncode == 1
    assert {x["key"]: x["outcome"] for x in lines(done)} == {"k1": "released", "k3": "still_parked"}
    assert len(lines(cli("parked", "skip", "--all", "--class", "sqlstate", "--yes", *front, check=True))) == 1
    i.check(without=[i.keys["k2"][1], i.keys["k3"][1]])
    assert json.loads(cli("show", "consumers", "--group", i.group, "--conninfo", db.conninfo, "--json",
                          check=True).stdout)["parked_events"] == 0
