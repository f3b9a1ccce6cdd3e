/* lib/health.c -- trouble, verdict, pages and vital signs, as every daemon shows them. Refuses to decide
 * anything: which trouble outweighs which is the program's. */
#include "lib/health.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/pulse.h"

#include <inttypes.h>
#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- trouble */

void pr_board_init(struct pr_board *b, const char *const *names, int n, int errors)
{
	memset(b, 0, sizeof(*b));
	(void)pthread_mutex_init(&b->mutex, NULL);
	b->names = names;
	b->n = n < PR_BOARD_MAX ? n : PR_BOARD_MAX;
	b->errors = errors;
}

void pr_board_release(struct pr_board *b)
{
	(void)pthread_mutex_destroy(&b->mutex);
}

enum pr_change pr_board_set(struct pr_board *b, int which, const struct pr_err *err)
{
	enum pr_change change = PR_UNCHANGED;

	(void)pthread_mutex_lock(&b->mutex);
	if (err) {
		if (b->since_us[which] == 0)
			change = PR_BEGAN;
		else if (strcmp(err->text, b->err[which].text) != 0)
			change = PR_CHANGED;
		b->err[which] = *err;
		if (change == PR_BEGAN)
			b->since_us[which] = pr_mono_us();
	} else if (b->since_us[which] != 0) {
		change = PR_ENDED;
		b->since_us[which] = 0;
		memset(&b->err[which], 0, sizeof(b->err[which]));
	}
	(void)pthread_mutex_unlock(&b->mutex);
	return change;
}

int pr_board_has(struct pr_board *b, int which)
{
	int yes;

	(void)pthread_mutex_lock(&b->mutex);
	yes = b->since_us[which] != 0;
	(void)pthread_mutex_unlock(&b->mutex);
	return yes;
}

/* ---------------------------------------------------------------- the verdict */

int pr_say(struct pr_verdict *v, const char *state, const char *sentence, const char *hint)
{
	v->state = state;
	(void)snprintf(v->sentence, sizeof(v->sentence), "%s", sentence);
	(void)snprintf(v->hint, sizeof(v->hint), "%s", hint);
	return 1;
}

int pr_board_say(struct pr_board *b, int which, const char *state, struct pr_verdict *v)
{
	int yes;

	(void)pthread_mutex_lock(&b->mutex);
	yes = b->since_us[which] != 0;
	if (yes)
		(void)pr_say(v, state, b->err[which].text, b->err[which].hint);
	(void)pthread_mutex_unlock(&b->mutex);
	return yes;
}

/* ---------------------------------------------------------------- JSON */

static void put_name(struct pr_buf *b, const char *name)
{
	pr_buf_printf(b, "%s\"%s\":", b->len > 0 && strchr("{[", b->s[b->len - 1]) ? "" : ",", name);
}

void pr_put_text(struct pr_buf *b, const char *name, const char *value)
{
	put_name(b, name);
	pr_buf_json(b, value, strlen(value));
}

void pr_put_bool(struct pr_buf *b, const char *name, int value)
{
	put_name(b, name);
	pr_buf_puts(b, value ? "true" : "false");
}

void pr_put_int(struct pr_buf *b, const char *name, int64_t value)
{
	put_name(b, name);
	pr_buf_printf(b, "%" PRId64, value);
}

void pr_put_seconds(struct pr_buf *b, const char *name, double value)
{
	put_name(b, name);
	if (isnan(value))
		pr_buf_puts(b, "null");
	else
		pr_buf_printf(b, "%.3f", value);
}

void pr_put_checks(struct pr_buf *b, struct pr_board *board, const struct pr_verdict *v)
{
	pr_put_text(b, "state", v->state);
	pr_put_text(b, "sentence", v->sentence);
	pr_put_text(b, "hint", v->hint);
	pr_buf_puts(b, ",\"checks\":{");
	(void)pthread_mutex_lock(&board->mutex);
	for (int i = 0; i < board->n; i++)
		pr_put_text(b, board->names[i], board->since_us[i] ? board->err[i].text : "ok");
	(void)pthread_mutex_unlock(&board->mutex);
}

void pr_put_problems(struct pr_buf *b, struct pr_board *board)
{
	const struct pr_err *err;

	pr_buf_puts(b, ",\"problems\":[");
	(void)pthread_mutex_lock(&board->mutex);
	for (int i = 0; i < board->n; i++) {
		if (!board->since_us[i])
			continue;
		err = &board->err[i];
		pr_buf_puts(b, b->s[b->len - 1] == '[' ? "{" : ",{");
		pr_put_text(b, "code", err->code[0] ? err->code : board->names[i]);
		pr_put_text(b, "what", board->names[i]);
		pr_put_text(b, "severity", i < board->errors ? "error" : "warn");
		pr_put_text(b, "text", err->text);
		pr_put_text(b, "hint", err->hint);
		pr_buf_printf(b, ",\"seconds\":%.1f}",
			(double)(pr_mono_us() - board->since_us[i]) / (double)PR_SEC);
	}
	(void)pthread_mutex_unlock(&board->mutex);
	pr_buf_puts(b, "]");
}

/* ---------------------------------------------------------------- pages */

void pr_respond(struct pr_response *resp, struct pr_buf *b)
{
	resp->body = b->s;
	resp->body_len = b->len;
}

void pr_page_healthz(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	int64_t us;
	const char *silent = pr_pulse_silent(&us);

	(void)ctx;
	(void)req;
	if (silent) {
		resp->status = 503;
		resp->body = pr_asprintf("{\"status\":\"hung\",\"thread\":\"%s\",\"seconds\":%.1f}\n", silent,
			(double)us / (double)PR_SEC);
	} else {
		resp->body = pr_strdup("{\"status\":\"ok\"}\n");
	}
	resp->body_len = strlen(resp->body);
}

void pr_page_metrics(const struct pr_request *req, struct pr_response *resp, struct pr_metrics *m,
	const char *label, const char *value)
{
	const char *accept = pr_http_header(req, "Accept");
	int open = accept && strstr(accept, "application/openmetrics-text");
	char labels[160];

	(void)snprintf(labels, sizeof(labels), "%s=\"%s\"", label, value);
	resp->content_type = open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
				  : "text/plain; version=0.0.4; charset=utf-8";
	resp->body = pr_metrics_render(m, labels, open, &resp->body_len);
}

/* ---------------------------------------------------------------- metrics */

struct pr_series *pr_gauge_new(struct pr_metrics *m, const char *name, const char *help)
{
	return pr_series_one(pr_family_new(m, PR_GAUGE, name, "", 0, help));
}

void pr_vitals_init(
	struct pr_vitals *v, struct pr_metrics *m, const char *const *states, const char *state_help)
{
	struct pr_family *info;
	char libpq[16];

	(void)snprintf(libpq, sizeof(libpq), "%d", PQlibVersion());
	info = pr_family_new(m, PR_GAUGE, "postrider_build_info", "version,librdkafka,libpq", 0,
		"Always 1; the versions are in the labels.");
	pr_gauge_set(
		pr_series_get(info, (const char *const[]){ PR_VERSION, rd_kafka_version_str(), libpq }), 1);
	pr_gauge_set(pr_gauge_new(m, "postrider_up", "1 while the process serves."), 1);
	v->states = states;
	v->state = pr_family_new(m, PR_GAUGE, "postrider_state", "state", 0, state_help);
	v->trouble = pr_family_new(m, PR_GAUGE, "postrider_trouble_seconds", "what", 0,
		"For how long this has been in the way; 0: it is not.");
	v->log_dropped =
		pr_gauge_new(m, "postrider_log_lines_dropped", "Log lines that could not be written.");
	pr_metrics_process(m);
}

void pr_vitals_set(struct pr_vitals *v, const char *state, struct pr_board *board)
{
	int64_t since;

	(void)pthread_mutex_lock(&board->mutex);
	for (int i = 0; i < board->n; i++) {
		since = board->since_us[i];
		pr_gauge_set(pr_series_get(v->trouble, (const char *const[]){ board->names[i] }),
			since ? (double)(pr_mono_us() - since) / (double)PR_SEC : 0);
	}
	(void)pthread_mutex_unlock(&board->mutex);
	for (const char *const *s = v->states; *s; s++)
		pr_gauge_set(pr_series_get(v->state, (const char *const[]){ *s }), strcmp(*s, state) == 0);
	pr_gauge_set(v->log_dropped, (double)pr_log_dropped());
}
