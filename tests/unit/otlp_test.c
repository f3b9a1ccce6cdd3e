/* tests/unit/otlp_test.c -- traceparents read and refused; spans as the JSON of OTLP; who is sampled; a queue
 * that is full loses and counts, and its end is within its bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/clock.h"
#include "lib/otlp.h"

#include <arpa/inet.h>
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GOOD "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

static int reads(const char *s)
{
	struct pr_trace t;

	return pr_traceparent_read(s, strlen(s), &t) == 0;
}

static void test_traceparent(void **state)
{
	static const char *const bad[] = { "", "00", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", GOOD "-x", GOOD " ",
		"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x" };
	struct pr_trace t;
	char out[PR_TRACEPARENT_LEN + 1];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		if (reads(bad[i]))
			fail_msg("\"%s\" was taken for a traceparent", bad[i]);
	assert_int_equal(pr_traceparent_read(GOOD, strlen(GOOD), &t), 0);
	assert_int_equal(t.sampled, 1);
	assert_string_equal(pr_traceparent_put(&t, out), GOOD);
	/* Of a later version: what we know of it, and said as ours. */
	assert_int_equal(
		pr_traceparent_read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more", 60, &t),
		0);
	assert_string_equal(pr_traceparent_put(&t, out), GOOD);
	assert_true(reads("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
}

static const char *attribute(const cJSON *span, const char *key)
{
	const cJSON *a, *value = NULL;

	cJSON_ArrayForEach(a,
		cJSON_GetObjectItem(span,
			"attributes")) if (strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(a, "key")), key) ==
					   0) value = cJSON_GetObjectItem(a, "value")->child;
	return value ? cJSON_GetStringValue(value) : NULL;
}

static const char *member(const cJSON *object, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItem(object, name));
}

static void test_json(void **state)
{
	const struct pr_otlp_resource who = { "a \"service\"", "host:1", "seat" };
	struct pr_span s[2] = { { .kind = PR_SPAN_PRODUCER, .offset = 7, .start_us = 5, .end_us = 3 },
		{ .kind = PR_SPAN_CONSUMER, .offset = -1, .attempts = 2, .outcome = "dead_letter" } };
	struct pr_buf b = { 0 };
	cJSON *whole, *all, *spans, *one;

	(void)state;
	memset(s[0].trace, 0xab, 16);
	memset(s[0].id, 0x0c, 8);
	memcpy(s[1].parent, s[0].id, 8);
	(void)strcpy(s[1].topic, "outbox.event.seat");
	(void)strcpy(s[1].message_id, "odd \"id\"\n");
	(void)strcpy(s[1].error, "sqlstate:23505");
	pr_otlp_put(&b, &who, s, 2);
	whole = cJSON_ParseWithLength(b.s, b.len);
	assert_non_null(whole);
	all = cJSON_GetArrayItem(cJSON_GetObjectItem(whole, "resourceSpans"), 0);
	assert_string_equal(attribute(cJSON_GetObjectItem(all, "resource"), "service.name"), "a \"service\"");
	spans = cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(all, "scopeSpans"), 0), "spans");
	assert_int_equal(cJSON_GetArraySize(spans), 2);
	one = cJSON_GetArrayItem(spans, 0);
	assert_string_equal(member(one, "traceId"), "abababababababababababababababab");
	assert_string_equal(member(one, "spanId"), "0c0c0c0c0c0c0c0c");
	assert_null(cJSON_GetObjectItem(one, "parentSpanId"));
	assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(one, "kind")) == 4);
	/* A clock that was set back makes no span that ends before it begins. */
	assert_string_equal(member(one, "startTimeUnixNano"), "5000");
	assert_string_equal(member(one, "endTimeUnixNano"), "5000");
	assert_string_equal(attribute(one, "messaging.kafka.offset"), "7");
	assert_null(cJSON_GetObjectItem(one, "status")->child);
	one = cJSON_GetArrayItem(spans, 1);
	assert_string_equal(member(one, "parentSpanId"), "0c0c0c0c0c0c0c0c");
	assert_string_equal(member(one, "name"), "process outbox.event.seat");
	assert_string_equal(attribute(one, "messaging.message.id"), "odd \"id\"\n");
	assert_string_equal(attribute(one, "messaging.consumer.group.name"), "seat");
	assert_string_equal(attribute(one, "postrider.outcome"), "dead_letter");
	assert_string_equal(attribute(one, "postrider.failed_attempts"), "2");
	assert_string_equal(attribute(one, "error.type"), "sqlstate:23505");
	assert_null(attribute(one, "messaging.kafka.offset"));
	assert_true(
		cJSON_GetNumberValue(cJSON_GetObjectItem(cJSON_GetObjectItem(one, "status"), "code")) == 2);
	cJSON_Delete(whole);
	pr_buf_free(&b);
}

static char somewhere[64]; /* a port that takes connections and never answers */

static int silent_server(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(at);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&at, n), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &n), 0);
	(void)snprintf(somewhere, sizeof(somewhere), "http://127.0.0.1:%d/v1/traces", ntohs(at.sin_port));
	return fd;
}

static struct pr_tracer *tracer(struct pr_tracing_conf *conf, struct pr_metrics *m)
{
	struct pr_tracer *t;
	struct pr_err err;

	assert_int_equal(pr_tracer_start(conf, NULL, m, &t, &err), 0);
	return t;
}

static uint64_t count(struct pr_metrics *m, const char *outcome)
{
	char want[100];
	char *text = pr_metrics_render(m, NULL, 0, NULL), *at;
	uint64_t n;

	(void)snprintf(want, sizeof(want), "postrider_tracing_spans_total{outcome=\"%s\"} ", outcome);
	at = strstr(text, want);
	n = at ? strtoull(at + strlen(want), NULL, 10) : UINT64_MAX;
	free(text);
	return n;
}

/* Nobody waits: what there is no room for is lost at once, and the rest when the time at the end is over. */
static void test_bounds(void **state)
{
	int fd = silent_server();
	struct pr_tracing_conf conf = { .endpoint = somewhere,
		.service = (char[]){ "s" },
		.sample = 1000000,
		.queue = 16,
		.timeout_us = 300 * PR_MS };
	struct pr_metrics *m = pr_metrics_new();
	struct pr_tracer *t = tracer(&conf, m);
	const struct pr_span s = { .kind = PR_SPAN_PRODUCER };
	uint64_t lost;

	(void)state;
	for (int i = 0; i < 2000; i++)
		pr_tracer_add(t, &s);
	lost = count(m, "dropped");
	if (lost < 2000 - 2 * 16 || lost > 2000 - 16)
		fail_msg("%llu of 2000 spans were dropped by a queue of 16", (unsigned long long)lost);
	assert_int_equal(pr_tracer_stop(t), 0);
	assert_int_equal(count(m, "dropped"), 2000);
	assert_int_equal(count(m, "sent"), 0);
	pr_metrics_free(m);
	(void)close(fd);
}

static void test_sampling(void **state)
{
	int fd = silent_server(), first, n = 0, n_half = 0;
	struct pr_tracing_conf conf = { .endpoint = somewhere,
		.service = (char[]){ "s" },
		.sample = 10000,
		.queue = 16,
		.timeout_us = 300 * PR_MS };
	struct pr_tracing_conf half = conf, none = conf;
	struct pr_metrics *m[3] = { pr_metrics_new(), pr_metrics_new(), pr_metrics_new() };
	struct pr_tracer *t = tracer(&conf, m[0]), *t_half, *t_none;
	unsigned char id[16] = { 0 }, seen[8] = { 0 }, next[8];
	struct pr_trace a, b;

	(void)state;
	half.sample = 500000;
	none.sample = 0;
	t_half = tracer(&half, m[1]);
	t_none = tracer(&none, m[2]);
	for (uint32_t i = 1; i <= 20000; i++) {
		memcpy(id, &i, sizeof(i));
		assert_false(pr_tracer_takes(t_none, NULL, 0, id, &a, &first));
		if (pr_tracer_takes(t_half, NULL, 0, id, &b, &first))
			n_half++;
		if (!pr_tracer_takes(t, "rubbish", 7, id, &a, &first))
			continue;
		n++;
		/* Who takes more takes the same, and calls it the same. */
		assert_true(pr_tracer_takes(t_half, NULL, 0, id, &b, &first) && first);
		assert_memory_equal(a.id, id, 16);
		assert_memory_equal(a.span, b.span, 8);
	}
	if (n < 120 || n > 280 || n_half < 9500 || n_half > 10500)
		fail_msg("%d and %d of 20000 at 0.01 and 0.5", n, n_half);
	assert_true(pr_tracer_takes(t_none, GOOD, strlen(GOOD), id, &a, &first) && !first);
	assert_false(pr_tracer_takes(
		t_half, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", 55, id, &a, &first));
	assert_false(pr_tracer_takes(NULL, GOOD, strlen(GOOD), id, &a, &first));
	pr_tracer_span_id(t, seen);
	pr_tracer_span_id(t, next);
	assert_memory_not_equal(seen, next, 8);
	assert_int_equal(pr_tracer_stop(t) | pr_tracer_stop(t_half) | pr_tracer_stop(t_none), 0);
	for (int i = 0; i < 3; i++)
		pr_metrics_free(m[i]);
	(void)close(fd);
}

static void test_off(void **state)
{
	struct pr_tracing_conf conf = { .endpoint = NULL };
	struct pr_metrics *m = pr_metrics_new();
	struct pr_tracer *t = tracer(&conf, m);
	char *text = pr_metrics_render(m, NULL, 0, NULL);

	(void)state;
	assert_null(t);
	assert_null(strstr(text, "tracing"));
	pr_tracer_add(t, &(struct pr_span){ .offset = 1 });
	pr_tracer_dropped(t, 1);
	assert_int_equal(pr_tracer_stop(t), 0);
	free(text);
	pr_metrics_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_traceparent),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_sampling),
		cmocka_unit_test(test_off),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
