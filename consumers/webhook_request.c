/* consumers/webhook_request.c -- makes a request of a message: body, headers, signature. Refuses redirects,
 * schemes other than http and https, cookies and a proxy. The request may come again after a crash: the
 * message id goes along as Idempotency-Key and webhook-id. */
#include "consumers/webhook.h"

#include "lib/clock.h"
#include "lib/traceparent.h"
#include "lib/uuid.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MAX_US  (10 * PR_SEC) /* half of handler.timeout, but no longer */
#define CONNECTION_LIFE 300L          /* seconds; then the name is looked up again */
#define ID_SIZE         320           /* a topic's name is at most 249 bytes */

static void add_header(struct curl_slist **list, const char *line)
{
	struct curl_slist *longer = curl_slist_append(*list, line);

	if (!longer)
		abort(); /* out of memory */
	*list = longer;
}

/* libcurl reads "Name:" as "do not send it", and "Name;" as "send it empty". */
static void add_own_header(struct curl_slist **list, const char *line)
{
	size_t name = strcspn(line, ":");
	char *empty;

	if (line[name + 1 + strspn(line + name + 1, " \t")]) {
		add_header(list, line);
		return;
	}
	empty = pr_asprintf("%.*s;", (int)name, line);
	add_header(list, empty);
	free(empty);
}

static void add_named(struct curl_slist **list, const char *name, const char *value, size_t len)
{
	char *line = pr_asprintf("%s: %.*s", name, (int)len, value);

	add_header(list, line);
	free(line);
}

/* Whether a header can carry the id as it came, whole; '?' may stand for bytes that were no text. */
static int is_plain(const char *id)
{
	size_t len = strlen(id);

	for (size_t i = 0; i < len; i++)
		if (id[i] <= ' ' || id[i] >= 0x7f || id[i] == '?')
			return 0;
	return len > 0 && len < sizeof(((struct message *)NULL)->id_text) - 4;
}

/* What a receiver tells repetitions by. An undo is another deed than what it undoes, and must not be taken
 * for its repetition. */
static void delivery_id(const struct message *m, enum op op, char out[ID_SIZE])
{
	const char *suffix = op == OP_UNDO ? "-undo" : "";
	struct origin o = message_origin(m);
	char uuid[37];

	if (m->id_state == ID_MISSING)
		(void)snprintf(
			out, ID_SIZE, "%s-%" PRId32 "-%" PRId64 "%s", o.topic, o.partition, o.offset, suffix);
	else
		(void)snprintf(out, ID_SIZE, "%s%s",
			is_plain(m->id_text) ? m->id_text : pr_uuid_print(m->id, uuid), suffix);
}

/* Fills req->headers anew; the body is req->text from `body` on, behind what the signature needs before it.
 */
static void put_headers(
	struct request *req, const char *id, const char *stamp, const char *type, const char *encoding)
{
	const struct handler *h = req->h;

	curl_slist_free_all(req->headers);
	req->headers = NULL;
	add_named(&req->headers, "Content-Type", type, strlen(type));
	if (encoding)
		add_named(&req->headers, "Content-Encoding", encoding, strlen(encoding));
	add_header(&req->headers, "Expect:"); /* else libcurl waits a second before a large body */
	add_named(&req->headers, "Idempotency-Key", id, strlen(id));
	add_named(&req->headers, "webhook-id", id, strlen(id));
	add_named(&req->headers, "webhook-timestamp", stamp, strlen(stamp));
	if (h->keys) {
		struct pr_buf signature = { 0 };

		webhook_sign_put(&signature, h->keys, req->text.s, req->text.len);
		add_named(&req->headers, "webhook-signature", signature.s, signature.len);
		pr_buf_free(&signature);
	}
	for (size_t i = 0; i < h->env.conf->handler.headers.n; i++)
		add_own_header(&req->headers, h->env.conf->handler.headers.v[i]);
}

/* "id.timestamp.": where the body begins. */
static size_t put_prefix(struct request *req, const char *id, char stamp[24])
{
	(void)snprintf(stamp, 24, "%lld", (long long)(pr_wall_us() / PR_SEC));
	req->text.len = 0;
	pr_buf_printf(&req->text, "%s.%s.", id, stamp);
	return req->text.len;
}

/* Fills req->text and req->headers anew. */
static size_t compose(struct request *req, const struct message *m, enum op op)
{
	char id[ID_SIZE], stamp[24];
	struct pr_trace trace;
	size_t body;

	delivery_id(m, op, id);
	body = put_prefix(req, id, stamp);
	message_put_json(&req->text, m, op == OP_UNDO ? "undo" : "do");
	put_headers(req, id, stamp, "application/json", NULL);
	if (m->traceparent && pr_traceparent_read(m->traceparent, m->traceparent_len, &trace) == 0)
		add_named(&req->headers, "traceparent", m->traceparent, PR_TRACEPARENT_LEN);
	return body;
}

static int64_t connect_ms(const struct pr_consumer_conf *conf)
{
	int64_t us = conf->handler.timeout_us / 2;

	us = us > CONNECT_MAX_US ? CONNECT_MAX_US : us;
	return us < PR_MS ? 1 : us / PR_MS;
}

static long at_least_1_ms(int64_t us)
{
	return us < PR_MS ? 1 : (long)(us / PR_MS);
}

void webhook_drop(struct request *req)
{
	curl_easy_cleanup(req->easy);
	req->easy = NULL;
}

/* A handle of its own for each request; connections and names are kept by the multi handle. One handle for
 * all of them would fail every sixth time that the receiver closed a kept connection: libcurl 7.88 sends
 * such a request again, five times at most, and counts that over the handle's life. */
int webhook_prepare(struct request *req)
{
	const struct pr_consumer_conf *conf = req->h->env.conf;
	CURL *c = req->easy = curl_easy_init();

#define SET(option, value) (curl_easy_setopt(c, CURLOPT_##option, value) == CURLE_OK)
	if (c && SET(URL, conf->handler.url) && SET(PROTOCOLS_STR, "http,https") && SET(FOLLOWLOCATION, 0L) &&
		SET(PROXY, "") && SET(NETRC, (long)CURL_NETRC_IGNORED) && SET(POST, 1L) &&
		SET(HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS) && SET(HTTP09_ALLOWED, 0L) &&
		SET(USERAGENT, "postrider/" PR_VERSION) && SET(NOSIGNAL, 1L) && SET(QUICK_EXIT, 1L) &&
		SET(CONNECTTIMEOUT_MS, (long)connect_ms(conf)) &&
		SET(TIMEOUT_MS, at_least_1_ms(conf->handler.timeout_us)) &&
		SET(MAXLIFETIME_CONN, CONNECTION_LIFE) && SET(TCP_KEEPALIVE, 1L) &&
		SET(UPLOAD_BUFFERSIZE, 16384L) && SET(HEADERFUNCTION, webhook_on_head) &&
		SET(HEADERDATA, req) && SET(WRITEFUNCTION, webhook_on_body) && SET(WRITEDATA, req) &&
		SET(ERRORBUFFER, req->problem) && SET(PRIVATE, req))
		return 0;
#undef SET
	return -1;
}

static int begin(struct request *req, size_t body)
{
	req->head_len = req->body_len = req->kept = 0;
	req->cut = req->flooded = 0;
	req->retry_after_us = 0;
	req->problem[0] = '\0';
	if (webhook_prepare(req) == 0 &&
		curl_easy_setopt(req->easy, CURLOPT_HTTPHEADER, req->headers) == CURLE_OK &&
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDS, req->text.s + body) == CURLE_OK &&
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDSIZE_LARGE,
			(curl_off_t)(req->text.len - body)) == CURLE_OK &&
		curl_multi_add_handle(req->h->multi, req->easy) == CURLM_OK)
		return 0;
	webhook_drop(req);
	return -1;
}

int webhook_begin(struct request *req, const struct message *m, enum op op)
{
	return begin(req, compose(req, m, op));
}

int webhook_begin_batch(struct request *req, const struct webhook_batch *batch)
{
	char stamp[24];
	size_t body = put_prefix(req, batch->id, stamp);

	pr_buf_put(&req->text, batch->body, batch->len);
	put_headers(req, batch->id, stamp, batch->type, batch->encoding);
	return begin(req, body);
}
