/* relay/hold.h -- what is held back so that the rest may flow: parked keys (rows of outbox.parked)
 * and topics that cannot be written to (ranges of outbox.waiting). Belongs to the publisher thread.
 *
 * Rule: what is held back is committed to Postgres before the position that steps over it is
 * committed to Kafka. So a crash between the two holds a row back twice, never loses it:
 * parked rows are keyed by seq, and a range is only ever widened to where the reader had been. */
#ifndef RELAY_HOLD_H
#define RELAY_HOLD_H

#include "relay/topics.h"

struct hold;

struct hold *hold_new(struct relay *r, struct topics *topics);
void hold_free(struct hold *h);

/* Reads what is held back, after finishing what the last transaction's position says was released. */
int hold_load(struct hold *h, const struct pr_position *committed, struct pr_err *err) PR_MUSTCHECK;
/* Whether e stands behind a parked event of its key. One that was read again after a crash may stand before
 * it: that one is free. */
int hold_is_parked(const struct hold *h, const struct topic *topic, const struct event *e);

/* Notes an event as held back; hold_flush makes it durable. head: this event itself was refused. */
int hold_park(struct hold *h, struct topic *topic, const struct event *e, int head, const char *reason,
	const char *code, struct pr_err *err) PR_MUSTCHECK;
int hold_wait(struct hold *h, struct topic *topic, const struct event *e, struct pr_err *err) PR_MUSTCHECK;
int hold_flush(struct hold *h, struct pr_err *err) PR_MUSTCHECK;

/* One slice of events that may go now, in order, before anything newer of their key or topic: by an
 * operator's request (of many keys at once), or because their topic is there again. */
struct release {
	struct batch *batch;    /* owned; NULL: nothing to release */
	struct parked_key **of; /* parked: the key of each event, borrowed; NULL: waiting */
	struct topic *topic;    /* waiting */
	int64_t entry;          /* waiting: of this entry */
	int64_t through;        /* waiting: last seq looked at; -1: the entry is done */
};
void release_free(struct release *rel);

/* requested: an operator asked for something since the last call. covered: the committed position. most:
 * events. */
int hold_next_release(struct hold *h, int requested, const struct pr_mark *covered, size_t most,
	struct release *ret, struct pr_err *err) PR_MUSTCHECK;
/* The slice is on its topic (and in the position): forget it. */
int hold_released(struct hold *h, const struct release *rel, struct pr_err *err) PR_MUSTCHECK;
/* Event i of a parked slice was refused again: it stays, and all that is behind it of its key. */
int hold_refused(struct hold *h, const struct release *rel, size_t i, const char *reason, const char *code,
	struct pr_err *err) PR_MUSTCHECK;

/* Whether one of these failed for Postgres since the last call: then Kafka is not to blame. */
int hold_failed(struct hold *h);

/* Copies counts to the relay's health. */
void hold_report(struct hold *h);

#endif
