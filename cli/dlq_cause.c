/* cli/dlq_cause.c -- dead letters of one cause: the same class and code, and the same reason once
 * numbers, ids and quoted values are taken out of it. Refuses to grow without a bound. */
#include "cli/dlq.h"
#include "lib/clock.h"
#include "lib/json.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE_BYTES 300
#define SLOTS       (4 * DLQ_CAUSES)
#define TOPICS      8 /* named per cause */

struct cause {
	char id[9];
	char *group, *cls, *code, *shape;
	char *first_entry, *first_at, *last_entry, *last_at, *example;
	char *topics[TOPICS];
	int64_t count;
};

struct dlq_causes {
	struct cause *v;
	int n;
	int32_t *slots; /* index + 1 into v, open addressing */
	int64_t total, beyond;
};

/* ---- the shape of a reason ---- */

static size_t uuid_at(const char *s)
{
	char text[37];

	if (strlen(s) < 36)
		return 0;
	memcpy(text, s, 36);
	text[36] = '\0';
	return cli_is_uuid(text) ? 36 : 0;
}

/* Eight hexadecimal digits or more, one of them a decimal one, as a word of their own. */
static size_t hex_at(const char *s, int in_word)
{
	size_t n = s[0] == '0' && s[1] == 'x' ? 2 : 0;
	int decimal = 0;

	while (isxdigit((unsigned char)s[n]))
		decimal |= isdigit((unsigned char)s[n++]) != 0;
	return !in_word && n >= 8 && decimal && !isalnum((unsigned char)s[n]) && s[n] != '_' ? n : 0;
}

/* 42, 1.5, 10.0.0.1:9092, 2026-01-02T03:04:05Z */
static size_t number_at(const char *s)
{
	size_t n = 0;

	while (isdigit((unsigned char)s[n]) ||
		(n && s[n] && strchr(".,:-T", s[n]) && isdigit((unsigned char)s[n + 1])))
		n++;
	return n;
}

/* 'any' and "any", with its quotes; an apostrophe in a word begins nothing. */
static size_t quoted_at(const char *s, int in_word)
{
	const char *end = (*s == '\'' && !in_word) || *s == '"' ? strchr(s + 1, *s) : NULL;

	return end ? (size_t)(end - s) + 1 : 0;
}

/* Names of constraints, columns and functions tell causes apart, so they stay. A value is what stands in
 * single quotes, behind a colon or an equals sign, or is no identifier. */
static int is_value(const char *s, size_t n, const char *before)
{
	size_t word = 1;

	while (word < n - 1 && (isalpha((unsigned char)s[word]) || strchr("_.$", s[word]) ||
				       (word > 1 && isdigit((unsigned char)s[word]))))
		word++;
	return *s == '\'' || word < n - 1 || *before == ':' || *before == '=';
}

/* Postgres' "(id)=(42)": the value. */
static size_t value_at(const char *s)
{
	const char *end = strncmp(s, "=(", 2) == 0 ? strchr(s, ')') : NULL;

	return end ? (size_t)(end - s) + 1 : 0;
}

char *dlq_shape(const char *reason)
{
	const char *s = reason, *before = "";
	struct pr_buf b = { 0 };
	size_t n;

	while (*s && b.len < SHAPE_BYTES) {
		int in_word = s > reason && (isalnum((unsigned char)s[-1]) || s[-1] == '_');

		if ((n = in_word ? 0 : uuid_at(s)))
			pr_buf_puts(&b, "<id>");
		else if ((n = hex_at(s, in_word)))
			pr_buf_puts(&b, "<hex>");
		else if ((n = number_at(s)))
			pr_buf_puts(&b, "<n>");
		else if ((n = quoted_at(s, in_word)) && is_value(s, n, before))
			pr_buf_printf(&b, "%c…%c", *s, *s);
		else if (n)
			pr_buf_put(&b, s, n);
		else if ((n = value_at(s)))
			pr_buf_puts(&b, "=(…)");
		else
			pr_buf_put(&b, s, n = 1);
		if (!isspace((unsigned char)s[n - 1]))
			before = s + n - 1;
		s += n;
	}
	while (*s && ((unsigned char)*s & 0xc0) == 0x80) /* not in the middle of a character */
		pr_buf_put(&b, s++, 1);
	return b.s ? b.s : pr_strdup("");
}

static uint64_t fold(uint64_t h, const char *s)
{
	for (; *s; s++)
		h = (h ^ (unsigned char)*s) * 1099511628211ULL;
	return (h ^ 0xff) * 1099511628211ULL;
}

static const char *or_none(const char *s)
{
	return s ? s : "";
}

static uint64_t hash_of(const char *cls, const char *code, const char *shape)
{
	return fold(fold(fold(14695981039346656037ULL, or_none(cls)), or_none(code)), shape);
}

static void id_of(uint64_t hash, char *buf)
{
	(void)snprintf(buf, 9, "%08x", (unsigned)(hash >> 32 ^ (hash & 0xffffffff)));
}

void dlq_cause_id(const char *cls, const char *code, const char *reason, char *buf)
{
	char *shape = dlq_shape(or_none(reason));

	id_of(hash_of(cls, code, shape), buf);
	free(shape);
}

/* ---- the causes ---- */

struct dlq_causes *dlq_causes_new(void)
{
	struct dlq_causes *s = pr_calloc(1, sizeof(*s));

	s->slots = pr_calloc(SLOTS, sizeof(*s->slots));
	return s;
}

void dlq_causes_free(struct dlq_causes *s)
{
	if (!s)
		return;
	for (int i = 0; i < s->n; i++) {
		struct cause *k = &s->v[i];

		free(k->group);
		free(k->cls);
		free(k->code);
		free(k->shape);
		free(k->first_entry);
		free(k->first_at);
		free(k->last_entry);
		free(k->last_at);
		free(k->example);
		for (int t = 0; t < TOPICS; t++)
			free(k->topics[t]);
	}
	free(s->v);
	free(s->slots);
	free(s);
}

/* Takes shape. NULL when there are too many. */
static struct cause *find(struct dlq_causes *s, const struct dlq_fact *f, char *shape)
{
	uint64_t hash = hash_of(f->cls, f->code, shape);
	uint32_t at = (uint32_t)(fold(hash, or_none(f->group)) % SLOTS);
	struct cause *k;

	for (; s->slots[at]; at = (at + 1) % SLOTS) {
		k = &s->v[s->slots[at] - 1];
		if (strcmp(k->shape, shape) == 0 && strcmp(k->cls, or_none(f->cls)) == 0 &&
			strcmp(k->code, or_none(f->code)) == 0 && strcmp(k->group, or_none(f->group)) == 0) {
			free(shape);
			return k;
		}
	}
	if (s->n == DLQ_CAUSES) {
		free(shape);
		return NULL;
	}
	s->v = pr_realloc(s->v, sizeof(*s->v) * (size_t)(s->n + 1));
	k = &s->v[s->n++];
	*k = (struct cause){
		.group = pr_strdup(or_none(f->group)),
		.cls = pr_strdup(or_none(f->cls)),
		.code = pr_strdup(or_none(f->code)),
		.shape = shape,
	};
	id_of(hash, k->id);
	s->slots[at] = s->n;
	return k;
}

static void put(char **to, const char *s)
{
	free(*to);
	*to = pr_strdup(or_none(s));
}

/* at is RFC 3339 of one form, or missing: text order is the order of time. */
void dlq_causes_add(struct dlq_causes *s, const struct dlq_fact *f)
{
	struct cause *k = find(s, f, dlq_shape(or_none(f->reason)));
	int t = 0;

	s->total++;
	if (!k) {
		s->beyond++;
		return;
	}
	if (k->count++ == 0 || strcmp(or_none(f->at), k->first_at) < 0) {
		put(&k->first_entry, f->entry);
		put(&k->first_at, f->at);
	}
	if (k->count == 1 || strcmp(or_none(f->at), k->last_at) >= 0) {
		put(&k->last_entry, f->entry);
		put(&k->last_at, f->at);
		put(&k->example, f->reason);
	}
	while (t < TOPICS && k->topics[t] && strcmp(k->topics[t], or_none(f->topic)) != 0)
		t++;
	if (f->topic && t < TOPICS && !k->topics[t])
		k->topics[t] = pr_strdup(f->topic);
}

int64_t dlq_causes_total(const struct dlq_causes *s)
{
	return s->total;
}

int dlq_causes_count(const struct dlq_causes *s)
{
	return s->n;
}

const char *dlq_causes_group(const struct dlq_causes *s, int i)
{
	return s->v[i].group;
}

static int largest_first(const void *a, const void *b)
{
	const struct cause *x = a, *y = b;

	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(x->first_at, y->first_at);
}

static void add(cJSON *o, const char *name, const char *s)
{
	(void)cJSON_AddItemToObject(o, name, s && *s ? cJSON_CreateString(s) : cJSON_CreateNull());
}

static void print_json(const struct cause *k)
{
	cJSON *o = cJSON_CreateObject(), *topics = cJSON_CreateArray();

	add(o, "cause", k->id);
	add(o, "group", k->group);
	add(o, "class", k->cls);
	add(o, "code", k->code);
	add(o, "reason", k->shape);
	cli_json_int(o, "count", k->count);
	add(o, "oldest", k->first_at);
	add(o, "newest", k->last_at);
	add(o, "oldest_entry", k->first_entry);
	add(o, "example_entry", k->last_entry);
	add(o, "example_reason", k->example);
	for (int i = 0; i < TOPICS && k->topics[i]; i++)
		(void)cJSON_AddItemToArray(topics, cJSON_CreateString(k->topics[i]));
	(void)cJSON_AddItemToObject(o, "topics", topics);
	cli_json_free_line(o);
}

static const char *age(const char *at, char *buf)
{
	struct pr_err err;
	int64_t us;

	if (cli_parse_time(at, &us, &err) < 0)
		return "-";
	return cli_span((double)(pr_wall_us() - us) / PR_SEC, buf);
}

static void add_row(struct cli_table *t, const struct cause *k)
{
	char *what = pr_asprintf("%s%s%s", k->cls, *k->code ? ":" : "", k->code), count[32];
	char first[48], last[48];
	const char *const cells[] = { k->id, cli_count(k->count, count), k->group, what,
		age(k->first_at, first), age(k->last_at, last), k->last_entry, k->shape };

	cli_table_add(t, cells);
	free(what);
}

void dlq_causes_print(struct dlq_causes *s, int json)
{
	static const char *const heads[] = { "CAUSE", ">COUNT", "=GROUP", "FAILURE", ">OLDEST", ">NEWEST",
		">EXAMPLE", "~REASON" };
	struct cli_table t = { .ncols = 8, .heads = heads };

	/* The slots point to the unsorted places: nothing is added after this. */
	if (s->n)
		qsort(s->v, (size_t)s->n, sizeof(*s->v), largest_first);
	for (int i = 0; i < s->n; i++) {
		if (json)
			print_json(&s->v[i]);
		else
			add_row(&t, &s->v[i]);
	}
	if (!json && s->n)
		cli_table_print(&t, stdout);
	if (s->beyond)
		cli_warn("there are more than %d causes: %lld dead letters are not shown", DLQ_CAUSES,
			(long long)s->beyond);
}
