/* lib/metrics_inner.h -- what the files of lib/metrics know of families and series, and nobody else:
 * metrics.c makes and counts, metrics_text.c writes the scrape, metrics_process.c reads /proc. */
#ifndef PR_METRICS_INNER_H
#define PR_METRICS_INNER_H

#include "lib/json.h"
#include "lib/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define MAX_LABELS 8

struct pr_series {
	_Atomic(struct pr_series *) next; /* of the family, in order of their making */
	struct pr_series *chain;          /* of the hash slot; set before it is published */
	const struct pr_family *family;
	uint64_t hash;
	char *key;    /* the label values, each with its NUL */
	char *labels; /* topic="a",partition="0", escaped; "" when the family has none */
	/* Counter: the count. Gauge, histogram's sum and process counters: the bits of a double. */
	_Atomic uint64_t value;
	_Atomic uint64_t bucket[]; /* of a histogram: its bounds, then +Inf; not cumulative */
};

struct pr_family {
	_Atomic(struct pr_family *) next;
	pthread_mutex_t lock; /* held to make a series */
	enum pr_metric_type type;
	int real; /* a counter that holds a double (process_cpu_seconds_total) */
	const char *name, *help;
	char *label[MAX_LABELS];
	size_t label_count;
	const double *bound;
	size_t bound_count;
	size_t cap, slot_count; /* slot_count is a power of two */
	_Atomic size_t series_count;
	_Atomic(struct pr_series *) first, other;
	struct pr_series *last;            /* under the lock */
	_Atomic(struct pr_series *) *slot; /* newest series first */
};

struct process {
	struct pr_series *cpu, *resident, *fds, *max_fds, *start, *threads;
};

struct pr_metrics {
	pthread_mutex_t lock; /* held to add a family */
	_Atomic(struct pr_family *) first;
	struct pr_family *last;
	_Atomic(struct process *) process;
	_Atomic size_t size_hint; /* bytes of the last render */
};

static inline uint64_t metrics_bits_of(double v)
{
	uint64_t bits;

	memcpy(&bits, &v, sizeof(bits));
	return bits;
}

static inline double metrics_of_bits(uint64_t bits)
{
	double v;

	memcpy(&v, &bits, sizeof(v));
	return v;
}

static inline uint64_t metrics_load(const _Atomic uint64_t *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

static inline void metrics_set_real(struct pr_series *s, double v)
{
	atomic_store_explicit(&s->value, metrics_bits_of(v), memory_order_relaxed);
}

/* real: a counter that holds a double. */
struct pr_family *metrics_family_make(struct pr_metrics *m, enum pr_metric_type type, const char *name,
	const char *labels, size_t cap, const char *help, const double *bound, size_t n, int real);
void metrics_put_escaped(struct pr_buf *b, const char *s, int quotes);
void metrics_process_read(const struct process *p);

#endif
