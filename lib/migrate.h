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
 * upgraded or newer, unless all that is newer bears programs that know as little
 * (outbox.schema_version.oldest: the least number that a program has to know). A crash leaves the database at
 * one of the versions, never between two. */
int pr_migrate(struct pr_pg *pg, int *ret_applied, struct pr_err *err) PR_MUSTCHECK;

/* The migrations as plain SQL for other tools (psql -1, Flyway, ...): what is applied already is
 * stepped over. The caller looks at ferror(out). */
void pr_migrate_print(FILE *out);

/* Migrations that this database has from another text than this program's: the file was edited between the
 * two builds. */
struct pr_schema_edit {
	int number;
	const char *name, *ours; /* SHA-256 in hexadecimal digits */
	char theirs[65];         /* "": applied by a program that kept none */
	char applied_at[32];     /* RFC 3339 */
};

/* After pr_schema_check or pr_migrate, which compare names only. *ret (n of them) is the caller's to free,
 * also when there are none. Reads only. */
int pr_schema_edited(
	struct pr_pg *pg, struct pr_schema_edit **ret, int *ret_n, struct pr_err *err) PR_MUSTCHECK;

/* 0 when the schema is exactly the one this program knows; else PR_STOP, exit 78 (77 when we may not
 * look), with what to do. Reads only. */
int pr_schema_check(struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

#endif
