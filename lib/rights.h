/* lib/rights.h -- a right or an object that is missing in Postgres, and the statement that mends it. Pure:
 * from the error's words, which name the object without its schema. */
#ifndef PR_RIGHTS_H
#define PR_RIGHTS_H

#include <stddef.h>

/* What to do about an error of a statement that login ran: "GRANT USAGE ON SCHEMA seat TO seat_app". buf is
 * "" when the error is of another kind. sqlstate and text as in struct pr_err; login NULL: not known. */
void pr_rights_hint(const char *sqlstate, const char *text, const char *login, char *buf, size_t size);

/* name as SQL takes it: quoted unless it needs no quotes; cut to size. Returns buf. */
char *pr_quote_ident(const char *name, size_t n, char *buf, size_t size);

#endif
