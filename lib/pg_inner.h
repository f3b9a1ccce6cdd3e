/* lib/pg_inner.h -- what the files of lib/pg know of a connection, and nobody else: pg.c waits and asks,
 * pg_connect.c begins, pg_copy.c and pg_pipe.c ask in other ways. */
#ifndef PR_PG_INNER_H
#define PR_PG_INNER_H

#include "lib/clock.h"
#include "lib/pg.h"

#define MAX_TIMEOUT    (24 * 3600 * PR_SEC)
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
void pg_set_code(struct pr_err *err, const char *code);

/* Notices are dropped; a FATAL that arrives while nothing is asked is remembered. */
void pg_on_notice(void *arg, const PGresult *res);

int64_t pg_deadline_of(int64_t timeout_us);
int64_t pg_sane_timeout(int64_t timeout_us);

/* A little less than ours, so that a slow statement ends with the server's word for it and the connection
 * lives on; ours is for a server that cannot speak. Never 0, which means none. */
long long pg_statement_timeout_ms(int64_t timeout_us);

/* Connects, and sets nothing yet; *pg has its timeout and wake-up. */
int pg_connect(struct pr_pg *pg, const struct pr_pg_opts *opts, int64_t deadline, struct pr_err *err);

/* pg_pooler.c: -1 also when the session's server process is not its own. */
int pg_check_pooler(struct pr_pg *pg, const struct pr_pg_opts *opts, int64_t deadline, struct pr_err *err);

/* Waits for the socket. 1: ready, 0: deadline passed, -1: woken. What is there after the deadline is still
 * read, it is we who were late (stopped, starved); but not for ever. */
int pg_wait_socket(struct pr_pg *pg, short events, int64_t deadline, short *ret);

/* Waits with an answer outstanding: whatever keeps us from it makes the connection useless. */
int pg_wait_answer(struct pr_pg *pg, short events, int64_t deadline, short *ret, struct pr_err *err);

/* Reads what has arrived. After a failure nothing that libpq does may wait on the socket. */
int pg_consume(struct pr_pg *pg);

/* Deadline of a call, wake-up and state checked. */
int pg_begin_call(struct pr_pg *pg, int64_t *timeout_us, int64_t *deadline, struct pr_err *err);
int pg_flush(struct pr_pg *pg, int64_t deadline, struct pr_err *err);

/* The next result. 1: *ret, 0: no more of this statement, -1: deadline or wake-up. */
int pg_next_result(struct pr_pg *pg, int64_t deadline, PGresult **ret, struct pr_err *err);
/* Takes every result of one query; gives the last one, or the first error. */
PGresult *pg_collect(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err);
int pg_run(struct pr_pg *pg, const char *sql, int64_t deadline, struct pr_err *err);
int pg_check_result(struct pr_pg *pg, const char *sql, const PGresult *res, struct pr_err *err);

#endif
