/* consumers/tx.h -- a lane's transaction being put together: tx.c builds its statements, fates.c says which
 * of them a message needs, apply.c sends them and reads what came back. */
#ifndef CONSUMERS_TX_H
#define CONSUMERS_TX_H

#include "consumers/lane.h"

#define HELD_MOST 9 /* messages held back in one transaction: each is up to three of the 32 statements */

/* A transaction being put together. */
struct tx {
	struct lane *l;
	struct work *w; /* w[0..n) */
	size_t n;
	struct message **m; /* those with FATE_HANDLE */
	size_t *index;      /* of m[i] in w */
	size_t m_n;
	struct args args[3 * HELD_MOST + 6];
	struct pr_stmt s[3 * HELD_MOST + 8];
	int args_n, s_n;
	int handler_at, remember_at, unpark_at; /* statements; -1: none */
	int last;                               /* of a parked message: as apply_parked tells it */
};

/* apply.c: of effects outside the transaction. Fates by the handler's answers, one for each of t->m; what
 * undoes a message that is to be buried, 0: it is not undone, and its fate is another. */
void take_answers(struct tx *t, const struct outcome *out);
int undone_outside(struct tx *t, struct work *w, struct pr_err *err);

/* apply.c: after the commit of w[0..n). */
void account(struct lane *l, const struct work *w, size_t n);
void time_it(struct lane *l, int64_t began_us, const struct message *first);

/* fates.c */
int lane_dedupes(const struct lane *l);
int work_is_held(const struct work *w); /* its fate is to be parked or buried */

/* Decides on a message without an id. */
void undecodable(struct lane *l, struct work *w);

/* The fates of work[0..n), and how many of them one transaction takes. */
size_t sort_work(struct lane *l, size_t n);

/* tx.c: over w[0..n), which it borrows. */
void tx_init(struct tx *t, struct lane *l, struct work *w, size_t n);
void tx_statements_free(struct tx *t); /* to begin another round trip of the same work */
void tx_free(struct tx *t);

struct args *tx_args(struct tx *t);                                  /* the next statement's parameters */
int tx_add(struct tx *t, struct args *a, const char *sql, int sync); /* its number */
int tx_plain(struct tx *t, const char *sql, int sync);

/* Statements, in the order of a transaction. */
void tx_attempt(struct tx *t);
void tx_remember(struct tx *t);
void tx_handler(struct tx *t, const char *sql);
void tx_held(struct tx *t);
void tx_advance(struct tx *t, int sync);

/* Positions behind w[0..n) into l->steps; behind all that was read when these are all there is. */
void take_steps(struct lane *l, const struct work *w, size_t n);
struct step *step_of(struct lane *l, struct part *p, int lane);
int step_by_place(const void *x, const void *y); /* the order in which rows are locked */

/* Idle positions that have something to move on to, into l->steps; how many. */
size_t take_idle(struct lane *l);

/* Parameters group, ids, hashes of the messages that pick chooses; returns how many. */
size_t tx_ids(const struct tx *t, struct args *a, int (*pick)(const struct work *w));
int to_look(const struct work *w);
int to_record(const struct work *w);
int undoes(const struct lane *l); /* the handler declares what undoes a message */

#endif
