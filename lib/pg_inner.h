/* lib/pg_inner.h -- what lib/pg.c and lib/pg_pipe.c know of a connection, and nobody else. */
#ifndef PR_PG_INNER_H
#define PR_PG_INNER_H

#include "lib/pg.h"

#define MAX_STATEMENTS 32 /* prepared per connection, and the most of one round trip */

/* A text seen in a round trip. It is prepared on the server at its second sighting, so that
 * texts made up on the way cost nothing; a slot whose name the server knows, or may, is never
 * given to another text. */
struct statement {
	char *sql;
	enum { SEEN, PREPARING, PREPARED } state;
};

struct pr_pg {
	PGconn *conn;
	int wake_fd;
	int dead;
	int late; /* reads after the deadline */
	int64_t timeout_us;
	int64_t override_us; /* of the next call; 0: none */
	int64_t server_us;   /* what the server's statement_timeout was made from */
	struct {
		int open, header_read;
		int64_t timeout_us;
	} copy;
	struct statement statements[MAX_STATEMENTS];
	unsigned next_slot;
	char fatal_code[6];   /* the server's last words while nothing was asked, */
	char fatal_text[200]; /* told when the loss is found */
};

/* Errors that are ours and not the server's; the connection gone; each returns -1. */
int pg_fail_code(struct pr_err *err, enum pr_kind kind, const char *code, const char *text);
int pg_lost(struct pr_pg *pg, struct pr_err *err);

/* Deadline of a call, wake-up and state checked. */
int pg_begin_call(struct pr_pg *pg, int64_t *timeout_us, int64_t *deadline, struct pr_err *err);
int pg_flush(struct pr_pg *pg, int64_t deadline, struct pr_err *err);

/* The next result. 1: *ret, 0: no more of this statement, -1: deadline or wake-up. */
int pg_next_result(struct pr_pg *pg, int64_t deadline, PGresult **ret, struct pr_err *err);
int pg_check_result(struct pr_pg *pg, const char *sql, const PGresult *res, struct pr_err *err);

#endif
