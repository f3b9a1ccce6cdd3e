/* consumers/consumer.h -- one consumer: its threads, what they share, and how well it is.
 *
 * group (group.c)    the poll thread: Kafka -> lanes; owns the consumer handle; never waits for a lane,
 *                    a handler or Postgres, so that it never leaves the group
 * claim (claim.c)    takes assigned partitions over in Postgres (epochs), for the poll thread
 * lanes (lane.c)     n threads, each a connection and a handler: one transaction per batch; n may change
 *                    while we run (lanes.c)
 * keeper (keeper.c)  beside the way: rotation of inbox.seen, counts for people, dead letters to their topic,
 *                    orders of the operator, replay jobs
 * http (lib/http)    reads health, takes short locks
 *
 * Everything shared is in the queues, in struct part, or below: atomics, or under the one mutex. */
#ifndef CONSUMERS_CONSUMER_H
#define CONSUMERS_CONSUMER_H

#include "consumers/handler.h"
#include "consumers/hang.h"
#include "consumers/message.h"

#include "lib/health.h"
#include "lib/http.h"
#include "lib/metrics.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---------------------------------------------------------------- a partition that is ours */

struct part_lane {
	int64_t next; /* committed next offset, as in inbox.position; after claim: the lane's thread only */
	_Atomic int64_t shown; /* the same, for the poll thread and the pages */
	int64_t pushed; /* behind the last message that went to the lane; 0: none did. The poll thread's */
	int64_t attempt_offset, attempt_batch, attempts, ended; /* inbox.attempt as the claim found it */
	int64_t suspects; /* so many of the next messages were begun together by who died of one; lane.c */
	/* Without a database: what is begun here stands beside the offset marked_at. topics_apply.c */
	enum { NOT_MARKED, MARKED, MOVED_ON } marked;
	int64_t marked_at;
	int64_t held_us;  /* what the lane keeps beside its queue: record time of the oldest one, or since
			   * when; 0: nothing */
	uint64_t seen_at; /* the lane's last look that found something of it; lane_find_settled */
	/* Record time (wall) of the oldest one pushed and not committed, INT64_MAX: none. Kept by lane.c. */
	_Atomic int64_t oldest_us;
};

#define LANES_MOST 64 /* workers of a process: the option's bound */

/* How far a log is known to be handled, monotonic: all that was in it by idle_us is; 0: not known. told_end:
 * where it ended at told_us, which is still to be handled; told_us 0: nothing is. */
struct log_end {
	int64_t idle_us, told_us, told_end;
};

/* How a part ends when its lane count is to change: nothing of it may be under way when it is claimed anew.
 */
enum ending {
	PART_GOES_ON,
	PART_DRAINS, /* all that was read of it is in the lanes, and nothing more is read */
	PART_CLOSED, /* its lanes are done: nothing that is not in their order may begin (part_enter) */
};

/* Made by a claim, shared by the poll thread and the lanes, freed with its last reference. A partition
 * that is lost and comes back is another struct part with another epoch. */
#define LAG_KEPT 6 /* samples of a partition's lag, for its trend */

struct part {
	atomic_int refs;
	char *topic;
	int32_t partition;
	int64_t epoch;   /* ours; whoever has a higher one owns it now */
	int lane_count;  /* of its rows in inbox.position: may differ from what is wanted until it is drained
			  */
	int workers;     /* its lanes are spread over so many threads, from its claim to its end */
	int first;       /* thread of lane 0 */
	int own_lane;    /* one lane, for ever: the offset in Kafka says how far it is */
	int stage;       /* 0: of a source; n: of its n-th retry topic. topics.c */
	int wanders;     /* its records may have stood in other topics before: their headers tell. spring.c */
	int fresh;       /* no position yet: from the earliest record */
	atomic_int dead; /* revoked, or fenced: nothing of it may be handled any more */
	atomic_int fenced; /* a lane met a higher epoch: the poll thread claims again */
	_Atomic int64_t
		again_us;  /* monotonic: a lane wants it claimed and read again, then; 0: no. It is dead */
	atomic_int ending; /* enum ending, set by the poll thread */
	atomic_int aside;  /* parked and replayed messages under way */
	_Atomic int64_t
		read_through; /* every record below it has been pushed (or is below its lane's next) */
	_Atomic int64_t end;  /* high watermark as Kafka last told; -1 unknown */
	_Atomic int64_t low;  /* nothing is left of the log below it: told when a position is; 0: not known */
	_Atomic int64_t level_us; /* wall: when it was last seen with nothing to do; 0: not yet. keeper.c */
	_Atomic int64_t
		lag_ms[LAG_KEPT]; /* as of the last samples, newest first, and 1; 0: not known. health.c */
	_Atomic int64_t parked_oldest_us; /* wall: record time of the oldest one parked; 0: none. keeper.c */
	struct log_end end_now;           /* the saga clock's: saga/ends.c */
	struct part_lane lane[];          /* lane_count of them */
};

struct part *part_hold(struct part *p);     /* one more reference; returns p */
void part_drop(struct part *p);             /* accepts NULL */
void part_drop_many(struct part *p, int n); /* n references at once */

/* 1: a parked or replayed message may begin, and ends with part_leave. 0: the part is closed. */
int part_enter(struct part *p);
void part_leave(struct part *p);

/* Lowest committed next offset of its lanes: what Kafka is told, and where reading begins. */
int64_t part_next(const struct part *p);

/* Oldest of its lanes' oldest_us; INT64_MAX: nothing is waiting. */
int64_t part_oldest_us(const struct part *p);

/* Every record below the end of its log that Kafka told is handled, or was none of ours. */
int part_is_handled(const struct part *p, int64_t end);

/* ---------------------------------------------------------------- the consumer */

enum trouble {
	TROUBLE_POSTGRES, /* a lane or the claim cannot reach or use the database */
	TROUBLE_KAFKA,
	TROUBLE_HANDLER,     /* what is behind the handler is down: the breaker is open */
	TROUBLE_GAP,         /* records were lost before we read them, or the position is past the end */
	TROUBLE_PARKED,      /* limits.parked_keys reached */
	TROUBLE_REFUSED,     /* PR_STOP */
	TROUBLE_SINK,        /* files, the API, the table or the object store take nothing */
	TROUBLE_TRANSACTION, /* without a database: a lane cannot commit to Kafka */
	TROUBLE_HUNG,        /* calls of a C handler do not come back */
	TROUBLE_KEEPER,
	TROUBLE_DEAD_LETTER_TOPIC,
	TROUBLE_RELOAD,
	TROUBLE_SAGA_STUCK, /* sagas wait for a person */
	TROUBLE_SAGA_CLOCK, /* nothing becomes due at the moment */
	TROUBLE_TIMERS,     /* the same, of timers */
	TROUBLE_PUSH,       /* notifications are not sent */
	TROUBLE_ALERTS,     /* the webhook takes no alerts */
	TROUBLE_CANARY,     /* canaries do not come back */
	TROUBLE_COUNT
};

/* Label outcome of postrider_consumer_handled_total. */
enum handled { HANDLED, DUPLICATE, FILTERED, IGNORED, PARKED, DEAD_LETTER, HANDLED_COUNT };

struct lane;   /* lane.c */
struct store;  /* store.h */
struct topics; /* topics.h */

struct consumer {
	struct pr_consumer_conf *conf;
	const struct store *store;
	struct topics *topics; /* NULL: there is a database */
	const struct handler_ops *ops;
	int wake_fd; /* eventfd, readable once we stop */
	atomic_int stopping, exit_code;
	_Atomic int64_t end_us; /* monotonic: handlers' work shall have ended then; 0: we do not stop */
	struct lane *lanes[LANES_MOST];
	struct hang hangs[LANES_MOST]; /* a lane's each */
	atomic_int lanes_ordered;      /* by the operator, for all members; 0: the config's. keeper.c */
	atomic_int lanes_used; /* what is read is spread over so many: they share the buffer. group.c */
	int64_t started_us;

	/* That wait for what they commit to, the claim counted as one: store.trouble stands. */
	atomic_int broken_lanes;
	atomic_int paused; /* by the operator (inbox.consumer): nothing is handled; the group is kept */

	/* breaker: closed (0) or the monotonic time of the next probe; one lane takes the probe */
	_Atomic int64_t breaker_probe_us;
	atomic_uint breaker_failures;
	atomic_int breaker_taken;

	/* lanes -> everybody */
	_Atomic uint64_t handled[HANDLED_COUNT], retried, fenced;
	_Atomic uint64_t parked_keys;

	/* keeper -> everybody */
	atomic_int ready; /* database and inbox are what we need: group and lanes are started */
	_Atomic int64_t postgres_contact_us, kafka_contact_us; /* monotonic: last known to be there */
	atomic_int counted;                                    /* the group's numbers below are known */
	_Atomic uint64_t reconnects;                           /* sessions opened anew */
	_Atomic uint64_t dead_letters;                         /* waiting for a decision */
	_Atomic uint64_t group_parked_keys, group_parked_events, retrying, replays; /* of the whole group */
	_Atomic int64_t group_parked_oldest_us;                                     /* wall; INT64_MAX none */
	_Atomic uint64_t request; /* inbox.consumer.request as last seen: lanes look at parked rows again */

	/* group -> everybody */
	atomic_int kafka_up, assigned, rebalances;
	atomic_int joined; /* a member, and no rebalance is under way */
	_Atomic uint64_t
		lost; /* records that were gone before we read them, stepped over (on_gap = "skip") */

	rd_kafka_t *replay_reader; /* left over when we stopped; replay.c */

	struct {
		struct pr_metrics *registry;
		struct pr_series *batch_events, *handle_seconds, *delay_seconds;
	} m;

	struct pr_tracer *tracer; /* NULL: nothing is traced */

	struct pr_board board; /* enum trouble */
	struct pr_history *history;

	pthread_mutex_t mutex; /* of what follows */
	struct part **parts;   /* counted references, for the pages */
	size_t parts_n;
	pthread_t lane_threads[LANES_MOST];
	int lanes_begun; /* so many threads */
};

void consumer_stop(
	struct consumer *c, int exit_code); /* any thread; the first exit code that is not 0 stays */

/* ---------------------------------------------------------------- lanes, as the poll thread sees them */

struct lane *lane_new(struct consumer *c, int number);
void lane_free(struct lane *l); /* its thread has ended */
void *lane_thread(void *lane);

/* Worker that serves lane `lane` of the part: the same as long as the part lives, else a key could be in two
 * workers at once. */
struct lane *lane_of(struct consumer *c, const struct part *p, int lane);

/* Whether the lane takes another message now: below its share of limits.buffer_bytes. */
int lane_has_room(struct lane *l);

/* It has no session, or cannot use it: nothing of it is under way, and nothing will be soon. */
int lane_is_away(struct lane *l);

/* Takes the list, in order. Wakes the lane. */
void lane_push(struct lane *l, struct message *list);

/* Throws away what is queued of a part (its dead is set). */
void lane_forget(struct lane *l, const struct part *p);

/* The parts to serve from now on, references counted anew: the lane loads what is parked of them, and moves
 * idle positions on. The poll thread calls it after every claim and revoke. */
void lane_serve(struct lane *l, struct part *const *parts, size_t n);

/* The member's name in the group, owned by the caller; NULL: it has none. member.c */
char *member_name(const struct pr_consumer_conf *conf, enum pr_assignment how);

/* Wakes the poll thread: a part was fenced, a lane has room again. group.c */
void group_wake(struct consumer *c);
void *group_thread(void *consumer);

/* Once we stop: the lanes have ended, what they committed is to be told to Kafka, and the group to be left;
 * group_thread then ends within some seconds. Without it, it ends after drain. */
void group_finish(struct consumer *c);

/* After the lanes are freed (no message is left): frees the client, within a bound. */
void group_release(struct consumer *c);

/* ---------------------------------------------------------------- lanes.c */

/* How many lanes there shall be: a part with another number is drained and claimed anew. */
int lanes_wanted(struct consumer *c);

/* What the operator wants; 0: what the config says. */
void lanes_order(struct consumer *c, int64_t n);

/* Of the part's lane, among the lanes. */
int lane_number(const struct part *p, int lane);

/* Threads for lanes 0..n; those that are there stay. */
void lanes_begin(struct consumer *c, int n);
int lanes_begun(struct consumer *c); /* final once we stop */

/* We stop: what handlers are at may take most of shutdown.drain from now on. Before wake_fd is readable. */
void lanes_drain(struct consumer *c);

int part_must_change(const struct part *p, int wanted);

/* ---------------------------------------------------------------- claim.c */

/* Takes partitions over: epoch + 1, positions, lane counts. ret[0..n) get new parts (one reference each).
 * Blocking, up to database.timeout; call it on a thread that may wait. */
struct claim_wanted {
	const char *topic;
	int32_t partition;
};
int claim_parts(struct consumer *c, struct pr_pg *pg, const struct claim_wanted *wanted, size_t n,
	struct part **ret, struct pr_err *err) PR_MUSTCHECK;

/* ---------------------------------------------------------------- replay.c */

/* A window of a range that is read again: pushed in one go, then waited for. */
struct replay {
	atomic_int refs; /* its messages, and who waits for them */
	_Atomic uint64_t done, duplicates;
};

void replay_drop(struct replay *r); /* accepts NULL */

/* One message of a replay is committed. */
void replay_done(struct replay *r, int duplicate);
void *replay_thread(void *consumer);

/* After the lanes are freed: the client that was reading when we stopped. */
void replay_release(struct consumer *c);

/* ---------------------------------------------------------------- keeper.c, health.c */

void *keeper_thread(void *consumer);
void keeper_watch(struct consumer *c); /* when each part was last seen with nothing to do */

void health_init(struct consumer *c);
void health_release(struct consumer *c);
void health_judge(struct consumer *c, struct pr_verdict *v);
int health_sample(struct consumer *c); /* takes the history's next sample when it is due; ms until the next */
int health_http(struct consumer *c, struct pr_http **ret, struct pr_err *err) PR_MUSTCHECK;

/* The handler of /metrics; ctx: the consumer. */
void health_page_metrics(void *ctx, const struct pr_request *req, struct pr_response *resp);

/* err NULL: that trouble has ended. Logs when it begins, changes or ends. Any thread. */
void health_trouble(struct consumer *c, enum trouble which, const struct pr_err *err);

/* Age in seconds of the oldest record of the part that is not handled; NAN: not known. */
double health_part_lag(struct consumer *c, const struct part *p);

/* Records of the part that are not handled, an upper bound; -1: not known. */
int64_t health_part_events(const struct part *p);

/* session.c: a session of ours, application_name "postrider-consumer <group> <role>", opened when *pg is NULL
 * or dead. wake_fd: readable ends every wait of it; -1: none. */
int session_open(struct pr_pg **pg, struct consumer *c, const char *role, int wake_fd,
	struct pr_err *err) PR_MUSTCHECK;

#endif
