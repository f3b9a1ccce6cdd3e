/* producers/order/postrider_order_main.c -- postrider-order: orders, and their payment as a saga or as a
 * choreography. What is stored and published is decided in schema.sql. Refuses to know prices or balances: an
 * order says what was agreed on, the payment service what is there. */
#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <stdio.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

struct order_conf {
	struct pr_service_conf service;
	int64_t keep_us;
};

static struct order_conf conf;
static int64_t forgot_us;

#define AT(field) offsetof(struct order_conf, field)
#define DAY       (86400 * PR_SEC)
#define FORGET_US (60 * PR_SEC)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct order_conf, service, "order", "8086"),
	PR_SERVICE_JWKS(struct order_conf, service),
	{ "sagas.keep", PR_OPT_DURATION, AT(keep_us), "7d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long GET /sagas/{id} knows a payment that has ended, at least." },
	{ 0 },
};

/* An order's amount stays below 2^53: 100 * 1000 * 10^9. */
static const struct pr_field item[] = {
	{ "sku", PR_TEXT, .min = 1, .max = 64 },
	{ "quantity", PR_INT, .min = 1, .max = 1000 },
	{ "unit_price", PR_INT, .min = 0, .max = 1000000000 },
	{ 0 },
};

static const struct pr_field create[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "items", PR_ITEMS, .min = 1, .max = 100, .sub = item },
	{ 0 },
};

static const struct pr_field one[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "id", PR_UUID, .flags = PR_IN_PATH },
	{ 0 },
};

static const struct pr_field list[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "limit", PR_INT, .flags = PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 100 },
	{ "after", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ 0 },
};

static const struct pr_field pay[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "id", PR_UUID, .flags = PR_IN_PATH },
	{ "mode", PR_TEXT, .flags = PR_IN_QUERY | PR_OPTIONAL, .choices = "saga|choreography" },
	{ 0 },
};

static const struct pr_endpoint endpoints[] = {
	{ "POST", "/orders", create, "\"order\".create($1::uuid, $2::jsonb)", .auth = PR_USER, .status = 201,
		.location = "/orders/{order_id}" },
	{ "GET", "/orders", list, "\"order\".list($1::uuid, $2::uuid, coalesce($3::integer, 50), $4::uuid)",
		.auth = PR_USER },
	{ "GET", "/orders/{id}", one, "\"order\".show($1::uuid, $2::uuid)", .auth = PR_USER },
	{ "POST", "/orders/{id}/pay", pay, "\"order\".pay($1::uuid, $2::uuid, coalesce($3, 'saga'))",
		.auth = PR_USER, .status = 202, .location = "/sagas/{saga_id}" },
	{ "GET", "/sagas/{id}", one, "\"order\".show_saga($1::uuid, $2::uuid)", .auth = PR_USER },
	{ 0 },
};

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	char keep[24];
	const char *const params[] = { keep };

	(void)run;
	if (forgot_us && pr_mono_us() - forgot_us < FORGET_US)
		return 0;
	(void)snprintf(keep, sizeof(keep), "%lld", (long long)conf.keep_us);
	if (pr_pg_run(pg, sql_order_forget, 1, params, err) < 0)
		return -1;
	forgot_us = pr_mono_us();
	return 0;
}

static const char *const schema[] = { sql_order_schema, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "order",
		.program = "postrider-order",
		.does = "orders of the example, paid by a saga or a choreography",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_order_openapi,
		.tick = tick };

	return pr_service_main(&service, argc, argv);
}
