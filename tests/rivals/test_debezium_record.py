"""tests/rivals/test_debezium_record.py -- the records of Debezium's EventRouter beside ours: the same rows, written once, published by a
real Debezium 3.7 on Kafka Connect and by the relay behind `import-debezium --sql`, compared byte by byte. What differs stands in DIFFERS,
and with its reason in docs/how-to/coming-from-debezium.md; anything more, or less, fails. Runs with RIVALS=1 only: the jars
are those of bench/debezium/pom.xml, and it takes a minute.
"""
import json
import os
import sys
import uuid

import pytest
import servers
from outbox import header, read_topic
from wait import wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench"))
import rivals  # noqa: E402

pytestmark = [pytest.mark.rivals, pytest.mark.timeout(400),
              pytest.mark.skipif(os.environ.get("RIVALS") in (None, "", "0"), reason="RIVALS=1 only: make check-rivals")]
ROUTER = "transforms__outbox__"
MORE = ", tenant text, number int, fine boolean, price numeric(9,2), at timestamptz, part int"
PLACED = {ROUTER + "table__fields__additional__placement":
          "type:header:eventType,tenant:header,number:header,fine:header,price:header,at:header,part:partition"}
KINDS = {  # type of the payload; options; payloads
    "string": ("text", {}, ['{"a": 1,  "b":"é"}', "no JSON", "", None]),
    "jsonb": ("jsonb", {}, ['{"a": 1, "b": "é"}', "[1.10, 12345678901234567890]", None]),
    "expand": ("jsonb", {"value__converter": "org.apache.kafka.connect.json.JsonConverter", "value__converter__schemas__enable": "false",
                         ROUTER + "table__expand__json__payload": "true"},
               ['{"a": {"b": [1, 2]}, "c": "é"}', '{"c": 1.10, "e": null}', None]),
    "json": ("jsonb", {"value__converter": "org.apache.kafka.connect.json.JsonConverter", "value__converter__schemas__enable": "false"},
             ['{"a": 1}', None]),
    "bytes": ("bytea", {"value__converter": "io.debezium.converters.BinaryDataConverter"}, [b"\x00\xff\x01", b"", None]),
    "tombstone": ("text", {ROUTER + "route__tombstone__on__empty__payload": "true"}, ["x", "", None]),
}
CONTEXT = "__debezium.context."
ALWAYS = {f"{CONTEXT}{h}: only there" for h in ("connectorLogicalName", "connectorName", "runId", "taskId")} | {
    f"{h}: only here" for h in ("type", "content-type", "outbox-seq", "outbox-created-at")} | {
    "at: b'2026-11-22 12:00:00.123456+00' here, b'2026-11-22T12:00:00.123456Z' there"}
NULLS = {f"{h}: only there" for h in ("tenant", "number", "fine", "price", "at")}  # of rows in which these columns are NULL
DIFFERS = {
    "string": ALWAYS | NULLS, "jsonb": ALWAYS | NULLS, "bytes": ALWAYS | NULLS, "tombstone": ALWAYS | NULLS,
    "expand": ALWAYS | NULLS | {"value: the same JSON, other bytes", """value: b'{"c": 1.10, "e": null}' here, b'{"c":1.1}' there"""},
    "json": ALWAYS | {"value: a string with the document in it", "value: None here, b'null' there"},
}


def connector(pg, db, kind):
    return dict(name=kind, tasks__max=1, connector__class="io.debezium.connector.postgresql.PostgresConnector",
                database__hostname=pg.host, database__port=pg.port, database__user="postgres", database__password="none",
                database__dbname=db.name, topic__prefix="dbz" + kind, plugin__name="pgoutput", slot__name="dbz_" + kind,
                publication__name="dbz_" + kind, publication__autocreate__mode="filtered",
                table__include__list=f"shop.{kind}", snapshot__mode="no_data", poll__interval__ms=10, transforms="outbox",
                transforms__outbox__type="io.debezium.transforms.outbox.EventRouter",
                transforms__outbox__route__topic__replacement="dbz.${routedByValue}",
                key__converter="org.apache.kafka.connect.storage.StringConverter",
                **{"value__converter": "org.apache.kafka.connect.storage.StringConverter", **PLACED, **KINDS[kind][1]})


class Worker(rivals.Connect):
    """One Connect with a connector for each kind."""

    def __init__(self, lab, connectors):
        super().__init__(lab, "conformance", rivals.jars(), connectors[0])
        self.more = [rivals.properties(os.path.join(self.dir, f"c{i}"), **c) for i, c in enumerate(connectors[1:])]

    def start(self):
        self.proc = servers.spawn(
            ["java", f"-Xmx{self.heap}", "-XX:+UseSerialGC", "-Xshare:auto", f"-Dlog4j2.configurationFile={self.dir}/log4j2.properties",
             "-cp", f"{self.jars}/*", "org.apache.kafka.connect.cli.ConnectStandalone", self.worker, self.connector, *self.more],
            log=self.log, cwd=self.dir)
        self._remember()
        return self


def adopt_sql(pg, db, kind, tmp_path):
    """The SQL that import-debezium makes of this very connector."""
    file = rivals.properties(str(tmp_path / kind), **connector(pg, db, kind))
    servers.Cli().run("import-debezium", file, "--sql", tmp_path / f"{kind}.sql")
    return (tmp_path / f"{kind}.sql").read_text()


def write(db, kind):
    """Each payload with other columns filled; the ids, in order."""
    ids = []
    for i, payload in enumerate(KINDS[kind][2]):
        ids.append(str(uuid.uuid4()))
        full = ("acmé", 7, True, "12.50", "2026-11-22 12:00:00.123456+00", None if i else 2)
        db.query(f"INSERT INTO shop.{kind} VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                 (ids[-1], kind, ["7", "Schlüssel", "order-12"][i % 3], "OrderMade", payload, *(full if i < 2 else [None] * 6)))
    return ids


def differences(ours, theirs):
    """What of one event is not the same, in words that do not depend on the event."""
    out = {word for word, a, b in (("topic", ours.topic[4:], theirs.topic[4:]), ("partition", ours.partition, theirs.partition),
                                   ("key", ours.key, theirs.key)) if a != b}
    if ours.value != theirs.value:
        try:
            parsed = json.loads(ours.value), json.loads(theirs.value)
            out.add("value: the same JSON, other bytes" if parsed[0] == parsed[1] else
                    "value: a string with the document in it" if json.loads(parsed[1]) == parsed[0] else f"value: {ours.value} here, {theirs.value} there")
        except (TypeError, ValueError):
            out.add(f"value: {ours.value} here, {theirs.value} there")
    mine, his = dict(ours.headers), dict(theirs.headers)
    assert len(mine) == len(ours.headers) and len(his) == len(theirs.headers), "a header twice"
    out |= {f"{h}: only here" for h in mine.keys() - his.keys()} | {f"{h}: only there" for h in his.keys() - mine.keys()}
    return out | {f"{h}: {mine[h]} here, {his[h]} there" for h in mine.keys() & his.keys() if mine[h] != his[h]}


@pytest.fixture(scope="module")
def published(tmp_path_factory, kafka):
    """{kind: [(ours, theirs)]}: every row once, published by both."""
    tmp_path, pg = tmp_path_factory.mktemp("dbz"), servers.Postgres(config={"wal_level": "logical", "max_replication_slots": 20,
                                                                              "max_wal_senders": 20}).start()
    db = pg.createdb("conformance", schema=True)
    db.psql("CREATE SCHEMA shop")
    for kind, (type_, _, _) in KINDS.items():
        db.psql(f"CREATE TABLE shop.{kind} (id uuid, aggregatetype varchar(255), aggregateid varchar(255), type varchar(255), "
                f"payload {type_}{MORE})")
        db.psql(adopt_sql(pg, db, kind, tmp_path))
        for side in ("dbz", "our"):
            kafka.create_topic(f"{side}.{kind}", 3)
    servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", "conformance", check=True)
    relay = servers.Relay(db.conninfo, kafka.bootstrap, name="conformance", config={"route": {"topic": "our.${aggregatetype}"}})
    worker = Worker(type("Lab", (), {"kafka": kafka, "pg": pg}), [connector(pg, db, kind) for kind in KINDS]).start()
    try:
        def streaming():
            assert worker.running(), servers.tail(worker.log, 20)
            return db.one("SELECT count(*) FROM pg_replication_slots WHERE active") == len(KINDS)
        wait_until(streaming, 240, "Debezium's slots")
        ids = {kind: write(db, kind) for kind in KINDS}
        relay.start().wait_ready()
        out = {}
        for kind, want in ids.items():
            sides = [{header(r, "id").decode(): r for r in read_topic(kafka, f"{side}.{kind}", len(want), timeout=90)}
                     for side in ("our", "dbz")]
            out[kind] = [(sides[0][i], sides[1][i]) for i in want]
        yield out
    except AssertionError as e:
        raise AssertionError(f"{e}\n{servers.tail(worker.log, 20)}") from None
    finally:
        relay.kill()
        worker.kill()
        pg.stop("immediate")


@pytest.mark.parametrize("kind", KINDS)
def test_the_records_differ_in_what_is_told_and_nothing_else(published, kind):
    found = set().union(*(differences(*pair) for pair in published[kind]))
    assert found == DIFFERS[kind], "\n".join(sorted(found ^ DIFFERS[kind]))


def test_order_of_a_key_is_the_same(published):
    for pairs in published.values():
        for side in (0, 1):
            places = [(p[side].partition, p[side].offset) for p in pairs]
            for partition in {p for p, _ in places}:
                offsets = [o for p, o in places if p == partition]
                assert offsets == sorted(offsets)
