/* relay/retention.c -- the thread that makes ranges of outbox.event ahead of the writers and drops them
 * behind the position, and looks once after each start for rows that carry a foreign transaction id.
 * Refuses to drop what the committed position does not cover. */
#include "relay/worker.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROUND_US  PR_SEC         /* unless ranges are made and dropped more often */
#define RANGE_LOW 4              /* fewer empty ranges ahead than this is trouble */
#define SCAN_US   (600 * PR_SEC) /* a drop reads its whole range first */

struct retention {
	struct worker worker; /* first: a round gets it back by a cast */
	int64_t next_us, look_us;
	uint64_t generation; /* whose rows were looked through for foreign ids ... */
	int64_t scanned;     /* ... below this seq, ... */
	int64_t end;         /* ... up to the first that its reader meets */
};

/* 1 dropped or to be kept, 0 its lock was not to be had: the others' would not be either. */
static int drop_one(
	struct worker *w, const char *leaf, const char *snapshot, const char *low, struct pr_err *err)
{
	char keep[24];
	const char *params[4] = { leaf, snapshot, low, keep };
	PGresult *res;
	int dropped;

	(void)snprintf(keep, sizeof(keep), "%" PRId64, setting(&w->r->conf->retention.keep_us));
	pr_pg_timeout(w->pg, SCAN_US);
	res = pr_pg_exec(w->pg, sql_retention_drop, 4, params, err);
	if (!res)
		return strcmp(err->code, "55P03") == 0 ? 0 : -1;
	dropped = PQgetvalue(res, 0, 0)[0] == 't';
	PQclear(res);
	if (dropped)
		pr_log(PR_INFO, "range dropped", KS("range", leaf));
	/* If we die here, the range is gone and the position has long covered it: nothing to repeat. */
	FAULT(range_dropped);
	return 1;
}

/* The position in Kafka may lead retention, never the other way round. */
static int drop_ranges(struct worker *w, struct pr_err *err)
{
	struct pr_mark covered = { 0 };
	PGresult *res;
	char low[24];
	int rc = 1;

	worker_committed(w, &covered);
	if (!covered.snapshot)
		return 0;
	(void)snprintf(low, sizeof(low), "%" PRId64, covered.low);
	res = pr_pg_exec(w->pg, sql_retention_old, 1, (const char *const[]){ low }, err);
	if (!res)
		rc = -1;
	for (int i = 0; rc == 1 && i < PQntuples(res) && !atomic_load(&w->r->stopping); i++)
		rc = drop_one(w, PQgetvalue(res, i, 0), covered.snapshot, low, err);
	PQclear(res);
	pr_mark_release(&covered);
	return rc < 0 ? -1 : 0;
}

static void watch_ranges(struct relay *r)
{
	int64_t ahead = atomic_load(&r->ranges_ahead);
	int64_t wanted = setting(&r->conf->retention.ahead);
	struct pr_err err;

	if (ahead >= (wanted < RANGE_LOW ? wanted : RANGE_LOW)) {
		health_trouble(r, TROUBLE_RANGES, NULL);
		return;
	}
	(void)pr_fail(&err, PR_RETRY,
		"only %" PRId64 " empty ranges of outbox.event are left ahead of the writers", ahead);
	(void)pr_hint(&err,
		"SELECT outbox.make_partitions(%" PRId64 ", %" PRId64 ") as the owner of the schema",
		setting(&r->conf->retention.partition_events), wanted);
	health_trouble(r, TROUBLE_RANGES, &err);
}

static int count_ranges(struct worker *w, struct pr_err *err)
{
	int64_t ahead;

	if (worker_ask(w, sql_retention_ahead, 0, NULL, 0, &ahead, err) < 0)
		return -1;
	atomic_store(&w->r->ranges_ahead, ahead);
	return 0;
}

static int make_ranges(struct worker *w, struct pr_err *err)
{
	char events[24], count[24];
	const char *params[2] = { events, count };
	int64_t made;

	(void)snprintf(events, sizeof(events), "%" PRId64, setting(&w->r->conf->retention.partition_events));
	(void)snprintf(count, sizeof(count), "%" PRId64, setting(&w->r->conf->retention.ahead));
	if (worker_ask(w, sql_retention_make, 2, params, 0, &made, err) < 0 &&
		strcmp(err->code, "55P03") != 0)
		return -1;
	if (count_ranges(w, err) < 0)
		return -1;
	watch_ranges(w->r);
	return 0;
}

static int make_ahead(struct retention *t, struct pr_err *err)
{
	t->next_us = pr_mono_us() + setting(&t->worker.r->conf->retention.every_us);
	return make_ranges(&t->worker, err);
}

/* A standby makes none, and may be asked all the same. When it leads, it does not wait. */
static int look_ahead(struct retention *t, struct pr_err *err)
{
	if (atomic_load(&t->worker.r->ranges_ahead) >= 0 && pr_mono_us() < t->look_us)
		return 0;
	t->look_us = pr_mono_us() + setting(&t->worker.r->conf->retention.every_us);
	return count_ranges(&t->worker, err);
}

static void note_foreign(const PGresult *res)
{
	uint64_t count = strtoull(PQgetvalue(res, 0, 0), NULL, 10);

	if (count > 0 && atomic_fetch_add(&source_foreign.count, count) == 0)
		atomic_store(&source_foreign.first_seq, strtoll(PQgetvalue(res, 0, 1), NULL, 10));
}

/* One range a round, once for each generation: what its reader meets it counts itself. */
static int look_for_foreign(struct retention *t, struct pr_err *err)
{
	struct worker *w = &t->worker;
	char from[24], to[24];
	PGresult *res;
	int64_t next;

	if (t->scanned >= t->end)
		return 0;
	(void)snprintf(from, sizeof(from), "%" PRId64, t->scanned);
	res = pr_pg_exec(w->pg, sql_retention_range, 1, (const char *const[]){ from }, err);
	if (!res)
		return -1;
	next = PQntuples(res) > 0 ? strtoll(PQgetvalue(res, 0, 1), NULL, 10) : t->end;
	if (next > t->end)
		next = t->end;
	PQclear(res);
	(void)snprintf(to, sizeof(to), "%" PRId64, next);
	HOLD(foreign_look);
	pr_pg_timeout(w->pg, SCAN_US);
	res = pr_pg_exec(w->pg, sql_retention_foreign, 2, (const char *const[]){ from, to }, err);
	if (!res)
		return -1;
	if (pipe_generation(&w->r->pipe) == t->generation)
		note_foreign(res);
	PQclear(res);
	t->scanned = next;
	return 0;
}

/* Where the reader of this generation began is known when it reads: asked between two looks at the
 * generation. */
static void follow_generation(struct retention *t)
{
	struct relay *r = t->worker.r;
	uint64_t generation = pipe_generation(&r->pipe);
	int64_t began;

	if (generation == t->generation || !health_streaming(r))
		return;
	began = atomic_load(&r->began_seq);
	if (generation != pipe_generation(&r->pipe))
		return;
	t->generation = generation;
	t->scanned = 0;
	t->end = began + 1;
}

static int round_of_work(struct worker *w, struct pr_err *err)
{
	struct retention *t = (struct retention *)w;
	int64_t every = setting(&w->r->conf->retention.every_us);

	w->every_us = every < ROUND_US ? every : ROUND_US;
	if (pipe_state(&w->r->pipe) != PIPE_STREAMING) {
		if (pr_mono_us() < t->next_us)
			return 0;
		return worker_leads(w) ? make_ahead(t, err) : look_ahead(t, err);
	}
	follow_generation(t);
	if (pr_mono_us() >= t->next_us && (make_ahead(t, err) < 0 || drop_ranges(w, err) < 0))
		return -1;
	/* Not while a backlog is drained; what is held back may be held for days. */
	return health_flow_lag(w->r) < 1.0 ? look_for_foreign(t, err) : 0;
}

void *retention_thread(void *ctx)
{
	struct retention t = { .worker = { .r = ctx, .role = "retention" } };

	worker_run(&t.worker, round_of_work, TROUBLE_RETENTION);
	return NULL;
}
