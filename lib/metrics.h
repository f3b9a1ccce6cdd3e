/* lib/metrics.h -- a small registry: families with fixed labels, series made on first
 * use and never removed, text 0.0.4 and OpenMetrics 1.0. Values are atomics, so a series
 * may be updated by any thread without a lock; making a series takes a mutex. Label
 * cardinality is bounded: past the family's cap the last series' values are all "other". */
#ifndef PR_METRICS_H
#define PR_METRICS_H

#include <stddef.h>
#include <stdint.h>

struct pr_metrics; /* the registry */
struct pr_family;
struct pr_series;

enum pr_metric_type { PR_COUNTER, PR_GAUGE, PR_HISTOGRAM };

struct pr_metrics *pr_metrics_new(void);
void pr_metrics_free(struct pr_metrics *m);

/* labels: "topic,partition" or "". cap: most series (0: 1000). buckets (histograms): n upper bounds,
 * ascending, without +Inf. Borrowed strings must outlive the registry. Counter names end in _total. */
struct pr_family *pr_family_new(struct pr_metrics *m, enum pr_metric_type type, const char *name,
	const char *labels, size_t cap, const char *help);
struct pr_family *pr_histogram_new(struct pr_metrics *m, const char *name, const char *labels,
	const double *buckets, size_t n, const char *help);

/* The series with these label values (as many as labels has; copied). Stable pointer, never NULL. */
struct pr_series *pr_series_get(struct pr_family *f, const char *const *values);
struct pr_series *pr_series_one(struct pr_family *f); /* of a family without labels */

/* Every series of a family in the order of their making: its first label's value and its count. */
void pr_family_each(
	struct pr_family *f, void (*each)(void *ctx, const char *value, uint64_t count), void *ctx);

void pr_counter_add(struct pr_series *s, uint64_t n);
uint64_t pr_counter_value(const struct pr_series *s);
void pr_gauge_set(struct pr_series *s, double v);
double pr_gauge_value(const struct pr_series *s);
void pr_observe(struct pr_series *s, double v);               /* one value into a histogram */
void pr_observe_n(struct pr_series *s, double v, uint64_t n); /* n times the same value */

/* The seconds buckets all latency histograms share: 1 ms ... 5 min. */
extern const double pr_seconds_buckets[];
extern const size_t pr_seconds_buckets_n;

/* Renders all families; constant_labels (e.g. outbox="orders") go on every series, NULL for none.
 * openmetrics: 1 for OpenMetrics 1.0 (with # EOF), 0 for text 0.0.4. malloc'd, the caller frees. */
char *pr_metrics_render(struct pr_metrics *m, const char *constant_labels, int openmetrics, size_t *ret_len);

/* Adds process_* (RSS, CPU, fds, start time) from /proc; values are read at render time. */
void pr_metrics_process(struct pr_metrics *m);

#endif
