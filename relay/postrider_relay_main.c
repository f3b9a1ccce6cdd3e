/* relay/postrider_relay_main.c -- postrider-relay: one outbox to Kafka, one process, in the foreground.
 * Starts the threads, turns signals into drain and reload, and ends within shutdown.drain. */
#include "relay/relay.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/log.h"
#include "lib/notify.h"
#include "lib/prog.h"

#include <string.h>
#include <sys/eventfd.h>
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

static void reload(struct relay *r, struct pr_http *http)
{
	struct pr_relay_conf fresh;
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;

	if (pr_http_renew(http, &err) < 0) {
		health_trouble(r, TROUBLE_RELOAD, &err);
		return;
	}
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

/* In how many milliseconds to be back. */
static int tell(struct relay *r)
{
	char sentence[400], hint[400];
	const char *state = health_state(r, sentence, sizeof(sentence), hint, sizeof(hint));
	int ms = pr_notify_turn(state, sentence), sample = health_sample(r);

	return ms >= 0 && ms < sample ? ms : sample;
}

/* Until a signal or a thread says stop. */
static void serve(struct relay *r, struct pr_http *http, int signal_fd)
{
	const char *name = "";

	while (!atomic_load(&r->stopping)) {
		switch (pr_daemon_wait(signal_fd, r->wake_fd, tell(r), &name)) {
		case PR_ORDER_RELOAD:
			pr_notify_reloading();
			reload(r, http);
			pr_notify_ready();
			break;
		case PR_ORDER_STOP:
			pr_log(PR_INFO, "draining", KS("signal", name));
			relay_stop(r, PR_EX_OK);
			break;
		case PR_ORDER_NONE:
			break;
		}
	}
}

static void start(pthread_t *thread, const char *name, void *(*run)(void *), struct relay *r)
{
	struct pr_err err;

	if (pr_thread_start(thread, name, run, r, &err) == 0)
		return;
	pr_log_err(PR_ERROR, "cannot go on", &err);
	_exit(err.exit);
}

static int run(struct relay *r, int signal_fd)
{
	pthread_t reader, publisher, janitor, retention;
	int table = conf.source.engine == PR_ENGINE_TABLE;
	struct pr_drain drain;
	struct pr_http *http;
	struct pr_err err;

	if (health_http(r, &http, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot serve HTTP", &err);
		return err.exit ? err.exit : PR_EX_UNAVAILABLE;
	}
	if (pr_tracer_start(&conf.tracing, NULL, r->m.registry, &r->tracer, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot trace", &err);
		pr_http_stop(http);
		return err.exit;
	}
	pr_log(PR_INFO, "relay started", KS("outbox", conf.name), KS("version", PR_VERSION),
		KS("librdkafka", rd_kafka_version_str()), KI("http_port", pr_http_port(http)));
	start(&reader, "reader", turn_thread, r);
	start(&publisher, "publisher", publish_thread, r);
	if (table) {
		start(&janitor, "janitor", janitor_thread, r);
		start(&retention, "retention", retention_thread, r);
	}
	pr_notify_ready();
	serve(r, http, signal_fd);
	pr_notify_stopping(setting(&conf.drain_us) + PR_SEC + pr_tracer_budget_us(r->tracer));
	/* What does not end in time is left to the kernel: the position says exactly what is published. */
	pr_drain_begin(&drain, setting(&conf.drain_us) + PR_SEC);
	pr_drain_join(&drain, publisher, "publisher");
	pr_drain_join(&drain, reader, "reader");
	if (table) {
		pr_drain_join(&drain, janitor, "janitor");
		pr_drain_join(&drain, retention, "retention");
	}
	if (!drain.late && pr_tracer_stop(r->tracer) < 0)
		pr_drain_late(&drain, "tracing");
	pr_http_stop(http);
	if (drain.late)
		pr_log(PR_WARN, "did not drain in time", KS("threads", drain.names));
	pr_log(PR_INFO, "relay stopped", KI("exit", atomic_load(&r->exit_code)));
	if (drain.late)
		_exit(atomic_load(&r->exit_code));
	return atomic_load(&r->exit_code);
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
	relay_init(&relay);
	rc = run(&relay, signal_fd);
	relay_release(&relay);
	pr_conf_free(loaded);
	(void)close(signal_fd);
	return rc;
}
