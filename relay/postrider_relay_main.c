/* relay/postrider_relay_main.c -- postrider-relay: one outbox to Kafka, one process, in the foreground.
 * Starts the threads, turns signals into drain and reload, and ends within shutdown.drain. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/prog.h"

#include <errno.h>
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

static struct relay relay;
static struct pr_relay_conf conf;

static const struct pr_prog prog = {
	.name = "postrider-relay",
	.does = "publishes one outbox to Kafka, each committed event exactly once, in order per key",
	.table = pr_relay_options,
	.target = &conf,
	.validate = pr_relay_conf_validate,
};

void relay_stop(struct relay *r, int exit_code)
{
	uint64_t one = 1;
	int was = 0;

	if (!atomic_compare_exchange_strong(&r->stopping, &was, 1))
		return;
	atomic_store(&r->exit_code, exit_code);
	pipe_stop(&r->pipe);
	(void)!write(r->wake_fd, &one, sizeof(one));
}

static void relay_init(struct relay *r)
{
	memset(r, 0, sizeof(*r));
	r->conf = &conf;
	(void)pthread_mutex_init(&r->mutex, NULL);
	pipe_init(&r->pipe, (size_t)conf.limits.batch_events, (size_t)conf.limits.batch_bytes);
	r->ops = conf.source.engine == PR_ENGINE_NULL ? &source_null : &source_table;
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r->started_us = pr_mono_us();
	atomic_store(&r->in_flight_oldest_us, INT64_MAX);
	atomic_store(&r->held_oldest_us, INT64_MAX);
	atomic_store(&r->scheduled_oldest_us, INT64_MAX);
	atomic_store(&r->probe_oldest_us, INT64_MAX);
	atomic_store(&r->ranges_ahead, -1);
	atomic_store(&source_contact_us, pr_mono_us());
	health_init(r);
}

static void relay_release(struct relay *r)
{
	health_release(r);
	pipe_release(&r->pipe);
	(void)pthread_mutex_destroy(&r->mutex);
	(void)close(r->wake_fd);
}

static void reload(struct relay *r)
{
	struct pr_relay_conf fresh;
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;

	if (pr_prog_reload(&prog, &fresh, &loaded, &err) < 0) {
		health_trouble(r, TROUBLE_RELOAD, &err);
		return;
	}
	pr_settings_adopt(&conf.limits, &fresh.limits, sizeof(conf.limits));
	pr_settings_adopt(&conf.retention, &fresh.retention, sizeof(conf.retention));
	pr_settings_adopt(&conf.drain_us, &fresh.drain_us, sizeof(conf.drain_us));
	if (pr_level_parse(fresh.log_level, &level) == 0)
		pr_log_level(level);
	pr_conf_free(loaded);
	health_trouble(r, TROUBLE_RELOAD, NULL);
	pr_log(PR_INFO, "configuration reloaded");
}

/* Until a signal or a thread says stop. */
static void serve(struct relay *r, int signal_fd)
{
	struct pollfd fds[2] = { { .fd = signal_fd, .events = POLLIN },
		{ .fd = r->wake_fd, .events = POLLIN } };
	struct signalfd_siginfo info;

	while (!atomic_load(&r->stopping)) {
		(void)poll(fds, 2, -1);
		if (read(signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
			continue;
		if (info.ssi_signo == SIGHUP) {
			reload(r);
			continue;
		}
		pr_log(PR_INFO, "draining", KS("signal", info.ssi_signo == SIGTERM ? "TERM" : "INT"));
		relay_stop(r, PR_EX_OK);
	}
}

/* What does not end in time is left to the kernel: the position says exactly what is published. */
static void join_by(pthread_t thread, const struct timespec *deadline, const char *name, int *ret_late)
{
	if (pthread_timedjoin_np(thread, NULL, deadline) == 0)
		return;
	pr_log(PR_WARN, "did not drain in time", KS("thread", name));
	*ret_late = 1;
}

static void start(pthread_t *thread, void *(*run)(void *), struct relay *r)
{
	if (pthread_create(thread, NULL, run, r) != 0) {
		pr_log(PR_ERROR, "cannot start a thread");
		_exit(PR_EX_UNAVAILABLE);
	}
}

static int run(struct relay *r, int signal_fd)
{
	pthread_t reader, publisher, janitor, retention;
	int late = 0, table = conf.source.engine == PR_ENGINE_TABLE;
	struct timespec deadline;
	struct pr_http *http;
	sigset_t all;
	struct pr_err err;

	if (health_http(r, &http, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot serve HTTP", &err);
		return err.exit ? err.exit : PR_EX_UNAVAILABLE;
	}
	pr_log(PR_INFO, "relay started", KS("outbox", conf.name), KS("version", PR_VERSION),
		KS("librdkafka", rd_kafka_version_str()), KI("http_port", pr_http_port(http)));
	start(&reader, turn_thread, r);
	start(&publisher, publish_thread, r);
	if (table) {
		start(&janitor, janitor_thread, r);
		start(&retention, retention_thread, r);
	}
	serve(r, signal_fd);
	/* From here on the default action is back: a second signal ends us at once. */
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_UNBLOCK, &all, NULL);
	(void)clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += setting(&conf.drain_us) / PR_SEC + 1;
	join_by(publisher, &deadline, "publisher", &late);
	join_by(reader, &deadline, "reader", &late);
	if (table) {
		join_by(janitor, &deadline, "janitor", &late);
		join_by(retention, &deadline, "retention", &late);
	}
	pr_http_stop(http);
	pr_log(PR_INFO, "relay stopped", KI("exit", atomic_load(&r->exit_code)));
	if (late)
		_exit(atomic_load(&r->exit_code));
	return atomic_load(&r->exit_code);
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
	relay_init(&relay);
	rc = run(&relay, signal_fd);
	relay_release(&relay);
	pr_conf_free(loaded);
	(void)close(signal_fd);
	return rc;
}
