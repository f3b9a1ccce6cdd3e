/* lib/migrate.c -- applies db/migrations in order and compares a database with them.
 * Refuses to guess: a schema that is not ours, half upgraded or newer is left alone. */
#include "lib/migrate.h"

#include "lib/clock.h"
#include "lib/rights.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define OLDEST_SERVER 130000
#define STEP_US       (60 * PR_SEC) /* one migration; the wait for the lock is 20 s of it */

static int known(void)
{
	int n = 0;

	while (pr_migrations[n].number)
		n++;
	return n;
}

static int refuse(struct pr_err *err, int code)
{
	if (err)
		err->exit = code;
	return -1;
}

static int is_true(const PGresult *res, int column)
{
	return *PQgetvalue(res, 0, column) == 't';
}

static int foreign(const char *schema, const char *why, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "the schema \"%s\" is not ours: %s", schema, why);
	(void)pr_hint(err, "rename it (ALTER SCHEMA %s RENAME TO ...) or use another database", schema);
	return refuse(err, PR_EX_CONFIG);
}

/* 1 when outbox.schema_version is there to be read, 0 when there is no schema of ours, and nobody else's. */
static int look(struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res;
	int occupied, ours, readable, foreign_inbox, foreign_saga;
	char to[140];

	if (PQserverVersion(pr_pg_conn(pg)) < OLDEST_SERVER) {
		(void)pr_fail(err, PR_STOP, "the server is PostgreSQL %d, too old",
			PQserverVersion(pr_pg_conn(pg)) / 10000);
		(void)pr_hint(err, "upgrade it to PostgreSQL 13 or newer");
		return refuse(err, PR_EX_CONFIG);
	}
	res = pr_pg_exec(pg, sql_schema_state, 0, NULL, err);
	if (!res)
		return -1;
	occupied = is_true(res, 1);
	ours = is_true(res, 2);
	readable = is_true(res, 3);
	foreign_inbox = is_true(res, 4);
	foreign_saga = is_true(res, 5);
	PQclear(res);
	if (occupied && !ours)
		return foreign("outbox", "it has no schema_version", err);
	if (foreign_inbox)
		return foreign("inbox", "no migration of ours made it", err);
	if (foreign_saga)
		return foreign("saga", "no migration of ours made it", err);
	if (ours && !readable) {
		(void)pr_fail(
			err, PR_STOP, "\"%s\" may not read the schema \"outbox\"", PQuser(pr_pg_conn(pg)));
		(void)pr_hint(err,
			"GRANT outbox_relay TO %s; outbox_operator and inbox_operator for an operator, "
			"inbox_consumer for a consumer",
			pr_quote_ident(
				PQuser(pr_pg_conn(pg)), strlen(PQuser(pr_pg_conn(pg))), to, sizeof(to)));
		return refuse(err, PR_EX_NOPERM);
	}
	return ours;
}

/* Row i is the first that differs from what we know. */
static int name_difference(const PGresult *res, int i, struct pr_err *err)
{
	int number = atoi(PQgetvalue(res, i, 0));

	if (i >= known()) {
		(void)pr_fail(err, PR_STOP,
			"the schema \"outbox\" is newer than this program: it has %s, we know %s",
			PQgetvalue(res, PQntuples(res) - 1, 1), pr_migrations[known() - 1].name);
		(void)pr_hint(err, "use the postrider that upgraded it, or a newer one");
	} else if (number != pr_migrations[i].number) {
		(void)pr_fail(err, PR_STOP,
			"the schema \"outbox\" is half upgraded: %s is missing, %s is there",
			pr_migrations[i].name, PQgetvalue(res, i, 1));
		(void)pr_hint(err, "it was changed by hand or by another tool: apply the missing part of "
				   "postrider init --print, or restore a backup");
	} else {
		(void)pr_fail(err, PR_STOP,
			"the schema \"outbox\" is not ours: migration %d is %s, we know %s", number,
			PQgetvalue(res, i, 1), pr_migrations[i].name);
		(void)pr_hint(err, "use the program that made it, or another database");
	}
	return refuse(err, PR_EX_CONFIG);
}

static int is_ours(const PGresult *res, int i)
{
	return i < known() && atoi(PQgetvalue(res, i, 0)) == pr_migrations[i].number &&
	       strcmp(PQgetvalue(res, i, 1), pr_migrations[i].name) == 0;
}

/* A later version's, which says that programs can live with it that know as little as we do. */
static int bears_us(const PGresult *res, int i)
{
	return i >= known() && !PQgetisnull(res, i, 4) &&
	       atoi(PQgetvalue(res, i, 4)) <= pr_migrations[known() - 1].number;
}

/* *ret_have = how many of our migrations are applied. -1 when the database has neither a beginning of
 * them nor, behind all of them, only such as bear us. */
static int count_applied(struct pr_pg *pg, int *ret_have, struct pr_err *err)
{
	PGresult *res;
	int i, n, rc = 0;

	res = pr_pg_exec(pg, sql_schema_versions, 0, NULL, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	for (i = 0; i < n && rc == 0; i++)
		if (!is_ours(res, i) && !bears_us(res, i))
			rc = name_difference(res, i, err);
	PQclear(res);
	if (rc == 0)
		*ret_have = n < known() ? n : known();
	return rc;
}

static int begin_locked(struct pr_pg *pg, struct pr_err *err)
{
	if (pr_pg_run(pg, "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '20s'", 0, NULL,
		    err) < 0)
		return -1;
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, sql_schema_lock, 0, NULL, err) == 0)
		return 0;
	if (err && strcmp(err->code, "55P03") == 0) {
		(void)pr_fail(err, PR_RETRY, "another postrider init has been at work for 20 s");
		(void)pr_hint(err, "wait for it, or see pg_stat_activity for what it waits for");
	}
	return -1;
}

static int apply(struct pr_pg *pg, const struct pr_migration *m, struct pr_err *err)
{
	char number[16];
	const char *const param[] = { number, m->name, m->sha256 };

	(void)snprintf(number, sizeof(number), "%d", m->number);
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, m->sql, 0, NULL, err) == 0 && pr_pg_run(pg, sql_schema_sum, 0, NULL, err) == 0 &&
		pr_pg_run(pg, sql_schema_record, 3, param, err) == 0)
		return 0;
	(void)pr_wrap(err, "migration %s", m->name);
	if (err && strcmp(err->code, "42501") == 0) {
		(void)pr_hint(err, "run init as the owner of the database; it needs CREATE on the database, "
				   "and CREATEROLE unless the roles outbox_writer, outbox_relay, "
				   "outbox_operator, inbox_consumer, inbox_operator, saga_engine, "
				   "saga_participant and saga_operator are there");
		return refuse(err, PR_EX_NOPERM);
	}
	return -1;
}

/* One transaction: the next pending migration. 1 when there was one, 0 when none is left. */
static int step(struct pr_pg *pg, struct pr_err *err)
{
	int ours, have = 0, rc = -1;

	if (begin_locked(pg, err) < 0)
		goto out;
	ours = look(pg, err);
	if (ours < 0 || (ours && count_applied(pg, &have, err) < 0))
		goto out;
	if (have < known() && apply(pg, &pr_migrations[have], err) < 0)
		goto out;
	if (pr_pg_run(pg, "COMMIT", 0, NULL, err) < 0)
		goto out;
	rc = have < known();
out:
	/* The first error is the one to tell. */
	if (rc < 0 && pr_pg_ok(pg) && PQtransactionStatus(pr_pg_conn(pg)) != PQTRANS_IDLE &&
		pr_pg_run(pg, "ROLLBACK", 0, NULL, NULL) < 0)
		return -1;
	return rc;
}

int pr_migrate(struct pr_pg *pg, int *ret_applied, struct pr_err *err)
{
	int applied = 0, rc;

	while ((rc = step(pg, err)) > 0)
		applied++;
	if (rc == 0 && ret_applied)
		*ret_applied = applied;
	return rc;
}

int pr_schema_check(struct pr_pg *pg, struct pr_err *err)
{
	int have, ours = look(pg, err);

	if (ours < 0)
		return -1;
	if (ours == 0) {
		(void)pr_fail(err, PR_STOP, "the schema \"outbox\" is not installed in database \"%s\"",
			PQdb(pr_pg_conn(pg)));
		(void)pr_hint(err, "run postrider init --conninfo ...");
		return refuse(err, PR_EX_CONFIG);
	}
	if (count_applied(pg, &have, err) < 0)
		return -1;
	if (have < known()) {
		(void)pr_fail(err, PR_STOP,
			"the schema \"outbox\" is older than this program: %s is not applied",
			pr_migrations[have].name);
		(void)pr_hint(err, "run postrider init --conninfo ...; it is safe under load");
		return refuse(err, PR_EX_CONFIG);
	}
	return 0;
}

int pr_schema_edited(struct pr_pg *pg, struct pr_schema_edit **ret, int *ret_n, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_schema_versions, 0, NULL, err);
	struct pr_schema_edit *edits;
	int n = 0;

	if (!res)
		return -1;
	edits = pr_calloc((size_t)known() + 1, sizeof(*edits));
	for (int i = 0; i < PQntuples(res) && i < known(); i++) {
		struct pr_schema_edit *e = &edits[n];

		if (strcmp(PQgetvalue(res, i, 2), pr_migrations[i].sha256) == 0)
			continue;
		e->number = pr_migrations[i].number;
		e->name = pr_migrations[i].name;
		e->ours = pr_migrations[i].sha256;
		(void)snprintf(e->theirs, sizeof(e->theirs), "%s", PQgetvalue(res, i, 2));
		(void)snprintf(e->applied_at, sizeof(e->applied_at), "%s", PQgetvalue(res, i, 3));
		n++;
	}
	PQclear(res);
	*ret = edits;
	*ret_n = n;
	return 0;
}

/* A migration inside a DO block that looks first; EXECUTE because outbox.schema_version may not be there. */
static void print_one(FILE *out, const struct pr_migration *m)
{
	(void)fprintf(out,
		"\nDO $postrider_%d$\n"
		"DECLARE\n\tapplied boolean := false;\n"
		"BEGIN\n"
		"IF pg_catalog.to_regclass('outbox.schema_version') IS NOT NULL THEN\n"
		"\tEXECUTE 'SELECT EXISTS (SELECT FROM outbox.schema_version WHERE number = %d)' INTO "
		"applied;\n"
		"END IF;\n"
		"IF NOT applied THEN EXECUTE $postrider_sql$\n%s$postrider_sql$;\n"
		"EXECUTE $postrider_sql$%s$postrider_sql$;\n"
		"EXECUTE $postrider_sql$INSERT INTO outbox.schema_version (number, name, sha256) VALUES (%d, "
		"'%s', '%s')"
		"$postrider_sql$;\n"
		"END IF;\n"
		"END\n$postrider_%d$;\n",
		m->number, m->number, m->sql, sql_schema_sum, m->number, m->name, m->sha256, m->number);
}

void pr_migrate_print(FILE *out)
{
	(void)fputs("-- Made by postrider init --print. To be run in one transaction (psql -1 -v "
		    "ON_ERROR_STOP=1)\n"
		    "-- on PostgreSQL 13 or newer, by the owner of the database; parts already applied are\n"
		    "-- stepped over. It creates the roles outbox_writer, outbox_relay, outbox_operator,\n"
		    "-- inbox_consumer, inbox_operator, saga_engine, saga_participant and saga_operator\n"
		    "-- unless they are there.\n"
		    "SET LOCAL lock_timeout = '20s';\n",
		out);
	(void)fprintf(out, "%s;\n", sql_schema_lock);
	for (const struct pr_migration *m = pr_migrations; m->number; m++)
		print_one(out, m);
}
