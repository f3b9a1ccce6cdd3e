/* relay/health.c -- how well the relay is: lag, state, one sentence, and the HTTP pages that say so.
 * Refuses to be green while anything is stuck: what it does not know counts against it. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/json.h"
#include "lib/log.h"
#include "lib/page.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SILENT_US                                                                                            \
	(2 * PR_SEC)   /* no word for so long: from Postgres it counts as lag, from Kafka as trouble */
#define LAGGING_S 30.0 /* a relay that streams and is later than this says so */

static const double batch_buckets[] = { 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000 };
static const char *const states[] = { "starting", "standby", "ok", "warn", "paused", "error", "stopping",
	NULL };

#define TOPICS_MOST 1000 /* of /status.json */
#define TREND_S     0.5  /* less than so much is no change of the lag */

enum { HISTORY_LAG, HISTORY_CREATED, HISTORY_PUBLISHED, HISTORY_PENDING, HISTORY_HELD, HISTORY_COUNT };
static const char *const history_names[] = { "lag_seconds", "created_per_second", "published_per_second",
	"pending_events", "held_events" };

static struct {
	struct pr_vitals vitals;
	struct pr_series *lag, *pending, *parked_events, *parked_keys, *waiting, *in_flight, *foreign;
	struct pr_series *last_commit, *ranges, *skew;
} gauges; /* one relay a process */

static const char *const trouble_names[TROUBLE_COUNT] = { "postgres", "kafka", "refused", "janitor",
	"retention", "ranges", "reload" };

void health_init(struct relay *r)
{
	struct pr_metrics *m = r->m.registry = pr_metrics_new();

	r->history = pr_history_new(history_names, HISTORY_COUNT, r->conf->history_us);
	pr_board_init(&r->board, trouble_names, TROUBLE_COUNT, TROUBLE_JANITOR);
	pr_vitals_init(&gauges.vitals, m, states, "1 for the state the relay is in.");
	gauges.lag = pr_gauge_new(m, "postrider_lag_seconds",
		"Age of the oldest committed event that is not acknowledged by Kafka; 0 when drained.");
	gauges.pending = pr_gauge_new(m, "postrider_pending_events",
		"Events not yet published; an upper bound, for sequences have gaps. 0 when drained.");
	r->m.published = pr_family_new(
		m, PR_COUNTER, "postrider_published_total", "topic", 1000, "Events acknowledged by Kafka.");
	r->m.published_bytes = pr_family_new(m, PR_COUNTER, "postrider_published_bytes_total", "topic", 1000,
		"Payload bytes acknowledged by Kafka.");
	r->m.insert_to_ack = pr_series_one(pr_histogram_new(m, "postrider_insert_to_ack_seconds", "",
		pr_seconds_buckets, pr_seconds_buckets_n,
		"From an event's created_at to Kafka's acknowledgement (the commit time is not known)."));
	gauges.parked_events = pr_gauge_new(
		m, "postrider_parked_events", "Events held back because one of their key was refused.");
	gauges.parked_keys = pr_gauge_new(m, "postrider_parked_keys", "Keys held back.");
	gauges.waiting =
		pr_gauge_new(m, "postrider_waiting_events", "Events whose topic cannot be written to.");
	gauges.in_flight =
		pr_gauge_new(m, "postrider_in_flight_events", "Events taken and not yet acknowledged.");
	gauges.foreign = pr_gauge_new(m, "postrider_foreign_xid_events",
		"Events with a transaction id that this server has not assigned; they are not published.");
	r->m.restarts = pr_family_new(m, PR_COUNTER, "postrider_producer_restarts_total", "reason", 0,
		"Producers replaced after an error.");
	r->m.pg_reconnects = pr_series_one(pr_family_new(
		m, PR_COUNTER, "postrider_pg_reconnects_total", "", 0, "Connections to Postgres made anew."));
	r->m.batch_events = pr_series_one(pr_histogram_new(m, "postrider_batch_events", "", batch_buckets,
		sizeof(batch_buckets) / sizeof(batch_buckets[0]), "Events in one shipment."));
	gauges.last_commit = pr_gauge_new(
		m, "postrider_last_published_age_seconds", "Since the last shipment was acknowledged.");
	gauges.skew = pr_gauge_new(m, "postrider_clock_skew_seconds",
		"How far the clock of Postgres is ahead of this host's; half a round trip of error.");
}

void health_release(struct relay *r)
{
	free(r->waiting);
	pr_position_release(&r->committed);
	pr_metrics_free(r->m.registry);
	pr_history_free(r->history);
	pr_board_release(&r->board);
}

/* ---------------------------------------------------------------- trouble */

void health_trouble(struct relay *r, enum trouble which, const struct pr_err *err)
{
	enum pr_change change = pr_board_set(&r->board, which, err);

	if (change == PR_BEGAN || change == PR_CHANGED)
		pr_log_err(err->kind == PR_STOP ? PR_ERROR : PR_WARN, trouble_names[which], err);
	else if (change == PR_ENDED)
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

int health_streaming(struct relay *r)
{
	return pipe_state(&r->pipe) == PIPE_STREAMING && atomic_load(&r->reading);
}

static int64_t age_us(int64_t created_us)
{
	int64_t now = pr_wall_us() + atomic_load(&source_clock_skew_us);

	return created_us == INT64_MAX || created_us > now ? 0 : now - created_us;
}

static int64_t flowing_oldest_us(struct relay *r, size_t *ret_queued)
{
	return least(pipe_oldest_us(&r->pipe, ret_queued), atomic_load(&r->in_flight_oldest_us));
}

double health_flow_lag(struct relay *r)
{
	size_t queued;

	return (double)age_us(flowing_oldest_us(r, &queued)) / (double)PR_SEC;
}

double health_lag(struct relay *r)
{
	static _Atomic int64_t known_us; /* lag when Postgres last answered */
	int64_t oldest, lag, silent;
	size_t queued;

	oldest = least(flowing_oldest_us(r, &queued), atomic_load(&r->held_oldest_us));
	oldest = least(oldest, atomic_load(&r->scheduled_oldest_us));
	if (!health_streaming(r))
		oldest = least(oldest, atomic_load(&r->probe_oldest_us));
	lag = age_us(oldest);
	silent = pr_mono_us() - atomic_load(&source_contact_us);
	if (r->conf->source.engine == PR_ENGINE_TABLE && silent > SILENT_US &&
		!(health_streaming(r) && queued > 0)) {
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
	int64_t silent = pr_mono_us() - atomic_load(&source_contact_us), oldest;
	size_t queued;

	oldest = flowing_oldest_us(r, &queued);
	/* Drained: nothing on its way, and the last turn, a moment ago, found nothing more. What is held back
	 * has its own count. */
	if (health_streaming(r) && queued == 0 && atomic_load(&r->in_flight) == 0 && oldest == INT64_MAX &&
		(r->conf->source.engine != PR_ENGINE_TABLE || silent <= SILENT_US))
		ahead = 0;
	return held + (ahead > 0 ? (uint64_t)ahead : 0);
}

/* Since Kafka acknowledged anything while it was asked to; a call that waits for it has not failed yet. */
static int64_t kafka_silent_us(struct relay *r)
{
	int64_t since = atomic_load(&r->in_flight_since_us), commit = atomic_load(&r->last_commit_us);

	if (!health_streaming(r) || atomic_load(&r->in_flight) == 0)
		return 0;
	return pr_mono_us() - (commit > since ? commit : since);
}

/* ---------------------------------------------------------------- history */

/* Growth a second since the sample before; NaN of the first one. */
static double growth(double *was, double is, double seconds)
{
	double result = isnan(*was) || seconds <= 0 || is < *was ? NAN : (is - *was) / seconds;

	*was = is;
	return result;
}

int health_sample(struct relay *r)
{
	static double created = NAN, published = NAN;
	static int64_t then_us;
	int64_t now = pr_mono_us(), last = atomic_load(&source_last_seq);
	int left = pr_history_due(r->history, now), known;
	double values[HISTORY_COUNT], seconds = (double)(now - then_us) / (double)PR_SEC;

	if (left > 0)
		return left;
	values[HISTORY_LAG] = health_lag(r);
	/* Below what is published: the table was not looked at yet. */
	known = health_streaming(r) && last >= atomic_load(&r->published_seq);
	values[HISTORY_CREATED] = growth(&created, known ? (double)last : NAN, seconds);
	values[HISTORY_PUBLISHED] = growth(&published, (double)atomic_load(&r->published_events), seconds);
	values[HISTORY_PENDING] = (double)pending(r);
	values[HISTORY_HELD] = (double)(atomic_load(&r->parked_events) + atomic_load(&r->waiting_events));
	pr_history_add(r->history, now, values);
	then_us = now;
	return pr_history_due(r->history, now);
}

/* ---------------------------------------------------------------- state */

static int held_verdict(struct relay *r, struct pr_verdict *v)
{
	uint64_t keys = atomic_load(&r->parked_keys), events = atomic_load(&r->parked_events),
		 waiting = atomic_load(&r->waiting_events);
	uint64_t foreign = atomic_load(&source_foreign.count);
	char text[300];

	if (keys > 0) {
		(void)snprintf(text, sizeof(text), "%" PRIu64 " event%s of %" PRIu64 " key%s %s parked",
			events, events == 1 ? "" : "s", keys, keys == 1 ? "" : "s",
			events == 1 ? "is" : "are");
		return pr_say(v, "warn", text, "postrider parked list");
	}
	if (waiting > 0) {
		(void)snprintf(text, sizeof(text), "%" PRIu64 " event%s for topics that cannot be written to",
			waiting, waiting == 1 ? " waits" : "s wait");
		return pr_say(
			v, "warn", text, "create the topics: they are named under waiting in /status.json");
	}
	if (foreign > 0) {
		(void)snprintf(text, sizeof(text),
			"%" PRIu64 " events from seq %" PRId64
			" on carry a transaction id that this server has not assigned",
			foreign, atomic_load(&source_foreign.first_seq));
		return pr_say(v, "warn", text, "after a restore or replication: postrider position adopt");
	}
	return 0;
}

/* What stands in the way of everything: 0 when both sides work and an operator lets them. */
static int side_verdict(struct relay *r, struct pr_verdict *v)
{
	if (atomic_load(&r->stopping))
		return pr_say(v, "stopping", "the relay is stopping", "");
	if (pr_board_say(&r->board, TROUBLE_REFUSED, "error", v) ||
		pr_board_say(&r->board, TROUBLE_POSTGRES, "error", v))
		return 1;
	/* Before what Kafka said last: that may be how it was fenced. */
	if (atomic_load(&r->standby))
		return pr_say(
			v, "standby", "another relay holds the lock; this one is ready to take over", "");
	if (pr_board_say(&r->board, TROUBLE_KAFKA, "error", v))
		return 1;
	if (!health_streaming(r))
		return pr_say(v, "starting", "the relay is starting: reading its position", "");
	if (atomic_load(&r->paused))
		return pr_say(v, "paused", "an operator paused the relay", "postrider resume");
	return 0;
}

static int silent_verdict(struct relay *r, struct pr_verdict *v)
{
	int64_t silent = kafka_silent_us(r);
	uint64_t waiting;
	char text[200];
	size_t queued;

	if (silent <= SILENT_US)
		return 0;
	(void)pipe_oldest_us(&r->pipe, &queued);
	waiting = atomic_load(&r->in_flight) + queued;
	(void)snprintf(text, sizeof(text),
		"Kafka has acknowledged nothing for %.0f s; %" PRIu64 " event%s for it",
		(double)silent / (double)PR_SEC, waiting, waiting == 1 ? " waits" : "s wait");
	return pr_say(v, "error", text, "are the brokers up? Nothing is lost: it goes on when they answer");
}

static int lag_verdict(struct relay *r, struct pr_verdict *v)
{
	double lag = health_lag(r);
	char text[100];

	if (lag <= LAGGING_S)
		return 0;
	(void)snprintf(text, sizeof(text), "the oldest unpublished event is %.0f s old", lag);
	return pr_say(
		v, "warn", text, "if it falls, a backlog is being drained; else look at Kafka's latency");
}

/* The worst first. */
static void judge(struct relay *r, struct pr_verdict *v)
{
	if (side_verdict(r, v) || silent_verdict(r, v) ||
		pr_board_say(&r->board, TROUBLE_RANGES, "warn", v) || held_verdict(r, v) ||
		pr_board_say(&r->board, TROUBLE_JANITOR, "warn", v) ||
		pr_board_say(&r->board, TROUBLE_RETENTION, "warn", v) ||
		pr_board_say(&r->board, TROUBLE_RELOAD, "warn", v) || lag_verdict(r, v))
		return;
	(void)pr_say(v, "ok", "everything flows", "");
}

const char *health_state(struct relay *r, char *sentence, size_t sentence_n, char *hint, size_t hint_n)
{
	struct pr_verdict v;

	judge(r, &v);
	(void)snprintf(sentence, sentence_n, "%s", v.sentence);
	(void)snprintf(hint, hint_n, "%s", v.hint);
	return v.state;
}

/* ---------------------------------------------------------------- pages */

static void put_checks(struct relay *r, struct pr_buf *b, const struct pr_verdict *v)
{
	pr_put_checks(b, &r->board, v);
	pr_put_bool(b, "streaming", health_streaming(r));
	pr_put_bool(b, "paused", atomic_load(&r->paused));
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
	struct pr_verdict v;
	int ready;

	(void)req;
	judge(r, &v);
	ready = strcmp(v.state, "ok") == 0 || strcmp(v.state, "standby") == 0;
	pr_buf_puts(&b, "{");
	pr_put_bool(&b, "ready", ready);
	put_checks(r, &b, &v);
	pr_buf_printf(&b, ",\"lag_seconds\":%.3f}\n", health_lag(r));
	resp->status = ready ? 200 : 503;
	pr_respond(resp, &b);
}

/* Not there until they are counted: an alarm on few ranges would go off at every start. */
static void refresh_ranges(struct relay *r)
{
	int64_t ahead = atomic_load(&r->ranges_ahead);

	if (ahead < 0)
		return;
	if (!gauges.ranges)
		gauges.ranges = pr_gauge_new(r->m.registry, "postrider_partitions_ahead",
			"Empty ranges of outbox.event ahead of the sequence; absent until they are counted.");
	pr_gauge_set(gauges.ranges, (double)ahead);
}

static void refresh_gauges(struct relay *r)
{
	static _Atomic uint64_t counted;
	uint64_t reconnects = atomic_load(&source_reconnects);
	int64_t commit = atomic_load(&r->last_commit_us);
	struct pr_verdict v;

	judge(r, &v);
	pr_vitals_set(&gauges.vitals, v.state, &r->board);
	pr_gauge_set(gauges.lag, health_lag(r));
	pr_gauge_set(gauges.pending, (double)pending(r));
	pr_gauge_set(gauges.parked_events, (double)atomic_load(&r->parked_events));
	pr_gauge_set(gauges.parked_keys, (double)atomic_load(&r->parked_keys));
	pr_gauge_set(gauges.waiting, (double)atomic_load(&r->waiting_events));
	pr_gauge_set(gauges.in_flight, (double)atomic_load(&r->in_flight));
	refresh_ranges(r);
	pr_gauge_set(gauges.foreign, (double)atomic_load(&source_foreign.count));
	pr_gauge_set(gauges.skew, (double)atomic_load(&source_clock_skew_us) / (double)PR_SEC);
	pr_gauge_set(gauges.last_commit, commit ? (double)(pr_mono_us() - commit) / (double)PR_SEC : 0);
	pr_counter_add(r->m.pg_reconnects, reconnects - atomic_exchange(&counted, reconnects));
}

static void page_metrics(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;

	refresh_gauges(r);
	pr_page_metrics(req, resp, r->m.registry, "outbox", r->conf->name);
}

static void put_waiting(struct relay *r, struct pr_buf *b)
{
	pr_buf_puts(b, ",\"waiting\":[");
	(void)pthread_mutex_lock(&r->mutex);
	for (size_t i = 0; i < r->waiting_n; i++) {
		pr_buf_puts(b, i ? ",{" : "{");
		pr_put_text(b, "topic", r->waiting[i].topic);
		pr_buf_printf(b, ",\"events\":%" PRIu64, r->waiting[i].events);
		pr_put_text(b, "reason", r->waiting[i].reason);
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
	pr_put_bool(b, "connected",
		!pr_board_has(&r->board, TROUBLE_POSTGRES) && atomic_load(&source_contact_us) != 0);
	pr_put_text(b, "system_id", p->system_id);
	pr_buf_printf(b, ",\"timeline\":%" PRId64 "},\"kafka\":{", p->timeline);
	pr_put_bool(b, "connected", atomic_load(&r->kafka_up) && kafka_silent_us(r) <= SILENT_US);
	pr_buf_printf(b, "},\"position\":{\"seq\":%" PRId64, p->top);
	pr_put_text(b, "snapshot", p->from.snapshot ? p->from.snapshot : "");
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

struct topics {
	struct pr_buf *b;
	int n;
};

static void put_topic(void *ctx, const char *topic, uint64_t published)
{
	struct topics *t = ctx;

	if (t->n++ >= TOPICS_MOST)
		return;
	pr_buf_puts(t->b, t->n > 1 ? ",{" : "{");
	pr_put_text(t->b, "topic", topic);
	pr_put_int(t->b, "published", (int64_t)published);
	pr_buf_puts(t->b, "}");
}

static void put_topics(struct relay *r, struct pr_buf *b)
{
	struct topics t = { .b = b };

	pr_buf_puts(b, ",\"topics\":[");
	pr_family_each(r->m.published, put_topic, &t);
	pr_buf_puts(b, "]");
}

static struct pr_buf status_of(struct relay *r)
{
	struct pr_buf b = { 0 };
	struct pr_verdict v;
	char ranges[24];

	judge(r, &v);
	(void)snprintf(ranges, sizeof(ranges), "%" PRId64, atomic_load(&r->ranges_ahead));
	pr_buf_puts(&b, "{");
	pr_put_text(&b, "name", r->conf->name);
	pr_put_text(&b, "version", PR_VERSION);
	put_checks(r, &b, &v);
	pr_page_environment(&b, r->conf->environment.name, r->conf->environment.colour);
	pr_put_bool(&b, "leader", pipe_state(&r->pipe) != PIPE_STANDBY);
	pr_put_text(&b, "delivery", r->conf->delivery == PR_EXACTLY_ONCE ? "exactly_once" : "at_least_once");
	pr_buf_printf(&b,
		",\"lag_seconds\":%.3f,\"pending_events\":%" PRIu64 ",\"in_flight_events\":%" PRIu64
		",\"published_total\":%" PRIu64 ",\"parked_events\":%" PRIu64 ",\"parked_keys\":%" PRIu64
		",\"partitions_ahead\":%s",
		health_lag(r), pending(r), atomic_load(&r->in_flight), atomic_load(&r->published_events),
		atomic_load(&r->parked_events), atomic_load(&r->parked_keys),
		ranges[0] == '-' ? "null" : ranges);
	pr_put_text(&b, "trend", pr_history_trend(r->history, HISTORY_LAG, TREND_S));
	put_topics(r, &b);
	put_waiting(r, &b);
	pr_put_problems(&b, &r->board);
	put_position(r, &b);
	pr_buf_printf(&b, ",\"uptime_seconds\":%.0f,\"rates\":{\"events_per_second\":%.1f}}\n",
		(double)(pr_mono_us() - r->started_us) / (double)PR_SEC, rate(r));
	return b;
}

static void page_status(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_buf b = status_of(ctx);

	(void)req;
	pr_respond(resp, &b);
}

static void page_root(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct relay *r = ctx;
	struct pr_buf b = status_of(r);

	(void)req;
	pr_page_own(resp, 1, &b, r->history);
}

int health_http(struct relay *r, struct pr_http **ret, struct pr_err *err)
{
	struct pr_http_opts opts = {
		.listen = r->conf->http.listen, .token = r->conf->http.token, .tls = r->conf->http.tls
	};
	const struct pr_route routes[] = {
		{ "GET", "/healthz", pr_page_healthz, r, 1, 0 },
		{ "GET", "/readyz", page_readyz, r, 1, 0 },
		{ "GET", "/metrics", page_metrics, r, 0, 0 },
		{ "GET", "/status.json", page_status, r, 0, 0 },
		{ "GET", "/history.json", pr_page_history, r->history, 0, 0 },
		{ "GET", "/", page_root, r, 0, 0 },
		{ 0 },
	};

	return pr_http_start(&opts, routes, ret, err);
}
