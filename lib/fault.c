/* lib/fault.c -- test builds only: dies or misbehaves where the environment says.
 * Refuses to exist in a release. */
#include "lib/fault.h"

#ifdef PR_TEST
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

int64_t pr_clock_wrong_us(void)
{
	const char *path = getenv("POSTRIDER_CLOCK");
	char text[32] = "";
	ssize_t n = 0;
	int fd;

	if (!path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, sizeof(text) - 1);
		(void)close(fd);
	}
	return n > 0 ? strtoll(text, NULL, 10) * 1000000 : 0;
}

int pr_sabotage(const char *name)
{
	const char *spec = getenv("POSTRIDER_SABOTAGE");

	return spec && strcmp(spec, name) == 0;
}

const char *pr_hold_path(const char *name)
{
	const char *spec = getenv("POSTRIDER_HOLD");
	size_t n = strlen(name);

	return spec && strncmp(spec, name, n) == 0 && spec[n] == ':' ? spec + n + 1 : NULL;
}

void pr_hold_point(const char *name)
{
	const char *path = pr_hold_path(name);
	char held[4096];
	int fd;

	if (!path || access(path, F_OK) < 0)
		return;
	(void)snprintf(held, sizeof(held), "%s.held", path);
	fd = open(held, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd >= 0)
		(void)close(fd);
	for (int i = 0; i < 60000 && access(path, F_OK) == 0; i++)
		(void)poll(NULL, 0, 1);
	(void)unlink(held);
}
#else
typedef int pr_fault_nothing; /* an empty translation unit is not ISO C */
#endif
