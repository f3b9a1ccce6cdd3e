/* relay/topics.c -- routes by the row's topic or the config's template, and remembers what the
 * cluster said. Refuses to create topics: a broker that may, does it when asked about one. */
#include "relay/topics.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <stdlib.h>
#include <string.h>

#define HASH_SIZE 16384 /* a power of two, more than limits.topics twice over would be slow, not wrong */
#define KNOWN_US  (60 * PR_SEC) /* what the cluster said of a topic is believed so long over sessions */
#define MARK      "${aggregatetype}"

/* Routes: what stands in the row -> topic. kind 't' by the row's topic, 'a' by its aggregatetype. */
struct route {
	char kind;
	struct span name; /* owned */
	struct topic *topic;
	struct route *next;
};

struct topics {
	struct relay *r;
	int one_for_all; /* the template names one topic, whatever the aggregatetype */
	struct route *hash[HASH_SIZE];
	struct topic *all;
	int64_t n;
};

struct topics *topics_new(struct relay *r)
{
	struct topics *t = pr_calloc(1, sizeof(*t));

	t->r = r;
	t->one_for_all = !strstr(r->conf->route.topic, MARK);
	return t;
}

static void free_routes(struct topics *t)
{
	struct route *route, *next;

	for (size_t i = 0; i < HASH_SIZE; i++) {
		for (route = t->hash[i]; route; route = next) {
			next = route->next;
			free((void *)(uintptr_t)route->name.s);
			free(route);
		}
	}
}

void topics_free(struct topics *t)
{
	struct topic *topic, *next;

	if (!t)
		return;
	topics_drop_handles(t);
	free_routes(t);
	for (topic = t->all; topic; topic = next) {
		next = topic->next;
		free(topic->name);
		free(topic->opened);
		free(topic);
	}
	free(t);
}

/* FNV-1a (Fowler, Noll, Vo; public domain). */
static size_t hash_of(char kind, const char *s, size_t n)
{
	uint64_t h = 14695981039346656037ULL ^ (unsigned char)kind;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)s[i]) * 1099511628211ULL;
	return (size_t)(h ^ (h >> 32)) & (HASH_SIZE - 1);
}

static struct topic *make_topic(struct topics *t, const char *name, struct pr_err *err)
{
	struct relay_metrics *m = &t->r->m;
	struct topic *topic;

	for (topic = t->all; topic; topic = topic->next)
		if (strcmp(topic->name, name) == 0)
			return topic;
	if (t->n >= setting(&t->r->conf->limits.topics)) {
		(void)pr_fail(err, PR_STOP, "events for more than %lld topics", (long long)t->n);
		(void)pr_hint(err, "raise limits.topics, or look at what writes \"%s\"", name);
		return NULL;
	}
	topic = pr_calloc(1, sizeof(*topic));
	topic->name = pr_strdup(name);
	topic->valid = pr_kafka_topic_valid(name, strlen(name));
	topic->published = pr_series_get(m->published, (const char *const[]){ name });
	topic->published_bytes = pr_series_get(m->published_bytes, (const char *const[]){ name });
	topic->next = t->all;
	t->all = topic;
	t->n++;
	return topic;
}

/* The template with ${aggregatetype} put in; malloc'd. */
static char *expand(const char *template, const struct span *aggregatetype)
{
	const char *at = strstr(template, MARK);

	if (!at)
		return pr_strdup(template);
	return pr_asprintf("%.*s%.*s%s", (int)(at - template), template, (int)aggregatetype->n,
		aggregatetype->s, at + sizeof(MARK) - 1);
}

static struct topic *find(struct topics *t, char kind, const struct span *name, struct pr_err *err)
{
	size_t h = hash_of(kind, name->s, name->n);
	struct topic *topic;
	struct route *route;
	char *text;

	for (route = t->hash[h]; route; route = route->next)
		if (route->kind == kind && route->name.n == name->n &&
			memcmp(route->name.s, name->s, name->n) == 0)
			return route->topic;
	text = kind == 'a' ? expand(t->r->conf->route.topic, name)
			   : pr_asprintf("%.*s", (int)name->n, name->s);
	topic = make_topic(t, text, err);
	free(text);
	if (!topic)
		return NULL;
	route = pr_calloc(1, sizeof(*route));
	route->kind = kind;
	route->name.s = memcpy(pr_malloc(name->n + 1), name->s, name->n);
	route->name.n = name->n;
	route->topic = topic;
	route->next = t->hash[h];
	t->hash[h] = route;
	return topic;
}

struct topic *topics_of(struct topics *t, const struct event *e, struct pr_err *err)
{
	static const struct span any = { "", 0 };

	if (e->topic.s)
		return find(t, 't', &e->topic, err);
	return find(t, 'a', t->one_for_all ? &any : &e->aggregatetype, err);
}

struct topic *topics_get(struct topics *t, const char *name, size_t len, struct pr_err *err)
{
	struct span span = { name, (uint32_t)len };

	return find(t, 't', &span, err);
}

struct topic *topics_all(struct topics *t)
{
	return t->all;
}

void topics_doubt(struct topics *t)
{
	for (struct topic *topic = t->all; topic; topic = topic->next)
		topic->asked_us = 0;
}

void topics_miss(struct topic *topic, const char *reason, const char *code)
{
	if (!topic->missing)
		pr_log(PR_WARN, "topic cannot be written to, its events wait", KS("topic", topic->name),
			KS("reason", reason));
	topic->missing = 1;
	(void)snprintf(topic->reason, sizeof(topic->reason), "%s", reason);
	(void)snprintf(topic->code, sizeof(topic->code), "%s", code);
	topic->look_at_us = pr_mono_us() + pr_backoff_us(topic->looks++, PR_SEC / 4, 5 * PR_SEC);
	topic->proven = 0;
	topic->asked_us = 0;
	if (topic->rkt)
		rd_kafka_topic_destroy(topic->rkt);
	topic->rkt = NULL;
}

static void learn(struct topic *topic, const struct pr_topic_info *info)
{
	topic->partitions = info->partitions;
	topic->max_bytes = info->max_message_bytes > 0 ? info->max_message_bytes : INT64_MAX;
	topic->asked_us = pr_mono_us();
}

static int open_handle(struct topic *topic, rd_kafka_t *rk, struct pr_err *err)
{
	topic->rkt = rd_kafka_topic_new(rk, topic->name, NULL);
	return topic->rkt ? 0 : pr_kafka_fail(err, rd_kafka_last_error(), topic->name);
}

int topics_look(struct topics *t, struct topic *topic, rd_kafka_t *rk, struct pr_err *err)
{
	struct pr_topic_info info;
	struct pr_err why;

	if (topic->rkt || (topic->missing && pr_mono_us() < topic->look_at_us))
		return 0;
	if (!topic->missing && topic->asked_us && pr_mono_us() - topic->asked_us < KNOWN_US)
		return open_handle(topic, rk, err);
	if (pr_kafka_topic_info(rk, topic->name, (int)(t->r->conf->kafka.timeout_us / PR_MS), &info, &why) <
		0) {
		if (why.kind == PR_RETRY) {
			*err = why;
			return -1;
		}
		topics_miss(topic, why.text, why.code);
		return 0;
	}
	if (!info.exists) {
		topics_miss(topic, "the topic does not exist", "UNKNOWN_TOPIC_OR_PART");
		return 0;
	}
	if (topic->missing)
		pr_log(PR_INFO, "topic is there now", KS("topic", topic->name));
	topic->missing = 0;
	learn(topic, &info);
	return open_handle(topic, rk, err);
}

int topics_ask_again(struct topics *t, struct topic *topic, rd_kafka_t *rk, int now, struct pr_err *err)
{
	struct pr_topic_info info;
	struct pr_err why;

	if (!now && pr_mono_us() < topic->look_at_us)
		return 0;
	topic->look_at_us = pr_mono_us() + PR_SEC;
	if (pr_kafka_topic_info(rk, topic->name, (int)(t->r->conf->kafka.timeout_us / PR_MS), &info, &why) <
		0) {
		if (why.kind != PR_RETRY)
			return 0; /* the produce will say it */
		*err = why;
		return -1;
	}
	if (info.exists)
		learn(topic, &info);
	return 0;
}

void topics_opened(struct topics *t)
{
	for (struct topic *topic = t->all; topic; topic = topic->next) {
		for (int i = 0; i < topic->opened_cap && topic->opened_n < topic->partitions; i++) {
			if (topic->opened[i] != PARTITION_OPENING)
				continue;
			topic->opened[i] = PARTITION_OPEN;
			topic->opened_n++;
		}
	}
}

int64_t topics_smallest(const struct topics *t, int64_t most)
{
	for (const struct topic *topic = t->all; topic; topic = topic->next)
		if (!topic->missing && topic->max_bytes > 0 && topic->max_bytes < most)
			most = topic->max_bytes;
	return most;
}

void topics_drop_handles(struct topics *t)
{
	for (struct topic *topic = t->all; topic; topic = topic->next) {
		if (topic->rkt)
			rd_kafka_topic_destroy(topic->rkt);
		topic->rkt = NULL;
		topic->n_events = 0;
		topic->opened_n = 0;
		if (topic->opened)
			memset(topic->opened, 0, (size_t)topic->opened_cap);
	}
}
