/* consumers/group.h -- the Kafka side from the inside: group.c (the poll thread, claims), member.c (the Kafka
 * group), read.c (queues -> lanes), watch.c (ends of logs, gaps, lag for tools) and errand.c (what must be
 * waited for) share it. All of it belongs to the poll thread but what is said to be shared. */
#ifndef CONSUMERS_GROUP_H
#define CONSUMERS_GROUP_H

#include "consumers/consumer.h"

#define QUEUE_MESSAGES 1000 /* of a partition that librdkafka fetches ahead, about */
#define COMMIT_US      (5 * PR_SEC)

enum slot_state {
	SLOT_WANTED,   /* ours by Kafka; to be claimed at retry_us */
	SLOT_CLAIMING, /* the errand thread is at it */
	SLOT_READING,
	SLOT_DRAINING, /* read far enough; once its lanes stand at one offset it is claimed again */
	SLOT_GAP,      /* its position is not in the log */
};

/* Messages of one lane of one partition, in order. */
struct held {
	struct message *head, **tail;
};

/* A partition that Kafka assigned to us. */
struct slot {
	char *topic;
	int32_t partition;
	enum slot_state state;
	struct part *part;       /* NULL before the first claim */
	rd_kafka_queue_t *queue; /* NULL while it is not read */
	int64_t position;        /* next offset to be read; RD_KAFKA_OFFSET_BEGINNING */
	struct held *held;       /* by lane (part->lane_count): read, but the lane was full; below position */
	size_t held_bytes;
	int64_t due_us; /* wall: the first that is held is not to be handled before; 0: at once */
	int full;       /* so much was held that its queue was left alone: librdkafka may sleep over it */
	int at_end;     /* as Kafka last said */
	int64_t dry_us, dry_wait_us; /* not at the end, and nothing came: since, and when to ask for more */
	int hot;                     /* its queue may hold something */
	int touched;                 /* read in this turn: read_through is to be moved */
	int anew;                    /* Kafka is to be told to read it from position, wherever it reads now */
	int64_t equal_at;            /* lane count to be changed: read up to here, then drain; -1: no */
	int64_t retry_us, claimed_us;
	unsigned fenced; /* claims in a row that were soon fenced */

	/* SLOT_GAP, and after it until something is read again */
	int64_t low, high; /* of the log; -1: not known yet */
	int gap;           /* it stands in a gap: position is below low or above high */

	char words[160]; /* what is wrong with reading it; "" nothing */
};

/* One errand of each kind at a time; posted by the poll thread, whose eventfd says that it is done. */
struct errand {
	struct consumer *c;
	rd_kafka_t *rk;
	pthread_t thread;
	int started;

	/* the errand thread's own */
	struct pr_pg *pg;
	rd_kafka_topic_t **topics; /* of the config, by name: their handles make metadata tell about them */
	size_t topics_n;
	int said; /* a trouble of ours stands */
	unsigned failures;
	int64_t again_us, ask_us;

	pthread_mutex_t mutex; /* of what follows */
	pthread_cond_t changed;
	int end;

	struct claim_wanted *wanted; /* owned; NULL: nothing to claim */
	size_t wanted_n;
	unsigned round;      /* of the assignment it is for */
	unsigned current;    /* of the assignment that is */
	struct part **parts; /* wanted_n of them once claimed */
	int claimed;

	char *log_topic; /* whose log is to be looked at; NULL: none */
	int32_t log_partition;
	int log_known;
	int64_t log_low, log_high;

	pthread_t nudger;
	int nudging;       /* its thread is there */
	char *nudge_topic; /* NULL: nobody to be nudged */
	int32_t nudge_partition;
	int nudge_refused;

	int kafka_asked;     /* whether Kafka answers is known */
	struct pr_err kafka; /* "" when it does */
};

void errand_start(struct errand *e, struct consumer *c, rd_kafka_t *rk);
int errand_stop(struct errand *e); /* bounded: -1 when it did not end, and still uses what it has */

/* Takes wanted (array and names). Refused (-1, nothing taken) while one is under way. */
int errand_claim(struct errand *e, unsigned round, struct claim_wanted *wanted, size_t n);

/* 1 when the claim is done: wanted and parts are given, n of them. */
int errand_claimed(
	struct errand *e, unsigned *round, struct claim_wanted **wanted, struct part ***parts, size_t *n);
void wanted_free(struct claim_wanted *wanted, size_t n);

/* A claim for another round than this is given up. */
void errand_round(struct errand *e, unsigned round);

/* 1: low and high are those of this partition's log. 0: not known, asked for (later, when busy). */
int errand_log(struct errand *e, const char *topic, int32_t partition, int64_t *low, int64_t *high);

/* Whether Kafka answers: 1 and *err when it does not, 0 when it does, -1 not known yet. */
int errand_kafka(struct errand *e, struct pr_err *err);

/* Asks the leader of a partition something, so that librdkafka's thread for that broker wakes up. -1: busy.
 */
int errand_nudge(struct errand *e, const char *topic, int32_t partition);

struct out {
	struct message *head, **tail;
	unsigned n;
	size_t bytes;
};

struct group {
	struct consumer *c;
	rd_kafka_t *rk;
	rd_kafka_queue_t *events; /* the consumer queue: rebalances, errors */
	int fd;                   /* eventfd of everything that wakes the poll thread */
	struct slot *slots;
	size_t slots_n;
	unsigned round; /* of the assignment */
	int reassign;   /* Kafka is to be told anew what is read, and from where */
	int reserve;    /* lanes are to be told anew what they serve */
	int bit_by_bit; /* the group gives and takes single partitions, not all at once */
	int again;      /* this handle is shut out for good: another one joins at again_us */
	int64_t again_us;
	int64_t lost_us; /* when Kafka last threw us out unasked; INT64_MIN: not lately */
	int dry;         /* no lane had room for something in the last turn */
	int64_t tick_us, commit_us;
	struct pr_err group_err; /* what the group coordinator complains of; "" nothing */
	int64_t group_err_us;
	struct errand errand;
	struct out out[LANES_MOST]; /* by worker */
	int out_n;                  /* workers used so far */
};

/* group.c */
void slots_add(struct group *g, const rd_kafka_topic_partition_list_t *list); /* those that are not there */
void slots_remove(struct group *g, const char *topic, int32_t partition);     /* accepts one that is not */
void slots_drop(struct group *g);                                             /* all */
void slot_retire(struct group *g, struct slot *s);                 /* nothing of it may be handled any more */
void slot_want(struct group *g, struct slot *s, int64_t retry_us); /* to be claimed (anew) */
int slot_drained(const struct slot *s); /* every lane stands where reading stands */

/* member.c */
int member_begin(struct group *g, struct pr_err *err) PR_MUSTCHECK;
void member_events(struct group *g); /* rebalances, errors; may set again, or stop the consumer */
void member_assign(struct group *g); /* tells Kafka what is to be read, and from where */
void member_leave(struct group *g);
int member_release(struct group *g); /* frees the handle, within a bound; -1: it is still in use */

/* watch.c */
void watch_tick(struct group *g, int64_t now);
void watch_commit(struct group *g, int64_t now); /* lazily */
void watch_final_commit(struct group *g);        /* and waits for the answer, bounded */

/* read.c: one turn through all partitions. Nonzero when there may be more to read at once. */
int read_turn(struct group *g);
void slot_open(
	struct group *g, struct slot *s); /* its queue, emptied of what is left of before; has a part */
void slot_listen(struct group *g, struct slot *s); /* the queue alone, anew; what is held stays */
void slot_close(struct slot *s);                   /* no more reading; drops what is held */
int64_t slot_through(const struct slot *s);        /* all below is in the lanes, or no record of ours */

#endif
