/* consumers/postrider_consumer_main.c -- postrider-consumer: one group's handler fed from Kafka, one process,
 * in the foreground. Starts the threads, turns signals into drain and reload, and ends within shutdown.drain.
 */
#include "consumers/consumer.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/prog.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
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
};

void consumer_stop(struct consumer *c, int exit_code)
{
	uint64_t one = 1;
	int none = 0;

	(void)atomic_compare_exchange_strong(&c->exit_code, &none, exit_code);
	atomic_store(&c->stopping, 1);
	(void)!write(c->wake_fd, &one, sizeof(one));
}

static void consumer_init(struct consumer *c)
{
	memset(c, 0, sizeof(*c));
	c->conf = &conf;
	c->ops = handlers[conf.handler.kind];
	(void)pthread_mutex_init(&c->mutex, NULL);
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->started_us = pr_mono_us();
	atomic_store(&c->group_parked_oldest_us, INT64_MAX);
	atomic_store(&c->postgres_contact_us, pr_mono_us());
	atomic_store(&c->kafka_contact_us, pr_mono_us());
	health_init(c);
	atomic_store(&c->lanes_used, 1);
	for (int i = 0; i < LANES_MOST; i++)
		c->lanes[i] = lane_new(c, i);
}

/* All threads have ended. */
static void consumer_release(struct consumer *c)
{
	for (int i = 0; i < LANES_MOST; i++)
		lane_free(c->lanes[i]);
	group_release(c);
	for (size_t i = 0; i < c->parts_n; i++)
		part_drop(c->parts[i]);
	free(c->parts);
	health_release(c);
	(void)pthread_mutex_destroy(&c->mutex);
	(void)close(c->wake_fd);
}

static void reload(struct consumer *c)
{
	struct pr_consumer_conf fresh;
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;

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
	pthread_t keeper, group, replay;
	int working; /* group, replay and lanes run */
};

static void start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	if (pthread_create(thread, NULL, run, arg) != 0) {
		pr_log(PR_ERROR, "cannot start a thread");
		_exit(PR_EX_UNAVAILABLE);
	}
}

/* Once the keeper has seen that the database is the right one. */
static void start_work(struct consumer *c, struct threads *t)
{
	t->working = 1;
	lanes_begin(c, lanes_wanted(c));
	start(&t->group, group_thread, c);
	start(&t->replay, replay_thread, c);
}

/* Until a signal or a thread says stop. */
static void serve(struct consumer *c, struct threads *t, int signal_fd)
{
	struct pollfd fds[2] = { { .fd = signal_fd, .events = POLLIN },
		{ .fd = c->wake_fd, .events = POLLIN } };
	struct signalfd_siginfo info;

	while (!atomic_load(&c->stopping)) {
		if (!t->working && atomic_load(&c->ready))
			start_work(c, t);
		(void)poll(fds, 2, t->working ? -1 : 20);
		if (read(signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
			continue;
		if (info.ssi_signo == SIGHUP) {
			reload(c);
			continue;
		}
		pr_log(PR_INFO, "draining", KS("signal", info.ssi_signo == SIGTERM ? "TERM" : "INT"));
		consumer_stop(c, PR_EX_OK);
	}
}

/* What does not end in time is left to the kernel: positions and effects are one commit, or the handler has
 * the id. */
static void join_by(pthread_t thread, const struct timespec *deadline, const char *name, int *ret_late)
{
	if (pthread_timedjoin_np(thread, NULL, deadline) == 0)
		return;
	pr_log(PR_WARN, "did not drain in time", KS("thread", name));
	*ret_late = 1;
}

/* Replay first, it feeds the lanes. Then the lanes: the group's last word to Kafka is about what they have
 * committed. */
static int drain(struct consumer *c, struct threads *t)
{
	struct timespec deadline;
	int late = 0;

	(void)clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += pr_setting(&conf.drain_us) / PR_SEC + 1;
	if (t->working)
		join_by(t->replay, &deadline, "replay", &late);
	for (int i = 0; i < lanes_begun(c); i++)
		join_by(c->lane_threads[i], &deadline, "lane", &late);
	if (t->working) {
		group_finish(c);
		join_by(t->group, &deadline, "group", &late);
	}
	join_by(t->keeper, &deadline, "keeper", &late);
	return late;
}

static int run(struct consumer *c, int signal_fd)
{
	struct threads threads = { .working = 0 };
	struct pr_http *http;
	int late, code;
	sigset_t all;
	struct pr_err err;

	if (health_http(c, &http, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot serve HTTP", &err);
		return err.exit ? err.exit : PR_EX_UNAVAILABLE;
	}
	pr_log(PR_INFO, "consumer started", KS("group", conf.group), KS("handler", c->ops->kind),
		KI("lanes", conf.lanes), KS("version", PR_VERSION), KS("librdkafka", rd_kafka_version_str()),
		KI("http_port", pr_http_port(http)));
	start(&threads.keeper, keeper_thread, c);
	serve(c, &threads, signal_fd);
	/* From here on the default action is back: a second signal ends us at once.
	 */
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_UNBLOCK, &all, NULL);
	late = drain(c, &threads);
	pr_http_stop(http);
	code = atomic_load(&c->exit_code);
	pr_log(PR_INFO, "consumer stopped", KI("exit", code));
	if (late)
		_exit(code);
	return code;
}

int main(int argc, char **argv)
{
	struct pr_conf *loaded;
	enum pr_level level;
	sigset_t set;
	int rc, signal_fd;

	rc = pr_prog_start(&prog, argc, argv, &loaded);
	if (rc != 0)
		return rc - 1;
	(void)signal(SIGPIPE, SIG_IGN);
	(void)setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 }); /* secrets are in memory */
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	(void)sigaddset(&set, SIGHUP);
	(void)pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (pr_level_parse(conf.log_level, &level) == 0)
		pr_log_level(level);
	consumer_init(&consumer);
	rc = run(&consumer, signal_fd);
	consumer_release(&consumer);
	pr_conf_free(loaded);
	(void)close(signal_fd);
	return rc;
}
