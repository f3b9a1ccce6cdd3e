/* producers/queue/turns.c -- a thread that works in turns: rests, is woken, ends. */
#include "producers/queue/queue.h"

#include "lib/daemon.h"

int turns_start(struct turns *t, const char *name, void *(*run)(void *), void *arg, struct pr_err *err)
{
	pthread_condattr_t attr;

	(void)pthread_mutex_init(&t->mutex, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&t->woken, &attr);
	(void)pthread_condattr_destroy(&attr);
	if (pr_thread_start(&t->thread, name, run, arg, err) < 0)
		return -1;
	t->running = 1;
	return 0;
}

void turns_wake(struct turns *t)
{
	(void)pthread_mutex_lock(&t->mutex);
	t->wanted = 1;
	(void)pthread_cond_signal(&t->woken);
	(void)pthread_mutex_unlock(&t->mutex);
}

int turns_rest(struct turns *t, int64_t us)
{
	int64_t end = pr_mono_us() + us;
	struct timespec until = { .tv_sec = (time_t)(end / PR_SEC), .tv_nsec = end % PR_SEC * 1000 };
	int going;

	(void)pthread_mutex_lock(&t->mutex);
	while (!t->wanted && !t->stopping && pr_mono_us() < end)
		(void)pthread_cond_timedwait(&t->woken, &t->mutex, &until);
	t->wanted = 0;
	going = !t->stopping;
	(void)pthread_mutex_unlock(&t->mutex);
	return going;
}

int turns_going(struct turns *t)
{
	int going;

	(void)pthread_mutex_lock(&t->mutex);
	going = !t->stopping;
	(void)pthread_mutex_unlock(&t->mutex);
	return going;
}

void turns_stop(struct turns *t)
{
	if (!t->running)
		return;
	(void)pthread_mutex_lock(&t->mutex);
	t->stopping = 1;
	(void)pthread_cond_signal(&t->woken);
	(void)pthread_mutex_unlock(&t->mutex);
	(void)pthread_join(t->thread, NULL);
	t->running = 0;
}
