/* lib/saga_expr.c -- conditions and invariants: a parser by precedence, and an evaluation that always ends.
 * Refuses what looks like a mistake rather than give it a meaning: one =, chained comparisons, arithmetic,
 * functions. */
#include "lib/saga_expr.h"

#include "lib/json_path.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MOST   2000 /* characters of an expression */
#define NODES_MOST  200
#define DEPTH_MOST  32     /* of brackets and "!" inside each other */
#define PATHS_MOST  8      /* different ones, for saga_expr_can to look through */
#define TRIALS_MOST 300000 /* nodes that it evaluates */

enum op { OP_CONST, OP_PATH, OP_NOT, OP_OR, OP_AND, OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE };

enum type { T_NULL, T_BOOL, T_NUMBER, T_STRING, T_OTHER };

struct value {
	enum type type;
	int bit;         /* of BOOL */
	int exact;       /* of NUMBER: i holds it too */
	int64_t i;       /* of NUMBER */
	long double f;   /* of NUMBER */
	struct pr_buf s; /* of STRING its characters, of OTHER its JSON text; owned */
};

struct node {
	enum op op;
	int a, b;       /* operands, indices */
	struct value v; /* of CONST */
	char *path;     /* of PATH */
};

struct saga_expr {
	struct node *node;
	int n, root;
};

struct parser {
	const char *text, *p;
	struct saga_expr *e;
	int depth;
	struct pr_err *err;
};

/* ---------------------------------------------------------------- values */

static void set_number(struct value *v, const char *raw, size_t n)
{
	char small[64], *s = n < sizeof(small) ? small : pr_malloc(n + 1), *end;

	memcpy(s, raw, n);
	s[n] = '\0';
	v->type = T_NUMBER;
	errno = 0;
	v->i = strtoll(s, &end, 10);
	v->exact = *end == '\0' && errno == 0;
	v->f = strtold(s, NULL);
	if (s != small)
		free(s);
}

/* raw is JSON without space around it. */
static void set_json(struct value *v, const char *raw, size_t n)
{
	v->s.len = 0;
	v->type = T_NULL;
	if (n == 0 || *raw == 'n')
		return;
	if (*raw == 't' || *raw == 'f') {
		v->type = T_BOOL;
		v->bit = *raw == 't';
	} else if (*raw == '"') {
		v->type = pr_json_str(&v->s, raw, n) < 0 ? T_NULL : T_STRING;
	} else if (*raw == '{' || *raw == '[') {
		v->type = T_OTHER;
		pr_buf_put(&v->s, raw, n);
	} else {
		set_number(v, raw, n);
	}
}

static int is_true(const struct value *v)
{
	switch (v->type) {
	case T_BOOL:
		return v->bit;
	case T_NUMBER:
		return v->f != 0;
	case T_STRING:
		return v->s.len > 0;
	case T_OTHER:
		return 1;
	default:
		return 0;
	}
}

static int order_bytes(const struct pr_buf *a, const struct pr_buf *b)
{
	size_t n = a->len < b->len ? a->len : b->len;
	int c = n ? memcmp(a->s, b->s, n) : 0;

	return c ? c : (a->len > b->len) - (a->len < b->len);
}

static int order_numbers(const struct value *a, const struct value *b)
{
	if (a->exact && b->exact)
		return (a->i > b->i) - (a->i < b->i);
	return (a->f > b->f) - (a->f < b->f);
}

static int same(const struct value *a, const struct value *b)
{
	if (a->type != b->type)
		return 0;
	switch (a->type) {
	case T_NULL:
		return 1;
	case T_BOOL:
		return a->bit == b->bit;
	case T_NUMBER:
		return order_numbers(a, b) == 0;
	default:
		return order_bytes(&a->s, &b->s) == 0;
	}
}

static int compare(enum op op, const struct value *a, const struct value *b)
{
	int c;

	if (op == OP_EQ || op == OP_NE)
		return same(a, b) == (op == OP_EQ);
	if (a->type != b->type || (a->type != T_NUMBER && a->type != T_STRING))
		return 0;
	c = a->type == T_NUMBER ? order_numbers(a, b) : order_bytes(&a->s, &b->s);
	switch (op) {
	case OP_LT:
		return c < 0;
	case OP_LE:
		return c <= 0;
	case OP_GT:
		return c > 0;
	default:
		return c >= 0;
	}
}

/* ---------------------------------------------------------------- parsing */

static int fail(struct parser *p, const char *at, const char *fmt, ...) PR_PRINTF(3, 4);

static int fail(struct parser *p, const char *at, const char *fmt, ...)
{
	char why[300];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	(void)pr_fail(p->err, PR_REJECT, "character %td: %s", at - p->text + 1, why);
	if (p->err)
		p->err->exit = PR_EX_CONFIG;
	return -1;
}

static int add(struct parser *p, enum op op, int a, int b)
{
	struct saga_expr *e = p->e;

	if (e->n == NODES_MOST)
		return fail(p, p->p, "more than %d operators and operands", NODES_MOST);
	e->node = pr_realloc(e->node, ((size_t)e->n + 1) * sizeof(*e->node));
	e->node[e->n] = (struct node){ .op = op, .a = a, .b = b };
	return e->n++;
}

static void space(struct parser *p)
{
	while (*p->p == ' ' || *p->p == '\t' || *p->p == '\n' || *p->p == '\r')
		p->p++;
}

static int is_word(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '-';
}

static int add_json(struct parser *p, const char *raw, size_t n)
{
	int i = add(p, OP_CONST, 0, 0);

	if (i >= 0)
		set_json(&p->e->node[i].v, raw, n);
	return i;
}

static int parse_string(struct parser *p)
{
	const char *from = p->p, *s = from + 1, *value;
	size_t n;

	while (*s && *s != '"')
		s += *s == '\\' && s[1] ? 2 : 1;
	if (!*s)
		return fail(p, from, "the string has no end");
	s++;
	if (pr_json_at(from, (size_t)(s - from), "", &value, &n) != 1)
		return fail(p, from, "is no string as JSON has it");
	p->p = s;
	return add_json(p, from, (size_t)(s - from));
}

static int parse_number(struct parser *p)
{
	const char *from = p->p, *value;
	size_t n = strspn(from, "+-.0123456789eE"), len;

	if (pr_json_at(from, n, "", &value, &len) != 1)
		return fail(p, from, "\"%.*s\" is no number", (int)(n < 40 ? n : 40), from);
	p->p += n;
	if (is_word(*p->p))
		return fail(p, p->p, "a number ends here, and \"%c\" follows", *p->p);
	return add_json(p, from, n);
}

/* The end of a ["name"] or [0] that begins at s; NULL: it has none. */
static const char *subscript_end(const char *s)
{
	if (*++s == '"')
		for (s++; *s && *s != '"'; s++)
			s += *s == '\\' && s[1];
	s = strchr(s, ']');
	return s ? s + 1 : NULL;
}

/* data.amount, PAYMENT.applied, data.seats[0]["a b"] */
static int parse_path(struct parser *p)
{
	const char *from = p->p, *s = from, *value;
	size_t n;
	char *path;
	int i;

	for (;;) {
		while (is_word(*s) || *s == '.')
			s++;
		if (*s != '[')
			break;
		if (!(s = subscript_end(s)))
			return fail(p, from, "a [ has no end");
	}
	path = pr_asprintf("%.*s", (int)(s - from), from);
	i = pr_json_at("{}", 2, path, &value, &n) < 0 ? fail(p, from, "\"%.100s\" is no path", path)
						      : add(p, OP_PATH, 0, 0);
	if (i < 0)
		free(path);
	else
		p->e->node[i].path = path;
	p->p = s;
	space(p);
	if (i >= 0 && *p->p == '(')
		return fail(p, p->p, "there are no functions");
	return i;
}

/* true, false and null are words too; everything else that begins with a letter is a path. */
static int parse_word(struct parser *p)
{
	static const char *const words[] = { "true", "false", "null" };

	for (size_t i = 0; i < 3; i++) {
		size_t n = strlen(words[i]);

		if (strncmp(p->p, words[i], n) != 0 || is_word(p->p[n]) || p->p[n] == '.' || p->p[n] == '[')
			continue;
		p->p += n;
		return add_json(p, words[i], n);
	}
	return parse_path(p);
}

static int parse_or(struct parser *p);

static int parse_bracket(struct parser *p)
{
	const char *from = p->p++;
	int i = parse_or(p);

	if (i < 0)
		return -1;
	if (*p->p != ')')
		return *p->p ? fail(p, p->p, "\"%c\" where an operator or \")\" is expected", *p->p)
			     : fail(p, from, "the \"(\" has no \")\"");
	p->p++;
	return i;
}

static int parse_operand(struct parser *p);

static int parse_not(struct parser *p)
{
	int i;

	p->p++;
	i = parse_operand(p);
	return i < 0 ? -1 : add(p, OP_NOT, i, 0);
}

static int parse_primary(struct parser *p)
{
	unsigned char c = (unsigned char)*p->p;

	if (c == '(')
		return parse_bracket(p);
	if (c == '!' && p->p[1] != '=')
		return parse_not(p);
	if (c == '"')
		return parse_string(p);
	if (isdigit(c) || (c == '-' && isdigit((unsigned char)p->p[1])))
		return parse_number(p);
	if (isalpha(c) || c == '_')
		return parse_word(p);
	if (!c)
		return fail(p, p->p, "ends where a value is expected");
	if (c == '\'')
		return fail(p, p->p, "strings have double quotes: \\\"...\\\" in the file");
	return fail(
		p, p->p, "\"%.*s\" where a value is expected", c < 0x80 ? 1 : (int)strcspn(p->p, " "), p->p);
}

static int parse_operand(struct parser *p)
{
	int i;

	space(p);
	if (p->depth == DEPTH_MOST)
		return fail(p, p->p, "brackets and \"!\" nest deeper than %d", DEPTH_MOST);
	p->depth++;
	i = parse_primary(p);
	p->depth--;
	space(p);
	return i;
}

/* The comparison that stands here, and its length; OP_CONST: none. */
static enum op comparison(const char *s, size_t *ret_len)
{
	static const struct {
		const char *s;
		enum op op;
	} all[] = { { "==", OP_EQ }, { "!=", OP_NE }, { "<=", OP_LE }, { ">=", OP_GE }, { "<", OP_LT },
		{ ">", OP_GT } };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		*ret_len = strlen(all[i].s);
		if (strncmp(s, all[i].s, *ret_len) == 0)
			return all[i].op;
	}
	return OP_CONST;
}

static int parse_comparison(struct parser *p)
{
	size_t n;
	int a = parse_operand(p), b;
	enum op op = a < 0 ? OP_CONST : comparison(p->p, &n);

	if (op == OP_CONST)
		return a;
	p->p += n;
	b = parse_operand(p);
	if (b < 0)
		return -1;
	if (comparison(p->p, &n) != OP_CONST)
		return fail(p, p->p, "comparisons do not chain: say a < b && b < c");
	return add(p, op, a, b);
}

static int parse_and(struct parser *p)
{
	int a = parse_comparison(p), b;

	while (a >= 0 && p->p[0] == '&' && p->p[1] == '&') {
		p->p += 2;
		b = parse_comparison(p);
		a = b < 0 ? -1 : add(p, OP_AND, a, b);
	}
	return a;
}

static int parse_or(struct parser *p)
{
	int a = parse_and(p), b;

	while (a >= 0 && p->p[0] == '|' && p->p[1] == '|') {
		p->p += 2;
		b = parse_and(p);
		a = b < 0 ? -1 : add(p, OP_OR, a, b);
	}
	return a;
}

static int fail_rest(struct parser *p)
{
	static const char expected[] = "where an operator is expected";

	switch (*p->p) {
	case '=':
		return fail(p, p->p, "one \"=\": equality is \"==\"");
	case '&':
	case '|':
		return fail(p, p->p, "one \"%c\": it is \"%c%c\"", *p->p, *p->p, *p->p);
	case '+':
	case '-':
	case '*':
	case '/':
	case '%':
		return fail(p, p->p, "there is no arithmetic");
	case ')':
		return fail(p, p->p, "a \")\" without its \"(\"");
	default:
		return fail(p, p->p, "\"%.*s\" %s", (int)strcspn(p->p, " \t\n") % 40, p->p, expected);
	}
}

int saga_expr_parse(const char *text, struct saga_expr **ret, struct pr_err *err)
{
	struct parser p = { .text = text, .p = text, .e = pr_calloc(1, sizeof(*p.e)), .err = err };

	if (strlen(text) > TEXT_MOST)
		p.e->root = fail(&p, text + TEXT_MOST, "is longer than %d characters", TEXT_MOST);
	else
		p.e->root = parse_or(&p);
	if (p.e->root >= 0 && *p.p)
		p.e->root = fail_rest(&p);
	if (p.e->root < 0) {
		saga_expr_free(p.e);
		return -1;
	}
	*ret = p.e;
	return 0;
}

void saga_expr_free(struct saga_expr *e)
{
	if (!e)
		return;
	for (int i = 0; i < e->n; i++) {
		pr_buf_free(&e->node[i].v.s);
		free(e->node[i].path);
	}
	free(e->node);
	free(e);
}

int saga_expr_paths(const struct saga_expr *e, int (*each)(void *ctx, const char *path), void *ctx)
{
	int rc = 0;

	for (int i = 0; rc == 0 && i < e->n; i++)
		if (e->node[i].op == OP_PATH)
			rc = each(ctx, e->node[i].path);
	return rc;
}

/* ---------------------------------------------------------------- evaluation */

/* One evaluation: where its paths are looked up. */
struct eval {
	const struct saga_expr *e;
	saga_lookup lookup;
	void *ctx;
};

static int truth(const struct eval *v, int i);

/* The value of a node: its own, or put into *room. */
static const struct value *value_of(const struct eval *v, int i, struct value *room)
{
	const struct node *n = &v->e->node[i];
	const char *raw;
	size_t len;

	if (n->op == OP_CONST)
		return &n->v;
	if (n->op != OP_PATH) {
		room->type = T_BOOL;
		room->bit = truth(v, i);
	} else if (v->lookup(v->ctx, n->path, &raw, &len)) {
		set_json(room, raw, len);
	} else {
		room->type = T_NULL;
	}
	return room;
}

static int truth_of_value(const struct eval *v, int i)
{
	struct value room = { 0 };
	int yes = is_true(value_of(v, i, &room));

	pr_buf_free(&room.s);
	return yes;
}

static int truth_of_comparison(const struct eval *v, const struct node *n)
{
	struct value a = { 0 }, b = { 0 };
	const struct value *x = value_of(v, n->a, &a), *y = value_of(v, n->b, &b);
	int yes = compare(n->op, x, y);

	pr_buf_free(&a.s);
	pr_buf_free(&b.s);
	return yes;
}

static int truth(const struct eval *v, int i)
{
	const struct node *n = &v->e->node[i];

	switch (n->op) {
	case OP_CONST:
	case OP_PATH:
		return truth_of_value(v, i);
	case OP_NOT:
		return !truth(v, n->a);
	case OP_AND:
		return truth(v, n->a) && truth(v, n->b);
	case OP_OR:
		return truth(v, n->a) || truth(v, n->b);
	default:
		return truth_of_comparison(v, n);
	}
}

int saga_expr_true(const struct saga_expr *e, saga_lookup lookup, void *ctx)
{
	struct eval v = { .e = e, .lookup = lookup, .ctx = ctx };

	return truth(&v, e->root);
}

/* ---------------------------------------------------------------- what it can become */

/* Every expression tells only so many values apart: those it names, those between them, and one of each type.
 * So trying these for every path is trying all data. */
struct trial {
	const char *path[PATHS_MOST];
	int pick[PATHS_MOST];   /* which of its candidates a path has now */
	int is_bit[PATHS_MOST]; /* 0 or 1 is all it can be */
	int n;
	char **candidate; /* JSON, owned; the first two are 0 and 1 */
	int candidates;
};

static void offer(struct trial *t, char *json)
{
	t->candidate = pr_realloc(t->candidate, ((size_t)t->candidates + 1) * sizeof(*t->candidate));
	t->candidate[t->candidates++] = json;
}

/* -1: too many paths to look through. */
static int note_path(struct trial *t, const char *path, int is_bit)
{
	for (int i = 0; i < t->n; i++)
		if (strcmp(t->path[i], path) == 0)
			return 0;
	if (t->n == PATHS_MOST)
		return -1;
	t->is_bit[t->n] = is_bit;
	t->path[t->n++] = path;
	return 0;
}

static int by_number(const void *a, const void *b)
{
	long double x = *(const long double *)a, y = *(const long double *)b;

	return (x > y) - (x < y);
}

/* n values inside each gap between the numbers, and n before and behind them all: paths are compared with
 * each other too. */
static void offer_gaps(struct trial *t, long double *c, size_t n)
{
	qsort(c, n, sizeof(*c), by_number);
	for (size_t i = 0; i <= n; i++)
		for (int k = 1; k <= t->n; k++) {
			long double v = i == 0 ? (n ? c[0] - k : k) : c[i - 1] + k;

			if (i > 0 && i < n)
				v = c[i - 1] + (c[i] - c[i - 1]) * k / (t->n + 1);
			offer(t, pr_asprintf("%.21Lg", v));
		}
}

/* A string, and what comes right behind it; n of these. */
static void offer_string(struct trial *t, const char *s, size_t n)
{
	struct pr_buf b = { 0 }, longer = { 0 };

	pr_buf_put(&longer, s, n);
	for (int k = 0; k <= t->n; k++) {
		b.len = 0;
		pr_buf_json(&b, longer.s, longer.len);
		offer(t, pr_strdup(b.s));
		pr_buf_put(&longer, "\x01", 1);
	}
	pr_buf_free(&longer);
	pr_buf_free(&b);
}

static void offer_constant(struct trial *t, const struct value *v, long double *numbers, size_t *n)
{
	if (v->type == T_STRING)
		offer_string(t, v->s.s, v->s.len);
	if (v->type != T_NUMBER)
		return;
	offer(t, v->exact ? pr_asprintf("%" PRId64, v->i) : pr_asprintf("%.21Lg", v->f));
	numbers[(*n)++] = v->f;
}

static void offer_all(struct trial *t, const struct saga_expr *const *e, size_t exprs)
{
	long double *numbers = pr_calloc(exprs + 1, NODES_MOST * sizeof(*numbers));
	size_t n = 0;

	for (const char *const *p = (const char *const[]){ "0", "1", "null", "true", "false", NULL }; *p; p++)
		offer(t, pr_strdup(*p));
	for (size_t k = 0; k < exprs; k++)
		for (int i = 0; i < e[k]->n; i++)
			if (e[k]->node[i].op == OP_CONST)
				offer_constant(t, &e[k]->node[i].v, numbers, &n);
	offer_gaps(t, numbers, n);
	free(numbers);
	offer_string(t, "", 0);
	for (int k = 0; k < t->n; k++)
		offer(t, pr_asprintf("[%d]", k));
}

static int look_up_trial(void *ctx, const char *path, const char **ret, size_t *ret_len)
{
	const struct trial *t = ctx;
	int i = 0;

	while (strcmp(t->path[i], path) != 0)
		i++;
	*ret = t->candidate[t->pick[i]];
	*ret_len = strlen(*ret);
	return 1;
}

static int candidates_of(const struct trial *t, int i)
{
	return t->is_bit[i] ? 2 : t->candidates;
}

/* The next combination; 0: there is none left. */
static int advance(struct trial *t)
{
	for (int i = 0; i < t->n; i++) {
		if (++t->pick[i] < candidates_of(t, i))
			return 1;
		t->pick[i] = 0;
	}
	return 0;
}

static int search(struct trial *t, const struct saga_expr *e, int wanted)
{
	long long trials = e->n;
	int found = 0;

	for (int i = 0; i < t->n; i++)
		if ((trials *= candidates_of(t, i)) > TRIALS_MOST)
			return 1;
	do
		found = saga_expr_true(e, look_up_trial, t) == wanted;
	while (!found && advance(t));
	return found;
}

static void trial_free(struct trial *t)
{
	for (int i = 0; i < t->candidates; i++)
		free(t->candidate[i]);
	free(t->candidate);
}

int saga_expr_can(const struct saga_expr *e, int wanted, int (*is_bit)(const char *path))
{
	struct trial t = { 0 };
	int can = 0;

	for (int i = 0; !can && i < e->n; i++)
		if (e->node[i].op == OP_PATH)
			can = note_path(&t, e->node[i].path, is_bit(e->node[i].path)) < 0;
	if (!can) {
		offer_all(&t, &e, 1);
		can = search(&t, e, wanted);
	}
	trial_free(&t);
	return can;
}

int saga_expr_samples(const struct saga_expr *const *e, size_t n, int (*is_bit)(const char *path),
	int (*each)(void *ctx, size_t paths, const char *const *path, const char *const *value), void *ctx)
{
	const char *value[PATHS_MOST];
	struct trial t = { 0 };
	long long trials = 1;
	int rc = 0;

	for (size_t k = 0; rc == 0 && k < n; k++)
		for (int i = 0; rc == 0 && i < e[k]->n; i++)
			if (e[k]->node[i].op == OP_PATH && !is_bit(e[k]->node[i].path))
				rc = note_path(&t, e[k]->node[i].path, 0);
	offer_all(&t, e, n);
	for (int i = 0; rc == 0 && i < t.n; i++)
		if ((trials *= t.candidates) > TRIALS_MOST)
			rc = -1;
	if (rc == 0)
		do {
			for (int i = 0; i < t.n; i++)
				value[i] = t.candidate[t.pick[i]];
			rc = each(ctx, (size_t)t.n, t.path, value);
		} while (rc == 0 && advance(&t));
	trial_free(&t);
	return rc;
}
