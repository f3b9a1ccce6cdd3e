/* lib/saga_def.c -- a definition's file -> struct saga_def: the table of its keys, what each step says by
 * itself, its text and hash. What steps must fulfil together is saga_def_check.c's. Refuses includes (the
 * text is all that in-flight instances have) and keys of the other style. */
#include "lib/saga_def.h"

#include "lib/clock.h"
#include "lib/conf_text.h"
#include "lib/saga_def_inner.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MOST (256 * 1024)
#define HOUR      (3600 * PR_SEC)
#define DAY       (24 * HOUR)
#define AT(f)     offsetof(struct saga_raw, f)
#define STEP(f)   offsetof(struct saga_raw_step, f)
#define ACT(op, f)                                                                                           \
	(offsetof(struct saga_raw_step, act) + (op) * sizeof(struct saga_raw_action) +                       \
		offsetof(struct saga_raw_action, f))

struct definition {
	struct saga_def def; /* first: what callers hold */
	struct saga_build build;
};

static const struct pr_opt step_options[] = {
	{ "name", PR_OPT_STR, STEP(name), .flags = PR_OPT_REQUIRED, .example = "PAYMENT",
		.doc = "Of the step, unique: begins with a letter, up to 64 letters, digits, \"_\" and "
		       "\"-\"." },
	{ "kind", PR_OPT_ENUM, STEP(kind), .choices = "compensatable|pivot|retriable",
		.flags = PR_OPT_REQUIRED, .example = "compensatable",
		.doc = "compensatable: it is undone when a later step fails, and has an undo. pivot: it "
		       "decides; refused, what is before it is undone; done, what is after it must succeed. "
		       "retriable: comes after the pivot and is tried until it succeeds; when its attempts "
		       "are used up the saga is STUCK and a person is asked." },
	{ "group", PR_OPT_STR, STEP(group), .example = "after",
		.doc = "Steps that follow each other in the file and name the same group run side by side." },
	{ "when", PR_OPT_STR, STEP(when), .example = "data.amount > 0",
		.doc = "Condition over data, looked at when the step's turn comes; false: the step is "
		       "SKIPPED." },
	{ "sla", PR_OPT_DURATION, STEP(sla_us), .max = 365 * DAY, .example = "10s",
		.doc = "Older than this in one state, the step is shown as late." },
	{ "do.command", PR_OPT_STR, ACT(SAGA_DO, command), .example = "ExecutePayment",
		.doc = "Type of the command that does the step. Orchestration; required there." },
	{ "do.topic", PR_OPT_STR, ACT(SAGA_DO, topic), .example = "outbox.command.payment",
		.doc = "Where the command is sent. Orchestration; required there." },
	{ "do.key", PR_OPT_STR, ACT(SAGA_DO, key), .example = "data.user_id",
		.doc = "Path whose text is the record's key; the saga's id when not set." },
	{ "do.send", PR_OPT_STRS, ACT(SAGA_DO, send), .flags = PR_OPT_PLAIN,
		.example = "amount = data.amount",
		.doc = "The command's payload, \"member = value\" each; a value is a path (data.x, saga.id, "
		       "saga.name) or JSON." },
	{ "do.timeout", PR_OPT_DURATION, ACT(SAGA_DO, timeout_us), "30s", .min = PR_MS, .max = 365 * DAY,
		.doc = "No reply by then is a failed try. In a choreography: no event by then is a missing "
		       "one." },
	{ "do.retry.attempts", PR_OPT_INT, ACT(SAGA_DO, attempts), "5", .min = 1, .max = 1000,
		.doc = "Times that the command is sent, in all, before the step has failed." },
	{ "do.retry.backoff", PR_OPT_DURATION, ACT(SAGA_DO, backoff_us), "1s", .min = PR_MS, .max = 30 * DAY,
		.doc = "Delay before the second try; it doubles, with jitter." },
	{ "do.retry.backoff_max", PR_OPT_DURATION, ACT(SAGA_DO, backoff_max_us), "1m", .min = PR_MS,
		.max = 30 * DAY, .doc = "Longest such delay, at least backoff." },
	{ "undo.command", PR_OPT_STR, ACT(SAGA_UNDO, command), .example = "CancelPayment",
		.doc = "Type of the command that undoes the step. A compensatable step of an orchestration "
		       "has one; of the others it is for `postrider saga undo`." },
	{ "undo.topic", PR_OPT_STR, ACT(SAGA_UNDO, topic), .example = "outbox.command.payment",
		.doc = "Where it is sent; the do's topic when not set." },
	{ "undo.key", PR_OPT_STR, ACT(SAGA_UNDO, key), .example = "data.user_id",
		.doc = "Path whose text is the record's key; the do's when not set." },
	{ "undo.send", PR_OPT_STRS, ACT(SAGA_UNDO, send), .flags = PR_OPT_PLAIN,
		.example = "payment_id = data.payment_id", .doc = "The command's payload, as do.send." },
	{ "undo.timeout", PR_OPT_DURATION, ACT(SAGA_UNDO, timeout_us), "30s", .min = PR_MS, .max = 365 * DAY,
		.doc = "No reply by then is a failed try." },
	{ "undo.retry.attempts", PR_OPT_INT, ACT(SAGA_UNDO, attempts), "10", .min = 1, .max = 1000,
		.doc = "Times that the command is sent, in all, before the saga is STUCK." },
	{ "undo.retry.backoff", PR_OPT_DURATION, ACT(SAGA_UNDO, backoff_us), "1s", .min = PR_MS,
		.max = 30 * DAY, .doc = "Delay before the second try; it doubles, with jitter." },
	{ "undo.retry.backoff_max", PR_OPT_DURATION, ACT(SAGA_UNDO, backoff_max_us), "1m", .min = PR_MS,
		.max = 30 * DAY, .doc = "Longest such delay, at least backoff." },
	{ "keep", PR_OPT_STRS, STEP(keep), .flags = PR_OPT_PLAIN, .example = "payment_id = reply.payment_id",
		.doc = "What of the reply goes into the saga's data, \"member = value\" each; a value is a "
		       "path (reply.x, data.x) or JSON. In a choreography the reply is the event's "
		       "payload." },
	{ "on", PR_OPT_STR, STEP(on), .example = "PaymentCompleted",
		.doc = "Type of the event that the step reacts to: start.type, or what another step emits. "
		       "Choreography; required there." },
	{ "emits", PR_OPT_STR, STEP(emits), .example = "ReservationsCompleted",
		.doc = "Type of the event that says it is done. Choreography; required there." },
	{ "fails", PR_OPT_STR, STEP(fails), .example = "ReservationRejected",
		.doc = "Type of the event that says it is refused: what is done before it is undone. "
		       "Choreography." },
	{ "undone", PR_OPT_STR, STEP(undone), .example = "ReservationCancelled",
		.doc = "Type of the event that says it is undone; needed where the engine sends no undo. "
		       "Choreography." },
	{ "emits_topic", PR_OPT_STR, STEP(emits_topic), .example = "outbox.event.reservation",
		.doc = "Where these events appear. Choreography; required there." },
	{ 0 },
};

const struct pr_opt saga_def_options[] = {
	{ "name", PR_OPT_STR, AT(name), .flags = PR_OPT_REQUIRED, .example = "pay",
		.doc = "Of the saga: up to 64 letters, digits, \"_\" and \"-\"." },
	{ "version", PR_OPT_INT, AT(version), .min = 1, .max = 1000000, .flags = PR_OPT_REQUIRED,
		.example = "1",
		.doc = "To be raised with every change: instances that are on their way stay on the version "
		       "they began with." },
	{ "style", PR_OPT_ENUM, AT(style), "orchestration", .choices = "orchestration|choreography",
		.doc = "orchestration: the engine sends the commands. choreography: services react to each "
		       "other's events, the engine watches and may undo." },
	{ "deadline", PR_OPT_DURATION, AT(deadline_us), .min = PR_MS, .max = 365 * DAY, .example = "2m",
		.doc = "Of the whole, from its start to the pivot; past it what was done is undone. Required "
		       "of a choreography: an event whose start never comes is forgotten then." },
	{ "start.topic", PR_OPT_STR, AT(start_topic), .example = "outbox.event.order",
		.doc = "Topic of an event that starts one, beside saga.start. Required of a choreography." },
	{ "start.type", PR_OPT_STR, AT(start_type), .example = "OrderPaymentStarted",
		.doc = "Type of that event. Required of a choreography." },
	{ "start.data", PR_OPT_STRS, AT(start_data), .flags = PR_OPT_PLAIN,
		.example = "order_id = payload.order_id",
		.doc = "The saga's first data, \"member = value\" each; a value is a path (payload.x, "
		       "header.x, event.key) or JSON. The event's payload when not set." },
	{ "locks", PR_OPT_STRS, AT(locks), .flags = PR_OPT_PLAIN, .example = "seat:${data.seat_id}",
		.doc = "Semantic locks, held from start to end: of two sagas with one of them in common the "
		       "second waits, or is refused. Orchestration." },
	{ "lock_conflict", PR_OPT_ENUM, AT(lock_conflict), "wait", .choices = "wait|refuse",
		.doc = "wait: for its turn. refuse: it ends COMPENSATED with nothing done." },
	{ "correlate", PR_OPT_STR, AT(correlate), .example = "header.correlation-id",
		.doc = "What makes events one instance: header.NAME or payload.PATH. Choreography; required "
		       "there." },
	{ "emit_undo", PR_OPT_BOOL, AT(emit_undo), "false",
		.doc = "When a step fails the engine sends the undo commands of those that are done. "
		       "Choreography." },
	{ "undo_after", PR_OPT_DURATION, AT(undo_after_us), .min = PR_MS, .max = 365 * DAY, .example = "10m",
		.doc = "When a step fails, or its event is missing, the saga is STUCK for so long: its "
		       "service "
		       "may still succeed, an operator may act. Then the engine sends the undo commands. "
		       "Without "
		       "it only `postrider saga undo` does. Choreography, where emit_undo is false." },
	{ "steps", PR_OPT_GROUPS, AT(steps), .flags = PR_OPT_REQUIRED, .sub = step_options,
		.sub_size = sizeof(struct saga_raw_step), .doc = "In their order, 1 to 32." },
	{ "invariants", PR_OPT_STRS, AT(invariants), .flags = PR_OPT_PLAIN,
		.example = "PAYMENT.applied == RESERVATION.applied",
		.doc = "What holds at every end: expressions over data and STEP.applied (1: done and not "
		       "undone). `postrider saga simulate` looks for an end where one does not." },
	{ 0 },
};

/* ---------------------------------------------------------------- the build */

void *saga_own(struct saga_build *b, void *p)
{
	b->owned = pr_realloc(b->owned, (b->owned_n + 1) * sizeof(*b->owned));
	b->owned[b->owned_n++] = p;
	return p;
}

static char *path_of(int step, const char *key)
{
	return step < 0 ? pr_strdup(key) : pr_asprintf("steps[%d].%s", step, key);
}

int saga_deny(const struct saga_build *b, int step, const char *key, const char *fmt, ...)
{
	char *path = path_of(step, key), why[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	(void)pr_conf_fail(b->conf, path, b->err, "%s", why);
	free(path);
	return -1;
}

int saga_is_set(const struct saga_build *b, int step, const char *key)
{
	char *path = path_of(step, key);
	int line = pr_conf_line(b->conf, path);

	free(path);
	return line > 0;
}

/* Refuses the keys (NULL-terminated) that are set and belong to the other style. */
static int refuse_keys(const struct saga_build *b, int step, const char *const *keys)
{
	for (; *keys; keys++)
		if (saga_is_set(b, step, *keys))
			return saga_deny(b, step, *keys, "belongs to style = \"%s\"",
				saga_style_str(b->raw.style == SAGA_ORCHESTRATION ? SAGA_CHOREOGRAPHY
										  : SAGA_ORCHESTRATION));
	return 0;
}

/* An action's key, "do.topic". */
static const char *act_key(char buf[40], enum saga_op op, const char *key)
{
	(void)snprintf(buf, 40, "%s.%s", saga_op_str(op), key);
	return buf;
}

static int set_times(const struct saga_build *b, int i, enum saga_op op, const struct saga_raw_action *r,
	struct saga_action *a)
{
	char key[40];

	a->timeout_us = r->timeout_us;
	a->retry = (struct saga_retry){
		.attempts = r->attempts, .backoff_us = r->backoff_us, .backoff_max_us = r->backoff_max_us
	};
	if (r->backoff_us <= r->backoff_max_us)
		return 0;
	if (!saga_is_set(b, i, act_key(key, op, "retry.backoff_max"))) {
		a->retry.backoff_max_us = r->backoff_us;
		return 0;
	}
	return saga_deny(b, i, key, "is less than backoff");
}

/* One direction's command; there is one, or nothing of it is set. */
static int set_command(
	struct saga_build *b, int i, enum saga_op op, const struct saga_raw_action *r, struct saga_action *a)
{
	static const char *const others[] = { "topic", "key", "send", "timeout", "retry.attempts",
		"retry.backoff", "retry.backoff_max" };
	char key[40];

	for (size_t k = 0; !r->command && k < sizeof(others) / sizeof(*others); k++)
		if (saga_is_set(b, i, act_key(key, op, others[k])))
			return saga_deny(b, i, key, "is set, and %s.command is not", saga_op_str(op));
	if (!r->command)
		return 0;
	if (!a->topic)
		return saga_deny(
			b, i, act_key(key, op, "topic"), "is required: where %s is sent", r->command);
	if (saga_type(b, i, act_key(key, op, "command"), r->command) < 0 ||
		saga_topic(b, i, act_key(key, op, "topic"), a->topic) < 0 ||
		(r->key && saga_path(b, i, act_key(key, op, "key"), r->key, ROOT_DATA | ROOT_SAGA) < 0))
		return -1;
	a->command = r->command;
	return saga_members(
		b, i, act_key(key, op, "send"), &r->send, ROOT_DATA | ROOT_SAGA, &a->send, &a->send_n);
}

static int set_actions(struct saga_build *b, int i, struct saga_step *s)
{
	const struct saga_raw_action *d = &saga_raw_step(b, (size_t)i)->act[SAGA_DO], *u = d + 1;

	s->act[SAGA_DO].topic = d->topic;
	s->act[SAGA_DO].key = d->key;
	s->act[SAGA_UNDO].topic = u->topic ? u->topic : d->topic;
	s->act[SAGA_UNDO].key = u->key ? u->key : d->key;
	if (set_times(b, i, SAGA_DO, d, &s->act[SAGA_DO]) < 0 ||
		set_times(b, i, SAGA_UNDO, u, &s->act[SAGA_UNDO]) < 0 ||
		set_command(b, i, SAGA_UNDO, u, &s->act[SAGA_UNDO]) < 0)
		return -1;
	return b->def->style == SAGA_CHOREOGRAPHY ? 0 : set_command(b, i, SAGA_DO, d, &s->act[SAGA_DO]);
}

static int set_orchestrated(struct saga_build *b, int i, struct saga_step *s)
{
	static const char *const foreign[] = { "on", "emits", "fails", "undone", "emits_topic", NULL };
	const struct saga_action *d = &s->act[SAGA_DO], *u = &s->act[SAGA_UNDO];

	if (refuse_keys(b, i, foreign) < 0)
		return -1;
	if (!saga_raw_step(b, (size_t)i)->act[SAGA_DO].command)
		return saga_deny(b, i, "do.command", "is required: what %s is asked to do", s->name);
	if (set_actions(b, i, s) < 0)
		return -1;
	if (s->kind == SAGA_COMPENSATABLE && !u->command) {
		(void)saga_deny(b, i, "undo.command", "is required: %s is compensatable", s->name);
		return pr_hint(b->err, "without an undo it can only be the pivot, or retriable after it");
	}
	if (u->command && strcmp(d->command, u->command) == 0 && strcmp(d->topic, u->topic) == 0)
		return saga_deny(b, i, "undo.command", "is the do's command on the same topic");
	return 0;
}

static int check_events(const struct saga_build *b, int i, const struct saga_raw_step *r)
{
	if (!r->on)
		return saga_deny(b, i, "on", "is required: the event that %s reacts to", r->name);
	if (!r->emits)
		return saga_deny(b, i, "emits", "is required: the event that says %s is done", r->name);
	if (!r->emits_topic)
		return saga_deny(b, i, "emits_topic", "is required: where %s appears", r->emits);
	if (saga_type(b, i, "on", r->on) < 0 || saga_type(b, i, "emits", r->emits) < 0 ||
		saga_type(b, i, "fails", r->fails) < 0 || saga_type(b, i, "undone", r->undone) < 0)
		return -1;
	return saga_topic(b, i, "emits_topic", r->emits_topic);
}

/* Of a choreography: there is a way back, and it is one that somebody walks. */
static int check_way_back(const struct saga_build *b, int i, const struct saga_step *s)
{
	if (s->kind != SAGA_RETRIABLE && b->def->undo_held && !s->act[SAGA_UNDO].command) {
		(void)saga_deny(
			b, i, "undo.command", "is required: %s is %s", s->name, saga_kind_str(s->kind));
		return pr_hint(b->err,
			"while the undo is held back services go on: the engine undoes all up to the pivot, "
			"or nothing");
	}
	if (s->kind == SAGA_RETRIABLE && s->fails) {
		(void)saga_deny(b, i, "fails", "%s is retriable: it cannot turn the saga around", s->name);
		return pr_hint(b->err, "what may be refused comes before the pivot, or is it");
	}
	if (s->kind != SAGA_COMPENSATABLE || s->act[SAGA_UNDO].command || s->undone)
		return 0;
	return b->def->emit_undo
		       ? saga_deny(
				 b, i, "undo.command", "is required, or undone: %s is compensatable", s->name)
		       : saga_deny(b, i, "undone",
				 "is required: the event that says %s, which is compensatable, is undone",
				 s->name);
}

static int set_choreographed(struct saga_build *b, int i, struct saga_step *s)
{
	static const char *const foreign[] = { "do.command", "do.topic", "do.key", "do.send",
		"do.retry.attempts", "do.retry.backoff", "do.retry.backoff_max", "group", NULL };
	const struct saga_raw_step *r = saga_raw_step(b, (size_t)i);

	if (refuse_keys(b, i, foreign) < 0 || check_events(b, i, r) < 0 || set_actions(b, i, s) < 0)
		return -1;
	s->on = r->on;
	s->emits = r->emits;
	s->fails = r->fails;
	s->undone = r->undone;
	s->emits_topic = r->emits_topic;
	return check_way_back(b, i, s);
}

static int note_expr(
	struct saga_build *b, int step, const char *key, const char *text, struct saga_expr **ret)
{
	struct pr_err why;

	if (saga_expr_parse(text, ret, &why) == 0)
		return 0;
	return saga_deny(b, step, key, "\"%.150s\": %s", text, why.text);
}

static int set_step(struct saga_build *b, int i, struct saga_step *s)
{
	const struct saga_raw_step *r = saga_raw_step(b, (size_t)i);
	char path[40];

	(void)snprintf(path, sizeof(path), "steps[%d].name", i);
	s->line = pr_conf_line(b->conf, path);
	s->name = r->name;
	s->kind = (enum saga_kind)r->kind;
	s->sla_us = r->sla_us;
	if (saga_name(b, i, "name", r->name, 1) < 0)
		return -1;
	if (r->when) {
		struct saga_expr *e = NULL;

		if (note_expr(b, i, "when", r->when, &e) < 0)
			return -1;
		s->when = e;
		s->when_text = r->when;
	}
	if ((b->def->style == SAGA_CHOREOGRAPHY ? set_choreographed(b, i, s) : set_orchestrated(b, i, s)) < 0)
		return -1;
	return saga_members(b, i, "keep", &r->keep, ROOT_DATA | ROOT_REPLY, &s->keep, &s->keep_n);
}

static int set_steps(struct saga_build *b)
{
	struct saga_def *def = b->def;
	size_t n = b->raw.steps.n;

	if (n == 0)
		return saga_deny(b, -1, "steps", "is empty");
	if (n > SAGA_STEPS_MOST)
		return saga_deny(b, -1, "steps", "%zu steps, at most %d", n, SAGA_STEPS_MOST);
	def->step = saga_own(b, pr_calloc(n, sizeof(*def->step)));
	def->step_n = n;
	for (size_t i = 0; i < n; i++)
		if (set_step(b, (int)i, &def->step[i]) < 0)
			return -1;
	return 0;
}

static int set_start(struct saga_build *b)
{
	struct saga_def *def = b->def;
	const char *topic = b->raw.start_topic, *type = b->raw.start_type;

	if (!topic && (type || b->raw.start_data.n))
		return saga_deny(b, -1, type ? "start.type" : "start.data", "is set, and start.topic is not");
	if (!topic && def->style == SAGA_CHOREOGRAPHY)
		return saga_deny(
			b, -1, "start.topic", "is required: where a choreography's first event appears");
	if (!topic)
		return 0;
	if (!type)
		return saga_deny(
			b, -1, "start.topic", "is set, and start.type is not: which event starts one");
	if (saga_topic(b, -1, "start.topic", topic) < 0 || saga_type(b, -1, "start.type", type) < 0)
		return -1;
	def->start_topic = topic;
	def->start_type = type;
	return saga_members(b, -1, "start.data", &b->raw.start_data, ROOT_PAYLOAD | ROOT_HEADER | ROOT_EVENT,
		&def->start_data, &def->start_data_n);
}

/* Of a choreography: whether the engine undoes, and when. */
static int set_undo(struct saga_build *b)
{
	struct saga_def *def = b->def;
	int commands = 0;

	for (size_t i = 0; i < b->raw.steps.n; i++)
		commands |= saga_raw_step(b, i)->act[SAGA_UNDO].command != NULL;
	def->emit_undo = b->raw.emit_undo;
	def->undo_held = commands && !def->emit_undo;
	def->undo_after_us = b->raw.undo_after_us;
	if (!def->undo_after_us || def->undo_held)
		return 0;
	if (def->emit_undo) {
		(void)saga_deny(b, -1, "undo_after", "is set, and emit_undo = true undoes at once");
		return pr_hint(b->err, "leave out emit_undo when the undo is to wait");
	}
	return saga_deny(b, -1, "undo_after", "is set, and no step has an undo.command");
}

static int set_style(struct saga_build *b)
{
	static const char *const foreign[] = { "correlate", "emit_undo", "undo_after", NULL };
	/* Services that act by themselves wait for nobody's lock. */
	static const char *const commanding[] = { "locks", "lock_conflict", NULL };
	struct saga_def *def = b->def;

	def->style = (enum saga_style)b->raw.style;
	if (def->style == SAGA_ORCHESTRATION)
		return refuse_keys(b, -1, foreign);
	if (refuse_keys(b, -1, commanding) < 0)
		return -1;
	if (!def->deadline_us)
		return saga_deny(
			b, -1, "deadline", "is required: an event whose start never comes waits for it");
	if (set_undo(b) < 0)
		return -1;
	def->correlate = b->raw.correlate;
	if (!def->correlate)
		return saga_deny(b, -1, "correlate", "is required: what makes events one instance");
	return saga_path(b, -1, "correlate", def->correlate, ROOT_HEADER | ROOT_PAYLOAD);
}

static int set_locks(struct saga_build *b)
{
	const struct pr_strs *locks = &b->raw.locks;

	if (locks->n > SAGA_LOCKS_MOST)
		return saga_deny(b, -1, "locks", "more than %d", SAGA_LOCKS_MOST);
	for (size_t i = 0; i < locks->n; i++) {
		if (saga_template(b, "locks", locks->v[i]) < 0)
			return -1;
		for (size_t k = 0; k < i; k++)
			if (strcmp(locks->v[i], locks->v[k]) == 0)
				return saga_deny(b, -1, "locks", "\"%.100s\" is named twice", locks->v[i]);
	}
	b->def->locks = (const char *const *)locks->v;
	b->def->locks_n = locks->n;
	b->def->lock_refuse = b->raw.lock_conflict == 1;
	return 0;
}

static int set_invariants(struct saga_build *b)
{
	const struct pr_strs *texts = &b->raw.invariants;
	struct saga_def *def = b->def;

	if (texts->n > SAGA_INVARIANTS_MOST)
		return saga_deny(b, -1, "invariants", "more than %d", SAGA_INVARIANTS_MOST);
	def->invariant = saga_own(b, pr_calloc(texts->n, sizeof(*def->invariant)));
	for (size_t i = 0; i < texts->n; i++) {
		struct saga_expr *e = NULL;

		if (note_expr(b, -1, "invariants", texts->v[i], &e) < 0)
			return -1;
		def->invariant[def->invariant_n++] = (struct saga_invariant){ e, texts->v[i] };
	}
	return 0;
}

static int build(struct saga_build *b)
{
	struct saga_def *def = b->def;

	def->name = b->raw.name;
	def->version = (int)b->raw.version;
	def->deadline_us = b->raw.deadline_us;
	if (saga_name(b, -1, "name", def->name, 0) < 0 || set_style(b) < 0 || set_start(b) < 0 ||
		set_locks(b) < 0 || set_steps(b) < 0 || set_invariants(b) < 0)
		return -1;
	return saga_check(b);
}

/* ---------------------------------------------------------------- in and out */

void saga_def_free(struct saga_def *def)
{
	struct definition *d = (struct definition *)def;

	if (!def)
		return;
	for (size_t i = 0; i < def->step_n; i++)
		saga_expr_free((struct saga_expr *)(uintptr_t)def->step[i].when);
	for (size_t i = 0; i < def->invariant_n; i++)
		saga_expr_free((struct saga_expr *)(uintptr_t)def->invariant[i].expr);
	for (size_t i = 0; i < d->build.owned_n; i++)
		free(d->build.owned[i]);
	free(d->build.owned);
	pr_conf_free(d->build.conf);
	free(d);
}

static void keep_text(struct saga_build *b, const char *text, size_t len)
{
	char *copy = saga_own(b, pr_malloc(len + 1));

	memcpy(copy, text, len);
	copy[len] = '\0';
	b->def->text = copy;
	b->def->text_len = len;
	(void)SHA256((const unsigned char *)text, len, b->def->hash);
}

int saga_def_parse(const char *name, const char *text, size_t len, struct saga_def **ret, struct pr_err *err)
{
	struct definition *d;
	int rc;

	if (len > TEXT_MOST)
		return pr_conf_error(err, name, NULL, "is larger than %d kB", TEXT_MOST / 1024);
	d = pr_calloc(1, sizeof(*d));
	d->build.def = &d->def;
	d->build.err = err;
	rc = pr_conf_load_text(
		name, text, len, saga_def_options, &d->build.raw, NULL, 0, &d->build.conf, err);
	if (rc == 0) {
		keep_text(&d->build, text, len);
		rc = build(&d->build);
	}
	if (rc == 0)
		*ret = &d->def;
	else
		saga_def_free(&d->def);
	return rc;
}

int saga_def_load(const char *file, struct saga_def **ret, struct pr_err *err)
{
	struct pr_err why;
	char *text;
	size_t len;
	int rc;

	if (pr_conf_slurp(file, TEXT_MOST, &text, &len, NULL, &why) < 0)
		return pr_conf_error(err, file, NULL, "%s", why.text);
	rc = saga_def_parse(file, text, len, ret, err);
	free(text);
	return rc;
}

int saga_def_step(const struct saga_def *def, const char *name, size_t n)
{
	for (size_t i = 0; i < def->step_n; i++)
		if (strlen(def->step[i].name) == n && memcmp(def->step[i].name, name, n) == 0)
			return (int)i;
	return -1;
}

const char *saga_style_str(enum saga_style s)
{
	return s == SAGA_ORCHESTRATION ? "orchestration" : "choreography";
}

const char *saga_kind_str(enum saga_kind k)
{
	static const char *const words[] = { "compensatable", "pivot", "retriable" };

	return words[k];
}

const char *saga_op_str(enum saga_op op)
{
	return op == SAGA_DO ? "do" : "undo";
}
