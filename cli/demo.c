/* cli/demo.c -- `postrider demo`: starts the demonstration of the checkout this program
 * was built in, or says how to get one. Refuses to look for one elsewhere: a script is not
 * run because it lies in the current directory. */
#include "cli/cli.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCRIPT "tests/support/demo.py"

/* A checkout holds the program in build/bin (or build/VARIANT/bin): its root, or NULL. */
static char *checkout(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (n <= 0)
		return NULL;
	path[n] = '\0';
	for (int up = 0; up < 5; up++) {
		char *slash = strrchr(path, '/'), *script, *makefile;
		int ours;

		if (!slash || slash == path)
			return NULL;
		*slash = '\0';
		script = pr_asprintf("%s/" SCRIPT, path);
		makefile = pr_asprintf("%s/Makefile", path);
		ours = access(script, R_OK) == 0 && access(makefile, R_OK) == 0;
		free(script);
		free(makefile);
		if (ours)
			return pr_strdup(path);
	}
	return NULL;
}

int verb_demo(struct cli *c)
{
	char *root = checkout();
	const char *once = cli_has(c, "once") ? "ONCE=1" : "ONCE=";

	if (!root) {
		(void)printf("The demonstration is part of the source:\n\n"
			     "  git clone <the repository> postrider\n  cd postrider\n  make demo%s\n\n"
			     "It starts a private Postgres, a real Kafka, Redis and all services of the box "
			     "office in a "
			     "directory of\nits own, lets a crowd in, breaks things before your eyes, and "
			     "counts at the end.\n",
			once[5] ? " ONCE=1" : "");
		return PR_EX_OK;
	}
	(void)fflush(stdout);
	if (chdir(root) == 0)
		(void)execlp("make", "make", "--no-print-directory", "demo", once, (char *)NULL);
	cli_say("postrider: cannot run make in %s: %s", root, strerror(errno));
	free(root);
	return PR_EX_FAILED;
}
