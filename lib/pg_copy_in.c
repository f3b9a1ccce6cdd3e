/* lib/pg_copy_in.c -- rows into a COPY. Refuses to queue more than a piece in memory: a server that does not
 * read is met by our deadline, and not by our buffer. */
#include "lib/pg_inner.h"

#include <string.h>

#define PIECE (128 * 1024)

/* The server has refused: what it says, with all results taken. */
static int refused(struct pr_pg *pg, const PGresult *res, int64_t deadline, struct pr_err *err)
{
	(void)pg_check_result(pg, "COPY", res, err);
	if (!pg->dead)
		PQclear(pg_collect(pg, "COPY", deadline, NULL));
	return -1;
}

/* Results of the statements before it go; each of them may have failed. */
static int await_copy(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	PGresult *res = NULL;
	int rc;

	while ((rc = pg_next_result(pg, deadline, &res, err)) > 0) {
		ExecStatusType status = PQresultStatus(res);

		if (status == PGRES_COPY_IN || (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK))
			rc = status == PGRES_COPY_IN ? 0 : refused(pg, res, deadline, err);
		PQclear(res);
		if (rc <= 0)
			return rc;
	}
	return rc < 0 ? -1 : pg_fail_code(err, PR_STOP, "copy", "the statement was no COPY FROM STDIN");
}

int pr_pg_copy_in_begin(struct pr_pg *pg, const char *sql, struct pr_err *err)
{
	int64_t timeout_us, deadline;

	if (pg_begin_call(pg, &timeout_us, &deadline, err) < 0)
		return -1;
	if (!PQsendQuery(pg->conn, sql))
		return pg_lost(pg, err);
	if (pg_flush(pg, deadline, err) < 0 || await_copy(pg, deadline, err) < 0)
		return -1;
	pg->copy.open = 1;
	pg->copy.timeout_us = timeout_us;
	return 0;
}

int pr_pg_copy_in_put(struct pr_pg *pg, const char *data, size_t n, struct pr_err *err)
{
	size_t part;

	if (pg->dead || !pg->copy.open)
		return pg_fail_code(err, PR_RETRY, "08003", "no COPY is open on this connection");
	for (; n > 0; data += part, n -= part) {
		part = n < PIECE ? n : PIECE;
		/* 0: it found no memory to queue it in. What the server says of a COPY that it refused is
		 * told by the end. */
		if (PQputCopyData(pg->conn, data, (int)part) != 1)
			return pg_lost(pg, err);
		if (pg_flush(pg, pg_deadline_of(pg->copy.timeout_us), err) < 0)
			return -1;
	}
	return 0;
}

PGresult *pr_pg_copy_in_end(struct pr_pg *pg, struct pr_err *err)
{
	int64_t deadline = pg_deadline_of(pg->copy.timeout_us);

	if (pg->dead || !pg->copy.open) {
		(void)pg_fail_code(err, PR_RETRY, "08003", "no COPY is open on this connection");
		return NULL;
	}
	pg->copy.open = 0;
	if (PQputCopyEnd(pg->conn, NULL) != 1) {
		(void)pg_lost(pg, err);
		return NULL;
	}
	if (pg_flush(pg, deadline, err) < 0)
		return NULL;
	return pg_collect(pg, "COPY", deadline, err);
}
