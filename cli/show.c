/* cli/show.c -- `postrider show lag`, `show topics`, `show config`: what the servers and the file hold, as a
 * listing. Reads only, and judges nothing: that is what doctor and status are for. */
#include "cli/cli.h"

#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

static void add_known(cJSON *o, const char *name, int64_t n)
{
	if (n < 0)
		(void)cJSON_AddNullToObject(o, name);
	else
		cli_json_int(o, name, n);
}

static void add_text(cJSON *o, const char *name, const char *value)
{
	(void)cJSON_AddItemToObject(
		o, name, value && *value ? cJSON_CreateString(value) : cJSON_CreateNull());
}

static const char *known(int64_t n, char *buf)
{
	return n < 0 ? "-" : cli_count(n, buf);
}

/* ---------------------------------------------------------------- lag */

/* seconds NULL and behind -1: not known. */
static void put_lag(const struct cli *c, struct cli_table *table, const char *what, const char *name,
	const char *seconds, int64_t behind, int64_t held)
{
	char span[48], a[48], b[48];
	const char *const cells[] = { what, name ? name : "-",
		seconds ? cli_span(strtod(seconds, NULL), span) : "-", known(behind, a), known(held, b) };
	cJSON *o;

	if (!cli_has(c, "json")) {
		cli_table_add(table, cells);
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddStringToObject(o, "what", what);
	add_text(o, "name", name);
	if (seconds)
		(void)cJSON_AddRawToObject(o, "lag_seconds", seconds);
	else
		(void)cJSON_AddNullToObject(o, "lag_seconds");
	add_known(o, "behind", behind);
	add_known(o, "held_back", held);
	cli_json_free_line(o);
}

/* Records of one partition that are not handled. A topic is asked for once for all its rows, which follow one
 * another. */
static int64_t behind(struct cli *c, struct cli_topic *topic, const PGresult *res, int i, struct pr_err *err)
{
	const char *name = cli_cell(res, i, 0);
	int64_t p = cli_cell_int(res, i, 1), next = cli_cell_int(res, i, 3);

	if (!topic->rk || strcmp(topic->name, name) != 0) {
		cli_topic_close(topic);
		if (cli_topic_open(c, name, topic, err) < 0)
			return -1;
	}
	if (p >= topic->partitions)
		return 0;
	next = next < topic->lo[p] ? topic->lo[p] : next;
	return next < topic->hi[p] ? topic->hi[p] - next : 0;
}

/* -1: not known. */
static int64_t group_behind(struct cli *c, struct pr_pg *pg, const char *group, struct pr_err *err)
{
	PGresult *res = cli_brokers(c) ? pr_pg_exec(pg, sql_doctor_lanes, 1, &group, err) : NULL;
	struct cli_topic topic = { 0 };
	int64_t sum = res ? 0 : -1;

	for (int i = 0; res && sum >= 0 && i < PQntuples(res); i++) {
		int64_t n = behind(c, &topic, res, i, err);

		sum = n < 0 ? -1 : sum + n;
	}
	cli_topic_close(&topic);
	PQclear(res);
	return sum;
}

static int outbox_lag(struct cli *c, struct pr_pg *pg, struct cli_table *table, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_show_lag, 0, NULL, err);

	if (!res)
		return -1;
	if (PQntuples(res))
		put_lag(c, table, "outbox", cli_cell(res, 0, 0), cli_cell(res, 0, 1), cli_cell_int(res, 0, 2),
			cli_cell_int(res, 0, 3));
	PQclear(res);
	return 0;
}

/* Columns 0 and 6 of the groups: name, messages held back. */
static int groups_lag(struct cli *c, struct pr_pg *pg, struct cli_table *table, struct pr_err *err)
{
	const char *group = cli_group(c);
	PGresult *res = pr_pg_exec(pg, sql_cli_consumers_groups, 1, &group, err);
	int rc = res ? 0 : -1;

	for (int i = 0; rc == 0 && i < PQntuples(res); i++) {
		int64_t n = group_behind(c, pg, cli_cell(res, i, 0), err);

		rc = n < 0 && cli_brokers(c) ? -1 : 0;
		put_lag(c, table, "group", cli_cell(res, i, 0), NULL, n, cli_cell_int(res, i, 6));
	}
	PQclear(res);
	return rc;
}

int verb_show_lag(struct cli *c)
{
	static const char *const heads[] = { "WHAT", "NAME", ">LAG", ">BEHIND", ">HELD BACK" };
	struct cli_table table = { .ncols = 5, .heads = heads };
	struct pr_err err = { 0 }, denied = { 0 };
	struct pr_pg *pg = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0)
		return cli_failed(c, &err);
	/* A consumer's login may not look into the outbox, a relay's not into the inbox: one of both will do.
	 */
	if ((!c->consumer_loaded && outbox_lag(c, pg, &table, &denied) < 0 &&
		    strcmp(denied.code, "42501") != 0)) {
		rc = cli_fail(&denied);
	} else if (groups_lag(c, pg, &table, &err) < 0 && (strcmp(err.code, "42501") != 0 || *denied.code)) {
		rc = cli_fail(&err);
	}
	if (table.nrows)
		cli_table_print(&table, stdout);
	pr_pg_close(pg);
	return rc;
}

/* ---------------------------------------------------------------- topics */

struct listing {
	struct cli *c;
	char **names;
	int n;
};

static void on_name(void *ctx, const char *name)
{
	struct listing *l = ctx;

	if (!cli_is_topic_of(l->c, name))
		return;
	l->names = pr_realloc(l->names, sizeof(*l->names) * (size_t)(l->n + 1));
	l->names[l->n++] = pr_strdup(name);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void put_topic(const struct cli *c, struct cli_table *table, const struct cli_topic *t,
	const struct pr_topic_info *info)
{
	int64_t records = 0;
	char partitions[48], n[48], most[48];
	const char *cells[5] = { t->name, partitions, n, most, info->cleanup_policy };
	cJSON *o;

	for (int i = 0; i < t->partitions; i++)
		records += t->hi[i] - t->lo[i];
	(void)cli_count(t->partitions, partitions);
	(void)cli_count(records, n);
	(void)snprintf(most, sizeof(most), "%s", known(info->max_message_bytes, (char[48]){ 0 }));
	if (!cli_has(c, "json")) {
		cli_table_add(table, cells);
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddStringToObject(o, "topic", t->name);
	cli_json_int(o, "partitions", t->partitions);
	cli_json_int(o, "offsets", records);
	add_known(o, "max_message_bytes", info->max_message_bytes);
	add_text(o, "cleanup_policy", info->cleanup_policy);
	cli_json_free_line(o);
}

static int show_topic(struct cli *c, struct cli_table *table, const char *name, struct pr_err *err)
{
	struct pr_topic_info info = { 0 };
	struct cli_topic t;
	int rc = -1;

	if (cli_topic_open(c, name, &t, err) < 0)
		return -1;
	if (pr_kafka_topic_info(t.rk, name, (int)(cli_timeout(c) / PR_MS), &info, err) == 0) {
		put_topic(c, table, &t, &info);
		rc = 0;
	}
	cli_topic_close(&t);
	return rc;
}

int verb_show_topics(struct cli *c)
{
	static const char *const heads[] = { "TOPIC", ">PARTITIONS", ">OFFSETS", ">LARGEST", "CLEANUP" };
	struct cli_table table = { .ncols = 5, .heads = heads };
	struct listing l = { .c = c };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	if (cli_topic_names(c, on_name, &l, &err) < 0)
		rc = cli_failed(c, &err);
	if (l.n)
		qsort(l.names, (size_t)l.n, sizeof(*l.names), by_name);
	for (int i = 0; i < l.n; i++) {
		if (rc == PR_EX_OK && show_topic(c, &table, l.names[i], &err) < 0)
			rc = cli_fail(&err);
		free(l.names[i]);
	}
	free(l.names);
	if (table.nrows)
		cli_table_print(&table, stdout);
	else if (rc == PR_EX_OK && l.n == 0)
		cli_say("there is no such topic yet");
	return rc;
}

/* ---------------------------------------------------------------- config */

int verb_show_config(struct cli *c)
{
	struct pr_err err = { 0 };

	if (!c->loaded && !c->consumer_loaded) {
		(void)cli_usage(&err, "which file? give -c");
		return cli_failed(c, &err);
	}
	pr_conf_print(c->loaded ? c->loaded : c->consumer_loaded, stdout);
	return PR_EX_OK;
}
