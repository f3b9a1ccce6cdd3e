/* cli/reconcile_manifest.c -- the manifests of a sink's hours against what the database recorded, what they
 * say of being complete, and what lies in the directory that nobody has recorded. Refuses to look for strange
 * objects in a store. */
#include "cli/reconcile.h"

#include "lib/clock.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOUR_US       ((int64_t)3600 * PR_SEC)
#define MOST_MANIFEST ((size_t)256 << 20)

enum { M_PATH, M_RECORDS, M_BYTES, M_SUM, M_PUBLISHED, M_SETTLED };

/* A topic's hours, as one sink has them. */
struct hours {
	struct reconcile *r;
	struct source *src;
	const char *topic;
	int64_t after_us; /* so long after its end an hour is over */
	int64_t said_us;  /* its manifests say so far */
	int64_t past_us;  /* all partitions are past it, as far as we have asked */
	int64_t *v;
	size_t n;
};

/* ---- manifests ---- */

static int read_whole(const char *path, struct pr_buf *b)
{
	FILE *f = fopen(path, "re");
	char chunk[16384];
	size_t n;

	while (f && b->len < MOST_MANIFEST && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
		pr_buf_put(b, chunk, n);
	if (f)
		(void)fclose(f);
	return f != NULL;
}

/* The hour's files as the database knows them: path, records, bytes, sum; whether they are published, and so
 * long that their manifest has to know of it, for it is made behind them. */
static PGresult *files_of(const struct hours *h, int64_t hour_us, struct pr_err *err)
{
	char hour[24];

	(void)snprintf(hour, sizeof(hour), "%lld", (long long)(hour_us / 1000000));
	return pr_pg_exec(h->src->pg,
		"SELECT f.path, f.records, f.bytes, pg_catalog.encode(f.sha256, 'hex'), c.state = "
		"'published', "
		"c.state = 'published' AND coalesce(c.published_at < pg_catalog.now() - interval '30 "
		"seconds', true) "
		"FROM sink.file AS f JOIN sink.cut AS c ON (c.group_name, c.topic, c.partition, "
		"c.first_offset) = "
		"(f.group_name, f.topic, f.partition, f.cut_first) WHERE f.group_name = $1 AND f.topic = $2 "
		"AND "
		"f.hour = pg_catalog.to_timestamp($3::float8) ORDER BY f.path COLLATE \"C\"",
		3, (const char *const[]){ h->src->conf.group, h->topic, hour }, err);
}

static int is_true(const PGresult *res, int row, int col)
{
	return *PQgetvalue(res, row, col) == 't';
}

static const cJSON *entry_of(const cJSON *files, const char *path)
{
	const cJSON *f;

	cJSON_ArrayForEach(f, files)
	{
		const char *p = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(f, "path"));

		if (p && strcmp(p, path) == 0)
			return f;
	}
	return NULL;
}

static int says(const cJSON *entry, const char *name, const char *number)
{
	const cJSON *n = cJSON_GetObjectItemCaseSensitive(entry, name);

	return cJSON_IsNumber(n) && n->valuedouble == strtod(number, NULL);
}

static char *wrong_entry(const cJSON *e, const PGresult *res, int row)
{
	const char *path = PQgetvalue(res, row, M_PATH),
		   *sum = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(e, "sha256"));

	if (!is_true(res, row, M_PUBLISHED))
		return pr_asprintf("it lists %s, which is not published", path);
	if (!says(e, "records", PQgetvalue(res, row, M_RECORDS)) ||
		!says(e, "bytes", PQgetvalue(res, row, M_BYTES)) || !sum ||
		strcmp(sum, PQgetvalue(res, row, M_SUM)) != 0)
		return pr_asprintf("it says otherwise of %s", path);
	return NULL;
}

/* What the manifest says that is not so; NULL: nothing. */
static char *objection(const cJSON *m, const PGresult *res)
{
	const cJSON *files = cJSON_GetObjectItemCaseSensitive(m, "files"), *f, *e;
	int64_t records = 0;
	int listed = 0;
	char total[24], *why;

	if (!cJSON_IsArray(files))
		return pr_strdup("it is no manifest");
	f = files->child;
	for (int i = 0; i < PQntuples(res); i++) {
		const char *path = PQgetvalue(res, i, M_PATH),
			   *next = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(f, "path"));

		e = next && strcmp(next, path) == 0 ? f : entry_of(files, path);
		if (!e && is_true(res, i, M_SETTLED))
			return pr_asprintf("it does not list %s", path);
		if (!e)
			continue;
		f = e->next;
		why = wrong_entry(e, res, i);
		if (why)
			return why;
		listed++;
		records += cli_cell_int(res, i, M_RECORDS);
	}
	if (cJSON_GetArraySize(files) != listed)
		return pr_asprintf(
			"it lists %d files, %d of them are recorded", cJSON_GetArraySize(files), listed);
	(void)snprintf(total, sizeof(total), "%lld", (long long)records);
	return says(m, "records", total) ? NULL : pr_asprintf("its sum of records is not %s", total);
}

/* ---- whether an hour is complete ---- */

static int64_t asked(const PGresult *res, int row, int column)
{
	return res && row < PQntuples(res) && cli_cell(res, row, column) ? cli_cell_int(res, row, column)
									 : -1;
}

/* The sink remembers it in the transaction in which it has written its manifests: it is asked before they are
 * read. */
static int read_said(struct hours *h, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(h->src->pg,
		"SELECT (extract(epoch FROM watermark) * 1000000)::bigint FROM sink.watermark WHERE "
		"group_name = $1 AND topic = $2 AND partition = -1",
		2, (const char *const[]){ h->src->conf.group, h->topic }, err);

	h->said_us = asked(res, 0, 0);
	PQclear(res);
	return res ? 0 : -1;
}

/* Of those partitions that hold records: the one that is furthest behind. */
static int read_past(struct hours *h, int *ret_partition, struct pr_err *err)
{
	const struct cli_topic *t = &h->r->topic;
	struct pr_buf list = { 0 };
	PGresult *res;

	pr_buf_puts(&list, "{");
	for (int i = 0; i < t->partitions; i++)
		if (t->lo[i] < t->hi[i])
			pr_buf_printf(&list, "%s%d", list.len > 1 ? "," : "", i);
	pr_buf_puts(&list, "}");
	res = pr_pg_exec(h->src->pg,
		"SELECT p.n, (extract(epoch FROM w.at) * 1000000)::bigint FROM pg_catalog.unnest($3::int[]) "
		"AS p (n) CROSS JOIN LATERAL (SELECT greatest((SELECT c.watermark FROM sink.cut AS c WHERE "
		"c.group_name = $1 AND c.topic = $2 AND c.partition = p.n AND c.state = 'published' AND "
		"c.watermark IS NOT NULL ORDER BY c.first_offset DESC LIMIT 1), (SELECT m.watermark FROM "
		"sink.watermark AS m WHERE m.group_name = $1 AND m.topic = $2 AND m.partition = p.n)) AS at) "
		"AS w ORDER BY w.at NULLS FIRST LIMIT 1",
		3, (const char *const[]){ h->src->conf.group, h->topic, list.s }, err);
	*ret_partition = (int)asked(res, 0, 0);
	h->past_us = res && PQntuples(res) == 0 ? INT64_MAX : asked(res, 0, 1);
	PQclear(res);
	pr_buf_free(&list);
	return res ? 0 : -1;
}

/* What it says of being complete and is not so; *ret NULL: nothing. A sink goes on meanwhile: what the
 * database says of partitions is asked after the manifest was read. */
static int judge_complete(struct hours *h, const cJSON *m, int64_t hour_us, char **ret, struct pr_err *err)
{
	const cJSON *complete = cJSON_GetObjectItemCaseSensitive(m, "complete");
	int64_t over = hour_us + HOUR_US + h->after_us;
	int partition = -1;
	char at[40];

	if (!cJSON_IsBool(complete))
		*ret = pr_strdup("it does not say whether it is complete");
	else if (!cJSON_IsTrue(complete) && h->said_us >= over)
		*ret = pr_asprintf("it does not say that it is complete, which all hours to %s are",
			pr_rfc3339(h->said_us, at));
	else if (cJSON_IsTrue(complete) && over > pr_wall_us())
		*ret = pr_strdup("it says that it is complete, and its hour is not over");
	if (*ret || !cJSON_IsTrue(complete) || h->past_us >= over)
		return 0;
	if (read_past(h, &partition, err) < 0)
		return -1;
	if (h->past_us < over)
		*ret = pr_asprintf("it says that it is complete, and partition %d is published up to %s only",
			partition, h->past_us < 0 ? "nothing" : pr_rfc3339(h->past_us, at));
	return 0;
}

/* text, NULL: there is none. */
static int check_manifest(struct hours *h, int64_t hour_us, const char *path, const char *text,
	const PGresult *res, struct pr_err *err)
{
	cJSON *m = text ? cJSON_Parse(text) : NULL;
	char *why = NULL;
	int settled = 0, rc = 0;

	for (int i = 0; i < PQntuples(res); i++)
		settled += is_true(res, i, M_SETTLED);
	if (text)
		why = m ? objection(m, res) : pr_strdup("it is no JSON");
	if (m && !why)
		rc = judge_complete(h, m, hour_us, &why, err);
	if (why)
		rec_find_file(h->r, h->src, "manifest_wrong", h->topic, path, why);
	else if (!text && settled)
		rec_find_file(h->r, h->src, "manifest_missing", h->topic, path,
			pr_asprintf("%d files of this hour are recorded", settled));
	cJSON_Delete(m);
	return rc;
}

/* ---- directories ---- */

static int is_known(const PGresult *res, const char *path)
{
	int lo = 0, hi = PQntuples(res);

	while (lo < hi) {
		int mid = lo + (hi - lo) / 2, order = strcmp(PQgetvalue(res, mid, M_PATH), path);

		if (order == 0)
			return 1;
		if (order < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return 0;
}

/* What there is of an hour: names, and the manifest. Looked at before the database: whatever has its name
 * then is recorded there. */
struct on_disk {
	char **paths;
	size_t n;
	char *manifest_path;
	struct pr_buf manifest; /* s NULL: there is none */
};

/* Names that begin with a dot are unfinished: nobody reads them. */
static void list(struct on_disk *o, const char *base, const char *dir)
{
	char *full = pr_asprintf("%s/%s", base, dir);
	DIR *d = opendir(full);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		o->paths = pr_realloc(o->paths, (o->n + 1) * sizeof(*o->paths));
		o->paths[o->n++] = pr_asprintf("%s/%s", dir, e->d_name);
	}
	if (d)
		(void)closedir(d);
	free(full);
}

static int read_manifest(const struct source *src, struct on_disk *o, struct pr_err *err)
{
	const char *prefix = src->conf.sink.s3.prefix;
	char *full;
	int rc;

	if (src->target == PR_SINK_S3) {
		full = pr_asprintf("%s%s", prefix ? prefix : "", o->manifest_path);
		rc = pr_s3_get(src->s3, full, &o->manifest, err);
	} else {
		full = pr_asprintf("%s/%s", src->conf.sink.files.directory, o->manifest_path);
		rc = read_whole(full, &o->manifest);
	}
	free(full);
	if (rc > 0)
		pr_buf_put(&o->manifest, "", 1);
	return rc < 0 ? -1 : 0;
}

static int read_disk(const struct hours *h, int64_t hour_us, struct on_disk *o, struct pr_err *err)
{
	time_t t = (time_t)(hour_us / 1000000);
	char hour[40], *dir;
	struct tm tm;

	(void)gmtime_r(&t, &tm);
	(void)strftime(hour, sizeof(hour), "dt=%Y-%m-%d/hour=%H", &tm);
	for (int late = 0; late < 2 && h->src->target == PR_SINK_FILES; late++) {
		dir = pr_asprintf("%s/%s%s", h->topic, late ? "late/" : "", hour);
		list(o, h->src->conf.sink.files.directory, dir);
		free(dir);
	}
	o->manifest_path = pr_asprintf("_manifest/%s/%s.json", h->topic, hour);
	return read_manifest(h->src, o, err);
}

static void forget(struct on_disk *o)
{
	for (size_t i = 0; i < o->n; i++)
		free(o->paths[i]);
	free(o->paths);
	free(o->manifest_path);
	pr_buf_free(&o->manifest);
}

static int keeps_manifests(const struct source *src)
{
	return src->target == PR_SINK_S3 ? src->conf.sink.s3.manifest : src->conf.sink.files.manifest;
}

/* 1: what of the hour is there nobody can tell. */
static int is_pruned(struct hours *h, int64_t hour_us, struct pr_err *err)
{
	char hour[24], at[40];
	PGresult *res;
	int n;

	(void)snprintf(hour, sizeof(hour), "%lld", (long long)(hour_us / 1000000));
	res = pr_pg_exec(h->src->pg,
		"SELECT files, records FROM sink.pruned WHERE group_name = $1 AND topic = $2 AND hour = "
		"pg_catalog.to_timestamp($3::float8)",
		3, (const char *const[]){ h->src->conf.group, h->topic, hour }, err);
	n = res ? PQntuples(res) : -1;
	if (n > 0 && h->r->windowed)
		rec_find_file(h->r, h->src, "ledger_gone", h->topic, pr_rfc3339(hour_us, at),
			pr_asprintf("it had %s files of %s records: %s", PQgetvalue(res, 0, 0),
				PQgetvalue(res, 0, 1), rec_keep_of(h->src)));
	PQclear(res);
	return n;
}

static int check_hour(struct hours *h, int64_t hour_us, struct pr_err *err)
{
	struct on_disk o = { 0 };
	PGresult *res = read_disk(h, hour_us, &o, err) < 0 ? NULL : files_of(h, hour_us, err);
	int rc = res ? 0 : -1;

	for (size_t i = 0; res && i < o.n; i++)
		if (!is_known(res, o.paths[i]))
			rec_find_file(h->r, h->src, "file_unknown", h->topic, o.paths[i],
				pr_strdup("no cut of this group has made it"));
	if (res && keeps_manifests(h->src) && PQntuples(res) > 0)
		rc = check_manifest(h, hour_us, o.manifest_path, o.manifest.s, res, err);
	PQclear(res);
	forget(&o);
	return rc;
}

/* "dt=2026-01-31" and "hour=09"; -1: another name. */
static int64_t hour_of(const char *day, const char *hour)
{
	struct tm tm = { 0 };

	if (sscanf(day, "dt=%4d-%2d-%2d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday) != 3 ||
		sscanf(hour, "hour=%2d", &tm.tm_hour) != 1)
		return -1;
	tm.tm_year -= 1900;
	tm.tm_mon--;
	return (int64_t)timegm(&tm) * 1000000;
}

static void add_hour(struct hours *h, int64_t hour_us)
{
	if (hour_us < 0 || !rec_hour_in(h->r, hour_us))
		return;
	for (size_t i = h->n; i-- > 0;)
		if (h->v[i] == hour_us)
			return;
	h->v = pr_realloc(h->v, (h->n + 1) * sizeof(*h->v));
	h->v[h->n++] = hour_us;
}

static void hours_on_disk(struct hours *h, const char *dir)
{
	DIR *days = opendir(dir), *hours;
	struct dirent *day, *hour;

	while (days && (day = readdir(days))) {
		char *path;

		if (strncmp(day->d_name, "dt=", 3) != 0)
			continue;
		path = pr_asprintf("%s/%s", dir, day->d_name);
		hours = opendir(path);
		while (hours && (hour = readdir(hours)))
			add_hour(h, hour_of(day->d_name, hour->d_name));
		if (hours)
			(void)closedir(hours);
		free(path);
	}
	if (days)
		(void)closedir(days);
}

static int hours_recorded(struct hours *h, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(h->src->pg,
		"SELECT (extract(epoch FROM hour) * 1000000)::bigint FROM sink.file WHERE group_name = $1 "
		"AND topic = "
		"$2 UNION SELECT (extract(epoch FROM hour) * 1000000)::bigint FROM sink.pruned WHERE "
		"group_name "
		"= $1 AND topic = $2",
		2, (const char *const[]){ h->src->conf.group, h->topic }, err);

	for (int i = 0; res && i < PQntuples(res); i++)
		add_hour(h, cli_cell_int(res, i, 0));
	PQclear(res);
	return res ? 0 : -1;
}

int rec_directory(struct reconcile *r, struct source *src, const char *topic, struct pr_err *err)
{
	struct hours h = { .r = r, .src = src, .topic = topic, .past_us = -1 };
	int rc;

	if (src->target != PR_SINK_FILES && src->target != PR_SINK_S3)
		return 0;
	h.after_us = src->target == PR_SINK_S3 ? src->conf.sink.s3.late.after_us
					       : src->conf.sink.files.late.after_us;
	for (int late = 0; late < 2 && src->target == PR_SINK_FILES; late++) {
		char *dir =
			pr_asprintf("%s/%s%s", src->conf.sink.files.directory, topic, late ? "/late" : "");

		hours_on_disk(&h, dir);
		free(dir);
	}
	rc = hours_recorded(&h, err) < 0 || read_said(&h, err) < 0 ? -1 : 0;
	for (size_t i = 0; rc == 0 && i < h.n; i++) {
		rc = is_pruned(&h, h.v[i], err);
		rc = rc == 0 ? check_hour(&h, h.v[i], err) : rc < 0 ? -1 : 0;
	}
	free(h.v);
	return rc;
}
