/* tests/unit/pg_test.c -- lib/pg.c against a real server, named by PR_TEST_CONNINFO, and
 * against sockets that refuse, keep silent, or cut the connection after so many bytes. */
#include "lib/clock.h"
#include "lib/pg.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SLACK (10 * PR_SEC) /* of a busy machine, on top of a deadline */

static const char *conninfo(void)
{
	const char *s = getenv("PR_TEST_CONNINFO");

	if (!s || !*s) {
		print_message("SKIPPED: PR_TEST_CONNINFO names no server\n");
		skip();
	}
	return s;
}

static int open_with(const char *info, int64_t timeout_us, int wake_fd, struct pr_pg **pg, struct pr_err *err)
{
	struct pr_pg_opts opts = {
		.conninfo = info, .appname = "pg_test", .timeout_us = timeout_us, .wake_fd = wake_fd
	};

	*pg = NULL;
	memset(err, 0, sizeof(*err));
	return pr_pg_open(&opts, pg, err);
}

static struct pr_pg *open_ok(int64_t timeout_us, int wake_fd)
{
	struct pr_pg *pg;
	struct pr_err err;

	if (open_with(conninfo(), timeout_us, wake_fd, &pg, &err) < 0)
		fail_msg("open: %s", err.text);
	return pg;
}

static void run_ok(struct pr_pg *pg, const char *sql)
{
	struct pr_err err = { 0 };

	if (pr_pg_run(pg, sql, 0, NULL, &err) < 0)
		fail_msg("%s: %s", sql, err.text);
}

/* The only value of a statement, in a static buffer. */
static const char *value_of(struct pr_pg *pg, const char *sql)
{
	static char value[256];
	struct pr_err err = { 0 };
	PGresult *res = pr_pg_exec(pg, sql, 0, NULL, &err);

	if (!res)
		fail_msg("%s: %s", sql, err.text);
	(void)snprintf(value, sizeof(value), "%s", PQgetvalue(res, 0, 0));
	PQclear(res);
	return value;
}

static void assert_err(const struct pr_err *err, enum pr_kind kind, const char *code)
{
	if (err->kind != kind || strcmp(err->code, code) != 0)
		fail_msg("expected %s %s, got %s %s: %s", pr_kind_str(kind), code, pr_kind_str(err->kind),
			err->code, err->text);
	assert_true(err->text[0] != '\0');
	assert_null(strchr(err->text, '\n'));
}

static void run_fails(struct pr_pg *pg, const char *sql, enum pr_kind kind, const char *code)
{
	struct pr_err err = { 0 };

	assert_int_equal(pr_pg_run(pg, sql, 0, NULL, &err), -1);
	assert_err(&err, kind, code);
}

static void rearm(int fd, int64_t us)
{
	struct itimerspec at = { .it_value = { .tv_sec = us / PR_SEC, .tv_nsec = us % PR_SEC * 1000 } };

	assert_int_equal(timerfd_settime(fd, 0, &at, NULL), 0);
}

/* Readable after us (0: not before rearm): interrupts a wait without a thread. */
static int alarm_fd(int64_t us)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	assert_true(fd >= 0);
	rearm(fd, us);
	return fd;
}

static void assert_took(int64_t start, int64_t least, int64_t most)
{
	int64_t took = pr_mono_us() - start;

	if (took < least || took > most)
		fail_msg("took %lld us, expected %lld to %lld", (long long)took, (long long)least,
			(long long)most);
}

/* A bound TCP socket on loopback, listening when backlog >= 0. */
static int loopback(int backlog, int *ret_port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	if (backlog >= 0)
		assert_int_equal(listen(fd, backlog), 0);
	*ret_port = ntohs(a.sin_port);
	return fd;
}

/* --- decisions --- */

static void kinds(void **state)
{
	static const struct {
		const char *sqlstate;
		enum pr_kind kind;
	} t[] = { { NULL, PR_RETRY }, { "", PR_RETRY }, { "08006", PR_RETRY }, { "40001", PR_RETRY },
		{ "40P01", PR_RETRY }, { "53300", PR_RETRY }, { "55P03", PR_RETRY }, { "57P01", PR_RETRY },
		{ "57014", PR_RETRY }, { "25006", PR_RETRY }, { "25P02", PR_REJECT }, { "28P01", PR_STOP },
		{ "3D000", PR_STOP }, { "3F000", PR_STOP }, { "42P01", PR_STOP }, { "42501", PR_STOP },
		{ "22012", PR_REJECT }, { "23505", PR_REJECT }, { "P0001", PR_REJECT },
		{ "XX000", PR_REJECT } };

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++)
		if (pr_pg_kind(t[i].sqlstate) != t[i].kind)
			fail_msg("%s: %s", t[i].sqlstate, pr_kind_str(pr_pg_kind(t[i].sqlstate)));
}

/* --- connecting --- */

static void refused(void **state)
{
	struct pr_pg *pg;
	struct pr_err err;
	char info[128];
	int port, fd = loopback(-1, &port); /* bound, so nobody else gets it, but not listening */

	(void)state;
	(void)snprintf(info, sizeof(info), "postgresql://u:secret-word@127.0.0.1:%d/d", port);
	assert_int_equal(open_with(info, PR_SEC, -1, &pg, &err), -1);
	assert_null(pg);
	assert_err(&err, PR_RETRY, "08001");
	assert_int_equal(err.exit, PR_EX_UNAVAILABLE);
	assert_non_null(strstr(err.text, "refused"));
	assert_null(strstr(err.text, "secret-word"));
	(void)close(fd);
}

static void silent_server(void **state)
{
	struct pr_pg *pg;
	struct pr_err err;
	char info[128];
	int port, wake, fd = loopback(8, &port);
	int64_t start = pr_mono_us();

	(void)state;
	(void)snprintf(info, sizeof(info), "host=127.0.0.1 port=%d dbname=d user=u", port);
	assert_int_equal(open_with(info, 300 * PR_MS, -1, &pg, &err), -1);
	assert_err(&err, PR_RETRY, "timeout");
	assert_took(start, 300 * PR_MS, 300 * PR_MS + SLACK);

	wake = alarm_fd(50 * PR_MS);
	start = pr_mono_us();
	assert_int_equal(open_with(info, 30 * PR_SEC, wake, &pg, &err), -1);
	assert_err(&err, PR_RETRY, "interrupted");
	assert_took(start, 50 * PR_MS, 50 * PR_MS + SLACK);
	(void)close(wake);
	(void)close(fd);
}

static void bad_conninfo(void **state)
{
	static const char *const bad[] = { "postgresql://u:secret-word@[::1/d", "password=secret-word x",
		"host=a secret-word=1", "password='secret-word" };
	struct pr_pg *pg;
	struct pr_err err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_int_equal(open_with(bad[i], PR_SEC, -1, &pg, &err), -1);
		assert_int_equal(err.kind, PR_STOP);
		assert_int_equal(err.exit, PR_EX_CONFIG);
		assert_null(strstr(err.text, "secret-word"));
		assert_true(err.hint[0] != '\0');
	}
	/* It parses, and can never work. A name that nobody knows may be known tomorrow. */
	assert_int_equal(open_with("host=127.0.0.1 sslmode=maybe", PR_SEC, -1, &pg, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_non_null(strstr(err.text, "maybe"));
	assert_int_equal(open_with("host=/no/such/directory", PR_SEC, -1, &pg, &err), -1);
	assert_err(&err, PR_RETRY, "08001");
}

/* key=value words of the test server with one replaced, whatever form PR_TEST_CONNINFO has */
static void info_of(struct pr_pg *pg, const char *extra, char *buf, size_t size)
{
	PGconn *c = pr_pg_conn(pg);

	(void)snprintf(buf, size, "host='%s' port=%s user='%s' password='%s' dbname='%s' %s", PQhost(c),
		PQport(c), PQuser(c), PQpass(c), PQdb(c), extra);
}

static void refused_by_server(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *other;
	struct pr_err err;
	char info[512];

	(void)state;
	info_of(pg, "dbname=no_such_database", info, sizeof(info));
	assert_int_equal(open_with(info, 5 * PR_SEC, -1, &other, &err), -1);
	assert_err(&err, PR_STOP, "3D000");
	assert_non_null(strstr(err.text, "FATAL: database \"no_such_database\" does not exist"));
	assert_null(strstr(err.text, "LOCATION"));
	info_of(pg, "user=no_such_role", info, sizeof(info));
	assert_int_equal(open_with(info, 5 * PR_SEC, -1, &other, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(strncmp(err.code, "28", 2), 0);
	assert_int_equal(err.exit, PR_EX_NOPERM);
	pr_pg_close(pg);
}

/* A machine that is off (its SYN is never answered) and then a good one, within one deadline. */
static void first_host_is_off(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *other;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct pr_err err;
	char info[512];
	int port, fill[4], fd = loopback(0, &port);

	(void)state;
	a.sin_port = htons((uint16_t)port);
	for (int i = 0; i < 4; i++) { /* the accept queue is full after one or two */
		fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		(void)connect(fill[i], (struct sockaddr *)&a, sizeof(a));
	}
	(void)snprintf(info, sizeof(info),
		"host='127.0.0.1,%s' port=%d,%s user='%s' password='%s' dbname='%s'", PQhost(pr_pg_conn(pg)),
		port, PQport(pr_pg_conn(pg)), PQuser(pr_pg_conn(pg)), PQpass(pr_pg_conn(pg)),
		PQdb(pr_pg_conn(pg)));
	if (open_with(info, 6 * PR_SEC, -1, &other, &err) < 0)
		fail_msg("%s", err.text);
	assert_string_equal(value_of(other, "SELECT 1"), "1");
	pr_pg_close(other);
	pr_pg_close(pg);
	for (int i = 0; i < 4; i++)
		(void)close(fill[i]);
	(void)close(fd);
}

static void session(void **state)
{
	static const char *const want[][2] = { { "search_path", "\"\"" }, { "client_encoding", "UTF8" },
		{ "timezone", "UTC" }, { "datestyle", "ISO, MDY" }, { "application_name", "pg_test" },
		{ "transaction_isolation", "read committed" }, { "standard_conforming_strings", "on" },
		{ "lock_timeout", "0" }, { "statement_timeout", "4500ms" }, { "bytea_output", "hex" },
		{ "idle_in_transaction_session_timeout", "1min" } };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *other;
	struct pr_err err;
	char sql[128], info[512];

	(void)state;
	for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
		(void)snprintf(sql, sizeof(sql), "SHOW %s", want[i][0]);
		assert_string_equal(value_of(pg, sql), want[i][1]);
	}
	/* What the user said in options stays, an application_name of his own too, our session wins. */
	info_of(pg, "application_name=mine options='-c work_mem=1234kB -c timezone=Asia/Tokyo'", info,
		sizeof(info));
	assert_int_equal(open_with(info, 5 * PR_SEC, -1, &other, &err), 0);
	assert_string_equal(value_of(other, "SHOW work_mem"), "1234kB");
	assert_string_equal(value_of(other, "SHOW application_name"), "mine");
	assert_string_equal(value_of(other, "SHOW timezone"), "UTC");
	pr_pg_close(other);
	pr_pg_close(pg);
}

/* --- statements --- */

static void several_statements(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };

	(void)state;
	assert_string_equal(value_of(pg, "CREATE TEMP TABLE s (n int); INSERT INTO s VALUES (1), (2);"
					 "SELECT count(*) FROM s"),
		"2");
	run_fails(pg, "INSERT INTO s VALUES (3); SELECT 1/0; INSERT INTO s VALUES (4)", PR_REJECT, "22012");
	assert_string_equal(value_of(pg, "SELECT count(*) FROM s"), "2");
	assert_true(pr_pg_ok(pg));
	run_fails(pg, " ", PR_STOP, "empty");
	assert_int_equal(pr_pg_run(pg, "SELEC 1", 0, NULL, &err), -1);
	assert_err(&err, PR_STOP, "42601");
	assert_true(pr_pg_ok(pg));
	pr_pg_close(pg);
}

static void text_goes_through(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	char text[300], *p = text;
	const char *params[2] = { text, NULL }, *bad[1] = { "a\xc0\x80" };
	struct pr_err err = { 0 };
	PGresult *res;

	(void)state;
	for (int c = 1; c < 128; c++)
		*p++ = (char)c;
	(void)strcpy(p, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
	res = pr_pg_exec(pg, "SELECT $1::text, $2::text", 2, params, &err);
	assert_non_null(res);
	assert_string_equal(PQgetvalue(res, 0, 0), text);
	assert_true(PQgetisnull(res, 0, 1));
	PQclear(res);
	assert_int_equal(pr_pg_run(pg, "SELECT $1::text", 1, bad, &err), -1);
	assert_err(&err, PR_REJECT, "22021");
	assert_true(pr_pg_ok(pg));
	/* More than the socket takes at once. */
	params[0] = memset(pr_malloc(20000001), 'w', 20000000);
	((char *)(uintptr_t)params[0])[20000000] = '\0';
	res = pr_pg_exec(pg, "SELECT length($1)", 1, params, &err);
	assert_non_null(res);
	assert_string_equal(PQgetvalue(res, 0, 0), "20000000");
	PQclear(res);
	free((char *)(uintptr_t)params[0]);
	pr_pg_close(pg);
}

static void error_fields(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };

	(void)state;
	assert_int_equal(pr_pg_run(pg,
				 "DO $$ BEGIN RAISE EXCEPTION 'no such thing' USING DETAIL = 'only two', "
				 "HINT = 'make three', ERRCODE = '23514'; END $$",
				 0, NULL, &err),
		-1);
	assert_err(&err, PR_REJECT, "23514");
	assert_string_equal(err.text, "no such thing (only two)");
	assert_string_equal(err.hint, "make three");
	run_ok(pg, "DO $$ BEGIN RAISE WARNING 'a notice goes nowhere'; END $$");
	pr_pg_close(pg);
}

/* Story: a COMMIT after an error is answered by success with the tag ROLLBACK; a relay that
 * looked at the status only believed that its rows were stored. */
static void commit_of_failed_transaction(void **state)
{
	static const char *const ends[] = { "COMMIT", "  end;", "commit work", "PREPARE TRANSACTION 'x'" };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);

	(void)state;
	for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
		run_ok(pg, "BEGIN");
		run_fails(pg, "SELECT 1/0", PR_REJECT, "22012");
		run_fails(pg, "SELECT 1", PR_REJECT, "25P02");
		run_fails(pg, ends[i], PR_REJECT, "25P02");
		assert_int_equal(PQtransactionStatus(pr_pg_conn(pg)), PQTRANS_IDLE);
	}
	run_ok(pg, "BEGIN");
	run_ok(pg, "ROLLBACK");
	run_ok(pg, "BEGIN");
	run_ok(pg, "SAVEPOINT a; ROLLBACK TO a; COMMIT");
	assert_true(pr_pg_ok(pg));
	pr_pg_close(pg);
}

static void slow_statement(void **state)
{
	struct pr_pg *pg = open_ok(500 * PR_MS, -1);
	int64_t start = pr_mono_us();

	(void)state;
	/* The server speaks first, so the connection lives. */
	run_fails(pg, "SELECT pg_sleep(30)", PR_RETRY, "57014");
	assert_took(start, 400 * PR_MS, 500 * PR_MS + SLACK);
	assert_true(pr_pg_ok(pg));
	/* A longer deadline holds on the server too, for one call. */
	pr_pg_timeout(pg, 20 * PR_SEC);
	run_ok(pg, "SELECT pg_sleep(0.8)");
	assert_string_equal(value_of(pg, "SHOW statement_timeout"), "450ms");
	/* A shorter one is ours alone. */
	pr_pg_timeout(pg, 100 * PR_MS);
	start = pr_mono_us();
	run_fails(pg, "SELECT pg_sleep(30)", PR_RETRY, "timeout");
	assert_took(start, 100 * PR_MS, 100 * PR_MS + SLACK);
	assert_false(pr_pg_ok(pg));
	run_fails(pg, "SELECT 1", PR_RETRY, "08003");
	pr_pg_close(pg);
}

static void wake_up(void **state)
{
	int wake = alarm_fd(0);
	struct pr_pg *pg = open_ok(30 * PR_SEC, wake);
	int64_t start;
	struct pr_err err = { 0 };

	(void)state;
	rearm(wake, 100 * PR_MS);
	/* Idle: woken, and nothing is broken. Nor by a call that was never sent. */
	assert_int_equal(pr_pg_idle(pg, 30 * PR_SEC, &err), 1);
	run_fails(pg, "SELECT 1", PR_RETRY, "interrupted");
	assert_true(pr_pg_ok(pg));
	/* In flight: its outcome is unknown. */
	rearm(wake, 100 * PR_MS);
	start = pr_mono_us();
	run_fails(pg, "SELECT pg_sleep(20)", PR_RETRY, "interrupted");
	assert_took(start, 50 * PR_MS, 100 * PR_MS + SLACK);
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
	(void)close(wake);
}

/* --- loss --- */

static void backend_killed(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *killer = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	char sql[128];

	(void)state;
	run_fails(pg, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)", PR_RETRY, "57P01");
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);

	pg = open_ok(5 * PR_SEC, -1);
	assert_int_equal(pr_pg_idle(pg, 20 * PR_MS, &err), 0);
	(void)snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)", PQbackendPID(pr_pg_conn(pg)));
	run_ok(killer, sql);
	assert_int_equal(pr_pg_idle(pg, 10 * PR_SEC, &err), -1);
	assert_err(&err, PR_RETRY, "57P01");
	assert_non_null(strstr(err.text, "administrator"));
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
	pr_pg_close(killer);
}

/* Freezes the backend of pg; 0 when we may not. */
static int freeze(struct pr_pg *pg)
{
	if (kill(PQbackendPID(pr_pg_conn(pg)), SIGSTOP) == 0)
		return 1;
	print_message("SKIPPED: the server's processes are not ours to stop (%s)\n", strerror(errno));
	return 0;
}

static void frozen_server(void **state)
{
	struct pr_pg *pg = open_ok(500 * PR_MS, -1);
	static const char *const two[] = { "SELECT 1", "SELECT 2" };
	PGresult *results[2];
	struct pr_err err = { 0 };
	int pid = PQbackendPID(pr_pg_conn(pg));
	int64_t start;

	(void)state;
	if (!freeze(pg))
		skip();
	start = pr_mono_us();
	run_fails(pg, "SELECT 1", PR_RETRY, "timeout");
	assert_took(start, 500 * PR_MS, 500 * PR_MS + SLACK);
	assert_false(pr_pg_ok(pg));
	start = pr_mono_us();
	pr_pg_close(pg);
	assert_took(start, 0, SLACK);
	(void)kill(pid, SIGCONT);

	pg = open_ok(500 * PR_MS, -1);
	pid = PQbackendPID(pr_pg_conn(pg));
	assert_true(freeze(pg));
	start = pr_mono_us();
	assert_int_equal(pr_pg_round_trip(pg, two, 2, results, &err), -1);
	assert_err(&err, PR_RETRY, "timeout");
	assert_null(results[0]);
	assert_took(start, 500 * PR_MS, 500 * PR_MS + SLACK);
	pr_pg_close(pg);
	(void)kill(pid, SIGCONT);
}

/* A statement too long for the socket's buffers, to one who does not read: our deadline ends it, and not the
 * share of it that the kernel gave each of the addresses. */
static void frozen_server_does_not_read(void **state)
{
	struct pr_pg *pg;
	struct pr_err err;
	size_t n = 32 << 20;
	char info[1024], *sql;
	int64_t start;
	int pid;

	(void)state;
	(void)snprintf(info, sizeof(info), "%s host=127.0.0.1,127.0.0.1,127.0.0.1", conninfo());
	if (open_with(info, 2 * PR_SEC, -1, &pg, &err) < 0)
		fail_msg("open: %s", err.text);
	pid = PQbackendPID(pr_pg_conn(pg));
	if (!freeze(pg)) {
		pr_pg_close(pg);
		skip();
	}
	sql = malloc(n + 1);
	assert_non_null(sql);
	memset(sql, ' ', n);
	memcpy(sql, "SELECT 1", 8);
	sql[n] = '\0';
	start = pr_mono_us();
	run_fails(pg, sql, PR_RETRY, "timeout");
	assert_took(start, 2 * PR_SEC, 2 * PR_SEC + SLACK);
	free(sql);
	start = pr_mono_us();
	pr_pg_close(pg);
	assert_took(start, 0, SLACK);
	(void)kill(pid, SIGCONT);
}

static void copy_where_none_is_expected(void **state)
{
	static const char *const sql[] = { "COPY (SELECT 1) TO STDOUT",
		"CREATE TEMP TABLE c (n int); COPY c FROM STDIN" };

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
		int64_t start = pr_mono_us();

		run_fails(pg, sql[i], PR_STOP, "copy");
		assert_false(pr_pg_ok(pg));
		pr_pg_close(pg);
		assert_took(start, 0, SLACK);
	}
}

/* --- round trips --- */

static void clear(PGresult **results, int n)
{
	for (int i = 0; i < n; i++)
		PQclear(results[i]);
}

static void round_trip(void **state)
{
	static const char *const sql[] = { "SELECT pg_current_xact_id()", "SELECT 2 WHERE false",
		"SELECT pg_current_xact_id()", "SET work_mem = '1MB'" };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	PGresult *r[4];

	(void)state;
	for (int pass = 0; pass < 5; pass++) { /* plain, then prepared, then again */
		if (pr_pg_round_trip(pg, sql, 4, r, &err) < 0)
			fail_msg("%s", err.text);
		assert_string_not_equal(PQgetvalue(r[0], 0, 0), PQgetvalue(r[2], 0, 0));
		assert_int_equal(PQntuples(r[1]), 0);
		assert_int_equal(PQresultStatus(r[3]), PGRES_COMMAND_OK);
		clear(r, 4);
		assert_string_equal(value_of(pg, "SELECT 1; SELECT 7"), "7");
	}
	assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_catalog.pg_prepared_statements"), "3");
	assert_int_equal(pr_pg_round_trip(pg, sql, 0, r, &err), 0);
	run_ok(pg, "BEGIN");
	assert_int_equal(pr_pg_round_trip(pg, sql, 1, r, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_true(pr_pg_ok(pg));
	run_ok(pg, "ROLLBACK");
	pr_pg_close(pg);
}

static void round_trip_error_in_the_middle(void **state)
{
	static const char *const sql[] = { "INSERT INTO pg_temp.r VALUES (1)",
		"SELECT 1/(count(*) - count(*)) FROM pg_temp.r", "INSERT INTO pg_temp.r VALUES (2)", "SELEC",
		"SELECT nosuch FROM pg_temp.r" };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	PGresult *r[5];
	char want[16];

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE r (n int)");
	for (int pass = 1; pass <= 4; pass++) {
		assert_int_equal(pr_pg_round_trip(pg, sql, 5, r, &err), -1);
		assert_err(&err, PR_REJECT, "22012");
		for (int i = 0; i < 5; i++)
			assert_null(r[i]);
		assert_true(pr_pg_ok(pg));
		/* Each was its own transaction: both inserts are there. */
		(void)snprintf(want, sizeof(want), "%d", 2 * pass);
		assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_temp.r"), want);
		assert_int_equal(pr_pg_round_trip(pg, sql + 3, 1, r, &err), -1);
		assert_err(&err, PR_STOP, "42601");
		assert_int_equal(pr_pg_round_trip(pg, sql + 4, 1, r, &err), -1);
		assert_err(&err, PR_STOP, "42703");
	}
	pr_pg_close(pg);
}

static void pipeline_is_one_transaction(void **state)
{
	const int32_t two = (int32_t)htonl(2);
	const char *text[1] = { "40" }, *binary[1] = { (const char *)&two };
	const int length[1] = { 4 }, format[1] = { 1 };
	const Oid int4[1] = { 23 };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	int failed;

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE p (n int)");
	for (int pass = 1; pass <= 3; pass++) {
		struct pr_stmt s[4] = {
			{ .sql = "SELECT pg_current_xact_id()" },
			{ .sql = "INSERT INTO pg_temp.p VALUES ($1::int)", .n = 1, .values = text },
			{ .sql = "SELECT $1::int + 1, pg_current_xact_id()",
				.n = 1,
				.types = int4,
				.values = binary,
				.lengths = length,
				.formats = format,
				.sync = 1 },
			{ .sql = "SELECT count(*), pg_current_xact_id() FROM pg_temp.p", .sync = 1 },
		};

		assert_int_equal(pr_pg_pipeline(pg, s, 4, &failed, &err), 0);
		assert_string_equal(PQgetvalue(s[2].res, 0, 0), "3");
		assert_string_equal(PQgetvalue(s[0].res, 0, 0), PQgetvalue(s[2].res, 0, 1));
		assert_string_not_equal(PQgetvalue(s[0].res, 0, 0), PQgetvalue(s[3].res, 0, 1));
		assert_int_equal(atoi(PQgetvalue(s[3].res, 0, 0)), pass);
		pr_stmt_clear(s, 4);
	}
	pr_pg_close(pg);
}

static void pipeline_says_which_failed(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	int failed;

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE p (n int PRIMARY KEY, m int REFERENCES pg_temp.p DEFERRABLE INITIALLY "
		   "DEFERRED)");
	for (int pass = 1; pass <= 3; pass++) {
		struct pr_stmt s[5] = {
			{ .sql = "SELECT 1", .sync = 1 },
			{ .sql = "INSERT INTO pg_temp.p VALUES (1)" },
			{ .sql = "SELECT 1/(count(*) - count(*)) FROM pg_temp.p" },
			{ .sql = "SELECT 3" },
			{ .sql = "SELECT 4", .sync = 1 },
		}, deferred[3] = {
			{ .sql = "INSERT INTO pg_temp.p VALUES (1, 2)" },
			{ .sql = "SELECT 3", .sync = 1 },
			{ .sql = "SELECT 5", .sync = 1 },
		};

		assert_int_equal(pr_pg_pipeline(pg, s, 5, &failed, &err), -1);
		assert_err(&err, PR_REJECT, "22012");
		assert_int_equal(failed, 2);
		assert_null(s[0].res);
		assert_true(pr_pg_ok(pg));
		assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_temp.p"), "0");
		/* The transaction's own end fails: nothing of it is there, and the last statement is named.
		 */
		assert_int_equal(pr_pg_pipeline(pg, deferred, 3, &failed, &err), -1);
		assert_err(&err, PR_REJECT, "23503");
		assert_int_equal(failed, 1);
		assert_true(pr_pg_ok(pg));
		assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_temp.p"), "0");
	}
	assert_int_equal(pr_pg_pipeline(pg, &(struct pr_stmt){ .sql = "SELECT 1" }, 1, NULL, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	pr_pg_close(pg);
}

static void round_trip_many_texts(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	char text[64], want[16];
	const char *sql = text;
	PGresult *r;

	(void)state;
	for (int pass = 0; pass < 3; pass++) {
		for (int i = 0; i < 120; i++) { /* each text twice in a row: prepared while slots last */
			(void)snprintf(text, sizeof(text), "SELECT %d", i / 2);
			(void)snprintf(want, sizeof(want), "%d", i / 2);
			assert_int_equal(pr_pg_round_trip(pg, &sql, 1, &r, &err), 0);
			assert_string_equal(PQgetvalue(r, 0, 0), want);
			PQclear(r);
		}
	}
	assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_catalog.pg_prepared_statements"), "32");
	pr_pg_close(pg);
}

/* Story: a text that was being prepared lost its slot to another in the same round trip, and from
 * then on the other's name ran the first one's statement. */
static void round_trip_slots(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	char text[64][16], want[8];
	const char *sql[32];
	PGresult *r[32];
	unsigned seed = 7;

	(void)state;
	for (int i = 0; i < 64; i++)
		(void)snprintf(text[i], sizeof(text[i]), "SELECT %d", i);
	for (int pass = 0; pass < 300; pass++) {
		int pick[32], n;

		seed = seed * 1664525u + 1013904223u;
		n = 1 + (int)(seed >> 16) % 32;
		for (int i = 0; i < n; i++) { /* the same text twice in one round trip happens too */
			seed = seed * 1664525u + 1013904223u;
			pick[i] = (int)((seed >> 16) % (pass < 100 ? 40 : 64));
			sql[i] = text[pick[i]];
		}
		if (pr_pg_round_trip(pg, sql, n, r, &err) < 0)
			fail_msg("%s", err.text);
		for (int i = 0; i < n; i++) {
			(void)snprintf(want, sizeof(want), "%d", pick[i]);
			assert_string_equal(PQgetvalue(r[i], 0, 0), want);
		}
		clear(r, n);
	}
	assert_string_equal(value_of(pg, "SELECT count(*) FROM pg_catalog.pg_prepared_statements"), "32");
	sql[0] = text[0];
	for (int i = 1; i < 32; i++)
		sql[i] = sql[0];
	assert_int_equal(pr_pg_round_trip(pg, sql, 33, r, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	pr_pg_close(pg);
}

/* Story: a column is added to a table while a prepared SELECT * lives; Postgres refuses the old
 * plan for ever, and a relay that kept the connection would never read again. */
static void round_trip_stale_plan(void **state)
{
	static const char *const sql[] = { "SELECT * FROM pg_temp.p" };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	PGresult *r;

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE p (n int)");
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pr_pg_round_trip(pg, sql, 1, &r, &err), 0);
		PQclear(r);
	}
	run_ok(pg, "ALTER TABLE pg_temp.p ADD m int");
	assert_int_equal(pr_pg_round_trip(pg, sql, 1, &r, &err), -1);
	assert_err(&err, PR_RETRY, "0A000");
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
}

static void round_trip_killed(void **state)
{
	static const char *const sql[] = { "SELECT 1",
		"SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)", "SELECT 3" };
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	PGresult *r[3];

	(void)state;
	assert_int_equal(pr_pg_round_trip(pg, sql, 3, r, &err), -1);
	assert_err(&err, PR_RETRY, "57P01");
	assert_false(pr_pg_ok(pg));
	assert_null(r[0]);
	pr_pg_close(pg);
}

/* --- COPY --- */

static uint32_t be32(const char *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return ntohl(v);
}

static void begin_ok(struct pr_pg *pg, const char *query)
{
	struct pr_err err = { 0 };

	if (pr_pg_copy_begin(pg, query, &err) < 0)
		fail_msg("%s: %s", query, err.text);
}

/* Reads rows of one int4 that count up from 1, at most so many. Returns what copy_row said last. */
static int read_ints(struct pr_pg *pg, long most, long *ret_n, struct pr_err *err)
{
	long n = 0;
	int rc = 1;

	while (n < most) {
		char *row = NULL;
		int len = 0;

		rc = pr_pg_copy_row(pg, &row, &len, err);
		if (rc <= 0)
			break;
		assert_int_equal(len, 2 + 4 + 4);
		assert_int_equal(row[1], 1);
		assert_int_equal(be32(row + 2), 4);
		assert_int_equal(be32(row + 6), ++n);
		PQfreemem(row);
	}
	*ret_n = n;
	return rc;
}

static void copy_rows(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	char *row;
	int len;
	long n;

	(void)state;
	begin_ok(pg, "SELECT generate_series(1, 100000)");
	assert_int_equal(read_ints(pg, 1000000, &n, &err), 0);
	assert_int_equal(n, 100000);
	begin_ok(pg, "SELECT 1 WHERE false");
	assert_int_equal(read_ints(pg, 10, &n, &err), 0);
	assert_int_equal(n, 0);
	assert_int_equal(pr_pg_copy_row(pg, &row, &len, &err), -1);
	assert_true(pr_pg_ok(pg));
	/* Rows without columns are two bytes long, as the trailer is. */
	begin_ok(pg, "SELECT FROM generate_series(1, 3)");
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pr_pg_copy_row(pg, &row, &len, &err), 1);
		assert_int_equal(len, 2);
		PQfreemem(row);
	}
	assert_int_equal(pr_pg_copy_row(pg, &row, &len, &err), 0);
	/* One large row, and the connection is good for other work afterwards. */
	begin_ok(pg, "SELECT repeat('x', 20000000)");
	assert_int_equal(pr_pg_copy_row(pg, &row, &len, &err), 1);
	assert_int_equal(len, 2 + 4 + 20000000);
	assert_int_equal(row[len - 1], 'x');
	PQfreemem(row);
	assert_int_equal(pr_pg_copy_row(pg, &row, &len, &err), 0);
	assert_string_equal(value_of(pg, "SELECT 5"), "5");
	pr_pg_close(pg);
}

static void copy_errors(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	long n;

	(void)state;
	assert_int_equal(pr_pg_copy_begin(pg, "SELECT * FROM no_such_table", &err), -1);
	assert_err(&err, PR_STOP, "42P01");
	assert_true(pr_pg_ok(pg));
	/* An error in mid-stream comes after good rows and leaves the connection usable. */
	begin_ok(pg, "SELECT g + 0 / (5000 - g) FROM generate_series(1, 100000) g");
	assert_int_equal(read_ints(pg, 1000000, &n, &err), -1);
	assert_int_equal(n, 4999);
	assert_err(&err, PR_REJECT, "22012");
	assert_true(pr_pg_ok(pg));
	assert_string_equal(value_of(pg, "SELECT 5"), "5");
	/* Another call in the middle of a COPY is our own mistake and says so. */
	begin_ok(pg, "SELECT generate_series(1, 10)");
	run_fails(pg, "SELECT 1", PR_STOP, "copy");
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
}

static void copy_killed(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *killer = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	char sql[128];
	long n, m;

	(void)state;
	begin_ok(pg, "SELECT generate_series(1, 100000000)");
	assert_int_equal(read_ints(pg, 10, &n, &err), 1);
	(void)snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)", PQbackendPID(pr_pg_conn(pg)));
	run_ok(killer, sql);
	do { /* what the sockets still hold, from 11 on: not counted again */
		char *row = NULL;
		int len;

		m = pr_pg_copy_row(pg, &row, &len, &err);
		PQfreemem(row);
	} while (m > 0);
	assert_int_equal(m, -1);
	assert_int_equal(err.kind, PR_RETRY);
	assert_true(strcmp(err.code, "08006") == 0 || strcmp(err.code, "57P01") == 0);
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
	pr_pg_close(killer);
}

static void copy_frozen_and_woken(void **state)
{
	/* Long enough to freeze the backend before its own statement_timeout, 10 % earlier, can speak. */
	const int64_t deadline = 3 * PR_SEC;
	int wake = alarm_fd(0), pid, rc;
	struct pr_pg *pg;
	struct pr_err err = { 0 };
	int64_t start;
	char *row;
	int len;

	(void)state;
	for (int i = 0; i < 2; i++) {
		rearm(wake, 0);
		pg = open_ok(i == 0 ? deadline : 20 * PR_SEC, i == 0 ? -1 : wake);
		pid = PQbackendPID(pr_pg_conn(pg));
		begin_ok(pg, "SELECT generate_series(1, 100000000)");
		if (!freeze(pg)) {
			pr_pg_close(pg);
			skip();
		}
		rearm(wake, 300 * PR_MS);
		do {
			row = NULL;
			start = pr_mono_us();
			rc = pr_pg_copy_row(pg, &row, &len, &err);
			PQfreemem(row);
		} while (rc > 0);
		assert_err(&err, PR_RETRY, i == 0 ? "timeout" : "interrupted");
		assert_took(start, i == 0 ? deadline : 0, deadline + SLACK);
		assert_false(pr_pg_ok(pg));
		start = pr_mono_us();
		pr_pg_close(pg);
		assert_took(start, 0, SLACK);
		(void)kill(pid, SIGCONT);
	}
	(void)close(wake);
}

/* A COPY that lasts longer than the timeout is fine while rows arrive, if it was begun so. */
static void copy_longer_than_a_wait(void **state)
{
	struct pr_pg *pg = open_ok(400 * PR_MS, -1);
	struct pr_err err = { 0 };
	long n;

	(void)state;
	pr_pg_timeout(pg, 5 * PR_SEC);
	begin_ok(pg, "SELECT g FROM (SELECT g, CASE WHEN g % 10 = 0 THEN pg_sleep(0.02) END FROM"
		     " generate_series(1, 400) g) s");
	assert_int_equal(read_ints(pg, 1000, &n, &err), 0);
	assert_int_equal(n, 400);
	begin_ok(pg, "SELECT pg_sleep(20)");
	assert_int_equal(read_ints(pg, 1, &n, &err), -1);
	assert_err(&err, PR_RETRY, "57014");
	assert_true(pr_pg_ok(pg));
	pr_pg_close(pg);
}

/* --- rows into a COPY --- */

static int copy_in(struct pr_pg *pg, const char *sql, const char *rows, struct pr_err *err)
{
	PGresult *res;

	memset(err, 0, sizeof(*err));
	if (pr_pg_copy_in_begin(pg, sql, err) < 0 || pr_pg_copy_in_put(pg, rows, strlen(rows), err) < 0)
		return -1;
	res = pr_pg_copy_in_end(pg, err);
	PQclear(res);
	return res ? 0 : -1;
}

/* A transaction around it in one query; the last statement's result is there. */
static void copy_in_rows(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	PGresult *res;
	char line[32];

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE copied (n int)");
	assert_int_equal(
		pr_pg_copy_in_begin(pg,
			"BEGIN; SELECT 1; COPY copied FROM STDIN; COMMIT; SELECT count(*) FROM copied", &err),
		0);
	for (int i = 0; i < 100000; i++) {
		(void)snprintf(line, sizeof(line), "%d\n", i);
		assert_int_equal(pr_pg_copy_in_put(pg, line, strlen(line), &err), 0);
	}
	res = pr_pg_copy_in_end(pg, &err);
	assert_non_null(res);
	assert_string_equal(PQgetvalue(res, 0, 0), "100000");
	PQclear(res);
	assert_string_equal(value_of(pg, "SELECT sum(n) FROM copied"), "4999950000");
	pr_pg_close(pg);
}

/* The server's words come through, nothing is there, and the connection lives. */
static void copy_in_errors(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE copied (n int CHECK (n < 5))");
	assert_int_equal(copy_in(pg, "COPY copied FROM STDIN", "1\nx\n", &err), -1);
	assert_err(&err, PR_REJECT, "22P02");
	assert_int_equal(copy_in(pg, "BEGIN; COPY copied FROM STDIN; COMMIT", "1\n9\n", &err), -1);
	assert_err(&err, PR_REJECT, "23514");
	run_ok(pg, "ROLLBACK");
	assert_int_equal(copy_in(pg, "COPY no_such_table FROM STDIN; SELECT 1", "", &err), -1);
	assert_err(&err, PR_STOP, "42P01");
	assert_int_equal(copy_in(pg, "SELECT 1/0; COPY copied FROM STDIN", "", &err), -1);
	assert_err(&err, PR_REJECT, "22012");
	assert_int_equal(copy_in(pg, "SELECT 1; SELECT 2", "", &err), -1);
	assert_err(&err, PR_STOP, "copy");
	assert_int_equal(pr_pg_copy_in_put(pg, "1\n", 2, &err), -1); /* none is open */
	assert_null(pr_pg_copy_in_end(pg, &err));
	assert_string_equal(value_of(pg, "SELECT count(*) FROM copied"), "0");
	assert_int_equal(pr_pg_copy_in_begin(pg, "COPY copied FROM STDIN", &err), 0);
	run_fails(pg, "SELECT 1", PR_STOP, "copy"); /* left before its end: nobody knows what is there */
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
}

static int no_memory;

/* Before libpq's own: without memory it queues nothing, says 0, and that is no -1. */
int PQputCopyData(PGconn *conn, const char *data, int n)
{
	int (*real)(PGconn *, const char *, int);

	if (no_memory)
		return 0;
	*(void **)&real = dlsym(RTLD_NEXT, "PQputCopyData");
	return real(conn, data, n);
}

/* What libpq could not queue was taken for sent: 128 KB of a COPY were missing, and it went on. */
static void copy_in_without_memory(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct pr_err err = { 0 };
	int rc;

	(void)state;
	run_ok(pg, "CREATE TEMP TABLE copied (n int)");
	assert_int_equal(pr_pg_copy_in_begin(pg, "COPY copied FROM STDIN", &err), 0);
	no_memory = 1;
	rc = pr_pg_copy_in_put(pg, "1\n", 2, &err);
	no_memory = 0;
	assert_int_equal(rc, -1);
	assert_int_equal(err.kind, PR_RETRY);
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
}

/* A server that does not read fills no memory of ours, and is not waited for past the deadline; nor is one
 * that is gone. */
static void copy_in_frozen_and_killed(void **state)
{
	static char rows[1 << 20];
	struct pr_pg *pg = open_ok(2 * PR_SEC, -1), *killer;
	int pid = PQbackendPID(pr_pg_conn(pg)), rc;
	struct pr_err err = { 0 };
	int64_t start;
	char sql[80];

	(void)state;
	for (size_t i = 0; i < sizeof(rows); i++)
		rows[i] = i % 8 == 7 ? '\n' : '1';
	run_ok(pg, "CREATE TEMP TABLE copied (n int)");
	assert_int_equal(pr_pg_copy_in_begin(pg, "COPY copied FROM STDIN", &err), 0);
	if (!freeze(pg)) {
		pr_pg_close(pg);
		skip();
	}
	do {
		start = pr_mono_us();
		rc = pr_pg_copy_in_put(pg, rows, sizeof(rows), &err);
	} while (rc == 0);
	assert_err(&err, PR_RETRY, "timeout");
	assert_took(start, 2 * PR_SEC, 2 * PR_SEC + SLACK);
	(void)kill(pid, SIGCONT);
	pr_pg_close(pg);
	pg = open_ok(5 * PR_SEC, -1);
	killer = open_ok(5 * PR_SEC, -1);
	run_ok(pg, "CREATE TEMP TABLE copied (n int)");
	assert_int_equal(pr_pg_copy_in_begin(pg, "COPY copied FROM STDIN", &err), 0);
	(void)snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)", PQbackendPID(pr_pg_conn(pg)));
	run_ok(killer, sql);
	while ((rc = pr_pg_copy_in_put(pg, rows, sizeof(rows), &err)) == 0)
		;
	assert_int_equal(err.kind, PR_RETRY);
	assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
	pr_pg_close(killer);
}

/* --- a connection cut after every so many bytes --- */

struct cutter {
	struct sockaddr_storage to;
	socklen_t to_len;
	int family, listener;
	int floods;  /* the end is not a cut but a flood of notices */
	long budget; /* bytes from the server that pass, then both sides are closed */
	long passed; /* read after the join */
};

/* The word "flood" from the client stays here. */
static int pump(int from, int to, long *budget)
{
	char buf[4096];
	size_t most = budget && *budget < (long)sizeof(buf) ? (size_t)*budget : sizeof(buf);
	ssize_t n = read(from, buf, most);

	if (n <= 0 || (!budget && memmem(buf, (size_t)n, "flood", 5)))
		return -1;
	if (send(to, buf, (size_t)n, MSG_NOSIGNAL) != n)
		return -1;
	if (budget)
		*budget -= n;
	return budget && *budget <= 0 ? -1 : 0;
}

/* Empty notices, as fast as they are taken. */
static void flood(int fd)
{
	static char notices[6000];

	for (size_t i = 0; i < sizeof(notices); i += 6)
		memcpy(notices + i, "N\0\0\0\5\0", 6);
	while (send(fd, notices, sizeof(notices), MSG_NOSIGNAL) == (ssize_t)sizeof(notices))
		;
}

static void *cut_connection(void *arg)
{
	struct cutter *c = arg;
	long budget = c->budget;
	struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };

	fds[0].fd = accept(c->listener, NULL, NULL);
	fds[1].fd = socket(c->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fds[0].fd >= 0 && connect(fds[1].fd, (struct sockaddr *)&c->to, c->to_len) == 0) {
		while (budget > 0 && poll(fds, 2, 10000) > 0) {
			if (fds[0].revents && pump(fds[0].fd, fds[1].fd, NULL) < 0)
				break;
			if (fds[1].revents && pump(fds[1].fd, fds[0].fd, &budget) < 0)
				break;
		}
	}
	c->passed = c->budget - budget;
	if (c->floods)
		flood(fds[0].fd);
	(void)close(fds[0].fd);
	(void)close(fds[1].fd);
	return NULL;
}

static void server_address(struct pr_pg *pg, struct cutter *c)
{
	const char *host = PQhost(pr_pg_conn(pg)), *port = PQport(pr_pg_conn(pg));

	if (host[0] == '/') {
		struct sockaddr_un *u = (struct sockaddr_un *)&c->to;

		c->family = u->sun_family = AF_UNIX;
		(void)snprintf(u->sun_path, sizeof(u->sun_path), "%s/.s.PGSQL.%s", host, port);
		c->to_len = sizeof(*u);
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)&c->to;

		c->family = in->sin_family = AF_INET;
		in->sin_port = htons((uint16_t)atoi(port));
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		c->to_len = sizeof(*in);
	}
}

/* Everything in one session; -1 at the first failure. The whole must be right or fail. */
static int whole_session(const char *info, struct pr_err *err)
{
	static const char *const sql[] = { "SELECT 1", "SELECT 1/0", "SELECT 3" };
	struct pr_pg *pg;
	PGresult *r[3] = { NULL };
	char *row;
	int len, rc, rows = 0;

	if (open_with(info, 10 * PR_SEC, -1, &pg, err) < 0)
		return -1;
	rc = pr_pg_run(pg, "BEGIN; SELECT repeat('y', 100); COMMIT", 0, NULL, err);
	for (int i = 0; rc == 0 && i < 2; i++) {
		rc = pr_pg_round_trip(pg, sql, 3, r, err);
		assert_int_equal(rc, -1);
		if (strcmp(err->code, "22012") == 0)
			rc = pr_pg_ok(pg) ? 0 : -1;
	}
	if (rc == 0 &&
		(rc = pr_pg_copy_begin(pg, "SELECT repeat('z', 30) FROM generate_series(1, 5)", err)) == 0) {
		while ((rc = pr_pg_copy_row(pg, &row, &len, err)) > 0) {
			assert_int_equal(len, 2 + 4 + 30);
			PQfreemem(row);
			rows++;
		}
		assert_true(rc < 0 || rows == 5);
	}
	if (rc < 0)
		assert_false(pr_pg_ok(pg));
	pr_pg_close(pg);
	return rc;
}

/* Story: poll(2) with no time left still says that a socket is readable, so a server that never
 * stopped sending, and never answered, kept a call waiting for ever. */
static void babbling_server(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1), *other;
	struct cutter c = { .budget = 1 << 20, .floods = 1 };
	struct pr_err err;
	pthread_t thread;
	char info[512];
	int64_t start;
	int port;

	(void)state;
	c.listener = loopback(8, &port);
	server_address(pg, &c);
	(void)snprintf(info, sizeof(info),
		"host=127.0.0.1 port=%d user='%s' password='%s' dbname='%s' sslmode=disable "
		"gssencmode=disable",
		port, PQuser(pr_pg_conn(pg)), PQpass(pr_pg_conn(pg)), PQdb(pr_pg_conn(pg)));
	assert_int_equal(pthread_create(&thread, NULL, cut_connection, &c), 0);
	if (open_with(info, PR_SEC, -1, &other, &err) < 0)
		fail_msg("%s", err.text);
	start = pr_mono_us();
	run_fails(other, "SELECT 'flood'", PR_RETRY, "timeout");
	assert_took(start, PR_SEC, PR_SEC + SLACK);
	start = pr_mono_us();
	pr_pg_close(other);
	assert_took(start, 0, SLACK);
	assert_int_equal(pthread_join(thread, NULL), 0);
	(void)close(c.listener);
	pr_pg_close(pg);
}

static void cut_anywhere(void **state)
{
	struct pr_pg *pg = open_ok(5 * PR_SEC, -1);
	struct cutter c = { .budget = 1 << 20 };
	char info[512];
	long whole = 0;
	int port;

	(void)state;
	c.listener = loopback(8, &port);
	server_address(pg, &c);
	(void)snprintf(info, sizeof(info),
		"host=127.0.0.1 port=%d user='%s' password='%s' dbname='%s' sslmode=disable "
		"gssencmode=disable",
		port, PQuser(pr_pg_conn(pg)), PQpass(pr_pg_conn(pg)), PQdb(pr_pg_conn(pg)));
	for (long cut = 0; cut < (whole ? whole : 1); cut += whole ? 11 : 0) {
		struct pr_err err = { 0 };
		pthread_t thread;
		int64_t start = pr_mono_us();
		int rc;

		c.budget = whole ? cut : c.budget;
		assert_int_equal(pthread_create(&thread, NULL, cut_connection, &c), 0);
		rc = whole_session(info, &err);
		assert_int_equal(pthread_join(thread, NULL), 0);
		if (!whole) { /* the first, uncut, tells how long a session is */
			assert_int_equal(rc, 0);
			whole = c.passed - 16; /* the lengths of numbers vary a little */
			assert_true(whole > 1000);
			continue;
		}
		if (rc == 0)
			fail_msg("cut after %ld of %ld bytes and nobody noticed", cut, whole);
		/* The division by zero may have been told before the cut: then it is the reason. */
		assert_true(err.kind == PR_RETRY || strcmp(err.code, "22012") == 0);
		assert_took(start, 0, 5 * PR_SEC);
	}
	(void)close(c.listener);
	pr_pg_close(pg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kinds),
		cmocka_unit_test(refused),
		cmocka_unit_test(silent_server),
		cmocka_unit_test(bad_conninfo),
		cmocka_unit_test(refused_by_server),
		cmocka_unit_test(first_host_is_off),
		cmocka_unit_test(session),
		cmocka_unit_test(several_statements),
		cmocka_unit_test(text_goes_through),
		cmocka_unit_test(error_fields),
		cmocka_unit_test(commit_of_failed_transaction),
		cmocka_unit_test(slow_statement),
		cmocka_unit_test(wake_up),
		cmocka_unit_test(backend_killed),
		cmocka_unit_test(frozen_server),
		cmocka_unit_test(frozen_server_does_not_read),
		cmocka_unit_test(copy_where_none_is_expected),
		cmocka_unit_test(round_trip),
		cmocka_unit_test(round_trip_error_in_the_middle),
		cmocka_unit_test(pipeline_is_one_transaction),
		cmocka_unit_test(pipeline_says_which_failed),
		cmocka_unit_test(round_trip_many_texts),
		cmocka_unit_test(round_trip_slots),
		cmocka_unit_test(round_trip_stale_plan),
		cmocka_unit_test(round_trip_killed),
		cmocka_unit_test(copy_rows),
		cmocka_unit_test(copy_errors),
		cmocka_unit_test(copy_killed),
		cmocka_unit_test(copy_frozen_and_woken),
		cmocka_unit_test(copy_longer_than_a_wait),
		cmocka_unit_test(copy_in_rows),
		cmocka_unit_test(copy_in_errors),
		cmocka_unit_test(copy_in_without_memory),
		cmocka_unit_test(copy_in_frozen_and_killed),
		cmocka_unit_test(babbling_server),
		cmocka_unit_test(cut_anywhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
