"""tests/e2e/test_outbox_c.py -- the C API (producers/outbox.h) as an application uses it: compiled from its
two files and libpq alone, in blocking and pipeline mode; and the example program `emit`.
"""
import json
import os
import shlex
import subprocess
import uuid

import pytest

import servers

DRIVER = r'''
#include "producers/outbox.h"

#include <stdio.h>
#include <stdlib.h>

static int failures;

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s\n", __LINE__, #what); \
			failures++; \
		} \
	} while (0)

static void run(PGconn *conn, const char *sql)
{
	PGresult *res = PQexec(conn, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK) {
		fprintf(stderr, "%s: %s", sql, PQerrorMessage(conn));
		exit(9);
	}
	PQclear(res);
}

static struct outbox_event sound(void)
{
	struct outbox_event ev = { 0 };

	ev.aggregatetype = outbox_str("order");
	ev.aggregateid = outbox_str("42");
	ev.type = outbox_str("OrderCreated");
	ev.payload = outbox_str("{\"total\": 1}");
	return ev;
}

static void blocking(PGconn *conn)
{
	struct outbox_event ev = sound();
	struct outbox_error err;
	char id[OUTBOX_ID_SIZE];

	run(conn, "BEGIN");
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0 && strlen(id) == 36);
	CHECK(outbox_publish(conn, &ev, 0, NULL, NULL) == 0);
	ev.payload = outbox_bytes("a\0b", 3);
	ev.format = OUTBOX_BYTES;
	ev.headers = outbox_str("{\"h\": \"v\"}");
	ev.topic = outbox_str("other");
	ev.id = outbox_str("01939f4e-7c1f-7000-8000-00000000000a");
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0 && strcmp(id, ev.id.s) == 0);
	ev.at = outbox_str("infinity");
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0);
	ev = sound();
	ev.payload.s = NULL;
	ev.at = outbox_str("2999-01-01T00:00:00Z");
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0);
	ev.at.s = NULL;
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0);
	ev.payload = outbox_bytes("", 0);
	ev.format = OUTBOX_BYTES;
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == 0);
	run(conn, "COMMIT");
}

static void refusals(PGconn *conn)
{
	struct outbox_event ev = sound();
	struct outbox_error err;

	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1);
	CHECK(strcmp(err.text, "no transaction is open") == 0 && strstr(err.hint, "BEGIN") && !*err.sqlstate);
	CHECK(outbox_send(conn, &ev, 0, &err) == -1);
	CHECK(outbox_publish(conn, &ev, 0, NULL, NULL) == -1);
	run(conn, "BEGIN");
	ev.aggregateid = outbox_bytes("4\0" "2", 3);
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strstr(err.text, "aggregateid contains a NUL"));
	ev = sound();
	ev.payload = outbox_bytes("{}\0", 3);
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strstr(err.hint, "OUTBOX_BYTES"));
	ev = sound();
	ev.type.s = NULL;
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strcmp(err.text, "type is missing") == 0);
	ev = sound();
	ev.payload.len = (size_t)3 << 30;
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strstr(err.text, "too many"));
	/* None of these was sent: the transaction stands. */
	CHECK(PQtransactionStatus(conn) == PQTRANS_INTRANS);
	ev = sound();
	ev.topic = outbox_str("a b");
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1);
	CHECK(strcmp(err.sqlstate, "23514") == 0 && strstr(err.text, "topic \"a b\"") && strstr(err.hint, "249"));
	CHECK(!err.retry);
	ev = sound();
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strstr(err.text, "failed before"));
	run(conn, "ROLLBACK");
	run(conn, "BEGIN");
	ev.id = outbox_str("not-a-uuid");
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strcmp(err.sqlstate, "22P02") == 0);
	run(conn, "ROLLBACK");
	run(conn, "BEGIN");
	CHECK(PQsendQuery(conn, "SELECT pg_sleep(0.01)") == 1);
	ev = sound();
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strstr(err.text, "busy"));
	CHECK(outbox_result(conn, NULL, &err) == -1);
	run(conn, "ROLLBACK");
	ev = sound();
	CHECK(outbox_publish(conn, &ev, OUTBOX_ALLOW_AUTOCOMMIT, NULL, &err) == 0);
}

/* Another connection locks the table: ours runs into its lock_timeout. */
static void retryable(PGconn *conn, const char *conninfo)
{
	struct outbox_event ev = sound();
	struct outbox_error err;
	PGconn *other = PQconnectdb(conninfo);

	run(conn, "BEGIN READ ONLY");
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strcmp(err.sqlstate, "25006") == 0 && !err.retry);
	run(conn, "ROLLBACK");
	run(other, "BEGIN");
	run(other, "LOCK TABLE outbox.event IN SHARE MODE");
	run(conn, "BEGIN");
	run(conn, "SET LOCAL lock_timeout = '50ms'");
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && strcmp(err.sqlstate, "55P03") == 0 && err.retry);
	run(conn, "ROLLBACK");
	PQfinish(other);
	run(conn, "BEGIN");
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == 0);
	run(conn, "COMMIT");
}

static void pipeline(PGconn *conn)
{
	struct outbox_event ev = sound();
	struct outbox_error err;
	char id[OUTBOX_ID_SIZE];
	PGresult *res;
	int i;

	CHECK(PQenterPipelineMode(conn));
	CHECK(outbox_send(conn, &ev, 0, &err) == -1 && strstr(err.text, "no transaction"));
	CHECK(PQsendQueryParams(conn, "BEGIN", 0, NULL, NULL, NULL, NULL, 0));
	CHECK(outbox_publish(conn, &ev, 0, id, &err) == -1 && strstr(err.hint, "outbox_send"));
	for (i = 0; i < 100; i++)
		CHECK(outbox_send(conn, &ev, 0, &err) == 0);
	CHECK(PQsendQueryParams(conn, "COMMIT", 0, NULL, NULL, NULL, NULL, 0));
	CHECK(PQpipelineSync(conn));
	res = PQgetResult(conn);
	CHECK(PQresultStatus(res) == PGRES_COMMAND_OK);
	PQclear(res);
	CHECK(PQgetResult(conn) == NULL);
	for (i = 0; i < 100; i++)
		CHECK(outbox_result(conn, id, &err) == 0 && strlen(id) == 36);
	res = PQgetResult(conn);
	CHECK(strcmp(PQcmdStatus(res), "COMMIT") == 0);
	PQclear(res);
	CHECK(PQgetResult(conn) == NULL);
	CHECK(outbox_result(conn, id, &err) == -1 && strstr(err.text, "PQpipelineSync"));
	CHECK(outbox_result(conn, id, &err) == -1 && strstr(err.text, "no result"));

	/* The second is bad: the first has an id that will be rolled back, the third is not run. */
	CHECK(PQsendQueryParams(conn, "BEGIN", 0, NULL, NULL, NULL, NULL, 0));
	CHECK(outbox_send(conn, &ev, 0, &err) == 0);
	ev.headers = outbox_str("[]");
	CHECK(outbox_send(conn, &ev, 0, &err) == 0);
	ev.headers.s = NULL;
	CHECK(outbox_send(conn, &ev, 0, &err) == 0);
	CHECK(PQpipelineSync(conn));
	PQclear(PQgetResult(conn));
	CHECK(PQgetResult(conn) == NULL);
	CHECK(outbox_result(conn, id, &err) == 0);
	CHECK(outbox_result(conn, id, &err) == -1 && strcmp(err.sqlstate, "23514") == 0 && *err.hint);
	CHECK(outbox_result(conn, id, &err) == -1 && strstr(err.text, "not run") && !*err.sqlstate);
	res = PQgetResult(conn);
	CHECK(PQresultStatus(res) == PGRES_PIPELINE_SYNC);
	PQclear(res);
	CHECK(PQexitPipelineMode(conn));
	run(conn, "ROLLBACK");
}

/* Result of a command that is not a publish. */
static void confusion(PGconn *conn)
{
	struct outbox_error err;

	run(conn, "BEGIN");
	CHECK(PQsendQuery(conn, "SELECT 1"));
	CHECK(outbox_result(conn, NULL, &err) == -1 && strstr(err.text, "not the result of a publish"));
	CHECK(PQsendQuery(conn, "SAVEPOINT a"));
	CHECK(outbox_result(conn, NULL, &err) == -1 && strstr(err.text, "not the result of a publish"));
	run(conn, "ROLLBACK");
}

static void broken(PGconn *conn)
{
	struct outbox_event ev = sound();
	struct outbox_error err;
	PGresult *res;

	run(conn, "BEGIN");
	res = PQexec(conn, "SELECT pg_terminate_backend(pg_backend_pid())");
	PQclear(res);
	CHECK(outbox_publish(conn, &ev, 0, NULL, &err) == -1 && *err.text && err.retry);
}

int main(int argc, char **argv)
{
	PGconn *conn = PQconnectdb(argv[argc - 1]);

	if (PQstatus(conn) != CONNECTION_OK)
		return 8;
	blocking(conn);
	refusals(conn);
	retryable(conn, argv[argc - 1]);
	pipeline(conn);
	confusion(conn);
	broken(conn);
	PQfinish(conn);
	return failures ? 1 : 0;
}
'''


def compile_driver(tmp_path, *flags):
    """As another project would: our two files, libpq, and warnings that other people switch on."""
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    libpq = shlex.split(subprocess.run(["pkg-config", "--cflags", "--libs", "libpq"], capture_output=True, text=True,
                                       check=True).stdout)
    program = str(tmp_path / "driver")
    subprocess.run([os.environ.get("CC", "gcc"), "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, "-I", servers.ROOT,
                    str(source), os.path.join(servers.ROOT, "producers/outbox.c"), "-o", program, *libpq], check=True)
    return program


@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")],
                         ids=["plain", "sanitized"])
def test_c_api(db, tmp_path, flags):
    done = subprocess.run([compile_driver(tmp_path, *flags), db.conninfo], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"})
    assert done.returncode == 0, done.stderr
    rows = db.query("SELECT payload, payload_bytes, headers, topic, id FROM outbox.event ORDER BY seq")
    raw = (None, b"a\x00b", {"h": "v"}, "other", "01939f4e-7c1f-7000-8000-00000000000a")
    rows = [(r[0], bytes(r[1]) if r[1] is not None else None, *r[2:]) for r in rows]
    plain = ({"total": 1}, None, {}, None)
    assert [r[:4] for r in rows[:2]] == [plain, plain]
    assert rows[2] == raw
    assert rows[3][:2] == (None, None) and rows[4][:2] == (None, b"")
    # One without a transaction, one after the lock, a hundred in the pipeline, none rolled back.
    assert [r[:4] for r in rows[5:]] == [plain] * 102
    assert db.query("SELECT at::text, payload_bytes IS NULL FROM outbox.scheduled ORDER BY entry") == \
        [("infinity", False), ("2999-01-01 00:00:00+00", True)]


def test_header_is_c_plus_plus_too(tmp_path):
    source = tmp_path / "h.cc"
    source.write_text('#include "producers/outbox.h"\nint main() { return outbox_str("x").len == 1 ? 0 : 1; }\n')
    flags = shlex.split(subprocess.run(["pkg-config", "--cflags", "libpq"], capture_output=True, text=True,
                                       check=True).stdout)
    subprocess.run(["g++", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", servers.ROOT, str(source), *flags], check=True)


# ---------------------------------------------------------------- the example

@pytest.fixture
def emit():
    return servers.Cli("emit")


def test_emit(db, emit):
    given = str(uuid.uuid4())
    done = emit("-d", db.conninfo, "-H", '{"h": "v"}', "-t", "t", "-i", given, "order", "42", "OrderCreated",
                '{"total": 1}', check=True)
    assert done.stdout.strip() == given
    emit("-d", db.conninfo, "-b", "order", "42", "Raw", "\u00e4", check=True)
    emit("-d", db.conninfo, "order", "42", "Gone", check=True)
    emit("-d", db.conninfo, "-a", "infinity", "order", "42", "Later", "{}", check=True)
    ids = emit("-d", db.conninfo, "-n", "500", "order", "42", "Many", "{}", check=True).stdout.split()
    rows = db.query("SELECT type, id FROM outbox.event ORDER BY seq")
    assert [r[0] for r in rows] == ["OrderCreated", "Raw", "Gone"] + ["Many"] * 500
    assert [r[1] for r in rows[3:]] == ids
    assert db.one("SELECT payload_bytes FROM outbox.event WHERE type = 'Raw'").tobytes() == "\u00e4".encode()


@pytest.mark.parametrize("more", [(), ("-n", "3")], ids=["blocking", "pipeline"])
def test_emit_refused(db, emit, more):
    done = emit("-d", db.conninfo, *more, "-H", json.dumps({"id": 1}), "order", "42", "T", "{}")
    assert done.returncode == 1 and done.stdout == "" and "reserved" in done.stderr and "hint: " in done.stderr
    assert db.one("SELECT count(*) FROM outbox.event") == 0


@pytest.mark.parametrize("args", [(), ("-d", "dbname=x"), ("-d", "dbname=x", "a", "b"), ("-n", "0", "a", "b", "c"),
                                  ("-d", "dbname=x", "-n", "-1", "a", "b", "c"), ("-z",)])
def test_emit_usage(emit, args):
    done = emit(*args)
    assert done.returncode == 2 and "usage:" in done.stderr and done.stdout == ""
