/* lib/fault.c -- test builds only: dies or misbehaves where the environment says.
 * Refuses to exist in a release. */
#include "lib/fault.h"

#ifdef PR_TEST
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

void pr_fault_point(const char *name)
{
	static _Atomic long passages;
	const char *spec = getenv("POSTRIDER_FAULT");
	size_t n = strlen(name);
	long nth = 1;

	if (!spec || strncmp(spec, name, n) != 0)
		return;
	if (spec[n] == ':')
		nth = strtol(spec + n + 1, NULL, 10);
	else if (spec[n] != '\0')
		return;
	if (atomic_fetch_add(&passages, 1) + 1 == nth)
		(void)raise(SIGKILL);
}

int pr_sabotage(const char *name)
{
	const char *spec = getenv("POSTRIDER_SABOTAGE");

	return spec && strcmp(spec, name) == 0;
}
#else
typedef int pr_fault_nothing; /* an empty translation unit is not ISO C */
#endif
