/* consumers/spring.c -- headers of failed records, written and read as Spring Kafka and Kafka Connect do.
 * Refuses to trust what it reads: a due time a year ahead would stop a partition. */
#include "consumers/spring.h"

#include "lib/clock.h"
#include "lib/kafka.h"

#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ATTEMPTS_MOST 1000000
#define DUE_MOST_US   (8 * 86400 * PR_SEC) /* after the record's own time; longer than any of our delays */

/* ---------------------------------------------------------------- writing */

static void put(rd_kafka_headers_t *h, const char *name, const void *value, size_t n)
{
	(void)rd_kafka_header_add(h, name, -1, value, (ssize_t)n);
}

static void put_text(rd_kafka_headers_t *h, const char *name, const char *text)
{
	put(h, name, text, strlen(text));
}

/* As BigInteger.toByteArray: the sign is the first bit, and no byte says only that. */
static void put_big(rd_kafka_headers_t *h, const char *name, int64_t v)
{
	uint64_t be = htobe64((uint64_t)v);
	const unsigned char *p = (const unsigned char *)&be;
	size_t n = sizeof(be);

	for (; n > 1 && ((p[0] == 0 && p[1] < 0x80) || (p[0] == 0xff && p[1] >= 0x80)); n--)
		p++;
	put(h, name, p, n);
}

void spring_put_failure(rd_kafka_headers_t *h, const struct failure *f)
{
	uint32_t partition = htobe32((uint32_t)f->from.partition);
	uint64_t offset = htobe64((uint64_t)f->from.offset),
		 time = htobe64((uint64_t)(f->from.time_us / PR_MS));

	put_text(h, "kafka_dlt-original-topic", f->from.topic);
	put(h, "kafka_dlt-original-partition", &partition, sizeof(partition));
	put(h, "kafka_dlt-original-offset", &offset, sizeof(offset));
	if (f->from.time_us >= 0) {
		put(h, "kafka_dlt-original-timestamp", &time, sizeof(time));
		put_text(h, "kafka_dlt-original-timestamp-type", "CreateTime");
	}
	put_text(h, "kafka_dlt-original-consumer-group", f->group);
	put_text(h, "kafka_dlt-exception-fqcn", f->cause);
	put_text(h, "kafka_dlt-exception-message", f->reason);
	put_text(h, "kafka_dlt-exception-stacktrace", "");
}

/* Connect writes numbers as text. */
void connect_put_failure(rd_kafka_headers_t *h, const struct failure *f)
{
	char text[24];

	put_text(h, "__connect.errors.topic", f->from.topic);
	(void)snprintf(text, sizeof(text), "%" PRId32, f->from.partition);
	put_text(h, "__connect.errors.partition", text);
	(void)snprintf(text, sizeof(text), "%" PRId64, f->from.offset);
	put_text(h, "__connect.errors.offset", text);
	put_text(h, "__connect.errors.connector.name", f->group);
	put_text(h, "__connect.errors.task.id", "0");
	put_text(h, "__connect.errors.stage", "TASK_PUT");
	put_text(h, "__connect.errors.class.name", f->handler);
	put_text(h, "__connect.errors.exception.class.name", f->cause);
	put_text(h, "__connect.errors.exception.message", f->reason);
	put_text(h, "__connect.errors.exception.stacktrace", "");
	(void)snprintf(text, sizeof(text), "%u", f->attempts);
	put_text(h, "postrider-attempts", text);
}

void spring_put_retry(rd_kafka_headers_t *h, unsigned attempt, int64_t due_us, int64_t time_us)
{
	uint32_t n = htobe32(attempt);

	put(h, SPRING_ATTEMPTS, &n, sizeof(n));
	/* Never too early, not even by what is cut off. */
	put_big(h, SPRING_DUE, (due_us + PR_MS - 1) / PR_MS);
	put_big(h, SPRING_TIME, time_us >= 0 ? time_us / PR_MS : -1);
}

int spring_is_failure(const char *name)
{
	static const char *const prefixes[] = { "retry_topic-", "kafka_dlt-", "__connect.errors.",
		"postrider-attempts" };

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return 1;
	return 0;
}

/* ---------------------------------------------------------------- reading */

int spring_number(const void *bytes, size_t n, int64_t *ret)
{
	const unsigned char *p = bytes;
	uint64_t v;

	if (!p || n < 1 || n > 8)
		return -1;
	v = p[0] >= 0x80 ? UINT64_MAX : 0;
	for (size_t i = 0; i < n; i++)
		v = v << 8 | p[i];
	*ret = (int64_t)v;
	return 0;
}

/* The last header of that name, of 1 to 8 bytes. */
static int number_of(const rd_kafka_headers_t *h, const char *name, size_t *ret_size, int64_t *ret)
{
	const void *value;

	if (rd_kafka_header_get_last(h, name, &value, ret_size) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return -1;
	return spring_number(value, *ret_size, ret);
}

static void read_attempts(const rd_kafka_headers_t *h, struct message *m)
{
	int64_t n;
	size_t size;

	if (number_of(h, SPRING_ATTEMPTS, &size, &n) < 0 || (size != 1 && size != 4))
		return;
	if (size == 1)
		n &= 0xff; /* older ones wrote one unsigned byte */
	if (n >= 1 && n <= ATTEMPTS_MOST)
		m->attempts = (unsigned)n - 1;
}

static void read_origin(const rd_kafka_headers_t *h, struct message *m, const char *topic, size_t topic_n)
{
	int64_t partition, offset, ms;
	size_t size;

	if (number_of(h, "kafka_dlt-original-partition", &size, &partition) < 0 || size != 4 ||
		partition < 0 || number_of(h, "kafka_dlt-original-offset", &size, &offset) < 0 || size != 8 ||
		offset < 0)
		return;
	m->origin = pr_calloc(1, sizeof(*m->origin));
	*m->origin = (struct origin){ .partition = (int32_t)partition, .offset = offset, .time_us = -1 };
	m->origin->topic = m->origin->name;
	memcpy(m->origin->name, topic, topic_n);
	if ((number_of(h, SPRING_TIME, &size, &ms) == 0 ||
		    number_of(h, "kafka_dlt-original-timestamp", &size, &ms) == 0) &&
		ms >= 0 && ms < INT64_MAX / PR_MS)
		m->origin->time_us = ms * PR_MS;
}

/* A record that somebody put back into the topic that it came from begins anew. */
void spring_read(struct message *m)
{
	rd_kafka_headers_t *h;
	const void *topic;
	size_t size, topic_n;
	int64_t ms, now = pr_wall_us(), since;

	if (rd_kafka_message_headers(m->rkm, &h) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	if (rd_kafka_header_get_last(h, "kafka_dlt-original-topic", &topic, &topic_n) !=
			RD_KAFKA_RESP_ERR_NO_ERROR ||
		!topic || !pr_kafka_topic_valid(topic, topic_n) ||
		(topic_n == strlen(m->topic) && memcmp(topic, m->topic, topic_n) == 0))
		return;
	read_attempts(h, m);
	read_origin(h, m, topic, topic_n);
	since = m->time_us >= 0 && m->time_us < now ? m->time_us : now;
	if (number_of(h, SPRING_DUE, &size, &ms) == 0 && ms > 0 && ms < INT64_MAX / PR_MS &&
		ms * PR_MS <= since + DUE_MOST_US)
		m->due_us = ms * PR_MS;
}
