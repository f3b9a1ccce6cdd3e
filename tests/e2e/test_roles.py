"""tests/e2e/test_roles.py -- least privilege, proved from both sides: what the catalogue says each role may do, whole, and
that the programs live with it. test_sql_api.py runs what is forbidden, statement by statement.
"""
import contextlib
import json
import re

import psycopg2
import pytest

import servers
from outbox import header, read_topic, unique
from wait import wait_until

ROLES = ("outbox_writer", "outbox_relay", "outbox_operator", "inbox_consumer", "inbox_operator", "saga_engine",
         "saga_participant", "saga_operator")

# Everything a role may write without a function of ours; what is not here is not allowed. Columns where not all are.
WRITES = {
    "outbox_writer": {"outbox.event INSERT (id, aggregatetype, aggregateid, type, payload, payload_bytes, headers, topic, "
                      "partition, aggregateversion, tracingspancontext, created_at)"},
    "outbox_relay": {f"outbox.{t} {w}" for t in ("relay", "parked", "skipped", "waiting")
                     for w in ("INSERT", "UPDATE", "DELETE")},
    "outbox_operator": {"outbox.parked UPDATE (request, requested_at, requested_by)",
                        "outbox.relay UPDATE (paused_at, paused_by, request)"},
}

RIGHTS = """
SELECT n.nspname || '.' || c.relname, p.priv,
	CASE WHEN NOT has_table_privilege(%(role)s, c.oid, p.priv) THEN (
		SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute a
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND p.priv IN ('SELECT', 'INSERT', 'UPDATE')
			AND has_column_privilege(%(role)s, c.oid, a.attnum,
				CASE WHEN p.priv IN ('SELECT', 'INSERT', 'UPDATE') THEN p.priv ELSE 'SELECT' END)) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
	unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p (priv)
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname IN ('outbox', 'inbox', 'saga', 'shop')
	AND (has_table_privilege(%(role)s, c.oid, p.priv) OR p.priv IN ('SELECT', 'INSERT', 'UPDATE')
		AND has_any_column_privilege(%(role)s, c.oid, p.priv))"""


@pytest.fixture
def shop(db):
    """A business schema beside ours, and login roles that hold one of our roles each and nothing else."""
    logins = {role: unique("l").lower() for role in ROLES + ("nobody",)}
    db.psql("CREATE SCHEMA shop; CREATE TABLE shop.orders (id int, card text); INSERT INTO shop.orders VALUES (1, '4711')")
    for role, login in logins.items():
        db.query(f"CREATE ROLE {login} LOGIN")
        if role != "nobody":
            db.query(f"GRANT {role} TO {login}")
    db.logins = {role: re.sub(r"user=\S+", f"user={login}", db.conninfo) for role, login in logins.items()}
    yield db
    for login in logins.values():
        db.query(f"DROP OWNED BY {login}")
        db.query(f"DROP ROLE {login}")


def test_what_a_role_may_touch(shop):
    """No role has anything of the business schema, writes more of ours than WRITES says, or reads what is not its own."""
    for role in ROLES:
        rights = shop.query(RIGHTS, {"role": role})
        assert not [r for r in rights if r[0].startswith("shop.")], role
        writes = {f"{table} {priv}" + (f" ({columns})" if columns else "") for table, priv, columns in rights if priv != "SELECT"}
        assert writes == WRITES.get(role, set()), role
        reads = {table for table, priv, columns in rights if priv == "SELECT" and not columns}
        own = role.split("_")[0]
        assert {t.split(".")[0] for t in reads} <= {own, "outbox"}, role
        if own != "outbox":
            assert {t for t in reads if t.startswith("outbox.")} == {"outbox.schema_version"}, role
    writer = {(t, c) for t, p, c in shop.query(RIGHTS, {"role": "outbox_writer"}) if p == "SELECT"}
    assert writer == {("outbox.event", "seq, id"), ("outbox.schema_version", None)}
    engine = {t for t, p, c in shop.query(RIGHTS, {"role": "saga_participant"}) if p == "SELECT"}
    assert engine <= {"saga.barrier", "saga.copy", "saga.slot", "outbox.schema_version"}


def test_public_has_nothing(shop):
    """No schema, table, sequence or function of ours is open to a login without a role; what runs with the owner's
    rights has a fixed search_path, so that a caller's own objects are never called."""
    assert shop.query("SELECT nspname FROM pg_namespace, aclexplode(nspacl) a WHERE nspname IN ('outbox', 'inbox', 'saga') "
                      "AND a.grantee = 0") == []
    assert shop.query("""SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace,
        aclexplode(coalesce(proacl, acldefault('f', proowner))) a
        WHERE nspname IN ('outbox', 'inbox', 'saga') AND a.grantee = 0""") == []
    assert shop.query("SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, aclexplode(relacl) a "
                      "WHERE nspname IN ('outbox', 'inbox', 'saga') AND a.grantee = 0") == []
    assert shop.query("""SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
        WHERE nspname IN ('outbox', 'inbox', 'saga') AND prosecdef
        AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(proconfig, '{}'))""") == []
    owned = shop.one("SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace "
                     "WHERE nspname IN ('outbox', 'inbox', 'saga') AND prosecdef")
    assert owned > 30  # the question finds what it asks for


def test_a_role_may_not_be_more(shop):
    """None of the roles logs in, creates, or is another one's member; the one that reads payloads cannot write events."""
    assert shop.query("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) AND (rolcanlogin OR rolsuper OR rolcreaterole OR "
                      "rolcreatedb OR rolreplication OR rolbypassrls)", (list(ROLES),)) == []
    assert shop.query("SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = ANY (%s)",
                      (list(ROLES),)) == []
    for role in ROLES:
        for schema in ("outbox", "inbox", "saga", "shop", "public"):
            if schema != "public":
                assert not shop.one("SELECT has_schema_privilege(%s, %s, 'CREATE')", (role, schema)), (role, schema)
        for statement in ("SELECT * FROM shop.orders", "UPDATE shop.orders SET card = ''",
                          "INSERT INTO outbox.event (xid, aggregatetype, aggregateid, type) VALUES ('9', 'a', 'b', 'c')",
                          "UPDATE outbox.event SET payload = '{}'", "DELETE FROM outbox.event", "DROP TABLE outbox.event"):
            with contextlib.closing(psycopg2.connect(shop.logins[role])) as c, c.cursor() as cur, \
                    pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cur.execute(statement)


def test_the_programs_need_no_more(shop, kafka, cli):
    """Relay and consumer with the one role that is meant for each: a service writes, the relay publishes and keeps its
    books, the consumer's handler gets the owner's rights from its function alone."""
    name = unique("roles").lower()
    cli("init", "--conninfo", shop.conninfo, "--brokers", kafka.bootstrap, "--name", name, check=True)
    kafka.create_topic(f"outbox.event.{name}")
    shop.psql(f"""CREATE TABLE shop.effect (type text);
        CREATE FUNCTION shop.on_event(m inbox.message) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
            AS 'INSERT INTO shop.effect VALUES (m.type)';
        REVOKE ALL ON FUNCTION shop.on_event FROM PUBLIC;
        GRANT USAGE ON SCHEMA shop TO {shop.logins['inbox_consumer'].split('user=')[1]};
        GRANT EXECUTE ON FUNCTION shop.on_event TO {shop.logins['inbox_consumer'].split('user=')[1]}""")
    relay = servers.Relay(shop.logins["outbox_relay"], kafka.bootstrap, name=name,
                          config={"retention": {"every": "100ms", "keep": "0s"}})
    consumer = servers.Consumer(shop.logins["inbox_consumer"], kafka.bootstrap, name, [f"outbox.event.{name}"],
                                {"kind": "sql", "function": "shop.on_event"})
    try:
        relay.start().wait_ready()
        consumer.start().wait_ready()
        with contextlib.closing(psycopg2.connect(shop.logins["outbox_writer"])) as c, c, c.cursor() as cur:
            cur.execute("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) VALUES (%s, 'k', '1', '{}') "
                        "RETURNING id, seq", (name,))
            cur.execute("SELECT outbox.publish(%s, 'k', '2', '{}')", (name,))
        assert [header(r, "type") for r in read_topic(kafka, f"outbox.event.{name}", 2)] == [b"1", b"2"]
        wait_until(lambda: shop.query("SELECT type FROM shop.effect") == [("1",), ("2",)], 60, "the effect")
        for p in (relay, consumer):
            wait_until(lambda p=p: ((s := p.status())["state"], s["problems"]) == ("ok", []), 30, f"{p.name} to be well")
        operator(shop, cli, relay, name)
    finally:
        relay.kill()
        consumer.kill()


def operator(shop, cli, relay, group):
    """The CLI's verbs with the operators' roles, and with others' the statement that would allow them."""
    outbox = (["pause"], ["resume"], ["parked", "list"], ["position", "show", "-c", relay.file])
    inbox = (["dlq", "list"], ["show", "consumers"], ["pause", "--group", group], ["resume", "--group", group])
    for verbs, role in ((outbox, "outbox_operator"), (inbox, "inbox_operator")):
        for verb in verbs:
            conninfo = [] if "-c" in verb else ["--conninfo", shop.logins[role]]
            done = cli(*verb, *conninfo)
            assert done.returncode == 0, (verb, done.stderr)
    for verb, role in ((["pause"], "outbox_writer"), (["pause"], "outbox_relay"), (["dlq", "list"], "outbox_operator"),
                       (["pause", "--group", group], "inbox_consumer"), (["pause"], "nobody")):
        done = cli(*verb, "--conninfo", shop.logins[role])
        assert done.returncode == 77 and "hint: GRANT " in done.stderr, (verb, role, done.stderr)
    assert json.loads(cli("status", "--json", "--conninfo", shop.logins["outbox_operator"]).stdout)["paused"] is False
