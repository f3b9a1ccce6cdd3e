/* relay/pipe.c -- the queue between the two threads. Refuses to hold more than its
 * bound plus the chunk that was being read when it filled up. */
#include "relay/pipe.h"

#include "lib/clock.h"
#include "lib/pulse.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void pipe_init(struct pipe *p, size_t max_events, size_t max_bytes)
{
	pthread_condattr_t attr;

	memset(p, 0, sizeof(*p));
	(void)pthread_mutex_init(&p->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&p->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	p->tail = &p->head;
	p->max_events = max_events;
	p->max_bytes = max_bytes;
}

static void lock(struct pipe *p)
{
	(void)pthread_mutex_lock(&p->mutex);
}

static void unlock(struct pipe *p)
{
	(void)pthread_mutex_unlock(&p->mutex);
}

static void tell(struct pipe *p)
{
	(void)pthread_cond_broadcast(&p->changed);
}

#define LOOK_US PR_SEC

/* Under the lock; 0 when the deadline has passed. May return early: who waits for the other side looks up now
 * and then, and so shows that it is alive. */
static int wait_until(struct pipe *p, int64_t deadline_us)
{
	int64_t look = pr_mono_us() + LOOK_US, until = deadline_us < look ? deadline_us : look;
	struct timespec ts = { .tv_sec = until / PR_SEC, .tv_nsec = (until % PR_SEC) * 1000 };

	pr_pulse_wait(LOOK_US);
	return pthread_cond_timedwait(&p->changed, &p->mutex, &ts) == 0 || until < deadline_us;
}

static void drop_queue(struct pipe *p)
{
	struct batch *b;

	while ((b = p->head)) {
		p->head = b->next;
		batch_free(b);
	}
	p->tail = &p->head;
	p->events = p->bytes = 0;
}

void pipe_release(struct pipe *p)
{
	drop_queue(p);
	pr_position_release(&p->start);
	(void)pthread_cond_destroy(&p->changed);
	(void)pthread_mutex_destroy(&p->mutex);
}

void pipe_stop(struct pipe *p)
{
	lock(p);
	p->stop = 1;
	tell(p);
	unlock(p);
}

int pipe_stopped(struct pipe *p)
{
	int stop;

	lock(p);
	stop = p->stop;
	unlock(p);
	return stop;
}

uint64_t pipe_lead(struct pipe *p, const struct identity *who)
{
	uint64_t generation;

	lock(p);
	drop_queue(p);
	p->identity = *who;
	p->state = PIPE_LEADING;
	generation = ++p->generation;
	tell(p);
	unlock(p);
	return generation;
}

static int current(const struct pipe *p, uint64_t generation)
{
	return !p->stop && p->generation == generation && p->state != PIPE_STANDBY;
}

int pipe_wait_start(struct pipe *p, uint64_t generation, int64_t deadline_us, struct pr_position *ret)
{
	int rc = -1;

	lock(p);
	while (current(p, generation) && p->state != PIPE_STREAMING)
		if (!wait_until(p, deadline_us))
			break;
	if (current(p, generation) && p->state == PIPE_STREAMING) {
		pr_position_copy(ret, &p->start);
		rc = 0;
	}
	unlock(p);
	return rc;
}

static int has_room(const struct pipe *p, size_t events)
{
	if (p->events == 0)
		return 1;
	return p->events + events <= p->max_events && p->bytes < p->max_bytes;
}

int pipe_wait_room(struct pipe *p, uint64_t generation, size_t events, int64_t deadline_us)
{
	int rc = -1;

	lock(p);
	while (current(p, generation) && !has_room(p, events))
		if (!wait_until(p, deadline_us))
			break;
	if (current(p, generation) && has_room(p, events))
		rc = 0;
	unlock(p);
	return rc;
}

int pipe_put(struct pipe *p, struct batch *b)
{
	int ok;

	lock(p);
	ok = current(p, b->generation);
	if (ok) {
		b->next = NULL;
		*p->tail = b;
		p->tail = &b->next;
		p->events += b->n;
		p->bytes += b->bytes;
		tell(p);
	}
	unlock(p);
	if (!ok)
		batch_free(b);
	return ok ? 0 : -1;
}

uint64_t pipe_wait_lead(struct pipe *p, int64_t deadline_us, struct identity *ret)
{
	uint64_t generation = 0;

	lock(p);
	while (!p->stop && p->state != PIPE_LEADING)
		if (!wait_until(p, deadline_us))
			break;
	if (!p->stop && p->state == PIPE_LEADING) {
		generation = p->generation;
		*ret = p->identity;
	}
	unlock(p);
	return generation;
}

int pipe_start(struct pipe *p, uint64_t generation, const struct pr_position *position)
{
	int rc = -1;

	lock(p);
	if (current(p, generation)) {
		pr_position_copy(&p->start, position);
		p->state = PIPE_STREAMING;
		tell(p);
		rc = 0;
	}
	unlock(p);
	return rc;
}

struct batch *pipe_take(struct pipe *p, uint64_t generation, int64_t deadline_us)
{
	struct batch *b = NULL;

	lock(p);
	while (current(p, generation) && !p->head && deadline_us > 0)
		if (!wait_until(p, deadline_us))
			break;
	if (current(p, generation) && p->head) {
		b = p->head;
		p->head = b->next;
		if (!p->head)
			p->tail = &p->head;
		p->events -= b->n;
		p->bytes -= b->bytes;
		b->next = NULL;
		tell(p);
	}
	unlock(p);
	return b;
}

void pipe_reset(struct pipe *p, uint64_t generation)
{
	lock(p);
	if (p->generation == generation && p->state != PIPE_STANDBY) {
		p->state = PIPE_STANDBY;
		drop_queue(p);
		tell(p);
	}
	unlock(p);
}

void pipe_fenced(struct pipe *p, uint64_t generation)
{
	lock(p);
	p->fenced |= p->generation == generation;
	unlock(p);
	pipe_reset(p, generation);
}

int pipe_take_fenced(struct pipe *p)
{
	int fenced;

	lock(p);
	fenced = p->fenced;
	p->fenced = 0;
	unlock(p);
	return fenced;
}

int pipe_is(struct pipe *p, uint64_t generation)
{
	int yes;

	lock(p);
	yes = current(p, generation);
	unlock(p);
	return yes;
}

enum pipe_state pipe_state(struct pipe *p)
{
	enum pipe_state state;

	lock(p);
	state = p->state;
	unlock(p);
	return state;
}

uint64_t pipe_generation(struct pipe *p)
{
	uint64_t generation;

	lock(p);
	generation = p->generation;
	unlock(p);
	return generation;
}

int64_t pipe_oldest_us(struct pipe *p, size_t *ret_events)
{
	int64_t oldest = INT64_MAX;

	lock(p);
	for (const struct batch *b = p->head; b; b = b->next)
		if (b->oldest_us < oldest)
			oldest = b->oldest_us;
	*ret_events = p->events;
	unlock(p);
	return oldest;
}
