/* tests/fuzz/fuzz_json_path.c -- libFuzzer target of lib/json_path.c. The first line is a path, the rest a
 * text: no crash, no read outside; what is found lies in the text and is a value by itself; what is put into
 * an object is found there again, what is removed is gone, and the others are who they were. */
#include "lib/json_path.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

/* ["name"], for any name that JSON can carry. */
static void quote_step(struct pr_buf *path, const char *name, size_t len)
{
	path->len = 0;
	pr_buf_puts(path, "[");
	pr_buf_json(path, name, len);
	pr_buf_puts(path, "]");
}

static void check_found(const char *text, size_t len, const char *path)
{
	const char *at = NULL, *again = NULL;
	size_t n = 0, m = 0;
	int rc = pr_json_at(text, len, path, &at, &n);

	if (rc <= 0) {
		require(!at && n == 0, "what is not found stays untouched");
		require(rc < 0 || pr_json_at(text, len, "", &again, &m) == 1, "0 is said of JSON only");
		return;
	}
	require(at >= text && n > 0 && at + n <= text + len, "found inside the text");
	require(pr_json_at(at, n, "", &again, &m) == 1 && again == at && m == n, "found a whole value");
}

static int differs(const struct pr_buf *b, const char *path, const char *value)
{
	const char *at = NULL;
	size_t n = 0;

	if (pr_json_at(b->s, b->len, path, &at, &n) != 1)
		return 1;
	return n != strlen(value) || memcmp(at, value, n) != 0;
}

static void check_merge(const char *text, size_t len, const char *name, size_t name_len)
{
	struct pr_json_member put = { name, name_len, "[1e400]", 7 }, cut = { name, name_len, NULL, 0 };
	struct pr_buf same = { 0 }, with = { 0 }, without = { 0 }, back = { 0 }, path = { 0 };
	const char *at;
	size_t n;

	if (pr_json_merge(&same, text, len, NULL, 0) < 0) {
		require(same.len == 0, "a failed merge appends nothing");
		require(pr_json_merge(&same, text, len, &cut, 1) < 0, "no object either way");
		goto out;
	}
	quote_step(&path, name, name_len);
	require(pr_json_merge(&with, text, len, &put, 1) == 0, "an object takes a member");
	require(pr_json_merge(&without, with.s, with.len, &cut, 1) == 0, "and gives it back");
	require(pr_json_merge(&back, without.s, without.len, NULL, 0) == 0, "an object stays one");
	require(back.len == without.len && memcmp(back.s, without.s, back.len) == 0,
		"unchanged, byte for byte");
	if (pr_utf8_text(name, name_len)) {
		require(!differs(&with, path.s, "[1e400]"), "what was put in is there");
		require(pr_json_at(without.s, without.len, path.s, &at, &n) == 0, "what was removed is gone");
	}
out:
	pr_buf_free(&same);
	pr_buf_free(&with);
	pr_buf_free(&without);
	pr_buf_free(&back);
	pr_buf_free(&path);
}

static void check_str(const char *text, size_t len)
{
	struct pr_buf s = { 0 }, quoted = { 0 }, again = { 0 };

	if (pr_json_str(&s, text, len) == 0) {
		pr_buf_json(&quoted, s.s ? s.s : "", s.len);
		require(pr_json_str(&again, quoted.s, quoted.len) == 0, "a written string is read");
		require(again.len == s.len && (s.len == 0 || memcmp(again.s, s.s, s.len) == 0),
			"and is the same");
	} else {
		require(s.len == 0, "a refused string appends nothing");
	}
	pr_buf_free(&s);
	pr_buf_free(&quoted);
	pr_buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *line = size ? memchr(data, '\n', size) : NULL;
	size_t path_len = line ? (size_t)(line - data) : 0, len = line ? size - path_len - 1 : size;
	char *path = malloc(path_len + 1),
	     *text = malloc(len ? len : 1); /* exact: the sanitizer sees the end */

	if (path && text) {
		memcpy(path, data, path_len);
		path[path_len] = '\0';
		if (len > 0)
			memcpy(text, line ? line + 1 : data, len);
		check_found(text, len, path);
		check_merge(text, len, path, strlen(path));
		check_str(text, len);
	}
	free(path);
	free(text);
	return 0;
}
