/* relay/source.h -- where events come from, as a table of functions. The table engine
 * reads outbox.event by differences of snapshots; the null engine invents rows, to
 * measure everything behind it. All calls are made by the reader thread alone. */
#ifndef RELAY_SOURCE_H
#define RELAY_SOURCE_H

#include "relay/pipe.h"

#include "lib/relay_conf.h"

struct source; /* an engine's own state */

/* A number of the config that a reload may change while other threads read it. */
static inline int64_t setting(const int64_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

struct source_ops {
	const char *name;
	/* Borrows conf for its whole life. wake_fd readable: every call gives up. */
	struct source *(*new)(const struct pr_relay_conf *conf, int wake_fd);
	void (*free)(struct source *s); /* accepts NULL */

	/* Connects and takes the lock that elects one relay: 1 and *ret when we lead, 0 when another relay
	 * does (ask again), -1 on error. Called again after a reset, it checks that the lock is still held.
	 */
	int (*open)(struct source *s, struct identity *ret, struct pr_err *err);
	/* Checks that the position belongs to this database and stands where it can go on. Records in the
	 * database that there is a position. PR_STOP: it does not, nothing may be published. */
	int (*start)(struct source *s, const struct pr_position *position, struct pr_err *err);
	/* How many events the next piece may have: the pipe must have room for them. */
	size_t (*piece)(const struct source *s);
	/* Reads the next piece of the stream and gives its batches to put(ctx, batch), which takes them (-1:
	 * stop reading). Returns 1 when there were events, 0 when there is nothing new (it has waited a
	 * moment), -1 on error, also when put refused. */
	int (*next)(struct source *s, int (*put)(void *ctx, struct batch *b), void *ctx, struct pr_err *err);
	/* Lets go of connections and the lock. */
	void (*close)(struct source *s);
};

extern const struct source_ops source_table;
extern const struct source_ops source_null;

/* Rows seen whose xid the server has not assigned: count, and the seq of the first. Any thread. */
struct foreign_rows {
	_Atomic uint64_t count;
	_Atomic int64_t first_seq;
};
extern struct foreign_rows source_foreign;

/* Last time the database answered (monotonic us), and its clock minus ours. Any thread. */
extern _Atomic int64_t source_contact_us;
extern _Atomic int64_t source_clock_skew_us;
extern _Atomic int64_t source_last_seq; /* the sequence's last value as of the last turn */
extern _Atomic uint64_t source_reconnects;

#endif
