/* tests/fuzz/fuzz_form.c -- libFuzzer target of lib/form: any body, any Cookie header. No crash, no read
 * outside; what is taken is text without a NUL, each name once, and what is escaped comes back as it was. */
#include "lib/form.h"

#include "lib/json.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void escaped(const char *text)
{
	char *once = pr_form_escape(text);
	struct pr_buf b = { 0 };
	struct pr_form f;

	pr_buf_printf(&b, "k=%s", once);
	require(pr_form_parse(&f, b.s, b.len) == 0, "what was escaped is refused");
	require(strcmp(pr_form_get(&f, "k", NULL), text) == 0, "what was escaped comes back otherwise");
	pr_form_free(&f);
	pr_buf_free(&b);
	free(once);
}

static void checked(const struct pr_form *f)
{
	size_t n;

	require(f->n <= PR_FORM_FIELDS, "too many fields");
	for (int i = 0; i < f->n; i++) {
		const char *value = pr_form_get(f, f->field[i].name, &n);

		require(value == f->field[i].value, "a name twice");
		require(strlen(value) == n && pr_utf8_text(value, n), "a value that is no text");
		escaped(value);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), *exact = malloc(size ? size : 1), buf[16];
	struct pr_form f;

	if (!text || !exact)
		abort();
	if (size > 0) {
		memcpy(text, data, size);
		memcpy(exact, data, size); /* the sanitizer sees its end */
	}
	text[size] = '\0';
	if (pr_form_parse(&f, exact, size) == 0) {
		checked(&f);
		pr_form_free(&f);
	}
	if (pr_form_cookie(text, "id", buf, sizeof(buf)) == 0)
		require(strlen(buf) < sizeof(buf) && !strchr(buf, ';'), "a cookie that is none");
	free(text);
	free(exact);
	return 0;
}
