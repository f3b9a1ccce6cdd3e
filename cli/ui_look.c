/* cli/ui_look.c -- look-ups of `postrider ui`: dead letters by cause and one by one, what is held back,
 * sagas, replays, one event. What is shown is what the verb of the same name says; payloads and data only to
 * who has typed the token. Refuses anything that is no id, no key and no word of ours before it reaches a
 * command line. */
#include "cli/ui.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define KEY_MOST 255

/* ---------------------------------------------------------------- what comes from outside */

static int all_of(const char *s, const char *set, size_t most)
{
	size_t n = strlen(s);

	return n > 0 && n <= most && s[strspn(s, set)] == '\0';
}

static int is_text(const char *s)
{
	for (const char *c = s; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			return 0;
	return *s && strlen(s) <= KEY_MOST;
}

int ui_param_ok(const char *name, const char *value)
{
	static const char digits[] = "0123456789";

	if (strcmp(name, "entry") == 0 || strcmp(name, "partition") == 0 || strcmp(name, "offset") == 0)
		return all_of(value, digits, 18);
	if (strcmp(name, "id") == 0)
		return cli_is_uuid(value);
	if (strcmp(name, "cause") == 0)
		return all_of(value, "0123456789abcdef", 8);
	return is_text(value);
}

int ui_database_of(const struct ui *ui, const char *number)
{
	return all_of(number, "0123456789", 3) && (size_t)atoi(number) < ui->databases.n ? atoi(number) : -1;
}

static void refuse(struct pr_response *resp, const char *what)
{
	pr_http_problem(resp, 400, "bad-request", "Bad request", what);
}

/* ---------------------------------------------------------------- one look-up in each database */

struct look {
	const char *title, *caption, *none;
	const struct ui_link *links;
	int links_n;
	const char *argv[12];
	int one;  /* one object, not a list */
	int only; /* in this database; -1: in all */
	/* More of one object, or of a database without. */
	void (*more)(
		struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const cJSON *o);
};

static const struct ui_database *database(const struct ui *ui, size_t i)
{
	return (const struct ui_database *)ui->databases.v + i;
}

static void put_why(struct pr_buf *b, const char *why)
{
	pr_buf_puts(b, "<p>It could not be looked up:</p><pre>");
	pr_html_text(b, why);
	pr_buf_puts(b, "</pre>");
}

/* What may be done stands there for who may do it: deeds come behind the links, so they are the last. */
static struct ui_view view_of(
	const struct ui *ui, const struct pr_request *req, const struct look *l, size_t db)
{
	struct ui_pass pass;
	char id[UI_ID];
	struct ui_view v = { .db = (int)db, .links = l->links, .links_n = l->links_n };

	v.open = ui_pass(ui, req, &pass, id) == 0;
	while (!v.open && v.links_n > 0 && !v.links[v.links_n - 1].column)
		v.links_n--;
	return v;
}

static void put_database(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, size_t i, const struct look *l)
{
	struct ui_view v = view_of(ui, req, l, i);
	char why[600] = "";
	cJSON *list = ui_run(ui, database(ui, i), l->argv, why, sizeof(why)), *o;

	pr_buf_puts(b, "<h2>");
	pr_html_text(b, database(ui, i)->name);
	pr_buf_puts(b, "</h2>");
	if (!list) {
		put_why(b, why);
	} else if (cJSON_GetArraySize(list) == 0 && *why) {
		pr_buf_puts(b, "<pre>"); /* perhaps it may not look: then "there is none" were wrong */
		pr_html_text(b, why);
		pr_buf_puts(b, "</pre>");
	} else if (cJSON_GetArraySize(list) == 0) {
		pr_buf_printf(b, "<p>%s</p>", l->none);
	} else if (l->one) {
		cJSON_ArrayForEach(o, list)
		{
			if (l->more)
				l->more(b, ui, req, (int)i, o);
			ui_put_object(b, o, &v);
		}
	} else {
		ui_put_table(b, l->caption, list, &v);
	}
	if (!l->one && l->more)
		l->more(b, ui, req, (int)i, NULL);
	cJSON_Delete(list);
}

static void answer(
	const struct ui *ui, const struct pr_request *req, const struct look *l, struct pr_response *resp)
{
	struct pr_buf b = { 0 };

	ui_put_command(&b, l->argv);
	for (size_t i = 0; i < ui->databases.n; i++)
		if (l->only < 0 || (size_t)l->only == i)
			put_database(&b, ui, req, i, l);
	ui_page(ui, req, resp, 200, l->title, &b);
}

/* A link to what may be done, for who may. */
static void put_deed(
	struct pr_buf *b, const char *deed, const char *text, int db, const char *name, const char *value)
{
	char number[16];

	(void)snprintf(number, sizeof(number), "%d", db);
	pr_buf_puts(b, "<a href=\"/act?");
	ui_put_parameter(b, "deed", deed);
	ui_put_parameter(b, "db", number);
	ui_put_parameter(b, name, value);
	pr_buf_printf(b, "\">%s</a> ", text);
}

/* ---------------------------------------------------------------- dead letters */

void ui_dlq(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	static const struct ui_link links[] = {
		{ "cause", NULL, "/letters?", { { "cause", "cause" }, { "group", "group" } } },
		{ "example_entry", NULL, "/letter?", { { "entry", "example_entry" } } },
		{ NULL, "Retry these", "/act?deed=retry-cause",
			{ { "cause", "cause" }, { "group", "group" } } },
	};

	answer(ctx, req,
		&(struct look){ .title = "Dead letters by cause",
			.caption = "causes",
			.none = "No dead letter waits for a decision.",
			.links = links,
			.links_n = 3,
			.argv = { "dlq", "list", NULL },
			.only = -1 },
		resp);
}

void ui_letters(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	static const struct ui_link links[] = { { "entry", NULL, "/letter?", { { "entry", "entry" } } } };
	const char *cause = pr_http_query(req, "cause"), *group = pr_http_query(req, "group"),
		   *db = pr_http_query(req, "db");
	char *of_cause, *of_group;

	if (!cause || !group || !db || !ui_param_ok("cause", cause) || !ui_param_ok("group", group) ||
		ui_database_of(ctx, db) < 0) {
		refuse(resp,
			"cause is one of the list's, group a consumer group, db the number of a database");
		return;
	}
	of_cause = pr_asprintf("--cause=%s", cause);
	of_group = pr_asprintf("--group=%s", group);
	answer(ctx, req,
		&(struct look){ .title = "Dead letters of one cause",
			.caption = "dead letters",
			.none = "No dead letter like that.",
			.links = links,
			.links_n = 1,
			.argv = { "dlq", "list", "--all", of_cause, of_group, "--state=any", "--limit=1000",
				NULL },
			.only = ui_database_of(ctx, db) },
		resp);
	free(of_cause);
	free(of_group);
}

/* The bytes as they are: numbers would not come through a reader of JSON unharmed. */
static void put_payload(struct pr_buf *b, const struct ui *ui, int db, const char *entry)
{
	const char *const argv[] = { "dlq", "show", entry, "--raw", NULL };
	struct ui_ran ran;

	ui_exec(ui, database(ui, (size_t)db), argv, 0, NULL, 0, &ran);
	if (ran.exit == 0 && ran.said.len == 0) {
		pr_buf_puts(b, "<p>It has no payload.</p>");
	} else if (ran.exit == 0 && !memchr(ran.said.s, 0, ran.said.len) &&
		   pr_utf8_text(ran.said.s, ran.said.len)) {
		pr_buf_puts(b, "<h2>Payload</h2><pre tabindex=\"0\" class=\"payload\">");
		pr_html_text(b, ran.said.s);
		pr_buf_puts(b, "</pre>");
	} else if (ran.exit == 0) {
		pr_buf_printf(b, "<p>Its payload is no text, %zu bytes.</p>", ran.said.len);
	}
	ui_ran_release(&ran);
}

static void more_of_letter(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const cJSON *o)
{
	const char *state = cJSON_GetStringValue(cJSON_GetObjectItem(o, "state")),
		   *entry = pr_http_query(req, "entry");
	struct ui_pass pass;
	char id[UI_ID];

	if (ui_pass(ui, req, &pass, id) < 0)
		return;
	pr_buf_puts(b, "<p class=\"links\">");
	if (state && strcmp(state, "dead") == 0) {
		put_deed(b, "retry", "Retry it", db, "entry", entry);
		put_deed(b, "edit", "Edit its payload", db, "entry", entry);
		put_deed(b, "drop", "Drop it", db, "entry", entry);
	}
	put_deed(b, "note", "Write a note", db, "entry", entry);
	pr_buf_puts(b, "</p>");
	put_payload(b, ui, db, entry);
}

void ui_letter(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *entry = pr_http_query(req, "entry"), *db = pr_http_query(req, "db");

	if (!entry || !db || !ui_param_ok("entry", entry) || ui_database_of(ctx, db) < 0) {
		refuse(resp, "entry is the number of a dead letter, db that of a database");
		return;
	}
	answer(ctx, req,
		&(struct look){ .title = "Dead letter",
			.none = "No such dead letter.",
			.argv = { "dlq", "show", entry, NULL },
			.one = 1,
			.more = more_of_letter,
			.only = ui_database_of(ctx, db) },
		resp);
}

/* ---------------------------------------------------------------- what is held back */

static const struct ui_link of_group[] = {
	{ NULL, "Retry", "/act?deed=retry-message",
		{ { "group", "group" }, { "topic", "topic" }, { "partition", "partition" },
			{ "offset", "first_offset" } } },
	{ NULL, "Skip", "/act?deed=skip-message",
		{ { "group", "group" }, { "topic", "topic" }, { "partition", "partition" },
			{ "offset", "first_offset" } } },
};

static void put_group(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const char *group)
{
	char *of = pr_asprintf("--group=%s", group);
	const struct look l = { .links = of_group, .links_n = 2 };
	const char *const argv[] = { "parked", "list", of, NULL };
	struct ui_view v = view_of(ui, req, &l, (size_t)db);
	char why[600] = "";
	cJSON *list = ui_run(ui, database(ui, (size_t)db), argv, why, sizeof(why));

	if (!list)
		put_why(b, why);
	else if (cJSON_GetArraySize(list) > 0)
		ui_put_table(b, "held back by a consumer group", list, &v);
	cJSON_Delete(list);
	free(of);
}

/* The groups that hold something back. A database that knows of none has no consumers. */
static void put_groups(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const cJSON *o)
{
	const char *const argv[] = { "show", "consumers", NULL };
	char why[600] = "";
	cJSON *list = ui_run(ui, database(ui, (size_t)db), argv, why, sizeof(why));

	(void)o;
	cJSON_ArrayForEach(o, list)
	{
		const char *group = cJSON_GetStringValue(cJSON_GetObjectItem(o, "group"));
		const cJSON *n = cJSON_GetObjectItem(o, "parked_keys");

		if (group && cJSON_IsNumber(n) && n->valuedouble > 0)
			put_group(b, ui, req, db, group);
	}
	cJSON_Delete(list);
}

void ui_parked(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	static const struct ui_link of_relay[] = {
		{ NULL, "Retry", "/act?deed=retry-event", { { "topic", "topic" }, { "key", "key" } } },
		{ NULL, "Skip", "/act?deed=skip-event", { { "topic", "topic" }, { "key", "key" } } },
	};

	answer(ctx, req,
		&(struct look){ .title = "What is held back",
			.caption = "held back by the relay",
			.none = "The relay holds no key back.",
			.links = of_relay,
			.links_n = 2,
			.argv = { "parked", "list", NULL },
			.more = put_groups,
			.only = -1 },
		resp);
}

/* ---------------------------------------------------------------- the others */

void ui_jobs(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	answer(ctx, req,
		&(struct look){ .title = "Replays",
			.caption = "jobs",
			.none = "No replay was started.",
			.argv = { "replay", "list", NULL },
			.only = -1 },
		resp);
}

void ui_sagas(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	static const struct ui_link links[] = { { "id", NULL, "/saga?", { { "id", "id" } } } };
	const char *state = pr_http_query(req, "state");
	struct look l = { .title = "Sagas",
		.caption = "sagas",
		.none = "No saga like that.",
		.links = links,
		.links_n = 1,
		.argv = { "saga", "list", NULL },
		.only = -1 };

	if (state && *state) {
		if (!all_of(state, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_", 40)) {
			refuse(resp, "state is a word in capitals: STUCK, RUNNING");
			return;
		}
		l.argv[2] = "--state";
		l.argv[3] = state;
	}
	answer(ctx, req, &l, resp);
}

static void more_of_saga(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const cJSON *o)
{
	const char *step = ui_stuck_step(o), *id = pr_http_query(req, "id");
	char *both = step ? pr_asprintf("Skip step %s", step) : NULL;
	struct pr_buf words = { 0 };
	struct ui_pass pass;
	char pass_id[UI_ID];

	if (step && ui_pass(ui, req, &pass, pass_id) == 0) {
		pr_html_text(&words, both);
		pr_buf_puts(b, "<p class=\"links\">");
		put_deed(b, "retry-saga", "Retry it", db, "id", id);
		put_deed(b, "skip-step", words.s, db, "id", id);
		put_deed(b, "undo-saga", "Undo what it has done", db, "id", id);
		pr_buf_puts(b, "</p>");
	}
	ui_put_saga(b, o);
	pr_buf_free(&words);
	free(both);
}

void ui_saga(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *id = pr_http_query(req, "id"), *db = pr_http_query(req, "db");

	if (!id || !cli_is_uuid(id) || (db && ui_database_of(ctx, db) < 0)) {
		refuse(resp, "id is the saga's uuid, db the number of a database");
		return;
	}
	answer(ctx, req,
		&(struct look){ .title = "Saga",
			.none = "No such saga.",
			.argv = { "saga", "show", id, NULL },
			.one = 1,
			.more = more_of_saga,
			.only = db ? ui_database_of(ctx, db) : -1 },
		resp);
}

/* The oldest first: what stands before it was written before it. */
static void head_of_event(
	struct pr_buf *b, const struct ui *ui, const struct pr_request *req, int db, const cJSON *o)
{
	const char *id = cJSON_GetStringValue(cJSON_GetObjectItem(o, "id")), *q = pr_http_query(req, "q");
	const cJSON *it = o;

	(void)ui;
	(void)db;
	if (!id || !cli_is_uuid(q))
		return;
	while (it && strcasecmp(cJSON_GetStringValue(cJSON_GetObjectItem(it, "id")), q) != 0)
		it = it->next;
	pr_buf_printf(b, "<h3>%s</h3>",
		it == o ? "This event"
		: it    ? "Before it, of the same key"
			: "Behind it, of the same key");
}

void ui_event(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *q = pr_http_query(req, "q");
	struct look l = {
		.title = "Event", .none = "No such event.", .one = 1, .more = head_of_event, .only = -1
	};

	if (!q || *q == '-' || !is_text(q)) {
		refuse(resp, "q is an event's id, or a key of 1 to 255 bytes that does not begin with -");
		return;
	}
	l.argv[0] = "trace";
	l.argv[1] = cli_is_uuid(q) ? q : "--key";
	l.argv[2] = cli_is_uuid(q) ? "--neighbours" : q;
	answer(ctx, req, &l, resp);
}

void ui_look_forms(struct pr_buf *b, const struct ui *ui, const struct pr_request *req)
{
	if (ui->databases.n == 0)
		return;
	pr_buf_puts(b,
		"<section class=\"look\" aria-labelledby=\"look\"><h2 id=\"look\">Look up</h2>"
		"<form action=\"/event\" data-keep><label for=\"q\">Event by id or key</label>"
		"<input id=\"q\" name=\"q\" required maxlength=\"255\" autocomplete=\"off\">"
		"<button>Trace</button></form>"
		"<p class=\"links\"><a href=\"/dlq\">Dead letters by cause</a> <a href=\"/parked\">Held "
		"back</a> <a href=\"/sagas\">Sagas</a> <a href=\"/sagas?state=STUCK\">Stuck sagas</a> "
		"<a href=\"/jobs\">Replays</a></p>");
	ui_put_pass(b, ui, req);
	pr_buf_puts(b, "</section>");
}
