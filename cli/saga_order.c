/* cli/saga_order.c -- `postrider saga retry`, `skip`, `undo`, `abort` and `migrate`: orders to the engine,
 * for one saga or for many, written to the database with who gave them. The engine does or refuses them; this
 * program waits a while for its word. An order that nobody has answered yet stays. */
#include "cli/saga.h"
#include "lib/clock.h"
#include "lib/json.h"
#include "sql.h"

#include <poll.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK 500 /* orders given before their outcomes are waited for */

enum fate { WAITING, DONE, REFUSED };
static const char *const fate_str[] = { "waiting", "done", "refused" };

struct asked {
	const struct saga_picked *saga;
	char *entry, *reason, *state, *at; /* NULL: not known */
	enum fate fate;
};

struct work {
	enum saga_order order;
	const char *step;   /* NULL: the one that is stuck */
	const char *detail; /* JSON */
	char *by;
	struct saga_pick pick;
	struct asked *v;
	int n, given; /* v[0..given) were asked for */
	struct saga_def *to;
};

static void work_release(struct work *w)
{
	for (int i = 0; i < w->n; i++) {
		free(w->v[i].entry);
		free(w->v[i].reason);
		free(w->v[i].state);
		free(w->v[i].at);
	}
	free(w->v);
	free(w->by);
	saga_def_free(w->to);
	saga_pick_release(&w->pick);
}

static char *copy_of(const PGresult *res, int row, int col)
{
	const char *s = cli_cell(res, row, col);

	return s ? pr_strdup(s) : NULL;
}

/* Whose order it is: several people use one login of the database. */
static char *by_whom(const struct cli *c, struct pr_pg *pg)
{
	const char *by = cli_option(c, "by"), *sudo = getenv("SUDO_USER"), *db = PQuser(pr_pg_conn(pg));
	const struct passwd *pw = getpwuid(getuid());
	const char *os = sudo && *sudo ? sudo : pw ? pw->pw_name : NULL;

	if (by)
		return pr_strdup(by);
	if (!os || strcmp(os, db) == 0)
		return pr_strdup(db);
	return pr_asprintf("%s as %s", os, db);
}

/* ---- ask ---- */

static void was_refused(struct asked *a, const struct pr_err *err)
{
	const char *text = strncmp(err->text, "saga: ", 6) == 0 ? err->text + 6 : err->text;

	a->fate = REFUSED;
	a->reason = pr_asprintf("%s%s%s", text, *err->hint ? "; " : "", err->hint);
}

/* All of v[from, to), or none. */
static int give(struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	struct pr_buf ids = { 0 };
	const char *params[5] = { NULL, saga_order_str(w->order), w->step, w->detail, w->by };
	PGresult *res;

	pr_buf_puts(&ids, "{");
	for (int i = from; i < to; i++)
		pr_buf_printf(&ids, "%s%s", i > from ? "," : "", w->v[i].saga->id);
	pr_buf_puts(&ids, "}");
	params[0] = ids.s;
	res = pr_pg_exec(pg, sql_saga_order, 5, params, err);
	pr_buf_free(&ids);
	if (!res)
		return -1;
	for (int i = from; i < to && i - from < PQntuples(res); i++)
		w->v[i].entry = copy_of(res, i - from, 0);
	PQclear(res);
	return 0;
}

/* 55000 stands for "later", elsewhere: here it is said of a saga that has ended. */
static int is_refusal(const struct pr_err *err)
{
	return err->kind == PR_REJECT || strcmp(err->code, "55000") == 0;
}

/* One that has ended meanwhile can be ordered nothing any more; the others can. */
static int give_chunk(struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	if (give(pg, w, from, to, err) == 0)
		return 0;
	if (!is_refusal(err))
		return -1;
	for (int i = from; i < to; i++) {
		if (give(pg, w, i, i + 1, err) == 0)
			continue;
		if (!is_refusal(err))
			return -1;
		was_refused(&w->v[i], err);
	}
	return 0;
}

/* ---- watch ---- */

enum { O_ENTRY, O_OUTCOME, O_REASON, O_STATE, O_AT };

static struct asked *asked_of(struct work *w, int from, int to, const char *entry)
{
	for (int i = from; i < to; i++)
		if (w->v[i].entry && strcmp(w->v[i].entry, entry) == 0)
			return &w->v[i];
	return NULL;
}

static void settle(struct asked *a, const PGresult *res, int row)
{
	const char *outcome = cli_cell(res, row, O_OUTCOME);

	free(a->state);
	free(a->at);
	a->state = copy_of(res, row, O_STATE);
	a->at = copy_of(res, row, O_AT);
	if (!outcome)
		return;
	a->fate = strcmp(outcome, "done") == 0 ? DONE : REFUSED;
	a->reason = copy_of(res, row, O_REASON);
}

/* How many of v[from, to) nobody has answered yet; -1 on error. */
static int look(struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	struct pr_buf entries = { 0 };
	const char *params[1];
	struct asked *a;
	PGresult *res;
	int open = 0;

	pr_buf_puts(&entries, "{");
	for (int i = from; i < to; i++)
		if (w->v[i].fate == WAITING && w->v[i].entry)
			pr_buf_printf(&entries, "%s%s", open++ ? "," : "", w->v[i].entry);
	pr_buf_puts(&entries, "}");
	params[0] = entries.s;
	res = open ? pr_pg_exec(pg, sql_saga_order_outcome, 1, params, err) : NULL;
	pr_buf_free(&entries);
	if (!res)
		return open ? -1 : 0;
	for (int i = 0; i < PQntuples(res); i++) {
		a = asked_of(w, from, to, PQgetvalue(res, i, O_ENTRY));
		if (!a)
			continue;
		settle(a, res, i);
		open -= a->fate != WAITING;
	}
	PQclear(res);
	return open;
}

/* The time to wait begins anew whenever one was answered. */
static int watch(const struct cli *c, struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	int64_t patience = cli_int(c, "wait", 5 * PR_SEC), until = pr_mono_us() + patience;
	int pause = 20, open, before = to - from;

	for (;;) {
		open = look(pg, w, from, to, err);
		if (open < before) {
			before = open;
			until = pr_mono_us() + patience;
		}
		if (open <= 0 || pr_mono_us() >= until)
			return open;
		(void)poll(NULL, 0, pause);
		pause = pause < 200 ? pause * 2 : 200;
	}
}

static void count(const struct work *w, int *ret /* [3], by fate */)
{
	memset(ret, 0, 3 * sizeof(*ret));
	for (int i = 0; i < w->given; i++)
		ret[w->v[i].fate]++;
}

/* Chunk by chunk, so that an engine that is away gets no more than it was asked. */
static int order(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	struct cli_progress p = { 0 };
	int rc = 0, n[3];

	if (w->n > 1 || cli_given(c, "progress"))
		cli_progress_begin(c, &p, saga_order_str(w->order), w->n);
	while (rc == 0 && w->given < w->n) {
		int from = w->given, to = w->n - from < CHUNK ? w->n : from + CHUNK;

		rc = give_chunk(pg, w, from, to, err);
		w->given = to;
		if (rc == 0 && cli_int(c, "wait", 1) > 0)
			rc = watch(c, pg, w, from, to, err);
		count(w, n);
		p.done = n[DONE] + n[REFUSED];
		p.failed = n[REFUSED];
		cli_progress(&p);
	}
	cli_progress_end(&p);
	return rc < 0 ? -1 : 0;
}

/* ---- say it ---- */

static void put_json(const struct work *w, const struct asked *a, const char *outcome, const char *reason)
{
	cJSON *o = cJSON_CreateObject();
	const struct {
		const char *name, *text;
	} fields[] = { { "id", a->saga->id }, { "name", a->saga->name },
		{ "order", saga_order_str(w->order) }, { "step", w->step }, { "outcome", outcome },
		{ "reason", reason }, { "state", a->state }, { "at", a->at } };

	if (a->entry)
		(void)cJSON_AddRawToObject(o, "entry", a->entry);
	else
		(void)cJSON_AddNullToObject(o, "entry");
	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		if (fields[i].text)
			(void)cJSON_AddStringToObject(o, fields[i].name, fields[i].text);
		else
			(void)cJSON_AddNullToObject(o, fields[i].name);
	}
	cli_json_free_line(o);
}

static void put_text(const struct work *w, const struct asked *a)
{
	const char *what = saga_order_str(w->order);
	char *text;

	if (a->fate == DONE)
		text = pr_asprintf("%s %s  %s done: it is %s%s%s", a->saga->name, a->saga->id, what,
			a->state ? a->state : "gone", a->at ? ", " : "", a->at ? a->at : "");
	else if (a->fate == REFUSED)
		text = pr_asprintf("%s %s  %s refused: %s", a->saga->name, a->saga->id, what,
			a->reason ? a->reason : "no reason given");
	else
		text = pr_asprintf("%s %s  %s asked for", a->saga->name, a->saga->id, what);
	cli_text(stdout, text, 0, 0);
	free(text);
}

static int say_end(const struct cli *c, const struct work *w)
{
	char n[64], left[64];
	int by[3];

	count(w, by);
	if (w->n > 1)
		cli_say("%s: %d done, %d refused%s%s", saga_order_str(w->order), by[DONE], by[REFUSED],
			by[WAITING] ? ", not answered yet: " : "",
			by[WAITING] ? cli_count(by[WAITING], n) : "");
	if (by[WAITING] && cli_int(c, "wait", 1) > 0) {
		cli_say("no engine has answered; %s stays and will be done when one runs: "
			"`postrider status -c ENGINE.cfg`, `postrider saga show`",
			w->n == 1 ? "the order" : cli_number(by[WAITING], "order", n));
		if (w->given < w->n)
			cli_say("%s not asked: give the same command again",
				cli_number(w->n - w->given, "saga was", left));
		return PR_EX_UNAVAILABLE;
	}
	return by[REFUSED] ? PR_EX_REFUSED : PR_EX_OK;
}

static int report(const struct cli *c, const struct work *w)
{
	for (int i = 0; i < w->given; i++) {
		if (cli_has(c, "json"))
			put_json(w, &w->v[i], fate_str[w->v[i].fate], w->v[i].reason);
		else if (w->n == 1 || w->v[i].fate == REFUSED)
			put_text(w, &w->v[i]);
	}
	return say_end(c, w);
}

/* ---- what it would do ---- */

static void put_plan(const struct cli *c, const struct work *w, struct asked *a, const PGresult *res, int row)
{
	struct saga_copy s;
	struct pr_buf words = { 0 };
	struct pr_err err = { 0 };
	char *text;

	if (saga_copy_read(res, row, &s, &err) < 0 ||
		saga_rehearse(&s, w->order, w->step, w->detail, w->to, &words, &err) < 0)
		was_refused(a, &err);
	else
		a->fate = DONE;
	a->state = copy_of(res, row, 3);
	if (cli_has(c, "json")) {
		put_json(w, a, NULL, a->fate == DONE ? words.s : a->reason);
	} else {
		text = pr_asprintf("%s %s  would %s%s", a->saga->name, a->saga->id,
			a->fate == DONE ? "" : "be refused: ",
			a->fate == DONE ? saga_order_str(w->order) : a->reason);
		if (a->fate == DONE && words.len) {
			char *more = pr_asprintf("%s: %s", text, words.s);

			free(text);
			text = more;
		}
		cli_text(stdout, text, 0, 0);
		free(text);
	}
	pr_buf_free(&words);
	saga_copy_release(&s);
}

static int plan_chunk(
	const struct cli *c, struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	struct pr_buf ids = { 0 };
	const char *params[1];
	PGresult *res;

	saga_put_ids(&ids, w->pick.v + from, to - from);
	params[0] = ids.s;
	res = pr_pg_exec(pg, sql_saga_instances, 1, params, err);
	pr_buf_free(&ids);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		for (int k = from; k < to; k++)
			if (strcasecmp(w->v[k].saga->id, PQgetvalue(res, i, 0)) == 0)
				put_plan(c, w, &w->v[k], res, i);
	PQclear(res);
	return 0;
}

static int plan(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	char n[64];
	int by[3];

	for (int i = 0; i < w->n; i += CHUNK)
		if (plan_chunk(c, pg, w, i, w->n - i < CHUNK ? w->n : i + CHUNK, err) < 0)
			return cli_fail(err);
	w->given = w->n;
	count(w, by);
	cli_say("would %s %s%s", saga_order_str(w->order), cli_number(by[DONE], "saga", n),
		by[REFUSED] ? "; not the others" : "");
	return by[REFUSED] ? PR_EX_REFUSED : PR_EX_OK;
}

/* ---- the verbs ---- */

static const char *consequence(enum saga_order order)
{
	switch (order) {
	case ORDER_SKIP:
		return ", whatever its participant did or did not do";
	case ORDER_UNDO:
		return ": what it has done is taken back";
	case ORDER_ABORT:
		return ": it ends as it is, and nothing is undone";
	default:
		return "";
	}
}

static int confirmed(const struct cli *c, const struct work *w, struct pr_err *err)
{
	char n[64];

	if (w->order == ORDER_RETRY)
		return 0;
	if (w->n == 1)
		return cli_confirmed(c, err, "%s%s%.80s%s %s %s%s", saga_order_str(w->order),
			w->step ? " step " : "", w->step ? w->step : "", w->step ? " of" : "",
			w->pick.v[0].name, w->pick.v[0].id, consequence(w->order));
	return cli_confirmed(c, err, "%s%s%.80s%s %s%s", saga_order_str(w->order), w->step ? " step " : "",
		w->step ? w->step : "", w->step ? " of" : "", cli_number(w->n, "saga", n),
		consequence(w->order));
}

static int take(struct work *w)
{
	w->n = w->pick.n;
	w->v = pr_calloc((size_t)w->n + 1, sizeof(*w->v));
	for (int i = 0; i < w->n; i++)
		w->v[i].saga = &w->pick.v[i];
	return 0;
}

/* What is meant must have been said: nothing is ordered for all sagas by an empty command line. */
static int check(const struct cli *c, enum saga_order order, struct pr_err *err)
{
	for (int i = 0; i < c->nargs; i++)
		if (saga_check_id(c->args[i], err) < 0)
			return -1;
	if (c->nargs && saga_filtered(c))
		return cli_usage(err, "either ids or a filter (--name, --state, --older), not both");
	if (order == ORDER_SKIP && !cli_has(c, "step"))
		return cli_usage(err, "which step counts as done? give --step");
	if (c->nargs == 0 && !saga_filtered(c)) {
		(void)cli_usage(err, "which sagas? give their ids, or a filter: --name, --state, --older");
		return pr_hint(err, "--dry-run shows which it finds");
	}
	if (c->nargs == 0 && (order == ORDER_UNDO || order == ORDER_ABORT) && !cli_has(c, "state"))
		return cli_usage(err, "%s of those that a filter finds needs --state", saga_order_str(order));
	return 0;
}

static int prepare(struct cli *c, struct pr_pg *pg, struct work *w, const char *state, int64_t version,
	struct pr_err *err)
{
	struct saga_filter f = { 0 };
	int rc;

	saga_filter_take(&f, c, state);
	rc = saga_pick(c, pg, &f, version, &w->pick, err);
	saga_filter_release(&f);
	if (rc == 0)
		rc = take(w);
	w->by = by_whom(c, pg);
	return rc;
}

static int run(struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	if (cli_has(c, "dry-run"))
		return plan(c, pg, w, err);
	if (confirmed(c, w, err) < 0 || order(c, pg, w, err) < 0)
		return cli_fail(err);
	return report(c, w);
}

static int verb(struct cli *c, enum saga_order what, const char *state)
{
	struct work w = { .order = what, .step = cli_option(c, "step") };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if (check(c, what, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		prepare(c, pg, &w, state, 0, &err) < 0)
		rc = cli_failed(c, &err);
	else
		rc = run(c, pg, &w, &err);
	work_release(&w);
	pr_pg_close(pg);
	return rc;
}

int verb_saga_retry(struct cli *c)
{
	return verb(c, ORDER_RETRY, "STUCK");
}

int verb_saga_skip(struct cli *c)
{
	return verb(c, ORDER_SKIP, "STUCK");
}

int verb_saga_undo(struct cli *c)
{
	return verb(c, ORDER_UNDO, NULL);
}

int verb_saga_abort(struct cli *c)
{
	return verb(c, ORDER_ABORT, NULL);
}

/* ---- migrate ---- */

static int check_migrate(const struct cli *c, struct pr_err *err)
{
	for (int i = 0; i < c->nargs; i++)
		if (saga_check_id(c->args[i], err) < 0)
			return -1;
	if (!cli_has(c, "to"))
		return cli_usage(err, "to which version? give --to");
	if (c->nargs ? saga_filtered(c) || cli_has(c, "from") : !cli_has(c, "name") || !cli_has(c, "from"))
		return cli_usage(err, "which sagas? give their ids, or --name and --from");
	return 0;
}

/* All of one name: a version is a version of something. */
static int one_name(const struct work *w, struct pr_err *err)
{
	for (int i = 1; i < w->n; i++)
		if (strcmp(w->pick.v[i].name, w->pick.v[0].name) != 0)
			return cli_usage(err, "these are sagas of several names: %s and %s",
				w->pick.v[0].name, w->pick.v[i].name);
	return 0;
}

int verb_saga_migrate(struct cli *c)
{
	struct work w = { .order = ORDER_MIGRATE };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	char detail[64];
	int rc;

	(void)snprintf(detail, sizeof(detail), "{\"version\": %lld}", (long long)cli_int(c, "to", 0));
	w.detail = detail;
	if (check_migrate(c, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		prepare(c, pg, &w, NULL, cli_int(c, "from", 0), &err) < 0 || one_name(&w, &err) < 0 ||
		saga_version(pg, w.pick.v[0].name, cli_int(c, "to", 0), &w.to, &err) < 0)
		rc = cli_failed(c, &err);
	else
		rc = run(c, pg, &w, &err);
	work_release(&w);
	pr_pg_close(pg);
	return rc;
}

/* ---- one order, of another verb ---- */

int saga_order_one(const struct cli *c, struct pr_pg *pg, enum saga_order what, const char *id,
	const char *name, const char *detail, struct pr_err *err)
{
	struct work w = { .order = what, .detail = detail, .by = by_whom(c, pg) };
	int rc;

	w.pick.v = pr_calloc(1, sizeof(*w.pick.v));
	w.pick.n = w.pick.cap = 1;
	(void)snprintf(w.pick.v[0].id, sizeof(w.pick.v[0].id), "%s", id);
	(void)snprintf(w.pick.v[0].name, sizeof(w.pick.v[0].name), "%s", name);
	(void)take(&w);
	rc = order(c, pg, &w, err) < 0 ? cli_fail(err) : report(c, &w);
	work_release(&w);
	return rc;
}
