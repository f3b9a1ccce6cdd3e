/* consumers/handler_c.c -- calls a shared object's functions inside the lane's transaction. Refuses a
 * library of another ABI, and refuses to go on after a handler that ended the transaction: its effects
 * would be one commit and the offset another.
 *
 * How that is known without a round trip: libpq tells us every result on this connection (a libpq event
 * procedure), and with it the command tag. BEGIN and COMMIT have no business there; ROLLBACK may be a
 * ROLLBACK TO, but only of a handler that made a savepoint. */
#include "consumers/handler.h"
#include "consumers/hang.h"
#include "consumers/outcome.h"
#include "consumers/postrider_handler.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <dlfcn.h>
#include <errno.h>
#include <libpq-events.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SYMBOL        "postrider_handler"
#define V1_SIZE       (offsetof(struct postrider_handler, close) + sizeof(void (*)(void *)))
#define DRAIN_TIMEOUT (1 * PR_SEC) /* of a statement that the handler left running */

/* What went over the connection during one call. */
struct seen {
	int ended, savepoint;
	char sqlstate[6];
	char text[400];
};

struct handler {
	void *library;
	char deadline[80]; /* the statement that sets the server's, of this transaction */
	const struct postrider_handler *user;
	void *ctx;
	int opened, wake_fd;
	struct hang *hang;
	struct seen seen;

	/* views of the messages of one call; grow and stay */
	struct postrider_message *messages;
	const struct postrider_message **message_at;
	struct postrider_result *results;
	struct postrider_result **result_at;
	struct postrider_header *headers;
	size_t cap, headers_cap;
};

/* ---------------------------------------------------------------- open: is it one of ours? */

static int config_fail(struct pr_err *err, const char *fmt, ...) PR_PRINTF(2, 3);

static int config_fail(struct pr_err *err, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)pr_fail(err, PR_STOP, "%s", text);
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

static int load(struct handler *h, const char *path, struct pr_err *err)
{
	const char *why;

	if (!strchr(path, '/')) {
		(void)config_fail(err, "handler.library \"%s\" is no path", path);
		return pr_hint(err, "write it with its directory: \"/usr/lib/postrider/%s\" or \"./%s\"",
			path, path);
	}
	if (access(path, R_OK) < 0)
		return config_fail(err, "cannot load handler.library \"%s\": %s", path, strerror(errno));
	h->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!h->library) {
		why = dlerror();
		return config_fail(
			err, "cannot load handler.library \"%s\": %s", path, why ? why : "no reason given");
	}
	h->user = dlsym(h->library, SYMBOL);
	if (!h->user) {
		(void)config_fail(err, "handler.library \"%s\" exports no \"" SYMBOL "\"", path);
		return pr_hint(err, "it needs: const struct postrider_handler postrider_handler = { "
				    "POSTRIDER_HANDLER_V1, .handle = ... }; see postrider_handler.h");
	}
	return 0;
}

/* abi and size come first, for ever: nothing else is read before they are right. */
static int check_abi(const struct handler *h, const struct pr_consumer_conf *conf, struct pr_err *err)
{
	const char *path = conf->handler.library;

	if (h->user->abi != POSTRIDER_HANDLER_ABI) {
		(void)config_fail(err, "handler.library \"%s\" has ABI version %u, this consumer speaks %d",
			path, h->user->abi, POSTRIDER_HANDLER_ABI);
		return pr_hint(err, "build it again with this release's postrider_handler.h");
	}
	if (h->user->size < V1_SIZE) {
		(void)config_fail(err,
			"handler.library \"%s\" says its struct has %u bytes, version %d has %zu", path,
			h->user->size, POSTRIDER_HANDLER_ABI, V1_SIZE);
		return pr_hint(err, "begin the struct with POSTRIDER_HANDLER_V1");
	}
	if (!h->user->handle)
		return config_fail(err, "handler.library \"%s\" has no handle function", path);
	if (!conf->database.conninfo && !(h->user->flags & POSTRIDER_NO_DATABASE)) {
		(void)config_fail(
			err, "handler.library \"%s\" needs a database, and the config names none", path);
		return pr_hint(err,
			"set database.conninfo; or, when its handle works with conn = NULL, say so"
			" in its flags: POSTRIDER_NO_DATABASE");
	}
	if (conf->handler.undo && !(h->user->flags & POSTRIDER_CAN_UNDO)) {
		(void)config_fail(
			err, "handler.undo is true, but handler.library \"%s\" does not undo", path);
		return pr_hint(err, "its flags lack POSTRIDER_CAN_UNDO");
	}
	return 0;
}

static int user_open(struct handler *h, const struct handler_env *env, struct pr_err *err)
{
	const char *options = env->conf->handler.options ? env->conf->handler.options : "";
	char text[400] = "";
	int rc = POSTRIDER_OPENED;

	if (h->user->open)
		rc = h->user->open(options, env->lane, &h->ctx, text, sizeof(text));
	text[sizeof(text) - 1] = '\0';
	if (rc == POSTRIDER_OPENED) {
		h->opened = 1;
		return 0;
	}
	if (rc == POSTRIDER_OPEN_LATER)
		return pr_fail(
			err, PR_RETRY, "handler \"%s\" is not ready: %s", env->conf->handler.library, text);
	return config_fail(err, "handler \"%s\" refused its options: %s", env->conf->handler.library, text);
}

static void c_close(struct handler *h)
{
	if (!h)
		return;
	if (h->opened && h->user->close)
		h->user->close(h->ctx);
	if (h->library)
		(void)dlclose(h->library);
	free(h->messages);
	free(h->message_at);
	free(h->results);
	free(h->result_at);
	free(h->headers);
	free(h);
}

static int c_open(const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	struct handler *h;

	(void)pg;
	if (!env->conf->handler.library)
		return config_fail(err, "handler.library is not set");
	h = pr_calloc(1, sizeof(*h));
	h->wake_fd = env->wake_fd;
	h->hang = env->hang;
	(void)snprintf(h->deadline, sizeof(h->deadline), "SET LOCAL statement_timeout = %lld",
		(long long)(env->conf->handler.timeout_us / PR_MS + 1));
	if (load(h, env->conf->handler.library, err) < 0 || check_abi(h, env->conf, err) < 0 ||
		user_open(h, env, err) < 0) {
		c_close(h);
		return -1;
	}
	if (env->lane == 0)
		pr_log(PR_INFO, "handler loaded", KS("library", env->conf->handler.library),
			KS("name", h->user->name));
	*ret = h;
	return 0;
}

/* ---------------------------------------------------------------- messages, as the library sees them */

static void reserve(struct handler *h, size_t n, size_t headers)
{
	if (n > h->cap) {
		h->messages = pr_realloc(h->messages, n * sizeof(*h->messages));
		h->message_at = pr_realloc(h->message_at, n * sizeof(*h->message_at));
		h->results = pr_realloc(h->results, n * sizeof(*h->results));
		h->result_at = pr_realloc(h->result_at, n * sizeof(*h->result_at));
		h->cap = n;
	}
	if (headers > h->headers_cap) {
		h->headers = pr_realloc(h->headers, headers * sizeof(*h->headers));
		h->headers_cap = headers;
	}
}

static void view(struct postrider_message *v, struct postrider_header *headers, const struct message *m)
{
	struct origin o = message_origin(m);
	size_t n;
	const struct header *given = message_given_headers(m, &n);

	for (size_t i = 0; i < n; i++)
		headers[i] = (struct postrider_header){
			.name = given[i].name, .value = given[i].value, .size = given[i].len
		};
	*v = (struct postrider_message){ .id = m->id_text,
		.topic = o.topic,
		.offset = o.offset,
		.time_us = o.time_us,
		.key = m->key,
		.key_size = m->key_len,
		.payload = m->payload,
		.payload_size = m->payload_len,
		.type = m->type,
		.type_size = m->type_len,
		.headers = headers,
		.headers_count = n,
		.partition = o.partition,
		.attempts = m->attempts,
		.flags = (m->json ? POSTRIDER_IS_JSON : 0U) | (m->replay ? POSTRIDER_REPLAYED : 0U) };
	memcpy(v->uuid, m->id, sizeof(v->uuid));
}

static void views(struct handler *h, struct message *const *m, size_t n)
{
	size_t headers = 0, at = 0, given;

	for (size_t i = 0; i < n; i++, headers += given)
		(void)message_given_headers(m[i], &given);
	reserve(h, n, headers);
	memset(h->results, 0, n * sizeof(*h->results));
	for (size_t i = 0; i < n; i++) {
		view(&h->messages[i], h->headers_cap ? h->headers + at : NULL, m[i]);
		at += h->messages[i].headers_count;
		h->message_at[i] = &h->messages[i];
		h->result_at[i] = &h->results[i];
	}
}

/* ---------------------------------------------------------------- what goes over the connection */

static int starts(const char *tag, const char *word)
{
	return strncmp(tag, word, strlen(word)) == 0;
}

static void look_at_tag(struct seen *s, const char *tag)
{
	if (starts(tag, "SAVEPOINT"))
		s->savepoint = 1;
	else if (starts(tag, "ROLLBACK") && !starts(tag, "ROLLBACK PREPARED"))
		s->ended |= !s->savepoint;
	else if (starts(tag, "COMMIT") || starts(tag, "BEGIN") || starts(tag, "START TRANSACTION") ||
		 starts(tag, "PREPARE TRANSACTION"))
		s->ended = 1;
}

static void look_at_error(struct seen *s, const PGresult *res)
{
	const char *code = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

	/* Inside a failed transaction every further statement says 25P02: the first is the reason. */
	if (!code || (strcmp(code, "25P02") == 0 && s->sqlstate[0]))
		return;
	(void)snprintf(s->sqlstate, sizeof(s->sqlstate), "%s", code);
	(void)snprintf(s->text, sizeof(s->text), "%s", text ? text : "");
}

/* Stays registered with the connection; its instance data is set during a call only. */
static int on_event(PGEventId id, void *info, void *pass)
{
	const PGEventResultCreate *e = info;
	struct seen *s;

	(void)pass;
	if (id != PGEVT_RESULTCREATE)
		return 1;
	s = PQinstanceData(e->conn, on_event);
	if (!s)
		return 1;
	if (PQresultStatus(e->result) == PGRES_FATAL_ERROR)
		look_at_error(s, e->result);
	else
		look_at_tag(s, PQcmdStatus(e->result));
	return 1;
}

/* Reads what a statement left to come. 0, or -1: it did not end, and the connection is no use. */
static int drain(PGconn *conn)
{
	int64_t deadline = pr_mono_us() + DRAIN_TIMEOUT;
	PGresult *res;

	while (PQstatus(conn) == CONNECTION_OK && PQtransactionStatus(conn) == PQTRANS_ACTIVE) {
		struct pollfd p = { .fd = PQsocket(conn), .events = POLLIN };

		if (PQisBusy(conn)) {
			if (poll(&p, 1, pr_until_ms(deadline)) == 0 || !PQconsumeInput(conn))
				return -1;
			continue;
		}
		res = PQgetResult(conn);
		if (PQresultStatus(res) == PGRES_COPY_IN || PQresultStatus(res) == PGRES_COPY_OUT ||
			PQresultStatus(res) == PGRES_COPY_BOTH) {
			PQclear(res);
			return -1;
		}
		PQclear(res);
	}
	return PQstatus(conn) == CONNECTION_OK ? 0 : -1;
}

/* ---------------------------------------------------------------- run */

/* Into the user's code, with n of the views that begin with m. */
static int enter(struct handler *h, PGconn *conn, enum op op, const struct message *m, size_t n)
{
	int rc;

	hang_begin(h->hang, m, n);
	rc = h->user->handle(
		h->ctx, conn, op == OP_UNDO ? POSTRIDER_UNDO : POSTRIDER_DO, h->message_at, n, h->result_at);
	hang_end(h->hang);
	return rc;
}

static int call(struct handler *h, PGconn *conn, enum op op, const struct message *m, size_t n)
{
	int blocking = !PQisnonblocking(conn), rc;

	h->seen = (struct seen){ 0 };
	(void)PQregisterEventProc(conn, on_event, SYMBOL, NULL); /* 0 when it is registered already */
	(void)PQsetInstanceData(conn, on_event, &h->seen);
	(void)PQsetnonblocking(conn, 0);
	rc = enter(h, conn, op, m, n);
	if (!blocking && PQstatus(conn) == CONNECTION_OK)
		(void)PQsetnonblocking(conn, 1);
	return rc;
}

/* A statement that was cancelled ran into handler.timeout, or somebody thought that it should. */
static void sql_fail(struct outcome *o, const char *code, const char *text)
{
	int cancelled = strcmp(code, "57014") == 0;

	outcome_fail(o, cancelled ? PR_FAIL_TIMEOUT : PR_FAIL_SQLSTATE, cancelled ? "" : code, "%s", text);
}

static void result_fail(struct outcome *o, struct postrider_result *r)
{
	const char *text = *r->text ? r->text : "no message given";

	r->code[sizeof(r->code) - 1] = '\0';
	r->text[sizeof(r->text) - 1] = '\0';
	if (r->status == POSTRIDER_FAILED_SQL && strlen(r->code) == 5)
		sql_fail(o, r->code, text);
	else
		outcome_fail(o, PR_FAIL_REPLY,
			*r->code && strcmp(r->code, "behind") != 0 ? r->code : "failed", "%s", text);
	if (r->retry_after_ms > 0)
		o->retry_after_us =
			r->retry_after_ms < INT64_MAX / PR_MS ? r->retry_after_ms * PR_MS : INT64_MAX;
}

/* The first result that failed; n: none. */
static size_t first_failed(const struct handler *h, size_t n)
{
	size_t i = 0;

	while (i < n && h->results[i].status == POSTRIDER_OK)
		i++;
	return i;
}

/* The connection after the call: 0, or -1 with err when there is no transaction to go on with. */
static int check_connection(struct handler *h, PGconn *conn, int *left, struct pr_err *err)
{
	*left = PQtransactionStatus(conn) == PQTRANS_ACTIVE;
	if (PQpipelineStatus(conn) != PQ_PIPELINE_OFF || (*left && drain(conn) < 0)) {
		if (PQsocket(conn) >= 0)
			(void)shutdown(PQsocket(conn), SHUT_RDWR);
		(void)PQconsumeInput(conn);
		return pr_fail(err, PR_RETRY, "the handler left the connection in the middle of a statement");
	}
	if (PQstatus(conn) != CONNECTION_OK) {
		(void)pr_fail(err, PR_RETRY, "the connection was lost inside the handler: %s",
			h->seen.text[0] ? h->seen.text : PQerrorMessage(conn));
		(void)snprintf(
			err->code, sizeof(err->code), "%s", h->seen.sqlstate[0] ? h->seen.sqlstate : "08006");
		return -1;
	}
	if (PQtransactionStatus(conn) == PQTRANS_IDLE || h->seen.ended) {
		/* Configuration, not a failure to try again: each try would commit its effects once more. */
		(void)pr_fail(err, PR_STOP, "the handler ended the transaction it was called in");
		err->exit = PR_EX_CONFIG;
		return pr_hint(err,
			"a C handler never sends BEGIN, COMMIT or ROLLBACK: the consumer commits its "
			"effects together with the offset");
	}
	return 0;
}

/* A statement that failed and that the handler said nothing about. */
static void statement_fail(const struct seen *seen, struct outcome *o)
{
	const char *code = seen->sqlstate[0] ? seen->sqlstate : "25P02";
	const char *text = seen->text[0] ? seen->text : "the handler left the transaction in error";

	sql_fail(o, code, text);
}

static int c_run(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
	struct outcome *out, struct pr_err *err)
{
	PGconn *conn = pr_pg_conn(pg);
	int rc, left;
	size_t bad;

	views(h, m, n);
	if (pr_pg_run(pg, h->deadline, 0, NULL, err) < 0)
		return -1;
	rc = call(h, conn, op, m[0], n);
	if (check_connection(h, conn, &left, err) < 0) {
		(void)PQsetInstanceData(conn, on_event, NULL);
		return -1;
	}
	(void)PQsetInstanceData(conn, on_event, NULL);
	bad = first_failed(h, n);
	if (bad < n)
		result_fail(&out[bad], &h->results[bad]);
	else if (PQtransactionStatus(conn) == PQTRANS_INERROR)
		statement_fail(&h->seen, &out[0]);
	else if (left)
		outcome_fail(&out[0], PR_FAIL_REPLY, "unfinished", "the handler left a statement unfinished");
	else if (rc != 0)
		outcome_fail(
			&out[0], PR_FAIL_REPLY, "failed", "the handler returned %d and named no message", rc);
	return 0;
}

/* ---------------------------------------------------------------- without a database */

static int stop_is_due(const struct handler *h)
{
	struct pollfd wake = { .fd = h->wake_fd, .events = POLLIN };

	return poll(&wake, 1, 0) > 0;
}

static int same_key(const struct message *a, const struct message *b)
{
	return a->key && b->key && a->key_len == b->key_len && memcmp(a->key, b->key, a->key_len) == 0;
}

/* Whether an earlier one of its key was not handled. */
static int is_behind(struct message *const *m, const struct outcome *out, size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (out[k].cls != PR_FAIL_NONE && same_key(m[k], m[i]))
			return 1;
	return 0;
}

/* Nothing is rolled back, so each message is a call of its own: it alone has failed when it has. */
static int c_run_outside(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
	struct outcome *out, struct pr_err *err)
{
	int rc, failed = 0;

	(void)pg;
	(void)err;
	for (size_t i = 0; i < n; i++) {
		if (stop_is_due(h) || (failed && is_behind(m, out, i))) {
			outcome_behind(&out[i]);
			continue;
		}
		views(h, m + i, 1);
		rc = enter(h, NULL, op, m[i], 1);
		if (h->results[0].status != POSTRIDER_OK)
			result_fail(&out[i], &h->results[0]);
		else if (rc != 0)
			outcome_fail(&out[i], PR_FAIL_REPLY, "failed",
				"the handler returned %d and named no message", rc);
		failed |= out[i].cls != PR_FAIL_NONE;
	}
	return 0;
}

const struct handler_ops handler_c_outside = {
	.kind = "c", .in_transaction = 0, .open = c_open, .close = c_close, .run = c_run_outside
};

const struct handler_ops handler_c = {
	.kind = "c", .in_transaction = 1, .open = c_open, .close = c_close, .run = c_run
};
