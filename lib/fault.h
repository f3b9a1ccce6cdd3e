/* lib/fault.h -- places where a test may kill us, or make us wrong on purpose.
 *
 * FAULT(name) stands after a comment that begins "If we die here", between two
 * durable effects; tests/fault/ has a test of the same name. SABOTAGE(name) turns a
 * known-bad variant of the code on, to prove that the checker catches it. Both exist
 * only in builds with -DPR_TEST (make check builds them aside); in a release they
 * are nothing, and no environment variable can switch them on.
 *
 * POSTRIDER_FAULT="name" or "name:3" (the third passage) dies there by SIGKILL.
 * POSTRIDER_SABOTAGE="name" is true for that name.
 * POSTRIDER_HOLD="name:/path": HOLD(name) makes /path.held and stands still while /path exists, a
 * minute at most; HELD(name) tells whether that point may be held at all.
 * POSTRIDER_CLOCK="/path": the host's wall clock is wrong by the seconds that stand in that file. */
#ifndef PR_FAULT_H
#define PR_FAULT_H

#include <stdint.h>

#ifdef PR_TEST
int64_t pr_clock_wrong_us(void);
void pr_fault_point(const char *name);
int pr_sabotage(const char *name);
const char *pr_hold_path(const char *name); /* NULL: not to be held */
void pr_hold_point(const char *name);
#define FAULT(name)    pr_fault_point(#name)
#define SABOTAGE(name) pr_sabotage(#name)
#define HOLD(name)     pr_hold_point(#name)
#define HELD(name)     (pr_hold_path(#name) != NULL)
#else
#define pr_clock_wrong_us() ((int64_t)0)
#define FAULT(name)         ((void)0)
#define SABOTAGE(name)      0
#define HOLD(name)          ((void)0)
#define HELD(name)          0
#endif

#endif
