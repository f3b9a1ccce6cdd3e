/* consumers/claim.c -- takes partitions over in Postgres: whoever has the higher epoch may commit. Refuses to
 * guess what the database did not say. */
#include "consumers/store.h"

#include "lib/err.h"
#include "lib/json.h"
#include "lib/pg.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Names of topics need no quoting in an array literal: [A-Za-z0-9._-]. */
static void put_arrays(
	struct pr_buf *topics, struct pr_buf *partitions, const struct claim_wanted *w, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		pr_buf_printf(topics, "%c\"%s\"", i ? ',' : '{', w[i].topic);
		pr_buf_printf(partitions, "%c%" PRId32, i ? ',' : '{', w[i].partition);
	}
	pr_buf_puts(topics, "}");
	pr_buf_puts(partitions, "}");
}

static int64_t number(PGresult *res, int row, int column)
{
	return strtoll(PQgetvalue(res, row, column), NULL, 10);
}

/* Columns of inbox.claim. */
enum { ORD, LANE, LANE_COUNT, NEXT, EPOCH, ATTEMPT_OFFSET, ATTEMPT_BATCH, ATTEMPTS, ENDED };

static void read_lane(struct part_lane *l, PGresult *res, int row)
{
	l->next = number(res, row, NEXT);
	atomic_init(&l->shown, l->next);
	atomic_init(&l->oldest_us, INT64_MAX);
	l->attempt_offset = number(res, row, ATTEMPT_OFFSET);
	l->attempt_batch = number(res, row, ATTEMPT_BATCH);
	l->attempts = number(res, row, ATTEMPTS);
	l->ended = number(res, row, ENDED);
}

/* Of a part with one lane: topics and partitions are spread over the workers. */
static int first_worker(const struct claim_wanted *w, int workers)
{
	size_t n = (size_t)w->partition;

	for (const char *p = w->topic; *p; p++)
		n = n * 31 + (unsigned char)*p;
	return (int)(n % (size_t)workers);
}

/* The part whose rows begin at *row: lane_count of them, in order; *row is moved behind them. */
static struct part *read_part(
	const struct claim_wanted *w, size_t ord, int workers, int one, PGresult *res, int *row)
{
	int lanes = *row < PQntuples(res) ? (int)number(res, *row, LANE_COUNT) : 0;
	struct part *p;

	if (lanes < 1 || lanes > PQntuples(res) - *row || (one && lanes > 1))
		return NULL;
	p = pr_calloc(1, sizeof(*p) + (size_t)lanes * sizeof(p->lane[0]));
	atomic_init(&p->refs, 1);
	p->topic = pr_strdup(w->topic);
	p->partition = w->partition;
	p->lane_count = lanes;
	p->workers = workers;
	p->own_lane = one;
	p->first = one ? first_worker(w, workers) : 0;
	p->epoch = number(res, *row, EPOCH);
	p->fresh = 1;
	for (int i = 0; i < lanes; i++, (*row)++) {
		if (number(res, *row, ORD) != (int64_t)ord || number(res, *row, LANE) != i ||
			number(res, *row, LANE_COUNT) != lanes || number(res, *row, EPOCH) != p->epoch) {
			part_drop(p);
			return NULL;
		}
		read_lane(&p->lane[i], res, *row);
		p->fresh &= p->lane[i].next < 0;
	}
	atomic_init(&p->read_through, part_next(p));
	atomic_init(&p->end, -1);
	return p;
}

/* Why there is no part of it; lanes: as its first row says, 0: it has none. */
static int senseless(const struct consumer *c, const struct claim_wanted *w, int lanes, struct pr_err *err)
{
	if (c->store->one_lane && lanes > 1) {
		(void)pr_fail(err, PR_STOP,
			"group \"%s\" was of another kind: partition %" PRId32
			" of \"%s\" has %d lanes that stand apart",
			c->conf->group, w->partition, w->topic, lanes);
		return pr_hint(err, "give the sink a group of its own: another name");
	}
	(void)pr_fail(err, PR_STOP,
		"inbox.claim returned rows that make no sense for partition %" PRId32 " of \"%s\"",
		w->partition, w->topic);
	return pr_hint(err, "inbox.position was changed by hand: each partition needs its lanes 0 to "
			    "lane_count - 1 with one epoch");
}

int claim_parts(struct consumer *c, struct pr_pg *pg, const struct claim_wanted *wanted, size_t n,
	struct part **ret, struct pr_err *err)
{
	struct pr_buf topics = { 0 }, partitions = { 0 };
	char lanes[24];
	PGresult *res;
	size_t done = 0;
	int row = 0, rc = -1, workers = lanes_wanted(c);

	if (n == 0)
		return 0;
	put_arrays(&topics, &partitions, wanted, n);
	(void)snprintf(lanes, sizeof(lanes), "%d", c->store->one_lane ? 1 : workers);
	res = pr_pg_exec(pg,
		"SELECT ord, lane, lane_count, next_offset, epoch, attempt_offset, attempt_batch, attempts,"
		" ended FROM inbox.claim($1, $2, $3, $4)",
		4, (const char *const[]){ c->conf->group, topics.s, partitions.s, lanes }, err);
	if (!res)
		goto out;
	for (; done < n; done++) {
		ret[done] = read_part(&wanted[done], done + 1, workers, c->store->one_lane, res, &row);
		if (!ret[done])
			break;
	}
	if (done == n && row == PQntuples(res)) {
		rc = 0;
		goto out;
	}
	rc = senseless(c, &wanted[done < n ? done : n - 1],
		row < PQntuples(res) ? (int)number(res, row, LANE_COUNT) : 0, err);
	while (done-- > 0)
		part_drop(ret[done]);
out:
	if (res)
		PQclear(res);
	pr_buf_free(&topics);
	pr_buf_free(&partitions);
	return rc;
}
