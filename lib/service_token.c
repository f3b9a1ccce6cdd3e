/* lib/service_token.c -- verifies JWTs against a set of keys that a thread of its own keeps fresh. Refuses
 * every algorithm but Ed25519's, whatever the token says of itself, and to hold a request up for a publisher
 * that is away. Never logs.
 *
 * What is shared: the set, under a mutex held for copies only; the memory of good signatures, under another.
 * A signature that was good is forgotten when the set changes: a key that was withdrawn verifies nothing
 * more. */
#include "lib/service_token.h"

#include "lib/clock.h"
#include "lib/daemon.h"
#include "lib/json.h"
#include "lib/service_inner.h"

#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <openssl/sha.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX   16
#define SET_MAX    (64 * 1024) /* bytes of a published set */
#define FETCH_MS   2000
#define SLACK_S    5
#define RETRY_US   (PR_SEC / 4) /* after a fetch that failed; doubles up to the cooldown */
#define REMEMBERED 16384

struct public_key {
	char kid[64];
	unsigned char x[32];
};

struct good {
	unsigned char digest[SHA256_DIGEST_LENGTH];
	uint64_t generation; /* of the set; 0: empty */
};

struct pr_tokens {
	char *url, *issuer, *audience;
	int64_t refresh_us, cooldown_us, wait_us;
	pthread_mutex_t mutex;
	pthread_cond_t changed; /* the set, wanted, stopping; CLOCK_MONOTONIC */
	struct public_key key[KEYS_MAX];
	int keys;
	uint64_t generation;
	int64_t fetched_us; /* monotonic, when the last good fetch began; 0: never */
	int64_t tried_us;   /* the same of the last one that ended, good or not */
	uint64_t fetches;   /* that have ended, good or not */
	int wanted, stopping, running;
	pthread_t thread;
	pthread_mutex_t good_mutex;
	struct good *good;
	size_t remembered;
};

const char *pr_token_why(enum pr_token_verdict verdict)
{
	static const char *const why[] = {
		[PR_TOKEN_OK] = "the token is good",
		[PR_TOKEN_MISSING] = "send Authorization: Bearer with a token",
		[PR_TOKEN_TOO_LONG] = "the token is too long",
		[PR_TOKEN_MALFORMED] = "the token is malformed",
		[PR_TOKEN_ALGORITHM] = "the token is not signed with EdDSA",
		[PR_TOKEN_UNKNOWN_KEY] = "the token names a key that is not published",
		[PR_TOKEN_SIGNATURE] = "the token's signature is wrong",
		[PR_TOKEN_ISSUER] = "the token is another issuer's",
		[PR_TOKEN_AUDIENCE] = "the token is for another audience",
		[PR_TOKEN_EXPIRED] = "the token has expired",
		[PR_TOKEN_NOT_YET] = "the token is not valid yet",
		[PR_TOKEN_NO_KEYS] = "the keys that tokens are checked with cannot be had yet",
	};

	return why[verdict];
}

/* ---- the set ---- */

static const char *text_of(const cJSON *object, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static int is_text(const cJSON *object, const char *name, const char *value)
{
	const char *s = text_of(object, name);

	return s && strcmp(s, value) == 0;
}

/* Others than ours are stepped over: a set may hold keys for other uses. */
static int read_key(const cJSON *jwk, struct public_key *key)
{
	const char *kid = text_of(jwk, "kid"), *x = text_of(jwk, "x"), *use = text_of(jwk, "use");

	if (!is_text(jwk, "kty", "OKP") || !is_text(jwk, "crv", "Ed25519") || !kid || !x)
		return 0;
	if (!*kid || strlen(kid) >= sizeof(key->kid) || (use && strcmp(use, "sig") != 0))
		return 0;
	(void)snprintf(key->kid, sizeof(key->kid), "%s", kid);
	return service_base64_decode(x, strlen(x), key->x, sizeof(key->x)) == (int)sizeof(key->x);
}

static int read_set(const char *jwks, size_t len, struct public_key *keys, int *ret_n, struct pr_err *err)
{
	cJSON *set = pr_json_text(jwks, len) ? cJSON_ParseWithLength(jwks, len) : NULL;
	const cJSON *list = cJSON_GetObjectItemCaseSensitive(set, "keys"), *jwk;
	int n = 0, rc = -1;

	if (!cJSON_IsArray(list)) {
		(void)pr_fail(err, PR_REJECT, "the answer is no set of keys (JWKS)");
		goto out;
	}
	cJSON_ArrayForEach(jwk, list) if (n < KEYS_MAX && read_key(jwk, &keys[n])) n++;
	if (n == 0) {
		(void)pr_fail(err, PR_REJECT, "the set of keys (JWKS) holds none for Ed25519");
		goto out;
	}
	*ret_n = n;
	rc = 0;
out:
	cJSON_Delete(set);
	return rc;
}

static int same_keys(const struct public_key *a, const struct public_key *b, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(a[i].kid, b[i].kid) != 0 || memcmp(a[i].x, b[i].x, sizeof(a[i].x)) != 0)
			return 0;
	return 1;
}

static int adopt(struct pr_tokens *t, const char *jwks, size_t len, int64_t since_us, struct pr_err *err)
{
	struct public_key keys[KEYS_MAX];
	int n;

	if (read_set(jwks, len, keys, &n, err) < 0)
		return -1;
	(void)pthread_mutex_lock(&t->mutex);
	if (n != t->keys || !same_keys(keys, t->key, n)) {
		memcpy(t->key, keys, (size_t)n * sizeof(*keys));
		t->keys = n;
		t->generation++;
	}
	t->fetched_us = since_us;
	(void)pthread_cond_broadcast(&t->changed);
	(void)pthread_mutex_unlock(&t->mutex);
	return 0;
}

int pr_tokens_adopt(struct pr_tokens *t, const char *jwks, size_t len, struct pr_err *err)
{
	return adopt(t, jwks, len, pr_mono_us(), err);
}

int64_t pr_tokens_age(struct pr_tokens *t)
{
	int64_t at;

	(void)pthread_mutex_lock(&t->mutex);
	at = t->fetched_us;
	(void)pthread_mutex_unlock(&t->mutex);
	return at ? (pr_mono_us() - at) / PR_SEC : -1;
}

/* ---- fetching ---- */

static size_t take(char *data, size_t size, size_t n, void *buf)
{
	struct pr_buf *b = buf;

	if (b->len + size * n > SET_MAX)
		return 0;
	pr_buf_put(b, data, size * n);
	return size * n;
}

static int fetch(struct pr_tokens *t, CURL *curl)
{
	int64_t since_us = pr_mono_us();
	struct pr_buf b = { 0 };
	long status = 0;
	int rc = -1;

	curl_easy_reset(curl);
	if (curl_easy_setopt(curl, CURLOPT_URL, t->url) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_PROXY, "") == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)FETCH_MS) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_WRITEDATA, &b) == CURLE_OK &&
		curl_easy_perform(curl) == CURLE_OK &&
		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK && status == 200 && b.s)
		rc = adopt(t, b.s, b.len, since_us, NULL);
	pr_buf_free(&b);
	return rc;
}

static void until(int64_t from_now_us, struct timespec *ts)
{
	int64_t us = pr_mono_us() + from_now_us;

	ts->tv_sec = (time_t)(us / PR_SEC);
	ts->tv_nsec = (us % PR_SEC) * 1000;
}

/* Until it is time, or a key is wanted, or the end. With the mutex. */
static void rest(struct pr_tokens *t, int64_t us)
{
	int64_t end = pr_mono_us() + us;
	struct timespec ts;

	until(us, &ts);
	while (!t->stopping && !t->wanted && pr_mono_us() < end)
		(void)pthread_cond_timedwait(&t->changed, &t->mutex, &ts);
}

static void *fetch_thread(void *arg)
{
	struct pr_tokens *t = arg;
	CURL *curl = curl_easy_init();
	unsigned failed = 0;

	(void)pthread_mutex_lock(&t->mutex);
	while (curl && !t->stopping) {
		int64_t since_us = pr_mono_us();
		int rc;

		t->wanted = 0;
		(void)pthread_mutex_unlock(&t->mutex);
		rc = fetch(t, curl);
		failed = rc < 0 ? failed + 1 : 0;
		(void)pthread_mutex_lock(&t->mutex);
		t->fetches++;
		t->tried_us = since_us;
		t->wanted = 0; /* who asked meanwhile has got this one */
		(void)pthread_cond_broadcast(&t->changed);
		rest(t, failed ? pr_backoff_us(failed - 1, RETRY_US, t->cooldown_us) : t->refresh_us);
	}
	(void)pthread_mutex_unlock(&t->mutex);
	curl_easy_cleanup(curl);
	return NULL;
}

/* ---- life ---- */

int pr_tokens_new(const struct pr_tokens_opts *opts, struct pr_tokens **ret, struct pr_err *err)
{
	struct pr_tokens *t;
	pthread_condattr_t attr;

	if (sodium_init() < 0)
		return pr_fail(err, PR_STOP, "libsodium did not start");
	t = pr_calloc(1, sizeof(*t));
	t->url = opts->url ? pr_strdup(opts->url) : NULL;
	t->issuer = pr_strdup(opts->issuer);
	t->audience = pr_strdup(opts->audience);
	t->refresh_us = opts->refresh_us ? opts->refresh_us : 300 * PR_SEC;
	t->cooldown_us = opts->cooldown_us ? opts->cooldown_us : 5 * PR_SEC;
	t->wait_us = opts->wait_us ? opts->wait_us : PR_SEC / 2;
	t->remembered = opts->remembered ? opts->remembered : REMEMBERED;
	t->good = pr_calloc(t->remembered, sizeof(*t->good));
	(void)pthread_mutex_init(&t->mutex, NULL);
	(void)pthread_mutex_init(&t->good_mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&t->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	if (t->url) {
		(void)curl_global_init(CURL_GLOBAL_DEFAULT);
		if (pr_thread_start(&t->thread, "jwks", fetch_thread, t, err) < 0) {
			pr_tokens_free(t);
			return -1;
		}
		t->running = 1;
	}
	*ret = t;
	return 0;
}

void pr_tokens_free(struct pr_tokens *t)
{
	if (!t)
		return;
	(void)pthread_mutex_lock(&t->mutex);
	t->stopping = 1;
	(void)pthread_cond_broadcast(&t->changed);
	(void)pthread_mutex_unlock(&t->mutex);
	if (t->running)
		(void)pthread_join(t->thread, NULL);
	(void)pthread_cond_destroy(&t->changed);
	(void)pthread_mutex_destroy(&t->mutex);
	(void)pthread_mutex_destroy(&t->good_mutex);
	free(t->good);
	free(t->url);
	free(t->issuer);
	free(t->audience);
	free(t);
}

/* ---- finding the key ---- */

/* With the mutex. */
static const struct public_key *find(const struct pr_tokens *t, const char *kid)
{
	for (int i = 0; i < t->keys; i++)
		if (strcmp(t->key[i].kid, kid) == 0)
			return &t->key[i];
	return NULL;
}

/* With the mutex. What was asked for a moment ago, with whatever success, is not asked for again: forged
 * tokens cost nothing. */
static void want(struct pr_tokens *t, int may_wait)
{
	int64_t deadline = pr_mono_us() + t->wait_us;
	uint64_t before = t->fetches;
	struct timespec ts;

	if (!t->running || (t->tried_us && pr_mono_us() - t->tried_us < t->cooldown_us))
		return;
	t->wanted = 1;
	(void)pthread_cond_broadcast(&t->changed);
	until(t->wait_us, &ts);
	while (may_wait && t->fetches == before && !t->stopping && pr_mono_us() < deadline)
		(void)pthread_cond_timedwait(&t->changed, &t->mutex, &ts);
}

static enum pr_token_verdict key_of(
	struct pr_tokens *t, const char *kid, int may_wait, struct public_key *ret, uint64_t *ret_generation)
{
	enum pr_token_verdict verdict = PR_TOKEN_OK;
	const struct public_key *key;

	(void)pthread_mutex_lock(&t->mutex);
	key = find(t, kid);
	if (!key) {
		want(t, may_wait);
		key = find(t, kid);
	}
	if (key)
		*ret = *key;
	else
		verdict = t->keys ? PR_TOKEN_UNKNOWN_KEY : PR_TOKEN_NO_KEYS;
	*ret_generation = t->generation;
	(void)pthread_mutex_unlock(&t->mutex);
	return verdict;
}

/* ---- the signature ---- */

/* libsodium's: OpenSSL 3.0 takes two and a half times as long, and thousands come with a token of their own.
 */
static int signature_ok(const struct public_key *key, const char *text, size_t n, const unsigned char sig[64])
{
	return crypto_sign_verify_detached(sig, (const unsigned char *)text, n, key->x) == 0;
}

static struct good *slot(struct pr_tokens *t, const unsigned char *digest)
{
	uint64_t h;

	memcpy(&h, digest, sizeof(h));
	return &t->good[h % t->remembered];
}

/* Ed25519 takes 60 us; a token that is shown again (a client that polls) costs its digest only. */
static int signed_by(struct pr_tokens *t, const struct public_key *key, uint64_t generation,
	const char *token, size_t len, size_t signed_len, const unsigned char sig[64])
{
	unsigned char digest[SHA256_DIGEST_LENGTH];
	struct good *g;
	int known;

	(void)SHA256((const unsigned char *)token, len, digest);
	g = slot(t, digest);
	(void)pthread_mutex_lock(&t->good_mutex);
	known = g->generation == generation && memcmp(g->digest, digest, sizeof(digest)) == 0;
	(void)pthread_mutex_unlock(&t->good_mutex);
	if (known)
		return 1;
	if (!signature_ok(key, token, signed_len, sig))
		return 0;
	(void)pthread_mutex_lock(&t->good_mutex);
	memcpy(g->digest, digest, sizeof(digest));
	g->generation = generation;
	(void)pthread_mutex_unlock(&t->good_mutex);
	return 1;
}

/* ---- the token ---- */

/* The JSON object that a part of the token holds; text (size bytes) keeps it as text. */
static cJSON *part(const char *s, size_t n, char *text, size_t size)
{
	int len = service_base64_decode(s, n, (unsigned char *)text, size - 1);
	cJSON *json = NULL;

	if (len <= 0 || !pr_json_text(text, (size_t)len))
		return NULL;
	text[len] = '\0';
	json = cJSON_Parse(text);
	if (cJSON_IsObject(json))
		return json;
	cJSON_Delete(json);
	return NULL;
}

static enum pr_token_verdict read_header(const char *s, size_t n, char kid[64])
{
	char text[1024];
	cJSON *header = part(s, n, text, sizeof(text));
	const char *key = text_of(header, "kid");
	enum pr_token_verdict verdict = PR_TOKEN_OK;

	if (!header || cJSON_HasObjectItem(header, "crit"))
		verdict = PR_TOKEN_MALFORMED;
	else if (!is_text(header, "alg", "EdDSA"))
		verdict = PR_TOKEN_ALGORITHM;
	else if (!key || strlen(key) >= 64)
		verdict = PR_TOKEN_UNKNOWN_KEY;
	else
		(void)snprintf(kid, 64, "%s", key);
	cJSON_Delete(header);
	return verdict;
}

/* -1: not there; -2: not a time. */
static int64_t seconds(const cJSON *claims, const char *name)
{
	const cJSON *v = cJSON_GetObjectItemCaseSensitive(claims, name);

	if (!v)
		return -1;
	return cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < 1e12 ? (int64_t)v->valuedouble
										 : -2;
}

static int for_audience(const cJSON *claims, const char *audience)
{
	const cJSON *aud = cJSON_GetObjectItemCaseSensitive(claims, "aud"), *one;

	if (cJSON_IsString(aud))
		return strcmp(aud->valuestring, audience) == 0;
	if (cJSON_IsArray(aud))
		cJSON_ArrayForEach(one,
			aud) if (cJSON_IsString(one) && strcmp(one->valuestring, audience) == 0) return 1;
	return 0;
}

static enum pr_token_verdict judge(const struct pr_tokens *t, const cJSON *claims, struct pr_claims *ret)
{
	int64_t now = pr_wall_us() / PR_SEC, from = seconds(claims, "nbf");
	const char *sub = text_of(claims, "sub");

	ret->issued = seconds(claims, "iat");
	ret->expires = seconds(claims, "exp");
	if (!sub || !*sub || strlen(sub) >= sizeof(ret->sub) || ret->expires < 0 || from == -2 ||
		ret->issued == -2)
		return PR_TOKEN_MALFORMED;
	(void)snprintf(ret->sub, sizeof(ret->sub), "%s", sub);
	if (!is_text(claims, "iss", t->issuer))
		return PR_TOKEN_ISSUER;
	if (!for_audience(claims, t->audience))
		return PR_TOKEN_AUDIENCE;
	if (now >= ret->expires + SLACK_S)
		return PR_TOKEN_EXPIRED;
	if (now < from - SLACK_S || now < ret->issued - SLACK_S)
		return PR_TOKEN_NOT_YET;
	return PR_TOKEN_OK;
}

enum pr_token_verdict pr_tokens_verify(
	struct pr_tokens *t, const char *token, size_t len, int may_wait, struct pr_claims *claims)
{
	const char *dot = memchr(token, '.', len), *end = token + len;
	const char *sig_dot = dot ? memchr(dot + 1, '.', (size_t)(end - dot - 1)) : NULL;
	unsigned char sig[64];
	struct public_key key;
	struct pr_claims got;
	enum pr_token_verdict verdict;
	uint64_t generation;
	cJSON *json;

	if (len == 0)
		return PR_TOKEN_MISSING;
	if (len > PR_TOKEN_MAX)
		return PR_TOKEN_TOO_LONG;
	if (!sig_dot)
		return PR_TOKEN_MALFORMED;
	verdict = read_header(token, (size_t)(dot - token), got.kid);
	if (verdict != PR_TOKEN_OK)
		return verdict;
	if (service_base64_decode(sig_dot + 1, (size_t)(end - sig_dot - 1), sig, sizeof(sig)) != sizeof(sig))
		return PR_TOKEN_MALFORMED;
	verdict = key_of(t, got.kid, may_wait, &key, &generation);
	if (verdict != PR_TOKEN_OK)
		return verdict;
	if (!signed_by(t, &key, generation, token, len, (size_t)(sig_dot - token), sig))
		return PR_TOKEN_SIGNATURE;
	json = part(dot + 1, (size_t)(sig_dot - dot - 1), got.json, sizeof(got.json));
	if (!json)
		return PR_TOKEN_MALFORMED;
	verdict = judge(t, json, &got);
	cJSON_Delete(json);
	if (verdict == PR_TOKEN_OK)
		*claims = got;
	return verdict;
}
