/* cli/reconcile_files.c -- a sink's files against what the database recorded of them. Lines are read of
 * NDJSON; of Avro and Parquet, and of what lies in an object store, the recorded counts are compared with the
 * topic's. Refuses to follow a path out of the directory. */
#include "cli/reconcile.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOUR_US ((int64_t)3600 * 1000000)

enum { F_PATH, F_HOUR, F_RECORDS, F_BYTES, F_SUM, F_FIRST, F_LAST };

struct look {
	struct reconcile *r;
	struct source *src;
	const char *path;
	int64_t first, last; /* as recorded */
	int strange;         /* lines of another partition, or out of its range */
};

void rec_find_file(struct reconcile *r, struct source *src, const char *what, const char *topic,
	const char *path, char *detail)
{
	rec_find(r, &(struct finding){ .what = what,
			    .source = src->name,
			    .topic = (char *)(uintptr_t)topic,
			    .path = (char *)(uintptr_t)path,
			    .partition = -1,
			    .offset = -1,
			    .detail = detail });
	free(detail);
}

static void on_line(void *ctx, const struct rec_line *line)
{
	struct look *l = ctx;

	if (line->partition != l->r->s.partition || line->offset < l->first || line->offset > l->last)
		l->strange++;
	else if (line->offset >= l->r->s.from && line->offset < l->r->s.to)
		rec_saw(l->r, l->src, line->offset, line->id_len ? line->id : NULL, line->id_len,
			line->in_window);
}

/* A file is looked for in the first slice that it is in. Its records that the topic has are counted from
 * there to the last one: this is one that goes on in the next slice. */
struct reach {
	char *path;
	int64_t n;
};

static void keep_count(struct source *src, const char *path, int64_t n)
{
	src->reach = pr_realloc(src->reach, (src->reach_n + 1) * sizeof(*src->reach));
	src->reach[src->reach_n++] = (struct reach){ pr_strdup(path), n };
}

static int begins_here(const struct reconcile *r, int64_t first)
{
	return first >= r->s.from || r->s.from == r->s.start;
}

/* 0: it was not there when it was looked for. */
static int take_count(struct source *src, const char *path, int64_t *ret)
{
	for (size_t i = src->reach_n; i-- > 0;) {
		if (strcmp(src->reach[i].path, path) != 0)
			continue;
		*ret = src->reach[i].n;
		free(src->reach[i].path);
		src->reach[i] = src->reach[--src->reach_n];
		return 1;
	}
	return 0;
}

void rec_files_end(struct source *src)
{
	for (size_t i = 0; i < src->reach_n; i++)
		free(src->reach[i].path);
	free(src->reach);
	src->reach = NULL;
	src->reach_n = 0;
}

/* n: records of its hour that the topic has in its range. Of a range whose beginning the topic has dropped,
 * more than are recorded are still too many. */
static void judge_count(struct reconcile *r, struct source *src, const PGresult *res, int i, int64_t n)
{
	int64_t recorded = cli_cell_int(res, i, F_RECORDS);

	if (n == recorded || (n < recorded && cli_cell_int(res, i, F_FIRST) < r->lo))
		return;
	src->missing += n > recorded ? n - recorded : 0;
	src->extra += n < recorded ? recorded - n : 0;
	src->records += recorded - n;
	rec_find_file(r, src, "file_count", r->s.topic, PQgetvalue(res, i, F_PATH),
		pr_asprintf("%lld records are recorded, the topic has %lld in its range and hour",
			(long long)recorded, (long long)n));
}

/* What the database says of a file that we do not read: the records of its hour and range. It is judged in
 * the slice where it ends. */
static void by_range(struct reconcile *r, struct source *src, const PGresult *res, int i)
{
	int64_t first = cli_cell_int(res, i, F_FIRST), last = cli_cell_int(res, i, F_LAST);
	uint32_t hour = (uint32_t)(cli_cell_int(res, i, F_HOUR) / HOUR_US);
	int64_t from = first > r->s.from ? first : r->s.from, to = last < r->s.to ? last + 1 : r->s.to;
	int64_t n = 0;

	if (!begins_here(r, first) && !take_count(src, PQgetvalue(res, i, F_PATH), &n))
		return;
	for (int64_t o = from; o < to; o++) {
		size_t at = (size_t)(o - r->s.from);

		if (!(r->s.flags[at] & R_THERE) || r->s.hour[at] != hour ||
			(src->seen[at] & (S_FILTERED | S_DEAD)))
			continue;
		n++;
		rec_saw(r, src, o, NULL, 0, 0);
	}
	if (last < r->s.to)
		judge_count(r, src, res, i, n);
	else
		keep_count(src, PQgetvalue(res, i, F_PATH), n);
}

static void judge(struct look *l, const PGresult *res, int i, int64_t bytes, int64_t lines, int counted,
	const char *sum, const char *broken)
{
	struct reconcile *r = l->r;
	const char *path = l->path;

	l->src->files++;
	l->src->bytes += bytes;
	if (bytes != cli_cell_int(res, i, F_BYTES))
		rec_find_file(r, l->src, "file_size", r->s.topic, path,
			pr_asprintf("%lld bytes, %s are recorded", (long long)bytes,
				PQgetvalue(res, i, F_BYTES)));
	else if (!*sum)
		rec_find_file(r, l->src, "file_changed", r->s.topic, path,
			pr_strdup("it has no SHA-256 of ours: something else has put it there"));
	else if (strcmp(sum, PQgetvalue(res, i, F_SUM)) != 0)
		rec_find_file(r, l->src, "file_changed", r->s.topic, path,
			pr_asprintf("its SHA-256 is %.12s..., %.12s... is recorded", sum,
				PQgetvalue(res, i, F_SUM)));
	if (broken)
		rec_find_file(r, l->src, "file_broken", r->s.topic, path, pr_strdup(broken));
	else if (counted && lines != cli_cell_int(res, i, F_RECORDS))
		rec_find_file(r, l->src, "file_count", r->s.topic, path,
			pr_asprintf("%lld lines, %s are recorded", (long long)lines,
				PQgetvalue(res, i, F_RECORDS)));
	if (l->strange)
		rec_find_file(r, l->src, "file_foreign", r->s.topic, path,
			pr_asprintf("%d lines are of another partition or out of its range", l->strange));
}

static void look_at(struct reconcile *r, struct source *src, const PGresult *res, int i)
{
	struct look l = { .r = r, .src = src, .path = PQgetvalue(res, i, F_PATH) };
	int text = src->conf.sink.files.format.format == PR_SINK_NDJSON;
	int64_t bytes, lines;
	struct pr_err err = { 0 };
	char sum[65], *full;
	int rc, first_slice;

	l.first = cli_cell_int(res, i, F_FIRST);
	l.last = cli_cell_int(res, i, F_LAST);
	first_slice = begins_here(r, l.first);
	full = pr_asprintf("%s/%s", src->conf.sink.files.directory, l.path);
	if (strstr(l.path, "..") || access(full, F_OK) < 0) {
		if (first_slice)
			rec_find_file(r, src, "file_missing", r->s.topic, l.path,
				pr_asprintf("%s records were in it", PQgetvalue(res, i, F_RECORDS)));
	} else {
		rc = rec_read_file(full, r->windowed ? r->from_us : 0, r->windowed ? r->to_us : INT64_MAX,
			text, on_line, &l, &bytes, sum, &lines, &err);
		if (first_slice)
			judge(&l, res, i, bytes, lines, text, sum, rc ? err.text : NULL);
		if (!text)
			by_range(r, src, res, i);
	}
	free(full);
}

/* An object is there, has its size, and the checksum that it was begun with. */
static int ask_store(struct reconcile *r, struct source *src, const PGresult *res, int i, struct pr_err *err)
{
	const char *prefix = src->conf.sink.s3.prefix, *path = PQgetvalue(res, i, F_PATH);
	struct look l = { .r = r, .src = src, .path = path };
	struct pr_s3_object o;
	char *key;
	int rc;

	if (!begins_here(r, cli_cell_int(res, i, F_FIRST)))
		return 1; /* it was asked for */
	key = pr_asprintf("%s%s", prefix ? prefix : "", path);
	rc = pr_s3_head(src->s3, key, &o, err);
	free(key);
	if (rc < 0)
		return -1;
	if (o.found)
		judge(&l, res, i, o.bytes, 0, 0, o.sha256, NULL);
	else
		rec_find_file(r, src, "file_missing", r->s.topic, path,
			pr_asprintf("%s records were in it", PQgetvalue(res, i, F_RECORDS)));
	return o.found;
}

int rec_files(struct reconcile *r, struct source *src, struct pr_err *err)
{
	char partition[16], from[24], to[24], since[24], until[24];
	PGresult *res;
	int rc = 0;

	(void)snprintf(partition, sizeof(partition), "%d", r->s.partition);
	(void)snprintf(from, sizeof(from), "%lld", (long long)r->s.from);
	(void)snprintf(to, sizeof(to), "%lld", (long long)r->s.to);
	(void)snprintf(since, sizeof(since), "%lld", r->windowed ? (long long)(r->from_us / 1000000) : 0);
	(void)snprintf(
		until, sizeof(until), "%lld", r->windowed ? (long long)(r->to_us / 1000000) : 99999999999LL);
	res = pr_pg_exec(src->pg,
		"SELECT f.path, (extract(epoch FROM f.hour) * 1000000)::bigint, f.records, f.bytes, "
		"pg_catalog.encode(f.sha256, 'hex'), f.first_offset, f.last_offset FROM sink.file AS f JOIN "
		"sink.cut AS c "
		"ON (c.group_name, c.topic, c.partition, c.first_offset) = (f.group_name, f.topic, "
		"f.partition, f.cut_first) "
		"WHERE f.group_name = $1 AND f.topic = $2 AND f.partition = $3 AND f.last_offset >= $4 AND "
		"f.first_offset < $5 AND c.state = 'published' AND "
		"f.hour > pg_catalog.to_timestamp($6::float8) - interval '1 hour' AND "
		"f.hour < pg_catalog.to_timestamp($7::float8) ORDER BY f.first_offset",
		7, (const char *const[]){ src->conf.group, r->s.topic, partition, from, to, since, until },
		err);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res) && rc >= 0; i++) {
		if (src->target != PR_SINK_S3)
			look_at(r, src, res, i);
		else if ((rc = ask_store(r, src, res, i, err)) > 0)
			by_range(r, src, res, i);
	}
	PQclear(res);
	return rc < 0 ? -1 : 0;
}
