/* cli/saga_list.c -- `postrider saga list`: where sagas stand, one line each. Changes nothing. */
#include "cli/saga.h"

#include <stdlib.h>
#include <string.h>

/* The steps that are under way, as the query has them: names with blanks between. */
static cJSON *names(const char *list)
{
	cJSON *a = cJSON_CreateArray();

	while (list && *list) {
		size_t n = strcspn(list, " ");
		char *name = pr_asprintf("%.*s", (int)n, list);

		(void)cJSON_AddItemToArray(a, cJSON_CreateString(name));
		free(name);
		list += n + (list[n] == ' ');
	}
	return a;
}

static void put_json(const PGresult *res, int i)
{
	cJSON *o = cJSON_CreateObject();
	char age[32];

	cli_json_cell(o, "id", res, i, SL_ID, 0);
	cli_json_cell(o, "name", res, i, SL_NAME, 0);
	cli_json_cell(o, "version", res, i, SL_VERSION, 1);
	cli_json_cell(o, "state", res, i, SL_STATE, 0);
	(void)cJSON_AddItemToObject(o, "steps", names(cli_cell(res, i, SL_AT)));
	(void)cJSON_AddBoolToObject(o, "waits_for_lock", *PQgetvalue(res, i, SL_LOCK) == 't');
	cli_json_cell(o, "failed_step", res, i, SL_FAILED, 0);
	cli_json_cell(o, "why", res, i, SL_WHY, 0);
	saga_json_time(o, "started_at", res, i, SL_STARTED);
	saga_json_time(o, "since", res, i, SL_SINCE);
	(void)snprintf(age, sizeof(age), "%.3f", saga_seconds(res, i, SL_AGE));
	(void)cJSON_AddRawToObject(o, "age_seconds", age);
	saga_json_time(o, "finished_at", res, i, SL_FINISHED);
	saga_json_time(o, "due_at", res, i, SL_DUE);
	cli_json_free_line(o);
}

static void add_row(struct cli_table *t, const PGresult *res, int i)
{
	const char *at = cli_cell(res, i, SL_AT), *failed = cli_cell(res, i, SL_FAILED),
		   *why = cli_cell(res, i, SL_WHY);
	int waits = *PQgetvalue(res, i, SL_LOCK) == 't' && !cli_cell(res, i, SL_FINISHED);
	char age[48];
	const char *const cells[] = { cli_cell(res, i, SL_ID), cli_cell(res, i, SL_NAME),
		cli_cell(res, i, SL_VERSION), cli_cell(res, i, SL_STATE),
		at      ? at
		: waits ? "(waits for a lock)"
			: "-",
		cli_span(saga_seconds(res, i, SL_AGE), age), why && *why ? why : failed };

	cli_table_add(t, cells);
}

/* At most `most` of a page. */
static void put_rows(const struct cli *c, struct cli_table *t, const PGresult *res, int64_t most)
{
	for (int i = 0; i < PQntuples(res) && i < most; i++) {
		if (cli_has(c, "json"))
			put_json(res, i);
		else
			add_row(t, res, i);
	}
}

/* How many there are, one more than the limit at most; -1 on error. */
static int64_t put_all(const struct cli *c, struct pr_pg *pg, const struct saga_filter *f, int64_t limit,
	struct cli_table *t, struct pr_err *err)
{
	struct saga_scan scan = { 0 };
	PGresult *res;
	int64_t n = 0;

	while (!scan.done && n <= limit) {
		res = saga_page(pg, f, &scan, limit + 1 - n, err);
		if (!res)
			return -1;
		put_rows(c, t, res, limit - n);
		n += PQntuples(res);
		PQclear(res);
	}
	return n;
}

static void say_what(const struct cli *c, int64_t n, int64_t limit)
{
	if (n > limit)
		cli_say("there are more: --limit shows them, `postrider show sagas` counts them");
	else if (n == 0 && (saga_filtered(c) || cli_has(c, "step")))
		cli_say("no sagas like that");
	else if (n == 0)
		cli_say(cli_has(c, "all") ? "no sagas"
					  : "no saga is alive; --all shows those that have ended, too");
}

int verb_saga_list(struct cli *c)
{
	static const char *const heads[] = { "!ID", "=NAME", "=VERSION", "=STATE", "STEP", ">FOR", "~WHY" };
	struct cli_table t = { .ncols = 7, .heads = heads };
	int64_t limit = cli_int(c, "limit", 100), n = -1;
	struct saga_filter f = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = PR_EX_OK;

	saga_filter_take(&f, c, NULL);
	if (cli_has(c, "all") && !f.states)
		f.live = 0;
	if (cli_connect_outbox(c, &pg, &err) == 0)
		n = put_all(c, pg, &f, limit, &t, &err);
	if (t.nrows) /* also those before an error */
		cli_table_print(&t, stdout);
	if (n < 0)
		rc = cli_failed(c, &err);
	else
		say_what(c, n, limit);
	saga_filter_release(&f);
	pr_pg_close(pg);
	return rc;
}
