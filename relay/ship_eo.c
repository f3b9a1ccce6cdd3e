/* relay/ship_eo.c -- exactly_once: events and position in one Kafka transaction. Refuses to commit
 * before what was held back is durable in Postgres, and to go on after an error it cannot read. */
#include "relay/publisher.h"

#include "lib/clock.h"
#include "lib/fault.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define MARKERS_US (4 * PR_MS)
#define LOOK_MS    200 /* how often a commit looks whether a record was refused */

static int begin(struct publisher *p, struct pr_err *err)
{
	return pr_kafka_take(rd_kafka_begin_transaction(p->rk), err, "begin transaction");
}

/* In pieces: after a refused record librdkafka 2.0 keeps the rest in its queue, and one call would wait for
 * them until its time is up. */
static int commit(struct publisher *p, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + p->r->conf->kafka.timeout_us;
	rd_kafka_error_t *error;

	while ((error = rd_kafka_commit_transaction(p->rk, LOOK_MS))) {
		if (p->failure.set || !rd_kafka_error_is_retriable(error) || pr_mono_us() > give_up)
			return pr_kafka_take(error, err, "commit transaction");
		rd_kafka_error_destroy(error);
	}
	return 0;
}

static int commit_with(struct publisher *p, const struct pr_position *position, struct pr_err *err)
{
	if (SABOTAGE(position_outside_transaction)) {
		if (commit(p, err) < 0 || begin(p, err) < 0)
			return -1;
		FAULT(committed_before_accounting);
	}
	/* If we die here, the transaction is open: the next producer with our id aborts it. */
	FAULT(events_before_position);
	if (ship_position(p, position, err) < 0)
		return -1;
	/* If we die here, likewise: nothing of it was ever visible to read_committed readers. */
	FAULT(position_before_commit);
	if (commit(p, err) < 0)
		return -1;
	/* If we die here, everything is published, and the position in the same transaction says so. */
	FAULT(committed_before_accounting);
	spans_committed(p);
	return 0;
}

static void account(struct publisher *p)
{
	struct batch *b;

	pr_observe(p->r->m.batch_events, (double)p->events);
	topics_opened(p->topics);
	ship_new_shipment(p);
	while ((b = p->open)) {
		p->open = b->next;
		ship_acknowledged(p, b, b->n);
		batch_free(b);
	}
	if (p->current)
		ship_acknowledged(p, p->current, p->offset);
	p->open_tail = &p->open;
	p->events = p->bytes = 0;
	ship_oldest(p);
}

/* The broker writes a transaction's markers after it has answered the commit. A transaction begun before that
 * is told CONCURRENT_TRANSACTIONS, and librdkafka 2.0 then waits 20 ms: a short pause is the quicker way,
 * unless a full shipment is ready and the wait is nothing to it. Meanwhile events gather. */
static void let_markers_settle(const struct publisher *p)
{
	struct pollfd wake = { .fd = p->r->wake_fd, .events = POLLIN };
	int64_t left = p->committed_us + MARKERS_US - pr_mono_us();
	struct timespec ts = { .tv_nsec = left > 0 ? left * 1000 : 0 };
	size_t queued;

	if (left <= 0)
		return;
	(void)pipe_oldest_us(&p->r->pipe, &queued);
	if (queued < p->limit / 2)
		(void)ppoll(&wake, 1, &ts, NULL);
}

int ship_transaction(struct publisher *p, struct pr_err *err)
{
	struct pr_position next = { 0 };
	int taken, rc = -1;

	if (!p->current) {
		p->current = pipe_take(&p->r->pipe, p->generation, pr_mono_us() + p->wait_us);
		p->offset = 0;
	}
	ship_oldest(p); /* taken, so it counts as lag even if an operator paused us while we waited */
	if (!p->current || atomic_load(&p->r->paused))
		return 0;
	let_markers_settle(p);
	if (begin(p, err) < 0)
		return -1;
	taken = ship_fill(p, 0, err);
	if (taken < 0)
		return -1;
	ship_oldest(p);
	if (hold_flush(p->hold, err) < 0)
		return -1;
	pr_position_copy(&next, &p->committed);
	pr_position_forget_released(&next);
	ship_taken(p, &next);
	if (commit_with(p, &next, err) == 0) {
		p->committed_us = pr_mono_us();
		account(p);
		pr_position_copy(&p->committed, &next);
		health_committed(p->r, &p->committed);
		rc = taken > 0;
	}
	pr_position_release(&next);
	return rc;
}

int ship_first_transaction(struct publisher *p, struct pr_err *err)
{
	if (begin(p, err) < 0 || ship_position(p, &p->committed, err) < 0)
		return -1;
	return commit(p, err);
}

/* The position, with what this transaction releases: a crash after it deletes those rows at the next start.
 */
static void released_position(const struct publisher *p, struct pr_position *ret)
{
	const struct release *rel = &p->releasing;

	pr_position_copy(ret, &p->committed);
	pr_position_forget_released(ret);
	if (rel->of) {
		free(ret->released);
		ret->released = pr_calloc(rel->batch->n, sizeof(*ret->released));
		for (size_t i = 0; i < rel->batch->n; i++)
			ret->released[ret->released_n++] = rel->batch->ev[i].seq;
		return;
	}
	ret->released_topic = pr_strdup(rel->topic->name);
	ret->released_entry = rel->entry;
	ret->released_seq = rel->through;
}

int ship_release_transaction(struct publisher *p, struct pr_err *err)
{
	struct batch *b = p->releasing.batch;
	struct pr_position next = { 0 };
	int rc = -1;

	if (b->n > 0) {
		if (begin(p, err) < 0)
			return -1;
		for (size_t i = 0; i < b->n; i++)
			if (ship_event(p, &b->ev[i], err) < 0)
				return -1;
		if (hold_flush(p->hold, err) < 0) /* events of a waiting topic that it refuses */
			return -1;
		released_position(p, &next);
		if (commit_with(p, &next, err) < 0)
			goto out;
		pr_position_copy(&p->committed, &next);
		topics_opened(p->topics);
		ship_new_shipment(p);
		ship_acknowledged(p, b, b->n);
		p->events = p->bytes = 0;
	}
	/* If we die here, the rows are published but still held: the position names them, and the next
	 * start deletes them before anything else. */
	FAULT(released_before_forgotten);
	rc = hold_released(p->hold, &p->releasing, err);
out:
	pr_position_release(&next);
	return rc;
}
