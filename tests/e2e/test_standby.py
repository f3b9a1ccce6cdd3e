"""tests/e2e/test_standby.py -- "standby" is said by a relay that waits for another, by no other.

Story: `make demo` showed "standby: another relay holds the lock" for a relay that was alone:
between its first word with Postgres and the lock, the state was guessed. /readyz said 200 to it,
so whoever waited for a ready relay got one that did not publish yet.
"""
import contextlib
import os

from wait import wait_until


def test_alone_it_is_never_standby(db, kafka, relay, cli, outbox_name):
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    r = relay(db.conninfo, kafka.bootstrap, name=outbox_name)
    seen = set()

    def ok():
        with contextlib.suppress(OSError):
            seen.add(r.status()["state"])
        return "ok" in seen
    for _ in range(4):
        r.start()
        wait_until(ok, 60, "the relay to publish", interval=0.0005, interval_max=0.0005)
        assert r.terminate() == 0
        seen.discard("ok")
    assert "standby" not in seen, seen


def test_ranges_are_unknown_until_they_are_counted(db, kafka, relay, cli, outbox_name):
    """An alarm on few ranges left would go off at every start, were they 0 until somebody has looked."""
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    r = relay(db.conninfo, kafka.bootstrap, name=outbox_name)
    seen = []

    def counted():
        with contextlib.suppress(OSError):
            seen.append((r.metrics().get("postrider_partitions_ahead"), r.status()["partitions_ahead"]))
        return seen and None not in seen[-1]
    r.start()
    wait_until(counted, 60, "the ranges to be counted", interval=0.0005, interval_max=0.0005)
    assert all(n is None or n >= 16 for pair in seen for n in pair), seen


def test_sessions_of_a_long_name(db, kafka, relay, cli):
    """Postgres cuts application_name at 63 bytes: of a relay with the longest name the roles were cut off, and
    nobody could tell its sessions apart."""
    name = ("long-" * 12)[:52] + str(os.getpid())[-8:].zfill(8)
    assert len(name) == 60
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", name, check=True)
    r = relay(db.conninfo, kafka.bootstrap, name=name)
    r.start()

    def roles():
        rows = db.query("SELECT application_name FROM pg_stat_activity WHERE datname = current_database() "
                        "AND application_name LIKE 'postrider-relay long-long-%%'")
        return {a.split()[-1] for a, in rows}
    want = {"control", "hold", "janitor", "retention"}  # and data, now and then
    wait_until(lambda: roles() >= want, 60, f"sessions of {want}")


def test_the_second_is_standby_until_the_first_ends(db, kafka, relay, cli, outbox_name):
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    first, second = (relay(db.conninfo, kafka.bootstrap, name=outbox_name) for _ in range(2))
    first.start()
    wait_until(lambda: first.running() and first.status()["state"] == "ok", 60, "the first", ignore=(OSError,))
    second.start()
    wait_until(lambda: second.status()["state"] == "standby", 60, "the second to stand by", ignore=(OSError,))
    assert second.get("/readyz")[0] == 200
    # It makes no ranges, and knows how many there are; the first did not say 0 before it had looked.
    wait_until(lambda: second.metric("postrider_partitions_ahead") >= 16, 30, "the standby to count ranges")
    assert first.terminate() == 0
    wait_until(lambda: second.status()["state"] == "ok", 60, "the second to take over")
