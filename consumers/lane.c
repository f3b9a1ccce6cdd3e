/* consumers/lane.c -- one lane: a queue, and the rhythm in which its messages become transactions. What fails
 * as a batch is halved until the culprit is alone; the messages before it are committed. Refuses to handle
 * anything of a part that is dead, or before it knows which keys are parked. */
#include "consumers/lane.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "sql.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define MOVE_US    PR_SEC        /* how often positions of idle lanes move */
#define IDLE_US    (200 * PR_MS) /* longest sleep: a stop or an order is seen this soon */
#define SETTLE_US  (50 * PR_MS)  /* how often a lane looks whether it is done with what drains */
#define COLLISIONS 3             /* a batch that lost a deadlock is tried so often before it is halved */
#define RELEASE_US (100 * PR_MS) /* of parked messages, between two batches */
#define LARGE      500           /* messages of a batch for which its backend's memory matters */
#define SCAN       1000          /* messages looked through for a part's oldest one */

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
	return c->lanes[lane % p->workers];
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

	(void)pthread_mutex_lock(&l->mutex);
	for (m = list; m; m = m->next) {
		_Atomic int64_t *oldest = &m->part->lane[m->lane].oldest_us;

		if (!m->replay && atomic_load(oldest) == INT64_MAX)
			atomic_store(oldest, waits_since(m));
		atomic_fetch_add(&l->bytes, m->bytes);
		*l->tail = m;
		l->tail = &m->next;
	}
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
static void serve_changes(struct lane *l)
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
static void work_drop(struct lane *l, size_t at, size_t n)
{
	if (n == 0)
		return;
	for (size_t i = at; i < at + n; i++)
		drop(l, l->work[i].m);
	memmove(l->work + at, l->work + at + n, (l->work_n - at - n) * sizeof(*l->work));
	l->work_n -= n;
}

static void work_drop_dead(struct lane *l)
{
	for (size_t i = 0; i < l->work_n;) {
		if (!atomic_load(&l->work[i].m->part->dead)) {
			i++;
			continue;
		}
		work_drop(l, i, 1);
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
		w->m->attempts = (unsigned)pl->attempts;
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

/* More messages from the queue, up to one batch. */
static void take(struct lane *l)
{
	size_t most = (size_t)pr_setting(&l->c->conf->limits.batch_events);
	struct message *m;

	(void)pthread_mutex_lock(&l->mutex);
	if (!l->serve_changed) {
		while (l->work_n < most && (m = l->head)) {
			l->head = m->next;
			m->next = NULL;
			work_add(l, m);
		}
		if (!l->head)
			l->tail = &l->head;
		l->level = !l->head;
		for (size_t i = 0; i < l->served_n && l->level; i++)
			l->served[i].through = atomic_load(&l->served[i].part->read_through);
	}
	(void)pthread_mutex_unlock(&l->mutex);
}

/* Record time of the part's first message that is left; of many, one that is surely not younger. Under the
 * lock. */
static int64_t oldest_left(const struct lane *l, const struct step *s)
{
	size_t seen = 0;

	for (size_t i = 0; i < l->work_n; i++, seen++)
		if (l->work[i].m->part == s->part && l->work[i].m->lane == s->lane)
			return waits_since(l->work[i].m);
	for (const struct message *m = l->head; m; m = m->next)
		if ((m->part == s->part && m->lane == s->lane) || ++seen > SCAN)
			return waits_since(m);
	return INT64_MAX;
}

static void positions_moved(struct lane *l)
{
	(void)pthread_mutex_lock(&l->mutex);
	for (size_t i = 0; i < l->steps_n; i++) {
		struct part_lane *pl = &l->steps[i].part->lane[l->steps[i].lane];

		pl->next = l->steps[i].next;
		atomic_store(&pl->shown, pl->next);
		atomic_store(&pl->oldest_us, oldest_left(l, &l->steps[i]));
	}
	/* A part that had nothing left was said to be as old as its neighbours. */
	for (size_t i = 0; i < l->served_n && l->work_n == 0 && !l->head; i++)
		atomic_store(&l->served[i].part->lane[l->served[i].lane].oldest_us, INT64_MAX);
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
	positions_moved(l);
	message_free_all(freed);
	if (atomic_fetch_sub(&l->bytes, bytes) - bytes < share(l) / 2 && atomic_exchange(&l->was_full, 0))
		group_wake(l->c);
}

void lane_fenced(struct lane *l)
{
	atomic_fetch_add(&l->c->fenced, 1);
	for (size_t i = 0; i < l->steps_n; i++) {
		struct part *p = l->steps[i].part;

		int known = atomic_exchange(&p->dead, 1); /* the group said so, while we were at it */

		if (!atomic_exchange(&p->fenced, 1))
			pr_log(known ? PR_INFO : PR_WARN,
				"fenced: the partition was taken over, nothing of the batch is committed",
				KS("topic", p->topic), KI("partition", p->partition), KI("epoch", p->epoch));
	}
	l->steps_n = 0;
	group_wake(l->c);
}

/* ---------------------------------------------------------------- waiting */

int lane_wait(struct lane *l, int64_t us)
{
	struct pollfd wake = { .fd = l->c->wake_fd, .events = POLLIN };

	if (us > 0 && !atomic_load(&l->c->stopping))
		(void)poll(&wake, 1, (int)(us / PR_MS) + 1);
	return atomic_load(&l->c->stopping);
}

/* Until something is pushed or changed, or the time has come. */
static void await_push(struct lane *l, int64_t us)
{
	int64_t until = pr_mono_us() + (us < IDLE_US ? us : IDLE_US);
	struct timespec ts = { .tv_sec = until / PR_SEC, .tv_nsec = (until % PR_SEC) * 1000 };

	(void)pthread_mutex_lock(&l->mutex);
	while (!l->head && !l->serve_changed && !atomic_load(&l->c->stopping))
		if (pthread_cond_timedwait(&l->changed, &l->mutex, &ts) != 0)
			break;
	(void)pthread_mutex_unlock(&l->mutex);
}

/* ---------------------------------------------------------------- the database */

static void disconnect(struct lane *l)
{
	l->c->ops->close(l->handler);
	l->handler = NULL;
	pr_pg_close(l->pg);
	l->pg = NULL;
	l->roomy = 0;
	l->loaded = 0; /* whether the last transaction was committed is not known */
}

/* A process that stands still in a handler holds the ids of its batch, and whoever takes over waits for them:
 * the server ends it once the handler's time is over. */
static int bound_silence(struct lane *l, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = l->c->conf;
	char sql[80];

	(void)snprintf(sql, sizeof(sql), "SET idle_in_transaction_session_timeout = %lld",
		(long long)((conf->handler.timeout_us + conf->database.timeout_us) / PR_MS));
	return pr_pg_run(l->pg, sql, 0, NULL, err);
}

/* A batch that has begun is finished when we stop, so this connection knows no wake-up: its deadlines end it.
 */
int lane_connect(struct lane *l, struct pr_err *err)
{
	struct consumer *c = l->c;
	struct handler_env env = { c->conf, l->number, c->wake_fd };
	char name[120];
	struct pr_pg_opts opts = { c->conf->database.conninfo, name, c->conf->database.timeout_us, -1 };

	if (l->pg && pr_pg_ok(l->pg) && l->handler)
		return 0;
	disconnect(l);
	(void)snprintf(name, sizeof(name), "postrider-consumer %.32s lane %d", c->conf->group, l->number);
	if (pr_pg_open(&opts, &l->pg, err) < 0)
		return -1;
	/* Users' functions see the path that their database gives them; ours name their schema. */
	if (pr_pg_run(l->pg, "RESET search_path", 0, NULL, err) < 0 || bound_silence(l, err) < 0 ||
		message_types_read(&l->types, l->pg, err) < 0)
		return -1;
	if (c->ops->open(&env, l->pg, &l->handler, err) < 0)
		return -1;
	l->opened = 1;
	return 0;
}

/* Something that is not about a message failed: said, waited for, tried again. */
static void broken(struct lane *l, const struct pr_err *err)
{
	if (err->kind == PR_STOP && err->exit == PR_EX_CONFIG && !l->opened) {
		health_trouble(l->c, TROUBLE_REFUSED, err);
		consumer_stop(l->c, err->exit);
		return;
	}
	health_trouble(l->c, TROUBLE_POSTGRES, err);
	if (!l->pg || !pr_pg_ok(l->pg))
		disconnect(l);
	l->steps_n = 0;
	if (l->failures == 0)
		atomic_fetch_add(&l->c->broken_lanes, 1);
	(void)lane_wait(l, pr_backoff_us(l->failures++, 20 * PR_MS, PR_SEC));
}

static void no_failures(struct lane *l)
{
	if (l->failures > 0)
		atomic_fetch_sub(&l->c->broken_lanes, 1);
	l->failures = 0;
}

/* It is, when it is for all: what one lane gets done does not mend what another one stands at. */
static void well(struct lane *l)
{
	no_failures(l);
	if (atomic_load(&l->c->broken_lanes) == 0)
		health_trouble(l->c, TROUBLE_POSTGRES, NULL);
}

/* ---------------------------------------------------------------- one step */

/* Size of the next batch. */
static size_t batch_of(const struct lane *l)
{
	size_t n = l->careful || l->probing || l->work[0].alone ? 1
		   : l->limit < l->work_n                       ? l->limit
								: l->work_n;
	size_t bytes = 0, most = (size_t)pr_setting(&l->c->conf->limits.batch_bytes);

	for (size_t i = 0; i < n; i++) {
		bytes += l->work[i].m->bytes;
		if (i > 0 && (bytes > most || l->work[i].alone))
			return i;
	}
	return n;
}

static void went_well(struct lane *l, size_t n)
{
	size_t most = (size_t)pr_setting(&l->c->conf->limits.batch_events);

	well(l);
	l->retries = 0;
	l->limit = l->limit * 2 < most ? l->limit * 2 : most;
	l->careful = l->careful > n ? l->careful - n : 0;
}

/* Whether the handler took the first n. What was stepped over says nothing about it. */
static int was_handled(const struct lane *l, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (l->work[i].v.fate == FATE_HANDLE || l->work[i].v.fate == FATE_DONE)
			return 1;
	return 0;
}

/* More than one message failed together, and the error may be about any of them. */
static void batch_failed(struct lane *l, size_t n, const struct outcome *why)
{
	atomic_fetch_add(&l->c->retried, 1);
	if (rule_of(l, why)->policy == PR_POLICY_BREAKER) {
		breaker_open(l, why, why->retry_after_us);
		return;
	}
	if (strncmp(why->code, "40", 2) == 0 && l->retries++ < COLLISIONS) {
		(void)lane_wait(l, pr_backoff_us(l->retries, 2 * PR_MS, 50 * PR_MS));
		return;
	}
	l->retries = 0;
	l->limit = n / 2;
}

static void one_failed(struct lane *l, const struct outcome *why)
{
	struct work *w = &l->work[0];

	w->m->attempts++;
	decide(l, w->m, why, &w->v);
	if (w->v.fate != FATE_PENDING)
		return; /* the next transaction holds it back */
	atomic_fetch_add(&l->c->retried, 1);
	l->not_before_us = pr_mono_us() + w->v.delay_us;
	w->v.fate = FATE_HANDLE;
}

/* The connection went while messages were with the handler: one of them may be why. */
static void lost_with(struct lane *l, size_t n, const struct pr_err *err)
{
	struct outcome why = { .cls = PR_FAIL_CRASH };

	l->careful = l->careful > n ? l->careful : n;
	if (n == 1 && ++l->work[0].broke >= (unsigned)pr_setting(&l->c->conf->limits.crashes)) {
		(void)snprintf(why.text, sizeof(why.text),
			"the database's session ended %u times with it: %s", l->work[0].broke, err->text);
		decide(l, l->work[0].m, &why, &l->work[0].v);
		if (l->work[0].v.fate == FATE_PENDING)
			l->work[0].v.fate = FATE_HANDLE;
	}
	broken(l, err);
}

/* The try of a message that was alone has ended, and there will be another: what the next owner of the
 * partition finds in inbox.attempt is no crash. counts: the message failed, and not what is behind the
 * handler. */
static void try_ended(struct lane *l, const struct message *m, int counts)
{
	struct pr_err err;
	struct args a = { 0 };
	struct pr_stmt s;

	if (m->replay || !l->pg || !pr_pg_ok(l->pg))
		return;
	args_text(&a, l->c->conf->group);
	args_text(&a, m->topic);
	args_int(&a, m->partition);
	args_int(&a, m->lane);
	args_int(&a, m->offset);
	args_int(&a, m->part->epoch);
	args_text(&a, counts ? "t" : "f");
	s = args_stmt(&a, sql_lane_attempt_ended, 1);
	if (pr_pg_pipeline(l->pg, &s, 1, NULL, &err) < 0)
		broken(l, &err); /* one crash too many is counted */
	pr_stmt_clear(&s, 1);
	args_free(&a);
}

static int waits(const struct work *w)
{
	return w->v.fate == FATE_HANDLE || w->v.fate == FATE_PENDING;
}

/* Replayed messages of the first n: under way from here to leave_replayed. Those of a part that is closed go,
 * and their job reads them again. What is left of the n. */
static size_t enter_replayed(struct lane *l, size_t n)
{
	for (size_t i = 0; i < n;) {
		if (!l->work[i].m->replay || part_enter(l->work[i].m->part)) {
			i++;
			continue;
		}
		work_drop(l, i, 1);
		n--;
	}
	return n;
}

static void leave_replayed(struct lane *l, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (l->work[i].m->replay)
			part_leave(l->work[i].m->part);
}

/* glibc gives freed memory back to the kernel once it is twice as much as the largest piece that was ever
 * mapped and freed. A backend needs 8 MB to take in 2,000 messages, all of it free again before the next
 * statement, and so it would get its pages anew for every batch: two page faults an event. One piece of 16
 * MB, before the first large batch of a connection, spares it that; it keeps what it needs, up to 32 MB. */
static void make_room(struct lane *l, size_t n)
{
	struct pr_err err;

	if (l->roomy || n < LARGE || !l->c->ops->in_transaction)
		return;
	l->roomy = 1;
	/* What fails here fails again in the batch, and is told there. */
	if (pr_pg_run(l->pg, "SELECT pg_catalog.length(pg_catalog.repeat('x', 16777216))", 0, NULL, &err) < 0)
		return;
}

static void step(struct lane *l)
{
	struct outcome why = { 0 };
	size_t n = enter_replayed(l, batch_of(l)), done = n;
	const struct message *first;
	struct pr_err err = { 0 };
	enum applied applied;
	unsigned tries;

	if (n == 0)
		return;
	first = l->work[0].m;
	tries = first->attempts;
	l->not_before_us = 0;
	make_room(l, n);
	applied = apply(l, n, &done, &why, &err);
	leave_replayed(l, n);
	switch (applied) {
	case APPLIED:
		if (was_handled(l, done))
			breaker_close(l);
		lane_done(l, done);
		if (done > 0)
			went_well(l, done);
		break;
	case FAILED:
		well(l);
		if (done > 1)
			batch_failed(l, done, &why);
		else
			one_failed(l, &why);
		break;
	case COLLIDED:
		l->look_first = 1;
		for (size_t i = 0; i < done; i++)
			l->work[i].looked = 0; /* somebody was faster than our last look */
		break;
	case FENCED:
		lane_fenced(l);
		break;
	case BROKEN:
		if (l->pg && !pr_pg_ok(l->pg))
			lost_with(l, done, &err);
		else
			broken(l, &err);
		break;
	}
	if (done <= 1 && l->work_n > 0 && l->work[0].m == first && waits(&l->work[0]))
		try_ended(l, first, first->attempts > tries);
}

/* Nothing to do: positions of idle lanes move on, then sleep. */
static void idle(struct lane *l)
{
	int64_t now = pr_mono_us();
	struct pr_err err;

	breaker_release(l);
	if (l->level && now - l->moved_us > MOVE_US) {
		l->moved_us = now;
		switch (move_idle(l, &err)) {
		case APPLIED:
			well(l);
			positions_moved(l);
			break;
		case BROKEN:
			broken(l, &err);
			return;
		default:
			lane_fenced(l);
			break;
		}
	}
	await_push(l, IDLE_US);
}

/* Whether anything of the lane is queued or in work. Under the lock. */
static int is_here(const struct lane *l, const struct served *s)
{
	for (size_t i = 0; i < l->work_n; i++)
		if (l->work[i].m->part == s->part && l->work[i].m->lane == s->lane && !l->work[i].m->replay)
			return 1;
	for (const struct message *m = l->head; m; m = m->next)
		if (m->part == s->part && m->lane == s->lane && !m->replay)
			return 1;
	return 0;
}

/* How many lanes of parts that drain stand behind all that was read, and may say so. */
static int find_settled(struct lane *l)
{
	int n = 0;

	(void)pthread_mutex_lock(&l->mutex);
	for (size_t i = 0; i < l->served_n; i++) {
		struct served *s = &l->served[i];

		if (atomic_load(&s->part->ending) == PART_GOES_ON ||
			atomic_load(&s->part->read_through) <= s->part->lane[s->lane].next || is_here(l, s))
			continue;
		s->through = atomic_load(&s->part->read_through);
		s->settled = 1;
		n++;
	}
	(void)pthread_mutex_unlock(&l->mutex);
	return n;
}

/* A part that drains waits for its lanes without messages too, and a lane that others keep busy is never
 * idle.
 */
static int settle(struct lane *l, struct pr_err *err)
{
	int64_t now = pr_mono_us();
	int draining = 0;

	for (size_t i = 0; i < l->served_n; i++)
		draining |= atomic_load(&l->served[i].part->ending) == PART_DRAINS;
	if (!draining || now - l->settled_us < SETTLE_US)
		return 0;
	l->settled_us = now;
	if (find_settled(l) == 0)
		return 0;
	switch (move_idle(l, err)) {
	case APPLIED:
		positions_moved(l);
		return 0;
	case BROKEN:
		return -1;
	default:
		lane_fenced(l);
		return 0;
	}
}

static int ready(struct lane *l)
{
	int anew = !l->loaded;
	struct pr_err err;

	if (lane_connect(l, &err) < 0 || (!l->loaded && held_load(l, &err) < 0)) {
		atomic_store(&l->away, 1);
		broken(l, &err);
		return 0;
	}
	atomic_store(&l->away, 0);
	l->loaded = 1;
	if (l->failures > 0 && anew) /* else it stands at a batch, which is to get through */
		well(l);
	return 1;
}

/* What is due of the parked keys, and what was behind it, for a while: held_retry. A key of which more comes
 * in than goes out in this time would stay parked for ever. */
static int release(struct lane *l, struct pr_err *err)
{
	int64_t until = pr_mono_us() + RELEASE_US;
	int rc, did = 0;

	while ((rc = held_retry(l, err)) > 0 && pr_mono_us() < until && !atomic_load(&l->c->stopping))
		did = 1;
	return rc ? rc : did;
}

/* Others do the work: fewer lanes are wanted, and nothing is left of what it had. */
static int superfluous(struct lane *l)
{
	int nothing;

	if (l->number < lanes_wanted(l->c) || l->served_n > 0 || l->work_n > 0)
		return 0;
	(void)pthread_mutex_lock(&l->mutex);
	drop_dead(l);
	nothing = !l->head && !l->serve_changed;
	(void)pthread_mutex_unlock(&l->mutex);
	return nothing;
}

static void rest(struct lane *l)
{
	breaker_release(l);
	if (l->pg)
		pr_log(PR_INFO, "a lane rests", KI("lane", l->number));
	disconnect(l);
	held_forget(l);
	no_failures(l);
	await_push(l, IDLE_US);
}

static void turn(struct lane *l)
{
	int did;
	int64_t wait_us;
	struct pr_err err;

	serve_changes(l);
	work_drop_dead(l);
	if (superfluous(l)) {
		rest(l);
		return;
	}
	if (!ready(l))
		return;
	if (atomic_load(&l->c->paused)) {
		(void)lane_wait(l, 50 * PR_MS);
		return;
	}
	take(l);
	did = settle(l, &err) < 0 ? -1 : release(l, &err);
	if (did < 0) {
		broken(l, &err);
		return;
	}
	if (l->work_n == 0 && did > 0)
		return;
	if (l->work_n == 0) {
		idle(l);
		return;
	}
	wait_us = l->not_before_us - pr_mono_us();
	if (wait_us > 0)
		(void)lane_wait(l, wait_us < IDLE_US ? wait_us : IDLE_US);
	else if (!breaker_lets_go(l, &wait_us))
		(void)lane_wait(l, wait_us < IDLE_US ? wait_us : IDLE_US);
	else
		step(l);
}

void *lane_thread(void *arg)
{
	struct lane *l = arg;

	while (!atomic_load(&l->c->stopping))
		turn(l);
	disconnect(l);
	return NULL;
}

void lane_free(struct lane *l)
{
	if (!l)
		return;
	work_drop(l, 0, l->work_n);
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
