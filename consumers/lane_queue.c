/* consumers/lane_queue.c -- a lane's messages: the queue that others push into, what is taken from it into
 * work, and which parts they are of. Refuses to keep a message of a part that is dead, or to let a position
 * move in memory that has not moved in the database. */
#include "consumers/lane.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <stdlib.h>
#include <string.h>

#define SCAN 1000 /* messages looked through for a part's oldest one */

/* ---------------------------------------------------------------- the queue: any thread */

struct lane *lane_new(struct consumer *c, int number)
{
	struct lane *l = pr_calloc(1, sizeof(*l));
	pthread_condattr_t attr;

	l->c = c;
	l->number = number;
	(void)pthread_mutex_init(&l->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&l->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	l->tail = &l->head;
	l->limit = (size_t)pr_setting(&c->conf->limits.batch_events);
	l->keys = keyset_new();
	return l;
}

struct lane *lane_of(struct consumer *c, const struct part *p, int lane)
{
	return c->lanes[lane_number(p, lane)];
}

/* Of the buffer. */
static size_t share(const struct lane *l)
{
	return (size_t)(pr_setting(&l->c->conf->limits.buffer_bytes) / atomic_load(&l->c->lanes_used));
}

int lane_has_room(struct lane *l)
{
	if (atomic_load(&l->bytes) < share(l))
		return 1;
	atomic_store(&l->was_full, 1);
	return 0;
}

int lane_is_away(struct lane *l)
{
	return atomic_load(&l->away);
}

/* Its record's time; now, when that is not known or still to come: it ages from here on. */
static int64_t waits_since(const struct message *m)
{
	int64_t now = pr_wall_us();

	return m->time_us >= 0 && m->time_us < now ? m->time_us : now;
}

void lane_push(struct lane *l, struct message *list)
{
	struct message *m;
	size_t bytes = 0;

	(void)pthread_mutex_lock(&l->mutex);
	for (m = list; m; m = m->next) {
		_Atomic int64_t *oldest = &m->part->lane[m->lane].oldest_us;

		if (!m->replay && atomic_load(oldest) == INT64_MAX)
			atomic_store(oldest, waits_since(m));
		bytes += m->bytes;
		*l->tail = m;
		l->tail = &m->next;
	}
	atomic_fetch_add(&l->bytes, bytes);
	(void)pthread_cond_signal(&l->changed);
	(void)pthread_mutex_unlock(&l->mutex);
}

static void drop(struct lane *l, struct message *m)
{
	atomic_fetch_sub(&l->bytes, m->bytes);
	message_free(m);
}

/* Under the lock. */
static void drop_dead(struct lane *l)
{
	struct message **at = &l->head, *m;

	while ((m = *at)) {
		if (!atomic_load(&m->part->dead)) {
			at = &m->next;
			continue;
		}
		*at = m->next;
		drop(l, m);
	}
	l->tail = at;
}

void lane_forget(struct lane *l, const struct part *p)
{
	(void)p; /* dead says it: others that are dead may go along */
	(void)pthread_mutex_lock(&l->mutex);
	drop_dead(l);
	(void)pthread_mutex_unlock(&l->mutex);
}

static void drop_wanted(struct lane *l)
{
	for (size_t i = 0; i < l->wanted_n; i++)
		part_drop(l->wanted[i]);
	free(l->wanted);
	l->wanted = NULL;
	l->wanted_n = 0;
}

void lane_serve(struct lane *l, struct part *const *parts, size_t n)
{
	(void)pthread_mutex_lock(&l->mutex);
	drop_wanted(l);
	l->wanted = pr_calloc(n + 1, sizeof(*l->wanted));
	for (size_t i = 0; i < n; i++)
		l->wanted[i] = part_hold(parts[i]);
	l->wanted_n = n;
	l->serve_changed = 1;
	(void)pthread_cond_signal(&l->changed);
	(void)pthread_mutex_unlock(&l->mutex);
}

/* ---------------------------------------------------------------- what is served */

static void serve_nothing(struct lane *l)
{
	for (size_t i = 0; i < l->served_n; i++)
		part_drop(l->served[i].part);
	free(l->served);
	l->served = NULL;
	l->served_n = 0;
}

static void serve(struct lane *l, struct part *p)
{
	for (int i = 0; i < p->lane_count; i++) {
		if (lane_of(l->c, p, i) != l)
			continue;
		l->served = pr_realloc(l->served, (l->served_n + 1) * sizeof(*l->served));
		l->served[l->served_n++] = (struct served){ part_hold(p), i, p->lane[i].next, 0 };
	}
}

/* Takes over what the poll thread said. What was parked has to be asked anew. */
void lane_serve_changes(struct lane *l)
{
	(void)pthread_mutex_lock(&l->mutex);
	if (l->serve_changed) {
		serve_nothing(l);
		for (size_t i = 0; i < l->wanted_n; i++)
			if (!atomic_load(&l->wanted[i]->dead))
				serve(l, l->wanted[i]);
		drop_wanted(l);
		l->serve_changed = 0;
		l->loaded = l->level = 0;
	}
	(void)pthread_mutex_unlock(&l->mutex);
}

/* ---------------------------------------------------------------- work */

/* Forgets work[at..at + n). */
void lane_drop_work(struct lane *l, size_t at, size_t n)
{
	if (n == 0)
		return;
	for (size_t i = at; i < at + n; i++)
		drop(l, l->work[i].m);
	memmove(l->work + at, l->work + at + n, (l->work_n - at - n) * sizeof(*l->work));
	l->work_n -= n;
}

void lane_drop_dead(struct lane *l)
{
	for (size_t i = 0; i < l->work_n;) {
		if (!atomic_load(&l->work[i].m->part->dead)) {
			i++;
			continue;
		}
		lane_drop_work(l, i, 1);
		if (i == 0)
			l->not_before_us = 0; /* that was about the one that is gone */
	}
}

/* What the last owner began with this message and did not finish: it may have died of it. */
static void remember_attempts(struct lane *l, struct work *w)
{
	struct part_lane *pl = &w->m->part->lane[w->m->lane];
	struct outcome why = { .cls = PR_FAIL_CRASH };

	if (w->m->replay)
		return;
	if (pl->attempts > 0 && pl->attempt_offset == w->m->offset)
		pl->suspects = pl->attempt_batch;
	if (pl->suspects > 0) {
		pl->suspects--;
		w->alone = 1;
	}
	if (pl->attempts == 0 || pl->attempt_offset != w->m->offset)
		return;
	if (pl->attempt_batch == 1) {
		w->m->attempts += (unsigned)pl->attempts; /* those of a retry topic count too */
		w->begun = (unsigned)pl->attempts;
		if (pl->attempts - pl->ended >= pr_setting(&l->c->conf->limits.crashes)) {
			(void)snprintf(why.text, sizeof(why.text),
				"begun %u times and %lld times never finished: it takes the process along",
				w->m->attempts, (long long)(pl->attempts - pl->ended));
			decide(l, w->m, &why, &w->v);
		}
	}
	if (w->v.fate == FATE_PENDING)
		w->v.fate = FATE_HANDLE;
	pl->attempts = 0;
}

static void work_add(struct lane *l, struct message *m)
{
	if (l->work_n == l->work_cap) {
		l->work_cap = l->work_cap ? 2 * l->work_cap : 64;
		l->work = pr_realloc(l->work, l->work_cap * sizeof(*l->work));
	}
	l->work[l->work_n++] = (struct work){ .m = m };
	remember_attempts(l, &l->work[l->work_n - 1]);
}

/* More messages from the queue, up to one batch. Once a part is dead, what was in work of it is gone, or
 * goes: nothing that comes behind that may be taken, and what was read of it says nothing about what was
 * handled. */
void lane_take(struct lane *l)
{
	size_t most = (size_t)pr_setting(&l->c->conf->limits.batch_events);
	struct message *m;

	(void)pthread_mutex_lock(&l->mutex);
	if (!l->serve_changed) {
		while (l->work_n < most && (m = l->head)) {
			l->head = m->next;
			m->next = NULL;
			if (atomic_load(&m->part->dead))
				drop(l, m);
			else
				work_add(l, m);
		}
		if (!l->head)
			l->tail = &l->head;
		l->level = !l->head;
		for (size_t i = 0; i < l->served_n && l->level; i++)
			l->served[i].through = atomic_load(&l->served[i].part->dead)
						       ? INT64_MIN
						       : atomic_load(&l->served[i].part->read_through);
	}
	(void)pthread_mutex_unlock(&l->mutex);
}

static int64_t min(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Record time of the part's first message that is left; of many, one that is surely not younger. Under the
 * lock. */
static int64_t oldest_left(const struct lane *l, const struct step *s)
{
	int64_t held = s->part->lane[s->lane].held_us > 0 ? s->part->lane[s->lane].held_us : INT64_MAX;
	size_t seen = 0;

	for (size_t i = 0; i < l->work_n; i++, seen++)
		if (l->work[i].m->part == s->part && l->work[i].m->lane == s->lane)
			return min(held, waits_since(l->work[i].m));
	for (const struct message *m = l->head; m; m = m->next)
		if ((m->part == s->part && m->lane == s->lane) || ++seen > SCAN)
			return min(held, waits_since(m));
	return held;
}

void lane_moved(struct lane *l)
{
	(void)pthread_mutex_lock(&l->mutex);
	for (size_t i = 0; i < l->steps_n; i++) {
		struct part_lane *pl = &l->steps[i].part->lane[l->steps[i].lane];

		pl->next = l->steps[i].next;
		atomic_store(&pl->shown, pl->next);
		if (atomic_load(&pl->oldest_us) != INT64_MAX)
			atomic_store(&pl->oldest_us, oldest_left(l, &l->steps[i]));
	}
	/* A part that had nothing left was said to be as old as its neighbours. */
	for (size_t i = 0; i < l->served_n && l->work_n == 0 && !l->head; i++) {
		struct part_lane *pl = &l->served[i].part->lane[l->served[i].lane];

		atomic_store(&pl->oldest_us, pl->held_us > 0 ? pl->held_us : INT64_MAX);
	}
	(void)pthread_mutex_unlock(&l->mutex);
	l->steps_n = 0;
}

void lane_done(struct lane *l, size_t n)
{
	struct message *freed = NULL, **tail = &freed;
	size_t bytes = 0;

	for (size_t i = 0; i < n; i++) { /* the parts live on in served until positions_moved is over */
		*tail = l->work[i].m;
		tail = &l->work[i].m->next;
		bytes += l->work[i].m->bytes;
	}
	*tail = NULL;
	memmove(l->work, l->work + n, (l->work_n - n) * sizeof(*l->work));
	l->work_n -= n;
	lane_moved(l);
	message_free_all(freed);
	if (atomic_fetch_sub(&l->bytes, bytes) - bytes < share(l) / 2 && atomic_exchange(&l->was_full, 0))
		group_wake(l->c);
}

/* Whether the group took the partition, or the database names it (inbox.fence): of several that are gone, the
 * first. */
static int is_gone(const struct pr_err *err, const struct part *p)
{
	char *name = pr_asprintf("does not own %s [%" PRId32 "] lane ", p->topic, p->partition);
	int yes = atomic_load(&p->dead) || strstr(err->text, name) != NULL;

	free(name);
	return yes;
}

void lane_fenced(struct lane *l, const struct pr_err *err)
{
	int known_which = 0;

	atomic_fetch_add(&l->c->fenced, 1);
	for (size_t i = 0; i < l->steps_n; i++)
		known_which |= is_gone(err, l->steps[i].part);
	for (size_t i = 0; i < l->steps_n; i++) {
		struct part *p = l->steps[i].part;
		int known;

		if (known_which && !is_gone(err, p))
			continue;                     /* its messages go with the next batch */
		known = atomic_exchange(&p->dead, 1); /* the group said so, while we were at it */
		if (!atomic_exchange(&p->fenced, 1))
			pr_log(known ? PR_INFO : PR_WARN,
				"fenced: the partition was taken over, nothing of the batch is committed",
				KS("topic", p->topic), KI("partition", p->partition), KI("epoch", p->epoch));
	}
	l->steps_n = 0;
	lane_forget(l, NULL);
	group_wake(l->c);
}

/* A position must not move over a message that was not handled: the partitions are read again. */
enum applied lane_torn(struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "a message does not follow what was handled before it");
	pr_log_err(
		PR_ERROR, "nothing of this batch is committed, its partitions are read again: our bug", err);
	return FENCED;
}

/* ---------------------------------------------------------------- what is settled */

static void see(const struct lane *l, const struct message *m)
{
	if (!m->replay)
		m->part->lane[m->lane].seen_at = l->look;
}

/* What is queued or in work. Under the lock. */
static void see_all(struct lane *l)
{
	l->look++;
	for (size_t i = 0; i < l->work_n; i++)
		see(l, l->work[i].m);
	for (const struct message *m = l->head; m; m = m->next)
		see(l, m);
}

int lane_find_settled(struct lane *l)
{
	int n = 0;

	(void)pthread_mutex_lock(&l->mutex);
	see_all(l);
	for (size_t i = 0; i < l->served_n; i++) {
		struct served *s = &l->served[i];
		struct part_lane *pl = &s->part->lane[s->lane];

		s->settled = !atomic_load(&s->part->dead) && pl->seen_at != l->look;
		if (!s->settled)
			continue;
		s->through = atomic_load(&s->part->read_through);
		atomic_store(&pl->oldest_us, INT64_MAX);
		n += s->through > pl->next;
	}
	(void)pthread_mutex_unlock(&l->mutex);
	return n;
}

/* Nothing is queued, or to be served, any more. */
int lane_is_empty(struct lane *l)
{
	int nothing;

	(void)pthread_mutex_lock(&l->mutex);
	drop_dead(l);
	nothing = !l->head && !l->serve_changed;
	(void)pthread_mutex_unlock(&l->mutex);
	return nothing;
}

void lane_free(struct lane *l)
{
	if (!l)
		return;
	lane_drop_work(l, 0, l->work_n);
	message_free_all(l->head);
	serve_nothing(l);
	drop_wanted(l);
	keyset_free(l->keys);
	free(l->work);
	free(l->steps);
	(void)pthread_cond_destroy(&l->changed);
	(void)pthread_mutex_destroy(&l->mutex);
	free(l);
}
