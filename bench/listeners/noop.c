/* bench/listeners/noop.c -- a C handler that does nothing: what is left is the consumer's own cost. Refuses
 * nothing. Compiled by bench/consumers.py. */
#include "consumers/postrider_handler.h"

static int handle(void *ctx, PGconn *conn, int op, const struct postrider_message *const *messages, size_t n,
	struct postrider_result *const *results)
{
	(void)ctx;
	(void)conn;
	(void)op;
	(void)messages;
	(void)n;
	(void)results;
	return 0;
}

const struct postrider_handler postrider_handler = {
	POSTRIDER_HANDLER_V1,
	.name = "noop",
	.handle = handle,
};
