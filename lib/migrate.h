/* lib/migrate.h -- brings the schema of a database to what this program knows, or says how the two
 * differ. One thread, one connection, which is left outside any transaction. */
#ifndef PR_MIGRATE_H
#define PR_MIGRATE_H

#include "lib/err.h"
#include "lib/pg.h"

#include <stdio.h>

/* Applies the pending migrations in order, each with its record in outbox.schema_version in one
 * transaction under an advisory lock: of two at once one waits (20 s at most) and then finds
 * nothing to do. *ret_applied (may be NULL): how many. Refuses a schema that is not ours, half
 * upgraded or newer. A crash leaves the database at one of the versions, never between two. */
int pr_migrate(struct pr_pg *pg, int *ret_applied, struct pr_err *err) PR_MUSTCHECK;

/* The migrations as plain SQL for other tools (psql -1, Flyway, ...): what is applied already is
 * stepped over. The caller looks at ferror(out). */
void pr_migrate_print(FILE *out);

/* 0 when the schema is exactly the one this program knows; else PR_STOP, exit 78 (77 when we may not
 * look), with what to do. Reads only. */
int pr_schema_check(struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

#endif
