/* producers/queue/rebuild.c -- makes Redis anew from Postgres, after a flush, a restart (also one that
 * brought an old snapshot back) or on an empty server. Requests go on meanwhile: a number cannot be had, a
 * status can. Of several processes one builds: the lock in Postgres says who, and a name in Redis keeps out
 * one that lost it while it stood still.
 *
 * What is committed after it was read here has its row in queue.todo, and gets in that way. A number that was
 * given by the former Redis and not committed yet may be given again: the unique index decides who keeps it.
 * If we die on the way there is no mark, nobody uses what is half built, and the next one begins anew. */
#include "producers/queue/queue.h"

#include "lib/fault.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define PAGE     5000
#define AT_ONCE  500
#define BUILDER  PREFIX "builder"
#define KEYS     BUILDER, PREFIX "epoch", PREFIX "concerts"
#define LOCK_SQL "SELECT pg_advisory_xact_lock(8101821198635721831)"

struct builder {
	struct redis *r;
	struct pr_pg *pg;
	char name[37], mark[MARK_SIZE];
};

static int step(struct builder *b, const char *what, int n, const char *const *args, struct pr_err *err)
{
	const char **argv = pr_calloc((size_t)n + 6, sizeof(*argv));
	const char *const front[] = { KEYS, b->name, PREFIX, what };
	redisReply *reply;

	memcpy(argv, front, sizeof(front));
	memcpy(argv + 6, args, (size_t)n * sizeof(*argv));
	reply = redis_script(b->r, SCRIPT_REBUILD, 3, n + 6, argv, err);
	free(argv);
	if (!reply)
		return -1;
	freeReplyObject(reply);
	return 0;
}

/* Whatever is left of ours, in pages. */
static int delete_old(struct builder *b, struct pr_err *err)
{
	char cursor[32] = "0";

	do {
		redisReply *reply = redis_call(b->r, 6,
			(const char *const[]){ "SCAN", cursor, "MATCH", PREFIX "*", "COUNT", "1000" }, err);
		const char *keys[2000];
		int n = 0, rc = 0;

		if (!reply)
			return -1;
		if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2) {
			freeReplyObject(reply);
			return pr_fail(err, PR_RETRY, "redis: SCAN gave no cursor");
		}
		(void)snprintf(cursor, sizeof(cursor), "%s", reply->element[0]->str);
		for (size_t i = 0; i < reply->element[1]->elements; i++) {
			keys[n++] = reply->element[1]->element[i]->str;
			if (n == 2000 || i + 1 == reply->element[1]->elements) {
				rc = rc < 0 ? rc : step(b, "delete", n, keys, err);
				n = 0;
			}
		}
		freeReplyObject(reply);
		if (rc < 0)
			return -1;
	} while (strcmp(cursor, "0") != 0);
	return 0;
}

static int put_counters(struct builder *b, struct pr_err *err)
{
	char users[24], every[24];
	const char *const params[] = { users, every };
	PGresult *res;
	int rc = 0, rows;

	(void)snprintf(users, sizeof(users), "%lld", (long long)conf.users);
	(void)snprintf(every, sizeof(every), "%lld", (long long)conf.every_us);
	res = pr_pg_exec(b->pg, "SELECT * FROM queue.counters($1::bigint, $2::bigint)", 2, params, err);
	if (!res)
		return -1;
	rows = PQntuples(res);
	for (int i = 0; rc == 0 && i < rows; i++) {
		const char *args[7];

		for (int k = 0; k < 7; k++)
			args[k] = PQgetvalue(res, i, k);
		rc = step(b, "concert", 7, args, err);
	}
	PQclear(res);
	return rc;
}

/* Rows i.. of one concert, AT_ONCE at most; where the next ones begin, -1: it failed. */
static int put_some(struct builder *b, const PGresult *res, int i, struct pr_err *err)
{
	const char *args[1 + 2 * AT_ONCE] = { PQgetvalue(res, i, 0) };
	int rows = PQntuples(res), n = 1;

	for (; i < rows && n < 2 * AT_ONCE && strcmp(PQgetvalue(res, i, 0), args[0]) == 0; i++) {
		args[n++] = PQgetvalue(res, i, 1);
		args[n++] = PQgetvalue(res, i, 2);
	}
	return step(b, "waiting", n, args, err) < 0 ? -1 : i;
}

static int put_waiting(struct builder *b, struct pr_err *err)
{
	char concert[24] = "0", number[24] = "0", page[12];
	const char *const params[] = { concert, number, page };
	int rows;

	(void)snprintf(page, sizeof(page), "%d", PAGE);
	do {
		PGresult *res = pr_pg_exec(b->pg, sql_queue_waiting, 3, params, err);
		int i = 0;

		if (!res)
			return -1;
		rows = PQntuples(res);
		while (i >= 0 && i < rows)
			i = put_some(b, res, i, err);
		if (rows > 0) {
			(void)snprintf(concert, sizeof(concert), "%s", PQgetvalue(res, rows - 1, 0));
			(void)snprintf(number, sizeof(number), "%s", PQgetvalue(res, rows - 1, 1));
		}
		PQclear(res);
		if (i < 0)
			return -1;
	} while (rows == PAGE);
	return 0;
}

static int build(struct builder *b, struct pr_err *err)
{
	const char *mark[] = { b->mark };

	if (step(b, "begin", 0, mark, err) < 0 || delete_old(b, err) < 0)
		return -1;
	/* If we die here Redis is half built: it has no mark, and the next one begins anew. */
	FAULT(queue_rebuilding);
	if (put_counters(b, err) < 0 || put_waiting(b, err) < 0)
		return -1;
	if (pr_pg_run(b->pg, sql_queue_mark, 1, mark, err) < 0)
		return -1;
	return step(b, "end", 1, mark, err);
}

/* 1: Redis has the mark that Postgres knows, and is the process that it was made for. */
static int is_ours(struct builder *b, struct pr_err *err)
{
	redisReply *reply = redis_call(b->r, 2, (const char *const[]){ "GET", PREFIX "epoch" }, err);
	PGresult *res = NULL;
	int rc = -1;

	if (!reply)
		return -1;
	res = pr_pg_exec(b->pg, "SELECT mark FROM queue.epoch", 0, NULL, err);
	if (!res)
		goto out;
	rc = reply->type == REDIS_REPLY_STRING && PQntuples(res) == 1 &&
	     strcmp(reply->str, PQgetvalue(res, 0, 0)) == 0 && mark_of(reply->str, redis_run_id(b->r));
	if (rc)
		(void)snprintf(b->mark, sizeof(b->mark), "%s", reply->str);
	PQclear(res);
out:
	freeReplyObject(reply);
	return rc;
}

/* A name that nobody has had. */
static int name(struct builder *b, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(b->pg, "SELECT pg_catalog.gen_random_uuid()", 0, NULL, err);

	if (!res)
		return -1;
	(void)snprintf(b->name, sizeof(b->name), "%s", PQgetvalue(res, 0, 0));
	(void)snprintf(b->mark, sizeof(b->mark), "%s:%s", redis_run_id(b->r), b->name);
	PQclear(res);
	return 0;
}

static int locked(struct builder *b, int *ret_built, struct pr_err *err)
{
	int rc = is_ours(b, err);

	if (rc == 0) {
		rc = name(b, err) < 0 || build(b, err) < 0 ? -1 : 0;
		*ret_built = rc == 0;
	}
	return rc < 0 ? -1 : 0;
}

int rebuild(struct redis *r, struct pr_pg *pg, int *ret_built, struct pr_err *err)
{
	struct builder b = { .r = r, .pg = pg };
	struct pr_err ignored;
	int rc;

	*ret_built = 0;
	if (pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	rc = pr_pg_run(pg, LOCK_SQL, 0, NULL, err);
	if (rc == 0)
		rc = locked(&b, ret_built, err);
	if (rc == 0)
		rc = pr_pg_run(pg, "COMMIT", 0, NULL, err);
	else if (pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK", 0, NULL, &ignored) < 0)
		pr_pg_timeout(pg, 0);
	if (rc == 0)
		mark_set(b.mark);
	return rc;
}
