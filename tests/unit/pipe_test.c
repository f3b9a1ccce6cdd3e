/* tests/unit/pipe_test.c -- relay/pipe.c: the start order of a generation, bounded room, and that whoever
 * waits is woken by a stop, a reset or the other side. Two threads, as in the relay. */
#include "relay/pipe.h"

#include "lib/clock.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SOON   (pr_mono_us() + 10 * PR_MS)
#define LATER  (pr_mono_us() + 20 * PR_SEC)
#define EVENTS 10
#define BYTES  1000

static const struct identity who = { .system_id = "7123", .timeline = 4, .position_known = 1 };

static struct batch *batch_of(uint64_t generation, size_t events, size_t bytes, int64_t oldest_us)
{
	struct turn *t = turn_new();
	struct batch *b = batch_new(t, 1);

	turn_drop(t);
	b->generation = generation;
	b->oldest_us = oldest_us;
	/* No rows: only what the pipe counts. Taken back before it is freed. */
	b->n = events;
	b->bytes = bytes;
	return b;
}

static void free_empty(struct batch *b)
{
	b->n = 0;
	batch_free(b);
}

/* A pipe that streams; returns its generation. */
static uint64_t streaming(struct pipe *p)
{
	struct pr_position start = { .timeline = 4, .top = 9 };
	struct identity seen;
	uint64_t g = pipe_lead(p, &who);

	assert_true(pipe_wait_lead(p, LATER, &seen) == g);
	assert_int_equal(pipe_start(p, g, &start), 0);
	return g;
}

static void start_order(void **state)
{
	struct pr_position start = { .timeline = 4, .top = 9 }, got = { 0 };
	struct identity seen = { 0 };
	struct pipe p;
	uint64_t g;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	assert_int_equal(pipe_state(&p), PIPE_STANDBY);
	assert_true(pipe_wait_lead(&p, SOON, &seen) == 0);
	assert_int_equal(pipe_start(&p, 0, &start), -1);
	g = pipe_lead(&p, &who);
	assert_true(g > 0);
	assert_int_equal(pipe_state(&p), PIPE_LEADING);
	assert_int_equal(pipe_wait_start(&p, g, SOON, &got), -1);
	assert_true(pipe_wait_lead(&p, SOON, &seen) == g);
	assert_string_equal(seen.system_id, "7123");
	assert_true(seen.timeline == 4 && seen.position_known);
	start.from.snapshot = pr_strdup("5:5:");
	assert_int_equal(pipe_start(&p, g, &start), 0);
	assert_int_equal(pipe_state(&p), PIPE_STREAMING);
	assert_int_equal(pipe_wait_start(&p, g, SOON, &got), 0);
	assert_true(got.top == 9 && got.from.snapshot != start.from.snapshot); /* a copy */
	assert_string_equal(got.from.snapshot, "5:5:");
	assert_true(pipe_is(&p, g) && !pipe_is(&p, g + 1));
	assert_true(pipe_wait_lead(&p, SOON, &seen) == 0); /* there is nothing more to lead */
	pr_position_release(&start);
	pr_position_release(&got);
	pipe_release(&p);
}

static void in_order(void **state)
{
	struct batch *b, *sent[3];
	size_t events;
	struct pipe p;
	uint64_t g;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	g = streaming(&p);
	assert_true(pipe_oldest_us(&p, &events) == INT64_MAX && events == 0);
	for (int i = 0; i < 3; i++) {
		sent[i] = batch_of(g, 3, 10, 100 - i);
		assert_int_equal(pipe_put(&p, sent[i]), 0);
	}
	assert_true(pipe_oldest_us(&p, &events) == 98 && events == 9);
	for (int i = 0; i < 3; i++) {
		b = pipe_take(&p, g, 0);
		assert_true(b == sent[i] && b->next == NULL);
		free_empty(b);
	}
	assert_null(pipe_take(&p, g, 0));
	assert_null(pipe_take(&p, g, SOON));
	b = batch_of(g, 1, 1, 1); /* the tail is right again after it ran empty */
	assert_int_equal(pipe_put(&p, b), 0);
	assert_true(pipe_take(&p, g, LATER) == b);
	free_empty(b);
	pipe_release(&p);
}

/* Full by events or by bytes; empty takes anything, or a large piece would wait for ever. */
static void room(void **state)
{
	struct pipe p;
	uint64_t g;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	g = streaming(&p);
	assert_int_equal(pipe_wait_room(&p, g, EVENTS * 100, SOON), 0);
	assert_int_equal(pipe_put(&p, batch_of(g, 6, 10, 0)), 0);
	assert_int_equal(pipe_wait_room(&p, g, 4, SOON), 0);
	assert_int_equal(pipe_wait_room(&p, g, 5, SOON), -1);
	free_empty(pipe_take(&p, g, 0));
	assert_int_equal(pipe_wait_room(&p, g, 5, SOON), 0);
	assert_int_equal(pipe_put(&p, batch_of(g, 1, BYTES, 0)), 0);
	assert_int_equal(pipe_wait_room(&p, g, 1, SOON), -1);
	free_empty(pipe_take(&p, g, 0));
	pipe_release(&p);
}

/* What belongs to a generation that is over is freed, not handed on. Leaks show under ASan. */
static void reset(void **state)
{
	struct pr_position start = { 0 };
	struct identity seen;
	struct pipe p;
	uint64_t old, g;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	old = streaming(&p);
	assert_int_equal(pipe_put(&p, batch_of(old, 0, 10, 0)), 0);
	pipe_reset(&p, old + 1); /* not the one of now: nothing */
	assert_true(pipe_is(&p, old));
	pipe_reset(&p, old);
	assert_int_equal(pipe_state(&p), PIPE_STANDBY);
	assert_false(pipe_is(&p, old));
	assert_null(pipe_take(&p, old, 0));
	assert_int_equal(pipe_put(&p, batch_of(old, 0, 10, 0)), -1);
	assert_int_equal(pipe_start(&p, old, &start), -1);
	assert_int_equal(pipe_wait_room(&p, old, 1, LATER), -1); /* at once */
	g = streaming(&p);
	assert_true(g > old);
	pipe_reset(&p, old); /* late, of the other side: the new one stays */
	assert_true(pipe_is(&p, g));
	assert_int_equal(pipe_put(&p, batch_of(old, 0, 10, 0)), -1);
	assert_null(pipe_take(&p, g, 0));
	assert_int_equal(pipe_put(&p, batch_of(g, 0, 10, 0)), 0);
	assert_true(pipe_lead(&p, &who) > g); /* a reader that begins anew drops what is queued */
	assert_null(pipe_take(&p, g, 0));
	assert_true(pipe_wait_lead(&p, LATER, &seen) == g + 1);
	pipe_release(&p);
}

static void fenced(void **state)
{
	struct pipe p;
	uint64_t g;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	g = streaming(&p);
	assert_false(pipe_take_fenced(&p));
	pipe_fenced(&p, g);
	assert_int_equal(pipe_state(&p), PIPE_STANDBY);
	assert_true(pipe_take_fenced(&p));
	assert_false(pipe_take_fenced(&p)); /* once */
	g = streaming(&p);
	pipe_fenced(&p, g - 1); /* of a generation that is over */
	assert_false(pipe_take_fenced(&p));
	assert_true(pipe_is(&p, g));
	pipe_release(&p);
}

/* --- two threads --- */

struct other {
	struct pipe *p;
	uint64_t generation;
	int what;
	atomic_int done;
	int rc;
};

enum { WAIT_START, WAIT_ROOM, WAIT_LEAD, TAKE };

static void *waits(void *ctx)
{
	struct pr_position got = { 0 };
	struct other *o = ctx;
	struct identity seen;
	struct batch *b;

	switch (o->what) {
	case WAIT_START:
		o->rc = pipe_wait_start(o->p, o->generation, PR_FOREVER, &got);
		break;
	case WAIT_ROOM:
		o->rc = pipe_wait_room(o->p, o->generation, EVENTS, PR_FOREVER);
		break;
	case WAIT_LEAD:
		o->rc = pipe_wait_lead(o->p, PR_FOREVER, &seen) ? 0 : -1;
		break;
	default:
		b = pipe_take(o->p, o->generation, PR_FOREVER);
		o->rc = b ? 0 : -1;
		if (b)
			free_empty(b);
	}
	pr_position_release(&got);
	atomic_store(&o->done, 1);
	return NULL;
}

/* A pipe in which `what` has to wait. */
static void make_waiting(struct pipe *p, struct other *o, int what)
{
	pipe_init(p, EVENTS, BYTES);
	memset(o, 0, sizeof(*o));
	o->p = p;
	o->what = what;
	if (what == WAIT_START)
		o->generation = pipe_lead(p, &who);
	else if (what != WAIT_LEAD)
		o->generation = streaming(p);
	if (what == WAIT_ROOM)
		assert_int_equal(pipe_put(p, batch_of(o->generation, EVENTS, 10, 0)), 0);
}

static void give(struct pipe *p, const struct other *o)
{
	struct pr_position start = { 0 };

	if (o->what == WAIT_START)
		assert_int_equal(pipe_start(p, o->generation, &start), 0);
	else if (o->what == WAIT_ROOM)
		free_empty(pipe_take(p, o->generation, 0));
	else if (o->what == WAIT_LEAD)
		(void)pipe_lead(p, &who);
	else
		assert_int_equal(pipe_put(p, batch_of(o->generation, 1, 1, 0)), 0);
}

static void wakes(void **state)
{
	(void)state;
	for (int what = WAIT_START; what <= TAKE; what++) {
		for (int how = 0; how < 3; how++) { /* what it waits for, a stop, a reset */
			struct other o;
			struct pipe p;
			pthread_t t;
			struct batch *left;

			if (what == WAIT_LEAD && how == 2)
				continue; /* it waits for no generation */
			make_waiting(&p, &o, what);
			assert_int_equal(pthread_create(&t, NULL, waits, &o), 0);
			if (how == 0)
				give(&p, &o);
			else if (how == 1)
				pipe_stop(&p);
			/* A reset frees what is queued: it must be empty of pretended rows. */
			for (left = p.head; how == 2 && left; left = left->next)
				left->n = 0;
			if (how == 2)
				pipe_reset(&p, o.generation);
			assert_int_equal(pthread_join(t, NULL), 0);
			assert_true(atomic_load(&o.done));
			assert_int_equal(o.rc, how == 0 ? 0 : -1);
			assert_int_equal(pipe_stopped(&p), how == 1);
			for (left = p.head; left; left = left->next)
				left->n = 0;
			pipe_release(&p);
		}
	}
}

/* A thousand batches through a pipe with room for one: each arrives, in order. */
static void *reads(void *ctx)
{
	struct other *o = ctx;

	for (int i = 0; i < 1000; i++) {
		if (pipe_wait_room(o->p, o->generation, EVENTS, LATER) < 0 ||
			pipe_put(o->p, batch_of(o->generation, EVENTS, 10, i)) < 0) {
			o->rc = -1;
			break;
		}
	}
	return NULL;
}

static void streams(void **state)
{
	struct other o = { 0 };
	struct pipe p;
	pthread_t t;

	(void)state;
	pipe_init(&p, EVENTS, BYTES);
	o.p = &p;
	o.generation = streaming(&p);
	assert_int_equal(pthread_create(&t, NULL, reads, &o), 0);
	for (int i = 0; i < 1000; i++) {
		struct batch *b = pipe_take(&p, o.generation, LATER);

		assert_non_null(b);
		assert_true(b->oldest_us == i);
		assert_true(p.events <= EVENTS);
		free_empty(b);
	}
	assert_int_equal(pthread_join(t, NULL), 0);
	assert_int_equal(o.rc, 0);
	pipe_release(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(start_order),
		cmocka_unit_test(in_order),
		cmocka_unit_test(room),
		cmocka_unit_test(reset),
		cmocka_unit_test(fenced),
		cmocka_unit_test(wakes),
		cmocka_unit_test(streams),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
