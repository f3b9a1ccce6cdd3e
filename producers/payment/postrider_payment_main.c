/* producers/payment/postrider_payment_main.c -- postrider-payment: balances, payments in three ways,
 * receipts. What is stored and published is decided in the .sql files; here are the options, the queue's
 * tokens and the threads that ask the gateway. */
#include "producers/payment/gateway.h"

#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

#define QUEUE_ISSUER   "postrider-queue"
#define QUEUE_AUDIENCE "postrider-queue"
#define FORGET_US      (10 * PR_SEC)
#define CHARGE_MAX     1000000000000

struct payment_conf {
	struct pr_service_conf service;
	char *queue_jwks;
	char *gateway_url, *tax_url;
	int64_t timeout_us, give_up_us, late_us, backoff_us, backoff_max_us, workers;
	int64_t keep_work_us, keep_sagas_us;
};

static struct payment_conf conf;
static struct pr_tokens *queue_tokens;
static struct gateway *gateway;
static struct pr_family *waiting, *oldest;
static int64_t forgot_us;

#define AT(field) offsetof(struct payment_conf, field)
#define DAY       (86400 * PR_SEC)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct payment_conf, service, "payment", "8085"),
	PR_SERVICE_JWKS(struct payment_conf, service),
	{ "queue.jwks", PR_OPT_STR, AT(queue_jwks), "http://127.0.0.1:8083/.well-known/jwks.json",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Where the queue service publishes the keys of its tokens." },
	{ "gateway.url", PR_OPT_STR, AT(gateway_url), "none", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of the payment gateway that approves what points pay for, as "
		       "\"http://host:port/path\"; "
		       "\"none\": there is none. The same in all instances." },
	{ "gateway.timeout", PR_OPT_DURATION, AT(timeout_us), "3s", .min = 10 * PR_MS, .max = 60 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of one request to the gateway or the tax server." },
	{ "gateway.give_up", PR_OPT_DURATION, AT(give_up_us), "20s", .min = 100 * PR_MS, .max = DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "After so long without an answer a payment has failed; an approval that comes after "
		       "that "
		       "is cancelled." },
	{ "gateway.late", PR_OPT_DURATION, AT(late_us), "2m", .min = 0, .max = DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "How long an approval that was given up may still arrive at the gateway: for so long "
		       "it is "
		       "asked to cancel one that it does not know." },
	{ "gateway.backoff", PR_OPT_DURATION, AT(backoff_us), "500ms", .min = PR_MS, .max = 3600 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD, .doc = "Before the second request; it doubles, with jitter." },
	{ "gateway.backoff_max", PR_OPT_DURATION, AT(backoff_max_us), "1m", .min = PR_MS, .max = DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "Longest such delay." },
	{ "gateway.workers", PR_OPT_INT, AT(workers), "2", .min = 1, .max = 64, .flags = PR_OPT_NO_RELOAD,
		.doc = "Requests under way at a time, to the gateway and to the tax server each; each with "
		       "its "
		       "own session in Postgres." },
	{ "gateway.keep", PR_OPT_DURATION, AT(keep_work_us), "7d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long a request that is over is kept (the approval of a payment that stands: "
		       "always), "
		       "and the copy of a queue token of which nothing was heard." },
	{ "tax.url", PR_OPT_STR, AT(tax_url), "none", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of the tax server that issues cash receipts; \"none\": they are numbered here. The "
		       "same in all "
		       "instances." },
	{ "sagas.keep", PR_OPT_DURATION, AT(keep_sagas_us), "7d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "How long GET /sagas/{id} knows a saga that has ended." },
	{ 0 },
};

/* ---- balances ---- */

static const struct pr_field charge_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_PATH },
	{ "amount", PR_INT, .min = 1, .max = CHARGE_MAX },
	{ 0 },
};

static const struct pr_field balance_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_PATH },
	{ 0 },
};

static const struct pr_field history_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_PATH },
	{ "after", PR_INT, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "limit", PR_INT, .flags = PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 200 },
	{ 0 },
};

/* ---- payments ---- */

enum { PAY_MODE = 2, PAY_TOKEN_ID = 4, PAY_CONCERT };

static const struct pr_field pay_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "reservation_ids", PR_UUIDS, .min = 1, .max = 20 },
	[PAY_MODE] = { "mode", PR_TEXT, .flags = PR_IN_QUERY | PR_OPTIONAL,
		.choices = "saga|choreography|hybrid" },
	{ "token", PR_TEXT, PR_SECRET | PR_LONG, .min = 1, .max = PR_TOKEN_MAX },
	[PAY_TOKEN_ID] = { "token_id", .type = PR_FROM_HOOK },
	[PAY_CONCERT] = { "concert_id", .type = PR_FROM_HOOK },
	{ 0 },
};

static int is_number(const char *s)
{
	return s && *s && strspn(s, "0123456789") == strlen(s) && strlen(s) <= 18;
}

/* The queue's token says whose turn it is, and for which concert. */
static int pay_before(struct pr_call *call)
{
	const char *token = pr_call_text(call, "token");
	struct pr_claims claims;
	enum pr_token_verdict verdict;
	char *id, *concert;
	int rc = 0;

	verdict = pr_call_verify(call, queue_tokens, token, &claims);
	if (verdict != PR_TOKEN_OK)
		return call->resp->alone ? 1 : pr_call_unauthorized(call, verdict);
	if (strcmp(claims.sub, call->caller.sub) != 0)
		return pr_call_problem(call, 403, "not-yours", "this is another user's queue token");
	id = pr_json_string(claims.json, "jti");
	concert = pr_json_string(claims.json, "concert_id");
	if (!id || !is_number(concert)) {
		rc = pr_call_unauthorized(call, PR_TOKEN_MALFORMED);
	} else {
		pr_call_set(call, PAY_TOKEN_ID, id);
		pr_call_set(call, PAY_CONCERT, concert);
	}
	free(id);
	free(concert);
	return rc;
}

/* Of a hybrid payment the answer is no promise but the payment: 200; or 409, of one that has FAILED. */
static void pay_after(struct pr_call *call)
{
	char *json = call->answer, *state;

	if (!call->param[PAY_MODE] || strcmp(call->param[PAY_MODE], "hybrid") != 0)
		return;
	call->answer = NULL;
	state = pr_json_string(json, "state");
	if (state && strcmp(state, "FAILED") == 0) {
		(void)pr_call_problem(call, 409, "not-enough-points", "there are not enough points");
		free(json);
	} else {
		(void)pr_call_answer(call, 200, json);
	}
	free(state);
}

static const struct pr_field one_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "id", PR_UUID, .flags = PR_IN_PATH },
	{ 0 },
};

static const struct pr_field list_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "reservation", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "after", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "limit", PR_INT, .flags = PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 200 },
	{ 0 },
};

static const struct pr_endpoint endpoints[] = {
	{ "POST", "/balances/{user}/charge", charge_fields, "payment.charge($1::uuid, $2::uuid, $3::bigint)",
		.auth = PR_USER },
	{ "GET", "/balances/{user}", balance_fields, "payment.balance_of($1::uuid, $2::uuid)",
		.auth = PR_USER },
	{ "GET", "/balances/{user}/history", history_fields,
		"payment.history($1::uuid, $2::uuid, $3::bigint, $4::integer)", .auth = PR_USER },
	{ "POST", "/payments", pay_fields, "payment.pay($1::uuid, $2::uuid[], $3, $5::uuid, $6::bigint)",
		.auth = PR_USER, .status = 202, .location = "/payments/{payment_id}", .before = pay_before,
		.after = pay_after },
	{ "GET", "/payments", list_fields,
		"payment.list($1::uuid, $2::uuid, $3::uuid, $4::uuid, $5::integer)", .auth = PR_USER },
	{ "GET", "/payments/{id}", one_fields, "payment.show($1::uuid, $2::uuid)", .auth = PR_USER },
	{ "GET", "/payments/{id}/receipt", one_fields, "payment.receipt($1::uuid, $2::uuid)",
		.auth = PR_USER },
	{ "POST", "/payments/{id}/cancel", one_fields, "payment.ask_cancel($1::uuid, $2::uuid)",
		.auth = PR_USER, .status = 202, .location = "/sagas/{saga_id}" },
	{ "GET", "/sagas/{id}", one_fields, "payment.saga($1::uuid, $2::uuid)", .auth = PR_USER },
	{ 0 },
};

/* ---- the program ---- */

static const char *url_or_none(const char *url)
{
	return strcmp(url, "none") == 0 ? NULL : url;
}

static int begin(struct pr_service_run *run, struct pr_err *err)
{
	struct pr_tokens_opts tokens = {
		.url = conf.queue_jwks, .issuer = QUEUE_ISSUER, .audience = QUEUE_AUDIENCE
	};
	struct gateway_opts opts = { .conninfo = conf.service.conninfo,
		.appname = "postrider-payment gateway",
		.db_timeout_us = conf.service.timeout_us,
		.url = url_or_none(conf.gateway_url),
		.tax_url = url_or_none(conf.tax_url),
		.timeout_us = conf.timeout_us,
		.backoff_us = conf.backoff_us,
		.backoff_max_us = conf.backoff_max_us,
		.workers = conf.workers };
	struct pr_metrics *metrics = pr_service_metrics(run);

	waiting = pr_family_new(metrics, PR_GAUGE, "postrider_payment_gateway_waiting", "kind", 8,
		"Requests to the gateway and the tax server that are not answered yet.");
	oldest = pr_family_new(metrics, PR_GAUGE, "postrider_payment_gateway_oldest_seconds", "kind", 8,
		"Age of the oldest of them.");
	if (pr_tokens_new(&tokens, &queue_tokens, err) < 0)
		return -1;
	return gateway_new(&opts, metrics, &gateway, err);
}

static int set_up(struct pr_pg *pg, struct pr_err *err)
{
	char give_up[24], late[24];
	const char *const params[] = { url_or_none(conf.gateway_url) ? "t" : "f",
		url_or_none(conf.tax_url) ? "t" : "f", give_up, late };

	(void)snprintf(give_up, sizeof(give_up), "%" PRId64, conf.give_up_us);
	(void)snprintf(late, sizeof(late), "%" PRId64, conf.late_us);
	return pr_pg_run(pg, sql_payment_set_up, 4, params, err);
}

static int measure(struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, "SELECT * FROM payment.work_waiting()", 0, NULL, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		const char *const kind[] = { PQgetvalue(res, i, 0) };

		pr_gauge_set(pr_series_get(waiting, kind), strtod(PQgetvalue(res, i, 1), NULL));
		pr_gauge_set(pr_series_get(oldest, kind), strtod(PQgetvalue(res, i, 2), NULL));
	}
	PQclear(res);
	return 0;
}

static int forget(struct pr_pg *pg, struct pr_err *err)
{
	char keep[24];
	const char *const params[] = { keep };

	if (forgot_us && pr_mono_us() - forgot_us < FORGET_US)
		return 0;
	(void)snprintf(keep, sizeof(keep), "%" PRId64, conf.keep_sagas_us);
	if (pr_pg_run(pg, "SELECT saga.forget_copies($1::bigint * interval '1 microsecond')", 1, params,
		    err) < 0)
		return -1;
	(void)snprintf(keep, sizeof(keep), "%" PRId64, conf.keep_work_us);
	if (pr_pg_run(pg, "SELECT payment.forget($1::bigint * interval '1 microsecond')", 1, params, err) < 0)
		return -1;
	forgot_us = pr_mono_us();
	return 0;
}

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	(void)run;
	if (set_up(pg, err) < 0 || measure(pg, err) < 0 || forget(pg, err) < 0)
		return -1;
	return gateway_open(gateway, err);
}

static void end(struct pr_service_run *run)
{
	(void)run;
	gateway_close(gateway);
	pr_tokens_free(queue_tokens);
}

static int check_url(const struct pr_conf *loaded, const char *option, const char *url, struct pr_err *err)
{
	if (!url_or_none(url) || strncmp(url, "http://", 7) == 0 || strncmp(url, "https://", 8) == 0)
		return 0;
	return pr_conf_fail(loaded, option, err, "neither \"none\" nor an http:// or https:// url");
}

static int validate(const void *target, const struct pr_conf *loaded, struct pr_err *err)
{
	const struct payment_conf *c = target;

	if (check_url(loaded, "gateway.url", c->gateway_url, err) < 0 ||
		check_url(loaded, "tax.url", c->tax_url, err) < 0)
		return -1;
	if (c->backoff_max_us < c->backoff_us)
		return pr_conf_fail(loaded, "gateway.backoff_max", err, "shorter than gateway.backoff");
	return 0;
}

static const char *const schema[] = { sql_payment_schema, sql_payment_money, sql_payment_payment,
	sql_payment_work, sql_payment_requests, sql_payment_messages, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "payment",
		.program = "postrider-payment",
		.does = "balances and payments of the example",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_payment_openapi,
		.validate = validate,
		.begin = begin,
		.tick = tick,
		.end = end };

	return pr_service_main(&service, argc, argv);
}
