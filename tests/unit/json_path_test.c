/* tests/unit/json_path_test.c -- values are found at their path as the bytes they are, an object is rebuilt
 * around new members, and what is no JSON or no path is refused without a trace. */
#include "lib/json_path.h"

#include "lib/err.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Copies to the exact size, so that the sanitizer sees a step behind the end. */
static int at(const char *text, const char *path, char **ret)
{
	size_t len = strlen(text), n = 99;
	char *exact = malloc(len ? len : 1);
	const char *value = NULL;
	int rc;

	memcpy(exact, text, len);
	rc = pr_json_at(exact, len, path, &value, &n);
	if (rc == 1)
		*ret = pr_asprintf("%.*s", (int)n, value);
	else
		assert_true(!value && n == 99);
	free(exact);
	return rc;
}

static void must_be(const char *text, const char *path, const char *expected)
{
	char *value = NULL;
	int rc = at(text, path, &value);

	if (rc != 1 || strcmp(value, expected) != 0)
		fail_msg("%s at %s: %d %s, not %s", text, path, rc, rc == 1 ? value : "", expected);
	free(value);
}

static void must_say(const char *text, const char *path, int expected)
{
	char *value = NULL;
	int rc = at(text, path, &value);

	if (rc != expected)
		fail_msg("%s at %s: %d %s, not %d", text, path, rc, rc == 1 ? value : "", expected);
	free(value);
}

static const char order[] =
	" { \"id\" : 12345678901234567890.1000e0 , \"a\":{\"b\":[1,{\"c\":\"x\\u0041\"},[]]},"
	"\"x.y\":{\"[\":true},\"\":null,\"0\":\"zero\",\"n\\u00e9\\\"e\":-0,\"last\":[ ] } ";

static void finds_values(void **state)
{
	(void)state;
	must_be(order, "id", "12345678901234567890.1000e0");
	must_be(order, "a", "{\"b\":[1,{\"c\":\"x\\u0041\"},[]]}");
	must_be(order, "a.b.0", "1");
	must_be(order, "a.b.1.c", "\"x\\u0041\"");
	must_be(order, "a.b[1].c", "\"x\\u0041\"");
	must_be(order, "a[\"b\"][1][\"c\"]", "\"x\\u0041\"");
	must_be(order, "a.b.2", "[]");
	must_be(order, "[\"x.y\"][\"[\"]", "true");
	must_be(order, "[\"\"]", "null");
	must_be(order, "0", "\"zero\"");
	must_be(order, "[\"n\xc3\xa9\\\"e\"]", "-0");
	must_be(order, "[\"n\\u00E9\\\"e\"]", "-0");
	must_be(order, "last", "[ ]");
	must_be(" [1 , 2 ] ", "1", "2");
	must_be(" \"x\" ", "", "\"x\"");
	must_be("[[[[7]]]]", "0[0].0[0]", "7");
	must_be("{\"a b\":{\"c-d\":1}}", "a b.c-d", "1");
	must_be("{\"007\":1}", "007", "1");
	must_be("{\"99999999999999999999\":1}", "99999999999999999999", "1");
}

static void says_what_is_not_there(void **state)
{
	(void)state;
	must_say(order, "b", 0);
	must_say(order, "a.c", 0);
	must_say(order, "a.b.3", 0);
	must_say(order, "a.b.01", 0);
	must_say(order, "a.b[\"0\"]", 0);
	must_say(order, "[0]", 0);
	must_say(order, "id.x", 0);
	must_say(order, "last.0", 0);
	must_say(order, "a.b.0.c.d", 0);
	must_say("{}", "a", 0);
	must_say("[]", "0", 0);
	must_say("null", "a", 0);
	must_say("[1]", "99999999999999999999", 0);
	must_say("{\"a\":1,\"aa\":2}", "aaa", 0);
}

/* jsonb keeps the last of members with the same name; whoever reads the text must see the same. */
static void last_of_a_name_counts(void **state)
{
	(void)state;
	must_be("{\"a\":1,\"a\":2}", "a", "2");
	must_be("{\"a\":1,\"\\u0061\":2}", "a", "2");
	must_be("{\"a\":{\"b\":1},\"a\":{\"c\":2}}", "a.c", "2");
	must_say("{\"a\":{\"b\":1},\"a\":{\"c\":2}}", "a.b", 0);
	must_say("{\"a\":{\"b\":1},\"a\":3}", "a.b", 0);
}

static void refuses_paths(void **state)
{
	static const char *const bad[] = { ".", ".a", "a.", "a..b", "a.b.", "a[", "a[]", "a[0", "a[-1]",
		"a[01]", "a[1.0]", "a[x]", "a[\"b]", "a[\"b\"", "a[\"b\"x", "a[\"b\"].", "a[\"b\"]c", "a]",
		"a\"b", "a.[0]", "[\"\\x\"]", "[\"\\ud800\"]", "[\"\xff\"]", "[0]1", "a[99999999999]" };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		must_say(order, bad[i], -1);
		must_say("{\"z\":1}", bad[i], -1); /* also where its beginning already leads nowhere */
	}
}

static void refuses_what_is_no_json(void **state)
{
	static const char *const bad[] = { "", " ", "{", "}", "[1", "{\"a\":1", "{\"a\":1}}", "{\"a\":1} x",
		"{\"a\":1,}", "[1,]", "{a:1}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "{\"a\":1,\"b\":tru}",
		"{\"a\":1,\"b\":01}", "{\"a\":1,\"b\":\"\\ud800\"}", "{\"a\":1,\"b\":\"\xc3\"}",
		"{\"a\":1,\"b\":\"\n\"}", "{\"a\":1,\"b\":--1}", "{\"a\":1,\"b\":1.}", "{\"a\":1,\"b\":1e}",
		"{\"a\":1,\"b\":[{]}", "{\"a\":1,\"b\":nulll}" };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		must_say(bad[i], "a", -1); /* a is found before the error in most */
}

static void bounds_depth(void **state)
{
	char *text = pr_malloc(2000), *path = pr_malloc(2000);

	(void)state;
	for (int n = 511; n <= 513; n++) {
		memset(text, '[', (size_t)n);
		memset(text + n, ']', (size_t)n);
		text[2 * n] = '\0';
		must_say(text, "", n > 512 ? -1 : 1);
	}
	memset(text, '[', 512);
	memset(text + 512, ']', 512);
	text[1024] = '\0';
	for (int i = 0; i < 511; i++)
		memcpy(path + i * 2, "0.", 2);
	path[511 * 2 - 1] = '\0';
	must_be(text, path, "[]");
	strcat(path, ".0");
	must_say(text, path, 0);
	free(text);
	free(path);
}

/* ---- merge ---- */

static char *merge(const char *object, const struct pr_json_member *m, size_t n)
{
	struct pr_buf b = { 0 };
	size_t len = strlen(object);
	char *exact = malloc(len ? len : 1);
	int rc;

	memcpy(exact, object, len);
	pr_buf_puts(&b, "before");
	rc = pr_json_merge(&b, exact, len, m, n);
	free(exact);
	assert_memory_equal(b.s, "before", 6);
	if (rc < 0) {
		assert_int_equal(b.len, 6);
		assert_int_equal(strlen(b.s), 6);
		pr_buf_free(&b);
		return NULL;
	}
	assert_int_equal(strlen(b.s), b.len);
	memmove(b.s, b.s + 6, b.len - 5);
	return b.s;
}

static void must_merge(const char *object, const struct pr_json_member *m, size_t n, const char *expected)
{
	char *got = merge(object, m, n);

	if (!got || strcmp(got, expected) != 0)
		fail_msg("%s gave %s, not %s", object, got ? got : "-1", expected);
	free(got);
}

#define M(name, value)                                                                                       \
	{                                                                                                    \
		name, sizeof(name) - 1, value, sizeof(value) - 1                                             \
	}
#define GONE(name)                                                                                           \
	{                                                                                                    \
		name, sizeof(name) - 1, NULL, 0                                                              \
	}

static void merges(void **state)
{
	static const struct pr_json_member put[] = { M("b", "[2]"), M("c", "3.00"), M("d\"\n", "\"x\"") };
	static const struct pr_json_member cut[] = { GONE("a"), GONE("z") };
	static const struct pr_json_member twice[] = { M("b", "1"), M("b", "2"), M("x", "3"), GONE("x") };

	(void)state;
	must_merge(" { } ", NULL, 0, "{}");
	must_merge("{}", put, 3, "{\"b\":[2],\"c\":3.00,\"d\\\"\\n\":\"x\"}");
	must_merge("{\"a\":1}", put, 3, "{\"a\":1,\"b\":[2],\"c\":3.00,\"d\\\"\\n\":\"x\"}");
	must_merge("{ \"a\" : 1.10 , \"b\" : 9 , \"e\\u0041\" : {\"k\" : [ ] } }", put, 2,
		"{\"a\":1.10,\"b\":[2],\"e\\u0041\":{\"k\" : [ ] },\"c\":3.00}");
	must_merge("{\"\\u0062\":9}", put, 1, "{\"\\u0062\":[2]}");
	must_merge("{\"b\":7,\"a\":1,\"b\":8}", put, 1, "{\"b\":[2],\"a\":1}");
	must_merge("{\"x\":7,\"x\":8}", put, 0, "{\"x\":7,\"x\":8}");
	must_merge("{\"a\":1}", cut, 2, "{}");
	must_merge("{\"a\":1,\"b\":2,\"a\":3}", cut, 2, "{\"b\":2}");
	must_merge("{\"b\":2,\"a\":3}", cut, 2, "{\"b\":2}");
	must_merge("{\"x\":0}", twice, 4, "{\"b\":2}");
}

static void merges_many(void **state)
{
	enum { N = 200 };
	struct pr_json_member m[N];
	struct pr_buf expected = { 0 };
	char names[N][8];

	(void)state;
	pr_buf_puts(&expected, "{\"n7\":7");
	for (int i = 0; i < N; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "n%d", i);
		m[i] = (struct pr_json_member){ names[i], strlen(names[i]), names[i] + 1,
			strlen(names[i]) - 1 };
		if (i != 7)
			pr_buf_printf(&expected, ",\"n%d\":%d", i, i);
	}
	pr_buf_puts(&expected, "}");
	must_merge("{\"n7\":false}", m, N, expected.s);
	pr_buf_free(&expected);
}

static void refuses_to_merge(void **state)
{
	static const char *const bad[] = { "", "[]", "1", "null", "{", "{\"a\":1", "{\"a\":1}x", "{\"a\":1,}",
		"{\"a\"}", "{\"a\":1 \"b\":2}", "{\"\xff\":1}" };
	static const struct pr_json_member good = M("a", "2"), worse[] = { M("a", ""), M("a", "1 2"),
		M("b", "tru"), M("b", "}"), M("a", "1,\"b\":2") };
	char deep[2000] = "{\"a\":", *got;
	struct pr_json_member deep_member = { "a", 1, deep + 5, 1024 };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_null(merge(bad[i], &good, 1));
	for (size_t i = 0; i < sizeof(worse) / sizeof(*worse); i++)
		assert_null(merge("{\"a\":1}", &worse[i], 1));
	memset(deep + 5, '[', 512);
	memset(deep + 5 + 512, ']', 512);
	strcpy(deep + 5 + 1024, "}");
	assert_null(merge(deep, NULL, 0));
	assert_null(merge("{}", &deep_member, 1));
	deep_member.value++;
	deep_member.value_len -= 2;
	got = merge("{}", &deep_member, 1);
	assert_non_null(got);
	free(got);
}

/* ---- strings ---- */

static void unescapes(void **state)
{
	static const struct {
		const char *raw, *text;
		size_t len;
	} good[] = { { "\"\"", "", 0 }, { "\"abc\"", "abc", 3 }, { "\"a\\\"b\\n\\/\"", "a\"b\n/", 5 },
		{ "\"\\u00e9\xc3\xa9\\ud83d\\ude00\"", "\xc3\xa9\xc3\xa9\xf0\x9f\x98\x80", 8 },
		{ "\"a\\u0000b\"", "a\0b", 3 } };
	static const char *const bad[] = { "", "\"", "abc", "1", "null", "\"a\" ", " \"a\"", "\"a\"b",
		"\"a\\\"", "\"\\x\"", "\"\\ud800\"", "\"\xff\"", "\"a\\n\n\"" };
	struct pr_buf b = { 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		b.len = 0;
		pr_buf_puts(&b, ">");
		assert_int_equal(pr_json_str(&b, good[i].raw, strlen(good[i].raw)), 0);
		assert_int_equal(b.len, 1 + good[i].len);
		assert_memory_equal(b.s + 1, good[i].text, good[i].len);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		b.len = 0;
		pr_buf_puts(&b, ">");
		assert_int_equal(pr_json_str(&b, bad[i], strlen(bad[i])), -1);
		assert_string_equal(b.s, ">");
	}
	pr_buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_values),
		cmocka_unit_test(says_what_is_not_there),
		cmocka_unit_test(last_of_a_name_counts),
		cmocka_unit_test(refuses_paths),
		cmocka_unit_test(refuses_what_is_no_json),
		cmocka_unit_test(bounds_depth),
		cmocka_unit_test(merges),
		cmocka_unit_test(merges_many),
		cmocka_unit_test(refuses_to_merge),
		cmocka_unit_test(unescapes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
