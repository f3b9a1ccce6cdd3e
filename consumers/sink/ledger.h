/* consumers/sink/ledger.h -- what cut.c writes to and reads of schema sink. */
#ifndef CONSUMERS_SINK_LEDGER_H
#define CONSUMERS_SINK_LEDGER_H

#include "consumers/sink/sink.h"

struct tx;

static inline int64_t later(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

/* Into a transaction, behind its fence. */
void ledger_record(struct tx *t, struct sink_cut **cuts, size_t n); /* with their files */
void ledger_publish(struct tx *t, struct sink_cut **cuts, size_t n);
void ledger_split(struct tx *t, const struct sink_cut *first, const struct sink_cut *second);
void ledger_refuse(struct tx *t, const struct sink_cut *c);
void ledger_pass(
	struct tx *t, const struct sink_part *sp, const struct sink_forced *f); /* nothing is left of it */

/* sp->forced: the ranges from the position on, as many as one question tells. */
int ledger_read_ranges(struct sink_part *sp, struct pr_err *err);
void ledger_free_ranges(struct sink_part *sp);

/* sp->watermark_us, of what is below the position; the target that the partition was last copied to, "":
 * none. */
int ledger_read_watermark(struct sink_part *sp, char target[16], struct pr_err *err);

/* A range as its owner had it, with its files; the caller's. */
struct sink_cut *ledger_read_cut(struct sink_part *sp, const struct sink_forced *f, struct pr_err *err);

/* Whether c is what was published of the range f, which was is; its files get another order. *ret_bytes 0:
 * the same records, compressed to other bytes. */
int ledger_is_same(
	struct sink_cut *was, const struct sink_forced *f, const struct sink_cut *c, int *ret_bytes);

#endif
