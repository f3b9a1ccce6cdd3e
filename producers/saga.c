/* producers/saga.c -- starts sagas and answers their commands through the SQL API on the caller's connection.
 * Refuses to log, to exit, to begin or end a transaction, and to include anything but libpq and outbox.h:
 * both are meant to be copied into other people's trees. */
#include "producers/saga.h"

#include <limits.h>
#include <stdio.h>

#define TEXT_OID 25
#define MOST     7

static int may_call(PGconn *conn, struct outbox_error *err)
{
#ifdef LIBPQ_HAS_PIPELINING
	if (PQpipelineStatus(conn) != PQ_PIPELINE_OFF)
		return outbox_refuse(err,
			"call the SQL functions of schema saga yourself, or leave pipeline mode",
			"the connection is in pipeline mode");
#endif
	return outbox_may_call(conn, 0, err);
}

/* One row of one call, to be cleared by the caller; NULL and *err otherwise. Texts go as binary parameters:
 * libpq would cut a text parameter at a NUL. */
static PGresult *call(
	PGconn *conn, const char *sql, const struct outbox_str *args, int n, struct outbox_error *err)
{
	static const Oid types[MOST] = { TEXT_OID, TEXT_OID, TEXT_OID, TEXT_OID, TEXT_OID, TEXT_OID,
		TEXT_OID };
	static const int formats[MOST] = { 1, 1, 1, 1, 1, 1, 1 };
	const char *values[MOST];
	int lengths[MOST];
	PGresult *res;

	if (may_call(conn, err) < 0)
		return NULL;
	for (int i = 0; i < n; i++) {
		if (args[i].s && args[i].len > INT_MAX) {
			(void)outbox_refuse(err, "", "an argument has %zu bytes, too many", args[i].len);
			return NULL;
		}
		if (args[i].s && memchr(args[i].s, '\0', args[i].len)) {
			(void)outbox_refuse(err, "", "an argument contains a NUL byte");
			return NULL;
		}
		values[i] = args[i].s;
		lengths[i] = (int)args[i].len;
	}
	res = PQexecParams(conn, sql, n, types, values, lengths, formats, 0);
	if (PQresultStatus(res) == PGRES_TUPLES_OK && PQntuples(res) == 1)
		return res;
	(void)outbox_failed(conn, res, err);
	PQclear(res);
	return NULL;
}

static int run(PGconn *conn, const char *sql, const struct outbox_str *args, int n, struct outbox_error *err)
{
	PGresult *res = call(conn, sql, args, n, err);

	PQclear(res);
	return res ? 0 : -1;
}

int saga_start(PGconn *conn, struct outbox_str name, struct outbox_str data, struct outbox_str id,
	char *ret_id, struct outbox_error *err)
{
	const struct outbox_str args[] = { name, data, id };
	PGresult *res =
		call(conn, "SELECT saga.start($1, coalesce($2, '{}')::jsonb, $3::uuid)", args, 3, err);

	if (!res)
		return -1;
	if (ret_id)
		(void)snprintf(ret_id, OUTBOX_ID_SIZE, "%s", PQgetvalue(res, 0, 0));
	PQclear(res);
	return 0;
}

int saga_barrier(PGconn *conn, const struct saga_command *cmd, struct outbox_str effect, int *ret_go,
	struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step, cmd->op, cmd->command_id, effect };
	PGresult *res =
		call(conn, "SELECT saga.barrier($1::uuid, $2, $3, $4::uuid, $5::jsonb)", args, 5, err);

	if (!res)
		return -1;
	*ret_go = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	return 0;
}

int saga_done(PGconn *conn, const struct saga_command *cmd, struct outbox_str reply, struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step, cmd->op, cmd->command_id, reply,
		cmd->reply_to };

	return run(conn, "SELECT saga.done($1::uuid, $2, $3, $4::uuid, coalesce($5, '{}')::jsonb, $6)", args,
		6, err);
}

int saga_refuse(PGconn *conn, const struct saga_command *cmd, struct outbox_str why, struct outbox_str reply,
	struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step, cmd->op, cmd->command_id, why, reply,
		cmd->reply_to };

	return run(conn, "SELECT saga.refuse($1::uuid, $2, $3, $4::uuid, $5, coalesce($6, '{}')::jsonb, $7)",
		args, 7, err);
}

int saga_fail(PGconn *conn, const struct saga_command *cmd, struct outbox_str why, struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step, cmd->op, cmd->command_id, why,
		cmd->reply_to };

	return run(conn, "SELECT saga.fail($1::uuid, $2, $3, $4::uuid, $5, $6)", args, 6, err);
}

int saga_effect(PGconn *conn, const struct saga_command *cmd, PGresult **ret_res, const char **ret,
	struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step };
	PGresult *res = call(conn, "SELECT saga.effect($1::uuid, $2)", args, 2, err);

	if (!res)
		return -1;
	*ret_res = res;
	*ret = PQgetisnull(res, 0, 0) ? NULL : PQgetvalue(res, 0, 0);
	return 0;
}

int saga_set_effect(
	PGconn *conn, const struct saga_command *cmd, struct outbox_str effect, struct outbox_error *err)
{
	const struct outbox_str args[] = { cmd->saga_id, cmd->step, effect };

	return run(conn, "SELECT saga.set_effect($1::uuid, $2, $3::jsonb)", args, 3, err);
}
