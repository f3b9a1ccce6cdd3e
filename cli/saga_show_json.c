/* cli/saga_show_json.c -- `postrider saga show --json`: one object with stable members. Changes nothing. */
#include "cli/saga_show.h"
#include "lib/json.h"

#include <string.h>

static void add_text(cJSON *o, const char *name, const char *text)
{
	if (text && *text)
		(void)cJSON_AddStringToObject(o, name, text);
	else
		(void)cJSON_AddNullToObject(o, name);
}

static void add_json(cJSON *o, const char *name, const char *json)
{
	struct pr_buf b = { 0 };

	if (json)
		cli_json_indent(&b, json, strlen(json), 1);
	(void)cJSON_AddRawToObject(o, name, b.len ? b.s : "null");
	pr_buf_free(&b);
}

static cJSON *step_json(const struct saga_shown *s, int i)
{
	const char *words;
	cJSON *o = cJSON_CreateObject();

	cli_json_cell(o, "step", s->steps, i, T_STEP, 0);
	cli_json_cell(o, "state", s->steps, i, T_STATE, 0);
	add_text(o, "op", cli_cell(s->steps, i, T_OP));
	cli_json_int(o, "tries", cli_cell_int(s->steps, i, T_TRIES));
	cli_json_int(o, "generation", cli_cell_int(s->steps, i, T_GENERATION));
	saga_json_time(o, "due_at", s->steps, i, T_DUE);
	add_text(o, "due", saga_shown_due(s, i, &words));
	saga_json_time(o, "since", s->steps, i, T_SINCE);
	add_text(o, "why", cli_cell(s->steps, i, T_WHY));
	return o;
}

static cJSON *order_json(const struct saga_shown *s, int i)
{
	cJSON *o = cJSON_CreateObject();

	cli_json_cell(o, "entry", s->orders, i, O_ENTRY, 1);
	cli_json_cell(o, "order", s->orders, i, O_WHAT, 0);
	cli_json_cell(o, "step", s->orders, i, O_STEP, 0);
	add_json(o, "detail", cli_cell(s->orders, i, O_DETAIL));
	cli_json_cell(o, "by", s->orders, i, O_BY, 0);
	saga_json_time(o, "at", s->orders, i, O_AT);
	saga_json_time(o, "done_at", s->orders, i, O_DONE_AT);
	cli_json_cell(o, "outcome", s->orders, i, O_OUTCOME, 0);
	cli_json_cell(o, "reason", s->orders, i, O_REASON, 0);
	return o;
}

static cJSON *event_json(const struct saga_event_line *e)
{
	cJSON *o = cJSON_CreateObject();

	add_text(o, "at", e->at);
	add_text(o, "what", e->what);
	add_text(o, "step", e->step);
	add_text(o, "op", e->op);
	add_text(o, "command_id", e->command);
	add_text(o, "detail", e->detail);
	add_text(o, "by", e->by);
	return o;
}

/* "{a,\"b:c\"}", as Postgres writes an array of texts. */
static cJSON *array_json(const char *s)
{
	cJSON *a = cJSON_CreateArray();
	struct pr_buf b = { 0 };
	int quoted = 0;

	for (s = s ? s + 1 : ""; *s; s++) {
		if (*s == '"') {
			quoted = !quoted;
		} else if (!quoted && (*s == ',' || *s == '}')) {
			(void)cJSON_AddItemToArray(a, cJSON_CreateString(b.s ? b.s : ""));
			b.len = 0;
			pr_buf_put(&b, "", 0);
		} else {
			s += *s == '\\' && s[1];
			pr_buf_put(&b, s, 1);
		}
	}
	pr_buf_free(&b);
	return a;
}

static cJSON *head_json(const struct saga_shown *s)
{
	static const struct {
		const char *name;
		int column;
	} times[] = { { "started_at", S_STARTED }, { "deadline_at", S_DEADLINE }, { "since", S_SINCE },
		{ "updated_at", S_UPDATED }, { "finished_at", S_FINISHED }, { "due_at", S_DUE } };
	cJSON *o = cJSON_CreateObject();

	cli_json_cell(o, "id", s->head, 0, S_ID, 0);
	cli_json_cell(o, "name", s->head, 0, S_NAME, 0);
	cli_json_cell(o, "version", s->head, 0, S_VERSION, 1);
	cli_json_cell(o, "style", s->head, 0, S_STYLE, 0);
	cli_json_cell(o, "state", s->head, 0, S_STATE, 0);
	(void)cJSON_AddBoolToObject(o, "turned", *PQgetvalue(s->head, 0, S_TURNED) == 't');
	cli_json_cell(o, "failed_step", s->head, 0, S_FAILED, 0);
	add_text(o, "why", cli_cell(s->head, 0, S_WHY));
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++)
		saga_json_time(o, times[i].name, s->head, 0, times[i].column);
	cli_json_cell(o, "part", s->head, 0, S_PART, 0);
	add_text(o, "correlation", cli_cell(s->head, 0, S_CORRELATION));
	(void)cJSON_AddBoolToObject(
		o, "waits_for_lock", *PQgetvalue(s->head, 0, S_GRANTED) != 't' && !saga_shown_is_over(s));
	(void)cJSON_AddItemToObject(o, "locks", array_json(cli_cell(s->head, 0, S_LOCKS)));
	add_json(o, "data", cli_cell(s->head, 0, S_DATA));
	return o;
}

void saga_shown_json(const struct saga_shown *s)
{
	cJSON *o = head_json(s), *steps = cJSON_CreateArray(), *left = cJSON_CreateArray();
	cJSON *orders = cJSON_CreateArray(), *timeline = cJSON_CreateArray();

	for (int i = 0; i < PQntuples(s->steps); i++) {
		(void)cJSON_AddItemToArray(steps, step_json(s, i));
		if (saga_shown_is_left(s, i))
			(void)cJSON_AddItemToArray(left, cJSON_CreateString(PQgetvalue(s->steps, i, T_STEP)));
	}
	for (int i = 0; i < PQntuples(s->orders); i++)
		(void)cJSON_AddItemToArray(orders, order_json(s, i));
	for (int i = 0; i < s->n_events; i++)
		(void)cJSON_AddItemToArray(timeline, event_json(&s->event[i]));
	(void)cJSON_AddItemToObject(o, "steps", steps);
	(void)cJSON_AddItemToObject(o, "left", left);
	(void)cJSON_AddItemToObject(o, "orders", orders);
	(void)cJSON_AddItemToObject(o, "timeline", timeline);
	cli_json_free_line(o);
}
