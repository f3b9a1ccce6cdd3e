/* consumers/canary/handler_canary.c -- the lanes' way back: each event that is one of ours has come through.
 * Refuses to look into a message: its id is all that counts. */
#include "consumers/canary/canary.h"

#include "sql.h"

#include <stdio.h>
#include <stdlib.h>

struct handler {
	char statement[200];
};

static int canary_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	struct handler *h;

	if (kind_schema(env->conf, pg, "canary", sql_canary_schema, err) < 0)
		return -1;
	h = pr_calloc(1, sizeof(*h));
	/* A group's name has no quote in it: lib/consumer_conf.c. */
	(void)snprintf(h->statement, sizeof(h->statement),
		"SELECT canary.came_back($1::inbox.message[], '%s')", env->conf->group);
	*ret = h;
	return 0;
}

static void canary_close(struct handler *h)
{
	free(h);
}

/* One that is buried was not lost: it is late, and that was said. */
static const char *canary_statement(const struct handler *h, enum op op)
{
	(void)op;
	return h->statement;
}

const struct handler_ops handler_canary = {
	.kind = "canary",
	.in_transaction = 1,
	.open = canary_open,
	.close = canary_close,
	.statement = canary_statement,
	.beside = canary_keeper,
};
