/* tests/support/ledger_handler.c -- the torture's C handler: books its messages with the SQL function that
 * the other members of the group are called with. Refuses nothing. */
#include "consumers/postrider_handler.h"

#include <stdint.h>

static int book(PGconn *conn, const struct postrider_message *m)
{
	static const char transfer[] = "SELECT book.transfer(ARRAY[$1::uuid], ARRAY[$2])";
	const char *values[2] = { m->id, m->key };
	const int lengths[2] = { 0, (int)m->key_size };
	const int formats[2] = { 0, 1 };
	const Oid types[2] = { 0, 25 };
	PGresult *res = PQexecParams(conn, transfer, 2, types, values, lengths, formats, 0);
	int rc = PQresultStatus(res) == PGRES_TUPLES_OK ? 0 : -1;

	PQclear(res);
	return rc;
}

static int ledger_handle(void *ctx, PGconn *conn, int op, const struct postrider_message *const *messages,
	size_t n, struct postrider_result *const *results)
{
	(void)ctx;
	(void)op;
	(void)results;
	for (size_t i = 0; i < n; i++)
		if (book(conn, messages[i]) < 0)
			return -1;
	return 0;
}

const struct postrider_handler postrider_handler = {
	POSTRIDER_HANDLER_V1,
	.name = "ledger",
	.handle = ledger_handle,
};
