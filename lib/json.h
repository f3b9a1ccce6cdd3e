/* lib/json.h -- the hot path's JSON: reads one flat object of headers without building
 * a tree, and writes escaped strings. Everything else uses cJSON. Input is untrusted. */
#ifndef PR_JSON_H
#define PR_JSON_H

#include <stddef.h>

/* A growing byte string, always NUL-terminated once something was put in; starts as {0}. */
struct pr_buf {
	char *s;
	size_t len, cap;
};
void pr_buf_put(struct pr_buf *b, const void *p, size_t n);
void pr_buf_puts(struct pr_buf *b, const char *s);
void pr_buf_printf(struct pr_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void pr_buf_free(struct pr_buf *b);
void pr_buf_json(struct pr_buf *b, const char *s, size_t n); /* "s" quoted and escaped; bad UTF-8 -> U+FFFD */
int pr_buf_json_plain(
	struct pr_buf *b, const char *s, size_t n); /* if it is ASCII and needs no escape; else 0 */

/* Calls each(ctx, name, name_len, value, value_len, is_null) for every member of the JSON object in
 * text[0..len): strings unescaped, any other value as its JSON text, null with is_null = 1. Order kept.
 * scratch holds unescaped text between calls and is reused; borrowed pointers die at the next call.
 * Returns 0, or -1 when the text is not one JSON object (nothing after the error was reported),
 * or the first non-zero value of each. Nesting in values is bounded at 512. */
int pr_json_flat(const char *text, size_t len, struct pr_buf *scratch,
	int (*each)(void *ctx, const char *name, size_t name_len, const char *value, size_t value_len,
		int is_null),
	void *ctx);

/* Whether jsonb of Postgres (13 and newer, database encoding UTF8) certainly takes the text: RFC 8259, valid
 * UTF-8, no \u0000, no lone surrogate, nesting <= 512, numbers within numeric (131,072 digits before the
 * point, 16,383 after), at most 64 MB and 4 million values. May refuse what jsonb would take, never the
 * reverse. */
int pr_json_text(const char *text, size_t len);

/* Whether text of Postgres takes the bytes: valid UTF-8 without NUL. */
int pr_utf8_text(const char *s, size_t n);

#endif
