/* tests/unit/daemon_test.c -- signals arrive as orders and nowhere else, threads get none, and the end has
 * one deadline for all of them. */
#include "lib/daemon.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int signals(void)
{
	struct pr_err err;
	int fd = pr_daemon_signals(&err);

	if (fd < 0)
		fail_msg("%s", err.text);
	return fd;
}

static void orders(void **state)
{
	int fd = signals(), wake = eventfd(0, EFD_CLOEXEC);
	struct rlimit core;
	const char *name = NULL;

	(void)state;
	assert_int_equal(pr_daemon_wait(fd, wake, 0, &name), PR_ORDER_NONE);
	assert_null(name);
	(void)kill(getpid(), SIGHUP);
	assert_int_equal(pr_daemon_wait(fd, wake, 5000, &name), PR_ORDER_RELOAD);
	assert_string_equal(name, "HUP");
	(void)kill(getpid(), SIGINT);
	assert_int_equal(pr_daemon_wait(fd, wake, 5000, &name), PR_ORDER_STOP);
	assert_string_equal(name, "INT");
	(void)kill(getpid(), SIGTERM);
	assert_int_equal(pr_daemon_wait(fd, wake, 5000, NULL), PR_ORDER_STOP);
	assert_int_equal(eventfd_write(wake, 1), 0);
	assert_int_equal(pr_daemon_wait(fd, wake, -1, &name), PR_ORDER_NONE);
	assert_int_equal(pr_daemon_wait(fd, wake, -1, &name), PR_ORDER_NONE); /* it stays so */
	assert_int_equal(getrlimit(RLIMIT_CORE, &core), 0);
	assert_int_equal(core.rlim_max, 0);
	close(fd);
	close(wake);
}

struct worker {
	int fd; /* readable: end */
	sigset_t mask;
	char name[16];
	_Atomic int begun;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	eventfd_t n;

	(void)pthread_sigmask(SIG_SETMASK, NULL, &w->mask);
	(void)pthread_getname_np(pthread_self(), w->name, sizeof(w->name));
	atomic_store(&w->begun, 1);
	(void)eventfd_read(w->fd, &n);
	return NULL;
}

static void threads_get_no_signals(void **state)
{
	struct worker w = { .fd = eventfd(0, EFD_CLOEXEC) };
	sigset_t before, after;
	pthread_t thread;
	struct pr_err err;

	(void)state;
	(void)pthread_sigmask(SIG_SETMASK, NULL, &before);
	assert_int_equal(pr_thread_start(&thread, "a-worker", work, &w, &err), 0);
	(void)pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int n = 1; n < 32; n++)
		assert_int_equal(sigismember(&before, n), sigismember(&after, n));
	assert_int_equal(eventfd_write(w.fd, 1), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	for (int s = 1; s < 32; s++)
		assert_true(s == SIGKILL || s == SIGSTOP || sigismember(&w.mask, s));
	close(w.fd);
}

static void one_deadline_for_all(void **state)
{
	struct worker w[3];
	pthread_t thread[3];
	struct pr_drain d;
	int64_t begin;
	struct pr_err err;

	(void)state;
	for (int i = 0; i < 3; i++) {
		w[i] = (struct worker){ .fd = eventfd(0, EFD_CLOEXEC) };
		assert_int_equal(pr_thread_start(&thread[i], "a-worker", work, &w[i], &err), 0);
	}
	assert_int_equal(eventfd_write(w[1].fd, 1), 0);
	begin = pr_mono_us();
	pr_drain_begin(&d, 2 * PR_SEC); /* by then the second one has ended */
	pr_drain_join(&d, thread[0], "reader");
	pr_drain_join(&d, thread[1], "writer");
	pr_drain_join(&d, thread[2], "lane");
	assert_true(pr_mono_us() - begin >= 2 * PR_SEC);
	assert_true(pr_mono_us() - begin < 30 * PR_SEC);
	assert_int_equal(d.late, 2);
	assert_string_equal(d.names, "reader, lane");
	for (int i = 0; i < 3; i += 2) {
		assert_int_equal(eventfd_write(w[i].fd, 1), 0);
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	}
	for (int i = 0; i < 3; i++)
		close(w[i].fd);
}

/* Many late threads must not write past what there is for their names. */
static void names_are_bounded(void **state)
{
	struct worker w = { .fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE) };
	struct pr_drain d;
	pthread_t thread;
	struct pr_err err;

	(void)state;
	assert_int_equal(pr_thread_start(&thread, "a-worker", work, &w, &err), 0);
	pr_drain_begin(&d, 0);
	for (int i = 0; i < 100; i++)
		pr_drain_join(&d, thread, "a long name of a thread");
	assert_int_equal(d.late, 100);
	assert_int_equal(strlen(d.names), sizeof(d.names) - 1);
	assert_int_equal(eventfd_write(w.fd, 1), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	close(w.fd);
}

/* While it drains, a second signal ends the process at once. */
static void second_signal_ends(void **state)
{
	pid_t pid = fork();
	int status = 0;

	(void)state;
	if (pid == 0) {
		struct pr_drain d;
		struct pr_err err;
		int fd = pr_daemon_signals(&err);

		(void)kill(getpid(), SIGTERM);
		if (fd < 0 || pr_daemon_wait(fd, -1, 5000, NULL) != PR_ORDER_STOP)
			_exit(1);
		pr_drain_begin(&d, PR_SEC);
		(void)kill(getpid(), SIGTERM);
		(void)pause();
		_exit(2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

/* Story: rotation of logs sent SIGHUP to a daemon that was draining, and the batch under way was cut off. */
static void no_reload_ends_a_drain(void **state)
{
	pid_t pid = fork();
	int status = 0;

	(void)state;
	if (pid == 0) {
		struct pr_drain d;
		struct pr_err err;
		int fd = pr_daemon_signals(&err);

		(void)kill(getpid(), SIGTERM);
		if (fd < 0 || pr_daemon_wait(fd, -1, 5000, NULL) != PR_ORDER_STOP)
			_exit(1);
		(void)kill(getpid(), SIGHUP); /* waits until all are let in */
		pr_drain_begin(&d, PR_SEC);
		(void)kill(getpid(), SIGHUP);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(second_signal_ends), /* first: they fork while there is one thread */
		cmocka_unit_test(no_reload_ends_a_drain),
		cmocka_unit_test(orders),
		cmocka_unit_test(threads_get_no_signals),
		cmocka_unit_test(one_deadline_for_all),
		cmocka_unit_test(names_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
