/* consumers/apply.c -- one transaction: what a batch does becomes durable together with how far we are.
 * Refuses to commit anything when a position is not where we left it, or belongs to somebody else.
 *
 * In the database (sql, c): ids, effects, what is held back and the positions are one commit, sent in one
 * round trip. Outside (http, exec): effects first, then ids, what is held back and positions in one commit; a
 * crash in between repeats effects, and the receiver has the message's id to tell. */
#include "consumers/tx.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define UNDO_AGAIN_US (10 * PR_SEC)

/* ---------------------------------------------------------------- what was seen before */

static void altered(struct lane *l, struct work *w)
{
	struct outcome why = { .cls = PR_FAIL_DECODE, .code = "altered" };

	(void)snprintf(why.text, sizeof(why.text), "the message id %s came before with another payload",
		w->m->id_text);
	w->m->attempts++;
	decide(l, w->m, &why, &w->v);
	if (w->v.fate == FATE_PENDING)
		w->v.fate = FATE_BURY;
}

/* Asks which of them were handled before; their fates follow. */
static int look(struct lane *l, struct work *w, size_t n, struct pr_err *err)
{
	struct args a = { 0 };
	struct tx t = { .l = l, .w = w, .n = n };
	struct pr_stmt s;
	size_t row = 0;
	int rc = 0;

	if (tx_ids(&t, &a, to_look) > 0) {
		s = args_stmt(&a, sql_lane_look, 1);
		rc = pr_pg_pipeline(l->pg, &s, 1, NULL, err);
		for (size_t i = 0; i < n && rc == 0; i++) {
			int said;

			if (!to_look(&w[i]))
				continue;
			said = atoi(PQgetvalue(s.res, (int)row++, 0));
			w[i].looked = 1;
			if (said == 1)
				w[i].v.fate = FATE_SEEN;
			else if (said == 2)
				altered(l, &w[i]);
		}
		pr_stmt_clear(&s, 1);
	}
	args_free(&a);
	return rc;
}

/* ---------------------------------------------------------------- after the commit */

/* One line a second and lane: the tables have all of them. */
static void tell(struct lane *l, const struct work *w)
{
	const struct outcome *why = message_why(w->m);
	char code[64];

	if (!pr_log_due(&l->told_us, PR_SEC))
		return;
	(void)snprintf(code, sizeof(code), "%s%s%s", pr_fail_class_str(why->cls), why->code[0] ? ":" : "",
		why->code);
	pr_log(PR_WARN,
		w->v.fate == FATE_BURY ? "dead letter"
		: l->c->topics         ? "goes to a retry topic"
				       : "key parked",
		KS("topic", w->m->topic), KI("partition", w->m->partition), KI("offset", w->m->offset),
		KS("code", code), KI("attempts", w->m->attempts), KS("err", why->text));
}

void account(struct lane *l, const struct work *w, size_t n)
{
	static const enum handled as[] = { [FATE_HANDLE] = HANDLED,
		[FATE_DONE] = HANDLED,
		[FATE_SEEN] = DUPLICATE,
		[FATE_FILTERED] = FILTERED,
		[FATE_IGNORE] = IGNORED,
		[FATE_BEHIND] = PARKED,
		[FATE_PARK] = PARKED,
		[FATE_BURY] = DEAD_LETTER };
	uint64_t count[HANDLED_COUNT] = { 0 };

	for (size_t i = 0; i < n; i++) {
		count[as[w[i].v.fate]]++;
		if (w[i].v.fate == FATE_PARK && !w[i].m->parked && !l->c->topics)
			held_add(l, w[i].m);
		if ((w[i].v.fate == FATE_PARK && !w[i].m->parked) || w[i].v.fate == FATE_BURY)
			tell(l, &w[i]);
		if (w[i].m->trace)
			spans_end(l, &w[i]);
		if (w[i].m->replay)
			replay_done(w[i].m->replay, w[i].v.fate == FATE_SEEN);
	}
	for (int i = 0; i < HANDLED_COUNT; i++)
		if (count[i])
			atomic_fetch_add(&l->c->handled[i], count[i]);
	pr_observe(l->c->m.batch_events, (double)n);
}

/* ---------------------------------------------------------------- what a failed statement means */

static int is_code(const struct pr_err *err, const char *code)
{
	return strcmp(err->code, code) == 0;
}

static void outcome_of(const struct pr_err *err, struct outcome *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->cls = is_code(err, "57014") || is_code(err, "timeout") ? PR_FAIL_TIMEOUT : PR_FAIL_SQLSTATE;
	if (ret->cls == PR_FAIL_SQLSTATE)
		(void)snprintf(ret->code, sizeof(ret->code), "%s", err->code);
	(void)snprintf(ret->text, sizeof(ret->text), "%s", err->text);
}

static enum applied judge(const struct tx *t, int failed, struct outcome *ret, const struct pr_err *err)
{
	if (!pr_pg_ok(t->l->pg))
		return BROKEN;
	if (failed >= 0 && failed != t->handler_at && is_code(err, "PRF01"))
		return FENCED;
	if (failed >= 0 && failed == t->remember_at && is_code(err, "PRD01"))
		return COLLIDED;
	/* A transaction's own end fails by what the handler deferred, whatever the code says. */
	if (t->handler_at >= 0 &&
		(failed == t->handler_at || (failed > t->handler_at && t->s[failed].at_end))) {
		outcome_of(err, ret);
		return FAILED;
	}
	return BROKEN;
}

/* A message whose undo fails is parked, to be seen; then it is handled, and perhaps undone, once more. */
static void undo_failed(struct work *w, const struct outcome *why)
{
	struct outcome also = *message_why(w->m);

	(void)snprintf(also.text, sizeof(also.text), "its undo failed: %.500s", why->text);
	message_failed(w->m, &also);
	w->v.fate = FATE_PARK;
	w->v.delay_us = UNDO_AGAIN_US;
}

/* ---------------------------------------------------------------- effects inside */

/* Sends what was put together. */
static enum applied submit(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	int failed, rc;

	rc = pr_pg_pipeline(t->l->pg, t->s, t->s_n, &failed, err);
	if (rc == 0 && t->unpark_at >= 0)
		t->last = PQgetisnull(t->s[t->unpark_at].res, 0, 0);
	pr_stmt_clear(t->s, t->s_n);
	return rc == 0 ? APPLIED : judge(t, failed, ret, err);
}

static enum applied one_round_trip(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	if (t->m_n > 0)
		tx_attempt(t);
	if (SABOTAGE(offset_before_effect))
		tx_advance(t, 1);
	tx_remember(t);
	tx_handler(t, t->l->c->ops->statement(t->l->handler, OP_DO));
	tx_held(t);
	if (SABOTAGE(offset_before_effect))
		(void)tx_plain(t, "SELECT 1", 1);
	else
		tx_advance(t, 1);
	pr_pg_timeout(t->l->pg, t->l->c->conf->handler.timeout_us + t->l->c->conf->database.timeout_us);
	return submit(t, ret, err);
}

/* A handler that needs the connection itself: begin, its turn, the rest and COMMIT. */
static enum applied in_steps(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	struct outcome *out = pr_calloc(t->n + 1, sizeof(*out));
	enum op op = OP_DO;
	enum applied rc;

	if (t->m_n > 0)
		tx_attempt(t);
	(void)tx_plain(t, "BEGIN", 0);
	tx_remember(t);
	(void)tx_plain(t, "SELECT 1", 1);
	rc = submit(t, ret, err);
	if (rc != APPLIED)
		goto out;
	if (t->m_n == 0 && t->n > 0 && t->w[t->n - 1].v.fate == FATE_BURY && t->w[t->n - 1].v.undo &&
		l->c->conf->handler.undo) {
		t->m[t->m_n++] = t->w[t->n - 1].m;
		op = OP_UNDO;
	}
	if (t->m_n > 0 && l->c->ops->run(l->handler, l->pg, op, t->m, t->m_n, out, err) < 0) {
		rc = BROKEN;
		goto out;
	}
	for (size_t i = 0; i < t->m_n; i++) {
		if (!out[i].cls)
			continue;
		*ret = out[i];
		rc = FAILED;
		goto out;
	}
	tx_statements_free(t);
	tx_held(t);
	tx_advance(t, 0);
	(void)tx_plain(t, "COMMIT", 1);
	/* If we die here, nothing of it has happened: the transaction ends with our connection. */
	FAULT(handled_before_commit);
	t->handler_at = t->s_n - 1; /* what COMMIT refuses was deferred by the handler */
	rc = submit(t, ret, err);
out:
	free(out);
	if (rc != APPLIED && pr_pg_ok(l->pg) && PQtransactionStatus(pr_pg_conn(l->pg)) != PQTRANS_IDLE &&
		pr_pg_run(l->pg, "ROLLBACK", 0, NULL, err) < 0)
		return BROKEN;
	return rc;
}

static enum applied inside(struct tx *t, struct outcome *ret, struct pr_err *err)
{
	enum applied (*run)(struct tx *, struct outcome *, struct pr_err *) =
		t->l->c->ops->statement ? one_round_trip : in_steps;
	enum applied rc;

	/* If we die here, nothing has happened. */
	FAULT(before_transaction);
	rc = run(t, ret, err);
	if (rc != FAILED || t->n != 1 || t->w[0].v.fate != FATE_BURY)
		return rc;
	undo_failed(&t->w[0], ret);
	tx_statements_free(t);
	t->m_n = 0;
	return run(t, ret, err);
}

/* ---------------------------------------------------------------- effects outside */

/* Fates after the handler's answers. */
void take_answers(struct tx *t, const struct outcome *out)
{
	for (size_t i = 0; i < t->m_n; i++) {
		struct work *w = &t->w[t->index[i]];

		if (out[i].cls == PR_FAIL_NONE) {
			w->v.fate = FATE_DONE;
		} else if (out[i].cls == PR_FAIL_REPLY && strcmp(out[i].code, "behind") == 0) {
			w->v = (struct verdict){ .fate = FATE_PENDING };
		} else {
			w->m->attempts++;
			decide(t->l, w->m, &out[i], &w->v);
			if (w->m->parked && w->v.fate == FATE_PENDING)
				w->v.fate = FATE_PARK;
			atomic_fetch_add(&t->l->c->retried, w->v.fate == FATE_PENDING);
		}
	}
}

/* The prefix that can be stepped over: up to the first that is tried again; and the one behind a parked key
 * must see that it is. */
static size_t settled(struct tx *t)
{
	size_t held = 0;

	for (size_t i = 0; i < t->n; i++) {
		if (t->w[i].v.fate == FATE_PENDING)
			return i;
		if (work_is_held(&t->w[i]) &&
			(t->w[i].v.fate == FATE_PARK || t->w[i].m->parked || ++held == HELD_MOST))
			return i + 1;
	}
	return t->n;
}

/* What undoes a buried message outside; 0 when it could not be: then the message is parked, to be seen. An
 * undo that a stop cut short did not fail: the message comes again. */
int undone_outside(struct tx *t, struct work *w, struct pr_err *err)
{
	struct outcome out = { 0 };

	if (!w->v.undo || !t->l->c->conf->handler.undo)
		return 1;
	if (t->l->c->ops->run(t->l->handler, t->l->pg, OP_UNDO, &w->m, 1, &out, err) == 0 && !out.cls)
		return 1;
	if (out.cls == PR_FAIL_REPLY && strcmp(out.code, "behind") == 0) {
		w->v = (struct verdict){ .fate = FATE_PENDING };
		return 0;
	}
	undo_failed(w, &out);
	return 0;
}

static enum applied record(struct tx *t, size_t n, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	size_t ids;
	struct args *a;

	tx_statements_free(t);
	take_steps(l, t->w, n);
	if (lane_dedupes(l)) {
		a = tx_args(t);
		ids = tx_ids(t, a, to_record);
		if (ids > 0)
			(void)tx_add(t, a, sql_lane_sort_out, 0);
		else if (n == 0)
			return APPLIED;
	} else if (n == 0) {
		return APPLIED;
	}
	t->n = n;
	tx_held(t);
	tx_advance(t, 1);
	/* If we die here, the effects are there and nothing knows: they happen again, with the same message
	 * id. */
	FAULT(handled_before_recorded);
	return submit(t, ret, err);
}

static enum applied outside(struct tx *t, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	struct lane *l = t->l;
	struct outcome *out = pr_calloc(t->m_n + 1, sizeof(*out));
	size_t all = t->n, n;
	enum applied rc = BROKEN;

	if (t->m_n > 0) {
		tx_attempt(t);
		if (t->s_n > 0 && submit(t, ret, err) != APPLIED)
			goto out;
		if (l->c->ops->run(l->handler, l->pg, OP_DO, t->m, t->m_n, out, err) < 0)
			goto out;
		take_answers(t, out);
	}
	n = settled(t);
	for (size_t i = 0; i < n; i++) {
		if (t->w[i].v.fate == FATE_BURY && !undone_outside(t, &t->w[i], err)) {
			n = t->w[i].v.fate == FATE_PENDING ? i : i + 1;
			break;
		}
	}
	rc = record(t, n, ret, err);
	for (size_t i = 0; i < all && rc == APPLIED; i++)
		if (t->w[i].v.fate == FATE_DONE)
			t->w[i].recorded = 1;
	if (n < all && t->w[n].v.fate == FATE_PENDING)
		l->not_before_us = pr_mono_us() + t->w[n].v.delay_us;
	*ret_n = n;
out:
	free(out);
	return rc;
}

/* ---------------------------------------------------------------- the way in */

/* Of the oldest message of the batch, which came first. */
void time_it(struct lane *l, int64_t began_us, const struct message *first)
{
	pr_observe(l->c->m.handle_seconds, (double)(pr_mono_us() - began_us) / (double)PR_SEC);
	if (first->time_us >= 0 && !first->replay)
		pr_observe(l->c->m.delay_seconds, (double)(pr_wall_us() - first->time_us) / (double)PR_SEC);
}

enum applied apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	int ask = lane_dedupes(l) && (l->look_first || !l->c->ops->in_transaction);
	int64_t began_us = pr_mono_us();
	enum applied rc;
	struct tx t;

	n = sort_work(l, n);
	if (ask) {
		if (look(l, l->work, n, err) < 0)
			return BROKEN;
		n = sort_work(l, n); /* what was altered is held back */
	}
	tx_init(&t, l, l->work, n);
	take_steps(l, l->work, n);
	if (l->torn) {
		tx_free(&t);
		return lane_torn(err);
	}
	*ret_n = n; /* that is what fails, if it does */
	rc = l->c->ops->in_transaction ? inside(&t, ret, err) : outside(&t, ret_n, ret, err);
	if (rc == APPLIED) {
		/* If we die here, all of it is durable: the next owner begins behind it. */
		FAULT(committed_before_memory);
		l->look_first = l->look_first && t.m_n < n;
		account(l, l->work, *ret_n);
		if (*ret_n > 0)
			time_it(l, began_us, l->work[0].m);
	}
	tx_free(&t);
	return rc;
}

enum applied move_idle(struct lane *l, struct pr_err *err)
{
	enum applied rc;
	struct outcome why;
	struct tx t;

	if (take_idle(l) == 0)
		return APPLIED;
	tx_init(&t, l, l->work, 0);
	tx_advance(&t, 1);
	rc = submit(&t, &why, err);
	tx_free(&t);
	return rc;
}

/* The fence is the position, which does not move. */
enum applied apply_parked(struct lane *l, struct work *w, size_t n, size_t *ret_n, int *ret_last,
	struct outcome *ret, struct pr_err *err)
{
	enum applied rc;
	struct tx t;

	*ret_n = n;
	if (w->skip)
		w->v.fate = FATE_IGNORE;
	else if (lane_dedupes(l) && w->v.fate == FATE_HANDLE && w->m->id_state != ID_OK)
		undecodable(l, w); /* it was parked for what is before it */
	for (size_t i = 0; i < n; i++)
		spans_begin(l, w[i].m);
	if (lane_dedupes(l) && !l->c->ops->in_transaction && look(l, w, n, err) < 0)
		return BROKEN;
	tx_init(&t, l, w, n);
	take_steps(l, w, n);
	rc = l->c->ops->in_transaction ? inside(&t, ret, err) : outside(&t, ret_n, ret, err);
	*ret_last = t.last;
	if (rc == APPLIED)
		account(l, w, *ret_n);
	if (rc == FENCED)
		lane_fenced(l, err);
	l->steps_n = 0;
	tx_free(&t);
	return rc;
}
