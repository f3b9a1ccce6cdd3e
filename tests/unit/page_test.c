/* tests/unit/page_test.c -- lib/page: whatever a status says is text and never markup, a program that does
 * not answer is never "ok", the worst is named first, and the page stays small however many partitions there
 * are. */
#include "lib/page.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cJSON *parsed(const char *text)
{
	cJSON *o = cJSON_Parse(text);

	assert_non_null(o);
	return o;
}

static struct pr_response shown(const struct pr_part *parts, size_t n)
{
	struct pr_response resp = { 0 };

	pr_page_show(&resp, &(struct pr_page){ .parts = parts, .n = n });
	assert_int_equal(strlen(resp.body), resp.body_len);
	assert_string_equal(resp.content_type, "text/html; charset=utf-8");
	return resp;
}

#define EVIL "<script>alert(1)</script>\\\"'&"

/* A sentence may quote what came from outside; another program may be anything. */
static void test_text_stays_text(void **state)
{
	cJSON *o = parsed(
		"{\"name\":\"" EVIL "\",\"state\":\"" EVIL "\",\"sentence\":\"" EVIL "\",\"hint\":\"" EVIL
		"\",\"version\":\"" EVIL "\",\"environment\":{\"name\":\"" EVIL "\",\"colour\":\"" EVIL
		"\"},\"topics\":[{\"topic\":\"" EVIL "\",\"published\":1}],\"waiting\":[{\"topic\":\"" EVIL
		"\",\"events\":2,\"reason\":\"" EVIL "\"}],\"problems\":[{\"severity\":\"" EVIL
		"\",\"what\":\"" EVIL "\",\"text\":\"" EVIL "x\",\"hint\":\"" EVIL "\"}],\"trend\":\"" EVIL
		"\"}");
	struct pr_response resp =
		shown(&(struct pr_part){ .relay = 1, .where = "http://x/\"><b>", .status = o }, 1);

	(void)state;
	assert_null(strstr(resp.body, "<script>alert"));
	assert_null(strstr(resp.body, "\"'&"));
	assert_null(strstr(resp.body, "\"><b>/"));
	assert_non_null(strstr(resp.body, "&#60;script&#62;alert(1)&#60;/script&#62;&#34;&#39;&#38;"));
	assert_non_null(strstr(resp.body, "data-state=\"warn\"")); /* a word that is none of ours */
	free(resp.body);
	cJSON_Delete(o);
}

/* Nothing of what should be there is: numbers are not known, nothing is invented, nothing is read that is
 * not. */
static void test_nothing_is_known(void **state)
{
	cJSON *o = parsed("{\"state\":\"ok\",\"partitions\":[1,null,{}],\"waiting\":7,\"problems\":{},"
			  "\"handled\":[],"
			  "\"lag_seconds\":\"1\",\"postgres\":null,\"kafka\":[]}"),
	      *h = parsed("{\"series\":{\"lag_seconds\":[null,\"x\",{}],\"lag_events\":{}}}");
	struct pr_part parts[] = { { .relay = 1, .status = o, .history = h }, { .status = o, .history = o } };
	struct pr_response resp = shown(parts, 2);

	(void)state;
	assert_non_null(strstr(resp.body, "not known"));
	assert_non_null(strstr(resp.body, "pending not known"));
	assert_null(strstr(resp.body, "nan"));
	free(resp.body);
	resp = shown(NULL, 0);
	assert_non_null(strstr(resp.body, "data-state=\"away\""));
	free(resp.body);
	cJSON_Delete(o);
	cJSON_Delete(h);
}

static void test_the_worst_is_first(void **state)
{
	cJSON *well = parsed("{\"name\":\"a\",\"state\":\"ok\",\"sentence\":\"everything flows\"}"),
	      *ill = parsed("{\"group\":\"b\",\"state\":\"warn\",\"sentence\":\"one is "
			    "parked\",\"hint\":\"do this\"}");
	struct pr_part parts[] = { { .relay = 1, .status = well }, { .status = ill },
		{ .where = "http://h:1", .why = "gone" } };
	struct pr_response resp = shown(parts, 2);

	(void)state;
	assert_non_null(
		strstr(resp.body, "b: one is parked<span class=\"do\">What to do: <code>do this</code>"));
	free(resp.body);
	resp = shown(parts, 3);
	assert_non_null(strstr(resp.body, "data-state=\"away\""));
	assert_non_null(strstr(resp.body, "<p id=\"sentence\">http://h:1: gone"));
	assert_non_null(strstr(resp.body, "<b>b (warn)</b>: one is parked"));
	free(resp.body);
	resp = shown(parts, 1);
	assert_non_null(strstr(resp.body, "<h1 id=\"state\">Outbox a: ok</h1>"));
	free(resp.body);
	cJSON_Delete(well);
	cJSON_Delete(ill);
}

/* A pair that is well is "ok", whichever of the two is named first; one that only stands by is not. */
static void test_a_standby_beside_its_leader(void **state)
{
	cJSON *leader = parsed("{\"name\":\"a\",\"state\":\"ok\",\"leader\":true,\"sentence\":\"flows\"}"),
	      *spare = parsed(
		      "{\"name\":\"a\",\"state\":\"standby\",\"leader\":false,\"sentence\":\"waits\"}"),
	      *lone = parsed(
		      "{\"name\":\"b\",\"state\":\"standby\",\"leader\":false,\"sentence\":\"waits\"}");
	struct pr_part parts[] = { { .relay = 1, .status = spare }, { .relay = 1, .status = leader },
		{ .relay = 1, .status = lone } };
	struct pr_response resp = shown(parts, 2);

	(void)state;
	assert_non_null(strstr(resp.body, "data-state=\"ok\""));
	assert_non_null(strstr(resp.body, "everything flows through 2 programs"));
	assert_non_null(strstr(resp.body, "Relay: ok"));
	assert_non_null(strstr(resp.body, "<small class=\"word s-standby\">standby</small>"));
	free(resp.body);
	resp = shown(parts, 3);
	assert_non_null(strstr(resp.body, "data-state=\"standby\""));
	free(resp.body);
	resp = shown(parts, 1);
	assert_non_null(strstr(resp.body, "data-state=\"standby\""));
	free(resp.body);
	cJSON_Delete(leader);
	cJSON_Delete(spare);
	cJSON_Delete(lone);
}

/* The latest of a thousand partitions are shown, and how many more there are. */
static void test_a_thousand_partitions(void **state)
{
	struct pr_buf b = { 0 };
	struct pr_response resp;
	cJSON *o;

	(void)state;
	pr_buf_puts(&b, "{\"group\":\"g\",\"state\":\"ok\",\"sentence\":\"\",\"partitions\":[");
	for (int i = 0; i < 1000; i++)
		pr_buf_printf(&b,
			"%s{\"topic\":\"a.topic.with.a.name\",\"partition\":%d,\"lag_seconds\":%d,\"lag_"
			"events\":1,"
			"\"next_offset\":123456789,\"end_offset\":123456789,\"lanes\":4,\"trend\":"
			"\"growing\"}",
			i ? "," : "", i, i == 777 ? 5000 : i);
	pr_buf_puts(&b, "]}");
	o = parsed(b.s);
	resp = shown(&(struct pr_part){ .status = o }, 1);
	assert_true(resp.body_len < 100000);
	assert_non_null(strstr(resp.body, "900 more"));
	assert_non_null(strstr(resp.body, "<td class=\"num\">777</td><td class=\"num\">1 h 23 min</td>"));
	assert_null(strstr(resp.body, "<td class=\"num\">776</td>"));
	free(resp.body);
	cJSON_Delete(o);
	pr_buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_text_stays_text),
		cmocka_unit_test(test_nothing_is_known),
		cmocka_unit_test(test_the_worst_is_first),
		cmocka_unit_test(test_a_standby_beside_its_leader),
		cmocka_unit_test(test_a_thousand_partitions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
