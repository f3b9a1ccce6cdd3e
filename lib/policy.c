/* lib/policy.c -- class and code of a failure -> the rule that decides. Pure: the same question has the
 * same answer in the consumer, in --check and in `postrider explain-error`. Refuses patterns that could
 * never match, so that a typing error is found at start and not when the first message is buried. */
#include "lib/policy.h"

#include "lib/clock.h"
#include "lib/conf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOUR (3600 * PR_SEC)

/* The one question behind every line: would another message have fared better? When not, it is nothing about
 * this message, and burying it would bury all that follow: the breaker waits. When yes, waiting does not help
 * and the rest of the partition must not wait for it: dead letter. When the same message may fare better in a
 * moment: retry. A dead letter keeps all it takes to be tried again; so where it is not clear, that is it. */
const struct pr_rule pr_default_rules[] = {
	/* Deadlock and serialization: whoever lost goes again, at once. A hundred tries are a minute and a
	 * half: past that it is no accident of timing but a handler that always loses, and the key's others
	 * should not wait for it. */
	{ "sqlstate:40*", PR_POLICY_RETRY, 100, 10 * PR_MS, PR_SEC },
	/* A lock that somebody holds (NOWAIT, lock_timeout), be it of one row or a table under ALTER: one
	 * lane waits here, the others go on, which the breaker would not let them. Eight minutes in all. */
	{ "sqlstate:55P03", PR_POLICY_RETRY, 100, 50 * PR_MS, 5 * PR_SEC },
	/* Cancelled by somebody; our own deadline is class timeout, and decided alike. */
	{ "sqlstate:57014", PR_POLICY_RETRY, 5, PR_SEC, 10 * PR_SEC },
	/* The snapshot was too old; the next one is not. */
	{ "sqlstate:72000", PR_POLICY_RETRY, 5, 100 * PR_MS, 2 * PR_SEC },
	/* Postgres, or what a function of it reached over the network, is away, full, shutting down, has
	 * become a standby, or cannot read its disk: the next message would find the same. */
	{ "sqlstate:08*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:53*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:57P*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:58*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:25006", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:HV00N", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:XX001", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:XX002", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	/* A function, table, schema, database or right that is not there: a deployment is half done. The same
	 * for a function that ends the transaction it runs in. Mended by people, then it goes on by itself.
	 */
	{ "sqlstate:42*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:3F*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:3D*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:28*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "sqlstate:2D*", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	/* Data exceptions (22), constraints (23), what the function itself raises (P0), and the rest: about
	 * this message, and the same next time. */
	{ "sqlstate:*", PR_POLICY_DEAD_LETTER, 1, 0, 0 },

	/* No answer, or one that says "not now": a dead downstream must not bury good messages. */
	{ "http:connect", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:dns", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:tls", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:5xx", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:408", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:425", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	{ "http:429", PR_POLICY_BREAKER, 0, PR_SEC, 30 * PR_SEC },
	/* The other 4xx refuse this request; a 3xx is not followed, and 1xx is no answer to us. */
	{ "http:*", PR_POLICY_DEAD_LETTER, 1, 0, 0 },

	/* A subprocess died: a new one is started, and may be luckier; if not, it was the message. */
	{ "exit:*", PR_POLICY_RETRY, 5, 500 * PR_MS, 10 * PR_SEC },

	/* The handler said so itself. */
	{ "reply:retry", PR_POLICY_RETRY, 5, 100 * PR_MS, 5 * PR_SEC },
	{ "reply:*", PR_POLICY_DEAD_LETTER, 1, 0, 0 },

	/* No id, the id of another message, a payload that is not what it should be: the same next time. */
	{ "decode:*", PR_POLICY_DEAD_LETTER, 1, 0, 0 },

	/* A lock or a slow moment, or a message that hangs: five tries of handler.timeout hold up one lane.
	 */
	{ "timeout", PR_POLICY_RETRY, 5, PR_SEC, 10 * PR_SEC },

	/* A bug, of the handler or below: neither the message nor the order of its key shall be lost to it.
	 * Seldom, for each try may take the process, or every session of the database, along. */
	{ "crash", PR_POLICY_PARK, 0, HOUR, 24 * HOUR },

	{ "*", PR_POLICY_DEAD_LETTER, 1, 0, 0 },
	{ 0 },
};

#define MISSING                                                                                              \
	"names no class: sqlstate:, http:, exit:, reply:, decode:, timeout, crash, or * for everything"
#define MEANT(word) "did you mean \"" word "\"?"

/* A word and what to say to somebody who wrote nearly it. */
struct word {
	const char *name, *meant;
};

static const struct word classes[] = {
	[PR_FAIL_NONE] = { "", MISSING },
	[PR_FAIL_SQLSTATE] = { "sqlstate", MEANT("sqlstate:...") },
	[PR_FAIL_HTTP] = { "http", MEANT("http:...") },
	[PR_FAIL_EXIT] = { "exit", MEANT("exit:...") },
	[PR_FAIL_REPLY] = { "reply", MEANT("reply:...") },
	[PR_FAIL_DECODE] = { "decode", MEANT("decode:...") },
	[PR_FAIL_TIMEOUT] = { "timeout", MEANT("timeout") },
	[PR_FAIL_CRASH] = { "crash", MEANT("crash") },
	{ NULL, NULL },
};

#define NCLASSES (sizeof(classes) / sizeof(classes[0]) - 1)

static const char *const policies[] = { "retry", "breaker", "park", "dead_letter", "ignore", "stop" };

const char *pr_fail_class_str(enum pr_fail_class cls)
{
	return (size_t)cls < NCLASSES ? classes[cls].name : "";
}

const char *pr_policy_str(enum pr_policy policy)
{
	return (size_t)policy < sizeof(policies) / sizeof(policies[0]) ? policies[policy] : "";
}

enum pr_fail_class pr_fail_class_parse(const char *text, const char **ret_code)
{
	size_t n = strcspn(text, ":");

	*ret_code = text[n] ? text + n + 1 : text + n;
	for (size_t i = PR_FAIL_NONE + 1; i < NCLASSES; i++)
		if (strlen(classes[i].name) == n && memcmp(classes[i].name, text, n) == 0)
			return (enum pr_fail_class)i;
	return PR_FAIL_NONE;
}

/* ---------------------------------------------------------------- matching */

static int is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* x stands for a digit in HTTP statuses only: elsewhere it is a letter like any other. */
static int code_matches(enum pr_fail_class cls, const char *pattern, const char *code)
{
	for (; *pattern; pattern++, code++) {
		if (*pattern == '*' && pattern[1] == '\0')
			return 1;
		if (cls == PR_FAIL_HTTP && *pattern == 'x' && is_digit(*code))
			continue;
		if (*pattern != *code)
			return 0;
	}
	return *code == '\0';
}

static int rule_matches(const struct pr_rule *rule, enum pr_fail_class cls, const char *code)
{
	const char *pattern;

	if (strcmp(rule->match, "*") == 0)
		return 1;
	if (pr_fail_class_parse(rule->match, &pattern) != cls)
		return 0;
	/* "http" is "http:*". */
	return *pattern == '\0' || code_matches(cls, pattern, code);
}

const struct pr_rule *pr_policy_of(
	const struct pr_rule *rules, size_t n, enum pr_fail_class cls, const char *code)
{
	const struct pr_rule *rule = pr_default_rules;

	for (size_t i = 0; i < n; i++)
		if (rule_matches(&rules[i], cls, code))
			return &rules[i];
	while (!rule_matches(rule, cls, code)) /* the last one matches everything */
		rule++;
	return rule;
}

/* ---------------------------------------------------------------- checking patterns */

static const struct word http_words[] = { { "connect", MEANT("http:connect") }, { "dns", MEANT("http:dns") },
	{ "tls", MEANT("http:tls") }, { NULL, NULL } };
static const struct word decode_words[] = { { "id", MEANT("decode:id") },
	{ "altered", MEANT("decode:altered") }, { "payload", MEANT("decode:payload") }, { NULL, NULL } };

static int is_word(const struct word *words, const char *s)
{
	for (; words->name; words++)
		if (strcmp(words->name, s) == 0)
			return 1;
	return 0;
}

static const char *meant(const struct word *words, const char *s, const char *otherwise)
{
	const char *names[NCLASSES + 1] = { NULL }, *near;
	size_t n = 0;

	for (; words[n].name && n < NCLASSES; n++)
		names[n] = words[n].name;
	near = pr_nearest(s, names);
	for (size_t i = 0; near && i < n; i++)
		if (names[i] == near)
			return words[i].meant;
	return otherwise;
}

/* Length of the code without the star at its end. */
static size_t stem(const char *code)
{
	size_t n = strlen(code);

	return n > 0 && code[n - 1] == '*' ? n - 1 : n;
}

static int all_of(const char *s, size_t n, const char *set)
{
	return strspn(s, set) >= n;
}

static const char *sqlstate_problem(const char *code)
{
	size_t n = stem(code);

	if (!all_of(code, n, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
		return "a SQLSTATE is digits and capital letters, as in sqlstate:23505 or sqlstate:23*";
	if (code[n] == '*' ? n > 4 : n != 5)
		return "a SQLSTATE is five characters long; sqlstate:23* matches all that begin with 23";
	return NULL;
}

static const char *http_problem(const char *code)
{
	static const char shape[] = "an HTTP code is three digits (x for any), or connect, dns or tls, as in "
				    "http:503 or http:5xx";
	size_t n = stem(code);

	if (is_word(http_words, code))
		return NULL;
	if (!all_of(code, n, "0123456789x"))
		return meant(http_words, code, shape);
	return code[n] == '*' ? (n > 2 ? shape : NULL) : (n == 3 ? NULL : shape);
}

static const char *exit_problem(const char *code)
{
	static const char shape[] = "an exit code is 0 to 255, or signal:N, as in exit:1 or exit:signal:9";
	const char *digits = strncmp(code, "signal:", 7) == 0 ? code + 7 : code;
	size_t n = stem(digits);

	if (!all_of(digits, n, "0123456789") || n > 3)
		return shape;
	if (digits[n] == '*')
		return NULL;
	return n > 0 && strtol(digits, NULL, 10) <= 255 ? NULL : shape;
}

static const char *reply_problem(const char *code)
{
	size_t n = stem(code);

	if (n > 31)
		return "a reply's code is 31 characters long at most";
	if (!all_of(code, n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") ||
		(n == 0 && code[0] != '*'))
		return "a reply's code is letters, digits, \"_\", \".\" and \"-\", as in reply:busy";
	return NULL;
}

static const char *decode_problem(const char *code)
{
	if (strcmp(code, "*") == 0 || is_word(decode_words, code))
		return NULL;
	return meant(decode_words, code, "a decode code is id, altered or payload");
}

static const char *class_problem(const char *match)
{
	char name[16];

	(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(match, ":"), match);
	return meant(classes + 1, name, MISSING);
}

const char *pr_match_problem(const char *match)
{
	const char *code;
	enum pr_fail_class cls = pr_fail_class_parse(match, &code);

	if (strcmp(match, "*") == 0)
		return NULL;
	if (cls == PR_FAIL_NONE)
		return class_problem(match);
	if (!strchr(match, ':'))
		return NULL;
	switch (cls) {
	case PR_FAIL_SQLSTATE:
		return sqlstate_problem(code);
	case PR_FAIL_HTTP:
		return http_problem(code);
	case PR_FAIL_EXIT:
		return exit_problem(code);
	case PR_FAIL_REPLY:
		return reply_problem(code);
	case PR_FAIL_DECODE:
		return decode_problem(code);
	default: /* timeout, crash */
		return strcmp(code, "*") == 0 ? NULL : "timeout and crash have no code";
	}
}
