/* consumers/sink/handler_sink.c -- kind sink for the runtime: its schema is there before anything is taken.
 * What it does with records is store_sink.c's, for its positions move by cuts and not by batches. Refuses to
 * handle a batch. */
#include "consumers/kind.h"
#include "consumers/sink/sink.h"

#include "sql.h"

#include <stdlib.h>

struct handler {
	int none;
};

static int sink_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	if (kind_schema(env->conf, pg, "sink", sql_sink_schema, err) < 0)
		return -1;
	*ret = pr_calloc(1, sizeof(**ret));
	return 0;
}

static void sink_close(struct handler *h)
{
	free(h);
}

const struct handler_ops handler_sink = {
	.kind = "sink",
	.open = sink_open,
	.close = sink_close,
};
