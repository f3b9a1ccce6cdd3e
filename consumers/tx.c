/* consumers/tx.c -- the statements of a lane's transaction: attempts, ids, the handler, what is held back,
 * positions. Refuses to send anything: apply.c does. */
#include "consumers/tx.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/uuid.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define MAX_AGGREGATE_ID 65536 /* bytes that outbox.publish takes */
#define MAX_TYPE         1000  /* of 1024, with "Failed" */

static void collect(struct tx *t)
{
	t->m_n = 0;
	for (size_t i = 0; i < t->n; i++) {
		if (t->w[i].v.fate != FATE_HANDLE)
			continue;
		t->index[t->m_n] = i;
		t->m[t->m_n++] = t->w[i].m;
	}
}

void tx_init(struct tx *t, struct lane *l, struct work *w, size_t n)
{
	memset(t, 0, sizeof(*t));
	t->l = l;
	t->w = w;
	t->n = n;
	t->m = pr_calloc(n + 1, sizeof(struct message *));
	t->index = pr_calloc(n + 1, sizeof(*t->index));
	t->handler_at = t->remember_at = t->unpark_at = -1;
	if (l->c->tracer)
		l->began_us = pr_wall_us();
	collect(t);
}

void tx_statements_free(struct tx *t)
{
	for (int i = 0; i < t->args_n; i++)
		args_free(&t->args[i]);
	memset(t->args, 0, sizeof(t->args));
	t->args_n = t->s_n = 0;
	t->handler_at = t->remember_at = t->unpark_at = -1;
}

void tx_free(struct tx *t)
{
	tx_statements_free(t);
	free(t->m);
	free(t->index);
}

struct args *tx_args(struct tx *t)
{
	return &t->args[t->args_n++];
}

int tx_add(struct tx *t, struct args *a, const char *sql, int sync)
{
	t->s[t->s_n] = args_stmt(a, sql, sync);
	return t->s_n++;
}

int tx_plain(struct tx *t, const char *sql, int sync)
{
	t->s[t->s_n] = (struct pr_stmt){ .sql = sql, .sync = sync };
	return t->s_n++;
}

/* ---------------------------------------------------------------- positions */

struct step *step_of(struct lane *l, struct part *p, int lane)
{
	for (size_t i = 0; i < l->steps_n; i++)
		if (l->steps[i].part == p && l->steps[i].lane == lane)
			return &l->steps[i];
	if (l->steps_n == l->steps_cap) {
		l->steps_cap = l->steps_cap ? 2 * l->steps_cap : 16;
		l->steps = pr_realloc(l->steps, l->steps_cap * sizeof(*l->steps));
	}
	l->steps[l->steps_n] = (struct step){ p, lane, p->lane[lane].next, p->lane[lane].next };
	return &l->steps[l->steps_n++];
}

int step_by_place(const void *x, const void *y)
{
	const struct step *a = x, *b = y;
	int rc = strcmp(a->part->topic, b->part->topic);

	if (rc == 0)
		rc = a->part->partition < b->part->partition ? -1 : a->part->partition > b->part->partition;
	return rc ? rc : a->lane - b->lane;
}

/* Positions behind w[0..n); behind all that was read when these are all there is. */
void take_steps(struct lane *l, const struct work *w, size_t n)
{
	l->steps_n = 0;
	l->torn = 0;
	for (size_t i = 0; i < n; i++) {
		struct step *s;

		if (w[i].m->replay)
			continue;
		s = step_of(l, w[i].m->part, w[i].m->lane);
		l->torn |= !w[i].m->parked && w[i].m->after > 0 && w[i].m->after > s->next;
		if (!w[i].m->parked && w[i].m->offset >= s->next)
			s->next = w[i].m->offset + 1;
	}
	for (size_t i = 0; i < l->served_n && l->level && w == l->work && n == l->work_n; i++)
		for (size_t j = 0; j < l->steps_n; j++)
			if (l->steps[j].part == l->served[i].part && l->steps[j].lane == l->served[i].lane &&
				l->served[i].through > l->steps[j].next)
				l->steps[j].next = l->served[i].through;
	if (l->steps_n > 0) /* none of what is replayed */
		qsort(l->steps, l->steps_n, sizeof(*l->steps), step_by_place);
}

static void put_places(const struct lane *l, struct args *a)
{
	args_text(a, l->c->conf->group);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element(a, l->steps[i].part->topic, strlen(l->steps[i].part->topic));
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int4(a, l->steps[i].part->partition);
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int4(a, l->steps[i].lane);
	args_end(a);
}

static void put_epochs(const struct lane *l, struct args *a)
{
	args_array(a, OID_INT8_ARRAY, OID_INT8, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int8(a, l->steps[i].part->epoch);
	args_end(a);
}

void tx_advance(struct tx *t, int sync)
{
	struct lane *l = t->l;
	struct args *a;

	if (l->steps_n == 0) { /* only replayed messages: no position moves, but the transaction ends */
		(void)tx_plain(t, "SELECT 1", sync);
		return;
	}
	a = tx_args(t);
	put_places(l, a);
	put_epochs(l, a);
	args_array(a, OID_INT8_ARRAY, OID_INT8, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int8(a, l->steps[i].expected);
	args_end(a);
	args_array(a, OID_INT8_ARRAY, OID_INT8, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int8(a, l->steps[i].next);
	args_end(a);
	(void)tx_add(t, a, SABOTAGE(no_epoch_fence) ? sql_lane_advance_unfenced : sql_lane_advance, sync);
}

/* First offset and number of this batch's messages, per position: counted before the handler may die of them.
 */
void tx_attempt(struct tx *t)
{
	struct lane *l = t->l;
	struct args *a;

	if (t->w[0].m->parked) { /* the same for a parked one: due later, unless this try succeeds */
		a = tx_args(t);
		t->s[t->s_n++] = held_begun_stmt(l, &t->w[0], t->n, a);
		return;
	}
	if (l->steps_n == 0)
		return;
	a = tx_args(t);
	put_places(l, a);
	args_array(a, OID_INT8_ARRAY, OID_INT8, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++) {
		size_t k = 0;

		while (t->w[k].m->part != l->steps[i].part || t->w[k].m->lane != l->steps[i].lane ||
			t->w[k].m->replay)
			k++;
		args_element_int8(a, t->w[k].m->offset);
	}
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->steps_n);
	for (size_t i = 0; i < l->steps_n; i++)
		args_element_int4(a, (int32_t)t->n);
	args_end(a);
	put_epochs(l, a);
	(void)tx_add(t, a, sql_lane_attempt, 1);
}

size_t take_idle(struct lane *l)
{
	l->steps_n = 0;
	for (size_t i = 0; i < l->served_n; i++)
		if (!atomic_load(&l->served[i].part->dead) && (l->work_n == 0 || l->served[i].settled) &&
			l->served[i].through > l->served[i].part->lane[l->served[i].lane].next)
			step_of(l, l->served[i].part, l->served[i].lane)->next = l->served[i].through;
	if (l->steps_n > 0)
		qsort(l->steps, l->steps_n, sizeof(*l->steps), step_by_place);
	return l->steps_n;
}

/* ---------------------------------------------------------------- ids */

/* Parameters group, ids, hashes of the messages that pick chooses; returns how many. */
size_t tx_ids(const struct tx *t, struct args *a, int (*pick)(const struct work *w))
{
	size_t n = 0;

	for (size_t i = 0; i < t->n; i++)
		n += (size_t)pick(&t->w[i]);
	args_text(a, t->l->c->conf->group);
	args_array(a, OID_UUID_ARRAY, OID_UUID, n);
	for (size_t i = 0; i < t->n; i++)
		if (pick(&t->w[i]))
			args_element(a, t->w[i].m->id, 16);
	args_end(a);
	args_array(a, OID_INT8_ARRAY, OID_INT8, n);
	for (size_t i = 0; i < t->n; i++)
		if (pick(&t->w[i]))
			args_element_int8(a, t->w[i].m->hash);
	args_end(a);
	return n;
}

int to_look(const struct work *w)
{
	return w->v.fate == FATE_HANDLE && !w->looked && !w->m->dead_letter;
}

/* A dead letter's id was remembered when it was buried: that it is tried again only once is its own row's
 * care. */
static int to_remember(const struct work *w)
{
	return w->v.fate == FATE_HANDLE && !w->m->dead_letter;
}

/* What is decided upon without having been handled: a replay or a producer's duplicate must not bring it
 * back. */
static int to_note(const struct work *w)
{
	if (w->m->id_state != ID_OK)
		return 0;
	return w->v.fate == FATE_BURY || w->v.fate == FATE_IGNORE ||
	       (w->m->dead_letter && (w->v.fate == FATE_HANDLE || w->v.fate == FATE_DONE));
}

int to_record(const struct work *w)
{
	return w->v.fate == FATE_DONE && !w->recorded;
}

/* ---------------------------------------------------------------- what is held back */

/* "outbox.event.reservation" and "outbox.command.reservation" -> "reservation"; any other topic is its own
 * aggregate type. */
static const char *aggregate_of(const char *topic)
{
	static const char *const prefix[] = { "outbox.event.", "outbox.command." };

	for (size_t i = 0; i < sizeof(prefix) / sizeof(*prefix); i++)
		if (strncmp(topic, prefix[i], strlen(prefix[i])) == 0 && topic[strlen(prefix[i])])
			return topic + strlen(prefix[i]);
	return topic;
}

/* What outbox.publish takes: the key as text, or the record's place when that is too little or too much. */
static void put_key_text(struct pr_buf *b, const struct message *m)
{
	size_t at = b->len;

	if (m->key)
		message_put_key(b, m);
	if (b->len == at || b->len - at > MAX_AGGREGATE_ID) {
		b->len = at;
		pr_buf_printf(b, "%s-%d-%lld", m->topic, (int)m->partition, (long long)m->offset);
	}
}

static void put_aggregate_id(struct args *a, const struct message *m)
{
	put_key_text(args_begin(a, OID_TEXT), m);
	args_end(a);
}

static void put_failed_payload(struct pr_buf *b, const struct lane *l, const struct work *w)
{
	const struct outcome *why = message_why(w->m);
	struct pr_buf key = { 0 };

	pr_buf_puts(b, "{\"group\":");
	pr_buf_json(b, l->c->conf->group, strlen(l->c->conf->group));
	put_key_text(&key, w->m);
	pr_buf_puts(b, ",\"key\":");
	pr_buf_json(b, key.s, key.len);
	pr_buf_free(&key);
	pr_buf_puts(b, ",\"id\":");
	pr_buf_json(b, w->m->id_text, strlen(w->m->id_text));
	pr_buf_puts(b, ",\"topic\":");
	pr_buf_json(b, w->m->topic, strlen(w->m->topic));
	pr_buf_printf(b, ",\"partition\":%d,\"offset\":%lld,\"attempts\":%u,\"class\":\"%s\",\"code\":",
		(int)w->m->partition, (long long)w->m->offset, w->m->attempts, pr_fail_class_str(why->cls));
	pr_buf_json(b, why->code, strlen(why->code));
	pr_buf_puts(b, ",\"cause\":");
	pr_buf_json(b, why->text, strlen(why->text));
	pr_buf_puts(b, "}");
}

/* A type that the name of an event can be made of. */
static int has_plain_type(const struct message *m)
{
	for (size_t i = 0; i < m->type_len; i++)
		if ((unsigned char)m->type[i] < ' ' || m->type[i] == 127)
			return 0;
	return m->type_len > 0 && m->type_len <= MAX_TYPE && pr_utf8_text(m->type, m->type_len);
}

static struct args *begin_publish(
	struct tx *t, const struct work *w, const char *type, size_t type_n, const char *suffix)
{
	struct args *a = tx_args(t);
	struct pr_buf *b;

	args_text(a, aggregate_of(w->m->topic));
	put_aggregate_id(a, w->m);
	b = args_begin(a, OID_TEXT);
	pr_buf_put(b, type, type_n);
	pr_buf_puts(b, suffix);
	args_end(a);
	return a;
}

/* As what a handler publishes: what it is about, and what it follows from. */
static void put_carried(struct args *a, const struct message *m)
{
	const struct header *h = message_header(m, "correlation-id");
	int plain = h && h->value && h->len > 0 && h->len <= 256 && pr_utf8_text(h->value, h->len);
	struct pr_buf *b = args_begin(a, OID_TEXT);
	char id[37];

	(void)pr_uuid_print(m->id, id);
	pr_buf_printf(b, "{\"causation-id\":\"%s\",\"correlation-id\":", id);
	if (plain)
		pr_buf_json(b, h->value, h->len);
	else
		pr_buf_json(b, id, strlen(id));
	pr_buf_puts(b, "}");
	args_end(a);
}

static void add_publish(struct tx *t, const struct work *w, const char *type, size_t type_n,
	const char *suffix, const char *payload, size_t payload_n)
{
	struct args *a = begin_publish(t, w, type, type_n, suffix);

	args_text_n(a, payload, payload_n);
	put_carried(a, w->m);
	(void)tx_add(t, a, sql_lane_publish, 0);
}

/* With the message's payload: a tombstone, or one that is no JSON, goes as the bytes it is. */
static void add_undo_event(struct tx *t, const struct work *w, const char *type)
{
	const struct message *m = w->m;
	struct args *a;

	if (m->json) {
		add_publish(t, w, type, strlen(type), "", m->payload, m->payload_len);
		return;
	}
	a = begin_publish(t, w, type, strlen(type), "");
	args_bytes(a, m->payload, m->payload_len);
	put_carried(a, m);
	(void)tx_add(t, a, sql_lane_publish_bytes, 0);
}

int undoes(const struct lane *l)
{
	return l->c->ops->undoes || l->c->conf->handler.undo_function || l->c->conf->handler.undo ||
	       l->c->conf->handler.undo_event;
}

/* With the dead letter goes word that it failed, and what undoes it, in the same transaction. */
static void add_undo(struct tx *t, const struct work *w)
{
	const struct lane *l = t->l;
	const struct message *m = w->m;
	struct pr_buf b = { 0 };

	if (!undoes(l) || !w->v.undo)
		return;
	if (l->c->ops->statement && (l->c->ops->undoes || l->c->conf->handler.undo_function)) {
		struct args *a = tx_args(t);

		message_put_array(args_begin(a, l->types.message_array), &l->types,
			(struct message *const[]){ w->m }, 1);
		args_end(a);
		t->handler_at = tx_add(t, a, l->c->ops->statement(l->handler, OP_UNDO), 0);
	}
	put_failed_payload(&b, l, w);
	if (has_plain_type(m))
		add_publish(t, w, m->type, m->type_len, "Failed", b.s, b.len);
	else
		add_publish(t, w, "Event", strlen("Event"), "Failed", b.s, b.len);
	if (l->c->conf->handler.undo_event)
		add_undo_event(t, w, l->c->conf->handler.undo_event);
	pr_buf_free(&b);
}

/* The first n, with which all is well. */
static void add_gone(struct tx *t, size_t n)
{
	struct args *a;

	if (n == 0)
		return;
	a = tx_args(t);
	args_array(a, OID_INT8_ARRAY, OID_INT8, n);
	for (size_t i = 0; i < n; i++)
		args_element_int8(a, t->w[i].m->parked);
	args_end(a);
	t->unpark_at = tx_add(t, a, sql_lane_unpark, 0);
	if (t->w[0].m->dead_letter) { /* comes alone */
		a = tx_args(t);
		args_int(a, t->w[0].m->dead_letter);
		(void)tx_add(t, a, sql_lane_retried, 0);
	}
}

/* Parked messages leave inbox.parked by what became of them; only the last one may not be well. */
static void add_unpark(struct tx *t)
{
	struct work *w = &t->w[t->n - 1];
	int well = !w->skip && !work_is_held(w);
	struct args *a;

	t->last = -1;
	add_gone(t, t->n - (size_t)!well);
	if (well)
		return;
	if (w->v.fate == FATE_BURY)
		add_undo(t, w);
	a = tx_args(t);
	if (w->skip) {
		args_int(a, w->m->parked);
		(void)tx_add(t, a, sql_lane_skip, 0);
	} else {
		t->s[t->s_n++] = held_stmt(t->l, w, a);
	}
}

static void add_noted(struct tx *t)
{
	struct args *a;

	for (size_t i = 0; i < t->n && lane_dedupes(t->l); i++) {
		if (!to_note(&t->w[i]))
			continue;
		a = tx_args(t);
		(void)tx_ids(t, a, to_note);
		(void)tx_add(t, a, sql_lane_sort_out, 0);
		return;
	}
}

void tx_held(struct tx *t)
{
	add_noted(t);
	if (t->n > 0 && t->w[0].m->parked) {
		add_unpark(t);
		return;
	}
	for (size_t i = 0; i < t->n; i++) {
		struct args *a;

		if (!work_is_held(&t->w[i]))
			continue;
		if (t->w[i].v.fate == FATE_BURY)
			add_undo(t, &t->w[i]);
		a = tx_args(t);
		t->s[t->s_n++] = held_stmt(t->l, &t->w[i], a);
	}
}

/* ---------------------------------------------------------------- ids and the handler */

void tx_remember(struct tx *t)
{
	struct args *a;

	if (!lane_dedupes(t->l) || t->m_n == 0)
		return;
	a = tx_args(t);
	(void)tx_ids(t, a, to_remember);
	t->remember_at = tx_add(t, a, sql_lane_remember, SABOTAGE(inbox_outside_transaction));
}

void tx_handler(struct tx *t, const char *sql)
{
	struct args *a;

	if (t->m_n == 0)
		return;
	a = tx_args(t);
	message_put_array(args_begin(a, t->l->types.message_array), &t->l->types, t->m, t->m_n);
	args_end(a);
	t->handler_at = tx_add(t, a, sql, 0);
}
