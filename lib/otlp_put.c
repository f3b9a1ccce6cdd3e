/* lib/otlp_put.c -- spans as the JSON of OTLP: ids in hex, 64-bit numbers as strings, enumerations as
 * numbers, names in lowerCamelCase. Attributes follow OpenTelemetry's conventions for messaging on Kafka
 * (1.27 and later). Refuses to know where it goes. */
#include "lib/otlp.h"

#include <inttypes.h>
#include <string.h>

#define STATUS_ERROR 2

static void put_hex(struct pr_buf *b, const char *name, const unsigned char *id, size_t n)
{
	pr_buf_printf(b, "\"%s\":\"", name);
	for (size_t i = 0; i < n; i++)
		pr_buf_printf(b, "%02x", id[i]);
	pr_buf_puts(b, "\",");
}

static void begin(struct pr_buf *b, const char *key)
{
	if (b->s[b->len - 1] == '}')
		pr_buf_puts(b, ",");
	pr_buf_printf(b, "{\"key\":\"%s\",\"value\":", key);
}

static void put_text(struct pr_buf *b, const char *key, const char *value)
{
	if (!value || !*value)
		return;
	begin(b, key);
	pr_buf_puts(b, "{\"stringValue\":");
	pr_buf_json(b, value, strlen(value));
	pr_buf_puts(b, "}}");
}

static void put_number(struct pr_buf *b, const char *key, int64_t value)
{
	begin(b, key);
	pr_buf_printf(b, "{\"intValue\":\"%" PRId64 "\"}}", value);
}

static void put_attributes(struct pr_buf *b, const struct pr_otlp_resource *r, const struct pr_span *s)
{
	const char *operation = s->kind == PR_SPAN_PRODUCER ? "send" : "process";
	char partition[16];

	(void)snprintf(partition, sizeof(partition), "%" PRId32, s->partition);
	pr_buf_puts(b, "\"attributes\":[");
	put_text(b, "messaging.system", "kafka");
	put_text(b, "messaging.operation.name", operation);
	put_text(b, "messaging.operation.type", operation);
	put_text(b, "messaging.destination.name", s->topic);
	put_text(b, "messaging.destination.partition.id", partition);
	if (s->offset >= 0)
		put_number(b, "messaging.kafka.offset", s->offset);
	put_text(b, "messaging.message.id", s->message_id);
	put_text(b, "messaging.consumer.group.name", r->group);
	put_text(b, "postrider.outcome", s->outcome);
	if (s->attempts > 0)
		put_number(b, "postrider.failed_attempts", s->attempts);
	put_text(b, "error.type", s->error);
	pr_buf_puts(b, "]");
}

static void put_span(struct pr_buf *b, const struct pr_otlp_resource *r, const struct pr_span *s)
{
	static const unsigned char none[8];

	pr_buf_puts(b, "{");
	put_hex(b, "traceId", s->trace, sizeof(s->trace));
	put_hex(b, "spanId", s->id, sizeof(s->id));
	if (memcmp(s->parent, none, sizeof(none)) != 0)
		put_hex(b, "parentSpanId", s->parent, sizeof(s->parent));
	pr_buf_printf(b, "\"name\":\"%s ", s->kind == PR_SPAN_PRODUCER ? "send" : "process");
	/* A topic's name needs no escape: Kafka takes letters, digits, ".", "_" and "-". */
	pr_buf_printf(b,
		"%s\",\"kind\":%d,\"startTimeUnixNano\":\"%" PRId64 "000\",\"endTimeUnixNano\":\"%" PRId64
		"000\",",
		s->topic, s->kind, s->start_us, s->end_us < s->start_us ? s->start_us : s->end_us);
	put_attributes(b, r, s);
	pr_buf_puts(b, ",\"status\":{");
	if (*s->error) {
		pr_buf_printf(b, "\"code\":%d,\"message\":", STATUS_ERROR);
		pr_buf_json(b, s->error, strlen(s->error));
	}
	pr_buf_puts(b, "}}");
}

void pr_otlp_put(struct pr_buf *b, const struct pr_otlp_resource *r, const struct pr_span *spans, size_t n)
{
	pr_buf_puts(b, "{\"resourceSpans\":[{\"resource\":{\"attributes\":[");
	put_text(b, "service.name", r->service);
	put_text(b, "service.version", PR_VERSION);
	put_text(b, "service.instance.id", r->instance);
	pr_buf_puts(b, "]},\"scopeSpans\":[{\"scope\":{\"name\":\"postrider\",\"version\":\"" PR_VERSION
		       "\"},\"spans\":[");
	for (size_t i = 0; i < n; i++) {
		if (i > 0)
			pr_buf_puts(b, ",");
		put_span(b, r, &spans[i]);
	}
	pr_buf_puts(b, "]}]}]}");
}
