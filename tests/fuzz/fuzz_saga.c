/* tests/fuzz/fuzz_saga.c -- libFuzzer target of lib/saga_def*.c and lib/saga_expr.c: any bytes as a
 * definition are refused with file and reason, or taken; and what is taken has a way to its end. It is
 * walked: all goes well, and it must be COMPLETED; the last that may refuse does, and nothing may stay done
 * that has an undo. */
#include "lib/saga_core.h"

#include "lib/json_path.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

#define ROUNDS 200

static void check_action(const struct saga_action *a)
{
	require(!a->command || (*a->command && a->topic && *a->topic), "a command has a topic");
	require(a->timeout_us > 0 && a->retry.attempts >= 1 && a->retry.attempts <= 1000,
		"tries are bounded");
	require(a->retry.backoff_us > 0 && a->retry.backoff_max_us >= a->retry.backoff_us, "backoff grows");
	for (size_t i = 0; i < a->send_n; i++) {
		const struct saga_member *m = &a->send[i];

		require(*m->name && !m->path != !m->json, "a member is a path or JSON");
		require(!m->json || pr_json_text(m->json, strlen(m->json)), "a constant is JSON");
	}
}

static void check_step(const struct saga_def *def, const struct saga_step *s)
{
	int orchestrated = def->style == SAGA_ORCHESTRATION;

	require(orchestrated == (s->act[SAGA_DO].command != NULL), "who is orchestrated is asked");
	require(orchestrated == !s->emits && orchestrated == !s->on, "who is not has events");
	require(s->kind != SAGA_COMPENSATABLE || s->act[SAGA_UNDO].command || s->undone,
		"there is a way back");
	require(s->stage >= 0 && s->stage < def->stages, "a stage of those there are");
	require(def->pivot < 0 || (s->kind == SAGA_COMPENSATABLE) == (s->stage < def->pivot) || !orchestrated,
		"what can be undone comes before the pivot");
	check_action(&s->act[SAGA_DO]);
	check_action(&s->act[SAGA_UNDO]);
}

static void check(const struct saga_def *def)
{
	int stage = 0;

	require(def->step_n >= 1 && def->step_n <= SAGA_STEPS_MOST, "1 to 32 steps");
	require(def->version >= 1, "a version");
	for (size_t i = 0; i < def->step_n; i++) {
		require(def->step[i].stage == stage || def->step[i].stage == stage + 1,
			"steps stand in order");
		stage = def->step[i].stage;
		check_step(def, &def->step[i]);
		require(saga_def_step(def, def->step[i].name, strlen(def->step[i].name)) == (int)i,
			"names are unique");
	}
	require(stage == def->stages - 1, "every stage has a step");
}

/* One answer to all that is out. refuse: the step that says no; -1: none does. */
static void answer(const struct saga_def *def, struct saga_instance *in, const struct saga_out *asked,
	int refuse, int64_t now, struct saga_out *out)
{
	for (size_t i = 0; i < asked->send_n; i++) {
		const struct saga_send *s = &asked->send[i];
		struct saga_reply r = { .step = def->step[s->step].name,
			.op = s->op,
			.outcome = s->op == SAGA_DO && s->step == refuse ? OUTCOME_REFUSED : OUTCOME_DONE };

		r.step_n = strlen(r.step);
		memcpy(r.command_id, s->command_id, sizeof(r.command_id));
		saga_take_reply(def, in, &r, now, out);
	}
	for (size_t i = 0; i < def->step_n && def->style == SAGA_CHOREOGRAPHY; i++) {
		const struct saga_step *d = &def->step[i];
		const char *type = in->step[i].state == STEP_UNDOING ? d->undone
				   : in->step[i].state != STEP_DOING ? NULL
				   : (int)i == refuse                ? d->fails
								     : d->emits;

		if (type)
			saga_take_event(def, in, type, strlen(type), "{}", 2, now, out);
	}
}

static int is_at_rest(const struct saga_instance *in)
{
	return saga_is_final(in->state) || in->state == SAGA_STUCK;
}

static void walk(const struct saga_def *def, const char *data, int refuse, struct saga_instance *in)
{
	static const unsigned char id[16] = { 1 };
	struct saga_out asked = { 0 }, out = { 0 }, swap;
	int64_t now = 1000000;

	saga_instance_init(in, def, id, data, strlen(data), now);
	saga_begin(def, in, 1, now, &asked);
	for (int i = 0; i < ROUNDS && !is_at_rest(in); i++) {
		saga_out_clear(&out);
		answer(def, in, &asked, refuse, ++now, &out);
		swap = asked;
		asked = out;
		out = swap;
	}
	require(is_at_rest(in), "it comes to an end");
	saga_out_free(&asked);
	saga_out_free(&out);
}

/* The last step of those that may refuse. */
static int last_refuser(const struct saga_def *def)
{
	int last = -1;

	for (size_t i = 0; i < def->step_n; i++)
		if (def->step[i].kind != SAGA_RETRIABLE &&
			(def->style == SAGA_ORCHESTRATION || def->step[i].fails) &&
			(def->style == SAGA_ORCHESTRATION || def->emit_undo))
			last = (int)i;
	return last;
}

static void walks(const struct saga_def *def, const char *data)
{
	struct saga_instance in;
	int refuse = last_refuser(def), refused;

	walk(def, data, -1, &in);
	require(in.state == SAGA_COMPLETED, "all went well: it is completed");
	saga_instance_free(&in);
	if (refuse < 0)
		return;
	walk(def, data, refuse, &in);
	refused = in.step[refuse].state == STEP_REFUSED;
	require(in.state == (refused ? SAGA_COMPENSATED : SAGA_COMPLETED), "refused: all is undone");
	for (size_t i = 0; refused && i < def->step_n; i++)
		require(in.step[i].state != STEP_DONE || def->step[i].kind != SAGA_COMPENSATABLE,
			"nothing stays done");
	saga_instance_free(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *copy = pr_malloc(size + 1);
	struct saga_def *def = NULL;
	struct pr_err err = { 0 };

	memcpy(copy, data, size);
	if (saga_def_parse("fuzz.cfg", copy, size, &def, &err) == 0) {
		check(def);
		walks(def, "{}");
		walks(def, "{\"amount\": 5, \"token\": \"t\", \"a\": 1, \"b\": true}");
	} else {
		require(!def && strncmp(err.text, "fuzz.cfg", 8) == 0 && err.exit == PR_EX_CONFIG,
			"refused with reasons");
	}
	saga_def_free(def);
	free(copy);
	return 0;
}
