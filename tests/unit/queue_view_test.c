/* tests/unit/queue_view_test.c -- the view of the waiting room: places counted exactly, against a plain
 * model, whatever order the news come in. */
#include "producers/queue/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define HOUR (3600 * PR_SEC)

struct queue_conf conf = { .stale_us = 3600 * PR_SEC };

static void set(struct view *v, int64_t number, char state, uint32_t version)
{
	view_set(v, 7, number, state, version, 2 * HOUR, 2 * HOUR);
}

static struct shown get(const struct view *v, int64_t number)
{
	struct shown s;

	view_get(v, 7, number, &s);
	return s;
}

static void test_older_news_change_nothing(void **state)
{
	struct view *v = view_new();

	(void)state;
	set(v, 5, 'A', 2);
	set(v, 5, 'W', 1);
	assert_int_equal(get(v, 5).state, 'A');
	set(v, 5, 'C', 3);
	set(v, 5, 'A', 2);
	assert_int_equal(get(v, 5).state, 'C');
	assert_int_equal(get(v, 5).version, 3);
	assert_int_equal(get(v, 6).ahead, 0);
	view_free(v);
}

/* Numbers come in no order, far apart, and before the first one that was heard of. */
static void test_places_against_a_model(void **state)
{
	enum { MOST = 20000 };
	static char model[MOST + 1];
	static uint32_t version[MOST + 1];
	struct view *v = view_new();

	(void)state;
	srand(1);
	for (int i = 0; i < 200000; i++) {
		int n = 1 + rand() % MOST;
		char to = "WACE"[rand() % 4];
		uint32_t is = 1 + (uint32_t)(rand() % 5);

		set(v, n, to, is);
		if (is > version[n]) {
			version[n] = is;
			model[n] = to;
		}
	}
	for (int n = 1, waiting = 0; n <= MOST; n++) {
		struct shown s = get(v, n);

		assert_int_equal(s.state, model[n]);
		if (model[n] == 'W' || !model[n])
			assert_int_equal(s.ahead, waiting);
		waiting += model[n] == 'W';
	}
	view_free(v);
}

/* One who was issued a moment ago waits behind all that are known, also far behind. */
static void test_a_number_not_heard_of(void **state)
{
	struct view *v = view_new();

	(void)state;
	assert_int_equal(get(v, 1).state, 0);
	for (int n = 1; n <= 10; n++)
		set(v, n, 'W', 1);
	assert_int_equal(get(v, 11).ahead, 10);
	assert_int_equal(get(v, 1000000).ahead, 10);
	view_free(v);
}

static void test_ranges(void **state)
{
	static const char *const bad[] = { "x", "0", "-3", "3-", "5-4", "1;2", "1-99999999", "1 " };
	struct view *v = view_new();

	(void)state;
	assert_int_equal(view_set_ranges(v, 7, "1-3,5,7-7", 'A', 2, HOUR), 0);
	for (int n = 1; n <= 8; n++)
		assert_int_equal(get(v, n).state, n == 4 || n == 6 || n == 8 ? 0 : 'A');
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(view_set_ranges(v, 8, bad[i], 'A', 2, HOUR), -1);
	view_free(v);
}

/* What nobody may ask for any more is let go, and is EXPIRED for who asks all the same; who waits is kept. */
static void test_trim(void **state)
{
	struct view *v = view_new();

	(void)state;
	for (int n = 1; n <= 5000; n++)
		view_set(v, 7, n, n < 3000 ? 'E' : 'W', 2, HOUR, HOUR);
	view_trim(v, HOUR / 2);
	assert_int_equal(get(v, 3001).ahead, 1);
	view_trim(v, 2 * HOUR);
	assert_int_equal(get(v, 1).state, 'E');
	assert_int_equal(get(v, 3000).state, 'W');
	assert_int_equal(get(v, 3001).ahead, 1);
	set(v, 1, 'W', 3); /* waits again: an undo */
	assert_int_equal(get(v, 3001).ahead, 2);
	view_free(v);
}

static void test_numbers_that_cannot_be(void **state)
{
	struct view *v = view_new();

	(void)state;
	set(v, 0, 'W', 1);
	set(v, -5, 'W', 1);
	set(v, 1, 'W', 1);
	set(v, INT64_MAX, 'W', 1);
	assert_int_equal(get(v, 2).ahead, 1);
	assert_int_equal(get(v, INT64_MAX).ahead, 1);
	view_free(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_older_news_change_nothing),
		cmocka_unit_test(test_places_against_a_model),
		cmocka_unit_test(test_a_number_not_heard_of),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_trim),
		cmocka_unit_test(test_numbers_that_cannot_be),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
