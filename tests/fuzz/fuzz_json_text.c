/* tests/fuzz/fuzz_json_text.c -- libFuzzer target of pr_json_text and pr_utf8_text. Any bytes: no crash, no
 * read outside; and what pr_json_text takes is text, alone and with space around it, and as an object's value
 * pr_json_flat reads it too. */
#include "lib/json.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

static int count(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	(void)value_len;
	require(name && name_len == 1 && value, "a member without name or value");
	(void)is_null;
	++*(int *)ctx;
	return 0;
}

static int wrapped(const char *before, const char *text, size_t len, const char *after, struct pr_buf *b)
{
	b->len = 0;
	pr_buf_puts(b, before);
	pr_buf_put(b, text, len);
	pr_buf_puts(b, after);
	return pr_json_text(b->s, b->len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pr_buf b = { 0 }, scratch = { 0 };
	char *text = malloc(size ? size : 1); /* exact, so that the sanitizer sees the end */
	int n = 0;

	if (!text)
		return 0;
	if (size > 0)
		memcpy(text, data, size);
	if (pr_json_text(text, size)) {
		require(pr_utf8_text(text, size), "JSON that is no text");
		require(wrapped(" ", text, size, "\n", &b), "space around it matters");
		/* One level deeper it may be too deep. */
		if (wrapped("{\"k\":", text, size, "}", &b)) {
			require(pr_json_flat(b.s, b.len, &scratch, count, &n) == 0,
				"pr_json_flat refuses it");
			require(n == 1, "it is not one value");
		}
	}
	pr_buf_free(&b);
	pr_buf_free(&scratch);
	free(text);
	return 0;
}
