/* tests/unit/form_test.c -- lib/form: what a browser sends is taken as it was meant or not at all. */
#include "lib/form.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static void test_fields(void **state)
{
	static const char body[] = "a=1&b=x+y%26z&c=&%C3%A9=%e2%82%ac&t=l1%0D%0Al2";
	struct pr_form f;
	size_t n;

	(void)state;
	assert_int_equal(pr_form_parse(&f, body, strlen(body)), 0);
	assert_string_equal(pr_form_get(&f, "a", &n), "1");
	assert_int_equal(n, 1);
	assert_string_equal(pr_form_get(&f, "b", NULL), "x y&z");
	assert_string_equal(pr_form_get(&f, "c", &n), "");
	assert_int_equal(n, 0);
	assert_string_equal(pr_form_get(&f, "\xc3\xa9", NULL), "\xe2\x82\xac");
	assert_string_equal(pr_form_get(&f, "t", NULL), "l1\r\nl2");
	assert_null(pr_form_get(&f, "d", NULL));
	pr_form_free(&f);
	assert_int_equal(pr_form_parse(&f, "", 0), 0);
	assert_null(pr_form_get(&f, "", NULL));
	pr_form_free(&f);
}

static void test_refused(void **state)
{
	static const char *const bad[] = { "a", "=1", "a=%", "a=%4", "a=%4g", "a=%00", "a=1&a=2",
		"a=%61&%61=1", "a=%ff", "a=%ed%a0%80", "a=1&&b=2", "&a=1", "%=1" };
	char many[PR_FORM_FIELDS * 5 + 8] = "";
	struct pr_form f;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_int_equal(pr_form_parse(&f, bad[i], strlen(bad[i])), -1);
		assert_null(pr_form_get(&f, "a", NULL));
	}
	for (int i = 0; i <= PR_FORM_FIELDS; i++) {
		char field[8] = { i ? '&' : 'z', (char)('a' + i), '=', '1', '\0' };

		strcat(many, field);
	}
	assert_int_equal(pr_form_parse(&f, many, strlen(many)), -1);
	assert_int_equal(pr_form_parse(&f, "a=1\0b", 5), -1);
}

static void test_cookie(void **state)
{
	char buf[5];

	(void)state;
	assert_int_equal(pr_form_cookie("x=1; id=abcd; y=2", "id", buf, sizeof(buf)), 0);
	assert_string_equal(buf, "abcd");
	assert_int_equal(pr_form_cookie("id=", "id", buf, sizeof(buf)), 0);
	assert_string_equal(buf, "");
	assert_int_equal(pr_form_cookie(NULL, "id", buf, sizeof(buf)), -1);
	assert_int_equal(pr_form_cookie("", "id", buf, sizeof(buf)), -1);
	assert_int_equal(pr_form_cookie("id", "id", buf, sizeof(buf)), -1);
	assert_int_equal(pr_form_cookie("xid=1;idx=2", "id", buf, sizeof(buf)), -1);
	assert_int_equal(pr_form_cookie("id=abcde", "id", buf, sizeof(buf)), -1);
	assert_int_equal(pr_form_cookie("id=a; id=b", "id", buf, sizeof(buf)), -1);
}

static void test_escape(void **state)
{
	char *s = pr_form_escape("a b/&=+\xc3\xa9\"<~");

	(void)state;
	assert_string_equal(s, "a%20b%2F%26%3D%2B%C3%A9%22%3C~");
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_cookie),
		cmocka_unit_test(test_escape),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
