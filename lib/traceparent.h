/* lib/traceparent.h -- W3C Trace Context's traceparent, read and written: 00-<trace>-<span>-<flags>. Refuses
 * what is none, all of it: who gets -1 goes on as if nothing had come. */
#ifndef PR_TRACEPARENT_H
#define PR_TRACEPARENT_H

#include <stddef.h>

#define PR_TRACEPARENT_LEN 55

struct pr_trace {
	unsigned char id[16];  /* of the trace */
	unsigned char span[8]; /* of whom it comes from */
	int sampled;
};

/* Lower-case hex, no id of zeros, not version ff; of a later version than 00 what is behind the flags is left
 * out. -1: it is none. */
int pr_traceparent_read(const char *s, size_t n, struct pr_trace *ret);

/* As version 00, with a NUL behind it; returns out. */
char *pr_traceparent_put(const struct pr_trace *t, char out[PR_TRACEPARENT_LEN + 1]);

#endif
