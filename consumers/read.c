/* consumers/read.c -- from the partitions' queues into the lanes, in turns and in lists. Refuses to read on
 * when so much waits for a full lane: the broker keeps the rest. */
#include "consumers/group.h"
#include "consumers/spring.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <stdlib.h>
#include <string.h>

#define TURN_MESSAGES 512 /* of one partition before the next one has its turn */
#define DRY_US        (4 * PR_MS)
#define MAX_DRY_US    (500 * PR_MS)
#define LIST_MESSAGES 256
#define LIST_BYTES    (256 << 10)

/* ---------------------------------------------------------------- lists */

static void flush_worker(struct group *g, int worker)
{
	struct out *o = &g->out[worker];

	if (o->n == 0)
		return;
	lane_push(g->c->lanes[worker], o->head);
	*o = (struct out){ 0 };
}

static void add(struct group *g, struct message *m)
{
	int worker = lane_number(m->part, m->lane);
	struct out *o = &g->out[worker];

	if (o->n == 0)
		o->tail = &o->head;
	*o->tail = m;
	o->tail = &m->next;
	o->n++;
	o->bytes += m->bytes;
	if (worker >= g->out_n)
		g->out_n = worker + 1;
	if (o->n >= LIST_MESSAGES || o->bytes >= LIST_BYTES)
		flush_worker(g, worker);
}

int64_t slot_through(const struct slot *s)
{
	int64_t through = s->position;

	for (int i = 0; s->held_bytes > 0 && i < s->part->lane_count; i++)
		if (s->held[i].head && s->held[i].head->offset < through)
			through = s->held[i].head->offset;
	return through;
}

/* Everything read so far is in the lanes before anybody sees that it was read: an idle lane moves its
 * position to read_through. */
static void flush_all(struct group *g)
{
	int64_t through;

	for (int i = 0; i < g->out_n; i++)
		flush_worker(g, i);
	for (size_t i = 0; i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (!s->touched)
			continue;
		s->touched = 0;
		through = slot_through(s);
		if (through > atomic_load_explicit(&s->part->read_through, memory_order_relaxed))
			atomic_store_explicit(&s->part->read_through, through, memory_order_release);
	}
}

/* ---------------------------------------------------------------- one partition */

/* What a partition's queue says besides records. */
static void heard(struct group *g, struct slot *s, const rd_kafka_message_t *rkm)
{
	switch ((int)rkm->err) {
	case RD_KAFKA_RESP_ERR__PARTITION_EOF:
		/* Control records of transactions stand before the end too, and are never shown. */
		if (rkm->offset > s->position)
			s->position = rkm->offset;
		s->touched = 1;
		s->words[0] = '\0';
		s->gap = 0;
		s->at_end = 1;
		break;
	case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
	case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
		if (s->state != SLOT_READING)
			break;
		s->state = SLOT_GAP;
		s->low = s->high = -1;
		s->retry_us = 0;
		g->tick_us = 0;
		break;
	default:
		(void)snprintf(s->words, sizeof(s->words), "%s", rd_kafka_message_errstr(rkm));
		g->tick_us = 0;
	}
}

/* In order within its lane: behind what is held of it. */
static void take(struct group *g, struct slot *s, struct message *m)
{
	struct held *h = &s->held[m->lane];

	if (m->due_us > 0 && m->due_us > pr_wall_us())
		s->due_us = m->due_us;
	if (!s->due_us && !h->head && lane_has_room(lane_of(g->c, s->part, m->lane))) {
		add(g, m);
		return;
	}
	if (!h->head)
		h->tail = &h->head;
	*h->tail = m;
	h->tail = &m->next;
	s->held_bytes += m->bytes;
}

/* What is held goes on where there is room by now, and not before its time. */
static void let_go(struct group *g, struct slot *s)
{
	int64_t now = s->held_bytes > 0 ? pr_wall_us() : 0;

	s->due_us = 0;
	for (int i = 0; s->held_bytes > 0 && i < s->part->lane_count; i++) {
		struct held *h = &s->held[i];

		while (h->head && lane_has_room(lane_of(g->c, s->part, i))) {
			struct message *m = h->head;

			if (m->due_us > now) {
				s->due_us = m->due_us;
				return;
			}
			h->head = m->next;
			m->next = NULL;
			s->held_bytes -= m->bytes;
			s->touched = 1;
			add(g, m);
		}
	}
}

/* librdkafka looks at a queue that was full only when its broker thread wakes, which is after a second at
 * worst (2.0.2; fetch.queue.backoff.ms of later ones is not there yet): a queue that runs dry before its end
 * wakes it. */
static void refill(struct group *g, struct slot *s)
{
	int64_t now;

	if (s->full && (!s->hot || rd_kafka_queue_length(s->queue) < QUEUE_MESSAGES / 2)) {
		s->full = errand_nudge(&g->errand, s->topic, s->partition) < 0;
		return;
	}
	if (s->hot || s->at_end)
		return;
	now = pr_mono_us();
	if (now - s->dry_us < s->dry_wait_us || errand_nudge(&g->errand, s->topic, s->partition) < 0)
		return;
	s->dry_us = now;
	s->dry_wait_us = s->dry_wait_us * 2 < MAX_DRY_US ? s->dry_wait_us * 2 : MAX_DRY_US;
}

/* A record that is to be handled, or NULL: handled before, by an earlier owner whose other lanes were behind.
 */
static struct message *wanted(struct slot *s, rd_kafka_message_t *rkm)
{
	struct part *p = s->part;
	struct message *m = message_of_record(rkm);

	m->topic = p->topic;
	m->lane = p->lane_count == 1 ? 0 : message_lane(m, p->lane_count);
	s->position = m->offset + 1;
	s->touched = 1;
	if (m->offset < atomic_load_explicit(&p->lane[m->lane].shown, memory_order_relaxed)) {
		message_free(m);
		return NULL;
	}
	m->part = part_hold(p);
	m->after = p->lane[m->lane].pushed;
	p->lane[m->lane].pushed = m->offset + 1;
	if (p->wanders)
		spring_read(m);
	return m;
}

/* Nonzero when its queue may hold more that there is room for. */
static int read_slot(struct group *g, struct slot *s)
{
	size_t limit = (size_t)pr_setting(&g->c->conf->limits.prefetch_bytes) / 2;
	rd_kafka_message_t *rkm;
	struct message *m;

	let_go(g, s);
	for (int i = 0; s->hot && i < TURN_MESSAGES && s->held_bytes < limit && s->state == SLOT_READING &&
			!s->due_us;
		i++) {
		rkm = rd_kafka_consume_queue(s->queue, 0);
		if (!rkm) {
			s->hot = 0;
			s->dry_us = i > 0 || s->dry_us == 0 ? pr_mono_us() : s->dry_us;
			break;
		}
		/* What librdkafka had fetched before it was told to begin elsewhere is known already. */
		if (rkm->err || rkm->offset < s->position) {
			if (rkm->err)
				heard(g, s, rkm);
			rd_kafka_message_destroy(rkm);
			continue;
		}
		s->words[0] = '\0';
		s->gap = s->at_end = 0;
		s->dry_wait_us = DRY_US;
		m = wanted(s, rkm);
		if (m)
			take(g, s, m);
		if (s->equal_at >= 0 && s->position >= s->equal_at)
			s->state = SLOT_DRAINING;
	}
	if (s->held_bytes >= limit)
		s->full = 1;
	else if (s->state == SLOT_READING && !s->due_us)
		refill(g, s);
	g->dry |= s->held_bytes > 0 && !s->due_us;
	return s->hot && !s->due_us && s->held_bytes < limit && s->state == SLOT_READING;
}

static int readable(const struct slot *s)
{
	return (s->state == SLOT_READING || s->held_bytes > 0) && s->queue && !atomic_load(&s->part->dead);
}

int read_turn(struct group *g)
{
	struct pr_consumer_conf *conf = g->c->conf;
	int more = 0;

	g->dry = 0;
	if (atomic_load(&g->c->parked_keys) >= (uint64_t)pr_setting(&conf->limits.parked_keys)) {
		g->dry = 1;
		return 0;
	}
	for (size_t i = 0; i < g->slots_n; i++)
		if (readable(&g->slots[i]))
			more |= read_slot(g, &g->slots[i]);
	flush_all(g);
	return more;
}

/* ---------------------------------------------------------------- queues */

void slot_open(struct group *g, struct slot *s)
{
	slot_close(s);
	s->held = pr_calloc((size_t)s->part->lane_count, sizeof(*s->held));
	s->queue = rd_kafka_queue_get_partition(g->rk, s->topic, s->partition);
	if (s->queue)
		slot_listen(g, s);
}

/* Un-forwarded before Kafka is told to read the partition (FWD_APP stays): else its records would go into the
 * consumer's one queue, where a full lane would hold up all partitions. */
void slot_listen(struct group *g, struct slot *s)
{
	static const uint64_t one = 1;
	rd_kafka_message_t *rkm;

	rd_kafka_queue_forward(s->queue, NULL);
	rd_kafka_queue_io_event_enable(s->queue, g->fd, &one, sizeof(one));
	/* What an earlier assignment left is from another position: it would hide what lies between. */
	while ((rkm = rd_kafka_consume_queue(s->queue, 0)) != NULL)
		rd_kafka_message_destroy(rkm);
	s->hot = 1;
	s->at_end = 0;
	s->dry_us = 0;
	s->dry_wait_us = DRY_US;
}

void slot_close(struct slot *s)
{
	for (int i = 0; s->held_bytes > 0 && i < s->part->lane_count; i++)
		message_free_all(s->held[i].head);
	free(s->held);
	s->held = NULL;
	s->held_bytes = 0;
	s->due_us = 0;
	if (!s->queue)
		return;
	rd_kafka_queue_io_event_enable(s->queue, -1, NULL, 0);
	rd_kafka_queue_destroy(s->queue);
	s->queue = NULL;
}
