/* relay/snapshot.h -- pg_snapshot in C: who was running, who finished in between, and the
 * memory of bounds that tells how far down a late commit can lie. Pure; no I/O. */
#ifndef RELAY_SNAPSHOT_H
#define RELAY_SNAPSHOT_H

#include <stddef.h>
#include <stdint.h>

/* xid < xmin: finished. xid >= xmax: running or not begun. Between: running when in xip. */
struct snapshot {
	uint64_t xmin, xmax;
	uint64_t *xip; /* ascending */
	size_t n;
};

/* "xmin:xmax:xip,xip": 0 and *ret (release it), or -1 when it is not one. */
int snapshot_parse(const char *text, struct snapshot *ret);
void snapshot_release(struct snapshot *s);
int snapshot_finished(const struct snapshot *s, uint64_t xid); /* committed or aborted as of s */

/* The smallest xid that could own a seq known at `last` and was finished by `now` but not by `last`:
 * of those running in last, and of [xmax(last), n_last), where a running writer may lie too.
 * UINT64_MAX when there is none: then no row below the bound can have appeared. */
uint64_t snapshot_first_finished(const struct snapshot *last, uint64_t n_last, const struct snapshot *now);

/* Of two snapshots of one database: whether a was taken when all that b sees had happened. */
int snapshot_covers(const struct snapshot *a, const struct snapshot *b);

/* Remembered pairs: when the next xid was n, the sequence stood at l. A transaction with xid >= n drew all
 * its seqs above l. Ascending, bounded; forgetting one only makes a scan longer, never wrong. */
#define BOUNDS_MAX 512
struct bounds {
	struct {
		uint64_t n;
		int64_t l;
	} at[BOUNDS_MAX];
	size_t len;
};
void bounds_remember(struct bounds *b, uint64_t n, int64_t l);
void bounds_forget(struct bounds *b, uint64_t xmin); /* what no running transaction can need */
int64_t bounds_below(
	const struct bounds *b, uint64_t xid); /* every seq of xid and later ones is above this */

#endif
