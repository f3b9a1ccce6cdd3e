/* relay/source_null.c -- an engine without a database: invents rows as fast as they are taken,
 * to measure the rest of the relay. Refuses to be exactly once: it begins anew at each start. */
#include "relay/source.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define PIECE   1000
#define PAYLOAD 168

struct source {
	const struct pr_relay_conf *conf;
	struct turn *turn;
	int64_t seq;
	char row[512]; /* a COPY BINARY row; seq, id and key are written over */
	size_t len, seq_at, id_at, key_at;
};

static void put_raw(struct source *s, const void *p, size_t n)
{
	memcpy(s->row + s->len, p, n);
	s->len += n;
}

static void put_field(struct source *s, const void *p, int32_t n)
{
	uint32_t be = htobe32((uint32_t)n);

	put_raw(s, &be, 4);
	if (n > 0)
		put_raw(s, p, (size_t)n);
}

static void make_row(struct source *s)
{
	static const char zeros[16], no_headers[] = "\1{}";
	char payload[PAYLOAD + 1];
	uint16_t fields = htobe16(ROW_FIELDS);

	memset(payload, ' ', sizeof(payload));
	payload[0] = 1;
	payload[1] = '{';
	payload[PAYLOAD] = '}';
	put_raw(s, &fields, 2);
	s->seq_at = s->len + 4;
	put_field(s, zeros, 8); /* seq */
	put_field(s, zeros, 8); /* xid */
	s->id_at = s->len + 4;
	put_field(s, zeros, 16);
	put_field(s, zeros, 8); /* created_at */
	put_field(s, "null", 4);
	s->key_at = s->len + 4;
	put_field(s, zeros, 8);
	put_field(s, "Invented", 8);
	put_field(s, no_headers, 3);
	put_field(s, NULL, -1); /* topic */
	put_field(s, NULL, -1); /* partition */
	put_field(s, NULL, -1); /* tracingspancontext */
	put_field(s, payload, PAYLOAD + 1);
	put_field(s, NULL, -1); /* payload_bytes */
	put_field(s, zeros, 1); /* foreign */
}

static struct source *null_new(const struct pr_relay_conf *conf, int wake_fd)
{
	struct source *s = pr_calloc(1, sizeof(*s));

	(void)wake_fd;
	s->conf = conf;
	make_row(s);
	return s;
}

static void null_close(struct source *s)
{
	turn_drop(s->turn);
	s->turn = NULL;
}

static void null_free(struct source *s)
{
	if (!s)
		return;
	null_close(s);
	free(s);
}

static int null_open(struct source *s, struct identity *ret, struct pr_err *err)
{
	(void)s;
	(void)err;
	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->system_id, sizeof(ret->system_id), "null");
	return 1;
}

static int null_start(struct source *s, const struct pr_position *position, struct pr_err *err)
{
	(void)err;
	null_close(s);
	s->seq = position->top;
	s->turn = turn_new();
	s->turn->to.snapshot = pr_strdup("3:3:");
	return 0;
}

static size_t null_piece(const struct source *s)
{
	(void)s;
	return PIECE;
}

static int null_next(struct source *s, int (*put)(void *ctx, struct batch *b), void *ctx, struct pr_err *err)
{
	struct batch *b = batch_new(s->turn, PIECE);
	uint64_t be;
	char *row;

	for (int i = 0; i < PIECE; i++) {
		be = htobe64((uint64_t)++s->seq);
		memcpy(s->row + s->seq_at, &be, 8);
		memcpy(s->row + s->id_at + 8, &be, 8);
		(void)snprintf(s->row + s->key_at, 8, "%07d", (int)(s->seq % 10000));
		row = pr_malloc(s->len);
		memcpy(row, s->row, s->len);
		if (batch_add_row(b, row, s->len, err) < 0) {
			free(row);
			batch_free(b);
			return -1;
		}
	}
	return put(ctx, b) < 0 ? pr_fail(err, PR_RETRY, "reset") : 1;
}

const struct source_ops source_null = { "null", null_new, null_free, null_open, null_start, null_piece,
	null_next, null_close };
