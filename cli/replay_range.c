/* cli/replay_range.c -- a range of time, offsets or outbox ids as offsets of each partition. Leaves
 * out what the group has not come to yet: it would be handled out of order. */
#include "cli/replay.h"

#include "sql.h"

#include <stdlib.h>
#include <string.h>

void range_release(struct range *r)
{
	cli_topic_close(&r->t);
	free(r->from);
	free(r->to);
	free(r->next);
}

static int is_chosen(const struct cli *c, int partition)
{
	const char *s;
	int64_t n;

	if (!cli_has(c, "partition"))
		return 1;
	for (int i = 0; (s = cli_nth(c, "partition", i)); i++)
		if (pr_parse_int(s, &n, NULL) == 0 && n == partition)
			return 1;
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

int range_find(const struct cli *c, struct pr_pg *pg, struct range *r, const char *kind, struct pr_err *err)
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

int64_t range_records(const struct range *r)
{
	int64_t n = 0;

	for (int i = 0; i < r->t.partitions; i++)
		n += r->to[i] - r->from[i];
	return n;
}
