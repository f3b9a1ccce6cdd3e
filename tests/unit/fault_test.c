/* tests/unit/fault_test.c -- lib/fault.c: in a test build a named point kills at the asked
 * passage and nowhere else; in a release build the environment can do nothing. */
#include "lib/fault.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#ifdef PR_TEST
#define passes(name)    pr_fault_point(name)
#define sabotaged(name) pr_sabotage(name)
#else
/* What the macros are in a release: the point's name does not even exist. */
#define passes(name)    FAULT(name)
#define sabotaged(name) SABOTAGE(name)
#endif

/* Passes the point "alpha" so often in a child, then "beta" once. Returns the number of the
 * passage that killed it (beta: 100), 0 when it lived. */
static int killed_at(const char *spec, int passages)
{
	int pipefd[2], status, count = 0;
	char byte;
	pid_t pid;

	assert_int_equal(pipe(pipefd), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)(spec ? setenv("POSTRIDER_FAULT", spec, 1) : unsetenv("POSTRIDER_FAULT"));
		for (int i = 0; i <= passages; i++) {
			if (write(pipefd[1], "x", 1) != 1)
				_exit(2);
			if (i < passages)
				passes("alpha");
			else
				passes("beta");
		}
		_exit(0);
	}
	(void)close(pipefd[1]);
	while (read(pipefd[0], &byte, 1) == 1)
		count++;
	(void)close(pipefd[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status)) {
		assert_int_equal(WEXITSTATUS(status), 0);
		return 0;
	}
	assert_int_equal(WTERMSIG(status), SIGKILL);
	return count > passages ? 100 : count;
}

#ifdef PR_TEST
#define IF_TEST(n) (n)
#else
#define IF_TEST(n) 0
#endif

static void kills(void **state)
{
	(void)state;
	assert_int_equal(killed_at(NULL, 3), 0);
	assert_int_equal(killed_at("", 3), 0);
	assert_int_equal(killed_at("alpha", 3), IF_TEST(1));
	assert_int_equal(killed_at("alpha:1", 3), IF_TEST(1));
	assert_int_equal(killed_at("alpha:3", 3), IF_TEST(3));
	assert_int_equal(killed_at("alpha:4", 3), 0);
	assert_int_equal(killed_at("beta", 3), IF_TEST(100));
	/* A name that only begins alike is another point. */
	assert_int_equal(killed_at("alphabet", 3), 0);
	assert_int_equal(killed_at("alp", 3), 0);
	assert_int_equal(killed_at("alpha:x", 3), 0);
	assert_int_equal(killed_at("alpha:0", 3), 0);
}

static void sabotage(void **state)
{
	(void)state;
	assert_int_equal(setenv("POSTRIDER_SABOTAGE", "gamma", 1), 0);
	assert_int_equal(sabotaged("gamma") != 0, IF_TEST(1));
	assert_int_equal(sabotaged("gamm"), 0);
	assert_int_equal(sabotaged("gamma2"), 0);
	assert_int_equal(unsetenv("POSTRIDER_SABOTAGE"), 0);
	assert_int_equal(sabotaged("gamma"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kills),
		cmocka_unit_test(sabotage),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
