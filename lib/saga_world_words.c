/* lib/saga_world_words.c -- a move of the model in a few words, as an operator would tell it. Says nothing of
 * moves that are as expected: a first answer that arrives, a command that is sent again. */
#include "lib/saga_world.h"

#include <string.h>

static const char *const dids[] = { "done", "refused", "failed" };

static void command(const struct world_play *p, const struct world_step *was, const struct world_step *is,
	const struct move *m, struct pr_buf *b)
{
	const char *name = p->def->step[m->step].name;
	int acted = m->op == SAGA_DO ? was->did != is->did || was->do_command != is->do_command
				     : was->undid != is->undid;

	acted |= was->applied != is->applied;
	if (!acted)
		pr_buf_printf(b, "%s%s comes again", m->op == SAGA_UNDO ? "undo of " : "", name);
	else if (m->op == SAGA_DO)
		pr_buf_printf(b, "%s %s%s", name, dids[m->outcome], was->do_command ? " again" : "");
	else if (m->outcome != OUTCOME_DONE)
		pr_buf_printf(b, "undo of %s failed", name);
	else if (was->did == DID_DONE || p->no_barrier)
		pr_buf_printf(b, "undo %s", name);
	else
		pr_buf_printf(b, "undo %s (nothing was done)", name);
}

/* Expected: the answer to the only try that is out. */
static void answer(const struct world_play *p, const struct world *was, const struct world *is,
	const struct move *m, struct pr_buf *b)
{
	const struct world_step *s = &was->step[m->step];
	int awaited = (s->state == STEP_DOING || s->state == STEP_UNDOING) && s->op == m->op && !s->waits;
	unsigned generation = m->op == SAGA_DO ? s->generation : s->undo_generation;

	if (m->kind == MOVE_ALIEN)
		pr_buf_printf(b, "an answer with another command's id for %s", p->def->step[m->step].name);
	else if (generation != m->generation)
		pr_buf_printf(b, "the answer to an earlier command of %s (%s)", p->def->step[m->step].name,
			dids[m->outcome]);
	else if (!awaited || s->tries > 1 ||
		 (m->outcome == OUTCOME_FAILED && is->step[m->step].state != s->state && s->tries > 1))
		pr_buf_printf(b, "answer of %s%s (%s)", m->op == SAGA_UNDO ? "undo " : "",
			p->def->step[m->step].name, dids[m->outcome]);
}

static void service(const struct world_play *p, const struct move *m, struct pr_buf *b)
{
	pr_buf_printf(b, "%s %s", p->def->step[m->step].name,
		m->op == SAGA_UNDO           ? "undone by its service"
		: m->outcome == OUTCOME_DONE ? "done"
					     : "refused");
}

/* Expected: the event that the step is waited for. */
static void event(const struct world_play *p, const struct world *was, const struct move *m, struct pr_buf *b)
{
	const struct saga_step *d = &p->def->step[m->step];
	const struct world_step *s = &was->step[m->step];
	const char *type = m->outcome == EVENT_DONE     ? d->emits
			   : m->outcome == EVENT_FAILED ? d->fails
							: d->undone;

	if (s->state == (m->outcome == EVENT_UNDONE ? STEP_UNDOING : STEP_DOING))
		return;
	pr_buf_printf(b, "%s comes %s", type, s->state == STEP_WAITING ? "early" : "late or again");
}

static void due(const struct world_play *p, const struct world *was, const struct move *m, struct pr_buf *b)
{
	const struct world_step *s = &was->step[m->step];

	int event = p->def->style == SAGA_CHOREOGRAPHY &&
		    (s->op == SAGA_DO || !p->def->step[m->step].act[SAGA_UNDO].command);

	if (s->state == STEP_STUCK)
		pr_buf_puts(b, "nobody acts");
	else if (!s->waits)
		pr_buf_printf(b, "no %s of %s%s", event ? "event" : "answer",
			s->op == SAGA_UNDO ? "undo " : "", p->def->step[m->step].name);
}

static void order(const struct world_play *p, const struct move *m, struct pr_buf *b)
{
	enum saga_order o = (enum saga_order)m->outcome;

	pr_buf_printf(b, "ordered: %s", saga_order_str(o));
	if (o == ORDER_RETRY || o == ORDER_SKIP)
		pr_buf_printf(b, " %s", p->def->step[m->step].name);
}

void world_words(const struct world_play *p, const struct world *was, const struct world *is,
	const struct move *m, struct pr_buf *b)
{
	switch ((enum move_kind)m->kind) {
	case MOVE_START:
		if (was->head.born)
			pr_buf_puts(b, "its start comes late");
		break;
	case MOVE_WAIT_FOR_LOCK:
		pr_buf_puts(b, "it waits for its lock");
		break;
	case MOVE_LOCK_REFUSED:
		pr_buf_puts(b, "another holds its lock");
		break;
	case MOVE_GRANTED:
		pr_buf_puts(b, "its lock is free");
		break;
	case MOVE_COMMAND:
		command(p, &was->step[m->step], &is->step[m->step], m, b);
		break;
	case MOVE_REPLY:
	case MOVE_ALIEN:
		answer(p, was, is, m, b);
		break;
	case MOVE_SERVICE:
		service(p, m, b);
		break;
	case MOVE_EVENT:
		event(p, was, m, b);
		break;
	case MOVE_DUE:
		due(p, was, m, b);
		break;
	case MOVE_DEADLINE:
		pr_buf_puts(b, "the deadline passes");
		break;
	case MOVE_ORDER:
		order(p, m, b);
	}
}
