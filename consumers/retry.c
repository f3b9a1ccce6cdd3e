/* consumers/retry.c -- parked messages on another try: the head of a key alone, then what waits behind it,
 * many in one transaction. Refuses to try a message before its turn, or beside another one when it may have
 * taken a process along.
 *
 * If we die here, at any line: the try was counted before it was made (inbox.parked_begun), on the first
 * message of its batch, with the size of the batch. Whoever comes next goes through that many one by one; who
 * was begun limits.crashes times alone and never ended is of class crash. */
#include "consumers/lane.h"

#include "lib/clock.h"
#include "lib/uuid.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_US      (200 * PR_MS) /* while keys are parked here */
#define LOOK_IDLE_US PR_SEC
#define MOST         "100"     /* due messages of one look */
#define MOST_BYTES   "4194304" /* of the payloads of what is fetched; one that is larger comes alone */
#define FOLLOWERS    500       /* of a key in one transaction */

/* ---------------------------------------------------------------- rows */

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
	free(m->why);
	free(m->trace);
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

/* What it failed of the last time. */
static void read_why(const PGresult *res, int row, struct message *m)
{
	struct outcome why = { 0 };
	const char *class = text_of(res, row, "class"), *code = text_of(res, row, "code"),
		   *reason = text_of(res, row, "reason"), *ignored;

	why.cls = pr_fail_class_parse(class ? class : "", &ignored);
	(void)snprintf(why.code, sizeof(why.code), "%s", code ? code : "");
	(void)snprintf(why.text, sizeof(why.text), "%s", reason ? reason : "");
	message_failed(m, &why);
}

static int is_blocking(const PGresult *res, int row)
{
	const char *s = text_of(res, row, "blocking");

	return s && *s == 't';
}

static int was_begun_alone(const PGresult *res, int row)
{
	return int_of(res, row, "begun") > 0 && int_of(res, row, "batch") == 1;
}

/* ---------------------------------------------------------------- one message */

/* Its last tries never came back. */
static void suspect(struct lane *l, struct message *m, struct work *w, int64_t begun)
{
	struct outcome why = { .cls = PR_FAIL_CRASH };

	if (begun < pr_setting(&l->c->conf->limits.crashes))
		return;
	(void)snprintf(why.text, sizeof(why.text),
		"begun %u times, and the last %lld never finished: it takes the process along", m->attempts,
		(long long)begun);
	decide(l, m, &why, &w->v);
	if (w->v.fate == FATE_PENDING)
		w->v.fate = FATE_PARK;
}

/* A try that a stop cut short says nothing about the message. */
static int unbegin(struct lane *l, const struct message *m, struct pr_err *err)
{
	struct args a = { 0 };
	struct pr_stmt s;
	int rc;

	args_int(&a, m->parked);
	s = args_stmt(&a, sql_lane_parked_unbegun, 1);
	rc = pr_pg_pipeline(l->pg, &s, 1, NULL, err);
	pr_stmt_clear(&s, 1);
	args_free(&a);
	return rc;
}

static void tried_and_failed(struct lane *l, struct work *w, const struct outcome *why)
{
	w->m->attempts++;
	decide(l, w->m, why, &w->v);
	if (w->v.fate != FATE_BURY && w->v.fate != FATE_IGNORE)
		w->v.fate = FATE_PARK;
	if (w->v.delay_us < LOOK_US)
		w->v.delay_us = LOOK_US;
}

/* 1: its key may go on, 0: later, -1: broken. *ret_last: as apply_parked tells it. */
static int try_one(struct lane *l, struct work *w, int *ret_last, struct pr_err *err)
{
	struct outcome why = { 0 };
	enum applied applied = FAILED;
	size_t n;

	for (int tries = 0; tries < 3; tries++) {
		applied = apply_parked(l, w, 1, &n, ret_last, &why, err);
		if (applied == COLLIDED)
			w->v.fate = FATE_SEEN;
		else if (applied == FAILED)
			tried_and_failed(l, w, &why);
		else
			break;
	}
	if (applied == BROKEN)
		return -1;
	if (applied != APPLIED)
		return 0;
	if (w->v.fate == FATE_PENDING)
		return unbegin(l, w->m, err) < 0 ? -1 : 0;
	if (w->v.fate == FATE_HANDLE || w->v.fate == FATE_DONE)
		breaker_close(l);
	return w->v.fate != FATE_PARK;
}

/* What became of the key: it is empty, or what is left of it has to be asked. */
static void key_moved(struct lane *l, const struct message *m, int last)
{
	if (last > 0)
		held_remove(l, m);
	else if (last < 0)
		l->loaded = 0;
}

static int retry_one(struct lane *l, const struct served *s, const PGresult *res, int row, struct message *m,
	int *ret_last, struct pr_err *err)
{
	struct work w = { .m = m, .decoded = 1 };
	const char *request = text_of(res, row, "request");
	int rc;

	m->part = s->part;
	m->lane = s->lane;
	w.skip = request && strcmp(request, "skip") == 0;
	read_why(res, row, m);
	m->suspect = m->why->cls != PR_FAIL_NONE && rule_of(l, m->why)->policy == PR_POLICY_BREAKER;
	if (!request && was_begun_alone(res, row))
		suspect(l, m, &w, int_of(res, row, "begun"));
	rc = try_one(l, &w, ret_last, err);
	if (rc == 1 && is_blocking(res, row))
		key_moved(l, m, *ret_last);
	return rc;
}

/* ---------------------------------------------------------------- what waits behind */

struct followers {
	PGresult *res;
	struct message *m;
	struct work *w;
	size_t n; /* of them go together */
};

static void followers_free(struct followers *f)
{
	for (size_t i = 0; f->m && i < (size_t)PQntuples(f->res); i++)
		message_of_row_release(&f->m[i]);
	free(f->m);
	free(f->w);
	PQclear(f->res);
}

/* Whether nothing is known of it but that it waited. */
static int is_plain(const struct lane *l, const PGresult *res, int row, const struct message *m)
{
	return !text_of(res, row, "request") && int_of(res, row, "begun") == 0 &&
	       (l->c->conf->dedupe != PR_DEDUPE_INBOX || m->id_state == ID_OK);
}

static int fetch_followers(
	struct lane *l, const struct message *head, size_t most, struct followers *f, struct pr_err *err)
{
	struct args a = { 0 };
	struct pr_stmt s;
	int rc;

	args_text(&a, l->c->conf->group);
	args_text(&a, head->topic);
	args_int(&a, head->partition);
	args_bytes(&a, head->key, head->key_len);
	args_int(&a, (int64_t)most);
	args_text(&a, MOST_BYTES);
	s = args_stmt(&a, sql_lane_parked_next, 1);
	rc = pr_pg_pipeline(l->pg, &s, 1, NULL, err);
	f->res = rc == 0 ? s.res : NULL;
	args_free(&a);
	return rc;
}

/* Messages of the rows, and how many of them go together: one, when it may be dangerous. */
static void read_followers(struct lane *l, const struct served *s, struct followers *f)
{
	size_t n = (size_t)PQntuples(f->res);
	int plain = 1;

	f->m = pr_calloc(n + 1, sizeof(*f->m));
	f->w = pr_calloc(n + 1, sizeof(*f->w));
	for (size_t i = 0; i < n; i++) {
		message_of_row(f->res, (int)i, &f->m[i], l->c->conf);
		f->m[i].part = s->part;
		f->m[i].lane = s->lane;
		f->w[i] = (struct work){ .m = &f->m[i], .decoded = 1 };
		plain = plain && is_plain(l, f->res, (int)i, &f->m[i]);
		f->n += (size_t)plain;
	}
	if (f->n == 0 && n > 0)
		f->n = 1;
}

/* f->n of them at once. 1: done, or a part of it is, 0: later, -1: broken, 2: fewer of them. */
static int try_many(struct lane *l, struct followers *f, struct pr_err *err)
{
	struct outcome why = { 0 };
	size_t n;
	int last;

	for (size_t i = 0; i < f->n; i++)
		f->w[i].v = (struct verdict){ .fate = FATE_HANDLE };
	switch (apply_parked(l, f->w, f->n, &n, &last, &why, err)) {
	case APPLIED:
		if (n == 0)
			return unbegin(l, &f->m[0], err) < 0 ? -1 : 0;
		if (n == f->n || f->w[n - 1].v.fate != FATE_PARK)
			key_moved(l, &f->m[0], last);
		return f->w[n - 1].v.fate != FATE_PARK;
	case FAILED:
		if (rule_of(l, &why)->policy != PR_POLICY_BREAKER)
			return 2;
		breaker_open(l, &why, why.retry_after_us);
		return unbegin(l, &f->m[0], err) < 0 ? -1 : 0;
	case COLLIDED:
		return 2;
	case BROKEN:
		return -1;
	default:
		return 0;
	}
}

/* The next ones of the key. What fails together is halved until the culprit is alone; *most follows. 1: there
 * may be more, 0: not now, -1: broken. */
static int some_followers(
	struct lane *l, const struct served *s, const struct message *head, size_t *most, struct pr_err *err)
{
	size_t *careful = keyset_careful(l->keys, head);
	struct followers f = { 0 };
	int rc, last;

	if (!careful)
		return 0; /* that was all of it */
	if (fetch_followers(l, head, *careful > 0 ? 1 : *most, &f, err) < 0)
		return -1;
	read_followers(l, s, &f);
	rc = f.n > 0 ? 2 : 0;
	while (rc == 2 && f.n > 1) {
		rc = try_many(l, &f, err);
		*most = rc == 2 ? (f.n /= 2) : 2 * *most;
	}
	if (rc == 2) {
		*careful -= *careful > 0;
		rc = retry_one(l, s, f.res, 0, &f.m[0], &last, err);
		*most = rc > 0 ? 2 * *most : 1;
	}
	followers_free(&f);
	return rc;
}

static int retry_followers(
	struct lane *l, const struct served *s, const struct message *head, int64_t until, struct pr_err *err)
{
	size_t batch = (size_t)pr_setting(&l->c->conf->limits.batch_events);
	size_t bound = batch < FOLLOWERS ? batch : FOLLOWERS, most = bound;
	int rc = 1;

	while (rc > 0 && pr_mono_us() < until && !atomic_load(&l->c->stopping) && l->loaded &&
		atomic_load(&l->c->breaker_probe_us) == 0) {
		rc = some_followers(l, s, head, &most, err);
		most = most < bound ? most : bound;
	}
	return rc < 0 ? -1 : 0;
}

/* ---------------------------------------------------------------- what is due */

/* The batch that began with it took the process along: those behind it go by themselves too. */
static void be_careful(struct lane *l, const PGresult *res, int row, const struct message *m)
{
	size_t *careful = keyset_careful(l->keys, m);
	int64_t batch = int_of(res, row, "batch");

	if (careful && int_of(res, row, "begun") > 0 && batch > 1)
		*careful = (size_t)batch - 1;
}

/* Not while its part ends: the next one's lanes will find it. */
static int retry_row(struct lane *l, const PGresult *res, int row, int64_t until, struct pr_err *err)
{
	const struct served *s = served_of(l, res, row);
	struct message m;
	int rc, last = 0;

	if (!s || !part_enter(s->part))
		return 0;
	message_of_row(res, row, &m, l->c->conf);
	if (is_blocking(res, row))
		be_careful(l, res, row, &m);
	rc = retry_one(l, s, res, row, &m, &last, err);
	if (rc == 1 && is_blocking(res, row) && m.key && last <= 0 &&
		retry_followers(l, s, &m, until, err) < 0)
		rc = -1;
	message_of_row_release(&m);
	part_leave(s->part);
	return rc;
}

int held_retry(struct lane *l, int64_t until, struct pr_err *err)
{
	uint64_t request = atomic_load(&l->c->request);
	int64_t now = pr_mono_us(), wait_us;
	PGresult *res;
	int did = 0, rc = 0;

	if (l->served_n == 0 || (!l->probing && atomic_load(&l->c->breaker_probe_us) > now) ||
		(request == l->request_seen && now < l->look_us))
		return 0;
	l->request_seen = request;
	res = held_ask(l, sql_lane_parked_due, (const char *const[]){ MOST, MOST_BYTES }, err);
	if (!res)
		return -1;
	/* While the breaker is open the first of them is the probe. */
	for (int i = 0; i < PQntuples(res) && rc >= 0 && !atomic_load(&l->c->stopping); i++) {
		if (!breaker_lets_go(l, &wait_us))
			break;
		rc = retry_row(l, res, i, until, err);
		did |= rc > 0;
	}
	PQclear(res);
	/* What waited behind is due now. */
	l->look_us = did ? 0 : pr_mono_us() + (keyset_count(l->keys) > 0 ? LOOK_US : LOOK_IDLE_US);
	return rc < 0 ? -1 : did;
}
