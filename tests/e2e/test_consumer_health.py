"""tests/e2e/test_consumer_health.py -- what the consumer says about itself: pages, metrics, lag, the state that is
never green while something is stuck; and what its keeper does beside the way."""
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import servers
from inbox import ROW, SET, inbox  # noqa: F401
from outbox import header, read_topic
from wait import stays, wait_until

STABLE = {
    "postrider_build_info": "gauge", "postrider_up": "gauge", "postrider_state": "gauge",
    "postrider_consumer_lag_seconds": "gauge", "postrider_consumer_lag_events": "gauge",
    "postrider_consumer_handled_total": "counter", "postrider_inbox_duplicates_total": "counter",
    "postrider_dlq_events": "gauge", "postrider_parked_events": "gauge", "postrider_parked_keys": "gauge",
    "postrider_parked_oldest_seconds": "gauge", "postrider_consumer_breaker_open": "gauge",
    "postrider_consumer_rebalances_total": "counter", "postrider_consumer_assigned_partitions": "gauge",
    "postrider_consumer_retries_total": "counter", "postrider_pg_reconnects_total": "counter",
    "postrider_batch_events": "histogram",
}
SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(text):
    """[(name, {label: value}, number)]"""
    out = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            m = SAMPLE.match(line)
            assert m, line
            out.append((m.group(1), dict(LABEL.findall(m.group(2) or "")), float(m.group(3))))
    return out


def lag(c, i, partition=0):
    name = f'postrider_consumer_lag_seconds{{group="{i.group}",topic="{i.topic}",partition="{partition}"}}'
    return c.metric(name, None)


def flows(i, c):
    """One more event goes through, and the state comes back to ok."""
    i.event("flows")
    i.check()
    i.wait_state(c, "ok")


def test_metrics(inbox):  # noqa: F811
    """All names that never change are there with the right type; every sample carries the group; nothing that grows
    with the data is in a label; promtool has nothing to say."""
    i = inbox(partitions=2)
    c = i.consumer(SET).start()
    ids = i.send(50, prefix="very-secret-key")
    i.put("x", "{}", [("id", ids[0])])  # another payload: altered
    i.put(f"very-secret-key{1}", json.dumps({"seq": 1}), [("id", ids[1]), ("type", "Moved")])  # a duplicate
    i.flush()
    i.wait_dead(1)
    i.wait_state(c, "ok")
    expected = {"handled": 50, "duplicate": 1, "filtered": 0, "ignored": 0, "parked": 0, "dead_letter": 1}

    def outcomes():
        return {labels["outcome"]: v for n, labels, v in samples(c.get("/metrics")[1]) if n == "postrider_consumer_handled_total"}
    wait_until(lambda: outcomes() == expected and c.metric("postrider_inbox_duplicates_total") == 1, 30, f"{expected} to be counted")
    i.wait_state(c, "ok")
    text = c.get("/metrics")[1]
    types = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    assert {n: types.get(n) for n in STABLE} == STABLE
    found = samples(text)
    assert found and all(labels.get("group") == i.group for _, labels, _ in found)
    assert set().union(*(labels for _, labels, _ in found)) <= {
        "group", "topic", "partition", "outcome", "state", "what", "le", "version", "librdkafka", "libpq"}
    assert "secret" not in text and not any(x in text for x in ids)
    value = {n: v for n, _, v in found}
    assert value["postrider_consumer_handle_seconds_count"] > 0 and value["postrider_consumer_delay_seconds_count"] > 0
    assert value["postrider_consumer_handle_seconds_sum"] > 0 and value["postrider_consumer_delay_seconds_sum"] > 0
    states = {labels["state"]: v for n, labels, v in found if n == "postrider_state"}
    assert sum(states.values()) == 1 and states["ok"] == 1
    assert set(states) == {"starting", "ok", "warn", "paused", "error", "stopping"}
    wait_until(lambda: c.metric("postrider_dlq_events") == 1, 30, "the dead letter")
    assert shutil.which("promtool"), "run make setup"
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_status_and_page(inbox):  # noqa: F811
    i = inbox(partitions=2)
    c = i.consumer().start().wait_ready()
    assert c.get("/healthz") == (200, '{"status":"ok"}\n')
    i.send(30)
    i.put("k", "{}", [("id", "no uuid")])
    i.flush()
    i.wait_dead(1)
    i.stands()
    s = wait_until(lambda: (s := c.status())["lag_events"] == 0 and s["dead_letters"] == 1 and s["handled"]["handled"] == 30
                   and s["handled"]["dead_letter"] == 1 and s, 30, "all to be counted")
    assert (s["group"], s["state"], s["handler"], s["dedupe"], s["lanes"]) == (i.group, "ok", "sql", "inbox", 2)
    assert s["sentence"] == "everything flows; 1 dead letter waits for a decision" and s["hint"] == "postrider dlq list"
    assert s["breaker"] == {"open": False, "failures": 0, "next_probe_seconds": None}
    assert s["problems"] == [] and s["postgres"]["connected"] and s["kafka"]["connected"]
    ends = i.kafka.end_offsets(i.topic)
    assert {p["partition"]: (p["topic"], p["next_offset"], p["end_offset"], p["lag_events"], p["lag_seconds"])
            for p in s["partitions"]} == {p: (i.topic, n, n, 0, 0) for p, n in ends.items()}
    status, page = c.get("/")
    assert status == 200 and f'<h1 id="state">Consumer {i.group}: ok</h1>' in page and len(page) < 100_000
    for method, path, code in (("POST", "/status.json", 405), ("GET", "/nothing", 404)):
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{c.port}{path}", method=method), timeout=5)
        assert e.value.code == code


def test_token(inbox):  # noqa: F811
    """Health is open to the load balancer; what tells more needs the token."""
    i = inbox(partitions=1)
    c = i.consumer(config={"http": {"token": "env:T"}}, env={"T": "s3cret"}).start().wait_ready()
    assert c.get("/healthz")[0] == 200 and c.get("/metrics")[0] == 401 and c.get("/status.json")[0] == 401
    req = urllib.request.Request(f"http://127.0.0.1:{c.port}/status.json", headers={"Authorization": "Bearer s3cret"})
    with urllib.request.urlopen(req, timeout=5) as r:
        assert json.loads(r.read())["group"] == i.group


# ---------------------------------------------------------------- states

def test_paused(inbox):  # noqa: F811
    """An operator's pause holds everything, is not green, and lag grows; resumed, nothing is lost."""
    i = inbox(partitions=1)
    c = i.consumer().start().wait_ready()
    i.send(10)
    i.check()
    assert i.one("SELECT inbox.pause(%s, 'ann')", (i.group,))
    i.wait_state(c, "paused")
    i.send(10)
    wait_until(lambda: lag(c, i) > 0.5, 30, "the lag")
    assert i.count() == 10 and i.state(c) == "paused"
    assert c.status()["hint"] == f"postrider resume --group {i.group}"  # without it the relay is meant
    assert i.one("SELECT inbox.resume(%s, 'ann')", (i.group,))
    i.check()
    i.wait_state(c, "ok")
    wait_until(lambda: lag(c, i) == 0, 30, "no lag")
    assert "by=ann" in c.log_text()


def test_parked_is_not_green(inbox):  # noqa: F811
    """A parked key counts: state, keys, events, age, and the lag of its partition, while others flow."""
    i = inbox(partitions=1)
    rules = [{"match": "sqlstate:22012", "policy": "park", "attempts": 0, "backoff": "300ms", "backoff_max": "300ms"}]
    c = i.consumer(ROW, {"errors": rules}).start().wait_ready()
    i.poison("sick", "22012")
    i.event("sick")
    i.event("sick")
    i.event("well")
    i.flush()
    i.wait_count(1)
    i.wait_parked(2)
    assert i.wait_state(c, "warn")["checks"]["parked_keys"] == 1
    wait_until(lambda: "2 messages of 1 key are parked" in c.status()["sentence"], 30, "the sentence")
    wait_until(lambda: c.metric("postrider_parked_events") == 2 and c.metric("postrider_parked_keys") == 1, 30, "counts")
    wait_until(lambda: lag(c, i) > 1, 30, "the lag")
    assert c.metric("postrider_parked_oldest_seconds") > 0
    i.cure()
    i.check()
    i.wait_state(c, "ok")
    wait_until(lambda: lag(c, i) == 0 and c.metric("postrider_parked_keys") == 0, 30, "no lag")


def test_breaker_is_not_green(inbox):  # noqa: F811
    """What is behind the handler is down: nothing is given up, the state says what it was told, and it closes by
    itself."""
    i = inbox(partitions=1)
    rules = [{"match": "sqlstate:57P03", "policy": "breaker", "backoff": "100ms", "backoff_max": "200ms"}]
    c = i.consumer(ROW, {"errors": rules}).start().wait_ready()
    i.poison("k0", "57P03")
    i.send(40)
    answer = i.wait_state(c, "error")
    assert "poison" in answer["sentence"] and answer["checks"]["breaker_open"]
    assert c.metric("postrider_consumer_breaker_open") == 1 and c.status()["breaker"]["open"]
    wait_until(lambda: lag(c, i) > 0.5, 30, "the lag")
    i.cure()
    i.check()
    i.wait_state(c, "ok")
    assert c.metric("postrider_consumer_breaker_open") == 0 and i.dead() == []


def test_postgres_away(own_pg, inbox):  # noqa: F811
    """Story (P2): the database is gone for a while. The consumer stays in its group, says error, counts what waits,
    and goes on by itself."""
    pg = own_pg()
    i = inbox(pg=pg, partitions=1)
    c = i.consumer().start().wait_ready()
    i.send(10)
    i.check()
    pg.stop("immediate")
    answer = i.wait_state(c, "error")
    assert answer["sentence"]
    i.send(10)
    wait_until(lambda: lag(c, i) > 1, 30, "the lag")
    assert c.get("/healthz")[0] == 200 and not c.status()["postgres"]["connected"]
    pg.start()
    i.check()
    i.wait_state(c, "ok")
    assert c.metric("postrider_pg_reconnects_total") > 0 and c.metric("postrider_consumer_rebalances_total") == 1


def test_postgres_away_while_idle(own_pg, inbox):  # noqa: F811
    """Nobody needs the database at the moment, and yet it is not green when it is gone."""
    pg = own_pg()
    i = inbox(pg=pg, partitions=1)
    c = i.consumer().start().wait_ready()
    pids = pg.stop_backend("application_name LIKE 'postrider-consumer %'")
    pg.sigstop()  # so that no new connection answers either
    i.wait_state(c, "error")
    pg.sigcont()
    pg.cont_backend(pids)
    flows(i, c)
    pg.stop("immediate")
    i.wait_state(c, "error")
    pg.start()
    flows(i, c)


def test_starts_before_postgres(own_pg, inbox):  # noqa: F811
    """A server that is away at the start is waited for."""
    pg = own_pg()
    i = inbox(pg=pg, partitions=1)
    pg.stop("immediate")
    c = i.consumer().start()
    i.wait_state(c, "error")
    assert c.get("/healthz")[0] == 200 and c.status()["dead_letters"] is None and c.status()["lag_seconds"] is None
    assert 'postrider_dlq_events{group="%s"} NaN' % i.group in c.get("/metrics")[1]
    pg.start()
    i.send(5)
    i.check()
    i.wait_state(c, "ok")


def test_kafka_away(own_kafka, inbox):  # noqa: F811
    """Story: no broker answers. Records may have been written ever since: the silence counts as lag."""
    kafka = own_kafka()
    i = inbox(kafka_=kafka, partitions=1)
    c = i.consumer().start().wait_ready()
    i.send(10)
    i.check()
    i.wait_state(c, "ok")
    kafka.sigstop()
    i.wait_state(c, "error")
    wait_until(lambda: lag(c, i) > 2, 30, "the lag")
    assert not c.status()["kafka"]["connected"]
    kafka.sigcont()
    i.wait_state(c, "ok")
    flows(i, c)
    wait_until(lambda: lag(c, i) == 0, 30, "no lag")


def test_lost_partition_is_not_shown(inbox):  # noqa: F811
    """A partition that went to another member has its lag there; what was known of it here is no longer true."""
    i = inbox(partitions=2)
    one = i.consumer(config={"member": "one"}).start().wait_ready()
    wait_until(lambda: one.metric("postrider_consumer_assigned_partitions") == 2, 30, "both partitions")
    wait_until(lambda: lag(one, i, 0) == 0 and lag(one, i, 1) == 0, 30, "both lags")
    two = i.consumer(config={"member": "two"}).start()
    wait_until(lambda: one.metric("postrider_consumer_assigned_partitions") == 1, 60, "one partition")
    i.wait_state(two, "ok")

    def shown(c):
        return sorted(p for p in (0, 1) if lag(c, i, p) == 0)
    wait_until(lambda: sorted(shown(one) + shown(two)) == [0, 1], 30, "each lag once")
    assert [lag(one, i, p) for p in (0, 1) if p not in shown(one)] != [0]


def test_lag_of_a_stuck_handler(inbox):  # noqa: F811
    """Records that were read and are not handled age by their own timestamps, from before this process began."""
    i = inbox(partitions=1)
    i.poison("k", "wait")
    i.event("k", timestamp=int((time.time() - 3600) * 1000))
    i.flush()
    with i.db.connect() as conn, conn.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(4711)")
        c = i.consumer().start()
        wait_until(lambda: 3599 < (lag(c, i) or 0) < 3700, 60, "an hour of lag", ignore=(OSError,))
        answer = i.wait_state(c, "warn")
        assert "s old" in answer["sentence"]
        cur.execute("SELECT pg_advisory_unlock(4711)")
    i.check()
    i.wait_state(c, "ok")


# ---------------------------------------------------------------- the keeper

def test_ids_are_rotated(inbox):  # noqa: F811
    """Remembered ids live in slots; at most three at a time are kept, and duplicates are known across them. Slots are made older than
    they are, so that the duplicate has all of keep to come."""
    i = inbox(partitions=1)
    c = i.consumer(config={"inbox": {"keep": "60s", "horizon": "1s"}}).start().wait_ready()
    id = i.event("k")
    i.check()
    older = "UPDATE inbox.slot SET opened_at = opened_at - interval '61 s', closed_at = closed_at - interval '61 s'"
    i.db.query(older)
    wait_until(lambda: i.one("SELECT max(slot) FROM inbox.slot") >= 2, 30, "a new slot")
    i.put("k", json.dumps({"seq": 1}), [("id", id), ("type", "Moved")])
    i.flush()
    wait_until(lambda: c.metric("postrider_inbox_duplicates_total") == 1, 30, "the duplicate")
    i.db.query(older)
    wait_until(lambda: i.one("SELECT min(slot) FROM inbox.slot") >= 2, 30, "the oldest dropped")
    assert i.one("SELECT count(*) FROM inbox.slot") <= 3
    i.wait_state(c, "ok")
    i.send(10)
    i.check()


def test_what_steps_of_sagas_did_is_rotated(inbox):  # noqa: F811
    """Story: nobody rotated the barriers of those who only take part in sagas: they grew for ever."""
    i = inbox(partitions=1)
    c = i.consumer(config={"inbox": {"sagas": "4s"}}).start().wait_ready()
    i.db.query("SELECT saga.barrier(outbox.uuid7(), 'SEAT', 'do', outbox.uuid7())")
    wait_until(lambda: i.one("SELECT max(slot) FROM saga.slot") >= 2, 30, "a new slot")
    wait_until(lambda: i.one("SELECT count(*) FROM saga.barrier") == 0, 60, "the barrier to be dropped")
    assert i.one("SELECT who FROM saga.keeper") == f"consumer {c.group}"
    i.wait_state(c, "ok")


def dead_letter_topic(i, config=None):
    return i.kafka.create_topic(f"dead.{i.name}", 1, config)


def published(i):
    return i.one("SELECT count(*) FROM inbox.dead_letter WHERE published_at IS NOT NULL")


def test_dead_letters_on_their_topic(inbox):  # noqa: F811
    """The record as it was, with the headers of both families; a tombstone stays one."""
    i = inbox(partitions=1)
    topic = dead_letter_topic(i)
    c = i.consumer(config={"dead_letter": {"topic": topic}}).start().wait_ready()
    i.poison("bad", "23505")
    id = i.event("bad", {"n": 1}, timestamp=1700000000123)
    i.put("tomb", None, [("id", "none"), ("type", "Gone"), ("mine", b"\xff\x00"), ("empty", None)])
    i.flush()
    i.wait_dead(2)
    wait_until(lambda: published(i) == 2, 60, "both published")
    first, second = sorted(read_topic(i.kafka, topic, 2), key=lambda r: r.key)
    assert (first.key, json.loads(first.value)) == (b"bad", {"seq": 1, "n": 1})
    assert header(first, "id").decode() == id and header(first, "type") == b"Moved"
    spring = {k: v for k, v in first.headers if k.startswith("kafka_dlt-")}
    assert spring["kafka_dlt-original-topic"].decode() == i.topic
    assert spring["kafka_dlt-original-partition"] == (0).to_bytes(4, "big")
    assert spring["kafka_dlt-original-timestamp"] == (1700000000123).to_bytes(8, "big")
    assert spring["kafka_dlt-original-consumer-group"].decode() == i.group
    assert spring["kafka_dlt-exception-fqcn"] == b"sqlstate:23505" and b"poison" in spring["kafka_dlt-exception-message"]
    connect = {k[len("__connect.errors."):]: v for k, v in first.headers if k.startswith("__connect.errors.")}
    assert (connect["topic"].decode(), connect["partition"], connect["connector.name"].decode()) == (i.topic, b"0", i.group)
    assert int(connect["offset"]) == int.from_bytes(spring["kafka_dlt-original-offset"], "big")
    assert connect["exception.class.name"] == b"sqlstate:23505" and connect["stage"] == b"TASK_PUT"
    assert (second.key, second.value) == (b"tomb", None)
    assert (header(second, "mine"), header(second, "empty")) == (b"\xff\x00", None)
    i.wait_state(c, "ok")


def test_dead_letter_topic_that_is_not_there(inbox):  # noqa: F811
    """Story: nobody made the topic. Handling goes on, dead letters stay in the table, the state says so; once the
    topic is there they arrive, in order."""
    i = inbox(partitions=1)
    topic = f"dead.{i.name}"
    c = i.consumer(config={"dead_letter": {"topic": topic}}).start().wait_ready()
    i.poison("bad", "23505")
    for _ in range(3):
        i.event("bad")
    i.send(30)
    i.wait_dead(3)
    i.wait_count(30)
    answer = i.wait_state(c, "warn")
    assert topic in answer["checks"]["dead_letter_topic"] and published(i) == 0
    # The keeper is not held up by it: orders are obeyed meanwhile.
    assert i.one("SELECT inbox.pause(%s)", (i.group,)) and i.wait_state(c, "paused", 15)
    assert i.one("SELECT inbox.resume(%s)", (i.group,))
    i.kafka.create_topic(topic, 1)
    wait_until(lambda: published(i) == 3, 60, "all published")
    assert [json.loads(r.value)["seq"] for r in read_topic(i.kafka, topic, 3)] == [1, 2, 3]
    i.wait_state(c, "ok")


def test_dead_letter_too_large_for_the_topic(inbox):  # noqa: F811
    """Story: a broker refuses the batch that holds a record too large, with all that is in it. Only that one stays in
    the table; it holds up no other. They wait before the keeper comes, so that they leave together."""
    i = inbox(partitions=1)
    topic = dead_letter_topic(i, {"max.message.bytes": "20000"})
    c = i.consumer().start()
    for n in range(20):
        i.put(f"k{n}", "x" * (50000 if n in (3, 10, 16) else 100), [("id", f"none{n}")])
    i.flush()
    i.wait_dead(20)
    assert c.terminate() == 0
    c.rewrite({"dead_letter": {"topic": topic}})
    c.start()
    wait_until(lambda: published(i) == 17, 60, "the small ones")
    answer = i.wait_state(c, "warn")
    assert "max.message.bytes" in answer["hint"]
    i.kafka.set_topic_config(topic, {"max.message.bytes": "1000000"})
    wait_until(lambda: published(i) == 20, 60, "the large ones")
    i.wait_state(c, "ok")


def test_dead_letters_are_published_by_one_member(inbox):  # noqa: F811
    """Two members see the same table; each dead letter goes out once."""
    i = inbox(partitions=2)
    topic = dead_letter_topic(i)
    config = {"dead_letter": {"topic": topic}}
    i.consumer(config={**config, "member": "one"}).start().wait_ready()
    i.consumer(config={**config, "member": "two"}).start()
    for n in range(300):
        i.put(f"k{n}", "{}", [("id", f"none{n}")])
    i.flush()
    i.wait_dead(300)
    wait_until(lambda: published(i) == 300, 60, "all published")
    ids = [header(r, "id") for r in read_topic(i.kafka, topic, 300)]
    assert len(ids) == len(set(ids)) == 300
    stays(lambda: i.kafka.end_offsets(topic)[0] == 300, 1, "300 records")
