/* relay/publisher.h -- the publisher thread's own state, shared by publish.c (sessions and failures),
 * ship.c (one event), spans.c (what is traced of it) and ship_eo.c / ship_alo.c (one shipment in either
 * mode). */
#ifndef RELAY_PUBLISHER_H
#define RELAY_PUBLISHER_H

#include "relay/hold.h"
#include "relay/record.h"

/* The first thing that went wrong in a shipment. */
struct failure {
	int set;
	rd_kafka_resp_err_t code;
	int64_t seq;         /* of the event; 0 unknown */
	struct topic *topic; /* NULL unknown */
	int misfit;          /* we refused it ourselves: its topic is well */
	int position;        /* it was the position record: no event is to blame */
	char text[160];
};

struct publisher {
	struct relay *r;
	int exactly_once;
	struct topics *topics;
	struct hold *hold;
	struct record_maker maker;
	char *position_topic;
	char *transactional_id;

	/* a session: one producer, one generation of the pipe */
	rd_kafka_t *rk;
	uint64_t generation;
	rd_kafka_topic_t *position_rkt;
	struct pr_position committed; /* in Kafka */
	struct failure failure;
	int topic_checked;

	/* what was taken and is not acknowledged */
	struct batch *open, **open_tail; /* every event produced */
	struct batch *current;           /* the first `offset` events produced */
	size_t offset;
	int mid_turn;         /* the last whole batch taken has a successor in its turn */
	size_t events, bytes; /* exactly_once: of the open transaction; at_least_once: in flight */

	int64_t committed_us; /* exactly_once: when the last transaction was */
	size_t shipped;       /* events in flight when the last shipment was made up */

	/* at_least_once */
	struct pr_position settled; /* everything up to here is acknowledged */
	int settled_dirty;          /* and Kafka has not been told */
	int position_in_flight;
	int64_t position_sent_us;

	/* isolation of an event that the broker refuses */
	size_t limit;             /* events in one shipment */
	int strikes;              /* times that one event alone was refused */
	struct failure condemned; /* park it when it comes by */
	int64_t batch_size;       /* bytes of a produce batch: no topic's limit may be smaller */

	struct pr_span *spans; /* exactly_once: of the open transaction's events that are on their topics */
	size_t spans_n, spans_cap;

	struct release releasing;
	size_t release_limit;
	struct topic *look_next; /* whose turn it is to be asked about */
	int64_t wait_us;         /* how long a shipment may wait for its first event */
	uint64_t request_seen;
	unsigned failures; /* sessions in a row that came to nothing */
};

/* ship.c */
/* Code of: nothing is wrong, but the producer's batches must, or may, have another size. */
#define SHIP_RESIZE "batch_size"
/* One event: to Kafka, or held back. -1: the session is over. */
int ship_event(struct publisher *p, struct event *e, struct pr_err *err) PR_MUSTCHECK;
/* Before a slice of parked events is produced: keys of which an event would only be refused again stay
 * parked, those of a missing topic as they are. 1: some do, and the slice is not to be shipped. */
int ship_recheck(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
/* Produces events of the pipe until the shipment is full or nothing more is there; waits up to the deadline
 * for the first. Returns how many were taken; -1: the session is over. */
int ship_fill(struct publisher *p, int64_t deadline_us, struct pr_err *err) PR_MUSTCHECK;
int ship_position(struct publisher *p, const struct pr_position *position, struct pr_err *err) PR_MUSTCHECK;
/* The position after everything taken: fills *ret from committed (or settled). */
void ship_taken(const struct publisher *p, struct pr_position *ret);
/* b's first k events are acknowledged: counts those that were not counted yet. A batch goes in parts when a
 * shipment ends in its middle, and the session may end before the rest of it goes. */
void ship_acknowledged(struct publisher *p, struct batch *b, size_t k);
void ship_new_shipment(struct publisher *p); /* forgets which topics the last one was for */
void ship_report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque); /* delivery report callback */
void ship_drop(struct publisher *p); /* frees what was taken: only when no producer knows of it any more */
void ship_oldest(struct publisher *p);

/* spans.c */
void spans_choose(
	const struct publisher *p, struct event *e); /* before it is produced: whether it is traced */
void spans_delivered(struct publisher *p, const struct event *e, const rd_kafka_message_t *m);
void spans_committed(struct publisher *p); /* exactly_once: of the transaction that was */
void spans_forget(struct publisher *p);    /* ... that was not */

/* ship_eo.c, ship_alo.c: one round of the loop. 1: something went, 0: nothing to do, -1: the session is over.
 */
int ship_transaction(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
int ship_window(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
/* One slice of what was held back. */
int ship_release_transaction(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
int ship_release_window(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
/* The first position of an outbox. */
int ship_first_transaction(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
int ship_first_window(struct publisher *p, struct pr_err *err) PR_MUSTCHECK;
int ship_settle(
	struct publisher *p, int64_t deadline_us, struct pr_err *err) PR_MUSTCHECK; /* all in flight */

#endif
