/* consumers/sink/table_row.c -- makes a row that Postgres certainly takes of any record. Refuses nothing: a
 * payload that jsonb does not take (no JSON, a NUL in a string, a number of more digits than numeric has) is
 * whole in payload_base64. */
#include "consumers/sink/table_row.h"

#include "lib/clock.h"

#include <endian.h>
#include <openssl/evp.h>
#include <string.h>

#define EPOCH_US 946684800000000LL /* 2000-01-01, where Postgres begins to count */
#define HOUR_US  (3600 * PR_SEC)

static void room(struct pr_buf *b, size_t n)
{
	if (b->len + n + 1 <= b->cap)
		return;
	b->cap = b->cap * 2 > b->len + n + 1 ? b->cap * 2 : b->len + n + 1;
	b->s = pr_realloc(b->s, b->cap);
}

static void put_be16(struct pr_buf *b, int16_t v)
{
	uint16_t be = htobe16((uint16_t)v);

	pr_buf_put(b, &be, sizeof(be));
}

static void put_be32(struct pr_buf *b, int32_t v)
{
	uint32_t be = htobe32((uint32_t)v);

	pr_buf_put(b, &be, sizeof(be));
}

static void put_null(struct pr_buf *b)
{
	put_be32(b, -1);
}

static void put_bytes(struct pr_buf *b, const char *s, size_t n)
{
	put_be32(b, (int32_t)n);
	pr_buf_put(b, s, n);
}

static void put_int4(struct pr_buf *b, int32_t v)
{
	put_be32(b, 4);
	put_be32(b, v);
}

static void put_int8(struct pr_buf *b, int64_t v)
{
	uint64_t be = htobe64((uint64_t)v);

	put_be32(b, 8);
	pr_buf_put(b, &be, sizeof(be));
}

/* A value whose length is known once it is there. */
static size_t begin(struct pr_buf *b)
{
	put_be32(b, 0);
	return b->len;
}

static void end(struct pr_buf *b, size_t at)
{
	uint32_t be = htobe32((uint32_t)(b->len - at));

	memcpy(b->s + at - sizeof(be), &be, sizeof(be));
}

/* What is no text: '?' for each byte that is not ASCII, and for a NUL. */
static void put_text(struct pr_buf *b, const char *s, size_t n)
{
	size_t at = b->len + 4;

	put_bytes(b, s, n);
	if (pr_utf8_text(s, n))
		return;
	for (size_t i = at; i < b->len; i++)
		if ((unsigned char)b->s[i] >= 0x80 || !b->s[i])
			b->s[i] = '?';
}

static void put_base64(struct pr_buf *b, const char *s, size_t n)
{
	size_t at = begin(b);

	room(b, (n + 2) / 3 * 4);
	/* EVP takes an int; whole groups of three need no padding in between. */
	for (size_t i = 0, part; i < n; i += part) {
		part = n - i < (3u << 20) ? n - i : 3u << 20;
		b->len += (size_t)EVP_EncodeBlock(
			(unsigned char *)b->s + b->len, (const unsigned char *)s + i, (int)part);
	}
	end(b, at);
}

static void put_key(struct pr_buf *b, const struct sink_row *row)
{
	struct message m;
	size_t at;

	if (!row->key) {
		put_null(b);
		return;
	}
	if (pr_utf8_text(row->key, row->key_len)) {
		put_bytes(b, row->key, row->key_len);
		return;
	}
	m.key = row->key;
	m.key_len = row->key_len;
	at = begin(b);
	message_put_key(b, &m);
	end(b, at);
}

static void put_time(struct pr_buf *b, int64_t us)
{
	if (us < 0)
		put_null(b);
	else
		put_int8(b, us - EPOCH_US);
}

/* jsonb on the wire is its version and the text. */
static void put_headers(struct pr_buf *b, const struct sink_row *row)
{
	struct message m;
	size_t at = begin(b);

	m.headers = (struct header *)(uintptr_t)row->headers;
	m.headers_n = row->headers_n;
	pr_buf_put(b, "\1", 1);
	message_put_headers(b, &m);
	end(b, at);
}

static void put_payload(struct pr_buf *b, const struct sink_row *row)
{
	if (!row->payload || !row->json) {
		put_null(b);
		return;
	}
	put_be32(b, (int32_t)row->payload_len + 1);
	pr_buf_put(b, "\1", 1);
	pr_buf_put(b, row->payload, row->payload_len);
}

static void put_column(struct pr_buf *b, const struct sink_row *row, enum table_column c)
{
	switch (c) {
	case COLUMN_ID:
		if (row->id)
			put_text(b, row->id, row->id_len);
		else
			put_null(b);
		break;
	case COLUMN_TYPE:
		put_text(b, row->type, row->type_len);
		break;
	case COLUMN_TOPIC:
		put_bytes(b, row->topic, strlen(row->topic));
		break;
	case COLUMN_PARTITION:
		put_int4(b, row->partition);
		break;
	case COLUMN_OFFSET:
		put_int8(b, row->offset);
		break;
	case COLUMN_KEY:
		put_key(b, row);
		break;
	case COLUMN_TIME:
		put_time(b, row->time_us);
		break;
	case COLUMN_HOUR:
		put_time(b, row->time_us < 0 ? -1 : row->time_us / HOUR_US * HOUR_US);
		break;
	case COLUMN_HEADERS:
		put_headers(b, row);
		break;
	case COLUMN_PAYLOAD:
		put_payload(b, row);
		break;
	case COLUMN_PAYLOAD_BASE64:
		if (row->payload && !row->json)
			put_base64(b, row->payload, row->payload_len);
		else
			put_null(b);
		break;
	case COLUMN_COUNT:
		break;
	}
}

void table_row_head(struct pr_buf *b)
{
	pr_buf_put(b, "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0", 19);
}

void table_row_tail(struct pr_buf *b)
{
	put_be16(b, -1);
}

void table_row_put(struct pr_buf *b, const struct sink_row *row, const int has[COLUMN_COUNT])
{
	int n = 0;

	for (int c = 0; c < COLUMN_COUNT; c++)
		n += has[c] != 0;
	put_be16(b, (int16_t)n);
	for (int c = 0; c < COLUMN_COUNT; c++)
		if (has[c])
			put_column(b, row, (enum table_column)c);
}
