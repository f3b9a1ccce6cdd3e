/* consumers/sink/manifest.c -- one JSON file an hour that says which files it has: made from sink.file, never
 * the truth. Whoever writes one holds a lock in the database from the question to the rename, so that the
 * last word is the youngest, and marks the files in it as listed: what a death, or a disk, leaves out anybody
 * finds. An hour is written as a whole and there may be thousands of cuts in it, so one lane writes for all,
 * and pauses by how much that was. Refuses to stop the sink: what could not be written is tried again. */
#include "consumers/sink/disk.h"
#include "consumers/sink/files.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOUR_US (3600 * PR_SEC)
#define AT_ONCE 100 /* of one question: the LIMIT of sink_unlisted.sql */
#define LOCK    "hashtextextended($1 || '/' || $2 || '/' || $3, 7309475)"

/* Between two times: how often and how much. The most is below what `postrider reconcile` lets a published
 * file be in no manifest. */
#define EVERY_US       PR_SEC
#define BYTES_A_SECOND ((int64_t)128 << 10)
#define EVERY_MOST_US  (20 * PR_SEC)

int64_t manifest_after(const struct sink_lane *sl)
{
	return sl->ops->keep ? sl->conf->s3.late.after_us : sl->conf->files.late.after_us;
}

int manifests_are_kept(const struct sink_lane *sl)
{
	return sl->ops->keep ? sl->conf->s3.manifest : sl->conf->files.manifest;
}

/* ---------------------------------------------------------------- what is in one */

static const char *text(PGresult *res, int row, int column)
{
	return PQgetvalue(res, row, column);
}

static void put_time(struct pr_buf *b, const char *name, int64_t us)
{
	char buf[32];

	if (us < 0)
		pr_buf_printf(b, ",\"%s\":null", name);
	else
		pr_buf_printf(b, ",\"%s\":\"%s\"", name, pr_rfc3339(us, buf));
}

static void put_files(struct pr_buf *b, PGresult *res)
{
	pr_buf_puts(b, ",\"files\":[");
	for (int i = 0; i < PQntuples(res); i++) {
		pr_buf_printf(b, "%s\n{\"path\":", i ? "," : "");
		pr_buf_json(b, text(res, i, 0), strlen(text(res, i, 0)));
		pr_buf_printf(b,
			",\"partition\":%s,\"first_offset\":%s,\"last_offset\":%s,\"records\":%s,"
			"\"bytes\":%s,\"sha256\":\"%s\"",
			text(res, i, 1), text(res, i, 2), text(res, i, 3), text(res, i, 4), text(res, i, 5),
			text(res, i, 6));
		put_time(b, "min_time", strtoll(text(res, i, 7), NULL, 10));
		put_time(b, "max_time", strtoll(text(res, i, 8), NULL, 10));
		pr_buf_puts(b, "}");
	}
	pr_buf_puts(b, "]");
}

/* Ordered by partition: first and last offset of each. */
static void put_offsets(struct pr_buf *b, PGresult *res)
{
	int first = 0;

	pr_buf_puts(b, ",\"offsets\":{");
	for (int i = 0; i < PQntuples(res); i++) {
		if (i + 1 < PQntuples(res) && strcmp(text(res, i, 1), text(res, i + 1, 1)) == 0)
			continue;
		pr_buf_printf(b, "%s\"%s\":{\"first\":%s,\"last\":%s}", first ? "," : "", text(res, i, 1),
			text(res, first, 2), text(res, i, 3));
		first = i + 1;
	}
	pr_buf_puts(b, "}");
}

static void compose(struct pr_buf *b, const struct sink_lane *sl, const char *topic, int64_t hour_us,
	int64_t watermark_us, PGresult *res)
{
	char hour[32];
	int64_t records = 0, bytes = 0;

	for (int i = 0; i < PQntuples(res); i++) {
		records += strtoll(text(res, i, 4), NULL, 10);
		bytes += strtoll(text(res, i, 5), NULL, 10);
	}
	pr_buf_puts(b, "{\"group\":");
	pr_buf_json(b, sl->l->c->conf->group, strlen(sl->l->c->conf->group));
	pr_buf_printf(b, ",\"topic\":\"%s\",\"hour\":\"%s\",\"complete\":%s", topic,
		pr_rfc3339(hour_us, hour),
		watermark_us >= hour_us + HOUR_US + manifest_after(sl) ? "true" : "false");
	put_time(b, "watermark", watermark_us);
	pr_buf_printf(b, ",\"records\":%" PRId64 ",\"bytes\":%" PRId64, records, bytes);
	put_offsets(b, res);
	put_files(b, res);
	pr_buf_puts(b, "}\n");
}

/* ---------------------------------------------------------------- one hour */

/* 1, or 0: there is none. */
static int read_file(const char *path, struct pr_buf *b, struct pr_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char chunk[16384];
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 0 : disk_fail(err, "cannot read", path);
	while ((n = read(fd, chunk, sizeof(chunk))) > 0)
		pr_buf_put(b, chunk, (size_t)n);
	n = n < 0 ? disk_fail(err, "cannot read", path) : 1;
	(void)close(fd);
	return (int)n;
}

static int write_file(const char *temp, const char *path, const struct pr_buf *b, struct pr_err *err)
{
	int fd, rc;

	if (disk_make_dirs(path, err) < 0)
		return -1;
	fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0)
		return disk_fail(err, "cannot write", temp);
	rc = disk_write(fd, b->s, b->len, temp, err);
	if (rc == 0 && fdatasync(fd) < 0)
		rc = disk_fail(err, "cannot sync", temp);
	(void)close(fd);
	if (rc == 0 && rename(temp, path) < 0)
		rc = disk_fail(err, "cannot name", path);
	if (rc < 0)
		(void)unlink(temp);
	return rc;
}

static int save(
	struct sink_lane *sl, const char *topic, int64_t hour_us, const struct pr_buf *b, struct pr_err *err)
{
	char day[32], *dir, *path, *temp;
	int rc;

	(void)pr_rfc3339(hour_us, day);
	if (sl->ops->keep) {
		path = pr_asprintf("_manifest/%s/dt=%.10s/hour=%.2s.json", topic, day, day + 11);
		rc = sl->ops->keep(sl, path, b->s, b->len, err);
		free(path);
		return rc;
	}
	dir = pr_asprintf("%s/_manifest/%s/dt=%.10s", sl->conf->files.directory, topic, day);
	path = pr_asprintf("%s/hour=%.2s.json", dir, day + 11);
	/* One name: the lock is held, and what a dead writer left is written over. */
	temp = pr_asprintf("%s/.hour=%.2s.tmp", dir, day + 11);
	rc = write_file(temp, path, b, err);
	free(dir);
	free(path);
	free(temp);
	return rc;
}

/* The manifest as it is; s NULL: there is none, or it is broken. */
static int fetch(
	struct sink_lane *sl, const char *topic, int64_t hour_us, struct pr_buf *b, struct pr_err *err)
{
	char day[32], *path;
	cJSON *m;
	int rc;

	(void)pr_rfc3339(hour_us, day);
	path = pr_asprintf("%s%s_manifest/%s/dt=%.10s/hour=%.2s.json",
		sl->ops->fetch ? "" : sl->conf->files.directory, sl->ops->fetch ? "" : "/", topic, day,
		day + 11);
	rc = sl->ops->fetch ? sl->ops->fetch(sl, path, b, err) : read_file(path, b, err);
	m = rc > 0 ? cJSON_ParseWithLength(b->s, b->len) : NULL;
	if (rc > 0 && !cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(m, "files"))) {
		pr_log(PR_WARN, "a manifest is broken, and the ledger has not all of its files any more",
			KS("path", path));
		pr_buf_free(b);
	}
	cJSON_Delete(m);
	free(path);
	return rc < 0 ? -1 : 0;
}

static int64_t number(PGresult *res)
{
	return PQgetisnull(res, 0, 0) ? -1 : strtoll(PQgetvalue(res, 0, 0), NULL, 10);
}

/* In their transaction. How many files of the hour no manifest has listed; from here on this one does. */
static int64_t list(struct sink_lane *sl, const char *const params[3], struct pr_err *err)
{
	PGresult *res = pr_pg_exec(sl->l->pg, sql_sink_list, 3, params, err);
	int64_t n = res ? number(res) : -1;

	PQclear(res);
	return n;
}

/* What the ledger has forgotten stays in. */
static PGresult *files_of(struct sink_lane *sl, const char *const params[3], int pruned, struct pr_err *err)
{
	struct pr_buf was = { 0 };
	PGresult *res = NULL;

	if (!pruned || fetch(sl, params[1], strtoll(params[2], NULL, 10), &was, err) == 0) {
		if (was.s)
			pr_buf_put(&was, "", 1);
		res = pr_pg_exec(sl->l->pg, sql_sink_manifest, 4,
			(const char *const[]){ params[0], params[1], params[2], was.s }, err);
	}
	pr_buf_free(&was);
	return res;
}

static int write_hour(
	struct sink_lane *sl, const char *const params[3], int64_t *ret_bytes, struct pr_err *err)
{
	PGresult *about = pr_pg_exec(sl->l->pg, sql_sink_topic_watermark, 3, params, err), *res = NULL;
	int64_t hour_us = strtoll(params[2], NULL, 10);
	struct pr_buf b = { 0 };
	int rc;

	if (about)
		res = files_of(sl, params, *PQgetvalue(about, 0, 1) == 't', err);
	rc = res ? 0 : -1;
	if (res && PQntuples(res) > 0) {
		compose(&b, sl, params[1], hour_us, number(about), res);
		rc = save(sl, params[1], hour_us, &b, err);
		pr_counter_add(sl->shared->m.manifests, rc == 0);
		*ret_bytes += (int64_t)b.len;
	}
	PQclear(about);
	PQclear(res);
	pr_buf_free(&b);
	return rc;
}

int manifest_write(struct sink_lane *sl, const char *topic, const char *hour, struct pr_err *err)
{
	const char *params[] = { sl->l->c->conf->group, topic, hour };
	int64_t bytes = 0;

	if (pr_pg_run(sl->l->pg, "SELECT pg_advisory_xact_lock(" LOCK ")", 3, params, err) < 0)
		return -1;
	return list(sl, params, err) < 0 ? -1 : write_hour(sl, params, &bytes, err);
}

/* ---------------------------------------------------------------- those that are due */

/* 1: somebody else writes it now. */
static int try_hour(
	struct sink_lane *sl, const char *topic, const char *hour, int64_t *ret_bytes, struct pr_err *err)
{
	const char *params[] = { sl->l->c->conf->group, topic, hour };
	PGresult *res = pr_pg_exec(sl->l->pg, "SELECT pg_try_advisory_xact_lock(" LOCK ")", 3, params, err);
	int mine = res && *PQgetvalue(res, 0, 0) == 't', rc = res ? !mine : -1;
	int64_t n;

	PQclear(res);
	if (rc != 0)
		return rc;
	n = list(sl, params, err);
	return n > 0 ? write_hour(sl, params, ret_bytes, err) : n < 0 ? -1 : 0;
}

/* If we die here, its manifest says what is so, and the next one to look writes it again. */
static int do_hour(
	struct sink_lane *sl, const char *topic, const char *hour, int64_t *ret_bytes, struct pr_err *err)
{
	int rc;

	if (pr_pg_run(sl->l->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	rc = try_hour(sl, topic, hour, ret_bytes, err);
	if (!pr_pg_ok(sl->l->pg))
		return -1;
	return pr_pg_run(sl->l->pg, rc < 0 ? "ROLLBACK" : "COMMIT", 0, NULL, rc < 0 ? NULL : err) < 0 ? -1
												      : rc;
}

/* 1: there are more. */
static int do_hours(struct sink_lane *sl, int64_t *ret_bytes, struct pr_err *err)
{
	const char *params[] = { sl->l->c->conf->group };
	PGresult *res = pr_pg_exec(sl->l->pg, sql_sink_unlisted, 1, params, err);
	int n = res ? PQntuples(res) : 0, rc = res ? 0 : -1, more = n == AT_ONCE;

	for (int i = 0; i < n && rc >= 0; i++) {
		rc = do_hour(sl, text(res, i, 0), text(res, i, 1), ret_bytes, err);
		more |= rc > 0;
	}
	PQclear(res);
	return rc < 0 ? -1 : more;
}

/* One lane of the process at a time, for all of the group. */
static int is_our_turn(struct sink_shared *shared)
{
	int64_t now = pr_mono_us(), next = atomic_load(&shared->manifests_next_us);

	return now >= next &&
	       atomic_compare_exchange_strong(&shared->manifests_next_us, &next, now + EVERY_MOST_US);
}

static int64_t pause_us(int64_t bytes)
{
	int64_t us = EVERY_US + bytes * PR_SEC / BYTES_A_SECOND;

	return us < EVERY_MOST_US ? us : EVERY_MOST_US;
}

void manifests_write(struct sink_lane *sl, int at_once)
{
	struct sink_shared *shared = sl->shared;
	int64_t bytes = 0;
	struct pr_err err;
	int rc;

	if (!manifests_are_kept(sl) || !atomic_load(&shared->unlisted) || !(is_our_turn(shared) || at_once))
		return;
	atomic_store(&shared->unlisted, 0);
	do
		rc = do_hours(sl, &bytes, &err);
	while (rc > 0 && at_once);
	if (rc != 0)
		atomic_store(&shared->unlisted, 1);
	if (rc < 0 && !sl->manifest_failed)
		pr_log_err(PR_WARN, "a manifest cannot be written, it is tried again", &err);
	sl->manifest_failed = rc < 0;
	atomic_store(&shared->manifests_next_us, pr_mono_us() + pause_us(bytes));
}

/* Its owner before us may have died between its last cuts and their manifests. */
void manifests_look(struct sink_part *sp)
{
	atomic_store(&sp->lane->shared->unlisted, 1);
	manifests_write(sp->lane, 0);
}

void manifests_published(struct sink_lane *sl, struct sink_cut **cuts, size_t n)
{
	int64_t after = manifest_after(sl);

	/* The hours that their records are in. Others may be over by it. */
	for (size_t i = 0; i < n; i++)
		sl->hours_end |= cuts[i]->watermark_us < 0 ||
				 (cuts[i]->max_us > cuts[i]->watermark_us &&
					 sink_hour_of(cuts[i]->max_us - after) >
						 sink_hour_of(cuts[i]->watermark_us - after));
	atomic_store(&sl->shared->unlisted, 1);
	manifests_write(sl, 0);
}
