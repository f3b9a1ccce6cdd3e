/* consumers/outcome.h -- fills a failed outcome with words that came from outside: what goes into it can
 * be stored in Postgres and put into a label, whatever a handler said. */
#ifndef CONSUMERS_OUTCOME_H
#define CONSUMERS_OUTCOME_H

#include "consumers/handler.h"

/* o failed. code: printable ASCII without blanks, anything else becomes '_', cut. The text may hold any
 * bytes: when it is no UTF-8 all that is not ASCII becomes '?', control characters become blanks, and it is
 * cut between two characters. */
void outcome_fail(struct outcome *o, enum pr_fail_class cls, const char *code, const char *fmt, ...)
	PR_PRINTF(4, 5);

/* Makes words storable: what is no UTF-8 becomes '?', control characters blanks, cut to size in between two
 * characters. */
void outcome_text(char *to, size_t size, const char *from);

/* Not tried, because a message before it was not handled: it will come again. */
void outcome_behind(struct outcome *o);

#endif
