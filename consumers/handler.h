/* consumers/handler.h -- what a kind of handler is to the runtime: a table of functions. One instance
 * per lane, used by that lane's thread only. */
#ifndef CONSUMERS_HANDLER_H
#define CONSUMERS_HANDLER_H

#include "consumers/message.h"

#include "lib/http.h"
#include "lib/pg.h"
#include "lib/policy.h"

#include <stdatomic.h>

enum op { OP_DO, OP_UNDO };

/* What became of one message; all zero: handled. */
struct outcome {
	enum pr_fail_class cls;
	char code[32];
	char text[600];         /* for people; goes into dead letters */
	int64_t retry_after_us; /* the other side asked for it; 0: it did not */
};

struct handler;

struct hang; /* hang.h */

struct handler_env {
	const struct pr_consumer_conf *conf;
	int lane;
	int wake_fd; /* readable: begin nothing more; every message not yet handled is left as "behind": it
			did not fail, and comes again */
	_Atomic int64_t *end_us; /* then: what is under way has until then (monotonic). NULL, or 0: no time */
	struct hang *hang;       /* told of each call that has no deadline of ours; NULL: nobody watches */
};

/* Once wake_fd is readable. */
static inline int64_t handler_end_us(const struct handler_env *env)
{
	return env->end_us ? atomic_load(env->end_us) : 0;
}

struct handler_ops {
	const char *kind; /* "sql", "c", "http", "exec", ... */

	/* The effects are rows in the lane's transaction: inbox, effects, outbox and offset are one commit.
	 * Otherwise they are outside, and may happen again after a crash; the message id goes along. */
	int in_transaction;

	/* Its statement for OP_UNDO undoes each message that is buried, whatever the config says. */
	int undoes;

	/* Checks what can be checked (function, ABI, executable) and makes an instance. PR_STOP with exit 78:
	 * the config is wrong. PR_RETRY: later. pg is the lane's connection. */
	int (*open)(
		const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err);
	void (*close)(struct handler *h); /* accepts NULL */

	/* in_transaction only, and optional: the statement that handles all messages at once, with one
	 * parameter, inbox.message[] in binary; it is sent in the same round trip as all the rest. NULL: run.
	 */
	const char *(*statement)(const struct handler *h, enum op op);

	/* Handles m[0..n) and fills out[0..n) (zeroed by the caller); keys may come more than once and are
	 * handled in order: after a failed message those of its key are not tried (left as PR_FAIL_REPLY,
	 * code "behind"). in_transaction: inside the open transaction of pg, all or nothing, and the first
	 * failed message is the only one filled; what cannot be told apart goes to out[0]. -1 with err only
	 * when pg itself broke. */
	int (*run)(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
		struct outcome *out, struct pr_err *err);

	/* Optional: a thread beside the lanes (its argument is the consumer): from their begin until
	 * stopping. */
	void *(*beside)(void *consumer);

	/* Optional: routes of its own (ended by method NULL), ctx NULL; and what their workers need
	 * (lib/http.h), made from the consumer. */
	const struct pr_route *routes;
	void *(*worker_open)(void *consumer);
	void (*worker_close)(void *worker);
};

/* A C handler without a connection: its effects are outside, and each message is a call. */
extern const struct handler_ops handler_c_outside;

extern const struct handler_ops handler_sql, handler_c, handler_http, handler_exec, handler_saga,
	handler_scheduler, handler_push, handler_sink, handler_canary;

#endif
