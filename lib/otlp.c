/* lib/otlp.c -- the tracer: a ring of spans under a lock that is never held over a call to anybody, and the
 * thread that posts them. Refuses to keep what the collector does not take: a batch is tried again for a
 * minute at most (429, 502, 503, 504, or no answer: as the OTLP specification has it), then it is dropped;
 * any other answer is its last word. */
#include "lib/otlp.h"

#include "lib/clock.h"
#include "lib/consumer_conf.h"
#include "lib/daemon.h"
#include "lib/json_path.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#define BATCH         512 /* spans of one request */
#define PIECE         32  /* ... copied under one lock */
#define EVERY_US      PR_SEC
#define GIVE_UP_US    (60 * PR_SEC)
#define RETRY_MIN_US  (500 * PR_MS)
#define RETRY_MAX_US  (30 * PR_SEC)
#define ANSWER_MAX    65536
#define LOOK_MS       1000
#define SAMPLE_SEED   0x706f737472696465ULL
#define SPAN_SEED     0x72656c6179207370ULL
#define SAMPLE_ALL    1000000
#define INSTANCE_SIZE 100

struct pr_tracer {
	const struct pr_tracing_conf *conf;
	uint64_t below; /* hashes of ids that are traced */
	struct pr_series *sent, *dropped, *refused;
	_Atomic uint64_t next_id;

	pthread_mutex_t mutex; /* of what follows */
	pthread_cond_t changed;
	struct pr_span *ring;
	size_t cap, head, n;
	int stopping;
	int64_t until_us; /* monotonic: once stopping, everything has ended then */

	/* the thread's own */
	pthread_t thread;
	struct pr_otlp_resource resource;
	char instance[INSTANCE_SIZE];
	struct pr_span batch[BATCH];
	size_t batch_n;
	struct pr_buf text, answer;
	struct curl_slist *headers;
	CURLM *multi; /* only curl_multi_wakeup by others */
};

int pr_tracing_check(const struct pr_tracing_conf *t, const struct pr_conf *conf, struct pr_err *err)
{
	if (!t->endpoint)
		return 0;
	if (pr_consumer_check_url(t->endpoint, "tracing.endpoint", conf, err) < 0)
		return -1;
	return pr_consumer_check_webhook(&t->headers, "tracing.headers", NULL, "tracing.headers", conf, err);
}

/* ---------------------------------------------------------------- who is traced */

static void put_id(unsigned char id[8], uint64_t v)
{
	v = v ? v : 1;
	memcpy(id, &v, sizeof(v));
}

static int by_its_id(const struct pr_tracer *t, const unsigned char id[16], struct pr_trace *ret)
{
	static const unsigned char none[16];

	if (t->conf->sample < SAMPLE_ALL && XXH3_64bits_withSeed(id, 16, SAMPLE_SEED) >= t->below)
		return 0;
	if (memcmp(id, none, 16) == 0)
		return 0;
	memcpy(ret->id, id, 16);
	put_id(ret->span, XXH3_64bits_withSeed(id, 16, SPAN_SEED));
	ret->sampled = 1;
	return 1;
}

int pr_tracer_takes(const struct pr_tracer *t, const char *traceparent, size_t n, const unsigned char id[16],
	struct pr_trace *ret, int *ret_first)
{
	if (!t)
		return 0;
	*ret_first = 0;
	if (traceparent && pr_traceparent_read(traceparent, n, ret) == 0)
		return ret->sampled;
	*ret_first = 1;
	return by_its_id(t, id, ret);
}

/* Source: splitmix64 (Vigna), public domain: a permutation, so no number comes twice. */
void pr_tracer_span_id(struct pr_tracer *t, unsigned char id[8])
{
	uint64_t z = atomic_fetch_add(&t->next_id, 0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	put_id(id, z ^ z >> 31);
}

/* ---------------------------------------------------------------- the queue */

void pr_tracer_dropped(struct pr_tracer *t, uint64_t n)
{
	if (t && n > 0)
		pr_counter_add(t->dropped, n);
}

void pr_tracer_add(struct pr_tracer *t, const struct pr_span *s)
{
	int full;

	if (!t)
		return;
	(void)pthread_mutex_lock(&t->mutex);
	full = t->n == t->cap;
	if (!full) {
		t->ring[(t->head + t->n) % t->cap] = *s;
		if (++t->n == BATCH)
			(void)pthread_cond_signal(&t->changed);
	}
	(void)pthread_mutex_unlock(&t->mutex);
	if (full)
		pr_tracer_dropped(t, 1);
}

/* Under the lock. */
static void wait_until(struct pr_tracer *t, int64_t until_us)
{
	struct timespec ts = { .tv_sec = (time_t)(until_us / PR_SEC), .tv_nsec = until_us % PR_SEC * 1000 };

	(void)pthread_cond_timedwait(&t->changed, &t->mutex, &ts);
}

/* A batch, when it is full or the oldest has waited long enough. 0: we stop, and nothing is left. */
static int take(struct pr_tracer *t)
{
	int64_t until = pr_mono_us() + EVERY_US;
	int more = 1;

	t->batch_n = 0;
	(void)pthread_mutex_lock(&t->mutex);
	while (!t->stopping && t->n < BATCH && (t->n == 0 || pr_mono_us() < until)) {
		if (pr_mono_us() >= until)
			until = pr_mono_us() + EVERY_US;
		wait_until(t, until);
	}
	(void)pthread_mutex_unlock(&t->mutex);
	while (more && t->batch_n < BATCH) {
		(void)pthread_mutex_lock(&t->mutex);
		for (size_t i = 0; i < PIECE && t->n > 0; i++, t->n--) {
			t->batch[t->batch_n++] = t->ring[t->head];
			t->head = (t->head + 1) % t->cap;
		}
		more = t->n > 0;
		(void)pthread_mutex_unlock(&t->mutex);
	}
	return t->batch_n > 0;
}

/* Monotonic: PR_FOREVER while we do not stop. */
static int64_t end_of(struct pr_tracer *t)
{
	int64_t end;

	(void)pthread_mutex_lock(&t->mutex);
	end = t->stopping ? t->until_us : PR_FOREVER;
	(void)pthread_mutex_unlock(&t->mutex);
	return end;
}

/* ---------------------------------------------------------------- one request */

static size_t on_answer(char *p, size_t size, size_t n, void *ctx)
{
	struct pr_tracer *t = ctx;

	if (t->answer.len + n * size > ANSWER_MAX)
		return 0;
	pr_buf_put(&t->answer, p, n * size);
	return n * size;
}

static int set_up(CURL *c, struct pr_tracer *t)
{
	long ms = (long)(t->conf->timeout_us / PR_MS);

#define SET(option, value) (curl_easy_setopt(c, CURLOPT_##option, value) == CURLE_OK)
	return SET(URL, t->conf->endpoint) && SET(PROTOCOLS_STR, "http,https") && SET(FOLLOWLOCATION, 0L) &&
			       SET(PROXY, "") && SET(NETRC, (long)CURL_NETRC_IGNORED) &&
			       SET(HTTP09_ALLOWED, 0L) && SET(USERAGENT, "postrider/" PR_VERSION) &&
			       SET(NOSIGNAL, 1L) && SET(TIMEOUT_MS, ms) && SET(CONNECTTIMEOUT_MS, ms) &&
			       SET(QUICK_EXIT, 1L) && SET(WRITEFUNCTION, on_answer) && SET(WRITEDATA, t) &&
			       SET(HTTPHEADER, t->headers) && SET(POSTFIELDS, t->text.s) &&
			       SET(POSTFIELDSIZE_LARGE, (curl_off_t)t->text.len)
		       ? 0
		       : -1;
#undef SET
}

/* Our own deadline, which a stop brings nearer; libcurl's may not see all that hangs. */
static int perform(struct pr_tracer *t, int64_t until_us)
{
	int running, left;
	CURLMsg *m;

	for (;;) {
		if (curl_multi_perform(t->multi, &running) != CURLM_OK)
			return -1;
		if (!running)
			break;
		if (pr_mono_us() > until_us || pr_mono_us() > end_of(t))
			return -1;
		(void)curl_multi_poll(t->multi, NULL, 0, LOOK_MS, NULL);
	}
	m = curl_multi_info_read(t->multi, &left);
	return m && m->data.result == CURLE_OK ? 0 : -1;
}

/* The status, 0: no answer. *ret_after_us: it asked for so long a pause. */
static long post(struct pr_tracer *t, int64_t *ret_after_us)
{
	CURL *c = curl_easy_init();
	curl_off_t after = 0;
	long status = 0;

	t->answer.len = 0;
	if (c && set_up(c, t) == 0 && curl_multi_add_handle(t->multi, c) == CURLM_OK) {
		if (perform(t, pr_mono_us() + t->conf->timeout_us) == 0)
			(void)curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
		(void)curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &after);
		(void)curl_multi_remove_handle(t->multi, c);
	}
	curl_easy_cleanup(c);
	*ret_after_us = after > 0 && after < GIVE_UP_US / PR_SEC ? after * PR_SEC : 0;
	return status;
}

/* {"partialSuccess": {"rejectedSpans": "3"}}: so many of the batch. */
static uint64_t rejected(const struct pr_tracer *t)
{
	const char *raw;
	size_t n;
	uint64_t v;

	if (t->answer.len == 0 ||
		pr_json_at(t->answer.s, t->answer.len, "partialSuccess.rejectedSpans", &raw, &n) != 1)
		return 0;
	v = strtoull(raw + (*raw == '"'), NULL, 10);
	return v < t->batch_n ? v : t->batch_n;
}

/* 1: it may be taken later. */
static int is_busy(long status)
{
	return status == 0 || status == 429 || status == 502 || status == 503 || status == 504;
}

/* Until the pause is over or we stop. */
static void pause_for(struct pr_tracer *t, int64_t us)
{
	int64_t until = pr_mono_us() + us;

	(void)pthread_mutex_lock(&t->mutex);
	while (!t->stopping && pr_mono_us() < until)
		wait_until(t, until);
	(void)pthread_mutex_unlock(&t->mutex);
}

/* 0: the batch is settled. Once we stop there is one more try, and no pause. */
static int once_more(struct pr_tracer *t, unsigned tries, int64_t after_us, int64_t give_up_us)
{
	int64_t us = pr_backoff_us(tries, RETRY_MIN_US, RETRY_MAX_US);

	if (end_of(t) != PR_FOREVER)
		return 0;
	us = us > after_us ? us : after_us;
	if (pr_mono_us() + us > give_up_us)
		return 0;
	pause_for(t, us);
	return pr_mono_us() < end_of(t);
}

static void deliver(struct pr_tracer *t)
{
	int64_t give_up = pr_mono_us() + GIVE_UP_US, after = 0;
	unsigned tries = 0;
	uint64_t lost;
	long status;

	t->text.len = 0;
	pr_otlp_put(&t->text, &t->resource, t->batch, t->batch_n);
	do
		status = pr_mono_us() < end_of(t) ? post(t, &after) : 0;
	while (is_busy(status) && once_more(t, tries++, after, give_up));
	if (is_busy(status)) {
		pr_tracer_dropped(t, t->batch_n);
	} else if (status / 100 != 2) {
		pr_counter_add(t->refused, t->batch_n);
	} else {
		lost = rejected(t);
		pr_counter_add(t->sent, t->batch_n - lost);
		pr_counter_add(t->refused, lost);
	}
}

static void *run(void *tracer)
{
	struct pr_tracer *t = tracer;

	while (take(t))
		deliver(t);
	return NULL;
}

/* ---------------------------------------------------------------- begin and end */

static void add_header(struct pr_tracer *t, const char *line)
{
	struct curl_slist *longer = curl_slist_append(t->headers, line);

	if (!longer)
		abort(); /* out of memory */
	t->headers = longer;
}

static void tracer_free(struct pr_tracer *t)
{
	curl_slist_free_all(t->headers);
	(void)curl_multi_cleanup(t->multi);
	pr_buf_free(&t->text);
	pr_buf_free(&t->answer);
	(void)pthread_cond_destroy(&t->changed);
	(void)pthread_mutex_destroy(&t->mutex);
	free(t->ring);
	free(t);
}

static void count(struct pr_tracer *t, struct pr_metrics *m)
{
	struct pr_family *f = pr_family_new(m, PR_COUNTER, "postrider_tracing_spans_total", "outcome", 0,
		"Spans by what became of them: sent to the collector, refused by it, dropped for want of "
		"room "
		"or an answer.");

	t->sent = pr_series_get(f, (const char *const[]){ "sent" });
	t->dropped = pr_series_get(f, (const char *const[]){ "dropped" });
	t->refused = pr_series_get(f, (const char *const[]){ "refused" });
}

static struct pr_tracer *tracer_new(
	const struct pr_tracing_conf *conf, const char *group, struct pr_metrics *m)
{
	struct pr_tracer *t = pr_calloc(1, sizeof(*t));
	pthread_condattr_t attr;
	uint64_t seed = (uint64_t)pr_wall_us() ^ (uint64_t)getpid() << 32;
	char host[64] = "";

	t->conf = conf;
	t->below = (uint64_t)conf->sample * (UINT64_MAX / SAMPLE_ALL);
	t->cap = (size_t)conf->queue;
	t->ring = pr_calloc(t->cap, sizeof(*t->ring));
	(void)!getrandom(&seed, sizeof(seed), GRND_NONBLOCK);
	atomic_store(&t->next_id, seed);
	(void)pthread_mutex_init(&t->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&t->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	(void)gethostname(host, sizeof(host) - 1);
	(void)snprintf(t->instance, sizeof(t->instance), "%s:%d", host, (int)getpid());
	t->resource = (struct pr_otlp_resource){ conf->service, t->instance, group };
	t->multi = curl_multi_init();
	add_header(t, "Content-Type: application/json");
	add_header(t, "Expect:");
	for (size_t i = 0; i < conf->headers.n; i++)
		add_header(t, conf->headers.v[i]);
	count(t, m);
	return t;
}

int pr_tracer_start(const struct pr_tracing_conf *conf, const char *group, struct pr_metrics *m,
	struct pr_tracer **ret, struct pr_err *err)
{
	struct pr_tracer *t;

	*ret = NULL;
	if (!conf->endpoint)
		return 0;
	t = tracer_new(conf, group, m);
	if (!t->multi) {
		tracer_free(t);
		return pr_fail(err, PR_STOP, "no HTTP client for spans: out of memory");
	}
	if (pr_thread_start(&t->thread, "tracing", run, t, err) < 0) {
		tracer_free(t);
		return -1;
	}
	*ret = t;
	return 0;
}

int64_t pr_tracer_budget_us(const struct pr_tracer *t)
{
	return t ? t->conf->timeout_us + PR_SEC : 0;
}

int pr_tracer_stop(struct pr_tracer *t)
{
	struct timespec until;
	int64_t end;

	if (!t)
		return 0;
	(void)pthread_mutex_lock(&t->mutex);
	t->stopping = 1;
	t->until_us = pr_mono_us() + t->conf->timeout_us;
	end = t->until_us + PR_SEC;
	(void)pthread_cond_signal(&t->changed);
	(void)pthread_mutex_unlock(&t->mutex);
	(void)curl_multi_wakeup(t->multi);
	until = (struct timespec){ .tv_sec = (time_t)(end / PR_SEC), .tv_nsec = end % PR_SEC * 1000 };
	if (pthread_clockjoin_np(t->thread, NULL, CLOCK_MONOTONIC, &until) != 0)
		return -1;
	tracer_free(t);
	return 0;
}
