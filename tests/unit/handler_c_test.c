/* tests/unit/handler_c_test.c -- consumers/handler_c.c: libraries that are none of ours are refused with a
 * reason, and a handler that does what it must not inside a real transaction (PR_TEST_CONNINFO) is found
 * out. The example of the documentation runs here too. */
#include "consumers/handler.h"

#include "lib/clock.h"
#include "lib/uuid.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define TIMEOUT (20 * PR_SEC)

static struct pr_consumer_conf conf;
static char conninfo[] = ""; /* nobody connects by it */
static struct handler *h;
static struct pr_pg *pg;
static struct header headers[2] = { { "id", "x", 1 }, { "none", NULL, 0 } };
static struct message messages[3], *list[3] = { &messages[0], &messages[1], &messages[2] };
static struct outcome out[3];
static struct pr_err err;

/* The shared objects lie beside this program. */
static char *beside(const char *name)
{
	static char path[4200];
	ssize_t n = readlink("/proc/self/exe", path, 4096);

	assert_true(n > 0);
	path[n] = '\0';
	(void)snprintf(strrchr(path, '/') + 1, 100, "%s", name);
	return path;
}

static int try_open(char *library, const char *options)
{
	struct handler_env env = { .conf = &conf, .lane = 7, .wake_fd = -1 };

	conf.handler.library = library;
	conf.handler.options = (char *)(uintptr_t)options;
	err = (struct pr_err){ 0 };
	return handler_c.open(&env, NULL, &h, &err);
}

static int setup(void **state)
{
	(void)state;
	conf = (struct pr_consumer_conf){ .group = NULL };
	conf.database.conninfo = conninfo;
	conf.handler.timeout_us = TIMEOUT;
	memset(messages, 0, sizeof(messages));
	for (size_t i = 0; i < 3; i++) {
		messages[i].topic = "shop";
		messages[i].type = "Sold, and what follows in the record";
		messages[i].type_len = 4;
		messages[i].offset = 40 + (int64_t)i;
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	handler_c.close(h);
	h = NULL;
	pr_pg_close(pg);
	pg = NULL;
	return 0;
}

static void payload(size_t i, const char *text)
{
	messages[i].payload = text;
	messages[i].payload_len = text ? strlen(text) : 0;
}

/* A session with an empty table, and the library. */
static void begin_session(int64_t timeout_us)
{
	struct pr_pg_opts opts = { .appname = "handler_c_test", .timeout_us = timeout_us, .wake_fd = -1 };

	opts.conninfo = getenv("PR_TEST_CONNINFO");
	if (!opts.conninfo || !*opts.conninfo) {
		print_message("SKIPPED: PR_TEST_CONNINFO names no server\n");
		skip();
	}
	if (pr_pg_open(&opts, &pg, &err) < 0 ||
		pr_pg_run(pg, "CREATE TEMP TABLE handler_c (n int)", 0, NULL, &err) < 0)
		fail_msg("%s", err.text);
	if (!h && try_open(beside("handler_c_lib.so"), NULL) < 0)
		fail_msg("%s", err.text);
}

static void sql(const char *text)
{
	if (pr_pg_run(pg, text, 0, NULL, &err) < 0)
		fail_msg("%s: %s", text, err.text);
}

static int rows(void)
{
	PGresult *res = pr_pg_exec(pg, "SELECT count(*) FROM pg_temp.handler_c", 0, NULL, &err);
	int n;

	if (!res)
		fail_msg("%s", err.text);
	n = atoi(PQgetvalue(res, 0, 0));
	PQclear(res);
	return n;
}

/* One call in a transaction that is left open. */
static int run(const char *what, size_t n)
{
	payload(0, what);
	memset(out, 0, sizeof(out));
	err = (struct pr_err){ 0 };
	sql("BEGIN");
	sql("SET LOCAL search_path = pg_temp");
	return handler_c.run(h, pg, OP_DO, list, n, out, &err);
}

static void is_outcome(size_t i, enum pr_fail_class cls, const char *code)
{
	if (out[i].cls != cls || strcmp(out[i].code, code) != 0)
		fail_msg("message %zu: class %d code \"%s\": %s", i, out[i].cls, out[i].code, out[i].text);
}

/* The call worked as far as the connection goes; the lane rolls back, and the session is as good as new. */
static void fails_as(const char *what, size_t n, size_t bad, enum pr_fail_class cls, const char *code)
{
	if (run(what, n) < 0)
		fail_msg("%s: %s", what, err.text);
	for (size_t i = 0; i < n; i++)
		is_outcome(i, i == bad ? cls : PR_FAIL_NONE, i == bad ? code : "");
	sql("ROLLBACK");
	assert_int_equal(rows(), 0);
}

/* ---------------------------------------------------------------- open */

static void refused(const char *library, const char *options, const char *why)
{
	char path[4200];

	(void)snprintf(path, sizeof(path), "%s", strchr(library, '/') ? library : beside(library));
	assert_int_equal(try_open(path, options), -1);
	assert_null(h);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	if (!strstr(err.text, why))
		fail_msg("%s: %s", library, err.text);
}

static void libraries_that_are_none(void **state)
{
	char bare[] = "handler_c_lib.so";

	(void)state;
	refused("/nonexistent/handler.so", NULL, "No such file or directory");
	refused("/dev/null", NULL, "cannot load");
	refused("handler_c_lib_no_symbol.so", NULL, "exports no \"postrider_handler\"");
	assert_non_null(strstr(err.hint, "POSTRIDER_HANDLER_V1"));
	refused("handler_c_lib_wrong_abi.so", NULL, "has ABI version 2, this consumer speaks 1");
	refused("handler_c_lib_short.so", NULL, "says its struct has 16 bytes");
	refused("handler_c_lib_no_handle.so", NULL, "has no handle function");
	refused("handler_c_lib.so", "refuse", "refused its options: xxx");
	conf.handler.undo = 1;
	refused("handler_c_lib.so", NULL, "does not undo");
	conf.handler.undo = 0;
	assert_int_equal(try_open(bare, NULL), -1);
	assert_non_null(strstr(err.text, "is no path"));
	assert_int_equal(try_open(NULL, NULL), -1);
	assert_int_equal(err.exit, PR_EX_CONFIG);
}

static void a_library_that_is_not_ready(void **state)
{
	(void)state;
	assert_int_equal(try_open(beside("handler_c_lib.so"), "later"), -1);
	assert_int_equal(err.kind, PR_RETRY);
	assert_non_null(strstr(err.text, "not yet"));
	handler_c.close(NULL);
}

/* ---------------------------------------------------------------- run */

static void effects_commit_with_the_transaction(void **state)
{
	(void)state;
	begin_session(TIMEOUT);
	assert_int_equal(run("insert", 3), 0);
	is_outcome(0, PR_FAIL_NONE, "");
	sql("COMMIT");
	assert_int_equal(rows(), 1);
	assert_int_equal(run("savepoint", 1), 0);
	is_outcome(0, PR_FAIL_NONE, "");
	sql("COMMIT");
	assert_int_equal(rows(), 2);
	assert_int_equal(run("insert", 1), 0);
	sql("ROLLBACK");
	assert_int_equal(rows(), 2);
}

static void what_a_message_looks_like(void **state)
{
	struct message *m = &messages[0];

	(void)state;
	begin_session(TIMEOUT);
	(void)strcpy(m->id_text, "abc");
	m->id[0] = 0xab;
	m->id[15] = 0xcd;
	m->partition = 3;
	m->time_us = 1234567;
	m->key = "key and more";
	m->key_len = 3;
	m->attempts = 2;
	m->json = 1;
	m->headers = headers;
	m->headers_n = 2;
	fails_as("describe", 1, 0, PR_FAIL_REPLY, "seen");
	assert_string_equal(out[0].text, "lane 7 op 0 id abc topic shop 3/40 time 1234567 key key type Sold "
					 "attempts 2 flags 1 uuid abcd "
					 "blocking 1 id=x none=(null)");
	payload(1, NULL);
	fails_as("tombstone next", 2, 1, PR_FAIL_REPLY, "tombstone");
}

static void an_undo_is_told(void **state)
{
	(void)state;
	begin_session(TIMEOUT);
	payload(0, "describe");
	sql("BEGIN");
	memset(out, 0, sizeof(out));
	assert_int_equal(handler_c.run(h, pg, OP_UNDO, list, 1, out, &err), 0);
	assert_non_null(strstr(out[0].text, "lane 7 op 1"));
}

static void failures(void **state)
{
	(void)state;
	begin_session(TIMEOUT);
	fails_as("second and third", 3, 1, PR_FAIL_REPLY, "busy");
	assert_int_equal(out[1].retry_after_us, 1500 * PR_MS);
	fails_as("sqlstate", 2, 0, PR_FAIL_SQLSTATE, "23505");
	fails_as("behind", 1, 0, PR_FAIL_REPLY, "failed");
	fails_as("return", 2, 0, PR_FAIL_REPLY, "failed");
	fails_as("error", 2, 0, PR_FAIL_SQLSTATE, "22012");
	assert_string_equal(out[0].text, "division by zero");
	fails_as("error told", 2, 0, PR_FAIL_REPLY, "own");
	fails_as("no end", 1, 0, PR_FAIL_REPLY, "ccccccccccccccccccccccccccccccc");
	fails_as("send", 2, 0, PR_FAIL_REPLY, "unfinished");
}

static void a_slow_statement_is_a_timeout(void **state)
{
	(void)state;
	conf.handler.timeout_us = 100 * PR_MS;
	begin_session(TIMEOUT);
	fails_as("sleep", 1, 0, PR_FAIL_TIMEOUT, "");
	fails_as("cancelled", 1, 0, PR_FAIL_TIMEOUT, "");
}

/* Its effects would be one commit and the offset another, or none. */
static void whoever_ends_the_transaction_stops_us(void **state)
{
	static const char *const ends[] = { "sql:COMMIT", "sql:ROLLBACK", "sql:END", "sql:ABORT",
		"sql:COMMIT AND CHAIN", "sql:ROLLBACK AND CHAIN", "sql:COMMIT; BEGIN", "sql:ROLLBACK; BEGIN",
		"sql:BEGIN", "sql:START TRANSACTION" };

	(void)state;
	begin_session(TIMEOUT);
	for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
		if (run(ends[i], 1) == 0)
			fail_msg("%s was not noticed", ends[i]);
		assert_int_equal(err.kind, PR_STOP);
		assert_int_equal(err.exit, PR_EX_CONFIG);
		assert_non_null(strstr(err.text, "ended the transaction"));
		assert_true(err.hint[0]);
		sql("ROLLBACK");
	}
}

static void whoever_breaks_the_connection_loses_it(void **state)
{
	static const char *const breaks[] = { "send long", "pipeline", "copy", "terminate" };

	(void)state;
	for (size_t i = 0; i < sizeof(breaks) / sizeof(*breaks); i++) {
		begin_session(TIMEOUT);
		if (run(breaks[i], 1) == 0)
			fail_msg("%s was not noticed", breaks[i]);
		assert_int_equal(err.kind, PR_RETRY);
		assert_int_equal(pr_pg_ok(pg), 0);
		if (strcmp(breaks[i], "terminate") == 0)
			assert_string_equal(err.code, "57P01");
		pr_pg_close(pg);
		pg = NULL;
	}
}

/* A connection that saw a call and goes on without one: nothing of the handler is reached. */
static void the_connection_outlives_the_handler(void **state)
{
	(void)state;
	begin_session(TIMEOUT);
	assert_int_equal(run("insert", 1), 0);
	handler_c.close(h);
	h = NULL;
	sql("COMMIT");
	assert_int_equal(rows(), 1);
	assert_int_equal(try_open(beside("handler_c_lib.so"), NULL), 0);
	assert_int_equal(run("sql:COMMIT", 1), -1);
}

/* ---------------------------------------------------------------- docs/examples/handlers/seat.c */

static void the_example(void **state)
{
	(void)state;
	conf.handler.undo = 1;
	refused("handler_c_example.so", "seat; DROP TABLE seat", "is no table name");
	assert_int_equal(try_open(beside("handler_c_example.so"), "seat"), 0);
	begin_session(TIMEOUT);
	sql("CREATE TEMP TABLE seat (seat_id bigint PRIMARY KEY, reservation_id uuid, changes bigint DEFAULT "
	    "0)");
	sql("INSERT INTO pg_temp.seat (seat_id) VALUES (7)");
	messages[0].json = 1;
	fails_as("{\"seat_id\": 8, \"reservation_id\": \"" /* none of that number */
		 "00000000-0000-0000-0000-000000000001\"}",
		1, 0, PR_FAIL_REPLY, "taken");
	fails_as("{\"seat_id\": \"x\"}", 1, 0, PR_FAIL_SQLSTATE, "22P02");
	assert_int_equal(
		run("{\"seat_id\": 7, \"reservation_id\": \"00000000-0000-0000-0000-000000000001\"}", 1), 0);
	is_outcome(0, PR_FAIL_NONE, "");
	sql("INSERT INTO handler_c SELECT 1 FROM seat WHERE changes = 1 AND reservation_id IS NOT NULL");
	assert_int_equal(handler_c.run(h, pg, OP_UNDO, list, 1, out, &err), 0);
	is_outcome(0, PR_FAIL_NONE, "");
	sql("INSERT INTO handler_c SELECT 2 FROM seat WHERE changes = 2 AND reservation_id IS NULL");
	sql("COMMIT");
	assert_int_equal(rows(), 2);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(libraries_that_are_none),
		T(a_library_that_is_not_ready),
		T(effects_commit_with_the_transaction),
		T(what_a_message_looks_like),
		T(an_undo_is_told),
		T(failures),
		T(a_slow_statement_is_a_timeout),
		T(whoever_ends_the_transaction_stops_us),
		T(whoever_breaks_the_connection_loses_it),
		T(the_connection_outlives_the_handler),
		T(the_example),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
