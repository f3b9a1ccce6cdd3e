/* consumers/sink/ledger.c -- schema sink in SQL: what a transaction writes there of cuts, what the database
 * holds of a partition, and whether a cut is what was published of its range before. Refuses to decide: cut.c
 * does. */
#include "consumers/sink/ledger.h"
#include "consumers/tx.h"

#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORCED_MOST 100 /* of one question: the LIMIT of sink_cuts.sql */

/* ---------------------------------------------------------------- what is written */

static void put_places(struct args *a, struct sink_cut **cuts, size_t n)
{
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, n);
	for (size_t i = 0; i < n; i++)
		args_element(a, cuts[i]->part->part->topic, strlen(cuts[i]->part->part->topic));
	args_end(a);
	args_array(a, OID_INT4_ARRAY, OID_INT4, n);
	for (size_t i = 0; i < n; i++)
		args_element_int4(a, cuts[i]->part->part->partition);
	args_end(a);
}

#define PUT_INT8(a, cuts, n, value)                                                                          \
	do {                                                                                                 \
		args_array((a), OID_INT8_ARRAY, OID_INT8, (n));                                              \
		for (size_t i = 0; i < (n); i++) {                                                           \
			const struct sink_cut *c = (cuts)[i];                                                \
			args_element_int8((a), (value));                                                     \
		}                                                                                            \
		args_end((a));                                                                               \
	} while (0)

static void put_letters(struct args *a, struct sink_cut **cuts, size_t n)
{
	struct pr_buf b = { 0 };

	args_array(a, OID_TEXT_ARRAY, OID_TEXT, n);
	for (size_t i = 0; i < n; i++) {
		b.len = 0;
		sink_letters_put(&b, cuts[i]);
		args_element(a, b.s, b.len);
	}
	args_end(a);
	pr_buf_free(&b);
}

static void add_cuts(struct tx *t, struct sink_cut **cuts, size_t n)
{
	struct args *a = tx_args(t);

	args_text(a, t->l->c->conf->group);
	args_text(a, t->l->sink->ops->name);
	put_places(a, cuts, n);
	PUT_INT8(a, cuts, n, c->first);
	PUT_INT8(a, cuts, n, c->next);
	PUT_INT8(a, cuts, n, c->part->part->epoch);
	PUT_INT8(a, cuts, n, c->records);
	PUT_INT8(a, cuts, n, c->bytes);
	PUT_INT8(a, cuts, n, c->max_us < 0 ? -1 : c->min_us);
	PUT_INT8(a, cuts, n, c->max_us < 0 ? -1 : c->max_us);
	PUT_INT8(a, cuts, n, later(-1, c->mark_us));
	PUT_INT8(a, cuts, n, c->ceiling_us == INT64_MAX ? -1 : c->ceiling_us);
	put_letters(a, cuts, n);
	(void)tx_add(t, a, sql_sink_record, 0);
	a = tx_args(t);
	args_text(a, t->l->c->conf->group);
	put_places(a, cuts, n);
	PUT_INT8(a, cuts, n, c->first);
	(void)tx_add(t, a, sql_sink_files_forget, 0);
}

/* One element a file. */
#define EACH_FILE(a, array, type, put)                                                                       \
	do {                                                                                                 \
		args_array((a), (array), (type), files);                                                     \
		for (size_t i = 0; i < n; i++) {                                                             \
			const struct sink_cut *c = cuts[i];                                                  \
			for (size_t j = 0; j < c->files_n; j++) {                                            \
				const struct sink_file *f = &c->files[j];                                    \
				(void)f;                                                                     \
				put;                                                                         \
			}                                                                                    \
		}                                                                                            \
		args_end((a));                                                                               \
	} while (0)
#define FILE_INT8(a, value) EACH_FILE(a, OID_INT8_ARRAY, OID_INT8, args_element_int8(a, (value)))
#define FILE_INT4(a, value) EACH_FILE(a, OID_INT4_ARRAY, OID_INT4, args_element_int4(a, (value)))
#define FILE_TEXT(a, value)                                                                                  \
	EACH_FILE(a, OID_TEXT_ARRAY, OID_TEXT, {                                                             \
		const char *s = (value);                                                                     \
		args_element(a, s, strlen(s));                                                               \
	})

static const char *hex(const unsigned char sum[SINK_SUM], char text[2 * SINK_SUM + 1])
{
	for (int i = 0; i < SINK_SUM; i++)
		(void)snprintf(text + (ptrdiff_t)2 * i, 3, "%02x", sum[i]);
	return text;
}

static void add_files(struct tx *t, struct sink_cut **cuts, size_t n)
{
	char text[2 * SINK_SUM + 1];
	size_t files = 0;
	struct args *a;

	for (size_t i = 0; i < n; i++)
		files += cuts[i]->files_n;
	if (files == 0)
		return;
	a = tx_args(t);
	args_text(a, t->l->c->conf->group);
	FILE_TEXT(a, c->part->part->topic);
	FILE_INT4(a, c->part->part->partition);
	FILE_INT8(a, c->first);
	FILE_TEXT(a, f->path);
	FILE_TEXT(a, f->temp);
	FILE_INT8(a, f->hour_us);
	FILE_INT8(a, f->records);
	FILE_INT8(a, f->bytes);
	FILE_TEXT(a, hex(f->sum, text));
	FILE_INT8(a, f->first);
	FILE_INT8(a, f->last);
	FILE_INT8(a, f->max_us < 0 ? -1 : f->min_us);
	FILE_INT8(a, f->max_us < 0 ? -1 : f->max_us);
	FILE_INT4(a, f->late);
	(void)tx_add(t, a, sql_sink_files_record, 0);
}

void ledger_record(struct tx *t, struct sink_cut **cuts, size_t n)
{
	add_cuts(t, cuts, n);
	add_files(t, cuts, n);
}

void ledger_publish(struct tx *t, struct sink_cut **cuts, size_t n)
{
	struct args *a = tx_args(t);

	args_text(a, t->l->c->conf->group);
	put_places(a, cuts, n);
	PUT_INT8(a, cuts, n, c->first);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, n);
	for (size_t i = 0; i < n; i++)
		args_element(a, cuts[i]->answer, strlen(cuts[i]->answer));
	args_end(a);
	(void)tx_add(t, a, sql_sink_publish, 0);
}

static struct args *args_of(struct tx *t, const struct sink_part *sp, int64_t first)
{
	struct args *a = tx_args(t);

	args_text(a, t->l->c->conf->group);
	args_text(a, sp->part->topic);
	args_int(a, sp->part->partition);
	args_int(a, first);
	return a;
}

void ledger_split(struct tx *t, const struct sink_cut *first, const struct sink_cut *second)
{
	struct args *a = args_of(t, first->part, first->first);

	args_int(a, first->next);
	args_int(a, first->records);
	args_int(a, first->bytes);
	args_int(a, second->next);
	args_int(a, second->records);
	args_int(a, second->bytes);
	(void)tx_add(t, a, sql_sink_split, 0);
}

void ledger_refuse(struct tx *t, const struct sink_cut *c)
{
	struct args *a = args_of(t, c->part, c->first);

	args_text(a, c->code);
	args_text(a, c->answer);
	(void)tx_add(t, a, sql_sink_refuse, 0);
}

void ledger_pass(struct tx *t, const struct sink_part *sp, const struct sink_forced *f)
{
	(void)tx_add(t, args_of(t, sp, f->first), sql_sink_pass, 0);
}

/* ---------------------------------------------------------------- what the database holds */

static int64_t number(PGresult *res, int row, int column)
{
	return strtoll(PQgetvalue(res, row, column), NULL, 10);
}

void ledger_free_ranges(struct sink_part *sp)
{
	for (size_t i = 0; i < sp->forced_n; i++)
		free(sp->forced[i].letters);
	free(sp->forced);
	sp->forced = NULL;
	sp->forced_n = sp->forced_at = 0;
}

int ledger_read_ranges(struct sink_part *sp, struct pr_err *err)
{
	struct lane *l = sp->lane->l;
	char partition[16], from[24];
	const char *params[] = { l->c->conf->group, sp->part->topic, partition, from, sp->lane->ops->name };
	PGresult *res;

	(void)snprintf(partition, sizeof(partition), "%" PRId32, sp->part->partition);
	(void)snprintf(from, sizeof(from), "%" PRId64, sp->part->lane[0].next);
	res = pr_pg_exec(l->pg, sql_sink_cuts, 5, params, err);
	if (!res)
		return -1;
	ledger_free_ranges(sp);
	sp->forced_n = (size_t)PQntuples(res);
	sp->forced = pr_calloc(sp->forced_n + 1, sizeof(*sp->forced));
	for (int i = 0; i < PQntuples(res); i++) {
		struct sink_forced *f = &sp->forced[i];

		f->first = number(res, i, 0);
		f->next = number(res, i, 1);
		f->refused = strcmp(PQgetvalue(res, i, 2), "refused") == 0;
		f->published = strcmp(PQgetvalue(res, i, 2), "published") == 0;
		(void)snprintf(f->code, sizeof(f->code), "%s", PQgetvalue(res, i, 3));
		(void)snprintf(f->answer, sizeof(f->answer), "%s", PQgetvalue(res, i, 4));
		f->records = number(res, i, 5);
		f->bytes = number(res, i, 6);
		f->min_us = number(res, i, 7);
		f->max_us = number(res, i, 8);
		f->mark_us = number(res, i, 9);
		f->ceiling_us = PQgetisnull(res, i, 10) ? INT64_MAX : number(res, i, 10);
		f->letters = pr_strdup(PQgetvalue(res, i, 11));
		f->buried = (int)number(res, i, 12);
		f->folded = (int)number(res, i, 13);
	}
	sp->forced_more = sp->forced_n == FORCED_MOST;
	PQclear(res);
	return 0;
}

/* Its ranges are in another target, and what of them is in this one nobody knows. */
int ledger_read_watermark(struct sink_part *sp, char target[16], struct pr_err *err)
{
	char partition[16], before[24];
	const char *params[] = { sp->lane->l->c->conf->group, sp->part->topic, partition, before };
	PGresult *res;

	(void)snprintf(partition, sizeof(partition), "%" PRId32, sp->part->partition);
	(void)snprintf(before, sizeof(before), "%" PRId64, sp->part->lane[0].next);
	res = pr_pg_exec(sp->lane->l->pg, sql_sink_watermark, 4, params, err);
	if (!res)
		return -1;
	sp->watermark_us = PQgetisnull(res, 0, 0) ? INT64_MIN : strtoll(PQgetvalue(res, 0, 0), NULL, 10);
	(void)snprintf(target, 16, "%s", PQgetvalue(res, 0, 1));
	PQclear(res);
	return 0;
}

static void unhex(const char *s, unsigned char *to)
{
	unsigned byte;

	for (int i = 0; i < SINK_SUM && sscanf(s + (ptrdiff_t)2 * i, "%2x", &byte) == 1; i++)
		to[i] = (unsigned char)byte;
}

static void read_file(struct sink_file *f, PGresult *res, int i)
{
	f->path = pr_strdup(PQgetvalue(res, i, 0));
	f->temp = pr_strdup(PQgetvalue(res, i, 1));
	f->hour_us = number(res, i, 2);
	f->records = number(res, i, 3);
	f->bytes = number(res, i, 4);
	unhex(PQgetvalue(res, i, 5), f->sum);
	f->first = number(res, i, 6);
	f->last = number(res, i, 7);
	f->min_us = number(res, i, 8);
	f->max_us = number(res, i, 9);
	f->late = (int)number(res, i, 10);
}

struct sink_cut *ledger_read_cut(struct sink_part *sp, const struct sink_forced *f, struct pr_err *err)
{
	char partition[16], first[24];
	const char *params[] = { sp->lane->l->c->conf->group, sp->part->topic, partition, first };
	struct sink_cut *c;
	PGresult *res;

	(void)snprintf(partition, sizeof(partition), "%" PRId32, sp->part->partition);
	(void)snprintf(first, sizeof(first), "%" PRId64, f->first);
	res = pr_pg_exec(sp->lane->l->pg, sql_sink_files, 4, params, err);
	if (!res)
		return NULL;
	c = pr_calloc(1, sizeof(*c));
	*c = (struct sink_cut){ .part = sp,
		.state = SINK_RECORDED,
		.first = f->first,
		.next = f->next,
		.min_us = INT64_MAX,
		.max_us = INT64_MIN,
		.watermark_us = sp->watermark_us,
		.mark_us = f->mark_us,
		.oldest_us = INT64_MAX,
		.reason = "recovered" };
	c->files_n = (size_t)PQntuples(res);
	c->files = pr_calloc(c->files_n + 1, sizeof(*c->files));
	for (size_t i = 0; i < c->files_n; i++) {
		read_file(&c->files[i], res, (int)i);
		c->records += c->files[i].records;
		c->max_us = later(c->max_us, c->files[i].max_us);
	}
	PQclear(res);
	return c;
}

/* ---------------------------------------------------------------- what was published before */

static int by_path(const void *x, const void *y)
{
	return strcmp(((const struct sink_file *)x)->path, ((const struct sink_file *)y)->path);
}

static int is_packed(const struct sink_file *f)
{
	const char *ext = strrchr(f->path, '.');

	return ext && (strcmp(ext, ".gz") == 0 || strcmp(ext, ".zst") == 0);
}

/* Another level or another release of the library compresses the same lines to other bytes. */
static int same_file(const struct sink_file *was, const struct sink_file *f, int *ret_bytes)
{
	if (memcmp(was->sum, f->sum, SINK_SUM) == 0)
		return 1;
	*ret_bytes = 0;
	return is_packed(f) && was->records == f->records &&
	       was->max_us == (f->max_us < 0 ? -1 : f->max_us) && (f->max_us < 0 || was->min_us == f->min_us);
}

/* was: as the database has it; its files get another order. */
static int same_files(struct sink_cut *was, const struct sink_cut *c, int *ret_bytes)
{
	qsort(was->files, was->files_n, sizeof(*was->files), by_path);
	for (size_t i = 0; i < c->files_n; i++) {
		const struct sink_file *f =
			bsearch(&c->files[i], was->files, was->files_n, sizeof(*was->files), by_path);

		if (!f || !same_file(f, &c->files[i], ret_bytes))
			return 0;
	}
	return was->files_n == c->files_n;
}

/* Without files. Halves of one that was split have the times of the whole. */
static int same_records(const struct sink_forced *f, const struct sink_cut *c)
{
	return f->records == c->records &&
	       (c->max_us < 0 ? f->max_us < 0 : c->min_us >= f->min_us && c->max_us <= f->max_us);
}

int ledger_is_same(
	struct sink_cut *was, const struct sink_forced *f, const struct sink_cut *c, int *ret_bytes)
{
	*ret_bytes = 1;
	if (was->files_n + c->files_n == 0)
		return same_records(f, c);
	return same_files(was, c, ret_bytes) && (*ret_bytes || f->bytes == c->bytes);
}
