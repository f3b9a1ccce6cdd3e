/* consumers/watch.c -- once a second: how long the logs are, positions that are not in them, what is wrong
 * with reading, and the commit that tells Kafka how far we are. The database is the truth about that; what
 * Kafka is told is for tools that show lag. Refuses to wait for an answer: what must be waited for is an
 * errand. */
#include "consumers/group.h"
#include "consumers/store.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"

#include <inttypes.h>
#include <string.h>

#define TICK_US         PR_SEC
#define UNBROKEN_US     (15 * PR_SEC) /* longer than a session */
#define GAP_US          (5 * PR_SEC)  /* a partition in a gap looks whether its position was moved */
#define GROUP_ERR_US    (30 * PR_SEC)
#define FINAL_COMMIT_MS 2000

/* ---------------------------------------------------------------- gaps */

static void read_end(struct group *g, struct slot *s)
{
	int64_t low, high;

	if (s->part &&
		rd_kafka_get_watermark_offsets(g->rk, s->topic, s->partition, &low, &high) ==
			RD_KAFKA_RESP_ERR_NO_ERROR &&
		high >= 0)
		atomic_store(&s->part->end, high);
}

static void read_on(struct group *g, struct slot *s, int64_t position)
{
	s->position = position;
	s->state = SLOT_READING;
	s->touched = 1;
	s->anew = g->reassign = 1;
}

/* Its position is not in the log. Retention was faster than we: a matter of the config. Beyond the end: the
 * log is another one, and nobody but people can say what to do. */
static void mind_gap(struct group *g, struct slot *s, int64_t now)
{
	if (s->state != SLOT_GAP || !s->part)
		return;
	if (s->low < 0 && !errand_log(&g->errand, s->topic, s->partition, &s->low, &s->high))
		return;
	atomic_store(&s->part->low, s->low);
	if (s->position >= s->low && s->position <= s->high) {
		read_on(g, s, s->position);
		return;
	}
	if (s->position < s->low && strcmp(g->c->conf->on_gap, "skip") == 0) {
		pr_log(PR_WARN, "records were gone before they were read: stepped over",
			KS("topic", s->topic), KI("partition", s->partition), KI("from", s->position),
			KI("to", s->low));
		atomic_fetch_add(&g->c->lost, (uint64_t)(s->low - s->position));
		s->gap = 0;
		read_on(g, s, s->low);
		return;
	}
	if (!s->gap || s->retry_us == 0) {
		s->gap = 1;
		s->retry_us = now + GAP_US;
	} else if (now >= s->retry_us) {
		/* Somebody may have moved the position. What is in the lanes is handled first: it is gone
		 * from the log. */
		s->low = -1;
		s->retry_us = now + GAP_US;
		if (slot_drained(s))
			slot_want(g, s, now);
	}
}

static void tell_gaps(struct group *g)
{
	const struct slot *first = NULL;
	struct pr_err err;
	int n = 0;

	for (size_t i = 0; i < g->slots_n; i++) {
		if (!g->slots[i].gap)
			continue;
		first = n++ ? first : &g->slots[i];
	}
	if (!first) {
		health_trouble(g->c, TROUBLE_GAP, NULL);
		return;
	}
	if (first->low < 0)
		return; /* being looked at again: what was said stands */
	if (first->position < first->low) {
		(void)pr_fail(&err, PR_STOP,
			"records %" PRId64 " to %" PRId64 " of partition %" PRId32
			" of \"%s\" were deleted before they were read",
			first->position, first->low - 1, first->partition, first->topic);
		(void)pr_hint(&err, "on_gap = \"skip\" goes on behind them");
	} else {
		(void)pr_fail(&err, PR_STOP,
			"position %" PRId64 " of partition %" PRId32
			" of \"%s\" is past its end, which is %" PRId64,
			first->position, first->partition, first->topic, first->high);
		(void)pr_hint(&err, "the topic was made anew or has lost records; set %s to where to go on",
			g->c->topics
				? "the group's offset (kafka-consumer-groups --reset-offsets, while nobody"
				  " of it runs)"
				: "next_offset in inbox.position");
		if (g->c->store->hint_anew)
			g->c->store->hint_anew(g->c, first->topic, &err);
	}
	if (n > 1)
		(void)pr_wrap(&err, "%d partitions stand, the first", n);
	health_trouble(g->c, TROUBLE_GAP, &err);
}

static void tell_kafka(struct group *g, int64_t now)
{
	struct pr_err err;
	int rc = errand_kafka(&g->errand, &err);

	if (rc == 0 && g->group_err.text[0] && now - g->group_err_us < GROUP_ERR_US) {
		err = g->group_err;
		rc = 1;
	}
	for (size_t i = 0; rc == 0 && i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (!s->words[0])
			continue;
		(void)pr_fail(&err, PR_RETRY, "cannot read partition %" PRId32 " of \"%s\": %s", s->partition,
			s->topic, s->words);
		rc = 1;
	}
	if (rc >= 0)
		health_trouble(g->c, TROUBLE_KAFKA, rc ? &err : NULL);
}

void watch_tick(struct group *g, int64_t now)
{
	if (now < g->tick_us)
		return;
	g->tick_us = now + TICK_US;
	for (size_t i = 0; i < g->slots_n; i++) {
		read_end(g, &g->slots[i]);
		mind_gap(g, &g->slots[i], now);
	}
	tell_gaps(g);
	tell_kafka(g, now);
}

/* ---------------------------------------------------------------- the lazy commit */

static rd_kafka_topic_partition_list_t *positions(struct group *g)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)g->slots_n);
	int64_t next;

	for (size_t i = 0; i < g->slots_n; i++) {
		next = g->slots[i].part ? part_next(g->slots[i].part) : -1;
		if (next >= 0)
			rd_kafka_topic_partition_list_add(list, g->slots[i].topic, g->slots[i].partition)
				->offset = next;
	}
	return list;
}

/* For tools that show lag; whether it works is of no interest here. Without a database the offsets are the
 * truth, and the lanes' own. Not while a broker may be away: a commit that waits for it is signed with the
 * member's id of now, and once our session has ended and we have joined anew under the same name, Kafka takes
 * it for a stranger's and shuts this handle out for ever. */
void watch_commit(struct group *g, int64_t now)
{
	int64_t broken = pr_kafka_last_words_us();
	rd_kafka_topic_partition_list_t *list;

	if (g->c->topics || now < g->commit_us || !atomic_load(&g->c->kafka_up) ||
		(broken != INT64_MIN && now - broken < UNBROKEN_US))
		return;
	g->commit_us = now + COMMIT_US;
	list = positions(g);
	if (list->cnt > 0)
		(void)rd_kafka_commit(g->rk, list, 1);
	rd_kafka_topic_partition_list_destroy(list);
}

void watch_final_commit(struct group *g)
{
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_queue_t *answer;
	rd_kafka_event_t *event;

	if (g->c->topics)
		return;
	list = positions(g);
	answer = rd_kafka_queue_new(g->rk);
	if (list->cnt > 0 &&
		rd_kafka_commit_queue(g->rk, list, answer, NULL, NULL) == RD_KAFKA_RESP_ERR_NO_ERROR) {
		event = rd_kafka_queue_poll(answer, FINAL_COMMIT_MS);
		if (event)
			rd_kafka_event_destroy(event);
	}
	rd_kafka_queue_destroy(answer);
	rd_kafka_topic_partition_list_destroy(list);
}
