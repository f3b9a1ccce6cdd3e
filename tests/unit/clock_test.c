/* tests/unit/clock_test.c -- lib/clock.c: deadlines, stamps and backoff. */
#include "lib/clock.h"

#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void monotonic(void **state)
{
	int64_t last = pr_mono_us();

	(void)state;
	for (int i = 0; i < 100000; i++) {
		int64_t now = pr_mono_us();

		assert_true(now >= last);
		last = now;
	}
	assert_true(pr_wall_us() / PR_SEC >= (int64_t)time(NULL) - 1);
	assert_true(pr_wall_us() / PR_SEC <= (int64_t)time(NULL) + 1);
}

static void until(void **state)
{
	int64_t now = pr_mono_us(), deadline;

	(void)state;
	assert_int_equal(pr_until_ms(PR_FOREVER), -1);
	assert_int_equal(pr_until_ms(now), 0);
	assert_int_equal(pr_until_ms(now - 10 * PR_SEC), 0);
	assert_int_equal(pr_until_ms(INT64_MIN / 2), 0);
	assert_int_equal(pr_until_ms(now + 400LL * 24 * 3600 * PR_SEC), INT_MAX);
	assert_in_range(pr_until_ms(pr_mono_us() + 10 * PR_SEC), 5000, 10000);
	/* Rounded up: a wait of that long never ends before its deadline, so no loop spins. */
	deadline = pr_mono_us() + 2500;
	while (pr_until_ms(deadline) > 0) {
		assert_int_equal(poll(NULL, 0, pr_until_ms(deadline)), 0);
		assert_true(pr_mono_us() >= deadline);
	}
}

static void rfc3339(void **state)
{
	static const struct {
		int64_t us;
		const char *text;
	} t[] = { { 0, "1970-01-01T00:00:00.000000Z" }, { -1, "1969-12-31T23:59:59.999999Z" },
		{ 1767312245000006, "2026-01-02T00:04:05.000006Z" },
		{ 1709164800000000, "2024-02-29T00:00:00.000000Z" },
		{ 253402300799999999, "9999-12-31T23:59:59.999999Z" },
		{ -61094131199000000, "0034-01-02T00:00:01.000000Z" } };
	char buf[28];

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		assert_ptr_equal(pr_rfc3339(t[i].us, buf), buf);
		assert_string_equal(buf, t[i].text);
	}
}

static void backoff(void **state)
{
	int64_t least = INT64_MAX, most = 0;

	(void)state;
	for (unsigned attempt = 0; attempt < 12; attempt++) {
		int64_t step = 100 * PR_MS << attempt;

		if (step > 5 * PR_SEC)
			step = 5 * PR_SEC;
		for (int i = 0; i < 200; i++) {
			int64_t us = pr_backoff_us(attempt, 100 * PR_MS, 5 * PR_SEC);

			assert_true(us >= step / 2);
			assert_true(us <= step);
			if (attempt == 11 && us < least)
				least = us;
			if (attempt == 11 && us > most)
				most = us;
		}
	}
	/* It does jitter: 200 delays within a tenth of their range would be a miracle. */
	assert_true(most - least > PR_SEC / 4);
	assert_in_range(pr_backoff_us(UINT_MAX, 1, 5 * PR_SEC), 5 * PR_SEC / 2, 5 * PR_SEC);
	assert_in_range(pr_backoff_us(0, 10 * PR_SEC, PR_SEC), PR_SEC / 2, PR_SEC);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(monotonic),
		cmocka_unit_test(until),
		cmocka_unit_test(rfc3339),
		cmocka_unit_test(backoff),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
