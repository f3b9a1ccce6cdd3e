/* consumers/sink/batch.h -- a cut in memory: its records' bytes, and where each begins. What http.c and
 * table.c share. */
#ifndef CONSUMERS_SINK_BATCH_H
#define CONSUMERS_SINK_BATCH_H

#include "consumers/sink/sink.h"

/* sp->target of an open cut, cut->batch then; the target's own struct begins with it. */
struct sink_batch {
	struct pr_buf bytes;
	struct sink_batch_record {
		int64_t offset;
		size_t at;
	} * record;
	size_t n, cap;
};

/* The next record; its bytes are appended after this. */
void sink_batch_add(struct sink_batch *b, int64_t offset);

/* Records from cut->split_at on go into rest, which is empty and becomes second's. */
void sink_batch_split(struct sink_cut *cut, struct sink_cut *second, struct sink_batch *rest);

/* seal, forget and forget_cut of sink_target_ops. */
int sink_batch_seal(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err);
void sink_batch_forget(struct sink_part *sp);
void sink_batch_forget_cut(struct sink_cut *cut, int published);

#endif
