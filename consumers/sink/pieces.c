/* consumers/sink/pieces.c -- which file a record of an open cut belongs to, and the memory of all files of a
 * lane together: a file that is written to seldom gives its buffer to the spool, and is the same file in the
 * end. Refuses to know where files are. */
#include "consumers/sink/pieces.h"

#include "lib/clock.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HELD (32 << 20) /* bytes that all lanes' files keep in memory together */

/* sp->target: the open cut's, by hour. */
struct hours {
	struct sink_piece **p;
	size_t n, last;
};

/* ---------------------------------------------------------------- memory */

static void unlink_piece(struct sink_piece *p)
{
	struct sink_pieces *all = p->all;

	*(p->newer ? &p->newer->older : &all->newest) = p->older;
	*(p->older ? &p->older->newer : &all->oldest) = p->newer;
	p->newer = p->older = NULL;
}

static void link_newest(struct sink_piece *p)
{
	struct sink_pieces *all = p->all;

	p->older = all->newest;
	*(all->newest ? &all->newest->newer : &all->oldest) = p;
	all->newest = p;
}

/* 1: it has changed. */
static int count_held(struct sink_piece *p)
{
	const struct sink_format_ops *f = p->all->format;
	size_t held = p->out.buf.cap + (f->held && p->encoder ? f->held(p->encoder) : 0);

	if (held == p->held)
		return 0;
	if (p->held)
		unlink_piece(p);
	p->all->held += held - p->held;
	p->held = held;
	if (held)
		link_newest(p);
	return 1;
}

static int spare(struct sink_piece *p, struct pr_err *err)
{
	const struct sink_format_ops *f = p->all->format;
	int rc = f->spare ? f->spare(p->encoder, err) : 0;

	if (rc == 0)
		rc = sink_out_spare(&p->out, err);
	(void)count_held(p);
	return rc;
}

static int make_room(struct sink_pieces *all, const struct sink_piece *but, struct pr_err *err)
{
	size_t most = HELD / (size_t)atomic_load(&all->sl->shared->c->lanes_used);

	while (all->held > most && all->oldest != but)
		if (spare(all->oldest, err) < 0)
			return -1;
	return 0;
}

/* ---------------------------------------------------------------- the hours of an open cut */

/* Where in h->p it is, or would be. */
static size_t find(const struct hours *h, int64_t hour_us, int late)
{
	size_t low = 0, high = h->n;

	while (low < high) {
		size_t mid = (low + high) / 2;
		const struct sink_file *x = &h->p[mid]->file;

		if (x->hour_us < hour_us || (x->hour_us == hour_us && x->late < late))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static int is(const struct hours *h, size_t i, int64_t hour_us, int late)
{
	return i < h->n && h->p[i]->file.hour_us == hour_us && h->p[i]->file.late == late;
}

static void insert(struct hours *h, size_t at, struct sink_piece *p)
{
	h->p = pr_realloc(h->p, (h->n + 1) * sizeof(*h->p));
	memmove(h->p + at + 1, h->p + at, (h->n - at) * sizeof(*h->p));
	h->p[at] = p;
	h->n++;
}

static int begin(
	struct sink_part *sp, size_t at, int64_t first, int64_t hour_us, int late, struct pr_err *err)
{
	struct sink_pieces *all = sp->lane->target;
	struct sink_piece *p = all->make(sp, hour_us, late);
	char *seed;
	int rc;

	p->all = all;
	p->file.hour_us = hour_us;
	p->file.late = late;
	p->file.first = first;
	p->file.min_us = INT64_MAX;
	p->file.max_us = INT64_MIN;
	sink_out_init(&p->out, &p->dest, all->press);
	insert(sp->target, at, p);
	seed = pr_asprintf("%s/%" PRId32 "/%" PRId64 "/%" PRId64 "/%d", sp->part->topic, sp->part->partition,
		first, hour_us, late);
	rc = all->format->open(all->conf, seed, &p->out, &p->encoder, err);
	free(seed);
	return rc;
}

static void count_row(struct sink_file *f, const struct sink_row *row)
{
	f->records++;
	f->last = row->offset;
	if (row->time_us < 0)
		return;
	f->min_us = row->time_us < f->min_us ? row->time_us : f->min_us;
	f->max_us = row->time_us > f->max_us ? row->time_us : f->max_us;
}

int sink_pieces_put(struct sink_part *sp, const struct sink_row *row, struct pr_err *err)
{
	struct sink_pieces *all = sp->lane->target;
	int64_t hour_us = sink_hour_of(row->time_us), before;
	int late =
		all->late->policy == PR_SINK_SIDE && sink_is_late(all->late, row->time_us, sp->watermark_us);
	struct hours *h = sp->target;
	struct sink_piece *p;

	if (!h)
		h = sp->target = pr_calloc(1, sizeof(*h));
	if (!is(h, h->last, hour_us, late)) {
		h->last = find(h, hour_us, late);
		if (!is(h, h->last, hour_us, late) && begin(sp, h->last, row->offset, hour_us, late, err) < 0)
			return -1;
	}
	p = h->p[h->last];
	before = p->out.in;
	if (all->format->put(p->encoder, row, err) < 0)
		return -1;
	count_row(&p->file, row);
	sp->open->bytes += p->out.in - before;
	return count_held(p) ? make_room(all, p, err) : 0;
}

/* ---------------------------------------------------------------- its end */

static void free_piece(struct sink_part *sp, struct sink_piece *p, int sealed)
{
	p->all->drop(sp, p, sealed);
	if (p->held)
		unlink_piece(p);
	p->all->held -= p->held;
	p->all->format->close(p->encoder);
	sink_out_free(&p->out);
	free(p->file.temp);
	free(p->file.path);
	free(p);
}

static void free_hours(struct sink_part *sp, int sealed)
{
	struct hours *h = sp->target;

	for (size_t i = 0; h && i < h->n; i++)
		free_piece(sp, h->p[i], sealed);
	if (h)
		free(h->p);
	free(h);
	sp->target = NULL;
}

static int end(struct sink_part *sp, struct sink_piece *p, struct pr_err *err)
{
	struct sink_pieces *all = p->all;

	if (all->format->finish(p->encoder, err) < 0 || sink_out_end(&p->out, p->file.sum, err) < 0)
		return -1;
	(void)count_held(p);
	p->file.path = sink_file_path(sp->part->topic, p->file.hour_us, p->file.late, sp->part->partition,
		p->file.first, p->file.last, all->conf);
	return all->end(sp, p, err);
}

int sink_pieces_seal(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err)
{
	struct hours *h = sp->target;

	for (size_t i = 0; h && i < h->n; i++)
		if (end(sp, h->p[i], err) < 0)
			return -1;
	if (!h)
		return 0;
	cut->files = pr_calloc(h->n, sizeof(*cut->files));
	for (size_t i = 0; i < h->n; i++) {
		cut->files[i] = h->p[i]->file;
		h->p[i]->file.temp = h->p[i]->file.path = NULL;
	}
	cut->files_n = h->n;
	free_hours(sp, 1);
	return 0;
}

void sink_pieces_forget(struct sink_part *sp)
{
	free_hours(sp, 0);
}

/* ---------------------------------------------------------------- begin and end */

int sink_pieces_open(struct sink_pieces *all, struct sink_lane *sl, const struct pr_sink_format_conf *conf,
	const struct pr_sink_late_conf *late, struct pr_err *err)
{
	all->sl = sl;
	all->format = sink_format_of(conf);
	all->conf = conf;
	all->late = late;
	if (all->format->check && all->format->check(conf, err) < 0)
		return -1;
	if (!all->format->packs)
		all->press = sink_press_new((enum pr_sink_compression)conf->compression, (int)conf->level);
	return 0;
}

void sink_pieces_close(struct sink_pieces *all)
{
	sink_press_free(all->press);
}
