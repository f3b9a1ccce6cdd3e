/* producers/concert/cache.h -- answers kept in Redis, for all instances of the service; gives up at once when
 * Redis does not answer, and never gives what Postgres no longer says.
 *
 * An answer is a field of a hash, its scope: "s:17", all pages of the seats of schedule 17. What has changed
 * is told by Postgres with the commit (NOTIFY, triggers of schema.sql); then the scope goes, whole. Right in
 * every interleaving, because
 * - a scope is made with a ticket that nobody had before, and an answer is written only while the scope has
 *   the ticket that its reader saw before he asked Postgres. Whoever asked before a change finds the scope
 * gone, or made anew: his answer is not kept. A flush is the same.
 * - each instance listens itself, and uses the cache only while it hears Postgres and could take away all
 * that it has been told of. Who may have missed something (a start, a lost connection, a Redis that did not
 * answer) begins a new epoch first, which makes all scopes before it void. What remains: the moment between a
 * commit and its notification. A scope lives for cache.life at most, whatever happens. */
#ifndef CONCERT_CACHE_H
#define CONCERT_CACHE_H

#include "lib/err.h"
#include "lib/metrics.h"

#include <stddef.h>
#include <stdint.h>

struct cache_opts {
	const char *address;  /* "127.0.0.1:6379" or a socket's path; "none": there is no cache */
	const char *password; /* NULL: none */
	const char *prefix;   /* of all keys */
	int64_t timeout_us;   /* of connecting, and of each call */
	const char *conninfo; /* who tells what has changed */
	const char *appname;
};

/* Starts the thread that listens. Borrows the strings until cache_stop. */
int cache_start(const struct cache_opts *opts, struct pr_metrics *m, struct pr_err *err) PR_MUSTCHECK;
void cache_stop(void);

/* A reader's place between cache_get and cache_put. */
struct cache_ticket {
	char scope[64], field[160], ticket[33];
};

/* The answer (malloc'd), or NULL: ask Postgres, then cache_put. Any thread; waits for opts.timeout_us at
 * most. */
char *cache_get(const char *scope, const char *field, int64_t life_us, struct cache_ticket *ret);
/* Keeps it if nothing of it has changed meanwhile. */
void cache_put(const struct cache_ticket *t, const char *answer);

/* ---- between cache.c and watch.c ---- */

struct redisContext;

/* NULL: no answer in time, or a refusal. Each on its own connection, of one thread. */
struct redisContext *cache_connect(void);
int cache_epoch(struct redisContext *c);                              /* begins a new one; 0 or -1 */
int cache_ping(struct redisContext *c);                               /* 0 or -1 */
int cache_drop(struct redisContext *c, const char *scopes, size_t n); /* n texts of 64 bytes; 0 or -1 */

int watch_start(const struct cache_opts *opts, struct pr_err *err) PR_MUSTCHECK;
void watch_stop(void);
void watch_wake(void); /* Redis has not answered somebody */
/* Whether the cache may be used now. */
void cache_use(int on);
/* The readers' connections are of no use any more. */
void cache_renew(void);

#endif
