/* consumers/spans.c -- a span for each traced message that is handled, parked or buried: of the try that
 * settled it. Handlers see the span's traceparent instead of the record's, so what they publish is its child;
 * what is parked or buried keeps the record's own. Refuses to tell why a handler failed beyond class and
 * code: its words may quote the data, and stay with the dead letter. */
#include "consumers/lane.h"

#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

/* The record's headers, with this traceparent in place of its own, or behind them. */
static void give(struct message_trace *t, const struct message *m)
{
	size_t at = m->headers_n;

	if (m->headers_n > 0)
		memcpy(t->headers, m->headers, m->headers_n * sizeof(*t->headers));
	for (size_t i = 0; i < m->headers_n; i++)
		if (strcmp(m->headers[i].name, "traceparent") == 0)
			at = i;
	t->headers[at] = (struct header){ "traceparent", t->traceparent, PR_TRACEPARENT_LEN };
	t->headers_n = m->headers_n + (at == m->headers_n);
}

void spans_begin(const struct lane *l, struct message *m)
{
	struct pr_tracer *tracer = l->c->tracer;
	struct pr_trace parent, own;
	struct message_trace *t;
	int first;

	if (!tracer || m->trace ||
		!pr_tracer_takes(tracer, m->traceparent, m->traceparent_len, m->id, &parent, &first))
		return;
	t = pr_calloc(1, sizeof(*t) + (m->headers_n + 1) * sizeof(*t->headers));
	t->parent = own = parent;
	pr_tracer_span_id(tracer, t->span);
	memcpy(own.span, t->span, sizeof(own.span));
	(void)pr_traceparent_put(&own, t->traceparent);
	give(t, m);
	m->trace = t;
	m->traceparent = t->traceparent;
	m->traceparent_len = PR_TRACEPARENT_LEN;
}

static void say_why(const struct message *m, struct pr_span *s)
{
	const struct outcome *why = message_why(m);

	(void)snprintf(s->error, sizeof(s->error), "%s%s%s", pr_fail_class_str(why->cls),
		*why->code ? ":" : "", why->code);
}

void spans_end(const struct lane *l, const struct work *w)
{
	static const char *const outcomes[] = { [FATE_HANDLE] = "handled",
		[FATE_DONE] = "handled",
		[FATE_IGNORE] = "ignored",
		[FATE_PARK] = "parked",
		[FATE_BURY] = "dead_letter",
		[FATE_PENDING] = NULL };
	const struct message *m = w->m;
	struct pr_span s = { .kind = PR_SPAN_CONSUMER,
		.partition = m->partition,
		.offset = m->offset,
		.start_us = l->began_us,
		.end_us = pr_wall_us(),
		.attempts = m->attempts,
		.outcome = outcomes[w->v.fate] };

	if (!m->trace || !s.outcome)
		return;
	memcpy(s.trace, m->trace->parent.id, sizeof(s.trace));
	memcpy(s.parent, m->trace->parent.span, sizeof(s.parent));
	memcpy(s.id, m->trace->span, sizeof(s.id));
	(void)snprintf(s.topic, sizeof(s.topic), "%s", m->topic);
	(void)snprintf(s.message_id, sizeof(s.message_id), "%s", m->id_text);
	if (w->v.fate == FATE_PARK || w->v.fate == FATE_BURY)
		say_why(m, &s);
	pr_tracer_add(l->c->tracer, &s);
}
