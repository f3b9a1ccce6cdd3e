/* producers/concert/watch.c -- the thread that hears from Postgres what has changed, and takes it out of the
 * cache. Refuses to let the cache be used while it does not hear, or could not do so. */
#include "producers/concert/cache.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/log.h"
#include "lib/pg.h"

#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SCOPES_MAX   512    /* of one call */
#define HEAR_US      PR_SEC /* Postgres must answer as often, or may have gone without a word */
#define PAUSE_LOW_US (100 * PR_MS)
#define PAUSE_US     (2 * PR_SEC)

static struct {
	const struct cache_opts *opts;
	pthread_t thread;
	int wake_fd, started;
	_Atomic int stopping;
	struct pr_pg *pg;
	redisContext *redis;
	int missed;        /* something may have changed that we were not told, or could not take out */
	unsigned failures; /* one after the other */
	int64_t heard_us;  /* Postgres answered */
	int said;          /* that the cache is not used */
	size_t n;          /* scopes to take out */
	char scopes[SCOPES_MAX][64];
} w = { .wake_fd = -1 };

void watch_wake(void)
{
	uint64_t one = 1;

	if (w.wake_fd >= 0)
		(void)!write(w.wake_fd, &one, sizeof(one));
}

/* ---- Postgres ---- */

static int listen_to(struct pr_err *err)
{
	struct pr_pg_opts opts = {
		.conninfo = w.opts->conninfo, .appname = w.opts->appname, .timeout_us = HEAR_US, .wake_fd = -1
	};

	if (w.pg && pr_pg_ok(w.pg))
		return 0;
	cache_use(0);
	w.missed = 1;
	w.n = 0;
	pr_pg_close(w.pg);
	w.pg = NULL;
	if (pr_pg_open(&opts, &w.pg, err) < 0 || pr_pg_run(w.pg, "LISTEN concert_changed", 0, NULL, err) < 0)
		return -1;
	w.heard_us = pr_mono_us();
	return 0;
}

/* With the answer comes all that was told before it. */
static int ask(struct pr_err *err)
{
	if (pr_pg_run(w.pg, "SELECT 1", 0, NULL, err) < 0) {
		pr_pg_close(w.pg);
		w.pg = NULL;
		return -1;
	}
	w.heard_us = pr_mono_us();
	return 0;
}

/* A connection that was cut without a word looks like one that is silent. */
static int still_there(struct pr_err *err)
{
	return pr_mono_us() - w.heard_us < HEAR_US ? 0 : ask(err);
}

/* ---- Redis ---- */

static void hang_up(void)
{
	if (w.redis)
		redisFree(w.redis);
	w.redis = NULL;
}

static int take_out(void)
{
	size_t n = w.n;

	w.n = 0;
	if (n == 0 || w.missed) /* the epoch that must come first makes all of it void */
		return 0;
	/* What cannot be taken out is made void by a new epoch, and not read until then. */
	if (w.redis && cache_drop(w.redis, w.scopes[0], n) == 0)
		return 0;
	cache_use(0);
	w.missed = 1;
	hang_up();
	return -1;
}

static int add(const char *kind, long long id)
{
	char *scope = w.scopes[w.n];

	if (id)
		(void)snprintf(scope, sizeof(w.scopes[0]), "%s:%lld", kind, id);
	else
		(void)snprintf(scope, sizeof(w.scopes[0]), "%s", kind);
	for (size_t i = 0; i < w.n; i++)
		if (strcmp(w.scopes[i], scope) == 0)
			return 0;
	return ++w.n == SCOPES_MAX ? take_out() : 0;
}

/* "c <concert>": it, its schedules and the list; "s <schedule> <concert>": its seats, how many are free. */
static int note(const char *text)
{
	long long a = 0, b = 0;

	if (sscanf(text, "s %lld %lld", &a, &b) == 2)
		return add("s", a) < 0 || add("c", b) < 0 ? -1 : 0;
	if (sscanf(text, "c %lld", &a) == 1)
		return add("c", a) < 0 || add("list", 0) < 0 ? -1 : 0;
	return 0;
}

static int hear(struct pr_err *err)
{
	PGconn *conn = pr_pg_conn(w.pg);
	PGnotify *said;
	int rc = 0;

	if (PQconsumeInput(conn) == 0) {
		(void)pr_fail(err, PR_RETRY, "postgres: %s", PQerrorMessage(conn));
		pr_pg_close(w.pg);
		w.pg = NULL;
		return -1;
	}
	while ((said = PQnotifies(conn))) {
		if (note(said->extra) < 0)
			rc = pr_fail(err, PR_RETRY, "redis does not answer");
		PQfreemem(said);
	}
	if (take_out() < 0)
		rc = pr_fail(err, PR_RETRY, "redis does not answer");
	return rc;
}

static int lost(struct pr_err *err)
{
	hang_up();
	return pr_fail(err, PR_RETRY, "redis does not answer");
}

/* All that may be in it is right, or void. */
static int trust(struct pr_err *err)
{
	if (!w.redis) {
		w.redis = cache_connect();
		cache_renew();
	}
	if (!w.redis || cache_ping(w.redis) < 0)
		return lost(err);
	/* While it was away something may have been committed that is still on its way to us. */
	if (ask(err) < 0 || hear(err) < 0)
		return -1;
	if (w.missed && cache_epoch(w.redis) < 0)
		return lost(err);
	w.missed = 0;
	cache_use(1);
	return 0;
}

/* ---- the thread ---- */

/* One line when it goes, one when it is back. */
static void say(const struct pr_err *err)
{
	if (err && !w.said)
		pr_log_err(PR_WARN, "the cache is not used", err);
	else if (!err && w.said)
		pr_log(PR_INFO, "the cache is used again");
	w.said = err != NULL;
}

/* 1: a reader has had no answer. pg: also until Postgres tells something. */
static int wait_for_news(struct pr_pg *pg, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = w.wake_fd, .events = POLLIN },
		{ .fd = pg ? PQsocket(pr_pg_conn(pg)) : -1, .events = POLLIN } };
	uint64_t n;

	(void)poll(fds, 2, timeout_ms);
	return (fds[0].revents & POLLIN) != 0 && read(w.wake_fd, &n, sizeof(n)) > 0;
}

static int look(int *doubted, struct pr_err *err)
{
	if (listen_to(err) < 0 || still_there(err) < 0 || hear(err) < 0)
		return -1;
	if (!*doubted && !w.missed && w.failures == 0)
		return 0;
	*doubted = 0;
	return trust(err);
}

static void *watch(void *arg)
{
	int doubted = 1;
	struct pr_err err;

	(void)arg;
	while (!atomic_load(&w.stopping)) {
		if (look(&doubted, &err) == 0) {
			say(NULL);
			w.failures = 0;
			doubted |= wait_for_news(w.pg, (int)(HEAR_US / PR_MS));
			continue;
		}
		cache_use(0);
		say(&err);
		doubted = 1;
		(void)wait_for_news(NULL, (int)(pr_backoff_us(w.failures++, PAUSE_LOW_US, PAUSE_US) / PR_MS));
	}
	cache_use(0);
	hang_up();
	pr_pg_close(w.pg);
	return NULL;
}

int watch_start(const struct cache_opts *opts, struct pr_err *err)
{
	w.opts = opts;
	w.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w.wake_fd < 0)
		return pr_fail(err, PR_RETRY, "no eventfd left");
	if (pr_thread_start(&w.thread, "cache", watch, NULL, err) < 0)
		return -1;
	w.started = 1;
	return 0;
}

void watch_stop(void)
{
	atomic_store(&w.stopping, 1);
	watch_wake();
	if (w.started)
		(void)pthread_join(w.thread, NULL);
	if (w.wake_fd >= 0)
		(void)close(w.wake_fd);
	w.wake_fd = -1;
}
