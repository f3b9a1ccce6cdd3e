/* consumers/push/desk.c -- the thread between the table and the streams: gives what is pending its place, one
 * member at a time so that places appear in their order, and hands what has one to whoever listens at this
 * member. Woken by NOTIFY; a wake that is lost costs POLL_US. Refuses to begin serving before it knows where
 * the table ends. */
#include "consumers/push/push.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/log.h"
#include "lib/service.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_US     (500 * PR_MS)
#define TURN_US     (20 * PR_MS) /* another member is sending */
#define SEND_TEXT   "500"
#define FORGET_MOST "2000"

struct desk {
	struct api api; /* http NULL: not serving yet */
	struct consumer *c;
	struct pr_pg *pg;
	unsigned failures;
	int64_t next_beat_us, next_forget_us;
	pthread_t alerts;
	int alerting;
	struct pr_series *sent, *streams;
};

static int64_t number(const PGresult *res)
{
	return PQgetisnull(res, 0, 0) ? 0 : strtoll(PQgetvalue(res, 0, 0), NULL, 10);
}

static int one_number(
	struct desk *k, const char *sql, int n, const char *const *params, int64_t *ret, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(k->pg, sql, n, params, err);

	if (!res)
		return -1;
	*ret = number(res);
	PQclear(res);
	return 0;
}

/* ---------------------------------------------------------------- a session that listens */

static int session(struct desk *k, struct pr_err *err)
{
	struct pr_pg *was = k->pg;

	if (session_open(&k->pg, k->c, "desk", k->c->wake_fd, err) < 0)
		return -1;
	return k->pg == was ? 0 : pr_pg_run(k->pg, "LISTEN push", 0, NULL, err);
}

/* Whether somebody rang. */
static int rang(struct desk *k)
{
	PGconn *conn = pr_pg_conn(k->pg);
	PGnotify *n;
	int any = 0;

	(void)PQconsumeInput(conn);
	for (; (n = PQnotifies(conn)); any = 1)
		PQfreemem(n);
	return any;
}

static void rest(struct desk *k, int64_t us)
{
	struct pollfd wake = { .fd = k->c->wake_fd, .events = POLLIN };
	int64_t beat = k->next_beat_us - pr_mono_us();
	struct pr_err ignored;

	us = beat < us ? beat : us;
	if (us <= 0)
		return;
	if (!k->pg || !pr_pg_ok(k->pg))
		(void)poll(&wake, 1, (int)((us + PR_MS - 1) / PR_MS));
	else if (!rang(k) && pr_pg_idle(k->pg, us, &ignored) >= 0)
		(void)rang(k);
}

/* ---------------------------------------------------------------- serving */

static int serve(struct desk *k, struct pr_err *err)
{
	struct pr_tokens_opts opts = {
		.url = k->c->conf->push.jwks, .issuer = PR_USER_ISSUER, .audience = PR_USER_AUDIENCE
	};
	int64_t place;

	if (k->api.http)
		return 0;
	if (kind_schema(k->c->conf, k->pg, "push", sql_push_schema, err) < 0 ||
		one_number(k, "SELECT max(place) FROM push.notification", 0, NULL, &place, err) < 0)
		return -1;
	streams_begin_at(k->api.streams, place);
	if (!k->api.tokens && pr_tokens_new(&opts, &k->api.tokens, err) < 0)
		return -1;
	if (api_open(&k->api, err) < 0)
		return -1;
	pr_log(PR_INFO, "notifications served", KI("port", pr_http_port(k->api.http)));
	if (!k->alerting && k->c->conf->alerts.url) {
		if (pr_thread_start(&k->alerts, "alerts", push_alerts, k->c, err) < 0)
			return -1;
		k->alerting = 1;
	}
	return 0;
}

/* 1: there is more to do at once. */
static int deliver(struct desk *k, struct pr_err *err)
{
	char after[24];
	PGresult *res;
	int n;

	(void)snprintf(after, sizeof(after), "%" PRId64, streams_place(k->api.streams));
	res = pr_pg_exec(k->pg, sql_push_new, 1, (const char *const[]){ after }, err);
	if (!res)
		return -1;
	n = PQntuples(res);
	streams_deliver(k->api.streams, res);
	PQclear(res);
	return n == 500;
}

static int forget(struct desk *k, struct pr_err *err)
{
	int64_t every = k->c->conf->handler.keep_us / 16, n;
	char keep[24];

	every = every < PR_SEC / 2 ? PR_SEC / 2 : every > 60 * PR_SEC ? 60 * PR_SEC : every;
	k->next_forget_us = pr_mono_us() + every;
	(void)snprintf(keep, sizeof(keep), "%" PRId64, k->c->conf->handler.keep_us);
	return one_number(k, "SELECT push.forget($1::bigint * interval '1 microsecond', $2)", 2,
		(const char *const[]){ keep, FORGET_MOST }, &n, err);
}

static void beat(struct desk *k)
{
	if (pr_mono_us() < k->next_beat_us)
		return;
	k->next_beat_us = pr_mono_us() + k->c->conf->push.heartbeat_us;
	streams_beat(k->api.streams, pr_wall_us() / PR_SEC);
}

/* How long there is nothing to do. */
static int64_t round_of_work(struct desk *k, struct pr_err *err)
{
	int64_t sent = 0;
	int more;

	if (serve(k, err) < 0)
		return -1;
	if (!atomic_load(&k->c->paused) &&
		one_number(k, "SELECT push.send($1)", 1, (const char *const[]){ SEND_TEXT }, &sent, err) < 0)
		return -1;
	if (sent > 0)
		pr_counter_add(k->sent, (uint64_t)sent);
	more = deliver(k, err);
	if (more < 0 || (pr_mono_us() >= k->next_forget_us && forget(k, err) < 0))
		return -1;
	pr_gauge_set(k->streams, (double)streams_count(k->api.streams));
	return more || sent > 0 ? 0 : sent < 0 ? TURN_US : POLL_US;
}

/* What cannot be mended by waiting ends the program, as it would at the start. */
static void failed(struct desk *k, const struct pr_err *err)
{
	if (atomic_load(&k->c->stopping))
		return;
	if (!k->api.http && (err->exit == PR_EX_CONFIG || strcmp(err->code, "EACCES") == 0)) {
		health_trouble(k->c, TROUBLE_REFUSED, err);
		consumer_stop(k->c, err->exit);
	} else if (++k->failures > 1) {
		health_trouble(k->c, TROUBLE_PUSH, err);
	}
}

static void begin(struct desk *k, struct consumer *c)
{
	k->c = k->api.c = c;
	k->api.streams = streams_new(c->conf->push.streams, c->conf->push.per_user);
	k->sent = pr_series_one(pr_family_new(c->m.registry, PR_COUNTER, "postrider_notifications_sent_total",
		"", 0, "Notifications that this process sent."));
	k->streams = pr_gauge_new(
		c->m.registry, "postrider_notification_streams", "Clients that listen at this process.");
}

static void end(struct desk *k)
{
	if (k->alerting)
		(void)pthread_join(k->alerts, NULL);
	api_close(&k->api);
	streams_free(k->api.streams);
	pr_tokens_free(k->api.tokens);
	pr_pg_close(k->pg);
	free(k);
}

void *push_desk(void *arg)
{
	struct desk *k = pr_calloc(1, sizeof(*k));
	struct consumer *c = arg;
	struct pr_err err;
	int64_t us;

	begin(k, c);
	while (!atomic_load(&c->stopping)) {
		us = -1;
		if (session(k, &err) == 0)
			us = round_of_work(k, &err);
		if (us < 0) {
			failed(k, &err);
			us = pr_backoff_us(k->failures, 100 * PR_MS, 2 * PR_SEC);
		} else {
			k->failures = 0;
			health_trouble(c, TROUBLE_PUSH, NULL);
		}
		beat(k);
		rest(k, us);
	}
	end(k);
	return NULL;
}
