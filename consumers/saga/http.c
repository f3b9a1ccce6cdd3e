/* consumers/saga/http.c -- POST /sagas/{name} starts one, GET /sagas/{id} tells where it stands. A start is a
 * row in the outbox of the engine's own database, as from any service: what was answered with 202 is durable.
 * Refuses to wait for the saga. */
#include "consumers/saga/saga.h"

#include "lib/fault.h"
#include "lib/json_path.h"
#include "lib/uuid.h"
#include "sql.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct worker {
	struct consumer *c;
	struct pr_pg *pg;
};

void *saga_http_open(void *consumer)
{
	struct worker *w = pr_calloc(1, sizeof(*w));

	w->c = consumer;
	return w;
}

void saga_http_close(void *worker)
{
	struct worker *w = worker;

	pr_pg_close(w->pg);
	free(w);
}

static void unavailable(struct pr_response *resp, const struct pr_err *err)
{
	pr_http_problem(resp, 503, "unavailable", "The database does not answer", err->text);
	resp->retry_after = 1;
}

/* The result, or NULL and the response is filled. */
static PGresult *ask(
	struct worker *w, const char *sql, int n, const char *const *params, struct pr_response *resp)
{
	PGresult *res = NULL;
	struct pr_err err;

	if (session_open(&w->pg, w->c, "http", w->c->wake_fd, &err) == 0)
		res = pr_pg_exec(w->pg, sql, n, params, &err);
	if (!res)
		unavailable(resp, &err);
	return res;
}

static void answer(struct pr_response *resp, struct pr_buf *b)
{
	resp->body = b->s; /* taken */
	resp->body_len = b->len;
}

/* ---------------------------------------------------------------- start */

static int is_object(const struct pr_request *req)
{
	const char *v;
	size_t n;

	return pr_json_text(req->body, req->body_len) &&
	       pr_json_at(req->body, req->body_len, "", &v, &n) == 1 && *v == '{';
}

/* The same key is the same saga: a client that did not hear us asks again. */
static const char *id_of_key(const struct saga_def *def, const char *key, char buf[37])
{
	unsigned char id[16];
	char *text;

	if (!key)
		return NULL;
	text = pr_asprintf("POST /sagas/%s %s", def->name, key);
	pr_uuid_of_text(text, strlen(text), id);
	free(text);
	return pr_uuid_print(id, buf);
}

/* The definitions are there: just after a start the lanes may not have read them yet, and 404 would be wrong.
 */
static int is_ready(struct worker *w, struct pr_response *resp)
{
	struct pr_err err;

	if (session_open(&w->pg, w->c, "http", w->c->wake_fd, &err) == 0 &&
		book_open(w->c->conf, w->pg, &err) == 0)
		return 1;
	unavailable(resp, &err);
	return 0;
}

static void start_post(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *name = req->rest;
	const struct saga_def *def;
	struct pr_buf b = { 0 };
	PGresult *res;
	char buf[37];

	(void)ctx;
	if (!is_ready(req->worker, resp))
		return;
	def = book_newest(name, strlen(name));
	if (!def) {
		pr_http_problem(resp, 404, "no-such-saga", "There is no saga of that name", name);
		return;
	}
	if (!is_object(req)) {
		pr_http_problem(resp, 400, "malformed", "The body is not a JSON object",
			"it becomes the saga's data, as in {\"order_id\": \"1234\"}");
		return;
	}
	res = ask(req->worker, sql_engine_http_start, 3,
		(const char *const[]){
			name, req->body, id_of_key(def, pr_http_header(req, "Idempotency-Key"), buf) },
		resp);
	if (!res)
		return;
	/* If we die here, it will be started, and who asked does not know: with his key he may ask again. */
	FAULT(saga_start_before_answer);
	if (PQgetisnull(res, 0, 0)) {
		pr_http_problem(resp, 422, "idempotency-key",
			"The Idempotency-Key was used with another body", "take a new key for another saga");
	} else {
		resp->status = 202;
		(void)snprintf(resp->location, sizeof(resp->location), "/sagas/%s", PQgetvalue(res, 0, 0));
		pr_buf_printf(&b, "{\"saga_id\": \"%s\", \"name\": \"%s\", \"state\": \"RUNNING\"}\n",
			PQgetvalue(res, 0, 0), def->name);
		answer(resp, &b);
	}
	PQclear(res);
}

/* ---------------------------------------------------------------- where it stands */

static void saga_get(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *id = req->rest;
	unsigned char parsed[16];
	struct pr_buf b = { 0 };
	PGresult *res;

	(void)ctx;
	if (pr_uuid_parse(id, strlen(id), parsed) < 0) {
		pr_http_problem(resp, 404, "no-such-saga", "There is no such saga", "its id is a uuid");
		return;
	}
	res = ask(req->worker, sql_engine_http_get, 1, (const char *const[]){ id }, resp);
	if (!res)
		return;
	if (PQntuples(res) == 0) {
		pr_http_problem(resp, 404, "no-such-saga", "There is no such saga",
			"it was never started here, has not arrived yet, or ended longer ago than "
			"handler.keep");
	} else {
		pr_buf_put(&b, PQgetvalue(res, 0, 0), (size_t)PQgetlength(res, 0, 0));
		pr_buf_puts(&b, "\n");
		answer(resp, &b);
	}
	PQclear(res);
}

const struct pr_route saga_routes[] = {
	{ .method = "POST", .path = "/sagas/*", .handler = start_post, .slow = 1 },
	{ .method = "GET", .path = "/sagas/*", .handler = saga_get, .slow = 1 },
	{ 0 },
};
