/* consumers/sink/cells.c -- a record as columns. Refuses nothing: whatever is in a record fits. */
#include "consumers/sink/cells.h"

#include "lib/err.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define MARK        "base64:"
#define SCRATCH_MAX (64u << 10) /* more than this is given back */

/* Room for all that sink_cells_of may write, so that nothing moves while it is pointed to: a bad byte becomes
 * three, three bytes become four, and each text may have a mark, padding and OpenSSL's NUL. */
static void make_room(struct pr_buf *b, const struct sink_row *row)
{
	size_t need = 3 * (row->id_len + row->type_len + strlen(row->topic)) + 2 * row->key_len + 256;

	if (row->payload && !row->json)
		need += 2 * row->payload_len;
	for (size_t i = 0; i < row->headers_n; i++)
		need += 3 * strlen(row->headers[i].name) + 2 * row->headers[i].len + 32;
	b->len = 0;
	if (b->cap > SCRATCH_MAX)
		pr_buf_free(b);
	if (need <= b->cap)
		return;
	b->s = pr_realloc(b->s, need);
	b->cap = need;
}

static struct sink_text base64(struct pr_buf *b, const char *mark, const char *s, size_t n)
{
	struct sink_text t = { .s = b->s + b->len, .n = strlen(mark) };

	memcpy(b->s + b->len, mark, t.n);
	/* EVP takes an int; whole groups of three need no padding */
	for (size_t at = 0, part; at < n; at += part) {
		part = n - at < (3u << 20) ? n - at : 3u << 20;
		t.n += (size_t)EVP_EncodeBlock(
			(unsigned char *)b->s + b->len + t.n, (const unsigned char *)s + at, (int)part);
	}
	b->len += t.n + 1;
	return t;
}

/* Key or header value. */
static struct sink_text text_of_bytes(struct pr_buf *b, const char *s, size_t n)
{
	if (!s || pr_utf8_text(s, n))
		return (struct sink_text){ .s = s, .n = n };
	return base64(b, MARK, s, n);
}

static struct sink_text text_of_name(struct pr_buf *b, const char *s, size_t n)
{
	struct sink_text t = { .s = s, .n = n };

	if (!s || pr_utf8_text(s, n))
		return t;
	t = (struct sink_text){ .s = b->s + b->len };
	for (size_t i = 0; i < n; i++) {
		int bad = (unsigned char)s[i] >= 0x80 || s[i] == '\0';

		memcpy(b->s + b->len, bad ? "\xef\xbf\xbd" : s + i, bad ? 3 : 1);
		b->len += bad ? 3 : 1;
	}
	t.n = (size_t)(b->s + b->len - t.s);
	return t;
}

/* By name, and in order within one name (they lie in one array). */
static int by_name(const void *a, const void *b)
{
	const struct header *x = *(const struct header *const *)a, *y = *(const struct header *const *)b;
	int c = strcmp(x->name, y->name);

	return c != 0 ? c : (x > y) - (x < y);
}

static void make_room_for_headers(struct sink_cells *c, size_t n)
{
	if (n <= c->headers_cap)
		return;
	c->headers_cap = n < 16 ? 16 : n * 2;
	c->headers = pr_realloc(c->headers, c->headers_cap * sizeof(*c->headers));
	c->sorted = pr_realloc(c->sorted, c->headers_cap * sizeof(struct header *));
}

static void headers_of(struct sink_cells *c, const struct sink_row *row)
{
	c->headers_n = 0;
	make_room_for_headers(c, row->headers_n);
	for (size_t i = 0; i < row->headers_n; i++)
		c->sorted[i] = &row->headers[i];
	if (row->headers_n > 1)
		qsort(c->sorted, row->headers_n, sizeof(struct header *), by_name);
	for (size_t i = 0; i < row->headers_n; i++) {
		const struct header *h = c->sorted[i];

		if (i + 1 < row->headers_n && strcmp(h->name, c->sorted[i + 1]->name) == 0)
			continue;
		c->headers[c->headers_n].name = text_of_name(&c->scratch, h->name, strlen(h->name));
		c->headers[c->headers_n++].value = text_of_bytes(&c->scratch, h->value, h->len);
	}
}

void sink_cells_of(struct sink_cells *c, const struct sink_row *row)
{
	const struct sink_text none = { 0 };
	struct pr_buf *b = &c->scratch;

	make_room(b, row);
	c->id = text_of_name(b, row->id, row->id_len);
	c->type = text_of_name(b, row->type, row->type_len);
	c->topic = text_of_name(b, row->topic, strlen(row->topic));
	c->partition = row->partition;
	c->offset = row->offset;
	c->time_us = row->time_us < 0 ? -1 : row->time_us;
	c->key = text_of_bytes(b, row->key, row->key_len);
	headers_of(c, row);
	c->payload = c->payload_base64 = none;
	if (row->payload && row->json)
		c->payload = (struct sink_text){ .s = row->payload, .n = row->payload_len };
	else if (row->payload)
		c->payload_base64 = base64(b, "", row->payload, row->payload_len);
}

size_t sink_cells_held(const struct sink_cells *c)
{
	return c->scratch.cap + c->headers_cap * (sizeof(*c->headers) + sizeof(*c->sorted));
}

void sink_cells_free(struct sink_cells *c)
{
	pr_buf_free(&c->scratch);
	free(c->headers);
	free(c->sorted);
	memset(c, 0, sizeof(*c));
}
