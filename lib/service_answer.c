/* lib/service_answer.c -- how a request went: good answers, problems (RFC 9457), and SQLSTATE -> status, here
 * and nowhere else. Refuses to show a client what Postgres said of itself: that goes to the log. */
#include "lib/service_inner.h"

#include "lib/clock.h"
#include "lib/json.h"
#include "lib/log.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* "seat-taken" -> "Seat taken" */
static void title_of(const char *slug, char *title, size_t size)
{
	(void)snprintf(title, size, "%s", slug);
	for (char *c = title; *c; c++)
		if (*c == '-')
			*c = ' ';
	*title = (char)toupper((unsigned char)*title);
}

static void put(struct pr_buf *b, const char *name, const char *s)
{
	pr_buf_printf(b, ",\"%s\":", name);
	pr_buf_json(b, s, strlen(s));
}

int service_problem(
	struct pr_call *call, int status, const char *slug, const char *detail, const char *member)
{
	struct pr_buf b = { 0 };
	char title[80];

	title_of(slug, title, sizeof(title));
	pr_buf_printf(&b, "{\"type\":\"/problems/%s\"", slug);
	put(&b, "title", title);
	pr_buf_printf(&b, ",\"status\":%d", status);
	if (detail && *detail)
		put(&b, "detail", detail);
	if (member) {
		pr_buf_puts(&b, ",\"errors\":[{\"member\":");
		pr_buf_json(&b, member, strlen(member));
		put(&b, "detail", detail ? detail : "");
		pr_buf_puts(&b, "}]");
	}
	pr_buf_puts(&b, "}\n");
	free(call->resp->body);
	call->resp->status = status;
	call->resp->content_type = "application/problem+json";
	call->resp->body = b.s;
	call->resp->body_len = b.len;
	return 1;
}

int pr_call_problem(struct pr_call *call, int status, const char *slug, const char *detail)
{
	return service_problem(call, status, slug, detail, NULL);
}

int pr_call_invalid(struct pr_call *call, const char *member, const char *fmt, ...)
{
	char what[300], detail[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	(void)snprintf(detail, sizeof(detail), "%s %s", member, what);
	return service_problem(call, 422, "invalid-value", detail, member);
}

int pr_call_unauthorized(struct pr_call *call, enum pr_token_verdict verdict)
{
	if (verdict != PR_TOKEN_NO_KEYS)
		return pr_call_problem(call, 401, "unauthorized", pr_token_why(verdict));
	call->resp->retry_after = 1;
	return pr_call_problem(call, 503, "unavailable", pr_token_why(verdict));
}

int pr_call_answer(struct pr_call *call, int status, char *json)
{
	free(call->resp->body);
	call->resp->status = status;
	call->resp->content_type = "application/json";
	call->resp->body = json;
	call->resp->body_len = strlen(json);
	return 1;
}

/* ---- SQLSTATE -> status ---- */

struct rule {
	const char *code; /* the SQLSTATE's beginning */
	int status;
	const char *slug, *detail;
};

static const struct rule rules[] = {
	{ "23505", 409, "conflict", "there is such a one already" },
	{ "23503", 409, "conflict", "it belongs to something that is not there" },
	{ "23P01", 409, "conflict", "it overlaps with another one" },
	{ "23", 422, "invalid-value", "a value is not acceptable" },
	{ "22", 422, "invalid-value", "a value is not acceptable" },
	{ "40", 503, "busy", "too many change the same at the same time" },
	{ "55P03", 503, "busy", "what this needs is in use" },
	{ "57014", 503, "busy", "it took too long" },
};

static void unavailable(struct pr_call *call, const char *detail)
{
	call->resp->retry_after = 1;
	(void)pr_call_problem(call, 503, "unavailable", detail);
}

/* service.refuse() and service.await() of our functions: status in the code, slug and seconds in the hint. */
static void refused(struct pr_call *call, const struct pr_err *err)
{
	char slug[80];
	int status = atoi(err->code + 2), seconds = 0;

	(void)snprintf(slug, sizeof(slug), "%.*s", (int)strcspn(err->hint, " "), err->hint);
	(void)sscanf(err->hint + strlen(slug), " %d", &seconds);
	call->resp->retry_after = seconds;
	(void)pr_call_problem(call, status, *slug ? slug : "refused", err->text);
}

static const struct rule *rule_of(const char *code)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
		if (strncmp(code, rules[i].code, strlen(rules[i].code)) == 0)
			return &rules[i];
	return NULL;
}

static int is_refusal(const char *code)
{
	return (strncmp(code, "PT", 2) == 0 || strncmp(code, "PA", 2) == 0) && code[2] >= '4' &&
	       code[2] <= '5' && isdigit((unsigned char)code[3]) && isdigit((unsigned char)code[4]) &&
	       !code[5];
}

/* Once a second, whichever worker comes first: an error on every request would fill the disk. */
static int log_due(struct pr_service_run *run)
{
	int64_t now = pr_mono_us(), was = atomic_load(&run->logged_us);

	return now - was >= PR_SEC && atomic_compare_exchange_strong(&run->logged_us, &was, now);
}

void service_fail(struct pr_call *call, const struct pr_err *err)
{
	const struct rule *rule = rule_of(err->code);

	if (is_refusal(err->code)) {
		refused(call, err);
	} else if (rule) {
		call->resp->retry_after = rule->status == 503;
		(void)pr_call_problem(call, rule->status, rule->slug, rule->detail);
	} else if (err->kind == PR_RETRY) {
		unavailable(call,
			strcmp(call->endpoint->method, "GET") == 0
				? "the database does not answer"
				: "the database does not answer; whether this was done is not known: ask "
				  "again with the same Idempotency-Key");
	} else {
		if (log_due(call->run))
			pr_log_err(PR_ERROR, call->endpoint->path, err);
		(void)pr_call_problem(call, 500, "internal", "this is our fault; it was logged");
	}
}
