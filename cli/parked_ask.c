/* cli/parked_ask.c -- `postrider parked retry`, `skip` and `release` of a consumer group: a
 * request in the rows that were looked at, never in what has taken their place since. The
 * members of the group act on it; this program watches. Refuses to touch what waits behind. */
#include "cli/parked.h"
#include "lib/clock.h"
#include "lib/json.h"
#include "sql.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define MOST  1000000 /* keys of one request */
#define CHUNK 1000    /* keys of one look */

enum outcome { REQUESTED, RELEASED, STILL_PARKED, SKIPPED };
static const char *const outcome_str[] = { "requested", "released", "still_parked", "skipped" };

/* One message that was asked for, and what became of it and of its key. */
struct asked {
	char *entry, *topic, *partition, *offset, *key, *key_bytes, *id, *reason; /* NULL: SQL NULL */
	int64_t events, buried;
	enum outcome outcome;
};

struct work {
	const char *what; /* "retry" or "skip" */
	char *before;     /* the last dead letter there was */
	char *at;         /* when it was asked, by the database's clock */
	struct asked *v;
	int n;
};

static void work_release(struct work *w)
{
	for (int i = 0; i < w->n; i++) {
		char *const all[] = { w->v[i].entry, w->v[i].topic, w->v[i].partition, w->v[i].offset,
			w->v[i].key, w->v[i].key_bytes, w->v[i].id, w->v[i].reason };

		for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++)
			free(all[k]);
	}
	free(w->v);
	free(w->before);
	free(w->at);
}

static char *dup(const PGresult *res, int row, int col)
{
	const char *s = cli_cell(res, row, col);

	return s ? pr_strdup(s) : NULL;
}

static int refused(struct pr_err *err)
{
	err->exit = PR_EX_REFUSED;
	return -1;
}

/* ---- which ---- */

static int find_keys(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	PGresult *res = parked_keys(c, pg, MOST, err);

	if (!res)
		return -1;
	w->n = PQntuples(res);
	w->v = pr_calloc((size_t)w->n + 1, sizeof(*w->v));
	for (int i = 0; i < w->n; i++)
		w->v[i] = (struct asked){
			.entry = dup(res, i, PK_ENTRY),
			.topic = dup(res, i, PK_TOPIC),
			.partition = dup(res, i, PK_PARTITION),
			.offset = dup(res, i, PK_OFFSET),
			.key = dup(res, i, PK_KEY),
			.key_bytes = dup(res, i, PK_KEY_BYTES),
			.id = dup(res, i, PK_ID),
			.reason = dup(res, i, PK_REASON),
			.events = cli_cell_int(res, i, PK_EVENTS),
		};
	PQclear(res);
	return 0;
}

/* The one message that --id or --offset names. */
static int find_message(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	PGresult *res = parked_messages(c, pg, 0, 2, err);
	int rc = -1;

	if (!res)
		return -1;
	if (PQntuples(res) > 1) {
		(void)cli_usage(err,
			"that names more than one message: say which by --topic, --partition and "
			"--offset");
	} else if (PQntuples(res) == 1 && cli_cell(res, 0, PM_BEHIND)) {
		(void)pr_fail(err, PR_REJECT,
			"the message at offset %s waits behind the one at offset %s: only the first of a key "
			"can be asked to %s",
			PQgetvalue(res, 0, PM_OFFSET), PQgetvalue(res, 0, PM_BEHIND), w->what);
		(void)refused(err);
	} else {
		rc = 0;
	}
	if (rc == 0 && PQntuples(res) == 1) {
		w->v = pr_calloc(1, sizeof(*w->v));
		w->n = 1;
		w->v[0] = (struct asked){
			.entry = dup(res, 0, PM_ENTRY),
			.topic = dup(res, 0, PM_TOPIC),
			.partition = dup(res, 0, PM_PARTITION),
			.offset = dup(res, 0, PM_OFFSET),
			.key = dup(res, 0, PM_KEY),
			/* Nothing waits behind another try of a dead letter. */
			.key_bytes = cli_cell(res, 0, PM_DEAD_LETTER) ? NULL : dup(res, 0, PM_KEY_BYTES),
			.id = dup(res, 0, PM_ID),
			.reason = dup(res, 0, PM_REASON),
			.events = 1,
		};
	}
	PQclear(res);
	return rc;
}

/* Without --all, and without an id, one key is meant. */
static int ambiguous(const struct cli *c, const struct work *w, struct pr_err *err)
{
	if (w->n <= 1 || cli_has(c, "all") || strcmp(c->verb->name, "parked release") == 0)
		return 0;
	if (cli_has(c, "key"))
		(void)cli_usage(err,
			"key \"%.80s\" is held back in %d partitions: say which with --topic and --partition",
			cli_str(c, "key"), w->n);
	else
		(void)cli_usage(err,
			"%d messages without a key are held back: say which with --id or --offset", w->n);
	return pr_hint(err, "--all means all that match");
}

static int find(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	int one = cli_option(c, "id") || cli_option(c, "offset");

	if ((one ? find_message(c, pg, w, err) : find_keys(c, pg, w, err)) < 0 || ambiguous(c, w, err) < 0)
		return -1;
	if (w->n)
		return 0;
	(void)parked_nothing(c, pg, err);
	return -1;
}

/* ---- ask and watch ---- */

/* One element of a Postgres array's text. */
static void put_element(struct pr_buf *b, const char *s)
{
	pr_buf_puts(b, b->len > 1 ? "," : "");
	if (!s) {
		pr_buf_puts(b, "NULL");
		return;
	}
	pr_buf_puts(b, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			pr_buf_puts(b, "\\");
		pr_buf_put(b, s, 1);
	}
	pr_buf_puts(b, "\"");
}

static int request(struct pr_pg *pg, struct work *w, const char *by, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	const char *params[3] = { NULL, w->what, by };
	PGresult *res;
	int rc;

	res = pr_pg_exec(
		pg, "SELECT coalesce(max(entry), 0), clock_timestamp() FROM inbox.dead_letter", 0, NULL, err);
	if (!res)
		return -1;
	w->before = dup(res, 0, 0);
	w->at = dup(res, 0, 1);
	PQclear(res);
	pr_buf_puts(&b, "{");
	for (int i = 0; i < w->n; i++)
		put_element(&b, w->v[i].entry);
	pr_buf_puts(&b, "}");
	params[0] = b.s;
	rc = pr_pg_run(pg, "SELECT inbox.parked_request($1::bigint[], $2, " CLI_BY("$3") ")", 3, params, err);
	pr_buf_free(&b);
	return rc;
}

/* Columns of db/queries/cli_parked_look.sql. */
enum { W_PLACE, W_THERE, W_REQUEST, W_FAILED, W_REASON, W_EVENTS, W_BURIED };

/* Undecided while a request stands, or while the group is under way: the first one is gone, and the next of
 * its key has not failed. */
static void settle(struct asked *a, const char *what, const PGresult *res, int row)
{
	int there = *PQgetvalue(res, row, W_THERE) == 't';
	const char *failed = cli_cell(res, row, W_FAILED);
	int left = there || cli_cell_int(res, row, W_EVENTS) > 0;

	a->events = cli_cell_int(res, row, W_EVENTS);
	a->buried = cli_cell_int(res, row, W_BURIED);
	if (cli_cell(res, row, W_REQUEST) || (left && !(failed && *failed == 't')))
		return;
	free(a->reason);
	a->reason = dup(res, row, W_REASON);
	if (!left)
		a->outcome = RELEASED;
	else
		a->outcome = !there && strcmp(what, "skip") == 0 ? SKIPPED : STILL_PARKED;
}

/* Looks at the undecided ones among v[from, to). Returns how many still are, -1 on error. */
static int look_at(
	const struct cli *c, struct pr_pg *pg, struct work *w, int from, int to, struct pr_err *err)
{
	struct pr_buf b[5] = { 0 };
	const char *params[8] = { cli_group(c), [6] = w->before, [7] = w->at };
	int place[CHUNK], n = 0, open = -1;
	PGresult *res;

	for (int k = 0; k < 5; k++)
		pr_buf_puts(&b[k], "{");
	for (int i = from; i < to; i++) {
		const struct asked *a = &w->v[i];
		const char *const cells[5] = { a->entry, a->topic, a->partition, a->offset, a->key_bytes };

		if (a->outcome != REQUESTED)
			continue;
		place[n++] = i;
		for (int k = 0; k < 5; k++)
			put_element(&b[k], cells[k]);
	}
	for (int k = 0; k < 5; k++) {
		pr_buf_puts(&b[k], "}");
		params[k + 1] = b[k].s;
	}
	res = n ? pr_pg_exec(pg, sql_cli_parked_look, 8, params, err) : NULL;
	if (res || n == 0)
		open = 0;
	for (int i = 0; res && i < PQntuples(res); i++) {
		struct asked *a = &w->v[place[cli_cell_int(res, i, W_PLACE)]];

		settle(a, w->what, res, i);
		open += a->outcome == REQUESTED;
	}
	PQclear(res);
	for (int k = 0; k < 5; k++)
		pr_buf_free(&b[k]);
	return open;
}

static int look(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	int open = 0, n;

	for (int i = 0; i < w->n; i += CHUNK) {
		n = look_at(c, pg, w, i, w->n - i < CHUNK ? w->n : i + CHUNK, err);
		if (n < 0)
			return -1;
		open += n;
	}
	return open;
}

static int watch(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	int64_t deadline = pr_mono_us() + cli_int(c, "wait", 10 * PR_SEC);
	int pause = 20, open;

	if (cli_int(c, "wait", 1) == 0)
		return 0;
	for (;;) {
		open = look(c, pg, w, err);
		if (open <= 0 || pr_mono_us() >= deadline)
			return open < 0 ? -1 : 0;
		(void)poll(NULL, 0, pause);
		pause = pause < 500 ? pause * 2 : 500;
	}
}

/* ---- say it ---- */

/* outcome NULL: what would be asked for. */
static void put_json(const struct cli *c, const struct work *w, const struct asked *a, const char *outcome)
{
	cJSON *o = cJSON_CreateObject();
	const struct {
		const char *name, *text;
		int number;
	} fields[] = { { "group", cli_group(c), 0 }, { "topic", a->topic, 0 },
		{ "partition", a->partition, 1 }, { "key", a->key, 0 }, { "offset", a->offset, 1 },
		{ "id", a->id, 0 }, { "request", w->what, 0 }, { "outcome", outcome, 0 },
		{ "reason", a->outcome == RELEASED ? NULL : a->reason, 0 } };

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		if (!fields[i].text)
			(void)cJSON_AddNullToObject(o, fields[i].name);
		else if (fields[i].number)
			(void)cJSON_AddRawToObject(o, fields[i].name, fields[i].text);
		else
			(void)cJSON_AddStringToObject(o, fields[i].name, fields[i].text);
	}
	cli_json_int(o, "events", a->events);
	cli_json_int(o, "dead_letters", a->buried);
	cli_json_free_line(o);
}

/* "orders [0] key 42", "orders [0] offset 17, without a key"; safe and malloc'd. */
static char *place_of(const struct asked *a)
{
	char *topic = cli_safe_str(a->topic), *key = cli_safe_str(a->key ? a->key : ""), *text;

	if (a->key)
		text = pr_asprintf("%s [%s] key %s", topic, a->partition, key);
	else
		text = pr_asprintf("%s [%s] offset %s, without a key", topic, a->partition, a->offset);
	free(topic);
	free(key);
	return text;
}

static char *end_of(const struct work *w, const struct asked *a, const char *reason)
{
	char n[64], buried[64], *more, *text;

	more = a->buried ? pr_asprintf("; %s made of it: see `postrider dlq list`",
				   cli_number(a->buried, "dead letter", buried))
			 : pr_strdup("");
	(void)cli_number(a->events, "event", n);
	if (a->outcome == REQUESTED)
		text = pr_asprintf("%s asked for; %s held back%s", w->what, n, more);
	else if (a->outcome == RELEASED)
		text = pr_asprintf("released, nothing is held back any more%s", more);
	else if (a->outcome == SKIPPED)
		text = pr_asprintf("skipped offset %s; the next one fails as well, %s held back%s: %s",
			a->offset, n, more, reason);
	else
		text = pr_asprintf("still held back, %s%s: %s", n, more, reason);
	free(more);
	return text;
}

static void put_text(const struct work *w, const struct asked *a, int plan)
{
	char *place = place_of(a), *reason = cli_safe_str(a->reason && *a->reason ? a->reason : "-"), n[64];
	char *end = plan ? pr_asprintf("offset %s (%s held back): %s", a->offset,
				   cli_number(a->events, "event", n), reason)
			 : end_of(w, a, reason);
	char *text = pr_asprintf(
		"%s%s%s%s %s", plan ? "would " : "", plan ? w->what : "", plan ? " " : "", place, end);

	cli_text(stdout, text, 0, 0);
	free(text);
	free(place);
	free(reason);
	free(end);
}

static int report(const struct cli *c, const struct work *w)
{
	int count[4] = { 0 }, buried = 0;
	char n[64];

	if (!cli_has(c, "json"))
		parked_heading(c);
	for (int i = 0; i < w->n; i++) {
		count[w->v[i].outcome]++;
		buried |= w->v[i].buried > 0;
		if (cli_has(c, "json"))
			put_json(c, w, &w->v[i], outcome_str[w->v[i].outcome]);
		else
			put_text(w, &w->v[i], 0);
	}
	if (count[REQUESTED] && cli_int(c, "wait", 1) != 0) {
		cli_say("consumer group %s has not done %s yet; it will when a member runs and is not "
			"paused: see "
			"`postrider show consumers`",
			cli_group(c), cli_number(count[REQUESTED], "request", n));
		return PR_EX_UNAVAILABLE;
	}
	return count[STILL_PARKED] || count[SKIPPED] || buried ? PR_EX_FAILED : PR_EX_OK;
}

static int plan(const struct cli *c, const struct work *w)
{
	if (!cli_has(c, "json"))
		parked_heading(c);
	for (int i = 0; i < w->n; i++) {
		if (cli_has(c, "json"))
			put_json(c, w, &w->v[i], NULL);
		else
			put_text(w, &w->v[i], 1);
	}
	return PR_EX_OK;
}

static int confirmed(const struct cli *c, const struct work *w, struct pr_err *err)
{
	char n[64];

	if (strcmp(w->what, "skip") != 0)
		return 0;
	if (w->n == 1)
		return cli_confirmed(c, err,
			"give up the message at offset %s of %.100s [%s], key %.80s, of consumer group %.80s",
			w->v[0].offset, w->v[0].topic, w->v[0].partition,
			w->v[0].key ? w->v[0].key : "(none)", cli_group(c));
	return cli_confirmed(c, err, "give up %s of consumer group %.80s, each the first of its key",
		cli_number(w->n, "message", n), cli_group(c));
}

/* What is meant must have been said: nothing is asked of all keys by an empty command line. */
static int check(const struct cli *c, struct pr_err *err)
{
	int one = cli_given(c, "id") || cli_given(c, "offset");
	int named = cli_given(c, "key") + cli_given(c, "no-key") + one;

	if (strcmp(c->verb->name, "parked release") == 0)
		return cli_has(c, "all") == cli_has(c, "topic")
			       ? cli_usage(err, "which keys? give --topic or --all")
			       : 0;
	if (named > 1 || (one && (cli_has(c, "all") || cli_has(c, "class") || cli_has(c, "code"))))
		return cli_usage(err,
			"--key, --no-key, --id and --offset exclude each other; --all, --class and "
			"--code narrow keys");
	if (named == 0 && !cli_has(c, "all"))
		return cli_usage(err, "which messages? give --key (and --topic, --partition), --no-key, "
				      "--id, --offset, or --all "
				      "for the first of every key");
	return 0;
}

int parked_group_ask(struct cli *c, const char *what)
{
	struct work w = { .what = what };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if (check(c, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 || find(c, pg, &w, &err) < 0)
		rc = cli_failed(c, &err);
	else if (cli_has(c, "dry-run"))
		rc = plan(c, &w);
	else if (confirmed(c, &w, &err) < 0 || request(pg, &w, cli_str(c, "by"), &err) < 0 ||
		 watch(c, pg, &w, &err) < 0)
		rc = cli_fail(&err);
	else
		rc = report(c, &w);
	work_release(&w);
	pr_pg_close(pg);
	return rc;
}
