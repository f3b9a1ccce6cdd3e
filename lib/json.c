/* lib/json.c -- reads one flat JSON object in one pass and writes escaped strings.
 * Strict RFC 8259. Refuses to build a tree, to repair its input, and to guess. */
#include "lib/json.h"

#include "lib/err.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 512

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

void pr_buf_printf(struct pr_buf *b, const char *fmt, ...)
{
	va_list ap, again;
	int n;

	va_start(ap, fmt);
	va_copy(again, ap);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n >= 0) {
		reserve(b, (size_t)n);
		(void)vsnprintf(b->s + b->len, (size_t)n + 1, fmt, again);
		b->len += (size_t)n;
	}
	va_end(again);
}

void pr_buf_free(struct pr_buf *b)
{
	free(b->s);
	*b = (struct pr_buf){ 0 };
}

/* The allowed range of a character's second byte, by its first (Unicode 15, table 3-7): this
 * alone refuses overlong forms, surrogates and values above U+10FFFF. Returns the length, 0: no lead. */
static int utf8_lead(unsigned char c, unsigned char *lo, unsigned char *hi)
{
	*lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
	*hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
	if (c >= 0xc2 && c <= 0xdf)
		return 2;
	if (c >= 0xe0 && c <= 0xef)
		return 3;
	if (c >= 0xf0 && c <= 0xf4)
		return 4;
	return 0;
}

/* The length of the non-ASCII character at p, or minus the bytes that one U+FFFD replaces. */
static int utf8_len(const char *p, const char *end)
{
	unsigned char lo, hi;
	int n = utf8_lead((unsigned char)*p, &lo, &hi);

	for (int i = 1; i < n; i++) {
		unsigned char c = p + i < end ? (unsigned char)p[i] : 0;

		if (c < lo || c > hi)
			return -i;
		lo = 0x80;
		hi = 0xbf;
	}
	return n > 0 ? n : -1;
}

static int is_plain(unsigned char c)
{
	return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
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

void pr_buf_json(struct pr_buf *b, const char *s, size_t n)
{
	const char *p = s, *end = s + n;

	reserve(b, n + 2);
	pr_buf_put(b, "\"", 1);
	while (p < end) {
		const char *from = p;
		int len = 0;

		while (p < end && is_plain((unsigned char)*p))
			p++;
		pr_buf_put(b, from, (size_t)(p - from));
		if (p == end)
			break;
		if ((unsigned char)*p < 0x80) {
			put_special(b, (unsigned char)*p++);
			continue;
		}
		len = utf8_len(p, end);
		if (len > 0)
			pr_buf_put(b, p, (size_t)len);
		else
			pr_buf_put(b, "\xef\xbf\xbd", 3);
		p += len > 0 ? len : -len;
	}
	pr_buf_put(b, "\"", 1);
}

/* Every reader below starts at *p and leaves it after what it read; -1 leaves it anywhere. */
struct reader {
	const char *p, *end;
};

static void skip_space(struct reader *r)
{
	while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t'))
		r->p++;
}

static int take(struct reader *r, char c)
{
	if (r->p == r->end || *r->p != c)
		return -1;
	r->p++;
	return 0;
}

static int hex4(struct reader *r, unsigned *ret)
{
	unsigned v = 0;

	if (r->end - r->p < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		char c = *r->p++;

		v <<= 4;
		if (c >= '0' && c <= '9')
			v |= (unsigned)(c - '0');
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			v |= (unsigned)((c | 32) - 'a' + 10);
		else
			return -1;
	}
	*ret = v;
	return 0;
}

static void put_utf8(struct pr_buf *b, unsigned v)
{
	char c[4];
	int n;

	if (v < 0x80) {
		c[0] = (char)v;
		n = 1;
	} else if (v < 0x800) {
		c[0] = (char)(0xc0 | v >> 6);
		c[1] = (char)(0x80 | (v & 63));
		n = 2;
	} else if (v < 0x10000) {
		c[0] = (char)(0xe0 | v >> 12);
		c[1] = (char)(0x80 | (v >> 6 & 63));
		c[2] = (char)(0x80 | (v & 63));
		n = 3;
	} else {
		c[0] = (char)(0xf0 | v >> 18);
		c[1] = (char)(0x80 | (v >> 12 & 63));
		c[2] = (char)(0x80 | (v >> 6 & 63));
		c[3] = (char)(0x80 | (v & 63));
		n = 4;
	}
	pr_buf_put(b, c, (size_t)n);
}

/* After "\u": one character, whose low surrogate must follow a high one. */
static int read_unicode(struct reader *r, struct pr_buf *out)
{
	unsigned v, low;

	if (hex4(r, &v) < 0)
		return -1;
	if (v >= 0xdc00 && v <= 0xdfff)
		return -1;
	if (v >= 0xd800 && v <= 0xdbff) {
		if (take(r, '\\') < 0 || take(r, 'u') < 0 || hex4(r, &low) < 0)
			return -1;
		if (low < 0xdc00 || low > 0xdfff)
			return -1;
		v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
	}
	put_utf8(out, v);
	return 0;
}

static int read_escape(struct reader *r, struct pr_buf *out)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *at;
	char c;

	if (r->p == r->end)
		return -1;
	c = *r->p++;
	if (c == 'u')
		return read_unicode(r, out);
	at = memchr(from, c, sizeof(from) - 1);
	if (!at)
		return -1;
	pr_buf_put(out, &to[at - from], 1);
	return 0;
}

/* Passes over characters that stand for themselves; -1 on bad UTF-8 or a control character. */
static int skip_literal(struct reader *r)
{
	while (r->p < r->end) {
		unsigned char c = (unsigned char)*r->p;
		int n = 1;

		if (c == '"' || c == '\\')
			return 0;
		if (c >= 0x80)
			n = utf8_len(r->p, r->end);
		else if (c < 0x20)
			return -1;
		if (n < 0)
			return -1;
		r->p += n;
	}
	return -1;
}

/* A text without escapes is borrowed from the input (off < 0), else it is at s = scratch + off. */
struct str {
	const char *s;
	ptrdiff_t off;
	size_t len;
	int null;
};

static int read_string(struct reader *r, struct pr_buf *scratch, struct str *ret)
{
	size_t off = scratch->len;
	const char *from;

	if (take(r, '"') < 0)
		return -1;
	from = r->p;
	if (skip_literal(r) < 0)
		return -1;
	if (*r->p == '"') {
		*ret = (struct str){ .s = from, .off = -1, .len = (size_t)(r->p++ - from) };
		return 0;
	}
	for (;;) {
		pr_buf_put(scratch, from, (size_t)(r->p - from));
		if (*r->p++ == '"')
			break;
		if (read_escape(r, scratch) < 0)
			return -1;
		from = r->p;
		if (skip_literal(r) < 0)
			return -1;
	}
	*ret = (struct str){ .off = (ptrdiff_t)off, .len = scratch->len - off };
	return 0;
}

static int digits(struct reader *r)
{
	const char *from = r->p;

	while (r->p < r->end && *r->p >= '0' && *r->p <= '9')
		r->p++;
	return r->p > from ? 0 : -1;
}

static int read_number(struct reader *r)
{
	(void)take(r, '-');
	if (take(r, '0') < 0 && digits(r) < 0)
		return -1;
	if (take(r, '.') == 0 && digits(r) < 0)
		return -1;
	if (take(r, 'e') < 0 && take(r, 'E') < 0)
		return 0;
	if (take(r, '+') < 0)
		(void)take(r, '-');
	return digits(r);
}

static int read_word(struct reader *r, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n) != 0)
		return -1;
	r->p += n;
	return 0;
}

static int skip_value(struct reader *r, struct pr_buf *scratch, int depth);

/* A string inside a nested value is checked like any other and its unescaped text dropped. */
static int skip_string(struct reader *r, struct pr_buf *scratch)
{
	size_t len = scratch->len;
	struct str s;
	int rc = read_string(r, scratch, &s);

	scratch->len = len;
	return rc;
}

static int skip_members(struct reader *r, struct pr_buf *scratch, int depth)
{
	char open = *r->p++, close = open == '{' ? '}' : ']';

	skip_space(r);
	if (take(r, close) == 0)
		return 0;
	do {
		skip_space(r);
		if (open == '{') {
			if (skip_string(r, scratch) < 0)
				return -1;
			skip_space(r);
			if (take(r, ':') < 0)
				return -1;
			skip_space(r);
		}
		if (skip_value(r, scratch, depth) < 0)
			return -1;
		skip_space(r);
	} while (take(r, ',') == 0);
	return take(r, close);
}

static int skip_value(struct reader *r, struct pr_buf *scratch, int depth)
{
	if (r->p == r->end)
		return -1;
	switch (*r->p) {
	case '{':
	case '[':
		return depth < MAX_DEPTH ? skip_members(r, scratch, depth + 1) : -1;
	case '"':
		return skip_string(r, scratch);
	case 't':
		return read_word(r, "true");
	case 'f':
		return read_word(r, "false");
	case 'n':
		return read_word(r, "null");
	default:
		return read_number(r);
	}
}

static int read_member(struct reader *r, struct pr_buf *scratch, struct str *name, struct str *value)
{
	scratch->len = 0;
	skip_space(r);
	if (read_string(r, scratch, name) < 0)
		return -1;
	skip_space(r);
	if (take(r, ':') < 0)
		return -1;
	skip_space(r);
	if (r->p < r->end && *r->p == '"')
		return read_string(r, scratch, value);
	*value = (struct str){ .s = r->p, .off = -1 };
	if (skip_value(r, scratch, 0) < 0)
		return -1;
	value->len = (size_t)(r->p - value->s);
	value->null = *value->s == 'n';
	return 0;
}

int pr_json_flat(const char *text, size_t len, struct pr_buf *scratch,
	int (*each)(void *ctx, const char *name, size_t name_len, const char *value, size_t value_len,
		int is_null),
	void *ctx)
{
	struct reader r = { .p = text, .end = text + len };
	struct str k, v;
	int rc;

	if (len == 2 && text[0] == '{' && text[1] == '}')
		return 0;
	skip_space(&r);
	if (take(&r, '{') < 0)
		return -1;
	skip_space(&r);
	if (take(&r, '}') == 0)
		goto out;
	do {
		if (read_member(&r, scratch, &k, &v) < 0)
			return -1;
		skip_space(&r);
		if (r.p == r.end || (*r.p != ',' && *r.p != '}'))
			return -1;
		rc = each(ctx, k.off < 0 ? k.s : scratch->s + k.off, k.len,
			v.off < 0 ? v.s : scratch->s + v.off, v.len, v.null);
		if (rc != 0)
			return rc;
	} while (take(&r, ',') == 0);
	if (take(&r, '}') < 0)
		return -1;
out:
	skip_space(&r);
	return r.p == r.end ? 0 : -1;
}

/* ---------------------------------------------------------------- text for jsonb */

/* Limits of Postgres: an array or object of jsonb holds 256 MB, and its parser a palloc of 1 GB, which
 * doubles at up to 72 bytes a value; numeric's digits around the point. Ours stay well below. */
#define MAX_TEXT         (64u << 20)
#define MAX_VALUES       (4u << 20)
#define NUMERIC_INTEGRAL 131072
#define NUMERIC_FRACTION 16383

/* Bits that are 0x80 in every byte of v that does not stand for itself inside a string: below 0x20, '"', '\',
 * or above 0x7f. A borrow may mark a byte behind the first marked one too: only whether there is one counts.
 */
static uint64_t special8(uint64_t v)
{
	const uint64_t ones = 0x0101010101010101u, high = 0x80u * ones;
	uint64_t quote = v ^ (ones * '"'), slash = v ^ (ones * '\\');

	return ((v - ones * 0x20) | (quote - ones) | (slash - ones) | v) & high;
}

static const char *skip_plain(const char *p, const char *end)
{
	uint64_t v;

	for (; end - p >= 8; p += 8) {
		memcpy(&v, p, sizeof(v));
		if (special8(v))
			break;
	}
	while (p < end && is_plain((unsigned char)*p))
		p++;
	return p;
}

static int check_escape(struct reader *r)
{
	unsigned v, low;
	char c;

	if (r->p == r->end)
		return -1;
	c = *r->p++;
	if (c != 'u')
		return memchr("\"\\/bfnrt", c, 8) ? 0 : -1;
	if (hex4(r, &v) < 0 || v == 0 || (v >= 0xdc00 && v <= 0xdfff))
		return -1;
	if (v < 0xd800 || v > 0xdbff)
		return 0;
	if (take(r, '\\') < 0 || take(r, 'u') < 0 || hex4(r, &low) < 0)
		return -1;
	return low >= 0xdc00 && low <= 0xdfff ? 0 : -1;
}

/* After the quotation mark. */
static int check_string(struct reader *r)
{
	int n;

	for (;;) {
		r->p = skip_plain(r->p, r->end);
		if (r->p == r->end)
			return -1;
		if (*r->p == '"') {
			r->p++;
			return 0;
		}
		if (*r->p == '\\') {
			r->p++;
			if (check_escape(r) < 0)
				return -1;
		} else if ((unsigned char)*r->p < 0x80 || (n = utf8_len(r->p, r->end)) < 0) {
			return -1;
		} else {
			r->p += n;
		}
	}
}

static int check_number(struct reader *r)
{
	const char *from, *point = NULL, *exp = NULL;
	long integral, fraction, e = 0;
	struct reader x;

	(void)take(r, '-');
	from = r->p;
	x = *r;
	if (read_number(r) < 0 || *from == '-')
		return -1;
	(void)digits(&x);
	integral = x.p - from;
	if (x.p < r->p && *x.p == '.') {
		point = ++x.p;
		(void)digits(&x);
	}
	fraction = point ? x.p - point : 0;
	if (x.p < r->p) {
		exp = x.p + 1;
		for (from = exp + (*exp == '-' || *exp == '+'); from < r->p && e < 1000000; from++)
			e = e * 10 + (*from - '0');
	}
	if (exp && *exp == '-')
		fraction += e;
	else
		integral += e;
	return integral <= NUMERIC_INTEGRAL && fraction <= NUMERIC_FRACTION ? 0 : -1;
}

static int check_scalar(struct reader *r)
{
	switch (*r->p) {
	case '"':
		r->p++;
		return check_string(r);
	case 't':
		return read_word(r, "true");
	case 'f':
		return read_word(r, "false");
	case 'n':
		return read_word(r, "null");
	default:
		return check_number(r);
	}
}

/* "name" : with the space around it. */
static int check_name(struct reader *r)
{
	skip_space(r);
	if (take(r, '"') < 0 || check_string(r) < 0)
		return -1;
	skip_space(r);
	return take(r, ':');
}

/* Behind a value: closes what ends there, and steps over the comma before the next one. 1: go on with a
 * value, 0: the outermost one has ended. */
static int check_end(struct reader *r, const char *open, int *depth)
{
	for (; *depth > 0; (*depth)--) {
		skip_space(r);
		if (take(r, ',') == 0)
			return open[*depth - 1] == '{' && check_name(r) < 0 ? -1 : 1;
		if (take(r, open[*depth - 1] == '{' ? '}' : ']') < 0)
			return -1;
	}
	return 0;
}

int pr_json_text(const char *text, size_t len)
{
	struct reader r = { .p = text, .end = text + len };
	char open[MAX_DEPTH];
	unsigned values = 0;
	int depth = 0, rc = 1;

	if (len > MAX_TEXT)
		return 0;
	while (rc > 0) {
		skip_space(&r);
		if (r.p == r.end || ++values > MAX_VALUES)
			return 0;
		if (*r.p == '{' || *r.p == '[') {
			if (depth == MAX_DEPTH)
				return 0;
			open[depth++] = *r.p++;
			skip_space(&r);
			if (r.p == r.end)
				return 0;
			if (*r.p != (open[depth - 1] == '{' ? '}' : ']')) {
				rc = open[depth - 1] == '{' && check_name(&r) < 0 ? -1 : 1;
				continue;
			}
		} else if (check_scalar(&r) < 0) {
			return 0;
		}
		rc = check_end(&r, open, &depth);
	}
	skip_space(&r);
	return rc == 0 && r.p == r.end;
}

/* Eight characters of ASCII, none of them a NUL. Without high bits, a borrow comes of a zero byte only. */
static int is_ascii(uint64_t eight)
{
	return (((eight - 0x0101010101010101ULL) | eight) & 0x8080808080808080ULL) == 0;
}

int pr_utf8_text(const char *s, size_t n)
{
	const char *p = s, *end = s + n;
	int len;

	while (p < end) {
		uint64_t eight = 0;

		if (end - p >= 8)
			memcpy(&eight, p, 8);
		if (is_ascii(eight)) {
			p += 8;
			continue;
		}
		if ((unsigned char)*p < 0x80) {
			if (!*p++)
				return 0;
			continue;
		}
		len = utf8_len(p, end);
		if (len < 0)
			return 0;
		p += len;
	}
	return 1;
}
