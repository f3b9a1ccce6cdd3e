/* consumers/canary/keeper.c -- the thread that writes a canary when one is due and tells how they fare: how
 * long they took, how old the newest is that came back, how many are late. Refuses to write while the
 * operator has paused the group: nobody would take them. */
#include "consumers/canary/canary.h"

#include "lib/clock.h"
#include "sql.h"

#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_US PR_SEC

struct keeper {
	struct consumer *c;
	struct pr_pg *pg;
	unsigned failures;
	int64_t born_us; /* monotonic: when the newest that is back was written, as last told; 0: not known */
	struct pr_series *seconds, *age, *missing;
};

static void observe(struct keeper *k, const char *took)
{
	char *end;

	for (double s = strtod(took, &end); end != took; s = strtod(took, &end)) {
		pr_observe(k->seconds, s);
		took = end;
	}
}

static void judge(struct keeper *k, const char *missing, const char *first)
{
	struct pr_err err;

	pr_gauge_set(k->missing, strtod(missing, NULL));
	if (strtod(missing, NULL) == 0) {
		health_trouble(k->c, TROUBLE_CANARY, NULL);
		return;
	}
	(void)pr_fail(&err, PR_RETRY, "the canary %s has not come back within %" PRId64 " s", first,
		(int64_t)(k->c->conf->canary.late_us / PR_SEC));
	(void)pr_hint(&err, "how far did it get? postrider trace %s -c relay.cfg", first);
	health_trouble(k->c, TROUBLE_CANARY, &err);
}

static int look(struct keeper *k, struct pr_err *err)
{
	char every[24], late[24];
	const char *params[] = { k->c->conf->group, every, late };
	PGresult *res;

	(void)snprintf(every, sizeof(every), "%" PRId64, k->c->conf->canary.every_us);
	(void)snprintf(late, sizeof(late), "%" PRId64, k->c->conf->canary.late_us);
	res = pr_pg_exec(k->pg, sql_canary_look, 3, params, err);
	if (!res)
		return -1;
	observe(k, PQgetvalue(res, 0, 0));
	k->born_us = pr_mono_us() - (int64_t)(strtod(PQgetvalue(res, 0, 1), NULL) * (double)PR_SEC);
	judge(k, PQgetvalue(res, 0, 2), PQgetvalue(res, 0, 3));
	PQclear(res);
	return 0;
}

/* Without a database, too, they grow older. While the group is paused nothing is known. */
static void tell_age(struct keeper *k)
{
	int paused = atomic_load(&k->c->paused);

	pr_gauge_set(
		k->age, paused || !k->born_us ? NAN : (double)(pr_mono_us() - k->born_us) / (double)PR_SEC);
	if (!paused)
		return;
	pr_gauge_set(k->missing, NAN);
	health_trouble(k->c, TROUBLE_CANARY, NULL);
}

static void rest(struct keeper *k, int64_t us)
{
	struct pollfd wake = { .fd = k->c->wake_fd, .events = POLLIN };
	int64_t every = k->c->conf->canary.every_us;

	(void)poll(&wake, 1, (int)((us < every ? us : every) / PR_MS));
}

static void init(struct keeper *k, struct consumer *c)
{
	struct pr_metrics *m = c->m.registry;

	k->c = c;
	k->seconds = pr_series_one(
		pr_histogram_new(m, "postrider_canary_seconds", "", pr_seconds_buckets, pr_seconds_buckets_n,
			"From a canary's insert into the outbox to its handling, of those that came back."));
	k->age = pr_gauge_new(m, "postrider_canary_age_seconds",
		"Since the newest canary that came back was written; NaN while that is not known.");
	k->missing = pr_gauge_new(
		m, "postrider_canary_missing", "Canaries that have not come back within canary.late.");
	pr_gauge_set(k->age, NAN);
}

void *canary_keeper(void *arg)
{
	struct keeper *k = pr_calloc(1, sizeof(*k));
	struct consumer *c = arg;
	struct pr_err err;

	init(k, c);
	while (!atomic_load(&c->stopping)) {
		int done = session_open(&k->pg, c, "canary", c->wake_fd, &err) == 0 &&
			   kind_schema(c->conf, k->pg, "canary", sql_canary_schema, &err) == 0 &&
			   (atomic_load(&c->paused) || look(k, &err) == 0);

		if (done)
			k->failures = 0;
		else if (!atomic_load(&c->stopping) && ++k->failures > 1)
			health_trouble(c, TROUBLE_CANARY, &err);
		tell_age(k);
		rest(k, done ? LOOK_US : pr_backoff_us(k->failures, 100 * PR_MS, 2 * PR_SEC));
	}
	pr_pg_close(k->pg);
	free(k);
	return NULL;
}
