"""tests/e2e/test_cli_replay.py -- `postrider replay`, `show consumers`, and the pause of a group.

What a running consumer does with a job is tested with the consumer; here the tables are moved by
the functions that it calls.
"""
import json
import os
import re
import subprocess
import time

import pytest

import servers
from test_cli import Terminal
from test_cli_dlq import bury
from wait import wait_until

NOBODY = "host=127.0.0.1 port=1 dbname=nobody"


def stand(db, topic, nexts, group="seat"):
    """The group has one lane per partition, at these offsets."""
    parts = list(range(len(nexts)))
    db.query("SELECT count(*) FROM inbox.claim(%s, %s::text[], %s, 1)", (group, [topic] * len(parts), parts))
    for p, n in enumerate(nexts):
        if n >= 0:
            db.query("SELECT inbox.advance(%s, ARRAY[%s], ARRAY[%s], ARRAY[0], "
                     "(SELECT array_agg(epoch) FROM inbox.position WHERE topic = %s AND partition = %s AND \"group\" = %s), "
                     "ARRAY[-1::bigint], ARRAY[%s::bigint])", (group, topic, p, topic, p, group, n))


def produce(kafka, topic, counts, headers=None, timestamp=None):
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": kafka.bootstrap})
    for partition, n in enumerate(counts):
        for i in range(n):
            p.produce(topic, b"{}", f"k{i}", partition, headers=headers(partition, i) if headers else None,
                      timestamp=timestamp(partition, i) if timestamp else 0)
    assert p.flush(30) == 0


def parts(db, job):
    return db.query("SELECT partition, from_offset, to_offset, next_offset FROM inbox.replay_part WHERE job = %s "
                    "ORDER BY partition", (job,))


@pytest.fixture
def replay(cli, db, kafka):
    def run(verb, *args, **kw):
        front = ["--brokers", kafka.bootstrap] if verb == "start" else []
        return cli("replay", verb, *args, "--conninfo", db.conninfo, *front, **kw)
    return run


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---------------------------------------------------------------- start

def test_by_offset(db, kafka, topic, replay):
    kafka.create_topic(topic, 2)
    produce(kafka, topic, [10, 5])
    stand(db, topic, [10, 5])
    front = ["start", "-g", "seat", "-t", topic]
    plan = json.loads(replay(*front, "--from-offset", "2", "--to-offset", "7", "-p", "0", "--dry-run", "--json",
                             check=True).stdout)
    assert plan == {"job": None, "group": "seat", "topic": topic, "records": 5,
                    "partitions": [{"partition": 0, "from_offset": 2, "to_offset": 7}]}
    assert db.one("SELECT count(*) FROM inbox.replay") == 0
    done = replay(*front, "--from-offset", "2", "--to-offset", "7", "-p", "0", "--note", "why", check=True)
    assert re.match(rf"replay (\d+): 5 records of topic {re.escape(topic)} again for group seat\n", done.stdout)
    assert parts(db, 1) == [(0, 2, 7, 2)]
    assert db.query("SELECT \"group\", state, made_by, note FROM inbox.replay") == [("seat", "running", "postgres", "why")]
    assert db.one("SELECT request FROM inbox.consumer") == 1
    done = replay(*front, "--from-offset", "3")
    assert done.returncode == 2 and "give --partition" in done.stderr
    done = replay(*front, "--from-offset", "0", "-p", "2")
    assert done.returncode == 4 and "2 partitions" in done.stderr
    done = replay(*front, "--from-offset", "99", "-p", "1")
    assert done.returncode == 4 and "nothing to replay" in done.stderr


def test_all_leaves_out_what_has_not_come_yet(db, kafka, topic, replay):
    """Replayed records that the group has not come to would overtake live ones of their key."""
    kafka.create_topic(topic, 3)
    produce(kafka, topic, [10, 10, 10])
    stand(db, topic, [4, 10, -1])
    done = replay("start", "-g", "seat", "-t", topic, "--all", "--json", check=True)
    assert json.loads(done.stdout)["partitions"] == [{"partition": 0, "from_offset": 0, "to_offset": 4},
                                                     {"partition": 1, "from_offset": 0, "to_offset": 10}]
    assert "has not handled yet" in done.stderr
    done = replay("start", "-g", "seat", "-t", topic, "--all", "-p", "2")
    assert done.returncode == 4


def test_by_time(db, kafka, topic, replay):
    kafka.create_topic(topic, 2)
    noon = 1_767_268_800_000  # 2026-01-01T12:00:00Z
    produce(kafka, topic, [10, 4], timestamp=lambda p, i: noon + i * 60_000)
    stand(db, topic, [10, 4])
    got = json.loads(replay("start", "-g", "seat", "-t", topic, "--from-time", "2026-01-01T12:02:00Z", "--to-time",
                            "2026-01-01T13:07:30+01:00", "--json", check=True).stdout)
    assert got["partitions"] == [{"partition": 0, "from_offset": 2, "to_offset": 8},
                                 {"partition": 1, "from_offset": 2, "to_offset": 4}]
    assert parts(db, got["job"]) == [(0, 2, 8, 2), (1, 2, 4, 2)]
    assert replay("start", "-g", "seat", "-t", topic, "--from-time", "-1h").returncode == 4


def test_by_outbox_id(db, kafka, topic, replay):
    """Ids are not in the order of offsets: the range reaches from the first to the last that is meant."""
    kafka.create_topic(topic, 2)
    seqs = [[1, 4, 3, 9, 7], [2, 5, 6, 8, 10]]
    produce(kafka, topic, [5, 5], headers=lambda p, i: [("outbox-seq", str(seqs[p][i]))] if seqs[p][i] != 6 else None)
    stand(db, topic, [5, 5])
    front = ["start", "-g", "seat", "-t", topic, "--json"]
    got = json.loads(replay(*front, "--from-id", "3", "--to-id", "7", check=True).stdout)
    assert got["partitions"] == [{"partition": 0, "from_offset": 1, "to_offset": 5},
                                 {"partition": 1, "from_offset": 1, "to_offset": 2}]
    got = json.loads(replay(*front, "--from-id", "9", "-p", "1", check=True).stdout)
    assert got["partitions"] == [{"partition": 1, "from_offset": 4, "to_offset": 5}]
    assert replay(*front, "--from-id", "11").returncode == 4


def test_what_is_no_longer_remembered_is_refused(db, kafka, topic, replay):
    kafka.create_topic(topic)
    now = int(time.time() * 1000)
    produce(kafka, topic, [10], timestamp=lambda p, i: now - 3_600_000 if i < 4 else now)
    stand(db, topic, [10])
    # The first slot is gone: ids are known since its successor was opened, half an hour ago.
    db.query("INSERT INTO inbox.slot (slot, opened_at, closed_at) VALUES (2, now() - interval '30 min', now())")
    db.query("DELETE FROM inbox.slot WHERE slot = 1; INSERT INTO inbox.slot (slot) VALUES (3)")
    front = ["start", "-g", "seat", "-t", topic]
    done = replay(*front, "--all")
    assert done.returncode == 5 and "4 records older than the ids" in done.stderr
    since = re.search(r"hint: begin with --from-time (\S+);", done.stderr)[1]
    assert replay(*front, "--from-offset", "3", "--dry-run").returncode == 5
    assert db.one("SELECT count(*) FROM inbox.replay") == 0
    replay(*front, "--from-offset", "4", check=True)
    assert json.loads(replay(*front, "--from-time", since, "--json", check=True).stdout)["records"] == 6
    assert db.one("SELECT count(*) FROM inbox.replay") == 2


def test_group_and_topic_come_from_the_consumers_config(cli, db, kafka, topic):
    kafka.create_topic(topic)
    produce(kafka, topic, [3])
    stand(db, topic, [3])
    tree = {"group": "seat", "database": {"conninfo": db.conninfo}, "kafka": {"brokers": kafka.bootstrap, "topics": [topic]},
            "handler": {"kind": "sql", "function": "seat.on_event"}}
    file = servers.write_config(os.path.join(servers.new_dir("cli"), "consumer.cfg"), tree)
    got = json.loads(cli("replay", "start", "-c", file, "--all", "--json", check=True).stdout)
    assert (got["group"], got["topic"], got["records"]) == ("seat", topic, 3)
    shown, = lines(cli("show", "consumers", "-c", file, "--json", check=True))
    assert shown["lag"] == 0
    assert cli("pause", "-c", file, check=True).stdout.startswith("paused since ")
    assert db.one("SELECT paused_at IS NOT NULL FROM inbox.consumer")
    done = cli("replay", "start", "-c", file, "-o", "dedupe=offset", "--all")
    assert done.returncode == 5 and "remembers no ids" in done.stderr
    done = cli("dlq", "list", "-c", file, "-o", "dedupe=never")
    assert done.returncode == 78 and "dedupe" in done.stderr


def test_start_refuses(db, kafka, topic, replay):
    stand(db, "other", [3])
    done = replay("start", "-g", "seat", "-t", topic, "--all")
    assert done.returncode == 4 and "no topic" in done.stderr
    kafka.create_topic(topic)
    produce(kafka, topic, [1])
    done = replay("start", "-g", "seat", "-t", topic, "--all")
    assert done.returncode == 4 and "has never handled topic" in done.stderr


BAD = [
    (["start", "-g", "g", "-t", "t"], "which records"),
    (["start", "-g", "g", "-t", "t", "--all", "--from-id", "1"], "of one kind"),
    (["start", "-g", "g", "-t", "t", "--from-time", "-1h", "--to-offset", "1"], "of one kind"),
    (["start", "-t", "t", "--all"], "which group"),
    (["start", "-g", "g", "--all"], "which topic"),
    (["start", "-g", "g", "-t", "t", "--all", "-p", "-1"], "-1"),
    (["start", "-g", "g", "-t", "t", "--from-time", "+1h"], "is not a time"),
    (["start", "-g", "g", "-t", "t", "--from-id", "0"], "not between"),
    (["show"], "operand is missing"),
    (["show", "x"], "not the number of a replay"),
    (["pause", "0"], "not the number"),
    (["list", "--state", "dead"], "one of: running"),
]


@pytest.mark.parametrize("args,said", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_command_line_is_usage(cli, args, said):
    done = cli("replay", *args, env={"POSTRIDER_CONNINFO": NOBODY})
    assert done.returncode == 2, done
    assert done.stdout == "" and said in done.stderr and "usage: postrider replay" in done.stderr


# ---------------------------------------------------------------- list, show, pause, resume, cancel

def job(db, to=100, group="seat"):
    if not db.one('SELECT count(*) FROM inbox.consumer WHERE "group" = %s', (group,)):
        stand(db, "t", [to], group)
    return db.one("SELECT inbox.replay_new(%s, '{t,t}', '{0,1}', '{0,10}', ARRAY[%s, 20]::bigint[])", (group, to))


def test_list_and_show(db, cli):
    assert cli("replay", "list", "--conninfo", db.conninfo, check=True).stderr == "no replay jobs\n"
    a, b = job(db), job(db, group="mail")
    db.query("SELECT inbox.replay_progress(%s, 't', 0, 55, 5, 50)", (a,))
    db.query("SELECT inbox.replay_failed(%s, E'records are gone\\x1b')", (b,))
    got = lines(cli("replay", "list", "--json", "--conninfo", db.conninfo, check=True))
    assert [(x["job"], x["group"], x["topic"], x["state"], x["records"], x["done"], x["handled"], x["duplicates"])
            for x in got] == [(b, "mail", "t", "failed", 110, 0, 0, 0), (a, "seat", "t", "running", 110, 55, 5, 50)]
    assert len(lines(cli("replay", "list", "--json", "--state", "failed", "--conninfo", db.conninfo))) == 1
    assert len(lines(cli("replay", "list", "--json", "-g", "seat", "--conninfo", db.conninfo))) == 1
    text = cli("replay", "list", "--conninfo", db.conninfo, check=True).stdout
    assert "50 %" in text and "\x1b" not in text
    shown = json.loads(cli("replay", "show", a, "--json", "--conninfo", db.conninfo, check=True).stdout)
    assert shown["partitions"] == [
        {"topic": "t", "partition": 0, "from_offset": 0, "to_offset": 100, "next_offset": 55, "handled": 5, "duplicates": 50},
        {"topic": "t", "partition": 1, "from_offset": 10, "to_offset": 20, "next_offset": 10, "handled": 0, "duplicates": 0}]
    done = cli("replay", "show", b, "--conninfo", db.conninfo)
    assert done.returncode == 1 and "failed" in done.stdout and "records are gone\\x1b" in done.stdout
    assert cli("replay", "show", 4711, "--conninfo", db.conninfo).returncode == 4


def test_pause_resume_cancel(db, cli):
    a = job(db)

    def do(verb, *args):
        return cli("replay", verb, a, *args, "--conninfo", db.conninfo)
    assert do("pause").stdout == f"replay {a} is paused\n"
    done = do("pause")
    assert done.returncode == 5 and "is paused: it cannot be paused" in done.stderr
    assert json.loads(do("resume", "--json").stdout)["state"] == "running"
    assert do("resume").returncode == 5
    done = do("cancel")
    assert done.returncode == 5 and "--yes" in done.stderr
    assert "would cancel" in do("cancel", "--dry-run").stderr
    assert db.one("SELECT state FROM inbox.replay") == "running"
    assert do("cancel", "--yes").stdout == f"replay {a} is cancelled\n"
    assert do("resume").returncode == 5 and do("cancel", "--yes").returncode == 5
    assert cli("replay", "pause", 4711, "--conninfo", db.conninfo).returncode == 4


def test_watch_until_the_end(db):
    """What a member does of the job's first part, then of its second, is shown as it comes."""
    a = job(db)
    p = subprocess.Popen([servers.bin_path("postrider"), "replay", "show", str(a), "--watch", "--progress=json", "--json", "--conninfo", db.conninfo],
                         stdout=subprocess.PIPE, text=True, env=servers._clean_env())
    progress = []

    def shown(done):
        while not progress or progress[-1]["done"] != done:
            progress.append(json.loads(p.stdout.readline()))
    try:
        shown(0)
        for n in (50, 100):
            db.query("SELECT inbox.replay_progress(%s, 't', 0, %s, 0, 50)", (a, n))
            shown(n)
        db.query("SELECT inbox.replay_progress(%s, 't', 1, 20, 1, 9)", (a,))
        *rest, end = map(json.loads, p.stdout)
        assert p.wait(60) == 0
    finally:
        p.kill()
        p.wait()
        p.stdout.close()
    assert (end["state"], end["done"], end["handled"], end["duplicates"]) == ("done", 110, 1, 109)
    progress += rest
    assert progress[-1]["done"] == 110 and {p["progress"] for p in progress} == {"replay"}


def test_watch_on_a_terminal_and_ctrl_c(db):
    a = job(db)
    db.query("SELECT inbox.replay_progress(%s, 't', 0, 55, 5, 50)", (a,))
    t = Terminal("replay", "show", str(a), "-w", "--conninfo", db.conninfo, columns=100)
    wait_until(lambda: "50 %" in t.read(0.01), 60, "the bar")
    t.type(b"\x03")
    assert t.end() == 0 and "goes on without being watched" in t.text
    assert db.one("SELECT state FROM inbox.replay") == "running"


def test_tables_fit_and_cut_no_number(db):
    """On 80 columns texts and headings give way; a number that lost its end would be another number."""
    a = job(db)
    db.query("UPDATE inbox.replay SET note = repeat('because ', 20)")
    db.query("SELECT inbox.replay_progress(%s, 't', 0, 55, 5, 50)", (a,))
    for args in (["list"], ["show", str(a)]):
        t = Terminal("replay", *args, "--conninfo", db.conninfo, columns=80, env={"NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
        assert t.end() == 0
        assert all(len(line) <= 80 for line in t.text.splitlines()), t.text
        assert re.search(r" %( +\d+)* +5 +50( |$)", t.text, re.M), t.text


# ---------------------------------------------------------------- show consumers

def test_show_consumers_without_any(db, cli):
    done = cli("show", "consumers", "--conninfo", db.conninfo, check=True)
    assert (done.stdout, done.stderr) == ("", "no consumer has run on this database\n")
    assert cli("show", "consumers", "-g", "seat", "--conninfo", db.conninfo).returncode == 4


def test_show_consumers(db, cli, kafka, topic):
    kafka.create_topic(topic, 3)
    produce(kafka, topic, [10, 6, 3])
    stand(db, topic, [4, 6, -1])
    bury(db, 1, topic=topic)
    db.query("SELECT inbox.park('seat', %s, 0, 3, 7, 'k', 'k', 'x', NULL, 'T', '{}', 'p', now(), 1, 'http', '503', 'no', 1, "
             "interval '1h')", (topic,))
    db.query("SELECT inbox.park('seat', %s, 0, 4, 7, 'k', 'k', 'y', NULL, 'T', '{}', 'p', now(), 1, NULL, NULL, NULL, 0, NULL)",
             (topic,))
    db.query("SELECT count(*) FROM inbox.claim('mail', ARRAY['m'], ARRAY[0], 4)")
    front = ["show", "consumers", "--conninfo", db.conninfo]
    mail, seat = lines(cli(*front, "--json", check=True))
    assert mail["lag"] is None and seat["lag"] is None and mail["partitions"][0]["lanes"] == [-1, -1, -1, -1]
    assert {k: seat[k] for k in ("group", "paused", "paused_since", "paused_by", "lanes_wanted", "parked_events", "parked_keys",
                                 "retrying", "dead_letters", "replays")} == {
        "group": "seat", "paused": False, "paused_since": None, "paused_by": None, "lanes_wanted": None, "parked_events": 2,
        "parked_keys": 1, "retrying": 0, "dead_letters": 1, "replays": 0}
    seat, = lines(cli(*front, "-g", "seat", "--brokers", kafka.bootstrap, "--json", check=True))
    assert seat["lag"] == 9
    assert [(p["partition"], p["next_offset"], p["end_offset"], p["lag"], p["epoch"], p["lanes"])
            for p in seat["partitions"]] == [(0, 4, 10, 6, 1, [4]), (1, 6, 6, 0, 1, [6]), (2, -1, 3, 3, 1, [-1])]
    text = cli(*front, "-g", "seat", "--brokers", kafka.bootstrap, check=True).stdout
    assert re.match(r"seat  3 partitions, moved .* ago\n  lag +9 records\n  parked +2 events behind 1 key, the oldest for ",
                    text)
    assert re.search(r"  dead +1 dead letter, the oldest for ", text)
    assert "unknown: give --brokers" in cli(*front, "-g", "seat", check=True).stdout
    done = cli(*front, "-g", "seat", "--brokers", "127.0.0.1:1", "--timeout", "3s", "--json")
    assert done.returncode == 69 and json.loads(done.stdout)["lag"] is None


def test_a_topic_that_is_gone_has_no_lag(db, cli, kafka, topic):
    stand(db, topic, [4])
    done = cli("show", "consumers", "--brokers", kafka.bootstrap, "--conninfo", db.conninfo, "--json")
    assert done.returncode == 4 and "no topic" in done.stderr
    assert json.loads(done.stdout)["lag"] is None


# ---------------------------------------------------------------- the pause of a group

def test_pause_and_resume_of_a_group(db, cli):
    def do(*args):
        return cli(*args, "--conninfo", db.conninfo)
    done = do("pause", "-g", "seat")
    assert done.returncode == 4 and "no consumer of group 'seat' has run" in done.stderr
    assert "hint: postrider show consumers" in done.stderr
    stand(db, "t", [1])
    stand(db, "t", [1], group="mail")
    first = json.loads(do("pause", "-g", "seat", "--json").stdout)
    assert (first["paused"], first["changed"], first["group"]) == (True, True, "seat")
    assert do("pause", "-g", "seat").stdout.startswith("was paused already, since ")
    assert db.query("SELECT \"group\", paused_by FROM inbox.consumer WHERE paused_at IS NOT NULL") == [("seat", "postgres")]
    text = do("show", "consumers", "-g", "seat").stdout
    assert "seat  paused  1 partition" in text and ", by postgres" in text
    assert do("resume", "-g", "seat").stdout == "resumed\n" and do("resume", "-g", "seat").stdout == "was not paused\n"
    assert lines(do("show", "consumers", "-g", "seat", "--json"))[0]["paused"] is False
    # Without a group it is the relay that is meant.
    assert "no relay has run" in do("pause").stderr
