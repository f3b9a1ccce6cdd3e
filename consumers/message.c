/* consumers/message.c -- a record on its way: what it is (id, type, hash, lane). message_json.c and
 * message_row.c write it for others. Refuses to judge: what is wrong with it is written into it. */
#include "consumers/message.h"

#include "consumers/consumer.h"

#include "lib/clock.h"
#include "lib/err.h"
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
#define LAST_TIME_MS 253402300799999 /* the year 9999: beyond it neither timestamptz nor RFC 3339 is sure */

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
	free(m->origin);
	free(m->why);
	free(m->trace);
	free(m);
}

void message_failed(struct message *m, const struct outcome *why)
{
	if (!m->why)
		m->why = pr_malloc(sizeof(*m->why));
	*m->why = *why;
}

const struct outcome *message_why(const struct message *m)
{
	static const struct outcome none;

	return m->why ? m->why : &none;
}

struct origin message_origin(const struct message *m)
{
	struct origin o = {
		.topic = m->topic, .partition = m->partition, .offset = m->offset, .time_us = m->time_us
	};

	if (m->origin) {
		o = *m->origin;
		o.topic = m->origin->name;
	}
	return o;
}

void message_free_all(struct message *list)
{
	struct message *next;
	int same = 0;

	for (; list; list = next) {
		next = list->next;
		same++;
		if (!next || next->part != list->part) { /* the poll thread counts up what we count down */
			part_drop_many(list->part, same);
			same = 0;
		}
		list->part = NULL;
		if (next) /* librdkafka's thread wrote it, on another core */
			__builtin_prefetch(next->rkm);
		message_free(list);
	}
}

/* ---------------------------------------------------------------- headers */

/* librdkafka gives each header a piece of memory of its own. They are copied into one at once and given back,
 * so that thousands of messages do not have thousands of such pieces each in and out of the cache. */
static void read_record_headers(struct message *m)
{
	rd_kafka_headers_t *hdrs;
	struct header h;
	const void *value;
	size_t n, len, bytes = 0;
	char *p;

	if (rd_kafka_message_detach_headers(m->rkm, &hdrs) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	n = rd_kafka_header_cnt(hdrs);
	for (size_t i = 0; i < n && !rd_kafka_header_get_all(hdrs, i, &h.name, &value, &h.len); i++)
		bytes += strlen(h.name) + h.len + 2;
	free(m->headers);
	m->headers = pr_malloc(n * sizeof(*m->headers) + bytes + 1);
	p = (char *)(m->headers + n);
	for (size_t i = 0; i < n && !rd_kafka_header_get_all(hdrs, i, &h.name, &value, &h.len); i++) {
		len = strlen(h.name) + 1;
		m->headers[i] = (struct header){ p, value ? p + len : NULL, h.len };
		memcpy(p, h.name, len);
		p += len;
		if (value)
			memcpy(p, value, h.len);
		p[h.len] = '\0';
		p += h.len + 1;
	}
	m->headers_n = n;
	rd_kafka_headers_destroy(hdrs);
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

const struct header *message_given_headers(const struct message *m, size_t *ret_n)
{
	*ret_n = m->trace ? m->trace->headers_n : m->headers_n;
	return m->trace ? m->trace->headers : m->headers;
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
	struct origin o;
	char place[320];

	m->id_state = ID_MISSING;
	m->id_text[0] = '\0';
	if (strcmp(how, "offset") == 0) {
		o = message_origin(m);
		(void)snprintf(
			place, sizeof(place), "%s-%" PRId32 "-%" PRId64, o.topic, o.partition, o.offset);
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
	int match = pr_consumer_wants(&conf->filter.types, m->type, m->type_len);

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
