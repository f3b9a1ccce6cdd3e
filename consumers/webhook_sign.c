/* consumers/webhook_sign.c -- signs with libcrypto. Refuses keys outside the 24 to 64 bytes that the
 * standard allows, base64 that is not whole, and to show any part of a secret. */
#include "consumers/webhook_sign.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX   "whsec_"
#define KEYS_MAX 8
#define KEY_MIN  24
#define KEY_MAX  64

struct key {
	unsigned char bytes[KEY_MAX + 2]; /* EVP_DecodeBlock writes the padding too */
	size_t len;
};

struct webhook_keys {
	struct key v[KEYS_MAX];
	size_t n;
};

/* Base64 of text[0..len), padded or not, into k. -1: it is none, or the key has a wrong length. */
static int decode(struct key *k, const char *text, size_t len)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned char padded[KEY_MAX / 3 * 4 + 8];
	size_t pad;
	int n;

	while (len > 0 && text[len - 1] == '=')
		len--;
	pad = (4 - len % 4) % 4;
	if (len + pad > (KEY_MAX + 2) / 3 * 4 || pad == 3)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (!text[i] || !strchr(alphabet, text[i]))
			return -1;
		padded[i] = (unsigned char)text[i];
	}
	memset(padded + len, '=', pad);
	n = EVP_DecodeBlock(k->bytes, padded, (int)(len + pad));
	OPENSSL_cleanse(padded, sizeof(padded));
	k->len = n < (int)pad ? 0 : (size_t)n - pad;
	return k->len < KEY_MIN || k->len > KEY_MAX ? -1 : 0;
}

static int add(struct webhook_keys *k, const char *word, size_t len, struct pr_err *err)
{
	size_t prefix = sizeof(PREFIX) - 1;

	if (k->n == KEYS_MAX)
		return pr_fail(err, PR_STOP, "more than %d signing secrets", KEYS_MAX);
	if (len < prefix || memcmp(word, PREFIX, prefix) != 0 ||
		decode(&k->v[k->n], word + prefix, len - prefix) < 0) {
		(void)pr_fail(err, PR_STOP,
			"signing secret %zu is not whsec_ followed by the base64 of %d to %d bytes", k->n + 1,
			KEY_MIN, KEY_MAX);
		return pr_hint(err, "make one: echo whsec_$(openssl rand -base64 32)");
	}
	k->n++;
	return 0;
}

int webhook_keys_parse(const char *secret, struct webhook_keys **ret, struct pr_err *err)
{
	struct webhook_keys *k = pr_calloc(1, sizeof(*k));

	for (const char *at = secret; *(at += strspn(at, " ")); at += strcspn(at, " ")) {
		if (add(k, at, strcspn(at, " "), err) < 0)
			goto out;
	}
	if (k->n > 0) {
		*ret = k;
		return 0;
	}
	(void)pr_fail(err, PR_STOP, "the signing secret is empty");
out:
	webhook_keys_free(k);
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

void webhook_keys_free(struct webhook_keys *k)
{
	if (!k)
		return;
	OPENSSL_cleanse(k, sizeof(*k));
	free(k);
}

void webhook_sign_put(struct pr_buf *b, const struct webhook_keys *k, const void *text, size_t len)
{
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned char base64[EVP_MAX_MD_SIZE / 3 * 4 + 8];
	unsigned n;

	for (size_t i = 0; i < k->n; i++) {
		n = 0;
		(void)HMAC(EVP_sha256(), k->v[i].bytes, (int)k->v[i].len, text, len, mac, &n);
		(void)EVP_EncodeBlock(base64, mac, (int)n);
		pr_buf_puts(b, i ? " v1," : "v1,");
		pr_buf_puts(b, (const char *)base64);
	}
}
