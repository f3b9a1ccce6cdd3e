/* lib/clock.h -- time. Intervals and deadlines are monotonic microseconds; wall
 * time is only for stamps that people or other programs read. Thread-safe. */
#ifndef PR_CLOCK_H
#define PR_CLOCK_H

#include <stdint.h>

#define PR_MS      1000LL    /* microseconds in a millisecond */
#define PR_SEC     1000000LL /* ... in a second */
#define PR_FOREVER INT64_MAX /* a deadline that never comes */

int64_t pr_mono_us(void); /* CLOCK_MONOTONIC */
int64_t pr_wall_us(void); /* microseconds since 1970, CLOCK_REALTIME */

/* Milliseconds until the deadline for poll(2): 0 when it has passed, -1 for
 * PR_FOREVER, never less than 1 before it has passed. */
int pr_until_ms(int64_t deadline_us);

/* RFC 3339 UTC with microseconds, "2026-01-02T03:04:05.000006Z", into buf[28] or more. */
char *pr_rfc3339(int64_t wall_us, char *buf);

/* Exponential backoff with full jitter: a delay in [step/2, step] where step =
 * base * 2^attempt, capped. Source: AWS Architecture Blog, "Exponential Backoff
 * And Jitter" (2015), the "equal jitter" form, so that a delay is never 0. */
int64_t pr_backoff_us(unsigned attempt, int64_t base_us, int64_t cap_us);

#endif
