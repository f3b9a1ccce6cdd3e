/* consumers/saga/store.c -- instances in and out of Postgres: one statement reads and locks a batch, a few in
 * one round trip write all that became of it. Refuses to decide anything, and to write a saga that it did not
 * lock. */
#include "consumers/args.h"
#include "consumers/saga/saga.h"

#include "lib/uuid.h"
#include "sql.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OID_BOOL_ARRAY  1000
#define OID_BOOL        16
#define OID_JSON        114
#define OID_JSON_ARRAY  199
#define OID_JSONB       3802
#define OID_JSONB_ARRAY 3807
#define OID_TIME        1184
#define OID_TIME_ARRAY  1185
#define EPOCH_US        946684800000000LL /* 2000-01-01 since 1970 */

#define LARGE 500 /* instances */

struct store {
	struct saga_row *row;
	size_t n, cap;
	struct pr_buf scratch;
	int roomy; /* see make_room */
};

struct store *store_new(void)
{
	return pr_calloc(1, sizeof(struct store));
}

void store_free(struct store *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < s->cap; i++) {
		saga_instance_free(&s->row[i].in);
		pr_buf_free(&s->row[i].locks);
	}
	free(s->row);
	pr_buf_free(&s->scratch);
	free(s);
}

/* Buffers of rows stay theirs. */
static void reset(struct store *s, const unsigned char (*ids)[16], size_t n)
{
	if (n > s->cap) {
		s->row = pr_realloc(s->row, n * sizeof(*s->row));
		memset(s->row + s->cap, 0, (n - s->cap) * sizeof(*s->row));
		s->cap = n;
	}
	s->n = n;
	for (size_t i = 0; i < n; i++) {
		struct saga_row *r = &s->row[i];
		struct pr_buf locks = r->locks;

		saga_instance_free(&r->in);
		*r = (struct saga_row){ .locks = locks };
		memcpy(r->id, ids[i], sizeof(r->id));
	}
}

/* ---------------------------------------------------------------- arrays */

static void null_element(struct args *a)
{
	uint32_t none = htonl((uint32_t)-1);

	pr_buf_put(&a->text, &none, sizeof(none));
}

static void text_element(struct args *a, const char *s)
{
	if (s)
		args_element(a, s, strlen(s));
	else
		null_element(a);
}

static void bool_element(struct args *a, int yes)
{
	char b = (char)(yes != 0);

	args_element(a, &b, 1);
}

static void time_element(struct args *a, int64_t us)
{
	if (us)
		args_element_int8(a, us - EPOCH_US);
	else
		null_element(a);
}

static void jsonb_element(struct args *a, const char *s)
{
	uint32_t n = htonl((uint32_t)strlen(s) + 1);

	pr_buf_put(&a->text, &n, sizeof(n));
	pr_buf_put(&a->text, "\001", 1);
	pr_buf_puts(&a->text, s);
}

static void args_bool(struct args *a, int yes)
{
	char b = (char)(yes != 0);

	args_binary(a, OID_BOOL, &b, 1);
}

/* ---------------------------------------------------------------- load */

static const char *cell(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? NULL : PQgetvalue(res, row, col);
}

static int64_t number(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? 0 : strtoll(PQgetvalue(res, row, col), NULL, 10);
}

static int is_true(const PGresult *res, int row, int col)
{
	return !PQgetisnull(res, row, col) && PQgetvalue(res, row, col)[0] == 't';
}

static void copy(char *to, size_t size, const char *from)
{
	(void)snprintf(to, size, "%s", from ? from : "");
}

static int unreadable(const struct saga_row *r, const char *what, struct pr_err *err)
{
	char id[37];

	return pr_fail(err, PR_STOP, "saga %s: its %s cannot be read", pr_uuid_print(r->id, id), what);
}

static int read_row(struct saga_row *r, struct pr_pg *pg, const PGresult *res, int i, struct pr_err *err)
{
	int state = saga_state_parse(PQgetvalue(res, i, 4), (size_t)PQgetlength(res, i, 4));
	const char *data = cell(res, i, 8), *steps = cell(res, i, 9), *failed = cell(res, i, 10);

	if (book_version(pg, PQgetvalue(res, i, 2), (int)number(res, i, 3), &r->def, err) < 0)
		return -1;
	if (state < 0)
		return unreadable(r, "state", err);
	saga_instance_init(&r->in, r->def, r->id, data, data ? strlen(data) : 0, number(res, i, 12));
	r->existed = 1;
	r->was = r->in.state = (enum saga_state)state;
	r->in.turned = is_true(res, i, 5);
	r->in.granted = is_true(res, i, 6);
	r->lock_free = is_true(res, i, 7);
	r->in.failed = failed ? saga_def_step(r->def, failed, strlen(failed)) : -1;
	copy(r->in.why, sizeof(r->in.why), cell(res, i, 11));
	r->in.deadline_us = number(res, i, 13);
	r->in.since_us = number(res, i, 14);
	copy(r->part, sizeof(r->part), cell(res, i, 16));
	copy(r->correlation, sizeof(r->correlation), cell(res, i, 17));
	if (steps && saga_read_steps(r->def, &r->in, steps, strlen(steps)) < 0)
		return unreadable(r, "steps", err);
	return 0;
}

static int read_rows(struct store *s, struct pr_pg *pg, const PGresult *res, struct pr_err *err)
{
	int64_t ord;

	for (int i = 0; i < PQntuples(res); i++) {
		ord = number(res, i, 0);
		if (ord < 1 || ord > (int64_t)s->n)
			return pr_fail(err, PR_STOP, "saga.load named a row that was not asked for");
		if (read_row(&s->row[ord - 1], pg, res, i, err) < 0)
			return -1;
	}
	return 0;
}

/* A batch of 2,000 messages brings 4,000 records and as many log rows: more than the 32 MB that a lane's
 * backend keeps from one statement to the next (lane.c says why it does). 31 MB is the largest piece that
 * glibc takes for a measure; it keeps twice that. Without it: 20 page faults a saga. */
static int make_room(struct store *s, struct pr_pg *pg, size_t n, struct pr_err *err)
{
	if (s->roomy || n < LARGE)
		return 0;
	s->roomy = 1;
	return pr_pg_run(pg, "SELECT pg_catalog.length(pg_catalog.repeat('x', 32505856))", 0, NULL, err);
}

static int by_id(const void *a, const void *b)
{
	return memcmp(a, b, 16);
}

size_t store_sort_ids(unsigned char (*ids)[16], size_t n)
{
	size_t unique = 0;

	qsort(ids, n, sizeof(*ids), by_id);
	for (size_t i = 0; i < n; i++)
		if (i == 0 || memcmp(ids[i], ids[unique - 1], 16) != 0)
			memmove(ids[unique++], ids[i], 16);
	return unique;
}

int store_load(struct store *s, struct pr_pg *pg, const unsigned char (*ids)[16], size_t n, int skip,
	struct saga_row **ret, int64_t *now_us, struct pr_err *err)
{
	struct args a = { 0 }, none = { 0 };
	struct pr_stmt q[2];
	int rc;

	if (make_room(s, pg, n, err) < 0)
		return -1;
	reset(s, ids, n);
	args_array(&a, OID_UUID_ARRAY, OID_UUID, n);
	for (size_t i = 0; i < n; i++)
		args_element(&a, ids[i], 16);
	args_end(&a);
	args_bool(&a, skip);
	q[0] = args_stmt(&a, sql_engine_load, 0);
	q[1] = args_stmt(&none, sql_engine_now, 1);
	rc = pr_pg_pipeline(pg, q, 2, NULL, err);
	if (rc == 0) {
		/* After the locks: what we decide now is not before what another decided. */
		*now_us = number(q[1].res, 0, 0);
		rc = read_rows(s, pg, q[0].res, err);
		pr_stmt_clear(q, 2);
	}
	args_free(&a);
	args_free(&none);
	*ret = s->row;
	return rc;
}

int store_load_ended(struct saga_row *row, struct pr_pg *pg, struct pr_err *err)
{
	char id[37];
	PGresult *res =
		pr_pg_exec(pg, sql_engine_ended, 1, (const char *const[]){ pr_uuid_print(row->id, id) }, err);
	int rc = -1;

	if (!res)
		return -1;
	saga_instance_free(&row->in);
	if (PQntuples(res) == 1)
		rc = read_row(row, pg, res, 0, err);
	else
		(void)pr_fail(err, PR_RETRY, "saga %s moves on at this moment", id);
	PQclear(res);
	return rc;
}

int store_revive(const struct saga_row *row, struct pr_pg *pg, struct pr_err *err)
{
	char id[37];

	return pr_pg_run(pg, sql_engine_revive, 1, (const char *const[]){ pr_uuid_print(row->id, id) }, err);
}

/* ---------------------------------------------------------------- save: instances */

static size_t changed(struct saga_row *rows, size_t n, struct saga_row **ret)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++)
		if (rows[i].def && rows[i].changed)
			ret[count++] = &rows[i];
	return count;
}

#define COLUMN(a, type, element, rows, n, put)                                                               \
	do {                                                                                                 \
		args_array((a), (type), (element), (n));                                                     \
		for (size_t i_ = 0; i_ < (n); i_++) {                                                        \
			struct saga_row *r = (rows)[i_];                                                     \
			put;                                                                                 \
		}                                                                                            \
		args_end(a);                                                                                 \
	} while (0)

static void put_json(struct args *a, const struct pr_buf *b)
{
	args_element(a, b->s, b->len);
}

static void put_steps(struct store *s, struct args *a, const struct saga_row *r)
{
	s->scratch.len = 0;
	saga_put_steps(r->def, &r->in, &s->scratch);
	put_json(a, &s->scratch);
}

static int64_t due(const struct saga_row *r)
{
	int64_t us = saga_due(&r->in, r->def);

	return us == INT64_MAX ? 0 : us;
}

static void put_locks(struct args *a, struct saga_row *const *rows, size_t n)
{
	size_t locks = 0;
	const char *s;

	for (size_t i = 0; i < n; i++)
		locks += rows[i]->existed ? 0 : (size_t)rows[i]->locks_n;
	args_array(a, OID_UUID_ARRAY, OID_UUID, locks);
	for (size_t i = 0; i < n; i++)
		for (int k = 0; !rows[i]->existed && k < rows[i]->locks_n; k++)
			args_element(a, rows[i]->id, 16);
	args_end(a);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, locks);
	for (size_t i = 0; i < n; i++) {
		s = rows[i]->locks.s;
		for (int k = 0; !rows[i]->existed && k < rows[i]->locks_n; k++, s += strlen(s) + 1)
			text_element(a, s);
	}
	args_end(a);
}

/* The parameters of saga.save, in its order. */
static void put_rows(struct store *s, struct args *a, struct saga_row *const *rows, size_t n, int writer)
{
	args_int(a, writer);
	COLUMN(a, OID_UUID_ARRAY, OID_UUID, rows, n, args_element(a, r->id, 16));
	COLUMN(a, OID_BOOL_ARRAY, OID_BOOL, rows, n, bool_element(a, !r->existed));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n, text_element(a, r->def->name));
	COLUMN(a, OID_INT4_ARRAY, OID_INT4, rows, n, args_element_int4(a, r->def->version));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n,
		text_element(a, r->existed ? saga_state_str(r->was) : NULL));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n, text_element(a, saga_state_str(r->in.state)));
	COLUMN(a, OID_BOOL_ARRAY, OID_BOOL, rows, n, bool_element(a, r->in.turned));
	COLUMN(a, OID_BOOL_ARRAY, OID_BOOL, rows, n, bool_element(a, r->in.granted));
	COLUMN(a, OID_JSON_ARRAY, OID_JSON, rows, n,
		r->data_changed ? put_json(a, &r->in.data) : null_element(a));
	COLUMN(a, OID_JSON_ARRAY, OID_JSON, rows, n, put_steps(s, a, r));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n,
		text_element(a, r->in.failed >= 0 ? r->def->step[r->in.failed].name : NULL));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n, text_element(a, *r->in.why ? r->in.why : NULL));
	COLUMN(a, OID_TIME_ARRAY, OID_TIME, rows, n, time_element(a, r->in.started_us));
	COLUMN(a, OID_TIME_ARRAY, OID_TIME, rows, n, time_element(a, r->in.deadline_us));
	COLUMN(a, OID_TIME_ARRAY, OID_TIME, rows, n, time_element(a, r->in.since_us));
	COLUMN(a, OID_TIME_ARRAY, OID_TIME, rows, n, time_element(a, due(r)));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n,
		text_element(a, r->existed && !r->part_changed ? NULL : r->part));
	COLUMN(a, OID_TEXT_ARRAY, OID_TEXT, rows, n,
		text_element(a, *r->correlation ? r->correlation : NULL));
	put_locks(a, rows, n);
}

/* ---------------------------------------------------------------- save: log, commands, events */

static const char *at(const struct saga_writing *w, size_t offset)
{
	return offset == SIZE_MAX ? NULL : w->text.s + offset;
}

#define LOG(put)                                                                                             \
	do {                                                                                                 \
		for (size_t i_ = 0; i_ < w->log_n; i_++) {                                                   \
			const struct saga_log *l = &w->log[i_];                                              \
			put;                                                                                 \
		}                                                                                            \
		args_end(a);                                                                                 \
	} while (0)

static void put_log(struct args *a, const struct saga_writing *w)
{
	args_array(a, OID_UUID_ARRAY, OID_UUID, w->log_n);
	LOG(args_element(a, l->id, 16));
	args_array(a, OID_TIME_ARRAY, OID_TIME, w->log_n);
	LOG((void)l; time_element(a, w->at_us));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->log_n);
	LOG(text_element(a, at(w, l->what)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->log_n);
	LOG(text_element(a, at(w, l->step)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->log_n);
	LOG(text_element(a, at(w, l->op)));
	args_array(a, OID_UUID_ARRAY, OID_UUID, w->log_n);
	LOG(l->has_command ? args_element(a, l->command_id, 16) : null_element(a));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->log_n);
	LOG(text_element(a, at(w, l->text)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->log_n);
	LOG(text_element(a, at(w, l->by)));
}

#define RECORDS(put)                                                                                         \
	do {                                                                                                 \
		for (size_t i_ = 0; i_ < w->record_n; i_++) {                                                \
			const struct saga_record *r = &w->record[i_];                                        \
			put;                                                                                 \
		}                                                                                            \
		args_end(a);                                                                                 \
	} while (0)

static void put_records(struct args *a, const struct saga_writing *w)
{
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->record_n);
	RECORDS(text_element(a, at(w, r->key)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->record_n);
	RECORDS(text_element(a, at(w, r->type)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->record_n);
	RECORDS(text_element(a, at(w, r->topic)));
	args_array(a, OID_JSONB_ARRAY, OID_JSONB, w->record_n);
	RECORDS(jsonb_element(a, at(w, r->payload)));
	args_array(a, OID_JSONB_ARRAY, OID_JSONB, w->record_n);
	RECORDS(jsonb_element(a, at(w, r->headers)));
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, w->record_n);
	RECORDS(text_element(a, at(w, r->trace)));
}

static void put_orders(struct args *a, const struct saga_orders_done *o)
{
	args_array(a, OID_INT8_ARRAY, OID_INT8, o->n);
	for (size_t i = 0; i < o->n; i++)
		args_element_int8(a, o->entry[i]);
	args_end(a);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, o->n);
	for (size_t i = 0; i < o->n; i++)
		text_element(a, o->outcome[i]);
	args_end(a);
	args_array(a, OID_TEXT_ARRAY, OID_TEXT, o->n);
	for (size_t i = 0; i < o->n; i++)
		text_element(a, o->reason[i]);
	args_end(a);
}

/* ---------------------------------------------------------------- save */

static void take_granted(struct saga_row *const *rows, size_t n, const PGresult *res)
{
	unsigned char id[16];

	for (int i = 0; i < PQntuples(res); i++) {
		if (pr_uuid_parse(PQgetvalue(res, i, 0), (size_t)PQgetlength(res, i, 0), id) < 0)
			continue;
		for (size_t k = 0; k < n; k++)
			rows[k]->lock_free |= memcmp(rows[k]->id, id, sizeof(id)) == 0;
	}
}

static void as_loaded(struct saga_row *const *rows, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		rows[i]->existed = 1;
		rows[i]->was = rows[i]->in.state;
		rows[i]->changed = rows[i]->data_changed = rows[i]->part_changed = 0;
	}
}

int store_save(struct store *s, struct pr_pg *pg, struct saga_row *rows, size_t n, struct saga_writing *w,
	int writer, int64_t now_us, const struct saga_orders_done *orders, struct pr_err *err)
{
	struct saga_row **list = pr_calloc(n + 1, sizeof(struct saga_row *));
	struct args a[4] = { 0 };
	struct pr_stmt q[4];
	size_t count = changed(rows, n, list);
	int k = 0, rc = 0;

	w->at_us = now_us;
	if (count > 0) {
		put_rows(s, &a[k], list, count, writer);
		q[k] = args_stmt(&a[k], sql_engine_save, 0);
		k++;
	}
	if (w->log_n > 0) {
		put_log(&a[k], w);
		q[k] = args_stmt(&a[k], sql_engine_note, 0);
		k++;
	}
	if (w->record_n > 0) {
		put_records(&a[k], w);
		q[k] = args_stmt(&a[k], sql_engine_publish, 0);
		k++;
	}
	if (orders && orders->n > 0) {
		put_orders(&a[k], orders);
		q[k] = args_stmt(&a[k], sql_engine_orders_done, 0);
		k++;
	}
	if (k > 0) {
		q[k - 1].sync = 1;
		rc = pr_pg_pipeline(pg, q, k, NULL, err);
	}
	if (rc == 0 && k > 0) {
		if (count > 0)
			take_granted(list, count, q[0].res);
		as_loaded(list, count);
		pr_stmt_clear(q, k);
	}
	for (int i = 0; i < 4; i++)
		args_free(&a[i]);
	free(list);
	return rc;
}
