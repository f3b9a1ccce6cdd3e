"""tests/e2e/test_refusals.py -- what a relay must not do: go on with a database, a position or a configuration that
are not the ones it knows. Each refusal names what is wrong and what to do, exits 78, and changes nothing;
and what is only away for a while is no refusal.
"""
import copy
import json
import os
import re
import shutil
import subprocess

import pytest

import servers
from outbox import Outbox, by_key, unique
from wait import wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def post(pg_server, kafka):
    """A stopped relay that has published one event."""
    with Outbox(pg_server, kafka, "refuse", config={"kafka": {"timeout": "5s"}}) as o:
        o.start()
        o.kept = o.kind()
        o.publish(o.kept[0], "k", type="1")
        o.read(o.kept[1], 1)
        wait_until(lambda: o.one("SELECT published_seq FROM outbox.relay") == 1, 60, "the position to be reported")
        yield o.stop()


def refused(relay, *words, code=78, timeout=60, **start):
    """Starts it and sees it end with the code, naming each of the words."""
    if os.path.exists(relay.log):
        os.truncate(relay.log, 0)
    relay.start(**start)
    got = relay.wait(timeout)
    text = relay.log_text()
    assert got == code, (got, text)
    missing = [w for w in words if not re.search(w, text)]
    assert not missing, f"{missing} not in\n{text}"
    return text


def position_of(o):
    done = o.run("position", "show", "--json")
    return json.loads(done.stdout)["position"]


def put_raw(o, value):
    """A record on the position topic, as a broken or foreign program would write it."""
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": o.kafka.bootstrap, "log_level": 0})
    p.produce(f"postrider.positions.{o.name}", value, o.name, 0)
    assert p.flush(60) == 0


def changed(position, **change):
    p = copy.deepcopy(position)
    for k, v in change.items():
        if isinstance(v, dict):
            p[k].update(v)
        else:
            p[k] = v
    return p


AHEAD = str(10**15)
POSITIONS = {
    "another system": ({"system": "7000000000000000001"}, ["7000000000000000001", "position adopt"]),
    "another timeline": ({"timeline": 7}, ["timeline 7", "position adopt"]),
    "ahead by seq": ({"from": {"l": AHEAD}}, [AHEAD, "ahead of the database", "position adopt"]),
    "ahead by xid": ({"from": {"snapshot": f"{AHEAD}:{AHEAD}:"}}, [AHEAD, "ahead of the database", "position adopt"]),
    "ahead by WAL": ({"lsn": str(2**62)}, ["ahead of the database", "WAL", "position adopt"]),
    "unknown version": ({"v": 99}, ["version 99", "knows 1"]),
    "no snapshot": ({"from": {"snapshot": "1:2; DROP TABLE x"}}, ["malformed"]),
    "negative": ({"seq": "x"}, ["malformed"]),
}


@pytest.mark.parametrize("what", POSITIONS)
def test_position_of_another_database(post, what):
    """A restore, a failover or a wrong conninfo: the position speaks of transactions that this database does
    not have. Going on would skip or repeat silently."""
    change, words = POSITIONS[what]
    good = position_of(post)
    put_raw(post, json.dumps(changed(good, **change)))
    try:
        refused(post.relay, *words)
        if what == "another system":  # the operator's verb sees the same
            done = post.run("position", "show", "--json")
            assert done.returncode == 3 and "7000000000000000001" in json.loads(done.stdout)["problem"]
    finally:
        put_raw(post, json.dumps(good))


def test_position_is_not_ours(post):
    good = position_of(post)
    for value in (b"", b"hello", b"[1]", b'{"v": "1"}', b"\0" * 100, b'{"v":1}', b"[" * 100000):
        put_raw(post, value)
        refused(post.relay, "position", "refuse")
    put_raw(post, json.dumps(good))


def test_after_all_refusals_it_goes_on(post):
    """None of them changed anything: with the right position back, the next event goes, and no old one."""
    kind, topic = post.kept
    post.publish(kind, "k", type="2")
    post.start()
    assert by_key(post.read(topic, 2)) == {"k": ["1", "2"]}
    post.stop()


def test_adopt(post):
    """What the refusal tells to do works: adopt takes this database's identity, and the relay goes on with what
    is committed after it."""
    kind, topic = post.kind()
    put_raw(post, json.dumps(changed(position_of(post), system="1")))
    refused(post.relay, "position adopt")
    post.publish(kind, "k", type="counts as published")
    assert post.run("position", "adopt").returncode == 5  # needs --yes
    post.run("position", "adopt", "--yes", check=True)
    post.publish(kind, "k", type="new")
    post.start()
    assert by_key(post.read(topic, 1)) == {"k": ["new"]}
    post.stop()


def test_another_relay_on_this_outbox(post):
    """A second name would be a second position: every event would be published twice."""
    post.relay.override = [f"name={post.name}2"]
    post.run("init", "-o", f"name={post.name}2", check=True)
    try:
        refused(post.relay, f'named .*{post.name}', "position adopt")
    finally:
        post.relay.override = []


# ---------------------------------------------------------------- the position topic

def topic_of(o):
    return f"postrider.positions.{o.name}"


def test_position_is_lost(pg_server, kafka):
    """The position topic was deleted and made anew, or kafka.brokers names another cluster: the database knows
    that a position was written. Starting over would publish everything twice."""
    with Outbox(pg_server, kafka, "lost") as o:
        kind, topic = o.kind()
        refused_topic = topic_of(o)
        o.start()
        o.publish(kind, "k", type="1")
        o.read(topic, 1)
        wait_until(lambda: o.one("SELECT published_seq FROM outbox.relay") == 1, 60, "the position to be reported")
        o.stop()
        kafka.delete_topic(refused_topic)
        refused(o.relay, "does not exist", "postrider init", refused_topic)
        kafka.create_topic(refused_topic, 2, {"cleanup.policy": "compact"})
        refused(o.relay, "2 partitions", "must have 1")
        kafka.delete_topic(refused_topic)
        kafka.create_topic(refused_topic, 1, {"cleanup.policy": "delete"})
        refused(o.relay, "cleanup.policy=delete", "must be compact")
        kafka.set_topic_config(refused_topic, {"cleanup.policy": "compact"})
        refused(o.relay, "holds no position", "position set --earliest", "position adopt")
        assert o.run("position", "show").returncode == 4
        o.publish(kind, "k", type="2")
        # One of the two ways that the refusal names.
        o.run("position", "set", "--earliest", "--yes", check=True)
        o.start()
        assert by_key(o.read(topic, 2)) == {"k": ["1", "1", "2"]}


def test_position_topic_was_never_made(pg_server, kafka, empty_db, cli):
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    name = unique("never")
    r = servers.Relay(empty_db.conninfo, kafka.bootstrap, name=name)
    refused(r, f'postrider.positions.{name}.* does not exist', "postrider init", f"--name {name}")
    assert f"postrider.positions.{name}" not in kafka.topics()
    assert empty_db.query("SELECT * FROM outbox.relay") == []


# ---------------------------------------------------------------- the database

SCHEMAS = {
    "none": ("", ["not installed", "postrider init"]),
    "foreign": ("CREATE SCHEMA outbox; CREATE TABLE outbox.event (x int)", ["not ours", "RENAME"]),
    "foreign inbox": ("CREATE SCHEMA inbox; CREATE TABLE inbox.mail (x int)", ["inbox.* not ours", "RENAME"]),
    "newer": ("INSERT INTO outbox.schema_version (number, name) VALUES (999, '0999_later')", ["newer", "0999_later"]),
    "older": ("DELETE FROM outbox.schema_version WHERE number = (SELECT max(number) FROM outbox.schema_version)",
              ["older|not installed|half", "postrider init|apply"]),
    "half": ("UPDATE outbox.schema_version SET number = 999 WHERE number = 1", ["half upgraded|newer|not ours"]),
    "renamed": ("UPDATE outbox.schema_version SET name = 'other'", ["not ours|half"]),
}


def test_schema_is_not_ours(pg_server, kafka, empty_db, cli):
    r = servers.Relay(empty_db.conninfo, kafka.bootstrap, name=unique("schema"))
    for what, (sql, words) in SCHEMAS.items():
        if what not in ("none", "foreign", "foreign inbox"):
            cli("init", "--conninfo", empty_db.conninfo, check=True)
        if sql:
            empty_db.psql(sql)
        refused(r, *words)
        empty_db.psql("DROP SCHEMA IF EXISTS outbox CASCADE; DROP SCHEMA IF EXISTS inbox CASCADE; "
                       "DROP SCHEMA IF EXISTS saga CASCADE")


def test_standby(own_pg, kafka):
    """On a standby rows become visible in another order than their transactions took their snapshots on the
    primary. A relay that is pointed at one must not read from it."""
    pg = own_pg()
    db = pg.createdb("orders")
    name = unique("standby")
    servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", name, check=True)
    replica = servers.Postgres()
    shutil.rmtree(replica.data)
    front = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run([*front, os.path.join(pg.bindir, "pg_basebackup"), "-D", replica.data, "-R", "-X", "stream",
                           "-c", "fast", "-d", pg.conninfo()], capture_output=True, text=True, cwd="/", timeout=180)
    assert done.returncode == 0, done.stderr
    replica.start()
    try:
        r = servers.Relay(replica.conninfo("orders"), kafka.bootstrap, name=name)
        refused(r, "standby", "target_session_attrs=read-write|primary")
        # libpq finds the primary among several hosts, as the hint says.
        r = servers.Relay(f"host=127.0.0.1,127.0.0.1 port={replica.port},{pg.port} dbname=orders user=postgres "
                          "target_session_attrs=read-write", kafka.bootstrap, name=name)
        r.start().wait_ready()
        assert r.terminate() == 0
    finally:
        replica.stop("immediate")


# ---------------------------------------------------------------- the configuration

BAD = {
    "kafka.properties": [("enable.idempotence=false", "enable.idempotence"), ("acks=1", "acks"),
                         ("transactional.id=x", "transactional.id"), ("partitioner=random", "partitioner"),
                         ("message.timeout.ms=1", "message.timeout.ms"), ("retries=0", "retries"),
                         ("plugin.library.paths=x", "plugin.library.paths"), ("no.such.thing=1", "no.such.thing"),
                         ("linger.ms=many", "linger.ms"), ("linger.ms", "linger.ms")],
    "delivery": [("exactly", "exactly_once")], "limits.batch_events": [("0", "batch_events"), ("1e9", "batch_events")],
    "limits.batch_bytes": [("8", "batch_bytes"), ("1000TB", "batch_bytes"), ("-8MB", "batch_bytes")],
    "limits.poll_max": [("10", "poll_max"), ("", "poll_max")], "name": [("UPPER case", "name"), ("", "name")],
    "route.topic": [("a b", "topic"), ("${nothing}", "nothing|topic")],
    "retention.keep": [("-1d", "keep"), ("99999999999999999999d", "keep")],
    "http.listen": [("nowhere", "listen"), ("127.0.0.1:99999", "listen")], "log.level": [("loud", "level")],
    "limits.batch_evnts": [("1", "batch_events")], "nothing": [("x", "nothing")],
}


def test_bad_values(post):
    """A value that would break the guarantee or mean nothing: named by its key, before anything is contacted."""
    path = servers.bin_path("postrider-relay")
    for key, values in BAD.items():
        for value, word in values:
            given = f'{key}=( "{value}" )' if key == "kafka.properties" else f"{key}={value}"
            done = subprocess.run([path, "-c", post.relay.file, "--check", "-o", given], capture_output=True, text=True,
                                  timeout=60, env=servers._clean_env())
            assert done.returncode == 78, (given, done)
            assert re.search(word, done.stderr) and done.stdout == "", (given, done.stderr)
            assert len(done.stderr.strip().splitlines()) <= 3, done.stderr
    text = refused(post.relay.__class__(post.db.conninfo, post.kafka.bootstrap, name=post.name,
                                        config={"kafka": {"properties": ["acks=0"]}}), "acks", "may not be set")
    assert "relay started" not in text


# ---------------------------------------------------------------- away is not wrong

def test_another_producer_takes_our_id(post):
    """Somebody opens a producer with the relay's transactional id, as a second relay would that does not see
    the lock: we are fenced, let go, and take over again. Every event is there once."""
    from confluent_kafka import Producer
    kind, topic = post.kind()
    post.start()
    for i in range(3):
        post.publish(kind, "k", type=str(2 * i))
        p = Producer({"bootstrap.servers": post.kafka.bootstrap, "transactional.id": f"postrider.{post.name}",
                      "log_level": 0})
        p.init_transactions(60)
        post.publish(kind, "k", type=str(2 * i + 1))
        assert len(post.read(topic, 2 * i + 2)) == 2 * i + 2
        del p
    assert by_key(post.read(topic, 6)) == {"k": [str(i) for i in range(6)]}
    fenced = [v for k, v in post.relay.metrics().items() if k.startswith("postrider_producer_restarts_total{")
              and 'reason="fenced"' in k]
    assert sum(fenced) >= 1
    post.wait_state("ok")
    post.stop()


def test_servers_that_are_away(own_pg, own_kafka):
    """Postgres and Kafka are both down when the relay starts: that is no refusal. It waits, /healthz is well,
    /readyz says 503 and why, and when they are there it publishes."""
    pg, k = own_pg(), own_kafka(warm=False)
    with Outbox(pg, k, "away", config={"kafka": {"timeout": "2s"}, "source": {"timeout": "2s"}}) as o:
        kind, topic = o.kind()
        o.publish(kind, "k", type="1")
        o.conn.close()
        pg.stop("fast")
        o.relay.start()
        answer = o.wait_state("error")
        assert answer["checks"]["postgres"] != "ok" and "connect" in answer["sentence"], answer
        assert o.relay.get("/healthz")[0] == 200
        wait_until(lambda: o.relay.metric("postrider_lag_seconds") > 0, 60, "the lag to grow")
        k.stop()
        pg.start()
        wait_until(lambda: o.readyz()[1]["checks"]["postgres"] == "ok", 60, "Postgres to be well")
        wait_until(lambda: o.readyz()[1]["checks"]["kafka"] != "ok", 60, "Kafka to be named")
        status, answer = o.readyz()
        assert status == 503 and not answer["ready"] and o.relay.get("/healthz")[0] == 200
        wait_until(lambda: o.relay.metric("postrider_lag_seconds") > 1, 60, "the lag to grow on")
        k.start()
        o.conn = o.db.connect()
        o.publish(kind, "k", type="2")
        assert by_key(o.read(topic, 2)) == {"k": ["1", "2"]}
        o.wait_state("ok")
        o.stop()
