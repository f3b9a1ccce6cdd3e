/* consumers/message_json.c -- a message as a subprocess, a web server and jsonb columns get to see it: one
 * line of JSON. Refuses to lose a byte: what is no UTF-8 goes as base64. */
#include "consumers/message.h"

#include "lib/clock.h"
#include "lib/err.h"
#include "lib/uuid.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SORTED_FROM 16 /* so many headers are looked through for a name; more are sorted */

void message_put_base64(struct pr_buf *b, const char *s, size_t n)
{
	size_t need = b->len + (n + 2) / 3 * 4 + 1;

	if (need > b->cap) {
		b->cap = need > b->cap * 2 ? need : b->cap * 2;
		b->s = pr_realloc(b->s, b->cap);
	}
	/* EVP takes an int, and ends what it wrote with a NUL; whole groups of three need no padding. */
	for (size_t at = 0, part; at < n; at += part) {
		part = n - at < (3u << 20) ? n - at : 3u << 20;
		b->len += (size_t)EVP_EncodeBlock(
			(unsigned char *)b->s + b->len, (const unsigned char *)s + at, (int)part);
	}
	b->s[b->len] = '\0';
}

static void put_header(struct pr_buf *b, const struct header *h, int first)
{
	if (!first)
		pr_buf_put(b, ",", 1);
	pr_buf_json(b, h->name, strlen(h->name));
	pr_buf_put(b, ":", 1);
	if (!h->value) {
		pr_buf_puts(b, "null");
	} else if (pr_buf_json_plain(b, h->value, h->len)) {
		return;
	} else if (pr_utf8_text(h->value, h->len)) {
		pr_buf_json(b, h->value, h->len);
	} else {
		pr_buf_puts(b, "{\"base64\":\"");
		message_put_base64(b, h->value, h->len);
		pr_buf_puts(b, "\"}");
	}
}

/* By name, and in order within one name (they lie in one array). */
static int by_name(const void *a, const void *b)
{
	const struct header *x = *(const struct header *const *)a, *y = *(const struct header *const *)b;
	int c = strcmp(x->name, y->name);

	return c != 0 ? c : (x > y) - (x < y);
}

static void put_sorted_headers(struct pr_buf *b, const struct header *headers, size_t n)
{
	const struct header **sorted = pr_malloc(n * sizeof(*sorted));
	int first = 1;

	for (size_t i = 0; i < n; i++)
		sorted[i] = &headers[i];
	qsort(sorted, n, sizeof(const struct header *), by_name);
	for (size_t i = 0; i < n; i++) {
		if (i + 1 < n && strcmp(sorted[i]->name, sorted[i + 1]->name) == 0)
			continue;
		put_header(b, sorted[i], first);
		first = 0;
	}
	free(sorted);
}

/* The last of a name wins. */
static int comes_again(const struct header *headers, size_t n, size_t i)
{
	for (size_t j = i + 1; j < n; j++)
		if (*headers[j].name == *headers[i].name && strcmp(headers[j].name, headers[i].name) == 0)
			return 1;
	return 0;
}

void message_put_header_list(struct pr_buf *b, const struct header *headers, size_t n)
{
	int first = 1;

	pr_buf_put(b, "{", 1);
	if (n > SORTED_FROM)
		put_sorted_headers(b, headers, n);
	for (size_t i = 0; n <= SORTED_FROM && i < n; i++) {
		if (comes_again(headers, n, i))
			continue;
		put_header(b, &headers[i], first);
		first = 0;
	}
	pr_buf_put(b, "}", 1);
}

void message_put_given_headers(struct pr_buf *b, const struct message *m)
{
	size_t n;
	const struct header *headers = message_given_headers(m, &n);

	message_put_header_list(b, headers, n);
}

void message_put_headers(struct pr_buf *b, const struct message *m)
{
	message_put_header_list(b, m->headers, m->headers_n);
}

/* Line ends between tokens become spaces: inside strings they are escaped anyway. */
void message_put_on_one_line(struct pr_buf *b, const char *s, size_t n)
{
	size_t at = b->len;
	char *end, *p;

	pr_buf_put(b, s, n);
	end = b->s + b->len;
	for (p = b->s + at; (p = memchr(p, '\n', (size_t)(end - p))) != NULL;)
		*p = ' ';
	for (p = b->s + at; (p = memchr(p, '\r', (size_t)(end - p))) != NULL;)
		*p = ' ';
}

void message_put_key(struct pr_buf *b, const struct message *m)
{
	if (pr_utf8_text(m->key, m->key_len)) {
		pr_buf_put(b, m->key, m->key_len);
		return;
	}
	pr_buf_puts(b, "base64:");
	message_put_base64(b, m->key, m->key_len);
}

static void put_json_key(struct pr_buf *b, const struct message *m)
{
	if (!m->key) {
		pr_buf_puts(b, "null");
	} else if (pr_utf8_text(m->key, m->key_len)) {
		pr_buf_json(b, m->key, m->key_len);
	} else {
		pr_buf_puts(b, "\"base64:");
		message_put_base64(b, m->key, m->key_len);
		pr_buf_puts(b, "\"");
	}
}

static void put_json_payload(struct pr_buf *b, const struct message *m)
{
	if (!m->payload) {
		pr_buf_puts(b, "\"payload\":null");
	} else if (m->json) {
		pr_buf_puts(b, "\"payload\":");
		message_put_on_one_line(b, m->payload, m->payload_len);
	} else {
		pr_buf_puts(b, "\"payload_base64\":\"");
		message_put_base64(b, m->payload, m->payload_len);
		pr_buf_puts(b, "\"");
	}
}

/* The id as it came; one that was cut would be no identity, so it goes as its uuid. */
static void put_json_id(struct pr_buf *b, const struct message *m)
{
	char uuid[37];

	if (m->id_state == ID_MISSING)
		pr_buf_puts(b, "null");
	else if (strlen(m->id_text) < sizeof(m->id_text) - 4)
		pr_buf_json(b, m->id_text, strlen(m->id_text));
	else
		pr_buf_printf(b, "\"%s\"", pr_uuid_print(m->id, uuid));
}

void message_put_json(struct pr_buf *b, const struct message *m, const char *op)
{
	struct origin o = message_origin(m);
	char time[32];

	pr_buf_printf(b, "{\"op\":\"%s\",\"id\":", op);
	put_json_id(b, m);
	pr_buf_puts(b, ",\"type\":");
	pr_buf_json(b, m->type, m->type_len);
	pr_buf_puts(b, ",\"topic\":");
	pr_buf_json(b, o.topic, strlen(o.topic));
	pr_buf_printf(b, ",\"partition\":%" PRId32 ",\"offset\":%" PRId64 ",\"key\":", o.partition, o.offset);
	put_json_key(b, m);
	if (o.time_us < 0)
		pr_buf_puts(b, ",\"time\":null");
	else
		pr_buf_printf(b, ",\"time\":\"%s\"", pr_rfc3339(o.time_us, time));
	pr_buf_printf(b, ",\"attempt\":%u,\"headers\":", m->attempts + 1);
	message_put_given_headers(b, m);
	pr_buf_puts(b, ",");
	put_json_payload(b, m);
	pr_buf_puts(b, "}");
}
