/* tests/unit/handler_c_lib.c -- a C handler that does whatever the payload of its first message names; also
 * built in ways that must be refused (WRONG_ABI, SHORT, NO_HANDLE, NO_SYMBOL). */
#include <postrider_handler.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef NO_SYMBOL

extern const int another_symbol;
const int another_symbol = 1;

#else

static int exec(PGconn *conn, const char *sql)
{
	PGresult *res = PQexec(conn, sql);
	int ok = PQresultStatus(res) == PGRES_COMMAND_OK || PQresultStatus(res) == PGRES_TUPLES_OK;

	PQclear(res);
	return ok ? 0 : -1;
}

static int lib_open(const char *options, int lane, void **ctx, char *error, size_t error_size)
{
	if (strcmp(options, "refuse") == 0) {
		memset(error, 'x', error_size); /* and no NUL */
		return POSTRIDER_OPEN_REFUSED;
	}
	if (strcmp(options, "later") == 0) {
		snprintf(error, error_size, "not yet");
		return POSTRIDER_OPEN_LATER;
	}
	*ctx = malloc(sizeof(int));
	*(int *)*ctx = lane;
	return POSTRIDER_OPENED;
}

static void say(struct postrider_result *r, int status, const char *code, const char *text)
{
	r->status = status;
	snprintf(r->code, sizeof(r->code), "%s", code);
	snprintf(r->text, sizeof(r->text), "%s", text);
}

/* What a message looks like from inside. */
static void describe(
	const int *lane, PGconn *conn, int op, const struct postrider_message *m, struct postrider_result *r)
{
	char text[512];
	int len = snprintf(text, sizeof(text),
		"lane %d op %d id %s topic %s %d/%lld time %lld key %.*s type %.*s attempts %u flags %u uuid "
		"%02x%02x "
		"blocking %d",
		*lane, op, m->id, m->topic, m->partition, (long long)m->offset, (long long)m->time_us,
		(int)m->key_size, m->key ? m->key : "", (int)m->type_size, m->type, m->attempts, m->flags,
		m->uuid[0], m->uuid[15], !PQisnonblocking(conn));

	for (size_t i = 0; i < m->headers_count; i++)
		len += snprintf(text + len, sizeof(text) - (size_t)len, " %s=%.*s", m->headers[i].name,
			m->headers[i].value ? (int)m->headers[i].size : 6,
			m->headers[i].value ? m->headers[i].value : "(null)");
	say(r, POSTRIDER_FAILED, "seen", text);
}

static int is(const struct postrider_message *m, const char *what)
{
	return m->payload && m->payload_size == strlen(what) &&
	       memcmp(m->payload, what, m->payload_size) == 0;
}

__attribute__((unused)) static int handle(void *ctx, PGconn *conn, int op,
	const struct postrider_message *const *messages, size_t n, struct postrider_result *const *results)
{
	const struct postrider_message *m = messages[0];
	struct postrider_result *r = results[0];

	if (is(m, "describe"))
		describe(ctx, conn, op, m, r);
	else if (is(m, "tombstone next") && n == 2)
		say(results[1], POSTRIDER_FAILED, messages[1]->payload ? "value" : "tombstone", "");
	else if (is(m, "insert"))
		return exec(conn, "INSERT INTO handler_c VALUES (1)");
	else if (is(m, "second and third"))
		say(results[1], POSTRIDER_FAILED, "busy", "later"),
			results[1]->retry_after_ms = 1500, say(results[2], POSTRIDER_FAILED, "other", "");
	else if (is(m, "sqlstate"))
		say(r, POSTRIDER_FAILED_SQL, "23505", "twice");
	else if (is(m, "cancelled"))
		say(r, POSTRIDER_FAILED_SQL, "57014", "");
	else if (is(m, "behind"))
		say(r, POSTRIDER_FAILED, "behind", "");
	else if (is(m, "no end"))
		memset(r->code, 'c', sizeof(r->code)), memset(r->text, 't', sizeof(r->text)), r->status = 9;
	else if (is(m, "return"))
		return 5;
	else if (is(m, "error"))
		return exec(conn, "SELECT 1/0"), exec(conn, "SELECT 1"), 0;
	else if (is(m, "error told"))
		return exec(conn, "SELECT 1/0"), say(r, POSTRIDER_FAILED, "own", "words"), 0;
	else if (is(m, "savepoint"))
		return exec(conn, "SAVEPOINT a"), exec(conn, "SELECT 1/0"), exec(conn, "ROLLBACK TO a"),
		       exec(conn, "INSERT INTO handler_c VALUES (2)");
	else if (is(m, "sleep"))
		return exec(conn, "SELECT pg_sleep(30)");
	else if (is(m, "send"))
		return PQsendQuery(conn, "SELECT 1") ? 0 : -1;
	else if (is(m, "send long"))
		return PQsendQuery(conn, "SELECT pg_sleep(30)") && PQflush(conn) == 0 ? 0 : -1;
	else if (is(m, "pipeline"))
		return PQenterPipelineMode(conn) ? 0 : -1;
	else if (is(m, "copy"))
		return exec(conn, "COPY handler_c FROM STDIN");
	else if (is(m, "terminate"))
		return exec(conn, "SELECT pg_terminate_backend(pg_backend_pid())");
	else if (m->payload_size > 4 && memcmp(m->payload, "sql:", 4) == 0) {
		char *sql = strndup(m->payload + 4, m->payload_size - 4);
		int rc = exec(conn, sql);

		free(sql);
		return rc;
	}
	return 0;
}

static void lib_close(void *ctx)
{
	free(ctx);
}

const struct postrider_handler postrider_handler = {
#ifdef WRONG_ABI
	.abi = 2,
	.size = 4096,
#elif defined(SHORT)
	.abi = POSTRIDER_HANDLER_ABI,
	.size = 16,
#else
	POSTRIDER_HANDLER_V1,
#endif
#ifndef NO_HANDLE
	.handle = handle,
#endif
	.name = "test",
	.open = lib_open,
	.close = lib_close,
};

#endif
