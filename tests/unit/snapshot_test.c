/* tests/unit/snapshot_test.c -- relay/snapshot.c: what Postgres writes and nothing else is read; set
 * arithmetic against the definition, xid by xid; bounds that only ever err on the safe side. */
#include "relay/snapshot.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void reads(void **state)
{
	static const struct {
		const char *text;
		uint64_t xmin, xmax;
		size_t n;
		uint64_t last; /* of xip */
	} t[] = {
		{ "3:3:", 3, 3, 0, 0 },
		{ "100:100:", 100, 100, 0, 0 },
		{ "100:105:", 100, 105, 0, 0 },
		{ "100:105:100", 100, 105, 1, 100 },
		{ "100:105:100,101,104", 100, 105, 3, 104 },
		{ "1:18446744073709551615:18446744073709551614", 1, UINT64_MAX, 1, UINT64_MAX - 1 },
	};
	struct snapshot s;

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		assert_int_equal(snapshot_parse(t[i].text, &s), 0);
		assert_true(s.xmin == t[i].xmin && s.xmax == t[i].xmax);
		assert_int_equal(s.n, t[i].n);
		assert_true(s.n == 0 || s.xip[s.n - 1] == t[i].last);
		snapshot_release(&s);
		assert_true(s.xip == NULL && s.n == 0);
	}
}

static void refuses(void **state)
{
	static const char *const t[] = { "", ":", "::", "3", "3:", "3:3",
		":3:", "3::", "a:3:", "3:b:", "3:3:c",
		" 3:3:", "3: 3:", "3:3: ", "+3:3:", "-3:3:", "3:2:", "0x3:0x3:", "3;3;", "100:105:99",
		"100:105:105", "100:105:101,100", "100:105:101,101", "100:105:101,,102", "100:105:,101",
		"100:105:101:102", "100:105:101 ",
		"18446744073709551616:18446744073709551617:", "100:105:18446744073709551617",
		"100:105:101,x" };
	struct snapshot s = { .xmin = 7 };

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		if (snapshot_parse(t[i], &s) == 0)
			fail_msg("read \"%s\"", t[i]);
		assert_true(s.xmin == 7 && s.xip == NULL);
	}
}

/* A long list, as with thousands of open transactions. */
static void reads_many(void **state)
{
	static char text[200000];
	size_t at = (size_t)snprintf(text, sizeof(text), "1000:21000:");
	struct snapshot s;

	(void)state;
	for (int i = 0; i < 10000; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%d", i ? "," : "", 1000 + 2 * i);
	assert_int_equal(snapshot_parse(text, &s), 0);
	assert_int_equal(s.n, 10000);
	for (uint64_t xid = 990; xid < 21010; xid++)
		assert_int_equal(
			snapshot_finished(&s, xid), xid < 1000 || (xid < 21000 && (xid - 1000) % 2 == 1));
	snapshot_release(&s);
}

/* --- a server in miniature: transactions begin in order of xid and end in any order --- */

#define XIDS 64
struct server {
	int begun, ended[XIDS]; /* xids FIRST .. FIRST + begun - 1 */
};
#define FIRST 1000

static void look(const struct server *v, struct snapshot *s, uint64_t *next)
{
	char text[1024];
	int latest = -1, oldest = v->begun, at;

	for (int i = 0; i < v->begun; i++) {
		if (v->ended[i])
			latest = i;
		else if (i < oldest)
			oldest = i;
	}
	*next = FIRST + (uint64_t)v->begun;
	at = snprintf(text, sizeof(text), "%d:%d:", FIRST + (oldest < latest + 1 ? oldest : latest + 1),
		FIRST + latest + 1);
	for (int i = 0, n = 0; i < latest; i++)
		if (!v->ended[i])
			at += snprintf(
				text + at, sizeof(text) - (size_t)at, "%s%d", n++ ? "," : "", FIRST + i);
	assert_int_equal(snapshot_parse(text, s), 0);
}

static void step(struct server *v)
{
	int pick = rand() % (v->begun + 1);

	if (v->begun < XIDS && rand() % 2)
		v->begun++;
	else if (pick < v->begun)
		v->ended[pick] = 1;
}

/* Of those begun when last looked at, the smallest that has ended since. */
static void first_finished(void **state)
{
	(void)state;
	srand(1);
	for (int round = 0; round < 5000; round++) {
		struct server v = { 0 }, before;
		struct snapshot last, now;
		uint64_t n, unused, want = UINT64_MAX;

		for (int i = rand() % 80; i > 0; i--)
			step(&v);
		look(&v, &last, &n);
		before = v;
		for (int i = rand() % 40; i > 0; i--)
			step(&v);
		look(&v, &now, &unused);
		for (int i = before.begun; i-- > 0;)
			if (v.ended[i] && !before.ended[i])
				want = FIRST + (uint64_t)i;
		assert_true(snapshot_first_finished(&last, n, &now) == want);
		for (int i = 0; i < v.begun; i++) {
			assert_int_equal(snapshot_finished(&now, FIRST + (uint64_t)i), v.ended[i]);
			assert_int_equal(snapshot_finished(&last, FIRST + (uint64_t)i),
				i < before.begun && before.ended[i]);
		}
		assert_true(snapshot_covers(&now, &last));
		if (want != UINT64_MAX && now.xmax == last.xmax)
			assert_false(snapshot_covers(&last, &now));
		snapshot_release(&last);
		snapshot_release(&now);
	}
}

/* The story of the N bound: xid 1000 draws a seq while it is the newest; the snapshot does not list it. */
static void above_xmax(void **state)
{
	struct snapshot last, now;

	(void)state;
	assert_int_equal(snapshot_parse("1000:1000:", &last), 0);
	assert_int_equal(snapshot_parse("1001:1001:", &now), 0);
	assert_true(snapshot_first_finished(&last, 1001, &now) == 1000);
	assert_true(snapshot_first_finished(&last, 1000, &now) == UINT64_MAX);
	assert_true(snapshot_first_finished(&last, 1001, &last) == UINT64_MAX);
	snapshot_release(&last);
	snapshot_release(&now);
}

/* --- bounds --- */

/* What an unbounded memory would say. */
struct memory {
	uint64_t n[4000];
	int64_t l[4000];
	size_t len;
};

static int64_t exact(const struct memory *m, uint64_t xid)
{
	int64_t l = 0;

	for (size_t i = 0; i < m->len && m->n[i] <= xid; i++)
		l = m->l[i];
	return l;
}

/* Never above the truth: that would skip a late row. Exact while nothing was forgotten. */
static void never_above(void **state)
{
	static struct memory m;
	struct bounds b = { .len = 0 };
	uint64_t n = 100;
	int64_t l = 0;
	int thinned = 0;

	(void)state;
	srand(2);
	for (int i = 0; i < 4000; i++) {
		n += (uint64_t)(rand() % 5) + 1;
		l += rand() % 3;
		thinned |= b.len == BOUNDS_MAX;
		bounds_remember(&b, n, l);
		m.n[m.len] = n;
		m.l[m.len++] = l;
		assert_true(b.len <= BOUNDS_MAX);
		for (int j = 0; j < 20; j++) {
			uint64_t xid = 90 + (uint64_t)rand() % (n - 80);
			int64_t got = bounds_below(&b, xid);

			assert_true(got <= exact(&m, xid));
			if (!thinned)
				assert_true(got == exact(&m, xid));
		}
		assert_true(bounds_below(&b, n) == l); /* the newest stays exact */
	}
	assert_true(thinned);
}

static void forgets_what_nobody_needs(void **state)
{
	struct bounds b = { .len = 0 }, all;

	(void)state;
	for (uint64_t i = 1; i <= 100; i++)
		bounds_remember(&b, i * 10, (int64_t)i * 7);
	all = b;
	bounds_forget(&b, 5);
	assert_int_equal(b.len, 100);
	bounds_forget(&b, 505);
	assert_int_equal(b.len, 51); /* the pair (500, 350) is still the answer for 505 */
	for (uint64_t xid = 505; xid < 1100; xid++)
		assert_true(bounds_below(&b, xid) == bounds_below(&all, xid));
	assert_true(bounds_below(&b, 499) == 0);
	bounds_forget(&b, UINT64_MAX);
	assert_int_equal(b.len, 1);
	assert_true(bounds_below(&b, 1000) == 700);
}

/* A pair that says no more than the last one, or goes back, is not kept. */
static void keeps_what_is_new(void **state)
{
	struct bounds b = { .len = 0 };

	(void)state;
	assert_true(bounds_below(&b, UINT64_MAX) == 0);
	bounds_remember(&b, 100, 5);
	bounds_remember(&b, 200, 5);
	assert_int_equal(b.len, 1);
	assert_true(bounds_below(&b, 150) == 5);
	bounds_remember(&b, 100, 6);
	bounds_remember(&b, 90, 7);
	assert_int_equal(b.len, 1);
	bounds_remember(&b, 201, 8);
	assert_true(bounds_below(&b, 200) == 5 && bounds_below(&b, 201) == 8 && bounds_below(&b, 99) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads),
		cmocka_unit_test(refuses),
		cmocka_unit_test(reads_many),
		cmocka_unit_test(first_finished),
		cmocka_unit_test(above_xmax),
		cmocka_unit_test(never_above),
		cmocka_unit_test(forgets_what_nobody_needs),
		cmocka_unit_test(keeps_what_is_new),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
