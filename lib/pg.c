/* lib/pg.c -- libpq, non-blocking, with a deadline and a wake-up fd on every wait.
 * Refuses to block, to print notices, to retry, and to go on after a missed deadline:
 * what the server did then is unknown, so the connection is dead and the caller asks anew. */
#include "lib/pg_inner.h"

#include "lib/clock.h"
#include "lib/pulse.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define DEFAULT_TIMEOUT (10 * PR_SEC)
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

void pg_set_code(struct pr_err *err, const char *code)
{
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", code);
}

/* pr_fail with a code, for errors that are ours and not the server's. */
int pg_fail_code(struct pr_err *err, enum pr_kind kind, const char *code, const char *text)
{
	(void)pr_fail(err, kind, "%s", text);
	pg_set_code(err, code);
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
	pg_set_code(err, "08006");
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
	pg_set_code(err, sqlstate ? sqlstate : "08006");
	if (hint)
		(void)pr_hint(err, "%s", hint);
	if (err && sqlstate && (strncmp(sqlstate, "28", 2) == 0 || strcmp(sqlstate, "42501") == 0))
		err->exit = PR_EX_NOPERM;
	return -1;
}

void pg_on_notice(void *arg, const PGresult *res)
{
	struct pr_pg *pg = arg;
	const char *code = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

	if (!code || !text || !kills(res, code))
		return;
	(void)snprintf(pg->fatal_code, sizeof(pg->fatal_code), "%s", code);
	(void)snprintf(pg->fatal_text, sizeof(pg->fatal_text), "%s", text);
}

/* Whoever makes a deadline is about to wait for it. */
int64_t pg_deadline_of(int64_t timeout_us)
{
	pr_pulse_wait(timeout_us);
	return pr_mono_us() + timeout_us;
}

int64_t pg_sane_timeout(int64_t timeout_us)
{
	if (timeout_us <= 0)
		return DEFAULT_TIMEOUT;
	return timeout_us < MAX_TIMEOUT ? timeout_us : MAX_TIMEOUT;
}

int pg_wait_socket(struct pr_pg *pg, short events, int64_t deadline, short *ret)
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

int pg_wait_answer(struct pr_pg *pg, short events, int64_t deadline, short *ret, struct pr_err *err)
{
	int rc;

	if (PQsocket(pg->conn) < 0)
		return pg_lost(pg, err);
	rc = pg_wait_socket(pg, events, deadline, ret);
	if (rc > 0)
		return 0;
	pg->dead = 1;
	if (rc < 0)
		return pg_fail_code(err, PR_RETRY, "interrupted", "interrupted while waiting for the server");
	return pg_fail_code(err, PR_RETRY, "timeout", "the server did not answer in time");
}

int pg_consume(struct pr_pg *pg)
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
		if (pg_wait_answer(pg, POLLIN | POLLOUT, deadline, &ready, err) < 0)
			return -1;
		if ((ready & (POLLIN | POLLHUP | POLLERR)) && pg_consume(pg) < 0)
			return pg_lost(pg, err);
	}
	return rc < 0 ? pg_lost(pg, err) : 0;
}

int pg_next_result(struct pr_pg *pg, int64_t deadline, PGresult **ret, struct pr_err *err)
{
	short ready;

	while (PQisBusy(pg->conn)) {
		if (PQstatus(pg->conn) == CONNECTION_BAD)
			break;
		if (pg_wait_answer(pg, POLLIN, deadline, &ready, err) < 0)
			return -1;
		if (pg_consume(pg) < 0)
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

PGresult *pg_collect(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err)
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
	return pg_collect(pg, sql, deadline, err);
}

int pg_run(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err)
{
	PGresult *res = query(pg, sql, 0, NULL, deadline, err);

	PQclear(res);
	return res ? 0 : -1;
}

long long pg_statement_timeout_ms(int64_t timeout_us)
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
	(void)snprintf(sql, sizeof(sql), "SET statement_timeout = %lld", pg_statement_timeout_ms(want));
	if (pg_run(pg, sql, deadline, err) < 0)
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
	*deadline = pg_deadline_of(*timeout_us);
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
	pg->override_us = timeout_us > 0 ? pg_sane_timeout(timeout_us) : 0;
}

int pr_pg_ok(const struct pr_pg *pg)
{
	return !pg->dead && PQstatus(pg->conn) == CONNECTION_OK;
}

PGconn *pr_pg_conn(struct pr_pg *pg)
{
	return pg->conn;
}

int pr_pg_idle(struct pr_pg *pg, int64_t timeout_us, struct pr_err *err)
{
	int64_t deadline = pg_deadline_of(timeout_us < MAX_TIMEOUT ? timeout_us : MAX_TIMEOUT);
	PGnotify *note;
	short ready;

	pg->late = 0;
	if (!pr_pg_ok(pg))
		return pg_lost(pg, err);
	for (;;) {
		int rc = pg_wait_socket(pg, POLLIN, deadline, &ready);

		if (rc <= 0)
			return rc < 0 ? 1 : 0;
		rc = pg_consume(pg);
		/* Parses what came: notices, changed parameters, the server's last words. */
		while ((note = PQnotifies(pg->conn)))
			PQfreemem(note);
		if (rc < 0 || PQstatus(pg->conn) == CONNECTION_BAD)
			return pg_lost(pg, err);
	}
}
