"""tests/e2e/test_adopt.py -- outbox tables of other systems: their own DDL, rows written and marked by the statements of those
libraries, adopted, and each row on its topic once, as its readers know it. The truth is what the test wrote, not the outbox.
"""
import collections
import contextlib
import json
import threading
import uuid

import checker
import psycopg2
import pytest
from outbox import header, read_topic, unique
from psycopg2.extras import Json
from wait import wait_until

Event = collections.namedtuple("Event", "id topic key type value headers")


class Layout:
    """How a library makes its table, writes a row and marks it as published. write gives the Event that its readers expect."""
    done = pending = None

    def mark(self, cur, event):
        cur.execute(self.done, {"id": event.id, "number": self.numbers.get(event.id)})

    def __init__(self, db):
        self.db, self.numbers, self.topic = db, {}, self.topic_of(unique("a"))
        db.psql(f"CREATE SCHEMA shop; SET search_path = shop; {self.ddl}")

    def topic_of(self, word):
        return word

    def waiting(self):
        return self.db.one(f"SELECT count(*) FROM {self.table} WHERE {self.pending}")


class Debezium(Layout):
    # debezium.io/documentation, "Outbox Event Router", section "Expected outbox table"; tracingspancontext as Debezium's Quarkus
    # extension adds it. The extension inserts the row and deletes it at once.
    name, table = "debezium", "shop.outboxevent"
    ddl = """CREATE TABLE outboxevent (id uuid NOT NULL, aggregatetype character varying(255) NOT NULL,
        aggregateid character varying(255) NOT NULL, type character varying(255) NOT NULL, payload jsonb,
        tracingspancontext character varying(256))"""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    def topic_of(self, word):
        self.kind = word
        return "outbox.event." + word

    def write(self, cur, key, n):
        e = Event(str(uuid.uuid4()), self.topic, key, "OrderCreated", b'{"n": %d, "text": "\xc3\xa9"}' % n,
                  {"traceparent": self.trace})
        cur.execute("INSERT INTO shop.outboxevent VALUES (%s, %s, %s, %s, %s, %s)",
                    (e.id, self.kind, key, e.type, e.value.decode(), self.trace))
        cur.execute("DELETE FROM shop.outboxevent WHERE id = %s", (e.id,))
        return e


class OpenOutbox(Layout):
    # github.com/open-outbox/relay, schema/postgres/open-outbox.sql (without comments and indexes), cmd/producer/main.go,
    # internal/storage/postgres.go (sqlMarkDeliveredBatch), internal/publishers/kafka.go (topic, key, X-Event-ID).
    name, table = "openoutbox", "shop.openoutbox_events"
    ddl = """CREATE TABLE openoutbox_events (event_id UUID PRIMARY KEY, event_type TEXT NOT NULL, partition_key TEXT,
        payload BYTEA NOT NULL, headers JSONB NOT NULL DEFAULT '{}', status TEXT NOT NULL DEFAULT 'PENDING',
        attempts INT NOT NULL DEFAULT 0, last_error TEXT, available_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), locked_by TEXT,
        locked_at TIMESTAMPTZ, delivered_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
        updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
        CONSTRAINT check_valid_status CHECK (status IN ('PENDING', 'DELIVERING', 'DELIVERED', 'DEAD')))"""
    done = "UPDATE shop.openoutbox_events SET status = 'DELIVERED', delivered_at = NOW(), updated_at = NOW() WHERE event_id = %(id)s"
    pending = "status = 'PENDING'"

    def write(self, cur, key, n):
        id, trace, value = str(uuid.uuid4()), str(uuid.uuid4()), b"\x00\xff" + str(n).encode()
        cur.execute("INSERT INTO shop.openoutbox_events (event_id, event_type, partition_key, payload, headers, status) "
                    "VALUES (%s, %s, %s, %s, %s, 'PENDING')", (id, self.topic, key or None, value, Json({"trace_id": trace, "id": "x"})))
        return Event(id, self.topic, key or id, self.topic, value, {"trace_id": trace, "X-Event-ID": id})


class Eventuate(Layout):
    # github.com/eventuate-foundation/eventuate-common, flyway-templates/postgresql/3.create-message-table.sql and
    # EventuateCommonJdbcOperations.insertIntoMessageTableDefaultId; the record's value and key are those of eventuate-cdc's
    # MessageWithDestination and MessageWithDestinationPublishingStrategy.
    name, table = "eventuate", "shop.message"
    ddl = """CREATE TABLE message (id VARCHAR(255) PRIMARY KEY, destination TEXT NOT NULL, headers TEXT NOT NULL,
        payload TEXT NOT NULL, published SMALLINT DEFAULT 0, message_partition SMALLINT, creation_time BIGINT);
        CREATE INDEX message_published_idx ON message(published, id)"""
    done = "UPDATE shop.message SET published = 1 WHERE id = %(number)s"
    pending = "published = 0"
    count = 0

    def write(self, cur, key, n):
        Eventuate.count += 1
        given = f"{0x16e8f5c6f1d + Eventuate.count:016x}-0242ac1100060002"
        headers = {"ID": given, "DESTINATION": self.topic, "event-type": "net.shop.OrderCreated", "DATE": "Sun, 22 Nov 2026"}
        if key:
            headers["PARTITION_ID"] = key
        payload = json.dumps({"n": n})
        cur.execute("insert into shop.message(id, destination, headers, payload, creation_time) "
                    "values(%s, %s, %s, %s, (ROUND(EXTRACT(EPOCH FROM CURRENT_TIMESTAMP) * 1000))::BIGINT)",
                    (given, self.topic, json.dumps(headers), payload))
        id = str(uuid.UUID(given.replace("-", "")))
        self.numbers[id] = given
        return Event(id, self.topic, key or given, "net.shop.OrderCreated", {"payload": payload, "headers": headers}, {})


class Tomorrow(Layout):
    # github.com/tomorrow-one/transactional-outbox, outbox-kafka-spring/.../V2020.06.19.22.29.00__add-outbox-tables.sql,
    # OutboxService.saveForPublishing, OutboxProcessor.toProducerRecord.
    name, table = "tomorrow", "shop.outbox_kafka"
    ddl = """CREATE SEQUENCE outbox_kafka_id_seq; CREATE TABLE outbox_kafka (
        id BIGINT PRIMARY KEY DEFAULT nextval('outbox_kafka_id_seq'::regclass), created TIMESTAMP WITHOUT TIME ZONE NOT NULL,
        processed TIMESTAMP WITHOUT TIME ZONE NULL, topic CHARACTER VARYING(128) NOT NULL, key CHARACTER VARYING(128) NULL,
        value BYTEA NOT NULL, headers JSONB NULL);
        CREATE INDEX idx_outbox_kafka_not_processed ON outbox_kafka (id) WHERE processed IS NULL"""
    done = "UPDATE shop.outbox_kafka SET processed = now() WHERE id = %(number)s"
    pending = "processed IS NULL"

    def write(self, cur, key, n):
        value, headers = b"\x08\x96\x01" + bytes([n]), {"x-value-type": "shop.OrderCreated"} if n % 2 else None
        cur.execute("INSERT INTO shop.outbox_kafka (created, processed, topic, key, value, headers) "
                    "VALUES (now(), NULL, %s, %s, %s, %s) RETURNING id", (self.topic, key or None, value, headers and Json(headers)))
        number = cur.fetchone()[0]
        # Any id, always the same: the row's number is the name that mark() needs.
        self.numbers[f"#{number}"] = number
        return Event(f"#{number}", self.topic, key or str(number), headers["x-value-type"] if headers else self.topic, value,
                     headers or {})


class PgTrx(Layout):
    # github.com/Zehelein/pg-transactional-outbox, examples/setup/out/example-trx-polling.sql, lib/src/message/
    # initialize-message-storage.ts (insertMessage) and mark-message-completed.ts.
    name, table = "pgtrx", "shop.outbox"
    ddl = """CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
        message_type TEXT NOT NULL, segment TEXT, concurrency TEXT NOT NULL DEFAULT 'sequential', payload JSONB NOT NULL,
        metadata JSONB, locked_until TIMESTAMPTZ NOT NULL DEFAULT to_timestamp(0),
        created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(), processed_at TIMESTAMPTZ, abandoned_at TIMESTAMPTZ,
        started_attempts smallint NOT NULL DEFAULT 0, finished_attempts smallint NOT NULL DEFAULT 0);
        ALTER TABLE outbox ADD CONSTRAINT outbox_concurrency_check CHECK (concurrency IN ('sequential', 'parallel'))"""
    done = "UPDATE shop.outbox SET processed_at = now(), finished_attempts = finished_attempts + 1 WHERE id = %(id)s"
    pending = "processed_at IS NULL AND abandoned_at IS NULL"

    def topic_of(self, word):
        self.kind = word
        return "outbox.event." + word

    def write(self, cur, key, n):
        e = Event(str(uuid.uuid4()), self.topic, key, "movie_created", b'{"n": %d}' % n, {"routing": json.dumps({"exchange": "e"})})
        for _ in range(2):  # a message that is stored again is none
            cur.execute("INSERT INTO shop.outbox (id, aggregate_type, aggregate_id, message_type, segment, payload, metadata) "
                        "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
                        (e.id, self.kind, key, e.type, "seg", e.value.decode(), Json({"routing": {"exchange": "e"}})))
        return e


LAYOUTS = {c.name: c for c in (Debezium, OpenOutbox, Eventuate, Tomorrow, PgTrx)}


@pytest.fixture
def adopt(db, cli):
    """adopt(table, *args) -> (exit status, its JSON)."""
    def run(table, *args, ok=(0, 3)):
        done = cli("adopt", table, "--conninfo", db.conninfo, "--json", *args)
        assert done.returncode in ok, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr
    return run


@pytest.fixture
def service(db):
    """service(layout, rights) -> a connection of a role that may do nothing but write its own table."""
    made = []

    def login(layout):
        role = unique("svc").lower()
        db.psql(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA shop TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA shop TO {role}; "
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA shop TO {role}")
        made.append((role, psycopg2.connect(db.conninfo.replace("user=postgres", f"user={role}"))))
        return made[-1][1]
    yield login
    for role, c in made:
        c.close()
        db.query(f"DROP OWNED BY {role}")
        db.query(f"DROP ROLE {role}")


def written(layout, conn, keys, first=1):
    with conn, conn.cursor() as cur:
        return [layout.write(cur, key, first + i) for i, key in enumerate(keys)]


def same(record, event):
    """Headers of the relay's own aside; an id that the table does not have as a UUID is any, and looked at by the caller."""
    own = {"id", "type", "content-type", "outbox-seq", "outbox-created-at"}
    value = json.loads(record.value) if isinstance(event.value, dict) else record.value
    assert (record.topic, record.key.decode(), header(record, "type").decode(), value) == (
        event.topic, event.key, event.type, event.value)
    assert {k: v.decode() for k, v in record.headers if k not in own} == event.headers
    assert event.id[0] == "#" or header(record, "id").decode() == event.id


def in_order(records, truth):
    """Each once, and those of a key in the order of their writing."""
    assert len(records) == len(truth) == len({header(r, "id") for r in records})
    for key in {e.key for e in truth}:
        got, want = [r for r in records if r.key.decode() == key], [e for e in truth if e.key == key]
        assert len(got) == len(want), key
        for r, e in zip(got, want):
            same(r, e)


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_their_table_to_kafka(db, kafka, relay, adopt, service, cli, name, outbox_name):
    """Rows that the old publisher has sent are not sent again; those that wait are taken once, however often it is said; those that
    come are events in their own transaction, without a new right; --undo gives the table back, and the next adoption takes
    what came meanwhile."""
    layout = LAYOUTS[name](db)
    conn = service(layout)
    truth = []
    if layout.done:
        sent = written(layout, conn, ["7", "8"])
        with conn, conn.cursor() as cur:
            for e in sent:
                layout.mark(cur, e)
        truth += written(layout, conn, ["7", "8", "" if name != "pgtrx" else "9"], 3)
        told = adopt(layout.table)
        assert (told["layout"], told["unpublished"], told["events"]) == (name, 3, None)
        assert db.one("SELECT count(*) FROM outbox.event") == 0 and layout.waiting() == 3  # nothing without --apply
        assert adopt(layout.table, "--backfill", "--apply")["events"] == 3
        assert adopt(layout.table, "--backfill", "--apply")["events"] == 0
        assert layout.waiting() == 0
    else:
        assert "which rows have been published" in adopt(layout.table, "--backfill", "--apply", ok=(5,))
        assert adopt(layout.table, "--apply")["layout"] == name
    truth += written(layout, conn, ["7", "8", "7"], 10)
    with contextlib.suppress(ZeroDivisionError), conn, conn.cursor() as cur:
        layout.write(cur, "7", 20)
        raise ZeroDivisionError
    assert db.one("SELECT count(*) FROM outbox.event") == len(truth)
    if layout.pending:
        assert layout.waiting() == 0  # the old publisher finds nothing
    adopt(layout.table, "--undo", "--apply")
    adopt(layout.table, "--undo", "--apply")
    left = written(layout, conn, ["7", "8"], 30)
    assert db.one("SELECT count(*) FROM outbox.event") == len(truth)
    if layout.pending:
        assert layout.waiting() == 2
        assert adopt(layout.table, "--backfill", "--apply")["events"] == 2
        truth += left
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    kafka.create_topic(layout.topic, 3)
    relay(db.conninfo, kafka.bootstrap, name=outbox_name).start().wait_ready()
    in_order(read_topic(kafka, layout.topic, len(truth), 60), truth)
    result = checker.check(db.conninfo, kafka.bootstrap, layout.topic, journal_sql=checker.OUTBOX)
    assert result.ok and result.journal == len(truth), result.report()


def test_every_row_is_taken_once_while_services_write(db, cli):
    """Four services write all the time; the table is adopted, given back, adopted again. Each committed row is an event
    once, or still waits for the old publisher: none is both, none neither."""
    layout = PgTrx(db)
    stop, ids, failed = threading.Event(), [], []

    def write():
        try:
            with contextlib.closing(db.connect(autocommit=False)) as c:
                while not stop.is_set():
                    mine = written(layout, c, ["1", "2"])
                    ids.extend(e.id for e in mine)
        except Exception as e:  # whatever it is fails the test, in its own thread
            failed.append(e)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for t in threads:
        t.start()
    try:
        for args in (["--backfill"], ["--undo"], ["--backfill"], ["--undo"], []):
            before = len(ids)
            wait_until(lambda: len(ids) > before + 20 or failed, 60, "services to write")
            # A lock that is not had in five seconds is not waited for: said, and done again.
            wait_until(lambda: cli("adopt", layout.table, "--conninfo", db.conninfo, "--apply", *args).returncode == 0, 60,
                       "the table's lock")
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not failed, failed
    events = [r[0] for r in db.query("SELECT id::text FROM outbox.event")]
    left = [r[0] for r in db.query(f"SELECT id::text FROM {layout.table} WHERE {layout.pending}")]
    assert len(events) == len(set(events)) and left and not set(events) & set(left)
    assert set(events) | set(left) == set(ids)
    cli("adopt", layout.table, "--conninfo", db.conninfo, "--apply", "--backfill", check=True)
    assert sorted(r[0] for r in db.query("SELECT id::text FROM outbox.event")) == sorted(ids)


def test_a_row_whose_transaction_is_open_is_waited_for(db, cli):
    """The row was written before the adoption and is committed behind its beginning: neither trigger nor back-fill saw
    it, had it not been for the lock."""
    layout = Tomorrow(db)
    with contextlib.closing(db.connect(autocommit=False)) as c, c.cursor() as cur:
        layout.write(cur, "7", 1)
        done = []
        t = threading.Thread(target=lambda: done.append(
            cli("adopt", layout.table, "--conninfo", db.conninfo, "--backfill", "--apply", "--json")))
        t.start()
        wait_until(lambda: done or db.one("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'shop.outbox_kafka'::regclass"),
                   60, "adopt to wait for the lock")
        c.commit()
        t.join()
    if done[0].returncode == 1:  # the machine was slower than the lock's five seconds
        assert "run it again" in done[0].stderr
        done = [cli("adopt", layout.table, "--conninfo", db.conninfo, "--backfill", "--apply", "--json")]
    assert json.loads(done[0].stdout)["events"] == 1
    assert db.one("SELECT count(*) FROM outbox.event") == 1


@pytest.mark.parametrize("name,column", [("openoutbox", "available_at"), ("pgtrx", "locked_until")])
def test_rows_for_later_are_scheduled(db, adopt, name, column):
    layout = LAYOUTS[name](db)
    with contextlib.closing(db.connect(autocommit=False)) as c:
        db.psql(f"ALTER TABLE {layout.table} ALTER {column} SET DEFAULT now() + interval '1 day'")
        waiting = written(layout, c, ["7"])
        told = adopt(layout.table, "--backfill", "--apply")
        assert (told["events"], told["scheduled"]) == (0, 1)
        later = written(layout, c, ["7"])
        db.psql(f"ALTER TABLE {layout.table} ALTER {column} SET DEFAULT now()")
        at_once = written(layout, c, ["7"])
    assert [r[0] for r in db.query("SELECT id::text FROM outbox.scheduled WHERE at > now() + interval '23 hours' ORDER BY entry")] == [
        e.id for e in waiting + later]
    assert [r[0] for r in db.query("SELECT id::text FROM outbox.event")] == [e.id for e in at_once]


@pytest.mark.parametrize("name", LAYOUTS)
def test_auto_knows_the_table_and_says_all_of_it(db, adopt, name, tmp_path):
    """Every column has its word; the file of --sql is what --apply runs, and psql takes it twice."""
    layout = LAYOUTS[name](db)
    told = adopt(layout.table, "--sql", tmp_path / "adopt.sql")
    assert told["layout"] == name and told["sql"] == (tmp_path / "adopt.sql").read_text()
    columns = {r[0] for r in db.query("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", (layout.table,))}
    assert columns == {c["column"] for c in told["columns"] if c["column"][0] != "("}
    assert all(c["why"] and c["fate"] != "unknown" for c in told["columns"])
    assert not [c for c in told["columns"] if "--map" in c["why"] and c["column"][0] != "(" and c["column"] != "segment"], "a column we do not know"
    for _ in range(2):
        db.psql(told["sql"])
    assert "--yes" in adopt(layout.table, "--sql", tmp_path / "adopt.sql", ok=(5,))


COLUMNS = "id uuid, aggregatetype text, aggregateid text, type text, payload jsonb"


@pytest.mark.parametrize("ddl,args,status,said", [
    ("TABLE t (id uuid, what text)", [], 5, "fits no layout: debezium lacks aggregatetype, openoutbox lacks event_id"),
    (f"TABLE t ({COLUMNS}, aggregate_type text, aggregate_id text, message_type text, metadata jsonb, locked_until timestamptz, "
     "processed_at timestamptz, abandoned_at timestamptz)", [], 5, "fits two layouts, debezium and pgtrx"),
    (f"TABLE other ({COLUMNS})", [], 4, "there is no table t"),
    ("VIEW t AS SELECT 1 AS id", [], 5, "is not a table"),
    (f"TABLE t ({COLUMNS})", ["--layout", "tomorrow"], 5, "has no column topic, which layout tomorrow has"),
    (f"TABLE t ({COLUMNS})", ["--map", "nope=type"], 2, "no such column"),
    (f"TABLE t ({COLUMNS})", ["--map", "type=colour"], 2, "there is no such field"),
    (f"TABLE t ({COLUMNS})", ["--map", "type=header:outbox-seq"], 2, "the relay writes this header by itself"),
    (f"TABLE t ({COLUMNS})", ["--layout", "nobody"], 2, "auto"),
    # eventuate-common, postgres/5.initialize-database-db-id.sql
    ("TABLE t (id VARCHAR(1000), dbid BIGINT PRIMARY KEY, destination TEXT NOT NULL, headers TEXT NOT NULL, payload TEXT NOT NULL, "
     "published SMALLINT DEFAULT 0, creation_time BIGINT)", [], 5, "the rows have none"),
])
def test_what_is_refused(db, cli, ddl, args, status, said):
    db.psql(f"CREATE {ddl}")
    done = cli("adopt", "t", "--conninfo", db.conninfo, "--apply", *args)
    assert done.returncode == status and said in done.stderr, done.stderr
    assert not db.query("SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = to_regclass('public.t')")


def test_an_inbox_is_not_guessed(db, adopt):
    """pg-transactional-outbox's inbox has the columns of its outbox: what came in would be published."""
    PgTrx(db)
    db.psql("CREATE TABLE shop.inbox (LIKE shop.outbox)")
    assert "name of an inbox" in adopt("shop.inbox", "--apply", ok=(5,))


def test_our_own_tables_are_refused(db, cli):
    done = cli("adopt", "outbox.event", "--conninfo", db.conninfo, "--apply")
    assert done.returncode == 5 and "schema outbox" in done.stderr


def test_columns_of_other_names(db, adopt):
    """--map: an id that is a number, a text that is JSON, a time, a header, names that need quotes."""
    db.psql('CREATE SCHEMA "My Shop"; CREATE TABLE "My Shop"."Out=box" (no bigint, "Kind of" text, ref int, what text, body text, '
            'tenant text, part int, later timestamptz, spare text)')
    maps = ["no=id", "Kind of=aggregatetype", "ref=aggregateid", "what=type", "body=json", "tenant=header:x-tenant",
            "part=partition", "later=at"]
    table = '"My Shop"."Out=box"'
    told = adopt(table, "--layout", "debezium", *[x for m in maps for x in ("--map", m)], "--apply")
    assert {c["column"]: c["fate"] for c in told["columns"]}["spare"] == "to do"
    rows = "(1, 'k', 7, 'Made', '{\"a\":1}', 'acme', 2, NULL, 's'), (2, 'k', 7, 'Gone', NULL, NULL, NULL, '-infinity', NULL)"
    db.query(f"INSERT INTO {table} VALUES {rows}")
    assert db.query("SELECT aggregatetype, aggregateid, type, payload::text, headers::text, partition FROM outbox.event ORDER BY seq") == [
        ("k", "7", "Made", '{"a": 1}', '{"x-tenant": "acme"}', 2), ("k", "7", "Gone", None, "{}", None)]
    first = db.query("SELECT id FROM outbox.event ORDER BY seq")
    adopt(table, "--layout", "debezium", *[x for m in maps for x in ("--map", m)], "--apply")
    db.query(f"INSERT INTO {table} VALUES {rows}")
    assert db.query("SELECT id FROM outbox.event ORDER BY seq") == first + first  # the same row, the same id


def test_nobody_else_may_use_the_trigger(db, adopt, service, cli):
    """Its function inserts with its owner's right: a login that put it on a table of its own could publish anything."""
    layout = PgTrx(db)
    adopt(layout.table, "--apply")
    conn = service(layout)
    with conn.cursor() as cur, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cur.execute("CREATE TEMP TABLE mine (LIKE shop.outbox); CREATE TRIGGER t AFTER INSERT ON mine REFERENCING NEW TABLE AS "
                    "new_rows FOR EACH STATEMENT EXECUTE FUNCTION shop.outbox_to_postrider()")
    conn.rollback()
    with conn.cursor() as cur, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type) VALUES ('k', '1', 'T')")
    conn.rollback()


def test_an_owner_who_may_not_insert_is_told_before_services_fail(db, cli, service):
    layout = Debezium(db)
    conn = service(layout)
    role = conn.info.user
    db.psql(f"GRANT CREATE ON SCHEMA shop TO {role}; ALTER TABLE shop.outboxevent OWNER TO {role}; GRANT outbox_relay TO {role}")
    args = ("adopt", layout.table, "--conninfo", db.conninfo.replace("user=postgres", f"user={role}"), "--apply")
    done = cli(*args)
    assert done.returncode == 77 and "GRANT outbox_writer" in done.stderr, done.stderr
    db.psql(f"GRANT outbox_writer TO {role}")
    assert cli(*args).returncode == 0
    written(layout, conn, ["1"])
    assert db.one("SELECT count(*) FROM outbox.event") == 1


def test_the_relay_reads_no_other_layout(tmp_path):
    """source.layout = "debezium" cannot be: the relay's proof needs xid and seq. The refusal names what can."""
    import servers
    (tmp_path / "relay.cfg").write_text('name = "o"; source: { conninfo = "host=x"; layout = "debezium"; }; kafka: { brokers = "x:1"; };')
    done = servers.Cli("postrider-relay").run("-c", tmp_path / "relay.cfg", "--check")
    assert done.returncode == 78 and "postrider adopt" in done.stderr, done.stderr
