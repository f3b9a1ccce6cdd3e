"""tests/fault/test_consumer_sabotage.py -- the fault tests prove themselves.

Each play runs twice: the honest consumer must pass it, and one with a known flaw (SABOTAGE in consumers/, test builds
only) must be found out by what stands in the handlers' own table.
"""
import subprocess

import pytest
import servers
from inbox import inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(400)


def failing_handler(i, **start):
    """A handler that fails once: what was committed before the failure shows."""
    i.poison("k1", "once P0002")
    i.send(60, keys=10)
    i.consumer(config={"errors": [{"match": "sqlstate:P0002", "policy": "retry", "attempts": 9, "backoff": "1ms"}]}).start(**start)
    i.stands()
    return i.wrong()


def zombie(i, **start):
    """A member stands still with a decided batch while another takes over; then the batch is let go."""
    i.poison("k0", "wait", seq=1)
    i.send(20, keys=4)
    lock = i.db.connect()
    with lock.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(4711)")
    config = {"lanes": 1, "member": "one", "dedupe": "offset"}
    a = i.consumer(config=config).start(**start)
    wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                             " AND wait_event = 'advisory'") == 1, 60, "the batch to be decided")
    a.sigstop()
    i.cure()
    i.consumer(config=config).start(**start)
    i.wait_count(20)
    lock.close()
    wait_until(lambda: i.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid IN"
                             " (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711)") == 0, 60,
               "the zombie's transaction to end")
    i.stands()
    return i.wrong()


def parked_key(i, **start):
    """A key is parked, more of it comes, it is released."""
    i.poison("k2", "P0001", seq=2)
    i.send(40, keys=4)
    i.consumer(config={"errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start(
        **start)
    i.wait_count(31)
    i.stands()
    i.cure()
    i.db.query("SELECT inbox.parked_request(\"group\", topic, partition, key, 'retry') FROM inbox.parked"
               " WHERE due_at IS NOT NULL")
    i.wait_count(40)
    return i.wrong()


CASES = [
    ("offset_before_effect", failing_handler, "lost"),
    ("inbox_outside_transaction", failing_handler, "lost"),
    ("no_epoch_fence", zombie, "twice"),
    ("parked_key_passes", parked_key, "was applied after"),
]


@pytest.mark.parametrize("flaw, play, finding", CASES, ids=[c[0] for c in CASES])
def test_sabotage_is_caught(inbox, flaw, play, finding):  # noqa: F811
    """The honest consumer passes, the flawed one is convicted of what the flaw does. One partition: a batch of several is fenced for
    the first of them, and what the flaw did to the others may be mended by those who read them again."""
    assert play(inbox(partitions=1)) == []
    found = play(inbox(partitions=1), sabotage=flaw)
    assert any(finding in x for x in found), f"{flaw} was not caught: {found}"


def test_every_sabotage_has_its_case():
    """A flaw that somebody adds to the sources needs its play here; those of groups without a database have theirs in
    test_consumer_retry_topics.py, those of sinks in test_sink_kill.py."""
    found = subprocess.run(["grep", "-rhoE", r"\bSABOTAGE\([a-z0-9_]+\)", "consumers", "--include=*.c"],
                           cwd=servers.ROOT, capture_output=True, text=True, check=True).stdout
    names = {line[len("SABOTAGE("):-1] for line in found.split()}
    assert {n for n in names if not n.startswith(("topics_", "sink_"))} == {c[0] for c in CASES}
