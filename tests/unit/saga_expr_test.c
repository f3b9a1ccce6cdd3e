/* tests/unit/saga_expr_test.c -- conditions by table: what they come to, what is refused and at which
 * character; and what they can become, against thousands of random expressions and data. */
#include "lib/saga_expr.h"

#include "lib/json_path.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEN(a) (sizeof(a) / sizeof(*(a)))

static const char *const data =
	"{\"zero\": 0, \"one\": 1, \"half\": 0.5, \"tiny\": -3e-7, \"big\": 9007199254740993,"
	" \"huge\": 1e400, \"huger\": 1e401, \"max\": 9223372036854775807, \"empty\": \"\", \"word\": "
	"\"abc\","
	" \"words\": \"abcd\", \"quoted\": \"a\\\"b\\u00e9\", \"nul\": null, \"yes\": true, \"no\": false,"
	" \"list\": [], \"seats\": [7, {\"a b\": \"x\"}], \"same\": [7, {\"a b\": \"x\"}], \"o\": {\"p\": "
	"{\"q\": 4}}}";

static int look_up(void *ctx, const char *path, const char **ret, size_t *ret_len)
{
	const char *text = ctx;

	if (strcmp(path, "PAY-1.applied") == 0) {
		*ret = "1";
		*ret_len = 1;
		return 1;
	}
	return strncmp(path, "data.", 5) == 0 && pr_json_at(text, strlen(text), path + 5, ret, ret_len) == 1;
}

static struct saga_expr *parsed(const char *text)
{
	struct saga_expr *e = NULL;
	struct pr_err err;

	if (saga_expr_parse(text, &e, &err) < 0)
		fail_msg("%s: %s", text, err.text);
	return e;
}

static void comes_to(const char *text, int wanted)
{
	struct saga_expr *e = parsed(text);
	char *copy = pr_strdup(data);

	if (saga_expr_true(e, look_up, copy) != wanted)
		fail_msg("%s is not %s", text, wanted ? "true" : "false");
	free(copy);
	saga_expr_free(e);
}

static void truths(void **state)
{
	static const char *const yes[] = { "true", "1", "-1", "0.5", "\"x\"", "\"0\"", "data.one",
		"data.word", "data.yes", "data.list", "data.o", "!false", "!!1", "!null", "!data.none",
		"!data.zero", "!data.empty", "!data.no", "!data.nul", "1 == 1", "1 == 1.0", "1e0 == 1",
		"-0 == 0", "0.1 == 1e-1", "data.one == 1", "data.half == 0.5", "data.half<1", "data.tiny < 0",
		"data.big == 9007199254740993", "data.big != 9007199254740992", "data.big > 9007199254740992",
		"data.max > 9223372036854775806", "data.max == 9223372036854775807",
		"data.max < 9223372036854775808", "data.huge < data.huger", "1 < 2", "2 >= 2", "2 <= 2",
		"3 > 2", "\"a\" < \"b\"", "\"a\" < \"aa\"", "\"\" < \"a\"", "\"B\" < \"a\"",
		"\"z\" < \"\\u00e9\"", "data.word < data.words", "data.word == \"abc\"",
		"data.word == \"\\u0061bc\"", "data.quoted == \"a\\\"b\\u00e9\"", "null == null",
		"data.none == null", "data.nul == null", "data.none == data.nul", "true == true",
		"data.yes == true", "data.yes != data.no", "1 != \"1\"", "true != 1", "false != 0",
		"null != 0", "null != false", "\"\" != null", "data.seats == data.same",
		"data.list != data.seats", "data.seats[0] == 7", "data.seats.0 == 7",
		"data.seats[1][\"a b\"] == \"x\"", "data.o.p.q == 4", "data.o.p.none == null",
		"PAY-1.applied == 1", "PAY-1.applied", "1 || 0 && 0", "(1 || 0) && 1", "0 || 1", "1 && 1",
		"1 == 1 && 2 == 2", "!(1 == 2)", "!data.none && data.one", "  1==1  ", "\t1\n==\r1 ",
		"((((1))))", "(1 < 2) == true", "(1 < 2) == (3 < 4)", "!0 == true", "truely.x == null",
		"nullable == null", "data.a-b == null", "data.amount>=0||true" };
	static const char *const no[] = { "false", "0", "-0", "0.0", "0e5", "\"\"", "null", "data.none",
		"data.empty", "data.no", "data.nul", "!1", "!data.word", "1 == 2", "1 == \"1\"", "true == 1",
		"false == 0", "null == 0", "null == false", "null == \"\"", "1 < 1", "2 < 1", "1 > 1",
		"\"a\" < 1", "\"a\" > 1", "\"a\" <= 1", "1 <= \"a\"", "null < 1", "null > 1", "null <= null",
		"null >= null", "true <= true", "false < true", "data.list <= data.list", "data.none < 1",
		"data.none >= 0", "data.word < 5", "\"\\u00e9\" < \"z\"", "data.list == \"[]\"",
		"data.list == data.seats", "1 && 0", "0 && 1", "0 || 0", "(1 || 1) && 0",
		"data.big == 9007199254740992", "PAY.applied", "data.o.p.q != 4" };

	(void)state;
	for (size_t i = 0; i < LEN(yes); i++)
		comes_to(yes[i], 1);
	for (size_t i = 0; i < LEN(no); i++)
		comes_to(no[i], 0);
}

/* The first operand decides: the second is not looked up. */
static int count(void *ctx, const char *path, const char **ret, size_t *ret_len)
{
	(void)path;
	++*(int *)ctx;
	*ret = "1";
	*ret_len = 1;
	return 1;
}

static void stops_early(void **state)
{
	static const struct {
		const char *text;
		int looked;
	} t[] = { { "data.a || data.b", 1 }, { "!data.a && data.b", 1 }, { "data.a && data.b", 2 },
		{ "data.a == data.b", 2 }, { "data.a || data.b && data.c", 1 } };

	(void)state;
	for (size_t i = 0; i < LEN(t); i++) {
		struct saga_expr *e = parsed(t[i].text);
		int n = 0;

		(void)saga_expr_true(e, count, &n);
		assert_int_equal(n, t[i].looked);
		saga_expr_free(e);
	}
}

static void refused(const char *text, const char *why)
{
	struct saga_expr *e = NULL;
	struct pr_err err = { 0 };

	if (saga_expr_parse(text, &e, &err) == 0)
		fail_msg("%s was taken", text);
	if (strcmp(err.text, why) != 0)
		fail_msg("%s: \"%s\", not \"%s\"", text, err.text, why);
	assert_null(e);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_int_equal(saga_expr_parse(text, &e, NULL), -1);
}

static void mistakes(void **state)
{
	static const char *const t[][2] = {
		{ "", "character 1: ends where a value is expected" },
		{ "  ", "character 3: ends where a value is expected" },
		{ "data.a = 1", "character 8: one \"=\": equality is \"==\"" },
		{ "data.a & data.b", "character 8: one \"&\": it is \"&&\"" },
		{ "data.a | data.b", "character 8: one \"|\": it is \"||\"" },
		{ "data.a and data.b", "character 8: \"and\" where an operator is expected" },
		{ "not data.a", "character 5: \"data.a\" where an operator is expected" },
		{ "data.a + 1 > 2", "character 8: there is no arithmetic" },
		{ "1 - 1", "character 3: there is no arithmetic" },
		{ "len(data.a) > 1", "character 4: there are no functions" },
		{ "1 < 2 < 3", "character 7: comparisons do not chain: say a < b && b < c" },
		{ "1 == 1 != 0", "character 8: comparisons do not chain: say a < b && b < c" },
		{ "(1", "character 1: the \"(\" has no \")\"" },
		{ "(1 2)", "character 4: \"2\" where an operator or \")\" is expected" },
		{ "1)", "character 2: a \")\" without its \"(\"" },
		{ "()", "character 2: \")\" where a value is expected" },
		{ "1 &&", "character 5: ends where a value is expected" },
		{ "1 && || 2", "character 6: \"|\" where a value is expected" },
		{ "!", "character 2: ends where a value is expected" },
		{ "\"abc", "character 1: the string has no end" },
		{ "\"abc\\", "character 1: the string has no end" },
		{ "\"a\\q\"", "character 1: is no string as JSON has it" },
		{ "\"\xff\"", "character 1: is no string as JSON has it" },
		{ "'abc'", "character 1: strings have double quotes: \\\"...\\\" in the file" },
		{ "01", "character 1: \"01\" is no number" },
		{ "1.", "character 1: \"1.\" is no number" },
		{ "1e", "character 1: \"1e\" is no number" },
		{ "1x", "character 2: a number ends here, and \"x\" follows" },
		{ "-", "character 1: \"-\" where a value is expected" },
		{ "-x", "character 1: \"-\" where a value is expected" },
		{ ".5", "character 1: \".\" where a value is expected" },
		{ "$x", "character 1: \"$\" where a value is expected" },
		{ "\xc3\xa9 == 1", "character 1: \"\xc3\xa9\" where a value is expected" },
		{ "data.", "character 1: \"data.\" is no path" },
		{ "data..a", "character 1: \"data..a\" is no path" },
		{ "data.a[", "character 1: a [ has no end" },
		{ "data.a[x]", "character 1: \"data.a[x]\" is no path" },
		{ "data.a[\"x]", "character 1: a [ has no end" },
	};

	(void)state;
	for (size_t i = 0; i < LEN(t); i++)
		refused(t[i][0], t[i][1]);
}

/* n times s, then tail. */
static char *repeated(const char *s, size_t n, const char *tail)
{
	size_t len = strlen(s);
	char *r = pr_malloc(n * len + strlen(tail) + 1);

	for (size_t i = 0; i < n; i++)
		memcpy(r + i * len, s, len);
	strcpy(r + n * len, tail);
	return r;
}

static void bounds(void **state)
{
	static const struct {
		const char *s, *tail, *why;
		size_t n;
	} t[] = { { "(", "1", "character 33: brackets and \"!\" nest deeper than 32", 100 },
		{ "!", "1", "character 33: brackets and \"!\" nest deeper than 32", 32 },
		{ "1||", "1", "character 302: more than 200 operators and operands", 200 },
		{ " ", "1", "character 2001: is longer than 2000 characters", 2000 } };
	char *s;

	(void)state;
	for (size_t i = 0; i < LEN(t); i++) {
		s = repeated(t[i].s, t[i].n, t[i].tail);
		refused(s, t[i].why);
		free(s);
	}
	s = repeated("!", 31, "0");
	comes_to(s, 1);
	free(s);
	s = repeated("0||", 99, "1");
	comes_to(s, 1);
	free(s);
}

static int join(void *ctx, const char *path)
{
	struct pr_buf *b = ctx;

	pr_buf_printf(b, "%s;", path);
	return strcmp(path, "data.stop") == 0 ? 7 : 0;
}

static void paths(void **state)
{
	struct saga_expr *e =
		parsed("data.a == 1 && (PAY.applied || !data.b[\"x y\"].c < data.stop) || data.z");
	struct pr_buf b = { 0 };

	(void)state;
	assert_int_equal(saga_expr_paths(e, join, &b), 7);
	assert_string_equal(b.s, "data.a;PAY.applied;data.b[\"x y\"].c;data.stop;");
	pr_buf_free(&b);
	saga_expr_free(e);
	saga_expr_free(NULL);
}

/* ---------------------------------------------------------------- what it can become */

static int is_bit(const char *path)
{
	return strncmp(path, "data.", 5) != 0;
}

static void can(void **state)
{
	static const struct {
		const char *text;
		int yes, no; /* it can be true, can be false */
	} t[] = {
		{ "true", 1, 0 }, { "1 == 2", 0, 1 }, { "data.a", 1, 1 },
		{ "data.a > 5 && data.a < 6", 1, 1 }, { "data.a > 5 && data.a <= 5", 0, 1 },
		{ "data.a > 5 && data.a < 3", 0, 1 }, { "data.a == 1 && data.a == 1.0", 1, 1 },
		{ "data.a == 1 && data.a == \"1\"", 0, 1 }, { "data.a == 1 && data.a == 2", 0, 1 },
		{ "data.a == 1 || data.a != 1", 1, 0 },
		{ "data.a < 1 || data.a >= 1", 1, 1 }, /* a string is neither */
		{ "data.a == data.a", 1, 0 }, { "data.a != data.a", 0, 1 },
		{ "data.a < data.b && data.b < data.a", 0, 1 },
		{ "data.a < data.b && data.b < data.c", 1, 1 },
		{ "data.a < data.b && data.b < data.c && data.c < data.a", 0, 1 },
		{ "data.a > 1 && data.b < 2 && data.a < data.b", 1, 1 },
		{ "data.a > 2 && data.b < 2 && data.a < data.b", 0, 1 },
		{ "data.a > \"a\" && data.a < \"b\"", 1, 1 }, { "data.a > \"b\" && data.a < \"a\"", 0, 1 },
		{ "data.a > \"a\" && data.a > 1", 0, 1 }, { "data.a && !data.a", 0, 1 },
		{ "data.a == null && data.a", 0, 1 }, { "data.a == \"\" && data.a != null", 1, 1 },
		{ "PAY.applied == SEAT.applied", 1, 1 }, { "PAY.applied == 2", 0, 1 },
		{ "PAY.applied > 0 || PAY.applied == 0", 1, 0 }, { "PAY.applied <= SEAT.applied", 1, 1 },
		{ "data.a==1 && data.b==1 && data.c==1 && data.d==1 && data.e==1 && data.f==1 && data.g==1 "
		  "&& data.h==1 "
		  "&& data.i==1 && data.a==2",
			1, 1 }, /* too much to look through */
	};

	(void)state;
	for (size_t i = 0; i < LEN(t); i++) {
		struct saga_expr *e = parsed(t[i].text);

		if (saga_expr_can(e, 1, is_bit) != t[i].yes)
			fail_msg("%s: it is said that it %s be true", t[i].text, t[i].yes ? "cannot" : "can");
		if (saga_expr_can(e, 0, is_bit) != t[i].no)
			fail_msg("%s: it is said that it %s be false", t[i].text, t[i].no ? "cannot" : "can");
		saga_expr_free(e);
	}
}

static unsigned seed = 20260801;

static unsigned dice(unsigned n)
{
	seed = seed * 1103515245 + 12345;
	return (seed >> 16) % n;
}

static void make_operand(struct pr_buf *b)
{
	static const char *const all[] = { "data.a", "data.b", "data.c", "data.a", "data.b", "1", "2", "2.5",
		"-1", "\"a\"", "\"b\"", "\"\"", "null", "true", "false", "100" };

	pr_buf_puts(b, all[dice(LEN(all))]);
}

static void make_expression(struct pr_buf *b, int depth)
{
	static const char *const ops[] = { " == ", " != ", " < ", " <= ", " > ", " >= " };

	if (depth == 0 || dice(4) == 0) {
		make_operand(b);
		pr_buf_puts(b, ops[dice(LEN(ops))]);
		make_operand(b);
		return;
	}
	pr_buf_puts(b, dice(3) ? "(" : "!(");
	make_expression(b, depth - 1);
	pr_buf_puts(b, dice(3) ? " && " : " || ");
	make_expression(b, depth - 1);
	pr_buf_puts(b, ")");
}

static void make_value(struct pr_buf *b)
{
	switch (dice(6)) {
	case 0:
		pr_buf_printf(b, "%u.%u", dice(120), dice(10));
		return;
	case 1:
		pr_buf_printf(b, "-%u", 1 + dice(3));
		return;
	case 2:
		pr_buf_printf(b, "\"%.*s\"", (int)dice(3), &"abcab"[dice(4)]);
		return;
	case 3:
		pr_buf_puts(b, dice(2) ? "true" : "false");
		return;
	case 4:
		pr_buf_printf(b, "%u", dice(4));
		return;
	default:
		pr_buf_puts(b, dice(2) ? "null" : "{\"x\": 1}");
	}
}

/* No data may bring about what is said to be impossible. */
static void can_against_data(void **state)
{
	int impossible = 0;

	(void)state;
	for (int i = 0; i < 1500; i++) {
		struct pr_buf text = { 0 }, values = { 0 };
		struct saga_expr *e;
		int possible[2];

		make_expression(&text, 3);
		e = parsed(text.s);
		for (int w = 0; w < 2; w++) {
			possible[w] = saga_expr_can(e, w, is_bit);
			impossible += !possible[w];
		}
		assert_true(possible[0] || possible[1]);
		for (int k = 0; k < 60; k++) {
			int is;

			values.len = 0;
			pr_buf_puts(&values, "{\"a\": ");
			make_value(&values);
			pr_buf_puts(&values, ", \"b\": ");
			make_value(&values);
			pr_buf_puts(&values, ", \"c\": ");
			make_value(&values);
			pr_buf_puts(&values, "}");
			is = saga_expr_true(e, look_up, values.s);
			if (!possible[is])
				fail_msg("%s cannot be %d, and is, of %s", text.s, is, values.s);
		}
		saga_expr_free(e);
		pr_buf_free(&text);
		pr_buf_free(&values);
	}
	assert_in_range(impossible, 20, 1400);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(truths),
		cmocka_unit_test(stops_early),
		cmocka_unit_test(mistakes),
		cmocka_unit_test(bounds),
		cmocka_unit_test(paths),
		cmocka_unit_test(can),
		cmocka_unit_test(can_against_data),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
