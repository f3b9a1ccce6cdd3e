/* cli/saga_overview.c -- `postrider show sagas`: how many there are of each name and state, which of them
 * wait for a person, and which steps take longer than they should. Changes nothing. */
#include "cli/saga.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

/* Columns of db/queries/saga_definitions.sql, saga_counts.sql, saga_stuck.sql, saga_late.sql. */
enum { D_NAME, D_VERSION, D_STYLE, D_HASH, D_REGISTERED, D_ALIVE };
enum { C_NAME, C_STATE, C_N };
enum { K_ID, K_NAME, K_VERSION, K_STEP, K_OP, K_WHY, K_TRIES, K_SINCE, K_AGE };
enum { A_ID, A_NAME, A_STEP, A_STATE, A_SINCE, A_AGE, A_SLA };

#define LATE_MS "2000" /* there is no index by what is late: with many alive it is not waited for */

struct overview {
	PGresult *definitions, *counts, *stuck;
	PGresult *late; /* NULL: not known */
	int64_t limit;
};

static void overview_release(struct overview *o)
{
	PQclear(o->definitions);
	PQclear(o->counts);
	PQclear(o->stuck);
	PQclear(o->late);
}

static int read_all(struct pr_pg *pg, struct overview *o, struct pr_err *err)
{
	char most[24];
	const char *params[1] = { most };

	(void)snprintf(most, sizeof(most), "%lld", (long long)o->limit + 1);
	o->definitions = pr_pg_exec(pg, sql_saga_definitions, 0, NULL, err);
	o->counts = o->definitions ? pr_pg_exec(pg, sql_saga_counts, 0, NULL, err) : NULL;
	o->stuck = o->counts ? pr_pg_exec(pg, sql_saga_stuck, 1, params, err) : NULL;
	if (!o->stuck || pr_pg_run(pg, "SET statement_timeout = " LATE_MS, 0, NULL, err) < 0)
		return -1;
	o->late = pr_pg_exec(pg, sql_saga_late, 1, params, err);
	return o->late || strcmp(err->code, "57014") == 0 ? 0 : -1;
}

static int64_t count_of(const struct overview *o, const char *name, const char *state)
{
	for (int i = 0; i < PQntuples(o->counts); i++)
		if (strcmp(PQgetvalue(o->counts, i, C_NAME), name) == 0 &&
			strcmp(PQgetvalue(o->counts, i, C_STATE), state) == 0)
			return cli_cell_int(o->counts, i, C_N);
	return 0;
}

static int shown(const struct overview *o, const PGresult *res)
{
	return !res ? 0 : PQntuples(res) > o->limit ? (int)o->limit : PQntuples(res);
}

/* Definitions are in the order of names: the first row of each. */
static int is_new_name(const struct overview *o, int i)
{
	return i == 0 ||
	       strcmp(PQgetvalue(o->definitions, i, D_NAME), PQgetvalue(o->definitions, i - 1, D_NAME)) != 0;
}

/* ---- JSON ---- */

static void add_seconds(cJSON *o, const char *name, const PGresult *res, int i, int column)
{
	char buf[40];

	(void)snprintf(buf, sizeof(buf), "%.3f", saga_seconds(res, i, column));
	(void)cJSON_AddRawToObject(o, name, buf);
}

static cJSON *versions_json(const struct overview *o, int i)
{
	cJSON *list = cJSON_CreateArray();
	const char *name = PQgetvalue(o->definitions, i, D_NAME);

	for (; i < PQntuples(o->definitions) && strcmp(PQgetvalue(o->definitions, i, D_NAME), name) == 0;
		i++) {
		cJSON *v = cJSON_CreateObject();

		cli_json_cell(v, "version", o->definitions, i, D_VERSION, 1);
		cli_json_cell(v, "hash", o->definitions, i, D_HASH, 0);
		saga_json_time(v, "registered_at", o->definitions, i, D_REGISTERED);
		cli_json_cell(v, "alive", o->definitions, i, D_ALIVE, 1);
		(void)cJSON_AddItemToArray(list, v);
	}
	return list;
}

static cJSON *stuck_json(const struct overview *o, const char *name)
{
	cJSON *list = cJSON_CreateArray();

	for (int i = 0; i < shown(o, o->stuck); i++) {
		cJSON *s;

		if (strcmp(PQgetvalue(o->stuck, i, K_NAME), name) != 0)
			continue;
		s = cJSON_CreateObject();
		cli_json_cell(s, "id", o->stuck, i, K_ID, 0);
		cli_json_cell(s, "version", o->stuck, i, K_VERSION, 1);
		cli_json_cell(s, "step", o->stuck, i, K_STEP, 0);
		cli_json_cell(s, "op", o->stuck, i, K_OP, 0);
		cli_json_cell(s, "why", o->stuck, i, K_WHY, 0);
		cli_json_cell(s, "tries", o->stuck, i, K_TRIES, 1);
		saga_json_time(s, "since", o->stuck, i, K_SINCE);
		add_seconds(s, "age_seconds", o->stuck, i, K_AGE);
		(void)cJSON_AddItemToArray(list, s);
	}
	return list;
}

static cJSON *late_json(const struct overview *o, const char *name)
{
	cJSON *list = cJSON_CreateArray();

	for (int i = 0; i < shown(o, o->late); i++) {
		cJSON *s;

		if (strcmp(PQgetvalue(o->late, i, A_NAME), name) != 0)
			continue;
		s = cJSON_CreateObject();
		cli_json_cell(s, "id", o->late, i, A_ID, 0);
		cli_json_cell(s, "step", o->late, i, A_STEP, 0);
		cli_json_cell(s, "state", o->late, i, A_STATE, 0);
		saga_json_time(s, "since", o->late, i, A_SINCE);
		add_seconds(s, "age_seconds", o->late, i, A_AGE);
		add_seconds(s, "sla_seconds", o->late, i, A_SLA);
		(void)cJSON_AddItemToArray(list, s);
	}
	return list;
}

static void put_json(const struct overview *o)
{
	for (int i = 0; i < PQntuples(o->definitions); i++) {
		const char *name = PQgetvalue(o->definitions, i, D_NAME);
		cJSON *obj, *states;

		if (!is_new_name(o, i))
			continue;
		obj = cJSON_CreateObject();
		states = cJSON_CreateObject();
		(void)cJSON_AddStringToObject(obj, "name", name);
		cli_json_cell(obj, "style", o->definitions, i, D_STYLE, 0);
		for (int s = 0; s < SAGA_STATES; s++)
			cli_json_int(states, saga_state_str((enum saga_state)s),
				count_of(o, name, saga_state_str((enum saga_state)s)));
		(void)cJSON_AddItemToObject(obj, "states", states);
		(void)cJSON_AddItemToObject(obj, "versions", versions_json(o, i));
		(void)cJSON_AddItemToObject(obj, "stuck", stuck_json(o, name));
		(void)cJSON_AddItemToObject(obj, "late", o->late ? late_json(o, name) : cJSON_CreateNull());
		cli_json_free_line(obj);
	}
}

/* ---- text ---- */

/* "1 (3 alive), 2": the versions, those that have no more of their own without a number. */
static char *versions(const struct overview *o, int i)
{
	const char *name = PQgetvalue(o->definitions, i, D_NAME);
	struct pr_buf b = { 0 };
	char n[32];

	for (; i < PQntuples(o->definitions) && strcmp(PQgetvalue(o->definitions, i, D_NAME), name) == 0;
		i++) {
		int64_t alive = cli_cell_int(o->definitions, i, D_ALIVE);

		pr_buf_printf(&b, "%s%s", b.len ? ", " : "", PQgetvalue(o->definitions, i, D_VERSION));
		if (alive)
			pr_buf_printf(&b, " (%s alive)", cli_count(alive, n));
	}
	return b.s;
}

static void put_counts(const struct overview *o)
{
	static const char *const heads[] = { "NAME", ">RUNNING", ">COMPENSATING", ">STUCK", ">COMPLETED",
		">COMPENSATED", ">ABORTED", "VERSION" };
	static const enum saga_state states[] = { SAGA_RUNNING, SAGA_COMPENSATING, SAGA_STUCK, SAGA_COMPLETED,
		SAGA_COMPENSATED, SAGA_ABORTED };
	struct cli_table t = { .ncols = 8, .heads = heads };

	for (int i = 0; i < PQntuples(o->definitions); i++) {
		const char *name = PQgetvalue(o->definitions, i, D_NAME);
		char n[6][32], *all;
		const char *cells[8] = { name };

		if (!is_new_name(o, i))
			continue;
		for (int s = 0; s < 6; s++)
			cells[s + 1] = cli_count(count_of(o, name, saga_state_str(states[s])), n[s]);
		cells[7] = all = versions(o, i);
		cli_table_add(&t, cells);
		free(all);
	}
	cli_table_print(&t, stdout);
}

static void put_stuck(const struct overview *o)
{
	static const char *const heads[] = { "=NAME", "!ID", "=STEP", ">TRIES", ">FOR", "~WHY" };
	struct cli_table t = { .ncols = 6, .heads = heads };

	for (int i = 0; i < shown(o, o->stuck); i++) {
		const char *step = cli_cell(o->stuck, i, K_STEP), *op = cli_cell(o->stuck, i, K_OP);
		char age[48], *at = pr_asprintf("%s%s%s", step ? step : "-", op ? " " : "", op ? op : "");
		const char *const cells[] = { cli_cell(o->stuck, i, K_NAME), cli_cell(o->stuck, i, K_ID), at,
			cli_cell(o->stuck, i, K_TRIES), cli_span(saga_seconds(o->stuck, i, K_AGE), age),
			cli_cell(o->stuck, i, K_WHY) };

		cli_table_add(&t, cells);
		free(at);
	}
	if (!t.nrows)
		return;
	(void)printf("\n%sstuck: wait for a person%s\n", cli_on(stdout, CLI_RED), cli_off(stdout));
	cli_table_print(&t, stdout);
}

static void put_late(const struct overview *o)
{
	static const char *const heads[] = { "=NAME", "!ID", "=STEP", "=STATE", ">FOR", ">SHOULD TAKE" };
	struct cli_table t = { .ncols = 6, .heads = heads };

	for (int i = 0; i < shown(o, o->late); i++) {
		char age[48], sla[48];
		const char *const cells[] = { cli_cell(o->late, i, A_NAME), cli_cell(o->late, i, A_ID),
			cli_cell(o->late, i, A_STEP), cli_cell(o->late, i, A_STATE),
			cli_span(saga_seconds(o->late, i, A_AGE), age),
			cli_span(saga_seconds(o->late, i, A_SLA), sla) };

		if (strcmp(cells[3], "STUCK") != 0) /* that was told above */
			cli_table_add(&t, cells);
	}
	if (!t.nrows)
		return;
	(void)printf(
		"\n%slate: longer in a step than its sla%s\n", cli_on(stdout, CLI_YELLOW), cli_off(stdout));
	cli_table_print(&t, stdout);
}

static void put_text(const struct overview *o)
{
	if (PQntuples(o->definitions) == 0) {
		cli_say("no saga is defined in this database: an engine registers its definitions when it "
			"starts");
		return;
	}
	put_counts(o);
	put_stuck(o);
	put_late(o);
	if (PQntuples(o->stuck))
		cli_hint("postrider saga show ID tells what happened, and the ways on");
	if (!o->late)
		cli_say("late steps are not known: so many sagas cannot be looked through in " LATE_MS
			" ms; `postrider "
			"saga list --older` narrows the search");
	if (PQntuples(o->stuck) > o->limit || (o->late && PQntuples(o->late) > o->limit))
		cli_say("there are more: --limit shows them");
}

int verb_show_sagas(struct cli *c)
{
	struct overview o = { .limit = cli_int(c, "limit", 20) };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0 || read_all(pg, &o, &err) < 0)
		rc = cli_failed(c, &err);
	else if (cli_has(c, "json"))
		put_json(&o);
	else
		put_text(&o);
	overview_release(&o);
	pr_pg_close(pg);
	return rc;
}
