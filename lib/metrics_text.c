/* lib/metrics_text.c -- a scrape: all families as text, in Prometheus' format and in OpenMetrics. Takes no
 * lock. */
#include "lib/metrics_inner.h"

#include "lib/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
		count += metrics_load(&s->bucket[i]);
		put_series(o, s, "_bucket", i < f->bound_count ? &f->bound[i] : &inf);
		put_u64(&o->b, count);
		pr_buf_puts(&o->b, "\n");
	}
	put_series(o, s, "_sum", NULL);
	put_double(&o->b, metrics_of_bits(metrics_load(&s->value)));
	pr_buf_puts(&o->b, "\n");
	put_series(o, s, "_count", NULL);
	put_u64(&o->b, count);
	pr_buf_puts(&o->b, "\n");
}

static void put_value(struct out *o, const struct pr_series *s)
{
	put_series(o, s, "", NULL);
	if (s->family->type == PR_COUNTER && !s->family->real)
		put_u64(&o->b, metrics_load(&s->value));
	else
		put_double(&o->b, metrics_of_bits(metrics_load(&s->value)));
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
	metrics_put_escaped(&o->b, f->help, o->openmetrics);
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

char *pr_metrics_render(struct pr_metrics *m, const char *constant_labels, int openmetrics, size_t *ret_len)
{
	struct out o = { .constant = constant_labels ? constant_labels : "", .openmetrics = openmetrics };
	struct process *p = atomic_load_explicit(&m->process, memory_order_acquire);

	if (p)
		metrics_process_read(p);
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
