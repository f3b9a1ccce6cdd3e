/* consumers/held.c -- what is held back: the parked keys in memory, their retries in order, and the
 * statements that park and bury. Refuses to try a message whose key has an earlier one waiting. */
#include "consumers/lane.h"
#include "consumers/outcome.h"

#include "lib/clock.h"
#include "lib/uuid.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_US      (200 * PR_MS) /* while keys are parked here */
#define LOOK_IDLE_US PR_SEC
#define MOST         "100"     /* due messages of one look */
#define MOST_BYTES   "4194304" /* of their payloads; one that is larger comes alone */

/* ---------------------------------------------------------------- parked keys */

struct parked_key {
	struct parked_key *next;
	int32_t partition;
	size_t topic_len, key_len;
	char text[]; /* topic, then key */
};

struct keyset {
	struct parked_key **slot;
	size_t slots, n;
};

struct keyset *keyset_new(void)
{
	struct keyset *k = pr_calloc(1, sizeof(*k));

	k->slots = 64;
	k->slot = pr_calloc(k->slots, sizeof(struct parked_key *));
	return k;
}

static void clear(struct keyset *k)
{
	struct parked_key *p;

	for (size_t i = 0; i < k->slots; i++) {
		while ((p = k->slot[i])) {
			k->slot[i] = p->next;
			free(p);
		}
	}
	k->n = 0;
}

void keyset_free(struct keyset *k)
{
	clear(k);
	free(k->slot);
	free(k);
}

size_t keyset_count(const struct keyset *k)
{
	return k->n;
}

/* FNV-1a, 64 bits. Source: Fowler, Noll, Vo; draft-eastlake-fnv. */
static uint64_t hash_of(const char *key, size_t n, int32_t partition)
{
	uint64_t h = 14695981039346656037ULL ^ (uint32_t)partition;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)key[i]) * 1099511628211ULL;
	return h ^ h >> 32;
}

static int matches(const struct parked_key *p, const struct message *m)
{
	return p->partition == m->partition && p->key_len == m->key_len && p->topic_len == strlen(m->topic) &&
	       memcmp(p->text, m->topic, p->topic_len) == 0 &&
	       memcmp(p->text + p->topic_len, m->key, m->key_len) == 0;
}

static struct parked_key **find(const struct keyset *k, const struct message *m)
{
	struct parked_key **at = &k->slot[hash_of(m->key, m->key_len, m->partition) % k->slots];

	while (*at && !matches(*at, m))
		at = &(*at)->next;
	return at;
}

/* A message without a key is in nobody's way. */
int keyset_has(const struct keyset *k, const struct message *m)
{
	return m->key && k->n > 0 && *find(k, m) != NULL;
}

static void grow(struct keyset *k)
{
	struct keyset more = { .slots = 4 * k->slots };
	struct parked_key *p;
	uint64_t h;

	more.slot = pr_calloc(more.slots, sizeof(struct parked_key *));
	for (size_t i = 0; i < k->slots; i++) {
		while ((p = k->slot[i])) {
			k->slot[i] = p->next;
			h = hash_of(p->text + p->topic_len, p->key_len, p->partition) % more.slots;
			p->next = more.slot[h];
			more.slot[h] = p;
		}
	}
	free(k->slot);
	k->slot = more.slot;
	k->slots = more.slots;
}

void keyset_add(struct keyset *k, const struct message *m)
{
	struct parked_key **at, *p;
	size_t topic_len = strlen(m->topic);

	if (!m->key)
		return;
	if (k->n >= 2 * k->slots)
		grow(k);
	at = find(k, m);
	if (*at)
		return;
	p = pr_malloc(sizeof(*p) + topic_len + m->key_len + 1);
	*p = (struct parked_key){ .partition = m->partition, .topic_len = topic_len, .key_len = m->key_len };
	memcpy(p->text, m->topic, topic_len);
	memcpy(p->text + topic_len, m->key, m->key_len);
	*at = p;
	k->n++;
}

void keyset_remove(struct keyset *k, const struct message *m)
{
	struct parked_key **at, *p;

	if (!m->key)
		return;
	at = find(k, m);
	p = *at;
	if (!p)
		return;
	*at = p->next;
	free(p);
	k->n--;
}

/* Tells the others how many keys this lane holds back. */
static void show_keys(struct lane *l, size_t before)
{
	atomic_fetch_add(&l->c->parked_keys, l->keys->n - before); /* unsigned: less is a wrap around */
	if (may_park(l))
		health_trouble(l->c, TROUBLE_PARKED, NULL);
}

void held_add(struct lane *l, const struct message *m)
{
	size_t before = l->keys->n;

	keyset_add(l->keys, m);
	show_keys(l, before);
	l->look_us = 0;
}

static void held_remove(struct lane *l, const struct message *m)
{
	size_t before = l->keys->n;

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
static PGresult *ask_served(struct lane *l, const char *sql, const char *const most[2], struct pr_err *err)
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
	size_t before = l->keys->n;

	clear(l->keys);
	show_keys(l, before);
}

int held_load(struct lane *l, struct pr_err *err)
{
	PGresult *res;
	struct message m = { 0 };
	unsigned char *key;
	size_t before = l->keys->n;

	res = ask_served(l, sql_lane_parked_keys, NULL, err);
	if (!res)
		return -1;
	clear(l->keys);
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

/* ---------------------------------------------------------------- retries */

static int column(const PGresult *res, const char *name)
{
	return PQfnumber(res, name);
}

static const char *text_of(const PGresult *res, int row, const char *name)
{
	return PQgetisnull(res, row, column(res, name)) ? NULL : PQgetvalue(res, row, column(res, name));
}

static int64_t int_of(const PGresult *res, int row, const char *name)
{
	const char *s = text_of(res, row, name);

	return s ? strtoll(s, NULL, 10) : 0;
}

static char *bytes_of(const PGresult *res, int row, const char *name, size_t *ret_len)
{
	const char *s = text_of(res, row, name);
	unsigned char *raw;
	char *own;

	*ret_len = 0;
	if (!s)
		return NULL;
	raw = PQunescapeBytea((const unsigned char *)s, ret_len);
	own = pr_malloc(*ret_len + 1);
	memcpy(own, raw, *ret_len);
	PQfreemem(raw);
	return own;
}

/* The message of a row of inbox.parked; the row stays the caller's and must outlive it. */
static void message_of_row(
	const PGresult *res, int row, struct message *m, const struct pr_consumer_conf *conf)
{
	memset(m, 0, sizeof(*m));
	m->topic = text_of(res, row, "topic");
	m->partition = (int32_t)int_of(res, row, "partition");
	m->offset = int_of(res, row, "message_offset");
	m->time_us = text_of(res, row, "time_us") ? int_of(res, row, "time_us") : -1;
	m->key = bytes_of(res, row, "key_bytes", &m->key_len);
	m->payload = bytes_of(res, row, "payload", &m->payload_len);
	m->parked = int_of(res, row, "entry");
	m->dead_letter = int_of(res, row, "dead_letter");
	m->attempts = (unsigned)int_of(res, row, "attempts");
	m->bytes = sizeof(*m) + m->key_len + m->payload_len;
	message_read_headers(m, text_of(res, row, "headers") ? text_of(res, row, "headers") : "{}");
	message_decode(m, conf);
	if (text_of(res, row, "message_id") && /* an edited one has an id of its own */
		pr_uuid_parse(
			text_of(res, row, "message_id"), strlen(text_of(res, row, "message_id")), m->id) == 0)
		m->id_state = ID_OK;
	if (text_of(res, row, "id"))
		(void)snprintf(m->id_text, sizeof(m->id_text), "%s", text_of(res, row, "id"));
}

static void message_of_row_release(struct message *m)
{
	free((void *)(uintptr_t)m->key);
	free((void *)(uintptr_t)m->payload);
	free(m->headers);
	free(m->header_bytes);
}

static const struct served *served_of(const struct lane *l, const PGresult *res, int row)
{
	int64_t hash = int_of(res, row, "lane_hash") & 0x7fffffff;

	for (size_t i = 0; i < l->served_n; i++) {
		const struct part *p = l->served[i].part;

		if (strcmp(p->topic, text_of(res, row, "topic")) == 0 &&
			p->partition == int_of(res, row, "partition") &&
			hash % p->lane_count == l->served[i].lane && !atomic_load(&p->dead))
			return &l->served[i];
	}
	return NULL;
}

/* More tries were begun than the rule grants: the last ones never came back. */
static void suspect(struct lane *l, struct message *m, struct work *w)
{
	const struct pr_rule *rule = rule_of(l, &w->v.why);
	struct outcome why = { .cls = PR_FAIL_CRASH };

	if (w->v.why.cls == PR_FAIL_CRASH || rule->attempts == 0 ||
		m->attempts < (unsigned)(rule->attempts - 1 + pr_setting(&l->c->conf->limits.crashes)))
		return;
	(void)snprintf(why.text, sizeof(why.text),
		"begun %u times, and the last never finished: it takes the process along", m->attempts);
	decide(l, m, &why, &w->v);
	if (w->v.fate == FATE_PENDING)
		w->v.fate = FATE_PARK;
}

/* One due message. 1: its key may go on, 0: later, -1: broken. */
static int retry_one(struct lane *l, const struct served *s, const PGresult *res, int row, struct pr_err *err)
{
	struct message m;
	struct work w = { .m = &m, .decoded = 1 };
	struct outcome why = { 0 };
	const char *ignored, *request = text_of(res, row, "request");
	int blocking = text_of(res, row, "blocking") && *text_of(res, row, "blocking") == 't', last = 0,
	    rc = 0;

	message_of_row(res, row, &m, l->c->conf);
	m.part = s->part;
	m.lane = s->lane;
	w.skip = request && strcmp(request, "skip") == 0;
	w.v.why.cls =
		pr_fail_class_parse(text_of(res, row, "class") ? text_of(res, row, "class") : "", &ignored);
	(void)snprintf(w.v.why.code, sizeof(w.v.why.code), "%s",
		text_of(res, row, "code") ? text_of(res, row, "code") : "");
	(void)snprintf(w.v.why.text, sizeof(w.v.why.text), "%s",
		text_of(res, row, "reason") ? text_of(res, row, "reason") : "");
	m.suspect = w.v.why.cls != PR_FAIL_NONE && rule_of(l, &w.v.why)->policy == PR_POLICY_BREAKER;
	if (!request)
		suspect(l, &m, &w);
	for (int tries = 0; tries < 3; tries++) {
		enum applied applied = apply_parked(l, &w, &last, &why, err);

		if (applied == COLLIDED) {
			w.v.fate = FATE_SEEN;
			continue;
		}
		if (applied == FAILED) {
			m.attempts++;
			decide(l, &m, &why, &w.v);
			if (w.v.fate != FATE_BURY && w.v.fate != FATE_IGNORE)
				w.v.fate = FATE_PARK;
			if (w.v.delay_us < LOOK_US)
				w.v.delay_us = LOOK_US;
			continue;
		}
		rc = applied == APPLIED ? w.v.fate != FATE_PARK : applied == BROKEN ? -1 : 0;
		if (applied == APPLIED && (w.v.fate == FATE_HANDLE || w.v.fate == FATE_DONE))
			breaker_close(l);
		break;
	}
	if (rc == 1 && blocking && last > 0)
		held_remove(l, &m);
	if (rc == 1 && last < 0)
		l->loaded = 0; /* what is left of the key has to be asked */
	message_of_row_release(&m);
	return rc;
}

/* Not while its part ends: the next one's lanes will find it. */
static int retry_row(struct lane *l, const PGresult *res, int row, struct pr_err *err)
{
	const struct served *s = served_of(l, res, row);
	int rc;

	if (!s || !part_enter(s->part))
		return 0;
	rc = retry_one(l, s, res, row, err);
	part_leave(s->part);
	return rc;
}

int held_retry(struct lane *l, struct pr_err *err)
{
	uint64_t request = atomic_load(&l->c->request);
	int64_t now = pr_mono_us(), wait_us;
	PGresult *res;
	int did = 0, rc = 0;

	if (l->served_n == 0 || (!l->probing && atomic_load(&l->c->breaker_probe_us) > now) ||
		(request == l->request_seen && now < l->look_us))
		return 0;
	l->request_seen = request;
	res = ask_served(l, sql_lane_parked_due, (const char *const[]){ MOST, MOST_BYTES }, err);
	if (!res)
		return -1;
	/* While the breaker is open the first of them is the probe. */
	for (int i = 0; i < PQntuples(res) && rc >= 0 && !atomic_load(&l->c->stopping); i++) {
		if (!breaker_lets_go(l, &wait_us))
			break;
		rc = retry_row(l, res, i, err);
		did |= rc > 0;
	}
	PQclear(res);
	/* What waited behind is due now. */
	l->look_us = did ? 0 : pr_mono_us() + (l->keys->n > 0 ? LOOK_US : LOOK_IDLE_US);
	return rc < 0 ? -1 : did;
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

static void put_why(struct args *a, const struct work *w)
{
	char text[sizeof(w->v.why.text)];

	args_text(a, pr_fail_class_str(w->v.why.cls));
	args_text(a, w->v.why.code);
	outcome_text(text, sizeof(text), w->v.why.text); /* it may have been cut anywhere */
	args_text(a, text);
	args_int(a, w->m->attempts);
}

static void put_delay(struct args *a, int64_t us)
{
	struct pr_buf *b = args_begin(a, 0);

	a->format[a->n] = 0;
	pr_buf_printf(b, "%" PRId64 " microseconds", us);
	args_end(a);
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
	struct work behind = *w;

	if (w->v.fate == FATE_PARK && w->m->parked) {
		args_int(a, w->m->parked);
		put_why(a, w);
		put_delay(a, w->v.delay_us);
		return args_stmt(a, sql_lane_parked_failed, 0);
	}
	put_message(a, l, w->m);
	if (w->v.fate == FATE_BEHIND) {
		behind.v.why = (struct outcome){ .text = "behind an earlier message of its key" };
		put_why(a, &behind);
		args_text(a, NULL);
		return args_stmt(a, sql_lane_park, 0);
	}
	put_why(a, w);
	if (w->v.fate == FATE_PARK) {
		put_delay(a, w->v.delay_us);
		return args_stmt(a, sql_lane_park, 0);
	}
	put_entry(a, w->m->parked);
	put_entry(a, w->m->dead_letter);
	return args_stmt(a, sql_lane_bury, 0);
}
