/* lib/saga_core_orders.c -- what an operator may order, and when it cannot be. Refuses whatever would leave
 * nobody knowing what was done. */
#include "lib/saga_core_inner.h"

#include "lib/json_path.h"

#include <stdio.h>
#include <string.h>

static int refuse(struct pr_err *err, const char *fmt, ...) PR_PRINTF(2, 3);

static int refuse(struct pr_err *err, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)pr_fail(err, PR_REJECT, "%s", text);
	if (err)
		err->exit = PR_EX_REFUSED;
	return -1;
}

/* The step an order is about; -1: there is none. */
static int ordered_step(
	const struct saga_def *def, const struct saga_instance *in, int step, struct pr_err *err)
{
	if (step < 0)
		for (step = 0; step < (int)def->step_n && in->step[step].state != STEP_STUCK;)
			step++;
	if (step < (int)def->step_n)
		return step;
	(void)refuse(err, "no step of it is stuck: it is %s", saga_state_str(in->state));
	return pr_hint(err, "postrider saga show tells where it stands");
}

static int order_retry(const struct saga_def *def, struct saga_instance *in, int step, int64_t now,
	struct saga_out *out, struct pr_err *err)
{
	int i = ordered_step(def, in, step, err);
	struct saga_step_now *s;

	if (i < 0)
		return -1;
	s = &in->step[i];
	if (s->state != STEP_STUCK && !s->waits)
		return refuse(err, "step %s is %s: there is nothing to retry", def->step[i].name,
			saga_step_state_str(s->state));
	core_note(out, NOTE_ORDER, i, s->op, "retry");
	if (s->state == STEP_STUCK) {
		s->generation[s->op]++;
		core_begin_step(def, in, i, s->op, now, out);
		core_resume(def, in, i, now, out);
	} else {
		core_try_step(def, in, i, now, out);
	}
	return 0;
}

static int order_skip(const struct saga_def *def, struct saga_instance *in, int step, int64_t now,
	struct saga_out *out, struct pr_err *err)
{
	int i = ordered_step(def, in, step, err);
	struct saga_step_now *s;

	if (i < 0)
		return -1;
	s = &in->step[i];
	if (s->state != STEP_STUCK) {
		(void)refuse(err, "step %s is %s: only one that is STUCK may be skipped", def->step[i].name,
			saga_step_state_str(s->state));
		return pr_hint(err, "whether it happened must be known: wait until its tries are used up");
	}
	core_note(out, NOTE_ORDER, i, s->op, "skip: it counts as %s", s->op == SAGA_DO ? "done" : "undone");
	core_step_to(s, s->op == SAGA_DO ? STEP_SKIPPED : STEP_UNDONE, now);
	core_resume(def, in, i, now, out);
	return 0;
}

static int order_undo(const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out,
	struct pr_err *err)
{
	int i = core_one_way(def, in);

	if (in->turned)
		return refuse(err, "it is being undone already: it is %s", saga_state_str(in->state));
	if (i >= 0) {
		(void)refuse(err, "step %s is %s and has no undo", def->step[i].name,
			saga_step_state_str(in->step[i].state));
		return pr_hint(err, "undo what it did by hand, or let the saga go on: retry or skip");
	}
	core_note(out, NOTE_ORDER, -1, SAGA_UNDO, "undo");
	core_turn(def, in, -1, "an operator ordered the undo", now, out);
	return 0;
}

static int order_edit(
	struct saga_instance *in, const char *detail, size_t n, struct saga_out *out, struct pr_err *err)
{
	size_t i = 0;

	while (i < n && strchr(" \t\r\n", detail[i]))
		i++;
	if (!detail || i >= n || detail[i] != '{' || !pr_json_text(detail, n))
		return refuse(err, "the new data is not a JSON object");
	core_note(out, NOTE_ORDER, -1, SAGA_DO, "data replaced; it was %.150s", in->data.s);
	in->data.len = 0;
	pr_buf_put(&in->data, detail, n);
	return 0;
}

/* ---------------------------------------------------------------- to another version */

static int is_begun(const struct saga_step_now *s)
{
	return s->state != STEP_WAITING;
}

static int same_locks(const struct saga_def *a, const struct saga_def *b)
{
	for (size_t i = 0; i < a->locks_n && i < b->locks_n; i++)
		if (strcmp(a->locks[i], b->locks[i]) != 0)
			return 0;
	return a->locks_n == b->locks_n;
}

/* A begun step must be there, and mean the same; a new one must come after all that is begun. */
static int may_migrate(const struct saga_def *def, const struct saga_instance *in, const struct saga_def *to,
	struct pr_err *err)
{
	int last = -1;

	if (to->style != def->style || strcmp(to->name, def->name) != 0)
		return refuse(err, "version %d is another saga, or of another style", to->version);
	if (!same_locks(def, to))
		return refuse(err, "version %d has other locks, which it does not hold", to->version);
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step *d = &def->step[i];
		int k = saga_def_step(to, d->name, strlen(d->name));

		if (!is_begun(&in->step[i]))
			continue;
		if (k < 0)
			return refuse(err, "step %s is %s and version %d does not have it", d->name,
				saga_step_state_str(in->step[i].state), to->version);
		if (to->step[k].kind != d->kind || core_has_undo(&to->step[k]) != core_has_undo(d))
			return refuse(err, "step %s is %s and is another kind of step in version %d", d->name,
				saga_step_state_str(in->step[i].state), to->version);
		if (to->step[k].stage > last)
			last = to->step[k].stage;
	}
	for (size_t k = 0; k < to->step_n; k++) {
		int i = saga_def_step(def, to->step[k].name, strlen(to->step[k].name));

		if (to->step[k].stage <= last &&
			(i < 0 || (!is_begun(&in->step[i]) && to->step[k].stage < last)))
			return refuse(err, "step %s of version %d comes before one that has begun",
				to->step[k].name, to->version);
	}
	return 0;
}

static int order_migrate(const struct saga_def *def, struct saga_instance *in, const struct saga_def *to,
	int64_t now, struct saga_out *out, struct pr_err *err)
{
	struct saga_step_now step[SAGA_STEPS_MOST] = { 0 };
	int i;

	if (!to)
		return refuse(err, "there is no such version");
	if (may_migrate(def, in, to, err) < 0)
		return -1;
	for (size_t k = 0; k < to->step_n; k++) {
		i = saga_def_step(def, to->step[k].name, strlen(to->step[k].name));
		if (i >= 0)
			step[k] = in->step[i];
		else
			step[k].since_us = now;
	}
	in->failed = in->failed < 0 ? -1
				    : saga_def_step(to, def->step[in->failed].name,
					      strlen(def->step[in->failed].name));
	memcpy(in->step, step, sizeof(step));
	core_note(out, NOTE_ORDER, -1, SAGA_DO, "version %d -> %d", def->version, to->version);
	return 0;
}

int saga_take_order(const struct saga_def *def, struct saga_instance *in, enum saga_order order, int step,
	const char *detail, size_t detail_n, const struct saga_def *to, int64_t now_us, struct saga_out *out,
	struct pr_err *err)
{
	int rc = 0;

	if (saga_is_final(in->state) && !(order == ORDER_UNDO && in->state == SAGA_COMPLETED))
		return refuse(err, "it has ended: it is %s", saga_state_str(in->state));
	switch (order) {
	case ORDER_RETRY:
		rc = order_retry(def, in, step, now_us, out, err);
		break;
	case ORDER_SKIP:
		rc = order_skip(def, in, step, now_us, out, err);
		break;
	case ORDER_UNDO:
		rc = order_undo(def, in, now_us, out, err);
		break;
	case ORDER_ABORT:
		core_note(out, NOTE_ORDER, -1, SAGA_DO, "abort");
		core_state_to(in, SAGA_ABORTED, now_us, out);
		core_publish(out, SAGA_EVENT_ABORTED, -1);
		break;
	case ORDER_EDIT:
		rc = order_edit(in, detail, detail_n, out, err);
		break;
	case ORDER_MIGRATE:
		rc = order_migrate(def, in, to, now_us, out, err);
		def = to;
		break;
	}
	if (rc == 0)
		core_settle(def, in, now_us, out);
	return rc;
}
