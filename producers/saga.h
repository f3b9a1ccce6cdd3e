/* producers/saga.h -- start sagas, and take part in them, inside your own transaction.
 *
 *	struct saga_command cmd = { ... the headers saga-id, saga-step, saga-op, saga-command-id ... };
 *	int go;
 *
 *	BEGIN
 *	if (saga_barrier(conn, &cmd, outbox_str("{\"taken\": 30}"), &go, &err) < 0)
 *		... err.text, err.hint; ROLLBACK ...
 *	if (go && is_do)
 *		... take 30; there are not:
 *		saga_refuse(conn, &cmd, outbox_str("not enough money"), none, &err);
 *	if (go && is_undo)
 *		... saga_effect says what the do took: give that back ...
 *	if (go)
 *		saga_done(conn, &cmd, outbox_str("{\"payment_id\": 7}"), &err);
 *	COMMIT
 *
 * go = 0: do nothing and COMMIT: a duplicate, an undo without its do, a do after its undo. What the
 * engine is to hear was published again by the barrier.
 *
 * Like producers/outbox.[ch], which it is copied together with: needs libpq and nothing else; never
 * logs, never exits, keeps no state: any number of threads, each on its own PGconn. Everything passed
 * in is borrowed during the call. One round trip each; not in pipeline mode. Outside a transaction a
 * call is refused. READ COMMITTED only. After an error with an sqlstate the transaction is lost:
 * ROLLBACK. */
#ifndef SAGA_H
#define SAGA_H

#include "producers/outbox.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A command as its record's headers tell it, passed on as they are. */
struct saga_command {
	struct outbox_str saga_id;
	struct outbox_str step;
	struct outbox_str op; /* "do" or "undo" */
	struct outbox_str command_id;
	struct outbox_str reply_to; /* not given: outbox.saga.inbox; repeats by the barrier always go there */
};

/* Asks the engine to start a saga: it does if and only if this transaction commits. data: a JSON object; not
 * given: {}. id: a UUID; not given: a new one. A second start of one id does nothing. ret_id may be NULL. */
int saga_start(PGconn *conn, struct outbox_str name, struct outbox_str data, struct outbox_str id,
	char *ret_id, struct outbox_error *err);

/* Whether to do it: *ret_go. Another call for the same step waits until this transaction ends. effect: JSON,
 * of a do: what it will change, for the undo to invert; may be not given, and be set later. */
int saga_barrier(PGconn *conn, const struct saga_command *cmd, struct outbox_str effect, int *ret_go,
	struct outbox_error *err);

/* The answer to what the barrier let through; one of the three. reply: a JSON object; not given: {}. */
int saga_done(
	PGconn *conn, const struct saga_command *cmd, struct outbox_str reply, struct outbox_error *err);
/* For good: nothing was changed and will be, however often it is asked. Of an undo the same as saga_fail. */
int saga_refuse(PGconn *conn, const struct saga_command *cmd, struct outbox_str why, struct outbox_str reply,
	struct outbox_error *err);
/* Nothing was changed; another time it may succeed. */
int saga_fail(PGconn *conn, const struct saga_command *cmd, struct outbox_str why, struct outbox_error *err);

/* What the do recorded, as JSON: *ret points into *ret_res, which the caller clears (PQclear) when 0 was
 * returned; *ret NULL: nothing. */
int saga_effect(PGconn *conn, const struct saga_command *cmd, PGresult **ret_res, const char **ret,
	struct outbox_error *err);
int saga_set_effect(
	PGconn *conn, const struct saga_command *cmd, struct outbox_str effect, struct outbox_error *err);

#ifdef __cplusplus
}
#endif
#endif
