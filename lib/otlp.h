/* lib/otlp.h -- spans to a collector, as OTLP/HTTP JSON (opentelemetry-proto 1, JSON mapping).
 *
 * A tracer is a bounded queue and one thread that posts what is in it. Whoever has a span leaves it there and
 * goes on: when the queue is full, or the collector takes nothing, spans are lost and counted
 * (postrider_tracing_spans_total). NULL is the tracer that is off: every function takes it, and does nothing.
 * Refuses to tell anything of a payload or a key: a span says where an event was and when, not what it is. */
#ifndef PR_OTLP_H
#define PR_OTLP_H

#include "lib/conf.h"
#include "lib/json.h"
#include "lib/metrics.h"
#include "lib/traceparent.h"

#include <stdint.h>

/* ---------------------------------------------------------------- configuration */

struct pr_tracing_conf {
	char *endpoint; /* NULL: off */
	char *service;
	struct pr_strs headers; /* "Name: value" */
	int64_t sample;         /* millionths */
	int64_t queue;          /* most spans that wait */
	int64_t timeout_us;     /* of one POST, and of the flush at the end */
};

/* What the table cannot say. Contacts nothing. */
int pr_tracing_check(
	const struct pr_tracing_conf *t, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

/* ---------------------------------------------------------------- spans */

enum pr_span_kind { PR_SPAN_PRODUCER = 4, PR_SPAN_CONSUMER = 5 }; /* as the protocol counts them */

struct pr_span {
	unsigned char trace[16], id[8];
	unsigned char parent[8]; /* zeros: the first of its trace */
	enum pr_span_kind kind;
	int32_t partition;
	int64_t offset;           /* -1: not known */
	int64_t start_us, end_us; /* wall clock */
	unsigned attempts;        /* tries that failed before */
	const char *outcome;      /* static; NULL: nothing to say */
	char error[100];          /* class and code of what went wrong; "": nothing did */
	char topic[250], message_id[100];
};

/* Who speaks: all of it borrowed. */
struct pr_otlp_resource {
	const char *service, *instance; /* service.name, service.instance.id */
	const char *group;              /* of consumers; NULL: none */
};

/* Appends the ExportTraceServiceRequest. */
void pr_otlp_put(struct pr_buf *b, const struct pr_otlp_resource *r, const struct pr_span *spans, size_t n);

/* ---------------------------------------------------------------- the tracer */

struct pr_tracer;

/* *ret is NULL when tracing is off. conf, group and m are borrowed until the end; the thread takes no
 * signals.
 */
int pr_tracer_start(const struct pr_tracing_conf *conf, const char *group, struct pr_metrics *m,
	struct pr_tracer **ret, struct pr_err *err) PR_MUSTCHECK;

/* How long pr_tracer_stop may take, about. */
int64_t pr_tracer_budget_us(const struct pr_tracer *t);

/* Sends what waits, within tracing.timeout; the rest is dropped. -1: the thread runs on, nothing may be
 * freed.
 */
int pr_tracer_stop(struct pr_tracer *t) PR_MUSTCHECK;

/* Whether the event with this id is traced; then *ret is what a span of it is a child of. With a traceparent
 * that says sampled: it. Without one (NULL, or malformed) the id decides, the same way everywhere: the trace
 * has the event's id, and the span is that of the relay, *ret_first set. */
int pr_tracer_takes(const struct pr_tracer *t, const char *traceparent, size_t n, const unsigned char id[16],
	struct pr_trace *ret, int *ret_first);

/* An id that no other span has. */
void pr_tracer_span_id(struct pr_tracer *t, unsigned char id[8]);

/* Any thread; copies. Never waits for the collector. */
void pr_tracer_add(struct pr_tracer *t, const struct pr_span *s);

/* n spans were not even made, for want of room. */
void pr_tracer_dropped(struct pr_tracer *t, uint64_t n);

#endif
