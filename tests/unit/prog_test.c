/* tests/unit/prog_test.c -- the common command line: what goes on, what only prints, what
 * is refused with which exit code and on which stream; and reloads, all or nothing. */
#include "lib/prog.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ARGS(...) ((char *[]){ arg0, __VA_ARGS__ __VA_OPT__(, ) NULL })

struct settings {
	char *name, *token;
	int64_t n, m;
};

static const struct pr_opt table[] = {
	{ "name", PR_OPT_STR, offsetof(struct settings, name), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "x", .doc = "A name." },
	{ "token", PR_OPT_SECRET, offsetof(struct settings, token), .doc = "A secret." },
	{ "n", PR_OPT_INT, offsetof(struct settings, n), "1", .doc = "A number." },
	{ "m", PR_OPT_INT, offsetof(struct settings, m), "9", .doc = "Another, not less." },
	{ 0 },
};

static int validate(const void *target, const struct pr_conf *conf, struct pr_err *err)
{
	const struct settings *s = target;

	return s->n > s->m ? pr_conf_fail(conf, "n", err, "must not be more than m") : 0;
}

static struct settings current;
static const struct pr_prog prog = { "postrider-thing", "does things", table, &current, validate };

static char arg0[] = "postrider-thing";
static char dir[64], path[96];
static char said[2][16384]; /* stdout and stderr of the last run */

static void write_conf(const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0600), 0);
}

static int redirect(FILE *stream, int to)
{
	int saved;

	(void)fflush(stream);
	saved = dup(fileno(stream));
	assert_true(saved >= 0 && dup2(to, fileno(stream)) >= 0);
	return saved;
}

static void restore(FILE *stream, int saved, int from, char *ret)
{
	ssize_t n;

	(void)fflush(stream);
	clearerr(stream);
	assert_true(dup2(saved, fileno(stream)) >= 0);
	(void)close(saved);
	n = pread(from, ret, sizeof(said[0]) - 1, 0);
	ret[n > 0 ? n : 0] = '\0';
	(void)close(from);
}

static int capture_file(void)
{
	char name[96];
	int fd;

	(void)snprintf(name, sizeof(name), "%s/out.XXXXXX", dir);
	fd = mkstemp(name);
	assert_true(fd >= 0);
	(void)unlink(name);
	return fd;
}

/* Runs the command line; its exit code, or -1 when the program would go on. */
static int run_to(char **argv, int out)
{
	int err = capture_file(), argc = 0, saved_out, saved_err, rc;
	struct pr_conf *conf = NULL;

	while (argv[argc])
		argc++;
	saved_out = redirect(stdout, out);
	saved_err = redirect(stderr, err);
	rc = pr_prog_start(&prog, argc, argv, &conf);
	restore(stdout, saved_out, out, said[0]);
	restore(stderr, saved_err, err, said[1]);
	pr_conf_free(conf);
	return rc - 1;
}

static int run(char **argv)
{
	return run_to(argv, capture_file());
}

static void expect_usage(char **argv, const char *part)
{
	assert_int_equal(run(argv), PR_EX_USAGE);
	assert_string_equal(said[0], "");
	if (!strstr(said[1], part) || !strstr(said[1], "usage: postrider-thing -c FILE"))
		fail_msg("no \"%s\" in \"%s\"", part, said[1]);
}

static void test_goes_on(void **state)
{
	char file[] = "-c", *both = pr_asprintf("-c%s", path), *name = pr_asprintf("--config=%s", path);
	char o[] = "-o", n[] = "n=5", on[] = "-on=6", option[] = "--option=n=7";

	(void)state;
	write_conf("name = \"x\";\n");
	assert_int_equal(run(ARGS(file, path)), -1);
	assert_int_equal(current.n, 1);
	assert_int_equal(run(ARGS(o, n, both)), -1);
	assert_int_equal(current.n, 5);
	assert_int_equal(run(ARGS(name, on)), -1);
	assert_int_equal(current.n, 6);
	assert_int_equal(run(ARGS(name, on, option)), -1);
	assert_int_equal(current.n, 7);
	assert_string_equal(said[0], "");
	assert_string_equal(said[1], "");
	free(both);
	free(name);
}

static void test_prints(void **state)
{
	char c[] = "-c", check[] = "--check", config[] = "--print-config", sample[] = "--print-sample";
	char reference[] = "--print-reference", version[] = "--version", help[] = "--help", h[] = "-h";

	(void)state;
	write_conf("name = \"x\";\ntoken = \"hunter2\";\n");
	assert_int_equal(run(ARGS(check, c, path)), PR_EX_OK);
	assert_string_equal(said[0], "configuration ok\n");
	assert_int_equal(run(ARGS(c, path, config)), PR_EX_OK);
	assert_non_null(strstr(said[0], "name = \"x\" "));
	assert_non_null(strstr(said[0], "prog.cfg:1\n"));
	assert_non_null(strstr(said[0], "token = \"********\" "));
	assert_null(strstr(said[0], "hunter2"));
	assert_int_equal(run(ARGS(sample)), PR_EX_OK);
	assert_non_null(strstr(said[0], "\nname = \"x\";\n"));
	assert_non_null(strstr(said[0], "\n#n = 1;\n"));
	assert_int_equal(run(ARGS(reference)), PR_EX_OK);
	assert_non_null(strstr(said[0], "### `token`\n"));
	assert_int_equal(run(ARGS(version)), PR_EX_OK);
	assert_string_equal(said[0], "postrider-thing " PR_VERSION "\n");
	assert_int_equal(run(ARGS(help)), PR_EX_OK);
	assert_non_null(strstr(said[0], "--print-reference"));
	assert_non_null(strstr(said[0], "-o key=value"));
	assert_int_equal(run(ARGS(h)), PR_EX_OK);
	assert_string_equal(said[1], "");
}

static void test_usage(void **state)
{
	char c[] = "-c", o[] = "-o", check[] = "--check", version[] = "--version", chek[] = "--chek";
	char x[] = "-x", word[] = "word", bare[] = "n", nameless[] = "=5", empty[] = "",
	     config[] = "--config=";

	(void)state;
	expect_usage(ARGS(), "-c FILE is needed");
	expect_usage(ARGS(check), "-c FILE is needed");
	expect_usage(ARGS(c), "-c needs a file");
	expect_usage(ARGS(c, empty), "-c needs a file");
	expect_usage(ARGS(config), "-c needs a file");
	expect_usage(ARGS(c, path, c, path), "-c is given twice");
	expect_usage(ARGS(c, path, o), "-o needs key=value");
	expect_usage(ARGS(c, path, o, bare), "-o needs key=value");
	expect_usage(ARGS(c, path, o, nameless), "-o needs key=value");
	expect_usage(ARGS(c, path, check, version), "--version goes with no other");
	expect_usage(ARGS(c, path, chek), "unknown option --chek, did you mean --check?");
	expect_usage(ARGS(c, path, x), "unknown option -x\n");
	expect_usage(ARGS(word), "unexpected argument \"word\"");
}

static void test_too_many_overrides(void **state)
{
	char o[] = "-on=1", *argv[400] = { arg0 };

	(void)state;
	for (int i = 1; i < 300; i++)
		argv[i] = o;
	expect_usage(argv, "more than 256 -o options");
}

static void expect_config_error(char **argv, const char *text)
{
	assert_int_equal(run(argv), PR_EX_CONFIG);
	assert_string_equal(said[0], "");
	if (!strstr(said[1], text))
		fail_msg("no \"%s\" in \"%s\"", text, said[1]);
}

static void test_config_errors(void **state)
{
	char c[] = "-c", o[] = "-o", check[] = "--check", far[] = "zzz=5", big[] = "n=20",
	     none[] = "/nonexistent/x.cfg";

	(void)state;
	write_conf("name = \"x\";\nn = 10;\n");
	expect_config_error(ARGS(c, path), "prog.cfg:2: n: must not be more than m\n");
	expect_config_error(ARGS(c, path, check), "prog.cfg:2: n: must not be more than m\n");
	expect_config_error(ARGS(c, path, o, big), "command line: n: must not be more than m\n");
	expect_config_error(ARGS(c, path, o, far), "command line: zzz: unknown key\n");
	expect_config_error(
		ARGS(c, none), "/nonexistent/x.cfg: cannot be opened: No such file or directory\n");
	write_conf("name = \"x\"\ntoken = \"hunter2\";\n");
	assert_int_equal(chmod(path, 0644), 0);
	expect_config_error(
		ARGS(c, path), "prog.cfg:2: token: a secret in a file that everybody may read\nhint: ");
	assert_null(strstr(said[1], "hunter2"));
}

static void test_full_disk(void **state)
{
	char sample[] = "--print-sample";
	int full = open("/dev/full", O_RDWR | O_CLOEXEC);

	(void)state;
	if (full < 0)
		skip();
	assert_int_equal(run_to(ARGS(sample), full), PR_EX_FAILED);
	assert_non_null(strstr(said[1], "cannot write to standard output"));
}

/* A reload applies the overrides again, and refuses as a whole. */
static void test_reload(void **state)
{
	char c[] = "-c", o[] = "-o", m[] = "m=50", *argv[] = { arg0, c, path, o, m, NULL };
	struct pr_conf *conf, *fresh;
	struct settings next;
	struct pr_err err;

	(void)state;
	write_conf("name = \"x\"; n = 10;\n");
	assert_int_equal(pr_prog_start(&prog, 5, argv, &conf), 0);
	write_conf("name = \"x\"; n = 40; m = 2;\n");
	assert_int_equal(pr_prog_reload(&prog, &next, &fresh, &err), 0);
	assert_int_equal(next.n, 40);
	assert_int_equal(next.m, 50);
	assert_int_equal(current.n, 10);
	pr_conf_free(fresh);
	write_conf("name = \"x\"; n = 60;\n");
	assert_int_equal(pr_prog_reload(&prog, &next, &fresh, &err), -1);
	assert_non_null(strstr(err.text, "prog.cfg:1: n: must not be more than m"));
	write_conf("n = 40;\nname = \"y\";\n");
	assert_int_equal(pr_prog_reload(&prog, &next, &fresh, &err), -1);
	assert_non_null(strstr(err.text, "prog.cfg:2: name: cannot change while running"));
	assert_int_equal(err.exit, PR_EX_CONFIG);
	write_conf("name = ");
	assert_int_equal(pr_prog_reload(&prog, &next, &fresh, &err), -1);
	assert_string_equal(current.name, "x");
	pr_conf_free(conf);
}

static int make_dir(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/prog_test.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/prog.cfg", dir);
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	(void)unlink(path);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_on),
		cmocka_unit_test(test_prints),
		cmocka_unit_test(test_usage),
		cmocka_unit_test(test_too_many_overrides),
		cmocka_unit_test(test_config_errors),
		cmocka_unit_test(test_full_disk),
		cmocka_unit_test(test_reload),
	};

	(void)alarm(60);
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
