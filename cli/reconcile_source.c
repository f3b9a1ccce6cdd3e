/* cli/reconcile_source.c -- what a sink holds of the slice: by its cuts (an API that has acknowledged them),
 * by its table, by its dead letters; files are reconcile_files.c's. */
#include "cli/reconcile.h"

#include <stdlib.h>
#include <string.h>

struct place {
	char partition[16], from[24], to[24];
};

static struct place place_of(const struct reconcile *r)
{
	struct place p;

	(void)snprintf(p.partition, sizeof(p.partition), "%d", r->s.partition);
	(void)snprintf(p.from, sizeof(p.from), "%lld", (long long)r->s.from);
	(void)snprintf(p.to, sizeof(p.to), "%lld", (long long)r->s.to);
	return p;
}

/* Nobody comes to an offset that the topic has not got to: it was made anew, or has lost records. */
static int check_end(struct reconcile *r, struct source *src, int64_t furthest, struct pr_err *err)
{
	int64_t hi = r->topic.hi[r->s.partition];
	char *detail;

	/* It may only be younger than our question. */
	if (furthest > hi && cli_topic_end(r->c, &r->topic, r->s.partition, &hi, err) < 0)
		return -1;
	if (furthest <= hi)
		return 0;
	detail = pr_asprintf("the sink has come to %lld: the topic was made anew, or has lost records",
		(long long)furthest);
	rec_find(r, &(struct finding){ .what = "past_end",
			    .source = src->name,
			    .topic = (char *)(uintptr_t)r->s.topic,
			    .partition = r->s.partition,
			    .offset = hi,
			    .detail = detail });
	free(detail);
	return 0;
}

int rec_position(struct reconcile *r, struct source *src, struct pr_err *err)
{
	struct place p = place_of(r);
	int64_t furthest;
	PGresult *res;

	src->next = INT64_MAX;
	if (!src->pg)
		return 0;
	res = pr_pg_exec(src->pg,
		"SELECT max(next_offset), greatest(max(next_offset), (SELECT max(next_offset) FROM sink.cut "
		"WHERE group_name = $1 AND topic = $2 AND partition = $3)) FROM inbox.position WHERE "
		"\"group\" = $1 AND topic = $2 AND partition = $3",
		3, (const char *const[]){ src->conf.group, r->s.topic, p.partition }, err);
	if (!res)
		return -1;
	src->next = cli_cell(res, 0, 0) && cli_cell_int(res, 0, 0) > 0 ? cli_cell_int(res, 0, 0) : 0;
	furthest = cli_cell(res, 0, 1) ? cli_cell_int(res, 0, 1) : 0;
	PQclear(res);
	return check_end(r, src, furthest, err);
}

/* Files of the window's hours may hold offsets that Kafka's index of times does not lead to. */
int rec_stretch(struct reconcile *r, struct source *src, int64_t *from, int64_t *to, struct pr_err *err)
{
	struct place p = place_of(r);
	char since[24], until[24];
	PGresult *res;

	if (!r->windowed || (src->target != PR_SINK_FILES && src->target != PR_SINK_S3))
		return 0;
	(void)snprintf(since, sizeof(since), "%lld", (long long)(r->from_us / 1000000));
	(void)snprintf(until, sizeof(until), "%lld", (long long)(r->to_us / 1000000));
	res = pr_pg_exec(src->pg,
		"SELECT min(first_offset), max(last_offset) FROM sink.file WHERE group_name = $1 AND topic = "
		"$2 AND "
		"partition = $3 AND hour > pg_catalog.to_timestamp($4::float8) - interval '1 hour' AND "
		"hour < pg_catalog.to_timestamp($5::float8)",
		5, (const char *const[]){ src->conf.group, r->s.topic, p.partition, since, until }, err);
	if (!res)
		return -1;
	if (cli_cell(res, 0, 0)) {
		*from = cli_cell_int(res, 0, 0) < *from ? cli_cell_int(res, 0, 0) : *from;
		*to = cli_cell_int(res, 0, 1) + 1 > *to ? cli_cell_int(res, 0, 1) + 1 : *to;
	}
	PQclear(res);
	return 0;
}

/* ---- dead letters ---- */

static int dead_letters(struct reconcile *r, struct source *src, struct pr_err *err)
{
	struct place p = place_of(r);
	PGresult *res = pr_pg_exec(src->pg,
		"SELECT DISTINCT message_offset FROM inbox.dead_letter WHERE \"group\" = $1 AND topic = $2 "
		"AND "
		"partition = $3 AND message_offset >= $4 AND message_offset < $5",
		5, (const char *const[]){ src->conf.group, r->s.topic, p.partition, p.from, p.to }, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		src->seen[cli_cell_int(res, i, 0) - r->s.from] |= S_DEAD;
	PQclear(res);
	return 0;
}

/* ---- cuts ---- */

enum { C_FIRST, C_NEXT, C_RECORDS, C_STATE, C_FILES, C_FOLDED };

static PGresult *cuts(struct reconcile *r, struct source *src, struct pr_err *err)
{
	struct place p = place_of(r);

	return pr_pg_exec(src->pg,
		"SELECT c.first_offset, c.next_offset, c.records, c.state, "
		"(SELECT sum(f.records) FROM sink.file AS f WHERE (f.group_name, f.topic, f.partition, "
		"f.cut_first) = "
		"(c.group_name, c.topic, c.partition, c.first_offset)), c.folded_at IS NOT NULL FROM "
		"sink.cut AS "
		"c WHERE c.group_name "
		"= $1 AND "
		"c.topic = $2 AND c.partition = $3 AND c.next_offset > $4 AND c.first_offset < $5 ORDER BY 1",
		5, (const char *const[]){ src->conf.group, r->s.topic, p.partition, p.from, p.to }, err);
}

static void acknowledged(struct reconcile *r, struct source *src, int64_t first, int64_t next)
{
	int64_t from = first > r->s.from ? first : r->s.from, to = next < r->s.to ? next : r->s.to;

	for (int64_t o = from; o < to; o++)
		if (r->s.flags[o - r->s.from] & R_THERE)
			rec_saw(r, src, o, NULL, 0, 0);
}

static void not_known(const struct reconcile *r, struct source *src, int64_t first, int64_t next)
{
	int64_t from = first > r->s.from ? first : r->s.from, to = next < r->s.to ? next : r->s.to;

	for (int64_t o = from; o < to; o++)
		src->seen[o - r->s.from] |= S_FOLDED;
}

static void cut_finding(
	struct reconcile *r, struct source *src, const char *what, int64_t first, char *detail)
{
	rec_find(r, &(struct finding){ .what = what,
			    .source = src->name,
			    .topic = (char *)(uintptr_t)r->s.topic,
			    .partition = r->s.partition,
			    .offset = first,
			    .detail = detail });
	free(detail);
}

/* What the ledger says of itself: ranges do not overlap, and files hold what their cut says. */
static int check_cuts(struct reconcile *r, struct source *src, struct pr_err *err)
{
	PGresult *res = cuts(r, src, err);
	int64_t before = INT64_MIN;

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		int64_t first = cli_cell_int(res, i, C_FIRST), next = cli_cell_int(res, i, C_NEXT);
		int published = strcmp(PQgetvalue(res, i, C_STATE), "published") == 0,
		    ours = first >= r->s.from;

		if (first < before && ours)
			cut_finding(r, src, "cuts_overlap", first,
				pr_asprintf("the cut before it ends at %lld", (long long)before));
		before = next;
		if (ours && published && cli_cell(res, i, C_FILES) &&
			cli_cell_int(res, i, C_FILES) != cli_cell_int(res, i, C_RECORDS))
			cut_finding(r, src, "cut_count", first,
				pr_asprintf("the cut has %s records, its files have %s",
					PQgetvalue(res, i, C_RECORDS), PQgetvalue(res, i, C_FILES)));
		if (src->target == PR_SINK_HTTP && published)
			acknowledged(r, src, first, next);
		else if (src->target != PR_SINK_TABLE && published && *PQgetvalue(res, i, C_FOLDED) == 't')
			not_known(r, src, first, next);
	}
	PQclear(res);
	return 0;
}

/* ---- the table ---- */

static int quote_table(struct source *src, struct pr_err *err)
{
	PGconn *conn = pr_pg_conn(src->table_pg ? src->table_pg : src->pg);
	const char *name = src->conf.sink.table.table, *dot = strchr(name, '.');
	char *a = PQescapeIdentifier(conn, name, dot ? (size_t)(dot - name) : strlen(name));
	char *b = dot ? PQescapeIdentifier(conn, dot + 1, strlen(dot + 1)) : NULL;

	if (!a || (dot && !b))
		return pr_fail(err, PR_REJECT, "\"%s\" is no name of a table", name);
	if (!src->quoted.len)
		pr_buf_printf(&src->quoted, "%s%s%s", dot ? a : "public.", dot ? "." : "", dot ? b : a);
	PQfreemem(a);
	PQfreemem(b);
	return 0;
}

static uint64_t big(const char *p, int n)
{
	uint64_t v = 0;

	for (int i = 0; i < n; i++)
		v = v << 8 | (unsigned char)p[i];
	return v;
}

/* A row of COPY BINARY: offset, id, whether it is in the window. */
static int on_row(struct reconcile *r, struct source *src, const char *p, int len)
{
	int id_len;

	if (len < 2 + 4 + 8 + 4 || big(p, 2) != 3 || big(p + 2, 4) != 8)
		return -1;
	id_len = (int)(int32_t)big(p + 14, 4);
	if (id_len > len - 18 || 18 + (id_len > 0 ? id_len : 0) + 5 > len)
		return -1;
	rec_saw(r, src, (int64_t)big(p + 6, 8), id_len >= 0 ? p + 18 : NULL, id_len > 0 ? (size_t)id_len : 0,
		p[18 + (id_len > 0 ? id_len : 0) + 4]);
	return 0;
}

static int table(struct reconcile *r, struct source *src, struct pr_err *err)
{
	struct pr_pg *pg = src->table_pg ? src->table_pg : src->pg;
	struct pr_buf sql = { 0 };
	char *topic, *row;
	int rc, len;

	if (quote_table(src, err) < 0)
		return -1;
	topic = PQescapeLiteral(pr_pg_conn(pg), r->s.topic, strlen(r->s.topic));
	pr_buf_printf(&sql,
		"SELECT \"offset\"::bigint, id::text, coalesce(\"time\" >= "
		"pg_catalog.to_timestamp(%.6f) AND \"time\" < "
		"pg_catalog.to_timestamp(%.6f), true) FROM %s WHERE topic = %s AND partition = %d AND "
		"\"offset\" >= %lld AND "
		"\"offset\" < %lld",
		r->windowed ? (double)r->from_us / 1e6 : 0.0, r->windowed ? (double)r->to_us / 1e6 : 9e9,
		src->quoted.s, topic, r->s.partition, (long long)r->s.from, (long long)r->s.to);
	PQfreemem(topic);
	rc = pr_pg_copy_begin(pg, sql.s, err);
	pr_buf_free(&sql);
	while (rc == 0 && (rc = pr_pg_copy_row(pg, &row, &len, err)) > 0) {
		rc = on_row(r, src, row, len);
		PQfreemem(row);
		if (rc < 0)
			return pr_fail(err, PR_STOP, "a row of the table cannot be read");
	}
	return rc;
}

int rec_source(struct reconcile *r, struct source *src, struct pr_err *err)
{
	if (!src->file) {
		rec_facts_slice(r, src);
		return 0;
	}
	if (dead_letters(r, src, err) < 0 || check_cuts(r, src, err) < 0)
		return -1;
	if (src->target == PR_SINK_FILES || src->target == PR_SINK_S3)
		return rec_files(r, src, err);
	return src->target == PR_SINK_TABLE ? table(r, src, err) : 0;
}
