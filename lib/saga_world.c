/* lib/saga_world.c -- one move of the model: what the participants and the wire may do next, and what comes
 * of it. The engine's side is lib/saga_core.c itself. Refuses to judge: saga_walk.c does. */
#include "lib/saga_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOW   1000
#define NEVER ((int64_t)1 << 40)

static const unsigned char the_id[16] = { 0x0a };

int world_applied(const struct world_step *s)
{
	return (int)s->applied - 1;
}

/* ---------------------------------------------------------------- to the core and back */

static void unpack(struct world_play *p, const struct world *w)
{
	struct saga_instance *in = &p->in;
	const char *data = p->data[w->head.data];

	memcpy(in->id, the_id, sizeof(in->id));
	in->state = (enum saga_state)w->head.state;
	in->turned = w->head.turned;
	in->granted = w->head.granted;
	in->started_us = in->since_us = 1;
	in->deadline_us = w->head.deadline ? NEVER : 0;
	in->failed = -1;
	*in->why = '\0';
	in->data.len = 0;
	pr_buf_puts(&in->data, data);
	for (size_t i = 0; i < p->def->step_n; i++) {
		const struct world_step *s = &w->step[i];
		struct saga_step_now *n = &in->step[i];

		n->state = (enum saga_step_state)s->state;
		n->op = (enum saga_op)s->op;
		n->tries = (int)s->tries;
		n->generation[SAGA_DO] = (int)s->generation;
		n->generation[SAGA_UNDO] = (int)s->undo_generation;
		n->waits = (int)s->waits;
		n->refused = (int)s->refused;
		n->due_us = s->due ? NEVER : 0;
		n->since_us = 1;
		*n->why = '\0';
	}
}

/* Tries and op mean nothing in the other states: left out, so that equal states are equal. */
static void pack_step(const struct saga_step_now *n, struct world_step *s)
{
	int out = n->state == STEP_DOING || n->state == STEP_UNDOING;

	s->state = n->state & 15U;
	s->op = (out || n->state == STEP_STUCK) ? n->op & 1U : 0;
	s->tries = out ? (unsigned)n->tries & 7U : 0;
	s->waits = n->waits & 1U;
	s->due = n->due_us != 0;
	s->refused = n->refused & 1U;
	s->generation = (unsigned)n->generation[SAGA_DO] & 3U;
	s->undo_generation = (unsigned)n->generation[SAGA_UNDO] & 3U;
}

static void pack(const struct world_play *p, struct world *w)
{
	const struct saga_instance *in = &p->in;

	w->head.state = (unsigned char)in->state;
	w->head.turned = in->turned != 0;
	w->head.granted = in->granted != 0;
	w->head.deadline = in->deadline_us != 0 && !saga_is_final(in->state);
	for (size_t i = 0; i < p->def->step_n; i++)
		pack_step(&in->step[i], &w->step[i]);
	for (size_t i = 0; i < p->out.send_n; i++) {
		const struct saga_send *to = &p->out.send[i];
		unsigned bit = 1U << in->step[to->step].generation[to->op];

		if (to->op == SAGA_DO)
			w->step[to->step].sent |= bit & 15U;
		else
			w->step[to->step].undo_sent |= bit & 15U;
	}
}

/* ---------------------------------------------------------------- participants */

static void apply(struct world_step *s, int by)
{
	int n = world_applied(s) + by;

	s->applied = (unsigned)((n < -1 ? -1 : n > 2 ? 2 : n) + 1) & 3U;
}

/* As saga.pass of the database: whether it is to be done; else *ret is the answer. */
static int passes(const struct world_play *p, const struct world_step *s, enum saga_op op,
	unsigned generation, enum saga_outcome *ret)
{
	if (p->no_barrier)
		return 1;
	*ret = OUTCOME_DONE;
	if (op == SAGA_UNDO)
		return s->undid != DID_DONE && s->do_command && s->did != DID_REFUSED && s->did != DID_FAILED;
	if (!s->undo_command && s->did == DID_DONE)
		return 0;
	*ret = s->did == DID_FAILED && !s->undo_command ? OUTCOME_FAILED : OUTCOME_REFUSED;
	if (s->undo_command || s->do_command > generation + 1)
		return 0;
	return s->did != DID_REFUSED || s->do_command != generation + 1;
}

static enum world_did did(enum saga_outcome o)
{
	return o == OUTCOME_DONE ? DID_DONE : o == OUTCOME_REFUSED ? DID_REFUSED : DID_FAILED;
}

static void reply(struct world_step *s, const struct move *m, enum saga_outcome o)
{
	unsigned bit = 1U << (3 * m->generation + o);

	if (m->op == SAGA_DO)
		s->replied |= bit & 4095U;
	else
		s->undo_replied |= bit & 4095U;
}

static void participant(
	const struct world_play *p, struct world_step *s, const struct saga_step *d, const struct move *m)
{
	enum saga_outcome o, known;
	int goes = passes(p, s, (enum saga_op)m->op, m->generation, &known);

	o = goes ? (enum saga_outcome)m->outcome : known;
	if (goes && m->op == SAGA_DO) {
		s->do_command = (m->generation + 1U) & 7U;
		s->did = did(o) & 3U;
		apply(s, o == OUTCOME_DONE);
	} else if (m->op == SAGA_UNDO && (goes || !s->undo_command)) {
		s->undo_command = (m->generation + 1U) & 7U;
		s->undid = did(o) & 3U;
		apply(s, goes && o == OUTCOME_DONE ? -1 : 0);
	}
	if (m->op == SAGA_UNDO && o == OUTCOME_DONE && d->undone)
		s->events |= EVENT_UNDONE;
	reply(s, m, o);
}

/* A choreography's service acts by itself. */
static void service(const struct world_play *p, struct world_step *s, const struct move *m)
{
	(void)p;
	if (m->op == SAGA_UNDO) {
		s->undo_command = 1;
		s->undid = DID_DONE;
		s->events |= EVENT_UNDONE;
		apply(s, -1);
		return;
	}
	s->do_command = 1;
	s->did = did((enum saga_outcome)m->outcome) & 3U;
	s->events |= m->outcome == OUTCOME_DONE ? EVENT_DONE : EVENT_FAILED;
	apply(s, m->outcome == OUTCOME_DONE);
}

/* ---------------------------------------------------------------- which moves there are */

struct list {
	struct move *move;
	size_t n, cap;
};

static void add(struct list *l, enum move_kind kind, size_t step, unsigned op, unsigned generation,
	unsigned outcome, int mishap)
{
	if (l->n == l->cap) {
		l->cap = l->cap ? l->cap * 2 : 64;
		l->move = pr_realloc(l->move, l->cap * sizeof(*l->move));
	}
	l->move[l->n++] = (struct move){ .kind = (unsigned char)kind,
		.step = (unsigned char)step,
		.op = op & 1U,
		.generation = generation & 3U,
		.outcome = outcome & 7U,
		.mishap = mishap != 0 };
}

static void commands(const struct world_play *p, const struct world_step *s, size_t i, struct list *l)
{
	for (unsigned op = 0; op < 2; op++)
		for (unsigned g = 0; g < WORLD_GENERATIONS; g++) {
			enum saga_outcome o;

			if (!((op == SAGA_DO ? s->sent : s->undo_sent) >> g & 1))
				continue;
			add(l, MOVE_COMMAND, i, op, g, OUTCOME_DONE, 0);
			if (!passes(p, s, (enum saga_op)op, g, &o))
				continue;
			if (op == SAGA_DO &&
				(p->def->step[i].kind != SAGA_RETRIABLE || g + 1 < WORLD_GENERATIONS))
				add(l, MOVE_COMMAND, i, op, g, OUTCOME_REFUSED, 1);
			add(l, MOVE_COMMAND, i, op, g, OUTCOME_FAILED, 1);
		}
}

static void replies(const struct world_play *p, const struct world_step *s, size_t i, struct list *l)
{
	for (unsigned op = 0; op < 2; op++) {
		unsigned bits = op == SAGA_DO ? s->replied : s->undo_replied;

		for (unsigned k = 0; k < 3 * WORLD_GENERATIONS; k++)
			if (bits >> k & 1)
				add(l, MOVE_REPLY, i, op, k / 3, k % 3, 0);
		if (p->def->step[i].act[op].command && s->state != STEP_WAITING)
			add(l, MOVE_ALIEN, i, op, 0, OUTCOME_DONE, 0);
	}
}

/* What it reacts to has happened: truly, whatever the engine knows. */
static int has_cause(const struct world_play *p, const struct world *w, size_t i)
{
	for (size_t k = 0; k < p->def->step_n; k++)
		if ((p->def->step[i].after >> k & 1) && !(w->step[k].events & EVENT_DONE))
			return 0;
	return 1;
}

static int has_failed(const struct world_play *p, const struct world *w)
{
	for (size_t k = 0; k < p->def->step_n; k++)
		if (w->step[k].events & EVENT_FAILED)
			return 1;
	return 0;
}

static void services(const struct world_play *p, const struct world *w, size_t i, struct list *l)
{
	const struct world_step *s = &w->step[i];
	const struct saga_step *d = &p->def->step[i];

	if (!s->do_command && (!s->undo_command || p->no_barrier) && has_cause(p, w, i)) {
		add(l, MOVE_SERVICE, i, SAGA_DO, 0, OUTCOME_DONE, 0);
		if (d->fails)
			add(l, MOVE_SERVICE, i, SAGA_DO, 0, OUTCOME_REFUSED, 1);
	}
	/* Held: what failed may be tried again by its service, where the undo finds it. */
	if (p->def->undo_held && d->act[SAGA_UNDO].command && s->did == DID_REFUSED && !s->undo_command)
		add(l, MOVE_SERVICE, i, SAGA_DO, 0, OUTCOME_DONE, 1);
	if (!d->act[SAGA_UNDO].command && d->undone && s->did == DID_DONE && !s->undo_command &&
		has_failed(p, w))
		add(l, MOVE_SERVICE, i, SAGA_UNDO, 0, OUTCOME_DONE, 0);
	for (unsigned e = EVENT_DONE; e <= EVENT_UNDONE; e *= 2)
		if (s->events & e)
			add(l, MOVE_EVENT, i, 0, 0, e, 0);
}

static void orders(const struct world *w, size_t i, struct list *l)
{
	const struct world_step *s = &w->step[i];

	if (w->head.state != SAGA_STUCK || s->state != STEP_STUCK)
		return;
	if ((s->op == SAGA_DO ? s->generation : s->undo_generation) + 1 < WORLD_GENERATIONS)
		add(l, MOVE_ORDER, i, 0, 0, ORDER_RETRY, 1);
	add(l, MOVE_ORDER, i, 0, 0, ORDER_SKIP, 1);
}

static void orders_of_all(const struct world *w, struct list *l)
{
	if (w->head.state == SAGA_STUCK)
		add(l, MOVE_ORDER, 0, 0, 0, ORDER_ABORT, 1);
	if (!w->head.turned && (w->head.state == SAGA_STUCK || w->head.state == SAGA_COMPLETED))
		add(l, MOVE_ORDER, 0, 0, 0, ORDER_UNDO, 1);
}

static void beginnings(const struct world_play *p, const struct world *w, struct list *l)
{
	int choreography = p->def->style == SAGA_CHOREOGRAPHY;

	if (!w->head.started)
		add(l, MOVE_START, 0, 0, 0, 0, 0);
	if (!w->head.born && !choreography && p->def->locks_n)
		add(l, p->def->lock_refuse ? MOVE_LOCK_REFUSED : MOVE_WAIT_FOR_LOCK, 0, 0, 0, 0,
			p->def->lock_refuse);
	if (w->head.born && !choreography && !w->head.granted && w->head.state == SAGA_RUNNING)
		add(l, MOVE_GRANTED, 0, 0, 0, 0, 0);
}

size_t world_moves(struct world_play *p, const struct world *w, struct move **ret, size_t *cap)
{
	struct list l = { *ret, 0, *cap };
	int choreography = p->def->style == SAGA_CHOREOGRAPHY;

	beginnings(p, w, &l);
	for (size_t i = 0; i < p->def->step_n; i++) {
		const struct world_step *s = &w->step[i];

		commands(p, s, i, &l);
		if (w->head.born)
			replies(p, s, i, &l);
		if (choreography)
			services(p, w, i, &l);
		if (w->head.born && s->due &&
			(s->state == STEP_DOING || s->state == STEP_UNDOING || s->state == STEP_STUCK))
			add(&l, MOVE_DUE, i, 0, 0, 0, !s->waits);
		if (p->orders)
			orders(w, i, &l);
	}
	if (w->head.born && w->head.deadline)
		add(&l, MOVE_DEADLINE, 0, 0, 0, 0, 1);
	if (p->orders)
		orders_of_all(w, &l);
	*ret = l.move;
	*cap = l.cap;
	return l.n;
}

/* ---------------------------------------------------------------- the engine's moves */

static void begin(struct world_play *p, struct world *w, int granted)
{
	const char *data = p->data[w->head.data];

	saga_instance_free(&p->in);
	saga_instance_init(&p->in, p->def, the_id, data, strlen(data), NOW);
	w->head.born = 1;
	saga_begin(p->def, &p->in, granted, NOW, &p->out);
}

/* As the engine: the start of a choreography may come after other events of it. */
static void start(struct world_play *p, struct world *w)
{
	w->head.started = 1;
	if (!w->head.born)
		begin(p, w, 1);
	else
		saga_granted(p->def, &p->in, NOW, &p->out);
}

static void take_reply(struct world_play *p, const struct move *m)
{
	const struct saga_step *d = &p->def->step[m->step];
	struct saga_reply r = { .step = d->name,
		.step_n = strlen(d->name),
		.op = (enum saga_op)m->op,
		.outcome = (enum saga_outcome)m->outcome };
	int generation = p->in.step[m->step].generation[m->op];

	p->in.step[m->step].generation[m->op] = m->generation;
	saga_command_id(p->def, &p->in, m->step, r.op, r.command_id);
	p->in.step[m->step].generation[m->op] = generation;
	if (m->kind == MOVE_ALIEN)
		r.command_id[0] ^= 0xff;
	saga_take_reply(p->def, &p->in, &r, NOW, &p->out);
}

static void take_event(struct world_play *p, struct world *w, const struct move *m)
{
	const struct saga_step *d = &p->def->step[m->step];
	const char *type = m->outcome == EVENT_DONE     ? d->emits
			   : m->outcome == EVENT_FAILED ? d->fails
							: d->undone;

	if (!w->head.born)
		begin(p, w, 0);
	saga_take_event(p->def, &p->in, type, strlen(type), "{}", 2, NOW, &p->out);
}

static void take_order(struct world_play *p, struct world *w, const struct move *m)
{
	struct pr_err err;
	int step = m->outcome == ORDER_RETRY || m->outcome == ORDER_SKIP ? m->step : -1;

	if (saga_take_order(p->def, &p->in, (enum saga_order)m->outcome, step, NULL, 0, NULL, NOW, &p->out,
		    &err) == 0 &&
		m->outcome == ORDER_SKIP)
		w->head.skipped = 1;
}

static void engine(struct world_play *p, const struct move *m, struct world *w)
{
	saga_out_clear(&p->out);
	unpack(p, w);
	switch ((enum move_kind)m->kind) {
	case MOVE_START:
		start(p, w);
		break;
	case MOVE_WAIT_FOR_LOCK:
		w->head.started = 1;
		begin(p, w, 0);
		break;
	case MOVE_LOCK_REFUSED:
		w->head.started = w->head.born = 1;
		saga_lock_refused(p->def, &p->in, "a lock", NOW, &p->out);
		break;
	case MOVE_GRANTED:
		saga_granted(p->def, &p->in, NOW, &p->out);
		break;
	case MOVE_EVENT:
		take_event(p, w, m);
		break;
	case MOVE_DUE:
		p->in.step[m->step].due_us = NOW;
		saga_tick(p->def, &p->in, NOW, &p->out);
		break;
	case MOVE_DEADLINE:
		p->in.deadline_us = NOW;
		saga_tick(p->def, &p->in, NOW, &p->out);
		break;
	case MOVE_ORDER:
		take_order(p, w, m);
		break;
	default:
		take_reply(p, m);
	}
	pack(p, w);
}

void world_move(struct world_play *p, const struct world *w, const struct move *m, struct world *ret)
{
	memcpy(ret, w, WORLD_BYTES(p->def->step_n));
	if (m->kind == MOVE_COMMAND)
		participant(p, &ret->step[m->step], &p->def->step[m->step], m);
	else if (m->kind == MOVE_SERVICE)
		service(p, &ret->step[m->step], m);
	else
		engine(p, m, ret);
}
