/* lib/json_read.c -- passes over JSON text and checks it: strings, numbers, whole values, UTF-8. Strict RFC
 * 8259. Refuses to build a tree, to repair its input, and to guess. */
#include "lib/json_read.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

/* Limits of Postgres: an array or object of jsonb holds 256 MB, and its parser a palloc of 1 GB, which
 * doubles at up to 72 bytes a value; numeric's digits around the point. Ours stay well below. */
#define MAX_TEXT         (64u << 20)
#define MAX_VALUES       (4u << 20)
#define NUMERIC_INTEGRAL 131072
#define NUMERIC_FRACTION 16383

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

int json_utf8_len(const char *p, const char *end)
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

/* After "\u": one character, whose low surrogate must follow a high one. */
static int unicode(struct reader *r, unsigned *ret)
{
	unsigned v, low;

	if (hex4(r, &v) < 0 || (v == 0 && r->jsonb) || (v >= 0xdc00 && v <= 0xdfff))
		return -1;
	*ret = v;
	if (v < 0xd800 || v > 0xdbff)
		return 0;
	if (json_take(r, '\\') < 0 || json_take(r, 'u') < 0 || hex4(r, &low) < 0)
		return -1;
	*ret = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
	return low >= 0xdc00 && low <= 0xdfff ? 0 : -1;
}

/* After the backslash: the character that is meant. */
static int escape(struct reader *r, unsigned *ret)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *at;

	if (r->p == r->end)
		return -1;
	if (*r->p == 'u') {
		r->p++;
		return unicode(r, ret);
	}
	at = memchr(from, *r->p++, sizeof(from) - 1);
	if (!at)
		return -1;
	*ret = (unsigned char)to[at - from];
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

/* Bits that are 0x80 in every byte of v that does not stand for itself inside a string: below 0x20, '"', '\',
 * or above 0x7f. A borrow may mark a byte behind the first marked one too: only the lowest mark counts. */
static uint64_t special8(uint64_t v)
{
	const uint64_t ones = 0x0101010101010101u, high = 0x80u * ones;
	uint64_t quote = v ^ (ones * '"'), slash = v ^ (ones * '\\');

	return ((v - ones * 0x20) | (quote - ones) | (slash - ones) | v) & high;
}

/* Of eight bytes the first that does not stand for itself; 8: none. */
static long first_special(const char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	v = special8(le64toh(v));
	return v ? __builtin_ctzll(v) / 8 : 8;
}

const char *json_skip_plain(const char *p, const char *end)
{
	const char *from = p;
	long n;

	for (; end - p >= 8; p += 8) {
		n = first_special(p);
		if (n < 8)
			return p + n;
	}
	if (p > from && p < end) /* the rest, with some of what is known to be plain */
		return end - 8 + first_special(end - 8);
	while (p < end && json_is_plain((unsigned char)*p))
		p++;
	return p;
}

/* Up to a quotation mark or a backslash; -1 on bad UTF-8, a control character, the end. */
static int literal(struct reader *r)
{
	int n;

	for (;;) {
		r->p = json_skip_plain(r->p, r->end);
		if (r->p == r->end)
			return -1;
		if (*r->p == '"' || *r->p == '\\')
			return 0;
		if ((unsigned char)*r->p < 0x80)
			return -1;
		n = json_utf8_len(r->p, r->end);
		if (n < 0)
			return -1;
		r->p += n;
	}
}

/* After the quotation mark. */
static int pass_string(struct reader *r)
{
	unsigned v;

	while (literal(r) == 0)
		if (*r->p++ == '"')
			return 0;
		else if (escape(r, &v) < 0)
			return -1;
	return -1;
}

int json_string(struct reader *r, struct pr_buf *scratch, struct json_text *ret)
{
	size_t off = scratch->len;
	const char *from;
	unsigned v;

	if (json_take(r, '"') < 0)
		return -1;
	from = r->p;
	if (literal(r) < 0)
		return -1;
	if (*r->p == '"') {
		*ret = (struct json_text){ .s = from, .off = -1, .len = (size_t)(r->p++ - from) };
		return 0;
	}
	for (;;) {
		pr_buf_put(scratch, from, (size_t)(r->p - from));
		if (*r->p++ == '"')
			break;
		if (escape(r, &v) < 0)
			return -1;
		put_utf8(scratch, v);
		from = r->p;
		if (literal(r) < 0)
			return -1;
	}
	*ret = (struct json_text){ .off = (ptrdiff_t)off, .len = scratch->len - off };
	return 0;
}

static long digits(struct reader *r)
{
	const char *from = r->p;

	while (r->p < r->end && *r->p >= '0' && *r->p <= '9')
		r->p++;
	return r->p - from;
}

/* After the e: its value; more than any limit is as good as any other such. */
static int exponent(struct reader *r, long *ret)
{
	int minus;
	long e = 0;

	minus = json_take(r, '+') < 0 && json_take(r, '-') == 0;
	if (r->p == r->end || *r->p < '0' || *r->p > '9')
		return -1;
	for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++)
		if (e < 1000000)
			e = e * 10 + (*r->p - '0');
	*ret = minus ? -e : e;
	return 0;
}

static int number(struct reader *r)
{
	long integral = 1, fraction = 0, e = 0;

	(void)json_take(r, '-');
	if (json_take(r, '0') < 0 && (integral = digits(r)) == 0)
		return -1;
	if (json_take(r, '.') == 0 && (fraction = digits(r)) == 0)
		return -1;
	if ((json_take(r, 'e') == 0 || json_take(r, 'E') == 0) && exponent(r, &e) < 0)
		return -1;
	if (!r->jsonb)
		return 0;
	return integral + (e > 0 ? e : 0) <= NUMERIC_INTEGRAL &&
			       fraction - (e < 0 ? e : 0) <= NUMERIC_FRACTION
		       ? 0
		       : -1;
}

static int word(struct reader *r, const char *text)
{
	size_t n = strlen(text);

	if ((size_t)(r->end - r->p) < n || memcmp(r->p, text, n) != 0)
		return -1;
	r->p += n;
	return 0;
}

static int scalar(struct reader *r)
{
	switch (*r->p) {
	case '"':
		r->p++;
		return pass_string(r);
	case 't':
		return word(r, "true");
	case 'f':
		return word(r, "false");
	case 'n':
		return word(r, "null");
	default:
		return number(r);
	}
}

/* "name" : with the space around it. */
static int name(struct reader *r)
{
	json_space(r);
	if (json_take(r, '"') < 0 || pass_string(r) < 0)
		return -1;
	json_space(r);
	return json_take(r, ':');
}

/* Behind a value: closes what ends there, and steps over the comma before the next one. 1: go on with a
 * value, 0: the outermost one has ended. */
static int value_end(struct reader *r, const char *open, int *depth)
{
	for (; *depth > 0; (*depth)--) {
		json_space(r);
		if (json_take(r, ',') == 0)
			return open[*depth - 1] == '{' && name(r) < 0 ? -1 : 1;
		if (json_take(r, open[*depth - 1] == '{' ? '}' : ']') < 0)
			return -1;
	}
	return 0;
}

int json_value(struct reader *r, int room)
{
	char open[JSON_DEPTH];
	int depth = 0, rc = 1;

	while (rc > 0) {
		json_space(r);
		if (r->p == r->end)
			return -1;
		r->values++;
		if (*r->p == '{' || *r->p == '[') {
			if (depth == room)
				return -1;
			open[depth++] = *r->p++;
			json_space(r);
			if (r->p == r->end)
				return -1;
			if (*r->p != (open[depth - 1] == '{' ? '}' : ']')) {
				rc = open[depth - 1] == '{' && name(r) < 0 ? -1 : 1;
				continue;
			}
		} else if (scalar(r) < 0) {
			return -1;
		}
		rc = value_end(r, open, &depth);
	}
	return rc;
}

int pr_json_text(const char *text, size_t len)
{
	struct reader r = { .p = text, .end = text + len, .jsonb = 1 };

	if (len > MAX_TEXT || json_value(&r, JSON_DEPTH) < 0)
		return 0;
	json_space(&r);
	return r.p == r.end && r.values <= MAX_VALUES;
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
		len = json_utf8_len(p, end);
		if (len < 0)
			return 0;
		p += len;
	}
	return 1;
}
