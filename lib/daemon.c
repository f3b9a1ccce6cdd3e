/* lib/daemon.c -- signals, threads and the deadline of a daemon's end. Refuses to run code in a signal
 * handler: signals are read from a descriptor. */
#include "lib/daemon.h"

#include "lib/clock.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

int pr_daemon_signals(struct pr_err *err)
{
	sigset_t set;
	int fd;

	(void)signal(SIGPIPE, SIG_IGN);
	(void)setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	(void)sigaddset(&set, SIGHUP);
	(void)pthread_sigmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? pr_fail(err, PR_RETRY, "no descriptor for signals: %s", strerror(errno)) : fd;
}

enum pr_order pr_daemon_wait(int signal_fd, int wake_fd, int timeout_ms, const char **ret_signal)
{
	struct pollfd fds[2] = { { .fd = signal_fd, .events = POLLIN }, { .fd = wake_fd, .events = POLLIN } };
	struct signalfd_siginfo info;

	(void)poll(fds, 2, timeout_ms);
	if (read(signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return PR_ORDER_NONE;
	if (ret_signal)
		*ret_signal = sigabbrev_np((int)info.ssi_signo);
	return info.ssi_signo == SIGHUP ? PR_ORDER_RELOAD : PR_ORDER_STOP;
}

int pr_thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg, struct pr_err *err)
{
	sigset_t all, was;
	int rc;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &was);
	rc = pthread_create(thread, NULL, run, arg);
	(void)pthread_sigmask(SIG_SETMASK, &was, NULL);
	if (rc != 0)
		return pr_fail(err, PR_RETRY, "cannot start the thread \"%s\": %s", name, strerror(rc));
	(void)pthread_setname_np(*thread, name);
	return 0;
}

void pr_drain_begin(struct pr_drain *d, int64_t budget_us)
{
	sigset_t all;

	(void)signal(SIGHUP, SIG_IGN);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_UNBLOCK, &all, NULL);
	*d = (struct pr_drain){ 0 };
	(void)clock_gettime(CLOCK_MONOTONIC, &d->until);
	d->until.tv_sec += budget_us / PR_SEC;
	d->until.tv_nsec += budget_us % PR_SEC * 1000;
	if (d->until.tv_nsec >= 1000000000) {
		d->until.tv_sec++;
		d->until.tv_nsec -= 1000000000;
	}
}

void pr_drain_late(struct pr_drain *d, const char *name)
{
	size_t n = strlen(d->names);

	(void)snprintf(d->names + n, sizeof(d->names) - n, "%s%s", d->late ? ", " : "", name);
	d->late++;
}

void pr_drain_join(struct pr_drain *d, pthread_t thread, const char *name)
{
	if (pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &d->until) != 0)
		pr_drain_late(d, name);
}
