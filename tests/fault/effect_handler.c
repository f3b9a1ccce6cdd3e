/* tests/fault/effect_handler.c -- a C handler for the fault tests: inserts each message into app.effect, and
 * does worse where app.poison says so: "segv" takes the process along, "wait" holds the transaction open
 * while the file named by its options is there. Refuses nothing else. */
#include "consumers/postrider_handler.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ctx: the path of the gate. */
static int effect_open(const char *options, int lane, void **ctx, char *error, size_t error_size)
{
	(void)lane;
	(void)snprintf(error, error_size, "out of memory");
	*ctx = strdup(options);
	return *ctx ? POSTRIDER_OPENED : POSTRIDER_OPEN_LATER;
}

static void misbehave(const char *how, const char *gate)
{
	if (strcmp(how, "segv") == 0)
		(void)raise(SIGSEGV);
	while (strcmp(how, "wait") == 0 && access(gate, F_OK) == 0)
		(void)usleep(1000);
}

static int one(PGconn *conn, const struct postrider_message *m, const char *gate)
{
	static const char poison[] = "SELECT how FROM app.poison WHERE key = $1"
				     " AND seq IN (-1, (convert_from($2, 'UTF8')::jsonb ->> 'seq')::int)";
	static const char effect[] = "INSERT INTO app.effect (id, key, seq) VALUES"
				     " ($3::uuid, $1, (convert_from($2, 'UTF8')::jsonb ->> 'seq')::int)";
	const char *values[3] = { m->key, m->payload, m->id };
	const int lengths[3] = { (int)m->key_size, (int)m->payload_size, 0 };
	const int formats[3] = { 1, 1, 0 };
	const Oid types[3] = { 25, 17, 25 };
	PGresult *res = PQexecParams(conn, poison, 2, types, values, lengths, formats, 0);
	int rc = -1;

	if (PQresultStatus(res) == PGRES_TUPLES_OK) {
		for (int i = 0; i < PQntuples(res); i++)
			misbehave(PQgetvalue(res, i, 0), gate);
		PQclear(res);
		res = PQexecParams(conn, effect, 3, types, values, lengths, formats, 0);
		rc = PQresultStatus(res) == PGRES_COMMAND_OK ? 0 : -1;
	}
	PQclear(res);
	return rc;
}

static int effect_handle(void *ctx, PGconn *conn, int op, const struct postrider_message *const *messages,
	size_t n, struct postrider_result *const *results)
{
	(void)op;
	(void)results;
	for (size_t i = 0; i < n; i++)
		if (one(conn, messages[i], ctx) < 0)
			return -1;
	return 0;
}

static void effect_close(void *ctx)
{
	free(ctx);
}

const struct postrider_handler postrider_handler = {
	POSTRIDER_HANDLER_V1,
	.name = "effect",
	.open = effect_open,
	.handle = effect_handle,
	.close = effect_close,
};
