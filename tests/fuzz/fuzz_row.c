/* tests/fuzz/fuzz_row.c -- libFuzzer target of relay/batch.c: COPY BINARY rows. Any bytes: no crash, no read
 * outside, and an accepted row is exactly its fields, all of them inside the row.
 * links: relay/batch.c */
#include "relay/batch.h"

#include "tests/fuzz/fuzz.h"

#include <endian.h>
#include <libpq-fe.h>
#include <string.h>

static volatile unsigned char sum;

/* Reads every byte, so that the sanitizer sees one that is outside. Returns the length. */
static size_t inside(const struct event *e, struct span v, size_t size)
{
	require(v.s || v.n == 0, "NULL has a length");
	if (!v.s)
		return 0;
	require(v.s >= e->row && v.s + v.n <= e->row + size, "a field lies outside of its row");
	for (uint32_t i = 0; i < v.n; i++)
		sum ^= (unsigned char)v.s[i];
	return v.n;
}

static void check(const struct batch *b, size_t size)
{
	const struct event *e = &b->ev[b->n - 1];
	/* field count, lengths, seq, xid, id, created_at */
	size_t fields = 2 + 4 * ROW_FIELDS + 8 + 8 + 16 + 8;
	uint64_t seq;

	fields += inside(e, e->aggregatetype, size) + inside(e, e->key, size) + inside(e, e->type, size);
	fields += inside(e, e->headers, size) + inside(e, e->topic, size) + inside(e, e->trace, size);
	fields += inside(e, e->payload, size);
	require(fields <= size, "the fields are longer than the row");
	require(e->key.s && e->aggregatetype.s && e->type.s, "a field that must be there is NULL");
	require(!e->is_json || e->payload.s, "JSON without a payload");
	memcpy(&seq, e->row + 6, 8);
	require(e->seq == (int64_t)be64toh(seq), "seq is another");
	require(b->top >= e->seq || b->top == 0, "top is below");
	require(b->oldest_us <= e->created_us, "a row is older than the oldest");
}

/* Into an empty batch and, once more, behind an accepted row; a refused row stays ours. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct turn *t = turn_new();
	struct batch *b = batch_new(t, 2);
	struct pr_position p = { 0 };
	struct pr_err err;

	turn_drop(t);
	for (size_t i = 0; i < 3; i++) {
		char *row = malloc(size ? size : 1); /* exact, so that the sanitizer sees the end */
		size_t n = b->n;

		if (!row)
			break;
		if (size > 0)
			memcpy(row, data, size);
		if (batch_add_row(b, row, size, &err) == 0) {
			require(b->n == n + 1 && b->n <= b->cap, "an accepted row is not counted once");
			check(b, size);
		} else {
			require(b->n == n, "a refused row is counted");
			require(err.kind == PR_STOP && err.text[0], "refused without a reason");
			PQfreemem(row);
		}
	}
	require(b->n == 0 || b->n == b->cap, "the same row is accepted once and refused once");
	if (b->n > 0)
		batch_position(b, 1, &p);
	pr_position_release(&p);
	batch_free(b);
	return 0;
}
