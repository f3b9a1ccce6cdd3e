/* producers/queue/queue.h -- what the files of postrider-queue know of each other: redis.c speaks to Redis;
 * keeper.c admits, expires, passes changes on to Redis, and rebuild.c makes Redis anew; view.c is what this
 * process knows of all tokens, so that a status check waits for nobody, and follow.c keeps it fresh; facts.c
 * publishes that there were checks; limit.c bounds them, known.c makes them
 * cheap. */
#ifndef QUEUE_H
#define QUEUE_H

#include "lib/clock.h"
#include "lib/service.h"

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdatomic.h>

struct queue_conf {
	struct pr_service_conf service;
	char *redis_address, *redis_password;
	int64_t redis_timeout_us;
	int64_t users, every_us, active_for_us, late_us;
	int64_t rate, burst, stale_us, tokens;
	int64_t facts;
	int64_t keep_us;
	int64_t rotate_us, ahead_us;
};

extern struct queue_conf conf;

#define PREFIX    "queue:"
#define LOG_KEPT  "100000" /* entries; who is further behind reads Postgres again */
#define MARK_SIZE 128

/* ---- a thread that works in turns, and may be woken between them ---- */

struct turns {
	pthread_mutex_t mutex;
	pthread_cond_t woken;
	int wanted, stopping, running;
	pthread_t thread;
};

int turns_start(struct turns *t, const char *name, void *(*run)(void *), void *arg, struct pr_err *err);
void turns_wake(struct turns *t);
/* Until woken or us have passed; 0: it is time to end. */
int turns_rest(struct turns *t, int64_t us);
int turns_going(struct turns *t);
void turns_stop(struct turns *t); /* waits for its turn to end */

/* ---- Redis ---- */

struct redis;

enum script {
	SCRIPT_ISSUE,
	SCRIPT_APPLY,
	SCRIPT_ADMIT,
	SCRIPT_SETTLE,
	SCRIPT_OVERDUE,
	SCRIPT_REBUILD,
	SCRIPTS
};

int redis_address_ok(const char *address);
/* Fails at once while Redis is known to be away. Each call has redis.timeout. */
struct redis *redis_open(struct pr_err *err);
void redis_close(struct redis *r); /* accepts NULL */
int redis_ok(const struct redis *r);
/* The server's process: another one after each start. */
const char *redis_run_id(const struct redis *r);
/* NULL on failure: an error of Redis, too. Code "EPOCH": what we know of this Redis is not so any more. */
redisReply *redis_call(struct redis *r, int argc, const char *const *argv, struct pr_err *err);
redisReply *redis_script(
	struct redis *r, enum script script, int keys, int argc, const char *const *argv, struct pr_err *err);
int redis_lost_epoch(const struct pr_err *err);

/* Sessions of the workers: one is taken, and given back. What was opened before Redis started anew is dead by
 * then. */
struct redis *redis_take(struct pr_err *err);
void redis_give(struct redis *r);
void redis_drop(struct redis *r); /* a live one that is not to be used again, nor any other that rests */
void redis_pool_close(void);

/* ---- the mark of the Redis that is ours ---- */

/* 0: none is known. */
int mark_get(char mark[MARK_SIZE]);
void mark_set(const char *mark);
/* The server is the process that the mark was made for. */
int mark_of(const char *mark, const char *run_id);

/* ---- the view ---- */

struct view;

struct shown {
	char state; /* 'W', 'A', 'C', 'E'; 0: not heard of */
	uint32_t version;
	int64_t expire_us; /* wall clock */
	int64_t ahead;     /* of who waits: how many wait before him */
};

struct view *view_new(void);
void view_free(struct view *v);
/* What is older than what is known changes nothing. until: when nobody may ask for it any more. */
void view_set(struct view *v, int64_t concert, int64_t number, char state, uint32_t version,
	int64_t expire_us, int64_t until_us);
/* "1-900,902". -1: malformed. */
int view_set_ranges(struct view *v, int64_t concert, const char *numbers, char state, uint32_t version,
	int64_t expire_us);
void view_get(const struct view *v, int64_t concert, int64_t number, struct shown *ret);
void view_trim(struct view *v, int64_t now_us);

/* The one that this process shows. */
int show_get(
	int64_t concert, int64_t number, struct shown *ret); /* 0: none yet, or one too old to be shown */
void show_set(int64_t concert, int64_t number, char state, uint32_t version, int64_t expire_us);
struct view *show_lock(void); /* NULL: none yet; locked all the same */
void show_unlock(void);
void show_replace(struct view *v); /* takes it */
void show_fresh(void);

/* ---- threads ---- */

int keeper_start(struct pr_service_run *run, struct pr_err *err);
void keeper_wake(void);
void keeper_stop(void);
/* -1: what keeps it from working; err may be NULL. */
int keeper_trouble(struct pr_err *err);
/* With the lock that one rebuilder holds: makes Redis anew from Postgres, unless it is ours already. */
int rebuild(struct redis *r, struct pr_pg *pg, int *ret_built, struct pr_err *err);

int follow_start(struct pr_err *err);
void follow_stop(void);

struct fact {
	char token[40], user[40];
	int64_t concert, position, at_us;
	char state;
};

int facts_start(struct pr_metrics *metrics, struct pr_err *err);
void facts_put(const struct fact *fact);
void facts_stop(void);

/* What a token says of itself, and who it is for. */
struct said {
	char token[40], user[40], active_at[40];
	int64_t concert, number, active_us;
	int64_t expires; /* seconds since 1970 */
};

void known_init(void);
void known_free(void);
/* The keys have changed. */
void known_forget(void);
/* Before the token is verified: what is found good by the keys that there were then. */
uint64_t known_now(void);
int known_get(const char *token, struct said *ret);
void known_put(const char *token, const struct said *said, uint64_t found);

/* Whether this token may be checked now; *ret_s: after how many seconds. */
int limit_pass(uint64_t token, int *ret_s);

const char *state_word(char state);

#endif
