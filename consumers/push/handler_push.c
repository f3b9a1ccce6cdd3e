/* consumers/push/handler_push.c -- the lanes' way to notifications and alerts: both operations are a function
 * over the batch, in the transaction of the offset. Refuses to look into a message: schema.sql does. */
#include "consumers/push/push.h"

#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct handler {
	int none;
};

/* What the functions need of the configuration. The last member that starts decides. */
static int tell_settings(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err)
{
	char window[40];

	(void)snprintf(window, sizeof(window), "%" PRId64 " microseconds", conf->alerts.window_us);
	return pr_pg_run(
		pg, sql_push_settings, 2, (const char *const[]){ window, conf->alerts.configs }, err);
}

static int push_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	if (kind_schema(env->conf, pg, "push", sql_push_schema, err) < 0 ||
		tell_settings(env->conf, pg, err) < 0)
		return -1;
	*ret = pr_calloc(1, sizeof(**ret));
	return 0;
}

static void push_close(struct handler *h)
{
	free(h);
}

static const char *push_statement(const struct handler *h, enum op op)
{
	(void)h;
	return op == OP_UNDO ? "SELECT push.undo_messages($1::inbox.message[])"
			     : "SELECT push.on_messages($1::inbox.message[])";
}

const struct handler_ops handler_push = {
	.kind = "push",
	.in_transaction = 1,
	.undoes = 1,
	.open = push_open,
	.close = push_close,
	.statement = push_statement,
	.beside = push_desk,
};
