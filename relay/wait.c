/* relay/wait.c -- topics that cannot be written to: their rows wait as ranges of outbox.event, not as copies.
 * Refuses to wait for more topics than the config allows, and to release a range before the committed
 * position has stepped over it. */
#include "relay/held.h"

#include "lib/log.h"
#include "relay/snapshot.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 1000000LL /* seqs one statement scans for a topic's rows */

struct entry {      /* one row of outbox.waiting */
	int64_t id; /* 0: not yet inserted */
	struct topic *topic;
	char *from, *to; /* snapshots as text; from NULL: nothing was seen before */
	struct snapshot seen_from, seen_to;
	int64_t from_seq, to_seq, events, oldest_us;
	int frozen, dirty;
	struct entry *next;
};

struct wait {
	struct held *s;
	struct entry *entries;     /* by id, new ones last */
	struct snapshot turn_from; /* of the turn that the last waiting event came with, and its text */
	char *turn_from_text;
};

struct wait *wait_new(struct held *s)
{
	struct wait *w = pr_calloc(1, sizeof(*w));

	w->s = s;
	return w;
}

static void free_entry(struct entry *e)
{
	snapshot_release(&e->seen_from);
	snapshot_release(&e->seen_to);
	free(e->from);
	free(e->to);
	free(e);
}

void wait_forget(struct wait *w)
{
	struct entry *n;

	while ((n = w->entries)) {
		w->entries = n->next;
		n->topic->waiting = 0;
		free_entry(n);
	}
}

void wait_free(struct wait *w)
{
	wait_forget(w);
	snapshot_release(&w->turn_from);
	free(w->turn_from_text);
	free(w);
}

static int covers_event(const struct entry *n, const struct event *e)
{
	return e->seq >= n->from_seq && e->seq <= n->to_seq && snapshot_finished(&n->seen_to, e->xid) &&
	       !(n->from && snapshot_finished(&n->seen_from, e->xid));
}

static int set_snapshot(char **text, struct snapshot *parsed, const char *value, struct pr_err *err)
{
	struct snapshot fresh = { 0 };

	if (*text && value && strcmp(*text, value) == 0)
		return 0;
	if (value && snapshot_parse(value, &fresh) < 0)
		return pr_fail(err, PR_STOP, "outbox.waiting holds no snapshot: \"%.60s\"", value);
	snapshot_release(parsed);
	*parsed = fresh;
	free(*text);
	*text = value ? pr_strdup(value) : NULL;
	return 0;
}

static struct entry *add_entry(struct wait *w, struct topic *topic)
{
	struct entry *n = pr_calloc(1, sizeof(*n)), **at = &w->entries;

	n->topic = topic;
	n->oldest_us = INT64_MAX;
	while (*at)
		at = &(*at)->next;
	*at = n;
	topic->waiting++;
	return n;
}

static int64_t waiting_topics(const struct wait *w)
{
	int64_t n = 0;

	for (struct topic *t = topics_all(w->s->topics); t; t = t->next)
		n += t->waiting > 0;
	return n;
}

/* A range is a box: seqs times the transactions between two snapshots. Two boxes of one topic must not share
 * a row, and a box must not grow over a row that was published: what it holds goes exactly once.
 *
 * Above its lowest seq the newest box may grow: since it began, all rows of its topic have waited. Below
 * that, rows of its first turn may be on the topic. A row there (a late commit) begins a box of its own, of
 * this turn on, which lies beside every box that ends with an earlier turn. Within a turn rows ascend, so a
 * box that reaches into this one and lies higher was made before a crash, and the turn is read again. Had it
 * begun with this turn, it may grow downwards: nothing of the turn that is not below e was committed. Else
 * the row fits no box and is parked by its seq, to go as soon as the topic has no boxes left. */
enum place { PLACE_NEWEST, PLACE_NEW, PLACE_PARKED };

static enum place place_of(
	const struct wait *w, const struct topic *topic, const struct event *e, struct entry **ret_newest)
{
	struct entry *newest = NULL;
	int beside = 1, first = 1; /* all boxes, all but the newest, leave this turn's rows from e on alone */

	for (struct entry *n = w->entries; n; n = n->next) {
		if (n->topic != topic)
			continue;
		newest = n;
		first = beside;
		if (!(w->turn_from_text && snapshot_covers(&w->turn_from, &n->seen_to)) &&
			e->seq <= n->to_seq)
			beside = 0;
	}
	*ret_newest = newest;
	if (w->turn_from_text && snapshot_finished(&w->turn_from, e->xid))
		return PLACE_PARKED; /* an old xid from elsewhere: no box of ours would show it */
	if (newest && !newest->frozen && e->seq >= newest->from_seq)
		return PLACE_NEWEST;
	if (beside)
		return PLACE_NEW;
	return first && newest && !newest->frozen &&
			       (newest->from ? w->turn_from_text &&
						       strcmp(newest->from, w->turn_from_text) == 0
					     : !w->turn_from_text)
		       ? PLACE_NEWEST
		       : PLACE_PARKED;
}

static struct entry *begin_entry(
	struct wait *w, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct entry *n;

	if (!topic->waiting && waiting_topics(w) >= setting(&w->s->r->conf->limits.waiting_topics)) {
		(void)pr_fail(err, PR_STOP, "%" PRId64 " topics are waited for, no more are allowed",
			waiting_topics(w));
		(void)pr_hint(err, "create the topics, or raise limits.waiting_topics");
		return NULL;
	}
	n = add_entry(w, topic);
	n->from_seq = n->to_seq = e->seq;
	return set_snapshot(&n->from, &n->seen_from, w->turn_from_text, err) < 0 ? NULL : n;
}

/* It was frozen to be released, and its topic refused after all: nothing of it left, or only its beginning,
 * and all rows of the topic have waited since. So it may grow on; else each try would leave a range behind.
 */
static void thaw(struct wait *w, const struct topic *topic)
{
	struct entry *newest = NULL;

	for (struct entry *n = w->entries; n; n = n->next)
		if (n->topic == topic)
			newest = n;
	if (newest && topic->missing)
		newest->frozen = 0;
}

int wait_event(struct wait *w, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct entry *n;
	enum place place;

	for (n = w->entries; n; n = n->next)
		if (n->topic == topic && n->to && covers_event(n, e))
			return 0; /* read again after a crash */
	if (set_snapshot(&w->turn_from_text, &w->turn_from, e->batch->turn->from.snapshot, err) < 0)
		return -1;
	thaw(w, topic);
	place = place_of(w, topic, e, &n);
	if (place == PLACE_PARKED)
		return 1;
	if (place == PLACE_NEW)
		n = begin_entry(w, topic, e, err);
	if (!n || set_snapshot(&n->to, &n->seen_to, e->batch->turn->to.snapshot, err) < 0)
		return -1;
	if (e->seq < n->from_seq)
		n->from_seq = e->seq;
	if (e->seq > n->to_seq)
		n->to_seq = e->seq;
	if (e->created_us < n->oldest_us)
		n->oldest_us = e->created_us;
	n->events++;
	n->dirty = 1;
	return 0;
}

static int insert_entry(struct wait *w, struct entry *n, struct pr_err *err)
{
	char num[4][24];
	const char *params[9] = { n->topic->name, n->from, n->to, num[0], num[1], num[2], num[3],
		n->topic->reason, n->topic->code };
	PGresult *res;

	(void)snprintf(num[0], 24, "%" PRId64, n->from_seq);
	(void)snprintf(num[1], 24, "%" PRId64, n->to_seq);
	(void)snprintf(num[2], 24, "%" PRId64, n->events);
	(void)snprintf(num[3], 24, "%" PRId64, n->oldest_us);
	res = pr_pg_exec(w->s->pg, sql_hold_wait_new, 9, params, err);
	if (!res)
		return -1;
	n->id = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
	PQclear(res);
	return 0;
}

static int widen_entry(struct wait *w, const struct entry *n, struct pr_err *err)
{
	char num[5][24];
	const char *params[7] = { num[0], n->to, num[1], num[2], num[3], num[4], n->frozen ? "t" : "f" };

	(void)snprintf(num[0], 24, "%" PRId64, n->id);
	(void)snprintf(num[1], 24, "%" PRId64, n->from_seq);
	(void)snprintf(num[2], 24, "%" PRId64, n->to_seq);
	(void)snprintf(num[3], 24, "%" PRId64, n->events);
	(void)snprintf(num[4], 24, "%" PRId64, n->oldest_us);
	return pr_pg_run(w->s->pg, sql_hold_wait_widen, 7, params, err);
}

int wait_flush(struct wait *w, struct pr_err *err)
{
	for (struct entry *n = w->entries; n; n = n->next) {
		if (!n->dirty)
			continue;
		if ((n->id ? widen_entry(w, n, err) : insert_entry(w, n, err)) < 0)
			return -1;
		n->dirty = 0;
	}
	return 0;
}

int wait_dirty(const struct wait *w)
{
	for (const struct entry *n = w->entries; n; n = n->next)
		if (n->dirty)
			return 1;
	return 0;
}

static int load_entry(struct wait *w, const PGresult *res, int i, struct pr_err *err)
{
	struct topic *topic;
	struct entry *n;

	topic = topics_get(w->s->topics, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err);
	if (!topic)
		return -1;
	n = add_entry(w, topic);
	n->id = strtoll(PQgetvalue(res, i, 0), NULL, 10);
	n->from_seq = strtoll(PQgetvalue(res, i, 4), NULL, 10);
	n->to_seq = strtoll(PQgetvalue(res, i, 5), NULL, 10);
	n->events = strtoll(PQgetvalue(res, i, 6), NULL, 10);
	n->oldest_us = strtoll(PQgetvalue(res, i, 7), NULL, 10);
	n->frozen = PQgetvalue(res, i, 8)[0] == 't';
	if (set_snapshot(
		    &n->from, &n->seen_from, PQgetisnull(res, i, 2) ? NULL : PQgetvalue(res, i, 2), err) < 0)
		return -1;
	return set_snapshot(&n->to, &n->seen_to, PQgetvalue(res, i, 3), err);
}

int wait_load(struct wait *w, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(w->s->pg, sql_hold_waiting, 0, NULL, err);
	int rc = 0;

	if (!res)
		return -1;
	for (int i = 0; rc == 0 && i < PQntuples(res); i++)
		rc = load_entry(w, res, i, err);
	PQclear(res);
	return rc;
}

int wait_is_out(struct wait *w, int64_t entry, int64_t through, size_t events, struct pr_err *err)
{
	char n[3][24];
	const char *params[3] = { n[0], n[1], n[2] };

	(void)snprintf(n[0], 24, "%" PRId64, entry);
	(void)snprintf(n[1], 24, "%" PRId64, through);
	(void)snprintf(n[2], 24, "%zu", events);
	if (through < 0)
		return pr_pg_run(w->s->pg, sql_hold_wait_done, 1, params, err);
	return pr_pg_run(w->s->pg, sql_hold_wait_through, 3, params, err);
}

/* ---------------------------------------------------------------- release */

static int is_free(const struct entry *n)
{
	return !n->topic->missing && n->topic->rkt;
}

void wait_freeze(struct wait *w)
{
	for (struct entry *n = w->entries; n; n = n->next)
		if (!n->frozen && is_free(n))
			n->frozen = n->dirty = 1;
}

/* The oldest entry of a topic that is there again, and that the position covers; NULL: none. */
static struct entry *free_entry_of(const struct wait *w, const struct pr_mark *covered)
{
	struct snapshot now = { 0 };
	struct entry *n;

	if (!w->entries || !covered->snapshot || snapshot_parse(covered->snapshot, &now) < 0)
		return NULL;
	for (n = w->entries; n; n = n->next)
		if (n->frozen && is_free(n) && snapshot_covers(&now, &n->seen_to))
			break;
	snapshot_release(&now);
	return n;
}

static void put_literal(struct wait *w, struct pr_buf *b, const char *s)
{
	char *literal = PQescapeLiteral(pr_pg_conn(w->s->pg), s, strlen(s));

	pr_buf_puts(b, literal ? literal : "NULL");
	PQfreemem(literal);
}

static int slice_of(struct wait *w, struct entry *n, size_t most, struct release *ret, struct pr_err *err)
{
	int64_t end = n->to_seq - n->from_seq > WINDOW ? n->from_seq + WINDOW : n->to_seq;
	struct pr_buf where = { 0 };
	int cut;

	pr_buf_printf(&where,
		"seq >= %" PRId64 " AND seq <= %" PRId64
		" AND pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot)",
		n->from_seq, end, n->to);
	if (n->from)
		pr_buf_printf(&where, " AND NOT pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot)",
			n->from);
	pr_buf_puts(&where, " AND coalesce(topic, pg_catalog.replace(");
	put_literal(w, &where, w->s->r->conf->route.topic);
	pr_buf_puts(&where, ", '${aggregatetype}', aggregatetype)) = ");
	put_literal(w, &where, n->topic->name);
	/* A row whose key was parked lies in the range all the same: it passes by, and is skipped if it was.
	 */
	pr_buf_puts(&where, " AND NOT EXISTS (SELECT FROM outbox.skipped AS s WHERE s.seq = event.seq)");
	ret->batch = held_read(w->s, where.s, most, &cut, err);
	pr_buf_free(&where);
	if (!ret->batch)
		return -1;
	ret->topic = n->topic;
	ret->entry = n->id;
	if (cut || ret->batch->n == most)
		ret->through = ret->batch->ev[ret->batch->n - 1].seq;
	else
		ret->through = end == n->to_seq ? -1 : end;
	return 0;
}

int wait_slice(
	struct wait *w, const struct pr_mark *covered, size_t most, struct release *ret, struct pr_err *err)
{
	struct entry *n = free_entry_of(w, covered);

	if (!n)
		return 0;
	return held_connect(w->s, err) < 0 ? -1 : slice_of(w, n, most, ret, err);
}

static void entry_is_out(struct wait *w, const struct release *rel)
{
	struct entry **at = &w->entries, *n;

	while ((n = *at) && n->id != rel->entry)
		at = &n->next;
	if (!n)
		return;
	n->events -= (int64_t)rel->batch->n < n->events ? (int64_t)rel->batch->n : n->events - 1;
	if (rel->through >= 0) {
		n->from_seq = rel->through + 1;
		if (rel->batch->n > 0)
			n->oldest_us = rel->batch->ev[rel->batch->n - 1].created_us;
		return;
	}
	*at = n->next;
	if (--n->topic->waiting == 0)
		pr_log(PR_INFO, "waiting events are out", KS("topic", n->topic->name));
	free_entry(n);
}

int wait_released(struct wait *w, const struct release *rel, struct pr_err *err)
{
	if (wait_is_out(w, rel->entry, rel->through, rel->batch->n, err) < 0)
		return -1;
	entry_is_out(w, rel);
	return 0;
}

struct waiting_topic *wait_list(const struct wait *w, size_t *ret_n, uint64_t *events, int64_t *oldest_us)
{
	struct waiting_topic *list = NULL;
	size_t n = 0;

	for (const struct entry *e = w->entries; e; e = e->next) {
		list = pr_realloc(list, (n + 1) * sizeof(*list));
		(void)snprintf(list[n].topic, sizeof(list[n].topic), "%s", e->topic->name);
		(void)snprintf(list[n].reason, sizeof(list[n].reason), "%s", e->topic->reason);
		list[n].events = (uint64_t)e->events;
		list[n++].oldest_us = e->oldest_us;
		*events += (uint64_t)e->events;
		if (e->oldest_us < *oldest_us)
			*oldest_us = e->oldest_us;
	}
	*ret_n = n;
	return list;
}
