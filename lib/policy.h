/* lib/policy.h -- what follows from a handler's failure: class and code -> rule. One pure function, so that
 * `postrider explain-error` says exactly what the consumer would do. */
#ifndef PR_POLICY_H
#define PR_POLICY_H

#include <stddef.h>
#include <stdint.h>

/* Why a message was not handled. */
enum pr_fail_class {
	PR_FAIL_NONE,
	PR_FAIL_SQLSTATE, /* code: five characters */
	PR_FAIL_HTTP,     /* code: three digits; "connect", "tls", "dns" when there was no answer */
	PR_FAIL_EXIT,     /* of a subprocess; code: exit status in decimal, or "signal:N" */
	PR_FAIL_REPLY,    /* what a C handler or a subprocess answered; code: its own word */
	PR_FAIL_DECODE,   /* code: "id", "altered" (same id, other bytes), "payload" */
	PR_FAIL_TIMEOUT,  /* the handler's deadline passed; code "" */
	PR_FAIL_CRASH,    /* it took the process (or the database's backend) along, limits.crashes times */
};

enum pr_policy {
	PR_POLICY_RETRY,       /* in place, short, at most `attempts` tries in all, then dead letter */
	PR_POLICY_BREAKER,     /* what is behind the handler is down: all lanes pause, one probes */
	PR_POLICY_PARK,        /* the key waits in inbox.parked with all behind it, retried with backoff */
	PR_POLICY_DEAD_LETTER, /* at once */
	PR_POLICY_IGNORE,      /* counts as handled */
	PR_POLICY_STOP,        /* the consumer ends with exit status 1 */
};

/* One element of errors = ( { match = "sqlstate:23*"; policy = "park"; attempts = 5; backoff = "1s"; ... } ).
 */
struct pr_rule {
	const char *match;  /* "sqlstate:23*", "http:5xx", "http:429", "exit:*", "reply:busy", "decode:id",
			     * "timeout", "crash", "*": class, and after a colon its code (no code: any); * at
			     * the  end matches any rest, in HTTP's codes x one digit */
	int policy;         /* enum pr_policy */
	int64_t attempts;   /* tries in all, before the message is buried; of park 0: for ever. Default 5 */
	int64_t backoff_us; /* first delay; doubles with jitter */
	int64_t backoff_max_us;
};

extern const struct pr_rule pr_default_rules[]; /* after the user's; ends with match "*" */

/* The first matching rule of rules[0..n), else of pr_default_rules: never NULL. Borrowed. */
const struct pr_rule *pr_policy_of(
	const struct pr_rule *rules, size_t n, enum pr_fail_class cls, const char *code);

/* "sqlstate", "http", ...; "" for PR_FAIL_NONE. And back from "class:code" (code may be missing): the class,
 * PR_FAIL_NONE when there is none of that name; *ret_code points into text. */
const char *pr_fail_class_str(enum pr_fail_class cls);
enum pr_fail_class pr_fail_class_parse(const char *text, const char **ret_code);
const char *pr_policy_str(enum pr_policy policy);

/* NULL when this is a match pattern, else what is wrong with it (static text). */
const char *pr_match_problem(const char *match);

#endif
