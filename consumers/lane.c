/* consumers/lane.c -- one lane: the rhythm in which its messages become transactions. What fails
 * as a batch is halved until the culprit is alone; the messages before it are committed. Refuses to handle
 * anything of a part that is dead, or before it knows which keys are parked. */
#include "consumers/store.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define MOVE_US   PR_SEC        /* how often positions of idle lanes move */
#define BUSY_US   (2 * PR_SEC)  /* the same beside a backlog: not before an idle moment would have come */
#define IDLE_US   (200 * PR_MS) /* longest sleep: a stop or an order is seen this soon */
#define SETTLE_US (50 * PR_MS)  /* how often a lane looks whether it is done with what drains */
#define CROWD_US                                                                                             \
	(5 * PR_SEC) /* a lane whose batch collided with another's stays with smaller ones so long           \
		      */
#define RELEASE_US (100 * PR_MS) /* of parked messages, between two batches */
#define LARGE      500           /* messages of a batch for which its backend's memory matters */

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

void lane_disconnect(struct lane *l)
{
	l->c->ops->close(l->handler);
	l->handler = NULL;
	l->c->store->close(l);
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
	struct handler_env env = { c->conf, l->number, c->wake_fd, &c->end_us, &c->hangs[l->number] };
	char name[120];
	struct pr_pg_opts opts = { c->conf->database.conninfo, name, c->conf->database.timeout_us, -1 };

	if (l->pg && pr_pg_ok(l->pg) && l->handler)
		return 0;
	lane_disconnect(l);
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
	health_trouble(l->c, l->c->store->trouble, err);
	if (!l->c->store->usable(l))
		lane_disconnect(l);
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
		health_trouble(l->c, l->c->store->trouble, NULL);
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

/* Lanes whose batches lock the same rows in different orders deadlock the more often the larger they are, and
 * each time costs the server's deadlock_timeout: with batches that double at once, nothing else happens. */
static void crowd(struct lane *l, size_t most)
{
	l->crowd = most;
	l->crowd_until_us = pr_mono_us() + CROWD_US;
}

static void went_well(struct lane *l, size_t n)
{
	size_t most = (size_t)pr_setting(&l->c->conf->limits.batch_events);

	well(l);
	if (l->crowd && pr_mono_us() >= l->crowd_until_us)
		crowd(l, l->crowd * 2 < most ? l->crowd * 2 : 0);
	most = l->crowd ? l->crowd : most;
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
	l->limit = n / 2;
	if (strncmp(why->code, "40", 2) != 0)
		return;
	l->limit = n / 4 > 1 ? n / 4 : 1;
	crowd(l, l->limit);
	(void)lane_wait(l, pr_backoff_us(1, 2 * PR_MS, 50 * PR_MS));
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

	if (m->replay || !l->pg || !pr_pg_ok(l->pg) || l->c->store->one_lane)
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
		lane_drop_work(l, i, 1);
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
	applied = l->c->store->apply(l, n, &done, &why, &err);
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
		lane_fenced(l, &err);
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
		switch (l->c->store->move_idle(l, &err)) {
		case APPLIED:
			well(l);
			lane_moved(l);
			break;
		case BROKEN:
			broken(l, &err);
			return;
		default:
			lane_fenced(l, &err);
			break;
		}
	}
	await_push(l, IDLE_US);
}

static int drains(const struct lane *l)
{
	for (size_t i = 0; i < l->served_n; i++)
		if (atomic_load(&l->served[i].part->ending) == PART_DRAINS)
			return 1;
	return 0;
}

/* A lane that others keep busy is never idle: for its positions without messages wait a part that drains, and
 * the saga engine's other members. */
static int settle(struct lane *l, struct pr_err *err)
{
	int64_t now = pr_mono_us();

	if (drains(l) ? now - l->settled_us < SETTLE_US : l->work_n == 0 || now - l->moved_us < BUSY_US)
		return 0;
	l->settled_us = l->moved_us = now;
	if (lane_find_settled(l) == 0)
		return 0;
	switch (l->c->store->move_idle(l, err)) {
	case APPLIED:
		lane_moved(l);
		return 0;
	case BROKEN:
		return -1;
	default:
		lane_fenced(l, err);
		return 0;
	}
}

static int ready(struct lane *l)
{
	int anew = !l->loaded;
	struct pr_err err;

	if (l->c->store->open(l, &err) < 0 || (!l->loaded && l->c->store->load(l, &err) < 0)) {
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

	while ((rc = l->c->store->release(l, until, err)) > 0 && pr_mono_us() < until &&
		!atomic_load(&l->c->stopping))
		did = 1;
	return rc ? rc : did;
}

/* Others do the work: fewer lanes are wanted, and nothing is left of what it had. */
static int superfluous(struct lane *l)
{
	return l->number >= lanes_wanted(l->c) && l->served_n == 0 && l->work_n == 0 && lane_is_empty(l);
}

static void rest(struct lane *l)
{
	breaker_release(l);
	if (l->handler)
		pr_log(PR_INFO, "a lane rests", KI("lane", l->number));
	lane_disconnect(l);
	held_forget(l);
	no_failures(l);
	await_push(l, IDLE_US);
}

static void turn(struct lane *l)
{
	int did;
	int64_t wait_us;
	struct pr_err err;

	lane_serve_changes(l);
	lane_drop_dead(l);
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
	lane_take(l);
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
	if (l->c->store->finish)
		l->c->store->finish(l);
	lane_disconnect(l);
	return NULL;
}
