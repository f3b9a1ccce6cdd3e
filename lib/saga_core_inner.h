/* lib/saga_core_inner.h -- what the files of the core share: saga_core.c (forward, backward, answers, time),
 * saga_core_events.c (choreography), saga_core_orders.c (the operator). Nobody else includes it. State words
 * are changed by core_step_to and core_state_to only, in saga_core.c; lint looks after that. */
#ifndef PR_SAGA_CORE_INNER_H
#define PR_SAGA_CORE_INNER_H

#include "lib/saga_core.h"

#define UNDONE_BY_ITSELF "a step was undone by its service"

void core_note(struct saga_out *out, enum saga_note_what what, int step, enum saga_op op, const char *fmt,
	...) PR_PRINTF(5, 6);
void core_publish(struct saga_out *out, enum saga_event type, int step);

void core_step_to(struct saga_step_now *s, enum saga_step_state state, int64_t now);
void core_state_to(struct saga_instance *in, enum saga_state state, int64_t now, struct saga_out *out);

void core_why(char *to, size_t size, const char *fmt, ...) PR_PRINTF(3, 4);
#define WHY(to, ...) core_why((to), sizeof(to), __VA_ARGS__)

int core_has_undo(const struct saga_step *d);
int core_is_asked(const struct saga_def *def, const struct saga_step *d, enum saga_op op);

/* A step that may be done, or is, and has no undo: there is no way back. -1: there is none. */
int core_one_way(const struct saga_def *def, const struct saga_instance *in);

/* The service of step i, of a choreography whose undo is held, said no: a person decides, or time. */
void core_hold(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out);

/* One more try of what the step is at; its first, of op. */
void core_try_step(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out);
void core_begin_step(const struct saga_def *def, struct saga_instance *in, int i, enum saga_op op,
	int64_t now, struct saga_out *out);

/* After a step was stuck and is not any more. */
void core_resume(
	const struct saga_def *def, struct saga_instance *in, int i, int64_t now, struct saga_out *out);

/* Goes backward from now on. failed: the step because of which; -1: none. */
void core_turn(const struct saga_def *def, struct saga_instance *in, int failed, const char *reason,
	int64_t now, struct saga_out *out);

void core_do_answered(const struct saga_def *def, struct saga_instance *in, int i, const struct saga_reply *r,
	int64_t now, struct saga_out *out);

/* As far as it goes by itself: the last word of everything that happens. */
void core_settle(const struct saga_def *def, struct saga_instance *in, int64_t now, struct saga_out *out);

#endif
