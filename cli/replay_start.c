/* cli/replay_start.c -- `postrider replay start`: a range of a topic becomes a job of a group. Refuses
 * what the group would not know again. */
#include "cli/replay.h"

#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

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

static int check_partitions(const struct cli *c, const struct range *r, const char *kind, struct pr_err *err)
{
	const char *s;
	int64_t n;

	for (int i = 0; (s = cli_nth(c, "partition", i)); i++)
		if (pr_parse_int(s, &n, err) < 0 || n >= r->t.partitions) {
			(void)pr_fail(err, PR_REJECT, "topic %s has %d partition%s: there is no %s", r->topic,
				r->t.partitions, r->t.partitions == 1 ? "" : "s", s);
			err->exit = PR_EX_NOT_FOUND;
			return -1;
		}
	if (strcmp(kind, "offset") == 0 && !cli_has(c, "partition") && r->t.partitions > 1)
		return cli_usage(err, "offsets are of one partition: give --partition");
	return 0;
}

/* ---- what the group would not know again ---- */

static int refuse_group(struct pr_err *err, const struct range *r)
{
	(void)pr_fail(err, PR_REJECT,
		"nothing was done: group %s remembers no ids, every record would have its effect a second "
		"time",
		r->group);
	(void)pr_hint(err, "only a group with dedupe = \"inbox\" can replay");
	err->exit = PR_EX_REFUSED;
	return -1;
}

/* The members refuse them too: the job would fail at the first of them. */
static int refuse_old(struct pr_err *err, const struct range *r, int64_t n)
{
	char since[32], count[64];

	(void)pr_rfc3339(r->remembered_us, since);
	(void)pr_fail(err, PR_REJECT,
		"nothing was done: %s older than the ids that group %s still knows could have an effect a "
		"second time",
		cli_number(n, "record", count), r->group);
	(void)pr_hint(err,
		"begin with --from-time %s; inbox.keep in the consumer's config says how long ids are known",
		since);
	err->exit = PR_EX_REFUSED;
	return -1;
}

static int check_known(const struct cli *c, const struct range *r, struct pr_err *err)
{
	int64_t *known, n = 0;
	int rc = 0;

	if (c->consumer_loaded && c->consumer.dedupe == PR_DEDUPE_OFFSET)
		return refuse_group(err, r);
	if (!r->remembered_us)
		return 0;
	known = pr_calloc((size_t)r->t.partitions, sizeof(*known));
	rc = cli_topic_at(c, &r->t, r->remembered_us, known, err);
	for (int i = 0; i < r->t.partitions && rc == 0; i++)
		if (r->from[i] < known[i])
			n += (r->to[i] < known[i] ? r->to[i] : known[i]) - r->from[i];
	free(known);
	return rc == 0 && n ? refuse_old(err, r, n) : rc;
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
	cli_json_int(o, "records", range_records(r));
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
	(void)printf("%s of topic %s again for group %s\n", cli_number(range_records(r), "record", n),
		r->topic, group);
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

	if (range_records(r) == 0) {
		(void)pr_fail(err, PR_REJECT, "there is nothing to replay in that range");
		err->exit = PR_EX_NOT_FOUND;
		return cli_fail(err);
	}
	if (check_known(c, r, err) < 0 || (!cli_has(c, "dry-run") && !(job = make_job(c, pg, r, err))))
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
		cli_refuse_sink(pg, r.group,
			"stop the group and set next_offset in inbox.position back: what is there stays as "
			"it is, "
			"what is missing comes again",
			&err) < 0 ||
		cli_topic_open(c, r.topic, &r.t, &err) < 0 || check_partitions(c, &r, kind, &err) < 0 ||
		range_find(c, pg, &r, kind, &err) < 0)
		rc = cli_failed(c, &err);
	else
		rc = start(c, pg, &r, &err);
	range_release(&r);
	pr_pg_close(pg);
	return rc;
}
