/* lib/http_exchange.c -- one request's course: its line, its head, its body, the handler here or on a worker,
 * the answer. Refuses a body past its bound while it comes. */
#include "lib/http_inner.h"

#include "lib/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* ---- the answer ---- */

static void add_header(struct MHD_Response *r, const char *name, const char *value)
{
	(void)MHD_add_response_header(r, name, value);
}

static struct MHD_Response *response_new(struct exchange *ex)
{
	struct pr_response *resp = &ex->resp;
	const char *type = resp->content_type ? resp->content_type : "application/json";
	struct MHD_Response *r = resp->stream
					 ? http_stream_response(resp->stream, ex)
					 : MHD_create_response_from_buffer(resp->body ? resp->body_len : 0,
						   resp->body, MHD_RESPMEM_MUST_FREE);
	char seconds[16];

	if (!r)
		return NULL;
	if (resp->body_len > 0 || resp->stream)
		add_header(r, "Content-Type", type);
	resp->body = NULL; /* taken */
	resp->stream = NULL;
	add_header(r, "X-Content-Type-Options", "nosniff");
	add_header(r, "Cache-Control", resp->cache_control ? resp->cache_control : "no-store");
	if (strncmp(type, "text/html", 9) == 0)
		add_header(r, "Content-Security-Policy",
			resp->policy ? resp->policy : "default-src 'self'; frame-ancestors 'none'");
	if (resp->location[0])
		add_header(r, "Location", resp->location);
	if (resp->set_cookie[0])
		add_header(r, "Set-Cookie", resp->set_cookie);
	(void)snprintf(seconds, sizeof(seconds), "%d", resp->retry_after);
	if (resp->retry_after > 0)
		add_header(r, "Retry-After", seconds);
	if (resp->status == 401)
		add_header(r, "WWW-Authenticate", "Bearer realm=\"postrider\"");
	if (resp->status == 405 && ex->allow[0])
		add_header(r, "Allow", ex->allow);
	http_add_origin(ex, r);
	if (ex->close || ex->peer->stream)
		add_header(r, "Connection", "close");
	return r;
}

static enum MHD_Result answer(struct exchange *ex, struct MHD_Connection *conn)
{
	struct MHD_Response *r = response_new(ex);
	enum MHD_Result rc;

	if (!r)
		return MHD_NO;
	rc = MHD_queue_response(conn, ex->resp.status ? (unsigned)ex->resp.status : 200, r);
	MHD_destroy_response(r);
	return rc;
}

/* ---- the request ---- */

/* The first bytes ask for as much as was announced (the head was judged: not more than max_body). */
static void make_room(struct exchange *ex, size_t n)
{
	size_t need = ex->body_len + n + 1, more = ex->body_cap * 2;

	if (need <= ex->body_cap)
		return;
	if (ex->body_cap == 0)
		more = http_content_length(ex->conn) + 1;
	ex->body_cap = more > need ? more : need;
	ex->body = pr_realloc(ex->body, ex->body_cap);
}

static void take_body(struct exchange *ex, const char *data, size_t n)
{
	if (ex->failed) {
		ex->dropped += n;
		return;
	}
	if (n > ex->http->max_body - ex->body_len) {
		ex->dropped = ex->body_len + n;
		http_too_large(ex);
		return;
	}
	make_room(ex, n);
	memcpy(ex->body + ex->body_len, data, n);
	ex->body_len += n;
	ex->body[ex->body_len] = '\0';
}

/* What a prefix route leaves open of the path. */
static const char *rest_of(const struct pr_route *r, const char *path)
{
	size_t n = strlen(r->path);

	return n >= 2 && strcmp(r->path + n - 2, "/*") == 0 ? path + n - 1 : "";
}

static struct pr_request request_of(const struct exchange *ex, void *worker)
{
	return (struct pr_request){ .method = ex->route->method,
		.path = ex->path,
		.rest = rest_of(ex->route, ex->path),
		.body = ex->body ? ex->body : "",
		.body_len = ex->body_len,
		.conn = ex->conn,
		.worker = worker,
		.in_company = http_has_company(ex) };
}

void http_handle(struct exchange *ex, void *worker)
{
	struct pr_request req = request_of(ex, worker);

	ex->route->handler(ex->route->ctx, &req, &ex->resp);
}

void http_handle_many(struct exchange *const *ex, unsigned n, void *worker)
{
	struct pr_request *reqs = pr_calloc(n, sizeof(*reqs));
	struct pr_response **resps = pr_calloc(n, sizeof(struct pr_response *));

	for (unsigned i = 0; i < n; i++) {
		reqs[i] = request_of(ex[i], worker);
		resps[i] = &ex[i]->resp;
	}
	ex[0]->http->work.many(ex[0]->route->ctx, reqs, resps, n);
	free(reqs);
	free(resps);
}

/* To the workers, or back to the client at once. Pushed means: not ours any more. */
static enum MHD_Result to_work(struct exchange *ex)
{
	struct work *w = &ex->loop->http->work;

	if (http_work_reserve(w) < 0) {
		http_refuse(ex, 503, "overloaded", "Too much to do", "too many requests wait for their turn");
		ex->resp.retry_after = 1;
		return answer(ex, ex->conn);
	}
	ex->peer->at_work = 1;
	ex->loop->slow++;
	MHD_suspend_connection(ex->conn);
	http_work_push(w, ex);
	return MHD_YES;
}

/* The client's time runs again: it has the answer to read. */
static enum MHD_Result from_work(struct exchange *ex)
{
	ex->peer->at_work = 0;
	ex->peer->since_us = pr_mono_us();
	return ex->gone ? MHD_NO : answer(ex, ex->conn);
}

/* MHD takes an answer before or after a body, never inside one. This one goes out beside
 * it, if the socket has room, and the connection ends. */
static enum MHD_Result give_up(struct exchange *ex, struct MHD_Connection *conn)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	unsigned status = (unsigned)ex->resp.status;
	char *text = pr_asprintf(
		"HTTP/1.1 %u %s\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
		"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\r\n%s",
		status, MHD_get_reason_phrase_for(status), ex->resp.content_type, ex->resp.body_len,
		ex->resp.body);

	if (ex->http->tls)
		http_tls_send(conn, text, strlen(text));
	else if (info)
		(void)send(info->connect_fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
	free(text);
	return MHD_NO;
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *conn, const char *path, const char *method,
	const char *version, const char *data, size_t *data_len, void **state)
{
	struct exchange *ex = *state;

	(void)cls;
	(void)version;
	if (!ex->begun) {
		ex->path = path;
		ex->peer->asking = 1;
		http_judge(ex, conn, method, path);
		return ex->failed && ex->close ? answer(ex, conn) : MHD_YES;
	}
	if (*data_len > 0) {
		take_body(ex, data, *data_len);
		*data_len = 0;
		return ex->dropped > DISCARD_MAX ? give_up(ex, conn) : MHD_YES;
	}
	if (ex->failed)
		return answer(ex, conn);
	if (!ex->route->slow)
		http_handle(ex, NULL);
	else
		return atomic_load_explicit(&ex->handled, memory_order_acquire) ? from_work(ex) : to_work(ex);
	return answer(ex, conn);
}

void *http_on_target(void *cls, const char *target, struct MHD_Connection *conn)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct exchange *ex = pr_calloc(1, sizeof(*ex));

	ex->loop = cls;
	ex->http = ex->loop->http;
	ex->conn = conn;
	ex->peer = info->socket_context;
	ex->bad_target = !http_target_ok(target);
	return ex;
}

void http_on_completed(
	void *cls, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode how)
{
	struct exchange *ex = *state;

	(void)cls;
	(void)conn;
	(void)how;
	if (!ex)
		return;
	ex->peer->asking = ex->peer->at_work = 0;
	ex->peer->stream = NULL;
	http_stream_drop(ex->resp.stream);
	ex->peer->since_us = pr_mono_us();
	ex->loop->slow -= ex->queued_us > 0;
	free(ex->resp.body);
	free(ex->body);
	free(ex);
	*state = NULL;
}
