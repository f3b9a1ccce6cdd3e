/* lib/service_many.c -- asks Postgres for many requests at once: one statement, one transaction, one round
 * trip. What fails for one is that one's: its row says so. What fails for all was undone for all: each is
 * then asked by itself, so that a bad one among them fails alone. Refuses to try again what may have been
 * done.
 *
 * With Idempotency-Key the statement claims all keys first; those that are not new (told by position) leave
 * the batch, and service_call.c says what becomes of them. */
#include "lib/service_inner.h"

#include "lib/fault.h"
#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

#define KNOWN  100  /* keys that one PK001 names */
#define TEXTS  1009 /* text[] */
#define BYTEAS 1001 /* bytea[] */

/* ---- arrays, as Postgres writes them ---- */

static void put_quoted(struct pr_buf *b, const char *s)
{
	pr_buf_put(b, "\"", 1);
	for (size_t n; *s; s += n) {
		n = strcspn(s, "\"\\");
		pr_buf_put(b, s, n);
		if (s[n]) {
			pr_buf_put(b, "\\", 1);
			pr_buf_put(b, s + n, 1);
			n++;
		}
	}
	pr_buf_put(b, "\"", 1);
}

static char *texts(struct pr_call *const *calls, int n, int field)
{
	struct pr_buf b = { 0 };

	for (int i = 0; i < n; i++) {
		const char *s = calls[i]->param[field];

		pr_buf_put(&b, i ? "," : "{", 1);
		if (s)
			put_quoted(&b, s);
		else
			pr_buf_puts(&b, "NULL");
	}
	pr_buf_puts(&b, "}");
	return b.s;
}

/* The requests' traceparents; NULL: none has one. */
static char *traces(struct pr_call *const *calls, int n)
{
	char one[PR_TRACEPARENT_LEN + 1];
	struct pr_buf b = { 0 };
	int any = 0;

	for (int i = 0; i < n; i++) {
		int has = service_trace(calls[i], one) == 0;

		any |= has;
		pr_buf_printf(&b, "%s%s", i ? "," : "{", has ? one : "NULL");
	}
	pr_buf_puts(&b, "}");
	if (any)
		return b.s;
	pr_buf_free(&b);
	return NULL;
}

/* NULL: no element is set. */
static char *sums(unsigned char (*sum)[32], const char *is_set, int n)
{
	struct pr_buf b = { 0 };

	if (!memchr(is_set, 1, (size_t)n))
		return NULL;
	for (int i = 0; i < n; i++) {
		pr_buf_put(&b, i ? "," : "{", 1);
		if (!is_set[i]) {
			pr_buf_puts(&b, "NULL");
			continue;
		}
		pr_buf_puts(&b, "\"\\\\x");
		for (size_t k = 0; k < 32; k++)
			pr_buf_printf(&b, "%02x", sum[i][k]);
		pr_buf_puts(&b, "\"");
	}
	pr_buf_puts(&b, "}");
	return b.s;
}

/* ---- one batch ---- */

/* Those that are asked together; at[i]: the place of the i-th in what the caller gave. */
struct batch {
	struct pr_call **call;
	int *at;
	char *keyed;
	unsigned char (*sum)[32], (*print)[32];
	int n;
};

static void batch_init(struct batch *b, int room)
{
	size_t n = (size_t)room;

	*b = (struct batch){ .call = pr_calloc(n, sizeof(struct pr_call *)),
		.at = pr_calloc(n, sizeof(*b->at)),
		.keyed = pr_calloc(n, 1),
		.sum = pr_calloc(n, sizeof(*b->sum)),
		.print = pr_calloc(n, sizeof(*b->print)) };
}

static void batch_free(struct batch *b)
{
	free(b->call);
	free(b->at);
	free(b->keyed);
	free(b->sum);
	free(b->print);
}

static void add(struct batch *b, struct pr_call *call, int at)
{
	const char *key = service_key(call);
	int i = b->n;

	if (key && service_key_sums(call, key, b->sum[i], b->print[i]))
		return;
	b->keyed[i] = key != NULL;
	b->call[i] = call;
	b->at[i] = at;
	b->n++;
}

static void leave_alone(struct batch *b)
{
	for (int i = 0; i < b->n; i++)
		b->call[i]->resp->alone = 1;
	b->n = 0;
}

/* "3,17": these are not to be asked with the others. */
static void drop_known(struct batch *b, const char *list)
{
	char *end;
	int n = 0;

	for (long k; (k = strtol(list, &end, 10)) >= 1; list = *end ? end + 1 : end)
		if (k <= b->n)
			b->call[k - 1]->resp->alone = 1;
	for (int i = 0; i < b->n; i++) {
		if (b->call[i]->resp->alone)
			continue;
		b->call[n] = b->call[i];
		b->at[n] = b->at[i];
		b->keyed[n] = b->keyed[i];
		memcpy(b->sum[n], b->sum[i], sizeof(*b->sum));
		memcpy(b->print[n], b->print[i], sizeof(*b->print));
		n++;
	}
	b->n = n;
}

static int ask(struct batch *b, const struct compiled *c, PGresult **ret, int *ret_alive, struct pr_err *err)
{
	char *values[PR_FIELDS_MAX + 2];
	Oid types[PR_FIELDS_MAX + 2];
	int n = c->fields, rc;
	struct pr_stmt stmt = { .sql = c->many_once, .types = types, .sync = 1 };
	struct worker *w = b->call[0]->req->worker;
	char *trace = traces(b->call, b->n);

	for (int i = 0; i < n; i++) {
		values[i] = texts(b->call, b->n, i);
		types[i] = TEXTS;
	}
	values[n] = sums(b->sum, b->keyed, b->n);
	if (values[n]) {
		types[n] = types[n + 1] = BYTEAS;
		values[n + 1] = sums(b->print, b->keyed, b->n);
		stmt.sql = c->many_keyed;
		n += 2;
	}
	stmt.n = n;
	stmt.values = (const char *const *)values;
	w->setting = "service.traces";
	w->value = trace;
	rc = service_run(w, &stmt, ret_alive, err);
	w->value = NULL;
	free(trace);
	*ret = stmt.res;
	for (int i = 0; i < n; i++)
		free(values[i]);
	return rc;
}

static void copy(char *to, size_t size, const PGresult *res, int row, int column)
{
	(void)snprintf(to, size, "%s", PQgetvalue(res, row, column));
}

/* 1: the caller goes on with its answer. A row that says neither is the use case's 404. */
static int take_row(struct pr_call *call, const PGresult *res, int row)
{
	struct pr_err err = { .kind = PR_REJECT };

	if (PQgetisnull(res, row, 2)) {
		if (!PQgetisnull(res, row, 1))
			call->answer = pr_strdup(PQgetvalue(res, row, 1));
		return 1;
	}
	copy(err.code, sizeof(err.code), res, row, 2);
	copy(err.text, sizeof(err.text), res, row, 3);
	copy(err.hint, sizeof(err.hint), res, row, 4);
	if (strncmp(err.code, "PA", 2) == 0)
		call->resp->alone = 1;
	else
		service_fail(call, &err);
	return 0;
}

static void take(struct batch *b, const PGresult *res, char *ret_done)
{
	char *said = pr_calloc((size_t)b->n, 1);

	for (int row = 0; row < PQntuples(res); row++) {
		int i = atoi(PQgetvalue(res, row, 0)) - 1;

		if (i < 0 || i >= b->n)
			continue;
		said[i] = 1;
		ret_done[b->at[i]] = (char)take_row(b->call[i], res, row);
	}
	for (int i = 0; i < b->n; i++) {
		if (said[i] && (!ret_done[b->at[i]] || b->call[i]->answer))
			continue;
		if (said[i])
			(void)pr_call_problem(b->call[i], 404, "not-found", "there is no such thing");
		else
			(void)pr_call_problem(
				b->call[i], 500, "internal", "no answer was given to this request");
		ret_done[b->at[i]] = 0;
	}
	free(said);
}

/* Again without those whose key was known, as often as it takes to name all of them. */
static void run(struct batch *b, const struct compiled *c, char *ret_done)
{
	PGresult *res = NULL;
	struct pr_err err = { 0 };
	int alive = 0, rc = -1;

	for (int tries = 2 + b->n / KNOWN; rc < 0 && b->n > 0 && tries > 0; tries--) {
		rc = ask(b, c, &res, &alive, &err);
		if (rc == 0 || !alive)
			break;
		if (strcmp(err.code, "PK001") == 0)
			drop_known(b, err.text);
		else
			leave_alone(b);
	}
	if (rc < 0 && b->n > 0 && alive) {
		leave_alone(b);
	} else if (rc < 0) {
		for (int i = 0; i < b->n; i++)
			service_fail(b->call[i], &err);
	} else {
		/* If we die here all of them are done, with what is remembered of each, and nobody was told.
		 */
		FAULT(service_many_answered);
		take(b, res, ret_done);
		PQclear(res);
	}
}

void service_ask_many(struct pr_call **calls, int n, const struct compiled *c, char *ret_done)
{
	struct batch b;

	if (n == 0)
		return;
	batch_init(&b, n);
	for (int i = 0; i < n; i++)
		add(&b, calls[i], i);
	if (b.n > 0)
		run(&b, c, ret_done);
	batch_free(&b);
}
