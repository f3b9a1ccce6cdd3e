/* producers/outbox.c -- publishes events through the SQL API on the caller's connection.
 * Refuses to log, to exit, to allocate, to begin or end a transaction, and to include anything but
 * libpq: it is meant to be copied into other people's trees. */
#include "producers/outbox.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

#define TEXT_OID  25
#define BYTEA_OID 17

/* Texts go as binary parameters of type text: libpq would cut a text parameter at a NUL. */
static const char publish_sql[] = "SELECT outbox.publish($2, $3, $4, $5::jsonb, $6::jsonb, $7, $8::uuid)";
static const char publish_bytes_sql[] =
	"SELECT outbox.publish_bytes($2, $3, $4, $5, $6::jsonb, $7, $8::uuid)";
static const char publish_at_sql[] =
	"SELECT outbox.publish_at($1::timestamptz, $2, $3, $4, $5::jsonb, $6::jsonb, $7, $8::uuid)";
static const char publish_bytes_at_sql[] =
	"SELECT outbox.publish_bytes_at($1::timestamptz, $2, $3, $4, $5, $6::jsonb, $7, $8::uuid)";

enum { PARAMS = 8, PAYLOAD = 4 };

static const char *const names[PARAMS] = { "at", "aggregatetype", "aggregateid", "type", "payload", "headers",
	"topic", "id" };

struct params {
	Oid types[PARAMS];
	const char *values[PARAMS];
	int lengths[PARAMS];
	int formats[PARAMS];
};

static void copy(char *to, size_t size, const char *from)
{
	size_t n = from ? strlen(from) : 0;

	while (n > 0 && from[n - 1] == '\n')
		n--;
	if (n >= size)
		n = size - 1;
	if (n > 0)
		memcpy(to, from, n);
	to[n] = '\0';
}

int outbox_refuse(struct outbox_error *err, const char *hint, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return -1;
	memset(err, 0, sizeof(*err));
	va_start(ap, fmt);
	(void)vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	copy(err->hint, sizeof(err->hint), hint);
	return -1;
}

/* What the connection says about itself; a broken one has no result to ask. */
static int broken(PGconn *conn, struct outbox_error *err)
{
	if (!err)
		return -1;
	memset(err, 0, sizeof(*err));
	copy(err->text, sizeof(err->text), PQerrorMessage(conn));
	err->retry = PQstatus(conn) != CONNECTION_OK;
	return -1;
}

/* Serialisation, deadlock, resources, locks, shutdown, connection: running it all again may help. */
static int may_retry(const char *sqlstate)
{
	static const char *const classes[] = { "08", "40", "53", "55", "57" };

	/* Not 55000: what is in a state in which it cannot be done stays in it. */
	for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++)
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return strcmp(sqlstate, "55000") != 0;
	return 0;
}

int outbox_failed(PGconn *conn, const PGresult *res, struct outbox_error *err)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	if (!state)
		return broken(conn, err);
	if (!err)
		return -1;
	memset(err, 0, sizeof(*err));
	copy(err->sqlstate, sizeof(err->sqlstate), state);
	copy(err->text, sizeof(err->text), PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY));
	copy(err->hint, sizeof(err->hint), PQresultErrorField(res, PG_DIAG_MESSAGE_HINT));
	err->retry = may_retry(state);
	return -1;
}

static int in_pipeline(const PGconn *conn)
{
#ifdef LIBPQ_HAS_PIPELINING
	return PQpipelineStatus(conn) != PQ_PIPELINE_OFF;
#else
	(void)conn;
	return 0;
#endif
}

int outbox_may_call(PGconn *conn, unsigned flags, struct outbox_error *err)
{
	switch (PQtransactionStatus(conn)) {
	case PQTRANS_INTRANS:
		return 0;
	case PQTRANS_IDLE:
		if (flags & OUTBOX_ALLOW_AUTOCOMMIT)
			return 0;
		return outbox_refuse(err,
			"send BEGIN first: it must be committed together with the rows it tells of",
			"no transaction is open");
	case PQTRANS_ACTIVE:
		if (in_pipeline(conn))
			return 0;
		return outbox_refuse(err, "fetch all results of the command before (PQgetResult until NULL)",
			"the connection is busy with another command");
	case PQTRANS_INERROR:
		return outbox_refuse(err, "send ROLLBACK and run the transaction again",
			"the transaction has failed before");
	case PQTRANS_UNKNOWN:
	default:
		return broken(conn, err);
	}
}

static int set_param(struct params *p, int i, struct outbox_str s, struct outbox_error *err)
{
	int bytes = p->types[i] == BYTEA_OID;

	p->values[i] = s.s;
	p->formats[i] = 1;
	if (!s.s)
		return 0;
	if (s.len > INT_MAX)
		return outbox_refuse(err, "store large data elsewhere and publish where it is",
			"%s has %zu bytes, too many", names[i], s.len);
	if (!bytes && memchr(s.s, '\0', s.len))
		return outbox_refuse(err,
			i == PAYLOAD ? "set format to OUTBOX_BYTES for a payload that is not JSON" : "",
			"%s contains a NUL byte", names[i]);
	p->lengths[i] = (int)s.len;
	return 0;
}

static int set_params(struct params *p, const struct outbox_event *ev, struct outbox_error *err)
{
	const struct outbox_str all[PARAMS] = { ev->at, ev->aggregatetype, ev->aggregateid, ev->type,
		ev->payload, ev->headers, ev->topic, ev->id };

	memset(p, 0, sizeof(*p));
	for (int i = 0; i < PARAMS; i++) {
		p->types[i] = i == PAYLOAD && ev->format == OUTBOX_BYTES ? BYTEA_OID : TEXT_OID;
		if (i >= 1 && i <= 3 && !all[i].s)
			return outbox_refuse(err, "aggregatetype, aggregateid and type are required",
				"%s is missing", names[i]);
		if (set_param(p, i, all[i], err) < 0)
			return -1;
	}
	return 0;
}

static const char *statement(const struct outbox_event *ev)
{
	if (ev->at.s)
		return ev->format == OUTBOX_BYTES ? publish_bytes_at_sql : publish_at_sql;
	return ev->format == OUTBOX_BYTES ? publish_bytes_sql : publish_sql;
}

static int take_id(PGconn *conn, const PGresult *res, char *ret_id, struct outbox_error *err)
{
	static const char in_order[] = "collect results in the order in which the commands were sent";

	switch ((int)PQresultStatus(res)) {
	case PGRES_TUPLES_OK:
		if (PQntuples(res) != 1 || PQgetlength(res, 0, 0) != OUTBOX_ID_SIZE - 1)
			break;
		if (ret_id)
			memcpy(ret_id, PQgetvalue(res, 0, 0), OUTBOX_ID_SIZE);
		return 0;
#ifdef LIBPQ_HAS_PIPELINING
	case PGRES_PIPELINE_ABORTED:
		return outbox_refuse(err, "look at the first error after the last sync, and send ROLLBACK",
			"not run: a command before it in the pipeline failed");
	case PGRES_PIPELINE_SYNC:
		return outbox_refuse(err, in_order, "the next result is a PQpipelineSync's, not a publish's");
#endif
	case PGRES_FATAL_ERROR:
	case PGRES_BAD_RESPONSE:
		return outbox_failed(conn, res, err);
	default:
		break;
	}
	return outbox_refuse(err, in_order, "this is not the result of a publish");
}

int outbox_publish(
	PGconn *conn, const struct outbox_event *ev, unsigned flags, char *ret_id, struct outbox_error *err)
{
	struct params p;
	PGresult *res;
	int rc;

	if (in_pipeline(conn))
		return outbox_refuse(
			err, "use outbox_send and outbox_result", "the connection is in pipeline mode");
	if (outbox_may_call(conn, flags, err) < 0 || set_params(&p, ev, err) < 0)
		return -1;
	res = PQexecParams(conn, statement(ev), PARAMS, p.types, p.values, p.lengths, p.formats, 0);
	rc = res ? take_id(conn, res, ret_id, err) : broken(conn, err);
	PQclear(res);
	return rc;
}

int outbox_send(PGconn *conn, const struct outbox_event *ev, unsigned flags, struct outbox_error *err)
{
	struct params p;

	if (outbox_may_call(conn, flags, err) < 0 || set_params(&p, ev, err) < 0)
		return -1;
	if (!PQsendQueryParams(conn, statement(ev), PARAMS, p.types, p.values, p.lengths, p.formats, 0))
		return broken(conn, err);
	return 0;
}

int outbox_result(PGconn *conn, char *ret_id, struct outbox_error *err)
{
	PGresult *res = PQgetResult(conn);
	int rc, sync;

	if (!res)
		return outbox_refuse(err,
			"call it once for each outbox_send, after the results of the commands before it",
			"there is no result to take");
	rc = take_id(conn, res, ret_id, err);
#ifdef LIBPQ_HAS_PIPELINING
	sync = PQresultStatus(res) == PGRES_PIPELINE_SYNC;
#else
	sync = 0;
#endif
	PQclear(res);
	/* A sync's result has no NULL after it: another PQgetResult would take the next command's. */
	while (!sync && (res = PQgetResult(conn)))
		PQclear(res);
	return rc;
}
