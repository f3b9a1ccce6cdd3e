/* lib/uuid.c -- parses, prints and derives uuids. Refuses the other spellings of RFC 4122 (braces, urn:). */
#include "lib/uuid.h"

#include <openssl/sha.h>
#include <string.h>

/* 16 and the digit's value; 0: no digit */
/* clang-format off */
static const unsigned char hex[256] = {
	['0'] = 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
	['A'] = 26, 27, 28, 29, 30, 31,
	['a'] = 26, 27, 28, 29, 30, 31
};
/* clang-format on */

int pr_uuid_parse(const char *s, size_t n, unsigned char id[16])
{
	static const unsigned char at[16] = { 0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34 };
	const unsigned char *u = (const unsigned char *)s;
	unsigned all = 16;

	if (n != 32 && (n != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-'))
		return -1;
	for (size_t i = 0; i < 16; i++) {
		const unsigned char *p = u + (n == 36 ? at[i] : 2 * i);

		all &= hex[p[0]] & hex[p[1]];
		id[i] = (unsigned char)(hex[p[0]] << 4 | (hex[p[1]] & 15));
	}
	return all ? 0 : -1;
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
