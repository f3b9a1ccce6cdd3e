/* lib/saga_expr.h -- conditions and invariants: || && ! == != < <= > >= ( ), numbers, "strings", true, false,
 * null and paths (data.amount, PAYMENT.applied). No functions, no loops, no assignment: always ends. */
#ifndef PR_SAGA_EXPR_H
#define PR_SAGA_EXPR_H

#include "lib/err.h"

#include <stddef.h>

struct saga_expr;

/* Compiles. -1: err says what is wrong and at which character. The caller frees. */
int saga_expr_parse(const char *text, struct saga_expr **ret, struct pr_err *err) PR_MUSTCHECK;
void saga_expr_free(struct saga_expr *e); /* accepts NULL */

/* Calls each(ctx, path) for every path of it; stops at the first that is not 0 and returns it. */
int saga_expr_paths(const struct saga_expr *e, int (*each)(void *ctx, const char *path), void *ctx);

/* Looks a path up: 1 and its raw JSON, or 0: null. Borrowed until the next call. */
typedef int (*saga_lookup)(void *ctx, const char *path, const char **ret, size_t *ret_len);

/* 1 true, 0 false. Numbers compare as numbers (exactly when both are integers of 64 bits, else as long
 * double), strings bytewise, values of different types are not equal and not ordered; null, false, 0 and ""
 * are false, all else is true. Never fails. */
int saga_expr_true(const struct saga_expr *e, saga_lookup lookup, void *ctx);

/* Whether some data make it true (wanted 1) or false (0). is_bit says of a path that it is 0 or 1 and nothing
 * else. 1 also when that is too much to look through. */
int saga_expr_can(const struct saga_expr *e, int wanted, int (*is_bit)(const char *path));

/* Calls each(ctx, paths, path, value) for all data that n expressions could tell apart: raw JSON for each of
 * their paths but those that is_bit names. Borrowed until each returns. Stops at the first that is not 0 and
 * returns it; -1: that is too much to look through. */
int saga_expr_samples(const struct saga_expr *const *e, size_t n, int (*is_bit)(const char *path),
	int (*each)(void *ctx, size_t paths, const char *const *path, const char *const *value), void *ctx);

#endif
