/* lib/prog.h -- what every daemon's command line has in common: -c FILE, -o key=value
 * (repeatable), --check, --print-config, --print-sample (the commented sample),
 * --version, --help. Prints to stdout, errors and usage to stderr; never exits. */
#ifndef PR_PROG_H
#define PR_PROG_H

#include "lib/conf.h"

struct pr_prog {
	const char *name; /* "postrider-relay" */
	const char *does; /* one line for --help */
	const struct pr_opt *table;
	void *target; /* the config struct */
	/* Semantic checks beyond the table (contradictions, librdkafka properties); may be NULL. */
	int (*validate)(const void *target, const struct pr_conf *conf, struct pr_err *err);
};

/* By its keys, whose the file of a config is: -1 with exit 78 and what gives it away when it is another one
 * of our programs', not that of this table; 0 when it is, or when that cannot be told. For an error that came
 * first; reads the file, and leaves *err alone when it says 0. */
int pr_prog_whose(const char *file, const struct pr_opt *table, struct pr_err *err);

/* Parses argv and loads the config. Returns 0 when the program should go on (then
 * *ret_conf is set), otherwise 1 + exit code: the caller returns rc - 1 from main. Keeps the
 * file's name and the overrides so that pr_prog_reload can apply them again. */
int pr_prog_start(const struct pr_prog *prog, int argc, char **argv, struct pr_conf **ret_conf) PR_MUSTCHECK;

/* SIGHUP: loads and validates the same file and overrides into *fresh (same struct type).
 * Refused whole when a PR_OPT_NO_RELOAD option changed or anything is wrong. */
int pr_prog_reload(
	const struct pr_prog *prog, void *fresh, struct pr_conf **ret_conf, struct pr_err *err) PR_MUSTCHECK;

#endif
