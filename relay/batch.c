/* relay/batch.c -- batches, and COPY BINARY rows into events. Refuses a row that is not
 * of the expected shape; never looks into a payload. */
#include "relay/batch.h"

#include <endian.h>
#include <libpq-fe.h>
#include <stdlib.h>
#include <string.h>

/* Postgres counts microseconds from 2000-01-01. */
#define PG_EPOCH_US 946684800000000LL
#define FAR_US      (INT64_MAX / 2) /* the year 148108 */

struct turn *turn_new(void)
{
	struct turn *t = pr_calloc(1, sizeof(*t));

	atomic_init(&t->refs, 1);
	return t;
}

struct turn *turn_hold(struct turn *t)
{
	atomic_fetch_add(&t->refs, 1);
	return t;
}

void turn_drop(struct turn *t)
{
	if (!t || atomic_fetch_sub(&t->refs, 1) > 1)
		return;
	pr_mark_release(&t->from);
	pr_mark_release(&t->to);
	free(t);
}

struct batch *batch_new(struct turn *t, size_t cap)
{
	struct batch *b = pr_calloc(1, sizeof(*b));

	b->turn = turn_hold(t);
	b->ev = pr_malloc(cap * sizeof(*b->ev));
	b->cap = cap;
	b->oldest_us = INT64_MAX;
	return b;
}

void batch_free(struct batch *b)
{
	if (!b)
		return;
	for (size_t i = 0; i < b->n; i++)
		PQfreemem(b->ev[i].row);
	turn_drop(b->turn);
	free(b->ev);
	free(b);
}

/* Reads the fields of a row one after the other; bad is sticky. */
struct cursor {
	const char *at, *end;
	int bad;
};

static struct span take(struct cursor *c)
{
	struct span v = { NULL, 0 };
	int32_t len;

	if (c->bad || c->end - c->at < 4) {
		c->bad = 1;
		return v;
	}
	memcpy(&len, c->at, 4);
	len = (int32_t)be32toh((uint32_t)len);
	c->at += 4;
	if (len == -1)
		return v;
	if (len < 0 || c->end - c->at < len) {
		c->bad = 1;
		return v;
	}
	v.s = c->at;
	v.n = (uint32_t)len;
	c->at += len;
	return v;
}

static int64_t take_i64(struct cursor *c)
{
	struct span v = take(c);
	uint64_t x = 0;

	if (!v.s || v.n != 8)
		c->bad = 1;
	else
		memcpy(&x, v.s, 8);
	return (int64_t)be64toh(x);
}

static int32_t take_i32(struct cursor *c, int32_t when_null)
{
	struct span v = take(c);
	uint32_t x = 0;

	if (!v.s)
		return when_null;
	if (v.n != 4)
		c->bad = 1;
	else
		memcpy(&x, v.s, 4);
	return (int32_t)be32toh(x);
}

/* jsonb's binary form is a version byte, 1, and then its text. */
static struct span take_jsonb(struct cursor *c)
{
	struct span v = take(c);

	if (!v.s)
		return v;
	if (v.n < 1 || v.s[0] != 1) {
		c->bad = 1;
		return v;
	}
	v.s++;
	v.n--;
	return v;
}

static int32_t field_count(struct cursor *c)
{
	int16_t n;

	if (c->end - c->at < 2)
		return -1;
	memcpy(&n, c->at, 2);
	c->at += 2;
	return (int16_t)be16toh((uint16_t)n);
}

static void decode(struct cursor *c, struct event *e)
{
	struct span id, bytes, foreign;

	e->seq = take_i64(c);
	e->xid = (uint64_t)take_i64(c);
	id = take(c);
	if (!id.s || id.n != sizeof(e->id))
		c->bad = 1;
	else
		memcpy(e->id, id.s, sizeof(e->id));
	e->created_us = take_i64(c);
	e->aggregatetype = take(c);
	e->key = take(c);
	e->type = take(c);
	e->headers = take_jsonb(c);
	e->topic = take(c);
	e->partition = take_i32(c, -1);
	e->trace = take(c);
	e->payload = take_jsonb(c);
	e->is_json = e->payload.s != NULL;
	bytes = take(c);
	if (!e->is_json)
		e->payload = bytes;
	foreign = take(c);
	e->foreign = foreign.s && foreign.n == 1 && foreign.s[0] == 1;
	/* "infinity" has no place in a header and no age: what is far stays far, but finite. */
	if (e->created_us == INT64_MAX)
		e->created_us = FAR_US;
	else if (e->created_us == INT64_MIN)
		e->created_us = 0;
	else if (__builtin_add_overflow(e->created_us, PG_EPOCH_US, &e->created_us))
		e->created_us = FAR_US;
}

int batch_add_row(struct batch *b, char *row, size_t len, struct pr_err *err)
{
	struct cursor c = { row, row + len, 0 };
	struct event *e = &b->ev[b->n];

	if (b->n == b->cap)
		return pr_fail(err, PR_STOP, "a batch of %zu events is full", b->cap);
	memset(e, 0, sizeof(*e));
	if (field_count(&c) != ROW_FIELDS)
		return pr_fail(err, PR_STOP, "outbox.event gave a row of another shape than asked for");
	decode(&c, e);
	if (c.bad || c.at != c.end || !e->key.s || !e->aggregatetype.s || !e->type.s)
		return pr_fail(err, PR_STOP, "outbox.event seq %lld cannot be decoded", (long long)e->seq);
	e->row = row;
	e->batch = b;
	b->n++;
	b->bytes += len;
	if (e->seq > b->top)
		b->top = e->seq;
	if (e->created_us < b->oldest_us)
		b->oldest_us = e->created_us;
	return 0;
}

void batch_position(const struct batch *b, size_t k, struct pr_position *p)
{
	const struct turn *t = b->turn;

	pr_mark_release(&p->to);
	if (k == b->n && b->ends_turn) {
		pr_mark_copy(&p->from, &t->to);
		p->seq = 0;
	} else {
		pr_mark_copy(&p->from, &t->from);
		pr_mark_copy(&p->to, &t->to);
		p->seq = b->ev[k - 1].seq;
	}
	/* Batches before this one may go with it, and a late row's seq is below theirs. */
	if (b->before > p->top)
		p->top = b->before;
	/* top counts foreign rows too when the whole batch is done: they were seen. */
	if (k == b->n && b->top > p->top)
		p->top = b->top;
	else if (k > 0 && b->ev[k - 1].seq > p->top)
		p->top = b->ev[k - 1].seq;
	p->lsn = t->lsn;
}
