/* lib/clock.c -- time and backoff. Refuses to sleep: callers wait on something. */
#include "lib/clock.h"

#include "lib/fault.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static int64_t now_us(clockid_t id)
{
	struct timespec ts;

	(void)clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * PR_SEC + ts.tv_nsec / 1000;
}

int64_t pr_mono_us(void)
{
	return now_us(CLOCK_MONOTONIC);
}

int64_t pr_wall_us(void)
{
	return now_us(CLOCK_REALTIME) + pr_clock_wrong_us();
}

int pr_until_ms(int64_t deadline_us)
{
	int64_t left;

	if (deadline_us == PR_FOREVER)
		return -1;
	left = deadline_us - pr_mono_us();
	if (left <= 0)
		return 0;
	left = (left + 999) / 1000;
	return left > INT_MAX ? INT_MAX : (int)left;
}

char *pr_rfc3339(int64_t wall_us, char *buf)
{
	time_t sec = (time_t)(wall_us / PR_SEC);
	int us = (int)(wall_us % PR_SEC);
	struct tm tm;
	size_t n;

	if (us < 0) {
		us += (int)PR_SEC;
		sec--;
	}
	(void)gmtime_r(&sec, &tm);
	/* Not %Y, which writes the year 33 with two digits. */
	n = (size_t)snprintf(buf, 28, "%04d-%02d-%02dT%02d:%02d:%02d", tm.tm_year + 1900, tm.tm_mon + 1,
		tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
	(void)snprintf(buf + n, 28 - n, ".%06dZ", us);
	return buf;
}

int64_t pr_backoff_us(unsigned attempt, int64_t base_us, int64_t cap_us)
{
	int64_t step = base_us;
	uint64_t r = 0;

	while (attempt-- > 0 && step < cap_us)
		step *= 2;
	if (step > cap_us)
		step = cap_us;
	if (getrandom(&r, sizeof(r), GRND_NONBLOCK) != (ssize_t)sizeof(r))
		r = (uint64_t)pr_mono_us() * 2654435761u;
	return step / 2 + (int64_t)(r % (uint64_t)(step / 2 + 1));
}
