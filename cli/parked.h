/* cli/parked.h -- `postrider parked` of a consumer group: what parked.c hands over when a group
 * is meant, and what the files of the group's half share. */
#ifndef PR_CLI_PARKED_H
#define PR_CLI_PARKED_H

#include "cli/cli.h"

/* Columns of db/queries/cli_parked_keys.sql: a key's first message speaks for it. */
enum {
	PK_ENTRY,
	PK_TOPIC,
	PK_PARTITION,
	PK_OFFSET,
	PK_KEY,
	PK_ID,
	PK_CLASS,
	PK_CODE,
	PK_REASON,
	PK_ATTEMPTS,
	PK_REQUEST,
	PK_EVENTS,
	PK_DUE,
	PK_DUE_IN,
	PK_SINCE,
	PK_AGE,
	PK_KEY_BYTES,
};

/* Columns of db/queries/cli_parked_messages.sql. */
enum {
	PM_ENTRY,
	PM_TOPIC,
	PM_PARTITION,
	PM_OFFSET,
	PM_KEY,
	PM_ID,
	PM_TYPE,
	PM_CLASS,
	PM_CODE,
	PM_REASON,
	PM_ATTEMPTS,
	PM_REQUEST,
	PM_DUE,
	PM_TIME,
	PM_SINCE,
	PM_BEHIND,
	PM_DEAD_LETTER,
	PM_BYTES,
	PM_PAYLOAD,
	PM_KEY_BYTES,
};

/* parked_group.c. Filters are the options of the verb. */
PGresult *parked_keys(const struct cli *c, struct pr_pg *pg, int64_t limit, struct pr_err *err) PR_MUSTCHECK;
PGresult *parked_messages(
	const struct cli *c, struct pr_pg *pg, int payloads, int64_t limit, struct pr_err *err) PR_MUSTCHECK;
/* Nothing was found. Fills err (exit 4) either way; 0: the group is there and holds nothing like that back,
 * -1: no such group has run, or the database failed. */
int parked_nothing(const struct cli *c, struct pr_pg *pg, struct pr_err *err);
void parked_heading(const struct cli *c);
char *parked_failure(const char *cls, const char *code); /* "sqlstate:23505"; malloc'd */

int parked_group_list(struct cli *c);
int parked_group_show(struct cli *c);

/* parked_ask.c: what is "retry" or "skip"; many: release. */
int parked_group_ask(struct cli *c, const char *what);

#endif
