/* consumers/postrider_consumer_main.c -- postrider-consumer: one group's handler fed from Kafka, one process,
 * in the foreground. Starts the threads, turns signals into drain and reload, and ends within shutdown.drain.
 */
#include "consumers/store.h"
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/log.h"
#include "lib/notify.h"
#include "lib/prog.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* jemalloc reads this before main: few arenas, and memory given back within seconds, so that the peak of a
 * large batch does not stay. */
extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

static struct consumer consumer;
static struct pr_consumer_conf conf;

static const struct pr_prog prog = {
	.name = "postrider-consumer",
	.does = "feeds a handler from Kafka, each event applied once, in order per key",
	.table = pr_consumer_options,
	.target = &conf,
	.validate = pr_consumer_conf_validate,
};

static const struct handler_ops *const handlers[] = {
	[PR_HANDLER_SQL] = &handler_sql,
	[PR_HANDLER_C] = &handler_c,
	[PR_HANDLER_HTTP] = &handler_http,
	[PR_HANDLER_EXEC] = &handler_exec,
	[PR_HANDLER_SAGA] = &handler_saga,
	[PR_HANDLER_SCHEDULER] = &handler_scheduler,
	[PR_HANDLER_PUSH] = &handler_push,
	[PR_HANDLER_SINK] = &handler_sink,
	[PR_HANDLER_CANARY] = &handler_canary,
};

void consumer_stop(struct consumer *c, int exit_code)
{
	uint64_t one = 1;
	int none = 0;

	(void)atomic_compare_exchange_strong(&c->exit_code, &none, exit_code);
	lanes_drain(c);
	atomic_store(&c->stopping, 1);
	(void)!write(c->wake_fd, &one, sizeof(one));
}

/* Without a database a handler's effects lie outside, whatever its kind. */
static void choose_store(struct consumer *c)
{
	c->ops = handlers[conf.handler.kind];
	c->store = conf.handler.kind == PR_HANDLER_SINK ? &store_sink : &store_postgres;
	if (conf.database.conninfo)
		return;
	c->topics = topics_new(&conf);
	c->store = &store_topics;
	if (conf.handler.kind == PR_HANDLER_C)
		c->ops = &handler_c_outside;
}

static void consumer_init(struct consumer *c)
{
	memset(c, 0, sizeof(*c));
	c->conf = &conf;
	choose_store(c);
	(void)pthread_mutex_init(&c->mutex, NULL);
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->started_us = pr_mono_us();
	atomic_store(&c->group_parked_oldest_us, INT64_MAX);
	atomic_store(&c->postgres_contact_us, pr_mono_us());
	atomic_store(&c->kafka_contact_us, pr_mono_us());
	health_init(c);
	atomic_store(&c->lanes_used, 1);
	for (int i = 0; i < LANES_MOST; i++) {
		hang_init(&c->hangs[i], c->conf);
		c->lanes[i] = lane_new(c, i);
	}
}

/* All threads have ended. */
static void consumer_release(struct consumer *c)
{
	for (int i = 0; i < LANES_MOST; i++) {
		lane_free(c->lanes[i]);
		hang_release(&c->hangs[i]);
	}
	replay_release(c);
	group_release(c);
	for (size_t i = 0; i < c->parts_n; i++)
		part_drop(c->parts[i]);
	free(c->parts);
	topics_free(c->topics);
	health_release(c);
	(void)pthread_mutex_destroy(&c->mutex);
	(void)close(c->wake_fd);
}

static void reload(struct consumer *c, struct pr_http *http)
{
	struct pr_consumer_conf fresh;
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;

	if (pr_http_renew(http, &err) < 0) {
		health_trouble(c, TROUBLE_RELOAD, &err);
		return;
	}
	if (pr_prog_reload(&prog, &fresh, &loaded, &err) < 0) {
		health_trouble(c, TROUBLE_RELOAD, &err);
		return;
	}
	pr_settings_adopt(&conf.limits, &fresh.limits, sizeof(conf.limits));
	pr_settings_adopt(&conf.inbox, &fresh.inbox, sizeof(conf.inbox));
	pr_settings_adopt(&conf.drain_us, &fresh.drain_us, sizeof(conf.drain_us));
	pr_settings_adopt(&conf.lanes, &fresh.lanes, sizeof(conf.lanes));
	group_wake(c);
	if (pr_level_parse(fresh.log_level, &level) == 0)
		pr_log_level(level);
	pr_conf_free(loaded);
	health_trouble(c, TROUBLE_RELOAD, NULL);
	pr_log(PR_INFO, "configuration reloaded");
}

struct threads {
	pthread_t keeper, group, replay, beside;
	int working; /* group, replay, lanes and what the handler has beside them run */
};

static void start(pthread_t *thread, const char *name, void *(*run)(void *), struct consumer *c)
{
	struct pr_err err;

	if (pr_thread_start(thread, name, run, c, &err) == 0)
		return;
	pr_log_err(PR_ERROR, "cannot go on", &err);
	_exit(err.exit);
}

/* Once the keeper has seen that the database is the right one. */
static void start_work(struct consumer *c, struct threads *t)
{
	t->working = 1;
	lanes_begin(c, lanes_wanted(c));
	start(&t->group, "group", group_thread, c);
	if (!c->topics)
		start(&t->replay, "replay", replay_thread, c);
	if (c->ops->beside)
		start(&t->beside, "beside", c->ops->beside, c);
}

/* In how many milliseconds to be back; the work begins within 20 of the keeper's word. */
static int tell(struct consumer *c, const struct threads *t)
{
	int ms, sample = health_sample(c);
	struct pr_verdict v;

	health_judge(c, &v);
	ms = pr_notify_turn(v.state, v.sentence);
	ms = ms >= 0 && ms < sample ? ms : sample;
	return t->working || ms < 20 ? ms : 20;
}

/* Until a signal or a thread says stop. */
static void serve(struct consumer *c, struct threads *t, struct pr_http *http, int signal_fd)
{
	const char *name = "";

	while (!atomic_load(&c->stopping)) {
		if (!t->working && atomic_load(&c->ready))
			start_work(c, t);
		switch (pr_daemon_wait(signal_fd, c->wake_fd, tell(c, t), &name)) {
		case PR_ORDER_RELOAD:
			pr_notify_reloading();
			reload(c, http);
			pr_notify_ready();
			break;
		case PR_ORDER_STOP:
			pr_log(PR_INFO, "draining", KS("signal", name));
			consumer_stop(c, PR_EX_OK);
			break;
		case PR_ORDER_NONE:
			break;
		}
	}
}

/* Replay first, it feeds the lanes. Then the lanes: the group's last word to Kafka is about what they have
 * committed. What does not end in time is left to the kernel: positions and effects are one commit, or the
 * handler has the id. */
static void drain(struct consumer *c, struct threads *t, struct pr_drain *d)
{
	pr_drain_begin(d, pr_setting(&conf.drain_us) + PR_SEC);
	if (t->working && !c->topics)
		pr_drain_join(d, t->replay, "replay");
	if (t->working && c->ops->beside)
		pr_drain_join(d, t->beside, "beside");
	for (int i = 0; i < lanes_begun(c); i++)
		pr_drain_join(d, c->lane_threads[i], "lane");
	if (t->working) {
		group_finish(c);
		pr_drain_join(d, t->group, "group");
	}
	pr_drain_join(d, t->keeper, "keeper");
}

static int run(struct consumer *c, int signal_fd)
{
	struct threads threads = { .working = 0 };
	struct pr_drain end;
	struct pr_http *http;
	struct pr_err err;
	int code;

	if (health_http(c, &http, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot serve HTTP", &err);
		return err.exit ? err.exit : PR_EX_UNAVAILABLE;
	}
	if (pr_tracer_start(&conf.tracing, conf.group, c->m.registry, &c->tracer, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot trace", &err);
		pr_http_stop(http);
		return err.exit;
	}
	pr_log(PR_INFO, "consumer started", KS("group", conf.group), KS("handler", c->ops->kind),
		KI("lanes", conf.lanes), KS("version", PR_VERSION), KS("librdkafka", rd_kafka_version_str()),
		KI("http_port", pr_http_port(http)));
	start(&threads.keeper, "keeper", c->store->keeper, c);
	pr_notify_ready();
	serve(c, &threads, http, signal_fd);
	pr_notify_stopping(pr_setting(&conf.drain_us) + PR_SEC + pr_tracer_budget_us(c->tracer));
	drain(c, &threads, &end);
	if (!end.late && pr_tracer_stop(c->tracer) < 0)
		pr_drain_late(&end, "tracing");
	pr_http_stop(http);
	code = atomic_load(&c->exit_code);
	if (end.late)
		pr_log(PR_WARN, "did not drain in time", KS("threads", end.names));
	pr_log(PR_INFO, "consumer stopped", KI("exit", code));
	if (end.late)
		_exit(code);
	return code;
}

int main(int argc, char **argv)
{
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;
	int rc, signal_fd;

	rc = pr_prog_start(&prog, argc, argv, &loaded);
	if (rc != 0)
		return rc - 1;
	pr_notify_begin();
	signal_fd = pr_daemon_signals(&err);
	if (signal_fd < 0) {
		pr_log_err(PR_ERROR, "cannot start", &err);
		return err.exit;
	}
	if (pr_level_parse(conf.log_level, &level) == 0)
		pr_log_level(level);
	consumer_init(&consumer);
	rc = run(&consumer, signal_fd);
	consumer_release(&consumer);
	pr_conf_free(loaded);
	(void)close(signal_fd);
	return rc;
}
