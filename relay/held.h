/* relay/held.h -- the two rooms behind hold.h, park.c (parked keys) and wait.c (waiting topics), and what
 * they share: one session with Postgres, which hold.c opens and ends. Nobody else includes this. */
#ifndef RELAY_HELD_H
#define RELAY_HELD_H

#include "relay/hold.h"

#include "lib/json.h"
#include "lib/pg.h"

struct held {
	struct relay *r;
	struct topics *topics;
	struct pr_pg *pg; /* alive between held_connect and the first failure */
};

/* hold.c. Every call of a room that may fail has its session behind it: connect before. */
int held_connect(struct held *s, struct pr_err *err) PR_MUSTCHECK;
/* A transaction broke, or its COMMIT is in doubt: nothing more on this session. What Postgres refuses there
 * is no verdict on an event. Returns -1. */
int held_abandon(struct held *s, struct pr_err *err);
/* COPY of a query over ROW_COLUMNS into a new batch of at most `most` events, *ret_cut when it has enough
 * bytes before; then the session is over. */
struct batch *held_read(struct held *s, const char *where, size_t most, int *ret_cut, struct pr_err *err);

/* ---------------------------------------------------------------- park.c */

struct park;

struct park *park_new(struct held *s);
void park_free(struct park *p);
void park_forget(struct park *p);
int park_load(struct park *p, struct pr_err *err) PR_MUSTCHECK;
int park_delete(struct park *p, const int64_t *seqs, size_t n, struct pr_err *err) PR_MUSTCHECK;

int park_holds(const struct park *p, const struct topic *topic, const struct event *e);
int park_event(struct park *p, struct topic *topic, const struct event *e, int head, const char *reason,
	const char *code, struct pr_err *err) PR_MUSTCHECK;
/* Held back by its seq, and with nothing before it: it goes when its topic takes events again. */
int park_to_go(struct park *p, struct topic *topic, const struct event *e, struct pr_err *err) PR_MUSTCHECK;
int park_dirty(const struct park *p);
int park_flush(struct park *p, struct pr_err *err) PR_MUSTCHECK; /* inside a transaction */

/* Looks at the operator's requests: anew from the first, else from where the last look ended. */
int park_look(struct park *p, int anew, struct pr_err *err) PR_MUSTCHECK;
int park_unseen(const struct park *p); /* the last look did not come to the end */
int park_going(const struct park *p);  /* some key may go */
/* The next of those, after park_flush: ret->batch stays NULL when all of them turned out to be free. */
int park_slice(struct park *p, size_t most, struct release *ret, struct pr_err *err) PR_MUSTCHECK;
int park_released(struct park *p, const struct release *rel, struct pr_err *err) PR_MUSTCHECK;
int park_refused(struct park *p, const struct release *rel, size_t i, const char *reason, const char *code,
	struct pr_err *err) PR_MUSTCHECK;
void park_count(const struct park *p, uint64_t *ret_keys, uint64_t *ret_events, int64_t *ret_oldest_us);

/* ---------------------------------------------------------------- wait.c */

struct wait;

struct wait *wait_new(struct held *s);
void wait_free(struct wait *w);
void wait_forget(struct wait *w);
int wait_load(struct wait *w, struct pr_err *err) PR_MUSTCHECK;
int wait_is_out(
	struct wait *w, int64_t entry, int64_t through, size_t events, struct pr_err *err) PR_MUSTCHECK;

/* 1: it fits no range and is to be parked. */
int wait_event(struct wait *w, struct topic *topic, const struct event *e, struct pr_err *err) PR_MUSTCHECK;
int wait_dirty(const struct wait *w);
int wait_flush(struct wait *w, struct pr_err *err) PR_MUSTCHECK; /* inside a transaction */

/* Ranges of topics that are there again grow no more: to be flushed before one is released. */
void wait_freeze(struct wait *w);
/* The oldest range that may go and that `covered` shows; ret->batch stays NULL when there is none. */
int wait_slice(struct wait *w, const struct pr_mark *covered, size_t most, struct release *ret,
	struct pr_err *err) PR_MUSTCHECK;
int wait_released(struct wait *w, const struct release *rel, struct pr_err *err) PR_MUSTCHECK;
/* Copies for /status.json; adds to *events and lowers *oldest_us. */
struct waiting_topic *wait_list(const struct wait *w, size_t *ret_n, uint64_t *events, int64_t *oldest_us);

#endif
