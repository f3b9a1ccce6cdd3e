/* tests/unit/service_route_test.c -- tables of endpoints that a service must not start with. */
#include "lib/service_inner.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>

/* What is wrong with the table; "" nothing. */
static const char *wrong(const struct pr_endpoint *table)
{
	static struct pr_err err;
	struct pr_service_conf conf = { .batch = 64 };
	struct pr_service service = { .name = "test", .conf = &conf, .endpoints = table };
	struct pr_service_run run = { .service = &service, .metrics = pr_metrics_new() };
	struct pr_route *routes = pr_calloc(service_routes_most(&service) + 1, sizeof(*routes));
	int rc;

	service_compile(&run);
	rc = service_routes(&run, routes, service_routes_most(&service), &err);
	if (rc < 0)
		assert_int_equal(err.kind, PR_STOP);
	service_uncompile(&run);
	pr_metrics_free(run.metrics);
	free(routes);
	return rc < 0 ? err.text : "";
}

static const struct pr_endpoint ask = { "POST", "/asks", .sql = "ask()", .many = "ask_many()" },
				read = { "GET", "/asks/{id}", .sql = "read()" }, end = { 0 };

static void test_good(void **state)
{
	const struct pr_endpoint table[] = { ask, read,
		{ "GET", "/asks/{id}/parts", .sql = "parts()", .flags = PR_HEAVY },
		{ "POST", "/asks/{id}", .sql = "more()" }, end };

	(void)state;
	assert_string_equal(wrong(table), "");
}

static void test_many_and_heavy(void **state)
{
	struct pr_endpoint table[] = { ask, end };

	(void)state;
	table[0].flags = PR_HEAVY;
	assert_string_equal(wrong(table), "POST /asks: many, and PR_HEAVY");
}

static void test_one_route(void **state)
{
	const struct pr_endpoint plain[] = { read, { "GET", "/asks/{id}/parts", .flags = PR_PLAIN }, end },
				 twice[] = { ask, { "POST", "/asks", .sql = "ask()" }, end },
				 later[] = { { "POST", "/asks", .sql = "ask()" }, ask, end };

	(void)state;
	assert_string_equal(wrong(plain), "GET /asks/{id}/parts: PR_PLAIN, and others below /asks/* not");
	assert_string_equal(wrong(twice), "POST /asks: many, and others below /asks");
	assert_string_equal(wrong(later), "POST /asks: many, and others below /asks");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_many_and_heavy),
		cmocka_unit_test(test_one_route),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
