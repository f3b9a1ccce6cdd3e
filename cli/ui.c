/* cli/ui.c -- `postrider ui`: the page of several relays and consumers at once. Serves until a signal comes;
 * a program that does not answer is shown as that, and does not hold up the others. Without write_token it
 * changes nothing: what has to be done stands there as the command to type. */
#include "cli/ui.h"

#include "lib/clock.h"
#include "lib/conf_check.h"
#include "lib/daemon.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BODY  (800 << 10) /* a payload, each byte of it escaped */
#define AT(field) offsetof(struct ui, field)
#define OF(field) offsetof(struct ui_database, field)

static const struct pr_opt database_options[] = {
	{ "name", PR_OPT_STR, OF(name), .flags = PR_OPT_REQUIRED, .example = "orders",
		.doc = "What the page calls it." },
	{ "conninfo", PR_OPT_CONNINFO, OF(conninfo), .example = "host=127.0.0.1 dbname=orders",
		.doc = "The database, as libpq takes it; a role that may look is enough." },
	{ "config", PR_OPT_STR, OF(config), .example = "/etc/postrider/relay.cfg",
		.doc = "Instead of conninfo: the file of the relay or consumer whose database it is." },
	{ 0 },
};

static const struct pr_opt options[] = {
	{ "listen", PR_OPT_STR, AT(listen), "127.0.0.1:9480",
		.doc = "Address and port of the page; port 0 takes a free one. Off loopback it needs "
		       "listen_token." },
	{ "listen_token", PR_OPT_SECRET, AT(token), .example = "env:POSTRIDER_UI_TOKEN",
		.doc = "Bearer token that a proxy in front of the page must show, and that is shown to the "
		       "programs." },
	{ "relays", PR_OPT_STRS, AT(relays), .example = "http://127.0.0.1:9470",
		.doc = "Addresses of relays." },
	{ "consumers", PR_OPT_STRS, AT(consumers), .example = "http://127.0.0.1:9471",
		.doc = "Addresses of consumers, engines and sinks." },
	{ "databases", PR_OPT_GROUPS, AT(databases), .sub = database_options,
		.sub_size = sizeof(struct ui_database), .doc = "Where look-ups look." },
	{ "tls.ca", PR_OPT_STR, AT(tls.ca), .example = "/etc/postrider/tls/ca.crt",
		.doc = "Of programs at https: the authority of their certificates; the system's when not "
		       "set." },
	{ "tls.cert", PR_OPT_STR, AT(tls.cert), .example = "/etc/postrider/tls/ui.crt",
		.doc = "Our certificate, for programs with http.tls.client_ca." },
	{ "tls.key", PR_OPT_STR, AT(tls.key), .example = "/etc/postrider/tls/ui.key", .doc = "Its key." },
	{ "environment.name", PR_OPT_STR, AT(environment.name), .example = "production",
		.doc = "Where this runs, at the top of the page." },
	{ "environment.colour", PR_OPT_ENUM, AT(environment.colour), "none", .choices = PR_PAGE_COLOURS,
		.doc = "The colour of that name." },
	{ "write_token", PR_OPT_SECRET, AT(write_token), .example = "env:POSTRIDER_UI_WRITE_TOKEN",
		.doc = "Who types it may act on this page, and sees payloads. Without it the page only "
		       "reads." },
	{ "write_life", PR_OPT_DURATION, AT(write_life_us), "1h", .min = PR_SEC, .max = 24 * 3600 * PR_SEC,
		.doc = "So long after that it must be typed again." },
	{ "timeout", PR_OPT_DURATION, AT(timeout_us), "2s", .min = 100 * PR_MS, .max = 30 * PR_SEC,
		.doc = "How long one program may take to answer; look-ups have five times as long." },
	{ 0 },
};

static int check_urls(
	const struct pr_conf *loaded, const char *key, const struct pr_strs *urls, struct pr_err *err)
{
	for (size_t i = 0; i < urls->n; i++) {
		const char *s = urls->v[i];
		size_t n = strlen(s);

		if ((strncmp(s, "http://", 7) != 0 && strncmp(s, "https://", 8) != 0) || s[n - 1] == '/')
			return pr_conf_fail(loaded, key, err,
				"\"%s\" must begin with http:// or https://, and not end with a slash", s);
	}
	return 0;
}

static int check(const struct ui *ui, const struct pr_conf *loaded, struct pr_err *err)
{
	const struct ui_database *db = ui->databases.v;

	if (pr_check_listen(ui->listen, ui->token, NULL, loaded, err) < 0 ||
		check_urls(loaded, "relays", &ui->relays, err) < 0 ||
		check_urls(loaded, "consumers", &ui->consumers, err) < 0)
		return -1;
	if (ui_programs(ui) == 0)
		return pr_conf_fail(loaded, "relays", err, "and consumers are empty: nothing to show");
	if (ui_programs(ui) > UI_PROGRAMS)
		return pr_conf_fail(loaded, "relays", err, "and consumers are more than %d", UI_PROGRAMS);
	for (size_t i = 0; i < ui->databases.n; i++)
		if (!db[i].conninfo == !db[i].config)
			return pr_conf_fail(loaded, "databases", err,
				"\"%s\" needs either conninfo or config", db[i].name);
	return 0;
}

struct more {
	const struct ui *ui;
	const struct pr_request *req;
};

static void more(struct pr_buf *b, void *ctx)
{
	const struct more *m = ctx;

	ui_look_forms(b, m->ui, m->req);
}

static void page_root(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_part parts[UI_PROGRAMS];
	struct ui_answer answers[UI_PROGRAMS];
	struct ui *ui = ctx;
	struct more about = { ui, req };
	struct pr_page page = { .environment = ui->environment.name,
		.colour = ui->environment.name ? ui->colour : NULL,
		.parts = parts,
		.n = ui_programs(ui),
		.more = more,
		.ctx = &about };

	ui_fetch(ui, parts, answers);
	pr_page_show(resp, &page);
	ui_release(answers, page.n);
}

static void take_colour(struct ui *ui)
{
	const char *word = PR_PAGE_COLOURS;

	for (int i = ui->environment.colour; i > 0; i--)
		word = strchr(word, '|') + 1;
	(void)snprintf(ui->colour, sizeof(ui->colour), "%.*s", (int)strcspn(word, "|"), word);
}

static void page_healthz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->body = pr_strdup("{\"status\":\"ok\"}\n");
	resp->body_len = strlen(resp->body);
}

static int serve(struct ui *ui, struct pr_err *err)
{
	const struct pr_route routes[] = {
		{ "GET", "/healthz", page_healthz, ui, 1, 0 },
		{ "GET", "/", page_root, ui, 0, 1 },
		{ "GET", "/dlq", ui_dlq, ui, 0, 1 },
		{ "GET", "/sagas", ui_sagas, ui, 0, 1 },
		{ "GET", "/saga", ui_saga, ui, 0, 1 },
		{ "GET", "/jobs", ui_jobs, ui, 0, 1 },
		{ "GET", "/event", ui_event, ui, 0, 1 },
		{ "GET", "/letters", ui_letters, ui, 0, 1 },
		{ "GET", "/letter", ui_letter, ui, 0, 1 },
		{ "GET", "/parked", ui_parked, ui, 0, 1 },
		/* From here on only with write_token. */
		{ ui->gate ? "GET" : NULL, "/login", ui_login, ui, 0, 0 },
		{ "POST", "/login", ui_login_post, ui, 0, 0 },
		{ "POST", "/logout", ui_logout_post, ui, 0, 0 },
		{ "GET", "/act", ui_act, ui, 0, 1 },
		{ "POST", "/act", ui_act_post, ui, 0, 1 },
		{ 0 },
	};
	struct pr_http_opts opts = {
		.listen = ui->listen, .token = ui->token, .timeout_s = 60, .max_body = ui->gate ? MAX_BODY : 0
	};
	int signal_fd = pr_daemon_signals(err);
	struct pr_http *http;
	const char *name;
	char *url;

	if (signal_fd < 0)
		return -1;
	if (pr_http_start(&opts, routes, &http, err) < 0) {
		(void)close(signal_fd);
		return -1;
	}
	url = cli_url_at("http", ui->listen, pr_http_port(http));
	(void)printf("%s/\n", url);
	free(url);
	(void)fflush(stdout);
	while (pr_daemon_wait(signal_fd, -1, -1, &name) != PR_ORDER_STOP)
		;
	pr_http_stop(http);
	(void)close(signal_fd);
	return 0;
}

static int open_gate(struct ui *ui, struct pr_err *err)
{
	if (!ui->write_token)
		return 0;
	ui->gate = ui_gate_new(ui->write_token, ui->write_life_us);
	return ui->gate ? 0
			: pr_fail(err, PR_RETRY, "no random numbers can be had: nobody could log in safely");
}

int verb_ui(struct cli *c)
{
	struct pr_conf *loaded = NULL;
	struct pr_err err = { 0 };
	struct ui ui;
	int rc;

	if (!cli_str(c, "file")) {
		(void)cli_usage(&err, "-c FILE is needed: it names the programs");
		return cli_failed(c, &err);
	}
	if (pr_conf_load(cli_str(c, "file"), options, &ui, NULL, 0, &loaded, &err) < 0)
		return cli_failed(c, &err);
	take_colour(&ui);
	ui.gate = NULL;
	rc = check(&ui, loaded, &err) < 0 || open_gate(&ui, &err) < 0 || serve(&ui, &err) < 0
		     ? cli_failed(c, &err)
		     : PR_EX_OK;
	ui_gate_free(ui.gate);
	pr_conf_free(loaded);
	return rc;
}
