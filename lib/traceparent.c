/* lib/traceparent.c -- a traceparent's 55 characters. Refuses to guess: a malformed one is none. */
#include "lib/traceparent.h"

#include <string.h>

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int read_hex(const char *s, unsigned char *to, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int high = digit(s[2 * i]), low = digit(s[2 * i + 1]);

		if (high < 0 || low < 0)
			return -1;
		to[i] = (unsigned char)(high << 4 | low);
	}
	return 0;
}

static int is_zero(const unsigned char *p, size_t n)
{
	while (n > 0 && p[n - 1] == 0)
		n--;
	return n == 0;
}

int pr_traceparent_read(const char *s, size_t n, struct pr_trace *ret)
{
	unsigned char version, flags;

	if (n < PR_TRACEPARENT_LEN || s[2] != '-' || s[35] != '-' || s[52] != '-')
		return -1;
	if (read_hex(s, &version, 1) < 0 || version == 0xff)
		return -1;
	if (n > PR_TRACEPARENT_LEN && (version == 0 || s[PR_TRACEPARENT_LEN] != '-'))
		return -1;
	if (read_hex(s + 3, ret->id, 16) < 0 || read_hex(s + 36, ret->span, 8) < 0 ||
		read_hex(s + 53, &flags, 1) < 0)
		return -1;
	ret->sampled = flags & 1;
	return is_zero(ret->id, 16) || is_zero(ret->span, 8) ? -1 : 0;
}

static char *put_hex(char *to, const unsigned char *from, size_t n)
{
	static const char hex[] = "0123456789abcdef";

	for (size_t i = 0; i < n; i++) {
		*to++ = hex[from[i] >> 4];
		*to++ = hex[from[i] & 15];
	}
	return to;
}

char *pr_traceparent_put(const struct pr_trace *t, char out[PR_TRACEPARENT_LEN + 1])
{
	char *p = out + 3;

	memcpy(out, "00-", 3);
	p = put_hex(p, t->id, 16);
	*p++ = '-';
	p = put_hex(p, t->span, 8);
	memcpy(p, t->sampled ? "-01" : "-00", 4);
	return out;
}
