/* consumers/webhook_sign.h -- signatures of Standard Webhooks (https://www.standardwebhooks.com), the
 * symmetric kind: "v1," and the base64 of HMAC-SHA256 over "id.timestamp.body". */
#ifndef CONSUMERS_WEBHOOK_SIGN_H
#define CONSUMERS_WEBHOOK_SIGN_H

#include "lib/err.h"
#include "lib/json.h"

struct webhook_keys;

/* Keys of "whsec_<base64>", several with spaces between them while one is being replaced: each gives a
 * signature of its own. The error never shows a secret. The caller frees. */
int webhook_keys_parse(const char *secret, struct webhook_keys **ret, struct pr_err *err) PR_MUSTCHECK;
void webhook_keys_free(struct webhook_keys *k); /* accepts NULL; wipes them */

/* Appends the value of header webhook-signature for text[0..len), which is "id.timestamp.body". */
void webhook_sign_put(struct pr_buf *b, const struct webhook_keys *k, const void *text, size_t len);

#endif
