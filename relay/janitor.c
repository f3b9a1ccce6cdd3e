/* relay/janitor.c -- the thread for everything that is not on an event's way: ranges made ahead and dropped
 * behind, scheduled events, the operator's orders, progress for people, and the probe of the lag while
 * nothing streams. Refuses to drop what the committed position does not cover. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/pg.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define ORDERS_US   (200 * PR_MS)
#define PROGRESS_US PR_SEC
#define FOREIGN_US  (60 * PR_SEC)
#define RANGES_LOW  4 /* fewer than this ahead is trouble */

struct janitor {
	struct relay *r;
	struct pr_pg *pg;
	int64_t next_ranges_us, next_progress_us, next_foreign_us;
	int64_t reported_seq;
	int64_t due_us; /* known time of ... 0: look */
	unsigned failures;
};

static int connect_pg(struct janitor *j, struct pr_err *err)
{
	const struct pr_relay_conf *conf = j->r->conf;
	char *appname;
	struct pr_pg_opts opts;
	int rc;

	if (j->pg && pr_pg_ok(j->pg))
		return 0;
	pr_pg_close(j->pg);
	j->pg = NULL;
	appname = pr_asprintf("postrider-relay %s janitor", conf->name);
	opts = (struct pr_pg_opts){ conf->source.conninfo, appname, conf->source.timeout_us, j->r->wake_fd };
	rc = pr_pg_open(&opts, &j->pg, err);
	free(appname);
	return rc;
}

/* First column of the first row as a number; *ret = none when there is no row or it is NULL. */
static int ask(struct janitor *j, const char *sql, int n, const char *const *params, int64_t none,
	int64_t *ret, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(j->pg, sql, n, params, err);

	if (!res)
		return -1;
	*ret = PQntuples(res) > 0 && !PQgetisnull(res, 0, 0) ? strtoll(PQgetvalue(res, 0, 0), NULL, 10)
							     : none;
	PQclear(res);
	return 0;
}

static int leads(struct relay *r)
{
	return pipe_state(&r->pipe) != PIPE_STANDBY;
}

static int orders(struct janitor *j, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(j->pg, sql_janitor_orders, 0, NULL, err);
	struct relay *r = j->r;
	int paused;

	if (!res)
		return -1;
	if (PQntuples(res) == 1) {
		paused = PQgetvalue(res, 0, 0)[0] == 't';
		if (atomic_exchange(&r->paused, paused) != paused)
			pr_log(PR_WARN, paused ? "paused" : "resumed", KS("by", PQgetvalue(res, 0, 1)));
		atomic_store(&r->request, strtoull(PQgetvalue(res, 0, 2), NULL, 10));
	}
	PQclear(res);
	return 0;
}

/* Moves what is due; how late the rest is counts as lag. */
static int scheduled(struct janitor *j, struct pr_err *err)
{
	int64_t moved = 1000, oldest;

	while (moved == 1000 && !atomic_load(&j->r->paused) && !atomic_load(&j->r->stopping))
		if (ask(j, sql_janitor_move, 0, NULL, 0, &moved, err) < 0)
			return -1;
	if (ask(j, sql_janitor_due, 0, NULL, INT64_MAX, &oldest, err) < 0)
		return -1;
	atomic_store(&j->r->scheduled_oldest_us, oldest);
	return 0;
}

static int progress(struct janitor *j, struct pr_err *err)
{
	int64_t seq = atomic_load(&j->r->published_seq);
	char text[24];

	/* Only when something changed: an idle relay writes nothing. */
	if (seq == j->reported_seq || pr_mono_us() < j->next_progress_us)
		return 0;
	(void)snprintf(text, sizeof(text), "%" PRId64, seq);
	if (pr_pg_run(j->pg, sql_janitor_progress, 1, (const char *const[]){ text }, err) < 0)
		return -1;
	j->reported_seq = seq;
	j->next_progress_us = pr_mono_us() + PROGRESS_US;
	return 0;
}

static int drop_one(
	struct janitor *j, const char *leaf, const char *snapshot, const char *low, struct pr_err *err)
{
	char keep[24];
	const char *params[4] = { leaf, snapshot, low, keep };
	PGresult *res;
	int dropped;

	(void)snprintf(keep, sizeof(keep), "%" PRId64, setting(&j->r->conf->retention.keep_us));
	res = pr_pg_exec(j->pg, sql_janitor_drop, 4, params, err);
	if (!res)
		return strcmp(err->code, "55P03") == 0 ? 0 : -1; /* in use: next time */
	dropped = PQgetvalue(res, 0, 0)[0] == 't';
	PQclear(res);
	if (dropped)
		pr_log(PR_INFO, "range dropped", KS("range", leaf));
	/* If we die here, the range is gone and the position has long covered it: nothing to repeat. */
	FAULT(range_dropped);
	return 0;
}

/* The position in Kafka may lead retention, never the other way round. */
static int drop_ranges(struct janitor *j, struct pr_err *err)
{
	struct pr_mark covered = { 0 };
	PGresult *res = NULL;
	char low[24];
	int rc = 0;

	(void)pthread_mutex_lock(&j->r->mutex);
	pr_mark_copy(&covered, &j->r->committed.from);
	(void)pthread_mutex_unlock(&j->r->mutex);
	if (!covered.snapshot)
		return 0;
	(void)snprintf(low, sizeof(low), "%" PRId64, covered.low);
	res = pr_pg_exec(j->pg, sql_janitor_old, 1, (const char *const[]){ low }, err);
	if (!res)
		rc = -1;
	for (int i = 0; rc == 0 && i < PQntuples(res); i++)
		rc = drop_one(j, PQgetvalue(res, i, 0), covered.snapshot, low, err);
	PQclear(res);
	pr_mark_release(&covered);
	return rc;
}

static void watch_ranges(struct janitor *j, int64_t ahead)
{
	struct pr_err err;

	atomic_store(&j->r->ranges_ahead, ahead);
	if (ahead >= RANGES_LOW) {
		health_trouble(j->r, TROUBLE_RANGES, NULL);
		return;
	}
	(void)pr_fail(&err, PR_RETRY,
		"only %" PRId64 " empty ranges of outbox.event are left ahead of the writers", ahead);
	(void)pr_hint(&err,
		"SELECT outbox.make_partitions(%" PRId64 ", %" PRId64 ") as the owner of the schema",
		setting(&j->r->conf->retention.partition_events), setting(&j->r->conf->retention.ahead));
	health_trouble(j->r, TROUBLE_RANGES, &err);
}

static int ranges(struct janitor *j, struct pr_err *err)
{
	char events[24], count[24];
	const char *params[2] = { events, count };
	int64_t made = 0, ahead;

	if (pr_mono_us() < j->next_ranges_us)
		return 0;
	j->next_ranges_us = pr_mono_us() + setting(&j->r->conf->retention.every_us);
	(void)snprintf(events, sizeof(events), "%" PRId64, setting(&j->r->conf->retention.partition_events));
	(void)snprintf(count, sizeof(count), "%" PRId64, setting(&j->r->conf->retention.ahead));
	if (ask(j, sql_janitor_make, 2, params, 0, &made, err) < 0 && strcmp(err->code, "55P03") != 0)
		return -1;
	if (ask(j, sql_janitor_ahead, 0, NULL, 0, &ahead, err) < 0)
		return -1;
	watch_ranges(j, ahead);
	return drop_ranges(j, err);
}

/* While nothing streams nobody reads, so somebody must look how old the oldest row is. */
static int probe(struct janitor *j, struct pr_err *err)
{
	struct pr_mark covered = { 0 };
	int64_t oldest = INT64_MAX;
	char low[24];
	int rc = 0;

	if (pipe_state(&j->r->pipe) != PIPE_STREAMING) {
		(void)pthread_mutex_lock(&j->r->mutex);
		pr_mark_copy(&covered, &j->r->committed.from);
		(void)pthread_mutex_unlock(&j->r->mutex);
		(void)snprintf(low, sizeof(low), "%" PRId64, covered.low);
		rc = covered.snapshot
			     ? ask(j, sql_janitor_probe, 2, (const char *const[]){ covered.snapshot, low },
				       INT64_MAX, &oldest, err)
			     : ask(j, sql_janitor_probe_first, 0, NULL, INT64_MAX, &oldest, err);
		pr_mark_release(&covered);
	}
	if (rc == 0) {
		atomic_store(&j->r->probe_oldest_us, oldest);
		atomic_store(&source_contact_us, pr_mono_us());
	}
	return rc;
}

static int foreign(struct janitor *j, struct pr_err *err)
{
	PGresult *res;

	if (pr_mono_us() < j->next_foreign_us)
		return 0;
	j->next_foreign_us = pr_mono_us() + FOREIGN_US;
	/* A long scan on purpose made rare; it has no index to use. */
	pr_pg_timeout(j->pg, 60 * PR_SEC);
	res = pr_pg_exec(j->pg, sql_janitor_foreign, 0, NULL, err);
	if (!res)
		return -1;
	atomic_store(&source_foreign.count, strtoull(PQgetvalue(res, 0, 0), NULL, 10));
	if (!PQgetisnull(res, 0, 1))
		atomic_store(&source_foreign.first_seq, strtoll(PQgetvalue(res, 0, 1), NULL, 10));
	PQclear(res);
	return 0;
}

static int idle(struct relay *r)
{
	return health_lag(r) < 1.0;
}

static int round_of_work(struct janitor *j, struct pr_err *err)
{
	if (connect_pg(j, err) < 0 || probe(j, err) < 0 || orders(j, err) < 0)
		return -1;
	if (!leads(j->r))
		return 0;
	if (scheduled(j, err) < 0 || progress(j, err) < 0 || ranges(j, err) < 0)
		return -1;
	return idle(j->r) ? foreign(j, err) : 0;
}

void *janitor_thread(void *ctx)
{
	struct janitor j = { .r = ctx };
	struct pollfd wake = { .fd = j.r->wake_fd, .events = POLLIN };
	int64_t wait_us;
	struct pr_err err;

	while (!atomic_load(&j.r->stopping)) {
		wait_us = ORDERS_US;
		if (round_of_work(&j, &err) == 0) {
			j.failures = 0;
			health_trouble(j.r, TROUBLE_JANITOR, NULL);
		} else if (!atomic_load(&j.r->stopping)) {
			wait_us = pr_backoff_us(j.failures++, 100 * PR_MS, 2 * PR_SEC);
			if (j.failures > 1)
				health_trouble(j.r, TROUBLE_JANITOR, &err);
		}
		(void)poll(&wake, 1, (int)(wait_us / PR_MS));
	}
	pr_pg_close(j.pg);
	return NULL;
}
