"""tests/fault/test_consumer_lanes.py -- the number of lanes changes while the members of a group run: keys move to other
workers only when nothing of them is under way, so that their order and "each once" hold throughout."""
import json
import os

import pytest
import servers
from inbox import ROW, SET, inbox  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)
PARK = {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}


def order(i, n):
    i.db.query("SELECT inbox.set_lanes(%s, %s)", (i.group, n))


def stored(i):
    """{(lanes that a partition has, how many of its rows there are)}"""
    return set(i.db.query('SELECT lane_count, count(*) FROM inbox.position WHERE "group" = %s'
                          ' GROUP BY partition, lane_count', (i.group,)))


def changed(i, n, timeout=60):
    """Until each partition has n lanes."""
    try:
        wait_until(lambda: stored(i) == {(n, n)}, timeout, f"{n} lanes", interval=0.01)
    except AssertionError as e:
        raise AssertionError(f"{e}; stored: {stored(i)}\n{i.logs()}") from None


def sessions(i):
    """Connections of lanes: one for each that works."""
    return {r[0] for r in i.db.query("SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                                     " AND application_name LIKE '%% lane %%'")}


def workers(i, since):
    """Workers that have applied something since."""
    return {r[0] for r in i.db.query("SELECT DISTINCT substring(by FROM 'lane .*') FROM app.effect WHERE n > %s", (since,))}


def last(i):
    return i.one("SELECT coalesce(max(n), 0) FROM app.effect")


def let_go(i):
    """Every parked key is asked to go on."""
    i.db.query("SELECT inbox.parked_request(%s, topic, partition, key, 'retry') FROM inbox.parked"
               " WHERE due_at IS NOT NULL", (i.group,))


def status(c):
    return json.loads(c.get("/status.json")[1])


SLOW = """#!/usr/bin/python3
import json, os, sys, time
for line in sys.stdin:
    m = json.loads(line)
    answer = {"id": m["id"], "ok": True}
    def note(what):
        with open(os.path.join(sys.argv[1], "journal"), "a", encoding="ascii") as f:
            f.write(f"{m['key']} {m['payload']['seq']} {what}\\n")
    if os.path.exists(os.path.join(sys.argv[1], "fail")):
        answer = {"id": m["id"], "error": {"code": "later", "message": "not now"}}
    else:
        note("begin")
        time.sleep(0.3)
        note("end")
    print(json.dumps(answer), flush=True)
"""


def slow_handler(directory):
    """An exec handler that takes its time, and writes down when it began and ended; refuses all while there is a file
    called fail."""
    path = os.path.join(directory, "handler.py")
    with open(path, "w", encoding="ascii") as f:
        f.write(SLOW)
    os.chmod(path, 0o755)
    return {"kind": "exec", "command": [path, directory], "timeout": "10s"}


def journal(directory):
    """[(key, seq, what)]"""
    try:
        with open(os.path.join(directory, "journal"), encoding="ascii") as f:
            return [tuple(line.split()) for line in f]
    except FileNotFoundError:
        return []


# ---------------------------------------------------------------- one member

@pytest.mark.tsan
@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_up_and_down_under_load(inbox, handler):  # noqa: F811
    """Story: a flash sale: lanes are doubled while events pour in, and taken back afterwards. Nobody restarts
    anything, no key overtakes itself, each event is applied once, and what is not needed any more holds no connection."""
    i = inbox()
    c = i.consumer(handler).start()
    with i.stream(rate=800, keys=60):
        i.flows(100)
        assert len(sessions(i)) == 2
        for n in (4, 1, 3):
            order(i, n)
            changed(i, n)
            wait_until(lambda: status(c)["lanes_changing"] == 0, 60, "it to say so")
            assert (status(c)["lanes"], status(c)["lanes_by"]) == (n, "operator")
            before = last(i)
            i.flows(200)
            wait_until(lambda: len(workers(i, before)) == n, 60, f"{n} workers")
            wait_until(lambda: len(sessions(i)) == n, 60, f"{n} connections")
        order(i, None)
        changed(i, 2)
    i.check()
    assert status(c)["lanes_by"] == "config" and status(c)["lanes"] == 2
    i.wait_state(c, "ok")
    assert c.metric("postrider_inbox_duplicates_total") == 0 and c.metric("postrider_consumer_fenced_total") == 0


def test_with_a_long_backlog(inbox):  # noqa: F811
    """Story: hours of events wait, that is why lanes are raised. The lanes are never idle, so what a partition waits
    for must not need them to be: it changes soon, not when the backlog is gone."""
    i = inbox(partitions=4)
    i.send(6000, keys=200)
    i.poison("k0", "sleep 0.2")  # what waits takes some 6 s at least
    i.poison("k1", "sleep 0.2")
    i.consumer(config={"lanes": 1, "limits": {"batch_events": 5, "batch_bytes": "64kB", "buffer_bytes": "256kB", "prefetch_bytes": "64kB"}}).start()
    i.flows(50)
    order(i, 4)
    changed(i, 4)
    assert i.count() < 6000, "it waited for the end"
    order(i, 2)
    changed(i, 2)
    assert i.count() < 6000, "it waited for the end"
    i.cure()
    i.check()


def test_positions_beside_a_backlog(inbox):  # noqa: F811
    """Story: a lane had more to do than it got done, and the positions of what else it serves, with nothing left to handle,
    stood still all that time: timers of the saga engine's other members waited for them."""
    i = inbox(partitions=2)
    i.consumer(config={"limits": {"batch_events": 5}}).start()
    i.send(60, keys=30)
    i.check()
    at = {key: (partition, by) for key, partition, by in i.db.query("SELECT DISTINCT key, partition, by FROM app.effect")}
    slow, lane = next((k, by) for k, (partition, by) in at.items() if partition == 0)
    other = next(k for k, (partition, by) in at.items() if partition == 1 and by != lane)
    i.poison(slow, "sleep 0.1")  # 40 s of work
    for _ in range(400):
        i.event(slow)
    i.event(other)
    i.flush()
    end = i.kafka.end_offsets(i.topic)[1]
    wait_until(lambda: i.one("SELECT min(next_offset) FROM inbox.position WHERE \"group\" = %s AND partition = 1", (i.group,)) == end,
               35, "the position of what is handled to move on", interval=0.1)
    assert i.count() < 460, "it waited for the end"
    i.cure()
    i.check()


def test_nothing_comes_in(inbox):  # noqa: F811
    """A partition without a record, and one where all is handled, change too."""
    i = inbox()
    i.event("one")
    i.flush()
    c = i.consumer().start().wait_ready()
    i.check()
    order(i, 5)
    changed(i, 5)
    i.wait_state(c, "ok")
    i.send(100)
    i.check()


def test_order_of_before_the_start(inbox):  # noqa: F811
    """What was ordered while nobody ran holds from the first claim on, and more than a process can have is as many as
    it can."""
    i = inbox(partitions=1)
    c = i.consumer().start().wait_ready()
    wait_until(lambda: i.one("SELECT count(*) FROM inbox.position WHERE next_offset = 0") == 2, 60, "both lanes to stand at the end")
    assert c.terminate() == 0
    order(i, 6)
    c.start().wait_ready()
    changed(i, 6)
    assert i.one("SELECT max(epoch) FROM inbox.position") == 2, "one claim was enough"
    order(i, 1000)
    changed(i, 64)
    assert status(c)["lanes"] == 64 and "more lanes are wanted" in c.log_text()
    i.send(500, keys=300)
    i.check()
    assert c.terminate() == 0


def test_reload_and_the_operators_word(inbox):  # noqa: F811
    """SIGHUP takes lanes from the file; what the operator has said holds against it until it is taken back."""
    i = inbox()
    c = i.consumer().start()
    with i.stream(rate=400):
        i.flows(50)
        c.rewrite({"lanes": 4})
        c.hup()
        changed(i, 4)
        assert status(c)["lanes_by"] == "config"
        order(i, 3)
        changed(i, 3)
        c.rewrite({"lanes": 5})
        c.hup()
        wait_until(lambda: c.log_text().count("configuration reloaded") == 2, 60, "the reload")
        stays(lambda: stored(i) == {(3, 3)}, 0.5)
        order(i, None)
        changed(i, 5)
    i.check()


def test_changed_mind(inbox):  # noqa: F811
    """Orders come faster than partitions drain."""
    i = inbox(partitions=4)
    i.consumer().start()
    with i.stream(rate=800, keys=60):
        i.flows(50)
        for n in (4, 2, 7, 1, 2, 3, 8, 3):
            order(i, n)
            i.flows(60)
        changed(i, 3)
    i.check()


def test_paused(inbox):  # noqa: F811
    """Nothing is handled while the group is paused, so a partition with something in its lanes changes afterwards."""
    i = inbox(partitions=1)
    c = i.consumer().start().wait_ready()
    i.db.query("SELECT inbox.pause(%s)", (i.group,))
    i.wait_state(c, "paused")
    i.send(100)
    wait_until(lambda: status(c)["lag_events"] == 100, 60, "the lag to show")
    order(i, 4)
    wait_until(lambda: status(c)["lanes"] == 4, 60, "the order")
    stays(lambda: i.count() == 0, 0.5)
    i.db.query("SELECT inbox.resume(%s)", (i.group,))
    changed(i, 4)
    i.check()


# ---------------------------------------------------------------- held back keys

def test_while_keys_are_parked(inbox):  # noqa: F811
    """Story: keys are parked, events behind them, when lanes change: in other lanes now, they still hold back what comes
    behind, and go on in order once they are let go."""
    i = inbox()
    for k in range(6):
        i.poison(f"k{k}", "P0001", seq=10)
    c = i.consumer(config=PARK).start().wait_ready()
    with i.stream(rate=800, keys=30):
        wait_until(lambda: status(c)["parked_keys"] == 6, 60, "six parked keys")
        for n in (4, 1, 5):
            order(i, n)
            changed(i, n)
            i.flows(100)
            wait_until(lambda: c.metric("postrider_parked_keys") == 6, 60, "each key to be counted once")
            assert i.count("key IN ('k0', 'k1', 'k2', 'k3', 'k4', 'k5')") == 6 * 9
        i.cure()
        let_go(i)
        order(i, 2)
        changed(i, 2)
    i.check()
    assert i.parked() == []


def test_retries_go_on_meanwhile(inbox):  # noqa: F811
    """Keys are parked and let go all the time while lanes change all the time."""
    i = inbox()
    c = i.consumer(config={"errors": [{**PARK["errors"][0], "backoff": "20ms"}]}).start()
    for k in range(8):
        i.poison(f"k{k}", "maybe P0001")
    with i.stream(rate=500, keys=30):
        i.flows(50)
        for n in (4, 1, 3, 2):
            order(i, n)
            changed(i, n)
            i.flows(100)
    i.cure()
    i.check(timeout=60)
    assert c.metric("postrider_consumer_fenced_total") == 0


def test_parked_message_that_is_with_the_handler(inbox):  # noqa: F811
    """Story: a parked message takes its time outside (exec) while its partition changes. The next lanes must not begin
    with what is behind it, nor with itself once more, before it is done."""
    i = inbox(partitions=1)
    directory = servers.new_dir("effects")
    with open(os.path.join(directory, "fail"), "w", encoding="ascii"):
        pass
    i.consumer(slow_handler(directory), {"errors": [
        {"match": "reply:later", "policy": "park", "attempts": 0, "backoff": "100ms"}]}).start()
    i.send(12, keys=2)
    i.wait_parked(12)
    os.unlink(os.path.join(directory, "fail"))
    wait_until(lambda: ("k0", "1", "begin") in journal(directory), 60, "the first to be with the handler", interval=0.01)
    order(i, 4)
    changed(i, 4)
    i.wait_parked(0)
    for key in ("k0", "k1"):
        mine = [line[1:] for line in journal(directory) if line[0] == key]
        assert mine == [(str(n), what) for n in range(1, 7) for what in ("begin", "end")], mine


def test_replay_goes_on_meanwhile(inbox):  # noqa: F811
    """A range is read again while lanes change: the job comes to its end, and all of it was known."""
    i = inbox(partitions=2)
    i.send(3000, keys=50)
    i.consumer(SET, {"limits": {"batch_events": 100}}).start()
    i.check()
    ends = i.kafka.end_offsets(i.topic)
    job = i.one("SELECT inbox.replay_new(%s, %s, %s, %s, %s)",
                (i.group, [i.topic] * 2, [0, 1], [0, 0], [ends[0], ends[1]]))
    for n in (4, 1, 3):
        order(i, n)
        changed(i, n)
    wait_until(lambda: i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,)) == "done", 90, "the replay")
    assert i.one("SELECT sum(handled) FROM inbox.replay_part WHERE job = %s", (job,)) == 0
    i.check()


# ---------------------------------------------------------------- several members, and the end of one

def test_two_members(inbox):  # noqa: F811
    """One order, and all members of the group follow; also one that comes while they do."""
    i = inbox(partitions=4)
    two = [i.consumer().start().wait_ready() for _ in range(2)]
    with i.stream(rate=600, keys=60):
        for c in two:
            wait_until(lambda c=c: status(c)["assigned_partitions"] == 2, 60, "both to have two")
        i.flows(100)
        for n in (4, 1):
            order(i, n)
            changed(i, n)
            wait_until(lambda n=n: all(status(c)["lanes"] == n for c in two), 60, "both to say so")
        order(i, 3)
        third = i.member().start()
        wait_until(lambda: "partitions assigned" in third.log_text(), 60, "the third")
        changed(i, 3)
        i.flows(100)
        assert third.terminate() == 0
        i.flows(100)
    i.check()


def test_killed_while_it_changes(inbox):  # noqa: F811
    """Story: kill -9 at any moment of a change. Some partitions have the new number, some the old one with lanes that
    stand apart; whoever starts brings them all to what was ordered."""
    i = inbox(partitions=4)
    i.poison("k5", "P0001", seq=30)
    c = i.consumer(config=PARK).start()
    with i.stream(rate=800, keys=30):
        i.flows(100)
        for turn, n in enumerate((4, 1, 3, 2, 8)):
            order(i, n)
            wait_until(lambda n=n: status(c)["lanes"] == n, 60, "the order to be seen")
            if turn % 2:
                wait_until(lambda n=n: (n, n) in stored(i), 60, "one partition to have changed", interval=0.002)
            c.kill9()
            c.start()
            i.flows(100)
        changed(i, 8)
    i.check(without=i.keys["k5"][29:])
    i.cure()
    let_go(i)
    i.check()


def test_database_away_while_it_changes(inbox, own_pg):  # noqa: F811
    """The database goes in the middle of a change, and comes back: it goes on where it was."""
    i = inbox(pg=own_pg())
    i.consumer().start()
    with i.stream(rate=400):
        i.flows(50)
        order(i, 4)
        i.pg.stop("immediate")
        i.pg.start()
        changed(i, 4)
        i.flows(50)
    i.check()


def test_more_than_the_database_has_connections(inbox):  # noqa: F811
    """Story: eight lanes were ordered where the database has connections for three. Keys of the others stand still, and
    it is said. Two lanes are ordered again: what waits for a lane that will never connect is handled by the others."""
    i = inbox()
    role = f"r{i.name}"
    i.db.psql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 6 IN ROLE inbox_consumer; GRANT USAGE ON SCHEMA app TO {role};"
              f"GRANT ALL ON ALL TABLES IN SCHEMA app TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO {role};")
    try:
        c = i.consumer(config={"database": {"conninfo": f"{i.conninfo} user={role}"}}).start()
        with i.stream(rate=500, keys=60):
            i.flows(100)
            order(i, 8)
            wait_until(lambda: (a := json.loads(c.get("/readyz")[1]))["state"] == "error" and "connection" in a["sentence"], 60, "it to say so")
            wait_until(lambda: (8, 8) in stored(i), 60, "a partition with eight lanes")
            order(i, 2)
            changed(i, 2)
            i.flows(100)
        i.check()
        i.wait_state(c, "ok")
        c.kill()
    finally:
        i.db.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---------------------------------------------------------------- the operator's verb

def test_lanes_from_the_command_line(inbox):  # noqa: F811
    i = inbox(partitions=1)
    cli = servers.Cli()

    def do(*args):
        return cli.run("lanes", *args, "--conninfo", i.db.conninfo)
    for args in ((), ("3",)):
        done = do(*args, "-g", i.group)
        assert done.returncode == 4 and "has run on this" in done.stderr and "hint" in done.stderr
    c = i.consumer().start().wait_ready()
    i.event("k")
    i.check()
    assert do("-g", i.group).stdout == "lanes: as each member's config says\n"
    assert do("3", "-g", i.group).stdout == "lanes: 3, before: as each member's config says\n"
    assert do("3", "-c", c.file).stdout == "lanes: 3, as before\n"
    changed(i, 3)
    assert json.loads(do("5", "-g", i.group, "--json").stdout) == {"group": i.group, "lanes": 5, "changed": True}
    assert do("-g", i.group).stdout == "lanes: 5\n"
    changed(i, 5)
    assert do("default", "-g", i.group).stdout == "lanes: as each member's config says, before: 5\n"
    changed(i, 2)
    assert json.loads(do("-g", i.group, "--json").stdout) == {"group": i.group, "lanes": None, "changed": False}
    for wrong in (("0", "-g", i.group), ("65", "-g", i.group), ("many", "-g", i.group), ("3",)):
        assert do(*wrong).returncode == 2
