/* consumers/handler_http.c -- POSTs each message to one address, many keys at once, those of one key one
 * after another. A 2xx is handled; everything else is a failure with the status as its code.
 *
 * Refuses credentials in the address: the address in the config is where messages go, whatever the
 * environment says.
 *
 * Once a request got no answer at all, nothing new is begun in that run: with the receiver down or
 * hanging, a run of thousands of keys ends after one timeout. Nor is it after ROUND, so that a slow receiver
 * keeps the lane from its other duties for a moment only. What was not tried is left as "behind", and so is
 * what is still under way some time after the consumer was told to stop: that is no failed try, and must not
 * be the one that makes a dead letter. */
#include "consumers/outcome.h"
#include "consumers/webhook.h"

#include "lib/clock.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define ROUND   (2 * PR_SEC) /* what was handled is recorded so often, however slow the receiver is */
#define WAIT_MS 10000        /* libcurl shortens it to its own deadlines */
#define NONE    SIZE_MAX

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
	int silent; /* a request got no answer */
	int stops;  /* we were told to: what is under way has until end_us */
	int64_t end_us;
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
static int check_url(const char *option, const char *url, char **ret_where, struct pr_err *err)
{
	CURLU *u = curl_url();
	CURLUcode code = u ? curl_url_set(u, CURLUPART_URL, url ? url : "", 0) : CURLUE_OUT_OF_MEMORY;
	int rc = 0;

	if (code != CURLUE_OK)
		rc = pr_fail(err, PR_STOP, "%s.url is not a URL: %s", option, curl_url_strerror(code));
	else if (!url_scheme_ok(u))
		rc = pr_fail(err, PR_STOP, "%s.url must begin with http:// or https://", option);
	else if (has(u, CURLUPART_USER) || has(u, CURLUPART_PASSWORD)) {
		(void)pr_fail(err, PR_STOP, "%s.url must not hold credentials", option);
		rc = pr_hint(err, "send them in %s.headers: \"Authorization: Basic ...\"", option);
	} else if (has(u, CURLUPART_FRAGMENT))
		rc = pr_fail(err, PR_STOP, "%s.url must not have a fragment (#...)", option);
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
static int check_headers(const char *option, const struct pr_strs *headers, struct pr_err *err)
{
	for (size_t i = 0; i < headers->n; i++) {
		const char *line = headers->v[i];
		int name = (int)strcspn(line, ":");

		if (!is_header(line)) {
			(void)pr_fail(err, PR_STOP, "%s.headers: number %zu is no header", option, i + 1);
			(void)pr_hint(err, "write it as \"Name: value\", without control characters");
			return bad_config(err);
		}
		if (pr_consumer_header_reserved(line, (size_t)name)) {
			(void)pr_fail(err, PR_STOP, "%s.headers: %.*s is set by the consumer itself", option,
				name > 64 ? 64 : name, line);
			return bad_config(err);
		}
	}
	return 0;
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
	if (p->silent || p->stops || pr_mono_us() >= p->until_us)
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
		if (webhook_begin(req, p->m[at], p->op) < 0) {
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

	if (!webhook_judge(req, code, out))
		p->silent = 1;
	p->state[req->at] = DONE;
	if (out->cls == PR_FAIL_NONE && next != NONE)
		p->state[next] = READY;
	(void)curl_multi_remove_handle(req->h->multi, req->easy);
	webhook_drop(req);
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

static void wait_some(struct handler *h, const struct plan *p)
{
	struct curl_waitfd fd = { .fd = h->env.wake_fd, .events = CURL_WAIT_POLLIN };
	int ms = p->stops ? pr_until_ms(p->end_us) : WAIT_MS;

	(void)curl_multi_poll(
		h->multi, &fd, h->env.wake_fd >= 0 && !p->stops, ms < WAIT_MS ? ms : WAIT_MS, NULL);
}

/* Whether there is time left. */
static int goes_on(const struct handler *h, struct plan *p)
{
	if (!p->stops && woken(h)) {
		p->stops = 1;
		p->end_us = handler_end_us(&h->env);
	}
	return !p->stops || pr_mono_us() < p->end_us;
}

/* Closes the connections of what is under way. What was not judged failed of nothing: it comes again. */
static void settle(struct handler *h, struct plan *p)
{
	for (size_t i = 0; i < h->requests; i++) {
		if (h->request[i].at == NONE)
			continue;
		(void)curl_multi_remove_handle(h->multi, h->request[i].easy);
		webhook_drop(&h->request[i]);
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
	while (goes_on(h, &p)) {
		begin_more(h, &p);
		if (p.flying == 0)
			break;
		collect(h, &p);
		if (p.flying == h->requests || (p.flying > 0 && pick(&p) == NONE))
			wait_some(h, &p);
	}
	settle(h, &p);
	free(p.next);
	free(p.state);
	return 0;
}

/* ---------------------------------------------------------------- open and close */

void webhook_close(struct handler *h)
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
	usable = webhook_prepare(&h->request[0]) == 0;
	webhook_drop(&h->request[0]);
	if (!usable)
		return pr_fail(err, PR_STOP, "this libcurl lacks what the handler needs: %s", curl_version());
	h->multi = curl_multi_init();
	if (!h->multi || curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)h->requests) != CURLM_OK)
		return pr_fail(err, PR_RETRY, "libcurl cannot be used");
	return 0;
}

int webhook_open(const struct handler_env *env, const char *option, struct handler **ret, struct pr_err *err)
{
	struct handler *h = pr_calloc(1, sizeof(*h));

	(void)curl_global_init(CURL_GLOBAL_DEFAULT); /* counted, and thread-safe since 7.84 */
	h->env = *env;
	if (check_url(option, env->conf->handler.url, &h->where, err) < 0 ||
		check_headers(option, &env->conf->handler.headers, err) < 0)
		goto out;
	if (env->conf->handler.secret && webhook_keys_parse(env->conf->handler.secret, &h->keys, err) < 0) {
		(void)pr_wrap(err, "%s.secret", option);
		goto out;
	}
	if (make_requests(h, err) < 0)
		goto out;
	*ret = h;
	return 0;
out:
	webhook_close(h);
	return -1;
}

static int http_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	(void)pg;
	return webhook_open(env, "handler", ret, err);
}

const struct handler_ops handler_http = {
	.kind = "http",
	.in_transaction = 0,
	.open = http_open,
	.close = webhook_close,
	.run = http_run,
};
