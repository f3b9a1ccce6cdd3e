/* consumers/held.c -- what is held back: the parked keys of the served parts, and the statements that park
 * and bury. Refuses to forget a key while something of it is parked. */
#include "consumers/lane.h"
#include "consumers/outcome.h"

#include "lib/clock.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- keys */

/* Tells the others how many keys this lane holds back. */
static void show_keys(struct lane *l, size_t before)
{
	atomic_fetch_add(
		&l->c->parked_keys, keyset_count(l->keys) - before); /* unsigned: less is a wrap around */
	if (may_park(l))
		health_trouble(l->c, TROUBLE_PARKED, NULL);
}

void held_add(struct lane *l, const struct message *m)
{
	size_t before = keyset_count(l->keys);

	keyset_add(l->keys, m);
	show_keys(l, before);
	l->look_us = 0;
}

void held_remove(struct lane *l, const struct message *m)
{
	size_t before = keyset_count(l->keys);

	keyset_remove(l->keys, m);
	show_keys(l, before);
}

/* ---------------------------------------------------------------- what the served parts hold back */

/* group, topics, partitions, lanes, lane counts of what is served. */
static void put_served(const struct lane *l, struct args *a)
{
	args_text(a, l->c->conf->group);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, l->served_n);
	for (size_t i = 0; i < l->served_n; i++)
		args_element(a, l->served[i].part->topic, strlen(l->served[i].part->topic));
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->served_n);
	for (size_t i = 0; i < l->served_n; i++)
		args_element_int4(a, l->served[i].part->partition);
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->served_n);
	for (size_t i = 0; i < l->served_n; i++)
		args_element_int4(a, l->served[i].lane);
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, l->served_n);
	for (size_t i = 0; i < l->served_n; i++)
		args_element_int4(a, l->served[i].part->lane_count);
	args_end(a);
}

/* most: NULL, or how many messages and how many bytes of them. */
PGresult *held_ask(struct lane *l, const char *sql, const char *const most[2], struct pr_err *err)
{
	struct args a = { 0 };
	struct pr_stmt s;
	PGresult *res = NULL;

	put_served(l, &a);
	for (int i = 0; most && i < 2; i++)
		args_text(&a, most[i]);
	s = args_stmt(&a, sql, 1);
	if (pr_pg_pipeline(l->pg, &s, 1, NULL, err) == 0)
		res = s.res;
	args_free(&a);
	return res;
}

void held_forget(struct lane *l)
{
	size_t before = keyset_count(l->keys);

	keyset_clear(l->keys);
	show_keys(l, before);
}

int held_load(struct lane *l, struct pr_err *err)
{
	PGresult *res;
	struct message m = { 0 };
	unsigned char *key;
	size_t before = keyset_count(l->keys);

	res = held_ask(l, sql_lane_parked_keys, NULL, err);
	if (!res)
		return -1;
	keyset_clear(l->keys);
	for (int i = 0; i < PQntuples(res); i++) {
		m.topic = PQgetvalue(res, i, 0);
		m.partition = atoi(PQgetvalue(res, i, 1));
		key = PQunescapeBytea((const unsigned char *)PQgetvalue(res, i, 2), &m.key_len);
		m.key = (const char *)key;
		keyset_add(l->keys, &m);
		PQfreemem(key);
	}
	PQclear(res);
	show_keys(l, before);
	l->look_us = 0;
	return 0;
}

/* ---------------------------------------------------------------- statements */

static void put_message(struct args *a, const struct lane *l, const struct message *m)
{
	char time[40] = "";
	struct pr_buf *b;

	args_text(a, l->c->conf->group);
	args_text(a, m->topic);
	args_int(a, m->partition);
	args_int(a, m->offset);
	args_int(a, message_lane_hash(m));
	b = args_begin(a, OID_TEXT);
	if (m->key)
		message_put_key(b, m);
	args_end(a);
	a->null[a->n - 1] = m->key == NULL;
	args_bytes(a, m->key, m->key_len);
	args_text(a, m->id_state == ID_MISSING ? NULL : m->id_text);
	if (m->id_state == ID_OK)
		args_uuid(a, m->id);
	else
		args_binary(a, OID_UUID, NULL, 0);
	if (pr_utf8_text(m->type, m->type_len))
		args_text_n(a, m->type, m->type_len);
	else
		args_text(a, NULL);
	b = args_begin(a, OID_TEXT);
	message_put_headers(b, m);
	args_end(a);
	args_bytes(a, m->payload, m->payload_len);
	if (m->time_us >= 0)
		(void)pr_rfc3339(m->time_us, time);
	args_text(a, m->time_us >= 0 ? time : NULL);
	args_int(a, m->hash);
}

static void put_why(struct args *a, const struct message *m, const struct outcome *why)
{
	char text[sizeof(why->text)];

	args_text(a, pr_fail_class_str(why->cls));
	args_text(a, why->code);
	outcome_text(text, sizeof(text), why->text); /* it may have been cut anywhere */
	args_text(a, text);
	args_int(a, m->attempts);
}

static void put_delay(struct args *a, int64_t us)
{
	struct pr_buf *b = args_begin(a, 0);

	a->format[a->n] = 0;
	pr_buf_printf(b, "%" PRId64 " microseconds", us);
	args_end(a);
}

struct pr_stmt held_begun_stmt(const struct lane *l, const struct work *w, size_t n, struct args *a)
{
	struct message tried = *w->m;

	tried.attempts++;
	args_int(a, tried.parked);
	args_int(a, (int64_t)n);
	put_delay(a, delay_of(rule_of(l, message_why(w->m)), &tried, message_why(w->m)));
	return args_stmt(a, sql_lane_parked_begun, 1);
}

static void put_entry(struct args *a, int64_t entry)
{
	if (entry)
		args_int(a, entry);
	else
		args_text(a, NULL);
}

struct pr_stmt held_stmt(const struct lane *l, const struct work *w, struct args *a)
{
	static const struct outcome behind = { .text = "behind an earlier message of its key" };

	if (w->v.fate == FATE_PARK && w->m->parked) {
		args_int(a, w->m->parked);
		put_why(a, w->m, message_why(w->m));
		put_delay(a, w->v.delay_us);
		return args_stmt(a, sql_lane_parked_failed, 0);
	}
	put_message(a, l, w->m);
	if (w->v.fate == FATE_BEHIND) {
		put_why(a, w->m, &behind);
		args_text(a, NULL);
		return args_stmt(a, sql_lane_park, 0);
	}
	put_why(a, w->m, message_why(w->m));
	if (w->v.fate == FATE_PARK) {
		put_delay(a, w->v.delay_us);
		return args_stmt(a, sql_lane_park, 0);
	}
	put_entry(a, w->m->parked);
	put_entry(a, w->m->dead_letter);
	return args_stmt(a, sql_lane_bury, 0);
}
