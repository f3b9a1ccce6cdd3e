/* tests/unit/policy_test.c -- class and code -> rule: what the built-in rules decide and why it matters, that
 * the first match wins, what a pattern matches, and that one which never could is refused with the word that
 * was meant. */
#include "lib/policy.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#define LEN(a) (sizeof(a) / sizeof(*(a)))

static void expect(const char *failure, const char *policy)
{
	const char *code;
	enum pr_fail_class cls = pr_fail_class_parse(failure, &code);
	const struct pr_rule *r = pr_policy_of(NULL, 0, cls, code);

	if (strcmp(pr_policy_str((enum pr_policy)r->policy), policy) != 0)
		fail_msg("%s: %s by %s, should be %s", failure, pr_policy_str((enum pr_policy)r->policy),
			r->match, policy);
}

/* Trouble of the moment is tried again; trouble that the next message would meet too waits at the breaker;
 * what is about this message alone becomes a dead letter. */
static void test_defaults(void **state)
{
	(void)state;
	expect("sqlstate:40001", "retry");
	expect("sqlstate:40P01", "retry");
	expect("sqlstate:55P03", "retry");
	expect("sqlstate:57014", "retry");
	expect("sqlstate:08006", "breaker");
	expect("sqlstate:53300", "breaker");
	expect("sqlstate:57P01", "breaker");
	expect("sqlstate:58030", "breaker");
	expect("sqlstate:25006", "breaker");
	expect("sqlstate:42883", "breaker");
	expect("sqlstate:42P01", "breaker");
	expect("sqlstate:42501", "breaker");
	expect("sqlstate:3F000", "breaker");
	expect("sqlstate:3D000", "breaker");
	expect("sqlstate:28P01", "breaker");
	expect("sqlstate:22P02", "dead_letter");
	expect("sqlstate:23505", "dead_letter");
	expect("sqlstate:P0001", "dead_letter");
	expect("sqlstate:XX000", "dead_letter");
	expect("sqlstate:55000", "dead_letter");
	expect("sqlstate:", "dead_letter");
	expect("http:connect", "breaker");
	expect("http:dns", "breaker");
	expect("http:tls", "breaker");
	expect("http:500", "breaker");
	expect("http:599", "breaker");
	expect("http:408", "breaker");
	expect("http:425", "breaker");
	expect("http:429", "breaker");
	expect("http:400", "dead_letter");
	expect("http:404", "dead_letter");
	expect("http:410", "dead_letter");
	expect("http:302", "dead_letter");
	expect("exit:1", "retry");
	expect("exit:signal:9", "retry");
	expect("reply:retry", "retry");
	expect("reply:reject", "dead_letter");
	expect("reply:retry_later", "dead_letter");
	expect("decode:id", "dead_letter");
	expect("decode:altered", "dead_letter");
	expect("timeout", "retry");
	expect("crash", "park");
	expect("", "dead_letter");
}

/* A retry that could not end or would spin, or delays that go backwards, would be found by nobody else. */
static void test_default_rules_are_sound(void **state)
{
	const struct pr_rule *r = pr_default_rules;

	(void)state;
	for (; r->match; r++) {
		if (pr_match_problem(r->match))
			fail_msg("%s: %s", r->match, pr_match_problem(r->match));
		if (r->policy == PR_POLICY_RETRY)
			assert_in_range(r->attempts, 2, 1000);
		if (r->policy != PR_POLICY_DEAD_LETTER)
			assert_true(r->backoff_us >= PR_MS && r->backoff_us <= r->backoff_max_us);
		for (const struct pr_rule *above = pr_default_rules; above < r; above++)
			assert_string_not_equal(above->match, r->match);
	}
	assert_string_equal(r[-1].match, "*");
}

static void test_first_match_wins(void **state)
{
	static const struct pr_rule rules[] = {
		{ "sqlstate:23503", PR_POLICY_PARK, 0, 1, 1 },
		{ "sqlstate:23*", PR_POLICY_IGNORE, 1, 1, 1 },
		{ "timeout", PR_POLICY_STOP, 1, 1, 1 },
		{ "http", PR_POLICY_RETRY, 7, 1, 1 },
	};

	(void)state;
	assert_ptr_equal(pr_policy_of(rules, LEN(rules), PR_FAIL_SQLSTATE, "23503"), &rules[0]);
	assert_ptr_equal(pr_policy_of(rules, LEN(rules), PR_FAIL_SQLSTATE, "23505"), &rules[1]);
	assert_ptr_equal(pr_policy_of(rules, LEN(rules), PR_FAIL_TIMEOUT, ""), &rules[2]);
	assert_ptr_equal(pr_policy_of(rules, LEN(rules), PR_FAIL_HTTP, "503"), &rules[3]);
	assert_int_equal(
		pr_policy_of(rules, LEN(rules), PR_FAIL_SQLSTATE, "22012")->policy, PR_POLICY_DEAD_LETTER);
	assert_int_equal(pr_policy_of(rules, 0, PR_FAIL_SQLSTATE, "40001")->policy, PR_POLICY_RETRY);
}

static int matches(const char *pattern, enum pr_fail_class cls, const char *code)
{
	const struct pr_rule rule = { pattern, PR_POLICY_STOP, 1, 1, 1 };

	return pr_policy_of(&rule, 1, cls, code) == &rule;
}

static void test_patterns(void **state)
{
	(void)state;
	assert_true(matches("*", PR_FAIL_CRASH, ""));
	assert_true(matches("sqlstate:*", PR_FAIL_SQLSTATE, ""));
	assert_true(matches("sqlstate:23*", PR_FAIL_SQLSTATE, "23505"));
	assert_true(matches("sqlstate:23505", PR_FAIL_SQLSTATE, "23505"));
	assert_false(matches("sqlstate:23505", PR_FAIL_SQLSTATE, "2350"));
	assert_false(matches("sqlstate:23505", PR_FAIL_SQLSTATE, "235051"));
	assert_false(matches("sqlstate:23*", PR_FAIL_REPLY, "23505"));
	assert_true(matches("http:5xx", PR_FAIL_HTTP, "503"));
	assert_true(matches("http:50x", PR_FAIL_HTTP, "503"));
	assert_false(matches("http:5xx", PR_FAIL_HTTP, "404"));
	assert_false(matches("http:5xx", PR_FAIL_HTTP, "50"));
	assert_false(matches("http:xxx", PR_FAIL_HTTP, "tls"));
	/* x is a digit in HTTP's codes only. */
	assert_false(matches("reply:x", PR_FAIL_REPLY, "1"));
	assert_true(matches("reply:exists", PR_FAIL_REPLY, "exists"));
	assert_true(matches("exit:signal:*", PR_FAIL_EXIT, "signal:11"));
	assert_false(matches("exit:1", PR_FAIL_EXIT, "11"));
	assert_true(matches("crash:*", PR_FAIL_CRASH, ""));
}

static void test_problems(void **state)
{
	static const struct {
		const char *match, *says; /* NULL: fine */
	} rows[] = {
		{ "*", NULL },
		{ "sqlstate:23505", NULL },
		{ "sqlstate:23*", NULL },
		{ "sqlstate:*", NULL },
		{ "sqlstate", NULL },
		{ "http:5xx", NULL },
		{ "http:503", NULL },
		{ "http:4*", NULL },
		{ "http:connect", NULL },
		{ "exit:*", NULL },
		{ "exit:255", NULL },
		{ "exit:signal:9", NULL },
		{ "exit:signal:*", NULL },
		{ "reply:busy", NULL },
		{ "reply:order.*", NULL },
		{ "decode:id", NULL },
		{ "decode:*", NULL },
		{ "timeout", NULL },
		{ "crash:*", NULL },
		{ "sqlstat:23505", "did you mean \"sqlstate:" },
		{ "timeuot", "did you mean \"timeout\"" },
		{ "https:500", "did you mean \"http:" },
		{ "crashed", "did you mean \"crash\"" },
		{ "23505", "names no class" },
		{ "503", "names no class" },
		{ "", "names no class" },
		{ ":23505", "names no class" },
		{ "**", "names no class" },
		{ "sqlstate:", "five characters" },
		{ "sqlstate:2350", "five characters" },
		{ "sqlstate:235055", "five characters" },
		{ "sqlstate:23505*", "five characters" },
		{ "sqlstate:40p01", "capital letters" },
		{ "sqlstate:2*5", "capital letters" },
		{ "http:5", "three digits" },
		{ "http:5000", "three digits" },
		{ "http:503*", "three digits" },
		{ "http:5XX", "three digits" },
		{ "http:conect", "did you mean \"http:connect\"" },
		{ "exit:256", "0 to 255" },
		{ "exit:-1", "0 to 255" },
		{ "exit:", "0 to 255" },
		{ "exit:signal:", "0 to 255" },
		{ "exit:SIGKILL", "0 to 255" },
		{ "reply:", "letters, digits" },
		{ "reply:a b", "letters, digits" },
		{ "reply:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "31 characters" },
		{ "decode:ids", "did you mean \"decode:id\"" },
		{ "decode:xyzzy", "id, altered or payload" },
		{ "timeout:5", "have no code" },
	};
	const char *problem;

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++) {
		problem = pr_match_problem(rows[i].match);
		if (!rows[i].says != !problem)
			fail_msg("%s: %s", rows[i].match, problem ? problem : "accepted");
		if (problem && !strstr(problem, rows[i].says))
			fail_msg("%s: %s", rows[i].match, problem);
	}
}

static void test_words(void **state)
{
	const char *code;

	(void)state;
	assert_int_equal(pr_fail_class_parse("exit:signal:9", &code), PR_FAIL_EXIT);
	assert_string_equal(code, "signal:9");
	assert_int_equal(pr_fail_class_parse("timeout", &code), PR_FAIL_TIMEOUT);
	assert_string_equal(code, "");
	assert_int_equal(pr_fail_class_parse("time", &code), PR_FAIL_NONE);
	assert_int_equal(pr_fail_class_parse("", &code), PR_FAIL_NONE);
	for (int i = PR_FAIL_SQLSTATE; i <= PR_FAIL_CRASH; i++)
		assert_int_equal(pr_fail_class_parse(pr_fail_class_str((enum pr_fail_class)i), &code), i);
	assert_string_equal(pr_fail_class_str(PR_FAIL_NONE), "");
	assert_string_equal(pr_policy_str(PR_POLICY_STOP), "stop");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_default_rules_are_sound),
		cmocka_unit_test(test_first_match_wins),
		cmocka_unit_test(test_patterns),
		cmocka_unit_test(test_problems),
		cmocka_unit_test(test_words),
	};

	(void)alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
