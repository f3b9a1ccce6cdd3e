/* consumers/sink/batch.c -- a cut in memory, as it is collected, halved and freed. Refuses to know what its
 * bytes mean. */
#include "consumers/sink/batch.h"

#include <stdlib.h>

void sink_batch_add(struct sink_batch *b, int64_t offset)
{
	if (b->n == b->cap) {
		b->cap = b->cap ? b->cap * 2 : 64;
		b->record = pr_realloc(b->record, b->cap * sizeof(*b->record));
	}
	b->record[b->n++] = (struct sink_batch_record){ offset, b->bytes.len };
}

void sink_batch_split(struct sink_cut *cut, struct sink_cut *second, struct sink_batch *rest)
{
	struct sink_batch *b = cut->batch;
	size_t i = 0, from;

	while (i < b->n && b->record[i].offset < cut->split_at)
		i++;
	from = i < b->n ? b->record[i].at : b->bytes.len;
	for (size_t k = i; k < b->n; k++) {
		sink_batch_add(rest, b->record[k].offset);
		rest->record[rest->n - 1].at = b->record[k].at - from;
	}
	pr_buf_put(&rest->bytes, b->bytes.s + from, b->bytes.len - from);
	b->bytes.len = from;
	b->n = i;
	second->batch = rest;
	second->records = (int64_t)rest->n;
	second->bytes = (int64_t)rest->bytes.len;
	cut->records = (int64_t)b->n;
	cut->bytes = (int64_t)b->bytes.len;
}

static void batch_free(struct sink_batch *b)
{
	if (!b)
		return;
	pr_buf_free(&b->bytes);
	free(b->record);
	free(b);
}

int sink_batch_seal(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err)
{
	(void)err;
	cut->batch = sp->target;
	sp->target = NULL;
	return 0;
}

void sink_batch_forget(struct sink_part *sp)
{
	batch_free(sp->target);
	sp->target = NULL;
}

void sink_batch_forget_cut(struct sink_cut *cut, int published)
{
	(void)published;
	batch_free(cut->batch);
	cut->batch = NULL;
}
