/* consumers/apply.c -- one transaction: what a batch does becomes durable together with how far we are.
 * Refuses to commit anything when a position is not where we left it, or belongs to somebody else.
 *
 * In the database (sql, c): ids, effects, what is held back and the positions are one commit, sent in one
 * round trip. Outside (http, exec): effects first, then ids, what is held back and positions in one commit; a
 * crash in between repeats effects, and the receiver has the message's id to tell. */
#include "consumers/lane.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define MAX_AGGREGATE_ID 65536 /* bytes that outbox.publish takes */
#define MAX_TYPE         1000  /* of 1024, with "Failed" */
#define UNDO_AGAIN_US    (10 * PR_SEC)
#define HELD_MOST        9 /* messages held back in one transaction: each is up to three of the 32 statements */

/* A transaction being put together. */
struct tx {
	struct lane *l;
	struct work *w; /* w[0..n) */
	size_t n;
	struct message **m; /* those with FATE_HANDLE */
	size_t *index;      /* of m[i] in w */
	size_t m_n;
	struct args args[3 * HELD_MOST + 6];
	struct pr_stmt s[3 * HELD_MOST + 8];
	int args_n, s_n;
	int handler_at, remember_at, unpark_at; /* statements; -1: none */
	int last;                               /* of a parked message: as apply_parked tells it */
};

static int dedupes(const struct lane *l)
{
	return l->c->conf->dedupe == PR_DEDUPE_INBOX;
}

/* ---------------------------------------------------------------- what becomes of whom */

static void undecodable(struct lane *l, struct work *w)
{
	struct outcome why = { .cls = PR_FAIL_DECODE, .code = "id" };

	if (w->m->id_state == ID_MISSING)
		(void)snprintf(
			why.text, sizeof(why.text), "the record has no message id (%s)", l->c->conf->id);
	else
		(void)snprintf(
			why.text, sizeof(why.text), "the message id \"%s\" is not a uuid", w->m->id_text);
	w->m->attempts++;
	decide(l, w->m, &why, &w->v);
	if (w->v.fate == FATE_PENDING) /* no try will give it an id */
		w->v.fate = FATE_BURY;
}

static void sort_one(struct lane *l, struct work *w)
{
	if (!w->decoded) {
		message_decode(w->m, l->c->conf);
		w->decoded = 1;
	}
	switch (w->v.fate) {
	case FATE_IGNORE:
	case FATE_PARK:
	case FATE_BURY:
	case FATE_DONE:
	case FATE_SEEN:
		return; /* decided */
	default:
		w->v.fate = FATE_HANDLE;
	}
	if (!message_wanted(w->m, l->c->conf))
		w->v.fate = FATE_FILTERED;
	else if (dedupes(l) && w->m->id_state != ID_OK)
		undecodable(l, w);
	if (w->v.fate != FATE_FILTERED && keyset_has(l->keys, w->m) && !SABOTAGE(parked_key_passes))
		w->v.fate = FATE_BEHIND;
}

static int is_held(const struct work *w)
{
	return w->v.fate == FATE_BEHIND || w->v.fate == FATE_PARK || w->v.fate == FATE_BURY;
}

/* Two of one id in a batch: the second one comes in the next, when the first is in inbox.seen. Open
 * addressing over twice as many slots. */
static size_t cut_at_twin(const struct lane *l, size_t n)
{
	size_t slots = 2 * n + 1, at;
	uint32_t *table;

	if (!dedupes(l) || n < 2)
		return n;
	table = pr_calloc(slots, sizeof(*table));
	for (size_t i = 0; i < n; i++) {
		const struct message *m = l->work[i].m;
		uint64_t hash;

		if (l->work[i].v.fate != FATE_HANDLE)
			continue;
		memcpy(&hash, m->id + 8, sizeof(hash)); /* the random half */
		for (at = hash % slots; table[at]; at = (at + 1) % slots)
			if (memcmp(l->work[table[at] - 1].m->id, m->id, 16) == 0)
				n = i;
		if (i < n)
			table[at] = (uint32_t)i + 1;
	}
	free(table);
	return n;
}

/* Other threads wrote these messages and their bytes: they are far from this core. */
static void fetch_ahead(const struct lane *l, size_t i, size_t n)
{
	const struct message *m;

	if (i + 8 < n)
		__builtin_prefetch(l->work[i + 8].m);
	if (i + 4 >= n)
		return;
	m = l->work[i + 4].m;
	__builtin_prefetch(m->rkm);
	for (size_t at = 0; at < m->payload_len && at < 256; at += 64)
		__builtin_prefetch(m->payload + at);
}

/* The fates of work[0..n), and how many of them this transaction takes. */
static size_t sort(struct lane *l, size_t n)
{
	size_t held = 0;

	for (size_t i = 0; i < n; i++) {
		fetch_ahead(l, i, n);
		sort_one(l, &l->work[i]);
		if (!is_held(&l->work[i]))
			continue;
		/* Who comes after the first of a key that is parked is behind it once that is committed; and
		 * a message that is buried with an undo is alone. */
		if (l->work[i].v.fate != FATE_BEHIND || ++held == HELD_MOST)
			return l->work[i].v.fate == FATE_BURY && i > 0 ? i : cut_at_twin(l, i + 1);
	}
	return cut_at_twin(l, n);
}

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

static void tx_init(struct tx *t, struct lane *l, struct work *w, size_t n)
{
	memset(t, 0, sizeof(*t));
	t->l = l;
	t->w = w;
	t->n = n;
	t->m = pr_calloc(n + 1, sizeof(struct message *));
	t->index = pr_calloc(n + 1, sizeof(*t->index));
	t->handler_at = t->remember_at = t->unpark_at = -1;
	collect(t);
}

static void tx_statements_free(struct tx *t)
{
	for (int i = 0; i < t->args_n; i++)
		args_free(&t->args[i]);
	memset(t->args, 0, sizeof(t->args));
	t->args_n = t->s_n = 0;
	t->handler_at = t->remember_at = t->unpark_at = -1;
}

static void tx_free(struct tx *t)
{
	tx_statements_free(t);
	free(t->m);
	free(t->index);
}

static struct args *new_args(struct tx *t)
{
	return &t->args[t->args_n++];
}

static int add(struct tx *t, struct args *a, const char *sql, int sync)
{
	t->s[t->s_n] = args_stmt(a, sql, sync);
	return t->s_n++;
}

static int add_plain(struct tx *t, const char *sql, int sync)
{
	t->s[t->s_n] = (struct pr_stmt){ .sql = sql, .sync = sync };
	return t->s_n++;
}

/* ---------------------------------------------------------------- positions */

static struct step *step_of(struct lane *l, struct part *p, int lane)
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

static int by_place(const void *x, const void *y)
{
	const struct step *a = x, *b = y;
	int rc = strcmp(a->part->topic, b->part->topic);

	if (rc == 0)
		rc = a->part->partition < b->part->partition ? -1 : a->part->partition > b->part->partition;
	return rc ? rc : a->lane - b->lane;
}

/* Positions behind w[0..n); behind all that was read when these are all there is. */
static void take_steps(struct lane *l, const struct work *w, size_t n)
{
	l->steps_n = 0;
	for (size_t i = 0; i < n; i++) {
		struct step *s;

		if (w[i].m->replay)
			continue;
		s = step_of(l, w[i].m->part, w[i].m->lane);
		if (!w[i].m->parked && w[i].m->offset >= s->next)
			s->next = w[i].m->offset + 1;
	}
	for (size_t i = 0; i < l->served_n && l->level && w == l->work && n == l->work_n; i++)
		for (size_t j = 0; j < l->steps_n; j++)
			if (l->steps[j].part == l->served[i].part && l->steps[j].lane == l->served[i].lane &&
				l->served[i].through > l->steps[j].next)
				l->steps[j].next = l->served[i].through;
	qsort(l->steps, l->steps_n, sizeof(*l->steps), by_place);
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

static void add_advance(struct tx *t, int sync)
{
	struct lane *l = t->l;
	struct args *a;

	if (l->steps_n == 0) { /* only replayed messages: no position moves, but the transaction ends */
		(void)add_plain(t, "SELECT 1", sync);
		return;
	}
	a = new_args(t);
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
	(void)add(t, a, SABOTAGE(no_epoch_fence) ? sql_lane_advance_unfenced : sql_lane_advance, sync);
}

/* First offset and number of this batch's messages, per position: counted before the handler may die of them.
 */
static void add_attempt(struct tx *t)
{
	struct lane *l = t->l;
	struct args *a;

	if (t->w[0].m->parked) { /* the same for a parked one: due later, unless this try succeeds */
		struct work tried = t->w[0];

		tried.v.fate = FATE_PARK;
		tried.m->attempts++;
		tried.v.delay_us = delay_of(rule_of(l, &tried.v.why), tried.m, &tried.v.why);
		a = new_args(t);
		t->s[t->s_n] = held_stmt(l, &tried, a);
		t->s[t->s_n++].sync = 1;
		tried.m->attempts--;
		return;
	}
	if (l->steps_n == 0)
		return;
	a = new_args(t);
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
	(void)add(t, a, sql_lane_attempt, 1);
}

/* ---------------------------------------------------------------- ids */

/* Parameters group, ids, hashes of the messages that pick chooses; returns how many. */
static size_t put_ids(const struct tx *t, struct args *a, int (*pick)(const struct work *w))
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

static int to_look(const struct work *w)
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

static int to_record(const struct work *w)
{
	return w->v.fate == FATE_DONE && !w->recorded;
}

static void altered(struct lane *l, struct work *w)
{
	struct outcome why = { .cls = PR_FAIL_DECODE, .code = "altered" };

	(void)snprintf(why.text, sizeof(why.text), "the message id %s came before with another payload",
		w->m->id_text);
	w->m->attempts++;
	decide(l, w->m, &why, &w->v);
	if (w->v.fate == FATE_PENDING)
		w->v.fate = FATE_BURY;
}

/* Asks which of them were handled before; their fates follow. */
static int look(struct lane *l, struct work *w, size_t n, struct pr_err *err)
{
	struct args a = { 0 };
	struct tx t = { .l = l, .w = w, .n = n };
	struct pr_stmt s;
	size_t row = 0;
	int rc = 0;

	if (put_ids(&t, &a, to_look) > 0) {
		s = args_stmt(&a, sql_lane_look, 1);
		rc = pr_pg_pipeline(l->pg, &s, 1, NULL, err);
		for (size_t i = 0; i < n && rc == 0; i++) {
			int said;

			if (!to_look(&w[i]))
				continue;
			said = atoi(PQgetvalue(s.res, (int)row++, 0));
			w[i].looked = 1;
			if (said == 1)
				w[i].v.fate = FATE_SEEN;
			else if (said == 2)
				altered(l, &w[i]);
		}
		pr_stmt_clear(&s, 1);
	}
	args_free(&a);
	return rc;
}

/* ---------------------------------------------------------------- what is held back */

/* "outbox.event.reservation" -> "reservation"; any other topic is its own aggregate type. */
static const char *aggregate_of(const char *topic)
{
	static const char prefix[] = "outbox.event.";

	return strncmp(topic, prefix, sizeof(prefix) - 1) == 0 ? topic + sizeof(prefix) - 1 : topic;
}

static void put_failed_payload(struct pr_buf *b, const struct work *w)
{
	pr_buf_puts(b, "{\"id\":");
	pr_buf_json(b, w->m->id_text, strlen(w->m->id_text));
	pr_buf_puts(b, ",\"topic\":");
	pr_buf_json(b, w->m->topic, strlen(w->m->topic));
	pr_buf_printf(b, ",\"partition\":%d,\"offset\":%lld,\"attempts\":%u,\"class\":\"%s\",\"code\":",
		(int)w->m->partition, (long long)w->m->offset, w->m->attempts,
		pr_fail_class_str(w->v.why.cls));
	pr_buf_json(b, w->v.why.code, strlen(w->v.why.code));
	pr_buf_puts(b, ",\"cause\":");
	pr_buf_json(b, w->v.why.text, strlen(w->v.why.text));
	pr_buf_puts(b, "}");
}

/* What outbox.publish takes: the key as text, or the record's place when that is too little or too much. */
static void put_aggregate_id(struct args *a, const struct message *m)
{
	struct pr_buf *b = args_begin(a, OID_TEXT);
	size_t at = b->len;

	if (m->key)
		message_put_key(b, m);
	if (b->len == at || b->len - at > MAX_AGGREGATE_ID) {
		b->len = at;
		pr_buf_printf(b, "%s-%d-%lld", m->topic, (int)m->partition, (long long)m->offset);
	}
	args_end(a);
}

/* A type that the name of an event can be made of. */
static int has_plain_type(const struct message *m)
{
	for (size_t i = 0; i < m->type_len; i++)
		if ((unsigned char)m->type[i] < ' ' || m->type[i] == 127)
			return 0;
	return m->type_len > 0 && m->type_len <= MAX_TYPE && pr_utf8_text(m->type, m->type_len);
}

static void add_publish(struct tx *t, const struct work *w, const char *type, size_t type_n,
	const char *suffix, const char *payload, size_t payload_n)
{
	struct args *a = new_args(t);
	struct pr_buf *b;

	args_text(a, aggregate_of(w->m->topic));
	put_aggregate_id(a, w->m);
	b = args_begin(a, OID_TEXT);
	pr_buf_put(b, type, type_n);
	pr_buf_puts(b, suffix);
	args_end(a);
	args_text_n(a, payload, payload_n);
	(void)add(t, a, sql_lane_publish, 0);
}

static int undoes(const struct lane *l)
{
	return l->c->conf->handler.undo_function || l->c->conf->handler.undo ||
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
	if (l->c->ops->statement && l->c->conf->handler.undo_function) {
		struct args *a = new_args(t);

		message_put_array(args_begin(a, l->types.message_array), &l->types,
			(struct message *const[]){ w->m }, 1);
		args_end(a);
		t->handler_at = add(t, a, l->c->ops->statement(l->handler, OP_UNDO), 0);
	}
	put_failed_payload(&b, w);
	if (has_plain_type(m))
		add_publish(t, w, m->type, m->type_len, "Failed", b.s, b.len);
	else
		add_publish(t, w, "Event", strlen("Event"), "Failed", b.s, b.len);
	if (l->c->conf->handler.undo_event && m->json)
		add_publish(t, w, l->c->conf->handler.undo_event, strlen(l->c->conf->handler.undo_event), "",
			m->payload, m->payload_len);
	pr_buf_free(&b);
}

/* A parked message leaves inbox.parked by what became of it. */
static void add_unpark(struct tx *t)
{
	struct work *w = t->w;
	struct args *a = new_args(t);

	t->last = -1;
	if (w->skip) {
		args_int(a, w->m->parked);
		(void)add(t, a, sql_lane_skip, 0);
		return;
	}
	if (w->v.fate == FATE_BURY)
		add_undo(t, w);
	if (w->v.fate == FATE_BURY || w->v.fate == FATE_PARK) {
		t->s[t->s_n++] = held_stmt(t->l, w, a);
		return;
	}
	args_int(a, w->m->parked);
	t->unpark_at = add(t, a, sql_lane_unpark, 0);
	if (w->m->dead_letter) {
		a = new_args(t);
		args_int(a, w->m->dead_letter);
		(void)add(t, a, sql_lane_retried, 0);
	}
}

static void add_noted(struct tx *t)
{
	struct args *a;

	for (size_t i = 0; i < t->n && dedupes(t->l); i++) {
		if (!to_note(&t->w[i]))
			continue;
		a = new_args(t);
		(void)put_ids(t, a, to_note);
		(void)add(t, a, sql_lane_sort_out, 0);
		return;
	}
}

static void add_held(struct tx *t)
{
	add_noted(t);
	if (t->n == 1 && t->w[0].m->parked) {
		add_unpark(t);
		return;
	}
	for (size_t i = 0; i < t->n; i++) {
		struct args *a;

		if (!is_held(&t->w[i]))
			continue;
		if (t->w[i].v.fate == FATE_BURY)
			add_undo(t, &t->w[i]);
		a = new_args(t);
		t->s[t->s_n++] = held_stmt(t->l, &t->w[i], a);
	}
}

/* ---------------------------------------------------------------- after the commit */

/* One line a second and lane: the tables have all of them. */
static void tell(struct lane *l, const struct work *w)
{
	char code[64];

	if (!pr_log_due(&l->told_us, PR_SEC))
		return;
	(void)snprintf(code, sizeof(code), "%s%s%s", pr_fail_class_str(w->v.why.cls),
		w->v.why.code[0] ? ":" : "", w->v.why.code);
	pr_log(PR_WARN, w->v.fate == FATE_BURY ? "dead letter" : "key parked", KS("topic", w->m->topic),
		KI("partition", w->m->partition), KI("offset", w->m->offset), KS("code", code),
		KI("attempts", w->m->attempts), KS("err", w->v.why.text));
}

static void account(struct lane *l, const struct work *w, size_t n)
{
	static const enum handled as[] = { [FATE_HANDLE] = HANDLED,
		[FATE_DONE] = HANDLED,
		[FATE_SEEN] = DUPLICATE,
		[FATE_FILTERED] = FILTERED,
		[FATE_IGNORE] = IGNORED,
		[FATE_BEHIND] = PARKED,
		[FATE_PARK] = PARKED,
		[FATE_BURY] = DEAD_LETTER };
	uint64_t count[HANDLED_COUNT] = { 0 };

	for (size_t i = 0; i < n; i++) {
		count[as[w[i].v.fate]]++;
		if (w[i].v.fate == FATE_PARK && !w[i].m->parked)
			held_add(l, w[i].m);
		if ((w[i].v.fate == FATE_PARK && !w[i].m->parked) || w[i].v.fate == FATE_BURY)
			tell(l, &w[i]);
		if (w[i].m->replay)
			replay_done(w[i].m->replay, w[i].v.fate == FATE_SEEN);
	}
	for (int i = 0; i < HANDLED_COUNT; i++)
		if (count[i])
			atomic_fetch_add(&l->c->handled[i], count[i]);
	pr_observe(l->c->m.batch_events, (double)n);
}

/* ---------------------------------------------------------------- what a failed statement means */

static int is_code(const struct pr_err *err, const char *code)
{
	return strcmp(err->code, code) == 0;
}

static void outcome_of(const struct pr_err *err, struct outcome *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->cls = is_code(err, "57014") || is_code(err, "timeout") ? PR_FAIL_TIMEOUT : PR_FAIL_SQLSTATE;
	if (ret->cls == PR_FAIL_SQLSTATE)
		(void)snprintf(ret->code, sizeof(ret->code), "%s", err->code);
	(void)snprintf(ret->text, sizeof(ret->text), "%s", err->text);
}

static enum applied judge(const struct tx *t, int failed, struct outcome *ret, const struct pr_err *err)
{
	if (!pr_pg_ok(t->l->pg))
		return BROKEN;
	if (failed >= 0 && failed != t->handler_at && is_code(err, "PRF01"))
		return FENCED;
	if (failed >= 0 && failed == t->remember_at && is_code(err, "PRD01"))
		return COLLIDED;
	/* A transaction's own end fails by what the handler deferred. */
	if (failed >= 0 && t->handler_at >= 0 &&
		(failed == t->handler_at || (failed == t->s_n - 1 && err->kind == PR_REJECT))) {
		outcome_of(err, ret);
		return FAILED;
	}
	return BROKEN;
}

/* A message whose undo fails is parked, to be seen; then it is handled, and perhaps undone, once more. */
static void undo_failed(struct work *w, const struct outcome *why)
{
	w->v.fate = FATE_PARK;
	w->v.delay_us = UNDO_AGAIN_US;
	(void)snprintf(w->v.why.text, sizeof(w->v.why.text), "its undo failed: %.500s", why->text);
}

/* ---------------------------------------------------------------- effects inside */

static void add_remember(struct tx *t)
{
	struct args *a;

	if (!dedupes(t->l) || t->m_n == 0)
		return;
	a = new_args(t);
	(void)put_ids(t, a, to_remember);
	t->remember_at = add(t, a, sql_lane_remember, SABOTAGE(inbox_outside_transaction));
}

static void add_handler(struct tx *t, const char *sql)
{
	struct args *a;

	if (t->m_n == 0)
		return;
	a = new_args(t);
	message_put_array(args_begin(a, t->l->types.message_array), &t->l->types, t->m, t->m_n);
	args_end(a);
	t->handler_at = add(t, a, sql, 0);
}

/* Sends what was put together. */
static enum applied submit(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	int failed, rc;

	rc = pr_pg_pipeline(t->l->pg, t->s, t->s_n, &failed, err);
	if (rc == 0 && t->unpark_at >= 0)
		t->last = PQgetisnull(t->s[t->unpark_at].res, 0, 0);
	pr_stmt_clear(t->s, t->s_n);
	return rc == 0 ? APPLIED : judge(t, failed, ret, err);
}

static enum applied one_round_trip(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	if (t->m_n > 0)
		add_attempt(t);
	if (SABOTAGE(offset_before_effect))
		add_advance(t, 1);
	add_remember(t);
	add_handler(t, t->l->c->ops->statement(t->l->handler, OP_DO));
	add_held(t);
	if (SABOTAGE(offset_before_effect))
		(void)add_plain(t, "SELECT 1", 1);
	else
		add_advance(t, 1);
	pr_pg_timeout(t->l->pg, t->l->c->conf->handler.timeout_us + t->l->c->conf->database.timeout_us);
	return submit(t, ret, err);
}

/* A handler that needs the connection itself: begin, its turn, the rest and COMMIT. */
static enum applied in_steps(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	struct outcome *out = pr_calloc(t->n + 1, sizeof(*out));
	enum op op = OP_DO;
	enum applied rc;

	if (t->m_n > 0)
		add_attempt(t);
	(void)add_plain(t, "BEGIN", 0);
	add_remember(t);
	(void)add_plain(t, "SELECT 1", 1);
	rc = submit(t, ret, err);
	if (rc != APPLIED)
		goto out;
	if (t->m_n == 0 && t->n > 0 && t->w[t->n - 1].v.fate == FATE_BURY && t->w[t->n - 1].v.undo &&
		l->c->conf->handler.undo) {
		t->m[t->m_n++] = t->w[t->n - 1].m;
		op = OP_UNDO;
	}
	if (t->m_n > 0 && l->c->ops->run(l->handler, l->pg, op, t->m, t->m_n, out, err) < 0) {
		rc = BROKEN;
		goto out;
	}
	for (size_t i = 0; i < t->m_n; i++) {
		if (!out[i].cls)
			continue;
		*ret = out[i];
		rc = FAILED;
		goto out;
	}
	tx_statements_free(t);
	add_held(t);
	add_advance(t, 0);
	(void)add_plain(t, "COMMIT", 1);
	/* If we die here, nothing of it has happened: the transaction ends with our connection. */
	FAULT(handled_before_commit);
	t->handler_at = t->s_n - 1; /* what COMMIT refuses was deferred by the handler */
	rc = submit(t, ret, err);
out:
	free(out);
	if (rc != APPLIED && pr_pg_ok(l->pg) && PQtransactionStatus(pr_pg_conn(l->pg)) != PQTRANS_IDLE &&
		pr_pg_run(l->pg, "ROLLBACK", 0, NULL, err) < 0)
		return BROKEN;
	return rc;
}

static enum applied inside(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	enum applied (*run)(struct tx *, struct outcome *, struct pr_err *) =
		t->l->c->ops->statement ? one_round_trip : in_steps;
	enum applied rc;

	/* If we die here, nothing has happened. */
	FAULT(before_transaction);
	rc = run(t, ret, err);
	if (rc != FAILED || t->n != 1 || t->w[0].v.fate != FATE_BURY)
		return rc;
	undo_failed(&t->w[0], ret);
	tx_statements_free(t);
	t->m_n = 0;
	return run(t, ret, err);
}

/* ---------------------------------------------------------------- effects outside */

/* Fates after the handler's answers. */
static void take_answers(struct tx *t, const struct outcome *out)
{
	for (size_t i = 0; i < t->m_n; i++) {
		struct work *w = &t->w[t->index[i]];

		if (out[i].cls == PR_FAIL_NONE) {
			w->v.fate = FATE_DONE;
		} else if (out[i].cls == PR_FAIL_REPLY && strcmp(out[i].code, "behind") == 0) {
			w->v = (struct verdict){ .fate = FATE_PENDING };
		} else {
			w->m->attempts++;
			decide(t->l, w->m, &out[i], &w->v);
			if (w->m->parked && w->v.fate == FATE_PENDING)
				w->v.fate = FATE_PARK;
			atomic_fetch_add(&t->l->c->retried, w->v.fate == FATE_PENDING);
		}
	}
}

/* The prefix that can be stepped over: up to the first that is tried again; and the one behind a parked key
 * must see that it is. */
static size_t settled(struct tx *t)
{
	size_t held = 0;

	for (size_t i = 0; i < t->n; i++) {
		if (t->w[i].v.fate == FATE_PENDING)
			return i;
		if (is_held(&t->w[i]) && (t->w[i].v.fate == FATE_PARK || ++held == HELD_MOST))
			return i + 1;
	}
	return t->n;
}

/* What undoes a buried message outside; 0 when it could not be: then the message is parked, to be seen. An
 * undo that a stop cut short did not fail: the message comes again. */
static int undone_outside(struct tx *t, struct work *w, struct pr_err *err)
{
	struct outcome out = { 0 };

	if (!w->v.undo || !t->l->c->conf->handler.undo)
		return 1;
	if (t->l->c->ops->run(t->l->handler, t->l->pg, OP_UNDO, &w->m, 1, &out, err) == 0 && !out.cls)
		return 1;
	if (out.cls == PR_FAIL_REPLY && strcmp(out.code, "behind") == 0) {
		w->v = (struct verdict){ .fate = FATE_PENDING };
		return 0;
	}
	undo_failed(w, &out);
	return 0;
}

static enum applied record(struct tx *t, size_t n, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	size_t ids;
	struct args *a;

	tx_statements_free(t);
	take_steps(l, t->w, n);
	if (dedupes(l)) {
		a = new_args(t);
		ids = put_ids(t, a, to_record);
		if (ids > 0)
			(void)add(t, a, sql_lane_sort_out, 0);
		else if (n == 0)
			return APPLIED;
	} else if (n == 0) {
		return APPLIED;
	}
	t->n = n;
	add_held(t);
	add_advance(t, 1);
	/* If we die here, the effects are there and nothing knows: they happen again, with the same message
	 * id. */
	FAULT(handled_before_recorded);
	return submit(t, ret, err);
}

static enum applied outside(struct tx *t, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	struct outcome *out = pr_calloc(t->m_n + 1, sizeof(*out));
	size_t all = t->n, n;
	enum applied rc = BROKEN;

	if (t->m_n > 0) {
		add_attempt(t);
		if (t->s_n > 0 && submit(t, ret, err) != APPLIED)
			goto out;
		if (l->c->ops->run(l->handler, l->pg, OP_DO, t->m, t->m_n, out, err) < 0)
			goto out;
		take_answers(t, out);
	}
	n = settled(t);
	for (size_t i = 0; i < n; i++) {
		if (t->w[i].v.fate == FATE_BURY && !undone_outside(t, &t->w[i], err)) {
			n = t->w[i].v.fate == FATE_PENDING ? i : i + 1;
			break;
		}
	}
	rc = record(t, n, ret, err);
	for (size_t i = 0; i < all && rc == APPLIED; i++)
		if (t->w[i].v.fate == FATE_DONE)
			t->w[i].recorded = 1;
	if (n < all && t->w[n].v.fate == FATE_PENDING)
		l->not_before_us = pr_mono_us() + t->w[n].v.delay_us;
	*ret_n = n;
out:
	free(out);
	return rc;
}

/* ---------------------------------------------------------------- the way in */

/* Of the oldest message of the batch, which came first. */
static void time_it(struct lane *l, int64_t began_us, const struct message *first)
{
	pr_observe(l->c->m.handle_seconds, (double)(pr_mono_us() - began_us) / (double)PR_SEC);
	if (first->time_us >= 0 && !first->replay)
		pr_observe(l->c->m.delay_seconds, (double)(pr_wall_us() - first->time_us) / (double)PR_SEC);
}

enum applied apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	int ask = dedupes(l) && (l->look_first || !l->c->ops->in_transaction);
	int64_t began_us = pr_mono_us();
	enum applied rc;
	struct tx t;

	n = sort(l, n);
	if (ask) {
		if (look(l, l->work, n, err) < 0)
			return BROKEN;
		n = sort(l, n); /* what was altered is held back */
	}
	tx_init(&t, l, l->work, n);
	take_steps(l, l->work, n);
	*ret_n = n; /* that is what fails, if it does */
	rc = l->c->ops->in_transaction ? inside(&t, ret, err) : outside(&t, ret_n, ret, err);
	if (rc == APPLIED) {
		/* If we die here, all of it is durable: the next owner begins behind it. */
		FAULT(committed_before_memory);
		l->look_first = l->look_first && t.m_n < n;
		account(l, l->work, *ret_n);
		if (*ret_n > 0)
			time_it(l, began_us, l->work[0].m);
	}
	tx_free(&t);
	return rc;
}

enum applied move_idle(struct lane *l, struct pr_err *err)
{
	enum applied rc;
	struct outcome why;
	struct tx t;

	l->steps_n = 0;
	for (size_t i = 0; i < l->served_n; i++)
		if (!atomic_load(&l->served[i].part->dead) && (l->work_n == 0 || l->served[i].settled) &&
			l->served[i].through > l->served[i].part->lane[l->served[i].lane].next)
			step_of(l, l->served[i].part, l->served[i].lane)->next = l->served[i].through;
	if (l->steps_n == 0)
		return APPLIED;
	qsort(l->steps, l->steps_n, sizeof(*l->steps), by_place);
	tx_init(&t, l, l->work, 0);
	add_advance(&t, 1);
	rc = submit(&t, &why, err);
	tx_free(&t);
	return rc;
}

/* The fence is the position, which does not move. */
enum applied apply_parked(
	struct lane *l, struct work *w, int *ret_last, struct outcome *ret, struct pr_err *err)
{
	enum applied rc;
	struct tx t;
	size_t n = 1;

	if (w->skip)
		w->v.fate = FATE_IGNORE;
	else if (dedupes(l) && w->v.fate == FATE_HANDLE && w->m->id_state != ID_OK)
		undecodable(l, w); /* it was parked for what is before it */
	if (dedupes(l) && !l->c->ops->in_transaction && look(l, w, 1, err) < 0)
		return BROKEN;
	tx_init(&t, l, w, 1);
	take_steps(l, w, 1);
	rc = l->c->ops->in_transaction ? inside(&t, ret, err) : outside(&t, &n, ret, err);
	*ret_last = t.last;
	if (rc == APPLIED)
		account(l, w, n);
	if (rc == FENCED)
		lane_fenced(l);
	l->steps_n = 0;
	tx_free(&t);
	return rc;
}
