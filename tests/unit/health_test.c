/* tests/unit/health_test.c -- lib/health: trouble is told when it begins, changes and ends, the JSON is
 * well-formed whatever the texts hold, and what is not known is null and not a number. */
#include "lib/health.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cjson/cJSON.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SERVER, KEEPER, COUNT };

static const char *const names[COUNT] = { "server", "keeper" };

static struct pr_err fail_with(const char *text, const char *hint)
{
	struct pr_err err;

	(void)pr_fail(&err, PR_RETRY, "%s", text);
	(void)pr_hint(&err, "%s", hint);
	return err;
}

/* Repeated trouble is told once, a new reason again, and an end that never began not at all. */
static void test_changes(void **state)
{
	struct pr_err away = fail_with("away", ""), full = fail_with("full", "");
	struct pr_board b;

	(void)state;
	pr_board_init(&b, names, COUNT, KEEPER);
	assert_int_equal(pr_board_set(&b, SERVER, NULL), PR_UNCHANGED);
	assert_int_equal(pr_board_set(&b, SERVER, &away), PR_BEGAN);
	assert_int_equal(pr_board_set(&b, SERVER, &away), PR_UNCHANGED);
	assert_int_equal(pr_board_set(&b, SERVER, &full), PR_CHANGED);
	assert_int_equal(pr_board_set(&b, KEEPER, NULL), PR_UNCHANGED);
	assert_true(pr_board_has(&b, SERVER) && !pr_board_has(&b, KEEPER));
	assert_int_equal(pr_board_set(&b, SERVER, NULL), PR_ENDED);
	assert_false(pr_board_has(&b, SERVER));
	pr_board_release(&b);
}

static void test_verdict(void **state)
{
	struct pr_err err = fail_with("the server is away", "start it");
	struct pr_verdict v;
	struct pr_board b;

	(void)state;
	pr_board_init(&b, names, COUNT, KEEPER);
	assert_false(pr_board_say(&b, SERVER, "error", &v));
	(void)pr_board_set(&b, SERVER, &err);
	assert_true(pr_board_say(&b, SERVER, "error", &v));
	assert_string_equal(v.state, "error");
	assert_string_equal(v.sentence, "the server is away");
	assert_string_equal(v.hint, "start it");
	pr_board_release(&b);
}

static const char *text_of(const cJSON *o, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItem(o, name));
}

static void test_json(void **state)
{
	struct pr_err err = fail_with("bad \"name\" <b>\n\xff", "");
	struct pr_verdict v;
	struct pr_buf buf = { 0 };
	struct pr_board b;
	cJSON *o, *p;

	(void)state;
	pr_board_init(&b, names, COUNT, KEEPER);
	(void)pr_board_set(&b, KEEPER, &err);
	(void)pr_say(&v, "warn", "s", "h");
	pr_buf_puts(&buf, "{");
	pr_put_bool(&buf, "ready", 0);
	pr_put_checks(&buf, &b, &v);
	pr_put_int(&buf, "own", INT64_C(9007199254740993));
	pr_buf_puts(&buf, "}");
	pr_put_seconds(&buf, "known", 1.5);
	pr_put_seconds(&buf, "unknown", NAN);
	pr_put_problems(&buf, &b);
	pr_buf_puts(&buf, "}");
	o = cJSON_Parse(buf.s);
	assert_non_null(o);
	assert_true(cJSON_IsFalse(cJSON_GetObjectItem(o, "ready")));
	assert_string_equal(text_of(cJSON_GetObjectItem(o, "checks"), "server"), "ok");
	assert_string_equal(
		text_of(cJSON_GetObjectItem(o, "checks"), "keeper"), "bad \"name\" <b>\n\xef\xbf\xbd");
	assert_non_null(strstr(buf.s, "\"own\":9007199254740993"));
	assert_true(cJSON_IsNull(cJSON_GetObjectItem(o, "unknown")));
	assert_non_null(strstr(buf.s, "\"known\":1.500"));
	p = cJSON_GetArrayItem(cJSON_GetObjectItem(o, "problems"), 0);
	assert_string_equal(text_of(p, "code"), "keeper");
	assert_string_equal(text_of(p, "severity"), "warn");
	assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(o, "problems")), 1);
	cJSON_Delete(o);
	pr_buf_free(&buf);
	pr_board_release(&b);
}

/* Exactly one state is 1 at any time; each cause of trouble has its age, and 0 once it has ended. */
static void test_vitals(void **state)
{
	static const char *const states[] = { "ok", "error", NULL };
	struct pr_metrics *m = pr_metrics_new();
	struct pr_err away = fail_with("away", "");
	struct pr_vitals v;
	struct pr_board b;
	char *text;
	size_t n;

	(void)state;
	pr_board_init(&b, names, COUNT, KEEPER);
	(void)pr_board_set(&b, SERVER, &away);
	b.since_us[SERVER] -= 90 * PR_SEC;
	pr_vitals_init(&v, m, states, "1 for the state.");
	pr_vitals_set(&v, "ok", &b);
	pr_vitals_set(&v, "error", &b);
	text = pr_metrics_render(m, "group=\"g\"", 0, &n);
	assert_non_null(strstr(text, "postrider_state{group=\"g\",state=\"ok\"} 0\n"));
	assert_non_null(strstr(text, "postrider_state{group=\"g\",state=\"error\"} 1\n"));
	assert_non_null(strstr(text, "postrider_up{group=\"g\"} 1\n"));
	assert_non_null(strstr(text, "postrider_build_info{group=\"g\",version=\"" PR_VERSION "\""));
	assert_non_null(strstr(text, "postrider_trouble_seconds{group=\"g\",what=\"server\"} 90"));
	assert_non_null(strstr(text, "postrider_trouble_seconds{group=\"g\",what=\"keeper\"} 0\n"));
	free(text);
	(void)pr_board_set(&b, SERVER, NULL);
	pr_vitals_set(&v, "ok", &b);
	text = pr_metrics_render(m, "group=\"g\"", 0, &n);
	assert_non_null(strstr(text, "postrider_trouble_seconds{group=\"g\",what=\"server\"} 0\n"));
	free(text);
	pr_board_release(&b);
	pr_metrics_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_verdict),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_vitals),
	};

	(void)alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
