/* lib/health.h -- what the daemons say about themselves in the same words: trouble that begins and ends,
 * one verdict, JSON made of it, the metrics that every process has. Which trouble there is and
 * what outweighs what is the program's. Takes short locks, never waits, never logs. */
#ifndef PR_HEALTH_H
#define PR_HEALTH_H

#include "lib/err.h"
#include "lib/http.h"
#include "lib/json.h"
#include "lib/metrics.h"

#include <pthread.h>
#include <stdint.h>

/* ---------------------------------------------------------------- trouble */

#define PR_BOARD_MAX 24

/* Why not all is well: one slot per cause, so that a cause that ended leaves no trace. */
struct pr_board {
	pthread_mutex_t mutex;
	const char *const *names; /* n of them, borrowed */
	int n, errors;            /* slots below errors have severity error, the others warn */
	struct pr_err err[PR_BOARD_MAX];
	int64_t since_us[PR_BOARD_MAX]; /* monotonic; 0: none */
};

enum pr_change { PR_UNCHANGED, PR_BEGAN, PR_CHANGED, PR_ENDED };

void pr_board_init(struct pr_board *b, const char *const *names, int n, int errors);
void pr_board_release(struct pr_board *b);

/* err NULL: that trouble has ended. Any thread; says what there is to log. */
enum pr_change pr_board_set(struct pr_board *b, int which, const struct pr_err *err);
int pr_board_has(struct pr_board *b, int which);

/* ---------------------------------------------------------------- the verdict */

struct pr_verdict {
	const char *state; /* static */
	char sentence[400];
	char hint[400];
};

/* Fills *v; returns 1, so that a chain of "x(v) || y(v)" ends. */
int pr_say(struct pr_verdict *v, const char *state, const char *sentence, const char *hint);

/* The trouble's own words under this state; 0 when there is none. */
int pr_board_say(struct pr_board *b, int which, const char *state, struct pr_verdict *v);

/* ---------------------------------------------------------------- JSON */

/* "name":value, with a comma before it unless it is the first of its object or list. */
void pr_put_text(struct pr_buf *b, const char *name, const char *value);
void pr_put_bool(struct pr_buf *b, const char *name, int value);
void pr_put_int(struct pr_buf *b, const char *name, int64_t value);
void pr_put_seconds(struct pr_buf *b, const char *name, double value); /* three digits; NaN: null */

/* "state", "sentence", "hint" and "checks": {each slot: "ok" or its text. The caller adds its own checks and
 * closes the object. */
void pr_put_checks(struct pr_buf *b, struct pr_board *board, const struct pr_verdict *v);
void pr_put_problems(struct pr_buf *b, struct pr_board *board); /* "problems":[...] */

/* Takes the buffer's bytes. */
void pr_respond(struct pr_response *resp, struct pr_buf *b);

/* The handler of /healthz: 503 with its name while a loop is silent (lib/pulse.h). */
void pr_page_healthz(void *ctx, const struct pr_request *req, struct pr_response *resp);

/* /metrics in the format that the request accepts, every series with label="value". */
void pr_page_metrics(const struct pr_request *req, struct pr_response *resp, struct pr_metrics *m,
	const char *label, const char *value);

/* ---------------------------------------------------------------- metrics */

struct pr_series *pr_gauge_new(struct pr_metrics *m, const char *name, const char *help);

/* postrider_build_info, _up, _state, _trouble_seconds, _log_lines_dropped and process_*. */
struct pr_vitals {
	const char *const *states; /* ended by NULL, borrowed */
	struct pr_family *state, *trouble;
	struct pr_series *log_dropped;
};
void pr_vitals_init(
	struct pr_vitals *v, struct pr_metrics *m, const char *const *states, const char *state_help);
void pr_vitals_set(struct pr_vitals *v, const char *state, struct pr_board *board);

#endif
