/* cli/adopt.c -- `postrider adopt`: looks at an outbox table of another system, says what becomes of each of
 * its columns, and writes or runs the SQL that makes its rows events of ours; --undo takes it away again.
 * Changes nothing unless told to, and refuses what is no table. */
#include "cli/adopt.h"
#include "lib/rights.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define MOST "1000000" /* waiting rows are counted up to this */

struct run {
	struct cli *c;
	struct pr_pg *pg;
	PGresult *res; /* the catalogue's answer, which t borrows from */
	struct adopt_table t;
	struct adopt a;
	const struct adopt_layout *layout;
	char why[120];
	struct pr_buf sql;
	int64_t pending, events, scheduled; /* -1: not known, not done */
};

static int refuse(struct pr_err *err, int code)
{
	err->exit = code;
	return -1;
}

static int is_of_ours(const char *schema)
{
	static const char *const ours[] = { "outbox", "inbox", "saga", "pg_catalog", "information_schema" };

	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
		if (strcmp(schema, ours[i]) == 0)
			return 1;
	return 0;
}

static int judge_table(const struct run *r, struct pr_err *err)
{
	char kind = *cli_cell(r->res, 0, 2);

	if (kind != 'r' && kind != 'p')
		(void)pr_fail(err, PR_REJECT, "%s is not a table", r->c->args[0]);
	else if (is_of_ours(r->t.schema))
		(void)pr_fail(err, PR_REJECT, "%s is in schema %s: nobody else's outbox is there",
			r->c->args[0], r->t.schema);
	else
		return 0;
	return refuse(err, PR_EX_REFUSED);
}

static int look(struct run *r, struct pr_err *err)
{
	const char *name = r->c->args[0];
	char *full = strchr(name, '.') ? pr_strdup(name) : pr_asprintf("public.%s", name);

	r->res = pr_pg_exec(r->pg, sql_adopt_table, 1, (const char *const[]){ full }, err);
	free(full);
	if (!r->res)
		return -1;
	if (PQntuples(r->res) == 0) {
		(void)pr_fail(err, PR_REJECT, "there is no table %s", name);
		(void)pr_hint(
			err, "give it as SQL writes it, with its schema: shop.outbox, shop.\\\"Outbox\\\"");
		return refuse(err, PR_EX_NOT_FOUND);
	}
	r->t.schema = cli_cell(r->res, 0, 0);
	r->t.table = cli_cell(r->res, 0, 1);
	r->t.space = cli_cell(r->res, 0, 5);
	r->t.n = PQntuples(r->res);
	r->t.v = pr_calloc((size_t)r->t.n, sizeof(*r->t.v));
	for (int i = 0; i < r->t.n; i++)
		r->t.v[i] = (struct adopt_column){ .name = cli_cell(r->res, i, 3),
			.type = cli_cell(r->res, i, 4) };
	return judge_table(r, err);
}

/* "column=field" of --map, the last "=" between them: a column may have one in its name. */
static int read_maps(
	const struct cli *c, struct adopt_map **ret, char ***ret_words, int *ret_n, struct pr_err *err)
{
	char *eq;

	for (*ret_n = 0; cli_nth(c, "map", *ret_n); (*ret_n)++)
		;
	*ret = pr_calloc((size_t)*ret_n + 1, sizeof(**ret));
	*ret_words = pr_calloc((size_t)*ret_n + 1, sizeof(**ret_words));
	for (int i = 0; i < *ret_n; i++) {
		(*ret_words)[i] = pr_strdup(cli_nth(c, "map", i));
		eq = strrchr((*ret_words)[i], '=');
		if (!eq || eq == (*ret_words)[i] || !eq[1])
			return cli_usage(err, "--map %s: give column=field", (*ret_words)[i]);
		*eq = '\0';
		(*ret)[i] = (struct adopt_map){ .column = (*ret_words)[i], .as = eq + 1 };
	}
	return 0;
}

static int choose(struct run *r, struct pr_err *err)
{
	const char *name = cli_str(r->c, "layout");
	struct adopt_map *maps = NULL;
	char **words = NULL;
	int n = 0, rc = read_maps(r->c, &maps, &words, &n, err);

	(void)snprintf(r->why, sizeof(r->why), "--layout says so");
	if (rc == 0) {
		r->layout = name && strcmp(name, "auto") != 0
				    ? adopt_layout_named(name)
				    : adopt_layout_recognise(&r->t, r->why, sizeof(r->why), err);
		rc = r->layout ? adopt_layout_apply(r->layout, &r->t, maps, n, &r->a, err) : -1;
	}
	for (int i = 0; i < n; i++)
		free(words[i]);
	free(words);
	free(maps);
	return rc;
}

/* How many rows the old publisher has still to send, as its table says. */
static int count_pending(struct run *r, struct pr_err *err)
{
	char s[140], t[140], *sql;
	PGresult *res;

	if (!r->a.pending)
		return 0;
	sql = pr_asprintf("SELECT count(*) FROM (SELECT FROM %s.%s AS n WHERE %s LIMIT " MOST ") AS p",
		pr_quote_ident(r->t.schema, strlen(r->t.schema), s, sizeof(s)),
		pr_quote_ident(r->t.table, strlen(r->t.table), t, sizeof(t)), r->a.pending);
	res = pr_pg_exec(r->pg, sql, 0, NULL, err);
	free(sql);
	if (!res)
		return -1;
	r->pending = cli_cell_int(res, 0, 0);
	PQclear(res);
	return 0;
}

static int judge_backfill(const struct run *r, struct pr_err *err)
{
	if (!cli_has(r->c, "backfill") || r->a.pending)
		return 0;
	(void)pr_fail(err, PR_REJECT, "nothing in %s says which rows have been published", r->c->args[0]);
	(void)pr_hint(err, "let the old publisher catch up and stop it, or insert what is missing into "
			   "outbox.event by hand");
	return refuse(err, PR_EX_REFUSED);
}

static void write_sql(struct run *r)
{
	if (cli_has(r->c, "undo")) {
		adopt_sql_undo(&r->a, &r->sql);
		return;
	}
	adopt_sql_begin(&r->a, &r->sql);
	adopt_sql_triggers(&r->a, &r->sql);
	if (cli_has(r->c, "backfill"))
		adopt_sql_take(&r->a, &r->sql);
	adopt_sql_end(&r->sql);
}

/* The same statements; in two parts, because the second tells how many rows it took. */
static int apply(struct run *r, struct pr_err *err)
{
	struct pr_buf first = { 0 }, take = { 0 };
	PGresult *res = NULL;
	int rc;

	adopt_sql_begin(&r->a, &first);
	adopt_sql_triggers(&r->a, &first);
	rc = pr_pg_run(r->pg, first.s, 0, NULL, err);
	if (rc == 0 && cli_has(r->c, "backfill")) {
		adopt_sql_take(&r->a, &take);
		res = pr_pg_exec(r->pg, take.s, 0, NULL, err);
		rc = res ? 0 : -1;
	}
	if (rc == 0)
		rc = pr_pg_run(r->pg, "COMMIT", 0, NULL, err);
	if (rc == 0 && res) {
		r->events = cli_cell_int(res, 0, 0);
		r->scheduled = cli_cell_int(res, 0, 1);
	}
	PQclear(res);
	pr_buf_free(&first);
	pr_buf_free(&take);
	return rc;
}

static int do_it(struct run *r, struct pr_err *err)
{
	const char *file = cli_str(r->c, "sql");

	if (file && cli_write_file(r->c, file, &r->sql, err) < 0)
		return -1;
	if (!cli_has(r->c, "apply"))
		return 0;
	if ((cli_has(r->c, "undo") ? pr_pg_run(r->pg, r->sql.s, 0, NULL, err) : apply(r, err)) == 0)
		return 0;
	if (strcmp(err->code, "55P03") == 0)
		(void)pr_hint(err,
			"nothing was done: a transaction has the table for longer than 5 s; run it again");
	else if (strcmp(err->code, "42501") == 0 && !*err->hint)
		(void)pr_hint(err, "run it as the owner of %s.%s, who may insert into outbox.event",
			r->t.schema, r->t.table);
	return -1;
}

/* ---------------------------------------------------------------- what is said */

static const struct adopt_note *next_note(const struct run *r, const struct adopt_note *n)
{
	for (n = n ? n + 1 : adopt_layout_notes(r->layout); n->what; n++)
		if (*n->what == '(')
			return n;
	return NULL;
}

static int count(const struct run *r, enum adopt_fate fate)
{
	int k = 0;

	for (int i = 0; i < r->t.n; i++)
		k += r->t.v[i].fate == fate;
	for (const struct adopt_note *n = next_note(r, NULL); n; n = next_note(r, n))
		k += n->fate == fate;
	return k;
}

static void list(const struct run *r)
{
	static const char *const heads[] = { "column", "type", "here", "~why" };
	static const enum adopt_fate order[] = { ADOPT_IMPOSSIBLE, ADOPT_TO_DO, ADOPT_DIFFERS, ADOPT_KEPT,
		ADOPT_NEEDLESS };
	struct cli_table t = { .ncols = 4, .heads = heads };

	for (size_t k = 0; k < sizeof(order) / sizeof(*order); k++) {
		for (int i = 0; i < r->t.n; i++)
			if (r->t.v[i].fate == order[k])
				cli_table_add(&t, (const char *const[]){ r->t.v[i].name, r->t.v[i].type,
							  adopt_fate_str[order[k]], r->t.v[i].why });
		for (const struct adopt_note *n = next_note(r, NULL); n; n = next_note(r, n))
			if (n->fate == order[k])
				cli_table_add(&t, (const char *const[]){
							  n->what, "", adopt_fate_str[order[k]], n->why });
	}
	cli_table_print(&t, stdout);
}

static void add_json(
	cJSON *columns, const char *name, const char *type, enum adopt_fate fate, const char *why)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "column", name);
	(void)cJSON_AddItemToObject(o, "type", type ? cJSON_CreateString(type) : cJSON_CreateNull());
	(void)cJSON_AddStringToObject(o, "fate", adopt_fate_str[fate]);
	(void)cJSON_AddStringToObject(o, "why", why);
	(void)cJSON_AddItemToArray(columns, o);
}

static void add_count(cJSON *o, const char *name, int64_t n)
{
	if (n >= 0)
		cli_json_int(o, name, n);
	else
		(void)cJSON_AddNullToObject(o, name);
}

static void list_json(const struct run *r)
{
	cJSON *o = cJSON_CreateObject(), *columns;

	(void)cJSON_AddStringToObject(o, "schema", r->t.schema);
	(void)cJSON_AddStringToObject(o, "table", r->t.table);
	(void)cJSON_AddItemToObject(o, "layout",
		r->layout ? cJSON_CreateString(adopt_layout_name(r->layout)) : cJSON_CreateNull());
	(void)cJSON_AddStringToObject(o, "why", r->why);
	add_count(o, "unpublished", r->pending);
	add_count(o, "events", r->events);
	add_count(o, "scheduled", r->scheduled);
	(void)cJSON_AddStringToObject(o, "sql", r->sql.s);
	columns = cJSON_AddArrayToObject(o, "columns");
	for (int i = 0; r->layout && i < r->t.n; i++)
		add_json(columns, r->t.v[i].name, r->t.v[i].type, r->t.v[i].fate, r->t.v[i].why);
	for (const struct adopt_note *n = r->layout ? next_note(r, NULL) : NULL; n; n = next_note(r, n))
		add_json(columns, n->what, NULL, n->fate, n->why);
	cli_json_free_line(o);
}

static void talk(const struct run *r)
{
	char n[64], m[64];

	if (cli_has(r->c, "undo")) {
		cli_say("%s", cli_has(r->c, "apply") ? "the triggers are gone: the old publisher goes on"
						     : "nothing was done");
		return;
	}
	cli_say("layout %s: %s", adopt_layout_name(r->layout), r->why);
	if (r->events >= 0)
		cli_say("%s and %s were taken", cli_number(r->events, "event", n),
			cli_number(r->scheduled, "scheduled one", m));
	else if (r->pending > 0)
		cli_say("%s%s not published, as the table has it: --backfill takes them; stop the old "
			"publisher first",
			cli_number(r->pending, "row", n),
			r->pending == strtoll(MOST, NULL, 10) ? " or more are" : " may be");
	if (!cli_has(r->c, "apply") && !cli_has(r->c, "sql"))
		cli_say("nothing was done: --sql FILE writes the SQL, --apply runs it");
}

static int report(struct run *r)
{
	if (cli_has(r->c, "json"))
		list_json(r);
	else if (r->layout)
		list(r);
	talk(r);
	return r->layout && count(r, ADOPT_IMPOSSIBLE) ? PR_EX_UNHEALTHY : PR_EX_OK;
}

static int adopt(struct run *r, struct pr_err *err)
{
	if (look(r, err) < 0)
		return -1;
	if (cli_has(r->c, "undo")) {
		r->a.schema = pr_strdup(r->t.schema);
		r->a.table = pr_strdup(r->t.table);
	} else if (choose(r, err) < 0 || judge_backfill(r, err) < 0 || count_pending(r, err) < 0) {
		return -1;
	}
	write_sql(r);
	return do_it(r, err);
}

int verb_adopt(struct cli *c)
{
	struct run r = { .c = c, .pending = -1, .events = -1, .scheduled = -1 };
	struct pr_err err = { 0 };
	int rc;

	if (cli_connect_outbox(c, &r.pg, &err) < 0 || adopt(&r, &err) < 0)
		rc = cli_failed(c, &err);
	else
		rc = report(&r);
	PQclear(r.res);
	free(r.t.v);
	adopt_release(&r.a);
	pr_buf_free(&r.sql);
	pr_pg_close(r.pg);
	return rc;
}
