/* consumers/topics.c -- the topics of a group without a database: their names, and that they are there before
 * anything is handled. Refuses to begin while one is missing: a message that fails would have nowhere to go.
 */
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"
#include "lib/pulse.h"
#include "lib/uuid.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MADE_US       (2 * PR_SEC) /* until a new topic is known */
#define ROUND_US      (200 * PR_MS)
#define AGAIN_US      (200 * PR_MS)
#define AGAIN_MAX_US  (5 * PR_SEC)
#define HEADERS_BYTES (64 * 1024) /* what a record gains by our headers, and more */

/* ---------------------------------------------------------------- names */

static void name_family(struct family *f, const struct pr_consumer_conf *conf, const char *source, int stages)
{
	f->source = source;
	f->retry = pr_calloc((size_t)stages + 1, sizeof(*f->retry));
	for (int i = 0; i < stages; i++)
		f->retry[i].topic = pr_consumer_retry_topic(conf, source, i + 1);
	f->dead.topic = pr_consumer_dead_topic(conf, source);
}

struct topics *topics_new(const struct pr_consumer_conf *conf)
{
	struct topics *t = pr_calloc(1, sizeof(*t));
	unsigned char id[16] = { 0 };

	(void)!getrandom(id, sizeof(id), 0);
	(void)pr_uuid_print(id, t->process);
	(void)pthread_mutex_init(&t->mutex, NULL);
	t->stages = (int)conf->retry.delays.n;
	t->n = conf->kafka.topics.n;
	t->family = pr_calloc(t->n, sizeof(*t->family));
	t->read = pr_calloc(t->n * ((size_t)t->stages + 1), sizeof(*t->read));
	for (size_t i = 0; i < t->n; i++) {
		name_family(&t->family[i], conf, conf->kafka.topics.v[i], t->stages);
		t->read[t->read_n++] = conf->kafka.topics.v[i];
		for (int k = 0; k < t->stages; k++)
			t->read[t->read_n++] = t->family[i].retry[k].topic;
	}
	return t;
}

void topics_free(struct topics *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n; i++) {
		for (int k = 0; k < t->stages; k++)
			free(t->family[i].retry[k].topic);
		free(t->family[i].retry);
		free(t->family[i].dead.topic);
	}
	topics_member_drop(t->membership);
	free(t->family);
	free(t->read);
	(void)pthread_mutex_destroy(&t->mutex);
	free(t);
}

const struct family *topics_find(const struct topics *t, const char *topic, int *ret_stage)
{
	for (size_t i = 0; i < t->n; i++) {
		*ret_stage = 0;
		if (strcmp(t->family[i].source, topic) == 0)
			return &t->family[i];
		for (int k = 0; k < t->stages; k++) {
			*ret_stage = k + 1;
			if (strcmp(t->family[i].retry[k].topic, topic) == 0)
				return &t->family[i];
		}
	}
	return NULL;
}

int topics_next(const struct consumer *c, const struct message *m, const struct outcome *why)
{
	const struct pr_consumer_conf *conf = c->conf;
	int stages = c->topics->stages, next = m->part->stage;

	do
		next++;
	while (next < stages && pr_consumer_delay_us(conf, next) < why->retry_after_us);
	return next < stages ? next : stages;
}

int topics_last(const struct consumer *c, const struct message *m)
{
	return m->part->stage >= c->topics->stages;
}

struct pr_strs topics_read(const struct consumer *c)
{
	if (!c->topics)
		return c->conf->kafka.topics;
	return (struct pr_strs){ c->topics->read, c->topics->read_n };
}

/* ---------------------------------------------------------------- that they are there */

static int need(
	rd_kafka_t *rk, const char *topic, int timeout_ms, struct pr_topic_info *ret, struct pr_err *err)
{
	if (pr_kafka_topic_info(rk, topic, timeout_ms, ret, err) < 0)
		return -1;
	if (ret->exists)
		return 0;
	(void)pr_fail(err, PR_RETRY, "topic \"%s\" is not there", topic);
	return pr_hint(err, "create the topic; the consumer goes on by itself");
}

/* A topic that was made a moment ago is not known to every broker yet. */
static int await(
	rd_kafka_t *rk, const char *topic, int timeout_ms, struct pr_topic_info *ret, struct pr_err *err)
{
	int64_t until = pr_mono_us() + MADE_US;
	int rc;

	while ((rc = need(rk, topic, timeout_ms, ret, err)) < 0 && pr_mono_us() < until)
		(void)poll(NULL, 0, 20);
	return rc;
}

/* As its source: as many partitions, and room for what the source takes and our headers. */
static int make(rd_kafka_t *rk, struct sink *s, const struct pr_topic_info *source, int timeout_ms,
	struct pr_err *err)
{
	struct pr_topic_info info;
	char bytes[64];
	const char *configs[] = { "cleanup.policy=delete", NULL, NULL };
	int created = 0;

	if (pr_kafka_topic_info(rk, s->topic, timeout_ms, &info, err) < 0)
		return -1;
	if (!info.exists) {
		(void)snprintf(bytes, sizeof(bytes), "max.message.bytes=%" PRId64,
			source->max_message_bytes + HEADERS_BYTES);
		if (source->max_message_bytes > 0)
			configs[1] = bytes;
		if (pr_kafka_create_topic(
			    rk, s->topic, source->partitions, -1, configs, timeout_ms, &created, err) < 0)
			return pr_hint(err,
				"the consumer's user needs the right to create it; or create it, with"
				" as many partitions as the topic it belongs to");
		if (created)
			pr_log(PR_INFO, "topic created", KS("topic", s->topic),
				KI("partitions", source->partitions));
		if (await(rk, s->topic, timeout_ms, &info, err) < 0)
			return -1;
	}
	s->partitions = info.partitions;
	return 0;
}

static int make_all(struct consumer *c, rd_kafka_t *rk, struct pr_err *err)
{
	int timeout_ms = (int)(c->conf->kafka.timeout_us / PR_MS);
	struct topics *t = c->topics;
	struct pr_topic_info source;

	for (size_t i = 0; i < t->n; i++) {
		struct family *f = &t->family[i];

		if (need(rk, f->source, timeout_ms, &source, err) < 0)
			return -1;
		for (int k = 0; k < t->stages; k++)
			if (make(rk, &f->retry[k], &source, timeout_ms, err) < 0)
				return -1;
		if (make(rk, &f->dead, &source, timeout_ms, err) < 0)
			return -1;
	}
	return 0;
}

/* ---------------------------------------------------------------- the keeper's thread */

/* A broker that is away, a topic or right that is missing: said, and looked at again. */
static void prepare(struct consumer *c, rd_kafka_t *rk, unsigned *failures, int64_t *next_us)
{
	struct pr_err err;

	if (pr_mono_us() < *next_us)
		return;
	if (make_all(c, rk, &err) < 0) {
		health_trouble(c, TROUBLE_KAFKA, &err);
		*next_us = pr_mono_us() + pr_backoff_us((*failures)++, AGAIN_US, AGAIN_MAX_US);
		return;
	}
	health_trouble(c, TROUBLE_KAFKA, NULL);
	atomic_store(&c->ready, 1);
}

/* What waits in our partitions of retry topics. */
static void count_waiting(struct consumer *c)
{
	int64_t events, waiting = 0;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++) {
		events = c->parts[i]->stage > 0 ? health_part_events(c->parts[i]) : 0;
		waiting += events > 0 ? events : 0;
	}
	(void)pthread_mutex_unlock(&c->mutex);
	atomic_store(&c->group_parked_events, (uint64_t)waiting);
}

static rd_kafka_t *open_client(struct consumer *c)
{
	const struct pr_consumer_conf *conf = c->conf;
	const struct pr_kafka_prop ours[] = { { NULL, NULL } };
	struct pr_err err;
	rd_kafka_t *rk = pr_kafka_new(
		RD_KAFKA_PRODUCER, conf->kafka.brokers, &conf->kafka.properties, ours, NULL, NULL, &err);

	if (!rk) {
		health_trouble(c, TROUBLE_REFUSED, &err);
		consumer_stop(c, err.exit ? err.exit : PR_EX_FAILED);
	}
	return rk;
}

void *topics_keeper(void *consumer)
{
	struct consumer *c = consumer;
	struct pollfd wake = { .fd = c->wake_fd, .events = POLLIN };
	rd_kafka_t *rk = open_client(c);
	int64_t next_us = 0;
	unsigned failures = 0;

	while (!atomic_load(&c->stopping)) {
		pr_pulse("keeper", c->conf->kafka.timeout_us);
		if (rk && !atomic_load(&c->ready))
			prepare(c, rk, &failures, &next_us);
		if (rk && atomic_load(&c->ready)) {
			rd_kafka_destroy(rk);
			rk = NULL;
		}
		keeper_watch(c);
		count_waiting(c);
		(void)poll(&wake, 1, (int)(ROUND_US / PR_MS));
	}
	if (rk)
		rd_kafka_destroy(rk);
	return NULL;
}
