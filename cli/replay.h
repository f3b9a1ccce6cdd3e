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

/* replay.c: shows the job until it has ended; returns an exit code. */
int replay_watch(struct cli *c, struct pr_pg *pg, const char *job, struct pr_err *err);

#endif
