/* cli/saga.h -- what the verbs of `postrider saga` share: which sagas are meant, how they are read, and what
 * an order would do to one. The engine decides and acts; these programs ask it. */
#ifndef PR_CLI_SAGA_H
#define PR_CLI_SAGA_H

#include "cli/cli.h"
#include "lib/saga_core.h"

/* ---- saga_find.c ---- */

/* Columns of db/queries/saga_list.sql. */
enum {
	SL_ID,
	SL_NAME,
	SL_VERSION,
	SL_STATE,
	SL_FAILED,
	SL_WHY,
	SL_STARTED,
	SL_SINCE,
	SL_FINISHED,
	SL_DUE,
	SL_AGE,
	SL_AT,
	SL_LOCK,
};

/* Options of the command line. */
struct saga_filter {
	char *states; /* a Postgres array, owned; NULL: any */
	int live;     /* only those alive */
	int indexed;  /* there is an index on these states */
	const char *name, *step;
	char older[24]; /* microseconds; "": any */
};
/* state: when none is given; NULL: all that are alive. */
void saga_filter_take(struct saga_filter *f, const struct cli *c, const char *state);
void saga_filter_release(struct saga_filter *f);
int saga_filtered(const struct cli *c); /* whether any option narrows the choice */

/* All that the filter finds, the youngest ids first, page by page: begun as {0}. A page has at most `most`;
 * it may be empty, and the next one not, for no statement looks through more than a stretch of them. */
struct saga_scan {
	char after[37];
	int done; /* there are no more */
};
PGresult *saga_page(struct pr_pg *pg, const struct saga_filter *f, struct saga_scan *scan, int64_t most,
	struct pr_err *err) PR_MUSTCHECK;

/* The sagas that are meant. */
struct saga_pick {
	struct saga_picked {
		char id[37];
		char name[65];
	} * v;
	int n, cap;
};
int saga_check_id(const char *text, struct pr_err *err) PR_MUSTCHECK;
int saga_not_found(struct pr_err *err, const char *id); /* fills err, exit 4; returns -1 */
/* What the operands name, all of which must be there, or what the filter finds. version: only those on it; 0:
 * any. */
int saga_pick(const struct cli *c, struct pr_pg *pg, const struct saga_filter *f, int64_t version,
	struct saga_pick *ret, struct pr_err *err) PR_MUSTCHECK;
void saga_pick_release(struct saga_pick *p);
void saga_put_ids(struct pr_buf *b, const struct saga_picked *v, int n); /* "{...}" */

/* Postgres' own text of a time -> RFC 3339 with microseconds; NULL for SQL NULL. */
#define SAGA_TIME 40
const char *saga_time(const PGresult *res, int row, int col, char *buf);
void saga_json_time(cJSON *o, const char *name, const PGresult *res, int row, int col);
double saga_seconds(const PGresult *res, int row, int col); /* of a column in microseconds */
enum cli_colour saga_colour(const char *state);

/* --data: JSON, or "@file", "@-". *ret is malloc'd, one JSON object. */
int saga_data_option(const struct cli *c, char **ret, struct pr_err *err) PR_MUSTCHECK;

/* ---- saga_rehearse.c ---- */

/* A saga read from the database, with its definition. */
struct saga_copy {
	struct saga_def *def;
	struct saga_instance in;
	int64_t now_us; /* the database's clock */
};
/* Row i of db/queries/saga_instances.sql. -1: its definition is missing or cannot be read. */
int saga_copy_read(const PGresult *res, int i, struct saga_copy *ret, struct pr_err *err) PR_MUSTCHECK;
void saga_copy_release(struct saga_copy *s);
/* What the order would do, in words (appended); changes the copy. -1: it would be refused, err says why. */
int saga_rehearse(struct saga_copy *s, enum saga_order order, const char *step, const char *detail,
	const struct saga_def *to, struct pr_buf *words, struct pr_err *err) PR_MUSTCHECK;
/* A registered version. */
int saga_version(struct pr_pg *pg, const char *name, int64_t version, struct saga_def **ret,
	struct pr_err *err) PR_MUSTCHECK;

/* ---- saga_order.c ---- */

/* Asks the engine for one saga and waits; returns an exit code. */
int saga_order_one(const struct cli *c, struct pr_pg *pg, enum saga_order order, const char *id,
	const char *name, const char *detail, struct pr_err *err);

#endif
