/* relay/hold.c -- what is held back, as one: park.c and wait.c behind one session with Postgres. Refuses to
 * commit one without the other, and to release anything before it is durable. */
#include "relay/hold.h"

#include "lib/fault.h"
#include "relay/held.h"
#include "relay/worker.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct hold {
	struct held s;
	struct park *park;
	struct wait *wait;
	int failed;    /* Postgres, not Kafka, ended the session */
	int requested; /* look at the requests without being asked */
};

struct hold *hold_new(struct relay *r, struct topics *topics)
{
	struct hold *h = pr_calloc(1, sizeof(*h));

	h->s.r = r;
	h->s.topics = topics;
	h->park = park_new(&h->s);
	h->wait = wait_new(&h->s);
	return h;
}

void hold_free(struct hold *h)
{
	if (!h)
		return;
	park_free(h->park);
	wait_free(h->wait);
	pr_pg_close(h->s.pg);
	free(h);
}

int hold_failed(struct hold *h)
{
	int failed = h->failed;

	h->failed = 0;
	return failed;
}

/* Passes rc on, and remembers a failure. */
static int result(struct hold *h, int rc)
{
	h->failed |= rc < 0;
	return rc;
}

int held_connect(struct held *s, struct pr_err *err)
{
	if (s->pg && pr_pg_ok(s->pg))
		return 0;
	if (session_open(&s->pg, s->r->conf, "hold", s->r->wake_fd, err) < 0)
		return -1;
	if (pr_pg_run(s->pg, sql_relay_session, 0, NULL, err) == 0)
		return 0;
	pr_pg_close(s->pg); /* not to be used without its settings */
	s->pg = NULL;
	return -1;
}

int held_abandon(struct held *s, struct pr_err *err)
{
	pr_pg_close(s->pg);
	s->pg = NULL;
	if (err->kind == PR_REJECT)
		err->kind = PR_RETRY;
	return -1;
}

/* ---------------------------------------------------------------- holding back */

int hold_is_parked(const struct hold *h, const struct topic *topic, const struct event *e)
{
	return park_holds(h->park, topic, e);
}

int hold_park(struct hold *h, struct topic *topic, const struct event *e, int head, const char *reason,
	const char *code, struct pr_err *err)
{
	return park_event(h->park, topic, e, head, reason, code, err);
}

int hold_wait(struct hold *h, struct topic *topic, const struct event *e, struct pr_err *err)
{
	int rc = wait_event(h->wait, topic, e, err);

	return rc == 1 ? park_to_go(h->park, topic, e, err) : rc;
}

static int flush(struct hold *h, struct pr_err *err)
{
	if (!park_dirty(h->park) && !wait_dirty(h->wait))
		return 0;
	if (held_connect(&h->s, err) < 0)
		return -1;
	if (pr_pg_run(h->s.pg, "BEGIN", 0, NULL, err) < 0 || park_flush(h->park, err) < 0 ||
		wait_flush(h->wait, err) < 0 || pr_pg_run(h->s.pg, "COMMIT", 0, NULL, err) < 0)
		return held_abandon(&h->s, err);
	hold_report(h);
	/* If we die here, rows are held back that the position has not stepped over: they are read
	 * again and held back again, which changes nothing. */
	FAULT(held_back_before_position);
	return 0;
}

int hold_flush(struct hold *h, struct pr_err *err)
{
	return result(h, flush(h, err));
}

/* ---------------------------------------------------------------- at a start */

/* Whoever is read again must not be released as well: it would leave twice, and before its
 * predecessors. */
static int forget_uncovered(struct hold *h, const struct pr_position *committed, struct pr_err *err)
{
	char n[3][24];
	const char *params[5] = { committed->from.snapshot, committed->to.snapshot, n[0], n[1], n[2] };

	(void)snprintf(n[0], 24, "%" PRId64, committed->seq);
	(void)snprintf(n[1], 24, "%" PRId64, committed->top);
	(void)snprintf(n[2], 24, "%" PRId64, committed->from.low);
	return pr_pg_run(h->s.pg, sql_hold_forget_uncovered, 5, params, err);
}

static int load(struct hold *h, const struct pr_position *committed, struct pr_err *err)
{
	park_forget(h->park);
	wait_forget(h->wait);
	if (held_connect(&h->s, err) < 0)
		return -1;
	if (committed->released_n > 0 &&
		park_delete(h->park, committed->released, committed->released_n, err) < 0)
		return -1;
	if (committed->released_topic &&
		wait_is_out(h->wait, committed->released_entry, committed->released_seq, 0, err) < 0)
		return -1;
	if (forget_uncovered(h, committed, err) < 0 || park_load(h->park, err) < 0 ||
		wait_load(h->wait, err) < 0)
		return -1;
	h->requested = 1; /* asked for while we were away */
	hold_report(h);
	return 0;
}

int hold_load(struct hold *h, const struct pr_position *committed, struct pr_err *err)
{
	return result(h, load(h, committed, err));
}

/* ---------------------------------------------------------------- release */

void release_free(struct release *rel)
{
	batch_free(rel->batch);
	free(rel->of);
	memset(rel, 0, sizeof(*rel));
}

struct batch *held_read(struct held *s, const char *where, size_t most, int *ret_cut, struct pr_err *err)
{
	char *query =
		pr_asprintf("SELECT " ROW_COLUMNS ", false FROM outbox.event WHERE %s ORDER BY seq LIMIT %zu",
			where, most);
	struct turn *turn = turn_new();
	struct batch *b = batch_new(turn, most);
	char *row;
	int len, rc = pr_pg_copy_begin(s->pg, query, err);

	*ret_cut = 0;
	turn_drop(turn);
	free(query);
	while (rc == 0 && !*ret_cut && (rc = pr_pg_copy_row(s->pg, &row, &len, err)) == 1) {
		rc = batch_add_row(b, row, (size_t)len, err);
		if (rc < 0)
			PQfreemem(row);
		*ret_cut = b->bytes > (size_t)setting(&s->r->conf->limits.batch_bytes) / 2;
	}
	if (rc < 0 || *ret_cut) {
		pr_pg_close(s->pg); /* possibly in the middle of the stream */
		s->pg = NULL;
	}
	if (rc < 0) {
		batch_free(b);
		return NULL;
	}
	return b;
}

static int next_release(struct hold *h, int requested, const struct pr_mark *covered, size_t most,
	struct release *ret, struct pr_err *err)
{
	memset(ret, 0, sizeof(*ret));
	requested |= h->requested;
	if (requested || (park_unseen(h->park) && !park_going(h->park))) {
		if (held_connect(&h->s, err) < 0 || park_look(h->park, requested, err) < 0)
			return -1;
		h->requested = 0;
		hold_report(h);
	}
	if (park_going(h->park)) {
		/* What is noted and not yet in the table is held back too: a key is not free before
		 * it is out. */
		if (flush(h, err) < 0 || park_slice(h->park, most, ret, err) < 0)
			return -1;
		hold_report(h);
		if (ret->batch)
			return 0;
	}
	wait_freeze(h->wait);
	if (wait_dirty(h->wait) && flush(h, err) < 0)
		return -1;
	return wait_slice(h->wait, covered, most, ret, err);
}

int hold_next_release(struct hold *h, int requested, const struct pr_mark *covered, size_t most,
	struct release *ret, struct pr_err *err)
{
	return result(h, next_release(h, requested, covered, most, ret, err));
}

static int released(struct hold *h, const struct release *rel, struct pr_err *err)
{
	if (held_connect(&h->s, err) < 0)
		return -1;
	if ((rel->of ? park_released(h->park, rel, err) : wait_released(h->wait, rel, err)) < 0)
		return -1;
	hold_report(h);
	return 0;
}

int hold_released(struct hold *h, const struct release *rel, struct pr_err *err)
{
	return result(h, released(h, rel, err));
}

int hold_refused(struct hold *h, const struct release *rel, size_t i, const char *reason, const char *code,
	struct pr_err *err)
{
	if (held_connect(&h->s, err) < 0)
		return result(h, -1);
	return result(h, park_refused(h->park, rel, i, reason, code, err));
}

/* ---------------------------------------------------------------- for health */

void hold_report(struct hold *h)
{
	struct relay *r = h->s.r;
	uint64_t keys, events, waiting = 0;
	int64_t oldest;
	struct waiting_topic *list;
	size_t n;

	park_count(h->park, &keys, &events, &oldest);
	list = wait_list(h->wait, &n, &waiting, &oldest);
	(void)pthread_mutex_lock(&r->mutex);
	free(r->waiting);
	r->waiting = list;
	r->waiting_n = n;
	(void)pthread_mutex_unlock(&r->mutex);
	atomic_store(&r->parked_events, events);
	atomic_store(&r->parked_keys, keys);
	atomic_store(&r->waiting_events, waiting);
	atomic_store(&r->held_oldest_us, oldest);
}
