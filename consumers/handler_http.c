/* consumers/handler_http.c -- POSTs each message to one address, many keys at once, those of one key one
 * after another. A 2xx is handled; everything else is a failure with the status as its code. The request
 * may come again after a crash: the message id goes along as Idempotency-Key and webhook-id.
 *
 * Refuses redirects, schemes other than http and https, cookies, credentials in the address, and a proxy:
 * the address in the config is where messages go, whatever the environment says. Of an answer at most
 * response_bytes of body and HEAD_MAX of head are read; the body only explains a failure.
 *
 * A status decides as soon as its head is there: a failure whose body is broken, slow or too long is still
 * that status, and a 2xx whose body is too long is cut and handled (it would be as long the next time).
 * Only a 2xx whose body breaks off or is late counts as no answer, for then the receiver may have died.
 *
 * Once a request got no answer at all, nothing new is begun in that run: with the receiver down or
 * hanging, a run of thousands of keys ends after one timeout. Nor is it after ROUND, so that a slow receiver
 * keeps the lane from its other duties for a moment only. What was not tried is left as "behind", and so is
 * what was under way when the consumer is told to stop: that is no failed try, and must not be the one that
 * makes a dead letter. */
#include "consumers/handler.h"
#include "consumers/outcome.h"
#include "consumers/webhook_sign.h"

#include "lib/clock.h"
#include "lib/uuid.h"

#include <curl/curl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEAD_MAX        (64 * 1024)       /* of one answer, interim ones (1xx) included */
#define CONNECT_MAX_US  (10 * PR_SEC)     /* half of handler.timeout, but no longer */
#define CONNECTION_LIFE 300L              /* seconds; then the name is looked up again */
#define RETRY_AFTER_MAX (3600LL * PR_SEC) /* whoever asks for more gets this */
#define ROUND           (2 * PR_SEC) /* what was handled is recorded so often, however slow the receiver is */
#define WAIT_MS         10000        /* libcurl shortens it to its own deadlines */
#define ID_SIZE         320          /* a topic's name is at most 249 bytes */
#define NONE            SIZE_MAX

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

enum { WAITS, READY, FLYING, DONE };

/* One call of run(). */
struct plan {
	enum op op;
	struct message *const *m;
	struct outcome *out;
	size_t n;
	size_t *next;         /* of the same key; NONE: the last one */
	unsigned char *state; /* WAITS until the one before it is handled */
	size_t from;          /* all before it were begun */
	size_t flying;
	int silent;       /* a request got no answer */
	int64_t until_us; /* nothing is begun from then on */
};

/* ---------------------------------------------------------------- configuration */

static int bad_config(struct pr_err *err)
{
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

static int has(CURLU *u, CURLUPart part)
{
	char *s = NULL;
	int found = curl_url_get(u, part, &s, 0) == CURLUE_OK && s && *s;

	curl_free(s);
	return found;
}

static int url_scheme_ok(CURLU *u)
{
	char *s = NULL;
	int ok = curl_url_get(u, CURLUPART_SCHEME, &s, 0) == CURLUE_OK &&
		 (strcmp(s, "http") == 0 || strcmp(s, "https") == 0);

	curl_free(s);
	return ok;
}

static char *url_where(CURLU *u)
{
	char *host = NULL, *port = NULL, *where;

	(void)curl_url_get(u, CURLUPART_HOST, &host, 0);
	(void)curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT);
	where = pr_asprintf("%s:%s", host ? host : "", port ? port : "");
	curl_free(host);
	curl_free(port);
	return where;
}

/* Does not show the address in errors: its query may hold a token. */
static int check_url(const char *url, char **ret_where, struct pr_err *err)
{
	CURLU *u = curl_url();
	CURLUcode code = u ? curl_url_set(u, CURLUPART_URL, url ? url : "", 0) : CURLUE_OUT_OF_MEMORY;
	int rc = 0;

	if (code != CURLUE_OK)
		rc = pr_fail(err, PR_STOP, "handler.url is not a URL: %s", curl_url_strerror(code));
	else if (!url_scheme_ok(u))
		rc = pr_fail(err, PR_STOP, "handler.url must begin with http:// or https://");
	else if (has(u, CURLUPART_USER) || has(u, CURLUPART_PASSWORD)) {
		(void)pr_fail(err, PR_STOP, "handler.url must not hold credentials");
		rc = pr_hint(err, "send them in handler.headers: \"Authorization: Basic ...\"");
	} else if (has(u, CURLUPART_FRAGMENT))
		rc = pr_fail(err, PR_STOP, "handler.url must not have a fragment (#...)");
	else
		*ret_where = url_where(u);
	curl_url_cleanup(u);
	return rc < 0 ? bad_config(err) : 0;
}

static int is_header(const char *line)
{
	static const char token[] = "!#$%&'*+-.^_`|~0123456789"
				    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
	size_t name = strspn(line, token);

	if (name == 0 || line[name] != ':')
		return 0;
	for (const unsigned char *s = (const unsigned char *)line + name; *s; s++)
		if ((*s < 0x20 && *s != '\t') || *s == 0x7f)
			return 0;
	return 1;
}

/* Shows a header's name, never its value. */
static int check_headers(const struct pr_strs *headers, struct pr_err *err)
{
	for (size_t i = 0; i < headers->n; i++) {
		const char *line = headers->v[i];
		int name = (int)strcspn(line, ":");

		if (!is_header(line)) {
			(void)pr_fail(err, PR_STOP, "handler.headers: number %zu is no header", i + 1);
			(void)pr_hint(err, "write it as \"Name: value\", without control characters");
			return bad_config(err);
		}
		if (pr_consumer_header_reserved(line, (size_t)name)) {
			(void)pr_fail(err, PR_STOP, "handler.headers: %.*s is set by the consumer itself",
				name > 64 ? 64 : name, line);
			return bad_config(err);
		}
	}
	return 0;
}

/* ---------------------------------------------------------------- answers */

static int is_retry_after(const char *line, size_t len)
{
	static const char name[] = "retry-after:";

	return len > sizeof(name) - 1 && strncasecmp(line, name, sizeof(name) - 1) == 0;
}

/* Seconds, or a date; 0: neither, or it has passed. */
static int64_t retry_after(const char *value, size_t len, int64_t now_us)
{
	char text[64];
	size_t digits;
	int64_t us;

	while (len > 0 && (*value == ' ' || *value == '\t'))
		value++, len--;
	while (len > 0 && strchr(" \t\r\n", value[len - 1]))
		len--;
	(void)snprintf(text, sizeof(text), "%.*s", (int)(len < sizeof(text) ? len : sizeof(text) - 1), value);
	digits = strspn(text, "0123456789");
	if (digits > 0 && !text[digits]) {
		us = digits > 5 ? RETRY_AFTER_MAX : atoll(text) * PR_SEC;
	} else {
		time_t date = curl_getdate(text, NULL);

		us = date < 0 ? 0 : (int64_t)date * PR_SEC - now_us;
	}
	return us < 0 ? 0 : us > RETRY_AFTER_MAX ? RETRY_AFTER_MAX : us;
}

static size_t on_head(char *line, size_t size, size_t n, void *ctx)
{
	struct request *req = ctx;
	size_t len = size * n;

	req->head_len += len;
	if (req->head_len > HEAD_MAX) {
		req->flooded = 1;
		return 0;
	}
	if (len >= 5 && memcmp(line, "HTTP/", 5) == 0)
		req->retry_after_us = 0; /* what an interim answer said */
	else if (is_retry_after(line, len))
		req->retry_after_us = retry_after(line + 12, len - 12, pr_wall_us());
	return len;
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct request *req = ctx;
	size_t len = size * n, room = sizeof(req->body) - req->kept;

	req->body_len += len;
	for (size_t i = 0; i < len && i < room; i++)
		req->body[req->kept++] = data[i] ? data[i] : ' '; /* a NUL would end the text */
	if (req->body_len <= (size_t)req->h->env.conf->handler.response_bytes)
		return len;
	req->cut = 1;
	return 0;
}

static void fail_status(const struct request *req, long status, struct outcome *out)
{
	int redirect = status >= 300 && status < 400;
	char code[16];

	(void)snprintf(code, sizeof(code), "%03ld", status);
	outcome_fail(out, PR_FAIL_HTTP, code, "%s answers %s%s%.*s", req->h->where, code,
		redirect    ? " (redirects are not followed)"
		: req->kept ? ": "
			    : "",
		redirect ? 0 : (int)req->kept, req->body);
	out->retry_after_us = req->retry_after_us;
}

static int64_t reached(const struct request *req, CURLINFO what)
{
	curl_off_t us = 0;

	(void)curl_easy_getinfo(req->easy, what, &us);
	return us;
}

/* What it was waiting for when its time was up; the request's own code when that was the answer. */
static const char *late_code(const struct request *req)
{
	long sent = 0;

	(void)curl_easy_getinfo(req->easy, CURLINFO_REQUEST_SIZE, &sent);
	if (sent > 0)
		return "";
	if (reached(req, CURLINFO_NAMELOOKUP_TIME_T) == 0)
		return "dns";
	return reached(req, CURLINFO_CONNECT_TIME_T) == 0 ? "connect" : "tls";
}

static const char *silent_code(const struct request *req, CURLcode code)
{
	switch (code) {
	case CURLE_COULDNT_RESOLVE_HOST:
		return "dns";
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_INVALIDCERTSTATUS:
	case CURLE_SSL_CLIENTCERT:
		return "tls";
	case CURLE_OPERATION_TIMEDOUT:
		return late_code(req);
	default:
		return "connect";
	}
}

/* libcurl's own words; those of a refused or late connection hold the milliseconds it took, and then no two
 * failures read the same. */
static const char *silent_words(const struct request *req, CURLcode code)
{
	if (req->flooded)
		return "the head of its answer is too long";
	if (code == CURLE_UNSUPPORTED_PROTOCOL)
		return "its answer is not HTTP";
	if (code == CURLE_OPERATION_TIMEDOUT || code == CURLE_COULDNT_CONNECT || !req->problem[0])
		return curl_easy_strerror(code);
	return req->problem;
}

static void fail_silent(const struct request *req, CURLcode code, struct outcome *out)
{
	const char *word = silent_code(req, code);

	if (*word)
		outcome_fail(out, PR_FAIL_HTTP, word, "no answer from %s: %s", req->h->where,
			silent_words(req, code));
	else
		outcome_fail(out, PR_FAIL_TIMEOUT, "", "%s did not answer within %lld ms", req->h->where,
			(long long)(req->h->env.conf->handler.timeout_us / PR_MS));
}

/* Whether there was an answer. */
static int judge(const struct request *req, CURLcode code, struct outcome *out)
{
	long status = 0;

	(void)curl_easy_getinfo(req->easy, CURLINFO_RESPONSE_CODE, &status);
	if (!req->flooded && status >= 200 && status < 300 && (code == CURLE_OK || req->cut))
		return 1;
	if (!req->flooded && status > 0 && (status < 200 || status >= 300)) {
		fail_status(req, status, out);
		return 1;
	}
	fail_silent(req, code, out);
	return 0;
}

/* ---------------------------------------------------------------- requests */

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
	char uuid[37];

	if (m->id_state == ID_MISSING)
		(void)snprintf(out, ID_SIZE, "%s-%" PRId32 "-%" PRId64 "%s", m->topic, m->partition,
			m->offset, suffix);
	else
		(void)snprintf(out, ID_SIZE, "%s%s",
			is_plain(m->id_text) ? m->id_text : pr_uuid_print(m->id, uuid), suffix);
}

/* Only what cannot be anything but a W3C traceparent: it comes from a record's header. */
static int is_traceparent(const char *s, size_t len)
{
	if (!s || len != 55)
		return 0;
	for (size_t i = 0; i < len; i++)
		if (!strchr(i == 2 || i == 35 || i == 52 ? "-" : "0123456789abcdef", s[i]) || !s[i])
			return 0;
	return 1;
}

/* Fills req->text and req->headers anew. */
static size_t compose(struct request *req, const struct message *m, enum op op)
{
	const struct handler *h = req->h;
	char id[ID_SIZE], stamp[24];
	size_t body;

	(void)snprintf(stamp, sizeof(stamp), "%lld", (long long)(pr_wall_us() / PR_SEC));
	delivery_id(m, op, id);
	req->text.len = 0;
	pr_buf_printf(&req->text, "%s.%s.", id, stamp);
	body = req->text.len;
	message_put_json(&req->text, m, op == OP_UNDO ? "undo" : "do");

	curl_slist_free_all(req->headers);
	req->headers = NULL;
	add_header(&req->headers, "Content-Type: application/json");
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
	if (is_traceparent(m->traceparent, m->traceparent_len))
		add_named(&req->headers, "traceparent", m->traceparent, m->traceparent_len);
	for (size_t i = 0; i < h->env.conf->handler.headers.n; i++)
		add_own_header(&req->headers, h->env.conf->handler.headers.v[i]);
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

static void drop_handle(struct request *req)
{
	curl_easy_cleanup(req->easy);
	req->easy = NULL;
}

/* A handle of its own for each request; connections and names are kept by the multi handle. One handle for
 * all of them would fail every sixth time that the receiver closed a kept connection: libcurl 7.88 sends
 * such a request again, five times at most, and counts that over the handle's life. */
static int prepare(struct request *req)
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
		SET(UPLOAD_BUFFERSIZE, 16384L) && SET(HEADERFUNCTION, on_head) && SET(HEADERDATA, req) &&
		SET(WRITEFUNCTION, on_body) && SET(WRITEDATA, req) && SET(ERRORBUFFER, req->problem) &&
		SET(PRIVATE, req))
		return 0;
#undef SET
	return -1;
}

/* -1: libcurl took nothing over. */
static int begin(struct request *req, const struct message *m, enum op op)
{
	size_t body = compose(req, m, op);

	req->head_len = req->body_len = req->kept = 0;
	req->cut = req->flooded = 0;
	req->retry_after_us = 0;
	req->problem[0] = '\0';
	if (prepare(req) == 0 && curl_easy_setopt(req->easy, CURLOPT_HTTPHEADER, req->headers) == CURLE_OK &&
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDS, req->text.s + body) == CURLE_OK &&
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDSIZE_LARGE,
			(curl_off_t)(req->text.len - body)) == CURLE_OK &&
		curl_multi_add_handle(req->h->multi, req->easy) == CURLM_OK)
		return 0;
	drop_handle(req);
	return -1;
}

/* ---------------------------------------------------------------- one run */

static int same_key(const struct message *a, const struct message *b)
{
	return a->partition == b->partition && a->key_len == b->key_len &&
	       memcmp(a->key, b->key, a->key_len) == 0 && strcmp(a->topic, b->topic) == 0;
}

static size_t key_slot(const struct message *m, size_t mask)
{
	uint64_t x = 14695981039346656037u ^ (uint64_t)(uint32_t)m->partition;

	for (size_t i = 0; i < m->key_len; i++)
		x = (x ^ (unsigned char)m->key[i]) * 1099511628211u;
	return (size_t)(x ^ x >> 32) & mask;
}

/* Chains the messages of each key; one without a key has no order to keep. */
static void plan_keys(struct plan *p)
{
	size_t mask = 15;
	size_t *last; /* by hash: the key's last message so far */

	while (mask < p->n * 2)
		mask = mask * 2 + 1;
	last = pr_malloc((mask + 1) * sizeof(*last));
	memset(last, 0xff, (mask + 1) * sizeof(*last)); /* NONE */
	for (size_t i = 0; i < p->n; i++) {
		size_t at;

		p->next[i] = NONE;
		p->state[i] = READY;
		if (!p->m[i]->key)
			continue;
		at = key_slot(p->m[i], mask);
		while (last[at] != NONE && !same_key(p->m[last[at]], p->m[i]))
			at = (at + 1) & mask;
		if (last[at] != NONE) {
			p->next[last[at]] = i;
			p->state[i] = WAITS;
		}
		last[at] = i;
	}
	free(last);
}

/* The first one that may go, so that one request at a time keeps the order of offsets. */
static size_t pick(struct plan *p)
{
	if (p->silent || pr_mono_us() >= p->until_us)
		return NONE;
	while (p->from < p->n && p->state[p->from] >= FLYING)
		p->from++;
	for (size_t i = p->from; i < p->n; i++)
		if (p->state[i] == READY)
			return i;
	return NONE;
}

static void begin_more(struct handler *h, struct plan *p)
{
	for (size_t i = 0; i < h->requests; i++) {
		struct request *req = &h->request[i];
		size_t at;

		if (req->at != NONE)
			continue;
		at = pick(p);
		if (at == NONE)
			return;
		if (begin(req, p->m[at], p->op) < 0) {
			p->state[at] = DONE;
			p->silent = 1;
			outcome_fail(
				&p->out[at], PR_FAIL_HTTP, "connect", "libcurl did not take the request");
			return;
		}
		req->at = at;
		p->state[at] = FLYING;
		p->flying++;
	}
}

static void finish(struct plan *p, struct request *req, CURLcode code)
{
	struct outcome *out = &p->out[req->at];
	size_t next = p->next[req->at];

	if (!judge(req, code, out))
		p->silent = 1;
	p->state[req->at] = DONE;
	if (out->cls == PR_FAIL_NONE && next != NONE)
		p->state[next] = READY;
	(void)curl_multi_remove_handle(req->h->multi, req->easy);
	drop_handle(req);
	req->at = NONE;
	p->flying--;
}

static void collect(struct handler *h, struct plan *p)
{
	int left;
	CURLMsg *msg;

	(void)curl_multi_perform(h->multi, &left);
	while ((msg = curl_multi_info_read(h->multi, &left))) {
		CURLcode code = msg->data.result; /* msg dies with the handle's removal */
		struct request *req = NULL;

		(void)curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&req);
		finish(p, req, code);
	}
}

static int woken(const struct handler *h)
{
	struct pollfd fd = { .fd = h->env.wake_fd, .events = POLLIN };

	return h->env.wake_fd >= 0 && poll(&fd, 1, 0) > 0;
}

static void wait_some(struct handler *h)
{
	struct curl_waitfd fd = { .fd = h->env.wake_fd, .events = CURL_WAIT_POLLIN };

	(void)curl_multi_poll(h->multi, &fd, h->env.wake_fd >= 0, WAIT_MS, NULL);
}

/* Closes the connections of what is under way. What was not judged failed of nothing: it comes again. */
static void settle(struct handler *h, struct plan *p)
{
	for (size_t i = 0; i < h->requests; i++) {
		if (h->request[i].at == NONE)
			continue;
		(void)curl_multi_remove_handle(h->multi, h->request[i].easy);
		drop_handle(&h->request[i]);
		h->request[i].at = NONE;
	}
	for (size_t i = 0; i < p->n; i++)
		if (p->state[i] != DONE)
			outcome_behind(&p->out[i]);
}

static int http_run(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
	struct outcome *out, struct pr_err *err)
{
	struct plan p = { .op = op, .m = m, .out = out, .n = n, .until_us = pr_mono_us() + ROUND };

	(void)pg;
	(void)err;
	p.next = pr_malloc(n * sizeof(*p.next));
	p.state = pr_calloc(n, 1);
	plan_keys(&p);
	while (!woken(h)) {
		begin_more(h, &p);
		if (p.flying == 0)
			break;
		collect(h, &p);
		if (p.flying == h->requests || (p.flying > 0 && pick(&p) == NONE))
			wait_some(h);
	}
	settle(h, &p);
	free(p.next);
	free(p.state);
	return 0;
}

/* ---------------------------------------------------------------- open and close */

static void http_close(struct handler *h)
{
	if (!h)
		return;
	for (size_t i = 0; i < h->requests; i++) {
		curl_slist_free_all(h->request[i].headers);
		pr_buf_free(&h->request[i].text);
	}
	(void)curl_multi_cleanup(h->multi);
	webhook_keys_free(h->keys);
	free(h->request);
	free(h->where);
	free(h);
	curl_global_cleanup();
}

static int make_requests(struct handler *h, struct pr_err *err)
{
	int usable;

	h->requests = (size_t)h->env.conf->handler.concurrency;
	h->request = pr_calloc(h->requests, sizeof(*h->request));
	for (size_t i = 0; i < h->requests; i++)
		h->request[i] = (struct request){ .h = h, .at = NONE };
	usable = prepare(&h->request[0]) == 0;
	drop_handle(&h->request[0]);
	if (!usable)
		return pr_fail(err, PR_STOP, "this libcurl lacks what the handler needs: %s", curl_version());
	h->multi = curl_multi_init();
	if (!h->multi || curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)h->requests) != CURLM_OK)
		return pr_fail(err, PR_RETRY, "libcurl cannot be used");
	return 0;
}

static int http_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	struct handler *h = pr_calloc(1, sizeof(*h));

	(void)pg;
	(void)curl_global_init(CURL_GLOBAL_DEFAULT); /* counted, and thread-safe since 7.84 */
	h->env = *env;
	if (check_url(env->conf->handler.url, &h->where, err) < 0 ||
		check_headers(&env->conf->handler.headers, err) < 0)
		goto out;
	if (env->conf->handler.secret && webhook_keys_parse(env->conf->handler.secret, &h->keys, err) < 0) {
		(void)pr_wrap(err, "handler.secret");
		goto out;
	}
	if (make_requests(h, err) < 0)
		goto out;
	*ret = h;
	return 0;
out:
	http_close(h);
	return -1;
}

const struct handler_ops handler_http = {
	.kind = "http",
	.in_transaction = 0,
	.open = http_open,
	.close = http_close,
	.run = http_run,
};
