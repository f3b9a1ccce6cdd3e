"""tests/e2e/test_import_debezium.py -- coming from Debezium: relay.cfg and SQL from connectors as people have them, and
the records that follow are those that their readers know: topic, key, value, headers, tombstones.
"""
import contextlib
import json
import uuid

import psycopg2
import pytest

import servers
from outbox import header, read_topic, unique

ROUTER = "io.debezium.transforms.outbox.EventRouter"
STRING = "org.apache.kafka.connect.storage.StringConverter"
BASE = {"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "database.hostname": "db.example",
        "database.port": "5432", "database.user": "debezium", "database.password": "Top-Secret1", "database.dbname": "orders",
        "topic.prefix": "orders", "table.include.list": "public.outboxevent", "plugin.name": "pgoutput",
        "key.converter": STRING, "value.converter": STRING, "transforms": "outbox", "transforms.outbox.type": ROUTER}


def connector(**more):
    """A connector's config; __ stands for a dot, o__ for the EventRouter's."""
    names = {("transforms.outbox." + k[3:] if k.startswith("o__") else k).replace("__", "."): v for k, v in more.items()}
    return {**BASE, **names}


@pytest.fixture
def run(tmp_path):
    """run(text or dict, *args) -> CompletedProcess, with -o and --sql into tmp_path."""
    def go(config, *args):
        file = tmp_path / "connector"
        file.write_text(config if isinstance(config, str) else json.dumps(config))
        return servers.Cli().run("import-debezium", file, "-o", tmp_path / "relay.cfg", "--sql", tmp_path / "outbox.sql", *args)
    return go


def fates(done):
    return {o["option"]: o["fate"] for o in json.loads(done.stdout)["options"]}


SERVER = """# Debezium Server
debezium.sink.type=kafka
debezium.sink.kafka.producer.bootstrap.servers=kafka:9092
debezium.sink.kafka.producer.security.protocol=SSL
debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.offset.storage.file.filename=data/offsets.dat
debezium.source.database.hostname = db.example
debezium.source.database.password = Top-Secret1
debezium.source.database.dbname: orders
debezium.source.topic.prefix=Orders DB
debezium.source.table.include.list=\\
   shop.outboxevent
debezium.format.key=simplestring
debezium.format.value=json
debezium.transforms=outbox
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
debezium.transforms.outbox.route.topic.replacement=evt.${routedByValue}
quarkus.log.level=INFO
"""

CASES = {  # config, exit status, what becomes of some options, what is in relay.cfg
    "plain": (BASE, 0, {"database.password": "to do", "plugin.name": "needless", "value.converter": "kept"},
              ['topic = "outbox.event.${aggregatetype}";', 'conninfo = "host=db.example port=5432 dbname=orders user=debezium";']),
    "wrapped": ({"name": "Orders-1", "config": connector(database__sslmode="verify_full", database__sslrootcert="/a b.pem")}, 0,
                {"name": "kept"}, ['name = "orders-1";', "sslmode=verify-full sslrootcert='/a b.pem'"]),
    "server": (SERVER, 0, {"debezium.source.offset.storage.file.filename": "needless", "debezium.format.value": "differs",
                           "debezium.transforms.outbox.route.topic.replacement": "kept", "quarkus.log.level": "needless"},
               ['brokers = "kafka:9092";', "security.protocol=SSL", 'topic = "evt.${aggregatetype}";', 'name = "orders-db";']),
    "json with schemas": (connector(value__converter="org.apache.kafka.connect.json.JsonConverter",
                                    value__converter__schemas__enable="true"), 0, {"value.converter": "differs"}, []),
    "avro": (connector(value__converter="io.confluent.connect.avro.AvroConverter"), 3, {"value.converter": "impossible"}, []),
    "envelope": (connector(o__table__fields__additional__placement="type:envelope:eventType"), 3,
                 {"transforms.outbox.table.fields.additional.placement": "impossible"}, []),
    "second transform": (connector(transforms="outbox,ts", transforms__ts__type="org.apache.kafka.connect.transforms.InsertField$Value"),
                         3, {"transforms.ts.type": "impossible"}, []),
    "regex": (connector(o__route__topic__regex="(?<v>.*)Event", o__route__topic__replacement="${v}"), 0,
              {"transforms.outbox.route.topic.regex": "to do", "transforms.outbox.route.topic.replacement": "to do"},
              ['topic = "outbox.event.${aggregatetype}";']),
    "producer": (connector(producer__override__linger__ms="20", producer__override__acks="1", producer__override__foo="1",
                           producer__override__sasl__jaas__config='x password="Top-Secret1";'), 0,
                 {"producer.override.linger.ms": "kept", "producer.override.acks": "needless", "producer.override.foo": "differs",
                  "producer.override.sasl.jaas.config": "to do"}, ["linger.ms=20"]),
    "provider": (connector(database__hostname="${file:/secrets:host}"), 0, {"database.hostname": "to do"}, ["dbname=orders"]),
    "unknown": (connector(snapshot__mode="never", what__is__this="1"), 0, {"snapshot.mode": "needless", "what.is.this": "differs"}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_connectors_as_people_have_them(run, case, tmp_path):
    """Each option is judged, what is impossible gives status 3, no secret is copied, and the relay takes the file."""
    config, status, want, lines = CASES[case]
    done = run(config, "--json")
    assert done.returncode == status, done.stderr
    told = fates(done)
    assert want.items() <= told.items() and "unknown" not in told.values()
    for o in json.loads(done.stdout)["options"]:
        assert o["why"] or o["fate"] == "kept", o
    text = (tmp_path / "relay.cfg").read_text()
    assert all(line in text for line in lines), text
    assert "Top-Secret1" not in text + done.stdout + done.stderr + (tmp_path / "outbox.sql").read_text()
    servers.Cli("postrider-relay").run("-c", tmp_path / "relay.cfg", "--check", check=True)
    again = run(config)
    assert again.returncode == 5 and "--yes" in again.stderr
    assert run(config, "--yes").returncode == status


@pytest.mark.parametrize("config,why", [
    ({**BASE, "connector.class": "io.debezium.connector.mysql.MySqlConnector"}, "is not Debezium's Postgres connector"),
    ({k: v for k, v in BASE.items() if "transforms" not in k}, "outbox.EventRouter"),
    ("[1, 2]", "neither a JSON object nor properties"), ("{", "neither a JSON object nor properties"),
    ("# nothing\n", "outbox.EventRouter")])
def test_what_is_no_outbox(run, config, why, tmp_path):
    done = run(config)
    assert done.returncode == 78 and why in done.stderr, done.stderr
    assert not (tmp_path / "relay.cfg").exists()


LAYOUTS = {  # columns of the old table, the connector's options; what an event is there, and its value on the topic
    "text as it is": ("id uuid, aggregatetype text, aggregateid text, type text, payload text", {},
                      lambda v: v, lambda v: v.encode()),
    "jsonb": ("id uuid, aggregatetype varchar(255), aggregateid varchar(255), type varchar(255), payload jsonb",
              {"value__converter": "org.apache.kafka.connect.json.JsonConverter", "o__table__expand__json__payload": "true"},
              lambda v: v, lambda v: v.encode()),
    "bytes": ("id text, aggregatetype text, aggregateid bigint, type text, payload bytea",
              {"value__converter": "io.debezium.converters.BinaryDataConverter"}, lambda v: v.encode(), lambda v: v.encode()),
    "other names": ('"Event Id" uuid, topic text, ref text, kind text, body json, tenant text, part int',
                    {"o__table__field__event__id": "Event Id", "o__table__field__event__key": "ref",
                     "o__table__field__event__payload": "body", "o__route__by__field": "topic",
                     "o__route__topic__replacement": "${routedByValue}",
                     "o__table__fields__additional__placement": "kind:header:type,tenant:header:x-tenant,part:partition"},
                    lambda v: v, lambda v: v.encode()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_service_of_debezium_goes_on_unchanged(db, kafka, run, layout, tmp_path, cli):
    """Its table, its statements, also insert-then-delete; a rollback publishes nothing; the records are as before."""
    columns, options, put, got = LAYOUTS[layout]
    other, nothing = layout == "other names", b"null" if layout == "jsonb" else None  # as JsonConverter has it
    name, kind, login = unique("dbz").lower(), unique("kind"), unique("svc").lower()
    config = connector(database__hostname=db.pg.host, database__port=str(db.pg.port), database__user="postgres",
                       database__dbname=db.name, table__include__list="shop\\.outbox_events", **options)
    assert run(config, "--brokers", kafka.bootstrap, "--name", name).returncode == 0
    db.psql(f"CREATE SCHEMA shop; CREATE TABLE shop.outbox_events ({columns}); CREATE ROLE {login} LOGIN; "
            f"GRANT USAGE ON SCHEMA shop TO {login}; GRANT ALL ON shop.outbox_events TO {login}")
    db.psql((tmp_path / "outbox.sql").read_text())
    db.psql((tmp_path / "outbox.sql").read_text())  # and again: it is replaced
    cli("init", "-c", tmp_path / "relay.cfg", check=True)
    topic = kind if other else f"outbox.event.{kind}"
    kafka.create_topic(topic, 2 if other else 1)
    relay = servers.Relay(db.conninfo, kafka.bootstrap, name=name)
    (tmp_path / "relay.cfg").replace(relay.file)
    relay.override = [f"http.listen=127.0.0.1:{relay.port}"]
    ids = [str(uuid.uuid4()) for _ in range(4)]
    value = '{"n": 1, "text": "Grüße"}'
    insert = "INSERT INTO shop.outbox_events VALUES (%s, %s, %s, %s, %s" + (", 'acme', 1)" if other else ")")
    try:
        with contextlib.closing(psycopg2.connect(db.conninfo.replace("user=postgres", f"user={login}"))) as c:
            with c, c.cursor() as cur:
                cur.execute(insert, (ids[0], kind, "7", "Made", put(value)))
                cur.execute("DELETE FROM shop.outbox_events")
                cur.execute(insert, (ids[1], kind, "7", "Changed", put(value)))
            with contextlib.suppress(ZeroDivisionError), c, c.cursor() as cur:
                cur.execute(insert, (ids[2], kind, "7", "Never", put(value)))
                raise ZeroDivisionError
            with c, c.cursor() as cur:
                cur.execute(insert, (ids[3], kind, "7", "Gone", None))
        relay.start().wait_ready()
        records = read_topic(kafka, topic, 3)
        assert [(r.key, header(r, "id").decode(), header(r, "type"), r.value) for r in records] == [
            (b"7", ids[0], b"Made", got(value)), (b"7", ids[1], b"Changed", got(value)), (b"7", ids[3], b"Gone", nothing)]
        if other:
            assert {(r.partition, header(r, "x-tenant")) for r in records} == {(1, b"acme")}
    finally:
        relay.kill()
        db.query(f"DROP OWNED BY {login}")
        db.query(f"DROP ROLE {login}")


def test_names_are_no_sql(db, run, tmp_path):
    """A name ends neither a comment nor a function's body: the SQL is run by an owner, the connector's file comes from elsewhere."""
    table = "odd\nDROP\tTABLE\tprecious;--"
    assert run(connector(table__include__list="public." + table,
                         o__table__fields__additional__placement="tenant:header:a$f$;b")).returncode == 0
    db.psql(f'CREATE TABLE precious (); CREATE TABLE "{table}" (id uuid, aggregatetype text, aggregateid text, type text, payload text, tenant text)')
    db.psql((tmp_path / "outbox.sql").read_text())
    db.query(f"""INSERT INTO "{table}" VALUES (gen_random_uuid(), 'k', '1', 'T', '{{}}', 'acme')""")
    assert db.one("SELECT headers FROM outbox.event") == {"a$f$;b": "acme"}
    assert db.one("SELECT to_regclass('precious') IS NOT NULL")
