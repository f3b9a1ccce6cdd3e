/* lib/history.h -- one hour of a program's own numbers in memory, so that a page shows where they come from
 * without Prometheus. A fixed set of series and samples: nothing grows. A sample that nobody took (the
 * process was frozen) is a gap, never the value before it. */
#ifndef PR_HISTORY_H
#define PR_HISTORY_H

#include "lib/json.h"

#include <stddef.h>
#include <stdint.h>

#define PR_HISTORY_SAMPLES 360
#define PR_HISTORY_SERIES  8

struct pr_history;

/* names: n of them, borrowed, at most PR_HISTORY_SERIES. */
struct pr_history *pr_history_new(const char *const *names, size_t n, int64_t every_us);
void pr_history_free(struct pr_history *h); /* accepts NULL */

/* Milliseconds until the next sample is due; 0: now. One thread asks and adds. */
int pr_history_due(struct pr_history *h, int64_t mono_us);
/* n values; NaN: not known. */
void pr_history_add(struct pr_history *h, int64_t mono_us, const double *values);

/* {"every_seconds":10,"series":{"lag_seconds":[oldest, ..., newest]}}; null where nothing is known. */
void pr_history_put(struct pr_history *h, struct pr_buf *b);

/* The word for where a number goes: "growing", "falling" or "steady"; "" when one of them is not known. This
 * much it must have moved, however large it is: what stands still grows by a second each second. */
const char *pr_trend(double was, double is, double least);
/* Of a series over the last minute. */
const char *pr_history_trend(struct pr_history *h, size_t series, double least);

#endif
