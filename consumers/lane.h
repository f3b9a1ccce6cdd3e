/* consumers/lane.h -- one lane from the inside: lane.c (rhythm), lane_queue.c (queue), apply.c (the
 * transaction), decide.c (what a failure means), held.c, keyset.c and retry.c (parked keys, dead letters)
 * share it. All of it but the queue belongs to the lane's thread. */
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

/* What becomes of a message; why: message_why. */
struct verdict {
	enum fate fate;
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
	unsigned begun; /* tries of it that never came back, before us */
	int marked;     /* without a database: that we try it stands beside the offset */
	unsigned broke; /* times the connection or the process went while it was alone */
};

struct served {
	struct part *part; /* counted */
	int lane;
	int64_t through; /* read_through when the queue was last seen empty */
	int settled;     /* nothing of it was left when last looked: through holds, whatever else is here */
};

/* One position of a transaction. */
struct step {
	struct part *part; /* borrowed: a message or a served entry holds it */
	int lane;
	int64_t expected, next;
};

struct keyset; /* keyset.c: parked keys of the served parts */

struct lane {
	struct consumer *c;
	int number;
	struct pr_pg *pg;
	struct handler *handler;
	struct message_types types;
	struct topics_tx *topics_tx; /* without a database: its producer. topics_tx.c */
	struct sink_lane *sink;      /* of kind sink: cuts that are open. sink/store_sink.c */
	int roomy;                   /* the backend keeps its memory: make_room */

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
	int torn; /* a message of the transaction does not follow what is done: never, by our own rules */
	int look_first; /* the last batch met a duplicate: ask before trying */
	int loaded;     /* parked keys of what is served are known */
	int opened;     /* the handler was there once: the config is right */
	size_t limit;   /* most messages of the next batch; 1 while a culprit is looked for */
	size_t crowd;   /* nor more than this: larger ones collided with other lanes; 0: none did */
	int64_t crowd_until_us;
	size_t careful; /* so many messages one by one: the last batch took something along */
	unsigned failures;
	int64_t not_before_us; /* monotonic: the first message is tried again then */
	int64_t began_us;      /* wall, when there is a tracer: the transaction under way */
	int64_t told_us;       /* log: dead letters and parked keys */
	int probing;           /* holds the breaker's probe */
	int64_t moved_us, settled_us;
	uint64_t look; /* number of the last one for what is settled */
	struct keyset *keys;
	uint64_t request_seen;
	int64_t look_us; /* monotonic: when to look at inbox.parked again */
};

/* lane_queue.c */
void lane_serve_changes(struct lane *l); /* takes over what the poll thread said is to be served */
void lane_take(struct lane *l);          /* more messages from the queue into work, up to one batch */
void lane_drop_work(struct lane *l, size_t at, size_t n); /* forgets work[at..at + n) */
void lane_drop_dead(struct lane *l);                      /* of work, what is of a part that is dead */
int lane_is_empty(struct lane *l);                        /* nothing is queued, or to be served, any more */
int lane_find_settled(struct lane *l);    /* so many stand behind all that was read of theirs, and may move */
void lane_moved(struct lane *l);          /* steps are committed: positions move in memory */
void lane_done(struct lane *l, size_t n); /* and work[0..n) is: its memory is freed */
void lane_fenced(
	struct lane *l, const struct pr_err *err); /* a higher epoch was met among the parts of steps */

/* lane.c */
int lane_connect(struct lane *l, struct pr_err *err); /* connection, types, handler */
void lane_disconnect(struct lane *l);
int lane_wait(struct lane *l, int64_t us); /* 1: we stop */

/* apply.c: one transaction over work[0..n). */
enum applied {
	APPLIED,  /* a prefix of *ret_n messages is committed */
	FAILED,   /* nothing is; *ret says why, of the whole batch (n > 1) or of the message */
	COLLIDED, /* an id was seen meanwhile: look and try again */
	FENCED,
	BROKEN, /* the connection or the database: err says what */
};
/* What follows when steps are torn: the last guard. */
enum applied lane_torn(struct pr_err *err);
enum applied apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err);
/* w[0..n) of inbox.parked, several from the head of their key on; v.fate HANDLE, or, of one alone, what was
 * decided. *ret_n of them are committed: 0 when a stop cut the try short. *ret_last: 1 when that was all of
 * the key, 0 when not, -1 unknown. */
enum applied apply_parked(struct lane *l, struct work *w, size_t n, size_t *ret_n, int *ret_last,
	struct outcome *ret, struct pr_err *err);
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

/* spans.c: before a message is handled (once it is decoded), and when what became of it is committed */
void spans_begin(const struct lane *l, struct message *m);
void spans_end(const struct lane *l, const struct work *w);

/* keyset.c: parked keys; a message without a key is in nobody's way */
struct keyset *keyset_new(void);
void keyset_free(struct keyset *k);
void keyset_clear(struct keyset *k);
int keyset_has(const struct keyset *k, const struct message *m);
void keyset_add(struct keyset *k, const struct message *m);
void keyset_remove(struct keyset *k, const struct message *m);
size_t keyset_count(const struct keyset *k);
size_t *keyset_careful(
	const struct keyset *k, const struct message *m); /* so many go one by one; NULL: not parked */

/* held.c */
void held_add(struct lane *l, const struct message *m);    /* its key is parked from here on */
void held_remove(struct lane *l, const struct message *m); /* nothing of its key is parked any more */
int held_load(struct lane *l, struct pr_err *err);         /* parked keys of what is served */
void held_forget(struct lane *l);                          /* nothing is served */

/* Asks about all that is served: group, topics, partitions, lanes, lane counts, and how many messages and
 * bytes at most (NULL: neither). */
PGresult *held_ask(struct lane *l, const char *sql, const char *const most[2], struct pr_err *err);

/* Counts a try of w and the n - 1 behind it; a statement of its own transaction. */
struct pr_stmt held_begun_stmt(const struct lane *l, const struct work *w, size_t n, struct args *a);

/* retry.c: one look at inbox.parked; past until_us (monotonic) no more of a key is taken after its head. 1:
 * something was done, -1: broken. */
int held_retry(struct lane *l, int64_t until_us, struct pr_err *err);

/* Statement that holds work w back (FATE_BEHIND, FATE_PARK, FATE_BURY); a is filled. */
struct pr_stmt held_stmt(const struct lane *l, const struct work *w, struct args *a);

#endif
