/* lib/saga_walk.h -- every way that a saga of a definition can go: the core (lib/saga_core.h) against a model
 * of the participants with their barriers. Commands and answers come in any order, once, twice, late or
 * never; a step is done, refused, fails or stays silent; an undo fails; the deadline passes at any point.
 * Shared by `postrider saga simulate` and the core's test. Contacts nothing.
 *
 * Ways are walked by how much goes wrong on them: refusals, failures, missing answers, the deadline, an
 * operator's orders. Disorder, delay and doubles are free: they are tried everywhere. So each example is one
 * with the fewest mishaps, and a bound that was hit says up to how many of them everything was seen. */
#ifndef PR_SAGA_WALK_H
#define PR_SAGA_WALK_H

#include "lib/saga_core.h"

#define SAGA_WALK_WHOLE 255 /* depth: whatever goes wrong */

struct saga_walk_conf {
	int tries;     /* sends of a command, at most what the definition says, 1 .. 7; 0: 2 */
	int depth;     /* mishaps on one way, at most; SAGA_WALK_WHOLE: any number */
	size_t states; /* bound, 0: 1,000,000; one takes 16 bytes and 8 a step */
	int orders; /* an operator orders retry, skip, undo and abort where it is STUCK, undo where it ended
		     */
	int no_barrier; /* of the participants: to prove that it is noticed */
	int (*progress)(void *ctx, size_t states, int depth); /* now and then; not 0 ends it. May be NULL */
	void *ctx;
};

struct saga_walk_end {
	enum saga_state state;
	char *what;    /* "PAYMENT undone", "undo of PAYMENT"; "" */
	size_t count;  /* situations that end so */
	int mishaps;   /* of the example */
	char *example; /* a way there in words */
};

struct saga_walk_rule {
	const char *text; /* borrowed; of an invariant the definition's */
	int is_invariant;
	int mishaps;    /* of the way to the violation */
	char *violated; /* that way in words; NULL: it holds as far as was walked */
};

struct saga_walk {
	size_t states, moves;
	int whole;  /* everything that conf asked for was walked */
	int depth;  /* else: all ways with up to so many mishaps were; -1: not even those without any */
	int deeper; /* there are ways with more mishaps than conf.depth */
	const char *why_not; /* of whole 0, a bound's name; else NULL */
	struct saga_walk_end *end;
	size_t end_n;
	struct saga_walk_rule *rule;
	size_t rule_n;
};

/* Borrows def until saga_walk_free. */
void saga_walk(const struct saga_def *def, const struct saga_walk_conf *conf, struct saga_walk *ret);
void saga_walk_free(struct saga_walk *w);
int saga_walk_is_violated(const struct saga_walk *w);

#endif
