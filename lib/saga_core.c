/* lib/saga_core.c -- the transitions of a saga. Every function takes one thing that happened and ends in
 * core_settle(), which moves the instance as far as it goes by itself. Refuses to do I/O, and to know who
 * calls it. */
#include "lib/saga_core_inner.h"

#include "lib/fault.h"
#include "lib/json_path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BACKOFF (365LL * 86400 * 1000000)

/* ---------------------------------------------------------------- what follows */

static void *grown(void *v, size_t n, size_t *cap, size_t size)
{
	if (n < *cap)
		return v;
	*cap = *cap ? *cap * 2 : 16;
	return pr_realloc(v, *cap * size);
}

/* Reasons come from participants and are cut to fit: what is no UTF-8 becomes "?", half a character at the
 * end goes. Postgres would refuse the whole transaction. */
static void mend(char *s)
{
	while (*s) {
		unsigned char c = (unsigned char)*s;
		size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4, there = strnlen(s, n);

		if (n == 1 || pr_utf8_text(s, there))
			s += there;
		else if (there < n)
			*s = '\0';
		else
			*s++ = '?';
	}
}

void core_note(
	struct saga_out *out, enum saga_note_what what, int step, enum saga_op op, const char *fmt, ...)
{
	struct saga_note *n;
	va_list ap;

	out->note = grown(out->note, out->note_n, &out->note_cap, sizeof(*out->note));
	n = &out->note[out->note_n++];
	n->what = what;
	n->step = step;
	n->op = op;
	va_start(ap, fmt);
	(void)vsnprintf(n->text, sizeof(n->text), fmt, ap);
	va_end(ap);
	mend(n->text);
}

void core_publish(struct saga_out *out, enum saga_event type, int step)
{
	out->publish = grown(out->publish, out->publish_n, &out->publish_cap, sizeof(*out->publish));
	out->publish[out->publish_n++] = (struct saga_publish){ .type = type, .step = step };
}

static void send(const struct saga_def *def, struct saga_instance *in, int i, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	struct saga_send *to;

	out->send = grown(out->send, out->send_n, &out->send_cap, sizeof(*out->send));
	to = &out->send[out->send_n++];
	to->step = i;
	to->op = s->op;
	to->try = s->tries;
	saga_command_id(def, in, i, s->op, to->command_id);
}

void saga_out_clear(struct saga_out *out)
{
	out->send_n = out->publish_n = out->note_n = 0;
}

void saga_out_free(struct saga_out *out)
{
	free(out->send);
	free(out->publish);
	free(out->note);
	*out = (struct saga_out){ 0 };
}

/* ---------------------------------------------------------------- states: changed here only */

void core_step_to(struct saga_step_now *s, enum saga_step_state state, int64_t now)
{
	s->state = state;
	s->since_us = now;
	s->due_us = 0;
	s->waits = 0;
	s->refused = 0;
}

void core_state_to(struct saga_instance *in, enum saga_state state, int64_t now, struct saga_out *out)
{
	if (in->state == state)
		return;
	core_note(out, NOTE_STATE, -1, SAGA_DO, "%s -> %s", saga_state_str(in->state), saga_state_str(state));
	in->state = state;
	in->since_us = now;
}

void core_why(char *to, size_t size, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(to, size, fmt, ap);
	va_end(ap);
	mend(to);
}

/* ---------------------------------------------------------------- one step */

/* A choreography's step may be undone by its service itself, which tells by an event. */
int core_has_undo(const struct saga_step *d)
{
	return d->act[SAGA_UNDO].command || d->undone;
}

/* The engine asks for it; else the services act by themselves, and it only waits for their events. */
int core_is_asked(const struct saga_def *def, const struct saga_step *d, enum saga_op op)
{
	if (def->style == SAGA_ORCHESTRATION)
		return 1;
	return op == SAGA_UNDO && d->act[SAGA_UNDO].command;
}

/* Doubles from backoff to its bound, and up to a quarter more, the same for the same try: a herd that failed
 * together does not come back together. */
static int64_t backoff(const struct saga_instance *in, const struct saga_retry *r, int i, int tries)
{
	uint32_t h = (uint32_t)(in->id[12] | in->id[13] << 8 | in->id[14] << 16) * 2654435761U +
		     (uint32_t)(i * 31 + tries) * 40503U;
	int64_t us = r->backoff_us;

	for (int k = 1; k < tries && us < r->backoff_max_us; k++)
		us *= 2;
	if (us > r->backoff_max_us)
		us = r->backoff_max_us;
	if (us > MOST_BACKOFF)
		us = MOST_BACKOFF;
	return us + us / 4 * (int64_t)(h >> 16 & 1023) / 1024;
}

void core_try_step(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	const struct saga_action *a = &def->step[i].act[s->op];

	s->generation[s->op] += s->refused;
	s->tries++;
	s->waits = s->refused = 0;
	s->due_us = a->timeout_us ? now + a->timeout_us : 0;
	if (!core_is_asked(def, &def->step[i], s->op))
		return;
	send(def, in, i, out);
	core_note(out, s->tries == 1 ? NOTE_SENT : NOTE_SENT_AGAIN, i, s->op, "%s to %s, try %d of %lld",
		a->command, a->topic, s->tries, (long long)a->retry.attempts);
}

void core_begin_step(const struct saga_def *def, struct saga_instance *in, int i, enum saga_op op,
	int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];

	s->op = op;
	s->tries = 0;
	core_step_to(s, op == SAGA_DO ? STEP_DOING : STEP_UNDOING, now);
	core_try_step(def, in, i, now, out);
}

static void stuck(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];

	core_step_to(s, STEP_STUCK, now);
	if (def->undo_after_us && s->op == SAGA_DO && def->step[i].kind != SAGA_RETRIABLE)
		s->due_us = now + def->undo_after_us;
	WHY(in->why, "%s of %s: %.120s", saga_op_str(s->op), def->step[i].name, s->why);
	core_note(out, NOTE_STUCK, i, s->op, "%s", s->why);
	core_state_to(in, SAGA_STUCK, now, out);
	core_publish(out, SAGA_EVENT_STUCK, i);
}

void core_hold(const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	in->step[i].op = SAGA_DO;
	stuck(def, in, i, now, out);
	in->step[i].refused = 1;
}

static int is_stuck(const struct saga_def *def, const struct saga_instance *in)
{
	for (size_t i = 0; i < def->step_n; i++)
		if (in->step[i].state == STEP_STUCK)
			return 1;
	return 0;
}

/* After a step was stuck and is not any more. */
void core_resume(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	if (in->state != SAGA_STUCK || is_stuck(def, in))
		return;
	core_state_to(in, in->turned ? SAGA_COMPENSATING : SAGA_RUNNING, now, out);
	if (!in->turned)
		*in->why = '\0';
	core_publish(out, SAGA_EVENT_RESUMED, i);
}

/* ---------------------------------------------------------------- around */

/* A choreography's services go on without us, and their events come by many topics in any order: a step whose
 * turn has not come, as far as we know, may be done, unless what it follows from is refused or has not begun
 * either. */
static int may_have_begun(const struct saga_def *def, const struct saga_instance *in, size_t i)
{
	if (def->style != SAGA_CHOREOGRAPHY || !core_has_undo(&def->step[i]))
		return 0;
	for (size_t k = 0; k < def->step_n; k++)
		if ((def->step[i].after >> k & 1) &&
			(in->step[k].state == STEP_REFUSED || in->step[k].state == STEP_WAITING))
			return 0;
	return 1;
}

/* What is out at this moment may happen or not: it is undone like what is done. So is what was refused and is
 * held since: its service may have tried it again. */
void core_turn(const struct saga_def *def, struct saga_instance *in, int failed, const char *reason,
	int64_t now, struct saga_out *out)
{
	in->turned = 1;
	in->failed = failed;
	in->deadline_us = 0;
	WHY(in->why, "%s", reason);
	core_note(out, NOTE_TURNED, failed, SAGA_DO, "%s", reason);
	for (size_t i = 0; i < def->step_n; i++) {
		struct saga_step_now *s = &in->step[i];

		if (s->state == STEP_DOING || (s->state == STEP_STUCK && s->op == SAGA_DO) ||
			(s->state == STEP_WAITING && may_have_begun(def, in, i)))
			core_step_to(s, STEP_UNKNOWN, now);
	}
	core_state_to(in, SAGA_COMPENSATING, now, out);
	core_publish(out, SAGA_EVENT_FAILED, failed);
}

/* All tries are used up. What is before the pivot turns the saga around; what is after it, and every undo,
 * needs a person: giving up would leave money taken without a seat, or the reverse. */
static void used_up(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	const struct saga_step *d = &def->step[i];
	struct saga_step_now *s = &in->step[i];
	char reason[sizeof(in->why)];

	if (s->op == SAGA_UNDO || d->kind == SAGA_RETRIABLE || !core_has_undo(d) ||
		(def->style == SAGA_CHOREOGRAPHY && !def->emit_undo)) {
		stuck(def, in, i, now, out);
		return;
	}
	WHY(reason, "%s: %.150s", d->name, s->why);
	core_step_to(s, STEP_UNKNOWN, now);
	core_turn(def, in, i, reason, now, out);
}

/* refused: to ask the same again would be in vain. */
static void failed_try(const struct saga_def *def, struct saga_instance *in, int i, int refused, int64_t now,
	struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	const struct saga_retry *r = &def->step[i].act[s->op].retry;

	if (s->tries >= r->attempts || !core_is_asked(def, &def->step[i], s->op)) {
		used_up(def, in, i, now, out);
		return;
	}
	s->waits = 1;
	s->refused = refused;
	s->due_us = now + backoff(in, r, i, s->tries);
}

/* ---------------------------------------------------------------- as far as it goes by itself */

static int is_over(enum saga_step_state s)
{
	return s == STEP_DONE || s == STEP_SKIPPED;
}

static int look_up(void *ctx, const char *path, const char **ret, size_t *ret_len)
{
	const struct saga_instance *in = ctx;

	if (strncmp(path, "data.", 5) != 0)
		return 0;
	return pr_json_at(in->data.s, in->data.len, path + 5, ret, ret_len) == 1;
}

static void begin_or_skip(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	const struct saga_step *d = &def->step[i];

	if (d->when && !saga_expr_true(d->when, look_up, in)) {
		core_step_to(&in->step[i], STEP_SKIPPED, now);
		core_note(out, NOTE_SKIPPED, i, SAGA_DO, "its condition is false");
	} else {
		core_begin_step(def, in, i, SAGA_DO, now, out);
	}
}

/* Orchestrated: all earlier stages are over. Choreographed: what it reacts to has happened. */
static int is_ready(const struct saga_def *def, const struct saga_instance *in, size_t i)
{
	for (size_t k = 0; k < def->step_n; k++) {
		int before = def->style == SAGA_CHOREOGRAPHY ? (int)(def->step[i].after >> k & 1)
							     : def->step[k].stage < def->step[i].stage;

		if (before && !is_over(in->step[k].state))
			return 0;
	}
	return 1;
}

static void forward(const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out)
{
	size_t over = 0;

	/* Steps stand in the order of their stages: one pass is enough, also past skipped ones. */
	for (size_t i = 0; i < def->step_n && !in->turned; i++) {
		if (in->step[i].state == STEP_WAITING && is_ready(def, in, i))
			begin_or_skip(def, in, (int)i, now, out);
		over += (size_t)is_over(in->step[i].state);
	}
	if (over < def->step_n || in->turned)
		return;
	core_state_to(in, SAGA_COMPLETED, now, out);
	core_publish(out, SAGA_EVENT_COMPLETED, -1);
}

static int must_undo(const struct saga_step *d, const struct saga_step_now *s)
{
	if (SABOTAGE(saga_undo_failed_step) && s->state == STEP_REFUSED)
		return core_has_undo(d);
	return core_has_undo(d) && (s->state == STEP_DONE || s->state == STEP_UNKNOWN);
}

/* Stage by stage from the last; within one side by side. */
static void backward(const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out)
{
	for (int stage = def->stages - 1; stage >= 0; stage--) {
		int waits = 0;

		for (size_t i = 0; i < def->step_n; i++) {
			struct saga_step_now *s = &in->step[i];

			if (def->step[i].stage != stage)
				continue;
			if (must_undo(&def->step[i], s))
				core_begin_step(def, in, (int)i, SAGA_UNDO, now, out);
			waits |= s->state == STEP_UNDOING || s->state == STEP_STUCK;
		}
		if (waits)
			return;
	}
	core_state_to(in, SAGA_COMPENSATED, now, out);
	core_publish(out, SAGA_EVENT_COMPENSATED, in->failed);
}

void core_settle(const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out)
{
	if (in->state == SAGA_RUNNING && in->granted)
		forward(def, in, now, out);
	if (in->state == SAGA_COMPENSATING)
		backward(def, in, now, out);
}

/* ---------------------------------------------------------------- begin */

void saga_instance_init(struct saga_instance *in, const struct saga_def *def, const unsigned char id[16],
	const char *data, size_t data_len, int64_t now_us)
{
	memset(in, 0, sizeof(*in));
	memcpy(in->id, id, sizeof(in->id));
	in->failed = -1;
	in->started_us = in->since_us = now_us;
	in->deadline_us = def->deadline_us ? now_us + def->deadline_us : 0;
	for (size_t i = 0; i < def->step_n; i++)
		in->step[i].since_us = now_us;
	pr_buf_put(&in->data, data ? data : "{}", data ? data_len : 2);
}

void saga_instance_free(struct saga_instance *in)
{
	pr_buf_free(&in->data);
}

void saga_begin(const struct saga_def *def, struct saga_instance *in, int granted, int64_t now_us,
	struct saga_out *out)
{
	if (!granted && def->style == SAGA_CHOREOGRAPHY) {
		core_note(out, NOTE_UNEXPECTED, -1, SAGA_DO, "an event came before the start");
		return;
	}
	core_note(out, NOTE_STARTED, -1, SAGA_DO, "%s version %d", def->name, def->version);
	core_publish(out, SAGA_EVENT_STARTED, -1);
	if (!granted) {
		core_note(out, NOTE_WAITS_FOR_LOCK, -1, SAGA_DO, "another saga holds one of its locks");
		return;
	}
	in->granted = 1;
	core_settle(def, in, now_us, out);
}

void saga_granted(const struct saga_def *def, struct saga_instance *in, int64_t now_us, struct saga_out *out)
{
	if (in->granted || saga_is_final(in->state))
		return;
	in->granted = 1;
	if (def->style == SAGA_CHOREOGRAPHY) {
		core_note(out, NOTE_STARTED, -1, SAGA_DO, "%s version %d", def->name, def->version);
		core_publish(out, SAGA_EVENT_STARTED, -1);
	}
	/* A choreography's event may come before its start: what failed, or was undone, turns it around now.
	 */
	for (size_t i = 0; i < def->step_n && !in->turned; i++)
		if (in->step[i].state == STEP_REFUSED && def->undo_held)
			core_hold(def, in, (int)i, now_us, out);
		else if (in->step[i].state == STEP_REFUSED || in->step[i].state == STEP_UNDONE)
			core_turn(def, in, (int)i, *in->step[i].why ? in->step[i].why : UNDONE_BY_ITSELF,
				now_us, out);
	core_settle(def, in, now_us, out);
}

void saga_lock_refused(const struct saga_def *def, struct saga_instance *in, const char *lock, int64_t now_us,
	struct saga_out *out)
{
	char reason[sizeof(in->why)];

	WHY(reason, "another saga holds the lock %.150s", lock);
	core_note(out, NOTE_STARTED, -1, SAGA_DO, "%s version %d", def->name, def->version);
	core_publish(out, SAGA_EVENT_STARTED, -1);
	core_turn(def, in, -1, reason, now_us, out);
	core_settle(def, in, now_us, out);
}

/* ---------------------------------------------------------------- replies */

/* The reply's members that the definition keeps; what the reply lacks stays as it was. */
static void keep(const struct saga_step *d, struct saga_instance *in, const struct saga_reply *r)
{
	struct pr_json_member m[64];
	struct pr_buf b = { 0 };
	size_t n = 0;

	for (size_t i = 0; i < d->keep_n && n < sizeof(m) / sizeof(m[0]); i++) {
		const struct saga_member *k = &d->keep[i];
		const char *v = k->json;
		size_t len = v ? strlen(v) : 0;

		if (!v && strncmp(k->path, "data.", 5) == 0 &&
			pr_json_at(in->data.s, in->data.len, k->path + 5, &v, &len) != 1)
			continue;
		if (!v && (!r->data || strncmp(k->path, "reply.", 6) != 0 ||
				  pr_json_at(r->data, r->data_n, k->path + 6, &v, &len) != 1))
			continue;
		m[n++] = (struct pr_json_member){ k->name, strlen(k->name), v, len };
	}
	if (n > 0 && pr_json_merge(&b, in->data.s, in->data.len, m, n) == 0) {
		pr_buf_free(&in->data);
		in->data = b;
	} else {
		pr_buf_free(&b);
	}
}

void core_do_answered(const struct saga_def *def, struct saga_instance *in, int i, const struct saga_reply *r,
	int64_t now, struct saga_out *out)
{
	const struct saga_step *d = &def->step[i];
	struct saga_step_now *s = &in->step[i];
	char reason[sizeof(in->why)];

	if (r->outcome == OUTCOME_DONE) {
		keep(d, in, r);
		core_step_to(s, STEP_DONE, now);
		core_note(out, NOTE_DONE, i, SAGA_DO, "try %d", s->tries);
		core_publish(out, SAGA_EVENT_STEP_COMPLETED, i);
		return;
	}
	WHY(s->why, "%.180s", r->why && *r->why ? r->why : saga_outcome_str(r->outcome));
	core_note(out, r->outcome == OUTCOME_REFUSED ? NOTE_REFUSED : NOTE_FAILED, i, SAGA_DO, "%s", s->why);
	if (s->state == STEP_STUCK)
		return;
	if (r->outcome == OUTCOME_FAILED || d->kind == SAGA_RETRIABLE) {
		if (s->state == STEP_DOING)
			failed_try(def, in, i, r->outcome == OUTCOME_REFUSED, now, out);
		return;
	}
	core_step_to(s, STEP_REFUSED, now);
	if (in->turned)
		return;
	WHY(reason, "%s was refused: %.150s", d->name, s->why);
	core_turn(def, in, i, reason, now, out);
}

static void undo_answered(const struct saga_def *def, struct saga_instance *in, int i,
	const struct saga_reply *r, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];

	if (r->outcome == OUTCOME_DONE) {
		core_step_to(s, STEP_UNDONE, now);
		core_note(out, NOTE_UNDONE, i, SAGA_UNDO, "try %d", s->tries);
		return;
	}
	WHY(s->why, "%.180s", r->why && *r->why ? r->why : saga_outcome_str(r->outcome));
	core_note(out, NOTE_FAILED, i, SAGA_UNDO, "%s", s->why);
	if (s->state == STEP_UNDOING)
		failed_try(def, in, i, r->outcome == OUTCOME_REFUSED, now, out);
}

/* Whether the step waits for this answer: not while a failed try waits to be made again, unless it is a yes
 * after all. */
static int is_awaited(const struct saga_step_now *s, const struct saga_reply *r)
{
	if (r->op == SAGA_DO && s->state == STEP_UNKNOWN)
		return r->outcome != OUTCOME_FAILED;
	if (s->op != r->op || (s->state != STEP_DOING && s->state != STEP_UNDOING && s->state != STEP_STUCK))
		return 0;
	return r->outcome == OUTCOME_DONE || (!s->waits && s->state != STEP_STUCK);
}

/* A reply nobody waits for: which kind of harmless it is. */
static void not_awaited(const struct saga_def *def, const struct saga_instance *in, int i,
	const struct saga_reply *r, int known, struct saga_out *out)
{
	const struct saga_step_now *s = &in->step[i];

	(void)def;
	if (!known)
		core_note(out, NOTE_UNKNOWN, i, r->op, "%s with a command id that is not ours",
			saga_outcome_str(r->outcome));
	else if (r->op == SAGA_DO && (s->op == SAGA_UNDO || in->turned))
		core_note(out, NOTE_LATE, i, r->op, "%s, and the step is %s", saga_outcome_str(r->outcome),
			saga_step_state_str(s->state));
	else
		core_note(out, NOTE_DUPLICATE, i, r->op, "%s, and the step is %s",
			saga_outcome_str(r->outcome), saga_step_state_str(s->state));
}

void saga_take_reply(const struct saga_def *def, struct saga_instance *in, const struct saga_reply *r,
	int64_t now_us, struct saga_out *out)
{
	int i = saga_def_step(def, r->step, r->step_n), was_stuck, known;
	unsigned char id[16];

	if (i < 0) {
		core_note(out, NOTE_UNKNOWN, -1, r->op, "%s of step %.*s, which there is not",
			saga_outcome_str(r->outcome), (int)(r->step_n < 64 ? r->step_n : 64), r->step);
		return;
	}
	saga_command_id(def, in, i, r->op, id);
	known = memcmp(id, r->command_id, sizeof(id)) == 0 || SABOTAGE(saga_any_command_id);
	if (!known || saga_is_final(in->state) || !is_awaited(&in->step[i], r)) {
		not_awaited(def, in, i, r, known, out);
		return;
	}
	was_stuck = in->step[i].state == STEP_STUCK;
	if (r->op == SAGA_DO)
		core_do_answered(def, in, i, r, now_us, out);
	else
		undo_answered(def, in, i, r, now_us, out);
	if (was_stuck)
		core_resume(def, in, i, now_us, out);
	core_settle(def, in, now_us, out);
}

/* ---------------------------------------------------------------- time */

static void step_due(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];

	if (s->waits) {
		core_try_step(def, in, i, now, out);
		return;
	}
	if (core_is_asked(def, &def->step[i], s->op)) {
		WHY(s->why, "no reply to try %d", s->tries);
		core_note(out, NOTE_TIMEOUT, i, s->op, "%s", s->why);
	} else {
		WHY(s->why, "%s did not come in time",
			s->op == SAGA_DO ? def->step[i].emits : def->step[i].undone);
		core_note(out, NOTE_MISSING, i, s->op, "%s", s->why);
	}
	failed_try(def, in, i, 0, now, out);
}

int core_one_way(const struct saga_def *def, const struct saga_instance *in)
{
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step_now *s = &in->step[i];

		if (!core_has_undo(&def->step[i]) && !s->refused &&
			(s->state == STEP_DONE || s->state == STEP_DOING || s->state == STEP_STUCK))
			return (int)i;
	}
	return -1;
}

/* Past the pivot there is no way back, and while it is out nobody knows: the deadline then only counts as
 * missed. */
static int may_turn(const struct saga_def *def, const struct saga_instance *in)
{
	for (size_t i = 0; i < def->step_n; i++)
		if (def->step[i].kind == SAGA_PIVOT && in->step[i].state == STEP_DONE)
			return 0;
	return core_one_way(def, in) < 0 &&
	       (def->style == SAGA_ORCHESTRATION || def->emit_undo || def->undo_held);
}

/* It was held for undo_after, and nobody acted. */
static void held_out(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out)
{
	struct saga_step_now *s = &in->step[i];
	char reason[sizeof(in->why)];

	s->due_us = 0;
	if (!may_turn(def, in)) {
		core_note(out, NOTE_DEADLINE, i, SAGA_DO, "nobody acted, and what is done cannot be undone");
		return;
	}
	WHY(reason, "%s: %.100s, and nobody acted", def->step[i].name, s->why);
	core_turn(def, in, i, reason, now, out);
}

static void past_deadline(
	const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out)
{
	int i = 0;

	in->deadline_us = 0;
	core_note(out, NOTE_DEADLINE, -1, SAGA_DO, "the saga's deadline has passed");
	if (in->state == SAGA_RUNNING && !in->granted && def->style == SAGA_CHOREOGRAPHY) {
		core_note(out, NOTE_MISSING, -1, SAGA_DO, "its start never came");
		core_state_to(in, SAGA_ABORTED, now, out);
		return;
	}
	if (in->state != SAGA_RUNNING || !may_turn(def, in))
		return;
	if (def->undo_held) {
		for (; i < (int)def->step_n; i++)
			if (in->step[i].state == STEP_DOING) {
				WHY(in->step[i].why, "the saga's deadline has passed");
				stuck(def, in, i, now, out);
			}
		return;
	}
	while (i < (int)def->step_n && in->step[i].state != STEP_DOING)
		i++;
	core_turn(def, in, i < (int)def->step_n ? i : -1, "the saga's deadline has passed", now, out);
}

void saga_tick(const struct saga_def *def, struct saga_instance *in, int64_t now_us, struct saga_out *out)
{
	if (saga_is_final(in->state))
		return;
	if (in->deadline_us && in->deadline_us <= now_us)
		past_deadline(def, in, now_us, out);
	for (size_t i = 0; i < def->step_n; i++) {
		struct saga_step_now *s = &in->step[i];

		if (!s->due_us || s->due_us > now_us)
			continue;
		if (s->state == STEP_DOING || s->state == STEP_UNDOING)
			step_due(def, in, (int)i, now_us, out);
		else if (s->state == STEP_STUCK)
			held_out(def, in, (int)i, now_us, out);
	}
	core_settle(def, in, now_us, out);
}

int64_t saga_due(const struct saga_instance *in, const struct saga_def *def)
{
	int64_t due = in->deadline_us ? in->deadline_us : INT64_MAX;

	if (saga_is_final(in->state))
		return INT64_MAX;
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step_now *s = &in->step[i];

		if (s->due_us && s->due_us < due &&
			(s->state == STEP_DOING || s->state == STEP_UNDOING || s->state == STEP_STUCK))
			due = s->due_us;
	}
	return due;
}
