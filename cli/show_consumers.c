/* cli/show_consumers.c -- `postrider show consumers`: each group of a database, from the tables
 * that its members write: where they stand, what they hold back, what they gave up on. The lag
 * is Kafka's to tell: without brokers it is unknown, never zero. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

enum {
	G_GROUP,
	G_PARTITIONS,
	G_PAUSED,
	G_SINCE,
	G_BY,
	G_LANES,
	G_PARKED,
	G_KEYS,
	G_PARKED_AGE,
	G_RETRYING,
	G_DEAD,
	G_DEAD_AGE,
	G_REPLAYS,
	G_MOVED
};
enum { P_TOPIC, P_PARTITION, P_EPOCH, P_LANE_COUNT, P_NEXT, P_LANES, P_MOVED };

/* Topics as Kafka has them, asked for once each. */
struct topics {
	struct cli *c;
	struct cli_topic *v;
	char **names;
	int n;
	struct pr_err err; /* the last failure; exit 0: none */
};

static const struct cli_topic *topic_of(struct topics *t, const char *name)
{
	if (!cli_brokers(t->c))
		return NULL;
	for (int i = 0; i < t->n; i++)
		if (strcmp(t->names[i], name) == 0)
			return t->v[i].rk ? &t->v[i] : NULL;
	t->v = pr_realloc(t->v, sizeof(*t->v) * (size_t)(t->n + 1));
	t->names = pr_realloc(t->names, sizeof(*t->names) * (size_t)(t->n + 1));
	t->names[t->n] = pr_strdup(name);
	/* A topic that cannot be asked for is remembered as such: one time-out is enough. */
	if (cli_topic_open(t->c, t->names[t->n], &t->v[t->n], &t->err) < 0)
		t->v[t->n] = (struct cli_topic){ 0 };
	return t->v[t->n++].rk ? &t->v[t->n - 1] : NULL;
}

static void topics_release(struct topics *t)
{
	for (int i = 0; i < t->n; i++) {
		cli_topic_close(&t->v[i]);
		free(t->names[i]);
	}
	free(t->v);
	free(t->names);
}

/* End offset and lag of row i; -1 unknown. A partition without a position begins at its earliest record. */
static int64_t lag_of(struct topics *t, const PGresult *res, int i, int64_t *ret_end)
{
	const struct cli_topic *topic = topic_of(t, PQgetvalue(res, i, P_TOPIC));
	int64_t p = cli_cell_int(res, i, P_PARTITION), next = cli_cell_int(res, i, P_NEXT);

	*ret_end = -1;
	if (!topic || p >= topic->partitions)
		return -1;
	*ret_end = topic->hi[p];
	if (next < topic->lo[p])
		next = topic->lo[p];
	return next < topic->hi[p] ? topic->hi[p] - next : 0;
}

static int64_t whole_lag(struct topics *t, const PGresult *res)
{
	int64_t sum = 0, end;

	for (int i = 0; i < PQntuples(res); i++) {
		int64_t lag = lag_of(t, res, i, &end);

		if (lag < 0)
			return -1;
		sum += lag;
	}
	return cli_brokers(t->c) ? sum : -1;
}

/* ---- JSON ---- */

static void add_known(cJSON *o, const char *name, int64_t n)
{
	if (n < 0)
		(void)cJSON_AddNullToObject(o, name);
	else
		cli_json_int(o, name, n);
}

static cJSON *partition_json(struct topics *t, const PGresult *res, int i)
{
	cJSON *o = cJSON_CreateObject();
	int64_t end, lag = lag_of(t, res, i, &end);

	cli_json_cell(o, "topic", res, i, P_TOPIC, 0);
	cli_json_cell(o, "partition", res, i, P_PARTITION, 1);
	cli_json_cell(o, "epoch", res, i, P_EPOCH, 1);
	cli_json_cell(o, "lane_count", res, i, P_LANE_COUNT, 1);
	cli_json_cell(o, "next_offset", res, i, P_NEXT, 1);
	cli_json_cell(o, "lanes", res, i, P_LANES, 1);
	add_known(o, "end_offset", end);
	add_known(o, "lag", lag);
	cli_json_cell(o, "moved_seconds", res, i, P_MOVED, 1);
	return o;
}

static void group_json(struct topics *t, const PGresult *g, int i, const PGresult *parts)
{
	static const struct {
		const char *name;
		int column, number;
	} fields[] = { { "group", G_GROUP, 0 }, { "paused_since", G_SINCE, 0 }, { "paused_by", G_BY, 0 },
		{ "lanes_wanted", G_LANES, 1 }, { "parked_events", G_PARKED, 1 },
		{ "parked_keys", G_KEYS, 1 }, { "parked_oldest_seconds", G_PARKED_AGE, 1 },
		{ "retrying", G_RETRYING, 1 }, { "dead_letters", G_DEAD, 1 },
		{ "dead_oldest_seconds", G_DEAD_AGE, 1 }, { "replays", G_REPLAYS, 1 },
		{ "moved_seconds", G_MOVED, 1 } };
	cJSON *o = cJSON_CreateObject(), *list = cJSON_CreateArray();

	for (size_t n = 0; n < sizeof(fields) / sizeof(*fields); n++)
		cli_json_cell(o, fields[n].name, g, i, fields[n].column, fields[n].number);
	(void)cJSON_AddBoolToObject(o, "paused", *PQgetvalue(g, i, G_PAUSED) == 't');
	add_known(o, "lag", whole_lag(t, parts));
	for (int p = 0; p < PQntuples(parts); p++)
		(void)cJSON_AddItemToArray(list, partition_json(t, parts, p));
	(void)cJSON_AddItemToObject(o, "partitions", list);
	cli_json_free_line(o);
}

/* ---- text ---- */

static void line(const char *name, const char *fmt, ...) PR_PRINTF(2, 3);
static void line(const char *name, const char *fmt, ...)
{
	char text[600];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 11, 13);
}

static const char *age(const PGresult *res, int i, int column, char *buf)
{
	const char *s = cli_cell(res, i, column);

	return s ? cli_span(strtod(s, NULL), buf) : "never";
}

static void put_trouble(const PGresult *g, int i)
{
	int64_t parked = cli_cell_int(g, i, G_PARKED), dead = cli_cell_int(g, i, G_DEAD);
	int64_t retrying = cli_cell_int(g, i, G_RETRYING);
	char a[64], b[64], old[48];

	if (parked)
		line("parked", "%s behind %s, the oldest for %s", cli_number(parked, "event", a),
			cli_number(cli_cell_int(g, i, G_KEYS), "key", b), age(g, i, G_PARKED_AGE, old));
	else
		line("parked", "none");
	if (dead)
		line("dead", "%s, the oldest for %s", cli_number(dead, "dead letter", a),
			age(g, i, G_DEAD_AGE, old));
	else
		line("dead", "none");
	if (retrying)
		line("retrying", "%s", cli_number(retrying, "dead letter", a));
	if (cli_cell_int(g, i, G_REPLAYS))
		line("replay", "%s running", cli_number(cli_cell_int(g, i, G_REPLAYS), "job", a));
}

static void put_partitions(struct topics *t, const PGresult *res)
{
	static const char *const heads[] = { "=TOPIC", ">PARTITION", ">EPOCH", ">LANES", ">NEXT", ">END",
		">LAG", ">MOVED" };
	struct cli_table table = { .ncols = 8, .heads = heads };

	for (int i = 0; i < PQntuples(res); i++) {
		int64_t end, lag = lag_of(t, res, i, &end);
		char last[32] = "-", behind[32] = "-", moved[48];
		const char *next = cli_cell(res, i, P_NEXT);
		const char *const cells[] = { cli_cell(res, i, P_TOPIC), cli_cell(res, i, P_PARTITION),
			cli_cell(res, i, P_EPOCH), cli_cell(res, i, P_LANE_COUNT), *next == '-' ? "-" : next,
			last, behind, age(res, i, P_MOVED, moved) };

		if (end >= 0)
			(void)snprintf(last, sizeof(last), "%lld", (long long)end);
		if (lag >= 0)
			(void)cli_count(lag, behind);
		cli_table_add(&table, cells);
	}
	if (table.nrows) {
		(void)putchar('\n');
		cli_table_print(&table, stdout);
	}
}

static void group_text(struct topics *t, const PGresult *g, int i, const PGresult *parts)
{
	int paused = *PQgetvalue(g, i, G_PAUSED) == 't';
	char *name = cli_safe_str(cli_cell(g, i, G_GROUP)), n[64], moved[48];
	int64_t lag = whole_lag(t, parts);

	(void)printf("%s%s%s%s%s%s  %s, moved %s%s\n", cli_on(stdout, CLI_BOLD), name, cli_off(stdout),
		cli_on(stdout, CLI_YELLOW), paused ? "  paused" : "", cli_off(stdout),
		cli_number(cli_cell_int(g, i, G_PARTITIONS), "partition", n), age(g, i, G_MOVED, moved),
		cli_cell(g, i, G_MOVED) ? " ago" : "");
	if (paused)
		line("paused", "since %s, by %s", cli_cell(g, i, G_SINCE), cli_cell(g, i, G_BY));
	if (lag < 0)
		line("lag", "unknown%s", cli_brokers(t->c) ? "" : ": give --brokers or -c");
	else
		line("lag", "%s", cli_number(lag, "record", n));
	if (cli_cell(g, i, G_LANES))
		line("lanes", "%s wanted", cli_cell(g, i, G_LANES));
	put_trouble(g, i);
	put_partitions(t, parts);
	free(name);
}

/* ---- the verb ---- */

static int show_group(struct topics *t, struct pr_pg *pg, const PGresult *g, int i, struct pr_err *err)
{
	const char *group = cli_cell(g, i, G_GROUP);
	PGresult *parts = pr_pg_exec(pg, sql_cli_consumers_positions, 1, &group, err);

	if (!parts)
		return -1;
	if (cli_has(t->c, "json")) {
		group_json(t, g, i, parts);
	} else {
		if (i)
			(void)putchar('\n');
		group_text(t, g, i, parts);
	}
	PQclear(parts);
	return 0;
}

static int nothing(const struct cli *c)
{
	if (cli_group(c))
		cli_say("no consumer of group %s has run on this database", cli_group(c));
	else
		cli_say("no consumer has run on this database");
	return cli_group(c) ? PR_EX_NOT_FOUND : PR_EX_OK;
}

int verb_show_consumers(struct cli *c)
{
	const char *group = cli_group(c);
	struct topics t = { .c = c };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = pr_pg_exec(pg, sql_cli_consumers_groups, 1, &group, &err)))
		rc = cli_failed(c, &err);
	else if (PQntuples(res) == 0)
		rc = nothing(c);
	for (int i = 0; rc == PR_EX_OK && i < PQntuples(res); i++)
		if (show_group(&t, pg, res, i, &err) < 0)
			rc = cli_fail(&err);
	if (rc == PR_EX_OK && t.err.exit) /* what Kafka did not tell is shown as unknown, and said */
		rc = cli_fail(&t.err);
	topics_release(&t);
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
