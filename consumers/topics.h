/* consumers/topics.h -- a group without a database, from the inside. Positions are the group's offsets in
 * Kafka; what fails goes through retry topics, <topic>.retry.<group>.1 to n, each with its delay, and then to
 * a topic of dead letters. What a batch leaves there and the offset behind it are one transaction of Kafka,
 * bound to the generation of the group in which the partition was ours: a zombie's is refused (KIP-447).
 *
 * topics.c         their names, and that they are there; the keeper's thread
 * topics_claim.c   where to begin, from the group's offsets and what stands beside them
 * topics_tx.c      a lane's producer and its transactions
 * topics_record.c  what is written to retry and dead letter topics
 * topics_apply.c   a batch: handler, fates, transaction
 *
 * A partition has one lane, so that one offset says how far it is; lanes are parallel across partitions. */
#ifndef CONSUMERS_TOPICS_H
#define CONSUMERS_TOPICS_H

#include "consumers/store.h"
#include "consumers/tx.h"

/* A topic that is read, or written by us. */
struct sink {
	char *topic;
	int partitions; /* known once topics.ready is set */
};

struct family {
	const char *source; /* borrowed from the config */
	struct sink *retry; /* topics.stages of them */
	struct sink dead;
};

/* The group's generation, as librdkafka takes it. */
struct membership {
	atomic_int refs;
	rd_kafka_consumer_group_metadata_t *md;
};

struct topics {
	struct family *family;
	size_t n;
	int stages;       /* retry topics of each source */
	char process[40]; /* us, among those that ever left a mark */
	char **read;      /* all that is subscribed to: sources and retry topics; read_n of them */
	size_t read_n;
	pthread_mutex_t mutex;         /* of membership */
	struct membership *membership; /* NULL: no member */
	atomic_int behind;             /* a lane was refused as a member of a generation that is over */
};

/* ---------------------------------------------------------------- topics.c */

struct topics *topics_new(const struct pr_consumer_conf *conf);
void topics_free(struct topics *t); /* accepts NULL */

/* The family of a topic that is read, and which of its retry topics it is (0: the source). NULL: none. */
const struct family *topics_find(const struct topics *t, const char *topic, int *ret_stage);

/* Where a message goes that is to be tried again later: the retry topic after the one it came from, or, when
 * the other side asked for more time, the first that grants it; the last one again. 0: there are no retry
 * topics. */
int topics_next(const struct consumer *c, const struct message *m, const struct outcome *why);

/* Whether it came from the last retry topic, or there is none. */
int topics_last(const struct consumer *c, const struct message *m);

/* What is subscribed to, with a database or without; borrowed. */
struct pr_strs topics_read(const struct consumer *c);

void *topics_keeper(void *consumer);

/* ---------------------------------------------------------------- topics_claim.c */

/* The poll thread, in the group callback and after each claim: lanes commit as members of this generation.
 * Parts that are not ours any more are dead before it is called. rk NULL: no member. */
void topics_join(struct consumer *c, rd_kafka_t *rk);
struct membership *topics_member(struct topics *t); /* one more reference; NULL: none */

/* Generations change without a word to us where partitions wander one by one. A lane asks to be a member of
 * the one that is now; the poll thread, between two callbacks, sees to it. */
void topics_ask_member(struct consumer *c);
void topics_join_asked(struct consumer *c, rd_kafka_t *rk);
void topics_member_drop(struct membership *m); /* accepts NULL */

int topics_claim(struct consumer *c, rd_kafka_t *rk, struct pr_pg **pg, const struct claim_wanted *wanted,
	size_t n, struct part **ret, struct pr_err *err);

/* What stands beside a committed offset while the first batch from there is under way: who began, with how
 * many messages, how often. The next owner finds it when we never came back. buf of MARK_SIZE. */
#define MARK_SIZE 128
const char *mark_put(char *buf, const struct topics *t, int64_t offset, int64_t batch, int64_t attempts);
void mark_read(struct part_lane *pl, const struct topics *t, const char *mark, size_t n);

/* ---------------------------------------------------------------- topics_record.c */

/* Record for a retry topic (stage 1 to n) or, stage 0, for the dead letters. */
rd_kafka_headers_t *topics_headers(const struct lane *l, const struct work *w, int stage);

/* ---------------------------------------------------------------- topics_tx.c */

struct topics_tx;

int topics_tx_open(struct lane *l, struct pr_err *err);
int topics_tx_usable(const struct lane *l);
void topics_tx_close(struct lane *l);

enum tx_end {
	TX_DONE,
	TX_UNDONE,  /* nothing of it happened, and it may be tried again; err says why */
	TX_STALE,   /* nothing of it happened, and never will: the partitions may be another member's */
	TX_UNKNOWN, /* the broker did not say; the offsets will */
};

/* Produces what w[0..n) leaves behind, and moves the offsets to the next of l->steps; mark[i] stands beside
 * that of step i (NULL array or element: nothing does). */
enum tx_end topics_commit(
	struct lane *l, const struct work *w, size_t n, const char *const *mark, struct pr_err *err);

/* ---------------------------------------------------------------- topics_apply.c */

enum applied topics_apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err);
enum applied topics_move_idle(struct lane *l, struct pr_err *err);

/* The lane ends in peace: what it began and did not finish is no crash of ours. */
void topics_unmark(struct lane *l);

#endif
