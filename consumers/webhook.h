/* consumers/webhook.h -- one request of the http handler: made by webhook_request.c, its answer read and
 * judged by webhook_answer.c; handler_http.c says which and when. */
#ifndef CONSUMERS_WEBHOOK_H
#define CONSUMERS_WEBHOOK_H

#include "consumers/handler.h"
#include "consumers/webhook_sign.h"

#include <curl/curl.h>

/* One of `concurrency` requests; its buffers are used again and again. */
struct request {
	struct handler *h;
	CURL *easy; /* NULL: idle */
	struct curl_slist *headers;
	struct pr_buf text; /* "id.timestamp.body", what is signed; the body is its tail */
	size_t at;          /* the message it carries; NONE: idle */
	size_t head_len, body_len;
	char body[400]; /* how the answer's body begins */
	size_t kept;
	int cut, flooded; /* body, head longer than we read */
	int64_t retry_after_us;
	char problem[CURL_ERROR_SIZE];
};

struct handler {
	struct handler_env env;
	struct webhook_keys *keys; /* NULL: unsigned */
	CURLM *multi;
	struct request *request;
	size_t requests;
	char *where; /* host and port, for people */
};

/* Fills the request anew and gives it to libcurl, which calls back for its answer. -1: it took nothing over.
 */
int webhook_begin(struct request *req, const struct message *m, enum op op);

/* The same with a body that is there already, of many messages; it is copied. */
struct webhook_batch {
	const char *id;       /* what a receiver tells repetitions by: header text */
	const char *type;     /* media type */
	const char *encoding; /* NULL: none */
	const char *body;
	size_t len;
};
int webhook_begin_batch(struct request *req, const struct webhook_batch *batch);

/* A handle with all that is the same for each request; -1: this libcurl cannot do it. */
int webhook_prepare(struct request *req);
void webhook_drop(struct request *req); /* the handle, after it was taken from the multi; accepts none */

/* libcurl's callbacks: head line by line, body piece by piece. */
size_t webhook_on_head(char *line, size_t size, size_t n, void *req);
size_t webhook_on_body(char *data, size_t size, size_t n, void *req);

/* An instance that has nothing under way: env.conf's handler.url, headers, secret, timeout, response_bytes
 * and concurrency say where and how. option: what errors call the place where they stand. webhook_close
 * accepts NULL. */
int webhook_open(const struct handler_env *env, const char *option, struct handler **ret,
	struct pr_err *err) PR_MUSTCHECK;
void webhook_close(struct handler *h);

/* What the end of the request means. Whether there was an answer. */
int webhook_judge(const struct request *req, CURLcode code, struct outcome *out);

#endif
