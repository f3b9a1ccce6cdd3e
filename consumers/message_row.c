/* consumers/message_row.c -- messages as Postgres gets to see them: inbox.message[] in its binary form.
 * Refuses to know SQL beyond the type's name. */
#include "consumers/message.h"

#include "lib/err.h"
#include "lib/pg.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define EPOCH_2000 946684800000000LL /* microseconds from 1970 to Postgres' zero */

/* Oids of built-in types never change (pg_type.dat). */
enum {
	OID_BYTEA = 17,
	OID_INT8 = 20,
	OID_INT4 = 23,
	OID_TEXT = 25,
	OID_TIMESTAMPTZ = 1184,
	OID_UUID = 2950,
	OID_JSONB = 3802
};

#define FIELDS     10
/* Of one message besides its bytes: lengths and types of fields, fixed-size fields. */
#define FIXED_COST (8 + FIELDS * 8 + 16 + 4 + 8 + 8 + 2)

int message_types_read(struct message_types *ret, struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg,
		"SELECT 'inbox.message'::pg_catalog.regtype::pg_catalog.oid,"
		" 'inbox.message[]'::pg_catalog.regtype::pg_catalog.oid",
		0, NULL, err);

	if (!res)
		return -1;
	ret->message = (Oid)strtoul(PQgetvalue(res, 0, 0), NULL, 10);
	ret->message_array = (Oid)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
	PQclear(res);
	return 0;
}

static char *room(struct pr_buf *b, size_t more)
{
	if (b->len + more + 1 > b->cap) {
		b->cap = b->cap * 2 > b->len + more + 1 ? b->cap * 2 : b->len + more + 1;
		b->s = pr_realloc(b->s, b->cap);
	}
	return b->s + b->len;
}

static char *w32(char *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
	return p + 4;
}

static char *w64(char *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, 8);
	return p + 8;
}

static char *w_null(char *p, Oid type)
{
	return w32(w32(p, type), (uint32_t)-1);
}

static char *w_bytes(char *p, Oid type, const void *s, size_t n)
{
	p = w32(w32(p, type), (uint32_t)n);
	if (n > 0)
		memcpy(p, s, n);
	return p + n;
}

/* Bytes that text does not take go as "base64:..."; twice the length is room enough for both. */
static char *w_text(char *p, const char *s, size_t n)
{
	char *len = p + 4, *body = p + 8;

	if (pr_utf8_text(s, n))
		return w_bytes(p, OID_TEXT, s, n);
	(void)w32(p, OID_TEXT);
	memcpy(body, "base64:", 7);
	n = 7 + (size_t)EVP_EncodeBlock((unsigned char *)body + 7, (const unsigned char *)s, (int)n);
	(void)w32(len, (uint32_t)n);
	return body + n;
}

static char *w_payload(char *p, const struct message *m)
{
	if (!m->json) {
		p = w_null(p, OID_JSONB);
		return m->payload ? w_bytes(p, OID_BYTEA, m->payload, m->payload_len) : w_null(p, OID_BYTEA);
	}
	p = w32(w32(p, OID_JSONB), (uint32_t)m->payload_len + 1);
	*p++ = 1; /* version of jsonb's format */
	memcpy(p, m->payload, m->payload_len);
	return w_null(p + m->payload_len, OID_BYTEA);
}

/* The length of a field is written once it is known: pr_buf may move meanwhile. */
static void put_headers_field(struct pr_buf *b, const struct message *m)
{
	size_t at = b->len + 4;
	char *p = room(b, 9);

	p = w32(w32(p, OID_JSONB), 0);
	*p = 1;
	b->len += 9;
	message_put_given_headers(b, m);
	(void)w32(b->s + at, (uint32_t)(b->len - at - 4));
}

/* The fields in the order of the type. */
static void put_message(struct pr_buf *b, const struct message *m)
{
	size_t at = b->len, topic_len = strlen(m->topic);
	char *p;

	p = room(b, FIXED_COST + topic_len + 2 * (m->key_len + m->type_len) + 32 + m->payload_len) + 4;
	p = w32(p, FIELDS);
	p = m->id_state == ID_MISSING ? w_null(p, OID_UUID) : w_bytes(p, OID_UUID, m->id, sizeof(m->id));
	p = w_bytes(p, OID_TEXT, m->topic, topic_len);
	p = w32(w32(w32(p, OID_INT4), 4), (uint32_t)m->partition);
	p = w64(w32(w32(p, OID_INT8), 8), (uint64_t)m->offset);
	p = m->key ? w_text(p, m->key, m->key_len) : w_null(p, OID_TEXT);
	p = w_text(p, m->type, m->type_len);
	p = w_payload(p, m);
	b->len = (size_t)(p - b->s);
	put_headers_field(b, m);
	p = room(b, 16);
	if (m->time_us < 0)
		p = w_null(p, OID_TIMESTAMPTZ);
	else
		p = w64(w32(w32(p, OID_TIMESTAMPTZ), 8), (uint64_t)(m->time_us - EPOCH_2000));
	b->len = (size_t)(p - b->s);
	(void)w32(b->s + at, (uint32_t)(b->len - at - 4));
}

/* A batch is larger than the cache: lines of the next ones are on their way while one is written. */
static void fetch_ahead(struct message *const *m, size_t i, size_t n)
{
	const struct message *next;

	if (i + 8 < n)
		for (size_t at = 0; at < sizeof(*next); at += 64)
			__builtin_prefetch((const char *)m[i + 8] + at);
	if (i + 4 >= n)
		return;
	next = m[i + 4];
	for (size_t at = 0; at < next->payload_len && at < 256; at += 64)
		__builtin_prefetch(next->payload + at);
	for (size_t at = 0; next->headers && at < 384; at += 64)
		__builtin_prefetch((const char *)next->headers + at);
}

void message_put_array(
	struct pr_buf *b, const struct message_types *types, struct message *const *m, size_t n)
{
	size_t bytes = 20;
	char *p;

	for (size_t i = 0; i < n; i++) /* more than enough, but for large headers: the buffer grows once */
		bytes += m[i]->bytes;
	p = room(b, bytes);
	p = w32(p, n > 0); /* dimensions */
	p = w32(p, 0);     /* no NULL elements */
	p = w32(p, types->message);
	if (n > 0)
		p = w32(w32(p, (uint32_t)n), 1);
	b->len = (size_t)(p - b->s);
	for (size_t i = 0; i < n; i++) {
		fetch_ahead(m, i, n);
		put_message(b, m[i]);
	}
	b->s[b->len] = '\0';
}
