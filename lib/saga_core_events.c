/* lib/saga_core_events.c -- what services tell of a choreography: a step is done, refused, undone, in any
 * order and more than once. Refuses to know where an event came from. */
#include "lib/saga_core_inner.h"

#include <string.h>

static int names(const char *word, const char *type, size_t n)
{
	return word && strlen(word) == n && memcmp(word, type, n) == 0;
}

/* Whether a step that comes after step i has happened. */
static int went_on(const struct saga_def *def, const struct saga_instance *in, size_t i)
{
	for (size_t k = 0; k < def->step_n; k++)
		if ((def->step[k].after >> i & 1) && in->step[k].state == STEP_DONE)
			return 1;
	return 0;
}

static void step_emitted(const struct saga_def *def, struct saga_instance *in, size_t i, const char *payload,
	size_t n, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	struct saga_reply r = { .op = SAGA_DO, .outcome = OUTCOME_DONE, .data = payload, .data_n = n };
	int was_stuck = s->state == STEP_STUCK;

	if (s->state == STEP_DONE) {
		core_note(out, went_on(def, in, i) ? NOTE_CYCLE : NOTE_DUPLICATE, (int)i, SAGA_DO,
			"%s came again", def->step[i].emits);
		return;
	}
	if (s->state == STEP_UNDOING || s->state == STEP_UNDONE || (was_stuck && s->op == SAGA_UNDO) ||
		(s->state == STEP_REFUSED && (in->turned || !def->undo_held))) {
		core_note(out, NOTE_LATE, (int)i, SAGA_DO, "%s came, and the step is %s", def->step[i].emits,
			saga_step_state_str(s->state));
		return;
	}
	if (s->state == STEP_WAITING)
		core_note(out, NOTE_UNEXPECTED, (int)i, SAGA_DO, "%s came before what it follows from",
			def->step[i].emits);
	core_do_answered(def, in, (int)i, &r, now, out);
	if (was_stuck)
		core_resume(def, in, (int)i, now, out);
}

/* It was only unknown whether it has begun, and nobody was asked to undo it. */
static int is_only_waited_for(const struct saga_def *def, const struct saga_instance *in, size_t i)
{
	const struct saga_step_now *s = &in->step[i];

	if (def->undo_held && def->step[i].act[SAGA_UNDO].command)
		return 0; /* its service may have tried it again since */
	return s->state == STEP_UNKNOWN ||
	       (!core_is_asked(def, &def->step[i], SAGA_UNDO) &&
		       (s->state == STEP_UNDOING || (s->state == STEP_STUCK && s->op == SAGA_UNDO)));
}

/* Step i was refused after all: what follows from it has never begun, there is nothing to wait for. */
static void never_begun(
	const struct saga_def *def, struct saga_instance *in, size_t i, int64_t now, struct saga_out *out)
{
	for (size_t k = 0; k < def->step_n; k++) {
		int was_stuck = in->step[k].state == STEP_STUCK;

		if (!(def->step[k].after >> i & 1) || !is_only_waited_for(def, in, k))
			continue;
		core_step_to(&in->step[k], STEP_WAITING, now);
		if (was_stuck)
			core_resume(def, in, (int)k, now, out);
		never_begun(def, in, k, now, out);
	}
}

static void failed_late(
	const struct saga_def *def, struct saga_instance *in, size_t i, int64_t now, struct saga_out *out)
{
	int was_stuck = in->step[i].state == STEP_STUCK;

	core_note(out, NOTE_LATE, (int)i, SAGA_DO, "%s came, and the step is %s", def->step[i].fails,
		saga_step_state_str(in->step[i].state));
	if (!is_only_waited_for(def, in, i))
		return;
	core_step_to(&in->step[i], STEP_REFUSED, now);
	never_begun(def, in, i, now, out);
	if (was_stuck)
		core_resume(def, in, (int)i, now, out);
}

/* Step i was at work and said no, and no other is done or at work: nothing hangs in the air. */
static int failed_alone(const struct saga_def *def, const struct saga_instance *in, size_t i)
{
	if (in->step[i].state != STEP_DOING || core_one_way(def, in) >= 0)
		return 0;
	for (size_t k = 0; k < def->step_n; k++)
		if (k != i && in->step[k].state != STEP_WAITING)
			return 0;
	return 1;
}

static void step_failed(
	const struct saga_def *def, struct saga_instance *in, size_t i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	char reason[sizeof(in->why)];

	if (s->state == STEP_REFUSED || s->refused) {
		core_note(out, NOTE_DUPLICATE, (int)i, SAGA_DO, "%s came again", def->step[i].fails);
		return;
	}
	if (in->turned || s->state == STEP_DONE) {
		failed_late(def, in, i, now, out);
		return;
	}
	WHY(s->why, "%.180s", def->step[i].fails);
	WHY(reason, "%s: %.120s", def->step[i].name, def->step[i].fails);
	core_note(out, NOTE_REFUSED, (int)i, SAGA_DO, "%s", def->step[i].fails);
	if (def->undo_held && in->granted) {
		/* No person is needed: the undo goes to it and to what may follow, should it be tried again.
		 */
		if (failed_alone(def, in, i))
			core_turn(def, in, (int)i, reason, now, out);
		else if (s->state == STEP_STUCK) /* for want of an event: the time runs since then */
			s->refused = 1;
		else
			core_hold(def, in, (int)i, now, out);
		return;
	}
	core_step_to(s, STEP_REFUSED, now);
	if (!in->granted)
		return;
	core_turn(def, in, (int)i, reason, now, out);
}

static void step_undone(
	const struct saga_def *def, struct saga_instance *in, size_t i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	int was_stuck = s->state == STEP_STUCK;

	if (s->state == STEP_UNDONE) {
		core_note(out, NOTE_DUPLICATE, (int)i, SAGA_UNDO, "%s came again", def->step[i].undone);
		return;
	}
	if (!in->turned)
		core_note(out, NOTE_UNEXPECTED, (int)i, SAGA_UNDO, "%s came, and nothing had failed",
			def->step[i].undone);
	core_step_to(s, STEP_UNDONE, now);
	core_note(out, NOTE_UNDONE, (int)i, SAGA_UNDO, "%s", def->step[i].undone);
	if (was_stuck)
		core_resume(def, in, (int)i, now, out);
	if (!in->turned && in->granted)
		core_turn(def, in, (int)i, UNDONE_BY_ITSELF, now, out);
}

void saga_take_event(const struct saga_def *def, struct saga_instance *in, const char *type, size_t type_n,
	const char *payload, size_t payload_n, int64_t now_us, struct saga_out *out)
{
	int known = 0;

	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step *d = &def->step[i];
		int emits = names(d->emits, type, type_n), fails = names(d->fails, type, type_n),
		    undone = names(d->undone, type, type_n);

		known |= emits || fails || undone;
		if (saga_is_final(in->state))
			continue;
		if (emits)
			step_emitted(def, in, i, payload, payload_n, now_us, out);
		else if (fails)
			step_failed(def, in, i, now_us, out);
		else if (undone)
			step_undone(def, in, i, now_us, out);
	}
	if (!known)
		core_note(out, NOTE_UNEXPECTED, -1, SAGA_DO, "%.*s is not part of the definition",
			(int)(type_n < 100 ? type_n : 100), type);
	else if (saga_is_final(in->state))
		core_note(out, NOTE_LATE, -1, SAGA_DO, "%.*s came, and the saga is %s",
			(int)(type_n < 100 ? type_n : 100), type, saga_state_str(in->state));
	core_settle(def, in, now_us, out);
}
