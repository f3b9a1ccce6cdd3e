/* consumers/sink/table_sql.h -- what is said to the database of a table target: made of the config and of
 * what the table looks like, once a session. */
#ifndef CONSUMERS_SINK_TABLE_SQL_H
#define CONSUMERS_SINK_TABLE_SQL_H

#include "lib/err.h"
#include "lib/json.h"
#include "lib/pg.h"
#include "lib/sink_conf.h"

/* In the order in which a row carries them. */
enum table_column {
	COLUMN_ID,
	COLUMN_TYPE,
	COLUMN_TOPIC,
	COLUMN_PARTITION,
	COLUMN_OFFSET,
	COLUMN_KEY,
	COLUMN_TIME,
	COLUMN_HOUR,
	COLUMN_HEADERS,
	COLUMN_PAYLOAD,
	COLUMN_PAYLOAD_BASE64,
	COLUMN_COUNT
};

struct table_sql {
	enum pr_sink_mode mode;
	int has[COLUMN_COUNT];   /* columns of ours that the table has: the others are not written */
	int key[COLUMN_COUNT];   /* that tell which row a record is about */
	int typed;               /* and of our types, all of them */
	int sends[COLUMN_COUNT]; /* columns of a COPY: what has has, or what merge looks at too */
	char *copy;              /* COPY ... FROM STDIN straight into the table; NULL: not possible */
	char *copy_aside;        /* the same rows beside it */
	char *merge;       /* the statements that bring them from there into the table; each ends with "; " */
	char *merge_again; /* instead, when some of them may be there already; NULL: the same */
	char *aside;       /* makes where COPY goes first; once a session */
};

/* Makes the table when it is not there, looks at it, and puts the statements together. PR_STOP with exit 78:
 * the config is wrong, or what is there cannot take our rows. table_sql_free accepts what is {0}. */
int table_sql_make(struct table_sql *ret, struct pr_pg *pg, const struct pr_sink_conf *conf,
	struct pr_err *err) PR_MUSTCHECK;
void table_sql_free(struct table_sql *t);

#endif
