/* cli/dlq.c -- `postrider dlq list` and `note`: what was given up on, by cause or one by
 * one. Reads without a lock; what changes meanwhile is seen before or after its change. */
#include "cli/dlq.h"

#include <stdlib.h>
#include <string.h>

static const char *state_wanted(const struct cli *c)
{
	const char *state = cli_str(c, "state");

	if (!state)
		return "dead";
	return strcmp(state, "any") == 0 ? NULL : state;
}

static int list_causes(struct cli *c, struct dlq_scan *s, struct pr_err *err)
{
	struct dlq_causes *causes = dlq_causes_new();
	struct dlq_fact f;
	char n[64];
	int rc;

	while ((rc = dlq_next(s, err)) == 1) {
		dlq_fact_of(s, &f);
		dlq_causes_add(causes, &f);
	}
	if (rc == 0) {
		dlq_causes_print(causes, cli_has(c, "json"));
		if (dlq_causes_total(causes) == 0)
			cli_say("no dead letters%s", dlq_filtered(c) ? " like that" : "");
		else if (!cli_has(c, "json"))
			cli_say("%s; `postrider dlq list --all --cause ...` shows those of one cause",
				cli_number(dlq_causes_total(causes), "dead letter", n));
	}
	dlq_causes_free(causes);
	return rc;
}

static void one_json(const struct dlq_scan *s)
{
	static const struct {
		const char *name;
		int column, number;
	} fields[] = { { "entry", D_ENTRY, 1 }, { "group", D_GROUP, 0 }, { "topic", D_TOPIC, 0 },
		{ "partition", D_PARTITION, 1 }, { "offset", D_OFFSET, 1 }, { "key", D_KEY, 0 },
		{ "id", D_ID, 0 }, { "type", D_TYPE, 0 }, { "class", D_CLASS, 0 }, { "code", D_CODE, 0 },
		{ "reason", D_REASON, 0 }, { "attempts", D_ATTEMPTS, 1 }, { "buried_at", D_BURIED, 0 },
		{ "state", D_STATE, 0 }, { "note", D_NOTE, 0 } };
	cJSON *o = cJSON_CreateObject();
	char id[9];

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
		cli_json_cell(o, fields[i].name, s->res, s->row, fields[i].column, fields[i].number);
	dlq_cause_id(cli_cell(s->res, s->row, D_CLASS), cli_cell(s->res, s->row, D_CODE),
		cli_cell(s->res, s->row, D_REASON), id);
	(void)cJSON_AddStringToObject(o, "cause", id);
	cli_json_free_line(o);
}

static void one_row(struct cli_table *t, const struct dlq_scan *s)
{
	const char *cls = cli_cell(s->res, s->row, D_CLASS), *code = cli_cell(s->res, s->row, D_CODE);
	const char *buried = cli_cell(s->res, s->row, D_BURIED);
	char *what = pr_asprintf("%s%s%s", cls ? cls : "", code && *code ? ":" : "", code ? code : "");
	char *when = pr_asprintf("%.10s %.8s", buried ? buried : "", buried ? buried + 11 : "");
	const char *const cells[] = { cli_cell(s->res, s->row, D_ENTRY), cli_cell(s->res, s->row, D_GROUP),
		cli_cell(s->res, s->row, D_TOPIC), cli_cell(s->res, s->row, D_KEY),
		cli_cell(s->res, s->row, D_TYPE), what, when, cli_cell(s->res, s->row, D_STATE),
		cli_cell(s->res, s->row, D_REASON) };

	cli_table_add(t, cells);
	free(what);
	free(when);
}

static int list_all(struct cli *c, struct dlq_scan *s, struct pr_err *err)
{
	static const char *const heads[] = { ">ENTRY", "=GROUP", "=TOPIC", "KEY", "=TYPE", "=FAILURE",
		"BURIED (UTC)", "=STATE", "~REASON" };
	struct cli_table t = { .ncols = 9, .heads = heads };
	int64_t n = 0, limit = cli_int(c, "limit", 100);
	int rc;

	while ((rc = dlq_next(s, err)) == 1 && n < limit) {
		if (cli_has(c, "json"))
			one_json(s);
		else
			one_row(&t, s);
		n++;
	}
	if (t.nrows)
		cli_table_print(&t, stdout);
	if (rc == 1)
		cli_say("there are more: --limit shows them");
	else if (rc == 0 && n == 0)
		cli_say("no dead letters%s", dlq_filtered(c) ? " like that" : "");
	return rc < 0 ? -1 : 0;
}

int verb_dlq_list(struct cli *c)
{
	struct dlq_scan s = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = -1;

	if (cli_has(c, "from-topic"))
		return dlq_list_topic(c);
	if (cli_connect_outbox(c, &pg, &err) == 0) {
		dlq_scan_begin(&s, c, pg, state_wanted(c));
		rc = cli_has(c, "all") ? list_all(c, &s, &err) : list_causes(c, &s, &err);
	}
	rc = rc < 0 ? cli_failed(c, &err) : PR_EX_OK;
	dlq_scan_end(&s);
	pr_pg_close(pg);
	return rc;
}
