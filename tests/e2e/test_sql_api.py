"""tests/e2e/test_sql_api.py -- schema outbox as its users meet it: plain INSERT, the SQL API, what is
refused and with which hint, who may do what, scheduled events, installing and upgrading.

Needs Postgres only. Refuses to look into the relay: what leaves the database is tested elsewhere.
"""
import contextlib
import json
import threading
import uuid

import psycopg2
import pytest

from sql import login, refused, run
from wait import wait_until

COLUMNS = "aggregatetype, aggregateid, type, payload"
WELL = {"aggregatetype": "order", "aggregateid": "42", "type": "OrderCreated", "payload": '{"total": 1}'}


def insert(db, table="outbox.event", **columns):
    """Inserts one event, sound but for the given columns, and returns its seq."""
    row = {**WELL, **columns}
    names = ", ".join(row)
    returning = "RETURNING seq" if table == "outbox.event" else "RETURNING entry"
    return db.one(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(row))}) {returning}",
                  tuple(row.values()))


# ---------------------------------------------------------------- inserting

def test_plain_insert_fills_the_rest(db):
    seq = insert(db)
    xid, ident, headers, age, version = db.query(
        "SELECT xid::text::bigint, id, headers, extract(epoch FROM clock_timestamp() - created_at), "
        "substr(id::text, 15, 1) FROM outbox.event WHERE seq = %s", (seq,))[0]
    assert seq == 1 and xid > 0 and headers == {} and 0 <= age < 60 and version == "7"
    assert uuid.UUID(ident).variant == uuid.RFC_4122


def test_debezium_column_list(db):
    given = str(uuid.uuid4())
    db.query("INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload) VALUES (%s, %s, %s, %s, %s)",
             (given, "Order", "7", "OrderCreated", "{}"))
    assert db.query("SELECT id, aggregatetype FROM outbox.event") == [(given, "Order")]


def test_orm_that_writes_every_column_it_maps(db):
    """Mappers send NULL for what was not set: headers, topic, both payloads."""
    seq = insert(db, payload=None, payload_bytes=None, headers=None, topic=None, partition=None,
                 aggregateversion=None, tracingspancontext=None)
    assert db.query("SELECT payload, headers FROM outbox.event WHERE seq = %s", (seq,)) == [(None, None)]


def test_ids_are_version_7_and_in_time_order(db):
    n, distinct, sound, off = db.query(
        "SELECT count(*), count(DISTINCT u), bool_and(substr(u::text, 15, 1) = '7' "
        "AND substr(u::text, 20, 1) IN ('8', '9', 'a', 'b')), "
        "max(abs(extract(epoch FROM t) * 1000 - ('x' || lpad(substr(replace(u::text, '-', ''), 1, 12), 16, '0'))"
        "::bit(64)::bigint)) FROM (SELECT clock_timestamp() AS t, outbox.uuid7() AS u "
        "FROM generate_series(1, 20000)) AS s")[0]
    assert (n, distinct, sound) == (20000, 20000, True)
    assert off < 60000  # ms between the clock and the id; a scheduling pause may lie between the two
    first, second = db.one("SELECT outbox.uuid7()"), None
    wait_until(lambda: db.one("SELECT outbox.uuid7()")[:13] > first[:13], 30, "the millisecond to pass")
    second = db.one("SELECT outbox.uuid7()")
    assert second > first


def test_xid_is_assigned_before_the_seq(db):
    """INSERT (seq, ...) VALUES (DEFAULT, ...) evaluates seq's default first. Were it a bare nextval,
    the transaction would own a seq without having an xid, and the relay's bound (every owner of a
    seq <= L has an xid < N) would lose the row."""
    with contextlib.closing(db.connect(autocommit=False)) as c:
        run(c, f"INSERT INTO outbox.event (seq, xid, {COLUMNS}) "
               "VALUES (DEFAULT, DEFAULT, 'order', '1', 'T', '{}')")
        c.commit()
    # The proof: a default that fails right after the seq was drawn finds the xid assigned.
    expr = db.one("SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d JOIN pg_attribute AS a "
                  "ON a.attrelid = d.adrelid AND a.attnum = d.adnum "
                  "WHERE d.adrelid = 'outbox.event'::regclass AND a.attname = 'seq'")
    with contextlib.closing(db.connect(autocommit=False)) as c:
        assert run(c, "SELECT pg_current_xact_id_if_assigned()") == [(None,)]
        assert run(c, f"SELECT s, pg_current_xact_id_if_assigned() IS NOT NULL FROM (SELECT {expr} AS s) AS x")[0][1]
    leaf = db.one("SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d JOIN pg_attribute AS a "
                  "ON a.attrelid = d.adrelid AND a.attnum = d.adnum "
                  "WHERE d.adrelid = 'outbox.event_1'::regclass AND a.attname = 'seq'")
    assert leaf == expr
    assert db.query("SELECT seqcache, seqincrement, seqcycle FROM pg_sequence "
                    "WHERE seqrelid = 'outbox.event_seq'::regclass") == [(1, 1, False)]


def test_rows_of_a_savepoint_carry_the_top_level_xid(db):
    with contextlib.closing(db.connect(autocommit=False)) as c:
        run(c, "SAVEPOINT a")
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
        run(c, "RELEASE a")
        run(c, "SELECT outbox.publish_many('[{\"aggregatetype\": \"order\", \"aggregateid\": \"1\", \"type\": \"T\"}]')")
        top = run(c, "SELECT pg_current_xact_id()::text")[0][0]
        c.commit()
    assert db.query("SELECT DISTINCT xid::text FROM outbox.event") == [(top,)]


# ---------------------------------------------------------------- what is refused

BAD = [
    ("aggregatetype", {"aggregatetype": ""}, "empty", "topic name"),
    ("aggregatetype", {"aggregatetype": "a" * 237}, "237 bytes", "236"),
    ("aggregatetype", {"aggregatetype": "or der"}, "character outside", "A-Z a-z 0-9"),
    ("aggregatetype", {"aggregatetype": "auftr\u00e4ge"}, "character outside", "A-Z a-z 0-9"),
    ("aggregatetype", {"aggregatetype": "order\n"}, "character outside", "A-Z a-z 0-9"),
    ("aggregatetype", {"aggregatetype": ".."}, "Kafka refuses", "topic name"),
    ("aggregatetype", {"aggregatetype": "__order"}, "keeps for itself", "__"),
    ("aggregateid", {"aggregateid": ""}, "empty", "Kafka key"),
    ("aggregateid", {"aggregateid": "k" * 65537}, "65537 bytes", "Kafka key"),
    ("type", {"type": ""}, "empty", "what happened"),
    ("type", {"type": "T" * 1025}, "1025 bytes", "header"),
    ("type", {"type": "Order\tCreated"}, "control character", "header"),
    ("topic", {"topic": ""}, "empty", "Leave topic NULL"),
    ("topic", {"topic": "."}, "Kafka refuses", "Leave topic NULL"),
    ("topic", {"topic": "__consumer_offsets"}, "keeps for itself", "Leave topic NULL"),
    ("topic", {"topic": "a/b"}, "character outside", "249"),
    ("topic", {"topic": "t$"}, "character outside", "249"),
    ("topic", {"topic": "a\x1bb"}, "character outside", "249"),
    ("topic", {"topic": "t" * 250}, "250 bytes", "249"),
    ("payload_bytes", {"payload_bytes": b"x"}, "both payload", "tombstone"),
    ("headers", {"headers": "[]"}, "a JSON array, not an object", '{"name": "value"}'),
    ("headers", {"headers": "null"}, "a JSON null, not an object", '{"name": "value"}'),
    ("headers", {"headers": '"x"'}, "a JSON string, not an object", '{"name": "value"}'),
    ("headers", {"headers": '{"id": "1"}'}, '"id" is reserved', "column id"),
    ("headers", {"headers": '{"a": "1", "TYPE": "1"}'}, '"TYPE" is reserved', "column type"),
    ("headers", {"headers": '{"Content-Type": "x"}'}, '"Content-Type" is reserved', "another name"),
    ("headers", {"headers": '{"outbox-seq": 1}'}, '"outbox-seq" is reserved', "another name"),
    ("headers", {"headers": '{"outbox-created-at": 1}'}, '"outbox-created-at" is reserved', "another name"),
    ("headers", {"headers": '{"TraceParent": "00-"}'}, '"TraceParent" is reserved', "SET LOCAL outbox.traceparent"),
    ("headers", {"headers": '{"\\u0069d": "1"}'}, '"id" is reserved', "column id"),
    ("headers", {"headers": '{"": "1"}'}, "empty name", "1 to 256"),
    ("headers", {"headers": json.dumps({"h" * 257: 1})}, "257 bytes", "1 to 256"),
    ("headers", {"headers": json.dumps({"h": "v" * 65536})}, "65536 is the most", "payload"),
    ("partition", {"partition": -1}, "partition is -1", "NULL"),
    ("tracingspancontext", {"tracingspancontext": "t" * 8193}, "8193 bytes", "traceparent"),
]


@pytest.mark.parametrize("table", ["outbox.event", "outbox.scheduled"])
def test_bad_input_is_refused_with_a_hint(db, table):
    more = {"at": "infinity"} if table == "outbox.scheduled" else {}
    for column, bad, says, advises in BAD:
        with pytest.raises(psycopg2.errors.CheckViolation) as e:
            insert(db, table, **more, **bad)
        message, hint = e.value.diag.message_primary, e.value.diag.message_hint
        assert message.startswith("outbox: ") and e.value.diag.column_name == column, (bad, message)
        assert says in message and advises in hint, (str(bad)[:80], message, hint)
        assert len(message) < 200 and message.isprintable(), message
    assert db.query(f"SELECT count(*) FROM {table}") == [(0,)]


def test_the_very_large_is_refused(db):
    code, message, hint = refused(
        db.query, "INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload_bytes) "
                  "VALUES ('order', '1', 'T', decode(repeat('00', 67108865), 'hex'))")
    assert code == "23514" and "67108865 bytes" in message and "store the data elsewhere" in hint


GOOD = [
    {"aggregatetype": "a"}, {"aggregatetype": "a" * 236}, {"aggregatetype": "_a"}, {"aggregatetype": "_"},
    {"aggregatetype": ".a"}, {"aggregatetype": "..."}, {"aggregatetype": "-"}, {"aggregatetype": "com.acme.Order_1-x"},
    {"aggregateid": "k" * 65536}, {"aggregateid": " "}, {"aggregateid": "\u4e3b\u6587 \U0001f4ee"}, {"aggregateid": "a\nb"},
    {"type": "T" * 1024}, {"type": "bestellung ge\u00e4ndert"},
    {"topic": "t" * 249}, {"topic": "a__b"}, {"topic": "..."}, {"topic": "_t"},
    {"payload": None}, {"payload": None, "payload_bytes": b""}, {"payload": None, "payload_bytes": b"\x00\xff"},
    {"payload": "null"}, {"payload": "[]"},
    {"headers": '{"ids": "1", "my-type": 2, "n": {"id": "inner"}, "q": "\\"id\\": "}'},
    {"headers": json.dumps({"h" * 256: 1})}, {"headers": json.dumps({"h": "v" * 60000})},
    {"partition": 0}, {"partition": 2147483647}, {"aggregateversion": -1}, {"tracingspancontext": "t" * 8192},
    {"tracingspancontext": "#Fri Nov 20\ntraceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n"},
]


def test_the_unusual_but_sound_is_taken(db):
    for good in GOOD:
        assert insert(db, **good) > 0, good
        assert insert(db, "outbox.scheduled", at="infinity", **good) > 0, good


def test_missing_columns(db):
    for column in ("aggregatetype", "aggregateid", "type"):
        code, message, hint = refused(insert, db, **{column: None})
        assert code == "23514" and message == f"outbox: {column} is missing" and hint
    assert refused(insert, db, id=None)[0] == "23502"
    code, _, hint = refused(db.query, "SELECT outbox.publish_at(NULL, 'order', '1', 'T', '{}')")
    assert code == "22004" and "infinity" in hint


BAD_JSON = [
    ('{"a": "\\u0000"}', "22P05"), ('{"a": "\\ud800"}', "22P02"), ("{", "22P02"), ("", "22P02"),
    ('{"n": 1e400000}', "22003"), ("NaN", "22P02"),
]


def test_json_that_jsonb_refuses(db):
    for payload, code in BAD_JSON:
        assert refused(insert, db, payload=payload)[0] == code, payload


def test_nul_cannot_hide_in_text(db):
    for how in ("chr(0)", "convert_from('\\x6100', 'UTF8')"):
        code = refused(db.query, f"SELECT outbox.publish('order', {how}, 'T', '{{}}')")[0]
        assert code in ("54000", "22021")


def test_numbers_keep_their_digits(db):
    seq = insert(db, payload='{"n": 12345678901234567890.123456789012345678901234567890}')
    assert db.one("SELECT payload::text FROM outbox.event WHERE seq = %s", (seq,)) == \
        '{"n": 12345678901234567890.123456789012345678901234567890}'


# ---------------------------------------------------------------- append-only

CHANGES = [
    ("UPDATE {} SET type = 'x'", "another event that corrects it"),
    ("UPDATE {} SET type = 'x' WHERE false", "another event that corrects it"),
    ("DELETE FROM {}", "insert-then-delete"),
    ("TRUNCATE {}", "drops whole partitions"),
]


@pytest.mark.parametrize("relation", ["outbox.event", "outbox.event_1"])
def test_append_only(db, relation):
    """Debezium's users insert and delete in one transaction: the log has both. The relay reads the
    table, so that event would never have existed; better to fail than to lose it."""
    insert(db)
    for change, advises in CHANGES:
        code, message, hint = refused(db.query, change.format(relation))
        assert code == "55000" and "append-only" in message and advises in hint, change
    assert db.one("SELECT count(*) FROM outbox.event") == 1


def test_upsert_is_refused(db):
    code, _, _ = refused(db.query, f"INSERT INTO outbox.event (seq, {COLUMNS}) VALUES (1, 'order', '1', 'T', '{{}}') "
                                   "ON CONFLICT (seq) DO UPDATE SET type = 'x'")
    assert code == "55000"


# ---------------------------------------------------------------- the SQL API

def test_publish_returns_the_id_it_stored(db):
    given = str(uuid.uuid4())
    made = db.one("SELECT outbox.publish('order', '1', 'T', '{\"a\": 1}')")
    assert db.one("SELECT outbox.publish('order', '1', 'T', '{}', '{\"h\": \"v\"}', 'other', %s)", (given,)) == given
    raw = db.one("SELECT outbox.publish_bytes(aggregatetype => 'order', aggregateid => '1', type => 'T', "
                 "payload => '\\x00ff')")
    tomb = db.one("SELECT outbox.publish('order', '1', 'T', NULL, headers => NULL)")
    rows = db.query("SELECT id, payload, payload_bytes, headers, topic FROM outbox.event ORDER BY seq")
    assert [(r[0], r[1], bytes(r[2]) if r[2] is not None else None, r[3], r[4]) for r in rows] == [
        (made, {"a": 1}, None, {}, None), (given, {}, None, {"h": "v"}, "other"),
        (raw, None, b"\x00\xff", {}, None), (tomb, None, None, {}, None)]


def test_an_id_may_come_twice(db):
    given = str(uuid.uuid4())
    for _ in range(2):
        db.query("SELECT outbox.publish('order', '1', 'T', '{}', id => %s)", (given,))
    assert db.one("SELECT count(*) FROM outbox.event WHERE id = %s", (given,)) == 2


def test_rolled_back_events_are_gone(db):
    with contextlib.closing(db.connect(autocommit=False)) as c:
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
        run(c, "SELECT outbox.publish_at('infinity', 'order', '1', 'T', '{}')")
        c.rollback()
    assert db.one("SELECT (SELECT count(*) FROM outbox.event) + (SELECT count(*) FROM outbox.scheduled)") == 0


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_traceparent_of_the_transaction(db):
    with contextlib.closing(db.connect(autocommit=False)) as c:
        run(c, f"SET LOCAL outbox.traceparent = '{TRACE}'")
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
        run(c, "SELECT outbox.publish_many('[{\"aggregatetype\": \"order\", \"aggregateid\": \"1\", \"type\": \"T\"}]')")
        run(c, "SELECT outbox.publish_at('-infinity', 'order', '1', 'T', '{}')")
        c.commit()
        run(c, "SELECT outbox.publish_bytes('order', '1', 'T', '')")
        c.commit()
    assert db.one("SELECT outbox.move_due(10)") == 1
    assert [r[0] for r in db.query("SELECT tracingspancontext FROM outbox.event ORDER BY seq")] == \
        [TRACE, TRACE, None, TRACE]


BAD_TRACES = [
    "x", TRACE.upper(), TRACE + "-1", TRACE.replace("00-", "ff-", 1), TRACE + " ", TRACE[:-1],
    "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
]


def test_malformed_traceparent(db):
    with contextlib.closing(db.connect()) as c:
        for bad in BAD_TRACES:
            run(c, "SELECT set_config('outbox.traceparent', %s, false)", (bad,))
            code, message, hint = refused(run, c, "SELECT outbox.publish('order', '1', 'T', '{}')")
            assert code == "22023" and "traceparent" in message and TRACE in hint, bad


def test_search_path_of_the_caller_does_not_matter(db):
    """A caller who puts own operators and functions before pg_catalog's deceives nobody: publish has a
    fixed search_path, and the trigger inside it has too."""
    db.psql("CREATE SCHEMA evil; CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1'; "
            "CREATE FUNCTION evil.coalesce_(text) RETURNS text LANGUAGE sql AS 'SELECT 1'; "
            "CREATE FUNCTION evil.re(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; "
            "CREATE OPERATOR evil.~ (leftarg = text, rightarg = text, function = evil.re)")
    with contextlib.closing(db.connect()) as c:
        run(c, "SET search_path = evil, pg_catalog")
        assert refused(run, c, "SELECT outbox.publish('a b', '1', 'T', '{}')")[0] == "23514"
        run(c, "SET search_path = ''")
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
        run(c, f"INSERT INTO outbox.event ({COLUMNS}, headers) VALUES ('order', '1', 'T', '{{}}', '{{\"a\": 1}}')")
    assert db.one("SELECT count(*) FROM outbox.event") == 2


# ---------------------------------------------------------------- publish_many

def many(db, events):
    return db.one("SELECT outbox.publish_many(%s)", (events if isinstance(events, str) else json.dumps(events),))


def event(**more):
    return {"aggregatetype": "order", "aggregateid": "1", "type": "T", "payload": {}, **more}


def test_publish_many_keeps_the_order_of_the_array(db):
    n = 10000
    assert many(db, [event(aggregateid=str(i), payload={"i": i}) for i in range(n)]) == n
    assert [r[0] for r in db.query("SELECT payload->'i' FROM outbox.event ORDER BY seq")] == list(range(n))
    assert many(db, []) == 0


def test_publish_many_takes_every_field(db):
    given = str(uuid.uuid4())
    many(db, [event(id=given, headers={"h": "v"}, topic="t", partition=3, aggregateversion=9, tracingspancontext=TRACE),
              {"aggregatetype": "o", "aggregateid": 77, "type": "T", "payload_base64": "AP8="},
              event(payload=None, headers=None, id=None, topic=None, partition=None)])
    rows = db.query("SELECT id, aggregateid, payload, payload_bytes, headers, topic, partition, aggregateversion, "
                    "tracingspancontext FROM outbox.event ORDER BY seq")
    assert rows[0] == (given, "1", {}, None, {"h": "v"}, "t", 3, 9, TRACE)
    assert rows[1][1] == "77" and bytes(rows[1][3]) == b"\x00\xff" and rows[1][2] is None
    assert rows[2][2:7] == (None, None, {}, None, None)


BAD_ELEMENTS = [
    (event(extra=1), 'unknown field "extra"'), (event(seq=1), 'unknown field "seq"'),
    (event(xid="1"), 'unknown field "xid"'), (7, "JSON number, not an object"), ([], "JSON array, not an object"),
    (None, "JSON null, not an object"), (event(type=7), "type is not a string"),
    (event(aggregateid={"a": 1}), "aggregateid is not a string"), (event(partition="1"), "partition is not a number"),
    (event(partition=1.5), "invalid input syntax"), (event(partition=3e9), "out of range"),
    (event(id="42"), "invalid input syntax for type uuid"), (event(topic="a b"), 'topic "a b" has a character'),
    (event(headers=[]), "JSON array, not an object"), (event(headers={"id": 1}), '"id" is reserved'),
    (event(payload_base64="AA=="), "both payload and payload_base64"),
    ({"aggregatetype": "o", "aggregateid": "1", "type": "T", "payload_base64": "%%%"}, "invalid symbol"),
    ({"aggregateid": "1", "type": "T"}, "aggregatetype is missing"),
    (event(aggregateid=""), "aggregateid is empty"), (event(type=None), "type is missing"),
]


def test_publish_many_names_the_element(db):
    for bad, says in BAD_ELEMENTS:
        code, message, hint = refused(many, db, [event(), event(), bad, event()])
        assert code in ("22023", "23514", "22P02", "22003") and hint, bad
        assert message.startswith("outbox: event 3 of the array: ") and says in message, (bad, message)
    assert db.one("SELECT count(*) FROM outbox.event") == 0


def test_publish_many_wants_an_array(db):
    for bad in ("{}", "null", "1", '"x"'):
        code, message, hint = refused(many, db, bad)
        assert code == "22023" and "not a JSON array" in message and "aggregatetype" in hint, bad
    assert refused(db.query, "SELECT outbox.publish_many(NULL)")[0] == "22023"


# ---------------------------------------------------------------- scheduled events

def at(db, when, key="1", name="T"):
    return db.one("SELECT outbox.publish_at(%s, 'order', %s, %s, '{}')", (when, key, name))


def test_scheduled_moves_when_due(db):
    past = at(db, "-infinity")
    now = db.one("SELECT outbox.publish_bytes_at(clock_timestamp(), 'order', '1', 'B', '\\x01')")
    future, held = at(db, "2999-01-01"), at(db, "infinity")
    assert db.one("SELECT outbox.move_due(1)") == 1
    assert db.one("SELECT outbox.move_due(100)") == 1
    assert db.one("SELECT outbox.move_due(100)") == 0
    assert [r[0] for r in db.query("SELECT id FROM outbox.event ORDER BY seq")] == [past, now]
    assert {r[0] for r in db.query("SELECT id FROM outbox.scheduled")} == {future, held}
    assert db.one("SELECT bool_and(isfinite(created_at) AND created_at <= clock_timestamp()) FROM outbox.event")


def test_due_events_move_in_the_order_of_their_time(db):
    db.query("SELECT outbox.publish_at(clock_timestamp() - (1000 - i % 100) * interval '1 s', 'order', (i % 7)::text, "
             "'T', to_jsonb(i)) FROM generate_series(1, 1000) AS i")
    while db.one("SELECT outbox.move_due(64)"):
        pass
    moved = [r[0] for r in db.query("SELECT payload FROM outbox.event ORDER BY seq")]
    assert moved == sorted(range(1, 1001), key=lambda i: (i % 100, i))


def test_event_time_is_when_it_fell_due(db):
    """The lag counts from created_at: an event scheduled a year ago for now is not a year late."""
    db.query("INSERT INTO outbox.scheduled (at, aggregatetype, aggregateid, type, created_at) VALUES "
             "('2020-01-02', 'order', '1', 'T', '2019-01-01'), ('2020-01-02', 'order', '2', 'T', '2020-01-03')")
    assert db.one("SELECT outbox.move_due(10)") == 2
    assert [r[0] for r in db.query("SELECT created_at::date::text FROM outbox.event ORDER BY seq")] == \
        ["2020-01-02", "2020-01-03"]


def test_cancel(db):
    held, due = at(db, "infinity"), at(db, "-infinity")
    assert db.one("SELECT outbox.cancel(%s)", (held,)) is True
    assert db.one("SELECT outbox.cancel(%s)", (held,)) is False
    assert db.one("SELECT outbox.move_due(10)") == 1
    assert db.one("SELECT outbox.cancel(%s)", (due,)) is False
    assert db.one("SELECT outbox.cancel(NULL)") is False
    assert [r[0] for r in db.query("SELECT id FROM outbox.event")] == [due]


def test_cancel_against_move(db):
    """Whoever comes first wins, and the other one knows: a cancelled event never leaves, a moved one
    is reported as not cancelled. While the canceller makes up its mind, its event and the later ones of
    the same aggregate stay; others pass."""
    first, second, other = at(db, "2020-01-01", "1"), at(db, "2020-01-02", "1"), at(db, "2020-01-03", "2")
    with contextlib.closing(db.connect(autocommit=False)) as c:
        assert run(c, "SELECT outbox.cancel(%s)", (first,)) == [(True,)]
        assert db.one("SELECT outbox.move_due(10)") == 1
        assert [r[0] for r in db.query("SELECT id FROM outbox.event")] == [other]
        c.rollback()
    with contextlib.closing(db.connect(autocommit=False)) as c:
        assert run(c, "SELECT outbox.move_due(10)") == [(2,)]
        answer = []
        t = threading.Thread(target=lambda: answer.append(db.one("SELECT outbox.cancel(%s)", (second,))))
        t.start()
        wait_until(lambda: db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
                                  (db.name,)) == 1, 60, "cancel to wait for the move")
        c.commit()
        t.join(60)
    assert answer == [False]
    assert [r[0] for r in db.query("SELECT id FROM outbox.event ORDER BY seq")] == [other, first, second]


def test_two_movers_never_reorder(db):
    """Two movers with SKIP LOCKED would take two batches and could commit the later one first."""
    at(db, "2020-01-01"), at(db, "2020-01-02")
    with contextlib.closing(db.connect(autocommit=False)) as c:
        assert run(c, "SELECT outbox.move_due(1)") == [(1,)]
        assert db.one("SELECT outbox.move_due(1)") == 0
        c.commit()
    assert db.one("SELECT outbox.move_due(1)") == 1


# ---------------------------------------------------------------- roles

def test_writer_may_publish_and_nothing_more(db):
    with login(db, "outbox_writer") as c:
        seq, ident = run(c, f"INSERT INTO outbox.event ({COLUMNS}) VALUES ('order', '1', 'T', '{{}}') "
                            "RETURNING seq, id")[0]
        assert seq == 1 and ident
        run(c, f"INSERT INTO outbox.event (id, {COLUMNS}, headers, topic, partition, aggregateversion, "
               "tracingspancontext, created_at, payload_bytes) VALUES (gen_random_uuid(), 'order', '1', 'T', NULL, "
               "'{\"a\": \"b\"}', 't', 1, 1, 'x', now(), '')")
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}'), outbox.publish_bytes('order', '1', 'T', '\\x00'), "
               "outbox.publish_many('[]')")
        later = run(c, "SELECT outbox.publish_at('infinity', 'order', '1', 'T', '{}')")[0][0]
        assert run(c, "SELECT outbox.cancel(%s)", (later,)) == [(True,)]
        run(c, "SELECT id, seq FROM outbox.event")
        code, message, hint = refused(run, c, "INSERT INTO outbox.event (aggregatetype, aggregateid, type) "
                                              "VALUES ('a b', '1', 'T')")
        assert code == "23514" and hint
        for forbidden in (
            f"INSERT INTO outbox.event (seq, {COLUMNS}) VALUES (99, 'order', '1', 'T', '{{}}')",
            f"INSERT INTO outbox.event (seq, {COLUMNS}) VALUES (DEFAULT, 'order', '1', 'T', '{{}}')",
            f"INSERT INTO outbox.event (xid, {COLUMNS}) VALUES ('5', 'order', '1', 'T', '{{}}')",
            f"INSERT INTO outbox.event_1 ({COLUMNS}) VALUES ('order', '1', 'T', '{{}}')",
            "SELECT payload FROM outbox.event", "SELECT * FROM outbox.event", "SELECT id FROM outbox.event_1",
            "SELECT count(*) FROM outbox.scheduled", "INSERT INTO outbox.scheduled (at) VALUES (now())",
            "UPDATE outbox.event SET type = 'x'", "DELETE FROM outbox.event", "TRUNCATE outbox.event",
            "SELECT * FROM outbox.parked", "INSERT INTO outbox.parked (seq) VALUES (1)", "SELECT * FROM outbox.relay",
            "SELECT outbox.move_due(1)", "SELECT outbox.make_partitions(1, 1)", "SELECT outbox.pause()",
            "SELECT outbox.drop_partition('event_1', '1:1:', 1, '0')", "SELECT setval('outbox.event_seq', 1)",
            "SELECT outbox.parked_request(1, 'skip')", "CREATE TABLE outbox.mine (i int)",
            "INSERT INTO outbox.schema_version (number, name) VALUES (9, 'x')",
        ):
            assert refused(run, c, forbidden)[0] == "42501", forbidden


def test_relay_role_reads_and_keeps_its_books(db):
    db.psql("CREATE TABLE business (i int)")
    insert(db)
    with login(db, "outbox_relay") as c:
        assert len(run(c, "SELECT * FROM outbox.event")) == 1
        run(c, "SELECT * FROM outbox.lag"), run(c, "SELECT * FROM outbox.partitions")
        run(c, "SELECT * FROM outbox.scheduled"), run(c, "SELECT * FROM outbox.schema_version")
        assert run(c, "SELECT pg_sequence_last_value('outbox.event_seq')") == [(1,)]
        run(c, "INSERT INTO outbox.relay (name, system_id, timeline) VALUES ('o', '1', 1)")
        run(c, "UPDATE outbox.relay SET published_seq = 1, published_at = now(), request = request + 1")
        run(c, "INSERT INTO outbox.parked (seq, id, topic, key) VALUES (1, gen_random_uuid(), 't', 'k')")
        run(c, "UPDATE outbox.parked SET attempts = 2"), run(c, "DELETE FROM outbox.parked")
        run(c, "INSERT INTO outbox.skipped (seq, id, topic, key) VALUES (1, gen_random_uuid(), 't', 'k')")
        run(c, "INSERT INTO outbox.waiting (topic, to_snapshot, from_seq, to_seq, events) VALUES ('t', '1:1:', 1, 1, 1)")
        run(c, "DELETE FROM outbox.waiting")
        run(c, "SELECT outbox.move_due(1), outbox.make_partitions(1000, 1)")
        run(c, "SELECT outbox.drop_partition('event_1', pg_current_snapshot(), 0, '1 day')")
        run(c, "SELECT pg_logical_emit_message(true, 'postrider', ''), pg_current_wal_insert_lsn(), "
               "pg_current_wal_flush_lsn(), pg_current_snapshot(), pg_try_advisory_lock(1)")
        run(c, "SELECT system_identifier, pg_walfile_name(pg_current_wal_lsn()) FROM pg_control_system()")
        for forbidden in (
            f"INSERT INTO outbox.event ({COLUMNS}) VALUES ('order', '1', 'T', '{{}}')",
            "SELECT outbox.publish('order', '1', 'T', '{}')", "UPDATE outbox.event SET type = 'x'",
            "DELETE FROM outbox.event", "INSERT INTO business VALUES (1)", "SELECT * FROM business",
            "DELETE FROM outbox.scheduled", "DROP TABLE outbox.event_1", "SELECT nextval('outbox.event_seq')",
            "SELECT outbox.cancel(gen_random_uuid())", "SELECT outbox.pause()",
        ):
            assert refused(run, c, forbidden)[0] == "42501", forbidden


def test_operator_sees_all_and_asks(db):
    insert(db)
    with login(db, "outbox_operator") as c:
        code, message, hint = refused(run, c, "SELECT outbox.pause('ann')")
        assert code == "55000" and "no relay has run" in message and hint
        db.query("INSERT INTO outbox.relay (name) VALUES ('o')")
        db.query("INSERT INTO outbox.parked (seq, id, topic, key, head) SELECT i, gen_random_uuid(), 't', 'k', i = 1 "
                 "FROM generate_series(1, 3) AS i")
        assert [run(c, "SELECT outbox.pause('ann')")[0][0], run(c, "SELECT outbox.pause('bob')")[0][0]] == [True, False]
        assert run(c, "SELECT paused_by, request, paused_at IS NOT NULL FROM outbox.relay") == [("ann", 1, True)]
        assert run(c, "SELECT outbox.resume('bob')") == [(True,)]
        assert run(c, "SELECT outbox.resume()") == [(False,)]
        assert run(c, "SELECT outbox.parked_request(2, 'skip', 'ann')") == [(True,)]
        assert run(c, "SELECT outbox.parked_request(9, 'skip', 'ann')") == [(False,)]
        assert run(c, "SELECT seq, requested_by FROM outbox.parked WHERE request = 'skip'") == [(2, "ann")]
        assert run(c, "SELECT outbox.parked_request_key('t', 'k', 'retry')") == [(3,)]
        assert run(c, "SELECT outbox.parked_request_key('t', 'other', 'retry')") == [(0,)]
        assert run(c, "SELECT request FROM outbox.relay") == [(4,)]
        assert refused(run, c, "SELECT outbox.parked_request(2, 'burn')")[0] == "23514"
        for table in ("event", "scheduled", "relay", "parked", "skipped", "waiting", "lag", "partitions", "schema_version"):
            run(c, f"SELECT * FROM outbox.{table}")
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
        for forbidden in ("UPDATE outbox.parked SET attempts = 0", "DELETE FROM outbox.parked",
                          "UPDATE outbox.relay SET published_seq = 0", "DELETE FROM outbox.event",
                          "SELECT outbox.drop_partition('event_1', '1:1:', 1, '0')"):
            assert refused(run, c, forbidden)[0] == "42501", forbidden


def test_public_has_nothing(db):
    with login(db) as c:
        for forbidden in ("SELECT outbox.publish('order', '1', 'T', '{}')", "SELECT * FROM outbox.lag",
                          "SELECT id FROM outbox.event", "SELECT outbox.uuid7()"):
            assert refused(run, c, forbidden)[0] == "42501", forbidden
    assert db.query("SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace "
                    "AND has_function_privilege('public', p.oid, 'EXECUTE')") == []
    assert db.query("SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace AND p.prosecdef "
                    "AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))") == []


# ---------------------------------------------------------------- lag

def lag(db):
    names = ("lag_seconds", "pending_events", "due_events", "parked_events", "parked_keys", "waiting_events", "paused")
    return dict(zip(names, db.query(f"SELECT {', '.join(names)} FROM outbox.lag")[0]))


def test_lag_before_any_relay(db):
    assert lag(db) == {"lag_seconds": 0, "pending_events": 0, "due_events": 0, "parked_events": 0, "parked_keys": 0,
                       "waiting_events": 0, "paused": False}
    insert(db, created_at="2020-01-01")
    now = lag(db)
    assert now["pending_events"] == 1 and now["lag_seconds"] > 86400


def test_lag_counts_everything_that_is_stuck(db):
    insert(db, created_at="2020-01-01"), insert(db)
    db.query("INSERT INTO outbox.relay (name, published_seq) VALUES ('o', 2)")
    assert lag(db)["lag_seconds"] == 0 and lag(db)["pending_events"] == 0
    at(db, "infinity"), at(db, "2999-01-01")
    assert lag(db)["due_events"] == 0
    at(db, "2020-01-01")
    assert lag(db)["due_events"] == 1 and lag(db)["lag_seconds"] > 86400
    db.query("SELECT outbox.cancel(id) FROM outbox.scheduled")
    db.query("INSERT INTO outbox.parked (seq, id, topic, key, created_at) SELECT i, gen_random_uuid(), 't', 'k', "
             "clock_timestamp() - interval '1 hour' FROM generate_series(1, 2) AS i")
    assert lag(db)["parked_events"] == 2 and lag(db)["parked_keys"] == 1 and 3600 <= lag(db)["lag_seconds"] < 4000
    db.query("DELETE FROM outbox.parked")
    db.query("INSERT INTO outbox.waiting (topic, to_snapshot, from_seq, to_seq, events, oldest) "
             "VALUES ('t', '1:1:', 1, 2, 5, clock_timestamp() - interval '2 hours')")
    assert lag(db)["waiting_events"] == 5 and 7200 <= lag(db)["lag_seconds"] < 7600
    db.query("SELECT outbox.pause()")
    assert lag(db)["paused"] is True


# ---------------------------------------------------------------- install and upgrade

def test_init_is_idempotent(empty_db, cli):
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    look = "SELECT string_agg(c.oid::text, ',' ORDER BY c.oid) FROM pg_class AS c WHERE c.relnamespace = 'outbox'::regnamespace"
    before = empty_db.one(look)
    versions = empty_db.query("SELECT * FROM outbox.schema_version ORDER BY number")
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    assert empty_db.one(look) == before
    assert empty_db.query("SELECT * FROM outbox.schema_version ORDER BY number") == versions
    assert [v[0] for v in versions] == list(range(1, len(versions) + 1))


def at_once(calls):
    """Runs all calls in threads; returns what they returned."""
    answers = [None] * len(calls)

    def go(i):
        answers[i] = calls[i]()
    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return answers


def test_many_inits_at_once(empty_db, cli):
    done = at_once([lambda: cli("init", "--conninfo", empty_db.conninfo) for _ in range(6)])
    assert [d.returncode for d in done] == [0] * 6, [d.stderr for d in done]
    assert empty_db.one("SELECT count(*) = count(DISTINCT number) FROM outbox.schema_version")
    insert(empty_db)


def test_inits_in_two_databases_at_once(own_pg, cli):
    """Roles belong to the cluster: in a new one both inits find them missing and both create them."""
    pg = own_pg()
    dbs = [pg.createdb(f"d{i}") for i in range(4)]
    done = at_once([lambda d=d: cli("init", "--conninfo", d.conninfo) for d in dbs])
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    for d in dbs:
        insert(d)
    assert pg.query("SELECT count(*) FROM pg_roles WHERE rolname ~ '^(out|in)box_' AND NOT rolcanlogin") == [(5,)]


def test_printed_sql_installs_and_is_idempotent(empty_db, cli):
    sql = cli("init", "--print", check=True).stdout
    for _ in range(2):
        empty_db.psql("BEGIN;\n" + sql + "\nCOMMIT;")
    insert(empty_db)
    assert empty_db.one("SELECT count(*) FROM outbox.schema_version") >= 1
    before = empty_db.query("SELECT * FROM outbox.schema_version ORDER BY number")
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    assert empty_db.query("SELECT * FROM outbox.schema_version ORDER BY number") == before


def test_foreign_schema_is_left_alone(empty_db, cli):
    empty_db.psql("CREATE SCHEMA outbox; CREATE TABLE outbox.event (id int)")
    done = cli("init", "--conninfo", empty_db.conninfo)
    assert done.returncode == 78 and "not ours" in done.stderr and "RENAME" in done.stderr
    assert empty_db.query("SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace") == [("event",)]


@pytest.mark.parametrize("outbox_first", [False, True])
def test_foreign_inbox_is_left_alone(empty_db, cli, outbox_first):
    """An application may have an inbox of its own, of whatever kind. Nothing is installed then, not even
    half of it; a database of version 1 stays at version 1."""
    if outbox_first:
        cli("init", "--conninfo", empty_db.conninfo, check=True)
        empty_db.psql("DELETE FROM outbox.schema_version WHERE number > 1; DROP SCHEMA saga CASCADE; DROP SCHEMA inbox CASCADE")
    empty_db.psql("CREATE SCHEMA inbox; CREATE TABLE inbox.seen (id int)")
    done = cli("init", "--conninfo", empty_db.conninfo)
    assert done.returncode == 78 and '"inbox" is not ours' in done.stderr and "RENAME" in done.stderr, done.stderr
    assert empty_db.query("SELECT relname FROM pg_class WHERE relnamespace = 'inbox'::regnamespace") == [("seen",)]
    assert empty_db.one("SELECT to_regclass('outbox.schema_version') IS NULL") is not outbox_first
    if outbox_first:
        assert empty_db.one("SELECT max(number) FROM outbox.schema_version") == 1
    empty_db.psql("DROP SCHEMA inbox CASCADE")
    cli("init", "--conninfo", empty_db.conninfo, check=True)


def test_an_empty_schema_made_by_the_owner_is_used(empty_db, cli):
    empty_db.psql("CREATE SCHEMA outbox; CREATE SCHEMA inbox")
    cli("init", "--conninfo", empty_db.conninfo, check=True)
    insert(empty_db)


@pytest.mark.parametrize("damage, says", [
    ("INSERT INTO outbox.schema_version (number, name) VALUES (9999, '9999_future')", "newer than this program"),
    ("ALTER TABLE outbox.schema_version ADD oldest integer; INSERT INTO outbox.schema_version (number, name, oldest)"
     " VALUES (9998, '9998_a', 1), (9999, '9999_b', 9998)", "newer than this program"),
    ("UPDATE outbox.schema_version SET number = 9998, name = '9998_x' WHERE number = 1", "half upgraded"),
    ("UPDATE outbox.schema_version SET name = '0001_other' WHERE number = 1", "not ours"),
    ("ALTER TABLE outbox.schema_version DROP COLUMN applied_at", "not ours"),
])
def test_a_schema_we_do_not_know_is_refused(db, cli, damage, says):
    db.query(damage)
    done = cli("init", "--conninfo", db.conninfo)
    assert done.returncode == 78 and says in done.stderr, done.stderr


def test_a_newer_schema_that_bears_us_is_taken(db, cli):
    """A later version's migration says how little a program has to know to live with it: going back over it is possible."""
    knows = db.one("SELECT max(number) FROM outbox.schema_version")
    db.query("ALTER TABLE outbox.schema_version ADD oldest integer")
    db.query(f"INSERT INTO outbox.schema_version (number, name, oldest) VALUES (9998, '9998_a', {knows}), (9999, '9999_b', 1)")
    done = cli("init", "--json", "--conninfo", db.conninfo)
    assert done.returncode == 0 and json.loads(done.stdout)["migrations"] == 0, done.stdout + done.stderr
    assert db.query("SELECT number FROM outbox.schema_version WHERE number > 9000 ORDER BY 1") == [(9998,), (9999,)]


def test_init_without_the_rights(empty_db, cli):
    name = f"poor_{uuid.uuid4().hex[:8]}"
    empty_db.query(f"CREATE ROLE {name} LOGIN")
    done = cli("init", "--conninfo", empty_db.conninfo.replace("user=postgres", f"user={name}"))
    empty_db.query(f"DROP ROLE {name}")
    assert done.returncode == 77 and "owner of the database" in done.stderr, done.stderr
    assert empty_db.query("SELECT 1 FROM pg_namespace WHERE nspname = 'outbox'") == []


def test_an_owner_that_is_not_a_superuser_installs_it(empty_db, cli):
    """Managed services give no superuser. The roles are there already, made by whoever may."""
    name = f"owner_{uuid.uuid4().hex[:8]}"
    for role in ("outbox_writer", "outbox_relay", "outbox_operator", "inbox_consumer", "inbox_operator", "saga_engine",
                 "saga_participant", "saga_operator"):
        empty_db.query(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    empty_db.query(f"CREATE ROLE {name} LOGIN")
    empty_db.query(f'ALTER DATABASE "{empty_db.name}" OWNER TO {name}')
    cli("init", "--conninfo", empty_db.conninfo.replace("user=postgres", f"user={name}"), check=True)
    with login(empty_db, "outbox_writer") as c:
        run(c, "SELECT outbox.publish('order', '1', 'T', '{}')")
    with login(empty_db, "outbox_relay") as c:
        assert run(c, "SELECT outbox.make_partitions(5000000, 18)") == [(2,)]
    empty_db.query(f"ALTER DATABASE \"{empty_db.name}\" OWNER TO postgres")
    empty_db.query(f"DROP OWNED BY {name} CASCADE")
    empty_db.query(f"DROP ROLE {name}")


def test_dump_and_restore(db, own_pg, pg_server, tmp_path):
    """What pg_dump writes is loadable as it is: functions before what calls them."""
    import os
    import subprocess
    insert(db), at(db, "infinity")
    dump = subprocess.run([os.path.join(pg_server.bindir, "pg_dump"), "-d", db.conninfo], capture_output=True, text=True,
                          check=True).stdout
    copy = pg_server.createdb(f"{db.name[:50]}_copy")
    try:
        copy.psql(dump)
        assert copy.one("SELECT count(*) FROM outbox.event") == 1
        assert insert(copy) == 2
        assert refused(insert, copy, topic="a b")[0] == "23514"
        assert refused(copy.query, "DELETE FROM outbox.event_1")[0] == "55000"
    finally:
        copy.drop()
