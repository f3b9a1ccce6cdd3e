/* consumers/sink/spool.h -- bytes that wait on disk: rows that are to become a row group (parquet.c), an
 * object that is to be uploaded (s3.c), what is to be compressed together and comes seldom (out.c, avro.c).
 * One file a process, without a name, below $TMPDIR or /var/tmp: however many wait, it is one descriptor and
 * no memory, and nothing of it outlives us. */
#ifndef CONSUMERS_SINK_SPOOL_H
#define CONSUMERS_SINK_SPOOL_H

#include "lib/err.h"
#include "lib/json.h"

#include <stdint.h>

/* A byte string in it; starts as {0}. One thread's, as a whole. */
struct sink_roll {
	uint32_t *blocks; /* owned, in order */
	size_t blocks_n, blocks_cap;
	int64_t len;
};

/* Opens it when it is not there. PR_RETRY: the directory is full or cannot be written to. */
int sink_spool_open(struct pr_err *err) PR_MUSTCHECK;

/* Appends; after -1 the roll is as it was. */
int sink_roll_put(struct sink_roll *r, const void *p, size_t n, struct pr_err *err) PR_MUSTCHECK;
/* Exactly n bytes from at on. */
int sink_roll_read(const struct sink_roll *r, int64_t at, void *p, size_t n, struct pr_err *err) PR_MUSTCHECK;
/* All of it is before b's bytes now, and in the roll there is nothing. */
int sink_roll_join(struct sink_roll *r, struct pr_buf *b, struct pr_err *err) PR_MUSTCHECK;
/* Other way round: b's bytes follow those in the roll, and b has no memory. */
int sink_roll_take(struct sink_roll *r, struct pr_buf *b, struct pr_err *err) PR_MUSTCHECK;
void sink_roll_free(struct sink_roll *r); /* its room is used again; an empty spool gives it back */

/* A file without a name beside it; -1. Closed by the caller. */
int sink_spool_file(struct pr_err *err) PR_MUSTCHECK;

#endif
