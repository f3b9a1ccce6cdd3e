"""tests/fault/test_consumer_poison.py -- events that fail: they throw, crash the backend or the process, hang, or fail
at random; records without an id, or with somebody else's. Whatever they do, the others are applied once each, and
theirs once they can be."""
import json
import os
import signal
import uuid

import pytest
import servers
from inbox import ROW, SET, c_handler, exec_effects, exec_handler, inbox  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)

both = pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
PARK = {"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}


def request(i, key, what="retry"):
    """What an operator asks for; returns how many messages it is about."""
    return i.one("SELECT sum(inbox.parked_request(%s, %s, p, %s, %s)) FROM generate_series(0, %s) AS p",
                 (i.group, i.topic, key, what, i.partitions - 1))


# ---------------------------------------------------------------- it throws

@both
def test_throwing_poison_becomes_a_dead_letter(inbox, handler):  # noqa: F811
    """Story: one bad event in the middle of full batches. The batch is halved until the culprit is alone; the good
    ones of it are applied once, also those before and behind it of the same key."""
    i = inbox()
    i.send(300, keys=7)
    i.poison("k3", "P0001", seq=20)
    bad = i.keys["k3"][19]
    c = i.consumer(handler, {"limits": {"batch_events": 100}}).start()
    (dead,) = i.wait_dead(1)
    i.check(without=[bad])
    assert dead[:3] == (bad, "sqlstate", "P0001") and dead[5] == "dead"
    assert "poison" in dead[3]
    wait_until(lambda: c.metric("postrider_dlq_events") == 1, 30, "it to be counted")


@both
def test_dead_letters_are_retried_once(inbox, handler):  # noqa: F811
    """A dead letter that is tried again is applied once, however often somebody asks, and says so; one that fails
    again is another dead letter with a link."""
    i = inbox()
    i.send(60, keys=6)
    i.poison("k1", "P0001", seq=2)
    i.poison("k2", "22012", seq=2)
    bad = [i.keys["k1"][1], i.keys["k2"][1]]
    i.consumer(handler).start()
    i.wait_dead(2)
    i.check(without=bad)
    i.db.query("DELETE FROM app.poison WHERE key = 'k1'")
    entries = [r[0] for r in i.dead("entry")]
    assert i.one("SELECT inbox.dlq_retry(%s)", (entries,)) == 2
    assert i.one("SELECT inbox.dlq_retry(%s)", (entries,)) == 0, "it is under way"
    told = {(bad[0], "retried"), (bad[1], "retried"), (bad[1], "dead")}
    wait_until(lambda: {(r[0], r[1]) for r in i.dead("id, state")} == told, 60, "one to fail again, and both to be told")
    dead = i.dead("id, state, retry_of")
    assert dead[2][2] == [e for e, r in zip(entries, dead) if r[0] == bad[1]][0]
    i.wait_count(59)
    assert i.one("SELECT inbox.dlq_retry(%s)", (entries,)) == 0, "what was retried is not dead"
    i.cure()
    assert i.one("SELECT inbox.dlq_retry(%s)", ([i.dead("entry")[2][0]],)) == 1
    i.wait_count(60)
    i.stands()
    # The late ones are out of order, and that is what a dead letter means; nothing is there twice.
    assert sorted(r[0] for r in i.rows()) == sorted(i.sent)
    assert i.parked() == []


# ---------------------------------------------------------------- parking

@pytest.mark.asan
@both
def test_a_parked_key_keeps_its_order(inbox, handler):  # noqa: F811
    """Story: one event of a key fails; 60 later ones of the key wait behind it, through a kill -9 and through more
    of them; all others flow. After the release they are applied in order."""
    i = inbox()
    i.poison("k2", "P0001", seq=5)
    i.send(200, keys=10)
    c = i.consumer(handler, PARK).start()
    late = i.keys["k2"][4:]
    i.check(without=late, more=True)
    i.wait_parked(16)
    assert [r[3] for r in i.parked()] == ["P0001"] + [""] * 15
    i.wait_state(c, "warn")  # a parked key is not green
    c.kill9()
    i.send(200, keys=10)
    c.start()
    late = i.keys["k2"][4:]
    i.check(without=late, more=True)
    i.wait_parked(36)
    i.cure()
    assert request(i, "k2") == 1
    i.check()
    assert i.parked() == []
    i.wait_state(c, "ok")


def test_parked_key_under_load_fails_several_times(inbox):  # noqa: F811
    """The head is tried every moment and fails; what comes in meanwhile never passes it."""
    i = inbox()
    i.poison("k0", "P0001", seq=3)
    c = i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "50ms",
                                       "backoff_max": "100ms"}]}).start()
    with i.stream(rate=500, keys=5):
        wait_until(lambda: i.parked("attempts") and i.parked("attempts")[0][0] >= 4, 60, "four tries")
        c.kill9()
        c.start()
        i.flows(100)
        i.cure()
        i.flows(100)
    i.check()
    assert i.parked() == []


def test_skip_lets_the_rest_of_the_key_go(inbox):  # noqa: F811
    i = inbox()
    i.poison("k1", "P0001", seq=2)
    i.send(40, keys=4)
    i.consumer(config=PARK).start()
    i.wait_parked(9)
    assert request(i, "k1", "skip") == 1
    i.check(without=[i.keys["k1"][1]])
    assert i.dead("id, state") == [(i.keys["k1"][1], "dropped")]
    assert i.parked() == []


def test_attempts_of_a_parked_head_are_used_up(inbox):  # noqa: F811
    """Then it is a dead letter, and those behind it go on."""
    i = inbox()
    i.poison("k1", "P0001", seq=2)
    i.send(40, keys=4)
    i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 3, "backoff": "50ms"}]}).start()
    (dead,) = i.wait_dead(1)
    assert dead[0] == i.keys["k1"][1] and dead[4] == 3
    i.check(without=[dead[0]])


def test_two_poisons_of_one_key(inbox):  # noqa: F811
    """The second one is behind the first, and is parked in its turn."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=2)
    i.poison("k0", "P0001", seq=4)
    i.send(12, keys=2)
    i.consumer(config=PARK).start()
    i.check(without=i.keys["k0"][1:])
    i.db.query("DELETE FROM app.poison WHERE seq = 2")
    assert request(i, "k0") == 1
    i.wait_count(9)
    wait_until(lambda: i.parked("class")[0] == ("sqlstate",), 30, "the second to be parked for itself")
    stays(lambda: i.count() == 9, 0.5, "nothing to pass it")
    i.cure()
    assert request(i, "k0") == 1
    i.check()


def test_most_keys_that_may_be_parked(inbox):  # noqa: F811
    """Past limits.parked_keys reading stops and health is not green; when keys are free again it goes on by itself."""
    i = inbox()
    for n in range(8):
        i.poison(f"k{n}", "P0001")
    i.send(400, keys=20)
    c = i.consumer(config={**PARK, "limits": {"parked_keys": 3}}).start()
    answer = i.wait_state(c, "error")
    assert "parked" in json.dumps(answer)
    stays(lambda: i.state(c) == "error" and i.one("SELECT count(DISTINCT key) FROM inbox.parked") <= 4, 0.7,
          "three parked keys, and one more of the other lane at most")
    i.cure()
    for key, in i.db.query("SELECT DISTINCT key FROM inbox.parked"):
        request(i, key)
    i.check()
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- it takes something along

@both
def test_poison_that_kills_its_backend(inbox, handler):  # noqa: F811
    """Story: the handler ends its own session each time (a crash of an extension would). After three times alone
    with it the message is parked as a crash; until then and after it the others are applied once."""
    i = inbox()
    i.poison("k3", "kill", seq=4)
    i.send(200, keys=10)
    i.consumer(handler).start()
    i.check(without=i.keys["k3"][3:], more=True)
    i.wait_parked(17)
    assert i.parked()[0][2] == "crash"
    assert i.one("SELECT last_value FROM app.tries") <= 8, "with others, then alone, three times"
    i.cure()
    assert request(i, "k3") == 1
    i.check()


def test_poison_that_kills_the_process(inbox):  # noqa: F811
    """Story: a C handler dereferences nothing. Each start dies of the same message until it has been begun alone
    three times; then it is parked and the others go on. With two partitions in one lane, so that the message is
    never the first of the batch by accident."""
    i = inbox(partitions=2)
    i.poison("k3", "segv", seq=10)
    i.send(300, keys=10)
    c = i.consumer(c_handler(), {"lanes": 1})
    deaths = 0
    while deaths < 12:
        c.start()
        wait_until(lambda: not c.running() or i.parked(), 60, "a death or a parked message")
        if c.running():
            break
        assert c.wait() == -signal.SIGSEGV
        deaths += 1
    assert 3 <= deaths <= 6, f"{deaths} deaths\n{i.logs()}"
    i.check(without=i.keys["k3"][9:], more=True)
    assert i.parked()[0][2] == "crash"
    i.cure()
    assert request(i, "k3") == 1
    i.check()


@pytest.mark.parametrize("attempts, seq", [(2, 1), (0, 1), (0, 5)], ids=["tried twice", "for ever", "one behind it"])
def test_parked_poison_that_kills_the_process(inbox, attempts, seq):  # noqa: F811
    """Story: a key is parked for a harmless error, and then an event of it kills the process at each try: the one that
    failed before, be it tried for ever, or one that waited behind it and is taken in with others. Each try is counted
    before it is made, so these end too."""
    i = inbox(partitions=1)
    i.poison("k0", "P0001", seq=1)
    i.send(40, keys=4)
    c = i.consumer(ROW, {"lanes": 1, **PARK}).start()
    i.check(without=i.keys["k0"])
    c.kill9()
    i.db.query("UPDATE app.poison SET how = 'segv', seq = %s", (seq,))
    c = i.consumer(c_handler(), port=c.port, config={"lanes": 1, "errors": [
        {"match": "sqlstate:P0001", "policy": "park", "attempts": attempts, "backoff": "10ms", "backoff_max": "20ms"}]})
    request(i, "k0")
    deaths = 0
    while deaths < 12:
        c.start()
        wait_until(lambda: not c.running() or (i.parked() and i.parked()[0][2] == "crash"), 60, "a death, or the verdict")
        if c.running():
            break
        deaths += 1
    assert 3 <= deaths <= 6, f"{deaths} deaths\n{i.logs()}"
    assert [r[0] for r in i.parked("id")] == i.keys["k0"][seq - 1:]
    i.check(without=i.keys["k0"][seq - 1:], more=True)
    i.cure()
    assert request(i, "k0") == 1
    i.check()


def test_replayed_poison_that_kills_the_process(inbox):  # noqa: F811
    """Story: a filter stepped over all events of a topic. They are replayed without it, and one kills the process. No
    position moves of a replay, so each start reads it again: until it was begun alone three times. Then the job
    ends and says which record it was; once that is mended a resumed job goes on from there."""
    i = inbox(partitions=1)
    i.poison("k3", "segv", seq=4)
    i.send(100, keys=10)
    c = i.consumer(c_handler(), {"lanes": 1, "filter": {"types": ["Other"]}}).start()
    i.stands()
    assert c.terminate() == 0
    job = i.one("SELECT inbox.replay_new(%s, %s, '{0}', '{0}', '{100}')", (i.group, [i.topic]))

    def state():
        return i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,))
    c = i.consumer(c_handler(), {"lanes": 1}, port=c.port)
    deaths = 0
    while deaths < 12:
        c.start()
        wait_until(lambda: not c.running() or state() == "failed", 60, "a death, or the end of the job")
        if c.running():
            break
        deaths += 1
    assert 3 <= deaths <= 6, f"{deaths} deaths\n{i.logs()}"
    assert f"{i.topic}-0-33 was begun 3 times" in i.one("SELECT note FROM inbox.replay WHERE job = %s", (job,))
    i.wait_count(33)
    i.cure()
    assert i.one("SELECT inbox.replay_resume(%s)", (job,))
    wait_until(lambda: state() == "done", 60, "the job to end")
    i.check()


def test_restarts_during_a_replay_are_no_crashes(inbox):  # noqa: F811
    """Story: a replayed event waits for something, and the consumer is restarted in peace again and again. That is no
    sign that it takes the process along."""
    i = inbox(partitions=1)
    i.poison("k0", "53100", seq=1)
    i.send(1, keys=1)
    c = i.consumer(config={"lanes": 1, "filter": {"types": ["Other"]}}).start()
    i.stands()
    assert c.terminate() == 0
    job = i.one("SELECT inbox.replay_new(%s, %s, '{0}', '{0}', '{1}')", (i.group, [i.topic]))
    c = i.consumer(port=c.port, config={"lanes": 1, "limits": {"crashes": 1}, "errors": [
        {"match": "sqlstate:53100", "policy": "retry", "attempts": 100000, "backoff": "50ms", "backoff_max": "100ms"}]})
    for n in range(2):
        c.start()
        wait_until(lambda: i.one("SELECT last_value FROM app.tries") >= 2 * (n + 1), 60, "some tries")
        assert c.terminate(20) == 0, "its reader held the stop up"
    i.cure()
    c.start()
    wait_until(lambda: i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,)) == "done", 60, "the job to end")
    i.check()


def test_subprocess_that_dies(inbox):  # noqa: F811
    """An exec handler exits with status 3 of one key: class exit, tried as the rule says, then a dead letter; those of
    the other keys that it had been sent are not lost with it."""
    i = inbox()
    directory = servers.new_dir("effects")
    with open(os.path.join(directory, "k3"), "w", encoding="ascii") as f:
        f.write("die")
    i.send(36, keys=12)
    i.consumer(exec_handler(directory), {"errors": [{"match": "exit:3", "policy": "retry", "attempts": 2,
                                                    "backoff": "10ms"}]}).start()
    dead = i.wait_dead(3)
    assert {r[:3] for r in dead} == {(x, "exit", "3") for x in i.keys["k3"]} and {r[4] for r in dead} == {2}
    i.stands()
    effects = exec_effects(directory)
    assert {e[0] for e in effects} == {x for x, (k, _) in i.sent.items() if k != "k3"}


def test_subprocess_that_hangs(inbox):  # noqa: F811
    i = inbox()
    directory = servers.new_dir("effects")
    with open(os.path.join(directory, "k1"), "w", encoding="ascii") as f:
        f.write("hang")
    i.send(12, keys=6)
    i.consumer(exec_handler(directory, timeout="4s"), {  # the good ones wait for a start of it
        "errors": [{"match": "timeout", "policy": "dead_letter"}]}).start()
    dead = i.wait_dead(2)
    assert {r[:2] for r in dead} == {(x, "timeout") for x in i.keys["k1"]}
    i.stands()
    assert {e[0] for e in exec_effects(directory)} == {x for x, (k, _) in i.sent.items() if k != "k1"}


# ---------------------------------------------------------------- it hangs, or has bad luck

@both
def test_poison_that_hangs(inbox, handler):  # noqa: F811
    """The statement is cancelled at its deadline and counts as timeout; the session lives on."""
    i = inbox()
    i.poison("k3", "hang", seq=4)
    i.send(100, keys=10)
    c = i.consumer(dict(handler, timeout="500ms"), {
        "database": {"timeout": "2s"}, "limits": {"batch_events": 4},
        "errors": [{"match": "timeout", "policy": "retry", "attempts": 2, "backoff": "10ms"}]}).start()
    (dead,) = i.wait_dead(1)
    assert dead[:2] == (i.keys["k3"][3], "timeout") and dead[4] == 2
    i.check(without=[dead[0]])
    assert c.metric("postrider_pg_reconnects_total") == 0, "the session lived on"


@both
def test_handler_that_fails_at_random(inbox, handler):  # noqa: F811
    """Three of ten tries fail, of every key: each event is applied once, in order."""
    i = inbox()
    for n in range(10):
        i.poison(f"k{n}", "maybe P0002")
    i.send(300, keys=10)
    c = i.consumer(handler, {"errors": [{"match": "sqlstate:P0002", "policy": "retry", "attempts": 100, "backoff": "1ms",
                                         "backoff_max": "2ms"}]}).start()
    i.check(timeout=60)
    assert i.dead() == []
    assert c.metric("postrider_consumer_retries_total") > 10


@both
def test_breaker(inbox, handler):  # noqa: F811
    """Story: the database that the handler reaches is full. No event is buried for it: all stand, one probes, and when
    it is well again all go on."""
    i = inbox()
    for n in range(10):
        i.poison(f"k{n}", "53100")
    i.send(100, keys=10)
    c = i.consumer(handler, {"errors": [{"match": "sqlstate:53*", "policy": "breaker", "backoff": "50ms",
                                         "backoff_max": "200ms"}]}).start()
    i.wait_state(c, "error")
    wait_until(lambda: i.one("SELECT last_value FROM app.tries") > 4, 30, "probes")
    assert i.count() == 0 and i.dead() == [] and i.parked() == []
    i.cure()
    i.check()
    i.wait_state(c, "ok")
    assert i.dead() == [] and i.parked() == []


def test_rule_stop(inbox):  # noqa: F811
    """The consumer ends with status 1, and the event is still to be handled."""
    i = inbox()
    i.poison("k1", "P0001")
    i.send(20, keys=4)
    c = i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "stop"}]}).start()
    assert c.wait(60) == 1
    assert "poison" in c.log_text()
    i.cure()
    c.start()
    i.check()


def test_rule_ignore(inbox):  # noqa: F811
    """It counts as handled: nothing is kept of it, and it does not come again."""
    i = inbox()
    i.poison("k1", "P0001", seq=2)
    i.send(40, keys=4)
    i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "ignore"}]}).start()
    i.check(without=[i.keys["k1"][1]])
    assert i.dead() == [] and i.parked() == []


# ---------------------------------------------------------------- ids

def test_records_without_id_or_with_a_malformed_one(inbox):  # noqa: F811
    """They are dead letters with a reason, as they came; what follows of their key is handled."""
    i = inbox()
    i.event("a")
    i.put("a", '{"seq": 100}')
    i.put("a", '{"seq": 101}', [("id", "not-a-uuid")])
    i.put("a", '{"seq": 102}', [("id", b"\xff\xfe\x00")])
    i.put("a", '{"seq": 103}', [("id", "")])
    i.put("a", '{"seq": 104}', [("id", None)])
    i.put("a", '{"seq": 105}', [("id", str(uuid.uuid4()) + "0" * 300)])
    i.put(None, None)
    i.event("a")
    i.flush()
    i.consumer().start()
    dead = i.wait_dead(7)
    assert {r[1:3] for r in dead} == {("decode", "id")}
    i.check()
    assert len(i.dead()) == 7
    assert i.db.query("SELECT convert_from(payload, 'UTF8')::jsonb ->> 'seq' FROM inbox.dead_letter WHERE id = 'not-a-uuid'") \
        == [("101",)]


def test_the_same_id_with_other_bytes(inbox):  # noqa: F811
    """Story: a producer reuses an id. The same bytes again are a duplicate; others are not, and must not vanish as
    one: a dead letter says so."""
    i = inbox()
    first = i.event("a")
    i.send(20)
    i.put("a", '{"seq": 1}', [("id", first), ("type", "Moved")])
    i.put("a", '{"seq": 1, "amount": 7}', [("id", first), ("type", "Moved")])
    i.event("a")
    i.flush()
    c = i.consumer().start()
    (dead,) = i.wait_dead(1)
    assert dead[:3] == (first, "decode", "altered")
    i.check()
    wait_until(lambda: c.metric("postrider_inbox_duplicates_total") == 1, 30, "it to be counted")  # behind the commit


def test_duplicates_in_one_batch_and_across_batches(inbox):  # noqa: F811
    """Each of 50 events is there four times, side by side and far apart."""
    i = inbox()
    for n in range(50):
        id = i.event(f"k{n % 5}")
        i.put(f"k{n % 5}", json.dumps({"seq": n // 5 + 1}), [("id", id), ("type", "Moved")])
    for _ in range(2):
        for id, (key, seq) in list(i.sent.items()):
            i.put(key, json.dumps({"seq": seq}), [("id", id), ("type", "Moved")])
    c = i.consumer(SET).start()
    i.check()
    wait_until(lambda: c.metric("postrider_inbox_duplicates_total") == 150, 30, "all to be counted")
    assert i.dead() == []
