/* cli/saga_simulate.c -- `postrider saga simulate`: every way that a saga of a definition can go, how these
 * end, and whether its invariants hold there. Contacts nothing but, for a definition by name, the database.
 * Refuses to say that all is well when not all was walked. */
#include "cli/saga_simulate.h"

#include "cli/saga_definition.h"
#include "lib/clock.h"

#include <string.h>

#define DEPTH  3
#define TRIES  2
#define STATES 1000000

#define RULE_AT 11 /* column */

/* ---------------------------------------------------------------- text */

static void print_ends(const struct saga_walk *w)
{
	static const char *const heads[] = { "END", "WHAT", ">SITUATIONS", "~EXAMPLE" };
	struct cli_table table = { .ncols = 4, .heads = heads };
	char count[32];

	for (size_t i = 0; i < w->end_n; i++) {
		const struct saga_walk_end *e = &w->end[i];
		const char *cells[] = { saga_state_str(e->state), e->what,
			cli_count((int64_t)e->count, count), e->example };

		cli_table_add(&table, cells);
	}
	cli_table_print(&table, stdout);
}

/* What was walked without a violation and not to its end is only not known to be violated. */
static const char *verdict(const struct saga_walk *w, const struct saga_walk_rule *r)
{
	return r->violated ? "violated" : w->whole ? "ok" : "so far ok";
}

static void print_rules(const struct saga_walk *w)
{
	for (size_t i = 0; i < w->rule_n; i++) {
		const struct saga_walk_rule *r = &w->rule[i];
		enum cli_colour colour = r->violated ? CLI_RED : w->whole ? CLI_GREEN : CLI_YELLOW;

		(void)printf("%s%-9s%s  ", cli_on(stdout, colour), verdict(w, r), cli_off(stdout));
		cli_text(stdout, r->text, RULE_AT, RULE_AT);
		if (!r->violated)
			continue;
		(void)printf("%*s", RULE_AT, "");
		cli_text(stdout, r->violated, RULE_AT, RULE_AT);
	}
}

static void print_extent(const struct saga_walk *w)
{
	char states[64], moves[64], mishaps[64];

	(void)printf("%s, %s", cli_number((int64_t)w->states, "situation", states),
		cli_number((int64_t)w->moves, "move", moves));
	if (!w->whole && w->depth < 0)
		(void)printf("; not even the ways without a mishap were all walked\n");
	else if (w->depth == 0 && (!w->whole || w->deeper))
		(void)printf("; all ways without a mishap were walked\n");
	else if (!w->whole || w->deeper)
		(void)printf(
			"; all ways with up to %s were walked\n", cli_number(w->depth, "mishap", mishaps));
	else
		(void)printf("; all ways there are were walked\n");
}

void saga_simulate_print(const struct saga_def *def, const struct saga_walk *w)
{
	char steps[64];

	(void)printf("saga %s, version %d: %s of %s\n\n", def->name, def->version, saga_style_str(def->style),
		cli_number((int64_t)def->step_n, "step", steps));
	print_ends(w);
	(void)printf("\n");
	print_rules(w);
	(void)printf("\n");
	print_extent(w);
}

/* ---------------------------------------------------------------- JSON */

static cJSON *json_ends(const struct saga_walk *w)
{
	cJSON *list = cJSON_CreateArray();

	for (size_t i = 0; i < w->end_n; i++) {
		const struct saga_walk_end *e = &w->end[i];
		cJSON *o = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(o, "state", saga_state_str(e->state));
		(void)cJSON_AddStringToObject(o, "what", e->what);
		cli_json_int(o, "situations", (int64_t)e->count);
		cli_json_int(o, "mishaps", e->mishaps);
		(void)cJSON_AddStringToObject(o, "example", e->example);
		(void)cJSON_AddItemToArray(list, o);
	}
	return list;
}

static cJSON *json_rules(const struct saga_walk *w)
{
	cJSON *list = cJSON_CreateArray();

	for (size_t i = 0; i < w->rule_n; i++) {
		const struct saga_walk_rule *r = &w->rule[i];
		cJSON *o = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(o, "rule", r->text);
		(void)cJSON_AddBoolToObject(o, "invariant", r->is_invariant);
		(void)cJSON_AddBoolToObject(o, "violated", r->violated != NULL);
		if (r->violated)
			(void)cJSON_AddStringToObject(o, "example", r->violated);
		else
			(void)cJSON_AddNullToObject(o, "example");
		(void)cJSON_AddItemToArray(list, o);
	}
	return list;
}

void saga_simulate_json(const struct saga_def *def, const struct saga_walk *w)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "name", def->name);
	cli_json_int(o, "version", def->version);
	(void)cJSON_AddStringToObject(o, "style", saga_style_str(def->style));
	cli_json_int(o, "situations", (int64_t)w->states);
	cli_json_int(o, "moves", (int64_t)w->moves);
	if (w->depth >= 0)
		cli_json_int(o, "mishaps", w->depth);
	else
		(void)cJSON_AddNullToObject(o, "mishaps");
	(void)cJSON_AddBoolToObject(o, "all_ways", w->whole && !w->deeper);
	(void)cJSON_AddBoolToObject(o, "complete", w->whole);
	(void)cJSON_AddBoolToObject(o, "violated", saga_walk_is_violated(w));
	(void)cJSON_AddItemToObject(o, "ends", json_ends(w));
	(void)cJSON_AddItemToObject(o, "rules", json_rules(w));
	cli_json_free_line(o);
}

/* ---------------------------------------------------------------- the verb */

static int tell(void *ctx, size_t states, int depth)
{
	int64_t *told = ctx, now = pr_mono_us();
	char count[64], mishaps[64];

	if (now - *told < 100 * PR_MS)
		return 0;
	*told = now;
	(void)fprintf(stderr, "\r\033[K%s, ways with %s", cli_number((int64_t)states, "situation", count),
		cli_number(depth, "mishap", mishaps));
	(void)fflush(stderr);
	return 0;
}

static void say_bound(const struct saga_walk *w, int64_t states)
{
	char count[64];

	if (strcmp(w->why_not, "data") == 0) {
		cli_say("the conditions and invariants tell too many kinds of data apart to walk them all");
		cli_hint("compare fewer members of data, or with fewer values");
		return;
	}
	cli_say("stopped at the bound of %s: this says nothing about the ways that were not walked",
		cli_number(states, "situation", count));
	cli_hint(w->depth >= 0 ? "--depth %d was walked to its end; --states raises the bound"
			       : "--states raises the bound",
		w->depth);
}

static int walk(const struct cli *c, const struct saga_def *def)
{
	int64_t begun = pr_mono_us(), told = begun, states = cli_int(c, "states", STATES);
	struct saga_walk_conf conf = { .depth = cli_has(c, "all") ? SAGA_WALK_WHOLE
								  : (int)cli_int(c, "depth", DEPTH),
		.tries = (int)cli_int(c, "tries", TRIES),
		.states = (size_t)states,
		.orders = cli_has(c, "orders"),
		.progress = cli_tty(stderr) ? tell : NULL,
		.ctx = &told };
	struct saga_walk w;
	int rc = PR_EX_OK;

	saga_walk(def, &conf, &w);
	if (told != begun)
		(void)fputs("\r\033[K", stderr);
	if (cli_has(c, "json"))
		saga_simulate_json(def, &w);
	else
		saga_simulate_print(def, &w);
	if (!w.whole) {
		(void)fflush(stdout);
		say_bound(&w, states);
		rc = PR_EX_UNHEALTHY;
	}
	if (saga_walk_is_violated(&w))
		rc = PR_EX_FAILED;
	saga_walk_free(&w);
	return rc;
}

int verb_saga_simulate(struct cli *c)
{
	struct saga_def *def = NULL;
	struct pr_err err = { 0 };
	int rc;

	if (cli_has(c, "all") && cli_has(c, "depth")) {
		(void)cli_usage(&err, "--all and --depth exclude each other");
		return cli_failed(c, &err);
	}
	if (cli_saga_definition(c, c->args[0], &def, &err) < 0)
		return cli_failed(c, &err);
	rc = walk(c, def);
	saga_def_free(def);
	return rc;
}
