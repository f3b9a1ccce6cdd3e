/* consumers/sink/http.c -- target: batches of lines posted to an API. Idempotency-Key is the range of
 * offsets, which the database knows before anything is posted: whoever posts it again, after a crash or a
 * lost answer, posts the same lines under the same key. A partition has one batch under way, so its order is
 * kept; different partitions of a lane go side by side.
 *
 * 2xx: taken. 413, 400, 422: too much, or one of the records: halves, each a range of its own with a key of
 * its own, down to the one that is refused alone. What handler.errors says of a status comes first.
 * Everything else is about the API and not about records: again, with backoff, no sooner than it asks for,
 * and with one batch to try it out.
 *
 * Refuses redirects, and to read more of an answer than explains it. */
#include "consumers/outcome.h"
#include "consumers/sink/batch.h"
#include "consumers/webhook.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/policy.h"

#include <inttypes.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE      8 /* requests of a lane under way */
#define NONE         SIZE_MAX
#define KEY_MOST     200 /* of an Idempotency-Key: longer ones are hashed */
#define KEY_SIZE     512
#define RETRY_US     (200 * PR_MS)
#define RETRY_MAX_US (30 * PR_SEC)
#define LOOK_MS      100 /* whether we stop */

/* A lane's. */
struct poster {
	struct pr_consumer_conf conf; /* the consumer's, with handler.url and its likes as they are for us */
	struct handler *web;
	struct sink_press *press; /* NULL: plain */
	const char *encoding;     /* NULL: none */
	struct outcome *out;      /* of web->request[i] */
	unsigned failures;        /* in a row, of the API */
	int64_t until_us;         /* monotonic: nothing is posted before */
	struct outcome last;      /* why */
};

/* ---------------------------------------------------------------- lines */

static int http_put(struct sink_part *sp, const struct sink_row *row, struct pr_err *err)
{
	struct sink_batch *b = sp->target;
	size_t before;

	(void)err;
	if (!b)
		sp->target = b = pr_calloc(1, sizeof(*b));
	sink_batch_add(b, row->offset);
	before = b->bytes.len;
	sink_line_put(&b->bytes, row);
	sp->open->bytes += (int64_t)(b->bytes.len - before);
	return 0;
}

/* The lines from split_at on. */
static int http_split(struct sink_part *sp, struct sink_cut *cut, struct sink_cut *second, struct pr_err *err)
{
	(void)sp;
	(void)err;
	sink_batch_split(cut, second, pr_calloc(1, sizeof(struct sink_batch)));
	return 0;
}

/* ---------------------------------------------------------------- open and close */

static void http_close(struct sink_lane *sl)
{
	struct poster *p = sl->target;

	if (!p)
		return;
	webhook_close(p->web);
	sink_press_free(p->press);
	free(p->out);
	free(p);
	sl->target = NULL;
}

static void set_up(struct poster *p, const struct consumer *c, const struct pr_sink_conf *conf)
{
	static const char *const encodings[] = { NULL, "gzip", "zstd" };

	p->conf = *c->conf;
	p->conf.handler.url = conf->http.url;
	p->conf.handler.secret = conf->http.secret;
	p->conf.handler.headers = conf->http.headers;
	p->conf.handler.timeout_us = conf->http.timeout_us;
	p->conf.handler.concurrency = AT_ONCE;
	p->encoding = encodings[conf->http.compression];
	if (p->encoding)
		p->press = sink_press_new(
			(enum pr_sink_compression)conf->http.compression, (int)conf->http.level);
	p->out = pr_calloc(AT_ONCE, sizeof(*p->out));
}

static int http_open(struct sink_lane *sl, struct pr_err *err)
{
	struct handler_env env = { .lane = sl->l->number, .wake_fd = -1 };
	struct poster *p;

	if (sl->target)
		return 0;
	sl->target = p = pr_calloc(1, sizeof(*p));
	set_up(p, sl->l->c, sl->conf);
	env.conf = &p->conf;
	if (webhook_open(&env, "handler.http", &p->web, err) == 0)
		return 0;
	http_close(sl);
	return -1;
}

/* ---------------------------------------------------------------- what an answer means */

/* "group/topic/partition/first-next": the same range, the same key. */
static void key_of(const struct sink_lane *sl, const struct sink_cut *cut, char key[KEY_SIZE])
{
	unsigned char sum[SHA256_DIGEST_LENGTH];
	int n = snprintf(key, KEY_SIZE, "%s/%s/%" PRId32 "/%" PRId64 "-%" PRId64, sl->l->c->conf->group,
		cut->part->part->topic, cut->part->part->partition, cut->first, cut->next);

	if (n <= KEY_MOST)
		return;
	(void)SHA256((const unsigned char *)key, (size_t)n, sum);
	n = snprintf(key, KEY_SIZE, "sha256:");
	for (size_t i = 0; i < sizeof(sum); i++)
		n += snprintf(key + n, KEY_SIZE - (size_t)n, "%02x", sum[i]);
}

/* A rule of the config that is about this outcome; NULL: it says nothing. */
static const struct pr_rule *own_rule(const struct sink_lane *sl, const struct outcome *out)
{
	const struct pr_groups *errors = &sl->l->c->conf->errors;
	const struct pr_rule *rules = errors->v;
	const struct pr_rule *rule = pr_policy_of(rules, errors->n, out->cls, out->code);

	return rule >= rules && rule < rules + errors->n ? rule : NULL;
}

/* Whether what it says is about the records. */
static int is_about_records(const struct sink_lane *sl, const struct sink_cut *cut, const struct outcome *out)
{
	static const char *const codes[] = { "400", "413", "422" };
	const struct pr_rule *rule = own_rule(sl, out);

	if (rule)
		return rule->policy == PR_POLICY_DEAD_LETTER ||
		       (rule->policy == PR_POLICY_RETRY && rule->attempts > 0 &&
			       cut->tries >= (unsigned)rule->attempts);
	for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++)
		if (out->cls == PR_FAIL_HTTP && strcmp(out->code, codes[i]) == 0)
			return 1;
	return 0;
}

static void refused(struct sink_cut *cut, const struct outcome *out)
{
	const struct sink_batch *b = cut->batch;

	(void)snprintf(cut->code, sizeof(cut->code), "%s", out->code);
	if (b->n <= 1) {
		cut->said = SINK_REFUSED;
		return;
	}
	cut->said = SINK_SPLIT;
	cut->split_at = b->record[b->n / 2].offset;
}

static void again(struct poster *p, struct sink_cut *cut, const struct outcome *out)
{
	cut->said = SINK_AGAIN;
	cut->again_us = p->until_us;
	(void)pr_fail(&cut->why, PR_RETRY, "%s", out->text);
	(void)snprintf(cut->why.code, sizeof(cut->why.code), "%s", out->code);
}

/* The API, not a record: nothing is posted for a while. What was under way beside it counts as one failure.
 */
static void stand_back(struct poster *p, const struct outcome *out)
{
	int64_t now = pr_mono_us(), delay = out->retry_after_us;

	if (p->until_us <= now) {
		int64_t backoff = pr_backoff_us(p->failures++, RETRY_US, RETRY_MAX_US);

		delay = delay > backoff ? delay : backoff;
	}
	p->until_us = p->until_us > now + delay ? p->until_us : now + delay;
	p->last = *out;
}

/* Its own words, of a 2xx too: sink.cut keeps them. */
static void keep_answer(struct sink_cut *cut, const struct request *req, const struct outcome *out)
{
	char text[sizeof(req->body) + 1];

	(void)snprintf(text, sizeof(text), "%.*s", (int)req->kept, req->body);
	outcome_text(cut->answer, sizeof(cut->answer), out->cls == PR_FAIL_NONE ? text : out->text);
}

static void judge(struct sink_lane *sl, struct sink_cut *cut, const struct request *req, CURLcode code)
{
	struct poster *p = sl->target;
	struct outcome out = { 0 };
	const struct pr_rule *rule;

	cut->tries++;
	(void)webhook_judge(req, code, &out);
	keep_answer(cut, req, &out);
	rule = out.cls == PR_FAIL_NONE ? NULL : own_rule(sl, &out);
	if (out.cls == PR_FAIL_NONE || (rule && rule->policy == PR_POLICY_IGNORE)) {
		cut->said = SINK_PUBLISHED;
		p->failures = 0;
		p->until_us = 0;
	} else if (is_about_records(sl, cut, &out)) {
		refused(cut, &out);
		p->failures = 0; /* it is there, and answers */
		p->until_us = 0;
	} else {
		stand_back(p, &out);
		again(p, cut, &out);
	}
}

/* ---------------------------------------------------------------- posting */

/* One call of publish. */
struct round {
	struct sink_lane *sl;
	struct sink_cut **cuts;
	size_t n, at, flying;
};

static int send_it(struct round *r, struct request *req, size_t i, struct pr_err *err)
{
	struct poster *p = r->sl->target;
	struct sink_cut *cut = r->cuts[i];
	const struct sink_batch *b = cut->batch;
	struct webhook_batch post = { .type = "application/x-ndjson",
		.encoding = p->encoding,
		.body = b->bytes.s,
		.len = b->bytes.len };
	char key[KEY_SIZE];
	const void *packed;

	key_of(r->sl, cut, key);
	post.id = key;
	if (p->press) {
		if (sink_press_frame(p->press, b->bytes.s, b->bytes.len, &packed, &post.len, err) < 0)
			return -1;
		post.body = packed;
	}
	if (webhook_begin_batch(req, &post) < 0)
		return pr_fail(err, PR_RETRY, "libcurl did not take the request");
	req->at = i;
	r->flying++;
	return 0;
}

static int begin_more(struct round *r, struct pr_err *err)
{
	struct poster *p = r->sl->target;
	size_t most = p->failures ? 1 : AT_ONCE; /* one to try it out */

	for (size_t i = 0;
		i < p->web->requests && r->at < r->n && r->flying < most && p->until_us <= pr_mono_us(); i++)
		if (p->web->request[i].at == NONE && send_it(r, &p->web->request[i], r->at++, err) < 0)
			return -1;
	return 0;
}

static void collect(struct round *r)
{
	struct poster *p = r->sl->target;
	CURLMsg *msg;
	int left;

	(void)curl_multi_perform(p->web->multi, &left);
	while ((msg = curl_multi_info_read(p->web->multi, &left))) {
		CURLcode code = msg->data.result; /* msg dies with the handle's removal */
		struct request *req = NULL;

		(void)curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&req);
		judge(r->sl, r->cuts[req->at], req, code);
		(void)curl_multi_remove_handle(p->web->multi, req->easy);
		webhook_drop(req);
		req->at = NONE;
		r->flying--;
	}
}

/* Whether what is under way may go on: once we stop, until the handlers' time is over. */
static int has_time(const struct sink_lane *sl)
{
	struct consumer *c = sl->l->c;
	int64_t end = atomic_load(&c->end_us);

	return !atomic_load(&c->stopping) || pr_mono_us() < end;
}

/* What is still under way when our time is over: it may have been taken or not, and goes again under its key.
 */
static void cut_short(struct round *r)
{
	struct poster *p = r->sl->target;

	for (size_t i = 0; i < p->web->requests; i++) {
		if (p->web->request[i].at == NONE)
			continue;
		(void)curl_multi_remove_handle(p->web->multi, p->web->request[i].easy);
		webhook_drop(&p->web->request[i]);
		p->web->request[i].at = NONE;
	}
}

static int http_publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	struct poster *p = sl->target;
	static const struct outcome stops = { .cls = PR_FAIL_HTTP, .text = "not posted: the consumer stops" };
	struct round r = { .sl = sl, .cuts = cuts, .n = n };
	int rc = 0;

	for (size_t i = 0; i < n; i++) {
		cuts[i]->said = SINK_AGAIN;
		cuts[i]->why.text[0] = '\0';
	}
	while (has_time(sl) && (rc = begin_more(&r, err)) == 0 && r.flying > 0) {
		collect(&r);
		if (r.flying > 0)
			(void)curl_multi_poll(p->web->multi, NULL, 0, LOOK_MS, NULL);
	}
	cut_short(&r);
	for (size_t i = 0; i < n; i++)
		if (cuts[i]->said == SINK_AGAIN && !cuts[i]->why.text[0])
			again(p, cuts[i], p->failures ? &p->last : &stops);
	/* If we die here, the API has it and we do not know: the range is posted again under the same key. */
	FAULT(sink_posted_before_position);
	return rc;
}

const struct sink_target_ops sink_http = { .name = "http",
	.open = http_open,
	.close = http_close,
	.put = http_put,
	.seal = sink_batch_seal,
	.publish = http_publish,
	.split = http_split,
	.forget = sink_batch_forget,
	.forget_cut = sink_batch_forget_cut };
