/* lib/service_keys.c -- the keys that a service signs its tokens with: made, published ahead, used,
 * forgotten. They live in service.jwt_key, so that all processes of the service, and the next one, sign with
 * the same. Refuses to decide the time itself: what is due is Postgres's clock. Never logs.
 *
 * A key's life: published (ahead) -> signs (until the next one does) -> published only (life of a token) ->
 * gone. */
#include "lib/service_token.h"

#include "lib/clock.h"
#include "lib/json.h"
#include "lib/service_inner.h"
#include "sql.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX 16

struct key {
	char kid[64];
	EVP_PKEY *pkey;
	unsigned char public[32];
};

struct pr_keys {
	int64_t rotate_us, ahead_us, life_us;
	pthread_mutex_t mutex;
	struct key key[KEYS_MAX];
	int n, current; /* current -1: none */
};

struct pr_keys *pr_keys_new(int64_t rotate_us, int64_t ahead_us, int64_t life_us)
{
	struct pr_keys *k = pr_calloc(1, sizeof(*k));

	k->rotate_us = rotate_us;
	k->ahead_us = ahead_us;
	k->life_us = life_us;
	k->current = -1;
	(void)pthread_mutex_init(&k->mutex, NULL);
	return k;
}

static void drop(struct key *key, int n)
{
	for (int i = 0; i < n; i++)
		EVP_PKEY_free(key[i].pkey);
}

void pr_keys_free(struct pr_keys *k)
{
	if (!k)
		return;
	drop(k->key, k->n);
	(void)pthread_mutex_destroy(&k->mutex);
	free(k);
}

/* ---- in the database ---- */

static void hex(const unsigned char *s, size_t n, char *out)
{
	for (size_t i = 0; i < n; i++)
		(void)sprintf(out + 2 * i, "%02x", s[i]);
}

static int unhex(const char *s, unsigned char *out, size_t n)
{
	unsigned byte;

	if (strlen(s) != 2 * n)
		return -1;
	for (size_t i = 0; i < n; i++) {
		if (sscanf(s + 2 * i, "%2x", &byte) != 1)
			return -1;
		out[i] = (unsigned char)byte;
	}
	return 0;
}

/* A new key offered, what is too old forgotten: both decided by the database, in one statement under its
 * lock. */
static PGresult *ask(struct pr_keys *k, struct pr_pg *pg, struct pr_err *err)
{
	char kid[17], private[65], rotate[24], ahead[24], life[24];
	const char *const params[] = { kid, private, rotate, ahead, life };
	unsigned char id[8], secret[32];
	PGresult *res;

	if (RAND_bytes(id, sizeof(id)) != 1 || RAND_priv_bytes(secret, sizeof(secret)) != 1) {
		(void)pr_fail(err, PR_STOP, "no random bytes for a key");
		return NULL;
	}
	hex(id, sizeof(id), kid);
	hex(secret, sizeof(secret), private);
	(void)snprintf(rotate, sizeof(rotate), "%lld", (long long)k->rotate_us);
	(void)snprintf(ahead, sizeof(ahead), "%lld", (long long)k->ahead_us);
	(void)snprintf(life, sizeof(life), "%lld", (long long)k->life_us);
	res = pr_pg_exec(pg, sql_service_keys, 5, params, err);
	OPENSSL_cleanse(secret, sizeof(secret));
	OPENSSL_cleanse(private, sizeof(private));
	return res;
}

static int read_key(const PGresult *res, int row, struct key *key)
{
	size_t n = sizeof(key->public);
	unsigned char secret[32];

	(void)snprintf(key->kid, sizeof(key->kid), "%s", PQgetvalue(res, row, 0));
	if (unhex(PQgetvalue(res, row, 1), secret, sizeof(secret)) < 0)
		return -1;
	key->pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, sizeof(secret));
	OPENSSL_cleanse(secret, sizeof(secret));
	return key->pkey && EVP_PKEY_get_raw_public_key(key->pkey, key->public, &n) == 1 ? 0 : -1;
}

int pr_keys_refresh(struct pr_keys *k, struct pr_pg *pg, struct pr_err *err)
{
	struct key fresh[KEYS_MAX] = { 0 };
	PGresult *res = ask(k, pg, err);
	int n = 0, current = -1, rows, rc = -1;

	if (!res)
		return -1;
	rows = PQntuples(res);
	for (; n < rows && n < KEYS_MAX; n++) {
		if (read_key(res, n, &fresh[n]) < 0) {
			(void)pr_fail(
				err, PR_STOP, "the key %s of service.jwt_key cannot be read", fresh[n].kid);
			drop(fresh, n + 1);
			goto out;
		}
		if (*PQgetvalue(res, n, 2) == 't')
			current = n;
	}
	(void)pthread_mutex_lock(&k->mutex);
	drop(k->key, k->n);
	memcpy(k->key, fresh, sizeof(fresh));
	k->n = n;
	k->current = current;
	(void)pthread_mutex_unlock(&k->mutex);
	rc = 0;
out:
	PQclear(res);
	return rc;
}

/* ---- in use ---- */

char *pr_keys_jwks(struct pr_keys *k)
{
	struct pr_buf b = { 0 };
	char x[48];

	(void)pthread_mutex_lock(&k->mutex);
	if (k->n > 0)
		pr_buf_puts(&b, "{\"keys\":[");
	for (int i = 0; i < k->n; i++) {
		(void)service_base64_encode(k->key[i].public, sizeof(k->key[i].public), x);
		pr_buf_printf(&b,
			"%s{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"alg\":\"EdDSA\",\"use\":\"sig\",\"kid\":\"%"
			"s\","
			"\"x\":\"%s\"}",
			i ? "," : "", k->key[i].kid, x);
	}
	if (k->n > 0)
		pr_buf_puts(&b, "]}");
	(void)pthread_mutex_unlock(&k->mutex);
	return b.s;
}

int pr_keys_current(struct pr_keys *k, char kid[64])
{
	int current;

	(void)pthread_mutex_lock(&k->mutex);
	current = k->current;
	if (current >= 0)
		memcpy(kid, k->key[current].kid, sizeof(k->key[current].kid));
	(void)pthread_mutex_unlock(&k->mutex);
	return current < 0 ? -1 : 0;
}

/* Its own reference, so that a refresh may go on meanwhile. */
static EVP_PKEY *borrow(struct pr_keys *k, const char *kid, char ret_kid[64])
{
	EVP_PKEY *pkey = NULL;
	int i, found;

	(void)pthread_mutex_lock(&k->mutex);
	found = k->current;
	for (i = 0; kid && i < k->n; i++)
		if (strcmp(k->key[i].kid, kid) == 0)
			found = i;
	if (found >= 0) {
		pkey = k->key[found].pkey;
		memcpy(ret_kid, k->key[found].kid, sizeof(k->key[found].kid));
		(void)EVP_PKEY_up_ref(pkey);
	}
	(void)pthread_mutex_unlock(&k->mutex);
	return pkey;
}

static void put_part(struct pr_buf *b, const void *s, size_t n)
{
	char *text = pr_malloc(n / 3 * 4 + 5);

	pr_buf_put(b, text, service_base64_encode(s, n, text));
	free(text);
}

char *pr_keys_sign(struct pr_keys *k, const char *kid, const char *claims)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	char used[64], header[140];
	EVP_PKEY *pkey = borrow(k, kid, used);
	unsigned char sig[64];
	size_t n = sizeof(sig);
	struct pr_buf b = { 0 };
	int ok = 0;

	if (pkey && ctx) {
		int len = snprintf(
			header, sizeof(header), "{\"alg\":\"EdDSA\",\"typ\":\"JWT\",\"kid\":\"%s\"}", used);

		put_part(&b, header, (size_t)len);
		pr_buf_puts(&b, ".");
		put_part(&b, claims, strlen(claims));
		ok = EVP_DigestSignInit(ctx, NULL, NULL, NULL, pkey) == 1 &&
		     EVP_DigestSign(ctx, sig, &n, (const unsigned char *)b.s, b.len) == 1;
	}
	if (ok) {
		pr_buf_puts(&b, ".");
		put_part(&b, sig, n);
	} else {
		pr_buf_free(&b);
		b.s = NULL;
	}
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(pkey);
	return b.s;
}
