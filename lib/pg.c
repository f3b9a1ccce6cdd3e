/* lib/pg.c -- libpq, non-blocking, with a deadline and a wake-up fd on every wait.
 * Refuses to block, to print notices, to retry, and to go on after a missed deadline:
 * what the server did then is unknown, so the connection is dead and the caller asks anew. */
#include "lib/pg_inner.h"

#include "lib/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define DEFAULT_TIMEOUT (10 * PR_SEC)
#define MAX_TIMEOUT     (24 * 3600 * PR_SEC)
#define MAX_LATE        64 /* reads of one call after its deadline */

enum pr_kind pr_pg_kind(const char *sqlstate)
{
	static const char retry[][3] = { "08", "40", "53", "55", "57" };
	static const char stop[][3] = { "28", "3D", "3F", "42" };

	if (!sqlstate || !*sqlstate || strcmp(sqlstate, "25006") == 0)
		return PR_RETRY;
	for (size_t i = 0; i < sizeof(retry) / sizeof(*retry); i++)
		if (strncmp(sqlstate, retry[i], 2) == 0)
			return PR_RETRY;
	for (size_t i = 0; i < sizeof(stop) / sizeof(*stop); i++)
		if (strncmp(sqlstate, stop[i], 2) == 0)
			return PR_STOP;
	return PR_REJECT;
}

static void set_code(struct pr_err *err, const char *code)
{
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", code);
}

/* pr_fail with a code, for errors that are ours and not the server's. */
int pg_fail_code(struct pr_err *err, enum pr_kind kind, const char *code, const char *text)
{
	(void)pr_fail(err, kind, "%s", text);
	set_code(err, code);
	return -1;
}

static int first_line(const char *s)
{
	return (int)strcspn(s, "\n");
}

/* libpq says that the connection is gone. The server's own reason is better than libpq's. */
int pg_lost(struct pr_pg *pg, struct pr_err *err)
{
	const char *said = PQerrorMessage(pg->conn);

	pg->dead = 1;
	if (pg->fatal_text[0])
		return pg_fail_code(err, PR_RETRY, pg->fatal_code, pg->fatal_text);
	(void)pr_fail(err, PR_RETRY, "%.*s", first_line(said), said);
	if (!*said)
		(void)pr_fail(err, PR_RETRY, "connection to the server was lost");
	set_code(err, "08006");
	return -1;
}

/* FATAL kills the session, and no SQLSTATE or class 08 means that libpq made the error itself. */
static int kills(const PGresult *res, const char *sqlstate)
{
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);

	if (!sqlstate || strncmp(sqlstate, "08", 2) == 0)
		return 1;
	return severity && (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0);
}

static int result_fail(struct pr_pg *pg, const PGresult *res, struct pr_err *err)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);

	if (kills(res, sqlstate))
		pg->dead = 1;
	if (!text)
		text = PQresultErrorMessage(res);
	if (detail)
		(void)pr_fail(err, pr_pg_kind(sqlstate), "%s (%s)", text, detail);
	else
		(void)pr_fail(err, pr_pg_kind(sqlstate), "%.*s", first_line(text), text);
	set_code(err, sqlstate ? sqlstate : "08006");
	if (hint)
		(void)pr_hint(err, "%s", hint);
	if (err && sqlstate && (strncmp(sqlstate, "28", 2) == 0 || strcmp(sqlstate, "42501") == 0))
		err->exit = PR_EX_NOPERM;
	return -1;
}

/* Notices are dropped; a FATAL that arrives while nothing is asked is remembered. */
static void on_notice(void *arg, const PGresult *res)
{
	struct pr_pg *pg = arg;
	const char *code = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

	if (!code || !text || !kills(res, code))
		return;
	(void)snprintf(pg->fatal_code, sizeof(pg->fatal_code), "%s", code);
	(void)snprintf(pg->fatal_text, sizeof(pg->fatal_text), "%s", text);
}

static int64_t deadline_of(int64_t timeout_us)
{
	return pr_mono_us() + timeout_us;
}

static int64_t sane_timeout(int64_t timeout_us)
{
	if (timeout_us <= 0)
		return DEFAULT_TIMEOUT;
	return timeout_us < MAX_TIMEOUT ? timeout_us : MAX_TIMEOUT;
}

/* Waits for the socket. 1: ready, 0: deadline passed, -1: woken. What is there after the deadline
 * is still read, it is we who were late (stopped, starved); but not for ever. */
static int wait_socket(struct pr_pg *pg, short events, int64_t deadline, short *ret)
{
	struct pollfd fds[2] = {
		{ .fd = PQsocket(pg->conn), .events = events },
		{ .fd = pg->wake_fd, .events = POLLIN },
	};
	int n, ms;

	do {
		ms = pr_until_ms(deadline);
		n = poll(fds, 2, ms);
	} while (n < 0 && errno == EINTR);
	if (n > 0 && fds[1].revents)
		return -1;
	*ret = fds[0].revents;
	return n > 0 && (ms != 0 || ++pg->late <= MAX_LATE);
}

/* Waits with an answer outstanding: whatever keeps us from it makes the connection useless. */
static int wait_answer(struct pr_pg *pg, short events, int64_t deadline, short *ret, struct pr_err *err)
{
	int rc;

	if (PQsocket(pg->conn) < 0)
		return pg_lost(pg, err);
	rc = wait_socket(pg, events, deadline, ret);
	if (rc > 0)
		return 0;
	pg->dead = 1;
	if (rc < 0)
		return pg_fail_code(err, PR_RETRY, "interrupted", "interrupted while waiting for the server");
	return pg_fail_code(err, PR_RETRY, "timeout", "the server did not answer in time");
}

/* Reads what has arrived. After a failure nothing that libpq does may wait on the socket. */
static int consume(struct pr_pg *pg)
{
	if (PQconsumeInput(pg->conn))
		return 0;
	pg->dead = 1;
	if (PQsocket(pg->conn) >= 0)
		(void)shutdown(PQsocket(pg->conn), SHUT_RDWR);
	return -1;
}

/* Reads while it writes: a server whose own output is stuck does not read. A failed write is
 * not an error yet, the server's reason may be waiting to be read. */
int pg_flush(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	short ready = 0;
	int rc;

	while ((rc = PQflush(pg->conn)) > 0) {
		if (wait_answer(pg, POLLIN | POLLOUT, deadline, &ready, err) < 0)
			return -1;
		if ((ready & (POLLIN | POLLHUP | POLLERR)) && consume(pg) < 0)
			return pg_lost(pg, err);
	}
	return rc < 0 ? pg_lost(pg, err) : 0;
}

/* The next result. 1: *ret, 0: no more of this statement, -1: deadline or wake-up. */
int pg_next_result(struct pr_pg *pg, int64_t deadline, PGresult **ret, struct pr_err *err)
{
	short ready;

	while (PQisBusy(pg->conn)) {
		if (PQstatus(pg->conn) == CONNECTION_BAD)
			break;
		if (wait_answer(pg, POLLIN, deadline, &ready, err) < 0)
			return -1;
		if (consume(pg) < 0)
			break;
	}
	/* With the connection broken this returns the reason as a result, without waiting. */
	*ret = PQgetResult(pg->conn);
	return *ret != NULL;
}

/* COMMIT of a failed transaction is a success to the protocol: only its tag says ROLLBACK. */
static int unasked_rollback(const char *sql, const PGresult *res)
{
	if (strcmp(PQcmdStatus((PGresult *)(uintptr_t)res), "ROLLBACK") != 0)
		return 0;
	sql += strspn(sql, " \t\r\n");
	if (strncasecmp(sql, "commit", 6) == 0 || strncasecmp(sql, "end", 3) == 0)
		return 1;
	return !strcasestr(sql, "rollback") && !strcasestr(sql, "abort");
}

int pg_check_result(struct pr_pg *pg, const char *sql, const PGresult *res, struct pr_err *err)
{
	switch (PQresultStatus(res)) {
	case PGRES_COMMAND_OK:
		if (unasked_rollback(sql, res))
			return pg_fail_code(err, PR_REJECT, "25P02",
				"the transaction was rolled back, a statement in it had failed");
		return 0;
	case PGRES_TUPLES_OK:
		return 0;
	case PGRES_FATAL_ERROR:
	case PGRES_BAD_RESPONSE:
	case PGRES_NONFATAL_ERROR:
		return result_fail(pg, res, err);
	case PGRES_EMPTY_QUERY:
		return pg_fail_code(err, PR_STOP, "empty", "empty statement");
	default:
		/* COPY wants data from us or has some for us: there is no way back from here. */
		pg->dead = 1;
		return pg_fail_code(err, PR_STOP, "copy", "a COPY statement where a plain one was expected");
	}
}

/* Takes every result of one query; gives the last one, or the first error. */
static PGresult *collect(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err)
{
	PGresult *last = NULL, *res;
	int failed = 0, rc;

	while ((rc = pg_next_result(pg, deadline, &res, failed ? NULL : err)) > 0) {
		if (!failed && pg_check_result(pg, sql, res, err) < 0)
			failed = 1;
		PQclear(last);
		last = res;
		if (failed && pg->dead)
			break;
	}
	if (rc == 0 && !failed && PQstatus(pg->conn) == CONNECTION_BAD)
		failed = pg_lost(pg, err);
	if (rc == 0 && !failed && !last)
		failed = pg_fail_code(err, PR_RETRY, "08006", "the server gave no answer");
	if (PQstatus(pg->conn) == CONNECTION_BAD)
		pg->dead = 1;
	if (rc >= 0 && !failed)
		return last;
	PQclear(last);
	return NULL;
}

static PGresult *query(struct pr_pg *pg, const char *sql, int n, const char *const *params, int64_t deadline,
	struct pr_err *err)
{
	int rc;

	if (n == 0)
		rc = PQsendQuery(pg->conn, sql);
	else
		rc = PQsendQueryParams(pg->conn, sql, n, NULL, params, NULL, NULL, 0);
	if (!rc) {
		(void)pg_lost(pg, err);
		return NULL;
	}
	if (pg_flush(pg, deadline, err) < 0)
		return NULL;
	return collect(pg, sql, deadline, err);
}

static int run(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err)
{
	PGresult *res = query(pg, sql, 0, NULL, deadline, err);

	PQclear(res);
	return res ? 0 : -1;
}

/* A little less than ours, so that a slow statement ends with the server's word for it and the
 * connection lives on; ours is for a server that cannot speak. Never 0, which means none. */
static long long statement_timeout_ms(int64_t timeout_us)
{
	int64_t slack = timeout_us / 10 < 500 * PR_MS ? timeout_us / 10 : 500 * PR_MS;
	int64_t ms = (timeout_us - slack) / PR_MS;

	return ms > 0 ? ms : 1;
}

/* A longer deadline of ours is worth nothing while the server's is short. A failed transaction
 * takes no SET, and no statement that could be slow either. */
static int match_server(struct pr_pg *pg, int64_t timeout_us, int64_t deadline, struct pr_err *err)
{
	int64_t want = timeout_us > pg->timeout_us ? timeout_us : pg->timeout_us;
	char sql[64];

	if (want == pg->server_us || PQtransactionStatus(pg->conn) == PQTRANS_INERROR)
		return 0;
	(void)snprintf(sql, sizeof(sql), "SET statement_timeout = %lld", statement_timeout_ms(want));
	if (run(pg, sql, deadline, err) < 0)
		return -1;
	/* A rollback would take it back behind our back: inside a transaction we do not know. */
	pg->server_us = PQtransactionStatus(pg->conn) == PQTRANS_IDLE ? want : 0;
	return 0;
}

/* A call is refused, and nothing sent, on a dead or busy connection and with the wake-up already there. */
static int may_start(struct pr_pg *pg, struct pr_err *err)
{
	struct pollfd wake = { .fd = pg->wake_fd, .events = POLLIN };

	if (!pr_pg_ok(pg)) {
		pg->dead = 1;
		return pg_fail_code(err, PR_RETRY, "08003", "the connection is closed");
	}
	if (pg->copy.open) {
		pg->dead = 1;
		return pg_fail_code(err, PR_STOP, "copy", "a COPY was left before its end");
	}
	if (pg->wake_fd >= 0 && poll(&wake, 1, 0) > 0)
		return pg_fail_code(err, PR_RETRY, "interrupted", "interrupted before asking the server");
	return 0;
}

int pg_begin_call(struct pr_pg *pg, int64_t *timeout_us, int64_t *deadline, struct pr_err *err)
{
	*timeout_us = pg->override_us ? pg->override_us : pg->timeout_us;
	*deadline = deadline_of(*timeout_us);
	pg->override_us = 0;
	pg->late = 0;
	if (may_start(pg, err) < 0)
		return -1;
	return match_server(pg, *timeout_us, *deadline, err);
}

PGresult *pr_pg_exec(struct pr_pg *pg, const char *sql, int n, const char *const *params, struct pr_err *err)
{
	int64_t timeout_us, deadline;

	if (pg_begin_call(pg, &timeout_us, &deadline, err) < 0)
		return NULL;
	return query(pg, sql, n, params, deadline, err);
}

int pr_pg_run(struct pr_pg *pg, const char *sql, int n, const char *const *params, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, n, params, err);

	PQclear(res);
	return res ? 0 : -1;
}

void pr_pg_timeout(struct pr_pg *pg, int64_t timeout_us)
{
	pg->override_us = timeout_us > 0 ? sane_timeout(timeout_us) : 0;
}

int pr_pg_ok(const struct pr_pg *pg)
{
	return !pg->dead && PQstatus(pg->conn) == CONNECTION_OK;
}

PGconn *pr_pg_conn(struct pr_pg *pg)
{
	return pg->conn;
}

/* --- connecting --- */

#define MAX_WORDS 64 /* libpq 15 knows 43 connection options */

struct words {
	const char *key[MAX_WORDS + 1], *value[MAX_WORDS + 1];
	int n;
};

static const char *word(const struct words *w, const char *key)
{
	for (int i = 0; i < w->n; i++)
		if (strcmp(w->key[i], key) == 0)
			return w->value[i];
	return NULL;
}

static void add_word(struct words *w, const char *key, const char *value)
{
	if (word(w, key) || w->n == MAX_WORDS)
		return;
	w->key[w->n] = key;
	w->value[w->n++] = value;
}

/* libpq's message would quote the string, and with it a password. */
static int parse_conninfo(const char *conninfo, PQconninfoOption **ret, struct words *w, struct pr_err *err)
{
	PQconninfoOption *all = PQconninfoParse(conninfo, NULL);

	if (!all) {
		(void)pr_fail(err, PR_STOP, "the connection string does not parse");
		(void)pr_hint(err,
			"write it like \"host=db dbname=app user=relay\" or \"postgresql://relay@db/app\"");
		if (err)
			err->exit = PR_EX_CONFIG;
		return -1;
	}
	/* UTF-8 is what we speak; ours is first, and the first of a name stays. */
	add_word(w, "client_encoding", "UTF8");
	for (PQconninfoOption *o = all; o->keyword; o++)
		if (o->val)
			add_word(w, o->keyword, o->val);
	*ret = all;
	return 0;
}

/* With several hosts a machine that is off must not eat the whole deadline: each gets a share,
 * and the kernel gives up on its SYN after tcp_user_timeout. */
static long long user_timeout_ms(const struct words *w, int64_t timeout_us)
{
	const char *hosts = word(w, "hostaddr") ? word(w, "hostaddr") : word(w, "host");
	int n = 1;

	for (; hosts && *hosts; hosts++)
		n += *hosts == ',';
	return timeout_us / PR_MS / (n > 1 ? n + 1 : 1) + 1;
}

/* One failed address's line: "... failed: FATAL:  28P01: text". NULL when it has no SQLSTATE. */
static const char *find_sqlstate(const char *line, size_t n)
{
	for (size_t i = 0; i + 10 <= n; i++)
		if (memcmp(line + i, ":  ", 3) == 0 &&
			strspn(line + i + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 &&
			line[i + 8] == ':')
			return line + i + 3;
	return NULL;
}

/* Why connecting failed; libpq tells it only as text, a line and perhaps more for every address. */
struct refusal {
	char text[sizeof(((struct pr_err *)0)->text)];
	char code[6];
	enum pr_kind kind;
	int addresses;
};

/* Adds one line, without the SQLSTATE and the place in the server's source that the verbose form
 * has. One address that may recover is enough to try again. */
static void add_line(struct refusal *r, const char *line, size_t n)
{
	const char *state = find_sqlstate(line, n);
	int head = (int)(state ? (size_t)(state - line) - 1 : n);
	int tail = state ? (int)(n - (size_t)(state + 7 - line)) : 0;
	size_t len = strlen(r->text);
	char code[6] = "";

	if (*line == '\t' || strncmp(line, "LOCATION:", 9) == 0)
		return;
	(void)snprintf(r->text + len, sizeof(r->text) - len, "%s%.*s%.*s", len ? "; " : "", head, line, tail,
		state ? state + 7 : "");
	if (!memmem(line, n, "failed: ", 8))
		return;
	(void)snprintf(code, sizeof(code), "%.5s", state ? state : "");
	if (r->addresses++ && pr_pg_kind(code) != PR_RETRY)
		return;
	r->kind = pr_pg_kind(code);
	memcpy(r->code, code, sizeof(code));
}

static int connect_fail(struct pr_pg *pg, struct pr_err *err)
{
	const char *p = PQerrorMessage(pg->conn);
	struct refusal r = { .kind = PR_RETRY };
	size_t n;

	for (; *p; p += n + (p[n] == '\n')) {
		n = strcspn(p, "\n");
		add_line(&r, p, n);
	}
	if (r.addresses <= 1 && PQconnectionNeedsPassword(pg->conn)) {
		r.kind = PR_STOP;
		memcpy(r.code, "28P01", 6);
	}
	(void)pr_fail(err, r.kind, "%s", r.text[0] ? r.text : "connecting to the server failed");
	set_code(err, r.code[0] ? r.code : "08001");
	if (strncmp(r.code, "28", 2) != 0)
		return -1;
	if (err)
		err->exit = PR_EX_NOPERM;
	return pr_hint(err, "check user and password (conninfo, PGPASSWORD or ~/.pgpass) and pg_hba.conf");
}

/* Failed before a first packet could be sent. It may be the network's fault, or the name server's;
 * else an option is wrong (a port, an sslmode, a service) and no waiting helps. */
static int start_fail(struct pr_pg *pg, struct pr_err *err)
{
	const char *text = PQerrorMessage(pg->conn);

	(void)connect_fail(pg, err);
	if (strstr(text, "failed: ") || strstr(text, "could not translate host name") ||
		strstr(text, "could not create socket"))
		return -1;
	if (err) {
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	return pr_hint(
		err, "correct the connection string, or the PG* variables and files that it is mixed with");
}

/* Names are looked up by getaddrinfo, which has its own time limit and not ours (see hostaddr). */
static int finish_connect(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	PostgresPollingStatusType st = PGRES_POLLING_WRITING;
	short ready;

	while (st != PGRES_POLLING_OK) {
		int rc;

		if (st == PGRES_POLLING_FAILED || PQsocket(pg->conn) < 0)
			return connect_fail(pg, err);
		rc = wait_socket(pg, st == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline, &ready);
		if (rc < 0)
			return pg_fail_code(err, PR_RETRY, "interrupted", "interrupted while connecting");
		if (rc == 0) {
			const char *host = PQhost(pg->conn), *port = PQport(pg->conn);

			(void)pr_fail(err, PR_RETRY, "no answer in time while connecting to %s port %s",
				host ? host : "?", port ? port : "?");
			set_code(err, "timeout");
			return -1;
		}
		st = PQconnectPoll(pg->conn);
	}
	return 0;
}

static int start_connect(
	struct pr_pg *pg, const struct pr_pg_opts *opts, int64_t deadline, struct pr_err *err)
{
	PQconninfoOption *parsed;
	struct words w = { .n = 0 };
	char user_timeout[24];
	int rc = -1;

	if (parse_conninfo(opts->conninfo, &parsed, &w, err) < 0)
		return -1;
	(void)snprintf(user_timeout, sizeof(user_timeout), "%lld", user_timeout_ms(&w, pg->timeout_us));
	add_word(&w, "application_name", opts->appname ? opts->appname : "postrider");
	add_word(&w, "keepalives", "1");
	add_word(&w, "keepalives_idle", "10");
	add_word(&w, "keepalives_interval", "5");
	add_word(&w, "keepalives_count", "3");
	add_word(&w, "tcp_user_timeout", user_timeout);
	pg->conn = PQconnectStartParams(w.key, w.value, 0);
	if (!pg->conn)
		abort(); /* out of memory, as everywhere in lib/ */
	(void)PQsetNoticeReceiver(pg->conn, on_notice, pg);
	(void)PQsetErrorVerbosity(pg->conn, PQERRORS_VERBOSE);
	rc = PQstatus(pg->conn) == CONNECTION_BAD ? start_fail(pg, err) : finish_connect(pg, deadline, err);
	(void)PQsetErrorVerbosity(pg->conn, PQERRORS_DEFAULT);
	PQconninfoFree(parsed);
	return rc;
}

/* The session that every statement of ours may rely on, whatever the role's and database's
 * settings say. The server also gives up on us when we are gone: our locks must not outlive us. */
static int set_session(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	char sql[1024];

	(void)snprintf(sql, sizeof(sql),
		"SET search_path = '';"
		"SET timezone = 'UTC';"
		"SET datestyle = 'ISO';"
		"SET intervalstyle = 'postgres';"
		"SET bytea_output = 'hex';"
		"SET extra_float_digits = 1;"
		"SET standard_conforming_strings = on;"
		"SET default_transaction_isolation = 'read committed';"
		"SET lock_timeout = 0;"
		"SET statement_timeout = %lld;"
		"SET idle_in_transaction_session_timeout = %lld;"
		"SET tcp_keepalives_idle = 10;"
		"SET tcp_keepalives_interval = 5;"
		"SET tcp_keepalives_count = 3;"
		"SET tcp_user_timeout = %lld",
		statement_timeout_ms(pg->timeout_us),
		(long long)(2 * pg->timeout_us / PR_MS > 60000 ? 2 * pg->timeout_us / PR_MS : 60000),
		(long long)(2 * pg->timeout_us / PR_MS + 1));
	if (run(pg, sql, deadline, err) < 0)
		return pr_wrap(err, "setting up the session");
	pg->server_us = pg->timeout_us;
	return 0;
}

int pr_pg_open(const struct pr_pg_opts *opts, struct pr_pg **ret, struct pr_err *err)
{
	struct pr_pg *pg = pr_calloc(1, sizeof(*pg));
	int64_t deadline;

	pg->timeout_us = sane_timeout(opts->timeout_us);
	pg->wake_fd = opts->wake_fd;
	deadline = deadline_of(pg->timeout_us);
	if (start_connect(pg, opts, deadline, err) < 0)
		goto out;
	if (PQsetnonblocking(pg->conn, 1) < 0) {
		(void)pg_lost(pg, err);
		goto out;
	}
	if (set_session(pg, deadline, err) < 0)
		goto out;
	*ret = pg;
	return 0;
out:
	pg->dead = 1;
	pr_pg_close(pg);
	return -1;
}

void pr_pg_close(struct pr_pg *pg)
{
	if (!pg)
		return;
	/* A farewell, TLS's too, is for a server that listens. */
	if (pg->dead && PQsocket(pg->conn) >= 0)
		(void)shutdown(PQsocket(pg->conn), SHUT_RDWR);
	PQfinish(pg->conn);
	for (int i = 0; i < MAX_STATEMENTS; i++)
		free(pg->statements[i].sql);
	free(pg);
}

/* --- COPY --- */

int pr_pg_copy_begin(struct pr_pg *pg, const char *query_text, struct pr_err *err)
{
	int64_t timeout_us, deadline;
	PGresult *res = NULL;
	char *sql;
	int rc;

	if (pg_begin_call(pg, &timeout_us, &deadline, err) < 0)
		return -1;
	sql = pr_asprintf("COPY (%s) TO STDOUT (FORMAT binary)", query_text);
	rc = PQsendQuery(pg->conn, sql);
	free(sql);
	if (!rc)
		return pg_lost(pg, err);
	if (pg_flush(pg, deadline, err) < 0 || (rc = pg_next_result(pg, deadline, &res, err)) < 0)
		return -1;
	if (rc == 0)
		return pg_lost(pg, err);
	if (PQresultStatus(res) == PGRES_COPY_OUT) {
		PQclear(res);
		pg->copy.open = 1;
		pg->copy.header_read = 0;
		pg->copy.timeout_us = timeout_us;
		return 0;
	}
	(void)pg_check_result(pg, "COPY", res, err);
	PQclear(res);
	if (!pg->dead)
		PQclear(collect(pg, "COPY", deadline, NULL));
	return -1;
}

/* Takes the header off the front of the first message; the server sends it glued to the first row
 * or to the trailer. -1 when it is not the header of a binary COPY. */
static int cut_header(char *row, int *len)
{
	static const char magic[] = "PGCOPY\n\377\r\n";
	uint32_t extension;
	size_t cut;

	if (*len < 19 || memcmp(row, magic, 11) != 0)
		return -1;
	memcpy(&extension, row + 15, 4);
	cut = 19 + (size_t)ntohl(extension);
	if (cut > (size_t)*len)
		return -1;
	*len -= (int)cut;
	memmove(row, row + cut, (size_t)*len);
	return 0;
}

/* After the last row: the statement's own result, which may be an error. */
static int end_copy(struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res;

	pg->copy.open = 0;
	res = collect(pg, "COPY", deadline_of(pg->copy.timeout_us), err);
	PQclear(res);
	return res ? 0 : -1;
}

static int await_row(struct pr_pg *pg, struct pr_err *err)
{
	short ready;

	if (wait_answer(pg, POLLIN, deadline_of(pg->copy.timeout_us), &ready, err) < 0)
		return -1;
	return consume(pg) < 0 ? pg_lost(pg, err) : 0;
}

int pr_pg_copy_row(struct pr_pg *pg, char **ret_row, int *ret_len, struct pr_err *err)
{
	if (pg->dead || !pg->copy.open)
		return pg_fail_code(err, PR_RETRY, "08003", "no COPY is open on this connection");
	for (;;) {
		char *row = NULL;
		int len = PQgetCopyData(pg->conn, &row, 1);

		if (len == 0) {
			if (await_row(pg, err) < 0)
				return -1;
			continue;
		}
		if (len < 0)
			return end_copy(pg, err);
		if (!pg->copy.header_read) {
			pg->copy.header_read = 1;
			if (cut_header(row, &len) < 0) {
				PQfreemem(row);
				pg->dead = 1;
				return pg_fail_code(
					err, PR_STOP, "copy", "what arrived is not a binary COPY");
			}
		}
		/* A row begins with its number of columns, which is -1 in the trailer. */
		if (len > 2 || (len > 0 && row[0] != '\377')) {
			*ret_row = row;
			*ret_len = len;
			return 1;
		}
		PQfreemem(row);
	}
}

/* --- idling --- */

int pr_pg_idle(struct pr_pg *pg, int64_t timeout_us, struct pr_err *err)
{
	int64_t deadline = deadline_of(timeout_us < MAX_TIMEOUT ? timeout_us : MAX_TIMEOUT);
	PGnotify *note;
	short ready;

	pg->late = 0;
	if (!pr_pg_ok(pg))
		return pg_lost(pg, err);
	for (;;) {
		int rc = wait_socket(pg, POLLIN, deadline, &ready);

		if (rc <= 0)
			return rc < 0 ? 1 : 0;
		rc = consume(pg);
		/* Parses what came: notices, changed parameters, the server's last words. */
		while ((note = PQnotifies(pg->conn)))
			PQfreemem(note);
		if (rc < 0 || PQstatus(pg->conn) == CONNECTION_BAD)
			return pg_lost(pg, err);
	}
}
