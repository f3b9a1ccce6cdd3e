/* cli/doctor_postgres.c -- the checks of the database that are more than one statement. */
#include "cli/doctor.h"
#include "lib/clock.h"
#include "lib/migrate.h"
#include "sql.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -1: cannot be asked. */
static int is_true(struct pr_pg *pg, const char *sql)
{
	PGresult *res = pr_pg_exec(pg, sql, 0, NULL, NULL);
	int yes = res ? PQntuples(res) == 1 && *PQgetvalue(res, 0, 0) == 't' : -1;

	PQclear(res);
	return yes;
}

static void say_server(struct doctor *d)
{
	PGconn *conn = pr_pg_conn(d->pg);
	const char *version = PQparameterStatus(conn, "server_version"), *host = PQhost(conn);

	if (PQserverVersion(conn) < 130000) {
		doctor_say(d, DOCTOR_FAIL, "PostgreSQL %s is too old", version ? version : "?");
		doctor_fix(d, "upgrade it to PostgreSQL 13 or newer");
		return;
	}
	doctor_say(d, DOCTOR_OK, "PostgreSQL %s, database %s at %s port %s, as %s", version ? version : "?",
		PQdb(conn), host && *host ? host : "a local socket", PQport(conn), cli_login());
	if ((d->have & DOCTOR_RELAY) && is_true(d->pg, "SELECT pg_catalog.pg_is_in_recovery()") == 1) {
		doctor_say(d, DOCTOR_FAIL,
			"the database is a standby: rows become visible there in another order");
		doctor_fix(d, "point source.conninfo at the primary, e.g. target_session_attrs=read-write");
	}
}

void doctor_server(struct doctor *d)
{
	struct pr_err err = { 0 };

	if (d->c->consumer_loaded && !d->c->consumer.database.conninfo && !cli_str(d->c, "conninfo")) {
		doctor_say(d, DOCTOR_OK, "the consumer has no database: positions are in Kafka");
		return;
	}
	if (cli_connect(d->c, &d->pg, &err) < 0) {
		doctor_err(d, DOCTOR_FAIL, &err);
		if (!*err.hint)
			doctor_fix(d, "is the server up, and is this the right address? psql \"%s\"",
				d->c->loaded ? "source.conninfo" : "database.conninfo");
		return;
	}
	d->have |= DOCTOR_PG;
	say_server(d);
}

/* ---- a pooler ---- */

static int backend(struct pr_pg *pg)
{
	PGresult *res = pr_pg_exec(pg, "SELECT pg_catalog.pg_backend_pid()", 0, NULL, NULL);
	int pid = res ? (int)cli_cell_int(res, 0, 0) : -1;

	PQclear(res);
	return pid;
}

/* A server says its process at connect; one in between says another. In transaction mode nobody would have
 * come this far, if a second session could be had to find out. */
void doctor_pooler(struct doctor *d)
{
	int pid = backend(d->pg);
	struct pr_pg *second = NULL;
	struct pr_err err = { 0 };

	if (pid == PQbackendPID(pr_pg_conn(d->pg))) {
		doctor_say(d, DOCTOR_OK, "no pooler in between");
	} else if (pid >= 0 && cli_connect(d->c, &second, &err) == 0) {
		doctor_say(d, DOCTOR_OK,
			"a pooler is in between, in session mode: each of our sessions keeps a connection of "
			"its pool");
	} else {
		doctor_say(
			d, DOCTOR_WARN, "a pooler is in between, and gives no second session: %s", err.text);
		doctor_fix(d, "name the server itself in the conninfo, or raise default_pool_size in "
			      "pgbouncer.ini");
	}
	pr_pg_close(second);
}

/* ---- clocks ---- */

static const char *late(double s)
{
	return s < 0 ? "behind" : "ahead of";
}

/* The database's clock against ours, in the middle of the question. */
void doctor_clock(struct doctor *d)
{
	int64_t before = pr_wall_us(), after;
	PGresult *res = pr_pg_exec(
		d->pg, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", 0, NULL, NULL);
	double skew;
	char span[48];

	if (!res) {
		doctor_say(d, DOCTOR_WARN, "the database does not say what time it is");
		return;
	}
	after = pr_wall_us();
	skew = (double)(cli_cell_int(res, 0, 0) - (before + (after - before) / 2)) / (double)PR_SEC;
	PQclear(res);
	if (fabs(skew) < 0.5 + (double)(after - before) / (double)PR_SEC) {
		doctor_say(d, DOCTOR_OK, "the database's clock is %.3f s %s this machine's", fabs(skew),
			late(skew));
		return;
	}
	doctor_say(d, fabs(skew) > 60 ? DOCTOR_FAIL : DOCTOR_WARN,
		"the database's clock is %s %s this machine's: ages and lags are wrong by that",
		cli_span(fabs(skew), span), late(skew));
	doctor_fix(d, "timedatectl set-ntp true, on both machines");
}

/* ---- statements with an argument of their own ---- */

void doctor_transactions(struct doctor *d)
{
	char older[40];
	const char *params[1] = { older };

	(void)snprintf(older, sizeof(older), "%.3f s",
		(double)cli_int(d->c, "older", 300 * PR_SEC) / (double)PR_SEC);
	doctor_ask(d, sql_doctor_transactions, 1, params);
	if (is_true(d->pg, "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')") != 0)
		return;
	doctor_say(d, DOCTOR_OK,
		"sessions of other logins cannot be seen; GRANT pg_read_all_stats TO %s; shows them",
		cli_login());
}

void doctor_rights(struct doctor *d)
{
	const char *params[2] = { d->c->consumer_loaded ? "inbox_consumer" : "outbox_relay", cli_login() };

	doctor_ask(d, sql_doctor_rights, 2, params);
}

void doctor_ranges(struct doctor *d)
{
	char ahead[24] = "16";
	const char *params[2] = { d->target, ahead };

	if (d->c->loaded)
		(void)snprintf(ahead, sizeof(ahead), "%lld", (long long)d->c->conf.retention.ahead);
	doctor_ask(d, sql_doctor_ranges, 2, params);
}

void doctor_rows(struct doctor *d)
{
	const char *params[1] = { d->target };

	doctor_ask(d, sql_doctor_rows, 1, params);
}

void doctor_held(struct doctor *d)
{
	const char *brokers = cli_brokers(d->c), *params[2] = { d->target, brokers ? brokers : "HOST:PORT" };

	doctor_ask(d, sql_doctor_held, 2, params);
}

void doctor_relay(struct doctor *d)
{
	const char *params[2] = { d->file, cli_name(d->c) };

	doctor_ask(d, sql_doctor_relay, 2, params);
}

void doctor_group(struct doctor *d)
{
	const char *params[3] = { d->target, cli_group(d->c), d->file };

	doctor_ask(d, sql_doctor_group, 3, params);
}

/* ---- the schema ---- */

static void say_edits(struct doctor *d)
{
	struct pr_schema_edit *edits = NULL;
	struct pr_err err = { 0 };
	int n = 0;

	if (pr_schema_edited(d->pg, &edits, &n, &err) < 0) {
		doctor_err(d, DOCTOR_WARN, &err);
		return;
	}
	for (int i = 0; i < n; i++) {
		doctor_say(d, DOCTOR_WARN, "%s was applied at %s from another text than this program's",
			edits[i].name, edits[i].applied_at);
		doctor_fix(
			d, "compare it with postrider init --print; postrider init %s says more", d->target);
	}
	if (n == 0)
		doctor_say(d, DOCTOR_OK, "schemas outbox, inbox and saga are those of this program");
	free(edits);
}

void doctor_schema(struct doctor *d)
{
	struct pr_err err = { 0 };

	if (pr_schema_check(d->pg, &err) < 0) {
		doctor_err(d, DOCTOR_FAIL, &err);
		if (strstr(err.hint, "postrider init --conninfo"))
			doctor_fix(d, "postrider init %s", d->target);
		return;
	}
	d->have |= DOCTOR_SCHEMA;
	say_edits(d);
}
