/* cli/saga_show.c -- `postrider saga show`: one saga with all that is known of it: where it stands and why,
 * what is left to do, what is due when, and what has happened, in the order in which it did. Changes nothing.
 */
#include "cli/saga_show.h"
#include "lib/clock.h"
#include "lib/json.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define PAGE      1000
#define LOG_MOST  100000 /* lines of a timeline */
#define DATA_MOST 65536  /* bytes of the data on a screen */

static void saga_release(struct saga_shown *s)
{
	PQclear(s->head);
	PQclear(s->steps);
	PQclear(s->orders);
	for (int i = 0; i < s->n_log; i++)
		PQclear(s->log[i]);
	free(s->log);
	free(s->event);
	saga_def_free(s->def);
}

/* ---- read ---- */

static int read_log(struct pr_pg *pg, const char *id, struct saga_shown *s, struct pr_err *err)
{
	char after[24] = "0", most[24];
	const char *params[3] = { id, after, most };
	int n = PAGE;

	(void)snprintf(most, sizeof(most), "%d", PAGE);
	while (n == PAGE && s->n_log < LOG_MOST / PAGE) {
		PGresult *res = pr_pg_exec(pg, sql_saga_log, 3, params, err);

		if (!res)
			return -1;
		s->log = pr_realloc(s->log, sizeof(PGresult *) * (size_t)(s->n_log + 1));
		s->log[s->n_log++] = res;
		n = PQntuples(res);
		if (n)
			(void)snprintf(after, sizeof(after), "%s", PQgetvalue(res, n - 1, G_SEQ));
	}
	s->cut = n == PAGE;
	return 0;
}

static struct saga_event_line *add(struct saga_shown *s, const PGresult *res, int row, int at)
{
	struct saga_event_line *e = &s->event[s->n_events++];
	char buf[SAGA_TIME];
	const char *time = saga_time(res, row, at, buf);

	*e = (struct saga_event_line){ 0 };
	(void)snprintf(e->at, sizeof(e->at), "%s", time ? time : "");
	return e;
}

/* That it was ordered, and that it was refused; that it was done is in the log. */
static void add_orders(struct saga_shown *s)
{
	for (int i = 0; i < PQntuples(s->orders); i++) {
		const char *outcome = cli_cell(s->orders, i, O_OUTCOME);
		struct saga_event_line *e = add(s, s->orders, i, O_AT);

		e->what = "ordered";
		e->step = cli_cell(s->orders, i, O_STEP);
		e->detail = cli_cell(s->orders, i, O_WHAT);
		e->by = cli_cell(s->orders, i, O_BY);
		if (!outcome || strcmp(outcome, "refused") != 0)
			continue;
		e = add(s, s->orders, i, O_DONE_AT);
		e->what = "order_refused";
		e->step = cli_cell(s->orders, i, O_STEP);
		e->detail = cli_cell(s->orders, i, O_REASON);
	}
}

static void add_log(struct saga_shown *s, const PGresult *res)
{
	for (int i = 0; i < PQntuples(res); i++) {
		struct saga_event_line *e = add(s, res, i, G_AT);

		e->what = cli_cell(res, i, G_WHAT);
		e->step = cli_cell(res, i, G_STEP);
		e->op = cli_cell(res, i, G_OP);
		e->command = cli_cell(res, i, G_COMMAND);
		e->detail = cli_cell(res, i, G_DETAIL);
		e->by = cli_cell(res, i, G_BY);
	}
}

/* Those of one time stay in the order in which they were written: what was ordered before what was done. */
static void sort_in(struct saga_shown *s, int n_orders)
{
	struct saga_event_line *merged = pr_calloc((size_t)s->n_events + 1, sizeof(*merged));
	int a = 0, b = n_orders, n = 0;

	while (a < n_orders || b < s->n_events) {
		int order = b == s->n_events || (a < n_orders && strcmp(s->event[a].at, s->event[b].at) <= 0);

		merged[n++] = s->event[order ? a++ : b++];
	}
	free(s->event);
	s->event = merged;
}

static int by_time(const void *a, const void *b)
{
	return strcmp(((const struct saga_event_line *)a)->at, ((const struct saga_event_line *)b)->at);
}

static void make_timeline(struct saga_shown *s)
{
	int n = PQntuples(s->orders) * 2, n_orders;

	for (int i = 0; i < s->n_log; i++)
		n += PQntuples(s->log[i]);
	s->event = pr_calloc((size_t)n + 1, sizeof(*s->event));
	add_orders(s);
	n_orders = s->n_events;
	qsort(s->event, (size_t)n_orders, sizeof(*s->event), by_time);
	for (int i = 0; i < s->n_log; i++)
		add_log(s, s->log[i]);
	sort_in(s, n_orders);
}

static int read_saga(struct pr_pg *pg, const char *id, struct saga_shown *s, struct pr_err *err)
{
	const char *text;
	struct pr_err unread;

	s->head = pr_pg_exec(pg, sql_saga_show, 1, &id, err);
	if (!s->head)
		return -1;
	if (PQntuples(s->head) == 0)
		return saga_not_found(err, id);
	if (!(s->steps = pr_pg_exec(pg, sql_saga_steps, 1, &id, err)) ||
		!(s->orders = pr_pg_exec(pg, sql_saga_orders, 1, &id, err)) || read_log(pg, id, s, err) < 0)
		return -1;
	text = cli_cell(s->head, 0, S_TEXT);
	if (text && saga_def_parse(PQgetvalue(s->head, 0, S_NAME), text, strlen(text), &s->def, &unread) < 0)
		s->def = NULL;
	make_timeline(s);
	return 0;
}

/* ---- what is left ---- */

static const struct saga_step *step_of(const struct saga_shown *s, int i)
{
	const char *name = PQgetvalue(s->steps, i, T_STEP);
	int at = s->def ? saga_def_step(s->def, name, strlen(name)) : -1;

	return at < 0 ? NULL : &s->def->step[at];
}

static int is_state(const struct saga_shown *s, int i, const char *words)
{
	const char *state = PQgetvalue(s->steps, i, T_STATE), *at = strstr(words, state);
	size_t n = strlen(state);

	return n && at && (at == words || at[-1] == ' ') && (at[n] == ' ' || !at[n]);
}

int saga_shown_is_over(const struct saga_shown *s)
{
	return cli_cell(s->head, 0, S_FINISHED) != NULL;
}

int saga_shown_is_left(const struct saga_shown *s, int i)
{
	int back = *PQgetvalue(s->head, 0, S_TURNED) == 't';
	const struct saga_step *step = step_of(s, i);

	if (saga_shown_is_over(s))
		return 0;
	if (!back)
		return is_state(s, i, "WAITING DOING STUCK");
	return is_state(s, i, "DONE UNKNOWN DOING UNDOING STUCK") && (!step || step->act[SAGA_UNDO].command);
}

const char *saga_shown_due(const struct saga_shown *s, int i, const char **ret_words)
{
	const char *waits = cli_cell(s->steps, i, T_WAITS), *op = cli_cell(s->steps, i, T_OP);
	const struct saga_step *step = step_of(s, i);

	if (!cli_cell(s->steps, i, T_DUE))
		return NULL;
	if (waits && *waits == 't') {
		*ret_words = "sent again";
		return "send_again";
	}
	if (is_state(s, i, "STUCK")) {
		*ret_words = "all undone";
		return "undo";
	}
	if (s->def && s->def->style == SAGA_CHOREOGRAPHY &&
		!(step && op && strcmp(op, "undo") == 0 && step->act[SAGA_UNDO].command)) {
		*ret_words = "event due";
		return "event_overdue";
	}
	*ret_words = "reply due";
	return "reply_overdue";
}

/* ---- text ---- */

static void line(const char *name, const char *fmt, ...) PR_PRINTF(2, 3);
static void line(const char *name, const char *fmt, ...)
{
	char text[2000];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 11, 13);
}

static void heading(const char *name)
{
	(void)printf("\n  %s%s%s\n", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
}

/* Microseconds since 1970 of Postgres' text; 0: none. */
static int64_t wall_of(const PGresult *res, int row, int col)
{
	char buf[SAGA_TIME];
	const char *s = saga_time(res, row, col, buf);
	int64_t us = 0;
	struct pr_err ignored;

	return s && cli_parse_time(s, &us, &ignored) == 0 ? us : 0;
}

/* "2.5 s ago", "in 2.5 s"; by the database's clock. */
static const char *distance(
	const struct saga_shown *s, const PGresult *res, int row, int col, char *buf /* [64] */)
{
	int64_t at = wall_of(res, row, col), now = wall_of(s->head, 0, S_NOW);
	char span[48];

	if (!at || !now)
		return "-";
	if (at > now)
		(void)snprintf(buf, 64, "in %s", cli_span((double)(at - now) / 1e6, span));
	else
		(void)snprintf(buf, 64, "%s ago", cli_span((double)(now - at) / 1e6, span));
	return buf;
}

static char *names_left(const struct saga_shown *s)
{
	struct pr_buf b = { 0 };
	int n = PQntuples(s->steps), back = *PQgetvalue(s->head, 0, S_TURNED) == 't';

	for (int k = 0; k < n; k++) {
		int i = back ? n - 1 - k : k;

		if (saga_shown_is_left(s, i))
			pr_buf_printf(&b, "%s%s",
				b.len  ? ", "
				: back ? "undo "
				       : "",
				PQgetvalue(s->steps, i, T_STEP));
	}
	return b.s;
}

static void put_times(const struct saga_shown *s)
{
	char a[SAGA_TIME], b[SAGA_TIME], span[64], since[64];

	line("started", "%s, %s", saga_time(s->head, 0, S_STARTED, a),
		distance(s, s->head, 0, S_STARTED, span));
	if (saga_shown_is_over(s))
		line("ended", "%s, %s", saga_time(s->head, 0, S_FINISHED, b),
			distance(s, s->head, 0, S_FINISHED, span));
	else
		line("since", "%s, %s", saga_time(s->head, 0, S_SINCE, b),
			distance(s, s->head, 0, S_SINCE, since));
	if (!saga_shown_is_over(s) && cli_cell(s->head, 0, S_DEADLINE))
		line("deadline", "%s, %s", saga_time(s->head, 0, S_DEADLINE, a),
			distance(s, s->head, 0, S_DEADLINE, span));
}

static void put_head(const struct saga_shown *s)
{
	const char *state = PQgetvalue(s->head, 0, S_STATE), *failed = cli_cell(s->head, 0, S_FAILED),
		   *why = cli_cell(s->head, 0, S_WHY);
	char *name = cli_safe_str(PQgetvalue(s->head, 0, S_NAME)), *left = names_left(s);

	(void)printf("%s%s %s%s  %s%s%s\n", cli_on(stdout, CLI_BOLD), name, PQgetvalue(s->head, 0, S_ID),
		cli_off(stdout), cli_on(stdout, saga_colour(state)), state, cli_off(stdout));
	if ((why && *why) || failed)
		line("why", "%s", why && *why ? why : failed);
	if (*PQgetvalue(s->head, 0, S_GRANTED) != 't' && !saga_shown_is_over(s))
		line("waits", "for its locks, which another saga has");
	if (left)
		line("left", "%s", left);
	line("version", "%s%s%s", PQgetvalue(s->head, 0, S_VERSION),
		cli_cell(s->head, 0, S_STYLE) ? ", " : "",
		cli_cell(s->head, 0, S_STYLE) ? cli_cell(s->head, 0, S_STYLE)
					      : ", its definition is missing");
	put_times(s);
	if (cli_cell(s->head, 0, S_LOCKS))
		line("locks", "%s", cli_cell(s->head, 0, S_LOCKS));
	if (cli_cell(s->head, 0, S_CORRELATION))
		line("correlate", "%s", cli_cell(s->head, 0, S_CORRELATION));
	free(name);
	free(left);
}

/* What is possible now, as the engine would decide it. */
static void put_ways(const struct saga_shown *s, struct pr_pg *pg)
{
	static const struct {
		enum saga_order order;
		const char *rest;
	} ways[] = { { ORDER_RETRY, "" }, { ORDER_SKIP, " --yes" }, { ORDER_UNDO, " --yes" } };
	const char *id = PQgetvalue(s->head, 0, S_ID);
	char *ids = pr_asprintf("{%s}", id);
	const char *params[1] = { ids };
	struct pr_err err;
	PGresult *res = pr_pg_exec(pg, sql_saga_instances, 1, params, &err);
	const char *name = "fix";

	for (size_t i = 0; res && PQntuples(res) && i < sizeof(ways) / sizeof(*ways); i++) {
		struct saga_copy copy;
		struct pr_buf words = { 0 };
		const char *stuck = NULL;

		if (saga_copy_read(res, 0, &copy, &err) == 0) {
			for (size_t k = 0; k < copy.def->step_n && !stuck; k++)
				if (copy.in.step[k].state == STEP_STUCK)
					stuck = copy.def->step[k].name;
			if (saga_rehearse(&copy, ways[i].order, NULL, NULL, NULL, &words, &err) == 0) {
				line(name, "postrider saga %s %s%s%s%s", saga_order_str(ways[i].order), id,
					ways[i].order == ORDER_SKIP ? " --step " : "",
					ways[i].order == ORDER_SKIP && stuck ? stuck : "", ways[i].rest);
				name = "or";
			}
		}
		pr_buf_free(&words);
		saga_copy_release(&copy);
	}
	PQclear(res);
	free(ids);
}

static const char *due_of(const struct saga_shown *s, int i, char *buf, size_t size)
{
	const char *words;
	char span[64];

	if (!saga_shown_due(s, i, &words))
		return "";
	(void)snprintf(buf, size, "%s %s", words, distance(s, s->steps, i, T_DUE, span));
	return buf;
}

static const char *tries_of(const struct saga_shown *s, int i, char *buf, size_t size)
{
	const struct saga_step *step = step_of(s, i);
	const char *op = cli_cell(s->steps, i, T_OP);
	int64_t tries = cli_cell_int(s->steps, i, T_TRIES);
	const struct saga_action *a = step ? &step->act[op && strcmp(op, "undo") == 0] : NULL;

	if (!tries)
		return "";
	if (a && a->command)
		(void)snprintf(buf, size, "%lld of %lld", (long long)tries, (long long)a->retry.attempts);
	else
		(void)snprintf(buf, size, "%lld", (long long)tries);
	return buf;
}

static void put_steps(const struct saga_shown *s)
{
	static const char *const heads[] = { "STEP", "STATE", ">TRIES", ">SINCE", "DUE", "~WHY" };
	struct cli_table t = { .ncols = 6, .heads = heads };

	for (int i = 0; i < PQntuples(s->steps); i++) {
		const char *op = cli_cell(s->steps, i, T_OP), *state = PQgetvalue(s->steps, i, T_STATE);
		char tries[48], due[80], span[64];
		int stuck = strcmp(state, "STUCK") == 0;
		char *word = pr_asprintf("%s%s%s", state, stuck && op ? " " : "", stuck && op ? op : "");
		const char *const cells[] = { PQgetvalue(s->steps, i, T_STEP), word,
			tries_of(s, i, tries, sizeof(tries)), distance(s, s->steps, i, T_SINCE, span),
			due_of(s, i, due, sizeof(due)), cli_cell(s->steps, i, T_WHY) };

		cli_table_add(&t, cells);
		free(word);
	}
	if (t.nrows)
		(void)putchar('\n');
	cli_table_print(&t, stdout);
}

static char *told(const struct saga_event_line *e)
{
	int some = e->detail && *e->detail;

	if (!e->by)
		return pr_strdup(some ? e->detail : "");
	return pr_asprintf("%s%sby %s", some ? e->detail : "", some ? ", " : "", e->by);
}

/* "PAYMENT undo"; malloc'd */
static char *place_of(const struct saga_event_line *e)
{
	return pr_asprintf(
		"%s%s%s", e->step ? e->step : "", e->step && e->op ? " " : "", e->step && e->op ? e->op : "");
}

/* For other programs: each on one line, with its date. */
static void put_rows(const struct saga_shown *s)
{
	static const char *const heads[] = { "TIME", "WHAT", "STEP", "DETAIL" };
	struct cli_table t = { .ncols = 4, .heads = heads };

	for (int i = 0; i < s->n_events; i++) {
		const struct saga_event_line *e = &s->event[i];
		char *detail = told(e), *step = place_of(e);
		const char *const cells[] = { e->at, e->what, step, detail };

		cli_table_add(&t, cells);
		free(detail);
		free(step);
	}
	cli_table_print(&t, stdout);
}

static void widths(const struct saga_shown *s, int *ret_what, int *ret_step)
{
	*ret_what = *ret_step = 1;
	for (int i = 0; i < s->n_events; i++) {
		char *step = place_of(&s->event[i]), *safe = cli_safe_str(step);
		int what = (int)strlen(s->event[i].what), cells = (int)cli_cells(safe);

		*ret_what = what > *ret_what ? what : *ret_what;
		*ret_step = cells > *ret_step ? cells : *ret_step;
		free(step);
		free(safe);
	}
}

#define DETAIL_LEAST 30 /* cells; with less it stands below its line */

static void put_event(const struct saga_event_line *e, int what, int step)
{
	int whole = strlen(e->at) == 27, at = 2 + 12 + 2 + what + 2 + step;
	int below = at + 2 + DETAIL_LEAST > cli_width(stdout);
	char *detail = told(e), *place = place_of(e), *safe = cli_safe_str(place),
	     *words = cli_safe_str(detail);

	(void)printf("  %s%.12s%s  %s", cli_on(stdout, CLI_DIM), whole ? e->at + 11 : e->at, cli_off(stdout),
		e->what);
	if (*safe || (*words && !below))
		(void)printf("%*s%s", what - (int)strlen(e->what) + 2, "", safe);
	if (*words && !below)
		(void)printf("%*s", step - (int)cli_cells(safe), "");
	if (*words && below)
		(void)putchar('\n');
	if (*words)
		cli_fill(stdout, words, below ? 0 : at, below ? 16 : at + 2);
	else
		(void)putchar('\n');
	free(detail);
	free(place);
	free(safe);
	free(words);
}

static void put_timeline(const struct saga_shown *s)
{
	const char *day = "";
	int what, step;

	if (!cli_tty(stdout)) {
		if (s->n_events)
			(void)putchar('\n');
		put_rows(s);
		return;
	}
	widths(s, &what, &step);
	for (int i = 0; i < s->n_events; i++) {
		if (strncmp(day, s->event[i].at, 10) != 0) {
			char *title = pr_asprintf("%.10s (UTC)", s->event[i].at);

			heading(title);
			free(title);
		}
		day = s->event[i].at;
		put_event(&s->event[i], what, step);
	}
}

static void show_text(const struct saga_shown *s, struct pr_pg *pg)
{
	const char *data = cli_cell(s->head, 0, S_DATA);

	put_head(s);
	if (strcmp(PQgetvalue(s->head, 0, S_STATE), "STUCK") == 0)
		put_ways(s, pg);
	put_steps(s);
	if (data) {
		heading("data");
		cli_payload(stdout, data, strlen(data), DATA_MOST, 4);
	}
	put_timeline(s);
	for (int i = 0; i < PQntuples(s->orders); i++)
		if (!cli_cell(s->orders, i, O_OUTCOME))
			cli_say("the order to %s has not been answered yet: does an engine run?",
				PQgetvalue(s->orders, i, O_WHAT));
	if (s->cut)
		cli_say("there is more: only the first %d lines are shown", LOG_MOST);
}

int verb_saga_show(struct cli *c)
{
	struct saga_shown s = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = PR_EX_OK;

	if (saga_check_id(c->args[0], &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		read_saga(pg, c->args[0], &s, &err) < 0)
		rc = cli_failed(c, &err);
	else if (cli_has(c, "json"))
		saga_shown_json(&s);
	else
		show_text(&s, pg);
	saga_release(&s);
	pr_pg_close(pg);
	return rc;
}
