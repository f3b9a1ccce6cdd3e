/* lib/saga_text.c -- a saga's state as words and JSON, and what its commands carry. Refuses to decide
 * anything: saga_core.c does. */
#include "lib/saga_core.h"

#include "lib/json_path.h"
#include "lib/uuid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- words */

static const char *const states[] = { "RUNNING", "COMPENSATING", "COMPLETED", "COMPENSATED", "STUCK",
	"ABORTED" };
static const char *const step_states[] = { "WAITING", "DOING", "DONE", "REFUSED", "UNKNOWN", "SKIPPED",
	"UNDOING", "UNDONE", "STUCK" };
static const char *const events[] = { "SagaStarted", "SagaStepCompleted", "SagaCompleted", "SagaFailed",
	"SagaCompensated", "SagaStuck", "SagaAborted", "SagaResumed" };
static const char *const notes[] = { "started", "waits_for_lock", "sent", "sent_again", "done", "refused",
	"failed", "timeout", "skipped", "turned", "undone", "stuck", "state", "deadline", "duplicate", "late",
	"unknown", "order", "unexpected", "missing", "cycle" };
static const char *const outcomes[] = { "done", "refused", "failed" };
static const char *const orders[] = { "retry", "skip", "undo", "abort", "edit-data", "migrate" };

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static int find(const char *const *words, size_t n, const char *s, size_t len)
{
	for (size_t i = 0; i < n; i++)
		if (strlen(words[i]) == len && memcmp(words[i], s, len) == 0)
			return (int)i;
	return -1;
}

const char *saga_state_str(enum saga_state s)
{
	return states[s];
}

const char *saga_step_state_str(enum saga_step_state s)
{
	return step_states[s];
}

const char *saga_event_str(enum saga_event e)
{
	return events[e];
}

const char *saga_note_str(enum saga_note_what w)
{
	return notes[w];
}

const char *saga_outcome_str(enum saga_outcome o)
{
	return outcomes[o];
}

const char *saga_order_str(enum saga_order o)
{
	return orders[o];
}

int saga_state_parse(const char *s, size_t n)
{
	return find(states, COUNT(states), s, n);
}

int saga_step_state_parse(const char *s, size_t n)
{
	return find(step_states, COUNT(step_states), s, n);
}

int saga_outcome_parse(const char *s, size_t n)
{
	return find(outcomes, COUNT(outcomes), s, n);
}

int saga_order_parse(const char *s, size_t n)
{
	return find(orders, COUNT(orders), s, n);
}

int saga_is_final(enum saga_state s)
{
	return s == SAGA_COMPLETED || s == SAGA_COMPENSATED || s == SAGA_ABORTED;
}

/* ---------------------------------------------------------------- what a command carries */

void saga_command_id(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	unsigned char ret[16])
{
	uint32_t generation = (uint32_t)in->step[step].generation[op];
	char text[160], id[37];
	int n = snprintf(text, sizeof(text), "%s/%s/%s", pr_uuid_print(in->id, id), def->step[step].name,
		saga_op_str(op));

	pr_uuid_of_text(text, (size_t)n, ret);
	for (int i = 0; i < 4; i++)
		ret[12 + i] = (unsigned char)(generation >> (24 - 8 * i));
}

/* Raw JSON at a path of the definition: "data.x", "saga.id", "saga.name". quoted holds what has no place of
 * its own. 0: there is nothing. */
static int resolve(const struct saga_def *def, const struct saga_instance *in, const char *path,
	char quoted[80], const char **ret, size_t *ret_len)
{
	char id[37];

	if (strncmp(path, "data.", 5) == 0)
		return pr_json_at(in->data.s, in->data.len, path + 5, ret, ret_len) == 1;
	if (strcmp(path, "data") == 0) {
		*ret = in->data.s;
		*ret_len = in->data.len;
		return 1;
	}
	if (strcmp(path, "saga.id") == 0)
		(void)snprintf(quoted, 80, "\"%s\"", pr_uuid_print(in->id, id));
	else if (strcmp(path, "saga.name") == 0)
		(void)snprintf(quoted, 80, "\"%s\"", def->name);
	else
		return 0;
	*ret = quoted;
	*ret_len = strlen(quoted);
	return 1;
}

void saga_put_payload(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	struct pr_buf *b)
{
	const struct saga_action *a = &def->step[step].act[op];

	pr_buf_puts(b, "{");
	for (size_t i = 0; i < a->send_n; i++) {
		const struct saga_member *m = &a->send[i];
		const char *v = m->json;
		size_t n = v ? strlen(v) : 0;
		char quoted[80];

		if (!v && !resolve(def, in, m->path, quoted, &v, &n)) {
			v = "null";
			n = 4;
		}
		pr_buf_puts(b, i ? ", " : "");
		pr_buf_json(b, m->name, strlen(m->name));
		pr_buf_puts(b, ": ");
		pr_buf_put(b, v, n);
	}
	pr_buf_puts(b, "}");
}

/* As text: a string without its quotes, anything else as it is, what is not there as nothing. */
static void put_text(
	const struct saga_def *def, const struct saga_instance *in, const char *path, struct pr_buf *b)
{
	const char *v;
	char quoted[80];
	size_t n;

	if (!resolve(def, in, path, quoted, &v, &n))
		return;
	if (*v != '"' || pr_json_str(b, v, n) < 0)
		pr_buf_put(b, v, n);
}

void saga_put_key(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	struct pr_buf *b)
{
	const char *key = def->step[step].act[op].key;
	size_t was = b->len;
	char id[37];

	if (key)
		put_text(def, in, key, b);
	if (b->len == was)
		pr_buf_puts(b, pr_uuid_print(in->id, id));
}

void saga_put_template(
	const struct saga_def *def, const struct saga_instance *in, const char *text, struct pr_buf *b)
{
	const char *open, *close;
	char path[256];

	while ((open = strstr(text, "${")) && (close = strchr(open, '}')) &&
		(size_t)(close - open) < sizeof(path)) {
		pr_buf_put(b, text, (size_t)(open - text));
		(void)snprintf(path, sizeof(path), "%.*s", (int)(close - open - 2), open + 2);
		put_text(def, in, path, b);
		text = close + 1;
	}
	pr_buf_puts(b, text);
}

/* ---------------------------------------------------------------- steps as JSON */

static void put_number(struct pr_buf *b, const char *name, int64_t n)
{
	if (n)
		pr_buf_printf(b, ", \"%s\": %lld", name, (long long)n);
}

void saga_put_steps(const struct saga_def *def, const struct saga_instance *in, struct pr_buf *b)
{
	pr_buf_puts(b, "[");
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step_now *s = &in->step[i];

		pr_buf_puts(b, i ? ", {\"step\": " : "{\"step\": ");
		pr_buf_json(b, def->step[i].name, strlen(def->step[i].name));
		pr_buf_puts(b, ", \"state\": \"");
		pr_buf_puts(b, saga_step_state_str(s->state));
		pr_buf_puts(b, "\"");
		put_number(b, "since", s->since_us);
		if (s->op == SAGA_UNDO)
			pr_buf_puts(b, ", \"undo\": true");
		put_number(b, "tries", s->tries);
		put_number(b, "generation", s->generation[SAGA_DO]);
		put_number(b, "undo_generation", s->generation[SAGA_UNDO]);
		if (s->waits)
			pr_buf_puts(b, ", \"waits\": true");
		if (s->refused)
			pr_buf_puts(b, ", \"refused\": true");
		put_number(b, "due", s->due_us);
		if (*s->why) {
			pr_buf_puts(b, ", \"why\": ");
			pr_buf_json(b, s->why, strlen(s->why));
		}
		pr_buf_puts(b, "}");
	}
	pr_buf_puts(b, "]");
}

struct reading {
	const struct saga_def *def;
	int index; /* -1: a step this definition does not have; -2: no name was met */
	struct saga_step_now s;
	int bad;
};

static int is(const char *name, size_t n, const char *word)
{
	return strlen(word) == n && memcmp(name, word, n) == 0;
}

/* At most 18 digits are read: microseconds since 1970 have 16. */
static int64_t whole_number(const char *s, size_t n)
{
	size_t i = n > 0 && *s == '-';
	int64_t v = 0;

	for (size_t end = i + 18; i < n && i < end && s[i] >= '0' && s[i] <= '9'; i++)
		v = v * 10 + (s[i] - '0');
	return n > 0 && *s == '-' ? -v : v;
}

static int read_member(
	void *ctx, const char *name, size_t name_n, const char *value, size_t value_n, int is_null)
{
	struct reading *r = ctx;
	int64_t n = whole_number(value, value ? value_n : 0);
	int state;

	if (is(name, name_n, "step")) {
		r->bad |= is_null;
		r->index = is_null ? -1 : saga_def_step(r->def, value, value_n);
	} else if (is(name, name_n, "state")) {
		state = saga_step_state_parse(value, value_n);
		r->bad |= state < 0;
		r->s.state = state < 0 ? STEP_WAITING : (enum saga_step_state)state;
	} else if (is(name, name_n, "why")) {
		(void)snprintf(r->s.why, sizeof(r->s.why), "%.*s", (int)value_n, value);
	} else if (is(name, name_n, "undo")) {
		r->s.op = SAGA_UNDO;
	} else if (is(name, name_n, "waits")) {
		r->s.waits = 1;
	} else if (is(name, name_n, "refused")) {
		r->s.refused = 1;
	} else if (is(name, name_n, "since")) {
		r->s.since_us = n;
	} else if (is(name, name_n, "due")) {
		r->s.due_us = n;
	} else if (is(name, name_n, "tries")) {
		r->s.tries = (int)n;
	} else if (is(name, name_n, "generation")) {
		r->s.generation[SAGA_DO] = (int)n;
	} else if (is(name, name_n, "undo_generation")) {
		r->s.generation[SAGA_UNDO] = (int)n;
	}
	return 0;
}

int saga_read_steps(const struct saga_def *def, struct saga_instance *in, const char *json, size_t n)
{
	struct pr_buf scratch = { 0 };
	const char *element;
	size_t len;
	char at[16];
	int rc = 0;

	for (int i = 0; rc == 0 && i < 2 * SAGA_STEPS_MOST; i++) {
		struct reading r = { .def = def, .index = -2 };
		int found;

		(void)snprintf(at, sizeof(at), "%d", i);
		found = pr_json_at(json, n, at, &element, &len);
		if (found != 1) {
			rc = found < 0 ? -1 : 0;
			break;
		}
		if (pr_json_flat(element, len, &scratch, read_member, &r) != 0 || r.index == -2 || r.bad)
			rc = -1;
		else if (r.index >= 0)
			in->step[r.index] = r.s;
	}
	pr_buf_free(&scratch);
	return rc;
}
