/* cli/ui_gate.c -- the token, passes and plans of `postrider ui`. Refuses to keep the token's bytes, to say
 * which of two secrets was wrong, and to grow: sixteen passes, sixteen plans each, the oldest go. */
#include "cli/ui_gate.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PASSES     16
#define PLANS      16
#define STAMP_LIFE (600 * PR_SEC)
#define MINUTE     (60 * PR_SEC)

struct plan {
	char id[UI_ID];
	cJSON *what;
};

struct pass {
	char id[UI_ID]; /* "": free */
	int64_t since_us;
	struct ui_pass shown;
	struct plan plan[PLANS];
	int next;
};

/* So many in a minute; beginning with the first of them. */
struct bound {
	int64_t since_us;
	int n;
};

struct ui_gate {
	pthread_mutex_t mutex;
	unsigned char key[32]; /* of stamps */
	char token[UI_ID];     /* its digest */
	int64_t life_us;
	struct pass pass[PASSES];
	struct bound wrong, deeds;
};

static void to_hex(const unsigned char *p, size_t n, char *ret)
{
	for (size_t i = 0; i < n; i++)
		(void)snprintf(ret + 2 * i, 3, "%02x", p[i]);
}

void ui_digest(const void *p, size_t n, char *ret)
{
	unsigned char sum[SHA256_DIGEST_LENGTH];

	(void)SHA256(p, n, sum);
	to_hex(sum, sizeof(sum), ret);
}

int ui_same(const char *a, const char *b)
{
	char x[UI_ID], y[UI_ID];

	ui_digest(a, strlen(a), x);
	ui_digest(b, strlen(b), y);
	return CRYPTO_memcmp(x, y, sizeof(x)) == 0;
}

/* Without randomness there is no pass: nothing is let in. */
static int new_id(char *ret)
{
	unsigned char bytes[32];

	ret[0] = '\0';
	if (RAND_bytes(bytes, sizeof(bytes)) != 1)
		return -1;
	to_hex(bytes, sizeof(bytes), ret);
	return 0;
}

struct ui_gate *ui_gate_new(const char *token, int64_t life_us)
{
	struct ui_gate *g = pr_calloc(1, sizeof(*g));

	(void)pthread_mutex_init(&g->mutex, NULL);
	if (RAND_bytes(g->key, sizeof(g->key)) != 1) {
		free(g);
		return NULL;
	}
	ui_digest(token, strlen(token), g->token);
	g->life_us = life_us;
	return g;
}

static void forget(struct pass *p)
{
	for (int i = 0; i < PLANS; i++)
		cJSON_Delete(p->plan[i].what);
	OPENSSL_cleanse(p, sizeof(*p));
}

void ui_gate_free(struct ui_gate *g)
{
	if (!g)
		return;
	for (int i = 0; i < PASSES; i++)
		forget(&g->pass[i]);
	(void)pthread_mutex_destroy(&g->mutex);
	OPENSSL_cleanse(g, sizeof(*g));
	free(g);
}

/* ---------------------------------------------------------------- stamps */

static void stamp_of(struct ui_gate *g, int64_t at, char *ret)
{
	unsigned char sum[SHA256_DIGEST_LENGTH];
	unsigned n = sizeof(sum);
	int len = snprintf(ret, 24, "%lld.", (long long)at);

	(void)HMAC(EVP_sha256(), g->key, sizeof(g->key), (const unsigned char *)ret, (size_t)len, sum, &n);
	to_hex(sum, sizeof(sum), ret + len);
}

void ui_gate_stamp(struct ui_gate *g, int64_t now, char *ret)
{
	stamp_of(g, now, ret);
}

int ui_gate_stamp_ok(struct ui_gate *g, int64_t now, const char *stamp)
{
	int64_t at = strtoll(stamp, NULL, 10);
	char ours[UI_ID + 32];

	stamp_of(g, at, ours);
	return ui_same(ours, stamp) && at <= now && now - at < STAMP_LIFE;
}

/* ---------------------------------------------------------------- passes; all under the lock */

static int is_full(struct bound *b, int64_t now, int most)
{
	if (now - b->since_us >= MINUTE)
		*b = (struct bound){ .since_us = now };
	return b->n >= most;
}

static struct pass *find(struct ui_gate *g, int64_t now, const char *id)
{
	for (int i = 0; i < PASSES; i++) {
		struct pass *p = &g->pass[i];

		if (p->id[0] && now - p->since_us >= g->life_us)
			forget(p);
		if (p->id[0] && ui_same(p->id, id))
			return p;
	}
	return NULL;
}

static struct pass *oldest(struct ui_gate *g)
{
	struct pass *best = &g->pass[0];

	for (int i = 0; i < PASSES; i++) {
		if (!g->pass[i].id[0])
			return &g->pass[i];
		if (g->pass[i].since_us < best->since_us)
			best = &g->pass[i];
	}
	return best;
}

static int open_pass(struct ui_gate *g, int64_t now, const char *who, char *ret_id)
{
	struct pass *p = oldest(g);

	forget(p);
	if (new_id(p->shown.form) < 0 || new_id(p->id) < 0)
		return -1;
	p->since_us = now;
	/* Typed, not proved: whoever has the token may call himself what he likes. */
	(void)snprintf(p->shown.who, sizeof(p->shown.who), *who ? "%.60s (ui)" : "ui", who);
	memcpy(ret_id, p->id, UI_ID);
	return 0;
}

enum ui_entry ui_gate_enter(struct ui_gate *g, int64_t now, const char *token, const char *who, char *ret_id)
{
	enum ui_entry rc = UI_WRONG;
	char digest[UI_ID];

	ui_digest(token, strlen(token), digest);
	(void)pthread_mutex_lock(&g->mutex);
	if (is_full(&g->wrong, now, UI_TRIES))
		rc = UI_TOO_MANY;
	else if (CRYPTO_memcmp(digest, g->token, sizeof(digest)) != 0)
		g->wrong.n++;
	else if (open_pass(g, now, who, ret_id) == 0)
		rc = UI_IN;
	(void)pthread_mutex_unlock(&g->mutex);
	return rc;
}

int ui_gate_pass(struct ui_gate *g, int64_t now, const char *id, struct ui_pass *ret)
{
	struct pass *p;

	(void)pthread_mutex_lock(&g->mutex);
	p = find(g, now, id);
	if (p)
		*ret = p->shown;
	(void)pthread_mutex_unlock(&g->mutex);
	return p ? 0 : -1;
}

void ui_gate_leave(struct ui_gate *g, const char *id)
{
	struct pass *p;

	(void)pthread_mutex_lock(&g->mutex);
	p = find(g, 0, id);
	if (p)
		forget(p);
	(void)pthread_mutex_unlock(&g->mutex);
}

/* ---------------------------------------------------------------- plans */

int ui_gate_keep(struct ui_gate *g, int64_t now, const char *id, cJSON *plan, char *ret_plan)
{
	struct pass *p;
	int rc = -1;

	(void)pthread_mutex_lock(&g->mutex);
	p = find(g, now, id);
	if (p && new_id(ret_plan) == 0) {
		struct plan *at = &p->plan[p->next++ % PLANS];

		cJSON_Delete(at->what);
		at->what = plan;
		memcpy(at->id, ret_plan, UI_ID);
		plan = NULL;
		rc = 0;
	}
	(void)pthread_mutex_unlock(&g->mutex);
	cJSON_Delete(plan);
	return rc;
}

cJSON *ui_gate_take(struct ui_gate *g, int64_t now, const char *id, const char *plan)
{
	cJSON *what = NULL;
	struct pass *p;

	(void)pthread_mutex_lock(&g->mutex);
	p = find(g, now, id);
	for (int i = 0; p && i < PLANS && !what; i++)
		if (p->plan[i].what && ui_same(p->plan[i].id, plan)) {
			what = p->plan[i].what;
			p->plan[i].what = NULL;
		}
	(void)pthread_mutex_unlock(&g->mutex);
	return what;
}

int ui_gate_may(struct ui_gate *g, int64_t now)
{
	int may;

	(void)pthread_mutex_lock(&g->mutex);
	may = !is_full(&g->deeds, now, UI_DEEDS);
	g->deeds.n += may;
	(void)pthread_mutex_unlock(&g->mutex);
	return may;
}
