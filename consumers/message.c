/* consumers/message.c -- a record on its way: what it is (id, type, hash), and how Postgres, a subprocess
 * and a web server get to see it. Refuses to judge: what is wrong with it is written into it. */
#include "consumers/message.h"

#include "consumers/consumer.h"

#include "lib/clock.h"
#include "lib/err.h"
#include "lib/pg.h"
#include "lib/uuid.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define RECORD_COST  448 /* what librdkafka spends on a record besides its bytes (seen: 2.0.2, 64 bit) */
#define LAST_TIME_MS 253402300799999   /* the year 9999: beyond it neither timestamptz nor RFC 3339 is sure */
#define EPOCH_2000   946684800000000LL /* microseconds from 1970 to Postgres' zero */
#define SORTED_FROM  16                /* so many headers are looked through for a name; more are sorted */

/* ---------------------------------------------------------------- life */

struct message *message_of_record(rd_kafka_message_t *rkm)
{
	struct message *m = pr_calloc(1, sizeof(*m));
	rd_kafka_timestamp_type_t kind;
	int64_t ms = rd_kafka_message_timestamp(rkm, &kind);

	m->rkm = rkm;
	m->topic = rd_kafka_topic_name(rkm->rkt);
	m->partition = rkm->partition;
	m->offset = rkm->offset;
	m->time_us =
		kind == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE || ms < 0 || ms > LAST_TIME_MS ? -1 : ms * PR_MS;
	m->key = rkm->key;
	m->key_len = rkm->key ? rkm->key_len : 0;
	m->payload = rkm->payload;
	m->payload_len = rkm->payload ? rkm->len : 0;
	m->bytes = sizeof(*m) + RECORD_COST + m->key_len + m->payload_len;
	return m;
}

void message_free(struct message *m)
{
	if (!m)
		return;
	replay_drop(m->replay);
	part_drop(m->part);
	free(m->headers);
	if (m->rkm)
		rd_kafka_message_destroy(m->rkm);
	free(m->header_bytes);
	free(m);
}

void message_free_all(struct message *list)
{
	struct message *next;

	for (; list; list = next) {
		next = list->next;
		message_free(list);
	}
}

/* ---------------------------------------------------------------- headers */

static void read_record_headers(struct message *m)
{
	rd_kafka_headers_t *hdrs;
	size_t cap = 0;

	free(m->headers);
	m->headers = NULL;
	m->headers_n = 0;
	if (rd_kafka_message_headers(m->rkm, &hdrs) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	for (size_t i = 0;; i++) {
		struct header h = { 0 };
		const void *value = NULL;

		if (rd_kafka_header_get_all(hdrs, i, &h.name, &value, &h.len) != RD_KAFKA_RESP_ERR_NO_ERROR)
			break;
		h.value = value;
		if (i == cap) {
			cap = cap ? cap * 2 : 8;
			m->headers = pr_realloc(m->headers, cap * sizeof(*m->headers));
		}
		m->headers[i] = h;
		m->headers_n = i + 1;
	}
}

/* A header's value as message_put_headers wrote it; what else the object may hold (somebody's edit) is kept
 * as its JSON text. */
static void read_value(struct pr_buf *b, const cJSON *v, struct header *h)
{
	const cJSON *coded = cJSON_IsObject(v) ? cJSON_GetObjectItemCaseSensitive(v, "base64") : NULL;
	size_t n;
	char *s;
	int len;

	if (cJSON_IsString(v)) {
		h->len = strlen(v->valuestring);
		pr_buf_put(b, v->valuestring, h->len + 1);
	} else if (cJSON_IsString(coded) && (n = strlen(coded->valuestring)) % 4 == 0 && n < INT32_MAX) {
		s = pr_malloc(n / 4 * 3 + 1);
		len = EVP_DecodeBlock((unsigned char *)s, (const unsigned char *)coded->valuestring, (int)n);
		for (size_t i = 1; len > 0 && i <= 2 && i <= n && coded->valuestring[n - i] == '='; i++)
			len--; /* EVP_DecodeBlock counts the padding as zeros */
		h->len = len > 0 ? (size_t)len : 0;
		pr_buf_put(b, s, h->len + 1);
		free(s);
	} else if ((s = cJSON_PrintUnformatted(v)) != NULL) {
		h->len = strlen(s);
		pr_buf_put(b, s, h->len + 1);
		cJSON_free(s);
	}
}

void message_read_headers(struct message *m, const char *json)
{
	cJSON *doc = json ? cJSON_Parse(json) : NULL;
	struct pr_buf b = { 0 };
	const cJSON *v;
	char *p;
	int n = cJSON_GetArraySize(doc);

	free(m->headers);
	free(m->header_bytes);
	m->headers = n > 0 ? pr_calloc((size_t)n, sizeof(*m->headers)) : NULL;
	m->headers_n = 0;
	cJSON_ArrayForEach(v, doc)
	{
		struct header *h = &m->headers[m->headers_n];

		if (!v->string)
			continue;
		pr_buf_put(&b, v->string, strlen(v->string) + 1);
		if (!cJSON_IsNull(v)) {
			h->value = ""; /* where: below */
			read_value(&b, v, h);
		}
		m->headers_n++;
	}
	p = m->header_bytes = b.s;
	for (size_t i = 0; i < m->headers_n; i++) {
		struct header *h = &m->headers[i];

		h->name = p;
		p += strlen(p) + 1;
		if (h->value) {
			h->value = p;
			p += h->len + 1;
		}
	}
	cJSON_Delete(doc);
}

const struct header *message_header(const struct message *m, const char *name)
{
	for (size_t i = m->headers_n; i-- > 0;)
		if (*m->headers[i].name == *name && strcmp(m->headers[i].name, name) == 0)
			return &m->headers[i];
	return NULL;
}

/* ---------------------------------------------------------------- identity */

/* Into id_text as far as it goes, in whole characters; bytes that are no text become '?'. */
static void keep_text(struct message *m, const char *s, size_t n)
{
	size_t len = n < sizeof(m->id_text) ? n : sizeof(m->id_text) - 1;

	if (len < n)
		while (len > 0 && ((unsigned char)s[len] & 0xc0) == 0x80)
			len--;
	memcpy(m->id_text, s, len);
	m->id_text[len] = '\0';
	if (pr_utf8_text(m->id_text, len))
		return;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)m->id_text[i] < 0x20 || (unsigned char)m->id_text[i] >= 0x7f)
			m->id_text[i] = '?';
}

/* strict: an id that is no uuid is malformed; still it gets one, for a rule may let it pass. */
static void identify(struct message *m, const char *s, size_t n, int strict)
{
	keep_text(m, s, n);
	if (pr_uuid_parse(s, n, m->id) == 0) {
		m->id_state = ID_OK;
		return;
	}
	m->id_state = strict || n == 0 ? ID_MALFORMED : ID_OK;
	pr_uuid_of_text(s, n, m->id);
}

/* One step of a path: the member's value, and whether it is a container to look into. */
struct step {
	const char *name;
	size_t name_len;
	const char *from, *end; /* of the document */
	struct pr_buf value;
	const char *inner; /* NULL: a scalar, in value */
	size_t inner_len;
	int found;
};

static int look(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	struct step *s = ctx;

	if (name_len != s->name_len || memcmp(name, s->name, name_len) != 0)
		return 0;
	s->found = !is_null;
	s->inner = NULL;
	/* A string and an object look alike but for the quotation mark before it. */
	if (value > s->from && value < s->end && *value == '{' && value[-1] != '"') {
		s->inner = value;
		s->inner_len = value_len;
	} else {
		s->value.len = 0;
		pr_buf_put(&s->value, value, value_len);
	}
	return 0;
}

/* path: "a.b.c"; a string, number or other scalar at its end is the id. */
static void identify_by_path(struct message *m, const char *path)
{
	struct step s = { .from = m->payload, .end = m->payload + m->payload_len };
	struct pr_buf scratch = { 0 };
	const char *doc = m->payload;
	size_t len = m->payload_len;

	for (; m->json; path = s.name + s.name_len + 1) {
		s.name = path;
		s.name_len = strcspn(path, ".");
		s.found = 0;
		if (pr_json_flat(doc, len, &scratch, look, &s) < 0)
			break;
		if (!s.found || !path[s.name_len] || !s.inner)
			break;
		doc = s.inner;
		len = s.inner_len;
		s.found = 0;
	}
	if (s.found && !s.inner && !s.name[s.name_len])
		identify(m, s.value.s, s.value.len, 0);
	pr_buf_free(&s.value);
	pr_buf_free(&scratch);
}

static void find_id(struct message *m, const char *how)
{
	const struct header *h;
	char place[320];

	m->id_state = ID_MISSING;
	m->id_text[0] = '\0';
	if (strcmp(how, "offset") == 0) {
		(void)snprintf(
			place, sizeof(place), "%s-%" PRId32 "-%" PRId64, m->topic, m->partition, m->offset);
		identify(m, place, strlen(place), 0);
	} else if (strncmp(how, "json:", 5) == 0) {
		identify_by_path(m, how + 5);
	} else {
		how += strncmp(how, "header:", 7) == 0 ? 7 : 0;
		h = message_header(m, how);
		if (h && h->value)
			identify(m, h->value, h->len, strcmp(how, "id") == 0);
	}
}

void message_decode(struct message *m, const struct pr_consumer_conf *conf)
{
	const struct header *h;

	if (m->rkm)
		read_record_headers(m);
	h = message_header(m, "type");
	m->type = h && h->value ? h->value : "";
	m->type_len = h && h->value ? h->len : 0;
	h = message_header(m, "traceparent");
	m->traceparent = h ? h->value : NULL;
	m->traceparent_len = m->traceparent ? h->len : 0;
	m->json = m->payload && pr_json_text(m->payload, m->payload_len);
	m->hash = m->payload ? (int64_t)XXH3_64bits(m->payload, m->payload_len) : 0;
	find_id(m, conf->id ? conf->id : "header:id");
}

static int type_matches(const struct message *m, const char *pattern)
{
	size_t n = strlen(pattern);

	if (n > 0 && pattern[n - 1] == '*')
		return m->type_len >= n - 1 && memcmp(m->type, pattern, n - 1) == 0;
	return m->type_len == n && memcmp(m->type, pattern, n) == 0;
}

/* "name=value" */
static int header_matches(const struct message *m, const char *want)
{
	const char *value = strchr(want, '=');
	const struct header *h;
	char name[256];

	if (!value || (size_t)(value - want) >= sizeof(name))
		return 0;
	memcpy(name, want, (size_t)(value - want));
	name[value - want] = '\0';
	h = message_header(m, name);
	value++;
	return h && h->value && h->len == strlen(value) && memcmp(h->value, value, h->len) == 0;
}

int message_wanted(const struct message *m, const struct pr_consumer_conf *conf)
{
	int match = conf->filter.types.n == 0;

	for (size_t i = 0; !match && i < conf->filter.types.n; i++)
		match = type_matches(m, conf->filter.types.v[i]);
	for (size_t i = 0; match && i < conf->filter.headers.n; i++)
		match = header_matches(m, conf->filter.headers.v[i]);
	return match;
}

/* Source: Kafka's Utils.murmur2 (seed 0x9747b28c), which every Java producer partitions with. */
static uint32_t murmur2(const unsigned char *s, size_t n)
{
	const uint32_t mul = 0x5bd1e995;
	uint32_t h = 0x9747b28c ^ (uint32_t)n, k;

	for (; n >= 4; s += 4, n -= 4) {
		k = (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
		k *= mul;
		k = (k ^ k >> 24) * mul;
		h = h * mul ^ k;
	}
	if (n > 0) {
		if (n == 3)
			h ^= (uint32_t)s[2] << 16;
		if (n >= 2)
			h ^= (uint32_t)s[1] << 8;
		h = (h ^ s[0]) * mul;
	}
	h = (h ^ h >> 13) * mul;
	return h ^ h >> 15;
}

int32_t message_lane_hash(const struct message *m)
{
	uint32_t h;

	if (!m->key)
		return (int32_t)(m->offset & 0x7fffffff);
	h = murmur2((const unsigned char *)m->key, m->key_len);
	/* Source: fmix32 of MurmurHash3 (Appleby), public domain. */
	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return (int32_t)((h ^ h >> 16) & 0x7fffffff);
}

int message_lane(const struct message *m, int n)
{
	return message_lane_hash(m) % n;
}

/* ---------------------------------------------------------------- as JSON */

static void put_base64(struct pr_buf *b, const char *s, size_t n)
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
		pr_buf_puts(b, ",");
	pr_buf_json(b, h->name, strlen(h->name));
	pr_buf_puts(b, ":");
	if (!h->value) {
		pr_buf_puts(b, "null");
	} else if (pr_utf8_text(h->value, h->len)) {
		pr_buf_json(b, h->value, h->len);
	} else {
		pr_buf_puts(b, "{\"base64\":\"");
		put_base64(b, h->value, h->len);
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

static void put_sorted_headers(struct pr_buf *b, const struct message *m)
{
	const struct header **sorted = pr_malloc(m->headers_n * sizeof(*sorted));
	int first = 1;

	for (size_t i = 0; i < m->headers_n; i++)
		sorted[i] = &m->headers[i];
	qsort(sorted, m->headers_n, sizeof(const struct header *), by_name);
	for (size_t i = 0; i < m->headers_n; i++) {
		if (i + 1 < m->headers_n && strcmp(sorted[i]->name, sorted[i + 1]->name) == 0)
			continue;
		put_header(b, sorted[i], first);
		first = 0;
	}
	free(sorted);
}

void message_put_headers(struct pr_buf *b, const struct message *m)
{
	int first = 1;

	pr_buf_puts(b, "{");
	if (m->headers_n > SORTED_FROM)
		put_sorted_headers(b, m);
	for (size_t i = 0; m->headers_n <= SORTED_FROM && i < m->headers_n; i++) {
		if (message_header(m, m->headers[i].name) != &m->headers[i])
			continue;
		put_header(b, &m->headers[i], first);
		first = 0;
	}
	pr_buf_puts(b, "}");
}

/* Line ends between tokens become spaces: inside strings they are escaped anyway. */
static void put_on_one_line(struct pr_buf *b, const char *s, size_t n)
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
	put_base64(b, m->key, m->key_len);
}

static void put_json_key(struct pr_buf *b, const struct message *m)
{
	if (!m->key) {
		pr_buf_puts(b, "null");
	} else if (pr_utf8_text(m->key, m->key_len)) {
		pr_buf_json(b, m->key, m->key_len);
	} else {
		pr_buf_puts(b, "\"base64:");
		put_base64(b, m->key, m->key_len);
		pr_buf_puts(b, "\"");
	}
}

static void put_json_payload(struct pr_buf *b, const struct message *m)
{
	if (!m->payload) {
		pr_buf_puts(b, "\"payload\":null");
	} else if (m->json) {
		pr_buf_puts(b, "\"payload\":");
		put_on_one_line(b, m->payload, m->payload_len);
	} else {
		pr_buf_puts(b, "\"payload_base64\":\"");
		put_base64(b, m->payload, m->payload_len);
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
	char time[32];

	pr_buf_printf(b, "{\"op\":\"%s\",\"id\":", op);
	put_json_id(b, m);
	pr_buf_puts(b, ",\"type\":");
	pr_buf_json(b, m->type, m->type_len);
	pr_buf_puts(b, ",\"topic\":");
	pr_buf_json(b, m->topic, strlen(m->topic));
	pr_buf_printf(
		b, ",\"partition\":%" PRId32 ",\"offset\":%" PRId64 ",\"key\":", m->partition, m->offset);
	put_json_key(b, m);
	if (m->time_us < 0)
		pr_buf_puts(b, ",\"time\":null");
	else
		pr_buf_printf(b, ",\"time\":\"%s\"", pr_rfc3339(m->time_us, time));
	pr_buf_printf(b, ",\"attempt\":%u,\"headers\":", m->attempts + 1);
	message_put_headers(b, m);
	pr_buf_puts(b, ",");
	put_json_payload(b, m);
	pr_buf_puts(b, "}");
}

/* ---------------------------------------------------------------- as inbox.message[] */

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
	message_put_headers(b, m);
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

void message_put_array(
	struct pr_buf *b, const struct message_types *types, struct message *const *m, size_t n)
{
	char *p = room(b, 20);

	p = w32(p, n > 0); /* dimensions */
	p = w32(p, 0);     /* no NULL elements */
	p = w32(p, types->message);
	if (n > 0)
		p = w32(w32(p, (uint32_t)n), 1);
	b->len = (size_t)(p - b->s);
	for (size_t i = 0; i < n; i++)
		put_message(b, m[i]);
	b->s[b->len] = '\0';
}
