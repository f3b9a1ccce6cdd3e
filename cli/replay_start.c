/* cli/replay_start.c -- `postrider replay start`: a range of time, offsets or outbox ids becomes
 * offsets of each partition, and a job. Refuses what the group has not come to yet (it would be
 * handled out of order), and what it no longer remembers unless told twice. */
#include "cli/replay.h"

#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

struct range {
	const char *group, *topic;
	struct cli_topic t;
	int64_t *from, *to;    /* by partition; equal: nothing of it */
	int64_t *next;         /* where the group stands; -1 unknown to it */
	int64_t remembered_us; /* ids are known since then; 0: since ever */
	/* while ids are looked for */
	int64_t from_id, to_id;
	struct cli_progress progress;
};

static void range_release(struct range *r)
{
	cli_topic_close(&r->t);
	free(r->from);
	free(r->to);
	free(r->next);
}

/* ---- the command line ---- */

/* Names the kind of range; NULL with a usage error. */
static const char *kind_of(const struct cli *c, struct pr_err *err)
{
	static const char *const kinds[] = { "time", "offset", "id" };
	const char *kind = cli_has(c, "all") ? "all" : NULL;
	int n = kind != NULL;

	for (int i = 0; i < 3; i++) {
		char from[16], to[16];

		(void)snprintf(from, sizeof(from), "from-%s", kinds[i]);
		(void)snprintf(to, sizeof(to), "to-%s", kinds[i]);
		if (cli_has(c, from) || cli_has(c, to)) {
			kind = kinds[i];
			n++;
		}
	}
	if (n == 1)
		return kind;
	(void)cli_usage(err, n ? "a range is of one kind: times, offsets or ids" : "which records?");
	(void)pr_hint(err, "give --from-time, --from-offset, --from-id (and --to-...), or --all");
	return NULL;
}

static int names(const struct cli *c, struct range *r, struct pr_err *err)
{
	r->group = cli_group(c);
	r->topic = cli_str(c, "topic");
	if (!r->topic && c->consumer_loaded && c->consumer.kafka.topics.n == 1 &&
		c->consumer.kafka.topics.v[0][0] != '^')
		r->topic = c->consumer.kafka.topics.v[0];
	if (!r->group)
		return cli_usage(err, "which group? give --group, or -c consumer.cfg");
	if (!r->topic)
		return cli_usage(err, "which topic? give --topic");
	return 0;
}

static int is_chosen(const struct cli *c, int partition)
{
	const char *s;

	if (!cli_has(c, "partition"))
		return 1;
	for (int i = 0; (s = cli_nth(c, "partition", i)); i++)
		if (strtol(s, NULL, 10) == partition)
			return 1;
	return 0;
}

static int check_partitions(const struct cli *c, const struct range *r, const char *kind, struct pr_err *err)
{
	const char *s;

	for (int i = 0; (s = cli_nth(c, "partition", i)); i++)
		if (strtol(s, NULL, 10) >= r->t.partitions) {
			(void)pr_fail(err, PR_REJECT, "topic %s has %d partition%s: there is no %s", r->topic,
				r->t.partitions, r->t.partitions == 1 ? "" : "s", s);
			err->exit = PR_EX_NOT_FOUND;
			return -1;
		}
	if (strcmp(kind, "offset") == 0 && !cli_has(c, "partition") && r->t.partitions > 1)
		return cli_usage(err, "offsets are of one partition: give --partition");
	return 0;
}

/* ---- where the group stands ---- */

static int read_group(struct pr_pg *pg, struct range *r, struct pr_err *err)
{
	const char *params[2] = { r->group, r->topic };
	PGresult *res = pr_pg_exec(pg, sql_cli_replay_bounds, 2, params, err);

	if (!res)
		return -1;
	if (PQntuples(res) == 0) {
		(void)pr_fail(err, PR_REJECT, "group %s has never handled topic %s", r->group, r->topic);
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err, "`postrider show consumers` shows the groups of this database");
		PQclear(res);
		return -1;
	}
	for (int i = 0; i < PQntuples(res); i++) {
		int64_t p = cli_cell_int(res, i, 0);

		if (p < r->t.partitions)
			r->next[p] = cli_cell_int(res, i, 1);
	}
	r->remembered_us = cli_cell_int(res, 0, 2);
	PQclear(res);
	return 0;
}

/* ---- the range ---- */

static int by_time(const struct cli *c, struct range *r, struct pr_err *err)
{
	if (cli_has(c, "from-time") && cli_topic_at(c, &r->t, cli_int(c, "from-time", 0), r->from, err) < 0)
		return -1;
	if (cli_has(c, "to-time") && cli_topic_at(c, &r->t, cli_int(c, "to-time", 0), r->to, err) < 0)
		return -1;
	return 0;
}

static int by_offset(const struct cli *c, struct range *r)
{
	for (int i = 0; i < r->t.partitions; i++) {
		r->from[i] = cli_int(c, "from-offset", r->from[i]);
		r->to[i] = cli_int(c, "to-offset", r->to[i]);
	}
	return 0;
}

/* Ids are not in the order of offsets (transactions overlap): from the first that is in the range to the
 * last. What lies between and is not in it is only suppressed as a duplicate. */
static int on_record(void *ctx, const rd_kafka_message_t *m)
{
	struct range *r = ctx;
	rd_kafka_headers_t *h = NULL;
	const void *value = NULL;
	char text[24];
	size_t n = 0;
	int64_t id;

	r->progress.done++;
	cli_progress(&r->progress);
	if (rd_kafka_message_headers(m, &h) || rd_kafka_header_get_last(h, "outbox-seq", &value, &n) ||
		!value || n >= sizeof(text))
		return 0;
	memcpy(text, value, n);
	text[n] = '\0';
	id = strtoll(text, NULL, 10);
	if (id < r->from_id || id > r->to_id)
		return 0;
	if (r->from[m->partition] < 0)
		r->from[m->partition] = m->offset;
	r->to[m->partition] = m->offset + 1;
	return 0;
}

static int by_id(const struct cli *c, struct range *r, struct pr_err *err)
{
	int64_t *to = pr_calloc((size_t)r->t.partitions, sizeof(*to)), total = 0;
	int rc;

	r->from_id = cli_int(c, "from-id", 1);
	r->to_id = cli_int(c, "to-id", INT64_MAX);
	for (int i = 0; i < r->t.partitions; i++) {
		to[i] = is_chosen(c, i) ? r->t.hi[i] : r->t.lo[i];
		total += to[i] - r->t.lo[i];
		r->from[i] = r->to[i] = -1;
	}
	cli_progress_begin(c, &r->progress, "search", total);
	rc = cli_topic_read(c, &r->t, r->t.lo, to, on_record, r, err);
	cli_progress_end(&r->progress);
	free(to);
	return rc;
}

/* Nothing that is not there, and nothing that the group has not come to: live and replayed records of
 * one key would overtake each other. */
static void clamp(const struct cli *c, struct range *r)
{
	int64_t cut = 0;

	for (int i = 0; i < r->t.partitions; i++) {
		int64_t end = r->next[i] < r->t.hi[i] ? r->next[i] : r->t.hi[i];

		if (!is_chosen(c, i))
			r->from[i] = r->to[i] = 0;
		if (cli_has(c, "from-offset") && r->from[i] < r->t.lo[i] && is_chosen(c, i))
			cli_warn("partition %d begins at offset %lld: what was before it is gone", i,
				(long long)r->t.lo[i]);
		r->from[i] = r->from[i] < r->t.lo[i] && r->to[i] > r->from[i] ? r->t.lo[i] : r->from[i];
		if (r->to[i] > end) {
			cut += r->to[i] - (end > r->from[i] ? end : r->from[i]);
			r->to[i] = end;
		}
		if (r->to[i] <= r->from[i])
			r->from[i] = r->to[i] = 0;
	}
	if (cut > 0)
		cli_say("left out: what the group has not handled yet, it comes by itself");
}

static int find_range(
	const struct cli *c, struct pr_pg *pg, struct range *r, const char *kind, struct pr_err *err)
{
	size_t n = (size_t)r->t.partitions;

	r->from = pr_calloc(n, sizeof(*r->from));
	r->to = pr_calloc(n, sizeof(*r->to));
	r->next = pr_calloc(n, sizeof(*r->next));
	for (size_t i = 0; i < n; i++) {
		r->from[i] = r->t.lo[i];
		r->to[i] = r->t.hi[i];
		r->next[i] = -1;
	}
	if (read_group(pg, r, err) < 0)
		return -1;
	if ((strcmp(kind, "time") == 0 && by_time(c, r, err) < 0) ||
		(strcmp(kind, "offset") == 0 && by_offset(c, r) < 0) ||
		(strcmp(kind, "id") == 0 && by_id(c, r, err) < 0))
		return -1;
	clamp(c, r);
	return 0;
}

static int64_t records(const struct range *r)
{
	int64_t n = 0;

	for (int i = 0; i < r->t.partitions; i++)
		n += r->to[i] - r->from[i];
	return n;
}

/* ---- what must be said twice ---- */

static int again(const struct cli *c, const struct range *r, struct pr_err *err)
{
	int64_t *known = pr_calloc((size_t)r->t.partitions, sizeof(*known)), n = 0;
	char count[64];
	int rc = 0;

	if (c->consumer_loaded && c->consumer.dedupe == PR_DEDUPE_OFFSET) {
		n = records(r);
	} else if (r->remembered_us) {
		rc = cli_topic_at(c, &r->t, r->remembered_us, known, err);
		for (int i = 0; i < r->t.partitions && rc == 0; i++)
			if (r->from[i] < known[i])
				n += (r->to[i] < known[i] ? r->to[i] : known[i]) - r->from[i];
	}
	free(known);
	if (rc < 0 || n == 0)
		return rc;
	return cli_confirmed(c, err, "handle %s a second time: %s", cli_number(n, "record", count),
		c->consumer_loaded && c->consumer.dedupe == PR_DEDUPE_OFFSET
			? "the group remembers no ids (dedupe = \"offset\")"
			: "they are older than the ids the group still knows");
}

/* ---- the job ---- */

static char *make_job(const struct cli *c, struct pr_pg *pg, const struct range *r, struct pr_err *err)
{
	struct pr_buf topics = { 0 }, parts = { 0 }, from = { 0 }, to = { 0 };
	struct pr_buf *const all[] = { &topics, &parts, &from, &to };
	const char *params[6] = { r->group, NULL, NULL, NULL, NULL, cli_str(c, "note") };
	const char *comma = "{";
	PGresult *res;
	char *job = NULL;

	for (int i = 0; i < r->t.partitions; i++) {
		if (r->from[i] == r->to[i])
			continue;
		pr_buf_printf(&topics, "%s%s", comma, r->topic); /* a topic's name needs no quotes */
		pr_buf_printf(&parts, "%s%d", comma, i);
		pr_buf_printf(&from, "%s%lld", comma, (long long)r->from[i]);
		pr_buf_printf(&to, "%s%lld", comma, (long long)r->to[i]);
		comma = ",";
	}
	for (int i = 0; i < 4; i++) {
		pr_buf_puts(all[i], "}");
		params[i + 1] = all[i]->s;
	}
	res = pr_pg_exec(pg,
		"SELECT inbox.replay_new($1, $2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6)", 6,
		params, err);
	if (res)
		job = pr_strdup(PQgetvalue(res, 0, 0));
	PQclear(res);
	for (int i = 0; i < 4; i++)
		pr_buf_free(all[i]);
	return job;
}

static void report_json(const struct range *r, const char *job)
{
	cJSON *o = cJSON_CreateObject(), *list = cJSON_CreateArray();

	(void)cJSON_AddRawToObject(o, "job", job ? job : "null");
	(void)cJSON_AddStringToObject(o, "group", r->group);
	(void)cJSON_AddStringToObject(o, "topic", r->topic);
	cli_json_int(o, "records", records(r));
	for (int i = 0; i < r->t.partitions; i++) {
		cJSON *p = r->from[i] < r->to[i] ? cJSON_CreateObject() : NULL;

		if (!p)
			continue;
		cli_json_int(p, "partition", i);
		cli_json_int(p, "from_offset", r->from[i]);
		cli_json_int(p, "to_offset", r->to[i]);
		(void)cJSON_AddItemToArray(list, p);
	}
	(void)cJSON_AddItemToObject(o, "partitions", list);
	cli_json_free_line(o);
}

static void report_text(const struct range *r, const char *job)
{
	static const char *const heads[] = { ">PARTITION", ">FROM", ">TO", ">RECORDS" };
	struct cli_table t = { .ncols = 4, .heads = heads };
	char *group = cli_safe_str(r->group), n[64];

	if (job)
		(void)printf("replay %s: ", job);
	(void)printf(
		"%s of topic %s again for group %s\n", cli_number(records(r), "record", n), r->topic, group);
	for (int i = 0; i < r->t.partitions; i++) {
		char part[24], from[24], to[24], count[32];
		const char *const cells[] = { part, from, to, count };

		if (r->from[i] == r->to[i])
			continue;
		(void)snprintf(part, sizeof(part), "%d", i);
		(void)snprintf(from, sizeof(from), "%lld", (long long)r->from[i]);
		(void)snprintf(to, sizeof(to), "%lld", (long long)r->to[i]);
		(void)cli_count(r->to[i] - r->from[i], count);
		cli_table_add(&t, cells);
	}
	cli_table_print(&t, stdout);
	free(group);
}

static int start(struct cli *c, struct pr_pg *pg, const struct range *r, struct pr_err *err)
{
	char *job = NULL;
	int rc = PR_EX_OK;

	if (records(r) == 0) {
		(void)pr_fail(err, PR_REJECT, "there is nothing to replay in that range");
		err->exit = PR_EX_NOT_FOUND;
		return cli_fail(err);
	}
	if (!cli_has(c, "dry-run") && (again(c, r, err) < 0 || !(job = make_job(c, pg, r, err))))
		return cli_fail(err);
	if (cli_has(c, "watch") && job) {
		rc = replay_watch(c, pg, job, err);
	} else {
		if (cli_has(c, "json"))
			report_json(r, job);
		else
			report_text(r, job);
		if (job)
			cli_say("`postrider replay show %s --watch` follows it", job);
		else
			cli_say("nothing was done: this would be the job");
	}
	free(job);
	return rc;
}

int verb_replay_start(struct cli *c)
{
	struct range r = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	const char *kind = kind_of(c, &err);
	int rc;

	if (!kind || names(c, &r, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		cli_topic_open(c, r.topic, &r.t, &err) < 0 || check_partitions(c, &r, kind, &err) < 0 ||
		find_range(c, pg, &r, kind, &err) < 0)
		rc = cli_failed(c, &err);
	else
		rc = start(c, pg, &r, &err);
	range_release(&r);
	pr_pg_close(pg);
	return rc;
}
