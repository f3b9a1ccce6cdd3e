/* cli/trace.c -- `postrider trace`: where an event has been: the row, the record, each consumer group of the
 * databases given, the saga. Shows no payload and changes nothing. What a database does not let this login
 * see is said, and is not taken for "not there". */
#include "cli/trace.h"

#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	E_ID,
	E_KEY,
	E_TYPE,
	E_KIND,
	E_TOPIC,
	E_PARTITION,
	E_SEQ,
	E_XID,
	E_CREATED,
	E_CREATED_US,
	E_SAGA,
	E_HELD,
	E_HELD_AT,
	E_REASON
};

#define MOST_DATABASES 32

struct tracer {
	struct cli *c;
	struct pr_pg *outbox; /* of -c or --conninfo */
	struct pr_pg *others[MOST_DATABASES];
	int nothers, blind; /* blind: some database may not be looked at */
};

/* ---------------------------------------------------------------- text */

static void line(const char *name, const char *fmt, ...) PR_PRINTF(2, 3);
static void line(const char *name, const char *fmt, ...)
{
	char text[1600];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)printf("  %s%-10s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 12, 14);
}

static const char *str(const cJSON *o, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, name);

	return cJSON_IsString(item) ? item->valuestring : NULL;
}

static int64_t num(const cJSON *o, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, name);

	return cJSON_IsNumber(item)        ? (int64_t)item->valuedouble
	       : item && item->valuestring ? atoll(item->valuestring)
					   : -1;
}

static void put_held(const struct trace *t)
{
	if (strcmp(t->held, "scheduled") == 0)
		line("scheduled", "for %s", t->held_at);
	else if (strcmp(t->held, "behind") == 0)
		line("parked", "%s: it waits behind an earlier event of its key", t->held_at);
	else
		line(t->held, "%s%s%s", t->held_at, t->reason ? ": " : "", t->reason ? t->reason : "");
}

static void put_record(const struct trace *t)
{
	char span[48], at[40];
	double late = (double)(t->time_ms - t->created_us / 1000) / 1000;
	time_t s = (time_t)(t->time_ms / 1000);
	struct tm tm;

	if (t->offset < 0) {
		line("record", "%s",
			*t->why   ? t->why
			: t->held ? "not published"
				  : "not on its topic (yet, or any more)");
		return;
	}
	(void)gmtime_r(&s, &tm);
	(void)strftime(at, sizeof(at), "%Y-%m-%dT%H:%M:%S", &tm);
	line("published", "%s.%03dZ, %s later: topic %s, partition %d, offset %lld", at,
		(int)(t->time_ms % 1000), cli_span(late < 0 ? 0 : late, span), t->topic, (int)t->partition,
		(long long)t->offset);
}

static void put_group(const cJSON *g)
{
	const char *state = str(g, "state"), *group = str(g, "group"), *database = str(g, "database");
	const char *at = str(g, "at"), *reason = str(g, "reason");

	if (strcmp(state, "handled") == 0)
		line("handled", "by group %s (database %s)", group, database);
	else if (strcmp(state, "passed") == 0)
		line("passed", "by group %s (database %s): handled, or filtered; its id is not remembered",
			group, database);
	else if (strcmp(state, "to_do") == 0)
		line("to do", "by group %s (database %s): it is not there yet", group, database);
	else if (strcmp(state, "behind") == 0)
		line("parked", "%s by group %s (database %s): it waits behind an earlier message of its key",
			at, group, database);
	else if (strcmp(state, "parked") == 0)
		line("parked", "%s by group %s (database %s) after %lld tries, %s:%s: %s", at, group,
			database, (long long)num(g, "attempts"), str(g, "class"), str(g, "code"),
			reason ? reason : "");
	else
		line(strcmp(state, "dropped") == 0 ? "dropped" : "dead",
			"%s by group %s (database %s) after %lld tries, %s:%s: %s; "
			"postrider dlq show %lld",
			at, group, database, (long long)num(g, "attempts"), str(g, "class"), str(g, "code"),
			reason ? reason : "", (long long)num(g, "dead_letter"));
}

static void put_saga(const cJSON *s)
{
	const char *why = str(s, "why"), *steps = str(s, "steps");

	if (strcmp(str(s, "who"), "engine") == 0)
		line("saga", "%s %s:%lld (database %s): %s since %s%s%s; %s", str(s, "id"), str(s, "name"),
			(long long)num(s, "version"), str(s, "database"), str(s, "state"), str(s, "since"),
			why ? ", " : "", why ? why : "", steps ? steps : "no steps");
	else
		line("step", "%s of saga %s (database %s): %s, %s%s%s", steps, str(s, "id"),
			str(s, "database"), str(s, "state"), str(s, "since"), why ? ": " : "",
			why ? why : "");
}

static void put_text(const struct trace *t, const cJSON *groups, const cJSON *sagas, int nth)
{
	char *head = pr_asprintf("%s%s%s%s%s", t->type ? "event " : "", t->id, t->type ? "  " : "",
		t->type ? t->type : "", t->key ? ", key " : "");
	char *safe = cli_safe_str(head), *key = cli_safe_str(t->key ? t->key : "");

	(void)printf("%s%s%s%s%s\n", nth ? "\n" : "", cli_on(stdout, CLI_BOLD), safe, key, cli_off(stdout));
	if (t->created_at)
		line("written", "%s%s%s", t->created_at, t->seq ? ", event number " : "",
			t->seq ? t->seq : "");
	if (t->held)
		put_held(t);
	if (t->created_at || *t->why == '\0')
		put_record(t);
	for (const cJSON *g = groups->child; g; g = g->next)
		put_group(g);
	for (const cJSON *s = sagas->child; s; s = s->next)
		put_saga(s);
	free(head);
	free(safe);
	free(key);
}

/* ---------------------------------------------------------------- JSON */

static void add_text(cJSON *o, const char *name, const char *value)
{
	(void)cJSON_AddItemToObject(o, name, value ? cJSON_CreateString(value) : cJSON_CreateNull());
}

static cJSON *record_json(const struct trace *t)
{
	cJSON *o = cJSON_CreateObject();

	if (t->offset < 0) {
		cJSON_Delete(o);
		return cJSON_CreateNull();
	}
	cli_json_int(o, "partition", t->partition);
	cli_json_int(o, "offset", t->offset);
	cli_json_int(o, "time_ms", t->time_ms);
	return o;
}

/* Takes the lists. */
static void put_json(const struct trace *t, cJSON *groups, cJSON *sagas)
{
	cJSON *o = cJSON_CreateObject();

	add_text(o, "id", t->id);
	add_text(o, "key", t->key);
	add_text(o, "type", t->type);
	add_text(o, "topic", t->topic);
	if (t->seq)
		(void)cJSON_AddRawToObject(o, "seq", t->seq);
	else
		(void)cJSON_AddNullToObject(o, "seq");
	add_text(o, "created_at", t->created_at);
	add_text(o, "held", t->held);
	add_text(o, "held_at", t->held_at);
	add_text(o, "reason", t->reason);
	(void)cJSON_AddItemToObject(o, "published", record_json(t));
	add_text(o, "unknown", *t->why ? t->why : NULL);
	(void)cJSON_AddItemToObject(o, "groups", groups);
	(void)cJSON_AddItemToObject(o, "sagas", sagas);
	cli_json_free_line(o);
}

/* ---------------------------------------------------------------- the verb */

static void cannot_see(struct tracer *r, struct pr_pg *pg, const struct pr_err *err)
{
	cli_warn("database %s: %s", PQdb(pr_pg_conn(pg)), err->text);
	if (strcmp(err->code, "42501") == 0)
		cli_hint("GRANT outbox_operator, inbox_operator, saga_operator TO %s;", cli_login());
	r->blind = 1;
}

static struct pr_pg *nth(struct tracer *r, int i)
{
	return i == 0 ? r->outbox : r->others[i - 1];
}

/* 1: something is known of it. */
static int follow(struct tracer *r, struct trace *t, int n)
{
	cJSON *groups = cJSON_CreateArray(), *sagas = cJSON_CreateArray();
	struct pr_err err = { 0 };
	const char *saga;
	int known;

	if (t->created_at)
		trace_record(r->c, t);
	for (int i = 0; i <= r->nothers; i++)
		if (trace_groups(nth(r, i), t, groups, &err) < 0)
			cannot_see(r, nth(r, i), &err);
	saga = t->saga ? t->saga : groups->child ? str(groups->child, "saga") : NULL;
	if (!saga || !cli_is_uuid(saga))
		saga = t->created_at ? NULL : t->id; /* it may be a saga's */
	for (int i = 0; saga && i <= r->nothers; i++)
		if (trace_saga(nth(r, i), saga, sagas, &err) < 0)
			cannot_see(r, nth(r, i), &err);
	known = t->created_at || groups->child || sagas->child;
	if (known && cli_has(r->c, "json")) {
		put_json(t, groups, sagas);
		return 1;
	}
	if (known)
		put_text(t, groups, sagas, n);
	cJSON_Delete(groups);
	cJSON_Delete(sagas);
	return known;
}

static void fill(struct trace *t, const PGresult *res, int i)
{
	*t = (struct trace){ .id = cli_cell(res, i, E_ID),
		.key = cli_cell(res, i, E_KEY),
		.type = cli_cell(res, i, E_TYPE),
		.topic = cli_cell(res, i, E_TOPIC),
		.created_at = cli_cell(res, i, E_CREATED),
		.seq = cli_cell(res, i, E_SEQ),
		.saga = cli_cell(res, i, E_SAGA),
		.held = cli_cell(res, i, E_HELD),
		.held_at = cli_cell(res, i, E_HELD_AT),
		.reason = cli_cell(res, i, E_REASON),
		.created_us = cli_cell_int(res, i, E_CREATED_US),
		.offset = -1 };
	t->partition = cli_cell(res, i, E_PARTITION) ? (int32_t)cli_cell_int(res, i, E_PARTITION) : -1;
}

static PGresult *events(struct tracer *r, struct pr_err *err)
{
	char limit[24];
	const char *route = r->c->loaded ? r->c->conf.route.topic : "outbox.event.${aggregatetype}";
	const char *params[5] = { r->c->nargs ? r->c->args[0] : NULL, cli_str(r->c, "key"), route, limit,
		cli_has(r->c, "neighbours") ? "t" : "f" };

	(void)snprintf(limit, sizeof(limit), "%lld", (long long)cli_int(r->c, "limit", 20));
	return pr_pg_exec(r->outbox, sql_trace_event, 5, params, err);
}

static int open_others(struct tracer *r, struct pr_err *err)
{
	struct pr_pg_opts opts = { .appname = "postrider", .timeout_us = cli_timeout(r->c), .wake_fd = -1 };

	while ((opts.conninfo = cli_nth(r->c, "also", r->nothers))) {
		if (r->nothers == MOST_DATABASES)
			return cli_usage(err, "more than %d databases", MOST_DATABASES);
		if (pr_pg_open(&opts, &r->others[r->nothers], err) < 0)
			return -1;
		r->nothers++;
	}
	return 0;
}

static int check_words(struct cli *c, struct pr_err *err)
{
	if (c->nargs + cli_has(c, "key") != 1)
		return cli_usage(err, "which event? give its id, or --key");
	if (cli_has(c, "key") && cli_has(c, "neighbours"))
		return cli_usage(err, "--neighbours are those of an id; --key shows all of a key");
	if (c->nargs && !cli_is_uuid(c->args[0]))
		return cli_usage(err, "\"%.60s\" is no id: 8-4-4-4-12 hexadecimal digits", c->args[0]);
	return 0;
}

static int found_none(const struct tracer *r)
{
	cli_say("nothing is known of it here%s", r->blind ? ", as far as could be looked" : "");
	cli_hint("its row goes with retention.keep; --also names the databases of consumers and of the saga "
		 "engine");
	return PR_EX_NOT_FOUND;
}

int verb_trace(struct cli *c)
{
	struct tracer r = { .c = c };
	struct pr_err err = { 0 };
	PGresult *res = NULL;
	struct trace t;
	int known = 0, rc;

	if (check_words(c, &err) < 0 || cli_connect_outbox(c, &r.outbox, &err) < 0 ||
		open_others(&r, &err) < 0) {
		rc = cli_failed(c, &err);
		goto out;
	}
	res = events(&r, &err);
	if (!res && strcmp(err.code, "42501") != 0) {
		rc = cli_fail(&err);
		goto out;
	}
	if (!res)
		cannot_see(&r, r.outbox, &err);
	for (int i = res ? PQntuples(res) - 1 : -1; i >= 0; i--) { /* the oldest first */
		fill(&t, res, i);
		known += follow(&r, &t, known);
	}
	if (known == 0 && c->nargs) {
		t = (struct trace){
			.id = c->args[0], .partition = -1, .offset = -1, .why = "its row is not here"
		};
		known = follow(&r, &t, 0);
	}
	rc = known ? PR_EX_OK : found_none(&r);
out:
	PQclear(res);
	pr_pg_close(r.outbox);
	for (int i = 0; i < r.nothers; i++)
		pr_pg_close(r.others[i]);
	return rc;
}
