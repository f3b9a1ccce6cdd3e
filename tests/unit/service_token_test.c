/* tests/unit/service_token_test.c -- tokens against a set of keys published over real HTTP: every way to be
 * wrong, rotation, a publisher that is away, and many threads at once. */
#include "lib/service_token.h"

#include "lib/clock.h"
#include "lib/http.h"
#include "lib/json.h"
#include "lib/service_inner.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- who signs ---- */

struct signer {
	const char *kid;
	EVP_PKEY *pkey;
	unsigned char public[32];
};

static struct signer signer_new(const char *kid)
{
	struct signer s = { .kid = kid, .pkey = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519") };
	size_t n = sizeof(s.public);

	assert_non_null(s.pkey);
	assert_int_equal(EVP_PKEY_get_raw_public_key(s.pkey, s.public, &n), 1);
	return s;
}

static void put(struct pr_buf *b, const void *s, size_t n)
{
	char text[4096];

	pr_buf_put(b, text, service_base64_encode(s, n, text));
}

static char *sign(const struct signer *s, const char *header, const char *claims)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned char sig[64];
	size_t n = sizeof(sig);
	struct pr_buf b = { 0 };

	put(&b, header, strlen(header));
	pr_buf_puts(&b, ".");
	put(&b, claims, strlen(claims));
	assert_int_equal(EVP_DigestSignInit(ctx, NULL, NULL, NULL, s->pkey), 1);
	assert_int_equal(EVP_DigestSign(ctx, sig, &n, (unsigned char *)b.s, b.len), 1);
	EVP_MD_CTX_free(ctx);
	pr_buf_puts(&b, ".");
	put(&b, sig, n);
	return b.s;
}

static char *token_of(const struct signer *s, const char *iss, const char *aud, int from_s, int until_s)
{
	long long now = pr_wall_us() / PR_SEC;
	char header[200], claims[400];

	(void)snprintf(header, sizeof(header), "{\"alg\":\"EdDSA\",\"kid\":\"%s\"}", s->kid);
	(void)snprintf(claims, sizeof(claims),
		"{\"iss\":\"%s\",\"aud\":\"%s\",\"sub\":\"u-1\",\"iat\":%lld,\"nbf\":%lld,\"exp\":%lld}", iss,
		aud, now + from_s, now + from_s, now + until_s);
	return sign(s, header, claims);
}

static char *good_token(const struct signer *s)
{
	return token_of(s, "iss", "aud", -60, 60);
}

static char *set_of(const struct signer *s, int n)
{
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "{\"keys\":[{\"kty\":\"RSA\",\"kid\":\"other\",\"n\":\"AQAB\",\"e\":\"AQAB\"}");
	for (int i = 0; i < n; i++) {
		pr_buf_printf(&b, ",{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"%s\",\"x\":\"", s[i].kid);
		put(&b, s[i].public, 32);
		pr_buf_puts(&b, "\"}");
	}
	pr_buf_puts(&b, "]}");
	return b.s;
}

/* ---- who publishes ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char *published; /* NULL: 503 */
static atomic_int asked;

static void publish(char *set)
{
	(void)pthread_mutex_lock(&mutex);
	free(published);
	published = set;
	(void)pthread_mutex_unlock(&mutex);
}

static void serve(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	atomic_fetch_add(&asked, 1);
	(void)pthread_mutex_lock(&mutex);
	if (published) {
		resp->body = pr_strdup(published);
		resp->body_len = strlen(published);
	} else {
		resp->status = 503;
	}
	(void)pthread_mutex_unlock(&mutex);
}

static struct pr_http *publisher(char url[64])
{
	static const struct pr_route routes[] = { { "GET", "/jwks", serve, NULL, 1, 0 }, { 0 } };
	struct pr_http_opts opts = { .listen = "127.0.0.1:0" };
	struct pr_http *http;
	struct pr_err err;

	assert_int_equal(pr_http_start(&opts, routes, &http, &err), 0);
	(void)snprintf(url, 64, "http://127.0.0.1:%d/jwks", pr_http_port(http));
	return http;
}

static struct pr_tokens *tokens_at(const char *url, int64_t cooldown_us)
{
	struct pr_tokens_opts opts = { .url = url,
		.issuer = "iss",
		.audience = "aud",
		.cooldown_us = cooldown_us,
		.wait_us = 5 * PR_SEC };
	struct pr_tokens *t;
	struct pr_err err;

	assert_int_equal(pr_tokens_new(&opts, &t, &err), 0);
	return t;
}

static enum pr_token_verdict verify(struct pr_tokens *t, const char *token)
{
	struct pr_claims claims;

	return pr_tokens_verify(t, token, strlen(token), 1, &claims);
}

/* Frees the token. */
static enum pr_token_verdict verdict_of(struct pr_tokens *t, char *token)
{
	enum pr_token_verdict v = verify(t, token);

	free(token);
	return v;
}

/* Until it is so, 10 s at most. */
static void becomes(struct pr_tokens *t, const char *token, enum pr_token_verdict wanted)
{
	int64_t end = pr_mono_us() + 10 * PR_SEC;

	while (verify(t, token) != wanted) {
		assert_true(pr_mono_us() < end);
		(void)poll(NULL, 0, 5);
	}
}

/* ---- tests ---- */

static void test_wrong_tokens(void **state)
{
	struct signer s = signer_new("k1"), impostor = signer_new("k1"), stranger = signer_new("k9");
	char *set = set_of(&s, 1), *good = good_token(&s), *dot;
	struct pr_tokens *t = tokens_at(NULL, 0);
	struct pr_claims claims;
	struct pr_err err;
	char text[5000];

	(void)state;
	assert_int_equal(verify(t, good), PR_TOKEN_NO_KEYS);
	assert_int_equal(pr_tokens_adopt(t, set, strlen(set), &err), 0);
	assert_int_equal(pr_tokens_verify(t, good, strlen(good), 0, &claims), PR_TOKEN_OK);
	assert_string_equal(claims.sub, "u-1");
	assert_string_equal(claims.kid, "k1");
	assert_non_null(strstr(claims.json, "\"aud\":\"aud\""));
	assert_int_equal(verify(t, good), PR_TOKEN_OK); /* remembered */

	assert_int_equal(verdict_of(t, good_token(&impostor)), PR_TOKEN_SIGNATURE);
	assert_int_equal(verdict_of(t, good_token(&stranger)), PR_TOKEN_UNKNOWN_KEY);
	assert_int_equal(verdict_of(t, token_of(&s, "other", "aud", -60, 60)), PR_TOKEN_ISSUER);
	assert_int_equal(verdict_of(t, token_of(&s, "iss", "queue", -60, 60)), PR_TOKEN_AUDIENCE);
	assert_int_equal(verdict_of(t, token_of(&s, "iss", "aud", -60, -6)), PR_TOKEN_EXPIRED);
	assert_int_equal(verdict_of(t, token_of(&s, "iss", "aud", -60, -2)), PR_TOKEN_OK); /* clocks differ */
	assert_int_equal(verdict_of(t, token_of(&s, "iss", "aud", 30, 60)), PR_TOKEN_NOT_YET);

	assert_int_equal(verify(t, ""), PR_TOKEN_MISSING);
	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(verify(t, text), PR_TOKEN_TOO_LONG);
	/* Each prefix is wrong, and each one with a changed last character of the signature: no other
	 * writing. */
	for (size_t n = 1; n < strlen(good); n++)
		assert_int_not_equal(pr_tokens_verify(t, good, n, 0, &claims), PR_TOKEN_OK);
	for (size_t i = 0; i < strlen(good); i++) {
		(void)snprintf(text, sizeof(text), "%s", good);
		text[i] = text[i] == 'A' ? 'B' : 'A';
		assert_int_not_equal(verify(t, text), PR_TOKEN_OK);
	}
	dot = strrchr(good, '.');
	(void)snprintf(text, sizeof(text), "%.*s.=", (int)(dot - good), good);
	assert_int_equal(verify(t, text), PR_TOKEN_MALFORMED);
	free(set);
	free(good);
	pr_tokens_free(t);
	EVP_PKEY_free(s.pkey);
	EVP_PKEY_free(impostor.pkey);
	EVP_PKEY_free(stranger.pkey);
}

static void test_wrong_headers_and_claims(void **state)
{
	static const struct {
		const char *header, *claims;
		enum pr_token_verdict verdict;
	} cases[] = {
		{ "{\"alg\":\"none\",\"kid\":\"k1\"}", "{}", PR_TOKEN_ALGORITHM },
		{ "{\"alg\":\"HS256\",\"kid\":\"k1\"}", "{}", PR_TOKEN_ALGORITHM },
		{ "{\"alg\":\"eddsa\",\"kid\":\"k1\"}", "{}", PR_TOKEN_ALGORITHM },
		{ "{\"alg\":7,\"kid\":\"k1\"}", "{}", PR_TOKEN_ALGORITHM },
		{ "{\"kid\":\"k1\"}", "{}", PR_TOKEN_ALGORITHM },
		{ "{\"alg\":\"EdDSA\"}", "{}", PR_TOKEN_UNKNOWN_KEY },
		{ "{\"alg\":\"EdDSA\",\"kid\":7}", "{}", PR_TOKEN_UNKNOWN_KEY },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\",\"crit\":[\"x\"]}", "{}", PR_TOKEN_MALFORMED },
		{ "[\"EdDSA\"]", "{}", PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"", "{}", PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}", "[]", PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}", "{\"iss\":\"iss\",\"aud\":\"aud\",\"sub\":\"u\"}",
			PR_TOKEN_MALFORMED }, /* no end */
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":\"aud\",\"sub\":\"\",\"exp\":99999999999}",
			PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":\"aud\",\"sub\":\"u\",\"exp\":\"99999999999\"}",
			PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":\"aud\",\"sub\":\"u\",\"exp\":1e999}", PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":\"aud\",\"sub\":\"u\\u0000v\",\"exp\":99999999999}",
			PR_TOKEN_MALFORMED },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":[\"x\",7],\"sub\":\"u\",\"exp\":99999999999}",
			PR_TOKEN_AUDIENCE },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}", "{\"iss\":\"iss\",\"sub\":\"u\",\"exp\":99999999999}",
			PR_TOKEN_AUDIENCE },
		{ "{\"alg\":\"EdDSA\",\"kid\":\"k1\"}",
			"{\"iss\":\"iss\",\"aud\":[\"x\",\"aud\"],\"sub\":\"u\",\"exp\":99999999999}",
			PR_TOKEN_OK },
	};
	struct signer s = signer_new("k1");
	char *set = set_of(&s, 1);
	struct pr_tokens *t = tokens_at(NULL, 0);
	struct pr_err err;

	(void)state;
	assert_int_equal(pr_tokens_adopt(t, set, strlen(set), &err), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		assert_int_equal(verdict_of(t, sign(&s, cases[i].header, cases[i].claims)), cases[i].verdict);
	assert_int_equal(pr_tokens_adopt(t, "{\"keys\":[]}", 11, &err), -1);
	assert_int_equal(pr_tokens_adopt(t, "<html>", 6, &err), -1);
	assert_int_equal(verdict_of(t, good_token(&s)), PR_TOKEN_OK); /* the set that was there stays */
	free(set);
	pr_tokens_free(t);
	EVP_PKEY_free(s.pkey);
}

/* A key that was withdrawn verifies nothing more, also what it has verified before. */
static void test_withdrawn(void **state)
{
	struct signer s[2] = { signer_new("k1"), signer_new("k2") };
	char *both = set_of(s, 2), *second = set_of(s + 1, 1), *token = good_token(&s[0]);
	struct pr_tokens *t = tokens_at(NULL, 0);
	struct pr_err err;

	(void)state;
	assert_int_equal(pr_tokens_adopt(t, both, strlen(both), &err), 0);
	assert_int_equal(verify(t, token), PR_TOKEN_OK);
	assert_int_equal(pr_tokens_adopt(t, second, strlen(second), &err), 0);
	assert_int_equal(verify(t, token), PR_TOKEN_UNKNOWN_KEY);
	assert_int_equal(verdict_of(t, good_token(&s[1])), PR_TOKEN_OK);
	free(both);
	free(second);
	free(token);
	pr_tokens_free(t);
	EVP_PKEY_free(s[0].pkey);
	EVP_PKEY_free(s[1].pkey);
}

/* Away at our start: cannot be told. There: good. Rotated: fetched because a token names the new key. Away
 * again: what is known stays good. */
static void test_publisher(void **state)
{
	struct signer s[2] = { signer_new("k1"), signer_new("k2") };
	char *first = good_token(&s[0]), *second = good_token(&s[1]), url[64];
	struct pr_http *http = publisher(url);
	struct pr_tokens *t;

	(void)state;
	publish(NULL);
	t = tokens_at(url, 50 * PR_MS);
	assert_int_equal(verify(t, first), PR_TOKEN_NO_KEYS);
	publish(set_of(s, 1));
	becomes(t, first, PR_TOKEN_OK);
	publish(set_of(s, 2));
	becomes(t, second, PR_TOKEN_OK);
	pr_http_stop(http);
	assert_int_equal(verify(t, first), PR_TOKEN_OK);
	assert_int_equal(verify(t, second), PR_TOKEN_OK);
	pr_tokens_free(t);
	publish(NULL);
	free(first);
	free(second);
	EVP_PKEY_free(s[0].pkey);
	EVP_PKEY_free(s[1].pkey);
}

/* Forged tokens with ever new key ids make one fetch in a cooldown, and do not wait for it. */
static void test_forged_kids_are_cheap(void **state)
{
	struct signer s = signer_new("k1");
	char *good = good_token(&s), url[64], kid[32];
	struct pr_http *http = publisher(url);
	struct pr_tokens *t;
	int before;

	(void)state;
	publish(set_of(&s, 1));
	t = tokens_at(url, 30 * PR_SEC);
	becomes(t, good, PR_TOKEN_OK);
	before = atomic_load(&asked);
	for (int i = 0; i < 500; i++) {
		struct signer forged = s;

		(void)snprintf(kid, sizeof(kid), "forged-%d", i);
		forged.kid = kid;
		assert_int_equal(verdict_of(t, good_token(&forged)), PR_TOKEN_UNKNOWN_KEY);
	}
	assert_int_equal(atomic_load(&asked), before);
	pr_tokens_free(t);
	pr_http_stop(http);
	publish(NULL);
	free(good);
	EVP_PKEY_free(s.pkey);
}

struct crowd {
	struct pr_tokens *t;
	const char *good, *bad;
	atomic_int wrong;
};

static void *ask_often(void *arg)
{
	struct crowd *c = arg;

	for (int i = 0; i < 200; i++) {
		c->wrong += verify(c->t, c->good) != PR_TOKEN_OK;
		c->wrong += verify(c->t, c->bad) != PR_TOKEN_SIGNATURE;
	}
	return NULL;
}

static void test_many_threads(void **state)
{
	struct signer s[2] = { signer_new("k1"), signer_new("k2") }, impostor = signer_new("k1");
	char *good = good_token(&s[0]), *bad = good_token(&impostor),
	     *sets[2] = { set_of(s, 1), set_of(s, 2) };
	struct crowd c = { .t = tokens_at(NULL, 0), .good = good, .bad = bad };
	pthread_t threads[4];
	struct pr_err err;

	(void)state;
	assert_int_equal(pr_tokens_adopt(c.t, sets[0], strlen(sets[0]), &err), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, &c), 0);
	for (int i = 0; i < 100; i++)
		assert_int_equal(pr_tokens_adopt(c.t, sets[i % 2], strlen(sets[i % 2]), &err), 0);
	for (int i = 0; i < 4; i++)
		(void)pthread_join(threads[i], NULL);
	assert_int_equal(c.wrong, 0);
	pr_tokens_free(c.t);
	free(good);
	free(bad);
	free(sets[0]);
	free(sets[1]);
	EVP_PKEY_free(s[0].pkey);
	EVP_PKEY_free(s[1].pkey);
	EVP_PKEY_free(impostor.pkey);
}

static void test_base64(void **state)
{
	unsigned char bytes[64], out[64];
	char text[100];

	(void)state;
	for (size_t n = 0; n < sizeof(bytes); n++) {
		for (size_t i = 0; i < n; i++)
			bytes[i] = (unsigned char)(i * 37 + n);
		assert_int_equal(
			service_base64_decode(text, service_base64_encode(bytes, n, text), out, 64), (int)n);
		assert_memory_equal(bytes, out, n);
	}
	assert_int_equal(service_base64_decode("AA", 2, out, 64), 1);
	assert_int_equal(service_base64_decode("AB", 2, out, 64), -1); /* bits that no byte has */
	assert_int_equal(service_base64_decode("A", 1, out, 64), -1);
	assert_int_equal(service_base64_decode("AAAAA", 5, out, 64), -1);
	assert_int_equal(service_base64_decode("AA==", 4, out, 64), -1);
	assert_int_equal(service_base64_decode("A+/A", 4, out, 64), -1);
	assert_int_equal(service_base64_decode("AAAA", 4, out, 2), -1);
	assert_int_equal(service_base64_decode("A\0AA", 4, out, 64), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_base64),
		cmocka_unit_test(test_wrong_tokens),
		cmocka_unit_test(test_wrong_headers_and_claims),
		cmocka_unit_test(test_withdrawn),
		cmocka_unit_test(test_publisher),
		cmocka_unit_test(test_forged_kids_are_cheap),
		cmocka_unit_test(test_many_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
