"""tests/e2e/test_consumer_topics.py -- a group without a database: positions in Kafka, what fails in retry
topics, then among the dead letters, with headers that Spring reads and writes.
"""
import json
import os
import struct
import subprocess
import time

import pytest
import servers
from outbox import header
from test_consumer_http import receiver  # noqa: F401
from topics import topics  # noqa: F401
from wait import stays, wait_until

pytestmark = pytest.mark.timeout(240)
PATIENT = "30s"  # for counts: a transaction that a busy broker takes long for is not given up, and done again


# ---------------------------------------------------------------- as Spring reads them

def big_integer(b):
    """new BigInteger(bytes).longValue()"""
    assert 1 <= len(b) <= 8
    return int.from_bytes(b, "big", signed=True)


def spring(record):
    """The headers as Spring's retry topic listener decodes them."""
    h = dict(record.headers)
    out = {
        "topic": h["kafka_dlt-original-topic"].decode(),
        "partition": struct.unpack(">i", h["kafka_dlt-original-partition"])[0],
        "offset": struct.unpack(">q", h["kafka_dlt-original-offset"])[0],
        "timestamp": struct.unpack(">q", h["kafka_dlt-original-timestamp"])[0],
        "timestamp_type": h["kafka_dlt-original-timestamp-type"].decode(),
        "group": h["kafka_dlt-original-consumer-group"].decode(),
        "cause": h["kafka_dlt-exception-fqcn"].decode(),
        "message": h["kafka_dlt-exception-message"].decode(),
        "stacktrace": h["kafka_dlt-exception-stacktrace"].decode(),
    }
    if "retry_topic-attempts" in h:
        out["attempts"] = struct.unpack(">i", h["retry_topic-attempts"])[0]
        out["due"] = big_integer(h["retry_topic-backoff-timestamp"])
        out["original"] = big_integer(h["retry_topic-original-timestamp"])
        assert len(h["retry_topic-backoff-timestamp"]) == 6, "as few bytes as BigInteger takes"
    return out


# ---------------------------------------------------------------- the ordinary case

@pytest.mark.asan
def test_all_is_handled_and_the_offsets_say_so(topics):  # noqa: F811
    """No database anywhere: events are handled in order per key, the group's offsets are where the topic ends, a stop
    drains, and the next start begins behind it."""
    t = topics(timeout=PATIENT)
    ids = t.send(300)
    c = t.consumer().start()
    t.wait_done(ids)
    t.wait_stands()
    t.wait_state(c, "ok")
    wait_until(lambda: c.status()["handled"]["handled"] == 300 and all(p["lag_events"] == 0 for p in c.status()["partitions"]), 60, "the counts")
    status = c.status()
    assert status["postgres"] is None
    assert {p["topic"] for p in status["partitions"]} == {t.topic, t.retry(1), t.retry(2)}
    assert all(p["lanes"] == 1 for p in status["partitions"])
    assert c.metric("postrider_parked_events") == 0
    assert c.terminate() == 0, c.log_text()[-2000:]
    more = t.send(50)
    c.start()
    t.wait_done(more)
    t.wait_stands()
    t.check_order()
    assert len(t.tries()) == 350, "nothing was handled twice"
    assert t.kafka.topics()[t.retry(1)] == t.kafka.topics()[t.dead] == 3, "as many partitions as the source"


@pytest.mark.asan
@pytest.mark.tsan
def test_a_failure_takes_all_retry_topics(topics):  # noqa: F811
    """Story: one event fails at each try. It goes through both retry topics, never before its time, and then to the
    dead letters with its undo; the others of its key and of other keys do not wait for it."""
    t = topics(timeout=PATIENT)
    t.poison("bad", "fail 9 sold_out")
    bad = t.event("bad", timestamp=1700000000123)
    good = t.send(30)
    c = t.consumer({"handler": {"undo": True}}).start()
    t.wait_done(good)
    letters = t.wait_dead(1)
    t.wait_stands()
    assert [(x["op"], x["attempt"]) for x in t.tries(bad)] == [("do", 1), ("do", 2), ("do", 3), ("undo", 4)]
    first, second = t.read(t.retry(1)), t.read(t.retry(2))
    assert len(first) == len(second) == len(letters) == 1
    for n, r in enumerate((first[0], second[0]), 1):
        s = spring(r)
        assert (s["attempts"], s["original"]) == (n + 1, 1700000000123)
        failed, tried = (next(x for x in t.tries(bad) if x["attempt"] == a) for a in (n, n + 1))
        delay = (300, 600)[n - 1]
        assert s["due"] >= int(failed["at"] * 1000) + delay and s["due"] - r.time <= delay + 200, "so long after it failed"
        assert tried["at"] * 1000 >= s["due"], "handled before it was due"
    s = spring(letters[0])
    source = next(r for r in t.read(t.topic) if header(r, "id").decode() == bad)
    assert (s["topic"], s["partition"], s["offset"]) == (t.topic, source.partition, source.offset)
    assert (s["timestamp"], s["timestamp_type"], s["group"]) == (1700000000123, "CreateTime", t.group)
    assert (s["cause"], s["message"]) == ("reply:sold_out", "no\u00a0luck")
    h = dict(letters[0].headers)
    assert h["__connect.errors.topic"].decode() == t.topic and h["postrider-attempts"] == b"3"
    assert (letters[0].key, letters[0].value) == (source.key, source.value) and h["id"].decode() == bad
    assert len(letters[0].headers) == len(h), "no header comes twice"
    assert {x["topic"] for x in t.tries(bad)} == {t.topic}, "handlers are told where it stood first"
    assert {(x["partition"], x["offset"]) for x in t.tries(bad)} == {(source.partition, source.offset)}
    assert all(x["time"].startswith("2023-11-14T22:13:20.123") for x in t.tries(bad))
    wait_until(lambda: (h := c.status()["handled"])["parked"] == 2 and h["dead_letter"] == 1, 60, "the counts")


def test_a_waiting_retry_is_seen_and_stops_nobody(topics):  # noqa: F811
    """While a retry waits for its time the consumer says so, handles everything else, stays in the group, and stops
    when it is told; the wait goes on at the next start."""
    t = topics(delays=("20s",), partitions=1, timeout=PATIENT)
    t.poison("bad", "fail 1 busy")
    bad = t.event("bad")
    good = t.send(20)
    c = t.consumer().start()
    t.wait_done(good)
    v = t.wait_state(c, "warn")
    assert "retry topics" in v["sentence"], v
    assert c.metric("postrider_parked_events") >= 1
    more = t.send(20)
    t.wait_done(more)
    assert bad not in t.done()
    assert c.terminate() == 0
    c.start()
    t.wait_done([bad], 90)
    due = spring(t.read(t.retry(1))[0])["due"]
    first, second = t.tries(bad)
    assert second["at"] * 1000 >= due and second["attempt"] == 2
    t.wait_state(c, "ok")
    assert c.status()["rebalances"] == 1, "nobody left the group"


def test_the_key_goes_on_without_it(topics):  # noqa: F811
    """The price of having no database: what comes behind a failed event of its key is handled before its retry."""
    t = topics(delays=("10s",), timeout=PATIENT)
    t.poison("k", "fail 1 busy")
    first = t.event("k")
    t.flush()
    t.consumer().start()
    # Not the try itself: what it fails of is read after it was noted.
    wait_until(lambda: t.retry(1) in t.kafka.topics() and t.read(t.retry(1)), 60, "it to have failed")
    t.cure("k")
    second = t.event("k")
    t.flush()
    t.wait_done([first, second])
    assert [e["id"] for e in t.effects()] == [second, first]


def test_policies(topics):  # noqa: F811
    """retry in place, ignore, dead letter at once and the breaker are as with a database."""
    t = topics(partitions=1, timeout=PATIENT)
    rules = [{"match": "reply:again", "policy": "retry", "attempts": 3, "backoff": "50ms"},
             {"match": "reply:never", "policy": "dead_letter"}, {"match": "reply:fine", "policy": "ignore"},
             {"match": "reply:down", "policy": "breaker", "backoff": "100ms", "backoff_max": "200ms"}]
    t.poison("again", "fail 2 again")
    t.poison("never", "fail 9 never")
    t.poison("fine", "fail 9 fine")
    t.poison("down", "fail 9 down")
    again, never, fine = t.event("again"), t.event("never"), t.event("fine")
    t.flush()
    c = t.consumer({"errors": rules}).start()
    t.wait_done([again])
    assert [x["attempt"] for x in t.tries(again)] == [1, 2, 3]
    assert header(t.wait_dead(1)[0], "id").decode() == never
    down = t.event("down")
    t.flush()
    t.wait_state(c, "error")
    t.cure("down")
    t.wait_done([down])
    t.wait_state(c, "ok")
    assert fine not in t.done() and c.status()["handled"]["ignored"] == 1
    assert not t.read(t.retry(1)), "none of them asks for a retry topic"


def test_for_ever(topics):  # noqa: F811
    """attempts = 0: the last retry topic again and again, never a dead letter."""
    t = topics(delays=("100ms",), partitions=1, timeout=PATIENT)
    t.poison("bad", "fail 5 busy")
    bad = t.event("bad")
    t.flush()
    t.consumer({"errors": [{"match": "*", "policy": "park", "attempts": 0}]}).start()
    t.wait_done([bad])
    assert [x["attempt"] for x in t.tries(bad)] == [1, 2, 3, 4, 5, 6]
    assert len(t.read(t.retry(1))) == 5 and not t.read(t.dead)


def test_without_delays_what_fails_is_a_dead_letter(topics):  # noqa: F811
    """No retry topics: policy park has nowhere to go but to the dead letters, under the configured name."""
    t = topics(delays=())
    t.poison("bad", "fail 9 busy")
    bad = t.event("bad")
    t.flush()
    t.consumer({"dead_letter": {"topic": f"letters.{t.group}"}}).start()
    r = wait_until(lambda: f"letters.{t.group}" in t.kafka.topics() and t.read(f"letters.{t.group}"), 60)
    assert header(r[0], "id").decode() == bad and len(t.tries(bad)) == 1
    assert t.dead not in t.kafka.topics()


def test_lanes_change_while_a_retry_waits(topics):  # noqa: F811
    """Story: another number of lanes by SIGHUP while a message waits for its time: the partitions are spread anew at
    once, nothing is handled twice, and the message is handled when it is due."""
    t = topics(delays=("20s",), partitions=1, timeout=PATIENT)
    t.poison("bad", "fail 1 busy")
    bad = t.event("bad")
    t.flush()
    c = t.consumer().start()
    t.wait_state(c, "warn")
    c.rewrite({"lanes": 4})
    c.hup()
    wait_until(lambda: c.status()["lanes"] == 4 and c.status()["lanes_changing"] == 0 and
               len(c.status()["partitions"]) == 2, 60, "the partitions to be spread anew")
    good = t.send(20)
    t.wait_done(good)
    assert bad not in t.done()
    t.wait_done([bad])
    assert len(t.tries()) == 22
    t.wait_state(c, "ok")


def test_http_without_a_database(topics, receiver):  # noqa: F811
    """A webhook: one request an event, what it refuses comes again with the same id, and Retry-After picks the retry
    topic that grants it."""
    t = topics(delays=("100ms", "2s"), timeout=PATIENT)
    seen = []

    def judge(event):
        seen.append((event["id"], event["attempt"], time.time()))
        return (422, {"Retry-After": "1"}) if event["key"] == "bad" and event["attempt"] == 1 else 204
    bad, good = t.event("bad"), t.send(20)
    t.consumer({"errors": [{"match": "http:422", "policy": "park"}]},
               handler={"kind": "http", "url": receiver(judge).url}).start()
    wait_until(lambda: (bad, 2) in {s[:2] for s in seen} and len(seen) >= 22, 60, "all to be posted")
    assert sorted(s[0] for s in seen) == sorted(good + [bad, bad])
    first, second = (s[2] for s in seen if s[0] == bad)
    assert second - first >= 1 and not t.read(t.retry(1)) and len(t.read(t.retry(2))) == 1


# ---------------------------------------------------------------- records of others

def put_retry(t, attempts, due, original=1700000000123, headers=(), topic=None):
    """A record as Spring's recoverer leaves it in a retry topic."""
    id = t.event("foreign-source")  # only for its id and payload
    t.sent.pop(id)
    due = due.to_bytes(due.bit_length() // 8 + 1, "big", signed=True)
    original = original.to_bytes(original.bit_length() // 8 + 1, "big", signed=True)
    retried = "11111111-" + id[9:]
    t.producer.produce(topic or t.retry(1), json.dumps({"seq": 1}), "foreign", partition=0, headers=[
        ("id", retried), ("type", "Moved"), ("retry_topic-attempts", attempts),
        ("retry_topic-backoff-timestamp", due), ("retry_topic-original-timestamp", original),
        ("kafka_dlt-original-topic", t.topic), ("kafka_dlt-original-partition", struct.pack(">i", 1)),
        ("kafka_dlt-original-offset", struct.pack(">q", 4711)), *headers])
    t.flush()
    return retried


@pytest.mark.parametrize("attempts", [b"\x02", b"\0\0\0\x02"], ids=["byte", "int"])
def test_a_record_of_spring(topics, attempts):  # noqa: F811
    """Spring's attempts are one byte in old versions and four in new ones; its timestamps have as many bytes as they
    need. Its record waits for its time, and is told to the handler as what it was."""
    t = topics(delays=("100ms", "100ms"))
    c = t.consumer().start().wait_ready()
    due = int(time.time() * 1000) + 1500
    id = put_retry(t, attempts, due)
    t.wait_done([id])
    tried, = t.tries(id)
    assert tried["at"] * 1000 >= due and tried["attempt"] == 2
    assert (tried["topic"], tried["partition"], tried["offset"]) == (t.topic, 1, 4711)
    assert tried["time"].startswith("2023-11-14T22:13:20.123")
    assert c.running()


@pytest.mark.parametrize("attempts,due", [(b"", 0), (b"\xff\xff\xff\xff", 1 << 62), (b"\0\0", 4102444800000)])
def test_nonsense_in_retry_headers(topics, attempts, due):  # noqa: F811
    """Attempts of no sense are a first try, and a time far ahead does not stop the partition."""
    t = topics(delays=("100ms", "100ms"))
    t.consumer().start().wait_ready()
    id = put_retry(t, attempts, due)
    t.wait_done([id])
    assert t.tries(id)[0]["attempt"] == 1


def test_an_id_of_the_place_stays(topics):  # noqa: F811
    """id = "offset": the id of a retried message is the one it had, though it stands elsewhere now."""
    t = topics(delays=("100ms",), partitions=1, timeout=PATIENT)
    t.poison("bad", "fail 1 busy")
    t.producer.produce(t.topic, json.dumps({"seq": 1}), "bad")
    t.flush()
    t.consumer({"id": "offset"}).start()
    wait_until(lambda: t.effects(), 60)
    assert {x["id"] for x in t.tries()} == {f"{t.topic}-0-0"} and len(t.tries()) == 2


# ---------------------------------------------------------------- topics

def test_topics_that_are_there_are_taken(topics):  # noqa: F811
    """Retry topics with fewer partitions than the source serve all of its partitions."""
    t = topics(delays=("100ms",))
    t.kafka.create_topic(t.retry(1), 1)
    t.poison("bad0", "fail 1 busy")
    t.poison("bad1", "fail 1 busy")
    t.poison("bad2", "fail 1 busy")
    ids = [t.event(f"bad{p}", partition=p) for p in range(3)]
    t.flush()
    t.consumer().start()
    t.wait_done(ids)
    assert len(t.read(t.retry(1))) == 3 and t.kafka.topics()[t.retry(1)] == 1


def test_a_missing_source_is_waited_for(topics):  # noqa: F811
    """The source topic comes later than the consumer: it says so, and begins by itself."""
    t = topics()
    t.topic = "late." + t.group
    c = t.consumer().start()
    v = t.wait_state(c, "error")
    assert t.topic in v["sentence"] and "not there" in v["sentence"], v
    t.kafka.create_topic(t.topic, 3)
    ids = t.send(10)
    t.wait_done(ids)
    t.wait_state(c, "ok")


def test_a_dead_letter_that_its_topic_refuses(topics):  # noqa: F811
    """Story: the dead letter topic takes no such record. Nothing is lost: the partition stands, the consumer is red
    and says why, and goes on when the topic takes it; the handler is not bothered meanwhile."""
    t = topics(delays=(), partitions=1)
    t.kafka.create_topic(t.dead, 1, {"max.message.bytes": 1000})
    t.poison("bad", "fail 9 never")
    t.producer.produce(t.topic, json.dumps({"seq": 1, "x": os.urandom(1500).hex()}), "bad", headers=[("id", t.event("bad"))])
    t.flush()
    c = t.consumer().start()
    v = t.wait_state(c, "error")
    assert "dead letter" in v["sentence"] and "max.message.bytes" in v["hint"], v
    tries = len(t.tries())
    stays(lambda: len(t.tries()) == tries, 2, "no further try")
    t.kafka.set_topic_config(t.dead, {"max.message.bytes": 1000000})
    t.wait_dead(2)
    t.wait_state(c, "ok")


# ---------------------------------------------------------------- a C handler

HANDLER = r"""
#include "consumers/postrider_handler.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int open_(const char *options, int lane, void **path, char *error, size_t n)
{ (void)lane; (void)error; (void)n; *path = strdup(options); return POSTRIDER_OPENED; }
static int handle(void *path, PGconn *conn, int op, const struct postrider_message *const *m, size_t n,
	struct postrider_result *const *r)
{
	(void)op;
	if (conn || n != 1)
		return -1;
	if (m[0]->key_size == 3 && memcmp(m[0]->key, "bad", 3) == 0 && m[0]->attempts == 0) {
		r[0]->status = POSTRIDER_FAILED;
		strcpy(r[0]->code, "busy");
		return 0;
	}
	FILE *f = fopen(path, "a");
	fprintf(f, "%s %u\n", m[0]->id, m[0]->attempts);
	fclose(f);
	return 0;
}
const struct postrider_handler postrider_handler = { POSTRIDER_HANDLER_V1, .flags = FLAGS, .open = open_, .handle = handle,
	.close = free };
"""


def build(flags):
    directory = servers.new_dir("library")
    source, library = os.path.join(directory, "h.c"), os.path.join(directory, "h.so")
    with open(source, "w", encoding="ascii") as f:
        f.write(HANDLER)
    include = subprocess.run(["pkg-config", "--cflags", "libpq"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", "-shared", "-fPIC", f"-DFLAGS={flags}", f"-I{servers.ROOT}", *include, "-o", library, source],
                   check=True)
    return library


def test_a_c_handler_without_a_connection(topics):  # noqa: F811
    """conn is NULL, each message is a call, one that fails goes to the retry topic and comes back."""
    t = topics(delays=("100ms",), timeout=PATIENT)
    out = os.path.join(t.dir, "out")
    bad, good = t.event("bad"), t.send(20)
    t.consumer(handler={"kind": "c", "library": build("POSTRIDER_NO_DATABASE"), "options": out}).start()

    def lines():
        with open(out, encoding="ascii") as f:
            return [line.split() for line in f]
    wait_until(lambda: len(lines()) == 21, 60, ignore=(FileNotFoundError,))
    assert sorted(lines()) == sorted([[i, "0"] for i in good] + [[bad, "1"]])


def test_a_c_handler_that_needs_a_connection(topics):  # noqa: F811
    """A library that does not say that it can do without is not called with conn = NULL."""
    t = topics(delays=())
    c = t.consumer(handler={"kind": "c", "library": build("0"), "options": "none"}).start()
    assert c.wait(60) == 78
    assert "needs a database" in c.log_text() and "POSTRIDER_NO_DATABASE" in c.log_text()


# ---------------------------------------------------------------- configuration

@pytest.mark.parametrize("change,said", [
    ({"dedupe": "inbox"}, "dedupe = \"offset\""),
    ({"handler": {"kind": "sql", "function": "a.b", "command": None}}, "is required by handler.kind"),
    ({"handler": {"undo_event": "Undone"}}, "published to the outbox"),
    ({"kafka": {"topics": ["^a.*"]}}, "named one by one"),
    ({"retry": {"delays": ["soon"]}}, "element 1"),
    ({"retry": {"delays": ["8d"]}}, "between 1ms and 7d"),
    ({"retry": {"delays": ["1s"] * 17}}, "at most 16"),
    ({"kafka": {"topics": ["a", "a.retry.g.1"]}, "group": "g"}, "writes what failed to"),
    ({"kafka": {"topics": ["x" * 240]}}, "too long"),
    ({"database": {"conninfo": "dbname=x"}}, "without a database"),
])
def test_bad_configs(change, said, tmp_path):
    """What makes no sense without a database (or with one) is refused by name."""
    tree = {"group": "g", "kafka": {"brokers": "127.0.0.1:1", "topics": ["a"]}, "dedupe": "offset",
            "handler": {"kind": "exec", "command": ["/bin/true"]}, "retry": {"delays": ["1s"]}}
    servers._merge(tree, change)
    tree["handler"] = {k: v for k, v in tree["handler"].items() if v is not None}
    path = servers.write_config(str(tmp_path / "c.cfg"), tree)
    done = servers.Cli("postrider-consumer").run("-c", path, "--check")
    assert done.returncode == 78 and said in done.stdout + done.stderr, done


def test_check_and_print(tmp_path):
    """--check and --print-config know a config without a database."""
    tree = {"group": "g", "kafka": {"brokers": "127.0.0.1:1", "topics": ["a"]}, "dedupe": "offset",
            "handler": {"kind": "exec", "command": ["/bin/true"]}, "retry": {"delays": ["1s", "5m"]}}
    path = servers.write_config(str(tmp_path / "c.cfg"), tree)
    program = servers.Cli("postrider-consumer")
    assert program.run("-c", path, "--check").returncode == 0
    assert '"5m"' in program.run("-c", path, "--print-config", check=True).stdout


def config_file(tmp_path, **change):
    tree = {"group": "g", "kafka": {"brokers": "127.0.0.1:1", "topics": ["a"]}, "dedupe": "offset",
            "handler": {"kind": "exec", "command": ["/bin/true"]}, "retry": {"delays": ["1s", "5m"]}}
    return servers.write_config(str(tmp_path / "c.cfg"), servers._merge(tree, change))


def test_explain_error(tmp_path):
    """explain-error knows what park means without a database, and what it costs."""
    path = config_file(tmp_path, errors=[{"match": "reply:*", "policy": "park"}])
    said = servers.Cli().run("explain-error", "reply:busy", "-c", path, check=True).stdout
    assert "3 in all" in said and "a.retry" not in said and "TOPIC.retry.g.2" in said
    assert "the order of the key is lost" in " ".join(said.split())
    said = json.loads(servers.Cli().run("explain-error", "reply:busy", "-c", path, "--json", check=True).stdout)
    assert (said["policy"], said["attempts"], said["backoff_seconds"]) == ("park", 3, None)
    said = servers.Cli().run("explain-error", "crash", "-c", path, check=True).stdout
    assert said.startswith("crash: dead_letter") and "topic of dead letters" in " ".join(said.split())
    assert "inbox.parked" in servers.Cli().run("explain-error", "crash", check=True).stdout


@pytest.mark.parametrize("verb", [["dlq", "list"], ["parked", "list"], ["pause"]])
def test_verbs_that_need_a_database(tmp_path, verb):
    """They say so, and do not look into whatever database libpq finds."""
    done = servers.Cli().run(*verb, "-c", config_file(tmp_path))
    assert done.returncode == 78 and "has no database" in done.stderr and "--from-topic a.dlt.g" in done.stderr, done
