/* lib/metrics.c -- families, series and their text. Updating a series and finding one
 * again take no lock; only making one does. Refuses to grow past a family's cap, to
 * remove a series, and to write a scrape that Prometheus would drop whole: label values
 * are escaped, of valid UTF-8 and of bounded length, no two series have the same labels.
 *
 * Threads: families and series are only ever added, by an atomic store of a pointer to
 * a finished object; so lookup and rendering walk the lists without the mutex. A render
 * reads each value by itself: a counter raised meanwhile shows the old or the new value.
 * A histogram's _count is the sum of the buckets read for it, so the two always agree. */
#include "lib/metrics.h"

#include "lib/clock.h"
#include "lib/err.h"
#include "lib/json.h"

#include <assert.h>
#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_LABELS      8
#define MAX_VALUE_BYTES 200 /* a Kafka topic's name has at most 249, nearly all far fewer */
#define DEFAULT_CAP     1000

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

/* From a quiet broker's acknowledgement to a stalled one that still recovers. */
const double pr_seconds_buckets[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
	30, 60, 120, 300 };
const size_t pr_seconds_buckets_n = sizeof(pr_seconds_buckets) / sizeof(pr_seconds_buckets[0]);

/* ---- values ---- */

static uint64_t bits_of(double v)
{
	uint64_t bits;

	memcpy(&bits, &v, sizeof(bits));
	return bits;
}

static double of_bits(uint64_t bits)
{
	double v;

	memcpy(&v, &bits, sizeof(v));
	return v;
}

static uint64_t load(const _Atomic uint64_t *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

void pr_counter_add(struct pr_series *s, uint64_t n)
{
	assert(s->family->type == PR_COUNTER && !s->family->real);
	atomic_fetch_add_explicit(&s->value, n, memory_order_relaxed);
}

uint64_t pr_counter_value(const struct pr_series *s)
{
	assert(s->family->type == PR_COUNTER && !s->family->real);
	return load(&s->value);
}

static void set_real(struct pr_series *s, double v)
{
	atomic_store_explicit(&s->value, bits_of(v), memory_order_relaxed);
}

void pr_gauge_set(struct pr_series *s, double v)
{
	assert(s->family->type == PR_GAUGE);
	set_real(s, v);
}

double pr_gauge_value(const struct pr_series *s)
{
	assert(s->family->type == PR_GAUGE);
	return of_bits(load(&s->value));
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
	uint64_t was = load(&s->value);

	assert(s->family->type == PR_HISTOGRAM);
	if (isnan(v) || n == 0)
		return;
	if (v < 0)
		v = 0;
	atomic_fetch_add_explicit(&s->bucket[bucket_of(s->family, v)], n, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&s->value, &was, bits_of(of_bits(was) + v * (double)n),
		memory_order_relaxed, memory_order_relaxed))
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

static void put_escaped(struct pr_buf *b, const char *s, int quotes)
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
		put_escaped(&b, values[i], 1);
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

static struct pr_family *family_make(struct pr_metrics *m, enum pr_metric_type type, const char *name,
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
	return family_make(m, type, name, labels, cap, help, NULL, 0, 0);
}

struct pr_family *pr_histogram_new(struct pr_metrics *m, const char *name, const char *labels,
	const double *buckets, size_t n, const char *help)
{
	for (size_t i = 0; i < n; i++)
		assert(isfinite(buckets[i]) && (i == 0 || buckets[i - 1] < buckets[i]));
	return family_make(m, PR_HISTOGRAM, name, labels, 0, help, buckets, n, 0);
}

/* ---- text ---- */

struct out {
	struct pr_buf b;
	const char *constant; /* "" or labels for every series */
	int openmetrics;
};

static void put_u64(struct pr_buf *b, uint64_t v)
{
	char text[20];
	size_t at = sizeof(text);

	do {
		text[--at] = (char)('0' + v % 10);
	} while (v /= 10);
	pr_buf_put(b, text + at, sizeof(text) - at);
}

/* The shortest decimal that reads back as v. */
static void put_double(struct pr_buf *b, double v)
{
	char text[32];

	if (isnan(v)) {
		pr_buf_puts(b, "NaN");
	} else if (isinf(v)) {
		pr_buf_puts(b, v < 0 ? "-Inf" : "+Inf");
	} else if (v >= 0 && v < 1e15 && v == (double)(uint64_t)v && !signbit(v)) {
		put_u64(b, (uint64_t)v);
	} else {
		for (int digits = 15; digits <= 17; digits++) {
			(void)snprintf(text, sizeof(text), "%.*g", digits, v);
			if (strtod(text, NULL) == v)
				break;
		}
		pr_buf_puts(b, text);
	}
}

/* le="1.0" in both formats (OpenMetrics asks for it): the series must not change with the scraper. */
static void put_bound(struct pr_buf *b, double bound)
{
	size_t at = b->len;

	put_double(b, bound);
	if (isfinite(bound) && !strpbrk(b->s + at, ".e"))
		pr_buf_puts(b, ".0");
}

/* name_suffix{constant,labels,le="bound"} and a space; bound NULL for none. */
static void put_series(struct out *o, const struct pr_series *s, const char *suffix, const double *bound)
{
	const char *sep = "{";

	pr_buf_puts(&o->b, s->family->name);
	pr_buf_puts(&o->b, suffix);
	if (*o->constant) {
		pr_buf_puts(&o->b, sep);
		pr_buf_puts(&o->b, o->constant);
		sep = ",";
	}
	if (*s->labels) {
		pr_buf_puts(&o->b, sep);
		pr_buf_puts(&o->b, s->labels);
		sep = ",";
	}
	if (bound) {
		pr_buf_puts(&o->b, sep);
		pr_buf_puts(&o->b, "le=\"");
		put_bound(&o->b, *bound);
		pr_buf_puts(&o->b, "\"");
		sep = ",";
	}
	pr_buf_puts(&o->b, *sep == ',' ? "} " : " ");
}

static void put_histogram(struct out *o, const struct pr_series *s)
{
	static const double inf = INFINITY;
	const struct pr_family *f = s->family;
	uint64_t count = 0;

	for (size_t i = 0; i <= f->bound_count; i++) {
		count += load(&s->bucket[i]);
		put_series(o, s, "_bucket", i < f->bound_count ? &f->bound[i] : &inf);
		put_u64(&o->b, count);
		pr_buf_puts(&o->b, "\n");
	}
	put_series(o, s, "_sum", NULL);
	put_double(&o->b, of_bits(load(&s->value)));
	pr_buf_puts(&o->b, "\n");
	put_series(o, s, "_count", NULL);
	put_u64(&o->b, count);
	pr_buf_puts(&o->b, "\n");
}

static void put_value(struct out *o, const struct pr_series *s)
{
	put_series(o, s, "", NULL);
	if (s->family->type == PR_COUNTER && !s->family->real)
		put_u64(&o->b, load(&s->value));
	else
		put_double(&o->b, of_bits(load(&s->value)));
	pr_buf_puts(&o->b, "\n");
}

static void put_meta(struct out *o, const char *what, const char *name, size_t len)
{
	pr_buf_puts(&o->b, "# ");
	pr_buf_puts(&o->b, what);
	pr_buf_puts(&o->b, " ");
	pr_buf_put(&o->b, name, len);
	pr_buf_puts(&o->b, " ");
}

static void put_unit(struct out *o, const char *name, size_t len)
{
	static const char *const units[] = { "seconds", "bytes", "ratio" };

	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		size_t n = strlen(units[i]);

		if (len > n + 1 && name[len - n - 1] == '_' && memcmp(name + len - n, units[i], n) == 0) {
			put_meta(o, "UNIT", name, len);
			pr_buf_puts(&o->b, units[i]);
			pr_buf_puts(&o->b, "\n");
		}
	}
}

static void put_family(struct out *o, const struct pr_family *f)
{
	static const char *const types[] = { "counter\n", "gauge\n", "histogram\n" };
	size_t len = strlen(f->name);

	/* OpenMetrics names a counter without the _total its samples carry. */
	if (o->openmetrics && f->type == PR_COUNTER)
		len -= strlen("_total");
	put_meta(o, "HELP", f->name, len);
	put_escaped(&o->b, f->help, o->openmetrics);
	pr_buf_puts(&o->b, "\n");
	put_meta(o, "TYPE", f->name, len);
	pr_buf_puts(&o->b, types[f->type]);
	if (o->openmetrics)
		put_unit(o, f->name, len);
	for (struct pr_series *s = atomic_load_explicit(&f->first, memory_order_acquire); s;
		s = atomic_load_explicit(&s->next, memory_order_acquire)) {
		if (f->type == PR_HISTOGRAM)
			put_histogram(o, s);
		else
			put_value(o, s);
	}
}

static void process_read(const struct process *p);

char *pr_metrics_render(struct pr_metrics *m, const char *constant_labels, int openmetrics, size_t *ret_len)
{
	struct out o = { .constant = constant_labels ? constant_labels : "", .openmetrics = openmetrics };
	struct process *p = atomic_load_explicit(&m->process, memory_order_acquire);

	if (p)
		process_read(p);
	/* One allocation for the usual scrape, which is a little longer than the last one. */
	o.b.cap = atomic_load_explicit(&m->size_hint, memory_order_relaxed) + 1024;
	o.b.s = pr_calloc(o.b.cap, 1);
	for (struct pr_family *f = atomic_load_explicit(&m->first, memory_order_acquire); f;
		f = atomic_load_explicit(&f->next, memory_order_acquire))
		put_family(&o, f);
	if (openmetrics)
		pr_buf_puts(&o.b, "# EOF\n");
	atomic_store_explicit(&m->size_hint, o.b.len, memory_order_relaxed);
	if (ret_len)
		*ret_len = o.b.len;
	return o.b.s;
}

/* ---- the process itself ---- */

/* The first bytes of a /proc file, "" when it cannot be read. */
static const char *slurp(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "re");
	size_t n = 0;

	if (f) {
		n = fread(buf, 1, size - 1, f);
		(void)fclose(f);
	}
	buf[n] = '\0';
	return buf;
}

/* Field n (from 1) of /proc/self/stat, counted after the command's name, which may hold anything. */
static double stat_field(int n)
{
	char buf[1024];
	const char *p = strrchr(slurp("/proc/self/stat", buf, sizeof(buf)), ')');

	for (int i = 2; p && i < n; i++)
		p = strchr(p + 1, ' ');
	return p ? strtod(p + 1, NULL) : NAN;
}

static double start_time(void)
{
	struct timespec boot = { 0 };

	/* Field 22 counts clock ticks since the boot. */
	if (clock_gettime(CLOCK_BOOTTIME, &boot) < 0)
		return NAN;
	return (double)pr_wall_us() / 1e6 - ((double)boot.tv_sec + (double)boot.tv_nsec / 1e9) +
	       stat_field(22) / (double)sysconf(_SC_CLK_TCK);
}

static double resident_bytes(void)
{
	char buf[256];
	const char *p = strchr(slurp("/proc/self/statm", buf, sizeof(buf)), ' ');

	return p ? strtod(p + 1, NULL) * (double)sysconf(_SC_PAGESIZE) : NAN;
}

static double open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	const struct dirent *e;
	double n = -1; /* the directory's own */

	if (!dir)
		return NAN;
	while ((e = readdir(dir)))
		n += e->d_name[0] != '.';
	(void)closedir(dir);
	return n;
}

static double max_fds(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return NAN;
	return lim.rlim_cur == RLIM_INFINITY ? INFINITY : (double)lim.rlim_cur;
}

static void process_read(const struct process *p)
{
	struct timespec cpu = { 0 };

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	set_real(p->cpu, (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
	set_real(p->resident, resident_bytes());
	set_real(p->fds, open_fds());
	set_real(p->max_fds, max_fds());
	set_real(p->threads, stat_field(20));
}

static struct pr_series *process_gauge(struct pr_metrics *m, const char *name, const char *help)
{
	return pr_series_one(pr_family_new(m, PR_GAUGE, name, "", 0, help));
}

void pr_metrics_process(struct pr_metrics *m)
{
	struct process *p = pr_calloc(1, sizeof(*p));

	assert(!atomic_load(&m->process));
	p->cpu = pr_series_one(family_make(m, PR_COUNTER, "process_cpu_seconds_total", "", 0,
		"Total user and system CPU time spent in seconds.", NULL, 0, 1));
	p->resident = process_gauge(m, "process_resident_memory_bytes", "Resident memory size in bytes.");
	p->fds = process_gauge(m, "process_open_fds", "Number of open file descriptors.");
	p->max_fds = process_gauge(m, "process_max_fds", "Maximum number of open file descriptors.");
	p->start = process_gauge(
		m, "process_start_time_seconds", "Start time of the process since unix epoch in seconds.");
	p->threads = process_gauge(m, "process_threads", "Number of threads of the process.");
	set_real(p->start, start_time());
	atomic_store_explicit(&m->process, p, memory_order_release);
}
