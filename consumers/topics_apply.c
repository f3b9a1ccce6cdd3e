/* consumers/topics_apply.c -- a batch of a group without a database: the handler, then one transaction of
 * Kafka with what it leaves behind. Effects lie outside and may happen again after a crash, with the same
 * message id; what happens inside Kafka happens once. Refuses to move an offset past a message that is
 * neither handled nor in another topic. */
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"

#include <stdlib.h>
#include <string.h>

#define UNDO_AGAIN_US (10 * PR_SEC)

/* ---------------------------------------------------------------- a lane's store */

static int open_lane(struct lane *l, struct pr_err *err)
{
	struct handler_env env = { l->c->conf, l->number, l->c->wake_fd, &l->c->end_us,
		&l->c->hangs[l->number] };

	if (topics_tx_open(l, err) < 0)
		return -1;
	if (!l->handler && l->c->ops->open(&env, NULL, &l->handler, err) < 0)
		return -1;
	l->opened = 1;
	return 0;
}

static void close_lane(struct lane *l)
{
	topics_unmark(l);
	topics_tx_close(l);
}

/* Nothing is held back here: what fails is in other topics. */
static int load_nothing(struct lane *l, struct pr_err *err)
{
	(void)l;
	(void)err;
	return 0;
}

static int release_nothing(struct lane *l, int64_t until_us, struct pr_err *err)
{
	(void)l;
	(void)until_us;
	(void)err;
	return 0;
}

/* ---------------------------------------------------------------- marks */

/* The first batch after a claim, and each message that may be a killer, leave a word beside the offset before
 * they begin. */
static int must_mark(const struct lane *l, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (l->work[i].v.fate == FATE_HANDLE &&
			(!l->work[i].m->part->lane[0].marked || (l->work[i].alone && !l->work[i].marked)))
			return 1;
	return 0;
}

/* Offsets at the first message of each part: nothing moves but the word. */
static void take_marks(struct lane *l, size_t n, char (*text)[MARK_SIZE], const char **mark)
{
	l->steps_n = 0;
	for (size_t i = 0; i < n; i++) {
		struct work *w = &l->work[i];
		size_t before = l->steps_n;
		struct step *s = step_of(l, w->m->part, w->m->lane);

		if (l->steps_n == before)
			continue;
		s->next = s->expected >= 0 ? s->expected : w->m->offset;
		mark[before] = mark_put(text[before], l->c->topics, w->m->offset, (int64_t)n,
			n == 1 ? (int64_t)w->begun + 1 : 1);
	}
}

static enum tx_end put_marks(struct lane *l, size_t n, struct pr_err *err)
{
	char(*text)[MARK_SIZE];
	const char **mark;
	enum tx_end end;

	if (!must_mark(l, n))
		return TX_DONE;
	text = pr_calloc(n, sizeof(*text));
	mark = pr_calloc(n, sizeof(*mark));
	take_marks(l, n, text, mark);
	end = topics_commit(l, NULL, 0, mark, err);
	for (size_t i = 0; i < l->steps_n && end == TX_DONE; i++) {
		l->steps[i].part->lane[0].marked = MARKED;
		l->steps[i].part->lane[0].marked_at = l->steps[i].next;
	}
	for (size_t i = 0; i < n && end == TX_DONE; i++)
		l->work[i].marked = l->work[i].alone;
	free(text);
	free(mark);
	return end;
}

/* A crash that was counted before stays counted. */
void topics_unmark(struct lane *l)
{
	const struct work *w = l->work_n > 0 && l->work[0].marked ? &l->work[0] : NULL;
	char text[MARK_SIZE];
	const char **mark = pr_calloc(l->served_n + 1, sizeof(*mark));
	struct pr_err err;

	l->steps_n = 0;
	for (size_t i = 0; i < l->served_n && topics_tx_usable(l); i++) {
		struct part *p = l->served[i].part;
		int of_work = w && w->m->part == p && w->begun > 0;

		if (p->lane[0].marked != MARKED || atomic_load(&p->dead))
			continue;
		if (of_work)
			mark[l->steps_n] = mark_put(text, l->c->topics, w->m->offset, 1, (int64_t)w->begun);
		step_of(l, p, 0)->next = p->lane[0].marked_at;
	}
	/* When it fails, one crash too many is counted. */
	if (l->steps_n > 0)
		(void)topics_commit(l, NULL, 0, mark, &err);
	l->steps_n = 0;
	free(mark);
}

/* ---------------------------------------------------------------- fates */

/* Up to the first that is tried again in place. */
static size_t settled(const struct tx *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->w[i].v.fate == FATE_PENDING)
			return i;
	return t->n;
}

/* An undo that failed is tried once more after the last delay; without retry topics, in place. */
static size_t undo_buried(struct tx *t, size_t n, struct pr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		struct work *w = &t->w[i];

		if (w->v.fate != FATE_BURY || undone_outside(t, w, err))
			continue;
		if (w->v.fate == FATE_PARK && t->l->c->topics->stages == 0) {
			w->v.fate = FATE_PENDING;
			w->v.delay_us = UNDO_AGAIN_US;
		}
		if (w->v.fate == FATE_PENDING)
			return i;
	}
	return n;
}

/* ---------------------------------------------------------------- ends */

/* Of the parts of this transaction nobody knows how far they are, or whose: they are read anew from where
 * Kafka says. */
static void claim_anew(struct lane *l, const struct pr_err *err)
{
	pr_log_err(PR_WARN, "what became of a transaction is not known: its partitions are read anew", err);
	for (size_t i = 0; i < l->steps_n; i++) {
		atomic_store(&l->steps[i].part->dead, 1);
		atomic_store(&l->steps[i].part->fenced, 1);
	}
	l->steps_n = 0;
	group_wake(l->c);
}

/* What is handled stays so in memory, and is not handled again when the transaction is tried again. */
static enum applied applied_of(struct lane *l, enum tx_end end, const struct pr_err *err)
{
	switch (end) {
	case TX_DONE:
		return APPLIED;
	case TX_STALE:
		return FENCED;
	case TX_UNKNOWN:
		claim_anew(l, err);
		return FENCED;
	default:
		return BROKEN;
	}
}

static enum applied finish(struct lane *l, size_t n, int64_t began_us, struct pr_err *err)
{
	enum tx_end end;

	take_steps(l, l->work, n);
	if (n == 0)
		return APPLIED;
	if (l->torn)
		return lane_torn(err);
	/* If we die here, the effects are there and nothing knows: they happen again, with the same message
	 * id. */
	FAULT(topics_handled_before_transaction);
	end = topics_commit(l, l->work, n, NULL, err);
	if (end != TX_DONE)
		return applied_of(l, end, err);
	/* If we die here, all of it is committed: the next owner begins behind it. */
	FAULT(topics_committed_before_memory);
	for (size_t i = 0; i < l->steps_n; i++)
		l->steps[i].part->lane[0].marked = MOVED_ON;
	account(l, l->work, n);
	time_it(l, began_us, l->work[0].m);
	return APPLIED;
}

enum applied topics_apply(struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	int64_t began_us = pr_mono_us();
	enum applied rc = BROKEN;
	struct outcome *out;
	enum tx_end end;
	size_t all;
	struct tx t;

	(void)ret;
	n = all = sort_work(l, n);
	*ret_n = n;
	end = put_marks(l, n, err);
	if (end != TX_DONE)
		return applied_of(l, end, err);
	tx_init(&t, l, l->work, n);
	out = pr_calloc(t.m_n + 1, sizeof(*out));
	if (t.m_n > 0) {
		if (l->c->ops->run(l->handler, NULL, OP_DO, t.m, t.m_n, out, err) < 0)
			goto out;
		take_answers(&t, out);
	}
	n = undo_buried(&t, settled(&t), err);
	rc = finish(l, n, began_us, err);
	if (n < all && l->work[n].v.fate == FATE_PENDING)
		l->not_before_us = pr_mono_us() + l->work[n].v.delay_us;
	if (rc == APPLIED)
		*ret_n = n;
out:
	free(out);
	tx_free(&t);
	return rc;
}

enum applied topics_move_idle(struct lane *l, struct pr_err *err)
{
	enum tx_end end;

	if (take_idle(l) == 0)
		return APPLIED;
	end = topics_commit(l, NULL, 0, NULL, err);
	return applied_of(l, end, err);
}

const struct store store_topics = { .trouble = TROUBLE_TRANSACTION,
	.claim = topics_claim,
	.open = open_lane,
	.usable = topics_tx_usable,
	.close = close_lane,
	.load = load_nothing,
	.release = release_nothing,
	.apply = topics_apply,
	.move_idle = topics_move_idle,
	.keeper = topics_keeper };
