/* lib/service.c -- the program that every service is: configuration, schema, HTTP, one main thread that keeps
 * an eye on the database, and an end within shutdown.drain. While Postgres is away it serves all the same:
 * 503 with Retry-After for what needs it. The one file of lib/ that logs as a program does, with
 * service_answer.c. */
#include "lib/service_inner.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/notify.h"
#include "lib/prog.h"
#include "lib/pulse.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TICK_MS      1000
#define AWAY_LOW_US  (100 * PR_MS)
#define AWAY_HIGH_US (5 * PR_SEC)
#define FORGET_US    (10 * PR_SEC)
#define LOOKS        4              /* at the database, at most, in one turn of the main loop */
#define INSTALL_US   (600 * PR_SEC) /* all schemas, step by step */

static const char *const troubles[] = { "postgres", "schema", "work", "reload" };
static const char *const states[] = { "starting", "ok", "postgres_away", "error", NULL };

void pr_service_tokens(struct pr_service_run *run, struct pr_tokens *tokens)
{
	run->tokens = tokens;
}

struct pr_metrics *pr_service_metrics(struct pr_service_run *run)
{
	return run->metrics;
}

/* ---- pages ---- */

static void judge(struct pr_service_run *run, struct pr_verdict *v)
{
	(void)(pr_board_say(&run->board, TROUBLE_SCHEMA, "error", v) ||
		pr_board_say(&run->board, TROUBLE_POSTGRES, "postgres_away", v) ||
		(!atomic_load(&run->installed) &&
			pr_say(v, "starting", "the schema is being looked at", "")) ||
		pr_board_say(&run->board, TROUBLE_TICK, "error", v) ||
		pr_board_say(&run->board, TROUBLE_RELOAD, "ok", v) || pr_say(v, "ok", "all is well", ""));
}

static void page_readyz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_service_run *run = ctx;
	struct pr_buf b = { 0 };
	struct pr_verdict v;
	int ready;

	(void)req;
	judge(run, &v);
	ready = strcmp(v.state, "ok") == 0;
	pr_buf_puts(&b, "{");
	pr_put_bool(&b, "ready", ready);
	pr_put_checks(&b, &run->board, &v);
	pr_buf_puts(&b, "}}\n");
	resp->status = ready ? 200 : 503;
	pr_respond(resp, &b);
}

static void page_metrics(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_service_run *run = ctx;
	struct pr_verdict v;

	judge(run, &v);
	pr_vitals_set(&run->vitals, v.state, &run->board);
	pr_page_metrics(req, resp, run->metrics, "service", run->service->name);
}

static void page_openapi(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const struct pr_service_run *run = ctx;

	(void)req;
	resp->cache_control = "max-age=300";
	resp->body = pr_strdup(run->service->openapi);
	resp->body_len = strlen(resp->body);
}

static int serve(struct pr_service_run *run, struct pr_http **ret, struct pr_err *err)
{
	const struct pr_service_conf *conf = run->service->conf;
	size_t room = service_routes_most(run->service);
	struct pr_route *routes = pr_calloc(room + 5, sizeof(*routes));
	struct pr_http_opts opts = { .listen = conf->listen,
		.guarded = 1,
		.has = service_has,
		.max_connections = (unsigned)conf->connections,
		.max_body = (size_t)conf->body_bytes,
		.timeout_s = (unsigned)((conf->http_timeout_us + PR_SEC - 1) / PR_SEC),
		.threads = (unsigned)conf->threads,
		.workers = (unsigned)conf->workers,
		.many = service_handle_many,
		.worker_open = service_worker_open,
		.worker_close = service_worker_close,
		.worker_ctx = run };
	const char **origins = pr_calloc(conf->origins.n + 1, sizeof(*origins));
	int rc;

	for (size_t i = 0; i < conf->origins.n; i++)
		origins[i] = conf->origins.v[i];
	opts.origins = origins;
	routes[0] = (struct pr_route){ "GET", "/healthz", pr_page_healthz, run, 1, 0 };
	routes[1] = (struct pr_route){ "GET", "/readyz", page_readyz, run, 1, 0 };
	routes[2] = (struct pr_route){ "GET", "/metrics", page_metrics, run, 1, 0 };
	routes[3] = (struct pr_route){ "GET", "/openapi.json", page_openapi, run, 1, 0 };
	rc = service_routes(run, routes, room, err);
	if (rc == 0)
		rc = pr_http_start(&opts, routes, ret, err);
	free(routes);
	free(origins);
	return rc;
}

/* ---- the main thread's work ---- */

static void trouble(struct pr_service_run *run, int which, const struct pr_err *err)
{
	switch (pr_board_set(&run->board, which, err)) {
	case PR_BEGAN:
	case PR_CHANGED:
		pr_log_err(PR_WARN, troubles[which], err);
		break;
	case PR_ENDED:
		pr_log(PR_INFO, "it works again", KS("what", troubles[which]));
		break;
	case PR_UNCHANGED:
		break;
	}
}

/* What the main thread knows from turn to turn. */
struct keeper {
	struct pr_service_run *run;
	struct pr_pg *pg;
	int signal_fd; /* ends a wait for Postgres */
	unsigned failed;
	int64_t forgot_us;
};

static int forget(struct keeper *k, struct pr_err *err)
{
	char keep[24];
	const char *const params[] = { keep };

	if (pr_mono_us() - k->forgot_us < FORGET_US)
		return 0;
	(void)snprintf(keep, sizeof(keep), "%lld", (long long)k->run->service->conf->keep_keys_us);
	if (pr_pg_run(k->pg, sql_service_forget, 1, params, err) < 0)
		return -1;
	k->forgot_us = pr_mono_us();
	return 0;
}

static int connect_to(struct keeper *k, struct pr_err *err)
{
	const struct pr_service *s = k->run->service;
	struct pr_pg_opts opts = { .conninfo = s->conf->conninfo,
		.appname = s->program,
		.timeout_us = s->conf->timeout_us,
		.wake_fd = k->signal_fd };

	if (k->pg && pr_pg_ok(k->pg))
		return 0;
	pr_pg_close(k->pg);
	k->pg = NULL;
	return pr_pg_open(&opts, &k->pg, err);
}

static int tick(struct keeper *k, struct pr_err *err)
{
	const struct pr_service *s = k->run->service;

	if (s->tick && s->tick(k->run, k->pg, err) < 0)
		return -1;
	return forget(k, err);
}

static void first_time(struct keeper *k)
{
	atomic_store(&k->run->installed, 1);
	trouble(k->run, TROUBLE_SCHEMA, NULL);
	pr_log(PR_INFO, "service ready", KS("service", k->run->service->name));
}

/* -1: the program must end. *ret_us: when to look again. */
static int look(struct keeper *k, int64_t *ret_us, struct pr_err *err)
{
	struct pr_service_run *run = k->run;
	int which = TROUBLE_POSTGRES, rc = connect_to(k, err);

	if (rc == 0 && !atomic_load(&run->installed)) {
		which = TROUBLE_SCHEMA;
		pr_notify_patience(INSTALL_US);
		rc = service_install(run->service, k->pg, err);
		pr_notify_patience(LOOKS * run->service->conf->timeout_us);
	}
	HOLD(service_look);
	if (rc == 0) {
		which = TROUBLE_TICK;
		rc = tick(k, err);
	}
	if (rc == 0 && !atomic_load(&run->installed))
		first_time(k);
	if (rc < 0 && err->kind == PR_STOP && !atomic_load(&run->installed))
		return -1;
	if (rc < 0 && k->pg && !pr_pg_ok(k->pg))
		which = TROUBLE_POSTGRES;
	for (int i = TROUBLE_POSTGRES; i <= TROUBLE_TICK; i++)
		trouble(run, i, rc < 0 && i == which ? err : NULL);
	k->failed = rc < 0 ? k->failed + 1 : 0;
	*ret_us = rc < 0 ? pr_backoff_us(k->failed - 1, AWAY_LOW_US, AWAY_HIGH_US) : TICK_MS * PR_MS;
	return 0;
}

/* Of the common options only the log's level changes while we run; whatever else may be changed of the
 * service's own is for its table to say. */
static void reload(struct pr_service_run *run, const struct pr_prog *prog)
{
	const struct pr_service *s = run->service;
	char *fresh = pr_calloc(1, s->target_size);
	struct pr_service_conf *conf =
		(struct pr_service_conf *)(void *)(fresh + ((char *)s->conf - (char *)s->target));
	struct pr_conf *loaded;
	enum pr_level level;
	struct pr_err err;

	if (pr_prog_reload(prog, fresh, &loaded, &err) < 0) {
		trouble(run, TROUBLE_RELOAD, &err);
	} else {
		if (pr_level_parse(conf->log_level, &level) == 0)
			pr_log_level(level);
		pr_settings_adopt(&s->conf->drain_us, &conf->drain_us, sizeof(conf->drain_us));
		pr_conf_free(loaded);
		trouble(run, TROUBLE_RELOAD, NULL);
		pr_log(PR_INFO, "configuration reloaded");
	}
	free(fresh);
}

/* In how many milliseconds to be back: a look is due, or the service manager wants a word before. */
static int tell(struct pr_service_run *run, int64_t look_us)
{
	int ms = pr_until_ms(look_us), back;
	struct pr_verdict v;

	pr_pulse("main", AWAY_HIGH_US);
	judge(run, &v);
	back = pr_notify_turn(v.state, v.sentence);
	return back >= 0 && back < ms ? back : ms;
}

static int look_when_due(struct keeper *k, int64_t *look_us, struct pr_err *err)
{
	int64_t wait_us;

	if (pr_mono_us() < *look_us)
		return 0;
	if (look(k, &wait_us, err) < 0)
		return -1;
	*look_us = pr_mono_us() + wait_us;
	return 0;
}

/* Until a signal says stop, or the start fails for good. */
static int watch(struct keeper *k, const struct pr_prog *prog)
{
	int64_t look_us = 0;
	const char *name = "";
	struct pr_err err;

	for (;;) {
		switch (pr_daemon_wait(k->signal_fd, -1, tell(k->run, look_us), &name)) {
		case PR_ORDER_RELOAD:
			pr_notify_reloading();
			reload(k->run, prog);
			pr_notify_ready();
			break;
		case PR_ORDER_STOP:
			pr_log(PR_INFO, "draining", KS("signal", name));
			return PR_EX_OK;
		case PR_ORDER_NONE:
			if (look_when_due(k, &look_us, &err) < 0) {
				pr_log_err(PR_ERROR, "cannot serve", &err);
				return err.exit;
			}
			break;
		}
	}
}

/* ---- begin and end ---- */

static int make_tokens(struct pr_service_run *run, struct pr_err *err)
{
	struct pr_tokens_opts opts = {
		.url = run->service->conf->jwks, .issuer = PR_USER_ISSUER, .audience = PR_USER_AUDIENCE
	};

	if (run->tokens || !opts.url)
		return 0;
	if (pr_tokens_new(&opts, &run->own_tokens, err) < 0)
		return -1;
	run->tokens = run->own_tokens;
	return 0;
}

static void init(struct pr_service_run *run, const struct pr_service *service)
{
	pthread_condattr_t attr;

	memset(run, 0, sizeof(*run));
	run->service = service;
	(void)pthread_mutex_init(&run->heavy_mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&run->heavy_left, &attr);
	(void)pthread_condattr_destroy(&attr);
	run->heavy_free = service->conf->heavy;
	pr_board_init(&run->board, troubles, TROUBLES, TROUBLE_RELOAD);
	run->metrics = pr_metrics_new();
	pr_vitals_init(&run->vitals, run->metrics, states, "1 on the state that the service is in.");
	service_compile(run);
}

static void release(struct pr_service_run *run)
{
	if (run->service->end)
		run->service->end(run);
	pr_tokens_free(run->own_tokens);
	service_uncompile(run);
	pr_metrics_free(run->metrics);
	pr_board_release(&run->board);
	(void)pthread_cond_destroy(&run->heavy_left);
	(void)pthread_mutex_destroy(&run->heavy_mutex);
}

struct ending {
	struct pr_http *http;
};

static void *stop_http(void *arg)
{
	pr_http_stop(((struct ending *)arg)->http);
	return NULL;
}

/* Requests at work end by database.timeout; whoever outlives shutdown.drain is left to the kernel: each is
 * one transaction. */
static int drain(struct pr_service_run *run, struct pr_http *http, struct pr_err *err)
{
	struct ending ending = { .http = http };
	struct pr_drain d;
	pthread_t thread;

	pr_drain_begin(&d, pr_setting(&run->service->conf->drain_us) + PR_SEC);
	if (pr_thread_start(&thread, "drain", stop_http, &ending, err) < 0)
		return -1;
	pr_drain_join(&d, thread, "http");
	return d.late;
}

static int run_service(struct pr_service_run *run, const struct pr_prog *prog, int signal_fd)
{
	struct keeper keeper = { .run = run, .signal_fd = signal_fd };
	struct pr_http *http = NULL;
	struct pr_err err;
	int code;

	if ((run->service->begin && run->service->begin(run, &err) < 0) || make_tokens(run, &err) < 0 ||
		serve(run, &http, &err) < 0) {
		pr_log_err(PR_ERROR, "cannot start", &err);
		return err.exit ? err.exit : PR_EX_UNAVAILABLE;
	}
	pr_log(PR_INFO, "service started", KS("service", run->service->name), KS("version", PR_VERSION),
		KI("http_port", pr_http_port(http)));
	pr_notify_ready();
	pr_notify_patience(LOOKS * run->service->conf->timeout_us);
	code = watch(&keeper, prog);
	pr_notify_stopping(pr_setting(&run->service->conf->drain_us) + PR_SEC);
	if (drain(run, http, &err) != 0) {
		pr_log(PR_WARN, "did not drain in time");
		_exit(code);
	}
	pr_pg_close(keeper.pg);
	pr_log(PR_INFO, "service stopped", KI("exit", code));
	return code;
}

int pr_service_main(const struct pr_service *service, int argc, char **argv)
{
	static struct pr_service_run run;
	struct pr_prog prog = { .name = service->program,
		.does = service->does,
		.table = service->options,
		.target = service->target,
		.validate = service->validate };
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
	if (pr_level_parse(service->conf->log_level, &level) == 0)
		pr_log_level(level);
	init(&run, service);
	rc = run_service(&run, &prog, signal_fd);
	release(&run);
	pr_conf_free(loaded);
	(void)close(signal_fd);
	return rc;
}
