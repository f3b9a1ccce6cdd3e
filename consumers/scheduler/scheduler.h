/* consumers/scheduler/scheduler.h -- timers inside a consumer: what its files share.
 *
 * handler (handler_scheduler.c)  ScheduleAt and CancelTimer, a batch in the lane's transaction; what it does
 * is schema.sql clock (clock.c)                a thread: fires what is due, forgets what is long over
 *
 * Any number of members fire beside each other: a timer's row is locked by one of them, and its state and the
 * event TimerFired are one commit. */
#ifndef CONSUMERS_SCHEDULER_H
#define CONSUMERS_SCHEDULER_H

#include "consumers/kind.h"

void *scheduler_clock(void *consumer);

#endif
