/* cli/replay.h -- what the verbs of `postrider replay` share. */
#ifndef PR_CLI_REPLAY_H
#define PR_CLI_REPLAY_H

#include "cli/cli.h"

/* Columns of db/queries/cli_replay_jobs.sql. */
enum {
	J_JOB,
	J_GROUP,
	J_TOPIC,
	J_STATE,
	J_RECORDS,
	J_DONE,
	J_HANDLED,
	J_DUPLICATES,
	J_MADE_AT,
	J_MADE_BY,
	J_CHANGED_AT,
	J_CHANGED_BY,
	J_NOTE,
};

/* replay_range.c: what is to be read again. */
struct range {
	const char *group, *topic;
	struct cli_topic t;
	int64_t *from, *to;    /* by partition; equal: nothing of it */
	int64_t *next;         /* where the group stands; -1 unknown to it */
	int64_t remembered_us; /* ids are known since then; 0: since ever */
	/* while ids are looked for */
	int64_t from_id, to_id;
	struct cli_progress progress;
};
/* kind: "time", "offset", "id" or "all"; the options say the rest. r->group, topic and t are set. */
int range_find(const struct cli *c, struct pr_pg *pg, struct range *r, const char *kind,
	struct pr_err *err) PR_MUSTCHECK;
int64_t range_records(const struct range *r);
void range_release(struct range *r);

/* replay.c: shows the job until it has ended; returns an exit code. */
int replay_watch(struct cli *c, struct pr_pg *pg, const char *job, struct pr_err *err);

#endif
