/* cli/saga_show.h -- one saga with all that is known of it, as `postrider saga show` has read it: what its
 * two forms, for a person (saga_show.c) and for a program (saga_show_json.c), share. */
#ifndef PR_CLI_SAGA_SHOW_H
#define PR_CLI_SAGA_SHOW_H

#include "cli/saga.h"

/* Columns of db/queries/saga_show.sql. */
enum {
	S_ID,
	S_NAME,
	S_VERSION,
	S_STATE,
	S_TURNED,
	S_GRANTED,
	S_DATA,
	S_FAILED,
	S_WHY,
	S_STARTED,
	S_DEADLINE,
	S_SINCE,
	S_UPDATED,
	S_FINISHED,
	S_DUE,
	S_PART,
	S_CORRELATION,
	S_STYLE,
	S_TEXT,
	S_LOCKS,
	S_NOW,
};
/* of saga_steps.sql, saga_log.sql, saga_orders.sql */
enum { T_STEP, T_STATE, T_OP, T_TRIES, T_GENERATION, T_WAITS, T_DUE, T_SINCE, T_WHY };
enum { G_SEQ, G_AT, G_WHAT, G_STEP, G_OP, G_COMMAND, G_DETAIL, G_BY };
enum { O_ENTRY, O_WHAT, O_STEP, O_DETAIL, O_BY, O_AT, O_DONE_AT, O_OUTCOME, O_REASON };

/* A line of the timeline; NULL: none. at is RFC 3339. */
struct saga_event_line {
	char at[SAGA_TIME];
	const char *what, *step, *op, *command, *detail, *by; /* borrowed from results */
};

struct saga_shown {
	PGresult *head, *steps, *orders;
	PGresult **log; /* pages */
	int n_log;
	struct saga_def *def; /* NULL: it cannot be read */
	struct saga_event_line *event;
	int n_events;
	int cut; /* there is more in the log */
};

int saga_shown_is_over(const struct saga_shown *s);

/* Whether the saga has still to do step i, or to undo it. */
int saga_shown_is_left(const struct saga_shown *s, int i);

/* What happens to step i when its time comes: what a machine and a person read. NULL: nothing does. */
const char *saga_shown_due(const struct saga_shown *s, int i, const char **ret_words);

void saga_shown_json(const struct saga_shown *s);

#endif
