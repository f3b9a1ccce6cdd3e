/* tests/fuzz/fuzz_json.c -- libFuzzer target of lib/json.c. Any bytes: no crash, no read
 * outside, and what was read and written again reads the same. */
#include "lib/json.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

/* Writes the members down as an object of strings, nulls and raw values. */
static int rewrite(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	struct pr_buf *out = ctx;

	require(name && value, "a member without name or value");
	/* Whether a value was a string is not told; as a string it must survive in any case. */
	pr_buf_puts(out, out->len > 1 ? "," : "");
	pr_buf_json(out, name, name_len);
	pr_buf_puts(out, " : ");
	if (is_null)
		pr_buf_puts(out, "null");
	else
		pr_buf_json(out, value, value_len);
	return 0;
}

static int rewrite_all(const char *text, size_t len, struct pr_buf *out)
{
	struct pr_buf scratch = { 0 };
	int rc;

	pr_buf_puts(out, "{");
	rc = pr_json_flat(text, len, &scratch, rewrite, out);
	pr_buf_puts(out, "}");
	pr_buf_free(&scratch);
	return rc;
}

static int only_value(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	require(name_len == 1 && *name == 'k' && !is_null, "the written member is another");
	pr_buf_put(ctx, value, value_len);
	return 0;
}

/* Any bytes become a JSON string, and that string reads back, the same if it is written again. */
static void check_string(const char *bytes, size_t len)
{
	struct pr_buf doc = { 0 }, again = { 0 }, scratch = { 0 }, value = { 0 };

	pr_buf_puts(&doc, "{\"k\":");
	pr_buf_json(&doc, bytes, len);
	pr_buf_puts(&doc, "}");
	require(pr_json_flat(doc.s, doc.len, &scratch, only_value, &value) == 0,
		"a written string is not read");
	pr_buf_puts(&again, "{\"k\":");
	pr_buf_json(&again, value.s, value.len);
	pr_buf_puts(&again, "}");
	require(again.len == doc.len && memcmp(again.s, doc.s, doc.len) == 0, "a string changes on its way");
	pr_buf_free(&doc);
	pr_buf_free(&again);
	pr_buf_free(&scratch);
	pr_buf_free(&value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pr_buf once = { 0 }, twice = { 0 };
	char *text = malloc(size ? size : 1); /* exact, so that the sanitizer sees the end */

	if (!text)
		return 0;
	if (size > 0)
		memcpy(text, data, size);
	if (rewrite_all(text, size, &once) == 0) {
		require(rewrite_all(once.s, once.len, &twice) == 0, "what was written is not read");
		require(once.len == twice.len && memcmp(once.s, twice.s, once.len) == 0, "members change");
	}
	check_string(text, size);
	pr_buf_free(&once);
	pr_buf_free(&twice);
	free(text);
	return 0;
}
