/* consumers/sink/hours.c -- which hours are over. A partition whose end was asked for, and is published up to
 * there, is as far as the time of the question, also when it is idle or never had a record; an hour is over
 * when all partitions of its topic are past it. Its manifest says so then, in the transaction that remembers
 * it: what a death leaves out is done by the next look. Refuses to call an hour over while Kafka does not
 * answer for one of its partitions, or a transaction is open in it. */
#include "consumers/sink/files.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_US    (2 * PR_SEC) /* between two questions */
#define AGAIN_US  (10 * PR_SEC)
#define ANSWER_MS 1000
#define AT_ONCE   20 /* manifests of one transaction */

/* The first hour that is not over at that time. */
static int64_t over_by(const struct sink_lane *sl, int64_t us)
{
	return us < 0 ? INT64_MIN : sink_hour_of(us - manifest_after(sl));
}

/* ---------------------------------------------------------------- how far a partition is */

/* The end is not that of read_committed: what a transaction that is open holds is still to come. */
static int open_asker(struct sink_lane *sl, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = sl->l->c->conf;
	static const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.sink.ends" }, /* required by the library, never joined */
		{ "isolation.level", "read_uncommitted" },
		{ "enable.auto.commit", "false" },
		{ "allow.auto.create.topics", "false" },
		{ "topic.metadata.refresh.interval.ms", "10000" },
		{ NULL, NULL },
	};

	if (!sl->asker)
		sl->asker = pr_kafka_new(RD_KAFKA_CONSUMER, conf->kafka.brokers, &conf->kafka.properties,
			ours, NULL, NULL, err);
	return sl->asker ? 0 : -1;
}

static int is_to_be_asked(const struct sink_part *sp, int64_t now)
{
	return sp->recovered && !atomic_load(&sp->part->dead) && sp->end_asked_us == 0 &&
	       over_by(sp->lane, now) > over_by(sp->lane, sp->ended_us);
}

static struct sink_part *part_at(struct sink_lane *sl, const rd_kafka_topic_partition_t *at)
{
	struct sink_part *sp = sl->parts;

	while (sp->part->partition != at->partition || strcmp(sp->part->topic, at->topic) != 0)
		sp = sp->after;
	return sp;
}

static void take_ends(struct sink_lane *sl, const rd_kafka_topic_partition_list_t *list, int64_t asked_us)
{
	for (int i = 0; i < list->cnt; i++) {
		struct sink_part *sp = part_at(sl, &list->elems[i]);

		if (list->elems[i].err)
			continue; /* asked again */
		sp->end = list->elems[i].offset;
		sp->end_asked_us = asked_us;
	}
}

/* Blocks for ANSWER_MS at most. */
static int ask(struct sink_lane *sl, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(8);
	int64_t now = pr_wall_us();
	rd_kafka_resp_err_t code;
	int rc = 0;

	for (const struct sink_part *sp = sl->parts; sp; sp = sp->after)
		if (is_to_be_asked(sp, now))
			rd_kafka_topic_partition_list_add(list, sp->part->topic, sp->part->partition)
				->offset = RD_KAFKA_OFFSET_END;
	if (list->cnt > 0)
		rc = open_asker(sl, err);
	while (sl->asker && rd_kafka_poll(sl->asker, 0) > 0) /* its errors, which others tell too */
		;
	if (rc == 0 && list->cnt > 0) {
		code = rd_kafka_offsets_for_times(sl->asker, list, ANSWER_MS);
		rc = code ? pr_kafka_fail(err, code, "cannot ask where the topics end") : 0;
	}
	if (rc == 0)
		take_ends(sl, list, now);
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

static int remember(
	struct sink_lane *sl, const char *topic, int32_t partition, int64_t us, struct pr_err *err)
{
	char number[16], at[24];
	const char *params[] = { sl->l->c->conf->group, topic, number, at };

	(void)snprintf(number, sizeof(number), "%" PRId32, partition);
	(void)snprintf(at, sizeof(at), "%" PRId64, us);
	return pr_pg_run(sl->l->pg, sql_sink_ended, 4, params, err);
}

/* Parts whose end is published by now. It is so whoever owns them meanwhile. */
static int settle(struct sink_lane *sl, struct pr_err *err)
{
	for (struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		if (sp->end_asked_us == 0 || (sp->end > 0 && sp->part->lane[0].next < sp->end))
			continue;
		if (remember(sl, sp->part->topic, sp->part->partition, sp->end_asked_us, err) < 0)
			return -1;
		sp->ended_us = sp->end_asked_us;
		sp->end_asked_us = 0;
		sl->hours_end = 1;
	}
	return 0;
}

/* ---------------------------------------------------------------- how far a topic is */

static int64_t number(const PGresult *res, int row, int column)
{
	return strtoll(PQgetvalue(res, row, column), NULL, 10);
}

/* *ret_to: all partitions that Kafka has of it are past it, -1 when that is not known; *ret_from: it is said
 * so far. */
static int read_watermarks(
	struct sink_lane *sl, const char *topic, int64_t *ret_from, int64_t *ret_to, struct pr_err *err)
{
	char partitions[16];
	const char *params[] = { sl->l->c->conf->group, topic, partitions };
	struct pr_topic_info info;
	PGresult *res;

	if (open_asker(sl, err) < 0 || pr_kafka_topic_info(sl->asker, topic, ANSWER_MS, &info, err) < 0)
		return -1;
	(void)snprintf(partitions, sizeof(partitions), "%d", info.exists ? info.partitions : 0);
	res = pr_pg_exec(sl->l->pg, sql_sink_watermarks, 3, params, err);
	if (!res)
		return -1;
	*ret_to = number(res, 0, 0);
	*ret_from = number(res, 0, 1);
	PQclear(res);
	return 0;
}

/* In a transaction. *to is moved back when there are more hours than are done at once. */
static PGresult *read_hours(
	struct sink_lane *sl, const char *topic, int64_t from_us, int64_t *to, struct pr_err *err)
{
	char from[24], until[24], most[16];
	const char *params[] = { sl->l->c->conf->group, topic, from, until, most };
	PGresult *res;
	int n;

	(void)snprintf(from, sizeof(from), "%" PRId64, from_us < 0 ? 0 : over_by(sl, from_us));
	(void)snprintf(until, sizeof(until), "%" PRId64, over_by(sl, *to));
	(void)snprintf(most, sizeof(most), "%d", AT_ONCE);
	res = pr_pg_exec(sl->l->pg, sql_sink_hours, 5, params, err);
	n = res ? PQntuples(res) : 0;
	if (n == AT_ONCE)
		*to = number(res, n - 1, 0) + 3600 * PR_SEC + manifest_after(sl);
	return res;
}

/* If we die here, some manifests say that they are complete, which they are, and the next look writes all of
 * them. */
static int write_over(
	struct sink_lane *sl, const char *topic, int64_t from, int64_t to, int *ret_more, struct pr_err *err)
{
	int64_t all = to;
	PGresult *res = read_hours(sl, topic, from, &to, err);
	int rc = res ? remember(sl, topic, -1, to, err) : -1;

	for (int i = 0; rc == 0 && i < PQntuples(res); i++)
		rc = manifest_write(sl, topic, PQgetvalue(res, i, 0), err);
	PQclear(res);
	*ret_more = to < all;
	return rc;
}

/* What has ended of one topic. */
static int look_at(struct sink_lane *sl, const char *topic, struct pr_err *err)
{
	int64_t from = -1, to = -1;
	int rc, more = 0;

	if (read_watermarks(sl, topic, &from, &to, err) < 0)
		return -1;
	if (to < 0 || over_by(sl, to) <= over_by(sl, from))
		return 0;
	if (pr_pg_run(sl->l->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	rc = write_over(sl, topic, from, to, &more, err);
	sl->hours_end |= more;
	if (!pr_pg_ok(sl->l->pg))
		return -1;
	return pr_pg_run(sl->l->pg, rc < 0 ? "ROLLBACK" : "COMMIT", 0, NULL, rc < 0 ? NULL : err) < 0 ? -1
												      : rc;
}

/* Each topic once: of its parts here, the first one speaks for it. */
static int speaks(const struct sink_lane *sl, const struct sink_part *sp)
{
	const struct sink_part *first = sl->parts;

	while (strcmp(first->part->topic, sp->part->topic) != 0)
		first = first->after;
	return first == sp;
}

static int look(struct sink_lane *sl, struct pr_err *err)
{
	int rc = 0;

	if (ask(sl, err) < 0 || settle(sl, err) < 0)
		return -1;
	if (!sl->hours_end)
		return 0;
	sl->hours_end = 0;
	for (const struct sink_part *sp = sl->parts; sp && rc == 0; sp = sp->after)
		if (speaks(sl, sp))
			rc = look_at(sl, sp->part->topic, err);
	sl->hours_end |= rc < 0;
	return rc;
}

void hours_look(struct sink_lane *sl)
{
	struct pr_err err;
	int rc;

	if (!manifests_are_kept(sl))
		return;
	manifests_write(sl, atomic_load(&sl->l->c->stopping));
	if (atomic_load(&sl->l->c->stopping) || pr_mono_us() < sl->hours_next_us)
		return;
	rc = look(sl, &err);
	if (rc < 0 && !sl->hours_failed)
		pr_log_err(PR_WARN, "which hours are over is not known, it is asked again", &err);
	sl->hours_failed = rc < 0;
	sl->hours_next_us = pr_mono_us() + (rc < 0 ? AGAIN_US : sl->hours_end ? 0 : ASK_US);
}

void hours_close(struct sink_lane *sl)
{
	if (sl->asker)
		rd_kafka_destroy(sl->asker);
	sl->asker = NULL;
}
