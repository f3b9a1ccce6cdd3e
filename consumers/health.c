/* consumers/health.c -- how well the consumer is: lag per partition, state, one sentence, and the HTTP pages
 * that say so. Refuses to be green while anything is stuck: what it does not know counts against it. */
#include "consumers/consumer.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/page.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SILENT_US                                                                                            \
	(2 * PR_SEC)    /* no word for so long: from Kafka it counts as lag, from Postgres as trouble */
#define LAGGING_S  30.0 /* a consumer that handles and is later than this says so */
#define OUR_ROUTES 6
#define PAGE_MOST  1000 /* most partitions of /status.json and of the metrics */

#define TREND_S 0.5 /* less than so much is no change of the lag */

enum { HISTORY_LAG, HISTORY_HANDLED, HISTORY_EVENTS, HISTORY_PARKED, HISTORY_DEAD, HISTORY_COUNT };
static const char *const history_names[] = { "lag_seconds", "handled_per_second", "lag_events",
	"parked_events", "dead_letters" };

static const double batch_buckets[] = { 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000 };
static const char *const states[] = { "starting", "ok", "warn", "paused", "error", "stopping", NULL };
static const char *const outcomes[HANDLED_COUNT] = { "handled", "duplicate", "filtered", "ignored", "parked",
	"dead_letter" };
static const char *const kinds[] = { "sql", "c", "http", "exec", "saga", "scheduler", "push", "sink",
	"canary" };

/* Those before "keeper" are errors; the state says in which order. */
static const char *const trouble_names[TROUBLE_COUNT] = { "postgres", "kafka", "handler", "gap", "parked",
	"refused", "sink", "transaction", "hung", "keeper", "dead_letter_topic", "reload", "saga_stuck",
	"saga_clock", "timers", "push", "alerts", "canary" };

/* A counter of ours and the atomic that it follows. */
struct followed {
	struct pr_series *series;
	uint64_t told;
};

static struct {
	struct pr_vitals vitals;
	struct pr_family *lag_seconds, *lag_events;
	struct pr_series *dead_letters, *retrying, *parked_events, *parked_keys, *parked_oldest, *breaker,
		*assigned, *replays;
	struct followed handled[HANDLED_COUNT], duplicates, retried, fenced, rebalances, reconnects;
	pthread_mutex_t mutex; /* of refreshing: two requests at once */
	struct shown {
		char *topic;
		int32_t partition;
	} * shown; /* partitions that have a series */
	size_t shown_n;
} gauges = { .mutex = PTHREAD_MUTEX_INITIALIZER }; /* one consumer a process */

static void counter(struct followed *f, struct pr_metrics *m, const char *name, const char *help)
{
	f->series = pr_series_one(pr_family_new(m, PR_COUNTER, name, "", 0, help));
}

static void init_counters(struct pr_metrics *m)
{
	struct pr_family *handled = pr_family_new(m, PR_COUNTER, "postrider_consumer_handled_total",
		"outcome", 0, "Messages that are done with, and how.");

	for (int i = 0; i < HANDLED_COUNT; i++)
		gauges.handled[i].series = pr_series_get(handled, (const char *const[]){ outcomes[i] });
	counter(&gauges.duplicates, m, "postrider_inbox_duplicates_total",
		"Messages whose id was handled before: their effects were not applied again.");
	counter(&gauges.retried, m, "postrider_consumer_retries_total", "Tries after the first one.");
	counter(&gauges.fenced, m, "postrider_consumer_fenced_total",
		"Commits refused because another member had taken the partition over.");
	counter(&gauges.rebalances, m, "postrider_consumer_rebalances_total",
		"Assignments of partitions to this member.");
	counter(&gauges.reconnects, m, "postrider_pg_reconnects_total", "Connections to Postgres made anew.");
}

static void init_gauges(struct pr_metrics *m)
{
	gauges.lag_seconds = pr_family_new(m, PR_GAUGE, "postrider_consumer_lag_seconds", "topic,partition",
		PAGE_MOST,
		"Age of the oldest record that is not handled, parked ones too; 0 when there is none, NaN "
		"when it is not known or the partition is not this member's.");
	gauges.lag_events = pr_family_new(m, PR_GAUGE, "postrider_consumer_lag_events", "topic,partition",
		PAGE_MOST, "Records not handled, an upper bound; NaN as for the lag in seconds.");
	gauges.dead_letters = pr_gauge_new(
		m, "postrider_dlq_events", "Dead letters of the group that wait for a decision.");
	gauges.retrying = pr_gauge_new(
		m, "postrider_dlq_retrying_events", "Dead letters of the group that are on another try.");
	gauges.parked_events =
		pr_gauge_new(m, "postrider_parked_events", "Messages of the group that are held back.");
	gauges.parked_keys =
		pr_gauge_new(m, "postrider_parked_keys", "Keys of the group that are held back.");
	gauges.parked_oldest = pr_gauge_new(m, "postrider_parked_oldest_seconds",
		"Since when the group's oldest parked key is held back.");
	gauges.breaker = pr_gauge_new(m, "postrider_consumer_breaker_open",
		"1 while what is behind the handler is down and nothing is handled.");
	gauges.assigned = pr_gauge_new(
		m, "postrider_consumer_assigned_partitions", "Partitions that are this member's.");
	gauges.replays = pr_gauge_new(m, "postrider_replay_jobs", "Replays of the group that are running.");
}

void health_init(struct consumer *c)
{
	struct pr_metrics *m = c->m.registry = pr_metrics_new();

	c->history = pr_history_new(history_names, HISTORY_COUNT, c->conf->history_us);
	pr_board_init(&c->board, trouble_names, TROUBLE_COUNT, TROUBLE_KEEPER);
	pr_vitals_init(&gauges.vitals, m, states, "1 for the state the consumer is in.");
	init_counters(m);
	init_gauges(m);
	c->m.batch_events = pr_series_one(pr_histogram_new(m, "postrider_batch_events", "", batch_buckets,
		sizeof(batch_buckets) / sizeof(batch_buckets[0]), "Messages in one transaction."));
	c->m.handle_seconds =
		pr_series_one(pr_histogram_new(m, "postrider_consumer_handle_seconds", "", pr_seconds_buckets,
			pr_seconds_buckets_n, "Time of one batch, from its start to its commit."));
	c->m.delay_seconds = pr_series_one(pr_histogram_new(m, "postrider_consumer_delay_seconds", "",
		pr_seconds_buckets, pr_seconds_buckets_n,
		"From a record's timestamp to the commit of its effects, of the oldest of each batch."));
}

void health_release(struct consumer *c)
{
	for (size_t i = 0; i < gauges.shown_n; i++)
		free(gauges.shown[i].topic);
	free(gauges.shown);
	pr_metrics_free(c->m.registry);
	pr_history_free(c->history);
	pr_board_release(&c->board);
}

void health_trouble(struct consumer *c, enum trouble which, const struct pr_err *err)
{
	enum pr_change change = pr_board_set(&c->board, which, err);

	if (change == PR_BEGAN || change == PR_CHANGED)
		pr_log_err(err->kind == PR_STOP ? PR_ERROR : PR_WARN, trouble_names[which], err);
	else if (change == PR_ENDED)
		pr_log(PR_INFO, "well again", KS("what", trouble_names[which]));
}

/* ---------------------------------------------------------------- lag */

/* 0 while it is there. */
static int64_t kafka_silent_us(const struct consumer *c)
{
	return atomic_load(&c->kafka_up) ? 0 : pr_mono_us() - atomic_load(&c->kafka_contact_us);
}

static int64_t postgres_silent_us(const struct consumer *c)
{
	if (c->topics)
		return 0; /* there is none */
	return pr_mono_us() - atomic_load(&c->postgres_contact_us);
}

/* Kafka tells the end now and then; what was read since is known anyway. */
static int64_t end_of(const struct part *p)
{
	int64_t end = atomic_load(&p->end), through = atomic_load(&p->read_through);

	return end >= 0 && through > end ? through : end;
}

int64_t health_part_events(const struct part *p)
{
	int64_t end = end_of(p), through = atomic_load(&p->read_through), next = part_next(p);

	if (end < 0)
		return -1;
	/* With nothing pushed, lanes without messages stand where reading does, though they write it down
	 * only now and then. */
	if (part_oldest_us(p) == INT64_MAX && through > next)
		next = through;
	if (next < 0)
		next = 0; /* from the earliest record, wherever that is */
	return end > next ? end - next : 0;
}

double health_part_lag(struct consumer *c, const struct part *p)
{
	int64_t oldest = part_oldest_us(p), parked = atomic_load(&p->parked_oldest_us), now = pr_wall_us();
	int64_t events = health_part_events(p), silent = kafka_silent_us(c), lag, level;

	if (events < 0 && oldest == INT64_MAX && parked == 0)
		return NAN;
	level = atomic_load(&p->level_us);
	if (events > 0 && oldest == INT64_MAX && level > 0)
		oldest = level; /* not read yet: it came after the last time that nothing was there */
	if (parked > 0 && parked < oldest)
		oldest = parked;
	lag = oldest < now ? now - oldest : 0;
	/* Records may have been written ever since: nobody can tell us that they were not. */
	if (silent > SILENT_US && silent > lag)
		lag = silent;
	return (double)lag / (double)PR_SEC;
}

/* The worst of our partitions; NAN: not known. */
static double worst_lag(struct consumer *c)
{
	double worst = 0, lag;
	int64_t silent;

	if (!atomic_load(&c->joined))
		return NAN;
	silent = kafka_silent_us(c);
	if (silent > SILENT_US)
		worst = (double)silent / (double)PR_SEC;
	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; !isnan(worst) && i < c->parts_n; i++) {
		lag = health_part_lag(c, c->parts[i]);
		if (isnan(lag) || lag > worst)
			worst = lag;
	}
	(void)pthread_mutex_unlock(&c->mutex);
	return worst;
}

static int64_t total_events(struct consumer *c)
{
	int64_t total = 0, events;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; total >= 0 && i < c->parts_n; i++) {
		events = health_part_events(c->parts[i]);
		total = events < 0 ? -1 : total + events;
	}
	(void)pthread_mutex_unlock(&c->mutex);
	return total;
}

/* The lanes know their own at once, the keeper those of the group a moment later. */
static uint64_t parked_keys(const struct consumer *c)
{
	uint64_t own = atomic_load(&c->parked_keys), all = atomic_load(&c->group_parked_keys);

	return own > all ? own : all;
}

/* Each key has one at least. */
static uint64_t parked_events(const struct consumer *c)
{
	uint64_t all = atomic_load(&c->group_parked_events), keys = parked_keys(c);

	return all > keys ? all : keys;
}

static double parked_oldest_s(const struct consumer *c)
{
	int64_t oldest = atomic_load(&c->group_parked_oldest_us), now = pr_wall_us();

	return oldest < now ? (double)(now - oldest) / (double)PR_SEC : 0;
}

/* ---------------------------------------------------------------- history */

static uint64_t done_with(const struct consumer *c)
{
	uint64_t done = 0;

	for (int i = 0; i < HANDLED_COUNT; i++)
		done += atomic_load(&c->handled[i]);
	return done;
}

/* Only this thread writes them; a page that reads meanwhile may see a sample twice. */
static void sample_parts(struct consumer *c)
{
	double lag;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++) {
		struct part *p = c->parts[i];

		for (int k = LAG_KEPT - 1; k > 0; k--)
			atomic_store(&p->lag_ms[k], atomic_load(&p->lag_ms[k - 1]));
		lag = health_part_lag(c, p);
		atomic_store(&p->lag_ms[0], isnan(lag) ? 0 : (int64_t)(lag * 1000) + 1);
	}
	(void)pthread_mutex_unlock(&c->mutex);
}

int health_sample(struct consumer *c)
{
	static double then = NAN;
	static int64_t then_us;
	int64_t now = pr_mono_us(), events;
	double values[HISTORY_COUNT], done = (double)done_with(c);
	int left = pr_history_due(c->history, now), counted = atomic_load(&c->counted);

	if (left > 0)
		return left;
	events = total_events(c);
	values[HISTORY_LAG] = worst_lag(c);
	values[HISTORY_HANDLED] = (done - then) * (double)PR_SEC / (double)(now - then_us);
	values[HISTORY_EVENTS] = events < 0 ? NAN : (double)events;
	values[HISTORY_PARKED] = counted || c->topics ? (double)parked_events(c) : NAN;
	values[HISTORY_DEAD] = counted ? (double)atomic_load(&c->dead_letters) : NAN;
	sample_parts(c);
	pr_history_add(c->history, now, values);
	then = done;
	then_us = now;
	return pr_history_due(c->history, now);
}

/* Over the samples that are kept: the oldest one that is known. */
static const char *part_trend(const struct part *p, double lag)
{
	int64_t was = 0;

	for (int k = LAG_KEPT - 1; k >= 0 && was == 0; k--)
		was = atomic_load(&p->lag_ms[k]);
	return pr_trend(was ? (double)(was - 1) / 1000 : NAN, lag, TREND_S);
}

/* ---------------------------------------------------------------- state */

static int starting(struct consumer *c)
{
	int claimed;

	(void)pthread_mutex_lock(&c->mutex);
	claimed = (int)c->parts_n;
	(void)pthread_mutex_unlock(&c->mutex);
	return !atomic_load(&c->ready) || !atomic_load(&c->joined) || claimed < atomic_load(&c->assigned);
}

#define HUNG_HINT                                                                                            \
	"only the end of the process ends it: keep a stack (gdb -p %d -batch -ex 'thread apply all bt'), "   \
	"then kill -9 %d; handler.hang = \"restart\" leaves that to the watchdog"

/* The trouble tells the record, the sentence also since when. */
static int hung_verdict(struct consumer *c, struct pr_verdict *v)
{
	char what[200], text[300], hint[300];
	int64_t us;

	if (hang_late(c->hangs, LANES_MOST, what, sizeof(what), &us) == 0)
		return 0;
	(void)snprintf(text, sizeof(text), "the handler has not come back for %.0f s: %s",
		(double)us / (double)PR_SEC, what);
	(void)snprintf(hint, sizeof(hint), HUNG_HINT, getpid(), getpid());
	return pr_say(v, "error", text, hint);
}

static void watch_calls(struct consumer *c)
{
	char what[200];
	struct pr_err err;
	int64_t us;
	int late = hang_late(c->hangs, LANES_MOST, what, sizeof(what), &us);

	if (late > 0) {
		(void)pr_fail(&err, PR_STOP, "the handler does not come back: %s", what);
		if (late > 1)
			(void)pr_wrap(&err, "%d lanes stand, the first", late);
		(void)pr_hint(&err, HUNG_HINT, getpid(), getpid());
	}
	health_trouble(c, TROUBLE_HUNG, late ? &err : NULL);
}

static int silence_verdict(struct consumer *c, struct pr_verdict *v)
{
	int64_t postgres = postgres_silent_us(c), kafka = kafka_silent_us(c);
	char text[200];

	if (postgres > SILENT_US) {
		(void)snprintf(text, sizeof(text), "Postgres has not answered for %.0f s",
			(double)postgres / (double)PR_SEC);
		return pr_say(v, "error", text, "nothing is lost: it goes on when the database answers");
	}
	if (kafka > SILENT_US) {
		(void)snprintf(text, sizeof(text), "no broker has answered for %.0f s",
			(double)kafka / (double)PR_SEC);
		return pr_say(v, "error", text, "are the brokers up? It goes on when they answer");
	}
	return 0;
}

static const char *s_of(uint64_t n)
{
	return n == 1 ? "" : "s";
}

/* Without a database what failed is in retry topics; an upper bound, of our partitions. */
static int retry_verdict(struct consumer *c, struct pr_verdict *v)
{
	uint64_t events = parked_events(c);
	char text[200];

	if (!c->topics || events == 0)
		return 0;
	(void)snprintf(text, sizeof(text), "%" PRIu64 " message%s in retry topics", events,
		events == 1 ? " waits" : "s wait");
	return pr_say(v, "warn", text, "they are tried again by themselves; their headers have the reasons");
}

static int parked_verdict(struct consumer *c, struct pr_verdict *v)
{
	uint64_t keys = parked_keys(c), events = parked_events(c);
	char text[200];

	if (keys == 0)
		return 0;
	(void)snprintf(text, sizeof(text),
		"%" PRIu64 " message%s of %" PRIu64 " key%s parked, the oldest for %.0f s", events,
		s_of(events), keys,
		events == 1 ? " is"
		: keys == 1 ? " are"
			    : "s are",
		parked_oldest_s(c));
	return pr_say(v, "warn", text, "they are tried again by themselves; inbox.parked has the reasons");
}

/* A sink collects before it publishes: that is no lag yet. */
static double lagging_s(const struct consumer *c)
{
	if (c->conf->handler.kind != PR_HANDLER_SINK)
		return LAGGING_S;
	return LAGGING_S + (double)pr_sink_cut_of(&c->conf->sink)->max_age_us / (double)PR_SEC;
}

static int lag_verdict(struct consumer *c, struct pr_verdict *v)
{
	double lag = worst_lag(c);
	char text[200];

	if (isnan(lag))
		return pr_say(
			v, "starting", "the consumer is starting: Kafka has not told how much there is", "");
	if (lag <= lagging_s(c))
		return 0;
	(void)snprintf(text, sizeof(text), "the oldest unhandled record is %.0f s old", lag);
	return pr_say(v, "warn", text,
		c->conf->handler.kind == PR_HANDLER_SINK
			? "if it falls, a backlog is being copied; else the target is too slow: more lanes, "
			  "or larger cuts"
			: "if it falls, a backlog is being handled; else the handler is too slow: more "
			  "lanes, or a set-based function");
}

static void well_verdict(struct consumer *c, struct pr_verdict *v)
{
	uint64_t dead = atomic_load(&c->dead_letters);
	char text[200];

	if (dead > 0) {
		(void)snprintf(text, sizeof(text),
			"everything flows; %" PRIu64 " dead letter%s for a decision", dead,
			dead == 1 ? " waits" : "s wait");
		(void)pr_say(v, "ok", text, "postrider dlq list");
	} else if (atomic_load(&c->assigned) == 0) {
		(void)pr_say(v, "ok", "all partitions belong to other members; this one is ready", "");
	} else {
		(void)pr_say(v, "ok", "everything flows", "");
	}
}

/* Without its group the command would mean the relay. */
static void paused_verdict(const struct consumer *c, struct pr_verdict *v)
{
	char hint[200];

	(void)snprintf(hint, sizeof(hint), "postrider resume --group %s", c->conf->group);
	(void)pr_say(v, "paused", "an operator paused the consumer", hint);
}

void health_judge(struct consumer *c, struct pr_verdict *v)
{
	struct pr_board *b = &c->board;

	watch_calls(c);
	if (atomic_load(&c->stopping)) {
		(void)pr_say(v, "stopping", "the consumer is stopping", "");
		return;
	}
	if (pr_board_say(b, TROUBLE_REFUSED, "error", v) || pr_board_say(b, TROUBLE_POSTGRES, "error", v) ||
		pr_board_say(b, TROUBLE_TRANSACTION, "error", v) ||
		pr_board_say(b, TROUBLE_KAFKA, "error", v) || pr_board_say(b, TROUBLE_GAP, "error", v) ||
		pr_board_say(b, TROUBLE_SINK, "error", v) || hung_verdict(c, v))
		return;
	if (starting(c)) {
		(void)pr_say(v, "starting",
			atomic_load(&c->ready) ? "the consumer is starting: joining its group"
			: c->topics            ? "the consumer is starting: asking Kafka for its topics"
					       : "the consumer is starting: asking the database",
			"");
		return;
	}
	if (silence_verdict(c, v))
		return;
	if (atomic_load(&c->paused)) {
		paused_verdict(c, v);
		return;
	}
	if (pr_board_say(b, TROUBLE_HANDLER, "error", v) || pr_board_say(b, TROUBLE_PARKED, "error", v) ||
		pr_board_say(b, TROUBLE_SAGA_CLOCK, "warn", v) ||
		pr_board_say(b, TROUBLE_TIMERS, "warn", v) || pr_board_say(b, TROUBLE_PUSH, "warn", v) ||
		pr_board_say(b, TROUBLE_ALERTS, "warn", v) || pr_board_say(b, TROUBLE_CANARY, "warn", v) ||
		pr_board_say(b, TROUBLE_SAGA_STUCK, "warn", v) || parked_verdict(c, v) ||
		retry_verdict(c, v) || pr_board_say(b, TROUBLE_DEAD_LETTER_TOPIC, "warn", v) ||
		pr_board_say(b, TROUBLE_KEEPER, "warn", v) || pr_board_say(b, TROUBLE_RELOAD, "warn", v) ||
		lag_verdict(c, v))
		return;
	well_verdict(c, v);
}

/* ---------------------------------------------------------------- pages */

static void put_checks(struct consumer *c, struct pr_buf *b, const struct pr_verdict *v)
{
	pr_put_checks(b, &c->board, v);
	pr_put_bool(b, "joined", !starting(c));
	pr_put_bool(b, "paused", atomic_load(&c->paused));
	pr_put_bool(b, "breaker_open", atomic_load(&c->breaker_probe_us) != 0);
	pr_put_int(b, "parked_keys", (int64_t)parked_keys(c));
	pr_buf_puts(b, "}");
}

static void page_readyz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct consumer *c = ctx;
	struct pr_buf b = { 0 };
	struct pr_verdict v;
	int ready;

	(void)req;
	health_judge(c, &v);
	ready = strcmp(v.state, "ok") == 0;
	pr_buf_puts(&b, "{");
	pr_put_bool(&b, "ready", ready);
	put_checks(c, &b, &v);
	pr_put_seconds(&b, "lag_seconds", worst_lag(c));
	pr_buf_puts(&b, "}\n");
	resp->status = ready ? 200 : 503;
	pr_respond(resp, &b);
}

static void follow(struct followed *f, uint64_t now)
{
	if (now > f->told)
		pr_counter_add(f->series, now - f->told);
	f->told = now;
}

static void set_part(const char *topic, int32_t partition, double seconds, double events)
{
	char number[16];

	(void)snprintf(number, sizeof(number), "%d", (int)partition);
	pr_gauge_set(pr_series_get(gauges.lag_seconds, (const char *const[]){ topic, number }), seconds);
	pr_gauge_set(pr_series_get(gauges.lag_events, (const char *const[]){ topic, number }), events);
}

static void show_part(const struct part *p)
{
	for (size_t i = 0; i < gauges.shown_n; i++)
		if (gauges.shown[i].partition == p->partition && strcmp(gauges.shown[i].topic, p->topic) == 0)
			return;
	if (gauges.shown_n == PAGE_MOST)
		return;
	if (!gauges.shown)
		gauges.shown = pr_calloc(PAGE_MOST, sizeof(*gauges.shown));
	gauges.shown[gauges.shown_n++] = (struct shown){ pr_strdup(p->topic), p->partition };
}

/* A series is never removed: what it said of a partition that went to another member would stay for ever. */
static void refresh_parts(struct consumer *c)
{
	int64_t events;

	for (size_t i = 0; i < gauges.shown_n; i++)
		set_part(gauges.shown[i].topic, gauges.shown[i].partition, NAN, NAN);
	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++) {
		const struct part *p = c->parts[i];

		show_part(p);
		events = health_part_events(p);
		set_part(p->topic, p->partition, health_part_lag(c, p), events < 0 ? NAN : (double)events);
	}
	(void)pthread_mutex_unlock(&c->mutex);
}

static void refresh_gauges(struct consumer *c)
{
	int counted = atomic_load(&c->counted), known = counted || c->topics;
	struct pr_verdict v;

	health_judge(c, &v);
	(void)pthread_mutex_lock(&gauges.mutex);
	pr_vitals_set(&gauges.vitals, v.state, &c->board);
	for (int i = 0; i < HANDLED_COUNT; i++)
		follow(&gauges.handled[i], atomic_load(&c->handled[i]));
	follow(&gauges.duplicates, atomic_load(&c->handled[DUPLICATE]));
	follow(&gauges.retried, atomic_load(&c->retried));
	follow(&gauges.fenced, atomic_load(&c->fenced));
	follow(&gauges.rebalances, (uint64_t)atomic_load(&c->rebalances));
	follow(&gauges.reconnects, atomic_load(&c->reconnects));
	pr_gauge_set(gauges.dead_letters, counted ? (double)atomic_load(&c->dead_letters) : NAN);
	pr_gauge_set(gauges.retrying, counted ? (double)atomic_load(&c->retrying) : NAN);
	pr_gauge_set(gauges.parked_events, known ? (double)parked_events(c) : NAN);
	pr_gauge_set(gauges.parked_keys, known ? (double)parked_keys(c) : NAN);
	pr_gauge_set(gauges.parked_oldest, known ? parked_oldest_s(c) : NAN);
	pr_gauge_set(gauges.breaker, atomic_load(&c->breaker_probe_us) != 0);
	pr_gauge_set(gauges.assigned, atomic_load(&c->assigned));
	pr_gauge_set(gauges.replays, counted ? (double)atomic_load(&c->replays) : NAN);
	refresh_parts(c);
	(void)pthread_mutex_unlock(&gauges.mutex);
}

void health_page_metrics(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct consumer *c = ctx;

	refresh_gauges(c);
	pr_page_metrics(req, resp, c->m.registry, "group", c->conf->group);
}

static void put_parts(struct consumer *c, struct pr_buf *b)
{
	int64_t events;

	pr_buf_puts(b, ",\"partitions\":[");
	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n && i < PAGE_MOST; i++) {
		const struct part *p = c->parts[i];

		pr_buf_puts(b, i ? ",{" : "{");
		pr_put_text(b, "topic", p->topic);
		pr_put_int(b, "partition", p->partition);
		pr_put_int(b, "next_offset", part_next(p));
		pr_put_int(b, "end_offset", end_of(p));
		events = health_part_events(p);
		if (events < 0)
			pr_buf_puts(b, ",\"lag_events\":null");
		else
			pr_put_int(b, "lag_events", events);
		pr_put_seconds(b, "lag_seconds", health_part_lag(c, p));
		pr_put_text(b, "trend", part_trend(p, health_part_lag(c, p)));
		pr_put_int(b, "epoch", p->epoch);
		pr_put_int(b, "lanes", p->lane_count);
		pr_buf_puts(b, "}");
	}
	(void)pthread_mutex_unlock(&c->mutex);
	pr_buf_puts(b, "]");
}

static void put_handled(struct consumer *c, struct pr_buf *b)
{
	pr_buf_puts(b, ",\"handled\":{");
	for (int i = 0; i < HANDLED_COUNT; i++)
		pr_put_int(b, outcomes[i], (int64_t)atomic_load(&c->handled[i]));
	pr_buf_puts(b, "}");
}

static void put_breaker(struct consumer *c, struct pr_buf *b)
{
	int64_t probe = atomic_load(&c->breaker_probe_us), wait = probe ? probe - pr_mono_us() : 0;

	pr_buf_puts(b, ",\"breaker\":{");
	pr_put_bool(b, "open", probe != 0);
	pr_put_int(b, "failures", (int64_t)atomic_load(&c->breaker_failures));
	pr_put_seconds(b, "next_probe_seconds", probe ? (double)(wait > 0 ? wait : 0) / (double)PR_SEC : NAN);
	pr_buf_puts(b, "}");
}

/* Messages a second, over the time between two looks at least a second apart. */
static double rate(struct consumer *c)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static int64_t then_us;
	static uint64_t then;
	static double last;
	int64_t now = pr_mono_us();
	uint64_t done = done_with(c);
	double result;

	(void)pthread_mutex_lock(&mutex);
	if (now - then_us >= PR_SEC) {
		last = then_us ? (double)(done - then) * (double)PR_SEC / (double)(now - then_us) : 0;
		then_us = now;
		then = done;
	}
	result = last;
	(void)pthread_mutex_unlock(&mutex);
	return result;
}

static void put_servers(struct consumer *c, struct pr_buf *b)
{
	if (c->topics) {
		pr_buf_puts(b, ",\"postgres\":null,\"kafka\":{");
	} else {
		pr_buf_puts(b, ",\"postgres\":{");
		pr_put_bool(b, "connected",
			atomic_load(&c->ready) && postgres_silent_us(c) <= SILENT_US &&
				!pr_board_has(&c->board, TROUBLE_POSTGRES));
		pr_buf_puts(b, "},\"kafka\":{");
	}
	pr_put_bool(b, "connected", atomic_load(&c->kafka_up));
	pr_buf_puts(b, "}");
}

static void put_lag(struct consumer *c, struct pr_buf *b)
{
	int64_t events = total_events(c);

	pr_put_seconds(b, "lag_seconds", worst_lag(c));
	pr_put_text(b, "trend", pr_history_trend(c->history, HISTORY_LAG, TREND_S));
	if (events < 0)
		pr_buf_puts(b, ",\"lag_events\":null");
	else
		pr_put_int(b, "lag_events", events);
}

/* How many there shall be, whose word that is, and how many partitions still have another number. */
static void put_lanes(struct consumer *c, struct pr_buf *b)
{
	int wanted = lanes_wanted(c), changing = 0;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++)
		changing += part_must_change(c->parts[i], wanted);
	(void)pthread_mutex_unlock(&c->mutex);
	pr_put_int(b, "lanes", wanted);
	pr_put_text(b, "lanes_by", atomic_load(&c->lanes_ordered) ? "operator" : "config");
	pr_put_int(b, "lanes_changing", changing);
}

/* null until the database was asked for the first time. */
static void put_counted(
	const struct consumer *c, struct pr_buf *b, const char *name, const _Atomic uint64_t *number)
{
	if (atomic_load(&c->counted))
		pr_put_int(b, name, (int64_t)atomic_load(number));
	else
		pr_buf_printf(b, ",\"%s\":null", name);
}

static struct pr_buf status_of(struct consumer *c)
{
	struct pr_buf b = { 0 };
	struct pr_verdict v;

	health_judge(c, &v);
	pr_buf_puts(&b, "{");
	pr_put_text(&b, "group", c->conf->group);
	pr_put_text(&b, "version", PR_VERSION);
	put_checks(c, &b, &v);
	pr_page_environment(&b, c->conf->environment.name, c->conf->environment.colour);
	pr_put_text(&b, "handler", kinds[c->conf->handler.kind]);
	pr_put_text(&b, "dedupe", c->conf->dedupe == PR_DEDUPE_INBOX ? "inbox" : "offset");
	put_lanes(c, &b);
	put_lag(c, &b);
	pr_put_int(&b, "assigned_partitions", atomic_load(&c->assigned));
	pr_put_int(&b, "rebalances", atomic_load(&c->rebalances));
	put_handled(c, &b);
	pr_put_int(&b, "retries", (int64_t)atomic_load(&c->retried));
	pr_put_int(&b, "fenced", (int64_t)atomic_load(&c->fenced));
	pr_put_int(&b, "parked_events", (int64_t)parked_events(c));
	pr_put_int(&b, "parked_keys", (int64_t)parked_keys(c));
	pr_put_seconds(&b, "parked_oldest_seconds", parked_oldest_s(c));
	put_counted(c, &b, "dead_letters", &c->dead_letters);
	put_counted(c, &b, "retrying", &c->retrying);
	put_counted(c, &b, "replays", &c->replays);
	put_breaker(c, &b);
	put_parts(c, &b);
	pr_put_problems(&b, &c->board);
	put_servers(c, &b);
	pr_buf_printf(&b, ",\"uptime_seconds\":%.0f,\"rates\":{\"events_per_second\":%.1f}}\n",
		(double)(pr_mono_us() - c->started_us) / (double)PR_SEC, rate(c));
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
	struct consumer *c = ctx;
	struct pr_buf b = status_of(c);

	(void)req;
	pr_page_own(resp, 0, &b, c->history);
}

int health_http(struct consumer *c, struct pr_http **ret, struct pr_err *err)
{
	struct pr_http_opts opts = { .listen = c->conf->http.listen,
		.token = c->conf->http.token,
		.tls = c->conf->http.tls,
		.worker_open = c->ops->worker_open,
		.worker_close = c->ops->worker_close,
		.worker_ctx = c };
	struct pr_route routes[OUR_ROUTES + 8] = {
		{ "GET", "/healthz", pr_page_healthz, c, 1, 0 },
		{ "GET", "/readyz", page_readyz, c, 1, 0 },
		{ "GET", "/metrics", health_page_metrics, c, 0, 0 },
		{ "GET", "/status.json", page_status, c, 0, 0 },
		{ "GET", "/history.json", pr_page_history, c->history, 0, 0 },
		{ "GET", "/", page_root, c, 0, 0 },
	};

	for (size_t i = 0; i < 7 && c->ops->routes && c->ops->routes[i].method; i++)
		routes[OUR_ROUTES + i] = c->ops->routes[i];
	return pr_http_start(&opts, routes, ret, err);
}
