/* relay/ship.c -- one event on its way: produced, parked or left waiting. Refuses to produce what is
 * known to be refused, and to let an event pass an earlier one of its key. */
#include "relay/publisher.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <stdlib.h>
#include <string.h>

#define MORE_US (20 * PR_MS)

#define POSITION_TAG ((void *)1) /* opaque of position records */

/* seq -1: the position record. */
static void note(struct publisher *p, rd_kafka_resp_err_t code, int64_t seq, struct topic *topic)
{
	struct failure *f = &p->failure;

	if (f->set && !(pr_kafka_kind(code) == PR_REJECT && pr_kafka_kind(f->code) != PR_REJECT))
		return; /* the first, but a refusal says more than the purges that follow it */
	f->set = 1;
	f->code = code;
	f->seq = seq > 0 ? seq : 0;
	f->topic = topic;
	f->position = seq < 0 && pr_kafka_kind(code) == PR_REJECT; /* one that was purged has no fault */
	(void)snprintf(f->text, sizeof(f->text), "%s", rd_kafka_err2str(code));
}

void ship_report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	struct publisher *p = opaque;
	struct event *e = m->_private;

	(void)rk;
	if (m->_private == POSITION_TAG) {
		p->position_in_flight = 0;
		if (m->err)
			note(p, m->err, -1, NULL);
		return;
	}
	if (m->err)
		note(p, m->err, e->seq, topics_of(p->topics, e, NULL));
	else if (e->traced)
		spans_delivered(p, e, m);
	if (p->exactly_once)
		return;
	if (!m->err && e->opens && e->on) {
		e->on->opened[e->opens - 1] = PARTITION_OPEN;
		e->on->opened_n++;
	}
	e->batch->outstanding--;
	p->events--;
	p->bytes -= record_size(e);
}

/* Hands one record over; a full queue is waited for, bounded. */
static int produce(struct publisher *p, const struct topic *topic, struct event *e, rd_kafka_resp_err_t *ret)
{
	int64_t give_up = 0;

	for (;;) {
		*ret = record_produce(&p->maker, p->rk, topic, e, e);
		if (*ret != RD_KAFKA_RESP_ERR__QUEUE_FULL)
			return 0;
		if (give_up == 0)
			give_up = pr_mono_us() + p->r->conf->kafka.timeout_us;
		if (pr_mono_us() > give_up || atomic_load(&p->r->stopping))
			return -1;
		(void)rd_kafka_poll(p->rk, 10);
	}
}

/* A parked event that is refused again ends the session: it must not be counted as released. */
static int park(struct publisher *p, struct topic *topic, struct event *e, rd_kafka_resp_err_t code,
	const char *why, struct pr_err *err)
{
	if (p->releasing.of) {
		note(p, code, e->seq, topic);
		p->failure.misfit = 1;
		if (why)
			(void)snprintf(p->failure.text, sizeof(p->failure.text), "%s", why);
		return pr_fail(err, PR_REJECT, "a released event is refused again");
	}
	e->held = 1;
	return hold_park(
		p->hold, topic, e, 1, why ? why : rd_kafka_err2str(code), rd_kafka_err2name(code), err);
}

/* Batches must fit the smallest topic limit, or good events would be refused along with each other. */
static int fits_batches(struct publisher *p, const struct topic *topic, struct pr_err *err)
{
	if (topic->max_bytes >= p->batch_size)
		return 0;
	p->batch_size = topic->max_bytes;
	(void)pr_fail(err, PR_RETRY, "topic \"%s\" takes %lld bytes at most: smaller batches", topic->name,
		(long long)topic->max_bytes);
	(void)snprintf(err->code, sizeof(err->code), "%s", SHIP_RESIZE);
	return -1;
}

/* Why this event can't go to its topic at all; NULL: it can. */
static const char *misfit(const struct topic *topic, const struct event *e, rd_kafka_resp_err_t *code)
{
	if (e->partition >= topic->partitions) {
		*code = RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
		return "the topic does not have that partition";
	}
	if ((int64_t)record_size(e) > topic->max_bytes) {
		*code = RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
		return "larger than the topic's max.message.bytes";
	}
	return NULL;
}

static int partition_of(const struct topic *topic, const struct event *e)
{
	if (e->partition >= 0)
		return e->partition;
	return rd_kafka_msg_partitioner_murmur2(
		topic->rkt, e->key.s, e->key.n, topic->partitions, NULL, NULL);
}

/* The open transaction has failed already: asked for another one, the client says why. */
static int transaction_failed(struct publisher *p, struct pr_err *err)
{
	rd_kafka_error_t *error = rd_kafka_begin_transaction(p->rk);

	if (!error || rd_kafka_error_code(error) != RD_KAFKA_RESP_ERR__STATE)
		return pr_kafka_take(error, err, "produce") < 0;
	rd_kafka_error_destroy(error);
	return 0;
}

/* In a transaction no report says that a record arrived: all that was sent has when the queue is empty. */
static int flush_firsts(struct publisher *p, int64_t give_up, struct pr_err *err)
{
	while (rd_kafka_flush(p->rk, 10) == RD_KAFKA_RESP_ERR__TIMED_OUT && !p->failure.set) {
		if (transaction_failed(p, err))
			return -1;
		if (pr_mono_us() > give_up || atomic_load(&p->r->stopping))
			return pr_fail(err, PR_RETRY, "kafka did not acknowledge an event in time");
	}
	if (transaction_failed(p, err)) /* it may be that nothing is in the queue any more */
		return -1;
	if (p->failure.set)
		return pr_kafka_fail(err, p->failure.code, "delivery");
	topics_opened(p->topics);
	return 0;
}

/* A broker takes any sequence number from a producer that it does not know yet. If a producer's first batch
 * for a partition is refused for a moment, as by a broker that has not heard of a new topic, the next one in
 * flight is taken, and the first is out of order for ever (KAFKA-15591). In at_least_once it is overtaken; in
 * a transaction one was seen to be missing after a commit that went well. So nothing follows the first record
 * of a partition until it is acknowledged. */
static int wait_for_first(struct publisher *p, struct topic *topic, const struct event *e, int *ret_partition,
	struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + p->r->conf->kafka.timeout_us;
	int partition;

	*ret_partition = -1;
	if (topic->opened_n == topic->partitions)
		return 0;
	if (topic->opened_cap < topic->partitions) {
		topic->opened = pr_realloc(topic->opened, (size_t)topic->partitions);
		memset(topic->opened + topic->opened_cap, 0, (size_t)(topic->partitions - topic->opened_cap));
		topic->opened_cap = topic->partitions;
	}
	partition = partition_of(topic, e);
	if (p->exactly_once && topic->opened[partition] == PARTITION_OPENING &&
		flush_firsts(p, give_up, err) < 0)
		return -1;
	while (topic->opened[partition] == PARTITION_OPENING && !p->failure.set) {
		if (pr_mono_us() > give_up || atomic_load(&p->r->stopping))
			return pr_fail(err, PR_RETRY, "kafka did not acknowledge an event in time");
		(void)rd_kafka_poll(p->rk, 10);
	}
	if (p->failure.set)
		return pr_kafka_fail(err, p->failure.code, "delivery");
	if (topic->opened[partition] != PARTITION_OPEN)
		*ret_partition = partition;
	return 0;
}

static int send_event(struct publisher *p, struct topic *topic, struct event *e, struct pr_err *err)
{
	rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;
	const char *why = misfit(topic, e, &code);
	int first;

	if (why && topics_ask_again(p->topics, topic, p->rk, p->releasing.of != NULL, err) < 0)
		return -1;
	if (why)
		why = misfit(topic, e, &code);
	if (why)
		return park(p, topic, e, code, why, err);
	if (wait_for_first(p, topic, e, &first, err) < 0)
		return -1;
	e->opens = first + 1; /* before its report may come */
	spans_choose(p, e);
	if (produce(p, topic, e, &code) < 0)
		return pr_fail(err, PR_RETRY, "the producer's queue stayed full for kafka.timeout");
	if (code && pr_kafka_kind(code) == PR_REJECT)
		return park(p, topic, e, code, NULL, err);
	/* The transaction has failed already: asked for another, the client says why. */
	if (code == RD_KAFKA_RESP_ERR__STATE && p->exactly_once &&
		pr_kafka_take(rd_kafka_begin_transaction(p->rk), err, "produce") < 0)
		return -1;
	if (code)
		return pr_kafka_fail(err, code, "produce");
	if (first >= 0)
		topic->opened[first] = PARTITION_OPENING;
	e->on = topic;
	topic->n_events++;
	if (!p->exactly_once)
		e->batch->outstanding++;
	p->events++;
	p->bytes += record_size(e);
	return 0;
}

/* A parked event that an operator let go. */
static int ship_released(struct publisher *p, struct topic *topic, struct event *e, struct pr_err *err)
{
	if (!topic->valid)
		return park(p, topic, e, RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, "not a topic name", err);
	if (!topic->rkt && topics_look(p->topics, topic, p->rk, err) < 0)
		return -1;
	if (topic->missing)
		return pr_fail(err, PR_RETRY, "topic \"%s\" is not there for a released event", topic->name);
	if (fits_batches(p, topic, err) < 0)
		return -1;
	return send_event(p, topic, e, err);
}

/* *ret: why this event would be refused again, NULL: it would not. 1: its topic is not there. Asks for a
 * topic's limits once since `began`. */
static int would_be_refused(struct publisher *p, const struct event *e, int64_t began, const char **ret,
	rd_kafka_resp_err_t *code, struct pr_err *err)
{
	struct topic *topic = topics_of(p->topics, e, err);

	*ret = NULL;
	if (!topic)
		return -1;
	if (!topic->valid) {
		*code = RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
		*ret = "not a topic name";
		return 0;
	}
	if (!topic->rkt && topics_look(p->topics, topic, p->rk, err) < 0)
		return -1;
	if (topic->missing)
		return 1;
	if (!misfit(topic, e, code))
		return 0;
	if (topic->asked_us < began && topics_ask_again(p->topics, topic, p->rk, 1, err) < 0)
		return -1;
	*ret = misfit(topic, e, code);
	return 0;
}

int ship_recheck(struct publisher *p, struct pr_err *err)
{
	struct batch *b = p->releasing.batch;
	int64_t began = pr_mono_us();
	rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;
	const char *why;
	int rc, refused = 0;

	for (size_t i = 0; p->releasing.of && i < b->n; i++) {
		rc = would_be_refused(p, &b->ev[i], began, &why, &code, err);
		if (rc < 0)
			return -1;
		refused |= rc > 0 || why;
		if (why && hold_refused(p->hold, &p->releasing, i, why, rd_kafka_err2name(code), err) < 0)
			return -1;
	}
	return refused;
}

int ship_event(struct publisher *p, struct event *e, struct pr_err *err)
{
	struct topic *topic;

	if (e->foreign)
		return 0; /* named by health, published by nobody */
	topic = topics_of(p->topics, e, err);
	if (!topic)
		return -1;
	if (p->releasing.of)
		return ship_released(p, topic, e, err);
	if (hold_is_parked(p->hold, topic, e)) {
		e->held = 1;
		return hold_park(p->hold, topic, e, 0, "behind an earlier event of its key", "", err);
	}
	if (!topic->valid)
		return park(p, topic, e, RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, "not a topic name", err);
	if (p->condemned.set && e->seq == p->condemned.seq) {
		p->condemned.set = 0;
		return park(p, topic, e, p->condemned.code, p->condemned.text, err);
	}
	if (!topic->rkt && topics_look(p->topics, topic, p->rk, err) < 0)
		return -1;
	if (p->releasing.batch && topic->missing)
		return pr_fail(err, PR_RETRY, "topic \"%s\" is gone again", topic->name);
	if (!p->releasing.batch && (topic->missing || topic->waiting)) {
		e->held = 1;
		return hold_wait(p->hold, topic, e, err);
	}
	if (fits_batches(p, topic, err) < 0)
		return -1;
	return send_event(p, topic, e, err);
}

/* How long to wait for one more batch: in the middle of a turn the next is on its way, and a transaction
 * costs more than the wait. */
static int64_t more_by(const struct publisher *p)
{
	return p->exactly_once && p->mid_turn ? pr_mono_us() + MORE_US : 0;
}

/* Next batch of the pipe into current; 0 when there is none. */
static int take_batch(struct publisher *p, int64_t deadline_us)
{
	if (p->current)
		return 1;
	p->current = pipe_take(&p->r->pipe, p->generation, deadline_us);
	p->offset = 0;
	/* An operator may have paused us while we waited: then it stays where it is. */
	return p->current != NULL && !atomic_load(&p->r->paused);
}

int ship_fill(struct publisher *p, int64_t deadline_us, struct pr_err *err)
{
	size_t most_bytes = (size_t)setting(&p->r->conf->limits.batch_bytes), held = 0;
	int64_t began = pr_mono_us();
	int taken = 0;

	/* Counted by what was taken: events held back cost a position and their memory all the same. */
	while ((size_t)taken < p->limit && p->events < p->limit && p->bytes + held < most_bytes &&
		!p->failure.set) {
		if (!take_batch(p, taken ? more_by(p) : deadline_us))
			break;
		if (p->current->n > 0) {
			if (ship_event(p, &p->current->ev[p->offset], err) < 0) {
				p->shipped = p->events;
				return -1;
			}
			if (p->current->ev[p->offset].held)
				held += record_size(&p->current->ev[p->offset]);
			p->offset++;
			taken++;
		}
		if (p->offset == p->current->n) {
			p->mid_turn = !p->current->ends_turn;
			*p->open_tail = p->current;
			p->open_tail = &p->current->next;
			p->current = NULL;
		}
		if (taken % 256 == 0)
			(void)rd_kafka_poll(p->rk, 0);
		/* Topics seen for the first time cost milliseconds each, and the transaction is open. */
		if (taken % 16 == 0 && pr_mono_us() - began > p->r->conf->kafka.timeout_us / 4)
			break;
	}
	p->shipped = p->events;
	return taken;
}

void ship_taken(const struct publisher *p, struct pr_position *ret)
{
	const struct batch *last = NULL;

	for (const struct batch *b = p->open; b; b = b->next)
		last = b;
	if (p->current && p->offset > 0)
		batch_position(p->current, p->offset, ret);
	else if (last)
		batch_position(last, last->n, ret);
}

int ship_position(struct publisher *p, const struct pr_position *position, struct pr_err *err)
{
	char *value = pr_position_encode(position);
	int rc = rd_kafka_produce(p->position_rkt, 0, RD_KAFKA_MSG_F_COPY, value, strlen(value),
		p->r->conf->name, strlen(p->r->conf->name), POSITION_TAG);

	free(value);
	if (rc < 0)
		return pr_kafka_fail(err, rd_kafka_last_error(), "position record");
	p->position_in_flight = !p->exactly_once;
	return 0;
}

void ship_acknowledged(struct publisher *p, struct batch *b, size_t k)
{
	int64_t now = pr_wall_us() + atomic_load(&source_clock_skew_us);
	uint64_t published = 0;
	double seconds;

	for (; b->counted < k; b->counted++) {
		const struct event *e = &b->ev[b->counted];

		if (!e->on)
			continue; /* held back, or foreign */
		published++;
		e->on->proven = 1;
		e->on->looks = 0;
		pr_counter_add(e->on->published, 1);
		pr_counter_add(e->on->published_bytes, e->payload.n);
		seconds = (double)(now - e->created_us) / (double)PR_SEC;
		pr_observe(p->r->m.insert_to_ack, seconds < 0 ? 0 : seconds);
	}
	atomic_fetch_add(&p->r->published_events, published);
}

void ship_new_shipment(struct publisher *p)
{
	for (struct topic *t = topics_all(p->topics); t; t = t->next)
		t->n_events = 0;
}

void ship_drop(struct publisher *p)
{
	struct batch *b;

	while ((b = p->open)) {
		p->open = b->next;
		batch_free(b);
	}
	p->open_tail = &p->open;
	batch_free(p->current);
	p->current = NULL;
	p->offset = 0;
	p->events = p->bytes = 0;
	spans_forget(p);
	ship_oldest(p);
}

void ship_oldest(struct publisher *p)
{
	int64_t oldest = p->current ? p->current->oldest_us : INT64_MAX;
	uint64_t n = p->current ? p->current->n : 0, before;

	for (const struct batch *b = p->open; b; b = b->next) {
		if (b->oldest_us < oldest)
			oldest = b->oldest_us;
		n += b->n;
	}
	before = atomic_load(&p->r->in_flight);
	if (before == 0 || n < before)
		atomic_store(&p->r->in_flight_since_us, pr_mono_us());
	atomic_store(&p->r->in_flight_oldest_us, oldest);
	atomic_store(&p->r->in_flight, n);
}
