"""tests/e2e/test_proxy.py -- the fault proxy: transparent when told nothing, exact when told to harm."""
import contextlib
import socket
import subprocess
import sys
import threading
import time

import checker
import psycopg2
import pytest
from confluent_kafka import KafkaException, Producer
from proxy import END_TXN, PRODUCE, Proxy
from servers import free_port
from wait import stays, wait_until

pytestmark = [pytest.mark.asan, pytest.mark.timeout(240)]


@pytest.fixture
def pg(pg_server):
    with Proxy("postgres", pg_server.port) as p:
        yield p


@pytest.fixture
def table(empty_db):
    empty_db.query("CREATE TABLE t (a int)")
    return empty_db


def connect(proxy, db, **more):
    c = psycopg2.connect(proxy.conninfo(db.name, **more), connect_timeout=30)
    c.autocommit = True
    return c


def ask(conn, sql):
    with conn.cursor() as cur:
        cur.execute(sql)
        return cur.fetchall() if cur.description else []


# ---------------------------------------------------------------- transparent

@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_postgres_passes_unharmed(pg, empty_db, sslmode):
    with contextlib.closing(connect(pg, empty_db, sslmode=sslmode)) as c:
        big = ask(c, "SELECT repeat(md5('x'), 1000000)")[0][0]
        assert len(big) == 32000000 and big[:32] == big[-32:]
        assert ask(c, "SELECT md5('" + "y" * 3000000 + "')") == ask(
            empty_db.connect(), "SELECT md5(repeat('y', 3000000))")
        rows = ask(c, "SELECT i FROM generate_series(1, 50000) AS i")
        assert [r[0] for r in rows] == list(range(1, 50001))
        s = pg.stats()
        assert s["down.68"] >= 50000 and s["up.81"] == 3 and s["open"] == 1  # DataRow, Query
    wait_until(lambda: pg.stats()["open"] == 0, 30, "the connection to go")
    assert pg.stats()["fired"] == 0


def test_raw_stream_and_half_close():
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy("raw", server.getsockname()[1]) as p:
        client = socket.create_connection(("127.0.0.1", p.port))
        upstream, _ = server.accept()
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert upstream.makefile("rb").read() == b"question"
        upstream.sendall(b"answer")
        upstream.close()
        assert client.makefile("rb").read() == b"answer"
        client.close()


def test_a_receiver_that_does_not_read_slows_the_sender_down():
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy("raw", server.getsockname()[1]) as p:
        client = socket.create_connection(("127.0.0.1", p.port))
        upstream, _ = server.accept()
        client.setblocking(False)
        sent = 0
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.3:
            try:
                sent += client.send(b"z" * 65536)
                quiet = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        with open(f"/proc/{p.pid}/status", encoding="ascii") as f:
            rss = next(int(x.split()[1]) for x in f if x.startswith("VmRSS"))
        assert sent < 64 << 20 and rss < 200000
        client.close()
        got = 0
        while data := upstream.recv(1 << 20):
            got += len(data)
        assert got == sent
        upstream.close()


def test_no_upstream_is_a_reset():
    with Proxy("raw", free_port()) as p:
        with contextlib.closing(socket.create_connection(("127.0.0.1", p.port))) as s:
            with pytest.raises(ConnectionResetError):
                s.recv(1)


def test_unknown_commands_are_refused(pg):
    for bad in ("rule", "rule up any 0 cut", "rule side any 1 cut", "rule up kafka:3 1 cut", "rule up bytes 5 drop",
                "rule up any 1 explode", "rule up any 1", "nonsense"):
        with pytest.raises(ValueError, match="error"):
            pg._ask(bad)


# ---------------------------------------------------------------- exact

def test_lost_reply_to_commit_leaves_a_committed_row(pg, table):
    """Story: a client that takes a missing reply to COMMIT for a failure writes twice."""
    pg.rule("down", "pg:C:COMMIT", 2, "drop+cut")
    c = connect(pg, table)
    ask(c, "BEGIN")
    ask(c, "INSERT INTO t VALUES (1)")
    ask(c, "COMMIT")
    ask(c, "BEGIN")
    ask(c, "INSERT INTO t VALUES (2)")
    with pytest.raises(psycopg2.OperationalError):
        ask(c, "COMMIT")
    assert pg.stats()["fired"] == pg.stats()["dropped"] == 1
    assert table.query("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_lost_commit_request_leaves_none(pg, table):
    pg.rule("up", "pg:Q:COMMIT", 1, "drop+rst")
    c = connect(pg, table)
    ask(c, "BEGIN")
    ask(c, "INSERT INTO t VALUES (1)")
    with pytest.raises(psycopg2.OperationalError):
        ask(c, "COMMIT")
    assert table.query("SELECT a FROM t") == []


def test_hole_swallows_the_connection_until_clear(pg, table):
    pg.rule("down", "pg:C:SELECT", 1, "drop+hole")
    c = connect(pg, table)
    ended = []

    def client():
        with pytest.raises(psycopg2.OperationalError):
            ask(c, "SELECT 1")
        ended.append(True)
    t = threading.Thread(target=client)
    t.start()
    pg.wait_fired()
    stays(lambda: not ended, 0.5, "silence")
    pg.clear()
    t.join(60)
    assert ended


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("action", ["cut", "rst"])
def test_cut_at_every_message_boundary(pg, table, direction, action):
    """Walks the cut through a whole session: each place is hit, then one session is spared."""
    for n in range(1, 100):
        before = pg.stats()
        pg.rule(direction, "any", n, action)
        try:
            with contextlib.closing(connect(pg, table, sslmode="disable")) as c:
                ask(c, "INSERT INTO t VALUES (1)")
                ask(c, "SELECT 1")
        except psycopg2.OperationalError:
            pass
        after = pg.stats()
        pg.clear()
        if after["fired"] == before["fired"]:
            break
        assert after[f"{direction}.messages"] - before[f"{direction}.messages"] == n
    # Up: start-up, two queries, maybe terminate. Down: authentication, parameters, replies.
    assert n > (3 if direction == "up" else 15)


def test_cut_after_any_number_of_bytes(pg, table):
    for n in range(1, 500, 13):
        pg.rule("down", "bytes", n, "cut")
        before = pg.stats()["down.bytes"]
        with pytest.raises(psycopg2.OperationalError):
            c = connect(pg, table, sslmode="disable")
            ask(c, "SELECT repeat('x', 1000)")
        assert pg.stats()["down.bytes"] - before == n


def test_latency_and_freeze(pg, table):
    c = connect(pg, table)
    pg.latency(60)
    t = time.monotonic()
    ask(c, "SELECT 1")
    assert time.monotonic() - t >= 0.12
    pg.latency(0)
    pg.freeze()
    done = []
    thread = threading.Thread(target=lambda: done.append(ask(c, "SELECT 7")))
    thread.start()
    stays(lambda: not done, 0.4, "silence")
    pg.thaw()
    thread.join(60)
    assert done == [[(7,)]]


def test_refuse_reset_and_another_upstream(pg, table, own_pg):
    c = connect(pg, table)
    pg.reset_all()
    with pytest.raises(psycopg2.OperationalError):
        ask(c, "SELECT 1")
    pg.refuse()
    with pytest.raises(psycopg2.OperationalError):
        connect(pg, table)
    pg.refuse(False)
    ask(connect(pg, table), "SELECT 1")
    other = own_pg()
    pg.set_upstream(other.port)
    with psycopg2.connect(pg.conninfo()) as elsewhere:
        assert ask(elsewhere, "SHOW port") == [(str(other.port),)]


# ---------------------------------------------------------------- Kafka

@pytest.fixture(scope="module")
def proxied():
    """A broker whose clients come through the proxy and stay there."""
    import servers
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    k = servers.Kafka(proxy_port=free_port(), quick=True).start().warm()
    with Proxy("kafka", k.proxied_port, k.proxy_port) as p:
        yield k, p
    k.kill()


def producer(kafka, **conf):
    return Producer({"bootstrap.servers": kafka.proxied_bootstrap, "log_level": 0, "linger.ms": 0,
                     "reconnect.backoff.ms": 10, **conf})


def values(kafka, topic, **kw):
    return [r.value for r in checker.read_records(kafka.bootstrap, topic, **kw)]


def test_kafka_passes_unharmed(proxied, topic):
    kafka, p = proxied
    kafka.create_topic(topic, 1)
    wanted = [str(i).encode() * 50 for i in range(5000)]
    w = producer(kafka)
    for v in wanted:
        w.produce(topic, v)
    assert w.flush(60) == 0
    assert values(kafka, topic) == wanted
    assert p.stats()[f"up.{PRODUCE}"] == p.stats()[f"down.{PRODUCE}"] >= 1


def test_lost_reply_to_produce_duplicates_without_idempotence(proxied, topic):
    """Story: acknowledged is known, not acknowledged is unknown; a retry writes twice."""
    kafka, p = proxied
    kafka.create_topic(topic, 1)
    fired = p.stats()["fired"]
    p.rule("down", f"kafka:{PRODUCE}", 1, "drop+cut")
    w = producer(kafka, **{"enable.idempotence": False, "acks": "all", "retry.backoff.ms": 50})
    w.produce(topic, b"once")
    assert w.flush(60) == 0
    assert p.stats()["fired"] == fired + 1
    assert values(kafka, topic) == [b"once", b"once"]


def test_lost_produce_request_is_only_late(proxied, topic):
    kafka, p = proxied
    kafka.create_topic(topic, 1)
    p.rule("up", f"kafka:{PRODUCE}", 1, "drop+rst")
    w = producer(kafka, **{"retry.backoff.ms": 50})
    w.produce(topic, b"once")
    assert w.flush(60) == 0
    assert values(kafka, topic) == [b"once"]


def test_lost_reply_to_end_txn_leaves_the_transaction_committed(proxied, topic):
    kafka, p = proxied
    kafka.create_topic(topic, 1)
    fired = p.stats()["fired"]
    p.rule("down", f"kafka:{END_TXN}", 1, "drop+cut")
    w = producer(kafka, **{"transactional.id": topic})
    w.init_transactions(60)
    w.begin_transaction()
    w.produce(topic, b"x")
    with contextlib.suppress(KafkaException):
        w.commit_transaction(30)
    assert p.stats()["fired"] == fired + 1
    assert values(kafka, topic) == [b"x"]


LATE = """
import sys
from confluent_kafka import Producer
w = Producer({"bootstrap.servers": sys.argv[1], "transactional.id": sys.argv[2], "log_level": 0})
w.init_transactions(60)
w.begin_transaction()
w.produce(sys.argv[2], b"late")
w.commit_transaction(60)
"""


def test_held_end_txn_commits_after_its_sender_died(proxied, topic):
    """Story (KIP-890): EndTxn waits in the network while its client is long dead."""
    kafka, p = proxied
    kafka.create_topic(topic, 1)
    fired = p.stats()["fired"]
    p.rule("up", f"kafka:{END_TXN}", 1, "hold:8000")  # long enough to look meanwhile
    child = subprocess.Popen([sys.executable, "-c", LATE, kafka.proxied_bootstrap, topic])
    wait_until(lambda: p.stats()["fired"] > fired, 60, "EndTxn")
    child.kill()
    child.wait()
    assert kafka.end_offsets(topic, "read_committed")[0] == 0
    assert kafka.end_offsets(topic, "read_uncommitted")[0] == 1
    wait_until(lambda: kafka.end_offsets(topic, "read_committed")[0] == 2, 60, "the late commit")
    assert values(kafka, topic) == [b"late"]
