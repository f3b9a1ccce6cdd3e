/* tests/unit/err_test.c -- lib/err.c: filling, wrapping and cutting errors. */
#include "lib/err.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void fills(void **state)
{
	struct pr_err err;

	(void)state;
	memset(&err, 'x', sizeof(err));
	assert_int_equal(pr_fail(&err, PR_REJECT, "%s number %d\r\n\n", "row", 7), -1);
	assert_int_equal(err.kind, PR_REJECT);
	assert_int_equal(err.exit, PR_EX_FAILED);
	assert_string_equal(err.text, "row number 7");
	assert_string_equal(err.code, "");
	assert_string_equal(err.hint, "");
	assert_int_equal(pr_fail(&err, PR_RETRY, "later"), -1);
	assert_int_equal(err.exit, PR_EX_UNAVAILABLE);
	assert_int_equal(pr_fail(&err, PR_STOP, "%s", ""), -1);
	assert_string_equal(err.text, "");
	assert_int_equal(err.exit, PR_EX_FAILED);
}

static void takes_null(void **state)
{
	(void)state;
	assert_int_equal(pr_fail(NULL, PR_STOP, "nobody listens"), -1);
	assert_int_equal(pr_hint(NULL, "nobody listens"), -1);
	assert_int_equal(pr_wrap(NULL, "nobody listens"), -1);
}

static void hints_and_wraps(void **state)
{
	struct pr_err err;

	(void)state;
	(void)pr_fail(&err, PR_STOP, "no such file");
	err.exit = PR_EX_CONFIG;
	assert_int_equal(pr_hint(&err, "make %s\n", "it"), -1);
	assert_int_equal(pr_wrap(&err, "reading %s", "a.cfg"), -1);
	assert_string_equal(err.text, "reading a.cfg: no such file");
	assert_string_equal(err.hint, "make it");
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_int_equal(err.kind, PR_STOP);
}

/* An error may be made of parts of itself. */
static void own_parts(void **state)
{
	struct pr_err err;

	(void)state;
	(void)pr_fail(&err, PR_RETRY, "first");
	(void)pr_fail(&err, PR_REJECT, "%s again", err.text);
	assert_string_equal(err.text, "first again");
	(void)pr_wrap(&err, "%s", err.text);
	assert_string_equal(err.text, "first again: first again");
}

static void cuts_long_texts(void **state)
{
	static char longer[2000];
	struct pr_err err;

	(void)state;
	memset(longer, 'a', sizeof(longer) - 1);
	(void)pr_fail(&err, PR_RETRY, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	(void)pr_hint(&err, "%s", longer);
	assert_int_equal(strlen(err.hint), sizeof(err.hint) - 1);
	(void)pr_wrap(&err, "b%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	assert_int_equal(err.text[0], 'b');
	assert_non_null(strstr(err.text, ": a"));
	(void)pr_fail(&err, PR_RETRY, "tail");
	(void)pr_wrap(&err, "%s", longer);
	assert_string_equal(err.text + strlen(err.text) - 6, ": tail");
}

static void names_kinds(void **state)
{
	(void)state;
	assert_string_equal(pr_kind_str(PR_RETRY), "retry");
	assert_string_equal(pr_kind_str(PR_REJECT), "reject");
	assert_string_equal(pr_kind_str(PR_STOP), "stop");
	assert_string_equal(pr_kind_str((enum pr_kind)99), "?");
}

static void allocates(void **state)
{
	char *s = pr_asprintf("%s-%d", "x", 5), *d = pr_strdup(s), *p;
	static const char zeros[12];

	(void)state;
	assert_string_equal(s, "x-5");
	assert_string_equal(d, "x-5");
	free(s);
	d = pr_realloc(d, 100);
	assert_string_equal(d, "x-5");
	free(d);
	p = pr_calloc(3, 4);
	assert_memory_equal(p, zeros, 12);
	free(p);
	/* Nothing is asked for: still a pointer that free takes. */
	free(pr_malloc(0));
	free(pr_calloc(0, 8));
	free(pr_calloc(8, 0));
	free(pr_realloc(NULL, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fills),
		cmocka_unit_test(takes_null),
		cmocka_unit_test(hints_and_wraps),
		cmocka_unit_test(own_parts),
		cmocka_unit_test(cuts_long_texts),
		cmocka_unit_test(names_kinds),
		cmocka_unit_test(allocates),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
