/* lib/saga_def.h -- a saga's definition: steps with do and undo, what they send and keep, kinds, times,
 * conditions, locks. Parsed from libconfig text, checked whole: nothing that passes can leave an instance
 * without a way to its end. Contacts nothing. Engine, simulate and graph read the same struct; it never
 * changes after it was parsed, so any number of threads may read it. */
#ifndef PR_SAGA_DEF_H
#define PR_SAGA_DEF_H

#include "lib/conf.h"
#include "lib/err.h"
#include "lib/saga_expr.h"

#include <stddef.h>
#include <stdint.h>

#define SAGA_STEPS_MOST 32

enum saga_style {
	SAGA_ORCHESTRATION, /* the engine sends the commands */
	SAGA_CHOREOGRAPHY,  /* services react to each other's events; the engine watches, and may undo */
};

/* Order in a definition: compensatable..., at most one pivot (or a parallel group with one), retriable... */
enum saga_kind {
	SAGA_COMPENSATABLE, /* can be undone, and is when a later step fails; has an undo */
	SAGA_PIVOT, /* decides: refused, what is before it is undone; done, what is after it must succeed */
	SAGA_RETRIABLE, /* after the pivot: tried until it succeeds, then STUCK; never a reason to undo */
};

/* "amount = data.price" : member of the command's payload, or of the saga's data. */
struct saga_member {
	const char *name; /* a top-level member */
	const char *path; /* "data.x", "reply.x", "saga.id", "saga.name"; or NULL: a constant */
	const char *json; /* constant: raw JSON */
};

struct saga_retry {
	int64_t attempts;                   /* sends in all, at least 1 */
	int64_t backoff_us, backoff_max_us; /* before the second; doubles, with jitter */
};

/* One direction of a step: a command and how it is tried. */
struct saga_action {
	const char *command; /* header type of the record; NULL: there is none (no undo) */
	const char *topic;
	const char *key;                /* path whose text is the record's key; NULL: the saga's id */
	const struct saga_member *send; /* payload, send_n members; 0: {} */
	size_t send_n;
	int64_t timeout_us; /* of one try: no reply by then is a failed try */
	struct saga_retry retry;
};

struct saga_step {
	const char *name; /* [A-Za-z0-9_-]{1,64} */
	enum saga_kind kind;
	int stage; /* steps of the same stage (a parallel group) run side by side; 0, 1, 2 ... in order */
	const struct saga_expr *when; /* over data, when its stage is reached; NULL: always. False: SKIPPED */
	const char *when_text;        /* as the file has it; NULL: none */
	struct saga_action act[2];    /* by enum saga_op */
	const struct saga_member *keep; /* of the do's reply into the saga's data, keep_n */
	size_t keep_n;
	int64_t sla_us; /* older than this in one state: shown as late; 0: not watched */
	/* choreography: the event that says done, the one that says refused, the ones that say undone; and
	 * what it reacts to */
	const char *on, *emits, *fails, *undone;
	const char *emits_topic; /* where these events appear */
	uint32_t after;          /* choreography: bit set of steps whose `emits` is our `on`; 0: the start */
	int line;                /* in the file */
};

enum saga_op { SAGA_DO, SAGA_UNDO };

struct saga_def {
	const char *name; /* [A-Za-z0-9_-]{1,64} */
	int version;
	enum saga_style style;
	struct saga_step *step;
	size_t step_n;
	int stages;
	int pivot;                /* stage of the pivot; -1: none (all compensatable, or all retriable) */
	int64_t deadline_us;      /* of the whole, from its start to the pivot; 0: none */
	const char *const *locks; /* templates: "seat:${data.seat_id}"; locks_n. Semantic locks, whole life */
	size_t locks_n;
	int lock_refuse; /* taken: 1 the saga ends COMPENSATED with nothing done, 0 it waits its turn */
	/* Started by an event beside saga.start; NULL: not. */
	const char *start_topic, *start_type;
	const struct saga_member *start_data; /* from "payload.x", "header.x", "event.key"; start_data_n; 0:
						 the payload itself */
	size_t start_data_n;
	const char *correlate; /* choreography: "header.correlation-id" or "payload.x": what makes events one
				* instance */
	int emit_undo;         /* choreography: a failure makes the engine send the undo of what is done */
	int undo_held; /* choreography: it sends the undo too, but not at once: an operator orders it, or
			* nobody acted for undo_after_us (0: for ever) */
	int64_t undo_after_us;
	struct saga_invariant {
		const struct saga_expr *expr; /* over STEP.applied (0 or 1) and data; holds at every end */
		const char *text;
	} * invariant;
	size_t invariant_n;
	const char *text; /* the text it was parsed from, for the database; and its hash */
	size_t text_len;
	unsigned char hash[32]; /* SHA-256 of text */
};

/* Parses and checks. name stands for the file in errors: "file:line: key: reason", exit = PR_EX_CONFIG. On 0
 * the caller frees *ret. Borrows all arguments. text: NULL reads the file. */
int saga_def_load(const char *file, struct saga_def **ret, struct pr_err *err) PR_MUSTCHECK;
int saga_def_parse(const char *name, const char *text, size_t len, struct saga_def **ret,
	struct pr_err *err) PR_MUSTCHECK;
void saga_def_free(struct saga_def *def); /* accepts NULL */

/* All files that the patterns match; -1: one of them is bad, a pattern matches nothing, or two define the
 * same name and version. On 0 the caller frees what *ret holds. */
struct saga_defs {
	struct saga_def **v;
	size_t n;
};
int saga_defs_load(const struct pr_strs *patterns, struct saga_defs *ret, struct pr_err *err) PR_MUSTCHECK;
void saga_defs_free(struct saga_defs *defs);

int saga_def_step(const struct saga_def *def, const char *name, size_t n); /* index, -1: there is none */

/* The keys of a file, for the reference. */
extern const struct pr_opt saga_def_options[];

const char *saga_style_str(enum saga_style);
const char *saga_kind_str(enum saga_kind);
const char *saga_op_str(enum saga_op); /* "do", "undo" */

#endif
