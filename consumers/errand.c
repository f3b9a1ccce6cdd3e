/* consumers/errand.c -- the thread that waits in the poll thread's place: for Postgres (claims) and for Kafka
 * (is it there, which offsets does a log hold). Refuses to decide anything. */
#include "consumers/group.h"
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"
#include "lib/pg.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KAFKA_ASKED_US (2 * PR_SEC) /* Kafka is asked for a sign of life so often */
#define NUDGE_MS       1000
#define MAX_WAIT_MS    5000 /* for one answer of Kafka: as long as a stop may have to wait for us */

void wanted_free(struct claim_wanted *wanted, size_t n)
{
	for (size_t i = 0; wanted && i < n; i++)
		free((void *)(uintptr_t)wanted[i].topic);
	free(wanted);
}

/* ---------------------------------------------------------------- claims */

static void no_claim(struct errand *e)
{
	for (size_t i = 0; e->parts && i < e->wanted_n; i++)
		part_drop(e->parts[i]);
	free(e->parts);
	wanted_free(e->wanted, e->wanted_n);
	e->parts = NULL;
	e->wanted = NULL;
	e->wanted_n = 0;
	e->claimed = 0;
}

int errand_claim(struct errand *e, unsigned round, struct claim_wanted *wanted, size_t n)
{
	int rc = -1;

	(void)pthread_mutex_lock(&e->mutex);
	if (!e->wanted) {
		e->wanted = wanted;
		e->wanted_n = n;
		e->round = round;
		(void)pthread_cond_broadcast(&e->changed);
		rc = 0;
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return rc;
}

int errand_claimed(
	struct errand *e, unsigned *round, struct claim_wanted **wanted, struct part ***parts, size_t *n)
{
	int claimed;

	(void)pthread_mutex_lock(&e->mutex);
	claimed = e->claimed;
	if (claimed) {
		*round = e->round;
		*wanted = e->wanted;
		*parts = e->parts;
		*n = e->wanted_n;
		e->wanted = NULL;
		e->parts = NULL;
		e->wanted_n = 0;
		e->claimed = 0;
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return claimed;
}

void errand_round(struct errand *e, unsigned round)
{
	(void)pthread_mutex_lock(&e->mutex);
	e->current = round;
	(void)pthread_mutex_unlock(&e->mutex);
}

/* Counted among the lanes that are broken: what they get done does not mend what a claim stands at, nor a
 * claim what they stand at. */
static void count(struct errand *e, int broken)
{
	if (broken != e->said)
		atomic_fetch_add(&e->c->broken_lanes, broken ? 1 : -1);
	e->said = broken;
}

/* A refusal is said and tried again like an absence: rights and migrations arrive while we wait. */
static void say(struct errand *e, const struct pr_err *err)
{
	count(e, err != NULL);
	if (err && err->kind != PR_RETRY)
		health_trouble(e->c, TROUBLE_REFUSED, err);
	else if (err || atomic_load(&e->c->broken_lanes) == 0)
		health_trouble(e->c, e->c->store->trouble, err);
	if (!err)
		health_trouble(e->c, TROUBLE_REFUSED, NULL);
}

/* Once we stop nothing is claimed any more: no lane would begin with it. */
static int is_waiting(const struct errand *e)
{
	return e->wanted && !e->claimed && !atomic_load(&e->c->stopping);
}

/* One try, unlocked: what is wanted belongs to this thread until claimed is set. */
static void claim(struct errand *e)
{
	struct part **parts = pr_calloc(e->wanted_n, sizeof(*parts));
	struct pr_err err;
	int rc = e->c->store->claim(e->c, e->rk, &e->pg, e->wanted, e->wanted_n, parts, &err);

	if (rc < 0) {
		free(parts);
		if (atomic_load(&e->c->stopping))
			return;
		say(e, &err);
		e->again_us = pr_mono_us() + pr_backoff_us(e->failures++, 50 * PR_MS, 3 * PR_SEC);
		return;
	}
	if (e->said)
		say(e, NULL);
	e->failures = 0;
	e->again_us = 0;
	(void)pthread_mutex_lock(&e->mutex);
	e->parts = parts;
	e->claimed = 1;
	(void)pthread_mutex_unlock(&e->mutex);
	group_wake(e->c);
}

/* ---------------------------------------------------------------- Kafka */

static int wait_ms(const struct errand *e)
{
	int64_t ms = e->c->conf->kafka.timeout_us / PR_MS;

	return ms < MAX_WAIT_MS ? (int)ms : MAX_WAIT_MS;
}

int errand_log(struct errand *e, const char *topic, int32_t partition, int64_t *low, int64_t *high)
{
	int known = 0;

	(void)pthread_mutex_lock(&e->mutex);
	if (!e->log_topic) {
		e->log_topic = pr_strdup(topic);
		e->log_partition = partition;
		e->log_known = 0;
		(void)pthread_cond_broadcast(&e->changed);
	} else if (e->log_known && e->log_partition == partition && strcmp(e->log_topic, topic) == 0) {
		*low = e->log_low;
		*high = e->log_high;
		known = 1;
	}
	if (e->log_known) {
		free(e->log_topic);
		e->log_topic = NULL;
		e->log_known = 0;
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return known;
}

static void look_at_log(struct errand *e)
{
	int64_t low = -1, high = -1;
	rd_kafka_resp_err_t code;

	code = rd_kafka_query_watermark_offsets(
		e->rk, e->log_topic, e->log_partition, &low, &high, wait_ms(e));
	(void)pthread_mutex_lock(&e->mutex);
	if (code || low < 0 || high < low) {
		free(e->log_topic); /* asked again */
		e->log_topic = NULL;
	} else {
		e->log_low = low;
		e->log_high = high;
		e->log_known = 1;
	}
	(void)pthread_mutex_unlock(&e->mutex);
	group_wake(e->c);
}

int errand_kafka(struct errand *e, struct pr_err *err)
{
	int rc = -1;

	(void)pthread_mutex_lock(&e->mutex);
	if (e->kafka_asked) {
		*err = e->kafka;
		rc = e->kafka.text[0] != '\0';
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return rc;
}

static void topic_trouble(struct pr_err *err, const char *topic, rd_kafka_resp_err_t code)
{
	(void)pr_kafka_fail(err, code, topic);
	(void)pr_wrap(err, "cannot read topic");
	if (code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
		(void)pr_hint(err, "create the topic; it is read as soon as it is there");
	else if (code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
		(void)pr_hint(err, "the consumer's user needs the right to read and describe the topic");
}

/* Topics with a handle of ours are part of every answer. */
static void ask_kafka(struct errand *e)
{
	const struct rd_kafka_metadata *md = NULL;
	int64_t since = pr_mono_us() - KAFKA_ASKED_US;
	struct pr_err err = { 0 };
	rd_kafka_resp_err_t code;

	code = rd_kafka_metadata(e->rk, 0, NULL, &md, wait_ms(e));
	if (code) {
		(void)pr_kafka_silent(since, "no broker answers", code, &err);
	} else {
		atomic_store(&e->c->kafka_contact_us, pr_mono_us());
	}
	for (int i = 0; md && i < md->topic_cnt; i++)
		for (size_t k = 0; k < e->topics_n; k++)
			if (strcmp(md->topics[i].topic, rd_kafka_topic_name(e->topics[k])) == 0 &&
				md->topics[i].err &&
				md->topics[i].err != RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)
				topic_trouble(&err, md->topics[i].topic, md->topics[i].err);
	if (md)
		rd_kafka_metadata_destroy(md);
	atomic_store(&e->c->kafka_up, code == RD_KAFKA_RESP_ERR_NO_ERROR);
	(void)pthread_mutex_lock(&e->mutex);
	e->kafka = err;
	e->kafka_asked = 1;
	(void)pthread_mutex_unlock(&e->mutex);
	e->ask_us = pr_mono_us() + KAFKA_ASKED_US;
}

/* ---------------------------------------------------------------- nudges */

int errand_nudge(struct errand *e, const char *topic, int32_t partition)
{
	int rc = -1;

	(void)pthread_mutex_lock(&e->mutex);
	if (!e->nudge_topic) {
		e->nudge_topic = pr_strdup(topic);
		e->nudge_partition = partition;
		(void)pthread_cond_broadcast(&e->changed);
		rc = 0;
	} else {
		e->nudge_refused = 1;
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return rc;
}

/* The answer is of no interest: the question goes through the thread that is to be woken. */
static void *nudge_thread(void *arg)
{
	struct errand *e = arg;
	int64_t low, high;
	int again;

	(void)pthread_mutex_lock(&e->mutex);
	while (!e->end) {
		if (!e->nudge_topic) {
			(void)pthread_cond_wait(&e->changed, &e->mutex);
			continue;
		}
		(void)pthread_mutex_unlock(&e->mutex);
		(void)rd_kafka_query_watermark_offsets(
			e->rk, e->nudge_topic, e->nudge_partition, &low, &high, NUDGE_MS);
		(void)pthread_mutex_lock(&e->mutex);
		free(e->nudge_topic);
		e->nudge_topic = NULL;
		again = e->nudge_refused;
		e->nudge_refused = 0;
		if (again)
			group_wake(e->c);
	}
	(void)pthread_mutex_unlock(&e->mutex);
	return NULL;
}

/* ---------------------------------------------------------------- the thread */

static void sleep_until(struct errand *e, int64_t until_us)
{
	struct timespec at = { .tv_sec = until_us / PR_SEC, .tv_nsec = until_us % PR_SEC * 1000 };

	(void)pthread_cond_timedwait(&e->changed, &e->mutex, &at);
}

static void *errand_thread(void *arg)
{
	struct errand *e = arg;
	int64_t now, until;
	int to_claim, to_look;

	(void)pthread_mutex_lock(&e->mutex);
	while (!e->end) {
		now = pr_mono_us();
		if (e->wanted && !e->claimed && e->round != e->current)
			no_claim(e);
		to_claim = is_waiting(e) && now >= e->again_us;
		to_look = e->log_topic && !e->log_known;
		if (!to_claim && !to_look && now < e->ask_us) {
			until = is_waiting(e) && e->again_us < e->ask_us ? e->again_us : e->ask_us;
			sleep_until(e, until);
			continue;
		}
		(void)pthread_mutex_unlock(&e->mutex);
		if (to_claim)
			claim(e);
		if (to_look)
			look_at_log(e);
		if (pr_mono_us() >= e->ask_us)
			ask_kafka(e);
		(void)pthread_mutex_lock(&e->mutex);
	}
	(void)pthread_mutex_unlock(&e->mutex);
	pr_pg_close(e->pg);
	e->pg = NULL;
	return NULL;
}

void errand_start(struct errand *e, struct consumer *c, rd_kafka_t *rk)
{
	struct pr_strs topics = topics_read(c);
	pthread_condattr_t attr;

	memset(e, 0, sizeof(*e));
	e->c = c;
	e->rk = rk;
	(void)pthread_mutex_init(&e->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&e->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	e->topics = pr_calloc(topics.n + 1, sizeof(*e->topics));
	for (size_t i = 0; i < topics.n; i++)
		if (topics.v[i][0] != '^')
			e->topics[e->topics_n++] = rd_kafka_topic_new(rk, topics.v[i], NULL);
	e->started = pthread_create(&e->thread, NULL, errand_thread, e) == 0;
	e->nudging = pthread_create(&e->nudger, NULL, nudge_thread, e) == 0;
	if (!e->started || !e->nudging) {
		pr_log(PR_ERROR, "cannot start a thread");
		consumer_stop(c, PR_EX_UNAVAILABLE);
	}
}

int errand_stop(struct errand *e)
{
	struct timespec deadline;

	if (!e->started && !e->nudging)
		return 0;
	(void)pthread_mutex_lock(&e->mutex);
	e->end = 1;
	(void)pthread_cond_broadcast(&e->changed);
	(void)pthread_mutex_unlock(&e->mutex);
	(void)clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += MAX_WAIT_MS / 1000 + 1;
	if (e->started && pthread_timedjoin_np(e->thread, NULL, &deadline) != 0)
		return -1;
	e->started = 0;
	if (e->nudging && pthread_timedjoin_np(e->nudger, NULL, &deadline) != 0)
		return -1;
	e->nudging = 0;
	count(e, 0);
	no_claim(e);
	free(e->nudge_topic);
	e->nudge_topic = NULL;
	free(e->log_topic);
	e->log_topic = NULL;
	for (size_t i = 0; i < e->topics_n; i++)
		rd_kafka_topic_destroy(e->topics[i]);
	free(e->topics);
	e->topics = NULL;
	e->topics_n = 0;
	(void)pthread_cond_destroy(&e->changed);
	(void)pthread_mutex_destroy(&e->mutex);
	return 0;
}
