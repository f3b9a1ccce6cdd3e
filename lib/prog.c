/* lib/prog.c -- the command line every daemon has. Refuses what it does not know instead
 * of guessing; prints, but never logs and never exits. Keeps the file name and the
 * overrides for reloads: one program, one command line. */
#include "lib/prog.h"

#include "lib/conf_text.h"
#include "lib/consumer_conf.h"
#include "lib/relay_conf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OVERRIDES 256

static struct {
	const char *file;                     /* of argv */
	const char *overrides[MAX_OVERRIDES]; /* of argv */
	size_t n;
} line;

enum mode { RUN, CHECK, PRINT_CONFIG, PRINT_SAMPLE, PRINT_REFERENCE, VERSION, HELP };

struct flag {
	const char *name;
	enum mode mode;
	const char *does;
};

static const struct flag flags[] = {
	{ "--check", CHECK, "check the configuration and its secrets, contact nothing" },
	{ "--print-config", PRINT_CONFIG, "print the effective values with their origin, secrets masked" },
	{ "--print-sample", PRINT_SAMPLE, "print a commented sample of the configuration" },
	{ "--print-reference", PRINT_REFERENCE, "print the reference of all options (markdown)" },
	{ "--version", VERSION, "print the version" },
	{ "--help", HELP, "this text" },
};

#define NFLAGS (sizeof(flags) / sizeof(*flags))

static void help(const struct pr_prog *prog, FILE *out)
{
	(void)fprintf(out, "%s: %s\n\nusage: %s -c FILE [-o key=value]... [--check | --print-config]\n\n",
		prog->name, prog->does, prog->name);
	(void)fprintf(out, "  %-18s %s\n", "-c FILE", "the configuration (--config)");
	(void)fprintf(out, "  %-18s %s\n", "-o key=value",
		"set one option, wins over the file; repeatable (--option)");
	for (size_t i = 0; i < NFLAGS; i++)
		(void)fprintf(out, "  %-18s %s\n", flags[i].name, flags[i].does);
	(void)fprintf(out,
		"\nSIGTERM and SIGINT finish what is in flight and end, a second one ends at once;\n"
		"SIGHUP reads the configuration again. Exit codes: 0 ok, 1 failed, 2 usage,\n"
		"5 refused, 69 unavailable, 77 no permission, 78 configuration.\n"
		"All options of the file: %s --print-reference | less\n",
		prog->name);
}

/* 1 + PR_EX_USAGE, what pr_prog_start returns. */
static int usage(const struct pr_prog *prog, const char *fmt, ...) PR_PRINTF(2, 3);

static int usage(const struct pr_prog *prog, const char *fmt, ...)
{
	va_list ap;

	(void)fprintf(stderr, "%s: ", prog->name);
	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fprintf(stderr, "\nusage: %s -c FILE [-o key=value]... (--help for more)\n", prog->name);
	return 1 + PR_EX_USAGE;
}

static int unknown(const struct pr_prog *prog, const char *arg)
{
	const char *names[NFLAGS + 3] = { "--config", "--option" }, *near;

	if (*arg != '-')
		return usage(prog, "unexpected argument \"%.100s\"", arg);
	for (size_t i = 0; i < NFLAGS; i++)
		names[i + 2] = flags[i].name;
	near = pr_nearest(arg, names);
	if (near)
		return usage(prog, "unknown option %.100s, did you mean %s?", arg, near);
	return usage(prog, "unknown option %.100s", arg);
}

/* The value of -c or -o at argv[*i]: "-cX", "-c X", "--config=X", "--config X". 0 when it is another
 * option, 1 with *ret (NULL when the value is missing). */
static int take_value(char **argv, int *i, const char *brief, const char *name, const char **ret)
{
	const char *arg = argv[*i];
	size_t n = strlen(name);

	if (strcmp(arg, brief) == 0 || strcmp(arg, name) == 0) {
		*ret = argv[*i + 1];
		*i += *ret != NULL;
		return 1;
	}
	if (strncmp(arg, name, n) == 0 && arg[n] == '=') {
		*ret = arg + n + 1;
		return 1;
	}
	if (strncmp(arg, brief, 2) == 0) {
		*ret = arg + 2;
		return 1;
	}
	return 0;
}

static int take_override(const struct pr_prog *prog, const char *text)
{
	const char *eq = text ? strchr(text, '=') : NULL;

	if (!eq || eq == text)
		return usage(prog, "-o needs key=value");
	if (line.n == MAX_OVERRIDES)
		return usage(prog, "more than %d -o options", MAX_OVERRIDES);
	line.overrides[line.n++] = text;
	return 0;
}

static int take_flag(const struct pr_prog *prog, const char *arg, enum mode *mode)
{
	if (strcmp(arg, "-h") == 0)
		arg = "--help";
	for (size_t i = 0; i < NFLAGS; i++) {
		if (strcmp(flags[i].name, arg) != 0)
			continue;
		if (*mode != RUN && *mode != flags[i].mode)
			return usage(prog, "%s goes with no other", arg);
		*mode = flags[i].mode;
		return 0;
	}
	return unknown(prog, arg);
}

static int parse_line(const struct pr_prog *prog, int argc, char **argv, enum mode *mode)
{
	const char *value;
	int rc = 0;

	line.file = NULL;
	line.n = 0;
	for (int i = 1; rc == 0 && i < argc; i++) {
		if (take_value(argv, &i, "-c", "--config", &value)) {
			if (!value || !*value)
				rc = usage(prog, "-c needs a file");
			else if (line.file)
				rc = usage(prog, "-c is given twice");
			line.file = value;
		} else if (take_value(argv, &i, "-o", "--option", &value)) {
			rc = take_override(prog, value);
		} else {
			rc = take_flag(prog, argv[i], mode);
		}
	}
	return rc;
}

static int print_err(const struct pr_err *err)
{
	(void)fprintf(stderr, "%s\n", err->text);
	if (*err->hint)
		(void)fprintf(stderr, "hint: %s\n", err->hint);
	return 1 + err->exit;
}

/* ---- a file given to the wrong program ---- */

/* The programs that read a config file. */
static const struct kind {
	const char *of, *program; /* "a relay's file", "postrider-relay" */
	const struct pr_opt *table;
} kinds[] = {
	{ "a relay's", "postrider-relay", pr_relay_options },
	{ "a consumer's", "postrider-consumer", pr_consumer_options },
};

#define NKINDS (sizeof(kinds) / sizeof(*kinds))

/* Whether the table has a key or a group of this name at its top. */
static int has_top(const struct pr_opt *table, const char *name, size_t n)
{
	for (; table->path; table++)
		if (strncmp(table->path, name, n) == 0 && (table->path[n] == '\0' || table->path[n] == '.'))
			return 1;
	return 0;
}

/* The only kind that knows the name; NULL: none, or several. */
static const struct kind *only_kind(const char *name, size_t n)
{
	const struct kind *only = NULL;

	for (size_t i = 0; i < NKINDS; i++) {
		if (!has_top(kinds[i].table, name, n))
			continue;
		if (only)
			return NULL;
		only = &kinds[i];
	}
	return only;
}

/* How many keys and groups at the top of the file are of this kind only; the first three go to words. */
static size_t telling(const struct pr_conf_text *text, const struct kind *kind, char *words, size_t size)
{
	size_t n = 0;

	*words = '\0';
	for (size_t i = 0; i < text->nmarks; i++) {
		const char *name = text->marks[i].path;
		size_t len = strcspn(name, ".[");

		if (name[len] != '\0' || only_kind(name, len) != kind)
			continue;
		if (n++ < 3)
			(void)snprintf(
				words + strlen(words), size - strlen(words), "%s%s", n > 1 ? ", " : "", name);
	}
	return n;
}

int pr_prog_whose(const char *file, const struct pr_opt *table, struct pr_err *err)
{
	struct pr_conf_text text = { 0 };
	const struct kind *most = NULL;
	struct pr_err ignored;
	char words[200], best[200] = "";
	size_t n, n_most = 1, n_own = SIZE_MAX; /* one stray key is a mistake, no other program */

	if (pr_conf_text_read(file, &text, &ignored) == 0)
		for (size_t i = 0; i < NKINDS; i++) {
			n = telling(&text, &kinds[i], words, sizeof(words));
			if (kinds[i].table == table) {
				n_own = n;
			} else if (n > n_most) {
				n_most = n;
				most = &kinds[i];
				(void)snprintf(best, sizeof(best), "%s", words);
			}
		}
	pr_conf_text_free(&text);
	if (!most || n_most <= n_own)
		return 0;
	(void)pr_fail(err, PR_STOP, "%s: this is %s file: it has %s", file, most->of, best);
	(void)pr_hint(err, "%s -c reads it", most->program);
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int load(const struct pr_prog *prog, void *target, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf *conf;

	if (pr_conf_load(line.file, prog->table, target, line.overrides, line.n, &conf, err) < 0) {
		(void)pr_prog_whose(line.file, prog->table, err);
		return -1;
	}
	if (prog->validate && prog->validate(target, conf, err) < 0) {
		pr_conf_free(conf);
		return -1;
	}
	*ret = conf;
	return 0;
}

/* A full disk or a closed pipe is a failure: 1 + exit code of a mode that only prints. */
static int printed(const struct pr_prog *prog)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return 1 + PR_EX_OK;
	(void)fprintf(stderr, "%s: cannot write to standard output: %s\n", prog->name, strerror(errno));
	return 1 + PR_EX_FAILED;
}

static int print_only(const struct pr_prog *prog, enum mode mode)
{
	if (mode == PRINT_SAMPLE)
		pr_conf_sample(prog->table, prog->name, stdout);
	else if (mode == PRINT_REFERENCE)
		pr_conf_reference(prog->table, prog->name, stdout);
	else if (mode == VERSION)
		(void)printf("%s %s\n", prog->name, PR_VERSION);
	else
		help(prog, stdout);
	return printed(prog);
}

int pr_prog_start(const struct pr_prog *prog, int argc, char **argv, struct pr_conf **ret_conf)
{
	enum mode mode = RUN;
	struct pr_conf *conf;
	struct pr_err err;
	int rc = parse_line(prog, argc, argv, &mode);

	if (rc != 0)
		return rc;
	if (mode >= PRINT_SAMPLE)
		return print_only(prog, mode);
	if (!line.file)
		return usage(prog, "-c FILE is needed (a start: %s --print-sample)", prog->name);
	if (load(prog, prog->target, &conf, &err) < 0)
		return print_err(&err);
	if (mode == RUN) {
		*ret_conf = conf;
		return 0;
	}
	if (mode == CHECK)
		(void)puts("configuration ok");
	else
		pr_conf_print(conf, stdout);
	pr_conf_free(conf);
	return printed(prog);
}

int pr_prog_reload(const struct pr_prog *prog, void *fresh, struct pr_conf **ret_conf, struct pr_err *err)
{
	struct pr_conf *conf;
	const char *frozen;

	if (load(prog, fresh, &conf, err) < 0)
		return -1;
	frozen = pr_conf_frozen_change(prog->table, prog->target, fresh);
	if (!frozen) {
		*ret_conf = conf;
		return 0;
	}
	(void)pr_conf_fail(conf, frozen, err, "cannot change while running");
	(void)pr_hint(err, "restart %s to change it; nothing of the file was taken over", prog->name);
	pr_conf_free(conf);
	return -1;
}
