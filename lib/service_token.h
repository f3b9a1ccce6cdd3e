/* lib/service_token.h -- the tokens that services trust: JWTs signed with Ed25519 (alg "EdDSA"), checked
 * locally against a published set of keys. A set is fetched by a thread of its own, kept when its publisher
 * is away, and fetched again when a token names a key that is not in it. Any thread may verify. Why not
 * libjwt: 1.10 knows neither EdDSA nor sets of keys (docs/decisions/0014-tokens.md). */
#ifndef PR_SERVICE_TOKEN_H
#define PR_SERVICE_TOKEN_H

#include "lib/err.h"
#include "lib/pg.h"

#include <stddef.h>
#include <stdint.h>

#define PR_TOKEN_MAX 2048 /* bytes of a token */

struct pr_claims {
	char sub[64];
	char kid[64];
	int64_t issued, expires; /* seconds since 1970 */
	char json[PR_TOKEN_MAX]; /* all of them */
};

enum pr_token_verdict {
	PR_TOKEN_OK,
	PR_TOKEN_MISSING,
	PR_TOKEN_TOO_LONG,
	PR_TOKEN_MALFORMED,
	PR_TOKEN_ALGORITHM, /* another one than EdDSA, none for one */
	PR_TOKEN_UNKNOWN_KEY,
	PR_TOKEN_SIGNATURE,
	PR_TOKEN_ISSUER,
	PR_TOKEN_AUDIENCE,
	PR_TOKEN_EXPIRED,
	PR_TOKEN_NOT_YET,
	PR_TOKEN_NO_KEYS, /* cannot be told: no set of keys could be had yet (503, not 401) */
};

/* "the token has expired" */
const char *pr_token_why(enum pr_token_verdict verdict);

/* ---------------------------------------------------------------- who verifies */

struct pr_tokens;

struct pr_tokens_opts {
	const char *url; /* of the set (JWKS); NULL: nothing is fetched, pr_tokens_adopt gives it */
	const char *issuer, *audience;
	int64_t refresh_us;  /* 0: 5 min. How old a set may be before it is fetched again */
	int64_t cooldown_us; /* 0: 5 s. Not fetched more often, whatever keys are asked for */
	int64_t wait_us;     /* 0: 500 ms. How long pr_tokens_verify waits for an unknown key's fetch */
	size_t remembered;   /* 0: 16384. Signatures found good are not computed again, so many of them */
};

/* Starts the thread when there is a url. Copies the strings. */
int pr_tokens_new(const struct pr_tokens_opts *opts, struct pr_tokens **ret, struct pr_err *err) PR_MUSTCHECK;
void pr_tokens_free(struct pr_tokens *t); /* accepts NULL; waits for a fetch under way, at most 2 s */

/* may_wait 0: an unknown key is unknown at once (it is fetched all the same). claims is filled on OK only.
 * Times may differ by 5 s. */
enum pr_token_verdict pr_tokens_verify(struct pr_tokens *t, const char *token, size_t len, int may_wait,
	struct pr_claims *claims) PR_MUSTCHECK;

/* Another set instead of the one there is; on -1 that one stays. */
int pr_tokens_adopt(struct pr_tokens *t, const char *jwks, size_t len, struct pr_err *err) PR_MUSTCHECK;

/* Seconds since the set was fetched or adopted, -1: never. */
int64_t pr_tokens_age(struct pr_tokens *t);

/* ---------------------------------------------------------------- who signs */

struct pr_keys;

/* The keys live in service.jwt_key. rotate: age at which a key is replaced; ahead: how long a new one is
 * published before it signs; life: of the longest token, after which an old key is forgotten. */
struct pr_keys *pr_keys_new(int64_t rotate_us, int64_t ahead_us, int64_t life_us);
void pr_keys_free(struct pr_keys *k);

/* Reads them, and makes and forgets keys as it is time; of several processes one does. To be called every few
 * seconds, at least twice in `ahead`. One thread at a time; the functions below on any. */
int pr_keys_refresh(struct pr_keys *k, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* The set as JSON (malloc'd), NULL before the first refresh. */
char *pr_keys_jwks(struct pr_keys *k);

/* The key that signs now; -1 before the first refresh. */
int pr_keys_current(struct pr_keys *k, char kid[64]);

/* claims: a JSON object; kid NULL, or one that is forgotten: the current one's. malloc'd; NULL: no key. The
 * same claims and key give the same token. */
char *pr_keys_sign(struct pr_keys *k, const char *kid, const char *claims);

#endif
