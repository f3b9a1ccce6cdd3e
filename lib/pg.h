/* lib/pg.h -- libpq with our own deadline on every call (libpq has none): the socket
 * is non-blocking and poll(2) waits for it, for the deadline and for a wake-up fd.
 * SQLSTATE -> decision lives here and nowhere else. A connection belongs to one
 * thread. After any -1 with kind PR_RETRY of class 08, or a missed deadline, the
 * connection is dead (pr_pg_ok is 0): close it and open a new one. */
#ifndef PR_PG_H
#define PR_PG_H

#include "lib/err.h"

#include <libpq-fe.h>
#include <stdint.h>

struct pr_pg;

struct pr_pg_opts {
	const char *conninfo; /* borrowed during the call */
	const char *appname;  /* application_name, e.g. "postrider-relay orders" */
	int64_t timeout_us;   /* deadline of connecting and of each call */
	int wake_fd;          /* readable = give up at once with PR_RETRY "interrupted"; -1: none */
};

/* Refuses (PR_STOP) a pooler in transaction mode. Connects and sets a fixed session: search_path empty, UTF8,
 * UTC, ISO dates, read committed, standard_conforming_strings on, statement_timeout = the timeout. The caller
 * frees. */
int pr_pg_open(const struct pr_pg_opts *opts, struct pr_pg **ret, struct pr_err *err) PR_MUSTCHECK;
void pr_pg_close(struct pr_pg *pg); /* accepts NULL; never blocks on the network */
int pr_pg_ok(const struct pr_pg *pg);
PGconn *pr_pg_conn(struct pr_pg *pg); /* borrowed; for PQescape* and version */

/* One statement with text parameters (n may be 0: then sql may hold several statements, and the
 * last result is returned). Result is PGRES_TUPLES_OK or PGRES_COMMAND_OK; the caller PQclears.
 * A COMMIT that answers ROLLBACK is an error. NULL on failure. */
PGresult *pr_pg_exec(
	struct pr_pg *pg, const char *sql, int n, const char *const *params, struct pr_err *err) PR_MUSTCHECK;

/* The same, result thrown away. */
int pr_pg_run(
	struct pr_pg *pg, const char *sql, int n, const char *const *params, struct pr_err *err) PR_MUSTCHECK;

/* Overrides the deadline of the next call only (0: back to the default at once). */
void pr_pg_timeout(struct pr_pg *pg, int64_t timeout_us);

/* A statement of a round trip. Arrays have n elements, borrowed until the call returns. */
struct pr_stmt {
	const char *sql; /* one statement; from its second use on a connection it is prepared */
	int n;
	const Oid *types;          /* NULL: the server infers them */
	const char *const *values; /* a value that is NULL is null */
	const int *lengths;        /* of binary ones */
	const int *formats;        /* 1: binary; NULL: all are text */
	int sync;                  /* the transaction ends here: all since the last sync is one */
	int at_end;                /* result: it went well, and what failed was the end of its transaction */
	PGresult *res;             /* result: the caller's to pr_stmt_clear, NULL on failure */
};

/* n statements in one round trip (pipeline mode). The last one must have sync. On -1 no result is kept and
 * *ret_failed (may be NULL) is the statement that failed, also when its transaction's end did (a deferred
 * constraint); -1 when it was the connection: transactions before it have committed or not.
 * Inside a BEGIN, a sync ends nothing but the round trip: COMMIT may be one of the statements. */
int pr_pg_pipeline(
	struct pr_pg *pg, struct pr_stmt *s, int n, int *ret_failed, struct pr_err *err) PR_MUSTCHECK;
void pr_stmt_clear(struct pr_stmt *s, int n);

/* n parameterless statements in one round trip, each its own transaction. results[0..n) are filled on 0, the
 * caller clears; none is kept on -1. */
int pr_pg_round_trip(
	struct pr_pg *pg, const char *const *sql, int n, PGresult **results, struct pr_err *err) PR_MUSTCHECK;

/* COPY (query) TO STDOUT (FORMAT binary): begin, then rows until 0. A row is what PQgetCopyData
 * gives: malloc'd by libpq, taken by the caller (PQfreemem). Header and trailer are swallowed.
 * copy_row: 1 and *ret_row / *ret_len, 0 at the end, -1 on error. */
int pr_pg_copy_begin(struct pr_pg *pg, const char *query, struct pr_err *err) PR_MUSTCHECK;
int pr_pg_copy_row(struct pr_pg *pg, char **ret_row, int *ret_len, struct pr_err *err) PR_MUSTCHECK;

/* COPY table FROM STDIN. begin: sql holds it, perhaps among other statements (BEGIN before it; what follows
 * the data, COMMIT, behind it): all is one simple query, two round trips. Then puts, each with the whole
 * deadline; end gives the last statement's result, as pr_pg_exec does. After any -1 the COPY is over; a
 * transaction that was begun is the caller's to roll back. */
int pr_pg_copy_in_begin(struct pr_pg *pg, const char *sql, struct pr_err *err) PR_MUSTCHECK;
int pr_pg_copy_in_put(struct pr_pg *pg, const char *data, size_t n, struct pr_err *err) PR_MUSTCHECK;
PGresult *pr_pg_copy_in_end(struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* Waits up to timeout_us or until the wake-up fd is readable or the server has something to say
 * (a closed connection): 0 on time-out, 1 woken, -1 connection lost. */
int pr_pg_idle(struct pr_pg *pg, int64_t timeout_us, struct pr_err *err) PR_MUSTCHECK;

/* SQLSTATE -> decision: 08, 53, 55, 57, 40, 25006 and no SQLSTATE at all are PR_RETRY; 28, 42, 3D, 3F
 * PR_STOP; the rest (22, 23, ...) PR_REJECT. */
enum pr_kind pr_pg_kind(const char *sqlstate);

#endif
