/* cli/adopt.h -- somebody else's outbox table, and what becomes of it: the SQL that makes each row written
 * into it an event of ours, in the writer's transaction. Between `postrider adopt` and `import-debezium`
 * only. */
#ifndef PR_ADOPT_H
#define PR_ADOPT_H

#include "cli/cli.h"

/* The columns of outbox.event that can be filled, in the order of the INSERT; "at" is of outbox.scheduled. */
enum adopt_field {
	ADOPT_ID,
	ADOPT_ROUTE,
	ADOPT_KEY,
	ADOPT_TYPE,
	ADOPT_PAYLOAD,
	ADOPT_BYTES,
	ADOPT_HEADERS,
	ADOPT_TOPIC,
	ADOPT_PARTITION,
	ADOPT_VERSION,
	ADOPT_TRACE,
	ADOPT_AT,
	ADOPT_FIELDS,
};
extern const char *const adopt_fields[ADOPT_FIELDS];

/* How the old publisher says that a row is done. */
struct adopt_flag {
	const char *column, *value; /* SQL */
};

#define ADOPT_FLAGS 2
struct adopt {
	char *schema, *table;
	char *expr[ADOPT_FIELDS];             /* SQL over the row n; NULL: left to its default */
	struct adopt_flag flags[ADOPT_FLAGS]; /* column NULL: none */
	const char *pending; /* SQL over n: the old publisher has not sent it; NULL: nobody can tell */
	const char *order;   /* of what is pending */
};

/* adopt_sql.c. One transaction: begin, triggers, perhaps the rows that wait, end. */
void adopt_sql_begin(const struct adopt *a, struct pr_buf *b);
void adopt_sql_triggers(const struct adopt *a, struct pr_buf *b);
void adopt_sql_take(
	const struct adopt *a, struct pr_buf *b); /* pending must be there; gives events, scheduled */
void adopt_sql_end(struct pr_buf *b);
void adopt_sql_undo(const struct adopt *a, struct pr_buf *b);
void adopt_put_literal(struct pr_buf *b, const char *s);
int adopt_is_reserved(const char *header);
/* The members of a JSON object that may be headers; x is SQL that gives jsonb. */
char *adopt_headers(const char *x);
void adopt_release(struct adopt *a);

/* adopt_layout.c: which columns of a table are what. */
enum adopt_fate {
	ADOPT_UNKNOWN,
	ADOPT_KEPT,     /* it means the same in relay.cfg or in the SQL */
	ADOPT_NEEDLESS, /* what it is for does not exist here */
	ADOPT_DIFFERS,  /* readers of the topics, or operators, will notice */
	ADOPT_TO_DO,    /* it can be had, by hand */
	ADOPT_IMPOSSIBLE,
};
extern const char *const adopt_fate_str[];

struct adopt_column {
	const char *name, *type; /* borrowed from the catalogue */
	enum adopt_fate fate;
	char why[260];
};

struct adopt_table {
	const char *schema, *table, *space; /* space: what makes an id of a number its own; borrowed */
	struct adopt_column *v;
	int n;
};

struct adopt_map {
	const char *column, *as;
};

struct adopt_note {
	const char *what; /* NULL ends a list */
	enum adopt_fate fate;
	const char *why;
};

struct adopt_layout;
const struct adopt_layout *adopt_layout_named(const char *name);
/* By the columns; why says by which. NULL with err (exit 5): none, or two. */
const struct adopt_layout *adopt_layout_recognise(
	const struct adopt_table *t, char *why, size_t size, struct pr_err *err);
const char *adopt_layout_name(const struct adopt_layout *l);
const struct adopt_note *adopt_layout_notes(const struct adopt_layout *l);
/* Fills a and the fates of the columns. -1: a column is missing (exit 5), or a map makes no sense (exit 2).
 */
int adopt_layout_apply(const struct adopt_layout *l, struct adopt_table *t, const struct adopt_map *maps,
	int n, struct adopt *a, struct pr_err *err) PR_MUSTCHECK;

#endif
