/* lib/saga_def_check.c -- what the steps of a definition must fulfil together: their order and kinds, the
 * graph of a choreography's events, conditions and invariants that mean something. After it no instance can
 * come to a place without a way on or back. Refuses; mends nothing. */
#include "lib/saga_def_inner.h"

#include "lib/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct saga_step *step_at(const struct saga_build *b, size_t i)
{
	return &b->def->step[i];
}

/* ---------------------------------------------------------------- names */

static int check_names(const struct saga_build *b)
{
	static const char *const words[] = { "data", "saga", "reply", "payload", "header", "event", "true",
		"false", "null" };

	for (size_t i = 0; i < b->def->step_n; i++) {
		const char *name = step_at(b, i)->name;
		int first = saga_def_step(b->def, name, strlen(name));

		for (size_t k = 0; k < sizeof(words) / sizeof(*words); k++)
			if (strcmp(words[k], name) == 0)
				return saga_deny(b, (int)i, "name", "\"%s\" is a word of expressions", name);
		if ((size_t)first != i)
			return saga_deny(b, (int)i, "name",
				"\"%s\" is the name of two steps, first at line %d", name,
				step_at(b, (size_t)first)->line);
	}
	return 0;
}

/* ---------------------------------------------------------------- stages of an orchestration */

static int same_group(const struct saga_build *b, size_t i, size_t k)
{
	const char *x = saga_raw_step(b, i)->group, *y = saga_raw_step(b, k)->group;

	return x && y && *x && strcmp(x, y) == 0;
}

static int set_stages(const struct saga_build *b)
{
	struct saga_def *def = b->def;
	int stage = -1;

	for (size_t i = 0; i < def->step_n; i++) {
		int joins = i > 0 && same_group(b, i, i - 1);

		for (size_t k = 0; !joins && k < i; k++)
			if (same_group(b, i, k))
				return saga_deny(b, (int)i, "group",
					"\"%.64s\" is torn apart: %s stands between",
					saga_raw_step(b, i)->group, def->step[i - 1].name);
		stage += !joins;
		def->step[i].stage = stage;
	}
	def->stages = stage + 1;
	return 0;
}

/* ---------------------------------------------------------------- the graph of a choreography */

/* The step whose event of this type it is, and what the event says of it. -1: nobody's. */
static int owner_of(const struct saga_build *b, const char *type, const char **ret_says)
{
	for (size_t i = 0; type && i < b->def->step_n; i++) {
		const struct saga_step *s = step_at(b, i);
		const char *const types[] = { s->emits, s->fails, s->undone };
		static const char *const says[] = { "done", "refused", "undone" };

		for (size_t k = 0; k < 3; k++)
			if (types[k] && strcmp(types[k], type) == 0) {
				*ret_says = says[k];
				return (int)i;
			}
	}
	return -1;
}

/* An event tells one thing: each type stands once. */
static int check_event(
	const struct saga_build *b, size_t i, const char *key, const char *type, const char *says)
{
	const char *first_says = "";
	int first = owner_of(b, type, &first_says);

	if (!type)
		return 0;
	if (strcmp(type, b->def->start_type) == 0)
		return saga_deny(b, (int)i, key, "%s is the event that starts the saga", type);
	if ((size_t)first == i && strcmp(first_says, says) == 0)
		return 0;
	return saga_deny(b, (int)i, key, "%s says already that %s is %s", type,
		step_at(b, (size_t)first)->name, first_says);
}

static int fail_on(const struct saga_build *b, size_t i)
{
	const char *types[SAGA_STEPS_MOST + 2], *near;
	size_t n = 0;

	for (size_t k = 0; k < b->def->step_n; k++)
		types[n++] = step_at(b, k)->emits;
	types[n++] = b->def->start_type;
	types[n] = NULL;
	(void)saga_deny(b, (int)i, "on", "nobody emits %s: %s would never begin", step_at(b, i)->on,
		step_at(b, i)->name);
	near = pr_nearest(step_at(b, i)->on, types);
	return near ? pr_hint(b->err, "did you mean \"%s\"?", near) : -1;
}

static int set_after(const struct saga_build *b, size_t i)
{
	struct saga_step *s = &b->def->step[i];
	const char *says = "";
	int k = owner_of(b, s->on, &says);

	if (strcmp(s->on, b->def->start_type) == 0)
		return 0;
	if (k < 0)
		return fail_on(b, i);
	if (strcmp(says, "done") != 0)
		return saga_deny(b, (int)i, "on", "%s says that %s is %s: undoing is no step of its own",
			s->on, step_at(b, (size_t)k)->name, says);
	s->after = 1U << k;
	return 0;
}

/* The step it reacts to; -1: it begins the saga. */
static int before(const struct saga_step *s)
{
	return s->after ? __builtin_ctz(s->after) : -1;
}

static int fail_cycle(const struct saga_build *b, size_t i)
{
	struct pr_buf way = { 0 };
	int k = (int)i;

	do {
		pr_buf_printf(&way, "%s, ", step_at(b, (size_t)k)->name);
		k = before(step_at(b, (size_t)k));
	} while (k != (int)i);
	(void)saga_deny(
		b, (int)i, "on", "a cycle, each waits for the next: %.250s%s", way.s, step_at(b, i)->name);
	pr_buf_free(&way);
	return -1;
}

/* The stage is the number of steps before it. */
static int set_depth(const struct saga_build *b, size_t i)
{
	struct saga_step *s = &b->def->step[i];

	s->stage = 0;
	for (int k = before(s); k >= 0; k = before(step_at(b, (size_t)k))) {
		if (k == (int)i)
			return fail_cycle(b, i);
		/* A cycle further back that it hangs on is found at its own members. */
		if (++s->stage > SAGA_STEPS_MOST)
			break;
	}
	if (s->stage >= b->def->stages)
		b->def->stages = s->stage + 1;
	return 0;
}

static int set_graph(const struct saga_build *b)
{
	for (size_t i = 0; i < b->def->step_n; i++) {
		const struct saga_step *s = step_at(b, i);

		if (check_event(b, i, "emits", s->emits, "done") < 0 ||
			check_event(b, i, "fails", s->fails, "refused") < 0 ||
			check_event(b, i, "undone", s->undone, "undone") < 0 || set_after(b, i) < 0)
			return -1;
	}
	for (size_t i = 0; i < b->def->step_n; i++)
		if (set_depth(b, i) < 0)
			return -1;
	return 0;
}

/* Whether step k comes, near or far, before step i. */
static int comes_before(const struct saga_build *b, size_t k, size_t i)
{
	if (b->def->style == SAGA_ORCHESTRATION)
		return step_at(b, k)->stage < step_at(b, i)->stage;
	for (int p = before(step_at(b, i)); p >= 0; p = before(step_at(b, (size_t)p)))
		if ((size_t)p == k)
			return 1;
	return 0;
}

/* ---------------------------------------------------------------- kinds */

static int find_pivot(const struct saga_build *b)
{
	int pivot = -1;

	for (size_t i = 0; i < b->def->step_n; i++) {
		if (step_at(b, i)->kind != SAGA_PIVOT)
			continue;
		if (pivot >= 0)
			return saga_deny(b, (int)i, "kind", "a second pivot, the first is %s",
				step_at(b, (size_t)pivot)->name);
		pivot = (int)i;
	}
	if (pivot >= 0)
		b->def->pivot = step_at(b, (size_t)pivot)->stage;
	return 0;
}

/* Without a pivot nothing says where undoing ends and succeeding begins. */
static int check_one_kind(const struct saga_build *b)
{
	for (size_t i = 1; i < b->def->step_n; i++) {
		if (step_at(b, i)->kind == step_at(b, 0)->kind)
			continue;
		(void)saga_deny(b, (int)i, "kind",
			"there are compensatable and retriable steps, and no pivot between them");
		return pr_hint(b->err, "the last step that may be refused is the pivot");
	}
	return 0;
}

static int check_against_pivot(const struct saga_build *b, size_t i, size_t pivot)
{
	const struct saga_step *s = step_at(b, i), *p = step_at(b, pivot);

	if (i == pivot)
		return 0;
	if (b->def->style == SAGA_ORCHESTRATION && s->stage == p->stage)
		return saga_deny(b, (int)i, "group",
			"the pivot %s must be alone: nobody could say whether %s is to be undone", p->name,
			s->name);
	if (s->kind == SAGA_COMPENSATABLE && !comes_before(b, i, pivot)) {
		(void)saga_deny(b, (int)i, "kind",
			"%s is compensatable and does not come before the pivot %s", s->name, p->name);
		return pr_hint(b->err, "what comes after the pivot must succeed: retriable");
	}
	if (s->kind == SAGA_RETRIABLE && !comes_before(b, pivot, i)) {
		(void)saga_deny(b, (int)i, "kind", "%s is retriable and does not come after the pivot %s",
			s->name, p->name);
		return pr_hint(b->err, "what comes before the pivot must be undone when it refuses: "
				       "compensatable");
	}
	return 0;
}

static int check_kinds(const struct saga_build *b)
{
	size_t pivot = 0;

	b->def->pivot = -1;
	if (find_pivot(b) < 0)
		return -1;
	if (b->def->pivot < 0)
		return check_one_kind(b);
	while (step_at(b, pivot)->kind != SAGA_PIVOT)
		pivot++;
	for (size_t i = 0; i < b->def->step_n; i++)
		if (check_against_pivot(b, i, pivot) < 0)
			return -1;
	return 0;
}

/* Past the deadline what is done is undone: there must be something to undo. */
static int check_deadline(const struct saga_build *b)
{
	if (!b->def->deadline_us || b->def->style == SAGA_CHOREOGRAPHY ||
		step_at(b, 0)->kind != SAGA_RETRIABLE)
		return 0;
	(void)saga_deny(
		b, -1, "deadline", "all steps are retriable: there is nothing to undo when it passes");
	return pr_hint(b->err, "sla shows a step that is late");
}

/* ---------------------------------------------------------------- conditions, members, invariants */

struct in_when {
	const struct saga_build *b;
	int step;
};

static int check_when_path(void *ctx, const char *path)
{
	const struct in_when *w = ctx;

	return saga_path(w->b, w->step, "when", path, ROOT_DATA);
}

static int no_bit(const char *path)
{
	(void)path;
	return 0;
}

static int check_when(const struct saga_build *b, size_t i)
{
	const struct saga_step *s = step_at(b, i);
	struct in_when w = { b, (int)i };

	if (!s->when)
		return 0;
	if (saga_expr_paths(s->when, check_when_path, &w) < 0)
		return -1;
	if (!saga_expr_can(s->when, 1, no_bit))
		return saga_deny(b, (int)i, "when", "\"%.150s\" is never true: %s would never begin",
			saga_raw_step(b, i)->when, s->name);
	for (size_t k = 0; k < b->def->step_n; k++)
		if (step_at(b, k)->after >> i & 1)
			return saga_deny(b, (int)i, "when",
				"%s reacts to %s, which does not come when it is false", step_at(b, k)->name,
				s->emits);
	return 0;
}

/* Steps that run side by side end in any order: none may overwrite what another keeps. */
static int check_keep(const struct saga_build *b, size_t i, size_t k)
{
	const struct saga_step *x = step_at(b, i), *y = step_at(b, k);

	for (size_t m = 0; m < x->keep_n; m++)
		for (size_t n = 0; n < y->keep_n; n++)
			if (strcmp(x->keep[m].name, y->keep[n].name) == 0)
				return saga_deny(b, (int)i, "keep",
					"\"%s\" is kept by %s too, which runs side by side: the order would "
					"decide",
					x->keep[m].name, y->name);
	return 0;
}

static int check_keeps(const struct saga_build *b)
{
	for (size_t i = 0; i < b->def->step_n; i++)
		for (size_t k = 0; k < i; k++)
			if (!comes_before(b, k, i) && !comes_before(b, i, k) && check_keep(b, i, k) < 0)
				return -1;
	return 0;
}

static int is_applied(const char *path)
{
	return strncmp(path, "data.", 5) != 0;
}

/* data.x, or STEP.applied of a step that there is. */
static int check_invariant_path(void *ctx, const char *path)
{
	const struct saga_build *b = ctx;
	const char *names[SAGA_STEPS_MOST + 2], *near;
	size_t n = strcspn(path, ".["), k = 0;
	char word[80];

	if (n == 4 && strncmp(path, "data", 4) == 0)
		return saga_path(b, -1, "invariants", path, ROOT_DATA);
	if (saga_def_step(b->def, path, n) >= 0)
		return strcmp(path + n, ".applied") == 0
			       ? 0
			       : saga_deny(b, -1, "invariants", "\"%.100s\": of a step there is %.*s.applied",
					 path, (int)n, path);
	(void)saga_deny(b, -1, "invariants", "\"%.100s\": there is no step \"%.*s\"", path,
		(int)(n < 64 ? n : 64), path);
	(void)snprintf(word, sizeof(word), "%.*s", (int)(n < 64 ? n : 64), path);
	for (size_t i = 0; i < b->def->step_n; i++)
		names[k++] = step_at(b, i)->name;
	names[k++] = "data";
	names[k] = NULL;
	near = pr_nearest(word, names);
	return near ? pr_hint(b->err, "did you mean \"%s\"?", near) : -1;
}

static int check_invariants(struct saga_build *b)
{
	for (size_t i = 0; i < b->def->invariant_n; i++) {
		const struct saga_invariant *v = &b->def->invariant[i];

		if (saga_expr_paths(v->expr, check_invariant_path, b) < 0)
			return -1;
		if (!saga_expr_can(v->expr, 1, is_applied))
			return saga_deny(b, -1, "invariants", "\"%.150s\" is never true", v->text);
		if (!saga_expr_can(v->expr, 0, is_applied))
			return saga_deny(
				b, -1, "invariants", "\"%.150s\" is always true: it says nothing", v->text);
	}
	return 0;
}

/* ---------------------------------------------------------------- order */

/* Steps stand in the order of their stages from then on, within one as in the file. */
static void sort_steps(struct saga_def *def)
{
	struct saga_step sorted[SAGA_STEPS_MOST];
	int place[SAGA_STEPS_MOST];
	int n = 0;

	for (int stage = 0; stage < def->stages; stage++)
		for (size_t i = 0; i < def->step_n; i++)
			if (def->step[i].stage == stage) {
				place[i] = n;
				sorted[n++] = def->step[i];
			}
	for (size_t i = 0; i < def->step_n; i++) {
		def->step[i] = sorted[i];
		if (sorted[i].after)
			def->step[i].after = 1U << place[before(&sorted[i])];
	}
}

int saga_check(struct saga_build *b)
{
	if (check_names(b) < 0)
		return -1;
	if ((b->def->style == SAGA_CHOREOGRAPHY ? set_graph(b) : set_stages(b)) < 0)
		return -1;
	if (check_kinds(b) < 0 || check_deadline(b) < 0 || check_keeps(b) < 0 || check_invariants(b) < 0)
		return -1;
	for (size_t i = 0; i < b->def->step_n; i++)
		if (check_when(b, i) < 0)
			return -1;
	sort_steps(b->def);
	return 0;
}
