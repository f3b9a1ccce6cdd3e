/* lib/err.h -- what failed, and what the caller may do about it.
 *
 * Fallible functions return 0 or -1 (or a pointer or NULL) and take a
 * struct pr_err * last: filled on failure, untouched on success. The kind is
 * the decision. lib/ and producers/ never log; whoever decides, logs, once. */
#ifndef PR_ERR_H
#define PR_ERR_H

#include <stdarg.h>
#include <stddef.h>

#define PR_MUSTCHECK    __attribute__((warn_unused_result))
#define PR_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Exit codes of every program (sysexits where one fits). */
enum pr_exit {
	PR_EX_OK = 0,
	PR_EX_FAILED = 1,
	PR_EX_USAGE = 2,
	PR_EX_UNHEALTHY = 3,
	PR_EX_NOT_FOUND = 4,
	PR_EX_REFUSED = 5, /* refused, or needs --yes */
	PR_EX_UNAVAILABLE = 69,
	PR_EX_BUG = 70,
	PR_EX_NOPERM = 77,
	PR_EX_CONFIG = 78,
};

enum pr_kind {
	PR_RETRY,  /* the same input may work later: network, lock, broker down */
	PR_REJECT, /* this input never will: bad value, refused by the other side */
	PR_STOP,   /* we must not go on: fenced, wrong database, our own bug */
};

struct pr_err {
	enum pr_kind kind;
	int exit;       /* enum pr_exit that a program ending on this error returns */
	char code[32];  /* SQLSTATE, librdkafka error name, errno name; "" when none */
	char text[600]; /* lower case, no full stop, names the object */
	char hint[400]; /* what to do about it; "" when we do not know */
};

/* Fills *err (which may be NULL) and returns -1, so that "return pr_fail(...)"
 * reads well. A trailing newline of the formatted text is cut (libpq's have one).
 * exit becomes FAILED, UNAVAILABLE for PR_RETRY; set it afterwards to say more. */
int pr_fail(struct pr_err *err, enum pr_kind kind, const char *fmt, ...) PR_PRINTF(3, 4);

/* Adds the hint to a filled error; returns -1 like pr_fail. */
int pr_hint(struct pr_err *err, const char *fmt, ...) PR_PRINTF(2, 3);

/* Puts "context: " before the text; returns -1. */
int pr_wrap(struct pr_err *err, const char *fmt, ...) PR_PRINTF(2, 3);

/* "retry", "reject", "stop". */
const char *pr_kind_str(enum pr_kind kind);

/* Programs die on out of memory (lib/ and everything above; producers/ returns it). */
void *pr_malloc(size_t n) __attribute__((returns_nonnull, malloc));
void *pr_calloc(size_t n, size_t size) __attribute__((returns_nonnull, malloc));
void *pr_realloc(void *p, size_t n) __attribute__((returns_nonnull));
char *pr_strdup(const char *s) __attribute__((returns_nonnull, malloc));
char *pr_asprintf(const char *fmt, ...) PR_PRINTF(1, 2) __attribute__((returns_nonnull));

#endif
