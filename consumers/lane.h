/* consumers/lane.h -- one lane from the inside: lane.c (queue and rhythm), apply.c (the transaction),
 * decide.c (what a failure means) and held.c (parked keys, dead letters) share it. All of it but the
 * queue belongs to the lane's thread. */
#ifndef CONSUMERS_LANE_H
#define CONSUMERS_LANE_H

#include "consumers/args.h"
#include "consumers/consumer.h"

/* What a transaction does with a message. */
enum fate {
	FATE_HANDLE,   /* to the handler */
	FATE_DONE,     /* handled before (http, exec), not yet stepped over */
	FATE_SEEN,     /* handled before: its id is in inbox.seen */
	FATE_FILTERED, /* not wanted */
	FATE_IGNORE,   /* failed, and the rule says that this is as good as handled */
	FATE_BEHIND,   /* appended to its parked key */
	FATE_PARK,     /* its key is parked from here on */
	FATE_BURY,     /* dead letter */
	FATE_PENDING,  /* stays where it is: tried again */
};

/* A message that may not go to the handler as it is, and why. */
struct verdict {
	enum fate fate;
	struct outcome why;
	int64_t delay_us; /* FATE_PARK, FATE_PENDING: until the next try */
	int undo;         /* FATE_BURY: with what the handler declares as undo */
};

struct work {
	struct message *m;
	struct verdict v;
	int decoded;
	int looked;     /* inbox.look has said that it is new */
	int recorded;   /* its id is in inbox.seen (FATE_DONE) */
	int skip;       /* parked: the operator gives it up */
	int alone;      /* a batch with it never came back: it goes by itself */
	unsigned broke; /* times the connection or the process went while it was alone */
};

struct served {
	struct part *part; /* counted */
	int lane;
	int64_t through; /* read_through when the queue was last seen empty */
	int settled; /* its part drains, and nothing of it is left here: through holds, whatever else is */
};

/* One position of a transaction. */
struct step {
	struct part *part; /* borrowed: a message or a served entry holds it */
	int lane;
	int64_t expected, next;
};

struct keyset; /* held.c: parked keys of the served parts */

struct lane {
	struct consumer *c;
	int number;
	struct pr_pg *pg;
	struct handler *handler;
	struct message_types types;
	int roomy; /* the backend keeps its memory: make_room */

	pthread_mutex_t mutex; /* of the queue and of what is to be served */
	pthread_cond_t changed;
	struct message *head, **tail;
	struct part **wanted; /* counted; taken over by the thread when serve_changed */
	size_t wanted_n;
	int serve_changed;
	atomic_size_t bytes; /* queued and in work */
	atomic_int was_full;
	atomic_int away; /* for the poll thread: not ready to do anything */

	/* the thread's own */
	struct work *work; /* taken from the queue, in order, not yet committed */
	size_t work_n, work_cap;
	int level; /* the queue was empty when last taken from: served[].through counts */
	struct served *served;
	size_t served_n;
	struct step *steps; /* of the transaction under way or just committed */
	size_t steps_n, steps_cap;
	int look_first; /* the last batch met a duplicate: ask before trying */
	int loaded;     /* parked keys of what is served are known */
	int opened;     /* the handler was there once: the config is right */
	size_t limit;   /* most messages of the next batch; 1 while a culprit is looked for */
	size_t careful; /* so many messages one by one: the last batch took something along */
	unsigned failures, retries;
	int64_t not_before_us; /* monotonic: the first message is tried again then */
	int64_t told_us;       /* log: dead letters and parked keys */
	int probing;           /* holds the breaker's probe */
	int64_t moved_us, settled_us;
	struct keyset *keys;
	uint64_t request_seen;
	int64_t look_us; /* monotonic: when to look at inbox.parked again */
};

/* lane.c */
void lane_done(
	struct lane *l, size_t n); /* work[0..n) is committed: positions move in memory, memory is freed */
int lane_connect(struct lane *l, struct pr_err *err); /* connection, types, handler */
void lane_fenced(struct lane *l);                     /* a higher epoch was met among the parts of steps */
int lane_wait(struct lane *l, int64_t us);            /* 1: we stop */

/* apply.c: one transaction over work[0..n). */
enum applied {
	APPLIED,  /* a prefix of *ret_n messages is committed */
	FAILED,   /* nothing is; *ret says why, of the whole batch (n > 1) or of the message */
	COLLIDED, /* an id was seen meanwhile: look and try again */
	FENCED,
	BROKEN, /* the connection or the database: err says what */
};
enum applied apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err);
/* One message of inbox.parked; v.fate HANDLE, or what was decided. *ret_last: 1 when it was the last of its
 * key, 0 when not, -1 unknown. */
enum applied apply_parked(
	struct lane *l, struct work *w, int *ret_last, struct outcome *ret, struct pr_err *err);
/* Positions of lanes without messages: of all that are served when there is no work, else of settled ones. */
enum applied move_idle(struct lane *l, struct pr_err *err);

/* decide.c: the verdict on one message that failed alone. Opens the breaker or stops the consumer where the
 * rule says so (then FATE_PENDING). */
void decide(struct lane *l, struct message *m, const struct outcome *why, struct verdict *ret);
int64_t delay_of(const struct pr_rule *rule, const struct message *m, const struct outcome *why);
const struct pr_rule *rule_of(const struct lane *l, const struct outcome *why);
/* Keys that are held back are in memory, so their number is bounded: past it nothing more is read, and a lane
 * with another one stands. 0: it is reached, and health was told. */
int may_park(struct lane *l);
void breaker_open(struct lane *l, const struct outcome *why, int64_t retry_after_us);
void breaker_close(struct lane *l);
void breaker_release(struct lane *l);                      /* nothing to probe with: another lane's turn */
int breaker_lets_go(struct lane *l, int64_t *ret_wait_us); /* 1: go (and maybe probe) */

/* held.c */
void held_add(struct lane *l, const struct message *m); /* its key is parked from here on */
struct keyset *keyset_new(void);
void keyset_free(struct keyset *k);
int keyset_has(const struct keyset *k, const struct message *m);
void keyset_add(struct keyset *k, const struct message *m);
void keyset_remove(struct keyset *k, const struct message *m);
size_t keyset_count(const struct keyset *k);
int held_load(struct lane *l, struct pr_err *err); /* parked keys of what is served */
void held_forget(struct lane *l);                  /* nothing is served */
int held_retry(
	struct lane *l, struct pr_err *err); /* one look at inbox.parked; 1: something was done, -1: broken */

/* Statement that holds work w back (FATE_BEHIND, FATE_PARK, FATE_BURY); a is filled. */
struct pr_stmt held_stmt(const struct lane *l, const struct work *w, struct args *a);

#endif
