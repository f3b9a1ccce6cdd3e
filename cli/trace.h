/* cli/trace.h -- `postrider trace`: where an event has been, from its row to its saga. */
#ifndef PR_TRACE_H
#define PR_TRACE_H

#include "cli/cli.h"

/* One event; text is borrowed from the result of trace_event, NULL where it is not known. */
struct trace {
	const char *id, *key, *type, *topic, *created_at, *seq, *saga;
	const char *held, *held_at, *reason; /* parked, behind, skipped, waiting, scheduled */
	int64_t created_us;
	int32_t partition; /* -1: not known */
	int64_t offset;    /* -1: not on the topic, as far as was seen */
	int64_t time_ms;   /* when it was published */
	char why[300];     /* why Kafka was not asked; "": it was */
};

/* Looks the record up on its topic, from the time of the row on. Only what answers is told: failures are in
 * t->why. */
void trace_record(struct cli *c, struct trace *t);

/* Adds to list what a database's groups, or its sagas, know. -1 when it may not be asked. */
int trace_groups(struct pr_pg *pg, struct trace *t, cJSON *list, struct pr_err *err) PR_MUSTCHECK;
int trace_saga(struct pr_pg *pg, const char *id, cJSON *list, struct pr_err *err) PR_MUSTCHECK;

#endif
