/* relay/topics.h -- event -> topic, and what the cluster says of that topic. Belongs to the
 * publisher thread; entries live as long as the relay, their Kafka handles as long as a producer. */
#ifndef RELAY_TOPICS_H
#define RELAY_TOPICS_H

#include "relay/relay.h"

struct topic {
	char *name;
	rd_kafka_topic_t *rkt; /* NULL until looked up with this producer */
	int missing;           /* cannot be written to, because of reason: its rows wait */
	int valid;             /* a name Kafka accepts */
	int partitions;
	int64_t max_bytes;  /* of a record; INT64_MAX unknown */
	int64_t asked_us;   /* monotonic: when the cluster said so; 0: ask before using it */
	int64_t look_at_us; /* monotonic: when to ask about it again */
	unsigned looks;     /* times it was missing since it last took an event: it may be there and refuse */
	int proven;         /* took an event since it was last missing */
	char reason[128], code[64];
	struct pr_series *published, *published_bytes;
	uint64_t n_events; /* of the open shipment */
	/* what this producer has done on each partition (ship.c) */
	unsigned char *opened;
	int opened_cap, opened_n; /* room; how many are open */
	int waiting;              /* entries of outbox.waiting: rows go there, in order, until they are out */
	struct topic *next;       /* all topics */
};

/* A partition: its first record is under way; is acknowledged. */
enum { PARTITION_OPENING = 1, PARTITION_OPEN };

struct topics;

struct topics *topics_new(struct relay *r);
void topics_free(struct topics *t);

/* The topic of an event, or NULL when there are more than limits.topics (err: PR_STOP). */
struct topic *topics_of(struct topics *t, const struct event *e, struct pr_err *err);
struct topic *topics_get(struct topics *t, const char *name, size_t len, struct pr_err *err);
struct topic *topics_all(struct topics *t);

/* Asks the cluster about a topic unless that was done lately: 0, with missing set or not; -1 when Kafka
 * cannot be asked. */
int topics_look(struct topics *t, struct topic *topic, rd_kafka_t *rk, struct pr_err *err) PR_MUSTCHECK;
void topics_miss(
	struct topic *topic, const char *reason, const char *code); /* refused: wait, ask again later */

/* What is known of the topics may be wrong: the next look asks again. */
void topics_doubt(struct topics *t);

/* Asks anew about a topic that is there, for its limits may have been raised: at once when now, else once a
 * second. */
int topics_ask_again(
	struct topics *t, struct topic *topic, rd_kafka_t *rk, int now, struct pr_err *err) PR_MUSTCHECK;

/* exactly_once: everything that was sent is acknowledged. */
void topics_opened(struct topics *t);

/* The smallest record limit of the topics that are in use, at most `most`. */
int64_t topics_smallest(const struct topics *t, int64_t most);

/* The producer is about to be destroyed: drops the handles. */
void topics_drop_handles(struct topics *t);

#endif
