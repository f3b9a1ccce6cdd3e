/* producers/queue/keeper.c -- the thread that keeps the queue: what Postgres committed goes to Redis (todo),
 * those whose turn it is are admitted, those whose time is over expire, what ended long ago is forgotten.
 * Each process has one; they share the work: rows by SKIP LOCKED, turns by the script that admits.
 *
 * An admission: the script takes the numbers out of the sorted set and keeps them as a batch (1); Postgres
 * makes them ACTIVE, with their events, if they still wait (2); the batch goes, and the log tells everybody
 * (3). Whoever dies between 1 and 3 leaves a batch, which another takes on after a while: 2 does nothing to
 * what is ACTIVE already. */
#include "producers/queue/queue.h"

#include "lib/fault.h"
#include "lib/json.h"
#include "lib/log.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TODO_MOST    500
#define ADMIT_MOST   "1000"
#define EXPIRE_MOST  "1000"
#define OVERDUE_US   "2000000"
#define SWEEP_US     (PR_SEC / 5)
#define FORGET_US    (10 * PR_SEC)
#define REST_HIGH_US (50 * PR_MS)
#define REST_LOW_US  (5 * PR_MS)

struct keeper {
	struct pr_pg *pg;
	struct redis *r;
	char mark[MARK_SIZE];
	int64_t swept_us, forgot_us, overdue_us;
	unsigned failed;
	uint64_t batches;
	char name[48]; /* of this process's batches */
};

static struct turns turns;
static pthread_mutex_t trouble_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct pr_err trouble;
static int troubled;
static struct pr_series *rebuilds, *admitted, *expired;

static void drop(redisReply *reply)
{
	if (reply)
		freeReplyObject(reply);
}

/* ---- todo ---- */

static int apply(struct keeper *k, const PGresult *res, struct pr_err *err)
{
	int rows = PQntuples(res), n = 0;
	const char **argv = pr_calloc((size_t)rows * 6 + 7, sizeof(*argv));
	redisReply *reply;

	argv[n++] = PREFIX "epoch";
	argv[n++] = PREFIX "seq";
	argv[n++] = PREFIX "log";
	argv[n++] = PREFIX "concerts";
	argv[n++] = k->mark;
	argv[n++] = PREFIX;
	argv[n++] = LOG_KEPT;
	for (int i = 0; i < rows; i++)
		for (int c = 0; c < 6; c++)
			argv[n++] = PQgetvalue(res, i, c);
	reply = redis_script(k->r, SCRIPT_APPLY, 4, n, argv, err);
	free(argv);
	drop(reply);
	return reply ? 0 : -1;
}

/* A turn of it; how many, -1: nothing was taken. */
static int pass_on(struct keeper *k, struct pr_err *err)
{
	char most[12];
	const char *const params[] = { most };
	struct pr_err ignored;
	PGresult *res;
	int n, rc = 0;

	(void)snprintf(most, sizeof(most), "%d", TODO_MOST);
	if (pr_pg_run(k->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	res = pr_pg_exec(k->pg, sql_queue_todo, 1, params, err);
	n = res ? PQntuples(res) : -1;
	if (n > 0)
		rc = apply(k, res, err);
	PQclear(res);
	/* If we die here Redis knows, and the rows are still to do: it is told again, and nothing comes of
	 * it. */
	FAULT(queue_applied);
	if (n >= 0 && rc == 0)
		return pr_pg_run(k->pg, "COMMIT", 0, NULL, err) < 0 ? -1 : n;
	if (pr_pg_ok(k->pg) && pr_pg_run(k->pg, "ROLLBACK", 0, NULL, &ignored) < 0)
		pr_pg_timeout(k->pg, 0);
	return -1;
}

static int pass_on_all(struct keeper *k, struct pr_err *err)
{
	int n;

	do
		n = pass_on(k, err);
	while (n == TODO_MOST && turns_going(&turns));
	return n < 0 ? -1 : 0;
}

/* ---- admission ---- */

/* "1-900,902" of the rows from i on that have one state, version and end; the first row behind. */
static int group(const PGresult *res, int i, struct pr_buf *b)
{
	int rows = PQntuples(res), first = i;
	long long from = 0, to = 0;

	for (; i < rows; i++) {
		long long number = strtoll(PQgetvalue(res, i, 0), NULL, 10);

		for (int c = 1; c < 4; c++)
			if (strcmp(PQgetvalue(res, i, c), PQgetvalue(res, first, c)) != 0)
				goto out;
		if (i > first && number == to + 1) {
			to = number;
			continue;
		}
		if (i > first)
			pr_buf_printf(b, "%lld-%lld,", from, to);
		from = to = number;
	}
out:
	pr_buf_printf(b, "%lld-%lld", from, to);
	return i;
}

static int settle(
	struct keeper *k, const char *concert, const char *batch, const PGresult *res, struct pr_err *err)
{
	int rows = PQntuples(res), n = 0, groups = 0;
	const char **argv = pr_calloc((size_t)rows * 5 + 8, sizeof(*argv));
	struct pr_buf *numbers = pr_calloc((size_t)rows + 1, sizeof(*numbers));
	char *key = pr_asprintf(PREFIX "batch:%s", batch);
	redisReply *reply;

	argv[n++] = PREFIX "epoch";
	argv[n++] = PREFIX "seq";
	argv[n++] = PREFIX "log";
	argv[n++] = key;
	argv[n++] = PREFIX "batches";
	argv[n++] = k->mark;
	argv[n++] = LOG_KEPT;
	argv[n++] = batch;
	for (int i = 0; i < rows;) {
		int first = i;

		i = group(res, i, &numbers[groups]);
		argv[n++] = concert;
		for (int c = 1; c < 4; c++)
			argv[n++] = PQgetvalue(res, first, c);
		argv[n++] = numbers[groups++].s;
	}
	reply = redis_script(k->r, SCRIPT_SETTLE, 5, n, argv, err);
	while (groups > 0)
		pr_buf_free(&numbers[--groups]);
	free(numbers);
	free(argv);
	free(key);
	drop(reply);
	return reply ? 0 : -1;
}

static int activate(
	struct keeper *k, const char *concert, const char *batch, const char *numbers, struct pr_err *err)
{
	char *array = pr_asprintf("{%s}", numbers), life[24];
	const char *const params[] = { concert, array, life };
	PGresult *res;
	int rc;

	(void)snprintf(life, sizeof(life), "%lld", (long long)conf.active_for_us);
	/* If we die here Redis has let them in, and Postgres does not know: the batch is taken on by another.
	 */
	FAULT(queue_admitted);
	res = pr_pg_exec(k->pg, sql_queue_activate, 3, params, err);
	free(array);
	if (!res)
		return -1;
	/* If we die here they are ACTIVE and the status still says WAITING: the batch is taken on by another.
	 */
	FAULT(queue_activated);
	pr_counter_add(admitted, (uint64_t)PQntuples(res));
	rc = settle(k, concert, batch, res, err);
	PQclear(res);
	return rc;
}

/* 1: somebody was let in. */
static int admit_some(struct keeper *k, const char *concert, struct pr_err *err)
{
	char users[24], every[24];
	char *name = pr_asprintf("%s:%s:%llu", concert, k->name, (unsigned long long)++k->batches);
	char *waiting = pr_asprintf(PREFIX "%s:waiting", concert);
	char *plan = pr_asprintf(PREFIX "%s:plan", concert), *batch = pr_asprintf(PREFIX "batch:%s", name);
	const char *const argv[] = { PREFIX "epoch", waiting, plan, batch, PREFIX "batches",
		PREFIX "concerts", k->mark, users, every, ADMIT_MOST, concert, name };
	redisReply *reply;
	int rc = -1;

	(void)snprintf(users, sizeof(users), "%lld", (long long)conf.users);
	(void)snprintf(every, sizeof(every), "%lld", (long long)conf.every_us);
	reply = redis_script(k->r, SCRIPT_ADMIT, 6, 12, argv, err);
	if (reply)
		rc = reply->type == REDIS_REPLY_STRING && reply->len > 0;
	if (rc > 0 && activate(k, concert, name, reply->str, err) < 0)
		rc = -1;
	drop(reply);
	free(name);
	free(waiting);
	free(plan);
	free(batch);
	return rc;
}

/* A Redis that is empty has nobody to admit, and would not say why. */
static int still_ours(struct keeper *k, struct pr_err *err)
{
	redisReply *reply = redis_call(k->r, 2, (const char *const[]){ "GET", PREFIX "epoch" }, err);
	int same = reply && reply->type == REDIS_REPLY_STRING && strcmp(reply->str, k->mark) == 0;

	if (reply && !same) {
		(void)pr_fail(err, PR_RETRY, "redis was flushed or built again");
		(void)snprintf(err->code, sizeof(err->code), "EPOCH");
	}
	drop(reply);
	return same ? 0 : -1;
}

static int admit(struct keeper *k, struct pr_err *err)
{
	redisReply *reply = redis_call(k->r, 2, (const char *const[]){ "SMEMBERS", PREFIX "concerts" }, err);
	int rc = 0;

	if (!reply)
		return -1;
	for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements && rc >= 0; i++)
		do
			rc = admit_some(k, reply->element[i]->str, err);
		while (rc > 0 && turns_going(&turns));
	drop(reply);
	return rc < 0 ? -1 : 0;
}

/* Batches that somebody else left. A batch's name begins with its concert. */
static int take_on(struct keeper *k, struct pr_err *err)
{
	const char *const argv[] = { PREFIX "epoch", PREFIX "batches", k->mark, PREFIX, OVERDUE_US };
	redisReply *reply;
	int rc = 0;

	if (pr_mono_us() - k->overdue_us < PR_SEC)
		return 0;
	reply = redis_script(k->r, SCRIPT_OVERDUE, 2, 5, argv, err);
	if (!reply)
		return -1;
	for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i + 1 < reply->elements && rc == 0; i += 2) {
		const char *batch = reply->element[i]->str;
		char *concert = strndup(batch, strcspn(batch, ":"));

		rc = activate(k, concert, batch, reply->element[i + 1]->str, err);
		free(concert);
	}
	drop(reply);
	k->overdue_us = pr_mono_us();
	return rc;
}

/* ---- time ---- */

static int sweep(struct keeper *k, struct pr_err *err)
{
	char keep[24];
	const char *const params[] = { keep };
	PGresult *res;
	long n;

	if (pr_mono_us() - k->swept_us < SWEEP_US)
		return 0;
	do {
		res = pr_pg_exec(k->pg, "SELECT queue.expire_due(" EXPIRE_MOST ")", 0, NULL, err);
		if (!res)
			return -1;
		n = strtol(PQgetvalue(res, 0, 0), NULL, 10);
		PQclear(res);
		pr_counter_add(expired, (uint64_t)n);
	} while (n > 0 && turns_going(&turns));
	k->swept_us = pr_mono_us();
	if (k->swept_us - k->forgot_us < FORGET_US)
		return 0;
	k->forgot_us = k->swept_us;
	(void)snprintf(keep, sizeof(keep), "%lld", (long long)conf.keep_us);
	return pr_pg_run(k->pg, "SELECT queue.forget($1::bigint * interval '1 microsecond')", 1, params, err);
}

/* ---- the thread ---- */

static int open_pg(struct keeper *k, struct pr_err *err)
{
	struct pr_pg_opts opts = { .conninfo = conf.service.conninfo,
		.appname = "postrider-queue keeper",
		.timeout_us = conf.service.timeout_us,
		.wake_fd = -1 };

	if (k->pg && pr_pg_ok(k->pg))
		return 0;
	pr_pg_close(k->pg);
	k->pg = NULL;
	return pr_pg_open(&opts, &k->pg, err);
}

static int open_redis(struct keeper *k, struct pr_err *err)
{
	int built;

	if (redis_ok(k->r) && *k->mark)
		return 0;
	*k->mark = '\0';
	if (!redis_ok(k->r)) {
		redis_close(k->r);
		k->r = redis_open(err);
	}
	if (!k->r || rebuild(k->r, k->pg, &built, err) < 0)
		return -1;
	(void)mark_get(k->mark);
	pr_counter_add(rebuilds, (uint64_t)built);
	if (built)
		pr_log(PR_INFO, "redis was built again", KS("mark", k->mark));
	return 0;
}

/* What is of Postgres alone goes on without Redis. */
static int turn(struct keeper *k, struct pr_err *err)
{
	if (open_pg(k, err) < 0 || sweep(k, err) < 0)
		return -1;
	if (open_redis(k, err) < 0)
		return -1;
	if (still_ours(k, err) == 0 && pass_on_all(k, err) == 0 && take_on(k, err) == 0 && admit(k, err) == 0)
		return 0;
	if (redis_lost_epoch(err))
		*k->mark = '\0';
	return -1;
}

/* A lost mark is found again at once, and is nobody's trouble yet. */
static void note(struct keeper *k, int rc, const struct pr_err *err)
{
	int again = rc < 0 && redis_lost_epoch(err);

	k->failed = rc < 0 && !again ? k->failed + 1 : 0;
	(void)pthread_mutex_lock(&trouble_mutex);
	troubled = rc < 0 && !again;
	if (troubled)
		trouble = *err;
	(void)pthread_mutex_unlock(&trouble_mutex);
}

static int64_t rest_us(const struct keeper *k)
{
	int64_t us = conf.every_us / 10;

	if (k->failed)
		return pr_backoff_us(k->failed - 1, 20 * PR_MS, PR_SEC / 2);
	return us > REST_HIGH_US ? REST_HIGH_US : us < REST_LOW_US ? REST_LOW_US : us;
}

static void *run(void *arg)
{
	struct keeper k = { 0 };
	struct pr_err err;
	int rc;

	(void)arg;
	(void)snprintf(k.name, sizeof(k.name), "%d-%lld", (int)getpid(), (long long)pr_wall_us());
	do {
		rc = turn(&k, &err);
		note(&k, rc, &err);
	} while (turns_rest(&turns, rest_us(&k)));
	pr_pg_close(k.pg);
	redis_close(k.r);
	return NULL;
}

int keeper_trouble(struct pr_err *err)
{
	int rc;

	(void)pthread_mutex_lock(&trouble_mutex);
	rc = troubled ? -1 : 0;
	if (troubled && err)
		*err = trouble;
	(void)pthread_mutex_unlock(&trouble_mutex);
	return rc;
}

int keeper_start(struct pr_service_run *service, struct pr_err *err)
{
	struct pr_metrics *m = pr_service_metrics(service);

	rebuilds = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_queue_rebuilds_total", "", 0,
		"How often this process built Redis again from Postgres."));
	admitted = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_queue_admitted_total", "", 0,
		"Tokens whose turn came, by this process."));
	expired = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_queue_expired_total", "", 0,
		"Tokens whose time was over, by this process."));
	return turns_start(&turns, "keeper", run, NULL, err);
}

void keeper_wake(void)
{
	turns_wake(&turns);
}

void keeper_stop(void)
{
	turns_stop(&turns);
}
