/* relay/ship_alo.c -- at_least_once: an idempotent producer, and the position after the contiguous
 * prefix of delivery reports. Refuses to write a position over an event that is not acknowledged. */
#include "relay/publisher.h"

#include "lib/clock.h"
#include "lib/fault.h"

#include <stdlib.h>
#include <string.h>

#define POSITION_EVERY_US (20 * PR_MS) /* under load; at once when nothing else is in flight */

static int failed(const struct publisher *p, struct pr_err *err)
{
	if (!p->failure.set)
		return 0;
	return pr_kafka_fail(err, p->failure.code, p->failure.position ? "position record" : "delivery");
}

/* Batches from the oldest on whose events are all acknowledged; then the produced part of the current one. */
static void settle_prefix(struct publisher *p)
{
	struct batch *b;

	while ((b = p->open) && (b->outstanding == 0 || SABOTAGE(position_before_delivery))) {
		p->open = b->next;
		if (!p->open)
			p->open_tail = &p->open;
		batch_position(b, b->n, &p->settled); /* one without events says that a turn is over */
		p->settled_dirty = 1;
		ship_acknowledged(p, b, b->n);
		if (b->outstanding == 0)
			batch_free(b);
	}
	if (!p->open && p->current && p->offset > 0 && p->current->outstanding == 0 && p->events == 0 &&
		p->settled.seq != p->current->ev[p->offset - 1].seq) {
		batch_position(p->current, p->offset, &p->settled);
		p->settled_dirty = 1;
		ship_acknowledged(p, p->current, p->offset);
	}
	ship_oldest(p);
}

/* Tells Kafka how far we are, when it is time. */
static int write_position(struct publisher *p, struct pr_err *err)
{
	int64_t now = pr_mono_us();

	if (!p->settled_dirty || p->position_in_flight)
		return 0;
	if (p->events > 0 && now - p->position_sent_us < POSITION_EVERY_US)
		return 0;
	if (hold_flush(p->hold, err) < 0)
		return -1;
	/* If we die here, events are on the topic that the position does not know: they are published again.
	 */
	FAULT(acknowledged_before_position);
	pr_position_forget_released(&p->settled);
	if (ship_position(p, &p->settled, err) < 0)
		return -1;
	p->position_sent_us = now;
	p->settled_dirty = 0;
	pr_position_copy(&p->committed, &p->settled);
	health_committed(p->r, &p->committed);
	return 0;
}

static int serve(struct publisher *p, int timeout_ms, struct pr_err *err)
{
	(void)rd_kafka_poll(p->rk, timeout_ms);
	if (failed(p, err) < 0)
		return -1;
	settle_prefix(p);
	return write_position(p, err);
}

int ship_settle(struct publisher *p, int64_t deadline_us, struct pr_err *err)
{
	if (failed(p, err) < 0)
		return -1;
	settle_prefix(p);
	while (p->events > 0 || p->settled_dirty || p->position_in_flight) {
		if (pr_mono_us() > deadline_us)
			return pr_fail(
				err, PR_RETRY, "kafka did not acknowledge %zu events in time", p->events);
		if (serve(p, 10, err) < 0)
			return -1;
	}
	return 0;
}

int ship_window(struct publisher *p, struct pr_err *err)
{
	size_t before = p->events;
	int busy = p->events > 0 || p->position_in_flight || p->settled_dirty;
	int taken = ship_fill(p, busy ? 0 : pr_mono_us() + p->wait_us, err);

	if (taken < 0)
		return -1;
	if (p->events > before)
		pr_observe(p->r->m.batch_events, (double)(p->events - before));
	if (taken > 0) {
		ship_oldest(p);
		/* If we die here, nothing or everything of it may have reached the broker. */
		FAULT(produced_before_acknowledged);
	}
	/* All there is has been produced: nothing to linger for. Flushing makes the broker threads send at
	 * once. */
	if (p->events > before && !p->mid_turn && p->events < p->limit)
		(void)rd_kafka_flush(p->rk, 1);
	/* While an event that was refused is looked for, one step at a time: what is known stays known. */
	if ((int64_t)p->limit < setting(&p->r->conf->limits.batch_events))
		if (ship_settle(p, pr_mono_us() + p->r->conf->kafka.timeout_us, err) < 0)
			return -1;
	/* Nothing new to produce: the reports are what there is to wait for. */
	if (serve(p, taken == 0 && busy ? 1 : 0, err) < 0)
		return -1;
	ship_new_shipment(p);
	return taken > 0;
}

int ship_first_window(struct publisher *p, struct pr_err *err)
{
	if (ship_position(p, &p->committed, err) < 0)
		return -1;
	return ship_settle(p, pr_mono_us() + p->r->conf->kafka.timeout_us, err);
}

int ship_release_window(struct publisher *p, struct pr_err *err)
{
	struct batch *b = p->releasing.batch;
	int64_t give_up = pr_mono_us() + p->r->conf->kafka.timeout_us;

	if (ship_settle(p, give_up, err) < 0)
		return -1;
	for (size_t i = 0; i < b->n; i++)
		if (ship_event(p, &b->ev[i], err) < 0)
			return -1;
	while (b->outstanding > 0) {
		if (pr_mono_us() > give_up)
			return pr_fail(err, PR_RETRY, "kafka did not acknowledge released events in time");
		(void)rd_kafka_poll(p->rk, 10);
		if (failed(p, err) < 0)
			return -1;
	}
	if (hold_flush(p->hold, err) < 0) /* events of a waiting topic that it refuses */
		return -1;
	ship_new_shipment(p);
	ship_acknowledged(p, b, b->n);
	/* If we die here, the rows are published but still held: they will be published again. */
	FAULT(released_before_forgotten_alo);
	return hold_released(p->hold, &p->releasing, err);
}
