/* lib/saga_core.h -- what becomes of a saga: (definition, instance, what happened) -> instance, and what is
 * to be sent and written. Pure: no clock, no I/O, no randomness, so that the engine, `postrider saga
 * simulate` and the tests walk the same function. The only place that changes a state word of a saga.
 *
 * An instance moves forward stage by stage. A step that is refused, or whose outcome stays unknown, turns it
 * around: stages are undone from the last to the first, and only what was done, or may have been. After the
 * pivot it never turns around by itself: what is left is tried until its attempts are used up, then a person
 * is asked (STUCK).
 *
 * Method: Garcia-Molina & Salem, "Sagas" (1987), backward recovery; pivot and retriable steps as in C.
 * Richardson, "Microservices Patterns", ch. 4. */
#ifndef PR_SAGA_CORE_H
#define PR_SAGA_CORE_H

#include "lib/json.h"
#include "lib/saga_def.h"

enum saga_state {
	SAGA_RUNNING, /* also while it waits for its semantic locks */
	SAGA_COMPENSATING,
	SAGA_COMPLETED,
	SAGA_COMPENSATED,
	SAGA_STUCK,   /* a step's tries are used up and a person must decide */
	SAGA_ABORTED, /* an operator ended it as it was */
	SAGA_STATES,
};

enum saga_step_state {
	STEP_WAITING,
	STEP_DOING, /* its command is out, or waits to be sent again */
	STEP_DONE,
	STEP_REFUSED, /* the participant said no: there is nothing to undo */
	STEP_UNKNOWN, /* no answer and no tries left, or turned around while it was out: to be undone */
	STEP_SKIPPED, /* its condition was false, or an operator skipped it */
	STEP_UNDOING,
	STEP_UNDONE,
	STEP_STUCK, /* op says which of both */
	STEP_STATES,
};

const char *saga_state_str(enum saga_state);
const char *saga_step_state_str(enum saga_step_state);
int saga_state_parse(const char *s, size_t n);      /* -1: no such word */
int saga_step_state_parse(const char *s, size_t n); /* -1 */
int saga_is_final(enum saga_state);                 /* COMPLETED, COMPENSATED, ABORTED */

struct saga_step_now {
	enum saga_step_state state;
	enum saga_op op;   /* of DOING, UNDOING and STUCK */
	int tries;         /* sends of this op's command so far */
	int generation[2]; /* by op: a try after a refusal, or by an operator's order, is another command */
	int waits;         /* due_us is when to send again (1), or when the reply is overdue (0) */
	int refused;       /* the last answer was no. While it waits: the next try is another command, for a
			    * participant gives the same one the same answer for ever. Of STUCK: of a choreography
			    * whose undo is held */
	int64_t due_us;    /* wall; 0: nothing is due; of STUCK: when all is undone unless somebody acts */
	int64_t since_us;  /* wall, of its state */
	char why[200];     /* of the last refusal or failure; "" */
};

struct saga_instance {
	unsigned char id[16];
	enum saga_state state;
	int turned;                                 /* it goes backward: of COMPENSATING, and of STUCK */
	int granted;                                /* its semantic locks are its own */
	int64_t started_us, deadline_us;            /* wall; 0: none */
	int64_t since_us;                           /* of its state */
	int failed;                                 /* index of the step that turned it around; -1: none */
	char why[200];                              /* why it was turned around, or is stuck */
	struct pr_buf data;                         /* one JSON object; owned */
	struct saga_step_now step[SAGA_STEPS_MOST]; /* def->step_n of them */
};

/* What follows. Owned by the caller, who clears it between instances (n = 0) and frees it at the end. */
enum saga_event { /* to outbox.event.saga, and the types of these */
	SAGA_EVENT_STARTED,
	SAGA_EVENT_STEP_COMPLETED,
	SAGA_EVENT_COMPLETED,
	SAGA_EVENT_FAILED,
	SAGA_EVENT_COMPENSATED,
	SAGA_EVENT_STUCK,
	SAGA_EVENT_ABORTED,
	SAGA_EVENT_RESUMED,
};
const char *saga_event_str(enum saga_event); /* "SagaStarted" ... */

enum saga_note_what { /* saga.log.what */
	NOTE_STARTED,
	NOTE_WAITS_FOR_LOCK,
	NOTE_SENT,
	NOTE_SENT_AGAIN,
	NOTE_DONE,
	NOTE_REFUSED,
	NOTE_FAILED,
	NOTE_TIMEOUT,
	NOTE_SKIPPED,
	NOTE_TURNED,
	NOTE_UNDONE,
	NOTE_STUCK,
	NOTE_STATE,
	NOTE_DEADLINE,
	NOTE_DUPLICATE,
	NOTE_LATE,
	NOTE_UNKNOWN,
	NOTE_ORDER,
	NOTE_UNEXPECTED,
	NOTE_MISSING,
	NOTE_CYCLE,
};
const char *saga_note_str(enum saga_note_what);

struct saga_out {
	struct saga_send {
		int step;
		enum saga_op op;
		int try;                      /* 1: the first time */
		unsigned char command_id[16]; /* the same for all tries of a generation */
	} * send;
	struct saga_publish {
		enum saga_event type;
		int step; /* -1: none */
	} * publish;
	struct saga_note {
		enum saga_note_what what;
		int step; /* -1: none */
		enum saga_op op;
		char text[200];
	} * note;
	size_t send_n, send_cap, publish_n, publish_cap, note_n, note_cap;
};
void saga_out_clear(struct saga_out *out);
void saga_out_free(struct saga_out *out);

/* Zeroes and fills a new one; data is copied, "{}" when NULL. Not begun. */
void saga_instance_init(struct saga_instance *in, const struct saga_def *def, const unsigned char id[16],
	const char *data, size_t data_len, int64_t now_us);
void saga_instance_free(struct saga_instance *in); /* what it owns, not itself */

/* Begins it, once. granted: its locks are its own, or it has none; else it waits for saga_granted. */
void saga_begin(const struct saga_def *def, struct saga_instance *in, int granted, int64_t now_us,
	struct saga_out *out);
void saga_granted(const struct saga_def *def, struct saga_instance *in, int64_t now_us, struct saga_out *out);

/* Its locks are another's and the definition says refuse: COMPENSATED with nothing done. */
void saga_lock_refused(const struct saga_def *def, struct saga_instance *in, const char *lock, int64_t now_us,
	struct saga_out *out);

enum saga_outcome {
	OUTCOME_DONE,
	OUTCOME_REFUSED, /* for good: of an undo the same as failed */
	OUTCOME_FAILED,  /* may succeed another time */
};
const char *saga_outcome_str(enum saga_outcome);
int saga_outcome_parse(const char *s, size_t n); /* -1 */

struct saga_reply {
	const char *step; /* as it came, step_n bytes */
	size_t step_n;
	enum saga_op op;
	unsigned char command_id[16];
	enum saga_outcome outcome;
	const char *data; /* JSON object with what `keep` takes; NULL: none */
	size_t data_n;
	const char *why; /* NULL: none */
};
/* Late, duplicate and unknown ones are noted and change nothing. */
void saga_take_reply(const struct saga_def *def, struct saga_instance *in, const struct saga_reply *r,
	int64_t now_us, struct saga_out *out);

/* Choreography: an event of the saga, by its type. */
void saga_take_event(const struct saga_def *def, struct saga_instance *in, const char *type, size_t type_n,
	const char *payload, size_t payload_n, int64_t now_us, struct saga_out *out);

/* What is due by now_us: tries that are overdue or to be sent again, the deadline. */
void saga_tick(const struct saga_def *def, struct saga_instance *in, int64_t now_us, struct saga_out *out);

/* When saga_tick has something to do: wall; INT64_MAX: never. */
int64_t saga_due(const struct saga_instance *in, const struct saga_def *def);

enum saga_order {
	ORDER_RETRY,   /* the stuck step, or step: a new generation of its command */
	ORDER_SKIP,    /* the stuck step, or step, counts as done (do) or undone (undo) */
	ORDER_UNDO,    /* turn around, also after the pivot when all that is done has an undo */
	ORDER_ABORT,   /* end as it is */
	ORDER_EDIT,    /* data replaced by detail */
	ORDER_MIGRATE, /* to def `to` */
};
const char *saga_order_str(enum saga_order);   /* "retry", "skip", "undo", "abort", "edit-data", "migrate" */
int saga_order_parse(const char *s, size_t n); /* -1 */

/* -1: it cannot be, err says why with a hint, nothing changed. step -1: the one that is stuck. to: of
 * MIGRATE, the instance is of that definition from then on. detail: of EDIT, a JSON object. */
int saga_take_order(const struct saga_def *def, struct saga_instance *in, enum saga_order order, int step,
	const char *detail, size_t detail_n, const struct saga_def *to, int64_t now_us, struct saga_out *out,
	struct pr_err *err) PR_MUSTCHECK;

/* The command id of a step's op: a UUID of version 8 from the saga's id, the step's name and op; its last
 * four bytes are the generation, so that a participant knows the older of two commands. */
void saga_command_id(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	unsigned char ret[16]);

/* Appends the payload of a command: its send members from the data, {} when none. */
void saga_put_payload(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	struct pr_buf *b);

/* Appends the record key of a command, or a lock's name from its template: "${data.x}" filled in; strings
 * unescaped. */
void saga_put_key(const struct saga_def *def, const struct saga_instance *in, int step, enum saga_op op,
	struct pr_buf *b);
void saga_put_template(
	const struct saga_def *def, const struct saga_instance *in, const char *text, struct pr_buf *b);

/* The steps as saga.instance.steps holds them, a JSON array of
 * {"step","state","since"} and, when they are not 0, "undo" (true: op), "tries", "generation",
 * "undo_generation", "waits" (true), "due", "why"; times in microseconds since 1970. And back, by name: a
 * step that is not there is WAITING; -1: it is none of ours. */
void saga_put_steps(const struct saga_def *def, const struct saga_instance *in, struct pr_buf *b);
int saga_read_steps(
	const struct saga_def *def, struct saga_instance *in, const char *json, size_t n) PR_MUSTCHECK;

#endif
