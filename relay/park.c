/* relay/park.c -- parked keys: an event that cannot go, and all that comes behind it of its key. Refuses to
 * park more keys than the config allows, and to let an event pass an earlier one of its key. */
#include "relay/held.h"

#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_SIZE 4096 /* hash buckets */
#define LOOK      200  /* keys with a request that are looked at before events flow again */
#define SLICE     2000 /* events released at once: the position names each of them, in some 20 bytes */
#define TEXT      (1024 * 1024) /* bytes of the keys that one statement is about; a key may have 64 kB */

struct parked_key {
	struct topic *topic;
	char *key;
	size_t len;
	uint64_t events;
	int64_t oldest_us;
	int64_t first; /* no seq of it below this one is parked */
	int going;     /* what is behind its head follows */
	int named;     /* by the statement that is being made up */
	struct parked_key *next;
};

struct pending { /* a parked event, not yet in outbox.parked */
	int64_t seq;
	struct parked_key *of;
	int head;
	char reason[160], code[64];
};

struct park {
	struct held *s;
	struct parked_key *hash[KEYS_SIZE];
	uint64_t keys, events;
	struct pending *pending;
	size_t pending_n, pending_cap;
	int more; /* there were more requests than one look shows: go on behind this key */
	char *look_topic, *look_key;
};

struct park *park_new(struct held *s)
{
	struct park *p = pr_calloc(1, sizeof(*p));

	p->s = s;
	return p;
}

void park_forget(struct park *p)
{
	struct parked_key *k;

	for (size_t i = 0; i < KEYS_SIZE; i++) {
		while ((k = p->hash[i])) {
			p->hash[i] = k->next;
			free(k->key);
			free(k);
		}
	}
	p->keys = p->events = 0;
	p->pending_n = 0;
}

void park_free(struct park *p)
{
	park_forget(p);
	free(p->pending);
	free(p->look_topic);
	free(p->look_key);
	free(p);
}

static struct parked_key **slot_of(struct park *p, const struct topic *topic, const char *key, size_t len)
{
	size_t x = (size_t)(uintptr_t)topic >> 4;
	struct parked_key **slot;

	for (size_t i = 0; i < len; i++)
		x = x * 31 + (unsigned char)key[i];
	slot = &p->hash[(x ^ (x >> 16)) % KEYS_SIZE];
	while (*slot &&
		((*slot)->topic != topic || (*slot)->len != len || memcmp((*slot)->key, key, len) != 0))
		slot = &(*slot)->next;
	return slot;
}

static struct parked_key *park_key(
	struct park *p, struct topic *topic, const char *key, size_t len, struct pr_err *err)
{
	struct parked_key **slot = slot_of(p, topic, key, len), *k = *slot;

	if (k)
		return k;
	if ((int64_t)p->keys >= setting(&p->s->r->conf->limits.parked_keys)) {
		(void)pr_fail(err, PR_STOP, "%" PRIu64 " key%s parked, no more are allowed", p->keys,
			p->keys == 1 ? " is" : "s are");
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
	p->keys++;
	return k;
}

static void unpark_key(struct park *p, struct parked_key *k)
{
	struct parked_key **slot = slot_of(p, k->topic, k->key, k->len);

	*slot = k->next;
	p->keys--;
	p->events -= k->events < p->events ? k->events : p->events;
	pr_log(PR_INFO, "key is released", KS("topic", k->topic->name), KS("key", k->key));
	free(k->key);
	free(k);
}

int park_holds(const struct park *p, const struct topic *topic, const struct event *e)
{
	const struct parked_key *k;

	if (p->keys == 0)
		return 0;
	/* slot_of only reads; it takes no const because its result may be written through. */
	k = *slot_of((struct park *)(uintptr_t)p, topic, e->key.s, e->key.n);
	return k && e->seq >= k->first;
}

int park_event(struct park *p, struct topic *topic, const struct event *e, int head, const char *reason,
	const char *code, struct pr_err *err)
{
	struct parked_key *k = park_key(p, topic, e->key.s, e->key.n, err);
	struct pending *n;

	if (!k)
		return -1;
	if (p->pending_n == p->pending_cap) {
		p->pending_cap = p->pending_cap ? p->pending_cap * 2 : 64;
		p->pending = pr_realloc(p->pending, p->pending_cap * sizeof(*p->pending));
	}
	n = &p->pending[p->pending_n++];
	n->seq = e->seq;
	n->of = k;
	n->head = head;
	(void)snprintf(n->reason, sizeof(n->reason), "%s", reason);
	(void)snprintf(n->code, sizeof(n->code), "%s", code);
	if (head)
		pr_log(PR_WARN, "event parked, its key waits", KS("topic", topic->name), KI("seq", e->seq),
			KS("reason", reason), KS("hint", "postrider parked list"));
	k->events++;
	p->events++;
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

/* Keys as two parameters, arrays of topic and key. */
struct names {
	struct pr_buf topics, keys;
	const char *params[3];
};

static void names_add(struct names *n, const struct parked_key *k)
{
	if (n->topics.len == 0) {
		pr_buf_puts(&n->topics, "{");
		pr_buf_puts(&n->keys, "{");
	}
	put_element(&n->topics, k->topic->name);
	put_element(&n->keys, k->key);
}

static void names_end(struct names *n)
{
	pr_buf_puts(&n->topics, n->topics.len ? "}" : "{}");
	pr_buf_puts(&n->keys, n->keys.len ? "}" : "{}");
	n->params[0] = n->topics.s;
	n->params[1] = n->keys.s;
}

static void names_free(struct names *n)
{
	pr_buf_free(&n->topics);
	pr_buf_free(&n->keys);
}

int park_dirty(const struct park *p)
{
	return p->pending_n > 0;
}

int park_flush(struct park *p, struct pr_err *err)
{
	struct pr_buf a[6] = { 0 };
	const char *params[6];
	char number[24];
	PGresult *res;
	size_t inserted;

	if (p->pending_n == 0)
		return 0;
	for (int i = 0; i < 6; i++)
		pr_buf_puts(&a[i], "{");
	for (size_t i = 0; i < p->pending_n; i++) {
		const struct pending *e = &p->pending[i];

		(void)snprintf(number, sizeof(number), "%" PRId64, e->seq);
		put_element(&a[0], number);
		put_element(&a[1], e->of->topic->name);
		put_element(&a[2], e->of->key);
		put_element(&a[3], e->head ? "t" : "f");
		put_element(&a[4], e->reason);
		put_element(&a[5], e->code);
	}
	for (int i = 0; i < 6; i++) {
		pr_buf_puts(&a[i], "}");
		params[i] = a[i].s;
	}
	res = pr_pg_exec(p->s->pg, sql_hold_park, 6, params, err);
	for (int i = 0; i < 6; i++)
		pr_buf_free(&a[i]);
	if (!res)
		return -1;
	inserted = strtoull(PQcmdTuples(res), NULL, 10);
	PQclear(res);
	/* Some were parked before a crash, and were counted when they were loaded. */
	if (inserted < p->pending_n && park_load(p, err) < 0)
		return -1;
	p->pending_n = 0;
	return 0;
}

int park_to_go(struct park *p, struct topic *topic, const struct event *e, struct pr_err *err)
{
	struct parked_key *k = *slot_of(p, topic, e->key.s, e->key.n);

	if (park_event(p, topic, e, 0, "its topic cannot be written to", topic->code, err) < 0)
		return -1;
	if (!k)
		(*slot_of(p, topic, e->key.s, e->key.n))->going = 1;
	return 0;
}

int park_load(struct park *p, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(p->s->pg, sql_hold_parked_keys, 0, NULL, err);
	struct parked_key *k;
	struct topic *topic;
	int rc = 0;

	if (!res)
		return -1;
	p->events = 0;
	for (int i = 0; rc == 0 && i < PQntuples(res); i++) {
		topic = topics_get(p->s->topics, PQgetvalue(res, i, 0), (size_t)PQgetlength(res, i, 0), err);
		k = topic ? park_key(p, topic, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err)
			  : NULL;
		if (k) {
			k->events = strtoull(PQgetvalue(res, i, 2), NULL, 10);
			k->oldest_us = strtoll(PQgetvalue(res, i, 3), NULL, 10);
			/* Its head has left, or was skipped, and we died before we let the others follow. */
			k->going |= PQgetvalue(res, i, 4)[0] != 't';
			k->first = strtoll(PQgetvalue(res, i, 5), NULL, 10);
			p->events += k->events;
		}
		rc = k ? 0 : -1;
	}
	PQclear(res);
	return rc;
}

int park_delete(struct park *p, const int64_t *seqs, size_t n, struct pr_err *err)
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
	rc = pr_pg_run(p->s->pg, sql_hold_released, 1, (const char *const[]){ list.s }, err);
	pr_buf_free(&list);
	return rc;
}

static struct parked_key *requested_key(struct park *p, const PGresult *res, int i, struct pr_err *err)
{
	struct topic *topic =
		topics_get(p->s->topics, PQgetvalue(res, i, 0), (size_t)PQgetlength(res, i, 0), err);

	struct parked_key *k =
		topic ? park_key(p, topic, PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), err) : NULL;

	if (k && k->first == INT64_MAX)
		k->first = 0; /* parked by somebody else: we do not know where it begins */
	return k;
}

/* The statements about keys answer by their place in the arrays, from 1. */
static size_t place(const PGresult *res, int i)
{
	return strtoull(PQgetvalue(res, i, 0), NULL, 10) - 1;
}

static int skip_asked(struct park *p, struct parked_key **keys, const struct names *n, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(p->s->pg, sql_hold_skip, 2, n->params, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		struct parked_key *k = keys[place(res, i)];
		uint64_t skipped = strtoull(PQgetvalue(res, i, 1), NULL, 10);

		pr_log(PR_WARN, "parked events skipped for ever", KS("topic", k->topic->name),
			KI("events", skipped));
		k->going |= PQgetvalue(res, i, 2)[0] == 't';
		k->events -= skipped < k->events ? skipped : k->events;
		p->events -= skipped < p->events ? skipped : p->events;
	}
	PQclear(res);
	return 0;
}

/* Skips what is to be skipped of the keys; marks those as going whose head has left or may go. */
static int look_at_keys(struct park *p, struct parked_key **keys, size_t keys_n, struct pr_err *err)
{
	struct names all = { .params = { NULL } }, going = { .params = { NULL } };
	PGresult *res = NULL;
	int rc = -1;

	for (size_t i = 0; i < keys_n; i++)
		names_add(&all, keys[i]);
	names_end(&all);
	if (skip_asked(p, keys, &all, err) < 0)
		goto out;
	res = pr_pg_exec(p->s->pg, sql_hold_may_go, 2, all.params, err);
	if (!res)
		goto out;
	for (int i = 0; i < PQntuples(res); i++)
		keys[place(res, i)]->going = 1;
	for (size_t i = 0; i < keys_n; i++)
		if (keys[i]->going)
			names_add(&going, keys[i]);
	names_end(&going);
	rc = pr_pg_run(p->s->pg, sql_hold_let_go, 2, going.params, err);
out:
	PQclear(res);
	names_free(&all);
	names_free(&going);
	return rc;
}

static void set_text(char **text, const char *value)
{
	free(*text);
	*text = pr_strdup(value);
}

/* From the beginning, or from where the last look ended. */
int park_look(struct park *p, int anew, struct pr_err *err)
{
	char limit[24];
	const char *params[3] = { anew ? NULL : p->look_topic, anew ? NULL : p->look_key, limit };
	struct parked_key *keys[LOOK];
	PGresult *res;
	int n, rc = 0;

	(void)snprintf(limit, sizeof(limit), "%d", LOOK);
	res = pr_pg_exec(p->s->pg, sql_hold_requested, 3, params, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	for (int i = 0; rc == 0 && i < n; i++)
		rc = (keys[i] = requested_key(p, res, i, err)) ? 0 : -1;
	if (rc == 0 && n > 0)
		rc = look_at_keys(p, keys, (size_t)n, err);
	p->more = n == LOOK;
	if (p->more) {
		set_text(&p->look_topic, PQgetvalue(res, n - 1, 0));
		set_text(&p->look_key, PQgetvalue(res, n - 1, 1));
	}
	PQclear(res);
	return rc;
}

int park_unseen(const struct park *p)
{
	return p->more;
}

/* While rows of its topic wait, among them may be some of the key that are older than what is parked. */
static int may_go(const struct parked_key *k)
{
	return k->going && !k->topic->missing && !k->topic->waiting;
}

/* Keys that may go, until they have `most` events, as far as we know. */
static size_t pick(const struct park *p, size_t most, struct parked_key **ret, struct names *names)
{
	size_t n = 0, events = 0;

	for (size_t i = 0; i < KEYS_SIZE; i++) {
		for (struct parked_key *k = p->hash[i]; k; k = k->next) {
			if (!may_go(k))
				continue;
			names_add(names, k);
			ret[n++] = k;
			events += k->events > 0 ? k->events : 1;
			if (events >= most || names->keys.len > TEXT)
				return n;
		}
	}
	return n;
}

int park_going(const struct park *p)
{
	for (size_t i = 0; i < KEYS_SIZE && p->keys > 0; i++)
		for (const struct parked_key *k = p->hash[i]; k; k = k->next)
			if (may_go(k))
				return 1;
	return 0;
}

struct head { /* an event that may go */
	int64_t seq;
	struct parked_key *of;
};

static int by_seq(const void *a, const void *b)
{
	const struct head *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* The events of the heads. In order of seq they are in order within each key, also when they are cut. */
static int read_heads(struct park *p, struct head *heads, size_t n, struct release *ret, struct pr_err *err)
{
	struct pr_buf where = { 0 };
	size_t found = 0;
	int cut;

	qsort(heads, n, sizeof(*heads), by_seq);
	pr_buf_puts(&where, "seq = ANY ('{");
	for (size_t i = 0; i < n; i++)
		pr_buf_printf(&where, "%s%" PRId64, i ? "," : "", heads[i].seq);
	pr_buf_puts(&where, "}'::bigint[])");
	ret->batch = held_read(p->s, where.s, n, &cut, err);
	pr_buf_free(&where);
	if (!ret->batch)
		return -1;
	ret->of = pr_calloc(n, sizeof(*ret->of));
	for (size_t i = 0; i < n && (found < ret->batch->n || !cut); i++) {
		if (found < ret->batch->n && ret->batch->ev[found].seq == heads[i].seq) {
			ret->of[found++] = heads[i].of;
			continue;
		}
		heads[i].of->going = 0; /* else we would come by for ever */
		pr_log(PR_WARN, "parked event is not in outbox.event any more, its key waits",
			KS("topic", heads[i].of->topic->name), KI("seq", heads[i].seq),
			KS("hint", "postrider parked skip"));
	}
	if (ret->batch->n == 0)
		release_free(ret);
	return 0;
}

/* Keys that nothing is left of are free. A result of `most` rows may have ended before the last keys. */
static void unpark_empty(struct park *p, struct parked_key **keys, size_t n, const PGresult *res, size_t most)
{
	size_t rows = (size_t)PQntuples(res), row = 0;
	size_t seen = rows < most ? n : place(res, (int)rows - 1);

	for (size_t i = 0; i < seen; i++) {
		if (row < rows && place(res, (int)row) == i)
			while (row < rows && place(res, (int)row) == i)
				row++;
		else
			unpark_key(p, keys[i]);
	}
}

static int slice_of(struct park *p, struct parked_key **keys, size_t n, struct names *names, size_t most,
	struct release *ret, struct pr_err *err)
{
	char limit[24];
	struct head *heads;
	PGresult *res;
	size_t rows;
	int rc = 0;

	(void)snprintf(limit, sizeof(limit), "%zu", most);
	names->params[2] = limit;
	res = pr_pg_exec(p->s->pg, sql_hold_key_heads, 3, names->params, err);
	if (!res)
		return -1;
	rows = (size_t)PQntuples(res);
	heads = pr_calloc(rows + 1, sizeof(*heads));
	for (size_t i = 0; i < rows; i++)
		heads[i] = (struct head){ strtoll(PQgetvalue(res, (int)i, 1), NULL, 10),
			keys[place(res, (int)i)] };
	unpark_empty(p, keys, n, res, most);
	PQclear(res);
	if (rows > 0)
		rc = read_heads(p, heads, rows, ret, err);
	free(heads);
	return rc;
}

int park_slice(struct park *p, size_t most, struct release *ret, struct pr_err *err)
{
	struct parked_key **keys;
	size_t n;
	int rc = 0;

	most = most < SLICE ? most : SLICE;
	keys = pr_calloc(most, sizeof(struct parked_key *));
	while (rc == 0 && !ret->batch) {
		struct names names = { .params = { NULL } };

		n = pick(p, most, keys, &names);
		names_end(&names);
		if (n > 0) /* no slice: these keys were free */
			rc = held_connect(p->s, err) < 0 ? -1 : slice_of(p, keys, n, &names, most, ret, err);
		names_free(&names);
		if (n == 0)
			break;
	}
	free(keys);
	return rc;
}

static int forget(
	struct park *p, const int64_t *seqs, size_t n, const struct names *names, struct pr_err *err)
{
	if (pr_pg_run(p->s->pg, "BEGIN", 0, NULL, err) < 0 || park_delete(p, seqs, n, err) < 0)
		return -1;
	/* Also what was parked behind them meanwhile. */
	if (pr_pg_run(p->s->pg, sql_hold_let_go, 2, names->params, err) < 0)
		return -1;
	return pr_pg_run(p->s->pg, "COMMIT", 0, NULL, err);
}

int park_released(struct park *p, const struct release *rel, struct pr_err *err)
{
	struct names names = { .params = { NULL } };
	size_t n = rel->batch->n;
	int64_t *seqs = pr_calloc(n, sizeof(*seqs));
	int rc;

	for (size_t i = 0; i < n; i++) {
		seqs[i] = rel->batch->ev[i].seq;
		if (!rel->of[i]->named)
			names_add(&names, rel->of[i]);
		rel->of[i]->named = 1;
	}
	names_end(&names);
	rc = forget(p, seqs, n, &names, err);
	for (size_t i = 0; i < n; i++) {
		rel->of[i]->named = 0;
		if (rc < 0)
			continue;
		rel->of[i]->events -= rel->of[i]->events > 0;
		p->events -= p->events > 0;
	}
	free(seqs);
	names_free(&names);
	return rc < 0 ? held_abandon(p->s, err) : 0;
}

int park_refused(struct park *p, const struct release *rel, size_t i, const char *reason, const char *code,
	struct pr_err *err)
{
	struct parked_key *k = rel->of[i];
	char seq[24];
	const char *params[5] = { k->topic->name, k->key, seq, reason, code };

	if (!k->going)
		return 0; /* one before it was refused as well */
	(void)snprintf(seq, sizeof(seq), "%" PRId64, rel->batch->ev[i].seq);
	k->going = 0;
	pr_log(PR_WARN, "parked event refused again", KS("topic", k->topic->name),
		KI("seq", rel->batch->ev[i].seq), KS("reason", reason));
	return pr_pg_run(p->s->pg, sql_hold_refused, 5, params, err);
}

void park_count(const struct park *p, uint64_t *ret_keys, uint64_t *ret_events, int64_t *ret_oldest_us)
{
	*ret_keys = p->keys;
	*ret_events = p->events;
	*ret_oldest_us = INT64_MAX;
	for (size_t i = 0; i < KEYS_SIZE && p->keys > 0; i++)
		for (const struct parked_key *k = p->hash[i]; k; k = k->next)
			if (k->oldest_us < *ret_oldest_us)
				*ret_oldest_us = k->oldest_us;
}
