/* lib/service_base64.c -- base64url as JWTs have it (RFC 7515): no padding. Refuses a text that is not what
 * encoding its own bytes gives. Pure. */
#include "lib/service_inner.h"

#include <string.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

size_t service_base64_encode(const unsigned char *s, size_t n, char *out)
{
	unsigned bits = 0, have = 0;
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		bits = bits << 8 | s[i];
		for (have += 8; have >= 6; have -= 6)
			out[len++] = alphabet[bits >> (have - 6) & 63];
	}
	if (have > 0)
		out[len++] = alphabet[bits << (6 - have) & 63];
	out[len] = '\0';
	return len;
}

int service_base64_decode(const char *s, size_t n, unsigned char *out, size_t size)
{
	unsigned bits = 0, have = 0;
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		const char *at = s[i] ? strchr(alphabet, s[i]) : NULL;

		if (!at)
			return -1;
		bits = bits << 6 | (unsigned)(at - alphabet);
		have += 6;
		if (have < 8)
			continue;
		have -= 8;
		if (len == size)
			return -1;
		out[len++] = (unsigned char)(bits >> have);
	}
	/* A character that adds no byte, or bits that no byte has. */
	if (have == 6 || (bits & ((1U << have) - 1)) != 0)
		return -1;
	return (int)len;
}
