"""tests/e2e/test_pooler.py -- a real PgBouncer in between. In transaction mode one server process serves several sessions: two relays
would both hold the outbox's lock, and what we set on a session would reach the application's. So nobody connects there, says why,
and leaves nothing set. In session mode all is as without it."""
import json
import os
import re
import shutil

import psycopg2
import pytest
import servers
from inbox import SET, Inbox
from outbox import Outbox
from wait import wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(not shutil.which("pgbouncer"), reason="no pgbouncer (make setup)")]
REFUSED = "a pooler in transaction mode is in between"


class Pooler(servers.Server):
    """PgBouncer before a Postgres, for all its databases."""

    def __init__(self, pg, mode, size=20):
        self.name, self.pg, self.port = "pgbouncer", pg, servers.free_port()
        self.dir = servers.new_dir("pooler")
        self.log = os.path.join(self.dir, "pooler.log")
        self.file = os.path.join(self.dir, "pgbouncer.ini")
        with open(self.file, "w", encoding="ascii") as f:
            f.write(f"[databases]\n* = host={pg.host} port={pg.port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
                    f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n")

    def conninfo(self, database):
        return re.sub(r"port=\d+", f"port={self.port}", self.pg.conninfo(database))

    def accepts(self):
        try:
            psycopg2.connect(self.conninfo("postgres"), connect_timeout=2).close()
            return True
        except psycopg2.Error:
            return False

    def start(self):
        self.proc = servers.spawn([shutil.which("pgbouncer"), self.file], log=self.log, user=self.pg.user)
        self._remember()
        wait_until(lambda: not self.running() or self.accepts(), 30, "PgBouncer to answer")
        if not self.running():
            raise self._died()
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


@pytest.fixture
def outbox(pg_server, kafka):
    with Outbox(pg_server, kafka, "pool") as o:
        yield o


@pytest.fixture
def pooler(pg_server, request):
    with Pooler(pg_server, request.param) as p:
        yield p


def relay_of(o, conninfo):
    return servers.Relay(conninfo, o.kafka.bootstrap, name=o.name)


@pytest.mark.parametrize("pooler", ["transaction", "statement"], indirect=True)
def test_shared_processes_are_refused(outbox, pooler, pg_server, kafka):
    """By the relay and a consumer at start, as any wrong configuration, and by the CLI; and an application that uses the pool has
    its settings as they were."""
    through = pooler.conninfo(outbox.db.name)
    app = psycopg2.connect(through)
    app.autocommit = True

    def settings():
        with app.cursor() as c:
            c.execute("SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('TimeZone')")
            return c.fetchone()
    before = settings()
    r = relay_of(outbox, through).start()
    assert r.wait(60) == 78 and REFUSED in r.log_text() and "pool_mode = session" in r.log_text()
    i = Inbox(pg_server, kafka, 1, "poolin")
    i.conninfo = pooler.conninfo(i.name)
    c = i.consumer(SET).start()
    assert c.wait(60) == 78 and REFUSED in c.log_text()
    i.close()
    for argv in (("pause",), ("parked", "list"), ("dlq", "list")):
        done = outbox.cli.run(*argv, "--conninfo", through)
        assert done.returncode == 78 and REFUSED in done.stderr, (argv, done)
    done = outbox.cli.run("doctor", "--json", "-c", r.file)
    line, = (x for x in map(json.loads, done.stdout.splitlines()) if x["state"] == "fail")
    assert done.returncode == 3 and line["check"] == "server" and REFUSED in line["text"] and "pool_mode = session" in line["fix"]
    assert settings() == before
    app.close()


@pytest.mark.parametrize("pooler", ["session"], indirect=True)
def test_session_mode_is_well(outbox, pooler):
    """Events flow, a second relay stands by, the doctor has nothing against it."""
    through = pooler.conninfo(outbox.db.name)
    outbox.relay = relay_of(outbox, through)
    outbox.start()
    kind, topic = outbox.kind()
    outbox.publish(kind, "k")
    outbox.read(topic, 1)
    second = relay_of(outbox, through).start()
    wait_until(lambda: second.status()["state"] == "standby", 60, "the standby", ignore=(OSError,))
    done = outbox.cli.run("doctor", "--json", "-c", outbox.relay.file)
    line, = (x for x in map(json.loads, done.stdout.splitlines()) if x["check"] == "pooler")
    assert (done.returncode, line["state"]) == (0, "ok") and "session mode" in line["text"], done.stdout
    second.kill()


def test_a_full_pool_leaves_the_question_open(outbox, pg_server):
    """Session mode with one connection: there is no second one to find out by. What can work does, and the doctor says that it
    does not know."""
    with Pooler(pg_server, "session", size=1) as p:
        through = p.conninfo(outbox.db.name)
        assert outbox.cli.run("parked", "list", "--conninfo", through, "--timeout", "4s").returncode == 0
        done = outbox.cli.run("doctor", "--json", "--conninfo", through, "--timeout", "4s")
        line, = (x for x in map(json.loads, done.stdout.splitlines()) if x["check"] == "pooler")
        assert line["state"] == "warn" and "no second session" in line["text"], done.stdout
