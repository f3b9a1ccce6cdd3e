/* consumers/saga/walk.c -- from a message to the core, and from what the core says to rows: log, commands,
 * events. Refuses to touch Postgres; store.c writes what is gathered here. */
#include "consumers/saga/saga.h"

#include "consumers/outcome.h"

#include "lib/json_path.h"
#include "lib/uuid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE SIZE_MAX

/* ---------------------------------------------------------------- what is to be written */

void writing_clear(struct saga_writing *w)
{
	saga_out_clear(&w->out);
	w->log_n = w->record_n = 0;
	w->text.len = 0;
}

void writing_free(struct saga_writing *w)
{
	saga_out_free(&w->out);
	free(w->log);
	free(w->record);
	pr_buf_free(&w->text);
}

static size_t text(struct saga_writing *w, const char *s)
{
	size_t at = w->text.len;

	if (!s)
		return NONE;
	pr_buf_put(&w->text, s, strlen(s) + 1);
	return at;
}

static struct saga_log *log_row(struct saga_writing *w, const unsigned char id[16])
{
	struct saga_log *l;

	if (w->log_n == w->log_cap) {
		w->log_cap = w->log_cap ? w->log_cap * 2 : 256;
		w->log = pr_realloc(w->log, w->log_cap * sizeof(*w->log));
	}
	l = &w->log[w->log_n++];
	*l = (struct saga_log){ .step = NONE, .op = NONE, .by = NONE };
	memcpy(l->id, id, sizeof(l->id));
	return l;
}

static struct saga_record *record(struct saga_writing *w)
{
	if (w->record_n == w->record_cap) {
		w->record_cap = w->record_cap ? w->record_cap * 2 : 256;
		w->record = pr_realloc(w->record, w->record_cap * sizeof(*w->record));
	}
	return &w->record[w->record_n++];
}

void writing_note(struct saga_writing *w, const unsigned char id[16], enum saga_note_what what,
	const char *step, const char *op, const char *detail)
{
	struct saga_log *l = log_row(w, id);

	l->what = text(w, saga_note_str(what));
	l->step = text(w, step);
	l->op = text(w, op);
	l->text = text(w, detail);
}

static void take_note(
	struct saga_writing *w, const struct saga_row *row, const struct saga_note *n, const char *by)
{
	struct saga_log *l = log_row(w, row->id);

	l->what = text(w, saga_note_str(n->what));
	if (n->step >= 0) {
		l->step = text(w, row->def->step[n->step].name);
		l->op = text(w, saga_op_str(n->op));
		saga_command_id(row->def, &row->in, n->step, n->op, l->command_id);
		l->has_command = row->def->step[n->step].act[n->op].command != NULL;
	}
	l->text = text(w, n->text);
	l->by = text(w, by);
}

/* ---------------------------------------------------------------- commands */

static size_t end(struct saga_writing *w, size_t at)
{
	pr_buf_put(&w->text, "", 1);
	return at;
}

/* Of one that no events made, its own id. */
static void put_correlation(struct pr_buf *b, const struct saga_row *row, const char *id)
{
	const char *s = *row->correlation ? row->correlation : id;

	pr_buf_json(b, s, strlen(s));
}

static size_t command_headers(struct saga_writing *w, const struct saga_row *row, const struct saga_send *s)
{
	struct pr_buf *b = &w->text;
	size_t at = b->len;
	char id[37], command[37];

	(void)pr_uuid_print(row->id, id);
	pr_buf_printf(b,
		"{\"saga-id\": \"%s\", \"saga-name\": \"%s\", \"saga-step\": \"%s\", \"saga-op\": \"%s\", ",
		id, row->def->name, row->def->step[s->step].name, saga_op_str(s->op));
	pr_buf_printf(b,
		"\"saga-command-id\": \"%s\", \"saga-reply-to\": \"" SAGA_INBOX "\", \"correlation-id\": ",
		pr_uuid_print(s->command_id, command));
	put_correlation(b, row, id);
	pr_buf_puts(b, "}");
	return end(w, at);
}

static void take_send(struct saga_writing *w, const struct saga_row *row, const struct saga_send *s)
{
	const struct saga_action *a = &row->def->step[s->step].act[s->op];
	struct saga_record *r = record(w);
	size_t at;

	r->type = text(w, a->command);
	r->topic = text(w, a->topic);
	at = w->text.len;
	saga_put_key(row->def, &row->in, s->step, s->op, &w->text);
	r->key = end(w, at);
	at = w->text.len;
	saga_put_payload(row->def, &row->in, s->step, s->op, &w->text);
	r->payload = end(w, at);
	r->headers = command_headers(w, row, s);
	r->trace = text(w, *row->trace ? row->trace : NULL);
}

/* ---------------------------------------------------------------- events */

static void put_event(struct pr_buf *b, const struct saga_row *row, const struct saga_publish *p)
{
	char id[37];

	pr_buf_printf(b,
		"{\"saga_id\": \"%s\", \"name\": \"%s\", \"version\": %d, \"style\": \"%s\", \"turned\": %s, "
		"\"state\": \"%s\"",
		pr_uuid_print(row->id, id), row->def->name, row->def->version,
		saga_style_str(row->def->style), row->in.turned ? "true" : "false",
		saga_state_str(row->in.state));
	if (p->step >= 0)
		pr_buf_printf(b, ", \"step\": \"%s\"", row->def->step[p->step].name);
	if (*row->in.why) {
		pr_buf_puts(b, ", \"why\": ");
		pr_buf_json(b, row->in.why, strlen(row->in.why));
	}
	pr_buf_puts(b, ", \"data\": ");
	pr_buf_put(b, row->in.data.s, row->in.data.len);
	pr_buf_puts(b, ", \"steps\": [");
	for (size_t i = 0; i < row->def->step_n; i++)
		pr_buf_printf(b, "%s{\"step\": \"%s\", \"state\": \"%s\"}", i ? ", " : "",
			row->def->step[i].name, saga_step_state_str(row->in.step[i].state));
	pr_buf_puts(b, "]}");
}

static void take_event(struct saga_writing *w, const struct saga_row *row, const struct saga_publish *p)
{
	struct saga_record *r = record(w);
	char id[37];
	size_t at;

	r->topic = text(w, "outbox.event.saga");
	r->key = text(w, pr_uuid_print(row->id, id));
	r->type = text(w, saga_event_str(p->type));
	at = w->text.len;
	put_event(&w->text, row, p);
	r->payload = end(w, at);
	at = w->text.len;
	pr_buf_printf(&w->text, "{\"saga-id\": \"%s\", \"correlation-id\": ", id);
	put_correlation(&w->text, row, id);
	pr_buf_puts(&w->text, "}");
	r->headers = end(w, at);
	r->trace = text(w, *row->trace ? row->trace : NULL);
}

void writing_take(struct saga_writing *w, struct saga_row *row, const char *by)
{
	const struct saga_out *out = &w->out;

	for (size_t i = 0; i < out->note_n; i++)
		take_note(w, row, &out->note[i], by);
	for (size_t i = 0; i < out->send_n; i++)
		take_send(w, row, &out->send[i]);
	for (size_t i = 0; i < out->publish_n; i++)
		take_event(w, row, &out->publish[i]);
	saga_out_clear(&w->out);
}

/* ---------------------------------------------------------------- what a message is */

static int header_is(const struct header *h, const char *word)
{
	return h && h->value && h->len == strlen(word) && memcmp(h->value, word, h->len) == 0;
}

static int broken(struct outcome *out, const char *what)
{
	outcome_fail(out, PR_FAIL_DECODE, "saga", "%s", what);
	return -1;
}

static int uuid_of(const struct message *m, const char *name, unsigned char id[16])
{
	const struct header *h = message_header(m, name);

	return h && h->value && pr_uuid_parse(h->value, h->len, id) == 0 ? 0 : -1;
}

static int classify_reply(
	const struct message *m, const struct header *outcome, struct saga_message *s, struct outcome *out)
{
	const struct header *step = message_header(m, "saga-step"), *op = message_header(m, "saga-op"),
			    *why = message_header(m, "saga-why");
	int o = outcome->value ? saga_outcome_parse(outcome->value, outcome->len) : -1;

	if (uuid_of(m, "saga-id", s->id) < 0)
		return broken(out, "a reply whose header saga-id is no uuid");
	if (o < 0)
		return broken(out, "a reply whose header saga-outcome is not done, refused or failed");
	if (uuid_of(m, "saga-command-id", s->reply.command_id) < 0)
		return broken(out, "a reply whose header saga-command-id is no uuid");
	if (!step || !step->value || (!header_is(op, "do") && !header_is(op, "undo")))
		return broken(out, "a reply without header saga-step, or whose saga-op is not do or undo");
	s->kind = SAGA_MESSAGE_REPLY;
	s->reply.step = step->value;
	s->reply.step_n = step->len;
	s->reply.op = header_is(op, "undo") ? SAGA_UNDO : SAGA_DO;
	s->reply.outcome = (enum saga_outcome)o;
	if (m->json && m->payload) {
		s->reply.data = m->payload;
		s->reply.data_n = m->payload_len;
	}
	if (why && why->value) {
		pr_buf_put(&s->data, why->value, why->len);
		s->reply.why = s->data.s;
	}
	return 1;
}

static int is_object(const struct message *m)
{
	const char *v;
	size_t n;

	return m->json && m->payload && pr_json_at(m->payload, m->payload_len, "", &v, &n) == 1 && *v == '{';
}

static int classify_start(const struct message *m, struct saga_message *s, struct outcome *out)
{
	const struct header *name = message_header(m, "saga-name");

	if (uuid_of(m, "saga-id", s->id) < 0)
		return broken(out, "a start whose header saga-id is no uuid");
	if (!name || !name->value)
		return broken(out, "a start without header saga-name");
	s->def = book_newest(name->value, name->len);
	if (!s->def) {
		outcome_fail(out, PR_FAIL_DECODE, "saga", "no definition of saga \"%.*s\" is known here",
			(int)(name->len < 64 ? name->len : 64), name->value);
		return -1;
	}
	if (!is_object(m))
		return broken(out, "a start whose payload is not a JSON object");
	s->kind = SAGA_MESSAGE_START;
	pr_buf_put(&s->data, m->payload, m->payload_len);
	return 1;
}

/* ---------------------------------------------------------------- other services' events */

static int is(const char *word, const struct message *m)
{
	return word && strlen(word) == m->type_len && memcmp(word, m->type, m->type_len) == 0;
}

static int starts(const struct saga_def *def, const struct message *m)
{
	return is(def->start_type, m) && def->start_topic && strcmp(def->start_topic, m->topic) == 0;
}

/* Raw JSON of a path of the message: "payload.x", "header.x", "event.key", "event.id". quoted holds what is
 * made. */
static int event_value(
	const struct message *m, const char *path, struct pr_buf *quoted, const char **ret, size_t *n)
{
	const struct header *h;

	quoted->len = 0;
	if (strncmp(path, "payload.", 8) == 0)
		return m->json && m->payload && pr_json_at(m->payload, m->payload_len, path + 8, ret, n) == 1;
	if (strncmp(path, "header.", 7) == 0) {
		h = message_header(m, path + 7);
		if (!h || !h->value)
			return 0;
		pr_buf_json(quoted, h->value, h->len);
	} else if (strcmp(path, "event.key") == 0 && m->key) {
		pr_buf_json(quoted, m->key, m->key_len);
	} else if (strcmp(path, "event.id") == 0) {
		pr_buf_json(quoted, m->id_text, strlen(m->id_text));
	} else {
		return 0;
	}
	*ret = quoted->s;
	*n = quoted->len;
	return 1;
}

static void start_data(const struct saga_def *def, const struct message *m, struct pr_buf *data)
{
	struct pr_buf quoted = { 0 };
	size_t n, put = 0;
	const char *v;

	if (def->start_data_n == 0 && is_object(m)) {
		pr_buf_put(data, m->payload, m->payload_len);
		return;
	}
	pr_buf_puts(data, "{");
	for (size_t i = 0; i < def->start_data_n; i++) {
		const struct saga_member *k = &def->start_data[i];

		v = k->json;
		n = v ? strlen(v) : 0;
		if (!v && !event_value(m, k->path, &quoted, &v, &n))
			continue;
		pr_buf_puts(data, put++ ? ", " : "");
		pr_buf_json(data, k->name, strlen(k->name));
		pr_buf_puts(data, ": ");
		pr_buf_put(data, v, n);
	}
	pr_buf_puts(data, "}");
	pr_buf_free(&quoted);
}

/* What makes events one instance: as text, "" when the event has none. */
static int correlation(const struct saga_def *def, const struct message *m, char *ret, size_t size)
{
	struct pr_buf quoted = { 0 }, plain = { 0 };
	const char *v;
	size_t n;
	int fits = 1;

	*ret = '\0';
	if (event_value(m, def->correlate, &quoted, &v, &n) && !(n == 4 && memcmp(v, "null", 4) == 0)) {
		if (*v != '"' || pr_json_str(&plain, v, n) < 0)
			pr_buf_put(&plain, v, n);
		fits = (size_t)snprintf(ret, size, "%s", plain.s) < size;
	}
	pr_buf_free(&quoted);
	pr_buf_free(&plain);
	return fits;
}

/* Services tell the same events outside of this choreography: without what correlates them they are none of
 * it. */
static int is_correlated(const struct saga_def *def, const struct message *m)
{
	char text[200];

	(void)correlation(def, m, text, sizeof(text));
	return *text != '\0';
}

static int concerns(const struct saga_def *def, const struct message *m)
{
	if (def->style != SAGA_CHOREOGRAPHY)
		return starts(def, m);
	if (starts(def, m))
		return is_correlated(def, m);
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step *d = &def->step[i];

		if (d->emits_topic && strcmp(d->emits_topic, m->topic) == 0 &&
			(is(d->emits, m) || is(d->fails, m) || is(d->undone, m)))
			return is_correlated(def, m);
	}
	return 0;
}

static int classify_event(
	const struct saga_def *def, const struct message *m, struct saga_message *s, struct outcome *out)
{
	char name[300];
	int n;

	s->kind = SAGA_MESSAGE_EVENT;
	s->def = def;
	if (def->style == SAGA_CHOREOGRAPHY) {
		if (!correlation(def, m, s->correlation, sizeof(s->correlation)))
			return broken(out,
				"an event whose correlation has more than 199 bytes: two sagas could be one");
		if (!*s->correlation)
			return broken(out, "an event of a choreography without what correlates it");
		if (pr_uuid_parse(s->correlation, strlen(s->correlation), s->id) < 0) {
			n = snprintf(name, sizeof(name), "%s/%s", def->name, s->correlation);
			pr_uuid_of_text(name, (size_t)n, s->id);
		}
	} else {
		memcpy(s->id, m->id, sizeof(s->id));
	}
	if (starts(def, m) || def->style == SAGA_CHOREOGRAPHY)
		start_data(def, m, &s->data);
	return 1;
}

int message_classify(const struct message *m, size_t at, struct saga_message *ret, struct outcome *out)
{
	const struct header *outcome = message_header(m, "saga-outcome");
	const struct saga_def *const *all;
	size_t n = book_all(&all), seen = 0;

	*ret = (struct saga_message){ .m = m };
	if (outcome)
		return at == 0 ? classify_reply(m, outcome, ret, out) : 0;
	if (is("SagaStart", m))
		return at == 0 ? classify_start(m, ret, out) : 0;
	for (size_t i = 0; i < n; i++)
		if (concerns(all[i], m) && seen++ == at)
			return classify_event(all[i], m, ret, out);
	return 0;
}

void message_release(struct saga_message *s)
{
	pr_buf_free(&s->data);
}

/* ---------------------------------------------------------------- a message and its instance */

static void make_locks(struct saga_row *row)
{
	row->locks.len = 0;
	row->locks_n = 0;
	for (size_t i = 0; i < row->def->locks_n; i++, row->locks_n++) {
		saga_put_template(row->def, &row->in, row->def->locks[i], &row->locks);
		pr_buf_put(&row->locks, "", 1);
	}
}

/* One that has locks is begun when they are known to be its own: handler_saga.c. started = 0: of a
 * choreography, whose start has not come yet. */
static void make(
	struct saga_row *row, struct saga_message *s, int started, int64_t now, struct saga_writing *w)
{
	row->def = s->def;
	saga_instance_init(&row->in, s->def, s->id, s->data.s, s->data.len, now);
	(void)snprintf(row->correlation, sizeof(row->correlation), "%s", s->correlation);
	row->changed = row->data_changed = 1;
	make_locks(row);
	if (row->locks_n == 0)
		saga_begin(row->def, &row->in, started, now, &w->out);
}

/* Its start came after another of its events: topics are read side by side. */
static void start_late(struct saga_row *row, struct saga_message *s, int64_t now, struct saga_writing *w)
{
	row->in.data.len = 0;
	pr_buf_put(&row->in.data, s->data.s, s->data.len);
	row->data_changed = 1;
	saga_granted(row->def, &row->in, now, &w->out);
}

static void walk_start(struct saga_row *row, struct saga_message *s, int64_t now, struct saga_writing *w)
{
	if (row->def) {
		writing_note(w, row->id, NOTE_DUPLICATE, NULL, NULL, "it was started before");
		return;
	}
	make(row, s, 1, now, w);
}

static void walk_event(struct saga_row *row, struct saga_message *s, int64_t now, struct saga_writing *w)
{
	int start = starts(s->def, s->m), fresh = !row->def;

	if (!fresh && strcmp(row->def->name, s->def->name) != 0)
		return; /* of a saga that is orchestrated: its participants tell the same events */
	if (fresh)
		make(row, s, start || !s->def->start_type, now, w);
	else if (start && !row->in.granted)
		start_late(row, s, now, w);
	else if (start)
		writing_note(w, row->id, NOTE_DUPLICATE, NULL, NULL, "it was started before");
	if (s->def->style == SAGA_CHOREOGRAPHY && !start)
		saga_take_event(row->def, &row->in, s->m->type, s->m->type_len,
			s->m->json ? s->m->payload : NULL, s->m->payload_len, now, &w->out);
}

static void walk_reply(struct saga_row *row, struct saga_message *s, int64_t now, struct saga_writing *w)
{
	char step[80];

	if (row->def) {
		saga_take_reply(row->def, &row->in, &s->reply, now, &w->out);
		return;
	}
	(void)snprintf(step, sizeof(step), "%.*s", (int)(s->reply.step_n < 79 ? s->reply.step_n : 79),
		s->reply.step);
	writing_note(w, row->id, NOTE_UNKNOWN, step, saga_op_str(s->reply.op),
		"a reply to a saga there is none of");
}

int row_has_ended(const struct saga_row *row)
{
	return row->existed && saga_is_final(row->was) && saga_is_final(row->in.state);
}

static void come_by(struct saga_row *row, const struct message *m)
{
	char part[sizeof(row->part)];

	(void)snprintf(part, sizeof(part), "%s-%d", m->topic, (int)m->partition);
	if (strcmp(part, row->part) == 0)
		return;
	(void)snprintf(row->part, sizeof(row->part), "%s", part);
	row->part_changed = 1;
}

/* What it sends because of the message carries its trace on; what a timer sends has none. */
static void carry(struct saga_row *row, const struct message *m)
{
	struct pr_trace trace;

	row->trace[0] = '\0';
	if (m->traceparent && pr_traceparent_read(m->traceparent, m->traceparent_len, &trace) == 0)
		(void)pr_traceparent_put(&trace, row->trace);
}

void walk_message(struct saga_row *row, struct saga_message *s, int64_t now_us, struct saga_writing *w)
{
	size_t data = row->def ? row->in.data.len : 0;
	const char *was = row->def ? row->in.data.s : NULL;

	carry(row, s->m);
	if (s->kind == SAGA_MESSAGE_START)
		walk_start(row, s, now_us, w);
	else if (s->kind == SAGA_MESSAGE_REPLY)
		walk_reply(row, s, now_us, w);
	else
		walk_event(row, s, now_us, w);
	if (!row->def)
		return;
	if (!row_has_ended(row)) { /* else it is only told: it may lie among those that are dropped */
		row->changed = 1;
		row->data_changed |= row->in.data.s != was || row->in.data.len != data;
		come_by(row, s->m);
	}
	writing_take(w, row, NULL);
}
