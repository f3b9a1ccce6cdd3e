/* producers/user/password.h -- passwords as Argon2id hashes (libsodium). Slow on purpose: for PR_HEAVY
 * endpoints. */
#ifndef USER_PASSWORD_H
#define USER_PASSWORD_H

#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

#define PASSWORD_HASH_SIZE 128

/* Before anything else, once. ops, memory: of new hashes, and of the one that stands in for users who are not
 * there. */
int password_init(int64_t ops, int64_t memory, struct pr_err *err) PR_MUSTCHECK;

/* -1: no memory. */
int password_hash(const char *password, char hash[PASSWORD_HASH_SIZE]) PR_MUSTCHECK;

/* Whether it is the password of hash. NULL: never, and it takes as long. */
int password_is(const char *password, const char *hash) PR_MUSTCHECK;

#endif
