"""tests/e2e/test_doctor.py -- `postrider doctor`: what is well is ok, and each thing that is spoilt for real is said, with the
command that mends it; where that is SQL it is run, and the doctor is satisfied again.
"""
import contextlib
import json
import os
import re
import socket
import subprocess
import time

import confluent_kafka
import pytest

import servers
from inbox import ROW, Inbox
from outbox import Outbox, unique
from pages import wrong_command
from test_consumer_group import delete_records
from wait import wait_until

NOWHERE = "host=127.0.0.1 port=1 dbname=nobody"


class Doctor:
    """What it said: lines of --json."""

    def __init__(self, done):
        self.rc, self.said = done.returncode, done.stderr
        self.lines = [json.loads(line) for line in done.stdout.splitlines()]
        for x in self.lines:
            for command in re.findall(r"(?:^|: |; )(postrider[a-z-]* [^;]*)", x["fix"] or ""):
                assert wrong_command(command) is None, x

    def of(self, check, where=None, state=None):
        return [x for x in self.lines if x["check"] == check and where in (None, x["where"]) and state in (None, x["state"])]

    def one(self, text, state="fail"):
        """The one line in this state whose text has this."""
        found = [x for x in self.lines if re.search(text, x["text"]) and x["state"] == state]
        assert len(found) == 1, (text, state, self.lines)
        assert state == "ok" or found[0]["fix"], found
        return found[0]

    def failures(self):
        return [x for x in self.lines if x["state"] == "fail"]


@pytest.fixture
def outbox(pg_server, kafka):
    with Outbox(pg_server, kafka, "doc") as o:
        yield o


@pytest.fixture
def inbox(pg_server, kafka):
    box = Inbox(pg_server, kafka, word="docin")
    yield box
    box.close()


def look(o, *args):
    return Doctor(o.run("doctor", "--json", *args))


def look_at(cli, file, *args):
    return Doctor(cli("doctor", "--json", "-c", file, *args))


def type_it(line):
    """Types the fix into a shell, as it stands."""
    path = os.path.dirname(servers.bin_path("postrider")) + ":" + os.environ["PATH"]
    return subprocess.run(["sh", "-c", line["fix"]], capture_output=True, text=True, env={**servers._clean_env(), "PATH": path}, timeout=60)


def mended_by(o, line, *args):
    """Runs the fix, which is SQL; the line is gone."""
    for one in line["fix"].split(";"):
        if one.strip():
            o.sql(one)
    after = look(o, *args)
    assert not [x for x in after.lines if x["text"] == line["text"]], after.lines


# ---------------------------------------------------------------- the whole

def test_all_is_well(outbox):
    outbox.start()
    kind, topic = outbox.kind()
    outbox.publish(kind, "1")
    outbox.read(topic, 1, 60)
    d = look(outbox)
    assert (d.rc, d.failures()) == (0, []), d.lines
    for check in ("server", "pooler", "clock", "settings", "schema", "room", "table", "ranges", "rows", "held", "relay",
                  "brokers", "topics", "positions topic", "position", "program"):
        assert d.of(check, state="ok"), (check, d.lines)
    assert "held by process" in d.of("relay")[0]["text"]
    assert re.search(r"says ok: everything flows", d.of("program")[0]["text"])
    assert all(set(x) == {"check", "where", "state", "text", "fix"} for x in d.lines)
    assert all(x["fix"] for x in d.lines if x["state"] != "ok")
    # One broker and a superuser are a warning each.
    assert look(outbox, "--strict").rc == 3


def test_text(outbox):
    done = outbox.run("doctor", env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stdout
    assert re.search(r"^ok +Postgres, server: PostgreSQL \d+", done.stdout, re.M)
    assert re.search(r"^warn +outbox, relay: no relay holds this outbox.*\n +fix: postrider-relay -c ", done.stdout, re.M)
    assert re.search(r"^\d+ ok, \d+ warn, 0 FAIL$", done.stderr, re.M)
    outbox.sql("DROP TRIGGER append_only ON outbox.event")
    done = outbox.run("doctor")
    assert done.returncode == 3
    assert re.search(r"^FAIL +outbox, table: ", done.stdout, re.M)


def test_dead_servers_are_a_line_each(cli, tmp_path):
    """A server that is away is one FAIL, not a hang and not a line for each check."""
    file = servers.write_config(str(tmp_path / "relay.cfg"), {"name": "nobody", "source": {"conninfo": NOWHERE},
                                                               "kafka": {"brokers": "127.0.0.1:1"}})
    done = cli("doctor", "--json", "--timeout", "2s", "-c", file)
    d = Doctor(done)
    assert d.rc == 3
    assert sorted(x["check"] for x in d.failures()) == ["brokers", "server"]
    assert re.search(r"\d+ checks not made", done.stderr)


def test_frozen_postgres(own_pg, cli, tmp_path):
    pg = own_pg()
    file = servers.write_config(str(tmp_path / "relay.cfg"), {"name": "frozen", "source": {"conninfo": pg.conninfo()},
                                                               "kafka": {"brokers": "127.0.0.1:1"}})
    pg.sigstop()
    d = look_at(cli, file, "--timeout", "1s")
    assert [x["check"] for x in d.failures()] == ["server", "brokers"]


def test_no_schema(empty_db, kafka, cli, tmp_path):
    file = servers.write_config(str(tmp_path / "relay.cfg"), {"name": "none", "source": {"conninfo": empty_db.conninfo},
                                                               "kafka": {"brokers": kafka.bootstrap}})
    d = look_at(cli, file)
    assert d.rc == 3
    assert d.one("not installed")["fix"] == f"postrider init -c {file}"
    assert "not made" in d.said
    assert "does not exist" in d.of("positions topic")[0]["text"]


def test_standby_and_names(outbox, cli):
    """An outbox has one relay: another name in the file is said before anything is published twice."""
    outbox.start().stop()
    servers.write_config(outbox.relay.file, {**outbox.relay.config, "name": outbox.name + "x"})
    d = look(outbox)
    assert f'set name = "{outbox.name}"' in d.one("belongs to the relay named")["fix"]


def test_commands_can_be_typed(outbox, cli, tmp_path):
    """The target in a fix is one for the shell, whatever its name is; a password is in none: doctor's output goes into tickets."""
    outbox.start().stop()
    file = str(tmp_path / "it's a relay.cfg")
    os.symlink(outbox.relay.file, file)
    conninfo = outbox.db.conninfo + r" fallback_application_name='it\'s' password=hunter2-4711"
    for target, given in ((["-c", file], "-c"), (["--conninfo", conninfo], "--conninfo"), (["-c", file, "--conninfo", conninfo], "-c.*--conninfo")):
        outbox.sql("SELECT outbox.pause()")
        done = cli("doctor", "--json", *target)
        assert "hunter2" not in done.stdout + done.stderr
        assert "hunter2" not in cli("doctor", *target).stdout
        line = Doctor(done).one("relay is paused since", "warn")
        assert re.search(given, line["fix"])
        typed = type_it(line)
        assert typed.returncode == 0, (line, typed.stderr)
        assert Doctor(cli("doctor", "--json", *target)).of("held", state="warn") == []
        assert "--conninfo" not in Doctor(done).one("no relay holds this outbox", "warn")["fix"]  # the program has no such option


# ---------------------------------------------------------------- Postgres

def test_settings(own_pg, cli):
    pg = own_pg(config={"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off"})
    d = Doctor(cli("doctor", "--json", "--conninfo", pg.conninfo()))
    assert d.rc == 3
    assert d.one("^fsync = off")["fix"].startswith("ALTER SYSTEM SET fsync = on")
    d.one("^full_page_writes = off")
    d.one("^synchronous_commit = off", "warn")
    d.one("^autovacuum = off", "warn")


def test_rights(outbox):
    """A relay under its own login: as the documents say it is well; what is revoked is named."""
    login = unique("docrelay")
    outbox.sql(f"CREATE ROLE {login} LOGIN IN ROLE outbox_relay")
    try:
        conninfo = outbox.db.conninfo.replace("user=postgres", f"user={login}")
        assert login in conninfo
        d = look(outbox, "--conninfo", conninfo)
        assert (d.of("rights", "Postgres", "fail"), d.of("rights", "Postgres", "warn")) == ([], []), d.lines
        outbox.sql("REVOKE DELETE ON outbox.parked FROM outbox_relay")
        outbox.sql("REVOKE EXECUTE ON FUNCTION outbox.publish_many(jsonb) FROM outbox_writer")
        outbox.sql("REVOKE INSERT (topic) ON outbox.event FROM outbox_writer")
        outbox.sql("GRANT DELETE ON outbox.event TO outbox_writer")
        d = look(outbox, "--conninfo", conninfo)
        assert d.rc == 3
        mended_by(outbox, d.one("role outbox_relay lacks .*DELETE on outbox.parked"))
        mended_by(outbox, d.one("role outbox_writer lacks EXECUTE on outbox.publish_many"))
        mended_by(outbox, d.one(r"outbox_writer may not INSERT into outbox.event.topic"))
        mended_by(outbox, d.one("outbox_writer may DELETE", "warn"))
        outbox.sql(f"REVOKE outbox_relay FROM {login}")
        d = look(outbox, "--conninfo", conninfo)
        assert f"GRANT outbox_relay TO {login}" in d.one("may not read the schema")["fix"]
    finally:
        outbox.sql(f"DROP ROLE {login}")


def test_table_and_triggers(outbox):
    outbox.sql("ALTER TABLE outbox.event DISABLE TRIGGER append_only")
    mended_by(outbox, look(outbox).one("trigger append_only of outbox.event is off"))
    leaf = outbox.one("SELECT leaf FROM outbox.partitions ORDER BY from_seq LIMIT 1")
    outbox.sql(f"DROP TRIGGER append_only ON outbox.{leaf}")
    mended_by(outbox, look(outbox).one(f"trigger append_only of outbox.{leaf} is missing"))
    outbox.sql("DROP TRIGGER accepted ON outbox.event")
    mended_by(outbox, look(outbox).one("trigger accepted of outbox.event is missing"))
    outbox.sql("ALTER SEQUENCE outbox.event_seq CACHE 50")
    mended_by(outbox, look(outbox).one("event_seq is cached"))
    outbox.sql("CREATE TRIGGER mine BEFORE INSERT ON outbox.event FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change()")
    mended_by(outbox, look(outbox).one("trigger mine of outbox.event is not ours", "warn"))
    outbox.sql("ALTER TABLE outbox.event ALTER COLUMN xid DROP DEFAULT")
    assert "init --print" in look(outbox).one("column xid of outbox.event is not filled")["fix"]


def test_ranges(outbox):
    leaves = [r[0] for r in outbox.sql("SELECT leaf FROM outbox.partitions ORDER BY from_seq")]
    for leaf in leaves[3:]:
        outbox.sql(f"DROP TABLE outbox.{leaf}")
    line = look(outbox).one("2 empty ranges ahead", "warn")
    for leaf in leaves[:3]:
        outbox.sql(f"DROP TABLE outbox.{leaf}")
    line = look(outbox).one("every INSERT into the outbox fails")
    assert line["fix"].startswith("postrider init -c ")
    assert type_it(line).returncode == 0
    assert look(outbox).of("ranges")[0]["state"] == "ok"


def test_rows_of_the_future(outbox):
    outbox.sql("SET session_replication_role = replica; INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type, payload) "
               "VALUES ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000)::text::xid8, 'k', '1', 'T', '{}')")
    line = look(outbox).one("1 event, from number 1 on, carries a transaction id")
    assert "position adopt" in line["fix"] and "--from-seq 1" in line["fix"]


def test_long_transactions(outbox, pg_server):
    gid = unique("docgid")
    with contextlib.closing(outbox.db.connect(autocommit=False, application_name="doc_long")) as conn:
        conn.cursor().execute("SELECT 1")
        outbox.sql(f"BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'")
        try:
            assert "doc_long" not in str(look(outbox).lines)
            d = look(outbox, "--older", "0s")
            assert d.one("doc_long", "warn")["fix"].startswith("SELECT pg_terminate_backend(")
            assert "ROLLBACK PREPARED" in d.one(gid, "warn")["fix"]
        finally:
            outbox.sql(f"ROLLBACK PREPARED '{gid}'")


def test_held_and_paused(outbox):
    outbox.start()
    kind, _ = outbox.kind(config={"max.message.bytes": "2000"})
    outbox.publish(kind, "1", payload=json.dumps({"x": "y" * 5000}))
    outbox.wait_parked(1, 60)
    missing = unique("docno")
    outbox.publish(missing, "1")
    wait_until(lambda: outbox.sql("SELECT 1 FROM outbox.waiting"), 60, "the missing topic to be noticed")
    outbox.run("pause", check=True)
    d = look(outbox)
    assert d.one("1 event behind 1 key is parked", "warn")["fix"].startswith("postrider parked list -c ")
    line = d.one("cannot be written to")
    assert missing in line["text"]
    assert line["fix"] == f"kafka-topics.sh --bootstrap-server {outbox.kafka.bootstrap} --create --topic outbox.event.{missing}"
    assert d.one("relay is paused since", "warn")["fix"].startswith("postrider resume -c ")
    assert d.of("program")[0]["state"] == "warn"


def test_events_wait_and_nobody_publishes(outbox):
    """Before the first start that is a warning; an hour later it was one still, and the exit status 0."""
    kind, _ = outbox.kind()
    assert look(outbox).rc == 0
    outbox.sql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, created_at) VALUES (%s, '1', 'T', '{}', now() - interval '1 h')",
               (kind,))
    d = look(outbox)
    assert d.rc == 3
    assert d.one("no relay holds this outbox: nothing is published, 1 event waits")["fix"] == f"postrider-relay -c {outbox.relay.file}"
    outbox.start()
    wait_until(lambda: look(outbox).rc == 0, 60, "it to be published")


def test_another_database(outbox, own_pg):
    """The position is of one cluster, the conninfo names another: the doctor says so before a relay refuses to start."""
    outbox.start()
    kind, topic = outbox.kind()
    outbox.publish(kind, "1")
    outbox.read(topic, 1, 60)
    outbox.stop()
    other = own_pg(fresh=True).createdb("other", schema=True)
    line = look(outbox, "--conninfo", other.conninfo).one("of another database")
    assert line["fix"].startswith("if this is the right database: postrider position adopt")


# ---------------------------------------------------------------- Kafka

def test_positions_topic(outbox, kafka):
    kafka.set_topic_config(f"postrider.positions.{outbox.name}", {"cleanup.policy": "delete"})
    assert "cleanup.policy=compact" in look(outbox).one("must be compact")["fix"]
    kafka.delete_topic(f"postrider.positions.{outbox.name}")
    wait_until(lambda: look(outbox).of("positions topic", state="fail"), 60, "the topic to be gone")


def test_topics(outbox, kafka):
    prefix = unique("doct")
    servers.write_config(outbox.relay.file, {**outbox.relay.config, "route": {"topic": prefix + ".${aggregatetype}"}})
    kafka.create_topic(prefix + ".compact", 2, {"cleanup.policy": "compact"})
    kafka.create_topic(prefix + ".small", 1, {"max.message.bytes": "1000"})
    kafka.create_topic(prefix + ".brief", 1, {"retention.ms": "60000"})
    kafka.create_topic(prefix + ".none", 1, {"min.insync.replicas": "2"})
    d = look(outbox)
    assert d.rc == 3
    assert "4 topics of this outbox's route, 5 partitions" in d.of("topics", state="ok")[0]["text"]
    assert f"--entity-name {prefix}.compact --add-config cleanup.policy=delete" in d.one("cleanup.policy compact", "warn")["fix"]
    assert prefix + ".small" in d.one("max.message.bytes below", "warn")["text"]
    assert prefix + ".brief" in d.one("less than a day", "warn")["text"]
    assert prefix + ".none" in d.one("fewer replicas in sync than min.insync")["text"]


GUEST = ["security.protocol=SASL_PLAINTEXT", "sasl.mechanisms=PLAIN", "sasl.username=guest", "sasl.password=guest"]


class Strict(servers.Kafka):
    """A broker that lets its own listener do everything, and a guest log in and nothing else."""

    def __init__(self):
        self.guests = servers.free_port()
        super().__init__({
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users": "User:ANONYMOUS",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUESTS:SASL_PLAINTEXT",
            "listener.name.guests.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.guests.plain.sasl.jaas.config":
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_guest="guest";'}, quick=True)

    def at_guests(self):
        return f"127.0.0.1:{self.guests}"

    def _write_properties(self):
        mine = [f"PLAINTEXT://127.0.0.1:{self.port}", f"GUESTS://{self.at_guests()}"]
        self.config["listeners"] = ",".join(mine + [f"CONTROLLER://127.0.0.1:{self.controller_port}"])
        self.config["advertised.listeners"] = ",".join(mine)
        super()._write_properties()


def test_settings_that_may_not_be_seen(cli, tmp_path):
    """A broker that refuses to tell its settings has not told that they are well."""
    kafka = Strict().start()
    try:
        file = servers.write_config(str(tmp_path / "relay.cfg"), {
            "name": "guest", "source": {"conninfo": NOWHERE}, "kafka": {"brokers": kafka.at_guests(), "properties": GUEST}})
        os.chmod(file, 0o600)
        done = cli("doctor", "--json", "-c", file)
        assert done.returncode == 3, done.stderr
        (line,) = Doctor(done).of("broker settings")
        assert line["state"] == "warn" and "DescribeConfigs" in line["fix"], line
    finally:
        kafka.kill()


def test_hanging_transaction(outbox, kafka):
    """KIP-664: a producer that is gone left a transaction open, and whoever reads committed records stands still."""
    prefix = unique("doch")
    servers.write_config(outbox.relay.file, {**outbox.relay.config, "route": {"topic": prefix + ".${aggregatetype}"}})
    topic = kafka.create_topic(prefix + ".k", 1)
    p = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": prefix,
                                  "transaction.timeout.ms": 600000})
    p.init_transactions(20)
    p.begin_transaction()
    p.produce(topic, b"x", timestamp=int((time.time() - 600) * 1000))
    assert p.flush(20) == 0
    try:
        line = look(outbox).one("transaction on partition 0 of " + topic + r" has been open for \d+ min")
        assert line["fix"].endswith(f"abort --topic {topic} --partition 0 --start-offset 0")
        assert not look(outbox, "--older", "1h").of("transactions", "Kafka", "fail")
    finally:
        p.abort_transaction(20)
    wait_until(lambda: not look(outbox).of("transactions", "Kafka", "fail"), 60, "it to end")


# ---------------------------------------------------------------- a consumer

def test_consumer(inbox, cli):
    c = inbox.consumer()
    d = look_at(cli, c.file)
    assert d.failures() == [], d.lines
    assert d.one("nobody is in the group", "warn")["fix"] == f"postrider-consumer -c {c.file}"
    assert d.one("has not run on this database", "warn")
    c.start().wait_ready()
    inbox.poison("bad", "raise")
    inbox.send(30)
    inbox.flush()
    inbox.wait_count(30, 60)
    d = look_at(cli, c.file)
    assert d.failures() == [], d.lines
    assert d.of("members")[0]["text"] == "1 member, state Stable, for 3 partitions"
    assert d.of("lanes")[-1]["state"] == "ok" and "of 3 partitions" in d.of("lanes")[-1]["text"]
    assert d.of("handler")[0]["state"] == "ok"
    cli("pause", "-c", c.file, check=True)
    assert look_at(cli, c.file).one("group is paused since", "warn")["fix"] == f"postrider resume -c {c.file}"


def test_consumer_without_what_it_needs(inbox, cli, tmp_path):
    c = inbox.consumer({**ROW, "function": "app.nothing"}, topics=[inbox.topic, "in.not.there"])
    d = look_at(cli, c.file)
    assert d.rc == 3
    assert d.one("no function app.nothing")["fix"]
    assert "--create --topic in.not.there" in d.one("topic in.not.there is not there")["fix"]
    (tmp_path / "bad.cfg").write_text("nonsense = 1;\n")
    c = inbox.consumer({"kind": "saga", "definitions": [str(tmp_path / "bad.cfg")]})
    done = cli("doctor", "-c", c.file)
    assert done.returncode == 78 and "bad.cfg" in done.stderr  # the file itself is refused, as by the consumer


@pytest.mark.parametrize("kind", ["http", "sink"])
def test_nobody_listens(inbox, cli, kind):
    """A handler that was not looked at is not well: whether somebody listens at its address is looked at. The address's path may
    hold a secret."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        c = inbox.consumer({"kind": "http", "url": url + "/hush-1"} if kind == "http" else {"kind": "sink", "http": {"url": url + "/hush-1"}})
        (line,) = look_at(cli, c.file).of("handler")
        assert (line["state"], line["text"]) == ("ok", f"somebody listens at {url}; no message was tried")
        server.close()
        d = look_at(cli, c.file)
        assert d.rc == 3 and "hush" not in str(d.lines)
        assert d.one(f"nothing listens at {url}")["fix"]


def test_sink_directory(inbox, cli, tmp_path):
    c = inbox.consumer({"kind": "sink", "files": {"directory": str(tmp_path / "out")}})
    assert look_at(cli, c.file).one("directory .* is not there")["fix"]
    os.mkdir(tmp_path / "out")
    assert look_at(cli, c.file).of("handler")[0]["state"] == "ok"


def test_records_lost_to_retention(inbox, cli, kafka):
    c = inbox.consumer().start().wait_ready()
    inbox.send(60)
    inbox.flush()
    inbox.wait_count(60, 60)
    assert c.terminate() == 0
    inbox.db.query("UPDATE inbox.position SET next_offset = 1")
    delete_records(kafka.bootstrap, inbox.topic, 0, 10)
    line = look_at(cli, c.file).one("9 records of partition 0")
    assert "retention.keep" in line["fix"]
