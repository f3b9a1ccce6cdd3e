/* relay/publish.c -- the publisher thread: opens sessions in the one safe order, ships, and decides
 * what a failure means. Refuses to go on with a producer after any error: a new one costs
 * milliseconds, a wrong guess about an old one costs events.
 *
 * Order of a session: the reader holds the lock -> init_transactions (fences the predecessor and aborts what
 * it left open) -> the position, read to the end of its topic -> what is held back -> the reader checks that
 * the database is the position's -> stream. */
#include "relay/publisher.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/pulse.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_US    (50 * PR_MS)
#define BATCH_SIZE 1000000 /* librdkafka's batch.size by default */
#define LOOKS      20      /* topics asked about between two shipments */

static void wait_us(struct publisher *p, int64_t us)
{
	struct pollfd wake = { .fd = p->r->wake_fd, .events = POLLIN };

	(void)poll(&wake, 1, (int)(us / 1000) + 1);
}

/* One step of a session or a shipment asks Kafka a few times, each within kafka.timeout. */
static void alive(const struct publisher *p)
{
	pr_pulse("publisher", 4 * p->r->conf->kafka.timeout_us);
}

static int timeout_ms(const struct publisher *p)
{
	return (int)(p->r->conf->kafka.timeout_us / PR_MS);
}

/* ---------------------------------------------------------------- the producer */

struct props {
	struct pr_kafka_prop list[24];
	char text[6][24];
	size_t n, texts;
};

static void prop(struct props *ps, const char *name, const char *value)
{
	ps->list[ps->n++] = (struct pr_kafka_prop){ name, value };
}

static void prop_number(struct props *ps, const char *name, int64_t value)
{
	char *text = ps->text[ps->texts++];

	(void)snprintf(text, sizeof(ps->text[0]), "%" PRId64, value);
	prop(ps, name, text);
}

/* What we want unless the user said otherwise. */
static void taste(const struct publisher *p, struct props *ps)
{
	const struct pr_strs *own = &p->r->conf->kafka.properties;

	if (!pr_kafka_has(own, "compression.codec") && !pr_kafka_has(own, "compression.type"))
		prop(ps, "compression.codec", "lz4");
	if (!pr_kafka_has(own, "linger.ms") && !pr_kafka_has(own, "queue.buffering.max.ms"))
		prop(ps, "linger.ms", "5"); /* under load; a shipment that is all there is flushed */
	if (!pr_kafka_has(own, "message.max.bytes"))
		prop(ps, "message.max.bytes", "104857600");
	if (!pr_kafka_has(own, "reconnect.backoff.max.ms"))
		prop(ps, "reconnect.backoff.max.ms", "1000");
	if (!pr_kafka_has(own, "client.id"))
		prop(ps, "client.id", p->transactional_id);
}

static int open_producer(struct publisher *p, struct pr_err *err)
{
	const struct pr_relay_conf *conf = p->r->conf;
	struct props ps = { .n = 0 };

	p->batch_size = topics_smallest(p->topics, BATCH_SIZE);
	taste(p, &ps);
	prop(&ps, "partitioner", "murmur2_random");
	prop(&ps, "enable.idempotence", "true");
	/* Bounded by events and bytes before they get here; this is the last fence. */
	prop_number(&ps, "queue.buffering.max.messages", setting(&conf->limits.batch_events) + 1000);
	prop_number(&ps, "queue.buffering.max.kbytes", 2 * 1024 * 1024);
	if (!pr_kafka_has(&conf->kafka.properties, "batch.size"))
		prop_number(&ps, "batch.size", p->batch_size);
	if (p->exactly_once) {
		prop(&ps, "transactional.id", p->transactional_id);
		prop_number(&ps, "transaction.timeout.ms", timeout_ms(p) < 1000 ? 1000 : timeout_ms(p));
		prop(&ps, "delivery.report.only.error", p->r->tracer ? "false" : "true");
	} else {
		prop(&ps, "message.timeout.ms", "0");
		/* Else what is queued behind a refused batch goes out before we hear of it, and overtakes it.
		 */
		prop(&ps, "enable.gapless.guarantee", "true");
		/* A broker takes any first sequence number from a producer it does not know: what is behind a
		 * refused first batch must not be on its way yet. */
		if ((int64_t)p->limit < setting(&conf->limits.batch_events))
			prop(&ps, "max.in.flight", "1");
	}
	p->rk = pr_kafka_new(RD_KAFKA_PRODUCER, conf->kafka.brokers, &conf->kafka.properties, ps.list,
		ship_report, p, err);
	return p->rk ? 0 : -1;
}

/* In pieces, so that a stop is noticed: the call goes on where the last one gave up. */
static int init_transactions(struct publisher *p, struct pr_err *err)
{
	int64_t since = pr_mono_us(), give_up = since + p->r->conf->kafka.timeout_us;
	rd_kafka_resp_err_t code;
	rd_kafka_error_t *error;

	while ((error = rd_kafka_init_transactions(p->rk, 500))) {
		(void)rd_kafka_poll(p->rk, 0); /* what the client has to say */
		if (!rd_kafka_error_is_retriable(error) || !pipe_is(&p->r->pipe, p->generation))
			return pr_kafka_take(error, err, "init transactions");
		code = rd_kafka_error_code(error);
		rd_kafka_error_destroy(error);
		if (pr_mono_us() > give_up)
			return pr_kafka_silent(since, "no broker began a transaction", code, err);
		if (pr_mono_us() - since > PR_SEC && pr_kafka_refusal(since, err) < 0)
			return -1;
	}
	return 0;
}

static void close_producer(struct publisher *p)
{
	if (p->rk) {
		(void)rd_kafka_purge(p->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
		(void)rd_kafka_poll(p->rk, 0);
	}
	topics_drop_handles(p->topics);
	if (p->position_rkt)
		rd_kafka_topic_destroy(p->position_rkt);
	p->position_rkt = NULL;
	if (p->rk)
		rd_kafka_destroy(p->rk);
	p->rk = NULL;
	p->position_in_flight = p->settled_dirty = 0;
	release_free(&p->releasing);
	ship_drop(p);
	atomic_store(&p->r->kafka_up, 0);
}

/* ---------------------------------------------------------------- the start order */

static int first_position(struct publisher *p, const struct identity *who, struct pr_err *err)
{
	if (who->position_known) {
		(void)pr_fail(err, PR_STOP,
			"the topic \"%s\" holds no position, though one was written before",
			p->position_topic);
		(void)pr_hint(err,
			"it was deleted, or kafka.brokers is another cluster. If the events may be "
			"published again: postrider position set --earliest; if none are owed: "
			"postrider position adopt");
		err->exit = PR_EX_CONFIG;
		return -1;
	}
	(void)snprintf(p->committed.system_id, sizeof(p->committed.system_id), "%s", who->system_id);
	p->committed.timeline = who->timeline;
	if ((p->exactly_once ? ship_first_transaction(p, err) : ship_first_window(p, err)) < 0)
		return -1;
	/* If we die here, Kafka has a position and the database does not know it: the next start reads the
	 * position and records it. The other way round would be a refusal for no reason. */
	FAULT(first_position_before_row);
	pr_log(PR_INFO, "first start: the outbox is published from its beginning",
		KS("outbox", p->r->conf->name));
	return 0;
}

static int read_position(struct publisher *p, const struct identity *who, struct pr_err *err)
{
	const struct pr_relay_conf *conf = p->r->conf;
	int found;

	if (!p->topic_checked && pr_position_topic_check(p->rk, conf->name, timeout_ms(p), err) < 0)
		return -1;
	p->topic_checked = 1;
	pr_position_release(&p->committed);
	if (pr_position_read(conf->kafka.brokers, &conf->kafka.properties, conf->name, timeout_ms(p),
		    &p->committed, &found, err) < 0)
		return -1;
	p->position_rkt = rd_kafka_topic_new(p->rk, p->position_topic, NULL);
	if (!p->position_rkt)
		return pr_kafka_fail(err, rd_kafka_last_error(), p->position_topic);
	return found ? 0 : first_position(p, who, err);
}

static int open_session(struct publisher *p, const struct identity *who, struct pr_err *err)
{
	memset(&p->failure, 0, sizeof(p->failure));
	(void)hold_failed(p->hold);
	alive(p);
	if (open_producer(p, err) < 0 || (p->exactly_once && init_transactions(p, err) < 0))
		return -1;
	alive(p);
	if (read_position(p, who, err) < 0)
		return -1;
	if (p->r->conf->source.engine == PR_ENGINE_TABLE && hold_load(p->hold, &p->committed, err) < 0)
		return -1;
	pr_position_copy(&p->settled, &p->committed);
	health_committed(p->r, &p->committed);
	atomic_store(&p->r->kafka_up, 1);
	health_trouble(p->r, TROUBLE_KAFKA, NULL);
	if (pipe_start(&p->r->pipe, p->generation, &p->committed) < 0)
		return pr_fail(err, PR_RETRY, "reset");
	pr_log(PR_INFO, "publishing", KS("outbox", p->r->conf->name),
		KS("delivery", p->exactly_once ? "exactly_once" : "at_least_once"),
		KI("seq", p->committed.top));
	return 0;
}

/* ---------------------------------------------------------------- what a failure means */

static int is_fenced(const struct pr_err *err)
{
	return strcmp(err->code, "_FENCED") == 0 || strcmp(err->code, "PRODUCER_FENCED") == 0 ||
	       strcmp(err->code, "INVALID_PRODUCER_EPOCH") == 0;
}

static int is_of_topic(rd_kafka_resp_err_t code)
{
	return code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
	       code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC || code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
	       code == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION || code == RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
}

/* A refused record takes its whole batch with it, and inside a transaction librdkafka 2.0 tells of it as
 * a sequence number out of order. Either way some event of this shipment may be the cause. */
static int may_be_poison(const struct failure *f, const struct pr_err *err)
{
	if (f->position)
		return 0;
	if (strstr(err->code, "OUT_OF_ORDER_SEQUENCE_NUMBER"))
		return 1;
	return f->set && (pr_kafka_kind(f->code) == PR_REJECT ||
				 f->code == RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER);
}

/* The only event of the shipment that just failed; NULL when there were more. */
static const struct event *only_event(const struct publisher *p)
{
	const struct batch *b = p->current ? p->current : p->open;

	if (p->shipped != 1)
		return NULL;
	for (size_t i = 0; b && i < b->n && i <= p->offset; i++)
		if (p->failure.seq == b->ev[i].seq)
			return &b->ev[i];
	return b && p->current && p->offset > 0 ? &b->ev[p->offset - 1] : b && b->n ? &b->ev[b->n - 1] : NULL;
}

/* An event that was refused alone is parked when it comes by again. An unclear refusal counts only when
 * repeated: a lost reply looks the same. */
static void condemn(struct publisher *p, int64_t seq)
{
	if (!p->failure.set || pr_kafka_kind(p->failure.code) != PR_REJECT)
		if (++p->strikes < 3)
			return;
	p->strikes = 0;
	p->condemned = p->failure;
	p->condemned.set = 1;
	p->condemned.seq = seq;
	if (!p->condemned.text[0])
		(void)snprintf(p->condemned.text, sizeof(p->condemned.text), "refused by the broker");
}

/* Halves the shipments until the refused event is alone. */
static void isolate(struct publisher *p)
{
	const struct event *e = only_event(p);
	size_t n = p->shipped;

	if (!e) {
		p->limit = n > 1 ? n / 2 : p->limit > 1 ? p->limit / 2 : 1;
		return;
	}
	p->limit = 1;
	condemn(p, e->seq);
}

/* The place of the event that failed in the slice, when it is known for certain; else the slice's size. */
static size_t culprit(const struct publisher *p)
{
	const struct batch *b = p->releasing.batch;
	size_t i = 0;

	if (b->n == 1)
		return 0;
	while (i < b->n && !(p->failure.misfit && b->ev[i].seq == p->failure.seq))
		i++;
	return i;
}

static void release_failed(struct publisher *p)
{
	size_t i = culprit(p);
	struct pr_err err;

	if (i == p->releasing.batch->n) {
		p->release_limit = 1;
		return;
	}
	if (!p->releasing.of) {
		condemn(p, p->releasing.batch->ev[i].seq);
		return;
	}
	if (hold_refused(p->hold, &p->releasing, i,
		    p->failure.text[0] ? p->failure.text : "refused by the broker",
		    rd_kafka_err2name(p->failure.code), &err) < 0)
		health_trouble(p->r, TROUBLE_POSTGRES, &err);
}

static const char *restart_reason(const struct publisher *p, const struct pr_err *err)
{
	if (is_fenced(err))
		return "fenced";
	if (may_be_poison(&p->failure, err))
		return "refused";
	if (strcmp(err->code, SHIP_RESIZE) == 0)
		return "batch_size";
	return "error";
}

/* AddPartitionsToTxn is refused as a whole, and no record is reported: of the topics in the open shipment,
 * the one alone, or the only one that has not taken an event since it was last missing. NULL: cannot be told.
 */
static struct topic *suspect(const struct publisher *p)
{
	struct topic *only = NULL, *unproven = NULL;
	int n = 0, n_unproven = 0;

	for (struct topic *t = topics_all(p->topics); t; t = t->next) {
		if (t->n_events == 0)
			continue;
		only = t;
		n++;
		if (!t->proven) {
			unproven = t;
			n_unproven++;
		}
	}
	return n == 1 ? only : n_unproven == 1 ? unproven : NULL;
}

static int is_denied(const struct pr_err *err)
{
	return strcmp(err->code, "TOPIC_AUTHORIZATION_FAILED") == 0;
}

/* The topic to blame; *ret_why and *ret_code say for what. */
static struct topic *bad_topic(
	const struct publisher *p, const struct pr_err *err, const char **ret_why, const char **ret_code)
{
	const struct failure *f = &p->failure;

	if (f->set && !f->misfit && f->topic && is_of_topic(f->code)) {
		*ret_why = f->text;
		*ret_code = rd_kafka_err2name(f->code);
		return f->topic;
	}
	*ret_why = rd_kafka_err2str(RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
	*ret_code = err->code;
	return is_denied(err) && !f->position ? suspect(p) : NULL;
}

/* Looks at what went wrong while everything is still there; returns how long to wait before the next session.
 */
static int64_t judge(struct publisher *p, const struct pr_err *err)
{
	const char *why, *code;
	struct topic *topic = bad_topic(p, err, &why, &code);

	if (topic) {
		topics_miss(topic, why, code);
		return 0;
	}
	if (is_denied(err) && p->shipped > 1 && !p->releasing.batch && !p->failure.position) {
		p->limit = p->shipped / 2; /* until one topic is alone; no event is to blame */
		return 0;
	}
	if (!p->failure.position && !is_denied(err) &&
		(may_be_poison(&p->failure, err) || err->kind == PR_REJECT)) {
		if (p->releasing.batch)
			release_failed(p);
		else
			isolate(p);
		return p->failures++ < 50 ? 0 : PR_SEC;
	}
	if (strcmp(err->code, SHIP_RESIZE) != 0) { /* the cause may be what we believe of a topic */
		topics_doubt(p->topics);
		p->topic_checked = 0;
	}
	return pr_backoff_us(p->failures++, 20 * PR_MS, 2 * PR_SEC);
}

/* Inside a transaction a refused position looks like a refused commit. */
static void name_position(const struct publisher *p, struct pr_err *err)
{
	if (!p->failure.position || err->kind == PR_STOP)
		return;
	(void)pr_kafka_fail(err, p->failure.code, "position record");
	(void)pr_hint(err, "look at the settings and rights of the topic %s", p->position_topic);
	err->kind = PR_RETRY;
}

static void session_failed(struct publisher *p, struct pr_err *err)
{
	struct relay *r = p->r;
	int of_postgres = hold_failed(p->hold);
	int64_t delay;

	if (p->rk) /* the reports may say more than the call that failed */
		(void)rd_kafka_poll(p->rk, 0);
	name_position(p, err);
	if (!pipe_is(&r->pipe, p->generation) && err->kind == PR_RETRY) {
		close_producer(p); /* the reader began anew: nothing is wrong with us */
		return;
	}
	if (err->kind == PR_STOP && err->exit != PR_EX_FAILED && err->exit != 0) {
		health_trouble(r, TROUBLE_REFUSED, err);
		relay_stop(r, err->exit);
	} else if (!may_be_poison(&p->failure, err) && strcmp(err->code, SHIP_RESIZE) != 0 &&
		   !atomic_load(&r->stopping)) {
		health_trouble(r, of_postgres ? TROUBLE_POSTGRES : TROUBLE_KAFKA, err);
	}
	pr_counter_add(pr_series_get(r->m.restarts, (const char *const[]){ restart_reason(p, err) }), 1);
	delay = judge(p, err);
	close_producer(p);
	if (of_postgres && delay > 0) { /* the reader, begun anew, would say that all is well */
		wait_us(p, delay);
		delay = 0;
	}
	if (is_fenced(err)) {
		pr_log_err(PR_WARN,
			"fenced: another producer has our transactional id, or the transaction took longer "
			"than kafka.timeout; giving the lock up",
			err);
		pipe_fenced(&r->pipe, p->generation);
	} else {
		pipe_reset(&r->pipe, p->generation);
	}
	if (delay > 0)
		wait_us(p, delay);
}

/* ---------------------------------------------------------------- the loop */

/* After a shipment went well, back to full size by doubling. */
static void went_well(struct publisher *p)
{
	size_t most = (size_t)setting(&p->r->conf->limits.batch_events);

	p->failures = 0;
	p->strikes = 0;
	p->limit = p->limit * 2 < most ? p->limit * 2 : most;
}

/* Whether the topics that are waited for are there again; a few at a time, for events wait meanwhile. */
static int look_at_topics(struct publisher *p, struct pr_err *err)
{
	struct topic *t = p->look_next ? p->look_next : topics_all(p->topics);
	int64_t now = pr_mono_us();
	int n = 0;

	for (; t && n < LOOKS; t = t->next) {
		if (t->rkt || !(t->waiting || t->missing) || (t->missing && now < t->look_at_us))
			continue;
		n++;
		if (topics_look(p->topics, t, p->rk, err) < 0)
			return -1;
	}
	p->look_next = t;
	return 0;
}

/* A topic's limit was raised, as it is before a release: back to large batches. Nothing is in flight. */
static int grow_batches(const struct publisher *p, struct pr_err *err)
{
	if (topics_smallest(p->topics, BATCH_SIZE) <= p->batch_size)
		return 0;
	(void)pr_fail(err, PR_RETRY, "topics take larger records: larger batches");
	(void)snprintf(err->code, sizeof(err->code), "%s", SHIP_RESIZE);
	return -1;
}

/* One slice of what was held back, if any may go. 1: one went. */
static int release_some(struct publisher *p, struct pr_err *err)
{
	size_t most = (size_t)setting(&p->r->conf->limits.batch_events);
	uint64_t request = atomic_load(&p->r->request);
	int requested = request != p->request_seen, rc;

	if (p->r->conf->source.engine != PR_ENGINE_TABLE)
		return 0;
	if (look_at_topics(p, err) < 0)
		return -1;
	p->request_seen = request;
	if (hold_next_release(p->hold, requested, &p->committed.from, p->release_limit, &p->releasing, err) <
		0)
		return -1;
	if (!p->releasing.batch)
		return 0;
	rc = ship_recheck(p, err);
	if (rc == 0)
		rc = p->exactly_once ? ship_release_transaction(p, err) : ship_release_window(p, err);
	else if (rc > 0)
		release_free(&p->releasing);
	if (rc != 0)
		return rc;
	p->release_limit = p->release_limit * 4 < most ? p->release_limit * 4 : most;
	release_free(&p->releasing);
	return grow_batches(p, err) < 0 ? -1 : 1;
}

static int ship(struct publisher *p, struct pr_err *err)
{
	return p->exactly_once ? ship_transaction(p, err) : ship_window(p, err);
}

static void stream(struct publisher *p)
{
	struct pr_err err;
	int rc = 0;

	while (rc >= 0 && pipe_is(&p->r->pipe, p->generation)) {
		alive(p);
		if (atomic_load(&p->r->paused)) {
			rc = p->exactly_once
				     ? 0
				     : ship_settle(p, pr_mono_us() + p->r->conf->kafka.timeout_us, &err);
			wait_us(p, 50 * PR_MS);
			continue;
		}
		rc = release_some(p, &err);
		if (rc < 0)
			break;
		p->wait_us = rc > 0 ? 0 : IDLE_US; /* more may be waiting to be released */
		rc = ship(p, &err);
		if (rc > 0)
			went_well(p);
	}
	if (rc < 0) {
		session_failed(p, &err);
		return;
	}
	/* A stop or a reader that began anew. What is in flight is settled if it can be. */
	if (!p->exactly_once && atomic_load(&p->r->stopping))
		if (ship_settle(p, pr_mono_us() + setting(&p->r->conf->drain_us) / 2, &err) < 0)
			pr_log_err(PR_WARN,
				"not all that was in flight is settled: it will be published again", &err);
	close_producer(p);
}

static void publisher_init(struct publisher *p, struct relay *r)
{
	memset(p, 0, sizeof(*p));
	p->r = r;
	p->exactly_once = r->conf->delivery == PR_EXACTLY_ONCE;
	p->topics = topics_new(r);
	p->hold = hold_new(r, p->topics);
	p->position_topic = pr_position_topic(r->conf->name);
	p->transactional_id = pr_asprintf("postrider.%s", r->conf->name);
	p->limit = (size_t)setting(&r->conf->limits.batch_events);
	p->release_limit = 1;
	p->batch_size = BATCH_SIZE;
	p->open_tail = &p->open;
}

static void publisher_release(struct publisher *p)
{
	close_producer(p);
	hold_free(p->hold);
	topics_free(p->topics);
	record_maker_release(&p->maker);
	pr_position_release(&p->committed);
	pr_position_release(&p->settled);
	free(p->position_topic);
	free(p->transactional_id);
}

void *publish_thread(void *ctx)
{
	struct relay *r = ctx;
	struct publisher p;
	struct identity who;
	struct pr_err err;

	publisher_init(&p, r);
	while (!atomic_load(&r->stopping)) {
		alive(&p);
		p.generation = pipe_wait_lead(&r->pipe, PR_FOREVER, &who);
		if (!p.generation)
			break;
		if (open_session(&p, &who, &err) < 0)
			session_failed(&p, &err);
		else
			stream(&p);
	}
	publisher_release(&p);
	return NULL;
}
