/* producers/user/password.c -- hashes and checks passwords. Refuses to be faster for a user who does not
 * exist. */
#include "producers/user/password.h"

#include <sodium.h>
#include <string.h>

_Static_assert(PASSWORD_HASH_SIZE >= crypto_pwhash_STRBYTES, "a hash fits");

static unsigned long long cost;
static size_t bytes;
static char nobody[PASSWORD_HASH_SIZE]; /* of no password that anybody knows */

int password_init(int64_t ops, int64_t memory, struct pr_err *err)
{
	unsigned char random[32];
	char text[65];

	cost = (unsigned long long)ops;
	bytes = (size_t)memory;
	if (sodium_init() < 0)
		return pr_fail(err, PR_STOP, "libsodium does not start");
	randombytes_buf(random, sizeof(random));
	(void)sodium_bin2hex(text, sizeof(text), random, sizeof(random));
	if (password_hash(text, nobody) < 0)
		return pr_fail(err, PR_STOP, "no memory for a password's hash");
	return 0;
}

int password_hash(const char *password, char hash[PASSWORD_HASH_SIZE])
{
	return crypto_pwhash_str(hash, password, strlen(password), cost, bytes);
}

int password_is(const char *password, const char *hash)
{
	int same = crypto_pwhash_str_verify(hash ? hash : nobody, password, strlen(password)) == 0;

	return same && hash;
}
