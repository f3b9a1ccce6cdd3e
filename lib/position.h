/* lib/position.h -- how far a relay has come, as one versioned JSON record in the
 * compacted topic postrider.positions.<name>. The only state a relay has. */
#ifndef PR_POSITION_H
#define PR_POSITION_H

#include "lib/err.h"
#include "lib/kafka.h"

#include <stdint.h>

/* A moment of the outbox: everything visible in the snapshot had happened. */
struct pr_mark {
	char *snapshot; /* pg_snapshot as text, "xmin:xmax:xip,..."; owned; NULL = nothing seen yet */
	int64_t l;      /* the sequence's last value, read before the snapshot */
	uint64_t n;     /* next xid to be assigned, read after l and before the snapshot */
	int64_t low;    /* every row with seq <= low was decided when the snapshot was taken */
};

struct pr_position {
	char system_id[24]; /* pg_control_system().system_identifier */
	int64_t timeline;
	struct pr_mark from; /* every row visible here is published, or held (parked, waiting) */
	struct pr_mark to;   /* inside a batch: being read; to.snapshot NULL when not inside */
	int64_t seq;         /* inside a batch: rows of the difference with seq <= this are done */
	int64_t top;         /* highest seq ever handled: published or held */
	uint64_t lsn;        /* WAL flushed at least this far when the batch was read */
	int64_t *released;   /* parked seqs published by this record's transaction */
	size_t released_n;
	char *released_topic;   /* waiting topic of which this transaction published rows ... */
	int64_t released_entry; /* ... its outbox.waiting id ... */
	int64_t released_seq;   /* ... through this seq; 0 none; -1 the whole entry */
};

void pr_mark_release(struct pr_mark *m);                           /* frees inside, leaves {0} */
void pr_mark_copy(struct pr_mark *to, const struct pr_mark *from); /* frees the old value of to */
void pr_position_release(struct pr_position *p);
void pr_position_copy(struct pr_position *to, const struct pr_position *from);
void pr_position_forget_released(struct pr_position *p); /* what was released is gone from Postgres too */

/* JSON, version 1; malloc'd, the caller frees. */
char *pr_position_encode(const struct pr_position *p);

/* Untrusted text. -1 PR_STOP on an unknown version or a malformed record. */
int pr_position_decode(
	const char *text, size_t len, struct pr_position *ret, struct pr_err *err) PR_MUSTCHECK;

/* "postrider.positions.<name>"; malloc'd. */
char *pr_position_topic(const char *name);

/* Creates the position topic, or checks the one there is: one partition, compacted. */
int pr_position_topic_make(
	rd_kafka_t *rk, const char *name, int timeout_ms, int *ret_created, struct pr_err *err) PR_MUSTCHECK;
int pr_position_topic_check(
	rd_kafka_t *rk, const char *name, int timeout_ms, struct pr_err *err) PR_MUSTCHECK;

/* The newest committed position: the topic's read_uncommitted high watermark is taken first, then
 * read_committed records are read until past it. To be called after init_transactions has fenced the
 * predecessor. *ret_found = 0 when the topic holds none. */
int pr_position_read(const char *brokers, const struct pr_strs *properties, const char *name, int timeout_ms,
	struct pr_position *ret, int *ret_found, struct pr_err *err) PR_MUSTCHECK;

#endif
