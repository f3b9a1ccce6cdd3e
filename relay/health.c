/* relay/health.c -- how well the relay is: lag, state, one sentence, and the HTTP pages that say so.
 * Refuses to be green while anything is stuck: what it does not know counts against it. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/json.h"
#include "lib/log.h"

#include <inttypes.h>
#include <libpq-fe.h>
#include <stdlib.h>
#include <string.h>

#define SILENT_US                                                                                            \
	(2 * PR_SEC)   /* no word for so long: from Postgres it counts as lag, from Kafka as trouble */
#define LAGGING_S 30.0 /* a relay that streams and is later than this says so */

static const double batch_buckets[] = { 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000 };
static const char *const states[] = { "starting", "standby", "ok", "warn", "paused", "error", "stopping",
	NULL };

static struct {
	struct pr_series *up, *lag, *pending, *parked_events, *parked_keys, *waiting, *in_flight, *ranges,
		*foreign;
	struct pr_series *log_dropped, *last_commit;
	struct pr_family *state;
} gauges; /* one relay a process */

static struct pr_series *gauge(struct pr_metrics *m, const char *name, const char *help)
{
	return pr_series_one(pr_family_new(m, PR_GAUGE, name, "", 0, help));
}

void health_init(struct relay *r)
{
	struct pr_metrics *m = r->m.registry = pr_metrics_new();
	struct pr_family *info;
	char libpq[16];

	(void)snprintf(libpq, sizeof(libpq), "%d", PQlibVersion());

	info = pr_family_new(m, PR_GAUGE, "postrider_build_info", "version,librdkafka,libpq", 0,
		"Always 1; the versions are in the labels.");
	pr_gauge_set(
		pr_series_get(info, (const char *const[]){ PR_VERSION, rd_kafka_version_str(), libpq }), 1);
	gauges.up = gauge(m, "postrider_up", "1 while the process serves.");
	gauges.state =
		pr_family_new(m, PR_GAUGE, "postrider_state", "state", 0, "1 for the state the relay is in.");
	gauges.lag = gauge(m, "postrider_lag_seconds",
		"Age of the oldest committed event that is not acknowledged by Kafka; 0 when drained.");
	gauges.pending = gauge(m, "postrider_pending_events",
		"Events not yet published; an upper bound, for sequences have gaps. 0 when drained.");
	r->m.published = pr_family_new(
		m, PR_COUNTER, "postrider_published_total", "topic", 1000, "Events acknowledged by Kafka.");
	r->m.published_bytes = pr_family_new(m, PR_COUNTER, "postrider_published_bytes_total", "topic", 1000,
		"Payload bytes acknowledged by Kafka.");
	r->m.insert_to_ack = pr_series_one(pr_histogram_new(m, "postrider_insert_to_ack_seconds", "",
		pr_seconds_buckets, pr_seconds_buckets_n,
		"From an event's created_at to Kafka's acknowledgement (the commit time is not known)."));
	gauges.parked_events =
		gauge(m, "postrider_parked_events", "Events held back because one of their key was refused.");
	gauges.parked_keys = gauge(m, "postrider_parked_keys", "Keys held back.");
	gauges.waiting = gauge(m, "postrider_waiting_events", "Events whose topic cannot be written to.");
	gauges.in_flight = gauge(m, "postrider_in_flight_events", "Events taken and not yet acknowledged.");
	gauges.ranges =
		gauge(m, "postrider_partitions_ahead", "Empty ranges of outbox.event ahead of the sequence.");
	gauges.foreign = gauge(m, "postrider_foreign_xid_events",
		"Events with a transaction id that this server has not assigned; they are not published.");
	r->m.restarts = pr_family_new(m, PR_COUNTER, "postrider_producer_restarts_total", "reason", 0,
		"Producers replaced after an error.");
	r->m.pg_reconnects = pr_series_one(pr_family_new(
		m, PR_COUNTER, "postrider_pg_reconnects_total", "", 0, "Connections to Postgres made anew."));
	r->m.batch_events = pr_series_one(pr_histogram_new(m, "postrider_batch_events", "", batch_buckets,
		sizeof(batch_buckets) / sizeof(batch_buckets[0]), "Events in one shipment."));
	gauges.last_commit =
		gauge(m, "postrider_last_published_age_seconds", "Since the last shipment was acknowledged.");
	gauges.log_dropped = gauge(m, "postrider_log_lines_dropped", "Log lines that could not be written.");
	pr_metrics_process(m);
	pr_gauge_set(gauges.up, 1);
}

void health_release(struct relay *r)
{
	free(r->waiting);
	pr_position_release(&r->committed);
	pr_metrics_free(r->m.registry);
}

/* ---------------------------------------------------------------- trouble */

static const char *const trouble_names[TROUBLE_COUNT] = { "postgres", "kafka", "refused", "janitor",
	"retention", "ranges", "reload" };

void health_trouble(struct relay *r, enum trouble which, const struct pr_err *err)
{
	int began, ended, changed;

	(void)pthread_mutex_lock(&r->mutex);
	began = err && r->trouble_since_us[which] == 0;
	ended = !err && r->trouble_since_us[which] != 0;
	changed = err && strcmp(err->text, r->trouble[which].text) != 0;
	if (err)
		r->trouble[which] = *err;
	if (began)
		r->trouble_since_us[which] = pr_mono_us();
	if (ended) {
		r->trouble_since_us[which] = 0;
		memset(&r->trouble[which], 0, sizeof(r->trouble[which]));
	}
	(void)pthread_mutex_unlock(&r->mutex);
	if (began || changed)
		pr_log_err(err->kind == PR_STOP ? PR_ERROR : PR_WARN, trouble_names[which], err);
	else if (ended)
		pr_log(PR_INFO, "well again", KS("what", trouble_names[which]));
}

void health_committed(struct relay *r, const struct pr_position *position)
{
	(void)pthread_mutex_lock(&r->mutex);
	pr_position_copy(&r->committed, position);
	(void)pthread_mutex_unlock(&r->mutex);
	atomic_store(&r->published_seq, position->top);
	atomic_store(&r->last_commit_us, pr_mono_us());
}

void health_committed_unknown(struct relay *r)
{
	(void)pthread_mutex_lock(&r->mutex);
	pr_position_release(&r->committed);
	(void)pthread_mutex_unlock(&r->mutex);
}

/* ---------------------------------------------------------------- lag */

static int64_t least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int streaming(struct relay *r)
{
	return pipe_state(&r->pipe) == PIPE_STREAMING;
}

double health_lag(struct relay *r)
{
	static _Atomic int64_t known_us; /* lag when Postgres last answered */
	int64_t now = pr_wall_us() + atomic_load(&source_clock_skew_us), oldest, lag, silent;
	size_t queued;

	oldest = least(pipe_oldest_us(&r->pipe, &queued), atomic_load(&r->in_flight_oldest_us));
	oldest = least(oldest, atomic_load(&r->held_oldest_us));
	oldest = least(oldest, atomic_load(&r->scheduled_oldest_us));
	if (!streaming(r))
		oldest = least(oldest, atomic_load(&r->probe_oldest_us));
	lag = oldest == INT64_MAX || oldest > now ? 0 : now - oldest;
	silent = pr_mono_us() - atomic_load(&source_contact_us);
	if (r->conf->source.engine == PR_ENGINE_TABLE && silent > SILENT_US &&
		!(streaming(r) && queued > 0)) {
		/* Rows may have been committed ever since: nobody can tell us that they were not. */
		lag = atomic_load(&known_us) + silent > lag ? atomic_load(&known_us) + silent : lag;
	} else {
		atomic_store(&known_us, lag);
	}
	return (double)lag / (double)PR_SEC;
}

static uint64_t pending(struct relay *r)
{
	uint64_t held = atomic_load(&r->parked_events) + atomic_load(&r->waiting_events);
	int64_t ahead = atomic_load(&source_last_seq) - atomic_load(&r->published_seq);
	size_t queued;

	(void)pipe_oldest_us(&r->pipe, &queued);
	/* Drained: nothing on its way, and the last turn found nothing more. */
	if (streaming(r) && queued == 0 && atomic_load(&r->in_flight) == 0 && health_lag(r) == 0)
		ahead = 0;
	return held + (ahead > 0 ? (uint64_t)ahead : 0);
}

/* Since Kafka acknowledged anything while it was asked to; a call that waits for it has not failed yet. */
static int64_t kafka_silent_us(struct relay *r)
{
	int64_t since = atomic_load(&r->in_flight_since_us), commit = atomic_load(&r->last_commit_us);

	if (!streaming(r) || atomic_load(&r->in_flight) == 0)
		return 0;
	return pr_mono_us() - (commit > since ? commit : since);
}

/* ---------------------------------------------------------------- state */

struct verdict {
	const char *state;
	char sentence[400];
	char hint[400];
};

static int say(struct verdict *v, const char *state, const char *sentence, const char *hint)
{
	v->state = state;
	(void)snprintf(v->sentence, sizeof(v->sentence), "%s", sentence);
	(void)snprintf(v->hint, sizeof(v->hint), "%s", hint);
	return 1;
}

static int trouble_verdict(struct relay *r, struct verdict *v, enum trouble which, const char *state)
{
	char sentence[400];
	int yes;

	(void)pthread_mutex_lock(&r->mutex);
	yes = r->trouble_since_us[which] != 0;
	if (yes) {
		(void)snprintf(sentence, sizeof(sentence), "%s", r->trouble[which].text);
		(void)say(v, state, sentence, r->trouble[which].hint);
	}
	(void)pthread_mutex_unlock(&r->mutex);
	return yes;
}

static int held_verdict(struct relay *r, struct verdict *v)
{
	uint64_t keys = atomic_load(&r->parked_keys), waiting = atomic_load(&r->waiting_events);
	uint64_t foreign = atomic_load(&source_foreign.count);
	char text[300];

	if (keys > 0) {
		(void)snprintf(text, sizeof(text), "%" PRIu64 " events of %" PRIu64 " keys are parked",
			atomic_load(&r->parked_events), keys);
		return say(v, "warn", text, "postrider parked list");
	}
	if (waiting > 0) {
		(void)snprintf(text, sizeof(text),
			"%" PRIu64 " events wait for topics that cannot be written to", waiting);
		return say(
			v, "warn", text, "create the topics: they are named under waiting in /status.json");
	}
	if (foreign > 0) {
		(void)snprintf(text, sizeof(text),
			"%" PRIu64 " events from seq %" PRId64
			" on carry a transaction id that this server has not assigned",
			foreign, atomic_load(&source_foreign.first_seq));
		return say(v, "warn", text, "after a restore or replication: postrider position adopt");
	}
	return 0;
}

static void judge(struct relay *r, struct verdict *v)
{
	double lag = health_lag(r);
	char text[200];
	size_t queued;

	if (atomic_load(&r->stopping)) {
		(void)say(v, "stopping", "the relay is stopping", "");
		return;
	}
	if (trouble_verdict(r, v, TROUBLE_REFUSED, "error") ||
		trouble_verdict(r, v, TROUBLE_POSTGRES, "error"))
		return;
	/* Before what Kafka said last: that may be how it was fenced. */
	if (atomic_load(&r->standby)) {
		(void)say(v, "standby", "another relay holds the lock; this one is ready to take over", "");
		return;
	}
	if (trouble_verdict(r, v, TROUBLE_KAFKA, "error"))
		return;
	if (!streaming(r)) {
		(void)say(v, "starting", "the relay is starting: reading its position", "");
		return;
	}
	if (atomic_load(&r->paused)) {
		(void)say(v, "paused", "an operator paused the relay", "postrider resume");
		return;
	}
	if (kafka_silent_us(r) > SILENT_US) {
		(void)pipe_oldest_us(&r->pipe, &queued);
		(void)snprintf(text, sizeof(text),
			"Kafka has acknowledged nothing for %.0f s; %" PRIu64 " events wait for it",
			(double)kafka_silent_us(r) / (double)PR_SEC, atomic_load(&r->in_flight) + queued);
		(void)say(
			v, "error", text, "are the brokers up? Nothing is lost: it goes on when they answer");
		return;
	}
	if (trouble_verdict(r, v, TROUBLE_RANGES, "warn") || held_verdict(r, v) ||
		trouble_verdict(r, v, TROUBLE_JANITOR, "warn") ||
		trouble_verdict(r, v, TROUBLE_RETENTION, "warn") ||
		trouble_verdict(r, v, TROUBLE_RELOAD, "warn"))
		return;
	if (lag > LAGGING_S) {
		(void)snprintf(text, sizeof(text), "the oldest unpublished event is %.0f s old", lag);
		(void)say(v, "warn", text,
			"if it falls, a backlog is being drained; else look at Kafka's latency");
		return;
	}
	(void)say(v, "ok", "everything flows", "");
}

const char *health_state(struct relay *r, char *sentence, size_t sentence_n, char *hint, size_t hint_n)
{
	struct verdict v;

	judge(r, &v);
	(void)snprintf(sentence, sentence_n, "%s", v.sentence);
	(void)snprintf(hint, hint_n, "%s", v.hint);
	return v.state;
}

/* ---------------------------------------------------------------- pages */

static void put_text(struct pr_buf *b, const char *name, const char *value)
{
	pr_buf_printf(b, "%s\"%s\":", b->s && strchr("{[", b->s[b->len - 1]) ? "" : ",", name);
	pr_buf_json(b, value, strlen(value));
}

static void put_bool(struct pr_buf *b, const char *name, int value)
{
	pr_buf_printf(b, "%s\"%s\":%s", b->s && strchr("{[", b->s[b->len - 1]) ? "" : ",", name,
		value ? "true" : "false");
}

static void respond(struct pr_response *resp, struct pr_buf *b)
{
	resp->body = b->s;
	resp->body_len = b->len;
}

static void page_healthz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->body = pr_strdup("{\"status\":\"ok\"}\n");
	resp->body_len = strlen(resp->body);
}

static void put_checks(struct relay *r, struct pr_buf *b, const struct verdict *v)
{
	put_text(b, "state", v->state);
	put_text(b, "sentence", v->sentence);
	put_text(b, "hint", v->hint);
	pr_buf_puts(b, ",\"checks\":{");
	(void)pthread_mutex_lock(&r->mutex);
	for (int i = 0; i < TROUBLE_COUNT; i++)
		put_text(b, trouble_names[i], r->trouble_since_us[i] ? r->trouble[i].text : "ok");
	(void)pthread_mutex_unlock(&r->mutex);
	put_bool(b, "streaming", streaming(r));
	put_bool(b, "paused", atomic_load(&r->paused));
	pr_buf_printf(b,
		",\"parked_keys\":%" PRIu64 ",\"waiting_events\":%" PRIu64 ",\"foreign_xid_events\":%" PRIu64,
		atomic_load(&r->parked_keys), atomic_load(&r->waiting_events),
		atomic_load(&source_foreign.count));
	pr_buf_puts(b, "}");
}

static void page_readyz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;
	struct pr_buf b = { 0 };
	struct verdict v;
	int ready;

	(void)req;
	judge(r, &v);
	ready = strcmp(v.state, "ok") == 0 || strcmp(v.state, "standby") == 0;
	pr_buf_puts(&b, "{");
	put_bool(&b, "ready", ready);
	put_checks(r, &b, &v);
	pr_buf_printf(&b, ",\"lag_seconds\":%.3f}\n", health_lag(r));
	resp->status = ready ? 200 : 503;
	respond(resp, &b);
}

static void refresh_gauges(struct relay *r)
{
	static _Atomic uint64_t counted;
	uint64_t reconnects = atomic_load(&source_reconnects);
	int64_t commit = atomic_load(&r->last_commit_us);
	struct verdict v;

	judge(r, &v);
	for (const char *const *s = states; *s; s++)
		pr_gauge_set(
			pr_series_get(gauges.state, (const char *const[]){ *s }), strcmp(*s, v.state) == 0);
	pr_gauge_set(gauges.lag, health_lag(r));
	pr_gauge_set(gauges.pending, (double)pending(r));
	pr_gauge_set(gauges.parked_events, (double)atomic_load(&r->parked_events));
	pr_gauge_set(gauges.parked_keys, (double)atomic_load(&r->parked_keys));
	pr_gauge_set(gauges.waiting, (double)atomic_load(&r->waiting_events));
	pr_gauge_set(gauges.in_flight, (double)atomic_load(&r->in_flight));
	pr_gauge_set(gauges.ranges, (double)atomic_load(&r->ranges_ahead));
	pr_gauge_set(gauges.foreign, (double)atomic_load(&source_foreign.count));
	pr_gauge_set(gauges.log_dropped, (double)pr_log_dropped());
	pr_gauge_set(gauges.last_commit, commit ? (double)(pr_mono_us() - commit) / (double)PR_SEC : 0);
	pr_counter_add(r->m.pg_reconnects, reconnects - atomic_exchange(&counted, reconnects));
}

static void page_metrics(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;
	const char *accept = pr_http_header(req, "Accept");
	int open = accept && strstr(accept, "application/openmetrics-text");
	char labels[100];

	refresh_gauges(r);
	(void)snprintf(labels, sizeof(labels), "outbox=\"%s\"", r->conf->name);
	resp->content_type = open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
				  : "text/plain; version=0.0.4; charset=utf-8";
	resp->body = pr_metrics_render(r->m.registry, labels, open, &resp->body_len);
}

static void put_problems(struct relay *r, struct pr_buf *b)
{
	const struct pr_err *err;

	pr_buf_puts(b, ",\"problems\":[");
	(void)pthread_mutex_lock(&r->mutex);
	for (int i = 0; i < TROUBLE_COUNT; i++) {
		if (!r->trouble_since_us[i])
			continue;
		err = &r->trouble[i];
		pr_buf_puts(b, b->s[b->len - 1] == '[' ? "{" : ",{");
		put_text(b, "code", err->code[0] ? err->code : trouble_names[i]);
		put_text(b, "what", trouble_names[i]);
		put_text(b, "severity", i < TROUBLE_JANITOR ? "error" : "warn");
		put_text(b, "text", err->text);
		put_text(b, "hint", err->hint);
		pr_buf_printf(b, ",\"seconds\":%.1f}",
			(double)(pr_mono_us() - r->trouble_since_us[i]) / (double)PR_SEC);
	}
	(void)pthread_mutex_unlock(&r->mutex);
	pr_buf_puts(b, "]");
}

static void put_waiting(struct relay *r, struct pr_buf *b)
{
	pr_buf_puts(b, ",\"waiting\":[");
	(void)pthread_mutex_lock(&r->mutex);
	for (size_t i = 0; i < r->waiting_n; i++) {
		pr_buf_puts(b, i ? ",{" : "{");
		put_text(b, "topic", r->waiting[i].topic);
		pr_buf_printf(b, ",\"events\":%" PRIu64, r->waiting[i].events);
		put_text(b, "reason", r->waiting[i].reason);
		pr_buf_puts(b, "}");
	}
	(void)pthread_mutex_unlock(&r->mutex);
	pr_buf_puts(b, "]");
}

static void put_position(struct relay *r, struct pr_buf *b)
{
	const struct pr_position *p = &r->committed;

	(void)pthread_mutex_lock(&r->mutex);
	pr_buf_puts(b, ",\"postgres\":{");
	put_bool(b, "connected",
		r->trouble_since_us[TROUBLE_POSTGRES] == 0 && atomic_load(&source_contact_us) != 0);
	put_text(b, "system_id", p->system_id);
	pr_buf_printf(b, ",\"timeline\":%" PRId64 "},\"kafka\":{", p->timeline);
	put_bool(b, "connected", atomic_load(&r->kafka_up));
	pr_buf_printf(b, "},\"position\":{\"seq\":%" PRId64, p->top);
	put_text(b, "snapshot", p->from.snapshot ? p->from.snapshot : "");
	pr_buf_puts(b, "}");
	(void)pthread_mutex_unlock(&r->mutex);
}

/* Events a second, over the time between two looks at least a second apart. */
static double rate(struct relay *r)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static int64_t then_us;
	static uint64_t then;
	static double last;
	int64_t now = pr_mono_us();
	uint64_t events = atomic_load(&r->published_events);
	double result;

	(void)pthread_mutex_lock(&mutex);
	if (now - then_us >= PR_SEC) {
		last = then_us ? (double)(events - then) * (double)PR_SEC / (double)(now - then_us) : 0;
		then_us = now;
		then = events;
	}
	result = last;
	(void)pthread_mutex_unlock(&mutex);
	return result;
}

static void page_status(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;
	struct pr_buf b = { 0 };
	struct verdict v;

	(void)req;
	judge(r, &v);
	pr_buf_puts(&b, "{");
	put_text(&b, "name", r->conf->name);
	put_text(&b, "version", PR_VERSION);
	put_checks(r, &b, &v);
	put_bool(&b, "leader", pipe_state(&r->pipe) != PIPE_STANDBY);
	put_text(&b, "delivery", r->conf->delivery == PR_EXACTLY_ONCE ? "exactly_once" : "at_least_once");
	pr_buf_printf(&b,
		",\"lag_seconds\":%.3f,\"pending_events\":%" PRIu64 ",\"in_flight_events\":%" PRIu64
		",\"published_total\":%" PRIu64 ",\"parked_events\":%" PRIu64 ",\"parked_keys\":%" PRIu64
		",\"partitions_ahead\":%" PRId64,
		health_lag(r), pending(r), atomic_load(&r->in_flight), atomic_load(&r->published_events),
		atomic_load(&r->parked_events), atomic_load(&r->parked_keys), atomic_load(&r->ranges_ahead));
	put_waiting(r, &b);
	put_problems(r, &b);
	put_position(r, &b);
	pr_buf_printf(&b, ",\"uptime_seconds\":%.0f,\"rates\":{\"events_per_second\":%.1f}}\n",
		(double)(pr_mono_us() - r->started_us) / (double)PR_SEC, rate(r));
	respond(resp, &b);
}

static void put_html(struct pr_buf *b, const char *s)
{
	for (; *s; s++) {
		if (*s == '<')
			pr_buf_puts(b, "&lt;");
		else if (*s == '&')
			pr_buf_puts(b, "&amp;");
		else
			pr_buf_put(b, s, 1);
	}
}

/* The first screen of the page: one sentence and the numbers, without a script. */
static void page_root(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;
	struct pr_buf b = { 0 };
	struct verdict v;

	(void)req;
	judge(r, &v);
	pr_buf_puts(&b, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
			"<meta name=\"viewport\" content=\"width=device-width\">"
			"<meta http-equiv=\"refresh\" content=\"2\"><title>Postrider: ");
	put_html(&b, r->conf->name);
	pr_buf_printf(&b, " is %s</title></head><body><main><h1>Outbox ", v.state);
	put_html(&b, r->conf->name);
	pr_buf_printf(&b, ": %s</h1><p>", v.state);
	put_html(&b, v.sentence);
	if (v.hint[0]) {
		pr_buf_puts(&b, "<br>What to do: <code>");
		put_html(&b, v.hint);
		pr_buf_puts(&b, "</code>");
	}
	pr_buf_printf(&b,
		"</p><dl><dt>Lag</dt><dd>%.1f s</dd><dt>Pending events</dt><dd>%" PRIu64
		"</dd><dt>Published since the start</dt><dd>%" PRIu64 "</dd><dt>Parked keys</dt><dd>%" PRIu64
		"</dd><dt>Events waiting for a topic</dt><dd>%" PRIu64
		"</dd></dl><p><a href=\"/status.json\">status.json</a> <a href=\"/metrics\">metrics</a> "
		"<a href=\"/readyz\">readyz</a></p></main></body></html>\n",
		health_lag(r), pending(r), atomic_load(&r->published_events), atomic_load(&r->parked_keys),
		atomic_load(&r->waiting_events));
	resp->content_type = "text/html; charset=utf-8";
	respond(resp, &b);
}

int health_http(struct relay *r, struct pr_http **ret, struct pr_err *err)
{
	struct pr_http_opts opts = { .listen = r->conf->http.listen, .token = r->conf->http.token };
	const struct pr_route routes[] = {
		{ "GET", "/healthz", page_healthz, r, 1 },
		{ "GET", "/readyz", page_readyz, r, 1 },
		{ "GET", "/metrics", page_metrics, r, 0 },
		{ "GET", "/status.json", page_status, r, 0 },
		{ "GET", "/", page_root, r, 0 },
		{ NULL, NULL, NULL, NULL, 0 },
	};

	return pr_http_start(&opts, routes, ret, err);
}
