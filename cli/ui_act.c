/* cli/ui_act.c -- deeds of `postrider ui`: what a deed would touch is looked up and shown; what was shown,
 * and nothing else, is then touched by our own verb, once, when somebody has typed how many that are. Refuses
 * a plan that was used, one whose set has changed meanwhile, and whoever has no pass. Who did it is recorded
 * where the verb records it. */
#include "cli/ui.h"

#include "lib/clock.h"
#include "lib/form.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAYLOAD_MOST (256 << 10) /* of what can be edited here */
#define NOTE_MOST    500
#define WORDS        14

enum asks { ASKS_NOTHING, ASKS_NOTE, ASKS_PAYLOAD };

/* "$entry" in a word stands for a parameter; "$entries" for the numbers of all that was shown. */
struct deed {
	const char *name, *title, *what; /* one of what it touches */
	const char *takes[5];
	const char *look[WORDS];
	const char *same[6]; /* members that make it another set when they have changed */
	const char *state;   /* it must be in this state; NULL: any */
	enum asks asks;
	const char *run[WORDS];
	const char *warning;
};

#define OF_MESSAGE "--group=$group", "--topic=$topic", "--partition=$partition", "--offset=$offset"

static const struct deed deeds[] = {
	{ .name = "note",
		.title = "Write a note beside a dead letter",
		.what = "dead letter",
		.takes = { "entry" },
		.look = { "dlq", "show", "$entry" },
		.same = { "entry", "note" },
		.asks = ASKS_NOTE,
		.run = { "dlq", "note", "--by=$by", "--", "$entry", "$note" } },
	{ .name = "edit",
		.title = "Edit the payload of a dead letter",
		.what = "dead letter",
		.takes = { "entry" },
		.look = { "dlq", "show", "$entry" },
		.same = { "entry", "state" },
		.state = "dead",
		.asks = ASKS_PAYLOAD,
		.run = { "dlq", "edit", "--by=$by", "--payload=-", "$entry" },
		.warning = "A new dead letter with an id of its own takes its place. Nothing is handled "
			   "before that "
			   "one is retried." },
	{ .name = "retry",
		.title = "Retry a dead letter",
		.what = "dead letter",
		.takes = { "entry" },
		.look = { "dlq", "show", "$entry" },
		.same = { "entry", "state" },
		.state = "dead",
		.run = { "dlq", "retry", "--by=$by", "--wait=5s", "$entries" } },
	{ .name = "drop",
		.title = "Drop a dead letter",
		.what = "dead letter",
		.takes = { "entry" },
		.look = { "dlq", "show", "$entry" },
		.same = { "entry", "state" },
		.state = "dead",
		.run = { "dlq", "drop", "--by=$by", "--yes", "$entries" },
		.warning = "It stays to be read, and is never tried again." },
	{ .name = "retry-cause",
		.title = "Retry dead letters of one cause",
		.what = "dead letter",
		.takes = { "cause", "group" },
		.look = { "dlq", "list", "--all", "--cause=$cause", "--group=$group", "--limit=1000" },
		.same = { "entry", "state" },
		.state = "dead",
		.run = { "dlq", "retry", "--by=$by", "--wait=0s", "$entries" },
		.warning =
			"They are given back to their group, a hundred a second; 1,000 at a time at most." },
	{ .name = "retry-event",
		.title = "Retry a key that the relay holds back",
		.what = "event",
		.takes = { "topic", "key" },
		.look = { "parked", "show", "--topic=$topic", "--key=$key", "--limit=1" },
		.same = { "id", "seq", "topic", "key" },
		.run = { "parked", "retry", "--by=$by", "--wait=5s", "--id=$id" },
		.warning = "When its first event goes, those behind it follow in order." },
	{ .name = "skip-event",
		.title = "Give up an event that the relay holds back",
		.what = "event",
		.takes = { "topic", "key" },
		.look = { "parked", "show", "--topic=$topic", "--key=$key", "--limit=1" },
		.same = { "id", "seq", "topic", "key" },
		.run = { "parked", "skip", "--by=$by", "--wait=5s", "--yes", "--id=$id" },
		.warning = "It never reaches Kafka. Those behind it go on." },
	{ .name = "retry-message",
		.title = "Retry a message that a group holds back",
		.what = "message",
		.takes = { "group", "topic", "partition", "offset" },
		.look = { "parked", "show", OF_MESSAGE },
		.same = { "id", "topic", "partition", "offset", "behind" },
		.run = { "parked", "retry", "--by=$by", "--wait=5s", OF_MESSAGE } },
	{ .name = "skip-message",
		.title = "Give up a message that a group holds back",
		.what = "message",
		.takes = { "group", "topic", "partition", "offset" },
		.look = { "parked", "show", OF_MESSAGE },
		.same = { "id", "topic", "partition", "offset", "behind" },
		.run = { "parked", "skip", "--by=$by", "--wait=5s", "--yes", OF_MESSAGE },
		.warning = "The group never handles it: it becomes a dropped dead letter." },
	{ .name = "retry-saga",
		.title = "Retry the stuck step of a saga",
		.what = "saga",
		.takes = { "id" },
		.look = { "saga", "show", "$id" },
		.same = { "id", "state", "turned", "steps" },
		.state = "STUCK",
		.run = { "saga", "retry", "--by=$by", "--step=$step", "$id" } },
	{ .name = "skip-step",
		.title = "Skip the stuck step of a saga",
		.what = "saga",
		.takes = { "id" },
		.look = { "saga", "show", "$id" },
		.same = { "id", "state", "turned", "steps" },
		.state = "STUCK",
		.run = { "saga", "skip", "--by=$by", "--step=$step", "--yes", "$id" },
		.warning = "It counts as done, or as undone, whatever its participant did or did not do." },
	{ .name = "undo-saga",
		.title = "Undo a saga",
		.what = "saga",
		.takes = { "id" },
		.look = { "saga", "show", "$id" },
		.same = { "id", "state", "turned", "steps" },
		.state = "STUCK",
		.run = { "saga", "undo", "--by=$by", "--yes", "$id" },
		.warning = "What it has done is taken back, from the last step to the first." },
	{ 0 },
};

static const struct deed *deed_of(const char *name)
{
	for (const struct deed *d = deeds; name && d->name; d++)
		if (strcmp(d->name, name) == 0)
			return d;
	return NULL;
}

static const char *str(const cJSON *o, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, name));
}

/* One deed on its way. */
struct act {
	const struct ui *ui;
	const struct pr_request *req;
	struct pr_response *resp;
	struct ui_pass pass;
	char id[UI_ID]; /* of the pass */
	const struct deed *deed;
	int db;
	cJSON *with; /* parameters, all of them texts */
	cJSON *set;  /* what was found */
	char digest[UI_ID];
	char *payload; /* of what is to be edited; NULL: none, or not here */
	size_t payload_n;
	char why[600]; /* why it cannot be done; "": it can */
};

static void release(struct act *a)
{
	cJSON_Delete(a->with);
	cJSON_Delete(a->set);
	free(a->payload);
}

static const struct ui_database *database(const struct act *a)
{
	return (const struct ui_database *)a->ui->databases.v + a->db;
}

/* ---------------------------------------------------------------- command lines */

/* argv[0..n) gives back; each word is malloc'd. */
static char **words(const char *const *template, const cJSON *with, const cJSON *set)
{
	size_t n = 0, most = WORDS + 1 + (size_t)cJSON_GetArraySize(set);
	char **argv = pr_calloc(most, sizeof(*argv));
	const cJSON *row;

	for (int i = 0; i < WORDS && template[i]; i++) {
		const char *word = template[i], *at = strchr(word, '$');

		if (at && strcmp(at, "$entries") == 0) {
			cJSON_ArrayForEach(row, set)
			{
				argv[n++] = pr_asprintf(
					"%.0f", cJSON_GetNumberValue(cJSON_GetObjectItem(row, "entry")));
			}
		} else if (at) {
			const char *value = str(with, at + 1);

			argv[n++] = pr_asprintf("%.*s%s", (int)(at - word), word, value ? value : "");
		} else {
			argv[n++] = pr_strdup(word);
		}
	}
	return argv;
}

static void words_free(char **argv)
{
	for (char **w = argv; *w; w++)
		free(*w);
	free(argv);
}

/* ---------------------------------------------------------------- what it would touch */

static void put_identity(struct pr_buf *b, const struct deed *d, const cJSON *row)
{
	for (int i = 0; d->same[i]; i++) {
		const cJSON *m = cJSON_GetObjectItemCaseSensitive(row, d->same[i]);
		char *text = m ? cJSON_PrintUnformatted(m) : NULL;

		pr_buf_puts(b, text ? text : "");
		pr_buf_put(b, "", 1);
		free(text);
	}
}

/* What the set tells of itself: how its command line names it. */
static void take_names(struct act *a)
{
	const cJSON *one = cJSON_GetArrayItem(a->set, 0);
	const char *id = str(one, "id"), *step = ui_stuck_step(one);

	if (id && !str(a->with, "id"))
		(void)cJSON_AddStringToObject(a->with, "id", id);
	if (step && !str(a->with, "step"))
		(void)cJSON_AddStringToObject(a->with, "step", step);
}

static void judge(struct act *a)
{
	const struct deed *d = a->deed;
	struct pr_buf b = { 0 };
	const cJSON *row;

	pr_buf_puts(&b, d->name);
	cJSON_ArrayForEach(row, a->set)
	{
		const char *state = str(row, "state");

		put_identity(&b, d, row);
		if (d->state && (!state || strcmp(state, d->state) != 0))
			(void)snprintf(a->why, sizeof(a->why), "The %s is %s, not %s.", d->what,
				state ? state : "gone", d->state);
	}
	if (cJSON_GetArraySize(a->set) == 0)
		(void)snprintf(a->why, sizeof(a->why), "There is no such %s any more.", d->what);
	ui_digest(b.s, b.len, a->digest);
	pr_buf_free(&b);
}

/* As a text that comes back from a browser as it went: it makes CRLF of every end of a line. */
static void take_payload(struct act *a)
{
	const char *const argv[] = { "dlq", "show", str(a->with, "entry"), "--raw", NULL };
	struct ui_ran ran;

	ui_exec(a->ui, database(a), argv, 0, NULL, 0, &ran);
	if (ran.exit != 0)
		(void)snprintf(a->why, sizeof(a->why), "Its payload could not be read.");
	else if (ran.said.len > PAYLOAD_MOST || ran.said.len == 0 || memchr(ran.said.s, 0, ran.said.len) ||
		 memchr(ran.said.s, '\r', ran.said.len) || !pr_utf8_text(ran.said.s, ran.said.len))
		(void)snprintf(a->why, sizeof(a->why),
			"Its payload cannot be edited here: there is none, it is no text, has carriage "
			"returns, or is "
			"longer than %d kB. `postrider dlq edit` can.",
			PAYLOAD_MOST >> 10);
	else {
		a->payload = pr_strdup(ran.said.s);
		a->payload_n = ran.said.len;
	}
	ui_ran_release(&ran);
}

static void look(struct act *a)
{
	char **argv = words(a->deed->look, a->with, NULL);

	a->set = ui_run(a->ui, database(a), (const char *const *)argv, a->why, sizeof(a->why));
	words_free(argv);
	if (!a->set)
		return;
	a->why[0] = '\0'; /* what it said beside its answer: that there are more */
	take_names(a);
	judge(a);
	if (!a->why[0] && a->deed->asks == ASKS_PAYLOAD)
		take_payload(a);
}

/* ---------------------------------------------------------------- shown */

static int count(const struct act *a)
{
	return cJSON_GetArraySize(a->set);
}

static void put_set(struct pr_buf *b, const struct act *a)
{
	const struct ui_view v = { .db = a->db };

	if (count(a) == 1)
		ui_put_object(b, cJSON_GetArrayItem(a->set, 0), &v);
	else if (count(a) > 1)
		ui_put_table(b, "what is touched", a->set, &v);
}

/* The lines of a text that was typed are kept; a browser drops the first line's end. */
static void put_asked(struct pr_buf *b, const struct act *a, const char *typed)
{
	if (a->deed->asks == ASKS_NOTE) {
		pr_buf_printf(b,
			"<label for=\"note\">Note</label><textarea id=\"note\" name=\"note\" rows=\"3\" "
			"maxlength=\"%d\">\n",
			NOTE_MOST);
		pr_html_text(b, typed ? typed : "");
		pr_buf_puts(b, "</textarea>");
	}
	if (a->deed->asks == ASKS_PAYLOAD) {
		pr_buf_puts(b,
			"<label for=\"payload\">Payload</label><textarea id=\"payload\" name=\"payload\" "
			"rows=\"14\" spellcheck=\"false\" autocomplete=\"off\">\n");
		pr_html_text(b, typed ? typed : a->payload);
		pr_buf_puts(b, "</textarea>");
	}
}

static cJSON *plan_of(const struct act *a)
{
	cJSON *plan = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(plan, "deed", a->deed->name);
	(void)cJSON_AddNumberToObject(plan, "db", a->db);
	(void)cJSON_AddNumberToObject(plan, "count", count(a));
	(void)cJSON_AddStringToObject(plan, "digest", a->digest);
	(void)cJSON_AddItemToObject(plan, "with", cJSON_Duplicate(a->with, 1));
	return plan;
}

static void put_form(struct pr_buf *b, const struct act *a, const char *typed)
{
	char plan[UI_ID];

	if (ui_gate_keep(a->ui->gate, pr_mono_us(), a->id, plan_of(a), plan) < 0)
		return;
	pr_buf_printf(b,
		"<form class=\"act\" method=\"post\" action=\"/act\"><input type=\"hidden\" name=\"form\" "
		"value=\"%s\"><input type=\"hidden\" name=\"plan\" value=\"%s\">",
		a->pass.form, plan);
	put_asked(b, a, typed);
	pr_buf_printf(b,
		"<label for=\"count\">To confirm, type how many are touched: %d</label>"
		"<input id=\"count\" name=\"count\" required inputmode=\"numeric\" autocomplete=\"off\" "
		"size=\"8\">"
		"<button class=\"do-it\">%s</button></form>",
		count(a), a->deed->title);
}

/* What would be done, and the form that does it; said: why it is shown once more, or NULL. typed: what was
 * typed before. */
static void show(struct act *a, int status, const char *said, const char *typed)
{
	struct pr_buf b = { 0 };
	char **argv = words(a->deed->run, a->with, a->set);

	if (said)
		pr_buf_printf(&b, "<p role=\"alert\" class=\"wrong\">%s</p>", said);
	if (a->why[0]) {
		pr_buf_puts(&b, "<p role=\"alert\" class=\"wrong\">");
		pr_html_text(&b, a->why);
		pr_buf_puts(&b, "</p>");
	} else {
		pr_buf_printf(&b, "<p>This touches <b>%d %s%s</b> in database <b>", count(a), a->deed->what,
			count(a) == 1 ? "" : "s");
		pr_html_text(&b, database(a)->name);
		pr_buf_printf(&b, "</b>. %s</p>", a->deed->warning ? a->deed->warning : "");
		ui_put_command(&b, (const char *const *)argv);
		put_form(&b, a, typed);
	}
	put_set(&b, a);
	words_free(argv);
	ui_page(a->ui, a->req, a->resp, status, a->deed->title, &b);
}

/* ---------------------------------------------------------------- GET /act */

static int take_query(struct act *a)
{
	const char *db = pr_http_query(a->req, "db");

	a->deed = deed_of(pr_http_query(a->req, "deed"));
	a->db = db ? ui_database_of(a->ui, db) : -1;
	a->with = cJSON_CreateObject();
	if (!a->deed || a->db < 0)
		return -1;
	for (int i = 0; a->deed->takes[i]; i++) {
		const char *value = pr_http_query(a->req, a->deed->takes[i]);

		if (!value || !ui_param_ok(a->deed->takes[i], value))
			return -1;
		(void)cJSON_AddStringToObject(a->with, a->deed->takes[i], value);
	}
	(void)cJSON_AddStringToObject(a->with, "by", a->pass.who);
	return 0;
}

void ui_act(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct act a = { .ui = ctx, .req = req, .resp = resp };

	if (ui_pass(ctx, req, &a.pass, a.id) < 0) {
		(void)snprintf(resp->location, sizeof(resp->location), "/login");
		resp->status = 303;
	} else if (take_query(&a) < 0) {
		pr_http_problem(resp, 400, "bad-request", "Bad request",
			"deed is one of this page's, db the number of a database, and what it takes is said");
	} else {
		look(&a);
		show(&a, a.why[0] ? 409 : 200, NULL, NULL);
	}
	release(&a);
}

/* ---------------------------------------------------------------- POST /act */

static void refuse(struct act *a, int status, const char *slug, const char *title, const char *detail)
{
	pr_http_problem(a->resp, status, slug, title, detail);
}

/* What was typed becomes a parameter; the payload goes by standard input. -1: refused. */
static int take_typed(struct act *a, const struct pr_form *f, char **ret_payload)
{
	const char *note = pr_form_get(f, "note", NULL), *payload = pr_form_get(f, "payload", NULL);
	char *to;

	if ((a->deed->asks == ASKS_NOTE && (!note || strlen(note) > 2 * NOTE_MOST)) ||
		(a->deed->asks == ASKS_PAYLOAD && (!payload || strlen(payload) > 2 * PAYLOAD_MOST)))
		return -1;
	if (a->deed->asks == ASKS_NOTE)
		(void)cJSON_AddStringToObject(a->with, "note", note);
	if (a->deed->asks != ASKS_PAYLOAD)
		return 0;
	*ret_payload = to = pr_strdup(payload);
	for (const char *s = payload; *s; s++)
		if (s[0] != '\r' || s[1] != '\n')
			*to++ = *s;
	*to = '\0';
	return 0;
}

static void put_outcome(struct pr_buf *b, const struct act *a, const struct ui_ran *ran)
{
	const struct ui_view v = { .db = a->db };
	cJSON *list = ui_lines(ran), *o;

	cJSON_ArrayForEach(o, list)
	{
		ui_put_object(b, o, &v);
	}
	cJSON_Delete(list);
	if (ran->talked.len == 0)
		return;
	pr_buf_puts(b, "<pre>");
	pr_html_text(b, ran->talked.s);
	pr_buf_puts(b, "</pre>");
}

/* The verb has said something: it came as far as doing it, whatever came of it. */
static void run(struct act *a, const char *payload)
{
	struct pr_buf b = { 0 };
	struct ui_ran ran;
	char **argv = words(a->deed->run, a->with, a->set);
	int done;

	ui_exec(a->ui, database(a), (const char *const *)argv, UI_JSON | UI_PATIENT, payload,
		payload ? strlen(payload) : 0, &ran);
	done = ran.exit == 0 || (ran.exit > 0 && ran.said.len > 0);
	cli_say("%s: %s, %d: %s", a->pass.who, a->deed->name, count(a), done ? "done" : "not done");
	pr_buf_printf(&b, "<p role=\"status\"><b>%s</b></p>",
		done             ? ran.exit == 0 ? "Done." : "Done; not all is well:"
		: ran.exit == -1 ? "It is not known whether it was done. Look before you try again:"
				 : "Nothing was done:");
	put_outcome(&b, a, &ran);
	ui_put_command(&b, (const char *const *)argv);
	ui_page(a->ui, a->req, a->resp, done ? 200 : 409, a->deed->title, &b);
	words_free(argv);
	ui_ran_release(&ran);
}

/* The plan is gone with this, whatever comes of it: what was right is shown anew. */
static void confirm(struct act *a, const struct pr_form *f, const cJSON *plan)
{
	const char *typed = pr_form_get(f, "count", NULL), *note = pr_form_get(f, "note", NULL),
		   *digest = str(plan, "digest");
	int was = (int)cJSON_GetNumberValue(cJSON_GetObjectItem(plan, "count"));
	char said[160], number[16], *payload = NULL;

	if (take_typed(a, f, &payload) < 0) {
		refuse(a, 400, "bad-request", "Bad request", "what was to be typed is missing, or too long");
		return;
	}
	(void)snprintf(number, sizeof(number), "%d", was);
	look(a);
	if (a->why[0]) {
		show(a, 409, "Nothing was done.", NULL);
	} else if (strcmp(digest, a->digest) != 0) {
		(void)snprintf(said, sizeof(said),
			was == count(a)
				? "Nothing was done: what was shown has changed meanwhile. Look again."
				: "Nothing was done: what was shown has changed meanwhile. It was %d, now it "
				  "is %d.",
			was, count(a));
		show(a, 409, said, payload ? payload : note);
	} else if (!typed || strcmp(typed, number) != 0) {
		(void)snprintf(said, sizeof(said), "Nothing was done: type %d to confirm.", was);
		show(a, 422, said, payload ? payload : note);
	} else {
		run(a, payload);
	}
	free(payload);
}

static void do_plan(struct act *a, const struct pr_form *f)
{
	const char *id = pr_form_get(f, "plan", NULL);
	cJSON *plan = id ? ui_gate_take(a->ui->gate, pr_mono_us(), a->id, id) : NULL;

	if (!plan) {
		refuse(a, 409, "used", "Nothing was done",
			"this form was used already, or is too old: open it anew");
		return;
	}
	a->deed = deed_of(str(plan, "deed"));
	a->db = (int)cJSON_GetNumberValue(cJSON_GetObjectItem(plan, "db"));
	a->with = cJSON_DetachItemFromObject(plan, "with");
	confirm(a, f, plan);
	cJSON_Delete(plan);
}

void ui_act_post(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct act a = { .ui = ctx, .req = req, .resp = resp };
	struct pr_form f;
	const char *form;

	if (ui_posted(req, resp) < 0)
		return;
	if (pr_form_parse(&f, req->body, req->body_len) < 0) {
		refuse(&a, 400, "bad-request", "Bad request", "no form of this page");
		return;
	}
	form = pr_form_get(&f, "form", NULL);
	if (ui_pass(ctx, req, &a.pass, a.id) < 0) {
		refuse(&a, 403, "no-pass", "Not logged in",
			"log in at /login: the pass is none, or has ended");
	} else if (!form || !ui_same(form, a.pass.form)) {
		refuse(&a, 403, "foreign-form", "Not our form", "the form is none of this pass");
	} else if (!ui_gate_may(a.ui->gate, pr_mono_us())) {
		refuse(&a, 429, "too-many", "Too much at once", "so many deeds were done in this minute");
		resp->retry_after = 60;
	} else {
		do_plan(&a, &f);
	}
	pr_form_free(&f);
	release(&a);
}
