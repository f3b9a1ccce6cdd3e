/* consumers/kind.h -- what handler kinds share that bring a schema of their own (scheduler, push). */
#ifndef CONSUMERS_KIND_H
#define CONSUMERS_KIND_H

#include "consumers/consumer.h"

/* Once a process: brings the schema of that name to the text, in one transaction under the migrations' lock,
 * when conf->handler.install allows it and it is another text than the last that was run; its sum is the
 * schema's comment. Any further call only checks that this was done. PR_STOP: a schema of that name that is
 * not ours, or that we may not change. */
int kind_schema(const struct pr_consumer_conf *conf, struct pr_pg *pg, const char *schema, const char *text,
	struct pr_err *err) PR_MUSTCHECK;

#endif
