"""tests/e2e/test_consumer_group.py -- the Kafka side of the consumer: who reads what, from where, and what is
said when it cannot be read.
"""
import contextlib
import ctypes

import pytest
from confluent_kafka import Consumer, TopicPartition
from inbox import SET, inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(240)


def delete_records(brokers, topic, partition, before):
    """What retention does, at once (python3-confluent-kafka has no call for it)."""
    lib = ctypes.CDLL("librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_topic_partition_list_new", "rd_kafka_topic_partition_list_add",
                 "rd_kafka_DeleteRecords_new", "rd_kafka_queue_new", "rd_kafka_queue_poll", "rd_kafka_event_error_string"):
        getattr(lib, name).restype = ctypes.c_void_p
    conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
    why = ctypes.create_string_buffer(200)
    assert lib.rd_kafka_conf_set(conf, b"bootstrap.servers", brokers.encode(), why, 200) == 0, why.value
    rk = ctypes.c_void_p(lib.rd_kafka_new(0, conf, why, 200))
    parts = ctypes.c_void_p(lib.rd_kafka_topic_partition_list_new(1))
    lib.rd_kafka_topic_partition_list_add(parts, topic.encode(), partition)
    assert lib.rd_kafka_topic_partition_list_set_offset(parts, topic.encode(), partition, ctypes.c_int64(before)) == 0
    wish = ctypes.c_void_p(lib.rd_kafka_DeleteRecords_new(parts))
    queue = ctypes.c_void_p(lib.rd_kafka_queue_new(rk))
    lib.rd_kafka_DeleteRecords(rk, ctypes.byref(wish), ctypes.c_size_t(1), None, queue)
    event = ctypes.c_void_p(lib.rd_kafka_queue_poll(queue, 10000))
    assert event.value and lib.rd_kafka_event_error(event) == 0, "the records were not deleted"


def in_log(consumer, words, timeout=60):
    wait_until(lambda: words in consumer.log_text(), timeout, f"\"{words}\" in the log", interval=0.02)


def again(i, **config):
    """The one consumer, with the name that it had before: Kafka gives it its partitions at once."""
    return i.consumer(SET, config={"member": "one", **config}).start()


def lane_counts(i):
    return {n for (n,) in i.db.query('SELECT DISTINCT lane_count FROM inbox.position WHERE "group" = %s', (i.group,))}


def test_lanes_change_where_all_lanes_meet(inbox):  # noqa: F811
    """Story: the consumer died with its lanes at different offsets, and lanes was raised meanwhile. The old lanes
    must be brought to one offset before the keys are dealt anew, else records between are lost or repeated."""
    i = inbox()
    i.poison("k0", "wait", seq=3)
    lock = i.db.connect()
    with lock.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(4711)")
    a = again(i, lanes=2)
    i.send(600, keys=30)
    rows = 'SELECT partition, min(next_offset), max(next_offset) FROM inbox.position GROUP BY 1'
    wait_until(lambda: any(low != high for _, low, high in i.db.query(rows)), 60, "one lane to stand behind the other")
    a.kill9()
    assert lane_counts(i) == {2}
    again(i, lanes=3)
    lock.close()
    wait_until(lambda: lane_counts(i) == {3}, 60, "three lanes")
    i.send(200)
    i.check()


def test_members_come_and_go(inbox):  # noqa: F811
    """Story: a deployment, an autoscaler and a crash, while events flow. Each event is applied once, in order."""
    i = inbox(partitions=4)
    a = i.member(SET).start()
    with i.stream(1000):
        i.flows(100)
        b = i.member(SET).start()
        wait_until(lambda: "partitions assigned" in b.log_text(), 60, "the second member")
        i.flows(200)
        c = i.member(SET).start()
        wait_until(lambda: "partitions assigned" in c.log_text(), 60, "the third member")
        i.flows(200)
        assert b.terminate() == 0
        i.flows(200)
        c.kill9()
        i.flows(200)
    i.check()
    assert a.running()


def test_records_deleted_before_they_were_read(inbox):  # noqa: F811
    """Story: the consumer was down for longer than the topic's retention. It says which records are gone and stands;
    whoever reads on_gap in the hint goes on behind them."""
    i = inbox(partitions=1)
    a = again(i)
    i.send(50)
    i.wait_count(50)
    i.stands()
    assert a.terminate() == 0
    i.send(100)
    delete_records(i.kafka.bootstrap, i.topic, 0, 90)
    b = again(i)
    in_log(b, "records 50 to 89 of partition 0")
    assert 'on_gap = ' in b.log_text()
    assert b.get("/readyz")[0] == 503
    assert i.count() == 50
    assert b.terminate() == 0
    c = again(i, on_gap="skip")
    i.wait_count(50 + 60)
    in_log(c, "stepped over")
    assert "from=50 to=90" in c.log_text()
    c.wait_ready()
    assert i.one("SELECT min(message_offset) FROM app.effect WHERE message_offset >= 50") == 90
    assert i.count() == 110


def test_records_deleted_while_standing_are_looked_at_again(inbox):  # noqa: F811
    """Story: an operator moves the position of a partition that stands in a gap; the consumer finds it by itself."""
    i = inbox(partitions=1)
    a = again(i)
    i.send(20)
    i.wait_count(20)
    i.stands()
    assert a.terminate() == 0
    i.send(20)
    delete_records(i.kafka.bootstrap, i.topic, 0, 30)
    b = again(i)
    in_log(b, "records 20 to 29 of partition 0")
    i.db.query('UPDATE inbox.position SET next_offset = 30')
    i.wait_count(30)
    b.wait_ready()
    assert i.count() == 30


def test_a_position_past_the_end(inbox):  # noqa: F811
    """Story: the topic was made anew under the same name, or an unclean leader lost its tail. Reading on from where
    the log happens to end would skip what comes: the consumer stands, and no setting lets it pass."""
    i = inbox(partitions=1)
    a = again(i)
    i.send(20)
    i.wait_count(20)
    i.stands()
    assert a.terminate() == 0
    i.db.query("UPDATE inbox.position SET next_offset = 1000")
    b = again(i, on_gap="skip")
    in_log(b, "position 1000 of partition 0")
    assert "is past its end, which is 20" in b.log_text()
    assert b.get("/readyz")[0] == 503
    assert i.count() == 20


def test_a_topic_that_is_not_there_yet(inbox):  # noqa: F811
    """Story: the consumer is deployed before the producer has made the topic. That is said, and mends itself."""
    i = inbox(partitions=0)
    i.topic = "in." + i.name
    a = again(i)
    in_log(a, f"cannot read topic: {i.topic}")
    assert a.running() and a.get("/readyz")[0] == 503
    i.kafka.create_topic(i.topic, 2)
    i.send(30)
    i.wait_count(30)
    a.wait_ready()
    i.check()


def test_topics_by_regular_expression(inbox):  # noqa: F811
    """Story: topics = [ "^orders[.].*" ], and a topic of that name comes into being later."""
    i = inbox(partitions=1)
    other = i.topic + ".later"
    i.member(SET, topics=["^" + i.topic.replace(".", "[.]") + ".*"]).start()
    i.send(10)
    i.wait_count(10)
    i.kafka.create_topic(other, 1)
    i.event("k-other", topic=other)
    i.flush()
    i.wait_count(11)
    assert i.one("SELECT topic FROM app.effect WHERE key = 'k-other'") == other


def test_kafka_is_told_for_the_tools_that_show_lag(inbox):  # noqa: F811
    """Story: people look at kafka-consumer-groups. At the end of the consumer the group's offsets are those of the
    database, although nothing ever reads them."""
    i = inbox(partitions=2)
    a = i.member(SET).start()
    i.send(40)
    i.stands()
    assert a.terminate() == 0
    reader = Consumer({"bootstrap.servers": i.kafka.bootstrap, "group.id": i.group, "enable.auto.commit": False})
    with contextlib.closing(reader):
        told = {t.partition: t.offset for t in reader.committed([TopicPartition(i.topic, p) for p in range(2)], timeout=60)}
    assert told == dict(i.db.query("SELECT partition, min(next_offset) FROM inbox.position GROUP BY 1"))


def test_two_processes_with_one_name(inbox):  # noqa: F811
    """Story: member was copied along with the config file. The first is shut out by Kafka, says why, and ends: two
    that push each other out forever would look alive."""
    i = inbox(partitions=1)
    a = i.consumer(SET, config={"member": "one"}).start()
    i.send(5)
    i.wait_count(5)
    b = i.consumer(SET, config={"member": "one"}).start()
    assert a.wait(60) == 5
    assert "the same member name" in a.log_text()
    i.send(5)
    i.wait_count(10)
    assert b.running()
    i.check()


def test_one_partition_flows_while_lanes_are_slow(inbox):  # noqa: F811
    """Story: librdkafka 2.0.2 looks at a queue that was full only once a second; a topic of one partition then came in
    bursts of one second's rest each, ten of them here. Batches of 5 ms must not wait for that."""
    i = inbox(partitions=1)
    i.send(20000, keys=200)
    i.member(SET, config={"lanes": 2, "limits": {"batch_events": 500, "buffer_bytes": "256kB", "prefetch_bytes": "256kB",
                                                 "batch_bytes": "128kB"}}).start()
    i.wait_count(20000, timeout=120)
    rests = i.one("SELECT count(*) FROM (SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY at)) AS d FROM app.effect)"
                  " AS g WHERE d > 0.8")
    assert rests < 5, f"{rests} rests of more than 0.8 s"
    i.check()
