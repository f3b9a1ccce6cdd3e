/* producers/concert/cache.c -- the cache's words to Redis: one script that reads, one that writes, both
 * atomic. Each thread has a connection of its own. Refuses to wait: the first call that gets no answer in
 * time switches the cache off for all, until watch.c has heard from Redis again. */
#include "producers/concert/cache.h"

#include "lib/fault.h"

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FIELDS_MAX 200 /* of a scope: pages that somebody makes up do not fill Redis */

static struct cache_opts opts;
static _Atomic int in_use;
static _Atomic unsigned
	age; /* of good connections: Redis was lost and found since the older ones were made */
static pthread_key_t connection;
static struct pr_series *hits, *misses, *passed, *kept, *refused, *dropped, *failed, *epochs, *usable;

/* KEYS: scope, epoch. ARGV: field, a ticket, milliseconds to live. {answer} or {nil, ticket}. A scope of
 * another epoch is void. */
static const char get_script[] = "local e = redis.call('GET', KEYS[2]) "
				 "if not e then e = ARGV[2] redis.call('SET', KEYS[2], e) end "
				 "local h = redis.call('HMGET', KEYS[1], ':epoch', ':ticket', ARGV[1]) "
				 "if h[1] == e then return {h[3], h[2]} end "
				 "redis.call('DEL', KEYS[1]) "
				 "redis.call('HSET', KEYS[1], ':epoch', e, ':ticket', ARGV[2]) "
				 "redis.call('PEXPIRE', KEYS[1], ARGV[3]) "
				 "return {false, ARGV[2]}";

/* KEYS: scope, epoch. ARGV: field, the reader's ticket, the answer, most fields. */
static const char put_script[] = "local h = redis.call('HMGET', KEYS[1], ':epoch', ':ticket') "
				 "if h[2] ~= ARGV[2] or h[1] ~= redis.call('GET', KEYS[2]) then return 0 end "
				 "if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then redis.call('HSET', "
				 "KEYS[1], ARGV[1], ARGV[3]) end "
				 "return 1";

/* ---- connections ---- */

static struct timeval limit(void)
{
	return (struct timeval){ .tv_sec = opts.timeout_us / 1000000, .tv_usec = opts.timeout_us % 1000000 };
}

static redisContext *dial(void)
{
	const char *colon = strrchr(opts.address, ':');
	char host[256];

	if (*opts.address == '/')
		return redisConnectUnixWithTimeout(opts.address, limit());
	if (!colon || colon == opts.address)
		return redisConnectWithTimeout(opts.address, 6379, limit());
	(void)snprintf(host, sizeof(host), "%.*s", (int)(colon - opts.address), opts.address);
	return redisConnectWithTimeout(host, atoi(colon + 1), limit());
}

static int is_good(redisContext *c, redisReply *reply)
{
	int good = reply && reply->type != REDIS_REPLY_ERROR && !c->err;

	if (reply)
		freeReplyObject(reply);
	return good;
}

static int greet(redisContext *c)
{
	if (redisSetTimeout(c, limit()) != REDIS_OK)
		return -1;
	if (opts.password && *opts.password && !is_good(c, redisCommand(c, "AUTH %s", opts.password)))
		return -1;
	return cache_ping(c);
}

redisContext *cache_connect(void)
{
	redisContext *c = dial();

	if (c && !c->err && greet(c) == 0)
		return c;
	if (c)
		redisFree(c);
	return NULL;
}

int cache_ping(redisContext *c)
{
	return is_good(c, redisCommand(c, "PING")) ? 0 : -1;
}

/* A thread's own. */
struct link {
	redisContext *c;
	unsigned made;
};

static void unlink_thread(void *link)
{
	struct link *l = link;

	if (l && l->c)
		redisFree(l->c);
	free(l);
}

static void drop_link(void)
{
	unlink_thread(pthread_getspecific(connection));
	(void)pthread_setspecific(connection, NULL);
}

static redisContext *mine(void)
{
	struct link *l = pthread_getspecific(connection);
	unsigned now = atomic_load(&age);

	if (l && l->made != now) {
		drop_link();
		l = NULL;
	}
	if (!l) {
		l = pr_calloc(1, sizeof(*l));
		l->c = cache_connect();
		l->made = now;
		(void)pthread_setspecific(connection, l);
	}
	return l->c;
}

void cache_renew(void)
{
	atomic_fetch_add(&age, 1);
}

/* Whoever comes next need not wait for the same. */
static void give_up(void)
{
	drop_link();
	cache_use(0);
	pr_counter_add(failed, 1);
	watch_wake();
}

/* No answer in time ends the use of the cache; a refusal (no memory) only this one call. */
static redisReply *answered(redisContext *c, redisReply *r)
{
	if (!c || c->err || !r) {
		if (r)
			freeReplyObject(r);
		give_up();
		return NULL;
	}
	if (r->type != REDIS_REPLY_ERROR)
		return r;
	freeReplyObject(r);
	pr_counter_add(failed, 1);
	return NULL;
}

void cache_use(int on)
{
	atomic_store(&in_use, on);
	pr_gauge_set(usable, on);
}

/* ---- what nobody had before ---- */

static int make_ticket(char text[33])
{
	unsigned char random[16];

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return -1;
	for (size_t i = 0; i < sizeof(random); i++)
		(void)snprintf(text + 2 * i, 3, "%02x", random[i]);
	return 0;
}

int cache_epoch(redisContext *c)
{
	char ticket[33];

	if (make_ticket(ticket) < 0)
		return -1;
	if (!is_good(c, redisCommand(c, "SET %s:epoch %s", opts.prefix, ticket)))
		return -1;
	pr_counter_add(epochs, 1);
	return 0;
}

/* ---- readers ---- */

static char *found(const redisReply *r, struct cache_ticket *t)
{
	if (r->type != REDIS_REPLY_ARRAY || r->elements != 2)
		return NULL;
	if (r->element[0]->type == REDIS_REPLY_STRING)
		return pr_strdup(r->element[0]->str);
	if (r->element[1]->type == REDIS_REPLY_STRING && r->element[1]->len == sizeof(t->ticket) - 1)
		memcpy(t->ticket, r->element[1]->str, sizeof(t->ticket));
	return NULL;
}

char *cache_get(const char *scope, const char *field, int64_t life_us, struct cache_ticket *ret)
{
	char ticket[33], *answer = NULL;
	redisContext *c;
	redisReply *r;

	*ret->ticket = '\0';
	(void)snprintf(ret->scope, sizeof(ret->scope), "%s", scope);
	(void)snprintf(ret->field, sizeof(ret->field), "%s", field);
	if (atomic_load(&in_use) && make_ticket(ticket) == 0) {
		c = mine();
		r = c ? redisCommand(c, "EVAL %s 2 %s:%s %s:epoch %s %s %lld", get_script, opts.prefix, scope,
				opts.prefix, field, ticket, (long long)(life_us / 1000))
		      : NULL;
		r = answered(c, r);
		if (r) {
			answer = found(r, ret);
			freeReplyObject(r);
		}
	}
	pr_counter_add(answer ? hits : *ret->ticket ? misses : passed, 1);
	return answer;
}

void cache_put(const struct cache_ticket *t, const char *answer)
{
	redisContext *c;
	redisReply *r;

	HOLD(concert_cache_put);
	if (!*t->ticket || !atomic_load(&in_use))
		return;
	c = mine();
	r = c ? redisCommand(c, "EVAL %s 2 %s:%s %s:epoch %s %s %s %d", put_script, opts.prefix, t->scope,
			opts.prefix, t->field, t->ticket, answer, FIELDS_MAX)
	      : NULL;
	r = answered(c, r);
	if (!r)
		return;
	pr_counter_add(r->type == REDIS_REPLY_INTEGER && r->integer == 1 ? kept : refused, 1);
	freeReplyObject(r);
}

/* ---- what has changed ---- */

int cache_drop(redisContext *c, const char *scopes, size_t n)
{
	const char **argv = pr_calloc(n + 1, sizeof(*argv));
	char *keys = pr_calloc(n, 256);
	int good;

	argv[0] = "UNLINK";
	for (size_t i = 0; i < n; i++) {
		(void)snprintf(keys + 256 * i, 256, "%s:%s", opts.prefix, scopes + 64 * i);
		argv[i + 1] = keys + 256 * i;
	}
	good = is_good(c, redisCommandArgv(c, (int)n + 1, argv, NULL));
	free(argv);
	free(keys);
	if (good)
		pr_counter_add(dropped, n);
	return good ? 0 : -1;
}

/* ---- begin and end ---- */

static void make_metrics(struct pr_metrics *m)
{
	struct pr_family *reads = pr_family_new(m, PR_COUNTER, "postrider_cache_reads_total", "result", 0,
		"Reads that the cache answered (hit), did not know (miss), or was not asked for (off).");
	struct pr_family *writes = pr_family_new(m, PR_COUNTER, "postrider_cache_writes_total", "result", 0,
		"Answers that were kept, or not, because something had changed meanwhile (late).");

	hits = pr_series_get(reads, (const char *const[]){ "hit" });
	misses = pr_series_get(reads, (const char *const[]){ "miss" });
	passed = pr_series_get(reads, (const char *const[]){ "off" });
	kept = pr_series_get(writes, (const char *const[]){ "kept" });
	refused = pr_series_get(writes, (const char *const[]){ "late" });
	dropped = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_cache_dropped_total", "", 0,
		"Scopes taken out of the cache because Postgres told of a change."));
	failed = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_cache_failures_total", "", 0,
		"Calls that Redis did not answer in time, or refused."));
	epochs = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_cache_epochs_total", "", 0,
		"Times that all in the cache was made void, because something may have been missed."));
	usable = pr_series_one(pr_family_new(m, PR_GAUGE, "postrider_cache_in_use", "", 0,
		"1 while answers are taken from Redis; 0: all come from Postgres."));
}

int cache_start(const struct cache_opts *given, struct pr_metrics *m, struct pr_err *err)
{
	opts = *given;
	make_metrics(m);
	if (pthread_key_create(&connection, unlink_thread) != 0)
		return pr_fail(err, PR_RETRY, "no thread-specific data left");
	return strcmp(opts.address, "none") == 0 ? 0 : watch_start(&opts, err);
}

void cache_stop(void)
{
	if (opts.address && strcmp(opts.address, "none") != 0)
		watch_stop();
}
