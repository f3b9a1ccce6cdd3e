/* lib/notify.h -- what the service manager is told (sd_notify(3), without its library): ready, what we are
 * at, that we are alive. Refuses to say that we are alive while a watched loop (lib/pulse.h) is silent.
 * Without $NOTIFY_SOCKET all of it is nothing. One thread, the main one, calls; a manager that does not
 * listen costs a second at most. */
#ifndef PR_NOTIFY_H
#define PR_NOTIFY_H

#include <stdint.h>

/* Before the first thread: takes $NOTIFY_SOCKET and the watchdog's time out of the environment, so that no
 * child speaks for us. */
void pr_notify_begin(void);
void pr_notify_ready(void); /* also after pr_notify_reloading */
void pr_notify_reloading(void);
/* drain_us: how long we may take to end. */
void pr_notify_stopping(int64_t drain_us);

/* Each time the main loop comes round: the watchdog's sign when it is due, the state when it has changed.
 * Returns in how many milliseconds the loop has to be back; -1: whenever. */
int pr_notify_turn(const char *state, const char *sentence);

/* The caller itself is about to wait so long: the manager shall be patient. 0: that is over. */
void pr_notify_patience(int64_t us);

#endif
