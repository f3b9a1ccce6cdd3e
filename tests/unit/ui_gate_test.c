/* tests/unit/ui_gate_test.c -- cli/ui_gate: who is let in, for how long, and that a plan is good once. */
#include "cli/ui_gate.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#define LIFE (3600 * PR_SEC)
#define T0   (77 * PR_SEC)

static void test_in_and_out(void **state)
{
	struct ui_gate *g = ui_gate_new("secret", LIFE);
	char id[UI_ID], other[UI_ID];
	struct ui_pass pass, second;

	(void)state;
	assert_int_equal(ui_gate_pass(g, T0, "", &pass), -1);
	assert_int_equal(ui_gate_enter(g, T0, "secret", "Kim", id), UI_IN);
	assert_int_equal(ui_gate_enter(g, T0, "secret", "", other), UI_IN);
	assert_string_not_equal(id, other);
	assert_int_equal(ui_gate_pass(g, T0, id, &pass), 0);
	assert_string_equal(pass.who, "Kim (ui)");
	assert_int_equal(ui_gate_pass(g, T0, other, &second), 0);
	assert_string_equal(second.who, "ui");
	assert_string_not_equal(pass.form, second.form);
	assert_string_not_equal(pass.form, id);
	assert_int_equal(ui_gate_pass(g, T0 + LIFE - 1, id, &pass), 0);
	ui_gate_leave(g, other);
	assert_int_equal(ui_gate_pass(g, T0, other, &second), -1);
	assert_int_equal(ui_gate_pass(g, T0 + LIFE, id, &pass), -1);
	assert_int_equal(ui_gate_pass(g, T0, id, &pass), -1); /* it was forgotten */
	ui_gate_free(g);
}

static void test_tries_are_bounded(void **state)
{
	struct ui_gate *g = ui_gate_new("secret", LIFE);
	char id[UI_ID];

	(void)state;
	for (int i = 0; i < UI_TRIES; i++)
		assert_int_equal(ui_gate_enter(g, T0 + i, "Secret", "", id), UI_WRONG);
	assert_int_equal(ui_gate_enter(g, T0 + 59 * PR_SEC, "secret", "", id), UI_TOO_MANY);
	assert_int_equal(ui_gate_enter(g, T0 + 61 * PR_SEC, "secret", "", id), UI_IN);
	for (int i = 0; i < UI_DEEDS; i++)
		assert_true(ui_gate_may(g, T0));
	assert_false(ui_gate_may(g, T0 + 59 * PR_SEC));
	assert_true(ui_gate_may(g, T0 + 60 * PR_SEC));
	ui_gate_free(g);
}

static void test_stamps(void **state)
{
	struct ui_gate *g = ui_gate_new("secret", LIFE), *h = ui_gate_new("secret", LIFE);
	char stamp[UI_ID + 32];

	(void)state;
	ui_gate_stamp(g, T0, stamp);
	assert_true(ui_gate_stamp_ok(g, T0, stamp));
	assert_true(ui_gate_stamp_ok(g, T0 + 599 * PR_SEC, stamp));
	assert_false(ui_gate_stamp_ok(g, T0 + 601 * PR_SEC, stamp));
	assert_false(ui_gate_stamp_ok(g, T0 - 1, stamp));
	assert_false(ui_gate_stamp_ok(h, T0, stamp));
	stamp[0]++;
	assert_false(ui_gate_stamp_ok(g, T0 + LIFE, stamp));
	assert_false(ui_gate_stamp_ok(g, T0, ""));
	ui_gate_free(g);
	ui_gate_free(h);
}

static void test_a_plan_is_good_once(void **state)
{
	struct ui_gate *g = ui_gate_new("secret", LIFE);
	char id[UI_ID], other[UI_ID], plan[40][UI_ID];
	cJSON *what;

	(void)state;
	assert_int_equal(ui_gate_enter(g, T0, "secret", "", id), UI_IN);
	assert_int_equal(ui_gate_enter(g, T0, "secret", "", other), UI_IN);
	assert_int_equal(ui_gate_keep(g, T0, id, cJSON_CreateNumber(1), plan[0]), 0);
	assert_null(ui_gate_take(g, T0, other, plan[0]));
	what = ui_gate_take(g, T0, id, plan[0]);
	assert_non_null(what);
	cJSON_Delete(what);
	assert_null(ui_gate_take(g, T0, id, plan[0]));
	for (int i = 0; i < 40; i++)
		assert_int_equal(ui_gate_keep(g, T0, id, cJSON_CreateNumber(i), plan[i]), 0);
	assert_null(ui_gate_take(g, T0, id, plan[0])); /* the oldest are forgotten */
	what = ui_gate_take(g, T0, id, plan[39]);
	assert_true(cJSON_GetNumberValue(what) == 39);
	cJSON_Delete(what);
	assert_null(ui_gate_take(g, T0 + LIFE, id, plan[38])); /* with its pass */
	assert_int_equal(ui_gate_keep(g, T0, "nobody", cJSON_CreateNull(), plan[0]), -1);
	ui_gate_free(g);
}

/* Nobody can fill the memory by logging in: the oldest pass goes. */
static void test_passes_are_bounded(void **state)
{
	struct ui_gate *g = ui_gate_new("secret", LIFE);
	char first[UI_ID], id[UI_ID];
	struct ui_pass pass;

	(void)state;
	assert_int_equal(ui_gate_enter(g, T0, "secret", "", first), UI_IN);
	for (int i = 1; i <= 16; i++)
		assert_int_equal(ui_gate_enter(g, T0 + i, "secret", "", id), UI_IN);
	assert_int_equal(ui_gate_pass(g, T0 + 20, first, &pass), -1);
	assert_int_equal(ui_gate_pass(g, T0 + 20, id, &pass), 0);
	ui_gate_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_and_out),
		cmocka_unit_test(test_tries_are_bounded),
		cmocka_unit_test(test_stamps),
		cmocka_unit_test(test_a_plan_is_good_once),
		cmocka_unit_test(test_passes_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
