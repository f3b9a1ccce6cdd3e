"""tests/e2e/test_inbox_sql.py -- schema inbox as consumers and operators call it: taking partitions over,
remembering ids across rotations, holding back, dead letters, replay, roles, upgrading.

Needs Postgres only. Refuses to look into the consumer: what it does with these functions is tested elsewhere.
"""
import contextlib
import json
import os
import random
import threading
import uuid

import psycopg2
import pytest

import servers
from sql import ask, Call, login, refused, run, session, wait_blocked
from wait import wait_until

G = "seat"


def ids(n):
    return [str(uuid.uuid4()) for _ in range(n)]


def claim(on, parts=(("t", 0),), lanes=2, group=G):
    return ask(on, "SELECT ord, lane, lane_count, next_offset, epoch, attempt_offset, attempt_batch, attempts "
                 "FROM inbox.claim(%s, %s, %s, %s)", (group, [t for t, _ in parts], [p for _, p in parts], lanes))


def advance(on, *moves, group=G):
    """Each move: (topic, partition, lane, epoch, expected, next)."""
    return ask(on, "SELECT inbox.advance(%s, %s, %s, %s, %s::bigint[], %s::bigint[], %s::bigint[])",
                 (group, *[list(column) for column in zip(*moves)]))


def remember(on, given, hashes=None, group=G):
    return ask(on, "SELECT inbox.remember(%s, %s::uuid[], %s::bigint[])", (group, given, hashes or [7] * len(given)))


def sort_out(on, given, hashes=None, group=G, function="sort_out"):
    return [r for r, in ask(on, f"SELECT inbox.{function}(%s, %s::uuid[], %s::bigint[])",
                              (group, given, hashes or [7] * len(given)))]


def look(on, given, hashes=None, group=G):
    return sort_out(on, given, hashes, group, "look")


def age_slots(db, by="1 hour"):
    """As if the slots were made that much earlier."""
    db.query(f"UPDATE inbox.slot SET opened_at = opened_at - interval '{by}', closed_at = closed_at - interval '{by}'")


def rotate(db, keep="2 hours"):
    age_slots(db)
    return db.one("SELECT inbox.rotate(%s)", (keep,))


# ---------------------------------------------------------------- claim

def test_first_claim_makes_the_rows(db):
    assert claim(db, [("b", 1), ("a", 0)], 2) == [
        (1, 0, 2, -1, 1, -1, 0, 0), (1, 1, 2, -1, 1, -1, 0, 0), (2, 0, 2, -1, 1, -1, 0, 0), (2, 1, 2, -1, 1, -1, 0, 0)]
    assert [r[4] for r in claim(db, [("a", 0)], 2)] == [2, 2]
    assert [r[4] for r in claim(db, [("a", 0), ("b", 1)], 2)] == [3, 3, 2, 2]
    assert [r[4] for r in claim(db, [("a", 0)], 2, group="other")] == [1, 1]
    assert db.query('SELECT "group" FROM inbox.consumer ORDER BY 1') == [("other",), (G,)]
    assert claim(db, [], 2) == []


def test_lane_count_changes_only_when_drained(db):
    claim(db)
    advance(db, ("t", 0, 0, 1, -1, 10))
    db.query("SELECT inbox.attempt(%s, '{t}', '{0}', '{1}', '{5}', '{1}', '{1}')", (G,))
    assert [r[1:5] for r in claim(db, lanes=3)] == [(0, 2, 10, 2), (1, 2, -1, 2)]
    advance(db, ("t", 0, 1, 2, -1, 10))
    assert [r[1:] for r in claim(db, lanes=3)] == [(0, 3, 10, 3, -1, 0, 0), (1, 3, 10, 3, -1, 0, 0), (2, 3, 10, 3, -1, 0, 0)]
    assert [r[1:5] for r in claim(db, lanes=1)] == [(0, 1, 10, 4)]
    assert refused(advance, db, ("t", 0, 2, 3, 10, 11))[0] == "PRF01"
    assert [r[1:5] for r in claim(db, lanes=2)] == [(0, 2, 10, 5), (1, 2, 10, 5)]


def test_a_lane_deleted_by_hand_starts_where_the_slowest_stands(db):
    claim(db, lanes=3)
    advance(db, ("t", 0, 0, 1, -1, 10), ("t", 0, 2, 1, -1, 4))
    db.query("DELETE FROM inbox.position WHERE lane = 1")
    assert [r[1:5] for r in claim(db, lanes=3)] == [(0, 3, 10, 2), (1, 3, 4, 2), (2, 3, 4, 2)]


def test_claims_that_make_no_sense(db):
    for args in (("", ["t"], [0], 1), (None, ["t"], [0], 1), (G, ["t"], [0, 1], 1), (G, None, [0], 1), (G, ["t"], None, 1),
                 (G, ["t"], [0], 0), (G, ["t"], [0], None), (G, ["t"], [0], 1025), (G, ["t", "t"], [0, 0], 1)):
        code, message, hint = refused(db.query, "SELECT * FROM inbox.claim(%s, %s, %s, %s)", args)
        assert code == "22023" and hint, args
    assert db.query("SELECT * FROM inbox.position") == []


def test_claim_waits_for_an_advance_and_then_fences(db):
    """A zombie with a decided batch: what it committed before the claim counts, what comes after it is refused."""
    claim(db)
    with session(db) as old, session(db) as new, session(db) as late:
        advance(old, ("t", 0, 1, 1, -1, 10))
        taking = Call(lambda: claim(new))
        wait_blocked(db, new)
        old.commit()
        assert [r[1:5] for r in taking.result()] == [(0, 2, -1, 2), (1, 2, 10, 2)]
        # The claim is not committed yet: the old owner's next batch waits for it, and is then refused.
        moving = Call(lambda: advance(late, ("t", 0, 1, 1, 10, 20)))
        wait_blocked(db, late)
        new.commit()
        code, message, detail = refused(moving.result)
        assert code == "PRF01" and "t [0] lane 1" in message and "epoch 2 at offset 10" in detail
    assert db.query("SELECT lane, next_offset, epoch FROM inbox.position ORDER BY lane") == [(0, -1, 2), (1, 10, 2)]


def test_a_claim_that_is_rolled_back_changes_nothing(db):
    claim(db)
    with session(db) as c:
        claim(c)
        c.rollback()
    advance(db, ("t", 0, 0, 1, -1, 3))


def test_claims_at_the_same_time(db):
    """First claims of six members with different lane counts and in different orders: every epoch is given once, a
    partition's rows agree, nobody deadlocks."""
    parts = [("t", p) for p in range(4)]

    def member(lanes):
        with contextlib.closing(db.connect()) as c:
            got = []
            for i in range(10):
                mine = random.Random(lanes * 100 + i).sample(parts, 4)
                rows = claim(c, mine, lanes)
                for n, part in enumerate(mine, 1):
                    of = [r for r in rows if r[0] == n]
                    assert [r[1] for r in of] == list(range(of[0][2])) and len({r[4] for r in of}) == 1
                    got.append((part, of[0][4]))
            return got
    given = [e for call in [Call(lambda n=n: member(n)) for n in range(1, 7)] for e in call.result()]
    assert len(given) == len(set(given)) == 240
    assert {e for _, e in given} == set(range(1, 61))


def test_claims_beside_advances_never_deadlock(db):
    """Lane 0 of two partitions and then more of the first, as the lanes of a zombie lock them, against a claim."""
    parts = [("a", 0), ("b", 0)]
    claim(db, parts, 4)
    stop = threading.Event()

    def zombie():
        fenced = moved = 0
        with contextlib.closing(db.connect()) as c:
            while not stop.is_set():
                rows = claim(c, parts, 4)
                epochs = {("a", "b")[r[0] - 1]: r[4] for r in rows}
                at = {(("a", "b")[r[0] - 1], r[1]): r[3] for r in rows}
                try:
                    advance(c, *[(t, 0, lane, epochs[t], at[t, lane], at[t, lane] + 1)
                                 for t, lane in (("b", 0), ("a", 2), ("b", 1), ("a", 0))])
                    moved += 1
                except psycopg2.Error as e:
                    assert e.pgcode == "PRF01", e
                    fenced += 1
        return fenced, moved
    calls = [Call(zombie) for _ in range(4)]
    wait_until(lambda: db.one("SELECT min(epoch) > 200 FROM inbox.position"), 60, "200 claims")
    stop.set()
    ended = [c.result() for c in calls]
    moved = sum(m for _, m in ended)
    assert moved > 0 and sum(f for f, _ in ended) > 0
    assert db.query("SELECT DISTINCT next_offset FROM inbox.position WHERE (topic, lane) IN (('a', 0), ('b', 1))") == [(moved - 1,)]


# ---------------------------------------------------------------- attempt, advance

def attempt(db, offset, batch, epoch, lane=0):
    db.query("SELECT inbox.attempt(%s, '{t}', '{0}', %s, %s::bigint[], %s, %s::bigint[])",
             (G, [lane], [offset], [batch], [epoch]))
    return db.query("SELECT message_offset, batch, attempts FROM inbox.attempt WHERE lane = %s", (lane,))[0]


def test_attempts_are_counted(db):
    claim(db)
    assert attempt(db, 5, 2000, 1) == (5, 2000, 1)
    assert attempt(db, 5, 2000, 1) == (5, 2000, 2)
    assert attempt(db, 5, 1, 1) == (5, 1, 1)
    assert attempt(db, 6, 1, 1) == (6, 1, 1)
    assert attempt(db, 6, 1, 2) == (6, 1, 2), "the next owner goes on counting"
    assert attempt(db, 9, 9, 1) == (6, 1, 2), "the old owner writes nothing"
    assert [r[5:] for r in claim(db)] == [(6, 1, 2), (-1, 0, 0)]


def test_an_attempt_does_not_wait_for_the_disk(db):
    with session(db) as c:
        run(c, "SELECT inbox.attempt(%s, '{t}', '{0}', '{0}', '{1}', '{1}', '{1}')", (G,))
        assert run(c, "SHOW synchronous_commit") == [("off",)]
        c.commit()
        assert run(c, "SHOW synchronous_commit") == [("on",)]


def test_advance_moves_all_or_nothing(db):
    claim(db, [("a", 0), ("b", 0)])
    assert advance(db, ("b", 0, 1, 1, -1, 5), ("a", 0, 0, 1, -1, 7))
    where = "SELECT topic, lane, next_offset FROM inbox.position ORDER BY topic, lane"
    stand = [("a", 0, 7), ("a", 1, -1), ("b", 0, -1), ("b", 1, 5)]
    assert db.query(where) == stand
    for wrong in [("b", 0, 1, 2, 5, 6), ("b", 0, 1, 0, 5, 6), ("b", 0, 1, 1, 4, 6), ("b", 0, 9, 1, 5, 6), ("c", 0, 0, 1, 5, 6),
                  ("b", 0, 1, None, 5, 6), ("b", 0, 1, 1, None, 6)]:
        assert refused(advance, db, ("a", 0, 0, 1, 7, 8), wrong)[0] == "PRF01", wrong
    assert refused(advance, db, ("a", 0, 0, 1, 7, 8), group="other")[0] == "PRF01"
    assert refused(advance, db, ("a", 0, 0, 1, 7, 6))[0] == "22023"
    assert db.query(where) == stand
    advance(db, ("a", 0, 0, 1, 7, 7))
    assert db.query(where) == stand


# ---------------------------------------------------------------- ids

def test_an_id_is_remembered_once(db):
    a, b, c = ids(3)
    remember(db, [a, b])
    code, message, hint = refused(remember, db, [c, b])
    assert code == "PRD01" and hint
    assert refused(remember, db, [c, c])[0] == "PRD01"
    remember(db, [c])
    remember(db, [a, b], group="other")
    remember(db, [])
    assert db.query('SELECT "group", count(message_id) FROM inbox.seen GROUP BY 1 ORDER BY 1') == [("other", 2), (G, 3)]


@pytest.mark.parametrize("function", ["remember", "sort_out", "look"])
def test_ids_and_hashes_belong_together(db, function):
    sql = f"SELECT inbox.{function}(%s, %s::uuid[], %s::bigint[])"
    assert refused(db.query, sql, (G, ids(2), [1]))[0] == "22023"
    assert refused(db.query, sql, (G, ids(2), None))[0] == "22023"
    if function != "look":
        assert refused(db.query, sql, (G, [None], [1]))[0] == "23502"
        with session(db) as c:
            run(c, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            code, message, hint = refused(run, c, sql, (G, ids(1), [1]))
            assert code == "25001" and "REPEATABLE READ" in message and hint
    assert db.query("SELECT * FROM inbox.seen") == []


@pytest.mark.parametrize("function", [sort_out, look])
def test_new_seen_and_altered(db, function):
    a, b, c, d = ids(4)
    remember(db, [a, b], [1, 2])
    rotate(db)
    remember(db, [c], [3])
    assert function(db, [d, b, a, c, d, d], [4, 2, 9, 3, 4, 5]) == [0, 1, 2, 1, 1, 2]
    again = 1 if function is sort_out else 0
    assert function(db, [d], [4]) == [again]
    assert function(db, [], []) == []
    assert function(db, [a, a], [1, 1], group="other") == [0, 1]
    assert db.one("SELECT count(*) FROM inbox.seen") == (5 if function is sort_out else 3)


def test_duplicates_across_rotations(db):
    """A unique index cannot span the slots: each id must be found in all of them, wherever it was put, v4 or v7."""
    old = ids(3) + [db.one("SELECT outbox.uuid7()") for _ in range(3)]
    slots = []
    for one in range(3):
        remember(db, [old[one], old[3 + one]])
        slots.append(db.one("SELECT slot FROM inbox.slot WHERE closed_at IS NULL"))
        if one < 2:
            assert rotate(db) == 1
    assert slots == [1, 2, 3]
    for one in old:
        assert refused(remember, db, [*ids(3), one])[0] == "PRD01"
    assert sort_out(db, old) == look(db, old) == [1] * 6
    remember(db, old, group="other")
    assert db.query('SELECT slot, count(*) FROM inbox.seen WHERE "group" = %s GROUP BY 1 ORDER BY 1', (G,)) == [
        (1, 2), (2, 2), (3, 2)]


def test_the_same_id_at_the_same_time(db):
    """The second waits for the first: commit makes it a duplicate, rollback leaves the id to it."""
    for end in ("commit", "rollback"):
        one = ids(1)
        with session(db) as first, session(db) as second:
            remember(first, one)
            waiting = Call(lambda: remember(second, one + ids(2)))
            wait_blocked(db, second)
            getattr(first, end)()
            if end == "commit":
                assert refused(waiting.result)[0] == "PRD01"
            else:
                waiting.result()
        one = ids(1)
        with session(db) as first, session(db) as second:
            remember(first, one)
            waiting = Call(lambda: sort_out(second, one + ids(1)))
            wait_blocked(db, second)
            getattr(first, end)()
            assert waiting.result() == [int(end == "commit"), 0]


def test_rotations_beside_running_members(db):
    """Four members apply the same ids in batches while slots are opened under them. Each id must be taken by exactly
    one of them; nobody deadlocks, although each has them in another order."""
    everything, taken, lock, stop = ids(3000), [], threading.Lock(), threading.Event()

    def member(seed):
        rnd = random.Random(seed)
        mine = list(everything)
        rnd.shuffle(mine)
        with contextlib.closing(db.connect(autocommit=False)) as c:
            for i in range(0, len(mine), 50):
                batch = mine[i:i + 50]
                try:
                    remember(c, batch)
                    new = batch
                except psycopg2.Error as e:
                    assert e.pgcode == "PRD01", e
                    c.rollback()
                    new = [x for x, what in zip(batch, sort_out(c, batch)) if what == 0]
                c.commit()
                with lock:
                    taken.extend(new)

    def rotator():
        done = 0
        while not stop.is_set():
            try:
                done += force(db)
            except psycopg2.Error as e:
                assert e.pgcode == "55P03", e
        return done
    members = [Call(lambda s=s: member(s)) for s in range(4)]
    turning = Call(rotator)
    for m in members:
        m.result()
    stop.set()
    assert turning.result() > 3
    assert len(taken) == len(set(taken)) == len(everything)
    assert db.one("SELECT count(*) = 3000 AND count(DISTINCT message_id) = 3000 FROM inbox.seen")


def force(db):
    """Opens a new slot now, drops none."""
    db.query("UPDATE inbox.slot SET opened_at = opened_at - interval '1000 hours' WHERE closed_at IS NULL")
    return db.one("SELECT inbox.rotate('2000 hours')")


# ---------------------------------------------------------------- rotation

def slots(db):
    return [(n, c) for n, c in db.query("SELECT slot, closed_at IS NOT NULL FROM inbox.slot ORDER BY 1")]


def leaves(db):
    return [n for n, in db.query("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'inbox.seen'::regclass ORDER BY 1")]


def test_rotation_keeps_what_is_needed(db):
    assert db.one("SELECT inbox.rotate('2 hours')") == 0
    first = ids(1)
    remember(db, first)
    seen = []
    for _ in range(6):
        rotate(db)
        seen.append(slots(db))
        assert len(slots(db)) <= 4 and leaves(db) == [f"inbox.seen_{n}" for n, _ in slots(db)]
        assert db.one("SELECT inbox.rotate('2 hours')") == 0
        if slots(db)[0][0] == 1:
            assert refused(remember, db, first)[0] == "PRD01"
    assert seen[0] == [(1, True), (2, False)]
    assert seen[-1][0][0] > 1 and db.one("SELECT inbox.keep(%s, '2 hours') > '-infinity'", (G,))
    remember(db, first)


def test_an_id_lives_as_long_as_keep(db):
    """Closed 2 hours ago is the youngest that may go: the id was put there just before it was closed."""
    one = ids(1)
    age_slots(db, "61 minutes")
    remember(db, one)
    assert db.one("SELECT inbox.rotate('2 hours')") == 1
    age_slots(db, "119 minutes")
    assert db.one("SELECT inbox.rotate('2 hours')") == 1
    assert refused(remember, db, one)[0] == "PRD01"
    age_slots(db, "2 minutes")
    assert db.one("SELECT inbox.rotate('2 hours')") == 1
    assert slots(db) == [(2, True), (3, False)]
    remember(db, one)


def test_the_longest_keep_of_all_groups_holds(db):
    """Two groups on one database: the one that keeps ids for a day must not lose them to the one that keeps an hour."""
    assert db.one("SELECT inbox.keep('long', '1 day') = '-infinity'") is True
    assert db.one("SELECT inbox.keep('short', '1 hour') = '-infinity'") is True
    one = ids(1)
    remember(db, one, group="long")
    age_slots(db, "11 hours")
    assert db.one("SELECT inbox.rotate('1 hour')") == 0
    age_slots(db, "2 hours")
    assert db.one("SELECT inbox.rotate('1 hour')") == 1
    age_slots(db, "23 hours")
    assert db.one("SELECT inbox.rotate('1 hour')") == 1
    assert refused(remember, db, one, group="long")[0] == "PRD01"
    assert db.one("SELECT inbox.keep('long', '1 hour') = '-infinity'") is True
    assert db.one("SELECT inbox.rotate('1 hour')") > 0
    remember(db, one, group="long")
    assert db.one("SELECT inbox.keep('long', '1 day') = (SELECT min(opened_at) FROM inbox.slot)") is True
    for bad in (("g", None), ("g", "-1 hour"), ("", "1 hour"), (None, "1 hour")):
        assert refused(db.query, "SELECT inbox.keep(%s, %s)", bad)[0] == "22023"


def test_rotation_of_nonsense(db):
    for keep in (None, "-1 second"):
        assert refused(db.query, "SELECT inbox.rotate(%s)", (keep,))[0] == "22023"


def test_rotation_waits_for_who_is_writing(db):
    """Were the slot closed under a transaction that has put an id there and not committed, the next owner would neither
    see that id nor meet it in the new slot's index: the message would be handled twice."""
    one = ids(1)
    with session(db) as writer:
        remember(writer, one)
        assert refused(rotate, db)[0] == "55P03"
        assert slots(db) == [(1, False)]
        writer.commit()
    assert rotate(db) == 1
    assert refused(remember, db, one)[0] == "PRD01"


def test_an_overdue_rotation_waits_longer_and_wakes_who_queued(db):
    age_slots(db, "30 hours")
    with session(db) as writer, session(db) as turner, session(db) as next_one:
        remember(writer, ids(1))
        turning = Call(lambda: run(turner, "SELECT inbox.rotate('40 hours')"))
        wait_blocked(db, turner)
        queued = Call(lambda: remember(next_one, ids(1)))
        wait_blocked(db, next_one)
        writer.commit()
        assert turning.result() == [(1,)]
        turner.commit()
        queued.result()
        next_one.commit()
    assert db.query("SELECT slot FROM inbox.seen ORDER BY 1") == [(1,), (2,)]


def test_a_reader_delays_the_drop_only(db):
    """A report reads inbox.seen for hours. The next slot is opened all the same, and who wants to remember does not wait
    for the report, however long the rotation is overdue."""
    age_slots(db, "3 hours")
    assert db.one("SELECT inbox.rotate('2 hours')") == 1
    age_slots(db, "3 hours")
    with session(db) as reader:
        run(reader, "SELECT count(*) FROM inbox.seen")
        assert db.one("SELECT inbox.rotate('2 hours')") == 1
        assert slots(db) == [(1, True), (2, True), (3, False)]
        remember(db, ids(1))
    assert db.one("SELECT inbox.rotate('2 hours')") == 1
    assert slots(db) == [(2, True), (3, False)] and leaves(db) == ["inbox.seen_2", "inbox.seen_3"]


def test_two_rotations_at_once(db):
    age_slots(db, "2 hours")
    with session(db) as one:
        assert run(one, "SELECT inbox.rotate('2 hours')") == [(1,)]
        assert db.one("SELECT inbox.rotate('2 hours')") == 0
        one.commit()
    assert slots(db) == [(1, True), (2, False)]


def test_plans_survive_rotation_and_growth(db):
    """The plans of a connection are made while the slots are empty and used when they are full."""
    with contextlib.closing(db.connect()) as c:
        kept = []
        for i in range(8):
            batch = ids(500)
            remember(c, batch)
            kept += batch
            assert refused(remember, c, [batch[0]])[0] == "PRD01"
            assert look(c, [kept[0], *ids(1)]) == [1, 0]
            if i % 2:
                force(db)
        assert set(sort_out(c, kept)) == {1}
        run(c, "LOAD 'auto_explain'"), run(c, "SET auto_explain.log_min_duration = 0")
        run(c, "SET auto_explain.log_nested_statements = on"), run(c, "SET client_min_messages = log")
        del c.notices[:]
        remember(c, ids(10)), sort_out(c, ids(10)), look(c, ids(10))
        plans = "".join(c.notices)
        assert "Index" in plans and "Seq Scan on seen_" not in plans, plans


# ---------------------------------------------------------------- holding back

def park(db, offset, key="k", delay="1 hour", partition=0, lane_hash=77, key_bytes=None, payload=b"x", **more):
    raw = key_bytes if key_bytes is not None else key.encode() if key is not None else None
    row = {"class": "sqlstate", "code": "23505", "reason": "no", "attempts": 1, "group": G, **more}
    return db.one("SELECT inbox.park(%s, 't', %s, %s, %s, %s, %s, %s, %s, 'T', '{\"h\": \"v\"}', %s, "
                  "'2026-01-01', 5, %s, %s, %s, %s, %s)",
                  (row["group"], partition, offset, lane_hash, key, raw, f"id-{offset}", str(uuid.UUID(int=offset)),
                   payload, row["class"], row["code"], row["reason"], row["attempts"], delay))


def bury(db, offset, parked=None, dead_letter=None, key="k", group=G):
    return db.one("SELECT inbox.bury(%s, 't', 0, %s, 77, %s, %s, %s, %s, 'T', '{\"h\": \"v\", \"id\": \"x\"}', 'x', "
                  "'2026-01-01', 5, 'sqlstate', '23505', 'no', 3, %s, %s)",
                  (group, offset, key, key.encode(), f"id-{offset}", str(uuid.UUID(int=offset)), parked, dead_letter))


def due(db, lanes=((0, 1),), most=100, partition=0):
    return [e for e, in db.query("SELECT entry FROM inbox.parked_due(%s, %s, %s, %s, %s, %s)",
                                 (G, ["t"] * len(lanes), [partition] * len(lanes), [lane for lane, _ in lanes],
                                  [n for _, n in lanes], most))]


def behind(db, key=b"k"):
    return [e for e, in db.query("SELECT entry FROM inbox.parked_next(%s, 't', 0, %s)", (G, key))]


def test_a_key_waits_in_order(db):
    head, third, second = park(db, 1), park(db, 3, delay=None), park(db, 2, delay=None)
    other = park(db, 4, key="other", delay="-1 second")
    assert due(db) == [other]
    assert behind(db) == [head, second, third]
    assert db.query("SELECT entry FROM inbox.parked WHERE due_at IS NULL ORDER BY 1") == [(third,), (second,)]
    assert db.one("SELECT inbox.unpark(%s)", (head,)) == second
    assert due(db) == [other, second]
    assert db.one("SELECT inbox.unpark(%s)", (second,)) == third
    assert db.one("SELECT inbox.unpark(%s)", (third,)) is None
    assert behind(db) == []
    code, message, detail = refused(db.query, "SELECT inbox.unpark(%s)", (third,))
    assert code == "PRF01" and str(third) in message and detail


def test_many_of_a_key_leave_together(db):
    a, b, c, d = park(db, 1), *(park(db, n, delay=None) for n in (2, 3, 4))
    other = park(db, 9, key="other")
    gone = refused(db.query, "SELECT inbox.unpark(%s)", ([a, 99],))
    assert gone[0] == "PRF01" and behind(db) == [a, b, c, d]
    assert db.one("SELECT inbox.unpark(%s)", ([a, b, c],)) == d
    assert due(db) == [d] and behind(db, b"other") == [other]
    assert db.one("SELECT inbox.unpark(%s)", ([d],)) is None
    assert refused(db.query, "SELECT inbox.unpark(%s)", ([d],))[0] == "PRF01"


def test_parked_twice_is_parked_once(db):
    """Offsets restored from a backup bring records again whose keys still wait."""
    one = park(db, 1, delay="1 hour")
    assert park(db, 1, delay=None) == one and park(db, 1, delay="1 second") == one
    assert park(db, 1, group="other") != one
    assert db.one("SELECT count(*) FROM inbox.parked") == 2


def test_nothing_waits_behind_nothing(db):
    lost = park(db, 5, delay=None)
    assert due(db) == [lost]


def test_due_rows_belong_to_lanes(db):
    made = {h: park(db, i, key=f"k{i}", delay="-1 second", lane_hash=h) for i, h in enumerate((0, 1, 2, 3, -1, -2147483648))}
    assert due(db, [(0, 2)]) == [made[0], made[2], made[-2147483648]]
    assert due(db, [(1, 2)]) == [made[1], made[3], made[-1]]
    assert due(db, [(0, 4), (3, 4)]) == [made[0], made[3], made[-1], made[-2147483648]]
    assert due(db, [(0, 2), (1, 2)], most=2) == [made[0], made[1]]
    assert due(db, partition=1) == []
    park(db, 9, key="k3", delay=None, lane_hash=3)
    keys = db.query("SELECT topic, partition, convert_from(key_bytes, 'UTF8') FROM "
                    "inbox.parked_keys(%s, '{t}', '{0}', '{1}', '{2}') ORDER BY 3", (G,))
    assert keys == [("t", 0, "k1"), ("t", 0, "k3"), ("t", 0, "k4")]
    assert db.query("SELECT parked_events, parked_keys, parked_oldest = (SELECT min(parked_at) FROM inbox.parked) "
                    "FROM inbox.stats(%s)", (G,)) == [(7, 6, True)]


def test_keys_that_are_long_alike_binary_or_missing(db):
    long = b"\0\xff" * 700000
    a, b = park(db, 1, key=None, key_bytes=long + b"a"), park(db, 2, key=None, key_bytes=long + b"b")
    c = park(db, 3, key=None, key_bytes=long + b"a", delay=None)
    assert behind(db, long + b"a") == [a, c] and behind(db, long + b"b") == [b]
    assert db.one("SELECT inbox.unpark(%s)", (a,)) == c
    none = [park(db, 10, key=None), park(db, 11, key=None)]
    assert behind(db, None) == []
    assert db.one("SELECT inbox.unpark(%s)", (none[0],)) is None
    empty = park(db, 12, key=""), park(db, 13, key="", delay=None)
    assert behind(db, b"") == list(empty)
    assert db.one("SELECT count(*) FROM inbox.parked_keys(%s, '{t}', '{0}', '{0}', '{1}')", (G,)) == 3
    assert db.query("SELECT parked_events, parked_keys FROM inbox.stats(%s)", (G,)) == [(5, 4)]


def test_a_failed_try_is_noted(db):
    claim(db)
    one = park(db, 1)
    db.query("SELECT inbox.parked_request(%s, 't', 0, 'k', 'retry', 'ann')", (G,))
    assert due(db) == [one]
    db.query("SELECT inbox.parked_failed(%s, 'http', '503', 'busy', 4, '1 hour')", (one,))
    assert due(db) == []
    assert db.query("SELECT class, code, reason, attempts, request, due_at > now() + interval '59 minutes' FROM inbox.parked") == [
        ("http", "503", "busy", 4, None, True)]
    assert refused(db.query, "SELECT inbox.parked_failed(99, 'http', '503', '', 4, '1 hour')")[0] == "PRF01"


def test_burying_a_parked_head_frees_the_next(db):
    head, second = park(db, 1), park(db, 2, delay=None)
    dead = bury(db, 1, parked=head)
    assert due(db) == [second]
    row = db.query('SELECT "group", id, topic, partition, message_offset, key, type, payload, class, code, reason, attempts, '
                   "state, first_failed_at <= buried_at, retry_of FROM inbox.dead_letter WHERE entry = %s", (dead,))[0]
    assert [bytes(v) if isinstance(v, memoryview) else v for v in row] == [
        G, "id-1", "t", 0, 1, "k", "T", b"x", "sqlstate", "23505", "no", 3, "dead", True, None]
    assert refused(bury, db, 1, parked=head)[0] == "PRF01"
    assert db.one("SELECT count(*) FROM inbox.dead_letter") == 1


# ---------------------------------------------------------------- dead letters

def states(db):
    return dict(db.query("SELECT entry, state FROM inbox.dead_letter"))


def log(db, entry):
    return db.query("SELECT by, what, detail FROM inbox.dead_letter_log WHERE entry = %s ORDER BY act", (entry,))


def test_retry_that_goes_well(db):
    claim(db)
    a, b, c = (bury(db, n) for n in (1, 2, 3))
    assert db.one("SELECT inbox.dlq_retry(%s, NULL, 'ann')", ([a, b, 99],)) == 2
    assert db.one("SELECT inbox.dlq_retry(%s)", ([a],)) == 0, "only once"
    assert states(db) == {a: "retrying", b: "retrying", c: "dead"}
    assert db.one("SELECT request FROM inbox.consumer") == 1
    rows = db.query("SELECT entry, blocking, attempts, dead_letter, message_offset FROM inbox.parked ORDER BY entry")
    assert [r[1:] for r in rows] == [(False, 0, a, 1), (False, 0, b, 2)]
    assert due(db) == [r[0] for r in rows]
    assert behind(db) == [] and db.query("SELECT * FROM inbox.parked_keys(%s, '{t}', '{0}', '{0}', '{1}')", (G,)) == []
    with session(db) as lane:
        run(lane, "SELECT inbox.unpark(%s)", (rows[0][0],)), run(lane, "SELECT inbox.retried(%s)", (a,))
        lane.commit()
    assert states(db)[a] == "retried"
    assert [(who, what) for who, what, _ in log(db, a)] == [("ann", "retry"), (None, "retried")]
    assert log(db, a)[0][2] == {"before": {"state": "dead"}, "after": {"state": "retrying"}, "rate": None}
    assert refused(db.query, "SELECT inbox.retried(%s)", (a,))[0] == "PRF01"
    assert refused(db.query, "SELECT inbox.retried(%s)", (c,))[0] == "PRF01"
    assert db.query("SELECT retrying, dead_letters FROM inbox.stats(%s)", (G,)) == [(1, 1)]


def test_retry_that_fails_again(db):
    claim(db)
    a = bury(db, 1)
    db.query("SELECT inbox.dlq_retry(%s)", ([a],))
    again = bury(db, 1, parked=db.one("SELECT entry FROM inbox.parked"), dead_letter=a)
    assert states(db) == {a: "retried", again: "dead"}
    assert db.query("SELECT retry_of, first_failed_at = (SELECT first_failed_at FROM inbox.dead_letter WHERE entry = %s) "
                    "FROM inbox.dead_letter WHERE entry = %s", (a, again)) == [(a, True)]
    assert log(db, a)[-1][1:] == ("failed again", {"before": {"state": "retrying"},
                                                   "after": {"state": "retried", "dead_letter": again}})
    assert db.one("SELECT count(*) FROM inbox.parked") == 0
    assert db.one("SELECT inbox.dlq_retry(%s)", ([again],)) == 1
    assert refused(bury, db, 1, dead_letter=a)[0] == "PRF01"


def test_retry_at_a_rate(db):
    claim(db)
    made = [bury(db, n) for n in range(1, 6)]
    order = made[::-1]
    assert db.one("SELECT inbox.dlq_retry(%s, 0.5)", (order,)) == 5
    offsets = db.query("SELECT dead_letter, round(extract(epoch FROM due_at - min(due_at) OVER ())) FROM inbox.parked ORDER BY due_at")
    assert [(e, int(s)) for e, s in offsets] == list(zip(order, (0, 2, 4, 6, 8)))
    for rate in (0, -1):
        assert refused(db.query, "SELECT inbox.dlq_retry(%s, %s)", (made, rate))[0] == "22023"
    assert refused(db.query, "SELECT inbox.dlq_retry(NULL)")[0] == "22023"


def test_drop_and_note(db):
    a, b = bury(db, 1), bury(db, 2)
    assert db.one("SELECT inbox.dlq_note(%s, 'look', 'ann')", (a,)) is True
    assert db.one("SELECT inbox.dlq_note(99, 'look')") is False
    assert db.one("SELECT inbox.dlq_drop(%s, NULL, 'bob')", ([a, a, 99],)) == 1
    assert db.one("SELECT inbox.dlq_drop(%s, 'gone', 'bob')", ([a, b],)) == 1
    assert db.query("SELECT entry, state, note FROM inbox.dead_letter ORDER BY 1") == [(a, "dropped", "look"), (b, "dropped", "gone")]
    assert log(db, a) == [("ann", "note", {"before": {"note": None}, "after": {"note": "look"}}),
                          ("bob", "drop", {"before": {"state": "dead", "note": "look"},
                                           "after": {"state": "dropped", "note": "look"}})]
    assert db.one("SELECT inbox.dlq_retry(%s)", ([a],)) == 0


def test_edit_makes_another_message(db):
    a = bury(db, 1)
    b = db.one("SELECT inbox.dlq_edit(%s, '{\"n\": 2}', NULL, NULL, 'ann')", (a,))
    old, new = db.query("SELECT state, edited_from, edited_to, id, message_id, key, headers, convert_from(payload, 'UTF8'), payload_hash, "
                        "message_offset, first_failed_at FROM inbox.dead_letter ORDER BY entry")
    assert old[:3] == ("dropped", None, b) and old[7] == "x"
    assert new[:3] == ("dead", a, None) and new[3] == new[4] != old[4] and uuid.UUID(new[4]).version == 7
    assert new[5:10] == ("k", {"h": "v", "id": new[4]}, '{"n": 2}', None, 1) and new[10] == old[10]
    c = db.one("SELECT inbox.dlq_edit(%s, NULL, '{\"type\": \"U\"}', 'k2')", (b,))
    assert db.query("SELECT key, convert_from(key_bytes, 'UTF8'), type, headers - 'id', convert_from(payload, 'UTF8') "
                    "FROM inbox.dead_letter WHERE entry = %s", (c,)) == [("k2", "k2", "U", {"type": "U"}, '{"n": 2}')]
    assert [(who, what, d["from"], d["to"]) for who, what, d in log(db, b)] == [("ann", "edit", a, b), ("postgres", "edit", b, c)]
    assert log(db, a)[0][2]["before"]["key"] == "k" and log(db, a)[0][2]["after"]["payload_bytes"] == 8
    code, message, hint = refused(db.query, "SELECT inbox.dlq_edit(%s, 'x', NULL, NULL)", (a,))
    assert code == "55000" and "dropped" in message and hint
    assert refused(db.query, "SELECT inbox.dlq_edit(99, 'x', NULL, NULL)")[0] == "55000"
    assert refused(db.query, "SELECT inbox.dlq_edit(%s, 'x', '[1]', NULL)", (c,))[0] == "22023"


def test_edit_clears(db):
    """A tombstone, and no key: NULL says that it stays."""
    a = bury(db, 1)
    b = db.one("SELECT inbox.dlq_edit(%s, NULL, NULL, NULL, clear => '{payload}')", (a,))
    now = "SELECT key, convert_from(key_bytes, 'UTF8'), convert_from(payload, 'UTF8'), payload_hash FROM inbox.dead_letter WHERE entry = %s"
    assert db.query(now, (b,)) == [("k", "k", None, None)] and log(db, b)[0][2]["after"]["payload_bytes"] is None
    c = db.one("SELECT inbox.dlq_edit(%s, 'x', NULL, NULL, clear => '{key}')", (b,))
    assert db.query(now, (c,)) == [(None, None, "x", None)] and log(db, c)[0][2]["after"]["key"] is None
    d = db.one("SELECT inbox.dlq_edit(%s, NULL, NULL, NULL, 'ann', '{key,payload}')", (c,))
    assert db.query(now, (d,)) == [(None, None, None, None)]
    assert db.one("SELECT inbox.dlq_retry(%s)", ([d],)) == 1
    assert db.query("SELECT key_bytes, payload FROM inbox.parked") == [(None, None)]
    e = bury(db, 2)
    for args in ("'x', NULL, NULL, clear => '{payload}'", "NULL, NULL, 'k2', clear => '{key}'", "NULL, NULL, NULL, clear => '{id}'",
                 "NULL, NULL, NULL, clear => NULL"):
        assert refused(db.query, f"SELECT inbox.dlq_edit({e}, {args})")[0] == "22023", args
    assert states(db)[e] == "dead"


def test_what_became_of_a_retry_is_found_by_an_index(db):
    """The operator's tool asks ten times a second what became of its retries, among a million dead letters."""
    with open(os.path.join(servers.ROOT, "db/queries/cli_dlq_states.sql"), encoding="ascii") as f:
        sql = f.read().replace("$1", "%(entries)s").replace("$2", "%(after)s")
    db.query("INSERT INTO inbox.dead_letter (\"group\", topic, partition, message_offset, lane_hash, retry_of) "
             "SELECT 'g', 't', 0, n, 7, CASE WHEN n % 2 = 0 THEN n - 1 END FROM generate_series(1, 20000) AS n")
    db.query("ANALYZE inbox.dead_letter")
    with contextlib.closing(db.connect()) as c:
        args = {"entries": [5, 7], "after": 5}
        assert run(c, sql, args) == [(5, "dead", 6, None, None, None), (7, "dead", 8, None, None, None)]
        assert "dead_letter_retry_of" in str(run(c, "EXPLAIN " + sql, args))


def test_operators_at_the_same_time(db):
    claim(db)
    made = [bury(db, n) for n in range(200)]

    def act(sql):
        order = random.sample(made, 200)
        with contextlib.closing(db.connect()) as c:
            return run(c, sql, (order,))[0][0]
    calls = [Call(lambda s=s: act(s)) for s in ("SELECT inbox.dlq_retry(%s)", "SELECT inbox.dlq_drop(%s, 'n')") * 3]
    assert sum(c.result() for c in calls) == 200
    assert db.one("SELECT count(*) FROM inbox.parked") == list(states(db).values()).count("retrying")
    assert db.one("SELECT count(*) FROM inbox.dead_letter_log") == 200


def test_skipping_and_retrying_what_is_parked(db):
    claim(db)
    head, second = park(db, 1), park(db, 2, delay=None)
    ask = "SELECT inbox.parked_request(%s, 't', 0, %s, %s, 'ann')"
    assert db.one(ask, (G, "k", "retry")) == 1 and db.one(ask, (G, "other", "retry")) == 0
    assert due(db) == [head] and db.one("SELECT request FROM inbox.consumer") == 1
    assert refused(db.query, "SELECT inbox.skip(%s)", (head,))[0] == "PRF01", "nobody asked for that"
    assert db.one(ask, (G, "k", "skip")) == 1
    assert db.query("SELECT request, requested_by FROM inbox.parked ORDER BY entry") == [("skip", "ann"), (None, None)]
    dropped = db.one("SELECT inbox.skip(%s)", (head,))
    assert states(db) == {dropped: "dropped"} and due(db) == [second]
    assert log(db, dropped)[0][:2] == ("ann", "skip")
    for bad in ("burn", None):
        assert refused(db.query, ask, (G, "k", bad))[0] == "22023"
    for bad in ("burn", None):
        assert refused(db.query, "SELECT inbox.parked_request('{1}', %s)", (bad,))[0] == "22023"
    dead = bury(db, 9, key="d")
    db.query("SELECT inbox.dlq_retry(%s, 0.0001)", ([dead],))
    assert db.one(ask, (G, "d", "skip")) == 1
    assert db.one("SELECT inbox.skip(entry) FROM inbox.parked WHERE dead_letter = %s", (dead,)) == dead
    assert states(db)[dead] == "dropped"


def test_a_try_that_failed_is_told_from_one_under_way(db):
    """Each try is counted before it is made by the same function: only what comes of it is a failure."""
    claim(db)
    head = park(db, 1)
    at, fail = "SELECT failed_at FROM inbox.parked", "SELECT inbox.parked_failed(%s, 'http', '503', 'x', %s, '1 hour')"
    before = db.one("SELECT attempts FROM inbox.parked")
    db.query(fail, (head, before + 1))
    assert db.one(at) is None
    db.query(fail, (head, before + 1))
    first = db.one(at)
    assert first is not None
    db.query(fail, (head, before + 2))
    assert db.one(at) == first
    db.query(fail, (head, before + 2))
    assert db.one(at) > first


def test_tries_of_parked_messages_are_counted_before_they_are_made(db):
    claim(db)
    head = park(db, 1, delay="-1 second")
    begin = "SELECT inbox.parked_begun(%s, %s, '1 hour')"

    def row():
        return db.query("SELECT attempts, begun, batch, due_at > now() FROM inbox.parked WHERE entry = %s", (head,))[0]
    before = row()[0]
    db.query("SELECT inbox.parked_request(%s, 't', 0, 'k', 'retry')", (G,))
    for n in (1, 2):
        db.query(begin, (head, 1))
        assert row() == (before + n, n, 1, True)
    assert db.one("SELECT request FROM inbox.parked") is None
    db.query("SELECT inbox.parked_unbegun(%s)", (head,))
    assert row() == (before + 1, 1, 1, False)
    db.query(begin, (head, 20))
    assert row() == (before + 1, 1, 20, True), "others are tried with it: that counts for none of them"
    db.query(begin, (head, 20))
    assert row() == (before + 1, 2, 20, True)
    db.query("SELECT inbox.parked_failed(%s, 'http', '503', 'x', %s, '1 hour')", (head, before + 1))
    assert row()[:2] == (before + 1, 0)
    db.query("SELECT inbox.parked_unbegun(%s)", (head,))
    assert row()[:2] == (before + 1, 0)
    assert refused(db.query, begin, (99, 1))[0] == "PRF01"


def test_a_replay_counts_how_often_it_was_begun(db):
    claim(db, [("t", 0)])
    job = db.one("SELECT inbox.replay_new(%s, '{t}', '{0}', '{0}', '{9}')", (G,))
    begin = "SELECT inbox.replay_begun(%s, 't', 0, %s)"
    assert [db.one(begin, (job, n)) for n in (1, 1, -1, 1)] == [1, 2, 1, 2]
    assert db.one("SELECT inbox.replay_progress(%s, 't', 0, 0, 0, 0)", (job,)) == "running"
    assert db.one(begin, (job, 1)) == 3, "it has not got on"
    assert db.one("SELECT inbox.replay_progress(%s, 't', 0, 1, 1, 0)", (job,)) == "running"
    assert [db.one(begin, (job, n)) for n in (1, -1, -1)] == [1, 0, 0]
    assert db.one("SELECT inbox.replay_begun(%s, 'x', 0, 1)", (job,)) == 0
    db.one(begin, (job, 1)), db.one("SELECT inbox.replay_failed(%s, 'why')", (job,))
    assert db.one("SELECT inbox.replay_resume(%s)", (job,))
    assert db.one("SELECT begun FROM inbox.replay_part WHERE job = %s", (job,)) == 0


def test_publishing_to_the_topic_is_noted_once(db):
    a, b = bury(db, 1), bury(db, 2)
    assert db.one("SELECT inbox.dlq_published(%s)", ([a],)) == 1
    assert db.one("SELECT inbox.dlq_published(%s)", ([a, b],)) == 1


# ---------------------------------------------------------------- orders, replay, numbers

def test_pause_resume_request_lanes(db):
    for sql in ("SELECT inbox.pause(%s)", "SELECT inbox.resume(%s)", "SELECT inbox.request(%s)", "SELECT inbox.set_lanes(%s, 2)",
                "SELECT inbox.replay_new(%s, '{t}', '{0}', '{0}', '{1}')"):
        code, message, hint = refused(db.query, sql, (G,))
        assert code == "55000" and G in message and hint, sql
    claim(db)
    assert db.one("SELECT inbox.pause(%s, 'ann')", (G,)) is True and db.one("SELECT inbox.pause(%s, 'bob')", (G,)) is False
    assert db.query("SELECT paused_at IS NOT NULL, paused_by, request FROM inbox.consumer") == [(True, "ann", 2)]
    assert db.one("SELECT paused FROM inbox.overview") is True
    assert db.one("SELECT inbox.resume(%s, 'bob')", (G,)) is True and db.one("SELECT inbox.resume(%s)", (G,)) is False
    db.query("SELECT inbox.request(%s)", (G,)), db.query("SELECT inbox.set_lanes(%s, 8)", (G,))
    assert db.query("SELECT paused_at, request, lanes FROM inbox.consumer") == [(None, 6, 8)]
    assert refused(db.query, "SELECT inbox.set_lanes(%s, 0)", (G,))[0] == "23514"


def test_replay(db):
    claim(db)
    job = db.one("SELECT inbox.replay_new(%s, '{t,t}', '{0,1}', '{10,5}', '{20,5}', 'why', 'ann')", (G,))
    state = "SELECT state, made_by, changed_by, note FROM inbox.replay WHERE job = %s"
    assert db.query(state, (job,)) == [("running", "ann", "ann", "why")]
    move = "SELECT inbox.replay_progress(%s, 't', %s, %s, %s, %s)"
    assert db.one(move, (job, 0, 15, 2, 3)) == "running" and db.one(move, (job, 0, 12, 1, 0)) == "running"
    assert db.query("SELECT next_offset, handled, duplicates FROM inbox.replay_part ORDER BY partition") == [(15, 3, 3), (5, 0, 0)]
    assert db.one("SELECT inbox.replay_pause(%s, 'bob')", (job,)) is True and db.one("SELECT inbox.replay_pause(%s)", (job,)) is False
    assert db.one(move, (job, 0, 16, 0, 1)) == "paused"
    assert db.one("SELECT inbox.replay_failed(%s, 'x')", (job,)) is False
    assert db.one("SELECT inbox.replay_resume(%s, 'bob')", (job,)) is True and db.one("SELECT replays FROM inbox.stats(%s)", (G,)) == 1
    assert db.one("SELECT inbox.replay_failed(%s, 'records are gone')", (job,)) is True
    assert db.query(state, (job,)) == [("failed", "ann", "bob", "records are gone")]
    assert db.one("SELECT inbox.replay_resume(%s)", (job,)) is True
    assert db.one(move, (job, 0, 99, 0, 4)) == "done"
    assert db.query("SELECT next_offset FROM inbox.replay_part ORDER BY partition") == [(20,), (5,)]
    assert db.one("SELECT inbox.replay_cancel(%s)", (job,)) is False
    other = db.one("SELECT inbox.replay_new(%s, '{t}', '{0}', '{0}', '{9}')", (G,))
    assert db.one("SELECT inbox.replay_cancel(%s)", (other,)) is True and db.one(move, (other, 0, 9, 0, 0)) == "cancelled"
    assert db.one("SELECT inbox.replay_cancel(99)") is False
    empty = db.one("SELECT inbox.replay_new(%s, '{t}', '{0}', '{4}', '{4}')", (G,))
    assert db.query(state, (empty,))[0][0] == "done"
    assert refused(db.query, move, (other, 7, 1, 0, 0))[0] == "22023"


def test_replays_that_make_no_sense(db):
    claim(db)
    for args in (([], [], [], []), (None, [0], [0], [1]), (["t"], [0, 1], [0], [1]), (["t"], [0], [5], [4]), (["t"], [0], [-1], [4]),
                 (["t"], [0], [None], [4]), (["t", "t"], [0, 0], [0, 1], [4, 4]), (["t"], [0], [0], None)):
        code = refused(db.query, "SELECT inbox.replay_new(%s, %s, %s, %s::bigint[], %s::bigint[])", (G, *args))[0]
        assert code == "22023", args
    assert db.query("SELECT * FROM inbox.replay") == []


def test_stats_of_a_group_that_never_ran(db):
    row = db.query("SELECT paused_at, request, lanes, partitions, parked_events, parked_keys, parked_oldest, retrying, dead_letters, "
                   "replays, remembered_since = '-infinity' FROM inbox.stats('nobody')")
    assert row == [(None, 0, None, 0, 0, 0, None, 0, 0, 0, True)]
    assert db.query("SELECT * FROM inbox.overview") == []


# ---------------------------------------------------------------- who may do what

TABLES = ("position", "attempt", "consumer", "seen", "slot", "parked", "dead_letter", "dead_letter_log", "replay", "replay_part")


def test_consumer_role_does_its_work_and_nothing_else(db):
    db.psql("CREATE TABLE business (i int)")
    with login(db, "inbox_consumer") as c:
        claim(c)
        run(c, "SELECT inbox.attempt(%s, '{t}', '{0}', '{0}', '{1}', '{1}', '{1}')", (G,))
        one = ids(2)
        remember(c, one[:1]), sort_out(c, one), look(c, one), advance(c, ("t", 0, 0, 1, -1, 4))
        run(c, "SELECT inbox.keep(%s, '1 hour')", (G,)), age_slots(db, "3 hours")
        assert run(c, "SELECT inbox.rotate('1 hour')") == [(1,)]
        remember(c, ids(1))
        args = "'seat', 't', 0, %s, 7, 'k', 'k', 'i', NULL, 'T', '{}', 'x', now(), 1, 'http', '500', 'r', 1"
        parked = run(c, f"SELECT inbox.park({args % 1}, '0')")[0][0]
        assert len(run(c, "SELECT * FROM inbox.parked_due('seat', '{t}', '{0}', '{0}', '{1}', 5)")) == 1
        run(c, "SELECT * FROM inbox.parked_next('seat', 't', 0, 'k')")
        run(c, "SELECT * FROM inbox.parked_keys('seat', '{t}', '{0}', '{0}', '{1}')")
        run(c, "SELECT inbox.parked_begun(%s, 1, '0')", (parked,)), run(c, "SELECT inbox.parked_unbegun(%s)", (parked,))
        run(c, "SELECT inbox.parked_failed(%s, 'http', '500', 'r', 2, '0')", (parked,))
        dead = run(c, f"SELECT inbox.bury({args % 1}, %s, NULL)", (parked,))[0][0]
        run(c, "SELECT inbox.dlq_published(%s)", ([dead],)), run(c, "SELECT * FROM inbox.stats('seat')")
        db.query("SELECT inbox.dlq_retry(%s)", ([dead],))
        run(c, "SELECT inbox.unpark(ARRAY[entry]) FROM inbox.parked"), run(c, "SELECT inbox.retried(%s)", (dead,))
        run(c, "SELECT inbox.replay_begun(1, 't', 0, 1)")
        for table in (*TABLES, "overview"):
            run(c, f"SELECT * FROM inbox.{table}")
        run(c, "SELECT * FROM outbox.schema_version")
        assert run(c, "SELECT (ROW(NULL, 't', 0, 1, 'k', 'T', NULL, NULL, NULL, now())::inbox.message).topic") == [("t",)]
        for forbidden in (
            *(f"DELETE FROM inbox.{t}" for t in TABLES), *(f"TRUNCATE inbox.{t}" for t in TABLES),
            "UPDATE inbox.position SET next_offset = 0", "INSERT INTO inbox.slot VALUES (9)", "DROP TABLE inbox.seen_1",
            "INSERT INTO inbox.seen VALUES ('g', gen_random_uuid(), 1, 1)", "UPDATE inbox.consumer SET paused_at = NULL",
            "SELECT inbox.pause('seat')", "SELECT inbox.dlq_drop('{1}', 'n')", "SELECT inbox.dlq_retry('{1}')",
            "SELECT inbox.replay_new('seat', '{t}', '{0}', '{0}', '{1}')", "SELECT inbox.request('seat')",
            "SELECT inbox.parked_request('seat', 't', 0, 'k', 'skip')", "SELECT inbox.parked_request('{1}', 'skip')", "SELECT inbox.gone('x', 1)",
            "SELECT inbox.replay_change(1, '{running}', 'done', 'x')", "SELECT * FROM outbox.event",
            "SELECT outbox.publish('a', 'b', 'c', '{}')", "SELECT * FROM business", "CREATE TABLE inbox.mine (i int)",
        ):
            assert refused(run, c, forbidden)[0] == "42501", forbidden


def test_operator_role_asks_and_decides(db):
    claim(db), bury(db, 1), bury(db, 2), bury(db, 3), park(db, 4)
    with login(db, "inbox_operator") as c:
        for table in (*TABLES, "overview"):
            run(c, f"SELECT * FROM inbox.{table}")
        for sql in ("SELECT inbox.pause('seat')", "SELECT inbox.resume('seat')", "SELECT inbox.request('seat')",
                    "SELECT inbox.set_lanes('seat', NULL)", "SELECT inbox.parked_request('seat', 't', 0, 'k', 'retry')",
                    "SELECT inbox.parked_request('{1,2}', 'retry')",
                    "SELECT inbox.dlq_edit(1, 'y', NULL, NULL)", "SELECT inbox.dlq_retry('{2}', 5)", "SELECT inbox.dlq_drop('{3}', 'n')",
                    "SELECT inbox.dlq_note(1, 'n')", "SELECT inbox.replay_new('seat', '{t}', '{0}', '{0}', '{9}')",
                    "SELECT inbox.replay_pause(1)", "SELECT inbox.replay_resume(1)", "SELECT inbox.replay_cancel(1)",
                    "SELECT * FROM inbox.stats('seat')"):
            run(c, sql)
        me = c.info.user
        assert db.query("SELECT DISTINCT by FROM inbox.dead_letter_log") == [(me,)]
        for forbidden in (*(f"DELETE FROM inbox.{t}" for t in TABLES), "UPDATE inbox.dead_letter_log SET by = 'x'",
                          "SELECT * FROM inbox.claim('seat', '{t}', '{0}', 1)", "SELECT inbox.rotate('0')",
                          "SELECT inbox.remember('seat', '{}', '{}')", "SELECT inbox.unpark(1)", "SELECT inbox.skip(1)",
                          "SELECT inbox.advance('seat', '{t}', '{0}', '{0}', '{1}', '{-1}', '{5}')"):
            assert refused(run, c, forbidden)[0] == "42501", forbidden


def test_public_has_nothing(db):
    with login(db) as c:
        for forbidden in ("SELECT * FROM inbox.seen", "SELECT inbox.rotate('0')", "SELECT * FROM inbox.overview"):
            assert refused(run, c, forbidden)[0] == "42501", forbidden
    functions = "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'inbox'::regnamespace AND "
    assert db.query(functions + "has_function_privilege('public', p.oid, 'EXECUTE')") == []
    assert db.query(functions + "p.prosecdef AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))") == []


# ---------------------------------------------------------------- install and upgrade

def test_init_again_changes_nothing(db, cli):
    look_at = ("SELECT string_agg(c.oid::text || c.relname, ',' ORDER BY c.oid) FROM pg_class AS c "
               "WHERE c.relnamespace = 'inbox'::regnamespace")
    remember(db, ids(1)), rotate(db)
    before = db.one(look_at)
    cli("init", "--conninfo", db.conninfo, check=True)
    assert db.one(look_at) == before
    assert db.query("SELECT number, name FROM outbox.schema_version ORDER BY 1")[:2] == [(1, "0001_outbox"), (2, "0002_inbox")]


def first_only(cli):
    """What init --print writes for migration 1."""
    sql = cli("init", "--print", check=True).stdout
    cut = sql.index("\nDO $postrider_2$")
    return sql[:cut]


def test_upgrade_under_live_writers(empty_db, cli):
    """A database of the release before, with services writing: no insert fails, none waits for the migration (lock_timeout: how long
    an insert takes besides is the disk's)."""
    empty_db.psql("BEGIN;\n" + first_only(cli) + "\nCOMMIT;")
    assert empty_db.query("SELECT number FROM outbox.schema_version") == [(1,)]
    assert empty_db.one("SELECT to_regnamespace('inbox') IS NULL")
    stop, written = threading.Event(), [0, 0, 0]

    def service(i):
        with contextlib.closing(empty_db.connect()) as c:
            run(c, "SET lock_timeout = '1s'")
            while not stop.is_set():
                run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
                written[i] += 1
    services = [Call(lambda i=i: service(i)) for i in range(3)]
    wait_until(lambda: min(written) > 50, 60, "the services to write")
    with session(empty_db) as holder: # a long report on the outbox does not hold it up either
        run(holder, "SELECT count(*) FROM outbox.event")
        done = json.loads(cli("init", "--conninfo", empty_db.conninfo, "--json", check=True).stdout)
    at_end = list(written)
    wait_until(lambda: all(n > m for n, m in zip(written, at_end)), 60, "the services to go on")
    stop.set()
    for s in services:
        s.result()
    assert done["migrations"] == done["schema_version"] - 1 >= 1
    assert empty_db.one("SELECT count(*) FROM outbox.event") == sum(written)
    claim(empty_db)
