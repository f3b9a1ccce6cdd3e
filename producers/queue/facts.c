/* producers/queue/facts.c -- QueueStatusChecked: that somebody looked, and what he was told. A ring of fixed
 * size, and a thread with a session of its own that publishes it in batches. Refuses to slow a check down for
 * it: what finds no room is dropped and counted, and so is a batch that Postgres did not confirm (published
 * again it might be there twice). Logs nothing: the counter says it. */
#include "producers/queue/queue.h"

#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

#define BATCH   1000
#define REST_US (50 * PR_MS)

static struct fact *ring;
static size_t head, held; /* of conf.facts places */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct turns turns;
static struct pr_series *published, *dropped;

void facts_put(const struct fact *fact)
{
	size_t size = (size_t)conf.facts;
	int kept;

	(void)pthread_mutex_lock(&mutex);
	kept = held < size;
	if (kept)
		ring[(head + held++) % size] = *fact;
	(void)pthread_mutex_unlock(&mutex);
	if (!kept)
		pr_counter_add(dropped, 1);
}

static size_t take(struct fact *out)
{
	size_t size = (size_t)conf.facts, n;

	(void)pthread_mutex_lock(&mutex);
	n = held < BATCH ? held : BATCH;
	for (size_t i = 0; i < n; i++)
		out[i] = ring[(head + i) % size];
	head = (head + n) % size;
	held -= n;
	(void)pthread_mutex_unlock(&mutex);
	return n;
}

static void put_fact(struct pr_buf *b, const struct fact *f)
{
	char at[32];

	pr_buf_printf(b,
		"{\"aggregatetype\":\"queue\",\"aggregateid\":\"%s\",\"type\":\"QueueStatusChecked\","
		"\"payload\":{\"token_id\":\"%s\",\"user_id\":\"%s\",\"concert_id\":\"%lld\",\"status\":\"%"
		"s\","
		"\"position\":%lld,\"at\":\"%s\"}}",
		f->token, f->token, f->user, (long long)f->concert, state_word(f->state),
		(long long)f->position, pr_rfc3339(f->at_us, at));
}

static int publish(struct pr_pg *pg, const struct fact *facts, size_t n, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	int rc;

	pr_buf_puts(&b, "[");
	for (size_t i = 0; i < n; i++) {
		if (i)
			pr_buf_puts(&b, ",");
		put_fact(&b, &facts[i]);
	}
	pr_buf_puts(&b, "]");
	rc = pr_pg_run(pg, "SELECT outbox.publish_many($1::jsonb)", 1, (const char *const[]){ b.s }, err);
	pr_buf_free(&b);
	return rc;
}

/* A fact may be lost anyway: it need not wait for the disk. */
static struct pr_pg *session(struct pr_pg *pg, struct pr_err *err)
{
	struct pr_pg_opts opts = { .conninfo = conf.service.conninfo,
		.appname = "postrider-queue facts",
		.timeout_us = conf.service.timeout_us,
		.wake_fd = -1 };

	if (pg && pr_pg_ok(pg))
		return pg;
	pr_pg_close(pg);
	pg = NULL;
	if (pr_pg_open(&opts, &pg, err) < 0)
		return NULL;
	if (pr_pg_run(pg, "SET synchronous_commit = off", 0, NULL, err) == 0)
		return pg;
	pr_pg_close(pg);
	return NULL;
}

/* All there is, or until it fails. 0: Postgres is there. */
static int drain(struct pr_pg **pg, struct fact *batch)
{
	struct pr_err err;
	size_t n;

	*pg = session(*pg, &err);
	while (*pg && pr_pg_ok(*pg) && (n = take(batch)) > 0) {
		if (publish(*pg, batch, n, &err) == 0)
			pr_counter_add(published, n);
		else
			pr_counter_add(dropped, n);
	}
	return *pg && pr_pg_ok(*pg) ? 0 : -1;
}

static void *run(void *arg)
{
	struct fact *batch = pr_calloc(BATCH, sizeof(*batch));
	struct pr_pg *pg = NULL;
	unsigned failed = 0;

	(void)arg;
	while (turns_rest(&turns, failed ? pr_backoff_us(failed - 1, REST_US, PR_SEC) : REST_US))
		failed = drain(&pg, batch) < 0 ? failed + 1 : 0;
	if (!failed)
		(void)drain(&pg, batch);
	pr_pg_close(pg);
	free(batch);
	return NULL;
}

int facts_start(struct pr_metrics *metrics, struct pr_err *err)
{
	published = pr_series_one(pr_family_new(metrics, PR_COUNTER, "postrider_queue_facts_published_total",
		"", 0, "Facts about status checks that were published."));
	dropped = pr_series_one(pr_family_new(metrics, PR_COUNTER, "postrider_queue_facts_dropped_total", "",
		0, "Facts about status checks that were dropped: no room, or no Postgres."));
	ring = pr_calloc((size_t)conf.facts, sizeof(*ring));
	return turns_start(&turns, "facts", run, NULL, err);
}

void facts_stop(void)
{
	turns_stop(&turns);
	free(ring);
	ring = NULL;
}
