/* tests/unit/shape_test.c -- places, kinds and counts of payloads; what looks like a person; maps and bounds.
 */
#include "lib/project.h"
#include "lib/shape.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(void *ctx, const struct pr_shape_path *p)
{
	struct pr_buf *b = ctx;

	pr_buf_printf(b, "%s ", p->path);
	pr_shape_put_kinds(b, p->kinds, "|");
	pr_buf_printf(b, " %d", (int)p->seen);
	if (p->required)
		pr_buf_puts(b, " required");
	if (p->collapsed)
		pr_buf_puts(b, " collapsed");
	if (p->sample)
		pr_buf_printf(b, " %s", p->sample);
	if (p->pii) {
		pr_buf_puts(b, " (");
		pr_shape_put_pii(b, p->pii);
		pr_buf_puts(b, ")");
	}
	pr_buf_puts(b, "\n");
}

static int see(struct pr_shape *s, const char *text)
{
	size_t len = strlen(text);
	char *exact = malloc(len ? len : 1);
	int rc;

	memcpy(exact, text, len);
	rc = pr_shape_see(s, exact, len, 1);
	free(exact);
	return rc;
}

static void must_tell(struct pr_shape *s, const char *expected)
{
	struct pr_buf b = { 0 };

	pr_shape_tell(s, put, &b);
	if (strcmp(b.s ? b.s : "", expected) != 0)
		fail_msg("told\n%snot\n%s", b.s, expected);
	pr_buf_free(&b);
}

static void learns(void **state)
{
	struct pr_shape *s = pr_shape_new(100, NULL);

	(void)state;
	assert_int_equal(
		see(s, "{\"id\":1,\"u\":{\"name\":\"Jo\"},\"i\":[{\"q\":1.5},{\"q\":2}],\"e\":[]}"), 1);
	assert_int_equal(see(s, "{\"id\":2,\"u\":{\"name\":\"Al\"},\"i\":[],\"e\":[]}"), 0);
	assert_true(pr_shape_fresh(s));
	must_tell(s,
		"payload object 2\npayload.id integer 2 required 1\npayload.u object 2 required\n"
		"payload.u.name string 2 required \"Jo\"\npayload.i array 2 required\npayload.i[] object 2\n"
		"payload.i[].q integer|number 2 required 1.5\npayload.e array 2 required\n");
	assert_false(pr_shape_fresh(s));
	must_tell(s, "");
	/* Another order, a new kind, a new place, what is missing. */
	assert_int_equal(see(s, "{\"e\":[null], \"id\" : \"3\" }"), 1);
	must_tell(s, "payload object 1\npayload.id integer|string 1 required 1\npayload.e array 1 required\n"
		     "payload.e[] null 1 null\n");
	assert_int_equal(see(s, "{\"e\":[null],\"id\":4,\"a b\":true}"), 1);
	must_tell(s, "payload object 1\npayload.id integer|string 1 required 1\npayload.e array 1 required\n"
		     "payload.e[] null 1 null\npayload[\"a b\"] boolean 1 true\n");
	assert_int_equal(pr_shape_see(s, NULL, 0, 5), 1);
	must_tell(s, "payload null|object 1\n");
	pr_shape_free(s);
}

static void refuses_what_is_no_json(void **state)
{
	static const char *const texts[] = { "", "{", "{\"a\":", "{\"a\":1", "[1,", "{\"a\":1}x",
		"{\"a\":01}", "nul", "{\"a\":\"\\u0000\"}", "\"\xff\"", "{a:1}", "[1 2]" };
	struct pr_shape *s = pr_shape_new(100, NULL);

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
		if (see(s, texts[i]) != -1)
			fail_msg("%s was taken", texts[i]);
	pr_shape_free(s);
}

static void finds_people(void **state)
{
	static const struct {
		const char *text;
		unsigned pii;
	} texts[] = {
		{ "jo@example.com", PR_PII_EMAIL },
		{ "jo@example", 0 },
		{ "@example.com", 0 },
		{ "a b@example.com", 0 },
		{ "+49 30 1234567", PR_PII_PHONE },
		{ "12345678", 0 },
		{ "+0123456789", 0 },
		{ "4111111111111111", PR_PII_CARD },
		{ "4111 1111 1111 1111", PR_PII_CARD },
		{ "4111111111111112", 0 },
		{ "DE89 3704 0044 0532 0130 00", PR_PII_IBAN },
		{ "DE89370400440532013001", 0 },
		{ "10.0.0.1", PR_PII_IP },
		{ "2001:db8::1", PR_PII_IP },
		{ "10.0.0.256", 0 },
		{ "8c1f2d1e-8b1c-4e1f-9a44-1f2b3c4d5e6f", 0 },
		{ "2026-01-31T09:00:00Z", 0 },
		{ "", 0 },
	};
	static const char *const names[] = { "email", "firstName", "first_name", "LAST-NAME", "iban", "cvv" };
	static const char *const others[] = { "id", "name", "emails_sent", "cardinal", "skip", "" };

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
		if (pr_pii_of_text(texts[i].text, strlen(texts[i].text)) != texts[i].pii)
			fail_msg("%s: %u", texts[i].text,
				pr_pii_of_text(texts[i].text, strlen(texts[i].text)));
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!pr_pii_of_name(names[i], strlen(names[i])))
			fail_msg("%s is not found", names[i]);
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		if (pr_pii_of_name(others[i], strlen(others[i])))
			fail_msg("%s is found", others[i]);
}

static void masks_examples(void **state)
{
	struct pr_shape *s = pr_shape_new(100, NULL);

	(void)state;
	(void)see(s,
		"{\"contact\":\"j\\u00f6@ex.com\",\"card\":4111111111111111,\"street\":\"Weg 7\",\"n\":7}");
	must_tell(s, "payload object 1\npayload.contact string 1 required \"xx@xx.xxx\" (email)\n"
		     "payload.card integer 1 required 9999999999999999 (card,key)\n"
		     "payload.street string 1 required \"xxx 9\" (key)\npayload.n integer 1 required 7\n");
	pr_shape_free(s);
}

/* One in ten numbers passes Luhn's sum: a few of them are no cards. */
static void most_decide(void **state)
{
	struct pr_shape *s = pr_shape_new(100, NULL);
	char text[64];

	(void)state;
	for (int i = 0; i < 90; i++) {
		(void)snprintf(text, sizeof(text), "{\"ref\":\"4%015d\"}", i * 7919);
		(void)see(s, text);
	}
	must_tell(s, "payload object 90\npayload.ref string 90 required \"4000000000000000\"\n");
	pr_shape_free(s);
}

static void maps(void **state)
{
	struct pr_shape *s = pr_shape_new(400, NULL);
	struct pr_buf b = { 0 };
	char text[64];

	(void)state;
	(void)see(s, "{\"by\":{\"8c1f2d1e-8b1c-4e1f-9a44-1f2b3c4d5e6f\":{\"n\":1},\"42\":{\"n\":2}}}");
	must_tell(s, "payload object 1\npayload.by object 1 required\npayload.by.* object 2\n"
		     "payload.by.*.n integer 2 required 1\n");
	for (int i = 0; i < 250; i++) {
		(void)snprintf(text, sizeof(text), "{\"m\":{\"x%d\":1}}", i);
		(void)see(s, text);
	}
	pr_shape_tell(s, put, &b);
	assert_non_null(strstr(b.s, "payload.m.x249 integer 1 1\n"));
	assert_int_equal(see(s, "{\"m\":{\"x9999\":1}}"), 1);
	must_tell(s, "payload object 1\npayload.m object 1 collapsed\npayload.m.* integer 1 1\n");
	assert_int_equal(see(s, "{\"m\":{\"x3\":1}}"), 0);
	assert_false(pr_shape_overflow(s));
	pr_shape_free(s);
	pr_buf_free(&b);
}

/* Customers' addresses were places: in the database, in the log, in what is printed for everybody. */
static void names_of_people_are_data(void **state)
{
	struct pr_shape *s = pr_shape_new(100, NULL);

	(void)state;
	(void)see(s, "{\"byMail\":{\"ann@example.com\":{\"n\":1},\"+49 30 1234567\":{\"n\":2}},"
		     "\"byIp\":{\"10.0.0.1\":1,\"2001:db8::1\":2}}");
	must_tell(s, "payload object 1\npayload.byMail object 1 required\npayload.byMail.* object 2\n"
		     "payload.byMail.*.n integer 2 required 1\npayload.byIp object 1 "
		     "required\npayload.byIp.* integer 2 1\n");
	pr_shape_free(s);
}

static void must_know(const struct pr_project_rule *rules, size_t n, const char *text, const char *expected)
{
	struct pr_project *p = NULL;
	struct pr_err err = { 0 };
	struct pr_shape *s;
	size_t bad;

	if (pr_project_new(rules, n, "k", 1, &p, &bad, &err) < 0)
		fail_msg("rule %zu: %s", bad, err.text);
	s = pr_shape_new(100, p);
	assert_int_equal(see(s, text), 1);
	must_tell(s, expected);
	pr_shape_free(s);
	pr_project_free(p);
}

/* What does not leave is not told of either, by its name at most. */
static void what_rules_hide_is_not_learnt(void **state)
{
	static const struct pr_project_rule drop[] = { { "payload.by", PR_PROJECT_DROP, NULL },
		{ "payload.who", PR_PROJECT_HASH, NULL }, { "payload.l[].x", PR_PROJECT_REDACT, NULL } };
	static const struct pr_project_rule keep[] = { { "payload.u.id", PR_PROJECT_KEEP, NULL } };

	(void)state;
	must_know(drop, 3,
		"{\"by\":{\"Ann\":{\"n\":1}},\"who\":[{\"Jo\":1}],\"l\":[{\"x\":{\"Al\":1},\"y\":{\"z\":2}}]"
		"}",
		"payload object 1\npayload.by object 1 required\npayload.who array 1 required\n"
		"payload.l array 1 required\npayload.l[] object 1\npayload.l[].x object 1 required\n"
		"payload.l[].y object 1 required\npayload.l[].y.z integer 1 required 2\n");
	must_know(drop, 3, "{\"l\":{\"Ann\":1}}", "payload object 1\npayload.l object 1 required\n");
	must_know(keep, 1, "{\"u\":[{\"id\":{\"a\":1},\"by\":{\"Ann\":1}}],\"o\":{\"Jo\":1}}",
		"payload object 1\npayload.u array 1 required\npayload.u[] object 1\npayload.u[].id object 1 "
		"required\n"
		"payload.u[].id.a integer 1 required 1\npayload.u[].by object 1 required\npayload.o object 1 "
		"required\n");
}

static void bounds(void **state)
{
	struct pr_shape *s = pr_shape_new(10, NULL);
	struct pr_buf b = { 0 };

	(void)state;
	for (int i = 0; i < 600; i++)
		pr_buf_puts(&b, i < 500 ? "[" : "");
	for (int i = 0; i < 500; i++)
		pr_buf_puts(&b, "]");
	assert_int_equal(see(s, b.s), 1);
	assert_true(pr_shape_overflow(s));
	pr_shape_free(s);
	s = pr_shape_new(1000, NULL);
	assert_int_equal(see(s, b.s), 1);
	assert_false(pr_shape_overflow(s));
	b.len = 0;
	pr_shape_all(s, put, &b);
	assert_null(strstr(b.s, "[][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][]"));
	pr_shape_free(s);
	pr_buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(learns),
		cmocka_unit_test(refuses_what_is_no_json),
		cmocka_unit_test(finds_people),
		cmocka_unit_test(masks_examples),
		cmocka_unit_test(most_decide),
		cmocka_unit_test(maps),
		cmocka_unit_test(names_of_people_are_data),
		cmocka_unit_test(what_rules_hide_is_not_learnt),
		cmocka_unit_test(bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
