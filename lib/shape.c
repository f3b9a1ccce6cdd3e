/* lib/shape.c -- a tree of places and one pass over each payload beside it. Members mostly come in the order
 * in which they came before: the next one is tried first, so that the pass costs little more than reading the
 * JSON. Refuses to grow without end: levels, members of an object, places and bytes of an example are
 * bounded. */
#include "lib/shape.h"

#include "lib/err.h"
#include "lib/json_read.h"
#include "lib/project.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH    32
#define MAX_MEMBERS  250
#define MAX_NAME     100
#define MAX_SAMPLE   60
#define FIRST        100 /* payloads whose values are looked at */
#define ONE_IN       64  /* of those behind them */
#define PII_BY_VALUE 5

struct node {
	char *name; /* NULL: of the root, of elements, of a map's members */
	size_t len;
	struct node *child, *last, *next; /* in the order in which they came first */
	struct pr_project_place place;    /* beside the rules */
	int members;
	unsigned char element, map, collapsed;
	unsigned char plain; /* its name is written as it is */
	unsigned kinds, name_pii;
	uint64_t seen, told; /* payload by payload, an array's elements each */
	uint64_t objects;    /* of kind object: how many there were */
	int64_t first_us, last_us;
	uint64_t looked, like[PII_BY_VALUE]; /* values that were looked at, and looked like */
	char *sample;
};

struct pr_shape {
	struct node root;
	int max_paths, paths, overflow, fresh;
	int64_t now_us;
	int sampled;
	struct pr_buf scratch;
};

/* ---- places ---- */

struct pr_shape *pr_shape_new(int max_paths, const struct pr_project *rules)
{
	struct pr_shape *s = pr_calloc(1, sizeof(*s));

	s->root.place = pr_project_root(rules);
	s->max_paths = max_paths;
	s->paths = 1;
	return s;
}

/* As deep as MAX_DEPTH. */
static int free_children(struct node *n)
{
	struct node *next;
	int many = 0;

	for (struct node *c = n->child; c; c = next) {
		next = c->next;
		many += 1 + free_children(c);
		free(c->name);
		free(c->sample);
		free(c);
	}
	n->child = n->last = NULL;
	n->members = 0;
	return many;
}

void pr_shape_free(struct pr_shape *s)
{
	if (!s)
		return;
	(void)free_children(&s->root);
	free(s->root.sample);
	pr_buf_free(&s->scratch);
	free(s);
}

static struct node *add_child(struct pr_shape *s, struct node *in, const char *name, size_t len, int element)
{
	struct node *c;

	if (s->paths >= s->max_paths) {
		s->overflow = 1;
		return NULL;
	}
	s->paths++;
	c = pr_calloc(1, sizeof(*c));
	c->element = element != 0;
	c->place = pr_project_below(in->place, name, len, element);
	if (name) {
		c->name = pr_malloc(len + 1);
		memcpy(c->name, name, len);
		c->name[len] = '\0';
		c->len = len;
		c->name_pii = pr_pii_of_name(name, len);
		c->plain = json_skip_plain(name, name + len) == name + len;
		in->members++;
	}
	if (in->last)
		in->last->next = c;
	else
		in->child = c;
	in->last = c;
	return c;
}

static struct node *unnamed(struct pr_shape *s, struct node *in, int element)
{
	for (struct node *c = in->child; c; c = c->next)
		if (!c->name && c->element == element)
			return c;
	return add_child(s, in, NULL, 0, element);
}

/* A name that is data: another object will have another one. */
static int is_data(const char *name, size_t len)
{
	size_t digits = 0, hex = 0;

	if (len > MAX_NAME)
		return 1;
	for (size_t i = 0; i < len; i++) {
		digits += isdigit((unsigned char)name[i]) != 0;
		hex += isxdigit((unsigned char)name[i]) != 0 || name[i] == '-';
	}
	return (len > 0 && digits == len) || (hex == len && len >= 16 && digits > 0) ||
	       pr_pii_of_text(name, len) != 0;
}

/* What was told of the members is void: they are one place from now on. */
static void make_map(struct pr_shape *s, struct node *n)
{
	struct node *element = NULL;

	for (struct node **at = &n->child; *at; at = &(*at)->next)
		if ((*at)->element) {
			element = *at;
			*at = element->next;
			element->next = NULL;
			break;
		}
	s->paths -= free_children(n);
	n->child = n->last = element;
	n->map = 1;
	n->collapsed = 1;
	s->fresh = 1;
}

static int is_it(const struct node *c, const char *name, size_t len)
{
	return c->name && c->len == len && memcmp(c->name, name, len) == 0;
}

static struct node *find_from(struct node *from, const struct node *to, const char *name, size_t len)
{
	for (struct node *c = from; c != to; c = c->next)
		if (is_it(c, name, len))
			return c;
	return NULL;
}

/* expect: whose turn it is, if all come as they came first. */
static struct node *member_of(
	struct pr_shape *s, struct node *n, struct node *expect, const char *name, size_t len)
{
	struct node *c = find_from(expect, NULL, name, len);

	if (!c)
		c = find_from(n->child, expect, name, len);
	if (c)
		return c;
	if (!n->map && !is_data(name, len)) {
		if (n->members < MAX_MEMBERS)
			return add_child(s, n, name, len, 0);
		make_map(s, n);
	}
	return unnamed(s, n, 0);
}

/* ---- values ---- */

static void keep_sample(struct node *n, const char *raw, size_t len)
{
	if (n->sample && (n->kinds & ~(unsigned)PR_IS_NULL) && strcmp(n->sample, "null") != 0)
		return;
	if (len > MAX_SAMPLE)
		return;
	free(n->sample);
	n->sample = pr_malloc(len + 1);
	memcpy(n->sample, raw, len);
	n->sample[len] = '\0';
}

static void look(struct pr_shape *s, struct node *n, unsigned kind, const char *raw, size_t len)
{
	struct reader r = { .p = raw, .end = raw + len };
	struct json_text text = { .s = raw, .off = -1, .len = len };
	unsigned like;

	keep_sample(n, raw, len);
	if (kind != PR_IS_STRING && kind != PR_IS_INTEGER)
		return;
	s->scratch.len = 0;
	if (kind == PR_IS_STRING && json_string(&r, &s->scratch, &text) < 0)
		return;
	n->looked++;
	like = pr_pii_of_text(text.off < 0 ? text.s : s->scratch.s + text.off, text.len);
	for (unsigned i = 0; like && i < PII_BY_VALUE; i++)
		n->like[i] += like >> i & 1;
}

/* One in ten numbers passes Luhn: what most values look like counts. */
static unsigned pii_of(const struct node *n)
{
	unsigned pii = n->kinds & (PR_IS_STRING | PR_IS_INTEGER | PR_IS_NUMBER) ? n->name_pii : 0;

	for (unsigned i = 0; i < PII_BY_VALUE; i++)
		if (n->like[i] > 0 && n->like[i] * 2 >= n->looked)
			pii |= 1u << i;
	return pii;
}

static unsigned kind_of(const char *raw, size_t len)
{
	switch (*raw) {
	case '"':
		return PR_IS_STRING;
	case 't':
	case 'f':
		return PR_IS_BOOLEAN;
	case 'n':
		return PR_IS_NULL;
	default:
		for (size_t i = 0; i < len; i++)
			if (raw[i] == '.' || raw[i] == 'e' || raw[i] == 'E')
				return PR_IS_NUMBER;
		return PR_IS_INTEGER;
	}
}

/* Strings and numbers without anything special are most of what there is. 0: no value. */
static unsigned scalar(struct reader *r)
{
	const char *from = r->p, *p = from + 1;

	if (*from == '"') {
		p = json_skip_plain(p, r->end);
		if (p < r->end && *p == '"') {
			r->p = p + 1;
			return PR_IS_STRING;
		}
	} else if (*from >= '1' && *from <= '9') {
		while (p < r->end && *p >= '0' && *p <= '9')
			p++;
		if (p < r->end && (*p == ',' || *p == '}' || *p == ']')) {
			r->p = p;
			return PR_IS_INTEGER;
		}
	}
	return json_value(r, 0) < 0 ? 0 : kind_of(from, (size_t)(r->p - from));
}

static void count(struct pr_shape *s, struct node *n, unsigned kind)
{
	if (!(n->kinds & kind)) {
		n->kinds |= kind;
		s->fresh = 1;
	}
	if (n->seen++ == 0)
		n->first_us = s->now_us;
	n->last_us = s->now_us;
}

static int see(struct pr_shape *s, struct node *n, struct reader *r, int depth);

/* A member's name; that of the member whose turn it is needs no reading: its bytes were read before. */
static int name(struct pr_shape *s, struct node *n, struct reader *r, struct node *expect, struct node **ret)
{
	struct json_text text;

	if (expect && expect->plain && (size_t)(r->end - r->p) > expect->len + 1 && *r->p == '"' &&
		r->p[expect->len + 1] == '"' && memcmp(r->p + 1, expect->name, expect->len) == 0) {
		r->p += expect->len + 2;
		*ret = expect;
		return 0;
	}
	s->scratch.len = 0;
	if (json_string(r, &s->scratch, &text) < 0)
		return -1;
	*ret = member_of(s, n, expect, text.off < 0 ? text.s : s->scratch.s + text.off, text.len);
	return 0;
}

static int see_object(struct pr_shape *s, struct node *n, struct reader *r, int depth)
{
	struct node *expect = n->child, *c;

	n->objects++;
	r->p++;
	json_space(r);
	if (json_take(r, '}') == 0)
		return 0;
	do {
		json_space(r);
		if (name(s, n, r, expect, &c) < 0)
			return -1;
		expect = c && c->name ? c->next : n->child;
		json_space(r);
		if (json_take(r, ':') < 0)
			return -1;
		if ((c ? see(s, c, r, depth - 1) : json_value(r, JSON_DEPTH - MAX_DEPTH + depth - 1)) < 0)
			return -1;
		json_space(r);
	} while (json_take(r, ',') == 0);
	return json_take(r, '}');
}

static int see_array(struct pr_shape *s, struct node *n, struct reader *r, int depth)
{
	struct node *c;

	r->p++;
	json_space(r);
	if (json_take(r, ']') == 0)
		return 0;
	c = unnamed(s, n, 1);
	do {
		if ((c ? see(s, c, r, depth - 1) : json_value(r, JSON_DEPTH - MAX_DEPTH + depth - 1)) < 0)
			return -1;
		json_space(r);
	} while (json_take(r, ',') == 0);
	return json_take(r, ']');
}

static int see(struct pr_shape *s, struct node *n, struct reader *r, int depth)
{
	const char *from;
	unsigned kind;

	json_space(r);
	from = r->p;
	if (from == r->end)
		return -1;
	if (*from == '{' || *from == '[') {
		count(s, n, *from == '{' ? PR_IS_OBJECT : PR_IS_ARRAY);
		if (depth == 0 || pr_project_hides(n->place, *from))
			return json_value(r, JSON_DEPTH - MAX_DEPTH + depth);
		return *from == '{' ? see_object(s, n, r, depth) : see_array(s, n, r, depth);
	}
	kind = scalar(r);
	if (!kind)
		return -1;
	count(s, n, kind);
	if (s->sampled || n->seen == 1)
		look(s, n, kind, from, (size_t)(r->p - from));
	return 0;
}

int pr_shape_see(struct pr_shape *s, const char *json, size_t len, int64_t time_us)
{
	struct reader r = { .p = json, .end = json + len, .jsonb = 1 };
	int was = s->fresh, rc = 0;

	s->now_us = time_us;
	s->sampled = s->root.seen < FIRST || s->root.seen % ONE_IN == 0;
	s->fresh = 0;
	if (!json)
		count(s, &s->root, PR_IS_NULL);
	else if (see(s, &s->root, &r, MAX_DEPTH) < 0 || (json_space(&r), r.p != r.end))
		rc = -1;
	if (rc == 0)
		rc = s->fresh;
	s->fresh |= was;
	return rc;
}

int pr_shape_fresh(const struct pr_shape *s)
{
	return s->fresh;
}

int pr_shape_overflow(const struct pr_shape *s)
{
	return s->overflow;
}

uint64_t pr_shape_untold(const struct pr_shape *s)
{
	return s->root.seen - s->root.told;
}

/* ---- telling ---- */

void pr_shape_mask(struct pr_buf *b, const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		/* Another byte of a character of several is a letter, too. */
		if ((c & 0xc0) == 0x80)
			continue;
		if (c == '\\' && i + 1 < len) {
			pr_buf_put(b, "x", 1);
			i += s[i + 1] == 'u' ? 5 : 1;
			continue;
		}
		pr_buf_put(b, isdigit(c) ? "9" : isalpha(c) || c >= 0x80 ? "x" : s + i, 1);
	}
}

/* What the value was is told, not what it said. */
static void put_sample(struct pr_buf *b, const struct node *n, unsigned pii)
{
	if (!n->sample)
		return;
	if (!pii || *n->sample == 'n' || *n->sample == 't' || *n->sample == 'f')
		pr_buf_puts(b, n->sample);
	else
		pr_shape_mask(b, n->sample, strlen(n->sample));
}

static int is_plain_name(const struct node *n)
{
	return n->len > 0 && strcspn(n->name, ".[]\"* ") == n->len && pr_utf8_text(n->name, n->len);
}

static void put_step(struct pr_buf *path, const struct node *n)
{
	if (n->element) {
		pr_buf_puts(path, "[]");
	} else if (!n->name) {
		pr_buf_puts(path, ".*");
	} else if (is_plain_name(n)) {
		pr_buf_puts(path, ".");
		pr_buf_put(path, n->name, n->len);
	} else {
		pr_buf_puts(path, "[");
		pr_buf_json(path, n->name, n->len);
		pr_buf_puts(path, "]");
	}
}

struct telling {
	struct pr_buf path, sample;
	int all;
	void (*each)(void *ctx, const struct pr_shape_path *p);
	void *ctx;
};

static void tell(struct telling *t, struct node *n, uint64_t objects)
{
	size_t len = t->path.len;
	unsigned pii = pii_of(n);

	/* A place has no kind when its first value was no JSON. */
	if (n->kinds && (t->all || n->seen != n->told || n->collapsed)) {
		struct pr_shape_path p = { .path = t->path.s,
			.kinds = n->kinds,
			.seen = t->all ? n->seen : n->seen - n->told,
			.first_us = n->first_us,
			.last_us = n->last_us,
			.pii = pii,
			.required = n->name && n->seen >= objects,
			.collapsed = n->collapsed };

		t->sample.len = 0;
		put_sample(&t->sample, n, pii);
		p.sample = n->sample ? t->sample.s : NULL;
		t->each(t->ctx, &p);
		if (!t->all) {
			n->told = n->seen;
			n->collapsed = 0;
		}
	}
	for (struct node *c = n->child; c; c = c->next) {
		put_step(&t->path, c);
		tell(t, c, n->objects);
		t->path.len = len;
		t->path.s[len] = '\0';
	}
}

static void tell_tree(
	struct pr_shape *s, int all, void (*each)(void *ctx, const struct pr_shape_path *p), void *ctx)
{
	struct telling t = { .all = all, .each = each, .ctx = ctx };

	pr_buf_puts(&t.path, "payload");
	tell(&t, &s->root, 0);
	pr_buf_free(&t.path);
	pr_buf_free(&t.sample);
}

void pr_shape_tell(struct pr_shape *s, void (*each)(void *ctx, const struct pr_shape_path *p), void *ctx)
{
	tell_tree(s, 0, each, ctx);
	s->fresh = 0;
}

void pr_shape_all(struct pr_shape *s, void (*each)(void *ctx, const struct pr_shape_path *p), void *ctx)
{
	tell_tree(s, 1, each, ctx);
}

static void put_words(struct pr_buf *b, unsigned bits, const char *const *words, const char *between)
{
	int many = 0;

	for (unsigned i = 0; words[i]; i++)
		if (bits >> i & 1)
			pr_buf_printf(b, "%s%s", many++ ? between : "", words[i]);
}

void pr_shape_put_kinds(struct pr_buf *b, unsigned kinds, const char *between)
{
	static const char *const words[] = { "null", "boolean", "integer", "number", "string", "object",
		"array", NULL };

	put_words(b, kinds, words, between);
}

void pr_shape_put_pii(struct pr_buf *b, unsigned pii)
{
	static const char *const words[] = { "email", "phone", "card", "iban", "ip", "key", NULL };

	put_words(b, pii, words, ",");
}
