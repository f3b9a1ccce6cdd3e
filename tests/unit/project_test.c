/* tests/unit/project_test.c -- fields are dropped, masked, renamed and selected; all else stays byte for
 * byte, and rules that cannot be meant are refused. */
#include "lib/project.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RULES(...)                                                                                           \
	(const struct pr_project_rule[]){ __VA_ARGS__ },                                                     \
		sizeof((const struct pr_project_rule[]){ __VA_ARGS__ }) / sizeof(struct pr_project_rule)
#define DROP(p)                                                                                              \
	{                                                                                                    \
		p, PR_PROJECT_DROP, NULL                                                                     \
	}
#define HASH(p)                                                                                              \
	{                                                                                                    \
		p, PR_PROJECT_HASH, NULL                                                                     \
	}
#define REDACT(p, t)                                                                                         \
	{                                                                                                    \
		p, PR_PROJECT_REDACT, t                                                                      \
	}
#define RENAME(p, t)                                                                                         \
	{                                                                                                    \
		p, PR_PROJECT_RENAME, t                                                                      \
	}
#define KEEP(p)                                                                                              \
	{                                                                                                    \
		p, PR_PROJECT_KEEP, NULL                                                                     \
	}

/* HMAC-SHA256 of "a@b.c" under the key "k", from another implementation. */
#define HASHED "72077525838fddbe8c57329dc1f6f5281bf1bb1971ad103b382cef944af7c7fa"

static struct pr_project *made(const struct pr_project_rule *rules, size_t n)
{
	struct pr_project *p = NULL;
	struct pr_err err = { 0 };
	size_t bad = 99;

	if (pr_project_new(rules, n, "k", 1, &p, &bad, &err) < 0)
		fail_msg("rule %zu: %s", bad, err.text);
	return p;
}

static void must_be(const struct pr_project_rule *rules, size_t n, const char *text, const char *expected)
{
	struct pr_project *p = made(rules, n);
	struct pr_buf out = { 0 };
	size_t len = strlen(text);
	char *exact = malloc(len ? len : 1);
	int rc;

	memcpy(exact, text, len);
	rc = pr_project_payload(p, exact, len, &out);
	if (rc != 1 || strcmp(out.s, expected) != 0)
		fail_msg("%s -> %d %s, not %s", text, rc, out.s ? out.s : "", expected);
	free(exact);
	pr_buf_free(&out);
	pr_project_free(p);
}

static void must_refuse(const struct pr_project_rule *rules, size_t n, size_t which, const char *why)
{
	struct pr_project *p = NULL;
	struct pr_err err = { 0 };
	size_t bad = 99;

	if (pr_project_new(rules, n, "k", 1, &p, &bad, &err) == 0)
		fail_msg("%s was taken", rules[0].path);
	assert_int_equal(bad, which);
	if (!strstr(err.text, why))
		fail_msg("\"%s\" does not say \"%s\"", err.text, why);
}

static void drops(void **state)
{
	(void)state;
	must_be(RULES(DROP("payload.a")), " { \"a\" : 1 , \"b\" : 1.00e+2 } ", "{\"b\":1.00e+2}");
	must_be(RULES(DROP("payload.a.b")), "{\"a\":{\"b\":[1,{}],\"c\":\"\\u0041\"}}",
		"{\"a\":{\"c\":\"\\u0041\"}}");
	must_be(RULES(DROP("payload.i[].x")), "{\"i\":[{\"x\":1,\"y\":2},null,{\"x\":[]}]}",
		"{\"i\":[{\"y\":2},null,{}]}");
	must_be(RULES(DROP("payload.i[]")), "{\"i\":[1,2],\"j\":[1,2]}", "{\"i\":[],\"j\":[1,2]}");
	must_be(RULES(DROP("payload.*.x")), "{\"a\":{\"x\":1},\"b\":{\"x\":2,\"z\":3},\"c\":4}",
		"{\"a\":{},\"b\":{\"z\":3},\"c\":4}");
	must_be(RULES(DROP("payload[\"a.b\"]")), "{\"a.b\":1,\"a\":{\"b\":2}}", "{\"a\":{\"b\":2}}");
	must_be(RULES(DROP("payload")), "{\"a\":1}", "null");
	/* However its name is written, and however often it comes. */
	must_be(RULES(DROP("payload.email")), "{\"em\\u0061il\":1,\"x\":0,\"email\":2}", "{\"x\":0}");
}

static void numbers_keep_their_digits(void **state)
{
	(void)state;
	must_be(RULES(DROP("payload.x")), "{\"n\":12345678901234567890.10,\"m\":-0,\"e\":1E400,\"x\":1}",
		"{\"n\":12345678901234567890.10,\"m\":-0,\"e\":1E400}");
}

static void what_is_not_there_passes(void **state)
{
	(void)state;
	must_be(RULES(DROP("payload.a.b.c"), HASH("payload.z")), "{\"a\":{\"c\":5}}", "{\"a\":{\"c\":5}}");
	must_be(RULES(DROP("payload.a.b")), "{\"a\":null}", "{\"a\":null}");
	must_be(RULES(DROP("payload.a")), "[]", "[]");
	must_be(RULES(DROP("payload.a")), "null", "null");
	must_be(RULES(RENAME("payload.a.b", "c")), "{\"a\":[{\"b\":1},\"x\"]}", "{\"a\":[{\"c\":1},\"x\"]}");
	must_be(RULES(RENAME("payload.a[].b", "c")), "{\"a\":{\"b\":1}}", "{\"a\":{\"b\":1}}");
}

/* A producer sent a list where one thing had been: all that was hidden before left in clear. */
static void another_form_hides_nothing_less(void **state)
{
	static const char list[] = "{\"user\":[1,{},\"a@b.c\",null]}";
	struct pr_project *p = made(RULES(REDACT("payload.user.email", NULL), DROP("payload.card")));
	struct pr_buf out = { 0 };

	(void)state;
	must_be(RULES(REDACT("payload.u.mail", "-"), DROP("payload.card")),
		"{\"u\":[{\"mail\":\"a@b.c\",\"n\":1},[{\"mail\":\"d@e.f\"}]],\"card\":4111}",
		"{\"u\":[{\"mail\":\"-\",\"n\":1},[{\"mail\":\"-\"}]]}");
	must_be(RULES(REDACT("payload.u.mail", "-"), DROP("payload.card")),
		"[{\"u\":{\"mail\":\"a@b.c\"},\"card\":\"4111\"}]", "[{\"u\":{\"mail\":\"-\"}}]");
	must_be(RULES(KEEP("payload.u.id"), HASH("payload.u.mail")),
		"{\"u\":[{\"id\":1,\"mail\":\"a@b.c\",\"n\":2}]}",
		"{\"u\":[{\"id\":1,\"mail\":\"" HASHED "\"}]}");
	/* Nothing to look into, or no elements: nothing of it leaves. */
	must_be(RULES(REDACT("payload.u.mail", NULL)), "{\"u\":\"a@b.c\",\"n\":1}", "{\"u\":null,\"n\":1}");
	must_be(RULES(DROP("payload.u.mail")), "{\"u\":[\"a@b.c\"]}", "{\"u\":[null]}");
	must_be(RULES(DROP("payload.i[].x")), "{\"i\":[{\"x\":1,\"y\":2},3]}", "{\"i\":[{\"y\":2},null]}");
	must_be(RULES(DROP("payload.i[].x")), "{\"i\":{\"7\":{\"x\":1}}}", "{\"i\":null}");
	must_be(RULES(HASH("payload.i[]")), "{\"i\":\"a@b.c\"}", "{\"i\":null}");
	/* Rules of both forms, and of every member: each holds for both. */
	must_be(RULES(DROP("payload.i[].x"), DROP("payload.i.y")),
		"{\"i\":{\"x\":1,\"y\":2,\"z\":3},\"j\":[{\"x\":1}]}", "{\"i\":{\"z\":3},\"j\":[{\"x\":1}]}");
	must_be(RULES(DROP("payload.i[].x"), DROP("payload.i.y.a[].b")),
		"{\"i\":[{\"x\":1,\"y\":{\"a\":[{\"b\":1,\"c\":2}]},\"z\":3}]}",
		"{\"i\":[{\"y\":{\"a\":[{\"c\":2}]},\"z\":3}]}");
	must_be(RULES(DROP("payload.*.tel"), DROP("payload.u.mail")),
		"{\"u\":{\"tel\":1,\"mail\":2},\"v\":{\"tel\":3,\"mail\":4},\"n\":5}",
		"{\"u\":{},\"v\":{\"mail\":4},\"n\":5}");
	/* One that is nothing but text is none that can be read. */
	assert_int_equal(pr_project_payload(p, "\"a@b.c\"", 7, &out), -1);
	assert_null(out.s);
	assert_int_equal(pr_project_misfits(p), 0);
	assert_int_equal(pr_project_payload(p, list, sizeof(list) - 1, &out), 1);
	assert_string_equal(out.s, "{\"user\":[null,{},null,null]}");
	assert_int_equal(pr_project_misfits(p), 2);
	pr_buf_free(&out);
	pr_project_free(p);
}

static void masks(void **state)
{
	(void)state;
	must_be(RULES(HASH("payload.mail")), "{\"mail\":\"a@b.c\"}", "{\"mail\":\"" HASHED "\"}");
	must_be(RULES(HASH("payload.mail")), "{\"mail\":\"\\u0061@b.c\"}", "{\"mail\":\"" HASHED "\"}");
	must_be(RULES(HASH("payload.mail")), "{\"mail\":null}", "{\"mail\":null}");
	must_be(RULES(REDACT("payload.a", NULL)), "{\"a\":{\"b\":[1]},\"c\":1}",
		"{\"a\":\"[redacted]\",\"c\":1}");
	must_be(RULES(REDACT("payload.a[]", "a \"b\"")), "{\"a\":[1,null,\"x\"]}",
		"{\"a\":[\"a \\\"b\\\"\",null,\"a \\\"b\\\"\"]}");
	must_be(RULES(HASH("payload.a"), DROP("payload.a.b")), "{\"a\":{\"b\":1}}",
		"{\"a\":\"c17785fde6d111580cb2cde005b4b12e8fb9231768aeec10009f7d4cf826c4ed\"}");
}

static void renames(void **state)
{
	(void)state;
	must_be(RULES(RENAME("payload.a", "b")), "{\"a\":1,\"c\":2}", "{\"b\":1,\"c\":2}");
	must_be(RULES(RENAME("payload.a", "b")), "{\"a\":1,\"b\":2}", "{\"a\":1,\"b\":2}");
	must_be(RULES(RENAME("payload.x[].a", "b\"")), "{\"x\":[{\"a\":1},{\"b\\\"\":0,\"a\":2}]}",
		"{\"x\":[{\"b\\\"\":1},{\"b\\\"\":0,\"a\":2}]}");
	must_be(RULES(RENAME("payload.mail", "who"), HASH("payload.mail")), "{\"mail\":\"a@b.c\"}",
		"{\"who\":\"" HASHED "\"}");
}

static void selects(void **state)
{
	(void)state;
	must_be(RULES(KEEP("payload.a"), KEEP("payload.u.id")),
		"{\"a\":[1, 2],\"b\":2,\"u\":{\"id\":7,\"n\":8}}", "{\"a\":[1, 2],\"u\":{\"id\":7}}");
	/* Another rule than drop names what is wanted, too; drop wins over what is inside. */
	must_be(RULES(KEEP("payload.a"), HASH("payload.m"), RENAME("payload.r", "s"), DROP("payload.a.x")),
		"{\"a\":{\"x\":1,\"y\":2},\"m\":null,\"r\":3,\"o\":4}",
		"{\"a\":{\"y\":2},\"m\":null,\"s\":3}");
	must_be(RULES(KEEP("payload.i[].id")), "{\"i\":[{\"id\":1,\"x\":2},5,[6]],\"z\":1}",
		"{\"i\":[{\"id\":1},null,[null]]}");
	/* Another shape than the path's: nothing of it leaves. */
	must_be(RULES(KEEP("payload.u.id")), "{\"u\":\"secret\"}", "{\"u\":null}");
	must_be(RULES(KEEP("payload.u.id")), "\"secret\"", "null");
	must_be(RULES(KEEP("payload.u[].id")), "{\"u\":{\"id\":1}}", "{\"u\":{}}");
}

static void refuses_what_is_no_json(void **state)
{
	static const char *const texts[] = { "", " ", "{", "{\"a\":1", "{\"a\":1}}", "{\"a\" 1}", "[1,]",
		"\x01", "{\"b\":{\"c\":tru}}", "{\"a\":\"\xff\"}", "{\"a\":1,}", "nul" };
	struct pr_project *p = made(RULES(DROP("payload.a"), HASH("payload.b.c"), KEEP("payload.k")));

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		struct pr_buf out = { 0 };

		pr_buf_puts(&out, "before");
		if (pr_project_payload(p, texts[i], strlen(texts[i]), &out) != -1)
			fail_msg("%s was taken", texts[i]);
		assert_string_equal(out.s, "before");
		pr_buf_free(&out);
	}
	pr_project_free(p);
}

static void no_rule_no_work(void **state)
{
	struct pr_project *p = made(RULES(DROP("key"), HASH("headers.user")));
	struct pr_buf out = { 0 };

	(void)state;
	assert_int_equal(pr_project_payload(p, "no json", 7, &out), 0);
	assert_null(out.s);
	assert_false(pr_project_of_payload(p));
	assert_true(pr_project_of_headers(p));
	pr_project_free(p);
}

static void key_and_headers(void **state)
{
	struct pr_project *p = made(RULES(HASH("key"), HASH("headers.user"), DROP("headers[\"x.y\"]"),
		REDACT("headers.ip", "-"), RENAME("headers.old", "new")));
	struct pr_buf out = { 0 };
	const char *name;

	(void)state;
	assert_int_equal(pr_project_key(p, "a@b.c", 5, &out), PR_PROJECT_CHANGED);
	assert_string_equal(out.s, HASHED);
	out.len = 0;
	assert_int_equal(pr_project_header(p, "user", 0, "a@b.c", 5, &name, &out), PR_PROJECT_CHANGED);
	assert_string_equal(out.s, HASHED);
	assert_string_equal(name, "user");
	out.len = 0;
	assert_int_equal(pr_project_header(p, "ip", 0, "10.0.0.1", 8, &name, &out), PR_PROJECT_CHANGED);
	assert_string_equal(out.s, "-");
	assert_int_equal(pr_project_header(p, "x.y", 0, "1", 1, &name, &out), PR_PROJECT_GONE);
	assert_int_equal(pr_project_header(p, "other", 0, "1", 1, &name, &out), PR_PROJECT_AS_IS);
	assert_string_equal(pr_project_renamed(p, "old"), "new");
	assert_null(pr_project_renamed(p, "other"));
	assert_int_equal(pr_project_header(p, "old", 0, "1", 1, &name, &out), PR_PROJECT_AS_IS);
	assert_string_equal(name, "new");
	assert_int_equal(pr_project_header(p, "old", 1, "1", 1, &name, &out), PR_PROJECT_AS_IS);
	assert_string_equal(name, "old");
	pr_project_free(p);

	p = made(RULES(KEEP("headers.a"), DROP("key")));
	assert_int_equal(pr_project_header(p, "a", 0, "1", 1, &name, &out), PR_PROJECT_AS_IS);
	assert_int_equal(pr_project_header(p, "b", 0, "1", 1, &name, &out), PR_PROJECT_GONE);
	assert_int_equal(pr_project_key(p, "x", 1, &out), PR_PROJECT_GONE);
	pr_project_free(p);
	pr_buf_free(&out);
}

static void refuses_bad_rules(void **state)
{
	static const char *const paths[] = { "payload.", "payload..a", "payload[", "payload[1]",
		"payload[\"a]", "payload.a]", "payload.a b", "payload[]x", "payload.**", "payload.a\"",
		".a" };
	struct pr_buf deep = { 0 };
	struct pr_project *p = NULL;
	struct pr_err err = { 0 };
	size_t bad = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		must_refuse(RULES(DROP("key"), DROP(paths[i])), 1, i == 10 ? "begin" : "is not a path");
	must_refuse(RULES(DROP("body.a")), 0, "does not begin with payload, key or headers");
	must_refuse(RULES(DROP("")), 0, "a path is missing");
	must_refuse(RULES(DROP("key.a")), 0, "a key has no fields");
	must_refuse(RULES(DROP("headers.a.b")), 0, "headers.NAME");
	must_refuse(RULES(HASH("headers")), 0, "name one");
	must_refuse(RULES(RENAME("payload.a", NULL)), 0, "needs \"to\"");
	must_refuse(RULES(RENAME("payload.a", "\xff")), 0, "UTF-8");
	must_refuse(RULES(RENAME("payload.a[]", "b")), 0, "only a member");
	must_refuse(RULES(RENAME("key", "b")), 0, "only a member");
	must_refuse(RULES(HASH("payload.a"), REDACT("payload.a", NULL)), 1, "contradict");
	must_refuse(RULES(DROP("payload.a"), KEEP("payload.a")), 1, "two rules");
	must_refuse(RULES(HASH("payload.a"), HASH("payload.a")), 1, "two rules");
	must_refuse(RULES(RENAME("payload.a", "x"), RENAME("payload.b", "x")), 2, "both renamed");
	must_refuse(RULES({ "payload.a", PR_PROJECT_DROP, "x" }), 0, "belongs to rename");
	assert_int_equal(pr_project_new(RULES(HASH("key")), NULL, 0, &p, &bad, &err), -1);
	assert_non_null(strstr(err.text, "needs a key"));
	pr_buf_puts(&deep, "payload");
	for (int i = 0; i < 40; i++)
		pr_buf_puts(&deep, "[]");
	must_refuse(RULES(DROP(deep.s)), 0, "steps");
	deep.len = 0;
	pr_buf_puts(&deep, "payload");
	for (int i = 0; i < 15; i++)
		pr_buf_puts(&deep, ".a[]");
	must_refuse(RULES(DROP(deep.s), DROP("payload.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a")), 2, "too many");
	pr_buf_free(&deep);
}

/* One object with a member 200,000 times: a rename that looked through it each time would take hours. */
static void many_of_one_name(void **state)
{
	struct pr_project *p = made(RULES(RENAME("payload.a", "b")));
	struct pr_buf in = { 0 }, out = { 0 };

	(void)state;
	pr_buf_puts(&in, "{\"a\":0");
	for (int i = 0; i < 200000; i++)
		pr_buf_puts(&in, ",\"a\":1");
	pr_buf_puts(&in, "}");
	assert_int_equal(pr_project_payload(p, in.s, in.len, &out), 1);
	assert_int_equal(out.len, in.len);
	pr_buf_free(&in);
	pr_buf_free(&out);
	pr_project_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(drops),
		cmocka_unit_test(numbers_keep_their_digits),
		cmocka_unit_test(what_is_not_there_passes),
		cmocka_unit_test(another_form_hides_nothing_less),
		cmocka_unit_test(masks),
		cmocka_unit_test(renames),
		cmocka_unit_test(selects),
		cmocka_unit_test(refuses_what_is_no_json),
		cmocka_unit_test(no_rule_no_work),
		cmocka_unit_test(key_and_headers),
		cmocka_unit_test(refuses_bad_rules),
		cmocka_unit_test(many_of_one_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
