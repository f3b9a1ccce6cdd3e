/* relay/janitor.c -- the thread that obeys: the operator's orders, scheduled events, progress for people, and
 * the probe of the lag while nothing streams. Refuses to wait long: whatever may (ranges) is retention's. */
#include "relay/worker.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>

#define ORDERS_US   (200 * PR_MS)
#define PROGRESS_US PR_SEC
#define MOVE_MOST   1000 /* as janitor_move.sql has it */

struct janitor {
	struct worker worker; /* first: a round gets it back by a cast */
	int64_t next_progress_us;
	int64_t reported_seq;
};

static int orders(struct worker *w, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(w->pg, sql_janitor_orders, 0, NULL, err);
	int paused;

	if (!res)
		return -1;
	if (PQntuples(res) == 1) {
		paused = PQgetvalue(res, 0, 0)[0] == 't';
		if (atomic_exchange(&w->r->paused, paused) != paused)
			pr_log(PR_WARN, paused ? "paused" : "resumed", KS("by", PQgetvalue(res, 0, 1)));
		atomic_store(&w->r->request, strtoull(PQgetvalue(res, 0, 2), NULL, 10));
	}
	PQclear(res);
	return 0;
}

/* Moves what is due; how late the rest is counts as lag. */
static int scheduled(struct worker *w, struct pr_err *err)
{
	int64_t moved = MOVE_MOST, oldest;

	while (moved == MOVE_MOST && !atomic_load(&w->r->paused) && !atomic_load(&w->r->stopping))
		if (worker_ask(w, sql_janitor_move, 0, NULL, 0, &moved, err) < 0)
			return -1;
	if (worker_ask(w, sql_janitor_due, 0, NULL, INT64_MAX, &oldest, err) < 0)
		return -1;
	atomic_store(&w->r->scheduled_oldest_us, oldest);
	return 0;
}

/* Only when something changed: an idle relay writes nothing. */
static int progress(struct janitor *j, struct pr_err *err)
{
	int64_t seq = atomic_load(&j->worker.r->published_seq);
	char text[24];

	if (seq == j->reported_seq || pr_mono_us() < j->next_progress_us)
		return 0;
	(void)snprintf(text, sizeof(text), "%" PRId64, seq);
	if (pr_pg_run(j->worker.pg, sql_janitor_progress, 1, (const char *const[]){ text }, err) < 0)
		return -1;
	j->reported_seq = seq;
	j->next_progress_us = pr_mono_us() + PROGRESS_US;
	return 0;
}

/* While nothing streams nobody reads, so somebody must look how old the oldest row is. What lies below the
 * position's bound (late commits) is left out: looking for it could take long, and it is rare. */
static void probe(struct worker *w)
{
	struct pr_mark covered = { 0 };
	int64_t oldest = INT64_MAX;
	struct pr_err err;
	char bound[24];
	int rc;

	if (health_streaming(w->r))
		return;
	worker_committed(w, &covered);
	(void)snprintf(bound, sizeof(bound), "%" PRId64, covered.l);
	rc = covered.snapshot
		     ? worker_ask(w, sql_janitor_probe, 2, (const char *const[]){ covered.snapshot, bound },
			       INT64_MAX, &oldest, &err)
		     : worker_ask(w, sql_janitor_probe_first, 0, NULL, INT64_MAX, &oldest, &err);
	pr_mark_release(&covered);
	if (rc < 0)
		return; /* the last answer stays, and silence counts as lag */
	atomic_store(&w->r->probe_oldest_us, oldest);
	atomic_store(&source_contact_us, pr_mono_us());
}

static int round_of_work(struct worker *w, struct pr_err *err)
{
	struct janitor *j = (struct janitor *)w;

	probe(w);
	if (orders(w, err) < 0)
		return -1;
	if (!worker_leads(w))
		return 0;
	return scheduled(w, err) < 0 ? -1 : progress(j, err);
}

void *janitor_thread(void *ctx)
{
	struct janitor j = { .worker = { .r = ctx, .role = "janitor", .every_us = ORDERS_US } };

	worker_run(&j.worker, round_of_work, TROUBLE_JANITOR);
	return NULL;
}
