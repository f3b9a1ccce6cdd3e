/* lib/json.c -- reads one flat JSON object in one pass and writes escaped strings. Refuses to build a tree,
 * to repair its input, and to guess. */
#include "lib/json_read.h"

#include "lib/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void reserve(struct pr_buf *b, size_t more)
{
	size_t need = b->len + more + 1;

	if (need <= b->cap)
		return;
	if (need < b->cap * 2)
		need = b->cap * 2;
	if (need < 64)
		need = 64;
	b->s = pr_realloc(b->s, need);
	b->cap = need;
}

void pr_buf_put(struct pr_buf *b, const void *p, size_t n)
{
	reserve(b, n);
	if (n > 0)
		memcpy(b->s + b->len, p, n);
	b->len += n;
	b->s[b->len] = '\0';
}

void pr_buf_puts(struct pr_buf *b, const char *s)
{
	pr_buf_put(b, s, strlen(s));
}

/* Formats into the room there is; again only when that was too little. */
void pr_buf_printf(struct pr_buf *b, const char *fmt, ...)
{
	va_list ap, again;
	size_t room = b->cap - b->len;
	int n;

	va_start(ap, fmt);
	va_copy(again, ap);
	n = vsnprintf(b->s ? b->s + b->len : NULL, room, fmt, ap);
	va_end(ap);
	if (n >= 0) {
		if ((size_t)n >= room) {
			reserve(b, (size_t)n);
			(void)vsnprintf(b->s + b->len, (size_t)n + 1, fmt, again);
		}
		b->len += (size_t)n;
	} else if (room > 0) {
		b->s[b->len] = '\0';
	}
	va_end(again);
}

void pr_buf_free(struct pr_buf *b)
{
	free(b->s);
	*b = (struct pr_buf){ 0 };
}

static void put_special(struct pr_buf *b, unsigned char c)
{
	static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
	const char *at = memchr(from, c, sizeof(from) - 1);

	if (at)
		pr_buf_put(b, (char[]){ '\\', to[at - from] }, 2);
	else
		pr_buf_printf(b, "\\u%04x", c);
}

int pr_buf_json_plain(struct pr_buf *b, const char *s, size_t n)
{
	char *to;

	reserve(b, n + 2);
	if (json_skip_plain(s, s + n) != s + n)
		return 0;
	to = b->s + b->len;
	*to++ = '"';
	if (n > 0)
		memcpy(to, s, n);
	to[n] = '"';
	to[n + 1] = '\0';
	b->len += n + 2;
	return 1;
}

void pr_buf_json(struct pr_buf *b, const char *s, size_t n)
{
	const char *p = s, *end = s + n;

	if (pr_buf_json_plain(b, s, n))
		return;
	b->s[b->len++] = '"';
	while (p < end) {
		const char *from = p;
		int len = 0;

		p = json_skip_plain(p, end);
		pr_buf_put(b, from, (size_t)(p - from));
		if (p == end)
			break;
		if ((unsigned char)*p < 0x80) {
			put_special(b, (unsigned char)*p++);
			continue;
		}
		len = json_utf8_len(p, end);
		if (len > 0)
			pr_buf_put(b, p, (size_t)len);
		else
			pr_buf_put(b, "\xef\xbf\xbd", 3);
		p += len > 0 ? len : -len;
	}
	pr_buf_put(b, "\"", 1);
}

static int read_member(struct reader *r, struct pr_buf *scratch, struct json_text *name,
	struct json_text *value, int *ret_null)
{
	*ret_null = 0;
	scratch->len = 0;
	json_space(r);
	if (json_string(r, scratch, name) < 0)
		return -1;
	json_space(r);
	if (json_take(r, ':') < 0)
		return -1;
	json_space(r);
	if (r->p < r->end && *r->p == '"')
		return json_string(r, scratch, value);
	*value = (struct json_text){ .s = r->p, .off = -1 };
	if (json_value(r, JSON_DEPTH) < 0)
		return -1;
	value->len = (size_t)(r->p - value->s);
	*ret_null = *value->s == 'n';
	return 0;
}

int pr_json_flat(const char *text, size_t len, struct pr_buf *scratch,
	int (*each)(void *ctx, const char *name, size_t name_len, const char *value, size_t value_len,
		int is_null),
	void *ctx)
{
	struct reader r = { .p = text, .end = text + len };
	struct json_text k, v;
	int rc, null;

	if (len == 2 && text[0] == '{' && text[1] == '}')
		return 0;
	json_space(&r);
	if (json_take(&r, '{') < 0)
		return -1;
	json_space(&r);
	if (json_take(&r, '}') == 0)
		goto out;
	do {
		if (read_member(&r, scratch, &k, &v, &null) < 0)
			return -1;
		json_space(&r);
		if (r.p == r.end || (*r.p != ',' && *r.p != '}'))
			return -1;
		rc = each(ctx, k.off < 0 ? k.s : scratch->s + k.off, k.len,
			v.off < 0 ? v.s : scratch->s + v.off, v.len, null);
		if (rc != 0)
			return rc;
	} while (json_take(&r, ',') == 0);
	if (json_take(&r, '}') < 0)
		return -1;
out:
	json_space(&r);
	return r.p == r.end ? 0 : -1;
}
