/* relay/snapshot.c -- set arithmetic on snapshots. Refuses text that Postgres would not write. */
#include "relay/snapshot.h"

#include "lib/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int take_number(const char **s, char after, uint64_t *ret)
{
	char *end;

	if (**s < '0' || **s > '9')
		return -1;
	errno = 0;
	*ret = strtoull(*s, &end, 10);
	if (errno || (*end != after && *end != '\0') || (after == ':' && *end != ':'))
		return -1;
	*s = *end ? end + 1 : end;
	return 0;
}

int snapshot_parse(const char *text, struct snapshot *ret)
{
	struct snapshot s = { 0 };
	size_t cap = 0;
	uint64_t xid;

	if (take_number(&text, ':', &s.xmin) < 0 || take_number(&text, ':', &s.xmax) < 0 || s.xmin > s.xmax)
		return -1;
	while (*text) {
		if (take_number(&text, ',', &xid) < 0 || xid < s.xmin || xid >= s.xmax ||
			(s.n > 0 && xid <= s.xip[s.n - 1])) {
			snapshot_release(&s);
			return -1;
		}
		if (s.n == cap) {
			cap = cap ? cap * 2 : 16;
			s.xip = pr_realloc(s.xip, cap * sizeof(*s.xip));
		}
		s.xip[s.n++] = xid;
	}
	*ret = s;
	return 0;
}

void snapshot_release(struct snapshot *s)
{
	free(s->xip);
	memset(s, 0, sizeof(*s));
}

static int in_progress(const struct snapshot *s, uint64_t xid)
{
	size_t lo = 0, hi = s->n, mid;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		if (s->xip[mid] == xid)
			return 1;
		if (s->xip[mid] < xid)
			lo = mid + 1;
		else
			hi = mid;
	}
	return 0;
}

int snapshot_finished(const struct snapshot *s, uint64_t xid)
{
	return xid < s->xmin || (xid < s->xmax && !in_progress(s, xid));
}

uint64_t snapshot_first_finished(const struct snapshot *last, uint64_t n_last, const struct snapshot *now)
{
	for (size_t i = 0; i < last->n; i++)
		if (snapshot_finished(now, last->xip[i]))
			return last->xip[i];
	/* At most as many steps as there are transactions running now, plus one. */
	for (uint64_t xid = last->xmax; xid < n_last && xid < now->xmax; xid++)
		if (snapshot_finished(now, xid))
			return xid;
	return UINT64_MAX;
}

int snapshot_covers(const struct snapshot *a, const struct snapshot *b)
{
	return a->xmax > b->xmax || (a->xmax == b->xmax && a->n <= b->n);
}

/* Every other one of the older half: what is recent stays exact. */
static void thin_out(struct bounds *b)
{
	size_t to = 0;

	for (size_t i = 0; i < b->len; i++)
		if (i >= b->len / 2 || i % 2 == 0)
			b->at[to++] = b->at[i];
	b->len = to;
}

void bounds_remember(struct bounds *b, uint64_t n, int64_t l)
{
	if (b->len > 0 && b->at[b->len - 1].l == l)
		return; /* the older n says the same of more transactions */
	if (b->len > 0 && b->at[b->len - 1].n >= n)
		return;
	if (b->len == BOUNDS_MAX)
		thin_out(b);
	b->at[b->len].n = n;
	b->at[b->len++].l = l;
}

void bounds_forget(struct bounds *b, uint64_t xmin)
{
	size_t drop = 0;

	while (drop + 1 < b->len && b->at[drop + 1].n <= xmin)
		drop++;
	memmove(b->at, b->at + drop, (b->len - drop) * sizeof(b->at[0]));
	b->len -= drop;
}

int64_t bounds_below(const struct bounds *b, uint64_t xid)
{
	int64_t l = 0;

	for (size_t i = 0; i < b->len && b->at[i].n <= xid; i++)
		l = b->at[i].l;
	return l;
}
