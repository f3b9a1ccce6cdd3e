/* cli/saga_find.c -- which sagas a verb is about: named one by one, or all that its filter finds. Refuses to
 * take an empty command line for all of them. */
#include "cli/saga.h"
#include "lib/json.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define PAGE    1000
#define MOST    1000000 /* sagas of one verb */
#define STRETCH "50000" /* sagas that one statement looks through: a fraction of a second */

/* ---- the filter ---- */

static void add_state(struct saga_filter *f, struct pr_buf *b, const char *s)
{
	int state = saga_state_parse(s, strlen(s));

	pr_buf_printf(b, "%s%s", b->len ? "," : "{", s);
	f->live &= !saga_is_final((enum saga_state)state);
	f->indexed &= f->live && state != SAGA_RUNNING;
}

void saga_filter_take(struct saga_filter *f, const struct cli *c, const char *state)
{
	struct pr_buf b = { 0 };
	const char *s;

	*f = (struct saga_filter){
		.live = 1, .indexed = 1, .name = cli_option(c, "name"), .step = cli_option(c, "step")
	};
	for (int i = 0; cli_given(c, "state") && (s = cli_nth(c, "state", i)); i++)
		add_state(f, &b, s);
	if (!b.len && state)
		add_state(f, &b, state);
	if (b.len)
		pr_buf_puts(&b, "}");
	else
		f->indexed = 0;
	f->states = b.s;
	if (cli_given(c, "older"))
		(void)snprintf(f->older, sizeof(f->older), "%lld", (long long)cli_int(c, "older", 0));
}

void saga_filter_release(struct saga_filter *f)
{
	free(f->states);
}

int saga_filtered(const struct cli *c)
{
	return cli_given(c, "name") || cli_given(c, "state") || cli_given(c, "older");
}

/* In the order of an index on ids nothing is sorted: the planner would read all sagas to sort a stretch of
 * them. Those of the indexed states are few. */
static int begin_scan(
	struct pr_pg *pg, const struct saga_filter *f, const struct saga_scan *scan, struct pr_err *err)
{
	if (*scan->after)
		return 0;
	return pr_pg_run(pg, f->indexed ? "SET enable_sort = on" : "SET enable_sort = off", 0, NULL, err);
}

/* The id that the next stretch ends with; "": they are all of one. */
static int stretch(struct pr_pg *pg, const struct saga_filter *f, const struct saga_scan *scan, char to[37],
	struct pr_err *err)
{
	const char *params[4] = { f->indexed ? f->states : NULL, f->live ? "t" : "f",
		*scan->after ? scan->after : NULL, STRETCH };
	PGresult *res;

	*to = '\0';
	if (!f->name && !f->step && !*f->older && (!f->states || f->indexed))
		return 0; /* there is nothing to look for */
	res = pr_pg_exec(pg, sql_saga_stretch, 4, params, err);
	if (!res)
		return -1;
	if (PQntuples(res))
		(void)snprintf(to, 37, "%s", PQgetvalue(res, 0, 0));
	PQclear(res);
	return 0;
}

PGresult *saga_page(struct pr_pg *pg, const struct saga_filter *f, struct saga_scan *scan, int64_t most,
	struct pr_err *err)
{
	char limit[24], to[37];
	const char *params[8] = { f->states, f->name, f->step, *f->older ? f->older : NULL,
		*scan->after ? scan->after : NULL, limit, NULL, f->live ? "t" : "f" };
	PGresult *res;
	int n;

	most = most < PAGE ? most : PAGE; /* of one statement: it has a deadline */
	if (begin_scan(pg, f, scan, err) < 0 || stretch(pg, f, scan, to, err) < 0)
		return NULL;
	params[6] = *to ? to : NULL;
	(void)snprintf(limit, sizeof(limit), "%lld", (long long)most);
	res = pr_pg_exec(pg, sql_saga_list, 8, params, err);
	if (!res)
		return NULL;
	n = PQntuples(res);
	if (n > 0 && n >= most)
		(void)snprintf(scan->after, sizeof(scan->after), "%s", PQgetvalue(res, n - 1, SL_ID));
	else if (*to)
		(void)snprintf(scan->after, sizeof(scan->after), "%s", to);
	else
		scan->done = 1;
	return res;
}

/* ---- those that are meant ---- */

int saga_check_id(const char *text, struct pr_err *err)
{
	if (cli_is_uuid(text))
		return 0;
	(void)cli_usage(err, "\"%.80s\" is not the id of a saga", text);
	return pr_hint(err, "an id is a UUID; `postrider saga list` shows them");
}

int saga_not_found(struct pr_err *err, const char *id)
{
	(void)pr_fail(err, PR_REJECT, "there is no saga %s in this database", id);
	err->exit = PR_EX_NOT_FOUND;
	return pr_hint(err,
		"it was never started, its start has not arrived yet, or it ended long ago; is this the "
		"engine's database?");
}

static struct saga_picked *add(struct saga_pick *p, const char *id, const char *name)
{
	struct saga_picked *one;

	if (p->n == p->cap) {
		p->cap = p->cap ? p->cap * 2 : 64;
		p->v = pr_realloc(p->v, sizeof(*p->v) * (size_t)p->cap);
	}
	one = &p->v[p->n++];
	(void)snprintf(one->id, sizeof(one->id), "%s", id);
	(void)snprintf(one->name, sizeof(one->name), "%s", name);
	return one;
}

void saga_pick_release(struct saga_pick *p)
{
	free(p->v);
}

void saga_put_ids(struct pr_buf *b, const struct saga_picked *v, int n)
{
	pr_buf_puts(b, "{");
	for (int i = 0; i < n; i++)
		pr_buf_printf(b, "%s%s", i ? "," : "", v[i].id);
	pr_buf_puts(b, "}");
}

static int has(const struct saga_pick *p, const char *id)
{
	for (int i = 0; i < p->n; i++)
		if (strcasecmp(p->v[i].id, id) == 0)
			return 1;
	return 0;
}

static const char *name_of(const PGresult *res, const char *id)
{
	for (int i = 0; i < PQntuples(res); i++)
		if (strcasecmp(PQgetvalue(res, i, 0), id) == 0)
			return PQgetvalue(res, i, 1);
	return NULL;
}

static int pick_named(const struct cli *c, struct pr_pg *pg, struct saga_pick *p, struct pr_err *err)
{
	struct pr_buf ids = { 0 };
	const char *params[1], *name;
	PGresult *res;
	int rc = 0;

	for (int i = 0; i < c->nargs; i++)
		if (!has(p, c->args[i]))
			(void)add(p, c->args[i], "");
	saga_put_ids(&ids, p->v, p->n);
	params[0] = ids.s;
	res = pr_pg_exec(pg, sql_saga_instances, 1, params, err);
	pr_buf_free(&ids);
	if (!res)
		return -1;
	for (int i = 0; rc == 0 && i < p->n; i++) {
		name = name_of(res, p->v[i].id);
		if (name)
			(void)snprintf(p->v[i].name, sizeof(p->v[i].name), "%s", name);
		else
			rc = saga_not_found(err, p->v[i].id);
	}
	PQclear(res);
	return rc;
}

static int pick_found(struct pr_pg *pg, const struct saga_filter *f, int64_t version, struct saga_pick *p,
	struct pr_err *err)
{
	struct saga_scan scan = { 0 };
	PGresult *res;

	while (!scan.done && p->n < MOST) {
		res = saga_page(pg, f, &scan, PAGE, err);
		if (!res)
			return -1;
		for (int i = 0; i < PQntuples(res); i++)
			if (!version || cli_cell_int(res, i, SL_VERSION) == version)
				(void)add(p, PQgetvalue(res, i, SL_ID), PQgetvalue(res, i, SL_NAME));
		PQclear(res);
	}
	return 0;
}

int saga_pick(const struct cli *c, struct pr_pg *pg, const struct saga_filter *f, int64_t version,
	struct saga_pick *ret, struct pr_err *err)
{
	if (c->nargs)
		return pick_named(c, pg, ret, err);
	if (pick_found(pg, f, version, ret, err) < 0)
		return -1;
	if (ret->n)
		return 0;
	(void)pr_fail(err, PR_REJECT, "there is no saga like that");
	err->exit = PR_EX_NOT_FOUND;
	return pr_hint(err, "`postrider saga list` shows what there is");
}

/* ---- values ---- */

/* "2026-01-31 09:00:00.5+00": the session is UTC and ISO. */
const char *saga_time(const PGresult *res, int row, int col, char *buf)
{
	const char *s = cli_cell(res, row, col);
	char digits[7] = "000000";
	size_t n;

	if (!s)
		return NULL;
	n = strlen(s);
	if (n < 19 || n > 32 || s[10] != ' ')
		return s; /* infinity, or beyond year 9999 */
	for (int i = 0; i < 6 && s[19] == '.' && s[20 + i] >= '0' && s[20 + i] <= '9'; i++)
		digits[i] = s[20 + i];
	(void)snprintf(buf, SAGA_TIME, "%.10sT%.8s.%sZ", s, s + 11, digits);
	return buf;
}

void saga_json_time(cJSON *o, const char *name, const PGresult *res, int row, int col)
{
	char buf[SAGA_TIME];
	const char *s = saga_time(res, row, col, buf);

	if (s)
		(void)cJSON_AddStringToObject(o, name, s);
	else
		(void)cJSON_AddNullToObject(o, name);
}

double saga_seconds(const PGresult *res, int row, int col)
{
	return (double)cli_cell_int(res, row, col) / 1e6;
}

enum cli_colour saga_colour(const char *state)
{
	if (strcmp(state, "STUCK") == 0 || strcmp(state, "ABORTED") == 0)
		return CLI_RED;
	return strcmp(state, "COMPLETED") == 0 ? CLI_GREEN : CLI_YELLOW;
}

int saga_data_option(const struct cli *c, char **ret, struct pr_err *err)
{
	const char *data = cli_str(c, "data");
	size_t n, at = 0;

	if (*data == '@') {
		if (cli_read_file(data + 1, ret, &n, err) < 0)
			return -1;
	} else {
		*ret = pr_strdup(data);
		n = strlen(data);
	}
	while (at < n && strchr(" \t\r\n", (*ret)[at]))
		at++;
	if (at < n && (*ret)[at] == '{' && pr_json_text(*ret, n))
		return 0;
	free(*ret);
	*ret = NULL;
	(void)cli_usage(err, "--data is not one JSON object");
	return pr_hint(err, "as in '{\"order_id\": \"1234\"}', or @file, or @- for standard input");
}
