/* tests/unit/queue_known_test.c -- tokens found good before: how many a table remembers of those who poll,
 * and what it must not. */
#include "producers/queue/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct queue_conf conf = { .tokens = 8192 };

static int knows(int i, struct said *ret)
{
	char token[32];

	(void)snprintf(token, sizeof(token), "token %d", i);
	return known_get(token, ret);
}

static void tell(int i, int64_t expires)
{
	struct said said = { .number = i, .expires = expires };
	char token[32];

	(void)snprintf(token, sizeof(token), "token %d", i);
	known_put(token, &said, known_now());
}

static int64_t later(void)
{
	return pr_wall_us() / PR_SEC + 3600;
}

/* 100,000 of 131,072 places, each token at one place only: of two that met there each forgot the other at
 * every check, and 40 in 100 checks verified a signature anew, which was half of their CPU. */
static void test_three_quarters_full(void **state)
{
	const int n = 6250;
	struct said said;
	int again = 0;

	(void)state;
	known_init();
	for (int round = 0; round < 4; round++)
		for (int i = 0; i < n; i++)
			if (!knows(i, &said)) {
				again += round == 3;
				tell(i, later());
			} else {
				assert_int_equal(said.number, i);
			}
	assert_in_range(again, 0, n / 10);
	known_free();
}

static void test_other_keys_and_expiry(void **state)
{
	struct said said;

	(void)state;
	known_init();
	tell(1, later());
	tell(2, pr_wall_us() / PR_SEC - 1);
	assert_true(knows(1, &said));
	assert_false(knows(2, &said));
	assert_false(knows(3, &said));
	known_forget();
	assert_false(knows(1, &said));
	tell(1, later());
	assert_true(knows(1, &said));
	known_free();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_three_quarters_full),
		cmocka_unit_test(test_other_keys_and_expiry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
