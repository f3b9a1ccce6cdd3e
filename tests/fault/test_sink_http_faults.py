"""tests/fault/test_sink_http_faults.py -- the sink's batches at an API, while it, the API, or the database dies.

For each FAULT(name) in consumers/sink/http.c there is a test of that name. Afterwards the platform counts: every record once, none
twice, in the order of its partition.
"""
import signal
import threading

import pytest
from data_platform import away  # noqa: F401
from inbox import inbox  # noqa: F401
from service import Service
from wait import wait_until

pytestmark = pytest.mark.timeout(400)


def dies(consumer, point, timeout=60):
    """Starts the consumer so that it dies at the point; proves that it did."""
    consumer.start(fault=point)
    assert consumer.wait(timeout) == -signal.SIGKILL, consumer.log_text()[-3000:]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_sink_posted_before_position(away, compression):  # noqa: F811
    """Story: the platform has the batch and the consumer dies before it knows. The next one posts the recorded range under the same
    key, whatever else has come into the topic since: the platform knows it."""
    a = away()
    c = a.consumer(start=False, compression=compression)
    a.send(300)
    for passage in (1, 2, 5):
        dies(c, f"sink_posted_before_position:{passage}")
        a.send(50)
    before = a.stored()
    assert before > 0
    c.start()
    a.send(100)
    a.once()


def test_sink_posted_before_position_by_another_member(away):  # noqa: F811
    """Story: the same, and the partitions go to a member with larger batches: the recorded range holds, not its own idea of one."""
    a = away()
    a.send(300)
    dies(a.consumer(start=False), "sink_posted_before_position:3")
    a.consumer(max_records=1000, config={"http": {"listen": "127.0.0.1:0"}})
    a.once()


def test_sink_split_before_commit(away):  # noqa: F811
    """Story: a batch was refused and the consumer dies before its halves are recorded: it is refused again, and no half is ever posted
    under a key that the database does not know."""
    a = away(partitions=1)
    ids = a.send(200)
    a.platform.switch(refuse_id=ids[77])
    c = a.consumer(start=False, max_records=100)
    for passage in (1, 2, 4):
        dies(c, f"sink_split_before_commit:{passage}")
    c.start()
    a.once(without=[ids[77]])
    assert [d[0] for d in a.i.dead()] == [ids[77]]


def test_kill_9_at_any_time(away):  # noqa: F811
    """The consumer is killed again and again under load, the platform fails every fifth request after it stored it."""
    a = away()
    a.platform.switch(fail_status=503, fail_every=5, fail_stored=True)
    c = a.consumer()
    for n in range(6):
        before = a.stored()
        a.send(300)
        wait_until(lambda before=before: a.stored() > before, 60, "more facts")
        c.kill9()
        c.start()
    a.platform.switch()
    a.once(timeout=60)


def test_the_platform_is_killed_under_load(away):  # noqa: F811
    a = away()
    a.consumer()
    port = a.platform.service.port
    for n in range(4):
        a.send(300)
        a.platform.service.kill9()
        a.platform.service = Service("platform", a.platform.db.conninfo, port=port).start().wait_ready()
        a.platform.api.port = port
    a.once(timeout=60)


def test_partitions_wander_under_load(away):  # noqa: F811
    """Members come and go: whoever loses a partition in the middle of a batch leaves a range that the next one posts as it is."""
    a = away(partitions=4)
    nameless = {"http": {"listen": "127.0.0.1:0"}}
    a.consumer(config=nameless)
    stop = threading.Event()

    def load():
        while not stop.wait(0.05):
            a.send(40)
    t = threading.Thread(target=load)
    t.start()
    try:
        for n in range(4):
            other = a.consumer(config=nameless, max_records=30 + n)
            wait_until(lambda other=other: "assigned" in other.log_text() or a.stored() > 200 * (n + 1), 60, "a rebalance")
            (other.kill9 if n % 2 else other.terminate)()
    finally:
        stop.set()
        t.join()
    a.once(timeout=60)


def test_the_database_is_away(inbox, own_pg):  # noqa: F811
    """Postgres dies between a batch's recording and its position: it comes back, and the batch was or is posted under its key."""
    from data_platform import Away
    pg = own_pg()
    a = Away(inbox(pg=pg))
    try:
        c = a.consumer()
        a.send(300)
        a.arrives(50)
        for _ in range(3):
            pg.restart("immediate")
            a.send(200)
        a.once(timeout=60)
        a.i.wait_state(c, "ok")
    finally:
        a.close()


def test_two_owners_of_one_partition(away):  # noqa: F811
    """A member is frozen with a batch under way and thawed when another one has taken over: the zombie's batch is the same range under
    the same key, and nothing else of it is taken."""
    a = away(partitions=1)
    a.platform.switch(slow_ms=400)
    nameless = {"http": {"listen": "127.0.0.1:0"}, "kafka": {"properties": ["session.timeout.ms=6000"]}}
    first = a.consumer(config=nameless)
    a.send(400)
    a.arrives(20)
    first.sigstop()
    a.platform.switch()
    a.consumer(config=nameless, max_records=33)
    a.arrives(400, 60)
    first.sigcont()
    a.send(100)
    a.once(timeout=60)
