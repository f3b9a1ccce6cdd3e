/* consumers/part.c -- partitions that are ours, counted, and how far they are done. */
#include "consumers/consumer.h"

#include "lib/err.h"

#include <stdlib.h>

struct part *part_hold(struct part *p)
{
	(void)atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
	return p;
}

void part_drop_many(struct part *p, int n)
{
	if (!p || atomic_fetch_sub_explicit(&p->refs, n, memory_order_acq_rel) != n)
		return;
	free(p->topic);
	free(p);
}

void part_drop(struct part *p)
{
	part_drop_many(p, 1);
}

/* Both look after they have spoken: either we see that it is closed, or the poll thread sees us. */
int part_enter(struct part *p)
{
	(void)atomic_fetch_add(&p->aside, 1);
	if (atomic_load(&p->ending) != PART_CLOSED)
		return 1;
	part_leave(p);
	return 0;
}

void part_leave(struct part *p)
{
	(void)atomic_fetch_sub(&p->aside, 1);
}

int64_t part_next(const struct part *p)
{
	int64_t next = INT64_MAX, shown;

	for (int i = 0; i < p->lane_count; i++) {
		shown = atomic_load_explicit(&p->lane[i].shown, memory_order_acquire);
		if (shown < next)
			next = shown;
	}
	return next;
}

int64_t part_oldest_us(const struct part *p)
{
	int64_t oldest = INT64_MAX, us;

	for (int i = 0; i < p->lane_count; i++) {
		us = atomic_load_explicit(&p->lane[i].oldest_us, memory_order_relaxed);
		if (us < oldest)
			oldest = us;
	}
	return oldest;
}

/* What is read is looked at first: all of it is in the lanes by then. */
int part_is_handled(const struct part *p, int64_t end)
{
	int64_t through = atomic_load(&p->read_through);

	return part_next(p) >= end || (through >= end && part_oldest_us(p) == INT64_MAX);
}
