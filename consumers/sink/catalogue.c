/* consumers/sink/catalogue.c -- what payloads of each topic and type look like, and what has changed in it.
 * Each thread learns by itself (lib/shape.c) and tells the database, which knows all of them and finds what
 * is new (sink.learn). Types and places are bounded: past the bound nothing more is learnt, which is told
 * once.
 *
 * Refuses to stop a sink: a database that does not take the catalogue is told of, and asked again. */
#include "consumers/consumer.h"
#include "consumers/sink/sink.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/metrics.h"
#include "lib/project.h"
#include "lib/shape.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TYPES   256  /* of a thread; times MAX_PATHS times 300 bytes would be the worst */
#define MAX_PATHS   2000 /* of a type */
#define ALL_PATHS   20000
#define TOLD_EVERY  (10 * PR_SEC)
#define AGAIN_AFTER (5 * PR_SEC)
#define MOST_LINES  20 /* of the log, for what has changed at once */

struct type {
	struct type *next;
	char *topic, *name;
	size_t name_len;
	struct pr_shape *shape;
	int overflow; /* told */
};

/* A thread's share: nobody else touches it while the thread lives. */
struct share {
	struct share *next;
	struct sink_catalogue *of;
	struct type *types, *last; /* last: where the row before belonged */
	int types_n, full;
	int fresh;
	int64_t told_us, again_us; /* monotonic */
	struct pr_buf facts;       /* what the database has not taken yet */
};

struct sink_catalogue {
	struct sink_shared *shared;
	struct pr_project *rules; /* NULL: none */
	int mask;                 /* rules leave out or mask something: no example says what was there */
	pthread_mutex_t mutex;    /* of the list */
	struct share *shares;
};

static __thread struct share *mine;

struct sink_catalogue *sink_catalogue_new(struct sink_shared *shared, const struct pr_sink_conf *conf)
{
	struct sink_catalogue *k = pr_calloc(1, sizeof(*k));
	const struct pr_sink_field *f = conf->fields.v;
	struct pr_err err;

	k->shared = shared;
	/* Rules that are none end the lanes before a row comes. */
	if (conf->fields.n > 0 && pr_sink_rules(conf, &k->rules, NULL, &err) < 0)
		k->rules = NULL;
	(void)pthread_mutex_init(&k->mutex, NULL);
	for (size_t i = 0; i < conf->fields.n; i++)
		k->mask |= f[i].action != PR_SINK_RENAME && strncmp(f[i].path, "payload", 7) == 0;
	return k;
}

static void free_share(struct share *s)
{
	struct type *next;

	for (struct type *t = s->types; t; t = next) {
		next = t->next;
		pr_shape_free(t->shape);
		free(t->topic);
		free(t->name);
		free(t);
	}
	pr_buf_free(&s->facts);
	free(s);
}

void sink_catalogue_free(struct sink_catalogue *k)
{
	struct share *next;

	if (!k)
		return;
	for (struct share *s = k->shares; s; s = next) {
		next = s->next;
		free_share(s);
	}
	(void)pthread_mutex_destroy(&k->mutex);
	pr_project_free(k->rules);
	free(k);
}

static struct share *share_of(struct sink_catalogue *k)
{
	if (mine && mine->of == k)
		return mine;
	mine = pr_calloc(1, sizeof(*mine));
	mine->of = k;
	mine->told_us = pr_mono_us();
	(void)pthread_mutex_lock(&k->mutex);
	mine->next = k->shares;
	k->shares = mine;
	(void)pthread_mutex_unlock(&k->mutex);
	return mine;
}

/* ---- learning ---- */

static int is_type(const struct type *t, const struct sink_row *row)
{
	return t->name_len == row->type_len && memcmp(t->name, row->type, row->type_len) == 0 &&
	       strcmp(t->topic, row->topic) == 0;
}

static struct type *add_type(struct share *s, const struct sink_row *row)
{
	struct type *t;

	if (s->types_n == MAX_TYPES) {
		if (!s->full)
			pr_log(PR_WARN, "the catalogue is full: further types are not looked at",
				KI("types", MAX_TYPES), KS("topic", row->topic));
		s->full = 1;
		return NULL;
	}
	t = pr_calloc(1, sizeof(*t));
	t->topic = pr_strdup(row->topic);
	t->name = pr_malloc(row->type_len + 1);
	memcpy(t->name, row->type, row->type_len);
	t->name[row->type_len] = '\0';
	t->name_len = row->type_len;
	t->shape = pr_shape_new(
		s->types_n < ALL_PATHS / MAX_PATHS ? MAX_PATHS : ALL_PATHS / MAX_TYPES, s->of->rules);
	t->next = s->types;
	s->types = t;
	s->types_n++;
	return t;
}

static struct type *type_of(struct share *s, const struct sink_row *row)
{
	if (s->last && is_type(s->last, row))
		return s->last;
	for (struct type *t = s->types; t; t = t->next)
		if (is_type(t, row))
			return t;
	return add_type(s, row);
}

void sink_catalogue_row(struct sink_catalogue *k, const struct sink_row *row)
{
	struct share *s = share_of(k);
	struct type *t;

	if (row->payload && !row->json)
		return;
	t = type_of(s, row);
	s->last = t;
	if (t && pr_shape_see(t->shape, row->payload, row->payload_len, row->time_us) == 1)
		s->fresh = 1;
}

/* ---- telling ---- */

struct telling {
	struct share *share;
	const struct type *type;
};

static void put_text(struct pr_buf *b, const char *name, const char *s, size_t len)
{
	pr_buf_printf(b, ",\"%s\":", name);
	if (s && pr_utf8_text(s, len))
		pr_buf_json(b, s, len);
	else
		pr_buf_puts(b, s ? "\"?\"" : "null"); /* jsonb holds no NUL */
}

static void put_fact(void *ctx, const struct pr_shape_path *p)
{
	const struct telling *t = ctx;
	struct pr_buf *b = &t->share->facts, pii = { 0 }, sample = { 0 };
	const char *s = p->sample;

	if (s && t->share->of->mask && !p->pii) {
		pr_shape_mask(&sample, s, strlen(s));
		s = sample.s;
	}
	pr_shape_put_pii(&pii, p->pii);
	pr_buf_printf(b, "%s{\"n\":%llu,\"f\":%lld,\"l\":%lld,\"c\":%s,\"k\":[\"", b->len ? "," : "[",
		(unsigned long long)p->seen, (long long)(p->first_us < 0 ? 0 : p->first_us),
		(long long)(p->last_us < 0 ? 0 : p->last_us), p->collapsed ? "true" : "false");
	pr_shape_put_kinds(b, p->kinds, "\",\"");
	pr_buf_puts(b, "\"]");
	put_text(b, "t", t->type->topic, strlen(t->type->topic));
	put_text(b, "y", t->type->name, t->type->name_len);
	put_text(b, "p", p->path, strlen(p->path));
	put_text(b, "s", s, s ? strlen(s) : 0);
	put_text(b, "i", pii.len ? pii.s : NULL, pii.len);
	pr_buf_puts(b, "}");
	pr_buf_free(&pii);
	pr_buf_free(&sample);
}

static void collect(struct share *s)
{
	struct telling t = { .share = s };

	for (struct type *y = s->types; y; y = y->next) {
		t.type = y;
		if (pr_shape_overflow(y->shape) && !y->overflow) {
			y->overflow = 1;
			pr_log(PR_WARN,
				"the catalogue is full: further places of this type are not looked at",
				KS("topic", y->topic), KS("type", y->name));
		}
		if (pr_shape_untold(y->shape))
			pr_shape_tell(y->shape, put_fact, &t);
	}
	if (s->facts.len)
		pr_buf_puts(&s->facts, "]");
	s->fresh = 0;
}

static void tell_drift(struct sink_catalogue *k, const PGresult *res)
{
	int n = PQntuples(res);

	for (int i = 0; i < n && i < MOST_LINES; i++)
		pr_log(PR_WARN, "payloads have changed", KS("topic", PQgetvalue(res, i, 0)),
			KS("type", PQgetvalue(res, i, 1)), KS("path", PQgetvalue(res, i, 2)),
			KS("kind", PQgetvalue(res, i, 3)),
			KS("new", *PQgetvalue(res, i, 4) == 'p' ? "place" : "kind of value"));
	if (n > MOST_LINES)
		pr_log(PR_WARN, "payloads have changed in more places: see sink.drift",
			KI("more", n - MOST_LINES));
	if (n > 0)
		pr_counter_add(k->shared->m.drift, (uint64_t)n);
}

void sink_catalogue_flush(struct sink_catalogue *k, struct pr_pg *pg)
{
	struct share *s = share_of(k);
	int64_t now = pr_mono_us();
	struct pr_err err = { 0 };
	PGresult *res;

	if (now < s->again_us || (!s->facts.len && !s->fresh && now - s->told_us < TOLD_EVERY))
		return;
	if (!s->facts.len)
		collect(s);
	s->told_us = now;
	if (!s->facts.len)
		return;
	res = pr_pg_exec(pg, "SELECT topic, type, path, kind, what FROM sink.learn($1::jsonb)", 1,
		(const char *const[]){ s->facts.s }, &err);
	if (res) {
		tell_drift(k, res);
		pr_buf_free(&s->facts);
	} else {
		s->again_us = now + AGAIN_AFTER;
		/* Facts that the database refuses would be refused again. */
		if (err.kind == PR_REJECT)
			pr_buf_free(&s->facts);
		pr_log_err(PR_WARN, "the catalogue is not kept", &err);
	}
	PQclear(res);
}
