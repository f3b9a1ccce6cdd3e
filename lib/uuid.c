/* lib/uuid.c -- parses, prints and derives uuids. Refuses the other spellings of RFC 4122 (braces, urn:). */
#include "lib/uuid.h"

#include <openssl/sha.h>
#include <string.h>

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 32;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int pr_uuid_parse(const char *s, size_t n, unsigned char id[16])
{
	int hyphens = n == 36, high, low;

	if (!hyphens && n != 32)
		return -1;
	for (int i = 0; i < 16; i++) {
		if (hyphens && (i == 4 || i == 6 || i == 8 || i == 10) && *s++ != '-')
			return -1;
		high = hex(*s++);
		low = hex(*s++);
		if (high < 0 || low < 0)
			return -1;
		id[i] = (unsigned char)(high << 4 | low);
	}
	return 0;
}

char *pr_uuid_print(const unsigned char id[16], char *buf)
{
	static const char digits[] = "0123456789abcdef";
	char *p = buf;

	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = digits[id[i] >> 4];
		*p++ = digits[id[i] & 15];
	}
	*p = '\0';
	return buf;
}

void pr_uuid_of_text(const char *s, size_t n, unsigned char id[16])
{
	unsigned char sum[SHA256_DIGEST_LENGTH];

	(void)SHA256((const unsigned char *)s, n, sum);
	memcpy(id, sum, 16);
	id[6] = (unsigned char)((id[6] & 0x0f) | 0x80);
	id[8] = (unsigned char)((id[8] & 0x3f) | 0x80);
}
