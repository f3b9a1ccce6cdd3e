/* consumers/push/alerts.c -- the thread that tells administrators: takes alerts that are due, posts them to
 * the webhook, records how it went. One at a time, at most alerts.rate a minute; what fails is tried again
 * with backoff, what nobody acknowledges comes again. Refuses redirects, and to hold a transaction open while
 * it waits for an answer. */
#include "consumers/push/push.h"

#include "lib/alert_template.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "sql.h"

#include <curl/curl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_US   (300 * PR_MS)
#define COUNT_US  (5 * PR_SEC)
#define MOST_TEXT "10"

struct teller {
	struct consumer *c;
	struct pr_pg *pg;
	CURL *curl;
	char *text; /* of the template */
	char who[300];
	unsigned failures;
	struct pr_series *sent, *failed, *open, *oldest;
	int64_t next_count_us;
};

enum { A_ID, A_CAUSE, A_COMMAND, A_DETAIL, A_TIMES, A_FIRST, A_LAST, A_SENT, A_TRIES };

/* ---------------------------------------------------------------- the request */

/* What they answer is not of interest. */
static size_t drop(char *data, size_t size, size_t n, void *arg)
{
	(void)data;
	(void)arg;
	return size * n;
}

static int stop_asked(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
	const struct teller *t = arg;

	(void)a, (void)b, (void)c, (void)d;
	return atomic_load(&t->c->stopping);
}

static void add(struct curl_slist **list, const char *line)
{
	struct curl_slist *longer = curl_slist_append(*list, line);

	if (!longer)
		abort(); /* out of memory */
	*list = longer;
}

/* The same key for the same sending: after a crash it comes again. */
static struct curl_slist *headers(const struct teller *t, const PGresult *res, int i)
{
	const struct pr_strs *more = &t->c->conf->alerts.headers;
	struct curl_slist *list = NULL;
	char key[100];

	(void)snprintf(key, sizeof(key), "Idempotency-Key: alert-%s-%s", PQgetvalue(res, i, A_ID),
		PQgetvalue(res, i, A_SENT));
	add(&list, "Content-Type: application/json");
	add(&list, "Expect:");
	add(&list, key);
	for (size_t h = 0; h < more->n; h++)
		add(&list, more->v[h]);
	return list;
}

static int set_up(
	struct teller *t, struct curl_slist *list, const struct pr_buf *body, char problem[CURL_ERROR_SIZE])
{
	CURL *c = t->curl;

	curl_easy_reset(c);
#define SET(option, value) (curl_easy_setopt(c, CURLOPT_##option, value) == CURLE_OK)
	return SET(URL, t->c->conf->alerts.url) && SET(PROTOCOLS_STR, "http,https") && SET(NOSIGNAL, 1L) &&
	       SET(PROXY, "") && SET(FOLLOWLOCATION, 0L) && SET(USERAGENT, "postrider/" PR_VERSION) &&
	       SET(HTTPHEADER, list) && SET(POSTFIELDS, body->s) &&
	       SET(POSTFIELDSIZE_LARGE, (curl_off_t)body->len) &&
	       SET(TIMEOUT_MS, (long)(t->c->conf->alerts.timeout_us / PR_MS)) && SET(WRITEFUNCTION, drop) &&
	       SET(NOPROGRESS, 0L) && SET(XFERINFOFUNCTION, stop_asked) && SET(XFERINFODATA, t) &&
	       SET(ERRORBUFFER, problem);
#undef SET
}

/* 0: it was taken; else *ret says what is wrong. */
static int post(
	struct teller *t, const PGresult *res, int i, const struct pr_buf *body, char *ret, size_t size)
{
	struct curl_slist *list = headers(t, res, i);
	char problem[CURL_ERROR_SIZE] = "";
	CURLcode code = CURLE_FAILED_INIT;
	long status = 0;

	if (set_up(t, list, body, problem))
		code = curl_easy_perform(t->curl);
	if (code == CURLE_OK)
		(void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
	curl_slist_free_all(list);
	if (code == CURLE_OK && status / 100 == 2)
		return 0;
	if (code == CURLE_OK)
		(void)snprintf(ret, size, "the webhook answered %ld", status);
	else
		(void)snprintf(ret, size, "the webhook did not answer: %s",
			*problem ? problem : curl_easy_strerror(code));
	return -1;
}

/* ---------------------------------------------------------------- one alert */

static int64_t after_failure_us(const PGresult *res, int i)
{
	return pr_backoff_us((unsigned)strtoul(PQgetvalue(res, i, A_TRIES), NULL, 10), PR_SEC, 300 * PR_SEC);
}

static int record(struct teller *t, const PGresult *res, int i, const char *problem, struct pr_err *err)
{
	char again[24];

	(void)snprintf(again, sizeof(again), "%" PRId64,
		problem ? after_failure_us(res, i) : t->c->conf->alerts.repeat_us);
	return pr_pg_run(t->pg, "SELECT push.alert_done($1, $2, $3::bigint * interval '1 microsecond', $4)",
		4, (const char *const[]){ PQgetvalue(res, i, A_ID), problem, again, t->who }, err);
}

static void tell_trouble(struct teller *t, const char *problem)
{
	struct pr_err err;

	if (problem) {
		(void)pr_fail(&err, PR_RETRY, "alerts do not reach anybody: %s", problem);
		(void)pr_hint(&err, "see alerts.url; meanwhile: postrider alerts list");
	}
	health_trouble(t->c, TROUBLE_ALERTS, problem ? &err : NULL);
	pr_counter_add(problem ? t->failed : t->sent, 1);
}

static int tell(struct teller *t, const PGresult *res, int i, struct pr_err *err)
{
	const struct pr_alert alert = { .alert_id = PQgetvalue(res, i, A_ID),
		.cause = PQgetvalue(res, i, A_CAUSE),
		.command = PQgetvalue(res, i, A_COMMAND),
		.detail = PQgetvalue(res, i, A_DETAIL),
		.first_at = PQgetvalue(res, i, A_FIRST),
		.last_at = PQgetvalue(res, i, A_LAST),
		.times = PQgetvalue(res, i, A_TIMES),
		.reminder = PQgetvalue(res, i, A_SENT) };
	char problem[CURL_ERROR_SIZE + 100];
	struct pr_buf body = { 0 };
	int taken, rc = 0;

	if (pr_alert_fill(&body, t->text, &alert, err) < 0) {
		pr_buf_free(&body);
		return -1;
	}
	taken = post(t, res, i, &body, problem, sizeof(problem)) == 0;
	pr_buf_free(&body);
	/* If we die here, it is sent again with the same Idempotency-Key, once its hold is over. */
	FAULT(push_alert_posted_before_recorded);
	if (taken || !atomic_load(&t->c->stopping)) {
		rc = record(t, res, i, taken ? NULL : problem, err);
		tell_trouble(t, taken ? NULL : problem);
	}
	return rc;
}

/* ---------------------------------------------------------------- the thread */

static PGresult *due(struct teller *t, struct pr_err *err)
{
	char rate[24], hold[24];

	(void)snprintf(rate, sizeof(rate), "%" PRId64, t->c->conf->alerts.rate);
	/* All of a round go one after the other. */
	(void)snprintf(
		hold, sizeof(hold), "%" PRId64, (int64_t)(10 * t->c->conf->alerts.timeout_us + 10 * PR_SEC));
	return pr_pg_exec(t->pg,
		"SELECT * FROM push.alerts_due($1, $2::bigint * interval '1 microsecond', $3, $4)", 4,
		(const char *const[]){ rate, hold, MOST_TEXT, t->who }, err);
}

static int round_of_work(struct teller *t, struct pr_err *err)
{
	PGresult *res = due(t, err);
	int rc = 0;

	if (!res)
		return -1;
	for (int i = 0; rc == 0 && i < PQntuples(res) && !atomic_load(&t->c->stopping); i++)
		rc = tell(t, res, i, err);
	PQclear(res);
	return rc;
}

/* What nobody has acknowledged, of all members. */
static int count(struct teller *t, struct pr_err *err)
{
	PGresult *res;

	if (pr_mono_us() < t->next_count_us)
		return 0;
	res = pr_pg_exec(t->pg,
		"SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(first_at)), 0) "
		"FROM push.admin_alert WHERE state IN ('PENDING', 'SENT', 'FAILED')",
		0, NULL, err);
	if (!res)
		return -1;
	pr_gauge_set(t->open, strtod(PQgetvalue(res, 0, 0), NULL));
	pr_gauge_set(t->oldest, strtod(PQgetvalue(res, 0, 1), NULL));
	PQclear(res);
	t->next_count_us = pr_mono_us() + COUNT_US;
	return 0;
}

static int begin(struct teller *t, struct consumer *c, struct pr_err *err)
{
	t->c = c;
	(void)snprintf(t->who, sizeof(t->who), "postrider-consumer %s", c->conf->group);
	t->sent = pr_series_one(pr_family_new(c->m.registry, PR_COUNTER, "postrider_alerts_sent_total", "", 0,
		"Alerts that the webhook took."));
	t->failed = pr_series_one(pr_family_new(c->m.registry, PR_COUNTER, "postrider_alerts_failed_total",
		"", 0, "Tries that it did not take."));
	t->open =
		pr_gauge_new(c->m.registry, "postrider_alerts_open", "Alerts that nobody has acknowledged.");
	t->oldest = pr_gauge_new(c->m.registry, "postrider_alerts_oldest_seconds",
		"Since when the oldest of them is there; 0: there is none.");
	t->text = pr_alert_template(c->conf->alerts.template_file, err);
	t->curl = curl_easy_init();
	if (t->text && !t->curl)
		return pr_fail(err, PR_STOP, "libcurl does not start");
	return t->text ? 0 : -1;
}

void *push_alerts(void *arg)
{
	struct teller t = { .pg = NULL };
	struct consumer *c = arg;
	struct pollfd wake = { .fd = c->wake_fd, .events = POLLIN };
	int64_t us = 0;
	struct pr_err err;

	if (begin(&t, c, &err) < 0) {
		health_trouble(c, TROUBLE_REFUSED, &err);
		consumer_stop(c, PR_EX_CONFIG);
	}
	while (!atomic_load(&c->stopping)) {
		if (session_open(&t.pg, c, "alerts", c->wake_fd, &err) == 0 && round_of_work(&t, &err) == 0 &&
			count(&t, &err) == 0) {
			t.failures = 0;
			us = POLL_US;
		} else {
			us = pr_backoff_us(t.failures++, 100 * PR_MS, 2 * PR_SEC);
			if (t.failures > 1 && !atomic_load(&c->stopping))
				health_trouble(c, TROUBLE_ALERTS, &err);
		}
		(void)poll(&wake, 1, (int)(us / PR_MS));
	}
	curl_easy_cleanup(t.curl);
	free(t.text);
	pr_pg_close(t.pg);
	return NULL;
}
