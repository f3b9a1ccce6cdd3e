/* relay/spans.c -- a span for each traced event: from its row to the acknowledgement, by read_committed
 * readers' measure. It is the child of whom the row's traceparent names; the record keeps that traceparent as
 * it is. Refuses to tell of an event whose transaction did not commit. */
#include "relay/publisher.h"

#include "lib/clock.h"
#include "lib/uuid.h"

#include <stdlib.h>
#include <string.h>

static int takes(const struct publisher *p, const struct event *e, struct pr_trace *ret, int *ret_first)
{
	struct span trace = record_traceparent(e);

	return pr_tracer_takes(p->r->tracer, trace.s, trace.n, e->id, ret, ret_first);
}

void spans_choose(const struct publisher *p, struct event *e)
{
	struct pr_trace trace;
	int first;

	e->traced = p->r->tracer && takes(p, e, &trace, &first);
}

/* 0: it is not traced after all. */
static int make(
	const struct publisher *p, const struct event *e, const rd_kafka_message_t *m, struct pr_span *s)
{
	struct pr_trace trace;
	int first;

	if (!takes(p, e, &trace, &first))
		return 0;
	memset(s, 0, sizeof(*s));
	memcpy(s->trace, trace.id, sizeof(s->trace));
	if (first) {
		memcpy(s->id, trace.span, sizeof(s->id));
	} else {
		memcpy(s->parent, trace.span, sizeof(s->parent));
		pr_tracer_span_id(p->r->tracer, s->id);
	}
	s->kind = PR_SPAN_PRODUCER;
	s->partition = m->partition;
	s->offset = m->offset;
	s->start_us = e->created_us - atomic_load(&source_clock_skew_us);
	s->end_us = pr_wall_us();
	(void)snprintf(s->topic, sizeof(s->topic), "%s", rd_kafka_topic_name(m->rkt));
	(void)pr_uuid_print(e->id, s->message_id);
	return 1;
}

/* As many as the tracer's queue would take. */
static struct pr_span *keep_one(struct publisher *p)
{
	size_t most = (size_t)p->r->conf->tracing.queue;

	if (p->spans_n == most) {
		pr_tracer_dropped(p->r->tracer, 1);
		return NULL;
	}
	if (p->spans_n == p->spans_cap) {
		p->spans_cap = p->spans_cap ? 2 * p->spans_cap : 64;
		p->spans_cap = p->spans_cap < most ? p->spans_cap : most;
		p->spans = pr_realloc(p->spans, p->spans_cap * sizeof(*p->spans));
	}
	return &p->spans[p->spans_n];
}

void spans_delivered(struct publisher *p, const struct event *e, const rd_kafka_message_t *m)
{
	struct pr_span one, *s = p->exactly_once ? keep_one(p) : &one;

	if (!s || !make(p, e, m, s))
		return;
	if (p->exactly_once)
		p->spans_n++;
	else
		pr_tracer_add(p->r->tracer, s);
}

void spans_committed(struct publisher *p)
{
	int64_t now = pr_wall_us();

	for (size_t i = 0; i < p->spans_n; i++) {
		p->spans[i].end_us = now;
		pr_tracer_add(p->r->tracer, &p->spans[i]);
	}
	p->spans_n = 0;
}

void spans_forget(struct publisher *p)
{
	free(p->spans);
	p->spans = NULL;
	p->spans_n = p->spans_cap = 0;
}
