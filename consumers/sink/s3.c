/* consumers/sink/s3.c -- target: objects in a bucket. While a cut is open its objects wait in the spool, for
 * an object's key holds its last offset; sealing uploads them in parts, which nobody sees; the record of the
 * cut holds each upload's id and its parts' tags, so that whoever finds it can complete it; publishing
 * completes them. Memory: one part a lane. Refuses to begin with a bucket, a key or a region that is wrong,
 * and to take an object for ours whose checksum is another. */
#include "consumers/sink/files.h"
#include "consumers/sink/pieces.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/s3.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TRIES 3 /* of one request, before the cut is given up and read again */

struct s3 {
	struct sink_pieces pieces; /* first */
	struct pr_s3 *client;
	const char *prefix; /* "" */
	struct pr_buf part; /* one part's bytes */
	int away;           /* the last request had no answer */
	int leftovers;      /* uploads of ours may be under way that nobody needs */
};

/* One that is being collected. */
struct object {
	struct sink_piece piece; /* first */
	struct sink_roll roll;
	char *id; /* of its upload; NULL: none */
};

static char *key_of(const struct s3 *s3, const char *path)
{
	return pr_asprintf("%s%s", s3->prefix, path);
}

/* ---------------------------------------------------------------- an open cut */

static int dest_write(struct sink_dest *d, const void *p, size_t n, struct pr_err *err)
{
	return sink_roll_put(&((struct object *)d)->roll, p, n, err);
}

static struct sink_piece *make(struct sink_part *sp, int64_t hour_us, int late)
{
	struct object *o = pr_calloc(1, sizeof(*o));

	(void)sp;
	(void)hour_us;
	(void)late;
	o->piece.dest.write = dest_write;
	return &o->piece;
}

/* ---------------------------------------------------------------- requests */

/* Whether the request that failed so is tried once more; waits before. */
static int once_more(struct s3 *s3, int attempt, const struct pr_err *err)
{
	s3->away = err->kind == PR_RETRY && !*err->code;
	return err->kind == PR_RETRY && attempt + 1 < TRIES &&
	       !lane_wait(s3->pieces.sl->l, (int64_t)200 * PR_MS << (2 * attempt));
}

static const char *type_of(const struct s3 *s3)
{
	const struct pr_sink_format_conf *f = &s3->pieces.sl->conf->s3.format;

	if (f->format == PR_SINK_AVRO)
		return "application/avro";
	if (f->format == PR_SINK_PARQUET)
		return "application/vnd.apache.parquet";
	return f->compression == PR_SINK_GZIP   ? "application/gzip"
	       : f->compression == PR_SINK_ZSTD ? "application/zstd"
						: "application/x-ndjson";
}

static int begin_upload(struct s3 *s3, struct object *o, const char *key, struct pr_err *err)
{
	char sum[2 * SINK_SUM + 1];
	struct pr_err why;

	pr_s3_hex(o->piece.file.sum, SINK_SUM, sum);
	for (int i = 0;; i++) {
		if (pr_s3_begin(s3->client, key, type_of(s3), sum, &o->id, &why) == 0)
			return 0;
		s3->leftovers = 1; /* half an answer may hide its id from us */
		if (!once_more(s3, i, &why))
			break;
	}
	*err = why;
	return -1;
}

static int upload_part(struct s3 *s3, struct object *o, const char *key, int number, int64_t at, size_t n,
	struct pr_err *err)
{
	char tag[PR_S3_ETAG], *longer;
	struct pr_err why;

	if (sink_roll_read(&o->roll, at, s3->part.s, n, err) < 0)
		return -1;
	for (int i = 0;; i++) {
		if (pr_s3_part(s3->client, key, o->id, number, s3->part.s, n, tag, &why) == 0)
			break;
		if (once_more(s3, i, &why))
			continue;
		*err = why;
		return -1;
	}
	longer = pr_asprintf("%s %s", o->piece.file.temp ? o->piece.file.temp : o->id, tag);
	free(o->piece.file.temp);
	o->piece.file.temp = longer;
	/* If we die here, nobody has seen a part of it: the next owner aborts what is under way below the
	 * partition's names, and reads the range again. */
	FAULT(sink_mid_multipart);
	return 0;
}

/* All of it, in parts; file.temp: "id tag tag ...". */
static int upload(struct s3 *s3, struct object *o, struct pr_err *err)
{
	size_t most = (size_t)s3->pieces.sl->conf->s3.part_bytes;
	char *key = key_of(s3, o->piece.file.path);
	int number = 1, rc;

	rc = begin_upload(s3, o, key, err);
	for (int64_t at = 0; rc == 0 && at < o->roll.len; at += (int64_t)most) {
		size_t n = o->roll.len - at < (int64_t)most ? (size_t)(o->roll.len - at) : most;

		if (s3->part.cap < n + 1) {
			s3->part.s = pr_realloc(s3->part.s, n + 1);
			s3->part.cap = n + 1;
		}
		rc = upload_part(s3, o, key, number++, at, n, err);
	}
	free(key);
	return rc;
}

/* ---------------------------------------------------------------- what is under way and nobody's */

static int is_upload(const struct sink_cut *cut, const char *id)
{
	size_t n = strlen(id);

	for (size_t i = 0; i < cut->files_n; i++) {
		const char *temp = cut->files[i].temp;

		if (temp && strncmp(temp, id, n) == 0 && (temp[n] == ' ' || !temp[n]))
			return 1;
	}
	return 0;
}

/* PREFIX TOPIC/.../PARTITION-...: by whomever of this prefix; the partition is ours, and so are its names. */
static int abort_leftover(void *ctx, const char *key, const char *id)
{
	struct sink_part *sp = ctx;
	struct s3 *s3 = sp->lane->target;
	const char *name = strrchr(key, '/');
	struct pr_err err;
	char *end;

	if (!name || strtol(name + 1, &end, 10) != sp->part->partition || end == name + 1 || *end != '-')
		return 0;
	for (const struct sink_cut *c = sp->cuts; c; c = c->after)
		if (is_upload(c, id))
			return 0;
	if (pr_s3_abort(s3->client, key, id, &err) < 0)
		pr_log(PR_WARN, "an upload that nobody needs is left under way", KS("key", key),
			KS("err", err.text));
	return 0;
}

/* Costs a request; a store that does not let us list keeps its leftovers until its own rule removes them. */
static void clean(struct sink_part *sp)
{
	struct s3 *s3 = sp->lane->target;
	char *path = pr_asprintf("%s%s/", s3->prefix, sp->part->topic);
	struct pr_err err;

	if (pr_s3_uploads(s3->client, path, abort_leftover, sp, &err) < 0) {
		s3->away = err.kind == PR_RETRY && !*err.code;
		pr_log(PR_INFO, "uploads under way cannot be listed", KS("prefix", path),
			KS("err", err.text));
	}
	free(path);
}

static void taken_over(struct sink_part *sp)
{
	clean(sp);
	manifests_look(sp);
}

static void clean_all(struct s3 *s3)
{
	s3->leftovers = 0;
	for (struct sink_part *sp = s3->pieces.sl->parts; sp && !s3->away; sp = sp->after)
		if (sp->recovered) /* else a recorded cut's uploads are not known yet */
			clean(sp);
}

/* ---------------------------------------------------------------- sealing */

static int end(struct sink_part *sp, struct sink_piece *p, struct pr_err *err)
{
	struct object *o = (struct object *)p;

	p->file.bytes = o->roll.len;
	return upload(sp->lane->target, o, err);
}

static int s3_seal(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err)
{
	struct s3 *s3 = sp->lane->target;

	s3->away = 0;
	if (s3->leftovers)
		clean_all(s3);
	return sink_pieces_seal(sp, cut, err);
}

static void abort_upload(struct s3 *s3, const char *path, const char *id)
{
	char *key = key_of(s3, path);
	struct pr_err err;

	if (s3->away || pr_s3_abort(s3->client, key, id, &err) < 0)
		s3->leftovers = 1;
	free(key);
}

static void drop(struct sink_part *sp, struct sink_piece *p, int sealed)
{
	struct object *o = (struct object *)p;

	if (!sealed && o->id)
		abort_upload(sp->lane->target, p->file.path, o->id);
	sink_roll_free(&o->roll);
	free(o->id);
}

/* What is recorded stays under way: whoever owns the partition next completes it. */
static void s3_forget_cut(struct sink_cut *cut, int published)
{
	struct s3 *s3 = cut->part->lane->target;

	for (size_t i = 0; i < cut->files_n; i++) {
		char *temp = cut->files[i].temp;

		if (!published && cut->state != SINK_RECORDED && temp && *temp) {
			temp[strcspn(temp, " ")] = '\0';
			abort_upload(s3, cut->files[i].path, temp);
		}
		free(temp);
		free(cut->files[i].path);
	}
	free(cut->files);
	cut->files = NULL;
	cut->files_n = 0;
}

/* ---------------------------------------------------------------- publishing */

/* 1: the object is there and is that one; 0: it is not there, or another one. */
static int has(struct s3 *s3, const char *key, const struct sink_file *f, struct pr_err *err)
{
	char sum[2 * SINK_SUM + 1];
	struct pr_s3_object o;

	if (pr_s3_head(s3->client, key, &o, err) < 0)
		return -1;
	pr_s3_hex(f->sum, SINK_SUM, sum);
	return o.found && o.bytes == f->bytes && strcmp(o.sha256, sum) == 0;
}

/* temp's words; tags point into it. */
static size_t split(char *temp, const char **tags)
{
	size_t n = 0;
	char *save = NULL;

	(void)strtok_r(temp, " ", &save);
	for (char *t; n < PR_S3_PARTS && (t = strtok_r(NULL, " ", &save));)
		tags[n++] = t;
	return n;
}

static int complete(struct s3 *s3, const char *key, const struct sink_file *f, struct pr_err *err)
{
	const char **tags = pr_malloc(PR_S3_PARTS * sizeof(*tags));
	char *temp = pr_strdup(f->temp);
	size_t n = split(temp, tags);
	int rc = pr_s3_complete(s3->client, key, temp, tags, n, err);

	free(temp);
	free(tags);
	return rc;
}

static int is_gone(const char *code)
{
	return strcmp(code, "NoSuchUpload") == 0 || strcmp(code, "InvalidPart") == 0;
}

/* 1: everybody sees it; 0: it has to be made again. An upload that is no more was completed, by us or an
 * owner before us, or was aborted. */
static int publish_object(struct s3 *s3, const struct sink_file *f, struct pr_err *err)
{
	char *key = key_of(s3, f->path);
	int rc = 0;

	if (f->temp && *f->temp) {
		rc = complete(s3, key, f, err) == 0 ? 1 : -1;
		if (rc < 0 && err->kind == PR_REJECT && is_gone(err->code))
			rc = 0;
	}
	if (rc == 0)
		rc = has(s3, key, f, err);
	free(key);
	return rc;
}

static int publish_cut(struct s3 *s3, const struct sink_cut *cut, struct pr_err *err)
{
	for (size_t i = 0; i < cut->files_n; i++) {
		int rc = publish_object(s3, &cut->files[i], err);

		if (rc <= 0)
			return rc;
		/* If we die here, some of the cut's objects are there: the next owner finds the cut recorded,
		 * and completes the others. */
		FAULT(sink_mid_complete);
	}
	return 1;
}

static int s3_publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	(void)err;
	for (size_t i = 0; i < n; i++) {
		int rc = publish_cut(sl->target, cuts[i], &cuts[i]->why);

		cuts[i]->said = rc > 0 ? SINK_PUBLISHED : rc == 0 ? SINK_REREAD : SINK_AGAIN;
	}
	return 0;
}

static int s3_keep(struct sink_lane *sl, const char *path, const void *p, size_t n, struct pr_err *err)
{
	struct s3 *s3 = sl->target;
	char *key = key_of(s3, path);
	int rc = pr_s3_put(s3->client, key, "application/json", p, n, err);

	free(key);
	return rc;
}

static int s3_fetch(struct sink_lane *sl, const char *path, struct pr_buf *ret, struct pr_err *err)
{
	struct s3 *s3 = sl->target;
	char *key = key_of(s3, path);
	int rc = pr_s3_get(s3->client, key, ret, err);

	free(key);
	return rc;
}

static void s3_published(struct sink_lane *sl, struct sink_cut **cuts, size_t n)
{
	struct s3 *s3 = sl->target;

	s3->away = 0;
	if (s3->leftovers)
		clean_all(s3);
	manifests_published(sl, cuts, n);
}

static int s3_recover(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err)
{
	return publish_cut(sp->lane->target, cut, err);
}

/* ---------------------------------------------------------------- begin and end */

static int refuse(struct pr_err *err)
{
	err->kind = PR_STOP;
	err->exit = PR_EX_CONFIG;
	return -1;
}

static const char *key_or(const char *set, const char *variable)
{
	const char *v = set ? set : getenv(variable);

	return v && *v ? v : NULL;
}

static int connect_to(struct s3 *s3, const struct pr_sink_conf *conf, struct pr_err *err)
{
	const struct pr_s3_conf c = { .endpoint = conf->s3.endpoint,
		.bucket = conf->s3.bucket,
		.region = conf->s3.region,
		.access_key = key_or(conf->s3.access_key, "AWS_ACCESS_KEY_ID"),
		.secret_key = key_or(conf->s3.secret_key, "AWS_SECRET_ACCESS_KEY"),
		.path_style = conf->s3.path_style,
		.timeout_us = conf->s3.timeout_us };

	if (!c.access_key || !c.secret_key) {
		(void)pr_fail(err, PR_STOP, "no key for object store %s", c.endpoint);
		(void)pr_hint(err,
			"set handler.s3.access_key and handler.s3.secret_key, or AWS_ACCESS_KEY_ID and "
			"AWS_SECRET_ACCESS_KEY");
		return refuse(err);
	}
	if (conf->s3.cut.max_bytes / conf->s3.part_bytes >= PR_S3_PARTS) {
		(void)pr_fail(err, PR_STOP,
			"handler.s3.max_bytes is more than %d parts of handler.s3.part_bytes", PR_S3_PARTS);
		return refuse(err);
	}
	if (pr_s3_new(&c, &s3->client, err) < 0)
		return -1;
	if (pr_s3_check(s3->client, err) == 0)
		return 0;
	return err->kind == PR_REJECT ? refuse(err) : -1;
}

/* No mark is there, or we may not read it. */
static int check_unmarked(struct sink_lane *sl, const char *place, struct pr_err *err)
{
	struct s3 *s3 = sl->target;
	struct pr_s3_object o = { 0 };
	struct pr_err why;
	char *path, *key;
	int rc = owner_published(sl, &path, err);

	if (rc > 0) {
		key = key_of(s3, path ? path : "_manifest/owner");
		/* What may not be read may be there. */
		rc = pr_s3_head(s3->client, key, &o, &why) < 0 || o.found ? 0
									  : owner_elsewhere(sl, place, err);
		free(key);
	}
	free(path);
	return rc;
}

/* Who comes in the same moment as another group may be the second to write it: it looks once more. */
static int check_owner(struct sink_lane *sl, struct pr_err *err)
{
	struct s3 *s3 = sl->target;
	char *key = key_of(s3, "_manifest/owner"),
	     *place = pr_asprintf("%s/%s", sl->conf->s3.bucket, s3->prefix);
	const char *group = sl->l->c->conf->group;
	struct pr_buf b = { 0 };
	int rc = pr_s3_get(s3->client, key, &b, err);

	if (rc == 0 && (rc = check_unmarked(sl, place, err)) == 0)
		rc = pr_s3_put(s3->client, key, "text/plain", group, strlen(group), err) < 0
			     ? -1
			     : pr_s3_get(s3->client, key, &b, err);
	if (rc == 1)
		rc = owner_judge(sl, b.s, b.len, place, err);
	pr_buf_free(&b);
	free(place);
	free(key);
	return rc;
}

static void s3_close(struct sink_lane *sl)
{
	struct s3 *s3 = sl->target;

	if (!s3)
		return;
	pr_s3_free(s3->client);
	sink_pieces_close(&s3->pieces);
	pr_buf_free(&s3->part);
	free(s3);
	sl->target = NULL;
}

static int s3_open(struct sink_lane *sl, struct pr_err *err)
{
	struct s3 *s3 = sl->target;

	if (s3)
		return 0;
	s3 = sl->target = pr_calloc(1, sizeof(*s3));
	s3->pieces.make = make;
	s3->pieces.end = end;
	s3->pieces.drop = drop;
	s3->prefix = sl->conf->s3.prefix ? sl->conf->s3.prefix : "";
	if (sink_pieces_open(&s3->pieces, sl, &sl->conf->s3.format, &sl->conf->s3.late, err) == 0 &&
		connect_to(s3, sl->conf, err) == 0 && check_owner(sl, err) == 0 && sink_spool_open(err) == 0)
		return 0;
	s3_close(sl);
	return -1;
}

const struct sink_target_ops sink_s3 = { .name = "s3",
	.open = s3_open,
	.close = s3_close,
	.put = sink_pieces_put,
	.seal = s3_seal,
	.publish = s3_publish,
	.recover = s3_recover,
	.taken_over = taken_over,
	.forget = sink_pieces_forget,
	.forget_cut = s3_forget_cut,
	.published = s3_published,
	.look = hours_look,
	.keep = s3_keep,
	.fetch = s3_fetch };
