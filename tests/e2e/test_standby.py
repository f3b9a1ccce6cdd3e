"""tests/e2e/test_standby.py -- "standby" is said by a relay that waits for another, by no other.

Story: `make demo` showed "standby: another relay holds the lock" for a relay that was alone:
between its first word with Postgres and the lock, the state was guessed. /readyz said 200 to it,
so whoever waited for a ready relay got one that did not publish yet.
"""
import contextlib

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
        wait_until(ok, 30, "the relay to publish", interval=0.0005, interval_max=0.0005)
        assert r.terminate() == 0
        seen.discard("ok")
    assert seen <= {"starting"}


def test_the_second_is_standby_until_the_first_ends(db, kafka, relay, cli, outbox_name):
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    first, second = (relay(db.conninfo, kafka.bootstrap, name=outbox_name) for _ in range(2))
    first.start()
    wait_until(lambda: first.running() and first.status()["state"] == "ok", 30, "the first", ignore=(OSError,))
    second.start()
    wait_until(lambda: second.status()["state"] == "standby", 30, "the second to stand by", ignore=(OSError,))
    assert second.get("/readyz")[0] == 200
    assert first.terminate() == 0
    wait_until(lambda: second.status()["state"] == "ok", 30, "the second to take over")
