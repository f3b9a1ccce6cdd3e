/* relay/hold.c -- parked keys and waiting topics. Refuses to hold more keys or topics than the config
 * allows, and to release anything that the committed position has not stepped over. */
#include "relay/hold.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/json.h"
#include "lib/log.h"
#include "lib/pg.h"
#include "relay/snapshot.h"
#include "relay/worker.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_SIZE 4096      /* hash buckets */
#define LOOK      200       /* keys with a request that are looked at before events flow again */
#define WINDOW    1000000LL /* seqs one statement scans for a topic's rows */

struct parked_key {
	struct topic *topic;
	char *key;
	size_t len;
	uint64_t events;
	int64_t oldest_us;
	int64_t first; /* no seq of it below this one is parked */
	int going;     /* what is behind its head follows */
	struct parked_key *next;
};

struct pending { /* a parked event, not yet in outbox.parked */
	int64_t seq;
	struct parked_key *of;
	int head;
	char reason[160], code[64];
};

struct entry {      /* one row of outbox.waiting */
	int64_t id; /* 0: not yet inserted */
	struct topic *topic;
	char *from, *to; /* snapshots as text; from NULL: nothing was seen before */
	struct snapshot seen_from, seen_to;
	int64_t from_seq, to_seq, events, oldest_us;
	int frozen, dirty;
	struct entry *next;
};

struct hold {
	struct relay *r;
	struct topics *topics;
	struct pr_pg *pg;
	int failed; /* Postgres, not Kafka, ended the session */
	struct parked_key *hash[KEYS_SIZE];
	uint64_t keys, events;
	struct pending *pending;
	size_t pending_n, pending_cap;
	struct entry *entries; /* by id, new ones last */
	int requested;         /* look at the requests without being asked */
	int more;              /* there were more requests than one look shows: go on behind this key */
	char *look_topic, *look_key;
	struct snapshot turn_from; /* of the turn that the last waiting event came with, and its text */
	char *turn_from_text;
};

struct hold *hold_new(struct relay *r, struct topics *topics)
{
	struct hold *h = pr_calloc(1, sizeof(*h));

	h->r = r;
	h->topics = topics;
	return h;
}

static void free_entry(struct entry *e)
{
	snapshot_release(&e->seen_from);
	snapshot_release(&e->seen_to);
	free(e->from);
	free(e->to);
	free(e);
}

static void forget_all(struct hold *h)
{
	struct parked_key *k;
	struct entry *e;

	for (size_t i = 0; i < KEYS_SIZE; i++) {
		while ((k = h->hash[i])) {
			h->hash[i] = k->next;
			free(k->key);
			free(k);
		}
	}
	while ((e = h->entries)) {
		h->entries = e->next;
		e->topic->waiting = 0;
		free_entry(e);
	}
	h->keys = h->events = 0;
	h->pending_n = 0;
}

void hold_free(struct hold *h)
{
	if (!h)
		return;
	forget_all(h);
	free(h->pending);
	free(h->look_topic);
	free(h->look_key);
	snapshot_release(&h->turn_from);
	free(h->turn_from_text);
	pr_pg_close(h->pg);
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

static int connect_pg(struct hold *h, struct pr_err *err)
{
	if (h->pg && pr_pg_ok(h->pg))
		return 0;
	if (session_open(&h->pg, h->r->conf, "hold", h->r->wake_fd, err) < 0)
		return -1;
	if (pr_pg_run(h->pg, sql_relay_session, 0, NULL, err) == 0)
		return 0;
	pr_pg_close(h->pg); /* not to be used without its settings */
	h->pg = NULL;
	return -1;
}

/* ---------------------------------------------------------------- parked keys */

static struct parked_key **slot_of(struct hold *h, const struct topic *topic, const char *key, size_t len)
{
	size_t x = (size_t)(uintptr_t)topic >> 4;
	struct parked_key **slot;

	for (size_t i = 0; i < len; i++)
		x = x * 31 + (unsigned char)key[i];
	slot = &h->hash[(x ^ (x >> 16)) % KEYS_SIZE];
	while (*slot &&
		((*slot)->topic != topic || (*slot)->len != len || memcmp((*slot)->key, key, len) != 0))
		slot = &(*slot)->next;
	return slot;
}

static struct parked_key *park_key(
	struct hold *h, struct topic *topic, const char *key, size_t len, struct pr_err *err)
{
	struct parked_key **slot = slot_of(h, topic, key, len), *k = *slot;

	if (k)
		return k;
	if ((int64_t)h->keys >= setting(&h->r->conf->limits.parked_keys)) {
		(void)pr_fail(err, PR_STOP, "%" PRIu64 " keys are parked, no more are allowed", h->keys);
		(void)pr_hint(
			err, "see `postrider parked list`: retry or skip them, or raise limits.parked_keys");
		return NULL;
	}
	k = pr_calloc(1, sizeof(*k));
	k->topic = topic;
	k->key = memcpy(pr_calloc(len + 1, 1), key, len);
	k->len = len;
	k->oldest_us = k->first = INT64_MAX;
	*slot = k;
	h->keys++;
	return k;
}

static void unpark_key(struct hold *h, const struct topic *topic, const char *key)
{
	struct parked_key **slot = slot_of(h, topic, key, strlen(key)), *k = *slot;

	if (!k)
		return;
	*slot = k->next;
	h->keys--;
	h->events -= k->events < h->events ? k->events : h->events;
	pr_log(PR_INFO, "key is released", KS("topic", topic->name), KS("key", key));
	free(k->key);
	free(k);
}

int hold_is_parked(const struct hold *h, const struct topic *topic, const struct event *e)
{
	const struct parked_key *k;

	if (h->keys == 0)
		return 0;
	/* slot_of only reads; it takes no const because its result may be written through. */
	k = *slot_of((struct hold *)(uintptr_t)h, topic, e->key.s, e->key.n);
	return k && e->seq >= k->first;
}

int hold_park(struct hold *h, struct topic *topic, const struct event *e, int head, const char *reason,
	const char *code, struct pr_err *err)
{
	struct parked_key *k = park_key(h, topic, e->key.s, e->key.n, err);
	struct pending *p;

	if (!k)
		return -1;
	if (h->pending_n == h->pending_cap) {
		h->pending_cap = h->pending_cap ? h->pending_cap * 2 : 64;
		h->pending = pr_realloc(h->pending, h->pending_cap * sizeof(*h->pending));
	}
	p = &h->pending[h->pending_n++];
	p->seq = e->seq;
	p->of = k;
	p->head = head;
	(void)snprintf(p->reason, sizeof(p->reason), "%s", reason);
	(void)snprintf(p->code, sizeof(p->code), "%s", code);
	if (head)
		pr_log(PR_WARN, "event parked, its key waits", KS("topic", topic->name), KI("seq", e->seq),
			KS("reason", reason), KS("hint", "postrider parked list"));
	k->events++;
	h->events++;
	if (e->seq < k->first)
		k->first = e->seq;
	if (e->created_us < k->oldest_us)
		k->oldest_us = e->created_us;
	return 0;
}

/* An element of a Postgres array literal. */
static void put_element(struct pr_buf *b, const char *s)
{
	pr_buf_puts(b, b->len > 1 ? ",\"" : "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			pr_buf_put(b, "\\", 1);
		pr_buf_put(b, s, 1);
	}
	pr_buf_puts(b, "\"");
}

static int load_parked(struct hold *h, struct pr_err *err);

static int flush_parked(struct hold *h, struct pr_err *err)
{
	struct pr_buf a[6] = { 0 };
	const char *params[6];
	char number[24];
	PGresult *res;
	size_t inserted;

	if (h->pending_n == 0)
		return 0;
	for (int i = 0; i < 6; i++)
		pr_buf_puts(&a[i], "{");
	for (size_t i = 0; i < h->pending_n; i++) {
		const struct pending *p = &h->pending[i];

		(void)snprintf(number, sizeof(number), "%" PRId64, p->seq);
		put_element(&a[0], number);
		put_element(&a[1], p->of->topic->name);
		put_element(&a[2], p->of->key);
		put_element(&a[3], p->head ? "t" : "f");
		put_element(&a[4], p->reason);
		put_element(&a[5], p->code);
	}
	for (int i = 0; i < 6; i++) {
		pr_buf_puts(&a[i], "}");
		params[i] = a[i].s;
	}
	res = pr_pg_exec(h->pg, sql_hold_park, 6, params, err);
	for (int i = 0; i < 6; i++)
		pr_buf_free(&a[i]);
	if (!res)
		return -1;
	inserted = strtoull(PQcmdTuples(res), NULL, 10);
	PQclear(res);
	/* Some were parked before a crash, and were counted when they were loaded. */
	if (inserted < h->pending_n && load_parked(h, err) < 0)
		return -1;
	h->pending_n = 0;
	return 0;
}

/* ---------------------------------------------------------------- waiting topics */

static int covers_event(const struct entry *w, const struct event *e)
{
	return e->seq >= w->from_seq && e->seq <= w->to_seq && snapshot_finished(&w->seen_to, e->xid) &&
	       !(w->from && snapshot_finished(&w->seen_from, e->xid));
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

static struct entry *add_entry(struct hold *h, struct topic *topic)
{
	struct entry *w = pr_calloc(1, sizeof(*w)), **at = &h->entries;

	w->topic = topic;
	w->oldest_us = INT64_MAX;
	while (*at)
		at = &(*at)->next;
	*at = w;
	topic->waiting++;
	return w;
}

static int64_t waiting_topics(const struct hold *h)
{
	int64_t n = 0;

	for (struct topic *t = topics_all(h->topics); t; t = t->next)
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
	const struct hold *h, const struct topic *topic, const struct event *e, struct entry **ret_newest)
{
	struct entry *newest = NULL;
	int beside = 1, first = 1; /* all boxes, all but the newest, leave this turn's rows from e on alone */

	for (struct entry *w = h->entries; w; w = w->next) {
		if (w->topic != topic)
			continue;
		newest = w;
		first = beside;
		if (!(h->turn_from_text && snapshot_covers(&h->turn_from, &w->seen_to)) &&
			e->seq <= w->to_seq)
			beside = 0;
	}
	*ret_newest = newest;
	if (h->turn_from_text && snapshot_finished(&h->turn_from, e->xid))
		return PLACE_PARKED; /* an old xid from elsewhere: no box of ours would show it */
	if (newest && !newest->frozen && e->seq >= newest->from_seq)
		return PLACE_NEWEST;
	if (beside)
		return PLACE_NEW;
	return first && newest && !newest->frozen &&
			       (newest->from ? h->turn_from_text &&
						       strcmp(newest->from, h->turn_from_text) == 0
					     : !h->turn_from_text)
		       ? PLACE_NEWEST
		       : PLACE_PARKED;
}

static struct entry *begin_entry(
	struct hold *h, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct entry *w;

	if (!topic->waiting && waiting_topics(h) >= setting(&h->r->conf->limits.waiting_topics)) {
		(void)pr_fail(err, PR_STOP, "%" PRId64 " topics are waited for, no more are allowed",
			waiting_topics(h));
		(void)pr_hint(err, "create the topics, or raise limits.waiting_topics");
		return NULL;
	}
	w = add_entry(h, topic);
	w->from_seq = w->to_seq = e->seq;
	return set_snapshot(&w->from, &w->seen_from, h->turn_from_text, err) < 0 ? NULL : w;
}

/* Held back by its seq, and with nothing before it: it goes when its topic takes events again. */
static int park_to_go(struct hold *h, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct parked_key *k = *slot_of(h, topic, e->key.s, e->key.n);

	if (hold_park(h, topic, e, 0, "its topic cannot be written to", topic->code, err) < 0)
		return -1;
	if (!k)
		(*slot_of(h, topic, e->key.s, e->key.n))->going = 1;
	return 0;
}

int hold_wait(struct hold *h, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct entry *w;
	enum place place;

	for (w = h->entries; w; w = w->next)
		if (w->topic == topic && w->to && covers_event(w, e))
			return 0; /* read again after a crash */
	if (set_snapshot(&h->turn_from_text, &h->turn_from, e->batch->turn->from.snapshot, err) < 0)
		return -1;
	place = place_of(h, topic, e, &w);
	if (place == PLACE_PARKED)
		return park_to_go(h, topic, e, err);
	if (place == PLACE_NEW)
		w = begin_entry(h, topic, e, err);
	if (!w || set_snapshot(&w->to, &w->seen_to, e->batch->turn->to.snapshot, err) < 0)
		return -1;
	if (e->seq < w->from_seq)
		w->from_seq = e->seq;
	if (e->seq > w->to_seq)
		w->to_seq = e->seq;
	if (e->created_us < w->oldest_us)
		w->oldest_us = e->created_us;
	w->events++;
	w->dirty = 1;
	return 0;
}

static int insert_entry(struct hold *h, struct entry *w, struct pr_err *err)
{
	char n[4][24];
	const char *params[9] = { w->topic->name, w->from, w->to, n[0], n[1], n[2], n[3], w->topic->reason,
		w->topic->code };
	PGresult *res;

	(void)snprintf(n[0], 24, "%" PRId64, w->from_seq);
	(void)snprintf(n[1], 24, "%" PRId64, w->to_seq);
	(void)snprintf(n[2], 24, "%" PRId64, w->events);
	(void)snprintf(n[3], 24, "%" PRId64, w->oldest_us);
	res = pr_pg_exec(h->pg, sql_hold_wait_new, 9, params, err);
	if (!res)
		return -1;
	w->id = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
	PQclear(res);
	return 0;
}

static int widen_entry(struct hold *h, const struct entry *w, struct pr_err *err)
{
	char n[5][24];
	const char *params[7] = { n[0], w->to, n[1], n[2], n[3], n[4], w->frozen ? "t" : "f" };

	(void)snprintf(n[0], 24, "%" PRId64, w->id);
	(void)snprintf(n[1], 24, "%" PRId64, w->from_seq);
	(void)snprintf(n[2], 24, "%" PRId64, w->to_seq);
	(void)snprintf(n[3], 24, "%" PRId64, w->events);
	(void)snprintf(n[4], 24, "%" PRId64, w->oldest_us);
	return pr_pg_run(h->pg, sql_hold_wait_widen, 7, params, err);
}

static int flush_waiting(struct hold *h, struct pr_err *err)
{
	for (struct entry *w = h->entries; w; w = w->next) {
		if (!w->dirty)
			continue;
		if ((w->id ? widen_entry(h, w, err) : insert_entry(h, w, err)) < 0)
			return -1;
		w->dirty = 0;
	}
	return 0;
}

static int anything_to_flush(const struct hold *h)
{
	if (h->pending_n > 0)
		return 1;
	for (const struct entry *w = h->entries; w; w = w->next)
		if (w->dirty)
			return 1;
	return 0;
}

/* A transaction broke, or its COMMIT is in doubt: nothing more on this session. What Postgres refuses here
 * is no verdict on an event. */
static int abandon(struct hold *h, struct pr_err *err)
{
	pr_pg_close(h->pg);
	h->pg = NULL;
	if (err->kind == PR_REJECT)
		err->kind = PR_RETRY;
	return -1;
}

static int flush(struct hold *h, struct pr_err *err)
{
	if (!anything_to_flush(h))
		return 0;
	if (connect_pg(h, err) < 0)
		return -1;
	if (pr_pg_run(h->pg, "BEGIN", 0, NULL, err) < 0 || flush_parked(h, err) < 0 ||
		flush_waiting(h, err) < 0 || pr_pg_run(h->pg, "COMMIT", 0, NULL, err) < 0)
		return abandon(h, err);
	hold_report(h);
	/* If we die here, rows are held back that the position has not stepped over: they are read again and
	 * held back again, which changes nothing. */
	FAULT(held_back_before_position);
	return 0;
}

int hold_flush(struct hold *h, struct pr_err *err)
{
	return result(h, flush(h, err));
}

/* ---------------------------------------------------------------- at a start */

static int load_parked(struct hold *h, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(h->pg, sql_hold_parked_keys, 0, NULL, err);
	struct parked_key *k;
	struct topic *topic;
	int rc = 0;

	if (!res)
		return -1;
	h->events = 0;
	for (int i = 0; rc == 0 && i < PQntuples(res); i++) {
		topic = topics_get(h->topics, PQgetvalue(res, i, 0), (size_t)PQgetlength(res, i, 0), err);
		k = topic ? park_key(h, topic, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err)
			  : NULL;
		if (k) {
			k->events = strtoull(PQgetvalue(res, i, 2), NULL, 10);
			k->oldest_us = strtoll(PQgetvalue(res, i, 3), NULL, 10);
			/* Its head has left, or was skipped, and we died before we let the others follow. */
			k->going |= PQgetvalue(res, i, 4)[0] != 't';
			k->first = strtoll(PQgetvalue(res, i, 5), NULL, 10);
			h->events += k->events;
		}
		rc = k ? 0 : -1;
	}
	PQclear(res);
	return rc;
}

static int load_entry(struct hold *h, const PGresult *res, int i, struct pr_err *err)
{
	struct topic *topic;
	struct entry *w;

	topic = topics_get(h->topics, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err);
	if (!topic)
		return -1;
	w = add_entry(h, topic);
	w->id = strtoll(PQgetvalue(res, i, 0), NULL, 10);
	w->from_seq = strtoll(PQgetvalue(res, i, 4), NULL, 10);
	w->to_seq = strtoll(PQgetvalue(res, i, 5), NULL, 10);
	w->events = strtoll(PQgetvalue(res, i, 6), NULL, 10);
	w->oldest_us = strtoll(PQgetvalue(res, i, 7), NULL, 10);
	w->frozen = PQgetvalue(res, i, 8)[0] == 't';
	if (set_snapshot(
		    &w->from, &w->seen_from, PQgetisnull(res, i, 2) ? NULL : PQgetvalue(res, i, 2), err) < 0)
		return -1;
	return set_snapshot(&w->to, &w->seen_to, PQgetvalue(res, i, 3), err);
}

static int load_waiting(struct hold *h, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(h->pg, sql_hold_waiting, 0, NULL, err);
	int rc = 0;

	if (!res)
		return -1;
	for (int i = 0; rc == 0 && i < PQntuples(res); i++)
		rc = load_entry(h, res, i, err);
	PQclear(res);
	return rc;
}

static int delete_parked(struct hold *h, const int64_t *seqs, size_t n, struct pr_err *err)
{
	struct pr_buf list = { 0 };
	char number[24];
	int rc;

	pr_buf_puts(&list, "{");
	for (size_t i = 0; i < n; i++) {
		(void)snprintf(number, sizeof(number), "%" PRId64, seqs[i]);
		put_element(&list, number);
	}
	pr_buf_puts(&list, "}");
	rc = pr_pg_run(h->pg, sql_hold_released, 1, (const char *const[]){ list.s }, err);
	pr_buf_free(&list);
	return rc;
}

static int waiting_is_out(struct hold *h, int64_t entry, int64_t through, size_t events, struct pr_err *err)
{
	char n[3][24];
	const char *params[3] = { n[0], n[1], n[2] };

	(void)snprintf(n[0], 24, "%" PRId64, entry);
	(void)snprintf(n[1], 24, "%" PRId64, through);
	(void)snprintf(n[2], 24, "%zu", events);
	if (through < 0)
		return pr_pg_run(h->pg, sql_hold_wait_done, 1, params, err);
	return pr_pg_run(h->pg, sql_hold_wait_through, 3, params, err);
}

/* Whoever is read again must not be released as well: it would leave twice, and before its predecessors. */
static int forget_uncovered(struct hold *h, const struct pr_position *committed, struct pr_err *err)
{
	char n[3][24];
	const char *params[5] = { committed->from.snapshot, committed->to.snapshot, n[0], n[1], n[2] };

	(void)snprintf(n[0], 24, "%" PRId64, committed->seq);
	(void)snprintf(n[1], 24, "%" PRId64, committed->top);
	(void)snprintf(n[2], 24, "%" PRId64, committed->from.low);
	return pr_pg_run(h->pg, sql_hold_forget_uncovered, 5, params, err);
}

static int load(struct hold *h, const struct pr_position *committed, struct pr_err *err)
{
	forget_all(h);
	if (connect_pg(h, err) < 0)
		return -1;
	if (committed->released_n > 0 &&
		delete_parked(h, committed->released, committed->released_n, err) < 0)
		return -1;
	if (committed->released_topic &&
		waiting_is_out(h, committed->released_entry, committed->released_seq, 0, err) < 0)
		return -1;
	if (forget_uncovered(h, committed, err) < 0 || load_parked(h, err) < 0 || load_waiting(h, err) < 0)
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
	free(rel->key);
	memset(rel, 0, sizeof(*rel));
}

/* COPY of a query over ROW_COLUMNS into a new batch, cut when it has enough bytes. */
static struct batch *read_batch(
	struct hold *h, const char *where, size_t most, int *ret_cut, struct pr_err *err)
{
	char *query =
		pr_asprintf("SELECT " ROW_COLUMNS ", false FROM outbox.event WHERE %s ORDER BY seq LIMIT %zu",
			where, most);
	struct turn *turn = turn_new();
	struct batch *b = batch_new(turn, most);
	char *row;
	int len, rc = pr_pg_copy_begin(h->pg, query, err);

	*ret_cut = 0;
	turn_drop(turn);
	free(query);
	while (rc == 0 && !*ret_cut && (rc = pr_pg_copy_row(h->pg, &row, &len, err)) == 1) {
		rc = batch_add_row(b, row, (size_t)len, err);
		if (rc < 0)
			PQfreemem(row);
		*ret_cut = b->bytes > (size_t)setting(&h->r->conf->limits.batch_bytes) / 2;
	}
	if (rc < 0 || *ret_cut) {
		pr_pg_close(h->pg); /* possibly in the middle of the stream */
		h->pg = NULL;
	}
	if (rc < 0) {
		batch_free(b);
		return NULL;
	}
	return b;
}

static struct parked_key *requested_key(struct hold *h, const PGresult *res, int i, struct pr_err *err)
{
	struct topic *topic =
		topics_get(h->topics, PQgetvalue(res, i, 0), (size_t)PQgetlength(res, i, 0), err);

	struct parked_key *k =
		topic ? park_key(h, topic, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err) : NULL;

	if (k && k->first == INT64_MAX)
		k->first = 0; /* parked by somebody else: we do not know where it begins */
	return k;
}

/* Skips what is to be skipped of a key; marks it as going when its head has left or may go. */
static int look_at_key(struct hold *h, struct parked_key *k, struct pr_err *err)
{
	const char *params[2] = { k->topic->name, k->key };
	PGresult *res = pr_pg_exec(h->pg, sql_hold_skip, 2, params, err);
	uint64_t skipped;

	if (!res)
		return -1;
	skipped = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
	k->going |= PQgetvalue(res, 0, 1)[0] == 't';
	PQclear(res);
	if (skipped > 0)
		pr_log(PR_WARN, "parked events skipped for ever", KS("topic", k->topic->name),
			KI("events", skipped));
	k->events -= skipped < k->events ? skipped : k->events;
	h->events -= skipped < h->events ? skipped : h->events;
	res = pr_pg_exec(h->pg, sql_hold_may_go, 2, params, err);
	if (!res)
		return -1;
	k->going |= PQgetvalue(res, 0, 0)[0] == 't';
	PQclear(res);
	return k->going ? pr_pg_run(h->pg, sql_hold_let_go, 2, params, err) : 0;
}

static void set_text(char **text, const char *value)
{
	free(*text);
	*text = pr_strdup(value);
}

/* From the beginning, or from where the last look ended. */
static int look_at_requests(struct hold *h, int anew, struct pr_err *err)
{
	char limit[24];
	const char *params[3] = { anew ? NULL : h->look_topic, anew ? NULL : h->look_key, limit };
	PGresult *res;
	struct parked_key *k;
	int n, rc = 0;

	(void)snprintf(limit, sizeof(limit), "%d", LOOK);
	if (connect_pg(h, err) < 0)
		return -1;
	res = pr_pg_exec(h->pg, sql_hold_requested, 3, params, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	for (int i = 0; rc == 0 && i < n; i++) {
		k = requested_key(h, res, i, err);
		rc = k ? look_at_key(h, k, err) : -1;
	}
	h->more = n == LOOK;
	if (h->more) {
		set_text(&h->look_topic, PQgetvalue(res, n - 1, 0));
		set_text(&h->look_key, PQgetvalue(res, n - 1, 1));
	}
	PQclear(res);
	return rc;
}

/* While rows of its topic wait, among them may be some of the key that are older than what is parked. */
static struct parked_key *going_key(const struct hold *h)
{
	for (size_t i = 0; i < KEYS_SIZE; i++)
		for (struct parked_key *k = h->hash[i]; k; k = k->next)
			if (k->going && !k->topic->missing && !k->topic->waiting)
				return k;
	return NULL;
}

static int parked_slice(
	struct hold *h, struct parked_key *k, size_t most, struct release *ret, struct pr_err *err)
{
	char limit[24];
	const char *params[3] = { k->topic->name, k->key, limit };
	struct pr_buf where = { 0 };
	PGresult *res;
	int n, cut;

	(void)snprintf(limit, sizeof(limit), "%zu", most);
	/* What is noted and not yet in the table is held back too: a key is not free before it is out. */
	if (hold_flush(h, err) < 0 || connect_pg(h, err) < 0)
		return -1;
	res = pr_pg_exec(h->pg, sql_hold_key_head, 3, params, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	pr_buf_puts(&where, "seq = ANY ('{");
	for (int i = 0; i < n; i++)
		pr_buf_printf(&where, "%s%s", i ? "," : "", PQgetvalue(res, i, 0));
	pr_buf_puts(&where, "}'::bigint[])");
	PQclear(res);
	if (n == 0) {
		unpark_key(h, k->topic, k->key);
		hold_report(h);
	} else {
		ret->batch = read_batch(h, where.s, (size_t)n, &cut, err);
		ret->topic = k->topic;
		ret->key = pr_strdup(k->key);
	}
	pr_buf_free(&where);
	return n == 0 || ret->batch ? 0 : -1;
}

/* The oldest entry of a topic that is there again, and that the position covers; NULL: none. */
static int free_entry_of(
	struct hold *h, const struct pr_mark *covered, struct entry **ret, struct pr_err *err)
{
	struct snapshot now = { 0 };
	struct entry *w;
	int rc = 0;

	*ret = NULL;
	if (!h->entries || !covered->snapshot || snapshot_parse(covered->snapshot, &now) < 0)
		return 0;
	for (w = h->entries; w && !*ret; w = w->next) {
		if (w->topic->missing || !w->topic->rkt)
			continue;
		if (!w->frozen) {
			w->frozen = w->dirty = 1;
			rc = hold_flush(h, err);
			if (rc < 0)
				break;
		}
		if (snapshot_covers(&now, &w->seen_to))
			*ret = w;
	}
	snapshot_release(&now);
	return rc;
}

static void put_literal(struct hold *h, struct pr_buf *b, const char *s)
{
	char *literal = PQescapeLiteral(pr_pg_conn(h->pg), s, strlen(s));

	pr_buf_puts(b, literal ? literal : "NULL");
	PQfreemem(literal);
}

static int waiting_slice(
	struct hold *h, struct entry *w, size_t most, struct release *ret, struct pr_err *err)
{
	int64_t end = w->to_seq - w->from_seq > WINDOW ? w->from_seq + WINDOW : w->to_seq;
	struct pr_buf where = { 0 };
	int cut;

	if (connect_pg(h, err) < 0)
		return -1;
	pr_buf_printf(&where,
		"seq >= %" PRId64 " AND seq <= %" PRId64
		" AND pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot)",
		w->from_seq, end, w->to);
	if (w->from)
		pr_buf_printf(&where, " AND NOT pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot)",
			w->from);
	pr_buf_puts(&where, " AND coalesce(topic, pg_catalog.replace(");
	put_literal(h, &where, h->r->conf->route.topic);
	pr_buf_puts(&where, ", '${aggregatetype}', aggregatetype)) = ");
	put_literal(h, &where, w->topic->name);
	/* A row whose key was parked lies in the range all the same: it passes by, and is skipped if it was.
	 */
	pr_buf_puts(&where, " AND NOT EXISTS (SELECT FROM outbox.skipped AS s WHERE s.seq = event.seq)");
	ret->batch = read_batch(h, where.s, most, &cut, err);
	pr_buf_free(&where);
	if (!ret->batch)
		return -1;
	ret->topic = w->topic;
	ret->entry = w->id;
	if (cut || ret->batch->n == most)
		ret->through = ret->batch->ev[ret->batch->n - 1].seq;
	else
		ret->through = end == w->to_seq ? -1 : end;
	return 0;
}

static int next_release(struct hold *h, int requested, const struct pr_mark *covered, size_t most,
	struct release *ret, struct pr_err *err)
{
	struct parked_key *k;
	struct entry *w;

	memset(ret, 0, sizeof(*ret));
	k = h->keys > 0 ? going_key(h) : NULL;
	if (requested || h->requested || (h->more && !k)) {
		if (look_at_requests(h, requested || h->requested, err) < 0)
			return -1;
		h->requested = 0;
		hold_report(h);
		k = h->keys > 0 ? going_key(h) : NULL;
	}
	for (; k; k = h->keys > 0 ? going_key(h) : NULL) { /* no slice: that key was free */
		if (parked_slice(h, k, most, ret, err) < 0)
			return -1;
		if (ret->batch)
			return 0;
	}
	if (free_entry_of(h, covered, &w, err) < 0)
		return -1;
	return w ? waiting_slice(h, w, most, ret, err) : 0;
}

int hold_next_release(struct hold *h, int requested, const struct pr_mark *covered, size_t most,
	struct release *ret, struct pr_err *err)
{
	return result(h, next_release(h, requested, covered, most, ret, err));
}

static void entry_is_out(struct hold *h, const struct release *rel)
{
	struct entry **at = &h->entries, *w;

	while ((w = *at) && w->id != rel->entry)
		at = &w->next;
	if (!w)
		return;
	w->events -= (int64_t)rel->batch->n < w->events ? (int64_t)rel->batch->n : w->events - 1;
	if (rel->through >= 0) {
		w->from_seq = rel->through + 1;
		if (rel->batch->n > 0)
			w->oldest_us = rel->batch->ev[rel->batch->n - 1].created_us;
		return;
	}
	*at = w->next;
	if (--w->topic->waiting == 0)
		pr_log(PR_INFO, "waiting events are out", KS("topic", w->topic->name));
	free_entry(w);
}

static int parked_are_out(struct hold *h, const struct release *rel, struct pr_err *err)
{
	struct parked_key *k = *slot_of(h, rel->topic, rel->key, strlen(rel->key));
	size_t n = rel->batch->n;
	int64_t *seqs = pr_calloc(n, sizeof(*seqs));
	int rc;

	for (size_t i = 0; i < n; i++)
		seqs[i] = rel->batch->ev[i].seq;
	rc = pr_pg_run(h->pg, "BEGIN", 0, NULL, err);
	if (rc == 0)
		rc = delete_parked(h, seqs, n, err);
	if (rc == 0) /* also what was parked behind it meanwhile */
		rc = pr_pg_run(
			h->pg, sql_hold_let_go, 2, (const char *const[]){ rel->topic->name, rel->key }, err);
	if (rc == 0)
		rc = pr_pg_run(h->pg, "COMMIT", 0, NULL, err);
	free(seqs);
	if (rc < 0)
		return abandon(h, err);
	if (k) {
		k->events -= n < k->events ? n : k->events;
		h->events -= n < h->events ? n : h->events;
	}
	return rc;
}

static int released(struct hold *h, const struct release *rel, struct pr_err *err)
{
	if (connect_pg(h, err) < 0)
		return -1;
	if (rel->key) {
		if (parked_are_out(h, rel, err) < 0)
			return -1;
	} else {
		if (waiting_is_out(h, rel->entry, rel->through, rel->batch->n, err) < 0)
			return -1;
		entry_is_out(h, rel);
	}
	hold_report(h);
	return 0;
}

int hold_released(struct hold *h, const struct release *rel, struct pr_err *err)
{
	return result(h, released(h, rel, err));
}

int hold_refused(
	struct hold *h, const struct release *rel, const char *reason, const char *code, struct pr_err *err)
{
	struct parked_key *k = *slot_of(h, rel->topic, rel->key, strlen(rel->key));
	char seq[24];
	const char *params[5] = { rel->topic->name, rel->key, seq, reason, code };

	(void)snprintf(seq, sizeof(seq), "%" PRId64, rel->batch->ev[0].seq);
	if (k)
		k->going = 0;
	pr_log(PR_WARN, "parked event refused again", KS("topic", rel->topic->name),
		KI("seq", rel->batch->ev[0].seq), KS("reason", reason));
	if (connect_pg(h, err) < 0)
		return -1;
	return pr_pg_run(h->pg, sql_hold_refused, 5, params, err);
}

/* ---------------------------------------------------------------- for health */

static void report_waiting(struct hold *h, int64_t *oldest, uint64_t *events)
{
	struct relay *r = h->r;
	struct waiting_topic *list = NULL;
	size_t n = 0;

	for (struct entry *w = h->entries; w; w = w->next) {
		list = pr_realloc(list, (n + 1) * sizeof(*list));
		(void)snprintf(list[n].topic, sizeof(list[n].topic), "%s", w->topic->name);
		(void)snprintf(list[n].reason, sizeof(list[n].reason), "%s", w->topic->reason);
		list[n].events = (uint64_t)w->events;
		list[n++].oldest_us = w->oldest_us;
		*events += (uint64_t)w->events;
		if (w->oldest_us < *oldest)
			*oldest = w->oldest_us;
	}
	(void)pthread_mutex_lock(&r->mutex);
	free(r->waiting);
	r->waiting = list;
	r->waiting_n = n;
	(void)pthread_mutex_unlock(&r->mutex);
}

void hold_report(struct hold *h)
{
	struct relay *r = h->r;
	int64_t oldest = INT64_MAX;
	uint64_t events = 0;

	for (size_t i = 0; i < KEYS_SIZE && h->keys > 0; i++)
		for (const struct parked_key *k = h->hash[i]; k; k = k->next)
			if (k->oldest_us < oldest)
				oldest = k->oldest_us;
	report_waiting(h, &oldest, &events);
	atomic_store(&r->parked_events, h->events);
	atomic_store(&r->parked_keys, h->keys);
	atomic_store(&r->waiting_events, events);
	atomic_store(&r->held_oldest_us, oldest);
}
