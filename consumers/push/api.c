/* consumers/push/api.c -- the users' way: what I was told, and a stream of what I am told. Who asks is who
 * his token says, and gets his own. Refuses to keep state of a client: he names the last id he has seen. */
#include "consumers/push/push.h"

#include "lib/health.h"
#include "lib/service.h"
#include "lib/uuid.h"
#include "sql.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIST_DEFAULT 50
#define LIST_MOST    200
#define MISSED_MOST  500 /* and one more is read, to know */
#define MORE_CONNS   256 /* beside the streams' */

struct worker {
	struct api *api;
	struct pr_pg *pg;
};

static void *worker_open(void *api)
{
	struct worker *w = pr_calloc(1, sizeof(*w));

	w->api = api;
	return w;
}

static void worker_close(void *worker)
{
	struct worker *w = worker;

	pr_pg_close(w->pg);
	free(w);
}

static void unavailable(struct pr_response *resp, const char *detail)
{
	pr_http_problem(resp, 503, "unavailable", "Not now", detail);
	resp->retry_after = 1;
}

static PGresult *ask(
	struct worker *w, const char *sql, int n, const char *const *params, struct pr_response *resp)
{
	PGresult *res = NULL;
	struct pr_err err;

	if (session_open(&w->pg, w->api->c, "http", w->api->c->wake_fd, &err) == 0)
		res = pr_pg_exec(w->pg, sql, n, params, &err);
	if (!res)
		unavailable(resp, "the database does not answer");
	return res;
}

/* 0, or -1 and the response is filled. */
static int who_asks(const struct pr_request *req, struct pr_claims *claims, struct pr_response *resp)
{
	struct worker *w = req->worker;
	const char *header = pr_http_header(req, "Authorization");
	enum pr_token_verdict v = PR_TOKEN_MISSING;
	unsigned char user[16];

	if (header && strncasecmp(header, "Bearer ", 7) == 0)
		v = pr_tokens_verify(w->api->tokens, header + 7, strlen(header + 7), 1, claims);
	if (v == PR_TOKEN_OK && pr_uuid_parse(claims->sub, strlen(claims->sub), user) == 0)
		return 0;
	if (v == PR_TOKEN_OK)
		pr_http_problem(resp, 401, "unauthorized", "Unauthorized", "the token names no user");
	else if (v == PR_TOKEN_NO_KEYS)
		unavailable(resp, pr_token_why(v));
	else
		pr_http_problem(resp, 401, "unauthorized", "Unauthorized", pr_token_why(v));
	return -1;
}

/* Digits, from min to max; text NULL: none. -1: it is something else. */
static int number(const char *text, int64_t min, int64_t max, int64_t none, int64_t *ret)
{
	char *end;

	*ret = none;
	if (!text)
		return 0;
	errno = 0;
	*ret = strtoll(text, &end, 10);
	return *text < '0' || *text > '9' || *end || errno || *ret < min || *ret > max ? -1 : 0;
}

static void invalid(struct pr_response *resp, const char *what)
{
	pr_http_problem(resp, 422, "invalid-value", "Invalid value", what);
}

/* ---------------------------------------------------------------- GET /notifications */

static void list_get(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_claims claims;
	int64_t limit, before;
	char most[24], place[24];
	struct pr_buf b = { 0 };
	PGresult *res;

	(void)ctx;
	if (who_asks(req, &claims, resp) < 0)
		return;
	if (number(pr_http_query(req, "limit"), 1, LIST_MOST, LIST_DEFAULT, &limit) < 0) {
		invalid(resp, "limit must be a number from 1 to 200");
		return;
	}
	if (number(pr_http_query(req, "before"), 1, INT64_MAX, INT64_MAX, &before) < 0) {
		invalid(resp, "before must be the next of a former answer");
		return;
	}
	(void)snprintf(most, sizeof(most), "%" PRId64, limit);
	(void)snprintf(place, sizeof(place), "%" PRId64, before);
	res = ask(req->worker, "SELECT push.list($1, $2, $3)", 3,
		(const char *const[]){ claims.sub, place, most }, resp);
	if (!res)
		return;
	pr_buf_puts(&b, PQgetvalue(res, 0, 0));
	pr_buf_puts(&b, "\n");
	pr_respond(resp, &b);
	PQclear(res);
}

/* ---------------------------------------------------------------- GET /notifications/stream */

/* What the client missed, up to what will come by itself: 1 when that is more than goes out at once. -1: the
 * response is filled. */
static int put_missed(const struct pr_request *req, const char *user, int64_t seen, int64_t place,
	struct pr_buf *b, struct pr_response *resp)
{
	char after[24], upto[24];
	PGresult *res;
	int i;

	if (seen < 0 || seen >= place)
		return 0;
	(void)snprintf(after, sizeof(after), "%" PRId64, seen);
	(void)snprintf(upto, sizeof(upto), "%" PRId64, place);
	res = ask(req->worker, sql_push_missed, 3, (const char *const[]){ user, after, upto }, resp);
	if (!res)
		return -1;
	for (i = 0; i < PQntuples(res) && i < MISSED_MOST; i++) {
		if (i > 0 && b->len + (size_t)PQgetlength(res, i, 2) + 100 > PUSH_STREAM_BYTES / 2)
			break;
		stream_put(b, PQgetvalue(res, i, 1), PQgetvalue(res, i, 2));
	}
	i = i < PQntuples(res);
	PQclear(res);
	return i;
}

/* A browser's EventSource sends it by itself; who begins may name one in the query. -1: none. */
static int last_seen(const struct pr_request *req, int64_t *ret)
{
	const char *text = pr_http_header(req, "Last-Event-ID");

	if (!text || !*text)
		text = pr_http_query(req, "last_event_id");
	return number(text, 0, INT64_MAX, -1, ret);
}

static void stream_get(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct api *api = ((struct worker *)req->worker)->api;
	struct pr_buf b = { 0 };
	struct pr_claims claims;
	struct pr_stream *out;
	struct stream *one;
	int64_t seen, place;
	int more;

	(void)ctx;
	if (who_asks(req, &claims, resp) < 0)
		return;
	if (last_seen(req, &seen) < 0) {
		invalid(resp, "Last-Event-ID must be an id of this stream");
		return;
	}
	out = pr_stream_new(PUSH_STREAM_BYTES);
	resp->stream = out;
	one = streams_open(api->streams, claims.sub, claims.expires, out, &place);
	if (!one) {
		unavailable(resp, "too many streams are open");
		resp->retry_after = 5;
		return;
	}
	pr_buf_puts(&b, "retry: 2000\n: the newest come as they are sent\n\n");
	more = put_missed(req, claims.sub, seen, place, &b, resp);
	if (more < 0) {
		streams_ready(api->streams, one, NULL, 0, 0);
	} else {
		resp->content_type = "text/event-stream";
		streams_ready(api->streams, one, b.s, b.len, more);
	}
	pr_buf_free(&b);
}

/* ---------------------------------------------------------------- the rest */

static void openapi_get(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->cache_control = "max-age=300";
	resp->body = pr_strdup(json_push_openapi);
	resp->body_len = strlen(resp->body);
}

int api_open(struct api *api, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = api->c->conf;
	const char **origins = pr_calloc(conf->push.origins.n + 1, sizeof(*origins));
	const struct pr_route routes[] = {
		{ "GET", "/notifications", list_get, NULL, 1, 1 },
		{ "GET", "/notifications/stream", stream_get, NULL, 1, 1 },
		{ "GET", "/healthz", pr_page_healthz, api->c, 1, 0 },
		{ "GET", "/metrics", health_page_metrics, api->c, 1, 0 },
		{ "GET", "/openapi.json", openapi_get, NULL, 1, 0 },
		{ 0 },
	};
	struct pr_http_opts opts = { .listen = conf->push.listen,
		.guarded = 1,
		.max_connections = (unsigned)conf->push.streams + MORE_CONNS,
		.origins = origins,
		.workers = 4,
		.worker_open = worker_open,
		.worker_close = worker_close,
		.worker_ctx = api };
	int rc;

	for (size_t i = 0; i < conf->push.origins.n; i++)
		origins[i] = conf->push.origins.v[i];
	rc = pr_http_start(&opts, routes, &api->http, err);
	free(origins);
	return rc;
}

void api_close(struct api *api)
{
	pr_http_stop(api->http);
	api->http = NULL;
}
