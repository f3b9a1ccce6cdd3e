/* lib/saga_world.h -- the model that lib/saga_walk.c walks: an instance, its participants and what is on its
 * way, small enough to keep a million of them. */
#ifndef PR_SAGA_WORLD_H
#define PR_SAGA_WORLD_H

#include "lib/saga_walk.h"

#define WORLD_GENERATIONS                                                                                    \
	4 /* each try after a refusal, and an operator's retry, makes one: so often at most */

enum world_did { DID_NOTHING, DID_DONE, DID_REFUSED, DID_FAILED };
enum world_event { EVENT_DONE = 1, EVENT_FAILED = 2, EVENT_UNDONE = 4 };

/* One step: what the engine knows, what its participant has recorded, and which messages there are. A message
 * that was sent stays: it may come again, or late, at any time. */
struct world_step {
	/* the engine's, as struct saga_step_now */
	unsigned state : 4, op : 1, tries : 3, waits : 1, due : 1, refused : 1, generation : 2,
		undo_generation : 2;
	/* the participant's barrier, as table saga.barrier; commands are generation + 1 */
	unsigned do_command : 3, did : 2, undo_command : 3, undid : 2;
	unsigned applied : 2; /* how often it took effect, and 1 */
	/* messages: bit by generation, by outcome */
	unsigned sent : 4, spare : 1;
	unsigned undo_sent : 4, replied : 12, undo_replied : 12, events : 3, spare_too : 1;
};

struct world {
	struct {
		unsigned char data;  /* index of its data */
		unsigned char state; /* enum saga_state */
		unsigned char born, turned, granted, deadline, skipped, started;
	} head;
	struct world_step step[SAGA_STEPS_MOST];
};
_Static_assert(sizeof(struct world_step) == 8, "a step of the world takes 8 bytes");
#define WORLD_BYTES(steps) (sizeof(((struct world *)0)->head) + 8 * (size_t)(steps))

enum move_kind {
	MOVE_START,
	MOVE_WAIT_FOR_LOCK,
	MOVE_LOCK_REFUSED,
	MOVE_GRANTED,
	MOVE_COMMAND, /* comes to the participant, who answers */
	MOVE_REPLY,   /* comes to the engine */
	MOVE_ALIEN,   /* a reply with a command id that is not ours */
	MOVE_SERVICE, /* of a choreography does its step, or undoes it */
	MOVE_EVENT,   /* comes to the engine */
	MOVE_DUE,
	MOVE_DEADLINE,
	MOVE_ORDER,
};

struct move {
	unsigned char kind, step;
	unsigned char op : 1, generation : 2,
		outcome : 3;  /* outcome: enum saga_outcome, bit of an event, order */
	unsigned char mishap; /* 1: something goes wrong */
};

/* What the moves are made with. */
struct world_play {
	const struct saga_def *def; /* the walk's own: few tries, conditions by name */
	const char *const *data;    /* by world.head.data: {"c0": true, ...} */
	int orders, no_barrier;
	struct saga_instance in; /* room */
	struct saga_out out;
};

/* All moves there are, at most as many as *cap has room for after growing. */
size_t world_moves(struct world_play *p, const struct world *w, struct move **list, size_t *cap);
void world_move(struct world_play *p, const struct world *w, const struct move *m, struct world *ret);

/* The words of a move, appended; nothing when it needs none. */
void world_words(const struct world_play *p, const struct world *was, const struct world *is,
	const struct move *m, struct pr_buf *b);

int world_applied(const struct world_step *s); /* -1 .. 2 */

#endif
