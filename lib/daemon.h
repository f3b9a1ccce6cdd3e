/* lib/daemon.h -- what the main thread of every daemon does: signals become orders, threads begin, and end
 * within a deadline. Never logs, never exits: who calls decides. */
#ifndef PR_DAEMON_H
#define PR_DAEMON_H

#include "lib/err.h"

#include <pthread.h>
#include <stdint.h>
#include <time.h>

enum pr_order {
	PR_ORDER_NONE,   /* woken, or the time is over */
	PR_ORDER_RELOAD, /* SIGHUP */
	PR_ORDER_STOP,   /* SIGTERM, SIGINT */
};

/* Before the first thread. The three signals come as orders from now on, SIGPIPE is ignored, and no core is
 * dumped: secrets are in memory. Gives the fd to wait on, which the caller closes; -1: no fd. */
int pr_daemon_signals(struct pr_err *err) PR_MUSTCHECK;

/* Until a signal comes, wake_fd is readable (it stays so) or timeout_ms have passed (-1: never). *ret_signal
 * names the signal ("TERM"), static; NULL is fine. */
enum pr_order pr_daemon_wait(int signal_fd, int wake_fd, int timeout_ms, const char **ret_signal);

/* All signals stay with the threads there are. name: at most 15 bytes. */
int pr_thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg,
	struct pr_err *err) PR_MUSTCHECK;

/* The end: one deadline for all threads, whatever the wall clock does meanwhile. */
struct pr_drain {
	struct timespec until; /* CLOCK_MONOTONIC */
	int late;              /* threads that run on: nothing of theirs may be freed */
	char names[200];       /* theirs, "reader, lane" */
};

/* The default action of signals is back: a second one ends us at once. But not SIGHUP: there is nothing left
 * that could be loaded anew. */
void pr_drain_begin(struct pr_drain *d, int64_t budget_us);
void pr_drain_join(struct pr_drain *d, pthread_t thread, const char *name);
void pr_drain_late(struct pr_drain *d, const char *name); /* this one runs on */

#endif
