/* consumers/store.h -- the seam: where what a batch did becomes durable together with how far we are. With a
 * database that is one transaction of Postgres (store_postgres.c: inbox, effects, positions), without one a
 * transaction of Kafka (topics.c and its siblings: retry records, dead letters, offsets). */
#ifndef CONSUMERS_STORE_H
#define CONSUMERS_STORE_H

#include "consumers/lane.h"

struct store {
	enum trouble trouble; /* of a lane that cannot commit */
	int one_lane;         /* a partition has one, for ever: its order is all there is */

	/* The poll thread's errand: partitions are taken over. pg: a session of the errand thread, kept.
	 * Blocks for a bounded time. */
	int (*claim)(struct consumer *c, rd_kafka_t *rk, struct pr_pg **pg, const struct claim_wanted *wanted,
		size_t n, struct part **ret, struct pr_err *err);

	/* The lane's thread. open: what it needs to commit, and its handler; nothing to do when it is there.
	 * usable: it is there. close: whatever is there ends, but for the handler. */
	int (*open)(struct lane *l, struct pr_err *err);
	int (*usable)(const struct lane *l);
	void (*close)(struct lane *l);

	/* Optional: we stop, and what can still be finished is. */
	void (*finish)(struct lane *l);

	/* As in lane.h. load: what is held back of what is served. release: some of it is tried again. */
	int (*load)(struct lane *l, struct pr_err *err);
	int (*release)(struct lane *l, int64_t until_us, struct pr_err *err);
	enum applied (*apply)(
		struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err);
	enum applied (*move_idle)(struct lane *l, struct pr_err *err);

	/* Optional: what to do when a topic was made anew, as err's hint, instead of setting the position. */
	void (*hint_anew)(const struct consumer *c, const char *topic, struct pr_err *err);

	/* The thread beside the way: sets consumer.ready once everything may begin. */
	void *(*keeper)(void *consumer);

	/* Optional: the keeper's, now and then: of what the store remembers, what is too old. 1: there is
	 * more. */
	int (*prune)(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err);
};

/* Claims in inbox.position: of every store with a database. store_postgres.c */
int store_postgres_claim(struct consumer *c, rd_kafka_t *rk, struct pr_pg **pg,
	const struct claim_wanted *wanted, size_t n, struct part **ret, struct pr_err *err);

extern const struct store store_postgres, store_topics, store_sink;

#endif
