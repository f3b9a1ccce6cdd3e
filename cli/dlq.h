/* cli/dlq.h -- what the verbs of `postrider dlq` share: which dead letters are meant, how
 * they are read, and what counts as one cause. */
#ifndef PR_CLI_DLQ_H
#define PR_CLI_DLQ_H

#include "cli/cli.h"

/* dlq_find.c. Columns of a dead letter as db/queries/cli_dlq_page.sql gives them. */
enum {
	D_ENTRY,
	D_GROUP,
	D_TOPIC,
	D_PARTITION,
	D_OFFSET,
	D_KEY,
	D_ID,
	D_TYPE,
	D_CLASS,
	D_CODE,
	D_REASON,
	D_ATTEMPTS,
	D_BURIED,
	D_STATE,
	D_NOTE,
};

/* The dead letters that the options speak of, read in pages in the order of their entries. */
struct dlq_scan {
	struct pr_pg *pg;
	const char *state; /* NULL: all */
	const char *group, *topic, *type, *cls, *code, *cause;
	char since[32], until[32]; /* microseconds since 1970; "": open */
	int64_t after, through;    /* entries in (after, through] */
	PGresult *res;
	int row;
};

/* Options of the command line -> scan; state is what the verb looks for by default. */
void dlq_scan_begin(struct dlq_scan *s, const struct cli *c, struct pr_pg *pg, const char *state);
int dlq_next(struct dlq_scan *s, struct pr_err *err) PR_MUSTCHECK; /* 1: a row, at s->res, s->row; 0: end */
void dlq_scan_end(struct dlq_scan *s);

/* Whether any option narrows the choice. */
int dlq_filtered(const struct cli *c);

/* An operand that names a dead letter. */
int dlq_entry(const char *text, int64_t *ret, struct pr_err *err) PR_MUSTCHECK;
int dlq_not_found(struct pr_err *err, int64_t entry); /* fills err, exit 4; returns -1 */

/* What retry and drop are about: the operands (*ret is malloc'd), or all that the filter finds (*ret NULL,
 * only with --all, or `all`). */
int dlq_which(const struct cli *c, int all, int64_t **ret, int *ret_n, struct pr_err *err) PR_MUSTCHECK;
int dlq_all_dead(struct pr_pg *pg, const int64_t *v, int n, struct pr_err *err) PR_MUSTCHECK; /* or refuses */
void dlq_put_array(struct pr_buf *b, const int64_t *v, int n);                                /* "{1,2}" */

#define DLQ_SHOWN_BYTES 65536 /* of a payload on the screen */

/* dlq_show.c. Columns of db/queries/cli_dlq_show.sql. */
enum {
	L_ENTRY,
	L_GROUP,
	L_TOPIC,
	L_PARTITION,
	L_OFFSET,
	L_KEY,
	L_ID,
	L_MESSAGE_ID,
	L_TYPE,
	L_CLASS,
	L_CODE,
	L_REASON,
	L_ATTEMPTS,
	L_STATE,
	L_EDITED_FROM,
	L_EDITED_TO,
	L_NOTE,
	L_TIME,
	L_FIRST_FAILED,
	L_BURIED,
	L_PUBLISHED,
	L_HEADERS,
	L_PAYLOAD,
	L_KEY_BYTES,
};
PGresult *dlq_read(
	struct pr_pg *pg, int64_t entry, struct pr_err *err) PR_MUSTCHECK; /* NULL: also not found */
char *dlq_bytes(const PGresult *res, int column, size_t *ret_len); /* malloc'd, NUL behind it; NULL: null */

/* dlq_cause.c: one cause = group, class, code and the reason without what changes from one event to
 * the next. Bounded: what comes after DLQ_CAUSES causes is counted together. */
#define DLQ_CAUSES 10000

struct dlq_fact { /* what is known of one dead letter; all borrowed, NULL: unknown */
	const char *entry, *group, *topic, *type, *cls, *code, *reason, *at;
};
struct dlq_causes;

struct dlq_causes *dlq_causes_new(void);
void dlq_causes_free(struct dlq_causes *s);
void dlq_causes_add(struct dlq_causes *s, const struct dlq_fact *f);
void dlq_causes_print(struct dlq_causes *s, int json); /* the largest first */
int64_t dlq_causes_total(const struct dlq_causes *s);
int dlq_causes_count(const struct dlq_causes *s);
const char *dlq_causes_group(const struct dlq_causes *s, int i);

/* The name of a cause: 8 hexadecimal digits of class, code and shape. */
void dlq_cause_id(const char *cls, const char *code, const char *reason, char *buf /* [9] */);
char *dlq_shape(const char *reason); /* malloc'd */
void dlq_fact_of(const struct dlq_scan *s, struct dlq_fact *ret);

/* The dead ones that the options speak of, up to an entry, by cause. dlq_find.c */
int dlq_count(const struct cli *c, struct pr_pg *pg, int64_t through, struct dlq_causes *causes,
	struct pr_err *err) PR_MUSTCHECK;

/* dlq_topic.c: with --from-topic. */
int dlq_list_topic(struct cli *c);
int dlq_show_topic(struct cli *c);

#endif
