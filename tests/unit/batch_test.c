/* tests/unit/batch_test.c -- relay/batch.c: a COPY BINARY row becomes an event that points into it; anything
 * else is refused and stays the caller's; positions after a part of a batch and after the whole. */
#include "relay/batch.h"

#include "lib/clock.h"

#include <endian.h>
#include <libpq-fe.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* --- rows as Postgres writes them --- */

struct field {
	const void *p; /* NULL: SQL NULL */
	size_t n;
};

static const char seq[8] = { 0, 0, 0, 0, 0, 0, 1, 2 }; /* 258 */
static const char xid[8] = { 0, 0, 0, 1, 0, 0, 0, 0 }; /* 2^32 */
static const char id[16] = "0123456789abcdef";
static const char epoch[8];
static const char partition[4] = { 0, 0, 0, 5 };

static const struct field usual[ROW_FIELDS] = { { seq, 8 }, { xid, 8 }, { id, 16 }, { epoch, 8 },
	{ "order", 5 }, { "k1", 2 }, { "Created", 7 }, { "\1{}", 3 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },
	{ "\1{\"a\": 1}", 9 }, { NULL, 0 }, { "\0", 1 } };

/* An allocation of exactly that size, so that the sanitizers see a read behind the end. */
static char *row_of(const struct field *f, int n, size_t *len)
{
	uint16_t count = htobe16((uint16_t)n);
	size_t size = 2;
	char *row, *at;

	for (int i = 0; i < n; i++)
		size += 4 + (f[i].p ? f[i].n : 0);
	at = row = pr_malloc(size);
	memcpy(at, &count, 2);
	at += 2;
	for (int i = 0; i < n; i++) {
		uint32_t be = htobe32(f[i].p ? (uint32_t)f[i].n : UINT32_MAX);

		memcpy(at, &be, 4);
		at += 4;
		if (f[i].p)
			memcpy(at, f[i].p, f[i].n);
		at += f[i].p ? f[i].n : 0;
	}
	*len = size;
	return row;
}

static struct batch *batch_of(size_t cap)
{
	struct turn *t = turn_new();
	struct batch *b = batch_new(t, cap);

	turn_drop(t); /* the batch holds it */
	return b;
}

static int same(struct span s, const char *text)
{
	return text ? s.s && s.n == strlen(text) && memcmp(s.s, text, s.n) == 0 : s.s == NULL && s.n == 0;
}

/* The usual row with one field replaced; -1 and nothing leaked when it is refused. */
static int add_with(struct batch *b, int i, const void *p, size_t n)
{
	struct field f[ROW_FIELDS];
	struct pr_err err;
	size_t len;
	char *row;

	memcpy(f, usual, sizeof(f));
	f[i].p = p;
	f[i].n = n;
	row = row_of(f, ROW_FIELDS, &len);
	if (batch_add_row(b, row, len, &err) == 0)
		return 0;
	assert_int_equal(err.kind, PR_STOP);
	PQfreemem(row);
	return -1;
}

static void decodes(void **state)
{
	struct batch *b = batch_of(2);
	const struct event *e = &b->ev[0];
	struct pr_err err;
	size_t len;
	char *row = row_of(usual, ROW_FIELDS, &len);

	(void)state;
	assert_int_equal(batch_add_row(b, row, len, &err), 0);
	assert_int_equal(b->n, 1);
	assert_int_equal(b->bytes, len);
	assert_int_equal(b->top, 258);
	assert_true(e->row == row && e->batch == b);
	assert_int_equal(e->seq, 258);
	assert_true(e->xid == 1ULL << 32);
	assert_memory_equal(e->id, id, 16);
	assert_true(e->created_us == 946684800000000LL && b->oldest_us == e->created_us);
	assert_true(same(e->aggregatetype, "order") && same(e->key, "k1") && same(e->type, "Created"));
	assert_true(same(e->headers, "{}") && same(e->topic, NULL) && same(e->trace, NULL));
	assert_true(same(e->payload, "{\"a\": 1}") && e->is_json);
	assert_true(e->partition == -1 && !e->foreign);
	assert_true(e->payload.s > row && e->payload.s < row + len); /* not copied */
	batch_free(b);
}

static void decodes_the_rest(void **state)
{
	struct batch *b = batch_of(8);

	(void)state;
	assert_int_equal(add_with(b, 9, partition, 4), 0);
	assert_int_equal(b->ev[0].partition, 5);
	assert_int_equal(add_with(b, 7, NULL, 0), 0); /* headers */
	assert_true(same(b->ev[1].headers, NULL));
	assert_int_equal(add_with(b, 11, NULL, 0), 0); /* tombstone */
	assert_true(same(b->ev[2].payload, NULL) && !b->ev[2].is_json);
	assert_int_equal(add_with(b, 13, "\1", 1), 0);
	assert_true(b->ev[3].foreign);
	assert_int_equal(add_with(b, 8, "t", 1), 0);
	assert_true(same(b->ev[4].topic, "t"));
	assert_int_equal(add_with(b, 10, "00-1-2-00", 9), 0);
	assert_true(same(b->ev[5].trace, "00-1-2-00"));
	assert_int_equal(add_with(b, 5, "", 0), 0); /* an empty key is a key */
	assert_true(b->ev[6].key.s && b->ev[6].key.n == 0);
	batch_free(b);
}

/* payload_bytes, also empty ones, which are no tombstone. */
static void bytes(void **state)
{
	struct field f[ROW_FIELDS];
	struct batch *b = batch_of(2);
	struct pr_err err;
	size_t len;
	char *row;

	(void)state;
	for (int empty = 0; empty < 2; empty++) {
		memcpy(f, usual, sizeof(f));
		f[11].p = NULL;
		f[12].p = "\0\1\2";
		f[12].n = empty ? 0 : 3;
		row = row_of(f, ROW_FIELDS, &len);
		assert_int_equal(batch_add_row(b, row, len, &err), 0);
		assert_true(
			b->ev[empty].payload.s && b->ev[empty].payload.n == f[12].n && !b->ev[empty].is_json);
	}
	batch_free(b);
}

static void times(void **state)
{
	/* Of what is too far for microseconds since 1970: far, but finite and the same for all. */
	static const struct {
		int64_t stored, want;
	} t[] = { { 0, 946684800000000LL }, { -946684800000000LL, 0 }, { 1, 946684800000001LL },
		{ INT64_MIN, 0 }, { INT64_MAX, -1 }, { INT64_MAX - 1, -1 } };
	int64_t far = 0;
	struct batch *b = batch_of(8);

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		uint64_t be = htobe64((uint64_t)t[i].stored);

		assert_int_equal(add_with(b, 3, &be, 8), 0);
		if (t[i].want >= 0)
			assert_true(b->ev[i].created_us == t[i].want);
		else
			assert_true(b->ev[i].created_us > PR_SEC * 4000000000 &&
				    (!far || far == b->ev[i].created_us));
		far = t[i].want < 0 ? b->ev[i].created_us : 0;
	}
	assert_true(b->oldest_us == 0);
	batch_free(b);
}

static void refuses(void **state)
{
	static const struct {
		int field;
		const char *p;
		size_t n;
	} t[] = { { 0, NULL, 0 }, { 0, "1234567", 7 }, { 0, "123456789", 9 }, { 1, NULL, 0 }, { 1, "", 0 },
		{ 2, NULL, 0 }, { 2, "short", 5 }, { 3, NULL, 0 }, { 3, "1", 1 }, { 4, NULL, 0 },
		{ 5, NULL, 0 }, { 6, NULL, 0 }, { 7, "", 0 }, { 7, "\2{}", 3 }, { 7, "{}", 2 },
		{ 9, "12345678", 8 }, { 9, "", 0 }, { 11, "", 0 }, { 11, "{}", 2 } };
	struct batch *b = batch_of(2);

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		if (add_with(b, t[i].field, t[i].p, t[i].n) == 0)
			fail_msg("case %zu was decoded", i);
		assert_int_equal(b->n, 0);
		assert_int_equal(b->bytes, 0);
	}
	batch_free(b);
}

/* Cut at every byte, one byte more, a field more or less, a length that lies. */
static void refuses_other_shapes(void **state)
{
	struct field more[ROW_FIELDS + 1];
	struct batch *b = batch_of(2);
	struct pr_err err;
	size_t len, at;
	char *row, *cut;

	(void)state;
	row = row_of(usual, ROW_FIELDS, &len);
	for (at = 0; at < len; at++) {
		cut = pr_malloc(at ? at : 1);
		memcpy(cut, row, at);
		assert_int_equal(batch_add_row(b, cut, at, &err), -1);
		free(cut);
	}
	cut = pr_malloc(len + 1);
	memcpy(cut, row, len);
	cut[len] = 0;
	assert_int_equal(batch_add_row(b, cut, len + 1, &err), -1);
	memset(cut + 2, 0x7f, 4); /* the first length: 2 GB */
	assert_int_equal(batch_add_row(b, cut, len, &err), -1);
	memset(cut + 2, 0xfe, 4); /* negative, and not NULL */
	assert_int_equal(batch_add_row(b, cut, len, &err), -1);
	free(cut);
	free(row);
	memcpy(more, usual, sizeof(usual));
	more[ROW_FIELDS] = usual[0];
	for (int n = ROW_FIELDS - 1; n <= ROW_FIELDS + 1; n += 2) {
		row = row_of(more, n, &len);
		assert_int_equal(batch_add_row(b, row, len, &err), -1);
		assert_non_null(strstr(err.text, "shape"));
		free(row);
	}
	assert_int_equal(b->n, 0);
	batch_free(b);
}

static void full(void **state)
{
	struct batch *b = batch_of(1);

	(void)state;
	assert_int_equal(add_with(b, 8, NULL, 0), 0);
	assert_int_equal(add_with(b, 8, NULL, 0), -1);
	assert_int_equal(b->n, 1);
	batch_free(b);
}

static void freeing_nothing(void **state)
{
	(void)state;
	batch_free(NULL);
	turn_drop(NULL);
}

/* --- positions --- */

static void add_seq(struct batch *b, int64_t s)
{
	uint64_t be = htobe64((uint64_t)s);

	assert_int_equal(add_with(b, 0, &be, 8), 0);
}

static struct turn *turn_between(const char *from, int64_t l, const char *to, int64_t l_to, uint64_t lsn)
{
	struct turn *t = turn_new();

	t->from.snapshot = pr_strdup(from);
	t->from.l = l;
	t->to.snapshot = pr_strdup(to);
	t->to.l = l_to;
	t->lsn = lsn;
	return t;
}

/* Inside: both marks and the last seq. At the end of the turn: its second mark alone, as the new first. */
static void positions(void **state)
{
	struct turn *t = turn_between("10:10:", 100, "20:20:", 200, 777);
	struct batch *b = batch_new(t, 4);
	struct pr_position p = { .timeline = 3, .top = 150 };

	(void)state;
	add_seq(b, 90);
	add_seq(b, 180);
	add_seq(b, 190);
	batch_position(b, 1, &p);
	assert_string_equal(p.from.snapshot, "10:10:");
	assert_string_equal(p.to.snapshot, "20:20:");
	assert_true(p.seq == 90 && p.top == 150 && p.lsn == 777 && p.timeline == 3);
	batch_position(b, 2, &p);
	assert_true(p.seq == 180 && p.top == 180);
	batch_position(b, 3, &p); /* whole, but the turn goes on in another batch */
	assert_string_equal(p.to.snapshot, "20:20:");
	assert_true(p.seq == 190 && p.top == 190);
	b->ends_turn = 1;
	batch_position(b, 2, &p);
	assert_string_equal(p.from.snapshot, "10:10:");
	assert_true(p.seq == 180);
	batch_position(b, 3, &p);
	assert_string_equal(p.from.snapshot, "20:20:");
	assert_true(p.from.l == 200 && p.to.snapshot == NULL && p.seq == 0 && p.top == 190);
	turn_drop(t);
	batch_free(b); /* the last to hold the turn */
	pr_position_release(&p);
}

/* The first turn of all has no first mark. */
static void position_of_the_first_turn(void **state)
{
	struct turn *t = turn_new();
	struct batch *b = batch_new(t, 2);
	struct pr_position p = { 0 };

	(void)state;
	t->to.snapshot = pr_strdup("20:20:");
	add_seq(b, 1);
	add_seq(b, 2);
	batch_position(b, 1, &p);
	assert_true(p.from.snapshot == NULL && p.seq == 1);
	assert_string_equal(p.to.snapshot, "20:20:");
	turn_drop(t);
	batch_free(b);
	pr_position_release(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(decodes),
		cmocka_unit_test(decodes_the_rest),
		cmocka_unit_test(bytes),
		cmocka_unit_test(times),
		cmocka_unit_test(refuses),
		cmocka_unit_test(refuses_other_shapes),
		cmocka_unit_test(full),
		cmocka_unit_test(freeing_nothing),
		cmocka_unit_test(positions),
		cmocka_unit_test(position_of_the_first_turn),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
