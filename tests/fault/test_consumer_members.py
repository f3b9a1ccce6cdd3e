"""tests/fault/test_consumer_members.py -- members that come, go, stand still and come back: who owns a partition is
decided by its epoch in the database, and the effects of whoever lost it never commit."""
import contextlib
import os
import random
import signal
import threading

import pytest
import servers
from confluent_kafka import Consumer
from inbox import ROW, SET, c_handler, inbox  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)


def epochs(i):
    return i.one("SELECT sum(epoch) FROM inbox.position WHERE \"group\" = %s AND lane = 0", (i.group,))


# ---------------------------------------------------------------- coming and going

@pytest.mark.tsan
def test_rebalance_storm(inbox):  # noqa: F811
    """Story: members join, leave and are killed every moment, under load. Each event is applied once, in order, and
    they get on with the work meanwhile."""
    i = inbox(partitions=6)
    rnd = random.Random(11)
    here = [i.member(ROW).start() for _ in range(2)]
    gone = []
    with i.stream(rate=600, keys=60):
        i.flows(50)
        for turn in range(10):
            before = i.count()
            if len(here) < 4 and (turn % 2 == 0 or len(here) == 1):
                here.append(i.member(rnd.choice((ROW, SET))).start())
            else:
                c = here.pop(0)
                c.signal(signal.SIGTERM)
                gone.append(c)
            wait_until(lambda: i.count() > before + 100, 60, "work to go on", interval=0.02)
    i.check()
    for c in gone:
        assert c.wait(60) == 0, c.log_text()[-2000:]
    assert epochs(i) > 6 * 2, "partitions have wandered"


# ---------------------------------------------------------------- zombies

def zombie_lock(i):
    """Holds back what the handler waits for (how = wait)."""
    lock = i.db.connect()
    with lock.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(4711)")
    return lock


def waits(i):
    return i.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")


@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_zombie_with_a_decided_batch(inbox, handler):  # noqa: F811
    """Story: a member has sent its batch and stands still (SIGSTOP, a frozen machine). Another one under its name takes
    over. The batch is let go in the database, which needs no member for that: its epoch is too old, nothing of it
    commits. The woken one says that it was fenced, and leaves."""
    i = inbox(partitions=1)
    i.poison("k0", "wait", seq=1)
    i.send(20, keys=4)
    lock = zombie_lock(i)
    a = i.consumer(handler, {"lanes": 1, "member": "one"}).start()
    wait_until(lambda: waits(i) == 1, 60, "the batch to be decided")
    a.sigstop()
    b = i.consumer(handler, {"lanes": 1, "member": "one"}).start()
    wait_until(lambda: epochs(i) >= 2, 60, "the second to take over")
    lock.close()
    i.check(more=True)
    i.send(20, keys=4)
    i.check(more=True)
    a.sigcont()
    assert a.wait(60) != 0
    assert "fenced" in a.log_text()
    i.send(20, keys=4)
    i.check()
    assert b.running()
    assert i.count("by LIKE '%lane%'") == 60


def test_zombie_in_an_open_transaction(inbox):  # noqa: F811
    """Story: a C handler stands still between two statements, its transaction open: it holds the ids of its batch,
    uncommitted, and whoever takes over waits for them: not longer than a handler may take."""
    i = inbox(partitions=1)
    gate = os.path.join(servers.new_dir("gate"), "gate")
    with open(gate, "w", encoding="ascii"):
        pass
    i.poison("k0", "wait", seq=3)
    i.send(20, keys=4)
    handler = c_handler(gate, timeout="1s")
    a = i.consumer(handler, {"lanes": 1, "member": "one"}).start()
    wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                             " AND state = 'idle in transaction'"), 60, "the handler to stand")
    a.sigstop()
    os.unlink(gate)
    i.consumer(handler, {"lanes": 1, "member": "one"}).start()
    i.check(more=True)
    a.sigcont()
    assert a.wait(60) != 0
    i.send(20, keys=4)
    i.check()


@pytest.mark.tsan
def test_two_that_claim_in_turns(inbox):  # noqa: F811
    """Story: two processes under one name, both sure that they own the partition (a client bug, a broken broker):
    claims go back and forth under load. Each effect is there once, whatever the group thinks."""
    i = inbox(partitions=2)
    c = i.consumer(config={"limits": {"batch_events": 7}}).start()
    end = threading.Event()

    def usurper():
        with contextlib.closing(i.db.connect()) as conn, conn.cursor() as cur:
            while not end.wait(0.15):
                cur.execute("SELECT count(*) FROM inbox.claim(%s, %s, '{0,1}', 2)", (i.group, [i.topic, i.topic]))
    t = threading.Thread(target=usurper, daemon=True)
    with i.stream(rate=800):
        i.flows(50)
        t.start()
        wait_until(lambda: c.metric("postrider_consumer_fenced_total") >= 3, 60, "it to be fenced")
        end.set()
        t.join()
    i.check()
    assert "fenced" in c.log_text()
    i.wait_state(c, "ok")


def test_only_the_fenced_partition_is_claimed_anew(inbox):  # noqa: F811
    """Story: a batch holds messages of several partitions, and one of those was taken over. All of them were claimed
    anew, and what had been read of the others was thrown away, for nothing."""
    i = inbox(partitions=3)
    c = i.consumer(SET, config={"lanes": 1}).start()

    def owners():
        return dict(i.db.query('SELECT partition, epoch FROM inbox.position WHERE "group" = %s', (i.group,)))
    with i.stream(rate=800):
        for n in range(3):
            i.flows(50)
            i.one("SELECT count(*) FROM inbox.claim(%s, %s, '{1}', 1)", (i.group, [i.topic]))
            wait_until(lambda: owners()[1] == 3 + 2 * n, 60, "it to be claimed back")
    i.check()
    assert owners() == {0: 1, 1: 7, 2: 1}


@pytest.mark.asan
def test_shut_out_by_what_it_was_before(inbox):  # noqa: F811
    """Story: a member was away for longer than its session and joined anew under its name. A commit or heartbeat from
    before comes to the broker only now, and Kafka takes it for a stranger's under the same name: the member is shut
    out by itself. It ended with status 5, as if another process had its name. A stranger who has the name for a moment
    looks the same to it."""
    i = inbox(partitions=2)
    c = i.consumer(config={"member": "one", "kafka": {"properties": ["session.timeout.ms=3000"]}}).start()
    i.send(50)
    i.check()
    c.sigstop()
    wait_until(lambda: not i.kafka.members(i.group), 60, "its session to end")
    c.sigcont()
    wait_until(lambda: i.kafka.members(i.group), 60, "it to join anew")
    i.send(50)
    i.check()
    assert "partitions lost" in c.log_text()
    with contextlib.closing(Consumer({"bootstrap.servers": i.kafka.bootstrap, "group.id": i.group, "log_level": 0,
                                      "group.instance.id": "one", "partition.assignment.strategy": "range"})) as other:
        other.subscribe([i.topic])
        wait_until(lambda: other.poll(0.05) and False or other.assignment(), 60, "the stranger to have its name")
    wait_until(lambda: not c.running() or "joins the group once more" in c.log_text(), 60, "it to be shut out")
    assert c.running(), c.log_text()[-1000:]
    i.send(50)
    i.check()
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- what takes ten seconds: a session's length

def killed_member_is_replaced(i):
    """Two members, one of them killed: the other takes its partitions after the session timeout; what it has of its
    own goes on all the while."""
    a, b = i.member().start(), i.consumer().start()
    b.wait_ready()
    with i.stream(rate=200, keys=40):
        wait_until(lambda: b.metric("postrider_consumer_assigned_partitions") == 2, 60, "both to have two")
        mine = [p["partition"] for p in b.status()["partitions"]]
        a.kill9()
        before = dict(i.db.query("SELECT partition, count(*) FROM app.effect GROUP BY partition"))
        yield
        wait_until(lambda: len(i.db.query("SELECT partition FROM app.effect WHERE at > clock_timestamp() - interval '1 s'"
                                          " GROUP BY partition")) == 4, 60, "all partitions to move again", interval=0.05)
        assert len(mine) == 2 and all(i.count(f"partition = {p}") > before.get(p, 0) + 100 for p in mine)
        assert i.one("SELECT max(pause) FROM (SELECT at - lag(at) OVER (PARTITION BY partition ORDER BY at) AS pause"
                     " FROM app.effect WHERE partition = ANY (%s)) AS p", (mine,)).total_seconds() < 8  # of the ten that the other's session lasts
    i.check()


def slow_handler_stays_in_the_group(i):
    """Story: a handler takes longer than max.poll.interval.ms. A client whose poll loop waits for it is thrown out,
    its partitions wander, and another handles the same event while it still does. Ours stays."""
    two = [i.consumer(config={"lanes": 1, "kafka": {"properties": ["max.poll.interval.ms=10000"]},
                              "handler": {"timeout": "30s"}}).start().wait_ready() for _ in range(2)]
    wait_until(lambda: [c.metric("postrider_consumer_assigned_partitions") for c in two] == [2, 2], 60, "two each")
    i.send(20)
    i.check()
    calm = [c.metric("postrider_consumer_rebalances_total") for c in two], epochs(i)
    i.poison("slow", "sleep 11", seq=1)
    slow = i.event("slow")
    i.flush()
    wait_until(lambda: i.one("SELECT is_called FROM app.tries"), 60, "it to begin")
    yield
    i.check()
    assert i.count(f"id = '{slow}'") == 1
    assert i.one("SELECT last_value FROM app.tries") == 1, "nobody else tried it"
    assert ([c.metric("postrider_consumer_rebalances_total") for c in two], epochs(i)) == calm
    for c in two:
        assert "revoked" not in c.log_text().split("assigned")[-1]


def zombie_that_stays(i):
    """A member with a decided batch and without a name stands still: it comes back into the group, and both work on."""
    i.poison("k0", "wait", seq=1)
    i.send(20, keys=4)
    lock = zombie_lock(i)
    a = i.member(config={"handler": {"timeout": "90s"}}).start()
    wait_until(lambda: waits(i) == 1, 60, "the batch to be decided")
    a.sigstop()
    b = i.consumer(config={"handler": {"timeout": "90s"}}).start()
    before = epochs(i)
    yield
    wait_until(lambda: epochs(i) > before, 60, "the second to take over")
    lock.close()
    i.check(more=True)
    a.sigcont()
    wait_until(lambda: "fenced" in a.log_text(), 60, "it to see that it was fenced")
    wait_until(lambda: "partitions lost" in a.log_text(), 60, "it to see that it was thrown out")
    i.send(200)
    i.check()
    assert a.running() and b.running()


def test_members_that_are_gone_slow_or_frozen(inbox):  # noqa: F811
    """Three scenes side by side, because each of them waits for a session of ten seconds to end, or to survive."""
    scenes = [slow_handler_stays_in_the_group(inbox(partitions=4)), zombie_that_stays(inbox(partitions=4)),
              killed_member_is_replaced(inbox(partitions=4))]
    for s in scenes:
        next(s)
    for s in scenes:
        assert next(s, "ended") == "ended"


# ---------------------------------------------------------------- side by side

def test_two_groups_on_one_database(inbox):  # noqa: F811
    """The ids, positions, parked keys and dead letters of one are nothing to the other."""
    i = inbox()
    i.poison("k3", "P0001", seq=2)
    i.send(100, keys=10)
    park = {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}
    i.consumer(config=park).start()
    i.consumer(group=i.group + "b").start()
    late = i.keys["k3"][1:]
    i.wait_count(2 * 100 - 9 - 1)
    i.stands()
    assert i.one("SELECT count(*) FROM inbox.dead_letter WHERE \"group\" = %s", (i.group + "b",)) == 1
    assert i.one("SELECT count(*) FROM inbox.parked") == 9 and i.dead() == []
    mine = "by LIKE '%%" + i.group + " lane%%'"
    assert i.count(mine) == 91 and i.count(f"NOT {mine}") == 99
    assert len({r[0] for r in i.db.query(f"SELECT id FROM app.effect WHERE {mine}")}) == 91
    i.cure()
    assert i.one("SELECT inbox.parked_request(%s, topic, partition, 'k3', 'retry') FROM inbox.parked LIMIT 1", (i.group,))
    i.wait_count(199)
    assert i.count(mine) == 100
    assert not set(late) - {r[0] for r in i.db.query(f"SELECT id::text FROM app.effect WHERE {mine}")}


def test_another_group_name_starts_over(inbox):  # noqa: F811
    """That is what renaming a group means, and only that."""
    i = inbox()
    i.send(60)
    c = i.consumer().start()
    i.check()
    c.terminate()
    i.consumer(group=i.group + "new").start()
    i.wait_count(120)
    stays(lambda: i.count() == 120, 0.5)


def test_change_of_lanes(inbox):  # noqa: F811
    """Story: the number of lanes changes at each start, with a parked key and events left by the last one. A key may
    change its lane only when nothing of the old lanes is owed, or it overtakes itself."""
    i = inbox(partitions=2)
    i.poison("k5", "P0001", seq=30)
    park = {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}
    c = i.consumer()
    with i.stream(rate=1000, keys=30):
        for lanes in (1, 4, 3, 8, 2):
            c = i.consumer(config={"lanes": lanes, **park}, port=c.port).start()
            i.flows(200)
            if lanes % 2:
                c.kill9()
            else:
                assert c.terminate() == 0
    c = i.consumer(config={"lanes": 5, **park}, port=c.port).start()
    i.check(without=i.keys["k5"][29:])
    wait_until(lambda: i.db.query("SELECT DISTINCT lane_count FROM inbox.position") == [(5,)], 60, "all lanes to be five")
    i.cure()
    for p in (0, 1):
        i.db.query("SELECT inbox.parked_request(%s, %s, %s, 'k5', 'retry')", (i.group, i.topic, p))
    i.check()


@pytest.mark.asan
def test_sigterm_under_load(inbox):  # noqa: F811
    """What is being handled is finished, what is not is left; status 0, within seconds."""
    i = inbox()
    c = i.consumer()
    with i.stream(rate=1500):
        for _ in range(4):
            c.start()
            i.flows(150)
            assert c.terminate(30) == 0
    c.start()
    i.check()


def test_a_part_that_dies_takes_all_that_is_behind_along(inbox, tmp_path):  # noqa: F811
    """Story: a partition was taken away while its lane was busy. The lane dropped what it had in work, and took more of the
    same partition from its queue, which the poll thread was about to empty: the position, still ours in the database,
    moved over what had been dropped. A ledger under kills of everything missed 196 of 100,000 transfers, silently."""
    i = inbox(partitions=1)
    i.poison("first", "once 40001")  # a batch that collides is made small, and stays so: work is left when one is done
    for k in range(20):
        i.poison(f"k{k}", "sleep 0.01")
    i.event("first")
    for n in range(1000):
        i.event(f"k{n % 20}")
    i.flush()
    hold = tmp_path / "hold"
    hold.touch()
    first = i.member(ROW, {"lanes": 1}).start(hold=f"part_dead_before_forgotten:{hold}")
    wait_until(lambda: i.count() > 20, 60)
    second = i.member(ROW, {"lanes": 1}).start()
    wait_until(lambda: (tmp_path / "hold.held").exists(), 60, "the partition to be taken away")
    seen = []

    def stands():
        seen.append(i.count())
        return len(seen) > 10 and seen[-1] == seen[-10]

    wait_until(stands, 30, "the lane to come to rest", interval=0.15)
    hold.unlink()
    i.check(timeout=60)
    assert first.running() and second.running()
    assert "our bug" not in first.log_text() + second.log_text()
