/* lib/metrics.c -- families and series. Updating a series and finding one
 * again take no lock; only making one does. Refuses to grow past a family's cap, to
 * remove a series, and to write a scrape that Prometheus would drop whole: label values
 * are escaped, of valid UTF-8 and of bounded length, no two series have the same labels.
 *
 * Threads: families and series are only ever added, by an atomic store of a pointer to
 * a finished object; so lookup and rendering walk the lists without the mutex. A render
 * reads each value by itself: a counter raised meanwhile shows the old or the new value.
 * A histogram's _count is the sum of the buckets read for it, so the two always agree. */
#include "lib/metrics_inner.h"

#include "lib/err.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VALUE_BYTES 200 /* a Kafka topic's name has at most 249, nearly all far fewer */
#define DEFAULT_CAP     1000

/* From a quiet broker's acknowledgement to a stalled one that still recovers. */
const double pr_seconds_buckets[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
	30, 60, 120, 300 };
const size_t pr_seconds_buckets_n = sizeof(pr_seconds_buckets) / sizeof(pr_seconds_buckets[0]);

/* ---- values ---- */

void pr_counter_add(struct pr_series *s, uint64_t n)
{
	assert(s->family->type == PR_COUNTER && !s->family->real);
	atomic_fetch_add_explicit(&s->value, n, memory_order_relaxed);
}

uint64_t pr_counter_value(const struct pr_series *s)
{
	assert(s->family->type == PR_COUNTER && !s->family->real);
	return metrics_load(&s->value);
}

void pr_family_each(
	struct pr_family *f, void (*each)(void *ctx, const char *value, uint64_t count), void *ctx)
{
	assert(f->type == PR_COUNTER && f->label_count > 0);
	for (struct pr_series *s = atomic_load_explicit(&f->first, memory_order_acquire); s;
		s = atomic_load_explicit(&s->next, memory_order_acquire))
		each(ctx, s->key, metrics_load(&s->value));
}

void pr_gauge_set(struct pr_series *s, double v)
{
	assert(s->family->type == PR_GAUGE);
	metrics_set_real(s, v);
}

double pr_gauge_value(const struct pr_series *s)
{
	assert(s->family->type == PR_GAUGE);
	return metrics_of_bits(metrics_load(&s->value));
}

void pr_observe(struct pr_series *s, double v)
{
	pr_observe_n(s, v, 1);
}

static size_t bucket_of(const struct pr_family *f, double v)
{
	size_t low = 0, high = f->bound_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (v <= f->bound[mid])
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

/* A sum must never fall (rate() would take it for a restart) nor become NaN for good: a
 * negative value, say of two hosts' clocks, counts as 0, and a NaN is dropped. */
void pr_observe_n(struct pr_series *s, double v, uint64_t n)
{
	uint64_t was = metrics_load(&s->value);

	assert(s->family->type == PR_HISTOGRAM);
	if (isnan(v) || n == 0)
		return;
	if (v < 0)
		v = 0;
	atomic_fetch_add_explicit(&s->bucket[bucket_of(s->family, v)], n, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&s->value, &was,
		metrics_bits_of(metrics_of_bits(was) + v * (double)n), memory_order_relaxed,
		memory_order_relaxed))
		;
}

/* ---- series ---- */

/* FNV-1a, over the values and their NULs. */
static uint64_t hash_of(const struct pr_family *f, const char *const *values)
{
	uint64_t h = 14695981039346656037ULL;

	for (size_t i = 0; i < f->label_count; i++) {
		const unsigned char *p = (const unsigned char *)values[i];

		do {
			h = (h ^ *p) * 1099511628211ULL;
		} while (*p++);
	}
	return h ^ (h >> 32);
}

static int same_key(const struct pr_family *f, const char *key, const char *const *values)
{
	for (size_t i = 0; i < f->label_count; i++) {
		if (strcmp(key, values[i]) != 0)
			return 0;
		key += strlen(key) + 1;
	}
	return 1;
}

static struct pr_series *find(const struct pr_family *f, const char *const *values, uint64_t hash)
{
	struct pr_series *s =
		atomic_load_explicit(&f->slot[hash & (f->slot_count - 1)], memory_order_acquire);

	while (s && (s->hash != hash || !same_key(f, s->key, values)))
		s = s->chain;
	return s;
}

/* Bytes of the well-formed UTF-8 character at s, 0 when there is none. */
static size_t utf8_len(const unsigned char *s)
{
	size_t n = s[0] < 0x80   ? 1
		   : s[0] < 0xc2 ? 0
		   : s[0] < 0xe0 ? 2
		   : s[0] < 0xf0 ? 3
		   : s[0] < 0xf5 ? 4
				 : 0;

	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
		(s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

/* A label value as it may stand in a scrape: bytes that are no UTF-8 become '?', the rest
 * is cut at a whole character. Returns 1 when that changed anything. */
static int clean(const char *value, char *ret)
{
	const unsigned char *s = (const unsigned char *)value;
	size_t len = 0, n;
	int changed = 0;

	while (*s) {
		n = utf8_len(s);
		if (len + (n ? n : 1) > MAX_VALUE_BYTES)
			break;
		if (n)
			memcpy(ret + len, s, n);
		else
			ret[len] = '?';
		changed |= n == 0;
		len += n ? n : 1;
		s += n ? n : 1;
	}
	ret[len] = '\0';
	return changed || *s;
}

void metrics_put_escaped(struct pr_buf *b, const char *s, int quotes)
{
	for (; *s; s++) {
		size_t plain = strcspn(s, quotes ? "\\\n\"" : "\\\n");

		pr_buf_put(b, s, plain);
		s += plain;
		if (!*s)
			return;
		pr_buf_put(b, *s == '\n' ? "\\n" : *s == '"' ? "\\\"" : "\\\\", 2);
	}
}

static char *labels_text(const struct pr_family *f, const char *const *values)
{
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "");
	for (size_t i = 0; i < f->label_count; i++) {
		if (i > 0)
			pr_buf_puts(&b, ",");
		pr_buf_puts(&b, f->label[i]);
		pr_buf_puts(&b, "=\"");
		metrics_put_escaped(&b, values[i], 1);
		pr_buf_puts(&b, "\"");
	}
	return b.s ? b.s : pr_strdup("");
}

static char *key_of(const struct pr_family *f, const char *const *values)
{
	size_t len = 0, n;
	char *key;

	for (size_t i = 0; i < f->label_count; i++)
		len += strlen(values[i]) + 1;
	key = pr_malloc(len);
	len = 0;
	for (size_t i = 0; i < f->label_count; i++) {
		n = strlen(values[i]) + 1;
		memcpy(key + len, values[i], n);
		len += n;
	}
	return key;
}

/* Needs the lock. The stores that publish the series come last: whoever finds it sees it whole. */
static struct pr_series *add(struct pr_family *f, const char *const *values, uint64_t hash)
{
	size_t buckets = f->type == PR_HISTOGRAM ? f->bound_count + 1 : 0;
	struct pr_series *s = pr_calloc(1, sizeof(*s) + buckets * sizeof(s->bucket[0]));
	_Atomic(struct pr_series *) *slot = &f->slot[hash & (f->slot_count - 1)];

	s->family = f;
	s->hash = hash;
	s->key = key_of(f, values);
	s->labels = labels_text(f, values);
	s->chain = atomic_load_explicit(slot, memory_order_relaxed);
	atomic_store_explicit(slot, s, memory_order_release);
	atomic_store_explicit(f->last ? &f->last->next : &f->first, s, memory_order_release);
	f->last = s;
	atomic_fetch_add_explicit(&f->series_count, 1, memory_order_release);
	return s;
}

static struct pr_series *find_or_add(struct pr_family *f, const char *const *values)
{
	uint64_t hash = hash_of(f, values);
	struct pr_series *s;

	pthread_mutex_lock(&f->lock);
	s = find(f, values, hash);
	if (!s && atomic_load(&f->series_count) < f->cap)
		s = add(f, values, hash);
	pthread_mutex_unlock(&f->lock);
	return s;
}

/* Where everything past the cap goes: one more series, beyond the cap. */
static struct pr_series *other(struct pr_family *f)
{
	struct pr_series *s = atomic_load_explicit(&f->other, memory_order_acquire);
	const char *values[MAX_LABELS];
	uint64_t hash;

	if (s)
		return s;
	for (size_t i = 0; i < f->label_count; i++)
		values[i] = "other";
	hash = hash_of(f, values);
	pthread_mutex_lock(&f->lock);
	s = find(f, values, hash);
	if (!s)
		s = add(f, values, hash);
	atomic_store_explicit(&f->other, s, memory_order_release);
	pthread_mutex_unlock(&f->lock);
	return s;
}

/* The way of a value seen for the first time, of one that must be cleaned, and of all past the cap. */
static struct pr_series *get_slowly(struct pr_family *f, const char *const *values)
{
	char text[MAX_LABELS][MAX_VALUE_BYTES + 1];
	const char *cleaned[MAX_LABELS];
	struct pr_series *s = NULL;
	int changed = 0;

	for (size_t i = 0; i < f->label_count; i++) {
		changed |= clean(values[i], text[i]);
		cleaned[i] = text[i];
	}
	if (changed)
		s = find(f, cleaned, hash_of(f, cleaned));
	if (!s && atomic_load_explicit(&f->series_count, memory_order_acquire) < f->cap)
		s = find_or_add(f, cleaned);
	return s ? s : other(f);
}

struct pr_series *pr_series_get(struct pr_family *f, const char *const *values)
{
	const char *filled[MAX_LABELS];
	struct pr_series *s;

	if (f->label_count == 0)
		return pr_series_one(f);
	for (size_t i = 0; i < f->label_count; i++)
		filled[i] = values[i] ? values[i] : "";
	s = find(f, filled, hash_of(f, filled));
	return s ? s : get_slowly(f, filled);
}

struct pr_series *pr_series_one(struct pr_family *f)
{
	assert(f->label_count == 0);
	return atomic_load_explicit(&f->first, memory_order_acquire);
}

static void series_free(struct pr_series *s)
{
	free(s->key);
	free(s->labels);
	free(s);
}

/* ---- families ---- */

struct pr_metrics *pr_metrics_new(void)
{
	struct pr_metrics *m = pr_calloc(1, sizeof(*m));

	pthread_mutex_init(&m->lock, NULL);
	return m;
}

static void family_free(struct pr_family *f)
{
	struct pr_series *s = atomic_load(&f->first), *next;

	for (; s; s = next) {
		next = atomic_load(&s->next);
		series_free(s);
	}
	for (size_t i = 0; i < f->label_count; i++)
		free(f->label[i]);
	pthread_mutex_destroy(&f->lock);
	free(f->slot);
	free(f);
}

void pr_metrics_free(struct pr_metrics *m)
{
	struct pr_family *f, *next;

	if (!m)
		return;
	for (f = atomic_load(&m->first); f; f = next) {
		next = atomic_load(&f->next);
		family_free(f);
	}
	free(atomic_load(&m->process));
	pthread_mutex_destroy(&m->lock);
	free(m);
}

static int is_name(const char *s, int colons)
{
	static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
	static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789:";

	if (!*s || !strchr(first, *s))
		return 0;
	return s[strspn(s, rest)] == '\0' && (colons || !strchr(s, ':'));
}

static int ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n > m && strcmp(s + n - m, end) == 0;
}

static void split_labels(struct pr_family *f, const char *labels)
{
	while (*labels) {
		size_t n = strcspn(labels, ",");

		assert(f->label_count < MAX_LABELS);
		f->label[f->label_count] = pr_calloc(n + 1, 1);
		memcpy(f->label[f->label_count], labels, n);
		assert(is_name(f->label[f->label_count], 0) && strcmp(f->label[f->label_count], "le") != 0);
		f->label_count++;
		labels += n + (labels[n] == ',');
	}
}

/* About four series to a slot at the cap, and never more than 32 kB of slots. */
static size_t slots_for(size_t cap)
{
	size_t n = 1;

	while (n < cap / 4 && n < 4096)
		n *= 2;
	return n;
}

/* A name that is wrong or taken is our own mistake. */
static void family_add(struct pr_metrics *m, struct pr_family *f)
{
	assert(is_name(f->name, 1) && (f->type == PR_COUNTER) == ends_with(f->name, "_total"));
	pthread_mutex_lock(&m->lock);
	for (struct pr_family *g = atomic_load(&m->first); g; g = atomic_load(&g->next))
		assert(strcmp(f->name, g->name) != 0);
	atomic_store_explicit(m->last ? &m->last->next : &m->first, f, memory_order_release);
	m->last = f;
	pthread_mutex_unlock(&m->lock);
}

struct pr_family *metrics_family_make(struct pr_metrics *m, enum pr_metric_type type, const char *name,
	const char *labels, size_t cap, const char *help, const double *bound, size_t n, int real)
{
	struct pr_family *f = pr_calloc(1, sizeof(*f));

	pthread_mutex_init(&f->lock, NULL);
	f->type = type;
	f->name = name;
	f->help = help;
	f->bound = bound;
	f->bound_count = n;
	f->real = real;
	f->cap = cap ? cap : DEFAULT_CAP;
	split_labels(f, labels);
	f->slot_count = f->label_count ? slots_for(f->cap) : 1;
	f->slot = pr_calloc(f->slot_count, sizeof(*f->slot));
	/* Without labels it counts from 0 from the start, so that rate() sees the first event. */
	if (f->label_count == 0)
		(void)add(f, NULL, 0);
	family_add(m, f);
	return f;
}

struct pr_family *pr_family_new(struct pr_metrics *m, enum pr_metric_type type, const char *name,
	const char *labels, size_t cap, const char *help)
{
	assert(type != PR_HISTOGRAM);
	return metrics_family_make(m, type, name, labels, cap, help, NULL, 0, 0);
}

struct pr_family *pr_histogram_new(struct pr_metrics *m, const char *name, const char *labels,
	const double *buckets, size_t n, const char *help)
{
	for (size_t i = 0; i < n; i++)
		assert(isfinite(buckets[i]) && (i == 0 || buckets[i - 1] < buckets[i]));
	return metrics_family_make(m, PR_HISTOGRAM, name, labels, 0, help, buckets, n, 0);
}
