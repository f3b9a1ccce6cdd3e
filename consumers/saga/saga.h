/* consumers/saga/saga.h -- the saga engine inside a consumer: what its files share.
 *
 * book (book.c)            definitions, by name and version; shared by all threads
 * walk (walk.c)            a message, a timer or an order -> the core -> what is to be written
 * store (store.c)          instances in and out of Postgres, set-based
 * handler (handler_saga.c) the lanes' way in: one transaction a batch
 * clock (clock.c)          a thread: what is due, orders, locks that became free, counts
 * ends (ends.c)            up to when all that came in is handled
 * http (http.c)            POST /sagas/{name}, GET /sagas/{id}
 *
 * Only lib/saga_core.c changes a state word. Instances are locked in the order of their ids, before any other
 * row. */
#ifndef CONSUMERS_SAGA_H
#define CONSUMERS_SAGA_H

#include "consumers/consumer.h"

#include "lib/saga_core.h"

#define SAGA_INBOX "outbox.saga.inbox" /* starts and replies come here, whatever the service */

/* ---------------------------------------------------------------- book.c */

/* Reads the config's files once a process, and tells the database; any further call only checks that this was
 * done. PR_STOP with exit 78: a definition is bad, or differs from what the database has under its version.
 */
int book_open(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* The newest version of that name among the config's files; NULL: there is none. Never freed while we run. */
const struct saga_def *book_newest(const char *name, size_t n);

/* That version, from the files or from the database (asked over pg, kept). -1 with err when it cannot be had.
 */
int book_version(struct pr_pg *pg, const char *name, int version, const struct saga_def **ret,
	struct pr_err *err) PR_MUSTCHECK;

/* All definitions of the config's files: the newest of each name. */
size_t book_all(const struct saga_def *const **ret);

/* ---------------------------------------------------------------- walk.c */

/* An instance in a transaction: as it was read, and what became of it. */
struct saga_row {
	unsigned char id[16];
	const struct saga_def *def; /* NULL: there is no such saga */
	struct saga_instance in;
	int existed;         /* it is in the database */
	enum saga_state was; /* then: its state as read */
	int changed;         /* to be written */
	int data_changed, part_changed;
	int lock_free;                      /* it was not granted so far, and its locks are its own by now */
	char part[300];                     /* topic-partition it comes by */
	char correlation[200];              /* "" none */
	char trace[PR_TRACEPARENT_LEN + 1]; /* of the message that moves it, as handlers see it; "" none */
	struct pr_buf locks;                /* of a new one: names, each ended by NUL */
	int locks_n;
};

/* What a transaction writes beside the instances. Texts are offsets into `text`. */
struct saga_writing {
	struct saga_out out; /* of one step of one row; then copied to what follows */
	struct saga_log {
		unsigned char id[16], command_id[16];
		int has_command;
		size_t what, step, op, text, by; /* SIZE_MAX: null */
	} * log;
	struct saga_record { /* a row of the outbox */
		size_t key, type, topic, payload, headers, trace;
	} * record;
	size_t log_n, log_cap, record_n, record_cap;
	struct pr_buf text;
	int64_t at_us; /* of the log rows: the database's clock */
};
void writing_clear(struct saga_writing *w);
void writing_free(struct saga_writing *w);

/* Takes what the core said about the row into w: log rows, commands, events. by: who ordered it; NULL:
 * nobody. */
void writing_take(struct saga_writing *w, struct saga_row *row, const char *by);

/* A note about a saga there is none of. */
void writing_note(struct saga_writing *w, const unsigned char id[16], enum saga_note_what what,
	const char *step, const char *op, const char *text);

/* What a message is to the engine. */
enum saga_message_kind { SAGA_MESSAGE_START, SAGA_MESSAGE_REPLY, SAGA_MESSAGE_EVENT };
struct saga_message {
	const struct message *m;
	enum saga_message_kind kind;
	unsigned char id[16];
	const struct saga_def *def; /* of START and EVENT */
	struct saga_reply reply;
	struct pr_buf data; /* of a start: owned */
	char correlation[200];
};

/* What it is for the first, second ... (at = 0, 1 ...) saga it concerns: an event may be part of several
 * choreographies. 1 and *ret; 0: it concerns no more of them; -1: it is broken, out says how. After 1 the
 * caller calls message_release. */
int message_classify(const struct message *m, size_t at, struct saga_message *ret, struct outcome *out);
void message_release(struct saga_message *s);

/* It had ended before, and still has. */
int row_has_ended(const struct saga_row *row);

/* Applies it to its row (which may be a new one: then def and id are set). */
void walk_message(struct saga_row *row, struct saga_message *s, int64_t now_us, struct saga_writing *w);

/* ---------------------------------------------------------------- store.c */

struct store; /* a connection's buffers */
struct store *store_new(void);
void store_free(struct store *s);

/* Rows for ids[0..n), ascending and unique: those alive are locked. skip: those that another transaction has
 * locked, or that are over, come back without a def. Rows are the store's until the next call. *now_us: the
 * database's clock. */
int store_load(struct store *s, struct pr_pg *pg, const unsigned char (*ids)[16], size_t n, int skip,
	struct saga_row **ret, int64_t *now_us, struct pr_err *err) PR_MUSTCHECK;

/* A row that is over has no data and no steps from store_load: gets them, and locks it. And: puts it back
 * among those that are alive, so that store_save finds it there. */
int store_load_ended(struct saga_row *row, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;
int store_revive(const struct saga_row *row, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* Ascending, each once, as store_load wants them. Returns how many are left. */
size_t store_sort_ids(unsigned char (*ids)[16], size_t n);

/* Writes the rows that changed, and w, in one round trip; both are then as if just loaded. New rows with
 * locks are set granted when they have got them. writer: nobody else writes with this number at the same
 * time. orders: may be NULL. */
struct saga_orders_done {
	int64_t *entry;
	const char **outcome, **reason;
	size_t n;
};
int store_save(struct store *s, struct pr_pg *pg, struct saga_row *rows, size_t n, struct saga_writing *w,
	int writer, int64_t now_us, const struct saga_orders_done *orders, struct pr_err *err) PR_MUSTCHECK;

/* ---------------------------------------------------------------- clock.c */

void *saga_clock_thread(void *consumer);
void saga_clock_nudge(int64_t due_us); /* something is due by then, wall. Any thread */

/* ---------------------------------------------------------------- ends.c */

/* Of one thread. Moves idle_us of the consumer's parts on; waits for Kafka a second at most. -1: it does not
 * answer, for all of them or for one; or the database. */
struct saga_ends *ends_new(void);
void ends_free(struct saga_ends *e);
int ends_look(struct saga_ends *e, struct consumer *c, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* The oldest of the same, of other members' partitions; 0: not known; INT64_MAX: they have none. ours: how
 * many partitions we have by now. */
int64_t ends_others_us(const struct saga_ends *e, size_t ours);

/* What to add to a monotonic time to have the database's. */
int64_t ends_clock_us(const struct saga_ends *e);

/* ---------------------------------------------------------------- http.c */

extern const struct pr_route saga_routes[];
void *saga_http_open(void *consumer);
void saga_http_close(void *worker);

#endif
