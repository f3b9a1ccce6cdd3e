/* lib/pg_pooler.c -- whether a pooler in between hands this session's server process to others (transaction
 * mode). Locks, settings and prepared statements of a session do not hold there, and ours would reach whoever
 * is given the process next. Refuses such a connection before anything is set on it; where the server itself
 * answers it is one question, and where nobody can tell it is taken. */
#include "lib/pg_inner.h"

#include <stdlib.h>
#include <string.h>

#define WHO "SELECT pg_catalog.pg_backend_pid()"

/* The server process that runs the statement, whose last part is WHO; -1: it does not tell. */
static int backend(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err)
{
	PGresult *res = NULL;
	int pid = -1;

	if (!PQsendQuery(pg->conn, sql))
		return pg_lost(pg, err);
	if (pg_flush(pg, deadline, err) == 0)
		res = pg_collect(pg, sql, deadline, err);
	if (res)
		pid = atoi(PQgetvalue(res, 0, 0));
	PQclear(res);
	return pid;
}

/* Another session keeps a process for the length of a transaction: if that is ours, or if ours is another one
 * afterwards, processes are given out anew for each transaction. */
static int is_shared(struct pr_pg *pg, struct pr_pg *other, int pid, int64_t deadline, int64_t soon)
{
	struct pr_err why = { 0 };
	int theirs = backend(other, "BEGIN; " WHO, soon, &why), ours = pid;

	if (strstr(why.text, "statement pooling")) /* it knows no transactions at all */
		return 1;
	if (theirs >= 0 && theirs != pid)
		ours = backend(pg, WHO, deadline, NULL);
	return theirs == pid || (ours >= 0 && ours != pid);
}

static int refuse(struct pr_err *err)
{
	(void)pg_fail_code(err, PR_STOP, "pooler",
		"a pooler in transaction mode is in between: it gives one server process to several "
		"sessions, so that locks and settings of a session do not hold");
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err,
		"name the server itself in the conninfo, or set pool_mode = session for this database "
		"in pgbouncer.ini");
}

/* A pool that has no second session to give within half our time leaves the question open. */
static int second_says_shared(struct pr_pg *pg, const struct pr_pg_opts *opts, int pid, int64_t deadline)
{
	int64_t now = pr_mono_us(), soon = now + (deadline - now) / 2;
	struct pr_pg *other = pr_calloc(1, sizeof(*other));
	int shared = 0;

	other->timeout_us = pg->timeout_us;
	other->wake_fd = pg->wake_fd;
	if (pg_connect(other, opts, soon, NULL) == 0)
		shared = is_shared(pg, other, pid, deadline, soon);
	else
		other->dead = 1;
	pr_pg_close(other);
	return shared;
}

int pg_check_pooler(struct pr_pg *pg, const struct pr_pg_opts *opts, int64_t deadline, struct pr_err *err)
{
	int pid = backend(pg, WHO, deadline, err);

	if (pid < 0)
		return -1;
	if (pid == PQbackendPID(pg->conn))
		return 0;
	/* A setting, everybody's default: some poolers keep a process for a session that has set one. */
	pid = backend(pg, "SET extra_float_digits = 1; " WHO, deadline, err);
	if (pid < 0)
		return -1;
	return second_says_shared(pg, opts, pid, deadline) ? refuse(err) : 0;
}
