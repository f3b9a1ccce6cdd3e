/* producers/outbox.h -- publish an event inside your own transaction.
 *
 *	PGresult *r = PQexec(conn, "BEGIN");
 *	... your business rows, the aggregate's row lock among them ...
 *	struct outbox_event ev = {
 *		.aggregatetype = outbox_str("order"),
 *		.aggregateid = outbox_str("1234"),
 *		.type = outbox_str("OrderCreated"),
 *		.payload = outbox_str("{\"total\": 129900}"),
 *	};
 *	if (outbox_publish(conn, &ev, 0, id, &err) < 0)
 *		... err.text, err.hint; then ROLLBACK ...
 *	... COMMIT: the event leaves if and only if your rows stay ...
 *
 * Needs libpq and nothing else. Never logs, never exits, allocates nothing, keeps no state: any
 * number of threads, each on its own PGconn. Everything passed in is borrowed during the call.
 * Order: events of one aggregate leave in the order in which their transactions took the
 * aggregate's row lock, if they publish after taking it.
 * Cost: one round trip; none of its own in pipeline mode.
 * Waits as long as any PQexec of yours would: libpq has no deadline, so set statement_timeout
 * on the server and tcp_user_timeout in the conninfo. */
#ifndef OUTBOX_H
#define OUTBOX_H

#include <libpq-fe.h>
#include <stddef.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Text or bytes with a length; s == NULL: not given. Text that contains a NUL byte is refused,
 * never cut. */
struct outbox_str {
	const char *s;
	size_t len;
};

static inline struct outbox_str outbox_str(const char *s)
{
	struct outbox_str o = { s, s ? strlen(s) : 0 };

	return o;
}

static inline struct outbox_str outbox_bytes(const void *p, size_t len)
{
	struct outbox_str o = { (const char *)p, len };

	return o;
}

enum outbox_format {
	OUTBOX_JSON = 0,  /* payload is JSON text, stored as jsonb: key order and spaces are not kept */
	OUTBOX_BYTES = 1, /* payload is anything, stored and sent as it is */
};

/* Zero what you do not use. */
struct outbox_event {
	struct outbox_str aggregatetype; /* required; the default topic is outbox.event.<aggregatetype> */
	struct outbox_str aggregateid;   /* required; the Kafka key */
	struct outbox_str type;          /* required; what happened */
	struct outbox_str payload;       /* not given: a tombstone */
	enum outbox_format format;
	struct outbox_str headers; /* a JSON object */
	struct outbox_str topic;   /* overrides the route */
	struct outbox_str id;      /* a UUID; not given: a new UUIDv7 */
	struct outbox_str at; /* publish later: a timestamptz as text ("2030-01-01T09:00:00Z", "infinity") */
};

/* Why it failed. After an error of the server (sqlstate is set) the transaction is lost: ROLLBACK.
 * Without an sqlstate nothing was sent and the transaction stands, unless the connection broke. */
struct outbox_error {
	char sqlstate[6]; /* "" when the error is not the server's */
	int retry;        /* the whole transaction may succeed if run again */
	char text[512];   /* cut to fit */
	char hint[512];   /* what to do; "" when not known */
};

enum outbox_flags {
	/* Without it publishing outside a transaction is refused: the event would be committed on
	 * its own, whatever becomes of the business rows. */
	OUTBOX_ALLOW_AUTOCOMMIT = 1,
};

#define OUTBOX_ID_SIZE 37 /* 36 characters and the NUL */

/* Publishes and waits for the answer. 0, and the event's id in ret_id (may be NULL); or -1 and
 * *err (may be NULL). Not in pipeline mode. */
int outbox_publish(
	PGconn *conn, const struct outbox_event *ev, unsigned flags, char *ret_id, struct outbox_error *err);

/* The same in two halves, for pipeline mode (or PQsendQuery style). outbox_send queues; the caller
 * does PQpipelineSync and PQflush as for its own commands. In pipeline mode a BEGIN may still be
 * on its way: a connection with commands under way counts as inside a transaction. */
int outbox_send(PGconn *conn, const struct outbox_event *ev, unsigned flags, struct outbox_error *err);

/* Takes the results of one outbox_send, the NULL that ends them included; to be called in the
 * order of sending, among the caller's own PQgetResult calls. Blocks as PQgetResult does. */
int outbox_result(PGconn *conn, char *ret_id, struct outbox_error *err);

/* For faces of other SQL functions that speak as this one does (saga.c). */

/* 0: a transaction is open that stands, or none has to be (flags). -1 and *err otherwise. */
int outbox_may_call(PGconn *conn, unsigned flags, struct outbox_error *err);

/* -1, and *err is what the server said, or with a broken connection (res may be NULL) libpq. */
int outbox_failed(PGconn *conn, const PGresult *res, struct outbox_error *err);

/* -1, and *err is an error of ours: nothing was sent. */
#ifdef __GNUC__
__attribute__((format(printf, 3, 4)))
#endif
int outbox_refuse(struct outbox_error *err, const char *hint, const char *fmt, ...);

#ifdef __cplusplus
}
#endif
#endif
