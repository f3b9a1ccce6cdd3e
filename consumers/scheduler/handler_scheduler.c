/* consumers/scheduler/handler_scheduler.c -- the lanes' way to the timers: both operations are a function
 * over the batch, in the transaction of the offset. Refuses to look into a message: schema.sql does. */
#include "consumers/scheduler/scheduler.h"

#include "sql.h"

#include <stdlib.h>

struct handler {
	int none;
};

static int scheduler_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	if (kind_schema(env->conf, pg, "scheduler", sql_scheduler_schema, err) < 0)
		return -1;
	*ret = pr_calloc(1, sizeof(**ret));
	return 0;
}

static void scheduler_close(struct handler *h)
{
	free(h);
}

static const char *scheduler_statement(const struct handler *h, enum op op)
{
	(void)h;
	return op == OP_UNDO ? "SELECT scheduler.undo_messages($1::inbox.message[])"
			     : "SELECT scheduler.on_messages($1::inbox.message[])";
}

const struct handler_ops handler_scheduler = {
	.kind = "scheduler",
	.in_transaction = 1,
	.undoes = 1,
	.open = scheduler_open,
	.close = scheduler_close,
	.statement = scheduler_statement,
	.beside = scheduler_clock,
};
