/* relay/turn.c -- the reader thread: elects itself, hands the stream of batches to the pipe, and
 * begins again whenever either side lost its footing. Publishes nothing. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/pulse.h"

#include <poll.h>

struct reader {
	struct relay *r;
	struct source *source;
	uint64_t generation;
	unsigned failures; /* in a row */
	int standby;       /* another relay leads; said once */
};

/* Waits, or until we stop. */
static void pause_us(struct reader *rd, int64_t us)
{
	struct pollfd wake = { .fd = rd->r->wake_fd, .events = POLLIN };

	(void)poll(&wake, 1, (int)(us / 1000) + 1);
}

static void failed(struct reader *rd, const struct pr_err *err)
{
	struct relay *r = rd->r;

	if (atomic_load(&r->stopping))
		return;
	if (err->kind == PR_STOP && err->exit != PR_EX_FAILED) {
		health_trouble(r, TROUBLE_REFUSED, err);
		relay_stop(r, err->exit);
		return;
	}
	health_trouble(r, TROUBLE_POSTGRES, err);
	/* The first retry is soon: a server that was restarted is back within the second. */
	pause_us(rd, pr_backoff_us(rd->failures++, 20 * PR_MS, PR_SEC / 2));
}

static int put(void *ctx, struct batch *b)
{
	struct reader *rd = ctx;

	b->generation = rd->generation;
	return pipe_put(&rd->r->pipe, b);
}

/* Seq above which a source that begins at the position looks at every row. */
static int64_t above(const struct pr_position *start)
{
	return start->to.snapshot && start->seq > start->from.l ? start->seq : start->from.l;
}

/* One generation: from the position that the publisher gives, until something breaks. */
static int stream(struct reader *rd, const struct identity *who, struct pr_err *err)
{
	struct relay *r = rd->r;
	struct pr_position start = { 0 };
	int rc;

	atomic_store(&r->paused, who->paused);  /* before anything can leave */
	atomic_store(&source_foreign.count, 0); /* retention looks again */
	atomic_store(&r->reading, 0);
	rd->generation = pipe_lead(&r->pipe, who);
	rc = pipe_wait_start(&r->pipe, rd->generation, PR_FOREVER, &start);
	if (rc == 0)
		rc = r->ops->start(rd->source, &start, err);
	else
		(void)pr_fail(err, PR_RETRY, "reset");
	atomic_store(&r->began_seq, above(&start));
	atomic_store(&r->reading, rc == 0);
	pr_position_release(&start);
	while (rc == 0) {
		pr_pulse("reader", r->conf->source.timeout_us);
		if (pipe_wait_room(&r->pipe, rd->generation, r->ops->piece(rd->source), PR_FOREVER) < 0)
			return pr_fail(err, PR_RETRY, "reset");
		if (r->ops->next(rd->source, put, rd, err) < 0)
			return -1;
		if (rd->failures || rd->standby) {
			rd->failures = 0;
			rd->standby = 0;
			health_trouble(r, TROUBLE_POSTGRES, NULL);
		}
	}
	return -1;
}

static void stand_by(struct reader *rd)
{
	if (!rd->standby)
		pr_log(PR_INFO, "standby: another relay holds the lock", KS("outbox", rd->r->conf->name));
	rd->standby = 1;
	health_committed_unknown(rd->r); /* the leader moves on; what we knew would look like lag */
	atomic_store(&rd->r->standby, 1);
	health_trouble(rd->r, TROUBLE_POSTGRES, NULL);
	pause_us(rd, 200 * PR_MS);
}

void *turn_thread(void *ctx)
{
	struct reader rd = { .r = ctx };
	struct relay *r = ctx;
	struct identity who;
	struct pr_err err;
	int leads;

	rd.source = r->ops->new (r->conf, r->wake_fd);
	while (!atomic_load(&r->stopping)) {
		pr_pulse("reader", r->conf->source.timeout_us);
		leads = r->ops->open(rd.source, &who, &err);
		if (leads == 0) {
			stand_by(&rd);
			continue;
		}
		atomic_store(&r->standby, 0);
		if (leads == 1) {
			health_trouble(r, TROUBLE_POSTGRES, NULL);
			(void)stream(&rd, &who, &err);
			if (pipe_take_fenced(&r->pipe)) {
				/* Somebody newer publishes: without this we would fence each other for ever.
				 */
				r->ops->close(rd.source);
				pause_us(&rd, PR_SEC);
				continue;
			}
			/* The other side began anew: nothing is wrong with us. */
			if (!pipe_is(&r->pipe, rd.generation) && err.kind == PR_RETRY)
				continue;
			pipe_reset(&r->pipe, rd.generation);
		}
		failed(&rd, &err);
	}
	r->ops->free(rd.source);
	return NULL;
}
