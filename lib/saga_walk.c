/* lib/saga_walk.c -- walks the model of saga_world.c: all situations, those with the fewest mishaps first,
 * each once; judges every one of them and tells the ways. Bounded by a number of situations. Refuses to call
 * a walk whole that is not. */
#include "lib/saga_walk.h"

#include "lib/saga_world.h"

#include <stdlib.h>
#include <string.h>

#define STATES     1000000
#define DATA_MOST  64  /* kinds of data that conditions and invariants tell apart */
#define BITS_MOST  8   /* steps of an invariant, to tell kinds of data apart by */
#define ENDS_MOST  500 /* kinds of ends */
#define WORDS_MOST 400 /* moves of an example */
#define NONE       UINT32_MAX
#define HOPS_MOST  2000
#define PROGRESS   8192

enum { RULE_LEFT, RULE_COMPLETE, RULE_ONCE, RULE_ORDER, RULE_FINAL, RULE_WAY, RULES };
static const char *const rule_text[RULES] = {
	"compensated: nothing that has an undo is left done",
	"completed: every step is done that was not skipped",
	"no step takes effect twice, none is undone that was not done",
	"undone is what was done or may be, the last first",
	"what has ended stays as it is",
	"there is always a way on",
};

struct node {
	uint32_t parent, by_due; /* where it comes from; where it goes when nobody answers any more */
	struct move move;
	unsigned char mishaps, done;
};

/* Data that differ in what conditions or invariants say. */
struct kind {
	uint32_t when; /* bit by step */
	char **value;  /* raw JSON by path */
	char *signature, *json;
};

struct ids {
	uint32_t *v;
	size_t n, cap;
};

struct walker {
	const struct saga_def *def; /* the caller's */
	struct saga_def own;
	struct saga_step step[SAGA_STEPS_MOST];
	struct saga_walk_conf conf;
	struct saga_walk *ret;
	struct world_play play;
	struct kind kind[DATA_MOST];
	const char *data[DATA_MOST];
	size_t kinds, paths;
	char **path;
	size_t stride; /* bytes of a world */
	unsigned char *world;
	struct node *node;
	size_t n, cap;
	uint32_t *hash;
	size_t hash_size;
	struct ids now,
		next[2]; /* [0]: where the last mishap was a refusal, for these make the plainest examples */
	struct {
		uint32_t from;
		struct move move;
		int mishaps; /* -1: it holds */
	} * broken;          /* by rule */
	struct {
		enum saga_state state;
		char *what;
		size_t count;
		uint32_t first;
	} * end;
	size_t end_n;
	int level, stopped;
};

/* ---------------------------------------------------------------- kinds of data */

struct looking {
	const struct walker *w;
	const char *const *value; /* by path; NULL: null */
	const struct world *world;
	uint32_t applied; /* bit by step, when there is no world */
};

static int look_up(void *ctx, const char *path, const char **ret, size_t *n)
{
	const struct looking *l = ctx;
	const char *dot = strchr(path, '.');
	int i = dot && strcmp(dot, ".applied") == 0 ? saga_def_step(l->w->def, path, (size_t)(dot - path))
						    : -1;

	if (i >= 0) {
		int is = l->world ? world_applied(&l->world->step[i]) > 0 : (int)(l->applied >> i & 1);

		*ret = is ? "1" : "0";
		*n = 1;
		return 1;
	}
	for (size_t k = 0; k < l->w->paths; k++)
		if (strcmp(l->w->path[k], path) == 0) {
			*ret = l->value[k];
			*n = strlen(*ret);
			return 1;
		}
	return 0;
}

static int is_applied(const char *path)
{
	return strncmp(path, "data.", 5) != 0;
}

struct bits {
	const struct walker *w;
	uint32_t steps;
};

static int note_bit(void *ctx, const char *path)
{
	struct bits *b = ctx;
	int i = is_applied(path) ? saga_def_step(b->w->def, path, strcspn(path, ".")) : -1;

	if (i >= 0)
		b->steps |= 1U << i;
	return 0;
}

/* What the invariant says of these data, for each thing that steps may have done. */
static void sign_invariant(
	const struct walker *w, const struct saga_expr *e, struct looking *l, struct pr_buf *b)
{
	struct bits bits = { w, 0 };
	uint32_t sub = 0;

	(void)saga_expr_paths(e, note_bit, &bits);
	if (__builtin_popcount(bits.steps) > BITS_MOST) { /* too many: each data are a kind of their own */
		for (size_t k = 0; k < w->paths; k++)
			pr_buf_printf(b, "%s,", l->value[k]);
		return;
	}
	do {
		l->applied = sub;
		pr_buf_puts(b, saga_expr_true(e, look_up, l) ? "1" : "0");
		sub = (sub - bits.steps) & bits.steps;
	} while (sub);
}

static void keep_kind(struct walker *w, struct looking *l, uint32_t when, struct pr_buf *signature)
{
	struct kind *k = &w->kind[w->kinds++];
	struct pr_buf json = { 0 };

	k->when = when;
	k->value = pr_calloc(w->paths + 1, sizeof(*k->value));
	for (size_t i = 0; i < w->paths; i++)
		k->value[i] = pr_strdup(l->value[i]);
	k->signature = pr_strdup(signature->s ? signature->s : "");
	pr_buf_puts(&json, "{");
	for (size_t i = 0; i < w->def->step_n; i++)
		pr_buf_printf(&json, "%s\"c%zu\": %s", i ? ", " : "", i, when >> i & 1 ? "true" : "false");
	pr_buf_puts(&json, "}");
	k->json = json.s;
	w->data[w->kinds - 1] = k->json;
}

static int take_sample(void *ctx, size_t paths, const char *const *path, const char *const *value)
{
	struct walker *w = ctx;
	struct looking l = { w, value, NULL, 0 };
	struct pr_buf b = { 0 };
	uint32_t when = 0;
	int rc = 0;

	if (!w->path) {
		w->paths = paths;
		w->path = pr_calloc(paths + 1, sizeof(*w->path));
		for (size_t i = 0; i < paths; i++)
			w->path[i] = pr_strdup(path[i]);
	}
	for (size_t i = 0; i < w->def->step_n; i++) {
		int is = !w->def->step[i].when || saga_expr_true(w->def->step[i].when, look_up, &l);

		when |= (uint32_t)is << i;
		pr_buf_puts(&b, is ? "y" : "n");
	}
	for (size_t i = 0; i < w->def->invariant_n; i++)
		sign_invariant(w, w->def->invariant[i].expr, &l, &b);
	for (size_t i = 0; i < w->kinds; i++)
		if (strcmp(w->kind[i].signature, b.s) == 0)
			goto out;
	if (w->kinds == DATA_MOST)
		rc = -1;
	else
		keep_kind(w, &l, when, &b);
out:
	pr_buf_free(&b);
	return rc;
}

/* -1: there are too many. */
static int kinds_of_data(struct walker *w)
{
	const struct saga_expr **e = pr_calloc(w->def->step_n + w->def->invariant_n, sizeof(*e));
	size_t n = 0;
	int rc;

	for (size_t i = 0; i < w->def->step_n; i++)
		if (w->def->step[i].when)
			e[n++] = w->def->step[i].when;
	for (size_t i = 0; i < w->def->invariant_n; i++)
		e[n++] = w->def->invariant[i].expr;
	rc = saga_expr_samples(e, n, is_applied, take_sample, w);
	free(e);
	return rc;
}

/* The walk's own definition: a few tries, what is kept is there from the start, conditions by number. */
static void own_def(struct walker *w)
{
	struct pr_err err;

	w->own = *w->def;
	w->own.step = w->step;
	for (size_t i = 0; i < w->def->step_n; i++) {
		struct saga_step *s = &w->step[i];
		struct saga_expr *e = NULL;
		char name[32];

		*s = w->def->step[i];
		s->keep_n = 0;
		for (int op = 0; op < 2; op++)
			if (s->act[op].retry.attempts > w->conf.tries)
				s->act[op].retry.attempts = w->conf.tries;
		if (!s->when)
			continue;
		(void)snprintf(name, sizeof(name), "data.c%zu", i);
		s->when = saga_expr_parse(name, &e, &err) == 0 ? e : NULL;
	}
}

/* ---------------------------------------------------------------- situations */

static uint64_t hash_of(const unsigned char *p, size_t n)
{
	uint64_t h = 0x9e3779b97f4a7c15ULL;

	for (size_t i = 0; i < n; i += 8) {
		uint64_t v;

		memcpy(&v, p + i, 8);
		h = (h ^ v) * 0xff51afd7ed558ccdULL;
		h ^= h >> 32;
	}
	return h;
}

static const struct world *world_at(const struct walker *w, uint32_t i, struct world *room)
{
	memcpy(room, w->world + (size_t)i * w->stride, w->stride);
	return room;
}

static void rehash(struct walker *w)
{
	w->hash_size = w->hash_size ? w->hash_size * 2 : 4096;
	free(w->hash);
	w->hash = pr_malloc(w->hash_size * sizeof(*w->hash));
	memset(w->hash, 0xff, w->hash_size * sizeof(*w->hash));
	for (uint32_t i = 0; i < w->n; i++) {
		size_t at = hash_of(w->world + i * w->stride, w->stride) & (w->hash_size - 1);

		while (w->hash[at] != NONE)
			at = (at + 1) & (w->hash_size - 1);
		w->hash[at] = i;
	}
}

static void grow(struct walker *w)
{
	w->cap = w->cap ? w->cap * 2 : 1024;
	w->world = pr_realloc(w->world, w->cap * w->stride);
	w->node = pr_realloc(w->node, w->cap * sizeof(*w->node));
}

static void push(struct ids *l, uint32_t i)
{
	if (l->n == l->cap) {
		l->cap = l->cap ? l->cap * 2 : 1024;
		l->v = pr_realloc(l->v, l->cap * sizeof(*l->v));
	}
	l->v[l->n++] = i;
}

/* Its number, a new one when it was not known (*fresh); NONE: the bound is hit. */
static uint32_t intern(struct walker *w, const struct world *world, int *fresh)
{
	const unsigned char *p = (const unsigned char *)world;
	size_t at;

	if (2 * (w->n + 1) > w->hash_size)
		rehash(w);
	at = hash_of(p, w->stride) & (w->hash_size - 1);
	for (; w->hash[at] != NONE; at = (at + 1) & (w->hash_size - 1))
		if (memcmp(w->world + (size_t)w->hash[at] * w->stride, p, w->stride) == 0)
			return w->hash[at];
	if (w->n >= w->conf.states)
		return NONE;
	if (w->n == w->cap)
		grow(w);
	memcpy(w->world + w->n * w->stride, p, w->stride);
	w->node[w->n] = (struct node){ .parent = NONE, .by_due = NONE };
	*fresh = 1;
	w->hash[at] = (uint32_t)w->n;
	return (uint32_t)w->n++;
}

/* ---------------------------------------------------------------- judging */

static void broken(struct walker *w, size_t rule, uint32_t from, const struct move *m, int mishaps)
{
	if (w->broken[rule].mishaps >= 0 && w->broken[rule].mishaps <= mishaps)
		return;
	w->broken[rule].from = from;
	w->broken[rule].move = *m;
	w->broken[rule].mishaps = mishaps;
}

static int has_undo(const struct saga_step *d)
{
	return d->act[SAGA_UNDO].command || d->undone;
}

/* Of one situation that is an end. */
static int keeps(const struct walker *w, const struct world *is, size_t rule)
{
	struct looking l = { w, (const char *const *)w->kind[is->head.data].value, is, 0 };

	if (rule >= RULES)
		return saga_expr_true(w->def->invariant[rule - RULES].expr, look_up, &l);
	for (size_t i = 0; i < w->def->step_n; i++) {
		const struct world_step *s = &is->step[i];

		if (rule == RULE_LEFT && is->head.state == SAGA_COMPENSATED && has_undo(&w->step[i]) &&
			world_applied(s) > 0)
			return 0;
		if (rule == RULE_COMPLETE && is->head.state == SAGA_COMPLETED &&
			(world_applied(s) > 0) == (s->state == STEP_SKIPPED))
			return 0;
	}
	return 1;
}

/* A skipped step counts as what it may not be: what was ordered is the operator's to answer for. */
static void judge_end(
	struct walker *w, uint32_t from, const struct move *m, const struct world *is, int mishaps)
{
	if (is->head.skipped || (is->head.state != SAGA_COMPLETED && is->head.state != SAGA_COMPENSATED))
		return;
	for (size_t r = 0; r < RULES + w->def->invariant_n; r++)
		if ((r == RULE_LEFT || r == RULE_COMPLETE || r >= RULES) && !keeps(w, is, r))
			broken(w, r, from, m, mishaps);
}

static int may_have_happened(const struct world_step *s)
{
	return s->state == STEP_DONE || s->state == STEP_UNKNOWN || s->state == STEP_UNDOING ||
	       s->state == STEP_DOING || (s->state == STEP_STUCK && s->op == SAGA_UNDO);
}

static int begins_undo(const struct world *was, const struct world *is, size_t i)
{
	return is->step[i].state == STEP_UNDOING && was->step[i].state != STEP_UNDOING;
}

static int undoes_right(
	const struct walker *w, const struct world *was, const struct world *is, const struct move *m)
{
	for (size_t i = 0; i < w->def->step_n; i++) {
		unsigned before = was->step[i].state;

		if (!begins_undo(was, is, i))
			continue;
		if (before == STEP_REFUSED || before == STEP_UNDONE ||
			(before == STEP_SKIPPED && m->kind != MOVE_EVENT))
			return 0;
		for (size_t k = 0; k < w->def->step_n; k++)
			if (w->step[k].stage > w->step[i].stage && has_undo(&w->step[k]) &&
				may_have_happened(&is->step[k]))
				return 0;
	}
	return 1;
}

/* Of its step nothing is to be undone. */
static int says_no(const struct move *m)
{
	return (m->kind == MOVE_REPLY && m->op == SAGA_DO && m->outcome == OUTCOME_REFUSED) ||
	       (m->kind == MOVE_EVENT && m->outcome == EVENT_FAILED);
}

static int stays(const struct world *was, const struct world *is, const struct move *m)
{
	if (!was->head.born || !saga_is_final((enum saga_state)was->head.state))
		return 1;
	return was->head.state == is->head.state || (m->kind == MOVE_ORDER && m->outcome == ORDER_UNDO);
}

static int has_way(const struct walker *w, const struct world *is)
{
	if (!is->head.born || is->head.state == SAGA_STUCK ||
		saga_is_final((enum saga_state)is->head.state) || !is->head.granted || is->head.deadline)
		return 1;
	for (size_t i = 0; i < w->def->step_n; i++)
		if (is->step[i].due && (is->step[i].state == STEP_DOING || is->step[i].state == STEP_UNDOING))
			return 1;
	return 0;
}

static void judge_move(struct walker *w, uint32_t from, const struct move *m, const struct world *was,
	const struct world *is, int mishaps)
{
	const struct world_step *s = &is->step[m->step];

	if (!undoes_right(w, was, is, m) || (says_no(m) && begins_undo(was, is, m->step)))
		broken(w, RULE_ORDER, from, m, mishaps);
	if (!stays(was, is, m))
		broken(w, RULE_FINAL, from, m, mishaps);
	if ((m->kind == MOVE_COMMAND || m->kind == MOVE_SERVICE) &&
		(world_applied(s) < 0 || world_applied(s) > 1))
		broken(w, RULE_ONCE, from, m, mishaps);
}

/* ---------------------------------------------------------------- ends */

static void put_steps_in(
	const struct walker *w, const struct world *is, unsigned state, const char *fmt, struct pr_buf *b)
{
	for (size_t i = 0; i < w->def->step_n; i++)
		if (is->step[i].state == state) {
			pr_buf_puts(b, b->len ? ", " : "");
			pr_buf_printf(b, "%s%s", w->step[i].name, fmt);
		}
}

static char *what_of(const struct walker *w, const struct world *is)
{
	struct pr_buf b = { 0 };

	if (is->head.state == SAGA_STUCK) {
		for (size_t i = 0; i < w->def->step_n; i++)
			if (is->step[i].state == STEP_STUCK)
				pr_buf_printf(&b, "%s%s of %s", b.len ? ", " : "",
					saga_op_str((enum saga_op)is->step[i].op), w->step[i].name);
	} else if (is->head.state == SAGA_COMPENSATED) {
		put_steps_in(w, is, STEP_UNDONE, " undone", &b);
		if (!b.len)
			pr_buf_puts(&b, "nothing to undo");
	} else if (is->head.state == SAGA_COMPLETED) {
		put_steps_in(w, is, STEP_SKIPPED, " skipped", &b);
	}
	return b.s ? b.s : pr_strdup("");
}

/* Each situation that is an end counts for its kind; they are met in the order of mishaps. */
static void count_end(struct walker *w, uint32_t i, const struct world *is)
{
	char *what = what_of(w, is);
	size_t k = 0;

	while (k < w->end_n && (w->end[k].state != is->head.state || strcmp(w->end[k].what, what) != 0))
		k++;
	if (k < w->end_n || w->end_n == ENDS_MOST) {
		if (k < w->end_n)
			w->end[k].count++;
		free(what);
		return;
	}
	w->end = pr_realloc(w->end, (w->end_n + 1) * sizeof(*w->end));
	w->end[k].state = (enum saga_state)is->head.state;
	w->end[k].what = what;
	w->end[k].count = 1;
	w->end[k].first = i;
	w->end_n++;
}

/* ---------------------------------------------------------------- the walk */

static int is_refusal(const struct move *m)
{
	return (m->kind == MOVE_COMMAND || m->kind == MOVE_SERVICE) && m->outcome == OUTCOME_REFUSED;
}

static void found(struct walker *w, uint32_t from, const struct move *m, const struct world *was,
	const struct world *is, int mishaps)
{
	int fresh = 0;
	uint32_t i = intern(w, is, &fresh);
	struct node *n;

	judge_move(w, from, m, was, is, mishaps);
	if (fresh || i == NONE) {
		judge_end(w, from, m, is, mishaps);
		if (!has_way(w, is))
			broken(w, RULE_WAY, from, m, mishaps);
	}
	if (i == NONE) {
		w->ret->why_not = "states";
		return;
	}
	n = &w->node[i];
	if (m->kind == MOVE_DUE && from != i)
		w->node[from].by_due = i;
	if (!fresh && (n->done || n->mishaps <= mishaps))
		return;
	n->parent = from;
	n->move = *m;
	n->mishaps = (unsigned char)mishaps;
	push(mishaps > w->level ? &w->next[!is_refusal(m)] : &w->now, i);
}

static void visit(struct walker *w, uint32_t i, struct move **list, size_t *cap)
{
	struct world was, is;
	size_t n;

	if (w->node[i].done || w->node[i].mishaps != w->level)
		return;
	w->node[i].done = 1;
	(void)world_at(w, i, &was);
	if (was.head.born && (was.head.state == SAGA_STUCK || saga_is_final((enum saga_state)was.head.state)))
		count_end(w, i, &was);
	n = world_moves(&w->play, &was, list, cap);
	for (size_t k = 0; k < n && !w->ret->why_not; k++) {
		const struct move *m = &(*list)[k];

		if (w->level + m->mishap > w->conf.depth) {
			w->ret->deeper = 1;
			continue;
		}
		world_move(&w->play, &was, m, &is);
		w->ret->moves++;
		if (memcmp(&was, &is, w->stride) != 0)
			found(w, i, m, &was, &is, w->level + m->mishap);
	}
}

static int is_time_to_tell(struct walker *w, size_t *told)
{
	if (!w->conf.progress || w->n < *told)
		return 0;
	*told = w->n + PROGRESS;
	return w->conf.progress(w->conf.ctx, w->n, w->level) != 0;
}

/* All of the list, and what it leads to without another mishap. */
static void walk_list(struct walker *w, struct move **list, size_t *cap, size_t *told)
{
	for (size_t k = 0; k < w->now.n && !w->ret->why_not; k++) {
		visit(w, w->now.v[k], list, cap);
		if (is_time_to_tell(w, told))
			w->ret->why_not = "time";
	}
	w->now.n = 0;
}

static void walk(struct walker *w)
{
	struct ids first = { 0 }, then = { 0 };
	struct move *list = NULL;
	size_t cap = 0, told = 0;

	then = w->now;
	w->now = (struct ids){ 0 };
	while (first.n + then.n > 0 && !w->ret->why_not) {
		for (size_t k = 0; k < first.n; k++)
			push(&w->now, first.v[k]);
		walk_list(w, &list, &cap, &told);
		for (size_t k = 0; k < then.n; k++)
			push(&w->now, then.v[k]);
		walk_list(w, &list, &cap, &told);
		if (!w->ret->why_not)
			w->ret->depth = w->level++;
		free(first.v);
		free(then.v);
		first = w->next[0];
		then = w->next[1];
		w->next[0] = w->next[1] = (struct ids){ 0 };
	}
	free(first.v);
	free(then.v);
	free(list);
}

/* When nobody answers any more it must come to an end by what is due alone. */
static void judge_silence(struct walker *w)
{
	for (uint32_t i = 0; i < w->n; i++) {
		uint32_t at = i;
		int hops = 0;

		while (w->node[at].by_due != NONE && hops < HOPS_MOST) {
			at = w->node[at].by_due;
			hops++;
		}
		if (hops == HOPS_MOST && w->node[i].parent != NONE)
			broken(w, RULE_WAY, w->node[i].parent, &w->node[i].move, w->node[i].mishaps);
	}
}

static void begin(struct walker *w)
{
	struct world world;

	for (size_t k = 0; k < w->kinds; k++) {
		int fresh = 0;
		uint32_t i;

		memset(&world, 0, sizeof(world));
		world.head.data = (unsigned char)k;
		for (size_t s = 0; s < w->def->step_n; s++)
			world.step[s].applied = 1;
		i = intern(w, &world, &fresh);
		if (i != NONE)
			push(&w->now, i);
	}
}

/* ---------------------------------------------------------------- ways in words */

static const char *state_word(const struct world *is)
{
	return saga_state_str((enum saga_state)is->head.state);
}

/* By their conditions: of an order its own words tell. */
static void tell_skipped(
	const struct walker *w, const struct world *was, const struct world *is, struct pr_buf *b)
{
	for (size_t i = 0; i < w->def->step_n; i++)
		if (is->step[i].state == STEP_SKIPPED && was->step[i].state == STEP_WAITING) {
			pr_buf_puts(b, b->len && b->s[b->len - 1] != ' ' ? ", " : "");
			pr_buf_printf(b, "%s skipped", w->step[i].name);
		}
}

static void tell_move(const struct walker *w, const struct world *was, const struct world *is,
	const struct move *m, struct pr_buf *b)
{
	struct pr_buf words = { 0 };

	world_words(&w->play, was, is, m, &words);
	if (words.len && b->len && b->s[b->len - 1] != ' ')
		pr_buf_puts(b, ", ");
	pr_buf_put(b, words.s ? words.s : "", words.len);
	pr_buf_free(&words);
	tell_skipped(w, was, is, b);
	if (was->head.state == is->head.state || !is->head.born)
		return;
	if (b->len && b->s[b->len - 1] != ' ')
		pr_buf_puts(b, " -> ");
	if (is->head.state != SAGA_COMPENSATING)
		pr_buf_puts(b, state_word(is));
}

/* The way to a situation, and one move further (NULL: none). */
static char *tell(struct walker *w, uint32_t to, const struct move *last)
{
	uint32_t way[WORDS_MOST];
	struct world was, is;
	struct pr_buf b = { 0 };
	int n = 0;

	for (uint32_t i = to; i != NONE && n < WORDS_MOST; i = w->node[i].parent)
		way[n++] = i;
	while (--n > 0)
		tell_move(w, world_at(w, way[n], &was), world_at(w, way[n - 1], &is),
			&w->node[way[n - 1]].move, &b);
	if (last) {
		world_move(&w->play, world_at(w, to, &was), last, &is);
		tell_move(w, &was, &is, last, &b);
	}
	if (b.len && b.s[b.len - 1] == ' ')
		pr_buf_puts(&b, state_word(&is));
	return b.s ? b.s : pr_strdup("");
}

static int by_state(const void *a, const void *b)
{
	const struct saga_walk_end *x = a, *y = b;

	if (x->state != y->state)
		return (int)x->state - (int)y->state;
	return x->mishaps != y->mishaps ? x->mishaps - y->mishaps : strcmp(x->what, y->what);
}

static void give_ends(struct walker *w)
{
	w->ret->end = pr_calloc(w->end_n + 1, sizeof(*w->ret->end));
	w->ret->end_n = w->end_n;
	for (size_t i = 0; i < w->end_n; i++) {
		struct saga_walk_end *e = &w->ret->end[i];

		e->state = w->end[i].state;
		e->what = w->end[i].what;
		e->count = w->end[i].count;
		e->mishaps = w->node[w->end[i].first].mishaps;
		e->example = tell(w, w->end[i].first, NULL);
	}
	qsort(w->ret->end, w->end_n, sizeof(*w->ret->end), by_state);
}

static void give_rules(struct walker *w)
{
	w->ret->rule_n = RULES + w->def->invariant_n;
	w->ret->rule = pr_calloc(w->ret->rule_n, sizeof(*w->ret->rule));
	for (size_t r = 0; r < w->ret->rule_n; r++) {
		struct saga_walk_rule *to = &w->ret->rule[r];

		to->is_invariant = r >= RULES;
		to->text = r < RULES ? rule_text[r] : w->def->invariant[r - RULES].text;
		to->mishaps = w->broken[r].mishaps;
		if (w->broken[r].mishaps >= 0)
			to->violated = tell(w, w->broken[r].from, &w->broken[r].move);
	}
}

/* ---------------------------------------------------------------- all of it */

static void release(struct walker *w)
{
	for (size_t i = 0; i < w->kinds; i++) {
		for (size_t k = 0; k < w->paths; k++)
			free(w->kind[i].value[k]);
		free(w->kind[i].value);
		free(w->kind[i].signature);
		free(w->kind[i].json);
	}
	for (size_t i = 0; i < w->paths; i++)
		free(w->path[i]);
	for (size_t i = 0; i < w->def->step_n; i++)
		if (w->step[i].when)
			saga_expr_free((struct saga_expr *)(uintptr_t)w->step[i].when);
	free(w->path);
	free(w->world);
	free(w->node);
	free(w->hash);
	free(w->now.v);
	free(w->next[0].v);
	free(w->next[1].v);
	free(w->broken);
	free(w->end);
	saga_out_free(&w->play.out);
	saga_instance_free(&w->play.in);
}

void saga_walk(const struct saga_def *def, const struct saga_walk_conf *conf, struct saga_walk *ret)
{
	struct walker *w = pr_calloc(1, sizeof(*w));

	*ret = (struct saga_walk){ .depth = -1 };
	w->def = def;
	w->ret = ret;
	w->conf = *conf;
	w->conf.tries = conf->tries > 0 ? conf->tries : 2;
	w->conf.states = conf->states ? conf->states : STATES;
	w->stride = WORLD_BYTES(def->step_n);
	w->broken = pr_calloc(RULES + def->invariant_n, sizeof(*w->broken));
	for (size_t r = 0; r < RULES + def->invariant_n; r++)
		w->broken[r].mishaps = -1;
	own_def(w);
	w->play.def = &w->own;
	w->play.data = w->data;
	w->play.orders = conf->orders;
	w->play.no_barrier = conf->no_barrier;
	if (kinds_of_data(w) < 0) {
		ret->why_not = "data";
	} else {
		begin(w);
		walk(w);
		judge_silence(w);
	}
	ret->whole = !ret->why_not;
	ret->states = w->n;
	give_ends(w);
	give_rules(w);
	release(w);
	free(w);
}

void saga_walk_free(struct saga_walk *w)
{
	for (size_t i = 0; i < w->end_n; i++) {
		free(w->end[i].what);
		free(w->end[i].example);
	}
	for (size_t i = 0; i < w->rule_n; i++)
		free(w->rule[i].violated);
	free(w->end);
	free(w->rule);
	*w = (struct saga_walk){ 0 };
}

int saga_walk_is_violated(const struct saga_walk *w)
{
	for (size_t i = 0; i < w->rule_n; i++)
		if (w->rule[i].violated)
			return 1;
	return 0;
}
