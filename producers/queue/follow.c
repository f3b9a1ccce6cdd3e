/* producers/queue/follow.c -- the thread that keeps the view fresh: it reads the log in Redis that every
 * change of a token goes to, and reads Postgres when it begins, when the log has a gap, and when Redis was
 * built again. Entries that tell what is known already change nothing, so it need not know where exactly
 * Postgres stood. */
#include "producers/queue/queue.h"

#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define PAGE     10000
#define ENTRIES  "1000"
#define BLOCK_MS "100"
#define REST_US  (3 * PR_MS)   /* between two readings that had something: news come by the handful */
#define AWAY_US  (100 * PR_MS) /* after a failure */
#define CHECK_US (100 * PR_MS)
#define TRIM_US  (10 * PR_SEC)

struct follower {
	struct redis *r;
	char mark[MARK_SIZE]; /* of the Redis that the view follows; "": none */
	long long seq;        /* of the last entry */
	int64_t checked_us, trimmed_us;
};

static struct turns turns;

/* ---- all of it, from Postgres ---- */

static int load_page(struct pr_pg *pg, struct view *v, char concert[24], char number[24], int *ret_rows,
	struct pr_err *err)
{
	char page[12];
	const char *const params[] = { concert, number, page };
	PGresult *res;
	int64_t now_us = pr_wall_us();

	(void)snprintf(page, sizeof(page), "%d", PAGE);
	res = pr_pg_exec(pg, sql_queue_view, 3, params, err);
	if (!res)
		return -1;
	*ret_rows = PQntuples(res);
	for (int i = 0; i < *ret_rows; i++) {
		int64_t value[6];

		for (int c = 0; c < 6; c++)
			value[c] = c == 2 ? *PQgetvalue(res, i, c) : strtoll(PQgetvalue(res, i, c), NULL, 10);
		view_set(v, value[0], value[1], (char)value[2], (uint32_t)value[3], value[4], value[5]);
	}
	if (*ret_rows > 0) {
		(void)snprintf(concert, 24, "%s", PQgetvalue(res, *ret_rows - 1, 0));
		(void)snprintf(number, 24, "%s", PQgetvalue(res, *ret_rows - 1, 1));
	}
	PQclear(res);
	view_trim(v, now_us);
	return 0;
}

static struct view *load(struct pr_err *err)
{
	struct pr_pg_opts opts = { .conninfo = conf.service.conninfo,
		.appname = "postrider-queue view",
		.timeout_us = conf.service.timeout_us,
		.wake_fd = -1 };
	char concert[24] = "0", number[24] = "0";
	struct view *v = view_new();
	struct pr_pg *pg;
	int rows = PAGE, rc;

	rc = pr_pg_open(&opts, &pg, err);
	while (rc == 0 && rows == PAGE && turns_going(&turns))
		rc = load_page(pg, v, concert, number, &rows, err);
	pr_pg_close(pg);
	if (rc == 0)
		return v;
	view_free(v);
	return NULL;
}

/* The value of a key; malloc'd, "" when there is none, NULL: Redis does not answer. */
static char *value_of(struct redis *r, const char *key, struct pr_err *err)
{
	redisReply *reply = redis_call(r, 2, (const char *const[]){ "GET", key }, err);
	char *value = NULL;

	if (reply)
		value = pr_strdup(reply->type == REDIS_REPLY_STRING ? reply->str : "");
	if (reply)
		freeReplyObject(reply);
	return value;
}

/* The log's end first, then Postgres: what comes in between is read twice, and nothing is missed. */
static int begin(struct follower *f, const char *mark, struct pr_err *err)
{
	char *seq = value_of(f->r, PREFIX "seq", err);
	struct view *v = seq ? load(err) : NULL;

	if (v) {
		f->seq = strtoll(seq, NULL, 10);
		(void)snprintf(f->mark, sizeof(f->mark), "%s", mark);
		show_replace(v);
	}
	free(seq);
	return v ? 0 : -1;
}

/* ---- the log ---- */

static const char *field(const redisReply *fields, char name)
{
	for (size_t i = 0; i + 1 < fields->elements; i += 2)
		if (fields->element[i]->str[0] == name)
			return fields->element[i + 1]->str;
	return "";
}

/* -1: something is missing before it, or it is not ours. */
static int take_entry(struct follower *f, struct view *v, const redisReply *entry)
{
	long long seq = strtoll(entry->element[0]->str, NULL, 10);
	const redisReply *fields = entry->element[1];

	if (seq != f->seq + 1 || fields->type != REDIS_REPLY_ARRAY)
		return -1;
	f->seq = seq;
	return view_set_ranges(v, strtoll(field(fields, 'c'), NULL, 10), field(fields, 'n'),
		*field(fields, 's'), (uint32_t)strtoul(field(fields, 'v'), NULL, 10),
		strtoll(field(fields, 'e'), NULL, 10));
}

static int take(struct follower *f, const redisReply *entries)
{
	struct view *v = show_lock();
	int rc = v ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < entries->elements; i++)
		rc = take_entry(f, v, entries->element[i]);
	show_unlock();
	return rc;
}

/* 1: there was something; -1: the view must be read anew, or Redis is away. */
static int read_log(struct follower *f, struct pr_err *err)
{
	char from[32];
	const char *const argv[] = { "XREAD", "COUNT", ENTRIES, "BLOCK", BLOCK_MS, "STREAMS", PREFIX "log",
		from };
	redisReply *reply;
	int rc = 0;

	(void)snprintf(from, sizeof(from), "%lld-0", f->seq);
	reply = redis_call(f->r, 8, argv, err);
	if (!reply)
		return -1;
	if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1) {
		rc = take(f, reply->element[0]->element[1]) < 0
			     ? pr_fail(err, PR_RETRY, "the log in redis has a gap")
			     : 1;
	}
	freeReplyObject(reply);
	return rc;
}

/* Whether Redis still is the one that we follow. */
static int check(struct follower *f, struct pr_err *err)
{
	char *mark;
	int same;

	if (pr_mono_us() - f->checked_us < CHECK_US)
		return 0;
	mark = value_of(f->r, PREFIX "epoch", err);
	if (!mark)
		return -1;
	same = strcmp(mark, f->mark) == 0;
	free(mark);
	if (!same) {
		keeper_wake();
		return pr_fail(err, PR_RETRY, "redis was flushed or built again");
	}
	show_fresh();
	f->checked_us = pr_mono_us();
	if (f->checked_us - f->trimmed_us > TRIM_US) {
		struct view *v = show_lock();

		if (v)
			view_trim(v, pr_wall_us());
		show_unlock();
		f->trimmed_us = f->checked_us;
	}
	return 0;
}

/* How long to rest before the next turn. */
static int64_t turn(struct follower *f)
{
	char mark[MARK_SIZE];
	struct pr_err err;
	int rc;

	if (!redis_ok(f->r)) {
		redis_close(f->r);
		f->r = redis_open(&err);
		*f->mark = '\0';
	}
	if (!f->r)
		return AWAY_US;
	if (!mark_get(mark))
		return REST_US * 5; /* the keeper will say */
	if (!mark_of(mark, redis_run_id(f->r))) {
		redis_close(f->r); /* of a former process, or of one that is not filled yet */
		f->r = NULL;
		return REST_US * 5;
	}
	if (strcmp(mark, f->mark) != 0 && begin(f, mark, &err) < 0)
		return AWAY_US;
	rc = read_log(f, &err);
	if (rc >= 0 && check(f, &err) == 0)
		return rc ? REST_US : 0;
	*f->mark = '\0';
	return REST_US * 5;
}

static void *run(void *arg)
{
	struct follower f = { 0 };
	int64_t rest;

	(void)arg;
	do
		rest = turn(&f);
	while (rest ? turns_rest(&turns, rest) : turns_going(&turns));
	redis_close(f.r);
	return NULL;
}

int follow_start(struct pr_err *err)
{
	return turns_start(&turns, "follow", run, NULL, err);
}

void follow_stop(void)
{
	turns_stop(&turns);
	show_replace(NULL);
}
