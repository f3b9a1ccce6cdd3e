/* lib/pg_pipe.c -- several statements in one round trip: pipeline mode, one implicit transaction up to each
 * sync. Refuses to run inside a transaction that has failed, and to leave answers behind. */
#include "lib/pg_inner.h"

#include <stdlib.h>
#include <string.h>

/* Finds the text's slot or gives it one that may be reused; -1 when all are prepared for others. */
static int find_slot(struct pr_pg *pg, const char *sql, int *ret_known)
{
	*ret_known = 1;
	for (int i = 0; i < MAX_STATEMENTS; i++)
		if (pg->statements[i].sql && strcmp(pg->statements[i].sql, sql) == 0)
			return i;
	*ret_known = 0;
	for (int i = 0; i < MAX_STATEMENTS; i++) {
		int slot = (int)(pg->next_slot++ % MAX_STATEMENTS);

		if (pg->statements[slot].state != SEEN)
			continue;
		free(pg->statements[slot].sql);
		pg->statements[slot].sql = pr_strdup(sql);
		return slot;
	}
	return -1;
}

/* Queues one statement. *ret_preparing is its slot when a Parse goes ahead, else -1. */
static int send_statement(struct pr_pg *pg, const struct pr_stmt *s, int *ret_preparing)
{
	int known, slot = find_slot(pg, s->sql, &known), ok = 1;
	char name[16];

	*ret_preparing = -1;
	(void)snprintf(name, sizeof(name), "pr_%d", slot);
	if (slot < 0 || !known) {
		ok = PQsendQueryParams(
			pg->conn, s->sql, s->n, s->types, s->values, s->lengths, s->formats, 0);
	} else {
		if (pg->statements[slot].state == SEEN) {
			pg->statements[slot].state = PREPARING;
			*ret_preparing = slot;
			ok = PQsendPrepare(pg->conn, name, s->sql, s->n, s->types);
		}
		ok = ok && PQsendQueryPrepared(pg->conn, name, s->n, s->values, s->lengths, s->formats, 0);
	}
	return ok && (!s->sync || PQpipelineSync(pg->conn)) ? 0 : -1;
}

/* A prepared text that the server no longer takes as prepared (a changed table, DISCARD ALL) is
 * not the statement's fault: a new connection prepares it anew. Functions raise 0A000 too: then it is theirs.
 */
static void forgive_stale(struct pr_pg *pg, const PGresult *res, struct pr_err *err)
{
	const char *code = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *where = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION);

	if (!code || (strcmp(code, "0A000") != 0 && strcmp(code, "26000") != 0))
		return;
	if (*code == '0' && where && strcmp(where, "RevalidateCachedQuery") != 0)
		return;
	pg->dead = 1;
	if (err) {
		err->kind = PR_RETRY;
		err->exit = PR_EX_UNAVAILABLE;
	}
}

struct round {
	struct pr_pg *pg;
	struct pr_stmt *s;
	int n, at; /* at: the statement whose results come next */
	int preparing[MAX_STATEMENTS];
	int synced;
	int failed; /* first statement that failed; n: none */
};

/* A statement is done with; the next result is of the one after it, or the sync. */
static void sort_in(struct round *r, PGresult *res, struct pr_err *err)
{
	ExecStatusType st = PQresultStatus(res);
	int in_sync = r->at > 0 && r->s[r->at - 1].sync && !r->synced, i = in_sync ? r->at - 1 : r->at;
	int *preparing = i < r->n ? &r->preparing[i] : NULL;
	int ok = st == PGRES_TUPLES_OK || st == PGRES_COMMAND_OK;

	if (st == PGRES_PIPELINE_SYNC) {
		r->synced = 1;
	} else if (!in_sync && preparing && *preparing >= 0) {
		r->pg->statements[*preparing].state = ok ? PREPARED : SEEN;
		*preparing = -1;
	} else if (!in_sync) {
		r->at++;
		r->synced = 0;
	}
	if (st != PGRES_PIPELINE_SYNC && st != PGRES_PIPELINE_ABORTED && r->failed == r->n && i < r->n &&
		pg_check_result(r->pg, r->s[i].sql, res, err) < 0) {
		forgive_stale(r->pg, res, err);
		r->failed = i;
		r->s[i].at_end = in_sync;
	}
	if (ok && r->at == i + 1 && !r->s[i].res)
		r->s[i].res = res;
	else
		PQclear(res);
}

/* Every transaction ends with a sync, answered also after an error; a NULL only ends a statement's results.
 */
static int collect_round(struct round *r, int64_t deadline, struct pr_err *err)
{
	struct pr_pg *pg = r->pg;
	int nulls = 0;
	PGresult *res;

	while ((r->at < r->n || !r->synced) && !pg->dead) {
		int rc = pg_next_result(pg, deadline, &res, r->failed < r->n ? NULL : err);

		if (rc < 0)
			return -1;
		if (rc == 0 && (PQstatus(pg->conn) == CONNECTION_BAD || ++nulls > 6 * r->n))
			return r->failed < r->n ? -1 : pg_lost(pg, err);
		if (rc > 0)
			sort_in(r, res, r->failed < r->n ? NULL : err);
	}
	for (int i = 0; i < r->n && r->failed == r->n; i++)
		if (!r->s[i].res)
			return pg_fail_code(err, PR_RETRY, "08006", "the server gave no answer");
	return r->failed < r->n ? -1 : 0;
}

void pr_stmt_clear(struct pr_stmt *s, int n)
{
	for (int i = 0; i < n; i++) {
		PQclear(s[i].res);
		s[i].res = NULL;
	}
}

int pr_pg_pipeline(struct pr_pg *pg, struct pr_stmt *s, int n, int *ret_failed, struct pr_err *err)
{
	struct round r = { .pg = pg, .s = s, .n = n, .failed = n };
	int64_t timeout_us, deadline;
	int rc = -1;

	if (ret_failed)
		*ret_failed = -1;
	if (n > MAX_STATEMENTS)
		return pr_fail(
			err, PR_STOP, "%d statements in one round trip, at most %d", n, MAX_STATEMENTS);
	if (n > 0 && !s[n - 1].sync)
		return pr_fail(err, PR_STOP, "a round trip that ends inside a transaction");
	for (int i = 0; i < n; i++) {
		s[i].res = NULL;
		s[i].at_end = 0;
	}
	if (pg_begin_call(pg, &timeout_us, &deadline, err) < 0)
		return -1;
	if (PQtransactionStatus(pg->conn) != PQTRANS_IDLE && PQtransactionStatus(pg->conn) != PQTRANS_INTRANS)
		return pr_fail(err, PR_STOP, "a round trip inside a transaction that has failed");
	if (n == 0)
		return 0;
	if (!PQenterPipelineMode(pg->conn))
		return pg_lost(pg, err);
	for (int i = 0; i < n; i++) {
		if (send_statement(pg, &s[i], &r.preparing[i]) < 0) {
			rc = pg_lost(pg, err);
			goto out;
		}
	}
	if (pg_flush(pg, deadline, err) == 0)
		rc = collect_round(&r, deadline, err);
out:
	/* Local, no message: leaves simple queries possible. It fails when answers are outstanding. */
	if (!pg->dead && !PQexitPipelineMode(pg->conn))
		rc = rc < 0 ? (pg->dead = 1, -1) : pg_lost(pg, err);
	if (rc < 0)
		pr_stmt_clear(s, n);
	if (rc < 0 && ret_failed && r.failed < n)
		*ret_failed = r.failed;
	return rc;
}

int pr_pg_round_trip(struct pr_pg *pg, const char *const *sql, int n, PGresult **results, struct pr_err *err)
{
	struct pr_stmt s[MAX_STATEMENTS] = { { .sync = 1 } };
	int rc;

	for (int i = 0; i < n && i < MAX_STATEMENTS; i++)
		s[i] = (struct pr_stmt){ .sql = sql[i], .sync = 1 };
	if (pg->conn && PQtransactionStatus(pg->conn) == PQTRANS_INTRANS)
		rc = pr_fail(err, PR_STOP, "a round trip inside a transaction");
	else
		rc = pr_pg_pipeline(pg, s, n, NULL, err);
	for (int i = 0; i < n && n <= MAX_STATEMENTS; i++)
		results[i] = rc == 0 ? s[i].res : NULL;
	return rc;
}
