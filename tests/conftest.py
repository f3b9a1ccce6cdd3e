"""tests/conftest.py -- fixtures: servers for the session, a database and topics per test.

Refuses to hide a missing program: a test that needs one of ours fails when it was
not built; only the Kafka fixture skips, where the jars could not be had, and says so.
"""
import itertools
import os
import re
import signal
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))

import servers  # noqa: E402

_count = itertools.count(1)


def pytest_configure(config):
    # Ctrl-C's way out runs atexit; SIGTERM's would not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    config.addinivalue_line("markers", "asan: run again with the AddressSanitizer build")
    config.addinivalue_line("markers", "tsan: run again with the ThreadSanitizer build")
    config.addinivalue_line("markers", "slow: takes more than 20 s")
    config.addinivalue_line("markers", "rivals: beside another system; RIVALS=1 only; make check-rivals")
    config.addinivalue_line("markers", "systems: needs all services at once; make check-systems")


# Side by side (-n), whoever is free takes the next file: those that take longest go first.
LONG = ("test_alerts", "test_saga_faults", "test_schedules", "test_saga_walk", "test_poison", "test_breaks", "test_cli", "test_kill", "test_consumer_poison",
        "test_inbox_sql", "test_consumer_review", "test_consumer_health", "test_torture", "test_sink_torture", "test_cli_dlq",
        "test_consumer_ledger", "test_consumer_members", "test_consumer_lanes", "test_holdings", "test_consumer_database")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "stack" in item.fixturenames:
            item.add_marker("systems")
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_unconfigure():
    servers.stop_all()  # a worker of xdist ends without atexit


def _unique(request, prefix):
    word = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower()).strip("_")[:30]
    return f"{prefix}{word}_{os.getpid()}_{next(_count)}"


@pytest.fixture(scope="session")
def pg_server():
    """A Postgres for all tests that only need databases of their own."""
    pg = servers.Postgres().start()
    yield pg
    pg.stop("immediate")


@pytest.fixture(scope="session")
def kafka():
    """A broker for all tests that do not break it."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    # Nobody starts it anew, so it may take its time between two heartbeats: fenced, it would forget all groups and transactions.
    k = servers.Kafka(quick=True, config={"broker.session.timeout.ms": "60000"}).start().warm()
    yield k
    k.kill()


@pytest.fixture(scope="session")
def redis():
    """A Redis for all tests that do not break it; what others left in it is there: redis.flush()."""
    r = servers.Redis().start()
    yield r
    r.stop()


@pytest.fixture
def own_redis():
    """Starts Redis servers a test may stop, kill or freeze: own_redis(persist=...)."""
    started = []

    def make(**kw):
        started.append(servers.Redis(**kw).start())
        return started[-1]
    yield make
    for r in started:
        r.kill()


@pytest.fixture
def own_pg():
    """Starts Postgres servers a test may stop, kill or freeze: own_pg(config=..., fresh=...)."""
    started = []

    def make(**kw):
        started.append(servers.Postgres(**kw).start())
        return started[-1]
    yield make
    for pg in started:
        if pg.running():
            pg.signal(signal.SIGCONT)
            pg.stop("immediate")


@pytest.fixture
def own_kafka():
    """Starts brokers a test may stop, kill or freeze: own_kafka(config=..., proxy_port=...)."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    started = []

    def make(warm=True, **kw):
        started.append(servers.Kafka(**{"quick": True, **kw}).start())
        return started[-1].warm() if warm else started[-1]
    yield make
    for k in started:
        k.kill()


@pytest.fixture
def empty_db(request, pg_server):
    """A fresh database with nothing in it."""
    db = pg_server.createdb(_unique(request, "t_")[:60])
    yield db
    db.drop()


@pytest.fixture
def db(request, pg_server):
    """A fresh database with our schemas."""
    db = pg_server.createdb(_unique(request, "t_")[:60], schema=True)
    yield db
    db.drop()


@pytest.fixture
def topic(request):
    """A topic name nobody else uses; not created."""
    return _unique(request, "test.")


@pytest.fixture
def outbox_name(request):
    """A unique outbox name (position topic, transactional id)."""
    return _unique(request, "o-").replace("_", "-")[:60].strip("-")


@pytest.fixture
def relay():
    """relay(conninfo, brokers, name=..., delivery=..., ...) makes a servers.Relay, not yet
    started; what still runs after the test is killed."""
    made = []

    def make(*args, **kw):
        made.append(servers.Relay(*args, **kw))
        return made[-1]
    yield make
    for r in made:
        r.kill()


@pytest.fixture
def cli():
    """The operator's CLI: cli("status", "--json") gives a CompletedProcess."""
    return servers.Cli()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the end of its relays' logs."""
    report = (yield).get_result()
    if report.when == "call":
        item.failed = report.failed
    if report.when != "call" or not report.failed:
        return
    for server in servers._alive:
        if server.log and not isinstance(server, servers.Postgres) and server.has_to_say():
            lines = 5 if isinstance(server, servers.Kafka) else 40
            report.sections.append((f"log of {server.name}", servers.tail(server.log, lines)))


def pytest_terminal_summary(terminalreporter):
    """At the end once more what failed and why, whole: a line of pytest's own summary is as short as the terminal is wide."""
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        crash = getattr(report.longrepr, "reprcrash", None)
        terminalreporter.write_line(f"--- {report.nodeid} ({report.when})")
        terminalreporter.write_line(crash.message[:2000] if crash else str(report.longrepr)[-2000:])
