/* producers/queue/redis.c -- Redis by hiredis, with redis.timeout on every call, and scripts by their digest.
 * Refuses to go on with a session after a missed answer, and to try a server again at once that did not
 * accept. Never logs. */
#include "producers/queue/queue.h"

#include "lib/err.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define AWAY_US  (PR_SEC / 4) /* after a failed connect nobody tries before */
#define POOL_MAX 256

struct redis {
	redisContext *c;
	char run_id[48];
	char sha[SCRIPTS][41]; /* "": not loaded on this session yet */
};

static const char *const texts[SCRIPTS] = {
	[SCRIPT_ISSUE] = lua_queue_issue,
	[SCRIPT_APPLY] = lua_queue_apply,
	[SCRIPT_ADMIT] = lua_queue_admit,
	[SCRIPT_SETTLE] = lua_queue_settle,
	[SCRIPT_OVERDUE] = lua_queue_overdue,
	[SCRIPT_REBUILD] = lua_queue_rebuild,
};

static _Atomic int64_t away_until_us;

/* ---- the session ---- */

/* "host:port", "[::1]:port" or "unix:/path". */
static int split(const char *address, char host[256], int *port)
{
	const char *colon = strrchr(address, ':');
	size_t n = colon ? (size_t)(colon - address) : 0;
	char *end;
	long p;

	if (n == 0 || n >= 256)
		return -1;
	p = strtol(colon + 1, &end, 10);
	if (*end || end == colon + 1 || p < 1 || p > 65535)
		return -1;
	if (*address == '[' && address[n - 1] == ']')
		address++, n -= 2;
	(void)snprintf(host, 256, "%.*s", (int)n, address);
	*port = (int)p;
	return 0;
}

int redis_address_ok(const char *address)
{
	char host[256];
	int port;

	return strncmp(address, "unix:/", 6) == 0 || split(address, host, &port) == 0;
}

static redisContext *dial(void)
{
	struct timeval tv = { .tv_sec = conf.redis_timeout_us / PR_SEC,
		.tv_usec = conf.redis_timeout_us % PR_SEC };
	const char *address = conf.redis_address;
	redisContext *c;
	char host[256];
	int port;

	if (strncmp(address, "unix:", 5) == 0)
		c = redisConnectUnixWithTimeout(address + 5, tv);
	else
		c = split(address, host, &port) == 0 ? redisConnectWithTimeout(host, port, tv) : NULL;
	if (c && !c->err)
		(void)redisSetTimeout(c, tv);
	return c;
}

static int lost(struct redis *r, struct pr_err *err)
{
	(void)pr_fail(err, PR_RETRY, "redis at %s: %s", conf.redis_address,
		r->c && r->c->err ? r->c->errstr : "no answer");
	(void)pr_hint(err, "is it up, and is redis.address right?");
	if (r->c)
		redisFree(r->c);
	r->c = NULL;
	return -1;
}

static int read_run_id(struct redis *r, struct pr_err *err)
{
	redisReply *reply = redis_call(r, 2, (const char *const[]){ "INFO", "server" }, err);
	const char *at = reply && reply->type == REDIS_REPLY_STRING ? strstr(reply->str, "run_id:") : NULL;

	if (at)
		(void)snprintf(r->run_id, sizeof(r->run_id), "%.*s", (int)strcspn(at + 7, "\r\n"), at + 7);
	if (reply)
		freeReplyObject(reply);
	return at ? 0 : reply ? pr_fail(err, PR_RETRY, "redis does not tell its run_id") : -1;
}

static int sign_in(struct redis *r, struct pr_err *err)
{
	redisReply *reply;

	if (!conf.redis_password || !*conf.redis_password)
		return 0;
	reply = redis_call(r, 2, (const char *const[]){ "AUTH", conf.redis_password }, err);
	if (!reply)
		return -1;
	freeReplyObject(reply);
	return 0;
}

struct redis *redis_open(struct pr_err *err)
{
	struct redis *r;

	if (pr_mono_us() < atomic_load(&away_until_us)) {
		(void)pr_fail(err, PR_RETRY, "redis at %s is away", conf.redis_address);
		return NULL;
	}
	r = pr_calloc(1, sizeof(*r));
	r->c = dial();
	if (!r->c || r->c->err) {
		(void)lost(r, err);
	} else if (sign_in(r, err) == 0 && read_run_id(r, err) == 0) {
		return r;
	}
	atomic_store(&away_until_us, pr_mono_us() + AWAY_US);
	redis_close(r);
	return NULL;
}

void redis_close(struct redis *r)
{
	if (!r)
		return;
	if (r->c)
		redisFree(r->c);
	free(r);
}

int redis_ok(const struct redis *r)
{
	return r && r->c;
}

const char *redis_run_id(const struct redis *r)
{
	return r->run_id;
}

/* ---- calls ---- */

static redisReply *refused(redisReply *reply, struct pr_err *err)
{
	size_t word = strcspn(reply->str, " ");

	(void)pr_fail(err, PR_RETRY, "redis: %s", reply->str);
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%.*s", (int)word, reply->str);
	freeReplyObject(reply);
	return NULL;
}

redisReply *redis_call(struct redis *r, int argc, const char *const *argv, struct pr_err *err)
{
	const char **v = pr_calloc((size_t)argc, sizeof(*v));
	redisReply *reply;

	memcpy(v, argv, (size_t)argc * sizeof(*v));
	reply = redisCommandArgv(r->c, argc, v, NULL);
	free(v);
	if (!reply) {
		(void)lost(r, err);
		return NULL;
	}
	return reply->type == REDIS_REPLY_ERROR ? refused(reply, err) : reply;
}

static int load(struct redis *r, enum script script, struct pr_err *err)
{
	redisReply *reply = redis_call(r, 3, (const char *const[]){ "SCRIPT", "LOAD", texts[script] }, err);

	if (!reply)
		return -1;
	(void)snprintf(r->sha[script], sizeof(r->sha[script]), "%s", reply->str ? reply->str : "");
	freeReplyObject(reply);
	return 0;
}

static redisReply *by_digest(
	struct redis *r, enum script script, int keys, int argc, const char *const *argv, struct pr_err *err)
{
	const char **v = pr_calloc((size_t)argc + 3, sizeof(*v));
	char n[12];
	redisReply *reply;

	(void)snprintf(n, sizeof(n), "%d", keys);
	v[0] = "EVALSHA";
	v[1] = r->sha[script];
	v[2] = n;
	memcpy(v + 3, argv, (size_t)argc * sizeof(*v));
	reply = redis_call(r, argc + 3, v, err);
	free(v);
	return reply;
}

/* A server that was told to forget its scripts is told them again, once. */
redisReply *redis_script(
	struct redis *r, enum script script, int keys, int argc, const char *const *argv, struct pr_err *err)
{
	struct pr_err why = { 0 };
	redisReply *reply;

	if (!r->sha[script][0] && load(r, script, err) < 0)
		return NULL;
	reply = by_digest(r, script, keys, argc, argv, &why);
	if (!reply && strcmp(why.code, "NOSCRIPT") == 0) {
		if (load(r, script, err) < 0)
			return NULL;
		reply = by_digest(r, script, keys, argc, argv, &why);
	}
	if (!reply && err)
		*err = why;
	return reply;
}

int redis_lost_epoch(const struct pr_err *err)
{
	return strcmp(err->code, "EPOCH") == 0;
}

/* ---- sessions of the workers ---- */

static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct redis *pool[POOL_MAX];
static int pooled;

struct redis *redis_take(struct pr_err *err)
{
	struct redis *r = NULL;

	(void)pthread_mutex_lock(&pool_mutex);
	if (pooled > 0)
		r = pool[--pooled];
	(void)pthread_mutex_unlock(&pool_mutex);
	return r ? r : redis_open(err);
}

/* One that died says that its server did, and all of its sessions. */
void redis_give(struct redis *r)
{
	(void)pthread_mutex_lock(&pool_mutex);
	while (!redis_ok(r) && pooled > 0)
		redis_close(pool[--pooled]);
	if (redis_ok(r) && pooled < POOL_MAX) {
		pool[pooled++] = r;
		r = NULL;
	}
	(void)pthread_mutex_unlock(&pool_mutex);
	redis_close(r);
}

/* Of another process than the mark's: so are those that rest. */
void redis_drop(struct redis *r)
{
	redisFree(r->c);
	r->c = NULL;
	redis_give(r);
}

void redis_pool_close(void)
{
	while (pooled > 0)
		redis_close(pool[--pooled]);
}

/* ---- the mark ---- */

static pthread_mutex_t mark_mutex = PTHREAD_MUTEX_INITIALIZER;
static char mark_now[MARK_SIZE];

int mark_get(char mark[MARK_SIZE])
{
	(void)pthread_mutex_lock(&mark_mutex);
	memcpy(mark, mark_now, MARK_SIZE);
	(void)pthread_mutex_unlock(&mark_mutex);
	return *mark != '\0';
}

void mark_set(const char *mark)
{
	(void)pthread_mutex_lock(&mark_mutex);
	(void)snprintf(mark_now, sizeof(mark_now), "%s", mark);
	(void)pthread_mutex_unlock(&mark_mutex);
}

int mark_of(const char *mark, const char *run_id)
{
	size_t n = strlen(run_id);

	return n > 0 && strncmp(mark, run_id, n) == 0 && mark[n] == ':';
}
