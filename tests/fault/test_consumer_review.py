"""tests/fault/test_consumer_review.py -- schedules that a reading of the consumer found: what is counted as a crash or
as a try, a breaker that nobody probes, undos and words that the database refuses, operators who are faster than a
handler. Each story is the interleaving."""
import contextlib
import json
import signal
import time

import pytest
from inbox import ROW, SET, exec_handler, inbox  # noqa: F401
from test_consumer_poison import request
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)

FAST = {"backoff": "50ms", "backoff_max": "100ms"}


def tries(i):
    return i.one("SELECT last_value FROM app.tries")


def wait_tries(i, n, timeout=60):
    wait_until(lambda: tries(i) >= n, timeout, f"{n} tries")


# ---------------------------------------------------------------- what is a crash, what is a try

@pytest.mark.parametrize("policy", ["breaker", "retry"])
def test_a_try_that_ended_is_no_crash(inbox, policy):  # noqa: F811
    """Story: the handler fails again and again, and each time says so. Then the consumer is restarted in peace. Nothing
    ever took the process along, so the event is tried again and not parked as one that does."""
    i = inbox(partitions=1)
    i.poison("k0", "53100")
    c = i.consumer(config={"errors": [{"match": "sqlstate:53100", "policy": policy, "attempts": 1000, **FAST}]})
    i.send(1, keys=1)
    for n in range(5):
        c.start()
        wait_tries(i, 8 * (n + 1))
        assert i.parked() == [], f"parked at start {n}"
        assert c.terminate() == 0  # a kill in the middle of a try would be counted
    i.cure()
    c.start()
    i.check()


def test_a_crash_after_failures_is_still_counted(inbox):  # noqa: F811
    """Story: the event fails some times, then kills the process at every try. Failures before do not hide that."""
    i = inbox(partitions=1)
    i.poison("k0", "53100")
    c = i.consumer(config={"errors": [{"match": "sqlstate:53100", "policy": "retry", "attempts": 1000, **FAST}],
                           "limits": {"crashes": 2}})
    i.send(1, keys=1)
    c.start()
    wait_tries(i, 5)
    with contextlib.closing(i.db.connect()) as holder, holder.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(4711)")  # held before any try asks for it, and until the last
        i.db.query("UPDATE app.poison SET how = 'wait'")
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
        for _ in range(2):
            wait_until(lambda: i.one(waiting), 60, "the handler to be at it")
            c.kill9()
            i.one("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
                  " AND application_name LIKE %s", (f"%{i.group} lane%",))
            wait_until(lambda: not i.one(waiting), 30, "its session to be gone")
            c.start()
        i.wait_parked(1)
    assert i.parked("class") == [("crash",)]


def test_a_dead_downstream_uses_no_tries_up(inbox):  # noqa: F811
    """Story: what is behind the handler is down, and the probe fails a dozen times. When it is back, the event fails
    of something else, which may be tried three times: it has all three."""
    i = inbox(partitions=1)
    i.poison("k0", "53100")
    i.consumer(config={"errors": [{"match": "sqlstate:53100", "policy": "breaker", **FAST},
                                  {"match": "sqlstate:P0001", "policy": "retry", "attempts": 3, **FAST}]}).start()
    i.send(1, keys=1)
    wait_tries(i, 8)
    i.db.query("UPDATE app.poison SET how = 'P0001'")
    (dead,) = i.wait_dead(1)
    assert dead[2] == "P0001" and dead[4] == 3


# ---------------------------------------------------------------- the breaker

def test_a_parked_event_may_be_the_probe(inbox):  # noqa: F811
    """Story: the only thing left to do is a parked event, and its next try finds the downstream dead. Nothing new comes
    in. Once the downstream is back the breaker closes all the same."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001")
    c = i.consumer(config={"errors": [{"match": "sqlstate:53100", "policy": "breaker", **FAST},
                                      {"match": "sqlstate:P0001", "policy": "park", "attempts": 0, **FAST}]}).start()
    i.send(2, keys=1)
    i.wait_parked(2)
    i.db.query("UPDATE app.poison SET how = '53100'")
    i.wait_state(c, "error")
    i.cure()
    i.check()
    assert i.parked() == []
    i.wait_state(c, "ok")


def test_only_the_handler_closes_the_breaker(inbox):  # noqa: F811
    """Story: the downstream is dead; events that no handler sees go on coming in other lanes. They are stepped over, and
    that says nothing about the downstream: it is asked less and less often."""
    i = inbox(partitions=1)
    i.poison("k0", "53100")
    c = i.consumer(config={"lanes": 4, "filter": {"types": ["Moved"]}, "errors": [
        {"match": "sqlstate:53100", "policy": "breaker", "backoff": "100ms", "backoff_max": "60s"}]}).start().wait_ready()
    i.send(1, keys=1)
    wait_tries(i, 1)

    def failures():
        for k in range(20):
            i.put(f"x{k}", "{}", [("type", "Other")])
        i.flush()
        return json.loads(c.get("/status.json")[1])["breaker"]["failures"] >= 5
    wait_until(failures, 30, "the fifth probe to fail")
    i.cure()
    i.wait_count(1, 60)  # the next probe may be a while off
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- what the database refuses

@pytest.mark.parametrize("more", [{}, {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 2, **FAST}]}],
                         ids=["at once", "parked"])
def test_an_undo_that_fails(inbox, more):  # noqa: F811
    """Story: an event is to be buried, and its undo fails, every time. It is parked, and says why; the lane does not
    turn in circles, the other keys go on. When the undo works the event is buried."""
    i = inbox(partitions=1)
    i.db.psql("CREATE TABLE app.closed ();"
              "CREATE FUNCTION app.undo(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('app.tries');"
              " IF to_regclass('app.closed') IS NOT NULL THEN RAISE 'no way back'; END IF; END $$;")
    i.poison("k1", "P0001", seq=1)
    i.send(40, keys=4)
    i.consumer({**ROW, "undo_function": "app.undo"}, more).start()
    i.check(without=i.keys["k1"])
    assert len(i.parked()) == 10
    wait_until(lambda: i.parked("reason")[0][0].startswith("its undo failed: no way back"), 60, "the reason")
    assert tries(i) < 20
    i.db.psql("DROP TABLE app.closed")
    request(i, "k1")
    i.check(without=i.keys["k1"][:1])
    assert i.dead("id, state") == [(i.keys["k1"][0], "dead")]
    assert i.parked() == []


@pytest.mark.parametrize("pad", ["", "x", "xx"])
def test_long_words_of_many_bytes_are_cut_between_two(inbox, pad):  # noqa: F811
    """Story: the handler's error is longer than we keep, and none of it is ASCII. Cut in the middle of a character
    it would be no text, and its dead letter could never be written."""
    i = inbox(partitions=1)
    i.db.psql("CREATE FUNCTION app.long(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
              f" IF m.payload ->> 'seq' = '1' THEN RAISE '%', '{pad}' || repeat('좌', 1000); END IF;"
              " PERFORM app.on_event(m); END $$;")
    i.send(2, keys=1)
    i.consumer({"kind": "sql", "function": "app.long"}).start()
    (dead,) = i.wait_dead(1)
    assert dead[3].startswith(pad + "좌좌")
    i.check(without=[dead[0]])


def test_what_is_no_text_is_published_all_the_same(inbox):  # noqa: F811
    """Story: an event whose key and type are no UTF-8 fails, and the group publishes what failed: the bytes must not
    hold the lane up for ever."""
    i = inbox(partitions=1)
    i.db.psql("CREATE FUNCTION app.undo(m inbox.message) RETURNS void LANGUAGE sql AS 'SELECT';"
              "CREATE FUNCTION app.never(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;")
    i.put(b"\xff\x00key", "{}", [("id", "0c4d1d1e-7a39-4f0b-8d2e-5f0a0a0a0a01"), ("type", b"\xfe\xff")])
    i.flush()
    i.consumer({"kind": "sql", "function": "app.never", "undo_function": "app.undo"}).start()
    i.wait_dead(1)
    assert i.one("SELECT count(*) FROM outbox.event WHERE type LIKE '%%Failed'") == 1


def test_many_dead_letters_of_one_answer(inbox, tmp_path):  # noqa: F811
    """Story: a batch of a handler outside, and twenty of it are to be buried, each with what was published of it."""
    i = inbox(partitions=1)
    for n in range(20):
        (tmp_path / f"bad{n}").write_text("no")
        i.event(f"bad{n}")
    i.flush()
    i.consumer(exec_handler(str(tmp_path), concurrency=50, undo_event="SeatReleased"), {"limits": {"batch_events": 100}}).start()
    i.wait_dead(20)
    i.stands()


def test_a_handler_may_say_that_a_feature_is_missing(inbox):  # noqa: F811
    """Story: the function raises feature_not_supported, which is also what Postgres says of a stale plan. It is the
    function's word: the session lives on, and no crash is made of it."""
    i = inbox(partitions=1)
    i.poison("k0", "0A000", seq=1)
    i.send(2, keys=1)
    i.consumer().start()
    (dead,) = i.wait_dead(1)
    assert dead[1:3] == ("sqlstate", "0A000") and dead[4] == 1
    i.check(without=[dead[0]])


@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_a_deferred_trigger_that_calls_what_is_not_there(inbox, handler):  # noqa: F811
    """Story: a constraint trigger runs when the batch commits, and for one event it calls a function that no deployment
    ever made. That is a failure of this event like any other: it is found, the rule for it holds, the others commit."""
    i = inbox()
    i.db.psql("CREATE FUNCTION app.late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
              " IF NEW.key = 'k3' AND NEW.seq = 2 THEN PERFORM app.nowhere(); END IF; RETURN NULL; END $$;"
              "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.effect DEFERRABLE INITIALLY DEFERRED"
              " FOR EACH ROW EXECUTE FUNCTION app.late()")
    i.send(100, keys=10)
    i.consumer(handler, {"errors": [{"match": "sqlstate:42883", "policy": "dead_letter"}]}).start()
    (dead,) = i.wait_dead(1)
    assert dead[:3] == (i.keys["k3"][1], "sqlstate", "42883") and "app.nowhere" in dead[3]
    i.check(without=[dead[0]])


def test_the_undo_event_of_what_is_no_json(inbox):  # noqa: F811
    """Story: an event whose payload is no JSON fails for good, and another one that has none. What undoes them is
    published too, with the same bytes."""
    i = inbox(partitions=1)
    i.db.psql("CREATE FUNCTION app.never(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;")
    for n, payload in enumerate((b"\xff\x00\xfe", None, b'{"seat": 1}', b'"\\u0000"')):
        i.put(f"k{n}", payload, [("id", f"0c4d1d1e-7a39-4f0b-8d2e-5f0a0a0a0a0{n}"), ("type", "Held")])
    i.flush()
    i.consumer({"kind": "sql", "function": "app.never", "undo_event": "SeatReleased"}).start()
    i.wait_dead(4)
    assert i.db.query("SELECT aggregateid, payload::text, convert_from(encode(payload_bytes, 'hex')::bytea, 'UTF8')"
                      " FROM outbox.event WHERE type = 'SeatReleased' ORDER BY 1") == [
        ("k0", None, "ff00fe"), ("k1", None, None), ("k2", '{"seat": 1}', None), ("k3", None, b'"\\u0000"'.hex())]


# ---------------------------------------------------------------- parked keys

def test_what_waits_behind_a_key_goes_many_at_a_time(inbox):  # noqa: F811
    """Story: a busy key was parked for an hour. When it is released, thousands are behind it and more come in: one
    transaction for each would never catch up."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.consumer(SET, {"lanes": 1, "limits": {"batch_events": 100}, "errors": [
        {"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    i.send(2000, keys=1)
    i.wait_parked(2000)
    i.cure()
    with i.stream(rate=1000, keys=5):
        request(i, "k0")
        wait_until(lambda: not i.parked(), 60, "the key to catch up")
    i.check(timeout=60)
    assert i.one("SELECT count(DISTINCT xmin::text) FROM app.effect WHERE key = 'k0' AND seq <= 2000") < 100


def test_one_behind_a_parked_key_fails(inbox):  # noqa: F811
    """Story: of those that wait behind a key some fail, each in its own way. They are found among the others; what is
    before them is applied, the order holds."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.poison("k0", "P0002", seq=30)
    i.poison("k0", "P0003", seq=60)
    i.consumer(SET, {"lanes": 1, "errors": [
        {"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"},
        {"match": "sqlstate:P0003", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    i.event("k0")
    i.flush()
    i.wait_parked(1)
    i.send(98, keys=1)
    i.put("k0", json.dumps({"seq": 100}), [("type", "Moved")])
    i.send(20, keys=1)
    i.wait_parked(120)
    i.db.query("DELETE FROM app.poison WHERE seq = 1")
    request(i, "k0")
    (dead,) = i.wait_dead(1)
    assert dead[0] == i.keys["k0"][29] and dead[4] == 1
    i.wait_parked(61)
    i.check(without=i.keys["k0"][29:30] + i.keys["k0"][59:], more=True)
    i.cure()
    request(i, "k0")
    dead = i.wait_dead(2)
    assert dead[1][1:3] == ("decode", "id")
    i.check(without=i.keys["k0"][29:30])
    i.wait_parked(0)

def test_records_without_id_behind_a_parked_key(inbox):  # noqa: F811
    """Story: a key is parked, and records without an id wait behind it. When their turn comes each is a dead letter,
    as it would have been: they do not all have one and the same id, of which the first is handled and the others are
    taken for it."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.event("k0")
    i.flush()
    c = i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    i.wait_parked(1)
    for n in range(3):
        i.put("k0", json.dumps({"seq": 100 + n}), [("type", "Moved")])
    i.flush()
    i.wait_parked(4)
    i.cure()
    request(i, "k0")
    dead = i.wait_dead(3)
    assert [d[1:3] for d in dead] == [("decode", "id")] * 3
    i.check()
    i.wait_parked(0)
    i.wait_state(c, "ok")


@pytest.mark.parametrize("when", ["before it begins", "while it runs"])
def test_a_skip_during_a_try_is_not_lost(inbox, when):  # noqa: F811
    """Story: an operator wants a parked event skipped, at the moment when a try of it is under way (or has been chosen
    and waits for another key's). The try fails. The event is skipped then, and not put off for an hour."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.poison("k1", "P0001", seq=1)
    i.send(4, keys=2)
    i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    i.wait_parked(4)
    i.db.query("UPDATE app.poison SET how = 'sleep 2'")
    i.poison("k0", "P0001", seq=1)
    i.poison("k1", "P0001", seq=1)
    # Both are due at once; the one of k0 goes first.
    i.db.query("UPDATE inbox.parked SET due_at = now() - interval '1 s' * (2 - message_offset) WHERE due_at IS NOT NULL")
    wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name LIKE %s",
                             (f"%{i.group} lane%",)), 30, "the try to be under way")
    skipped = "k0" if when == "while it runs" else "k1"
    assert request(i, skipped, "skip") == 1
    wait_until(lambda: i.dead("key, state") == [(skipped, "dropped")], 60, "the skip")
    i.wait_count(1, where=f"key = '{skipped}'")


def test_skipped_keys_make_room(inbox):  # noqa: F811
    """Story: as many keys are parked as may be, and one more wants to. An operator skips the parked one: nothing is in
    anybody's way any more, and the consumer says so."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.poison("k1", "P0001", seq=1)
    i.send(2, keys=2)
    c = i.consumer(config={"lanes": 1, "limits": {"parked_keys": 1}, "errors": [
        {"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    i.wait_parked(1)
    i.wait_state(c, "error")
    i.db.query("DELETE FROM app.poison WHERE key = 'k1'")
    i.wait_count(1)
    request(i, "k0", "skip")
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- health

def test_a_member_that_waits_for_the_group_is_not_green(inbox):  # noqa: F811
    """Story: a rebalance has begun, and another member does not answer. Until Kafka gives up on it nobody reads
    anything, and nobody says that all is well because it has no partitions."""
    i = inbox(partitions=2)
    # So long that a third one has come before the group gives up on the second, however slowly it starts.
    patient = {"kafka": {"properties": ["session.timeout.ms=20000"]}}
    a, b = (i.consumer(config=patient).start().wait_ready() for _ in range(2))
    wait_until(lambda: json.loads(a.get("/status.json")[1])["assigned_partitions"] == 1, 60, "one each")
    b.signal(signal.SIGSTOP)
    try:
        i.member().start()
        wait_until(lambda: json.loads(a.get("/status.json")[1])["assigned_partitions"] == 0, 60, "the rebalance")
        states = []

        def gone_on():
            status = json.loads(a.get("/status.json")[1])
            states.append((status["assigned_partitions"], i.state(a)))
            return states[-1][0] > 0
        wait_until(gone_on, 120, "the rebalance to end")
        assert not [s for s in states[:-2] if s == (0, "ok")], states
    finally:
        b.signal(signal.SIGCONT)


# ---------------------------------------------------------------- bounds

def test_large_parked_events_are_fetched_a_few_at_a_time(inbox):  # noqa: F811
    """Story: an outage parked eighty keys with a megabyte each, and all are released at once."""
    i = inbox(partitions=1)
    for n in range(80):
        i.poison(f"k{n}", "P0001")
    c = i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start()
    for n in range(80):
        i.event(f"k{n}", {"pad": "x" * 950_000})
    i.flush()
    i.wait_parked(80, 60)
    i.cure()
    i.db.query("UPDATE inbox.parked SET due_at = now()")
    i.db.query("SELECT inbox.request(%s)", (i.group,))
    i.check(timeout=60)
    i.wait_parked(0)
    assert c.peak_rss_kb() < 96 << 10


# ---------------------------------------------------------------- deployments

def test_a_function_that_is_away_for_a_moment(inbox):  # noqa: F811
    """Story: the connections break while a deployment exchanges the function. What was right at the start is not there
    now: that is said and waited for. Only at the start it is a mistake in the config."""
    i = inbox(partitions=1)
    c = i.consumer().start()
    i.send(10)
    i.check()
    i.db.psql("ALTER FUNCTION app.on_event RENAME TO old_event")
    i.one("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE %s", (f"%{i.group} lane%",))
    wait_until(lambda: (a := json.loads(c.get("/readyz")[1]))["state"] == "error" and "app.on_event" in a["sentence"], 60, "word of it")
    i.send(10)
    i.db.psql("ALTER FUNCTION app.old_event RENAME TO on_event")
    i.check()
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- what others may hide

def test_a_lane_that_goes_on_does_not_hide_one_that_stands(inbox):  # noqa: F811
    """Story: one lane cannot write its dead letter, again and again, and the other lane commits batch after batch. That
    the database answers the other one is no reason to be green."""
    i = inbox(partitions=1)
    i.db.psql("CREATE FUNCTION app.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room' USING ERRCODE = '53100'; END $$;"
              "CREATE TRIGGER t BEFORE INSERT ON inbox.dead_letter FOR EACH ROW EXECUTE FUNCTION app.full()")
    i.poison("k1", "P0001", seq=1)
    c = i.consumer().start().wait_ready()
    i.send(1, keys=1, prefix="k1-")
    with i.stream(rate=100, keys=4):
        i.wait_state(c, "error")
        stays(lambda: i.state(c) == "error", 3)
        i.db.psql("DROP TRIGGER t ON inbox.dead_letter")
        i.wait_state(c, "ok")
    i.check(without=i.keys["k1"][:1])


def test_records_from_the_future_grow_old_too(inbox):  # noqa: F811
    """Story: a producer's clock is half an hour ahead, and its event cannot be handled for a while. It waits since it
    came, whatever is written on it."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001")
    c = i.consumer(config={"lanes": 1, "errors": [{"match": "sqlstate:P0001", "policy": "retry", "attempts": 100000, **FAST}]})
    c.start().wait_ready()
    for n in range(3):
        i.event(f"k{2 - n}", timestamp=int((time.time() + 1800) * 1000))
        i.flush()
    wait_until(lambda: (json.loads(c.get("/readyz")[1])["lag_seconds"] or 0) > 2, 60, "some lag")
    i.cure()
    i.check()
    wait_until(lambda: json.loads(c.get("/readyz")[1])["lag_seconds"] == 0, 60, "no lag")
