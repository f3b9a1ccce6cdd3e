/* consumers/scheduler/clock.c -- the thread that knows what time it is: fires due timers in batches, on as
 * many members as there are, and forgets those that are long over. Time is the database's: one for all
 * members. Refuses to fire while the operator has paused the group. */
#include "consumers/scheduler/scheduler.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_US     (200 * PR_MS) /* other members arm timers too */
#define MOST        1000          /* of one transaction */
#define FORGET_MOST "5000"

struct clock {
	struct consumer *c;
	struct pr_pg *pg;
	unsigned failures;
	char after_at[64], after_id[40]; /* how far this pass through the backlog is */
	int64_t due_us;                  /* until the next one, as last told; INT64_MAX: none */
	int64_t next_forget_us;
	struct pr_series *fired, *overdue;
};

static void begin_pass(struct clock *k)
{
	(void)snprintf(k->after_at, sizeof(k->after_at), "-infinity");
	(void)snprintf(k->after_id, sizeof(k->after_id), "00000000-0000-0000-0000-000000000000");
}

/* How many fired; the place of the last is where the next round goes on. */
static int64_t took(struct clock *k, PGresult *res)
{
	int64_t n = strtoll(PQgetvalue(res, 0, 0), NULL, 10);

	if (n < MOST) {
		begin_pass(k);
	} else {
		(void)snprintf(k->after_at, sizeof(k->after_at), "%s", PQgetvalue(res, 0, 1));
		(void)snprintf(k->after_id, sizeof(k->after_id), "%s", PQgetvalue(res, 0, 2));
	}
	PQclear(res);
	return n;
}

/* 1: there may be more; -1: what was not committed is still due. */
static int fire(struct clock *k, struct pr_err *err)
{
	char most[16];
	const char *params[] = { most, k->after_at, k->after_id };
	PGresult *res;
	int64_t n;

	(void)snprintf(most, sizeof(most), "%d", MOST);
	if (pr_pg_run(k->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	res = pr_pg_exec(k->pg, sql_scheduler_fire, 3, params, err);
	if (!res) {
		if (pr_pg_ok(k->pg) && pr_pg_run(k->pg, "ROLLBACK", 0, NULL, NULL) < 0)
			return -1;
		return -1;
	}
	n = took(k, res);
	/* If we die here, none of them has fired: state and event are one commit. */
	FAULT(scheduler_fired_before_commit);
	if (pr_pg_run(k->pg, "COMMIT", 0, NULL, err) < 0)
		return -1;
	/* If we die here, they have fired, and nobody fires them again. */
	FAULT(scheduler_fired_after_commit);
	pr_counter_add(k->fired, (uint64_t)n);
	return n >= MOST;
}

static int look(struct clock *k, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(k->pg, "SELECT scheduler.next_due()", 0, NULL, err);

	if (!res)
		return -1;
	k->due_us = PQgetisnull(res, 0, 0) ? INT64_MAX : strtoll(PQgetvalue(res, 0, 0), NULL, 10);
	PQclear(res);
	pr_gauge_set(k->overdue, k->due_us < 0 ? (double)-k->due_us / PR_SEC : 0);
	return 0;
}

static int forget(struct clock *k, struct pr_err *err)
{
	int64_t every = k->c->conf->handler.keep_us / 16;
	char keep[24];
	PGresult *res;

	every = every < PR_SEC / 2 ? PR_SEC / 2 : every > 60 * PR_SEC ? 60 * PR_SEC : every;
	(void)snprintf(keep, sizeof(keep), "%" PRId64, k->c->conf->handler.keep_us);
	res = pr_pg_exec(k->pg, sql_scheduler_forget, 2, (const char *const[]){ keep, FORGET_MOST }, err);
	if (!res)
		return -1;
	if (strcmp(PQgetvalue(res, 0, 0), FORGET_MOST) != 0)
		k->next_forget_us = pr_mono_us() + every;
	PQclear(res);
	return 0;
}

/* 1: there is more to do at once. */
static int round_of_work(struct clock *k, struct pr_err *err)
{
	int more = 0;

	if (look(k, err) < 0)
		return -1;
	if (!atomic_load(&k->c->paused) && k->due_us <= 0)
		more = fire(k, err);
	if (more < 0 || (pr_mono_us() >= k->next_forget_us && forget(k, err) < 0))
		return -1;
	return more;
}

static void rest(struct clock *k, int64_t us)
{
	struct pollfd wake = { .fd = k->c->wake_fd, .events = POLLIN };

	(void)poll(&wake, 1, (int)((us + PR_MS - 1) / PR_MS));
}

/* Until the next is due. One that is overdue and was not fired is in another member's hands. */
static void rest_until_due(struct clock *k)
{
	if (k->due_us > POLL_US || atomic_load(&k->c->paused))
		rest(k, POLL_US);
	else
		rest(k, k->due_us > 5 * PR_MS ? k->due_us : 5 * PR_MS);
}

static void init(struct clock *k, struct consumer *c)
{
	k->c = c;
	k->due_us = INT64_MAX;
	begin_pass(k);
	k->fired = pr_series_one(pr_family_new(c->m.registry, PR_COUNTER, "postrider_timers_fired_total", "",
		0, "Timers that this process fired."));
	k->overdue = pr_gauge_new(c->m.registry, "postrider_timer_overdue_seconds",
		"How long the earliest timer that is due has been so; 0: none is.");
}

void *scheduler_clock(void *arg)
{
	struct clock *k = pr_calloc(1, sizeof(*k));
	struct consumer *c = arg;
	struct pr_err err;
	int more;

	init(k, c);
	while (!atomic_load(&c->stopping)) {
		more = -1;
		if (session_open(&k->pg, c, "clock", c->wake_fd, &err) == 0 &&
			kind_schema(c->conf, k->pg, "scheduler", sql_scheduler_schema, &err) == 0)
			more = round_of_work(k, &err);
		if (more >= 0) {
			k->failures = 0;
			health_trouble(c, TROUBLE_TIMERS, NULL);
		} else if (!atomic_load(&c->stopping) && ++k->failures > 1) {
			health_trouble(c, TROUBLE_TIMERS, &err);
		}
		if (more < 0) {
			begin_pass(k);
			rest(k, pr_backoff_us(k->failures, 100 * PR_MS, 2 * PR_SEC));
		} else if (!more) {
			rest_until_due(k);
		}
	}
	pr_pg_close(k->pg);
	free(k);
	return NULL;
}
