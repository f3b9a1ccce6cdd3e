/* tests/fuzz/fuzz_page.c -- libFuzzer target of lib/page and of a request's target: any JSON as the status
 * and the hour of a program, any bytes behind "GET ". No crash, no read outside; nothing of it becomes
 * markup. */
#include "lib/http_inner.h"
#include "lib/page.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

/* What we write of it holds these tags in this order, whatever else stands between them. */
static void is_one_document(const char *html)
{
	const char *end = strstr(html, "</script></body></html>\n");

	require(strncmp(html, "<!doctype html>\n", 16) == 0, "it begins otherwise");
	require(end && strlen(end) == 24, "it does not end there");
	require(!strstr(html, "<b onx"), "markup of theirs");
}

static void shown(const char *text, size_t size)
{
	cJSON *o = cJSON_ParseWithLength(text, size);
	struct pr_part parts[] = { { .relay = 1, .status = o, .history = o },
		{ .where = "there", .status = o } };
	struct pr_response resp = { 0 };

	if (!o)
		return;
	pr_page_show(&resp, &(struct pr_page){ .parts = parts, .n = 2 });
	require(strlen(resp.body) == resp.body_len, "a NUL in the page");
	is_one_document(resp.body);
	free(resp.body);
	cJSON_Delete(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	if (!text)
		abort();
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	shown(text, size);
	if (http_target_ok(text))
		require(text[0] == '/' && !strpbrk(text, " #\n\r\t"), "a target that is none");
	free(text);
	return 0;
}
