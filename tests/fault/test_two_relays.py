"""tests/fault/test_two_relays.py -- two relays on one outbox: one publishes, whatever either of them believes.

The advisory lock elects one, for comfort; in exactly_once the transactional id keeps the
other one out, for safety. In at_least_once a woken predecessor repeats what it had in hand.
"""
import time

import pytest
from scene import both, exactly_once, scene  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)

FENCED = 'postrider_producer_restarts_total{outbox="%s",reason="fenced"}'


def state(relay):
    try:
        return relay.status()["state"]
    except OSError:
        return None


def leads(relay):
    try:
        return relay.status()["leader"]
    except OSError:
        return False


def fencings(s, relay):
    return relay.metric(FENCED % s.name)


def lock_sessions(s):
    return [r[0] for r in s.pg.query(
        "SELECT a.pid FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' "
        "AND l.granted AND a.datname = %s AND a.application_name LIKE '%% control'", (s.name,))]


def leader_and_standby(s, **config):
    """Two relays under load; the first leads. Returns both, and the pid of the leader's lock session."""
    one = s.relay(config).start().wait_ready()
    s.load()
    s.flows(one, 50)
    lock = s.pg.backends(f"application_name = 'postrider-relay {s.name} control'")
    assert len(lock) == 1
    two = s.relay(config).start()
    wait_until(lambda: state(two) == "standby", 45, "the second one to stand by")
    assert two.get("/readyz")[0] == 200
    return one, two, lock[0]


@both
def test_the_standby_takes_over(scene, pg_server, kafka, delivery):
    """Story: the leader is killed; the standby is at work within seconds, and whoever comes back stands by."""
    s = scene(pg_server, kafka, delivery)
    one, two, _ = leader_and_standby(s)
    stays(lambda: state(two) == "standby" and s.published(two) == 0, 3, "to stand by: nothing published")
    wait_until(lambda: two.metric("postrider_lag_seconds") < 3, 30, "no lag that is not there")
    one.kill()
    wait_until(lambda: s.published(two) > 0, 60, "the standby to publish")
    one.start()
    wait_until(lambda: state(one) == "standby", 45, "the old leader to stand by")
    two.kill()
    s.flows(one, 50)
    s.check(deaths=2)
    s.drained(one)


@both
def test_a_frozen_leader_is_woken(scene, pg_server, kafka, delivery):
    """Story: the leader is frozen (a virtual machine that moves) for longer than its transaction may last,
    loses its lock and its successor goes on. Woken, it has a transaction open and events in hand, and no
    idea. Fenced, it gives up; without that rule the two fenced each other for ever."""
    s = scene(pg_server, kafka, delivery)
    one, two, lock = leader_and_standby(s, kafka={"timeout": "5s"})  # a busy broker may take a while for a transaction
    one.sigstop()
    frozen = time.monotonic()
    try:
        assert pg_server.query("SELECT pg_terminate_backend(%s)", (lock,)) == [(True,)]
        wait_until(lambda: leads(two) and s.published(two) > 100, 45, "the standby to lead")
        wait_until(lambda: time.monotonic() - frozen > 7.5, 45, "the transaction to time out")
    finally:
        one.sigcont()
    wait_until(lambda: state(one) == "standby", 45, "the woken one to stand by")
    before = s.published(two)
    quiet = 8 if delivery == "exactly_once" else 3
    stays(lambda: leads(two) and not leads(one), quiet, "one leader, and the other one still", interval=0.2)
    wait_until(lambda: s.published(two) > before + 100, 30, "the successor to go on")
    assert fencings(s, two) == 0, "the successor was fenced"
    assert fencings(s, one) <= 1
    result = s.check(deaths=1)
    s.drained(two)
    s.no_lag(one)
    assert delivery == "at_least_once" or result.dup == 0


@exactly_once
def test_a_leader_alone_is_frozen_and_woken(scene, pg_server, kafka, delivery):
    """Story: nobody took over, but the broker has aborted the transaction of the frozen relay and given
    its id a new epoch: fenced by nobody, it must lead again by itself."""
    s = scene(pg_server, kafka, delivery)
    relay = s.relay({"kafka": {"timeout": "2s"}}).start()
    s.load()
    s.flows(relay, 50)
    relay.sigstop()
    frozen = time.monotonic()
    try:
        wait_until(lambda: time.monotonic() - frozen > 5, 45, "the transaction to time out")
    finally:
        relay.sigcont()
    s.flows(relay, 100)
    s.check()
    s.drained(relay)


@both
def test_the_lock_changes_hands_again_and_again(scene, pg_server, kafka, delivery):
    """Story: a pooler ends the leader's lock session now and then. Either of the two leads next, the other
    may still have events in hand: nothing is lost, repeated (exactly_once) or out of order."""
    s = scene(pg_server, kafka, delivery)
    one, two, _ = leader_and_standby(s)
    for _ in range(6):
        before = s.published(one) + s.published(two)
        wait_until(lambda: lock_sessions(s), 45, "the lock to be held")
        for pid in lock_sessions(s):
            pg_server.query("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until(lambda: s.published(one) + s.published(two) > before + 50, 45, "either to lead")  # noqa: B023
    s.check(deaths=6)
    wait_until(lambda: leads(one) != leads(two), 45, "one of them to lead")
    s.drained(one if leads(one) else two)
