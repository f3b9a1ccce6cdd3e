/* tests/unit/history_test.c -- rings of samples: in order, one hour at most, gaps where nobody looked, and
 * the word for where a number goes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/clock.h"
#include "lib/history.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>

static const char *const names[] = { "lag", "rate" };

static cJSON *series(struct pr_history *h, const char *name, cJSON **whole)
{
	struct pr_buf b = { 0 };

	pr_history_put(h, &b);
	*whole = cJSON_Parse(b.s);
	pr_buf_free(&b);
	assert_non_null(*whole);
	return cJSON_GetObjectItem(cJSON_GetObjectItem(*whole, "series"), name);
}

static double nth(const cJSON *list, int i)
{
	return cJSON_GetNumberValue(cJSON_GetArrayItem(list, i));
}

static void test_an_hour(void **state)
{
	struct pr_history *h = pr_history_new(names, 2, 10 * PR_SEC);
	cJSON *list, *whole;

	(void)state;
	assert_int_equal(pr_history_due(h, 5), 0);
	assert_int_equal(cJSON_GetArraySize(series(h, "lag", &whole)), 0);
	cJSON_Delete(whole);
	for (int i = 0; i < 400; i++)
		pr_history_add(h, i * 10 * PR_SEC, (const double[]){ i, i % 2 ? NAN : 0.5 });
	assert_int_equal(pr_history_due(h, 3991 * PR_SEC), 9000);
	assert_int_equal(pr_history_due(h, 4100 * PR_SEC), 0);
	list = series(h, "lag", &whole);
	assert_int_equal(cJSON_GetArraySize(list), PR_HISTORY_SAMPLES);
	assert_true(nth(list, 0) == 40 && nth(list, 359) == 399);
	list = cJSON_GetObjectItem(cJSON_GetObjectItem(whole, "series"), "rate");
	assert_true(cJSON_IsNull(cJSON_GetArrayItem(list, 359)) && nth(list, 358) == 0.5);
	assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(whole, "every_seconds")) == 10);
	cJSON_Delete(whole);
	pr_history_free(h);
}

/* A frozen process has taken no samples: that is a gap, as long as it was. */
static void test_gaps(void **state)
{
	struct pr_history *h = pr_history_new(names, 2, 10 * PR_SEC);
	cJSON *list, *whole;

	(void)state;
	pr_history_add(h, 0, (const double[]){ 1, 1 });
	pr_history_add(h, 11 * PR_SEC, (const double[]){ 2, 2 }); /* late is not missed */
	pr_history_add(h, 51 * PR_SEC, (const double[]){ 3, 3 });
	list = series(h, "lag", &whole);
	assert_int_equal(cJSON_GetArraySize(list), 6);
	assert_true(nth(list, 1) == 2 && nth(list, 5) == 3);
	for (int i = 2; i < 5; i++)
		assert_true(cJSON_IsNull(cJSON_GetArrayItem(list, i)));
	cJSON_Delete(whole);
	pr_history_add(h, INT64_MAX / 2, (const double[]){ 4, 4 });
	assert_int_equal(cJSON_GetArraySize(series(h, "lag", &whole)), PR_HISTORY_SAMPLES);
	cJSON_Delete(whole);
	pr_history_free(h);
}

static void test_trend(void **state)
{
	struct pr_history *h = pr_history_new(names, 2, 10 * PR_SEC);

	(void)state;
	assert_string_equal(pr_trend(1, 3, 0.5), "growing");
	assert_string_equal(pr_trend(3, 1, 0.5), "falling");
	assert_string_equal(pr_trend(0, 0.4, 0.5), "steady");
	assert_string_equal(pr_trend(3600, 3660, 0.5), "growing"); /* stuck for an hour */
	assert_string_equal(pr_trend(NAN, 1, 0.5), "");
	assert_string_equal(pr_history_trend(h, 0, 0.5), "");
	pr_history_add(h, 0, (const double[]){ 100, 0 });
	assert_string_equal(pr_history_trend(h, 0, 0.5), "");
	for (int i = 1; i < 8; i++)
		pr_history_add(h, i * 10 * PR_SEC, (const double[]){ i, 0 });
	assert_string_equal(pr_history_trend(h, 0, 0.5), "growing"); /* a minute ago it was 1 */
	assert_string_equal(pr_history_trend(h, 1, 0.5), "steady");
	pr_history_free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_an_hour),
		cmocka_unit_test(test_gaps),
		cmocka_unit_test(test_trend),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
