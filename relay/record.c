/* relay/record.c -- builds records. Refuses to touch a payload. */
#include "relay/record.h"

#include "lib/clock.h"
#include "lib/traceparent.h"

#include <inttypes.h>
#include <string.h>

void record_maker_release(struct record_maker *m)
{
	pr_buf_free(&m->scratch);
}

static void uuid_text(const unsigned char id[16], char out[36])
{
	static const char hex[] = "0123456789abcdef";
	size_t at = 0;

	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			out[at++] = '-';
		out[at++] = hex[id[i] >> 4];
		out[at++] = hex[id[i] & 15];
	}
}

/* RFC 3339 with microseconds; the part down to the second is kept, for it rarely changes. */
static size_t created_text(struct record_maker *m, int64_t us, char out[48])
{
	int64_t second = us >= 0 ? us / PR_SEC : (us - (PR_SEC - 1)) / PR_SEC;
	unsigned fraction = (unsigned)(us - second * PR_SEC);
	char full[64];
	size_t n;

	if (m->second != second || m->stamp_len == 0) {
		(void)pr_rfc3339(second * PR_SEC, full);
		m->stamp_len =
			(size_t)snprintf(m->stamp, sizeof(m->stamp), "%.*s", (int)strcspn(full, "."), full);
		m->second = second;
	}
	n = m->stamp_len;
	memcpy(out, m->stamp, n);
	out[n] = '.';
	for (size_t i = 6; i > 0; i--, fraction /= 10)
		out[n + i] = (char)('0' + fraction % 10);
	out[n + 7] = 'Z';
	return n + 8;
}

static size_t decimal(uint64_t v, char out[24])
{
	char tmp[24];
	size_t n = 0;

	do
		tmp[n++] = (char)('0' + v % 10);
	while (v /= 10);
	for (size_t i = 0; i < n; i++)
		out[i] = tmp[n - 1 - i];
	return n;
}

/* Behind "traceparent=" at the start of a line, in Debezium's serialised java.util.Properties; s when it has
 * no such line. */
static const char *behind_key(const char *s, const char *end)
{
	static const char key[] = "traceparent=";

	for (const char *at = s; at && end - at >= (ptrdiff_t)sizeof(key) - 1;) {
		if (memcmp(at, key, sizeof(key) - 1) == 0)
			return at + sizeof(key) - 1;
		at = memchr(at, '\n', (size_t)(end - at));
		at = at ? at + 1 : NULL;
	}
	return s;
}

/* A W3C traceparent; anything else is not passed on. */
struct span record_traceparent(const struct event *e)
{
	const char *end = e->trace.s ? e->trace.s + e->trace.n : NULL;
	const char *s = e->trace.s ? behind_key(e->trace.s, end) : NULL;
	struct pr_trace ignored;

	if (!s || end - s < PR_TRACEPARENT_LEN ||
		(end - s > PR_TRACEPARENT_LEN && s[55] != '\n' && s[55] != '\r') ||
		pr_traceparent_read(s, PR_TRACEPARENT_LEN, &ignored) < 0)
		return (struct span){ NULL, 0 };
	return (struct span){ s, PR_TRACEPARENT_LEN };
}

static int add_own(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	rd_kafka_headers_t *headers = ctx;

	(void)is_null;
	return rd_kafka_header_add(headers, name, (ssize_t)name_len, value, (ssize_t)value_len) != 0;
}

static void add(rd_kafka_headers_t *headers, const char *name, size_t name_len, const char *value, size_t len)
{
	(void)rd_kafka_header_add(headers, name, (ssize_t)name_len, value, (ssize_t)len);
}

static rd_kafka_headers_t *make_headers(struct record_maker *m, const struct event *e)
{
	rd_kafka_headers_t *headers = rd_kafka_headers_new(8);
	struct span trace = record_traceparent(e);
	char buf[48];

	uuid_text(e->id, buf);
	add(headers, "id", 2, buf, 36);
	add(headers, "type", 4, e->type.s, e->type.n);
	if (e->is_json || !e->payload.s)
		add(headers, "content-type", 12, "application/json", 16);
	else
		add(headers, "content-type", 12, "application/octet-stream", 24);
	add(headers, "outbox-seq", 10, buf, decimal((uint64_t)e->seq, buf));
	add(headers, "outbox-created-at", 17, buf, created_text(m, e->created_us, buf));
	if (trace.s)
		add(headers, "traceparent", 11, trace.s, trace.n);
	if (e->headers.s && e->headers.n > 2)
		(void)pr_json_flat(e->headers.s, e->headers.n, &m->scratch, add_own, headers);
	return headers;
}

size_t record_size(const struct event *e)
{
	return e->payload.n + e->key.n + e->type.n + e->headers.n + 256;
}

rd_kafka_resp_err_t record_produce(
	struct record_maker *m, rd_kafka_t *rk, const struct topic *topic, struct event *e, void *opaque)
{
	rd_kafka_headers_t *headers = make_headers(m, e);
	rd_kafka_vu_t vus[7];
	rd_kafka_error_t *error;
	rd_kafka_resp_err_t code;

	vus[0].vtype = RD_KAFKA_VTYPE_RKT;
	vus[0].u.rkt = topic->rkt;
	vus[1].vtype = RD_KAFKA_VTYPE_PARTITION;
	vus[1].u.i32 = e->partition >= 0 ? e->partition : RD_KAFKA_PARTITION_UA;
	vus[2].vtype = RD_KAFKA_VTYPE_VALUE;
	vus[2].u.mem.ptr = (void *)(uintptr_t)e->payload.s;
	vus[2].u.mem.size = e->payload.n;
	vus[3].vtype = RD_KAFKA_VTYPE_KEY;
	vus[3].u.mem.ptr = (void *)(uintptr_t)e->key.s;
	vus[3].u.mem.size = e->key.n;
	vus[4].vtype = RD_KAFKA_VTYPE_HEADERS;
	vus[4].u.headers = headers;
	vus[5].vtype = RD_KAFKA_VTYPE_OPAQUE;
	vus[5].u.ptr = opaque;
	vus[6].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
	vus[6].u.i = 0;
	error = rd_kafka_produceva(rk, vus, 7);
	if (!error)
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	code = rd_kafka_error_code(error);
	rd_kafka_error_destroy(error);
	rd_kafka_headers_destroy(headers); /* taken only on success */
	return code;
}
