/* cli/dlq_find.c -- which dead letters are meant: the filter options of `postrider dlq`, read
 * page by page, so that a million of them need no more memory than a thousand. */
#include "cli/dlq.h"
#include "lib/json.h"
#include "sql.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 1000

static const char *const filters[] = { "topic", "type", "class", "code", "cause", "since", "until" };

int dlq_filtered(const struct cli *c)
{
	for (size_t i = 0; i < sizeof(filters) / sizeof(*filters); i++)
		if (cli_has(c, filters[i]))
			return 1;
	return cli_has(c, "group");
}

static void put_time(const struct cli *c, const char *name, char *buf, size_t size)
{
	buf[0] = '\0';
	if (cli_has(c, name))
		(void)snprintf(buf, size, "%lld", (long long)cli_int(c, name, 0));
}

void dlq_scan_begin(struct dlq_scan *s, const struct cli *c, struct pr_pg *pg, const char *state)
{
	*s = (struct dlq_scan){ .pg = pg, .state = state, .through = INT64_MAX };
	s->group = cli_group(c);
	s->topic = cli_str(c, "topic");
	s->type = cli_str(c, "type");
	s->cls = cli_str(c, "class");
	s->code = cli_str(c, "code");
	s->cause = cli_str(c, "cause");
	put_time(c, "since", s->since, sizeof(s->since));
	put_time(c, "until", s->until, sizeof(s->until));
}

/* Page after page in the order of an index: a planner without statistics would rather sort all that is left,
 * each time (1,000,000 dead letters: 108 s instead of 9). What is switched off counts as costly, so without
 * jit = off each statement would be compiled first, for seconds. */
static int plan_by_index(struct dlq_scan *s, struct pr_err *err)
{
	return pr_pg_run(s->pg,
		"SET enable_sort = off; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off",
		0, NULL, err);
}

static int next_page(struct dlq_scan *s, struct pr_err *err)
{
	char after[24], through[24], most[24];
	const char *params[11] = { s->group, s->topic, s->type, s->cls, s->code, *s->since ? s->since : NULL,
		*s->until ? s->until : NULL, s->state, after, through, most };

	if (!s->res && plan_by_index(s, err) < 0)
		return -1;
	PQclear(s->res);
	s->res = NULL;
	s->row = 0;
	(void)snprintf(after, sizeof(after), "%lld", (long long)s->after);
	(void)snprintf(through, sizeof(through), "%lld", (long long)s->through);
	(void)snprintf(most, sizeof(most), "%d", PAGE);
	s->res = pr_pg_exec(s->pg, sql_cli_dlq_page, 11, params, err);
	return s->res ? 0 : -1;
}

/* The cause is the only filter that the database does not know. */
static int of_the_cause(const struct dlq_scan *s)
{
	char id[9];

	if (!s->cause)
		return 1;
	dlq_cause_id(cli_cell(s->res, s->row, D_CLASS), cli_cell(s->res, s->row, D_CODE),
		cli_cell(s->res, s->row, D_REASON), id);
	return strcmp(id, s->cause) == 0;
}

int dlq_next(struct dlq_scan *s, struct pr_err *err)
{
	do {
		if (s->res && ++s->row == PQntuples(s->res) && s->row < PAGE)
			return 0;
		if (!s->res || s->row == PQntuples(s->res)) {
			if (next_page(s, err) < 0)
				return -1;
			if (PQntuples(s->res) == 0)
				return 0;
		}
		s->after = cli_cell_int(s->res, s->row, D_ENTRY);
	} while (!of_the_cause(s));
	return 1;
}

void dlq_scan_end(struct dlq_scan *s)
{
	PQclear(s->res);
	s->res = NULL;
}

void dlq_fact_of(const struct dlq_scan *s, struct dlq_fact *ret)
{
	const PGresult *res = s->res;
	int i = s->row;

	*ret = (struct dlq_fact){
		.entry = cli_cell(res, i, D_ENTRY),
		.group = cli_cell(res, i, D_GROUP),
		.topic = cli_cell(res, i, D_TOPIC),
		.type = cli_cell(res, i, D_TYPE),
		.cls = cli_cell(res, i, D_CLASS),
		.code = cli_cell(res, i, D_CODE),
		.reason = cli_cell(res, i, D_REASON),
		.at = cli_cell(res, i, D_BURIED),
	};
}

int dlq_entry(const char *text, int64_t *ret, struct pr_err *err)
{
	char *end;

	errno = 0;
	*ret = strtoll(text, &end, 10);
	if (errno || *end || *ret < 1 || !(*text >= '0' && *text <= '9'))
		return cli_usage(err, "\"%.80s\" is not the number of a dead letter", text);
	return 0;
}

int dlq_not_found(struct pr_err *err, int64_t entry)
{
	(void)pr_fail(err, PR_REJECT, "there is no dead letter %lld", (long long)entry);
	err->exit = PR_EX_NOT_FOUND;
	return pr_hint(err, "`postrider dlq list --all` shows what there is");
}

void dlq_put_array(struct pr_buf *b, const int64_t *v, int n)
{
	pr_buf_puts(b, "{");
	for (int i = 0; i < n; i++)
		pr_buf_printf(b, "%s%lld", i ? "," : "", (long long)v[i]);
	pr_buf_puts(b, "}");
}

int dlq_which(const struct cli *c, int all, int64_t **ret, int *ret_n, struct pr_err *err)
{
	if (c->nargs && (cli_has(c, "all") || dlq_filtered(c)))
		return cli_usage(err, "either entries or a filter, not both");
	if (c->nargs == 0 && !all && !cli_has(c, "all")) {
		(void)cli_usage(err, "which dead letters?");
		return pr_hint(err,
			"give their entries, or --all and what narrows it: --cause, --group, --class, ...");
	}
	*ret_n = c->nargs;
	*ret = c->nargs ? pr_calloc((size_t)c->nargs, sizeof(**ret)) : NULL;
	for (int i = 0; i < c->nargs; i++) {
		if (dlq_entry(c->args[i], &(*ret)[i], err) < 0)
			return -1;
		for (int k = 0; k < i; k++)
			if ((*ret)[k] == (*ret)[i])
				return cli_usage(err, "dead letter %s is named twice", c->args[i]);
	}
	return 0;
}

int dlq_all_dead(struct pr_pg *pg, const int64_t *v, int n, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	const char *params[1];
	PGresult *res;
	int rc = 0;

	dlq_put_array(&b, v, n);
	params[0] = b.s;
	res = pr_pg_exec(pg,
		"SELECT u.e, d.state, d.edited_to FROM unnest($1::bigint[]) AS u (e) "
		"LEFT JOIN inbox.dead_letter AS d ON d.entry = u.e WHERE d.state IS DISTINCT FROM 'dead' "
		"LIMIT 1",
		1, params, err);
	pr_buf_free(&b);
	if (!res)
		return -1;
	if (PQntuples(res) && !cli_cell(res, 0, 1)) {
		rc = dlq_not_found(err, cli_cell_int(res, 0, 0));
	} else if (PQntuples(res)) {
		rc = pr_fail(err, PR_REJECT, "nothing was done: dead letter %s is %s, not dead",
			PQgetvalue(res, 0, 0), PQgetvalue(res, 0, 1));
		err->exit = PR_EX_REFUSED;
		if (cli_cell(res, 0, 2))
			(void)pr_hint(
				err, "it was edited: dead letter %s took its place", PQgetvalue(res, 0, 2));
		else
			(void)pr_hint(
				err, "`postrider dlq show %s` tells its history", PQgetvalue(res, 0, 0));
	}
	PQclear(res);
	return rc;
}

int dlq_count(
	const struct cli *c, struct pr_pg *pg, int64_t through, struct dlq_causes *causes, struct pr_err *err)
{
	struct dlq_scan s;
	struct dlq_fact f;
	int rc;

	dlq_scan_begin(&s, c, pg, "dead");
	s.through = through;
	while ((rc = dlq_next(&s, err)) == 1) {
		dlq_fact_of(&s, &f);
		dlq_causes_add(causes, &f);
	}
	dlq_scan_end(&s);
	return rc;
}
