/* consumers/sink/pieces.h -- an open cut as it is written into files or objects, one for each hour that its
 * records are in: what files.c and s3.c share. */
#ifndef CONSUMERS_SINK_PIECES_H
#define CONSUMERS_SINK_PIECES_H

#include "consumers/sink/sink.h"

/* One of them; the target's own struct begins with it. */
struct sink_piece {
	struct sink_dest dest; /* first; write is the target's */
	struct sink_pieces *all;
	struct sink_piece *newer, *older; /* of those that hold memory, by when it grew */
	size_t held;                      /* so much: its bytes that are not written yet */
	struct sink_out out;
	struct sink_encoder *encoder;
	struct sink_file file;
};

/* A lane's; the target's own struct begins with it, and is the lane's target. */
struct sink_pieces {
	struct sink_lane *sl;
	const struct sink_format_ops *format;
	const struct pr_sink_format_conf *conf;
	const struct pr_sink_late_conf *late;
	struct sink_press *press;
	struct sink_piece *newest, *oldest; /* of those that hold memory */
	size_t held;

	/* The target's. make: of its own struct, with dest.write, and file.temp when it has a name from the
	 * beginning. end: after the last byte, file.sum and file.path are known. drop: its own part of it,
	 * and all that is visible of it outside when it was not sealed; pieces.c frees the struct. */
	struct sink_piece *(*make)(struct sink_part *sp, int64_t hour_us, int late);
	int (*end)(struct sink_part *sp, struct sink_piece *p, struct pr_err *err);
	void (*drop)(struct sink_part *sp, struct sink_piece *p, int sealed);
};

/* What the format needs beside us is there; PR_STOP when it is not. */
int sink_pieces_open(struct sink_pieces *all, struct sink_lane *sl, const struct pr_sink_format_conf *conf,
	const struct pr_sink_late_conf *late, struct pr_err *err) PR_MUSTCHECK;
void sink_pieces_close(struct sink_pieces *all); /* no part has an open cut any more */

/* put, seal and forget of sink_target_ops. */
int sink_pieces_put(struct sink_part *sp, const struct sink_row *row, struct pr_err *err);
int sink_pieces_seal(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err);
void sink_pieces_forget(struct sink_part *sp);

#endif
