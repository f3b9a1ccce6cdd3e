/* lib/history.c -- rings of samples, one hour long. Takes a short lock, never waits, allocates nothing after
 * it was made. */
#include "lib/history.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

struct pr_history {
	pthread_mutex_t mutex;
	const char *const *names;
	size_t series, count; /* count: samples taken, PR_HISTORY_SAMPLES at most */
	size_t next;          /* where the next one goes */
	int64_t every_us, last_us;
	double sample[PR_HISTORY_SAMPLES][PR_HISTORY_SERIES];
};

struct pr_history *pr_history_new(const char *const *names, size_t n, int64_t every_us)
{
	struct pr_history *h = pr_calloc(1, sizeof(*h));

	(void)pthread_mutex_init(&h->mutex, NULL);
	h->names = names;
	h->series = n < PR_HISTORY_SERIES ? n : PR_HISTORY_SERIES;
	h->every_us = every_us;
	return h;
}

void pr_history_free(struct pr_history *h)
{
	if (!h)
		return;
	(void)pthread_mutex_destroy(&h->mutex);
	free(h);
}

int pr_history_due(struct pr_history *h, int64_t mono_us)
{
	int64_t left;

	(void)pthread_mutex_lock(&h->mutex);
	left = h->count ? h->last_us + h->every_us - mono_us : 0;
	(void)pthread_mutex_unlock(&h->mutex);
	return left <= 0 ? 0 : (int)((left + PR_MS - 1) / PR_MS);
}

static void put_sample(struct pr_history *h, const double *values)
{
	for (size_t i = 0; i < h->series; i++)
		h->sample[h->next][i] = values ? values[i] : NAN;
	h->next = (h->next + 1) % PR_HISTORY_SAMPLES;
	if (h->count < PR_HISTORY_SAMPLES)
		h->count++;
}

void pr_history_add(struct pr_history *h, int64_t mono_us, const double *values)
{
	int64_t missed = 0;

	(void)pthread_mutex_lock(&h->mutex);
	if (h->count)
		missed = (mono_us - h->last_us + h->every_us / 2) / h->every_us - 1;
	if (missed > PR_HISTORY_SAMPLES)
		missed = PR_HISTORY_SAMPLES;
	for (int64_t i = 0; i < missed; i++)
		put_sample(h, NULL);
	put_sample(h, values);
	h->last_us = mono_us;
	(void)pthread_mutex_unlock(&h->mutex);
}

/* back = 0: the newest; NaN when there is none. Under the lock. */
static double past(const struct pr_history *h, size_t series, size_t back)
{
	if (back >= h->count)
		return NAN;
	return h->sample[(h->next + PR_HISTORY_SAMPLES - 1 - back) % PR_HISTORY_SAMPLES][series];
}

void pr_history_put(struct pr_history *h, struct pr_buf *b)
{
	double v;

	(void)pthread_mutex_lock(&h->mutex);
	pr_buf_printf(b, "{\"every_seconds\":%g,\"series\":{", (double)h->every_us / (double)PR_SEC);
	for (size_t i = 0; i < h->series; i++) {
		pr_buf_printf(b, "%s\"%s\":[", i ? "," : "", h->names[i]);
		for (size_t back = h->count; back-- > 0;) {
			v = past(h, i, back);
			if (isnan(v))
				pr_buf_puts(b, back ? "null," : "null");
			else
				pr_buf_printf(b, back ? "%.10g," : "%.10g", v);
		}
		pr_buf_puts(b, "]");
	}
	pr_buf_puts(b, "}}");
	(void)pthread_mutex_unlock(&h->mutex);
}

const char *pr_trend(double was, double is, double least)
{
	double moved = is - was;

	if (isnan(was) || isnan(is))
		return "";
	if (fabs(moved) < least)
		return "steady";
	return moved > 0 ? "growing" : "falling";
}

const char *pr_history_trend(struct pr_history *h, size_t series, double least)
{
	size_t back = (size_t)(60 * PR_SEC / (h->every_us > PR_SEC ? h->every_us : PR_SEC));
	double was, is;

	(void)pthread_mutex_lock(&h->mutex);
	if (back >= h->count)
		back = h->count ? h->count - 1 : 0;
	is = past(h, series, 0);
	was = back ? past(h, series, back) : NAN;
	(void)pthread_mutex_unlock(&h->mutex);
	return pr_trend(was, is, least);
}
