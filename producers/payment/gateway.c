/* producers/payment/gateway.c -- asks the payment gateway (approve, cancel) and the tax server (issue, void):
 * a few workers for each of the two, each with its own session in Postgres, do rows of
 * payment.gateway_request one after the other; one that is down takes no worker from the other. What an
 * answer means for the payment is decided in work.sql. Refuses to hold a transaction while it waits for an
 * answer, and to ask without an Idempotency-Key: a request may come a second time after a crash.
 *
 * 2xx: ok. 404: nothing known of it. Other 4xx: refused, but for 408, 425 and 429. All else, and no answer:
 * again. */
#include "producers/payment/gateway.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/fault.h"
#include "lib/json.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_US     (50 * PR_MS)
#define AWAY_LOW_US (100 * PR_MS)
#define AWAY_MAX_US (5 * PR_SEC)
#define LEASE_US    (5 * PR_SEC) /* beyond the request's own deadline */
#define BODY_MAX    16384
#define RETRY_MAX   300L /* seconds; whoever asks for more by Retry-After gets this */
#define SETTLES     5

struct gateway {
	struct gateway_opts opts;
	pthread_mutex_t mutex;
	pthread_cond_t changed; /* CLOCK_MONOTONIC */
	int opened, stopping;
	struct pr_err trouble; /* of the last worker that failed; text "": none */
	struct pr_family *asked;
	struct worker *worker;
	int64_t workers, started;
};

/* A row, while a worker has it. */
struct work {
	const struct ask *ask;
	char id[40], payment_id[40], user_id[40], receipt_no[128];
	int attempts;
	int64_t amount;
};

struct worker {
	struct gateway *g;
	pthread_t thread;
	int tax; /* asks the tax server, else the gateway */
	struct pr_pg *pg;
	CURL *curl;
	unsigned failed;
};

/* ---- what is asked ---- */

static const struct ask {
	const char *kind, *path, *key_suffix, *answer; /* the answer's member that is kept */
	int tax;
} asks[] = {
	{ "approve", "/approvals", "", "approval_id", 0 },
	{ "cancel", "/cancellations", "-cancel", "cancellation_id", 0 },
	{ "issue", "/receipts", "", "receipt_no", 1 },
	{ "void", "/voids", "-void", "receipt_no", 1 },
};

/* The table has no other kinds. */
static const struct ask *ask_of(const char *kind)
{
	size_t i = 0;

	while (i + 1 < sizeof(asks) / sizeof(*asks) && strcmp(asks[i].kind, kind) != 0)
		i++;
	return &asks[i];
}

static void put_body(struct pr_buf *b, const struct work *work)
{
	pr_buf_printf(b, "{\"payment_id\":\"%s\",\"user_id\":\"%s\",\"amount\":%" PRId64, work->payment_id,
		work->user_id, work->amount);
	if (*work->receipt_no) {
		pr_buf_puts(b, ",\"receipt_no\":");
		pr_buf_json(b, work->receipt_no, strlen(work->receipt_no));
	}
	pr_buf_puts(b, "}");
}

/* ---- one request ---- */

static size_t take(char *data, size_t size, size_t n, void *buf)
{
	struct pr_buf *b = buf;

	if (b->len + size * n > BODY_MAX)
		return 0;
	pr_buf_put(b, data, size * n);
	return size * n;
}

static int is_stopping(struct gateway *g)
{
	int stopping;

	(void)pthread_mutex_lock(&g->mutex);
	stopping = g->stopping;
	(void)pthread_mutex_unlock(&g->mutex);
	return stopping;
}

static int on_progress(void *gateway, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
	(void)a, (void)b, (void)c, (void)d;
	return is_stopping(gateway);
}

static struct curl_slist *headers(const struct work *work)
{
	char key[96];
	struct curl_slist *list = curl_slist_append(NULL, "Content-Type: application/json"), *longer;

	(void)snprintf(key, sizeof(key), "Idempotency-Key: %s%s", work->payment_id, work->ask->key_suffix);
	longer = list ? curl_slist_append(list, key) : NULL;
	if (!longer)
		abort(); /* out of memory */
	return longer;
}

static CURLcode perform(struct worker *w, const char *url, struct curl_slist *list, const struct pr_buf *body,
	struct pr_buf *answer)
{
	CURL *c = w->curl;

	curl_easy_reset(c);
#define SET(option, value) (curl_easy_setopt(c, CURLOPT_##option, value) == CURLE_OK)
	if (!(SET(URL, url) && SET(PROTOCOLS_STR, "http,https") && SET(FOLLOWLOCATION, 0L) &&
		    SET(PROXY, "") && SET(NOSIGNAL, 1L) && SET(POST, 1L) && SET(HTTPHEADER, list) &&
		    SET(POSTFIELDS, body->s) && SET(POSTFIELDSIZE, (long)body->len) &&
		    SET(USERAGENT, "postrider/" PR_VERSION) &&
		    SET(TIMEOUT_MS, (long)(w->g->opts.timeout_us / PR_MS)) && SET(WRITEFUNCTION, take) &&
		    SET(WRITEDATA, answer) && SET(NOPROGRESS, 0L) && SET(XFERINFOFUNCTION, on_progress) &&
		    SET(XFERINFODATA, w->g)))
		return CURLE_FAILED_INIT;
#undef SET
	return curl_easy_perform(c);
}

static const char *outcome_of(CURLcode code, long status)
{
	if (code != CURLE_OK)
		return "again";
	if (status >= 200 && status < 300)
		return "ok";
	if (status == 404)
		return "none";
	if (status >= 400 && status < 500 && status != 408 && status != 425 && status != 429)
		return "refused";
	return "again";
}

/* The member that the answer is kept for, the reason it gives, or what is known instead; malloc'd. */
static char *words(
	const struct work *work, const char *outcome, CURLcode code, long status, const struct pr_buf *b)
{
	cJSON *json = b->s ? cJSON_ParseWithLength(b->s, b->len) : NULL;
	const char *member = strcmp(outcome, "ok") == 0 ? work->ask->answer : "reason";
	const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, member));
	char *ret;

	if (s)
		ret = pr_asprintf("%.100s", s);
	else if (code != CURLE_OK)
		ret = pr_strdup(curl_easy_strerror(code));
	else
		ret = pr_asprintf("status %ld", status);
	cJSON_Delete(json);
	return ret;
}

/* What a row came to. */
struct verdict {
	const char *outcome;
	char *said;
	int64_t pause_us;
};

static int64_t pause_of(const struct worker *w, const struct work *work)
{
	const struct gateway_opts *o = &w->g->opts;
	curl_off_t wanted = 0;
	int64_t us = pr_backoff_us((unsigned)work->attempts - 1, o->backoff_us, o->backoff_max_us);

	if (curl_easy_getinfo(w->curl, CURLINFO_RETRY_AFTER, &wanted) == CURLE_OK && wanted > 0)
		us = (wanted < RETRY_MAX ? wanted : RETRY_MAX) * PR_SEC;
	return us;
}

/* A number that is no receipt's would be shown to people: 2xx without it is no answer. */
static int lacks_number(const struct work *work, const struct verdict *v)
{
	return strcmp(work->ask->kind, "issue") == 0 && strcmp(v->outcome, "ok") == 0 &&
	       strncmp(v->said, "status ", 7) == 0;
}

static void request(struct worker *w, const struct work *work, struct verdict *ret)
{
	const struct ask *ask = work->ask;
	char *url = pr_asprintf("%s%s", ask->tax ? w->g->opts.tax_url : w->g->opts.url, ask->path);
	struct pr_buf body = { 0 }, answer = { 0 };
	struct curl_slist *list = headers(work);
	long status = 0;
	CURLcode code;

	put_body(&body, work);
	code = perform(w, url, list, &body, &answer);
	(void)curl_easy_getinfo(w->curl, CURLINFO_RESPONSE_CODE, &status);
	ret->outcome = outcome_of(code, status);
	ret->said = words(work, ret->outcome, code, status, &answer);
	ret->pause_us = pause_of(w, work);
	if (lacks_number(work, ret))
		ret->outcome = "again";
	pr_counter_add(pr_series_get(w->g->asked, (const char *const[]){ ask->kind, ret->outcome }), 1);
	curl_slist_free_all(list);
	pr_buf_free(&body);
	pr_buf_free(&answer);
	free(url);
}

/* ---- rows ---- */

static int session(struct worker *w, struct pr_err *err)
{
	const struct gateway_opts *o = &w->g->opts;
	struct pr_pg_opts opts = {
		.conninfo = o->conninfo, .appname = o->appname, .timeout_us = o->db_timeout_us, .wake_fd = -1
	};

	if (w->pg && pr_pg_ok(w->pg))
		return 0;
	pr_pg_close(w->pg);
	w->pg = NULL;
	return pr_pg_open(&opts, &w->pg, err);
}

static void copy(char *to, size_t size, const PGresult *res, int col)
{
	(void)snprintf(to, size, "%s", PQgetvalue(res, 0, col));
}

/* 1: *ret is ours until its lease ends; 0: there is nothing. */
static int claim(struct worker *w, struct work *ret, struct pr_err *err)
{
	const struct gateway_opts *o = &w->g->opts;
	char lease[24];
	const char *const params[] = { w->tax ? "tax" : "gateway", lease };
	PGresult *res;
	int n;

	(void)snprintf(lease, sizeof(lease), "%lld", (long long)(o->timeout_us + LEASE_US));
	res = pr_pg_exec(w->pg, sql_payment_claim_work, 2, params, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	if (n > 0) {
		copy(ret->id, sizeof(ret->id), res, 0);
		ret->ask = ask_of(PQgetvalue(res, 0, 1));
		ret->attempts = atoi(PQgetvalue(res, 0, 2));
		copy(ret->payment_id, sizeof(ret->payment_id), res, 3);
		copy(ret->user_id, sizeof(ret->user_id), res, 4);
		ret->amount = atoll(PQgetvalue(res, 0, 5));
		copy(ret->receipt_no, sizeof(ret->receipt_no), res, 6);
	}
	PQclear(res);
	return n > 0;
}

/* Deadlocks have undone everything: again. What cannot be told is asked again when the lease ends. */
static int settle(struct worker *w, const struct work *work, const struct verdict *v, struct pr_err *err)
{
	char attempts[16], pause[24];
	const char *const params[] = { work->id, attempts, v->outcome, v->said, pause };
	int rc = -1;

	(void)snprintf(attempts, sizeof(attempts), "%d", work->attempts);
	(void)snprintf(pause, sizeof(pause), "%" PRId64, v->pause_us);
	for (int i = 0; rc < 0 && i < SETTLES; i++) {
		if (session(w, err) < 0)
			continue;
		rc = pr_pg_run(w->pg, sql_payment_settle_work, 5, params, err);
		if (rc < 0 && err->kind != PR_RETRY)
			break;
	}
	return rc;
}

/* 1: a row was done; 0: there was none. */
static int turn(struct worker *w, struct pr_err *err)
{
	struct verdict v = { 0 };
	struct work work;
	int rc;

	if (session(w, err) < 0)
		return -1;
	rc = claim(w, &work, err);
	if (rc <= 0)
		return rc;
	/* If we die here the row is ours and nobody was asked: it is due again when the lease ends. */
	FAULT(gateway_claimed);
	request(w, &work, &v);
	/* If we die here the other side has acted and we do not know it: it is asked again under the same
	 * key, when the lease ends, and answers the same. */
	FAULT(gateway_asked);
	rc = is_stopping(w->g) && strcmp(v.outcome, "again") == 0 ? 0 : settle(w, &work, &v, err);
	/* If we die here all is told: the outcome, the payment's state and the saga's answer are one
	 * transaction. */
	FAULT(gateway_settled);
	free(v.said);
	return rc < 0 ? -1 : 1;
}

/* ---- threads ---- */

static void after(int64_t us, struct timespec *ret)
{
	us += pr_mono_us();
	ret->tv_sec = (time_t)(us / PR_SEC);
	ret->tv_nsec = (us % PR_SEC) * 1000;
}

static void rest(struct gateway *g, int64_t us)
{
	struct timespec ts;

	after(us, &ts);
	(void)pthread_mutex_lock(&g->mutex);
	if (!g->stopping)
		(void)pthread_cond_timedwait(&g->changed, &g->mutex, &ts);
	(void)pthread_mutex_unlock(&g->mutex);
}

static int wait_opened(struct gateway *g)
{
	int stopping;

	(void)pthread_mutex_lock(&g->mutex);
	while (!g->opened && !g->stopping)
		(void)pthread_cond_wait(&g->changed, &g->mutex);
	stopping = g->stopping;
	(void)pthread_mutex_unlock(&g->mutex);
	return !stopping;
}

static void note(struct worker *w, int rc, const struct pr_err *err)
{
	if (rc >= 0 && w->failed == 0)
		return;
	w->failed = rc < 0 ? w->failed + 1 : 0;
	(void)pthread_mutex_lock(&w->g->mutex);
	w->g->trouble = rc < 0 ? *err : (struct pr_err){ 0 };
	(void)pthread_mutex_unlock(&w->g->mutex);
}

static void *work_thread(void *worker)
{
	struct worker *w = worker;
	struct pr_err err;

	w->curl = curl_easy_init();
	if (!w->curl)
		abort(); /* out of memory */
	if (wait_opened(w->g))
		while (!is_stopping(w->g)) {
			int rc = turn(w, &err);

			note(w, rc, &err);
			if (rc <= 0)
				rest(w->g, rc == 0 ? POLL_US
						   : pr_backoff_us(w->failed, AWAY_LOW_US, AWAY_MAX_US));
		}
	curl_easy_cleanup(w->curl);
	pr_pg_close(w->pg);
	return NULL;
}

static struct gateway *make(const struct gateway_opts *opts, struct pr_metrics *metrics)
{
	struct gateway *g = pr_calloc(1, sizeof(*g));
	pthread_condattr_t attr;

	g->opts = *opts;
	g->workers = opts->workers * ((opts->url ? 1 : 0) + (opts->tax_url ? 1 : 0));
	g->worker = pr_calloc((size_t)g->workers, sizeof(*g->worker));
	for (int64_t i = 0; i < g->workers; i++)
		g->worker[i] = (struct worker){ .g = g, .tax = !opts->url || i >= opts->workers };
	(void)pthread_mutex_init(&g->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&g->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	g->asked =
		pr_family_new(metrics, PR_COUNTER, "postrider_payment_gateway_requests_total", "kind,outcome",
			32, "Requests to the payment gateway and the tax server, by what they came to.");
	return g;
}

int gateway_new(
	const struct gateway_opts *opts, struct pr_metrics *metrics, struct gateway **ret, struct pr_err *err)
{
	struct gateway *g;

	*ret = NULL;
	if (!opts->url && !opts->tax_url)
		return 0;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return pr_fail(err, PR_STOP, "libcurl does not start");
	g = make(opts, metrics);
	for (; g->started < g->workers; g->started++) {
		struct worker *w = &g->worker[g->started];

		if (pr_thread_start(&w->thread, w->tax ? "tax" : "gateway", work_thread, w, err) < 0) {
			gateway_close(g);
			return -1;
		}
	}
	*ret = g;
	return 0;
}

int gateway_open(struct gateway *g, struct pr_err *err)
{
	int rc = 0;

	if (!g)
		return 0;
	(void)pthread_mutex_lock(&g->mutex);
	if (g->trouble.text[0]) {
		*err = g->trouble;
		rc = -1;
	}
	g->opened = 1;
	(void)pthread_cond_broadcast(&g->changed);
	(void)pthread_mutex_unlock(&g->mutex);
	return rc;
}

void gateway_close(struct gateway *g)
{
	if (!g)
		return;
	(void)pthread_mutex_lock(&g->mutex);
	g->stopping = 1;
	(void)pthread_cond_broadcast(&g->changed);
	(void)pthread_mutex_unlock(&g->mutex);
	for (int64_t i = 0; i < g->started; i++)
		(void)pthread_join(g->worker[i].thread, NULL);
	(void)pthread_cond_destroy(&g->changed);
	(void)pthread_mutex_destroy(&g->mutex);
	free(g->worker);
	free(g);
}
