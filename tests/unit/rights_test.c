/* tests/unit/rights_test.c -- words of the server -> the statement that mends it, ready to be run where all
 * of it is known, and nothing where it is not a right or an object that is missing. */
#include "lib/rights.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *code, *text, *login, *hint;
} rows[] = {
	{ "42501", "permission denied for schema seat", "seat_app",
		"GRANT USAGE ON SCHEMA seat TO seat_app" },
	{ "42501", "permission denied for schema seat", NULL, "GRANT USAGE ON SCHEMA seat TO the login" },
	{ "42501", "permission denied for schema My \"S\"", "App-1",
		"GRANT USAGE ON SCHEMA \"My \"\"S\"\"\" TO \"App-1\"" },
	{ "42501", "permission denied for schema outbox", "seat", "GRANT outbox_writer TO seat" },
	{ "42501", "permission denied for schema inbox", "seat", "GRANT inbox_consumer TO seat" },
	{ "42501", "permission denied for table inbox", "seat",
		"GRANT SELECT, INSERT, UPDATE, DELETE ON inbox TO seat, with the schema before the name" },
	{ "42501", "permission denied for sequence hold_id_seq", "seat",
		"GRANT USAGE ON SEQUENCE hold_id_seq TO seat, with the schema before the name" },
	{ "42501", "handler: permission denied for function price (a detail)", "seat",
		"GRANT EXECUTE ON FUNCTION price TO seat, with the schema before the name" },
	{ "42501", "permission denied for large object 7", "seat", "GRANT what is missing TO seat" },
	{ "42501", "keine Berechtigung", "seat", "GRANT what is missing TO seat" },
	{ "42501", "must be owner of table hold", "seat",
		"only its owner may do that: make the function SECURITY DEFINER of the owner, or do it as a "
		"migration" },
	{ "42883", "function price(integer) does not exist", "seat",
		"create the function, or correct its name, the types of its arguments or search_path" },
	{ "42P01", "relation \"hold\" does not exist", "seat",
		"create the table, or correct its name or search_path" },
	{ "23505", "permission denied for schema seat", "seat", "" },
	{ "", "", "seat", "" },
};

static void test_hints(void **state)
{
	char buf[400];

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		pr_rights_hint(rows[i].code, rows[i].text, rows[i].login, buf, sizeof(buf));
		assert_string_equal(buf, rows[i].hint);
	}
}

/* Names come from the server and may be anything: nothing is written past the end. */
static void test_long_names(void **state)
{
	char name[1000], text[1100], buf[200], small[8];

	(void)state;
	memset(name, '"', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	(void)snprintf(text, sizeof(text), "permission denied for table %s", name);
	pr_rights_hint("42501", text, name, buf, sizeof(buf));
	assert_true(strlen(buf) < sizeof(buf));
	assert_string_equal(pr_quote_ident("ABCDEFGHIJ", 10, small, sizeof(small)), "\"ABCD\"");
	assert_string_equal(pr_quote_ident("abcdefghij", 10, small, sizeof(small)), "abcdefg");
	assert_string_equal(pr_quote_ident("", 0, small, sizeof(small)), "\"\"");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_long_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
