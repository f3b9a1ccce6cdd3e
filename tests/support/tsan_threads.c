/* tests/support/tsan_threads.c -- linked into VARIANT=tsan only: gcc 12's ThreadSanitizer does not know
 * C11 threads, with which librdkafka starts its own, and crashes in the first of them; nor a join by the
 * monotonic clock. These go through pthread_create and pthread_timedjoin_np, which it does know. Refuses to
 * be anything else than that. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <threads.h>
#include <time.h>

struct start {
	thrd_start_t run;
	void *arg;
};

static void *trampoline(void *ctx)
{
	struct start s = *(struct start *)ctx;

	free(ctx);
	return (void *)(intptr_t)s.run(s.arg);
}

int thrd_create(thrd_t *ret, thrd_start_t run, void *arg)
{
	struct start *s = malloc(sizeof(*s));

	if (!s)
		return thrd_nomem;
	s->run = run;
	s->arg = arg;
	return pthread_create(ret, NULL, trampoline, s) == 0 ? thrd_success : thrd_error;
}

int thrd_join(thrd_t thread, int *ret)
{
	void *result;

	if (pthread_join(thread, &result) != 0)
		return thrd_error;
	if (ret)
		*ret = (int)(intptr_t)result;
	return thrd_success;
}

int pthread_clockjoin_np(pthread_t thread, void **ret, clockid_t clock, const struct timespec *until)
{
	struct timespec from, wall;

	(void)clock_gettime(clock, &from);
	(void)clock_gettime(CLOCK_REALTIME, &wall);
	wall.tv_sec += until->tv_sec - from.tv_sec;
	wall.tv_nsec += until->tv_nsec - from.tv_nsec;
	wall.tv_sec += wall.tv_nsec >= 1000000000 ? 1 : wall.tv_nsec < 0 ? -1 : 0;
	wall.tv_nsec += wall.tv_nsec >= 1000000000 ? -1000000000 : wall.tv_nsec < 0 ? 1000000000 : 0;
	return pthread_timedjoin_np(thread, ret, &wall);
}
