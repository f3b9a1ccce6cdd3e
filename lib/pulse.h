/* lib/pulse.h -- which loops of this process are alive. A loop says each time it comes round by when it will
 * be back; who does not come back in time is silent, and /healthz and the watchdog of the service manager
 * tell. Refuses to judge whether a loop gets anything done: waiting for Postgres or Kafka within a deadline
 * is life. Takes no lock on a loop's way but the first time; any thread may ask. */
#ifndef PR_PULSE_H
#define PR_PULSE_H

#include <stdint.h>

#define PR_PULSE_US 10000000LL /* that late a loop may be: a busy machine is no hang */

/* From its first call until it ends the calling thread is watched. name: static. most_us: how long it may
 * wait for somebody before it calls again. */
void pr_pulse(const char *name, int64_t most_us);

/* What waits for an answer with a deadline calls this first. Of a thread that is not watched: nothing. */
void pr_pulse_wait(int64_t most_us);

/* The calling thread is not watched until it calls pr_pulse again. */
void pr_pulse_rest(void);

/* The loop that has been silent for longest beyond its time, and for how long; NULL: all are alive. */
const char *pr_pulse_silent(int64_t *ret_us);

#endif
