/* lib/log.h -- logfmt lines on stderr: ts= level= msg= key=value ...
 * One line per change of state, none per event, secrets never. Only programs and
 * the rooms that decide call it (relay/, consumers/, cli/), never lib/. Thread-safe:
 * a line is one write(2). Values are quoted and escaped when they need it, cut at 768 bytes. */
#ifndef PR_LOG_H
#define PR_LOG_H

#include "lib/err.h"

#include <stdint.h>

enum pr_level { PR_DEBUG, PR_INFO, PR_WARN, PR_ERROR };

struct pr_kv {
	const char *key; /* NULL ends a list */
	const char *s;   /* text, or NULL for the number */
	int64_t i;
};

static inline const char *pr_log_text(const char *s)
{
	return s ? s : "";
}

#define KS(k, v) ((struct pr_kv){ .key = (k), .s = pr_log_text(v) })
#define KI(k, v) ((struct pr_kv){ .key = (k), .i = (int64_t)(v) })

/* pr_log(PR_INFO, "relay started", KS("outbox", name), KI("pid", getpid())); borrows everything */
#define pr_log(level, msg, ...)                                                                              \
	pr_log_kv((level), (msg), (const struct pr_kv[]){ __VA_ARGS__ __VA_OPT__(, ){ .key = NULL } })

void pr_log_kv(enum pr_level level, const char *msg, const struct pr_kv *kv);

/* An error that was decided upon: msg="<msg>" err="<text>" code= hint=. */
void pr_log_err(enum pr_level level, const char *msg, const struct pr_err *err);

/* Lines below the level are dropped (default PR_INFO). */
void pr_log_level(enum pr_level level);

/* 0 and *ret on a name ("debug", "info", "warn", "error"); -1 on any other. */
int pr_level_parse(const char *name, enum pr_level *ret) PR_MUSTCHECK;

/* For repeated trouble: true once per period_us and call site (state in *last, start it at 0). */
int pr_log_due(int64_t *last, int64_t period_us);

/* Lines lost because stderr was full or closed since the start (a metric). */
uint64_t pr_log_dropped(void);

#endif
