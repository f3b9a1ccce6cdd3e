/* consumers/saga/handler_saga.c -- the saga engine as a handler: a batch of starts, replies and events moves
 * its instances on inside the lane's transaction, with the offset, the log and the commands in the outbox.
 * Refuses to undo a message: a saga undoes its steps, not its messages. */
#include "consumers/saga/saga.h"

#include "consumers/outcome.h"

#include "lib/fault.h"

#include <stdlib.h>
#include <string.h>

struct handler {
	struct store *store;
	struct saga_writing writing;
	int lane;

	/* of one batch; grow and stay */
	struct saga_message *message;
	unsigned char (*ids)[16];
	size_t n, cap;
};

static int saga_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	struct handler *h;

	if (book_open(env->conf, pg, err) < 0)
		return -1;
	h = pr_calloc(1, sizeof(*h));
	h->store = store_new();
	h->lane = env->lane;
	*ret = h;
	return 0;
}

static void saga_close(struct handler *h)
{
	if (!h)
		return;
	store_free(h->store);
	writing_free(&h->writing);
	free(h->message);
	free(h->ids);
	free(h);
}

static struct saga_message *next_message(struct handler *h)
{
	if (h->n == h->cap) {
		h->cap = h->cap ? h->cap * 2 : 64;
		h->message = pr_realloc(h->message, h->cap * sizeof(*h->message));
		h->ids = pr_realloc(h->ids, h->cap * sizeof(*h->ids));
	}
	return &h->message[h->n];
}

/* ---------------------------------------------------------------- whose messages these are */

static size_t collect_ids(struct handler *h)
{
	for (size_t i = 0; i < h->n; i++)
		memcpy(h->ids[i], h->message[i].id, 16);
	return store_sort_ids(h->ids, h->n);
}

static int row_by_id(const void *id, const void *row)
{
	return memcmp(id, ((const struct saga_row *)row)->id, 16);
}

/* 0, or -1 and out[i] of the first that is broken. What there is in h->message is to be released. */
static int classify(struct handler *h, struct message *const *m, size_t n, struct outcome *out)
{
	int rc;

	h->n = 0;
	for (size_t i = 0; i < n; i++)
		for (size_t at = 0; (rc = message_classify(m[i], at, next_message(h), &out[i])) != 0; at++) {
			if (rc < 0)
				return -1;
			h->n++;
		}
	return 0;
}

/* ---------------------------------------------------------------- semantic locks */

static const char *first_lock(const struct saga_row *row)
{
	return row->locks.len ? row->locks.s : "";
}

/* New ones that want locks stand in their queues by now. */
static int begin_those_with_locks(
	struct handler *h, struct pr_pg *pg, struct saga_row *rows, size_t n, int64_t now, struct pr_err *err)
{
	size_t begun = 0;

	writing_clear(&h->writing);
	for (size_t i = 0; i < n; i++) {
		struct saga_row *r = &rows[i];

		if (!r->def || r->locks_n == 0 || r->in.granted)
			continue;
		if (!r->lock_free && r->def->lock_refuse)
			saga_lock_refused(r->def, &r->in, first_lock(r), now, &h->writing.out);
		else
			saga_begin(r->def, &r->in, r->lock_free, now, &h->writing.out);
		writing_take(&h->writing, r, NULL);
		r->changed = 1;
		begun++;
	}
	return begun ? store_save(h->store, pg, rows, n, &h->writing, h->lane, now, NULL, err) : 0;
}

/* ---------------------------------------------------------------- a batch */

static void nudge(const struct saga_row *rows, size_t n)
{
	int64_t due = INT64_MAX, d;

	for (size_t i = 0; i < n; i++) {
		d = rows[i].def ? saga_due(&rows[i].in, rows[i].def) : INT64_MAX;
		due = d < due ? d : due;
	}
	saga_clock_nudge(due);
}

static int walk(struct handler *h, struct pr_pg *pg, struct pr_err *err)
{
	size_t ids = collect_ids(h);
	struct saga_row *rows, *row;
	int64_t now;

	if (ids == 0)
		return 0;
	if (store_load(h->store, pg, (const unsigned char(*)[16])h->ids, ids, 0, &rows, &now, err) < 0)
		return -1;
	for (size_t i = 0; i < h->n; i++) {
		row = bsearch(h->message[i].id, rows, ids, sizeof(*rows), row_by_id);
		walk_message(row, &h->message[i], now, &h->writing);
	}
	/* If we die here, nothing has happened: instances and offset are one commit. */
	FAULT(saga_walked_before_saved);
	if (store_save(h->store, pg, rows, ids, &h->writing, h->lane, now, NULL, err) < 0 ||
		begin_those_with_locks(h, pg, rows, ids, now, err) < 0)
		return -1;
	nudge(rows, ids);
	return 0;
}

static int is_server_error(const struct pr_pg *pg, const struct pr_err *err)
{
	return pr_pg_ok(pg) && strlen(err->code) == 5;
}

static int saga_run(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
	struct outcome *out, struct pr_err *err)
{
	int rc = 0, broken = classify(h, m, n, out) < 0;

	(void)op;
	writing_clear(&h->writing);
	if (!broken)
		rc = walk(h, pg, err);
	for (size_t i = 0; i < h->n; i++)
		message_release(&h->message[i]);
	if (rc == 0 || !is_server_error(pg, err))
		return rc;
	/* Its events come by several lanes, and another one has made the instance just now: go again. */
	outcome_fail(&out[0], PR_FAIL_SQLSTATE, strcmp(err->code, "23505") == 0 ? "40001" : err->code, "%s",
		err->text);
	return 0;
}

const struct handler_ops handler_saga = {
	.kind = "saga",
	.in_transaction = 1,
	.open = saga_open,
	.close = saga_close,
	.run = saga_run,
	.beside = saga_clock_thread,
	.routes = saga_routes,
	.worker_open = saga_http_open,
	.worker_close = saga_http_close,
};
