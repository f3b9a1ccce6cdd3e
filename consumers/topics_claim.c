/* consumers/topics_claim.c -- where to begin, and as whom: the group's offsets, and the generation of the
 * group that a lane's transactions are bound to. Refuses to guess where an offset that is not decided yet
 * will be: Kafka answers when it is. */
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/kafka.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARK    "postrider/1"
#define WAIT_MS 5000 /* for one answer: as long as a stop may have to wait for us */

/* ---------------------------------------------------------------- membership */

struct membership *topics_member(struct topics *t)
{
	struct membership *m;

	(void)pthread_mutex_lock(&t->mutex);
	m = t->membership;
	if (m)
		atomic_fetch_add(&m->refs, 1);
	(void)pthread_mutex_unlock(&t->mutex);
	return m;
}

void topics_member_drop(struct membership *m)
{
	if (!m || atomic_fetch_sub(&m->refs, 1) != 1)
		return;
	rd_kafka_consumer_group_metadata_destroy(m->md);
	free(m);
}

/* Between two memberships there is no id, and Kafka would take offsets of nobody from anybody. */
static int has_id(rd_kafka_t *rk)
{
	char *id = rd_kafka_memberid(rk);
	int has = id && *id;

	if (id)
		rd_kafka_mem_free(rk, id);
	return has;
}

static rd_kafka_consumer_group_metadata_t *metadata(rd_kafka_t *rk)
{
	rd_kafka_consumer_group_metadata_t *md = has_id(rk) ? rd_kafka_consumer_group_metadata(rk) : NULL;

	if (!md || has_id(rk))
		return md;
	rd_kafka_consumer_group_metadata_destroy(md);
	return NULL;
}

void topics_join(struct consumer *c, rd_kafka_t *rk)
{
	rd_kafka_consumer_group_metadata_t *md = rk ? metadata(rk) : NULL;
	struct membership *m = NULL, *old;

	if (md) {
		m = pr_calloc(1, sizeof(*m));
		atomic_init(&m->refs, 1);
		m->md = md;
	}
	(void)pthread_mutex_lock(&c->topics->mutex);
	old = c->topics->membership;
	c->topics->membership = m;
	(void)pthread_mutex_unlock(&c->topics->mutex);
	topics_member_drop(old);
}

void topics_ask_member(struct consumer *c)
{
	atomic_store(&c->topics->behind, 1);
	group_wake(c);
}

void topics_join_asked(struct consumer *c, rd_kafka_t *rk)
{
	if (c->topics && atomic_exchange(&c->topics->behind, 0))
		topics_join(c, rk);
}

/* ---------------------------------------------------------------- marks */

const char *mark_put(char *buf, const struct topics *t, int64_t offset, int64_t batch, int64_t attempts)
{
	(void)snprintf(buf, MARK_SIZE, MARK " %" PRId64 " %" PRId64 " %" PRId64 " %s", offset, batch,
		attempts, t->process);
	return buf;
}

/* One that we left ourselves, before the partition went and came back, is no crash: here we are. */
void mark_read(struct part_lane *pl, const struct topics *t, const char *mark, size_t n)
{
	int64_t offset, batch, attempts;
	char text[MARK_SIZE], process[MARK_SIZE];

	if (!mark || n == 0 || n >= sizeof(text))
		return;
	memcpy(text, mark, n);
	text[n] = '\0';
	if (sscanf(text, MARK " %" SCNd64 " %" SCNd64 " %" SCNd64 " %40s", &offset, &batch, &attempts,
		    process) != 4 ||
		batch < 1 || attempts < 1)
		return;
	pl->attempt_offset = offset;
	pl->attempt_batch = batch;
	pl->attempts = strcmp(process, t->process) == 0 ? attempts - 1 : attempts;
}

/* ---------------------------------------------------------------- claims */

/* Spread over the workers: a source's partition and that of its retry topics are not all at one. */
static int first_worker(
	const struct topics *t, const struct family *f, int stage, int32_t partition, int workers)
{
	return (int)(((size_t)(f - t->family) + (size_t)stage + (size_t)partition) % (size_t)workers);
}

static struct part *new_part(struct consumer *c, const rd_kafka_topic_partition_t *at, int workers)
{
	struct part *p = pr_calloc(1, sizeof(*p) + sizeof(p->lane[0]));
	int64_t next = at->offset >= 0 ? at->offset : -1;
	const struct family *f;

	atomic_init(&p->refs, 1);
	p->topic = pr_strdup(at->topic);
	p->partition = at->partition;
	p->lane_count = p->own_lane = p->wanders = 1;
	p->workers = workers;
	f = topics_find(c->topics, at->topic, &p->stage);
	p->first = f ? first_worker(c->topics, f, p->stage, at->partition, workers) : 0;
	p->epoch = atomic_load(&c->rebalances);
	p->fresh = next < 0;
	p->lane[0].next = next;
	atomic_init(&p->lane[0].shown, next);
	atomic_init(&p->lane[0].oldest_us, INT64_MAX);
	mark_read(&p->lane[0], c->topics, at->metadata, at->metadata_size);
	atomic_init(&p->read_through, next);
	atomic_init(&p->end, -1);
	return p;
}

static int check(const rd_kafka_topic_partition_list_t *list, struct pr_err *err)
{
	for (int i = 0; i < list->cnt; i++)
		if (list->elems[i].err)
			return pr_kafka_fail(err, list->elems[i].err, list->elems[i].topic);
	return 0;
}

int topics_claim(struct consumer *c, rd_kafka_t *rk, struct pr_pg **pg, const struct claim_wanted *wanted,
	size_t n, struct part **ret, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)n);
	rd_kafka_resp_err_t code;
	int64_t ms = c->conf->kafka.timeout_us / PR_MS;
	int workers = lanes_wanted(c), rc = 0;

	(void)pg;
	for (size_t i = 0; i < n; i++)
		rd_kafka_topic_partition_list_add(list, wanted[i].topic, wanted[i].partition);
	/* An offset whose transaction is open still makes this wait: until it is decided, or out of time. */
	code = rd_kafka_committed(rk, list, ms < WAIT_MS ? (int)ms : WAIT_MS);
	if (code)
		rc = pr_kafka_fail(err, code, c->conf->group);
	else
		rc = check(list, err);
	if (rc < 0) {
		(void)pr_wrap(err, "cannot read the group's offsets");
		err->kind = PR_RETRY;
	}
	for (size_t i = 0; i < n && rc == 0; i++)
		ret[i] = new_part(c, &list->elems[i], workers);
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}
