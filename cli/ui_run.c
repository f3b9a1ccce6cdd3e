/* cli/ui_run.c -- one look-up, or one deed: a verb of our own in a process of its own, so that the page says
 * what the terminal says and a slow database holds up nobody else. No shell; the connection string goes by
 * the environment, where no list of processes shows it. */
#include "cli/ui.h"

#include "lib/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ANSWER (2 << 20)
#define CONNINFO   "POSTRIDER_CONNINFO="
#define LOOK_TIMES 5             /* so many timeouts of a program has a look-up */
#define DEED_US    (20 * PR_SEC) /* and a deed this long at least */

extern char **environ;

/* Ours, with the connection string, unless there is none. Freed by free: the strings are borrowed but the
 * first. */
static char **environment(char *conninfo)
{
	size_t n = 0, at = 0;
	char **env;

	while (environ[n])
		n++;
	env = pr_calloc(n + 2, sizeof(*env));
	if (conninfo)
		env[at++] = conninfo;
	for (size_t i = 0; i < n; i++)
		if (!conninfo || strncmp(environ[i], CONNINFO, sizeof(CONNINFO) - 1) != 0)
			env[at++] = environ[i];
	return env;
}

/* In the child of a process with threads: nothing that takes a lock. Signals are blocked in our threads, not
 * in what it becomes. */
static void become(char *const *argv, char *const *env, int in, int out, int talk)
{
	sigset_t none;

	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)dup2(in, STDIN_FILENO);
	(void)dup2(out, STDOUT_FILENO);
	(void)dup2(talk, STDERR_FILENO);
	(void)execve("/proc/self/exe", argv, env);
	_exit(127);
}

/* What it reads: nothing of it ever stands in a list of processes, nor on a disk. */
static int input_of(const char *input, size_t n)
{
	int fd = memfd_create("input", MFD_CLOEXEC);

	while (fd >= 0 && n > 0) {
		ssize_t wrote = write(fd, input, n);

		if (wrote <= 0) {
			(void)close(fd);
			return -1;
		}
		input += wrote;
		n -= (size_t)wrote;
	}
	if (fd >= 0)
		(void)lseek(fd, 0, SEEK_SET);
	return fd;
}

static pid_t start(char *const *argv, char *const *env, int in, int *ret_out, int *ret_talk)
{
	int out[2], talk[2];
	pid_t pid;

	if (pipe2(out, O_CLOEXEC) < 0)
		return -1;
	if (pipe2(talk, O_CLOEXEC) < 0) {
		(void)close(out[0]);
		(void)close(out[1]);
		return -1;
	}
	pid = fork();
	if (pid == 0)
		become(argv, env, in, out[1], talk[1]);
	(void)close(out[1]);
	(void)close(talk[1]);
	*ret_out = out[0];
	*ret_talk = talk[0];
	return pid;
}

/* Until both have ended: 1. The deadline, or more than there may be: 0. */
static int take(int out, int talk, int64_t until_us, struct pr_buf *said, struct pr_buf *talked)
{
	struct pollfd fds[2] = { { .fd = out, .events = POLLIN }, { .fd = talk, .events = POLLIN } };
	char data[16384];

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		int64_t left = (until_us - pr_mono_us()) / PR_MS;

		if (left <= 0 || said->len > MAX_ANSWER)
			return 0;
		if (poll(fds, 2, (int)left) < 0)
			continue; /* a signal */
		for (int i = 0; i < 2; i++) {
			ssize_t n;

			if (fds[i].fd < 0 || !fds[i].revents)
				continue;
			n = read(fds[i].fd, data, sizeof(data));
			if (n <= 0)
				fds[i].fd = -1;
			else if (i == 0 || talked->len < 1000)
				pr_buf_put(i ? talked : said, data, (size_t)n);
		}
	}
	return 1;
}

/* The options come behind the verb's words, before what the caller gives: an operand may be anything. */
static char **arguments(const struct ui_database *db, const char *const *argv, int json)
{
	size_t n = 0, at = 0, words = cli_find(argv[0]) ? 1 : 2;
	char **args;

	while (argv[n])
		n++;
	args = pr_calloc(n + 6, sizeof(*args));
	args[at++] = pr_strdup("postrider");
	for (size_t i = 0; i < n; i++) {
		args[at++] = pr_strdup(argv[i]);
		if (i + 1 == words && json)
			args[at++] = pr_strdup("--json");
		if (i + 1 == words && db->config) {
			args[at++] = pr_strdup("-c");
			args[at++] = pr_strdup(db->config);
		}
	}
	return args;
}

static void end(pid_t pid, int whole, struct ui_ran *ran)
{
	int status = 0, large = ran->said.len > MAX_ANSWER;

	if (!whole)
		(void)kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && whole)
		ran->exit = WEXITSTATUS(status);
	if (whole && (ran->exit >= 0 || ran->talked.len))
		return;
	ran->talked.len = 0;
	pr_buf_puts(&ran->talked, whole   ? "it ended before it was done"
				  : large ? "the answer is too large"
					  : "no answer in time");
}

void ui_exec(const struct ui *ui, const struct ui_database *db, const char *const *argv, int flags,
	const char *input, size_t input_n, struct ui_ran *ret)
{
	int64_t patience = LOOK_TIMES * ui->timeout_us, until;
	char *conninfo = db->conninfo ? pr_asprintf(CONNINFO "%s", db->conninfo) : NULL;
	char **args = arguments(db, argv, flags & UI_JSON), **env = environment(conninfo);
	int out = -1, talk = -1, in = input_of(input, input_n);
	pid_t pid;

	*ret = (struct ui_ran){ .exit = -1 };
	if (flags & UI_PATIENT && patience < DEED_US)
		patience = DEED_US;
	until = pr_mono_us() + patience;
	pid = in < 0 ? -1 : start(args, env, in, &out, &talk);
	if (pid < 0)
		pr_buf_printf(&ret->talked, "cannot start a process: %s", strerror(errno));
	for (char **a = args; *a; a++)
		free(*a);
	free(args);
	free(env);
	free(conninfo);
	if (in >= 0)
		(void)close(in);
	if (pid < 0)
		return;
	end(pid, take(out, talk, until, &ret->said, &ret->talked), ret);
	(void)close(out);
	(void)close(talk);
}

void ui_ran_release(struct ui_ran *ran)
{
	pr_buf_free(&ran->said);
	pr_buf_free(&ran->talked);
}

cJSON *ui_lines(const struct ui_ran *ran)
{
	const char *text = ran->said.s;
	cJSON *list = cJSON_CreateArray();

	while (text && *text) {
		size_t n = strcspn(text, "\n");
		cJSON *o = cJSON_ParseWithLength(text, n);

		if (o)
			(void)cJSON_AddItemToArray(list, o);
		text += n + (text[n] == '\n');
	}
	return list;
}

cJSON *ui_run(
	const struct ui *ui, const struct ui_database *db, const char *const *argv, char *why, size_t why_n)
{
	struct ui_ran ran;
	cJSON *list = NULL;

	ui_exec(ui, db, argv, UI_JSON, NULL, 0, &ran);
	if (ran.exit == 0 || ran.exit == PR_EX_NOT_FOUND)
		list = ui_lines(&ran);
	(void)snprintf(why, why_n, "%.*s", (int)(ran.talked.len < why_n ? ran.talked.len : why_n - 1),
		ran.talked.s ? ran.talked.s
		: list       ? ""
			     : "it could not be run");
	ui_ran_release(&ran);
	return list;
}
