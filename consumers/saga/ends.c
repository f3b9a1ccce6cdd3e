/* consumers/saga/ends.c -- asks Kafka where the logs of the group's partitions end, and notes of each that is
 * handled up to there when it was asked: of ours as the lanes know it, of other members' as the database has
 * it. What a reader was told without asking may be old: after we stood still, or the network did, records lie
 * behind an end that nobody has told us yet. Refuses to note anything of a partition Kafka does not answer
 * for. */
#include "consumers/saga/saga.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/pg.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS 1000

/* A partition that another member has. */
struct other {
	char *topic;
	int32_t partition;
	int64_t next; /* its position in the database */
	struct log_end end;
	int there;
};

struct saga_ends {
	rd_kafka_t *rk; /* of its own: the group's is given up when Kafka shuts it out */
	struct part **parts;
	size_t n;
	size_t looked; /* n of the last look */
	struct other *others;
	size_t others_n;
	int64_t clock_us; /* the database's clock, less the monotonic one; late rather than early */
};

struct saga_ends *ends_new(void)
{
	return pr_calloc(1, sizeof(struct saga_ends));
}

void ends_free(struct saga_ends *e)
{
	if (e->rk)
		rd_kafka_destroy(e->rk);
	for (size_t i = 0; i < e->others_n; i++)
		free(e->others[i].topic);
	free(e->others);
	free(e);
}

static int open_asker(struct saga_ends *e, const struct pr_consumer_conf *conf, struct pr_err *err)
{
	const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.saga.ends" }, /* required by the library, never joined */
		/* The log's end, not that of what can be read of it: behind a transaction that is open stands
		 * what others have committed. */
		{ "isolation.level", "read_uncommitted" },
		{ "enable.auto.commit", "false" },
		{ "allow.auto.create.topics", "false" },
		{ "topic.metadata.refresh.interval.ms",
			"10000" }, /* as the member's: partitions may be added */
		{ NULL, NULL },
	};

	if (!e->rk)
		e->rk = pr_kafka_new(RD_KAFKA_CONSUMER, conf->kafka.brokers, &conf->kafka.properties, ours,
			NULL, NULL, err);
	return e->rk ? 0 : -1;
}

/* Ours, held, so that they may be revoked while Kafka is asked. */
static void hold_parts(struct saga_ends *e, struct consumer *c)
{
	(void)pthread_mutex_lock(&c->mutex);
	e->parts = pr_calloc(c->parts_n + 1, sizeof(*e->parts));
	e->n = 0;
	for (size_t i = 0; i < c->parts_n; i++)
		if (!atomic_load(&c->parts[i]->dead))
			e->parts[e->n++] = part_hold(c->parts[i]);
	(void)pthread_mutex_unlock(&c->mutex);
}

static void drop_parts(struct saga_ends *e)
{
	for (size_t i = 0; i < e->n; i++)
		part_drop(e->parts[i]);
	free(e->parts);
	e->parts = NULL;
	e->n = 0;
}

/* ---------------------------------------------------------------- what others have */

static int is_ours(const struct saga_ends *e, const char *topic, int32_t partition)
{
	for (size_t i = 0; i < e->n; i++)
		if (e->parts[i]->partition == partition && strcmp(e->parts[i]->topic, topic) == 0)
			return 1;
	return 0;
}

static struct other *other_of(struct saga_ends *e, const char *topic, int32_t partition)
{
	struct other *o;

	for (size_t i = 0; i < e->others_n; i++)
		if (e->others[i].partition == partition && strcmp(e->others[i].topic, topic) == 0)
			return &e->others[i];
	e->others = pr_realloc(e->others, (e->others_n + 1) * sizeof(*e->others));
	o = &e->others[e->others_n++];
	*o = (struct other){ .topic = pr_strdup(topic), .partition = partition };
	return o;
}

static void forget_absent(struct saga_ends *e)
{
	size_t n = 0;

	for (size_t i = 0; i < e->others_n; i++) {
		if (e->others[i].there)
			e->others[n++] = e->others[i];
		else
			free(e->others[i].topic);
	}
	e->others_n = n;
}

static int load_others(
	struct saga_ends *e, const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_engine_positions, 1, (const char *const[]){ conf->group }, err);

	if (!res)
		return -1;
	for (size_t i = 0; i < e->others_n; i++)
		e->others[i].there = 0;
	for (int i = 0; i < PQntuples(res); i++) {
		const char *topic = PQgetvalue(res, i, 0);
		int32_t partition = (int32_t)strtol(PQgetvalue(res, i, 1), NULL, 10);
		struct other *o;

		/* A topic that was read once keeps its positions. */
		if (is_ours(e, topic, partition) || !pr_consumer_reads(&conf->kafka.topics, topic))
			continue;
		o = other_of(e, topic, partition);
		o->there = 1;
		o->next = strtoll(PQgetvalue(res, i, 2), NULL, 10);
	}
	if (PQntuples(res) > 0)
		e->clock_us = strtoll(PQgetvalue(res, 0, 3), NULL, 10) - pr_mono_us();
	PQclear(res);
	forget_absent(e);
	return 0;
}

int64_t ends_others_us(const struct saga_ends *e, size_t ours)
{
	int64_t oldest = ours < e->looked ? 0 : INT64_MAX; /* one went to another member since */

	for (size_t i = 0; i < e->others_n; i++)
		if (e->others[i].end.idle_us < oldest)
			oldest = e->others[i].end.idle_us;
	return oldest;
}

int64_t ends_clock_us(const struct saga_ends *e)
{
	return e->clock_us;
}

/* ---------------------------------------------------------------- asking */

/* An end that was told once is waited for: where records come all the time there is always a newer one. 1:
 * there is none to wait for. */
static int settle(struct log_end *end, int handled)
{
	if (end->told_us && handled) {
		end->idle_us = end->told_us;
		end->told_us = 0;
	}
	return !end->told_us;
}

/* How many of them an end is to be asked for. */
static size_t settle_all(struct saga_ends *e)
{
	size_t to_ask = 0;

	for (size_t i = 0; i < e->n; i++) {
		struct part *p = e->parts[i];

		to_ask += (size_t)settle(&p->end_now, part_is_handled(p, p->end_now.told_end));
	}
	for (size_t i = 0; i < e->others_n; i++) {
		struct other *o = &e->others[i];

		to_ask += (size_t)settle(&o->end, o->next >= o->end.told_end || o->end.told_end == 0);
	}
	return to_ask;
}

/* Another's topic or partition that is not there (any more) has nothing to say: positions outlive them. One
 * that was added a moment ago is not known for as long as metadata may be old. */
static int is_gone(rd_kafka_resp_err_t code)
{
	return code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
	       code == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
}

/* 0, or the first of ours or others' that Kafka does not answer for. */
static const rd_kafka_topic_partition_t *take_answers(
	struct saga_ends *e, const rd_kafka_topic_partition_list_t *list, int64_t asked_us)
{
	const rd_kafka_topic_partition_t *bad = NULL;

	for (int i = 0; i < list->cnt; i++) {
		const rd_kafka_topic_partition_t *at = &list->elems[i];
		struct log_end *known;
		int64_t end = at->offset;

		if ((size_t)i >= e->n && is_gone(at->err)) {
			end = 0;
		} else if (at->err) {
			bad = bad ? bad : at;
			continue;
		}
		known = (size_t)i < e->n ? &e->parts[i]->end_now : &e->others[(size_t)i - e->n].end;
		if (known->told_us)
			continue;
		known->told_us = asked_us;
		known->told_end = end;
	}
	return bad;
}

static rd_kafka_topic_partition_list_t *all_ends(const struct saga_ends *e)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)(e->n + e->others_n));

	for (size_t i = 0; i < e->n; i++)
		rd_kafka_topic_partition_list_add(list, e->parts[i]->topic, e->parts[i]->partition)->offset =
			RD_KAFKA_OFFSET_END;
	for (size_t i = 0; i < e->others_n; i++)
		rd_kafka_topic_partition_list_add(list, e->others[i].topic, e->others[i].partition)->offset =
			RD_KAFKA_OFFSET_END;
	return list;
}

static int ask(struct saga_ends *e, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = all_ends(e);
	const rd_kafka_topic_partition_t *bad = NULL;
	int64_t asked_us = pr_mono_us();
	rd_kafka_resp_err_t code;
	int rc = 0;

	while (rd_kafka_poll(e->rk, 0) > 0) /* its errors, which others tell too */
		;
	code = rd_kafka_offsets_for_times(e->rk, list, ANSWER_MS);
	if (!code)
		bad = take_answers(e, list, asked_us);
	if (code)
		rc = pr_kafka_fail(err, code, "cannot ask where the topics end");
	else if (bad) {
		(void)pr_kafka_fail(err, bad->err, bad->topic);
		rc = pr_wrap(err, "cannot ask where partition %" PRId32 " ends", bad->partition);
	}
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

int ends_look(struct saga_ends *e, struct consumer *c, struct pr_pg *pg, struct pr_err *err)
{
	int rc = 0;

	hold_parts(e, c);
	if (e->n > 0 && load_others(e, c->conf, pg, err) < 0)
		rc = -1;
	else if (e->n > 0 && settle_all(e) > 0)
		rc = open_asker(e, c->conf, err) < 0 ? -1 : ask(e, err);
	(void)settle_all(e);
	e->looked = e->n;
	drop_parts(e);
	return rc;
}
