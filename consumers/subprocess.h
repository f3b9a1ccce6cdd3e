/* consumers/subprocess.h -- one long-lived child: its pipes, its group, its last words. Belongs to one
 * thread, and dies with that thread: the kernel kills the child when the thread that started it ends. */
#ifndef CONSUMERS_SUBPROCESS_H
#define CONSUMERS_SUBPROCESS_H

#include "lib/err.h"

#include <stdint.h>
#include <sys/types.h>

#define SUBPROCESS_LINE 1024 /* a longer line of stderr is cut */

struct subprocess {
	pid_t pid;        /* 0: none; also the id of its group */
	int in, out, err; /* our ends, non-blocking; -1: closed */
	int pidfd;        /* readable once it has ended; -1: an old kernel, ask by the clock */
	int lane;         /* for the log */
	struct {
		char line[SUBPROCESS_LINE];
		size_t len;
		char last[200]; /* its last line on stderr, for whoever asks why it died; "" none */
		int64_t window_us;
		unsigned in_window;
		uint64_t dropped;
	} said;
};

#define SUBPROCESS_NONE ((struct subprocess){ .in = -1, .out = -1, .err = -1, .pidfd = -1 })

/* Starts argv (NULL at its end; a name without slash is looked up in PATH) with env ("NAME=value", NULL
 * at its end) added to our environment. Only 0, 1 and 2 are open in it. Returns when the program runs.
 * PR_STOP with exit 78: it can never run (missing, not executable). PR_RETRY: it may later. */
int subprocess_start(
	struct subprocess *p, char *const *argv, const char *const *env, struct pr_err *err) PR_MUSTCHECK;

/* Whether it has ended (it is not reaped by this). status: of an exit, or minus the signal. */
int subprocess_ended(struct subprocess *p, int *ret_status);

/* Logs what it said on stderr since, at a bounded rate; what is over it is counted and told. */
void subprocess_said(struct subprocess *p);

/* Ends the whole group: with grace_us, first by a closed stdin and SIGTERM. Reaps. Twice the grace plus a
 * second at most. Afterwards *p is as SUBPROCESS_NONE, but for its last words. */
void subprocess_stop(struct subprocess *p, int64_t grace_us);

#endif
