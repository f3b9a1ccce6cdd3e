/* cli/payload.c -- a payload for people: JSON indented without touching a digit of it, any
 * other bytes as a hex dump. Refuses to hand a control byte to the terminal. */
#include "cli/cli.h"
#include "lib/json.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static void new_line(struct pr_buf *b, int depth, int compact)
{
	if (compact)
		return;
	pr_buf_puts(b, "\n");
	while (depth-- > 0)
		pr_buf_puts(b, "  ");
}

/* The string that begins at s, with its quotes. */
static size_t string_len(const char *s, size_t n)
{
	size_t i = 1;

	while (i < n && s[i] != '"')
		i += s[i] == '\\' ? 2 : 1;
	return i < n ? i + 1 : n;
}

static size_t blanks(const char *s, size_t n)
{
	size_t i = 0;

	while (i < n && isspace((unsigned char)s[i]))
		i++;
	return i;
}

/* Tokens are copied as they stand: a parsed number would lose digits. s is JSON. */
void cli_json_indent(struct pr_buf *b, const char *s, size_t n, int compact)
{
	int depth = 0;
	size_t len;

	for (size_t i = 0; i < n; i += len) {
		len = 1;
		if (isspace((unsigned char)s[i]))
			continue;
		if (s[i] == '"') {
			len = string_len(s + i, n - i);
			pr_buf_put(b, s + i, len);
		} else if (s[i] == '{' || s[i] == '[') {
			size_t gap = blanks(s + i + 1, n - i - 1), at = i + 1 + gap;
			int empty = at < n && (s[at] == '}' || s[at] == ']');

			pr_buf_put(b, s + i, 1);
			if (empty) {
				pr_buf_put(b, s + at, 1);
				len = gap + 2;
			} else {
				new_line(b, ++depth, compact);
			}
		} else if (s[i] == '}' || s[i] == ']') {
			new_line(b, --depth, compact);
			pr_buf_put(b, s + i, 1);
		} else if (s[i] == ',') {
			pr_buf_puts(b, ",");
			new_line(b, depth, compact);
		} else if (s[i] == ':') {
			pr_buf_puts(b, compact ? ":" : ": ");
		} else {
			pr_buf_put(b, s + i, 1);
		}
	}
}

/* Lines made safe, each after `indent` spaces. */
void cli_lines(FILE *f, const char *s, size_t n, int indent)
{
	while (n) {
		const char *end = memchr(s, '\n', n);
		size_t len = end ? (size_t)(end - s) : n;

		(void)fprintf(f, "%*s", indent, "");
		cli_safe(f, s, len);
		(void)fputc('\n', f);
		len += end != NULL;
		s += len;
		n -= len;
	}
}

void cli_hexdump(FILE *f, const char *s, size_t n, int indent)
{
	for (size_t at = 0; at < n; at += 16) {
		size_t len = n - at < 16 ? n - at : 16;

		(void)fprintf(f, "%*s%08zx ", indent, "", at);
		for (size_t i = 0; i < 16; i++) {
			(void)fputs(i == 8 ? "  " : " ", f);
			if (i < len)
				(void)fprintf(f, "%02x", (unsigned char)s[at + i]);
			else
				(void)fputs("  ", f);
		}
		(void)fputs("  |", f);
		for (size_t i = 0; i < len; i++)
			(void)fputc(s[at + i] >= ' ' && s[at + i] < 0x7f ? s[at + i] : '.', f);
		(void)fputs("|\n", f);
	}
}

/* The payload of a record or a row; NULL is a tombstone. */
void cli_payload(FILE *f, const char *s, size_t n, size_t most, int indent)
{
	struct pr_buf b = { 0 };

	if (!s || n == 0) {
		(void)fprintf(f, "%*s%s\n", indent, "", s ? "(empty)" : "(none: a tombstone)");
		return;
	}
	if (pr_json_text(s, n)) {
		cli_json_indent(&b, s, n, 0);
		cli_lines(f, b.s, b.len < most ? b.len : most, indent);
	} else {
		cli_hexdump(f, s, n < most ? n : most, indent);
	}
	if ((b.s ? b.len : n) > most)
		(void)fprintf(
			f, "%*s... cut here, it has %zu bytes: --raw writes all of it\n", indent, "", n);
	pr_buf_free(&b);
}

void cli_json_payload(cJSON *o, const char *s, size_t n)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	struct pr_buf b = { 0 };

	if (!s) {
		(void)cJSON_AddNullToObject(o, "payload");
		return;
	}
	if (pr_json_text(s, n)) {
		cli_json_indent(&b, s, n, 1);
		(void)cJSON_AddRawToObject(o, "payload", b.s);
		pr_buf_free(&b);
		return;
	}
	for (size_t i = 0; i < n; i += 3) {
		unsigned v = 0, left = n - i < 3 ? (unsigned)(n - i) : 3;

		for (unsigned k = 0; k < 3; k++)
			v = v << 8 | (k < left ? (unsigned char)s[i + k] : 0);
		pr_buf_printf(&b, "%c%c%c%c", digits[v >> 18], digits[v >> 12 & 63],
			left > 1 ? digits[v >> 6 & 63] : '=', left > 2 ? digits[v & 63] : '=');
	}
	(void)cJSON_AddStringToObject(o, "payload_base64", b.s ? b.s : "");
	pr_buf_free(&b);
}
