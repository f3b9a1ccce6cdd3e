"""tests/fault/test_consumer_offsets.py -- the database is the truth: offsets in Kafka that are reset, restored or
deleted change nothing; replays have no new effect; ids that were forgotten too early are refused."""
import json

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from inbox import inbox  # noqa: F401
from outbox import header, read_topic
from wait import wait_until

pytestmark = pytest.mark.timeout(300)


def set_offsets(i, offset):
    """As a tool does while the group is empty; until then it is refused."""
    def done():
        c = Consumer({"bootstrap.servers": i.kafka.bootstrap, "group.id": i.group, "log_level": 0})
        try:
            c.commit(offsets=[TopicPartition(i.topic, p, offset) for p in range(i.partitions)], asynchronous=False)
            return True
        finally:
            c.close()
    wait_until(done, 60, "the group to be empty", ignore=(KafkaException,))


def committed(i):
    c = Consumer({"bootstrap.servers": i.kafka.bootstrap, "group.id": i.group, "log_level": 0})
    try:
        return [t.offset for t in c.committed([TopicPartition(i.topic, p) for p in range(i.partitions)], 30)]
    finally:
        c.close()


@pytest.mark.parametrize("offset", [0, 5])
def test_offsets_reset_a_week_back(inbox, offset):  # noqa: F811
    """Story: a tool resets the group's offsets to the beginning, or a restored cluster brings old ones back. Nothing is
    read again."""
    i = inbox()
    i.send(300)
    c = i.member().start()  # without a name: the group is empty when it has ended
    i.check()
    assert c.terminate() == 0
    ends = i.kafka.end_offsets(i.topic)
    assert committed(i) == [ends[p] for p in range(3)], "for tools that show lag"
    set_offsets(i, offset)
    c = i.consumer().start()
    i.send(30)
    i.check()
    assert c.metric("postrider_inbox_duplicates_total") == 0, "not even read"


def test_deleted_group_offsets(inbox):  # noqa: F811
    """Story: the group was away for longer than offsets.retention and its offsets are deleted (here: they were never
    committed, for the consumer was killed). A client with auto.offset.reset=latest loses all that came meanwhile."""
    i = inbox()
    i.send(100)
    c = i.consumer().start()
    i.wait_count(1)  # and not longer: five seconds after its partitions came it commits
    c.kill9()
    assert committed(i) == [-1001] * 3, "Kafka knows nothing"
    i.send(100)
    c.start()
    i.check()


def test_replay_of_everything_has_no_new_effect(inbox):  # noqa: F811
    """Through the same handler and the same memory: not one row more; with a kill in the middle it goes on."""
    i = inbox()
    i.send(1500, keys=30)
    c = i.consumer().start()
    i.check(more=True)
    ends = i.kafka.end_offsets(i.topic)
    job = i.one("SELECT inbox.replay_new(%s, %s, %s, %s, %s)",
                (i.group, [i.topic] * 3, [0, 1, 2], [0, 0, 0], [ends[p] for p in range(3)]))
    wait_until(lambda: i.one("SELECT sum(next_offset - from_offset) FROM inbox.replay_part WHERE job = %s", (job,)) > 0, 60,
               "a part to be read")
    c.kill9()
    c.start()
    i.send(100)
    wait_until(lambda: i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,)) == "done", 90, "the replay to end")
    i.check()
    assert i.one("SELECT sum(duplicates) FROM inbox.replay_part WHERE job = %s", (job,)) >= 1000


def replay_all(i):
    """Reads all partitions again; returns when the job is done."""
    ends = i.kafka.end_offsets(i.topic)
    parts = [p for p in range(3) if ends[p] > 0]
    job = i.one("SELECT inbox.replay_new(%s, %s, %s, %s, %s)",
                (i.group, [i.topic] * len(parts), parts, [0] * len(parts), [ends[p] for p in parts]))
    wait_until(lambda: i.one("SELECT state FROM inbox.replay WHERE job = %s", (job,)) == "done", 90, "the replay to end")
    return i.one("SELECT sum(handled), sum(duplicates) FROM inbox.replay_part WHERE job = %s", (job,))


def test_replay_handles_what_was_not(inbox):  # noqa: F811
    """Events that a filter had stepped over are new to the handler; all others are not."""
    i = inbox()
    i.send(100, keys=10)
    c = i.consumer(config={"filter": {"types": ["Other"]}}).start()
    i.stands()
    assert c.terminate() == 0
    i.consumer().start()
    replay_all(i)
    i.check()


def test_replay_brings_no_dead_letter_back(inbox):  # noqa: F811
    """Story: somebody replayed a topic, and every dead letter of it came again: the dropped ones too, and new ones
    beside those that waited for a decision. They are decided upon; dlq retry is the way back, once."""
    i = inbox()
    i.poison("k2", "P0001")
    i.poison("k3", "P0002", seq=4)
    i.send(100, keys=10)
    i.consumer(config={"errors": [{"match": "sqlstate:P0002", "policy": "ignore"}]}).start()
    i.wait_dead(10)
    ignored = i.keys["k3"][3:4]
    i.check(without=i.keys["k2"] + ignored, more=True)
    i.cure()
    first = i.one("SELECT min(entry) FROM inbox.dead_letter")
    i.db.query("SELECT inbox.dlq_drop(ARRAY[%s]::bigint[], 'no use')", (first,))
    dropped = i.one("SELECT id FROM inbox.dead_letter WHERE entry = %s", (first,))
    replay_all(i)
    i.check(without=i.keys["k2"] + ignored, more=True)
    assert len(i.dead()) == 10
    i.db.query("SELECT inbox.dlq_retry(array_agg(entry)) FROM inbox.dead_letter WHERE state = 'dead'")
    wait_until(lambda: {r[5] for r in i.dead()} == {"retried", "dropped"}, 60, "all to be retried")
    i.check(without=[dropped, *ignored], more=True)
    replay_all(i)
    i.check(without=[dropped, *ignored])
    assert len(i.dead()) == 10


def test_forgotten_ids_are_refused(inbox):  # noqa: F811
    """Story: ids were kept for two seconds, then somebody sets the horizon to a week: a replay would be applied twice.
    The consumer does not start, and says since when the ids are there; with a shorter horizon it does."""
    i = inbox()
    i.send(20)
    c = i.consumer(config={"inbox": {"keep": "1s", "horizon": "0s"}}).start()
    i.check(more=True)
    wait_until(lambda: i.one("SELECT min(slot) FROM inbox.slot") > 1, 60, "the first slot to be dropped")
    assert i.one("SELECT inbox.keep(%s, '1 second') > now() - interval '1 hour'", (i.group,))
    c.terminate()
    c.rewrite({"inbox": {"keep": "7d", "horizon": "7d"}})
    c.start()
    assert c.wait(60) == 78
    assert "remembered since" in c.log_text()
    i.send(5)
    assert i.count() == 20, "nothing was handled"
    c.rewrite({"inbox": {"horizon": "0s"}})
    c.start()
    i.check()


def test_horizon_longer_than_keep_is_refused(inbox):  # noqa: F811
    i = inbox()
    c = i.consumer(config={"inbox": {"keep": "1h", "horizon": "2h"}}).start()
    assert c.wait(60) == 78
    assert "horizon" in c.log_text()


def test_duplicates_across_rotations(inbox):  # noqa: F811
    """Ids move into closed slots, after half of keep, and are still known there for all of it: long enough for these to come again."""
    i = inbox()
    i.consumer(config={"inbox": {"keep": "16s", "horizon": "0s"}}).start()
    ids = i.send(50)
    i.check(more=True)
    first = i.one("SELECT max(slot) FROM inbox.slot")
    wait_until(lambda: i.one("SELECT max(slot) FROM inbox.slot") > first, 60, "a rotation")
    for id in ids:
        key, seq = i.sent[id]
        i.put(key, json.dumps({"seq": seq}), [("id", id), ("type", "Moved")])
    i.check()


def test_unwritable_dead_letter_topic(inbox):  # noqa: F811
    """Story: the dead-letter topic is not there. Dead letters stay in their table, health says so, everything flows;
    when the topic comes they go there, each at least once."""
    i = inbox()
    dlt = i.topic + ".dlt"
    i.poison("k2", "P0001")
    i.send(50, keys=10)
    c = i.consumer(config={"dead_letter": {"topic": dlt}, "kafka": {"timeout": "1s"}}).start()
    i.wait_dead(5)
    i.check(without=i.keys["k2"])
    wait_until(lambda: i.state(c) == "warn" and dlt in c.get("/readyz")[1], 60, "the topic to be named", ignore=(OSError,))
    assert i.one("SELECT count(*) FROM inbox.dead_letter WHERE published_at IS NOT NULL") == 0
    i.kafka.create_topic(dlt)
    ids = {header(r, "id").decode() for r in read_topic(i.kafka, dlt, 5)}
    assert ids == set(i.keys["k2"])
    wait_until(lambda: i.one("SELECT count(*) FROM inbox.dead_letter WHERE published_at IS NULL") == 0, 60,
               "all to be noted")
    i.wait_state(c, "ok")
