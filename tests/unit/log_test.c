/* tests/unit/log_test.c -- lib/log.c: what one line looks like, and that it is one line. */
#include "lib/clock.h"
#include "lib/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static FILE *captured;
static int real_stderr;

static void begin(void)
{
	captured = tmpfile();
	assert_non_null(captured);
	(void)fflush(stderr);
	real_stderr = dup(STDERR_FILENO);
	assert_true(real_stderr >= 0);
	assert_true(dup2(fileno(captured), STDERR_FILENO) >= 0);
}

/* Everything logged since begin(), in a static buffer. */
static char *end(void)
{
	static char text[1 << 20];
	ssize_t n;

	assert_true(dup2(real_stderr, STDERR_FILENO) >= 0);
	(void)close(real_stderr);
	n = pread(fileno(captured), text, sizeof(text) - 1, 0);
	(void)fclose(captured);
	assert_true(n >= 0);
	text[n] = '\0';
	return text;
}

/* The line after its time stamp, whose form is checked here. */
static char *after_stamp(char *line)
{
	struct {
		int y, mo, d, h, mi, s, us;
	} t;
	int n = 0;

	assert_int_equal(sscanf(line, "ts=%4d-%2d-%2dT%2d:%2d:%2d.%6dZ %n", &t.y, &t.mo, &t.d, &t.h, &t.mi,
				 &t.s, &t.us, &n),
		7);
	assert_int_equal(n, 31);
	return line + n;
}

static void one_line(void **state)
{
	char *text;

	(void)state;
	begin();
	pr_log(PR_INFO, "relay started", KS("outbox", "orders"), KI("pid", -12), KS("empty", ""),
		KS("null", NULL));
	text = end();
	assert_string_equal(after_stamp(text),
		"level=info msg=\"relay started\" outbox=orders pid=-12 empty=\"\" null=\"\"\n");
	begin();
	pr_log(PR_ERROR, "plain");
	text = end();
	assert_string_equal(after_stamp(text), "level=error msg=plain\n");
}

/* Story: a value with a line break forged a second log line. */
static void escapes(void **state)
{
	char *text;

	(void)state;
	begin();
	pr_log(PR_WARN, "x", KS("a", "one\nlevel=error msg=forged"), KS("b", "q\"b\\"), KS("c", "\x01\x7f\t"),
		KS("d", "k=v"), KS("e", "m\xc3\xbcnchen"));
	text = end();
	assert_string_equal(after_stamp(text),
		"level=warn msg=x a=\"one\\nlevel=error msg=forged\" b=\"q\\\"b\\\\\" c=\"\\x01\\x7f\\x09\""
		" d=\"k=v\" e=m\xc3\xbcnchen\n");
}

static void bounds_values(void **state)
{
	static char buf[10000];
	char *text, *longer = buf;

	(void)state;
	memset(buf, 'v', sizeof(buf) - 1);
	begin();
	pr_log(PR_INFO, "x", KS("a", longer), KS("b", "after"));
	text = end();
	assert_non_null(strstr(text, "vvv... b=after\n"));
	assert_true(strlen(text) < 1024);
	begin();
	pr_log(PR_INFO, longer, KS("a", longer), KS("b", longer), KS("c", longer), KS("d", longer),
		KS("e", longer), KS("f", longer));
	text = end();
	assert_true(strlen(text) <= 4096);
	assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

static void levels(void **state)
{
	enum pr_level level = PR_DEBUG;
	char *text;

	(void)state;
	begin();
	pr_log(PR_DEBUG, "dropped");
	pr_log_level(PR_ERROR);
	pr_log(PR_WARN, "dropped");
	pr_log(PR_ERROR, "kept");
	pr_log_level(PR_DEBUG);
	pr_log(PR_DEBUG, "kept");
	pr_log_level(PR_INFO);
	text = end();
	assert_null(strstr(text, "dropped"));
	assert_non_null(strstr(text, "level=error msg=kept\n"));
	assert_non_null(strstr(text, "level=debug msg=kept\n"));
	assert_int_equal(pr_level_parse("warn", &level), 0);
	assert_int_equal(level, PR_WARN);
	assert_int_equal(pr_level_parse("debug", &level), 0);
	assert_int_equal(level, PR_DEBUG);
	assert_int_equal(pr_level_parse("Warn", &level), -1);
	assert_int_equal(pr_level_parse("", &level), -1);
	assert_int_equal(level, PR_DEBUG);
}

static void errors(void **state)
{
	struct pr_err err;
	char *text;

	(void)state;
	(void)pr_fail(&err, PR_RETRY, "no route");
	begin();
	pr_log_err(PR_WARN, "trying again", &err);
	text = end();
	assert_string_equal(after_stamp(text), "level=warn msg=\"trying again\" err=\"no route\"\n");
	(void)strcpy(err.code, "08001");
	(void)pr_hint(&err, "look at the cable");
	begin();
	pr_log_err(PR_WARN, "trying again", &err);
	text = end();
	assert_string_equal(after_stamp(text),
		"level=warn msg=\"trying again\" err=\"no route\" code=08001 hint=\"look at the cable\"\n");
}

static void due(void **state)
{
	int64_t last = 0;

	(void)state;
	assert_true(pr_log_due(&last, 3600 * PR_SEC));
	assert_false(pr_log_due(&last, 3600 * PR_SEC));
	last -= 3601 * PR_SEC;
	assert_true(pr_log_due(&last, 3600 * PR_SEC));
	assert_true(pr_log_due(&last, 0));
}

/* A full or closed stderr costs the line, not the program. */
static void counts_dropped(void **state)
{
	uint64_t before = pr_log_dropped();
	int fd;

	(void)state;
	begin();
	fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(dup2(fd, STDERR_FILENO) >= 0);
	pr_log(PR_INFO, "lost");
	(void)close(STDERR_FILENO);
	pr_log(PR_INFO, "lost");
	(void)end();
	(void)close(fd);
	assert_int_equal(pr_log_dropped() - before, 2);
}

#define LINES   200
#define THREADS 4

static void *log_many(void *arg)
{
	for (int i = 0; i < LINES; i++)
		pr_log(PR_INFO, "from a thread", KS("who", arg), KI("n", i),
			KS("pad", "----------------------------------------------------------------"));
	return NULL;
}

static void whole_lines_from_threads(void **state)
{
	static char names[THREADS][4];
	pthread_t threads[THREADS];
	int n = 0;
	char *text, *line, *rest = NULL;

	(void)state;
	begin();
	assert_true(fcntl(STDERR_FILENO, F_SETFL, O_APPEND) == 0);
	for (int i = 0; i < THREADS; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "t%d", i);
		assert_int_equal(pthread_create(&threads[i], NULL, log_many, names[i]), 0);
	}
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	text = end();
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		n++;
		assert_int_equal(strncmp(after_stamp(line), "level=info msg=\"from a thread\" who=t", 35), 0);
		assert_string_equal(line + strlen(line) - 5, "-----");
	}
	assert_int_equal(n, LINES * THREADS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_line),
		cmocka_unit_test(escapes),
		cmocka_unit_test(bounds_values),
		cmocka_unit_test(levels),
		cmocka_unit_test(errors),
		cmocka_unit_test(due),
		cmocka_unit_test(counts_dropped),
		cmocka_unit_test(whole_lines_from_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
